/* State that follows execution: what is set in one callback or coroutine is there in those that it starts. */
#include "runtime.h"

#include <pthread.h>

static const char name_key, other_key;

static const char *name(void)
{
    const char *value = tornado_stack_context_get(&name_key);
    return value ? value : "-";
}

static void set_name(const char *value)
{
    tornado_stack_context_state state = {.key = &name_key, .value = (void *)(uintptr_t)value};
    CHECK(tornado_stack_context_set(&state));
}

/* Notes its argument and the name that it sees. */
static void see(void *arg)
{
    note(arg);
    note(" ");
    note((void *)(uintptr_t)name());
    note("; ");
}

static void see_done(tornado_future *future, void *arg)
{
    (void)future;
    see(arg);
}

static void *see_across_waits(void *arg)
{
    see(arg);
    tornado_await(tornado_sleep(0.005));
    see(arg);
    return NULL;
}

static void *stop_soon(void *arg)
{
    tornado_await(tornado_sleep(test_scaled(0.05)));
    return arg;
}

static void start_everything(void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = tornado_future_new();
    set_name(arg);
    tornado_ioloop_add_callback(loop, see, "callback");
    tornado_ioloop_call_later(loop, 0.01, see, "timer");
    tornado_future_add_done_callback(future, see_done, "done");
    tornado_future_release(tornado_spawn(see_across_waits, "coroutine"));
    set_name("later");
    tornado_future_set_integer(future, 1);
    tornado_future_release(future);
}

TEST_EACH_POLLER(context_goes_with_callbacks_timers_futures_and_coroutines)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, start_everything, "ann");
    tornado_ioloop_add_callback(loop, see, "neighbour");
    CHECK(tornado_ioloop_run_sync(loop, stop_soon, NULL));
    const char *what = traced();
    const char *const seen[] = {"neighbour -; ", "callback ann; ", "done ann; ", "coroutine ann; ", "timer ann; "};
    for (size_t i = 0; i < sizeof seen / sizeof seen[0]; i++)
        if (!strstr(what, seen[i]))
            FAIL("%s is not in %s", seen[i], what);
    CHECK(strstr(strstr(what, "coroutine ann; ") + 1, "coroutine ann; ")); /* before its wait, and after */
    CHECK_STR(name(), "-");
}

static void spawn_and_forget(void *arg)
{
    set_name(arg);
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), see_across_waits, "forgotten"));
    see("caller");
}

TEST(context_does_not_go_with_a_spawned_callback)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, spawn_and_forget, "ann");
    CHECK(tornado_ioloop_run_sync(loop, stop_soon, NULL));
    CHECK_STR(traced(), "caller ann; forgotten -; forgotten -; ");
}

static void add_to_the_loop(void *loop)
{
    CHECK_STR(name(), "bob");
    CHECK(tornado_ioloop_add_callback(loop, see, "thread"));
}

static void *add_from_thread(void *loop)
{
    tornado_stack_context_state state = {.key = &name_key, .value = "bob"};
    tornado_run_with_stack_context(&state, add_to_the_loop, loop);
    return NULL;
}

static void see_readable(int fd, unsigned events, void *arg)
{
    (void)events;
    see(arg);
    CHECK(tornado_ioloop_remove_handler(tornado_ioloop_current(), fd));
}

static void start_from_outside(void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    pthread_t thread;
    int *ends = arg;
    set_name("ann");
    CHECK(pthread_create(&thread, NULL, add_from_thread, loop) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(tornado_ioloop_add_callback_from_signal(loop, see, "signal"));
    CHECK(tornado_ioloop_add_handler(loop, ends[0], see_readable, "descriptor", TORNADO_IOLOOP_READ));
    CHECK(write(ends[1], "x", 1) == 1);
}

TEST_EACH_POLLER(context_does_not_go_with_what_comes_from_outside)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    tornado_ioloop *loop = tornado_ioloop_current();
    set_name("before");
    tornado_ioloop_add_callback(loop, see, "before the loop runs");
    tornado_ioloop_add_callback(loop, start_from_outside, ends);
    CHECK(tornado_ioloop_run_sync(loop, stop_soon, NULL));
    const char *what = traced();
    const char *const seen[] = {"before the loop runs -; ", "thread -; ", "signal -; ", "descriptor -; "};
    for (size_t i = 0; i < sizeof seen / sizeof seen[0]; i++)
        if (!strstr(what, seen[i]))
            FAIL("%s is not in %s", seen[i], what);
    set_name(NULL);
    close(ends[0]);
    close(ends[1]);
}

static int periods;

static void see_and_change(void *periodic)
{
    see("run");
    set_name("left over");
    if (++periods % 3 == 0)
        tornado_periodic_callback_stop(*(tornado_periodic_callback **)periodic);
}

static void start_periodic(void *arg)
{
    tornado_periodic_callback **periodic = arg;
    set_name("ann");
    CHECK(tornado_periodic_callback_start(*periodic));
    set_name("later");
}

TEST_EACH_POLLER(context_of_a_periodic_callback_is_the_same_in_each_run)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_periodic_callback *periodic = NULL;
    periodic = tornado_periodic_callback_new(see_and_change, &periodic, 1, 0);
    tornado_ioloop_add_callback(loop, start_periodic, &periodic);
    do {
        CHECK(tornado_ioloop_run_once(loop, 1));
    } while (tornado_periodic_callback_is_running(periodic));
    CHECK_STR(traced(), "run ann; run ann; run ann; ");
    CHECK(tornado_periodic_callback_start(periodic));
    while (tornado_periodic_callback_is_running(periodic))
        CHECK(tornado_ioloop_run_once(loop, 1));
    CHECK_STR(traced(), "run -; run -; run -; ");
    tornado_periodic_callback_free(periodic);
}

static int destroyed;

static void destroy(void *value)
{
    (void)value;
    destroyed++;
}

static void set_destroyed(void)
{
    tornado_stack_context_state state = {.key = &other_key, .value = "x", .destroy = destroy};
    CHECK(tornado_stack_context_set(&state));
}

static void start_and_set(void *arg)
{
    set_destroyed();
    tornado_ioloop_call_later(tornado_ioloop_current(), test_scaled(0.02), see, arg);
    set_destroyed(); /* in place of the first, which the timer still has */
    CHECK_INT(destroyed, 0);
}

static tornado_future *refused;

static void fail_otherwise(void *value)
{
    CHECK(!tornado_periodic_callback_new(see, value, 0, 0)); /* TORNADO_ERR_INVALID */
}

static void spawn_with_that(void *arg)
{
    tornado_stack_context_state state = {.key = &other_key, .value = arg, .destroy = fail_otherwise};
    CHECK(tornado_stack_context_set(&state));
    refused = tornado_spawn(see_across_waits, arg);
}

TEST(context_that_fails_while_it_goes_does_not_change_why_a_coroutine_could_not_start)
{
    tornado_ioloop *loop = tornado_ioloop_new(&(tornado_ioloop_options){.max_coroutines = 1});
    CHECK(tornado_ioloop_spawn_callback(loop, stop_soon, NULL));
    tornado_ioloop_add_callback(loop, spawn_with_that, "never");
    for (int i = 0; i < 3; i++)
        tornado_ioloop_run_once(loop, 0);
    CHECK(is_error(tornado_future_error(refused), TORNADO_ERR_LIMIT));
    CHECK_STR(trace, "");
    tornado_future_release(refused);
    CHECK(tornado_ioloop_close(loop, false));
}

static tornado_periodic_callback *own_periodic;

static void free_own_periodic(void *periodic)
{
    tornado_periodic_callback_free(periodic);
    note("freed");
}

static void start_own_periodic(void *arg)
{
    own_periodic = tornado_periodic_callback_new(see, arg, 1e6, 0);
    tornado_stack_context_state state = {.key = &other_key, .value = own_periodic, .destroy = free_own_periodic};
    CHECK(tornado_stack_context_set(&state));
    CHECK(tornado_periodic_callback_start(own_periodic));
}

TEST(context_that_owns_a_periodic_callback_goes_when_that_is_stopped)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, start_own_periodic, "never");
    tornado_ioloop_run_once(loop, 0);
    CHECK_STR(trace, "");
    tornado_periodic_callback_stop(own_periodic);
    CHECK_STR(traced(), "freed");
    CHECK(tornado_ioloop_close(loop, false));
}

TEST(context_is_destroyed_when_nothing_has_it_any_more)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, start_and_set, "t");
    tornado_ioloop_run_once(loop, 0);
    CHECK_INT(destroyed, 1);
    CHECK(tornado_ioloop_run_sync(loop, stop_soon, NULL));
    CHECK_INT(destroyed, 2);
}

static void *wait_with_state(void *arg)
{
    set_destroyed();
    tornado_timeout timer = tornado_ioloop_call_later(tornado_ioloop_current(), 100, see, arg);
    tornado_ioloop_call_later(tornado_ioloop_current(), 100, see, arg); /* never runs */
    tornado_ioloop_add_callback(tornado_ioloop_current(), see, arg);
    tornado_future *never = tornado_sleep(100);
    tornado_future_add_done_callback(never, see_done, arg);
    tornado_future_release(never);
    set_destroyed();
    tornado_ioloop_remove_timeout(tornado_ioloop_current(), timer);
    tornado_await(tornado_sleep(100));
    return NULL;
}

TEST(context_goes_with_what_never_runs)
{
    tornado_ioloop *loop = tornado_ioloop_new(NULL);
    tornado_future_release(tornado_spawn(wait_with_state, "x"));
    tornado_ioloop_run_once(loop, 0);
    CHECK_INT(destroyed, 0);
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_INT(destroyed, 2);
}

static void start_late(void *value)
{
    CHECK(is_error(tornado_future_error(value = tornado_spawn(see_across_waits, value)), TORNADO_ERR_STATE));
    tornado_future_release(value);
    note("refused");
}

static void set_start_late(void *arg)
{
    tornado_stack_context_state state = {.key = &other_key, .value = arg, .destroy = start_late};
    CHECK(tornado_stack_context_set(&state));
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 100, see, arg));
}

TEST(context_that_goes_when_its_loop_is_closed_can_start_nothing_and_makes_no_other_loop)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, set_start_late, "never");
    tornado_ioloop_run_once(loop, 0);
    CHECK_STR(trace, "");
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_STR(traced(), "refused");
}

static tornado_ioloop *owner;
static tornado_timeout owned[2];

/* What a state does that has timers of its own. */
static void remove_owned(void *value)
{
    for (int i = 0; i < 2; i++)
        note(tornado_ioloop_remove_timeout(owner, owned[i]) ? "removed; " : "gone; ");
    note(value);
}

static void start_owned(void *arg)
{
    tornado_stack_context_state state = {.key = &other_key, .value = arg, .destroy = remove_owned};
    CHECK(tornado_stack_context_set(&state));
    owned[0] = tornado_ioloop_call_later(owner, 100, see, "a");
    set_name("set later");
    owned[1] = tornado_ioloop_call_later(owner, 50, see, "b");
}

TEST(context_may_remove_timers_that_had_it_while_the_loop_is_closed)
{
    owner = tornado_ioloop_current();
    tornado_ioloop_add_callback(owner, start_owned, "destroyed");
    tornado_ioloop_run_once(owner, 0);
    CHECK_STR(trace, "");
    CHECK(tornado_ioloop_close(owner, false));
    CHECK_STR(traced(), "gone; gone; destroyed");
}

static void see_inside(void *arg)
{
    see(arg);
    set_name("changed");
    tornado_ioloop_add_callback(tornado_ioloop_current(), see, "from inside");
}

static void run_with(void *arg)
{
    tornado_stack_context_state state = {.key = &name_key, .value = "inner"};
    set_name("outer");
    tornado_run_with_stack_context(&state, see_inside, arg);
    see("after");
    tornado_null_context(see, "null");
    see("after null");
}

TEST(context_of_a_function_ends_with_it)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, run_with, "inside");
    tornado_ioloop_run_once(loop, 0);
    tornado_ioloop_run_once(loop, 0);
    CHECK_STR(traced(), "inside inner; after outer; null -; after null outer; from inside changed; ");
}

TEST(context_can_be_kept_and_used_later)
{
    set_name("then");
    tornado_stack_context *then = tornado_stack_context_wrap();
    set_name("now");
    tornado_stack_context_run(then, see, "a");
    tornado_stack_context_run(NULL, see, "b");
    see("c");
    tornado_stack_context_release(then);
    set_name(NULL);
    CHECK_STR(traced(), "a then; b -; c now; ");
    tornado_stack_context *empty = tornado_stack_context_wrap();
    tornado_stack_context_run(empty, see, "d");
    tornado_stack_context_release(empty);
    CHECK_STR(traced(), "d -; ");
    CHECK(tornado_stack_context_get(&name_key) == NULL);
    tornado_null_context(see, "e");
}

/* ---- errors ---- */

static bool answer;

static bool handle(const tornado_error *error, void *value)
{
    note(value);
    note(": ");
    note((void *)(uintptr_t)error->message);
    note("; ");
    return answer;
}

static bool handle_and_raise(const tornado_error *error, void *value)
{
    handle(error, value);
    tornado_raise(TORNADO_ERR_INVALID, "worse");
}

static void fail(void *arg)
{
    tornado_raise(TORNADO_ERR_SYSTEM, "%s", (const char *)arg);
}

static void fail_later(void *arg)
{
    tornado_ioloop_add_callback(tornado_ioloop_current(), fail, arg);
}

static void with_handlers(void *arg)
{
    static const char first, second;
    CHECK(tornado_stack_context_set(&(tornado_stack_context_state){&first, "first", NULL, handle}));
    CHECK(tornado_stack_context_set(&(tornado_stack_context_state){&second, "second", NULL, handle_and_raise}));
    fail_later(arg);
}

TEST(context_handles_what_a_callback_raises_the_innermost_first)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    for (int i = 0; i < 2; i++) {
        answer = i;
        tornado_ioloop_add_callback(loop, with_handlers, "broken");
        tornado_ioloop_run_once(loop, 0);
        tornado_ioloop_run_once(loop, 0);
        CHECK_STR(traced(), "second: broken; first: worse; ");
        CHECK_INT(logged("Exception in callback"), 1); /* the first time, when nobody dealt with it */
        CHECK_INT(logged("worse"), 1);
    }
}

static void raise_inside(void *arg)
{
    tornado_stack_context_state state = {.key = &name_key, .value = "handler", .handle_exception = handle};
    tornado_run_with_stack_context(&state, fail, arg);
    note("went on");
}

TEST(context_handles_what_its_function_raises_or_raises_it_on)
{
    answer = true;
    CHECK(tornado_try(raise_inside, "one") == NULL);
    CHECK_STR(traced(), "handler: one; went on");
    answer = false;
    CHECK(is_error(tornado_try(raise_inside, "two"), TORNADO_ERR_SYSTEM));
    CHECK_STR(traced(), "handler: two; ");
    CHECK_STR(name(), "-");
}

static char live[8];

static void end_value(void *value)
{
    CHECK(value == live);
    destroyed++;
    strcpy(live, "gone");
}

static void set_anew_and_fail(void *arg)
{
    set_name("another");
    CHECK_INT(destroyed, 0);
    fail(arg);
}

static void raise_after_a_change(void *arg)
{
    tornado_stack_context_state state = {&name_key, live, end_value, handle};
    strcpy(live, "alive");
    destroyed = 0;
    tornado_run_with_stack_context(&state, set_anew_and_fail, arg);
    CHECK_STR(name(), "-");
}

TEST(context_handler_has_its_value_also_when_the_function_set_another)
{
    for (int i = 0; i < 2; i++) {
        answer = i;
        CHECK(is_error(tornado_try(raise_after_a_change, "broken"), TORNADO_ERR_SYSTEM) == !i);
        CHECK_STR(traced(), "alive: broken; ");
        CHECK_INT(destroyed, 1);
    }
}

static void without_key(void *arg)
{
    tornado_run_with_stack_context(&(tornado_stack_context_state){.value = arg}, see, "never");
}

TEST(context_wants_a_key)
{
    tornado_stack_context_state state = {.value = "x", .destroy = destroy};
    CHECK(!tornado_stack_context_set(&state));
    CHECK(is_error(tornado_last_error(), TORNADO_ERR_INVALID));
    CHECK_INT(destroyed, 1);
    CHECK(is_error(tornado_try(without_key, "x"), TORNADO_ERR_INVALID));
    CHECK_STR(traced(), "");
}

TEST(context_survives_every_allocation_that_fails)
{
    for (int n = 1; n <= 2; n++) {
        tornado_stack_context_state state = {.key = &name_key, .value = "x", .destroy = destroy};
        test_fail_alloc(n);
        CHECK(!tornado_stack_context_set(&state));
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_NOMEM));
        CHECK_INT(destroyed, n);
    }
    test_fail_alloc(0);
    CHECK_STR(name(), "-");
}

/* ---- the log ---- */

static const char *tag(void *arg)
{
    (void)arg;
    return tornado_stack_context_get(&name_key);
}

static void *log_across_waits(void *arg)
{
    set_name(arg);
    tornado_app_log(TORNADO_LOG_INFO, "begins");
    tornado_await(tornado_moment());
    tornado_app_log(TORNADO_LOG_INFO, "ends");
    return NULL;
}

static void *two_requests(void *arg)
{
    tornado_future *both[] = {tornado_spawn(log_across_waits, "[req-1]"), tornado_spawn(log_across_waits, "[req-2]")};
    tornado_await(tornado_multi(both, 2));
    tornado_app_log(TORNADO_LOG_INFO, "all done");
    return arg;
}

TEST(context_puts_a_request_id_into_each_log_line)
{
    log_keep();
    tornado_log_options options = {.level = TORNADO_LOG_DEBUG, .hook = log_keep_hook, .tag = tag};
    tornado_enable_pretty_logging(&options);
    CHECK(tornado_ioloop_run_sync(tornado_ioloop_current(), two_requests, NULL));
    CHECK_INT(logged("] [req-1] begins\n"), 1);
    CHECK_INT(logged("] [req-1] ends\n"), 1);
    CHECK_INT(logged("] [req-2] ends\n"), 1);
    CHECK_INT(logged("] all done\n"), 1);
}
