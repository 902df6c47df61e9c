/* One turn at a time, the loop inside other loops, the process's loop, signals, and what blocks. */
#include "runtime.h"

#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static const char A[] = "a", B[] = "b";

#define NOTE(text) (void *)(uintptr_t)(text)

/*----------------------------------------------------------------------------
 * One turn at a time.
 *----------------------------------------------------------------------------*/

static void add_another(void *arg)
{
    note(arg);
    tornado_ioloop_add_callback(tornado_ioloop_current(), note, NOTE("2"));
}

TEST_EACH_POLLER(embedding_a_turn_runs_what_is_ready_and_no_more)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_next_timeout(loop) == TORNADO_NONE);
    tornado_ioloop_add_callback(loop, add_another, NOTE("1"));
    CHECK(tornado_ioloop_next_timeout(loop) == 0);
    CHECK(tornado_ioloop_run_once(loop, 0));
    CHECK_STR(traced(), "1");
    CHECK(tornado_ioloop_next_timeout(loop) == 0);
    CHECK(tornado_ioloop_run_once(loop, TORNADO_NONE)); /* does not wait, as there is something to do */
    CHECK_STR(traced(), "2");
    CHECK(tornado_ioloop_next_timeout(loop) == TORNADO_NONE);
}

TEST_EACH_POLLER(embedding_a_turn_waits_as_long_as_it_may_or_until_a_timer)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_call_later(loop, 1000, note, NOTE("late"));
    double timeout = tornado_ioloop_next_timeout(loop), begin = tornado_monotonic();
    CHECK(timeout > 900 && timeout <= 1000);
    CHECK(tornado_ioloop_run_once(loop, 0.03));
    CHECK(tornado_monotonic() - begin >= 0.03);
    CHECK_STR(traced(), "");
    tornado_ioloop_call_later(loop, 0.01, note, NOTE("soon"));
    while (!*trace) /* the timer may be found due only in the turn after the wait for it */
        CHECK(tornado_ioloop_run_once(loop, 500));
    CHECK_STR(traced(), "soon");
    CHECK(tornado_monotonic() - begin < 400);
}

static void raise_now(void *arg)
{
    tornado_raise(TORNADO_ERR_SYSTEM, "%s", (const char *)arg);
}

TEST_EACH_POLLER(embedding_a_turn_survives_what_raises_and_does_not_wait_then)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    log_keep();
    tornado_ioloop_add_callback(loop, raise_now, NOTE("broken"));
    tornado_ioloop_add_callback(loop, note, NOTE("next"));
    CHECK(tornado_ioloop_run_once(loop, TORNADO_NONE));
    CHECK_STR(traced(), "next");
    CHECK_INT(logged("Exception in callback"), 1);
}

static void run_inside(void *arg)
{
    CHECK(!tornado_ioloop_run_once(arg, 0));
    CHECK(is_error(tornado_last_error(), TORNADO_ERR_STATE));
    note(NOTE(A));
}

TEST(embedding_a_turn_is_refused_inside_a_turn_after_the_end_and_for_no_time)
{
    tornado_ioloop *loop = tornado_ioloop_new(NULL);
    const double wrong[] = {NAN, -2, -0.5};
    tornado_ioloop_add_callback(loop, run_inside, loop);
    CHECK(tornado_ioloop_run_once(loop, 0));
    CHECK_STR(traced(), "a");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK(!tornado_ioloop_run_once(loop, wrong[i]));
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_INVALID));
    }
    tornado_ioloop_retain(loop);
    tornado_ioloop_close(loop, false);
    CHECK(!tornado_ioloop_run_once(loop, 0));
    CHECK(is_error(tornado_last_error(), TORNADO_ERR_STATE));
    CHECK_INT(tornado_ioloop_fileno(loop), -1);
    tornado_ioloop_release(loop);
}

static bool readable(int fd, int ms)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, ms) == 1;
}

static void *add_from_thread(void *loop)
{
    tornado_ioloop_add_callback(loop, note, NOTE("from a thread"));
    return NULL;
}

static void on_pipe(int fd, unsigned events, void *arg)
{
    char byte;
    (void)events;
    CHECK(read(fd, &byte, 1) == 1);
    note(arg);
}

TEST_EACH_POLLER(embedding_the_fd_tells_of_descriptors_and_of_other_threads)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int fd = tornado_ioloop_fileno(loop), pair[2];
    pthread_t thread;
    if (fd < 0) {
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_INVALID));
        CHECK(strcmp(test_poller, "poll") == 0 || strcmp(test_poller, "select") == 0);
        return;
    }
    CHECK(pipe(pair) == 0);
    CHECK(tornado_ioloop_add_handler(loop, pair[0], on_pipe, NOTE("pipe"), TORNADO_IOLOOP_READ));
    CHECK(!readable(fd, 0));
    CHECK(write(pair[1], "x", 1) == 1);
    CHECK(readable(fd, 5000));
    CHECK(tornado_ioloop_run_once(loop, 0));
    CHECK_STR(traced(), "pipe");
    CHECK(!readable(fd, 0));
    CHECK(pthread_create(&thread, NULL, add_from_thread, loop) == 0);
    CHECK(readable(fd, 5000));
    pthread_join(thread, NULL);
    while (!*trace)
        CHECK(tornado_ioloop_run_once(loop, 0));
    CHECK_STR(traced(), "from a thread");
    tornado_ioloop_remove_handler(loop, pair[0]);
    close(pair[0]);
    close(pair[1]);
}

/* Builds a program of tests/embed with a library of the distribution and checks what it prints. */
static void check_embedded(const char *name, const char *library, const char *want)
{
    TEST_NEED("pkg-config");
    if (test_run("pkg-config --exists %s", library)->status != 0)
        SKIP("%s is not installed", library);
    char directory[] = "/tmp/tornado-embed-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    const test_output *out = test_run("cc -O0 tests/embed/%s.c -o %s/program $(pkg-config --cflags --libs %s) && %s/program",
                                      name, directory, library, directory);
    test_run("rm -r %s", directory);
    CHECK_INT(out->status, 0);
    CHECK_STR(out->text, want);
}

TEST_LIMIT(embedding_in_libuv, 60)
{
    check_embedded("uv", "libuv", "slept\nread a line\na timer of libuv\ndone\n");
}

TEST_LIMIT(embedding_in_glib, 60)
{
    check_embedded("glib", "glib-2.0", "slept\ncalled from a thread\na timer of GLib\ndone\n");
}

/*----------------------------------------------------------------------------
 * The process's loop; exceptions.
 *----------------------------------------------------------------------------*/

static void *instance_of_thread(void *arg)
{
    *(tornado_ioloop **)arg = tornado_ioloop_instance();
    return NULL;
}

TEST(embedding_the_instance_is_the_same_in_each_thread)
{
    tornado_ioloop *seen = NULL;
    pthread_t thread;
    CHECK(!tornado_ioloop_initialized());
    tornado_ioloop *loop = tornado_ioloop_instance();
    CHECK(loop == tornado_ioloop_current());
    CHECK(tornado_ioloop_initialized());
    CHECK(pthread_create(&thread, NULL, instance_of_thread, &seen) == 0);
    pthread_join(thread, NULL);
    CHECK(seen == loop);
    tornado_ioloop *other = tornado_ioloop_new(NULL);
    tornado_ioloop_install(other);
    CHECK(tornado_ioloop_instance() == other);
    CHECK(tornado_ioloop_current() == loop);
    CHECK(tornado_ioloop_close(other, false));
    CHECK(!tornado_ioloop_initialized());
    tornado_ioloop_install(loop);
    tornado_ioloop_clear_instance();
    CHECK(!tornado_ioloop_initialized());
}

static void handle_exception(tornado_ioloop *loop, const tornado_error *error)
{
    CHECK(loop == tornado_ioloop_current());
    note(NOTE(error->message));
}

static void raise_from_period(void *arg)
{
    tornado_periodic_callback_stop(*(tornado_periodic_callback **)arg);
    tornado_raise(TORNADO_ERR_SYSTEM, "periodic");
}

TEST(embedding_exceptions_go_to_the_program_when_it_wants_them)
{
    tornado_ioloop *loop = tornado_ioloop_new(&(tornado_ioloop_options){.handle_callback_exception = handle_exception});
    log_keep();
    tornado_ioloop_add_callback(loop, raise_now, NOTE("callback "));
    CHECK(tornado_ioloop_run_once(loop, 0));
    tornado_periodic_callback *periodic = NULL;
    periodic = tornado_periodic_callback_new(raise_from_period, &periodic, 1, 0);
    CHECK(tornado_periodic_callback_start(periodic));
    while (tornado_periodic_callback_is_running(periodic))
        CHECK(tornado_ioloop_run_once(loop, 5));
    tornado_periodic_callback_free(periodic);
    CHECK_STR(traced(), "callback periodic");
    CHECK_INT(logged("Exception"), 0);
    tornado_ioloop_close(loop, false);
}

static void raise_from_the_hook(tornado_ioloop *loop, const tornado_error *error)
{
    handle_exception(loop, error);
    tornado_raise(TORNADO_ERR_INVALID, "worse than %s", error->message);
}

static void defer_in_the_hook(tornado_ioloop *loop, const tornado_error *error)
{
    tornado_defer(note, NOTE("deferred "));
    handle_exception(loop, error);
}

static void raise_and_defer_in_the_hook(tornado_ioloop *loop, const tornado_error *error)
{
    tornado_defer(note, NOTE("deferred "));
    raise_from_the_hook(loop, error);
}

static void (*const hooks[])(tornado_ioloop *, const tornado_error *) = {raise_from_the_hook, defer_in_the_hook,
                                                                         raise_and_defer_in_the_hook};

TEST_EACH_POLLER(embedding_exceptions_may_lead_to_others_and_the_loop_goes_on)
{
    static const char *const traces[] = {"one two three ", "one deferred two deferred three ",
                                         "one deferred two deferred three "};
    for (size_t i = 0; i < sizeof hooks / sizeof hooks[0]; i++) {
        tornado_ioloop *loop = tornado_ioloop_new(&(tornado_ioloop_options){.handle_callback_exception = hooks[i]});
        log_keep();
        tornado_ioloop_add_callback(loop, raise_now, NOTE("one "));
        tornado_ioloop_add_callback(loop, raise_now, NOTE("two "));
        CHECK(tornado_ioloop_call_later(loop, 0, note, NOTE("three ")) != 0);
        CHECK(tornado_ioloop_call_later(loop, 0, stop_loop, NULL) != 0);
        CHECK(tornado_ioloop_start(loop));
        CHECK_STR(traced(), traces[i]);
        CHECK_INT(logged("Exception in handle_callback_exception"), i == 1 ? 0 : 2);
        CHECK_INT(logged("worse than one"), i != 1);
        CHECK_INT(logged("worse than two"), i != 1);
        CHECK(tornado_ioloop_close(loop, false));
        tornado_ioloop_clear_current();
    }
}

TEST(embedding_exceptions_in_a_periodic_callback_are_told_once)
{
    static const char *const traces[] = {"periodic", "periodicdeferred ", "periodicdeferred "};
    for (size_t i = 0; i < sizeof hooks / sizeof hooks[0]; i++) {
        tornado_ioloop *loop = tornado_ioloop_new(&(tornado_ioloop_options){.handle_callback_exception = hooks[i]});
        tornado_periodic_callback *periodic = NULL;
        log_keep();
        periodic = tornado_periodic_callback_new(raise_from_period, &periodic, 1, 0);
        CHECK(tornado_periodic_callback_start(periodic));
        while (tornado_periodic_callback_is_running(periodic))
            CHECK(tornado_ioloop_run_once(loop, 5));
        CHECK_STR(traced(), traces[i]);
        CHECK_INT(logged("Exception in handle_callback_exception"), i != 1);
        CHECK_INT(logged("worse than periodic"), i != 1);
        tornado_periodic_callback_free(periodic);
        CHECK(tornado_ioloop_close(loop, false));
        tornado_ioloop_clear_current();
    }
}

/*----------------------------------------------------------------------------
 * Signals.
 *----------------------------------------------------------------------------*/

static void count_one(void *arg)
{
    ++*(int *)arg;
}

static void run_until(tornado_ioloop *loop, const int *count, int want)
{
    while (*count < want)
        CHECK(tornado_ioloop_run_once(loop, 5));
}

TEST_EACH_POLLER(embedding_signals_call_back_in_the_loop)
{
    tornado_ioloop *loop = tornado_ioloop_current(), *other = tornado_ioloop_new(NULL);
    int usr1 = 0, usr1_too = 0, usr2 = 0, elsewhere = 0;
    struct sigaction before;
    CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR1, count_one, &usr1));
    CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR1, count_one, &usr1_too));
    CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR2, count_one, &usr2));
    CHECK(tornado_ioloop_add_signal_handler(other, SIGUSR1, count_one, &elsewhere));
    for (int i = 0; i < 10; i++)
        raise(SIGUSR1);
    CHECK_INT(usr1, 0); /* never inside the signal handler */
    run_until(loop, &usr1, 10);
    run_until(loop, &usr1_too, 10);
    run_until(other, &elsewhere, 10);
    CHECK_INT(usr2, 0);
    raise(SIGUSR2);
    run_until(loop, &usr2, 1);

    raise(SIGUSR1);
    CHECK(tornado_ioloop_remove_signal_handler(loop, SIGUSR1, count_one, &usr1)); /* what came is forgotten */
    CHECK(!tornado_ioloop_remove_signal_handler(loop, SIGUSR1, count_one, &usr1));
    run_until(loop, &usr1_too, 11);
    CHECK_INT(usr1, 10);
    CHECK(tornado_ioloop_remove_signal_handler(loop, SIGUSR1, count_one, &usr1_too));
    CHECK(sigaction(SIGUSR1, NULL, &before) == 0 && before.sa_handler != SIG_DFL); /* the other loop has it */
    CHECK(tornado_ioloop_close(other, false));
    CHECK(sigaction(SIGUSR1, NULL, &before) == 0 && before.sa_handler == SIG_DFL);
}

TEST(embedding_signals_that_cannot_be_had_are_refused)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    static int counts[65];
    const int wrong[] = {0, -1, 65, 1000, SIGKILL, SIGSTOP};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK(!tornado_ioloop_add_signal_handler(loop, wrong[i], count_one, counts));
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_SYSTEM));
        CHECK(!tornado_ioloop_remove_signal_handler(loop, wrong[i], count_one, counts));
    }
    for (int i = 0; i < 64; i++)
        CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR1, count_one, &counts[i]));
    CHECK(!tornado_ioloop_add_signal_handler(loop, SIGUSR1, count_one, &counts[64]));
    CHECK(is_error(tornado_last_error(), TORNADO_ERR_LIMIT));
    raise(SIGUSR1);
    run_until(loop, &counts[63], 1);
    CHECK_INT(counts[0], 1);
    for (int round = 0; round < 1000; round++) { /* no more are used up by coming and going */
        CHECK(tornado_ioloop_remove_signal_handler(loop, SIGUSR1, count_one, &counts[5]));
        CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR1, count_one, &counts[5]));
    }
    raise(SIGUSR1);
    run_until(loop, &counts[5], 2);
}

TEST(embedding_signals_are_refused_when_the_loop_has_no_room_for_their_callbacks)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    struct sigaction now;
    static int counts[64];
    for (int i = 0; i < 64; i++)
        CHECK(tornado_ioloop_add_callback_from_signal(loop, count_one, &counts[i]));
    for (int i = 0; i < 2; i++) {
        CHECK(!tornado_ioloop_add_signal_handler(loop, SIGUSR1, count_one, counts));
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_LIMIT));
        CHECK(!tornado_ioloop_remove_signal_handler(loop, SIGUSR1, count_one, counts));
        CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
    }
}

static void be_signalled_without_a_loop(void *arg)
{
    (void)arg;
    tornado_ioloop_clear_current();
    raise(SIGUSR1);
}

static void note_and_stop(void *loop)
{
    note(NOTE("told"));
    tornado_ioloop_stop(loop);
}

TEST_EACH_POLLER(embedding_signals_reach_a_loop_that_runs_and_is_not_current)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR1, note_and_stop, loop));
    tornado_ioloop_add_callback(loop, be_signalled_without_a_loop, NULL);
    CHECK(tornado_ioloop_start(loop));
    CHECK_STR(traced(), "told");
    CHECK(tornado_ioloop_close(loop, false));
}

static void raise_for_error(void *arg)
{
    ++*(int *)arg;
    tornado_raise(TORNADO_ERR_SYSTEM, "from a signal's callback");
}

TEST(embedding_signals_are_not_lost_when_a_callback_raises)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int count = 0;
    log_keep();
    CHECK(tornado_ioloop_add_signal_handler(loop, SIGUSR1, raise_for_error, &count));
    for (int i = 0; i < 5; i++)
        raise(SIGUSR1);
    run_until(loop, &count, 5);
    CHECK_INT(logged("Exception in callback"), 5);
}

/*----------------------------------------------------------------------------
 * What blocks.
 *----------------------------------------------------------------------------*/

static volatile sig_atomic_t alarms;

static void on_alarm(int signum)
{
    CHECK_INT(signum, SIGALRM);
    alarms = alarms + 1;
}

static void block_for_alarm(void *arg)
{
    double begin = tornado_monotonic();
    while (!alarms && tornado_monotonic() - begin < test_scaled(5))
        continue;
    note(arg);
}

TEST(embedding_blocking_is_told_by_a_signal)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    struct sigaction before;
    double threshold = test_scaled(0.05); /* no turn takes as long by itself */
    CHECK(tornado_ioloop_set_blocking_signal_threshold(loop, threshold, on_alarm));
    tornado_ioloop_call_later(loop, 2 * threshold, note, NOTE(A)); /* waiting is not blocking */
    while (!*trace)
        CHECK(tornado_ioloop_run_once(loop, 5));
    CHECK_INT(alarms, 0);
    tornado_ioloop_add_callback(loop, block_for_alarm, NOTE(B));
    CHECK(tornado_ioloop_run_once(loop, 0));
    CHECK_STR(traced(), "ab");
    CHECK_INT(alarms, 1);
    CHECK(tornado_ioloop_set_blocking_signal_threshold(loop, TORNADO_NONE, NULL));
    CHECK(sigaction(SIGALRM, NULL, &before) == 0 && before.sa_handler == SIG_DFL);
}

TEST(embedding_blocking_is_one_loops_business)
{
    tornado_ioloop *loop = tornado_ioloop_current(), *other = tornado_ioloop_new(NULL);
    CHECK(tornado_ioloop_set_blocking_signal_threshold(other, 1, on_alarm));
    CHECK(!tornado_ioloop_set_blocking_signal_threshold(loop, 1, on_alarm));
    CHECK(is_error(tornado_last_error(), TORNADO_ERR_STATE));
    tornado_ioloop_close(other, false);
    CHECK(tornado_ioloop_set_blocking_signal_threshold(loop, 1, on_alarm));
    CHECK(!tornado_ioloop_set_blocking_signal_threshold(loop, 0, on_alarm));
    CHECK(is_error(tornado_last_error(), TORNADO_ERR_INVALID));
    CHECK(!tornado_ioloop_set_blocking_signal_threshold(loop, NAN, on_alarm));
}

static void block_until_logged(void *arg)
{
    struct stat stat = {.st_size = 0};
    double begin = tornado_monotonic();
    while (stat.st_size == 0 && tornado_monotonic() - begin < test_scaled(5))
        CHECK(fstat(*(int *)arg, &stat) == 0);
}

static void log_and_count(int signum)
{
    tornado_ioloop_log_stack(signum);
    on_alarm(signum);
}

static void check_blocking_is_logged(void (*action)(int signum))
{
    FILE *sink = tmpfile();
    int fd = fileno(sink);
    char text[8192];
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_enable_pretty_logging(&(tornado_log_options){.fd = fd});
    CHECK(action ? tornado_ioloop_set_blocking_signal_threshold(loop, 0.02, action)
                 : tornado_ioloop_set_blocking_log_threshold(loop, 0.02));
    tornado_ioloop_add_callback(loop, block_until_logged, &fd);
    CHECK(tornado_ioloop_run_once(loop, 0));
    CHECK(tornado_ioloop_set_blocking_log_threshold(loop, TORNADO_NONE));
    rewind(sink);
    size_t len = fread(text, 1, sizeof text - 1, sink);
    text[len] = '\0';
    CHECK(strstr(text, "The loop was blocked for 0.02 seconds in\n") == text);
    CHECK(strchr(text, '\n')[1] != '\0'); /* the stack, as far as libc tells it */
    fclose(sink);
}

TEST(embedding_blocking_is_logged_with_a_stack)
{
    check_blocking_is_logged(NULL);
}

TEST(embedding_blocking_is_logged_by_an_action_of_the_program)
{
    check_blocking_is_logged(log_and_count);
    CHECK(alarms > 0); /* a slow turn may be told of twice */
}

static void die_of_alarm(void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    CHECK(tornado_ioloop_set_blocking_signal_threshold(loop, 0.02, NULL));
    tornado_ioloop_add_callback(loop, block_for_alarm, arg);
    tornado_ioloop_run_once(loop, 0);
}

TEST(embedding_blocking_ends_the_process_by_default)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        die_of_alarm(NULL);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM);
}
