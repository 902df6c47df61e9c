/* The test harness. Every test runs in a child process of its own, under a time limit; its output is shown only if
   it fails. A check that fails ends the test at once, from whatever thread, coroutine or process it is in. */
#ifndef TEST_HARNESS_H
#define TEST_HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#define TORNADO_TESTING 1
#include "../tornado.h"

/* A test; it may take 10 seconds, or the number given, times TEST_TIME_SCALE of the environment. */
#define TEST(name)                TEST__DEFINE(name, 10, false)
#define TEST_LIMIT(name, seconds) TEST__DEFINE(name, seconds, false)

/* A test that runs once for each poller there is, as name/epoll, name/kqueue, name/poll and name/select. Its loops
   use that poller. */
#define TEST_EACH_POLLER(name) TEST__DEFINE(name, 10, true)

#define CHECK(expr)          ((expr) ? (void)0 : test_fail(__FILE__, __LINE__, "CHECK(%s)", #expr))
#define CHECK_INT(got, want) test_check_int(__FILE__, __LINE__, #got, (long long)(got), (long long)(want))
#define CHECK_STR(got, want) test_check_str(__FILE__, __LINE__, #got, got, want)
#define CHECK_MEM(got, gotlen, want, wantlen)                                                                      \
    test_check_mem(__FILE__, __LINE__, #got, got, gotlen, want, wantlen)

/* Bit for bit the same, or both not a number. */
#define CHECK_DOUBLE(got, want) test_check_double(__FILE__, __LINE__, #got, got, want)

/* Ends the test as failed, or as skipped, with a printf-style reason. */
#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define SKIP(...) test_skip(__VA_ARGS__)

/* Skips the test when a program is not on PATH. */
#define TEST_NEED(program)                                                                                         \
    do {                                                                                                           \
        if (!test_have(program))                                                                                   \
            SKIP("%s is not installed", program);                                                                  \
    } while (0)

/* A test that ends with more live blocks of the header than it began with fails, unless it said this. The thread's
   current loop need not be closed: the harness does that when blocks are left. */
#define TEST_MAY_LEAK() test_may_leak()

/* The poller of a TEST_EACH_POLLER; "" in other tests. */
extern const char *test_poller;

/* The n-th allocation of the header from now on fails, once; 1 is the next, 0 none. */
void test_fail_alloc(long n);

/* The same for `row` of them, one after the other. */
void test_fail_allocs(long n, long row);

/* How often the header has allocated (or tried to) so far, and how many blocks it holds now. */
long test_allocs(void);
long test_live(void);

/* `seconds` times TEST_TIME_SCALE: how long to wait for what should take a part of that. */
double test_scaled(double seconds);

bool test_have(const char *program);

/* Whether QEMU runs the test program, which knows most of Linux, but not all. */
bool test_emulated(void);

/* What a command printed on its standard output, NUL-terminated; its standard error goes to the test's output.
   Lives as long as the test. */
typedef struct test_output {
    int status; /* its exit status, or 128 and the signal that ended it */
    char *text;
    size_t len;
    struct test_output *next;
} test_output;

/* Runs a printf-style shell command to its end, the second while the loop runs. A command that takes nearly as long
   as the test may fails the test. */
const test_output *test_run(const char *format, ...) TORNADO_PRINTF(1, 2);
const test_output *test_run_loop(tornado_ioloop *loop, const char *format, ...) TORNADO_PRINTF(2, 3);

/* What the macros above are made of. */
typedef struct test_case {
    const char *name, *file;
    int line;
    double limit;
    bool each_poller;
    void (*body)(void);
    struct test_case *next;
} test_case;

#define TEST__DEFINE(name, seconds, each_poller)                                                                   \
    static void test_body_##name(void);                                                                            \
    __attribute__((constructor)) static void test_register_##name(void)                                            \
    {                                                                                                              \
        static test_case test = {#name, __FILE__, __LINE__, seconds, each_poller, test_body_##name, NULL};         \
        test_register(&test);                                                                                      \
    }                                                                                                              \
    static void test_body_##name(void)

void test_register(test_case *test);
void test_may_leak(void);
TORNADO_NORETURN void test_fail(const char *file, int line, const char *format, ...) TORNADO_PRINTF(3, 4);
TORNADO_NORETURN void test_skip(const char *format, ...) TORNADO_PRINTF(1, 2);
void test_check_int(const char *file, int line, const char *what, long long got, long long want);
void test_check_str(const char *file, int line, const char *what, const char *got, const char *want);
void test_check_mem(const char *file, int line, const char *what, const void *got, size_t got_len, const void *want,
                    size_t want_len);
void test_check_double(const char *file, int line, const char *what, double got, double want);

#endif
