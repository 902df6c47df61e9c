/* Futures by themselves: resolving, results, callbacks, references. Waiting for them is in test_coroutine.c. */
#include "runtime.h"

static const tornado_error broken = {.code = TORNADO_ERR_SYSTEM, .sys_errno = 5, .http_status = 502, .message = "it broke"};

static void count_one(void *arg)
{
    ++*(int *)arg;
}

static void note_done(tornado_future *future, void *arg)
{
    CHECK(tornado_future_done(future));
    note(arg);
}

/* Runs the loop until what is queued now, and what that queues in turn, has run. */
static void run_turns(int turns)
{
    for (int i = 0; i < turns; i++) {
        tornado_ioloop_add_callback(tornado_ioloop_current(), stop_loop, NULL);
        CHECK(tornado_ioloop_start(tornado_ioloop_current()));
    }
}

TEST(future_new_is_pending_and_has_no_result)
{
    tornado_future *future = tornado_future_new();
    CHECK(!tornado_future_done(future));
    CHECK(tornado_future_result(future) == NULL);
    CHECK_INT(tornado_future_integer(future), 0);
    CHECK_INT(tornado_future_bytes(future).len, 0);
    CHECK(tornado_future_error(future) == NULL);
    tornado_future_release(future);
}

TEST(future_has_a_result_of_one_kind)
{
    int value = 7;
    tornado_future *pointer = tornado_future_new(), *integer = tornado_future_new(), *bytes = tornado_future_new();
    CHECK(tornado_future_set_result(pointer, &value, NULL));
    CHECK(tornado_future_set_integer(integer, INT64_MIN));
    CHECK(tornado_future_set_bytes(bytes, tornado_bytes_of("abc")));
    CHECK(tornado_future_done(pointer) && tornado_future_done(integer) && tornado_future_done(bytes));
    CHECK(tornado_future_result(pointer) == &value);
    CHECK_INT(tornado_future_integer(integer), INT64_MIN);
    CHECK_STR(tornado_future_bytes(bytes).data, "abc");
    CHECK_INT(tornado_future_integer(pointer), 0);
    CHECK_INT(tornado_future_bytes(pointer).len, 0);
    CHECK(tornado_future_result(integer) == NULL);
    CHECK(tornado_future_result(bytes) == NULL);
    CHECK(tornado_future_bytes(integer).data == NULL);
    CHECK(tornado_future_error(pointer) == NULL);
    tornado_future_release(pointer);
    tornado_future_release(integer);
    tornado_future_release(bytes);
}

TEST(future_failed_has_an_error_and_no_result)
{
    tornado_future *future = tornado_future_new();
    CHECK(tornado_future_set_error(future, &broken));
    CHECK(tornado_future_done(future));
    const tornado_error *error = tornado_future_error(future);
    CHECK(error != &broken);
    CHECK(is_error(error, TORNADO_ERR_SYSTEM));
    CHECK_INT(error->sys_errno, 5);
    CHECK_INT(error->http_status, 502);
    CHECK_STR(error->message, "it broke");
    CHECK(tornado_future_result(future) == NULL);
    tornado_future_release(future);
}

TEST(future_may_be_made_resolved_or_failed)
{
    int value = 7;
    tornado_future *resolved = tornado_future_resolved(&value), *failed = tornado_future_failed(&broken);
    CHECK(tornado_future_done(resolved) && tornado_future_done(failed));
    CHECK(tornado_future_result(resolved) == &value);
    CHECK_STR(tornado_future_error(failed)->message, "it broke");
    tornado_future_release(resolved);
    tornado_future_release(failed);
}

TEST(future_may_fail_with_the_last_error)
{
    CHECK(!tornado_ioloop_configure("pigeon"));
    tornado_future *future = tornado_future_failed(tornado_last_error());
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_INVALID));
    tornado_future_release(future);
}

TEST(future_release_of_null_is_harmless)
{
    tornado_future_release(NULL);
}

TEST(future_lives_until_its_last_reference_goes)
{
    int destroyed = 0;
    tornado_future *future = tornado_future_new();
    CHECK(tornado_future_retain(future) == future);
    CHECK(tornado_future_set_result(future, &destroyed, count_one));
    tornado_future_release(future);
    CHECK_INT(destroyed, 0);
    CHECK(tornado_future_result(future) == &destroyed);
    tornado_future_release(future);
    CHECK_INT(destroyed, 1);
}

TEST(future_resolved_twice_refuses_logs_and_keeps_the_first_result)
{
    int first = 0, second = 0;
    tornado_future *future = tornado_future_new();
    log_keep();
    CHECK(tornado_future_set_result(future, &first, count_one));
    CHECK(!tornado_future_set_result(future, &second, count_one));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_INT(second, 1); /* owned all the same */
    CHECK(!tornado_future_set_result(future, &second, NULL));
    CHECK(!tornado_future_set_integer(future, 3));
    CHECK(!tornado_future_set_bytes(future, tornado_bytes_of("x")));
    CHECK(!tornado_future_set_error(future, &broken));
    CHECK_INT(logged("resolved twice"), 5);
    CHECK(tornado_future_error(future) == NULL);
    CHECK(tornado_future_result(future) == &first);
    tornado_future_release(future);
    CHECK_INT(first, 1);
}

TEST(future_failure_nobody_looked_at_is_logged_when_it_goes)
{
    log_keep();
    tornado_future *future = tornado_future_new();
    tornado_future_set_error(future, &broken);
    CHECK_INT(logged("it broke"), 0);
    tornado_future_release(future);
    CHECK_INT(logged("it broke"), 1);
    CHECK_INT(logged("TORNADO_ERR_SYSTEM"), 1);

    future = tornado_future_failed(&broken);
    CHECK(tornado_future_error(future) != NULL);
    tornado_future_release(future);
    CHECK_INT(logged("it broke"), 1); /* somebody looked at that */
}

TEST(future_failure_goes_to_standard_error)
{
    int ends[2], saved = dup(2);
    char text[1000];
    CHECK(pipe(ends) == 0 && dup2(ends[1], 2) == 2);
    tornado_future_release(tornado_future_failed(&broken));
    CHECK(dup2(saved, 2) == 2);
    close(ends[1]);
    ssize_t len = read(ends[0], text, sizeof text - 1);
    CHECK(len > 0);
    text[len] = '\0';
    CHECK(strstr(text, "it broke") != NULL);
    CHECK_INT(text[len - 1], '\n');
    close(ends[0]);
    close(saved);
}

TEST_EACH_POLLER(future_callbacks_run_in_order_in_a_turn_after_it_is_done)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = tornado_future_new();
    CHECK(tornado_future_add_done_callback(future, note_done, "a"));
    CHECK(tornado_ioloop_add_future(loop, future, note_done, "b"));
    CHECK(tornado_future_add_done_callback(future, note_done, "c"));
    run_turns(2);
    CHECK_STR(trace, "");
    CHECK(tornado_future_set_result(future, NULL, NULL));
    CHECK(tornado_future_add_done_callback(future, note_done, "d"));
    CHECK_STR(trace, ""); /* never from inside the call */
    run_turns(1);
    CHECK_STR(trace, "abcd");
    tornado_future_release(future);
}

static void add_and_note(tornado_future *future, void *arg)
{
    note("1");
    CHECK(tornado_future_add_done_callback(future, note_done, arg));
}

TEST_EACH_POLLER(future_callback_may_add_another)
{
    tornado_future *future = tornado_future_new();
    CHECK(tornado_future_add_done_callback(future, add_and_note, "3"));
    CHECK(tornado_future_add_done_callback(future, note_done, "2"));
    tornado_future_set_integer(future, 1);
    run_turns(1);
    CHECK_STR(trace, "12");
    run_turns(1);
    CHECK_STR(trace, "123");
    tornado_future_release(future);
}

TEST_EACH_POLLER(future_is_held_until_its_callbacks_have_run)
{
    int destroyed = 0;
    tornado_future *future = tornado_future_new();
    tornado_future_add_done_callback(future, note_done, "a");
    tornado_future_add_done_callback(future, note_done, "b");
    tornado_future_set_result(future, &destroyed, count_one);
    tornado_future_release(future);
    CHECK_INT(destroyed, 0);
    run_turns(1);
    CHECK_STR(trace, "ab");
    CHECK_INT(destroyed, 1);
}

static void raise_as_callback(tornado_future *future, void *arg)
{
    (void)future;
    tornado_raise(TORNADO_ERR_LIMIT, "%s", (const char *)arg);
}

TEST_EACH_POLLER(future_callback_that_raises_is_logged_and_the_others_run)
{
    int destroyed = 0;
    log_keep();
    tornado_future *future = tornado_future_new();
    tornado_future_add_done_callback(future, raise_as_callback, "on purpose");
    tornado_future_add_done_callback(future, note_done, "a");
    tornado_future_set_result(future, &destroyed, count_one);
    tornado_future_release(future);
    run_turns(2);
    CHECK_INT(logged("on purpose"), 1);
    CHECK_STR(trace, "a");
    CHECK_INT(destroyed, 1);
}

static void look_at_the_error(tornado_future *future, void *arg)
{
    CHECK(tornado_future_error(future) != NULL);
    note(arg);
}

TEST_EACH_POLLER(future_failure_a_callback_looked_at_is_not_logged)
{
    log_keep();
    tornado_future *future = tornado_future_new();
    tornado_future_add_done_callback(future, look_at_the_error, "a");
    tornado_future_set_error(future, &broken);
    tornado_future_release(future);
    run_turns(1);
    CHECK_STR(trace, "a");
    CHECK_INT(logged("it broke"), 0);
}

TEST_EACH_POLLER(future_callbacks_that_never_ran_leave_nothing_behind_when_the_loop_closes)
{
    int destroyed = 0;
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = tornado_future_new();
    tornado_future_add_done_callback(future, note_done, "a");
    tornado_future_set_result(future, &destroyed, count_one);
    tornado_future_release(future);
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_INT(destroyed, 1);
    CHECK_STR(trace, "");
}

TEST_EACH_POLLER(future_may_be_resolved_and_released_after_its_loop_was_closed)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = tornado_future_new(), *sleep = tornado_sleep(100);
    tornado_future_add_done_callback(future, note_done, "a");
    CHECK(tornado_ioloop_close(loop, false));
    CHECK(tornado_future_set_integer(future, 1));
    tornado_future_release(future);
    tornado_future_release(sleep);
    CHECK_STR(trace, "");
}

TEST_EACH_POLLER(future_callbacks_are_refused_on_a_loop_that_is_closed)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = tornado_future_new();
    CHECK(tornado_ioloop_close(loop, false)); /* the future keeps the struct */
    CHECK(!tornado_ioloop_add_future(loop, future, note_done, "a"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    tornado_future_release(future);
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

TEST(future_that_memory_is_too_short_for_has_failed_and_may_be_used_like_any_other)
{
    int destroyed = 0;
    tornado_ioloop_current();
    log_keep();
    test_fail_alloc(1);
    tornado_future *future = tornado_future_new();
    CHECK(tornado_future_done(future));
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_NOMEM));
    CHECK(!tornado_future_set_result(future, &destroyed, count_one));
    CHECK_INT(destroyed, 1);
    CHECK(!tornado_future_set_integer(future, 1));
    CHECK(!tornado_future_set_error(future, &broken));
    CHECK(tornado_future_retain(future) == future);
    for (int i = 0; i < 5; i++) /* immortal */
        tornado_future_release(future);
    CHECK(tornado_future_add_done_callback(future, note_done, "a"));
    run_turns(1);
    CHECK_STR(trace, "a");
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_NOMEM));
    CHECK_STR(log_text, "");
}

TEST(future_fails_with_nomem_when_there_is_none_for_its_error)
{
    tornado_future *future = tornado_future_new();
    test_fail_alloc(1);
    CHECK(tornado_future_set_error(future, &broken));
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_NOMEM));
    tornado_future_release(future);
}

TEST(future_callback_is_refused_when_memory_is_short)
{
    tornado_future *future = tornado_future_new();
    test_fail_alloc(1);
    CHECK(!tornado_future_add_done_callback(future, note_done, "a"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    tornado_future_set_integer(future, 1);
    run_turns(1);
    CHECK_STR(trace, "");
    tornado_future_release(future);
}

static void resolve_some(void)
{
    static int made, destroyed;
    tornado_ioloop *loop = tornado_ioloop_current();
    made = destroyed = 0;
    tornado_future *one = tornado_future_new(), *two = tornado_future_failed(&broken);
    tornado_future *three = tornado_future_resolved(&made);
    tornado_future_add_done_callback(one, note_done, "a");
    tornado_future_add_done_callback(two, look_at_the_error, "b");
    tornado_future_add_done_callback(three, note_done, "c");
    tornado_future_set_result(one, &destroyed, count_one);
    tornado_future_release(one);
    tornado_future_release(two);
    tornado_future_release(three);
    if (loop && tornado_ioloop_add_callback(loop, stop_loop, NULL))
        tornado_ioloop_start(loop);
    else if ((loop = tornado_ioloop_current()) != NULL) /* it may be the second attempt that made one */
        tornado_ioloop_close(loop, false);
    CHECK_INT(destroyed, 1);
}

TEST(future_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(resolve_some);
}
