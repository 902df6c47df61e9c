/* Errors, raising, tries, scopes, what is deferred. */
#include "runtime.h"

#include <pthread.h>
#include <signal.h>

/*----------------------------------------------------------------------------
 * Values.
 *----------------------------------------------------------------------------*/

TEST(error_every_code_has_a_name)
{
    CHECK_STR(tornado_error_name(TORNADO_OK), "TORNADO_OK");
#define CHECK_NAME(name, value, text) CHECK_STR(tornado_error_name(TORNADO_ERR_##name), "TORNADO_ERR_" #name);
    TORNADO_ERRORS(CHECK_NAME)
#undef CHECK_NAME
    CHECK_STR(tornado_error_name(-1), "TORNADO_ERR_UNKNOWN");
    CHECK_STR(tornado_error_name(TORNADO_ERR_COUNT), "TORNADO_ERR_UNKNOWN");
    CHECK_STR(tornado_error_name(1 << 30), "TORNADO_ERR_UNKNOWN");
}

static void *fail_in_a_thread(void *arg)
{
    CHECK_INT(tornado_last_error()->code, TORNADO_OK);
    CHECK(!tornado_ioloop_configure("no such poller"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    return arg;
}

TEST(error_last_is_ok_before_any_failure_and_of_one_thread)
{
    pthread_t thread;
    CHECK(tornado_last_error() != NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_OK);
    CHECK(pthread_create(&thread, NULL, fail_in_a_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_INT(tornado_last_error()->code, TORNADO_OK);
}

TEST(error_last_tells_of_the_last_failure)
{
    CHECK(!tornado_ioloop_configure("morse"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(strstr(tornado_last_error()->message, "morse") != NULL);
    tornado_arena *arena = tornado_arena_new();
    CHECK(tornado_arena_alloc(arena, SIZE_MAX) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    tornado_arena_free(arena);
}

/*----------------------------------------------------------------------------
 * Raising and trying.
 *----------------------------------------------------------------------------*/

static void raise_what_is_given(void *arg)
{
    tornado_raise(TORNADO_ERR_CLOSED, "no more %s", (const char *)arg);
}

static void raise_long(void *arg)
{
    (void)arg;
    tornado_raise(TORNADO_ERR_PARSE, "%0300d", 7);
}

static void raise_http(void *arg)
{
    (void)arg;
    tornado_raise_http_error(404, "story %d", 17);
}

static void raise_status(void *arg)
{
    tornado_raise_http_status(*(int *)arg);
}

static void raise_copy(void *arg)
{
    tornado_raise_error(arg);
}

static void do_nothing(void *arg)
{
    (void)arg;
}

TEST(error_try_returns_null_when_nothing_was_raised)
{
    CHECK(tornado_try(note, "a") == NULL);
    CHECK_STR(trace, "a");
}

TEST(error_try_gives_what_was_raised)
{
    const tornado_error *error = tornado_try(raise_what_is_given, "tea");
    CHECK(error != NULL);
    CHECK_INT(error->code, TORNADO_ERR_CLOSED);
    CHECK_INT(error->sys_errno, 0);
    CHECK_INT(error->http_status, 0);
    CHECK_STR(error->message, "no more tea");
}

TEST(error_long_messages_are_cut)
{
    const tornado_error *error = tornado_try(raise_long, NULL);
    CHECK(is_error(error, TORNADO_ERR_PARSE));
    CHECK_INT(strlen(error->message), sizeof error->message - 1);
}

TEST(error_raised_for_http_has_a_status)
{
    int status = 403;
    const tornado_error *error = tornado_try(raise_http, NULL);
    CHECK(is_error(error, TORNADO_ERR_HTTP));
    CHECK_INT(error->http_status, 404);
    CHECK_STR(error->message, "story 17");
    error = tornado_try(raise_status, &status);
    CHECK(is_error(error, TORNADO_ERR_HTTP));
    CHECK_INT(error->http_status, 403);
    CHECK_STR(error->message, "");
}

TEST(error_raised_as_a_copy_is_the_same)
{
    tornado_error mine = {.code = TORNADO_ERR_SYSTEM, .sys_errno = 32, .http_status = 502, .message = "the pipe broke"};
    const tornado_error *error = tornado_try(raise_copy, &mine);
    CHECK(error != &mine);
    CHECK(is_error(error, TORNADO_ERR_SYSTEM));
    CHECK_INT(error->sys_errno, 32);
    CHECK_INT(error->http_status, 502);
    CHECK_STR(error->message, "the pipe broke");
    error = tornado_try(raise_copy, (void *)(uintptr_t)error); /* the very one that the try gave */
    CHECK_STR(error->message, "the pipe broke");
}

TEST(error_last_error_can_be_raised)
{
    CHECK(!tornado_ioloop_configure("semaphore"));
    const tornado_error *error = tornado_try(raise_copy, (void *)(uintptr_t)tornado_last_error());
    CHECK(is_error(error, TORNADO_ERR_INVALID));
    CHECK(strstr(error->message, "semaphore") != NULL);
}

TEST(error_raising_allocates_nothing)
{
    long allocs = test_allocs();
    for (int i = 0; i < 1000; i++)
        CHECK(tornado_try(raise_http, NULL) != NULL);
    CHECK_INT(test_allocs(), allocs);
}

static void inner_tries(void *arg)
{
    (void)arg;
    CHECK(is_error(tornado_try(raise_http, NULL), TORNADO_ERR_HTTP));
    note("a");
    CHECK(tornado_try(note, "b") == NULL);
    CHECK(is_error(tornado_try(raise_what_is_given, "x"), TORNADO_ERR_CLOSED));
    note("c");
    tornado_raise(TORNADO_ERR_LIMIT, "the outer one");
}

TEST(error_tries_nest)
{
    const tornado_error *error = tornado_try(inner_tries, NULL);
    CHECK(is_error(error, TORNADO_ERR_LIMIT));
    CHECK_STR(error->message, "the outer one");
    CHECK_STR(trace, "abc");
}

static void pass_on(void *arg)
{
    const tornado_error *error = tornado_try(raise_what_is_given, arg);
    tornado_raise_error(error);
}

TEST(error_caught_can_be_passed_on)
{
    const tornado_error *error = tornado_try(pass_on, "coffee");
    CHECK(is_error(error, TORNADO_ERR_CLOSED));
    CHECK_STR(error->message, "no more coffee");
}

/* Something for the optimiser to keep in registers over the call that does not return. */
static int deep(int depth, volatile int *calls)
{
    int local = depth * 3;
    if (++*calls % 1001 == 0)
        tornado_raise(TORNADO_ERR_LIMIT, "deep enough");
    return depth ? deep(depth - 1, calls) + local : 0;
}

static void go_deep(void *arg)
{
    deep(1000, arg);
}

TEST(error_raise_leaves_many_frames_and_keeps_the_callers_variables)
{
    volatile int calls = 0;
    double factor = 1.5;
    long sum = 0;
    for (int i = 0; i < 100; i++) {
        CHECK(tornado_try(go_deep, (void *)(uintptr_t)&calls) != NULL);
        sum += i;
        factor += 0.5;
    }
    CHECK_INT(calls, 100100);
    CHECK_INT(sum, 4950);
    CHECK_DOUBLE(factor, 51.5);
}

static void *error_outlives_waits(void *arg)
{
    (void)arg;
    const tornado_error *error = tornado_try(raise_what_is_given, "milk");
    CHECK_STR(error->message, "no more milk");
    CHECK(!tornado_ioloop_configure("flags"));
    CHECK(tornado_wait(tornado_moment()) == NULL);
    tornado_error other = {.code = TORNADO_ERR_LIMIT, .message = "other"};
    CHECK(is_error(tornado_wait(tornado_future_failed(&other)), TORNADO_ERR_LIMIT));
    CHECK_STR(error->message, "no more milk");
    return NULL;
}

TEST(error_of_a_try_stays_valid_until_the_next_try)
{
    run(error_outlives_waits, NULL);
}

static void *error_of_wait_outlives_try(void *arg)
{
    (void)arg;
    tornado_error other = {.code = TORNADO_ERR_LIMIT, .message = "other"};
    const tornado_error *error = tornado_wait(tornado_future_failed(&other));
    CHECK(tornado_try(raise_what_is_given, "milk") != NULL);
    CHECK_STR(error->message, "other");
    return NULL;
}

TEST(error_of_a_wait_stays_valid_until_the_next_wait)
{
    run(error_of_wait_outlives_try, NULL);
}

static void raise_nowhere(void)
{
    tornado_raise(TORNADO_ERR_LIMIT, "too far out");
}

TEST(error_raised_outside_any_boundary_says_so_and_aborts)
{
    const char *output;
    CHECK_INT(dies_of(raise_nowhere, &output), SIGABRT);
    CHECK(strstr(output, "too far out") != NULL);
}

static void defer_nowhere(void)
{
    static char text[] = "deferred ran\n";
    tornado_defer((tornado_callback)(uintptr_t)perror, text);
}

TEST(error_defer_outside_any_scope_runs_it_and_aborts)
{
    const char *output;
    CHECK_INT(dies_of(defer_nowhere, &output), SIGABRT);
    CHECK(strstr(output, "deferred ran") != NULL);
    CHECK(strstr(output, "tornado_defer") != NULL);
}

/*----------------------------------------------------------------------------
 * What is deferred.
 *----------------------------------------------------------------------------*/

static void defer_abc(void *raises)
{
    tornado_defer(note, "a");
    tornado_defer(note, "b");
    tornado_defer(note, "c");
    note("1");
    if (raises)
        tornado_raise(TORNADO_ERR_STATE, "on purpose");
}

TEST(error_deferred_functions_run_in_reverse_when_a_try_returns)
{
    CHECK(tornado_try(defer_abc, NULL) == NULL);
    CHECK_STR(trace, "1cba");
}

TEST(error_deferred_functions_run_in_reverse_when_it_raises)
{
    CHECK(is_error(tornado_try(defer_abc, ""), TORNADO_ERR_STATE));
    CHECK_STR(trace, "1cba");
}

static void nested_scopes(void *arg)
{
    tornado_scope outer, inner;
    tornado_defer(note, "a");
    tornado_scope_enter(&outer);
    tornado_defer(note, "b");
    tornado_scope_enter(&inner);
    tornado_defer(note, "c");
    if (arg)
        raise_what_is_given(arg);
    tornado_scope_leave(&inner);
    note("1");
    tornado_scope_leave(&outer);
    note("2");
}

TEST(error_leaving_a_scope_runs_what_it_deferred)
{
    CHECK(tornado_try(nested_scopes, NULL) == NULL);
    CHECK_STR(trace, "c1b2a");
}

TEST(error_unwinding_ends_all_scopes_on_the_way)
{
    CHECK(tornado_try(nested_scopes, "x") != NULL);
    CHECK_STR(trace, "cba");
}

static void try_between(void *arg)
{
    tornado_defer(note, "o");
    CHECK(tornado_try(nested_scopes, arg) != NULL);
    note("3");
}

TEST(error_unwinding_stops_at_the_innermost_try)
{
    CHECK(tornado_try(try_between, "x") == NULL);
    CHECK_STR(trace, "cba3o");
}

static void scopes_work_on_the_threads_own_stack(void)
{
    tornado_scope scope;
    tornado_scope_enter(&scope);
    tornado_defer(note, "a");
    tornado_defer(note, "b");
    tornado_scope_leave(&scope);
}

TEST(error_scope_works_without_a_loop)
{
    scopes_work_on_the_threads_own_stack();
    CHECK_STR(trace, "ba");
}

static void leave_the_wrong_scope(void *arg)
{
    tornado_scope outer, inner;
    tornado_scope_enter(&outer);
    tornado_defer(note, "o");
    tornado_scope_enter(&inner);
    tornado_defer(note, "i");
    (void)arg;
    tornado_scope_leave(&outer);
}

TEST(error_leaving_a_scope_that_is_not_the_innermost_is_raised)
{
    CHECK(is_error(tornado_try(leave_the_wrong_scope, NULL), TORNADO_ERR_STATE));
    CHECK_STR(trace, "io");
}

static void run_early(void *arg)
{
    (void)arg;
    uint64_t a = tornado_defer(note, "a"), b = tornado_defer(note, "b"), c = tornado_defer(note, "c");
    CHECK(a && b && c && a != b && b != c && a != c);
    CHECK(tornado_run_deferred(b));
    CHECK(!tornado_run_deferred(b));
    CHECK(!tornado_run_deferred(0));
    note("1");
}

TEST(error_deferred_function_can_run_early_and_then_does_not_run_again)
{
    CHECK(tornado_try(run_early, NULL) == NULL);
    CHECK_STR(trace, "b1ca");
}

static uint64_t outer_handle;

static void run_the_outers(void *arg)
{
    (void)arg;
    CHECK(tornado_run_deferred(outer_handle));
    tornado_raise(TORNADO_ERR_STATE, "on purpose");
}

static void run_from_an_inner_try(void *arg)
{
    (void)arg;
    outer_handle = tornado_defer(note, "a");
    CHECK(tornado_try(run_the_outers, NULL) != NULL);
    CHECK(!tornado_run_deferred(outer_handle));
    note("1");
}

TEST(error_deferred_function_of_an_outer_scope_can_run_early)
{
    CHECK(tornado_try(run_from_an_inner_try, NULL) == NULL);
    CHECK_STR(trace, "a1");
    CHECK(!tornado_run_deferred(outer_handle));
}

static void defer_another(void *arg)
{
    note("1");
    tornado_defer(note, arg);
}

static void defer_one_that_defers(void *arg)
{
    (void)arg;
    tornado_defer(note, "a");
    tornado_defer(defer_another, "b");
}

TEST(error_deferred_function_may_defer)
{
    CHECK(tornado_try(defer_one_that_defers, NULL) == NULL);
    CHECK_STR(trace, "1ba");
}

static void defer_one_that_raises(void *raises)
{
    tornado_defer(note, "a");
    tornado_defer(raise_what_is_given, "sugar");
    tornado_defer(note, "c");
    if (raises)
        tornado_raise(TORNADO_ERR_STATE, "the first");
}

TEST(error_deferred_function_that_raises_fails_the_try_and_the_others_run)
{
    CHECK(is_error(tornado_try(defer_one_that_raises, NULL), TORNADO_ERR_CLOSED));
    CHECK_STR(traced(), "ca");
    CHECK(is_error(tornado_try(defer_one_that_raises, ""), TORNADO_ERR_CLOSED)); /* the newest counts */
    CHECK_STR(traced(), "ca");
}

static void scope_with_one_that_raises(void *arg)
{
    tornado_scope scope;
    tornado_defer(note, "o");
    tornado_scope_enter(&scope);
    defer_one_that_raises(NULL);
    (void)arg;
    tornado_scope_leave(&scope);
    note("unreached");
}

TEST(error_deferred_function_may_raise_out_of_a_scope_that_is_left)
{
    CHECK(is_error(tornado_try(scope_with_one_that_raises, NULL), TORNADO_ERR_CLOSED));
    CHECK_STR(trace, "cao");
}

static void count_and_raise(void *count)
{
    ++*(int *)count;
    tornado_raise(TORNADO_ERR_CLOSED, "no more");
}

static void defer_many_that_raise(void *count)
{
    for (int i = 0; i < 5000; i++)
        tornado_defer(count_and_raise, count);
}

static void defer_many_that_raise_and_raise(void *count)
{
    defer_many_that_raise(count);
    tornado_raise(TORNADO_ERR_STATE, "the first");
}

static void *many_deferred_functions_raise(void *arg)
{
    int count = 0;
    CHECK(is_error(tornado_try(defer_many_that_raise, &count), TORNADO_ERR_CLOSED));
    CHECK_INT(count, 5000);
    CHECK(is_error(tornado_try(defer_many_that_raise_and_raise, &count), TORNADO_ERR_CLOSED));
    CHECK_INT(count, 10000);
    return arg;
}

TEST(error_any_number_of_deferred_functions_may_raise_on_a_small_stack)
{
    run(many_deferred_functions_raise, NULL);
}

static void run_one_that_raises(void *arg)
{
    (void)arg;
    tornado_defer(note, "a");
    uint64_t handle = tornado_defer(raise_what_is_given, "salt");
    tornado_run_deferred(handle);
    note("unreached");
}

TEST(error_deferred_function_that_raises_may_run_early)
{
    CHECK(is_error(tornado_try(run_one_that_raises, NULL), TORNADO_ERR_CLOSED));
    CHECK_STR(trace, "a");
}

static void try_and_fail(void *arg)
{
    CHECK(is_error(tornado_try(raise_what_is_given, arg), TORNADO_ERR_CLOSED));
    note("t");
}

static void defer_one_that_tries(void *arg)
{
    (void)arg;
    tornado_defer(note, "a");
    tornado_defer(try_and_fail, "");
    tornado_raise(TORNADO_ERR_STATE, "the first");
}

TEST(error_deferred_function_may_try_without_changing_the_error_under_way)
{
    const tornado_error *error = tornado_try(defer_one_that_tries, NULL);
    CHECK(is_error(error, TORNADO_ERR_STATE));
    CHECK_STR(error->message, "the first");
    CHECK_STR(trace, "ta");
}

static void wait_where_none_may(void *arg)
{
    CHECK(is_error(tornado_wait(tornado_moment()), TORNADO_ERR_STATE));
    note(arg);
}

static void await_in_a_deferred_function(void *arg)
{
    (void)arg;
    tornado_await(tornado_moment());
    note("unreached");
}

static void *defer_ones_that_wait(void *arg)
{
    tornado_defer(note, "a");
    tornado_defer(await_in_a_deferred_function, NULL);
    tornado_defer(wait_where_none_may, "w");
    uint64_t early = tornado_defer(wait_where_none_may, "e");
    tornado_await(tornado_moment());
    CHECK(tornado_run_deferred(early));
    CHECK(tornado_wait(tornado_moment()) == NULL); /* waiting works again */
    return arg;
}

TEST(error_deferred_function_may_not_wait)
{
    log_keep();
    CHECK(!tornado_ioloop_run_sync(tornado_ioloop_current(), defer_ones_that_wait, NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_STR(trace, "ewa");
    CHECK_INT(logged("waiting in a deferred function"), 3);
}

static void *wait_after_a_deferred_one_raised(void *arg)
{
    (void)arg;
    CHECK(tornado_try(defer_one_that_raises, "") != NULL);
    CHECK(tornado_wait(tornado_moment()) == NULL);
    return NULL;
}

TEST(error_waiting_works_again_after_a_deferred_function_raised)
{
    run(wait_after_a_deferred_one_raised, NULL);
}

static int opened, closed;

static void close_one(void *arg)
{
    (void)arg;
    closed++;
}

static void defer_each(void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++) {
        opened++;
        tornado_defer(close_one, NULL);
    }
}

static void defer_when_memory_is_short(void)
{
    opened = closed = 0;
    const tornado_error *error = tornado_try(defer_each, NULL);
    CHECK(!error || error->code == TORNADO_ERR_NOMEM);
    CHECK(error || opened == 5);
    CHECK_INT(closed, opened);
}

TEST(error_deferred_function_runs_at_once_when_memory_is_short)
{
    test_fail_alloc(2);
    CHECK(is_error(tornado_try(defer_abc, NULL), TORNADO_ERR_NOMEM));
    CHECK_STR(trace, "ba");
    each_shortage(defer_when_memory_is_short);
}

/*----------------------------------------------------------------------------
 * In loops and coroutines.
 *----------------------------------------------------------------------------*/

static void defer_in_a_callback(void *arg)
{
    tornado_defer(note, "b");
    tornado_defer(note, "a");
    if (arg)
        raise_what_is_given(arg);
    note("1");
}

TEST_EACH_POLLER(error_deferred_functions_run_when_a_plain_callback_ends)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    tornado_ioloop_add_callback(loop, defer_in_a_callback, NULL);
    tornado_ioloop_add_callback(loop, note, "2");
    tornado_ioloop_add_callback(loop, defer_in_a_callback, "x");
    tornado_ioloop_add_callback(loop, note, "3");
    tornado_ioloop_call_later(loop, 0, defer_in_a_callback, NULL);
    tornado_ioloop_call_later(loop, 0, note, "4");
    tornado_ioloop_call_later(loop, 0, stop_loop, NULL);
    CHECK(tornado_ioloop_start(loop));
    CHECK_STR(trace, "1ab2ab31ab4");
    CHECK_INT(logged("no more x"), 1);
}

static void raise_as_handler(int fd, unsigned events, void *arg)
{
    static int calls;
    (void)events;
    note("h");
    if (++calls == 2)
        tornado_ioloop_remove_handler(arg, fd);
    if (calls == 2)
        tornado_ioloop_stop(arg);
    tornado_raise(TORNADO_ERR_LIMIT, "in a handler");
}

TEST_EACH_POLLER(error_raised_in_callbacks_timers_handlers_and_for_signals_is_logged_and_the_loop_goes_on)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int ends[2];
    CHECK(pipe(ends) == 0 && write(ends[1], "x", 1) == 1);
    log_keep();
    tornado_ioloop_add_callback(loop, raise_what_is_given, "callbacks");
    tornado_ioloop_add_callback(loop, note, "c");
    tornado_ioloop_call_later(loop, -1, raise_what_is_given, "timers");
    tornado_ioloop_call_later(loop, -1, note, "t");
    tornado_ioloop_add_callback_from_signal(loop, raise_what_is_given, "signals");
    tornado_ioloop_call_later(loop, 0.05, note, "l");
    CHECK(tornado_ioloop_add_handler(loop, ends[0], raise_as_handler, loop, TORNADO_IOLOOP_READ));
    CHECK(tornado_ioloop_start(loop));
    CHECK(strchr(trace, 'c') && strchr(trace, 't') && strstr(trace, "h"));
    tornado_ioloop_call_later(loop, 0.1, stop_loop, NULL);
    CHECK(tornado_ioloop_start(loop));
    CHECK(strchr(trace, 'l') != NULL);
    CHECK_INT(logged("no more callbacks"), 1);
    CHECK_INT(logged("no more timers"), 1);
    CHECK_INT(logged("no more signals"), 1);
    CHECK_INT(logged("in a handler"), 2);
    CHECK_INT(logged("TORNADO_ERR_CLOSED"), 3);
    close(ends[0]);
    close(ends[1]);
}

/*----------------------------------------------------------------------------
 * Where it was raised.
 *----------------------------------------------------------------------------*/

static tornado_log_record last_record;
static int raised_at; /* the line */

static void keep_record(const tornado_log_record *record, void *arg)
{
    (void)arg;
    last_record = *record;
}

/* The last record tells of this file and that line. */
static void check_place(void)
{
    CHECK(last_record.file != NULL);
    CHECK_STR(last_record.file, __FILE__);
    CHECK_INT(last_record.line, raised_at);
    last_record = (tornado_log_record){0};
}

static void raise_somewhere(void *arg)
{
    raised_at = __LINE__ + 1;
    tornado_raise(TORNADO_ERR_SYSTEM, "it broke %s", arg ? (const char *)arg : "somewhere");
}

static void raise_http_somewhere(void *arg)
{
    (void)arg;
    raised_at = __LINE__ + 1;
    tornado_raise_http_error(503, "it broke");
}

static void raise_an_error(void *error)
{
    raised_at = __LINE__ + 1;
    tornado_raise_error(error);
}

static void raise_a_known_error(void *arg)
{
    tornado_error made = {.code = TORNADO_ERR_SYSTEM, .message = "made here"};
    (void)arg;
    raise_an_error(&made);
}

/* Catches it and raises it anew, which is not where it came from. */
static void raise_on(void *arg)
{
    const tornado_error *error = tornado_try(raise_somewhere, arg);
    CHECK_STR(error->file, __FILE__);
    CHECK_INT(error->line, raised_at);
    tornado_raise_error(error);
}

static void *raise_on_after_a_wait(void *arg)
{
    tornado_await(tornado_moment());
    raise_on(arg);
    return NULL;
}

static void *await_what_fails(void *arg)
{
    tornado_await(tornado_spawn(raise_on_after_a_wait, arg)); /* raises it again */
    return NULL;
}

static void raise_last_error(void *arg)
{
    CHECK(!tornado_ioloop_configure("semaphore"));
    CHECK(tornado_last_error()->file == NULL);
    (void)arg;
    raised_at = __LINE__ + 1;
    tornado_raise_error(tornado_last_error());
}

TEST_EACH_POLLER(error_is_logged_with_the_place_that_raised_it)
{
    static void (*const raises[])(void *arg) = {raise_somewhere, raise_http_somewhere, raise_a_known_error, raise_on,
                                                raise_last_error};
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_log_options options = {.level = TORNADO_LOG_DEBUG, .hook = keep_record};
    tornado_enable_pretty_logging(&options);
    for (size_t i = 0; i < sizeof raises / sizeof raises[0]; i++) {
        tornado_ioloop_add_callback(loop, raises[i], NULL);
        CHECK(tornado_ioloop_run_once(loop, 0));
        check_place();
        CHECK(tornado_ioloop_call_later(loop, 0, raises[i], NULL) != 0);
        while (!last_record.file)
            CHECK(tornado_ioloop_run_once(loop, 0));
        check_place();
    }
    for (int i = 0; i < 2; i++) {
        tornado_future_release(tornado_spawn(i ? await_what_fails : raise_on_after_a_wait, "in a coroutine"));
        while (!last_record.file)
            CHECK(tornado_ioloop_run_once(loop, 0));
        check_place();
    }
}


static void *defer_in_a_coroutine(void *arg)
{
    tornado_defer(note, "b");
    tornado_await(tornado_moment());
    tornado_defer(note, "a");
    tornado_await(tornado_moment());
    if (arg)
        raise_what_is_given(arg);
    note("1");
    return NULL;
}

TEST(error_deferred_functions_run_when_a_coroutine_ends)
{
    run(defer_in_a_coroutine, NULL);
    CHECK_STR(traced(), "1ab");
    CHECK(!tornado_ioloop_run_sync(tornado_ioloop_current(), defer_in_a_coroutine, "x"));
    CHECK_STR(traced(), "ab");
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_CLOSED);
    CHECK_STR(tornado_last_error()->message, "no more x");
}

/* Two coroutines inside tries at once: the boundaries of one are not the other's. */
static void wait_and_raise(void *arg)
{
    tornado_defer(note, arg);
    for (int i = 0; i < 3; i++)
        tornado_await(tornado_moment());
    raise_what_is_given(arg);
}

static void *tries_around_waits(void *arg)
{
    const tornado_error *error = tornado_try(wait_and_raise, arg);
    CHECK(is_error(error, TORNADO_ERR_CLOSED));
    CHECK_INT(error->message[strlen(error->message) - 1], *(char *)arg);
    note(arg);
    return NULL;
}

static void *two_that_try(void *arg)
{
    (void)arg;
    tornado_future *both[] = {tornado_spawn(tries_around_waits, "x"), tornado_spawn(tries_around_waits, "y")};
    tornado_await(tornado_multi(both, 2));
    return NULL;
}

TEST(error_tries_of_several_coroutines_do_not_mix)
{
    run(two_that_try, NULL);
    CHECK_STR(trace, "xxyy");
}

static void *holder(void *arg)
{
    (void)arg;
    tornado_arena *arena = tornado_current_arena();
    char *result = arena ? tornado_arena_strdup(arena, "result") : NULL;
    if (!result)
        tornado_raise_error(tornado_last_error());
    tornado_await(tornado_moment());
    return result;
}

/* What waits return is held by the innermost scope: a try's ends with it, also when it raises. */
static void await_some(void *arg)
{
    for (int i = 0; i < 10; i++)
        CHECK_STR((char *)tornado_await(tornado_spawn(holder, NULL)), "result");
    if (arg)
        raise_what_is_given(arg);
}

static void *wait_in_scopes_for_long(void *arg)
{
    long live = 0;
    int turns = instrumented() ? 300 : 20000;
    tornado_scope scope;
    (void)arg;
    for (int i = 0; i < turns; i++) {
        tornado_scope_enter(&scope);
        char *first = tornado_await(tornado_spawn(holder, NULL));
        char *second = tornado_await(tornado_spawn(holder, NULL));
        CHECK_STR(first, "result"); /* still there */
        CHECK_STR(second, "result");
        tornado_scope_leave(&scope);
        CHECK(tornado_try(await_some, i % 2 ? "x" : NULL) == NULL || i % 2);
        if (i == 10)
            live = test_live();
    }
    CHECK_INT(test_live(), live);
    return NULL;
}

TEST(error_scopes_and_tries_let_go_of_results_so_a_long_loop_stays_small)
{
    run(wait_in_scopes_for_long, NULL);
}

static void *release_when_the_coroutine_ends(void *arg)
{
    await_some(arg);
    return NULL;
}

TEST(error_coroutine_lets_go_of_results_when_it_ends)
{
    run(release_when_the_coroutine_ends, NULL);
    long live = test_live();
    run(release_when_the_coroutine_ends, NULL);
    CHECK(!tornado_ioloop_run_sync(tornado_ioloop_current(), release_when_the_coroutine_ends, "x"));
    CHECK_INT(test_live(), live);
}

static void *everything(void *arg)
{
    tornado_scope scope;
    tornado_defer(close_one, NULL), opened++;
    tornado_scope_enter(&scope);
    opened++;
    tornado_defer(close_one, NULL);
    tornado_await(tornado_spawn(holder, NULL));
    tornado_scope_leave(&scope);
    const tornado_error *error = tornado_try(await_some, "x");
    CHECK(error != NULL);
    tornado_await(tornado_moment());
    return arg;
}

static void everything_when_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    opened = closed = 0;
    if (loop && !tornado_ioloop_run_sync(loop, everything, NULL))
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(closed == opened || closed == opened + 1); /* the first is counted behind its call */
}

TEST(error_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(everything_when_memory_is_short);
    CHECK(tornado_try(do_nothing, NULL) == NULL);
}
