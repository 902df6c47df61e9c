/* Sleeping, several futures as one, timeouts, futures as they finish, adapting callbacks. */
#include "runtime.h"

#include <math.h>

static const tornado_error broken = {.code = TORNADO_ERR_SYSTEM, .sys_errno = 5, .http_status = 502, .message = "it broke"};
static const tornado_error too_late = {.code = TORNADO_ERR_LIMIT, .message = "it broke later"};

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

static void count_one(void *arg)
{
    ++*(int *)arg;
}

static void note_done(tornado_future *future, void *arg)
{
    CHECK(tornado_future_done(future));
    note(arg);
}

/*----------------------------------------------------------------------------
 * Sleeping.
 *----------------------------------------------------------------------------*/

static void *sleep_some(void *arg)
{
    double begin = tornado_monotonic();
    CHECK(tornado_await(tornado_sleep(0.05)) == NULL);
    CHECK(tornado_monotonic() - begin >= 0.05);
    CHECK(tornado_await(tornado_sleep(0)) == NULL);
    CHECK(tornado_await(tornado_sleep(-5)) == NULL);
    CHECK(tornado_await(tornado_sleep(-INFINITY)) == NULL);
    CHECK(is_error(tornado_wait(tornado_sleep(NAN)), TORNADO_ERR_INVALID));
    CHECK(tornado_monotonic() - begin < 5);
    return arg;
}

TEST_EACH_POLLER(gen_sleep_takes_as_long_as_asked)
{
    run(sleep_some, NULL);
}

static void *sleep_longer(void *arg)
{
    tornado_await(tornado_sleep(0.03));
    tornado_await(tornado_moment()); /* callbacks of what was due before */
    return arg;
}

TEST_EACH_POLLER(gen_sleep_without_a_wait_is_a_future_like_any_other)
{
    tornado_future *late = tornado_sleep(0.02), *early = tornado_sleep(0), *never = tornado_sleep(1e300);
    tornado_future_add_done_callback(late, note_done, "b");
    tornado_future_add_done_callback(early, note_done, "a");
    tornado_future_release(late);
    tornado_future_release(early);
    CHECK(!tornado_future_done(never));
    tornado_future_release(never); /* its timer goes with it */
    run(sleep_longer, NULL);
    CHECK_STR(trace, "ab");
}

static void *note_around_a_moment(void *arg)
{
    tornado_ioloop_add_callback(tornado_ioloop_current(), note, "b");
    note("a");
    CHECK(tornado_await(tornado_moment()) == NULL);
    note("c");
    return arg;
}

TEST_EACH_POLLER(gen_moment_lets_what_is_ready_run_once)
{
    run(note_around_a_moment, NULL);
    CHECK_STR(trace, "abc");
}

TEST(gen_sleep_may_be_released_after_its_loop_was_closed)
{
    tornado_future *sleep = tornado_sleep(100), *timeout = tornado_with_timeout(100, tornado_future_new());
    tornado_future *moment = tornado_moment(), *children[] = {tornado_sleep(100), tornado_moment()};
    tornado_future *multi = tornado_multi(children, 1);
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    tornado_future_release(sleep);
    tornado_future_release(moment);
    tornado_future_release(timeout);
    tornado_future_release(multi);
    tornado_future_release(children[1]);
    TEST_MAY_LEAK(); /* who is waited for and who waits hold each other */
}

/*----------------------------------------------------------------------------
 * Several at once.
 *----------------------------------------------------------------------------*/

static void *all_kinds(void *arg)
{
    int value = 1;
    tornado_future *late = tornado_future_new();
    tornado_future *list[] = {tornado_future_resolved(&value), NULL,           integer_of(-5),
                              bytes_of("abc"),                 tornado_sleep(0), tornado_future_retain(late)};
    tornado_future *multi = tornado_multi(list, 6);
    CHECK(!tornado_future_done(multi));
    tornado_future_set_integer(late, 42);
    tornado_future_release(late);
    void **results = tornado_await(multi);
    CHECK(results[0] == &value);
    CHECK(results[1] == NULL);
    CHECK_INT(*(int64_t *)results[2], -5);
    CHECK_STR(((tornado_bytes *)results[3])->data, "abc");
    CHECK(results[4] == NULL);
    CHECK_INT(*(int64_t *)results[5], 42);
    return arg;
}

TEST_EACH_POLLER(gen_multi_gives_all_results_in_order)
{
    run(all_kinds, NULL);
}

static void *of_none(void *arg)
{
    tornado_future *nulls[] = {NULL, NULL};
    CHECK(tornado_wait(tornado_multi(NULL, 0)) == NULL);
    void **results = tornado_await(tornado_multi(nulls, 2));
    CHECK(results[0] == NULL && results[1] == NULL);
    return arg;
}

TEST(gen_multi_of_none_is_done)
{
    run(of_none, NULL);
}

static void *two_at_once(void *arg)
{
    double begin = tornado_monotonic();
    tornado_future *both[] = {tornado_sleep(0.2), tornado_sleep(0.2)};
    tornado_await(tornado_multi(both, 2));
    CHECK(tornado_monotonic() - begin >= 0.2);
    return arg;
}

TEST_EACH_POLLER(gen_multi_waits_for_all)
{
    run(two_at_once, NULL);
}

static void *fail_late(void *arg)
{
    for (int i = 0; i < 5; i++)
        tornado_await(tornado_moment());
    note(arg);
    tornado_raise(TORNADO_ERR_LIMIT, "late %s", (const char *)arg);
}

static void *fail_early(void *arg)
{
    note(arg);
    tornado_raise(TORNADO_ERR_CLOSED, "early %s", (const char *)arg);
}

static void *some_fail(void *arg)
{
    tornado_future *list[] = {tornado_sleep(0), tornado_spawn(fail_late, "a"), tornado_spawn(fail_early, "b"),
                              tornado_future_failed(&broken)};
    const tornado_error *error = tornado_wait(tornado_multi(list, 4));
    CHECK_STR(trace, "ba"); /* all have finished */
    CHECK(is_error(error, TORNADO_ERR_LIMIT)); /* the first of the list, not of time */
    CHECK_STR(error->message, "late a");
    return arg;
}

TEST_EACH_POLLER(gen_multi_fails_with_the_first_of_the_list_and_logs_the_others)
{
    log_keep();
    run(some_fail, NULL);
    CHECK_INT(logged("late a"), 0);
    CHECK_INT(logged("early b"), 1);
    CHECK_INT(logged("it broke"), 1);
}

static void *one_future_twice(void *arg)
{
    int *destroyed = arg; /* the result goes with the coroutine's scope: after this function */
    tornado_future *future = tornado_future_new();
    tornado_future *resolver = tornado_future_retain(future);
    tornado_future *list[] = {future, NULL, future, future};
    tornado_future *multi = tornado_multi(list, 4);
    tornado_future_set_result(resolver, destroyed, count_one);
    tornado_future_release(resolver);
    void **results = tornado_await(multi);
    CHECK(results[0] == destroyed && results[2] == destroyed && results[3] == destroyed);
    CHECK_INT(*destroyed, 0);
    return NULL;
}

TEST_EACH_POLLER(gen_multi_may_hold_one_future_twice)
{
    int destroyed = 0;
    run(one_future_twice, &destroyed);
    CHECK_INT(destroyed, 1);
}

static void *results_live_in_the_scope(void *arg)
{
    int destroyed = 0;
    tornado_scope scope;
    tornado_future *future = tornado_future_new(), *list[] = {tornado_future_retain(future), tornado_moment()};
    tornado_future_set_result(future, &destroyed, count_one);
    tornado_future_release(future);
    tornado_scope_enter(&scope);
    void **results = tornado_await(tornado_multi(list, 2));
    tornado_await(tornado_moment());
    CHECK(results[0] == &destroyed);
    CHECK_INT(destroyed, 0);
    tornado_scope_leave(&scope);
    CHECK_INT(destroyed, 1);
    return arg;
}

TEST_EACH_POLLER(gen_multi_holds_its_results_until_the_scope_ends)
{
    run(results_live_in_the_scope, NULL);
}

static void *of_many(void *arg)
{
    enum { COUNT = 5000 };
    static tornado_future *list[COUNT];
    for (int i = 0; i < COUNT; i++)
        list[i] = i % 2 ? tornado_sleep((i * 7 % 13) / 1000.0) : integer_of(i);
    void **results = tornado_await(tornado_multi(list, COUNT));
    for (int i = 0; i < COUNT; i += 2)
        CHECK_INT(*(int64_t *)results[i], i);
    return arg;
}

TEST_EACH_POLLER(gen_multi_of_thousands)
{
    run(of_many, NULL);
}

static void *multi_of_multi(void *arg)
{
    tornado_future *inner[] = {integer_of(1), tornado_sleep(0.001)};
    tornado_future *outer[] = {tornado_multi(inner, 2), integer_of(2)};
    void **results = tornado_await(tornado_multi(outer, 2));
    CHECK_INT(*(int64_t *)((void **)results[0])[0], 1);
    CHECK_INT(*(int64_t *)results[1], 2);
    return arg;
}

TEST_EACH_POLLER(gen_multi_of_multi)
{
    run(multi_of_multi, NULL);
}

/*----------------------------------------------------------------------------
 * Timeouts.
 *----------------------------------------------------------------------------*/

static void *in_time(void *arg)
{
    int destroyed = 0;
    tornado_scope scope;
    tornado_future *future = tornado_future_new();
    tornado_future *waits = tornado_with_timeout(10, tornado_future_retain(future));
    tornado_future_set_result(future, &destroyed, count_one);
    tornado_future_release(future);
    tornado_scope_enter(&scope);
    CHECK(tornado_await(waits) == &destroyed);
    tornado_await(tornado_moment());
    CHECK_INT(destroyed, 0); /* held by the scope */
    tornado_scope_leave(&scope);
    CHECK_INT(destroyed, 1);
    CHECK_INT(tornado_await_integer(tornado_with_timeout(10, integer_of(5))), 5);
    CHECK_STR(tornado_await_bytes(tornado_with_timeout(10, bytes_of("abc"))).data, "abc");
    CHECK(is_error(tornado_wait(tornado_with_timeout(10, tornado_future_failed(&broken))), TORNADO_ERR_SYSTEM));
    return arg;
}

TEST_EACH_POLLER(gen_with_timeout_in_time_is_done_like_its_future)
{
    run(in_time, NULL);
}

static void *later_kinds(void *arg)
{
    tornado_future *integer = tornado_future_new(), *bytes = tornado_future_new(), *fails = tornado_future_new();
    tornado_future *waits[] = {tornado_with_timeout(10, tornado_future_retain(integer)),
                               tornado_with_timeout(10, tornado_future_retain(bytes)),
                               tornado_with_timeout(10, tornado_future_retain(fails))};
    tornado_future_set_integer(integer, 6);
    tornado_future_set_bytes(bytes, tornado_bytes_of("def"));
    tornado_future_set_error(fails, &broken);
    tornado_future_release(integer);
    tornado_future_release(bytes);
    tornado_future_release(fails);
    CHECK_INT(tornado_await_integer(waits[0]), 6);
    CHECK_STR(tornado_await_bytes(waits[1]).data, "def");
    CHECK(is_error(tornado_wait(waits[2]), TORNADO_ERR_SYSTEM));
    return arg;
}

TEST_EACH_POLLER(gen_with_timeout_passes_on_every_kind_of_result)
{
    log_keep();
    run(later_kinds, NULL);
    CHECK_STR(log_text, "");
}

static void *time_is_up(void *arg)
{
    double begin = tornado_monotonic();
    tornado_future *future = tornado_future_new();
    CHECK(is_error(tornado_wait(tornado_with_timeout(0.05, tornado_future_retain(future))), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_monotonic() - begin >= 0.05);
    CHECK(!tornado_future_done(future)); /* not cancelled */
    CHECK(tornado_future_set_error(future, &too_late));
    tornado_future_release(future);
    CHECK(is_error(tornado_wait(tornado_with_timeout(-1, tornado_sleep(10))), TORNADO_ERR_TIMEOUT));
    CHECK(is_error(tornado_wait(tornado_with_timeout(0, tornado_sleep(10))), TORNADO_ERR_TIMEOUT));
    CHECK(is_error(tornado_wait(tornado_with_timeout(NAN, tornado_sleep(10))), TORNADO_ERR_INVALID));
    for (int i = 0; i < 3; i++)
        tornado_await(tornado_moment());
    return arg;
}

TEST_EACH_POLLER(gen_with_timeout_fails_when_the_time_is_up_and_logs_a_failure_that_comes_later)
{
    log_keep();
    run(time_is_up, NULL);
    CHECK_INT(logged("it broke later"), 1);
}

static void *finish_late(void *arg)
{
    tornado_await(tornado_sleep(0.05));
    note(arg);
    return NULL;
}

static void *goes_on(void *arg)
{
    tornado_future *work = tornado_spawn(finish_late, arg);
    tornado_future_retain(work);
    CHECK(is_error(tornado_wait(tornado_with_timeout(0, work)), TORNADO_ERR_TIMEOUT));
    CHECK_STR(trace, "");
    CHECK(tornado_wait(work) == NULL);
    CHECK_STR(trace, arg);
    return NULL;
}

TEST_EACH_POLLER(gen_with_timeout_does_not_cancel)
{
    run(goes_on, "a");
}

/* As for a queue from which nothing comes any more. */
static void *never_resolved(void *arg)
{
    long live = 0;
    for (int i = 0; i < 200; i++) {
        CHECK(is_error(tornado_wait(tornado_with_timeout(0, tornado_future_new())), TORNADO_ERR_TIMEOUT));
        if (i == 20)
            live = test_live();
    }
    CHECK_INT(test_live(), live);
    return arg;
}

TEST_EACH_POLLER(gen_with_timeout_over_futures_that_are_never_resolved_stays_small)
{
    run(never_resolved, NULL);
}

TEST_EACH_POLLER(gen_with_timeout_that_is_released_goes_with_its_timer)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = tornado_future_new();
    tornado_future *waits = tornado_with_timeout(0.01, tornado_future_retain(future));
    log_keep();
    tornado_future_release(waits);
    tornado_future_set_integer(future, 1);
    tornado_future_release(future);
    tornado_ioloop_call_later(loop, 0.05, stop_loop, NULL);
    CHECK(tornado_ioloop_start(loop));
    CHECK_STR(log_text, "");
}

/*----------------------------------------------------------------------------
 * Named and quiet.
 *----------------------------------------------------------------------------*/

static void *by_name(void *arg)
{
    int value = 1;
    char name[] = "first";
    const tornado_named_future list[] = {{name, tornado_sleep(0)}, {"second", integer_of(2)},
                                         {"twice", integer_of(3)}, {"twice", tornado_future_resolved(&value)},
                                         {"", NULL}};
    tornado_future *multi = tornado_multi_named(list, 5);
    name[0] = '?'; /* it was copied */
    const tornado_named_results *results = tornado_await(multi);
    CHECK(tornado_named_result(results, "first") == NULL);
    CHECK_INT(*(int64_t *)tornado_named_result(results, "second"), 2);
    CHECK(tornado_named_result(results, "twice") == &value);
    CHECK(tornado_named_result(results, "") == NULL);
    CHECK(tornado_named_result(results, "none") == NULL);
    results = tornado_await(tornado_multi_named(NULL, 0));
    CHECK(tornado_named_result(results, "none") == NULL);
    const tornado_named_future fails[] = {{"a", tornado_moment()}, {"b", tornado_future_failed(&broken)}};
    CHECK(is_error(tornado_wait(tornado_multi_named(fails, 2)), TORNADO_ERR_SYSTEM));
    return arg;
}

TEST_EACH_POLLER(gen_multi_named_gives_results_by_name)
{
    run(by_name, NULL);
}

static void *fail_with(void *error)
{
    tornado_await(tornado_moment());
    tornado_raise_error(error);
}

static void *quiet_in_all_ways(void *arg)
{
    const int system[] = {TORNADO_ERR_TIMEOUT, TORNADO_ERR_SYSTEM, 0}, limit[] = {TORNADO_ERR_LIMIT, 0}, none[] = {0};
    struct {
        const int *quiet;
        int logged;
    } cases[] = {{system, 0}, {limit, 1}, {none, 1}, {NULL, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        log_keep();
        tornado_future *list[] = {tornado_future_failed(&too_late),
                                  tornado_spawn(fail_with, (void *)(uintptr_t)&broken)};
        CHECK(is_error(tornado_wait(tornado_multi_quiet(list, 2, cases[i].quiet)), TORNADO_ERR_LIMIT));
        CHECK_INT(logged("it broke"), cases[i].logged);
        log_keep();
        tornado_future *late = tornado_future_new();
        CHECK(is_error(tornado_wait(tornado_with_timeout_quiet(0, tornado_future_retain(late), cases[i].quiet)),
                       TORNADO_ERR_TIMEOUT));
        tornado_future_set_error(late, &broken);
        tornado_future_release(late);
        tornado_await(tornado_moment());
        tornado_await(tornado_moment());
        CHECK_INT(logged("it broke"), cases[i].logged);
    }
    return arg;
}

TEST_EACH_POLLER(gen_quiet_errors_are_not_logged)
{
    run(quiet_in_all_ways, NULL);
}

/*----------------------------------------------------------------------------
 * One after the other, as they finish.
 *----------------------------------------------------------------------------*/

static void *as_they_finish(void *arg)
{
    tornado_future *late = tornado_future_new(), *later = tornado_future_new();
    tornado_future *list[] = {tornado_future_retain(later), tornado_future_failed(&broken), NULL,
                              tornado_future_retain(late), integer_of(5), bytes_of("abc")};
    tornado_wait_iterator *each = tornado_wait_iterator_new(list, 6);
    CHECK(tornado_wait_iterator_current_index(each) == SIZE_MAX);
    CHECK(tornado_wait_iterator_current_future(each) == NULL);
    CHECK(is_error(tornado_wait(tornado_wait_iterator_next(each)), TORNADO_ERR_SYSTEM));
    CHECK_INT(tornado_wait_iterator_current_index(each), 1);
    CHECK(tornado_wait_iterator_current_future(each) == list[1]);
    CHECK(tornado_await(tornado_wait_iterator_next(each)) == NULL);
    CHECK_INT(tornado_wait_iterator_current_index(each), 2);
    CHECK_INT(tornado_await_integer(tornado_wait_iterator_next(each)), 5);
    CHECK_INT(tornado_wait_iterator_current_index(each), 4);
    CHECK_STR(tornado_await_bytes(tornado_wait_iterator_next(each)).data, "abc");
    tornado_future *next = tornado_wait_iterator_next(each), *same = tornado_wait_iterator_next(each);
    CHECK(next == same && !tornado_future_done(next));
    CHECK_INT(tornado_wait_iterator_current_index(each), 5);
    tornado_future_set_integer(late, 6);
    tornado_future_set_integer(later, 7);
    CHECK_INT(tornado_await_integer(next), 6);
    CHECK_INT(tornado_await_integer(same), 6);
    CHECK_INT(tornado_wait_iterator_current_index(each), 3);
    CHECK(tornado_wait_iterator_current_future(each) == late);
    CHECK(!tornado_wait_iterator_done(each));
    CHECK_INT(tornado_await_integer(tornado_wait_iterator_next(each)), 7);
    CHECK_INT(tornado_wait_iterator_current_index(each), 0);
    CHECK(tornado_wait_iterator_done(each));
    CHECK(is_error(tornado_wait(tornado_wait_iterator_next(each)), TORNADO_ERR_STATE));
    tornado_future_release(late);
    tornado_future_release(later);
    return arg;
}

TEST_EACH_POLLER(gen_wait_iterator_gives_each_as_it_finishes)
{
    run(as_they_finish, NULL);
}

/* Resolves three futures, the first of them last. */
static void *resolve_in_turn(void *arg)
{
    tornado_future **list = arg;
    for (int i = 1; i <= 3; i++) {
        tornado_await(tornado_sleep(0.001));
        tornado_future_set_integer(list[i % 3], i);
        tornado_future_release(list[i % 3]);
    }
    return NULL;
}

static void *wait_for_each(void *arg)
{
    tornado_future *list[3];
    for (int i = 0; i < 3; i++)
        list[i] = tornado_future_retain(tornado_future_new());
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), resolve_in_turn, list));
    tornado_wait_iterator *each = tornado_wait_iterator_new(list, 3);
    while (!tornado_wait_iterator_done(each)) {
        CHECK(tornado_wait(tornado_wait_iterator_next(each)) == NULL);
        note(&"0\0001\0002"[2 * tornado_wait_iterator_current_index(each)]);
    }
    CHECK_STR(trace, "120");
    return arg;
}

TEST_EACH_POLLER(gen_wait_iterator_waits_for_the_next)
{
    run(wait_for_each, NULL);
}

static void *end_early(void *arg)
{
    tornado_scope scope;
    tornado_future *pending = tornado_future_new(), *twice = tornado_future_new();
    tornado_future *list[] = {tornado_future_retain(pending), tornado_future_retain(twice), twice, tornado_sleep(100)};
    tornado_scope_enter(&scope);
    tornado_wait_iterator *each = tornado_wait_iterator_new(list, 4);
    tornado_future *next = tornado_wait_iterator_next(each);
    tornado_future_set_result(twice, arg, count_one); /* its tasks are scheduled when the scope ends */
    tornado_future_release(twice);
    CHECK_INT(*(int *)arg, 0);
    tornado_scope_leave(&scope);
    CHECK_INT(*(int *)arg, 1);
    CHECK(is_error(tornado_wait(next), TORNADO_ERR_CLOSED));
    tornado_future_set_integer(pending, 1);
    tornado_future_release(pending);
    tornado_await(tornado_moment());
    return NULL;
}

TEST_EACH_POLLER(gen_wait_iterator_goes_with_its_scope)
{
    int destroyed = 0;
    log_keep();
    run(end_early, &destroyed);
    CHECK_STR(log_text, "");
}

static void *iterate_with_timeouts(void *arg)
{
    for (int blocked = 0; blocked < 2; blocked++) {
        tornado_future *late = tornado_future_new(), *later = tornado_future_new();
        tornado_future *list[] = {tornado_future_retain(late), tornado_future_retain(later)};
        tornado_wait_iterator *each = tornado_wait_iterator_new(list, 2);
        for (int i = 0; i < 2; i++)
            CHECK(is_error(tornado_wait(tornado_with_timeout(0.001, tornado_wait_iterator_next(each))),
                           TORNADO_ERR_TIMEOUT));
        tornado_future_set_integer(late, 6);
        tornado_future_release(late);
        for (int i = 0; i < 2 && !blocked; i++)
            tornado_await(tornado_moment());
        CHECK(!tornado_wait_iterator_done(each));
        CHECK_INT(tornado_await_integer(tornado_wait_iterator_next(each)), 6);
        CHECK_INT(tornado_wait_iterator_current_index(each), 0);
        CHECK(is_error(tornado_wait(tornado_with_timeout(0.001, tornado_wait_iterator_next(each))),
                       TORNADO_ERR_TIMEOUT));
        tornado_future_set_integer(later, 7);
        tornado_future_release(later);
        CHECK_INT(tornado_await_integer(tornado_with_timeout(1e6, tornado_wait_iterator_next(each))), 7);
        CHECK(tornado_wait_iterator_done(each));
    }
    return arg;
}

TEST_EACH_POLLER(gen_wait_iterator_loses_nothing_to_a_timeout)
{
    log_keep();
    run(iterate_with_timeouts, NULL);
    CHECK_STR(log_text, "");
}

static void *cancelled_iteration(void *arg)
{
    tornado_future *list[] = {tornado_sleep(100), tornado_future_retain(arg)};
    tornado_wait_iterator *each = tornado_wait_iterator_new(list, 2);
    while (!tornado_wait_iterator_done(each))
        tornado_await(tornado_wait_iterator_next(each));
    FAIL("not cancelled");
    return NULL;
}

static void *cancel_iteration(void *arg)
{
    tornado_future *never = tornado_future_new(), *iterates = tornado_spawn(cancelled_iteration, never);
    tornado_await(tornado_moment());
    tornado_await(tornado_moment());
    CHECK(tornado_cancel(iterates));
    CHECK(is_error(tornado_wait(iterates), TORNADO_ERR_CANCELLED));
    tornado_future_set_integer(never, 1);
    tornado_future_release(never);
    return arg;
}

TEST_EACH_POLLER(gen_wait_iterator_may_be_left_by_cancelling)
{
    run(cancel_iteration, NULL);
}

TEST(gen_wait_iterator_needs_a_scope)
{
    tornado_future *list[] = {tornado_future_new()};
    CHECK(tornado_wait_iterator_new(list, 1) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
}

/*----------------------------------------------------------------------------
 * Adapting.
 *----------------------------------------------------------------------------*/

static void *chain_all(void *arg)
{
    int destroyed = 0;
    tornado_future *from[4], *to[4];
    for (int i = 0; i < 4; i++) {
        from[i] = tornado_future_new();
        to[i] = tornado_future_new();
        CHECK(tornado_chain_future(from[i], to[i]));
    }
    tornado_future_set_result(from[0], &destroyed, count_one);
    tornado_future_set_error(from[1], &broken);
    tornado_future_set_integer(to[2], 3); /* it is done first, so it stays what it is */
    tornado_future_set_integer(from[2], 4);
    for (int i = 0; i < 4; i++) /* the last goes without being done */
        tornado_future_release(from[i]);
    CHECK_INT(tornado_await_integer(to[2]), 3);
    CHECK(is_error(tornado_wait(to[1]), TORNADO_ERR_SYSTEM));
    tornado_scope scope;
    tornado_scope_enter(&scope);
    CHECK(tornado_await(to[0]) == &destroyed);
    tornado_await(tornado_moment());
    CHECK_INT(destroyed, 0);
    tornado_scope_leave(&scope);
    CHECK_INT(destroyed, 1);
    CHECK(!tornado_future_done(to[3]));
    tornado_future_release(to[3]);
    return arg;
}

TEST_EACH_POLLER(gen_chain_future_passes_the_outcome_on)
{
    log_keep();
    run(chain_all, NULL);
    CHECK_STR(log_text, "");
}

static void *be_late_again_and_again(void *shared)
{
    long live = 0;
    for (int i = 0; i < 1000; i++) {
        const tornado_error *error = tornado_wait(tornado_with_timeout(0, tornado_future_retain(shared)));
        CHECK(is_error(error, TORNADO_ERR_TIMEOUT));
        if (i == 10)
            live = test_live();
    }
    CHECK_INT(test_live(), live);
    return NULL;
}

TEST_EACH_POLLER(gen_timeouts_over_what_stays_pending_leave_nothing_behind)
{
    tornado_future *shared = tornado_future_new();
    run(be_late_again_and_again, shared);
    CHECK(!tornado_future_done(shared));
    tornado_future_release(shared);
}

TEST(gen_chain_of_a_future_that_only_a_callback_holds_lets_go_when_the_loop_is_closed)
{
    tornado_future *from = tornado_sleep(100), *to = tornado_future_new();
    CHECK(tornado_future_add_done_callback(from, note_done, "never"));
    CHECK(tornado_chain_future(from, to));
    tornado_future_release(from);
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    CHECK(!tornado_future_done(to));
    CHECK_STR(trace, "");
    tornado_future_release(to);
}

static void *release_a_long_chain(void *arg)
{
    tornado_future *last = tornado_future_new();
    tornado_future_set_result(last, arg, count_one);
    for (int i = 0; i < 20000; i++) {
        tornado_future *next = tornado_future_new();
        CHECK(tornado_chain_future(last, next));
        while (!tornado_future_done(next))
            tornado_await(tornado_moment());
        CHECK(tornado_future_result(next) == arg);
        tornado_future_release(last);
        last = next;
    }
    CHECK_INT(*(int *)arg, 0);
    tornado_future_release(last);
    CHECK_INT(*(int *)arg, 1);
    return NULL;
}

TEST(gen_chain_of_thousands_needs_no_stack_when_it_goes)
{
    int destroyed = 0;
    run(release_a_long_chain, &destroyed);
}

/* An interface that calls back. */
static void start_callback(tornado_future *task, void *arg)
{
    note(arg);
    if (!tornado_ioloop_add_callback(tornado_ioloop_current(), tornado_task_done, task))
        tornado_raise_error(tornado_last_error());
}

static void start_at_once(tornado_future *task, void *arg)
{
    tornado_future_set_integer(task, *(int *)arg);
    tornado_future_release(task);
}

static void cannot_start(tornado_future *task, void *arg)
{
    (void)task;
    (void)arg;
    tornado_raise_error(&broken);
}

static void *task_of_each_kind(void *arg)
{
    int five = 5;
    CHECK(tornado_await(tornado_task(start_callback, "started")) == NULL);
    CHECK_STR(trace, "started");
    CHECK_INT(tornado_await_integer(tornado_task(start_at_once, &five)), 5);
    CHECK(is_error(tornado_wait(tornado_task(cannot_start, NULL)), TORNADO_ERR_SYSTEM));
    return arg;
}

TEST_EACH_POLLER(gen_task_is_done_when_a_callback_says_so)
{
    run(task_of_each_kind, NULL);
}

/* What a callback with several arguments is told. */
typedef struct answer {
    int status;
    const char *text;
    tornado_future *task;
} answer;

static void on_answer(int status, const char *text, void *arg)
{
    answer *told = arg;
    tornado_future *task = told->task;
    *told = (answer){status, text, NULL};
    tornado_future_set_result(task, told, free);
    tornado_future_release(task);
}

static void call_back_with_two(void *arg)
{
    on_answer(200, "fine", arg);
}

static void ask(tornado_future *task, void *arg)
{
    answer *told = malloc(sizeof *told);
    *told = (answer){0, arg, task};
    tornado_ioloop_add_callback(tornado_ioloop_current(), call_back_with_two, told);
}

static void *task_of_two_arguments(void *arg)
{
    answer *told = tornado_await(tornado_task(ask, "question"));
    CHECK_INT(told->status, 200);
    CHECK_STR(told->text, "fine");
    return arg;
}

TEST(gen_task_gives_several_arguments_in_a_struct)
{
    run(task_of_two_arguments, NULL);
}

static void *maybe(void *arg)
{
    CHECK_INT(tornado_await_integer(tornado_maybe_future(integer_of(1))), 1);
    CHECK(tornado_await(tornado_maybe_future(NULL)) == NULL);
    return arg;
}

TEST(gen_maybe_future_is_done_without_a_future)
{
    run(maybe, NULL);
}

TEST(gen_until_is_the_time_that_is_left)
{
    double now = tornado_ioloop_time(tornado_ioloop_current()), left = tornado_until(now + 1000);
    CHECK(left <= 1000 && left > 900);
    CHECK(tornado_until(now) <= 0);
    CHECK(tornado_until(INFINITY) > 1e300);
}

static void *wait_for_less_than_nothing(void *arg)
{
    static const double times[] = {-1e-9, -1, -1e300, -INFINITY};
    tornado_event *event = tornado_event_new();
    tornado_condition *condition = tornado_condition_new();
    tornado_semaphore *semaphore = tornado_semaphore_new(0);
    tornado_lock *lock = tornado_lock_new();
    tornado_queue *empty = tornado_queue_new(NULL), *full = tornado_queue_new(&(tornado_queue_options){.maxsize = 1});
    CHECK(tornado_lock_acquire_nowait(lock) && tornado_queue_put_nowait(full, arg));
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        double time = times[i];
        tornado_future *pending = tornado_future_new();
        tornado_future *waits[] = {tornado_sleep(time), tornado_condition_wait_timeout(condition, time),
                                   tornado_with_timeout(time, tornado_future_retain(pending)),
                                   tornado_event_wait_timeout(event, time),
                                   tornado_semaphore_acquire_timeout(semaphore, time),
                                   tornado_lock_acquire_timeout(lock, time), tornado_queue_get_timeout(empty, time),
                                   tornado_queue_put_timeout(full, arg, time), tornado_queue_join_timeout(full, time)};
        for (size_t n = 0; n < sizeof waits / sizeof waits[0]; n++)
            CHECK(!tornado_future_done(waits[n]));
        tornado_await(tornado_moment());
        for (size_t n = 0; n < sizeof waits / sizeof waits[0]; n++) {
            CHECK(tornado_future_done(waits[n]));
            const tornado_error *error = tornado_wait(waits[n]);
            CHECK(n < 2 ? error == NULL : is_error(error, TORNADO_ERR_TIMEOUT));
        }
        tornado_future_set_result(pending, NULL, NULL);
        tornado_future_release(pending);
    }
    tornado_queue_free(empty);
    tornado_queue_free(full);
    tornado_lock_free(lock);
    tornado_semaphore_free(semaphore);
    tornado_condition_free(condition);
    tornado_event_free(event);
    return NULL;
}

TEST_EACH_POLLER(gen_negative_timeouts_are_over_in_the_next_turn)
{
    run(wait_for_less_than_nothing, "x");
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

static int made, destroyed_of_made;

static void *some_of_all(void *arg)
{
    tornado_future *future = tornado_future_new(), *pending = tornado_future_new();
    tornado_future *list[] = {tornado_sleep(0), tornado_future_retain(future), future, future,
                              tornado_moment(), NULL, tornado_with_timeout(0, tornado_future_retain(pending))};
    list[3] = list[2] = list[1];
    tornado_future *multi = tornado_multi(list, 7);
    made++;
    tornado_future_set_result(future, &destroyed_of_made, count_one);
    tornado_future_release(future);
    const tornado_error *error = tornado_wait(multi);
    CHECK(is_error(error, TORNADO_ERR_TIMEOUT) || is_error(error, TORNADO_ERR_NOMEM));
    tornado_future_set_integer(pending, 1);
    tornado_future_release(pending);
    error = tornado_wait(tornado_with_timeout(10, tornado_sleep(0)));
    CHECK(!error || error->code == TORNADO_ERR_NOMEM);
    tornado_future *chained = tornado_future_new(), *children[] = {tornado_sleep(0), tornado_future_retain(chained)};
    tornado_wait_iterator *each = tornado_wait_iterator_new(children, 2);
    const tornado_named_future named[] = {{"a", tornado_task(start_callback, "")}, {"b", tornado_moment()}};
    multi = tornado_multi_named(named, 2);
    if (!tornado_chain_future(multi, chained) && !tornado_future_done(chained))
        tornado_future_set_error(chained, tornado_last_error());
    tornado_future_release(chained);
    for (int i = 0; each && i < 2; i++) {
        error = tornado_wait(tornado_wait_iterator_next(each));
        CHECK(!error || error->code == TORNADO_ERR_NOMEM);
    }
    (void)tornado_wait(multi);
    tornado_await(tornado_moment());
    return arg;
}

static void gen_when_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    made = destroyed_of_made = 0;
    if (loop && !tornado_ioloop_run_sync(loop, some_of_all, NULL))
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK_INT(destroyed_of_made, made);
}

TEST(gen_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(gen_when_memory_is_short);
}

static void *sleep_within_a_limit(void *arg)
{
    tornado_future *limited = tornado_with_timeout(0.02, tornado_sleep(0.01));
    double begin = tornado_monotonic();
    while (tornado_monotonic() - begin < 0.05)
        continue; /* blocks the loop until both are over */
    CHECK(tornado_wait(limited) == NULL);
    return arg;
}

TEST_EACH_POLLER(gen_with_timeout_does_not_fail_what_was_done_in_time_while_the_loop_was_blocked)
{
    run(sleep_within_a_limit, NULL);
}
