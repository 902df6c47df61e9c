/* What the tests of errors, loops and coroutines share: a trace of what ran, the log kept in memory, memory that runs
   short at every allocation in turn, and processes that are expected to die. */
#ifndef TEST_RUNTIME_H
#define TEST_RUNTIME_H

#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What has happened so far: one letter or word after the other. */
static char trace[4096];

/* Appends to the trace; fits as a callback. */
static inline void note(void *text)
{
    size_t len = strlen(trace);
    snprintf(trace + len, sizeof trace - len, "%s", (const char *)text);
}

/* The trace so far; begins a new one. */
static inline const char *traced(void)
{
    static char copy[sizeof trace];
    memcpy(copy, trace, sizeof trace);
    trace[0] = '\0';
    return copy;
}

/* The log since log_keep, a line for each record. */
static char log_text[65536];

static inline void log_keep_hook(const tornado_log_record *record, void *arg)
{
    size_t len = strlen(log_text);
    (void)arg;
    snprintf(log_text + len, sizeof log_text - len, "%s\n", record->formatted);
}

/* Has everything that is logged from now on be kept, and not printed. */
static inline void log_keep(void)
{
    tornado_log_options options = {.level = TORNADO_LOG_DEBUG, .hook = log_keep_hook};
    log_text[0] = '\0';
    tornado_enable_pretty_logging(&options);
}

/* How often a text was logged since log_keep. */
static inline int logged(const char *text)
{
    int count = 0;
    for (const char *at = log_text; (at = strstr(at, text)) != NULL; at += strlen(text))
        count++;
    return count;
}

/* Whether an error has this code; one that is NULL has none. */
static inline bool is_error(const tornado_error *error, int code)
{
    return error && error->code == code;
}

/* Runs a scenario again and again while its 1st, 2nd, 3rd... allocation fails, until there is none left to fail. It begins
   without a current loop; after it the loop is closed and no block may be left. */
static inline void each_shortage(void (*scenario)(void))
{
    bool hit = true;
    tornado_ioloop_clear_current();
    log_keep();
    for (long n = 1; hit; n++) {
        long live = test_live(), allocs = test_allocs();
        test_fail_alloc(n);
        scenario();
        hit = test_allocs() - allocs >= n;
        test_fail_alloc(0);
        tornado_ioloop_close(tornado_ioloop_current(), false);
        tornado_ioloop_clear_current();
        if (test_live() != live)
            FAIL("%ld blocks are left after allocation %ld failed", test_live() - live, n);
        log_text[0] = '\0';
    }
}

/* Runs fn as a coroutine of the current loop until it ends. */
static inline void run(tornado_coroutine_fn fn, void *arg)
{
    CHECK(tornado_ioloop_run_sync(tornado_ioloop_current(), fn, arg));
}

static inline void stop_loop(void *arg)
{
    (void)arg;
    tornado_ioloop_stop(tornado_ioloop_current());
}

/* Runs fn in a process of its own and returns the signal that killed it, or 0. What it wrote on standard error is in
   *output, until the next call. */
static inline int dies_of(void (*fn)(void), const char **output)
{
    static char text[65536];
    size_t len = 0;
    int ends[2], status = 0;
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        fn();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], text + len, sizeof text - 1 - len)) > 0;)
        len += (size_t)got;
    text[len] = '\0';
    close(ends[0]);
    CHECK(waitpid(pid, &status, 0) == pid);
    if (output)
        *output = text;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static inline bool under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");
    return preload && strstr(preload, "vgpreload");
}

/* Whether tests run under something that needs much more memory and time. */
static inline bool instrumented(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    return true;
#endif
#endif
    return under_valgrind();
}

#endif
