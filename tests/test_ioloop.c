/* Loops: callbacks, timers, descriptors, signals, pollers, their beginning and their end. */
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>

/*----------------------------------------------------------------------------
 * What the tests share.
 *----------------------------------------------------------------------------*/

/* Runs the current loop until something stops it. */
static void run_loop(void)
{
    CHECK(tornado_ioloop_start(tornado_ioloop_current()));
}

/* Runs so many turns of the current loop, none of which waits. */
static void turns(int count)
{
    while (count-- > 0) {
        CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), stop_loop, NULL));
        run_loop();
    }
}

static void count_one(void *arg)
{
    ++*(int *)arg;
}

static void not_reached(void *arg)
{
    FAIL("this must not run: %s", arg ? (const char *)arg : "a callback");
}

static void fail_with(void *message)
{
    tornado_raise(TORNADO_ERR_CLOSED, "%s", (const char *)message);
}

/* A number between 0 and `below`, the same in each run of the test. */
static unsigned number_below(unsigned below)
{
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

static void make_pipe(int ends[2])
{
    CHECK(pipe(ends) == 0);
}

/* A pipe whose end 0 has something to read. */
static void make_ready_pipe(int ends[2])
{
    make_pipe(ends);
    CHECK(write(ends[1], "x", 1) == 1);
}

static void close_pipe(int ends[2])
{
    close(ends[0]);
    close(ends[1]);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* A descriptor and what was told of it. */
typedef struct watched {
    int fd, calls;
    unsigned events; /* all that were reported */
} watched;

static void watch(int fd, unsigned events, void *arg)
{
    watched *w = arg;
    CHECK_INT(fd, w->fd);
    CHECK(events != 0);
    w->events |= events;
    w->calls++;
}

static void watch_and_remove(int fd, unsigned events, void *arg)
{
    watch(fd, events, arg);
    CHECK(tornado_ioloop_remove_handler(tornado_ioloop_current(), fd));
}

static void add_watch(watched *w, unsigned events)
{
    CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), w->fd, watch, w, events));
}

static void remove_watch(watched *w)
{
    CHECK(tornado_ioloop_remove_handler(tornado_ioloop_current(), w->fd));
}

/* The last error is this one. */
static void check_failed(bool result, int code)
{
    CHECK(!result);
    CHECK_INT(tornado_last_error()->code, code);
    CHECK(tornado_last_error()->message[0] != '\0');
}

/*----------------------------------------------------------------------------
 * A poller of the tests' own, made of poll(2), that tells what the loop asks of it.
 *----------------------------------------------------------------------------*/

enum { PROBE_FDS = 64 };

static struct {
    struct pollfd fds[PROBE_FDS];
    uint64_t keys[PROBE_FDS];
    int count, opens, closes, waits;
    int fail_open, fail_add, fail_wait; /* an errno */
    bool impatient;                     /* instead of waiting, the loop is stopped */
    int64_t timeout, longest;           /* of the last wait; of any */
} probe;

static void *probe_open(void)
{
    errno = probe.fail_open;
    probe.opens += !probe.fail_open;
    probe.count = 0;
    return probe.fail_open ? NULL : &probe;
}

static void probe_close(void *state)
{
    CHECK(state == &probe);
    probe.closes++;
}

static int probe_find(int fd)
{
    int at = 0;
    while (at < probe.count && probe.fds[at].fd != fd)
        at++;
    return at;
}

static int probe_modify(void *state, int fd, unsigned events, uint64_t key)
{
    int at = probe_find(fd);
    CHECK(state == &probe);
    CHECK(at < probe.count);
    probe.fds[at].events = (short)(events & (TORNADO_IOLOOP_READ | TORNADO_IOLOOP_WRITE));
    probe.keys[at] = key;
    return 0;
}

static int probe_add(void *state, int fd, unsigned events, uint64_t key)
{
    CHECK(state == &probe);
    CHECK_INT(probe_find(fd), probe.count);
    CHECK(probe.count < PROBE_FDS);
    if (probe.fail_add)
        return probe.fail_add;
    probe.fds[probe.count++].fd = fd;
    return probe_modify(state, fd, events, key);
}

static int probe_remove(void *state, int fd)
{
    int at = probe_find(fd);
    CHECK(state == &probe);
    if (at == probe.count)
        return ENOENT;
    probe.count--;
    probe.fds[at] = probe.fds[probe.count];
    probe.keys[at] = probe.keys[probe.count];
    return 0;
}

static int probe_wait(void *state, tornado_poller_event *events, int max, int64_t timeout_ns)
{
    int ms = timeout_ns < 0 ? -1 : (int)((timeout_ns + 999999) / 1000000), count = 0;
    CHECK(state == &probe && max > 0 && timeout_ns >= -1);
    probe.waits++;
    probe.timeout = timeout_ns;
    if (timeout_ns > probe.longest)
        probe.longest = timeout_ns;
    if (probe.fail_wait) {
        errno = probe.fail_wait;
        return -1;
    }
    if (probe.impatient && timeout_ns != 0) {
        tornado_ioloop_stop(tornado_ioloop_current());
        return 0;
    }
    if (poll(probe.fds, (nfds_t)probe.count, ms) < 0)
        return errno == EINTR ? 0 : -1;
    for (int i = 0; i < probe.count && count < max; i++)
        if (probe.fds[i].revents) {
            events[count].key = probe.keys[i];
            events[count++].events = (unsigned)probe.fds[i].revents;
        }
    return count;
}

static const tornado_poller probe_poller = {"probe",      probe_open,   probe_close, probe_add,
                                            probe_modify, probe_remove, probe_wait, NULL};

/* A loop with that poller, the current one. */
static tornado_ioloop *probe_loop(void)
{
    tornado_ioloop *loop = tornado_ioloop_new(&(tornado_ioloop_options){.custom = &probe_poller});
    CHECK(loop != NULL);
    tornado_ioloop_make_current(loop);
    return loop;
}

/*----------------------------------------------------------------------------
 * Callbacks.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(ioloop_callbacks_run_in_order)
{
    static int numbers[3000];
    static const char *const letters[] = {"a", "b", "c", "d"};
    tornado_ioloop *loop = tornado_ioloop_current();
    for (size_t i = 0; i < 4; i++)
        CHECK(tornado_ioloop_add_callback(loop, note, (void *)(uintptr_t)letters[i]));
    CHECK_STR(traced(), ""); /* not inside the call */
    turns(1);
    CHECK_STR(traced(), "abcd");
    for (size_t i = 0; i < 3000; i++)
        CHECK(tornado_ioloop_add_callback(loop, count_one, &numbers[i / 2]));
    turns(1);
    for (size_t i = 0; i < 1500; i++)
        CHECK_INT(numbers[i], 2);
}

static void add_from_callback(void *arg)
{
    note("A");
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), note, "B"));
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0, note, "t"));
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), stop_loop, NULL));
    note(arg);
}

static void note_and_remove(int fd, unsigned events, void *arg)
{
    (void)events;
    note(arg);
    CHECK(tornado_ioloop_remove_handler(tornado_ioloop_current(), fd));
}

TEST_EACH_POLLER(ioloop_turn_is_callbacks_then_timers_then_events)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int ends[2];
    make_ready_pipe(ends);
    CHECK(tornado_ioloop_add_handler(loop, ends[0], note_and_remove, "E", TORNADO_IOLOOP_READ));
    CHECK(tornado_ioloop_call_at(loop, 1, note, "T"));
    CHECK(tornado_ioloop_add_callback(loop, add_from_callback, "a"));
    run_loop();
    const char *got = traced();
    if (strcmp(got, "AatTEB") && strcmp(got, "AaTtEB") && strcmp(got, "AaTEBt")) /* when 0 seconds are over */
        FAIL("the order is %s", got);
    close_pipe(ends);
}

static int chain_length;

static void chain(void *arg)
{
    chain_length++;
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), chain, arg));
    if (strchr(trace, 'T') && strchr(trace, 'E'))
        stop_loop(NULL);
}

TEST_EACH_POLLER(ioloop_callback_that_adds_itself_leaves_room_for_the_rest)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int ends[2];
    make_ready_pipe(ends);
    CHECK(tornado_ioloop_add_callback(loop, chain, NULL));
    CHECK(tornado_ioloop_call_later(loop, 0.01, note, "T"));
    CHECK(tornado_ioloop_add_handler(loop, ends[0], note_and_remove, "E", TORNADO_IOLOOP_READ));
    run_loop();
    CHECK_INT(strlen(traced()), 2);
    CHECK(chain_length > 0);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_callback_that_raises_is_logged_and_the_others_run_once)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    CHECK(tornado_ioloop_add_callback(loop, note, "a"));
    CHECK(tornado_ioloop_add_callback(loop, fail_with, "no milk"));
    CHECK(tornado_ioloop_add_callback(loop, note, "b"));
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    CHECK(tornado_ioloop_add_callback(loop, fail_with, "no sugar"));
    run_loop();
    CHECK_INT(logged("no milk"), 1);
    CHECK_INT(logged("TORNADO_ERR_CLOSED"), logged("no milk") + logged("no sugar"));
    turns(1);
    CHECK_STR(traced(), "ab");
    CHECK_INT(logged("no sugar"), 1);
}

/*----------------------------------------------------------------------------
 * Callbacks from other threads.
 *----------------------------------------------------------------------------*/

enum { SENDERS = 8, MESSAGES = 1000 };

typedef struct message {
    int sender, number;
} message;

static struct {
    tornado_ioloop *loop;
    message messages[SENDERS][MESSAGES];
    int next[SENDERS], received;
} post;

static void receive(void *arg)
{
    message *got = arg;
    CHECK(tornado_ioloop_current() == post.loop);
    CHECK_INT(got->number, post.next[got->sender]++);
    if (++post.received == SENDERS * MESSAGES)
        tornado_ioloop_stop(post.loop);
}

static void *send_all(void *arg)
{
    int sender = *(int *)arg;
    for (int i = 0; i < MESSAGES; i++) {
        post.messages[sender][i] = (message){sender, i};
        CHECK(tornado_ioloop_add_callback(post.loop, receive, &post.messages[sender][i]));
    }
    return NULL;
}

TEST_EACH_POLLER(ioloop_callbacks_of_many_threads_all_come_each_threads_in_order)
{
    pthread_t threads[SENDERS];
    int senders[SENDERS];
    post.loop = tornado_ioloop_current();
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = i;
        CHECK(pthread_create(&threads[i], NULL, send_all, &senders[i]) == 0);
    }
    run_loop();
    for (int i = 0; i < SENDERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    turns(2);
    CHECK_INT(post.received, SENDERS * MESSAGES);
}

static void *stop_from_thread(void *arg)
{
    int ready = *(int *)arg;
    char byte;
    CHECK(read(ready, &byte, 1) == 1);
    CHECK(tornado_ioloop_add_callback(post.loop, stop_loop, NULL));
    return NULL;
}

static void say_ready(void *arg)
{
    CHECK(write(*(int *)arg, "r", 1) == 1);
}

TEST_EACH_POLLER(ioloop_callback_of_another_thread_wakes_a_loop_that_has_nothing_to_do)
{
    pthread_t thread;
    int ends[2];
    make_pipe(ends);
    post.loop = tornado_ioloop_current();
    CHECK(pthread_create(&thread, NULL, stop_from_thread, &ends[0]) == 0);
    for (int i = 0; i < 20; i++) { /* the loop may be on its way to sleep, or asleep */
        CHECK(tornado_ioloop_add_callback(post.loop, say_ready, &ends[1]));
        run_loop();
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(pthread_create(&thread, NULL, stop_from_thread, &ends[0]) == 0);
    }
    CHECK(tornado_ioloop_add_callback(post.loop, say_ready, &ends[1]));
    run_loop();
    CHECK(pthread_join(thread, NULL) == 0);
    close_pipe(ends);
}

static void *start_in_thread(void *loop)
{
    CHECK(tornado_ioloop_start(loop));
    return NULL;
}

/* The thread that made a loop is one of the others as soon as another thread runs it, and while that begins. */
TEST_EACH_POLLER(ioloop_callbacks_of_the_thread_that_made_a_loop_reach_the_thread_that_runs_it)
{
    for (int round = 0; round < 100; round++) {
        tornado_ioloop *loop = tornado_ioloop_new(NULL);
        pthread_t thread;
        int count = 0;
        tornado_ioloop_clear_current();
        CHECK(pthread_create(&thread, NULL, start_in_thread, loop) == 0);
        for (int i = 0; i < 300; i++)
            CHECK(tornado_ioloop_add_callback(loop, count_one, &count));
        CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK_INT(count, 300);
        CHECK(tornado_ioloop_close(loop, false));
    }
}

static void *add_until_closed(void *loop)
{
    while (tornado_ioloop_add_callback(loop, note, ""))
        sched_yield();
    tornado_ioloop_release(loop);
    return NULL;
}

TEST_EACH_POLLER(ioloop_may_be_closed_while_threads_that_retain_it_add_callbacks)
{
    for (int round = 0; round < 10; round++) {
        tornado_ioloop *loop = tornado_ioloop_current();
        pthread_t threads[3];
        for (int i = 0; i < 3; i++)
            CHECK(pthread_create(&threads[i], NULL, add_until_closed, tornado_ioloop_retain(loop)) == 0);
        turns(10);
        CHECK(tornado_ioloop_close(loop, false));
        for (int i = 0; i < 3; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

/* Two loops that throw a ball to each other, each a thousand times. */
typedef struct side {
    tornado_ioloop *loop;
    struct side *other;
    int hits;
    bool ends; /* the ball is its own after that */
} side;

static void hit(void *arg)
{
    side *me = arg;
    CHECK(tornado_ioloop_current() == me->loop);
    if (++me->hits < 1000 || !me->ends)
        CHECK(tornado_ioloop_add_callback(me->other->loop, hit, me->other));
    if (me->hits == 1000)
        tornado_ioloop_stop(me->loop);
}

static void *play(void *arg)
{
    side *me = arg;
    me->loop = tornado_ioloop_retain(tornado_ioloop_current());
    CHECK(me->loop != me->other->loop);
    CHECK(tornado_ioloop_add_callback(me->loop, hit, me));
    run_loop();
    CHECK(tornado_ioloop_close(me->loop, false));
    return NULL;
}

TEST_EACH_POLLER(ioloop_two_of_two_threads_call_each_other)
{
    side here = {.loop = tornado_ioloop_current(), .ends = true}, there = {.other = &here};
    pthread_t thread;
    here.other = &there;
    CHECK(pthread_create(&thread, NULL, play, &there) == 0);
    run_loop();
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_INT(here.hits, 1000);
    CHECK_INT(there.hits, 1000);
    tornado_ioloop_release(there.loop);
}

/*----------------------------------------------------------------------------
 * Callbacks from signal handlers.
 *----------------------------------------------------------------------------*/

static struct {
    tornado_ioloop *loop;
    tornado_callback callback;
    void *arg;
    pthread_t thread;
    atomic_int handled;
} alarms;

static void on_signal(int number)
{
    (void)number;
    if (tornado_ioloop_add_callback_from_signal(alarms.loop, alarms.callback, alarms.arg))
        atomic_fetch_add(&alarms.handled, 1);
}

/* SIGUSR1 adds a callback to the current loop from now on, and interrupts what waits. */
static void add_on_signal(tornado_callback callback, void *arg)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    alarms.loop = tornado_ioloop_current();
    alarms.callback = callback;
    alarms.arg = arg;
    alarms.thread = pthread_self();
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

TEST_EACH_POLLER(ioloop_callbacks_from_a_signal_handler_run_as_often_as_they_were_added)
{
    int count = 0;
    add_on_signal(count_one, &count);
    long allocations = test_allocs();
    for (int i = 0; i < 5; i++)
        CHECK(raise(SIGUSR1) == 0);
    CHECK_INT(test_allocs(), allocations);
    CHECK_INT(count, 0);
    turns(2);
    CHECK_INT(count, 5);
    turns(2);
    CHECK_INT(count, 5);
}

static int alarms_wanted;

static void count_alarms(void *arg)
{
    if (++*(int *)arg == alarms_wanted)
        stop_loop(NULL);
}

static void *send_signals(void *arg)
{
    for (int i = 0; i < alarms_wanted; i++) { /* two that are pending would be one */
        CHECK(pthread_kill(alarms.thread, SIGUSR1) == 0);
        while (atomic_load(&alarms.handled) <= i)
            sched_yield();
    }
    return arg;
}

TEST_EACH_POLLER(ioloop_signals_wake_a_loop_that_waits_and_do_not_break_it)
{
    pthread_t thread;
    int count = 0;
    log_keep();
    alarms_wanted = 200;
    add_on_signal(count_alarms, &count);
    CHECK(pthread_create(&thread, NULL, send_signals, NULL) == 0);
    run_loop();
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_INT(count, 200);
    CHECK_STR(log_text, "");
}

TEST_EACH_POLLER(ioloop_callbacks_from_a_signal_are_not_lost_when_memory_is_short)
{
    int count = 0;
    log_keep();
    add_on_signal(count_one, &count);
    for (int i = 0; i < 3; i++)
        CHECK(raise(SIGUSR1) == 0);
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), stop_loop, NULL));
    test_fail_alloc(1);
    run_loop();
    test_fail_alloc(0);
    turns(4);
    CHECK_INT(count, 3);
}

TEST_EACH_POLLER(ioloop_knows_64_pairs_of_callback_and_argument_from_signals)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int counts[65] = {0};
    for (int i = 0; i < 64; i++)
        CHECK(tornado_ioloop_add_callback_from_signal(loop, count_one, &counts[i]));
    for (int i = 0; i < 3; i++) { /* not later either, and those that are known stay so */
        CHECK(!tornado_ioloop_add_callback_from_signal(loop, count_one, &counts[64]));
        CHECK(!tornado_ioloop_add_callback_from_signal(loop, note, &counts[0]));
        CHECK(tornado_ioloop_add_callback_from_signal(loop, count_one, &counts[i * 31]));
        turns(2);
    }
    for (int i = 0; i < 65; i++)
        CHECK_INT(counts[i], i == 64 ? 0 : i == 0 || i == 31 || i == 62 ? 2 : 1);
}

/*----------------------------------------------------------------------------
 * Timers.
 *----------------------------------------------------------------------------*/

typedef struct alarm_clock {
    double when;
    int *left;
} alarm_clock;

static void check_not_early(void *arg)
{
    alarm_clock *timer = arg;
    CHECK(tornado_ioloop_time(tornado_ioloop_current()) >= timer->when - 1e-6);
    if (--*timer->left == 0)
        stop_loop(NULL);
}

TEST_EACH_POLLER(ioloop_timer_never_runs_before_its_deadline)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    alarm_clock timers[60];
    int left = 60;
    for (int i = 0; i < 60; i++) {
        double delay = (double)number_below(50000) / 1e6;
        timers[i].left = &left;
        timers[i].when = tornado_ioloop_time(loop) + delay;
        CHECK(i % 2 ? tornado_ioloop_call_later(loop, delay, check_not_early, &timers[i])
                    : tornado_ioloop_call_at(loop, timers[i].when, check_not_early, &timers[i]));
    }
    run_loop();
    CHECK_INT(left, 0);
}

TEST_EACH_POLLER(ioloop_timers_run_by_deadline_then_in_the_order_they_were_set)
{
    static const struct {
        double when;
        const char *name;
    } timers[] = {{7, "g"}, {3, "c"}, {-5, "b"},  {3, "d"}, {3.25, "f"}, {-INFINITY, "a"},
                  {3, "e"}, {8, "h"}, {1e3, "j"}, {8, "i"}, {1e3, "k"}};
    tornado_ioloop *loop = tornado_ioloop_current();
    double past = tornado_ioloop_time(loop) - 2000;
    for (size_t i = 0; i < sizeof timers / sizeof timers[0]; i++)
        CHECK(tornado_ioloop_call_at(loop, past + timers[i].when, note, (void *)(uintptr_t)timers[i].name));
    CHECK_STR(traced(), ""); /* not inside the call, although they are due */
    turns(1);
    CHECK_STR(traced(), "abcdefghijk");
}

TEST_EACH_POLLER(ioloop_call_later_without_a_delay_runs_in_order)
{
    static const double delays[] = {0, 0, -1, -1e300, -INFINITY, 0};
    static const char *const letters[] = {"a", "b", "c", "d", "e", "f"};
    tornado_ioloop *loop = tornado_ioloop_current();
    for (size_t i = 0; i < 6; i++)
        CHECK(tornado_ioloop_call_later(loop, delays[i], note, (void *)(uintptr_t)letters[i]));
    CHECK_STR(traced(), "");
    turns(1);
    CHECK_STR(traced(), "abcdef");
}

TEST(ioloop_timer_at_a_time_that_is_no_number_is_refused)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    check_failed(tornado_ioloop_call_later(loop, NAN, not_reached, NULL) != 0, TORNADO_ERR_INVALID);
    check_failed(tornado_ioloop_call_at(loop, NAN, not_reached, NULL) != 0, TORNADO_ERR_INVALID);
    turns(1);
}

TEST_EACH_POLLER(ioloop_timer_farther_than_the_clock_goes_waits)
{
    static const double times[] = {INFINITY, 1e300, 1e19, 9.3e9, 9.2e9, 3e9, 1e7, 2147483.648, 2147483.647};
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_timeout handles[9];
    for (size_t i = 0; i < 9; i++) {
        handles[i] = i % 2 ? tornado_ioloop_call_at(loop, tornado_ioloop_time(loop) + times[i], not_reached, NULL)
                           : tornado_ioloop_call_later(loop, times[i], not_reached, NULL);
        CHECK(handles[i] != 0);
    }
    turns(2);
    for (size_t i = 0; i < 9; i++) { /* the farther ones alone let it sleep too */
        CHECK(tornado_ioloop_call_later(loop, 0.01, stop_loop, NULL));
        run_loop();
        CHECK(tornado_ioloop_remove_timeout(loop, handles[8 - i]));
    }
}

typedef struct removal {
    tornado_timeout victim;
    bool was_set;
} removal;

static void remove_timer(void *arg)
{
    removal *one = arg;
    CHECK_INT(tornado_ioloop_remove_timeout(tornado_ioloop_current(), one->victim), one->was_set);
    note("r");
}

TEST_EACH_POLLER(ioloop_timer_that_is_removed_does_not_run)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(!tornado_ioloop_remove_timeout(loop, 0)); /* none was ever set */
    tornado_timeout timer = tornado_ioloop_call_later(loop, 0, not_reached, "a timer that was removed");
    CHECK(timer != 0);
    CHECK(!tornado_ioloop_remove_timeout(loop, 0));
    CHECK(tornado_ioloop_remove_timeout(loop, timer));
    CHECK(!tornado_ioloop_remove_timeout(loop, timer));
    turns(1);
    CHECK(!tornado_ioloop_remove_timeout(loop, timer));
}

TEST_EACH_POLLER(ioloop_timer_that_is_due_may_be_removed_by_an_earlier_one)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    removal self = {.was_set = false}, later = {.was_set = true}, callback = {.was_set = true};
    self.victim = tornado_ioloop_call_at(loop, 1, remove_timer, &self); /* it runs, so it is not set any more */
    CHECK(tornado_ioloop_call_at(loop, 2, remove_timer, &later));
    later.victim = tornado_ioloop_call_at(loop, 3, not_reached, "a timer that an earlier one removed");
    callback.victim = tornado_ioloop_call_at(loop, 4, not_reached, "a timer that a callback removed");
    CHECK(tornado_ioloop_add_callback(loop, remove_timer, &callback));
    turns(1);
    CHECK_STR(traced(), "rrr");
}

TEST_EACH_POLLER(ioloop_handle_of_a_timer_that_is_over_does_not_name_another)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_timeout old[100], one;
    for (int i = 0; i < 100; i++) {
        old[i] = tornado_ioloop_call_at(loop, 1, note, "");
        if (i % 2)
            CHECK(tornado_ioloop_remove_timeout(loop, old[i]));
        turns(1);
        one = tornado_ioloop_call_at(loop, 1, note, "n");
        CHECK(one != 0);
        for (int k = 0; k <= i; k++) {
            CHECK(old[k] != one);
            CHECK(!tornado_ioloop_remove_timeout(loop, old[k]));
        }
        turns(1);
        CHECK_STR(traced(), "n");
    }
}

static void set_two_in_the_past(void *arg)
{
    note(arg);
    CHECK(tornado_ioloop_call_at(tornado_ioloop_current(), 0.75, note, "D"));
    CHECK(tornado_ioloop_call_at(tornado_ioloop_current(), 0.5, note, "C"));
}

TEST_EACH_POLLER(ioloop_timer_that_a_timer_sets_waits_for_the_next_turn_and_the_others_do_not)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_call_at(loop, 1, set_two_in_the_past, "A"));
    CHECK(tornado_ioloop_call_at(loop, 2, note, "B"));
    turns(1);
    CHECK_STR(traced(), "AB");
    turns(1);
    CHECK_STR(traced(), "CD"); /* by deadline, also among these */
}

static int set_again;

static void set_again_in_the_past(void *arg)
{
    if (++set_again < 100)
        CHECK(tornado_ioloop_call_at(tornado_ioloop_current(), 0, set_again_in_the_past, arg));
}

TEST_EACH_POLLER(ioloop_timer_that_sets_itself_in_the_past_does_not_hold_up_others)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_call_at(loop, 0, set_again_in_the_past, NULL));
    CHECK(tornado_ioloop_call_at(loop, 1, note, "n"));
    turns(3);
    CHECK(set_again < 100);
    CHECK_STR(traced(), "n");
    turns(100);
    CHECK_INT(set_again, 100);
}

/* A model of timers: an array, sorted. */
typedef struct model_timer {
    double when;
    int order;
    bool set;
    tornado_timeout handle;
} model_timer;

enum { MODEL_TIMERS = 4000 };

static struct {
    model_timer timers[MODEL_TIMERS];
    model_timer *sorted[MODEL_TIMERS];
    int next, order;
} model;

static void model_remove(model_timer *timer)
{
    CHECK_INT(tornado_ioloop_remove_timeout(tornado_ioloop_current(), timer->handle), timer->set);
    timer->set = false;
}

static void model_fire(void *arg)
{
    model_timer *timer = arg;
    while (model.next < MODEL_TIMERS && !model.sorted[model.next]->set)
        model.next++;
    CHECK(model.next < MODEL_TIMERS);
    if (timer != model.sorted[model.next])
        FAIL("timer %g, number %d, came before %g, number %d", timer->when, timer->order,
             model.sorted[model.next]->when, model.sorted[model.next]->order);
    timer->set = false;
    if (number_below(4) == 0)
        model_remove(&model.timers[number_below(MODEL_TIMERS)]);
}

static void model_set(model_timer *timer, double base)
{
    timer->when = base - (double)number_below(500);
    timer->order = model.order++;
    timer->set = true;
    timer->handle = tornado_ioloop_call_at(tornado_ioloop_current(), timer->when, model_fire, timer);
    CHECK(timer->handle != 0);
}

static int model_compare(const void *left, const void *right)
{
    const model_timer *a = *(model_timer *const *)left, *b = *(model_timer *const *)right;
    return a->when != b->when ? (a->when > b->when) - (a->when < b->when) : a->order - b->order;
}

TEST_EACH_POLLER(ioloop_thousands_of_timers_in_random_order_run_as_a_sorted_array_says)
{
    double base = tornado_ioloop_time(tornado_ioloop_current()) - 1;
    for (int i = 0; i < MODEL_TIMERS; i++)
        model_set(&model.timers[i], base);
    for (int i = 0; i < MODEL_TIMERS * 3; i++) {
        model_timer *timer = &model.timers[number_below(MODEL_TIMERS)];
        model_remove(timer);
        if (number_below(3)) /* set again, earlier or later */
            model_set(timer, base);
    }
    for (int i = 0; i < MODEL_TIMERS; i++)
        model.sorted[i] = &model.timers[i];
    qsort(model.sorted, MODEL_TIMERS, sizeof model.sorted[0], model_compare);
    turns(1);
    for (int i = 0; i < MODEL_TIMERS; i++)
        CHECK(!model.timers[i].set);
    CHECK(model.next > MODEL_TIMERS / 2);
}

/*----------------------------------------------------------------------------
 * Waiting.
 *----------------------------------------------------------------------------*/

static double cpu_time(void)
{
    struct rusage use;
    CHECK(getrusage(RUSAGE_SELF, &use) == 0);
    return (double)use.ru_utime.tv_sec + (double)use.ru_stime.tv_sec +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

TEST_EACH_POLLER(ioloop_that_has_nothing_to_do_sleeps)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched w = {0};
    int ends[2];
    make_pipe(ends);
    w.fd = ends[0];
    add_watch(&w, TORNADO_IOLOOP_READ);
    turns(1);
    CHECK(tornado_ioloop_call_later(loop, 1000, not_reached, NULL));
    CHECK(tornado_ioloop_call_later(loop, 0.4, stop_loop, NULL));
    double cpu = cpu_time();
    run_loop();
    CHECK(cpu_time() - cpu < 0.2);
    CHECK_INT(w.calls, 0);
    remove_watch(&w);
    close_pipe(ends);
}

TEST(ioloop_waits_for_ever_when_nothing_is_set)
{
    tornado_ioloop *loop = probe_loop();
    probe.impatient = true;
    run_loop();
    CHECK_INT(probe.waits, 1);
    CHECK_INT(probe.timeout, -1);
    tornado_timeout timer = tornado_ioloop_call_later(loop, 1000, not_reached, NULL);
    run_loop();
    CHECK(probe.timeout > 0);
    CHECK(tornado_ioloop_remove_timeout(loop, timer));
    run_loop();
    CHECK_INT(probe.timeout, -1);
}

TEST(ioloop_does_not_wait_while_callbacks_are_queued)
{
    tornado_ioloop *loop = probe_loop();
    CHECK(tornado_ioloop_call_later(loop, 1000, not_reached, NULL));
    CHECK(tornado_ioloop_add_callback(loop, add_from_callback, ""));
    run_loop(); /* the last of the callbacks stops it */
    CHECK_INT(probe.longest, 0);
}

TEST(ioloop_waits_once_or_twice_for_a_timer)
{
    tornado_ioloop *loop = probe_loop();
    CHECK(tornado_ioloop_call_later(loop, 0.02, stop_loop, NULL));
    run_loop();
    CHECK(probe.waits <= 4);
}

static void block_and_set_timer(void *arg)
{
    const struct timespec most = {0, 600000000};
    nanosleep(&most, NULL);
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.42, not_reached, arg));
    note(arg);
    probe.impatient = true;
}

static void block_as_handler(int fd, unsigned events, void *arg)
{
    watch_and_remove(fd, events, arg);
    block_and_set_timer("handler");
}

/* However long ago the loop has looked at the clock. */
TEST(ioloop_never_waits_longer_than_to_the_next_timer)
{
    watched w = {0};
    int ends[2];
    make_ready_pipe(ends);
    w.fd = ends[0];
    for (int i = 0; i < 3; i++) {
        tornado_ioloop *loop = probe_loop();
        probe.impatient = false;
        turns(1);
        if (i == 0)
            CHECK(tornado_ioloop_add_callback(loop, block_and_set_timer, "callback"));
        else if (i == 1)
            CHECK(tornado_ioloop_call_later(loop, 0, block_and_set_timer, "timer"));
        else
            CHECK(tornado_ioloop_add_handler(loop, w.fd, block_as_handler, &w, TORNADO_IOLOOP_READ));
        run_loop();
        if (probe.timeout <= 0 || probe.timeout > 420000000)
            FAIL("behind a %s it waits for %lld ms, not 420", trace, (long long)probe.timeout / 1000000);
        traced();
        CHECK(tornado_ioloop_close(loop, false));
    }
    close_pipe(ends);
}

/*----------------------------------------------------------------------------
 * Descriptors.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(ioloop_handler_is_called_as_long_as_there_is_something_to_read)
{
    watched w = {0};
    int ends[2];
    char byte;
    make_pipe(ends);
    w.fd = ends[0];
    add_watch(&w, TORNADO_IOLOOP_READ);
    turns(2);
    CHECK_INT(w.calls, 0);
    CHECK(write(ends[1], "x", 1) == 1);
    turns(3);
    CHECK_INT(w.calls, 3);
    CHECK_INT(w.events, TORNADO_IOLOOP_READ);
    CHECK(read(ends[0], &byte, 1) == 1);
    turns(2);
    CHECK_INT(w.calls, 3);
    remove_watch(&w);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_handler_is_called_as_long_as_there_is_room_to_write)
{
    static char bytes[65536];
    watched w = {0};
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(fcntl(pair[0], F_SETFL, O_NONBLOCK) == 0 && fcntl(pair[1], F_SETFL, O_NONBLOCK) == 0);
    w.fd = pair[0];
    add_watch(&w, TORNADO_IOLOOP_WRITE);
    turns(2);
    CHECK_INT(w.calls, 2);
    CHECK_INT(w.events, TORNADO_IOLOOP_WRITE);
    while (write(pair[0], bytes, sizeof bytes) > 0) {
    }
    turns(2);
    CHECK_INT(w.calls, 2);
    while (read(pair[1], bytes, sizeof bytes) > 0) {
    }
    turns(1);
    CHECK_INT(w.calls, 3);
    remove_watch(&w);
    close_pipe(pair);
}

TEST_EACH_POLLER(ioloop_handler_is_told_of_reading_and_writing_in_one_call)
{
    watched w = {0};
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(write(pair[1], "x", 1) == 1);
    w.fd = pair[0];
    add_watch(&w, TORNADO_IOLOOP_READ | TORNADO_IOLOOP_WRITE);
    turns(1);
    CHECK_INT(w.calls, 1);
    CHECK_INT(w.events, TORNADO_IOLOOP_READ | TORNADO_IOLOOP_WRITE);
    remove_watch(&w);
    close_pipe(pair);
}

TEST_EACH_POLLER(ioloop_handler_is_told_of_an_error)
{
    watched w = {0};
    int ends[2];
    make_pipe(ends);
    close(ends[0]);
    w.fd = ends[1];
    add_watch(&w, TORNADO_IOLOOP_WRITE);
    turns(1);
    CHECK_INT(w.calls, 1);
    /* select tells of errors as of room to write, which then fails; kqueue while something else is watched */
    CHECK(w.events & (strcmp(test_poller, "select") ? TORNADO_IOLOOP_ERROR : TORNADO_IOLOOP_WRITE));
    CHECK(tornado_ioloop_update_handler(tornado_ioloop_current(), w.fd, 0)); /* errors are always watched */
    w.events = 0;
    turns(1);
    if (strcmp(test_poller, "select") && strcmp(test_poller, "kqueue"))
        CHECK(w.events & TORNADO_IOLOOP_ERROR);
    remove_watch(&w);
    close(ends[1]);
}

TEST_EACH_POLLER(ioloop_handler_is_told_that_the_peer_closed)
{
    watched w = {0};
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    close(pair[1]);
    w.fd = pair[0];
    add_watch(&w, TORNADO_IOLOOP_READ);
    turns(1);
    CHECK_INT(w.calls, 1);
    CHECK(w.events & TORNADO_IOLOOP_READ);
    remove_watch(&w);
    close(pair[0]);
}

TEST_EACH_POLLER(ioloop_second_handler_of_a_descriptor_is_refused_and_the_first_stays)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched first = {0}, second = {0};
    int ends[2];
    make_ready_pipe(ends);
    first.fd = second.fd = ends[0];
    add_watch(&first, TORNADO_IOLOOP_READ);
    check_failed(tornado_ioloop_add_handler(loop, ends[0], watch, &second, TORNADO_IOLOOP_WRITE),
                 TORNADO_ERR_STATE);
    turns(1);
    CHECK_INT(first.calls, 1);
    CHECK_INT(first.events, TORNADO_IOLOOP_READ);
    remove_watch(&first);
    add_watch(&second, TORNADO_IOLOOP_READ);
    turns(1);
    CHECK_INT(first.calls, 1);
    CHECK_INT(second.calls, 1);
    remove_watch(&second);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_bad_descriptor_is_one_clear_error_and_costs_no_memory)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int ends[2], bad[] = {-1, -1000, 0, 1000000, INT32_MIN};
    char number[20];
    watched w = {0};
    log_keep();
    make_ready_pipe(ends);
    bad[2] = dup(ends[0]);
    close(bad[2]);
    long allocations = test_allocs();
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(!tornado_ioloop_add_handler(loop, bad[i], watch, &w, TORNADO_IOLOOP_READ));
        CHECK_INT(tornado_last_error()->sys_errno, EBADF);
        snprintf(number, sizeof number, "%d", bad[i]);
        CHECK(strstr(tornado_last_error()->message, number) != NULL);
        CHECK(strstr(tornado_last_error()->message, "tornado_ioloop_add_handler") != NULL);
        check_failed(tornado_ioloop_update_handler(loop, bad[i], TORNADO_IOLOOP_READ), TORNADO_ERR_STATE);
    }
    CHECK_INT(test_allocs(), allocations);
    CHECK_STR(log_text, "");
    w.fd = ends[0]; /* the loop still works */
    add_watch(&w, TORNADO_IOLOOP_READ);
    turns(1);
    CHECK_INT(w.calls, 1);
    remove_watch(&w);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_number_that_was_refused_can_be_watched_later)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched w = {0};
    int ends[2];
    make_ready_pipe(ends);
    w.fd = dup(ends[0]);
    close(w.fd);
    CHECK(!tornado_ioloop_add_handler(loop, w.fd, watch, &w, TORNADO_IOLOOP_READ));
    CHECK_INT(dup(ends[0]), w.fd);
    add_watch(&w, TORNADO_IOLOOP_READ);
    turns(1);
    CHECK_INT(w.calls, 1);
    remove_watch(&w);
    close(w.fd);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_update_changes_what_a_handler_is_called_for)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    static const unsigned wanted[] = {TORNADO_IOLOOP_WRITE,
                                      TORNADO_IOLOOP_READ,
                                      TORNADO_IOLOOP_READ,
                                      0,
                                      TORNADO_IOLOOP_READ | TORNADO_IOLOOP_WRITE,
                                      TORNADO_IOLOOP_WRITE};
    watched w = {0};
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(write(pair[1], "x", 1) == 1);
    w.fd = pair[0];
    add_watch(&w, TORNADO_IOLOOP_READ);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        w.events = 0;
        w.calls = 0;
        CHECK(tornado_ioloop_update_handler(loop, pair[0], wanted[i]));
        turns(2);
        CHECK_INT(w.events, wanted[i]);
        CHECK_INT(w.calls, wanted[i] ? 2 : 0);
    }
    remove_watch(&w);
    check_failed(tornado_ioloop_update_handler(loop, pair[0], TORNADO_IOLOOP_READ), TORNADO_ERR_STATE);
    close_pipe(pair);
}

TEST_EACH_POLLER(ioloop_remove_stops_the_calls_and_leaves_the_descriptor_open)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched w = {0};
    int ends[2];
    log_keep();
    make_ready_pipe(ends);
    w.fd = ends[0];
    add_watch(&w, TORNADO_IOLOOP_READ);
    remove_watch(&w);
    turns(2);
    CHECK_INT(w.calls, 0);
    CHECK(is_open(ends[0]));
    CHECK_STR(log_text, "");
    CHECK(!tornado_ioloop_remove_handler(loop, ends[0]));
    CHECK(!tornado_ioloop_remove_handler(loop, -1));
    CHECK(!tornado_ioloop_remove_handler(loop, 1 << 30));
    CHECK_INT(logged("\n"), 3);
    CHECK_INT(logged("[D "), 3);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_handler_may_remove_itself)
{
    watched w = {0};
    int ends[2];
    make_ready_pipe(ends);
    w.fd = ends[0];
    for (int i = 1; i < 4; i++) {
        CHECK(
            tornado_ioloop_add_handler(tornado_ioloop_current(), w.fd, watch_and_remove, &w, TORNADO_IOLOOP_READ));
        turns(3);
        CHECK_INT(w.calls, i);
    }
    close_pipe(ends);
}

/* Several ready pipes; whichever handler comes first does something to all of the others. */
enum { RIVALS = 5 };

static struct {
    int pipes[RIVALS][2], calls;
    int quiet[2];
    watched replacement[RIVALS];
    bool replace;
} rivals;

static void outdo(int fd, unsigned events, void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    (void)events;
    (void)arg;
    rivals.calls++;
    for (int i = 0; i < RIVALS; i++) {
        int other = rivals.pipes[i][0];
        if (other == fd)
            continue;
        CHECK(tornado_ioloop_remove_handler(loop, other));
        if (!rivals.replace)
            continue;
        CHECK(close(other) == 0);
        CHECK(dup2(rivals.quiet[0], other) == other); /* the same number, for a pipe that nobody writes to */
        rivals.replacement[i].fd = other;
        add_watch(&rivals.replacement[i], TORNADO_IOLOOP_READ);
    }
    CHECK(tornado_ioloop_remove_handler(loop, fd));
}

static void let_rivals_meet(bool replace)
{
    rivals.replace = replace;
    make_pipe(rivals.quiet);
    for (int i = 0; i < RIVALS; i++) {
        make_ready_pipe(rivals.pipes[i]);
        CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), rivals.pipes[i][0], outdo, NULL,
                                         TORNADO_IOLOOP_READ));
    }
    turns(3);
    CHECK_INT(rivals.calls, 1);
}

TEST_EACH_POLLER(ioloop_handler_may_remove_others_that_are_ready_in_the_same_turn)
{
    let_rivals_meet(false);
    for (int i = 0; i < RIVALS; i++)
        close_pipe(rivals.pipes[i]);
    close_pipe(rivals.quiet);
}

TEST_EACH_POLLER(ioloop_events_of_a_closed_descriptor_do_not_reach_the_next_of_that_number)
{
    int called = 0;
    let_rivals_meet(true);
    for (int i = 0; i < RIVALS; i++)
        CHECK_INT(rivals.replacement[i].calls, 0);
    CHECK(write(rivals.quiet[1], "x", 1) == 1);
    turns(1);
    for (int i = 0; i < RIVALS; i++) {
        called += rivals.replacement[i].calls;
        if (rivals.replacement[i].fd)
            remove_watch(&rivals.replacement[i]);
        close_pipe(rivals.pipes[i]);
    }
    CHECK_INT(called, RIVALS - 1);
    close_pipe(rivals.quiet);
}

static void read_and_swap(int fd, unsigned events, void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched *w = arg;
    (void)events;
    CHECK(tornado_ioloop_remove_handler(loop, fd));
    CHECK(tornado_ioloop_add_handler(loop, fd, watch_and_remove, w, TORNADO_IOLOOP_READ));
}

TEST_EACH_POLLER(ioloop_handler_may_give_its_descriptor_to_another)
{
    watched w = {0};
    int ends[2];
    make_ready_pipe(ends);
    w.fd = ends[0];
    CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), w.fd, read_and_swap, &w, TORNADO_IOLOOP_READ));
    turns(1);
    CHECK_INT(w.calls, 0); /* what was reported was for the first */
    turns(2);
    CHECK_INT(w.calls, 1);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_goes_on_when_a_descriptor_was_closed_before_it_was_removed)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched w = {0};
    int ends[2], others[2];
    log_keep();
    make_pipe(ends);
    w.fd = ends[0];
    CHECK(tornado_ioloop_add_handler(loop, w.fd, watch_and_remove, &w, TORNADO_IOLOOP_READ));
    close(ends[0]);
    turns(2);
    if (w.calls) { /* those who notice say so */
        CHECK_INT(w.calls, 1);
        CHECK(w.events & TORNADO_IOLOOP_ERROR);
    } else {
        CHECK(tornado_ioloop_remove_handler(loop, w.fd));
    }
    make_ready_pipe(others); /* its number is free for others */
    CHECK(dup2(others[0], w.fd) == w.fd);
    w.calls = 0;
    add_watch(&w, TORNADO_IOLOOP_READ);
    turns(1);
    CHECK_INT(w.calls, 1);
    CHECK_INT(logged("[C "), 0);
    remove_watch(&w);
    close_pipe(ends);
    if (others[0] != w.fd)
        close(others[0]);
    close(others[1]);
}

/* More descriptors are ready than a loop takes in at once. */
enum { CROWD = 300 };

static watched crowd[CROWD];

static void fill_crowd(int fd, tornado_fd_handler handler)
{
    for (int i = 0; i < CROWD; i++) {
        crowd[i].fd = dup(fd);
        if (crowd[i].fd < 0)
            SKIP("no more than %d descriptors can be open", i);
        CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), crowd[i].fd, handler, &crowd[i],
                                         TORNADO_IOLOOP_READ));
    }
}

static int crowd_calls(void)
{
    int calls = 0;
    for (int i = 0; i < CROWD; i++)
        calls += crowd[i].calls;
    return calls;
}

static void empty_crowd(void)
{
    for (int i = 0; i < CROWD; i++)
        close(crowd[i].fd);
}

TEST_EACH_POLLER(ioloop_many_ready_descriptors_are_all_served)
{
    int ends[2];
    make_ready_pipe(ends);
    fill_crowd(ends[0], watch_and_remove);
    turns(2 * CROWD);
    CHECK_INT(crowd_calls(), CROWD);
    empty_crowd();
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_descriptors_that_are_always_ready_do_not_keep_others_from_their_turn)
{
    int ends[2];
    make_ready_pipe(ends);
    fill_crowd(ends[0], watch);
    turns(2 * CROWD);
    for (int i = 0; i < CROWD; i++) {
        CHECK(crowd[i].calls > 0);
        remove_watch(&crowd[i]);
    }
    empty_crowd();
    close_pipe(ends);
}

static void add_crowd(int fd, unsigned events, void *arg)
{
    watch_and_remove(fd, events, arg);
    fill_crowd(fd, watch_and_remove);
}

TEST_EACH_POLLER(ioloop_handler_may_add_many_others)
{
    watched w = {0};
    int ends[2];
    make_ready_pipe(ends);
    w.fd = ends[0];
    CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), w.fd, add_crowd, &w, TORNADO_IOLOOP_READ));
    turns(1);
    CHECK_INT(w.calls, 1);
    CHECK_INT(crowd_calls(), 0);
    turns(2 * CROWD);
    CHECK_INT(crowd_calls(), CROWD);
    empty_crowd();
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_descriptor_too_high_for_select_is_an_error_there)
{
    struct rlimit limit;
    watched w = {0};
    int ends[2];
    make_ready_pipe(ends);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur <= FD_SETSIZE + 8) {
        limit.rlim_cur = FD_SETSIZE + 8;
        if (limit.rlim_cur > limit.rlim_max || setrlimit(RLIMIT_NOFILE, &limit) != 0)
            SKIP("no more than %d descriptors can be open", FD_SETSIZE);
    }
    w.fd = fcntl(ends[0], F_DUPFD, FD_SETSIZE);
    CHECK(w.fd >= FD_SETSIZE);
    if (strcmp(test_poller, "select")) {
        add_watch(&w, TORNADO_IOLOOP_READ);
        turns(1);
        CHECK_INT(w.calls, 1);
        remove_watch(&w);
    } else {
        check_failed(tornado_ioloop_add_handler(tornado_ioloop_current(), w.fd, watch, &w, TORNADO_IOLOOP_READ),
                     TORNADO_ERR_SYSTEM);
        CHECK(strstr(tornado_last_error()->message, "too high for the poller select"));
        turns(1);
        int last = fcntl(ends[0], F_DUPFD, FD_SETSIZE - 1); /* the last that it can hold */
        if (last == FD_SETSIZE - 1) {
            close(w.fd);
            w.fd = last;
            add_watch(&w, TORNADO_IOLOOP_READ);
            turns(1);
            CHECK_INT(w.calls, 1);
            remove_watch(&w);
        }
    }
    close(w.fd);
    close_pipe(ends);
}

/*----------------------------------------------------------------------------
 * Start and stop.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(ioloop_stop_before_start_has_it_return_at_once)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_add_callback(loop, note, "a"));
    tornado_ioloop_stop(loop);
    tornado_ioloop_stop(loop);
    run_loop();
    CHECK_STR(traced(), "");
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    run_loop();
    CHECK_STR(traced(), "a");
}

TEST_EACH_POLLER(ioloop_stop_lets_the_turn_end)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    CHECK(tornado_ioloop_add_callback(loop, add_from_callback, "b"));
    run_loop();
    CHECK(strncmp(traced(), "Ab", 2) == 0);
    turns(1);
    CHECK(strchr(traced(), 'B') != NULL); /* it was kept for the next start */
}

TEST_EACH_POLLER(ioloop_can_be_started_again_and_again)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int count = 0;
    for (int i = 0; i < 50; i++) {
        CHECK(tornado_ioloop_add_callback(loop, count_one, &count));
        CHECK(i % 2 ? tornado_ioloop_call_later(loop, 0, stop_loop, NULL)
                    : tornado_ioloop_add_callback(loop, stop_loop, NULL));
        run_loop();
    }
    CHECK_INT(count, 50);
}

static void *misuse_again(void *arg)
{
    not_reached(arg);
    return arg;
}

static void misuse(void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    check_failed(tornado_ioloop_start(loop), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_close(loop, false), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_close(loop, true), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_run_sync(loop, misuse_again, arg), TORNADO_ERR_STATE);
    note("m");
}

static void *misuse_in_coroutine(void *arg)
{
    misuse(arg);
    return NULL;
}

TEST_EACH_POLLER(ioloop_that_runs_cannot_be_started_nor_closed)
{
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), misuse, NULL));
    turns(1);
    run(misuse_in_coroutine, NULL);
    turns(1); /* none of the calls has stopped it, or had an effect later */
    CHECK_STR(traced(), "mm");
}

/*----------------------------------------------------------------------------
 * Which loop is current.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(ioloop_new_one_becomes_current_only_where_there_is_none)
{
    tornado_ioloop *first = tornado_ioloop_new(NULL), *second = tornado_ioloop_new(NULL);
    CHECK(first != NULL && second != NULL);
    CHECK(tornado_ioloop_current() == first);
    tornado_ioloop_make_current(second);
    CHECK(tornado_ioloop_current() == second);
    tornado_ioloop_make_current(second);
    tornado_ioloop_clear_current();
    tornado_ioloop *third = tornado_ioloop_new(NULL);
    CHECK(tornado_ioloop_current() == third);
    tornado_ioloop_make_current(NULL);
    tornado_ioloop *fourth = tornado_ioloop_current(); /* made, as there is none */
    CHECK(fourth && fourth != first && fourth != second && fourth != third);
    CHECK(tornado_ioloop_close(first, false));
    CHECK(tornado_ioloop_current() == fourth);
    CHECK(tornado_ioloop_close(fourth, false));
    CHECK(tornado_ioloop_new(NULL) == tornado_ioloop_current());
    CHECK(tornado_ioloop_close(second, false));
    CHECK(tornado_ioloop_close(third, true));
}

static void check_current(void *loop)
{
    CHECK(tornado_ioloop_current() == loop);
    note("c");
}

static void start_inner(void *inner)
{
    tornado_ioloop *outer = tornado_ioloop_current();
    CHECK(tornado_ioloop_add_callback(inner, check_current, inner));
    CHECK(tornado_ioloop_add_callback(inner, stop_loop, NULL));
    CHECK(tornado_ioloop_start(inner));
    CHECK(tornado_ioloop_current() == outer);
    note("o");
}

TEST_EACH_POLLER(ioloop_is_current_while_it_runs_and_the_one_before_afterwards)
{
    tornado_ioloop *outer = tornado_ioloop_current(), *inner = tornado_ioloop_new(NULL);
    start_inner(inner);
    CHECK_STR(traced(), "co");
    CHECK(tornado_ioloop_add_callback(outer, start_inner, inner)); /* a loop inside another */
    CHECK(tornado_ioloop_add_callback(outer, check_current, outer));
    turns(1);
    CHECK_STR(traced(), "coc");
    CHECK(tornado_ioloop_close(inner, false));
}

TEST_EACH_POLLER(ioloop_leaves_none_current_where_there_was_none_before)
{
    tornado_ioloop *loop = tornado_ioloop_new(NULL);
    tornado_ioloop_clear_current();
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    CHECK(tornado_ioloop_start(loop));
    CHECK(tornado_ioloop_current() != loop);
    CHECK(tornado_ioloop_close(loop, false));
}

static void close_loop(void *loop)
{
    CHECK(tornado_ioloop_close(loop, false));
}

TEST_EACH_POLLER(ioloop_may_close_the_one_that_was_current_before)
{
    tornado_ioloop *before = tornado_ioloop_current(), *loop = tornado_ioloop_new(NULL);
    CHECK(tornado_ioloop_add_callback(loop, close_loop, before));
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    CHECK(tornado_ioloop_start(loop));
    CHECK(tornado_ioloop_close(loop, false));
    turns(1); /* of a new one */
}

static void make_current(void *loop)
{
    tornado_ioloop_make_current(loop);
    CHECK(!loop || tornado_ioloop_current() == loop);
}

TEST_EACH_POLLER(ioloop_callback_may_make_another_or_none_current)
{
    tornado_ioloop *loop = tornado_ioloop_current(), *other = tornado_ioloop_new(NULL);
    for (int i = 0; i < 3; i++) {
        CHECK(tornado_ioloop_add_callback(loop, make_current, i == 1 ? NULL : other));
        CHECK(tornado_ioloop_call_later(loop, 0, make_current, i == 2 ? loop : other));
        tornado_ioloop_stop(other);
        CHECK(tornado_ioloop_start(other));
        CHECK(tornado_ioloop_call_later(loop, 0.001, make_current, loop));
        CHECK(tornado_ioloop_call_later(loop, 0.001, stop_loop, NULL));
        CHECK(tornado_ioloop_start(loop));
        CHECK(tornado_ioloop_current() == loop); /* as before it was started */
        CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
        CHECK(tornado_ioloop_add_callback(loop, make_current, i == 1 ? NULL : other)); /* and stays so */
        CHECK(tornado_ioloop_start(loop));
        CHECK(tornado_ioloop_current() == loop);
    }
    CHECK(tornado_ioloop_close(loop, false));
    CHECK(tornado_ioloop_current() != other);
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    CHECK(tornado_ioloop_close(other, false));
}

static void *use_loop_of_thread(void *other)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(loop && loop != other);
    int count = 0;
    for (int i = 0; i < 20; i++)
        CHECK(tornado_ioloop_call_later(loop, 0, count_one, &count));
    CHECK(tornado_ioloop_call_later(loop, 0.01, stop_loop, NULL));
    run_loop();
    CHECK_INT(count, 20);
    CHECK(tornado_ioloop_current() == loop);
    CHECK(tornado_ioloop_close(loop, false));
    return NULL;
}

TEST_EACH_POLLER(ioloop_of_each_thread_is_its_own)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, use_loop_of_thread, loop) == 0);
    turns(10);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(tornado_ioloop_current() == loop);
}

static void *make_and_close_current(void *loop)
{
    tornado_ioloop_make_current(loop);
    turns(2);
    CHECK(tornado_ioloop_close(loop, false));
    return NULL;
}

TEST_EACH_POLLER(ioloop_that_was_closed_is_no_threads_current_one)
{
    tornado_ioloop *loop = tornado_ioloop_retain(tornado_ioloop_current());
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, make_and_close_current, loop) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(tornado_ioloop_current() != loop);
    turns(1);
    tornado_ioloop_release(loop);
}

/*----------------------------------------------------------------------------
 * run_sync.
 *----------------------------------------------------------------------------*/

static void *double_it(void *arg)
{
    tornado_await(tornado_sleep(0.01));
    *(int *)arg *= 2;
    return arg;
}

static void *fail_in_coroutine(void *arg)
{
    tornado_await(tornado_moment());
    fail_with(arg);
    return NULL;
}

static void *wait_for_long(void *arg)
{
    tornado_defer(note, arg);
    tornado_await(tornado_sleep(1e6));
    FAIL("a wait that was cancelled returned");
}

TEST_EACH_POLLER(ioloop_run_sync_runs_a_function_to_its_end)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int number = 21;
    CHECK(tornado_ioloop_run_sync(loop, double_it, &number));
    CHECK_INT(number, 42);
    CHECK(tornado_ioloop_run_sync_timeout(loop, double_it, &number, 1000));
    CHECK_INT(number, 84);
    CHECK_INT(tornado_ioloop_coroutines(loop), 0);
    turns(1);
}

TEST_EACH_POLLER(ioloop_run_sync_passes_on_what_was_raised)
{
    log_keep();
    check_failed(tornado_ioloop_run_sync(tornado_ioloop_current(), fail_in_coroutine, "no tea"),
                 TORNADO_ERR_CLOSED);
    CHECK_STR(tornado_last_error()->message, "no tea");
    check_failed(tornado_ioloop_run_sync_timeout(tornado_ioloop_current(), fail_in_coroutine, "no cup", 1000),
                 TORNADO_ERR_CLOSED);
    CHECK_STR(tornado_last_error()->message, "no cup");
    CHECK_STR(log_text, ""); /* the caller knows */
}

TEST_EACH_POLLER(ioloop_run_sync_cancels_what_takes_longer_than_its_timeout)
{
    static const double timeouts[] = {0.02, 0, -1};
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    for (size_t i = 0; i < 3; i++) {
        check_failed(tornado_ioloop_run_sync_timeout(loop, wait_for_long, "d", timeouts[i]), TORNADO_ERR_TIMEOUT);
        CHECK_INT(tornado_ioloop_coroutines(loop), 0);
    }
    CHECK(strlen(traced()) >= 1); /* with no time at all they may not have begun */
    check_failed(tornado_ioloop_run_sync_timeout(loop, wait_for_long, "d", NAN), TORNADO_ERR_INVALID);
    CHECK_STR(log_text, "");
    turns(2);
    CHECK_STR(traced(), "");
}

/* Stops the loop some turns after its last coroutine has ended. */
static void stop_when_alone(void *turns_alone)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int *turns_left = turns_alone;
    if (tornado_ioloop_coroutines(loop) == 0 && --*turns_left == 0)
        tornado_ioloop_stop(loop);
    else
        CHECK(tornado_ioloop_add_callback(loop, stop_when_alone, turns_alone));
}

TEST_EACH_POLLER(ioloop_run_sync_fails_when_the_loop_is_stopped_meanwhile)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int number = 1, turns_left = 5;
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    check_failed(tornado_ioloop_run_sync(loop, double_it, &number), TORNADO_ERR_STATE);
    tornado_ioloop_stop(loop);
    check_failed(tornado_ioloop_run_sync(loop, double_it, &number), TORNADO_ERR_STATE);
    CHECK_INT(number, 1);
    CHECK(tornado_ioloop_add_callback(loop, stop_when_alone, &turns_left));
    run_loop(); /* they go on, and their ends do not stop it */
    CHECK_INT(turns_left, 0);
    CHECK_INT(number, 4);
    CHECK(tornado_ioloop_run_sync(loop, double_it, &number));
    CHECK_INT(number, 8);
}

static void *run_inner(void *inner)
{
    int number = 3;
    CHECK(tornado_ioloop_run_sync(inner, double_it, &number));
    CHECK_INT(number, 6);
    CHECK(tornado_ioloop_current() != inner);
    return NULL;
}

TEST_EACH_POLLER(ioloop_run_sync_of_another_loop_works_inside_a_callback_and_a_coroutine)
{
    tornado_ioloop *inner = tornado_ioloop_new(&(tornado_ioloop_options){.poller = test_poller});
    if (tornado_ioloop_current() == inner)
        tornado_ioloop_clear_current();
    run(run_inner, inner);
    CHECK(tornado_ioloop_close(inner, false));
}

/*----------------------------------------------------------------------------
 * The end of a loop.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(ioloop_close_drops_what_has_not_run)
{
    long live = test_live();
    tornado_ioloop *loop = tornado_ioloop_current();
    pthread_t thread;
    int ends[2];
    make_ready_pipe(ends);
    turns(1);
    post.loop = loop;
    CHECK(pthread_create(&thread, NULL, stop_from_thread, &ends[0]) == 0);
    CHECK(pthread_join(thread, NULL) == 0); /* a callback of another thread is under way */
    for (int i = 0; i < 100; i++) {
        CHECK(tornado_ioloop_add_callback(loop, not_reached, NULL));
        CHECK(tornado_ioloop_call_later(loop, 0, not_reached, NULL));
    }
    CHECK(tornado_ioloop_add_callback_from_signal(loop, not_reached, NULL));
    CHECK(write(ends[1], "x", 1) == 1);
    watched w = {.fd = ends[0]};
    add_watch(&w, TORNADO_IOLOOP_READ);
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_INT(test_live(), live);
    CHECK_INT(w.calls, 0);
    CHECK(is_open(ends[0]));
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_close_can_close_every_descriptor_that_is_registered)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    watched registered = {0}, removed = {0};
    int first[2], second[2];
    make_pipe(first);
    make_pipe(second);
    registered.fd = first[0];
    removed.fd = second[0];
    add_watch(&registered, TORNADO_IOLOOP_READ);
    add_watch(&removed, TORNADO_IOLOOP_READ);
    remove_watch(&removed);
    CHECK(tornado_ioloop_close(loop, true));
    CHECK(!is_open(first[0]));
    CHECK(is_open(first[1]) && is_open(second[0]) && is_open(second[1]));
    close(first[1]);
    close_pipe(second);
}

TEST_EACH_POLLER(ioloop_leaves_no_descriptor_of_its_own_open)
{
    bool before[64];
    for (int fd = 0; fd < 64; fd++)
        before[fd] = is_open(fd);
    tornado_ioloop *loop = tornado_ioloop_current();
    for (int fd = 0; fd < 64; fd++) /* nor does a program that the process becomes get any */
        CHECK(before[fd] || !is_open(fd) || (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    turns(1);
    CHECK(tornado_ioloop_close(loop, false));
    for (int fd = 0; fd < 64; fd++)
        CHECK_INT(is_open(fd), before[fd]);
}

TEST_EACH_POLLER(ioloop_that_is_closed_refuses_everything)
{
    tornado_ioloop *loop = tornado_ioloop_retain(tornado_ioloop_current());
    tornado_timeout timer = tornado_ioloop_call_later(loop, 1000, not_reached, NULL);
    int ends[2];
    log_keep();
    make_pipe(ends);
    turns(1);
    CHECK(tornado_ioloop_close(loop, false));
    CHECK(tornado_ioloop_close(loop, true));  /* harmless */
    CHECK(!tornado_ioloop_configure("none")); /* an error that is not to change */
    CHECK(!tornado_ioloop_add_callback(loop, not_reached, NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(!tornado_ioloop_add_callback_from_signal(loop, not_reached, NULL));
    CHECK(!tornado_ioloop_remove_timeout(loop, timer));
    check_failed(tornado_ioloop_call_later(loop, 0, not_reached, NULL) != 0, TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_call_at(loop, 0, not_reached, NULL) != 0, TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_add_handler(loop, ends[0], watch, NULL, TORNADO_IOLOOP_READ), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_update_handler(loop, ends[0], TORNADO_IOLOOP_READ), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_remove_handler(loop, ends[0]), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_start(loop), TORNADO_ERR_STATE);
    check_failed(tornado_ioloop_run_sync(loop, double_it, NULL), TORNADO_ERR_STATE);
    tornado_ioloop_stop(loop);
    CHECK_STR(tornado_ioloop_poller(loop), test_poller);
    CHECK(tornado_ioloop_time(loop) > 0);
    tornado_ioloop_release(loop);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_close_unwinds_coroutines_and_futures_outlive_it)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *waits = tornado_spawn(wait_for_long, "d"), *pending = tornado_future_new();
    log_keep();
    turns(2);
    tornado_future *unborn = tornado_spawn(wait_for_long, "never begun");
    CHECK_STR(traced(), "");
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_STR(traced(), "d");
    CHECK(is_error(tornado_future_error(waits), TORNADO_ERR_CANCELLED));
    CHECK(tornado_future_error(unborn) != NULL);
    CHECK(!tornado_future_done(pending));
    tornado_future_release(waits);
    tornado_future_release(unborn);
    tornado_future_release(pending);
}

/*----------------------------------------------------------------------------
 * Periodic callbacks.
 *----------------------------------------------------------------------------*/

static struct {
    tornado_periodic_callback *periodic;
    int runs, stop_at;
    void (*on_run)(void);
} beat;

static void on_beat(void *arg)
{
    CHECK(arg == &beat);
    beat.runs++;
    if (beat.runs == beat.stop_at)
        stop_loop(NULL);
    if (beat.on_run)
        beat.on_run();
}

static void beat_start(double milliseconds, double jitter)
{
    beat.periodic = tornado_periodic_callback_new(on_beat, &beat, milliseconds, jitter);
    CHECK(beat.periodic != NULL);
    CHECK(!tornado_periodic_callback_is_running(beat.periodic));
    CHECK(tornado_periodic_callback_start(beat.periodic));
    CHECK(tornado_periodic_callback_is_running(beat.periodic));
}

TEST_EACH_POLLER(ioloop_periodic_runs_again_and_again_but_not_before_its_time)
{
    double begin = tornado_monotonic();
    beat_start(10, 0);
    beat.stop_at = 5;
    turns(1);
    CHECK(beat.runs == 0 || tornado_monotonic() - begin >= 0.01); /* the first run is after one interval */
    run_loop();
    CHECK_INT(beat.runs, 5);
    CHECK(tornado_monotonic() - begin >= 0.05 - 1e-6);
    CHECK(tornado_periodic_callback_is_running(beat.periodic));
    tornado_periodic_callback_stop(beat.periodic);
    CHECK(!tornado_periodic_callback_is_running(beat.periodic));
    tornado_periodic_callback_stop(beat.periodic);
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.03, stop_loop, NULL));
    run_loop();
    CHECK_INT(beat.runs, 5);
    tornado_periodic_callback_free(beat.periodic);
    tornado_periodic_callback_free(NULL);
}

/* How long a loop of the tests' poller would wait now, in milliseconds. Waits for nothing, but runs what is due. */
static double patience(void)
{
    probe.impatient = true;
    run_loop();
    probe.impatient = false;
    return (double)probe.timeout / 1e6;
}

/* When it would wake up, in milliseconds: the least of several answers, as it takes a while to look at a clock. */
static double next_deadline(void)
{
    double least = INFINITY;
    for (int i = 0; i < 20; i++) {
        double left = patience(), at = tornado_monotonic() * 1000 + left;
        CHECK(left > 0);
        least = at < least ? at : least;
    }
    return least;
}

static void miss_two_and_a_half(void)
{
    const struct timespec time = {0, 750000000};
    if (beat.runs == 1)
        nanosleep(&time, NULL);
}

TEST(ioloop_periodic_skips_runs_that_were_missed_and_keeps_its_phase)
{
    probe_loop();
    beat_start(300, 0);
    beat.on_run = miss_two_and_a_half;
    beat.stop_at = 1;
    double first = next_deadline();
    CHECK(first <= tornado_monotonic() * 1000 + 300);
    run_loop();
    double now = tornado_monotonic() * 1000, next = next_deadline(), periods = (next - first) / 300;
    CHECK_INT(beat.runs, 1);
    if (fabs(periods - (double)(long long)(periods + 0.5)) > 0.1)
        FAIL("the next run is %g intervals after the first", periods);
    CHECK(periods > 2.9);
    CHECK(next <= now + 301);
    tornado_periodic_callback_free(beat.periodic);
}

TEST_EACH_POLLER(ioloop_periodic_that_is_started_twice_runs_as_often_as_one)
{
    beat_start(0.001, 0);
    CHECK(tornado_periodic_callback_start(beat.periodic));
    turns(20);
    CHECK(beat.runs > 0 && beat.runs <= 20); /* at most once in each turn */
    tornado_periodic_callback_stop(beat.periodic);
    beat.runs = 0;
    turns(5);
    CHECK_INT(beat.runs, 0);
    tornado_periodic_callback_free(beat.periodic);
}

static void beat_stop(void)
{
    tornado_periodic_callback_stop(beat.periodic);
    CHECK(!tornado_periodic_callback_is_running(beat.periodic));
}

static void beat_free(void)
{
    tornado_periodic_callback_free(beat.periodic);
    beat.periodic = NULL;
}

static void beat_restart(void)
{
    beat_stop();
    CHECK(tornado_periodic_callback_start(beat.periodic));
    CHECK(tornado_periodic_callback_start(beat.periodic));
}

static void beat_fail(void)
{
    fail_with("out of step");
}

static void beat_free_and_fail(void)
{
    beat_free();
    beat_fail();
}

TEST_EACH_POLLER(ioloop_periodic_may_stop_free_and_start_itself_and_raise)
{
    static const struct {
        void (*on_run)(void);
        bool goes_on;
        int errors;
    } cases[] = {{beat_stop, false, 0},
                 {beat_free, false, 0},
                 {beat_restart, true, 0},
                 {beat_fail, true, 3},
                 {beat_free_and_fail, false, 1}};
    tornado_ioloop *loop = tornado_ioloop_current();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        log_keep();
        beat.runs = 0;
        beat.stop_at = 3;
        beat.on_run = cases[i].on_run;
        beat_start(1, 0);
        tornado_timeout enough = cases[i].goes_on ? 0 : tornado_ioloop_call_later(loop, 0.02, stop_loop, NULL);
        run_loop();
        tornado_ioloop_remove_timeout(loop, enough);
        tornado_periodic_callback_free(beat.periodic);
        CHECK_INT(beat.runs, cases[i].goes_on ? 3 : 1);
        CHECK_INT(logged("out of step"), cases[i].errors);
        CHECK_INT(logged("[E "), cases[i].errors);
    }
}

TEST(ioloop_periodic_that_makes_no_sense_is_refused)
{
    static const double numbers[][2] = {{0, 0},     {-0.0, 0}, {-1, 0},   {-INFINITY, 0}, {NAN, 0},
                                        {10, -0.1}, {10, 1.1}, {10, NAN}, {10, INFINITY}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        check_failed(tornado_periodic_callback_new(not_reached, NULL, numbers[i][0], numbers[i][1]) != NULL,
                     TORNADO_ERR_INVALID);
}

TEST(ioloop_periodic_may_be_as_rare_as_never)
{
    static const double intervals[] = {INFINITY, 1e300, 9.2e15, 9.3e15, 1e12};
    for (int i = 0; i < 5 * 30; i++) {
        beat_start(intervals[i % 5], i < 5 ? 0 : 1);
        turns(1);
        tornado_periodic_callback_free(beat.periodic);
    }
    CHECK_INT(beat.runs, 0);
}

TEST(ioloop_periodic_jitter_makes_intervals_differ_within_bounds)
{
    double least = INFINITY, most = 0;
    tornado_ioloop *loop = probe_loop();
    CHECK(tornado_ioloop_call_later(loop, 1000, not_reached, NULL));
    beat.periodic = tornado_periodic_callback_new(on_beat, &beat, 800, 0.5);
    for (int i = 0; i < 50; i++) {
        double before = tornado_monotonic() * 1000;
        CHECK(tornado_periodic_callback_start(beat.periodic));
        double after = tornado_monotonic() * 1000, at = next_deadline();
        CHECK(at - before >= 800 * 0.75 - 1);
        least = at - before < least ? at - before : least;
        most = at - after > most ? at - after : most;
        tornado_periodic_callback_stop(beat.periodic);
    }
    CHECK(least <= 800 * 1.25 + 1);
    CHECK(most - least > 10);
    tornado_periodic_callback_free(beat.periodic);
}

TEST_EACH_POLLER(ioloop_periodic_outlives_its_loop_and_can_start_on_another)
{
    tornado_ioloop *first = tornado_ioloop_current();
    beat_start(1, 0);
    CHECK(tornado_ioloop_close(first, false));
    tornado_periodic_callback_stop(beat.periodic);
    CHECK(!tornado_periodic_callback_is_running(beat.periodic));
    CHECK(tornado_periodic_callback_start(beat.periodic)); /* on a new loop */
    beat.stop_at = 2;
    run_loop();
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    tornado_periodic_callback_free(beat.periodic);
}

static void clear_and_fail(void *loop)
{
    note("a");
    tornado_ioloop_clear_current();
    if (strlen(trace) == 3)
        tornado_ioloop_stop(loop);
    fail_with("out of step");
}

TEST_EACH_POLLER(ioloop_periodic_may_clear_the_current_loop_and_raise)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    tornado_periodic_callback *periodic = tornado_periodic_callback_new(clear_and_fail, loop, 1, 0);
    CHECK(tornado_periodic_callback_start(periodic));
    run_loop();
    CHECK_STR(traced(), "aaa");
    CHECK_INT(logged("Exception in periodic callback"), 3);
    CHECK_INT(logged("out of step"), 3);
    tornado_periodic_callback_free(periodic);
    CHECK(tornado_ioloop_close(loop, false));
}

/* ---- as coroutines ---- */

static struct {
    double seconds;            /* that a run takes */
    int begun, ended, stop_at; /* runs */
    tornado_callback at_end;   /* of each run */
    tornado_callback after;    /* the end, and before what follows the end of a coroutine */
    tornado_periodic_callback *periodic;
} swing;

static void *on_swing(void *arg)
{
    CHECK(arg == &swing);
    CHECK_INT(swing.begun, swing.ended); /* no other is under way */
    swing.begun++;
    tornado_await(tornado_sleep(swing.seconds));
    swing.ended++;
    if (swing.ended == swing.stop_at)
        stop_loop(NULL);
    if (swing.after)
        tornado_ioloop_add_callback(tornado_ioloop_current(), swing.after, NULL);
    if (swing.at_end)
        swing.at_end("out of swing");
    return NULL;
}

static void fail_at_the_end(void *arg)
{
    tornado_raise(TORNADO_ERR_SYSTEM, "%s", (const char *)arg);
}

static void swing_start(double milliseconds)
{
    swing.begun = swing.ended = 0;
    swing.periodic = tornado_periodic_callback_new_coroutine(on_swing, &swing, milliseconds, 0);
    CHECK(swing.periodic != NULL);
    CHECK(!tornado_periodic_callback_is_running(swing.periodic));
    CHECK(tornado_periodic_callback_start(swing.periodic));
    CHECK(tornado_periodic_callback_is_running(swing.periodic));
}

static void swing_free(void *arg)
{
    (void)arg;
    tornado_periodic_callback_free(swing.periodic);
    swing.periodic = NULL;
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_runs_again_and_again_and_never_overlaps_itself)
{
    static const double seconds[] = {0, 0.02};
    for (int i = 0; i < 2; i++) {
        double begin = tornado_monotonic();
        swing.seconds = seconds[i];
        swing.stop_at = 4;
        swing_start(5);
        run_loop();
        CHECK_INT(swing.ended, 4);
        CHECK(tornado_monotonic() - begin >= 4 * (i ? 0.025 : 0.005) - 0.005 - 1e-6);
        tornado_periodic_callback_stop(swing.periodic);
        CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.02, stop_loop, NULL));
        run_loop();
        CHECK_INT(swing.begun, 4);
        swing_free(NULL);
    }
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_that_raises_is_logged_and_runs_again)
{
    log_keep();
    swing.at_end = fail_at_the_end;
    swing.stop_at = 3;
    swing_start(1);
    run_loop();
    turns(2);
    tornado_periodic_callback_free(swing.periodic);
    CHECK_INT(logged("out of swing"), 3);
    CHECK_INT(logged("[E "), 3);
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_that_is_freed_lets_its_run_go_on)
{
    log_keep();
    swing.seconds = 0.02;
    swing.stop_at = 1;
    for (int i = 0; i < 4; i++) { /* while it waits or within itself; it ends well or raises */
        swing.at_end = i < 2 ? NULL : fail_at_the_end;
        swing_start(1);
        while (i % 2 == 0 && swing.begun == 0)
            CHECK(tornado_ioloop_run_once(tornado_ioloop_current(), 1));
        if (i % 2 == 0)
            swing_free(NULL);
        else
            CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.01, swing_free, NULL));
        run_loop();
        turns(2);
        CHECK_INT(swing.begun, 1);
        CHECK_INT(swing.ended, 1);
        CHECK(swing.periodic == NULL);
        CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 0);
        CHECK_INT(logged("out of swing"), i < 2 ? 0 : i - 1);
    }
}

static void be_without_a_loop(void *loop)
{
    tornado_ioloop_clear_current();
    CHECK(tornado_ioloop_call_later(loop, 0.0001, be_without_a_loop, loop) != 0);
}

static void *stop_its_loop(void *loop)
{
    note("a");
    tornado_ioloop_stop(loop);
    return NULL;
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_runs_on_its_loop_though_that_is_not_the_current)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    be_without_a_loop(loop);
    tornado_ioloop_make_current(loop);
    swing.periodic = tornado_periodic_callback_new_coroutine(stop_its_loop, loop, 1, 0);
    CHECK(tornado_periodic_callback_start(swing.periodic));
    CHECK(tornado_ioloop_start(loop));
    CHECK_STR(traced(), "a");
    swing_free(NULL);
    CHECK(tornado_ioloop_close(loop, false));
}

static void swing_free_and_fail(void *arg)
{
    swing_free(NULL);
    fail_at_the_end(arg);
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_may_be_freed_in_the_turn_in_which_it_ended)
{
    log_keep();
    for (int i = 0; i < 4; i++) {
        bool inside = i % 2;
        swing.after = inside ? NULL : swing_free;
        swing.at_end = inside ? i < 2 ? swing_free : swing_free_and_fail : i < 2 ? NULL : fail_at_the_end;
        swing.stop_at = 1;
        swing_start(1);
        run_loop();
        turns(2);
        CHECK(swing.periodic == NULL);
        CHECK_INT(logged("out of swing"), i < 2 ? 0 : i - 1);
    }
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_may_outlive_its_loop_and_start_on_another)
{
    log_keep();
    for (int freed_first = 0; freed_first < 2; freed_first++) {
        for (int ended = 0; ended < 3; ended++) { /* the run waits; it ended in the last turn; a turn ago */
            swing.seconds = ended ? 0 : 1e6;
            swing.stop_at = 1;
            swing_start(1);
            while (swing.begun == 0)
                CHECK(tornado_ioloop_run_once(tornado_ioloop_current(), 1));
            if (ended)
                run_loop();
            turns(ended == 2);
            if (freed_first)
                swing_free(NULL);
            CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
            if (!freed_first) {
                CHECK_INT(swing.ended, ended > 0);
                swing.begun = swing.ended = 0;
                swing.seconds = 0;
                tornado_periodic_callback_stop(swing.periodic);
                CHECK(tornado_periodic_callback_start(swing.periodic));
                run_loop();
                CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
                swing_free(NULL);
            }
            CHECK_INT(test_live(), 0);
        }
    }
    CHECK_INT(logged("[E "), 0);
}

/*----------------------------------------------------------------------------
 * Pollers.
 *----------------------------------------------------------------------------*/

static void check_loop_works(tornado_ioloop *loop, const char *poller)
{
    watched w = {0};
    int ends[2];
    CHECK_STR(tornado_ioloop_poller(loop), poller);
    make_ready_pipe(ends);
    tornado_ioloop_make_current(loop);
    w.fd = ends[0];
    add_watch(&w, TORNADO_IOLOOP_READ);
    CHECK(tornado_ioloop_call_later(loop, 0.001, stop_loop, NULL));
    run_loop();
    CHECK(w.calls > 0);
    remove_watch(&w);
    close_pipe(ends);
}

TEST(ioloop_pollers_are_chosen_by_name_and_may_be_mixed)
{
    static const char *const names[] = {"poll", "select", "epoll", "kqueue"};
    tornado_ioloop *by_default = tornado_ioloop_new(NULL);
    char first[20];
    snprintf(first, sizeof first, "%s", tornado_ioloop_poller(by_default));
    for (size_t i = 0; i < 4; i++) {
        if (!tornado_ioloop_configure(names[i])) {
            CHECK(i >= 2);
            continue;
        }
        tornado_ioloop *configured = tornado_ioloop_new(NULL);
        tornado_ioloop *chosen = tornado_ioloop_new(&(tornado_ioloop_options){.poller = names[(i + 1) % 2]});
        check_loop_works(configured, names[i]);
        check_loop_works(chosen, names[(i + 1) % 2]);
        check_loop_works(by_default, first); /* it keeps the poller that it was made with */
        CHECK(tornado_ioloop_close(configured, false));
        CHECK(tornado_ioloop_close(chosen, false));
    }
    CHECK(tornado_ioloop_close(by_default, false));
}

TEST(ioloop_poller_that_does_not_exist_is_one_clear_error)
{
    static const char *const names[] = {"morse", "", "EPOLL", "poll "};
    for (size_t i = 0; i < 4; i++) {
        tornado_ioloop_options options = {.poller = names[i]};
        check_failed(tornado_ioloop_configure(names[i]), TORNADO_ERR_INVALID);
        CHECK(strstr(tornado_last_error()->message, names[i]) != NULL);
        check_failed(tornado_ioloop_new(&options) != NULL, TORNADO_ERR_INVALID);
        CHECK(strstr(tornado_last_error()->message, names[i]) != NULL);
    }
    turns(1); /* of one with the poller that it would have been */
}

TEST(ioloop_poller_null_is_the_default_again)
{
    char first[20];
    snprintf(first, sizeof first, "%s", tornado_ioloop_poller(tornado_ioloop_current()));
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    CHECK(tornado_ioloop_configure("select"));
    CHECK(tornado_ioloop_configure(NULL));
    CHECK_STR(tornado_ioloop_poller(tornado_ioloop_current()), first);
}

TEST(ioloop_poller_of_the_program_is_used_for_everything)
{
    tornado_ioloop *loop = probe_loop();
    int number = 4, before = probe.count;
    CHECK_INT(probe.opens, 1);
    check_loop_works(loop, "probe");
    CHECK(probe.waits > 0);
    CHECK_INT(probe.count, before);
    CHECK(tornado_ioloop_run_sync(loop, double_it, &number));
    CHECK_INT(number, 8);
    CHECK_INT(probe.closes, 0);
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_INT(probe.opens, 1);
    CHECK_INT(probe.closes, 1);
}

TEST(ioloop_poller_that_fails_is_reported)
{
    tornado_ioloop_options options = {.custom = &probe_poller};
    watched w = {0};
    int ends[2];
    log_keep();
    make_pipe(ends);
    probe.fail_open = EMFILE;
    check_failed(tornado_ioloop_new(&options) != NULL, TORNADO_ERR_SYSTEM);
    CHECK_INT(tornado_last_error()->sys_errno, EMFILE);
    CHECK(strstr(tornado_last_error()->message, "probe") != NULL);
    probe.fail_open = 0;
    probe.fail_add = ENOSPC;
    check_failed(tornado_ioloop_new(&options) != NULL, TORNADO_ERR_SYSTEM);
    CHECK_INT(probe.opens, 1);
    CHECK_INT(probe.closes, 1);
    probe.fail_add = 0;
    tornado_ioloop *loop = probe_loop();
    probe.fail_add = EPERM;
    check_failed(tornado_ioloop_add_handler(loop, ends[0], watch, &w, TORNADO_IOLOOP_READ), TORNADO_ERR_SYSTEM);
    CHECK_INT(tornado_last_error()->sys_errno, EPERM);
    CHECK_STR(log_text, "");
    probe.fail_wait = EIO;
    run_loop(); /* ends, instead of failing for ever */
    CHECK_INT(logged("probe"), 1);
    CHECK_INT(logged("[C "), 1);
    close_pipe(ends);
}

TEST_EACH_POLLER(ioloop_cannot_be_made_when_no_descriptors_are_left)
{
    struct rlimit limit, few;
    int lowest = dup(0), fds[3];
    close(lowest);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < 3; i++) {
        few = limit;
        few.rlim_cur = (rlim_t)(lowest + i);
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        tornado_ioloop *loop = tornado_ioloop_new(NULL);
        if (loop) { /* two are enough for pollers without a descriptor of their own */
            CHECK(i == 2 && (!strcmp(test_poller, "poll") || !strcmp(test_poller, "select")));
            CHECK(tornado_ioloop_close(loop, false));
        } else {
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_SYSTEM);
            CHECK_INT(tornado_last_error()->sys_errno, EMFILE);
        }
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        fds[i] = dup(0);
        CHECK_INT(fds[i], lowest); /* nothing is left open */
        close(fds[i]);
    }
    turns(1);
}

/*----------------------------------------------------------------------------
 * Orderly shutdown.
 *----------------------------------------------------------------------------*/

static int shutdown_begun[2]; /* a pipe to the parent */

static void run_until_signal(double grace)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    CHECK(tornado_ioloop_shutdown_on_signals(loop, grace));
    CHECK(tornado_ioloop_add_callback(loop, say_ready, &shutdown_begun[1]));
    run_loop();
}

/* Has a process of its own run a loop until it gets a signal; gives its exit status. */
static int end_by_signal(int number)
{
    int status = 0;
    char byte;
    make_pipe(shutdown_begun);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        run_until_signal(1000);
        _exit(logged("shutting down") == 1 ? 42 : 43);
    }
    CHECK(read(shutdown_begun[0], &byte, 1) == 1);
    CHECK(kill(pid, number) == 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    close_pipe(shutdown_begun);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST_EACH_POLLER(ioloop_shutdown_by_signal_lets_main_return)
{
    CHECK_INT(end_by_signal(SIGTERM), 42);
    CHECK_INT(end_by_signal(SIGINT), 42);
    CHECK_INT(end_by_signal(SIGUSR1), 128 + SIGUSR1); /* no other is caught */
}

static void *run_in_thread_until_signal(void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_shutdown_on_signals(loop, 1000));
    CHECK(tornado_ioloop_add_callback(loop, say_ready, &shutdown_begun[1]));
    run_loop();
    CHECK(tornado_ioloop_close(loop, false));
    return arg;
}

TEST_EACH_POLLER(ioloop_shutdown_by_signal_ends_the_loops_of_all_threads)
{
    static const int numbers[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        int status = 0;
        char byte;
        make_pipe(shutdown_begun);
        fflush(NULL);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            pthread_t thread;
            tornado_enable_pretty_logging(&(tornado_log_options){.level = TORNADO_LOG_ERROR});
            CHECK(pthread_create(&thread, NULL, run_in_thread_until_signal, NULL) == 0);
            run_in_thread_until_signal(NULL);
            CHECK(pthread_join(thread, NULL) == 0);
            _exit(42);
        }
        CHECK(read(shutdown_begun[0], &byte, 1) == 1);
        CHECK(read(shutdown_begun[0], &byte, 1) == 1);
        CHECK(kill(pid, numbers[i]) == 0);
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status));
        CHECK_INT(WEXITSTATUS(status), 42);
        close_pipe(shutdown_begun);
    }
}

static void *keep_busy(void *arg)
{
    for (int i = 0; i < 20; i++)
        tornado_await(tornado_moment());
    note(arg);
    return NULL;
}

static void shut_down(void *grace)
{
    tornado_ioloop_shutdown(tornado_ioloop_current(), *(double *)grace);
}

TEST_EACH_POLLER(ioloop_shutdown_waits_for_coroutines_to_finish_within_the_grace)
{
    double grace = 1e6;
    log_keep();
    CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), keep_busy, "finished"));
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), shut_down, &grace));
    run_loop();
    CHECK_STR(traced(), "finished");
    CHECK_STR(log_text, "");
}

TEST_EACH_POLLER(ioloop_shutdown_cancels_coroutines_that_outlive_the_grace)
{
    double grace = 0.05;
    log_keep();
    for (int i = 0; i < 3; i++)
        CHECK(tornado_ioloop_spawn_callback(tornado_ioloop_current(), wait_for_long, "d"));
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), shut_down, &grace));
    run_loop();
    CHECK_STR(traced(), "ddd");
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 0);
    CHECK_INT(logged("[E "), 0);
}

TEST_EACH_POLLER(ioloop_shutdown_of_one_that_does_nothing_stops_it)
{
    static const double graces[] = {1e6, 0, -1, INFINITY, NAN};
    for (size_t i = 0; i < 5; i++) {
        double grace = graces[i];
        CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), shut_down, &grace));
        run_loop();
        CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
        tornado_ioloop_shutdown(tornado_ioloop_current(), graces[i]); /* before it runs */
        run_loop();
        CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    }
}

/* A server with a connection whose handler never ends, so that a shutdown takes all of its grace. */
static void serve_for_ever(tornado_iostream *stream, void *arg)
{
    (void)stream;
    stop_loop(NULL);
    wait_for_long(arg);
}

static tornado_tcpserver *busy_server(int *client)
{
    tornado_tcpserver *server = tornado_tcpserver_new(serve_for_ever, "d", NULL);
    tornado_address address;
    CHECK(server && tornado_tcpserver_listen(server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    CHECK(tornado_address_ip(&address, "127.0.0.1", tornado_tcpserver_port(server)));
    *client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(*client >= 0 &&
          connect(*client, (const struct sockaddr *)(const void *)&address.sockaddr, address.len) == 0);
    run_loop();
    return server;
}

static void signal_self(void *number)
{
    CHECK(kill(getpid(), *(int *)number) == 0);
}

TEST_EACH_POLLER(ioloop_shutdown_stops_at_once_with_the_second_signal)
{
    int client, first = SIGTERM, second = SIGINT;
    tornado_tcpserver *server = busy_server(&client);
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    CHECK(tornado_ioloop_shutdown_on_signals(loop, 1e6));
    CHECK(tornado_ioloop_call_later(loop, 0, signal_self, &first));
    CHECK(tornado_ioloop_call_later(loop, 0.03, note, "|"));
    CHECK(tornado_ioloop_call_later(loop, 0.05, signal_self, &second));
    run_loop();
    CHECK_STR(traced(), "|"); /* it had gone on after the first, and the handler is still there */
    CHECK_INT(tornado_ioloop_coroutines(loop), 1);
    CHECK_INT(logged("shutting down"), 1);
    tornado_tcpserver_free(server);
    CHECK(tornado_ioloop_close(loop, false));
    CHECK_STR(traced(), "d");
    close(client);
}

TEST_EACH_POLLER(ioloop_shutdown_closes_servers_and_goes_on_for_those_who_are_served)
{
    int client, late = socket(AF_INET, SOCK_STREAM, 0);
    tornado_tcpserver *server = busy_server(&client);
    tornado_address address;
    CHECK(tornado_address_ip(&address, "127.0.0.1", tornado_tcpserver_port(server)));
    tornado_ioloop_shutdown(tornado_ioloop_current(), 1e6);
    CHECK(connect(late, (const struct sockaddr *)(const void *)&address.sockaddr, address.len) != 0);
    run(keep_busy, "b");
    CHECK_STR(traced(), "b");
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 1);
    tornado_tcpserver_free(server);
    close(late);
    close(client);
}

TEST_EACH_POLLER(ioloop_shutdown_cancels_those_who_are_served_after_the_grace)
{
    int client;
    tornado_tcpserver *server = busy_server(&client);
    double begin = tornado_monotonic();
    log_keep();
    tornado_ioloop_shutdown(tornado_ioloop_current(), 0.05);
    CHECK_STR(traced(), "");
    run_loop();
    CHECK(tornado_monotonic() - begin >= 0.05 - 1e-6);
    CHECK_STR(traced(), "d");
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 0);
    tornado_tcpserver_free(server);
    close(client);
}

TEST(ioloop_shutdown_with_a_grace_that_makes_no_sense_is_refused)
{
    check_failed(tornado_ioloop_shutdown_on_signals(tornado_ioloop_current(), NAN), TORNADO_ERR_INVALID);
    check_failed(tornado_ioloop_shutdown_on_signals(tornado_ioloop_current(), -1), TORNADO_ERR_INVALID);
}

TEST_EACH_POLLER(ioloop_that_was_shut_down_can_still_be_used_to_clean_up)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int number = 5;
    double grace = 1;
    CHECK(tornado_ioloop_add_callback(loop, shut_down, &grace));
    run_loop();
    CHECK(tornado_ioloop_run_sync(loop, double_it, &number));
    CHECK_INT(number, 10);
    CHECK(tornado_ioloop_call_later(loop, 0.03, note, "t"));
    CHECK(tornado_ioloop_call_later(loop, 0.03, stop_loop, NULL));
    run_loop();
    CHECK_STR(traced(), "t");
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

/* What was refused was refused for want of memory. */
static bool or_nomem(bool result)
{
    if (!result)
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    return result;
}

static void use_all_while_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_new(NULL);
    watched w = {0};
    int ends[2], expected = 0, count = 0;
    if (!or_nomem(loop != NULL))
        return;
    make_ready_pipe(ends);
    w.fd = ends[0];
    bool watches = or_nomem(tornado_ioloop_add_handler(loop, w.fd, watch, &w, TORNADO_IOLOOP_READ));
    for (int i = 0; i < 70; i++)
        expected += or_nomem(tornado_ioloop_call_at(loop, 70 - i, count_one, &count) != 0);
    tornado_timeout timer = tornado_ioloop_call_later(loop, 0, not_reached, NULL);
    CHECK_INT(tornado_ioloop_remove_timeout(loop, timer), or_nomem(timer != 0));
    for (int i = 0; i < 3; i++)
        expected += or_nomem(tornado_ioloop_add_callback(loop, count_one, &count));
    expected += tornado_ioloop_add_callback_from_signal(loop, count_one, &count);
    while (!or_nomem(tornado_ioloop_call_later(loop, 0.001, stop_loop, NULL) != 0)) {
    }
    run_loop();
    if (count < expected) /* what a signal added may come a turn later */
        turns(1);
    CHECK_INT(count, expected);
    CHECK_INT(w.calls > 0, watches);
    if (watches)
        remove_watch(&w);
    close_pipe(ends);
    tornado_ioloop_close(loop, false);
}

TEST_EACH_POLLER(ioloop_when_memory_is_short)
{
    each_shortage(use_all_while_memory_is_short);
}

static void run_sync_while_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int number = 1;
    if (!or_nomem(loop != NULL))
        return;
    bool ran = or_nomem(tornado_ioloop_run_sync_timeout(loop, double_it, &number, 1000));
    if (ran)
        CHECK_INT(number, 2);
}

TEST_EACH_POLLER(ioloop_run_sync_when_memory_is_short)
{
    each_shortage(run_sync_while_memory_is_short);
}

/* Lets it run until it stops the loop, and frees it. */
static void periodic_or_nomem(tornado_periodic_callback *periodic, const int *runs)
{
    if (!or_nomem(periodic != NULL))
        return;
    if (or_nomem(tornado_periodic_callback_start(periodic))) {
        run_loop();
        CHECK(*runs >= 2);
    } else {
        CHECK(!tornado_periodic_callback_is_running(periodic));
    }
    tornado_periodic_callback_free(periodic);
}

static void beat_while_memory_is_short(void)
{
    beat.runs = 0;
    beat.stop_at = 2;
    beat.periodic = tornado_periodic_callback_new(on_beat, &beat, 0.1, 0);
    periodic_or_nomem(beat.periodic, &beat.runs);
}

TEST_EACH_POLLER(ioloop_periodic_when_memory_is_short)
{
    each_shortage(beat_while_memory_is_short);
}

static void *swing_or_nomem(void *arg)
{
    CHECK_INT(swing.begun, swing.ended);
    swing.begun++;
    const tornado_error *error = tornado_wait(tornado_sleep(0));
    CHECK(!error || error->code == TORNADO_ERR_NOMEM);
    swing.ended++;
    if (swing.ended == swing.stop_at)
        stop_loop(arg);
    return NULL;
}

static void swing_while_memory_is_short(void)
{
    swing.begun = swing.ended = 0;
    swing.stop_at = 2;
    swing.periodic = tornado_periodic_callback_new_coroutine(swing_or_nomem, NULL, 0.1, 0);
    periodic_or_nomem(swing.periodic, &swing.ended);
}

TEST_EACH_POLLER(ioloop_periodic_coroutine_when_memory_is_short)
{
    each_shortage(swing_while_memory_is_short);
}
