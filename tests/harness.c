/* The test program: registers, runs and reports tests. C11 and POSIX only. See harness.h for how to write a test,
   and `build/plain/tests -h` for how to run some. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What a test's processes tell the runner, in memory they share with it. */
typedef struct shared {
    atomic_bool failed, skipped, finished;
    char reason[256]; /* of the skip */
} shared;

static struct {
    shared *shared;
    pid_t pid;
    double deadline;
    bool may_leak;
    test_output *outputs;
} current;

const char *test_poller = "";

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

bool test_emulated(void)
{
    return getenv("TEST_EMULATED") != NULL;
}

double test_scaled(double seconds)
{
    const char *scale = getenv("TEST_TIME_SCALE");
    double factor = scale ? atof(scale) : 1;
    return seconds * (factor > 0 ? factor : 1);
}

/*----------------------------------------------------------------------------
 * The header's memory. Where each live block came from is kept in a hash table of which a block uses one of the
 * SITE_WINDOW slots behind its hash: nothing to lock, and a block that finds none free is merely not named in a
 * report. Addresses are kept inverted, so that leak detectors do not take them for references.
 *----------------------------------------------------------------------------*/

#define SITES       ((size_t)1 << 18)
#define SITE_WINDOW ((size_t)32)

static struct {
    atomic_uintptr_t key;
    atomic_size_t size;
    atomic_int line;
} sites[SITES];

static atomic_long allocs, live, countdown, failures; /* failures: so many in a row, once countdown is at 1 */

static size_t site_hash(uintptr_t key)
{
    return (size_t)(((uint64_t)key >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 46) % (SITES - SITE_WINDOW);
}

static void site_replace(uintptr_t from, uintptr_t to, size_t size, int line)
{
    size_t first = site_hash(from ? from : to);
    for (size_t i = first; i < first + SITE_WINDOW; i++) {
        uintptr_t expected = from;
        if (atomic_compare_exchange_strong(&sites[i].key, &expected, to)) {
            atomic_store_explicit(&sites[i].size, size, memory_order_relaxed);
            atomic_store_explicit(&sites[i].line, line, memory_order_relaxed);
            return;
        }
    }
}

static bool allocation_fails(void)
{
    atomic_fetch_add(&allocs, 1);
    long row = atomic_load(&failures), left = row > 0 ? atomic_fetch_sub(&countdown, 1) : 2;
    return left <= 1 && left > 1 - row;
}

void *test_malloc(size_t size, int line);
void *test_realloc(void *pointer, size_t size, int line);
void test_free(void *pointer, int line);
void test_assertion_failed(const char *condition, int line);

void *test_malloc(size_t size, int line)
{
    void *pointer = allocation_fails() ? NULL : malloc(size ? size : 1);
    if (pointer) {
        atomic_fetch_add(&live, 1);
        site_replace(0, ~(uintptr_t)pointer, size, line);
    }
    return pointer;
}

void *test_realloc(void *pointer, size_t size, int line)
{
    if (!pointer)
        return test_malloc(size, line);
    if (size == 0)
        test_fail("tornado.h", line, "TORNADO_REALLOC to a size of 0, which C leaves undefined");
    if (allocation_fails())
        return NULL;
    site_replace(~(uintptr_t)pointer, 0, 0, 0);
    void *moved = realloc(pointer, size);
    site_replace(0, ~(uintptr_t)(moved ? moved : pointer), size, line);
    return moved;
}

void test_free(void *pointer, int line)
{
    (void)line;
    if (!pointer)
        return;
    atomic_fetch_sub(&live, 1);
    site_replace(~(uintptr_t)pointer, 0, 0, 0);
    free(pointer);
}

void test_fail_allocs(long n, long row)
{
    atomic_store(&failures, 0);
    atomic_store(&countdown, n);
    atomic_store(&failures, n > 0 ? row : 0);
}

void test_fail_alloc(long n)
{
    test_fail_allocs(n, 1);
}

long test_allocs(void)
{
    return atomic_load(&allocs);
}

long test_live(void)
{
    return atomic_load(&live);
}

void test_may_leak(void)
{
    current.may_leak = true;
}

static void print_sites(void)
{
    int printed = 0;
    for (size_t i = 0; i < SITES && printed < 20; i++)
        if (atomic_load(&sites[i].key)) {
            fprintf(stderr, "  a block of %zu bytes from tornado.h:%d\n", sites[i].size, sites[i].line);
            printed++;
        }
}

/*----------------------------------------------------------------------------
 * Checks. What ends a test leaves by _exit, which works from any stack, thread or process.
 *----------------------------------------------------------------------------*/

void test_fail(const char *file, int line, const char *format, ...)
{
    const tornado_error *error = tornado_last_error();
    char text[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, "%s:%d: %s\n", file, line, text);
    if (error->code)
        fprintf(stderr, "  this thread's last error: %s: %s\n", tornado_error_name(error->code), error->message);
    atomic_store(&current.shared->failed, true);
    _exit(1);
}

void test_skip(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(current.shared->reason, sizeof current.shared->reason, format, args);
    va_end(args);
    atomic_store(&current.shared->skipped, true);
    _exit(0);
}

void test_assertion_failed(const char *condition, int line)
{
    test_fail("tornado.h", line, "the assertion failed: %s", condition);
}

void test_check_int(const char *file, int line, const char *what, long long got, long long want)
{
    if (got != want)
        test_fail(file, line, "%s is %lld, not %lld", what, got, want);
}

/* Writes bytes as a C string would, cut to fit. */
static const char *quoted(char *out, size_t room, const char *data, size_t len)
{
    size_t used = 0;
    out[used++] = '"';
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)data[i];
        if (used + 10 > room) {
            memcpy(out + used, "\"...", 5);
            return out;
        }
        if (c == '\n' || c == '\r' || c == '\t' || c == '"' || c == '\\') {
            out[used++] = '\\';
            out[used++] = c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : (char)c;
        } else if (c >= ' ' && c < 0x7f) {
            out[used++] = (char)c;
        } else {
            used += (size_t)snprintf(out + used, 5, "\\%03o", c);
        }
    }
    out[used++] = '"';
    out[used] = '\0';
    return out;
}

void test_check_mem(const char *file, int line, const char *what, const void *got, size_t got_len, const void *want,
                    size_t want_len)
{
    char left[1500], right[1500];
    const char *a = got, *b = want;
    size_t same = 0;
    if (!a && got_len)
        test_fail(file, line, "%s is NULL with a length of %zu", what, got_len);
    while (same < got_len && same < want_len && a[same] == b[same])
        same++;
    if (same < got_len || same < want_len)
        test_fail(file, line, "%s differs from byte %zu on\n  got  (%zu) %s\n  want (%zu) %s", what, same, got_len,
                  quoted(left, sizeof left, a, got_len), want_len, quoted(right, sizeof right, b, want_len));
}

void test_check_str(const char *file, int line, const char *what, const char *got, const char *want)
{
    if (got && want)
        test_check_mem(file, line, what, got, strlen(got), want, strlen(want));
    else if (got)
        test_fail(file, line, "%s is not NULL but \"%.1000s\"", what, got);
    else if (want)
        test_fail(file, line, "%s is NULL, not \"%.1000s\"", what, want);
}

void test_check_double(const char *file, int line, const char *what, double got, double want)
{
    bool same = memcmp(&got, &want, sizeof got) == 0 || (got != got && want != want);
    if (!same)
        test_fail(file, line, "%s is %.17g, not %.17g", what, got, want);
}

/*----------------------------------------------------------------------------
 * Commands.
 *----------------------------------------------------------------------------*/

bool test_have(const char *program)
{
    char path[4096];
    const char *at = getenv("PATH");
    while (at && *at) {
        size_t len = strcspn(at, ":");
        int needed = snprintf(path, sizeof path, "%.*s/%s", (int)len, at, program);
        if (needed > 0 && (size_t)needed < sizeof path && access(path, X_OK) == 0)
            return true;
        at += len + (at[len] == ':');
    }
    return false;
}

typedef struct command {
    test_output *output;
    char text[2048];
    pid_t pid;
    int fd;
    tornado_ioloop *loop;
} command;

static void command_start(command *run, const char *format, va_list args)
{
    int ends[2];
    run->output = calloc(1, sizeof *run->output);
    errno = ENAMETOOLONG;
    if (vsnprintf(run->text, sizeof run->text, format, args) >= (int)sizeof run->text || !run->output ||
        pipe(ends) != 0)
        test_fail(__FILE__, __LINE__, "cannot run %s: %s", run->text, strerror(errno));
    run->output->next = current.outputs;
    current.outputs = run->output;
    fflush(NULL);
    run->pid = fork();
    if (run->pid == 0) {
        dup2(ends[1], 1);
        for (int fd = 3; fd < 256; fd++)
            close(fd);
        execl("/bin/sh", "sh", "-c", run->text, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    if (run->pid < 0)
        test_fail(__FILE__, __LINE__, "cannot run %s: %s", run->text, strerror(errno));
    run->fd = ends[0];
}

/* How long a command may still take: most of what the test has left, so that it can be named. */
static double command_time(void)
{
    double left = (current.deadline - now()) * 0.9;
    return left > 0 ? left : 0;
}

static void command_late(void *arg)
{
    command *run = arg;
    test_fail(__FILE__, __LINE__, "the test's time is nearly up and this still runs: %s\n  so far it printed %s",
              run->text, run->output->text ? run->output->text : "nothing");
}

/* Reads what there is; false at the end. */
static bool command_read(command *run)
{
    test_output *output = run->output;
    output->text = realloc(output->text, output->len + 65536 + 1);
    ssize_t got = output->text ? read(run->fd, output->text + output->len, 65536) : -1;
    if (got < 0)
        test_fail(__FILE__, __LINE__, "cannot read from %s: %s", run->text, strerror(errno));
    output->len += (size_t)got;
    output->text[output->len] = '\0';
    return got > 0;
}

static const test_output *command_end(command *run)
{
    int status = 0;
    close(run->fd);
    while (waitpid(run->pid, &status, 0) < 0)
        if (errno != EINTR)
            test_fail(__FILE__, __LINE__, "cannot wait for %s: %s", run->text, strerror(errno));
    run->output->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return run->output;
}

const test_output *test_run(const char *format, ...)
{
    command run;
    va_list args;
    va_start(args, format);
    command_start(&run, format, args);
    va_end(args);
    do {
        struct pollfd wait = {run.fd, POLLIN, 0};
        if (poll(&wait, 1, (int)(command_time() * 1000)) == 0)
            command_late(&run);
    } while (command_read(&run));
    return command_end(&run);
}

static void command_readable(int fd, unsigned events, void *arg)
{
    command *run = arg;
    (void)events;
    if (!command_read(run)) {
        tornado_ioloop_remove_handler(run->loop, fd);
        tornado_ioloop_stop(run->loop);
    }
}

const test_output *test_run_loop(tornado_ioloop *loop, const char *format, ...)
{
    command run;
    va_list args;
    va_start(args, format);
    command_start(&run, format, args);
    va_end(args);
    run.loop = loop;
    tornado_timeout late = tornado_ioloop_call_later(loop, command_time(), command_late, &run);
    if (!late || !tornado_ioloop_add_handler(loop, run.fd, command_readable, &run, TORNADO_IOLOOP_READ) ||
        !tornado_ioloop_start(loop))
        test_fail(__FILE__, __LINE__, "the loop cannot run beside %s", run.text);
    tornado_ioloop_remove_timeout(loop, late);
    return command_end(&run);
}

/*----------------------------------------------------------------------------
 * The child that a test runs in.
 *----------------------------------------------------------------------------*/

static void child_prepare(int output)
{
    static const int signals[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    static char line[1024];
    const struct rlimit no_core = {0, 0};
    sigset_t none;
    int null = open("/dev/null", O_RDWR);
    setpgid(0, 0);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        signal(signals[i], SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(null, 0);
    dup2(output, 1);
    dup2(output, 2);
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    setvbuf(stdout, line, _IOLBF, sizeof line);
}

static TORNADO_NORETURN void child_run(const test_case *test, const char *poller, shared *told, double limit)
{
    current.shared = told;
    current.pid = getpid();
    current.deadline = now() + limit;
    if (poller && !tornado_ioloop_configure(poller))
        test_skip("there is no %s here", poller);
    test_poller = poller ? poller : "";

    long before = test_live();
    test->body();
    if (getpid() != current.pid)
        _exit(0); /* a process that the test forked and that came back here */
    test_fail_alloc(0);
    if (test_live() > before && !current.may_leak) {
        tornado_ioloop_close(tornado_ioloop_current(), false);
        tornado_ioloop_clear_current();
    }
    long left = test_live() - before;
    if (left > 0 && !current.may_leak) {
        print_sites();
        test_fail(test->file, test->line, "blocks of the header left unfreed: %ld", left);
    }
    fflush(NULL);
    atomic_store(&told->finished, true);
    if (current.may_leak)
        _exit(0);
    exit(0); /* not _exit: leak detectors report from here */
}

/*----------------------------------------------------------------------------
 * The runner.
 *----------------------------------------------------------------------------*/

/* One run of a test: of each test, or of each test and poller. */
typedef struct job {
    const test_case *test;
    const char *poller;
    char name[200];
} job;

#define MAX_SLOTS 64

typedef struct slot {
    const job *job;
    pid_t pid; /* 0: free */
    FILE *output;
    shared *shared;
    double started, limit;
    bool late;
} slot;

static test_case *registered;
static size_t registered_count;

static struct {
    job *jobs;
    size_t count;
    slot slots[MAX_SLOTS];
    int slot_count, busy;
    bool verbose;
    unsigned long passed, failed, skipped;
} runner;

static volatile sig_atomic_t interrupted;

void test_register(test_case *test)
{
    test->next = registered;
    registered = test;
    registered_count++;
}

static void kill_all(void)
{
    for (int i = 0; i < runner.slot_count; i++)
        if (runner.slots[i].pid > 0)
            kill(-runner.slots[i].pid, SIGKILL);
}

static void die(const char *what)
{
    fprintf(stderr, "tests: %s: %s\n", what, strerror(errno));
    kill_all();
    exit(2);
}

static int compare_tests(const void *left, const void *right)
{
    const test_case *a = *(test_case *const *)left, *b = *(test_case *const *)right;
    int files = strcmp(a->file, b->file);
    return files ? files : (a->line > b->line) - (a->line < b->line);
}

/* Filters are texts in the name; those that begin with ! leave out what they are in. */
static bool wanted(const char *name, char **filters, int count)
{
    bool in = false, all = true;
    for (int i = 0; i < count; i++) {
        bool out = filters[i][0] == '!';
        if (out && strstr(name, filters[i] + 1))
            return false;
        in = in || (!out && strstr(name, filters[i]));
        all = all && out;
    }
    return in || all;
}

static void add_job(const test_case *test, const char *poller, char **filters, int filter_count)
{
    job *added = &runner.jobs[runner.count];
    snprintf(added->name, sizeof added->name, "%s%s%s", test->name, poller ? "/" : "", poller ? poller : "");
    added->test = test;
    added->poller = poller;
    runner.count += wanted(added->name, filters, filter_count);
}

static void collect_jobs(char **filters, int filter_count)
{
    static const char *const pollers[] = {
#ifdef __linux__
        "epoll",
#endif
#if defined(TORNADO_KQUEUE) || !defined(__linux__)
        "kqueue",
#endif
        "poll", "select"};
    const size_t most = sizeof pollers / sizeof pollers[0];
    test_case **sorted = calloc(registered_count + 1, sizeof *sorted);
    size_t count = 0;
    runner.jobs = calloc(registered_count * most + 1, sizeof *runner.jobs);
    if (!sorted || !runner.jobs)
        die("calloc");
    for (test_case *test = registered; test; test = test->next)
        sorted[count++] = test;
    qsort(sorted, count, sizeof *sorted, compare_tests);
    for (size_t i = 0; i < count; i++) {
        if (!sorted[i]->each_poller)
            add_job(sorted[i], NULL, filters, filter_count);
        for (size_t k = 0; sorted[i]->each_poller && k < most; k++)
            add_job(sorted[i], pollers[k], filters, filter_count);
    }
    free(sorted);
}

/* Prints what a test has written, indented; of much, the end. */
static void print_output(FILE *output)
{
    const long most = 32768;
    bool line_start = true;
    fseek(output, 0, SEEK_END);
    long len = ftell(output);
    if (len > most)
        printf("    ... %ld bytes before this ...\n", len - most);
    fseek(output, len > most ? len - most : 0, SEEK_SET);
    for (int c; (c = getc(output)) != EOF; line_start = c == '\n') {
        if (line_start)
            fputs("    ", stdout);
        putchar(c);
    }
    if (!line_start)
        putchar('\n');
}

/* Why a test counts as failed, or NULL. */
static const char *verdict(const slot *done, int status)
{
    static char text[200];
    if (done->late)
        snprintf(text, sizeof text, "not done after %g seconds", done->limit);
    else if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (atomic_load(&done->shared->failed))
        snprintf(text, sizeof text, "a check failed");
    else if (atomic_load(&done->shared->skipped))
        return NULL;
    else if (!atomic_load(&done->shared->finished))
        snprintf(text, sizeof text, "exit(%d) before the end of the test", WEXITSTATUS(status));
    else if (WEXITSTATUS(status))
        snprintf(text, sizeof text, "exit status %d after the end of the test", WEXITSTATUS(status));
    else
        return NULL;
    return text;
}

static void report(slot *done, int status)
{
    const char *name = done->job->name, *failure = verdict(done, status);
    double took = now() - done->started;
    if (failure) {
        runner.failed++;
        printf("FAIL %s (%.2f s): %s\n", name, took, failure);
        print_output(done->output);
    } else if (atomic_load(&done->shared->skipped)) {
        runner.skipped++;
        printf("skip %s: %s\n", name, done->shared->reason);
    } else {
        runner.passed++;
        if (runner.verbose)
            printf("ok   %s (%.2f s)\n", name, took);
    }
    fflush(stdout);
}

static void start(const job *next)
{
    slot *use = runner.slots;
    while (use->pid)
        use++;
    memset(use->shared, 0, sizeof *use->shared);
    use->job = next;
    use->late = false;
    use->limit = test_scaled(next->test->limit);
    use->started = now();
    use->output = tmpfile();
    if (!use->output)
        die("tmpfile");
    fflush(NULL);
    use->pid = fork();
    if (use->pid < 0)
        die("fork");
    if (use->pid == 0) {
        child_prepare(fileno(use->output));
        child_run(next->test, next->poller, use->shared, use->limit);
    }
    setpgid(use->pid, use->pid); /* whoever comes first */
    runner.busy++;
}

/* Takes in one child that has ended, with all that it left running; false when there is none. */
static bool reap(void)
{
    siginfo_t info;
    int status = 0;
    info.si_pid = 0;
    if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0)
        return false;
    kill(-info.si_pid, SIGKILL); /* before waitpid, while the number cannot be another group's */
    waitpid(info.si_pid, &status, 0);
    for (int i = 0; i < runner.slot_count; i++)
        if (runner.slots[i].pid == info.si_pid) {
            report(&runner.slots[i], status);
            fclose(runner.slots[i].output);
            runner.slots[i].pid = 0;
            runner.busy--;
        }
    return true;
}

/* Kills what is late, and returns how long to wait for the next that might be. */
static double kill_late(void)
{
    double soonest = 3600, at = now();
    for (int i = 0; i < runner.slot_count; i++) {
        slot *one = &runner.slots[i];
        double left = one->started + one->limit - at;
        if (!one->pid || one->late)
            continue;
        if (left <= 0) {
            one->late = true;
            kill(-one->pid, SIGKILL);
        } else if (left < soonest) {
            soonest = left;
        }
    }
    return soonest;
}

static void on_signal(int number)
{
    if (number != SIGCHLD)
        interrupted = number;
}

/* Signals arrive only while the runner waits in pselect. */
static void catch_signals(sigset_t *waiting)
{
    static const int signals[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;
    sigset_t blocked;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        sigaddset(&blocked, signals[i]);
        sigaction(signals[i], &action, NULL);
    }
    sigprocmask(SIG_BLOCK, &blocked, waiting);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigdelset(waiting, signals[i]);
}

static void run_all(unsigned long repeat)
{
    sigset_t waiting;
    size_t next = 0, total = runner.count * repeat;
    shared *pages = mmap(NULL, sizeof *pages * (size_t)runner.slot_count, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        die("mmap");
    for (int i = 0; i < runner.slot_count; i++)
        runner.slots[i].shared = &pages[i];
    catch_signals(&waiting);
    while ((next < total || runner.busy) && !interrupted) {
        while (next < total && runner.busy < runner.slot_count)
            start(&runner.jobs[next++ % runner.count]);
        if (!reap()) {
            double wait = kill_late();
            struct timespec until = {(time_t)wait, (long)((wait - (double)(time_t)wait) * 1e9)};
            pselect(0, NULL, NULL, NULL, &until, &waiting);
        }
    }
    kill_all();
}

static void usage(void)
{
    puts("usage: tests [-v] [-l] [-j N] [--repeat N] [text ...]\n"
         "Runs the tests whose names contain one of the texts, or all; not those with a text behind a !.\n"
         "  -v  prints a line for each test, not only for what failed or was skipped\n"
         "  -l  lists the names instead\n"
         "  -j  so many at once; default: two for each core, as tests wait much\n"
         "  --repeat  runs each so often\n"
         "TEST_TIME_SCALE in the environment multiplies the time limits.");
}

/* The number behind an option, in the same argument ("-j4") or in the next. */
static unsigned long number(char **argv, int *at, size_t prefix)
{
    const char *text = argv[*at] + prefix;
    char *end;
    if (!*text || *text == '=')
        text = *text ? text + 1 : argv[++*at] ? argv[*at] : "";
    unsigned long value = strtoul(text, &end, 10);
    if (!*text || *end || value == 0 || value > 1000000) {
        fprintf(stderr, "tests: a number is missing or wrong\n");
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned long at_once = cores > 0 ? 2 * (unsigned long)cores : 2, repeat = 1;
    bool list = false;
    int filter_count = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-v"))
            runner.verbose = true;
        else if (!strcmp(argv[i], "-l"))
            list = true;
        else if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
            return usage(), 0;
        else if (!strncmp(argv[i], "-j", 2))
            at_once = number(argv, &i, 2);
        else if (!strncmp(argv[i], "--repeat", 8))
            repeat = number(argv, &i, 8);
        else if (argv[i][0] == '-')
            return usage(), 2;
        else
            argv[filter_count++] = argv[i]; /* argv[0] is not needed any more */
    }
    collect_jobs(argv, filter_count);
    for (size_t i = 0; list && i < runner.count; i++)
        puts(runner.jobs[i].name);
    if (list)
        return 0;

    if (runner.count == 0)
        printf("no test matches\n");
    runner.slot_count = at_once > MAX_SLOTS ? MAX_SLOTS : (int)at_once;
    run_all(repeat);
    if (interrupted)
        printf("interrupted by signal %d\n", (int)interrupted);
    printf("%lu passed, %lu failed", runner.passed, runner.failed);
    if (runner.skipped)
        printf(", %lu skipped", runner.skipped);
    putchar('\n');
    return runner.failed || runner.count == 0 || interrupted;
}
