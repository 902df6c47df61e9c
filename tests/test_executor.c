/* Jobs on threads: their results and failures, limits, ends of all kinds. */
#include "runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

/* What a job waits at until the test lets it go on; pushing counts, so it may be opened first. */
typedef struct gate {
    int ends[2];
} gate;

static gate gate_new(void)
{
    gate g;
    CHECK(pipe(g.ends) == 0);
    return g;
}

static void gate_open(gate *g, int count)
{
    while (count-- > 0)
        CHECK(write(g->ends[1], "", 1) == 1);
}

static void *pass_gate(void *arg)
{
    char byte;
    CHECK(read(((gate *)arg)->ends[0], &byte, 1) == 1);
    return arg;
}

static void *give_back(void *arg)
{
    return arg;
}

static void *raise_teapot(void *arg)
{
    tornado_raise_http_error(418, "no coffee for %s", (char *)arg);
}

static atomic_int runs, destroyed;

static void *count_run(void *arg)
{
    atomic_fetch_add(&runs, 1);
    return arg;
}

static void count_destroyed(void *result)
{
    CHECK(result != NULL);
    atomic_fetch_add(&destroyed, 1);
}

static const tornado_job_options counted = {.destroy = count_destroyed};

/* Has what went through the loop be done. */
static void turn(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_add_callback(loop, stop_loop, NULL));
    tornado_ioloop_start(loop);
}

/* Runs the loop until a future is done. */
static void future_arrived(tornado_future *future, void *arg)
{
    (void)future;
    stop_loop(arg);
}

static void run_until(tornado_future *future)
{
    CHECK(tornado_future_add_done_callback(future, future_arrived, NULL));
    tornado_ioloop_start(tornado_ioloop_current());
    CHECK(tornado_future_done(future));
}

/*----------------------------------------------------------------------------
 * Results.
 *----------------------------------------------------------------------------*/

static void *own_thread(void *arg)
{
    pthread_t *thread = tornado_arena_alloc(tornado_current_arena(), sizeof *thread);
    CHECK(arg == NULL);
    *thread = pthread_self();
    return thread;
}

static void *await_thread(void *arg)
{
    (void)arg;
    pthread_t *thread = tornado_await(tornado_run_on_executor(own_thread, NULL));
    CHECK(!pthread_equal(*thread, pthread_self()));
    return NULL;
}

TEST(executor_runs_a_job_on_another_thread_and_gives_its_result)
{
    run(await_thread, NULL);
    CHECK(tornado_executor_shutdown(NULL, false));
}

static void open_gate_later(void *arg)
{
    gate_open(arg, 1);
}

static void *await_gate(void *arg)
{
    CHECK(tornado_await(tornado_run_on_executor(pass_gate, arg)) == arg);
    return NULL;
}

TEST_EACH_POLLER(executor_lets_the_loop_run_while_a_job_blocks)
{
    gate g = gate_new();
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.01, open_gate_later, &g));
    run(await_gate, &g);
    CHECK(tornado_executor_shutdown(NULL, false));
}

static void *await_teapot(void *arg)
{
    const tornado_error *error = tornado_wait(tornado_run_on_executor(raise_teapot, arg));
    CHECK(is_error(error, TORNADO_ERR_HTTP));
    CHECK_INT(error->http_status, 418);
    CHECK_STR(error->message, "no coffee for you");
    return NULL;
}

TEST(executor_makes_what_a_job_raises_the_failure_of_its_future)
{
    run(await_teapot, "you");
    CHECK(tornado_executor_shutdown(NULL, false));
}

static void *defer_and_raise(void *arg)
{
    tornado_defer(note, "deferred");
    tornado_raise_error(arg);
}

TEST(executor_runs_what_a_job_deferred)
{
    tornado_error error = {.code = TORNADO_ERR_PARSE};
    tornado_future *future = tornado_run_on_executor(defer_and_raise, &error);
    run_until(future);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_PARSE));
    CHECK_STR(traced(), "deferred");
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false));
}

static void *wait_for_nothing(void *arg)
{
    tornado_await(tornado_sleep(0));
    return arg;
}

TEST(executor_lets_no_job_wait)
{
    log_keep();
    tornado_future *future = tornado_run_on_executor(wait_for_nothing, NULL);
    run_until(future);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_STATE));
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false));
}

static void *nested(void *arg)
{
    tornado_await(tornado_moment());
    *(int *)arg = 7;
    return NULL;
}

static void *run_own_loop(void *arg)
{
    CHECK(tornado_ioloop_run_sync(tornado_ioloop_current(), nested, arg));
    return arg;
}

TEST(executor_lets_a_job_run_a_loop_of_its_thread_and_closes_it)
{
    int number = 0;
    tornado_future *future = tornado_run_on_executor(run_own_loop, &number);
    run_until(future);
    CHECK_INT(number, 7);
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false)); /* then no block is left, or the harness says so */
}

static void *read_number(void *arg)
{
    int *number = tornado_arena_alloc(tornado_current_arena(), sizeof *number);
    *number = *(int *)arg;
    return number;
}

TEST(executor_copies_an_argument_when_told)
{
    int number = 5;
    tornado_job_options options = {.copy = sizeof number};
    tornado_future *future = tornado_executor_submit_with(NULL, read_number, &number, &options);
    number = 6;
    run_until(future);
    CHECK_INT(*(int *)tornado_future_result(future), 5);
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false));
}

TEST(executor_refuses_a_copy_that_no_memory_holds)
{
    int number = 5;
    tornado_job_options options = {.copy = SIZE_MAX - 8};
    tornado_future *future = tornado_executor_submit_with(NULL, read_number, &number, &options);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_NOMEM));
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false));
}

TEST(executor_destroys_a_result_when_its_future_goes)
{
    tornado_future *future = tornado_executor_submit_with(NULL, count_run, &runs, &counted);
    run_until(future);
    CHECK(tornado_future_result(future) == &runs);
    CHECK_INT(destroyed, 0);
    tornado_future_release(future);
    turn();
    CHECK_INT(destroyed, 1);
    CHECK(tornado_executor_shutdown(NULL, false));
}

TEST(executor_destroys_no_result_that_is_null)
{
    tornado_future *future = tornado_executor_submit_with(NULL, count_run, NULL, &counted);
    run_until(future);
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false));
    turn();
    CHECK_INT(destroyed, 0);
}

TEST(executor_runs_a_job_whose_future_was_dropped_and_destroys_its_result)
{
    tornado_future_release(tornado_executor_submit_with(NULL, count_run, &runs, &counted));
    CHECK(tornado_executor_shutdown(NULL, false));
    CHECK_INT(runs, 1);
    CHECK_INT(destroyed, 0);
    turn();
    CHECK_INT(destroyed, 1);
}

TEST(executor_runs_a_job_whose_waiter_was_cancelled)
{
    gate g = gate_new();
    tornado_future *future = tornado_spawn(await_gate, &g);
    turn();
    CHECK(tornado_cancel(future));
    run_until(future);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_CANCELLED));
    gate_open(&g, 1);
    CHECK(tornado_executor_shutdown(NULL, false));
    tornado_future_release(future);
    turn();
}

/*----------------------------------------------------------------------------
 * Threads and limits.
 *----------------------------------------------------------------------------*/

static void *meet(void *barrier)
{
    pthread_barrier_wait(barrier);
    return NULL;
}

TEST(executor_starts_as_many_threads_as_jobs_block)
{
    pthread_barrier_t barrier;
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 5});
    tornado_future *jobs[5];
    pthread_barrier_init(&barrier, NULL, 5);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 5; i++)
            jobs[i] = tornado_executor_submit(executor, meet, &barrier);
        tornado_future *all = tornado_multi(jobs, 5);
        run_until(all);
        tornado_future_release(all);
    }
    tornado_executor_free(executor);
    pthread_barrier_destroy(&barrier);
}

static void *note_job(void *arg)
{
    note(arg);
    return NULL;
}

TEST(executor_runs_jobs_in_order_on_one_thread)
{
    static char *const words[] = {"a", "b", "c", "d"};
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 1});
    for (int i = 0; i < 4; i++)
        tornado_future_release(tornado_executor_submit(executor, note_job, words[i]));
    tornado_executor_free(executor);
    CHECK_STR(traced(), "abcd");
    turn();
}

static const char job_key;

static void *set_job_state(void *arg)
{
    tornado_stack_context_state state = {.key = &job_key, .value = arg, .destroy = count_destroyed};
    CHECK(tornado_stack_context_set(&state));
    return tornado_stack_context_get(&job_key) == arg ? arg : NULL;
}

static void *job_state(void *arg)
{
    (void)arg;
    return tornado_stack_context_get(&job_key);
}

TEST(executor_keeps_no_state_of_a_job_for_the_next)
{
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 1});
    for (int i = 0; i < 6; i++) {
        tornado_future *job = tornado_executor_submit(executor, i % 2 ? job_state : set_job_state, "x");
        run_until(job);
        CHECK((tornado_future_result(job) != NULL) == (i % 2 == 0));
        CHECK_INT(atomic_load(&destroyed), i / 2 + 1);
        tornado_future_release(job);
    }
    tornado_executor_free(executor);
}

TEST(executor_refuses_jobs_beyond_the_limit_of_its_queue)
{
    gate g = gate_new();
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 1, .max_queue = 2});
    tornado_future *running = tornado_executor_submit(executor, pass_gate, &g);
    while (tornado_executor_queued(executor) > 0) /* the thread has not taken it */
        sched_yield();
    tornado_future *first = tornado_executor_submit(executor, pass_gate, &g);
    tornado_future *second = tornado_executor_submit(executor, pass_gate, &g);
    tornado_future *third = tornado_executor_submit(executor, pass_gate, &g);
    CHECK_INT(tornado_executor_queued(executor), 2);
    CHECK(is_error(tornado_future_error(third), TORNADO_ERR_LIMIT));
    CHECK_INT(tornado_future_error(third)->http_status, 503);
    CHECK(!tornado_future_done(second));
    gate_open(&g, 3);
    run_until(second);
    CHECK_INT(tornado_executor_queued(executor), 0);
    tornado_future *last = tornado_executor_submit(executor, give_back, NULL);
    run_until(last);
    CHECK(!tornado_future_error(last));
    tornado_future *all[] = {running, first, second, third, last};
    for (int i = 0; i < 5; i++)
        tornado_future_release(all[i]);
    tornado_executor_free(executor);
}

TEST(executor_checks_its_options)
{
    static const tornado_executor_options invalid[] = {
        {.max_workers = -1}, {.max_workers = 1000000}, {.max_queue = -2}};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        CHECK(!tornado_executor_new(&invalid[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    }
}

TEST(executor_fails_a_job_when_no_thread_can_be_started)
{
    tornado_executor_options options = {.stack_size = SIZE_MAX / 4 * 3 / 4096 * 4096};
    tornado_executor *executor = tornado_executor_new(&options);
    tornado_future *future = tornado_executor_submit(executor, give_back, NULL);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_SYSTEM));
    CHECK(tornado_future_error(future)->sys_errno != 0);
    CHECK_INT(tornado_executor_queued(executor), 0);
    tornado_future_release(future);
    tornado_executor_free(executor);
}

/* Bytes of address space in use, or 0. */
static size_t address_space(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        CHECK(fscanf(file, "%lu", &pages) == 1);
        fclose(file);
    }
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

TEST(executor_goes_on_with_the_threads_it_has_when_no_more_can_be_started)
{
    if (instrumented() || !address_space())
        SKIP("needs a limit of address space");
    gate g = gate_new();
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.stack_size = 64u << 20});
    tornado_future *first = tornado_executor_submit(executor, pass_gate, &g);
    struct rlimit little = {0, RLIM_INFINITY}; /* for what malloc needs, but not for a stack */
    little.rlim_cur = address_space() + (16u << 20);
    CHECK(setrlimit(RLIMIT_AS, &little) == 0);
    tornado_future *second = tornado_executor_submit(executor, count_run, NULL);
    CHECK(!tornado_future_done(second));
    gate_open(&g, 1);
    run_until(second);
    CHECK(!tornado_future_error(second));
    tornado_future_release(first);
    tornado_future_release(second);
    tornado_executor_free(executor);
}

static pthread_t signalled;

static void note_thread(int number)
{
    (void)number;
    signalled = pthread_self();
}

static void *raise_signal(void *arg)
{
    kill(getpid(), SIGUSR1);
    return arg;
}

TEST(executor_threads_take_no_signals)
{
    signal(SIGUSR1, note_thread);
    tornado_future *future = tornado_run_on_executor(raise_signal, NULL);
    run_until(future);
    CHECK(pthread_equal(signalled, pthread_self()));
    tornado_future_release(future);
    CHECK(tornado_executor_shutdown(NULL, false));
}

/*----------------------------------------------------------------------------
 * Ends.
 *----------------------------------------------------------------------------*/

TEST(executor_shutdown_runs_what_was_submitted)
{
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 2});
    tornado_future *jobs[50];
    for (int i = 0; i < 50; i++)
        jobs[i] = tornado_executor_submit(executor, count_run, &runs);
    CHECK(tornado_executor_shutdown(executor, false));
    CHECK_INT(runs, 50);
    turn();
    for (int i = 0; i < 50; i++) {
        CHECK(tornado_future_result(jobs[i]) == &runs);
        tornado_future_release(jobs[i]);
    }
    tornado_executor_free(executor);
}

TEST(executor_shutdown_may_cancel_what_has_not_begun)
{
    gate g = gate_new();
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 1});
    tornado_future *running = tornado_executor_submit(executor, pass_gate, &g);
    while (tornado_executor_queued(executor) > 0)
        sched_yield();
    tornado_future *waiting = tornado_executor_submit(executor, count_run, NULL);
    gate_open(&g, 1);
    CHECK(tornado_executor_shutdown(executor, true));
    turn();
    CHECK(tornado_future_result(running) == &g);
    tornado_future_error(waiting); /* it may have begun before */
    CHECK(runs == 1 || is_error(tornado_future_error(waiting), TORNADO_ERR_CANCELLED));
    tornado_future_release(running);
    tornado_future_release(waiting);
    tornado_executor_free(executor);
}

TEST(executor_takes_nothing_after_a_shutdown)
{
    tornado_executor *executor = tornado_executor_new(NULL);
    CHECK(tornado_executor_shutdown(executor, false));
    CHECK(tornado_executor_shutdown(executor, false));
    tornado_future *future = tornado_executor_submit(executor, give_back, NULL);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_STATE));
    tornado_future_release(future);
    tornado_executor_free(executor);
}

static void *shut_down_own(void *executor)
{
    bool done = tornado_executor_shutdown(executor, false);
    if (!done)
        tornado_raise_error(tornado_last_error());
    return NULL;
}

TEST(executor_cannot_be_shut_down_from_a_job_of_it)
{
    tornado_executor *executor = tornado_executor_new(NULL);
    tornado_future *future = tornado_executor_submit(executor, shut_down_own, executor);
    run_until(future);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_STATE));
    tornado_future_release(future);
    tornado_executor_free(executor);
}

TEST(executor_of_the_process_is_made_anew_after_a_shutdown)
{
    for (int i = 0; i < 3; i++) {
        tornado_future *future = tornado_run_on_executor(give_back, &runs);
        run_until(future);
        CHECK(tornado_future_result(future) == &runs);
        tornado_future_release(future);
        CHECK(tornado_executor_shutdown(NULL, false));
    }
}

TEST(executor_lets_jobs_end_whose_loop_is_closed)
{
    gate g = gate_new();
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 1});
    tornado_future *held = tornado_executor_submit_with(executor, pass_gate, &g, &counted);
    tornado_future_release(tornado_executor_submit_with(executor, count_run, &runs, &counted));
    tornado_ioloop_close(tornado_ioloop_current(), false);
    gate_open(&g, 1);
    CHECK(tornado_executor_shutdown(executor, false));
    CHECK_INT(runs, 1);
    CHECK(!tornado_future_done(held));
    tornado_future_release(held);
    CHECK_INT(destroyed, 2);
    tornado_executor_free(executor);
}

TEST(executor_refuses_jobs_of_a_loop_that_is_being_closed)
{
    gate g = gate_new();
    log_keep();
    tornado_future *outer = tornado_spawn(await_gate, &g);
    turn();
    tornado_ioloop_close(tornado_ioloop_current(), false); /* unwinds what waits */
    gate_open(&g, 1);
    CHECK(is_error(tornado_future_error(outer), TORNADO_ERR_CANCELLED));
    tornado_future_release(outer);
    CHECK(tornado_executor_shutdown(NULL, false));
}

/*----------------------------------------------------------------------------
 * Without threads, other threads, other processes.
 *----------------------------------------------------------------------------*/

static void *is_own_thread(void *arg)
{
    CHECK(pthread_equal(*(pthread_t *)arg, pthread_self()));
    return tornado_arena_strdup(tornado_current_arena(), "on the loop");
}

TEST_EACH_POLLER(executor_without_threads_runs_jobs_on_the_loop)
{
    pthread_t self = pthread_self();
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.dummy = true});
    tornado_future *future = tornado_executor_submit(executor, is_own_thread, &self);
    tornado_future *failing = tornado_executor_submit(executor, raise_teapot, "me");
    CHECK(!tornado_future_done(future));
    run_until(failing);
    CHECK_STR((char *)tornado_future_result(future), "on the loop");
    CHECK(is_error(tornado_future_error(failing), TORNADO_ERR_HTTP));
    tornado_future_release(future);
    tornado_future_release(failing);
    CHECK(tornado_executor_shutdown(executor, false));
    future = tornado_executor_submit(executor, give_back, NULL);
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_STATE));
    tornado_future_release(future);
    tornado_executor_free(executor);
}

static void *submit_from_own_loop(void *arg)
{
    for (int i = 0; i < 200; i++) {
        tornado_future *future = tornado_executor_submit(arg, count_run, &runs);
        run_until(future);
        CHECK(tornado_future_result(future) == &runs);
        tornado_future_release(future);
    }
    tornado_ioloop_close(tornado_ioloop_current(), false);
    return NULL;
}

TEST(executor_serves_the_loops_of_several_threads)
{
    tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 2});
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, submit_from_own_loop, executor) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_INT(runs, 800);
    tornado_executor_free(executor);
}

static void submit_in_child(void *executor)
{
    tornado_ioloop_make_current(tornado_ioloop_new(NULL));
    tornado_future *refused = tornado_executor_submit(executor, give_back, NULL);
    CHECK(is_error(tornado_future_error(refused), TORNADO_ERR_STATE));
    CHECK(tornado_executor_shutdown(executor, false));
    tornado_executor_free(executor);
    tornado_future *future = tornado_run_on_executor(give_back, &runs);
    run_until(future);
    CHECK(tornado_future_result(future) == &runs);
}

TEST(executor_of_the_process_works_in_a_forked_child_and_others_say_that_they_do_not)
{
    tornado_executor *executor = tornado_executor_new(NULL);
    tornado_future *futures[] = {tornado_executor_submit(executor, give_back, NULL),
                                 tornado_run_on_executor(give_back, NULL)};
    tornado_future *both = tornado_multi(futures, 2);
    run_until(both);
    tornado_future_release(both);
    pid_t pid = fork();
    if (pid == 0) {
        submit_in_child(executor);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
    tornado_executor_free(executor);
    CHECK(tornado_executor_shutdown(NULL, false));
}

/*----------------------------------------------------------------------------
 * Memory.
 *----------------------------------------------------------------------------*/

static void *read_number_or_raise(void *arg)
{
    tornado_arena *arena = tornado_current_arena();
    if (!arena)
        tornado_raise_error(tornado_last_error());
    return tornado_arena_memdup(arena, arg, sizeof(int));
}

static void short_of_memory(void)
{
    int number = 3;
    tornado_job_options copied = {.copy = sizeof number, .destroy = count_destroyed};
    if (!tornado_ioloop_new(NULL))
        return;
    tornado_future *jobs[] = {tornado_run_on_executor(raise_teapot, "nobody"),
                              tornado_executor_submit_with(NULL, read_number_or_raise, &number, &copied)};
    tornado_executor_shutdown(NULL, false);
    if (tornado_ioloop_add_callback(tornado_ioloop_current(), stop_loop, NULL))
        tornado_ioloop_start(tornado_ioloop_current());
    for (int i = 0; i < 2; i++)
        tornado_future_release(jobs[i]);
}

TEST(executor_survives_every_shortage_of_memory)
{
    each_shortage(short_of_memory);
}
