/* Conditions, events, semaphores and locks: who is woken, in which order, and what becomes of a grant that nobody is
   there to take. */
#include "runtime.h"

#include <limits.h>
#include <math.h>

/* Lets everything that is ready run `turns` times. */
static void let_run(int turns)
{
    while (turns-- > 0)
        tornado_await(tornado_moment());
}

/* A coroutine of each letter in turn; the futures of all as one. */
static tornado_future *spawn_letters(tornado_coroutine_fn fn, const char *letters)
{
    tornado_future *list[16];
    size_t count = strlen(letters);
    CHECK(count <= 16);
    for (size_t i = 0; i < count; i++)
        list[i] = tornado_spawn(fn, (void *)(uintptr_t)&letters[i]);
    return tornado_multi(list, count);
}

static void note_letter(const void *letter)
{
    char text[2] = {*(const char *)letter, '\0'};
    note(text);
}

static void note_when_done(tornado_future *future, void *arg)
{
    CHECK(tornado_future_done(future));
    note(arg);
}

/* Those that the coroutines of a test share. */
static tornado_condition *condition;
static tornado_event *event;
static tornado_semaphore *semaphore;
static tornado_lock *lock;

/*----------------------------------------------------------------------------
 * The examples of Tornado's manual print what they print there.
 *----------------------------------------------------------------------------*/

static void *condition_waiter(void *arg)
{
    note("I'll wait right here\n");
    tornado_await(tornado_condition_wait(condition));
    note("I'm done waiting\n");
    return arg;
}

static void *condition_notifier(void *arg)
{
    note("About to notify\n");
    tornado_condition_notify(condition, 1);
    note("Done notifying\n");
    return arg;
}

static void *run_two(void *arg)
{
    tornado_coroutine_fn *fns = arg;
    tornado_future *both[] = {tornado_spawn(fns[0], NULL), tornado_spawn(fns[1], NULL)};
    tornado_await(tornado_multi(both, 2));
    return NULL;
}

TEST_EACH_POLLER(locks_condition_example)
{
    tornado_coroutine_fn fns[] = {condition_waiter, condition_notifier};
    condition = tornado_condition_new();
    run(run_two, fns);
    CHECK_STR(trace, "I'll wait right here\nAbout to notify\nDone notifying\nI'm done waiting\n");
    tornado_condition_free(condition);
}

static void *event_waiter(void *arg)
{
    note("Waiting for event\n");
    tornado_await(tornado_event_wait(event));
    note("Not waiting this time\n");
    tornado_await(tornado_event_wait(event));
    note("Done\n");
    return arg;
}

static void *event_setter(void *arg)
{
    note("About to set the event\n");
    tornado_event_set(event);
    return arg;
}

TEST_EACH_POLLER(locks_event_example)
{
    tornado_coroutine_fn fns[] = {event_waiter, event_setter};
    event = tornado_event_new();
    run(run_two, fns);
    CHECK_STR(trace, "Waiting for event\nAbout to set the event\nNot waiting this time\nDone\n");
    tornado_event_free(event);
}

/* Resolves the futures one after the other, so that the workers end in order. */
static void *simulate_resources(void *arg)
{
    tornado_future **resources = arg;
    for (int i = 0; i < 3; i++) {
        tornado_await(tornado_moment());
        tornado_future_set_result(resources[i], NULL, NULL);
    }
    return NULL;
}

static tornado_future *resources[3];
static int resources_used;

static void *use_resource(void *letter)
{
    char line[64];
    tornado_semaphore_hold(semaphore);
    snprintf(line, sizeof line, "Worker %c is working\n", *(char *)letter);
    note(line);
    tornado_await(tornado_future_retain(resources[resources_used++]));
    snprintf(line, sizeof line, "Worker %c is done\n", *(char *)letter);
    note(line);
    return NULL;
}

static void *run_workers(void *arg)
{
    for (int i = 0; i < 3; i++)
        resources[i] = tornado_future_new();
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), simulate_resources, resources));
    tornado_await(spawn_letters(use_resource, "012"));
    for (int i = 0; i < 3; i++)
        tornado_future_release(resources[i]);
    return arg;
}

TEST_EACH_POLLER(locks_semaphore_example)
{
    semaphore = tornado_semaphore_new(2);
    run(run_workers, NULL);
    CHECK_STR(trace, "Worker 0 is working\nWorker 1 is working\nWorker 0 is done\nWorker 2 is working\n"
                     "Worker 1 is done\nWorker 2 is done\n");
    tornado_semaphore_free(semaphore);
}

static void *with_the_lock(void *letter)
{
    tornado_lock_hold(lock);
    CHECK(tornado_lock_is_locked(lock));
    note_letter(letter);
    let_run(3);
    note_letter(letter);
    return NULL;
}

static void *run_with_the_lock(void *arg)
{
    tornado_await(spawn_letters(with_the_lock, "abc"));
    return arg;
}

TEST_EACH_POLLER(locks_lock_example)
{
    lock = tornado_lock_new();
    run(run_with_the_lock, NULL);
    CHECK_STR(trace, "aabbcc");
    CHECK(!tornado_lock_is_locked(lock));
    tornado_lock_free(lock);
}

/*----------------------------------------------------------------------------
 * Conditions.
 *----------------------------------------------------------------------------*/

static void *note_notified(void *letter)
{
    int64_t notified = tornado_await_integer(tornado_condition_wait(condition));
    CHECK_INT(notified, 1);
    note_letter(letter);
    return NULL;
}

static void *notify_some(void *arg)
{
    tornado_future *all = spawn_letters(note_notified, "abcdef");
    let_run(2);
    tornado_condition_notify(condition, 0);
    let_run(2);
    CHECK_STR(trace, "");
    tornado_condition_notify(condition, 1);
    let_run(2);
    CHECK_STR(trace, "a");
    tornado_condition_notify(condition, 2);
    let_run(2);
    CHECK_STR(trace, "abc");
    tornado_condition_notify_all(condition);
    tornado_await(all);
    CHECK_STR(trace, "abcdef");
    return arg;
}

TEST_EACH_POLLER(locks_condition_wakes_those_first_who_have_waited_longest)
{
    condition = tornado_condition_new();
    run(notify_some, NULL);
    tornado_condition_free(condition);
}

static void *notify_nobody(void *arg)
{
    tornado_condition_notify(condition, 1);
    tornado_condition_notify_all(condition);
    CHECK_INT(tornado_await_integer(tornado_condition_wait_timeout(condition, 0)), 0);
    return arg;
}

TEST(locks_condition_keeps_no_notification_for_later)
{
    condition = tornado_condition_new();
    run(notify_nobody, NULL);
    tornado_condition_free(condition);
}

static void *condition_times_out(void *arg)
{
    double begin = tornado_monotonic();
    CHECK_INT(tornado_await_integer(tornado_condition_wait_timeout(condition, 0.02)), 0);
    CHECK(tornado_monotonic() - begin >= 0.02);
    double deadline = tornado_ioloop_time(tornado_ioloop_current()) + 0.02;
    CHECK_INT(tornado_await_integer(tornado_condition_wait_timeout(condition, tornado_until(deadline))), 0);
    CHECK(tornado_monotonic() >= deadline);
    CHECK_INT(tornado_await_integer(tornado_condition_wait_timeout(condition, tornado_until(1))), 0);
    CHECK_INT(tornado_await_integer(tornado_condition_wait_timeout(condition, -INFINITY)), 0);
    CHECK(is_error(tornado_wait(tornado_condition_wait_timeout(condition, NAN)), TORNADO_ERR_INVALID));
    return arg;
}

TEST_EACH_POLLER(locks_condition_that_times_out_gives_zero_and_no_error)
{
    log_keep();
    condition = tornado_condition_new();
    run(condition_times_out, NULL);
    CHECK_STR(log_text, "");
    tornado_condition_free(condition);
}

static void *notify_after_timeouts(void *arg)
{
    tornado_future *first = tornado_condition_wait_timeout(condition, 0);
    tornado_future *second = tornado_condition_wait_timeout(condition, 100);
    tornado_future *third = tornado_condition_wait_timeout(condition, 0);
    tornado_future *fourth = tornado_condition_wait_timeout(condition, INFINITY);
    let_run(3);
    CHECK(tornado_future_done(first) && tornado_future_done(third));
    tornado_condition_notify(condition, 1);
    CHECK(tornado_future_done(second) && !tornado_future_done(fourth));
    tornado_condition_notify(condition, 1);
    CHECK_INT(tornado_await_integer(first) + tornado_await_integer(third), 0);
    CHECK_INT(tornado_await_integer(second) + tornado_await_integer(fourth), 2);
    return arg;
}

TEST_EACH_POLLER(locks_condition_does_not_notify_who_timed_out)
{
    condition = tornado_condition_new();
    run(notify_after_timeouts, NULL);
    tornado_condition_free(condition);
}

/* What coroutines wait for, and how one of them is let go. */
typedef struct line_test {
    tornado_coroutine_fn wait; /* gets a letter, and notes it */
    void (*grant)(void);
} line_test;

/* Coroutines that wait are cancelled before and after they are granted something: "a" waits longest, then "b", "c". */
static void *cancel_in_line(void *arg)
{
    const line_test *test = arg;
    const char *letters = "abc";
    tornado_future *waits[3];
    for (int i = 0; i < 3; i++)
        waits[i] = tornado_spawn(test->wait, (void *)(uintptr_t)&letters[i]);
    let_run(2);
    CHECK(tornado_cancel(waits[0])); /* while it waits */
    test->grant();                   /* to b, */
    CHECK(tornado_cancel(waits[1])); /* who is cancelled before it runs */
    CHECK(tornado_wait(waits[2]) == NULL);
    CHECK(is_error(tornado_wait(waits[0]), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(waits[1]), TORNADO_ERR_CANCELLED));
    CHECK_STR(trace, "c");
    return NULL;
}

static void grant_notification(void)
{
    tornado_condition_notify(condition, 1);
}

TEST_EACH_POLLER(locks_condition_passes_a_notification_on_when_the_one_notified_is_cancelled)
{
    line_test test = {note_notified, grant_notification};
    condition = tornado_condition_new();
    run(cancel_in_line, &test);
    tornado_condition_free(condition);
}

static void *notify_all_and_release(void *arg)
{
    tornado_future *old = tornado_condition_wait(condition);
    tornado_condition_notify_all(condition);
    tornado_future *young = tornado_condition_wait(condition);
    tornado_future_release(old);
    CHECK(!tornado_future_done(young));
    tornado_future_release(young);
    return arg;
}

TEST(locks_condition_notifies_all_but_not_those_who_come_later)
{
    condition = tornado_condition_new();
    run(notify_all_and_release, NULL);
    tornado_condition_free(condition);
}

/*----------------------------------------------------------------------------
 * Events.
 *----------------------------------------------------------------------------*/

static void *note_event(void *letter)
{
    tornado_await(tornado_event_wait(event));
    note_letter(letter);
    return NULL;
}

static void *set_and_clear(void *arg)
{
    CHECK(!tornado_event_is_set(event));
    tornado_future *all = spawn_letters(note_event, "abc");
    let_run(2);
    tornado_event_set(event);
    tornado_event_set(event);
    CHECK(tornado_event_is_set(event));
    tornado_event_clear(event);
    CHECK(!tornado_event_is_set(event));
    tornado_future *late = tornado_event_wait(event);
    tornado_await(all); /* they wake although it was cleared again */
    CHECK_STR(trace, "abc");
    CHECK(!tornado_future_done(late));
    tornado_event_set(event);
    CHECK(tornado_future_done(late));
    CHECK(tornado_await(late) == NULL);
    return arg;
}

TEST_EACH_POLLER(locks_event_wakes_all_who_wait_when_it_is_set)
{
    event = tornado_event_new();
    run(set_and_clear, NULL);
    tornado_event_free(event);
}

static void *leave_the_event(void *arg)
{
    tornado_future *leaves = tornado_spawn(note_event, "a"), *stays = tornado_spawn(note_event, "b");
    let_run(2);
    CHECK(tornado_cancel(leaves));
    tornado_event_set(event);
    CHECK(is_error(tornado_wait(leaves), TORNADO_ERR_CANCELLED));
    CHECK(tornado_wait(stays) == NULL);
    CHECK_STR(trace, "b");
    return arg;
}

TEST_EACH_POLLER(locks_event_is_left_by_who_is_cancelled)
{
    event = tornado_event_new();
    run(leave_the_event, NULL);
    tornado_event_free(event);
}

static void *event_times_out(void *arg)
{
    double begin = tornado_monotonic();
    CHECK(is_error(tornado_wait(tornado_event_wait_timeout(event, 0.02)), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_monotonic() - begin >= 0.02);
    CHECK(is_error(tornado_wait(tornado_event_wait_timeout(event, tornado_until(0))), TORNADO_ERR_TIMEOUT));
    CHECK(is_error(tornado_wait(tornado_event_wait_timeout(event, NAN)), TORNADO_ERR_INVALID));
    tornado_future *wait = tornado_event_wait_timeout(event, 100);
    tornado_event_set(event);
    CHECK(tornado_wait(wait) == NULL);
    CHECK(tornado_wait(tornado_event_wait_timeout(event, 0)) == NULL); /* set: no time is needed */
    return arg;
}

TEST_EACH_POLLER(locks_event_times_out)
{
    event = tornado_event_new();
    run(event_times_out, NULL);
    tornado_event_free(event);
}

/*----------------------------------------------------------------------------
 * Semaphores and locks.
 *----------------------------------------------------------------------------*/

static void *note_acquired(void *letter)
{
    tornado_await(tornado_semaphore_acquire(semaphore));
    note_letter(letter);
    return NULL;
}

static void *acquire_in_order(void *arg)
{
    tornado_future *all = spawn_letters(note_acquired, "abcdef");
    let_run(2);
    CHECK_STR(traced(), "ab");
    CHECK_INT(tornado_semaphore_value(semaphore), 0);
    for (int i = 0; i < 4; i++) {
        CHECK(tornado_semaphore_release(semaphore));
        CHECK(!tornado_semaphore_acquire_nowait(semaphore)); /* nobody overtakes those who wait */
    }
    tornado_await(all);
    CHECK_STR(trace, "cdef");
    CHECK(tornado_semaphore_release(semaphore) && tornado_semaphore_release(semaphore));
    CHECK_INT(tornado_semaphore_value(semaphore), 2);
    return arg;
}

TEST_EACH_POLLER(locks_semaphore_grants_permits_in_the_order_they_were_asked_for)
{
    semaphore = tornado_bounded_semaphore_new(2);
    run(acquire_in_order, NULL);
    tornado_semaphore_free(semaphore);
}

TEST(locks_semaphore_begins_with_any_number_that_is_not_negative)
{
    log_keep();
    semaphore = tornado_semaphore_new(0);
    CHECK(!tornado_semaphore_acquire_nowait(semaphore));
    CHECK(tornado_semaphore_release(semaphore) && tornado_semaphore_release(semaphore));
    CHECK_INT(tornado_semaphore_value(semaphore), 2);
    tornado_semaphore_free(semaphore);
    CHECK(tornado_semaphore_new(-1) == NULL && tornado_last_error()->code == TORNADO_ERR_INVALID);
    CHECK(tornado_bounded_semaphore_new(INT_MIN) == NULL);
    semaphore = tornado_semaphore_new(INT_MAX);
    CHECK(!tornado_semaphore_release(semaphore) && tornado_last_error()->code == TORNADO_ERR_LIMIT);
    tornado_semaphore_free(semaphore);
    CHECK_STR(log_text, "");
}

TEST(locks_that_are_released_too_often_say_so)
{
    log_keep();
    semaphore = tornado_bounded_semaphore_new(1);
    CHECK(tornado_semaphore_acquire_nowait(semaphore) && tornado_semaphore_release(semaphore));
    CHECK(!tornado_semaphore_release(semaphore));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_INT(logged("released too many times"), 1);
    CHECK_INT(tornado_semaphore_value(semaphore), 1);
    tornado_semaphore_free(semaphore);
    lock = tornado_lock_new();
    CHECK(!tornado_lock_release(lock));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_INT(logged("it is not locked"), 1);
    CHECK(tornado_lock_acquire_nowait(lock) && !tornado_lock_acquire_nowait(lock));
    CHECK(tornado_lock_release(lock));
    tornado_lock_free(lock);
}

static void *lock_times_out(void *arg)
{
    CHECK(tornado_wait(tornado_lock_acquire_timeout(lock, 0)) == NULL); /* free: no time is needed */
    double begin = tornado_monotonic();
    CHECK(is_error(tornado_wait(tornado_lock_acquire_timeout(lock, 0.02)), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_monotonic() - begin >= 0.02);
    CHECK(is_error(tornado_wait(tornado_lock_acquire_timeout(lock, tornado_until(0))), TORNADO_ERR_TIMEOUT));
    CHECK(is_error(tornado_wait(tornado_lock_acquire_timeout(lock, NAN)), TORNADO_ERR_INVALID));
    tornado_future *late = tornado_lock_acquire_timeout(lock, 0), *next = tornado_lock_acquire_timeout(lock, 100);
    let_run(3);
    CHECK(tornado_lock_release(lock));
    CHECK(tornado_wait(next) == NULL);
    CHECK(is_error(tornado_wait(late), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_lock_release(lock));
    return arg;
}

TEST_EACH_POLLER(locks_lock_times_out)
{
    lock = tornado_lock_new();
    run(lock_times_out, NULL);
    tornado_lock_free(lock);
}

static void *many_time_out(void *arg)
{
    long live = 0;
    for (int i = 0; i < 300; i++) {
        CHECK_INT(tornado_await_integer(tornado_condition_wait_timeout(condition, 0)), 0);
        CHECK(is_error(tornado_wait(tornado_event_wait_timeout(event, 0)), TORNADO_ERR_TIMEOUT));
        CHECK(is_error(tornado_wait(tornado_semaphore_acquire_timeout(semaphore, 0)), TORNADO_ERR_TIMEOUT));
        if (i == 20)
            live = test_live();
    }
    CHECK_INT(test_live(), live);
    return arg;
}

TEST_EACH_POLLER(locks_keep_nothing_of_those_who_timed_out)
{
    condition = tornado_condition_new();
    event = tornado_event_new();
    semaphore = tornado_semaphore_new(0);
    run(many_time_out, NULL);
    tornado_condition_free(condition);
    tornado_event_free(event);
    tornado_semaphore_free(semaphore);
}

static void *acquire_to_note(void *letter)
{
    tornado_lock_hold(lock);
    note_letter(letter);
    return NULL;
}

static void release_the_lock(void)
{
    CHECK(tornado_lock_release(lock));
}

TEST_EACH_POLLER(locks_lock_goes_on_to_the_next_when_the_one_who_got_it_is_cancelled)
{
    line_test test = {acquire_to_note, release_the_lock};
    lock = tornado_lock_new();
    CHECK(tornado_lock_acquire_nowait(lock));
    run(cancel_in_line, &test);
    CHECK(!tornado_lock_is_locked(lock));
    tornado_lock_free(lock);
}

static void *acquire_though_cancelled(void *arg)
{
    (void)tornado_wait(tornado_sleep(100));
    CHECK(is_error(tornado_wait(tornado_lock_acquire(lock)), TORNADO_ERR_CANCELLED));
    CHECK(!tornado_lock_is_locked(lock));
    tornado_lock_hold(lock);
    FAIL("a cancelled coroutine holds the lock");
    return arg;
}

static void *cancel_before_acquiring(void *arg)
{
    tornado_future *future = tornado_spawn(acquire_though_cancelled, NULL);
    let_run(2);
    CHECK(tornado_cancel(future));
    CHECK(is_error(tornado_wait(future), TORNADO_ERR_CANCELLED));
    CHECK(!tornado_lock_is_locked(lock));
    return arg;
}

TEST_EACH_POLLER(locks_lock_that_is_free_is_not_taken_by_who_was_cancelled)
{
    lock = tornado_lock_new();
    run(cancel_before_acquiring, NULL);
    tornado_lock_free(lock);
}

static void release_in_callback(void *arg)
{
    (void)arg;
    release_the_lock();
}

/* The release is a callback of the turn at whose end the timer goes off. */
static void *granted_and_late_at_once(void *arg)
{
    CHECK(tornado_lock_acquire_nowait(lock));
    tornado_future *late = tornado_with_timeout(0, tornado_lock_acquire(lock));
    tornado_ioloop_add_callback(tornado_ioloop_current(), release_in_callback, NULL);
    CHECK(is_error(tornado_wait(late), TORNADO_ERR_TIMEOUT));
    let_run(2);
    CHECK(!tornado_lock_is_locked(lock));
    return arg;
}

TEST_EACH_POLLER(locks_lock_that_is_granted_when_the_time_is_up_is_free)
{
    lock = tornado_lock_new();
    run(granted_and_late_at_once, NULL);
    tornado_lock_free(lock);
}

static void *combine(void *arg)
{
    tornado_semaphore *other = tornado_semaphore_new(0);
    tornado_future *waits[] = {tornado_semaphore_acquire(semaphore), tornado_semaphore_acquire(semaphore)};
    tornado_await(tornado_with_timeout(100, tornado_multi(waits, 2))); /* both were to be had */
    CHECK_INT(tornado_semaphore_value(semaphore), 0);
    tornado_semaphore_release(semaphore);
    tornado_semaphore_release(semaphore);
    tornado_scope scope;
    tornado_future *more[] = {tornado_semaphore_acquire(semaphore), tornado_semaphore_acquire(other)};
    tornado_future *multi = tornado_with_timeout(100, tornado_multi(more, 2));
    CHECK_INT(tornado_semaphore_value(semaphore), 1);
    tornado_semaphore_release(other);
    tornado_scope_enter(&scope);
    tornado_await(multi);
    tornado_scope_leave(&scope);
    let_run(2);
    CHECK_INT(tornado_semaphore_value(semaphore), 1); /* these were waited for, so they are taken */
    CHECK_INT(tornado_semaphore_value(other), 0);
    more[0] = tornado_semaphore_acquire(semaphore);
    more[1] = tornado_semaphore_acquire(other);
    CHECK(is_error(tornado_wait(tornado_with_timeout(0, tornado_multi(more, 2))), TORNADO_ERR_TIMEOUT));
    tornado_semaphore_release(other);
    let_run(3);
    CHECK_INT(tornado_semaphore_value(semaphore), 1); /* and these were not */
    CHECK_INT(tornado_semaphore_value(other), 1);
    tornado_semaphore_free(other);
    return arg;
}

TEST_EACH_POLLER(locks_semaphore_in_a_multi_is_taken_when_that_was_waited_for)
{
    semaphore = tornado_semaphore_new(2);
    run(combine, NULL);
    tornado_semaphore_free(semaphore);
}

/* Those of timers that are due, too. */
static void *let_callbacks_run(void *arg)
{
    tornado_await(tornado_sleep(0.001));
    let_run(2);
    return arg;
}

TEST_EACH_POLLER(locks_semaphore_in_a_multi_that_fails_is_not_taken_by_a_callback)
{
    const tornado_error broken = {.code = TORNADO_ERR_SYSTEM, .message = "it broke"};
    semaphore = tornado_semaphore_new(1);
    tornado_future *other = tornado_future_new();
    tornado_future *both[] = {tornado_semaphore_acquire(semaphore), tornado_future_retain(other)};
    tornado_future *future = tornado_multi(both, 2);
    CHECK(tornado_future_add_done_callback(future, note_when_done, "a"));
    CHECK_INT(tornado_semaphore_value(semaphore), 0);
    CHECK(tornado_future_set_error(other, &broken));
    tornado_future_release(other);
    run(let_callbacks_run, NULL);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_SYSTEM));
    tornado_future_release(future);
    CHECK_STR(trace, "a");
    CHECK_INT(tornado_semaphore_value(semaphore), 1);
    tornado_semaphore_free(semaphore);
}

TEST_EACH_POLLER(locks_semaphore_calls_back)
{
    semaphore = tornado_semaphore_new(1);
    for (int i = 0; i < 3; i++) {
        tornado_future *future = tornado_semaphore_acquire_timeout(semaphore, i == 1 ? 0 : 100);
        CHECK(tornado_future_add_done_callback(future, note_when_done, i == 0 ? "a" : i == 1 ? "late" : "b"));
        tornado_future_release(future);
    }
    tornado_future_release(tornado_semaphore_acquire(semaphore)); /* stands in line no longer */
    run(let_callbacks_run, NULL);
    CHECK_STR(traced(), "alate");
    CHECK(tornado_semaphore_release(semaphore));
    run(let_callbacks_run, NULL);
    CHECK_STR(traced(), "b");
    CHECK(tornado_semaphore_release(semaphore));
    CHECK_INT(tornado_semaphore_value(semaphore), 1);
    tornado_semaphore_free(semaphore);
}

static void hold_and_raise(void *arg)
{
    (void)arg;
    tornado_lock_hold(lock);
    CHECK(tornado_lock_is_locked(lock));
    tornado_raise(TORNADO_ERR_LIMIT, "on the way");
}

static void *hold_in_scopes(void *arg)
{
    tornado_scope scope;
    CHECK(is_error(tornado_try(hold_and_raise, NULL), TORNADO_ERR_LIMIT));
    CHECK(!tornado_lock_is_locked(lock));
    tornado_scope_enter(&scope);
    tornado_lock_hold(lock);
    CHECK(tornado_lock_is_locked(lock));
    tornado_scope_leave(&scope);
    CHECK(!tornado_lock_is_locked(lock));
    uint64_t handle = tornado_lock_hold(lock);
    CHECK(tornado_run_deferred(handle));
    CHECK(!tornado_lock_is_locked(lock));
    tornado_lock_hold_timeout(lock, 0); /* until this coroutine ends */
    return arg;
}

TEST_EACH_POLLER(locks_lock_is_held_until_the_scope_ends)
{
    lock = tornado_lock_new();
    run(hold_in_scopes, NULL);
    CHECK(!tornado_lock_is_locked(lock));
    CHECK(tornado_lock_acquire_nowait(lock));
    tornado_lock_free(lock);
}

static void hold_in_no_time(void *arg)
{
    tornado_lock_hold_timeout(lock, 0);
    note(arg);
}

static void *hold_times_out(void *arg)
{
    CHECK(tornado_lock_acquire_nowait(lock));
    CHECK(is_error(tornado_try(hold_in_no_time, "held"), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_lock_is_locked(lock));
    CHECK(tornado_lock_release(lock));
    CHECK(tornado_try(hold_in_no_time, "held") == NULL);
    CHECK_STR(trace, "held");
    return arg;
}

TEST_EACH_POLLER(locks_lock_is_not_held_when_the_time_is_up)
{
    lock = tornado_lock_new();
    run(hold_times_out, NULL);
    CHECK(!tornado_lock_is_locked(lock));
    tornado_lock_free(lock);
}

static void hold_permit_in_no_time(void *arg)
{
    tornado_semaphore_hold_timeout(semaphore, 0);
    CHECK_INT(tornado_semaphore_value(semaphore), 0);
    note(arg);
}

static void *hold_permit_times_out(void *arg)
{
    CHECK(tornado_semaphore_acquire_nowait(semaphore));
    CHECK(is_error(tornado_try(hold_permit_in_no_time, "held"), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_semaphore_release(semaphore));
    CHECK(tornado_try(hold_permit_in_no_time, "held") == NULL);
    CHECK_STR(trace, "held");
    return arg;
}

TEST_EACH_POLLER(locks_semaphore_is_not_held_when_the_time_is_up)
{
    semaphore = tornado_bounded_semaphore_new(1);
    run(hold_permit_times_out, NULL);
    CHECK_INT(tornado_semaphore_value(semaphore), 1);
    tornado_semaphore_free(semaphore);
}

static bool enough;

static void *say_enough(void *arg)
{
    enough = true;
    return arg;
}

static void *hold_again_and_again(void *arg)
{
    tornado_scope scope;
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), say_enough, NULL));
    while (!enough) {
        tornado_scope_enter(&scope);
        tornado_lock_hold(lock);
        tornado_scope_leave(&scope);
    }
    return arg;
}

TEST_EACH_POLLER(locks_lock_that_is_always_free_lets_others_run_all_the_same)
{
    lock = tornado_lock_new();
    run(hold_again_and_again, NULL);
    tornado_lock_free(lock);
}

static void *free_with_waiters(void *arg)
{
    tornado_future *waits[] = {tornado_condition_wait(condition), tornado_event_wait_timeout(event, 100),
                               tornado_semaphore_acquire(semaphore), tornado_semaphore_acquire(semaphore)};
    CHECK(tornado_future_done(waits[2]));
    tornado_condition_free(condition);
    tornado_event_free(event);
    tornado_semaphore_free(semaphore);
    CHECK(is_error(tornado_wait(waits[0]), TORNADO_ERR_CLOSED));
    CHECK(is_error(tornado_wait(waits[1]), TORNADO_ERR_CLOSED));
    CHECK(tornado_wait(waits[2]) == NULL);
    CHECK(is_error(tornado_wait(waits[3]), TORNADO_ERR_CLOSED));
    return arg;
}

TEST_EACH_POLLER(locks_that_are_freed_fail_those_who_wait)
{
    log_keep();
    condition = tornado_condition_new();
    event = tornado_event_new();
    semaphore = tornado_semaphore_new(1);
    run(free_with_waiters, NULL);
    tornado_condition_free(NULL);
    tornado_event_free(NULL);
    tornado_semaphore_free(NULL);
    tornado_lock_free(NULL);
    CHECK_STR(log_text, "");
}

static void *hold_until_late(void *arg)
{
    tornado_lock_hold(lock);
    let_run(5);
    return arg;
}

static void *free_while_held(void *arg)
{
    tornado_future *holds = tornado_spawn(hold_until_late, NULL), *waits = tornado_spawn(hold_until_late, NULL);
    let_run(2);
    tornado_lock_free(lock);
    CHECK(is_error(tornado_wait(waits), TORNADO_ERR_CLOSED));
    CHECK(tornado_wait(holds) == NULL);
    return arg;
}

TEST_EACH_POLLER(locks_lock_that_is_freed_while_it_is_held_is_released_without_harm)
{
    log_keep();
    lock = tornado_lock_new();
    run(free_while_held, NULL);
    CHECK_STR(log_text, "");
}

static void *take_and_free(void *arg)
{
    CHECK(tornado_lock_acquire_nowait(lock));
    tornado_lock_free(lock);
    return arg;
}

static void hold_until_freed(void *arg)
{
    tornado_scope scope;
    (void)arg;
    for (;;) {
        tornado_scope_enter(&scope);
        tornado_lock_hold(lock);
        tornado_scope_leave(&scope);
    }
}

static void *freed_in_the_turn_of_another(void *arg)
{
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), take_and_free, NULL));
    CHECK(is_error(tornado_try(hold_until_freed, NULL), TORNADO_ERR_CLOSED));
    return arg;
}

TEST_EACH_POLLER(locks_lock_that_is_freed_while_others_run_is_not_held)
{
    lock = tornado_lock_new();
    run(freed_in_the_turn_of_another, NULL);
}

static void *wait_for_ever(void *arg)
{
    tornado_lock_hold(arg);
    tornado_await(tornado_sleep(100));
    return NULL;
}

TEST_EACH_POLLER(locks_may_be_freed_after_their_loop_was_closed)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    lock = tornado_lock_new();
    for (int i = 0; i < 3; i++)
        CHECK(tornado_ioloop_spawn_callback(loop, wait_for_ever, lock));
    tornado_future *future = tornado_lock_acquire_timeout(lock, 100);
    CHECK(tornado_future_add_done_callback(future, note_when_done, "never"));
    tornado_future_release(future);
    future = tornado_lock_acquire(lock);
    CHECK(tornado_future_add_done_callback(future, note_when_done, "never"));
    tornado_future_release(future);
    tornado_ioloop_call_later(loop, 0.01, stop_loop, NULL);
    CHECK(tornado_ioloop_start(loop));
    log_keep();
    CHECK(tornado_ioloop_close(loop, false));
    tornado_lock_free(lock);
    CHECK_INT(logged("never"), 0);
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

static bool fine_or_short(const tornado_error *error)
{
    return !error || error->code == TORNADO_ERR_NOMEM;
}

static void *hold_and_wait(void *arg)
{
    tornado_scope scope;
    tornado_scope_enter(&scope);
    tornado_lock_hold(arg);
    tornado_await(tornado_moment());
    tornado_scope_leave(&scope);
    CHECK(fine_or_short(tornado_wait(tornado_condition_wait_timeout(condition, 100))));
    return NULL;
}

static void *some_of_all(void *arg)
{
    tornado_future *list[] = {tornado_spawn(hold_and_wait, lock), tornado_spawn(hold_and_wait, lock),
                              tornado_event_wait_timeout(event, 100), tornado_semaphore_acquire(semaphore)};
    tornado_future *all = tornado_multi(list, 4);
    for (int i = 0; i < 10; i++)
        (void)tornado_wait(tornado_moment());
    tornado_event_set(event);
    tornado_condition_notify_all(condition);
    tornado_semaphore_release(semaphore);
    CHECK(fine_or_short(tornado_wait(all)));
    const tornado_error *error = tornado_wait(tornado_semaphore_acquire_timeout(semaphore, 0));
    CHECK(fine_or_short(error) || error->code == TORNADO_ERR_TIMEOUT);
    CHECK(!tornado_lock_is_locked(lock));
    return arg;
}

static void locks_when_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    condition = tornado_condition_new();
    event = tornado_event_new();
    semaphore = tornado_semaphore_new(0);
    lock = tornado_lock_new();
    if (loop && condition && event && semaphore && lock && !tornado_ioloop_run_sync(loop, some_of_all, NULL))
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    tornado_condition_free(condition);
    tornado_event_free(event);
    tornado_semaphore_free(semaphore);
    tornado_lock_free(lock);
}

TEST(locks_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(locks_when_memory_is_short);
}
