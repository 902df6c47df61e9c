/* Several processes of one program, and other programs as subprocesses: started, talked to, ended in every way. */
#include "runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/*----------------------------------------------------------------------------
 * How many processors.
 *----------------------------------------------------------------------------*/

TEST(process_cpu_count_is_what_the_affinity_allows)
{
    unsigned long one[16] = {1}, all[1024];
    int before = tornado_cpu_count();
    long size = syscall(SYS_sched_getaffinity, 0, sizeof all, all);
    CHECK(before >= 1 && before <= sysconf(_SC_NPROCESSORS_ONLN));
    if (size < 0 || !(all[0] & 1) || syscall(SYS_sched_setaffinity, 0, sizeof one, one) != 0)
        SKIP("the affinity cannot be set here");
    CHECK_INT(tornado_cpu_count(), 1);
    syscall(SYS_sched_setaffinity, 0, (size_t)size, all);
    CHECK_INT(tornado_cpu_count(), before);
}

static void put_file(const char *path, const char *text)
{
    char copy[256];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *at = strchr(copy + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(copy, 0755);
        *at = '/';
    }
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

/* Control groups of the test's own: a file system over the system's, seen by this process alone. */
TEST(process_cpu_count_is_what_the_control_groups_allow)
{
    static const struct {
        const char *groups, *path, *text;
        bool limited;
    } table[] = {
        {"0::/a/b\n", "/a/b/cpu.max", "50000 100000\n", true},
        {"0::/a/b\n", "/a/cpu.max", "100000 100000\n", true},
        {"0::/a/b\n", "/a/b/cpu.max", "max 100000\n", false},
        {"0::/a/b\n", "/other/cpu.max", "50000 100000\n", false},
        {"0::/\n", "/cpu.max", "50000 100000\n", true},
        {"0::/../outside\n", "/cpu.max", "50000 100000\n", true},
        {"0::/a\n", "/a/cpu.max", "0 0\n", false},
        {"0::/a\n", "/a/cpu.max", "", false},
        {"3:cpuset:/\n2:cpu,cpuacct:/c\n0::/\n", "/cpu,cpuacct/c/cpu.cfs_quota_us", "50000\n", true},
        {"3:cpuset:/\n2:cpu,cpuacct:/c\n0::/\n", "/cpu,cpuacct/c/cpu.cfs_quota_us", "-1\n", false},
        {"2:cpu:/c\n", "/cpu/cpu.cfs_quota_us", "50000\n", true},
        {"nonsense\n:\n::\n", "/cpu.max", "50000 100000\n", true},
        {"", "/cpu.max", "50000 100000\n", false},
    };
    char fake[] = "/tmp/tornado_test_XXXXXX", path[256];
    int before = tornado_cpu_count(), fd = mkstemp(fake);
    if (before < 2)
        SKIP("there is one processor, or less time than that");
    if (fd < 0 || unshare(CLONE_NEWNS) != 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/sys/fs/cgroup", "tmpfs", 0, NULL) != 0 ||
        mount(fake, "/proc/self/cgroup", "none", MS_BIND, NULL) != 0) {
        unlink(fake);
        SKIP("there cannot be control groups of a test's own here: %s", strerror(errno));
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        CHECK(mount("none", "/sys/fs/cgroup", "tmpfs", 0, NULL) == 0);
        put_file(fake, table[i].groups);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s", table[i].path);
        put_file(path, table[i].text);
        put_file("/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n");
        put_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
        CHECK_INT(tornado_cpu_count() == 1 ? (int)i : -1, table[i].limited ? (int)i : -1);
    }
    unlink(fake);
}

/*----------------------------------------------------------------------------
 * tornado_fork_processes. Each scenario runs in a process of its own, which becomes the parent; what the children and
 * it have to say comes through a pipe.
 *----------------------------------------------------------------------------*/

static int report;

static void say(const char *format, ...) TORNADO_PRINTF(1, 2);
static void say(const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    CHECK(write(report, text, (size_t)len) == len);
}

static void say_log(const tornado_log_record *record, void *arg)
{
    (void)arg;
    say("[%s]", record->message);
}

/* Runs a scenario to the end of all its processes. Its exit status, or 128 and its signal; what was said is in *said,
   sorted by words. */
static int compare_words(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int family(void (*scenario)(void), const char **said)
{
    static char text[16384], sorted[16384];
    char *words[512];
    int ends[2], status = 0, count = 0;
    size_t len = 0;
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(ends[0]);
        report = ends[1];
        scenario();
        exit(9); /* children do not come here */
    }
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], text + len, sizeof text - 1 - len)) > 0;)
        len += (size_t)got;
    text[len] = '\0';
    close(ends[0]);
    CHECK(waitpid(pid, &status, 0) == pid);
    for (char *word = strtok(text, " "); word && count < 512; word = strtok(NULL, " "))
        words[count++] = word;
    qsort(words, (size_t)count, sizeof *words, compare_words);
    sorted[0] = '\0';
    for (int i = 0; i < count; i++)
        snprintf(sorted + strlen(sorted), sizeof sorted - strlen(sorted), "%s%s", i ? " " : "", words[i]);
    *said = sorted;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void quiet(void)
{
    tornado_log_options options = {.level = TORNADO_LOG_OFF};
    tornado_enable_pretty_logging(&options);
}

static void all_exit_with_0(void)
{
    quiet();
    CHECK_INT(tornado_task_id(), -1);
    int task = tornado_fork_processes(3, 100);
    say("%d=%d ", task, tornado_task_id());
    _exit(0);
}

TEST(process_fork_gives_each_child_its_id_and_the_parent_exits_with_0)
{
    const char *said;
    CHECK_INT(family(all_exit_with_0, &said), 0);
    CHECK_STR(said, "0=0 1=1 2=2");
}

static void one_per_core(void)
{
    quiet();
    say("%d ", tornado_fork_processes(TORNADO_PER_CORE, 100));
    _exit(0);
}

TEST(process_fork_makes_one_child_per_core)
{
    char want[8192] = "";
    const char *said;
    if (tornado_cpu_count() > 9)
        SKIP("too many cores to name");
    for (int i = 0; i < tornado_cpu_count(); i++)
        snprintf(want + strlen(want), sizeof want - strlen(want), "%s%d", i ? " " : "", i);
    CHECK_INT(family(one_per_core, &said), 0);
    CHECK_STR(said, want);
}

/* Child 1 dies twice, of a signal and with a status; a file counts how often it was started. */
static void one_dies_twice(void)
{
    char path[] = "/tmp/tornado_test_XXXXXX";
    int fd = mkstemp(path);
    unlink(path);
    quiet();
    int task = tornado_fork_processes(2, 100);
    if (task == 1) {
        say("1 ");
        CHECK(write(fd, "x", 1) == 1);
        off_t starts = lseek(fd, 0, SEEK_END);
        if (starts == 1)
            raise(SIGKILL);
        if (starts == 2)
            _exit(3);
    } else {
        say("0 ");
    }
    _exit(0);
}

TEST(process_fork_starts_a_child_that_fails_again_with_its_id)
{
    const char *said;
    CHECK_INT(family(one_dies_twice, &said), 0);
    CHECK_STR(said, "0 1 1 1");
}

static void always_fail(void)
{
    tornado_log_options options = {.hook = say_log};
    int task = tornado_fork_processes(1, 3);
    if (task >= 0) {
        say("start ");
        _exit(1);
    }
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
    tornado_enable_pretty_logging(&options);
    exit(5);
}

TEST(process_fork_gives_up_after_so_many_restarts)
{
    const char *said;
    CHECK_INT(family(always_fail, &said), 5);
    CHECK_STR(said, "start start start start");
}

static void one_fails_others_wait(void)
{
    quiet();
    int task = tornado_fork_processes(3, 0);
    if (task == 1)
        _exit(1);
    if (task >= 0)
        for (;;)
            pause();
    exit(5);
}

TEST(process_fork_ends_the_other_children_when_it_gives_up)
{
    const char *said;
    CHECK_INT(family(one_fails_others_wait, &said), 5); /* which waits for the end of all who hold the pipe */
}

static void after_a_loop(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK_INT(tornado_fork_processes(2, 100), -1);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    tornado_ioloop_close(loop, false);
    quiet();
    say("%d ", tornado_fork_processes(2, 100));
    CHECK_INT(tornado_fork_processes(2, 100), -1); /* a child has no children of that kind */
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    _exit(0);
}

TEST(process_fork_is_refused_while_a_loop_is_open_and_in_its_own_children)
{
    const char *said;
    CHECK_INT(family(after_a_loop, &said), 0);
    CHECK_STR(said, "0 1");
}

/* The parent is told to end once both children say that they run. */
static int stop_by;
static bool exit_cleanly;

static void exit_0(int number)
{
    (void)number;
    _exit(0);
}

static void wait_for_a_signal(void)
{
    int ready[2];
    char bytes[2];
    pid_t parent = getpid();
    quiet();
    CHECK(pipe(ready) == 0);
    if (exit_cleanly && fork() == 0) { /* not one of its children: it tells the parent to end, and is not waited for */
        close(report);
        for (int i = 0; i < 2; i++)
            CHECK(read(ready[0], bytes, 1) == 1);
        kill(parent, stop_by);
        pause();
    }
    int task = tornado_fork_processes(2, 100);
    if (exit_cleanly)
        signal(stop_by, exit_0);
    CHECK(task >= 0 && write(ready[1], "", 1) == 1);
    if (!exit_cleanly && task == 0) {
        for (int i = 0; i < 2; i++)
            CHECK(read(ready[0], bytes, 1) == 1);
        kill(parent, stop_by);
    }
    for (;;)
        pause();
}

TEST(process_fork_passes_a_signal_on_and_exits_with_0_when_the_children_do)
{
    const char *said;
    exit_cleanly = true;
    stop_by = SIGTERM;
    CHECK_INT(family(wait_for_a_signal, &said), 0);
}

TEST(process_fork_dies_of_the_signal_of_which_its_children_died)
{
    const char *said;
    stop_by = SIGINT;
    CHECK_INT(family(wait_for_a_signal, &said), 128 + SIGINT);
}

static void random_in_each(void)
{
    char hex[33];
    unsigned char bytes[16];
    quiet();
    CHECK(tornado_random_bytes(bytes, sizeof bytes)); /* whatever state there is, is there before */
    tornado_fork_processes(2, 100);
    CHECK(tornado_random_bytes(bytes, sizeof bytes));
    say("%s ", tornado_hex_encode(bytes, sizeof bytes, hex));
    _exit(0);
}

TEST(process_fork_gives_each_child_other_random_bytes)
{
    const char *said;
    CHECK_INT(family(random_in_each, &said), 0);
    CHECK_INT(strlen(said), 65);
    CHECK(memcmp(said, said + 33, 32) != 0);
}

static void short_of_memory_at_fork(void)
{
    test_fail_alloc(1);
    CHECK_INT(tornado_fork_processes(2, 100), -1);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    exit(5);
}

TEST(process_fork_fails_when_memory_is_short)
{
    const char *said;
    CHECK_INT(family(short_of_memory_at_fork, &said), 5);
}

/*----------------------------------------------------------------------------
 * Subprocesses. What a test of both ways does is done with the descriptor of the process, and with SIGCHLD.
 *----------------------------------------------------------------------------*/

#define TEST_BOTH_WAYS(name)                                                                                       \
    static void name(void);                                                                                        \
    TEST_EACH_POLLER(name)                                                                                         \
    {                                                                                                              \
        name();                                                                                                    \
    }                                                                                                              \
    TEST_EACH_POLLER(name##_by_sigchld)                                                                            \
    {                                                                                                              \
        CHECK(tornado_subprocess_initialize());                                                                    \
        name();                                                                                                    \
    }                                                                                                              \
    static void name(void)

static tornado_subprocess *shell(const char *command)
{
    tornado_subprocess *process = tornado_subprocess_shell(command, NULL);
    CHECK(process != NULL);
    return process;
}

static const char *const cat[] = {"cat", NULL};
static const tornado_subprocess_options in_and_out = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM};
static const tornado_subprocess_options out_only = {.std_out = TORNADO_STREAM};

/* All that a subprocess prints; then it has ended, and is freed. In a coroutine. */
static const char *output_of(tornado_subprocess *process)
{
    static char text[65536];
    CHECK(process != NULL);
    tornado_bytes bytes = tornado_await_bytes(tornado_iostream_read_until_close(tornado_subprocess_stdout(process)));
    snprintf(text, sizeof text, "%.*s", (int)bytes.len, bytes.data);
    tornado_await_integer(tornado_subprocess_wait_for_exit(process, false));
    tornado_subprocess_free(process);
    return text;
}

static void *talk_to_cat(void *arg)
{
    (void)arg;
    tornado_subprocess *process = tornado_subprocess_new(cat, &in_and_out);
    CHECK(process != NULL);
    CHECK(tornado_subprocess_stderr(process) == NULL);
    for (int i = 0; i < 3; i++) {
        tornado_await(tornado_iostream_write(tornado_subprocess_stdin(process), tornado_bytes_of("a line\n")));
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(tornado_subprocess_stdout(process), "\n"));
        CHECK_MEM(line.data, line.len, "a line\n", 7);
    }
    CHECK_INT(tornado_subprocess_returncode(process), TORNADO_RUNNING);
    tornado_iostream_close(tornado_subprocess_stdin(process));
    CHECK_STR(output_of(process), "");
    return NULL;
}

TEST_EACH_POLLER(process_streams_reach_a_program_that_answers)
{
    run(talk_to_cat, NULL);
}

static void *pump_through_cat(void *arg)
{
    tornado_bytes data = *(tornado_bytes *)arg;
    tornado_subprocess *process = tornado_subprocess_new(cat, &in_and_out);
    tornado_future *written = tornado_iostream_write(tornado_subprocess_stdin(process), data);
    tornado_bytes back = tornado_await_bytes(tornado_iostream_read_bytes(tornado_subprocess_stdout(process), data.len));
    CHECK_MEM(back.data, back.len, data.data, data.len);
    tornado_await(written);
    tornado_iostream_close(tornado_subprocess_stdin(process));
    tornado_await(tornado_subprocess_wait_for_exit(process, true));
    tornado_subprocess_free(process);
    return NULL;
}

TEST_EACH_POLLER(process_streams_carry_more_than_a_pipe_holds)
{
    size_t len = 1000000;
    char *text = malloc(len);
    for (size_t i = 0; i < len; i++)
        text[i] = (char)(i * 31 >> 3);
    tornado_bytes data = {text, len};
    run(pump_through_cat, &data);
    free(text);
}

static void *all_three(void *arg)
{
    (void)arg;
    tornado_subprocess_options options = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM, .std_err = TORNADO_STREAM};
    tornado_subprocess *process = tornado_subprocess_shell("read x; echo out $x; echo err $x >&2; exit 7", &options);
    tornado_await(tornado_iostream_write(tornado_subprocess_stdin(process), tornado_bytes_of("in\n")));
    tornado_bytes err = tornado_await_bytes(tornado_iostream_read_until_close(tornado_subprocess_stderr(process)));
    CHECK_MEM(err.data, err.len, "err in\n", 7);
    tornado_future_release(tornado_subprocess_wait_for_exit(process, false));
    CHECK_STR(output_of(process), "out in\n");
    return NULL;
}

TEST(process_streams_are_three)
{
    run(all_three, NULL);
}

static void *merged(void *arg)
{
    (void)arg;
    tornado_subprocess_options options = {.std_out = TORNADO_STREAM, .std_err = TORNADO_STDOUT};
    CHECK_STR(output_of(tornado_subprocess_shell("echo one; echo two >&2; echo three", &options)), "one\ntwo\nthree\n");
    return NULL;
}

TEST(process_stderr_may_be_stdout)
{
    run(merged, NULL);
}

static void *from_null(void *arg)
{
    (void)arg;
    tornado_subprocess_options options = {.std_in = TORNADO_DEVNULL, .std_out = TORNADO_STREAM};
    CHECK_STR(output_of(tornado_subprocess_shell("cat; echo done", &options)), "done\n");
    return NULL;
}

TEST(process_stdin_may_be_dev_null)
{
    run(from_null, NULL);
}

TEST(process_descriptors_may_be_swapped)
{
    int out[2], err[2];
    char text[16];
    CHECK(pipe(out) == 0 && pipe(err) == 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    tornado_subprocess_options options = {.std_out = 2, .std_err = 1};
    tornado_subprocess *process = tornado_subprocess_shell("echo o; echo e >&2", &options);
    CHECK(process != NULL);
    CHECK(read(err[0], text, sizeof text) == 2 && text[0] == 'o');
    CHECK(read(out[0], text, sizeof text) == 2 && text[0] == 'e');
    tornado_subprocess_free(process);
}

static void *without_standard_descriptors(void *arg)
{
    (void)arg;
    CHECK_STR(output_of(tornado_subprocess_shell("echo fine", &in_and_out)), "fine\n");
    return NULL;
}

TEST(process_streams_work_when_the_standard_descriptors_are_closed)
{
    tornado_ioloop_current();
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    run(without_standard_descriptors, NULL);
}

static void *with_environment(void *arg)
{
    static const char *const env[] = {"A=1", "B=two words", NULL};
    static const char *const program[] = {"env", NULL};
    tornado_subprocess_options options = {.std_out = TORNADO_STREAM, .env = env};
    (void)arg;
    CHECK_STR(output_of(tornado_subprocess_new(program, &options)), "A=1\nB=two words\n");
    CHECK(setenv("TEST_INHERITED", "yes", 1) == 0);
    CHECK_STR(output_of(tornado_subprocess_shell("echo $TEST_INHERITED", &out_only)), "yes\n");
    return NULL;
}

TEST(process_environment_is_given_or_inherited)
{
    run(with_environment, NULL);
}

static void *elsewhere(void *arg)
{
    tornado_subprocess_options options = {.std_out = TORNADO_STREAM, .cwd = "/"};
    (void)arg;
    CHECK_STR(output_of(tornado_subprocess_shell("pwd", &options)), "/\n");
    return NULL;
}

TEST(process_begins_in_a_directory)
{
    run(elsewhere, NULL);
}

static void *in_own_session(void *arg)
{
    char want[32];
    tornado_subprocess_options options = {.std_out = TORNADO_STREAM, .new_session = true};
    tornado_subprocess *process = tornado_subprocess_shell("cut -d' ' -f6 /proc/$$/stat", &options);
    (void)arg;
    CHECK(process != NULL);
    snprintf(want, sizeof want, "%d\n", tornado_subprocess_pid(process));
    CHECK_STR(output_of(process), want);
    return NULL;
}

TEST(process_may_have_a_session_of_its_own)
{
    if (access("/proc/self/stat", R_OK) != 0)
        SKIP("there is no /proc");
    run(in_own_session, NULL);
}

TEST(process_says_why_a_program_cannot_be_run)
{
    char script[] = "/tmp/tornado_test_XXXXXX";
    int fd = mkstemp(script);
    CHECK(fd >= 0);
    const struct {
        const char *program, *cwd, *what;
        int code, error;
    } table[] = {
        {"no-such-program-there-is", NULL, "no-such-program-there-is", TORNADO_ERR_SYSTEM, ENOENT},
        {"/no/such/program", NULL, "/no/such/program", TORNADO_ERR_SYSTEM, ENOENT},
        {"./tests", "/no/such/place", "/no/such/place", TORNADO_ERR_SYSTEM, ENOENT},
        {script, NULL, script, TORNADO_ERR_SYSTEM, EACCES},
        {"/", NULL, "/", TORNADO_ERR_SYSTEM, EACCES},
        {"", NULL, "name", TORNADO_ERR_INVALID, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *argv[] = {table[i].program, NULL};
        tornado_subprocess_options options = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM,
                                              .std_err = TORNADO_STREAM, .cwd = table[i].cwd};
        CHECK(!tornado_subprocess_new(argv, &options));
        CHECK_INT(tornado_last_error()->code, table[i].code);
        CHECK_INT(tornado_last_error()->sys_errno, table[i].error);
        CHECK(strstr(tornado_last_error()->message, table[i].what) != NULL);
    }
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD); /* none is left behind */
    unlink(script);
    close(fd);
}

TEST(process_refuses_what_is_no_descriptor)
{
    static const tornado_subprocess_options invalid[] = {
        {.std_out = 12345}, {.std_out = TORNADO_STDOUT}, {.std_in = -7}};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++)
        CHECK(!tornado_subprocess_new(cat, &invalid[i]));
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

/* The descriptors that a process has open, as "0 1 2 "; the one it reads them by is not among them. */
static void *list_descriptors(void *arg)
{
    tornado_subprocess_options options = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM, .std_err = TORNADO_STREAM};
    (void)arg;
    CHECK_STR(output_of(tornado_subprocess_shell("for f in /proc/$$/fd/*; do [ -e $f ] && echo ${f##*/}; done",
                                                 &options)),
              "0\n1\n2\n");
    return NULL;
}

TEST(process_gives_a_program_no_descriptors_but_the_standard_ones)
{
    if (access("/proc/self/fd", R_OK) != 0)
        SKIP("there is no /proc");
    for (int fd = 30; fd < 40; fd++)
        CHECK(dup2(0, fd) == fd); /* without close-on-exec */
    run(list_descriptors, NULL);
}

static int count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void *run_some(void *arg)
{
    for (int i = 0; i < 3; i++)
        CHECK_STR(output_of(tornado_subprocess_shell("cat >/dev/null; echo x", arg)), "x\n");
    return NULL;
}

TEST(process_keeps_no_descriptor_open_once_it_has_ended)
{
    tornado_subprocess_options options = {.std_in = TORNADO_DEVNULL, .std_out = TORNADO_STREAM, .std_err = TORNADO_STREAM};
    run(run_some, &options);
    int before = count_descriptors();
    run(run_some, &options);
    CHECK_INT(count_descriptors(), before);
}

static void note_exit(int returncode, void *arg);

/* With so many descriptors in all: works, or says that there are too few and leaves nothing. */
static bool start_with_few(int descriptors)
{
    tornado_subprocess_options options = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM,
                                          .std_err = TORNADO_STREAM};
    struct rlimit limit, few;
    int before = count_descriptors();
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    few = limit;
    few.rlim_cur = (rlim_t)descriptors;
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    tornado_subprocess *process = tornado_subprocess_shell("exit 3", &options);
    tornado_error error = *tornado_last_error();
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (process) {
        tornado_subprocess_set_exit_callback(process, note_exit, NULL);
        tornado_ioloop_start(tornado_ioloop_current());
        CHECK_STR(traced(), "3 ");
        tornado_subprocess_free(process);
    } else {
        CHECK_INT(error.sys_errno, EMFILE);
    }
    CHECK_INT(count_descriptors(), before);
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    return process != NULL;
}

TEST_BOTH_WAYS(process_that_finds_too_few_descriptors_leaves_none_and_no_child)
{
    if (test_emulated())
        SKIP("QEMU has descriptors of its own");
    run(run_some, (void *)(uintptr_t)&out_only); /* what is opened once */
    int lowest = dup(0), worked = 0;
    close(lowest);
    for (int i = 0; i <= 20; i++) {
        bool works = start_with_few(lowest + i);
        CHECK(i > 0 || !works);
        worked += works;
    }
    CHECK(worked > 0);
}

TEST(process_is_refused_by_sigchld_when_the_loop_has_no_room_for_its_callback)
{
    static int args[64];
    CHECK(tornado_subprocess_initialize());
    for (int i = 0; i < 64; i++)
        CHECK(tornado_ioloop_add_callback_from_signal(tornado_ioloop_current(), stop_loop, &args[i]));
    for (int i = 0; i < 3; i++) {
        CHECK(tornado_subprocess_shell("exit 3", NULL) == NULL);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
        CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    }
}

static const char *const own_signals = "grep -E 'SigIgn|SigBlk|SigCgt' /proc/self/status | cut -f2 | tr '\\n' ' '";

static void *signals_of_a_program(void *arg)
{
    (void)arg;
    unsigned long long blocked, ignored, caught;
    CHECK(sscanf(output_of(tornado_subprocess_shell(own_signals, &out_only)), "%llx %llx %llx", &blocked,
                 &ignored, &caught) == 3);
    CHECK(blocked == 0);
    CHECK_INT(ignored >> (SIGPIPE - 1) & 1, 0);
    CHECK_INT(ignored >> (SIGUSR2 - 1) & 1, 1);
    return NULL;
}

TEST(process_gives_a_program_the_default_sigpipe_and_what_else_is_ignored)
{
    if (access("/proc/self/status", R_OK) != 0)
        SKIP("there is no /proc");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    run(signals_of_a_program, NULL);
}

/* ---- the end ---- */

static void note_exit(int returncode, void *arg)
{
    char text[32];
    snprintf(text, sizeof text, "%s%d ", arg ? (char *)arg : "", returncode);
    note(text);
    stop_loop(NULL);
}

TEST_BOTH_WAYS(process_exit_callback_gets_the_return_code)
{
    static const struct {
        const char *command, *want;
    } table[] = {{"exit 0", "0 "}, {"exit 3", "3 "}, {"kill -9 $$", "-9 "}, {"kill -TERM $$", "-15 "}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tornado_subprocess *process = shell(table[i].command);
        tornado_subprocess_set_exit_callback(process, note_exit, NULL);
        tornado_ioloop_start(tornado_ioloop_current());
        CHECK_STR(traced(), table[i].want);
        char code[16];
        snprintf(code, sizeof code, "%d ", tornado_subprocess_returncode(process));
        CHECK_STR(code, table[i].want);
        tornado_subprocess_free(process);
    }
}

static void *wait_in_all_ways(void *arg)
{
    static const struct {
        const char *command, *message;
        int code;
    } table[] = {{"exit 0", NULL, 0},
                 {"exit 3", "/bin/sh returned non-zero exit status 3", 3},
                 {"kill -9 $$", "/bin/sh was killed by signal 9", -9}};
    (void)arg;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tornado_subprocess *process = shell(table[i].command);
        tornado_future *again = tornado_subprocess_wait_for_exit(process, false);
        const tornado_error *error = tornado_wait(tornado_subprocess_wait_for_exit(process, true));
        CHECK((error != NULL) == (table[i].message != NULL));
        if (error) {
            CHECK_INT(error->code, TORNADO_ERR_CALLED_PROCESS);
            CHECK_STR(error->message, table[i].message);
        }
        CHECK_INT(tornado_await_integer(again), table[i].code);
        CHECK_INT(tornado_await_integer(tornado_subprocess_wait_for_exit(process, false)), table[i].code);
        error = tornado_wait(tornado_subprocess_wait_for_exit(process, true)); /* and after the end */
        CHECK((error != NULL) == (table[i].message != NULL));
        CHECK(!tornado_subprocess_send_signal(process, SIGTERM));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
        tornado_subprocess_free(process);
    }
    return NULL;
}

TEST_BOTH_WAYS(process_wait_for_exit_gives_the_return_code_or_fails_with_it)
{
    run(wait_in_all_ways, NULL);
}

TEST_BOTH_WAYS(process_that_has_ended_still_calls_an_exit_callback)
{
    tornado_subprocess *process = shell("exit 4");
    siginfo_t info;
    CHECK(waitid(P_PID, (id_t)tornado_subprocess_pid(process), &info, WEXITED | WNOWAIT) == 0);
    tornado_subprocess_set_exit_callback(process, note_exit, NULL);
    tornado_ioloop_start(tornado_ioloop_current());
    tornado_subprocess_set_exit_callback(process, note_exit, "again ");
    CHECK_STR(traced(), "4 "); /* not inside the call */
    tornado_ioloop_start(tornado_ioloop_current());
    CHECK_STR(traced(), "again 4 ");
    tornado_subprocess_free(process);
}

static void free_on_exit(int returncode, void *arg)
{
    CHECK_INT(returncode, 0);
    tornado_subprocess_free(*(tornado_subprocess **)arg);
    stop_loop(NULL);
}

TEST_BOTH_WAYS(process_may_be_freed_by_its_exit_callback)
{
    tornado_subprocess *process = shell("exit 0");
    tornado_subprocess_set_exit_callback(process, free_on_exit, &process);
    tornado_ioloop_start(tornado_ioloop_current());
}

static void raise_on_exit(int returncode, void *arg)
{
    stop_loop(arg);
    tornado_raise(TORNADO_ERR_INVALID, "not %d", returncode);
}

TEST(process_exit_callback_that_raises_is_logged)
{
    log_keep();
    tornado_subprocess *process = shell("exit 0");
    tornado_subprocess_set_exit_callback(process, raise_on_exit, NULL);
    tornado_ioloop_start(tornado_ioloop_current());
    CHECK_INT(logged("not 0"), 1);
    tornado_subprocess_free(process);
}

static void *wait_for_a_freed_one(void *arg)
{
    tornado_subprocess *process = shell("exit 6");
    tornado_future *end = tornado_subprocess_wait_for_exit(process, false);
    tornado_subprocess_set_exit_callback(process, note_exit, NULL);
    tornado_subprocess_free(process);
    CHECK_INT(tornado_await_integer(end), 6);
    return arg;
}

TEST_BOTH_WAYS(process_that_was_freed_is_waited_for_and_calls_nobody)
{
    run(wait_for_a_freed_one, NULL);
    CHECK_STR(traced(), "");
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

static void *signal_it(void *arg)
{
    tornado_subprocess *process = shell("echo; exec sleep 1000");
    CHECK(tornado_subprocess_send_signal(process, SIGTERM));
    CHECK_INT(tornado_await_integer(tornado_subprocess_wait_for_exit(process, false)), -SIGTERM);
    tornado_subprocess_free(process);
    return arg;
}

TEST(process_can_be_signalled)
{
    run(signal_it, NULL);
}

static void *many_end_at_once(void *arg)
{
    enum { MANY = 200 };
    tornado_subprocess *processes[MANY];
    tornado_future *ends[MANY];
    int gate[2];
    (void)arg;
    CHECK(pipe(gate) == 0 && fcntl(gate[1], F_SETFD, FD_CLOEXEC) == 0);
    tornado_subprocess_options options = {.std_in = gate[0]};
    for (int i = 0; i < MANY; i++) {
        static const char *const argv[] = {"/bin/sh", "-c", "read x; exit 11", NULL};
        processes[i] = tornado_subprocess_new(argv, &options);
        CHECK(processes[i] != NULL);
        ends[i] = tornado_subprocess_wait_for_exit(processes[i], false);
    }
    close(gate[1]); /* now all of them */
    int64_t **codes = (int64_t **)(void *)(void **)tornado_await(tornado_multi(ends, MANY));
    for (int i = 0; i < MANY; i++) {
        CHECK_INT(*codes[i], 11);
        tornado_subprocess_free(processes[i]);
    }
    return NULL;
}

TEST_LIMIT(process_notices_two_hundred_ends_at_once, 20)
{
    run(many_end_at_once, NULL);
}

TEST_LIMIT(process_notices_two_hundred_ends_at_once_by_sigchld, 20)
{
    CHECK(tornado_subprocess_initialize());
    run(many_end_at_once, NULL);
}

static void *wait_elsewhere(void *arg)
{
    tornado_subprocess *process = shell("exit 3");
    CHECK(waitpid(tornado_subprocess_pid(process), NULL, 0) > 0);
    CHECK_INT(tornado_await_integer(tornado_subprocess_wait_for_exit(process, false)), 255);
    CHECK_INT(logged("waited for elsewhere"), 1);
    tornado_subprocess_free(process);
    return arg;
}

TEST_BOTH_WAYS(process_that_somebody_else_waited_for_ends_with_255)
{
    log_keep();
    run(wait_elsewhere, NULL);
}

static volatile sig_atomic_t chained;

static void count_sigchld(int number)
{
    (void)number;
    chained++;
}

static void count_sigchld_info(int number, siginfo_t *info, void *context)
{
    (void)context;
    chained += info != NULL && info->si_signo == number;
}

TEST(process_calls_the_sigchld_handler_that_was_there_and_puts_it_back)
{
    struct sigaction plain = {.sa_handler = count_sigchld}, with_info = {.sa_flags = SA_SIGINFO}, now;
    with_info.sa_sigaction = count_sigchld_info;
    struct sigaction *handlers[] = {&plain, &with_info};
    for (int i = 0; i < 2; i++) {
        CHECK(sigaction(SIGCHLD, handlers[i], NULL) == 0);
        CHECK(tornado_subprocess_initialize());
        chained = 0;
        run(wait_for_a_freed_one, NULL);
        CHECK(chained > 0);
        tornado_subprocess_uninitialize();
        CHECK(sigaction(SIGCHLD, NULL, &now) == 0);
        CHECK(i == 0 ? now.sa_handler == count_sigchld : now.sa_sigaction == count_sigchld_info);
    }
}

TEST(process_leaves_a_sigchld_handler_alone_that_came_later)
{
    struct sigaction later = {.sa_handler = count_sigchld}, now;
    CHECK(tornado_subprocess_initialize());
    CHECK(sigaction(SIGCHLD, &later, NULL) == 0);
    tornado_subprocess_uninitialize();
    CHECK(sigaction(SIGCHLD, NULL, &now) == 0);
    CHECK(now.sa_handler == count_sigchld);
}

TEST(process_installs_no_sigchld_handler_unasked_where_processes_have_descriptors)
{
    struct sigaction now;
    int fd = (int)syscall(434, getpid(), 0u);
    if (fd < 0)
        SKIP("this system has no descriptors of processes");
    close(fd);
    run(wait_for_a_freed_one, NULL);
    CHECK(sigaction(SIGCHLD, NULL, &now) == 0);
    CHECK(now.sa_handler == SIG_DFL);
}

static void *run_on_own_loop(void *arg)
{
    for (int i = 0; i < 10; i++)
        CHECK(tornado_ioloop_run_sync(tornado_ioloop_current(), wait_for_a_freed_one, arg));
    tornado_ioloop_close(tornado_ioloop_current(), false);
    return NULL;
}

TEST(process_ends_reach_the_loops_of_several_threads_by_sigchld)
{
    pthread_t threads[3];
    CHECK(tornado_subprocess_initialize());
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, run_on_own_loop, NULL) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
}

TEST_BOTH_WAYS(process_outlives_its_loop)
{
    tornado_subprocess *process = tornado_subprocess_shell("read x; exit 0", &in_and_out);
    CHECK(process != NULL);
    pid_t pid = tornado_subprocess_pid(process);
    tornado_future *end = tornado_subprocess_wait_for_exit(process, true);
    tornado_ioloop_close(tornado_ioloop_current(), true);
    CHECK(!tornado_future_done(end));
    CHECK_INT(tornado_subprocess_returncode(process), TORNADO_RUNNING);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    tornado_subprocess_free(process);
    tornado_future_release(end);
}

/* ---- pipes ---- */

static void *write_to_a_closed_pipe(void *arg)
{
    tornado_subprocess *process = tornado_subprocess_shell("exec 0<&-; echo closed; exec sleep 1000", &in_and_out);
    tornado_iostream *in = tornado_subprocess_stdin(process);
    (void)arg;
    tornado_await_bytes(tornado_iostream_read_until(tornado_subprocess_stdout(process), "\n"));
    const tornado_error *error = tornado_wait(tornado_iostream_write(in, tornado_bytes_of("x")));
    CHECK(is_error(error, TORNADO_ERR_CLOSED));
    CHECK_INT(error->sys_errno, EPIPE);
    CHECK(tornado_iostream_closed(in));
    tornado_subprocess_send_signal(process, SIGKILL);
    tornado_await(tornado_subprocess_wait_for_exit(process, false));
    tornado_subprocess_free(process);
    return NULL;
}

TEST_EACH_POLLER(process_writing_to_a_program_that_closed_its_stdin_fails_and_nothing_dies_of_sigpipe)
{
    run(write_to_a_closed_pipe, NULL);
}

static void *fill_a_pipe_that_is_closed(void *arg)
{
    tornado_bytes *data = arg;
    tornado_subprocess *process = tornado_subprocess_shell("read x; exit 0", &in_and_out);
    const tornado_error *error = tornado_wait(tornado_iostream_write(tornado_subprocess_stdin(process), *data));
    CHECK(is_error(error, TORNADO_ERR_CLOSED));
    tornado_await(tornado_subprocess_wait_for_exit(process, true));
    tornado_subprocess_free(process);
    return NULL;
}

TEST_EACH_POLLER(process_a_write_that_waits_fails_when_the_program_ends)
{
    tornado_bytes data = {calloc(1, 1000000), 1000000};
    ((char *)(uintptr_t)data.data)[0] = '\n';
    run(fill_a_pipe_that_is_closed, &data);
    free((void *)(uintptr_t)data.data);
}

static void *sigpipe_kept(void *arg)
{
    sigset_t pending;
    raise(SIGPIPE);
    write_to_a_closed_pipe(arg);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE));
    return arg;
}

TEST(process_a_sigpipe_that_was_pending_before_stays_so)
{
    sigset_t sigpipe; /* blocked for loop and coroutine alike: ucontext has a mask for each */
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &sigpipe, NULL);
    run(sigpipe_kept, NULL);
}

static void *ignore_sigpipe(void *arg)
{
    signal(SIGPIPE, SIG_IGN);
    return write_to_a_closed_pipe(arg);
}

TEST(process_a_closed_pipe_is_no_trouble_where_sigpipe_is_ignored)
{
    run(ignore_sigpipe, NULL);
}

TEST(process_stream_tells_when_the_program_closes_its_stdin)
{
    tornado_subprocess *process = tornado_subprocess_shell("exec 0<&-; exec sleep 1000", &in_and_out);
    tornado_iostream_set_close_callback(tornado_subprocess_stdin(process), stop_loop, NULL);
    tornado_ioloop_start(tornado_ioloop_current());
    CHECK(tornado_iostream_closed(tornado_subprocess_stdin(process)));
    CHECK_INT(tornado_iostream_error(tornado_subprocess_stdin(process))->sys_errno, EPIPE);
    tornado_subprocess_send_signal(process, SIGKILL);
    tornado_subprocess_free(process);
}

/* ---- the example ---- */

static void *talk_to_workers(void *arg)
{
    char path[512], command[768];
    const char *directory = getenv("TEST_EXAMPLES");
    snprintf(path, sizeof path, "%s/workers", directory ? directory : "build/examples");
    if (access(path, X_OK) != 0)
        SKIP("%s is not there: make examples", path);
    const char *argv[] = {path, "0", "1", NULL};
    int port = 0;
    tornado_subprocess *server = tornado_subprocess_new(argv, &out_only);
    CHECK(server != NULL);
    tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(tornado_subprocess_stdout(server), "\n"));
    CHECK(sscanf(line.data, "serving on http://127.0.0.1:%d", &port) == 1);
    snprintf(command, sizeof command, "curl -s http://127.0.0.1:%d/primes?below=1000 http://127.0.0.1:%d/kernel", port,
             port);
    const char *said = output_of(tornado_subprocess_shell(command, &out_only));
    CHECK(strncmp(said, "168 primes below 1000, said process 0\n", 38) == 0 && strlen(said) > 40);
    CHECK(tornado_subprocess_send_signal(server, SIGTERM));
    CHECK_INT(tornado_await_integer(tornado_subprocess_wait_for_exit(server, false)), 0);
    tornado_subprocess_free(server);
    return arg;
}

TEST(process_the_example_of_workers_serves_and_ends_with_0)
{
    TEST_NEED("curl");
    run(talk_to_workers, NULL);
}

/* ---- memory ---- */

static void start_short_of_memory(void)
{
    tornado_ioloop *loop = tornado_ioloop_new(NULL);
    tornado_subprocess_options options = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM, .std_err = TORNADO_DEVNULL};
    tornado_subprocess *process = loop ? tornado_subprocess_shell("exit 3", &options) : NULL;
    if (!process)
        return;
    tornado_future_release(tornado_subprocess_wait_for_exit(process, true));
    tornado_subprocess_set_exit_callback(process, note_exit, NULL);
    tornado_ioloop_start(loop);
    CHECK_STR(traced(), "3 ");
    tornado_subprocess_free(process);
}

TEST(process_survives_every_shortage_of_memory)
{
    each_shortage(start_short_of_memory);
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}

TEST(process_survives_every_shortage_of_memory_by_sigchld)
{
    CHECK(tornado_subprocess_initialize());
    each_shortage(start_short_of_memory);
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
}
