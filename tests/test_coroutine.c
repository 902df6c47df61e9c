/* Coroutines: spawning, waiting, cancelling, their stacks, and long runs in constant memory. */
#include "runtime.h"
#include "filter.h"
#include "http_client.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

static const tornado_error broken = {.code = TORNADO_ERR_SYSTEM, .sys_errno = 5, .http_status = 502,
                                     .message = "it broke"};

/* So many turns of a long run; fewer where everything takes much longer. */
static long many(long count)
{
    return instrumented() || test_scaled(1) > 1 ? count / 100 : count;
}

/* The memory that the process really uses, in KiB; 0 where that says nothing about the header. */
static long resident(void)
{
    long total, pages = 0;
    FILE *file = instrumented() || test_scaled(1) > 1 ? NULL : fopen("/proc/self/statm", "r");
    if (file) {
        CHECK(fscanf(file, "%ld %ld", &total, &pages) == 2);
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Fails when more memory is in use than before. A little is libc's own. */
static void check_not_grown(long live, long kib)
{
    CHECK_INT(test_live(), live);
    if (resident() > kib + 1024)
        FAIL("the process has grown from %ld KiB to %ld KiB", kib, resident());
}

static void count_one(void *arg)
{
    ++*(int *)arg;
}

static void raise_limit(void *arg)
{
    tornado_raise(TORNADO_ERR_LIMIT, "on purpose: %s", (const char *)arg);
}

static tornado_future *integer_of(int64_t value)
{
    tornado_future *future = tornado_future_new();
    tornado_future_set_integer(future, value);
    return future;
}

static tornado_future *bytes_of(const char *text)
{
    tornado_future *future = tornado_future_new();
    tornado_future_set_bytes(future, tornado_bytes_of(text));
    return future;
}

/* A future with a result whose end is counted. */
static tornado_future *counted_of(int *destroyed)
{
    tornado_future *future = tornado_future_new();
    tornado_future_set_result(future, destroyed, count_one);
    return future;
}

/* Ends the current loop, and with it all its coroutines. */
static void close_loop(void)
{
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    tornado_ioloop_clear_current();
}

/* One turn of the loop, which keeps nothing for it. */
static void turn(void)
{
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0, stop_loop, NULL) != 0);
    CHECK(tornado_ioloop_start(tornado_ioloop_current()));
}

static size_t coroutines(void)
{
    return tornado_ioloop_coroutines(tornado_ioloop_current());
}

static void *note_and_return(void *arg)
{
    note(arg);
    return arg;
}

/* Waits for a future that stays the caller's, between two notes. */
static void *wait_at_the_gate(void *gate)
{
    note("(");
    void *result = tornado_await(tornado_future_retain(gate));
    note(")");
    return result;
}

/*----------------------------------------------------------------------------
 * Spawning.
 *----------------------------------------------------------------------------*/

/* From within the loop, where its callbacks and coroutines are one queue. */
static void spawn_among_callbacks(void *arg)
{
    tornado_future **futures = arg;
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_add_callback(loop, note, "1");
    futures[0] = tornado_spawn(note_and_return, "a");
    futures[1] = tornado_spawn(note_and_return, "b");
    tornado_ioloop_add_callback(loop, note, "2");
    CHECK_INT(coroutines(), 2);
    CHECK_STR(trace, "");
}

TEST_EACH_POLLER(coroutine_starts_in_the_next_turn_in_the_order_of_spawning)
{
    tornado_future *futures[2];
    tornado_ioloop_add_callback(tornado_ioloop_current(), spawn_among_callbacks, futures);
    turn();
    CHECK_STR(trace, "");
    turn();
    CHECK_STR(trace, "1ab2");
    CHECK_INT(coroutines(), 0);
    CHECK_STR(tornado_future_result(futures[0]), "a");
    CHECK_STR(tornado_future_result(futures[1]), "b");
    tornado_future_release(futures[0]);
    tornado_future_release(futures[1]);
}

static void *spawn_two(void *arg)
{
    tornado_future *both[] = {tornado_spawn(note_and_return, "b"), tornado_spawn(note_and_return, "c")};
    note("a");
    CHECK_INT(coroutines(), 3);
    void **results = tornado_await(tornado_multi(both, 2));
    CHECK_STR(results[0], "b");
    CHECK_STR(results[1], "c");
    note("d");
    return arg;
}

TEST_EACH_POLLER(coroutine_spawned_by_another_starts_when_that_one_waits)
{
    run(spawn_two, NULL);
    CHECK_STR(trace, "abcd");
}

static void *hand_on(void *stop)
{
    if (!*(int *)stop)
        tornado_future_release(tornado_spawn(hand_on, stop));
    return NULL;
}

TEST_EACH_POLLER(coroutine_chain_that_spawns_without_end_does_not_keep_timers_waiting)
{
    int stop = 0;
    tornado_future_release(tornado_spawn(hand_on, &stop));
    tornado_ioloop_call_later(tornado_ioloop_current(), 0.001, count_one, &stop);
    tornado_ioloop_call_later(tornado_ioloop_current(), 0.002, stop_loop, NULL);
    CHECK(tornado_ioloop_start(tornado_ioloop_current()));
    CHECK_INT(stop, 1);
}

static void *raise_in_a_coroutine(void *arg)
{
    tornado_raise_error(arg);
}

static void *return_null(void *arg)
{
    (void)arg;
    return NULL;
}

static void *look_at_outcomes(void *arg)
{
    CHECK(tornado_await(tornado_spawn(note_and_return, arg)) == arg);
    CHECK(tornado_await(tornado_spawn(return_null, arg)) == NULL);
    const tornado_error *error = tornado_wait(tornado_spawn(raise_in_a_coroutine, (void *)(uintptr_t)&broken));
    CHECK(is_error(error, broken.code));
    CHECK_STR(error->message, broken.message);
    CHECK_INT(error->sys_errno, broken.sys_errno);
    CHECK_INT(error->http_status, broken.http_status);
    return NULL;
}

TEST_EACH_POLLER(coroutine_gives_its_result_or_its_error_to_who_waits)
{
    log_keep();
    run(look_at_outcomes, "a");
    CHECK_STR(log_text, "");
}

static void *result_in_the_arena(void *arg)
{
    char *result = tornado_arena_strdup(tornado_current_arena(), arg);
    tornado_await(tornado_moment());
    return result;
}

TEST_EACH_POLLER(coroutine_result_lives_in_its_arena_as_long_as_its_future)
{
    loop_turns(1);
    long live = test_live();
    tornado_future *futures[20];
    char texts[20][24];
    for (int i = 0; i < 20; i++) {
        snprintf(texts[i], sizeof texts[i], "no. %d", i);
        futures[i] = tornado_spawn(result_in_the_arena, texts[i]);
    }
    loop_turns(3);
    CHECK_INT(coroutines(), 0);
    run(result_in_the_arena, "another"); /* on one of the same stacks */
    for (int i = 0; i < 20; i++) {
        CHECK_STR(tornado_future_result(futures[i]), texts[i]);
        tornado_future_release(futures[i]);
    }
    close_loop();
    CHECK(test_live() < live);
}

static void *wait_twice(void *arg)
{
    tornado_await(tornado_moment());
    tornado_await(tornado_moment());
    return note_and_return(arg);
}

TEST_EACH_POLLER(coroutine_whose_future_is_released_runs_to_its_end)
{
    tornado_future_release(tornado_spawn(wait_twice, "a"));
    loop_turns(5);
    CHECK_STR(trace, "a");
    CHECK_INT(coroutines(), 0);
}

static void *raise_late(void *arg)
{
    tornado_await(tornado_moment());
    raise_limit(arg);
    return NULL;
}

TEST_EACH_POLLER(coroutine_failure_that_nobody_waits_for_is_logged_once)
{
    log_keep();
    tornado_future_release(tornado_spawn(raise_late, "released"));
    tornado_future *kept = tornado_spawn(raise_late, "kept");
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), raise_late, "callback"));
    loop_turns(5);
    CHECK_INT(logged("Future exception was never retrieved"), 2);
    CHECK_INT(logged("on purpose: released"), 1);
    CHECK_INT(logged("on purpose: callback"), 1);
    CHECK_INT(logged("on purpose: kept"), 0); /* somebody may still look */
    tornado_future_release(kept);
    loop_turns(5);
    CHECK_INT(logged("on purpose: kept"), 1);
    CHECK_INT(logged("TORNADO_ERR_LIMIT"), 3);
}

TEST_EACH_POLLER(coroutine_spawn_without_a_loop_makes_one)
{
    tornado_ioloop_clear_current();
    tornado_future *future = tornado_spawn(note_and_return, "a");
    CHECK(!tornado_future_done(future));
    CHECK_INT(loop_code(future), 0);
    CHECK_STR(trace, "a");
}

TEST(coroutine_spawn_without_a_loop_that_can_be_made_has_failed)
{
    tornado_ioloop_clear_current();
    test_fail_alloc(1);
    tornado_future *future = tornado_spawn(note_and_return, "a");
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_NOMEM));
    tornado_future_release(future);
}

TEST(coroutine_is_refused_on_a_loop_that_is_closed)
{
    tornado_ioloop *loop = tornado_ioloop_retain(tornado_ioloop_current());
    close_loop();
    CHECK(!tornado_ioloop_spawn_callback(loop, note_and_return, "a"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    tornado_ioloop_release(loop);
    CHECK_STR(trace, "");
}

static void *loop_is_current(void *loop)
{
    CHECK(tornado_ioloop_current() == loop);
    tornado_await(tornado_moment());
    CHECK(tornado_ioloop_current() == loop);
    note("a");
    return NULL;
}

TEST_EACH_POLLER(coroutine_runs_on_the_loop_it_was_given_though_that_is_not_the_current)
{
    tornado_ioloop *loop = tornado_ioloop_current(), *other = tornado_ioloop_new(NULL);
    CHECK(other != NULL && other != loop);
    CHECK(tornado_ioloop_spawn_callback(other, loop_is_current, other));
    CHECK_INT(tornado_ioloop_coroutines(loop), 0);
    loop_turns(3);
    CHECK_STR(trace, "");
    CHECK(tornado_ioloop_run_sync(other, loop_is_current, other));
    CHECK_STR(trace, "aa");
    CHECK(tornado_ioloop_current() == loop);
    CHECK(tornado_ioloop_close(other, false));
}

static void *run_another_loop(void *other)
{
    tornado_ioloop *mine = tornado_ioloop_current();
    tornado_await(tornado_moment());
    CHECK(tornado_ioloop_run_sync(other, loop_is_current, other));
    CHECK(tornado_ioloop_current() == mine);
    CHECK(!tornado_ioloop_run_sync(other, raise_late, "inside"));
    CHECK_STR(tornado_last_error()->message, "on purpose: inside");
    tornado_await(tornado_moment());
    CHECK(tornado_ioloop_spawn_callback(other, wait_twice, "never"));
    CHECK(tornado_ioloop_close(other, false));
    tornado_await(tornado_moment());
    note("b");
    return NULL;
}

TEST_EACH_POLLER(coroutine_may_run_and_close_another_loop)
{
    tornado_ioloop_current();
    run(run_another_loop, tornado_ioloop_new(NULL));
    CHECK_STR(trace, "ab");
}

/* Has a loop with these options be the current one. */
static tornado_ioloop *loop_with(tornado_ioloop_options options)
{
    tornado_ioloop_clear_current();
    tornado_ioloop *loop = tornado_ioloop_new(&options);
    CHECK(loop != NULL && tornado_ioloop_current() == loop);
    return loop;
}

TEST(coroutine_beyond_the_limit_fails_and_works_again_when_one_has_ended)
{
    tornado_ioloop *loop = loop_with((tornado_ioloop_options){.max_coroutines = 20});
    log_keep();
    for (int round = 1; round <= 2; round++) {
        tornado_future *gate = tornado_future_new(), *futures[20];
        for (int i = 0; i < 20; i++)
            futures[i] = tornado_spawn(wait_at_the_gate, gate);
        tornado_future *beyond = tornado_spawn(note_and_return, "x");
        CHECK(tornado_ioloop_spawn_callback(loop, note_and_return, "x"));
        loop_turns(1);
        CHECK(is_error(tornado_future_error(beyond), TORNADO_ERR_LIMIT));
        CHECK(strstr(tornado_future_error(beyond)->message, "20") != NULL);
        tornado_future_release(beyond);
        CHECK_INT(logged("the limit of 20 coroutines is reached"), round);
        CHECK_INT(coroutines(), 20);
        CHECK(tornado_future_set_result(gate, NULL, NULL));
        for (int i = 0; i < 20; i++)
            CHECK_INT(loop_code(futures[i]), 0);
        CHECK_INT(coroutines(), 0);
        tornado_future_release(gate);
    }
    CHECK(!strchr(trace, 'x'));
}

/* A coroutine that waits, with a stack of its own size for 's', else one of the loop's. */
static tornado_future *spawn_of_kind(char kind, tornado_future *gate)
{
    tornado_spawn_options options = {.stack_size = 65536};
    tornado_future *future = kind == 's' ? tornado_spawn_with(wait_at_the_gate, gate, &options)
                                         : tornado_spawn(wait_at_the_gate, gate);
    loop_turns(1); /* it has its stack */
    return future;
}

TEST(coroutines_with_stacks_of_any_size_are_never_more_than_the_limit)
{
    static const char *const orders[] = {"pppp", "ssss", "sspp", "ppss", "pppp", "spsp", "psss", "sssp"};
    loop_with((tornado_ioloop_options){.max_coroutines = 4});
    log_keep();
    for (size_t round = 0; round < sizeof orders / sizeof orders[0]; round++) {
        tornado_future *gate = tornado_future_new(), *waiting[4];
        for (int i = 0; i < 4; i++) {
            waiting[i] = spawn_of_kind(orders[round][i], gate);
            CHECK(!tornado_future_done(waiting[i]));
        }
        CHECK_INT(coroutines(), 4);
        for (int i = 0; i < 2; i++)
            CHECK_INT(loop_code(spawn_of_kind("ps"[i], gate)), TORNADO_ERR_LIMIT);
        CHECK_INT(coroutines(), 4);
        tornado_future_set_result(gate, NULL, NULL);
        for (int i = 0; i < 4; i++)
            CHECK_INT(loop_code(waiting[i]), 0);
        CHECK_INT(coroutines(), 0);
        CHECK_STR(traced(), "(((())))");
        tornado_future_release(gate);
    }
}

TEST(coroutines_that_do_not_wait_share_a_stack_however_many_are_spawned_at_once)
{
    tornado_ioloop *loop = loop_with((tornado_ioloop_options){.max_coroutines = 1});
    tornado_future *futures[100];
    for (int i = 0; i < 100; i++) {
        futures[i] = tornado_spawn(note_and_return, "a");
        CHECK(tornado_ioloop_spawn_callback(loop, note_and_return, "b"));
    }
    CHECK_INT(coroutines(), 200);
    loop_turns(1);
    CHECK_INT(coroutines(), 0);
    CHECK_INT(strlen(trace), 200);
    CHECK(memcmp(trace, "ababab", 6) == 0);
    for (int i = 0; i < 100; i++)
        CHECK_INT(loop_code(futures[i]), 0);
}

static void *arenas_differ(void *arg)
{
    tornado_arena **other = arg, *mine = tornado_current_arena();
    CHECK(mine != NULL);
    CHECK(mine != *other);
    *other = mine;
    tornado_await(tornado_moment());
    CHECK(tornado_current_arena() == mine);
    tornado_await(tornado_moment()); /* both are there at once */
    return NULL;
}

TEST(coroutine_has_an_arena_of_its_own_and_outside_there_is_none)
{
    tornado_arena *last = NULL;
    CHECK(tornado_current_arena() == NULL);
    tornado_future *a = tornado_spawn(arenas_differ, &last), *b = tornado_spawn(arenas_differ, &last);
    CHECK_INT(loop_code(a), 0);
    CHECK_INT(loop_code(b), 0);
    CHECK(last != NULL);
    CHECK(tornado_current_arena() == NULL);
}

/*----------------------------------------------------------------------------
 * Waiting.
 *----------------------------------------------------------------------------*/

static void await_outside(void *arg)
{
    tornado_await(arg);
    note("unreached");
}

TEST_EACH_POLLER(coroutine_wait_outside_of_one_is_an_error_and_uses_up_the_reference)
{
    int destroyed = 0;
    log_keep();
    CHECK(is_error(tornado_wait(counted_of(&destroyed)), TORNADO_ERR_STATE));
    CHECK_INT(destroyed, 1);
    CHECK(is_error(tornado_try(await_outside, counted_of(&destroyed)), TORNADO_ERR_STATE));
    CHECK_INT(destroyed, 2);
    tornado_ioloop_add_callback(tornado_ioloop_current(), await_outside, counted_of(&destroyed));
    loop_turns(1);
    CHECK_INT(destroyed, 3);
    CHECK_STR(trace, "");
    CHECK_INT(logged("waiting outside a coroutine"), 4); /* the callback's is logged as its exception, too */
    CHECK_INT(logged("Exception in callback"), 1);
}

static void await_nowhere(void)
{
    tornado_await(tornado_future_resolved(NULL));
}

TEST(coroutine_await_outside_of_one_and_of_any_boundary_says_so_and_aborts)
{
    const char *output;
    CHECK_INT(dies_of(await_nowhere, &output), SIGABRT);
    CHECK(strstr(output, "TORNADO_ERR_STATE") != NULL);
    CHECK(strstr(output, "waiting outside a coroutine") != NULL);
}

/* In a short turn of the loop nobody makes way for others. */
static void make_the_turn_long(void)
{
    for (double end = tornado_monotonic() + 0.001; tornado_monotonic() < end;)
        continue;
}

static void *await_what_is_done(void *arg)
{
    make_the_turn_long();
    for (int i = 0; i < 62; i++)
        CHECK(tornado_await(tornado_future_resolved(arg)) == arg);
    CHECK(is_error(tornado_wait(tornado_future_failed(&broken)), broken.code));
    CHECK_STR(trace, "");
    tornado_await(tornado_future_resolved(arg));
    tornado_await(tornado_future_resolved(arg));
    CHECK_STR(trace, "c");
    return NULL;
}

TEST_EACH_POLLER(coroutine_wait_for_what_is_done_does_not_switch_but_lets_others_run_after_64_in_a_long_turn)
{
    tornado_future *future = tornado_spawn(await_what_is_done, "a");
    tornado_ioloop_add_callback(tornado_ioloop_current(), note, "c");
    CHECK_INT(loop_code(future), 0);
}

static void *spin_on_ready_waits(void *stop)
{
    while (!*(int *)stop)
        tornado_await(tornado_future_resolved(NULL));
    return NULL;
}

TEST_EACH_POLLER(coroutine_that_only_waits_for_what_is_done_does_not_stop_timers)
{
    int stop = 0;
    tornado_ioloop_call_later(tornado_ioloop_current(), 0.001, count_one, &stop);
    run(spin_on_ready_waits, &stop);
}

static void *typed_waits(void *arg)
{
    void *pointer = NULL;
    int64_t integer = 0;
    tornado_bytes bytes = {NULL, 0};
    CHECK(tornado_await(tornado_future_resolved(arg)) == arg);
    CHECK_INT(tornado_await_integer(integer_of(INT64_MIN)), INT64_MIN);
    CHECK_STR(tornado_await_bytes(bytes_of("abc")).data, "abc");
    CHECK(tornado_wait_result(tornado_future_resolved(arg), &pointer) == NULL && pointer == arg);
    CHECK(tornado_wait_integer(integer_of(-8), &integer) == NULL && integer == -8);
    CHECK(tornado_wait_bytes(bytes_of("de"), &bytes) == NULL);
    CHECK_MEM(bytes.data, bytes.len, "de", 2);
    CHECK(tornado_wait(integer_of(1)) == NULL);
    CHECK(tornado_wait(bytes_of("f")) == NULL);
    return NULL;
}

TEST(coroutine_waits_give_every_kind_of_result)
{
    int value;
    run(typed_waits, &value);
}

static void await_integer_of_bytes(void *arg)
{
    tornado_await_integer(bytes_of(arg));
}

static void await_bytes_of_an_integer(void *arg)
{
    (void)arg;
    tornado_await_bytes(integer_of(5));
}

static void await_integer_of_a_pointer(void *arg)
{
    tornado_await_integer(counted_of(arg));
}

static void await_bytes_of_a_sleep(void *arg)
{
    (void)arg;
    tornado_await_bytes(tornado_sleep(0));
}

static void *waits_of_the_wrong_kind(void *arg)
{
    int *destroyed = arg;
    int64_t integer = 77;
    tornado_bytes bytes = {"unchanged", 9};
    CHECK(is_error(tornado_try(await_integer_of_bytes, "abc"), TORNADO_ERR_INVALID));
    CHECK(is_error(tornado_try(await_bytes_of_an_integer, NULL), TORNADO_ERR_INVALID));
    CHECK(is_error(tornado_try(await_integer_of_a_pointer, destroyed), TORNADO_ERR_INVALID));
    CHECK(is_error(tornado_try(await_bytes_of_a_sleep, NULL), TORNADO_ERR_INVALID));
    CHECK_INT(*destroyed, 1);
    CHECK(is_error(tornado_wait_integer(bytes_of("abc"), &integer), TORNADO_ERR_INVALID));
    CHECK(is_error(tornado_wait_integer(counted_of(destroyed), &integer), TORNADO_ERR_INVALID));
    CHECK(is_error(tornado_wait_bytes(integer_of(5), &bytes), TORNADO_ERR_INVALID));
    CHECK_INT(*destroyed, 2);
    CHECK_INT(integer, 77);
    CHECK_MEM(bytes.data, bytes.len, "unchanged", 9);
    return NULL;
}

TEST(coroutine_wait_for_the_wrong_kind_of_result_is_an_error_and_leaves_the_variable)
{
    int destroyed = 0;
    log_keep();
    run(waits_of_the_wrong_kind, &destroyed);
    CHECK_STR(log_text, "");
}

static void *failed_waits(void *arg)
{
    void *pointer = arg;
    int64_t integer = 77;
    tornado_bytes bytes = {"unchanged", 9};
    CHECK(is_error(tornado_wait_result(tornado_future_failed(&broken), &pointer), broken.code));
    CHECK(is_error(tornado_wait_integer(tornado_future_failed(&broken), &integer), broken.code));
    CHECK(is_error(tornado_wait_bytes(tornado_future_failed(&broken), &bytes), broken.code));
    CHECK(pointer == arg && integer == 77 && bytes.len == 9);
    return NULL;
}

TEST(coroutine_wait_that_fails_leaves_the_variable)
{
    log_keep();
    run(failed_waits, "a");
    CHECK_STR(log_text, "");
}

static void *wait_again_without_memory(void *arg)
{
    int destroyed = 0;
    void *pointer = arg;
    tornado_future *future = tornado_future_new();
    CHECK(tornado_future_set_result(future, &destroyed, count_one));
    tornado_scope scope;
    tornado_scope_enter(&scope);
    CHECK(tornado_await(tornado_future_retain(future)) == &destroyed);
    test_fail_alloc(1);
    const tornado_error *error = tornado_wait_result(future, &pointer);
    test_fail_alloc(0);
    CHECK(!tornado_periodic_callback_new(count_one, NULL, 0, 0)); /* another failure, which is no wait */
    CHECK(is_error(error, TORNADO_ERR_NOMEM));
    CHECK(pointer == arg);
    CHECK_INT(destroyed, 0);
    tornado_scope_leave(&scope);
    CHECK_INT(destroyed, 1);
    return NULL;
}

TEST(coroutine_wait_for_what_it_has_already_leaves_the_variable_when_memory_is_short)
{
    run(wait_again_without_memory, "a");
}

static void *pointer_of_an_integer(void *arg)
{
    void *pointer = arg;
    CHECK(tornado_await(integer_of(5)) == NULL);
    CHECK(tornado_wait_result(integer_of(5), &pointer) == NULL);
    CHECK(pointer == NULL); /* as tornado_future_result gives it */
    return NULL;
}

TEST(coroutine_wait_for_a_pointer_gives_null_for_a_result_of_another_kind)
{
    run(pointer_of_an_integer, "a");
}

static void await_given(void *future)
{
    tornado_await(future);
}

static void *wait_without_memory(void *arg)
{
    for (int i = 0; i < 3; i++) {
        test_fail_alloc(1);
        CHECK(is_error(tornado_wait(tornado_future_new()), TORNADO_ERR_NOMEM));
        test_fail_alloc(1);
        CHECK(is_error(tornado_try(await_given, tornado_sleep(0)), TORNADO_ERR_NOMEM));
        test_fail_alloc(1);
        CHECK(is_error(tornado_wait(tornado_spawn(note_and_return, arg)), TORNADO_ERR_NOMEM));
    }
    CHECK_STR(trace, "");
    return NULL;
}

TEST(coroutine_wait_for_what_memory_was_too_short_for_fails)
{
    log_keep();
    run(wait_without_memory, "a");
    CHECK_STR(log_text, "");
}

typedef struct crowd {
    tornado_future *gate;
    int woken, order[1000], destroyed;
} crowd;

static void *one_of_a_crowd(void *arg)
{
    static int next;
    crowd *all = arg;
    int self = next++;
    CHECK(tornado_await(tornado_future_retain(all->gate)) == all);
    CHECK_INT(all->destroyed, 0);
    all->order[all->woken++] = self;
    tornado_await(tornado_moment());
    CHECK_INT(all->destroyed, 0); /* each scope holds the result */
    return NULL;
}

static void crowd_over(void *arg)
{
    ((crowd *)arg)->destroyed++;
}

TEST_EACH_POLLER(coroutines_that_wait_for_one_future_all_get_its_result_in_order)
{
    static crowd all;
    enum { COUNT = sizeof all.order / sizeof all.order[0] };
    all.gate = tornado_future_new();
    for (int i = 0; i < COUNT; i++)
        tornado_future_release(tornado_spawn(one_of_a_crowd, &all));
    loop_turns(2);
    CHECK_INT(all.woken, 0);
    CHECK_INT(coroutines(), COUNT);
    CHECK(tornado_future_set_result(all.gate, &all, crowd_over));
    CHECK_INT(all.woken, 0); /* not called from inside */
    tornado_future_release(all.gate);
    loop_turns(1);
    CHECK_INT(all.woken, COUNT);
    loop_turns(3);
    CHECK_INT(coroutines(), 0);
    CHECK_INT(all.destroyed, 1);
    for (int i = 0; i < COUNT; i++)
        CHECK_INT(all.order[i], i);
}

static void *catch_between_waits(void *arg)
{
    for (int i = 0; i < 50; i++) {
        tornado_await(tornado_moment());
        const tornado_error *error = tornado_try(raise_limit, arg);
        tornado_await(tornado_moment());
        CHECK(is_error(error, TORNADO_ERR_LIMIT));
        CHECK_INT(error->message[strlen("on purpose: ")], *(char *)arg);
        CHECK(is_error(tornado_try(await_given, tornado_spawn(raise_late, arg)), TORNADO_ERR_LIMIT));
        CHECK(tornado_try(await_given, tornado_spawn(wait_twice, "")) == NULL);
    }
    return NULL;
}

TEST(coroutine_tries_with_waits_between_keep_the_errors_apart)
{
    tornado_future *all[3];
    for (int i = 0; i < 3; i++)
        all[i] = tornado_spawn(catch_between_waits, &"a\0b\0c"[2 * i]);
    CHECK_INT(loop_code(tornado_multi(all, 3)), 0);
}

/*----------------------------------------------------------------------------
 * Many of them.
 *----------------------------------------------------------------------------*/

static struct {
    tornado_future *gate;
    int begun, deferred;
} chains;

/* Awaits a chain of so many others, of which the last waits at the gate. Gives how many they were. */
static void *chain(void *arg)
{
    intptr_t left = (intptr_t)arg;
    chains.begun++;
    tornado_defer(count_one, &chains.deferred);
    if (left == 0) {
        tornado_await(tornado_future_retain(chains.gate));
        return NULL;
    }
    return (void *)((intptr_t)tornado_await(tornado_spawn(chain, (void *)(left - 1))) + 1);
}

static tornado_future *chain_begin(intptr_t length)
{
    chains.gate = tornado_future_new();
    chains.begun = chains.deferred = 0;
    tornado_future *first = tornado_spawn(chain, (void *)length);
    while (chains.begun <= length)
        loop_turns(1);
    CHECK_INT(coroutines(), length + 1);
    CHECK_INT(chains.deferred, 0);
    return first;
}

TEST(coroutine_chain_of_ten_thousand_passes_its_result_up)
{
    long length = many(10000);
    tornado_future *first = chain_begin(length);
    CHECK(tornado_future_set_result(chains.gate, NULL, NULL));
    CHECK(loop_until(first) == NULL);
    CHECK_INT((intptr_t)tornado_future_result(first), length);
    CHECK_INT(chains.deferred, length + 1);
    CHECK_INT(coroutines(), 0);
    tornado_future_release(first);
    tornado_future_release(chains.gate);
}

TEST(coroutine_chain_of_ten_thousand_passes_its_error_up)
{
    long length = many(10000);
    tornado_future *first = chain_begin(length);
    log_keep();
    CHECK(tornado_future_set_error(chains.gate, &broken));
    const tornado_error *error = loop_until(first);
    CHECK(is_error(error, broken.code));
    CHECK_STR(error->message, broken.message);
    CHECK_INT(chains.deferred, length + 1);
    CHECK_STR(log_text, "");
    tornado_future_release(first);
    tornado_future_release(chains.gate);
}

TEST(coroutine_chain_of_ten_thousand_unwinds_when_the_loop_is_closed)
{
    long length = many(10000);
    tornado_future *first = chain_begin(length);
    log_keep();
    close_loop();
    CHECK_INT(chains.deferred, length + 1);
    CHECK(is_error(tornado_future_error(first), TORNADO_ERR_CANCELLED));
    CHECK_STR(log_text, "");
    tornado_future_release(first);
    tornado_future_release(chains.gate);
}

static void *short_life(void *arg)
{
    long i = *(long *)arg;
    tornado_defer(note, "");
    if (i % 3)
        tornado_await(tornado_moment());
    if (i % 5 == 0)
        tornado_raise(TORNADO_ERR_LIMIT, "the %ldth", i);
    return i % 2 ? tornado_arena_strdup(tornado_current_arena(), "result") : NULL;
}

static void *one_after_the_other(void *arg)
{
    long count = many(100000), live = 0, kib = 0;
    for (long i = 1; i <= count; i++) {
        tornado_scope scope;
        tornado_scope_enter(&scope);
        CHECK(!tornado_wait(tornado_spawn(short_life, &i)) == (i % 5 != 0));
        tornado_scope_leave(&scope);
        if (i == count / 100) {
            live = test_live();
            kib = resident();
        }
    }
    check_not_grown(live, kib);
    CHECK_INT(coroutines(), 1);
    return arg;
}

TEST(coroutines_one_after_the_other_a_hundred_thousand_do_not_grow)
{
    run(one_after_the_other, NULL);
}

static uintptr_t *stack_of_next;

static void *note_stack(void *gate)
{
    *stack_of_next++ = (uintptr_t)__builtin_frame_address(0);
    tornado_await(tornado_future_retain(gate));
    return NULL;
}

static int compare_addresses(const void *left, const void *right)
{
    uintptr_t a = *(const uintptr_t *)left, b = *(const uintptr_t *)right;
    return (a > b) - (a < b);
}

/* So many at once; notes where the stack of each is. */
static void all_at_once(uintptr_t *stacks, long count)
{
    tornado_future *gate = tornado_future_new();
    stack_of_next = stacks;
    for (long i = 0; i < count; i++)
        CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), note_stack, gate));
    turn();
    turn();
    CHECK_INT(coroutines(), count);
    CHECK(tornado_future_set_result(gate, NULL, NULL));
    turn();
    turn();
    CHECK_INT(coroutines(), 0);
    tornado_future_release(gate);
    qsort(stacks, (size_t)count, sizeof *stacks, compare_addresses);
}

TEST(coroutines_ten_thousand_at_once_have_stacks_that_are_all_used_again)
{
    static uintptr_t first[10000], again[10000];
    long count = many(10000);
    all_at_once(first, count);
    for (long i = 1; i < count; i++)
        CHECK(first[i] - first[i - 1] >= 4096); /* no two in one place */
    long live = test_live(), kib = resident();
    all_at_once(again, count);
    all_at_once(again, count);
    check_not_grown(live, kib);
    CHECK_MEM(again, (size_t)count * sizeof *again, first, (size_t)count * sizeof *first);
}

TEST_LIMIT(coroutines_a_hundred_thousand_can_wait_at_once, 30)
{
    enum { COUNT = 100000 };
    bool narrow = sizeof(void *) < 8; /* then an address space holds only so many of the smallest stacks */
    CHECK(!narrow || tornado_ioloop_new(&(tornado_ioloop_options){.stack_size = 1}));
    tornado_future *gate = tornado_future_new();
    if (!resident() || (double)sysconf(_SC_AVPHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) < 2e9)
        SKIP("there is too little memory, or time, for them here");
    stack_of_next = malloc(COUNT * sizeof *stack_of_next);
    CHECK(stack_of_next != NULL);
    for (int i = 0; i < COUNT; i++)
        CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), note_stack, gate));
    loop_turns(2);
    CHECK_INT(coroutines(), COUNT);
    CHECK_INT(loop_code(tornado_spawn(note_and_return, "x")), TORNADO_ERR_LIMIT);
    CHECK(tornado_future_set_result(gate, NULL, NULL));
    loop_turns(2);
    CHECK_INT(coroutines(), 0);
    free(stack_of_next - COUNT);
    tornado_future_release(gate);
}

static void *only_wait(void *gate)
{
    return tornado_await(tornado_future_retain(gate));
}

TEST(coroutines_that_wait_cost_little_memory_each)
{
    enum { COUNT = 10000 };
#if defined(__x86_64__) && !defined(__ILP32__) && !defined(TORNADO_UCONTEXT)
    const long most = 6 * 1024; /* a page, its future, and some that need a second page */
#else
    const long most = 12 * 1024; /* a ucontext is large */
#endif
    tornado_future *gate = tornado_future_new();
    if (!resident())
        SKIP("the process's memory is not only that of the header");
    tornado_future_release(tornado_spawn(only_wait, gate));
    loop_turns(2);
    long kib = resident();
    for (int i = 0; i < COUNT; i++)
        tornado_future_release(tornado_spawn(only_wait, gate));
    loop_turns(2);
    CHECK_INT(coroutines(), COUNT + 1);
    long each = (resident() - kib) * 1024 / COUNT;
    if (each > most)
        FAIL("a coroutine that waits costs %ld bytes, not at most %ld", each, most);
    tornado_future_set_result(gate, NULL, NULL);
    loop_turns(2);
    tornado_future_release(gate);
}

/*----------------------------------------------------------------------------
 * A million lines.
 *----------------------------------------------------------------------------*/

typedef struct echo {
    tornado_iostream *stream;
    bool scopes; /* one for each line */
    long lines, total, live, kib;
} echo;

/* Notes how much memory there is after a thousand lines, and that it is no more at the end. */
static void echo_count(echo *e)
{
    if (++e->lines == 1000) {
        e->live = test_live();
        e->kib = resident();
    } else if (e->lines == e->total) {
        CHECK(test_live() <= e->live + 2); /* whether the last write has to wait is chance */
        if (resident() > e->kib + 512)
            FAIL("%ld lines took the process from %ld to %ld KiB", e->lines, e->kib, resident());
    }
}

static void *echo_lines(void *arg)
{
    echo *e = arg;
    tornado_scope scope;
    for (;;) {
        if (e->scopes)
            tornado_scope_enter(&scope);
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(e->stream, "\n"));
        tornado_await(tornado_iostream_write(e->stream, line));
        echo_count(e);
        if (e->scopes)
            tornado_scope_leave(&scope);
    }
    return NULL;
}

static void transfer(int fd, char *data, size_t len, bool out)
{
    while (len > 0) {
        ssize_t done = out ? send(fd, data, len, MSG_NOSIGNAL) : recv(fd, data, len, 0);
        CHECK(done > 0);
        data += done;
        len -= (size_t)done;
    }
}

/* Sends lines, some hundred at a time, and has each come back as it was. */
static void echo_client(int fd, long total)
{
    enum { BATCH = 500, LONGEST = 24 };
    static char sent[BATCH * LONGEST], got[BATCH * LONGEST];
    for (long first = 0; first < total; first += BATCH) {
        size_t len = 0;
        for (long i = first; i < first + BATCH && i < total; i++)
            len += (size_t)snprintf(sent + len, LONGEST, "line %ld\n", i);
        transfer(fd, sent, len, true);
        transfer(fd, got, len, false);
        CHECK_MEM(got, len, sent, len);
    }
}

static void echo_a_million_lines(bool scopes)
{
    int ends[2], status;
    echo e = {.scopes = scopes, .total = many(1000000)};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(ends[0]);
        echo_client(ends[1], e.total);
        _exit(0);
    }
    close(ends[1]);
    e.stream = tornado_iostream_new(ends[0], NULL);
    CHECK(e.stream != NULL);
    CHECK_INT(loop_code(tornado_spawn(echo_lines, &e)), TORNADO_ERR_CLOSED);
    CHECK_INT(e.lines, e.total);
    tornado_iostream_release(e.stream);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
}

TEST_LIMIT(coroutine_echoes_a_million_lines_in_constant_memory, 60)
{
    echo_a_million_lines(false);
}

TEST_LIMIT(coroutine_echoes_a_million_lines_with_a_scope_for_each_in_constant_memory, 60)
{
    echo_a_million_lines(true);
}

/*----------------------------------------------------------------------------
 * What is deferred, on each way out.
 *----------------------------------------------------------------------------*/

enum { RETURNS, RAISES, IS_CANCELLED, LOOP_CLOSES };

typedef struct exit_case {
    int way, code;
    const char *trace;
} exit_case;

static const exit_case exits[] = {
    {RETURNS, 0, "dc1b2a"},
    {RAISES, TORNADO_ERR_LIMIT, "dcba"},
    {IS_CANCELLED, TORNADO_ERR_CANCELLED, "dcba"},
    {LOOP_CLOSES, TORNADO_ERR_CANCELLED, "dcba"},
};

typedef struct leaving {
    int way;
    tornado_future *gate;
} leaving;

static void *leave_nested_scopes(void *arg)
{
    leaving *l = arg;
    tornado_scope outer, inner;
    tornado_defer(note, "a");
    tornado_scope_enter(&outer);
    tornado_defer(note, "b");
    tornado_scope_enter(&inner);
    tornado_defer(note, "c");
    tornado_defer(note, "d");
    tornado_await(tornado_future_retain(l->gate));
    if (l->way == RAISES)
        raise_limit("x");
    tornado_scope_leave(&inner);
    note("1");
    tornado_scope_leave(&outer);
    note("2");
    return NULL;
}

static void try_and_pass_on(void *arg)
{
    tornado_defer(note, "c");
    tornado_defer(note, "d");
    tornado_await(tornado_future_retain(((leaving *)arg)->gate));
    if (((leaving *)arg)->way == RAISES)
        raise_limit("x");
}

/* The same traces, with a boundary in place of a scope. */
static void *leave_a_try(void *arg)
{
    tornado_scope outer;
    tornado_defer(note, "a");
    tornado_scope_enter(&outer);
    tornado_defer(note, "b");
    const tornado_error *error = tornado_try(try_and_pass_on, arg);
    if (error)
        tornado_raise_error(error);
    note("1");
    tornado_scope_leave(&outer);
    note("2");
    return NULL;
}

static void check_exit(const exit_case *c, tornado_coroutine_fn fn)
{
    leaving l = {c->way, tornado_future_new()};
    tornado_future *future = tornado_spawn(fn, &l);
    loop_turns(2);
    CHECK_STR(trace, "");
    if (c->way == IS_CANCELLED)
        CHECK(tornado_cancel(future));
    else if (c->way == LOOP_CLOSES)
        close_loop();
    else
        CHECK(tornado_future_set_result(l.gate, NULL, NULL));
    CHECK_INT(loop_code(future), c->code);
    CHECK_STR(traced(), c->trace);
    tornado_future_release(l.gate);
}

TEST_EACH_POLLER(coroutine_runs_what_it_deferred_on_each_way_out)
{
    for (size_t i = 0; i < sizeof exits / sizeof exits[0]; i++) {
        check_exit(&exits[i], leave_nested_scopes);
        check_exit(&exits[i], leave_a_try);
    }
}

static void *defer_without_memory(void *arg)
{
    tornado_scope scope;
    tornado_defer(note, "a");
    tornado_scope_enter(&scope);
    tornado_defer(note, "b");
    tornado_await(tornado_moment());
    test_fail_alloc(1);
    tornado_defer(note, "c");
    note("unreached");
    return arg;
}

TEST_EACH_POLLER(coroutine_runs_at_once_what_it_cannot_defer_and_fails)
{
    CHECK(!tornado_ioloop_run_sync(tornado_ioloop_current(), defer_without_memory, NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK_STR(trace, "cba");
}

static void use_a_closed_loop(void *arg)
{
    tornado_future *future = tornado_spawn(note_and_return, "unreached");
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_STATE));
    tornado_future_release(future);
    tornado_future_release(tornado_sleep(0));
    tornado_future_release(tornado_moment());
    CHECK(!tornado_ioloop_add_callback(tornado_ioloop_current(), note, "unreached"));
    note(arg);
}

/* Catches that it is cancelled, and tries to go on. */
static void *outlive_the_loop(void *gate)
{
    tornado_defer(use_a_closed_loop, "d");
    CHECK(is_error(tornado_wait(tornado_future_retain(gate)), TORNADO_ERR_CANCELLED));
    use_a_closed_loop("c");
    CHECK(is_error(tornado_wait(tornado_sleep(0)), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(tornado_moment()), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(tornado_future_resolved(NULL)), TORNADO_ERR_CANCELLED));
    return tornado_arena_strdup(tornado_current_arena(), "result");
}

TEST_EACH_POLLER(coroutine_that_goes_on_when_its_loop_closes_can_start_nothing_and_gives_its_result)
{
    tornado_future *gate = tornado_future_new(), *future = tornado_spawn(outlive_the_loop, gate);
    tornado_future *late = tornado_spawn(outlive_the_loop, gate);
    tornado_future_release(late); /* nobody looks */
    loop_turns(2);
    log_keep();
    close_loop();
    CHECK_STR(trace, "cdcd");
    CHECK_STR(tornado_future_result(future), "result");
    CHECK_STR(log_text, "");
    tornado_future_release(future);
    tornado_future_release(gate);
}

/* Each ends what others wait for. */
static void *resolve_and_cancel(void *arg)
{
    tornado_future **futures = arg; /* a gate, and another coroutine */
    tornado_defer((tornado_callback)(uintptr_t)tornado_future_release, tornado_future_retain(futures[0]));
    const tornado_error *error = tornado_wait(tornado_future_retain(futures[0]));
    CHECK(is_error(error, TORNADO_ERR_CANCELLED));
    if (!tornado_future_done(futures[0]))
        tornado_future_set_result(futures[0], NULL, NULL);
    note(tornado_cancel(futures[1]) ? "t" : "f");
    return NULL;
}

TEST_EACH_POLLER(coroutines_that_unwind_when_the_loop_closes_may_resolve_and_cancel_each_other)
{
    tornado_future *gate = tornado_future_new(), *first[2] = {gate, NULL}, *second[2] = {gate, NULL};
    second[1] = tornado_spawn(resolve_and_cancel, first);
    first[1] = tornado_spawn(resolve_and_cancel, second);
    tornado_future *waiting = tornado_spawn(wait_at_the_gate, gate);
    loop_turns(2);
    CHECK_STR(traced(), "(");
    close_loop();
    CHECK_STR(trace, "tf"); /* the first finds the second there, the second finds the first done */
    CHECK(is_error(tornado_future_error(waiting), TORNADO_ERR_CANCELLED));
    tornado_future_release(first[1]);
    tornado_future_release(second[1]);
    tornado_future_release(waiting);
    tornado_future_release(gate);
}

static void *never_end(void *gate)
{
    for (;;)
        tornado_wait(tornado_future_retain(gate));
    return NULL;
}

TEST_EACH_POLLER(coroutine_that_does_not_end_when_the_loop_closes_is_named_and_left)
{
    tornado_future *gate = tornado_future_new();
    leaving l = {RETURNS, gate};
    tornado_spawn_options options = {.name = "mule"};
    tornado_future *before = tornado_spawn(leave_nested_scopes, &l);
    tornado_future *mule = tornado_spawn_with(never_end, gate, &options);
    tornado_future *after = tornado_spawn(leave_nested_scopes, &l);
    TEST_MAY_LEAK(); /* what is left cannot be freed */
    loop_turns(1);
    log_keep();
    close_loop();
    CHECK_STR(trace, "dcbadcba");
    CHECK_INT(logged("the coroutine mule does not end"), 1);
    CHECK_INT(logged("\n"), 1);
    CHECK(!tornado_future_done(mule));
    CHECK(!tornado_cancel(mule)); /* no coroutine is behind it any more */
    CHECK(is_error(tornado_future_error(before), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_future_error(after), TORNADO_ERR_CANCELLED));
}

TEST_EACH_POLLER(coroutine_that_was_about_to_go_on_when_the_loop_closes_unwinds)
{
    int destroyed = 0, never = 0;
    tornado_future *gate = tornado_future_new(), *waits = tornado_spawn(wait_at_the_gate, gate);
    tornado_future *spins = tornado_spawn(spin_on_ready_waits, &never);
    loop_turns(2);
    CHECK(tornado_future_set_result(gate, &destroyed, count_one));
    tornado_future_release(gate);
    close_loop();
    CHECK(is_error(tornado_future_error(waits), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_future_error(spins), TORNADO_ERR_CANCELLED));
    CHECK_STR(trace, "(");
    CHECK_INT(destroyed, 1);
    tornado_future_release(waits);
    tornado_future_release(spins);
}

TEST_EACH_POLLER(coroutine_that_has_not_started_when_the_loop_closes_never_runs)
{
    tornado_future *future = tornado_spawn(note_and_return, "unreached");
    close_loop();
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_CANCELLED));
    CHECK_STR(trace, "");
    tornado_future_release(future);
}

/*----------------------------------------------------------------------------
 * Cancelling, at each kind of wait.
 *----------------------------------------------------------------------------*/

typedef struct scene {
    tornado_future *(*begin)(struct scene *s);
    tornado_iostream *stream;
    int peer, listener, filler[4];
    tornado_future *gate; /* resolved when the scene ends */
    int begun, deferred, others;
} scene;

static tornado_future *begin_sleep(scene *s)
{
    (void)s;
    return tornado_sleep(1e6);
}

static tornado_future *begin_moment(scene *s)
{
    (void)s;
    return tornado_moment();
}

static tornado_future *begin_future(scene *s)
{
    return tornado_future_retain(s->gate);
}

static tornado_future *begin_multi(scene *s)
{
    tornado_future *list[] = {integer_of(1), tornado_future_retain(s->gate), NULL, tornado_moment()};
    return tornado_multi(list, 4);
}

static tornado_future *begin_with_timeout(scene *s)
{
    return tornado_with_timeout(1e6, tornado_future_retain(s->gate));
}

static void *another(void *arg)
{
    scene *s = arg;
    tornado_await(tornado_future_retain(s->gate));
    s->others++;
    return NULL;
}

static tornado_future *begin_spawn(scene *s)
{
    return tornado_spawn(another, s);
}

static tornado_future *begin_multi_of_spawn(scene *s)
{
    tornado_future *list[] = {tornado_spawn(another, s), tornado_spawn(another, s)};
    return tornado_with_timeout(1e6, tornado_multi(list, 2));
}

static tornado_future *begin_read_bytes(scene *s)
{
    return tornado_iostream_read_bytes(s->stream, 100);
}

static tornado_future *begin_read_until(scene *s)
{
    return tornado_iostream_read_until(s->stream, "\r\n");
}

static tornado_future *begin_read_until_close(scene *s)
{
    return tornado_iostream_read_until_close(s->stream);
}

static tornado_future *begin_read_partial(scene *s)
{
    return tornado_iostream_read(s->stream, &(tornado_read_options){.bytes = 10, .partial = true});
}

static tornado_future *begin_read_with_timeout(scene *s)
{
    return tornado_with_timeout(1e6, tornado_iostream_read_until(s->stream, "\r\n"));
}

static void no_chunk(tornado_bytes chunk, void *arg)
{
    (void)arg;
    FAIL("%zu bytes came", chunk.len);
}

static tornado_future *begin_streaming_bytes(scene *s)
{
    return tornado_iostream_read(s->stream, &(tornado_read_options){.bytes = 10, .streaming_callback = no_chunk});
}

static tornado_future *begin_streaming_until_close(scene *s)
{
    return tornado_iostream_read(
        s->stream, &(tornado_read_options){.until_close = true, .streaming_callback = no_chunk});
}

static tornado_future *begin_write(scene *s)
{
    static char data[4 << 20]; /* more than the system takes */
    return tornado_iostream_write(s->stream, (tornado_bytes){data, sizeof data});
}

static tornado_future *begin_second_write(scene *s)
{
    tornado_future_release(begin_write(s));
    return tornado_iostream_write(s->stream, tornado_bytes_of("behind it"));
}

/* To a socket whose queue of connections is full, so that nothing answers. */
static tornado_future *begin_connect(scene *s)
{
    tornado_address address;
    CHECK(tornado_address_local(&address, s->listener));
    tornado_iostream_release(s->stream);
    s->stream = tornado_iostream_new(socket(AF_INET, SOCK_STREAM, 0), NULL);
    return tornado_iostream_connect(s->stream, &address);
}

static const struct {
    const char *name;
    tornado_future *(*begin)(scene *s);
    int others; /* coroutines that it starts */
} wait_kinds[] = {
    {"sleep", begin_sleep, 0},
    {"moment", begin_moment, 0},
    {"future", begin_future, 0},
    {"multi", begin_multi, 0},
    {"with_timeout", begin_with_timeout, 0},
    {"spawn", begin_spawn, 1},
    {"with_timeout of multi of spawn", begin_multi_of_spawn, 2},
    {"read_bytes", begin_read_bytes, 0},
    {"read_until", begin_read_until, 0},
    {"read_until_close", begin_read_until_close, 0},
    {"partial read", begin_read_partial, 0},
    {"with_timeout of read_until", begin_read_with_timeout, 0},
    {"streaming bytes", begin_streaming_bytes, 0},
    {"streaming until_close", begin_streaming_until_close, 0},
    {"write", begin_write, 0},
    {"second write", begin_second_write, 0},
    {"connect", begin_connect, 0},
};

enum { WAIT_KINDS = sizeof wait_kinds / sizeof wait_kinds[0] };

static scene scene_new(int kind)
{
    int ends[2], port;
    struct sockaddr_in address;
    scene s = {.begin = wait_kinds[kind].begin, .gate = tornado_future_new()};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    s.stream = tornado_iostream_new(ends[0], NULL);
    s.peer = ends[1];
    s.listener = listen_loopback(&port);
    CHECK(s.stream != NULL && listen(s.listener, 0) == 0);
    address = loopback(port);
    for (int i = 0; i < 4; i++) {
        s.filler[i] = socket(AF_INET, SOCK_STREAM, 0);
        set_nonblocking(s.filler[i]);
        CHECK(connect(s.filler[i], (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS);
    }
    return s;
}

static void scene_free(scene *s)
{
    tornado_future_set_result(s->gate, NULL, NULL);
    tornado_future_release(s->gate);
    tornado_iostream_release(s->stream);
    close(s->peer);
    close(s->listener);
    for (int i = 0; i < 4; i++)
        close(s->filler[i]);
}

static void *wait_to_be_cancelled(void *arg)
{
    scene *s = arg;
    tornado_defer(count_one, &s->deferred);
    tornado_future *future = s->begin(s);
    CHECK(!tornado_future_done(future));
    s->begun++;
    tornado_await(future);
    note("unreached");
    return NULL;
}

static void cancel_at(int kind)
{
    scene s = scene_new(kind);
    tornado_future *future = tornado_spawn(wait_to_be_cancelled, &s);
    turn();
    CHECK_INT(s.begun, 1);
    CHECK(tornado_cancel(future));
    CHECK_INT(s.deferred, 0); /* it unwinds in a turn of the loop */
    CHECK(!tornado_future_done(future));
    int code = loop_code(future);
    if (code != TORNADO_ERR_CANCELLED || s.deferred != 1)
        FAIL("cancelled in %s: %s, %d deferred", wait_kinds[kind].name, tornado_error_name(code), s.deferred);
    CHECK_INT(coroutines(), wait_kinds[kind].others); /* what it waited for goes on */
    scene_free(&s);
    for (int i = 0; i < 5; i++)
        turn();
    CHECK_INT(s.others, wait_kinds[kind].others);
    CHECK_INT(coroutines(), 0);
}

TEST_EACH_POLLER(coroutine_can_be_cancelled_at_each_kind_of_wait_and_nothing_is_left)
{
    log_keep();
    for (int kind = 0; kind < WAIT_KINDS; kind++) {
        cancel_at(kind); /* the loop makes what it keeps */
        long live = test_live();
        cancel_at(kind);
        if (test_live() != live)
            FAIL("%ld blocks more after a cancel in %s", test_live() - live, wait_kinds[kind].name);
    }
    CHECK_STR(trace, "");
    CHECK_INT(logged("\n"), logged("TORNADO_ERR_CLOSED")); /* the streams were closed in the end */
}

static void *read_a_stream_of_its_own(void *arg)
{
    tornado_defer((tornado_callback)(uintptr_t)tornado_iostream_release, arg);
    tornado_await_bytes(tornado_iostream_read_until(arg, "\n"));
    return NULL;
}

TEST(coroutine_cancelled_in_a_read_closes_its_stream_and_nothing_is_logged)
{
    for (int closes = 0; closes < 2; closes++) {
        int ends[2];
        char byte;
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        tornado_future *future = tornado_spawn(read_a_stream_of_its_own, tornado_iostream_new(ends[0], NULL));
        loop_turns(2);
        log_keep();
        if (closes)
            close_loop();
        else
            CHECK(tornado_cancel(future));
        CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
        loop_turns(2);
        CHECK_INT(recv(ends[1], &byte, 1, 0), 0);
        CHECK_STR(log_text, ""); /* the read that was given up is no failure that anybody missed */
        close(ends[1]);
    }
}

TEST_EACH_POLLER(coroutine_unwinds_from_each_kind_of_wait_when_the_loop_closes)
{
    log_keep();
    for (int kind = 0; kind < WAIT_KINDS; kind++) {
        long live = (tornado_ioloop_clear_current(), test_live());
        scene s = scene_new(kind);
        tornado_future *future = tornado_spawn(wait_to_be_cancelled, &s);
        loop_turns(1);
        CHECK_INT(s.begun, 1);
        close_loop();
        CHECK_INT(s.deferred, 1);
        CHECK_INT(s.others, 0);
        CHECK(is_error(tornado_future_error(future), TORNADO_ERR_CANCELLED));
        tornado_future_release(future);
        scene_free(&s);
        if (test_live() != live)
            FAIL("%ld blocks are left after closing in %s", test_live() - live, wait_kinds[kind].name);
    }
    CHECK_STR(trace, "");
    CHECK_INT(logged("[E") + logged("[W"), logged("TORNADO_ERR_CLOSED"));
}

static void *unresolved_with_timeout(void *arg)
{
    tornado_await(tornado_with_timeout(1e6, tornado_future_new()));
    return arg;
}

TEST(coroutine_cancelled_in_a_timeout_over_what_nobody_can_resolve_leaves_nothing_when_the_loop_closes)
{
    tornado_future *future = tornado_spawn(unresolved_with_timeout, NULL);
    loop_turns(2);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
}

/*----------------------------------------------------------------------------
 * Cancelling, at other moments.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(coroutine_cancelled_before_it_started_never_runs)
{
    tornado_future *future = tornado_spawn(note_and_return, "unreached");
    CHECK(tornado_cancel(future));
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    CHECK_INT(coroutines(), 0);
    CHECK_STR(trace, "");
}

TEST_EACH_POLLER(coroutine_that_is_done_and_other_futures_cannot_be_cancelled)
{
    tornado_future *done = tornado_spawn(note_and_return, "a"), *sleep = tornado_sleep(0);
    CHECK(!tornado_cancel(sleep));
    CHECK_INT(loop_code(sleep), 0);
    loop_turns(1);
    CHECK(!tornado_cancel(done));
    CHECK_STR(tornado_future_result(done), "a");
    tornado_future_release(done);
    done = tornado_spawn(wait_twice, "b");
    CHECK(tornado_cancel(done));
    CHECK(is_error(loop_until(done), TORNADO_ERR_CANCELLED));
    CHECK(!tornado_cancel(done));
    tornado_future_release(done);
}

TEST_EACH_POLLER(coroutine_cancelled_twice_unwinds_once)
{
    tornado_future *gate = tornado_future_new();
    leaving l = {RETURNS, gate};
    tornado_future *future = tornado_spawn(leave_nested_scopes, &l);
    loop_turns(1);
    CHECK(tornado_cancel(future));
    CHECK(tornado_cancel(future));
    tornado_future_set_result(gate, NULL, NULL); /* too late */
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    loop_turns(3);
    CHECK_STR(trace, "dcba");
    tornado_future_release(gate);
}

TEST_EACH_POLLER(coroutine_cancelled_when_its_wait_is_over_but_it_has_not_gone_on_unwinds)
{
    int destroyed = 0;
    tornado_future *gate = tornado_future_new();
    tornado_future *future = tornado_spawn(wait_at_the_gate, gate);
    loop_turns(1);
    CHECK(tornado_future_set_result(gate, &destroyed, count_one));
    tornado_future_release(gate);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    CHECK_STR(trace, "(");
    CHECK_INT(destroyed, 1);
}

TEST(coroutine_cancelled_when_its_wait_has_failed_counts_as_having_looked)
{
    tornado_future *gate = tornado_future_new();
    tornado_future *future = tornado_spawn(wait_at_the_gate, gate);
    log_keep();
    loop_turns(1);
    CHECK(tornado_future_set_error(gate, &broken));
    tornado_future_release(gate);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    CHECK_INT(logged("it broke"), 0);
}

static void *wait_when_cancelled(void *future)
{
    CHECK(is_error(tornado_wait(tornado_sleep(100)), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(future), TORNADO_ERR_CANCELLED));
    return NULL;
}

TEST(coroutine_that_was_cancelled_before_it_waited_has_not_looked)
{
    tornado_future *late = tornado_future_new();
    tornado_future *future = tornado_spawn(wait_when_cancelled, tornado_future_retain(late));
    log_keep();
    loop_turns(1);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), 0);
    CHECK(tornado_future_set_error(late, &broken));
    tornado_future_release(late);
    CHECK_INT(logged("it broke"), 1);
}

/* What a coroutine cancels itself by. */
static tornado_future *myself;

static void *cancel_myself(void *arg)
{
    CHECK(tornado_cancel(myself));
    note("a"); /* it goes on up to its next wait */
    CHECK(is_error(tornado_wait(tornado_future_resolved(NULL)), TORNADO_ERR_CANCELLED));
    note("b");
    if (arg)
        tornado_await(tornado_moment());
    return "result";
}

TEST_EACH_POLLER(coroutine_that_cancels_itself_goes_on_until_it_waits)
{
    myself = tornado_spawn(cancel_myself, "waits");
    CHECK_INT(loop_code(myself), TORNADO_ERR_CANCELLED);
    CHECK_STR(traced(), "ab");
    myself = tornado_spawn(cancel_myself, NULL);
    CHECK(loop_until(myself) == NULL); /* it did not unwind */
    CHECK_STR(tornado_future_result(myself), "result");
    tornado_future_release(myself);
}

static void *catch_the_cancel(void *gate)
{
    int destroyed = 0;
    int64_t integer = 5;
    tornado_bytes bytes = {"x", 1};
    CHECK(is_error(tornado_wait(tornado_future_retain(gate)), TORNADO_ERR_CANCELLED));
    note("1");
    CHECK(is_error(tornado_wait(tornado_sleep(1e6)), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(tornado_moment()), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(counted_of(&destroyed)), TORNADO_ERR_CANCELLED));
    CHECK_INT(destroyed, 1);
    CHECK(is_error(tornado_wait_integer(integer_of(6), &integer), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait_bytes(bytes_of("abc"), &bytes), TORNADO_ERR_CANCELLED));
    CHECK(integer == 5 && bytes.len == 1);
    CHECK(is_error(tornado_try(await_given, tornado_future_retain(gate)), TORNADO_ERR_CANCELLED));
    CHECK(tornado_try(note, "2") == NULL); /* what does not wait works */
    CHECK(is_error(tornado_try(raise_limit, "x"), TORNADO_ERR_LIMIT));
    return tornado_arena_strdup(tornado_current_arena(), "result");
}

TEST_EACH_POLLER(coroutine_that_catches_the_cancel_fails_at_each_later_wait_and_may_give_a_result)
{
    tornado_future *gate = tornado_future_new(), *future = tornado_spawn(catch_the_cancel, gate);
    loop_turns(1);
    CHECK(tornado_cancel(future));
    CHECK(loop_until(future) == NULL);
    CHECK_STR(tornado_future_result(future), "result");
    CHECK_STR(trace, "12");
    tornado_future_release(future);
    tornado_future_release(gate);
}

/* Other coroutines and callbacks have their turns, though no wait of it takes any time. */
static void *wait_on_after_the_cancel(void *gate)
{
    for (int i = 0; i < 1000; i++) {
        CHECK(is_error(tornado_wait(tornado_future_retain(gate)), TORNADO_ERR_CANCELLED));
        if (i == 900)
            make_the_turn_long();
    }
    CHECK_STR(trace, "c");
    return NULL;
}

TEST(coroutine_that_goes_on_waiting_when_it_is_cancelled_lets_others_run)
{
    tornado_future *gate = tornado_future_new(), *future = tornado_spawn(wait_on_after_the_cancel, gate);
    loop_turns(1);
    CHECK(tornado_cancel(future));
    tornado_ioloop_add_callback(tornado_ioloop_current(), note, "c");
    CHECK_INT(loop_code(future), 0);
    tornado_future_release(gate);
}

static void *wait_for_a_cancelled_one(void *other)
{
    CHECK(is_error(tornado_wait(tornado_future_retain(other)), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_try(await_given, tornado_future_retain(other)), TORNADO_ERR_CANCELLED));
    CHECK(tornado_wait(tornado_moment()) == NULL); /* it is not cancelled itself */
    note("a");
    return NULL;
}

TEST_EACH_POLLER(coroutine_that_waits_for_a_cancelled_one_gets_that_as_an_error_and_goes_on)
{
    tornado_future *gate = tornado_future_new(), *other = tornado_spawn(wait_at_the_gate, gate);
    tornado_future *future = tornado_spawn(wait_for_a_cancelled_one, other);
    loop_turns(2);
    CHECK(tornado_cancel(other));
    CHECK_INT(loop_code(future), 0);
    CHECK_STR(trace, "(a");
    tornado_future_release(other);
    tornado_future_release(gate);
}

typedef struct queued {
    tornado_future *gate;
    const char *name;
} queued;

static void *wait_in_a_queue(void *arg)
{
    queued *q = arg;
    tornado_await(tornado_future_retain(q->gate));
    note((void *)(uintptr_t)q->name);
    return NULL;
}

TEST_EACH_POLLER(coroutines_cancelled_among_others_that_wait_for_the_same_leave_those_in_order)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
    for (unsigned cancelled = 0; cancelled < 32; cancelled++) { /* each subset of five; the sixth comes behind */
        tornado_future *gate = tornado_future_new(), *all[6];
        queued queue[6];
        char wanted[7] = "";
        for (int i = 0; i < 6; i++) {
            queue[i] = (queued){gate, names[i]};
            if (i == 5)
                for (int k = 0; k < 5; k++)
                    CHECK(!(cancelled >> k & 1) || tornado_cancel(all[k]));
            all[i] = tornado_spawn(wait_in_a_queue, &queue[i]);
            loop_turns(1);
            if (!(cancelled >> i & 1))
                strcat(wanted, names[i]);
        }
        CHECK(tornado_future_set_result(gate, NULL, NULL));
        for (int i = 0; i < 6; i++)
            CHECK_INT(loop_code(all[i]), cancelled >> i & 1 ? TORNADO_ERR_CANCELLED : 0);
        CHECK_STR(traced(), wanted);
        tornado_future_release(gate);
    }
}

static void *wait_for_another(void *other)
{
    tornado_await(tornado_future_retain(other));
    note("unreached");
    return NULL;
}

TEST_EACH_POLLER(coroutine_cancelled_while_it_waits_for_another_leaves_that_alone)
{
    tornado_future *gate = tornado_future_new(), *other = tornado_spawn(wait_at_the_gate, gate);
    tornado_future *future = tornado_spawn(wait_for_another, other);
    loop_turns(2);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    CHECK(!tornado_future_done(other));
    CHECK(tornado_future_set_result(gate, NULL, NULL));
    CHECK_INT(loop_code(other), 0);
    CHECK_STR(trace, "()");
    tornado_future_release(gate);
}

static void *fail_behind_the_gate(void *gate)
{
    wait_at_the_gate(gate);
    raise_limit("alone");
    return NULL;
}

static void *spawn_and_await(void *gate)
{
    return tornado_await(tornado_spawn(fail_behind_the_gate, gate));
}

TEST_EACH_POLLER(coroutine_that_fails_after_the_one_that_waited_was_cancelled_is_logged)
{
    tornado_future *gate = tornado_future_new(), *future = tornado_spawn(spawn_and_await, gate);
    log_keep();
    loop_turns(2);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    tornado_future_set_result(gate, NULL, NULL);
    loop_turns(2);
    CHECK_INT(coroutines(), 0);
    CHECK_INT(logged("on purpose: alone"), 1); /* nobody waits for it any more */
    tornado_future_release(gate);
}

static void cancel_given(void *future)
{
    note(tornado_cancel(future) ? "t" : "f");
}

static void *cancel_when_it_ends(void *other)
{
    tornado_defer(note, "a");
    tornado_defer(cancel_given, other ? other : myself);
    tornado_await(tornado_moment());
    return "result";
}

TEST_EACH_POLLER(coroutine_cancelled_in_a_deferred_function_at_its_end_keeps_its_result)
{
    myself = tornado_spawn(cancel_when_it_ends, NULL);
    CHECK(loop_until(myself) == NULL);
    CHECK_STR(tornado_future_result(myself), "result");
    CHECK_STR(trace, "ta");
    tornado_future_release(myself);
}

TEST_EACH_POLLER(coroutine_may_be_cancelled_by_a_deferred_function_of_another)
{
    tornado_future *gate = tornado_future_new(), *other = tornado_spawn(wait_at_the_gate, gate);
    CHECK_INT(loop_code(tornado_spawn(cancel_when_it_ends, other)), 0);
    CHECK_INT(loop_code(other), TORNADO_ERR_CANCELLED);
    CHECK_STR(trace, "(ta");
    tornado_future_release(gate);
}

static void *wait_under_defers(void *gate)
{
    tornado_defer(cancel_given, myself);
    tornado_defer(note, "a");
    tornado_await(tornado_future_retain(gate));
    return NULL;
}

TEST(coroutine_cancelled_again_while_it_unwinds_unwinds_once)
{
    tornado_future *gate = tornado_future_new();
    myself = tornado_spawn(wait_under_defers, gate);
    loop_turns(1);
    CHECK(tornado_cancel(myself));
    CHECK_INT(loop_code(myself), TORNADO_ERR_CANCELLED);
    CHECK_STR(trace, "at");
    tornado_future_release(gate);
}

TEST_EACH_POLLER(coroutine_that_only_waits_for_what_is_done_can_be_cancelled)
{
    int never = 0;
    tornado_future *future = tornado_spawn(spin_on_ready_waits, &never);
    loop_turns(2);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
}

TEST_EACH_POLLER(coroutine_cancelled_and_forgotten_is_not_logged)
{
    tornado_future *gate = tornado_future_new();
    tornado_future *waits = tornado_spawn(wait_at_the_gate, gate), *fresh = tornado_spawn(note_and_return, "x");
    log_keep();
    CHECK(tornado_cancel(fresh));
    tornado_future_release(fresh);
    loop_turns(1);
    CHECK(tornado_cancel(waits));
    tornado_future_release(waits);
    loop_turns(2);
    CHECK_INT(coroutines(), 0);
    CHECK_STR(trace, "(");
    CHECK_STR(log_text, "");
    tornado_future_release(gate);
}

/*----------------------------------------------------------------------------
 * Stacks.
 *----------------------------------------------------------------------------*/

/* Uses about so many bytes of stack, all of them: a sanitizer may keep the frames of what it instruments elsewhere. */
static __attribute__((noinline, no_sanitize("address"))) int use_stack(size_t bytes)
{
    volatile char block[4096];
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (char)i;
    if (bytes <= sizeof block)
        return block[bytes % sizeof block];
    return use_stack(bytes - sizeof block) + block[1];
}

static void *use_stack_between_waits(void *arg)
{
    size_t bytes = *(size_t *)arg;
    tornado_await(tornado_moment());
    use_stack(bytes);
    tornado_await(tornado_moment());
    return use_stack(bytes) ? arg : NULL;
}

/* Some usable part of a stack of this size: not all, as frames are larger under a sanitizer. */
static size_t most_of(size_t stack)
{
    return instrumented() ? stack / 2 : stack - stack / 10 - 4096;
}

TEST(coroutine_stack_has_the_size_that_was_asked_for)
{
    static const size_t sizes[] = {0, 100000, (size_t)1 << 20, (size_t)8 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t fallback = sizeof(void *) >= 8 ? 262144 : 131072, bytes = most_of(sizes[i] ? sizes[i] : fallback);
        loop_with((tornado_ioloop_options){.stack_size = sizes[i]});
        tornado_future *both[] = {tornado_spawn(use_stack_between_waits, &bytes),
                                  tornado_spawn(use_stack_between_waits, &bytes)};
        CHECK_INT(loop_code(tornado_multi(both, 2)), 0);
        close_loop();
    }
}

static void *use_stack_and_wait_at_the_gate(void *gate)
{
    use_stack(49152);
    tornado_wait(tornado_future_retain(gate));
    return use_stack(49152) ? gate : NULL;
}

TEST(coroutine_stacks_that_wait_for_long_give_back_what_they_needed_before)
{
    enum { COUNT = 1500 };
    static tornado_future *waiting[COUNT];
    if (!resident() || test_emulated())
        SKIP("what is resident here says nothing of stacks");
#ifdef TORNADO_UCONTEXT
    SKIP("ucontext does not tell how deep a stack is in use");
#endif
    loop_with((tornado_ioloop_options){.stack_size = 131072});
    tornado_future *gate = tornado_future_new();
    for (int i = 0; i < COUNT; i++)
        waiting[i] = tornado_spawn(use_stack_and_wait_at_the_gate, gate);
    loop_turns(1);
    long deep = resident();
    while (deep - resident() < COUNT * 40L) /* else the test's time ends it */
        CHECK(tornado_ioloop_run_once(tornado_ioloop_current(), 0.1));
    CHECK(tornado_future_set_result(gate, NULL, NULL));
    for (int i = 0; i < COUNT; i++)
        CHECK_INT(loop_code(waiting[i]), 0);
    tornado_future_release(gate);
}

TEST(coroutine_stack_that_would_be_too_small_is_made_large_enough)
{
    if (instrumented())
        SKIP("frames are larger here");
    loop_with((tornado_ioloop_options){.stack_size = 1});
    run(catch_between_waits, "a");
}

TEST(coroutine_stack_that_no_memory_can_hold_is_an_error)
{
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 16 + 1 + 4096, SIZE_MAX / 16};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        loop_with((tornado_ioloop_options){.stack_size = sizes[i]});
        CHECK_INT(loop_code(tornado_spawn(note_and_return, "x")), TORNADO_ERR_NOMEM);
        CHECK_INT(coroutines(), 0);
        close_loop();
    }
    CHECK_STR(trace, "");
}

TEST(coroutine_spawn_fails_when_there_is_no_room_for_stacks_and_the_others_go_on)
{
    if (instrumented() || test_emulated())
        SKIP("address space cannot be limited here");
    loop_with((tornado_ioloop_options){.stack_size = (size_t)1 << 20});
    struct rlimit limit = {(rlim_t)256 << 20, (rlim_t)256 << 20};
    tornado_future *gate = tornado_future_new(), *spawned[1000];
    int count = 0;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    for (;; count++) {
        CHECK(count < 1000);
        spawned[count] = tornado_spawn(wait_at_the_gate, gate);
        loop_turns(1);
        if (tornado_future_done(spawned[count]))
            break;
    }
    CHECK(count > 0);
    CHECK_INT(loop_code(spawned[count]), TORNADO_ERR_NOMEM);
    log_keep();
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), note_and_return, "x"));
    loop_turns(1);
    CHECK_INT(logged("no memory for more coroutine stacks"), 1);
    CHECK(tornado_future_set_result(gate, NULL, NULL));
    while (count > 0)
        CHECK_INT(loop_code(spawned[--count]), 0);
    CHECK_INT(loop_code(tornado_spawn(note_and_return, "")), 0); /* there are free ones now */
    tornado_future_release(gate);
}

static struct {
    int which; /* of many, this one overflows */
    size_t stack_size, bytes;
} overflow = {0, 65536, 80000};

static void *overflow_one(void *arg)
{
    tornado_await(tornado_moment());
    if ((intptr_t)arg == overflow.which) {
        use_stack(overflow.bytes);
        fprintf(stderr, "it survived\n");
    }
    tornado_await(tornado_moment());
    return NULL;
}

static void overflow_a_stack(void)
{
    signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would exit instead */
    loop_with((tornado_ioloop_options){.stack_size = overflow.stack_size});
    for (intptr_t i = 0; i < 40; i++)
        tornado_future_release(tornado_spawn(overflow_one, (void *)i));
    loop_turns(5);
}

TEST(coroutine_stack_overflow_ends_the_process_at_its_guard_on_each_stack)
{
    static const int which[] = {0, 1, 15, 16, 31, 39};
    const char *output;
    if (under_valgrind())
        SKIP("Valgrind would print a report of each");
    for (size_t i = 0; i < sizeof which / sizeof which[0]; i++) {
        overflow.which = which[i];
        int number = dies_of(overflow_a_stack, &output);
        if (number != SIGSEGV)
            FAIL("stack %d: signal %d and %s", which[i], number, output);
        CHECK(strstr(output, "it survived") == NULL);
    }
}

static void overflow_and_report(void)
{
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    CHECK(tornado_report_stack_overflow());
    CHECK(tornado_report_stack_overflow());
    loop_with((tornado_ioloop_options){.stack_size = overflow.stack_size});
    for (intptr_t i = 0; i < 3; i++) {
        const char *const names[] = {"elephant", "giraffe", "zebra"};
        tornado_spawn_options options = {.name = names[i]};
        tornado_future_release(tornado_spawn_with(overflow_one, (void *)i, &options));
    }
    loop_turns(5);
}

TEST(coroutine_stack_overflow_is_reported_when_told_and_ends_the_process_all_the_same)
{
    const char *output;
    if (instrumented())
        SKIP("others have the signal here");
    overflow.which = 1;
    CHECK_INT(dies_of(overflow_and_report, &output), SIGSEGV);
    CHECK(strstr(output, "the coroutine giraffe overflowed") != NULL);
    CHECK(strstr(output, "elephant") == NULL && strstr(output, "zebra") == NULL);
    CHECK(strstr(output, "it survived") == NULL);
}

#ifdef HAVE_SECCOMP

/* Has the system refuse lightweight guards, and pages without access too. */
static void refuse_guards(bool pages)
{
    enum { GUARD_INSTALL = 102 };
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const unsigned third = offsetof(struct seccomp_data, args[2]);
#else
    const unsigned third = offsetof(struct seccomp_data, args[2]) + 4;
#endif
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, third),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GUARD_INSTALL, 0, 5),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, pages ? SYS_mprotect : -1, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, third),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PROT_NONE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    if (!filter_install(filter, sizeof filter / sizeof filter[0])) {
        fprintf(stderr, "no filter\n");
        _exit(0);
    }
}

static void overflow_at_a_page(void)
{
    refuse_guards(false);
    overflow_a_stack();
}

TEST(coroutine_stack_overflow_hits_a_page_where_there_are_no_lightweight_guards)
{
    const char *output;
    if (instrumented())
        SKIP("system calls cannot be filtered here");
    int number = dies_of(overflow_at_a_page, &output);
    if (strstr(output, "no filter"))
        SKIP("system calls cannot be filtered");
    CHECK_INT(number, SIGSEGV);
    CHECK(strstr(output, "it survived") == NULL);
}

/* More stacks than there may be such pages at once, one after the other. */
enum { MANY_STACKS = 25500 };

static void overflow_after_many_stacks_of_ones_own(void)
{
    refuse_guards(false);
    for (int i = 0; i < MANY_STACKS; i++)
        CHECK_INT(loop_code(tornado_spawn_with(return_null, NULL, &(tornado_spawn_options){.stack_size = 16384})), 0);
    overflow_a_stack();
}

static void overflow_after_many_loops(void)
{
    refuse_guards(false);
    for (int i = 0; i < MANY_STACKS / 100; i++) {
        tornado_future *gate = tornado_future_new();
        loop_with((tornado_ioloop_options){.stack_size = 16384});
        for (int n = 0; n < 100; n++)
            tornado_future_release(tornado_spawn(wait_at_the_gate, gate));
        loop_turns(1);
        traced();
        close_loop();
        tornado_future_release(gate);
    }
    overflow_a_stack();
}

TEST_LIMIT(coroutine_stacks_that_are_given_back_give_back_their_page, 60)
{
    const char *output;
    if (instrumented())
        SKIP("system calls cannot be filtered here");
    for (int i = 0; i < 2; i++) {
        int number = dies_of(i ? overflow_after_many_loops : overflow_after_many_stacks_of_ones_own, &output);
        if (strstr(output, "no filter"))
            SKIP("system calls cannot be filtered");
        if (number != SIGBUS) /* as some systems say it */
            CHECK_INT(number, SIGSEGV); /* and not by a canary, SIGABRT */
        CHECK(strstr(output, "it survived") == NULL);
    }
}

/* Writes where frames would be, below all that is in use, down to the end of the stack. */
static void *trample(void *arg)
{
    volatile char *here = arg ? __builtin_frame_address(0) : NULL;
    tornado_await(tornado_moment());
    for (size_t i = 4096; here && i < overflow.stack_size; i++)
        *(volatile char *)((uintptr_t)here - i) = 1;
    tornado_await(tornado_moment());
    fprintf(stderr, "it survived\n");
    return NULL;
}

static void overflow_a_canary(void)
{
    refuse_guards(true);
    loop_with((tornado_ioloop_options){.stack_size = overflow.stack_size});
    CHECK_INT(loop_code(tornado_spawn(trample, NULL)), 0);
    fprintf(stderr, "begun\n");
    tornado_future_release(tornado_spawn_with(trample, "", &(tornado_spawn_options){.name = "elephant"}));
    loop_turns(5);
}

TEST(coroutine_stack_overflow_without_any_guard_is_found_at_the_next_switch_and_named)
{
    const char *output;
    if (instrumented())
        SKIP("system calls cannot be filtered here");
    int number = dies_of(overflow_a_canary, &output);
    if (strstr(output, "no filter"))
        SKIP("system calls cannot be filtered");
    CHECK_INT(number, SIGABRT);
    CHECK((output = strstr(output, "begun")) != NULL);
    CHECK(strstr(output, "it survived") == NULL);
    CHECK(strstr(output, "the coroutine elephant overflowed") != NULL);
}

#endif

/*----------------------------------------------------------------------------
 * What a debugger sees.
 *----------------------------------------------------------------------------*/

static __attribute__((noinline)) void a_breakpoint_is_here(void)
{
    __asm__ volatile("" ::: "memory");
}

static __attribute__((noinline)) void *called_by_a_coroutine(void *arg)
{
    tornado_await(tornado_moment());
    a_breakpoint_is_here();
    return arg;
}

static void *a_coroutine_to_debug(void *arg)
{
    void *result = called_by_a_coroutine(arg);
    __asm__ volatile("" ::: "memory"); /* or the call would be a jump, and leave no frame */
    return result;
}

TEST(coroutine_to_look_at_in_gdb)
{
    CHECK_INT(loop_code(tornado_spawn(a_coroutine_to_debug, "x")), 0);
}

TEST(coroutine_frames_are_in_the_backtrace_of_gdb)
{
    TEST_NEED("gdb");
    char self[4096] = "";
    if (instrumented() || test_emulated() || readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        SKIP("gdb cannot run this here");
    const test_output *got = test_run("gdb -q -nx -batch -iex 'set debuginfod enabled off' -ex 'set follow-fork-mode child' "
                                      "-ex 'break a_breakpoint_is_here' -ex run -ex bt "
                                      "--args %s coroutine_to_look_at_in_gdb 2>&1", self);
    if (strstr(got->text, "ptrace") || strstr(got->text, "Could not trace"))
        SKIP("no process may be debugged here");
    const char *at = got->text;
    static const char *const frames[] = {"#0 ", "a_breakpoint_is_here", "called_by_a_coroutine", "a_coroutine_to_debug",
                                         "tornado__coroutine_body"};
    for (size_t i = 0; i < sizeof frames / sizeof frames[0]; i++)
        if (!(at = strstr(at, frames[i])))
            FAIL("no %s in: %s", frames[i], got->text);
}

/*----------------------------------------------------------------------------
 * What a switch keeps.
 *----------------------------------------------------------------------------*/

/* Computes with more values than there are registers, with a wait in each round or without. */
static uint64_t compute(uint64_t seed, int rounds, bool waits)
{
    uint64_t a = seed, b = seed * 3, c = seed ^ 77, d = seed + 5, e = ~seed, f = seed << 7, g = 11, h = seed | 1;
    double p = (double)seed, q = p / 3, r = p * 1.1, s = p + 0.7, t = 1 / (p + 2), u = p - 9, v = p * p, w = 0.1;
    long double x = p / 7;
    float y = (float)p / 5, z = 0.25f;
    for (int i = 0; i < rounds; i++) {
        a = a * 6364136223846793005u + b, b ^= c >> 9, c += d * 17, d = (d << 13) | (d >> 51);
        e -= a ^ h, f += e >> 5, g = g * 31 + f, h ^= g << 3;
        p = p * 0.5 + q, q = q * 0.25 - r, r = r * 0.75 + s, s = s * 0.125 + t;
        t = t * 0.5 + u * 0.001, u = u * 0.9 - v * 0.0001, v = v * 0.3 + w, w += p * 0.001;
        x = x * 0.7L + (long double)p;
        y = y * 0.5f + z, z = z * 0.75f + 0.125f;
        if (waits)
            tornado_await(tornado_moment());
    }
    double sum = p + q + r + s + t + u + v + w + (double)x + (double)y + (double)z;
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ bits;
}

static void *compute_over_waits(void *arg)
{
    uint64_t *value = arg;
    *value = compute(*value, 60, true);
    return NULL;
}

TEST(coroutines_keep_integers_and_floating_point_values_over_waits)
{
    enum { COUNT = 40 };
    uint64_t values[COUNT], wanted[COUNT];
    tornado_future *all[COUNT];
    for (int i = 0; i < COUNT; i++) {
        values[i] = (uint64_t)i * 1000003 + 17;
        wanted[i] = compute(values[i], 60, false);
        all[i] = tornado_spawn(compute_over_waits, &values[i]);
    }
    CHECK_INT(loop_code(tornado_multi(all, COUNT)), 0);
    for (int i = 0; i < COUNT; i++)
        CHECK(values[i] == wanted[i]);
}

/* Where vectors are moved, and printf saves its doubles, the stack must be aligned. */
static void check_alignment(void *arg)
{
    _Alignas(16) volatile float lanes[4] = {1, 2, 3, 4};
    char text[100];
    CHECK_INT((uintptr_t)lanes % 16, 0);
    snprintf(text, sizeof text, "%.2f %.3f %.1Lf %d", 0.25 + (double)lanes[0], 1.0 / 3, 7.5L, (int)lanes[3]);
    CHECK_STR(text, "1.25 0.333 7.5 4");
    if (arg)
        count_one(arg);
}

static void align_and_raise(void *arg)
{
    tornado_defer(check_alignment, arg);
    check_alignment(NULL);
    raise_limit("x");
}

static void *align_everywhere(void *arg)
{
    tornado_defer(check_alignment, arg);
    check_alignment(NULL);
    tornado_await(tornado_moment());
    check_alignment(NULL);
    CHECK(tornado_try(align_and_raise, arg) != NULL);
    check_alignment(NULL);
    tornado_await(tornado_sleep(1e6)); /* until it is cancelled */
    return NULL;
}

TEST(coroutine_stack_is_aligned_wherever_code_runs_on_it)
{
    enum { COUNT = 40 }; /* stacks do not all begin at the same place of a page */
    int deferred = 0;
    tornado_future *all[COUNT];
    for (int i = 0; i < COUNT; i++)
        all[i] = tornado_spawn(align_everywhere, &deferred);
    loop_turns(4);
    for (int i = 0; i < COUNT; i++) {
        CHECK(tornado_cancel(all[i]));
        CHECK_INT(loop_code(all[i]), TORNADO_ERR_CANCELLED);
    }
    CHECK_INT(deferred, 2 * COUNT);
}

static __attribute__((noinline)) void leap(jmp_buf place, int value)
{
    use_stack(5000);
    longjmp(place, value);
}

static void *leap_and_wait(void *arg)
{
    jmp_buf place;
    volatile int rounds = 0;
    volatile double sum = *(int *)arg;
    int value = setjmp(place);
    tornado_await(tornado_moment());
    sum += value;
    if (++rounds < 10)
        leap(place, rounds);
    CHECK_INT(value, 9);
    CHECK_DOUBLE(sum, *(int *)arg + 45.0);
    return NULL;
}

TEST(coroutine_may_use_setjmp_and_longjmp_within_itself)
{
    int numbers[20];
    tornado_future *all[20];
    for (int i = 0; i < 20; i++) {
        numbers[i] = i;
        all[i] = tornado_spawn(leap_and_wait, &numbers[i]);
    }
    CHECK_INT(loop_code(tornado_multi(all, 20)), 0);
}

/* The processor's floating-point modes, rounding among them; 0 where this does not know how to ask. */
static unsigned float_modes(void)
{
    unsigned modes = 0;
#if defined(__x86_64__) || (defined(__i386__) && defined(__SSE__))
    unsigned short x87 = 0;
    __asm__ volatile("stmxcsr %0" : "=m"(modes));
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    modes = (modes & 0xffc0) << 16 | x87; /* without the flags of what happened */
#endif
    return modes;
}

static void round_upwards(bool on)
{
#if defined(__x86_64__) || (defined(__i386__) && defined(__SSE__))
    unsigned modes = 0;
    unsigned short x87 = 0;
    __asm__ volatile("stmxcsr %0" : "=m"(modes));
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    modes = (modes & ~0x6000u) | (on ? 0x4000u : 0);
    x87 = (unsigned short)((x87 & ~0x0c00u) | (on ? 0x0800u : 0));
    __asm__ volatile("ldmxcsr %0" : : "m"(modes));
    __asm__ volatile("fldcw %0" : : "m"(x87));
#else
    (void)on;
#endif
}

static void *modes_stay(void *arg)
{
    unsigned modes = *(unsigned *)arg;
    for (int i = 0; i < 5; i++) {
        CHECK_INT(float_modes(), modes);
        CHECK(tornado_try(raise_limit, "x") != NULL);
        CHECK_INT(float_modes(), modes);
        tornado_await(i % 2 ? tornado_sleep(0) : tornado_moment());
    }
    return NULL;
}

TEST(coroutine_switches_leave_the_threads_rounding_as_it_is)
{
    for (int on = 0; on < 2; on++) {
        round_upwards(on);
        unsigned modes = float_modes();
        tornado_future *both[] = {tornado_spawn(modes_stay, &modes), tornado_spawn(modes_stay, &modes)};
        CHECK_INT(loop_code(tornado_multi(both, 2)), 0);
        CHECK_INT(float_modes(), modes);
    }
    round_upwards(false);
}

static volatile sig_atomic_t signals_seen;

static void on_signal(int number)
{
    (void)number;
    use_stack(2000);
    signals_seen++;
}

static void check_mask(void)
{
    sigset_t mask;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mask) == 0);
    CHECK_INT(sigismember(&mask, SIGUSR2), 1);
    CHECK_INT(sigismember(&mask, SIGUSR1), 0);
}

static void *signals_between_waits(void *arg)
{
    for (int i = 0; i < 5; i++) {
        double kept = 1.5 * i;
        check_mask();
        raise(SIGUSR1); /* its handler runs on this stack */
        raise(SIGUSR2); /* waits until it is let in */
        CHECK_DOUBLE(kept, 1.5 * i);
        tornado_await(tornado_moment());
        check_mask();
        CHECK(tornado_try(raise_limit, "x") != NULL);
        check_mask();
    }
    return arg;
}

TEST(coroutine_switches_leave_the_signal_mask_as_it_is_and_signals_may_come_on_any_stack)
{
    sigset_t set;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    tornado_future *both[] = {tornado_spawn(signals_between_waits, NULL),
                              tornado_spawn(signals_between_waits, NULL)};
    CHECK_INT(loop_code(tornado_multi(both, 2)), 0);
    check_mask();
    CHECK_INT(signals_seen, 10);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
    CHECK_INT(signals_seen, 11);
}

/*----------------------------------------------------------------------------
 * Threads.
 *----------------------------------------------------------------------------*/

/* One of two threads, each with a loop and many coroutines, which send balls to the other and await them back. */
typedef struct side {
    pthread_t thread;
    tornado_ioloop *loop;
    struct side *other;
    tornado_future *other_done;
    int returned;
} side;

typedef struct ball {
    side *home;
    tornado_future *back;
    int number;
} ball;

static side sides[2];
static pthread_barrier_t both_ready;

static void check_thread(const side *s)
{
    CHECK(pthread_equal(pthread_self(), s->thread));
    CHECK(tornado_ioloop_current() == s->loop);
}

static void ball_back(void *arg)
{
    ball *b = arg;
    check_thread(b->home);
    CHECK(tornado_future_set_integer(b->back, b->number));
    tornado_future_release(b->back);
}

static void ball_there(void *arg)
{
    ball *b = arg;
    check_thread(b->home->other);
    CHECK(tornado_ioloop_add_callback(b->home->loop, ball_back, b));
}

static void *player(void *arg)
{
    side *s = arg;
    for (int i = 0; i < 20; i++) {
        ball b = {s, tornado_future_new(), i};
        tornado_future *back = tornado_future_retain(b.back);
        CHECK(tornado_ioloop_add_callback(s->other->loop, ball_there, &b));
        CHECK_INT(tornado_await_integer(back), i);
        check_thread(s);
        tornado_await(tornado_moment());
        check_thread(s);
        s->returned++;
    }
    return NULL;
}

static void other_is_done(void *arg)
{
    side *s = arg;
    check_thread(s);
    tornado_future_set_result(s->other_done, NULL, NULL);
}

static void *play(void *arg)
{
    side *s = arg;
    tornado_future *players[50];
    for (int i = 0; i < 50; i++)
        players[i] = tornado_spawn(player, s);
    tornado_await(tornado_multi(players, 50));
    CHECK(tornado_ioloop_add_callback(s->other->loop, other_is_done, s->other));
    tornado_await(tornado_future_retain(s->other_done)); /* it may still need this one */
    return NULL;
}

static void *side_runs(void *arg)
{
    side *s = arg;
    s->thread = pthread_self();
    s->loop = tornado_ioloop_retain(tornado_ioloop_current());
    s->other_done = tornado_future_new();
    pthread_barrier_wait(&both_ready);
    run(play, s);
    tornado_future_release(s->other_done);
    close_loop();
    return NULL;
}

TEST_EACH_POLLER(coroutines_on_the_loops_of_two_threads_stay_on_their_threads)
{
    pthread_t threads[2];
    CHECK(pthread_barrier_init(&both_ready, NULL, 2) == 0);
    for (int i = 0; i < 2; i++)
        sides[i].other = &sides[1 - i];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, side_runs, &sides[i]) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK_INT(sides[i].returned, 1000);
        tornado_ioloop_release(sides[i].loop);
    }
}

typedef struct errand {
    tornado_ioloop *loop;
    tornado_future *done;
    pthread_t home, thread;
} errand;

static void resolve_errand(void *arg)
{
    errand *e = arg;
    note("r");
    CHECK(pthread_equal(pthread_self(), e->home));
    tornado_future_set_result(e->done, e, NULL);
}

static void *errand_runs(void *arg)
{
    errand *e = arg;
    CHECK(tornado_ioloop_add_callback(e->loop, resolve_errand, e));
    return NULL;
}

static void *send_an_errand(void *arg)
{
    errand *e = arg;
    CHECK(pthread_create(&e->thread, NULL, errand_runs, e) == 0);
    CHECK(tornado_await(tornado_future_retain(e->done)) == e);
    CHECK(pthread_equal(pthread_self(), e->home));
    note("a");
    CHECK(pthread_join(e->thread, NULL) == 0);
    return NULL;
}

TEST_EACH_POLLER(coroutine_goes_on_in_its_own_thread_when_another_has_its_future_resolved)
{
    errand e = {.loop = tornado_ioloop_current(), .done = tornado_future_new(), .home = pthread_self()};
    run(send_an_errand, &e);
    CHECK_STR(trace, "ra");
    tornado_future_release(e.done);
}

/*----------------------------------------------------------------------------
 * run_sync.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(coroutine_run_sync_runs_until_the_function_has_ended)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_run_sync(loop, wait_twice, "a"));
    CHECK(tornado_ioloop_run_sync(loop, note_and_return, "b"));
    CHECK(tornado_ioloop_run_sync_timeout(loop, wait_twice, "c", 1e6));
    CHECK_STR(trace, "abc");
    CHECK_INT(coroutines(), 0);
}

TEST_EACH_POLLER(coroutine_run_sync_tells_what_the_function_raised)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    for (int i = 0; i < 3; i++) {
        CHECK(i % 2 ? !tornado_ioloop_run_sync(loop, raise_late, "x")
                    : !tornado_ioloop_run_sync_timeout(loop, raise_late, "x", 1e6));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
        CHECK_STR(tornado_last_error()->message, "on purpose: x");
    }
    CHECK(!tornado_ioloop_run_sync(loop, raise_in_a_coroutine, (void *)(uintptr_t)&broken));
    CHECK_INT(tornado_last_error()->sys_errno, broken.sys_errno);
    CHECK_INT(tornado_last_error()->http_status, broken.http_status);
    CHECK_STR(log_text, "");
}

static void *wait_for_long(void *arg)
{
    tornado_defer(note, "d");
    tornado_await(tornado_sleep(1e6));
    return arg;
}

TEST_EACH_POLLER(coroutine_run_sync_cancels_when_the_time_is_up)
{
    static const double times[] = {0.01, 0, -1};
    log_keep();
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        CHECK(!tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), wait_for_long, NULL, times[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_TIMEOUT);
        CHECK_INT(coroutines(), 0);
        const char *ran = traced(); /* with no time at all it may never have begun */
        CHECK(strcmp(ran, "d") == 0 || (times[i] <= 0 && *ran == '\0'));
    }
    CHECK_STR(log_text, "");
}

static void *take_too_long(void *arg)
{
    CHECK(is_error(tornado_wait(tornado_sleep(1e6)), TORNADO_ERR_CANCELLED));
    return arg;
}

TEST(coroutine_run_sync_is_late_also_when_the_function_then_returns)
{
    CHECK(!tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), take_too_long, NULL, 0.01));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_TIMEOUT);
}

static void *cancel_and_wait(void *arg)
{
    myself = tornado_spawn(wait_for_long, NULL);
    tornado_await(tornado_moment());
    CHECK(tornado_cancel(myself));
    tornado_await(myself);
    return arg;
}

static void block(void *seconds)
{
    for (double begin = tornado_monotonic(); tornado_monotonic() - begin < *(double *)seconds;)
        continue;
}

static void *have_it_block(void *seconds)
{
    tornado_ioloop_add_callback(tornado_ioloop_current(), block, seconds); /* in the turn that tells of the end */
    return NULL;
}

TEST_EACH_POLLER(coroutine_run_sync_that_ended_in_time_is_not_late_when_its_turn_is)
{
    double seconds = 0.04;
    for (int i = 0; i < 3; i++) {
        CHECK(tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), have_it_block, &seconds, 0.02));
        loop_turns(2);
    }
}

static void *retry_for_ever(void *enough)
{
    note("(");
    while (!*(bool *)enough)
        (void)tornado_wait(tornado_sleep(0.001));
    note(")");
    return NULL;
}

TEST_EACH_POLLER(coroutine_run_sync_returns_though_the_function_goes_on_when_it_is_cancelled)
{
    bool enough = false;
    log_keep();
    CHECK(!tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), retry_for_ever, &enough, 0.01));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_TIMEOUT);
    CHECK_STR(traced(), "(");
    enough = true;
    while (coroutines() > 0)
        loop_turns(1);
    CHECK_STR(traced(), ")");
    CHECK(tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), wait_twice, "a", 1e6));
    CHECK_STR(traced(), "a");
}

static void count_turns(void *count)
{
    ++*(int *)count;
    tornado_ioloop_add_callback(tornado_ioloop_current(), count_turns, count);
}

TEST_EACH_POLLER(coroutine_run_sync_with_a_negative_timeout_is_over_in_the_next_turn)
{
    static const double times[] = {-1e-9, -1, -1e300, -INFINITY};
    log_keep();
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        int count = 0;
        tornado_ioloop_add_callback(tornado_ioloop_current(), count_turns, &count);
        CHECK(!tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), wait_for_long, NULL, times[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_TIMEOUT);
        CHECK(count <= 4);
        CHECK_INT(coroutines(), 0);
        close_loop();
    }
    CHECK_STR(log_text, "");
}

TEST(coroutine_run_sync_that_is_cancelled_in_time_says_so)
{
    CHECK(!tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), cancel_and_wait, NULL, 1e6));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_CANCELLED);
}

static void *run_sync_within(void *arg)
{
    CHECK(!tornado_ioloop_run_sync(tornado_ioloop_current(), note_and_return, arg));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    return NULL;
}

TEST(coroutine_run_sync_is_refused_on_a_loop_that_runs_or_is_closed_and_for_no_number)
{
    tornado_ioloop *loop = tornado_ioloop_retain(tornado_ioloop_current());
    run(run_sync_within, "x");
    CHECK(!tornado_ioloop_run_sync_timeout(loop, note_and_return, "x", 0.0 / (test_scaled(1) * 0)));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_INT(coroutines(), 0);
    close_loop();
    CHECK(!tornado_ioloop_run_sync(loop, note_and_return, "x"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    tornado_ioloop_release(loop);
    CHECK_STR(trace, "");
}

static void *stop_and_wait(void *gate)
{
    tornado_ioloop_stop(tornado_ioloop_current());
    return wait_at_the_gate(gate);
}

TEST_EACH_POLLER(coroutine_run_sync_fails_when_the_loop_is_stopped_and_the_function_goes_on_later)
{
    for (int closes = 0; closes < 2; closes++) {
        tornado_future *gate = tornado_future_new();
        CHECK(!tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), stop_and_wait, gate, 1e6));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
        CHECK_STR(traced(), "(");
        CHECK_INT(coroutines(), 1);
        tornado_future_set_result(gate, NULL, NULL);
        if (closes)
            close_loop();
        else
            loop_turns(3);
        CHECK_STR(traced(), closes ? "" : ")");
        tornado_future_release(gate);
    }
}

TEST_EACH_POLLER(coroutine_run_sync_leaves_other_coroutines_waiting)
{
    tornado_future *gate = tornado_future_new();
    tornado_future_release(tornado_spawn(wait_at_the_gate, gate));
    run(wait_twice, "a");
    CHECK_STR(traced(), "(a");
    CHECK_INT(coroutines(), 1);
    tornado_future_set_result(gate, NULL, NULL);
    tornado_future_release(gate);
    run(wait_twice, "b");
    CHECK_STR(traced(), ")b");
    CHECK_INT(coroutines(), 0);
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

static int opened, closed;

static void close_one(void *arg)
{
    (void)arg;
    closed++;
}

static void *work_in_the_arena(void *arg)
{
    opened++;
    tornado_defer(close_one, NULL);
    tornado_arena *arena = tornado_current_arena();
    char *result = arena ? tornado_arena_strdup(arena, arg) : NULL;
    if (!result)
        tornado_raise_error(tornado_last_error());
    tornado_await(tornado_moment());
    return result;
}

static void *wait_for_shared(void *shared)
{
    opened++;
    tornado_defer(close_one, NULL);
    tornado_await(tornado_future_retain(shared));
    tornado_await(tornado_sleep(0));
    return NULL;
}

static void try_work(void *arg)
{
    tornado_scope scope;
    tornado_scope_enter(&scope);
    tornado_await(tornado_spawn(work_in_the_arena, arg));
    tornado_scope_leave(&scope);
    raise_limit(arg);
}

static bool short_of_memory(const tornado_error *error, int or_code)
{
    return is_error(error, TORNADO_ERR_NOMEM) || is_error(error, or_code);
}

static void *all_sorts_of_work(void *arg)
{
    tornado_future *shared = tornado_spawn(work_in_the_arena, arg), *waits[4], *cancelled;
    tornado_defer((tornado_callback)(uintptr_t)tornado_future_release, shared);
    for (int i = 0; i < 4; i++)
        waits[i] = tornado_spawn(wait_for_shared, shared);
    cancelled = tornado_spawn(wait_for_shared, shared);
    tornado_cancel(cancelled); /* before it starts */
    tornado_future_release(cancelled);
    tornado_await(tornado_multi(waits, 4));
    CHECK(short_of_memory(tornado_try(try_work, arg), TORNADO_ERR_LIMIT));
    tornado_future *gate = tornado_future_new();
    cancelled = tornado_spawn(wait_for_shared, gate);
    tornado_wait(tornado_moment());
    tornado_cancel(cancelled);
    tornado_future_release(gate);
    const tornado_error *error = tornado_wait(cancelled);
    CHECK(short_of_memory(error, TORNADO_ERR_CANCELLED));
    tornado_ioloop_spawn_callback(tornado_ioloop_current(), work_in_the_arena, arg);
    return tornado_await(tornado_future_retain(shared));
}

static void spawn_when_memory_is_short(void)
{
    static const struct {
        tornado_coroutine_fn fn;
        bool timeout;
    } works[] = {{all_sorts_of_work, false}, {all_sorts_of_work, true}, {wait_for_long, true}};
    tornado_ioloop *loop = tornado_ioloop_current();
    for (size_t i = 0; loop && i < sizeof works / sizeof works[0]; i++) {
        bool waits = works[i].fn == wait_for_long;
        bool ok = works[i].timeout ? tornado_ioloop_run_sync_timeout(loop, works[i].fn, "text", waits ? 0 : 1e6)
                                   : tornado_ioloop_run_sync(loop, works[i].fn, "text");
        CHECK(ok ? !waits : short_of_memory(tornado_last_error(), waits ? TORNADO_ERR_TIMEOUT : TORNADO_OK));
    }
}

TEST(coroutine_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(spawn_when_memory_is_short);
    CHECK(opened > 0);
    CHECK_INT(closed, opened);
}

/*----------------------------------------------------------------------------
 * Those who give up on several at once, or on one with a timeout.
 *----------------------------------------------------------------------------*/

static tornado_lock *contended;
static tornado_queue *full;
static tornado_future *pending;

static void *lock_among_others(void *arg)
{
    tornado_future *list[] = {tornado_lock_acquire(contended), tornado_future_retain(pending)};
    tornado_await(tornado_multi(list, 2));
    return arg;
}

static void *lock_with_timeout(void *arg)
{
    tornado_await(tornado_with_timeout(100, tornado_lock_acquire(contended)));
    return arg;
}

static void *put_with_timeout(void *arg)
{
    tornado_await(tornado_with_timeout(100, tornado_queue_put(full, arg)));
    return arg;
}

TEST_EACH_POLLER(gen_who_gives_up_on_a_lock_among_others_or_with_a_timeout_stands_in_line_no_longer)
{
    static const tornado_coroutine_fn fns[] = {lock_among_others, lock_with_timeout};
    for (int i = 0; i < 4; i++) { /* cancelled in line, or when granted and not run yet */
        contended = tornado_lock_new();
        pending = tornado_future_new();
        CHECK(tornado_lock_acquire_nowait(contended));
        tornado_future *future = tornado_spawn(fns[i % 2], "x");
        loop_turns(3);
        if (i >= 2)
            tornado_lock_release(contended);
        CHECK(tornado_cancel(future));
        if (i < 2)
            tornado_lock_release(contended);
        CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
        loop_turns(3);
        CHECK(!tornado_lock_is_locked(contended));
        tornado_lock_free(contended);
        tornado_future_release(pending);
    }
}

TEST_EACH_POLLER(gen_who_gives_up_on_a_put_with_a_timeout_puts_nothing)
{
    void *item;
    full = tornado_queue_new(&(tornado_queue_options){.maxsize = 1});
    CHECK(tornado_queue_put_nowait(full, "first"));
    tornado_future *future = tornado_spawn(put_with_timeout, "second");
    loop_turns(3);
    CHECK(tornado_cancel(future));
    CHECK_INT(loop_code(future), TORNADO_ERR_CANCELLED);
    CHECK(tornado_queue_get_nowait(full, &item));
    CHECK_STR(item, "first");
    loop_turns(3);
    CHECK(!tornado_queue_get_nowait(full, &item));
    tornado_queue_free(full);
}

static void count_call(tornado_future *future, void *arg)
{
    CHECK(tornado_future_done(future));
    ++*(int *)arg;
}

TEST_EACH_POLLER(gen_callbacks_keep_several_at_once_and_timeouts_that_nobody_else_holds)
{
    int calls = 0;
    tornado_future *one = tornado_future_new(), *list[] = {tornado_future_retain(one), tornado_sleep(0.001)};
    tornado_future *made[] = {tornado_multi(list, 2), tornado_with_timeout(100, tornado_future_retain(one)),
                              tornado_with_timeout(0.001, tornado_future_retain(one))};
    for (size_t i = 0; i < sizeof made / sizeof made[0]; i++) {
        CHECK(tornado_future_add_done_callback(made[i], count_call, &calls));
        tornado_future_release(made[i]);
    }
    while (calls < 1)
        loop_turns(1);
    CHECK(tornado_future_set_result(one, NULL, NULL));
    tornado_future_release(one);
    while (calls < 3)
        loop_turns(1);
}
