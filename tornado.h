/* tornado.h - Python's Tornado for C: an event loop, coroutines, streams, an HTTP server and a web framework in one
   file, with nothing to install. MIT licence, at the end.

   QUICK START

   Copy tornado.h beside your program. In ONE of your .c files define TORNADO_IMPLEMENTATION before including it;
   others just include it. This is a whole server:

       #define TORNADO_IMPLEMENTATION
       #include "tornado.h"

       static void get(tornado_handler *self)
       {
           tornado_write(self, "Hello, world");
       }

       static const tornado_handler_class hello = {.get = get};

       int main(void)
       {
           tornado_rule rules[] = {{.path = "/", .handler = &hello}, {0}};
           tornado_application *app = tornado_application_new(rules, NULL);
           if (!app || !tornado_application_listen(app, 8888, NULL))
               return 1;                 // the reason is in the log
           tornado_ioloop_start(tornado_ioloop_current());
           return 0;
       }

       cc -O2 hello.c -o hello && ./hello

   It needs a C11 compiler (gcc or clang) and POSIX; on Linux with glibc or musl no library beyond libc is linked.
   The implementation comes before any libc header in its file, or is built with -std=gnu11 or later.

   A HANDLER THAT WAITS

   A handler runs as a coroutine, on a stack of its own. Where it waits, the loop serves others; the code reads as
   if it blocked. Everything that takes time returns a future at once, and tornado_await waits for one. To wait for
   two things at once, start both, put them together, and wait for that:

       static void twice(tornado_handler *self)
       {
           tornado_future *both[] = {tornado_sleep(0.3), tornado_sleep(0.3)};
           tornado_await(tornado_multi(both, 2));        // 0.3 seconds, not 0.6
           tornado_write(self, "waited for two things at once\n");
       }

   Work of your own becomes a future, too: tornado_spawn runs a function as another coroutine, and what the function
   returns is the future's result; tornado_multi gives the results in order. tornado_handler_spawn does the same for
   a request, which then lives until both have ended - so give such work memory of the request, not local variables,
   which are gone when an error ends the handler first:

       static void *slow_square(void *arg)
       {
           int *number = arg;
           tornado_await(tornado_sleep(0.1));
           *number *= *number;
           return number;
       }

       static void squares(tornado_handler *self)
       {
           int *numbers = tornado_alloc(self, 2 * sizeof *numbers);
           numbers[0] = 3;
           numbers[1] = 4;
           tornado_future *both[] = {tornado_handler_spawn(self, slow_square, &numbers[0]),
                                     tornado_handler_spawn(self, slow_square, &numbers[1])};
           void **results = tornado_await(tornado_multi(both, 2));
           tornado_write_json(self, "{first:i, second:i}", *(int *)results[0], *(int *)results[1]);
       }

   When something fails, the wait does not return: it unwinds (see ERRORS), and the client gets an error page. To
   handle a failure yourself use tornado_wait, which returns the error, or NULL:

       const tornado_error *error = tornado_wait(tornado_with_timeout(1.0, future));
       if (error) {
           tornado_set_status(self, 504);
           tornado_write(self, error->message);
           return;
       }

   ROUTES AND ARGUMENTS

   A rule's path is a pattern, in Python's syntax, for the whole path; its groups are the handler's path arguments:
   tornado_path_arg(self, 0). The first rule that matches wins, and a thousand rules cost a request no more than
   ten. A rule may have data for its handler (self->data), a name for tornado_reverse_url, a pattern for the host,
   or further rules instead of a handler:

       tornado_rule rules[] = {{.path = "/books", .handler = &all},
                               {.path = "/books/([1-9][0-9]*)", .handler = &one, .name = "book"},
                               {0}};

   What a client sent besides: tornado_get_argument and tornado_require_argument for the query and forms,
   tornado_get_cookie, tornado_get_header, self->request->body. Arguments are UTF-8, else the answer is a 400. What
   goes into HTML you escape, with tornado_xhtml_escape.

   JSON

   Formats say the shape, arguments what is in it; the value section has the letters. JSON is read into a value,
   which can be asked (tornado_value_get and so on) or taken apart at once. When it is not as the format says, the
   message tells what is wrong and where, and may go to the client:

       const tornado_value *json = tornado_json_decode(self->arena, self->request->body);
       if (!json || !tornado_value_unpack(json, "{title:z, author:z, year:i!}", &title, &author, &b.year))
           tornado_raise_http_error(400, "%s", tornado_last_error()->message);

   And the other way:

       tornado_write_json(self, "{total:i, offset:i, books:o}", shelf.count, offset, page);

   WORK THAT BLOCKS

   The loop must not block. What does, such as a long computation or a library that waits by itself, runs on a
   thread, and a handler waits for its result as for any other:

       tornado_job_options options = {.copy = sizeof below};
       int *count = tornado_await(tornado_executor_submit_with(NULL, count_primes, &below, &options));

   The job is a function of its own, that touches nothing of the loop or the request. It may raise, and what it
   allocates from tornado_current_arena() lives as long as its result. Threads are started when there is work for
   them.

   SEVERAL PROCESSES

   A loop uses one core. To use all, open the listening sockets, become several processes, and make the rest in each
   of them; one that dies is started again:

       if (tornado_fork_processes(argc > 2 ? atoi(argv[2]) : TORNADO_PER_CORE, 100) < 0)
           return 1;                     // the reason is in the log
       return serve(&sockets) ? 0 : 1;   // in the children; the parent does not come here

   EXAMPLES

   Each is one file, to build on: examples/hello.c, json.c, books.c (a JSON API), form.c (a form that redirects),
   wait_twice.c, long_poll.c, workers.c (threads, subprocesses, a process for each core), echo.c (a TCP server),
   spider.c (queues), own_loop.c (beside another loop).

   MAP

   The sections, in the order of the file, lower ones first: a section uses only what stands above it. The public
   half declares and documents, the private half, behind TORNADO_IMPLEMENTATION, has the code under the same names.
   To find one, search for "section: NAME".

    platform    compiler, operating system, the ways to move between stacks
    error       error values, raising, boundaries, what is run on the way
    memory      arenas, buffers, intrusive lists
    time        clocks, HTTP and ISO dates
    log         three streams, pretty lines, a hook
    codec       hexadecimal, UTF-8, random bytes
    escape      HTML and URL escaping
    value       JSON: read, built, asked, taken apart, written
    regex       patterns in Python's syntax, in linear time
    context     state that follows execution
    ioloop      pollers, callbacks, timers, descriptors, signals, orderly shutdown
    future      results to come
    coroutine   stacks, switching, spawn, await, cancel
    gen         sleep, several futures as one, timeouts, locks, queues
    executor    work that blocks, on threads
    address     socket addresses
    iostream    non-blocking sockets and pipes with buffers
    netutil     listening sockets, datagrams
    process     several processes of one server; subprocesses
    resolver    addresses of names: by the system, by DNS, by a table
    tcp         a server with a coroutine for each connection
    httputil    headers, status codes, arguments, cookies, URLs
    http1       HTTP/1.x connections
    httpserver  an HTTP server over listening sockets
    routing     from paths to handlers
    web         application and request handler

   CONFIGURATION

   Define these before including the implementation; all are optional.

    TORNADO_IMPLEMENTATION   compile the code here; in one file of the program
    TORNADO_STATIC           make every function static, so that the header is private to its file
    TORNADO_MALLOC, TORNADO_REALLOC, TORNADO_FREE   the allocator, all three or none; default: libc's
    TORNADO_ASSERT(x)        checks of the library's own invariants; default: none
    TORNADO_POLLER           the poller of new loops, "epoll", "kqueue", "poll" or "select"; default: the best there is
    TORNADO_KQUEUE           kqueue where it is a library's (libkqueue); on macOS and the BSDs it is there by itself
    TORNADO_STACK_SIZE       bytes of address space for a coroutine's stack; default 256 KiB (128 KiB on 32 bits)
    TORNADO_MAX_COROUTINES   of one loop at once; default 100000
    TORNADO_MAX_HEADERS      header lines of a request; default 256
    TORNADO_NO_COROUTINES    no stacks to switch (see COROUTINES); in each file that includes the header
    TORNADO_NO_THREADS       no pthreads: what would run on threads blocks the loop (glibc before 2.34 needs -pthread)
    TORNADO_UCONTEXT         switch stacks by ucontext instead of assembly (used by itself where there is none)

   THE LOOP

   There is one loop for each thread that wants one; tornado_ioloop_current() makes it. It runs callbacks, timers
   and what file descriptors report, one after the other: your code is never interrupted and never runs twice at
   once, so it needs no locks, but it must not block. Nothing calls you back from inside the function that you
   called. Everything but tornado_ioloop_add_callback and tornado_ioloop_add_callback_from_signal (and the log) is
   for the loop's own thread.

   MEMORY

   A request's handler allocates from the request's arena, self->arena, and frees nothing. What an accessor returns
   lives as long as what it was asked of. What a wait returns belongs to the innermost scope: the coroutine (or
   request), a tornado_try, or a scope that a long loop opens with tornado_scope_enter and closes with
   tornado_scope_leave; the bytes that a stream read gives live until the next read on that stream. Structs of
   options, rules, classes and settings are copied. Zero, or NULL, means the default everywhere.

   ERRORS

   A function that fails returns NULL or false and leaves the reason in tornado_last_error(). Three kinds of
   functions unwind instead: tornado_await..., tornado_raise..., and the handler's own (tornado_write and so on), as
   their comments say. Unwinding goes to the nearest boundary - a tornado_try, else the request, else the coroutine
   - and runs on its way, last first, what tornado_defer registered. It only skips C frames of yours. It must not
   cross those of others that called you: inside a callback of qsort, of sqlite or of C++ code, use tornado_wait and
   return.

       FILE *file = fopen(path, "r");
       if (!file)
           tornado_raise_http_error(404, "no file %s", path);
       tornado_defer(close_file, file);              // however this function ends

   At the request's boundary an error becomes an answer: the status of tornado_raise_http_error, or 500, with a page
   by the class's write_error. A coroutine of tornado_spawn passes it on to whoever waits for its future; if nobody
   does, it is logged.

   COROUTINES

   Coroutines cost about 4 KiB each while they wait, and a few nanoseconds to switch. Their stacks are small: keep
   large arrays in the arena. An overflow hits a guard and ends the process. tornado_cancel makes a coroutine's
   waits fail, so that it unwinds; nothing is ever killed halfway. A client that disconnects does not cancel its
   handler: look at tornado_connected, or define on_connection_close.

   With TORNADO_NO_COROUTINES handlers run on the loop's stack, to their end, and use callbacks: tornado_await and
   tornado_wait do not exist, and raising unwinds as ever.
*/

/* The implementation wants the system's whole interface; this must come before the first libc header. */
#if defined(TORNADO_IMPLEMENTATION) && !defined(_FEATURES_H) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif
#if defined(TORNADO_IMPLEMENTATION) && defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE 1
#endif
#if defined(TORNADO_IMPLEMENTATION) && defined(__NetBSD__) && !defined(_NETBSD_SOURCE)
#define _NETBSD_SOURCE 1
#endif

#ifndef TORNADO_H
#define TORNADO_H

/*============================================================================
 * section: platform (public)
 * What the compiler and the operating system must give; nothing here waits.
 *============================================================================*/

#define TORNADO_VERSION_MAJOR 0
#define TORNADO_VERSION_MINOR 1
#define TORNADO_VERSION_PATCH 0
#define TORNADO_VERSION       "0.1.0"

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define TORNADO_PRINTF(text, first) __attribute__((format(printf, text, first)))
#define TORNADO_NORETURN              __attribute__((noreturn))
#define TORNADO_MUST_USE              __attribute__((warn_unused_result))
#define TORNADO__UNUSED               __attribute__((unused))
#else
#define TORNADO_PRINTF(text, first)
#define TORNADO_NORETURN
#define TORNADO_MUST_USE
#define TORNADO__UNUSED
#endif

#ifdef TORNADO_STATIC
#ifndef TORNADO_IMPLEMENTATION
#error "TORNADO_STATIC makes every function static: define TORNADO_IMPLEMENTATION in the same file"
#endif
#define TORNADO_API   static TORNADO__UNUSED
#define TORNADO__DATA static TORNADO__UNUSED
#else
#define TORNADO_API extern
#define TORNADO__DATA /* defines what TORNADO_API declares */
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Each translation unit refers to one symbol whose name is made of the version and of the
   configuration that changes what is declared, so that units which disagree do not link. */
#ifndef TORNADO_STATIC
#ifdef TORNADO_NO_COROUTINES
#define tornado__abi tornado_abi_0_1_0_no_coroutines
#else
#define tornado__abi tornado_abi_0_1_0
#endif
extern const char tornado__abi;
static const char *const tornado__abi_wanted __attribute__((used)) = &tornado__abi;
#endif

/* Bytes that somebody else owns: a pointer and a length. The comment of whatever returns one says how
   long it lives. There is a NUL behind the last byte only where the comment says so. */
typedef struct tornado_bytes {
    const char *data;
    size_t len;
} tornado_bytes;

/* "No timeout", "no limit", where zero already means the default. */
#define TORNADO_NONE (-1)

/* A switch in an options struct whose default is on, or depends on something else. */
typedef enum tornado_switch { TORNADO_DEFAULT = 0, TORNADO_ON = 1, TORNADO_OFF = 2 } tornado_switch;

/* What loops call back. */
typedef void (*tornado_callback)(void *arg);

/*============================================================================
 * section: error (public)
 * Error values, raising them, the boundaries that stop them, and what is run on the way.
 *============================================================================*/

/* Every code, its name and what it means when no message says more. */
#define TORNADO_ERRORS(X)                                                                                    \
    X(NOMEM, 1, "out of memory")                                                                             \
    X(SYSTEM, 2, "a system call failed; sys_errno tells why")                                                \
    X(INVALID, 3, "an argument is not valid")                                                                \
    X(STATE, 4, "not allowed in this state")                                                                 \
    X(CANCELLED, 5, "the coroutine was cancelled")                                                           \
    X(TIMEOUT, 6, "the time is up")                                                                          \
    X(CLOSED, 7, "the stream is closed")                                                                     \
    X(BUFFER_FULL, 8, "the buffer is full")                                                                  \
    X(UNSATISFIABLE, 9, "the read cannot be satisfied within its limit")                                     \
    X(LIMIT, 10, "a limit was reached")                                                                      \
    X(PARSE, 11, "the input is malformed")                                                                   \
    X(HTTP, 12, "the request failed; http_status tells how")                                                 \
    X(UNSUPPORTED, 13, "not supported here")                                                                 \
    X(FINISH, 14, "the request was finished early")                                                          \
    X(QUEUE_EMPTY, 15, "the queue is empty")                                                                 \
    X(QUEUE_FULL, 16, "the queue is full")                                                                   \
    X(CALLED_PROCESS, 17, "a process did not exit with 0")                                                   \
    X(RESOLVE, 18, "a name cannot be resolved")

typedef enum tornado_error_code {
    TORNADO_OK = 0,
#define TORNADO__ERROR_ENUM(name, value, text) TORNADO_ERR_##name = (value),
    TORNADO_ERRORS(TORNADO__ERROR_ENUM)
#undef TORNADO__ERROR_ENUM
    TORNADO_ERR_COUNT
} tornado_error_code;

/* Why something failed. A value: it may be copied, and owns nothing. */
typedef struct tornado_error {
    int code;           /* TORNADO_ERR_... */
    int sys_errno;      /* the errno behind it, or 0 */
    int http_status;    /* the status that a request which fails with it is answered with, or 0 for 500 */
    char message[244];  /* one line, NUL-terminated, cut when longer */
} tornado_error;

/* The name of a code, "TORNADO_ERR_CLOSED"; static. */
TORNADO_API const char *tornado_error_name(int code);

/* Why the last call of this thread that reported a failure did so. Never NULL; before any failure its code is
   TORNADO_OK. It changes with the next failure: copy it to keep it. */
TORNADO_API const tornado_error *tornado_last_error(void);

/* Raising unwinds to the nearest boundary: a tornado_try, the entry of the coroutine or of the request that runs,
   or the loop, which logs it. On the way it runs what tornado_defer registered. It skips the C frames in
   between, so these must be your own: never raise, nor call anything that does, from inside a callback of
   qsort, of sqlite, of OpenSSL or of C++ code. Allocates nothing. Outside any boundary it logs and aborts. */
TORNADO_API TORNADO_NORETURN void tornado_raise(int code, const char *format, ...) TORNADO_PRINTF(2, 3);

/* Raises a copy of `error`, for instance tornado_last_error(). */
TORNADO_API TORNADO_NORETURN void tornado_raise_error(const tornado_error *error);

/* Raises an error that answers the request with `status`. The message goes to the log only, as a warning. */
TORNADO_API TORNADO_NORETURN void tornado_raise_http_error(int status, const char *format, ...)
    TORNADO_PRINTF(2, 3);

/* The same without a message: nothing but the access log tells of it. */
TORNADO_API TORNADO_NORETURN void tornado_raise_http_status(int status);

/* Calls fn(arg) inside a boundary and a scope of its own. Returns NULL when fn returned, else the error that was
   raised in it, which is valid until the next tornado_try of this coroutine. */
TORNADO_API const tornado_error *tornado_try(tornado_callback fn, void *arg);

/* Has fn(arg) run when the innermost scope ends, whichever way: last registered, first run. fn may not wait. When
   memory is short fn(arg) runs at once and TORNADO_ERR_NOMEM is raised, so that nothing leaks. Returns a
   handle for tornado_run_deferred. */
TORNADO_API uint64_t tornado_defer(tornado_callback fn, void *arg);

/* Runs what a handle names now, instead of at the end of the scope. False when it has run already. */
TORNADO_API bool tornado_run_deferred(uint64_t handle);

/* A scope owns what waits return and what is deferred while it is the innermost. A coroutine, a tornado_try and a
   request are scopes; a loop that runs for long opens one for each turn:

       tornado_scope scope;
       for (;;) {
           tornado_scope_enter(&scope);
           ... tornado_await(...) ...
           tornado_scope_leave(&scope);
       }

   Enter and leave pair up within one function; unwinding leaves the scope by itself. The fields are private. */
typedef struct tornado_scope {
    struct tornado_scope *prev;
    struct tornado__held *held;
    struct tornado__deferred *deferred;
    void *boundary;
} tornado_scope;

/* Makes `scope`, usually a local variable, the innermost; ends it, letting go of what it holds. Leaving one that is
   not the innermost raises TORNADO_ERR_STATE. */
TORNADO_API void tornado_scope_enter(tornado_scope *scope);
TORNADO_API void tornado_scope_leave(tornado_scope *scope);

/*============================================================================
 * section: memory (public)
 * Arenas, from which much is allocated and all is freed at once; growing buffers; bytes.
 *============================================================================*/

/* An arena hands out memory that is freed all together. Every coroutine has one and a request's
   handler runs in the request's (self->arena), so handlers free nothing. Not shared between threads. */
typedef struct tornado_arena tornado_arena;

/* A new arena that the caller frees. NULL when memory is short. */
TORNADO_API tornado_arena *tornado_arena_new(void);

/* Frees the arena and all that was allocated from it. NULL is allowed. */
TORNADO_API void tornado_arena_free(tornado_arena *arena);

/* `size` bytes, aligned for any object, not cleared. They live as long as the arena. NULL when memory is
   short (TORNADO_ERR_NOMEM). A size of zero gives a unique pointer. */
TORNADO_API void *tornado_arena_alloc(tornado_arena *arena, size_t size);

/* `count` objects of `size` bytes, all bits zero. NULL when memory is short or the product overflows. */
TORNADO_API void *tornado_arena_calloc(tornado_arena *arena, size_t count, size_t size);

/* A copy of `len` bytes with a NUL behind it. NULL when memory is short. */
TORNADO_API char *tornado_arena_memdup(tornado_arena *arena, const void *data, size_t len);

/* A copy of a string. NULL when memory is short. */
TORNADO_API char *tornado_arena_strdup(tornado_arena *arena, const char *string);

/* A formatted string, as printf would print it. NULL when memory is short or the format is invalid. */
TORNADO_API char *tornado_arena_printf(tornado_arena *arena, const char *format, ...) TORNADO_PRINTF(2, 3);
TORNADO_API char *tornado_arena_vprintf(tornado_arena *arena, const char *format, va_list args)
    TORNADO_PRINTF(2, 0);

/* A growing buffer. All zero is an empty one. When memory runs short `failed` is set, the content stays as it
   was and every later append does nothing: append freely, then check once. Where data is not NULL there is a NUL
   behind its last byte. */
typedef struct tornado_buffer {
    char *data;
    size_t len, cap;
    bool failed;
} tornado_buffer;

/* Appends; false (TORNADO_ERR_NOMEM) when memory is short now or was before. */
TORNADO_API bool tornado_buffer_append(tornado_buffer *buffer, const void *data, size_t len);
TORNADO_API bool tornado_buffer_puts(tornado_buffer *buffer, const char *string);
TORNADO_API bool tornado_buffer_printf(tornado_buffer *buffer, const char *format, ...) TORNADO_PRINTF(2, 3);
TORNADO_API bool tornado_buffer_vprintf(tornado_buffer *buffer, const char *format, va_list args)
    TORNADO_PRINTF(2, 0);

/* Makes room for `len` more bytes (and a NUL) and returns where they go, for the caller to write and then to
   add to buffer->len; NULL when memory is short. Valid until the next call on this buffer. */
TORNADO_API char *tornado_buffer_reserve(tornado_buffer *buffer, size_t len);

/* Frees the memory; the buffer is empty and usable again, and no longer failed. */
TORNADO_API void tornado_buffer_free(tornado_buffer *buffer);

/* A string as bytes: borrowed, without the NUL in the length. NULL gives no bytes. */
TORNADO_API tornado_bytes tornado_bytes_of(const char *string);

/* Whether two runs of bytes are the same; the time depends on their lengths and content. */
TORNADO_API bool tornado_bytes_equal(tornado_bytes a, tornado_bytes b);

/*============================================================================
 * section: time (public)
 * Clocks, and dates as HTTP and ISO 8601 write them. Nothing here depends on the locale or the time zone.
 *============================================================================*/

/* Seconds since 1970-01-01 UTC, with a fraction. */
TORNADO_API double tornado_time(void);

/* Seconds since some moment in the past, on a clock that is never set back. */
TORNADO_API double tornado_monotonic(void);

/* Writes a date as HTTP does, "Sun, 06 Nov 1994 08:49:37 GMT", RFC 9110 section 5.6.7: 29 bytes and a NUL. `when`
   is in seconds since 1970; years outside 0 to 9999 are clipped to that range. Returns `out`. */
TORNADO_API char *tornado_format_timestamp(int64_t when, char out[30]);

/* Reads a date in any of the three forms of RFC 9110 section 5.6.7 (IMF-fixdate, RFC 850, asctime). False, with
   TORNADO_ERR_PARSE, for anything else; *when is then unchanged. The day of the week need not be the right one. A
   two-digit year that would be more than 50 years ahead means the past century. */
TORNADO_API bool tornado_parse_timestamp(const char *text, int64_t *when);

/* Writes "1994-11-06T08:49:37Z", ISO 8601 (RFC 3339): 20 bytes and a NUL. The same range. Returns `out`. */
TORNADO_API char *tornado_format_iso8601(int64_t when, char out[21]);

/* Reads a date and time of RFC 3339 section 5.6: "T" or a space between, a fraction of a second (dropped), "Z" or
   an offset. A second of 60 only where UTC has leap seconds, at 23:59:60. False, with TORNADO_ERR_PARSE, for
   anything else; *when is then unchanged. */
TORNADO_API bool tornado_parse_iso8601(const char *text, int64_t *when);

/*============================================================================
 * section: log (public)
 * The three streams of Tornado, one line a record. May be used from any thread.
 *============================================================================*/

/* access: a line per request. application: errors of the program's own code. general: the rest. */
typedef enum tornado_log_stream {
    TORNADO_LOG_ACCESS,
    TORNADO_LOG_APP,
    TORNADO_LOG_GENERAL,
    TORNADO_LOG_STREAMS
} tornado_log_stream;

/* Python's numbers. NOTSET in an options struct means the default; OFF is above all others. */
typedef enum tornado_log_level {
    TORNADO_LOG_NOTSET = 0,
    TORNADO_LOG_DEBUG = 10,
    TORNADO_LOG_INFO = 20,
    TORNADO_LOG_WARNING = 30,
    TORNADO_LOG_ERROR = 40,
    TORNADO_LOG_CRITICAL = 50,
    TORNADO_LOG_OFF = 100
} tornado_log_level;

/* Log a message, printf style, to one stream. The arguments are not evaluated below the stream's level. */
#define tornado_access_log(level, ...) TORNADO__LOG(TORNADO_LOG_ACCESS, level, __VA_ARGS__)
#define tornado_app_log(level, ...)    TORNADO__LOG(TORNADO_LOG_APP, level, __VA_ARGS__)
#define tornado_gen_log(level, ...)    TORNADO__LOG(TORNADO_LOG_GENERAL, level, __VA_ARGS__)
#define TORNADO__LOG(stream, level, ...)                                                                     \
    (tornado_log_enabled(stream, level) ? tornado_log_write(stream, level, __FILE__, __LINE__, __VA_ARGS__)  \
                                        : (void)0)

/* What a hook is given. The strings live until it returns. */
typedef struct tornado_log_record {
    tornado_log_stream stream;
    tornado_log_level level;
    double time;            /* seconds since 1970 */
    const char *file;
    int line;
    const char *message;    /* without a newline at its end */
    const char *formatted;  /* the whole line as it would be printed, without colour and newline */
} tornado_log_record;

/* Each stream's level and where lines go. */
typedef struct tornado_log_options {
    tornado_log_level level;                       /* for streams without one of their own; default INFO */
    tornado_log_level levels[TORNADO_LOG_STREAMS]; /* NOTSET: `level` */
    int fd;                                        /* where lines go; default 2, standard error */
    tornado_switch color;                          /* default: when fd is a terminal and TERM is not "dumb" */
    /* Called with every record above its level, instead of printing, from the thread that logs. May be NULL. */
    void (*hook)(const tornado_log_record *record, void *arg);
    /* Asked for words to put before each message, such as the id of the request that runs (see section context),
       from the thread that logs. NULL, from it or for it: none. */
    const char *(*tag)(void *arg);
    void *arg;
} tornado_log_options;

/* Turns on what an application usually wants: level INFO, pretty lines on standard error, in colour on a terminal:

       [I 261121 06:54:38 hello:12] 200 GET / (127.0.0.1) 0.21ms

   Without it warnings and errors are printed in the same form. NULL takes all defaults. May be called again, but
   not while other threads log. A program whose lines go into a pipe should ignore SIGPIPE, or the pipe's reader can
   end it. */
TORNADO_API void tornado_enable_pretty_logging(const tornado_log_options *options);

/* Whether a record of this level would be printed. Two loads and a compare. */
TORNADO_API bool tornado_log_enabled(tornado_log_stream stream, tornado_log_level level);

/* What the macros above call. `file` is cut to its name without directory and suffix. One write per record; control
   characters are escaped, further lines of a message indented. Keeps errno. */
TORNADO_API void tornado_log_write(tornado_log_stream stream, tornado_log_level level, const char *file, int line,
                                   const char *format, ...) TORNADO_PRINTF(5, 6);

/*============================================================================
 * section: codec (public)
 * Bytes as text: hexadecimal, UTF-8; and bytes at random.
 *============================================================================*/

/* Writes 2 * len lower-case digits and a NUL. Returns `out`. */
TORNADO_API char *tornado_hex_encode(const void *data, size_t len, char *out);

/* Reads pairs of digits, either case, into `out` (len / 2 bytes). False, with TORNADO_ERR_PARSE, for an odd length
   or anything but a digit; `out` is then undefined. RFC 4648 section 8. */
TORNADO_API bool tornado_hex_decode(const char *text, size_t len, void *out);

/* Whether bytes are UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF. */
TORNADO_API bool tornado_utf8_valid(const char *data, size_t len);

/* Reads one character and returns its length in bytes; 0 where there is none that is valid, and *code_point is then
   unchanged. */
TORNADO_API size_t tornado_utf8_decode(const char *data, size_t len, uint32_t *code_point);

/* Writes one character, 1 to 4 bytes, without a NUL, and returns its length; 0 for a surrogate or beyond U+10FFFF.
   */
TORNADO_API size_t tornado_utf8_encode(uint32_t code_point, char out[4]);

/* Fills `out` with random bytes of cryptographic quality, from the system. False (TORNADO_ERR_SYSTEM) when it gives
   none. */
TORNADO_API bool tornado_random_bytes(void *out, size_t len);

/*============================================================================
 * section: escape (public)
 * Text inside HTML and inside URLs. Results live in the arena given; NULL means that memory is short.
 *============================================================================*/

/* Makes text safe in HTML and XML: & < > " ' become &amp; &lt; &gt; &quot; &#39;. */
TORNADO_API char *tornado_xhtml_escape(tornado_arena *arena, const char *text);

/* The reverse: also decimal and hexadecimal references and those named in HTML 4, each with its semicolon; what is
   not understood stays as it is. */
TORNADO_API char *tornado_xhtml_unescape(tornado_arena *arena, const char *text);

/* Percent-encodes all but letters, digits and "_.-~" (RFC 3986 section 2.3). A space is "+" when `plus`, else
   "%20", in which case "/" is kept too, as for a path. */
TORNADO_API char *tornado_url_escape(tornado_arena *arena, const char *text, bool plus);

/* Decodes %XX, and "+" as a space when `plus`. A "%" without two digits stays. The result may hold NUL bytes and
   need not be UTF-8; there is a NUL behind it. result.data is NULL when memory is short. */
TORNADO_API tornado_bytes tornado_url_unescape(tornado_arena *arena, tornado_bytes text, bool plus);

/*============================================================================
 * section: value (public)
 * Dynamic values and JSON: read from text or built, asked, compared, taken apart, written.
 *
 * A value is null, a bool, a number, a string, a list or a dict, and lives in an arena. One that was read never
 * changes, so any thread may look at it; its strings lie in the arena too and live as long.
 *
 * Formats say the shape of a value, arguments give what is in it: tornado_json_pack writes JSON text by a format,
 * tornado_value_pack makes a value, tornado_value_unpack takes one apart. White space is ignored.
 *
 *   {key:value, ...}  a dict                         keys: a name as it stands (letters, digits, _ and -), or s
 *   [value, ...]      a list                         for one that is a const char * argument
 *
 *   letter                   packing                          unpacking, into
 *   s   a string             const char *, NULL gives null    const char **; must hold no NUL
 *   z   a string             tornado_bytes, the same          tornado_bytes *
 *   b   a bool               int                              bool *
 *   i   an integer           int                              int *
 *   I   an integer           int64_t                          int64_t *
 *   U   an integer           uint64_t                         uint64_t *
 *   f   a number             double                           double *
 *   o   any value            const tornado_value *, NULL too  const tornado_value **
 *   n   null                 no argument                      no argument; must be null
 *   j   JSON text            const char *, as it stands       -
 *   key?:value               -                                may be missing or null: then its arguments stay
 *   value! before } or ]     -                                and nothing else may be in the dict or list
 *
 *       tornado_json_pack(&out, "{name:s, age:i, tags:[s, s]}", "Ben", 30, "a", "b")
 *       tornado_value_unpack(value, "{name:s, age?:i, tags:[s]}", &name, &age, &tag)
 *============================================================================*/

typedef struct tornado_value tornado_value;

typedef enum tornado_value_type {
    TORNADO_VALUE_NULL,
    TORNADO_VALUE_BOOL,
    TORNADO_VALUE_INTEGER,  /* fits an int64_t */
    TORNADO_VALUE_UNSIGNED, /* an integer beyond that, which fits a uint64_t */
    TORNADO_VALUE_DOUBLE,
    TORNADO_VALUE_STRING,
    TORNADO_VALUE_LIST,
    TORNADO_VALUE_DICT
} tornado_value_type;

/* Reads JSON text, strictly as RFC 8259 has it: UTF-8 without a byte order mark, one value, nothing behind it.
   Integers that fit 64 bits stay integers, other numbers become the nearest double. Of equal keys in a dict all are
   kept, and the last is what tornado_value_get finds. NULL when it failed: TORNADO_ERR_PARSE, and the message says
   what and where, "a value is wanted, at line 2 column 7 (byte 19)" (columns count characters from 1, bytes from
   0); TORNADO_ERR_LIMIT for text of 4 GiB or lists and dicts more than 512 deep; TORNADO_ERR_NOMEM. Takes at most
   twelve bytes of memory for each byte of text, and 16 KiB, also when it fails; the text is copied. */
TORNADO_API const tornado_value *tornado_json_decode(tornado_arena *arena, tornado_bytes text);

/* What follows asks values. A NULL is as good as a null, and what does not fit the question gives NULL, 0 or the
   fallback, so questions can be chained: tornado_value_string(tornado_value_get(tornado_value_get(v, "user"),
   "name")). What they return lives as long as the value and, where that is a list or dict being built, until it is
   changed. */
TORNADO_API tornado_value_type tornado_value_kind(const tornado_value *value);

/* Whether it is of that kind; an integer is of either, a number of any of three kinds. */
TORNADO_API bool tornado_value_is_null(const tornado_value *value);
TORNADO_API bool tornado_value_is_bool(const tornado_value *value);
TORNADO_API bool tornado_value_is_integer(const tornado_value *value);
TORNADO_API bool tornado_value_is_number(const tornado_value *value);
TORNADO_API bool tornado_value_is_string(const tornado_value *value);
TORNADO_API bool tornado_value_is_list(const tornado_value *value);
TORNADO_API bool tornado_value_is_dict(const tornado_value *value);

/* The bool; an integer that fits; any number, to the nearest double. The fallback for everything else. */
TORNADO_API bool tornado_value_bool(const tornado_value *value, bool fallback);
TORNADO_API int64_t tornado_value_integer(const tornado_value *value, int64_t fallback);
TORNADO_API uint64_t tornado_value_unsigned(const tornado_value *value, uint64_t fallback);
TORNADO_API double tornado_value_double(const tornado_value *value, double fallback);

/* A string, with a NUL behind it; it may also hold some, which the second tells. NULL, and no bytes, for what is
   none. */
TORNADO_API const char *tornado_value_string(const tornado_value *value);
TORNADO_API tornado_bytes tornado_value_bytes(const tornado_value *value);

/* How many values a list has, keys a dict, bytes a string. */
TORNADO_API size_t tornado_value_len(const tornado_value *value);

/* The value at an index of a list, or behind the key at an index of a dict, in the order of the text. At once, so
   that a loop over all is linear. */
TORNADO_API const tornado_value *tornado_value_at(const tornado_value *value, size_t index);

/* The key at an index of a dict; as a string (with a NUL behind it) and as bytes. */
TORNADO_API const char *tornado_value_key(const tornado_value *dict, size_t index);
TORNADO_API tornado_bytes tornado_value_key_bytes(const tornado_value *dict, size_t index);

/* The value behind a key of a dict, in constant time whatever its size. NULL when there is none. */
TORNADO_API const tornado_value *tornado_value_get(const tornado_value *dict, const char *key);
TORNADO_API const tornado_value *tornado_value_get_bytes(const tornado_value *dict, tornado_bytes key);

/* Whether two values are the same: numbers by what they are worth (1 is 1.0), dicts in any order, as Python
   compares them, except that no bool is a number. Those more than 512 deep are not the same as anything. */
TORNADO_API bool tornado_value_equal(const tornado_value *a, const tornado_value *b);

/* What follows builds values, in an arena. It never returns NULL: when memory is short the value is one that looks
   like a null, that whatever it is put into knows as a failure, and that tornado_json_encode refuses with
   TORNADO_ERR_NOMEM. So build freely, then check once. */
TORNADO_API tornado_value *tornado_value_new_null(tornado_arena *arena);
TORNADO_API tornado_value *tornado_value_new_bool(tornado_arena *arena, bool value);
TORNADO_API tornado_value *tornado_value_new_integer(tornado_arena *arena, int64_t value);
TORNADO_API tornado_value *tornado_value_new_unsigned(tornado_arena *arena, uint64_t value);
TORNADO_API tornado_value *tornado_value_new_double(tornado_arena *arena, double value);

/* Strings are copied. NULL gives a null. */
TORNADO_API tornado_value *tornado_value_new_string(tornado_arena *arena, const char *value);
TORNADO_API tornado_value *tornado_value_new_bytes(tornado_arena *arena, tornado_bytes value);

/* Empty ones, for the functions below to fill. */
TORNADO_API tornado_value *tornado_value_new_list(tornado_arena *arena);
TORNADO_API tornado_value *tornado_value_new_dict(tornado_arena *arena);

/* Adds a value to a list, or sets what is behind a key of a dict (the key is copied), which keeps its place if it
   was there. NULL adds a null. The value is shared, not copied: what is added to it later is seen here as well, it
   must live as long, and must not hold the list itself. False with TORNADO_ERR_INVALID, and nothing done, for what
   tornado_json_decode or tornado_value_pack made or is no list or dict; with TORNADO_ERR_NOMEM when memory is short
   or the value is one that could not be made: the list or dict has then failed. */
TORNADO_API bool tornado_value_append(tornado_value *list, const tornado_value *value);
TORNADO_API bool tornado_value_set(tornado_value *dict, const char *key, const tornado_value *value);
TORNADO_API bool tornado_value_set_bytes(tornado_value *dict, tornado_bytes key, const tornado_value *value);

/* Whether memory was too short for this value, or when something was put into it. Says nothing of the values in it,
   but of those that had failed before they were put there. */
TORNADO_API bool tornado_value_failed(const tornado_value *value);

/* How JSON is written. All zero is the default. */
typedef struct tornado_json_options {
    bool utf8;    /* characters beyond ASCII as they are, not as \uXXXX */
    bool compact; /* "," and ":" instead of ", " and ": " */
    int indent;   /* if not 0: each value in a line of its own, indented by so many spaces for each level */
} tornado_json_options;

/* Appends a value's JSON text to a buffer, as Python's json.dumps prints it (", " and ": ", non-ASCII as \uXXXX)
   with "</" as "<\/", so that it may stand in HTML. NULL is null. A double is printed with as few digits as give it
   back, and what is no UTF-8 in a string becomes U+FFFD. False, with the buffer as it was before:
   TORNADO_ERR_INVALID for a double that is not finite, TORNADO_ERR_LIMIT for lists and dicts more than 512 deep,
   TORNADO_ERR_NOMEM when memory is short, or was when the value was built. tornado_json_format(arena, "o", value)
   does it in an arena. */
TORNADO_API bool tornado_json_encode(tornado_buffer *out, const tornado_value *value);

/* The same with a choice; `options` may be NULL. */
TORNADO_API bool tornado_json_encode_with(tornado_buffer *out, const tornado_value *value,
                                          const tornado_json_options *options);

/* Appends JSON text to a buffer by a format, in the way of tornado_json_encode, up to 64 deep. False with
   TORNADO_ERR_INVALID for a malformed format or a double that is not finite, TORNADO_ERR_NOMEM when memory is
   short; the buffer is then as it was before. */
TORNADO_API bool tornado_json_pack(tornado_buffer *out, const char *format, ...);
TORNADO_API bool tornado_json_vpack(tornado_buffer *out, const char *format, va_list args);

/* The same in an arena, NUL-terminated; NULL when it failed. */
TORNADO_API char *tornado_json_format(tornado_arena *arena, const char *format, ...);

/* The value that tornado_json_decode reads from what tornado_json_pack writes: so what `o` stands for is copied,
   and what `j` stands for must be JSON. NULL when it failed, as those two do. */
TORNADO_API const tornado_value *tornado_value_pack(tornado_arena *arena, const char *format, ...);
TORNADO_API const tornado_value *tornado_value_vpack(tornado_arena *arena, const char *format, va_list args);

/* Takes a value apart by a format. Strings are not copied: they live as long as the value. Without "!" a dict may
   have other keys and a list more values. False with TORNADO_ERR_INVALID when the value is not as the format says;
   the message begins with the place: "user.tags[2]: a string is wanted, not null". The arguments before that place
   are then set, others not. Also for a malformed format, of which the message begins with "tornado_value_unpack:".
   */
TORNADO_API bool tornado_value_unpack(const tornado_value *value, const char *format, ...);
TORNADO_API bool tornado_value_vunpack(const tornado_value *value, const char *format, va_list args);

/*============================================================================
 * section: regex (public)
 * Patterns in Python's syntax, matched in time linear in the text whatever the pattern.
 *
 * All of Python's re but what cannot be linear: backreferences, look-around, conditions, atomic groups and
 * possessive quantifiers are refused, and so are characters by name (\N). The text is UTF-8, or bytes. \d, \w, \s,
 * \b and IGNORECASE know ASCII only, as with re.ASCII; a byte that is not UTF-8 is matched by nothing unless the
 * text is bytes.
 *============================================================================*/

enum {
    TORNADO_REGEX_IGNORECASE = 1, /* (?i) */
    TORNADO_REGEX_MULTILINE = 2,  /* (?m): ^ and $ match at every line's start and end */
    TORNADO_REGEX_DOTALL = 4,     /* (?s): . matches a newline, too */
    TORNADO_REGEX_VERBOSE = 8,    /* (?x): white space and comments in the pattern do not count */
    TORNADO_REGEX_BYTES = 16      /* pattern and text are bytes */
};

/* A compiled pattern: never changes, so any number of threads may use it. */
typedef struct tornado_regex tornado_regex;

/* Where a group matched: offsets of bytes into the text. Both are -1 when it took no part. */
typedef struct tornado_span {
    ptrdiff_t start, end;
} tornado_span;

/* Compiles a pattern; nothing of it is kept. NULL with TORNADO_ERR_PARSE and "... at position N" (in bytes) for one
   that is malformed or not linear, TORNADO_ERR_LIMIT for one that is too large: above 64 KiB, 100 levels of groups,
   255 groups, or what its counts multiply to. */
TORNADO_API tornado_regex *tornado_regex_new(const char *pattern, unsigned flags);
TORNADO_API void tornado_regex_free(tornado_regex *regex);

/* How many groups it has, the whole match not counted; the name of group 1, 2..., or NULL; the number of a name, or
   0. */
TORNADO_API size_t tornado_regex_groups(const tornado_regex *regex);
TORNADO_API const char *tornado_regex_group_name(const tornado_regex *regex, size_t group);
TORNADO_API size_t tornado_regex_group_index(const tornado_regex *regex, const char *name);

/* Match at `pos`; match all from `pos` to the end; find the first match from `pos` on. `pos` is an offset into the
   text, of which what stands before is still looked at by ^ and \b. Fills spans[0] with the whole match and the
   following with its groups, `count` in all; spans may be NULL when count is 0. 1: found; 0: not; -1: memory is
   short (TORNADO_ERR_NOMEM), which short texts cannot meet. */
TORNADO_API int tornado_regex_match(const tornado_regex *regex, tornado_bytes text, size_t pos, tornado_span *spans,
                                    size_t count);
TORNADO_API int tornado_regex_fullmatch(const tornado_regex *regex, tornado_bytes text, size_t pos,
                                        tornado_span *spans, size_t count);
TORNADO_API int tornado_regex_search(const tornado_regex *regex, tornado_bytes text, size_t pos,
                                     tornado_span *spans, size_t count);

/*============================================================================
 * section: context (public)
 * State that follows execution, Tornado's stack_context: a request's id, the user on whose behalf something runs.
 *
 * What is set in a callback or a coroutine is seen there, and by everything that is started from there and runs
 * later: callbacks, timers, callbacks of futures and coroutines take the state with them when they are scheduled
 * and have it when they run. What comes from another thread, from a signal handler, from a file descriptor or by
 * tornado_ioloop_spawn_callback begins with none. A state belongs to one thread. Where nothing is set, all of this
 * costs a test for NULL.
 *
 *       static const char request_id;             // its address is the key
 *
 *       static const char *tag(void *arg) { return tornado_stack_context_get(&request_id); }
 *       tornado_enable_pretty_logging(&(tornado_log_options){.tag = tag});
 *
 *       static void prepare(tornado_handler *self)
 *       {
 *           tornado_stack_context_set(&(tornado_stack_context_state){.key = &request_id, .value = new_id(self)});
 *       }
 *============================================================================*/

typedef struct tornado_stack_context_state {
    const void *key;          /* whose state it is: the address of something of the program that stays; not NULL */
    void *value;
    tornado_callback destroy; /* called with the value when nothing has it any more; may be NULL */
    /* Called with what a callback raised while it had this state, before it is logged, and with the value; states
       that were set last are asked first. True: it is dealt with. What it raises is passed on instead. */
    bool (*handle_exception)(const tornado_error *error, void *value);
} tornado_stack_context_state;

/* Sets a state for the rest of the callback or coroutine that runs (outside of a loop: of the thread), in place of
   the one with the same key; without a value and a handler it is only taken away. False, after destroy(value), with
   TORNADO_ERR_NOMEM, or with TORNADO_ERR_INVALID for a state without a key. */
TORNADO_API bool tornado_stack_context_set(const tornado_stack_context_state *state);

/* The value behind a key, or NULL. Lives as long as the caller runs without setting that key, or longer when
   something was started meanwhile. */
TORNADO_API void *tornado_stack_context_get(const void *key);

/* Calls fn(arg) with one more state, which it has to itself; then everything is as before. What fn raises goes to
   the state's handle_exception first, and is raised on when that returns false. Raises TORNADO_ERR_NOMEM and
   TORNADO_ERR_INVALID as above. Inside a coroutine, fn may wait. */
TORNADO_API void tornado_run_with_stack_context(const tornado_stack_context_state *state, tornado_callback fn,
                                                void *arg);

/* All states at a point of time, to call something with later: wrap takes them (NULL when there are none), run
   calls fn(arg) with them instead of those there, release lets go. Of one thread. */
typedef struct tornado_stack_context tornado_stack_context;
TORNADO_API tornado_stack_context *tornado_stack_context_wrap(void);
TORNADO_API void tornado_stack_context_run(tornado_stack_context *context, tornado_callback fn, void *arg);
TORNADO_API void tornado_stack_context_release(tornado_stack_context *context);

/* Calls fn(arg) with no state, so that what it starts outlives the request that happened to need it first: a pool
   of connections, for instance. */
TORNADO_API void tornado_null_context(tornado_callback fn, void *arg);

/*============================================================================
 * section: ioloop (public)
 * One loop a thread: callbacks, timers, file descriptors. Level-triggered.
 *
 * A turn of the loop: the callbacks queued before it, then timers that are due (by deadline, then in the order they
 * were set), then what file descriptors report. Nothing calls user code from inside the call that started it. All
 * functions are for the loop's own thread, except the two that say otherwise.
 *============================================================================*/

typedef struct tornado_ioloop tornado_ioloop;

/* What a file descriptor is watched for, and what happened to it. ERROR is always watched. */
enum { TORNADO_IOLOOP_READ = 1, TORNADO_IOLOOP_WRITE = 4, TORNADO_IOLOOP_ERROR = 24 };

/* A way to wait for file descriptors. The built-in ones are named "epoll", "kqueue", "poll" and "select", of which
   kqueue and select tell of errors only while something else is watched, too; a program may bring its own, which is
   also how a loop runs inside another library's. `state` is what open returned. add, modify and remove return 0 or
   an errno; wait fills at most `max` events and returns their number (0 when the time is up or a signal came) or -1
   with errno set. `key` is the loop's and is handed back as it came. timeout_ns is -1 for ever, 0 not at all. */
typedef struct tornado_poller_event {
    uint64_t key;
    unsigned events;
} tornado_poller_event;

typedef struct tornado_poller {
    const char *name;
    void *(*open)(void); /* NULL, with errno set, when it cannot be had */
    void (*close)(void *state);
    int (*add)(void *state, int fd, unsigned events, uint64_t key);
    int (*modify)(void *state, int fd, unsigned events, uint64_t key);
    int (*remove)(void *state, int fd);
    int (*wait)(void *state, tornado_poller_event *events, int max, int64_t timeout_ns);
    int (*fileno)(void *state); /* an fd that is readable when wait would return events; NULL: there is none */
} tornado_poller;

typedef struct tornado_ioloop_options {
    const char *poller;            /* "epoll", "kqueue", "poll", "select"; default: tornado_ioloop_configure's */
    const tornado_poller *custom;  /* instead of a name; must outlive the loop */
    size_t stack_size;             /* bytes of address space of a coroutine's stack; default TORNADO_STACK_SIZE */
    int max_coroutines;            /* at once; default TORNADO_MAX_COROUTINES */
    /* Called with what a callback raised, instead of logging it as "Exception in callback". */
    void (*handle_callback_exception)(tornado_ioloop *loop, const tornado_error *error);
} tornado_ioloop_options;

/* A new loop. It becomes its thread's current one where there is none. NULL with the reason in
   tornado_last_error(). */
TORNADO_API tornado_ioloop *tornado_ioloop_new(const tornado_ioloop_options *options);

/* Chooses the poller of loops made from now on by name, for the process; NULL is the default again. False
   (TORNADO_ERR_INVALID) for a name unknown here. Call it before threads start. */
TORNADO_API bool tornado_ioloop_configure(const char *poller);

/* This thread's loop, made when there is none. NULL only when it cannot be made. */
TORNADO_API tornado_ioloop *tornado_ioloop_current(void);

/* The process's loop, for programs that have one: that of whoever calls this first, made when there is none, until
   install puts another in its place or it is closed. Any thread; install and clear_instance keep what they replace
   open. NULL only when it cannot be made. */
TORNADO_API tornado_ioloop *tornado_ioloop_instance(void);
TORNADO_API void tornado_ioloop_install(tornado_ioloop *loop);
TORNADO_API void tornado_ioloop_clear_instance(void);

/* Whether there is one. */
TORNADO_API bool tornado_ioloop_initialized(void);

/* Makes `loop` this thread's current one; NULL, and clear_current: none. */
TORNADO_API void tornado_ioloop_make_current(tornado_ioloop *loop);
TORNADO_API void tornado_ioloop_clear_current(void);

/* Runs the loop until tornado_ioloop_stop. It is current meanwhile. False with TORNADO_ERR_STATE when it is running
   already or closed. */
TORNADO_API bool tornado_ioloop_start(tornado_ioloop *loop);

/* Ends tornado_ioloop_start after this turn; when it is not running, the next start returns at once. */
TORNADO_API void tornado_ioloop_stop(tornado_ioloop *loop);

/* Running inside another library's loop, or a game's: call run_once whenever fileno is readable or the time that
   next_timeout gave is over.
       examples/own_loop.c shows it with poll; GLib, libuv and libev have the same three places to hang it in.
   The other way round, a tornado_poller of one's own lets this loop wait with another library's means. (In Python
   these are the bridges to asyncio and Twisted.) */

/* One turn: runs what is ready; when nothing is, waits up to max_wait seconds for what happens to file descriptors
   (0 not at all, TORNADO_NONE for as long as it takes, but not beyond the next timer) and runs that. What this
   starts may be ready at once: ask next_timeout. False as for tornado_ioloop_start. */
TORNADO_API bool tornado_ioloop_run_once(tornado_ioloop *loop, double max_wait);

/* Seconds until the loop has something to do though nothing happens to its file descriptors: 0 when it has now,
   TORNADO_NONE when never. */
TORNADO_API double tornado_ioloop_next_timeout(const tornado_ioloop *loop);

/* An fd that is readable when one of the loop's is ready or another thread has added a callback. The loop's: only
   to be watched. -1 with TORNADO_ERR_INVALID for pollers that have none ("poll" and "select"). */
TORNADO_API int tornado_ioloop_fileno(const tornado_ioloop *loop);

/* Ends the loop, which is no thread's current one from then on: callbacks and timers that have not run never run,
   and coroutines that are still suspended are cancelled, so that they unwind before this returns. With all_fds,
   closes every registered file descriptor too. False with TORNADO_ERR_STATE when the loop is running. The struct
   itself lives on as long as futures, streams or servers of it do, or somebody holds it by tornado_ioloop_retain:
   it ignores what comes late. */
TORNADO_API bool tornado_ioloop_close(tornado_ioloop *loop, bool all_fds);

/* Keep the struct of a loop valid beyond its closing, for instance in another thread that adds callbacks. Any
   thread. */
TORNADO_API tornado_ioloop *tornado_ioloop_retain(tornado_ioloop *loop);
TORNADO_API void tornado_ioloop_release(tornado_ioloop *loop);

/* The name of its poller; static. */
TORNADO_API const char *tornado_ioloop_poller(const tornado_ioloop *loop);

/* Seconds on the loop's clock, which is tornado_monotonic(). */
TORNADO_API double tornado_ioloop_time(const tornado_ioloop *loop);

/* Calls handler(fd, events, arg) whenever one of `events` is true of fd. One handler for an fd: a second is
   TORNADO_ERR_STATE. Closing an fd that is still registered is an error of the program. False with the reason. */
typedef void (*tornado_fd_handler)(int fd, unsigned events, void *arg);
TORNADO_API bool tornado_ioloop_add_handler(tornado_ioloop *loop, int fd, tornado_fd_handler handler, void *arg,
                                            unsigned events);

/* Watches fd for other events. False with TORNADO_ERR_STATE when it has no handler. */
TORNADO_API bool tornado_ioloop_update_handler(tornado_ioloop *loop, int fd, unsigned events);

/* Stops watching fd, which stays open. Events that were already reported are not delivered. False and logged at
   level debug when it has no handler. */
TORNADO_API bool tornado_ioloop_remove_handler(tornado_ioloop *loop, int fd);

/* Calls callback(arg) in the loop's next turn. May be called from ANY THREAD. False when memory is short
   (TORNADO_ERR_NOMEM) and, without an error, when the loop is closed. */
TORNADO_API bool tornado_ioloop_add_callback(tornado_ioloop *loop, tornado_callback callback, void *arg);

/* The same from a SIGNAL HANDLER of any thread: async-signal-safe, allocates nothing. A pair of callback and arg is
   run as often as it was added; between different pairs no order is kept. A loop knows at most 64 different pairs
   in its life: false beyond that, and when it is closed. */
TORNADO_API bool tornado_ioloop_add_callback_from_signal(tornado_ioloop *loop, tornado_callback callback,
                                                         void *arg);

/* Names a timer that is set. Zero names none. A handle stays safe to use after its timer ran. */
typedef uint64_t tornado_timeout;

/* Calls callback(arg) once, `delay` seconds from now (never inside this call, also when it is not positive), or at
   `when` on the loop's clock. 0, with the reason in tornado_last_error(), when memory is short or the time is not a
   number. */
TORNADO_API tornado_timeout tornado_ioloop_call_later(tornado_ioloop *loop, double delay, tornado_callback callback,
                                                      void *arg);
TORNADO_API tornado_timeout tornado_ioloop_call_at(tornado_ioloop *loop, double when, tornado_callback callback,
                                                   void *arg);

/* Cancels a timer. False when it ran already, was removed already, or is 0: that is no error. */
TORNADO_API bool tornado_ioloop_remove_timeout(tornado_ioloop *loop, tornado_timeout timeout);

/* Calls a function again and again. */
typedef struct tornado_periodic_callback tornado_periodic_callback;

/* callback_time is in MILLISECONDS, as in Tornado, and must be positive. `jitter`, from 0 to 1, makes each interval
   longer or shorter by up to that part of half of it. Not started yet. NULL with the reason. The callback may stop
   or free it. */
TORNADO_API tornado_periodic_callback *tornado_periodic_callback_new(tornado_callback callback, void *arg,
                                                                     double callback_time, double jitter);

/* Starts on the current loop; the first run is after one interval. Runs that were missed are skipped, and the phase
   is kept. Starting twice is harmless. False when memory is short. */
TORNADO_API bool tornado_periodic_callback_start(tornado_periodic_callback *periodic);
TORNADO_API void tornado_periodic_callback_stop(tornado_periodic_callback *periodic);
TORNADO_API bool tornado_periodic_callback_is_running(const tornado_periodic_callback *periodic);

/* Stops and frees it. NULL is allowed. */
TORNADO_API void tornado_periodic_callback_free(tornado_periodic_callback *periodic);

/* Calls callback(arg) in the loop whenever the process gets a signal, as often as it was delivered. There may be
   several for a signal, also on several loops: each is called. The first of the process replaces the signal's
   action, which comes back with the last's removal; closing a loop removes its own. False with TORNADO_ERR_SYSTEM
   for a signal that cannot be caught, with TORNADO_ERR_LIMIT beyond 64 in the process. */
TORNADO_API bool tornado_ioloop_add_signal_handler(tornado_ioloop *loop, int signum, tornado_callback callback,
                                                   void *arg);

/* Takes that back; it is not called any more. False when there is none such. */
TORNADO_API bool tornado_ioloop_remove_signal_handler(tornado_ioloop *loop, int signum, tornado_callback callback,
                                                      void *arg);

/* Finds what blocks a loop. When a turn of it runs for longer than `seconds` without waiting, SIGALRM comes and
   action(SIGALRM) is called in the loop's thread, as a signal handler; NULL: what SIGALRM does by itself, ending
   the process. set_blocking_log_threshold takes log_stack for that, which writes a line and the stack (where libc
   can tell it: glibc, macOS) to where the log goes. TORNADO_NONE ends it. To be called by the loop's thread. As the
   alarm is the process's, only one loop can have it, and no other part of the program may use setitimer or alarm:
   false with TORNADO_ERR_STATE when another loop has it, with TORNADO_ERR_INVALID for a time that is none. */
TORNADO_API bool tornado_ioloop_set_blocking_signal_threshold(tornado_ioloop *loop, double seconds,
                                                              void (*action)(int signum));
TORNADO_API bool tornado_ioloop_set_blocking_log_threshold(tornado_ioloop *loop, double seconds);
TORNADO_API void tornado_ioloop_log_stack(int signum);

/* Until the loop is closed, on the first SIGINT or SIGTERM: every server of the loop stops accepting and closes
   idle connections; when what runs has finished, or after `grace` seconds (then coroutines still running are
   cancelled and get one more second), the loop stops, so that main can return 0. A second signal stops it at once.
   Each loop of the process may have it, and so may forked children. False with the reason. */
TORNADO_API bool tornado_ioloop_shutdown_on_signals(tornado_ioloop *loop, double grace);

/* The same without a signal, for instance from a handler. */
TORNADO_API void tornado_ioloop_shutdown(tornado_ioloop *loop, double grace);

/*============================================================================
 * section: future (public)
 * The result of something that has not finished yet. Belongs to one loop's thread.
 *
 * Whoever gets a future from a function owns one reference. tornado_await and tornado_wait use it up; else give it
 * back with tornado_future_release. A future that fails while nobody looks at it is logged when its last reference
 * goes.
 *============================================================================*/

typedef struct tornado_future tornado_future;

/* A future to be resolved by the caller. Never NULL: when memory is short it is one that has failed with
   TORNADO_ERR_NOMEM and cannot be resolved. Two references are the caller's to give: one for who waits, and by
   tornado_future_retain one for who resolves. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_future_new(void);

/* One that is resolved already. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_future_resolved(void *result);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_future_failed(const tornado_error *error);

/* Adds a reference; gives one back. NULL may be released. */
TORNADO_API tornado_future *tornado_future_retain(tornado_future *future);
TORNADO_API void tornado_future_release(tornado_future *future);

/* Resolve it. A result is borrowed, or owned when `destroy` is given: it is called with the result when the last
   reference goes, also when resolving failed. Bytes are borrowed. Those who wait run in the next turn of the loop.
   False with TORNADO_ERR_STATE, and logged, when it was resolved before. */
TORNADO_API bool tornado_future_set_result(tornado_future *future, void *result, tornado_callback destroy);
TORNADO_API bool tornado_future_set_integer(tornado_future *future, int64_t result);
TORNADO_API bool tornado_future_set_bytes(tornado_future *future, tornado_bytes result);
TORNADO_API bool tornado_future_set_error(tornado_future *future, const tornado_error *error);

/* Whether it has a result or an error. */
TORNADO_API bool tornado_future_done(const tornado_future *future);

/* The result; NULL, zero or no bytes when there is none of that kind. Valid as long as a reference is held. */
TORNADO_API void *tornado_future_result(const tornado_future *future);
TORNADO_API int64_t tornado_future_integer(const tornado_future *future);
TORNADO_API tornado_bytes tornado_future_bytes(const tornado_future *future);

/* Why it failed, or NULL; counts as having looked. Valid as long as a reference is held. */
TORNADO_API const tornado_error *tornado_future_error(tornado_future *future);

/* Calls callback(future, arg) in a turn of the loop after the future is done; in order, when there are several. The
   future is held from then on until the callback has returned; one whose last reference goes before it is done
   never calls. add_future is the same on a given loop, which must be the future's. False when memory is short
   (TORNADO_ERR_NOMEM) or the loop is closed (TORNADO_ERR_STATE). */
typedef void (*tornado_future_callback)(tornado_future *future, void *arg);
TORNADO_API bool tornado_future_add_done_callback(tornado_future *future, tornado_future_callback callback,
                                                  void *arg);
TORNADO_API bool tornado_ioloop_add_future(tornado_ioloop *loop, tornado_future *future,
                                           tornado_future_callback callback, void *arg);

/*============================================================================
 * section: coroutine (public)
 * Functions that may wait: each runs on a stack of its own, and a wait lets others run.
 *
 * A coroutine stays on its thread. It can be interrupted only where it waits. Its stack is
 * TORNADO_STACK_SIZE bytes with a guard below: keep large arrays in the arena. With TORNADO_NO_COROUTINES it is a
 * call on the loop's stack that cannot wait, with an error boundary, an arena and a future as ever.
 *============================================================================*/

/* A coroutine's function. What it returns is the result of the future; it may be allocated from
   tornado_current_arena(), which then lives as long as that future. */
typedef void *(*tornado_coroutine_fn)(void *arg);

typedef struct tornado_spawn_options {
    const char *name;  /* for log lines; borrowed, so static is best; default "coroutine" */
    size_t stack_size; /* bytes of address space, when it needs more than others; such a stack is not pooled */
} tornado_spawn_options;

/* Starts fn(arg) as a coroutine in the loop's next turn. Gives a future of its result, or of the error that it
   raised. At the limit of coroutines, or when memory is short, it is one that has failed. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_spawn(tornado_coroutine_fn fn, void *arg);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_spawn_with(tornado_coroutine_fn fn, void *arg,
                                                                const tornado_spawn_options *options);

/* The same for work nobody waits for: it begins without the caller's states (see section context), and a failure is
   logged. False when it cannot be started. */
TORNADO_API bool tornado_ioloop_spawn_callback(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg);

/* Cancels the coroutine behind a future of tornado_spawn: its wait, and each later one, fails with
   TORNADO_ERR_CANCELLED, so that it unwinds and its defers run; one that has not started never runs. False when it
   is done already, or no coroutine is behind it. The reference stays the caller's. */
TORNADO_API bool tornado_cancel(tornado_future *future);

#ifndef TORNADO_NO_COROUTINES
/* Waits for a future and gives its result, which belongs to the innermost scope; uses up the caller's reference. A
   failure is raised. Only in a coroutine: elsewhere TORNADO_ERR_STATE is raised. */
TORNADO_API void *tornado_await(tornado_future *future);
TORNADO_API int64_t tornado_await_integer(tornado_future *future);

/* The same for bytes. Those read from a stream live until the next read on that stream. */
TORNADO_API tornado_bytes tornado_await_bytes(tornado_future *future);

/* Waits without unwinding, whatever happens: NULL when the future has succeeded, else why not; valid until this
   coroutine's next wait. The others also give the result (which is unchanged after a failure). Each uses up the
   caller's reference. */
TORNADO_API const tornado_error *tornado_wait(tornado_future *future);
TORNADO_API const tornado_error *tornado_wait_result(tornado_future *future, void **result);
TORNADO_API const tornado_error *tornado_wait_integer(tornado_future *future, int64_t *result);
TORNADO_API const tornado_error *tornado_wait_bytes(tornado_future *future, tornado_bytes *result);
#endif

/* The arena of the coroutine that runs (of the request, in its handler; of a job, on a thread of an executor); NULL
   elsewhere, or when memory is short. */
TORNADO_API tornado_arena *tornado_current_arena(void);

/* Runs the loop until fn(arg), as a coroutine, has finished. False with what it raised in tornado_last_error().
   With a timeout, in seconds, TORNADO_ERR_TIMEOUT when it takes longer, and the coroutine is cancelled. */
TORNADO_API bool tornado_ioloop_run_sync(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg);
TORNADO_API bool tornado_ioloop_run_sync_timeout(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg,
                                                 double timeout);

/* Has the calling thread say on standard error which coroutine's stack overflowed, before the process ends as it
   would have without this: by SIGSEGV (or SIGBUS), or in the handler that the program had for it. Takes an
   alternate signal stack for the thread if it has none. False with TORNADO_ERR_SYSTEM or TORNADO_ERR_NOMEM. */
TORNADO_API bool tornado_report_stack_overflow(void);

/* How many coroutines exist on a loop, running or suspended. */
TORNADO_API size_t tornado_ioloop_coroutines(const tornado_ioloop *loop);

/*============================================================================
 * section: gen (public)
 * Putting waits together; and how coroutines wait for each other: locks and queues.
 *
 * A timeout is in seconds from now; one of zero or less is over in the loop's next turn, INFINITY never. For a
 * point in time write tornado_until(when).
 *============================================================================*/

/* The seconds from now until `when` on the loop's clock (tornado_ioloop_time); below zero when it has passed. */
TORNADO_API double tornado_until(double when);

/* Done after `seconds`; a negative or zero time is done in the loop's next turn. Its result is NULL. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_sleep(double seconds);

/* Done in the loop's next turn: lets everything else that is ready run once. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_moment(void);

/* The future itself, or one that is done already for NULL: to wait for what a function returns that only sometimes
   has something to wait for. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_maybe_future(tornado_future *future);

/* Done when all of `count` futures are; takes over a reference of each (of one that stands there twice, one only).
   The result is an array of their results, void **, in the same order: a future of bytes or of an integer gives a
   pointer to a tornado_bytes or an int64_t. When some fail it fails with the error of the first in the list, after
   all have finished; the other errors are logged. NULL in the list counts as done. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_multi(tornado_future *const *futures, size_t count);

/* The same without logging the other errors that have one of the codes in `quiet`, which a zero ends; NULL is all
   codes. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_multi_quiet(tornado_future *const *futures, size_t count,
                                                                 const int *quiet);

/* tornado_multi with names, which are copied:

       const tornado_named_future both[] = {{"user", load_user(id)}, {"news", load_news()}};
       const tornado_named_results *results = tornado_await(tornado_multi_named(both, 2));
       user *u = tornado_named_result(results, "user");

   The result of a name is as in tornado_multi; NULL for a name that was not given, and of equal names the last. */
typedef struct tornado_named_future {
    const char *name;
    tornado_future *future;
} tornado_named_future;
typedef struct tornado_named_results tornado_named_results;
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_multi_named(const tornado_named_future *futures, size_t count);
TORNADO_API void *tornado_named_result(const tornado_named_results *results, const char *name);

/* Done like `future`, whose reference it takes over, or fails with TORNADO_ERR_TIMEOUT after `seconds`. What was
   waited for is not cancelled; its failure after the timeout is logged, by the second unless its code is in
   `quiet`, as above. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_with_timeout(double seconds, tornado_future *future);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_with_timeout_quiet(double seconds, tornado_future *future,
                                                                        const int *quiet);

/* Gives the results of several futures as they finish, also when some fail:

       tornado_wait_iterator *each = tornado_wait_iterator_new(futures, 3);
       while (!tornado_wait_iterator_done(each)) {
           void *result;
           const tornado_error *error = tornado_wait_result(tornado_wait_iterator_next(each), &result);
           printf("%zu: %s\n", tornado_wait_iterator_current_index(each), error ? error->message : result);
       }
*/
typedef struct tornado_wait_iterator tornado_wait_iterator;

/* Takes over a reference of each, as tornado_multi does; NULL counts as done. The iterator belongs to the innermost
   scope, as the result of a wait does, and keeps the futures and their results until that ends. NULL when memory is
   short or, with TORNADO_ERR_STATE, where no scope is open: outside the loop. */
TORNADO_API tornado_wait_iterator *tornado_wait_iterator_new(tornado_future *const *futures, size_t count);

/* Whether `next` has given all of them. */
TORNADO_API bool tornado_wait_iterator_done(const tornado_wait_iterator *iterator);

/* Done like the next of the futures to finish; those that have finished already come in the order in which they
   did. Until one has, each call gives the same future. Fails with TORNADO_ERR_STATE when there is none left. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_wait_iterator_next(tornado_wait_iterator *iterator);

/* Which of the futures `next` was last done like: its place in the list, and itself, which stays the iterator's.
   SIZE_MAX and NULL before the first. */
TORNADO_API size_t tornado_wait_iterator_current_index(const tornado_wait_iterator *iterator);
TORNADO_API tornado_future *tornado_wait_iterator_current_future(const tornado_wait_iterator *iterator);

/* Makes `to` done like `from`, once that is. Neither reference is taken over; `to` is held until then, and stays
   pending when the last reference to `from` goes before; it is left alone when it is done by then. False when
   memory is short. */
TORNADO_API bool tornado_chain_future(tornado_future *from, tornado_future *to);

/* Makes a future of an interface that calls back: calls start(task, arg) at once, which hands `task` on to be
   resolved later and then released:

       static void start(tornado_future *task, void *arg) { store_query(arg, "select ...", on_rows, task); }
       static void on_rows(rows *found, void *task)
       {
           tornado_future_set_result(task, found, rows_free);
           tornado_future_release(task);
       }
       rows *found = tornado_await(tornado_task(start, store));

   What start raises becomes the future's error; it must not have handed `task` on then. start is not called when
   memory is short. */
typedef void (*tornado_task_start)(tornado_future *task, void *arg);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_task(tornado_task_start start, void *arg);

/* Resolves a task without a result and releases it: fits where a tornado_callback is asked for. */
TORNADO_API void tornado_task_done(void *task);

/* ---- locks ----

   They are for the coroutines of one loop, not for threads. Who has waited longest comes first. Each wait is a
   future: who releases it (by being cancelled, or by the timeout of a tornado_with_timeout around it) stands in
   line no longer, and what was granted at that very moment goes on to the next. A grant is taken when a wait
   returns it or a callback is called with it; until then the future must be kept. A future that can be done at once
   is.

   Each is freed by its _free, which takes NULL: those who wait fail with TORNADO_ERR_CLOSED. Each _new gives NULL
   when memory is short. With _timeout the future fails with TORNADO_ERR_TIMEOUT when the time is up. */

/* Waiting to be told. A wait's result is an integer: 1 when notified, 0 when the time was up, which is no error. */
typedef struct tornado_condition tornado_condition;
TORNADO_API tornado_condition *tornado_condition_new(void);
TORNADO_API void tornado_condition_free(tornado_condition *condition);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_condition_wait(tornado_condition *condition);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_condition_wait_timeout(tornado_condition *condition,
                                                                            double seconds);

/* Wakes the `count` that have waited longest, or as many as there are; or all. Nobody waiting: nothing happens, and
   nothing is kept for later. */
TORNADO_API void tornado_condition_notify(tornado_condition *condition, size_t count);
TORNADO_API void tornado_condition_notify_all(tornado_condition *condition);

/* A flag to wait for, not set at first. */
typedef struct tornado_event tornado_event;
TORNADO_API tornado_event *tornado_event_new(void);
TORNADO_API void tornado_event_free(tornado_event *event);

/* Sets the flag and wakes all who wait; clears it, so that waits wait again. */
TORNADO_API void tornado_event_set(tornado_event *event);
TORNADO_API void tornado_event_clear(tornado_event *event);
TORNADO_API bool tornado_event_is_set(const tornado_event *event);

/* Done when the flag is set; its result is NULL. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_event_wait(tornado_event *event);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_event_wait_timeout(tornado_event *event, double seconds);

/* A number of permits, which may be taken and given back:

       for (;;) {
           tornado_scope_enter(&scope);
           tornado_semaphore_hold(two_at_once);    // waits; released when the scope ends, whichever way
           use_some_resource();
           tornado_scope_leave(&scope);
       }

   A bounded one never has more permits than at first. NULL with TORNADO_ERR_INVALID when `value` is negative. */
typedef struct tornado_semaphore tornado_semaphore;
TORNADO_API tornado_semaphore *tornado_semaphore_new(int value);
TORNADO_API tornado_semaphore *tornado_bounded_semaphore_new(int value);
TORNADO_API void tornado_semaphore_free(tornado_semaphore *semaphore);

/* Done when a permit was granted; its result is NULL. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_semaphore_acquire(tornado_semaphore *semaphore);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_semaphore_acquire_timeout(tornado_semaphore *semaphore,
                                                                               double seconds);

/* Takes a permit if there is one. */
TORNADO_API bool tornado_semaphore_acquire_nowait(tornado_semaphore *semaphore);

/* Gives a permit back: to who has waited longest, else to be taken. False with TORNADO_ERR_STATE, and logged, when
   a bounded one has all its permits; with TORNADO_ERR_LIMIT at INT_MAX. */
TORNADO_API bool tornado_semaphore_release(tornado_semaphore *semaphore);

#ifndef TORNADO_NO_COROUTINES
/* Waits for a permit and gives it back when the innermost scope ends. The handle is for tornado_run_deferred, to do
   so earlier. Raises what a wait raises; only in a coroutine. */
TORNADO_API uint64_t tornado_semaphore_hold(tornado_semaphore *semaphore);
TORNADO_API uint64_t tornado_semaphore_hold_timeout(tornado_semaphore *semaphore, double seconds);
#endif

/* How many permits could be taken without waiting. */
TORNADO_API int tornado_semaphore_value(const tornado_semaphore *semaphore);

/* A lock: a bounded semaphore of one permit, whose functions are the same. To release one that is not locked is
   TORNADO_ERR_STATE, and logged; any coroutine may release it. */
typedef struct tornado_lock tornado_lock;
TORNADO_API tornado_lock *tornado_lock_new(void);
TORNADO_API void tornado_lock_free(tornado_lock *lock);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_lock_acquire(tornado_lock *lock);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_lock_acquire_timeout(tornado_lock *lock, double seconds);
TORNADO_API bool tornado_lock_acquire_nowait(tornado_lock *lock);
TORNADO_API bool tornado_lock_release(tornado_lock *lock);
#ifndef TORNADO_NO_COROUTINES
TORNADO_API uint64_t tornado_lock_hold(tornado_lock *lock);
TORNADO_API uint64_t tornado_lock_hold_timeout(tornado_lock *lock, double seconds);
#endif
TORNADO_API bool tornado_lock_is_locked(const tornado_lock *lock);

/* ---- queues ----

   Items for the coroutines of one loop to hand to each other; waiting is as in locks. An item is a pointer, NULL
   allowed, that the queue does not look at. */
typedef struct tornado_queue tornado_queue;

typedef struct tornado_queue_options {
    size_t maxsize; /* items at once, then putting waits; default: no limit */
    /* Called with each item that nobody gets: those left when the queue is freed, and those whose put failed. It
       may neither wait nor raise. NULL: items are somebody else's. */
    tornado_callback destroy;
} tornado_queue_options;

/* Which of two items comes first: negative when it is the first of them, positive when the second, zero for
   whichever was put before. It must not use the queue, nor raise. */
typedef int (*tornado_compare)(const void *a, const void *b);

/* The first item put is the first got; the last; or the least by `compare`. NULL when memory is short. */
TORNADO_API tornado_queue *tornado_queue_new(const tornado_queue_options *options);
TORNADO_API tornado_queue *tornado_lifo_queue_new(const tornado_queue_options *options);
TORNADO_API tornado_queue *tornado_priority_queue_new(tornado_compare compare, const tornado_queue_options *options);

/* Frees it and destroys the items left. Those who wait fail with TORNADO_ERR_CLOSED. NULL is allowed. */
TORNADO_API void tornado_queue_free(tornado_queue *queue);

/* Done when the item is in the queue, which has taken it over with the call: when it fails, the item is destroyed.
   With a timeout it fails with TORNADO_ERR_TIMEOUT when there is no room in time. A future that is released while
   it waits puts nothing. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_queue_put(tornado_queue *queue, void *item);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_queue_put_timeout(tornado_queue *queue, void *item,
                                                                       double seconds);

/* Puts an item if there is room. False with TORNADO_ERR_QUEUE_FULL or TORNADO_ERR_NOMEM; the item is the caller's
   then. */
TORNADO_API bool tornado_queue_put_nowait(tornado_queue *queue, void *item);

/* Done with an item, which is the caller's from then on. One that was to go to somebody who no longer waits goes
   back to where it was. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_queue_get(tornado_queue *queue);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_queue_get_timeout(tornado_queue *queue, double seconds);

/* Takes an item if there is one. False with TORNADO_ERR_QUEUE_EMPTY. */
TORNADO_API bool tornado_queue_get_nowait(tornado_queue *queue, void **item);

/* Says that the work on an item that was got is done. False with TORNADO_ERR_STATE, and logged, when it was said of
   every item already. */
TORNADO_API bool tornado_queue_task_done(tornado_queue *queue);

/* Done when tornado_queue_task_done was called for each item ever put. Any number may wait. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_queue_join(tornado_queue *queue);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_queue_join_timeout(tornado_queue *queue, double seconds);

/* The items in it; how many there may be, 0 without a limit; whether there is none, and whether no more fit. */
TORNADO_API size_t tornado_queue_qsize(const tornado_queue *queue);
TORNADO_API size_t tornado_queue_maxsize(const tornado_queue *queue);
TORNADO_API bool tornado_queue_empty(const tornado_queue *queue);
TORNADO_API bool tornado_queue_full(const tornado_queue *queue);

/*============================================================================
 * section: executor (public)
 * Work that blocks, on threads of its own: its result comes back to the loop as a future.
 *
 *     static void *count_lines(void *arg)               // on another thread, while the loop serves others
 *     {
 *         FILE *file = fopen(arg, "r");
 *         if (!file)
 *             tornado_raise_http_error(404, "no file %s", (char *)arg);
 *         tornado_defer(close_file, file);
 *         int *lines = tornado_arena_calloc(tornado_current_arena(), 1, sizeof *lines);
 *         ...
 *         return lines;
 *     }
 *     int *lines = tornado_await(tornado_run_on_executor(count_lines, path));       // in a handler
 *
 * A job runs to its end, also when nobody waits any more: when the coroutine that waits is cancelled, its future is
 * released, or the loop is closed. So what `arg` points to must live until the job has ended: have it copied
 * (tornado_job_options), or give memory away. A job must not touch what belongs to the loop: futures, streams, the
 * request and its arena.
 *============================================================================*/

typedef struct tornado_executor tornado_executor;

typedef struct tornado_executor_options {
    int max_workers;    /* threads at most; default: 4 more than tornado_cpu_count(), but not more than 32 */
    int max_queue;      /* jobs that wait for a thread, at most; default 10000; TORNADO_NONE */
    size_t stack_size;  /* bytes of a thread's stack; default: the system's */
    bool dummy;         /* no threads: jobs run on the loop, each in a turn of its own, and block it meanwhile */
} tornado_executor_options;

/* A pool of threads, which are started as jobs come. The caller frees it. NULL with the reason. With
   TORNADO_NO_THREADS every executor is a dummy. */
TORNADO_API tornado_executor *tornado_executor_new(const tornado_executor_options *options);

/* A function that runs on a thread of an executor. It may raise, defer and use tornado_try as a coroutine may, but
   not wait. What it allocates from tornado_current_arena() lives as long as the future of its result. */
typedef void *(*tornado_job)(void *arg);

typedef struct tornado_job_options {
    size_t copy;               /* so many bytes of what arg points to are copied: fn gets the copy, for its time */
    tornado_callback destroy;  /* owns the result: called with it (when not NULL) when the future goes, or, when the
                                  loop was closed before, from whichever thread */
} tornado_job_options;

/* Has fn(arg) run on a thread. The future, of the current loop, has its result, or the error that it raised. It has
   failed already, and fn never runs, with TORNADO_ERR_LIMIT (503 for a request) when max_queue jobs wait,
   TORNADO_ERR_STATE after a shutdown, or in a child process that was forked after the executor was made,
   TORNADO_ERR_SYSTEM when not even one thread can be started, or TORNADO_ERR_NOMEM. An executor of NULL is the
   process's own, made when it is first used. ANY THREAD that has a loop. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_executor_submit(tornado_executor *executor, tornado_job fn,
                                                                     void *arg);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_executor_submit_with(tornado_executor *executor,
                                                                          tornado_job fn, void *arg,
                                                                          const tornado_job_options *options);

/* The same on the process's own executor. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_run_on_executor(tornado_job fn, void *arg);

/* How many jobs wait for a thread. ANY THREAD. */
TORNADO_API size_t tornado_executor_queued(tornado_executor *executor);

/* Accepts nothing more and waits, blocking, until what was submitted has run; with `cancel`, until what runs has
   ended: the futures of jobs that have not begun fail with TORNADO_ERR_CANCELLED. Results still come through the
   loop. The process's own executor (NULL) is freed, and made anew when it is next used; nobody may submit to it
   meanwhile. At the end of a program it is waited for only by this. False with TORNADO_ERR_STATE, and nothing
   done, when called from a job of this executor. */
TORNADO_API bool tornado_executor_shutdown(tornado_executor *executor, bool cancel);

/* Shuts it down, without `cancel` when that was not done before, and frees it. NULL is allowed. */
TORNADO_API void tornado_executor_free(tornado_executor *executor);

/*============================================================================
 * section: address (public)
 * Socket addresses as values.
 *============================================================================*/

/* An IPv4, IPv6 or unix address: what the system calls a sockaddr, without its headers. */
typedef struct tornado_address {
    unsigned len;
    union {
        unsigned char bytes[112];
        uint64_t align;
    } sockaddr;
} tornado_address;

/* "127.0.0.1:8888", "[::1]:8888", "unix:/run/app.sock", "unix:@abstract": enough for any address. */
#define TORNADO_ADDRESS_MAX 136

/* An address of an IP address as text (IPv6 may carry a scope, "fe80::1%eth0") and a port. No names are looked up.
   False with TORNADO_ERR_INVALID for anything else. */
TORNADO_API bool tornado_address_ip(tornado_address *address, const char *ip, int port);

/* An address of a unix socket's path; "@name" is a name in Linux's abstract namespace. False when it is too long or
   empty. */
TORNADO_API bool tornado_address_unix(tornado_address *address, const char *path);

/* Writes an address as above and returns `out`. */
TORNADO_API char *tornado_address_format(const tornado_address *address, char out[TORNADO_ADDRESS_MAX]);

/* The port, or 0 for a unix socket. */
TORNADO_API int tornado_address_port(const tornado_address *address);

/* Where a socket is bound, or whom it is connected to. False with TORNADO_ERR_SYSTEM. */
TORNADO_API bool tornado_address_local(tornado_address *address, int fd);
TORNADO_API bool tornado_address_peer(tornado_address *address, int fd);

/* Whether text is an IPv4 or IPv6 address, as inet_pton reads it. NULL, empty text and text with a port are not. */
TORNADO_API bool tornado_is_valid_ip(const char *ip);

/*============================================================================
 * section: iostream (public)
 * Reading from and writing to non-blocking sockets and pipes.
 *
 * One read at a time; writes queue. What a read gives lives until the next read on the stream, or until the stream
 * is released. A stream counts references; whoever made it has one.
 *============================================================================*/

typedef struct tornado_iostream tornado_iostream;

typedef struct tornado_iostream_options {
    int64_t max_buffer_size;       /* bytes received and not yet read, at most; default 100 MiB */
    int64_t max_write_buffer_size; /* bytes written and not yet sent, at most; default TORNADO_NONE */
} tornado_iostream_options;

/* A stream over a socket, connected or about to be, or over an end of a pipe (Tornado's PipeIOStream). Takes the fd
   over, also when it fails, and makes it non-blocking. NULL with the reason. */
TORNADO_API tornado_iostream *tornado_iostream_new(int fd, const tornado_iostream_options *options);

/* Adds a reference, and returns the stream. */
TORNADO_API tornado_iostream *tornado_iostream_retain(tornado_iostream *stream);

/* Gives a reference back; with the last the stream is closed and freed. NULL is allowed. */
TORNADO_API void tornado_iostream_release(tornado_iostream *stream);

/* Connects. The future's result is the stream (borrowed); TORNADO_ERR_SYSTEM or _CLOSED when it fails, and the
   stream is closed. Writing before it is connected is allowed. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_connect(tornado_iostream *stream,
                                                                      const tornado_address *address);

/* Reads exactly `count` bytes. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_read_bytes(tornado_iostream *stream, size_t count);

/* Reads up to and including a delimiter, which is copied. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_read_until(tornado_iostream *stream,
                                                                         const char *delimiter);

/* Reads up to and including what a pattern matches first in all that has come so far; in linear time. The pattern
   must live until the read is done. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_read_until_regex(tornado_iostream *stream,
                                                                               const tornado_regex *regex);

/* Reads all until the peer closes. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_read_until_close(tornado_iostream *stream);

/* Every way to read in one struct: set exactly one of bytes, until, until_regex and until_close. */
typedef struct tornado_read_options {
    size_t bytes;          /* this many; zero with all others unset reads nothing and completes */
    bool partial;          /* with bytes: as soon as there are any, and never more than that */
    tornado_bytes until;   /* a delimiter; not empty; copied */
    const tornado_regex *until_regex; /* borrowed */
    size_t max_bytes;      /* with until and until_regex: closes the stream (TORNADO_ERR_UNSATISFIABLE) when that does
                              not end within so many bytes; default: the buffer's limit */
    bool until_close;
    /* With bytes or until_close: called with the data as it comes, in turns of the loop of their own; the result is
       then empty. The chunk lives until it returns. It may close the stream. */
    void (*streaming_callback)(tornado_bytes chunk, void *arg);
    void *arg;
} tornado_read_options;

/* The future's result is a tornado_bytes with a NUL behind it. TORNADO_ERR_CLOSED when the stream closes before the
   read is complete (tornado_iostream_error tells why), TORNADO_ERR_STATE while another read is under way,
   TORNADO_ERR_BUFFER_FULL when more than max_buffer_size would be needed, which closes the stream. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_read(tornado_iostream *stream,
                                                                   const tornado_read_options *options);

/* Writes. What the socket does not take at once is copied, so `data` is free when this returns. Done when all of it
   has been handed to the system. TORNADO_ERR_CLOSED, or TORNADO_ERR_BUFFER_FULL when nothing of it was taken. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_iostream_write(tornado_iostream *stream, tornado_bytes data);

/* Closes the stream now: what is not sent is dropped, pending futures fail with TORNADO_ERR_CLOSED, and the close
   callback runs in the next turn. What was received can still be read. Closing twice is harmless. */
TORNADO_API void tornado_iostream_close(tornado_iostream *stream);

/* Has callback(arg) run once, after the stream was closed and all that was received has been read. NULL takes it
   back. */
TORNADO_API void tornado_iostream_set_close_callback(tornado_iostream *stream, tornado_callback callback,
                                                     void *arg);

/* Sends small writes at once (Nagle's algorithm off). TCP only; ignored elsewhere. */
TORNADO_API void tornado_iostream_set_nodelay(tornado_iostream *stream, bool value);

/* Whether it is closed; whether a read is under way; whether written bytes wait to be sent. */
TORNADO_API bool tornado_iostream_closed(const tornado_iostream *stream);
TORNADO_API bool tornado_iostream_reading(const tornado_iostream *stream);
TORNADO_API bool tornado_iostream_writing(const tornado_iostream *stream);

/* The descriptor, or -1 when it is closed. It stays the stream's. */
TORNADO_API int tornado_iostream_fileno(const tornado_iostream *stream);

/* Why the stream closed when that was an error, or NULL. Lives as long as the stream. */
TORNADO_API const tornado_error *tornado_iostream_error(const tornado_iostream *stream);

/* Bytes received and not yet read, and written and not yet sent. */
TORNADO_API size_t tornado_iostream_read_buffer_size(const tornado_iostream *stream);
TORNADO_API size_t tornado_iostream_write_buffer_size(const tornado_iostream *stream);

/*============================================================================
 * section: netutil (public)
 * Listening sockets, and sockets for datagrams.
 *============================================================================*/

typedef struct tornado_bind_options {
    const char *address;   /* an IP address or a name; default (NULL or ""): every interface, IPv4 and IPv6 */
    const char *unix_socket; /* a path instead: then the port does not count */
    int unix_mode;         /* the socket file's permissions; default 0600 */
    int backlog;           /* default 128 */
    int flags;             /* AI_... for getaddrinfo; default AI_PASSIVE */
    bool reuse_port;       /* SO_REUSEPORT: several processes may listen on the port */
    bool ipv4_only, ipv6_only;
} tornado_bind_options;

/* Listening sockets, non-blocking and close-on-exec; the caller's to close. */
typedef struct tornado_sockets {
    int count;
    int fds[16];
    int port; /* the one that was bound, also when 0 asked for any free one; 0 for a unix socket */
} tornado_sockets;

/* Listens on a port (0 to 65535; 0 picks one, the same for IPv4 and IPv6). False with one clear line in
   tornado_last_error(), and nothing stays open. */
TORNADO_API bool tornado_bind_sockets(tornado_sockets *sockets, int port, const tornado_bind_options *options);

/* Listens on a unix socket. A socket that is already there and that nobody listens on is replaced, any other file
   is left alone and is an error. Returns the fd, or -1 with the reason. `mode` 0 means 0600, `backlog` 0 means 128.
   A path of "@name" is in Linux's abstract namespace: no file, and no mode. */
TORNADO_API int tornado_bind_unix_socket(const char *path, int mode, int backlog);

/* Listening sockets that a supervisor opened before it ran this process, as systemd does ("socket activation"):
   LISTEN_FDS of them from descriptor 3 on, if LISTEN_PID is this process. With a name only those that have it in
   LISTEN_FDNAMES; NULL: all. They are made non-blocking and close-on-exec; ask before forking. True without any
   when none was handed over; false with TORNADO_ERR_INVALID, and all as they were, when these variables make no
   sense or one of the descriptors is no listening socket, with TORNADO_ERR_LIMIT when there are too many. */
TORNADO_API bool tornado_listen_fds(tornado_sockets *sockets, const char *name);

/* Closes all of them. */
TORNADO_API void tornado_sockets_close(tornado_sockets *sockets);

/* Calls callback(fd, address, arg) for each connection that comes in on a listening socket, at most 128 in a row;
   fd is non-blocking, close-on-exec and the callback's to close. When the process is out of descriptors it pauses
   for a moment and goes on. The socket is made non-blocking and stays the caller's. NULL with the reason. */
typedef struct tornado_acceptor tornado_acceptor;
typedef void (*tornado_accept_callback)(int fd, const tornado_address *address, void *arg);
TORNADO_API tornado_acceptor *tornado_add_accept_handler(int fd, tornado_accept_callback callback, void *arg);
TORNADO_API void tornado_remove_accept_handler(tornado_acceptor *acceptor);

/* A socket for datagrams: UDP, or a unix socket. With an address of its own it receives what is sent there; with a
   peer it sends to that one and receives from nobody else.

       tornado_address_ip(&address, "127.0.0.1", 5353);
       tornado_datagram_socket *s = tornado_datagram_socket_new(&(tornado_datagram_options){.local = &address});
       for (;;) {
           tornado_scope_enter(&scope);
           const tornado_datagram *d = tornado_await(tornado_datagram_socket_receive(s));
           tornado_await(tornado_datagram_socket_send_to(s, &d->from, d->data));
           tornado_scope_leave(&scope);        // and with it the datagram
       }
*/
typedef struct tornado_datagram_socket tornado_datagram_socket;

typedef struct tornado_datagram_options {
    const tornado_address *local; /* where it is bound; port 0 picks one. Default: as the system likes, for the peer */
    const tornado_address *peer;  /* whom it is connected to; default: nobody */
    int64_t max_write_buffer_size; /* bytes of memory for what waits to be sent; default 256 KiB */
    int unix_mode;                /* permissions of a unix socket's file; default 0600 */
    bool reuse_port;              /* SO_REUSEPORT: several sockets may share the port, and what comes */
    bool broadcast;               /* may send to a broadcast address */
} tornado_datagram_options;

/* Opens one, on the current loop; an address is given of its own, a peer's, or both. A unix socket's file is replaced
   as by tornado_bind_unix_socket, and stays. NULL with the reason. */
TORNADO_API tornado_datagram_socket *tornado_datagram_socket_new(const tornado_datagram_options *options);

/* Closes it. Who waits for a datagram, or for one to be sent, fails with TORNADO_ERR_CLOSED. NULL is allowed. */
TORNADO_API void tornado_datagram_socket_free(tornado_datagram_socket *socket);

/* What came in one datagram; it may be empty. */
typedef struct tornado_datagram {
    tornado_bytes data;   /* with a NUL behind it */
    tornado_address from; /* its len is 0 for a unix socket that is not bound */
    bool truncated;       /* it was longer than 65,536 bytes, and the rest is lost */
} tornado_datagram;

/* Done with the next datagram, a tornado_datagram, which lives as long as the future. When several wait, who has
   waited longest comes first; who releases his future waits no longer. Datagrams that nobody waits for stay with the
   system, which drops them when its buffer is full. TORNADO_ERR_SYSTEM when it reports an error, such as that nobody
   listens at the peer's port (ECONNREFUSED): the socket can be used all the same. With a timeout it fails with
   TORNADO_ERR_TIMEOUT when the time is up. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_datagram_socket_receive(tornado_datagram_socket *socket);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_datagram_socket_receive_timeout(
    tornado_datagram_socket *socket, double seconds);

/* Sends a datagram, to the peer or to an address. Done when the system has taken it. What it does not take at once
   is copied, so `data` is free when this returns. TORNADO_ERR_SYSTEM when the system refuses it (EMSGSIZE: it is too
   long; an error of an earlier one, too), TORNADO_ERR_BUFFER_FULL when too many wait. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_datagram_socket_send(tornado_datagram_socket *socket,
                                                                          tornado_bytes data);
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_datagram_socket_send_to(tornado_datagram_socket *socket,
                                                                             const tornado_address *to,
                                                                             tornado_bytes data);

/* The descriptor, to ask for its address or to set options; it stays the socket's. And how many bytes of memory
   those take that wait to be sent. */
TORNADO_API int tornado_datagram_socket_fileno(const tornado_datagram_socket *socket);
TORNADO_API size_t tornado_datagram_socket_write_buffer_size(const tornado_datagram_socket *socket);

/*============================================================================
 * section: process (public)
 * One server in several processes; other programs as subprocesses.
 *
 *     static const char *const sort[] = {"sort", "-r", NULL};
 *     tornado_subprocess_options options = {.std_in = TORNADO_STREAM, .std_out = TORNADO_STREAM};
 *     tornado_subprocess *child = tornado_subprocess_new(sort, &options);
 *     if (!child)
 *         tornado_raise_error(tornado_last_error());
 *     tornado_defer(free_subprocess, child);
 *     tornado_await(tornado_iostream_write(tornado_subprocess_stdin(child), text));
 *     tornado_iostream_close(tornado_subprocess_stdin(child));
 *     tornado_iostream *out = tornado_subprocess_stdout(child);
 *     tornado_bytes sorted = tornado_await_bytes(tornado_iostream_read_until_close(out));
 *     tornado_await(tornado_subprocess_wait_for_exit(child, true));
 *============================================================================*/

/* How many processors this process may use, at least 1: those of its affinity, fewer when a limit of its control
   groups (a container's) allows less time. */
TORNADO_API int tornado_cpu_count(void);

/* Where a number of processes is asked for: tornado_cpu_count(). */
#define TORNADO_PER_CORE (-1)

/* Becomes `processes` children (0 or less: one per core) of this process, which looks after them and does not come
   back: in each child this returns its task id, from 0 up. A child that dies of a signal, or exits with another
   status than 0, is started again with the same id, up to max_restarts times in all (Tornado's default is 100;
   TORNADO_NONE: without limit). The parent exits with 0 when all have exited with 0. SIGTERM and SIGINT for the
   parent, unless it ignores or handles them, are passed on to the children, which are not started again; when one
   of these does not exit with 0 the parent dies of that signal, too.

   Returns -1 in the parent when it cannot start them, or gives up: the other children were ended then (SIGTERM).
   Open listening sockets before, and everything of a loop after: TORNADO_ERR_STATE while there is an open loop. */
TORNADO_API int tornado_fork_processes(int processes, int max_restarts);

/* The id of this process, or -1 when it was not made by tornado_fork_processes. */
TORNADO_API int tornado_task_id(void);

/* Another program that runs. Of the loop that was current when it was made. */
typedef struct tornado_subprocess tornado_subprocess;

/* What a standard descriptor of a subprocess is: inherited (0), a descriptor of this process (above 0), or: */
enum {
    TORNADO_STREAM = -1,  /* the other end of a pipe, of which this end is a stream */
    TORNADO_STDOUT = -2,  /* for std_err: the same as std_out */
    TORNADO_DEVNULL = -3  /* /dev/null */
};

/* The return code of a subprocess that has not ended. */
#define TORNADO_RUNNING (-2147483647 - 1)

typedef struct tornado_subprocess_options {
    int std_in, std_out, std_err;
    const char *cwd;         /* where it begins; default: here. A program's relative path is looked up there */
    const char *const *env;  /* "NAME=value"..., NULL; default: this process's */
    bool new_session;        /* setsid: a process group of its own, and no terminal */
} tornado_subprocess_options;

/* Runs the program argv[0], looked up in PATH (this process's) unless it has a slash, with the arguments argv, up
   to a NULL. It gets no descriptors but the standard three, SIGPIPE is as by default, other ignored signals stay
   ignored. Strings and descriptors are borrowed until this returns. NULL with the reason, also when the program
   cannot be run. */
TORNADO_API tornado_subprocess *tornado_subprocess_new(const char *const *argv,
                                                       const tornado_subprocess_options *options);

/* The same with a command of /bin/sh. Never put into it what others have written. */
TORNADO_API tornado_subprocess *tornado_subprocess_shell(const char *command,
                                                         const tornado_subprocess_options *options);

/* Closes its streams, unless somebody else holds them, and takes the exit callback back. The process goes on, and
   is waited for when it ends while its loop is open; futures of its end stay valid. NULL is allowed. */
TORNADO_API void tornado_subprocess_free(tornado_subprocess *process);

/* Its streams, or NULL where TORNADO_STREAM was not asked for; borrowed. */
TORNADO_API tornado_iostream *tornado_subprocess_stdin(const tornado_subprocess *process);
TORNADO_API tornado_iostream *tornado_subprocess_stdout(const tornado_subprocess *process);
TORNADO_API tornado_iostream *tornado_subprocess_stderr(const tornado_subprocess *process);

/* Its process id; that of another process, perhaps, once it has ended. */
TORNADO_API int tornado_subprocess_pid(const tornado_subprocess *process);

/* What it exited with, or minus the signal that killed it, as in Python; TORNADO_RUNNING. 255, and a warning
   is logged, when somebody else has waited for it. */
TORNADO_API int tornado_subprocess_returncode(const tornado_subprocess *process);

/* Sends a signal. False (TORNADO_ERR_STATE) when it has ended. */
TORNADO_API bool tornado_subprocess_send_signal(tornado_subprocess *process, int number);

/* Has callback(returncode, arg) run once, in a turn of the loop, when it has ended. NULL takes it back. */
typedef void (*tornado_exit_callback)(int returncode, void *arg);
TORNADO_API void tornado_subprocess_set_exit_callback(tornado_subprocess *process, tornado_exit_callback callback,
                                                      void *arg);

/* Done when it has ended, with its return code (tornado_await_integer). With `raise_error` any but 0 is a failure,
   TORNADO_ERR_CALLED_PROCESS. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_subprocess_wait_for_exit(tornado_subprocess *process,
                                                                              bool raise_error);

/* The end of a subprocess is noticed by a descriptor (Linux 5.3), or, where the system has none, by SIGCHLD, whose
   handler is installed when it is first needed, calls the one before it, and can serve 64 loops. initialize
   installs it now, for every subprocess of the process from now on; uninitialize puts back what was there, if no
   other came later: what SIGCHLD was to tell is then not noticed. False with TORNADO_ERR_SYSTEM. */
TORNADO_API bool tornado_subprocess_initialize(void);
TORNADO_API void tornado_subprocess_uninitialize(void);

/*============================================================================
 * section: resolver (public)
 * From names to addresses: by the system, on threads or blocking; by DNS, without either; by a table.
 *
 *     const tornado_addresses *found = tornado_await(tornado_resolver_resolve(resolver, "example.com", 80, 0));
 *     for (size_t i = 0; i < found->count; i++)
 *         printf("%s\n", tornado_address_format(&found->items[i], text));
 *============================================================================*/

typedef struct tornado_resolver tornado_resolver;
typedef struct tornado_resolver_options tornado_resolver_options;

/* What resolving gives: at least one address, the best first. */
typedef struct tornado_addresses {
    size_t count;
    const tornado_address *items;
} tornado_addresses;

/* A way to resolve. A program may bring its own: open gives a state, or NULL with the reason, and is NULL where the
   state is to be options->arg; the future of resolve, of the current loop, has a tornado_addresses as its result, or
   an error; close may be NULL. The strings live until resolve returns; host is not empty and has 255 bytes at most,
   port is 0 to 65535, family is AF_INET, AF_INET6 or 0. */
typedef struct tornado_resolver_class {
    void *(*open)(const tornado_resolver_options *options);
    tornado_future *(*resolve)(void *state, const char *host, int port, int family);
    void (*close)(void *state);
} tornado_resolver_class;

/* blocking: asks the system (getaddrinfo), and the loop stands still meanwhile.
   threaded: asks the system on a thread of the process's own executor, or of a pool that has `num_threads` and is
   shared by all such resolvers; the first decides how many.
   executor: asks the system on a thread of the executor given.
   override: looks into a table first, then asks another resolver.
   dns: asks name servers itself, without blocking and without threads, as /etc/resolv.conf and /etc/hosts say; other
   ways of the system (nsswitch.conf, mDNS) it does not know. It keeps answers for as long as they say, and takes only
   those that come from the server asked and repeat the question, with a random id and random case. */
TORNADO_API const tornado_resolver_class tornado_blocking_resolver;
TORNADO_API const tornado_resolver_class tornado_threaded_resolver;
TORNADO_API const tornado_resolver_class tornado_executor_resolver;
TORNADO_API const tornado_resolver_class tornado_override_resolver;
TORNADO_API const tornado_resolver_class tornado_dns_resolver;

/* An entry of the override resolver's table: `host` stands for `to`, a name or an IP address. */
typedef struct tornado_resolver_override {
    const char *host; /* as in the call; a NULL ends the table */
    int port;         /* only for this port; 0: any */
    int family;       /* only when this one is asked for (AF_INET, AF_INET6); 0: any */
    const char *to;
    int to_port;      /* 0: the one asked for */
} tornado_resolver_override;

struct tornado_resolver_options {
    const tornado_resolver_class *kind;         /* default: as tornado_resolver_configure chose, else threaded
                                                   (with TORNADO_NO_THREADS: dns) */
    int num_threads;                            /* threaded */
    tornado_executor *executor;                 /* executor; NULL: the process's own */
    bool keep_executor;                         /* executor: it is not freed with the resolver */
    const tornado_resolver_override *overrides; /* override; copied, and the first that fits counts */
    tornado_resolver *resolver;                 /* override: the other, borrowed; default: one of its own, as
                                                   configured unless that is an override */
    /* Of dns. Files are looked at again when they have changed. */
    const char *resolv_conf;                    /* default "/etc/resolv.conf" */
    const char *hosts;                          /* default "/etc/hosts" */
    const char *const *nameservers;             /* instead of the file's: "127.0.0.1", "[::1]:53"..., NULL; 8 at most */
    int nameserver_port;                        /* where none is given; default 53 */
    double timeout;                             /* seconds until the next server is asked; default the file's, or 5 */
    int attempts;                               /* rounds through all servers; default the file's, or 2 */
    int cache_size;                             /* answers kept; default 1000; TORNADO_NONE: none */
    void *arg;                                  /* for a class of the program */
};

/* Chooses what resolvers made from now on are, for the process; the struct is copied, what it points to must stay.
   NULL is the default again. Call it before threads start. */
TORNADO_API void tornado_resolver_configure(const tornado_resolver_options *options);

/* A resolver, of the current loop. The caller frees it. NULL with the reason. */
TORNADO_API tornado_resolver *tornado_resolver_new(const tornado_resolver_options *options);

/* Frees it. Lookups under way of the dns kind fail with TORNADO_ERR_CLOSED, of the others they go on. NULL is allowed.
   */
TORNADO_API void tornado_resolver_free(tornado_resolver *resolver);

/* Resolves a name or an IP address, for both families or, with AF_INET or AF_INET6, for one. The future's result is a
   tornado_addresses, which lives as long as the future. TORNADO_ERR_RESOLVE when there is no such name, or no address
   of that family (sys_errno is ENOENT), or that cannot be found out now (EAGAIN); TORNADO_ERR_INVALID for what is no
   name; TORNADO_ERR_LIMIT when too much is under way. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_resolver_resolve(tornado_resolver *resolver, const char *host,
                                                                      int port, int family);

/*============================================================================
 * section: tcp (public)
 * A server that runs a function, as a coroutine, for each connection.
 *============================================================================*/

typedef struct tornado_tcpserver tornado_tcpserver;

/* Runs as a coroutine. When it returns, or unwinds, the stream is closed, unless somebody else holds a reference.
   That the peer closed is the usual end and is not logged; other errors are. */
typedef void (*tornado_stream_handler)(tornado_iostream *stream, void *arg);

typedef struct tornado_tcpserver_options {
    const char *name;                /* for log lines; borrowed; default "tcpserver" */
    int max_connections;             /* at once; more are closed at once; default TORNADO_NONE */
    tornado_iostream_options stream;
} tornado_tcpserver_options;

/* A server on the current loop. NULL when memory is short. */
TORNADO_API tornado_tcpserver *tornado_tcpserver_new(tornado_stream_handler handle_stream, void *arg,
                                                     const tornado_tcpserver_options *options);

/* Starts to accept on a port, right away; may be called again for others. False with the reason, which is logged
   too. */
TORNADO_API bool tornado_tcpserver_listen(tornado_tcpserver *server, int port, const tornado_bind_options *options);

/* Starts to accept on sockets that listen already; the server closes them. */
TORNADO_API bool tornado_tcpserver_add_sockets(tornado_tcpserver *server, const tornado_sockets *sockets);
TORNADO_API bool tornado_tcpserver_add_socket(tornado_tcpserver *server, int fd);

/* The port of the first listening socket; 0 when there is none or it is a unix socket. */
TORNADO_API int tornado_tcpserver_port(const tornado_tcpserver *server);

/* Stops accepting and closes the listening sockets. Connections go on. */
TORNADO_API void tornado_tcpserver_stop(tornado_tcpserver *server);

/* Stops, and frees the server when its last connection has ended. NULL is allowed. */
TORNADO_API void tornado_tcpserver_free(tornado_tcpserver *server);

/*============================================================================
 * section: httputil (public)
 * What HTTP messages are made of.
 *============================================================================*/

/* The standard reason phrase of a status, "Not Found", or NULL. RFC 9110 section 15. */
TORNADO_API const char *tornado_http_reason(int status);

/* One header line; both strings end with a NUL. */
typedef struct tornado_http_header {
    const char *name, *value;
    uint32_t name_len, value_len;
} tornado_http_header;

/* Headers in the order they came. */
typedef struct tornado_http_headers {
    const tornado_http_header *items;
    size_t count;
} tornado_http_headers;

/* The first header of that name, in any case, or NULL. With `after`, the first behind that one, so that a loop sees
   all:
       for (h = NULL; (h = tornado_http_headers_find(headers, "Via", h)) != NULL;) ... */
TORNADO_API const tornado_http_header *
tornado_http_headers_find(const tornado_http_headers *headers, const char *name, const tornado_http_header *after);

/* A request as it came from the client. All of it lives as long as the request; strings end with a NUL. */
typedef struct tornado_http_request {
    const char *method;      /* "GET" */
    const char *uri;         /* the target as it was sent */
    const char *path;        /* its path, not decoded */
    const char *query;       /* behind the "?", or "" */
    const char *version;     /* "HTTP/1.1" */
    const char *host;        /* the Host header, or the authority of the target, or "127.0.0.1" */
    const char *protocol;    /* "http" */
    const char *remote_ip;   /* "0.0.0.0" for a unix socket */
    tornado_http_headers headers;
    tornado_http_headers trailers;  /* behind a chunked body */
    tornado_bytes body;      /* with a NUL behind it */
    tornado_arena *arena;
    void *context;           /* the delegate's own */
} tornado_http_request;

/* The URL that the client asked for, in the request's arena; its host in lower case, without the port. NULL when
   memory is short. */
TORNADO_API char *tornado_http_request_full_url(const tornado_http_request *request);
TORNADO_API char *tornado_http_request_host_name(const tornado_http_request *request);

/* The value of a header, "" never being NULL; NULL when there is none. Several of one name are joined by ",". */
TORNADO_API const char *tornado_http_request_header(tornado_http_request *request, const char *name);

/* Seconds since the request's head was complete, up to its end when it is finished. */
TORNADO_API double tornado_http_request_time(const tornado_http_request *request);

/* ---- arguments: pairs of a query, a form, a Cookie header, the parameters of a header ---- */

/* A pair. Both have a NUL behind their last byte; they may hold NUL bytes and need not be UTF-8. value.data is NULL
   for a header's parameter without a value, and only there. */
typedef struct tornado_argument {
    tornado_bytes name, value;
} tornado_argument;

/* Pairs in the order they came; names may repeat. All zero is an empty list. It lives in an arena, of which each
   call that adds is given the same one; copying the struct does not copy the pairs. */
typedef struct tornado_arguments {
    tornado_argument *items;
    size_t count;
    size_t capacity;       /* this and what follows is private */
    const uint32_t *order; /* the first `ordered` of the items, by name */
    size_t ordered;
} tornado_arguments;

/* How pairs are read. Zero is the default of each. */
typedef struct tornado_arguments_options {
    bool drop_blank; /* leave out pairs without a value, "a=" and "a" */
    bool strict;     /* refuse a field without "=", and an empty one, "a&b=1" and "b=1&" */
    int max_fields;  /* those not empty, and the pairs in the list before; default 10000; TORNADO_NONE: no limit */
} tornado_arguments_options;

/* The last pair of that name, as get_argument and get_cookie have it; NULL when there is none. Names are compared
   byte by byte. The time depends on the logarithm of the number of pairs. */
TORNADO_API const tornado_argument *tornado_arguments_get(const tornado_arguments *arguments, const char *name);

/* The first pair of that name, or NULL. With `after`, a pair of the same list, the first behind that one, so that a
   loop sees all:
       for (a = NULL; (a = tornado_arguments_find(arguments, "tag", a)) != NULL;) ... */
TORNADO_API const tornado_argument *tornado_arguments_find(const tornado_arguments *arguments, const char *name,
                                                           const tornado_argument *after);

/* Adds a pair at the end; both strings are copied. Invalidates pointers to items. False when memory is short. */
TORNADO_API bool tornado_arguments_add(tornado_arena *arena, tornado_arguments *arguments, const char *name,
                                       const char *value);

/* Adds the pairs of a query, "a=1&b=two+words&c=%26". Only "&" separates, "+" is a space, %XX is decoded, a "%"
   without two digits stays, empty fields count for nothing. NULL takes all defaults. False with TORNADO_ERR_LIMIT
   for too many, TORNADO_ERR_PARSE for what `strict` refuses, TORNADO_ERR_NOMEM; nothing is added then. */
TORNADO_API bool tornado_parse_qs(tornado_arena *arena, tornado_arguments *arguments, tornado_bytes query,
                                  const tornado_arguments_options *options);

/* Adds the pairs of a form: of a body whose Content-Type is application/x-www-form-urlencoded, in any case and with
   any parameters. A body of another type has none, nor has one whose content_type is NULL: true. It fails as
   tornado_parse_qs does. */
TORNADO_API bool tornado_parse_body_arguments(tornado_arena *arena, tornado_arguments *arguments,
                                              const char *content_type, tornado_bytes body,
                                              const tornado_arguments_options *options);

/* The text of a value as get_argument gives it: control characters but TAB, LF, VT, FF and CR become spaces; with
   `strip`, white space goes from both ends: what str.strip takes in Python, U+0085, U+00A0 and U+3000 for instance,
   too. The value is not checked for UTF-8; the result, a copy, is when the value was. NULL when memory is short. */
TORNADO_API char *tornado_argument_text(tornado_arena *arena, tornado_bytes value, bool strip);

/* ---- cookies ---- */

/* Adds the pairs of a Cookie header, as browsers read them and not as any standard has it: what ";" separates,
   without white space (of ASCII) around name and value; a pair without "=" is a value whose name is ""; a value in
   double quotes loses them, and \" and \101 in it are decoded. The last of a name counts: tornado_arguments_get.
   Nothing is malformed, and of the options max_fields alone counts; NULL takes its default. False as in
   tornado_parse_qs. */
TORNADO_API bool tornado_parse_cookie(tornado_arena *arena, tornado_arguments *cookies, tornado_bytes header,
                                      const tornado_arguments_options *options);

/* How a cookie is set. Zero is the default of each; strings are borrowed. */
typedef struct tornado_cookie {
    const char *domain;   /* default: the host that sets it, and no other */
    const char *path;     /* default "/"; "" leaves it out, which means the directory of the request */
    int64_t expires;      /* seconds since 1970; any moment in the past deletes the cookie */
    double expires_days;  /* from now; not looked at when `expires` is set. Neither: when the browser ends */
    int64_t max_age;      /* seconds; below zero is written as 0, which deletes the cookie */
    bool httponly;        /* scripts do not see it */
    bool secure;          /* sent over TLS alone */
    const char *samesite; /* "Lax", "Strict" or "None" */
    bool partitioned;     /* one for each site that embeds this one; wants `secure` */
} tornado_cookie;

/* The value of a Set-Cookie header, "name=value; Path=/". The attributes come in the order Domain, expires,
   HttpOnly, Max-Age, Path, Secure, SameSite, Partitioned. A value that is more than letters, digits and
   "!#$%&'*+-.^_`|~:" is quoted as tornado_parse_cookie decodes it. NULL options take all defaults. NULL with
   TORNADO_ERR_INVALID for a name that is no token (":" may be in it) or that of an attribute, and for a control
   character, a space, ";" or DEL in domain, path or samesite. */
TORNADO_API char *tornado_format_cookie(tornado_arena *arena, const char *name, const char *value,
                                        const tornado_cookie *options);

/* ---- parameters of a header ---- */

/* Reads `form-data; name="a \"b\""; x`: returns what stands before the first ";", and adds the parameters behind
   it, with their names in lower case. In quotes, \" and \\ are decoded and any other backslash stays.
   name*=UTF-8''%c3%a9 (RFC 8187, also ISO-8859-1) is decoded and added as `name`, behind all others, so that it is
   what tornado_arguments_get finds; one that cannot be decoded is left as it is. NULL with TORNADO_ERR_LIMIT above
   1000 parameters in the list, or TORNADO_ERR_NOMEM. */
TORNADO_API char *tornado_parse_header(tornado_arena *arena, tornado_arguments *parameters, tornado_bytes line);

/* The reverse: `key; name=value; other="quoted value"; alone`. Values that are no tokens are quoted. `parameters`
   may be NULL. NULL with TORNADO_ERR_INVALID for a name that is no token and for control characters but TAB, and
   DEL. */
TORNADO_API char *tornado_encode_header(tornado_arena *arena, const char *key, const tornado_arguments *parameters);

/* ---- URLs ---- */

/* Adds arguments to a URL, behind those it has and before its fragment. `pairs` are names and values in turn, with
   a NULL in place of the next name at the end:
       tornado_url_concat(arena, "/find?a=b", (const char *[]){"c", "d e", NULL})      gives "/find?a=b&c=d+e"
   The query that is there is written anew, as Tornado does: "?x" becomes "?x=". NULL instead of a list leaves the
   URL as it is. NULL when memory is short. */
TORNADO_API char *tornado_url_concat(tornado_arena *arena, const char *url, const char *const *pairs);
TORNADO_API char *tornado_url_concat_arguments(tornado_arena *arena, const char *url,
                                               const tornado_arguments *arguments);

/* The host of "host:port", with the brackets of an IPv6 literal; *port is its port, or -1 when there is none or
   nothing behind the colon. Text with several colons and no brackets is an IPv6 address without a port. NULL with
   TORNADO_ERR_PARSE for a port that is no number up to 65535, no host before a colon, and brackets out of place.
   *port is then unchanged. */
TORNADO_API char *tornado_split_host_and_port(tornado_arena *arena, const char *netloc, int *port);

/* The parts of a URL, or of a reference that is relative to one. RFC 3986. They are not decoded. NULL: there is no
   such part, which differs from an empty one. */
typedef struct tornado_url {
    const char *scheme;    /* in lower case */
    const char *authority; /* "user:password@host:port" */
    const char *userinfo;  /* "user:password" */
    const char *host;      /* in lower case, an IPv6 address without brackets; "" only where the authority is "" */
    const char *path;      /* "" when there is none */
    const char *query;     /* behind "?" */
    const char *fragment;  /* behind "#" */
    int port;              /* -1: none */
} tornado_url;

/* Takes a URL apart; the strings live in the arena. False, with *url unchanged and TORNADO_ERR_PARSE, for spaces
   and control characters anywhere, for a backslash before the query, for an authority that is not as RFC 3986
   section 3.2 has it, and for a colon in a first segment that is no scheme; TORNADO_ERR_LIMIT above 64 KiB. Bytes
   beyond ASCII in path, query and fragment stay as they are. */
TORNADO_API bool tornado_url_split(tornado_arena *arena, tornado_url *url, const char *text);

/* The URL that a reference means at a base, as of a Location header at the URL of the request: RFC 3986 section
   5.2. NULL as above, and with TORNADO_ERR_INVALID for a base without a scheme. */
TORNADO_API char *tornado_url_join(tornado_arena *arena, const char *base, const char *reference);

/*============================================================================
 * section: http1 (public)
 * HTTP/1.x connections. RFC 9112, strictly: what is ambiguous is refused.
 *============================================================================*/

/* Limits and times, each with an answer: 431, 414, 413, 408. */
typedef struct tornado_http1_params {
    bool no_keep_alive;             /* close after each answer */
    size_t max_header_size;         /* bytes of a request's head, and of its trailers; default 64 KiB */
    int64_t max_body_size;          /* default 100 MiB */
    double idle_connection_timeout; /* seconds without a request, or without progress of an answer; default 3600 */
    double header_timeout;          /* from a request's first byte to the end of its head; default 60 */
    double body_timeout;            /* from there to the end of the body; default TORNADO_NONE: then
                                       idle_connection_timeout counts from the last byte that came */
} tornado_http1_params;

/* Who handles requests. All functions run on the loop's stack and must not wait; NULL ones are skipped. */
typedef struct tornado_http_delegate {
    /* The head is complete. The delegate may set request->context. */
    void (*headers_received)(tornado_http_request *request, void *arg);
    /* A piece of the body. Without this function the body is collected in request->body. */
    void (*data_received)(tornado_http_request *request, tornado_bytes chunk);
    /* The request is complete and waits for its answer. */
    void (*finish)(tornado_http_request *request);
    /* The client is gone before the answer was finished. */
    void (*on_connection_close)(tornado_http_request *request);
    /* Nobody will use the request any more. */
    void (*release)(tornado_http_request *request);
} tornado_http_delegate;

/* Keep a request beyond the end of its answer, and let it go. */
TORNADO_API void tornado_http_request_retain(tornado_http_request *request);
TORNADO_API void tornado_http_request_release(tornado_http_request *request);

/* What an answer begins with. */
typedef struct tornado_http_response_start {
    int status;
    const char *reason;           /* default: the standard's; bytes that may not stand there make it "Unknown" */
    tornado_http_headers headers; /* values may not contain CR, LF or NUL: then nothing is sent and it fails */
    int64_t content_length;       /* of a body to come; 0: none; TORNADO_NONE: not known, so it is chunked, or ends
                                     with the connection */
} tornado_http_response_start;

/* Starts an answer, adds to its body, ends it. write_headers may be called once. False with TORNADO_ERR_STATE out
   of order, with TORNADO_ERR_INVALID for a header that cannot be sent and for a body that is longer or shorter than
   was said, which closes the connection, as does TORNADO_ERR_NOMEM; and TORNADO_ERR_CLOSED when the client is gone.
   Date, Server and Connection are added. */
TORNADO_API bool tornado_http_request_write_headers(tornado_http_request *request,
                                                    const tornado_http_response_start *start);
TORNADO_API bool tornado_http_request_write(tornado_http_request *request, tornado_bytes data);
TORNADO_API bool tornado_http_request_finish(tornado_http_request *request);

/*============================================================================
 * section: httpserver (public)
 * A server of HTTP over the listening sockets it is given.
 *============================================================================*/

typedef struct tornado_httpserver tornado_httpserver;

typedef struct tornado_httpserver_options {
    tornado_bind_options bind;     /* for listen: address, unix socket, ... */
    tornado_http1_params http;
    int max_connections;           /* at once; more are closed at once; default TORNADO_NONE */
} tornado_httpserver_options;

/* A server on the current loop. The delegate is copied, its functions get `arg`. NULL when memory is short. */
TORNADO_API tornado_httpserver *tornado_httpserver_new(const tornado_http_delegate *delegate, void *arg,
                                                       const tornado_httpserver_options *options);

/* Starts to accept on a port, right away. With options, their bind part is used. False with the reason, which is
   logged too. */
TORNADO_API bool tornado_httpserver_listen(tornado_httpserver *server, int port,
                                           const tornado_bind_options *options);
TORNADO_API bool tornado_httpserver_add_sockets(tornado_httpserver *server, const tornado_sockets *sockets);
TORNADO_API bool tornado_httpserver_add_socket(tornado_httpserver *server, int fd);

/* The port of the first listening socket; 0 when there is none or it is a unix socket. */
TORNADO_API int tornado_httpserver_port(const tornado_httpserver *server);

/* How many connections are open. */
TORNADO_API size_t tornado_httpserver_connections(const tornado_httpserver *server);

/* Stops accepting and closes the listening sockets. Connections go on. */
TORNADO_API void tornado_httpserver_stop(tornado_httpserver *server);

/* Closes every connection now; requests under way see their client gone. */
TORNADO_API void tornado_httpserver_close_all_connections(tornado_httpserver *server);

/* Stops, closes all connections and frees the server. NULL is allowed. */
TORNADO_API void tornado_httpserver_free(tornado_httpserver *server);

/*============================================================================
 * section: routing (public)
 * Which handler a request goes to.
 *
 * A path is a pattern (see the regex section) that has to match the whole path as the client sent it, not decoded.
 * Its groups become the handler's path arguments, decoded: all by position, those with a name also by that. The
 * first rule that matches wins. However many rules there are, only those are tried that begin like the path.
 *============================================================================*/

typedef struct tornado_handler tornado_handler;
typedef struct tornado_handler_class tornado_handler_class;

/* One rule; a list of them ends with one that is all zero. */
typedef struct tornado_rule {
    const char *path; /* NULL: any */
    const tornado_handler_class *handler;
    void *data;       /* for the handler's initialize: self->data; borrowed */
    const char *name; /* for tornado_reverse_url */
    const char *host; /* a pattern for the whole host, without its port, in lower case; NULL: any */
    /* Instead of a handler: further rules, tried when path and host match, and left again when none of them does.
       */
    const struct tornado_rule *rules;
} tornado_rule;

/*============================================================================
 * section: web (public)
 * The application, and the request handler with its short names.
 *
 * A handler object lives as long as its request. Its functions run in the request's own coroutine, and each may
 * wait. What they allocate from self->arena, and what waits return, is freed with the request.
 *============================================================================*/

typedef struct tornado_application tornado_application;

struct tornado_handler {
    const tornado_handler_class *cls;  /* of the object, with every entry filled in */
    tornado_application *application;
    tornado_http_request *request;
    tornado_arena *arena;              /* the request's */
    void *data;                        /* of the rule */
    struct tornado__response *response; /* private */
};

/* A method beyond the seven, such as WebDAV's. */
typedef struct tornado_method {
    const char *name; /* "PROPFIND" */
    void (*run)(tornado_handler *self);
} tornado_method;

/* What a Python subclass overrides. An entry that is NULL is the parent's, and without one Tornado's own. Structs
   are copied when the application is made. */
struct tornado_handler_class {
    const tornado_handler_class *parent;
    const char *name;     /* for the log; default "handler" */
    size_t instance_size; /* of a struct that begins with a tornado_handler; its other bytes start as zero */
    const tornado_method *methods; /* besides the parents'; a list that ends with one that is all zero; NULL: none */
    /* Also called when an error discards the headers that were set. */
    void (*set_default_headers)(tornado_handler *self);
    void (*initialize)(tornado_handler *self);
    /* Before the verb; when it finishes the request, the verb is skipped. */
    void (*prepare)(tornado_handler *self);
    void (*get)(tornado_handler *self);
    void (*head)(tornado_handler *self);
    void (*post)(tornado_handler *self);
    void (*delete_)(tornado_handler *self);
    void (*patch)(tornado_handler *self);
    void (*put)(tornado_handler *self);
    void (*options)(tornado_handler *self);
    /* After the answer was handed over; may not write. */
    void (*on_finish)(tornado_handler *self);
    /* The client is gone, and the handler still runs; in a coroutine of its own. */
    void (*on_connection_close)(tornado_handler *self);
    /* Writes the page of an error. `error` is what was raised, or NULL after tornado_send_error. */
    void (*write_error)(tornado_handler *self, int status, const tornado_error *error);
    void (*log_exception)(tornado_handler *self, const tornado_error *error);
    const char *(*compute_etag)(tornado_handler *self); /* with its quotes; NULL: none */
    /* The text of an argument, of the path, the query or a form; `name` is its name or NULL. Raises a 400 for one
       that is not UTF-8. A result of its own is allocated in self->arena. */
    const char *(*decode_argument)(tornado_handler *self, tornado_bytes value, const char *name);
};

/* Zero is the default of each. */
typedef struct tornado_settings {
    bool debug;                                 /* sets serve_traceback where that is not set */
    tornado_switch serve_traceback;             /* error pages tell what was raised; default off */
    const tornado_handler_class *default_handler_class; /* for paths without a rule; default: a 404 */
    void *default_handler_data;
    const char *default_host; /* requests whose host no add_handlers names are also tried as if they named this one */
    void (*log_function)(tornado_handler *self);/* instead of the access log's line */
} tornado_settings;

/* The class above `cls`, with every entry filled in, for a function of `cls` that extends what it overrides:
   tornado_super(self, &cls)->prepare(self). (self->cls->parent is another where a class inherits that function.) */
TORNADO_API const tornado_handler_class *tornado_super(const tornado_handler *self,
                                                       const tornado_handler_class *cls);

/* A handler that answers each request with a status; its data is a const int *. */
TORNADO_API const tornado_handler_class tornado_error_handler;

/* One that redirects GET and HEAD; its data is a const tornado_redirect_target *. In `url`, {0}, {1}... stand for
   path arguments and {name} for one with a name, as the client sent them; {{ and }} for braces. The query is kept.
   */
typedef struct tornado_redirect_target {
    const char *url;
    tornado_switch permanent; /* 301, else 302; default on */
} tornado_redirect_target;
TORNADO_API const tornado_handler_class tornado_redirect_handler;

/* An application. The rules and the settings are copied, handler classes and strings too. NULL with one clear line
   in tornado_last_error(), which is also logged. */
TORNADO_API tornado_application *tornado_application_new(const tornado_rule *rules,
                                                         const tornado_settings *settings);

/* Frees it and the servers of tornado_application_listen; other servers of it must have been freed. Connections are
   closed; handlers that still wait go on without a client, and keep what they need. NULL is allowed. */
TORNADO_API void tornado_application_free(tornado_application *application);

/* Adds rules for the hosts that match a pattern. They are tried before those for any host. False with the reason.
   */
TORNADO_API bool tornado_application_add_handlers(tornado_application *application, const char *host_pattern,
                                                  const tornado_rule *rules);

/* The URL of the rule of that name, with its groups replaced by `count` arguments; in the arena. NULL with
   TORNADO_ERR_INVALID when there is none, its pattern has more in it than plain groups, or the number is another.
   */
TORNADO_API char *tornado_application_reverse_url(const tornado_application *application, tornado_arena *arena,
                                                  const char *name, const char *const *args, size_t count);

/* Starts a server for the application on a port of the current loop. It belongs to the application. NULL with one
   clear line in tornado_last_error(), which is also logged. */
TORNADO_API tornado_httpserver *tornado_application_listen(tornado_application *application, int port,
                                                           const tornado_httpserver_options *options);

/* The delegate to give to a server of one's own; its arg is the application. */
TORNADO_API const tornado_http_delegate *tornado_application_delegate(void);

/* ---- output. All raise: TORNADO_ERR_STATE after finish, TORNADO_ERR_NOMEM when memory is short. ---- */

/* Adds to the answer's body. A string; bytes; text as printf prints it. Nothing is sent before flush or finish. */
TORNADO_API void tornado_write(tornado_handler *self, const char *text);
TORNADO_API void tornado_write_bytes(tornado_handler *self, tornado_bytes data);
TORNADO_API void tornado_writef(tornado_handler *self, const char *format, ...) TORNADO_PRINTF(2, 3);

/* Adds a JSON object, whose shape the format tells (see the value section), and sets the Content-Type at once.
   Raises TORNADO_ERR_INVALID for anything but an object, as a list at the top can be stolen by other sites. */
TORNADO_API void tornado_write_json(tornado_handler *self, const char *format, ...);

/* The status; the reason is the standard's. set_status_reason gives one. Raises TORNADO_ERR_INVALID for a status
   outside 100 to 999 and for one without a standard reason and none given. */
TORNADO_API void tornado_set_status(tornado_handler *self, int status);
TORNADO_API void tornado_set_status_reason(tornado_handler *self, int status, const char *reason);
TORNADO_API int tornado_get_status(const tornado_handler *self);

/* Sets a header, replacing those of that name; adds one; removes all of that name. Name and value are copied. Raise
   TORNADO_ERR_INVALID for a name that is no token and a value with control characters (RFC 9110 section 5.5). */
TORNADO_API void tornado_set_header(tornado_handler *self, const char *name, const char *value);
TORNADO_API void tornado_add_header(tornado_handler *self, const char *name, const char *value);
TORNADO_API void tornado_clear_header(tornado_handler *self, const char *name);

/* Sets a cookie, in place of one of that name that was set before; NULL options take all defaults. Cookies stay
   when an error discards headers. clear_cookie has the client drop one, which has to have the same domain and path;
   clear_all_cookies all that it sent, except those of a name that set_cookie refuses. Raise TORNADO_ERR_INVALID for
   what tornado_format_cookie refuses. */
TORNADO_API void tornado_set_cookie(tornado_handler *self, const char *name, const char *value,
                                    const tornado_cookie *options);
TORNADO_API void tornado_clear_cookie(tornado_handler *self, const char *name, const tornado_cookie *options);
TORNADO_API void tornado_clear_all_cookies(tornado_handler *self, const tornado_cookie *options);

/* Sends what was written so far, the headers first. Wait for the future to go at the client's pace. It fails with
   TORNADO_ERR_CLOSED when the client is gone. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_flush(tornado_handler *self);

/* Ends the answer. Called by itself when the verb returns. A second call is TORNADO_ERR_STATE. */
TORNADO_API void tornado_finish(tornado_handler *self);

/* Answers with a redirect, 301 when permanent, else 302, and finishes. `url` is sent as it is. Raises
   TORNADO_ERR_STATE after headers were sent, TORNADO_ERR_INVALID for control characters in it and for a status
   outside 300 to 399. */
TORNADO_API void tornado_redirect(tornado_handler *self, const char *url, bool permanent);
TORNADO_API void tornado_redirect_status(tornado_handler *self, const char *url, int status);

/* Ends the request here and now: unwinds, and finishes with what was written so far. It is no error. */
TORNADO_API TORNADO_NORETURN void tornado_raise_finish(void);

/* To be called first in a verb: makes sure that the path has a slash at its end, or has none. For GET and HEAD it
   redirects, with 301 and the query, and unwinds; for others it raises a 404. */
TORNADO_API void tornado_addslash(tornado_handler *self);
TORNADO_API void tornado_removeslash(tornado_handler *self);

/* The request does not end when its verb returns, but with tornado_finish, which may be called from any callback of
   the loop later on. The handler lives until then; after tornado_finish it may be gone. */
TORNADO_API void tornado_asynchronous(tornado_handler *self);

/* Discards what was written and set, and sends an error page by way of write_error; after the headers were sent it
   can only end the answer. */
TORNADO_API void tornado_send_error(tornado_handler *self, int status);

/* Discards headers, status and body that were set so far. */
TORNADO_API void tornado_clear(tornado_handler *self);

/* Computes the ETag and sets it; whether the client has that version already. finish does both for a 200. */
TORNADO_API void tornado_set_etag_header(tornado_handler *self);
TORNADO_API bool tornado_check_etag_header(tornado_handler *self);

/* ---- input ---- */

/* Group 0, 1... of the rule's path, or that of a name, decoded. NULL when there is none or it took no part. */
TORNADO_API const char *tornado_path_arg(const tornado_handler *self, size_t index);
TORNADO_API const char *tornado_path_kwarg(const tornado_handler *self, const char *name);

/* The last value of an argument, of the form in the body or else of the query; `fallback` when there is none, which
   may be NULL. Control characters are spaces, white space at both ends is gone. require_argument raises a 400 in
   place of a fallback. All raise a 400 for a value that is not UTF-8, and when there are more than 10,000
   arguments. */
TORNADO_API const char *tornado_get_argument(tornado_handler *self, const char *name, const char *fallback);
TORNADO_API const char *tornado_require_argument(tornado_handler *self, const char *name);

/* All values of an argument, those of the query first; a list that ends with NULL. `count` may be NULL. */
TORNADO_API const char *const *tornado_get_arguments(tornado_handler *self, const char *name, size_t *count);

/* The same of the query only, and of the form only. */
TORNADO_API const char *tornado_get_query_argument(tornado_handler *self, const char *name, const char *fallback);
TORNADO_API const char *tornado_require_query_argument(tornado_handler *self, const char *name);
TORNADO_API const char *const *tornado_get_query_arguments(tornado_handler *self, const char *name, size_t *count);
TORNADO_API const char *tornado_get_body_argument(tornado_handler *self, const char *name, const char *fallback);
TORNADO_API const char *tornado_require_body_argument(tornado_handler *self, const char *name);
TORNADO_API const char *const *tornado_get_body_arguments(tornado_handler *self, const char *name, size_t *count);

/* The pairs themselves, neither checked nor stripped. */
TORNADO_API const tornado_arguments *tornado_query_arguments(tornado_handler *self);
TORNADO_API const tornado_arguments *tornado_body_arguments(tornado_handler *self);

/* The value of a cookie that the client sent, or `fallback`; and all of them. */
TORNADO_API const char *tornado_get_cookie(tornado_handler *self, const char *name, const char *fallback);
TORNADO_API const tornado_arguments *tornado_cookies(tornado_handler *self);

/* A header of the request, several of one name joined by ","; NULL when there is none. Raises TORNADO_ERR_NOMEM. */
TORNADO_API const char *tornado_get_header(tornado_handler *self, const char *name);

/* ---- other ---- */

/* As tornado_application_reverse_url, in the request's arena. Raises the reason. */
TORNADO_API const char *tornado_reverse_url(tornado_handler *self, const char *name, const char *const *args,
                                            size_t count);

/* Text as printf prints it, in the request's arena. Raises TORNADO_ERR_NOMEM. */
TORNADO_API char *tornado_format(tornado_handler *self, const char *format, ...) TORNADO_PRINTF(2, 3);

/* Memory of the request's arena, all bits zero. Raises TORNADO_ERR_NOMEM. */
TORNADO_API void *tornado_alloc(tornado_handler *self, size_t size);

/* Starts a coroutine that keeps the request alive until it ends; it runs in the request's arena. */
TORNADO_API TORNADO_MUST_USE tornado_future *tornado_handler_spawn(tornado_handler *self, tornado_coroutine_fn fn,
                                                                   void *arg);

/* Whether finish was called; whether the client is still there. */
TORNADO_API bool tornado_finished(const tornado_handler *self);
TORNADO_API bool tornado_connected(const tornado_handler *self);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* TORNADO_H */

/*############################################################################
 *
 *   IMPLEMENTATION. From here on: private code, bottom-up, the same sections in the same order.
 *
 *############################################################################*/

#if defined(TORNADO_IMPLEMENTATION) && !defined(TORNADO__IMPLEMENTED)
#define TORNADO__IMPLEMENTED

/*============================================================================
 * section: platform (private)
 * System headers, compiler differences, allocation hooks, and the three ways to move between stacks.
 *
 * A tornado__context is a place to come back to. call() runs a function, on another stack if one is given, having
 * noted where it was called; jump() goes back to such a place; swap() notes one and goes to another. Boundaries,
 * coroutines and nothing else are made of these. The backends below have the same three functions: x86-64, other
 * processors, ucontext; that without coroutines, on setjmp, needs two.
 *============================================================================*/

#ifdef __cplusplus
#error "tornado.h: the implementation is C11; put it into a .c file and include the header alone from C++"
#endif
#if !defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L
#error "tornado.h: the implementation needs C11 (-std=c11, -std=gnu11 or later)"
#endif
#if defined(__GLIBC__) && !defined(__USE_MISC)
#error "tornado.h: include the implementation before any libc header, or build it with -std=gnu11"
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/syscall.h>
#endif
#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__) ||                   \
    defined(__DragonFly__) || defined(TORNADO_KQUEUE)
#define TORNADO__KQUEUE
#include <sys/event.h>
#endif
#ifndef TORNADO_NO_THREADS
#include <pthread.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#if (defined(__GLIBC__) && !defined(__UCLIBC__)) || defined(__APPLE__)
#define TORNADO__BACKTRACE 1
#include <execinfo.h>
#endif

#if defined(TORNADO_MALLOC) != defined(TORNADO_FREE) || defined(TORNADO_MALLOC) != defined(TORNADO_REALLOC)
#error "tornado.h: define all of TORNADO_MALLOC, TORNADO_REALLOC and TORNADO_FREE, or none"
#endif
#ifndef TORNADO_MALLOC
#define TORNADO_MALLOC(size)           malloc(size)
#define TORNADO_REALLOC(pointer, size) realloc(pointer, size)
#define TORNADO_FREE(pointer)          free(pointer)
#endif
#ifndef TORNADO_ASSERT
#define TORNADO_ASSERT(condition) ((void)0)
#endif
#ifndef TORNADO_POLLER
#if defined(TORNADO__KQUEUE)
#define TORNADO_POLLER "kqueue"
#elif defined(__linux__)
#define TORNADO_POLLER "epoll"
#else
#define TORNADO_POLLER "poll"
#endif
#endif
#ifndef TORNADO_STACK_SIZE
#define TORNADO_STACK_SIZE (sizeof(void *) >= 8 ? (size_t)256 * 1024 : (size_t)128 * 1024)
#endif
#ifndef TORNADO_MAX_COROUTINES
#define TORNADO_MAX_COROUTINES 100000
#endif
#ifndef TORNADO_MAX_HEADERS
#define TORNADO_MAX_HEADERS 256
#endif

#ifdef TORNADO_NO_THREADS
#define TORNADO__THREAD_LOCAL
#else
#define TORNADO__THREAD_LOCAL _Thread_local
#endif

#define TORNADO__LIKELY(x)   __builtin_expect(!!(x), 1)
#define TORNADO__UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Small and hot, or out of the way of what is. At -Os the compiler decides, and at -O0 nothing is inlined. */
#if defined __OPTIMIZE__ && !defined __OPTIMIZE_SIZE__
#define TORNADO__INLINE inline __attribute__((always_inline))
#define TORNADO__COLD   __attribute__((noinline))
#else
#define TORNADO__INLINE inline
#define TORNADO__COLD
#endif
#define TORNADO__NOINLINE __attribute__((noinline))

#define TORNADO__CONTAINER(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))
#define TORNADO__COUNT(array) (sizeof(array) / sizeof((array)[0]))

#ifndef TORNADO_STATIC
const char tornado__abi = 0;
#endif

#if defined(__SANITIZE_ADDRESS__)
#define TORNADO__ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TORNADO__ASAN 1
#endif
#endif
#ifdef TORNADO__ASAN
extern void __sanitizer_start_switch_fiber(void **fake_stack_save, const void *bottom, size_t size);
extern void __sanitizer_finish_switch_fiber(void *fake_stack_save, const void **bottom_old, size_t *size_old);
extern void __asan_handle_no_return(void);
extern void __asan_poison_memory_region(void const volatile *memory, size_t size);
extern void __asan_unpoison_memory_region(void const volatile *memory, size_t size);
#define tornado__hide(memory, size) __asan_poison_memory_region(memory, size)
#define tornado__show(memory, size) __asan_unpoison_memory_region(memory, size)
#else
#define tornado__hide(memory, size) ((void)0) /* memory that nobody may touch for now */
#define tornado__show(memory, size) ((void)0)
#endif

/* A stack for a coroutine: `size` usable bytes from `low` up. */
typedef struct tornado__stack {
    char *low;
    size_t size;
} tornado__stack;

/* Around a call on a stack of its own: for debuggers and backtraces nobody has called from there. */
#ifdef __GCC_HAVE_DWARF2_CFI_ASM
#define TORNADO__BACKTRACE_ENDS(return_address) ".cfi_remember_state\n\t.cfi_undefined " return_address "\n\t"
#define TORNADO__BACKTRACE_GOES_ON              ".cfi_restore_state\n\t"
#else
#define TORNADO__BACKTRACE_ENDS(return_address) ""
#define TORNADO__BACKTRACE_GOES_ON              ""
#endif

/* Each of the other processors says how it saves, calls and loads; the functions are made of that below. */
#if !defined(TORNADO_UCONTEXT) && !defined(TORNADO_NO_COROUTINES)
#if defined(__i386__) || defined(__aarch64__) || (defined(__riscv) && __riscv_xlen == 64) ||                       \
    (defined(__arm__) && __ARM_ARCH >= 5 && (!defined(__thumb__) || defined(__thumb2__)))
#define TORNADO__ASSEMBLY
#endif
#endif

#if defined(TORNADO_NO_COROUTINES)

#include <setjmp.h>

typedef struct tornado__context {
    jmp_buf place;
} tornado__context;

static TORNADO__NOINLINE void tornado__context_call(tornado__context *save, const tornado__stack *stack,
                                                    void (*fn)(void *), void *arg)
{
    (void)stack;
    if (_setjmp(save->place) == 0)
        fn(arg);
}

static TORNADO_NORETURN void tornado__context_jump(tornado__context *to)
{
    _longjmp(to->place, 1);
}

#elif defined(__x86_64__) && !defined(__ILP32__) && !defined(TORNADO_UCONTEXT)

typedef struct tornado__context {
    void *sp; /* of a frame of: where to go on, rbx, rbp, 128 bytes of red zone */
} tornado__context;

/* All that a call may change, but rbx and rbp, which the compiler may need for itself and which are pushed instead.
   */
#ifdef __AVX512F__
#define TORNADO__CLOBBER_AVX512                                                                                    \
    "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",    \
        "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#else
#define TORNADO__CLOBBER_AVX512
#endif
#define TORNADO__CLOBBER                                                                                           \
    "rax", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",   \
        "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",                      \
        TORNADO__CLOBBER_AVX512 "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "cc",         \
        "memory"

/* Runs fn(arg), on `stack` or, when that is NULL, on this one. Comes back when fn returns, and when somebody jumps
   to what `save` then holds: the two ways look alike. The code that follows a switch is reached by a jump, never by
   a ret: the processor predicts returns by the calls it saw, and would be wrong each time. */
static TORNADO__INLINE void tornado__context_call(tornado__context *save, const tornado__stack *stack,
                                                  void (*fn)(void *), void *arg)
{
    char *top = stack ? stack->low + stack->size : NULL;
    __asm__ __volatile__("leaq -128(%%rsp), %%rsp\n\t"
                         "pushq %%rbp\n\t"
                         "pushq %%rbx\n\t"
                         "leaq 1f(%%rip), %%rax\n\t"
                         "pushq %%rax\n\t"
                         "movq %%rsp, (%%rsi)\n\t"
                         "movq %%rsi, %%rbx\n\t"
                         "testq %%rcx, %%rcx\n\t"
                         "cmovzq %%rsp, %%rcx\n\t"
                         "andq $-16, %%rcx\n\t"
                         "movq %%rcx, %%rsp\n\t"
                         TORNADO__BACKTRACE_ENDS("rip")
                         "callq *%%rdx\n\t"
                         TORNADO__BACKTRACE_GOES_ON
                         "movq (%%rbx), %%rsp\n\t"
                         "popq %%rax\n\t"
                         "jmpq *%%rax\n"
                         "1:\n\t"
                         "popq %%rbx\n\t"
                         "popq %%rbp\n\t"
                         "leaq 128(%%rsp), %%rsp"
                         : "+S"(save), "+D"(arg), "+d"(fn), "+c"(top)
                         :
                         : TORNADO__CLOBBER);
}

/* Notes this place in `save` and goes to `to`. */
static TORNADO__INLINE void tornado__context_swap(tornado__context *save, const tornado__context *to)
{
    void *sp = to->sp;
    __asm__ __volatile__("leaq -128(%%rsp), %%rsp\n\t"
                         "pushq %%rbp\n\t"
                         "pushq %%rbx\n\t"
                         "leaq 1f(%%rip), %%rax\n\t"
                         "pushq %%rax\n\t"
                         "movq %%rsp, (%%rdi)\n\t"
                         "movq %%rsi, %%rsp\n\t"
                         "popq %%rax\n\t"
                         "jmpq *%%rax\n"
                         "1:\n\t"
                         "popq %%rbx\n\t"
                         "popq %%rbp\n\t"
                         "leaq 128(%%rsp), %%rsp"
                         : "+D"(save), "+S"(sp)
                         :
                         : "rcx", "rdx", TORNADO__CLOBBER);
}

/* Goes to `to` for good. */
static TORNADO__INLINE TORNADO_NORETURN void tornado__context_jump(const tornado__context *to)
{
    __asm__ __volatile__("movq %0, %%rsp\n\t"
                         "popq %%rax\n\t"
                         "jmpq *%%rax"
                         :
                         : "r"(to->sp)
                         : "memory");
    __builtin_unreachable();
}

#elif defined(TORNADO__ASSEMBLY)

/* For each processor the registers of four values, and three pieces of code:
     SAVE   pushes what a callee keeps and the address of label 1, and stores the stack pointer at *save
     CALL   goes to the stack `top`, if it is not NULL, calls fn(arg), and gets *save back into `top`
     LOAD   makes `top` the stack pointer, pops all that, and jumps to the address, by no return instruction:
            the processor predicts these by the calls it saw
   Floating-point registers are left to the compiler: they are among what a switch changes. */

#if defined(__i386__)

#define TORNADO__REG_ARG  "edi"
#define TORNADO__REG_FN   "edx"
#define TORNADO__REG_SAVE "eax"
#define TORNADO__REG_TOP  "ecx"
#define TORNADO__SAVE                                                                                              \
    "pushl %%ebp\n\tpushl %%ebx\n\tpushl %%esi\n\t"                                                                \
    "call 2f\n2:\n\tpopl %%ebx\n\tleal 1f-2b(%%ebx), %%ebx\n\tpushl %%ebx\n\t"                                     \
    "movl %%esp, (%%eax)\n\t"
#define TORNADO__CALL                                                                                              \
    "movl %%eax, %%ebx\n\t"                                                                                        \
    "testl %%ecx, %%ecx\n\tjnz 3f\n\tmovl %%esp, %%ecx\n3:\n\t"                                                    \
    "andl $-16, %%ecx\n\tleal -16(%%ecx), %%esp\n\tmovl %%edi, (%%esp)\n\t" TORNADO__BACKTRACE_ENDS("eip")         \
    "call *%%edx\n\t" TORNADO__BACKTRACE_GOES_ON                                                                   \
    "movl (%%ebx), %%ecx\n\t"
#define TORNADO__LOAD "movl %%ecx, %%esp\n\tpopl %%edx\n\tpopl %%esi\n\tpopl %%ebx\n\tpopl %%ebp\n\tjmp *%%edx\n"
#ifdef __SSE__
#define TORNADO__CLOBBER_SSE "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
#else
#define TORNADO__CLOBBER_SSE
#endif
#define TORNADO__CLOBBER                                                                                           \
    TORNADO__CLOBBER_SSE "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "cc", "memory"

#elif defined(__arm__)

#define TORNADO__REG_ARG  "r0"
#define TORNADO__REG_FN   "r1"
#define TORNADO__REG_SAVE "r2"
#define TORNADO__REG_TOP  "r3"
#ifdef __thumb__
#define TORNADO__PLACE "adr r12, 1f\n\torr r12, r12, #1\n\t" /* what makes a jump to it stay in Thumb mode */
#else
#define TORNADO__PLACE "adr r12, 1f\n\t"
#endif
#define TORNADO__SAVE TORNADO__PLACE "sub sp, sp, #4\n\tpush {r4-r12}\n\tstr sp, [r2]\n\t"
#define TORNADO__CALL                                                                                              \
    "mov r4, r2\n\t"                                                                                               \
    "cmp r3, #0\n\tbeq 2f\n\tmov sp, r3\n2:\n\t" TORNADO__BACKTRACE_ENDS("lr")                                     \
    "blx r1\n\t" TORNADO__BACKTRACE_GOES_ON                                                                        \
    "ldr r3, [r4]\n\t"
#define TORNADO__LOAD "mov sp, r3\n\tpop {r4-r12}\n\tadd sp, sp, #4\n\tbx r12\n"
#if defined(__ARM_NEON) || (defined(__ARM_FP) && !defined(__SOFTFP__) && defined(__clang__))
#define TORNADO__CLOBBER_HIGH                                                                                      \
    "d16", "d17", "d18", "d19", "d20", "d21", "d22", "d23", "d24", "d25", "d26", "d27", "d28", "d29", "d30", "d31",
#else
#define TORNADO__CLOBBER_HIGH
#endif
#if defined(__ARM_FP) && !defined(__SOFTFP__)
#define TORNADO__CLOBBER_VFP                                                                                       \
    TORNADO__CLOBBER_HIGH "d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9", "d10", "d11", "d12", "d13",  \
        "d14", "d15",
#else
#define TORNADO__CLOBBER_VFP
#endif
#define TORNADO__CLOBBER TORNADO__CLOBBER_VFP "r12", "lr", "cc", "memory"

#elif defined(__aarch64__)

#define TORNADO__REG_ARG  "x0"
#define TORNADO__REG_FN   "x1"
#define TORNADO__REG_SAVE "x2"
#define TORNADO__REG_TOP  "x3"
/* 96 bytes of registers, and as many more as a red zone has (Apple's). */
#define TORNADO__SAVE                                                                                              \
    "adr x9, 1f\n\tsub sp, sp, #224\n\t"                                                                           \
    "stp x19, x20, [sp]\n\tstp x21, x22, [sp, #16]\n\tstp x23, x24, [sp, #32]\n\tstp x25, x26, [sp, #48]\n\t"      \
    "stp x27, x28, [sp, #64]\n\tstp x29, x9, [sp, #80]\n\t"                                                        \
    "mov x9, sp\n\tstr x9, [x2]\n\t"
#define TORNADO__CALL                                                                                              \
    "mov x19, x2\n\t"                                                                                              \
    "cbz x3, 2f\n\tmov sp, x3\n\tmov x29, xzr\n2:\n\t" TORNADO__BACKTRACE_ENDS("x30")                              \
    "blr x1\n\t" TORNADO__BACKTRACE_GOES_ON                                                                        \
    "ldr x3, [x19]\n\t"
#define TORNADO__LOAD                                                                                              \
    "mov sp, x3\n\t"                                                                                               \
    "ldp x19, x20, [sp]\n\tldp x21, x22, [sp, #16]\n\tldp x23, x24, [sp, #32]\n\tldp x25, x26, [sp, #48]\n\t"      \
    "ldp x27, x28, [sp, #64]\n\tldp x29, x9, [sp, #80]\n\t"                                                        \
    "add sp, sp, #224\n\tbr x9\n"
#define TORNADO__ARRIVE "hint #36\n\t" /* bti j: an indirect jump may come here */
#if defined(__linux__) && !defined(__ANDROID__)
#define TORNADO__CLOBBER_X18 "x18",
#else
#define TORNADO__CLOBBER_X18 /* the platform's */
#endif
#ifdef __ARM_FEATURE_SVE
#define TORNADO__CLOBBER_SVE                                                                                       \
    "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", "p14", "p15",
#else
#define TORNADO__CLOBBER_SVE
#endif
#define TORNADO__CLOBBER                                                                                           \
    "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",                    \
        TORNADO__CLOBBER_X18 TORNADO__CLOBBER_SVE "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8",     \
        "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23",    \
        "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31", "cc", "memory"

#else /* RISC-V */

#define TORNADO__REG_ARG  "a0"
#define TORNADO__REG_FN   "a1"
#define TORNADO__REG_SAVE "a2"
#define TORNADO__REG_TOP  "a3"
#define TORNADO__SAVE                                                                                              \
    "lla t2, 1f\n\taddi sp, sp, -112\n\t"                                                                          \
    "sd t2, 0(sp)\n\tsd s0, 8(sp)\n\tsd s1, 16(sp)\n\tsd s2, 24(sp)\n\tsd s3, 32(sp)\n\tsd s4, 40(sp)\n\t"         \
    "sd s5, 48(sp)\n\tsd s6, 56(sp)\n\tsd s7, 64(sp)\n\tsd s8, 72(sp)\n\tsd s9, 80(sp)\n\tsd s10, 88(sp)\n\t"      \
    "sd s11, 96(sp)\n\tsd sp, 0(a2)\n\t"
#define TORNADO__CALL                                                                                              \
    "mv s1, a2\n\t"                                                                                                \
    "beqz a3, 2f\n\tmv sp, a3\n\tmv s0, zero\n2:\n\t" TORNADO__BACKTRACE_ENDS("ra")                                \
    "jalr a1\n\t" TORNADO__BACKTRACE_GOES_ON                                                                       \
    "ld a3, 0(s1)\n\t"
#define TORNADO__LOAD                                                                                              \
    "mv sp, a3\n\t"                                                                                                \
    "ld t2, 0(sp)\n\tld s0, 8(sp)\n\tld s1, 16(sp)\n\tld s2, 24(sp)\n\tld s3, 32(sp)\n\tld s4, 40(sp)\n\t"         \
    "ld s5, 48(sp)\n\tld s6, 56(sp)\n\tld s7, 64(sp)\n\tld s8, 72(sp)\n\tld s9, 80(sp)\n\tld s10, 88(sp)\n\t"      \
    "ld s11, 96(sp)\n\taddi sp, sp, 112\n\tjr t2\n"
#ifdef __riscv_flen
#define TORNADO__CLOBBER_F                                                                                         \
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "ft8", "ft9", "ft10", "ft11", "fa0", "fa1", "fa2",     \
        "fa3", "fa4", "fa5", "fa6", "fa7", "fs0", "fs1", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9",   \
        "fs10", "fs11",
#else
#define TORNADO__CLOBBER_F
#endif
#ifdef __riscv_vector
#define TORNADO__CLOBBER_V                                                                                         \
    "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16",   \
        "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31",
#else
#define TORNADO__CLOBBER_V
#endif
#define TORNADO__CLOBBER                                                                                           \
    TORNADO__CLOBBER_F TORNADO__CLOBBER_V "ra", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "a4", "a5", "a6", "a7",  \
        "memory"

#endif

#ifndef TORNADO__ARRIVE
#define TORNADO__ARRIVE
#endif

typedef struct tornado__context {
    void *sp; /* of what SAVE pushed */
} tornado__context;

static TORNADO__INLINE void tornado__context_call(tornado__context *save, const tornado__stack *stack,
                                                  void (*fn)(void *), void *arg)
{
    uintptr_t high = stack ? (uintptr_t)stack->low + stack->size : 0;
    register void *r_arg __asm__(TORNADO__REG_ARG) = arg;
    register void (*r_fn)(void *) __asm__(TORNADO__REG_FN) = fn;
    register tornado__context *r_save __asm__(TORNADO__REG_SAVE) = save;
    register uintptr_t r_top __asm__(TORNADO__REG_TOP) = high & ~(uintptr_t)15;
    __asm__ __volatile__(TORNADO__SAVE TORNADO__CALL TORNADO__LOAD "1:\n\t" TORNADO__ARRIVE
                         : "+r"(r_arg), "+r"(r_fn), "+r"(r_save), "+r"(r_top)
                         :
                         : TORNADO__CLOBBER);
}

static TORNADO__INLINE void tornado__context_swap(tornado__context *save, const tornado__context *to)
{
    void *sp = to->sp;
    register void *r_arg __asm__(TORNADO__REG_ARG) = NULL; /* only so that the compiler expects them to change */
    register void *r_fn __asm__(TORNADO__REG_FN) = NULL;
    register tornado__context *r_save __asm__(TORNADO__REG_SAVE) = save;
    register void *r_top __asm__(TORNADO__REG_TOP) = sp;
    __asm__ __volatile__(TORNADO__SAVE TORNADO__LOAD "1:\n\t" TORNADO__ARRIVE
                         : "=r"(r_arg), "=r"(r_fn), "+r"(r_save), "+r"(r_top)
                         :
                         : TORNADO__CLOBBER);
}

static TORNADO__INLINE TORNADO_NORETURN void tornado__context_jump(const tornado__context *to)
{
    register void *r_top __asm__(TORNADO__REG_TOP) = to->sp;
    __asm__ __volatile__(TORNADO__LOAD : : "r"(r_top) : "memory");
    __builtin_unreachable();
}

#else /* ucontext */

#if defined(__linux__) && !defined(__GLIBC__) && !defined(TORNADO_UCONTEXT)
#error "tornado.h: no way to switch stacks here: define TORNADO_NO_COROUTINES, or TORNADO_UCONTEXT and link its library"
#endif
#include <ucontext.h>

typedef struct tornado__context {
    ucontext_t uc;
} tornado__context;

/* makecontext passes ints only; what a new stack starts with travels here. */
static TORNADO__THREAD_LOCAL struct {
    void (*fn)(void *);
    void *arg;
    tornado__context *save;
} tornado__context_start;

static void tornado__context_entry(void)
{
    tornado__context *save = tornado__context_start.save;
    tornado__context_start.fn(tornado__context_start.arg);
    setcontext(&save->uc);
}

static TORNADO__NOINLINE void tornado__context_call(tornado__context *save, const tornado__stack *stack,
                                                    void (*fn)(void *), void *arg)
{
    if (stack) {
        ucontext_t start;
        getcontext(&start);
        start.uc_stack.ss_sp = stack->low;
        start.uc_stack.ss_size = stack->size;
        start.uc_link = NULL;
        makecontext(&start, tornado__context_entry, 0);
        tornado__context_start.fn = fn;
        tornado__context_start.arg = arg;
        tornado__context_start.save = save;
        swapcontext(&save->uc, &start);
    } else {
        volatile bool called = false;
        getcontext(&save->uc); /* returns again when somebody jumps here */
        if (!called) {
            called = true;
            fn(arg);
        }
    }
}

static TORNADO__INLINE void tornado__context_swap(tornado__context *save, const tornado__context *to)
{
    swapcontext(&save->uc, &to->uc);
}

static TORNADO__INLINE TORNADO_NORETURN void tornado__context_jump(const tornado__context *to)
{
    setcontext(&to->uc);
    abort();
}

#endif

/* Tells Valgrind of memory that is used as a stack, by its client request for stack registration; does nothing
   outside Valgrind. */
static TORNADO__UNUSED void tornado__valgrind_stack(const char *low, const char *high)
{
#if defined(__x86_64__) && !defined(__ILP32__)
    volatile uint64_t request[6] = {0x1501, (uint64_t)(uintptr_t)low, (uint64_t)(uintptr_t)high, 0, 0, 0};
    uint64_t result = 0;
    __asm__ __volatile__("rolq $3, %%rdi\n\trolq $13, %%rdi\n\t"
                         "rolq $61, %%rdi\n\trolq $51, %%rdi\n\t"
                         "xchgq %%rbx, %%rbx"
                         : "+d"(result)
                         : "a"(&request[0])
                         : "cc", "memory", "rdi");
#else
    (void)low;
    (void)high;
#endif
}

/* Writes the stack of who calls it, also in a signal handler: a line a frame. */
#ifdef TORNADO__BACKTRACE
static void tornado__write_stack(int fd)
{
    void *frames[64];
    backtrace_symbols_fd(frames, backtrace(frames, (int)TORNADO__COUNT(frames)), fd);
}

/* What backtrace loads when it is first used must not be loaded in a signal handler. */
static void tornado__prepare_stack(void)
{
    void *frame;
    backtrace(&frame, 1);
}
#else
static void tornado__write_stack(int fd)
{
    static const char none[] = "    (libc cannot tell the stack)\n";
    ssize_t ignored = write(fd, none, sizeof none - 1);
    (void)ignored;
}

static void tornado__prepare_stack(void)
{
}
#endif

/* Signals of one thread. Without pthreads there is one. */
#ifdef TORNADO_NO_THREADS
typedef int tornado__thread_id;
#define tornado__thread_self()                 0
#define tornado__thread_is(thread)             ((thread) == 0)
#define tornado__thread_signal(thread, signum) ((void)(thread), (void)raise(signum))
#define tornado__sigmask(how, set, before)     sigprocmask(how, set, before)
#else
typedef pthread_t tornado__thread_id;
#define tornado__thread_self()                 pthread_self()
#define tornado__thread_is(thread)             pthread_equal(thread, pthread_self())
#define tornado__thread_signal(thread, signum) ((void)pthread_kill(thread, signum))
#define tornado__sigmask(how, set, before)     pthread_sigmask(how, set, before)
#endif

/* ---- how many processors this process may use ---- */

#ifdef __linux__
/* Reads the beginning of a small file. False when it cannot be read. */
static bool tornado__read_small(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = fd >= 0 ? read(fd, text, room - 1) : -1;
    if (fd >= 0)
        close(fd);
    text[len > 0 ? len : 0] = '\0';
    return len > 0;
}

/* The processor time that one directory of control groups allows, in whole processors, rounded up; INT_MAX: any. */
static int tornado__cgroup_directory_cpus(const char *directory, bool v1)
{
    char path[1200], text[64];
    char *end;
    snprintf(path, sizeof path, "%s/%s", directory, v1 ? "cpu.cfs_quota_us" : "cpu.max");
    if (!tornado__read_small(path, text, sizeof text))
        return INT_MAX;
    long long quota = strtoll(text, &end, 10), period = strtoll(end, NULL, 10); /* 0 for "max" and for none */
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
    if (v1 && tornado__read_small(path, text, sizeof text))
        period = strtoll(text, NULL, 10);
    if (quota <= 0 || period <= 0 || quota / period >= INT_MAX)
        return INT_MAX;
    return (int)(quota / period + (quota % period != 0));
}

/* The least of the limits of a group and of those that it is in. A container may see its own group as the root. */
static int tornado__cgroup_path_cpus(const char *mount, char *group, bool v1)
{
    char directory[1024];
    int least = INT_MAX;
    for (char *end = group + strlen(group);; *end = '\0') {
        snprintf(directory, sizeof directory, "%s%s", mount, group);
        int cpus = tornado__cgroup_directory_cpus(directory, v1);
        least = cpus < least ? cpus : least;
        if (end == group || !(end = strrchr(group, '/')))
            return least;
    }
}

/* The limit of this process's control groups, of both versions: lines "0::/group" and "4:cpu,cpuacct:/group". */
static int tornado__cgroup_cpus(void)
{
    char text[4096], mount[128];
    int least = INT_MAX;
    if (!tornado__read_small("/proc/self/cgroup", text, sizeof text))
        return INT_MAX;
    for (char *line = text, *next; line && *line; line = next) {
        if ((next = strchr(line, '\n')) != NULL)
            *next++ = '\0';
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        controllers++;
        bool v1 = *controllers != '\0';
        if (v1 && strcmp(controllers, "cpu") != 0 && strncmp(controllers, "cpu,", 4) != 0 &&
            !strstr(controllers, ",cpu"))
            continue;
        snprintf(mount, sizeof mount, "/sys/fs/cgroup%s%.80s", v1 ? "/" : "", controllers);
        int cpus = tornado__cgroup_path_cpus(mount, group, v1);
        least = cpus < least ? cpus : least;
    }
    return least;
}
#endif

static int tornado__cpu_count(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    unsigned long mask[1024];
    long bytes = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask), allowed = 0;
    for (long i = 0; i < bytes / (long)sizeof *mask; i++)
        allowed += __builtin_popcountl(mask[i]);
    if (allowed > 0)
        count = allowed;
    int limit = tornado__cgroup_cpus();
    if (count > limit)
        count = limit;
#endif
    return count < 1 ? 1 : count > INT_MAX ? INT_MAX : (int)count;
}

/*============================================================================
 * section: error (private)
 * The chain of scopes and the way up it.
 *
 * What runs (a coroutine, or what a loop calls on the thread's own stack) is an execution: it has the innermost
 * scope and the error that was raised last. A boundary is a scope with a context to jump to. Raising pops scopes
 * until one of them is a boundary, ends each as if it were left, and jumps.
 *============================================================================*/

typedef struct tornado__deferred {
    struct tornado__deferred *next;
    tornado_callback fn;
    void *arg;
    uint64_t handle;
} tornado__deferred;

/* Something a scope lets go of when it ends: embedded in what is held. */
typedef struct tornado__held {
    struct tornado__held *next;
    void (*release)(struct tornado__held *held);
} tornado__held;

typedef struct tornado__boundary {
    tornado_scope scope;
    tornado__context context;
    unsigned deferring; /* as it was outside */
    bool raised;
} tornado__boundary;

typedef struct tornado__execution {
    tornado_scope *scope;
    struct tornado__coroutine *coroutine; /* NULL for a loop's own */
    struct tornado_stack_context *states; /* what follows it; NULL: nothing */
    unsigned deferring; /* deferred functions that run now: they may not wait */
    tornado_arena **arena; /* not of a coroutine: where a job's is to be */
    tornado_error raised; /* last, until the next try */
    tornado_error waited; /* what the last wait failed with */
} tornado__execution;

static TORNADO__THREAD_LOCAL struct {
    tornado__execution *running; /* NULL: root */
    tornado__execution root;
    uint64_t handles;
    tornado_error last;
} tornado__thread;

static TORNADO__INLINE tornado__execution *tornado__running(void)
{
    tornado__execution *running = tornado__thread.running;
    return running ? running : &tornado__thread.root;
}

static const struct {
    const char *name, *text;
} tornado__errors[TORNADO_ERR_COUNT] = {
    {"TORNADO_OK", "no error"},
#define TORNADO__ERROR_ROW(name, value, text) [value] = {"TORNADO_ERR_" #name, text},
    TORNADO_ERRORS(TORNADO__ERROR_ROW)
#undef TORNADO__ERROR_ROW
};

TORNADO_API const char *tornado_error_name(int code)
{
    return code >= 0 && code < TORNADO_ERR_COUNT ? tornado__errors[code].name : "TORNADO_ERR_UNKNOWN";
}

static void tornado__error_vset(tornado_error *error, int code, int sys_errno, const char *format, va_list args)
{
    error->code = code;
    error->sys_errno = sys_errno;
    error->http_status = 0;
    if (format)
        vsnprintf(error->message, sizeof error->message, format, args);
    else
        snprintf(error->message, sizeof error->message, "%s",
                 code > 0 && code < TORNADO_ERR_COUNT ? tornado__errors[code].text : "unknown error");
}

static void tornado__error_set(tornado_error *error, int code, int sys_errno, const char *format, ...)
    TORNADO_PRINTF(4, 5);
static void tornado__error_set(tornado_error *error, int code, int sys_errno, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    tornado__error_vset(error, code, sys_errno, format, args);
    va_end(args);
}

/* Notes why a function of the library fails, and returns false. */
static bool tornado__fail(int code, int sys_errno, const char *format, ...) TORNADO_PRINTF(3, 4);
static bool tornado__fail(int code, int sys_errno, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    tornado__error_vset(&tornado__thread.last, code, sys_errno, format, args);
    va_end(args);
    for (char *at = tornado__thread.last.message; *at; at++) /* it may quote anything, and is one line */
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            *at = '?';
    return false;
}

static bool tornado__nomem(void)
{
    return tornado__fail(TORNADO_ERR_NOMEM, ENOMEM, "out of memory");
}

TORNADO_API const tornado_error *tornado_last_error(void)
{
    return &tornado__thread.last;
}

/* Runs what a scope owes. Each entry is taken off before it runs, so one that raises does not run twice. */
static TORNADO__COLD void tornado__scope_run(tornado__execution *running, tornado_scope *scope)
{
    while (scope->deferred) {
        tornado__deferred *deferred = scope->deferred;
        tornado_callback fn = deferred->fn;
        void *arg = deferred->arg;
        scope->deferred = deferred->next;
        TORNADO_FREE(deferred);
        running->deferring++;
        fn(arg);
        running->deferring--;
    }
    while (scope->held) {
        tornado__held *held = scope->held;
        scope->held = held->next;
        held->release(held);
    }
}

static TORNADO__INLINE void tornado__scope_end(tornado__execution *running, tornado_scope *scope)
{
    if (TORNADO__UNLIKELY(scope->deferred || scope->held))
        tornado__scope_run(running, scope);
}

static TORNADO_NORETURN void tornado__raise(const tornado_error *error)
{
    tornado__execution *running = tornado__running();
    tornado_error copy = *error; /* deferred functions may fail, or raise and catch, on their own */
    for (tornado_scope *scope = running->scope; scope; scope = running->scope) {
        tornado__boundary *boundary = scope->boundary;
        tornado__scope_end(running, scope);
        running->scope = scope->prev;
        if (boundary) {
#ifdef TORNADO__ASAN
            __asan_handle_no_return(); /* the frames that are skipped must not stay poisoned */
#endif
            boundary->raised = true;
            running->deferring = boundary->deferring;
            running->raised = copy;
            tornado__context_jump(&boundary->context);
        }
    }
    fprintf(stderr, "tornado.h: %s raised outside any boundary: %s\n", tornado_error_name(copy.code), copy.message);
    abort();
}

TORNADO_API TORNADO_NORETURN void tornado_raise_error(const tornado_error *error)
{
    tornado__raise(error);
}

TORNADO_API TORNADO_NORETURN void tornado_raise(int code, const char *format, ...)
{
    tornado_error error;
    va_list args;
    va_start(args, format);
    tornado__error_vset(&error, code, 0, format, args);
    va_end(args);
    tornado__raise(&error);
}

TORNADO_API TORNADO_NORETURN void tornado_raise_http_error(int status, const char *format, ...)
{
    tornado_error error;
    va_list args;
    va_start(args, format);
    tornado__error_vset(&error, TORNADO_ERR_HTTP, 0, format, args);
    va_end(args);
    error.http_status = status;
    tornado__raise(&error);
}

TORNADO_API TORNADO_NORETURN void tornado_raise_http_status(int status)
{
    tornado_error error = {TORNADO_ERR_HTTP, 0, status, ""};
    tornado__raise(&error);
}

static TORNADO__INLINE void tornado__scope_push(tornado__execution *running, tornado_scope *scope, void *boundary)
{
    scope->prev = running->scope;
    scope->held = NULL;
    scope->deferred = NULL;
    scope->boundary = boundary;
    running->scope = scope;
}

/* Calls fn(arg) inside `boundary`, which must live in the caller's frame or longer. Whether it raised. */
static TORNADO__INLINE bool tornado__protect(tornado__execution *running, tornado__boundary *boundary,
                                             tornado_callback fn, void *arg)
{
    tornado__scope_push(running, &boundary->scope, boundary);
    boundary->raised = false;
    boundary->deferring = running->deferring;
    tornado__context_call(&boundary->context, NULL, fn, arg);
    return boundary->raised;
}

TORNADO_API void tornado_scope_enter(tornado_scope *scope)
{
    tornado__scope_push(tornado__running(), scope, NULL);
}

TORNADO_API void tornado_scope_leave(tornado_scope *scope)
{
    tornado__execution *running = tornado__running();
    if (running->scope != scope)
        tornado_raise(TORNADO_ERR_STATE, "tornado_scope_leave: this is not the innermost scope");
    tornado__scope_end(running, scope);
    running->scope = scope->prev;
}

typedef struct tornado__try_call {
    tornado_callback fn;
    void *arg;
    tornado__execution *running;
} tornado__try_call;

/* The scope ends inside its own boundary, so that a deferred function that raises is caught by this try. */
static void tornado__try_body(void *arg)
{
    tornado__try_call *call = arg;
    call->fn(call->arg);
    tornado_scope *scope = call->running->scope;
    tornado__scope_end(call->running, scope);
    call->running->scope = scope->prev;
}

TORNADO_API const tornado_error *tornado_try(tornado_callback fn, void *arg)
{
    tornado__boundary boundary;
    tornado__try_call call = {fn, arg, tornado__running()};
    if (!tornado__protect(call.running, &boundary, tornado__try_body, &call))
        return NULL;
    return &call.running->raised;
}

TORNADO_API uint64_t tornado_defer(tornado_callback fn, void *arg)
{
    tornado__execution *running = tornado__running();
    tornado__deferred *deferred = running->scope ? TORNADO_MALLOC(sizeof *deferred) : NULL;
    if (!deferred) {
        bool scope = running->scope != NULL;
        fn(arg);
        tornado_raise(scope ? TORNADO_ERR_NOMEM : TORNADO_ERR_STATE, "tornado_defer: %s",
                      scope ? "out of memory" : "no scope is open here");
    }
    deferred->fn = fn;
    deferred->arg = arg;
    deferred->handle = ++tornado__thread.handles;
    deferred->next = running->scope->deferred;
    running->scope->deferred = deferred;
    return deferred->handle;
}

TORNADO_API bool tornado_run_deferred(uint64_t handle)
{
    tornado__execution *running = tornado__running();
    for (tornado_scope *scope = running->scope; scope; scope = scope->prev)
        for (tornado__deferred **at = &scope->deferred; *at; at = &(*at)->next)
            if ((*at)->handle == handle) {
                tornado__deferred deferred = **at;
                TORNADO_FREE(*at);
                *at = deferred.next;
                running->deferring++;
                deferred.fn(deferred.arg);
                running->deferring--;
                return true;
            }
    return false;
}

/*============================================================================
 * section: memory (private)
 * Block pools, arenas, buffers, intrusive lists.
 *
 * An arena is a chain of blocks; the newest is bumped. Blocks of the pool's size go back to the pool (a loop has
 * one), so that a request costs no malloc in steady state; larger ones are chained behind the newest and freed.
 *============================================================================*/

/* Rings of links: an empty one points to itself. */
typedef struct tornado__link {
    struct tornado__link *prev, *next;
} tornado__link;

static void tornado__link_init(tornado__link *link)
{
    link->prev = link->next = link;
}

/* memset to zero for sizes of some hundred bytes: were the size known to it, gcc would write "rep stos", which is
   slow to start. */
static TORNADO__INLINE void tornado__zero(void *memory, size_t size)
{
    __asm__("" : "+r"(size));
    memset(memory, 0, size);
}

static bool tornado__link_empty(const tornado__link *link)
{
    return link->next == link;
}

static void tornado__link_append(tornado__link *ring, tornado__link *link)
{
    link->prev = ring->prev;
    link->next = ring;
    ring->prev->next = link;
    ring->prev = link;
}

static void tornado__link_remove(tornado__link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->prev = link->next = link;
}

typedef struct tornado__block {
    struct tornado__block *next;
    size_t size; /* of the whole block */
} tornado__block;

typedef struct tornado__pool {
    tornado__block *free;
    size_t block_size;
    unsigned count, limit; /* how many are kept, and at most */
} tornado__pool;

static TORNADO__INLINE tornado__block *tornado__pool_get(tornado__pool *pool)
{
    tornado__block *block = pool->free;
    if (TORNADO__LIKELY(block != NULL)) {
        pool->free = block->next;
        pool->count--;
        tornado__show(block, block->size);
        return block;
    }
    block = TORNADO_MALLOC(pool->block_size);
    if (!block) {
        tornado__nomem();
        return NULL;
    }
    block->size = pool->block_size;
    return block;
}

static TORNADO__INLINE void tornado__pool_put(tornado__pool *pool, tornado__block *block)
{
    if (TORNADO__LIKELY(pool && block->size == pool->block_size && pool->count < pool->limit)) {
        block->next = pool->free;
        pool->free = block;
        pool->count++;
        tornado__hide(block + 1, block->size - sizeof *block);
    } else {
        TORNADO_FREE(block);
    }
}

static void tornado__pool_clear(tornado__pool *pool)
{
    for (tornado__block *block = pool->free, *next; block; block = next) {
        next = block->next;
        tornado__show(block, block->size);
        TORNADO_FREE(block);
    }
    pool->free = NULL;
    pool->count = 0;
}

#define TORNADO__ALIGN      ((size_t)16)
#define TORNADO__BLOCK_SIZE ((size_t)4096 - 16) /* with malloc's own header just a page */
#define TORNADO__BLOCK_HEAD ((sizeof(tornado__block) + TORNADO__ALIGN - 1) & ~(TORNADO__ALIGN - 1))

struct tornado_arena {
    char *at, *end;         /* what is left of the newest block */
    tornado__block *blocks; /* the newest first */
    tornado__pool *pool;    /* may be NULL */
};

/* An arena whose first block is the caller's, with `used` bytes of it taken; the block goes with the arena. */
static TORNADO__INLINE void tornado__arena_init(tornado_arena *arena, tornado__pool *pool, tornado__block *block,
                                                size_t used)
{
    block->next = NULL;
    arena->at = (char *)block + ((used + TORNADO__ALIGN - 1) & ~(TORNADO__ALIGN - 1));
    arena->end = (char *)block + block->size;
    arena->blocks = block;
    arena->pool = pool;
    tornado__hide(arena->at, (size_t)(arena->end - arena->at));
}

/* Frees all blocks, in one of which the arena itself may be. */
static TORNADO__INLINE void tornado__arena_clear(tornado_arena *arena)
{
    tornado__pool *pool = arena->pool;
    for (tornado__block *block = arena->blocks, *next; block; block = next) {
        next = block->next;
        tornado__show(block, block->size);
        tornado__pool_put(pool, block);
    }
}

TORNADO_API tornado_arena *tornado_arena_new(void)
{
    tornado__block *block = TORNADO_MALLOC(TORNADO__BLOCK_SIZE);
    if (!block) {
        tornado__nomem();
        return NULL;
    }
    block->size = TORNADO__BLOCK_SIZE;
    tornado_arena *arena = (tornado_arena *)(void *)((char *)block + TORNADO__BLOCK_HEAD);
    tornado__arena_init(arena, NULL, block, TORNADO__BLOCK_HEAD + sizeof *arena);
    return arena;
}

TORNADO_API void tornado_arena_free(tornado_arena *arena)
{
    if (arena)
        tornado__arena_clear(arena);
}

static TORNADO__COLD void *tornado__arena_grow(tornado_arena *arena, size_t size)
{
    size_t wanted = arena->pool ? arena->pool->block_size : TORNADO__BLOCK_SIZE;
    bool large = size > (wanted - TORNADO__BLOCK_HEAD) / 4;
    tornado__block *block;
    if (size > SIZE_MAX / 2) {
        tornado__nomem();
        return NULL;
    }
    if (large) {
        block = TORNADO_MALLOC(TORNADO__BLOCK_HEAD + size);
        if (block)
            block->size = TORNADO__BLOCK_HEAD + size;
    } else if (arena->pool) {
        block = tornado__pool_get(arena->pool);
    } else {
        block = TORNADO_MALLOC(wanted);
        if (block)
            block->size = wanted;
    }
    if (!block) {
        tornado__nomem();
        return NULL;
    }
    char *memory = (char *)block + TORNADO__BLOCK_HEAD;
    if (large && arena->blocks) { /* goes behind the newest block, which has room left */
        block->next = arena->blocks->next;
        arena->blocks->next = block;
        return memory;
    }
    block->next = arena->blocks;
    arena->blocks = block;
    arena->at = memory + size;
    arena->end = (char *)block + block->size;
    tornado__hide(arena->at, (size_t)(arena->end - arena->at));
    return memory;
}

static TORNADO__INLINE void *tornado__arena_alloc(tornado_arena *arena, size_t size)
{
    size_t rounded = (size + (size == 0) + TORNADO__ALIGN - 1) & ~(TORNADO__ALIGN - 1);
    if (TORNADO__LIKELY(rounded >= size && rounded <= (size_t)(arena->end - arena->at))) {
        void *memory = arena->at;
        arena->at += rounded;
        tornado__show(memory, size);
        return memory;
    }
    return tornado__arena_grow(arena, rounded >= size ? rounded : SIZE_MAX);
}

TORNADO_API void *tornado_arena_alloc(tornado_arena *arena, size_t size)
{
    return tornado__arena_alloc(arena, size);
}

TORNADO_API void *tornado_arena_calloc(tornado_arena *arena, size_t count, size_t size)
{
    if (size && count > SIZE_MAX / size) {
        tornado__nomem();
        return NULL;
    }
    void *memory = tornado__arena_alloc(arena, count * size);
    return memory ? memset(memory, 0, count * size) : NULL;
}

TORNADO_API char *tornado_arena_memdup(tornado_arena *arena, const void *data, size_t len)
{
    char *copy = len < SIZE_MAX ? tornado__arena_alloc(arena, len + 1) : NULL;
    if (!copy)
        return NULL;
    if (len)
        memcpy(copy, data, len);
    copy[len] = '\0';
    return copy;
}

TORNADO_API char *tornado_arena_strdup(tornado_arena *arena, const char *string)
{
    return tornado_arena_memdup(arena, string, strlen(string));
}

TORNADO_API char *tornado_arena_vprintf(tornado_arena *arena, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    size_t room = (size_t)(arena->end - arena->at);
    tornado__show(arena->at, room);
    int len = vsnprintf(arena->at, room, format, args); /* most fit where they will stay */
    tornado__hide(arena->at, room);
    char *text = NULL;
    if (len < 0)
        tornado__fail(TORNADO_ERR_INVALID, errno, "the format \"%.60s\" cannot be printed", format);
    else
        text = tornado__arena_alloc(arena, (size_t)len + 1);
    if (text && (size_t)len + 1 > room)
        vsnprintf(text, (size_t)len + 1, format, again);
    va_end(again);
    return text;
}

TORNADO_API char *tornado_arena_printf(tornado_arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = tornado_arena_vprintf(arena, format, args);
    va_end(args);
    return text;
}

static TORNADO__COLD char *tornado__buffer_grow(tornado_buffer *buffer, size_t len)
{
    size_t cap = buffer->cap ? buffer->cap : 64;
    char *data = NULL;
    if (!buffer->failed && len < SIZE_MAX / 2 - buffer->len) {
        while (cap < buffer->len + len + 1)
            cap *= 2;
        data = TORNADO_REALLOC(buffer->data, cap);
    }
    if (!data) {
        buffer->failed = true;
        tornado__nomem();
        return NULL;
    }
    buffer->data = data;
    buffer->cap = cap;
    return data + buffer->len;
}

/* As tornado_buffer_reserve, where it must be fast. */
static TORNADO__INLINE char *tornado__buffer_reserve(tornado_buffer *buffer, size_t len)
{
    if (TORNADO__LIKELY(len < buffer->cap - buffer->len && !buffer->failed))
        return buffer->data + buffer->len;
    return tornado__buffer_grow(buffer, len);
}

TORNADO_API char *tornado_buffer_reserve(tornado_buffer *buffer, size_t len)
{
    return tornado__buffer_reserve(buffer, len);
}

TORNADO_API bool tornado_buffer_append(tornado_buffer *buffer, const void *data, size_t len)
{
    char *at = tornado__buffer_reserve(buffer, len);
    if (!at)
        return false;
    if (len)
        memcpy(at, data, len);
    at[len] = '\0';
    buffer->len += len;
    return true;
}

TORNADO_API bool tornado_buffer_puts(tornado_buffer *buffer, const char *string)
{
    return tornado_buffer_append(buffer, string, strlen(string));
}

TORNADO_API bool tornado_buffer_vprintf(tornado_buffer *buffer, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    char *at = NULL;
    if (len < 0)
        tornado__fail(TORNADO_ERR_INVALID, errno, "the format \"%.60s\" cannot be printed", format);
    else
        at = tornado__buffer_reserve(buffer, (size_t)len);
    if (at) {
        vsnprintf(at, (size_t)len + 1, format, again);
        buffer->len += (size_t)len;
    }
    va_end(again);
    return at != NULL;
}

TORNADO_API bool tornado_buffer_printf(tornado_buffer *buffer, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool ok = tornado_buffer_vprintf(buffer, format, args);
    va_end(args);
    return ok;
}

TORNADO_API void tornado_buffer_free(tornado_buffer *buffer)
{
    TORNADO_FREE(buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

TORNADO_API tornado_bytes tornado_bytes_of(const char *string)
{
    tornado_bytes bytes = {string, string ? strlen(string) : 0};
    return bytes;
}

TORNADO_API bool tornado_bytes_equal(tornado_bytes a, tornado_bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* Grows an array to hold at least `wanted` objects. False when memory is short. */
static bool tornado__grow(void **array, int *capacity, int wanted, size_t size)
{
    int bigger = *capacity ? *capacity : 16;
    if (wanted <= *capacity)
        return true;
    while (bigger < wanted) {
        if (bigger > INT_MAX / 2)
            return tornado__nomem();
        bigger *= 2;
    }
    if ((size_t)bigger > SIZE_MAX / size)
        return tornado__nomem();
    void *memory = TORNADO_REALLOC(*array, (size_t)bigger * size);
    if (!memory)
        return tornado__nomem();
    *array = memory;
    *capacity = bigger;
    return true;
}

/* The same, with the new objects all zero. */
static bool tornado__grow_zeroed(void **array, int *capacity, int wanted, size_t size)
{
    int before = *capacity;
    if (!tornado__grow(array, capacity, wanted, size))
        return false;
    memset((char *)*array + (size_t)before * size, 0, (size_t)(*capacity - before) * size);
    return true;
}

/*============================================================================
 * section: time (private)
 * Clocks, and a calendar of our own: gmtime and its kin ask for the time zone, and strftime for the locale.
 *
 * Inside, a moment is int64_t: nanoseconds of a clock, or seconds since 1970 for dates. Days are counted in years
 * that begin in March, whose last day is then the leap day, and from the year -400, so that no operand is negative.
 *============================================================================*/

#define TORNADO__NS_PER_SECOND 1000000000
#define TORNADO__DAY           86400
#define TORNADO__YEAR_0        (INT64_C(-719528) * TORNADO__DAY)
#define TORNADO__YEAR_10000    (INT64_C(2932897) * TORNADO__DAY)
#define TORNADO__CALENDAR      (719468 + 146097) /* days from March 1, -400 to 1970 */

static int64_t tornado__clock_ns(clockid_t clock)
{
    struct timespec now = {0, 0};
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * TORNADO__NS_PER_SECOND + now.tv_nsec;
}

/* What timers go by. */
static int64_t tornado__now_ns(void)
{
    return tornado__clock_ns(CLOCK_MONOTONIC);
}

static double tornado__ns_to_seconds(int64_t ns)
{
    return (double)ns / TORNADO__NS_PER_SECOND;
}

/* To the nearest nanosecond, or the nearest there is beyond 292 years. False for NaN. */
static bool tornado__seconds_to_ns(double seconds, int64_t *out)
{
    double ns = seconds * TORNADO__NS_PER_SECOND;
    if (ns != ns)
        return false;
    if (ns >= 9223372036854775807.0)
        *out = INT64_MAX;
    else if (ns <= -9223372036854775807.0)
        *out = INT64_MIN;
    else
        *out = (int64_t)(ns < 0 ? ns - 0.5 : ns + 0.5);
    return true;
}

TORNADO_API double tornado_time(void)
{
    return tornado__ns_to_seconds(tornado__clock_ns(CLOCK_REALTIME));
}

TORNADO_API double tornado_monotonic(void)
{
    return tornado__ns_to_seconds(tornado__now_ns());
}

/* A moment in UTC as people name it. Months and days of the month count from 1, weekdays from 0, Sunday. */
typedef struct tornado__civil {
    int year, month, day, hour, minute, second, weekday;
} tornado__civil;

static const char tornado__weekdays[7][10] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                              "Thursday", "Friday", "Saturday"};
static const char tornado__months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

/* For the years 0 to 9999, and some more. */
static void tornado__civil_from(int64_t when, tornado__civil *civil)
{
    int64_t days = when / TORNADO__DAY;
    int second = (int)(when % TORNADO__DAY);
    if (second < 0) {
        second += TORNADO__DAY;
        days--;
    }
    uint32_t day = (uint32_t)(days + TORNADO__CALENDAR);
    civil->weekday = (int)((day + 3) % 7);
    uint32_t quarters = 4 * day + 3; /* of days: 146097 in a century, 1461 in a year, with its share of leap days */
    uint32_t year = quarters / 146097 * 100;
    quarters = quarters % 146097 | 3;
    year += quarters / 1461;
    day = quarters % 1461 / 4;
    uint32_t month = (5 * day + 2) / 153; /* from March, five months have 153 days */
    civil->year = (int)year - 400 + (month >= 10);
    civil->month = (int)month + (month >= 10 ? -9 : 3);
    civil->day = (int)(day - (153 * month + 2) / 5) + 1;
    civil->hour = second / 3600;
    civil->minute = second / 60 % 60;
    civil->second = second % 60;
}

/* Days since 1970. Month 13 is the next January. */
static int64_t tornado__civil_days(int year, int month, int day)
{
    int y = year + 400 - (month <= 2);
    int m = month + (month <= 2 ? 9 : -3);
    return (int64_t)365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - TORNADO__CALENDAR;
}

static int64_t tornado__civil_seconds(const tornado__civil *civil)
{
    return tornado__civil_days(civil->year, civil->month, civil->day) * TORNADO__DAY + civil->hour * 3600 +
           civil->minute * 60 + civil->second;
}

/* The moment that `civil` names in a zone `offset` seconds east of UTC. False where there is none such. A leap
   second counts as the second after it, and can only be the last of a day in UTC. */
static bool tornado__civil_time(const tornado__civil *civil, int offset, int64_t *when)
{
    if (civil->month < 1 || civil->month > 12 || civil->day < 1 || civil->hour > 23 || civil->minute > 59 ||
        civil->second > 60)
        return false;
    if (tornado__civil_days(civil->year, civil->month, civil->day) >=
        tornado__civil_days(civil->year, civil->month + 1, 1))
        return false;
    int64_t seconds = tornado__civil_seconds(civil) - offset;
    if (civil->second == 60 && seconds % TORNADO__DAY != 0)
        return false;
    *when = seconds;
    return true;
}

static TORNADO__INLINE void tornado__put_2_digits(char *out, int number)
{
    out[0] = (char)('0' + number / 10);
    out[1] = (char)('0' + number % 10);
}

static void tornado__civil_clipped(int64_t when, tornado__civil *civil)
{
    if (when < TORNADO__YEAR_0)
        when = TORNADO__YEAR_0;
    if (when >= TORNADO__YEAR_10000)
        when = TORNADO__YEAR_10000 - 1;
    tornado__civil_from(when, civil);
}

TORNADO_API char *tornado_format_timestamp(int64_t when, char out[30])
{
    tornado__civil civil;
    tornado__civil_clipped(when, &civil);
    memcpy(out, "www, dd bbb yyyy hh:mm:ss GMT", 30);
    memcpy(out, tornado__weekdays[civil.weekday], 3);
    tornado__put_2_digits(out + 5, civil.day);
    memcpy(out + 8, tornado__months[civil.month - 1], 3);
    tornado__put_2_digits(out + 12, civil.year / 100);
    tornado__put_2_digits(out + 14, civil.year % 100);
    tornado__put_2_digits(out + 17, civil.hour);
    tornado__put_2_digits(out + 20, civil.minute);
    tornado__put_2_digits(out + 23, civil.second);
    return out;
}

TORNADO_API char *tornado_format_iso8601(int64_t when, char out[21])
{
    tornado__civil civil;
    tornado__civil_clipped(when, &civil);
    memcpy(out, "yyyy-nn-ddThh:mm:ssZ", 21);
    tornado__put_2_digits(out, civil.year / 100);
    tornado__put_2_digits(out + 2, civil.year % 100);
    tornado__put_2_digits(out + 5, civil.month);
    tornado__put_2_digits(out + 8, civil.day);
    tornado__put_2_digits(out + 11, civil.hour);
    tornado__put_2_digits(out + 14, civil.minute);
    tornado__put_2_digits(out + 17, civil.second);
    return out;
}

static const char *tornado__date_digits(const char *text, int count, int *number)
{
    int value = 0;
    for (; count; count--, text++) {
        if (*text < '0' || *text > '9')
            return NULL;
        value = value * 10 + (*text - '0');
    }
    *number = value;
    return text;
}

static const char *tornado__date_weekday(const char *text, bool whole)
{
    for (size_t i = 0; i < 7; i++) {
        size_t len = whole ? strlen(tornado__weekdays[i]) : 3;
        if (strncmp(text, tornado__weekdays[i], len) == 0)
            return text + len;
    }
    return NULL;
}

static const char *tornado__date_month(const char *text, int *month)
{
    for (int i = 0; i < 12; i++)
        if (strncmp(text, tornado__months[i], 3) == 0) {
            *month = i + 1;
            return text + 3;
        }
    return NULL;
}

/* Reads what a pattern tells: w, l a weekday, short or long, which need not be the right one; d, e a day, 06 or
   also " 6"; b, n a month, Nov or 11; c, y a year, 1994 or 94; h, m, s the time; anything else itself. Returns
   what follows, or NULL. */
static const char *tornado__date_match(const char *text, const char *pattern, tornado__civil *civil)
{
    for (; text && *pattern; pattern++) {
        switch (*pattern) {
        case 'w':
        case 'l':
            text = tornado__date_weekday(text, *pattern == 'l');
            break;
        case 'e':
            text = *text == ' ' ? tornado__date_digits(text + 1, 1, &civil->day)
                                : tornado__date_digits(text, 2, &civil->day);
            break;
        case 'd':
            text = tornado__date_digits(text, 2, &civil->day);
            break;
        case 'b':
            text = tornado__date_month(text, &civil->month);
            break;
        case 'n':
            text = tornado__date_digits(text, 2, &civil->month);
            break;
        case 'c':
        case 'y':
            text = tornado__date_digits(text, *pattern == 'c' ? 4 : 2, &civil->year);
            break;
        case 'h':
            text = tornado__date_digits(text, 2, &civil->hour);
            break;
        case 'm':
            text = tornado__date_digits(text, 2, &civil->minute);
            break;
        case 's':
            text = tornado__date_digits(text, 2, &civil->second);
            break;
        default:
            text = *text == *pattern ? text + 1 : NULL;
        }
    }
    return text;
}

/* Gives a two-digit year its century: the latest that is not more than 50 years after `now`. */
static void tornado__date_century(tornado__civil *civil, int64_t now)
{
    tornado__civil limit;
    tornado__civil_from(now, &limit);
    limit.year += 50;
    civil->year = limit.year - (limit.year - civil->year) % 100;
    if (tornado__civil_seconds(civil) > tornado__civil_seconds(&limit))
        civil->year -= 100;
}

TORNADO_API bool tornado_parse_timestamp(const char *text, int64_t *when)
{
    static const char patterns[][20] = {"w, d b c h:m:s GMT", "l, d-b-y h:m:s GMT", "w b e h:m:s c"};
    for (size_t i = 0; i < TORNADO__COUNT(patterns); i++) {
        tornado__civil civil = {0, 0, 0, 0, 0, 0, 0};
        const char *rest = tornado__date_match(text, patterns[i], &civil);
        if (!rest || *rest)
            continue;
        if (i == 1)
            tornado__date_century(&civil, tornado__clock_ns(CLOCK_REALTIME) / TORNADO__NS_PER_SECOND);
        if (tornado__civil_time(&civil, 0, when))
            return true;
    }
    return tornado__fail(TORNADO_ERR_PARSE, 0, "not a date as HTTP writes it (RFC 9110 section 5.6.7)");
}

/* "Z", "+01:00" and the like; NULL for anything else. */
static const char *tornado__date_zone(const char *text, int *offset)
{
    tornado__civil zone = {0, 0, 0, 0, 0, 0, 0};
    *offset = 0;
    if (*text == 'Z' || *text == 'z')
        return text + 1;
    if (*text != '+' && *text != '-')
        return NULL;
    const char *rest = tornado__date_match(text + 1, "h:m", &zone);
    if (!rest || zone.hour > 23 || zone.minute > 59)
        return NULL;
    *offset = (zone.hour * 60 + zone.minute) * (*text == '-' ? -60 : 60);
    return rest;
}

static const char *tornado__date_fraction(const char *text)
{
    if (*text != '.')
        return text;
    const char *end = text + 1;
    while (*end >= '0' && *end <= '9')
        end++;
    return end > text + 1 ? end : NULL;
}

TORNADO_API bool tornado_parse_iso8601(const char *text, int64_t *when)
{
    tornado__civil civil = {0, 0, 0, 0, 0, 0, 0};
    int offset = 0;
    const char *rest = tornado__date_match(text, "c-n-d", &civil);
    if (rest)
        rest = *rest == 'T' || *rest == 't' || *rest == ' ' ? tornado__date_match(rest + 1, "h:m:s", &civil) : NULL;
    if (rest)
        rest = tornado__date_fraction(rest);
    if (rest)
        rest = tornado__date_zone(rest, &offset);
    if (rest && *rest == '\0' && tornado__civil_time(&civil, offset, when))
        return true;
    return tornado__fail(TORNADO_ERR_PARSE, 0, "not a date and time as RFC 3339 section 5.6 writes it");
}

/*============================================================================
 * section: log (private)
 * One line, one write. A record is put together on the stack, so logging works when memory is short.
 *
 * Levels and the place where lines go are relaxed atomics: any thread may log while another configures.
 *============================================================================*/

enum { TORNADO__LOG_LINE = 4096 };

static struct {
    atomic_int levels[TORNADO_LOG_STREAMS]; /* as an offset from WARNING, so that all zero is the default */
    atomic_int fd;                          /* plus one; 0: standard error */
    atomic_int color;                       /* a tornado_switch */
    void (*hook)(const tornado_log_record *record, void *arg);
    const char *(*tag)(void *arg);
    void *arg;
} tornado__log;

TORNADO_API bool tornado_log_enabled(tornado_log_stream stream, tornado_log_level level)
{
    return (int)level >=
           atomic_load_explicit(&tornado__log.levels[stream], memory_order_relaxed) + TORNADO_LOG_WARNING;
}

TORNADO_API void tornado_enable_pretty_logging(const tornado_log_options *options)
{
    static const tornado_log_options defaults;
    const tornado_log_options *o = options ? options : &defaults;
    int common = o->level ? o->level : TORNADO_LOG_INFO;
    tornado__log.arg = o->arg;
    tornado__log.hook = o->hook;
    tornado__log.tag = o->tag;
    atomic_store(&tornado__log.fd, o->fd > 0 ? o->fd + 1 : 0);
    atomic_store(&tornado__log.color, (int)o->color);
    for (int i = 0; i < TORNADO_LOG_STREAMS; i++)
        atomic_store(&tornado__log.levels[i], (o->levels[i] ? (int)o->levels[i] : common) - TORNADO_LOG_WARNING);
}

/* A line under construction. It ends with the last piece that fits whole. */
typedef struct tornado__log_line {
    size_t len;
    bool full;
    char text[TORNADO__LOG_LINE];
} tornado__log_line;

static void tornado__log_put(tornado__log_line *line, const char *data, size_t len)
{
    size_t room = sizeof line->text - 16 - line->len; /* for the colour, a newline and a NUL */
    line->full = line->full || len > room;
    if (line->full)
        return;
    memcpy(line->text + line->len, data, len);
    line->len += len;
}

/* The length of the UTF-8 character at `text`; 0 when it is none, or a control, U+0080 to U+009F. */
static size_t tornado__log_character(const char *text, size_t len)
{
    unsigned char lead = (unsigned char)text[0], second = len > 1 ? (unsigned char)text[1] : 0;
    unsigned char low = lead == 0xe0 || lead == 0xc2 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || len < size || second < low || second > high)
        return 0;
    for (size_t i = 2; i < size; i++)
        if (((unsigned char)text[i] & 0xc0) != 0x80)
            return 0;
    return size;
}

/* Appends a message such that it cannot be mistaken for other lines: controls and what is not UTF-8 as \xNN,
   further lines indented. */
static void tornado__log_message(tornado__log_line *line, const char *message, size_t len)
{
    for (size_t at = 0, size; at < len; at += size ? size : 1) {
        unsigned char byte = (unsigned char)message[at];
        size = byte >= 0x80 ? tornado__log_character(message + at, len - at) : byte >= 0x20 && byte != 0x7f;
        if (byte == '\n') {
            tornado__log_put(line, "\n    ", 5);
        } else if (size > 0 || byte == '\t') {
            tornado__log_put(line, message + at, size ? size : 1);
        } else {
            char escaped[5];
            snprintf(escaped, sizeof escaped, "\\x%02x", byte);
            tornado__log_put(line, escaped, 4);
        }
    }
}

static bool tornado__log_colored(int fd)
{
    int color = atomic_load_explicit(&tornado__log.color, memory_order_relaxed);
    if (color != TORNADO_DEFAULT)
        return color == TORNADO_ON;
    const char *term = getenv("TERM");
    return isatty(fd) && term && *term && strcmp(term, "dumb") != 0;
}

/* "[I 261121 06:54:38 hello:12]", the part that is coloured. */
static void tornado__log_prefix(tornado__log_line *line, tornado_log_level level, time_t when, const char *file,
                                int number)
{
    const char *name = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
    const char *dot = strrchr(name, '.');
    struct tm local;
    char prefix[128];
    if (!localtime_r(&when, &local))
        memset(&local, 0, sizeof local);
    int len = snprintf(
        prefix, sizeof prefix, "[%c %02d%02d%02d %02d:%02d:%02d %.*s:%d]",
        level >= TORNADO_LOG_CRITICAL  ? 'C'
        : level >= TORNADO_LOG_ERROR   ? 'E'
        : level >= TORNADO_LOG_WARNING ? 'W'
        : level >= TORNADO_LOG_INFO    ? 'I'
                                       : 'D',
        local.tm_year % 100, local.tm_mon + 1, local.tm_mday, local.tm_hour, local.tm_min, local.tm_sec,
        (int)(dot && dot > name && dot - name < 60 ? dot - name : (ptrdiff_t)strnlen(name, 60)), name, number);
    tornado__log_put(line, prefix, (size_t)len < sizeof prefix ? (size_t)len : sizeof prefix - 1);
}

static void tornado__log_emit(tornado__log_line *line, tornado_log_level level, size_t prefix)
{
    int fd = atomic_load_explicit(&tornado__log.fd, memory_order_relaxed), on = fd ? fd - 1 : 2;
    if (tornado__log_colored(on)) {
        int color = level >= TORNADO_LOG_ERROR     ? 1
                    : level >= TORNADO_LOG_WARNING ? 3
                    : level >= TORNADO_LOG_INFO    ? 2
                                                   : 4;
        char start[8];
        size_t len = line->len;
        snprintf(start, sizeof start, "\033[3%dm", color);
        memmove(line->text + prefix + 9, line->text + prefix, len - prefix);
        memmove(line->text + 5, line->text, prefix);
        memcpy(line->text, start, 5);
        memcpy(line->text + 5 + prefix, "\033[0m", 4);
        line->len = len + 9;
    }
    line->text[line->len++] = '\n';
    for (size_t done = 0; done < line->len;) {
        ssize_t written = write(on, line->text + done, line->len - done);
        if (written < 0 && errno != EINTR)
            break; /* there is nowhere to tell */
        if (written > 0)
            done += (size_t)written;
    }
}

static void tornado__log_vwrite(tornado_log_stream stream, tornado_log_level level, const char *file, int number,
                                const tornado_error *error, const char *format, va_list args) TORNADO_PRINTF(6, 0);
static void tornado__log_vwrite(tornado_log_stream stream, tornado_log_level level, const char *file, int number,
                                const tornado_error *error, const char *format, va_list args)
{
    int saved = errno;
    tornado__log_line line;
    char message[3072];
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_REALTIME, &now);
    int len = vsnprintf(message, sizeof message - 8, format, args);
    if (len < 0)
        len = snprintf(message, sizeof message, "(a message that cannot be printed: %.200s)", format);
    if ((size_t)len >= sizeof message - 8) {
        for (len = (int)sizeof message - 12; len > 0 && ((unsigned char)message[len] & 0xc0) == 0x80;)
            len--; /* to where a character begins */
        memcpy(message + len, "...", 4);
        len += 3;
    }
    if (error)
        len += snprintf(message + len, sizeof message - (size_t)len, ": %s: %s", tornado_error_name(error->code),
                        error->message);
    if ((size_t)len >= sizeof message)
        len = (int)sizeof message - 1;
    while (len > 0 && (message[len - 1] == '\n' || message[len - 1] == '\r'))
        message[--len] = '\0';
    line.len = 0;
    line.full = false;
    tornado__log_prefix(&line, level, now.tv_sec, file, number);
    size_t prefix = line.len;
    const char *tag = tornado__log.tag ? tornado__log.tag(tornado__log.arg) : NULL;
    tornado__log_put(&line, " ", 1);
    if (tag) {
        tornado__log_message(&line, tag, strnlen(tag, 256));
        tornado__log_put(&line, " ", 1);
    }
    tornado__log_message(&line, message, (size_t)len);
    line.text[line.len] = '\0';
    if (tornado__log.hook) {
        tornado_log_record record = {
            stream, level, (double)now.tv_sec + (double)now.tv_nsec / 1e9, file, number, message, line.text};
        tornado__log.hook(&record, tornado__log.arg);
    } else {
        tornado__log_emit(&line, level, prefix);
    }
    errno = saved;
}

TORNADO_API void tornado_log_write(tornado_log_stream stream, tornado_log_level level, const char *file, int line,
                                   const char *format, ...)
{
    va_list args;
    va_start(args, format);
    tornado__log_vwrite(stream, level, file, line, NULL, format, args);
    va_end(args);
}

/* Logs text, then an error's name and message. */
static void tornado__log_error(tornado_log_stream stream, tornado_log_level level, const tornado_error *error,
                               const char *format, ...) TORNADO_PRINTF(4, 5);
static void tornado__log_error(tornado_log_stream stream, tornado_log_level level, const tornado_error *error,
                               const char *format, ...)
{
    va_list args;
    if (!tornado_log_enabled(stream, level))
        return;
    va_start(args, format);
    tornado__log_vwrite(stream, level, __FILE__, __LINE__, error, format, args);
    va_end(args);
}

/*============================================================================
 * section: codec (private)
 * Hexadecimal, UTF-8, random bytes, and two hashes: one for ETags, and one with a secret key for tables.
 *============================================================================*/

static TORNADO__INLINE uint64_t tornado__load_le64(const void *data)
{
    uint64_t value;
    memcpy(&value, data, sizeof value);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static TORNADO__INLINE uint32_t tornado__load_le32(const void *data)
{
    uint32_t value;
    memcpy(&value, data, sizeof value);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    return value;
}

static TORNADO__INLINE void tornado__store_le64(void *out, uint64_t value)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    memcpy(out, &value, sizeof value);
}

static TORNADO__INLINE uint64_t tornado__rotate(uint64_t value, unsigned count)
{
    return value << count | value >> (64 - count);
}

TORNADO_API char *tornado_hex_encode(const void *data, size_t len, char *out)
{
    const unsigned char *bytes = data;
    size_t i = 0;
#ifdef __SSE2__
    for (; len - i >= 16; i += 16) {
        __m128i all = _mm_loadu_si128((const __m128i *)(const void *)(bytes + i)), low4 = _mm_set1_epi8(15);
        __m128i high = _mm_and_si128(_mm_srli_epi16(all, 4), low4), low = _mm_and_si128(all, low4);
        for (int half = 0; half < 2; half++) {
            __m128i digits = half ? _mm_unpackhi_epi8(high, low) : _mm_unpacklo_epi8(high, low);
            __m128i letters =
                _mm_and_si128(_mm_cmpgt_epi8(digits, _mm_set1_epi8(9)), _mm_set1_epi8('a' - '0' - 10));
            _mm_storeu_si128((__m128i *)(void *)(out + 2 * i + 16 * half),
                             _mm_add_epi8(_mm_add_epi8(digits, _mm_set1_epi8('0')), letters));
        }
    }
#endif
    for (; i < len; i++) {
        out[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
    }
    out[2 * len] = '\0';
    return out;
}

/* The value of a hexadecimal digit; -1: it is none. */
static TORNADO__INLINE int tornado__hex_digit(char c)
{
    unsigned digit = (unsigned char)c - '0', letter = ((unsigned char)c | 0x20) - 'a';
    return digit < 10 ? (int)digit : letter < 6 ? (int)letter + 10 : -1;
}

/* The value of two digits, or something negative. */
static TORNADO__INLINE int tornado__hex_byte(const char *digits)
{
    return tornado__hex_digit(digits[0]) * 16 | tornado__hex_digit(digits[1]);
}

TORNADO_API bool tornado_hex_decode(const char *text, size_t len, void *out)
{
    unsigned char *bytes = out;
    if (len % 2)
        return tornado__fail(TORNADO_ERR_PARSE, 0, "an odd number of hexadecimal digits");
    for (size_t i = 0; i < len; i += 2) {
        int value = tornado__hex_byte(text + i);
        if (value < 0)
            return tornado__fail(TORNADO_ERR_PARSE, 0, "no hexadecimal digit at offset %zu",
                                 i + (tornado__hex_digit(text[i]) >= 0));
        bytes[i / 2] = (unsigned char)value;
    }
    return true;
}

TORNADO_API size_t tornado_utf8_decode(const char *data, size_t len, uint32_t *code_point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)data;
    if (len == 0)
        return 0;
    uint32_t value = bytes[0];
    if (value < 0x80) {
        *code_point = value;
        return 1;
    }
    size_t size = value < 0xe0 ? 2 : value < 0xf0 ? 3 : 4;
    if (value < 0xc0 || value >= 0xf8 || len < size)
        return 0;
    value &= 0x7fu >> size;
    for (size_t i = 1; i < size; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (bytes[i] & 0x3f);
    }
    if (value < least[size] || (value >= 0xd800 && value <= 0xdfff) || value > 0x10ffff)
        return 0;
    *code_point = value;
    return size;
}

/* How many bytes at the beginning are whole, valid characters. */
static size_t tornado__utf8_span(const char *data, size_t len)
{
    size_t at = 0;
    while (at < len) {
        uint32_t ignored;
        while (len - at >= 8 && !(tornado__load_le64(data + at) & UINT64_C(0x8080808080808080)))
            at += 8;
        size_t size = tornado_utf8_decode(data + at, len - at, &ignored);
        if (size == 0)
            break;
        at += size;
    }
    return at;
}

TORNADO_API bool tornado_utf8_valid(const char *data, size_t len)
{
    return tornado__utf8_span(data, len) == len;
}

TORNADO_API size_t tornado_utf8_encode(uint32_t code_point, char out[4])
{
    if ((code_point >= 0xd800 && code_point <= 0xdfff) || code_point > 0x10ffff)
        return 0;
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    size_t size = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = size - 1; i > 0; i--, code_point >>= 6)
        out[i] = (char)(0x80 | (code_point & 0x3f));
    out[0] = (char)((0xf00u >> size & 0xff) | code_point); /* as many one bits as bytes */
    return size;
}

static bool tornado__random_device(char *out, size_t len)
{
    int fd;
    do
        fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    while (fd >= 0 && len > 0) {
        ssize_t got = read(fd, out, len < INT_MAX ? len : INT_MAX);
        if (got > 0) {
            out += got;
            len -= (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            errno = got == 0 ? EIO : errno;
            break;
        }
    }
    int reason = errno;
    if (fd >= 0)
        close(fd);
    return len == 0 || tornado__fail(TORNADO_ERR_SYSTEM, reason, "no random bytes: /dev/urandom cannot be read");
}

TORNADO_API bool tornado_random_bytes(void *out, size_t len)
{
    char *at = out;
#ifdef SYS_getrandom
    while (len > 0) { /* a kernel or a sandbox without the call leaves the rest to the device */
        long got = syscall(SYS_getrandom, at, len < INT_MAX ? len : INT_MAX, 0);
        if (got > 0) {
            at += got;
            len -= (size_t)got;
        } else if (got == 0 || errno != EINTR) {
            break;
        }
    }
#endif
    return len == 0 || tornado__random_device(at, len);
}

/* The product of two words: its low half; the high one into *high. */
static TORNADO__INLINE uint64_t tornado__multiply(uint64_t a, uint64_t b, uint64_t *high)
{
#ifdef __SIZEOF_INT128__
    __extension__ typedef unsigned __int128 product_type;
    product_type product = (product_type)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32); /* neither this sum nor the next can overflow */
    uint64_t carry = a0 * b1 + (uint32_t)middle;
    *high = a1 * b1 + (middle >> 32) + (carry >> 32);
    return carry << 32 | (uint32_t)(a0 * b0);
#endif
}

/* The hash for ETags. The state is two words. A step takes in two more and multiplies each by an odd constant; the
   high half of one product joins the low half of the other: low halves carry a change upwards, high halves
   downwards, and a change to one word alone is never lost. Two such lanes run side by side, with constants of
   their own, lest equal changes cancel out. The value is the same on every machine. It is no defence against a
   forger, who knows the constants: the fractions of the square roots of 2, 3, 5, 7, 11, 13, 17 and 19. */
#define TORNADO__HASH_A UINT64_C(0xbb67ae8584caa73b)
#define TORNADO__HASH_B UINT64_C(0xa54ff53a5f1d36f1)
#define TORNADO__HASH_C UINT64_C(0x9b05688c2b3e6c1f)
#define TORNADO__HASH_D UINT64_C(0x5be0cd19137e2179)

static TORNADO__INLINE void tornado__hash_step(uint64_t state[2], uint64_t a, uint64_t b, uint64_t by_a,
                                               uint64_t by_b)
{
    uint64_t high_a, high_b;
    uint64_t low_a = tornado__multiply(state[0] ^ a, by_a, &high_a);
    uint64_t low_b = tornado__multiply(state[1] ^ b, by_b, &high_b);
    state[0] = low_a ^ high_b;
    state[1] = low_b ^ high_a;
}

static TORNADO__INLINE void tornado__hash_stir(uint64_t state[2], uint64_t by_a, uint64_t by_b)
{
    tornado__hash_step(state, 0, 0, by_a, by_b);
    state[0] ^= tornado__rotate(state[1], 32);
    state[1] ^= tornado__rotate(state[0], 29);
}

/* Takes in 17 bytes or more; the last step overlaps the one before. */
static TORNADO__INLINE void tornado__hash_long(uint64_t state[2], const unsigned char *at, size_t len)
{
    uint64_t other[2] = {UINT64_C(0x510e527fade682d1), UINT64_C(0x1f83d9abfb41bd6b)};
    const unsigned char *end = at + len;
    for (; end - at > 32; at += 32) {
        tornado__hash_step(state, tornado__load_le64(at), tornado__load_le64(at + 8), TORNADO__HASH_A,
                           TORNADO__HASH_B);
        tornado__hash_step(other, tornado__load_le64(at + 16), tornado__load_le64(at + 24), TORNADO__HASH_C,
                           TORNADO__HASH_D);
    }
    if (len >= 32)
        at = end - 32;
    tornado__hash_step(state, tornado__load_le64(at), tornado__load_le64(at + 8), TORNADO__HASH_A, TORNADO__HASH_B);
    tornado__hash_step(other, tornado__load_le64(end - 16), tornado__load_le64(end - 8), TORNADO__HASH_C,
                       TORNADO__HASH_D);
    state[0] ^= other[1];
    state[1] ^= other[0];
}

static void tornado__hash128(const void *data, size_t len, unsigned char out[16])
{
    const unsigned char *at = data;
    uint64_t state[2] = {UINT64_C(0x6a09e667f3bcc908) + (uint64_t)len * TORNADO__HASH_C,
                         UINT64_C(0x3c6ef372fe94f82b)};
    if (len > 16) {
        tornado__hash_long(state, at, len);
    } else if (len >= 8) {
        state[0] ^= tornado__load_le64(at);
        state[1] ^= tornado__load_le64(at + len - 8);
    } else if (len >= 4) {
        state[0] ^= tornado__load_le32(at);
        state[1] ^= tornado__load_le32(at + len - 4);
    } else if (len > 0) {
        state[0] ^= at[0] | (uint64_t)at[len / 2] << 8 | (uint64_t)at[len - 1] << 16;
    }
    tornado__hash_stir(state, TORNADO__HASH_A, TORNADO__HASH_B);
    tornado__hash_stir(state, TORNADO__HASH_C, TORNADO__HASH_D);
    tornado__store_le64(out, state[0]);
    tornado__store_le64(out + 8, state[1]);
}

/*============================================================================
 * section: escape (private)
 * Text inside HTML and inside URLs.
 *
 * Escaping counts first, then writes into exactly as much. Unescaping never makes text longer, and writes at once.
 *============================================================================*/

/* What the five characters become; the others have index 0. */
static TORNADO__INLINE unsigned tornado__xhtml_index(char c)
{
    static const unsigned char index[64] = {['&'] = 1, ['<'] = 2, ['>'] = 3, ['"'] = 4, ['\''] = 5};
    return (unsigned char)c < sizeof index ? index[(unsigned char)c] : 0;
}

static const struct {
    char text[7];
    unsigned char len;
} tornado__xhtml_entities[] = {{"", 1}, {"&amp;", 5}, {"&lt;", 4}, {"&gt;", 4}, {"&quot;", 6}, {"&#39;", 5}};

/* The length of `len` bytes when they are escaped; 64 bits, for it may be more than a size_t can hold. */
static uint64_t tornado__xhtml_size(const char *text, size_t len)
{
    uint64_t size = 0;
    for (size_t i = 0; i < len; i++)
        size += tornado__xhtml_entities[tornado__xhtml_index(text[i])].len;
    return size;
}

/* Writes them, without a NUL, and returns the end of what it wrote. */
static char *tornado__xhtml_write(char *out, const char *text, size_t len)
{
    for (size_t from = 0, at = 0;; at++) {
        unsigned index = 0;
        while (at < len && !(index = tornado__xhtml_index(text[at])))
            at++;
        memcpy(out, text + from, at - from);
        out += at - from;
        if (at == len)
            return out;
        memcpy(out, tornado__xhtml_entities[index].text, tornado__xhtml_entities[index].len);
        out += tornado__xhtml_entities[index].len;
        from = at + 1;
    }
}

static char *tornado__escape_alloc(tornado_arena *arena, uint64_t len)
{
    if (len < SIZE_MAX)
        return tornado_arena_alloc(arena, (size_t)len + 1);
    tornado__nomem();
    return NULL;
}

TORNADO_API char *tornado_xhtml_escape(tornado_arena *arena, const char *text)
{
    size_t len = strlen(text);
    uint64_t size = tornado__xhtml_size(text, len);
    if (size == len)
        return tornado_arena_memdup(arena, text, len);
    char *out = tornado__escape_alloc(arena, size);
    if (out)
        *tornado__xhtml_write(out, text, len) = '\0';
    return out;
}

/* The entities of HTML 4, and apos, which XML adds. Sorted by name, as strcmp does. */
static const struct {
    char name[10];
    uint16_t code_point;
} tornado__html_entities[] = {
    {"AElig", 198}, {"Aacute", 193}, {"Acirc", 194}, {"Agrave", 192}, {"Alpha", 913}, {"Aring", 197},
    {"Atilde", 195}, {"Auml", 196}, {"Beta", 914}, {"Ccedil", 199}, {"Chi", 935}, {"Dagger", 8225},
    {"Delta", 916}, {"ETH", 208}, {"Eacute", 201}, {"Ecirc", 202}, {"Egrave", 200}, {"Epsilon", 917},
    {"Eta", 919}, {"Euml", 203}, {"Gamma", 915}, {"Iacute", 205}, {"Icirc", 206}, {"Igrave", 204},
    {"Iota", 921}, {"Iuml", 207}, {"Kappa", 922}, {"Lambda", 923}, {"Mu", 924}, {"Ntilde", 209}, {"Nu", 925},
    {"OElig", 338}, {"Oacute", 211}, {"Ocirc", 212}, {"Ograve", 210}, {"Omega", 937}, {"Omicron", 927},
    {"Oslash", 216}, {"Otilde", 213}, {"Ouml", 214}, {"Phi", 934}, {"Pi", 928}, {"Prime", 8243}, {"Psi", 936},
    {"Rho", 929}, {"Scaron", 352}, {"Sigma", 931}, {"THORN", 222}, {"Tau", 932}, {"Theta", 920},
    {"Uacute", 218}, {"Ucirc", 219}, {"Ugrave", 217}, {"Upsilon", 933}, {"Uuml", 220}, {"Xi", 926},
    {"Yacute", 221}, {"Yuml", 376}, {"Zeta", 918}, {"aacute", 225}, {"acirc", 226}, {"acute", 180},
    {"aelig", 230}, {"agrave", 224}, {"alefsym", 8501}, {"alpha", 945}, {"amp", 38}, {"and", 8743},
    {"ang", 8736}, {"apos", 39}, {"aring", 229}, {"asymp", 8776}, {"atilde", 227}, {"auml", 228},
    {"bdquo", 8222}, {"beta", 946}, {"brvbar", 166}, {"bull", 8226}, {"cap", 8745}, {"ccedil", 231},
    {"cedil", 184}, {"cent", 162}, {"chi", 967}, {"circ", 710}, {"clubs", 9827}, {"cong", 8773}, {"copy", 169},
    {"crarr", 8629}, {"cup", 8746}, {"curren", 164}, {"dArr", 8659}, {"dagger", 8224}, {"darr", 8595},
    {"deg", 176}, {"delta", 948}, {"diams", 9830}, {"divide", 247}, {"eacute", 233}, {"ecirc", 234},
    {"egrave", 232}, {"empty", 8709}, {"emsp", 8195}, {"ensp", 8194}, {"epsilon", 949}, {"equiv", 8801},
    {"eta", 951}, {"eth", 240}, {"euml", 235}, {"euro", 8364}, {"exist", 8707}, {"fnof", 402}, {"forall", 8704},
    {"frac12", 189}, {"frac14", 188}, {"frac34", 190}, {"frasl", 8260}, {"gamma", 947}, {"ge", 8805},
    {"gt", 62}, {"hArr", 8660}, {"harr", 8596}, {"hearts", 9829}, {"hellip", 8230}, {"iacute", 237},
    {"icirc", 238}, {"iexcl", 161}, {"igrave", 236}, {"image", 8465}, {"infin", 8734}, {"int", 8747},
    {"iota", 953}, {"iquest", 191}, {"isin", 8712}, {"iuml", 239}, {"kappa", 954}, {"lArr", 8656},
    {"lambda", 955}, {"lang", 9001}, {"laquo", 171}, {"larr", 8592}, {"lceil", 8968}, {"ldquo", 8220},
    {"le", 8804}, {"lfloor", 8970}, {"lowast", 8727}, {"loz", 9674}, {"lrm", 8206}, {"lsaquo", 8249},
    {"lsquo", 8216}, {"lt", 60}, {"macr", 175}, {"mdash", 8212}, {"micro", 181}, {"middot", 183},
    {"minus", 8722}, {"mu", 956}, {"nabla", 8711}, {"nbsp", 160}, {"ndash", 8211}, {"ne", 8800}, {"ni", 8715},
    {"not", 172}, {"notin", 8713}, {"nsub", 8836}, {"ntilde", 241}, {"nu", 957}, {"oacute", 243},
    {"ocirc", 244}, {"oelig", 339}, {"ograve", 242}, {"oline", 8254}, {"omega", 969}, {"omicron", 959},
    {"oplus", 8853}, {"or", 8744}, {"ordf", 170}, {"ordm", 186}, {"oslash", 248}, {"otilde", 245},
    {"otimes", 8855}, {"ouml", 246}, {"para", 182}, {"part", 8706}, {"permil", 8240}, {"perp", 8869},
    {"phi", 966}, {"pi", 960}, {"piv", 982}, {"plusmn", 177}, {"pound", 163}, {"prime", 8242}, {"prod", 8719},
    {"prop", 8733}, {"psi", 968}, {"quot", 34}, {"rArr", 8658}, {"radic", 8730}, {"rang", 9002}, {"raquo", 187},
    {"rarr", 8594}, {"rceil", 8969}, {"rdquo", 8221}, {"real", 8476}, {"reg", 174}, {"rfloor", 8971},
    {"rho", 961}, {"rlm", 8207}, {"rsaquo", 8250}, {"rsquo", 8217}, {"sbquo", 8218}, {"scaron", 353},
    {"sdot", 8901}, {"sect", 167}, {"shy", 173}, {"sigma", 963}, {"sigmaf", 962}, {"sim", 8764},
    {"spades", 9824}, {"sub", 8834}, {"sube", 8838}, {"sum", 8721}, {"sup", 8835}, {"sup1", 185}, {"sup2", 178},
    {"sup3", 179}, {"supe", 8839}, {"szlig", 223}, {"tau", 964}, {"there4", 8756}, {"theta", 952},
    {"thetasym", 977}, {"thinsp", 8201}, {"thorn", 254}, {"tilde", 732}, {"times", 215}, {"trade", 8482},
    {"uArr", 8657}, {"uacute", 250}, {"uarr", 8593}, {"ucirc", 251}, {"ugrave", 249}, {"uml", 168},
    {"upsih", 978}, {"upsilon", 965}, {"uuml", 252}, {"weierp", 8472}, {"xi", 958}, {"yacute", 253},
    {"yen", 165}, {"yuml", 255}, {"zeta", 950}, {"zwj", 8205}, {"zwnj", 8204},
};

/* The character of a name, or 0. */
static uint32_t tornado__html_named(const char *name, size_t len)
{
    size_t low = 0, high = TORNADO__COUNT(tornado__html_entities);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strncmp(tornado__html_entities[middle].name, name, len);
        if (order == 0 && tornado__html_entities[middle].name[len] == '\0')
            return tornado__html_entities[middle].code_point;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* The character of "#39" or "#x27", or 0. */
static uint32_t tornado__html_numbered(const char *number, size_t len)
{
    bool hex = len > 1 && (number[1] == 'x' || number[1] == 'X');
    size_t at = hex ? 2 : 1;
    uint32_t value = 0;
    for (; at < len; at++) {
        int digit = tornado__hex_digit(number[at]);
        if (digit < 0 || (!hex && digit > 9))
            return 0;
        value = value * (hex ? 16 : 10) + (uint32_t)digit;
        if (value > 0x10ffff)
            return 0;
    }
    return value;
}

/* Reads a reference, which begins at "&", and writes its character to *out, which it moves on. Returns how much it
   read, 0 when this is no reference. */
static size_t tornado__html_reference(const char *text, char **out)
{
    size_t len = 1 + (text[1] == '#');
    while ((text[len] >= '0' && text[len] <= '9') || ((text[len] | 32) >= 'a' && (text[len] | 32) <= 'z'))
        len++;
    if (text[len] != ';')
        return 0;
    uint32_t code_point = text[1] == '#' ? tornado__html_numbered(text + 1, len - 1)
                                         : tornado__html_named(text + 1, len - 1);
    size_t written = code_point ? tornado_utf8_encode(code_point, *out) : 0;
    *out += written;
    return written ? len + 1 : 0;
}

TORNADO_API char *tornado_xhtml_unescape(tornado_arena *arena, const char *text)
{
    size_t len = strlen(text);
    char *copy = tornado__escape_alloc(arena, len);
    char *out = copy;
    while (copy && len > 0) {
        const char *amp = memchr(text, '&', len);
        size_t plain = amp ? (size_t)(amp - text) : len;
        memcpy(out, text, plain);
        out += plain;
        text += plain;
        len -= plain;
        if (len > 0) {
            size_t taken = tornado__html_reference(text, &out);
            if (taken == 0) {
                *out++ = '&';
                taken = 1;
            }
            text += taken;
            len -= taken;
        }
    }
    if (copy)
        *out = '\0';
    return copy;
}

/* One bit for each character that stands for itself: letters, digits and "-._~". */
static const uint32_t tornado__url_plain[8] = {0, 0x03ff6000, 0x87fffffe, 0x47fffffe, 0, 0, 0, 0};

/* How a character appears in a URL: as itself, or as what this returns, or, when that is "%", as three. */
static TORNADO__INLINE char tornado__url_char(unsigned char c, bool plus)
{
    if (tornado__url_plain[c >> 5] >> (c & 31) & 1)
        return (char)c;
    if (plus)
        return c == ' ' ? '+' : '%';
    return c == '/' ? '/' : '%';
}

TORNADO_API char *tornado_url_escape(tornado_arena *arena, const char *text, bool plus)
{
    uint64_t size = 0;
    for (const char *at = text; *at; at++)
        size += tornado__url_char((unsigned char)*at, plus) == '%' ? 3 : 1;
    char *escaped = tornado__escape_alloc(arena, size);
    if (!escaped)
        return NULL;
    char *out = escaped;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        *out = tornado__url_char(c, plus);
        if (*out++ == '%') {
            *out++ = "0123456789ABCDEF"[c >> 4];
            *out++ = "0123456789ABCDEF"[c & 15];
        }
    }
    *out = '\0';
    return escaped;
}

/* Writes a percent-encoded text decoded, with a NUL behind it, and moves *out past that. */
static tornado_bytes tornado__put_unescaped(char **out, tornado_bytes text, bool plus)
{
    char *at = *out;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        int value = c == '%' && text.len - i > 2 ? tornado__hex_byte(text.data + i + 1) : -1;
        if (value >= 0)
            i += 2;
        *at++ = value >= 0 ? (char)value : c == '+' && plus ? ' ' : c;
    }
    *at = '\0';
    tornado_bytes unescaped = {*out, (size_t)(at - *out)};
    *out = at + 1;
    return unescaped;
}

TORNADO_API tornado_bytes tornado_url_unescape(tornado_arena *arena, tornado_bytes text, bool plus)
{
    char *out = tornado__escape_alloc(arena, text.len);
    return out ? tornado__put_unescaped(&out, text, plus) : (tornado_bytes){NULL, 0};
}

/*============================================================================
 * section: value (private)
 * Values and JSON.
 *
 * A value is a cell of 16 bytes: its kind and length in one word, its content or where that is in the other. The
 * items of a list are an array of cells, the items of a dict an array of pairs of them, key and value. A list or
 * dict that is built, and a dict of many keys, has a box instead, which all copies of its cell share, with such an
 * array in it. Strings have a NUL and at least TORNADO__VALUE_PAD readable bytes behind them, so that blocks of 16
 * can be loaded.
 *
 * Parsing copies the text once, counting what separates values, so that their cells can be allocated at once.
 * Strings stay where they are in the copy: escapes never get longer when they are decoded. Cells of what is open
 * are stacked from the low end of the allocation; at its closing bracket they are moved, for good, below those at
 * the high end. So nothing recurses, and nothing but the arena is used.
 *
 * Numbers: both ways between decimal and binary multiply by 128 bits of a power of ten. That decides all but a few
 * decimals that are nearly or exactly halfway between two doubles; strtod decides those.
 *============================================================================*/

enum { TORNADO__JSON_DEPTH = 64, TORNADO__JSON_SLACK = 128 };
enum { TORNADO__VALUE_DEPTH = 512, TORNADO__VALUE_PAD = 16 };
enum { TORNADO__DICT_SCAN = 32 }; /* pairs of a dict that are searched one by one; larger ones have an index */

/* In the low byte of a cell's head, beside the kind. */
enum {
    TORNADO__VALUE_KIND = 7,
    TORNADO__VALUE_BOXED = 8,
    TORNADO__VALUE_UTF8 = 16,  /* a string known to be UTF-8 */
    TORNADO__VALUE_FAILED = 32 /* stands for a value for which memory was short */
};

struct tornado_value {
    uint64_t head; /* length << 8 | flags | kind */
    union {
        int64_t integer; /* also a bool */
        uint64_t bits;   /* an unsigned integer */
        double number;
        const char *string;
        const tornado_value *items;
        struct tornado__box *box;
    } as;
};

typedef struct tornado__box {
    tornado_arena *arena; /* it grows in it; NULL when it never changes */
    tornado_value *items;
    size_t len, cap;    /* values, or pairs */
    uint32_t *index;    /* by hash, the number of a pair plus one, or 0; NULL while there are few */
    size_t index_size;  /* a power of two, at least twice len */
    uint64_t secret[2]; /* of the hash */
    bool failed;
} tornado__box;

/*----------------------------------------------------------------------------
 * Numbers, binary and decimal.
 *----------------------------------------------------------------------------*/

/* The significands of powers of ten with their top bit set, cut off behind the last: 192 bits of every 27th, from
   10^-351 to 10^324, and 64 bits of 10^0 to 10^26, which are all there are. */
static const uint64_t tornado__tens_coarse[][3] = {
    {UINT64_C(0x8049a4ac0c5811ae), UINT64_C(0x205b896d777d6278), UINT64_C(0xac261e9f5141430b)},
    {UINT64_C(0xcf42894a5dce35ea), UINT64_C(0x52064cac828675b9), UINT64_C(0x475f2b7d7df1ad7a)},
    {UINT64_C(0xa76c582338ed2621), UINT64_C(0xaf2af2b80af6f24e), UINT64_C(0x657c8f4d43323a36)},
    {UINT64_C(0x873e4f75e2224e68), UINT64_C(0x5a7744a6e804a291), UINT64_C(0xcc35eddfcf0996d7)},
    {UINT64_C(0xda7f5bf590966848), UINT64_C(0xaf39a475506a899e), UINT64_C(0xa30294cc2934e662)},
    {UINT64_C(0xb080392cc4349dec), UINT64_C(0xbd8d794d96aacfb3), UINT64_C(0xfe13a5c86af64418)},
    {UINT64_C(0x8e938662882af53e), UINT64_C(0x547eb47b7282ee9c), UINT64_C(0x41b0230e1421487d)},
    {UINT64_C(0xe65829b3046b0afa), UINT64_C(0x0cb4a5a3112a5112), UINT64_C(0xa3b561b1cb208396)},
    {UINT64_C(0xba121a4650e4ddeb), UINT64_C(0x92f34d62616ce413), UINT64_C(0x21a0183e10583cd3)},
    {UINT64_C(0x964e858c91ba2655), UINT64_C(0x3a6a07f8d510f86f), UINT64_C(0xe9082f25e9c5e9ec)},
    {UINT64_C(0xf2d56790ab41c2a2), UINT64_C(0xfae27299423fb9c3), UINT64_C(0x3695dad7e8858901)},
    {UINT64_C(0xc428d05aa4751e4c), UINT64_C(0xaa97e14c3c26b886), UINT64_C(0x96842dc95323f5a8)},
    {UINT64_C(0x9e74d1b791e07e48), UINT64_C(0x775ea264cf55347d), UINT64_C(0xca49f1c05120c9c7)},
    {UINT64_C(0x8000000000000000), UINT64_C(0x0000000000000000), UINT64_C(0x0000000000000000)},
    {UINT64_C(0xcecb8f27f4200f3a), UINT64_C(0x0000000000000000), UINT64_C(0x0000000000000000)},
    {UINT64_C(0xa70c3c40a64e6c51), UINT64_C(0x999090b65f67d924), UINT64_C(0x0000000000000000)},
    {UINT64_C(0x86f0ac99b4e8dafd), UINT64_C(0x69a028bb3ded71a3), UINT64_C(0xdf9f915627c04e28)},
    {UINT64_C(0xda01ee641a708de9), UINT64_C(0xe80e6f4820cc9495), UINT64_C(0xd74baad03bc1d8d3)},
    {UINT64_C(0xb01ae745b101e9e4), UINT64_C(0x5ec05dcff72e7f8f), UINT64_C(0xc04c79ffe324301f)},
    {UINT64_C(0x8e41ade9fbebc27d), UINT64_C(0x14588f13be847307), UINT64_C(0x23bd6a2059c002f5)},
    {UINT64_C(0xe5d3ef282a242e81), UINT64_C(0x8f1668c8a86da5fa), UINT64_C(0xf0b5ccf5176ecc7c)},
    {UINT64_C(0xb9a74a0637ce2ee1), UINT64_C(0x6d953e2bd7173692), UINT64_C(0x88efb0037ac08bde)},
    {UINT64_C(0x95f83d0a1fb69cd9), UINT64_C(0x4abdaf101564f98e), UINT64_C(0x0d5a4af7b3a98e47)},
    {UINT64_C(0xf24a01a73cf2dccf), UINT64_C(0xbc633b39673c8cec), UINT64_C(0x3d9c44cd2f36917c)},
    {UINT64_C(0xc3b8358109e84f07), UINT64_C(0x0a862f80ec4700c8), UINT64_C(0x02606ea01029dc37)},
    {UINT64_C(0x9e19db92b4e31ba9), UINT64_C(0x6c07a2c26a8346d1), UINT64_C(0x4944d9f52cd0dec2)},
};

static const uint64_t tornado__tens_fine[27] = {
    UINT64_C(0x8000000000000000), UINT64_C(0xa000000000000000), UINT64_C(0xc800000000000000),
    UINT64_C(0xfa00000000000000), UINT64_C(0x9c40000000000000), UINT64_C(0xc350000000000000),
    UINT64_C(0xf424000000000000), UINT64_C(0x9896800000000000), UINT64_C(0xbebc200000000000),
    UINT64_C(0xee6b280000000000), UINT64_C(0x9502f90000000000), UINT64_C(0xba43b74000000000),
    UINT64_C(0xe8d4a51000000000), UINT64_C(0x9184e72a00000000), UINT64_C(0xb5e620f480000000),
    UINT64_C(0xe35fa931a0000000), UINT64_C(0x8e1bc9bf04000000), UINT64_C(0xb1a2bc2ec5000000),
    UINT64_C(0xde0b6b3a76400000), UINT64_C(0x8ac7230489e80000), UINT64_C(0xad78ebc5ac620000),
    UINT64_C(0xd8d726b7177a8000), UINT64_C(0x878678326eac9000), UINT64_C(0xa968163f0a57b400),
    UINT64_C(0xd3c21bcecceda100), UINT64_C(0x84595161401484a0), UINT64_C(0xa56fa5b99019a5c8),
};

/* The first 128 bits of 10^power, -351 to 350: 10^power is at least (high * 2^64 + low) * 2^(e - 127), and less
   than one in the last place above it. Returns e. Only the carry from what was cut off could make the last bit
   wrong, and for none of these powers does. */
static TORNADO__INLINE int tornado__power_of_ten(int power, uint64_t *high, uint64_t *low)
{
    unsigned from = (unsigned)(power + 351);
    const uint64_t *coarse = tornado__tens_coarse[from / 27];
    uint64_t fine = tornado__tens_fine[from % 27], a, b, c;
    tornado__multiply(coarse[2], fine, &c);
    uint64_t l1 = tornado__multiply(coarse[1], fine, &b), l0 = tornado__multiply(coarse[0], fine, &a);
    l1 += c;
    b += l1 < c;
    l0 += b;
    a += l0 < b;
    unsigned shift = a >> 63 ? 0 : 1;
    *high = shift ? a << 1 | l0 >> 63 : a;
    *low = shift ? l0 << 1 | l1 >> 63 : l0;
    return power * 217706 >> 16;
}

#define TORNADO__DOUBLE_INFINITE (UINT64_C(0x7ff) << 52)

/* The powers of ten that are doubles. */
TORNADO__UNUSED static const double tornado__tens[23] = {
    1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* The bits of the double nearest to digits * 10^power. False where 128 bits do not tell. */
static bool tornado__nearest_double(uint64_t digits, int power, uint64_t *bits)
{
    uint64_t high, low, carry, top, next;
    *bits = 0;
    if (digits == 0 || power < -342)
        return true;
    *bits = TORNADO__DOUBLE_INFINITE;
    if (power > 308)
        return true;
    int zeros = __builtin_clzll(digits);
    int exponent = tornado__power_of_ten(power, &high, &low) + 64 - zeros; /* of the value, its top bit */
    tornado__multiply(digits << zeros, low, &carry);
    next = tornado__multiply(digits << zeros, high, &top);
    next += carry;
    top += next < carry;
    if (!(top >> 63)) {
        top = top << 1 | next >> 63;
        next <<= 1;
        exponent--;
    }
    /* the value is at least top * 2^64 + next, and less than 4 above it, in units of the last place */
    int biased = exponent + 1023;
    unsigned drop = biased > 0 ? 11 : 12 - biased < 65 ? (unsigned)(12 - biased) : 65;
    uint64_t half = drop <= 64 ? UINT64_C(1) << (drop - 1) : 0, mantissa = drop < 64 ? top >> drop : 0;
    uint64_t rest = drop < 64 ? top & ((UINT64_C(1) << drop) - 1) : top;
    if (drop <= 64) {
        if ((rest == half && next == 0) || (rest == half - 1 && next >= UINT64_MAX - 4))
            return false;
        mantissa += rest >= half;
    }
    *bits = mantissa + (biased > 0 ? (uint64_t)(biased - 1) << 52 : 0);
    if (*bits > TORNADO__DOUBLE_INFINITE)
        *bits = TORNADO__DOUBLE_INFINITE;
    return true;
}

/* The same by strtod, for the digits of a number in JSON's syntax. It is given digits and an exponent only, for
   what it takes as the decimal point depends on the locale; and no more than matter: halfway points have at most
   767 digits. */
static TORNADO__NOINLINE double tornado__decimal_exactly(const char *text)
{
    enum { DIGITS = 780 };
    char copy[DIGITS + 32];
    size_t len = 0;
    int64_t exponent = 0, given = 0;
    bool point = false, more = false, negative = false;
    int saved = errno;
    for (; (unsigned)(*text - '0') < 10 || *text == '.'; text++) {
        bool keep = len < DIGITS;
        if (*text == '.') {
            point = true;
            continue;
        }
        exponent += keep ? -(int)point : !point;
        if (!keep)
            more |= *text != '0';
        else if (len || *text != '0')
            copy[len++] = *text;
    }
    if (*text == 'e' || *text == 'E') {
        negative = text[1] == '-';
        for (text += 1 + (text[1] == '-' || text[1] == '+'); (unsigned)(*text - '0') < 10; text++)
            given = given < INT64_C(1) << 40 ? given * 10 + (*text - '0') : given;
    }
    exponent += (negative ? -given : given) - more;
    if (more)
        copy[len++] = '1';
    int clamped = exponent > 99999 ? 99999 : exponent < -99999 ? -99999 : (int)exponent;
    snprintf(copy + len, sizeof copy - len, "e%d", clamped);
    double number = strtod(len ? copy : "0", NULL);
    errno = saved;
    return number;
}

/* Of the upper half of a product its integral part, with the last bit set if there is a fraction. */
static TORNADO__INLINE uint64_t tornado__product_odd(uint64_t high, uint64_t low, uint64_t factor)
{
    uint64_t carry, top;
    tornado__multiply(low, factor, &carry);
    uint64_t next = tornado__multiply(high, factor, &top);
    next += carry;
    top += next < carry;
    return top | (next > 1);
}

/* The decimal, digits * 10^power, with the fewest digits that is nearer to a double than to any other, and of these
   the one nearest to it. The double is above zero, finite, and given by its bits. After Raffaele Giulietti, "The
   Schubfach way to render doubles": in units of 10^power there is at least one integer between the double's
   neighbours' midpoints and, in units ten times as large, at most one. */
static void tornado__shortest(uint64_t bits, uint64_t *digits, int *power)
{
    uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1), mantissa = fraction, high, low;
    int biased = (int)(bits >> 52), exponent = (biased ? biased : 1) - 1075;
    if (biased)
        mantissa |= UINT64_C(1) << 52;
    if (exponent <= 0 && exponent > -53 && !(mantissa & ((UINT64_C(1) << -exponent) - 1))) { /* an integer */
        *digits = mantissa >> -exponent;
        *power = 0;
        return;
    }
    bool uneven = fraction == 0 && biased > 1; /* the double below is nearer than the one above */
    int unit = (exponent * 1262611 - (uneven ? 524031 : 0)) >> 22;
    int shift = exponent + tornado__power_of_ten(-unit, &high, &low) + 1;
    if (-unit < 0 || -unit > 55) /* not exact: round up */
        high += ++low == 0;
    uint64_t odd = mantissa & 1;
    uint64_t value = tornado__product_odd(high, low, (4 * mantissa) << shift);
    uint64_t from = tornado__product_odd(high, low, (4 * mantissa - 2 + uneven) << shift) + odd;
    uint64_t to = tornado__product_odd(high, low, (4 * mantissa + 2) << shift) - odd;
    uint64_t whole = value / 4, tens = whole / 10;
    bool below = from <= 40 * tens, above = 40 * tens + 40 <= to;
    if (whole >= 10 && below != above) {
        *digits = tens + above;
        *power = unit + 1;
        return;
    }
    below = from <= 4 * whole;
    above = 4 * whole + 4 <= to;
    bool nearest = value > 4 * whole + 2 || (value == 4 * whole + 2 && (whole & 1));
    *digits = whole + (below != above ? above : nearest);
    *power = unit;
}

static const char tornado__digit_pairs[] = "0001020304050607080910111213141516171819202122232425262728293031323334"
                                           "3536373839404142434445464748495051525354555657585960616263646566676869"
                                           "707172737475767778798081828384858687888990919293949596979899";

/* How many digits a number has. */
static TORNADO__INLINE unsigned tornado__count_digits(uint64_t number)
{
    static const uint64_t tens[20] = {
        0, UINT64_C(10), UINT64_C(100), UINT64_C(1000), UINT64_C(10000), UINT64_C(100000), UINT64_C(1000000),
        UINT64_C(10000000), UINT64_C(100000000), UINT64_C(1000000000), UINT64_C(10000000000),
        UINT64_C(100000000000), UINT64_C(1000000000000), UINT64_C(10000000000000), UINT64_C(100000000000000),
        UINT64_C(1000000000000000), UINT64_C(10000000000000000), UINT64_C(100000000000000000),
        UINT64_C(1000000000000000000), UINT64_C(10000000000000000000)};
    unsigned least = (64 - (unsigned)__builtin_clzll(number | 1)) * 1233 >> 12; /* by the bits: this or one more */
    return least + (number >= tens[least]);
}

/* Writes `count` digits, all that the number has, and returns their end. */
static TORNADO__INLINE char *tornado__put_digits(char *out, uint64_t number, unsigned count)
{
    char *at = out + count;
    while (number >= 100000000) { /* eight at once, of which no two depend on each other */
        unsigned low = (unsigned)(number % 100000000), left = low / 10000, right = low % 10000;
        number /= 100000000;
        at -= 8;
        memcpy(at, tornado__digit_pairs + left / 100 * 2, 2);
        memcpy(at + 2, tornado__digit_pairs + left % 100 * 2, 2);
        memcpy(at + 4, tornado__digit_pairs + right / 100 * 2, 2);
        memcpy(at + 6, tornado__digit_pairs + right % 100 * 2, 2);
    }
    for (; number >= 100; number /= 100)
        memcpy(at -= 2, tornado__digit_pairs + number % 100 * 2, 2);
    if (number >= 10)
        memcpy(at - 2, tornado__digit_pairs + number * 2, 2);
    else
        at[-1] = (char)('0' + number);
    return out + count;
}

static TORNADO__INLINE char *tornado__put_integer(char *out, uint64_t magnitude, bool negative)
{
    *out = '-';
    out += negative;
    if (magnitude < 100) { /* of one digit: the second of its pair */
        memcpy(out, tornado__digit_pairs + 2 * magnitude + (magnitude < 10), 2);
        return out + 1 + (magnitude >= 10);
    }
    return tornado__put_digits(out, magnitude, tornado__count_digits(magnitude));
}

enum { TORNADO__DOUBLE_SIZE = 40 }; /* that much room is enough for any */

/* A number of so many millionths, of which there are at least 100. */
static char *tornado__put_millionths(char *out, uint64_t millionths)
{
    unsigned rest = (unsigned)(millionths % 1000000);
    out = tornado__put_integer(out, millionths / 1000000, false);
    *out = '.';
    memcpy(out + 1, tornado__digit_pairs + rest / 10000 * 2, 2);
    memcpy(out + 3, tornado__digit_pairs + rest / 100 % 100 * 2, 2);
    memcpy(out + 5, tornado__digit_pairs + rest % 100 * 2, 2);
    char *end = out + 7;
    while (end[-1] == '0' && end > out + 2)
        end--;
    return end;
}

/* As Python's repr: the fewest digits that give the number back, an exponent below 1e-4 and from 1e16 on. */
static char *tornado__put_double(char *out, double number)
{
    uint64_t bits, digits;
    int power;
    memcpy(&bits, &number, sizeof bits);
    *out = '-';
    out += bits >> 63;
    bits = bits << 1 >> 1;
    if (bits == 0) {
        memcpy(out, "0.0", 3);
        return out + 3;
    }
    /* most have few places: no two decimals of up to 15 digits have the same nearest double */
    memcpy(&number, &bits, sizeof bits);
    int64_t millionths = number < 1e9 ? (int64_t)(number * 1e6 + 0.5) : 0;
    if (millionths >= 100 && (double)millionths / 1e6 == number)
        return tornado__put_millionths(out, (uint64_t)millionths);
    tornado__shortest(bits, &digits, &power);
    for (; digits % 10 == 0; power++)
        digits /= 10;
    int count = (int)tornado__count_digits(digits), exponent = power + count - 1; /* of the first digit */
    if (exponent < -4 || exponent >= 16) {
        char *end = tornado__put_digits(out + 1, digits, (unsigned)count);
        out[0] = out[1];
        out[1] = '.';
        out = count > 1 ? end : out + 1;
        *out++ = 'e';
        *out++ = exponent < 0 ? '-' : '+';
        unsigned size = (unsigned)(exponent < 0 ? -exponent : exponent);
        *out = '0';
        out += size < 10;
        return tornado__put_digits(out, size, tornado__count_digits(size));
    }
    if (exponent < 0) {
        memcpy(out, "0.000", 5);
        return tornado__put_digits(out + 1 - exponent, digits, (unsigned)count);
    }
    if (power < 0) {
        char tail[16]; /* behind the point are no more, for of 17 digits one is before it */
        char *end = tornado__put_digits(out, digits, (unsigned)count);
        memcpy(tail, out + exponent + 1, sizeof tail);
        out[exponent + 1] = '.';
        memcpy(out + exponent + 2, tail, sizeof tail);
        return end + 1;
    }
    out = tornado__put_digits(out, digits, (unsigned)count);
    memset(out, '0', (size_t)power + 2);
    out[power] = '.';
    return out + power + 2;
}

/*----------------------------------------------------------------------------
 * Asking.
 *----------------------------------------------------------------------------*/

static TORNADO__INLINE unsigned tornado__value_kind(const tornado_value *value)
{
    return value ? (unsigned)value->head & TORNADO__VALUE_KIND : TORNADO_VALUE_NULL;
}

/* The cells in a list or dict, and how many values or pairs they are. */
static TORNADO__INLINE const tornado_value *tornado__value_items(const tornado_value *value, size_t *len)
{
    bool boxed = (value->head & TORNADO__VALUE_BOXED) != 0;
    *len = boxed ? value->as.box->len : (size_t)(value->head >> 8);
    return boxed ? value->as.box->items : value->as.items;
}

static TORNADO__INLINE uint64_t tornado__value_head(unsigned kind, size_t len)
{
    return (uint64_t)len << 8 | kind;
}

TORNADO_API tornado_value_type tornado_value_kind(const tornado_value *value)
{
    return (tornado_value_type)tornado__value_kind(value);
}

TORNADO_API bool tornado_value_is_null(const tornado_value *value)
{
    return tornado__value_kind(value) == TORNADO_VALUE_NULL;
}

TORNADO_API bool tornado_value_is_bool(const tornado_value *value)
{
    return tornado__value_kind(value) == TORNADO_VALUE_BOOL;
}

TORNADO_API bool tornado_value_is_integer(const tornado_value *value)
{
    unsigned kind = tornado__value_kind(value);
    return kind == TORNADO_VALUE_INTEGER || kind == TORNADO_VALUE_UNSIGNED;
}

TORNADO_API bool tornado_value_is_number(const tornado_value *value)
{
    unsigned kind = tornado__value_kind(value);
    return kind >= TORNADO_VALUE_INTEGER && kind <= TORNADO_VALUE_DOUBLE;
}

TORNADO_API bool tornado_value_is_string(const tornado_value *value)
{
    return tornado__value_kind(value) == TORNADO_VALUE_STRING;
}

TORNADO_API bool tornado_value_is_list(const tornado_value *value)
{
    return tornado__value_kind(value) == TORNADO_VALUE_LIST;
}

TORNADO_API bool tornado_value_is_dict(const tornado_value *value)
{
    return tornado__value_kind(value) == TORNADO_VALUE_DICT;
}

TORNADO_API bool tornado_value_bool(const tornado_value *value, bool fallback)
{
    return tornado_value_is_bool(value) ? value->as.integer != 0 : fallback;
}

TORNADO_API int64_t tornado_value_integer(const tornado_value *value, int64_t fallback)
{
    return tornado__value_kind(value) == TORNADO_VALUE_INTEGER ? value->as.integer : fallback;
}

TORNADO_API uint64_t tornado_value_unsigned(const tornado_value *value, uint64_t fallback)
{
    unsigned kind = tornado__value_kind(value);
    if (kind == TORNADO_VALUE_UNSIGNED || (kind == TORNADO_VALUE_INTEGER && value->as.integer >= 0))
        return value->as.bits;
    return fallback;
}

TORNADO_API double tornado_value_double(const tornado_value *value, double fallback)
{
    switch (tornado__value_kind(value)) {
    case TORNADO_VALUE_INTEGER:
        return (double)value->as.integer;
    case TORNADO_VALUE_UNSIGNED:
        return (double)value->as.bits;
    case TORNADO_VALUE_DOUBLE:
        return value->as.number;
    default:
        return fallback;
    }
}

TORNADO_API const char *tornado_value_string(const tornado_value *value)
{
    return tornado_value_is_string(value) ? value->as.string : NULL;
}

TORNADO_API tornado_bytes tornado_value_bytes(const tornado_value *value)
{
    tornado_bytes bytes = {NULL, 0};
    if (tornado_value_is_string(value)) {
        bytes.data = value->as.string;
        bytes.len = (size_t)(value->head >> 8);
    }
    return bytes;
}

TORNADO_API size_t tornado_value_len(const tornado_value *value)
{
    size_t len = 0;
    unsigned kind = tornado__value_kind(value);
    if (kind == TORNADO_VALUE_STRING)
        return (size_t)(value->head >> 8);
    if (kind >= TORNADO_VALUE_LIST)
        tornado__value_items(value, &len);
    return len;
}

TORNADO_API const tornado_value *tornado_value_at(const tornado_value *value, size_t index)
{
    size_t len;
    unsigned kind = tornado__value_kind(value);
    if (kind < TORNADO_VALUE_LIST)
        return NULL;
    const tornado_value *items = tornado__value_items(value, &len);
    if (index >= len)
        return NULL;
    return kind == TORNADO_VALUE_LIST ? items + index : items + 2 * index + 1;
}

TORNADO_API tornado_bytes tornado_value_key_bytes(const tornado_value *dict, size_t index)
{
    const tornado_value *item = tornado_value_is_dict(dict) ? tornado_value_at(dict, index) : NULL;
    return tornado_value_bytes(item ? item - 1 : NULL);
}

TORNADO_API const char *tornado_value_key(const tornado_value *dict, size_t index)
{
    return tornado_value_key_bytes(dict, index).data;
}

/*----------------------------------------------------------------------------
 * Keys. SipHash-1-3 with a secret of the process, so that nobody can choose keys that fall on each other.
 *----------------------------------------------------------------------------*/

static TORNADO__INLINE void tornado__sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = tornado__rotate(v[1], 13) ^ v[0];
    v[3] = tornado__rotate(v[3], 16) ^ v[2];
    v[0] = tornado__rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = tornado__rotate(v[1], 17) ^ v[2];
    v[3] = tornado__rotate(v[3], 21) ^ v[0];
    v[2] = tornado__rotate(v[2], 32);
}

static uint64_t tornado__siphash(const uint64_t secret[2], const char *data, size_t len)
{
    uint64_t v[4] = {secret[0] ^ UINT64_C(0x736f6d6570736575), secret[1] ^ UINT64_C(0x646f72616e646f6d),
                     secret[0] ^ UINT64_C(0x6c7967656e657261), secret[1] ^ UINT64_C(0x7465646279746573)};
    unsigned char tail[8] = {0};
    for (size_t at = 0; at <= len; at += 8) {
        uint64_t word;
        if (len - at >= 8) {
            word = tornado__load_le64(data + at);
        } else {
            memcpy(tail, data + at, len - at);
            tail[7] = (unsigned char)len;
            word = tornado__load_le64(tail);
        }
        v[3] ^= word;
        tornado__sip_round(v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        tornado__sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* A secret of this thread; without random bytes, what nobody is likely to know. */
static void tornado__hash_secret(uint64_t secret[2])
{
    static TORNADO__THREAD_LOCAL uint64_t mine[2];
    if (!(mine[0] | mine[1])) {
        tornado_error last = tornado__thread.last;
        if (!tornado_random_bytes(mine, sizeof mine)) {
            mine[0] = (uint64_t)(uintptr_t)&mine;
            mine[1] = (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid() ^ 1;
        }
        tornado__thread.last = last;
    }
    memcpy(secret, mine, sizeof mine);
}

static TORNADO__INLINE bool tornado__key_is(const tornado_value *cell, const char *key, size_t len)
{
    return cell->head >> 8 == len && memcmp(cell->as.string, key, len) == 0;
}

/* Where a key is in an index, or would be. */
static uint32_t *tornado__index_slot(const tornado__box *box, const char *key, size_t len)
{
    size_t at = (size_t)tornado__siphash(box->secret, key, len);
    for (;; at++) {
        uint32_t *slot = &box->index[at & (box->index_size - 1)];
        if (*slot == 0 || tornado__key_is(&box->items[2 * ((size_t)*slot - 1)], key, len))
            return slot;
    }
}

/* Makes an index with room for the `cap` pairs of a box. Of equal keys it has the last. */
static bool tornado__index_make(tornado_arena *arena, tornado__box *box)
{
    size_t size = 64;
    while (size < 2 * box->cap)
        size *= 2;
    uint32_t *index = tornado_arena_calloc(arena, size, sizeof *index);
    if (!index)
        return false;
    tornado__hash_secret(box->secret);
    box->index = index;
    box->index_size = size;
    for (size_t i = 0; i < box->len; i++) {
        const tornado_value *key = &box->items[2 * i];
        *tornado__index_slot(box, key->as.string, (size_t)(key->head >> 8)) = (uint32_t)(i + 1);
    }
    return true;
}

/* The pair of a key in a dict, the last if there are more; NULL when there is none. */
static const tornado_value *tornado__dict_find(const tornado_value *dict, const char *key, size_t len)
{
    size_t count;
    const tornado_value *items = tornado__value_items(dict, &count);
    if ((dict->head & TORNADO__VALUE_BOXED) && dict->as.box->index) {
        uint32_t number = *tornado__index_slot(dict->as.box, key, len);
        return number ? &items[2 * ((size_t)number - 1)] : NULL;
    }
    while (count-- > 0)
        if (tornado__key_is(&items[2 * count], key, len))
            return &items[2 * count];
    return NULL;
}

TORNADO_API const tornado_value *tornado_value_get_bytes(const tornado_value *dict, tornado_bytes key)
{
    if (!tornado_value_is_dict(dict) || !key.data)
        return NULL;
    const tornado_value *pair = tornado__dict_find(dict, key.data, key.len);
    return pair ? pair + 1 : NULL;
}

TORNADO_API const tornado_value *tornado_value_get(const tornado_value *dict, const char *key)
{
    return tornado_value_get_bytes(dict, tornado_bytes_of(key));
}

/*----------------------------------------------------------------------------
 * Comparing.
 *----------------------------------------------------------------------------*/

/* Whether an integer, negative or not, is worth as much as a double. */
static bool tornado__integer_is(const tornado_value *integer, double number)
{
    if (tornado__value_kind(integer) == TORNADO_VALUE_INTEGER)
        return number >= -0x1p63 && number < 0x1p63 && (int64_t)number == integer->as.integer &&
               (double)(int64_t)number == number;
    return number >= 0 && number < 0x1p64 && (uint64_t)number == integer->as.bits &&
           (double)(uint64_t)number == number;
}

/* Whether two that are no list and no dict are the same. */
static bool tornado__scalar_equal(const tornado_value *a, const tornado_value *b)
{
    unsigned kind = tornado__value_kind(a), other = tornado__value_kind(b);
    if (kind == TORNADO_VALUE_NULL || kind != other) {
        if (kind == TORNADO_VALUE_DOUBLE && tornado_value_is_integer(b))
            return tornado__integer_is(b, a->as.number);
        if (other == TORNADO_VALUE_DOUBLE && tornado_value_is_integer(a))
            return tornado__integer_is(a, b->as.number);
        return kind == other;
    }
    if (kind == TORNADO_VALUE_STRING)
        return tornado_bytes_equal(tornado_value_bytes(a), tornado_value_bytes(b));
    return kind == TORNADO_VALUE_DOUBLE ? a->as.number == b->as.number : a->as.bits == b->as.bits;
}

/* Whether two have the same number of values, or the same keys: what is behind these is not looked at. */
static bool tornado__shape_equal(const tornado_value *a, const tornado_value *b)
{
    size_t a_len, b_len;
    const tornado_value *a_items = tornado__value_items(a, &a_len), *b_items = tornado__value_items(b, &b_len);
    if (tornado__value_kind(a) == TORNADO_VALUE_LIST)
        return a_len == b_len;
    for (size_t i = 0; i < a_len; i++)
        if (!tornado__dict_find(b, a_items[2 * i].as.string, (size_t)(a_items[2 * i].head >> 8)))
            return false;
    for (size_t i = 0; i < b_len; i++)
        if (!tornado__dict_find(a, b_items[2 * i].as.string, (size_t)(b_items[2 * i].head >> 8)))
            return false;
    return true;
}

/* The values to compare at an index of two of the same shape; false for a key that has a later equal one. */
static bool tornado__items_at(const tornado_value *a, const tornado_value *b, size_t index,
                              const tornado_value **a_item, const tornado_value **b_item)
{
    *a_item = tornado_value_at(a, index);
    if (tornado__value_kind(a) == TORNADO_VALUE_LIST) {
        *b_item = tornado_value_at(b, index);
        return true;
    }
    tornado_bytes key = tornado_value_key_bytes(a, index);
    *b_item = tornado_value_get_bytes(b, key);
    return tornado_value_get_bytes(a, key) == *a_item;
}

TORNADO_API bool tornado_value_equal(const tornado_value *a, const tornado_value *b)
{
    struct {
        const tornado_value *a, *b;
        size_t next;
    } open[TORNADO__VALUE_DEPTH];
    size_t depth = 0;
    for (;;) {
        unsigned kind = tornado__value_kind(a);
        if (kind < TORNADO_VALUE_LIST || kind != tornado__value_kind(b)) {
            if (!tornado__scalar_equal(a, b))
                return false;
        } else {
            if (depth == TORNADO__VALUE_DEPTH || !tornado__shape_equal(a, b))
                return false;
            open[depth].a = a;
            open[depth].b = b;
            open[depth++].next = 0;
        }
        for (;;) {
            if (depth == 0)
                return true;
            if (open[depth - 1].next == tornado_value_len(open[depth - 1].a))
                depth--;
            else if (tornado__items_at(open[depth - 1].a, open[depth - 1].b, open[depth - 1].next++, &a, &b))
                break;
        }
    }
}

/*----------------------------------------------------------------------------
 * Building.
 *----------------------------------------------------------------------------*/

/* What the functions that make values return when they cannot. It is never written to. */
static const tornado_value tornado__value_failure = {TORNADO_VALUE_NULL | TORNADO__VALUE_FAILED, {0}};

static tornado_value *tornado__value_new(tornado_arena *arena, uint64_t head, uint64_t bits)
{
    tornado_value *value = tornado__arena_alloc(arena, sizeof *value);
    if (!value)
        return (tornado_value *)(uintptr_t)&tornado__value_failure;
    value->head = head;
    value->as.bits = bits;
    return value;
}

TORNADO_API tornado_value *tornado_value_new_null(tornado_arena *arena)
{
    return tornado__value_new(arena, TORNADO_VALUE_NULL, 0);
}

TORNADO_API tornado_value *tornado_value_new_bool(tornado_arena *arena, bool value)
{
    return tornado__value_new(arena, TORNADO_VALUE_BOOL, value);
}

TORNADO_API tornado_value *tornado_value_new_integer(tornado_arena *arena, int64_t value)
{
    return tornado__value_new(arena, TORNADO_VALUE_INTEGER, (uint64_t)value);
}

TORNADO_API tornado_value *tornado_value_new_unsigned(tornado_arena *arena, uint64_t value)
{
    return tornado__value_new(arena, value > INT64_MAX ? TORNADO_VALUE_UNSIGNED : TORNADO_VALUE_INTEGER, value);
}

TORNADO_API tornado_value *tornado_value_new_double(tornado_arena *arena, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return tornado__value_new(arena, TORNADO_VALUE_DOUBLE, bits);
}

/* Makes a cell a string, a copy. False when memory is short. */
static bool tornado__value_copy(tornado_arena *arena, tornado_value *cell, tornado_bytes value)
{
    char *copy = value.len < SIZE_MAX / 512 ? tornado__arena_alloc(arena, value.len + TORNADO__VALUE_PAD) : NULL;
    if (!copy)
        return tornado__nomem();
    if (value.len)
        memcpy(copy, value.data, value.len);
    memset(copy + value.len, 0, TORNADO__VALUE_PAD);
    unsigned utf8 = tornado_utf8_valid(copy, value.len) ? TORNADO__VALUE_UTF8 : 0;
    cell->head = tornado__value_head(TORNADO_VALUE_STRING | utf8, value.len);
    cell->as.string = copy;
    return true;
}

TORNADO_API tornado_value *tornado_value_new_bytes(tornado_arena *arena, tornado_bytes value)
{
    tornado_value *cell = tornado_value_new_null(arena);
    if (!value.data || tornado_value_failed(cell) || tornado__value_copy(arena, cell, value))
        return cell;
    return (tornado_value *)(uintptr_t)&tornado__value_failure;
}

TORNADO_API tornado_value *tornado_value_new_string(tornado_arena *arena, const char *value)
{
    return tornado_value_new_bytes(arena, tornado_bytes_of(value));
}

static tornado_value *tornado__value_new_box(tornado_arena *arena, unsigned kind)
{
    tornado_value *value = tornado_value_new_null(arena);
    tornado__box *box = tornado_arena_calloc(arena, 1, sizeof *box);
    if (!box || tornado_value_failed(value))
        return (tornado_value *)(uintptr_t)&tornado__value_failure;
    box->arena = arena;
    box->items = value; /* nothing is in it, but it can be asked where that begins and ends */
    value->head = kind | TORNADO__VALUE_BOXED;
    value->as.box = box;
    return value;
}

TORNADO_API tornado_value *tornado_value_new_list(tornado_arena *arena)
{
    return tornado__value_new_box(arena, TORNADO_VALUE_LIST);
}

TORNADO_API tornado_value *tornado_value_new_dict(tornado_arena *arena)
{
    return tornado__value_new_box(arena, TORNADO_VALUE_DICT);
}

TORNADO_API bool tornado_value_failed(const tornado_value *value)
{
    if (!value)
        return false;
    return (value->head & TORNADO__VALUE_FAILED) || ((value->head & TORNADO__VALUE_BOXED) && value->as.box->failed);
}

/* The box of a list or dict that is built; NULL, with the reason noted, when it cannot take a value. */
static tornado__box *tornado__value_box(tornado_value *into, unsigned kind, const tornado_value *value)
{
    static const char wanted[][7] = {"a list", "a dict"};
    if (into && (into->head & TORNADO__VALUE_FAILED)) {
        tornado__nomem();
        return NULL;
    }
    if (tornado__value_kind(into) != kind || !(into->head & TORNADO__VALUE_BOXED) || !into->as.box->arena) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "%s that can be changed is wanted",
                      wanted[kind - TORNADO_VALUE_LIST]);
        return NULL;
    }
    if (tornado_value_failed(value)) {
        into->as.box->failed = true;
        tornado__nomem();
        return NULL;
    }
    return into->as.box;
}

/* Makes room for one more value or pair, of `cells` cells. */
static bool tornado__box_grow(tornado__box *box, size_t cells)
{
    if (box->len < box->cap)
        return true;
    size_t cap = box->cap ? 2 * box->cap : 4;
    if (cap > UINT32_MAX || cap > SIZE_MAX / 4 / sizeof(tornado_value))
        return tornado__nomem();
    tornado_value *items = tornado__arena_alloc(box->arena, cap * cells * sizeof *items);
    if (!items)
        return false;
    if (box->len)
        memcpy(items, box->items, box->len * cells * sizeof *items);
    tornado__box bigger = *box;
    bigger.items = items;
    bigger.cap = cap;
    if (cells == 2 && cap > TORNADO__DICT_SCAN && !tornado__index_make(box->arena, &bigger))
        return false;
    *box = bigger;
    return true;
}

TORNADO_API bool tornado_value_append(tornado_value *list, const tornado_value *value)
{
    static const tornado_value null = {TORNADO_VALUE_NULL, {0}};
    tornado__box *box = tornado__value_box(list, TORNADO_VALUE_LIST, value);
    if (!box)
        return false;
    if (!tornado__box_grow(box, 1)) {
        box->failed = true;
        return false;
    }
    box->items[box->len++] = value ? *value : null;
    return true;
}

/* Adds a pair, without a value yet, and returns its cells. NULL when memory is short. */
static tornado_value *tornado__dict_add(tornado__box *box, tornado_bytes key)
{
    tornado_value cell;
    if (!tornado__box_grow(box, 2) || !tornado__value_copy(box->arena, &cell, key)) {
        box->failed = true;
        return NULL;
    }
    if (box->index)
        *tornado__index_slot(box, key.data, key.len) = (uint32_t)(box->len + 1);
    tornado_value *pair = &box->items[2 * box->len++];
    *pair = cell;
    return pair;
}

TORNADO_API bool tornado_value_set_bytes(tornado_value *dict, tornado_bytes key, const tornado_value *value)
{
    static const tornado_value null = {TORNADO_VALUE_NULL, {0}};
    tornado_value content = value ? *value : null; /* a copy: it may be in the array that grows */
    tornado__box *box = tornado__value_box(dict, TORNADO_VALUE_DICT, value);
    if (!box)
        return false;
    if (!key.data)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "a key is NULL");
    const tornado_value *found = tornado__dict_find(dict, key.data, key.len);
    tornado_value *pair = found ? &box->items[found - box->items] : tornado__dict_add(box, key);
    if (!pair)
        return false;
    pair[1] = content;
    return true;
}

TORNADO_API bool tornado_value_set(tornado_value *dict, const char *key, const tornado_value *value)
{
    return tornado_value_set_bytes(dict, tornado_bytes_of(key), value);
}

/*----------------------------------------------------------------------------
 * Reading JSON.
 *----------------------------------------------------------------------------*/

/* In the copy of the text a NUL stands behind the last byte, and it stops everything. */
typedef struct tornado__json_reader {
    tornado_arena *arena;
    tornado_bytes given; /* the text as it came */
    char *text;          /* its copy */
    tornado_value *top;  /* of the stack: the next cell to use */
    tornado_value *low;  /* of the cells that are where they stay */
    tornado_value *open; /* the innermost list or dict not closed; on the stack, and it holds the next outer one */
    size_t depth;
} tornado__json_reader;

/* Notes what is wrong at a place in the copy. Returns NULL, as whoever calls it will. */
static TORNADO__NOINLINE char *tornado__json_wrong(const tornado__json_reader *reader, const char *at,
                                                   const char *what)
{
    size_t byte = (size_t)(at - reader->text), line = 1, column = 1;
    for (size_t i = 0; i < byte; i++) {
        column += ((unsigned char)reader->given.data[i] & 0xc0) != 0x80;
        if (reader->given.data[i] == '\n') {
            line++;
            column = 1;
        }
    }
    tornado__fail(TORNADO_ERR_PARSE, 0, "%s, at line %zu column %zu (byte %zu)", what, line, column, byte);
    return NULL;
}

/* Copies text and returns how many of "," ":" "[" "{" it has: before each value but the outermost there is one. */
static size_t tornado__json_copy(char *out, const char *text, size_t len)
{
    size_t at = 0, count = 0;
#ifdef __SSE2__
    const __m128i zero = _mm_setzero_si128();
    while (len - at >= 16) {
        __m128i sums = zero;
        size_t end = len - at > 16 * 255 ? at + 16 * 255 : len;
        for (; end - at >= 16; at += 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(text + at));
            __m128i brackets = _mm_cmpeq_epi8(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), _mm_set1_epi8('{'));
            __m128i separators =
                _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(',')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8(':')));
            _mm_storeu_si128((__m128i *)(void *)(out + at), bytes);
            sums = _mm_sub_epi8(sums, _mm_or_si128(brackets, separators));
        }
        __m128i halves = _mm_sad_epu8(sums, zero);
        count += (unsigned)_mm_cvtsi128_si32(halves) + (unsigned)_mm_extract_epi16(halves, 4);
    }
#endif
    for (; at < len; at++) {
        out[at] = text[at];
        count += text[at] == ',' || text[at] == ':' || (text[at] | 0x20) == '{';
    }
    return count;
}

/* Bytes that may stand in a string as they are. */
static TORNADO__INLINE bool tornado__json_is_plain(char c)
{
    return (signed char)c >= ' ' && c != '"' && c != '\\';
}

/* The end of a run of such bytes; there is one that is none, and then room to read. */
static TORNADO__INLINE char *tornado__json_run(char *at)
{
#ifdef __SSE2__
    for (;; at += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
        __m128i quotes =
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\')));
        /* signed, so that what is beyond ASCII is below a space too */
        unsigned mask =
            (unsigned)_mm_movemask_epi8(_mm_or_si128(quotes, _mm_cmplt_epi8(bytes, _mm_set1_epi8(' '))));
        if (mask)
            return at + (unsigned)__builtin_ctz(mask);
    }
#else
    while (tornado__json_is_plain(*at))
        at++;
    return at;
#endif
}

/* The length of the character beyond ASCII at `at`, 0 if there is none. Only looks as far as it goes on. */
static TORNADO__INLINE size_t tornado__json_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    if (at[0] < 0xe0)
        return at[0] >= 0xc2 && (at[1] & 0xc0) == 0x80 ? 2 : 0;
    if (at[0] < 0xf0) { /* neither overlong nor a surrogate */
        bool second = at[0] == 0xe0   ? (at[1] & 0xe0) == 0xa0
                      : at[0] == 0xed ? (at[1] & 0xe0) == 0x80
                                      : (at[1] & 0xc0) == 0x80;
        return second && (at[2] & 0xc0) == 0x80 ? 3 : 0;
    }
    unsigned planes = (unsigned)(at[0] & 7) << 2 | (unsigned)(at[1] >> 4 & 3);
    bool second = at[0] < 0xf8 && (at[1] & 0xc0) == 0x80 && planes >= 1 && planes <= 16;
    return second && (at[2] & 0xc0) == 0x80 && (at[3] & 0xc0) == 0x80 ? 4 : 0;
}

/* The four digits behind a "\u", or something negative. */
static TORNADO__INLINE int tornado__json_unit(const char *digits)
{
    int high = tornado__hex_byte(digits);
    return high < 0 ? high : high << 8 | tornado__hex_byte(digits + 2);
}

/* Decodes the escape at `at` to *out; returns where it ends. */
static char *tornado__json_unescape(tornado__json_reader *reader, char *at, char **out)
{
    static const char meanings[128] = {['"'] = '"',  ['\\'] = '\\', ['/'] = '/',  ['b'] = '\b',
                                       ['f'] = '\f', ['n'] = '\n',  ['r'] = '\r', ['t'] = '\t'};
    if (at[1] != 'u') {
        char meaning = meanings[at[1] & 0x7f];
        if (!meaning || at[1] & 0x80)
            return tornado__json_wrong(reader, at, "a backslash that means nothing");
        *(*out)++ = meaning;
        return at + 2;
    }
    int unit = tornado__json_unit(at + 2);
    if (unit < 0)
        return tornado__json_wrong(reader, at, "four hexadecimal digits are wanted behind \"\\u\"");
    uint32_t code_point = (uint32_t)unit;
    char *end = at + 6;
    if (code_point >= 0xd800 && code_point < 0xe000) {
        int low = code_point < 0xdc00 && end[0] == '\\' && end[1] == 'u' ? tornado__json_unit(end + 2) : 0;
        if (low < 0xdc00 || low > 0xdfff)
            return tornado__json_wrong(reader, at, "half of a surrogate pair");
        code_point = 0x10000 + ((code_point - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
        end += 6;
    }
    *out += tornado_utf8_encode(code_point, *out);
    return end;
}

/* The rest of a string, from the first byte on that is not plain. Returns what is behind its closing quote, and in
   *end where its decoded bytes end. */
static TORNADO__NOINLINE char *tornado__json_string_rest(tornado__json_reader *reader, char *at, char **end)
{
    char *out = at;
    for (;;) {
        char *from = at;
        if (*at == '"') {
            *end = out;
            return at + 1;
        }
        if (*at == '\\') {
            at = tornado__json_unescape(reader, at, &out);
            if (!at)
                return NULL;
            continue;
        }
        if ((unsigned char)*at < ' ')
            return tornado__json_wrong(reader, at,
                                       at == reader->text + reader->given.len ? "the end of a string is missing"
                                                                              : "a control character in a string");
        while ((unsigned char)*at >= 0x80) {
            size_t size = tornado__json_utf8(at);
            if (size == 0)
                return tornado__json_wrong(reader, at, "bytes that are not UTF-8");
            at += size;
        }
        at = tornado__json_run(at);
        if (out != from)
            memmove(out, from, (size_t)(at - from));
        out += at - from;
    }
}

/* Makes a string the content of a cell; `at` is behind its opening quote. Returns what is behind the closing one.
   */
static TORNADO__INLINE char *tornado__json_string(tornado__json_reader *reader, char *at, tornado_value *cell)
{
    char *start = at, *end = at = tornado__json_run(at);
    if (TORNADO__LIKELY(*at == '"'))
        at++;
    else if (!(at = tornado__json_string_rest(reader, at, &end)))
        return NULL;
    *end = '\0';
    cell->head = tornado__value_head(TORNADO_VALUE_STRING | TORNADO__VALUE_UTF8, (size_t)(end - start));
    cell->as.string = start;
    return at;
}

static TORNADO__INLINE bool tornado__is_digit(char c)
{
    return (unsigned)(c - '0') < 10;
}

/* The first 19 digits of a number that has more, from the first that is not zero on. What is left is greater than
   they say by less than one, unless *exact. */
static uint64_t tornado__json_first_digits(const char *at, int64_t *power, bool *exact)
{
    uint64_t digits = 0;
    unsigned count = 0;
    bool point = false;
    for (*exact = true; tornado__is_digit(*at) || *at == '.'; at++) {
        if (*at == '.') {
            point = true;
        } else if (count < 19) {
            digits = digits * 10 + (uint64_t)(*at - '0');
            count += digits != 0;
            *power -= point;
        } else {
            *exact &= *at == '0';
            *power += !point;
        }
    }
    return digits;
}

/* Makes a cell the double at `start`, whose `digits` are right when they are no more than 19; without its sign.
   Returns false for one that is too large. */
static bool tornado__json_double(const char *start, uint64_t digits, size_t count, int64_t power, int64_t given,
                                 uint64_t *bits)
{
    bool exact = true, sure;
    uint64_t other;
    if (count > 19) {
        power = 0;
        digits = tornado__json_first_digits(start, &power, &exact);
    }
    power += given;
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ == 0
    if (count <= 19 && digits <= UINT64_C(1) << 53 && power >= -22 && power <= 22) { /* all exact but the result */
        double number = (double)(int64_t)digits, by = tornado__tens[power < 0 ? -power : power];
        number = power < 0 ? number / by : number * by;
        memcpy(bits, &number, sizeof *bits);
        return true;
    }
#endif
    int clamped = power > 9999 ? 9999 : power < -9999 ? -9999 : (int)power;
    sure = tornado__nearest_double(digits, clamped, bits);
    if (sure && !exact)
        sure = tornado__nearest_double(digits + 1, clamped, &other) && other == *bits;
    if (!sure) {
        double number = tornado__decimal_exactly(start);
        memcpy(bits, &number, sizeof *bits);
    }
    return *bits < TORNADO__DOUBLE_INFINITE;
}

/* Whether 20 digits or more, without a leading zero, are an integer of 64 bits; or 19. */
static bool tornado__json_integer(const char *start, size_t count, uint64_t *number)
{
    if (count > 20 || (count == 20 && memcmp(start, "18446744073709551615", 20) > 0))
        return false;
    *number = 0;
    for (size_t i = 0; i < count; i++)
        *number = *number * 10 + (uint64_t)(start[i] - '0');
    return true;
}

static TORNADO__INLINE char *tornado__json_digits(char *at, uint64_t *digits)
{
    uint64_t all = *digits;
    for (; tornado__is_digit(*at); at++)
        all = all * 10 + (uint64_t)(*at - '0');
    *digits = all;
    return at;
}

/* The fraction, the exponent and the end of a number that is no short integer. */
static TORNADO__NOINLINE char *tornado__json_number_rest(tornado__json_reader *reader, char *start, char *at,
                                                         uint64_t digits, bool negative, tornado_value *cell)
{
    size_t count = (size_t)(at - start);
    int64_t power = 0, given = 0;
    if (*at != '.' && (*at | 0x20) != 'e') {
        uint64_t number;
        if (tornado__json_integer(start, count, &number) && (!negative || number <= (uint64_t)1 << 63)) {
            bool large = !negative && number > INT64_MAX;
            cell->head = large ? TORNADO_VALUE_UNSIGNED : TORNADO_VALUE_INTEGER;
            cell->as.bits = negative ? 0 - number : number;
            return at;
        }
    }
    if (*at == '.') {
        char *point = at;
        at = tornado__json_digits(at + 1, &digits);
        if (at == point + 1)
            return tornado__json_wrong(reader, at, "a digit is wanted behind the decimal point");
        power = -(at - point - 1);
        count = (size_t)(at - start) - 1;
    }
    if ((*at | 0x20) == 'e') {
        bool minus = at[1] == '-';
        at += 1 + (minus || at[1] == '+');
        if (!tornado__is_digit(*at))
            return tornado__json_wrong(reader, at, "a digit is wanted in the exponent");
        for (; tornado__is_digit(*at); at++)
            given = given < INT64_C(1) << 40 ? given * 10 + (*at - '0') : given;
        given = minus ? -given : given;
    }
    uint64_t bits;
    if (!tornado__json_double(start, digits, count, power, given, &bits))
        return tornado__json_wrong(reader, start - negative, "a number that is too large");
    cell->head = TORNADO_VALUE_DOUBLE;
    cell->as.bits = bits | (uint64_t)negative << 63;
    return at;
}

static TORNADO__INLINE char *tornado__json_number(tornado__json_reader *reader, char *at, tornado_value *cell)
{
    bool negative = *at == '-';
    char *start = at + negative;
    uint64_t digits = 0;
    at = tornado__json_digits(start, &digits);
    if (TORNADO__UNLIKELY(at == start))
        return tornado__json_wrong(reader, at,
                                   negative ? "a digit is wanted behind the minus" : "a value is wanted");
    if (TORNADO__UNLIKELY(*start == '0' && at - start > 1))
        return tornado__json_wrong(reader, start, "a number with a leading zero");
    if (*at == '.' || (*at | 0x20) == 'e' || TORNADO__UNLIKELY(at - start > 18))
        return tornado__json_number_rest(reader, start, at, digits, negative, cell);
    cell->head = TORNADO_VALUE_INTEGER;
    cell->as.bits = negative ? 0 - digits : digits;
    return at;
}

/* Makes a cell what "null", "true" or "false" says. */
static char *tornado__json_word(tornado__json_reader *reader, char *at, tornado_value *cell)
{
    bool is_true = memcmp(at, "true", 4) == 0, is_false = memcmp(at, "false", 5) == 0;
    if (!is_true && !is_false && memcmp(at, "null", 4) != 0)
        return tornado__json_wrong(reader, at, "a value is wanted");
    cell->head = is_true || is_false ? TORNADO_VALUE_BOOL : TORNADO_VALUE_NULL;
    cell->as.integer = is_true;
    return at + 4 + is_false;
}

static TORNADO__INLINE char *tornado__json_space(char *at)
{
    if (TORNADO__LIKELY((unsigned char)*at > ' '))
        return at;
    if (*at == ' ' && (unsigned char)at[1] > ' ')
        return at + 1;
    while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')
        at++;
    return at;
}

/* Puts a dict of many pairs into a box with an index. */
static bool tornado__json_box(tornado__json_reader *reader, tornado_value *cell, tornado_value *items, size_t len)
{
    tornado__box *box = tornado_arena_calloc(reader->arena, 1, sizeof *box);
    if (!box)
        return false;
    box->items = items;
    box->len = box->cap = len;
    cell->head = TORNADO_VALUE_DICT | TORNADO__VALUE_BOXED;
    cell->as.box = box;
    return tornado__index_make(reader->arena, box);
}

/* Ends the innermost list or dict: moves what is in it to where it stays. False when memory is short. */
static TORNADO__INLINE bool tornado__json_close(tornado__json_reader *reader)
{
    tornado_value *open = reader->open, *items = open + 1, *outer = (tornado_value *)(uintptr_t)open->as.items;
    size_t count = (size_t)(reader->top - items);
    bool dict = open->head == TORNADO_VALUE_DICT;
    reader->top = items;
    reader->open = outer;
    reader->depth--;
    reader->low -= count;
    TORNADO_ASSERT(reader->low >= reader->top);
    for (size_t i = count; i-- > 0;) /* the two may overlap */
        reader->low[i] = items[i];
    if (TORNADO__UNLIKELY(dict && count > 2 * TORNADO__DICT_SCAN))
        return tornado__json_box(reader, open, reader->low, count / 2);
    open->head = tornado__value_head((unsigned)open->head, dict ? count / 2 : count);
    open->as.items = reader->low;
    return true;
}

/* Opens a list or dict; `at` is behind its bracket. Returns where what is in it begins. */
static TORNADO__INLINE char *tornado__json_open(tornado__json_reader *reader, char *at)
{
    if (TORNADO__UNLIKELY(reader->depth == TORNADO__VALUE_DEPTH)) {
        tornado__json_wrong(reader, at - 1, "more than 512 lists and dicts in each other");
        tornado__thread.last.code = TORNADO_ERR_LIMIT;
        return NULL;
    }
    tornado_value *cell = reader->top++;
    cell->head = at[-1] == '{' ? TORNADO_VALUE_DICT : TORNADO_VALUE_LIST;
    cell->as.items = reader->open;
    reader->open = cell;
    reader->depth++;
    return tornado__json_space(at);
}

/* A key and its colon, with the space behind. */
static TORNADO__INLINE char *tornado__json_key(tornado__json_reader *reader, char *at)
{
    if (TORNADO__UNLIKELY(*at != '"'))
        return tornado__json_wrong(reader, at, "a key in double quotes is wanted");
    at = tornado__json_string(reader, at + 1, reader->top++);
    if (!at)
        return NULL;
    at = tornado__json_space(at);
    if (TORNADO__UNLIKELY(*at != ':'))
        return tornado__json_wrong(reader, at, "a \":\" is wanted");
    return tornado__json_space(at + 1);
}

/* What is behind a value: closes what ends here. Returns where the next value or key begins, or the end of the text
   when there is none. */
static TORNADO__INLINE char *tornado__json_behind(tornado__json_reader *reader, char *at)
{
    for (;;) {
        at = tornado__json_space(at);
        if (TORNADO__UNLIKELY(!reader->open)) {
            if (at != reader->text + reader->given.len)
                return tornado__json_wrong(reader, at, "something follows the value");
            return at;
        }
        if (*at == ',')
            return tornado__json_space(at + 1);
        bool dict = reader->open->head == TORNADO_VALUE_DICT;
        if (TORNADO__UNLIKELY(*at != (dict ? '}' : ']')))
            return tornado__json_wrong(reader, at,
                                       dict ? "a \",\" or a \"}\" is wanted" : "a \",\" or a \"]\" is wanted");
        if (!tornado__json_close(reader))
            return NULL;
        at++;
    }
}

static bool tornado__json_read(tornado__json_reader *reader)
{
    char *at = tornado__json_space(reader->text);
    do {
        bool dict = reader->open && reader->open->head == TORNADO_VALUE_DICT;
        if (dict && !(at = tornado__json_key(reader, at)))
            return false;
        char c = *at;
        if (c == '"') {
            at = tornado__json_string(reader, at + 1, reader->top++);
        } else if (c == '{' || c == '[') {
            at = tornado__json_open(reader, at + 1);
            if (!at)
                return false;
            if (*at != c + 2) /* the closing bracket is two behind the opening one */
                continue;
            if (!tornado__json_close(reader))
                return false;
            at++;
        } else if (c == 't' || c == 'f' || c == 'n') {
            at = tornado__json_word(reader, at, reader->top++);
        } else {
            at = tornado__json_number(reader, at, reader->top++);
        }
        if (!at || !(at = tornado__json_behind(reader, at)))
            return false;
    } while (reader->open);
    return true;
}

TORNADO_API const tornado_value *tornado_json_decode(tornado_arena *arena, tornado_bytes text)
{
    tornado__json_reader reader = {arena, text, NULL, NULL, NULL, NULL, 0};
    if (text.len > UINT32_MAX || text.len > SIZE_MAX / 16) {
        tornado__fail(TORNADO_ERR_LIMIT, 0, "JSON text of %zu bytes: that is too much", text.len);
        return NULL;
    }
    reader.text = tornado__arena_alloc(arena, text.len + 2 * TORNADO__VALUE_PAD);
    if (!reader.text)
        return NULL;
    size_t count = tornado__json_copy(reader.text, text.data, text.len) + 1;
    memset(reader.text + text.len, 0, 2 * TORNADO__VALUE_PAD);
    /* n values that are whole take 2n - 1 bytes, and a closing bracket is missing for each that is not */
    size_t most = text.len / 2 + TORNADO__VALUE_DEPTH;
    count = count < most ? count : most;
    tornado_value *cells = tornado__arena_alloc(arena, count * sizeof *cells);
    if (!cells)
        return NULL;
    reader.top = cells;
    reader.low = cells + count;
    if (text.len >= 3 && memcmp(text.data, "\xef\xbb\xbf", 3) == 0)
        tornado__json_wrong(&reader, reader.text, "a byte order mark");
    else if (tornado__json_read(&reader))
        return cells;
    return NULL;
}

/*----------------------------------------------------------------------------
 * Writing JSON.
 *----------------------------------------------------------------------------*/

typedef struct tornado__json_style {
    char comma[2], colon[2];
    unsigned char comma_len, colon_len;
    bool utf8; /* characters beyond ASCII as they are */
    size_t indent;
} tornado__json_style;

static const tornado__json_style tornado__json_default = {{',', ' '}, {':', ' '}, 2, 2, false, 0},
                                 tornado__json_as_is = {{',', ' '}, {':', ' '}, 2, 2, true, 0};

/* A format, where it is being read, and its arguments. */
typedef struct tornado__format {
    const char *text, *at;
    const char *function; /* that it was given to */
    va_list args;
} tornado__format;

/* What writes takes where to write and returns where it ended, NULL when it failed. Each value and each opening
   bracket of a format sees to it that TORNADO__JSON_SLACK bytes are free behind it: enough for all the closing
   brackets, the comma and the short name that can follow before the next. */
typedef struct tornado__packer {
    tornado_buffer *buffer;
    const char *end; /* of its memory */
    const tornado__json_style *style;
    tornado__format format;
} tornado__packer;

/* Makes room for `len` bytes and the slack behind them, wherever that then is. */
static TORNADO__NOINLINE char *tornado__pack_grow(tornado__packer *packer, char *out, size_t len)
{
    packer->buffer->len = (size_t)(out - packer->buffer->data);
    out = tornado__buffer_reserve(packer->buffer, len < SIZE_MAX / 2 ? len + TORNADO__JSON_SLACK : SIZE_MAX);
    packer->end = packer->buffer->data + packer->buffer->cap;
    return out;
}

static TORNADO__INLINE char *tornado__pack_room(tornado__packer *packer, char *out, size_t len)
{
    if (TORNADO__LIKELY(len + TORNADO__JSON_SLACK < (size_t)(packer->end - out)))
        return out;
    return tornado__pack_grow(packer, out, len);
}

/* How an ASCII byte of a string is written: 0 as it is, 'u' as \u00XX, '<' as it is but with a backslash behind it
   when "/" follows, else behind a backslash. */
static const char tornado__json_escapes[128] = {
    'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', 'b',         't',           'n',         'u',
    'f', 'r', 'u', 'u', 'u', 'u', 'u', 'u', 'u',         'u',           'u',         'u',
    'u', 'u', 'u', 'u', 'u', 'u', 'u', 'u', ['"'] = '"', ['\\'] = '\\', ['<'] = '<', [0x7f] = 'u'};

static TORNADO__INLINE char tornado__json_kind(char c)
{
    return (unsigned char)c < 0x80 ? tornado__json_escapes[(unsigned char)c] : 'x';
}

#ifdef __SSE2__
/* One bit for each byte that cannot be written as it is; from 0x7f on that is any, unless `utf8`. */
static TORNADO__INLINE unsigned tornado__json_special(__m128i bytes, bool utf8)
{
    __m128i quotes =
        _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')), _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\')));
    __m128i special = _mm_or_si128(quotes, _mm_cmpeq_epi8(bytes, _mm_set1_epi8('<')));
    if (utf8)
        special = _mm_or_si128(special, _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes));
    else /* signed: what is beyond ASCII is below a space, too */
        special = _mm_or_si128(special, _mm_or_si128(_mm_cmplt_epi8(bytes, _mm_set1_epi8(' ')),
                                                     _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7f))));
    return (unsigned)_mm_movemask_epi8(special);
}

/* Whether a string of 4 to 16 bytes has none of these. */
static TORNADO__INLINE bool tornado__json_short(const char *text, size_t len)
{
    uint64_t head = 0, tail = 0;
    if (len >= 8) {
        memcpy(&head, text, 8);
        memcpy(&tail, text + len - 8, 8);
    } else {
        uint32_t first, last;
        memcpy(&first, text, 4);
        memcpy(&last, text + len - 4, 4);
        head = tail = (uint64_t)last << 32 | first;
    }
    return !tornado__json_special(_mm_set_epi64x((long long)tail, (long long)head), false);
}
#endif

/* Copies 4 to 16 bytes. */
static TORNADO__INLINE void tornado__copy_short(char *out, const char *text, size_t len)
{
    if (len >= 8) {
        memcpy(out, text, 8);
        memcpy(out + len - 8, text + len - 8, 8);
    } else {
        memcpy(out, text, 4);
        memcpy(out + len - 4, text + len - 4, 4);
    }
}

/* Whether a byte needs more than to be copied. When `raw`, what is beyond ASCII does not. */
static TORNADO__INLINE bool tornado__json_needs(char c, bool raw)
{
    return (unsigned char)c < 0x7f ? tornado__json_escapes[(unsigned char)c] != 0 : !raw;
}

/* The length of the run at the start that is written as it is. */
static TORNADO__INLINE size_t tornado__json_plain(const char *text, size_t len, bool raw)
{
    size_t at = 0;
#ifdef __SSE2__
    for (; len - at >= 16; at += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(text + at));
        unsigned mask = raw ? tornado__json_special(bytes, true) : tornado__json_special(bytes, false);
        if (mask)
            return at + (unsigned)__builtin_ctz(mask);
    }
#endif
    while (at < len && !tornado__json_needs(text[at], raw))
        at++;
    return at;
}

static char *tornado__json_unicode(char *out, uint32_t unit)
{
    static const char digits[] = "0123456789abcdef";
    *out++ = '\\';
    *out++ = 'u';
    for (int shift = 12; shift >= 0; shift -= 4)
        *out++ = digits[unit >> shift & 15];
    return out;
}

/* How many bytes at `text`, which begin no valid character, stand for one that is broken: as many as could have
   begun one. */
static size_t tornado__utf8_broken(const char *text, size_t len)
{
    const unsigned char *bytes = (const unsigned char *)text;
    unsigned char lead = bytes[0];
    size_t want = lead >= 0xf0 && lead <= 0xf4  ? 4
                  : lead >= 0xe0 && lead < 0xf0 ? 3
                  : lead >= 0xc2 && lead < 0xe0 ? 2
                                                : 1;
    unsigned char low = lead == 0xe0   ? 0xa0
                        : lead == 0xf0 ? 0x90
                                       : 0x80,
                  high = lead == 0xed   ? 0x9f
                         : lead == 0xf4 ? 0x8f
                                        : 0xbf;
    size_t at = 1;
    for (; at < want && at < len && bytes[at] >= low && bytes[at] <= high; at++) {
        low = 0x80;
        high = 0xbf;
    }
    return at;
}

/* Writes one character beyond ASCII, or what stands for one that is broken, and returns how many bytes it was. */
static size_t tornado__json_beyond(char **out, const char *text, size_t len, bool utf8)
{
    uint32_t code_point;
    size_t size = tornado_utf8_decode(text, len, &code_point);
    if (size == 0) {
        if (utf8)
            *out += tornado_utf8_encode(0xfffd, *out);
        else
            *out = tornado__json_unicode(*out, 0xfffd);
        return tornado__utf8_broken(text, len);
    }
    if (utf8) {
        memcpy(*out, text, size);
        *out += size;
        return size;
    }
    if (code_point >= 0x10000) {
        *out = tornado__json_unicode(*out, 0xd800 + ((code_point - 0x10000) >> 10));
        code_point = 0xdc00 + (code_point & 0x3ff);
    }
    *out = tornado__json_unicode(*out, code_point);
    return size;
}

/* Writes one character that needs it, and returns how many bytes it was. */
static size_t tornado__json_escape(char **out, const char *text, size_t len, bool utf8)
{
    char kind = tornado__json_kind(*text);
    if (kind == 'x')
        return tornado__json_beyond(out, text, len, utf8);
    if (kind == 'u' && !(utf8 && *text == 0x7f)) {
        *out = tornado__json_unicode(*out, (unsigned char)*text);
        return 1;
    }
    if (kind != '<' && kind != 'u')
        *(*out)++ = '\\';
    *(*out)++ = kind == 'u' ? 0x7f : kind;
    if (kind == '<' && len > 1 && text[1] == '/')
        *(*out)++ = '\\'; /* the "/" itself is like any other */
    return 1;
}

/* The rest of a string, from a byte on that may be one that cannot be written as it is, and the quote behind it. */
static TORNADO__NOINLINE char *tornado__pack_rest(tornado__packer *packer, char *out, const char *text, size_t len,
                                                  bool raw)
{
    for (size_t at = 0; at < len;) {
        /* at most 12 bytes each: four of them are within the slack */
        for (int i = 0; i < 4 && at < len && tornado__json_needs(text[at], raw); i++)
            at += tornado__json_escape(&out, text + at, len - at, packer->style->utf8);
        size_t run = tornado__json_plain(text + at, len - at, raw);
        if (!(out = tornado__pack_room(packer, out, run)))
            return NULL;
        memcpy(out, text + at, run);
        out += run;
        at += run;
    }
    *out = '"';
    return out + 1;
}

/* A string in its quotes. */
static TORNADO__INLINE char *tornado__pack_string(tornado__packer *packer, char *out, const char *text, size_t len)
{
    if (TORNADO__UNLIKELY(!(out = tornado__pack_room(packer, out, 18))))
        return NULL;
    *out++ = '"';
    size_t at = 0;
#ifdef __SSE2__
    if (TORNADO__LIKELY(len >= 4 && len <= 16 && tornado__json_short(text, len))) {
        tornado__copy_short(out, text, len);
        at = len;
    }
#endif
    for (; at < len && at < 4 && !tornado__json_kind(text[at]); at++)
        out[at] = text[at];
    if (at < len)
        return tornado__pack_rest(packer, out, text, len, false);
    out[len] = '"';
    return out + len + 1;
}

static TORNADO__INLINE char *tornado__pack_raw(tornado__packer *packer, char *out, const char *text, size_t len)
{
    if (!(out = tornado__pack_room(packer, out, len)))
        return NULL;
    memcpy(out, text, len);
    return out + len;
}
#define TORNADO__PACK_RAW(packer, out, literal) tornado__pack_raw(packer, out, literal, sizeof(literal) - 1)

static TORNADO__INLINE char *tornado__pack_integer(tornado__packer *packer, char *out, uint64_t magnitude,
                                                   bool negative)
{
    out = tornado__pack_room(packer, out, 24);
    return TORNADO__LIKELY(out != NULL) ? tornado__put_integer(out, magnitude, negative) : NULL;
}

static char *tornado__pack_double(tornado__packer *packer, char *out, double number)
{
    if (!(number - number == 0)) { /* infinite or NaN */
        tornado__fail(TORNADO_ERR_INVALID, 0, "a number that is not finite cannot be written as JSON");
        return NULL;
    }
    out = tornado__pack_room(packer, out, TORNADO__DOUBLE_SIZE);
    return TORNADO__LIKELY(out != NULL) ? tornado__put_double(out, number) : NULL;
}

#ifdef __SSE2__
/* How many bytes of a block, from its first on, can be written as they are. */
static TORNADO__INLINE unsigned tornado__json_clean(__m128i bytes, bool raw)
{
    unsigned mask = raw ? tornado__json_special(bytes, true) : tornado__json_special(bytes, false);
    return (unsigned)__builtin_ctz(mask | 1u << 16);
}

/* Any string in a cell; `out` is behind the quote. The NUL behind a string stops a block, as every NUL does. */
static TORNADO__NOINLINE char *tornado__pack_blocks(tornado__packer *packer, char *out, const char *text, size_t len,
                                                    bool raw)
{
    const char *end = text + len;
    if (TORNADO__UNLIKELY(!(out = tornado__pack_room(packer, out, len))))
        return NULL;
    for (;;) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)text);
        unsigned run = tornado__json_clean(bytes, raw);
        _mm_storeu_si128((__m128i *)(void *)out, bytes);
        text += run;
        out += run;
        if (text == end)
            break;
        if (run == 16)
            continue;
        text += tornado__json_escape(&out, text, (size_t)(end - text), packer->style->utf8);
        if (TORNADO__UNLIKELY(!(out = tornado__pack_room(packer, out, (size_t)(end - text)))))
            return NULL;
    }
    *out = '"';
    return out + 1;
}
#endif

/* The string in a cell. One of up to 16 bytes, in which nothing is special, takes no more than the slack. */
static TORNADO__INLINE char *tornado__pack_cell(tornado__packer *packer, char *out, const tornado_value *cell,
                                                const tornado__json_style *style)
{
    size_t len = (size_t)(cell->head >> 8);
#ifdef __SSE2__
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)cell->as.string);
    unsigned utf8 = cell->head & TORNADO__VALUE_UTF8, run = tornado__json_clean(bytes, style->utf8);
    *out++ = '"';
    _mm_storeu_si128((__m128i *)(void *)out, bytes);
    if (TORNADO__UNLIKELY(tornado__value_head(TORNADO_VALUE_STRING | TORNADO__VALUE_UTF8, run) != cell->head))
        return tornado__pack_blocks(packer, out, cell->as.string, len, style->utf8 && utf8);
    out[len] = '"';
    return out + len + 1;
#else
    (void)style;
    return tornado__pack_string(packer, out, cell->as.string, len);
#endif
}

static TORNADO__NOINLINE char *tornado__pack_scalar_cell(tornado__packer *packer, char *out, const tornado_value *cell)
{
    switch (tornado__value_kind(cell)) {
    case TORNADO_VALUE_BOOL:
        return cell->as.integer ? TORNADO__PACK_RAW(packer, out, "true") : TORNADO__PACK_RAW(packer, out, "false");
    case TORNADO_VALUE_UNSIGNED:
        return tornado__pack_integer(packer, out, cell->as.bits, false);
    case TORNADO_VALUE_DOUBLE:
        return tornado__pack_double(packer, out, cell->as.number);
    default:
        if (!tornado_value_failed(cell))
            return TORNADO__PACK_RAW(packer, out, "null");
        tornado__nomem();
        return NULL;
    }
}

/* A new line, indented for a depth. */
static char *tornado__pack_line(tornado__packer *packer, char *out, size_t depth)
{
    size_t spaces = packer->style->indent * depth;
    if (!(out = tornado__pack_room(packer, out, spaces + 1)))
        return NULL;
    *out = '\n';
    memset(out + 1, ' ', spaces);
    return out + 1 + spaces;
}

/* What of a list or dict is still to be written. */
typedef struct tornado__pack_open {
    const tornado_value *at, *end;
    bool dict;
} tornado__pack_open;

/* A list or dict in a cell: what is in it. False when there was no memory for that. */
static TORNADO__INLINE bool tornado__pack_enter(const tornado_value *cell, tornado__pack_open *inner)
{
    size_t len;
    inner->at = tornado__value_items(cell, &len);
    inner->dict = tornado__value_kind(cell) == TORNADO_VALUE_DICT;
    inner->end = inner->at + (len << inner->dict);
    return !tornado_value_failed(cell) || tornado__nomem();
}

/* A value with all that is in it, in a style. Behind each value goes a comma, and a closing bracket takes the place
   of the last. The slack is enough for a key, its value and the comma, unless one of them looks for room itself. */
static TORNADO__INLINE char *tornado__pack_items(tornado__packer *packer, char *out, const tornado_value *value,
                                                 const tornado__json_style *style)
{
    tornado__pack_open outer[TORNADO__VALUE_DEPTH], inner = {value, value + 1, false};
    size_t depth = 0;
    for (;;) {
        if (TORNADO__UNLIKELY(!(out = tornado__pack_room(packer, out, 0))))
            return NULL;
        if (inner.at == inner.end) {
            out -= style->comma_len + (style->indent ? 1 + style->indent * depth : 0);
            if (depth == 0)
                return out;
            depth--;
            if (style->indent && !(out = tornado__pack_line(packer, out, depth)))
                return NULL;
            *out++ = inner.dict ? '}' : ']';
            inner = outer[depth];
        } else {
            if (inner.dict) {
                if (TORNADO__UNLIKELY(!(out = tornado__pack_cell(packer, out, inner.at++, style))))
                    return NULL;
                memcpy(out, style->colon, 2);
                out += style->colon_len;
            }
            const tornado_value *cell = inner.at++;
            unsigned kind = (unsigned)cell->head & TORNADO__VALUE_KIND;
            if (kind == TORNADO_VALUE_STRING) {
                out = tornado__pack_cell(packer, out, cell, style);
            } else if (kind == TORNADO_VALUE_INTEGER) {
                bool negative = cell->as.integer < 0;
                out = tornado__put_integer(out, negative ? 0 - cell->as.bits : cell->as.bits, negative);
            } else if (kind < TORNADO_VALUE_LIST) {
                out = tornado__pack_scalar_cell(packer, out, cell);
            } else {
                if (TORNADO__UNLIKELY(depth == TORNADO__VALUE_DEPTH)) {
                    tornado__fail(TORNADO_ERR_LIMIT, 0, "more than 512 lists and dicts in each other");
                    return NULL;
                }
                outer[depth] = inner;
                if (TORNADO__UNLIKELY(!tornado__pack_enter(cell, &inner)))
                    return NULL;
                *out++ = inner.dict ? '{' : '[';
                if (inner.at != inner.end) {
                    depth++;
                    if (style->indent && !(out = tornado__pack_line(packer, out, depth)))
                        return NULL;
                    continue;
                }
                *out++ = inner.dict ? '}' : ']';
                inner = outer[depth];
            }
            if (TORNADO__UNLIKELY(!out))
                return NULL;
        }
        memcpy(out, style->comma, 2);
        out += style->comma_len;
        if (style->indent && !(out = tornado__pack_line(packer, out, depth)))
            return NULL;
    }
}

static TORNADO__NOINLINE char *tornado__pack_value(tornado__packer *packer, char *out, const tornado_value *value)
{
    if (!value)
        return TORNADO__PACK_RAW(packer, out, "null");
    if (packer->style->comma_len == 1 || packer->style->colon_len == 1)
        return tornado__pack_items(packer, out, value, packer->style);
    return packer->style->utf8 ? tornado__pack_items(packer, out, value, &tornado__json_as_is)
                               : tornado__pack_items(packer, out, value, &tornado__json_default);
}

static bool tornado__format_wrong(const tornado__format *format, const char *what)
{
    return tornado__fail(TORNADO_ERR_INVALID, 0, "%s: %s at character %d of \"%.80s\"", format->function, what,
                         (int)(format->at - format->text) + 1, format->text);
}

static TORNADO__INLINE char tornado__format_peek(tornado__format *format)
{
    const char *at = format->at;
    while (TORNADO__UNLIKELY((unsigned char)(*at - 1) < ' ')) /* white space, and other controls */
        at++;
    format->at = at;
    return *at;
}

/* The bytes that a name may have. */
static const bool tornado__format_names[256] = {
    ['-'] = 1, ['_'] = 1, ['0'] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    ['A'] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    ['a'] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* A key: a name, or "s" for the next argument. */
static TORNADO__INLINE bool tornado__format_key(tornado__format *format, const char **key, size_t *len)
{
    const char *name = format->at;
    size_t size = 0;
    while (tornado__format_names[(unsigned char)name[size]])
        size++;
    format->at = name + size;
    if (size == 0)
        return tornado__format_wrong(format, "a key is missing");
    if (size == 1 && *name == 's') {
        name = va_arg(format->args, const char *);
        if (!name)
            return tornado__format_wrong(format, "a key is NULL");
        size = strlen(name);
    }
    *key = name;
    *len = size;
    return true;
}

/* The colon behind a key. */
static TORNADO__INLINE bool tornado__format_colon(tornado__format *format)
{
    if (TORNADO__UNLIKELY(*format->at != ':') && tornado__format_peek(format) != ':')
        return tornado__format_wrong(format, "a \":\" is missing");
    format->at++;
    return true;
}

/* The value that a letter stands for; packer->format.at is behind the letter. */
static TORNADO__INLINE char *tornado__pack_scalar(tornado__packer *packer, char *out, char letter)
{
    tornado__format *format = &packer->format;
    int64_t number;
    switch (letter) {
    case 's':
    case 'j': {
        const char *text = va_arg(format->args, const char *);
        if (!text)
            return TORNADO__PACK_RAW(packer, out, "null");
        size_t len = strlen(text);
        return letter == 's' ? tornado__pack_string(packer, out, text, len)
                             : tornado__pack_raw(packer, out, text, len);
    }
    case 'z': {
        tornado_bytes bytes = va_arg(format->args, tornado_bytes);
        return bytes.data ? tornado__pack_string(packer, out, bytes.data, bytes.len)
                          : TORNADO__PACK_RAW(packer, out, "null");
    }
    case 'i':
    case 'I':
        number = letter == 'i' ? va_arg(format->args, int) : va_arg(format->args, int64_t);
        return tornado__pack_integer(packer, out, number < 0 ? -(uint64_t)number : (uint64_t)number, number < 0);
    case 'U':
        return tornado__pack_integer(packer, out, va_arg(format->args, uint64_t), false);
    case 'f':
        return tornado__pack_double(packer, out, va_arg(format->args, double));
    case 'o':
        return tornado__pack_value(packer, out, va_arg(format->args, const tornado_value *));
    case 'b':
        return va_arg(format->args, int) ? TORNADO__PACK_RAW(packer, out, "true")
                                         : TORNADO__PACK_RAW(packer, out, "false");
    case 'n':
        return TORNADO__PACK_RAW(packer, out, "null");
    default:
        format->at--;
        tornado__format_wrong(format, letter ? "a letter that means nothing" : "a value is missing");
        return NULL;
    }
}

/* "name:" or "s:", with the name written. Nothing in one that stands in the format is special. */
static TORNADO__INLINE char *tornado__pack_key(tornado__packer *packer, char *out)
{
    const char *key = NULL, *name = packer->format.at;
    size_t len = 0;
    if (!tornado__format_key(&packer->format, &key, &len) || !tornado__format_colon(&packer->format))
        return NULL;
    if (TORNADO__LIKELY(key == name && len >= 4 && len <= 16)) {
        *out = '"'; /* it is within the slack */
        tornado__copy_short(out + 1, key, len);
        out += 2 + len;
        out[-1] = '"';
    } else if (!(out = tornado__pack_string(packer, out, key, len))) {
        return NULL;
    }
    memcpy(out, ": ", 2);
    return out + 2;
}

static char *tornado__pack(tornado__packer *packer, char *out)
{
    char closers[TORNADO__JSON_DEPTH + 1], closer = 0; /* of the innermost object or array; 0 outside */
    int depth = 0;
    bool first = true; /* nothing stands in it yet */
    tornado__format *format = &packer->format;
    do {
        char letter = tornado__format_peek(format);
        if (depth && letter == closer) {
            format->at++;
            *out++ = closer;
            closer = closers[depth--];
            first = false;
            continue;
        }
        if (!first) {
            if (letter != ',') {
                tornado__format_wrong(format, "a \",\" or the end is missing");
                return NULL;
            }
            format->at++;
            memcpy(out, ", ", 2);
            out += 2;
            letter = tornado__format_peek(format);
        }
        if (closer == '}') {
            if (!(out = tornado__pack_key(packer, out)))
                return NULL;
            letter = tornado__format_peek(format);
        }
        format->at++;
        first = letter == '{' || letter == '[';
        if (first) {
            if (depth == TORNADO__JSON_DEPTH)
                tornado__format_wrong(format, "too deep");
            if (depth == TORNADO__JSON_DEPTH || !(out = tornado__pack_room(packer, out, 0)))
                return NULL;
            closers[++depth] = closer;
            closer = letter == '{' ? '}' : ']';
            *out++ = letter;
        } else if (!(out = tornado__pack_scalar(packer, out, letter))) {
            return NULL;
        }
    } while (depth);
    return !tornado__format_peek(format) || tornado__format_wrong(format, "something follows the end") ? out : NULL;
}

/* Makes ready to write to a buffer that has not failed. */
static TORNADO__INLINE char *tornado__pack_begin(tornado__packer *packer, tornado_buffer *out,
                                                 const tornado__json_style *style)
{
    char *at = tornado__buffer_reserve(out, TORNADO__JSON_SLACK);
    packer->buffer = out;
    packer->end = at ? out->data + out->cap : NULL;
    packer->style = style;
    return at;
}

/* Gives the buffer its new length; that from before when there is no end. */
static TORNADO__INLINE bool tornado__pack_end(tornado_buffer *out, const char *end, size_t before)
{
    out->failed = false;
    out->len = end ? (size_t)(end - out->data) : before;
    if (out->data)
        out->data[out->len] = '\0';
    return end != NULL;
}

TORNADO_API bool tornado_json_encode_with(tornado_buffer *out, const tornado_value *value,
                                          const tornado_json_options *options)
{
    tornado__packer packer;
    tornado__json_style style = tornado__json_default;
    size_t before = out->len;
    if (options) {
        style.utf8 = options->utf8;
        style.indent = options->indent > 0 ? (size_t)options->indent : 0;
        style.comma_len = options->compact || style.indent ? 1 : 2;
        style.colon_len = options->compact ? 1 : 2;
    }
    if (out->failed)
        return tornado__nomem();
    char *at = tornado__pack_begin(&packer, out, &style);
    return tornado__pack_end(out, at ? tornado__pack_value(&packer, at, value) : NULL, before);
}

TORNADO_API bool tornado_json_encode(tornado_buffer *out, const tornado_value *value)
{
    return tornado_json_encode_with(out, value, NULL);
}

TORNADO_API bool tornado_json_vpack(tornado_buffer *out, const char *format, va_list args)
{
    tornado__packer packer;
    size_t before = out->len;
    if (out->failed)
        return tornado__nomem();
    char *at = tornado__pack_begin(&packer, out, &tornado__json_default);
    packer.format.text = packer.format.at = format;
    packer.format.function = "tornado_json_pack";
    va_copy(packer.format.args, args);
    at = at ? tornado__pack(&packer, at) : NULL;
    va_end(packer.format.args);
    return tornado__pack_end(out, at, before);
}

TORNADO_API bool tornado_json_pack(tornado_buffer *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool ok = tornado_json_vpack(out, format, args);
    va_end(args);
    return ok;
}

TORNADO_API char *tornado_json_format(tornado_arena *arena, const char *format, ...)
{
    tornado_buffer buffer = {NULL, 0, 0, false};
    va_list args;
    va_start(args, format);
    bool ok = tornado_json_vpack(&buffer, format, args);
    va_end(args);
    char *text = ok ? tornado_arena_memdup(arena, buffer.data, buffer.len) : NULL;
    TORNADO_FREE(buffer.data);
    return text;
}

TORNADO_API const tornado_value *tornado_value_vpack(tornado_arena *arena, const char *format, va_list args)
{
    tornado_buffer buffer = {NULL, 0, 0, false};
    const tornado_value *value = NULL;
    if (tornado_json_vpack(&buffer, format, args)) {
        tornado_bytes text = {buffer.data, buffer.len};
        value = tornado_json_decode(arena, text);
    }
    TORNADO_FREE(buffer.data);
    return value;
}

TORNADO_API const tornado_value *tornado_value_pack(tornado_arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const tornado_value *value = tornado_value_vpack(arena, format, args);
    va_end(args);
    return value;
}

/*----------------------------------------------------------------------------
 * Taking values apart.
 *----------------------------------------------------------------------------*/

enum { TORNADO__UNPACK_NAMES = 64 };

/* A list or dict of a format. */
typedef struct tornado__unpack_level {
    const tornado_value *value;
    bool skip; /* it is not there, and need not be: arguments are passed over */
    char closer;
    size_t next;       /* index in a list */
    tornado_bytes key; /* that is looked at, in a dict */
    unsigned names;    /* of the dicts around it, in the unpacker's */
} tornado__unpack_level;

typedef struct tornado__unpacker {
    tornado__format format;
    tornado__unpack_level levels[TORNADO__JSON_DEPTH + 1]; /* the first is outside of all */
    size_t depth;
    tornado_bytes names[TORNADO__UNPACK_NAMES]; /* the keys named in the dicts that are open: for "!" */
    unsigned names_count;
} tornado__unpacker;

/* Tells of a value that is not as the format says, where it is and what is wrong with it. */
static TORNADO__NOINLINE bool tornado__unpack_wrong(tornado__unpacker *unpacker, const char *format, ...)
    TORNADO_PRINTF(2, 3);
static TORNADO__NOINLINE bool tornado__unpack_wrong(tornado__unpacker *unpacker, const char *format, ...)
{
    char path[160] = "", what[80];
    size_t at = 0;
    va_list args;
    for (size_t i = 1; i <= unpacker->depth && at < sizeof path; i++) {
        const tornado__unpack_level *level = &unpacker->levels[i];
        int len = level->closer == ']'
                      ? snprintf(path + at, sizeof path - at, "[%zu]", level->next)
                      : snprintf(path + at, sizeof path - at, "%s%.*s", at ? "." : "",
                                 (int)(level->key.len < 64 ? level->key.len : 64), level->key.data);
        at += len > 0 ? (size_t)len : 0;
    }
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return tornado__fail(TORNADO_ERR_INVALID, 0, "%s: %s", path[0] ? path : "the value", what);
}

static bool tornado__unpack_wants(tornado__unpacker *unpacker, const char *what, const tornado_value *value)
{
    static const char names[][11] = {"null",     "a bool",   "an integer", "an integer",
                                     "a double", "a string", "a list",     "a dict"};
    return tornado__unpack_wrong(unpacker, "%s is wanted, not %s", what, names[tornado__value_kind(value)]);
}

/* An integer that must not be beyond the limits. */
static bool tornado__unpack_integer(tornado__unpacker *unpacker, const tornado_value *value, int64_t least,
                                    uint64_t most)
{
    if (!tornado_value_is_integer(value))
        return tornado__unpack_wants(unpacker, "an integer", value);
    bool negative = tornado__value_kind(value) == TORNADO_VALUE_INTEGER && value->as.integer < 0;
    if (negative ? value->as.integer < least : value->as.bits > most)
        return tornado__unpack_wrong(unpacker, "an integer from %lld to %llu is wanted", (long long)least,
                                     (unsigned long long)most);
    return true;
}

/* What a letter stands for; where there is no value, only its argument is taken. */
static bool tornado__unpack_scalar(tornado__unpacker *unpacker, char letter, const tornado_value *value, bool skip)
{
    tornado__format *format = &unpacker->format;
    void *into = NULL;
    if (!letter || !strchr("szbiIUfon", letter))
        return tornado__format_wrong(format, letter ? "a letter that means nothing" : "a value is missing");
    format->at++;
    if (letter != 'n')
        into = va_arg(format->args, void *);
    if (skip)
        return true;
    switch (letter) {
    case 's':
    case 'z':
        if (!tornado_value_is_string(value))
            return tornado__unpack_wants(unpacker, "a string", value);
        if (letter == 'z')
            *(tornado_bytes *)into = tornado_value_bytes(value);
        else if (memchr(tornado_value_string(value), '\0', tornado_value_len(value)))
            return tornado__unpack_wrong(unpacker, "a string without NUL is wanted");
        else
            *(const char **)into = tornado_value_string(value);
        return true;
    case 'b':
        if (!tornado_value_is_bool(value))
            return tornado__unpack_wants(unpacker, "a bool", value);
        *(bool *)into = value->as.integer != 0;
        return true;
    case 'i':
        if (!tornado__unpack_integer(unpacker, value, INT_MIN, INT_MAX))
            return false;
        *(int *)into = (int)value->as.integer;
        return true;
    case 'I':
        if (!tornado__unpack_integer(unpacker, value, INT64_MIN, INT64_MAX))
            return false;
        *(int64_t *)into = value->as.integer;
        return true;
    case 'U':
        if (!tornado__unpack_integer(unpacker, value, 0, UINT64_MAX))
            return false;
        *(uint64_t *)into = value->as.bits;
        return true;
    case 'f':
        if (!tornado_value_is_number(value))
            return tornado__unpack_wants(unpacker, "a number", value);
        *(double *)into = tornado_value_double(value, 0);
        return true;
    case 'o':
        *(const tornado_value **)into = value;
        return true;
    default:
        return tornado_value_is_null(value) || tornado__unpack_wants(unpacker, "null", value);
    }
}

/* "!": whether nothing but what the format names is in the innermost list or dict. */
static bool tornado__unpack_strictly(tornado__unpacker *unpacker)
{
    tornado__unpack_level *level = &unpacker->levels[unpacker->depth];
    size_t len = tornado_value_len(level->value);
    unpacker->format.at++;
    if (tornado__format_peek(&unpacker->format) != level->closer)
        return tornado__format_wrong(&unpacker->format, "something follows the \"!\"");
    if (level->skip)
        return true;
    if (level->closer == ']') {
        unpacker->depth--;
        return level->next == len ||
               tornado__unpack_wrong(unpacker, "a list of %zu is wanted, not of %zu", level->next, len);
    }
    if (unpacker->names_count > TORNADO__UNPACK_NAMES)
        return tornado__format_wrong(&unpacker->format, "too many keys before a \"!\"");
    for (size_t i = 0; i < len; i++) {
        level->key = tornado_value_key_bytes(level->value, i);
        unsigned at = level->names;
        while (at < unpacker->names_count && !tornado_bytes_equal(unpacker->names[at], level->key))
            at++;
        if (at == unpacker->names_count)
            return tornado__unpack_wrong(unpacker, "is not wanted");
    }
    return true;
}

/* "key:" or "key?:", and the value behind that key; *skip when it need not be there and is not. */
static bool tornado__unpack_key(tornado__unpacker *unpacker, const tornado_value **value, bool *skip)
{
    tornado__unpack_level *level = &unpacker->levels[unpacker->depth];
    tornado__format *format = &unpacker->format;
    if (!tornado__format_key(format, &level->key.data, &level->key.len))
        return false;
    bool optional = tornado__format_peek(format) == '?';
    format->at += optional;
    if (!tornado__format_colon(format))
        return false;
    if (unpacker->names_count < TORNADO__UNPACK_NAMES)
        unpacker->names[unpacker->names_count] = level->key;
    unpacker->names_count++;
    *value = tornado_value_get_bytes(level->value, level->key);
    *skip = level->skip || (optional && tornado_value_is_null(*value));
    return *skip || *value || tornado__unpack_wrong(unpacker, "is missing");
}

/* The value that comes next in the innermost list or dict. */
static bool tornado__unpack_next(tornado__unpacker *unpacker, const tornado_value **value, bool *skip)
{
    tornado__unpack_level *level = &unpacker->levels[unpacker->depth];
    if (level->closer == '}')
        return tornado__unpack_key(unpacker, value, skip);
    if (level->closer == 0)
        return true;
    *value = tornado_value_at(level->value, level->next);
    *skip = level->skip;
    return *skip || *value || tornado__unpack_wrong(unpacker, "is missing");
}

static bool tornado__unpack_open(tornado__unpacker *unpacker, char letter, const tornado_value *value, bool skip)
{
    if (unpacker->depth == TORNADO__JSON_DEPTH)
        return tornado__format_wrong(&unpacker->format, "too deep");
    if (!skip && tornado__value_kind(value) != (letter == '{' ? TORNADO_VALUE_DICT : TORNADO_VALUE_LIST))
        return tornado__unpack_wants(unpacker, letter == '{' ? "a dict" : "a list", value);
    tornado__unpack_level level = {value, skip, letter == '{' ? '}' : ']', 0, {NULL, 0}, unpacker->names_count};
    unpacker->levels[++unpacker->depth] = level;
    unpacker->format.at++;
    return true;
}

static bool tornado__unpack(tornado__unpacker *unpacker, const tornado_value *value)
{
    tornado__format *format = &unpacker->format;
    bool first = true, skip = false; /* nothing stands in the innermost yet */
    do {
        char letter = tornado__format_peek(format);
        tornado__unpack_level *level = &unpacker->levels[unpacker->depth];
        if (unpacker->depth && (letter == level->closer || (letter == '!'))) {
            if (letter == '!' && !tornado__unpack_strictly(unpacker))
                return false;
            format->at++;
            unpacker->names_count = level->names;
            unpacker->depth = (size_t)(level - unpacker->levels) - 1;
            unpacker->levels[unpacker->depth].next++;
            first = false;
            continue;
        }
        if (!first) {
            if (letter != ',')
                return tornado__format_wrong(format, "a \",\" or the end is missing");
            format->at++;
            tornado__format_peek(format);
        }
        if (!tornado__unpack_next(unpacker, &value, &skip))
            return false;
        letter = tornado__format_peek(format);
        first = letter == '{' || letter == '[';
        if (!(first ? tornado__unpack_open(unpacker, letter, value, skip)
                    : tornado__unpack_scalar(unpacker, letter, value, skip)))
            return false;
        if (!first)
            level->next++;
    } while (unpacker->depth);
    return !tornado__format_peek(format) || tornado__format_wrong(format, "something follows the end");
}

TORNADO_API bool tornado_value_vunpack(const tornado_value *value, const char *format, va_list args)
{
    tornado__unpacker unpacker;
    tornado__unpack_level outside = {NULL, false, 0, 0, {NULL, 0}, 0};
    unpacker.format.text = unpacker.format.at = format;
    unpacker.format.function = "tornado_value_unpack";
    unpacker.levels[0] = outside;
    unpacker.depth = 0;
    unpacker.names_count = 0;
    va_copy(unpacker.format.args, args);
    bool ok = tornado__unpack(&unpacker, value);
    va_end(unpacker.format.args);
    return ok;
}

TORNADO_API bool tornado_value_unpack(const tornado_value *value, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool ok = tornado_value_vunpack(value, format, args);
    va_end(args);
    return ok;
}

/*============================================================================
 * section: regex (private)
 * A parser makes a tree, the tree becomes a program, and one of two machines runs it.
 *
 * The backtracker follows one way through the program at a time, in order of preference, and never goes twice
 * through an instruction where ways meet at the same place of the text: it needs a bit for each such pair, so it is
 * for texts of ordinary size. The other machine follows all ways side by side, in order of preference, a byte at a
 * time; it needs memory for the program only, and can go on when more text comes. Both find what Python finds.
 *
 * A stack may be small, and patterns nest: so neither parsing nor compiling recurses. What is under way is kept in
 * arrays.
 *
 * Python leaves a loop after a round that consumed nothing. What has to be known for that, whether something was
 * consumed since the round began, is in the program: a loop's body that may match nothing is compiled twice, and
 * consuming leads from the one copy into the other.
 *============================================================================*/

enum {
    TORNADO__RE_PROGRAM_MAX = 20000, /* instructions */
    TORNADO__RE_PATTERN_MAX = 65536, /* bytes */
    TORNADO__RE_DEPTH_MAX = 100,
    TORNADO__RE_GROUPS_MAX = 255,
    TORNADO__RE_FIRST_MAX = 200, /* instructions that are looked at for what something begins with */
    TORNADO__RE_BITS_MAX = 1 << 21,  /* of the backtracker */
    TORNADO__RE_BITS_LOCAL = 4096,
    TORNADO__RE_JOBS_LOCAL = 32,
    TORNADO__RE_LAST = 0x10ffff      /* code point */
};

typedef struct tornado__re_range {
    uint32_t low, high;
} tornado__re_range;

enum { TORNADO__RE_CLASS, TORNADO__RE_SEQUENCE, TORNADO__RE_CHOICE, TORNADO__RE_REPEAT, TORNADO__RE_GROUP,
       TORNADO__RE_ASSERTION };

enum {
    TORNADO__RE_TEXT_BEGIN,
    TORNADO__RE_LINE_BEGIN,
    TORNADO__RE_TEXT_END,
    TORNADO__RE_LAST_END,
    TORNADO__RE_LINE_END,
    TORNADO__RE_BOUNDARY,
    TORNADO__RE_NO_BOUNDARY
};

/* Children are chained from the last to the first, as the program is made from its end. */
typedef struct tornado__re_node {
    unsigned char kind, assertion;
    bool lazy, nullable; /* nullable: may match without consuming anything */
    int min, max;        /* of a repeat; max -1: no limit */
    unsigned group;
    int ranges_count;
    const tornado__re_range *ranges;
    struct tornado__re_node *last, *before;
} tornado__re_node;

/* BYTE: a byte from low to high. SET: one of a set. RUN: as many of a set as there are; what follows begins with
   none of them, so fewer cannot help. SPLIT: next, or else other. SAVE: the place into a slot. */
enum { TORNADO__RE_BYTE, TORNADO__RE_SET, TORNADO__RE_RUN, TORNADO__RE_SPLIT, TORNADO__RE_SAVE, TORNADO__RE_ASSERT,
       TORNADO__RE_MATCH };

typedef struct tornado__re_code {
    unsigned char op, low, high;
    uint32_t next;
    uint32_t other; /* an instruction, a set, a slot or an assertion */
    uint32_t check; /* where ways meet: its number, from 1 */
} tornado__re_code;

typedef struct tornado__re_set {
    uint64_t bits[4];
} tornado__re_set;

struct tornado_regex {
    tornado__re_code *code;
    tornado__re_set *sets;
    uint32_t start, after_prefix, code_count, checks;
    unsigned groups;
    bool straight; /* it has no SPLIT */
    bool bytes, first_known; /* first: a match that begins at a byte outside it cannot be */
    tornado__re_set first;
    size_t prefix_len;
    char prefix[32];         /* what every match begins with */
    const char *names[];     /* of groups 1, 2..., then their text */
};

/* A group whose parenthesis is open, or the whole pattern. */
typedef struct tornado__re_open {
    const char *at;                      /* its parenthesis */
    unsigned group, flags;               /* flags: to go back to behind it */
    bool capturing;
    tornado__re_node *choice, *sequence; /* the ways before, when there are any; the one under way */
} tornado__re_open;

/* A node that is being emitted, from its last child to the first. It goes on at `same` when it has consumed
   nothing, else at `moved`; what of it is emitted already begins at the others. */
typedef struct tornado__re_task {
    const tornado__re_node *node, *child;
    uint32_t same, moved, after_same, after_moved, kept;
    int step, copies, rounds;
} tornado__re_task;

typedef struct tornado__re_compiler {
    const char *pattern, *at, *end;
    unsigned flags;
    bool bytes;
    int depth, deepest;
    tornado__re_open open[TORNADO__RE_DEPTH_MAX + 1];
    tornado_arena *arena;
    unsigned groups;
    const char *names[TORNADO__RE_GROUPS_MAX + 1];
    tornado__re_range *ranges; /* of the class under way */
    int ranges_count, ranges_capacity;
    tornado__re_code *code;
    int code_count, code_capacity;
    tornado__re_set *sets;
    int sets_count, sets_capacity;
    tornado__re_task *tasks;
    int tasks_count;
    int nodes_left; /* that may still be emitted, as many emit nothing */
    uint32_t start;
} tornado__re_compiler;

static TORNADO__INLINE bool tornado__re_in(const tornado__re_set *set, unsigned char byte)
{
    return set->bits[byte >> 6] >> (byte & 63) & 1;
}

/* ---- parsing ---- */

static TORNADO_NORETURN void tornado__re_fail(const tornado__re_compiler *c, const char *at, const char *what)
{
    tornado_raise(TORNADO_ERR_PARSE, "%s at position %d", what, (int)(at - c->pattern));
}

static void *tornado__re_alloc(tornado__re_compiler *c, size_t size)
{
    void *memory = tornado_arena_calloc(c->arena, 1, size);
    if (!memory)
        tornado_raise_error(tornado_last_error());
    return memory;
}

static tornado__re_node *tornado__re_node_new(tornado__re_compiler *c, int kind)
{
    tornado__re_node *node = tornado__re_alloc(c, sizeof *node);
    node->kind = (unsigned char)kind;
    node->nullable = kind != TORNADO__RE_CLASS;
    return node;
}

static bool tornado__re_more(const tornado__re_compiler *c)
{
    return c->at < c->end;
}

static bool tornado__re_take(tornado__re_compiler *c, char wanted)
{
    bool is = c->at < c->end && *c->at == wanted;
    c->at += is;
    return is;
}

static void tornado__re_add_range(tornado__re_compiler *c, uint32_t low, uint32_t high)
{
    void *ranges = c->ranges;
    if (!tornado__grow(&ranges, &c->ranges_capacity, c->ranges_count + 1, sizeof *c->ranges))
        tornado_raise_error(tornado_last_error());
    c->ranges = ranges;
    c->ranges[c->ranges_count++] = (tornado__re_range){low, high};
}

/* Adds `from`, sorted ranges, or what is between them. */
static void tornado__re_add_ranges(tornado__re_compiler *c, const tornado__re_range *from, int count, bool negated)
{
    uint32_t low = 0;
    for (int i = 0; i < count; i++) {
        if (!negated)
            tornado__re_add_range(c, from[i].low, from[i].high);
        else if (from[i].low > low)
            tornado__re_add_range(c, low, from[i].low - 1);
        low = from[i].high + 1;
    }
    uint32_t last = c->bytes ? 0xff : TORNADO__RE_LAST;
    if (negated && low <= last)
        tornado__re_add_range(c, low, last);
}

static int tornado__re_range_order(const void *a, const void *b)
{
    uint32_t left = ((const tornado__re_range *)a)->low, right = ((const tornado__re_range *)b)->low;
    return left < right ? -1 : left > right;
}

/* A class of the ranges that were added since there were `from`. */
static tornado__re_node *tornado__re_class(tornado__re_compiler *c, bool negated)
{
    tornado__re_node *node = tornado__re_node_new(c, TORNADO__RE_CLASS);
    if (c->flags & TORNADO_REGEX_IGNORECASE)
        for (int i = 0, count = c->ranges_count; i < count; i++)
            for (int upper = 0; upper < 2; upper++) {
                uint32_t a = upper ? 'A' : 'a', other = upper ? 'a' : 'A';
                uint32_t low = c->ranges[i].low > a ? c->ranges[i].low : a;
                uint32_t high = c->ranges[i].high < a + 25 ? c->ranges[i].high : a + 25;
                if (low <= high)
                    tornado__re_add_range(c, low - a + other, high - a + other);
            }
    qsort(c->ranges, (size_t)c->ranges_count, sizeof *c->ranges, tornado__re_range_order);
    int count = 0;
    for (int i = 0; i < c->ranges_count; i++)
        if (count && c->ranges[i].low <= c->ranges[count - 1].high + 1) {
            if (c->ranges[i].high > c->ranges[count - 1].high)
                c->ranges[count - 1].high = c->ranges[i].high;
        } else {
            c->ranges[count++] = c->ranges[i];
        }
    c->ranges_count = count;
    if (negated) {
        tornado__re_range *plain = tornado__re_alloc(c, ((size_t)count + 1) * sizeof *plain);
        if (count)
            memcpy(plain, c->ranges, (size_t)count * sizeof *plain);
        c->ranges_count = 0;
        tornado__re_add_ranges(c, plain, count, true);
    }
    node->ranges_count = c->ranges_count;
    tornado__re_range *ranges = tornado__re_alloc(c, ((size_t)c->ranges_count + 1) * sizeof *ranges);
    if (c->ranges_count)
        memcpy(ranges, c->ranges, (size_t)c->ranges_count * sizeof *ranges);
    node->ranges = ranges;
    c->ranges_count = 0;
    return node;
}

static tornado__re_node *tornado__re_char(tornado__re_compiler *c, uint32_t code_point)
{
    c->ranges_count = 0;
    tornado__re_add_range(c, code_point, code_point);
    return tornado__re_class(c, false);
}

/* One character of the pattern. */
static uint32_t tornado__re_next(tornado__re_compiler *c)
{
    uint32_t code_point = (unsigned char)*c->at;
    if (code_point < 0x80 || c->bytes) {
        c->at++;
        return code_point;
    }
    size_t size = tornado_utf8_decode(c->at, (size_t)(c->end - c->at), &code_point);
    if (!size)
        tornado__re_fail(c, c->at, "the pattern is not UTF-8");
    c->at += size;
    return code_point;
}

static const struct {
    char letter;
    int count;
    tornado__re_range ranges[4];
} tornado__re_classes[] = {
    {'d', 1, {{'0', '9'}}},
    {'s', 2, {{'\t', '\r'}, {' ', ' '}}},
    {'w', 4, {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}},
};

/* Adds what \d, \w, \s and their negations stand for. False: it is another letter. */
static bool tornado__re_add_class(tornado__re_compiler *c, char letter)
{
    for (size_t i = 0; i < TORNADO__COUNT(tornado__re_classes); i++)
        if (tornado__re_classes[i].letter == (letter | 0x20)) {
            tornado__re_add_ranges(c, tornado__re_classes[i].ranges, tornado__re_classes[i].count, letter < 'a');
            return true;
        }
    return false;
}

/* Reads `count` hexadecimal digits behind an escape. */
static uint32_t tornado__re_hex(tornado__re_compiler *c, const char *escape, int count)
{
    uint32_t value = 0;
    for (int i = 0; i < count; i++) {
        int digit = tornado__re_more(c) ? tornado__hex_digit(*c->at) : -1;
        if (digit < 0)
            tornado__re_fail(c, escape, "incomplete escape");
        value = value << 4 | (uint32_t)digit;
        c->at++;
    }
    if (value > TORNADO__RE_LAST || (!c->bytes && value >= 0xd800 && value <= 0xdfff))
        tornado__re_fail(c, escape, "bad escape: no such character");
    return value;
}

static bool tornado__re_is_octal(const tornado__re_compiler *c, int ahead)
{
    return c->end - c->at > ahead && c->at[ahead] >= '0' && c->at[ahead] <= '7';
}

/* The character that an escape stands for; c->at is behind the backslash. `letter` in it is one of the class
   letters only when the caller has not looked for these. */
static uint32_t tornado__re_escape(tornado__re_compiler *c, bool in_class)
{
    static const char letters[] = "afnrtv", values[] = "\a\f\n\r\t\v";
    const char *escape = c->at - 1;
    if (!tornado__re_more(c))
        tornado__re_fail(c, escape, "bad escape (end of pattern)");
    char letter = *c->at;
    const char *known = letter ? strchr(letters, letter) : NULL;
    if (letter >= '0' && letter <= '9') {
        int digits = letter == '0' || in_class                                  ? 3
                     : tornado__re_is_octal(c, 2) && tornado__re_is_octal(c, 1) ? 3
                                                                                : 0;
        if (!digits && letter != '0')
            tornado__re_fail(c, escape, "backreferences cannot be matched in linear time: refused");
        uint32_t value = 0;
        const char *first = c->at;
        while (c->at - first < digits && tornado__re_is_octal(c, 0))
            value = value << 3 | (uint32_t)(*c->at++ - '0');
        if (c->at == first)
            tornado__re_fail(c, escape, "bad escape");
        if (value > 0377)
            tornado__re_fail(c, escape, "octal escape value outside of range 0-0o377");
        return value;
    }
    if (!((letter | 0x20) >= 'a' && (letter | 0x20) <= 'z'))
        return tornado__re_next(c);
    c->at++;
    if (letter == 'x')
        return tornado__re_hex(c, escape, 2);
    if (letter == 'u' && !c->bytes)
        return tornado__re_hex(c, escape, 4);
    if (letter == 'U' && !c->bytes)
        return tornado__re_hex(c, escape, 8);
    if (letter == 'b' && in_class)
        return '\b';
    if (!known)
        tornado__re_fail(c, escape, "bad escape");
    return (unsigned char)values[known - letters];
}

/* One end of a range in brackets. False: it was a class like \d, which has been added. */
static bool tornado__re_class_item(tornado__re_compiler *c, uint32_t *value)
{
    if (!tornado__re_take(c, '\\')) {
        *value = tornado__re_next(c);
        return true;
    }
    if (tornado__re_more(c) && tornado__re_add_class(c, *c->at)) {
        c->at++;
        return false;
    }
    *value = tornado__re_escape(c, true);
    return true;
}

/* "[...]", behind the bracket. */
static tornado__re_node *tornado__re_brackets(tornado__re_compiler *c)
{
    const char *open = c->at - 1;
    bool negated = tornado__re_take(c, '^');
    c->ranges_count = 0;
    for (bool first = true;; first = false) {
        const char *item = c->at;
        uint32_t low, high;
        if (!tornado__re_more(c))
            tornado__re_fail(c, open, "unterminated character set");
        if (!first && tornado__re_take(c, ']'))
            return tornado__re_class(c, negated);
        bool is_char = tornado__re_class_item(c, &low);
        if (!(c->end - c->at >= 2 && c->at[0] == '-' && c->at[1] != ']')) {
            if (is_char)
                tornado__re_add_range(c, low, low);
            continue;
        }
        c->at++;
        if (!tornado__re_class_item(c, &high) || !is_char || high < low)
            tornado__re_fail(c, item, "bad character range");
        tornado__re_add_range(c, low, high);
    }
}

static tornado__re_node *tornado__re_assertion(tornado__re_compiler *c, int assertion)
{
    tornado__re_node *node = tornado__re_node_new(c, TORNADO__RE_ASSERTION);
    node->assertion = (unsigned char)assertion;
    return node;
}

static tornado__re_node *tornado__re_backslash(tornado__re_compiler *c)
{
    static const struct {
        char letter;
        int assertion;
    } assertions[] = {{'A', TORNADO__RE_TEXT_BEGIN}, {'Z', TORNADO__RE_TEXT_END}, {'b', TORNADO__RE_BOUNDARY},
                      {'B', TORNADO__RE_NO_BOUNDARY}};
    for (size_t i = 0; tornado__re_more(c) && i < TORNADO__COUNT(assertions); i++)
        if (tornado__re_take(c, assertions[i].letter))
            return tornado__re_assertion(c, assertions[i].assertion);
    c->ranges_count = 0;
    if (tornado__re_more(c) && tornado__re_add_class(c, *c->at)) {
        c->at++;
        return tornado__re_class(c, false);
    }
    return tornado__re_char(c, tornado__re_escape(c, false));
}

/* A name in "(?P<name>". */
static const char *tornado__re_name(tornado__re_compiler *c)
{
    const char *name = c->at;
    while (tornado__re_more(c) && *c->at != '>')
        c->at++;
    size_t len = (size_t)(c->at - name);
    if (!tornado__re_take(c, '>'))
        tornado__re_fail(c, name, "missing >, unterminated name");
    if (!len)
        tornado__re_fail(c, name, "missing group name");
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)name[i];
        if (!(((byte | 0x20) >= 'a' && (byte | 0x20) <= 'z') || byte == '_' || (byte >= 0x80 && !c->bytes) ||
              (i > 0 && byte >= '0' && byte <= '9')))
            tornado__re_fail(c, name, "bad character in group name");
    }
    for (unsigned i = 1; i <= c->groups; i++)
        if (c->names[i] && strlen(c->names[i]) == len && memcmp(c->names[i], name, len) == 0)
            tornado__re_fail(c, name, "redefinition of group name");
    char *copy = tornado__re_alloc(c, len + 1);
    memcpy(copy, name, len);
    return copy;
}

/* "(?flags)" and "(?flags-flags:": changes c->flags. False: these are for the rest of the pattern. */
static bool tornado__re_flags(tornado__re_compiler *c, const char *open, bool at_start)
{
    static const char letters[] = "imsxa"; /* a is always on */
    static const unsigned values[] = {TORNADO_REGEX_IGNORECASE, TORNADO_REGEX_MULTILINE, TORNADO_REGEX_DOTALL,
                                      TORNADO_REGEX_VERBOSE, 0};
    unsigned on = 0, off = 0;
    bool minus = false;
    const char *first = c->at;
    for (;; c->at++) {
        const char *known = tornado__re_more(c) && *c->at ? strchr(letters, *c->at) : NULL;
        if (tornado__re_more(c) &&
            (*c->at == 'L' || *c->at == 'u' || (known && minus && !values[known - letters])))
            tornado__re_fail(c, c->at + 1, "bad inline flags");
        if (known && minus)
            off |= values[known - letters];
        else if (known)
            on |= values[known - letters];
        else if (tornado__re_more(c) && *c->at == '-' && !minus)
            minus = true;
        else
            break;
    }
    if (!tornado__re_more(c))
        tornado__re_fail(c, c->at, "missing -, : or )");
    if (c->at == first || (*c->at != ':' && *c->at != ')') || (*c->at == ')' && minus) || c->at[-1] == '-' ||
        (on & off))
        tornado__re_fail(c, c->at == first ? open + 1 : c->at,
                         c->at == first ? "unknown extension" : "unknown flag");
    if (*c->at == ')' && !at_start)
        tornado__re_fail(c, open, "global flags not at the start of the expression");
    c->flags = (c->flags | on) & ~off;
    return *c->at++ == ':';
}

#define TORNADO__RE_REFUSED " cannot be matched in linear time: refused"

/* Refuses what begins with "(?" and is known, but not linear. */
static void tornado__re_refuse(tornado__re_compiler *c, const char *open)
{
    static const char refused[][3] = {"=", "!", "<=", "<!", ">", "(", "P="};
    for (size_t i = 0; i < TORNADO__COUNT(refused); i++)
        if (strncmp(c->at, refused[i], strlen(refused[i])) == 0)
            tornado__re_fail(c, open,
                             i < 2    ? "look-ahead" TORNADO__RE_REFUSED
                             : i < 4  ? "look-behind" TORNADO__RE_REFUSED
                             : i == 6 ? "backreferences" TORNADO__RE_REFUSED
                                      : "atomic and conditional groups" TORNADO__RE_REFUSED);
}

static void tornado__re_open_group(tornado__re_compiler *c, const char *at, unsigned flags, bool capturing,
                                   const char *name)
{
    if (capturing) {
        if (c->groups == TORNADO__RE_GROUPS_MAX)
            tornado_raise(TORNADO_ERR_LIMIT, "a pattern of more than %d groups", TORNADO__RE_GROUPS_MAX);
        c->names[++c->groups] = name;
    }
    if (c->depth == TORNADO__RE_DEPTH_MAX)
        tornado_raise(TORNADO_ERR_LIMIT, "a pattern of more than %d levels of groups", TORNADO__RE_DEPTH_MAX);
    tornado__re_open *open = &c->open[++c->depth];
    open->at = at;
    open->flags = flags;
    open->capturing = capturing;
    open->group = capturing ? c->groups : 0;
    open->choice = NULL;
    open->sequence = tornado__re_node_new(c, TORNADO__RE_SEQUENCE);
    if (c->depth > c->deepest)
        c->deepest = c->depth;
}

/* What stands behind "(": the beginning of a group, or a comment or flags, which match nothing. */
static void tornado__re_parenthesis(tornado__re_compiler *c)
{
    const char *open = c->at - 1, *name = NULL;
    unsigned flags = c->flags;
    bool capturing = !tornado__re_take(c, '?');
    if (!capturing) {
        tornado__re_refuse(c, open);
        if (tornado__re_take(c, '#')) {
            while (tornado__re_more(c) && *c->at != ')')
                c->at++;
            if (!tornado__re_take(c, ')'))
                tornado__re_fail(c, open, "missing ), unterminated comment");
            return;
        }
        if (c->end - c->at == 1 && (*c->at == 'P' || *c->at == '<'))
            tornado__re_fail(c, c->end, "unexpected end of pattern");
        bool at_start = c->depth == 0 && !c->open[0].choice && !c->open[0].sequence->last;
        if (c->end - c->at >= 2 && c->at[0] == 'P' && c->at[1] == '<') {
            c->at += 2;
            name = tornado__re_name(c);
            capturing = true;
        } else if (!tornado__re_more(c)) {
            tornado__re_fail(c, c->at, "unexpected end of pattern");
        } else if (!tornado__re_take(c, ':') && !tornado__re_flags(c, open, at_start)) {
            return;
        }
    }
    tornado__re_open_group(c, open, flags, capturing, name);
}

/* All ways of what is open, of which the last ends here. */
static tornado__re_node *tornado__re_ways_of(const tornado__re_open *open)
{
    tornado__re_node *way = open->sequence, *choice = open->choice;
    for (const tornado__re_node *item = way->last; item; item = item->before)
        way->nullable = way->nullable && item->nullable;
    if (!choice)
        return way;
    choice->nullable = choice->nullable || way->nullable;
    way->before = choice->last;
    choice->last = way;
    return choice;
}

/* What stands behind "|" is one more way. */
static void tornado__re_next_way(tornado__re_compiler *c)
{
    tornado__re_open *open = &c->open[c->depth];
    tornado__re_node *ways = tornado__re_ways_of(open);
    if (!open->choice) {
        open->choice = tornado__re_node_new(c, TORNADO__RE_CHOICE);
        open->choice->nullable = ways->nullable;
        open->choice->last = ways;
    }
    open->sequence = tornado__re_node_new(c, TORNADO__RE_SEQUENCE);
}

/* The innermost group, which ends here. One that does not capture is a node of its own, too: it may be repeated
   where its content may not. */
static tornado__re_node *tornado__re_close_group(tornado__re_compiler *c)
{
    const tornado__re_open *open = &c->open[c->depth--];
    tornado__re_node *inner = tornado__re_ways_of(open);
    tornado__re_node *node =
        tornado__re_node_new(c, open->capturing ? TORNADO__RE_GROUP : TORNADO__RE_SEQUENCE);
    node->group = open->group;
    node->last = inner;
    node->nullable = inner->nullable;
    c->flags = open->flags;
    return node;
}

/* A number of a repeat; -1: none. */
static int tornado__re_count(tornado__re_compiler *c)
{
    const char *first = c->at;
    int value = 0;
    for (; tornado__re_more(c) && *c->at >= '0' && *c->at <= '9'; c->at++)
        if (value <= TORNADO__RE_PROGRAM_MAX)
            value = value * 10 + (*c->at - '0');
    return c->at == first ? -1 : value;
}

/* "*", "+", "?" or "{m,n}". False: there is none, as "{" may also be a plain character. */
static bool tornado__re_quantifier(tornado__re_compiler *c, int *min, int *max)
{
    const char *first = c->at;
    *min = 0;
    *max = -1;
    if (tornado__re_take(c, '*'))
        return true;
    if (tornado__re_take(c, '+')) {
        *min = 1;
        return true;
    }
    if (tornado__re_take(c, '?')) {
        *max = 1;
        return true;
    }
    if (tornado__re_take(c, '{') && !(tornado__re_more(c) && *c->at == '}')) {
        int low = tornado__re_count(c);
        bool comma = tornado__re_take(c, ',');
        int high = comma ? tornado__re_count(c) : low;
        if (tornado__re_take(c, '}')) {
            if (high >= 0 && low > high)
                tornado__re_fail(c, first + 1, "min repeat greater than max repeat");
            *min = low < 0 ? 0 : low;
            *max = high;
            return true;
        }
    }
    c->at = first;
    return false;
}

static tornado__re_node *tornado__re_repeat(tornado__re_compiler *c, tornado__re_node *child, const char *at,
                                            int min, int max)
{
    if (!child || child->kind == TORNADO__RE_ASSERTION)
        tornado__re_fail(c, at, "nothing to repeat");
    if (child->kind == TORNADO__RE_REPEAT)
        tornado__re_fail(c, at, "multiple repeat");
    if (min > TORNADO__RE_PROGRAM_MAX || max > TORNADO__RE_PROGRAM_MAX)
        tornado_raise(TORNADO_ERR_LIMIT, "the pattern's counts are too large");
    tornado__re_node *node = tornado__re_node_new(c, TORNADO__RE_REPEAT);
    node->lazy = tornado__re_take(c, '?');
    if (!node->lazy && tornado__re_take(c, '+'))
        tornado__re_fail(c, at, "a possessive quantifier cannot be matched in linear time: refused");
    node->min = min;
    node->max = max;
    node->before = child->before;
    child->before = NULL;
    node->last = child;
    node->nullable = min == 0 || child->nullable;
    return node;
}

/* One item of a sequence that is no group, without its quantifier. */
static tornado__re_node *tornado__re_item(tornado__re_compiler *c)
{
    static const tornado__re_range newline[] = {{'\n', '\n'}};
    if (tornado__re_take(c, '['))
        return tornado__re_brackets(c);
    if (tornado__re_take(c, '\\'))
        return tornado__re_backslash(c);
    if (tornado__re_take(c, '^'))
        return tornado__re_assertion(c, c->flags & TORNADO_REGEX_MULTILINE ? TORNADO__RE_LINE_BEGIN
                                                                            : TORNADO__RE_TEXT_BEGIN);
    if (tornado__re_take(c, '$'))
        return tornado__re_assertion(c, c->flags & TORNADO_REGEX_MULTILINE ? TORNADO__RE_LINE_END
                                                                            : TORNADO__RE_LAST_END);
    if (tornado__re_take(c, '.')) {
        c->ranges_count = 0;
        tornado__re_add_ranges(c, newline, c->flags & TORNADO_REGEX_DOTALL ? 0 : 1, true);
        return tornado__re_class(c, false);
    }
    return tornado__re_char(c, tornado__re_next(c));
}

/* Skips white space and a comment of VERBOSE. False: there is none. */
static bool tornado__re_skip(tornado__re_compiler *c)
{
    if (!(c->flags & TORNADO_REGEX_VERBOSE))
        return false;
    if (*c->at == '#') {
        while (tornado__re_more(c) && *c->at != '\n')
            c->at++;
        return true;
    }
    if (*c->at != ' ' && !(*c->at >= '\t' && *c->at <= '\r'))
        return false;
    c->at++;
    return true;
}

static tornado__re_node *tornado__re_parse(tornado__re_compiler *c)
{
    c->open[0].sequence = tornado__re_node_new(c, TORNADO__RE_SEQUENCE);
    while (tornado__re_more(c)) {
        const char *at = c->at;
        tornado__re_node *item = NULL, *sequence = c->open[c->depth].sequence;
        int min, max;
        if (tornado__re_skip(c))
            continue;
        if (tornado__re_take(c, '|')) {
            tornado__re_next_way(c);
        } else if (tornado__re_take(c, '(')) {
            tornado__re_parenthesis(c);
        } else if (tornado__re_take(c, ')')) {
            if (c->depth == 0)
                tornado__re_fail(c, at, "unbalanced parenthesis");
            item = tornado__re_close_group(c);
            sequence = c->open[c->depth].sequence;
        } else if (tornado__re_quantifier(c, &min, &max)) {
            sequence->last = tornado__re_repeat(c, sequence->last, at, min, max);
        } else {
            item = tornado__re_item(c);
        }
        if (item) {
            item->before = sequence->last;
            sequence->last = item;
        }
    }
    if (c->depth > 0)
        tornado__re_fail(c, c->open[c->depth].at, "missing ), unterminated subpattern");
    return tornado__re_ways_of(&c->open[0]);
}

/* ---- compiling ---- */

static uint32_t tornado__re_emit(tornado__re_compiler *c, int op, uint32_t next, uint32_t other)
{
    void *code = c->code;
    if (c->code_count == TORNADO__RE_PROGRAM_MAX)
        tornado_raise(TORNADO_ERR_LIMIT, "the pattern is too large");
    if (!tornado__grow(&code, &c->code_capacity, c->code_count + 1, sizeof *c->code))
        tornado_raise_error(tornado_last_error());
    c->code = code;
    c->code[c->code_count] = (tornado__re_code){.op = (unsigned char)op, .next = next, .other = other};
    return (uint32_t)c->code_count++;
}

/* One byte of a character. What the class has already from instruction `from` on is shared. */
static uint32_t tornado__re_emit_byte(tornado__re_compiler *c, unsigned low, unsigned high, uint32_t next, int from)
{
    for (int i = c->code_count; i-- > from && i >= c->code_count - 64;)
        if (c->code[i].op == TORNADO__RE_BYTE && c->code[i].low == low && c->code[i].high == high &&
            c->code[i].next == next)
            return (uint32_t)i;
    uint32_t at = tornado__re_emit(c, TORNADO__RE_BYTE, next, 0);
    c->code[at].low = (unsigned char)low;
    c->code[at].high = (unsigned char)high;
    return at;
}

/* One more way beside `ways`, of which UINT32_MAX is none. */
static uint32_t tornado__re_emit_way(tornado__re_compiler *c, uint32_t way, uint32_t ways)
{
    return ways == UINT32_MAX ? way : tornado__re_emit(c, TORNADO__RE_SPLIT, way, ways);
}

/* The UTF-8 of code points from low to high, none of them ASCII: as sequences of ranges of bytes. */
static uint32_t tornado__re_emit_utf8(tornado__re_compiler *c, uint32_t low, uint32_t high, uint32_t next,
                                      uint32_t ways, int from)
{
    static const uint32_t last[] = {0x7ff, 0xffff};
    char first_bytes[4], last_bytes[4];
    if (low < 0xe000 && high > 0xd7ff) { /* surrogates are no characters */
        if (high > 0xdfff)
            ways = tornado__re_emit_utf8(c, 0xe000, high, next, ways, from);
        if (low > 0xd7ff)
            return ways;
        high = 0xd7ff;
    }
    for (int i = 0; i < 2; i++)
        if (low <= last[i] && high > last[i]) {
            ways = tornado__re_emit_utf8(c, last[i] + 1, high, next, ways, from);
            high = last[i];
        }
    for (int i = 1; i < 4; i++) {
        uint32_t mask = (UINT32_C(1) << (6 * i)) - 1;
        if ((low & ~mask) == (high & ~mask))
            continue;
        if (low & mask) {
            ways = tornado__re_emit_utf8(c, (low | mask) + 1, high, next, ways, from);
            return tornado__re_emit_utf8(c, low, low | mask, next, ways, from);
        }
        if ((high & mask) != mask) {
            ways = tornado__re_emit_utf8(c, high & ~mask, high, next, ways, from);
            return tornado__re_emit_utf8(c, low, (high & ~mask) - 1, next, ways, from);
        }
    }
    size_t size = tornado_utf8_encode(low, first_bytes);
    tornado_utf8_encode(high, last_bytes);
    for (size_t i = size; i-- > 0;)
        next = tornado__re_emit_byte(c, (unsigned char)first_bytes[i], (unsigned char)last_bytes[i], next, from);
    return tornado__re_emit_way(c, next, ways);
}

static uint32_t tornado__re_set_of(tornado__re_compiler *c, const tornado__re_set *set)
{
    void *sets = c->sets;
    for (int i = 0; i < c->sets_count; i++)
        if (memcmp(&c->sets[i], set, sizeof *set) == 0)
            return (uint32_t)i;
    if (!tornado__grow(&sets, &c->sets_capacity, c->sets_count + 1, sizeof *c->sets))
        tornado_raise_error(tornado_last_error());
    c->sets = sets;
    c->sets[c->sets_count] = *set;
    return (uint32_t)c->sets_count++;
}

/* The bytes that a class matches as one; whether these are all. */
static bool tornado__re_class_bytes(const tornado__re_compiler *c, const tornado__re_node *node,
                                    tornado__re_set *set)
{
    uint32_t last = c->bytes ? 0xff : 0x7f;
    memset(set, 0, sizeof *set);
    for (int i = 0; i < node->ranges_count; i++)
        for (uint32_t byte = node->ranges[i].low; byte <= node->ranges[i].high && byte <= last; byte++)
            set->bits[byte >> 6] |= UINT64_C(1) << (byte & 63);
    return node->ranges_count == 0 || node->ranges[node->ranges_count - 1].high <= last;
}

static uint32_t tornado__re_emit_class(tornado__re_compiler *c, const tornado__re_node *node, uint32_t next)
{
    tornado__re_set set, none = {{0, 0, 0, 0}};
    int from = c->code_count;
    uint32_t ways = UINT32_MAX;
    bool all = tornado__re_class_bytes(c, node, &set);
    for (int i = node->ranges_count; !all && i-- > 0;)
        if (node->ranges[i].high > 0x7f)
            ways = tornado__re_emit_utf8(c, node->ranges[i].low > 0x80 ? node->ranges[i].low : 0x80,
                                         node->ranges[i].high, next, ways, from);
    if (all && node->ranges_count == 1)
        return tornado__re_emit_byte(c, node->ranges[0].low, node->ranges[0].high, next, c->code_count);
    if (all || ways == UINT32_MAX || memcmp(&set, &none, sizeof set) != 0)
        ways =
            tornado__re_emit_way(c, tornado__re_emit(c, TORNADO__RE_SET, next, tornado__re_set_of(c, &set)), ways);
    return ways;
}

/* Collects the bytes with which what begins at `at` can go on. False: that cannot be told within `budget`
   instructions, at most TORNADO__RE_FIRST_MAX. */
static bool tornado__re_first(const tornado__re_code *code, const tornado__re_set *sets, uint32_t at,
                              tornado__re_set *first, bool *matches, int budget)
{
    uint32_t ways[TORNADO__RE_FIRST_MAX + 1]; /* not yet gone */
    int count = 0;
    ways[count++] = at;
    while (count) {
        const tornado__re_code *step = &code[ways[--count]];
        if (--budget < 0)
            return false;
        switch (step->op) {
        case TORNADO__RE_BYTE:
            for (unsigned byte = step->low; byte <= step->high; byte++)
                first->bits[byte >> 6] |= UINT64_C(1) << (byte & 63);
            break;
        case TORNADO__RE_SET:
        case TORNADO__RE_RUN:
            for (int i = 0; i < 4; i++)
                first->bits[i] |= sets[step->other].bits[i];
            if (step->op == TORNADO__RE_RUN)
                ways[count++] = step->next;
            break;
        case TORNADO__RE_SPLIT:
            if (step->next == UINT32_MAX)
                return false; /* the head of a loop under construction */
            ways[count++] = step->next;
            ways[count++] = step->other;
            break;
        case TORNADO__RE_SAVE:
            ways[count++] = step->next;
            break;
        case TORNADO__RE_MATCH:
            *matches = true;
            break;
        default:
            return false;
        }
    }
    return true;
}

/* A loop over single bytes none of which what follows begins with: no way back is needed. UINT32_MAX: it is none.
   */
static uint32_t tornado__re_emit_run(tornado__re_compiler *c, const tornado__re_node *repeat, uint32_t next)
{
    tornado__re_set set, first = {{0, 0, 0, 0}};
    bool matches = false;
    if (repeat->last->kind != TORNADO__RE_CLASS || !tornado__re_class_bytes(c, repeat->last, &set) ||
        !tornado__re_first(c->code, c->sets, next, &first, &matches, 64) || (matches && repeat->lazy))
        return UINT32_MAX;
    for (int i = 0; i < 4; i++)
        if (set.bits[i] & first.bits[i])
            return UINT32_MAX;
    return tornado__re_emit(c, TORNADO__RE_RUN, next, tornado__re_set_of(c, &set));
}

/* Goes into `body` or past it, whichever the repeat prefers. */
static uint32_t tornado__re_emit_choice(tornado__re_compiler *c, const tornado__re_node *repeat, uint32_t body,
                                        uint32_t past)
{
    return tornado__re_emit(c, TORNADO__RE_SPLIT, repeat->lazy ? past : body, repeat->lazy ? body : past);
}

static void tornado__re_begin(tornado__re_compiler *c, const tornado__re_node *node, uint32_t same, uint32_t moved)
{
    if (--c->nodes_left < 0)
        tornado_raise(TORNADO_ERR_LIMIT, "the pattern is too large");
    c->tasks[c->tasks_count++] = (tornado__re_task){
        .node = node, .child = node->last, .same = node->nullable ? same : moved, .moved = moved};
}

/* The functions below go on with a task; `entry` is where the part that was emitted last begins. They return where
   the node begins; or have this emit another part, and go on with the next step when that is done. */
static uint32_t tornado__re_part(tornado__re_compiler *c, tornado__re_task *task, int step, uint32_t same,
                                 uint32_t moved)
{
    task->step = step;
    tornado__re_begin(c, task->child, same, moved);
    return UINT32_MAX;
}

static uint32_t tornado__re_emit_group(tornado__re_compiler *c, tornado__re_task *task, uint32_t entry)
{
    unsigned slot = 2 * task->node->group;
    if (task->step > 0)
        return tornado__re_emit(c, TORNADO__RE_SAVE, entry, slot);
    uint32_t end = tornado__re_emit(c, TORNADO__RE_SAVE, task->same, slot + 1), end_moved = end;
    if (task->same != task->moved)
        end_moved = tornado__re_emit(c, TORNADO__RE_SAVE, task->moved, slot + 1);
    return tornado__re_part(c, task, 1, end, end_moved);
}

static uint32_t tornado__re_emit_sequence(tornado__re_compiler *c, tornado__re_task *task, uint32_t entry)
{
    bool alike = task->same == task->moved;
    if (task->step == 1 && !alike && task->child->before) {
        task->kept = entry;
        return tornado__re_part(c, task, 2, task->moved, task->moved);
    }
    if (task->step > 0) {
        task->same = task->step == 1 ? entry : task->kept;
        task->moved = task->step == 2 || alike ? entry : task->moved;
        task->child = task->child->before;
    }
    return task->child ? tornado__re_part(c, task, 1, task->same, task->moved) : task->same;
}

static uint32_t tornado__re_emit_ways(tornado__re_compiler *c, tornado__re_task *task, uint32_t entry)
{
    if (task->step == 0) {
        task->kept = UINT32_MAX;
    } else {
        task->kept = tornado__re_emit_way(c, entry, task->kept);
        task->child = task->child->before;
    }
    return task->child ? tornado__re_part(c, task, 1, task->same, task->moved) : task->kept;
}

enum {
    TORNADO__RE_BEGIN,
    TORNADO__RE_ENDLESS,
    TORNADO__RE_BODY,
    TORNADO__RE_ENTER,
    TORNADO__RE_ENTRY,
    TORNADO__RE_ROUNDS,
    TORNADO__RE_ROUND,
    TORNADO__RE_FIRST_ROUND,
    TORNADO__RE_COPIES,
    TORNADO__RE_COPY,
    TORNADO__RE_MOVED_COPY
};

/* The end of a repeat without a limit is a loop; of one with a limit, optional rounds, each inside the one before.
   In front of that stand the obligatory copies. */
static uint32_t tornado__re_emit_repeat(tornado__re_compiler *c, tornado__re_task *task, uint32_t entry)
{
    const tornado__re_node *node = task->node;
    bool alike = task->same == task->moved;
    for (;;)
        switch (task->step) {
        case TORNADO__RE_BEGIN:
            task->after_same = task->same;
            task->after_moved = task->moved;
            task->copies = node->min;
            task->rounds = node->max - node->min;
            task->step = node->max < 0 ? TORNADO__RE_ENDLESS : TORNADO__RE_ROUNDS;
            break;
        case TORNADO__RE_ENDLESS:
            task->after_moved = tornado__re_emit_run(c, node, task->moved);
            task->step = TORNADO__RE_ENTER;
            if (task->after_moved != UINT32_MAX)
                break;
            task->after_moved = tornado__re_emit(c, TORNADO__RE_SPLIT, UINT32_MAX, UINT32_MAX);
            return tornado__re_part(c, task, TORNADO__RE_BODY, task->moved, task->after_moved);
        case TORNADO__RE_BODY:
            c->code[task->after_moved].next = node->lazy ? task->moved : entry;
            c->code[task->after_moved].other = node->lazy ? entry : task->moved;
            task->step = TORNADO__RE_ENTER;
            if (task->copies > 0 && !task->child->nullable) { /* it is the last obligatory copy, too */
                task->after_same = task->after_moved = entry;
                task->copies--;
                task->step = TORNADO__RE_COPIES;
            }
            break;
        case TORNADO__RE_ENTER:
            if (!alike)
                return tornado__re_part(c, task, TORNADO__RE_ENTRY, task->same, task->after_moved);
            task->after_same = task->after_moved;
            task->step = TORNADO__RE_COPIES;
            break;
        case TORNADO__RE_ENTRY:
            task->after_same = tornado__re_emit_choice(c, node, entry, task->same);
            task->step = TORNADO__RE_COPIES;
            break;
        case TORNADO__RE_ROUNDS:
            task->kept = task->after_moved;
            if (task->rounds-- > 0)
                return tornado__re_part(c, task, TORNADO__RE_ROUND, task->moved, task->kept);
            task->step = TORNADO__RE_COPIES;
            break;
        case TORNADO__RE_ROUND:
            task->after_moved = tornado__re_emit_choice(c, node, entry, task->moved);
            if (alike)
                task->after_same = task->after_moved;
            else if (task->rounds == 0)
                return tornado__re_part(c, task, TORNADO__RE_FIRST_ROUND, task->same, task->kept);
            task->step = TORNADO__RE_ROUNDS;
            break;
        case TORNADO__RE_FIRST_ROUND:
            task->after_same = tornado__re_emit_choice(c, node, entry, task->same);
            task->step = TORNADO__RE_COPIES;
            break;
        case TORNADO__RE_COPIES:
            if (task->copies-- > 0)
                return tornado__re_part(c, task, TORNADO__RE_COPY, task->after_same, task->after_moved);
            return task->after_same;
        case TORNADO__RE_COPY:
            task->kept = entry;
            if (task->after_same != task->after_moved && task->copies > 0)
                return tornado__re_part(c, task, TORNADO__RE_MOVED_COPY, task->after_moved, task->after_moved);
            if (task->after_same == task->after_moved)
                task->after_moved = entry;
            task->after_same = entry;
            task->step = TORNADO__RE_COPIES;
            break;
        default:
            task->after_moved = entry;
            task->after_same = task->kept;
            task->step = TORNADO__RE_COPIES;
        }
}

static uint32_t tornado__re_emit_more(tornado__re_compiler *c, tornado__re_task *task, uint32_t entry)
{
    switch (task->node->kind) {
    case TORNADO__RE_CLASS:
        return tornado__re_emit_class(c, task->node, task->moved);
    case TORNADO__RE_ASSERTION:
        return tornado__re_emit(c, TORNADO__RE_ASSERT, task->same, task->node->assertion);
    case TORNADO__RE_GROUP:
        return tornado__re_emit_group(c, task, entry);
    case TORNADO__RE_SEQUENCE:
        return tornado__re_emit_sequence(c, task, entry);
    case TORNADO__RE_CHOICE:
        return tornado__re_emit_ways(c, task, entry);
    default:
        return tornado__re_emit_repeat(c, task, entry);
    }
}

/* Emits a tree that goes on at `next` and returns where it begins. */
static uint32_t tornado__re_emit_tree(tornado__re_compiler *c, const tornado__re_node *tree, uint32_t next)
{
    size_t most = 4 * ((size_t)c->deepest + 1); /* on each level a group, its choice, a sequence, and a repeat */
    uint32_t entry = UINT32_MAX;
    c->tasks = tornado__re_alloc(c, most * sizeof *c->tasks);
    tornado__re_begin(c, tree, next, next);
    while (c->tasks_count) {
        entry = tornado__re_emit_more(c, &c->tasks[c->tasks_count - 1], entry);
        c->tasks_count -= entry != UINT32_MAX;
    }
    return entry;
}

static void tornado__re_compile(void *arg)
{
    tornado__re_compiler *c = arg;
    const tornado__re_node *tree = tornado__re_parse(c);
    c->start = tornado__re_emit_tree(c, tree, tornado__re_emit(c, TORNADO__RE_MATCH, 0, 0));
    if ((uint64_t)c->code_count * (c->groups + 1) > 1 << 20)
        tornado_raise(TORNADO_ERR_LIMIT, "the pattern is too large");
}

/* Numbers the instructions where ways meet. */
static uint32_t tornado__re_number(tornado__re_code *code, uint32_t count, uint32_t start)
{
    uint32_t checks = 0;
    code[start].check++; /* a search comes there again and again */
    for (uint32_t i = 0; i < count; i++) { /* counts in `check` how many lead there */
        if (code[i].op != TORNADO__RE_MATCH)
            code[code[i].next].check++;
        if (code[i].op == TORNADO__RE_SPLIT)
            code[code[i].other].check++;
    }
    for (uint32_t i = 0; i < count; i++)
        code[i].check = code[i].check > 1 || code[i].op == TORNADO__RE_RUN ? ++checks : 0;
    return checks;
}

/* What every match begins with: as text, or at least a set of first bytes. */
static void tornado__re_find_prefix(tornado_regex *regex)
{
    bool matches = false;
    const tornado__re_code *code = regex->code;
    uint32_t at = regex->start;
    regex->first_known =
        tornado__re_first(code, regex->sets, at, &regex->first, &matches, TORNADO__RE_FIRST_MAX) && !matches;
    while (regex->prefix_len < sizeof regex->prefix && code[at].op == TORNADO__RE_BYTE && !code[at].check &&
           code[at].low == code[at].high) {
        regex->prefix[regex->prefix_len++] = (char)code[at].low;
        at = code[at].next;
    }
    regex->after_prefix = at;
}

/* Puts the parts into one block. NULL when memory is short. */
static tornado_regex *tornado__re_pack(const tornado__re_compiler *c)
{
    size_t names = (c->groups + 1) * sizeof(char *), text = 0;
    size_t code = (size_t)c->code_count * sizeof *c->code, sets = (size_t)c->sets_count * sizeof *c->sets;
    for (unsigned i = 1; i <= c->groups; i++)
        text += c->names[i] ? strlen(c->names[i]) + 1 : 0;
    size_t head = (sizeof(tornado_regex) + names + 7) & ~(size_t)7;
    tornado_regex *regex = TORNADO_MALLOC(head + sets + code + text);
    if (!regex) {
        tornado__nomem();
        return NULL;
    }
    memset(regex, 0, head);
    regex->sets = (tornado__re_set *)(void *)((char *)regex + head);
    regex->code = (tornado__re_code *)(void *)((char *)regex->sets + sets);
    char *out = (char *)regex->code + code;
    if (sets)
        memcpy(regex->sets, c->sets, sets);
    memcpy(regex->code, c->code, code);
    for (unsigned i = 1; i <= c->groups; i++)
        if (c->names[i]) {
            regex->names[i] = strcpy(out, c->names[i]);
            out += strlen(out) + 1;
        }
    regex->groups = c->groups;
    regex->bytes = c->bytes;
    regex->start = c->start;
    regex->code_count = (uint32_t)c->code_count;
    regex->checks = tornado__re_number(regex->code, regex->code_count, regex->start);
    regex->straight = true;
    for (uint32_t i = 0; i < regex->code_count; i++)
        regex->straight = regex->straight && regex->code[i].op != TORNADO__RE_SPLIT;
    tornado__re_find_prefix(regex);
    return regex;
}

TORNADO_API tornado_regex *tornado_regex_new(const char *pattern, unsigned flags)
{
    tornado_regex *regex = NULL;
    size_t len = strlen(pattern);
    tornado_arena *arena = tornado_arena_new();
    if (!arena)
        return NULL;
    tornado__re_compiler *c = tornado_arena_calloc(arena, 1, sizeof *c);
    if (len > TORNADO__RE_PATTERN_MAX) {
        tornado__fail(TORNADO_ERR_LIMIT, 0, "a pattern of more than %d bytes", TORNADO__RE_PATTERN_MAX);
    } else if (c) {
        c->arena = arena;
        c->pattern = c->at = pattern;
        c->end = pattern + len;
        c->flags = flags;
        c->bytes = flags & TORNADO_REGEX_BYTES;
        c->nodes_left = 20 * TORNADO__RE_PROGRAM_MAX;
        const tornado_error *error = tornado_try(tornado__re_compile, c);
        if (error)
            tornado__fail(error->code, error->sys_errno, "%s", error->message);
        else
            regex = tornado__re_pack(c);
        TORNADO_FREE(c->ranges);
        TORNADO_FREE(c->code);
        TORNADO_FREE(c->sets);
    }
    tornado_arena_free(arena);
    return regex;
}

TORNADO_API void tornado_regex_free(tornado_regex *regex)
{
    TORNADO_FREE(regex);
}

TORNADO_API size_t tornado_regex_groups(const tornado_regex *regex)
{
    return regex->groups;
}

TORNADO_API const char *tornado_regex_group_name(const tornado_regex *regex, size_t group)
{
    return group >= 1 && group <= regex->groups ? regex->names[group] : NULL;
}

TORNADO_API size_t tornado_regex_group_index(const tornado_regex *regex, const char *name)
{
    for (unsigned i = 1; i <= regex->groups; i++)
        if (regex->names[i] && strcmp(regex->names[i], name) == 0)
            return i;
    return 0;
}

/* ---- matching ---- */

enum { TORNADO__RE_MATCH_HERE, TORNADO__RE_MATCH_ALL, TORNADO__RE_SEARCH };

static TORNADO__INLINE bool tornado__re_is_word(int byte)
{
    return (byte >= '0' && byte <= '9') || ((byte | 0x20) >= 'a' && (byte | 0x20) <= 'z') || byte == '_';
}

/* Whether an assertion holds between two bytes, of which -1 is none. `last`: no byte follows the next. */
static bool tornado__re_holds(unsigned assertion, int before, int after, bool last)
{
    switch (assertion) {
    case TORNADO__RE_TEXT_BEGIN:
        return before < 0;
    case TORNADO__RE_LINE_BEGIN:
        return before < 0 || before == '\n';
    case TORNADO__RE_TEXT_END:
        return after < 0;
    case TORNADO__RE_LAST_END:
        return after < 0 || (after == '\n' && last);
    case TORNADO__RE_LINE_END:
        return after < 0 || after == '\n';
    case TORNADO__RE_NO_BOUNDARY: /* in Python not in an empty text either */
        return (before >= 0 || after >= 0) && tornado__re_is_word(before) == tornado__re_is_word(after);
    default:
        return tornado__re_is_word(before) != tornado__re_is_word(after);
    }
}

/* The first place from `at` on where a match may begin; past the end when there is none. */
static size_t tornado__re_candidate(const tornado_regex *regex, const char *text, size_t len, size_t at)
{
    if (regex->prefix_len) {
        for (const char *found; len - at >= regex->prefix_len; at = (size_t)(found - text) + 1) {
            found = memchr(text + at, regex->prefix[0], len - at - regex->prefix_len + 1);
            if (!found)
                break;
            if (memcmp(found, regex->prefix, regex->prefix_len) == 0)
                return (size_t)(found - text);
        }
        return len + 1;
    }
    if (!regex->first_known)
        return at;
    while (at < len && !tornado__re_in(&regex->first, (unsigned char)text[at]))
        at++;
    return at < len ? at : len + 1;
}

/* Whether a match may begin in front of a byte: not inside a character. */
static TORNADO__INLINE bool tornado__re_begins(const tornado_regex *regex, int byte)
{
    return regex->bytes || (byte & 0xc0) != 0x80 || byte < 0;
}

/* What to try when a way has failed: an instruction and a place; or a slot's former value, to be put back. */
typedef struct tornado__re_job {
    uint32_t at;
    bool restore;
    ptrdiff_t place;
} tornado__re_job;

typedef struct tornado__re_machine {
    const tornado_regex *regex;
    const char *text;
    size_t len, pos;
    int how;
    ptrdiff_t *slots; /* two for each group, the whole match first */
    size_t slots_count;
    uint64_t *visited;
    tornado__re_job *jobs, local[TORNADO__RE_JOBS_LOCAL];
    size_t jobs_count, jobs_capacity;
} tornado__re_machine;

static TORNADO__COLD bool tornado__re_jobs_grow(tornado__re_machine *m)
{
    bool local = m->jobs == m->local;
    size_t capacity = m->jobs_capacity * 2;
    tornado__re_job *jobs = local ? TORNADO_MALLOC(capacity * sizeof *jobs)
                                  : TORNADO_REALLOC(m->jobs, capacity * sizeof *jobs);
    if (!jobs)
        return tornado__nomem();
    if (local)
        memcpy(jobs, m->local, sizeof m->local);
    m->jobs = jobs;
    m->jobs_capacity = capacity;
    return true;
}

static TORNADO__INLINE bool tornado__re_push(tornado__re_machine *m, uint32_t at, bool restore, ptrdiff_t place)
{
    if (TORNADO__UNLIKELY(m->jobs_count == m->jobs_capacity) && !tornado__re_jobs_grow(m))
        return false;
    m->jobs[m->jobs_count++] = (tornado__re_job){at, restore, place};
    return true;
}

/* Marks an instruction at a place; whether it was marked before. */
static TORNADO__INLINE bool tornado__re_visit(tornado__re_machine *m, uint32_t check, size_t at)
{
    size_t bit = (size_t)(check - 1) * (m->len - m->pos + 1) + (at - m->pos);
    uint64_t mask = UINT64_C(1) << (bit & 63), *word = &m->visited[bit >> 6];
    if (*word & mask)
        return true;
    *word |= mask;
    return false;
}

/* Follows one way from an instruction and a place until it matches or fails. 1, 0, or -1: memory is short.
   `straight`: there is no other way before the first SPLIT, so that until then nothing need be marked. */
static int tornado__re_follow(tornado__re_machine *m, uint32_t pc, size_t at, bool straight)
{
    const tornado_regex *regex = m->regex;
    const char *text = m->text;
    for (;;) {
        const tornado__re_code *step = &regex->code[pc];
        if (step->check && !straight && tornado__re_visit(m, step->check, at))
            return 0;
        switch (step->op) {
        case TORNADO__RE_BYTE:
            if (at == m->len || (unsigned char)(text[at] - step->low) > step->high - step->low)
                return 0;
            at++;
            break;
        case TORNADO__RE_SET:
            if (at == m->len || !tornado__re_in(&regex->sets[step->other], (unsigned char)text[at]))
                return 0;
            at++;
            break;
        case TORNADO__RE_RUN:
            while (at < m->len && tornado__re_in(&regex->sets[step->other], (unsigned char)text[at])) {
                at++;
                if (!straight && tornado__re_visit(m, step->check, at))
                    return 0;
            }
            break;
        case TORNADO__RE_SPLIT:
            straight = false;
            if (!tornado__re_push(m, step->other, false, (ptrdiff_t)at))
                return -1;
            break;
        case TORNADO__RE_SAVE:
            if (step->other < m->slots_count) {
                if (m->jobs_count && !tornado__re_push(m, step->other, true, m->slots[step->other]))
                    return -1;
                m->slots[step->other] = (ptrdiff_t)at;
            }
            break;
        case TORNADO__RE_ASSERT:
            if (!tornado__re_holds(step->other, at > 0 ? (unsigned char)text[at - 1] : -1,
                                   at < m->len ? (unsigned char)text[at] : -1, at + 1 == m->len))
                return 0;
            break;
        default:
            if (m->how == TORNADO__RE_MATCH_ALL && at != m->len)
                return 0;
            m->slots[1] = (ptrdiff_t)at;
            return 1;
        }
        pc = step->next;
    }
}

static int tornado__re_backtrack(tornado__re_machine *m)
{
    const tornado_regex *regex = m->regex;
    int found = 0;
    m->jobs = m->local;
    m->jobs_capacity = TORNADO__RE_JOBS_LOCAL;
    for (size_t begin = m->pos; found == 0 && begin <= m->len; begin++) {
        size_t prefix = regex->prefix_len;
        for (size_t i = 2; i < m->slots_count; i++)
            m->slots[i] = -1;
        if (m->how == TORNADO__RE_SEARCH)
            begin = tornado__re_candidate(regex, m->text, m->len, begin);
        if (begin > m->len || m->len - begin < prefix ||
            (prefix && memcmp(m->text + begin, regex->prefix, prefix) != 0))
            break;
        if (begin > m->pos && begin < m->len && !tornado__re_begins(regex, (unsigned char)m->text[begin]))
            continue;
        m->slots[0] = (ptrdiff_t)begin;
        m->jobs_count = 0;
        found = tornado__re_follow(m, regex->after_prefix, begin + prefix, m->how != TORNADO__RE_SEARCH);
        while (found == 0 && m->jobs_count) {
            tornado__re_job job = m->jobs[--m->jobs_count];
            if (job.restore)
                m->slots[job.at] = job.place;
            else
                found = tornado__re_follow(m, job.at, (size_t)job.place, false);
        }
        if (m->how != TORNADO__RE_SEARCH)
            break;
    }
    if (m->jobs != m->local)
        TORNADO_FREE(m->jobs);
    return found;
}

/* ---- all ways side by side ---- */

/* Ways at one place of the text, in order of preference, each with its slots. */
typedef struct tornado__re_ways {
    uint32_t *at;
    ptrdiff_t *slots;
    uint32_t count;
} tornado__re_ways;

/* A walk over a text that may come in parts. */
typedef struct tornado__re_walk {
    const tornado_regex *regex;
    size_t slots_count;
    int how, before, after; /* before, after: the bytes on either side of the place, or -1 */
    size_t place;
    bool last;              /* `after` is the text's last byte */
    bool begun, found;
    ptrdiff_t *best, *scratch;
    tornado__re_ways here, next; /* here: not yet followed to where bytes are consumed */
    tornado__re_ways ready;      /* followed */
    uint32_t *sparse;            /* where in `ready` an instruction is */
    uint32_t *seen;              /* instructions met while following, in order */
    uint32_t seen_count;
    tornado__re_job *jobs;
    void *memory;
} tornado__re_walk;

static bool tornado__re_walk_init(tornado__re_walk *walk, const tornado_regex *regex, size_t slots_count, int how)
{
    size_t count = regex->code_count, row = count * slots_count * sizeof(ptrdiff_t);
    memset(walk, 0, sizeof *walk);
    size_t size = 3 * row + 2 * slots_count * sizeof(ptrdiff_t) + 2 * count * sizeof *walk->jobs +
                  5 * count * sizeof(uint32_t);
    char *memory = TORNADO_MALLOC(size);
    if (!memory)
        return tornado__nomem();
    memset(memory, 0, size); /* sparse is compared before it is set */
    walk->regex = regex;
    walk->slots_count = slots_count;
    walk->how = how;
    walk->before = -1;
    walk->memory = memory;
    tornado__re_ways *ways[] = {&walk->here, &walk->next, &walk->ready};
    walk->jobs = (tornado__re_job *)(void *)memory;
    memory += 2 * count * sizeof *walk->jobs;
    for (int i = 0; i < 3; i++, memory += row)
        ways[i]->slots = (ptrdiff_t *)(void *)memory;
    walk->best = (ptrdiff_t *)(void *)memory;
    walk->scratch = walk->best + slots_count;
    memory += 2 * slots_count * sizeof(ptrdiff_t);
    for (int i = 0; i < 3; i++, memory += count * sizeof(uint32_t))
        ways[i]->at = (uint32_t *)(void *)memory;
    walk->sparse = (uint32_t *)(void *)memory;
    walk->seen = walk->sparse + count;
    return true;
}

/* Follows a way, whose slots are in scratch, through what consumes nothing; each instruction is met once. */
static void tornado__re_walk_follow(tornado__re_walk *walk, uint32_t pc)
{
    const tornado__re_code *code = walk->regex->code;
    size_t jobs = 0;
    walk->jobs[jobs++] = (tornado__re_job){pc, false, 0};
    while (jobs) {
        tornado__re_job job = walk->jobs[--jobs];
        if (job.restore) {
            walk->scratch[job.at] = job.place;
            continue;
        }
        uint32_t seen = walk->sparse[job.at];
        if (seen < walk->seen_count && walk->seen[seen] == job.at)
            continue;
        walk->sparse[job.at] = walk->seen_count;
        walk->seen[walk->seen_count++] = job.at;
        const tornado__re_code *step = &code[job.at];
        switch (step->op) {
        case TORNADO__RE_SPLIT:
            walk->jobs[jobs++] = (tornado__re_job){step->other, false, 0};
            walk->jobs[jobs++] = (tornado__re_job){step->next, false, 0};
            break;
        case TORNADO__RE_SAVE:
            if (step->other < walk->slots_count) {
                walk->jobs[jobs++] = (tornado__re_job){step->other, true, walk->scratch[step->other]};
                walk->scratch[step->other] = (ptrdiff_t)walk->place;
            }
            walk->jobs[jobs++] = (tornado__re_job){step->next, false, 0};
            break;
        case TORNADO__RE_ASSERT:
            if (tornado__re_holds(step->other, walk->before, walk->after, walk->last))
                walk->jobs[jobs++] = (tornado__re_job){step->next, false, 0};
            break;
        default: {
            uint32_t at = walk->ready.count++;
            walk->ready.at[at] = job.at;
            memcpy(walk->ready.slots + at * walk->slots_count, walk->scratch,
                   walk->slots_count * sizeof(ptrdiff_t));
            if (step->op == TORNADO__RE_RUN)
                walk->jobs[jobs++] = (tornado__re_job){step->next, false, 0};
            break;
        }
        }
    }
}

/* Follows all ways to the bytes that they consume next, and notes the best match that ends here. */
static void tornado__re_walk_close(tornado__re_walk *walk, int after, bool last)
{
    size_t slots = walk->slots_count, row = slots * sizeof(ptrdiff_t);
    walk->after = after;
    walk->last = last;
    walk->ready.count = walk->seen_count = 0;
    for (uint32_t i = 0; i < walk->here.count; i++) {
        memcpy(walk->scratch, walk->here.slots + i * slots, row);
        tornado__re_walk_follow(walk, walk->here.at[i]);
    }
    bool begins =
        !walk->begun || (walk->how == TORNADO__RE_SEARCH && tornado__re_begins(walk->regex, after));
    if (!walk->found && begins) {
        for (size_t i = 0; i < slots; i++)
            walk->scratch[i] = -1;
        walk->scratch[0] = (ptrdiff_t)walk->place;
        tornado__re_walk_follow(walk, walk->regex->start);
    }
    for (uint32_t i = 0; i < walk->ready.count; i++)
        if (walk->regex->code[walk->ready.at[i]].op == TORNADO__RE_MATCH &&
            (walk->how != TORNADO__RE_MATCH_ALL || after < 0)) {
            memcpy(walk->best, walk->ready.slots + i * slots, row);
            walk->best[1] = (ptrdiff_t)walk->place;
            walk->found = true;
            walk->ready.count = i; /* those behind it are worse */
        }
}

/* Goes one byte further. */
static void tornado__re_walk_step(tornado__re_walk *walk, unsigned char byte, bool last)
{
    const tornado_regex *regex = walk->regex;
    size_t slots = walk->slots_count, row = slots * sizeof(ptrdiff_t);
    tornado__re_walk_close(walk, byte, last);
    walk->next.count = 0;
    for (uint32_t i = 0; i < walk->ready.count; i++) {
        const tornado__re_code *step = &regex->code[walk->ready.at[i]];
        bool eats = step->op == TORNADO__RE_BYTE    ? byte >= step->low && byte <= step->high
                    : step->op == TORNADO__RE_MATCH ? false
                                                    : tornado__re_in(&regex->sets[step->other], byte);
        if (!eats)
            continue;
        uint32_t at = walk->next.count++;
        walk->next.at[at] = step->op == TORNADO__RE_RUN ? walk->ready.at[i] : step->next;
        memcpy(walk->next.slots + at * slots, walk->ready.slots + i * slots, row);
    }
    tornado__re_ways here = walk->here;
    walk->here = walk->next;
    walk->next = here;
    walk->before = byte;
    walk->place++;
    walk->begun = true;
}

/* Whether the rest of the text can change anything. */
static bool tornado__re_walk_over(const tornado__re_walk *walk)
{
    return walk->here.count == 0 && (walk->found || (walk->how != TORNADO__RE_SEARCH && walk->begun));
}

/* Goes on to the end of the text. */
static void tornado__re_walk_feed(tornado__re_walk *walk, const char *text, size_t len)
{
    while (walk->place < len && !tornado__re_walk_over(walk)) {
        if (walk->here.count == 0 && walk->how == TORNADO__RE_SEARCH && walk->regex->first_known) {
            size_t begin = walk->place;
            while (begin < len && !tornado__re_in(&walk->regex->first, (unsigned char)text[begin]))
                begin++;
            if (begin > walk->place)
                walk->before = (unsigned char)text[begin - 1];
            walk->place = begin;
            if (begin == len)
                break;
        }
        tornado__re_walk_step(walk, (unsigned char)text[walk->place], walk->place + 1 == len);
    }
}

static int tornado__re_walk_text(const tornado_regex *regex, tornado_bytes text, size_t pos, int how,
                                 ptrdiff_t *slots, size_t slots_count)
{
    tornado__re_walk walk;
    if (!tornado__re_walk_init(&walk, regex, slots_count, how))
        return -1;
    walk.place = pos;
    walk.before = pos > 0 ? (unsigned char)text.data[pos - 1] : -1;
    tornado__re_walk_feed(&walk, text.data, text.len);
    if (!tornado__re_walk_over(&walk))
        tornado__re_walk_close(&walk, -1, false);
    memcpy(slots, walk.best, slots_count * sizeof *slots);
    TORNADO_FREE(walk.memory);
    return walk.found;
}

/* Chooses the machine and gives it memory. */
static int tornado__re_run(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, tornado_span *spans,
                           size_t count)
{
    ptrdiff_t local_slots[32];
    uint64_t local_bits[TORNADO__RE_BITS_LOCAL / 64];
    size_t groups = count < 1 ? 1 : count <= regex->groups ? count : regex->groups + 1;
    tornado__re_machine m;
    m.regex = regex;
    m.text = text.data;
    m.len = text.len;
    m.pos = pos < text.len ? pos : text.len;
    m.how = how;
    m.slots_count = 2 * groups;
    m.slots = m.slots_count <= TORNADO__COUNT(local_slots) ? local_slots
                                                           : TORNADO_MALLOC(m.slots_count * sizeof *m.slots);
    for (size_t i = 0; i < count; i++)
        spans[i] = (tornado_span){-1, -1};
    if (!m.slots) {
        tornado__nomem();
        return -1;
    }
    size_t places = m.len - m.pos + 1, bits = 0;
    bool straight = regex->straight && how != TORNADO__RE_SEARCH;
    bool fits = straight || (places <= TORNADO__RE_BITS_MAX / (regex->checks + 1) &&
                             places <= 2 * TORNADO__RE_BITS_MAX / regex->code_count);
    int found = -1;
    m.visited = NULL;
    if (fits) {
        bits = straight ? 0 : (regex->checks * places + 63) / 64 * sizeof *m.visited;
        m.visited = bits <= sizeof local_bits ? local_bits : TORNADO_MALLOC(bits);
    }
    if (m.visited) {
        memset(m.visited, 0, bits);
        found = tornado__re_backtrack(&m);
    } else {
        found = tornado__re_walk_text(regex, text, m.pos, how, m.slots, m.slots_count);
    }
    for (size_t i = 0; found == 1 && i < groups && i < count; i++)
        spans[i] = (tornado_span){m.slots[2 * i], m.slots[2 * i + 1]};
    if (m.visited != local_bits)
        TORNADO_FREE(m.visited);
    if (m.slots != local_slots)
        TORNADO_FREE(m.slots);
    return found;
}

TORNADO_API int tornado_regex_match(const tornado_regex *regex, tornado_bytes text, size_t pos, tornado_span *spans,
                                    size_t count)
{
    return tornado__re_run(regex, text, pos, TORNADO__RE_MATCH_HERE, spans, count);
}

TORNADO_API int tornado_regex_fullmatch(const tornado_regex *regex, tornado_bytes text, size_t pos,
                                        tornado_span *spans, size_t count)
{
    return tornado__re_run(regex, text, pos, TORNADO__RE_MATCH_ALL, spans, count);
}

TORNADO_API int tornado_regex_search(const tornado_regex *regex, tornado_bytes text, size_t pos,
                                     tornado_span *spans, size_t count)
{
    return tornado__re_run(regex, text, pos, TORNADO__RE_SEARCH, spans, count);
}

/*============================================================================
 * section: context (private)
 * A set of states is an array that never changes while somebody else has it; each execution has one, or NULL.
 * Setting makes a new array, so it is as long as there are different keys. Counts are plain: all is of one thread.
 *============================================================================*/

typedef struct tornado__state {
    tornado_stack_context_state is;
    unsigned references; /* of the arrays it is in */
} tornado__state;

struct tornado_stack_context {
    unsigned references;
    size_t count;
    tornado__state *states[]; /* those set last come last */
};

static void tornado__state_release(tornado__state *state)
{
    if (--state->references)
        return;
    if (state->is.destroy)
        state->is.destroy(state->is.value);
    TORNADO_FREE(state);
}

TORNADO_API void tornado_stack_context_release(tornado_stack_context *context)
{
    if (!context || --context->references)
        return;
    for (size_t i = 0; i < context->count; i++)
        tornado__state_release(context->states[i]);
    TORNADO_FREE(context);
}

static TORNADO__INLINE tornado_stack_context *tornado__context_retain(tornado_stack_context *context)
{
    if (TORNADO__UNLIKELY(context != NULL))
        context->references++;
    return context;
}

/* What is scheduled now takes this with it. */
static TORNADO__INLINE tornado_stack_context *tornado__context_capture(void)
{
    return tornado__context_retain(tornado__running()->states);
}

TORNADO_API tornado_stack_context *tornado_stack_context_wrap(void)
{
    return tornado__context_capture();
}

/* Ends what an execution had. */
static TORNADO__COLD void tornado__context_drop(tornado__execution *execution)
{
    tornado_stack_context *context = execution->states;
    execution->states = NULL; /* first, as destroying is the program's code */
    tornado_stack_context_release(context);
}

TORNADO_API void *tornado_stack_context_get(const void *key)
{
    const tornado_stack_context *context = tornado__running()->states;
    for (size_t i = context ? context->count : 0; i-- > 0;)
        if (context->states[i]->is.key == key)
            return context->states[i]->is.value;
    return NULL;
}

/* The states of `from` but that of a key, and room for one more. NULL: no memory. */
static tornado_stack_context *tornado__context_without(const tornado_stack_context *from, const void *key)
{
    size_t count = from ? from->count : 0;
    tornado_stack_context *context = TORNADO_MALLOC(sizeof *context + (count + 1) * sizeof context->states[0]);
    if (!context) {
        tornado__nomem();
        return NULL;
    }
    context->references = 1;
    context->count = 0;
    for (size_t i = 0; i < count; i++)
        if (from->states[i]->is.key != key)
            (context->states[context->count++] = from->states[i])->references++;
    return context;
}

static bool tornado__context_set(tornado__execution *running, const tornado_stack_context_state *state)
{
    tornado_stack_context *before = running->states;
    if (!state->key)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "a state needs a key");
    tornado_stack_context *context = tornado__context_without(before, state->key);
    if (!context)
        return false;
    if (state->value || state->handle_exception) {
        tornado__state *more = TORNADO_MALLOC(sizeof *more);
        if (!more) {
            tornado_stack_context_release(context);
            return tornado__nomem();
        }
        more->is = *state;
        more->references = 1;
        context->states[context->count++] = more;
    }
    if (context->count == 0) { /* as good as none */
        TORNADO_FREE(context);
        context = NULL;
    }
    running->states = context;
    tornado_stack_context_release(before);
    return true;
}

TORNADO_API bool tornado_stack_context_set(const tornado_stack_context_state *state)
{
    if (tornado__context_set(tornado__running(), state))
        return true;
    tornado_error error = tornado__thread.last;
    if (state->destroy)
        state->destroy(state->value);
    tornado__thread.last = error;
    return false;
}

/* Calls fn(arg) with an execution's states replaced by others, a reference of which it takes over. */
static void tornado__context_call_with(tornado__execution *running, tornado_stack_context *context,
                                       tornado_callback fn, void *arg)
{
    tornado_stack_context *before = running->states;
    running->states = context;
    const tornado_error *error = tornado_try(fn, arg);
    context = running->states;
    running->states = before;
    if (!error) {
        tornado_stack_context_release(context);
        return;
    }
    tornado_error copy = *error;
    tornado_stack_context_release(context);
    tornado__raise(&copy);
}

TORNADO_API void tornado_stack_context_run(tornado_stack_context *context, tornado_callback fn, void *arg)
{
    tornado__context_call_with(tornado__running(), tornado__context_retain(context), fn, arg);
}

TORNADO_API void tornado_null_context(tornado_callback fn, void *arg)
{
    tornado__context_call_with(tornado__running(), NULL, fn, arg);
}

/* An error on its way out through states: each may deal with it, or raise another. */
typedef struct tornado__context_error {
    const tornado_stack_context_state *state;
    tornado_error error;
    bool handled;
} tornado__context_error;

static void tornado__context_ask(void *arg)
{
    tornado__context_error *asked = arg;
    asked->handled = asked->state->handle_exception(&asked->error, asked->state->value);
}

static bool tornado__context_handles(const tornado_stack_context_state *state, tornado_error *error)
{
    tornado__context_error asked = {state, *error, false};
    const tornado_error *raised = state->handle_exception ? tornado_try(tornado__context_ask, &asked) : NULL;
    if (raised)
        *error = *raised;
    return asked.handled && !raised;
}

/* Whether one of an execution's states deals with what was raised, which it may replace; last set, first asked. */
static TORNADO__COLD bool tornado__context_handle(tornado__execution *execution, tornado_error *error)
{
    tornado_stack_context *context = tornado__context_retain(execution->states);
    bool handled = false;
    for (size_t i = context ? context->count : 0; i-- > 0 && !handled;)
        handled = tornado__context_handles(&context->states[i]->is, error);
    tornado_stack_context_release(context);
    return handled;
}

typedef struct tornado__context_run {
    const tornado_stack_context_state *state;
    tornado_callback fn;
    void *arg;
} tornado__context_run;

static void tornado__context_run_body(void *arg)
{
    const tornado__context_run *run = arg;
    const tornado_error *error = tornado_try(run->fn, run->arg);
    if (!error)
        return;
    tornado_error copy = *error;
    if (!tornado__context_handles(run->state, &copy))
        tornado__raise(&copy);
}

TORNADO_API void tornado_run_with_stack_context(const tornado_stack_context_state *state, tornado_callback fn,
                                                void *arg)
{
    tornado__execution *running = tornado__running();
    tornado_stack_context *before = tornado__context_retain(running->states), *inner;
    tornado__context_run run = {state, fn, arg};
    bool set = tornado_stack_context_set(state);
    inner = running->states;
    running->states = before;
    if (!set) {
        tornado_stack_context_release(inner); /* which is `before`, held once more */
        tornado__raise(tornado_last_error());
    }
    tornado__context_call_with(running, inner, tornado__context_run_body, &run);
}

/*============================================================================
 * section: ioloop (private)
 * Pollers side by side, then the loop: tasks, timers, descriptors, other threads, signals, shutdown.
 *
 * Tasks are intrusive: what can wait embeds one, so scheduling it cannot fail. Timers are intrusive too: the heap
 * holds keys and pointers. A timer that is set later than its key stays where it is and moves when its key comes
 * up, so re-arming an idle timeout is one store. A descriptor's slot counts its registrations: events of an earlier
 * one are told by the count in the key and dropped.
 *
 * All user code runs under one boundary, that of tornado_ioloop_start: what raises is logged, and the next turn
 * begins. Everything a turn works on is taken off its list before it runs, so nothing runs twice.
 *============================================================================*/

static int tornado__timeout_ms(int64_t ns)
{
    if (ns < 0)
        return -1;
    if (ns > (int64_t)INT_MAX * 1000000 - 1000000)
        return INT_MAX;
    return (int)((ns + 999999) / 1000000); /* never too early */
}

#ifdef __linux__
typedef struct tornado__epoll {
    int fd;
    struct epoll_event events[256];
} tornado__epoll;

static void *tornado__epoll_open(void)
{
    tornado__epoll *state = TORNADO_MALLOC(sizeof *state);
    if (!state) {
        errno = ENOMEM;
        return NULL;
    }
    state->fd = epoll_create1(EPOLL_CLOEXEC);
    if (state->fd < 0) {
        int saved = errno;
        TORNADO_FREE(state);
        errno = saved;
        return NULL;
    }
    return state;
}

static void tornado__epoll_close(void *state)
{
    close(((tornado__epoll *)state)->fd);
    TORNADO_FREE(state);
}

/* The loop's event bits are those of epoll and of poll. */
static int tornado__epoll_control(void *state, int operation, int fd, unsigned events, uint64_t key)
{
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = events;
    event.data.u64 = key;
    return epoll_ctl(((tornado__epoll *)state)->fd, operation, fd, &event) == 0 ? 0 : errno;
}

static int tornado__epoll_add(void *state, int fd, unsigned events, uint64_t key)
{
    return tornado__epoll_control(state, EPOLL_CTL_ADD, fd, events, key);
}

static int tornado__epoll_modify(void *state, int fd, unsigned events, uint64_t key)
{
    return tornado__epoll_control(state, EPOLL_CTL_MOD, fd, events, key);
}

static int tornado__epoll_remove(void *state, int fd)
{
    return tornado__epoll_control(state, EPOLL_CTL_DEL, fd, 0, 0);
}

static int tornado__epoll_wait(void *opaque, tornado_poller_event *events, int max, int64_t timeout_ns)
{
    tornado__epoll *state = opaque;
    int room = max < (int)TORNADO__COUNT(state->events) ? max : (int)TORNADO__COUNT(state->events);
    int count = epoll_wait(state->fd, state->events, room, tornado__timeout_ms(timeout_ns));
    if (count < 0)
        return errno == EINTR ? 0 : -1;
    for (int i = 0; i < count; i++) {
        events[i].key = state->events[i].data.u64;
        events[i].events = state->events[i].events;
    }
    return count;
}

static int tornado__epoll_fileno(void *state)
{
    return ((tornado__epoll *)state)->fd;
}

static const tornado_poller tornado__poller_epoll = {"epoll", tornado__epoll_open, tornado__epoll_close,
                                                     tornado__epoll_add, tornado__epoll_modify, tornado__epoll_remove,
                                                     tornado__epoll_wait, tornado__epoll_fileno};
#endif

#ifdef TORNADO__KQUEUE
/* kqueue watches reading and writing apart: for each fd what is watched, and where in the events of this wait it
   stands already. */
typedef struct tornado__kqueue_slot {
    uint64_t key;
    uint64_t wait; /* the last one that told of it */
    unsigned events;
    int place;
} tornado__kqueue_slot;

typedef struct tornado__kqueue {
    int fd, capacity;
    uint64_t waits;
    tornado__kqueue_slot *slots;
    struct kevent events[256];
} tornado__kqueue;

static void *tornado__kqueue_open(void)
{
    tornado__kqueue *state = TORNADO_MALLOC(sizeof *state);
    if (!state) {
        errno = ENOMEM;
        return NULL;
    }
    memset(state, 0, sizeof *state);
    state->fd = kqueue();
    if (state->fd < 0) {
        int saved = errno;
        TORNADO_FREE(state);
        errno = saved;
        return NULL;
    }
    fcntl(state->fd, F_SETFD, FD_CLOEXEC);
    return state;
}

static void tornado__kqueue_close(void *opaque)
{
    tornado__kqueue *state = opaque;
    close(state->fd);
    TORNADO_FREE(state->slots);
    TORNADO_FREE(state);
}

/* Has `events` of fd be watched instead of what is; what was watched stays so when that fails. */
static int tornado__kqueue_change(tornado__kqueue *state, int fd, unsigned events)
{
    static const struct {
        unsigned event;
        short filter;
    } filters[] = {{TORNADO_IOLOOP_READ, EVFILT_READ}, {TORNADO_IOLOOP_WRITE, EVFILT_WRITE}};
    unsigned *watched = &state->slots[fd].events;
    for (size_t i = 0; i < TORNADO__COUNT(filters); i++) {
        unsigned event = filters[i].event;
        struct kevent change;
        if ((*watched & event) == (events & event))
            continue;
        memset(&change, 0, sizeof change);
        change.ident = (uintptr_t)fd;
        change.filter = filters[i].filter;
        change.flags = events & event ? EV_ADD : EV_DELETE;
        if (kevent(state->fd, &change, 1, NULL, 0, NULL) < 0)
            return errno;
        *watched ^= event;
    }
    return 0;
}

static int tornado__kqueue_modify(void *opaque, int fd, unsigned events, uint64_t key)
{
    tornado__kqueue *state = opaque;
    if (fd >= state->capacity)
        return ENOENT;
    state->slots[fd].key = key;
    return tornado__kqueue_change(state, fd, events);
}

static int tornado__kqueue_add(void *opaque, int fd, unsigned events, uint64_t key)
{
    tornado__kqueue *state = opaque;
    void *slots = state->slots;
    if (!tornado__grow_zeroed(&slots, &state->capacity, fd + 1, sizeof *state->slots))
        return ENOMEM;
    state->slots = slots;
    if (fcntl(fd, F_GETFD) < 0)
        return errno;
    memset(&state->slots[fd], 0, sizeof state->slots[fd]);
    int error = tornado__kqueue_modify(opaque, fd, events, key);
    if (error)
        tornado__kqueue_change(state, fd, 0);
    return error;
}

static int tornado__kqueue_remove(void *opaque, int fd)
{
    tornado__kqueue *state = opaque;
    return fd < state->capacity ? tornado__kqueue_change(state, fd, 0) : ENOENT;
}

static int tornado__kqueue_wait(void *opaque, tornado_poller_event *events, int max, int64_t timeout_ns)
{
    tornado__kqueue *state = opaque;
    int room = max < (int)TORNADO__COUNT(state->events) ? max : (int)TORNADO__COUNT(state->events), count = 0;
    struct timespec timeout = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    int ready = kevent(state->fd, NULL, 0, state->events, room, timeout_ns < 0 ? NULL : &timeout);
    if (ready < 0)
        return errno == EINTR ? 0 : -1;
    state->waits++;
    for (int i = 0; i < ready; i++) {
        const struct kevent *event = &state->events[i];
        tornado__kqueue_slot *slot = &state->slots[event->ident];
        bool reading = event->filter == EVFILT_READ;
        if (slot->wait != state->waits) {
            slot->wait = state->waits;
            slot->place = count++;
            events[slot->place].key = slot->key;
            events[slot->place].events = 0;
        }
        events[slot->place].events |= reading ? TORNADO_IOLOOP_READ : TORNADO_IOLOOP_WRITE;
        if (event->flags & EV_EOF && (!reading || event->fflags)) /* more than the end of what can be read */
            events[slot->place].events |= TORNADO_IOLOOP_ERROR;
    }
    return count;
}

static int tornado__kqueue_fileno(void *state)
{
    return ((tornado__kqueue *)state)->fd;
}

static const tornado_poller tornado__poller_kqueue = {"kqueue", tornado__kqueue_open, tornado__kqueue_close,
                                                      tornado__kqueue_add, tornado__kqueue_modify,
                                                      tornado__kqueue_remove, tornado__kqueue_wait,
                                                      tornado__kqueue_fileno};
#endif

/* poll: dense arrays, and for each fd its place in them plus one. */
typedef struct tornado__poll {
    struct pollfd *fds;
    uint64_t *keys;
    int *places;
    int count, capacity, places_capacity;
    int start; /* where the next scan begins, so that a full event array starves nobody */
} tornado__poll;

static void *tornado__poll_open(void)
{
    tornado__poll *state = TORNADO_MALLOC(sizeof *state);
    if (state)
        memset(state, 0, sizeof *state);
    else
        errno = ENOMEM;
    return state;
}

static void tornado__poll_close(void *opaque)
{
    tornado__poll *state = opaque;
    TORNADO_FREE(state->fds);
    TORNADO_FREE(state->keys);
    TORNADO_FREE(state->places);
    TORNADO_FREE(state);
}

static int tornado__poll_add(void *opaque, int fd, unsigned events, uint64_t key)
{
    tornado__poll *state = opaque;
    int keys_capacity = state->capacity;
    void *fds = state->fds, *keys = state->keys, *places = state->places;
    bool room = tornado__grow_zeroed(&places, &state->places_capacity, fd + 1, sizeof *state->places);
    state->places = places;
    room = room && tornado__grow(&keys, &keys_capacity, state->count + 1, sizeof *state->keys);
    state->keys = keys;
    room = room && tornado__grow(&fds, &state->capacity, state->count + 1, sizeof *state->fds);
    state->fds = fds;
    if (!room)
        return ENOMEM;
    if (fcntl(fd, F_GETFD) < 0)
        return errno;
    int place = state->count++;
    state->fds[place].fd = fd;
    state->fds[place].events = (short)events;
    state->fds[place].revents = 0;
    state->keys[place] = key;
    state->places[fd] = place + 1;
    return 0;
}

static int tornado__poll_modify(void *opaque, int fd, unsigned events, uint64_t key)
{
    tornado__poll *state = opaque;
    if (fd >= state->places_capacity || !state->places[fd])
        return ENOENT;
    state->fds[state->places[fd] - 1].events = (short)events;
    state->keys[state->places[fd] - 1] = key;
    return 0;
}

static int tornado__poll_remove(void *opaque, int fd)
{
    tornado__poll *state = opaque;
    if (fd >= state->places_capacity || !state->places[fd])
        return ENOENT;
    int place = state->places[fd] - 1, last = --state->count;
    state->places[fd] = 0;
    if (place != last) {
        state->fds[place] = state->fds[last];
        state->keys[place] = state->keys[last];
        state->places[state->fds[place].fd] = place + 1;
    }
    return 0;
}

static int tornado__poll_wait(void *opaque, tornado_poller_event *events, int max, int64_t timeout_ns)
{
    tornado__poll *state = opaque;
    int ready = poll(state->fds, (nfds_t)state->count, tornado__timeout_ms(timeout_ns)), count = 0;
    if (ready < 0)
        return errno == EINTR ? 0 : -1;
    for (int i = 0; i < state->count && count < ready && count < max; i++) {
        int place = (state->start + i) % state->count;
        unsigned happened = (unsigned)state->fds[place].revents;
        if (!happened)
            continue;
        if (happened & POLLNVAL)
            happened = TORNADO_IOLOOP_ERROR;
        events[count].key = state->keys[place];
        events[count++].events = happened;
    }
    state->start = state->count && ready > max ? (state->start + 1) % state->count : 0;
    return count;
}

static const tornado_poller tornado__poller_poll = {"poll", tornado__poll_open, tornado__poll_close,
                                                    tornado__poll_add, tornado__poll_modify, tornado__poll_remove,
                                                    tornado__poll_wait, NULL};

typedef struct tornado__select {
    fd_set read, write, error; /* error: every fd; select itself tells of errors as readable or writable */
    int top;                   /* one above the highest fd */
    int start;
    uint64_t keys[FD_SETSIZE];
} tornado__select;

static void *tornado__select_open(void)
{
    tornado__select *state = TORNADO_MALLOC(sizeof *state);
    if (state)
        memset(state, 0, sizeof *state);
    else
        errno = ENOMEM;
    return state;
}

static void tornado__select_close(void *state)
{
    TORNADO_FREE(state);
}

static int tornado__select_modify(void *opaque, int fd, unsigned events, uint64_t key)
{
    tornado__select *state = opaque;
    if (events & TORNADO_IOLOOP_READ)
        FD_SET(fd, &state->read);
    else
        FD_CLR(fd, &state->read);
    if (events & TORNADO_IOLOOP_WRITE)
        FD_SET(fd, &state->write);
    else
        FD_CLR(fd, &state->write);
    FD_SET(fd, &state->error);
    state->keys[fd] = key;
    return 0;
}

static int tornado__select_add(void *opaque, int fd, unsigned events, uint64_t key)
{
    tornado__select *state = opaque;
    if (fd >= FD_SETSIZE)
        return ERANGE;
    if (fcntl(fd, F_GETFD) < 0)
        return errno;
    if (fd >= state->top)
        state->top = fd + 1;
    return tornado__select_modify(opaque, fd, events, key);
}

static int tornado__select_remove(void *opaque, int fd)
{
    tornado__select *state = opaque;
    FD_CLR(fd, &state->read);
    FD_CLR(fd, &state->write);
    FD_CLR(fd, &state->error);
    while (state->top > 0 && !FD_ISSET(state->top - 1, &state->error))
        state->top--;
    return 0;
}

/* One of the descriptors was closed while it was registered: say which, or select would fail for ever. */
static int tornado__select_find_closed(tornado__select *state, tornado_poller_event *events, int max)
{
    int count = 0;
    for (int fd = 0; fd < state->top && count < max; fd++)
        if (FD_ISSET(fd, &state->error) && fcntl(fd, F_GETFD) < 0) {
            events[count].key = state->keys[fd];
            events[count++].events = TORNADO_IOLOOP_ERROR;
        }
    return count;
}

static int tornado__select_wait(void *opaque, tornado_poller_event *events, int max, int64_t timeout_ns)
{
    tornado__select *state = opaque;
    fd_set readable = state->read, writable = state->write;
    int ms = tornado__timeout_ms(timeout_ns), count = 0;
    struct timeval timeout = {ms / 1000, (ms % 1000) * 1000};
    int ready = select(state->top, &readable, &writable, NULL, ms < 0 ? NULL : &timeout);
    if (ready < 0)
        return errno == EINTR ? 0 : errno == EBADF ? tornado__select_find_closed(state, events, max) : -1;
    for (int i = 0; ready > 0 && i < state->top && count < max; i++) {
        int fd = (state->start + i) % state->top;
        unsigned happened = (FD_ISSET(fd, &readable) ? (unsigned)TORNADO_IOLOOP_READ : 0) |
                            (FD_ISSET(fd, &writable) ? (unsigned)TORNADO_IOLOOP_WRITE : 0);
        if (happened) {
            events[count].key = state->keys[fd];
            events[count++].events = happened;
        }
    }
    state->start = count == max && state->top ? (state->start + 1) % state->top : 0;
    return count;
}

static const tornado_poller tornado__poller_select = {"select", tornado__select_open, tornado__select_close,
                                                      tornado__select_add, tornado__select_modify,
                                                      tornado__select_remove, tornado__select_wait, NULL};

static const tornado_poller *const tornado__pollers[] = {
#ifdef __linux__
    &tornado__poller_epoll,
#endif
#ifdef TORNADO__KQUEUE
    &tornado__poller_kqueue,
#endif
    &tornado__poller_poll,
    &tornado__poller_select,
};

/* ---- the loop ---- */

typedef struct tornado__task {
    struct tornado__task *next; /* in the loop's queue; a task is in it once at most */
    /* Does the work. When the loop is closed it only lets go of what it holds. */
    void (*run)(struct tornado__task *task, tornado_ioloop *loop);
} tornado__task;

/* First in, first out. `last` is only meaningful while there is a first. */
typedef struct tornado__queue {
    tornado__task *first, *last;
} tornado__queue;

static TORNADO__INLINE void tornado__queue_push(tornado__queue *queue, tornado__task *task)
{
    task->next = NULL;
    if (queue->first)
        queue->last->next = task;
    else
        queue->first = task;
    queue->last = task;
}

static TORNADO__INLINE tornado__task *tornado__queue_pop(tornado__queue *queue)
{
    tornado__task *task = queue->first;
    if (task)
        queue->first = task->next;
    return task;
}

typedef struct tornado__timer {
    int64_t when; /* nanoseconds; may be later than the key in the heap */
    void (*fire)(struct tornado__timer *timer, tornado_ioloop *loop);
    uint32_t place; /* in the heap, plus one; 0: not set; from TORNADO__TIMER_ASIDE on: aside */
    bool fires_at_close; /* of the loop, to let go of what is held until then */
} tornado__timer;

#define TORNADO__TIMER_ASIDE 0x80000000u

typedef struct tornado__heap_entry {
    int64_t when;
    uint64_t order;
    tornado__timer *timer;
} tornado__heap_entry;

typedef struct tornado__user_timer {
    tornado__timer timer;
    uint32_t generation, index;
    tornado_callback callback;
    void *arg;
    tornado_stack_context *states;
    struct tornado__user_timer *next_free;
} tornado__user_timer;

#define TORNADO__TIMERS_PER_CHUNK 64u

typedef struct tornado__callback {
    tornado__task task;
    tornado_callback callback;
    void *arg;
    tornado_stack_context *states;
    bool remote; /* made without the loop's list of free ones */
} tornado__callback;

typedef struct tornado__fd_slot {
    tornado_fd_handler handler; /* NULL: free */
    void *arg;
    uint32_t generation;
    unsigned events;
} tornado__fd_slot;

typedef struct tornado__signal_slot {
    atomic_int state; /* 0 free, 1 being written, 2 in use for good */
    tornado_callback callback;
    void *arg;
    atomic_int count;
} tornado__signal_slot;

/* Something that has to end before the loop may: a server. */
typedef struct tornado__service {
    tornado__link link;
    void (*stop)(struct tornado__service *service);    /* accept nothing more, close what is idle */
    size_t (*busy)(const struct tornado__service *service); /* how much still runs */
} tornado__service;

/* What an upper section keeps on a loop, and how it goes. */
typedef struct tornado__attachment {
    struct tornado__attachment *next;
    void (*free)(struct tornado__attachment *attachment);
} tornado__attachment;

/* What the coroutine section does for the loop's end. */
typedef struct tornado__coroutine_hooks {
    size_t (*alive)(const tornado_ioloop *loop);
    void (*cancel)(tornado_ioloop *loop);
    void (*name)(const tornado_ioloop *loop); /* logs those alive */
    void (*unwind)(tornado_ioloop *loop);     /* ends all, while the loop is closed */
} tornado__coroutine_hooks;

enum { TORNADO__EVENTS_PER_WAIT = 256, TORNADO__SIGNAL_SLOTS = 64, TORNADO__SCRATCH_SIZE = 65536 };

struct tornado_ioloop {
    int64_t now; /* the clock as of the last wait */
    tornado__queue tasks, batch; /* batch: those that the turn under way took from tasks */
    tornado__queue before_wait;
    const tornado_poller *poller;
    void *poller_state;
    tornado__fd_slot *fds;
    int fds_capacity;
    bool running, stopping, closed;
    bool unwinding;  /* closed, but its coroutines are still being ended */
    bool fds_closed; /* the registered descriptors, too */
    int shutdown_phase; /* 0 none, 1 servers finish, 2 coroutines are cancelled */
    double shutdown_grace; /* seconds, after a signal */
    bool once;             /* run_once, which waits at most so many nanoseconds (-1: for ever): */
    int64_t max_wait;
    int64_t may_block;     /* nanoseconds that a turn may run without an alarm; 0: for ever */
    void (*handle_callback_exception)(tornado_ioloop *loop, const tornado_error *error);
    tornado__heap_entry *heap;
    int heap_count, heap_capacity;
    tornado__timer **aside; /* due, but set by a timer of this turn: they wait for the next */
    int aside_count, aside_capacity;
    int newcomers; /* how many may come to stand aside; -1: no timers are being run */
    uint64_t timer_order;
    tornado__user_timer **timer_chunks;
    int timer_chunks_count, timer_chunks_capacity;
    tornado__user_timer *free_timers;
    tornado__pool blocks, chunks; /* requests' arenas; outgoing data */
    char *scratch;                /* where streams receive to */
    tornado__callback *free_callbacks;
    unsigned free_callbacks_count;
    tornado__execution execution; /* of what runs on the loop's own stack */
    tornado__boundary boundary;
    tornado__link services;
    tornado__link compounds;
    tornado__attachment *attachments;
    size_t stack_size;
    int max_coroutines;
    struct tornado__stacks *stacks; /* the coroutine section's */
    const struct tornado__coroutine_hooks *coroutines; /* NULL until there was one */
    tornado__timer shutdown_timer;
    _Atomic(const void *) owner; /* while it runs: the address of its thread's own variables */
    int wake[2];
    size_t holds;          /* one until it is closed, and one of each thing of its thread that points to it */
    atomic_int references; /* one for all holds, and those of tornado_ioloop_retain */
    atomic_int is_closed; /* `closed`, for other threads */
    _Atomic(tornado__callback *) remote; /* newest first */
    tornado__signal_slot signals[TORNADO__SIGNAL_SLOTS];
    atomic_int signalled;
    tornado_poller_event events[TORNADO__EVENTS_PER_WAIT];
};

static TORNADO__THREAD_LOCAL tornado_ioloop *tornado__current_loop;

/* A callback for a signal. Signal handlers of any thread read it without a lock. */
typedef struct tornado__signal_handler {
    _Atomic(tornado_ioloop *) loop; /* NULL: free */
    atomic_int pending;             /* signals that came and were not told yet */
    int signum;
    tornado_callback callback;
    void *arg;
} tornado__signal_handler;

enum { TORNADO__SIGNAL_HANDLERS = 64, TORNADO__SIGNALS = 65 };

static struct {
    _Atomic(const tornado_poller *) poller;  /* tornado_ioloop_configure's */
    _Atomic(tornado_ioloop *) instance;      /* a reference */
    _Atomic(tornado_ioloop *) alarmed;       /* who has a blocking threshold */
    atomic_flag changing;                    /* the table below */
    atomic_int open;                         /* loops that are not closed */
    atomic_int in_handlers;                  /* signal handlers that run now */
    tornado__signal_handler handlers[TORNADO__SIGNAL_HANDLERS];
    struct sigaction before[TORNADO__SIGNALS];
    void (*alarm_action)(int signum);
    tornado__thread_id alarm_thread;
    struct sigaction before_alarm;
    char alarm_text[64];
} tornado__ioloop_process = {.changing = ATOMIC_FLAG_INIT};

/* Whether any thread has a loop: then this process must not become several. */
static bool tornado__ioloop_any(void)
{
    return atomic_load(&tornado__ioloop_process.open) > 0;
}

static const tornado_poller *tornado__poller_named(const char *name)
{
    for (size_t i = 0; i < TORNADO__COUNT(tornado__pollers); i++)
        if (strcmp(tornado__pollers[i]->name, name) == 0)
            return tornado__pollers[i];
    tornado__fail(TORNADO_ERR_INVALID, 0, "there is no poller \"%.40s\" here", name);
    return NULL;
}

TORNADO_API bool tornado_ioloop_configure(const char *poller)
{
    const tornado_poller *found = tornado__poller_named(poller ? poller : TORNADO_POLLER);
    if (found)
        atomic_store(&tornado__ioloop_process.poller, found);
    return found != NULL;
}

/* ---- tasks ---- */

static TORNADO__COLD void tornado__ioloop_schedule_later(tornado_ioloop *loop, tornado__task *task);

/* Runs a task in the next turn. */
static TORNADO__INLINE void tornado__ioloop_schedule(tornado_ioloop *loop, tornado__task *task)
{
    if (TORNADO__LIKELY(loop->running))
        tornado__queue_push(&loop->tasks, task);
    else
        tornado__ioloop_schedule_later(loop, task);
}

/* The same for what has to happen before the loop waits: answers leave then. */
static TORNADO__INLINE void tornado__ioloop_before_wait(tornado_ioloop *loop, tornado__task *task)
{
    tornado__queue_push(&loop->before_wait, task);
}

/* Keeps the struct for something of the loop's own thread that points to it: tornado_ioloop_retain without atomics.
   */
static TORNADO__INLINE void tornado__ioloop_hold(tornado_ioloop *loop)
{
    loop->holds++;
}

/* A future made of others, which holds itself while it waits for them. When its loop is closed it lets go. */
typedef struct tornado__compound {
    tornado__link link;
    void (*let_go)(struct tornado__compound *compound);
} tornado__compound;

static TORNADO__INLINE void tornado__ioloop_let_go(tornado_ioloop *loop)
{
    if (TORNADO__UNLIKELY(--loop->holds == 0))
        tornado_ioloop_release(loop);
}

/* Closes a descriptor of something whose loop may have done that: those that it watched when it was closed. */
static void tornado__ioloop_close_fd(const tornado_ioloop *loop, int fd, bool watched)
{
    if (!watched || !loop->fds_closed)
        close(fd);
}

/* Ends the scope that callbacks on the loop's stack share, and the states of the one that ran, when there are any.
   */
static TORNADO__INLINE void tornado__ioloop_settle(tornado_ioloop *loop)
{
    tornado__scope_end(&loop->execution, &loop->boundary.scope);
    if (TORNADO__UNLIKELY(loop->execution.states != NULL))
        tornado__context_drop(&loop->execution);
}

static void tornado__callback_run(tornado__task *task, tornado_ioloop *loop)
{
    tornado__callback *node = TORNADO__CONTAINER(task, tornado__callback, task);
    tornado_callback callback = node->callback;
    void *arg = node->arg;
    if (TORNADO__UNLIKELY(loop->closed))
        tornado_stack_context_release(node->states);
    else
        loop->execution.states = node->states;
    if (loop->closed || node->remote || loop->free_callbacks_count >= 1024) {
        TORNADO_FREE(node);
    } else {
        node->task.next = loop->free_callbacks ? &loop->free_callbacks->task : NULL;
        loop->free_callbacks = node;
        loop->free_callbacks_count++;
    }
    if (!loop->closed)
        callback(arg);
}

static void tornado__ioloop_wake(tornado_ioloop *loop)
{
    int saved = errno;
    ssize_t ignored = write(loop->wake[1], "", 1); /* a full pipe wakes as well */
    (void)ignored;
    errno = saved;
}

static tornado__callback *tornado__callback_new(tornado_ioloop *loop, tornado_callback callback, void *arg)
{
    tornado__callback *node = loop ? loop->free_callbacks : NULL;
    if (node) {
        loop->free_callbacks =
            node->task.next ? TORNADO__CONTAINER(node->task.next, tornado__callback, task) : NULL;
        loop->free_callbacks_count--;
    } else {
        node = TORNADO_MALLOC(sizeof *node);
        if (!node) {
            tornado__nomem();
            return NULL;
        }
    }
    node->task.run = tornado__callback_run;
    node->remote = loop == NULL;
    node->states = NULL;
    node->callback = callback;
    node->arg = arg;
    return node;
}

/* Adds a task from any thread, in a node that the caller made. */
static void tornado__ioloop_post(tornado_ioloop *loop, tornado__callback *node)
{
    tornado__callback *head = atomic_load_explicit(&loop->remote, memory_order_relaxed);
    do
        node->task.next = head ? &head->task : NULL;
    while (!atomic_compare_exchange_weak(&loop->remote, &head, node));
    if (!head) /* whoever found the list empty wakes the loop, for all who come until it looks */
        tornado__ioloop_wake(loop);
}

TORNADO_API bool tornado_ioloop_add_callback(tornado_ioloop *loop, tornado_callback callback, void *arg)
{
    bool own = atomic_load_explicit(&loop->owner, memory_order_relaxed) == &tornado__thread;
    if (atomic_load_explicit(&loop->is_closed, memory_order_acquire))
        return false;
    tornado__callback *node = tornado__callback_new(own ? loop : NULL, callback, arg);
    if (!node)
        return false;
    if (own) {
        node->states = tornado__context_capture();
        tornado__ioloop_schedule(loop, &node->task);
    } else {
        tornado__ioloop_post(loop, node);
    }
    return true;
}

TORNADO_API bool tornado_ioloop_add_callback_from_signal(tornado_ioloop *loop, tornado_callback callback, void *arg)
{
    for (int i = 0; i < TORNADO__SIGNAL_SLOTS && !atomic_load(&loop->is_closed); i++) {
        tornado__signal_slot *slot = &loop->signals[i];
        int free_state = 0;
        if (atomic_compare_exchange_strong(&slot->state, &free_state, 1)) {
            slot->callback = callback;
            slot->arg = arg;
            atomic_store(&slot->state, 2);
        } else if (free_state != 2 || slot->callback != callback || slot->arg != arg) {
            continue;
        }
        atomic_fetch_add(&slot->count, 1);
        if (atomic_exchange(&loop->signalled, 1) == 0)
            tornado__ioloop_wake(loop);
        return true;
    }
    return false;
}

/* Queues what other threads and signal handlers have added. */
static void tornado__ioloop_collect(int fd, unsigned events, void *arg)
{
    tornado_ioloop *loop = arg;
    char drain[64];
    (void)events;
    while (read(fd, drain, sizeof drain) == (ssize_t)sizeof drain) {
    }
    tornado__callback *node = atomic_exchange(&loop->remote, NULL);
    tornado__task *oldest = NULL;
    for (tornado__task *task = node ? &node->task : NULL, *next; task; task = next) {
        next = task->next;
        task->next = oldest;
        oldest = task;
    }
    for (tornado__task *task = oldest, *next; task; task = next) {
        next = task->next;
        tornado__queue_push(&loop->tasks, task);
    }
    if (!atomic_exchange(&loop->signalled, 0))
        return;
    for (int i = 0; i < TORNADO__SIGNAL_SLOTS && atomic_load(&loop->signals[i].state) == 2; i++) {
        tornado__signal_slot *slot = &loop->signals[i];
        for (int count = atomic_exchange(&slot->count, 0); count > 0; count--) {
            tornado__callback *pending = tornado__callback_new(loop, slot->callback, slot->arg);
            if (!pending) { /* keep the rest for the next turn */
                atomic_fetch_add(&slot->count, count);
                atomic_store(&loop->signalled, 1);
                tornado__ioloop_wake(loop);
                return;
            }
            tornado__queue_push(&loop->tasks, &pending->task);
        }
    }
}

/* What is scheduled before the loop runs stays in order with the callbacks that were added before; once it is
   closed a task only lets go of what it holds, at once. */
static TORNADO__COLD void tornado__ioloop_schedule_later(tornado_ioloop *loop, tornado__task *task)
{
    if (loop->closed) {
        task->run(task, loop);
        return;
    }
    if (atomic_load_explicit(&loop->remote, memory_order_relaxed))
        tornado__ioloop_collect(loop->wake[0], 0, loop);
    tornado__queue_push(&loop->tasks, task);
}

/* ---- timers: a heap of four children a node, which is flatter and kinder to the cache than two ---- */

static TORNADO__INLINE bool tornado__heap_less(const tornado__heap_entry *a, const tornado__heap_entry *b)
{
    return a->when != b->when ? a->when < b->when : a->order < b->order;
}

static TORNADO__INLINE void tornado__heap_put(tornado_ioloop *loop, int at, tornado__heap_entry entry)
{
    loop->heap[at] = entry;
    entry.timer->place = (uint32_t)at + 1;
}

static void tornado__heap_up(tornado_ioloop *loop, int at, tornado__heap_entry entry)
{
    while (at > 0) {
        int parent = (at - 1) / 4;
        if (!tornado__heap_less(&entry, &loop->heap[parent]))
            break;
        tornado__heap_put(loop, at, loop->heap[parent]);
        at = parent;
    }
    tornado__heap_put(loop, at, entry);
}

static void tornado__heap_down(tornado_ioloop *loop, int at, tornado__heap_entry entry)
{
    for (;;) {
        int first = at * 4 + 1, least = first;
        if (first >= loop->heap_count)
            break;
        for (int child = first + 1; child < first + 4 && child < loop->heap_count; child++)
            if (tornado__heap_less(&loop->heap[child], &loop->heap[least]))
                least = child;
        if (!tornado__heap_less(&loop->heap[least], &entry))
            break;
        tornado__heap_put(loop, at, loop->heap[least]);
        at = least;
    }
    tornado__heap_put(loop, at, entry);
}

static void tornado__timer_clear(tornado_ioloop *loop, tornado__timer *timer)
{
    if (!timer->place)
        return;
    if (TORNADO__UNLIKELY(timer->place >= TORNADO__TIMER_ASIDE)) {
        loop->aside[timer->place - TORNADO__TIMER_ASIDE] = NULL;
        timer->place = 0;
        return;
    }
    int at = (int)timer->place - 1;
    timer->place = 0;
    tornado__heap_entry last = loop->heap[--loop->heap_count];
    if (last.timer == timer)
        return;
    if (at > 0 && tornado__heap_less(&last, &loop->heap[(at - 1) / 4]))
        tornado__heap_up(loop, at, last);
    else
        tornado__heap_down(loop, at, last);
}

static TORNADO__COLD bool tornado__timer_place(tornado_ioloop *loop, tornado__timer *timer, int64_t when)
{
    tornado__heap_entry entry = {when, ++loop->timer_order, timer};
    if (loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "a timer on a loop that is closed");
    if (loop->newcomers >= 0 && when <= loop->now) { /* room to stand aside */
        void *aside = loop->aside;
        if (!tornado__grow(&aside, &loop->aside_capacity, loop->newcomers + 1, sizeof(void *)))
            return false;
        loop->aside = aside;
        loop->newcomers++;
    }
    timer->when = when;
    if (timer->place >= TORNADO__TIMER_ASIDE)
        return true;
    if (timer->place) {
        if (when < loop->heap[timer->place - 1].when)
            tornado__heap_up(loop, (int)timer->place - 1, entry);
        return true;
    }
    void *heap = loop->heap;
    if (!tornado__grow(&heap, &loop->heap_capacity, loop->heap_count + loop->aside_count + 1, sizeof *loop->heap))
        return false;
    loop->heap = heap;
    tornado__heap_up(loop, loop->heap_count++, entry);
    return true;
}

/* Sets a timer to go off at `when`, or moves it there. Can fail only for one that is not set. One that moves to a
   later time stays where it is, until its key comes up. */
static TORNADO__INLINE bool tornado__timer_set(tornado_ioloop *loop, tornado__timer *timer, int64_t when)
{
    if (TORNADO__LIKELY(timer->place && when >= timer->when)) {
        timer->when = when;
        return true;
    }
    return tornado__timer_place(loop, timer, when);
}

/* Puts back what was set aside. There is room for all. */
static void tornado__timers_return(tornado_ioloop *loop)
{
    for (int i = 0; i < loop->aside_count; i++) {
        tornado__timer *timer = loop->aside[i];
        if (!timer) /* cleared meanwhile */
            continue;
        timer->place = 0;
        tornado__heap_up(loop, loop->heap_count++, (tornado__heap_entry){timer->when, ++loop->timer_order, timer});
    }
    loop->aside_count = 0;
    loop->newcomers = -1;
}

/* Runs the timers that are due, but none that was set meanwhile. */
static void tornado__ioloop_run_timers(tornado_ioloop *loop)
{
    uint64_t until = loop->timer_order;
    loop->newcomers = 0;
    while (loop->heap_count && loop->heap[0].when <= loop->now) {
        tornado__heap_entry entry = loop->heap[0];
        tornado__timer *timer = entry.timer;
        if (timer->when > entry.when) {
            entry.when = timer->when;
            tornado__heap_down(loop, 0, entry);
            continue;
        }
        tornado__timer_clear(loop, timer);
        if (TORNADO__UNLIKELY(entry.order > until)) {
            timer->place = TORNADO__TIMER_ASIDE + (uint32_t)loop->aside_count;
            loop->aside[loop->aside_count++] = timer;
            continue;
        }
        timer->fire(timer, loop);
        tornado__ioloop_settle(loop);
    }
    tornado__timers_return(loop);
}

static void tornado__user_timer_free(tornado_ioloop *loop, tornado__user_timer *timer)
{
    timer->generation++;
    timer->next_free = loop->free_timers;
    loop->free_timers = timer;
}

static void tornado__user_timer_fire(tornado__timer *base, tornado_ioloop *loop)
{
    tornado__user_timer *timer = TORNADO__CONTAINER(base, tornado__user_timer, timer);
    tornado_callback callback = timer->callback;
    void *arg = timer->arg;
    loop->execution.states = timer->states;
    tornado__user_timer_free(loop, timer);
    callback(arg);
}

static bool tornado__user_timers_grow(tornado_ioloop *loop)
{
    void *chunks = loop->timer_chunks;
    if (!tornado__grow(&chunks, &loop->timer_chunks_capacity, loop->timer_chunks_count + 1, sizeof(void *)))
        return false;
    loop->timer_chunks = chunks;
    tornado__user_timer *chunk = TORNADO_MALLOC(TORNADO__TIMERS_PER_CHUNK * sizeof *chunk);
    if (!chunk)
        return tornado__nomem();
    memset(chunk, 0, TORNADO__TIMERS_PER_CHUNK * sizeof *chunk);
    uint32_t base = (uint32_t)loop->timer_chunks_count * TORNADO__TIMERS_PER_CHUNK;
    loop->timer_chunks[loop->timer_chunks_count++] = chunk;
    for (uint32_t i = TORNADO__TIMERS_PER_CHUNK; i-- > 0;) {
        chunk[i].index = base + i;
        chunk[i].generation = 1;
        chunk[i].timer.fire = tornado__user_timer_fire;
        chunk[i].next_free = loop->free_timers;
        loop->free_timers = &chunk[i];
    }
    return true;
}

static tornado_timeout tornado__ioloop_set_timeout(tornado_ioloop *loop, int64_t when, tornado_callback callback,
                                                   void *arg)
{
    if (loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "a timer on a loop that is closed");
    if (!loop->free_timers && !tornado__user_timers_grow(loop))
        return 0;
    tornado__user_timer *timer = loop->free_timers;
    if (!tornado__timer_set(loop, &timer->timer, when))
        return 0;
    loop->free_timers = timer->next_free;
    timer->callback = callback;
    timer->arg = arg;
    timer->states = tornado__context_capture();
    return (uint64_t)timer->generation << 32 | timer->index;
}

static int64_t tornado__add_ns(int64_t a, int64_t b)
{
    if (b > 0 && a > INT64_MAX - b)
        return INT64_MAX;
    if (b < 0 && a < INT64_MIN - b)
        return INT64_MIN;
    return a + b;
}

TORNADO_API tornado_timeout tornado_ioloop_call_later(tornado_ioloop *loop, double delay, tornado_callback callback,
                                                      void *arg)
{
    int64_t ns;
    if (!tornado__seconds_to_ns(delay, &ns))
        return tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_ioloop_call_later: the delay is not a number");
    return tornado__ioloop_set_timeout(loop, tornado__add_ns(tornado__now_ns(), ns > 0 ? ns : 0), callback, arg);
}

TORNADO_API tornado_timeout tornado_ioloop_call_at(tornado_ioloop *loop, double when, tornado_callback callback,
                                                   void *arg)
{
    int64_t ns;
    if (!tornado__seconds_to_ns(when, &ns))
        return tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_ioloop_call_at: the time is not a number");
    return tornado__ioloop_set_timeout(loop, ns, callback, arg);
}

TORNADO_API bool tornado_ioloop_remove_timeout(tornado_ioloop *loop, tornado_timeout timeout)
{
    uint32_t index = (uint32_t)timeout, generation = (uint32_t)(timeout >> 32);
    if (!generation || index / TORNADO__TIMERS_PER_CHUNK >= (uint32_t)loop->timer_chunks_count)
        return false;
    tornado__user_timer *timer =
        &loop->timer_chunks[index / TORNADO__TIMERS_PER_CHUNK][index % TORNADO__TIMERS_PER_CHUNK];
    if (timer->generation != generation)
        return false;
    tornado__timer_clear(loop, &timer->timer);
    tornado_stack_context *states = timer->states;
    tornado__user_timer_free(loop, timer);
    tornado_stack_context_release(states);
    return true;
}

/* ---- descriptors ---- */

static uint64_t tornado__fd_key(const tornado_ioloop *loop, int fd)
{
    return (uint64_t)loop->fds[fd].generation << 32 | (uint32_t)fd;
}

TORNADO_API bool tornado_ioloop_add_handler(tornado_ioloop *loop, int fd, tornado_fd_handler handler, void *arg,
                                            unsigned events)
{
    void *fds = loop->fds;
    if (fd < 0 || fd == INT_MAX || !handler)
        return tornado__fail(TORNADO_ERR_INVALID, EBADF, "tornado_ioloop_add_handler: not a file descriptor: %d",
                             fd);
    if (loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "tornado_ioloop_add_handler: the loop is closed");
    if (fd >= loop->fds_capacity && fcntl(fd, F_GETFD) < 0) /* no room for what is none */
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_ioloop_add_handler: fd %d: %s", fd,
                             strerror(errno));
    if (!tornado__grow_zeroed(&fds, &loop->fds_capacity, fd + 1, sizeof *loop->fds))
        return false;
    loop->fds = fds;
    tornado__fd_slot *slot = &loop->fds[fd];
    if (slot->handler)
        return tornado__fail(TORNADO_ERR_STATE, EEXIST, "tornado_ioloop_add_handler: fd %d has a handler already",
                             fd);
    slot->generation++;
    int error = loop->poller->add(loop->poller_state, fd, events | TORNADO_IOLOOP_ERROR, tornado__fd_key(loop, fd));
    if (error)
        return tornado__fail(error == ENOMEM ? TORNADO_ERR_NOMEM : TORNADO_ERR_SYSTEM, error,
                             "tornado_ioloop_add_handler: fd %d: %s%s", fd,
                             error == ERANGE ? "too high for the poller " : "",
                             error == ERANGE ? loop->poller->name : strerror(error));
    slot->handler = handler;
    slot->arg = arg;
    slot->events = events;
    return true;
}

static bool tornado__fd_registered(const tornado_ioloop *loop, int fd, const char *what)
{
    if (fd >= 0 && fd < loop->fds_capacity && loop->fds[fd].handler)
        return true;
    return tornado__fail(TORNADO_ERR_STATE, ENOENT, "%s: fd %d has no handler", what, fd);
}

TORNADO_API bool tornado_ioloop_update_handler(tornado_ioloop *loop, int fd, unsigned events)
{
    if (!tornado__fd_registered(loop, fd, "tornado_ioloop_update_handler"))
        return false;
    if (loop->fds[fd].events == events)
        return true;
    int error =
        loop->poller->modify(loop->poller_state, fd, events | TORNADO_IOLOOP_ERROR, tornado__fd_key(loop, fd));
    if (error)
        return tornado__fail(TORNADO_ERR_SYSTEM, error, "tornado_ioloop_update_handler: fd %d: %s", fd,
                             strerror(error));
    loop->fds[fd].events = events;
    return true;
}

TORNADO_API bool tornado_ioloop_remove_handler(tornado_ioloop *loop, int fd)
{
    if (!tornado__fd_registered(loop, fd, "tornado_ioloop_remove_handler")) {
        tornado_gen_log(TORNADO_LOG_DEBUG, "%s", tornado_last_error()->message);
        return false;
    }
    int error = loop->poller->remove(loop->poller_state, fd);
    if (error)
        tornado_gen_log(TORNADO_LOG_DEBUG, "tornado_ioloop_remove_handler: fd %d: %s", fd, strerror(error));
    loop->fds[fd].handler = NULL;
    loop->fds[fd].generation++;
    return true;
}

static void tornado__ioloop_run_events(tornado_ioloop *loop, int count)
{
    for (int i = 0; i < count; i++) {
        uint32_t fd = (uint32_t)loop->events[i].key;
        tornado__fd_slot *slot = &loop->fds[fd];
        if (TORNADO__UNLIKELY(slot->generation != (uint32_t)(loop->events[i].key >> 32) || !slot->handler))
            continue;
        slot->handler((int)fd, loop->events[i].events, slot->arg);
        tornado__ioloop_settle(loop);
    }
}

/* ---- turns ---- */

/* Deals with what a callback raised: its states first, then who asked for it, else the log. */
static TORNADO__COLD void tornado__ioloop_raised(tornado_ioloop *loop, const tornado_error *raised, const char *what)
{
    tornado_error error = *raised;
    bool handled = loop->execution.states && tornado__context_handle(&loop->execution, &error);
    if (!handled && loop->handle_callback_exception)
        loop->handle_callback_exception(loop, &error);
    else if (!handled)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, &error, "%s", what);
}

/* Sets the alarm that goes off when a turn takes too long, or unsets it. */
static TORNADO__COLD void tornado__ioloop_alarm(int64_t ns)
{
    struct itimerval timer = {{0, 0}, {(time_t)(ns / 1000000000), (suseconds_t)(ns % 1000000000 / 1000)}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* How long the loop may wait. The clock is read only when a timer is near: for one that is farther than a second,
   half of what the last reading says is early enough. */
static int64_t tornado__ioloop_patience(const tornado_ioloop *loop)
{
    int64_t most = loop->max_wait;
    if (loop->tasks.first || loop->stopping)
        return 0;
    if (!loop->heap_count)
        return most;
    int64_t left = tornado__add_ns(loop->heap[0].when, -loop->now);
    if (left > 60000000000)
        left /= 2;
    else
        left = tornado__add_ns(loop->heap[0].when, -tornado__now_ns());
    return left <= 0 ? 0 : most >= 0 && most < left ? most : left;
}

static void tornado__ioloop_check_shutdown(tornado_ioloop *loop);

static TORNADO__INLINE void tornado__ioloop_run_queue(tornado_ioloop *loop, tornado__queue *queue)
{
    for (tornado__task *task; (task = tornado__queue_pop(queue)) != NULL;) {
        task->run(task, loop);
        tornado__ioloop_settle(loop);
    }
}

static void tornado__ioloop_turn(tornado_ioloop *loop)
{
    if (loop->tasks.first || loop->batch.first) {
        if (!loop->batch.first) { /* else something raised in the middle of one */
            loop->batch = loop->tasks;
            loop->tasks.first = NULL;
        }
        tornado__ioloop_run_queue(loop, &loop->batch);
        if (loop->heap_count)
            loop->now = tornado__now_ns();
    }
    if (loop->heap_count && loop->heap[0].when <= loop->now)
        tornado__ioloop_run_timers(loop);
    tornado__ioloop_run_queue(loop, &loop->before_wait);
    if (loop->shutdown_phase)
        tornado__ioloop_check_shutdown(loop);
    int64_t patience = tornado__ioloop_patience(loop);
    if (TORNADO__UNLIKELY(loop->may_block))
        tornado__ioloop_alarm(0);
    int count = loop->poller->wait(loop->poller_state, loop->events, TORNADO__EVENTS_PER_WAIT, patience);
    if (TORNADO__UNLIKELY(loop->may_block))
        tornado__ioloop_alarm(loop->may_block);
    loop->now = tornado__now_ns();
    if (count < 0) {
        tornado_gen_log(TORNADO_LOG_CRITICAL, "the poller %s failed: %s", loop->poller->name, strerror(errno));
        loop->stopping = true;
    } else {
        tornado__ioloop_run_events(loop, count);
    }
    tornado__ioloop_run_queue(loop, &loop->before_wait);
}

static void tornado__ioloop_turns(void *arg)
{
    tornado_ioloop *loop = arg;
    tornado__timers_return(loop); /* when a timer raised */
    if (loop->once && tornado_ioloop_next_timeout(loop) == 0)
        loop->max_wait = 0;
    while (!loop->stopping) {
        tornado__ioloop_turn(loop);
        loop->stopping |= loop->once;
    }
}

/* Makes a loop current, whose reference it takes over, and gives back the one before with its reference. */
static tornado_ioloop *tornado__current_swap(tornado_ioloop *loop)
{
    tornado_ioloop *before = tornado__current_loop;
    tornado__current_loop = loop;
    return before;
}

/* The same, for the last time: the one before is let go. */
static void tornado__current_set(tornado_ioloop *loop)
{
    tornado_ioloop *before = tornado__current_swap(loop);
    if (before)
        tornado_ioloop_release(before);
}

TORNADO_API void tornado_ioloop_make_current(tornado_ioloop *loop)
{
    tornado__current_set(loop ? tornado_ioloop_retain(loop) : NULL);
}

TORNADO_API void tornado_ioloop_clear_current(void)
{
    tornado_ioloop_make_current(NULL);
}

/* Runs the loop under its boundary, again after each error. */
static bool tornado__ioloop_run(tornado_ioloop *loop, bool once, int64_t max_wait)
{
    if (loop->running || loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "tornado_ioloop_%s: the loop is %s", once ? "run_once" : "start",
                             loop->closed ? "closed" : "running already");
    loop->once = once;
    loop->max_wait = max_wait;
    tornado_ioloop *outer_loop = tornado__current_swap(tornado_ioloop_retain(loop));
    tornado__execution *outer = tornado__thread.running;
    tornado_ioloop_retain(loop);
    tornado__thread.running = &loop->execution;
    atomic_store_explicit(&loop->owner, &tornado__thread, memory_order_relaxed);
    loop->running = true;
    loop->now = tornado__now_ns();
    tornado__ioloop_collect(loop->wake[0], 0, loop); /* callbacks that were added before */
    if (loop->may_block)
        tornado__ioloop_alarm(loop->may_block);
    while (tornado__protect(&loop->execution, &loop->boundary, tornado__ioloop_turns, loop)) {
        tornado_error error = loop->execution.raised;
        tornado__ioloop_raised(loop, &error, "Exception in callback");
        if (loop->execution.states)
            tornado__context_drop(&loop->execution);
        loop->max_wait = loop->once ? 0 : -1;
    }
    if (loop->may_block)
        tornado__ioloop_alarm(0);
    loop->execution.scope = NULL;
    loop->running = loop->stopping = false;
    atomic_store_explicit(&loop->owner, NULL, memory_order_relaxed);
    tornado__thread.running = outer;
    tornado__current_set(outer_loop);
    tornado_ioloop_release(loop);
    return true;
}

TORNADO_API bool tornado_ioloop_start(tornado_ioloop *loop)
{
    return tornado__ioloop_run(loop, false, -1);
}

TORNADO_API bool tornado_ioloop_run_once(tornado_ioloop *loop, double max_wait)
{
    int64_t ns = -1;
    if (max_wait != TORNADO_NONE && !(tornado__seconds_to_ns(max_wait, &ns) && ns >= 0))
        return tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_ioloop_run_once: the time is not valid");
    return tornado__ioloop_run(loop, true, ns);
}

TORNADO_API double tornado_ioloop_next_timeout(const tornado_ioloop *loop)
{
    if (loop->tasks.first || loop->batch.first || loop->before_wait.first || atomic_load(&loop->remote) ||
        atomic_load(&loop->signalled))
        return 0;
    if (!loop->heap_count)
        return TORNADO_NONE;
    int64_t left = tornado__add_ns(loop->heap[0].when, -tornado__now_ns());
    return left > 0 ? (double)left / 1e9 : 0;
}

TORNADO_API int tornado_ioloop_fileno(const tornado_ioloop *loop)
{
    if (loop->poller->fileno && !loop->closed)
        return loop->poller->fileno(loop->poller_state);
    tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_ioloop_fileno: %s",
                  loop->closed ? "the loop is closed" : "this poller has no file descriptor");
    return -1;
}

TORNADO_API void tornado_ioloop_stop(tornado_ioloop *loop)
{
    loop->stopping = true;
}

/* ---- signals ---- */

/* In the loop, once for each signal. One that was removed has nothing pending; its place may be another's by now.
   */
static void tornado__signal_tell(void *arg)
{
    tornado__signal_handler *handler = arg;
    if (atomic_load(&handler->loop) != tornado__current_loop || atomic_load(&handler->pending) == 0)
        return;
    atomic_fetch_sub(&handler->pending, 1);
    handler->callback(handler->arg);
}

/* The process's handler of each signal that a loop wants. */
static void tornado__signal_caught(int signum)
{
    int saved = errno;
    atomic_fetch_add(&tornado__ioloop_process.in_handlers, 1);
    for (int i = 0; i < TORNADO__SIGNAL_HANDLERS; i++) {
        tornado__signal_handler *handler = &tornado__ioloop_process.handlers[i];
        tornado_ioloop *loop = atomic_load(&handler->loop);
        if (loop && handler->signum == signum) {
            atomic_fetch_add(&handler->pending, 1);
            tornado_ioloop_add_callback_from_signal(loop, tornado__signal_tell, handler);
        }
    }
    atomic_fetch_sub(&tornado__ioloop_process.in_handlers, 1);
    errno = saved;
}

/* For changes of the table, which signal handlers do not make: these are rare and short. */
static void tornado__signals_lock(void)
{
    while (atomic_flag_test_and_set(&tornado__ioloop_process.changing))
        sched_yield();
}

static void tornado__signals_unlock(void)
{
    atomic_flag_clear(&tornado__ioloop_process.changing);
}

/* How many handlers a signal has. The table is locked. */
static int tornado__signal_count(int signum)
{
    int count = 0;
    for (int i = 0; i < TORNADO__SIGNAL_HANDLERS; i++)
        count += tornado__ioloop_process.handlers[i].signum == signum;
    return count;
}

static tornado__signal_handler *tornado__signal_find(tornado_ioloop *loop, int signum, tornado_callback callback,
                                                     void *arg)
{
    for (int i = 0; i < TORNADO__SIGNAL_HANDLERS; i++) {
        tornado__signal_handler *handler = &tornado__ioloop_process.handlers[i];
        if (atomic_load(&handler->loop) == loop && (!loop || (handler->signum == signum &&
                                                              handler->callback == callback && handler->arg == arg)))
            return handler;
    }
    return NULL;
}

static bool tornado__signal_add(tornado_ioloop *loop, int signum, tornado_callback callback, void *arg)
{
    tornado__signal_handler *handler = tornado__signal_find(NULL, 0, NULL, NULL);
    struct sigaction action;
    if (!handler)
        return tornado__fail(TORNADO_ERR_LIMIT, 0, "tornado_ioloop_add_signal_handler: there are %d already",
                             TORNADO__SIGNAL_HANDLERS);
    memset(&action, 0, sizeof action);
    action.sa_handler = tornado__signal_caught;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    bool first = tornado__signal_count(signum) == 0;
    handler->signum = signum;
    handler->callback = callback;
    handler->arg = arg;
    atomic_store(&handler->pending, 0);
    atomic_store(&handler->loop, loop);
    if (!first || sigaction(signum, &action, &tornado__ioloop_process.before[signum]) == 0)
        return true;
    atomic_store(&handler->loop, NULL);
    handler->signum = 0;
    return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_ioloop_add_signal_handler: signal %d: %s", signum,
                         strerror(errno));
}

TORNADO_API bool tornado_ioloop_add_signal_handler(tornado_ioloop *loop, int signum, tornado_callback callback,
                                                   void *arg)
{
    if (signum <= 0 || signum >= TORNADO__SIGNALS)
        return tornado__fail(TORNADO_ERR_SYSTEM, EINVAL, "tornado_ioloop_add_signal_handler: there is no signal %d",
                             signum);
    if (loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "tornado_ioloop_add_signal_handler: the loop is closed");
    tornado__signals_lock();
    bool ok = tornado__signal_add(loop, signum, callback, arg);
    tornado__signals_unlock();
    return ok;
}

/* Afterwards no signal handler looks at it, or at its loop, any more. The table is locked. */
static void tornado__signal_remove(tornado__signal_handler *handler)
{
    int signum = handler->signum;
    atomic_store(&handler->loop, NULL);
    while (atomic_load(&tornado__ioloop_process.in_handlers) > 0)
        sched_yield(); /* another thread is in one */
    handler->signum = 0;
    if (tornado__signal_count(signum) == 0)
        sigaction(signum, &tornado__ioloop_process.before[signum], NULL);
}

TORNADO_API bool tornado_ioloop_remove_signal_handler(tornado_ioloop *loop, int signum, tornado_callback callback,
                                                      void *arg)
{
    tornado__signals_lock();
    tornado__signal_handler *handler = tornado__signal_find(loop, signum, callback, arg);
    if (handler)
        tornado__signal_remove(handler);
    tornado__signals_unlock();
    return handler != NULL;
}

static void tornado__signals_forget(tornado_ioloop *loop)
{
    tornado__signals_lock();
    for (int i = 0; i < TORNADO__SIGNAL_HANDLERS; i++)
        if (atomic_load(&tornado__ioloop_process.handlers[i].loop) == loop)
            tornado__signal_remove(&tornado__ioloop_process.handlers[i]);
    tornado__signals_unlock();
}

/* ---- what blocks ---- */

TORNADO_API void tornado_ioloop_log_stack(int signum)
{
    int fd = atomic_load_explicit(&tornado__log.fd, memory_order_relaxed);
    (void)signum;
    fd = fd ? fd - 1 : 2;
    ssize_t ignored = write(fd, tornado__ioloop_process.alarm_text, strlen(tornado__ioloop_process.alarm_text));
    (void)ignored;
    tornado__write_stack(fd);
}

/* The alarm may come to any thread, and goes on to the one that is meant. */
static void tornado__alarm_caught(int signum)
{
    int saved = errno;
    if (!tornado__thread_is(tornado__ioloop_process.alarm_thread))
        tornado__thread_signal(tornado__ioloop_process.alarm_thread, signum);
    else if (atomic_load(&tornado__ioloop_process.alarmed))
        tornado__ioloop_process.alarm_action(signum);
    errno = saved;
}

/* Gives the alarm back. */
static void tornado__alarm_forget(tornado_ioloop *loop)
{
    tornado_ioloop *expected = loop;
    loop->may_block = 0;
    if (!atomic_compare_exchange_strong(&tornado__ioloop_process.alarmed, &expected, NULL))
        return;
    struct sigaction ignored;
    memset(&ignored, 0, sizeof ignored);
    ignored.sa_handler = SIG_IGN;
    sigemptyset(&ignored.sa_mask);
    tornado__ioloop_alarm(0);
    sigaction(SIGALRM, &ignored, NULL); /* drops one that has not come yet: it would end the process */
    sigaction(SIGALRM, &tornado__ioloop_process.before_alarm, NULL);
}

TORNADO_API bool tornado_ioloop_set_blocking_signal_threshold(tornado_ioloop *loop, double seconds,
                                                              void (*action)(int signum))
{
    const char *me = "tornado_ioloop_set_blocking_signal_threshold";
    struct sigaction caught;
    tornado_ioloop *nobody = NULL;
    int64_t ns;
    tornado__alarm_forget(loop);
    if (seconds == TORNADO_NONE)
        return true;
    if (!tornado__seconds_to_ns(seconds, &ns) || ns < 1000)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "%s: the time is not valid", me);
    if (loop->closed || !atomic_compare_exchange_strong(&tornado__ioloop_process.alarmed, &nobody, loop))
        return tornado__fail(TORNADO_ERR_STATE, 0, "%s: %s", me,
                             loop->closed ? "the loop is closed" : "another loop has one");
    memset(&caught, 0, sizeof caught);
    caught.sa_handler = action ? tornado__alarm_caught : SIG_DFL;
    caught.sa_flags = SA_RESTART;
    sigemptyset(&caught.sa_mask);
    tornado__prepare_stack(); /* any action may call tornado_ioloop_log_stack */
    snprintf(tornado__ioloop_process.alarm_text, sizeof tornado__ioloop_process.alarm_text,
             "The loop was blocked for %g seconds in\n", seconds);
    tornado__ioloop_process.alarm_action = action;
    tornado__ioloop_process.alarm_thread = tornado__thread_self();
    sigaction(SIGALRM, &caught, &tornado__ioloop_process.before_alarm); /* cannot fail for this signal */
    loop->may_block = ns;
    if (loop->running)
        tornado__ioloop_alarm(ns);
    return true;
}

TORNADO_API bool tornado_ioloop_set_blocking_log_threshold(tornado_ioloop *loop, double seconds)
{
    return tornado_ioloop_set_blocking_signal_threshold(loop, seconds, tornado_ioloop_log_stack);
}

/* ---- life ---- */

TORNADO_API tornado_ioloop *tornado_ioloop_retain(tornado_ioloop *loop)
{
    atomic_fetch_add(&loop->references, 1);
    return loop;
}

/* What other threads may still use until the last of them lets go: the list of remote callbacks, and the pipe. */
TORNADO_API void tornado_ioloop_release(tornado_ioloop *loop)
{
    if (atomic_fetch_sub(&loop->references, 1) > 1)
        return;
    tornado__callback *remote = atomic_load(&loop->remote);
    for (tornado__task *task = remote ? &remote->task : NULL, *next; task; task = next) {
        next = task->next;
        task->run(task, loop); /* it is closed: each only lets go of what it holds */
    }
    for (int i = 0; i < 2; i++)
        if (loop->wake[i] >= 0)
            close(loop->wake[i]);
    TORNADO_FREE(loop);
}


static bool tornado__set_flags(int fd)
{
    int status = fcntl(fd, F_GETFL), descriptor = fcntl(fd, F_GETFD);
    return status >= 0 && descriptor >= 0 && fcntl(fd, F_SETFL, status | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, descriptor | FD_CLOEXEC) == 0;
}

static bool tornado__ioloop_open(tornado_ioloop *loop)
{
    loop->poller_state = loop->poller->open();
    if (!loop->poller_state)
        return tornado__fail(errno == ENOMEM ? TORNADO_ERR_NOMEM : TORNADO_ERR_SYSTEM, errno,
                             "tornado_ioloop_new: the poller %s: %s", loop->poller->name, strerror(errno));
    if (pipe(loop->wake) != 0) {
        loop->wake[0] = loop->wake[1] = -1;
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_ioloop_new: pipe: %s", strerror(errno));
    }
    if (!tornado__set_flags(loop->wake[0]) || !tornado__set_flags(loop->wake[1]))
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_ioloop_new: fcntl: %s", strerror(errno));
    return tornado_ioloop_add_handler(loop, loop->wake[0], tornado__ioloop_collect, loop, TORNADO_IOLOOP_READ);
}

static void tornado__ioloop_free_resources(tornado_ioloop *loop)
{
    loop->closed = true;
    atomic_store(&loop->is_closed, 1);
    tornado__ioloop_run_queue(loop, &loop->batch); /* closed: each only lets go of what it holds */
    tornado__ioloop_run_queue(loop, &loop->tasks);
    tornado__ioloop_run_queue(loop, &loop->before_wait);
    if (loop->coroutines) {
        loop->unwinding = true;
        loop->coroutines->unwind(loop);
        loop->unwinding = false;
        tornado__ioloop_run_queue(loop, &loop->before_wait);
    }
    while (!tornado__link_empty(&loop->compounds)) {
        tornado__compound *compound = TORNADO__CONTAINER(loop->compounds.next, tornado__compound, link);
        tornado__link_remove(&compound->link);
        compound->let_go(compound);
    }
    while (loop->attachments) {
        tornado__attachment *attachment = loop->attachments;
        loop->attachments = attachment->next;
        attachment->free(attachment);
    }
    while (loop->free_callbacks) {
        tornado__callback *node = loop->free_callbacks;
        loop->free_callbacks =
            node->task.next ? TORNADO__CONTAINER(node->task.next, tornado__callback, task) : NULL;
        TORNADO_FREE(node);
    }
    tornado__timers_return(loop);
    while (loop->heap_count) {
        tornado__timer *timer = loop->heap[--loop->heap_count].timer;
        timer->place = 0; /* what outlives the loop may still clear its timer */
        if (timer->fires_at_close)
            timer->fire(timer, loop);
        else if (timer->fire == tornado__user_timer_fire)
            tornado_stack_context_release(TORNADO__CONTAINER(timer, tornado__user_timer, timer)->states);
    }
    for (int i = 0; i < loop->timer_chunks_count; i++)
        TORNADO_FREE(loop->timer_chunks[i]);
    loop->timer_chunks_count = 0;
    loop->free_timers = NULL;
    TORNADO_FREE(loop->timer_chunks);
    TORNADO_FREE(loop->heap);
    TORNADO_FREE(loop->aside);
    loop->heap = NULL;
    loop->heap_capacity = 0;
    TORNADO_FREE(loop->fds);
    TORNADO_FREE(loop->scratch);
    loop->fds = NULL;
    loop->fds_capacity = 0;
    loop->scratch = NULL;
    tornado__pool_clear(&loop->blocks);
    tornado__pool_clear(&loop->chunks);
    loop->blocks.limit = loop->chunks.limit = 0; /* what comes back late is freed */
    if (loop->poller_state)
        loop->poller->close(loop->poller_state);
}

/* Whether this thread has a loop that was not closed, by whichever thread; or that is being closed right now. */
static bool tornado__current_usable(void)
{
    tornado_ioloop *loop = tornado__current_loop;
    return loop && (!atomic_load_explicit(&loop->is_closed, memory_order_relaxed) || loop->unwinding);
}

TORNADO_API tornado_ioloop *tornado_ioloop_new(const tornado_ioloop_options *options)
{
    static const tornado_ioloop_options defaults;
    const tornado_ioloop_options *o = options ? options : &defaults;
    const tornado_poller *poller = o->custom ? o->custom : NULL;
    if (!poller && o->poller)
        poller = tornado__poller_named(o->poller);
    else if (!poller && !(poller = atomic_load(&tornado__ioloop_process.poller)))
        poller = tornado__poller_named(TORNADO_POLLER);
    if (!poller)
        return NULL;
    tornado_ioloop *loop = TORNADO_MALLOC(sizeof *loop);
    if (!loop) {
        tornado__nomem();
        return NULL;
    }
    memset(loop, 0, sizeof *loop);
    loop->poller = poller;
    loop->blocks.block_size = TORNADO__BLOCK_SIZE;
    loop->blocks.limit = 256;
    loop->chunks.block_size = 16384 - 16;
    loop->chunks.limit = 64;
    loop->wake[0] = loop->wake[1] = -1;
    loop->now = tornado__now_ns();
    atomic_init(&loop->references, 1);
    loop->holds = 1;
    tornado__link_init(&loop->services);
    tornado__link_init(&loop->compounds);
    loop->newcomers = -1;
    loop->handle_callback_exception = o->handle_callback_exception;
    if (!tornado__ioloop_open(loop)) {
        tornado__ioloop_free_resources(loop);
        tornado__ioloop_let_go(loop);
        return NULL;
    }
    loop->stack_size = o->stack_size ? o->stack_size : TORNADO_STACK_SIZE;
    loop->max_coroutines = o->max_coroutines > 0 ? o->max_coroutines : TORNADO_MAX_COROUTINES;
    atomic_fetch_add(&tornado__ioloop_process.open, 1);
    if (!tornado__current_usable())
        tornado_ioloop_make_current(loop);
    return loop;
}

TORNADO_API tornado_ioloop *tornado_ioloop_current(void)
{
    if (TORNADO__UNLIKELY(!tornado__current_usable()))
        return tornado_ioloop_new(NULL);
    return tornado__current_loop;
}

/* Puts a loop, or NULL, in the place of another: a reference moves in, and one out. */
static bool tornado__instance_replace(tornado_ioloop *before, tornado_ioloop *loop)
{
    if (loop)
        tornado_ioloop_retain(loop);
    bool replaced = atomic_compare_exchange_strong(&tornado__ioloop_process.instance, &before, loop);
    tornado_ioloop *over = replaced ? before : loop;
    if (over)
        tornado_ioloop_release(over);
    return replaced;
}

TORNADO_API tornado_ioloop *tornado_ioloop_instance(void)
{
    tornado_ioloop *loop = atomic_load(&tornado__ioloop_process.instance);
    while (!loop && (loop = tornado_ioloop_current()) != NULL && !tornado__instance_replace(NULL, loop))
        loop = atomic_load(&tornado__ioloop_process.instance);
    return loop;
}

TORNADO_API void tornado_ioloop_install(tornado_ioloop *loop)
{
    while (!tornado__instance_replace(atomic_load(&tornado__ioloop_process.instance), loop)) {
    }
}

TORNADO_API void tornado_ioloop_clear_instance(void)
{
    tornado_ioloop_install(NULL);
}

TORNADO_API bool tornado_ioloop_initialized(void)
{
    return atomic_load(&tornado__ioloop_process.instance) != NULL;
}

TORNADO_API bool tornado_ioloop_close(tornado_ioloop *loop, bool all_fds)
{
    if (loop->running)
        return tornado__fail(TORNADO_ERR_STATE, 0, "tornado_ioloop_close: the loop is running; stop it first");
    if (loop->closed)
        return true;
    tornado__signals_forget(loop);
    tornado__alarm_forget(loop);
    tornado__instance_replace(loop, NULL);
    atomic_fetch_sub(&tornado__ioloop_process.open, 1);
    for (int fd = 0; all_fds && fd < loop->fds_capacity; fd++)
        if (loop->fds[fd].handler && fd != loop->wake[0]) {
            tornado_ioloop_remove_handler(loop, fd);
            close(fd);
        }
    loop->fds_closed = all_fds;
    tornado_ioloop *before = tornado__current_swap(tornado_ioloop_retain(loop)); /* for coroutines that unwind */
    tornado__ioloop_free_resources(loop);
    tornado__current_set(before);
    if (before == loop)
        tornado_ioloop_clear_current();
    tornado__ioloop_let_go(loop);
    return true;
}

TORNADO_API const char *tornado_ioloop_poller(const tornado_ioloop *loop)
{
    return loop->poller->name;
}

TORNADO_API double tornado_ioloop_time(const tornado_ioloop *loop)
{
    (void)loop;
    return tornado_monotonic();
}

/* ---- periodic callbacks ---- */

struct tornado_periodic_callback {
    tornado_ioloop *loop; /* held while it runs */
    tornado_timeout timeout;
    tornado_callback callback;
    void *arg;
    int64_t interval, next; /* ns */
    double jitter;
    bool calling, freed;
};

TORNADO_API tornado_periodic_callback *tornado_periodic_callback_new(tornado_callback callback, void *arg,
                                                                     double callback_time, double jitter)
{
    int64_t interval;
    if (!tornado__seconds_to_ns(callback_time / 1000, &interval) || interval <= 0 ||
        !(jitter >= 0 && jitter <= 1)) {
        tornado__fail(TORNADO_ERR_INVALID, 0,
                      "tornado_periodic_callback_new: callback_time must be positive, jitter from 0 to 1");
        return NULL;
    }
    tornado_periodic_callback *periodic = TORNADO_MALLOC(sizeof *periodic);
    if (!periodic) {
        tornado__nomem();
        return NULL;
    }
    memset(periodic, 0, sizeof *periodic);
    periodic->callback = callback;
    periodic->arg = arg;
    periodic->interval = interval < INT64_MAX / 4 ? interval : INT64_MAX / 4;
    periodic->jitter = jitter;
    return periodic;
}

static void tornado__periodic_run(void *arg);

/* The next slot after `now`: missed ones are skipped, and without jitter the phase is kept. */
static bool tornado__periodic_schedule(tornado_periodic_callback *periodic, int64_t now)
{
    int64_t interval = periodic->interval;
    if (periodic->jitter > 0) {
        uint32_t random = 0;
        tornado_random_bytes(&random, sizeof random);
        interval += (int64_t)((double)interval * periodic->jitter * ((double)random / 4294967296.0 - 0.5));
    }
    if (periodic->next <= now)
        periodic->next = tornado__add_ns(periodic->next, ((now - periodic->next) / interval + 1) * interval);
    periodic->timeout =
        tornado__ioloop_set_timeout(periodic->loop, periodic->next, tornado__periodic_run, periodic);
    return periodic->timeout != 0;
}

static void tornado__periodic_call(void *arg)
{
    tornado_periodic_callback *periodic = arg;
    periodic->callback(periodic->arg);
}

static void tornado__periodic_run(void *arg)
{
    tornado_periodic_callback *periodic = arg;
    periodic->timeout = 0;
    periodic->calling = true;
    const tornado_error *raised = tornado_try(tornado__periodic_call, periodic);
    tornado_error error;
    if (raised)
        error = *raised;
    periodic->calling = false;
    if (periodic->freed)
        TORNADO_FREE(periodic);
    else if (periodic->loop && !periodic->timeout && !tornado__periodic_schedule(periodic, tornado__now_ns()))
        tornado_gen_log(TORNADO_LOG_ERROR, "a periodic callback ends: %s", tornado_last_error()->message);
    if (raised) /* last: whom it is told may free the periodic callback */
        tornado__ioloop_raised(tornado__current_loop, &error, "Exception in periodic callback");
}

TORNADO_API bool tornado_periodic_callback_start(tornado_periodic_callback *periodic)
{
    if (periodic->loop)
        return true;
    tornado_ioloop *loop = tornado_ioloop_current();
    if (!loop)
        return false;
    periodic->loop = tornado_ioloop_retain(loop);
    periodic->next = tornado__now_ns();
    if (tornado__periodic_schedule(periodic, periodic->next))
        return true;
    tornado_periodic_callback_stop(periodic);
    return false;
}

TORNADO_API void tornado_periodic_callback_stop(tornado_periodic_callback *periodic)
{
    if (!periodic->loop)
        return;
    tornado_ioloop_remove_timeout(periodic->loop, periodic->timeout);
    tornado_ioloop_release(periodic->loop);
    periodic->loop = NULL;
    periodic->timeout = 0;
}

TORNADO_API bool tornado_periodic_callback_is_running(const tornado_periodic_callback *periodic)
{
    return periodic->loop != NULL;
}

TORNADO_API void tornado_periodic_callback_free(tornado_periodic_callback *periodic)
{
    if (!periodic)
        return;
    tornado_periodic_callback_stop(periodic);
    if (periodic->calling)
        periodic->freed = true;
    else
        TORNADO_FREE(periodic);
}

/* ---- orderly end ---- */

static size_t tornado__ioloop_busy(const tornado_ioloop *loop)
{
    size_t busy = 0;
    for (tornado__link *link = loop->services.next; link != &loop->services; link = link->next) {
        tornado__service *service = TORNADO__CONTAINER(link, tornado__service, link);
        busy += service->busy(service);
    }
    return busy;
}

static void tornado__shutdown_end(tornado_ioloop *loop)
{
    tornado__timer_clear(loop, &loop->shutdown_timer);
    loop->shutdown_phase = 0;
    loop->stopping = true;
}

static void tornado__shutdown_second_phase(tornado_ioloop *loop)
{
    loop->shutdown_phase = 2;
    if (loop->coroutines)
        loop->coroutines->cancel(loop);
    if (!tornado__timer_set(loop, &loop->shutdown_timer, tornado__now_ns() + 1000000000))
        tornado__shutdown_end(loop);
}

static void tornado__shutdown_late(tornado__timer *timer, tornado_ioloop *loop)
{
    (void)timer;
    if (loop->shutdown_phase == 1) {
        tornado_gen_log(TORNADO_LOG_WARNING, "shutdown: the time is up, cancelling what still runs");
        tornado__shutdown_second_phase(loop);
    } else {
        loop->coroutines->name(loop);
        tornado__shutdown_end(loop);
    }
}

static void tornado__ioloop_check_shutdown(tornado_ioloop *loop)
{
    bool coroutines = loop->coroutines && loop->coroutines->alive(loop) > 0;
    if (!coroutines && (loop->shutdown_phase == 2 || tornado__ioloop_busy(loop) == 0))
        tornado__shutdown_end(loop);
}

TORNADO_API void tornado_ioloop_shutdown(tornado_ioloop *loop, double grace)
{
    int64_t ns = 0;
    if (loop->shutdown_phase) {
        tornado__shutdown_end(loop);
        return;
    }
    tornado__seconds_to_ns(grace, &ns);
    loop->shutdown_phase = 1;
    loop->shutdown_timer.fire = tornado__shutdown_late;
    for (tornado__link *link = loop->services.next, *next; link != &loop->services; link = next) {
        next = link->next;
        tornado__service *service = TORNADO__CONTAINER(link, tornado__service, link);
        service->stop(service);
    }
    if (!tornado__timer_set(loop, &loop->shutdown_timer, tornado__add_ns(tornado__now_ns(), ns > 0 ? ns : 0)))
        tornado__shutdown_end(loop);
}

static void tornado__shutdown_signalled(void *arg)
{
    tornado_ioloop *loop = arg;
    tornado_gen_log(TORNADO_LOG_INFO, loop->shutdown_phase ? "stopping at once" : "shutting down");
    tornado_ioloop_shutdown(loop, loop->shutdown_grace);
}

TORNADO_API bool tornado_ioloop_shutdown_on_signals(tornado_ioloop *loop, double grace)
{
    int64_t ns;
    if (!tornado__seconds_to_ns(grace, &ns) || ns < 0)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_ioloop_shutdown_on_signals: the time is not valid");
    loop->shutdown_grace = grace;
    /* if it is the second time */
    tornado_ioloop_remove_signal_handler(loop, SIGINT, tornado__shutdown_signalled, loop);
    tornado_ioloop_remove_signal_handler(loop, SIGTERM, tornado__shutdown_signalled, loop);
    return tornado_ioloop_add_signal_handler(loop, SIGINT, tornado__shutdown_signalled, loop) &&
           tornado_ioloop_add_signal_handler(loop, SIGTERM, tornado__shutdown_signalled, loop);
}

/*============================================================================
 * section: future (private)
 * A counted result and those who wait for it.
 *
 * Waiters are intrusive; resolving schedules the task of each, in order. Sections above embed a future in a struct
 * of their own by giving tornado__future_alloc a size and a finalizer. Two futures are immortal and never written
 * to: the one that stands for "out of memory", and the one for what was done at once and has no result.
 *============================================================================*/

typedef struct tornado__waiter {
    tornado__task task;
    struct tornado__waiter *next;
    /* NULL: whoever waits holds the future. Else the future is held for the task once it is done, and this is
       called when it goes without ever being done. */
    void (*drop)(struct tornado__waiter *waiter);
} tornado__waiter;

enum { TORNADO__PENDING, TORNADO__SUCCEEDED, TORNADO__FAILED };
enum { TORNADO__POINTER, TORNADO__INTEGER, TORNADO__BYTES };

struct tornado_future {
    unsigned references;
    unsigned char state, kind;
    bool immortal, observed, visited;
    bool owns;       /* the result's memory goes with the future */
    bool unattended; /* what resolves it holds no reference: a timer */
    bool held_in_use;
    bool taken;      /* its success has reached somebody */
    bool owns_error; /* else the error is static, or its source's */
    tornado_ioloop *loop;
    union {
        void *pointer;
        int64_t integer;
        tornado_bytes bytes;
    } value;
    tornado_callback destroy;
    const tornado_error *error;
    struct tornado_future *source; /* whose outcome this shares, held; or NULL */
    tornado__waiter *waiters, *last_waiter;
    tornado__held held;
    tornado_arena *arena; /* a coroutine's, in which its result may be */
    struct tornado__coroutine *coroutine;
    void (*finalize)(struct tornado_future *future);
};

static const tornado_error tornado__error_nomem = {TORNADO_ERR_NOMEM, ENOMEM, 0, "out of memory"};
static const tornado_error tornado__error_cancelled = {TORNADO_ERR_CANCELLED, ECANCELED, 0,
                                                       "the coroutine was cancelled"};
static tornado_future tornado__future_nomem = {
    .state = TORNADO__FAILED, .immortal = true, .observed = true, .error = &tornado__error_nomem};

static tornado_future tornado__future_done = {.state = TORNADO__SUCCEEDED, .immortal = true};

/* A pending future at the start of `size` bytes, of which the rest is zero; NULL when memory is short. */
static tornado_future *tornado__future_alloc(tornado_ioloop *loop, size_t size, void (*finalize)(tornado_future *))
{
    tornado_future *future = TORNADO_MALLOC(size);
    if (!future) {
        tornado__nomem();
        return NULL;
    }
    memset(future, 0, size);
    future->references = 1;
    future->loop = loop;
    tornado__ioloop_hold(loop);
    future->finalize = finalize;
    return future;
}

TORNADO_API tornado_future *tornado_future_new(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_future *future = loop ? tornado__future_alloc(loop, sizeof *future, NULL) : NULL;
    return future ? future : &tornado__future_nomem;
}

TORNADO_API tornado_future *tornado_future_retain(tornado_future *future)
{
    if (!future->immortal)
        future->references++;
    return future;
}

/* Logs a failure that nobody asked about. */
static void tornado__failure_missed(const tornado_error *error)
{
    if (error->code != TORNADO_ERR_CANCELLED && error->code != TORNADO_ERR_CLOSED)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "Future exception was never retrieved");
}

static void tornado__future_free(tornado_future *future)
{
    tornado_ioloop *loop = future->loop;
    for (tornado__waiter *waiter = future->waiters, *next; waiter; waiter = next) {
        next = waiter->next;
        waiter->drop(waiter);
    }
    if (future->state == TORNADO__FAILED && !future->observed)
        tornado__failure_missed(future->error);
    if (future->finalize)
        future->finalize(future);
    if (future->destroy)
        future->destroy(future->value.pointer);
    tornado_arena_free(future->arena);
    if (future->owns_error)
        TORNADO_FREE((void *)(uintptr_t)future->error);
    if (future->source) {
        future->source->taken |= future->taken;
        tornado_future_release(future->source);
    }
    TORNADO_FREE(future);
    tornado__ioloop_let_go(loop);
}

TORNADO_API void tornado_future_release(tornado_future *future)
{
    if (future && !future->immortal && --future->references == 0)
        tornado__future_free(future);
}

static void tornado__future_resolve(tornado_future *future, int state)
{
    tornado__waiter *waiter = future->waiters;
    future->state = (unsigned char)state;
    future->waiters = NULL;
    for (tornado__waiter *next; waiter; waiter = next) {
        next = waiter->next;
        future->references += waiter->drop != NULL;
        tornado__ioloop_schedule(future->loop, &waiter->task);
    }
}

/* Whether a future may still be resolved. */
static bool tornado__future_open(tornado_future *future)
{
    if (future->state == TORNADO__PENDING)
        return true;
    if (!future->immortal) {
        tornado__fail(TORNADO_ERR_STATE, 0, "a future was resolved twice");
        tornado_app_log(TORNADO_LOG_ERROR, "%s", tornado_last_error()->message);
    }
    return false;
}

TORNADO_API bool tornado_future_set_result(tornado_future *future, void *result, tornado_callback destroy)
{
    if (!tornado__future_open(future)) {
        if (destroy)
            destroy(result);
        return false;
    }
    future->value.pointer = result;
    future->destroy = destroy;
    future->owns = destroy != NULL;
    tornado__future_resolve(future, TORNADO__SUCCEEDED);
    return true;
}

TORNADO_API bool tornado_future_set_integer(tornado_future *future, int64_t result)
{
    if (!tornado__future_open(future))
        return false;
    future->kind = TORNADO__INTEGER;
    future->value.integer = result;
    tornado__future_resolve(future, TORNADO__SUCCEEDED);
    return true;
}

TORNADO_API bool tornado_future_set_bytes(tornado_future *future, tornado_bytes result)
{
    if (!tornado__future_open(future))
        return false;
    future->kind = TORNADO__BYTES;
    future->value.bytes = result;
    tornado__future_resolve(future, TORNADO__SUCCEEDED);
    return true;
}

TORNADO_API bool tornado_future_set_error(tornado_future *future, const tornado_error *error)
{
    if (!tornado__future_open(future))
        return false;
    tornado_error *copy = TORNADO_MALLOC(sizeof *copy);
    if (copy)
        *copy = *error;
    future->owns_error = copy != NULL;
    future->error = copy                                   ? copy
                    : error->code == TORNADO_ERR_CANCELLED ? &tornado__error_cancelled
                                                           : &tornado__error_nomem;
    tornado__future_resolve(future, TORNADO__FAILED);
    return true;
}

/* Resolves one that is pending with an error that outlives it. */
static void tornado__future_fail(tornado_future *future, const tornado_error *lasting)
{
    future->error = lasting;
    tornado__future_resolve(future, TORNADO__FAILED);
}

static void tornado__future_take(tornado_future *future)
{
    if (!future->immortal)
        future->taken = true;
}

/* Resolves one that is pending as another was, whose result it shares. */
static void tornado__future_follow(tornado_future *future, tornado_future *source)
{
    if (!source->immortal)
        future->source = tornado_future_retain(source);
    if (source->state == TORNADO__FAILED) {
        tornado__future_fail(future, tornado_future_error(source));
    } else {
        future->value = source->value;
        future->kind = source->kind;
        future->owns = source->owns;
        tornado__future_resolve(future, TORNADO__SUCCEEDED);
    }
}

TORNADO_API tornado_future *tornado_future_resolved(void *result)
{
    tornado_future *future = tornado_future_new();
    if (!future->immortal)
        tornado_future_set_result(future, result, NULL);
    return future;
}

TORNADO_API tornado_future *tornado_future_failed(const tornado_error *error)
{
    tornado_error copy = *error; /* it may be the last error, which changes */
    tornado_future *future = tornado_future_new();
    if (!future->immortal)
        tornado_future_set_error(future, &copy);
    return future;
}

TORNADO_API bool tornado_future_done(const tornado_future *future)
{
    return future->state != TORNADO__PENDING;
}

static bool tornado__future_has(const tornado_future *future, int kind)
{
    return future->state == TORNADO__SUCCEEDED && future->kind == kind;
}

TORNADO_API void *tornado_future_result(const tornado_future *future)
{
    return tornado__future_has(future, TORNADO__POINTER) ? future->value.pointer : NULL;
}

TORNADO_API int64_t tornado_future_integer(const tornado_future *future)
{
    return tornado__future_has(future, TORNADO__INTEGER) ? future->value.integer : 0;
}

TORNADO_API tornado_bytes tornado_future_bytes(const tornado_future *future)
{
    tornado_bytes none = {NULL, 0};
    return tornado__future_has(future, TORNADO__BYTES) ? future->value.bytes : none;
}

TORNADO_API const tornado_error *tornado_future_error(tornado_future *future)
{
    if (future->state != TORNADO__FAILED)
        return NULL;
    if (!future->immortal)
        future->observed = true;
    return future->error;
}

/* Has the waiter's task scheduled on `loop` when the future is done. */
static void tornado__future_wait(tornado_future *future, tornado_ioloop *loop, tornado__waiter *waiter)
{
    waiter->next = NULL;
    if (future->state != TORNADO__PENDING) {
        if (waiter->drop)
            tornado_future_retain(future);
        tornado__ioloop_schedule(loop, &waiter->task);
    } else if (future->waiters) {
        future->last_waiter->next = waiter;
        future->last_waiter = waiter;
    } else {
        future->waiters = future->last_waiter = waiter;
    }
}

/* Takes a waiter back; does nothing when it has been scheduled already. */
static void tornado__future_unwait(tornado_future *future, tornado__waiter *waiter)
{
    for (tornado__waiter *at = future->waiters, *before = NULL; at; before = at, at = at->next)
        if (at == waiter) {
            if (before)
                before->next = waiter->next;
            else
                future->waiters = waiter->next;
            if (future->last_waiter == waiter)
                future->last_waiter = before;
            return;
        }
}

typedef struct tornado__done_callback {
    tornado__waiter waiter;
    tornado__held held;
    tornado_future *future; /* held once it is done */
    tornado_future_callback callback;
    void *arg;
    tornado_stack_context *states;
} tornado__done_callback;

static void tornado__done_callback_let_go(tornado__held *held)
{
    tornado__done_callback *node = TORNADO__CONTAINER(held, tornado__done_callback, held);
    tornado_future_release(node->future);
    tornado_stack_context_release(node->states);
    TORNADO_FREE(node);
}

static void tornado__done_callback_run(tornado__task *task, tornado_ioloop *loop)
{
    tornado__done_callback *node = TORNADO__CONTAINER(task, tornado__done_callback, waiter.task);
    tornado_scope *scope = loop->execution.scope;
    if (loop->closed || !scope) {
        tornado__done_callback_let_go(&node->held);
        return;
    }
    node->held.next = scope->held; /* goes when the callback's scope ends, so also when it raises */
    scope->held = &node->held;
    loop->execution.states = node->states;
    node->states = NULL;
    tornado__future_take(node->future);
    node->callback(node->future, node->arg);
}

static void tornado__done_callback_drop(tornado__waiter *waiter)
{
    tornado__done_callback *node = TORNADO__CONTAINER(waiter, tornado__done_callback, waiter);
    tornado_stack_context_release(node->states);
    TORNADO_FREE(node);
}

TORNADO_API bool tornado_ioloop_add_future(tornado_ioloop *loop, tornado_future *future,
                                           tornado_future_callback callback, void *arg)
{
    if (loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "tornado_ioloop_add_future: the loop is closed");
    tornado__done_callback *node = TORNADO_MALLOC(sizeof *node);
    if (!node)
        return tornado__nomem();
    node->waiter.task.run = tornado__done_callback_run;
    node->waiter.drop = tornado__done_callback_drop;
    node->held.release = tornado__done_callback_let_go;
    node->future = future;
    if (future->unattended && future->state == TORNADO__PENDING) {
        tornado_future_retain(future);
        node->waiter.drop = NULL;
    }
    node->callback = callback;
    node->arg = arg;
    node->states = tornado__context_capture();
    tornado__future_wait(future, loop, &node->waiter);
    return true;
}

TORNADO_API bool tornado_future_add_done_callback(tornado_future *future, tornado_future_callback callback,
                                                  void *arg)
{
    tornado_ioloop *loop = future->loop ? future->loop : tornado_ioloop_current();
    return loop && tornado_ioloop_add_future(loop, future, callback, arg);
}

/*============================================================================
 * section: coroutine (private)
 * Stacks in slabs, the coroutine at the top of its stack, waiting.
 *
 *   low  [guard page][ ... the stack grows down ... ][tornado__coroutine] high
 *
 * A slab is one mapping of many stacks; free ones are chained and reused last in, first out, while they are warm;
 * those beyond a thousand give their memory back.
 * Tops are staggered by cache lines, or every coroutine's frame would fall into the same sets of the cache. A guard
 * is a lightweight one (MADV_GUARD_INSTALL) where the kernel has it; else a PROT_NONE page, which costs mappings,
 * of which the kernel has 65,530; beyond that a canary at the low end, checked at each switch.
 *
 * A coroutine is resumed only by the loop's tasks, or started by sections above when no user code is on the stack;
 * it always comes back to whoever resumed it.
 *============================================================================*/

enum { TORNADO__CO_NEW, TORNADO__CO_SUSPENDED, TORNADO__CO_RUNNING, TORNADO__CO_DONE };

#define TORNADO__CANARY        0x746f726e61646f21u
#define TORNADO__GUARD_MAX     25000 /* PROT_NONE guards in a process: each costs two mappings */
#define TORNADO__READY_WAITS   64   /* that were ready at once, until a coroutine lets others run */
#define TORNADO__LAST_TURNS    16   /* for a coroutine to end in, when its loop is closed */
#define TORNADO__WARM_STACKS   1024 /* free ones that keep their memory */
#define TORNADO__MADV_GUARD    102 /* MADV_GUARD_INSTALL, Linux 6.13 */
#define TORNADO__MADV_NONE     (-1)

typedef struct tornado__coroutine {
    tornado__execution execution;
    tornado__boundary base;
#ifndef TORNADO_NO_COROUTINES
    tornado__context self, caller;
#endif
    tornado__stack stack;
    tornado_ioloop *loop;
    tornado__waiter waiter;
    tornado_future *waiting; /* for what; a reference of its own */
    tornado_future *future;  /* of its result; may be NULL */
    tornado_arena *arena;
    size_t mapped;      /* bytes of a mapping that is its alone; 0: in a slab */
    bool arena_is_lent; /* it is somebody else's: a request's */
    bool cancelled, failed, canary;
    unsigned char state;
    unsigned ready_waits;
    tornado_coroutine_fn fn;
    void *arg, *result;
    const char *name;
    tornado__link link; /* in the loop's ring of those alive */
    /* Its scope has ended, its stack is about to be reused. NULL: nothing. */
    void (*on_done)(struct tornado__coroutine *co);
    void *owner; /* on_done's */
    /* Called on the unwound stack with what nobody caught in execution.raised; may wait. NULL: the coroutine fails.
       */
    void (*recover)(struct tornado__coroutine *co);
    struct tornado__coroutine *next_free;
    void *fake_stack; /* AddressSanitizer's */
    const void *caller_low;
    size_t caller_size;
} tornado__coroutine;

typedef struct tornado__slab {
    struct tornado__slab *next;
    char *memory;
    size_t size, used; /* used: bytes whose stacks were made; the rest was never touched */
} tornado__slab;

typedef struct tornado__stacks {
    tornado__attachment attachment;
    tornado_ioloop *loop;
    tornado__link alive;
    tornado__coroutine *free, *cold; /* cold: have given their memory back */
    tornado__slab *slabs;
    size_t stack_size;
    size_t count, warm, made; /* alive; in `free`; in all */
} tornado__stacks;

/* ---- stacks; without coroutines, a struct for each call and no stack below it ---- */

#ifdef TORNADO_NO_COROUTINES

static char *tornado__stack_map(size_t size)
{
    char *memory = TORNADO_MALLOC(size);
    if (!memory)
        tornado__nomem();
    return memory;
}

static void tornado__stack_unmap(char *memory, size_t size)
{
    (void)size;
    TORNADO_FREE(memory);
}

static tornado__coroutine *tornado__stack_make(char *low, char *high, size_t stagger)
{
    tornado__coroutine *co = (tornado__coroutine *)(void *)low;
    (void)high;
    (void)stagger;
    co->mapped = 0;
    co->canary = false;
    return co;
}

static size_t tornado__stack_pages(size_t size)
{
    (void)size;
    return (sizeof(tornado__coroutine) + 63) & ~(size_t)63;
}

static bool tornado__stack_release(tornado__coroutine *co)
{
    bool own = co->mapped > 0;
    if (own)
        TORNADO_FREE(co);
    return own;
}

#else

static atomic_int tornado__guard_pages; /* PROT_NONE guards of the process so far */

/* Guards the low end of a stack. False: it must have a canary instead. */
static bool tornado__stack_guard(char *low, size_t page)
{
#ifdef __linux__
    /* Emulators take any advice and do nothing: believe only those that refuse one that does not exist. */
    if (madvise(low, page, TORNADO__MADV_GUARD) == 0 && madvise(low, page, TORNADO__MADV_NONE) != 0)
        return true;
#endif
    if (atomic_fetch_add(&tornado__guard_pages, 1) < TORNADO__GUARD_MAX && mprotect(low, page, PROT_NONE) == 0)
        return true;
    atomic_fetch_sub(&tornado__guard_pages, 1);
    return false;
}

/* Memory for stacks, or NULL. */
static char *tornado__stack_map(size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
#ifdef MAP_STACK
    flags |= MAP_STACK;
#endif
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        tornado__fail(TORNADO_ERR_NOMEM, errno, "no memory for more coroutine stacks: %s", strerror(errno));
        return NULL;
    }
#ifdef MADV_NOHUGEPAGE
    madvise(memory, size, MADV_NOHUGEPAGE); /* one touched page must stay one page */
#endif
    return memory;
}

static void tornado__stack_unmap(char *memory, size_t size)
{
    munmap(memory, size);
}

/* Guards the stack between two places and puts its coroutine at its top, `stagger` bytes below the end. */
static tornado__coroutine *tornado__stack_make(char *low, char *high, size_t stagger)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    tornado__coroutine *co = (tornado__coroutine *)(void *)(high - stagger - ((sizeof *co + 63) & ~(size_t)63));
    co->mapped = 0;
    co->canary = !tornado__stack_guard(low, page);
    co->stack.low = co->canary ? low : low + page;
    co->stack.size = (size_t)((char *)co - co->stack.low);
    if (co->canary)
        *(volatile uint64_t *)(void *)low = TORNADO__CANARY;
    tornado__valgrind_stack(co->stack.low, high);
    return co;
}

/* The size of a stack in whole pages: four at least, of which one is the guard. */
static size_t tornado__stack_pages(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size < 4 * page)
        return 4 * page;
    return size < SIZE_MAX - page ? (size + page - 1) / page * page : size / page * page;
}

/* Gives a stack's memory back: all of one that is not the pool's (true), of others all but the page that the
   coroutine itself is in. */
static bool tornado__stack_release(tornado__coroutine *co)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), low = (uintptr_t)co->stack.low + (co->canary ? page : 0);
    if (co->mapped) {
        munmap(co->stack.low - (co->canary ? 0 : page), co->mapped);
        return true;
    }
    uintptr_t high = (uintptr_t)co / page * page;
    if (high > low)
        madvise((void *)low, high - low, MADV_DONTNEED);
    return false;
}

#endif

static void tornado__stacks_free(tornado__attachment *attachment)
{
    tornado__stacks *stacks = TORNADO__CONTAINER(attachment, tornado__stacks, attachment);
    for (tornado__slab *slab = stacks->slabs, *next; slab; slab = next) {
        next = slab->next;
        tornado__stack_unmap(slab->memory, slab->size);
        TORNADO_FREE(slab);
    }
    stacks->loop->stacks = NULL;
    TORNADO_FREE(stacks);
}

/* Slabs double, so that a hundred thousand stacks are a few dozen mappings. */
static bool tornado__slab_new(tornado__stacks *stacks)
{
    size_t count = stacks->made < 16 ? 16 : stacks->made,
           room = (size_t)stacks->loop->max_coroutines - stacks->made;
    if (count > 4096)
        count = 4096;
    if (count > room)
        count = room;
    if (count > SIZE_MAX / 2 / stacks->stack_size)
        return tornado__fail(TORNADO_ERR_NOMEM, ENOMEM, "no memory for more coroutine stacks: they are too large");
    tornado__slab *slab = TORNADO_MALLOC(sizeof *slab);
    if (!slab)
        return tornado__nomem();
    slab->used = 0;
    slab->size = count * stacks->stack_size;
    slab->memory = tornado__stack_map(slab->size);
    if (!slab->memory) {
        TORNADO_FREE(slab);
        return false;
    }
    slab->next = stacks->slabs;
    stacks->slabs = slab;
    return true;
}

/* Makes the next stack of the newest slab, which has room: from its top down, so that one without a guard overflows
   into another rather than into nothing. */
static tornado__coroutine *tornado__stack_new(tornado__stacks *stacks)
{
    tornado__slab *slab = stacks->slabs;
    char *high = slab->memory + slab->size - slab->used;
    slab->used += stacks->stack_size;
    return tornado__stack_make(high - stacks->stack_size, high, stacks->made++ % 16 * 64);
}

TORNADO_API size_t tornado_ioloop_coroutines(const tornado_ioloop *loop)
{
    return loop->stacks ? loop->stacks->count : 0;
}

static void tornado__coroutines_cancel(tornado_ioloop *loop);
static void tornado__coroutines_name(const tornado_ioloop *loop);
static void tornado__coroutines_unwind(tornado_ioloop *loop);

static const tornado__coroutine_hooks tornado__coroutines = {
    .alive = tornado_ioloop_coroutines, .cancel = tornado__coroutines_cancel, .name = tornado__coroutines_name,
    .unwind = tornado__coroutines_unwind};

static tornado__stacks *tornado__stacks_new(tornado_ioloop *loop)
{
    tornado__stacks *stacks = TORNADO_MALLOC(sizeof *stacks);
    if (!stacks) {
        tornado__nomem();
        return NULL;
    }
    memset(stacks, 0, sizeof *stacks);
    stacks->stack_size = tornado__stack_pages(loop->stack_size);
    stacks->loop = loop;
    tornado__link_init(&stacks->alive);
    stacks->attachment.free = tornado__stacks_free;
    stacks->attachment.next = loop->attachments;
    loop->attachments = &stacks->attachment;
    loop->stacks = stacks;
    loop->coroutines = &tornado__coroutines;
    return stacks;
}

/* Has a free stack be there: a cold one, or a new one. */
static TORNADO__COLD tornado__stacks *tornado__stacks_warm(tornado_ioloop *loop)
{
    tornado__stacks *stacks = loop->stacks ? loop->stacks : tornado__stacks_new(loop);
    if (!stacks)
        return NULL;
    tornado__coroutine *co = stacks->cold;
    if (co) {
        stacks->cold = co->next_free;
    } else if (stacks->made >= (size_t)loop->max_coroutines) {
        tornado__fail(TORNADO_ERR_LIMIT, 0, "the limit of %d coroutines is reached", loop->max_coroutines);
        return NULL;
    } else {
        bool room = stacks->slabs && stacks->slabs->used < stacks->slabs->size;
        if (!room && !tornado__slab_new(stacks))
            return NULL;
        co = tornado__stack_new(stacks);
    }
    co->next_free = NULL;
    stacks->free = co;
    stacks->warm = 1;
    return stacks;
}

/* Keeps a stack of the pool among the cold ones, without its memory. */
static TORNADO__COLD void tornado__stack_cool(tornado__stacks *stacks, tornado__coroutine *co)
{
    if (tornado__stack_release(co))
        return;
    co->next_free = stacks->cold;
    stacks->cold = co;
}

static void tornado__coroutine_wake(tornado__task *task, tornado_ioloop *loop);

/* A coroutine that has not started. */
static TORNADO__INLINE tornado__coroutine *tornado__coroutine_init(tornado__coroutine *co, tornado_ioloop *loop,
                                                                   tornado_coroutine_fn fn, void *arg,
                                                                   const char *name)
{
    loop->stacks->count++;
    co->execution.scope = NULL;
    co->execution.coroutine = co;
    co->execution.deferring = 0;
    co->execution.states = NULL;
    co->loop = loop;
    co->waiter.task.run = tornado__coroutine_wake;
    co->waiter.drop = NULL;
    co->waiting = co->future = NULL;
    co->on_done = NULL;
    co->recover = NULL;
    co->arena = NULL;
    co->arena_is_lent = co->cancelled = co->failed = false;
    co->state = TORNADO__CO_NEW;
    co->ready_waits = 0;
    co->fn = fn;
    co->arg = arg;
    co->result = NULL;
    co->name = name;
    tornado__link_append(&loop->stacks->alive, &co->link);
    return co;
}

/* One on a stack of the pool, or NULL: TORNADO_ERR_LIMIT or TORNADO_ERR_NOMEM. */
static TORNADO__INLINE tornado__coroutine *tornado__coroutine_new(tornado_ioloop *loop, tornado_coroutine_fn fn,
                                                                  void *arg, const char *name)
{
    tornado__stacks *stacks = loop->stacks;
    if (TORNADO__UNLIKELY(!stacks || !stacks->free) && !(stacks = tornado__stacks_warm(loop)))
        return NULL;
    tornado__coroutine *co = stacks->free;
    stacks->free = co->next_free;
    stacks->warm--;
    return tornado__coroutine_init(co, loop, fn, arg, name);
}

/* The same on a stack of its own. */
static tornado__coroutine *tornado__coroutine_new_sized(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg,
                                                        const char *name, size_t stack_size)
{
    tornado__stacks *stacks = loop->stacks ? loop->stacks : tornado__stacks_new(loop);
    size_t size = tornado__stack_pages(stack_size);
    if (!stacks)
        return NULL;
    if (stacks->count >= (size_t)loop->max_coroutines) {
        tornado__fail(TORNADO_ERR_LIMIT, 0, "the limit of %d coroutines is reached", loop->max_coroutines);
        return NULL;
    }
    char *memory = tornado__stack_map(size);
    if (!memory)
        return NULL;
    tornado__coroutine *co = tornado__stack_make(memory, memory + size, 0);
    co->mapped = size;
    return tornado__coroutine_init(co, loop, fn, arg, name);
}

static TORNADO__INLINE void tornado__coroutine_free(tornado__coroutine *co)
{
    tornado__stacks *stacks = co->loop->stacks;
    if (co->arena && !co->arena_is_lent)
        tornado_arena_free(co->arena);
    if (TORNADO__UNLIKELY(co->execution.states != NULL))
        tornado__context_drop(&co->execution);
    tornado__link_remove(&co->link);
    stacks->count--;
    if (TORNADO__UNLIKELY(stacks->warm >= TORNADO__WARM_STACKS || co->mapped)) {
        tornado__stack_cool(stacks, co);
        return;
    }
    co->next_free = stacks->free;
    stacks->free = co;
    stacks->warm++;
}

static void tornado__coroutine_body(void *arg)
{
    tornado__coroutine *co = arg;
    co->result = co->fn(co->arg);
    tornado__scope_end(&co->execution, &co->base.scope);
    co->execution.scope = NULL;
}

static void tornado__coroutine_recover(void *arg)
{
    tornado__coroutine *co = arg;
    co->recover(co);
    tornado__scope_end(&co->execution, &co->base.scope);
    co->execution.scope = NULL;
}

#if defined(TORNADO__ASAN) && !defined(TORNADO_NO_COROUTINES)
static void tornado__asan_leave(void **fake_stack, const void *low, size_t size)
{
    __sanitizer_start_switch_fiber(fake_stack, low, size);
}
static void tornado__asan_arrive(void *fake_stack, const void **low, size_t *size)
{
    __sanitizer_finish_switch_fiber(fake_stack, low, size);
}
#else
#define tornado__asan_leave(fake_stack, low, size)  ((void)0)
#define tornado__asan_arrive(fake_stack, low, size) ((void)0)
#endif

/* The first function on a stack. Its boundary is where what nobody caught ends. */
static void tornado__coroutine_entry(void *arg)
{
    tornado__coroutine *co = arg;
    tornado__asan_arrive(NULL, &co->caller_low, &co->caller_size);
    co->failed = tornado__protect(&co->execution, &co->base, tornado__coroutine_body, co);
    if (TORNADO__UNLIKELY(co->failed && co->recover))
        co->failed = tornado__protect(&co->execution, &co->base, tornado__coroutine_recover, co);
    co->state = TORNADO__CO_DONE;
    tornado__asan_leave(NULL, co->caller_low, co->caller_size);
}

static TORNADO__COLD TORNADO_NORETURN void tornado__stack_overflowed(const tornado__coroutine *co)
{
    fprintf(stderr, "tornado.h: the stack of the coroutine %s overflowed (%zu bytes)\n", co->name, co->stack.size);
    abort();
}

enum { TORNADO__SIGNAL_STACK = 32768 };

static struct sigaction tornado__before_overflow[2]; /* SIGSEGV, SIGBUS */

/* Says so when the running coroutine has touched its guard. Then the fault happens again, in the hands of whoever
   had the signal before. */
static void tornado__overflow_caught(int signum, siginfo_t *info, void *context)
{
    const tornado__coroutine *co = tornado__running()->coroutine;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)info->si_addr;
    (void)context;
    if (co && at < (uintptr_t)co->stack.low && at >= (uintptr_t)co->stack.low - page) {
        const char *const words[] = {"tornado.h: the stack of the coroutine ", co->name, " overflowed\n"};
        for (size_t i = 0; i < TORNADO__COUNT(words); i++) {
            ssize_t ignored = write(2, words[i], strlen(words[i]));
            (void)ignored;
        }
    }
    sigaction(signum, &tornado__before_overflow[signum == SIGBUS], NULL);
}

/* The alternate stack that a signal handler needs when the thread's own has overflowed. */
static bool tornado__signal_stack(void)
{
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    if (sigaltstack(NULL, &stack) == 0 && !(stack.ss_flags & SS_DISABLE))
        return true;
    stack.ss_size = TORNADO__SIGNAL_STACK;
    stack.ss_flags = 0;
    stack.ss_sp = tornado__stack_map(stack.ss_size);
    if (!stack.ss_sp)
        return false;
    if (sigaltstack(&stack, NULL) == 0)
        return true;
    tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_report_stack_overflow: %s", strerror(errno));
    munmap(stack.ss_sp, stack.ss_size);
    return false;
}

TORNADO_API bool tornado_report_stack_overflow(void)
{
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = tornado__overflow_caught;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (!tornado__signal_stack())
        return false;
    for (int i = 0; i < 2; i++) {
        int signum = i ? SIGBUS : SIGSEGV;
        if (sigaction(signum, NULL, &before) == 0 && (before.sa_flags & SA_SIGINFO) &&
            before.sa_sigaction == tornado__overflow_caught)
            continue; /* another thread has done it */
        tornado__before_overflow[i] = before;
        if (sigaction(signum, &action, NULL) != 0)
            return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_report_stack_overflow: %s", strerror(errno));
    }
    return true;
}

/* Hands the outcome to whoever waits for it. */
static void tornado__coroutine_finish(tornado__coroutine *co)
{
    tornado_future *future = co->future;
    if (future) {
        future->coroutine = NULL;
        if (co->failed) {
            tornado_future_set_error(future, &co->execution.raised);
        } else {
            if (co->result && co->arena && !co->arena_is_lent) {
                future->arena = co->arena;
                co->arena = NULL;
            }
            tornado_future_set_result(future, co->result, NULL);
            future->owns = future->arena != NULL;
        }
        tornado_future_release(future);
    }
    if (co->on_done)
        co->on_done(co);
    else if (!future && co->failed)
        tornado__failure_missed(&co->execution.raised);
    tornado__coroutine_free(co);
}

/* Runs a coroutine, from its beginning or from where it waits, until it waits or ends. Whether it ended: it is gone
   then. */
static TORNADO__INLINE bool tornado__coroutine_continue(tornado__coroutine *co)
{
    tornado__execution *outer = tornado__thread.running;
#if defined(TORNADO__ASAN) && !defined(TORNADO_NO_COROUTINES)
    void *fake_stack = NULL;
#endif
#ifdef TORNADO_NO_COROUTINES
    co->state = TORNADO__CO_RUNNING;
    tornado__thread.running = &co->execution;
    tornado__coroutine_entry(co);
#else
    bool fresh = co->state == TORNADO__CO_NEW;
    co->state = TORNADO__CO_RUNNING;
    tornado__thread.running = &co->execution;
    tornado__asan_leave(&fake_stack, co->stack.low, co->stack.size);
    if (fresh)
        tornado__context_call(&co->caller, &co->stack, tornado__coroutine_entry, co);
    else
        tornado__context_swap(&co->caller, &co->self);
    tornado__asan_arrive(fake_stack, NULL, NULL);
#endif
    tornado__thread.running = outer;
    if (TORNADO__UNLIKELY(co->canary && *(volatile uint64_t *)(void *)co->stack.low != TORNADO__CANARY))
        tornado__stack_overflowed(co);
    if (co->state != TORNADO__CO_DONE)
        return false;
    tornado__coroutine_finish(co);
    return true;
}

#ifndef TORNADO_NO_COROUTINES
/* Leaves the running coroutine for whoever resumed it. */
static TORNADO__NOINLINE void tornado__coroutine_suspend(tornado__coroutine *co)
{
    co->state = TORNADO__CO_SUSPENDED;
    tornado__asan_leave(&co->fake_stack, co->caller_low, co->caller_size);
    tornado__context_swap(&co->self, &co->caller);
    tornado__asan_arrive(co->fake_stack, &co->caller_low, &co->caller_size);
}
#endif

static void tornado__coroutine_wake_now(tornado__coroutine *co)
{
    if (co->state == TORNADO__CO_NEW && co->cancelled) {
        co->failed = true;
        co->execution.raised = tornado__error_cancelled;
        tornado__coroutine_finish(co);
    } else {
        tornado__coroutine_continue(co);
    }
}

static void tornado__coroutine_wake(tornado__task *task, tornado_ioloop *loop)
{
    tornado__coroutine *co = TORNADO__CONTAINER(task, tornado__coroutine, waiter.task);
    if (!loop->closed) /* else tornado__coroutines_unwind resumes it */
        tornado__coroutine_wake_now(co);
}

static bool tornado__coroutine_cancel(tornado__coroutine *co)
{
    if (co->state == TORNADO__CO_DONE)
        return false;
    co->cancelled = true;
    if (co->state == TORNADO__CO_SUSPENDED && co->waiting && co->waiting->state == TORNADO__PENDING) {
        tornado__future_unwait(co->waiting, &co->waiter);
        tornado_future_release(co->waiting);
        co->waiting = NULL;
        tornado__ioloop_schedule(co->loop, &co->waiter.task);
    }
    return true;
}

static void tornado__coroutines_cancel(tornado_ioloop *loop)
{
    tornado__stacks *stacks = loop->stacks;
    for (tornado__link *link = stacks ? stacks->alive.next : NULL; stacks && link != &stacks->alive;
         link = link->next)
        tornado__coroutine_cancel(TORNADO__CONTAINER(link, tornado__coroutine, link));
}

static void tornado__coroutines_name(const tornado_ioloop *loop)
{
    const tornado__link *alive = &loop->stacks->alive;
    for (const tornado__link *link = alive->next; link != alive; link = link->next)
        tornado_gen_log(TORNADO_LOG_WARNING, "the coroutine %s does not end",
                        TORNADO__CONTAINER(link, tornado__coroutine, link)->name);
}

/* Gives up one that does not end. It is never resumed; what it holds is lost. */
static void tornado__coroutine_abandon(tornado__coroutine *co)
{
    tornado_gen_log(TORNADO_LOG_WARNING, "the coroutine %s does not end: abandoned", co->name);
    tornado__link_remove(&co->link);
    if (co->future) {
        co->future->coroutine = NULL;
        tornado_future_release(co->future);
    }
}

/* Ends all of them while their loop is closed. As each of their waits fails at once, one turn is enough for each
   that does not wait again and again all the same. */
static void tornado__coroutines_unwind(tornado_ioloop *loop)
{
    tornado__execution *outer = tornado__thread.running;
    tornado__link *alive = &loop->stacks->alive;
    tornado__thread.running = &loop->execution;
    while (!tornado__link_empty(alive)) {
        tornado__coroutine *co = TORNADO__CONTAINER(alive->next, tornado__coroutine, link);
        tornado__coroutine_cancel(co);
        if (co->waiting) { /* it was done already */
            tornado_future_release(co->waiting);
            co->waiting = NULL;
        }
        for (int turns = 0; turns < TORNADO__LAST_TURNS && alive->next == &co->link; turns++)
            tornado__coroutine_wake_now(co);
        if (alive->next == &co->link)
            tornado__coroutine_abandon(co);
    }
    tornado__thread.running = outer;
}

TORNADO_API bool tornado_cancel(tornado_future *future)
{
    return future->coroutine && tornado__coroutine_cancel(future->coroutine);
}

/* Starts a coroutine in the loop's next turn, and gives its future; that of the last error when it is NULL. */
static tornado_future *tornado__spawned(tornado_ioloop *loop, tornado__coroutine *co)
{
    tornado_future *future = co ? tornado__future_alloc(loop, sizeof *future, NULL) : NULL;
    if (!future) {
        if (co)
            tornado__coroutine_free(co);
        return tornado__thread.last.code == TORNADO_ERR_NOMEM ? &tornado__future_nomem
                                                              : tornado_future_failed(&tornado__thread.last);
    }
    co->future = tornado_future_retain(future);
    co->execution.states = tornado__context_capture();
    future->coroutine = co;
    tornado__ioloop_schedule(loop, &co->waiter.task);
    return future;
}

static bool tornado__may_spawn(const tornado_ioloop *loop)
{
    return !loop->closed || tornado__fail(TORNADO_ERR_STATE, 0, "tornado_spawn: the loop is closed");
}

static tornado_future *tornado__spawn(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg, const char *name)
{
    bool may = tornado__may_spawn(loop);
    return tornado__spawned(loop, may ? tornado__coroutine_new(loop, fn, arg, name) : NULL);
}

TORNADO_API tornado_future *tornado_spawn_with(tornado_coroutine_fn fn, void *arg,
                                               const tornado_spawn_options *options)
{
    const char *name = options && options->name ? options->name : "coroutine";
    tornado_ioloop *loop = tornado_ioloop_current();
    if (!loop)
        return &tornado__future_nomem;
    if (!options || !options->stack_size)
        return tornado__spawn(loop, fn, arg, name);
    bool may = tornado__may_spawn(loop);
    return tornado__spawned(loop,
                            may ? tornado__coroutine_new_sized(loop, fn, arg, name, options->stack_size) : NULL);
}

TORNADO_API tornado_future *tornado_spawn(tornado_coroutine_fn fn, void *arg)
{
    return tornado_spawn_with(fn, arg, NULL);
}

TORNADO_API bool tornado_ioloop_spawn_callback(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg)
{
    tornado__coroutine *co = tornado__may_spawn(loop) ? tornado__coroutine_new(loop, fn, arg, "coroutine") : NULL;
    if (!co)
        return false;
    /* without the caller's states: it may outlive what they are for */
    tornado__ioloop_schedule(loop, &co->waiter.task);
    return true;
}

TORNADO_API tornado_arena *tornado_current_arena(void)
{
    tornado__execution *running = tornado__running();
    tornado__coroutine *co = running->coroutine;
    tornado_arena **arena = co ? &co->arena : running->arena;
    if (arena && !*arena)
        *arena = tornado_arena_new();
    return arena ? *arena : NULL;
}

#ifndef TORNADO_NO_COROUTINES
/* ---- waiting ---- */

/* Notes a failure as the running execution's and uses up the reference. */
static const tornado_error *tornado__wait_failed(tornado__execution *running, tornado_future *future,
                                                 const tornado_error *error)
{
    running->waited = *error;
    if (!future->immortal)
        future->observed = true;
    tornado_future_release(future);
    return &running->waited;
}

/* Waits until the future is done. NULL: it has succeeded, and the reference is still the caller's. */
static const tornado_error *tornado__wait(tornado_future *future)
{
    tornado__execution *running = tornado__running();
    tornado__coroutine *co = running->coroutine;
    if (TORNADO__UNLIKELY(!co || running->deferring)) {
        tornado__fail(TORNADO_ERR_STATE, 0, co ? "waiting in a deferred function"
                                               : "waiting outside a coroutine: use tornado_spawn");
        tornado_app_log(TORNADO_LOG_ERROR, "%s", tornado_last_error()->message);
        return tornado__wait_failed(running, future, tornado_last_error());
    }
    if (future->state == TORNADO__PENDING && !co->cancelled) {
        co->waiting = future;
        tornado__future_wait(future, co->loop, &co->waiter);
        co->ready_waits = 0;
        tornado__coroutine_suspend(co);
        if (!co->waiting) { /* cancelled, which has let go of the future */
            running->waited = tornado__error_cancelled;
            return &running->waited;
        }
        co->waiting = NULL;
    } else if (++co->ready_waits >= TORNADO__READY_WAITS) {
        co->ready_waits = 0;
        tornado__ioloop_schedule(co->loop, &co->waiter.task);
        tornado__coroutine_suspend(co);
    }
    if (TORNADO__UNLIKELY(co->cancelled))
        return tornado__wait_failed(running, future, &tornado__error_cancelled);
    if (future->state == TORNADO__FAILED)
        return tornado__wait_failed(running, future, future->error);
    return NULL;
}

static void tornado__future_let_go(tornado__held *held)
{
    tornado_future *future = TORNADO__CONTAINER(held, tornado_future, held);
    future->held_in_use = false;
    tornado_future_release(future);
}

typedef struct tornado__held_reference {
    tornado__held held;
    tornado_future *future;
} tornado__held_reference;

static void tornado__reference_let_go(tornado__held *held)
{
    tornado__held_reference *node = TORNADO__CONTAINER(held, tornado__held_reference, held);
    tornado_future_release(node->future);
    TORNADO_FREE(node);
}

/* Gives the reference to the innermost scope when the result's memory is the future's; else lets go of it. False
   when memory is short, which only a future that two scopes hold can meet. */
static bool tornado__wait_keep(tornado_future *future)
{
    tornado_scope *scope = tornado__running()->scope;
    tornado__held *held = &future->held;
    if (!future->owns) {
        tornado_future_release(future);
        return true;
    }
    if (future->held_in_use) {
        tornado__held_reference *node = TORNADO_MALLOC(sizeof *node);
        if (!node) {
            tornado_future_release(future);
            return tornado__nomem();
        }
        node->future = future;
        held = &node->held;
        held->release = tornado__reference_let_go;
    } else {
        future->held_in_use = true;
        held->release = tornado__future_let_go;
    }
    held->next = scope->held;
    scope->held = held;
    return true;
}

/* Waits, and copies a result of the kind that was asked for; a pointer is also asked for where no result matters.
   */
static const tornado_error *tornado__wait_value(tornado_future *future, int kind, void *out)
{
    const tornado_error *error = tornado__wait(future);
    if (error)
        return error;
    if (future->kind != kind && kind != TORNADO__POINTER) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "the future's result is of another kind than was waited for");
        return tornado__wait_failed(tornado__running(), future, tornado_last_error());
    }
    tornado__future_take(future);
    if (out) {
        if (kind == TORNADO__POINTER)
            *(void **)out = tornado_future_result(future);
        else if (kind == TORNADO__INTEGER)
            *(int64_t *)out = future->value.integer;
        else
            *(tornado_bytes *)out = future->value.bytes;
    }
    return tornado__wait_keep(future) ? NULL : tornado_last_error();
}

TORNADO_API const tornado_error *tornado_wait(tornado_future *future)
{
    return tornado__wait_value(future, TORNADO__POINTER, NULL);
}

TORNADO_API const tornado_error *tornado_wait_result(tornado_future *future, void **result)
{
    return tornado__wait_value(future, TORNADO__POINTER, result);
}

TORNADO_API const tornado_error *tornado_wait_integer(tornado_future *future, int64_t *result)
{
    return tornado__wait_value(future, TORNADO__INTEGER, result);
}

TORNADO_API const tornado_error *tornado_wait_bytes(tornado_future *future, tornado_bytes *result)
{
    return tornado__wait_value(future, TORNADO__BYTES, result);
}

TORNADO_API void *tornado_await(tornado_future *future)
{
    void *result = NULL;
    const tornado_error *error = tornado__wait_value(future, TORNADO__POINTER, &result);
    if (error)
        tornado__raise(error);
    return result;
}

TORNADO_API int64_t tornado_await_integer(tornado_future *future)
{
    int64_t result = 0;
    const tornado_error *error = tornado__wait_value(future, TORNADO__INTEGER, &result);
    if (error)
        tornado__raise(error);
    return result;
}

TORNADO_API tornado_bytes tornado_await_bytes(tornado_future *future)
{
    tornado_bytes result = {NULL, 0};
    const tornado_error *error = tornado__wait_value(future, TORNADO__BYTES, &result);
    if (error)
        tornado__raise(error);
    return result;
}

#endif
/* ---- from outside ---- */

/* Stops the loop when the function has ended. On the heap, as the loop may be stopped by others before that. */
typedef struct tornado__sync {
    tornado__waiter waiter;
    tornado_future *future;
    bool abandoned;
    bool *late; /* is set when the time is up */
} tornado__sync;

static void tornado__sync_done(tornado__task *task, tornado_ioloop *loop)
{
    tornado__sync *sync = TORNADO__CONTAINER(task, tornado__sync, waiter.task);
    if (!sync->abandoned)
        tornado_ioloop_stop(loop);
    tornado_future_release(sync->future);
    TORNADO_FREE(sync);
}

static void tornado__sync_late(void *arg)
{
    tornado__sync *sync = arg;
    *sync->late = tornado_cancel(sync->future);
}

/* Runs the loop until the future is done. False: it was stopped before. */
static bool tornado__sync_run(tornado_ioloop *loop, tornado__sync *sync, tornado_future *future)
{
    sync->future = tornado_future_retain(future);
    tornado__future_wait(future, loop, &sync->waiter);
    tornado_ioloop_start(loop);
    if (future->state != TORNADO__PENDING)
        return true;
    sync->abandoned = true; /* it stays behind, and goes with the future */
    return tornado__fail(TORNADO_ERR_STATE, 0, "run_sync: the loop was stopped before the function ended");
}

static bool tornado__run_sync(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg, const double *timeout)
{
    tornado_timeout timer = 0;
    bool late = false;
    if (loop->running || loop->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "run_sync: the loop is %s",
                             loop->closed ? "closed" : "running already");
    tornado__sync *sync = TORNADO_MALLOC(sizeof *sync);
    if (!sync)
        return tornado__nomem();
    memset(sync, 0, sizeof *sync);
    sync->waiter.task.run = tornado__sync_done;
    sync->late = &late;
    if (timeout && !(timer = tornado_ioloop_call_later(loop, *timeout, tornado__sync_late, sync))) {
        TORNADO_FREE(sync);
        return false;
    }
    tornado_future *future = tornado__spawn(loop, fn, arg, "run_sync");
    bool ok = future->state == TORNADO__PENDING;
    if (ok)
        ok = tornado__sync_run(loop, sync, future);
    else
        TORNADO_FREE(sync);
    if (timer)
        tornado_ioloop_remove_timeout(loop, timer);
    const tornado_error *error = tornado_future_error(future);
    if (late && (!error || error->code == TORNADO_ERR_CANCELLED))
        ok = tornado__fail(TORNADO_ERR_TIMEOUT, ETIMEDOUT, "Operation timed out after %g seconds", *timeout);
    else if (error)
        tornado__thread.last = *error;
    ok = ok && !error;
    tornado_future_release(future);
    return ok;
}

TORNADO_API bool tornado_ioloop_run_sync(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg)
{
    return tornado__run_sync(loop, fn, arg, NULL);
}

TORNADO_API bool tornado_ioloop_run_sync_timeout(tornado_ioloop *loop, tornado_coroutine_fn fn, void *arg,
                                                 double timeout)
{
    return tornado__run_sync(loop, fn, arg, &timeout);
}

/*============================================================================
 * section: gen (private)
 * Futures made of timers and of other futures; lines of those who wait.
 *
 * Each is one allocation: the future and what it needs. Whether what a future granted was of use shows in `taken`:
 * a wait or a callback sets it, a future that shares another's outcome passes it on when it goes, and a permit, an
 * item or a notification whose future goes without it goes back.
 *============================================================================*/

TORNADO_API double tornado_until(double when)
{
    return when - tornado_monotonic();
}

typedef struct tornado__sleep {
    tornado_future future;
    tornado__timer timer;
} tornado__sleep;

static void tornado__sleep_finalize(tornado_future *future)
{
    tornado__sleep *sleep = (tornado__sleep *)future;
    if (sleep->timer.place)
        tornado__timer_clear(future->loop, &sleep->timer);
}

static void tornado__sleep_fire(tornado__timer *timer, tornado_ioloop *loop)
{
    (void)loop;
    tornado_future_set_result(&TORNADO__CONTAINER(timer, tornado__sleep, timer)->future, NULL, NULL);
}

TORNADO_API tornado_future *tornado_sleep(double seconds)
{
    int64_t ns;
    tornado_ioloop *loop = tornado_ioloop_current();
    if (!tornado__seconds_to_ns(seconds, &ns)) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_sleep: the time is not a number");
        return tornado_future_failed(tornado_last_error());
    }
    tornado__sleep *sleep =
        loop ? (tornado__sleep *)(void *)tornado__future_alloc(loop, sizeof *sleep, tornado__sleep_finalize) : NULL;
    if (!sleep)
        return &tornado__future_nomem;
    sleep->future.unattended = true;
    sleep->timer.fire = tornado__sleep_fire;
    sleep->timer.fires_at_close = true; /* callbacks hold the future */
    if (!tornado__timer_set(loop, &sleep->timer, tornado__add_ns(tornado__now_ns(), ns > 0 ? ns : 0))) {
        tornado_future_release(&sleep->future);
        return &tornado__future_nomem;
    }
    return &sleep->future;
}

typedef struct tornado__moment {
    tornado_future future;
    tornado__task task; /* holds a reference */
} tornado__moment;

static void tornado__moment_run(tornado__task *task, tornado_ioloop *loop)
{
    tornado__moment *moment = TORNADO__CONTAINER(task, tornado__moment, task);
    if (!loop->closed)
        tornado_future_set_result(&moment->future, NULL, NULL);
    tornado_future_release(&moment->future);
}

TORNADO_API tornado_future *tornado_moment(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado__moment *moment =
        loop ? (tornado__moment *)(void *)tornado__future_alloc(loop, sizeof *moment, NULL) : NULL;
    if (!moment)
        return &tornado__future_nomem;
    tornado_future_retain(&moment->future);
    moment->task.run = tornado__moment_run;
    tornado__ioloop_schedule(loop, &moment->task);
    return &moment->future;
}

TORNADO_API tornado_future *tornado_maybe_future(tornado_future *future)
{
    return future ? future : &tornado__future_done;
}

/* ---- several futures ---- */

/* Lists of futures: pointers to them, `stride` bytes apart. */
static tornado_future *tornado__listed(const void *list, size_t stride, size_t i)
{
    return *(tornado_future *const *)(const void *)((const char *)list + i * stride);
}

/* Of a future that stands in a list several times one reference is taken over, and the others are added. */
static void tornado__listed_adopt(const void *list, size_t stride, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        tornado_future *future = tornado__listed(list, stride, i);
        if (future && !future->immortal) {
            if (future->visited)
                tornado_future_retain(future);
            future->visited = true;
        }
    }
    for (size_t i = 0; i < count; i++) {
        tornado_future *future = tornado__listed(list, stride, i);
        if (future && !future->immortal)
            future->visited = false;
    }
}

static void tornado__listed_release(const void *list, size_t stride, size_t count)
{
    for (size_t i = 0; i < count; i++)
        tornado_future_release(tornado__listed(list, stride, i));
}

/* Codes of errors that are not logged, a bit for each. */
static uint64_t tornado__quiet_codes(const int *quiet)
{
    uint64_t codes = 0;
    if (!quiet)
        return UINT64_MAX;
    for (; *quiet; quiet++)
        if (*quiet > 0 && *quiet < 64)
            codes |= (uint64_t)1 << *quiet;
    return codes;
}

static bool tornado__is_quiet(uint64_t codes, const tornado_error *error)
{
    return error->code > 0 && error->code < 64 ? codes >> error->code & 1 : codes == UINT64_MAX;
}

typedef struct tornado__multi_child {
    tornado__waiter waiter;
    struct tornado__multi *multi;
    tornado_future *future;
} tornado__multi_child;

struct tornado_named_results {
    size_t count;
    void **results;
    const char **names; /* NULL: they have none */
};

typedef struct tornado__multi {
    tornado_future future;
    tornado__compound compound;
    struct tornado_named_results named;
    uint64_t quiet;
    size_t pending;
    tornado__multi_child children[]; /* behind them the results, then the names */
} tornado__multi;

static void tornado__multi_finalize(tornado_future *future)
{
    tornado__multi *multi = (tornado__multi *)(void *)future;
    for (size_t i = 0; i < multi->named.count; i++) {
        tornado__multi_child *child = &multi->children[i];
        if (!child->future)
            continue;
        tornado__future_unwait(child->future, &child->waiter);
        if (future->taken)
            tornado__future_take(child->future);
        tornado_future_release(child->future);
    }
}

static void tornado__multi_let_go(tornado__compound *compound)
{
    tornado__multi *multi = TORNADO__CONTAINER(compound, tornado__multi, compound);
    for (size_t i = 0; i < multi->named.count; i++)
        if (multi->children[i].future)
            tornado__future_unwait(multi->children[i].future, &multi->children[i].waiter);
    tornado_future_release(&multi->future);
}

static void tornado__multi_resolve(tornado__multi *multi)
{
    const tornado_error *first = NULL;
    for (size_t i = 0; i < multi->named.count; i++) {
        tornado_future *child = multi->children[i].future;
        const tornado_error *error = child ? tornado_future_error(child) : NULL;
        if (error && !first)
            first = error;
        else if (error && !tornado__is_quiet(multi->quiet, error))
            tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "multiple exceptions in tornado_multi");
        if (child)
            multi->named.results[i] = child->kind == TORNADO__POINTER   ? tornado_future_result(child)
                                      : child->kind == TORNADO__INTEGER ? (void *)&child->value.integer
                                                                        : (void *)&child->value.bytes;
    }
    if (first) {
        tornado_future_set_error(&multi->future, first);
    } else {
        void *result = multi->named.names ? (void *)&multi->named : (void *)multi->named.results;
        tornado_future_set_result(&multi->future, result, NULL);
        multi->future.owns = true;
    }
}

static void tornado__multi_child_done(tornado__task *task, tornado_ioloop *loop)
{
    tornado__multi *multi = TORNADO__CONTAINER(task, tornado__multi_child, waiter.task)->multi;
    if (--multi->pending > 0)
        return;
    tornado__link_remove(&multi->compound.link);
    if (!loop->closed)
        tornado__multi_resolve(multi);
    tornado_future_release(&multi->future);
}

/* One for `count` futures, with `extra` bytes behind the results; NULL when memory is short. */
static tornado__multi *tornado__multi_new(size_t count, size_t extra)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado__multi *multi = NULL;
    size_t each = sizeof *multi->children + sizeof *multi->named.results;
    if (loop && extra < SIZE_MAX / 4 && count <= SIZE_MAX / 4 / each)
        multi = (tornado__multi *)(void *)tornado__future_alloc(loop, sizeof *multi + count * each + extra,
                                                                tornado__multi_finalize);
    if (multi) {
        multi->named.count = count;
        multi->named.results = (void **)(void *)&multi->children[count];
    }
    return multi;
}

/* Takes over the futures of a list; `multi` may be NULL: memory was short. */
static tornado_future *tornado__multi_begin(tornado__multi *multi, const void *list, size_t stride, size_t count,
                                            uint64_t quiet)
{
    tornado__listed_adopt(list, stride, count);
    if (!multi) {
        tornado__listed_release(list, stride, count);
        return &tornado__future_nomem;
    }
    multi->quiet = quiet;
    for (size_t i = 0; i < count; i++) {
        tornado__multi_child *child = &multi->children[i];
        child->multi = multi;
        child->future = tornado__listed(list, stride, i);
        child->waiter.task.run = tornado__multi_child_done;
        if (child->future && child->future->state == TORNADO__PENDING) {
            multi->pending++;
            tornado__future_wait(child->future, multi->future.loop, &child->waiter);
        }
    }
    if (multi->pending == 0) {
        tornado__multi_resolve(multi);
        return &multi->future;
    }
    multi->compound.let_go = tornado__multi_let_go;
    tornado__link_append(&multi->future.loop->compounds, &multi->compound.link);
    return tornado_future_retain(&multi->future); /* it holds itself until all are done */
}

TORNADO_API tornado_future *tornado_multi(tornado_future *const *futures, size_t count)
{
    return tornado__multi_begin(tornado__multi_new(count, 0), futures, sizeof *futures, count, 0);
}

TORNADO_API tornado_future *tornado_multi_quiet(tornado_future *const *futures, size_t count, const int *quiet)
{
    return tornado__multi_begin(tornado__multi_new(count, 0), futures, sizeof *futures, count,
                                tornado__quiet_codes(quiet));
}

TORNADO_API tornado_future *tornado_multi_named(const tornado_named_future *futures, size_t count)
{
    size_t extra = 0;
    for (size_t i = 0; i < count; i++)
        extra += sizeof(char *) + strlen(futures[i].name) + 1;
    tornado__multi *multi = tornado__multi_new(count, extra);
    if (multi) {
        multi->named.names = (const char **)(void *)&multi->named.results[count];
        char *at = (char *)(void *)&multi->named.names[count];
        for (size_t i = 0; i < count; i++) {
            size_t size = strlen(futures[i].name) + 1;
            multi->named.names[i] = memcpy(at, futures[i].name, size);
            at += size;
        }
    }
    return tornado__multi_begin(multi, count ? &futures->future : NULL, sizeof *futures, count, 0);
}

TORNADO_API void *tornado_named_result(const tornado_named_results *results, const char *name)
{
    for (size_t i = results->count; i-- > 0;)
        if (strcmp(results->names[i], name) == 0)
            return results->results[i];
    return NULL;
}

/* ---- the wait iterator ---- */

typedef struct tornado__iterator_child {
    tornado__waiter waiter;
    tornado_wait_iterator *iterator;
    tornado_future *future; /* NULL: counts as done */
    struct tornado__iterator_child *next; /* that finished after it */
} tornado__iterator_child;

struct tornado_wait_iterator {
    tornado__held held;
    unsigned references; /* the scope's, and one of each child that waits */
    size_t count, left, current;
    tornado__iterator_child *finished, *last_finished; /* and not given yet */
    tornado_future *running; /* what `next` gave while none was finished; or NULL */
    tornado__iterator_child children[];
};

static void tornado__iterator_unref(tornado_wait_iterator *iterator)
{
    if (--iterator->references == 0)
        TORNADO_FREE(iterator);
}

static void tornado__iterator_finish(tornado_wait_iterator *iterator, tornado__iterator_child *child)
{
    child->next = NULL;
    if (iterator->finished)
        iterator->last_finished->next = child;
    else
        iterator->finished = child;
    iterator->last_finished = child;
}

/* The future of the child that finished first and was not given yet. */
static tornado_future *tornado__iterator_advance(tornado_wait_iterator *iterator)
{
    tornado__iterator_child *child = iterator->finished;
    iterator->finished = child->next;
    iterator->current = (size_t)(child - iterator->children);
    iterator->left--;
    return child->future ? child->future : &tornado__future_done;
}

static void tornado__iterator_child_done(tornado__task *task, tornado_ioloop *loop)
{
    tornado__iterator_child *child = TORNADO__CONTAINER(task, tornado__iterator_child, waiter.task);
    tornado_wait_iterator *iterator = child->iterator;
    if (!loop->closed) {
        tornado_future *running = iterator->running;
        tornado__iterator_finish(iterator, child);
        if (running) {
            iterator->running = NULL;
            tornado__future_follow(running, tornado__iterator_advance(iterator));
            tornado_future_release(running);
        }
    }
    tornado__iterator_unref(iterator);
}

static void tornado__iterator_end(tornado__held *held)
{
    static const tornado_error over = {TORNADO_ERR_CLOSED, 0, 0, "the scope of the wait iterator has ended"};
    tornado_wait_iterator *iterator = TORNADO__CONTAINER(held, tornado_wait_iterator, held);
    for (size_t i = 0; i < iterator->count; i++) {
        tornado__iterator_child *child = &iterator->children[i];
        if (child->future && child->future->state == TORNADO__PENDING) {
            tornado__future_unwait(child->future, &child->waiter);
            iterator->references--;
        }
        tornado_future_release(child->future);
    }
    if (iterator->running) {
        tornado__future_fail(iterator->running, &over);
        tornado_future_release(iterator->running);
        iterator->running = NULL; /* children may be scheduled still */
    }
    tornado__iterator_unref(iterator);
}

static tornado_wait_iterator *tornado__iterator_alloc(size_t count)
{
    tornado_wait_iterator *iterator = NULL;
    if (!tornado__running()->scope) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_wait_iterator_new: no scope is open here");
        return NULL;
    }
    if (count <= SIZE_MAX / 2 / sizeof *iterator->children - 1)
        iterator = TORNADO_MALLOC(sizeof *iterator + count * sizeof *iterator->children);
    if (!iterator)
        tornado__nomem();
    return iterator;
}

TORNADO_API tornado_wait_iterator *tornado_wait_iterator_new(tornado_future *const *futures, size_t count)
{
    tornado_wait_iterator *iterator = tornado__iterator_alloc(count);
    tornado_scope *scope = tornado__running()->scope;
    tornado__listed_adopt(futures, sizeof *futures, count);
    if (!iterator) {
        tornado__listed_release(futures, sizeof *futures, count);
        return NULL;
    }
    memset(iterator, 0, sizeof *iterator);
    iterator->references = 1;
    iterator->count = iterator->left = count;
    iterator->current = SIZE_MAX;
    for (size_t i = 0; i < count; i++) {
        tornado__iterator_child *child = &iterator->children[i];
        child->waiter.task.run = tornado__iterator_child_done;
        child->waiter.drop = NULL; /* the iterator holds the future */
        child->iterator = iterator;
        child->future = futures[i];
        if (child->future && child->future->state == TORNADO__PENDING) {
            iterator->references++;
            tornado__future_wait(child->future, child->future->loop, &child->waiter);
        } else {
            tornado__iterator_finish(iterator, child);
        }
    }
    iterator->held.release = tornado__iterator_end;
    iterator->held.next = scope->held;
    scope->held = &iterator->held;
    return iterator;
}

TORNADO_API bool tornado_wait_iterator_done(const tornado_wait_iterator *iterator)
{
    return iterator->left == 0;
}

TORNADO_API tornado_future *tornado_wait_iterator_next(tornado_wait_iterator *iterator)
{
    if (iterator->finished)
        return tornado_future_retain(tornado__iterator_advance(iterator));
    if (iterator->left == 0) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_wait_iterator_next: there is none left");
        return tornado_future_failed(tornado_last_error());
    }
    if (!iterator->running) {
        tornado_future *running = tornado_future_new();
        if (running->immortal)
            return running;
        iterator->running = running;
    }
    return tornado_future_retain(iterator->running);
}

TORNADO_API size_t tornado_wait_iterator_current_index(const tornado_wait_iterator *iterator)
{
    return iterator->current;
}

TORNADO_API tornado_future *tornado_wait_iterator_current_future(const tornado_wait_iterator *iterator)
{
    if (iterator->current == SIZE_MAX)
        return NULL;
    tornado_future *future = iterator->children[iterator->current].future;
    return future ? future : &tornado__future_done;
}

/* ---- timeouts ---- */

static const tornado_error tornado__error_timeout = {TORNADO_ERR_TIMEOUT, ETIMEDOUT, 0, "Timeout"};

typedef struct tornado__with_timeout {
    tornado_future future; /* holds itself while it waits */
    tornado__compound compound;
    tornado__timer timer;
    tornado__waiter waiter;
    tornado_future *other;
    uint64_t quiet;
    bool late; /* the other is no longer held */
} tornado__with_timeout;

static void tornado__with_timeout_finalize(tornado_future *future)
{
    tornado__with_timeout *self = (tornado__with_timeout *)future;
    if (self->timer.place)
        tornado__timer_clear(future->loop, &self->timer);
    if (!self->late)
        tornado_future_release(self->other);
}

static void tornado__with_timeout_done(tornado__task *task, tornado_ioloop *loop)
{
    tornado__with_timeout *self = TORNADO__CONTAINER(task, tornado__with_timeout, waiter.task);
    tornado_future *other = self->other;
    if (!loop->closed && self->future.state == TORNADO__PENDING) {
        if (self->timer.place)
            tornado__timer_clear(loop, &self->timer);
        tornado__future_follow(&self->future, other);
    } else if (other->state == TORNADO__FAILED && tornado__is_quiet(self->quiet, other->error)) {
        (void)tornado_future_error(other);
    }
    tornado__link_remove(&self->compound.link);
    tornado_future_release(other); /* what was held for this task */
    tornado_future_release(&self->future);
}

static void tornado__with_timeout_drop(tornado__waiter *waiter)
{
    tornado__with_timeout *self = TORNADO__CONTAINER(waiter, tornado__with_timeout, waiter);
    tornado__link_remove(&self->compound.link);
    tornado_future_release(&self->future);
}

static void tornado__with_timeout_let_go(tornado__compound *compound)
{
    tornado__with_timeout *self = TORNADO__CONTAINER(compound, tornado__with_timeout, compound);
    tornado__future_unwait(self->other, &self->waiter);
    tornado_future_release(&self->future);
}

/* What is waited for goes on, for whoever else holds it; an error that it ends with later is logged. */
static void tornado__with_timeout_late(tornado__timer *timer, tornado_ioloop *loop)
{
    tornado__with_timeout *self = TORNADO__CONTAINER(timer, tornado__with_timeout, timer);
    (void)loop;
    if (self->other->state != TORNADO__PENDING)
        return; /* done in time, in this very turn: it is the loop that is late */
    self->late = true;
    tornado__future_fail(&self->future, &tornado__error_timeout);
    tornado_future_release(self->other); /* which may end both */
}

static tornado_future *tornado__with_timeout_begin(double seconds, tornado_future *future, uint64_t quiet)
{
    int64_t ns = 0;
    bool valid = tornado__seconds_to_ns(seconds, &ns);
    tornado_ioloop *loop = future->loop;
    if (future->state != TORNADO__PENDING)
        return future;
    if (!valid) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_with_timeout: the time is not a number");
        tornado_future_release(future);
        return tornado_future_failed(tornado_last_error());
    }
    tornado__with_timeout *self = (tornado__with_timeout *)(void *)tornado__future_alloc(
        loop, sizeof *self, tornado__with_timeout_finalize);
    if (!self) {
        tornado_future_release(future);
        return &tornado__future_nomem;
    }
    self->other = future;
    self->quiet = quiet;
    self->timer.fire = tornado__with_timeout_late;
    if (!tornado__timer_set(loop, &self->timer, tornado__add_ns(tornado__now_ns(), ns > 0 ? ns : 0))) {
        tornado_future_release(&self->future);
        return &tornado__future_nomem;
    }
    self->waiter.task.run = tornado__with_timeout_done;
    self->waiter.drop = tornado__with_timeout_drop;
    self->compound.let_go = tornado__with_timeout_let_go;
    tornado__link_append(&loop->compounds, &self->compound.link);
    tornado_future_retain(&self->future);
    tornado__future_wait(future, loop, &self->waiter);
    return &self->future;
}

TORNADO_API tornado_future *tornado_with_timeout(double seconds, tornado_future *future)
{
    return tornado__with_timeout_begin(seconds, future, 0);
}

TORNADO_API tornado_future *tornado_with_timeout_quiet(double seconds, tornado_future *future, const int *quiet)
{
    return tornado__with_timeout_begin(seconds, future, tornado__quiet_codes(quiet));
}

/* ---- adapting ---- */

typedef struct tornado__chain {
    tornado__waiter waiter;
    tornado_future *from, *to;
} tornado__chain;

static void tornado__chain_done(tornado__task *task, tornado_ioloop *loop)
{
    tornado__chain *chain = TORNADO__CONTAINER(task, tornado__chain, waiter.task);
    if (!loop->closed && chain->to->state == TORNADO__PENDING)
        tornado__future_follow(chain->to, chain->from);
    tornado_future_release(chain->to);
    tornado_future_release(chain->from); /* what was held for this task */
    TORNADO_FREE(chain);
}

static void tornado__chain_drop(tornado__waiter *waiter)
{
    tornado__chain *chain = TORNADO__CONTAINER(waiter, tornado__chain, waiter);
    tornado_future_release(chain->to);
    TORNADO_FREE(chain);
}

TORNADO_API bool tornado_chain_future(tornado_future *from, tornado_future *to)
{
    tornado_ioloop *loop = from->loop ? from->loop : tornado_ioloop_current();
    tornado__chain *chain = loop ? TORNADO_MALLOC(sizeof *chain) : NULL;
    if (!chain)
        return tornado__nomem();
    chain->waiter.task.run = tornado__chain_done;
    chain->waiter.drop = tornado__chain_drop;
    chain->from = from;
    chain->to = tornado_future_retain(to);
    tornado__future_wait(from, loop, &chain->waiter);
    return true;
}

typedef struct tornado__task_call {
    tornado_task_start start;
    tornado_future *task;
    void *arg;
} tornado__task_call;

static void tornado__task_call_run(void *arg)
{
    tornado__task_call *call = arg;
    call->start(call->task, call->arg);
}

TORNADO_API tornado_future *tornado_task(tornado_task_start start, void *arg)
{
    tornado_future *future = tornado_future_new();
    if (future->immortal)
        return future;
    tornado__task_call call = {start, tornado_future_retain(future), arg};
    const tornado_error *error = tornado_try(tornado__task_call_run, &call);
    if (error) {
        tornado_future_set_error(future, error);
        tornado_future_release(future);
    }
    return future;
}

TORNADO_API void tornado_task_done(void *task)
{
    tornado_future_set_result(task, NULL, NULL);
    tornado_future_release(task);
}

/* ---- those who wait in line ----

   A line is a ring of tornado__parked, oldest first. The ring does not hold them: who gives up his future leaves
   it, so nobody stands in a line who no longer waits. What they wait for is a tornado__shared, which they hold. */

typedef struct tornado__shared {
    unsigned references; /* the owner's, those of futures, those of holds */
    bool freed;          /* by the owner */
} tornado__shared;

typedef struct tornado__parked {
    tornado_future future;
    tornado__link link;
    tornado__timer timer;
    tornado__shared *shared;
    void (*on_end)(struct tornado__parked *parked); /* the future goes; may be NULL */
    bool late_is_false; /* when the time is up its result is 0 */
    bool passes_on;     /* a notification, of a condition */
    void *item;         /* of a queue */
    uint64_t order;     /* in which it was put */
} tornado__parked;

/* Of what begins with a tornado__shared; zero. */
static void *tornado__shared_new(size_t size)
{
    tornado__shared *shared = TORNADO_MALLOC(size);
    if (!shared) {
        tornado__nomem();
        return NULL;
    }
    memset(shared, 0, size);
    shared->references = 1;
    return shared;
}

static void tornado__shared_release(tornado__shared *shared)
{
    if (--shared->references == 0)
        TORNADO_FREE(shared);
}

static void tornado__parked_finalize(tornado_future *future)
{
    tornado__parked *parked = (tornado__parked *)(void *)future;
    tornado__link_remove(&parked->link);
    tornado__timer_clear(future->loop, &parked->timer);
    if (parked->on_end)
        parked->on_end(parked);
    tornado__shared_release(parked->shared);
}

/* One that stands in no line yet; NULL when memory is short. */
static tornado__parked *tornado__parked_new(tornado__shared *shared, void (*on_end)(tornado__parked *))
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado__parked *parked =
        loop ? (tornado__parked *)(void *)tornado__future_alloc(loop, sizeof *parked, tornado__parked_finalize) : NULL;
    if (!parked)
        return NULL;
    parked->future.unattended = true;
    tornado__link_init(&parked->link);
    parked->shared = shared;
    parked->on_end = on_end;
    shared->references++;
    return parked;
}

static void tornado__parked_late(tornado__timer *timer, tornado_ioloop *loop)
{
    tornado__parked *parked = TORNADO__CONTAINER(timer, tornado__parked, timer);
    (void)loop;
    tornado__link_remove(&parked->link);
    if (parked->late_is_false)
        tornado_future_set_integer(&parked->future, 0);
    else
        tornado__future_fail(&parked->future, &tornado__error_timeout);
}

static const tornado_error tornado__error_freed = {TORNADO_ERR_CLOSED, 0, 0, "what was waited for was freed"};

/* Has it stand in line, for `timeout` seconds unless that is NULL. Gives its future, perhaps one that has failed;
   `parked` may be NULL: memory was short. */
static tornado_future *tornado__park(tornado__parked *parked, tornado__link *line, const double *timeout)
{
    int64_t ns = 0;
    if (!parked)
        return &tornado__future_nomem;
    tornado_ioloop *loop = parked->future.loop;
    if (parked->shared->freed) {
        tornado__future_fail(&parked->future, &tornado__error_freed);
        return &parked->future;
    }
    bool valid = !timeout || tornado__seconds_to_ns(*timeout, &ns) ||
                 tornado__fail(TORNADO_ERR_INVALID, 0, "the timeout is not a number");
    parked->timer.fire = tornado__parked_late;
    if (!valid || (timeout && !tornado__timer_set(loop, &parked->timer,
                                                  tornado__add_ns(tornado__now_ns(), ns > 0 ? ns : 0)))) {
        tornado_error error = *tornado_last_error();
        tornado_future_release(&parked->future);
        return tornado_future_failed(&error);
    }
    tornado__link_append(line, &parked->link);
    return &parked->future;
}

/* Takes the one who has waited longest out of a line that is not empty, to be resolved. */
static tornado__parked *tornado__line_pop(tornado__link *line)
{
    tornado__parked *parked = TORNADO__CONTAINER(line->next, tornado__parked, link);
    tornado__link_remove(&parked->link);
    tornado__timer_clear(parked->future.loop, &parked->timer);
    return parked;
}

static void tornado__line_wake_all(tornado__link *line)
{
    while (!tornado__link_empty(line))
        tornado_future_set_result(&tornado__line_pop(line)->future, NULL, NULL);
}

static void tornado__line_fail_all(tornado__link *line)
{
    while (!tornado__link_empty(line))
        tornado__future_fail(&tornado__line_pop(line)->future, &tornado__error_freed);
}

/* Frees, for its owner, what has one line. */
static void tornado__shared_free(tornado__shared *shared, tornado__link *line)
{
    shared->freed = true;
    tornado__line_fail_all(line);
    tornado__shared_release(shared);
}

/* Whether a future granted something that did not reach anybody. */
static bool tornado__parked_in_vain(const tornado__parked *parked)
{
    return parked->future.state == TORNADO__SUCCEEDED && !parked->future.taken;
}

/* Reports an error of the program. */
static bool tornado__misused(const char *message)
{
    tornado__fail(TORNADO_ERR_STATE, 0, "%s", message);
    tornado_app_log(TORNADO_LOG_ERROR, "%s", message);
    return false;
}

/* ---- locks ---- */

struct tornado_condition {
    tornado__shared shared;
    tornado__link line;
};

TORNADO_API tornado_condition *tornado_condition_new(void)
{
    tornado_condition *condition = tornado__shared_new(sizeof *condition);
    if (condition)
        tornado__link_init(&condition->line);
    return condition;
}

TORNADO_API void tornado_condition_free(tornado_condition *condition)
{
    if (condition)
        tornado__shared_free(&condition->shared, &condition->line);
}

static void tornado__condition_wait_end(tornado__parked *parked)
{
    if (parked->passes_on && tornado__parked_in_vain(parked))
        tornado_condition_notify(TORNADO__CONTAINER(parked->shared, tornado_condition, shared), 1);
}

static tornado_future *tornado__condition_wait(tornado_condition *condition, const double *timeout)
{
    tornado__parked *parked = tornado__parked_new(&condition->shared, tornado__condition_wait_end);
    if (parked)
        parked->late_is_false = true;
    return tornado__park(parked, &condition->line, timeout);
}

TORNADO_API tornado_future *tornado_condition_wait(tornado_condition *condition)
{
    return tornado__condition_wait(condition, NULL);
}

TORNADO_API tornado_future *tornado_condition_wait_timeout(tornado_condition *condition, double seconds)
{
    return tornado__condition_wait(condition, &seconds);
}

TORNADO_API void tornado_condition_notify(tornado_condition *condition, size_t count)
{
    for (; count > 0 && !tornado__link_empty(&condition->line); count--) {
        tornado__parked *parked = tornado__line_pop(&condition->line);
        parked->passes_on = true;
        tornado_future_set_integer(&parked->future, 1);
    }
}

TORNADO_API void tornado_condition_notify_all(tornado_condition *condition)
{
    while (!tornado__link_empty(&condition->line))
        tornado_future_set_integer(&tornado__line_pop(&condition->line)->future, 1);
}

struct tornado_event {
    tornado__shared shared;
    tornado__link line;
    bool set;
};

TORNADO_API tornado_event *tornado_event_new(void)
{
    tornado_event *event = tornado__shared_new(sizeof *event);
    if (event)
        tornado__link_init(&event->line);
    return event;
}

TORNADO_API void tornado_event_free(tornado_event *event)
{
    if (event)
        tornado__shared_free(&event->shared, &event->line);
}

TORNADO_API void tornado_event_set(tornado_event *event)
{
    event->set = true;
    tornado__line_wake_all(&event->line);
}

TORNADO_API void tornado_event_clear(tornado_event *event)
{
    event->set = false;
}

TORNADO_API bool tornado_event_is_set(const tornado_event *event)
{
    return event->set;
}

static tornado_future *tornado__event_wait(tornado_event *event, const double *timeout)
{
    if (event->set)
        return &tornado__future_done;
    return tornado__park(tornado__parked_new(&event->shared, NULL), &event->line, timeout);
}

TORNADO_API tornado_future *tornado_event_wait(tornado_event *event)
{
    return tornado__event_wait(event, NULL);
}

TORNADO_API tornado_future *tornado_event_wait_timeout(tornado_event *event, double seconds)
{
    return tornado__event_wait(event, &seconds);
}

struct tornado_semaphore {
    tornado__shared shared;
    tornado__link line; /* empty while there are permits */
    int value, limit;
    const char *beyond_limit; /* what the program did then */
};

struct tornado_lock {
    tornado_semaphore semaphore;
};

static tornado_semaphore *tornado__semaphore_new(int value, int limit, const char *beyond_limit)
{
    if (value < 0) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "a semaphore begins with 0 or more, not with %d", value);
        return NULL;
    }
    tornado_semaphore *semaphore = tornado__shared_new(sizeof *semaphore);
    if (!semaphore)
        return NULL;
    tornado__link_init(&semaphore->line);
    semaphore->value = value;
    semaphore->limit = limit;
    semaphore->beyond_limit = beyond_limit;
    return semaphore;
}

TORNADO_API tornado_semaphore *tornado_semaphore_new(int value)
{
    return tornado__semaphore_new(value, INT_MAX, NULL);
}

TORNADO_API tornado_semaphore *tornado_bounded_semaphore_new(int value)
{
    return tornado__semaphore_new(value, value, "tornado_semaphore_release: it was released too many times");
}

TORNADO_API void tornado_semaphore_free(tornado_semaphore *semaphore)
{
    if (semaphore)
        tornado__shared_free(&semaphore->shared, &semaphore->line);
}

static void tornado__semaphore_give(tornado_semaphore *semaphore)
{
    if (tornado__link_empty(&semaphore->line))
        semaphore->value++;
    else
        tornado_future_set_result(&tornado__line_pop(&semaphore->line)->future, NULL, NULL);
}

static void tornado__semaphore_acquire_end(tornado__parked *parked)
{
    if (tornado__parked_in_vain(parked))
        tornado__semaphore_give(TORNADO__CONTAINER(parked->shared, tornado_semaphore, shared));
}

static tornado_future *tornado__semaphore_acquire(tornado_semaphore *semaphore, const double *timeout)
{
    tornado__parked *parked = tornado__parked_new(&semaphore->shared, tornado__semaphore_acquire_end);
    if (!parked || !tornado_semaphore_acquire_nowait(semaphore))
        return tornado__park(parked, &semaphore->line, timeout);
    tornado_future_set_result(&parked->future, NULL, NULL);
    return &parked->future;
}

TORNADO_API tornado_future *tornado_semaphore_acquire(tornado_semaphore *semaphore)
{
    return tornado__semaphore_acquire(semaphore, NULL);
}

TORNADO_API tornado_future *tornado_semaphore_acquire_timeout(tornado_semaphore *semaphore, double seconds)
{
    return tornado__semaphore_acquire(semaphore, &seconds);
}

TORNADO_API bool tornado_semaphore_acquire_nowait(tornado_semaphore *semaphore)
{
    if (semaphore->value == 0)
        return false;
    semaphore->value--;
    return true;
}

TORNADO_API bool tornado_semaphore_release(tornado_semaphore *semaphore)
{
    if (semaphore->value >= semaphore->limit)
        return semaphore->beyond_limit
                   ? tornado__misused(semaphore->beyond_limit)
                   : tornado__fail(TORNADO_ERR_LIMIT, 0, "tornado_semaphore_release: more than INT_MAX permits");
    tornado__semaphore_give(semaphore);
    return true;
}

#ifndef TORNADO_NO_COROUTINES
static void tornado__semaphore_hold_end(void *arg)
{
    tornado_semaphore *semaphore = arg;
    tornado_semaphore_release(semaphore);
    tornado__shared_release(&semaphore->shared);
}

/* A permit that is there is taken without a future, in a wait that lets others run now and then all the same. */
static uint64_t tornado__semaphore_hold(tornado_semaphore *semaphore, const double *timeout)
{
    const tornado_error *error = NULL;
    semaphore->shared.references++; /* who frees it while it is held does no harm */
    if (semaphore->value > 0)
        error = tornado_wait(&tornado__future_done);
    if (!error && !tornado_semaphore_acquire_nowait(semaphore))
        error = tornado_wait(tornado__semaphore_acquire(semaphore, timeout));
    if (error) {
        tornado__shared_release(&semaphore->shared);
        tornado_raise_error(error);
    }
    return tornado_defer(tornado__semaphore_hold_end, semaphore);
}

TORNADO_API uint64_t tornado_semaphore_hold(tornado_semaphore *semaphore)
{
    return tornado__semaphore_hold(semaphore, NULL);
}

TORNADO_API uint64_t tornado_semaphore_hold_timeout(tornado_semaphore *semaphore, double seconds)
{
    return tornado__semaphore_hold(semaphore, &seconds);
}
#endif

TORNADO_API int tornado_semaphore_value(const tornado_semaphore *semaphore)
{
    return semaphore->value;
}

TORNADO_API tornado_lock *tornado_lock_new(void)
{
    return (tornado_lock *)tornado__semaphore_new(1, 1, "tornado_lock_release: it is not locked");
}

TORNADO_API void tornado_lock_free(tornado_lock *lock)
{
    tornado_semaphore_free((tornado_semaphore *)lock); /* which may be NULL */
}

TORNADO_API tornado_future *tornado_lock_acquire(tornado_lock *lock)
{
    return tornado__semaphore_acquire(&lock->semaphore, NULL);
}

TORNADO_API tornado_future *tornado_lock_acquire_timeout(tornado_lock *lock, double seconds)
{
    return tornado__semaphore_acquire(&lock->semaphore, &seconds);
}

TORNADO_API bool tornado_lock_acquire_nowait(tornado_lock *lock)
{
    return tornado_semaphore_acquire_nowait(&lock->semaphore);
}

TORNADO_API bool tornado_lock_release(tornado_lock *lock)
{
    return tornado_semaphore_release(&lock->semaphore);
}

#ifndef TORNADO_NO_COROUTINES
TORNADO_API uint64_t tornado_lock_hold(tornado_lock *lock)
{
    return tornado__semaphore_hold(&lock->semaphore, NULL);
}

TORNADO_API uint64_t tornado_lock_hold_timeout(tornado_lock *lock, double seconds)
{
    return tornado__semaphore_hold(&lock->semaphore, &seconds);
}
#endif

TORNADO_API bool tornado_lock_is_locked(const tornado_lock *lock)
{
    return lock->semaphore.value == 0;
}

/* ---- queues ----

   Items are in a ring of slots, or in a heap of them that begins at the first slot. An item that was given to
   somebody who waits keeps a slot free until his future goes, so that it can come back without memory being short.
   */

typedef struct tornado__slot {
    void *item;
    uint64_t order;
} tornado__slot;

struct tornado_queue {
    tornado__shared shared;
    tornado__link getters; /* empty while there are items */
    tornado__link putters; /* empty while there is room */
    tornado__link joiners;
    tornado__slot *slots;
    size_t capacity; /* a power of two, or 0; at least count + given */
    size_t first, count, given;
    size_t maxsize, unfinished;
    uint64_t puts;
    bool lifo;
    tornado_compare compare;
    tornado_callback destroy;
};

static void tornado__item_destroy(const tornado_queue *queue, void *item)
{
    if (queue->destroy)
        queue->destroy(item);
}

static tornado__slot *tornado__slot_at(const tornado_queue *queue, size_t i)
{
    return &queue->slots[(queue->first + i) & (queue->capacity - 1)];
}

/* Makes room for one more. */
static bool tornado__slots_reserve(tornado_queue *queue)
{
    size_t capacity = queue->capacity ? queue->capacity * 2 : 8;
    if (queue->count + queue->given < queue->capacity)
        return true;
    tornado__slot *slots = capacity <= SIZE_MAX / 2 / sizeof *slots ? TORNADO_MALLOC(capacity * sizeof *slots) : NULL;
    if (!slots)
        return tornado__nomem();
    for (size_t i = 0; i < queue->count; i++)
        slots[i] = *tornado__slot_at(queue, i);
    TORNADO_FREE(queue->slots);
    queue->slots = slots;
    queue->capacity = capacity;
    queue->first = 0;
    return true;
}

static bool tornado__slot_before(const tornado_queue *queue, const tornado__slot *a, const tornado__slot *b)
{
    int order = queue->compare(a->item, b->item);
    return order < 0 || (order == 0 && a->order < b->order);
}

static void tornado__slots_rise(tornado_queue *queue, size_t at, tornado__slot slot)
{
    for (size_t parent; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!tornado__slot_before(queue, &slot, &queue->slots[parent]))
            break;
        queue->slots[at] = queue->slots[parent];
    }
    queue->slots[at] = slot;
}

/* Puts a slot to where the root was taken away. */
static void tornado__slots_sink(tornado_queue *queue, tornado__slot slot)
{
    size_t at = 0;
    for (size_t child; (child = at * 2 + 1) < queue->count; at = child) {
        if (child + 1 < queue->count && tornado__slot_before(queue, &queue->slots[child + 1], &queue->slots[child]))
            child++;
        if (!tornado__slot_before(queue, &queue->slots[child], &slot))
            break;
        queue->slots[at] = queue->slots[child];
    }
    queue->slots[at] = slot;
}

/* Adds a slot, for which there is room: behind all others, or back to where it was taken from. */
static void tornado__slots_add(tornado_queue *queue, tornado__slot slot, bool back)
{
    if (queue->compare) {
        tornado__slots_rise(queue, queue->count, slot);
    } else if (back && !queue->lifo) {
        queue->first = (queue->first - 1) & (queue->capacity - 1);
        queue->slots[queue->first] = slot;
    } else {
        *tornado__slot_at(queue, queue->count) = slot;
    }
    queue->count++;
}

/* Takes the one whose turn it is; there must be one. */
static tornado__slot tornado__slots_take(tornado_queue *queue)
{
    tornado__slot slot = *tornado__slot_at(queue, queue->lifo ? queue->count - 1 : 0);
    queue->count--;
    if (queue->compare)
        tornado__slots_sink(queue, queue->slots[queue->count]);
    else if (!queue->lifo)
        queue->first = (queue->first + 1) & (queue->capacity - 1);
    return slot;
}

static tornado_queue *tornado__queue_new(const tornado_queue_options *options, tornado_compare compare, bool lifo)
{
    tornado_queue *queue = tornado__shared_new(sizeof *queue);
    if (!queue)
        return NULL;
    tornado__link_init(&queue->getters);
    tornado__link_init(&queue->putters);
    tornado__link_init(&queue->joiners);
    queue->maxsize = options ? options->maxsize : 0;
    queue->destroy = options ? options->destroy : NULL;
    queue->compare = compare;
    queue->lifo = lifo;
    return queue;
}

TORNADO_API tornado_queue *tornado_queue_new(const tornado_queue_options *options)
{
    return tornado__queue_new(options, NULL, false);
}

TORNADO_API tornado_queue *tornado_lifo_queue_new(const tornado_queue_options *options)
{
    return tornado__queue_new(options, NULL, true);
}

TORNADO_API tornado_queue *tornado_priority_queue_new(tornado_compare compare, const tornado_queue_options *options)
{
    return tornado__queue_new(options, compare, false);
}

TORNADO_API void tornado_queue_free(tornado_queue *queue)
{
    if (!queue)
        return;
    queue->shared.freed = true;
    tornado__line_fail_all(&queue->getters);
    tornado__line_fail_all(&queue->putters);
    tornado__line_fail_all(&queue->joiners);
    while (queue->count > 0)
        tornado__item_destroy(queue, tornado__slots_take(queue).item);
    TORNADO_FREE(queue->slots);
    queue->slots = NULL;
    tornado__shared_release(&queue->shared);
}

/* Gives an item to who waits for one. */
static void tornado__queue_deliver(tornado_queue *queue, tornado__parked *getter, tornado__slot slot)
{
    queue->given++;
    getter->item = slot.item;
    getter->order = slot.order;
    tornado_future_set_result(&getter->future, slot.item, NULL);
}

/* The same, or puts it among the others. */
static void tornado__queue_offer(tornado_queue *queue, tornado__slot slot, bool back)
{
    if (tornado__link_empty(&queue->getters))
        tornado__slots_add(queue, slot, back);
    else
        tornado__queue_deliver(queue, tornado__line_pop(&queue->getters), slot);
}

/* Puts a new item, for which there is room in the sense of maxsize. */
static bool tornado__queue_add(tornado_queue *queue, void *item)
{
    if (!tornado__slots_reserve(queue))
        return false;
    tornado__slot slot = {item, queue->puts++};
    queue->unfinished++;
    tornado__queue_offer(queue, slot, false);
    return true;
}

/* Lets the next putter in, if one item is about to be taken and there is room for his then. He comes in first: his
   may be the one that is taken. */
static void tornado__queue_admit(tornado_queue *queue)
{
    while (queue->count <= queue->maxsize && !tornado__link_empty(&queue->putters)) {
        tornado__parked *putter = tornado__line_pop(&queue->putters);
        if (tornado__queue_add(queue, putter->item)) {
            tornado_future_set_result(&putter->future, NULL, NULL);
            break;
        }
        tornado__future_fail(&putter->future, &tornado__error_nomem);
    }
}

TORNADO_API bool tornado_queue_put_nowait(tornado_queue *queue, void *item)
{
    if (tornado_queue_full(queue))
        return tornado__fail(TORNADO_ERR_QUEUE_FULL, 0, "the queue is full: it has %zu items", queue->count);
    return tornado__queue_add(queue, item);
}

static void tornado__queue_put_end(tornado__parked *parked)
{
    if (parked->future.state != TORNADO__SUCCEEDED)
        tornado__item_destroy(TORNADO__CONTAINER(parked->shared, tornado_queue, shared), parked->item);
}

static tornado_future *tornado__queue_put(tornado_queue *queue, void *item, const double *timeout)
{
    if (!tornado_queue_full(queue)) {
        if (tornado__queue_add(queue, item))
            return &tornado__future_done;
        tornado__item_destroy(queue, item);
        return &tornado__future_nomem;
    }
    tornado__parked *parked = tornado__parked_new(&queue->shared, tornado__queue_put_end);
    if (parked)
        parked->item = item;
    else
        tornado__item_destroy(queue, item);
    return tornado__park(parked, &queue->putters, timeout);
}

TORNADO_API tornado_future *tornado_queue_put(tornado_queue *queue, void *item)
{
    return tornado__queue_put(queue, item, NULL);
}

TORNADO_API tornado_future *tornado_queue_put_timeout(tornado_queue *queue, void *item, double seconds)
{
    return tornado__queue_put(queue, item, &seconds);
}

TORNADO_API bool tornado_queue_get_nowait(tornado_queue *queue, void **item)
{
    tornado__queue_admit(queue);
    if (queue->count == 0)
        return tornado__fail(TORNADO_ERR_QUEUE_EMPTY, 0, "the queue is empty");
    *item = tornado__slots_take(queue).item;
    return true;
}

static void tornado__queue_get_end(tornado__parked *parked)
{
    tornado_queue *queue = TORNADO__CONTAINER(parked->shared, tornado_queue, shared);
    tornado__slot slot = {parked->item, parked->order};
    if (parked->future.state != TORNADO__SUCCEEDED)
        return;
    queue->given--;
    if (parked->future.taken)
        return;
    if (queue->shared.freed)
        tornado__item_destroy(queue, slot.item);
    else
        tornado__queue_offer(queue, slot, true);
}

static tornado_future *tornado__queue_get(tornado_queue *queue, const double *timeout)
{
    tornado__parked *parked = tornado__parked_new(&queue->shared, tornado__queue_get_end);
    if (parked)
        tornado__queue_admit(queue);
    if (!parked || queue->count == 0)
        return tornado__park(parked, &queue->getters, timeout);
    tornado__queue_deliver(queue, parked, tornado__slots_take(queue));
    return &parked->future;
}

TORNADO_API tornado_future *tornado_queue_get(tornado_queue *queue)
{
    return tornado__queue_get(queue, NULL);
}

TORNADO_API tornado_future *tornado_queue_get_timeout(tornado_queue *queue, double seconds)
{
    return tornado__queue_get(queue, &seconds);
}

TORNADO_API bool tornado_queue_task_done(tornado_queue *queue)
{
    if (queue->unfinished == 0)
        return tornado__misused("tornado_queue_task_done: it was called more often than items were put");
    if (--queue->unfinished == 0)
        tornado__line_wake_all(&queue->joiners);
    return true;
}

static tornado_future *tornado__queue_join(tornado_queue *queue, const double *timeout)
{
    if (queue->unfinished == 0)
        return &tornado__future_done;
    return tornado__park(tornado__parked_new(&queue->shared, NULL), &queue->joiners, timeout);
}

TORNADO_API tornado_future *tornado_queue_join(tornado_queue *queue)
{
    return tornado__queue_join(queue, NULL);
}

TORNADO_API tornado_future *tornado_queue_join_timeout(tornado_queue *queue, double seconds)
{
    return tornado__queue_join(queue, &seconds);
}

TORNADO_API size_t tornado_queue_qsize(const tornado_queue *queue)
{
    return queue->count;
}

TORNADO_API size_t tornado_queue_maxsize(const tornado_queue *queue)
{
    return queue->maxsize;
}

TORNADO_API bool tornado_queue_empty(const tornado_queue *queue)
{
    return queue->count == 0;
}

TORNADO_API bool tornado_queue_full(const tornado_queue *queue)
{
    return queue->maxsize > 0 && queue->count >= queue->maxsize;
}

/*============================================================================
 * section: executor (private)
 * A queue of jobs, the threads that take from it, and the way back to each job's loop.
 *
 * A job crosses threads twice: by the executor's queue, under its lock, and back by the list of its loop for what
 * comes from other threads, of which it embeds a node: so handing back cannot fail, and however many end before the
 * loop looks, they wake it once. Its future is touched by the loop's thread alone. When the loop is closed first
 * the job loses its future, runs to its end all the same, and goes with the last reference to the loop.
 *============================================================================*/

typedef struct tornado__job {
    tornado__callback done;     /* first; its task queues the job before, and hands it back after */
    tornado__compound compound; /* of the loop, so that its end is noticed */
    tornado_future *future;     /* a reference, for the loop's thread; NULL when the loop was closed */
    tornado_ioloop *loop;       /* retained until the job is handed back */
    tornado_job fn;
    void *arg;
    tornado_callback destroy;
    void *result;
    tornado_arena *arena;
    tornado_error error; /* code 0: none */
    max_align_t copy[];
} tornado__job;

struct tornado_executor {
    bool dummy, closed;
    int max_workers;
    size_t queued, max_queue;
    size_t stack_size;
    pid_t pid; /* in any other process the threads are not there, and nobody would unlock the lock */
#ifndef TORNADO_NO_THREADS
    pthread_mutex_t lock; /* for all of this but what is constant */
    pthread_cond_t work;
    tornado__queue queue;
    int workers, idle, woken; /* idle: waiting for work; woken: of these, told of some */
    pthread_t threads[];
#endif
};

static _Atomic(tornado_executor *) tornado__executor_default;

static tornado__job *tornado__job_of(tornado__task *task)
{
    return TORNADO__CONTAINER(task, tornado__job, done.task);
}

static void tornado__job_free(tornado__job *job)
{
    if (job->destroy && job->result)
        job->destroy(job->result);
    tornado_arena_free(job->arena);
    TORNADO_FREE(job);
}

/* The loop is being closed. */
static void tornado__job_let_go(tornado__compound *compound)
{
    tornado__job *job = TORNADO__CONTAINER(compound, tornado__job, compound);
    tornado_future *future = job->future;
    job->future = NULL;
    tornado_future_release(future);
}

/* Back on the loop; or, when that was closed meanwhile, wherever the last reference to it went. */
static void tornado__job_done(tornado__task *task, tornado_ioloop *loop)
{
    tornado__job *job = tornado__job_of(task);
    tornado_future *future = job->future;
    tornado__link_remove(&job->compound.link);
    if (future && !loop->closed && future->state == TORNADO__PENDING) {
        if (job->error.code) {
            tornado_future_set_error(future, &job->error);
        } else {
            void *result = job->result;
            future->arena = job->arena;
            tornado_future_set_result(future, result, result ? job->destroy : NULL);
            future->owns = future->destroy || future->arena;
            job->result = NULL;
            job->arena = NULL;
        }
    }
    tornado_future_release(future);
    tornado__job_free(job);
}

static void tornado__job_call(void *arg)
{
    tornado__job *job = arg;
    job->result = job->fn(job->arg);
}

static void tornado__job_run(tornado__job *job)
{
    tornado__execution *running = tornado__running();
    running->arena = &job->arena;
    const tornado_error *error = tornado_try(tornado__job_call, job);
    running->arena = NULL;
    if (error)
        job->error = *error;
}

/* What an executor without threads does. */
static void tornado__job_run_on_loop(tornado__task *task, tornado_ioloop *loop)
{
    if (!loop->closed)
        tornado__job_run(tornado__job_of(task));
    tornado__job_done(task, loop);
}

#ifndef TORNADO_NO_THREADS

/* ---- threads ---- */

static void tornado__job_hand_back(tornado__job *job)
{
    tornado_ioloop *loop = job->loop;
    job->done.task.run = tornado__job_done;
    tornado__ioloop_post(loop, &job->done); /* from here on the job may be gone */
    tornado_ioloop_release(loop);
}

static void *tornado__worker(void *arg)
{
    tornado_executor *executor = arg;
    pthread_mutex_lock(&executor->lock);
    for (;;) {
        while (!executor->queue.first && !executor->closed) {
            executor->idle++;
            pthread_cond_wait(&executor->work, &executor->lock);
            executor->idle--;
            executor->woken -= executor->woken > 0; /* it may have woken by itself */
        }
        tornado__task *task = tornado__queue_pop(&executor->queue);
        if (!task)
            break;
        executor->queued--;
        pthread_mutex_unlock(&executor->lock);
        tornado__job_run(tornado__job_of(task));
        tornado__job_hand_back(tornado__job_of(task));
        pthread_mutex_lock(&executor->lock);
    }
    pthread_mutex_unlock(&executor->lock);
    if (tornado__current_loop) /* a job had one made */
        tornado_ioloop_close(tornado__current_loop, false);
    return NULL;
}

/* Starts one more thread, which gets no signals but those of its own faults: handlers run where they did before. */
static bool tornado__worker_start(tornado_executor *executor)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
    sigset_t blocked, before;
    pthread_attr_t attributes;
    sigfillset(&blocked);
    for (size_t i = 0; i < TORNADO__COUNT(faults); i++)
        sigdelset(&blocked, faults[i]);
    int error = pthread_attr_init(&attributes);
    if (!error) {
        if (executor->stack_size)
            error = pthread_attr_setstacksize(&attributes, executor->stack_size);
        if (!error) {
            tornado__sigmask(SIG_BLOCK, &blocked, &before);
            error = pthread_create(&executor->threads[executor->workers], &attributes, tornado__worker, executor);
            tornado__sigmask(SIG_SETMASK, &before, NULL);
        }
        pthread_attr_destroy(&attributes);
    }
    if (error)
        return tornado__fail(TORNADO_ERR_SYSTEM, error, "cannot start a thread: %s", strerror(error));
    executor->workers++;
    return true;
}

/* Queues a job. False with the reason: it is still the caller's. */
static bool tornado__workers_take(tornado_executor *executor, tornado__job *job)
{
    bool taken = false;
    pthread_mutex_lock(&executor->lock);
    if (executor->closed) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_executor_submit: the executor is shut down");
    } else if (executor->queued >= executor->max_queue) {
        tornado__fail(TORNADO_ERR_LIMIT, 0, "tornado_executor_submit: %zu jobs are waiting already",
                      executor->queued);
        tornado__thread.last.http_status = 503;
    } else {
        bool enough = executor->queued < (size_t)executor->idle || executor->workers >= executor->max_workers;
        taken = enough || tornado__worker_start(executor) || executor->workers > 0;
    }
    if (taken) {
        executor->queued++;
        tornado__queue_push(&executor->queue, &job->done.task);
    }
    bool wake = taken && executor->idle > executor->woken;
    executor->woken += wake;
    pthread_mutex_unlock(&executor->lock);
    if (wake)
        pthread_cond_signal(&executor->work);
    return taken;
}

/* Has the threads end and waits for them. */
static bool tornado__workers_end(tornado_executor *executor, bool cancel)
{
    tornado__queue cancelled = {NULL, NULL};
    pthread_mutex_lock(&executor->lock);
    for (int i = 0; i < executor->workers; i++)
        if (pthread_equal(executor->threads[i], pthread_self())) {
            pthread_mutex_unlock(&executor->lock);
            return tornado__fail(TORNADO_ERR_STATE, EDEADLK, "tornado_executor_shutdown: called from a job of it");
        }
    executor->closed = true;
    if (cancel) {
        cancelled = executor->queue;
        executor->queue.first = NULL;
        executor->queued = 0;
    }
    pthread_cond_broadcast(&executor->work);
    pthread_mutex_unlock(&executor->lock);
    for (tornado__task *task; (task = tornado__queue_pop(&cancelled)) != NULL;) {
        tornado__job_of(task)->error = tornado__error_cancelled;
        tornado__job_hand_back(tornado__job_of(task));
    }
    for (int i = 0; i < executor->workers; i++)
        pthread_join(executor->threads[i], NULL);
    executor->workers = 0;
    return true;
}

static tornado_executor *tornado__executor_alloc(int max_workers)
{
    tornado_executor *executor = TORNADO_MALLOC(sizeof *executor + (size_t)max_workers * sizeof(pthread_t));
    if (!executor)
        return NULL;
    memset(executor, 0, sizeof *executor);
    int error = pthread_mutex_init(&executor->lock, NULL);
    if (!error && (error = pthread_cond_init(&executor->work, NULL)) != 0)
        pthread_mutex_destroy(&executor->lock);
    if (error) {
        TORNADO_FREE(executor);
        return NULL;
    }
    return executor;
}

static void tornado__executor_release(tornado_executor *executor)
{
    if (executor->pid == getpid()) {
        pthread_cond_destroy(&executor->work);
        pthread_mutex_destroy(&executor->lock);
    }
    TORNADO_FREE(executor);
}

TORNADO_API size_t tornado_executor_queued(tornado_executor *executor)
{
    if (!executor)
        executor = atomic_load(&tornado__executor_default);
    if (!executor || executor->pid != getpid())
        return 0;
    pthread_mutex_lock(&executor->lock);
    size_t queued = executor->queued;
    pthread_mutex_unlock(&executor->lock);
    return queued;
}

#else

/* ---- no threads: all is done on the loop ---- */

static bool tornado__workers_take(tornado_executor *executor, tornado__job *job)
{
    (void)executor;
    (void)job;
    return false;
}

static bool tornado__workers_end(tornado_executor *executor, bool cancel)
{
    (void)cancel;
    executor->closed = true;
    return true;
}

static tornado_executor *tornado__executor_alloc(int max_workers)
{
    tornado_executor *executor = TORNADO_MALLOC(sizeof *executor);
    (void)max_workers;
    if (executor) {
        memset(executor, 0, sizeof *executor);
        executor->dummy = true;
    }
    return executor;
}

static void tornado__executor_release(tornado_executor *executor)
{
    TORNADO_FREE(executor);
}

TORNADO_API size_t tornado_executor_queued(tornado_executor *executor)
{
    (void)executor;
    return 0;
}

#endif

/* ---- for all ---- */

TORNADO_API tornado_executor *tornado_executor_new(const tornado_executor_options *options)
{
    static const tornado_executor_options defaults;
    const tornado_executor_options *o = options ? options : &defaults;
    int workers = o->max_workers;
    if (workers < 0 || workers > 65536 || o->max_queue < TORNADO_NONE) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_executor_new: max_workers or max_queue is not valid");
        return NULL;
    }
    if (workers == 0 && (workers = tornado__cpu_count() + 4) > 32)
        workers = 32;
    tornado_executor *executor = tornado__executor_alloc(workers);
    if (!executor) {
        tornado__nomem();
        return NULL;
    }
    executor->max_workers = workers;
    executor->max_queue = o->max_queue == 0 ? 10000 : o->max_queue < 0 ? SIZE_MAX : (size_t)o->max_queue;
    executor->stack_size = o->stack_size;
    executor->dummy |= o->dummy;
    executor->pid = getpid();
    return executor;
}

/* One that the process shares, made when it is first used. One that was inherited by a fork is left behind: its lock
   may be taken for ever. */
static tornado_executor *tornado__executor_shared(_Atomic(tornado_executor *) *shared,
                                                  const tornado_executor_options *options)
{
    tornado_executor *executor = atomic_load(shared);
    if (executor && executor->pid == getpid())
        return executor;
    tornado_executor *made = tornado_executor_new(options);
    if (!made || atomic_compare_exchange_strong(shared, &executor, made))
        return made;
    tornado_executor_free(made); /* another thread was faster */
    return executor;
}

static tornado__job *tornado__job_new(tornado_ioloop *loop, tornado_job fn, void *arg,
                                      const tornado_job_options *options)
{
    size_t copy = options ? options->copy : 0;
    tornado__job *job = copy < SIZE_MAX / 2 ? TORNADO_MALLOC(sizeof *job + copy) : NULL;
    tornado_future *future = job ? tornado__future_alloc(loop, sizeof *future, NULL) : NULL;
    if (!future) {
        TORNADO_FREE(job);
        tornado__nomem();
        return NULL;
    }
    memset(job, 0, sizeof *job);
    job->future = future;
    job->loop = loop;
    job->fn = fn;
    job->arg = copy ? memcpy(job->copy, arg, copy) : arg;
    job->destroy = options ? options->destroy : NULL;
    job->compound.let_go = tornado__job_let_go;
    tornado__link_append(&loop->compounds, &job->compound.link);
    return job;
}

/* Hands a job over; what it holds on to may be gone when this returns. */
static bool tornado__executor_take(tornado_executor *executor, tornado__job *job)
{
    if (!executor->dummy) {
        tornado_ioloop_retain(job->loop);
        if (tornado__workers_take(executor, job))
            return true;
        tornado_ioloop_release(job->loop);
        return false;
    }
    if (executor->closed)
        return tornado__fail(TORNADO_ERR_STATE, 0, "tornado_executor_submit: the executor is shut down");
    job->done.task.run = tornado__job_run_on_loop;
    tornado__ioloop_schedule(job->loop, &job->done.task);
    return true;
}

TORNADO_API tornado_future *tornado_executor_submit_with(tornado_executor *executor, tornado_job fn, void *arg,
                                                         const tornado_job_options *options)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_executor *used = executor ? executor : tornado__executor_shared(&tornado__executor_default, NULL);
    if (!loop)
        return &tornado__future_nomem;
    if (!used)
        return tornado_future_failed(tornado_last_error());
    if (loop->closed || (executor && executor->pid != getpid())) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_executor_submit: the %s",
                      loop->closed ? "loop is closed" : "executor is another process's");
        return tornado_future_failed(tornado_last_error());
    }
    tornado__job *job = tornado__job_new(loop, fn, arg, options);
    if (!job)
        return &tornado__future_nomem;
    tornado_future *future = tornado_future_retain(job->future);
    if (tornado__executor_take(used, job))
        return future;
    tornado__link_remove(&job->compound.link);
    tornado_future_release(job->future);
    tornado__job_free(job);
    tornado_future_set_error(future, tornado_last_error());
    return future;
}

TORNADO_API tornado_future *tornado_executor_submit(tornado_executor *executor, tornado_job fn, void *arg)
{
    return tornado_executor_submit_with(executor, fn, arg, NULL);
}

TORNADO_API tornado_future *tornado_run_on_executor(tornado_job fn, void *arg)
{
    return tornado_executor_submit_with(NULL, fn, arg, NULL);
}

TORNADO_API bool tornado_executor_shutdown(tornado_executor *executor, bool cancel)
{
    tornado_executor *shared = executor ? NULL : atomic_load(&tornado__executor_default);
    executor = executor ? executor : shared;
    if (!executor || executor->pid != getpid())
        return true;
    if (!tornado__workers_end(executor, cancel))
        return false;
    if (shared && atomic_compare_exchange_strong(&tornado__executor_default, &shared, NULL))
        tornado__executor_release(executor);
    return true;
}

TORNADO_API void tornado_executor_free(tornado_executor *executor)
{
    if (executor && tornado_executor_shutdown(executor, false))
        tornado__executor_release(executor);
}

/*============================================================================
 * section: address (private)
 * A sockaddr in a value, and text for it.
 *============================================================================*/

static struct sockaddr *tornado__sockaddr(const tornado_address *address)
{
    return (struct sockaddr *)(void *)(uintptr_t)address->sockaddr.bytes;
}

TORNADO_API bool tornado_is_valid_ip(const char *ip)
{
    unsigned char bytes[16];
    return ip && *ip && (inet_pton(AF_INET, ip, bytes) == 1 || inet_pton(AF_INET6, ip, bytes) == 1);
}

/* Fills in an IPv6 address that may have a scope, which only getaddrinfo reads. */
static bool tornado__address_ipv6(struct sockaddr_in6 *in6, const char *ip)
{
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_flags = AI_NUMERICHOST;
    hints.ai_family = AF_INET6;
    hints.ai_socktype = SOCK_STREAM;
    bool ok = getaddrinfo(ip, NULL, &hints, &found) == 0 && found->ai_addrlen == sizeof *in6;
    if (ok)
        memcpy(in6, found->ai_addr, sizeof *in6);
    if (found)
        freeaddrinfo(found);
    return ok;
}

TORNADO_API bool tornado_address_ip(tornado_address *address, const char *ip, int port)
{
    struct sockaddr_in *in = (struct sockaddr_in *)(void *)tornado__sockaddr(address);
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)(void *)in;
    memset(address, 0, sizeof *address);
    if (port < 0 || port > 65535)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "not a port: %d", port);
    if (ip && inet_pton(AF_INET, ip, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
        address->len = sizeof *in;
    } else if (ip && tornado__address_ipv6(in6, ip)) {
        in6->sin6_port = htons((uint16_t)port);
        address->len = sizeof *in6;
    } else {
        return tornado__fail(TORNADO_ERR_INVALID, 0, "not an IP address: \"%.60s\"", ip ? ip : "");
    }
    return true;
}

TORNADO_API bool tornado_address_unix(tornado_address *address, const char *path)
{
    struct sockaddr_un *un = (struct sockaddr_un *)(void *)tornado__sockaddr(address);
    size_t len = path ? strlen(path) : 0;
    bool abstract = len > 1 && path[0] == '@', too_long = len + !abstract > sizeof un->sun_path;
    memset(address, 0, sizeof *address);
    if (len == 0 || too_long || (len == 1 && *path == '@'))
        return tornado__fail(TORNADO_ERR_INVALID, too_long ? ENAMETOOLONG : 0,
                             "not a path for a unix socket: \"%.80s\"%s", path ? path : "", too_long ? "..." : "");
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, len);
    if (abstract)
        un->sun_path[0] = '\0';
    address->len = (unsigned)(offsetof(struct sockaddr_un, sun_path) + len + !abstract);
    return true;
}

TORNADO_API int tornado_address_port(const tornado_address *address)
{
    const struct sockaddr *sockaddr = tornado__sockaddr(address);
    if (address->len >= sizeof(struct sockaddr_in) && sockaddr->sa_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)(const void *)sockaddr)->sin_port);
    if (address->len >= sizeof(struct sockaddr_in6) && sockaddr->sa_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)(const void *)sockaddr)->sin6_port);
    return 0;
}

TORNADO_API char *tornado_address_format(const tornado_address *address, char out[TORNADO_ADDRESS_MAX])
{
    const struct sockaddr *sockaddr = tornado__sockaddr(address);
    char ip[INET6_ADDRSTRLEN + 32];
    size_t head = offsetof(struct sockaddr_un, sun_path);
    if (address->len >= sizeof(struct sockaddr_in) && sockaddr->sa_family != AF_UNIX &&
        getnameinfo(sockaddr, (socklen_t)address->len, ip, sizeof ip, NULL, 0, NI_NUMERICHOST) == 0) {
        snprintf(out, TORNADO_ADDRESS_MAX, sockaddr->sa_family == AF_INET6 ? "[%s]:%d" : "%s:%d", ip,
                 tornado_address_port(address));
    } else if (address->len > head && sockaddr->sa_family == AF_UNIX) {
        const char *path = ((const struct sockaddr_un *)(const void *)sockaddr)->sun_path;
        int len = (int)(address->len - head);
        snprintf(out, TORNADO_ADDRESS_MAX, *path ? "unix:%.*s" : "unix:@%.*s", *path ? len : len - 1,
                 *path ? path : path + 1);
    } else {
        snprintf(out, TORNADO_ADDRESS_MAX, "%s",
                 address->len && sockaddr->sa_family == AF_UNIX ? "unix:" : "(none)");
    }
    return out;
}

static bool tornado__address_of(tornado_address *address, int fd, int (*get)(int, struct sockaddr *, socklen_t *),
                                const char *what)
{
    socklen_t len = sizeof address->sockaddr;
    memset(address, 0, sizeof *address);
    if (get(fd, tornado__sockaddr(address), &len) != 0)
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "%s of fd %d: %s", what, fd, strerror(errno));
    address->len = len < sizeof address->sockaddr ? (unsigned)len : (unsigned)sizeof address->sockaddr;
    return true;
}

static int tornado__getsockname(int fd, struct sockaddr *sockaddr, socklen_t *len)
{
    return getsockname(fd, sockaddr, len);
}

static int tornado__getpeername(int fd, struct sockaddr *sockaddr, socklen_t *len)
{
    return getpeername(fd, sockaddr, len);
}

TORNADO_API bool tornado_address_local(tornado_address *address, int fd)
{
    return tornado__address_of(address, fd, tornado__getsockname, "the local address");
}

TORNADO_API bool tornado_address_peer(tornado_address *address, int fd)
{
    return tornado__address_of(address, fd, tornado__getpeername, "the peer");
}

/* The IP address as text, as a request shows it: IPv4 that came over IPv6 as IPv4; "0.0.0.0" where there is none.
   */
static char *tornado__address_host(const tornado_address *address, char out[46])
{
    const struct sockaddr *sockaddr = tornado__sockaddr(address);
    const void *ip = NULL;
    int family = AF_INET;
    if (address->len >= sizeof(struct sockaddr_in) && sockaddr->sa_family == AF_INET) {
        ip = &((const struct sockaddr_in *)(const void *)sockaddr)->sin_addr;
    } else if (address->len >= sizeof(struct sockaddr_in6) && sockaddr->sa_family == AF_INET6) {
        const struct in6_addr *six = &((const struct sockaddr_in6 *)(const void *)sockaddr)->sin6_addr;
        bool mapped = IN6_IS_ADDR_V4MAPPED(six);
        family = mapped ? AF_INET : AF_INET6;
        ip = mapped ? six->s6_addr + 12 : six->s6_addr;
    }
    if (!ip || !inet_ntop(family, ip, out, 46))
        strcpy(out, "0.0.0.0");
    return out;
}

/*============================================================================
 * section: iostream (private)
 * A small core that moves bytes and hands them to its owner; the reads and writes of the public half are one such
 * owner, an HTTP connection is another.
 *
 * Receiving: an idle stream has no buffer. Bytes arrive in the loop's scratch and are handed to the owner there;
 * what it leaves is copied into a buffer of the stream's own, and while that holds anything, bytes arrive behind
 * it. Sending: a queue of chunks, sent together, from the loop's pool; a drained stream holds none. The owner
 * decides when to flush: that is how pipelined answers leave in one send.
 *
 * A pending read keeps its state in tornado__stream_io, which only streams with a user have. What a read gave stays
 * where it is, with a NUL put behind it (the byte there is kept aside), until the next read: so nothing is received
 * between reads.
 *============================================================================*/

#include <sys/ioctl.h>

typedef struct tornado__inbuf {
    size_t start, end, cap; /* unread bytes: [start, end) */
    char bytes[];
} tornado__inbuf;

typedef struct tornado__chunk {
    tornado__block block; /* first: chunks come from a pool of blocks */
    struct tornado__chunk *next, *last; /* last: in the first chunk of a queue only */
    char *start, *end, *limit;
    void *owned; /* memory to free, when the bytes are not behind this struct */
} tornado__chunk;

/* What a stream's owner does. `data` is given all unread bytes and returns how many it used; it may close the
   stream, and must then return anything. `closed` is called once. `drained`, which may be NULL, after everything
   queued was sent. `wants_end`: whether to close at the peer's end while paused; NULL: always. `free` frees the
   memory that the stream is in. */
typedef struct tornado__stream_owner {
    size_t (*data)(tornado_iostream *stream, char *data, size_t len);
    void (*closed)(tornado_iostream *stream, const tornado_error *cause); /* NULL: no error */
    void (*drained)(tornado_iostream *stream);
    bool (*wants_end)(const tornado_iostream *stream);
    void (*free)(tornado_iostream *stream);
} tornado__stream_owner;

struct tornado_iostream {
    tornado_ioloop *loop;
    const tornado__stream_owner *owner;
    tornado__inbuf *in;
    tornado__chunk *out;
    struct tornado__stream_io *io;
    int fd;
    unsigned references;
    bool watched;    /* the loop has it */
    bool connecting;
    bool closed;
    bool paused;     /* the owner does not want data now */
    bool unbuffered_ready; /* the kernel holds bytes that were reported and left there */
    bool pipe;       /* not a socket */
};

/* ---- the loop's side ---- */

static void tornado__iostream_event(int fd, unsigned events, void *arg);

/* Watches for what the stream wants now. A system call only when that changed. */
static bool tornado__iostream_watch(tornado_iostream *stream)
{
    unsigned events = 0;
    if (stream->closed)
        return false;
    if (!stream->connecting && !(stream->paused && stream->unbuffered_ready)) /* while paused, for the end */
        events |= TORNADO_IOLOOP_READ;
    if (stream->connecting || stream->out)
        events |= TORNADO_IOLOOP_WRITE;
    if (stream->watched)
        return tornado_ioloop_update_handler(stream->loop, stream->fd, events);
    stream->watched = tornado_ioloop_add_handler(stream->loop, stream->fd, tornado__iostream_event, stream, events);
    return stream->watched;
}

static void tornado__iostream_retain(tornado_iostream *stream)
{
    stream->references++;
}

static void tornado__chunk_free(tornado_ioloop *loop, tornado__chunk *chunk)
{
    TORNADO_FREE(chunk->owned);
    tornado__pool_put(&loop->chunks, &chunk->block);
}

static void tornado__iostream_drop_out(tornado_iostream *stream)
{
    for (tornado__chunk *chunk = stream->out, *next; chunk; chunk = next) {
        next = chunk->next;
        tornado__chunk_free(stream->loop, chunk);
    }
    stream->out = NULL;
}

/* Closes the descriptor and tells the owner. */
static void tornado__iostream_shut(tornado_iostream *stream, const tornado_error *cause)
{
    if (stream->closed)
        return;
    if (stream->watched && !stream->loop->closed)
        tornado_ioloop_remove_handler(stream->loop, stream->fd);
    tornado__ioloop_close_fd(stream->loop, stream->fd, stream->watched);
    stream->closed = true;
    stream->watched = stream->connecting = false;
    stream->fd = -1;
    tornado__iostream_drop_out(stream);
    stream->owner->closed(stream, cause);
}

static TORNADO__COLD void tornado__iostream_unreferenced(tornado_iostream *stream)
{
    tornado_ioloop *loop = stream->loop;
    stream->references++; /* closing may retain and release it again */
    tornado__iostream_shut(stream, NULL);
    if (--stream->references > 0)
        return;
    TORNADO_FREE(stream->in);
    stream->owner->free(stream);
    tornado__ioloop_let_go(loop);
}

static TORNADO__INLINE void tornado__iostream_release(tornado_iostream *stream)
{
    if (--stream->references == 0)
        tornado__iostream_unreferenced(stream);
}

/* Watches, where nobody could be told that it failed: the stream closes then. False: it has closed (and may be
   gone, unless the caller holds it). */
static bool tornado__iostream_watch_or_shut(tornado_iostream *stream)
{
    if (tornado__iostream_watch(stream))
        return true;
    tornado__iostream_shut(stream, &tornado__thread.last);
    return false;
}

/* ---- sending ---- */

/* Appends a chunk with room for `len` bytes. */
static tornado__chunk *tornado__iostream_chunk(tornado_iostream *stream, size_t len)
{
    tornado__pool *pool = &stream->loop->chunks;
    tornado__chunk *chunk;
    if (len <= pool->block_size - sizeof *chunk) {
        chunk = (tornado__chunk *)(void *)tornado__pool_get(pool);
    } else if (len > SIZE_MAX / 2) {
        chunk = NULL;
    } else if ((chunk = TORNADO_MALLOC(sizeof *chunk + len)) != NULL) {
        chunk->block.size = sizeof *chunk + len;
    }
    if (!chunk) {
        tornado__nomem();
        return NULL;
    }
    chunk->next = NULL;
    chunk->start = chunk->end = (char *)(chunk + 1);
    chunk->limit = (char *)chunk + chunk->block.size;
    chunk->owned = NULL;
    if (stream->out) {
        stream->out->last->next = chunk;
        stream->out->last = chunk;
    } else {
        stream->out = chunk->last = chunk;
    }
    return chunk;
}

/* Room for `len` bytes at the end of what is to be sent; the caller writes them and then adds to chunk->end. */
static TORNADO__INLINE tornado__chunk *tornado__iostream_reserve(tornado_iostream *stream, size_t len)
{
    tornado__chunk *last = stream->out ? stream->out->last : NULL;
    if (TORNADO__LIKELY(last && len <= (size_t)(last->limit - last->end)))
        return last;
    return tornado__iostream_chunk(stream, len);
}

static bool tornado__iostream_queue(tornado_iostream *stream, const void *data, size_t len)
{
    if (len == 0)
        return true;
    tornado__chunk *chunk = tornado__iostream_reserve(stream, len);
    if (!chunk)
        return false;
    memcpy(chunk->end, data, len);
    chunk->end += len;
    return true;
}

/* Queues bytes in memory from TORNADO_MALLOC, which becomes the stream's; it is freed, too, when this fails. */
static bool tornado__iostream_adopt(tornado_iostream *stream, void *memory, size_t len)
{
    tornado__chunk *chunk = tornado__iostream_chunk(stream, 0);
    if (!chunk) {
        TORNADO_FREE(memory);
        return false;
    }
    chunk->owned = chunk->start = memory;
    chunk->end = chunk->limit = chunk->start + len;
    return true;
}

static size_t tornado__iostream_queued(const tornado_iostream *stream)
{
    size_t queued = 0;
    for (const tornado__chunk *chunk = stream->out; chunk; chunk = chunk->next)
        queued += (size_t)(chunk->end - chunk->start);
    return queued;
}

/* Takes `sent` bytes off the queue. */
static void tornado__iostream_sent(tornado_iostream *stream, size_t sent)
{
    while (stream->out) {
        tornado__chunk *chunk = stream->out;
        size_t len = (size_t)(chunk->end - chunk->start);
        if (sent < len) {
            chunk->start += sent;
            return;
        }
        sent -= len;
        if (chunk->next)
            chunk->next->last = chunk->last;
        stream->out = chunk->next;
        tornado__chunk_free(stream->loop, chunk);
    }
}

/* write to a pipe. When nobody reads from it any more that raises SIGPIPE, against which a pipe has no flag: it is
   held back meanwhile, and taken if it came. */
static TORNADO__COLD ssize_t tornado__pipe_write(int fd, const void *data, size_t len)
{
    sigset_t sigpipe, before, pending;
    int number;
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    sigpending(&pending);
    bool came_before = sigismember(&pending, SIGPIPE);
    tornado__sigmask(SIG_BLOCK, &sigpipe, &before);
    ssize_t wrote = write(fd, data, len);
    int error = errno;
    if (wrote < 0 && error == EPIPE && !came_before && sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE))
        sigwait(&sigpipe, &number);
    tornado__sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return wrote;
}

/* One run of bytes. Returns what send does. */
static TORNADO__INLINE ssize_t tornado__iostream_send_bytes(tornado_iostream *stream, const void *data, size_t len)
{
    if (TORNADO__UNLIKELY(stream->pipe))
        return tornado__pipe_write(stream->fd, data, len);
    return send(stream->fd, data, len, MSG_NOSIGNAL);
}

/* One send of what is queued, up to 16 chunks (one to a pipe). Returns what send does. */
static ssize_t tornado__iostream_send_once(tornado_iostream *stream)
{
    tornado__chunk *chunk = stream->out;
    if (TORNADO__LIKELY(!chunk->next) || stream->pipe)
        return tornado__iostream_send_bytes(stream, chunk->start, (size_t)(chunk->end - chunk->start));
    struct iovec parts[16];
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    size_t count = 0;
    for (; chunk && count < TORNADO__COUNT(parts); chunk = chunk->next) {
        parts[count].iov_base = chunk->start;
        parts[count++].iov_len = (size_t)(chunk->end - chunk->start);
    }
    message.msg_iovlen = count;
    return sendmsg(stream->fd, &message, MSG_NOSIGNAL);
}

/* Sends what the socket takes; the rest when it is writable. False: the stream closed (it may be gone, unless the
   caller holds it). */
static bool tornado__iostream_flush(tornado_iostream *stream)
{
    while (stream->out && !stream->connecting) {
        ssize_t sent = tornado__iostream_send_once(stream);
        if (sent >= 0) {
            tornado__iostream_sent(stream, (size_t)sent);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
            break;
        } else if (errno != EINTR) {
            tornado__fail(TORNADO_ERR_SYSTEM, errno, "write: %s", strerror(errno));
            tornado__iostream_shut(stream, &tornado__thread.last);
            return false;
        }
    }
    return !stream->out || tornado__iostream_watch_or_shut(stream);
}

/* ---- receiving ---- */

static bool tornado__iostream_reserve_in(tornado_iostream *stream, size_t room)
{
    tornado__inbuf *in = stream->in;
    if (in && in->cap - in->end >= room)
        return true;
    size_t used = in ? in->end - in->start : 0;
    if (in && in->cap - used >= room && in->start > in->cap / 2) {
        memmove(in->bytes, in->bytes + in->start, used);
    } else {
        size_t cap = used + room;
        if (cap < used || cap > SIZE_MAX / 2)
            return tornado__nomem();
        if (in && cap < used * 2) /* grow by doubling, so that what arrives is copied a bounded number of times */
            cap = used * 2;
        tornado__inbuf *bigger = TORNADO_MALLOC(sizeof *bigger + cap + 1);
        if (!bigger)
            return tornado__nomem();
        if (used)
            memcpy(bigger->bytes, in->bytes + in->start, used);
        bigger->cap = cap;
        TORNADO_FREE(in);
        stream->in = in = bigger;
    }
    in->start = 0;
    in->end = used;
    return true;
}

/* Gives the owner what is buffered; drops the buffer when that was all. */
static void tornado__iostream_feed(tornado_iostream *stream)
{
    tornado__inbuf *in = stream->in;
    if (!in || in->start == in->end)
        return;
    size_t used = stream->owner->data(stream, in->bytes + in->start, in->end - in->start);
    in = stream->in; /* the owner may have dropped it */
    if (!in)
        return;
    in->start += used < in->end - in->start ? used : in->end - in->start;
    if (used && in->start == in->end) { /* an owner that used none may have given out bytes in there */
        TORNADO_FREE(in);
        stream->in = NULL;
    }
}

static char *tornado__loop_scratch(tornado_ioloop *loop)
{
    if (TORNADO__UNLIKELY(!loop->scratch) && !(loop->scratch = TORNADO_MALLOC(TORNADO__SCRATCH_SIZE)))
        tornado__nomem();
    return loop->scratch;
}

static TORNADO__INLINE ssize_t tornado__iostream_recv(tornado_iostream *stream, void *data, size_t room)
{
    return TORNADO__UNLIKELY(stream->pipe) ? read(stream->fd, data, room) : recv(stream->fd, data, room, 0);
}

/* One recv, and its bytes to the owner. Returns what recv does, with EINTR as EAGAIN. */
static ssize_t tornado__iostream_receive(tornado_iostream *stream)
{
    tornado_ioloop *loop = stream->loop;
    ssize_t received;
    if (stream->in) {
        if (!tornado__iostream_reserve_in(stream, 4096))
            goto nomem;
        tornado__inbuf *in = stream->in;
        received = tornado__iostream_recv(stream, in->bytes + in->end, in->cap - in->end);
        if (received > 0) {
            in->end += (size_t)received;
            tornado__iostream_feed(stream);
        }
        return received;
    }
    char *scratch = tornado__loop_scratch(loop);
    if (!scratch)
        goto nomem;
    received = tornado__iostream_recv(stream, scratch, TORNADO__SCRATCH_SIZE);
    if (received <= 0)
        return received;
    /* the owner runs user code, which must find no scratch that is in use: it is lent, and given back */
    loop->scratch = NULL;
    size_t len = (size_t)received, used = stream->owner->data(stream, scratch, len);
    if (TORNADO__UNLIKELY(!stream->closed && used < len)) {
        if (tornado__iostream_reserve_in(stream, len - used < 512 ? 512 : len - used)) {
            memcpy(stream->in->bytes + stream->in->end, scratch + used, len - used);
            stream->in->end += len - used;
        } else {
            received = -1;
            errno = ENOMEM;
        }
    }
    if (TORNADO__UNLIKELY(loop->scratch != NULL))
        TORNADO_FREE(scratch);
    else
        loop->scratch = scratch;
    return received;
nomem:
    errno = ENOMEM;
    return -1;
}

/* The peer has closed its side and everything it sent was received. */
static void tornado__iostream_end(tornado_iostream *stream)
{
    tornado__iostream_shut(stream, NULL);
}

static void tornado__iostream_readable(tornado_iostream *stream)
{
    ssize_t received = tornado__iostream_receive(stream);
    if (TORNADO__LIKELY(received > 0) || stream->closed)
        return;
    if (received == 0) {
        tornado__iostream_end(stream);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        tornado__fail(errno == ENOMEM ? TORNADO_ERR_NOMEM : TORNADO_ERR_SYSTEM, errno, "read: %s", strerror(errno));
        tornado__iostream_shut(stream, &tornado__thread.last);
    }
}

static void tornado__iostream_connected(tornado_iostream *stream);

/* A pipe that nobody reads any more; asked of the pipe, as not every poller tells it from one that can be read. */
static bool tornado__pipe_broken(int fd)
{
    struct pollfd pipe = {.fd = fd};
    return poll(&pipe, 1, 0) > 0 && pipe.revents & POLLERR;
}

/* Something happened while the owner wants no data: see whether that was the end. */
static void tornado__iostream_look(tornado_iostream *stream, unsigned events)
{
    int waiting = 0, error = 0;
    socklen_t len = sizeof error;
    if (events & TORNADO_IOLOOP_ERROR && getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error) {
        tornado__fail(TORNADO_ERR_SYSTEM, error, "read: %s", strerror(error));
        tornado__iostream_shut(stream, &tornado__thread.last);
        return;
    }
    bool wants_end = !stream->owner->wants_end || stream->owner->wants_end(stream);
    if (stream->pipe && (wants_end || stream->out) && tornado__pipe_broken(stream->fd)) {
        tornado__fail(TORNADO_ERR_SYSTEM, EPIPE, "write: %s", strerror(EPIPE));
        tornado__iostream_shut(stream, &tornado__thread.last);
        return;
    }
    if (wants_end && ioctl(stream->fd, FIONREAD, &waiting) == 0 && waiting == 0) {
        tornado__iostream_end(stream);
        return;
    }
    stream->unbuffered_ready = true;
    if (events & TORNADO_IOLOOP_ERROR) { /* a hang-up is reported for ever: stop watching until the next read */
        tornado_ioloop_remove_handler(stream->loop, stream->fd);
        stream->watched = false;
    } else {
        tornado__iostream_watch(stream);
    }
}

static void tornado__iostream_event(int fd, unsigned events, void *arg)
{
    tornado_iostream *stream = arg;
    (void)fd;
    tornado__iostream_retain(stream);
    if (TORNADO__UNLIKELY(stream->connecting)) {
        tornado__iostream_connected(stream);
    } else {
        if (events & (TORNADO_IOLOOP_READ | TORNADO_IOLOOP_ERROR)) {
            if (!stream->paused)
                tornado__iostream_readable(stream);
            else
                tornado__iostream_look(stream, events);
        }
        if (TORNADO__UNLIKELY(events & TORNADO_IOLOOP_WRITE) && !stream->closed &&
            tornado__iostream_flush(stream) && !stream->out) {
            tornado__iostream_watch(stream);
            if (stream->owner->drained)
                stream->owner->drained(stream);
        }
    }
    tornado__iostream_release(stream);
}

static void tornado__iostream_init(tornado_iostream *stream, tornado_ioloop *loop, int fd,
                                   const tornado__stream_owner *owner)
{
    memset(stream, 0, sizeof *stream);
    stream->loop = loop;
    tornado__ioloop_hold(loop);
    stream->fd = fd;
    stream->owner = owner;
    stream->references = 1;
}

/* ---- reads and writes for users ---- */

enum { TORNADO__READ_NONE, TORNADO__READ_BYTES, TORNADO__READ_UNTIL, TORNADO__READ_UNTIL_CLOSE };

typedef struct tornado__write_wait {
    struct tornado__write_wait *next;
    tornado_future *future;
    uint64_t until; /* done when so many bytes were sent in all */
} tornado__write_wait;

typedef struct tornado__stream_io {
    tornado_future *read;
    int kind;
    bool partial;
    bool has_saved;        /* a NUL stands where `saved` was */
    char saved;
    size_t bytes, max_bytes, scanned;
    tornado__re_walk *walk; /* of until_regex */
    char *delimiter, short_delimiter[16];
    size_t delimiter_len;
    void (*streaming_callback)(tornado_bytes chunk, void *arg);
    void *streaming_arg;
    tornado_future *connect;
    tornado__write_wait *writes, **writes_end;
    uint64_t written;      /* bytes given to write in all */
    size_t max_buffer_size;
    int64_t max_write_buffer_size;
    tornado_callback close_callback;
    void *close_arg;
    tornado__task task;    /* streaming of what is buffered, and the close callback; holds a reference */
    bool task_queued;
    const tornado_error *error; /* why it closed; allocated, or static; NULL: nothing went wrong */
} tornado__stream_io;

static void tornado__user_run(tornado__task *task, tornado_ioloop *loop);

typedef struct tornado__user_stream {
    tornado_iostream stream;
    tornado__stream_io io;
} tornado__user_stream;

static void tornado__user_queue_task(tornado_iostream *stream)
{
    if (stream->io->task_queued)
        return;
    stream->io->task_queued = true;
    tornado__iostream_retain(stream);
    tornado__ioloop_schedule(stream->loop, &stream->io->task);
}

/* Puts the byte back that had to give way to a NUL. */
static void tornado__user_restore(tornado_iostream *stream)
{
    if (stream->io->has_saved && stream->in)
        stream->in->bytes[stream->in->start] = stream->io->saved;
    stream->io->has_saved = false;
}

static void tornado__user_read_reset(tornado__stream_io *io)
{
    if (io->delimiter != io->short_delimiter)
        TORNADO_FREE(io->delimiter);
    io->delimiter = NULL;
    if (io->walk)
        TORNADO_FREE(io->walk->memory);
    TORNADO_FREE(io->walk);
    io->walk = NULL;
    io->kind = TORNADO__READ_NONE;
    io->read = NULL;
    io->streaming_callback = NULL;
    io->scanned = 0;
}

/* Completes the read with the first `len` buffered bytes, which stay where they are. */
static void tornado__user_read_done(tornado_iostream *stream, size_t len)
{
    tornado__stream_io *io = stream->io;
    tornado_bytes bytes = {"", 0};
    tornado_future *future = io->read;
    tornado__user_read_reset(io);
    stream->paused = true;
    if (len) {
        tornado__inbuf *in = stream->in;
        bytes.data = in->bytes + in->start;
        bytes.len = len;
        in->start += len;
        io->saved = in->bytes[in->start]; /* there is always one byte behind cap */
        io->has_saved = true;
        in->bytes[in->start] = '\0';
    }
    tornado_future_set_bytes(future, bytes);
    tornado_future_release(future);
}

static void tornado__user_read_failed(tornado_iostream *stream, const tornado_error *error)
{
    tornado_future *future = stream->io->read;
    tornado__user_read_reset(stream->io);
    stream->paused = true;
    tornado_future_set_error(future, error);
    tornado_future_release(future);
}

/* Whether the delimiter is among the buffered bytes, and where it ends. Goes on where the last search ended. */
static bool tornado__user_find(tornado__stream_io *io, const char *data, size_t len, size_t *found)
{
    const char *end = data + len, *at = data + io->scanned;
    if (io->walk) {
        tornado__re_walk_feed(io->walk, data, len);
        if (!tornado__re_walk_over(io->walk))
            tornado__re_walk_close(io->walk, -1, false); /* as if this were all */
        *found = io->walk->found ? (size_t)io->walk->best[1] : 0;
        return io->walk->found;
    }
    while ((size_t)(end - at) >= io->delimiter_len) {
        at = memchr(at, io->delimiter[0], (size_t)(end - at) - io->delimiter_len + 1);
        if (!at)
            break;
        if (memcmp(at, io->delimiter, io->delimiter_len) == 0) {
            *found = (size_t)(at - data) + io->delimiter_len;
            return true;
        }
        at++;
    }
    io->scanned = len >= io->delimiter_len ? len - io->delimiter_len + 1 : 0;
    return false;
}

typedef struct tornado__stream_call {
    tornado__stream_io *io;
    tornado_bytes chunk;
} tornado__stream_call;

static void tornado__user_call_streaming(void *arg)
{
    tornado__stream_call *call = arg;
    call->io->streaming_callback(call->chunk, call->io->streaming_arg);
}

static void tornado__user_call_closed(void *arg)
{
    tornado__stream_io *io = arg;
    tornado_callback callback = io->close_callback;
    io->close_callback = NULL;
    callback(io->close_arg);
}

/* Runs a callback of the user below frames of ours that hold things: what it raises ends here. */
static void tornado__user_call(tornado_callback fn, void *arg)
{
    const tornado_error *error = tornado_try(fn, arg);
    if (error)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "Exception in stream callback");
}

/* Hands buffered bytes to the streaming callback, which may do anything but free the stream: the caller holds it.
   */
static void tornado__user_stream_chunk(tornado_iostream *stream, size_t len)
{
    tornado__stream_io *io = stream->io;
    tornado__inbuf *in = stream->in;
    tornado__stream_call call = {io, {in->bytes + in->start, len}};
    stream->in = NULL; /* a read that the callback starts must not move what it was given */
    if (io->kind == TORNADO__READ_BYTES)
        io->bytes -= len;
    in->start += len;
    tornado__user_call(tornado__user_call_streaming, &call);
    if (in->start == in->end) {
        TORNADO_FREE(in);
    } else {
        TORNADO_FREE(stream->in);
        stream->in = in;
    }
}

/* Whether the read is complete, or has failed. With streaming it runs the callback, so only in a turn of its own.
   */
static bool tornado__user_try_read(tornado_iostream *stream)
{
    tornado__stream_io *io = stream->io;
    size_t have = stream->in ? stream->in->end - stream->in->start : 0, need = 0;
    if (io->streaming_callback && have && (io->kind == TORNADO__READ_UNTIL_CLOSE || io->bytes)) {
        tornado__user_stream_chunk(stream, io->kind == TORNADO__READ_BYTES && have > io->bytes ? io->bytes : have);
        if (!io->read)
            return true;
        have = stream->in ? stream->in->end - stream->in->start : 0;
    }
    if (io->kind == TORNADO__READ_UNTIL) {
        bool found = tornado__user_find(io, have ? stream->in->bytes + stream->in->start : "", have, &need);
        if (found ? need > io->max_bytes : have >= io->max_bytes) {
            tornado__fail(TORNADO_ERR_UNSATISFIABLE, 0, "delimiter not found within %zu bytes", io->max_bytes);
            tornado__iostream_shut(stream, &tornado__thread.last);
            return true;
        }
        if (!found)
            return false;
    } else if (io->kind == TORNADO__READ_BYTES) {
        need = io->partial && have && have < io->bytes ? have : io->bytes;
        if (have < need || (io->streaming_callback && io->bytes))
            return false;
    } else {
        return false;
    }
    tornado__user_read_done(stream, need);
    return true;
}

static size_t tornado__user_data(tornado_iostream *stream, char *data, size_t len)
{
    tornado__stream_io *io = stream->io;
    bool scratch = !stream->in;
    if (scratch) { /* results must outlive this call: they need a buffer of the stream's own */
        if (!tornado__iostream_reserve_in(stream, len)) {
            tornado__iostream_shut(stream, &tornado__thread.last);
            return len;
        }
        memcpy(stream->in->bytes, data, len);
        stream->in->end = len;
    }
    if (io->read)
        tornado__user_try_read(stream);
    if (!stream->closed && io->read && stream->in && stream->in->end - stream->in->start > io->max_buffer_size) {
        tornado__fail(TORNADO_ERR_BUFFER_FULL, 0, "Reached maximum read buffer size of %zu bytes",
                      io->max_buffer_size);
        tornado__iostream_shut(stream, &tornado__thread.last);
    }
    return scratch ? len : 0; /* what was used was taken off the buffer here */
}

/* The queue's first `io->written - queued` bytes are on their way. */
static void tornado__user_wrote(tornado_iostream *stream)
{
    tornado__stream_io *io = stream->io;
    uint64_t sent = io->written - tornado__iostream_queued(stream);
    while (io->writes && io->writes->until <= sent) {
        tornado__write_wait *wait = io->writes;
        io->writes = wait->next;
        if (!io->writes)
            io->writes_end = &io->writes;
        tornado_future_set_result(wait->future, NULL, NULL);
        tornado_future_release(wait->future);
        TORNADO_FREE(wait);
    }
}

/* What a pending future of a closed stream fails with: the cause, when there is one, in the message. */
static tornado_error tornado__user_closed_error(const tornado_iostream *stream)
{
    const tornado_error *cause = stream->io->error;
    tornado_error error;
    if (!cause)
        tornado__error_set(&error, TORNADO_ERR_CLOSED, 0, "Stream is closed");
    else if (cause->code == TORNADO_ERR_SYSTEM)
        tornado__error_set(&error, TORNADO_ERR_CLOSED, cause->sys_errno, "Stream is closed: %.200s",
                           cause->message);
    else
        error = *cause;
    return error;
}

static void tornado__user_closed(tornado_iostream *stream, const tornado_error *cause)
{
    tornado__stream_io *io = stream->io;
    if (cause) {
        tornado_error *copy = TORNADO_MALLOC(sizeof *copy);
        if (copy)
            *copy = *cause;
        io->error = copy ? copy : &tornado__error_nomem;
    }
    tornado_error error = tornado__user_closed_error(stream);
    if (io->read && io->kind == TORNADO__READ_UNTIL_CLOSE && !io->error && io->streaming_callback && stream->in)
        tornado__user_queue_task(stream);
    else if (io->read && io->kind == TORNADO__READ_UNTIL_CLOSE && !io->error)
        tornado__user_read_done(stream, stream->in ? stream->in->end - stream->in->start : 0);
    else if (io->read)
        tornado__user_read_failed(stream, &error);
    if (io->connect) {
        tornado_future *connect = io->connect;
        io->connect = NULL;
        tornado_future_set_error(connect, &error);
        tornado_future_release(connect);
    }
    while (io->writes) {
        tornado__write_wait *wait = io->writes;
        io->writes = wait->next;
        tornado_future_set_error(wait->future, &error);
        tornado_future_release(wait->future);
        TORNADO_FREE(wait);
    }
    io->writes_end = &io->writes;
    tornado__user_queue_task(stream);
}

/* As in Tornado: without a close callback the end shows at the next read, and until then one may write. */
static bool tornado__user_wants_end(const tornado_iostream *stream)
{
    return stream->io->close_callback != NULL;
}

static void tornado__user_free(tornado_iostream *stream)
{
    tornado__user_read_reset(stream->io);
    if (stream->io->error != &tornado__error_nomem)
        TORNADO_FREE((void *)(uintptr_t)stream->io->error);
    TORNADO_FREE(stream);
}

static const tornado__stream_owner tornado__user_owner = {
    .data = tornado__user_data, .closed = tornado__user_closed, .drained = tornado__user_wrote,
    .wants_end = tornado__user_wants_end, .free = tornado__user_free};

/* What must not happen inside a call of the user: streaming of what is buffered already, and the close callback. */
static void tornado__user_run(tornado__task *task, tornado_ioloop *loop)
{
    tornado__stream_io *io = TORNADO__CONTAINER(task, tornado__stream_io, task);
    tornado_iostream *stream = &TORNADO__CONTAINER(io, tornado__user_stream, io)->stream;
    io->task_queued = false;
    if (!loop->closed) {
        if (io->read && io->streaming_callback)
            tornado__user_try_read(stream);
        if (stream->closed && io->read && io->kind == TORNADO__READ_UNTIL_CLOSE && !stream->in)
            tornado__user_read_done(stream, 0);
        bool unread = stream->in && stream->in->end > stream->in->start;
        if (stream->closed && io->close_callback && !unread) {
            tornado__user_call(tornado__user_call_closed, io);
        } else if (!stream->closed && io->read) {
            tornado__iostream_watch_or_shut(stream);
        }
    }
    tornado__iostream_release(stream);
}

TORNADO_API tornado_iostream *tornado_iostream_new(int fd, const tornado_iostream_options *options)
{
    struct stat status;
    tornado_ioloop *loop = tornado_ioloop_current();
    bool known = fd >= 0 && fstat(fd, &status) == 0;
    if (!known || !(S_ISSOCK(status.st_mode) || S_ISFIFO(status.st_mode)) || !tornado__set_flags(fd)) {
        int error = fd < 0 ? EBADF : known ? ENOTSOCK : errno;
        tornado__fail(TORNADO_ERR_INVALID, error, "tornado_iostream_new: fd %d is no socket or pipe: %s", fd,
                      strerror(error));
        goto failed;
    }
    tornado__user_stream *user = loop ? TORNADO_MALLOC(sizeof *user) : NULL;
    if (!user) {
        tornado__nomem();
        goto failed;
    }
    memset(&user->io, 0, sizeof user->io);
    tornado__iostream_init(&user->stream, loop, fd, &tornado__user_owner);
    user->stream.io = &user->io;
    user->stream.pipe = S_ISFIFO(status.st_mode);
    user->stream.paused = true;
    user->io.writes_end = &user->io.writes;
    user->io.task.run = tornado__user_run;
    user->io.max_buffer_size =
        options && options->max_buffer_size > 0 ? (size_t)options->max_buffer_size : 104857600;
    if (options && options->max_buffer_size == TORNADO_NONE)
        user->io.max_buffer_size = SIZE_MAX / 4;
    user->io.max_write_buffer_size =
        options && options->max_write_buffer_size > 0 ? options->max_write_buffer_size : -1;
    return &user->stream;
failed:
    if (fd >= 0)
        close(fd);
    return NULL;
}

TORNADO_API tornado_iostream *tornado_iostream_retain(tornado_iostream *stream)
{
    tornado__iostream_retain(stream);
    return stream;
}

TORNADO_API void tornado_iostream_release(tornado_iostream *stream)
{
    if (stream)
        tornado__iostream_release(stream);
}

TORNADO_API void tornado_iostream_close(tornado_iostream *stream)
{
    tornado__iostream_retain(stream);
    tornado__iostream_shut(stream, NULL);
    tornado__iostream_release(stream);
}

/* ---- connecting ---- */

static void tornado__iostream_connected(tornado_iostream *stream)
{
    tornado__stream_io *io = stream->io;
    int error = 0;
    socklen_t len = sizeof error;
    if (getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
        error = errno;
    stream->connecting = false;
    if (error) {
        tornado__fail(TORNADO_ERR_SYSTEM, error, "connect: %s", strerror(error));
        tornado__iostream_shut(stream, &tornado__thread.last);
        return;
    }
    tornado_future *connect = io->connect;
    io->connect = NULL;
    if (connect) {
        tornado_future_set_result(connect, stream, NULL);
        tornado_future_release(connect);
    }
    if (tornado__iostream_flush(stream) && tornado__iostream_watch_or_shut(stream))
        tornado__user_wrote(stream);
}

TORNADO_API tornado_future *tornado_iostream_connect(tornado_iostream *stream, const tornado_address *address)
{
    tornado__stream_io *io = stream->io;
    if (stream->closed || stream->connecting) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_iostream_connect: the stream is %s",
                      stream->closed ? "closed" : "connecting already");
        return tornado_future_failed(tornado_last_error());
    }
    tornado_future *future = tornado_future_new();
    if (future->immortal)
        return future;
    io->connect = tornado_future_retain(future);
    stream->connecting = true;
    tornado__iostream_retain(stream);
    int result = connect(stream->fd, (const struct sockaddr *)(const void *)address->sockaddr.bytes,
                         (socklen_t)address->len);
    bool under_way = result == 0 || errno == EINPROGRESS || errno == EINTR; /* interrupted, it goes on by itself */
    if (!under_way)
        tornado__fail(TORNADO_ERR_SYSTEM, errno, "connect: %s", strerror(errno));
    if (!under_way || (result != 0 && !tornado__iostream_watch(stream)))
        tornado__iostream_shut(stream, &tornado__thread.last);
    else if (result == 0)
        tornado__iostream_connected(stream);
    tornado__iostream_release(stream);
    return future;
}

/* ---- the public reads and writes ---- */

static bool tornado__user_set_read(tornado_iostream *stream, const tornado_read_options *options)
{
    tornado__stream_io *io = stream->io;
    io->partial = options->partial;
    io->bytes = options->bytes;
    io->streaming_callback = options->streaming_callback;
    io->streaming_arg = options->arg;
    io->scanned = 0;
    io->max_bytes = options->max_bytes && options->max_bytes < io->max_buffer_size ? options->max_bytes
                                                                                   : io->max_buffer_size;
    io->kind = options->until_close ? TORNADO__READ_UNTIL_CLOSE
               : options->until.len || options->until_regex ? TORNADO__READ_UNTIL
                                                            : TORNADO__READ_BYTES;
    if (io->kind == TORNADO__READ_BYTES && io->bytes > io->max_buffer_size && !io->streaming_callback &&
        !io->partial)
        return tornado__fail(TORNADO_ERR_BUFFER_FULL, 0, "a read of %zu bytes is more than the buffer may hold",
                             io->bytes);
    if (options->until_regex) {
        tornado__re_walk *walk = TORNADO_MALLOC(sizeof *walk);
        if (!walk)
            return tornado__nomem();
        if (!tornado__re_walk_init(walk, options->until_regex, 2, TORNADO__RE_SEARCH)) {
            TORNADO_FREE(walk);
            return false;
        }
        io->walk = walk;
    } else if (io->kind == TORNADO__READ_UNTIL) {
        io->delimiter_len = options->until.len;
        io->delimiter = io->delimiter_len <= sizeof io->short_delimiter ? io->short_delimiter
                                                                        : TORNADO_MALLOC(io->delimiter_len);
        if (!io->delimiter)
            return tornado__nomem();
        memcpy(io->delimiter, options->until.data, io->delimiter_len);
    }
    return true;
}

/* Why a read cannot start, or NULL. */
static const char *tornado__user_read_refused(const tornado_iostream *stream, const tornado_read_options *options)
{
    bool delimiter = options->until.data || options->until_regex;
    int forms = (options->bytes != 0) + (options->until.data != NULL) + (options->until_regex != NULL) +
                options->until_close;
    if (stream->io->read)
        return "Already reading";
    if (forms > 1)
        return "tornado_iostream_read: bytes, until, until_regex and until_close exclude each other";
    if (delimiter && ((options->until.data && options->until.len == 0) || options->streaming_callback))
        return "tornado_iostream_read: a delimiter may not be empty, nor be read with a streaming callback";
    return NULL;
}

TORNADO_API tornado_future *tornado_iostream_read(tornado_iostream *stream, const tornado_read_options *options)
{
    tornado__stream_io *io = stream->io;
    const char *refused = tornado__user_read_refused(stream, options);
    if (refused) {
        tornado__fail(io->read ? TORNADO_ERR_STATE : TORNADO_ERR_INVALID, 0, "%s", refused);
        return tornado_future_failed(tornado_last_error());
    }
    tornado_future *future = tornado_future_new();
    if (future->immortal)
        return future;
    tornado__user_restore(stream);
    if (stream->in && stream->in->start == stream->in->end) {
        TORNADO_FREE(stream->in);
        stream->in = NULL;
    }
    tornado__iostream_retain(stream);
    io->read = tornado_future_retain(future);
    stream->paused = false;
    if (!tornado__user_set_read(stream, options)) {
        tornado_error error = *tornado_last_error();
        tornado__user_read_failed(stream, &error);
    } else if (io->streaming_callback && (stream->in || (!io->bytes && io->kind == TORNADO__READ_BYTES))) {
        tornado__user_queue_task(stream);
    } else if (!tornado__user_try_read(stream)) {
        if (stream->unbuffered_ready && !stream->closed && !io->streaming_callback)
            tornado__iostream_readable(stream);
        stream->unbuffered_ready = false;
        if (stream->closed && io->read) {
            tornado_error error = tornado__user_closed_error(stream);
            if (io->kind == TORNADO__READ_UNTIL_CLOSE && !io->error)
                tornado__user_read_done(stream, stream->in ? stream->in->end - stream->in->start : 0);
            else
                tornado__user_read_failed(stream, &error);
        } else if (io->read && !tornado__iostream_watch(stream)) {
            tornado__iostream_shut(stream, &tornado__thread.last);
        }
    }
    if (stream->closed && io->close_callback)
        tornado__user_queue_task(stream);
    else if (!stream->closed && !io->read && io->close_callback)
        tornado__iostream_watch_or_shut(stream); /* for the end */
    tornado__iostream_release(stream);
    return future;
}

TORNADO_API tornado_future *tornado_iostream_read_bytes(tornado_iostream *stream, size_t count)
{
    tornado_read_options options = {.bytes = count};
    return tornado_iostream_read(stream, &options);
}

TORNADO_API tornado_future *tornado_iostream_read_until(tornado_iostream *stream, const char *delimiter)
{
    tornado_read_options options = {.until = tornado_bytes_of(delimiter)};
    return tornado_iostream_read(stream, &options);
}

TORNADO_API tornado_future *tornado_iostream_read_until_regex(tornado_iostream *stream, const tornado_regex *regex)
{
    tornado_read_options options = {.until_regex = regex};
    return tornado_iostream_read(stream, &options);
}

TORNADO_API tornado_future *tornado_iostream_read_until_close(tornado_iostream *stream)
{
    tornado_read_options options = {.until_close = true};
    return tornado_iostream_read(stream, &options);
}

/* Queues what the socket did not take, and a future for its end. */
static tornado_future *tornado__user_write_rest(tornado_iostream *stream, const char *data, size_t len)
{
    tornado__stream_io *io = stream->io;
    tornado__write_wait *wait = TORNADO_MALLOC(sizeof *wait);
    tornado_future *future = wait ? tornado_future_new() : &tornado__future_nomem;
    if (future->immortal || !tornado__iostream_queue(stream, data, len)) {
        TORNADO_FREE(wait);
        tornado_future_release(future);
        return NULL;
    }
    wait->next = NULL;
    wait->future = tornado_future_retain(future);
    wait->until = io->written;
    *io->writes_end = wait;
    io->writes_end = &wait->next;
    return future;
}

TORNADO_API tornado_future *tornado_iostream_write(tornado_iostream *stream, tornado_bytes data)
{
    tornado__stream_io *io = stream->io;
    size_t queued = stream->out ? tornado__iostream_queued(stream) : 0;
    ssize_t sent = 0;
    if (stream->closed) {
        tornado_error error = tornado__user_closed_error(stream);
        return tornado_future_failed(&error);
    }
    if (io->max_write_buffer_size >= 0 && data.len > (uint64_t)io->max_write_buffer_size - queued) {
        tornado__fail(TORNADO_ERR_BUFFER_FULL, 0, "Reached maximum write buffer size of %lld bytes",
                      (long long)io->max_write_buffer_size);
        return tornado_future_failed(tornado_last_error());
    }
    if (data.len == 0 && !stream->out)
        return &tornado__future_done;
    if (!stream->out && !stream->connecting)
        do
            sent = tornado__iostream_send_bytes(stream, data.data, data.len);
        while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS) {
        tornado__fail(TORNADO_ERR_SYSTEM, errno, "write: %s", strerror(errno));
        tornado__iostream_retain(stream);
        tornado__iostream_shut(stream, &tornado__thread.last);
        tornado_error error = tornado__user_closed_error(stream);
        tornado__iostream_release(stream);
        return tornado_future_failed(&error);
    }
    io->written += data.len;
    if (sent == (ssize_t)data.len && data.len)
        return &tornado__future_done;
    size_t done = sent > 0 ? (size_t)sent : 0;
    tornado_future *future = tornado__user_write_rest(stream, data.data + done, data.len - done);
    if (future && (stream->connecting || tornado__iostream_watch(stream)))
        return future;
    /* part of it may be on its way: nothing sensible can follow */
    tornado_error error = *tornado_last_error();
    tornado_future_release(future);
    tornado__iostream_retain(stream);
    tornado__iostream_shut(stream, &tornado__thread.last);
    tornado__iostream_release(stream);
    return tornado_future_failed(&error);
}

TORNADO_API void tornado_iostream_set_close_callback(tornado_iostream *stream, tornado_callback callback, void *arg)
{
    stream->io->close_callback = callback;
    stream->io->close_arg = arg;
    if (!callback)
        return;
    if (stream->closed)
        tornado__user_queue_task(stream);
    else if (!stream->connecting && !stream->watched)
        tornado__iostream_watch_or_shut(stream);
}

TORNADO_API void tornado_iostream_set_nodelay(tornado_iostream *stream, bool value)
{
    int on = value;
    if (!stream->closed)
        setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

TORNADO_API bool tornado_iostream_closed(const tornado_iostream *stream)
{
    return stream->closed;
}

TORNADO_API bool tornado_iostream_reading(const tornado_iostream *stream)
{
    return stream->io->read != NULL;
}

TORNADO_API bool tornado_iostream_writing(const tornado_iostream *stream)
{
    return stream->out != NULL;
}

TORNADO_API int tornado_iostream_fileno(const tornado_iostream *stream)
{
    return stream->fd;
}

TORNADO_API const tornado_error *tornado_iostream_error(const tornado_iostream *stream)
{
    return stream->io->error;
}

TORNADO_API size_t tornado_iostream_read_buffer_size(const tornado_iostream *stream)
{
    return stream->in ? stream->in->end - stream->in->start : 0;
}

TORNADO_API size_t tornado_iostream_write_buffer_size(const tornado_iostream *stream)
{
    return tornado__iostream_queued(stream);
}

/*============================================================================
 * section: netutil (private)
 * Binding, listening, accepting; datagrams.
 *============================================================================*/

#define TORNADO__ACCEPTS_PER_TURN 128
#define TORNADO__BACKLOG          128
#ifdef TORNADO_TESTING
#define TORNADO__ACCEPT_PAUSE 2000000
#else
#define TORNADO__ACCEPT_PAUSE 100000000 /* ns */
#endif

static int tornado__socket(int family, int type)
{
#if defined(SOCK_NONBLOCK) && defined(SOCK_CLOEXEC)
    return socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
#else
    int fd = socket(family, type, 0);
    if (fd >= 0 && !tornado__set_flags(fd)) {
        close(fd);
        fd = -1;
    }
    return fd;
#endif
}

TORNADO_API void tornado_sockets_close(tornado_sockets *sockets)
{
    for (int i = 0; i < sockets->count; i++)
        close(sockets->fds[i]);
    sockets->count = 0;
}

/* Opens one listening socket; -1 with errno set. */
static int tornado__bind_one(const tornado_address *address, const tornado_bind_options *options)
{
    int family = tornado__sockaddr(address)->sa_family, on = 1, fd = tornado__socket(family, SOCK_STREAM);
    if (fd < 0)
        return -1;
    bool ok = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0;
    if (ok && options->reuse_port) {
#ifdef SO_REUSEPORT
        ok = setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0;
#else
        errno = ENOPROTOOPT;
        ok = false;
#endif
    }
    if (ok && family == AF_INET6) /* IPv4 has a socket of its own */
        ok = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0;
    if (ok && bind(fd, tornado__sockaddr(address), (socklen_t)address->len) == 0 &&
        listen(fd, options->backlog > 0 ? options->backlog : TORNADO__BACKLOG) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static void tornado__address_set_port(tornado_address *address, int port)
{
    struct sockaddr *sockaddr = tornado__sockaddr(address);
    if (sockaddr->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)sockaddr)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)(void *)sockaddr)->sin_port = htons((uint16_t)port);
}

/* Listens on every address found; on a port that is picked for the first and kept for the others. Returns an errno.
   */
static int tornado__bind_all(tornado_sockets *sockets, const struct addrinfo *found, int port,
                             const tornado_bind_options *options, tornado_address *address)
{
    bool unspecified = !options->address || !*options->address;
    int missing = 0;
    sockets->count = 0;
    sockets->port = port;
    for (const struct addrinfo *at = found; at; at = at->ai_next) {
        bool seen = false;
        for (const struct addrinfo *before = found; before != at; before = before->ai_next)
            seen = seen || (before->ai_addrlen == at->ai_addrlen &&
                            memcmp(before->ai_addr, at->ai_addr, at->ai_addrlen) == 0);
        if (seen || at->ai_addrlen > sizeof address->sockaddr ||
            sockets->count == (int)TORNADO__COUNT(sockets->fds))
            continue;
        memcpy(address->sockaddr.bytes, at->ai_addr, at->ai_addrlen);
        address->len = (unsigned)at->ai_addrlen;
        tornado__address_set_port(address, sockets->port);
        int fd = tornado__bind_one(address, options);
        if (fd < 0) {
            missing = errno;
            if (unspecified && (missing == EAFNOSUPPORT || (missing == EADDRNOTAVAIL && at->ai_family == AF_INET6)))
                continue; /* a machine without IPv6, or without IPv4 */
            tornado_sockets_close(sockets);
            return missing;
        }
        sockets->fds[sockets->count++] = fd;
        if (sockets->port == 0 && tornado_address_local(address, fd))
            sockets->port = tornado_address_port(address);
    }
    return sockets->count ? 0 : missing ? missing : EADDRNOTAVAIL;
}

TORNADO_API bool tornado_bind_sockets(tornado_sockets *sockets, int port, const tornado_bind_options *options)
{
    static const tornado_bind_options defaults;
    const tornado_bind_options *o = options ? options : &defaults;
    struct addrinfo hints, *found = NULL;
    tornado_address address;
    char text[TORNADO_ADDRESS_MAX];
    memset(sockets, 0, sizeof *sockets);
    if (o->unix_socket) {
        int fd = tornado_bind_unix_socket(o->unix_socket, o->unix_mode, o->backlog);
        sockets->fds[0] = fd;
        sockets->count = fd >= 0;
        return fd >= 0;
    }
    const char *host = o->address && *o->address ? o->address : NULL;
    if (port < 0 || port > 65535)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "cannot listen on port %d: ports are 0 to 65535", port);
    memset(&hints, 0, sizeof hints);
    memset(&address, 0, sizeof address);
    hints.ai_family = o->ipv4_only ? AF_INET : o->ipv6_only ? AF_INET6 : AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = o->flags ? o->flags : AI_PASSIVE;
    int failed = getaddrinfo(host, "0", &hints, &found);
    if (failed)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "cannot listen on \"%.100s\", port %d: %s",
                             host ? host : "*", port, gai_strerror(failed));
    int error = EADDRINUSE;
    /* a port that was picked for the one family may be taken in the other */
    for (int tries = port ? 1 : 16; error == EADDRINUSE && tries > 0; tries--)
        error = tornado__bind_all(sockets, found, port, o, &address);
    freeaddrinfo(found);
    if (error)
        return tornado__fail(TORNADO_ERR_SYSTEM, error, "cannot listen on %s: %s",
                             tornado_address_format(&address, text), strerror(error));
    return true;
}

static bool tornado__unix_failed(const char *path, int error)
{
    return tornado__fail(TORNADO_ERR_SYSTEM, error, "cannot bind unix:%.108s: %s", path, strerror(error));
}

/* Makes way for a socket's file: removes a stale socket, refuses anything else. */
static bool tornado__unix_clear(const tornado_address *address, const char *path, int type)
{
    struct stat status;
    if (lstat(path, &status) != 0)
        return errno == ENOENT || tornado__unix_failed(path, errno);
    if (!S_ISSOCK(status.st_mode))
        return tornado__fail(TORNADO_ERR_SYSTEM, EEXIST, "cannot bind unix:%.108s: a file that is no socket exists",
                             path);
    /* stale is only one that answers a connection by refusing it: another answer, or none, comes from a live one */
    int probe = tornado__socket(AF_UNIX, type);
    if (probe < 0)
        return tornado__unix_failed(path, errno);
    bool stale = connect(probe, tornado__sockaddr(address), (socklen_t)address->len) != 0 &&
                 (errno == ECONNREFUSED || errno == ENOENT);
    close(probe);
    if (!stale)
        return tornado__unix_failed(path, EADDRINUSE);
    if (unlink(path) != 0 && errno != ENOENT)
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "cannot remove unix:%.108s: %s", path, strerror(errno));
    return true;
}

/* A unix socket at a path, which listens where a backlog is given. When it fails no file is left. -1 with the reason.
   */
static int tornado__unix_bound(const tornado_address *address, const char *path, int type, int mode, int backlog)
{
    bool file = path[0] != '@', bound = false;
    if (file && !tornado__unix_clear(address, path, type))
        return -1;
    int fd = tornado__socket(AF_UNIX, type);
    if (fd >= 0) /* nobody can connect before listen, so the mode is right from the first connection on */
        bound = bind(fd, tornado__sockaddr(address), (socklen_t)address->len) == 0;
    if (bound && (!file || chmod(path, mode ? (mode_t)mode : 0600) == 0) && (!backlog || listen(fd, backlog) == 0))
        return fd;
    tornado__unix_failed(path, errno);
    if (fd >= 0)
        close(fd);
    if (bound && file)
        unlink(path);
    return -1;
}

TORNADO_API int tornado_bind_unix_socket(const char *path, int mode, int backlog)
{
    tornado_address address;
    if (!tornado_address_unix(&address, path))
        return -1;
    return tornado__unix_bound(&address, path, SOCK_STREAM, mode, backlog > 0 ? backlog : TORNADO__BACKLOG);
}

/* ---- sockets of a supervisor ---- */

#define TORNADO__FIRST_LISTEN_FD 3

/* A decimal number of an environment variable, from 0 to `most`; -1 when that is not set, -2 when it is anything
   else. */
static long tornado__environment_number(const char *name, long most)
{
    const char *text = getenv(name);
    long number = 0;
    if (!text)
        return -1;
    for (const char *at = text; *at; at++) {
        if (*at < '0' || *at > '9' || number > most)
            return -2;
        number = number * 10 + (*at - '0');
    }
    return *text && number <= most ? number : -2;
}

/* Takes the next name off a list that colons part, and tells whether it is this one. */
static bool tornado__next_name_is(const char **list, const char *name)
{
    const char *at = *list ? *list : "";
    size_t len = strcspn(at, ":");
    *list = at[len] ? at + len + 1 : NULL;
    return strlen(name) == len && memcmp(at, name, len) == 0;
}

static bool tornado__is_listening(int fd)
{
    int listening = 0;
    socklen_t len = sizeof listening;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && listening;
}

TORNADO_API bool tornado_listen_fds(tornado_sockets *sockets, const char *name)
{
    long pid = tornado__environment_number("LISTEN_PID", LONG_MAX / 10 - 9);
    long count = tornado__environment_number("LISTEN_FDS", INT_MAX / 2);
    const char *names = getenv("LISTEN_FDNAMES");
    tornado_address address;
    memset(sockets, 0, sizeof *sockets);
    if (pid == -1 || count == -1 || (pid >= 0 && pid != (long)getpid()))
        return true; /* nothing, or for another process */
    if (pid < 0 || count < 0)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "LISTEN_PID or LISTEN_FDS is not a number");
    for (int fd = TORNADO__FIRST_LISTEN_FD; fd < TORNADO__FIRST_LISTEN_FD + count; fd++) {
        if (!tornado__next_name_is(&names, name ? name : "") && name)
            continue;
        if (!tornado__is_listening(fd))
            tornado__fail(TORNADO_ERR_INVALID, 0, "LISTEN_FDS: fd %d is no listening socket", fd);
        else if (sockets->count == (int)TORNADO__COUNT(sockets->fds))
            tornado__fail(TORNADO_ERR_LIMIT, 0, "LISTEN_FDS: more than %d sockets", sockets->count);
        else if ((sockets->fds[sockets->count++] = fd) >= 0)
            continue;
        sockets->count = 0;
        return false;
    }
    for (int i = 0; i < sockets->count; i++)
        if (!tornado__set_flags(sockets->fds[i])) {
            sockets->count = 0;
            return tornado__fail(TORNADO_ERR_SYSTEM, errno, "LISTEN_FDS: %s", strerror(errno));
        }
    if (sockets->count && tornado_address_local(&address, sockets->fds[0]))
        sockets->port = tornado_address_port(&address);
    return true;
}

/* ---- accepting ---- */

struct tornado_acceptor {
    tornado_ioloop *loop;
    int fd;
    tornado_accept_callback callback;
    void *arg;
    tornado__timer pause; /* set while the process is out of descriptors or memory */
    int64_t told;         /* when that was logged last */
    bool removed, calling;
};

static int tornado__accept(int fd, tornado_address *address)
{
    socklen_t len = sizeof address->sockaddr;
#if defined(__linux__) && defined(_GNU_SOURCE)
    int accepted = accept4(fd, tornado__sockaddr(address), &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
    int accepted = accept(fd, tornado__sockaddr(address), &len);
    if (accepted >= 0 && !tornado__set_flags(accepted)) {
        close(accepted);
        accepted = -1;
    }
#endif
    address->len = len < sizeof address->sockaddr ? (unsigned)len : (unsigned)sizeof address->sockaddr;
    return accepted;
}

static void tornado__acceptor_free(tornado_acceptor *acceptor)
{
    tornado_ioloop *loop = acceptor->loop;
    TORNADO_FREE(acceptor);
    tornado__ioloop_let_go(loop);
}

static void tornado__acceptor_paused(tornado__timer *timer, tornado_ioloop *loop)
{
    tornado_acceptor *acceptor = TORNADO__CONTAINER(timer, tornado_acceptor, pause);
    tornado_ioloop_update_handler(loop, acceptor->fd, TORNADO_IOLOOP_READ);
}

/* Out of descriptors: the connection stays in the backlog, and would be reported for ever. Look again a little
   later. */
static void tornado__acceptor_pause(tornado_acceptor *acceptor, int error)
{
    int64_t now = tornado__now_ns();
    if (!acceptor->told || now - acceptor->told > 1000000000)
        tornado_gen_log(TORNADO_LOG_WARNING, "accept: %s; trying again", strerror(error));
    acceptor->told = now;
    if (tornado__timer_set(acceptor->loop, &acceptor->pause, now + TORNADO__ACCEPT_PAUSE))
        tornado_ioloop_update_handler(acceptor->loop, acceptor->fd, 0);
}

typedef struct tornado__accepted {
    tornado_acceptor *acceptor;
    tornado_address address;
    int fd;
} tornado__accepted;

static void tornado__acceptor_call(void *arg)
{
    tornado__accepted *accepted = arg;
    accepted->acceptor->callback(accepted->fd, &accepted->address, accepted->acceptor->arg);
}

static void tornado__acceptor_ready(int fd, unsigned events, void *arg)
{
    tornado_acceptor *acceptor = arg;
    (void)events;
    acceptor->calling = true;
    for (int i = 0; i < TORNADO__ACCEPTS_PER_TURN && !acceptor->removed; i++) {
        tornado__accepted accepted = {.acceptor = acceptor};
        accepted.fd = tornado__accept(fd, &accepted.address);
        if (accepted.fd >= 0) {
            const tornado_error *error = tornado_try(tornado__acceptor_call, &accepted);
            if (error)
                tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "Exception in callback");
            continue;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            break;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            tornado__acceptor_pause(acceptor, errno);
            break;
        }
        if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK || errno == EOPNOTSUPP) {
            tornado_gen_log(TORNADO_LOG_ERROR, "accept on fd %d: %s; no longer accepting", fd, strerror(errno));
            tornado_ioloop_remove_handler(acceptor->loop, fd);
            break;
        } /* anything else is about the one connection, which is gone */
    }
    acceptor->calling = false;
    if (acceptor->removed)
        tornado__acceptor_free(acceptor);
}

TORNADO_API tornado_acceptor *tornado_add_accept_handler(int fd, tornado_accept_callback callback, void *arg)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    if (!tornado__set_flags(fd)) {
        tornado__fail(TORNADO_ERR_INVALID, errno, "tornado_add_accept_handler: fd %d: %s", fd, strerror(errno));
        return NULL;
    }
    tornado_acceptor *acceptor = loop ? TORNADO_MALLOC(sizeof *acceptor) : NULL;
    if (!acceptor) {
        tornado__nomem();
        return NULL;
    }
    memset(acceptor, 0, sizeof *acceptor);
    acceptor->loop = loop;
    acceptor->fd = fd;
    acceptor->callback = callback;
    acceptor->arg = arg;
    acceptor->pause.fire = tornado__acceptor_paused;
    tornado__ioloop_hold(loop);
    if (!tornado_ioloop_add_handler(loop, fd, tornado__acceptor_ready, acceptor, TORNADO_IOLOOP_READ)) {
        tornado__acceptor_free(acceptor);
        return NULL;
    }
    return acceptor;
}

TORNADO_API void tornado_remove_accept_handler(tornado_acceptor *acceptor)
{
    if (!acceptor || acceptor->removed)
        return;
    acceptor->removed = true;
    tornado__timer_clear(acceptor->loop, &acceptor->pause);
    if (tornado__fd_registered(acceptor->loop, acceptor->fd, "tornado_remove_accept_handler"))
        tornado_ioloop_remove_handler(acceptor->loop, acceptor->fd);
    if (!acceptor->calling)
        tornado__acceptor_free(acceptor);
}

/* ---- the listening sockets of a server ---- */

typedef struct tornado__listener {
    struct tornado__listener *next;
    tornado_acceptor *acceptor;
    int fd;
} tornado__listener;

static void tornado__listeners_close(tornado__listener **list)
{
    while (*list) {
        tornado__listener *listener = *list;
        tornado_ioloop *loop = listener->acceptor->loop;
        bool watched = !listener->acceptor->pause.place;
        *list = listener->next;
        tornado__ioloop_hold(loop);
        tornado_remove_accept_handler(listener->acceptor);
        tornado__ioloop_close_fd(loop, listener->fd, watched);
        tornado__ioloop_let_go(loop);
        TORNADO_FREE(listener);
    }
}

static tornado__listener *tornado__listener_new(int fd, tornado_accept_callback callback, void *arg)
{
    tornado__listener *listener = TORNADO_MALLOC(sizeof *listener);
    if (!listener) {
        tornado__nomem();
        return NULL;
    }
    listener->acceptor = tornado_add_accept_handler(fd, callback, arg);
    if (!listener->acceptor) {
        TORNADO_FREE(listener);
        return NULL;
    }
    listener->fd = fd;
    listener->next = NULL;
    return listener;
}

/* Takes over all the descriptors, or none. */
static bool tornado__listeners_add(tornado__listener **list, const int *fds, int count,
                                   tornado_accept_callback callback, void *arg)
{
    while (*list)
        list = &(*list)->next;
    tornado__listener **end = list;
    for (int i = 0; i < count; i++) {
        if (!(*end = tornado__listener_new(fds[i], callback, arg))) {
            while (*list) {
                tornado__listener *added = *list;
                *list = added->next;
                tornado_remove_accept_handler(added->acceptor);
                TORNADO_FREE(added);
            }
            return false;
        }
        end = &(*end)->next;
    }
    return true;
}

static int tornado__listeners_port(const tornado__listener *list)
{
    tornado_address address;
    return list && tornado_address_local(&address, list->fd) ? tornado_address_port(&address) : 0;
}

/* Binds and accepts. The reason of a failure is logged, as one line. */
static bool tornado__listen(tornado__listener **list, int port, const tornado_bind_options *options,
                            tornado_accept_callback callback, void *arg)
{
    tornado_sockets sockets;
    bool bound = tornado_bind_sockets(&sockets, port, options);
    if (bound && tornado__listeners_add(list, sockets.fds, sockets.count, callback, arg))
        return true;
    tornado_error error = *tornado_last_error();
    if (bound)
        tornado_sockets_close(&sockets);
    tornado_gen_log(TORNADO_LOG_ERROR, "%s", error.message);
    tornado__thread.last = error;
    return false;
}

/* ---- datagrams ----

   Those who wait for a datagram stand in line as for a lock; the system's buffer is the only one. What the system
   does not take is queued. The loop watches for reading from the first wait on, until something comes that nobody
   waits for: so who receives in a loop costs no call for watching. */

#define TORNADO__DATAGRAMS_PER_TURN 64

typedef struct tornado__packet {
    tornado__link link;
    tornado_future *future;
    tornado_address to; /* its len is 0: the peer */
    size_t len;
    char data[];
} tornado__packet;

struct tornado_datagram_socket {
    tornado__shared shared; /* first; who waits holds it */
    tornado_ioloop *loop;
    int fd;
    unsigned events; /* that the loop watches for; 0: it has it not */
    bool connected;
    tornado__link receivers, packets;
    size_t queued, max_queued;
};

/* One that is open: bound, connected, or both. -1 with the reason. */
static int tornado__datagram_open(const tornado_datagram_options *options)
{
    const tornado_address *first = options->local ? options->local : options->peer;
    int family = first ? tornado__sockaddr(first)->sa_family : AF_UNSPEC, on = 1, fd;
    char text[TORNADO_ADDRESS_MAX], path[sizeof first->sockaddr + 1];
    const char *what = "bind";
    if (!first) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_datagram_socket_new: neither an address nor a peer");
        return -1;
    }
    if (options->local && family == AF_UNIX) { /* "unix:/path" or "unix:@name" */
        snprintf(path, sizeof path, "%s", tornado_address_format(first, text) + 5);
        if ((fd = tornado__unix_bound(first, path, SOCK_DGRAM, options->unix_mode, 0)) < 0)
            return -1;
    } else {
        fd = tornado__socket(family, SOCK_DGRAM);
    }
    bool ok = fd >= 0;
#ifdef SO_REUSEPORT
    ok = ok && (!options->reuse_port || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
#endif
    ok = ok && (!options->broadcast || setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on) == 0);
    if (ok && family == AF_INET6 && options->local) /* as for listening sockets */
        ok = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0;
    if (ok && options->local && family != AF_UNIX)
        ok = bind(fd, tornado__sockaddr(options->local), (socklen_t)options->local->len) == 0;
    if (ok && options->peer) {
        what = "connect to";
        first = options->peer;
        ok = connect(fd, tornado__sockaddr(first), (socklen_t)first->len) == 0;
    }
    if (ok)
        return fd;
    tornado__fail(TORNADO_ERR_SYSTEM, errno, "cannot %s %s: %s", what, tornado_address_format(first, text),
                  strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

/* One recvmsg. Returns what that does, and never EINTR. */
static ssize_t tornado__datagram_recv(int fd, void *data, size_t room, tornado_address *from, bool *truncated)
{
    struct iovec part = {data, room};
    struct msghdr message;
    ssize_t received;
    memset(&message, 0, sizeof message);
    memset(from, 0, sizeof *from);
    message.msg_name = &from->sockaddr;
    message.msg_namelen = sizeof from->sockaddr;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    do
        received = recvmsg(fd, &message, 0);
    while (received < 0 && errno == EINTR);
    from->len = message.msg_namelen < sizeof from->sockaddr ? (unsigned)message.msg_namelen
                                                            : (unsigned)sizeof from->sockaddr;
    *truncated = (message.msg_flags & MSG_TRUNC) != 0;
    return received;
}

/* One sendto; `to` may be NULL, or of no length: the peer. Returns 0 or an errno; EAGAIN where it has to wait. */
static int tornado__datagram_send(int fd, const tornado_address *to, const void *data, size_t len)
{
    const struct sockaddr *name = to && to->len ? tornado__sockaddr(to) : NULL;
    ssize_t sent;
    do
        sent = sendto(fd, data, len, MSG_NOSIGNAL, name, name ? (socklen_t)to->len : 0);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return 0;
    return errno == EWOULDBLOCK || errno == ENOBUFS ? EAGAIN : errno;
}

/* Has the loop watch for other events; false with the reason. */
static bool tornado__datagram_watch(tornado_datagram_socket *s, unsigned events);

static void tornado__packet_done(tornado_datagram_socket *s, tornado__packet *packet, const tornado_error *error)
{
    tornado__link_remove(&packet->link);
    s->queued -= sizeof *packet + packet->len;
    if (error)
        tornado_future_set_error(packet->future, error);
    else
        tornado_future_set_result(packet->future, NULL, NULL);
    tornado_future_release(packet->future);
    TORNADO_FREE(packet);
}

static const tornado_error *tornado__datagram_error(const char *what, int error)
{
    tornado__fail(TORNADO_ERR_SYSTEM, error, "%s: %s", what, strerror(error));
    return &tornado__thread.last;
}

static void tornado__datagram_flush(tornado_datagram_socket *s)
{
    while (!tornado__link_empty(&s->packets)) {
        tornado__packet *packet = TORNADO__CONTAINER(s->packets.next, tornado__packet, link);
        int error = tornado__datagram_send(s->fd, &packet->to, packet->data, packet->len);
        if (error == EAGAIN)
            return;
        tornado__packet_done(s, packet, error ? tornado__datagram_error("send", error) : NULL);
    }
}

static void tornado__datagram_free(void *datagram)
{
    TORNADO_FREE(datagram);
}

/* Receives into `future`. False: there is nothing to receive. */
static bool tornado__datagram_into(tornado_datagram_socket *s, tornado_future *future)
{
    tornado_address from;
    bool truncated;
    char *scratch = tornado__loop_scratch(s->loop);
    if (!scratch) {
        tornado__future_fail(future, &tornado__error_nomem);
        return true;
    }
    ssize_t received = tornado__datagram_recv(s->fd, scratch, TORNADO__SCRATCH_SIZE, &from, &truncated);
    if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return false;
    if (received < 0) {
        tornado_future_set_error(future, tornado__datagram_error("receive", errno));
        return true;
    }
    size_t len = (size_t)received;
    tornado_datagram *datagram = TORNADO_MALLOC(sizeof *datagram + len + 1);
    if (!datagram) {
        tornado__future_fail(future, &tornado__error_nomem);
        return true;
    }
    char *data = memcpy(datagram + 1, scratch, len);
    data[len] = '\0';
    datagram->data.data = data;
    datagram->data.len = len;
    datagram->from = from;
    datagram->truncated = truncated;
    tornado_future_set_result(future, datagram, tornado__datagram_free);
    return true;
}

static void tornado__datagram_event(int fd, unsigned events, void *arg)
{
    tornado_datagram_socket *s = arg;
    bool idle = tornado__link_empty(&s->receivers) && tornado__link_empty(&s->packets);
    (void)fd;
    (void)events;
    tornado__datagram_flush(s);
    for (int i = 0; i < TORNADO__DATAGRAMS_PER_TURN && !tornado__link_empty(&s->receivers); i++) {
        tornado__parked *first = TORNADO__CONTAINER(s->receivers.next, tornado__parked, link);
        if (!tornado__datagram_into(s, &first->future))
            break;
        tornado__line_pop(&s->receivers);
    }
    unsigned reading = s->events & TORNADO_IOLOOP_READ;
    tornado__datagram_watch(s, idle ? 0 : tornado__link_empty(&s->packets) ? reading : reading | TORNADO_IOLOOP_WRITE);
}

static bool tornado__datagram_watch(tornado_datagram_socket *s, unsigned events)
{
    bool ok = true;
    if (events == s->events)
        return true;
    if (!events)
        tornado_ioloop_remove_handler(s->loop, s->fd);
    else if (s->events)
        ok = tornado_ioloop_update_handler(s->loop, s->fd, events);
    else
        ok = tornado_ioloop_add_handler(s->loop, s->fd, tornado__datagram_event, s, events);
    if (ok)
        s->events = events;
    return ok;
}

TORNADO_API tornado_datagram_socket *tornado_datagram_socket_new(const tornado_datagram_options *options)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_datagram_socket *s = loop ? tornado__shared_new(sizeof *s) : NULL;
    if (!s)
        return NULL;
    s->fd = tornado__datagram_open(options);
    if (s->fd < 0) {
        TORNADO_FREE(s);
        return NULL;
    }
    s->loop = loop;
    tornado__ioloop_hold(loop);
    s->connected = options->peer != NULL;
    tornado__link_init(&s->receivers);
    tornado__link_init(&s->packets);
    s->max_queued = options->max_write_buffer_size > 0 ? (size_t)options->max_write_buffer_size : 262144;
    return s;
}

TORNADO_API void tornado_datagram_socket_free(tornado_datagram_socket *socket)
{
    static const tornado_error closed = {TORNADO_ERR_CLOSED, 0, 0, "the socket was closed before it was sent"};
    if (!socket)
        return;
    tornado_ioloop *loop = socket->loop;
    bool watched = socket->events != 0;
    if (watched && !loop->closed)
        tornado__datagram_watch(socket, 0);
    tornado__ioloop_close_fd(loop, socket->fd, watched);
    while (!tornado__link_empty(&socket->packets))
        tornado__packet_done(socket, TORNADO__CONTAINER(socket->packets.next, tornado__packet, link), &closed);
    tornado__shared_free(&socket->shared, &socket->receivers);
    tornado__ioloop_let_go(loop);
}

static tornado_future *tornado__datagram_receive(tornado_datagram_socket *s, const double *timeout)
{
    bool first = tornado__link_empty(&s->receivers);
    tornado__parked *parked = tornado__parked_new(&s->shared, NULL);
    if (!parked)
        return &tornado__future_nomem;
    if (first && tornado__datagram_into(s, &parked->future))
        return &parked->future;
    tornado_future *future = tornado__park(parked, &s->receivers, timeout);
    if (future->state == TORNADO__PENDING && !tornado__datagram_watch(s, s->events | TORNADO_IOLOOP_READ)) {
        tornado_future_release(future);
        return tornado_future_failed(tornado_last_error());
    }
    return future;
}

TORNADO_API tornado_future *tornado_datagram_socket_receive(tornado_datagram_socket *socket)
{
    return tornado__datagram_receive(socket, NULL);
}

TORNADO_API tornado_future *tornado_datagram_socket_receive_timeout(tornado_datagram_socket *socket, double seconds)
{
    return tornado__datagram_receive(socket, &seconds);
}

/* Copies a datagram to the end of the queue. NULL with the reason. */
static tornado_future *tornado__datagram_queue(tornado_datagram_socket *s, const tornado_address *to,
                                               tornado_bytes data)
{
    size_t size = data.len < SIZE_MAX / 2 ? sizeof(tornado__packet) + data.len : SIZE_MAX;
    if (size > s->max_queued || s->queued > s->max_queued - size) {
        tornado__fail(TORNADO_ERR_BUFFER_FULL, 0, "Reached maximum write buffer size of %zu bytes", s->max_queued);
        return NULL;
    }
    tornado_future *future = tornado_future_new();
    tornado__packet *packet = future->immortal ? NULL : TORNADO_MALLOC(size);
    if (!packet) {
        tornado_future_release(future);
        tornado__nomem();
        return NULL;
    }
    if (!tornado__datagram_watch(s, s->events | TORNADO_IOLOOP_WRITE)) {
        TORNADO_FREE(packet);
        tornado_future_release(future);
        return NULL;
    }
    memset(&packet->to, 0, sizeof packet->to);
    if (to)
        packet->to = *to;
    packet->future = tornado_future_retain(future);
    packet->len = data.len;
    if (data.len)
        memcpy(packet->data, data.data, data.len);
    s->queued += size;
    tornado__link_append(&s->packets, &packet->link);
    return future;
}

TORNADO_API tornado_future *tornado_datagram_socket_send_to(tornado_datagram_socket *socket,
                                                            const tornado_address *to, tornado_bytes data)
{
    int error = EAGAIN;
    if (!to && !socket->connected) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_datagram_socket_send: it has no peer");
        return tornado_future_failed(tornado_last_error());
    }
    if (tornado__link_empty(&socket->packets))
        error = tornado__datagram_send(socket->fd, to, data.data ? data.data : "", data.len);
    if (error == 0)
        return &tornado__future_done;
    if (error != EAGAIN)
        return tornado_future_failed(tornado__datagram_error("send", error));
    tornado_future *future = tornado__datagram_queue(socket, to, data);
    return future ? future : tornado_future_failed(tornado_last_error());
}

TORNADO_API tornado_future *tornado_datagram_socket_send(tornado_datagram_socket *socket, tornado_bytes data)
{
    return tornado_datagram_socket_send_to(socket, NULL, data);
}

TORNADO_API int tornado_datagram_socket_fileno(const tornado_datagram_socket *socket)
{
    return socket->fd;
}

TORNADO_API size_t tornado_datagram_socket_write_buffer_size(const tornado_datagram_socket *socket)
{
    return socket->queued;
}

/*============================================================================
 * section: process (private)
 * Looking after children by waiting, starting programs, noticing their ends on a loop.
 *
 * A program is started by vfork where there is one: the memory of a large server is then not copied. Between vfork
 * and exec the child runs on the parent's memory, so it makes system calls only, with what the parent prepared, and
 * with no handler that could run; a pipe that exec closes brings back what went wrong.
 *
 * A running subprocess is held by its watch, and by its user: it lives until both have let go. The watch is a pidfd
 * of the loop's; or a place in the loop's list of those for whom SIGCHLD comes, which the signal's handler has each
 * loop look through.
 *============================================================================*/

#include <sys/wait.h>

TORNADO_API int tornado_cpu_count(void)
{
    return tornado__cpu_count();
}

/* ---- several processes of one server ---- */

typedef struct tornado__fork_child {
    volatile pid_t pid; /* 0: ended. The signal handler reads it */
} tornado__fork_child;

static struct {
    int task; /* plus one */
    tornado__fork_child *children;
    volatile sig_atomic_t count, signalled; /* signalled: which was passed on */
} tornado__forks;

static const int tornado__fork_signals[] = {SIGTERM, SIGINT, SIGCHLD};

TORNADO_API int tornado_task_id(void)
{
    return tornado__forks.task - 1;
}

static void tornado__fork_signal_children(int number)
{
    for (int i = 0; i < tornado__forks.count; i++)
        if (tornado__forks.children[i].pid > 0)
            kill(tornado__forks.children[i].pid, number);
}

static void tornado__fork_handler(int number)
{
    int saved = errno;
    tornado__forks.signalled = number;
    tornado__fork_signal_children(number);
    errno = saved;
}

/* Passes signals on which would by default end the parent alone; where SIGCHLD is ignored nobody could be waited
   for. Keeps what was there in `before`. */
static void tornado__fork_handle(struct sigaction *before)
{
    for (size_t i = 0; i < TORNADO__COUNT(tornado__fork_signals); i++) {
        bool child = tornado__fork_signals[i] == SIGCHLD;
        struct sigaction action;
        sigaction(tornado__fork_signals[i], NULL, &before[i]);
        if ((before[i].sa_flags & SA_SIGINFO) || before[i].sa_handler != (child ? SIG_IGN : SIG_DFL))
            continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = child ? SIG_DFL : tornado__fork_handler;
        sigemptyset(&action.sa_mask);
        sigaction(tornado__fork_signals[i], &action, NULL);
    }
}

static void tornado__fork_unhandle(const struct sigaction *before)
{
    for (size_t i = 0; i < TORNADO__COUNT(tornado__fork_signals); i++)
        sigaction(tornado__fork_signals[i], &before[i], NULL);
}

/* Starts the child with one id, unless all are to end. 0 in it, 1 in the parent, -1 when it cannot. */
static int tornado__fork_start(int id, const struct sigaction *before)
{
    sigset_t all, mask;
    sigfillset(&all);
    tornado__sigmask(SIG_BLOCK, &all, &mask); /* so that the handler knows each child */
    fflush(stdout); /* or each child prints it, too */
    pid_t pid = tornado__forks.signalled ? INT_MAX : fork();
    int error = errno;
    if (pid == 0) {
        tornado__forks.task = id + 1;
        tornado__forks.count = 0;
        TORNADO_FREE(tornado__forks.children);
        tornado__forks.children = NULL;
        tornado__fork_unhandle(before);
    } else if (pid > 0 && !tornado__forks.signalled) {
        tornado__forks.children[id].pid = pid;
    }
    tornado__sigmask(SIG_SETMASK, &mask, NULL);
    if (pid < 0)
        tornado__fail(TORNADO_ERR_SYSTEM, error, "tornado_fork_processes: fork: %s", strerror(error));
    return pid < 0 ? -1 : pid == 0 ? 0 : 1;
}

/* Waits for the next child to end; the id, or -1 when there is none left. This process may have other children. */
static int tornado__fork_wait(int *status)
{
    for (;;) {
        int left = 0;
        for (int i = 0; i < tornado__forks.count; i++)
            left += tornado__forks.children[i].pid > 0;
        pid_t pid = left ? waitpid(-1, status, 0) : -1;
        if (!left || (pid < 0 && errno != EINTR))
            return -1;
        for (int i = 0; pid > 0 && i < tornado__forks.count; i++)
            if (tornado__forks.children[i].pid == pid) {
                tornado__forks.children[i].pid = 0;
                return i;
            }
    }
}

/* Notes how a child ended. Whether it was well. */
static bool tornado__fork_ended(int id, int status)
{
    const char *then = tornado__forks.signalled ? "" : ", restarting";
    bool clean = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (clean)
        tornado_gen_log(TORNADO_LOG_INFO, "child %d exited normally", id);
    else if (WIFSIGNALED(status))
        tornado_gen_log(TORNADO_LOG_WARNING, "child %d killed by signal %d%s", id, WTERMSIG(status), then);
    else
        tornado_gen_log(TORNADO_LOG_WARNING, "child %d exited with status %d%s", id, WEXITSTATUS(status), then);
    return clean;
}

/* Looks after the children. Whether all ended well; false, with the reason, when it gives up. In a child that it
   started again *task is its id. */
static bool tornado__fork_supervise(int max_restarts, const struct sigaction *before, int *task)
{
    int restarts = 0, status, id;
    bool clean = true;
    while ((id = tornado__fork_wait(&status)) >= 0) {
        if (tornado__fork_ended(id, status))
            continue;
        if (tornado__forks.signalled) {
            clean = false;
            continue;
        }
        if (max_restarts >= 0 && restarts++ >= max_restarts)
            return tornado__fail(TORNADO_ERR_LIMIT, 0, "tornado_fork_processes: too many child restarts, giving up");
        int started = tornado__fork_start(id, before);
        if (started == 0)
            *task = id;
        if (started <= 0)
            return false;
    }
    return clean;
}

/* Ends the children that are left, and all that was done for them. */
static void tornado__fork_give_up(const struct sigaction *before)
{
    int status;
    tornado__fork_signal_children(SIGTERM);
    while (tornado__fork_wait(&status) >= 0) {
    }
    tornado__fork_unhandle(before);
    tornado__forks.count = 0;
    TORNADO_FREE(tornado__forks.children);
    tornado__forks.children = NULL;
}

TORNADO_API int tornado_fork_processes(int processes, int max_restarts)
{
    struct sigaction before[TORNADO__COUNT(tornado__fork_signals)];
    int task = -1;
    if (tornado__forks.task || tornado__ioloop_any()) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_fork_processes: %s",
                      tornado__forks.task ? "this process was made by it" : "a loop is open: it must come after this");
        return -1;
    }
    if (processes <= 0)
        processes = tornado__cpu_count();
    size_t size = (size_t)processes * sizeof *tornado__forks.children;
    tornado__forks.children = (size_t)processes < SIZE_MAX / sizeof *tornado__forks.children ? TORNADO_MALLOC(size)
                                                                                            : NULL;
    if (!tornado__forks.children) {
        tornado__nomem();
        return -1;
    }
    for (int i = 0; i < processes; i++)
        tornado__forks.children[i].pid = 0;
    tornado__forks.signalled = 0;
    tornado__forks.count = processes;
    tornado_gen_log(TORNADO_LOG_INFO, "Starting %d processes", processes);
    tornado__fork_handle(before);
    bool fine = true;
    for (int i = 0; i < processes && fine && !tornado__forks.signalled; i++) {
        int started = tornado__fork_start(i, before);
        if (started == 0)
            return i;
        fine = started > 0;
    }
    if (fine)
        fine = tornado__fork_supervise(max_restarts, before, &task);
    if (task >= 0)
        return task;
    int signalled = tornado__forks.signalled;
    tornado_error error = *tornado_last_error();
    tornado__fork_give_up(before);
    if (fine)
        exit(0);
    if (signalled)
        raise(signalled);
    tornado_gen_log(TORNADO_LOG_ERROR, "%s", error.message);
    tornado__thread.last = error;
    return -1;
}

/* ---- starting a program ---- */

/* What the child needs, prepared before there is one. Descriptors are above 2, or inherited (-1). */
typedef struct tornado__launch {
    const char *const *argv, *const *env;
    const char *paths; /* where to look for the program: strings, then an empty one */
    const char *cwd;
    int fds[3];
    bool same_stderr, new_session;
    int report;          /* the pipe's end for a tornado__launch_failure */
    const sigset_t *mask;
} tornado__launch;

typedef struct tornado__launch_failure {
    int error;
    int cwd; /* whether the directory was it */
} tornado__launch_failure;

/* Closes everything from `first` up: at once (close_range, Linux 5.9) or one by one. */
static void tornado__launch_close_from(int first)
{
#ifdef __linux__
    if (syscall(436 /* close_range, with one number everywhere */, (unsigned)first, ~0u, 0u) == 0)
        return;
#endif
    long most = sysconf(_SC_OPEN_MAX);
    for (int fd = first; fd < (most < 0 || most > 1 << 20 ? 1 << 20 : most); fd++)
        close(fd);
}

/* Gives a signal that has a handler its default again, as exec would. */
static void tornado__launch_reset_signals(void)
{
    struct sigaction action, none;
    memset(&none, 0, sizeof none);
    none.sa_handler = SIG_DFL;
    sigemptyset(&none.sa_mask);
    for (int number = 1; number < NSIG; number++) {
        if (sigaction(number, NULL, &action) != 0)
            continue;
        if (number == SIGPIPE || (action.sa_flags & SA_SIGINFO) ||
            (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN))
            sigaction(number, &none, NULL);
    }
}

/* The child's standard descriptors; the report's end becomes 3, and all above that are closed. */
static bool tornado__launch_descriptors(const tornado__launch *launch)
{
    for (int i = 0; i < 3; i++)
        if (launch->fds[i] >= 0 && dup2(launch->fds[i], i) < 0)
            return false;
    if (launch->same_stderr && dup2(1, 2) < 0)
        return false;
    if (launch->report != 3 && dup2(launch->report, 3) < 0)
        return false;
    if (fcntl(3, F_SETFD, FD_CLOEXEC) != 0)
        return false;
    tornado__launch_close_from(4);
    return true;
}

/* In the child. Comes back only when it cannot run the program. System calls only. */
static tornado__launch_failure tornado__launch_exec(const tornado__launch *launch)
{
    tornado__launch_failure failure = {0, 0};
    if (launch->new_session)
        setsid();
    tornado__launch_reset_signals();
    if (launch->cwd && chdir(launch->cwd) != 0) {
        failure.error = errno;
        failure.cwd = 1;
        return failure;
    }
    tornado__sigmask(SIG_SETMASK, launch->mask, NULL);
    failure.error = ENOENT;
    for (const char *path = launch->paths; *path; path += strlen(path) + 1) {
        execve(path, (char *const *)(uintptr_t)launch->argv, (char *const *)(uintptr_t)launch->env);
        if (errno != ENOENT && errno != ENOTDIR)
            failure.error = errno;
        if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
            break;
    }
    return failure;
}

/* Its own function, of which the child never returns: that would spoil the parent's stack. */
static TORNADO__NOINLINE pid_t tornado__launch_fork(const tornado__launch *launch)
{
#ifdef __linux__
    pid_t pid = vfork();
#else
    pid_t pid = fork();
#endif
    if (pid == 0) {
        tornado__launch_failure failure = {errno, 0};
        int report = launch->report;
        if (tornado__launch_descriptors(launch)) {
            report = 3;
            failure = tornado__launch_exec(launch);
        } else {
            failure.error = errno;
        }
        ssize_t ignored = write(report, &failure, sizeof failure);
        (void)ignored;
        _exit(127);
    }
    return pid;
}

/* Where the program may be: a name with a slash as it is, else in each directory of PATH. NULL: no memory. */
static char *tornado__launch_paths(const char *program)
{
    tornado_buffer paths = {NULL, 0, 0, false};
    const char *search = getenv("PATH"), *at = strchr(program, '/') ? "" : search ? search : "/bin:/usr/bin", *end;
    do {
        end = at + strcspn(at, ":");
        tornado_buffer_append(&paths, at, (size_t)(end - at));
        tornado_buffer_puts(&paths, end > at ? "/" : "");
        tornado_buffer_append(&paths, program, strlen(program) + 1);
        at = end + 1;
    } while (*end);
    if (!tornado_buffer_append(&paths, "", 1)) {
        tornado_buffer_free(&paths);
        return NULL;
    }
    return paths.data;
}

/* A pipe whose ends are above the standard descriptors and close at exec. */
static bool tornado__launch_pipe(int ends[2])
{
    ends[0] = ends[1] = -1;
    int made[2], error = 0;
#if defined(__linux__) && defined(SYS_pipe2)
    if (syscall(SYS_pipe2, made, O_CLOEXEC) != 0) /* at once, or a fork of another thread could inherit it */
#else
    if (pipe(made) != 0)
#endif
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_subprocess_new: pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        ends[i] = made[i] > 2 && fcntl(made[i], F_SETFD, FD_CLOEXEC) == 0 ? made[i]
                                                                          : fcntl(made[i], F_DUPFD_CLOEXEC, 3);
        if (ends[i] < 0)
            error = errno;
        if (ends[i] != made[i])
            close(made[i]);
    }
    if (!error)
        return true;
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            close(ends[i]);
    ends[0] = ends[1] = -1;
    return tornado__fail(TORNADO_ERR_SYSTEM, error, "tornado_subprocess_new: pipe: %s", strerror(error));
}

/* Runs the program. Its pid, or -1 with the reason. */
static pid_t tornado__launch_run(tornado__launch *launch)
{
    tornado__launch_failure failure = {0, 0};
    sigset_t all, mask;
    int ends[2];
    if (!tornado__launch_pipe(ends))
        return -1;
    launch->report = ends[1];
    launch->mask = &mask; /* until the call returns */
    sigfillset(&all);
    tornado__sigmask(SIG_BLOCK, &all, &mask);
    pid_t pid = tornado__launch_fork(launch);
    int error = errno;
    tornado__sigmask(SIG_SETMASK, &mask, NULL);
    close(ends[1]);
    ssize_t got = -1;
    while (pid > 0 && (got = read(ends[0], &failure, sizeof failure)) < 0 && errno == EINTR) {
    }
    close(ends[0]);
    if (pid < 0)
        tornado__fail(TORNADO_ERR_SYSTEM, error, "tornado_subprocess_new: fork: %s", strerror(error));
    if (pid < 0 || got != sizeof failure)
        return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    tornado__fail(TORNADO_ERR_SYSTEM, failure.error, "tornado_subprocess_new: %.150s: %s",
                  failure.cwd ? launch->cwd : launch->argv[0], strerror(failure.error));
    return -1;
}

/* ---- subprocesses ---- */

#define TORNADO__SIGCHLD_LOOPS 64

/* A loop's subprocesses of which SIGCHLD tells. */
typedef struct tornado__children {
    tornado__attachment attachment;
    tornado_ioloop *loop;
    tornado__link list;
    atomic_int signalled; /* a look at them is due already */
} tornado__children;

struct tornado_subprocess {
    tornado_ioloop *loop;
    tornado__compound compound; /* while it runs: its loop lets go of it */
    tornado__link child;        /* in the list of those SIGCHLD tells of */
    tornado__task exit_task;    /* runs the exit callback; holds a reference */
    unsigned references;        /* its user, its watch, its task */
    pid_t pid;
    int pidfd;                  /* -1: SIGCHLD */
    int returncode;             /* TORNADO_RUNNING: running */
    bool task_queued;
    tornado_iostream *streams[3];
    tornado_exit_callback callback;
    void *arg;
    tornado_future *exits[2];   /* once asked for: of wait_for_exit without and with raise_error */
    char name[64];
};

static struct {
    _Atomic(tornado__children *) loops[TORNADO__SIGCHLD_LOOPS];
    atomic_int handlers; /* that run now */
    atomic_int installed; /* 0 no, 1 being, 2 yes */
    atomic_int asked_for; /* by initialize */
    struct sigaction before;
} tornado__sigchld;

static void tornado__subprocess_release(tornado_subprocess *process)
{
    if (--process->references > 0)
        return;
    for (int i = 0; i < 2; i++)
        tornado_future_release(process->exits[i]);
    tornado__ioloop_let_go(process->loop);
    TORNADO_FREE(process);
}

/* Resolves one future of the end. */
static void tornado__subprocess_resolve(tornado_subprocess *process, tornado_future *future, bool raise_error)
{
    int code = process->returncode;
    if (!raise_error || code == 0) {
        tornado_future_set_integer(future, code);
        return;
    }
    tornado_error error;
    if (code < 0)
        tornado__error_set(&error, TORNADO_ERR_CALLED_PROCESS, 0, "%s was killed by signal %d", process->name, -code);
    else
        tornado__error_set(&error, TORNADO_ERR_CALLED_PROCESS, 0, "%s returned non-zero exit status %d",
                           process->name, code);
    tornado_future_set_error(future, &error);
}

static void tornado__subprocess_run_exit(tornado__task *task, tornado_ioloop *loop)
{
    tornado_subprocess *process = TORNADO__CONTAINER(task, tornado_subprocess, exit_task);
    tornado_exit_callback callback = process->callback;
    void *arg = process->arg;
    int returncode = process->returncode;
    process->task_queued = false;
    process->callback = NULL;
    tornado__subprocess_release(process);
    if (callback && !loop->closed)
        callback(returncode, arg);
}

static void tornado__subprocess_queue_exit(tornado_subprocess *process)
{
    if (process->task_queued || !process->callback || process->returncode == TORNADO_RUNNING)
        return;
    process->task_queued = true;
    process->references++;
    tornado__ioloop_schedule(process->loop, &process->exit_task);
}

/* Ends the watch: the process has ended, or the loop has. */
static void tornado__subprocess_unwatch(tornado_subprocess *process)
{
    if (process->pidfd >= 0) {
        if (!process->loop->closed)
            tornado_ioloop_remove_handler(process->loop, process->pidfd);
        tornado__ioloop_close_fd(process->loop, process->pidfd, true);
        process->pidfd = -1;
    }
    tornado__link_remove(&process->child);
    tornado__link_remove(&process->compound.link);
}

/* Looks whether the process has ended; then its watch ends, too, and it may be gone. */
static void tornado__subprocess_look(tornado_subprocess *process)
{
    int status = 0;
    pid_t pid;
    while ((pid = waitpid(process->pid, &status, WNOHANG)) < 0 && errno == EINTR) {
    }
    if (pid == 0)
        return;
    if (pid > 0) {
        process->returncode = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    } else {
        process->returncode = 255;
        tornado_gen_log(TORNADO_LOG_WARNING, "nobody knows how %s (pid %d) ended: it was waited for elsewhere",
                        process->name, (int)process->pid);
    }
    tornado__subprocess_unwatch(process);
    for (int i = 0; i < 2; i++)
        if (process->exits[i])
            tornado__subprocess_resolve(process, process->exits[i], i == 1);
    tornado__subprocess_queue_exit(process);
    tornado__subprocess_release(process);
}

static void tornado__subprocess_pidfd_event(int fd, unsigned events, void *arg)
{
    (void)fd;
    (void)events;
    tornado__subprocess_look(arg);
}

/* The loop is being closed: what has not ended by now is not waited for. */
static void tornado__subprocess_let_go(tornado__compound *compound)
{
    tornado_subprocess *process = TORNADO__CONTAINER(compound, tornado_subprocess, compound);
    process->references++;
    tornado__subprocess_look(process);
    if (process->returncode == TORNADO_RUNNING) {
        tornado__subprocess_unwatch(process);
        tornado__subprocess_release(process);
    }
    tornado__subprocess_release(process);
}

/* ---- SIGCHLD ---- */

static void tornado__children_look(void *arg)
{
    tornado__children *children = arg;
    atomic_store(&children->signalled, 0); /* before the first look, so that no end is missed */
    for (tornado__link *link = children->list.next, *next; link != &children->list; link = next) {
        next = link->next;
        tornado__subprocess_look(TORNADO__CONTAINER(link, tornado_subprocess, child));
    }
}

static bool tornado__children_signal(tornado__children *children)
{
    return atomic_exchange(&children->signalled, 1) ||
           tornado_ioloop_add_callback_from_signal(children->loop, tornado__children_look, children);
}

static void tornado__sigchld_handler(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    const struct sigaction *before = &tornado__sigchld.before;
    atomic_fetch_add(&tornado__sigchld.handlers, 1);
    for (int i = 0; i < TORNADO__SIGCHLD_LOOPS; i++) {
        tornado__children *children = atomic_load(&tornado__sigchld.loops[i]);
        if (children)
            tornado__children_signal(children);
    }
    atomic_fetch_sub(&tornado__sigchld.handlers, 1);
    if (before->sa_flags & SA_SIGINFO)
        before->sa_sigaction(number, info, context);
    else if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN)
        before->sa_handler(number);
    errno = saved;
}

/* Puts our handler before the one that is there. It sees stopped children only if that did. */
static bool tornado__sigchld_install(void)
{
    struct sigaction action, before;
    for (int is = 0; !atomic_compare_exchange_weak(&tornado__sigchld.installed, &is, 1); is = 0) {
        if (is == 2)
            return true;
        sched_yield();
    }
    if (sigaction(SIGCHLD, NULL, &before) != 0)
        goto failed;
    bool has_handler = (before.sa_flags & SA_SIGINFO) ||
                       (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN);
    memset(&action, 0, sizeof action);
    action.sa_sigaction = tornado__sigchld_handler;
    action.sa_flags = SA_SIGINFO | SA_RESTART | (has_handler ? before.sa_flags & SA_NOCLDSTOP : SA_NOCLDSTOP);
    action.sa_mask = before.sa_mask;
    tornado__sigchld.before = before;
    if (sigaction(SIGCHLD, &action, NULL) == 0) {
        atomic_store(&tornado__sigchld.installed, 2);
        return true;
    }
failed:
    atomic_store(&tornado__sigchld.installed, 0);
    return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_subprocess_initialize: %s", strerror(errno));
}

TORNADO_API bool tornado_subprocess_initialize(void)
{
    bool installed = tornado__sigchld_install();
    atomic_store(&tornado__sigchld.asked_for, installed);
    return installed;
}

TORNADO_API void tornado_subprocess_uninitialize(void)
{
    struct sigaction now;
    atomic_store(&tornado__sigchld.asked_for, 0);
    if (atomic_load(&tornado__sigchld.installed) != 2 || sigaction(SIGCHLD, NULL, &now) != 0)
        return;
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != tornado__sigchld_handler)
        return; /* somebody has put a handler before ours, and may call it */
    sigaction(SIGCHLD, &tornado__sigchld.before, NULL);
    atomic_store(&tornado__sigchld.installed, 0);
}

static void tornado__children_free(tornado__attachment *attachment)
{
    tornado__children *children = TORNADO__CONTAINER(attachment, tornado__children, attachment);
    for (int i = 0; i < TORNADO__SIGCHLD_LOOPS; i++) {
        tornado__children *expected = children;
        atomic_compare_exchange_strong(&tornado__sigchld.loops[i], &expected, NULL);
    }
    while (atomic_load(&tornado__sigchld.handlers) > 0)
        sched_yield(); /* another thread is in one, and may still look at it */
    TORNADO_FREE(children);
}

/* The loop's list, made when there is none. */
static tornado__children *tornado__children_of(tornado_ioloop *loop)
{
    for (int i = 0; i < TORNADO__SIGCHLD_LOOPS; i++) {
        tornado__children *there = atomic_load(&tornado__sigchld.loops[i]);
        if (there && there->loop == loop)
            return there;
    }
    tornado__children *children = TORNADO_MALLOC(sizeof *children);
    if (!children) {
        tornado__nomem();
        return NULL;
    }
    children->attachment.free = tornado__children_free;
    children->loop = loop;
    tornado__link_init(&children->list);
    atomic_init(&children->signalled, 0);
    for (int i = 0; i < TORNADO__SIGCHLD_LOOPS; i++) {
        tornado__children *expected = NULL;
        if (atomic_compare_exchange_strong(&tornado__sigchld.loops[i], &expected, children)) {
            children->attachment.next = loop->attachments;
            loop->attachments = &children->attachment;
            return children;
        }
    }
    TORNADO_FREE(children);
    tornado__fail(TORNADO_ERR_LIMIT, 0, "tornado_subprocess_new: %d loops wait for SIGCHLD already",
                  TORNADO__SIGCHLD_LOOPS);
    return NULL;
}

/* ---- making one ---- */

/* A descriptor that becomes readable when the process ends; -1 where there is none, or SIGCHLD was asked for. */
static int tornado__subprocess_pidfd(pid_t pid)
{
#ifdef __linux__
    if (!atomic_load(&tornado__sigchld.asked_for))
        return (int)syscall(434 /* pidfd_open, with one number everywhere */, pid, 0u);
#endif
    (void)pid;
    return -1;
}

static bool tornado__subprocess_watch(tornado_subprocess *process)
{
    process->pidfd = tornado__subprocess_pidfd(process->pid);
    if (process->pidfd >= 0 && !tornado_ioloop_add_handler(process->loop, process->pidfd,
                                                           tornado__subprocess_pidfd_event, process,
                                                           TORNADO_IOLOOP_READ)) {
        close(process->pidfd); /* select cannot hold it, perhaps */
        process->pidfd = -1;
    }
    if (process->pidfd < 0) {
        tornado__children *children = tornado__sigchld_install() ? tornado__children_of(process->loop) : NULL;
        if (!children)
            return false;
        if (!tornado__children_signal(children)) /* it may have ended before */
            return tornado__fail(TORNADO_ERR_LIMIT, 0,
                                 "tornado_subprocess_new: the loop has no room for another callback from signals");
        tornado__link_append(&children->list, &process->child);
    }
    process->references++;
    tornado__link_append(&process->loop->compounds, &process->compound.link);
    return true;
}

/* What the child gets as one of its standard descriptors, in *theirs (-1: as it is here), which is to be closed
   afterwards; our end of a pipe in *ours. */
static bool tornado__subprocess_descriptor(int which, int wanted, int *theirs, int *ours)
{
    int ends[2];
    if (wanted == 0 || (wanted == TORNADO_STDOUT && which == 2))
        return true;
    if (wanted == TORNADO_STREAM) {
        if (!tornado__launch_pipe(ends))
            return false;
        *ours = ends[which == 0];
        *theirs = ends[which != 0];
        return true;
    }
    if (wanted == TORNADO_DEVNULL) {
        int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        *theirs = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
        int error = errno;
        if (fd >= 0)
            close(fd);
        errno = error;
    } else if (wanted > 0) {
        *theirs = fcntl(wanted, F_DUPFD_CLOEXEC, 3);
    } else {
        return tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_subprocess_new: %d is no descriptor", wanted);
    }
    if (*theirs < 0)
        return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_subprocess_new: descriptor %d: %s", which,
                             strerror(errno));
    return true;
}

static tornado_subprocess *tornado__subprocess_alloc(tornado_ioloop *loop, const char *name)
{
    tornado_subprocess *process = loop ? TORNADO_MALLOC(sizeof *process) : NULL;
    if (!process) {
        tornado__nomem();
        return NULL;
    }
    memset(process, 0, sizeof *process);
    process->loop = loop;
    tornado__ioloop_hold(loop);
    process->references = 1;
    process->pidfd = -1;
    process->returncode = TORNADO_RUNNING;
    process->exit_task.run = tornado__subprocess_run_exit;
    process->compound.let_go = tornado__subprocess_let_go;
    tornado__link_init(&process->compound.link);
    tornado__link_init(&process->child);
    snprintf(process->name, sizeof process->name, "%s", name);
    return process;
}

/* Makes the streams, so that nothing but a watch is missing once the program runs; then runs it. */
static bool tornado__subprocess_start(tornado_subprocess *process, tornado__launch *launch, int ours[3])
{
    for (int i = 0; i < 3; i++) {
        int fd = ours[i];
        ours[i] = -1;
        if (fd >= 0 && !(process->streams[i] = tornado_iostream_new(fd, NULL)))
            return false;
    }
    process->pid = tornado__launch_run(launch);
    if (process->pid < 0)
        return false;
    if (tornado__subprocess_watch(process))
        return true;
    kill(process->pid, SIGKILL);
    while (waitpid(process->pid, NULL, 0) < 0 && errno == EINTR) {
    }
    return false;
}

extern char **environ;

TORNADO_API tornado_subprocess *tornado_subprocess_new(const char *const *argv,
                                                       const tornado_subprocess_options *options)
{
    static const tornado_subprocess_options defaults;
    const tornado_subprocess_options *o = options ? options : &defaults;
    const int wanted[3] = {o->std_in, o->std_out, o->std_err};
    int ours[3] = {-1, -1, -1};
    tornado__launch launch = {.argv = argv, .env = o->env, .cwd = o->cwd, .fds = {-1, -1, -1},
                              .same_stderr = o->std_err == TORNADO_STDOUT, .new_session = o->new_session};
    if (!argv || !argv[0] || !*argv[0]) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_subprocess_new: there is no program's name");
        return NULL;
    }
    if (!launch.env)
        launch.env = (const char *const *)(uintptr_t)environ;
    char *paths = tornado__launch_paths(argv[0]);
    tornado_subprocess *process = paths ? tornado__subprocess_alloc(tornado_ioloop_current(), argv[0]) : NULL;
    launch.paths = paths;
    bool started = process != NULL;
    for (int i = 0; i < 3 && started; i++)
        started = tornado__subprocess_descriptor(i, wanted[i], &launch.fds[i], &ours[i]);
    started = started && tornado__subprocess_start(process, &launch, ours);
    for (int i = 0; i < 3; i++) {
        if (launch.fds[i] >= 0)
            close(launch.fds[i]);
        if (ours[i] >= 0)
            close(ours[i]);
    }
    TORNADO_FREE(paths);
    if (!started) {
        tornado_error error = *tornado_last_error();
        tornado_subprocess_free(process);
        tornado__thread.last = error;
        return NULL;
    }
    return process;
}

TORNADO_API tornado_subprocess *tornado_subprocess_shell(const char *command,
                                                         const tornado_subprocess_options *options)
{
    const char *const argv[] = {"/bin/sh", "-c", command, NULL};
    return tornado_subprocess_new(argv, options);
}

TORNADO_API void tornado_subprocess_free(tornado_subprocess *process)
{
    if (!process)
        return;
    process->callback = NULL;
    for (int i = 0; i < 3; i++) {
        tornado_iostream_release(process->streams[i]);
        process->streams[i] = NULL;
    }
    tornado__subprocess_release(process);
}

TORNADO_API tornado_iostream *tornado_subprocess_stdin(const tornado_subprocess *process)
{
    return process->streams[0];
}

TORNADO_API tornado_iostream *tornado_subprocess_stdout(const tornado_subprocess *process)
{
    return process->streams[1];
}

TORNADO_API tornado_iostream *tornado_subprocess_stderr(const tornado_subprocess *process)
{
    return process->streams[2];
}

TORNADO_API int tornado_subprocess_pid(const tornado_subprocess *process)
{
    return (int)process->pid;
}

TORNADO_API int tornado_subprocess_returncode(const tornado_subprocess *process)
{
    return process->returncode;
}

TORNADO_API bool tornado_subprocess_send_signal(tornado_subprocess *process, int number)
{
    if (process->returncode != TORNADO_RUNNING)
        return tornado__fail(TORNADO_ERR_STATE, ESRCH, "tornado_subprocess_send_signal: it has ended");
    if (kill(process->pid, number) == 0)
        return true;
    return tornado__fail(TORNADO_ERR_SYSTEM, errno, "tornado_subprocess_send_signal: %s", strerror(errno));
}

TORNADO_API void tornado_subprocess_set_exit_callback(tornado_subprocess *process, tornado_exit_callback callback,
                                                      void *arg)
{
    process->callback = callback;
    process->arg = arg;
    tornado__subprocess_queue_exit(process);
}

TORNADO_API tornado_future *tornado_subprocess_wait_for_exit(tornado_subprocess *process, bool raise_error)
{
    tornado_future *future = process->exits[raise_error];
    if (future)
        return tornado_future_retain(future);
    future = tornado__future_alloc(process->loop, sizeof *future, NULL);
    if (!future)
        return &tornado__future_nomem;
    process->exits[raise_error] = future;
    if (process->returncode != TORNADO_RUNNING)
        tornado__subprocess_resolve(process, future, raise_error);
    return tornado_future_retain(future);
}

/*============================================================================
 * section: resolver (private)
 * The system's resolver in three ways, a table, and a DNS client of our own.
 *
 * The DNS client knows lookups and questions. A lookup is what a caller waits for: a name, tried with the domains to
 * search in one after the other. A question is a name on the wire and a type. It is asked once, however many lookups
 * wait for it, and is kept afterwards for as long as its answer says: so the table of questions is the cache, and
 * what is under way. While it is asked it has a socket of its own, and so a port of its own.
 *
 * A reply is only read by tornado__dns_parse, which sees bytes and decides; nothing else looks into one.
 *============================================================================*/

#define TORNADO__HOST_MAX 255

#ifdef TORNADO_NO_THREADS
#define TORNADO__RESOLVER_DEFAULT (&tornado_dns_resolver)
#else
#define TORNADO__RESOLVER_DEFAULT (&tornado_threaded_resolver)
#endif

struct tornado_resolver {
    const tornado_resolver_class *kind;
    void *state;
};

/* What tornado_resolver_configure chose. */
static tornado_resolver_options tornado__resolver_configured;

static void tornado__addresses_free(void *addresses)
{
    TORNADO_FREE(addresses);
}

/* Room for addresses, in one block with their list; none are in it yet. NULL when memory is short. */
static tornado_addresses *tornado__addresses_new(size_t room)
{
    tornado_addresses *addresses = TORNADO_MALLOC(sizeof *addresses + room * sizeof *addresses->items);
    if (!addresses) {
        tornado__nomem();
        return NULL;
    }
    addresses->count = 0;
    addresses->items = (const tornado_address *)(const void *)(addresses + 1);
    return addresses;
}

static void tornado__addresses_add(tornado_addresses *addresses, const tornado_address *address)
{
    memcpy((char *)(addresses + 1) + addresses->count++ * sizeof *address, address, sizeof *address);
}

/* A future that is done with these addresses, or has failed with the last error when that is NULL. */
static tornado_future *tornado__addresses_future(tornado_addresses *addresses)
{
    tornado_future *future = addresses ? tornado_future_new() : NULL;
    if (!future)
        return tornado_future_failed(tornado_last_error());
    if (future->immortal)
        TORNADO_FREE(addresses);
    else
        tornado_future_set_result(future, addresses, tornado__addresses_free);
    return future;
}

static bool tornado__unresolved(int sys_errno, const char *host, const char *why)
{
    return tornado__fail(TORNADO_ERR_RESOLVE, sys_errno, "cannot resolve \"%.120s\": %s", host, why);
}

static bool tornado__family_fits(const tornado_address *address, int family)
{
    return !family || tornado__sockaddr(address)->sa_family == family;
}

/* A future for a host that is an IP address; NULL when it is none. */
static tornado_future *tornado__resolve_literal(const char *host, int port, int family)
{
    tornado_address address;
    tornado_addresses *addresses = NULL;
    if (!strchr(host, ':') && !tornado_is_valid_ip(host)) /* a name never has a colon */
        return NULL;
    if (!tornado_address_ip(&address, host, port) || !tornado__family_fits(&address, family))
        tornado__unresolved(ENOENT, host, "it is no address of that family");
    else if ((addresses = tornado__addresses_new(1)) != NULL)
        tornado__addresses_add(addresses, &address);
    return tornado__addresses_future(addresses);
}

/* ---- the system's ---- */

typedef struct tornado__resolve_job {
    char host[TORNADO__HOST_MAX + 1];
    int port, family;
} tornado__resolve_job;

static tornado_addresses *tornado__addresses_of(const struct addrinfo *found, int port)
{
    enum { MOST = 64 };
    size_t count = 0;
    for (const struct addrinfo *at = found; at && count < MOST; at = at->ai_next)
        count++;
    tornado_addresses *addresses = tornado__addresses_new(count);
    for (const struct addrinfo *at = found; addresses && count > 0; at = at->ai_next, count--) {
        tornado_address address;
        memset(&address, 0, sizeof address);
        if ((at->ai_family != AF_INET && at->ai_family != AF_INET6) || at->ai_addrlen > sizeof address.sockaddr)
            continue;
        memcpy(&address.sockaddr, at->ai_addr, at->ai_addrlen);
        address.len = (unsigned)at->ai_addrlen;
        tornado__address_set_port(&address, port);
        tornado__addresses_add(addresses, &address);
    }
    return addresses;
}

/* Asks the system, and waits for it. NULL with the reason. */
static tornado_addresses *tornado__getaddrinfo(const tornado__resolve_job *job)
{
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = job->family;
    hints.ai_socktype = SOCK_STREAM;
    int failed = getaddrinfo(job->host, NULL, &hints, &found);
    if (failed == EAI_MEMORY) {
        tornado__nomem();
        return NULL;
    }
    if (failed) {
        bool later = failed == EAI_AGAIN || failed == EAI_SYSTEM || failed == EAI_FAIL;
        tornado__unresolved(later ? EAGAIN : ENOENT, job->host,
                            failed == EAI_SYSTEM ? strerror(errno) : gai_strerror(failed));
        return NULL;
    }
    tornado_addresses *addresses = tornado__addresses_of(found, job->port);
    freeaddrinfo(found);
    return addresses;
}

static void tornado__resolve_job_set(tornado__resolve_job *job, const char *host, int port, int family)
{
    snprintf(job->host, sizeof job->host, "%s", host);
    job->port = port;
    job->family = family;
}

static tornado_future *tornado__blocking_resolve(void *state, const char *host, int port, int family)
{
    tornado__resolve_job job;
    (void)state;
    tornado_future *literal = tornado__resolve_literal(host, port, family);
    if (literal)
        return literal;
    tornado__resolve_job_set(&job, host, port, family);
    return tornado__addresses_future(tornado__getaddrinfo(&job));
}

TORNADO__DATA const tornado_resolver_class tornado_blocking_resolver = {NULL, tornado__blocking_resolve, NULL};

static void *tornado__resolve_on_thread(void *arg)
{
    tornado_addresses *addresses = tornado__getaddrinfo(arg);
    if (!addresses)
        tornado_raise_error(tornado_last_error());
    return addresses;
}

static tornado_future *tornado__executor_resolve(tornado_executor *executor, const char *host, int port, int family)
{
    tornado__resolve_job job;
    tornado_job_options options = {.copy = sizeof job, .destroy = tornado__addresses_free};
    tornado_future *literal = tornado__resolve_literal(host, port, family);
    if (literal)
        return literal;
    tornado__resolve_job_set(&job, host, port, family);
    return tornado_executor_submit_with(executor, tornado__resolve_on_thread, &job, &options);
}

static _Atomic(tornado_executor *) tornado__resolver_pool;

typedef struct tornado__threaded {
    int num_threads; /* 0: the process's own executor */
} tornado__threaded;

static void *tornado__threaded_open(const tornado_resolver_options *options)
{
    tornado__threaded *state = TORNADO_MALLOC(sizeof *state);
    if (!state)
        tornado__nomem();
    else
        state->num_threads = options->num_threads;
    return state;
}

static tornado_future *tornado__threaded_resolve(void *state, const char *host, int port, int family)
{
    const tornado__threaded *threaded = state;
    tornado_executor_options options = {.max_workers = threaded->num_threads};
    tornado_executor *pool = threaded->num_threads > 0 ? tornado__executor_shared(&tornado__resolver_pool, &options)
                                                       : NULL;
    if (threaded->num_threads > 0 && !pool)
        return tornado_future_failed(tornado_last_error());
    return tornado__executor_resolve(pool, host, port, family);
}

TORNADO__DATA const tornado_resolver_class tornado_threaded_resolver = {
    tornado__threaded_open, tornado__threaded_resolve, tornado__addresses_free};

typedef struct tornado__executing {
    tornado_executor *executor;
    bool keep;
} tornado__executing;

static void *tornado__executing_open(const tornado_resolver_options *options)
{
    tornado__executing *state = TORNADO_MALLOC(sizeof *state);
    if (!state) {
        tornado__nomem();
        return NULL;
    }
    state->executor = options->executor;
    state->keep = options->keep_executor;
    return state;
}

static tornado_future *tornado__executing_resolve(void *state, const char *host, int port, int family)
{
    return tornado__executor_resolve(((tornado__executing *)state)->executor, host, port, family);
}

static void tornado__executing_close(void *state)
{
    tornado__executing *executing = state;
    if (!executing->keep)
        tornado_executor_free(executing->executor);
    TORNADO_FREE(executing);
}

TORNADO__DATA const tornado_resolver_class tornado_executor_resolver = {
    tornado__executing_open, tornado__executing_resolve, tornado__executing_close};

/* ---- a table ---- */

typedef struct tornado__overriding {
    tornado_resolver *other;
    bool own;
    size_t count;
    tornado_resolver_override rows[]; /* their strings behind them */
} tornado__overriding;

/* The resolver that an override asks when its table has nothing. */
static tornado_resolver *tornado__override_other(void)
{
    tornado_resolver_options options = tornado__resolver_configured;
    if (options.kind == &tornado_override_resolver) {
        memset(&options, 0, sizeof options);
        options.kind = TORNADO__RESOLVER_DEFAULT;
    }
    return tornado_resolver_new(&options);
}

static void *tornado__override_open(const tornado_resolver_options *options)
{
    const tornado_resolver_override *rows = options->overrides;
    size_t count = 0, text = 0;
    for (; rows && rows[count].host; count++)
        text += strlen(rows[count].host) + strlen(rows[count].to) + 2;
    tornado__overriding *state = TORNADO_MALLOC(sizeof *state + count * sizeof *rows + text);
    if (!state) {
        tornado__nomem();
        return NULL;
    }
    char *at = (char *)&state->rows[count];
    for (size_t i = 0; i < count; i++) {
        state->rows[i] = rows[i];
        state->rows[i].host = strcpy(at, rows[i].host);
        at += strlen(at) + 1;
        state->rows[i].to = strcpy(at, rows[i].to);
        at += strlen(at) + 1;
    }
    state->count = count;
    state->own = !options->resolver;
    state->other = state->own ? tornado__override_other() : options->resolver;
    if (!state->other) {
        TORNADO_FREE(state);
        return NULL;
    }
    return state;
}

static tornado_future *tornado__override_resolve(void *state, const char *host, int port, int family)
{
    const tornado__overriding *overriding = state;
    for (size_t i = 0; i < overriding->count; i++) {
        const tornado_resolver_override *row = &overriding->rows[i];
        if (strcasecmp(row->host, host) != 0 || (row->port && row->port != port) ||
            (row->family && row->family != family))
            continue;
        host = row->to;
        port = row->to_port ? row->to_port : port;
        break;
    }
    return tornado_resolver_resolve(overriding->other, host, port, family);
}

static void tornado__override_close(void *state)
{
    tornado__overriding *overriding = state;
    if (overriding->own)
        tornado_resolver_free(overriding->other);
    TORNADO_FREE(overriding);
}

TORNADO__DATA const tornado_resolver_class tornado_override_resolver = {
    tornado__override_open, tornado__override_resolve, tornado__override_close};

/* ---- DNS: reading a reply ----

   RFC 1035 section 4, RFC 2181, RFC 2308. Names are compared in the form that they have on the wire, in lower case.
   A pointer inside a name must point before all that was read of the name, so reading one always ends. */

enum {
    TORNADO__DNS_A = 1,
    TORNADO__DNS_CNAME = 5,
    TORNADO__DNS_SOA = 6,
    TORNADO__DNS_AAAA = 28,
    TORNADO__DNS_OPT = 41
};

enum {
    TORNADO__DNS_HEADER = 12,
    TORNADO__DNS_PAYLOAD = 1232,   /* bytes of a reply by UDP: what passes everywhere in one piece */
    TORNADO__DNS_NAME = 255,       /* bytes of a name on the wire, with its last zero */
    TORNADO__DNS_HOPS = 128,       /* pointers in a name: as many as it can have labels */
    TORNADO__DNS_MOST = 64,        /* addresses of an answer that are used */
    TORNADO__DNS_RECORDS = 256,    /* of a reply that are looked at */
    TORNADO__DNS_ALIASES = 16,     /* names that one may stand for, one after the other */
    TORNADO__DNS_KEEP = 86400,     /* seconds that an answer is kept at most; */
    TORNADO__DNS_KEEP_NONE = 10800 /* and that there is none, RFC 2308 section 5 */
};

/* What a reply is to whoever asked. */
typedef enum tornado__dns_verdict {
    TORNADO__DNS_FOREIGN,   /* not a reply to this question */
    TORNADO__DNS_RECASED,   /* it is, but for the case of the letters: perhaps somebody guessed */
    TORNADO__DNS_TRUNCATED, /* has to be asked for by TCP */
    TORNADO__DNS_PLAINER,   /* the server wants no EDNS */
    TORNADO__DNS_USELESS,   /* it is malformed, or the server failed */
    TORNADO__DNS_NO_NAME,   /* there is no such name */
    TORNADO__DNS_NO_DATA,   /* nor a record of this type */
    TORNADO__DNS_FOUND
} tornado__dns_verdict;

typedef struct tornado__dns_answer {
    int64_t ttl; /* seconds for which it may be kept; 0: not at all */
    size_t count;
    unsigned char addresses[TORNADO__DNS_MOST][16]; /* of which an A record fills four bytes */
} tornado__dns_answer;

typedef struct tornado__dns_reply {
    const unsigned char *data;
    size_t len;
} tornado__dns_reply;

typedef struct tornado__dns_record {
    unsigned char name[TORNADO__DNS_NAME];
    size_t name_len, data, data_len; /* data: where it is in the reply */
    unsigned type, class;
    int64_t ttl;
} tornado__dns_record;

static unsigned tornado__dns_16(const unsigned char *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static uint32_t tornado__dns_32(const unsigned char *at)
{
    return (uint32_t)tornado__dns_16(at) << 16 | tornado__dns_16(at + 2);
}

static unsigned char tornado__dns_lower(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c + 32) : c;
}

/* Reads the name at *at, and moves that behind it. Returns its length on the wire, at least 1; 0 when it is malformed.
   */
static size_t tornado__dns_name(const tornado__dns_reply *reply, size_t *at, unsigned char name[TORNADO__DNS_NAME])
{
    size_t len = 0, from = *at, limit = *at, behind = 0, hops = 0;
    while (from < reply->len && hops < TORNADO__DNS_HOPS) {
        size_t label = reply->data[from];
        if (label >= 0xc0) { /* a pointer, RFC 1035 section 4.1.4 */
            if (reply->len - from < 2)
                return 0;
            size_t to = tornado__dns_16(reply->data + from) & 0x3fff;
            behind = behind ? behind : from + 2;
            if (to >= limit)
                return 0;
            limit = from = to;
            hops++;
            continue;
        }
        if (label > 63 || reply->len - from <= label || len + label + 1 > TORNADO__DNS_NAME - (label > 0))
            return 0;
        name[len++] = (unsigned char)label;
        for (size_t i = 1; i <= label; i++)
            name[len++] = tornado__dns_lower(reply->data[from + i]);
        from += label + 1;
        if (label == 0) {
            *at = behind ? behind : from;
            return len;
        }
    }
    return 0;
}

/* Reads the record at *at, and moves that behind it. False when it is malformed. */
static bool tornado__dns_next(const tornado__dns_reply *reply, size_t *at, tornado__dns_record *record)
{
    record->name_len = tornado__dns_name(reply, at, record->name);
    if (!record->name_len || reply->len - *at < 10)
        return false;
    const unsigned char *fixed = reply->data + *at;
    record->type = tornado__dns_16(fixed);
    record->class = tornado__dns_16(fixed + 2);
    record->ttl = tornado__dns_32(fixed + 4);
    if (record->ttl > INT32_MAX) /* RFC 2181 section 8 */
        record->ttl = 0;
    record->data_len = tornado__dns_16(fixed + 8);
    record->data = *at + 10;
    *at += 10;
    if (reply->len - *at < record->data_len)
        return false;
    *at += record->data_len;
    return true;
}

static bool tornado__dns_same(const tornado__dns_record *record, const unsigned char *name, size_t len)
{
    return record->name_len == len && memcmp(record->name, name, len) == 0;
}

/* Takes from the answer section what it says of one name: addresses, or that it is an alias, when *name becomes the
   other. Whether that is so; *ok is false when the reply is malformed. *at moves behind the section. */
static bool tornado__dns_scan(const tornado__dns_reply *reply, size_t *at, unsigned type,
                              unsigned char name[TORNADO__DNS_NAME], size_t *name_len, tornado__dns_answer *answer,
                              bool *ok)
{
    unsigned char alias[TORNADO__DNS_NAME];
    size_t alias_len = 0, size = type == TORNADO__DNS_A ? 4 : 16, count = tornado__dns_16(reply->data + 6);
    tornado__dns_record record;
    for (size_t i = 0; *ok && i < count && i < TORNADO__DNS_RECORDS; i++) {
        *ok = tornado__dns_next(reply, at, &record);
        if (!*ok || record.class != 1 || !tornado__dns_same(&record, name, *name_len))
            continue;
        if (record.type == type) {
            *ok = record.data_len == size;
            if (*ok && answer->count < TORNADO__DNS_MOST)
                memcpy(answer->addresses[answer->count++], reply->data + record.data, size);
        } else if (record.type == TORNADO__DNS_CNAME && !alias_len) {
            size_t data = record.data;
            alias_len = tornado__dns_name(reply, &data, alias);
            *ok = alias_len && data == record.data + record.data_len;
        } else {
            continue;
        }
        if (record.ttl < answer->ttl)
            answer->ttl = record.ttl;
    }
    if (!*ok || answer->count || !alias_len)
        return false;
    memcpy(name, alias, alias_len);
    *name_len = alias_len;
    return true;
}

/* For how long it may be kept that there is nothing: what the zone's SOA record says, RFC 2308 section 5; 0 without
   one. */
static int64_t tornado__dns_nothing_ttl(const tornado__dns_reply *reply, size_t at, const unsigned char *name,
                                        size_t name_len)
{
    unsigned char skipped[TORNADO__DNS_NAME];
    size_t count = tornado__dns_16(reply->data + 8);
    tornado__dns_record record;
    for (size_t i = 0; i < count && i < TORNADO__DNS_RECORDS && tornado__dns_next(reply, &at, &record); i++) {
        size_t data = record.data, end = record.data + record.data_len, below = name_len - record.name_len;
        if (record.type != TORNADO__DNS_SOA || record.class != 1 || record.name_len > name_len ||
            memcmp(name + below, record.name, record.name_len) != 0)
            continue; /* of another zone */
        if (!tornado__dns_name(reply, &data, skipped) || !tornado__dns_name(reply, &data, skipped) ||
            data > end || end - data != 20)
            return 0;
        int64_t least = tornado__dns_32(reply->data + data + 16);
        return least < record.ttl ? least : record.ttl;
    }
    return 0;
}

/* Judges bytes that came from where a question was sent to. `request` is the question, up to and with its class, as
   it was sent; `recased`: the case of its letters may differ. */
static tornado__dns_verdict tornado__dns_parse(const void *data, size_t len, const unsigned char *request,
                                               size_t request_len, bool recased, tornado__dns_answer *answer)
{
    tornado__dns_reply reply = {data, len}, asked = {request, request_len};
    unsigned char name[TORNADO__DNS_NAME];
    size_t at = TORNADO__DNS_HEADER, asked_at = TORNADO__DNS_HEADER, aliases = 0;
    bool ok = true;
    memset(answer, 0, offsetof(tornado__dns_answer, addresses));
    answer->ttl = TORNADO__DNS_KEEP;
    if (len < TORNADO__DNS_HEADER || memcmp(reply.data, request, 2) != 0 || (reply.data[2] & 0xf8) != 0x80)
        return TORNADO__DNS_FOREIGN; /* another id, or no reply, or not to a query */
    unsigned code = reply.data[3] & 15, questions = tornado__dns_16(reply.data + 4);
    bool plainer = code == 1 || code == 4; /* FORMERR, NOTIMP: RFC 6891 section 7 */
    if (questions == 0 && plainer) /* old servers repeat nothing */
        return TORNADO__DNS_PLAINER;
    if (questions != 1 || len < request_len)
        return TORNADO__DNS_FOREIGN;
    for (size_t i = TORNADO__DNS_HEADER; i < request_len; i++) {
        /* lengths and types are below 'A', so what is compared without case is letters */
        if (tornado__dns_lower(reply.data[i]) != tornado__dns_lower(request[i]))
            return TORNADO__DNS_FOREIGN;
        ok = ok && (recased || reply.data[i] == request[i]);
    }
    if (!ok)
        return TORNADO__DNS_RECASED;
    if (reply.data[2] & 2)
        return TORNADO__DNS_TRUNCATED;
    if (plainer)
        return TORNADO__DNS_PLAINER;
    size_t name_len = tornado__dns_name(&asked, &asked_at, name);
    if ((code != 0 && code != 3) || !name_len)
        return TORNADO__DNS_USELESS;
    unsigned type = tornado__dns_16(request + asked_at);
    do
        at = request_len;
    while (tornado__dns_scan(&reply, &at, type, name, &name_len, answer, &ok) && ++aliases < TORNADO__DNS_ALIASES);
    if (!ok || aliases == TORNADO__DNS_ALIASES)
        return TORNADO__DNS_USELESS;
    if (answer->count)
        return TORNADO__DNS_FOUND;
    int64_t ttl = tornado__dns_16(reply.data + 6) <= TORNADO__DNS_RECORDS
                      ? tornado__dns_nothing_ttl(&reply, at, name, name_len)
                      : 0;
    ttl = ttl < TORNADO__DNS_KEEP_NONE ? ttl : TORNADO__DNS_KEEP_NONE;
    answer->ttl = ttl < answer->ttl ? ttl : answer->ttl;
    return code == 3 ? TORNADO__DNS_NO_NAME : TORNADO__DNS_NO_DATA;
}

/* Writes a question for a name, which must be one, and returns its length: with an id and the case of letters from
   `random`, of 34 bytes. RFC 1035 section 4.1; draft-vixie-dnsext-dns0x20. */
static size_t tornado__dns_question_write(unsigned char *out, const char *name, unsigned type,
                                          const unsigned char *random)
{
    size_t len = TORNADO__DNS_HEADER, bit = 16;
    memset(out, 0, TORNADO__DNS_HEADER);
    memcpy(out, random, 2);
    out[2] = 1; /* recursion is wanted */
    out[5] = 1; /* one question */
    while (*name) {
        size_t label = strcspn(name, ".");
        out[len++] = (unsigned char)label;
        for (size_t i = 0; i < label; i++, bit++) {
            unsigned char c = (unsigned char)name[i];
            bool letter = (c | 32) >= 'a' && (c | 32) <= 'z';
            out[len++] = letter && random[bit / 8] >> bit % 8 & 1 ? c ^ 32 : c;
        }
        name += label + (name[label] == '.');
    }
    out[len++] = 0;
    out[len] = 0;
    out[len + 1] = (unsigned char)type;
    out[len + 2] = 0;
    out[len + 3] = 1; /* the Internet */
    return len + 4;
}

/* Adds to a question that replies may be longer than 512 bytes, RFC 6891 section 6.1. Returns its length. */
static size_t tornado__dns_question_extend(unsigned char *out, size_t len)
{
    static const unsigned char opt[] = {0, 0, TORNADO__DNS_OPT, TORNADO__DNS_PAYLOAD >> 8,
                                        TORNADO__DNS_PAYLOAD & 255, 0, 0, 0, 0, 0, 0};
    out[11] = 1; /* one additional record */
    memcpy(out + len, opt, sizeof opt);
    return len + sizeof opt;
}

/* Whether text can be a host's name, RFC 1123 section 2.1, with the underscore that people use: labels of 63
   characters at most, 253 in all, without a dot at the end. */
static bool tornado__dns_is_name(const char *name)
{
    size_t len = strlen(name), label = 0;
    if (len == 0 || len > 253)
        return false;
    for (; *name; name++) {
        bool dot = *name == '.';
        if (dot ? label == 0 : !strchr("abcdefghijklmnopqrstuvwxyz0123456789-_", *name))
            return false;
        label = dot ? 0 : label + 1;
        if (label > 63)
            return false;
    }
    return label > 0;
}

/* ---- DNS: what the system's files say ---- */

enum {
    TORNADO__DNS_SERVERS = 8,
    TORNADO__DNS_DOMAINS = 8,
    TORNADO__DNS_FILE_MAX = 4194304,    /* bytes of a file that is read */
    TORNADO__DNS_UNDER_WAY = 256,       /* questions with a socket; others wait */
    TORNADO__DNS_LOOKUPS = 10000,
    TORNADO__DNS_BUCKETS = 1024,
    TORNADO__DNS_WRONG = 16             /* foreign replies to a question until it is asked by TCP */
};

#ifdef TORNADO_TESTING
#define TORNADO__DNS_LOOK_AGAIN 0
#else
#define TORNADO__DNS_LOOK_AGAIN INT64_C(5000000000) /* ns until files are looked at again */
#endif
#define TORNADO__DNS_SICK       INT64_C(30000000000) /* ns for which a server that was silent is asked last */
#define TORNADO__DNS_PATIENCE   INT64_C(500000000)   /* ns for the other family, once there is one */

/* A text file, and by what to tell that it has changed. */
typedef struct tornado__dns_file {
    const char *path;
    char *text;
    struct stat status;
    bool there;
} tornado__dns_file;

typedef struct tornado__dns_host {
    const char *name, *ip; /* in the file's text */
} tornado__dns_host;

typedef struct tornado__dns_config {
    tornado_address servers[TORNADO__DNS_SERVERS];
    int servers_count, ndots, attempts, domains_count;
    char domains[TORNADO__DNS_DOMAINS][254];
    int64_t timeout; /* ns */
    bool rotate, tcp;
} tornado__dns_config;

struct tornado__dns_question;

typedef struct tornado__dns {
    tornado_ioloop *loop;
    tornado__dns_file resolv_conf, hosts;
    tornado__dns_host *host_list; /* by name, then by place in the file */
    int host_count, host_capacity;
    int64_t looked; /* at the files; 0: never */
    tornado__dns_config config, given; /* given: by the options, where not zero */
    int64_t sick[TORNADO__DNS_SERVERS]; /* until when */
    unsigned turn;                      /* of rotation */
    int port, cache_size, cached_count, under_way, lookups_count;
    bool pumping;
    uint64_t secret;
    tornado__link lookups, cached, waiting; /* cached: questions, oldest first; waiting: for their turn to be asked */
    struct tornado__dns_question *buckets[TORNADO__DNS_BUCKETS];
} tornado__dns;

/* Reads a file again if it has changed. Whether its text is another now; a file that cannot be read is empty. */
static bool tornado__dns_file_read(tornado__dns_file *file)
{
    struct stat status;
    size_t len = 0;
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool there = fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
    const struct stat *old = &file->status;
    bool same = there == file->there &&
                (!there || (status.st_ino == old->st_ino && status.st_dev == old->st_dev &&
                            status.st_size == old->st_size && status.st_mtime == old->st_mtime));
    if (same || (there && status.st_size > TORNADO__DNS_FILE_MAX)) {
        if (!same && !file->there)
            tornado_gen_log(TORNADO_LOG_WARNING, "%s is too large and is not read", file->path);
        if (fd >= 0)
            close(fd);
        return false;
    }
    TORNADO_FREE(file->text);
    file->text = there ? TORNADO_MALLOC((size_t)status.st_size + 1) : NULL;
    while (file->text && len < (size_t)status.st_size) {
        ssize_t got = read(fd, file->text + len, (size_t)status.st_size - len);
        if (got == 0 || (got < 0 && errno != EINTR))
            break;
        len += got > 0 ? (size_t)got : 0;
    }
    if (fd >= 0)
        close(fd);
    if (file->text)
        file->text[len] = '\0';
    file->there = there && file->text;
    if (there)
        file->status = status;
    return true;
}

/* Takes the next line, and from a line the next word, out of a text, with a NUL put behind. NULL at the end. */
static char *tornado__dns_line(char **text)
{
    char *line = *text;
    if (!line || !*line)
        return NULL;
    char *end = line + strcspn(line, "\n");
    *text = *end ? end + 1 : end;
    *end = '\0';
    return line;
}

static char *tornado__dns_word(char **line, const char *comment)
{
    char *word = *line + strspn(*line, " \t\r");
    if (!*word || strchr(comment, *word))
        return NULL;
    char *end = word + strcspn(word, " \t\r");
    *line = *end ? end + 1 : end;
    *end = '\0';
    return word;
}

/* The number behind a colon in "ndots:1", clipped; -1 when the word is another option. */
static int tornado__dns_option(const char *word, const char *name, int least, int most)
{
    size_t len = strlen(name);
    long number = 0;
    if (strncmp(word, name, len) != 0 || word[len] != ':')
        return -1;
    for (const char *at = word + len + 1; *at >= '0' && *at <= '9' && number < 1000; at++)
        number = number * 10 + (*at - '0');
    return number < least ? least : number > most ? most : (int)number;
}

/* Copies a name in lower case, without a dot at its end. Whether it is one. */
static bool tornado__dns_copy_name(char out[254], const char *name)
{
    size_t len = strlen(name);
    len -= len > 1 && name[len - 1] == '.';
    if (len > 253)
        return false;
    for (size_t i = 0; i < len; i++)
        out[i] = (char)tornado__dns_lower((unsigned char)name[i]);
    out[len] = '\0';
    return tornado__dns_is_name(out);
}

static void tornado__dns_config_options(tornado__dns_config *config, char *line)
{
    for (char *word; (word = tornado__dns_word(&line, "#;")) != NULL;) {
        int ndots = tornado__dns_option(word, "ndots", 0, 15), timeout = tornado__dns_option(word, "timeout", 1, 30);
        int attempts = tornado__dns_option(word, "attempts", 1, 5);
        config->ndots = ndots >= 0 ? ndots : config->ndots;
        config->timeout = timeout > 0 ? timeout * INT64_C(1000000000) : config->timeout;
        config->attempts = attempts > 0 ? attempts : config->attempts;
        config->rotate |= strcmp(word, "rotate") == 0;
        config->tcp |= strcmp(word, "use-vc") == 0;
    }
}

/* Reads the text of resolv.conf, resolv.conf(5), which it takes apart. What is malformed is passed over. */
static void tornado__dns_config_read(tornado__dns_config *config, char *text, int port)
{
    memset(config, 0, sizeof *config);
    config->ndots = 1;
    config->attempts = 2;
    config->timeout = INT64_C(5000000000);
    for (char *line; (line = tornado__dns_line(&text)) != NULL;) {
        char *keyword = tornado__dns_word(&line, "#;"), *word;
        if (!keyword)
            continue;
        if (strcmp(keyword, "nameserver") == 0) {
            if ((word = tornado__dns_word(&line, "#;")) != NULL && config->servers_count < TORNADO__DNS_SERVERS &&
                tornado_address_ip(&config->servers[config->servers_count], word, port))
                config->servers_count++;
        } else if (strcmp(keyword, "domain") == 0 || strcmp(keyword, "search") == 0) {
            config->domains_count = 0; /* the last one counts */
            while ((word = tornado__dns_word(&line, "#;")) != NULL && config->domains_count < TORNADO__DNS_DOMAINS)
                config->domains_count += tornado__dns_copy_name(config->domains[config->domains_count], word);
        } else if (strcmp(keyword, "options") == 0) {
            tornado__dns_config_options(config, line);
        }
    }
}

static int tornado__dns_host_compare(const void *a, const void *b)
{
    const tornado__dns_host *one = a, *two = b;
    int order = strcmp(one->name, two->name);
    return order ? order : one->ip < two->ip ? -1 : one->ip > two->ip;
}

/* Reads the text of a hosts file, hosts(5), which it takes apart. Short of memory it knows only a part. */
static void tornado__dns_hosts_read(tornado__dns *dns, char *text)
{
    dns->host_count = 0;
    for (char *line; (line = tornado__dns_line(&text)) != NULL;) {
        char *ip = tornado__dns_word(&line, "#"), *name;
        while (ip && (name = tornado__dns_word(&line, "#")) != NULL) {
            void *list = dns->host_list;
            char lower[254];
            if (!tornado__dns_copy_name(lower, name))
                continue;
            if (!tornado__grow(&list, &dns->host_capacity, dns->host_count + 1, sizeof *dns->host_list))
                return;
            dns->host_list = list;
            dns->host_list[dns->host_count].name = strcpy(name, lower);
            dns->host_list[dns->host_count++].ip = ip;
        }
    }
    if (dns->host_count)
        qsort(dns->host_list, (size_t)dns->host_count, sizeof *dns->host_list, tornado__dns_host_compare);
}

/* Has the configuration be what files and options say now. */
static void tornado__dns_refresh(tornado__dns *dns)
{
    int64_t now = tornado__now_ns();
    char none[] = "";
    if (dns->looked && now - dns->looked < TORNADO__DNS_LOOK_AGAIN)
        return;
    bool first = !dns->looked;
    dns->looked = now;
    if (tornado__dns_file_read(&dns->hosts) || first)
        tornado__dns_hosts_read(dns, dns->hosts.text ? dns->hosts.text : none);
    if (!tornado__dns_file_read(&dns->resolv_conf) && !first)
        return;
    tornado__dns_config *config = &dns->config;
    const tornado__dns_config *given = &dns->given;
    tornado__dns_config_read(config, dns->resolv_conf.text ? dns->resolv_conf.text : none, dns->port);
    if (given->servers_count || !config->servers_count) {
        memcpy(config->servers, given->servers, sizeof config->servers);
        config->servers_count = given->servers_count ? given->servers_count : 1;
    }
    config->timeout = given->timeout ? given->timeout : config->timeout;
    config->attempts = given->attempts ? given->attempts : config->attempts;
    memset(dns->sick, 0, sizeof dns->sick);
}

/* The addresses of a name in the hosts file that are of a family, or NULL: none, or memory is short. */
static tornado_addresses *tornado__dns_hosts_find(const tornado__dns *dns, const char *name, int port, int family)
{
    int low = 0, high = dns->host_count;
    tornado_address address;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (strcmp(dns->host_list[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (high = low; high < dns->host_count && high - low < TORNADO__DNS_MOST; high++)
        if (strcmp(dns->host_list[high].name, name) != 0)
            break;
    tornado_addresses *addresses = high > low ? tornado__addresses_new((size_t)(high - low)) : NULL;
    for (; addresses && low < high; low++)
        if (tornado_address_ip(&address, dns->host_list[low].ip, port) && tornado__family_fits(&address, family))
            tornado__addresses_add(addresses, &address);
    if (addresses && !addresses->count) {
        TORNADO_FREE(addresses);
        addresses = NULL;
    }
    return addresses;
}

/* ---- DNS: questions ---- */

/* What a question has while it is asked. */
typedef struct tornado__dns_asking {
    int fd; /* -1: none */
    bool tcp, plain; /* plain: without EDNS */
    bool reading;    /* the question was sent */
    bool answered;   /* some server said something */
    int tries, wrong, servers_count;
    unsigned char order[TORNADO__DNS_SERVERS]; /* in which the servers are asked */
    size_t question_len, request_len;
    size_t moved; /* by TCP: bytes sent, then bytes received, of the length and what follows it */
    unsigned char *reply, reply_head[2]; /* by TCP */
    unsigned char packet[2 + TORNADO__DNS_HEADER + TORNADO__DNS_NAME + 4 + 11]; /* the length, then the request */
} tornado__dns_asking;

/* A name and a type: asked now, or known. */
typedef struct tornado__dns_question {
    tornado__link link;                 /* in cached, in waiting, or alone */
    struct tornado__dns_question *next; /* in its bucket */
    tornado__dns *dns;
    tornado__dns_asking *asking;        /* NULL: it is known, or waits for its turn */
    tornado__timer timer;               /* of the server that was asked */
    tornado__link lookups;              /* that wait for it */
    tornado__dns_verdict verdict;       /* FOUND, NO_NAME, NO_DATA; USELESS: nobody knows */
    bool known, kept, silent;           /* kept: in cached; silent: no server said anything */
    unsigned type;
    int64_t expires;
    size_t count;
    unsigned char (*addresses)[16];
    char name[];
} tornado__dns_question;

static void tornado__dns_told(tornado__link *waiter, const tornado__dns_question *question);

static tornado__dns_question **tornado__dns_bucket(tornado__dns *dns, const char *name, unsigned type)
{
    char key[sizeof dns->secret + TORNADO__DNS_NAME + 1];
    uint64_t secret = dns->secret ^ type, hash[2];
    size_t len = strlen(name);
    memcpy(key, &secret, sizeof secret);
    memcpy(key + sizeof secret, name, len);
    tornado__hash128(key, sizeof secret + len, (unsigned char *)hash);
    return &dns->buckets[hash[0] % TORNADO__DNS_BUCKETS];
}

static void tornado__dns_hang_up(tornado__dns_question *question)
{
    tornado__dns_asking *asking = question->asking;
    tornado_ioloop *loop = question->dns->loop;
    tornado__timer_clear(loop, &question->timer);
    if (asking->fd >= 0) {
        if (!loop->closed)
            tornado_ioloop_remove_handler(loop, asking->fd);
        tornado__ioloop_close_fd(loop, asking->fd, true);
    }
    TORNADO_FREE(asking->reply);
    asking->reply = NULL;
    asking->fd = -1;
    asking->reading = false;
    asking->moved = 0;
}

/* Takes a question out of the table and frees it. Nobody waits for it. */
static void tornado__dns_forget(tornado__dns_question *question)
{
    tornado__dns *dns = question->dns;
    tornado__dns_question **at = tornado__dns_bucket(dns, question->name, question->type);
    while (*at && *at != question)
        at = &(*at)->next;
    if (*at)
        *at = question->next;
    tornado__link_remove(&question->link);
    dns->cached_count -= question->kept;
    if (question->asking) {
        tornado__dns_hang_up(question);
        TORNADO_FREE(question->asking);
    }
    TORNADO_FREE(question->addresses);
    TORNADO_FREE(question);
}

/* The question about a name, and one to be asked when there is none yet or what is known has expired. NULL when memory
   is short. */
static tornado__dns_question *tornado__dns_question_of(tornado__dns *dns, const char *name, unsigned type)
{
    tornado__dns_question **bucket = tornado__dns_bucket(dns, name, type), *found = *bucket;
    while (found && (found->type != type || strcmp(found->name, name) != 0))
        found = found->next;
    if (found && found->kept && found->expires <= tornado__now_ns()) {
        tornado__dns_forget(found);
        found = NULL;
    }
    if (found) {
        if (found->kept) { /* the one used last goes last */
            tornado__link_remove(&found->link);
            tornado__link_append(&dns->cached, &found->link);
        }
        return found;
    }
    size_t size = strlen(name) + 1;
    if (!(found = TORNADO_MALLOC(sizeof *found + size))) {
        tornado__nomem();
        return NULL;
    }
    memset(found, 0, sizeof *found);
    memcpy(found->name, name, size);
    found->dns = dns;
    found->type = type;
    tornado__link_init(&found->lookups);
    tornado__link_append(&dns->waiting, &found->link);
    found->next = *bucket;
    *bucket = found;
    return found;
}

/* Keeps what is known, or that nothing is, and makes room for it. */
static void tornado__dns_keep(tornado__dns_question *question)
{
    tornado__dns *dns = question->dns;
    tornado__link_append(&dns->cached, &question->link);
    question->kept = true;
    dns->cached_count++;
    while (dns->cached_count > dns->cache_size)
        tornado__dns_forget(TORNADO__CONTAINER(dns->cached.next, tornado__dns_question, link));
}

/* The question is not asked any more: tells who waits. `answer` is NULL when nobody knows. The question may be gone
   then. */
static void tornado__dns_finish(tornado__dns_question *question, tornado__dns_verdict verdict,
                                const tornado__dns_answer *answer)
{
    tornado__dns *dns = question->dns;
    tornado__dns_asking *asking = question->asking;
    int64_t ttl = answer ? answer->ttl : 0;
    if (asking) {
        question->silent = !asking->answered;
        tornado__dns_hang_up(question);
        TORNADO_FREE(asking);
        question->asking = NULL;
        dns->under_way--;
    }
    if (answer && answer->count) {
        size_t size = answer->count * sizeof answer->addresses[0];
        if ((question->addresses = TORNADO_MALLOC(size)) != NULL)
            memcpy(question->addresses, answer->addresses, size);
        question->count = question->addresses ? answer->count : 0;
        verdict = question->addresses ? verdict : TORNADO__DNS_USELESS;
        ttl = question->addresses ? ttl : 0;
    }
    question->verdict = verdict;
    question->expires = tornado__add_ns(tornado__now_ns(), ttl * INT64_C(1000000000));
    question->known = true;
    while (!tornado__link_empty(&question->lookups)) {
        tornado__link *waiter = question->lookups.next;
        tornado__link_remove(waiter);
        tornado__dns_told(waiter, question);
    }
    if (ttl > 0 && dns->cache_size > 0)
        tornado__dns_keep(question);
    else
        tornado__dns_forget(question);
}

static void tornado__dns_event(int fd, unsigned events, void *arg);
static void tornado__dns_pump(tornado__dns *dns);

static const tornado_address *tornado__dns_server(const tornado__dns_question *question)
{
    const tornado__dns_asking *asking = question->asking;
    return &question->dns->config.servers[asking->order[asking->tries % asking->servers_count]];
}

/* Opens a socket to the server whose turn it is; by UDP the request is sent, where that is possible at once. -1 with
   the reason. */
static int tornado__dns_open(const tornado__dns_question *question)
{
    tornado__dns_asking *asking = question->asking;
    const tornado_address *server = tornado__dns_server(question);
    int fd, error;
    if (asking->tcp) {
        fd = tornado__socket(tornado__sockaddr(server)->sa_family, SOCK_STREAM);
        error = fd < 0 ? errno : 0;
        if (fd >= 0 && connect(fd, tornado__sockaddr(server), (socklen_t)server->len) != 0 && errno != EINPROGRESS &&
            errno != EINTR)
            error = errno;
    } else {
        tornado_datagram_options options = {.peer = server};
        fd = tornado__datagram_open(&options);
        error = fd < 0 ? tornado__thread.last.sys_errno
                       : tornado__datagram_send(fd, NULL, asking->packet + 2, asking->request_len);
        asking->reading = error == 0;
    }
    if (!error || (fd >= 0 && error == EAGAIN))
        return fd;
    if (fd >= 0)
        close(fd);
    tornado__fail(TORNADO_ERR_SYSTEM, error, "cannot ask a name server: %s", strerror(error));
    return -1;
}

/* Asks the server whose turn it is. False when that is not possible. */
static bool tornado__dns_send(tornado__dns_question *question)
{
    tornado__dns *dns = question->dns;
    tornado__dns_asking *asking = question->asking;
    unsigned char random[34], *request = asking->packet + 2;
    if (!tornado_random_bytes(random, sizeof random))
        return false;
    asking->question_len = tornado__dns_question_write(request, question->name, question->type, random);
    asking->request_len = asking->plain ? asking->question_len
                                        : tornado__dns_question_extend(request, asking->question_len);
    asking->packet[0] = (unsigned char)(asking->request_len >> 8);
    asking->packet[1] = (unsigned char)asking->request_len;
    int fd = tornado__dns_open(question);
    if (fd < 0)
        return false;
    unsigned events = asking->reading ? TORNADO_IOLOOP_READ : TORNADO_IOLOOP_WRITE;
    if (!tornado_ioloop_add_handler(dns->loop, fd, tornado__dns_event, question, events)) {
        close(fd);
        return false;
    }
    asking->fd = fd;
    return tornado__timer_set(dns->loop, &question->timer,
                              tornado__add_ns(tornado__now_ns(), dns->config.timeout));
}

/* Asks one server after the other until one can be asked; when all have had their tries nobody knows. The question may
   be gone then. */
static void tornado__dns_try(tornado__dns_question *question)
{
    tornado__dns_asking *asking = question->asking;
    for (;; asking->tries++) {
        tornado__dns_hang_up(question);
        if (asking->tries >= question->dns->config.attempts * asking->servers_count) {
            tornado__dns_finish(question, TORNADO__DNS_USELESS, NULL);
            return;
        }
        if (tornado__dns_send(question))
            return;
    }
}

static void tornado__dns_try_next(tornado__dns_question *question)
{
    question->asking->tries++;
    tornado__dns_try(question);
}

static void tornado__dns_late(tornado__timer *timer, tornado_ioloop *loop)
{
    tornado__dns_question *question = TORNADO__CONTAINER(timer, tornado__dns_question, timer);
    tornado__dns_asking *asking = question->asking;
    tornado__dns *dns = question->dns;
    (void)loop;
    dns->sick[asking->order[asking->tries % asking->servers_count]] =
        tornado__add_ns(tornado__now_ns(), TORNADO__DNS_SICK);
    tornado__dns_try_next(question);
    tornado__dns_pump(dns);
}

/* Asks questions that wait for their turn. What comes of it may end others, which calls this again: then the first
   call goes on. */
static void tornado__dns_pump(tornado__dns *dns)
{
    if (dns->pumping)
        return;
    dns->pumping = true;
    while (!tornado__link_empty(&dns->waiting) && dns->under_way < TORNADO__DNS_UNDER_WAY) {
        tornado__dns_question *question = TORNADO__CONTAINER(dns->waiting.next, tornado__dns_question, link);
        tornado__dns_asking *asking = TORNADO_MALLOC(sizeof *asking);
        tornado__link_remove(&question->link);
        if (!asking) {
            tornado__dns_finish(question, TORNADO__DNS_USELESS, NULL);
            continue;
        }
        memset(asking, 0, sizeof *asking);
        question->asking = asking;
        question->timer.fire = tornado__dns_late;
        dns->under_way++;
        asking->fd = -1;
        asking->tcp = dns->config.tcp;
        asking->servers_count = dns->config.servers_count;
        unsigned first = dns->config.rotate ? dns->turn++ : 0, count = (unsigned)asking->servers_count, filled = 0;
        int64_t now = tornado__now_ns();
        for (int sick = 0; sick < 2; sick++)
            for (unsigned i = 0; i < count; i++) {
                unsigned server = (first + i) % count;
                if ((dns->sick[server] > now) == sick)
                    asking->order[filled++] = (unsigned char)server;
            }
        tornado__dns_try(question);
    }
    dns->pumping = false;
}

/* ---- DNS: replies ---- */

/* Does what a reply demands. Whether the socket that it came from is done with, and perhaps the question. */
static bool tornado__dns_judge(tornado__dns_question *question, tornado__dns_verdict verdict,
                               const tornado__dns_answer *answer)
{
    tornado__dns_asking *asking = question->asking;
    bool by_tcp = asking->tcp;
    if (verdict == TORNADO__DNS_FOREIGN && !by_tcp && ++asking->wrong < TORNADO__DNS_WRONG)
        return false; /* the true one may come yet */
    asking->answered = asking->answered || verdict != TORNADO__DNS_FOREIGN;
    if (verdict >= TORNADO__DNS_NO_NAME) {
        question->dns->sick[asking->order[asking->tries % asking->servers_count]] = 0;
        tornado__dns_finish(question, verdict, answer);
    } else if (!by_tcp && verdict <= TORNADO__DNS_TRUNCATED) {
        asking->tcp = true; /* there nobody can guess */
        tornado__dns_try(question);
    } else if (verdict == TORNADO__DNS_PLAINER && !asking->plain) {
        asking->plain = true;
        tornado__dns_try(question);
    } else {
        tornado__dns_try_next(question);
    }
    return true;
}

static void tornado__dns_readable(tornado__dns_question *question)
{
    tornado__dns_asking *asking = question->asking;
    tornado_ioloop *loop = question->dns->loop;
    tornado_address from;
    tornado__dns_answer answer;
    bool truncated;
    char *scratch = tornado__loop_scratch(loop);
    for (int i = 0; i < TORNADO__DNS_WRONG && scratch; i++) {
        ssize_t got = tornado__datagram_recv(asking->fd, scratch, TORNADO__SCRATCH_SIZE, &from, &truncated);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (got < 0) { /* nobody listens there */
            tornado__dns_try_next(question);
            return;
        }
        tornado__dns_verdict verdict =
            tornado__dns_parse(scratch, (size_t)got, asking->packet + 2, asking->question_len, false, &answer);
        if (tornado__dns_judge(question, verdict, &answer))
            return;
    }
}

/* Moves a part of the request, or of the reply behind its length. False: it is over with this connection. */
static bool tornado__dns_move(tornado__dns_question *question)
{
    tornado__dns_asking *asking = question->asking;
    size_t want = asking->request_len + 2;
    ssize_t moved;
    if (!asking->tcp) { /* it could not be sent at once */
        int error = tornado__datagram_send(asking->fd, NULL, asking->packet + 2, asking->request_len);
        moved = error ? -1 : (ssize_t)want;
        errno = error;
    } else if (!asking->reading) {
        moved = send(asking->fd, asking->packet + asking->moved, want - asking->moved, MSG_NOSIGNAL);
    } else if (asking->moved < 2) {
        want = SIZE_MAX;
        moved = recv(asking->fd, asking->reply_head + asking->moved, 2 - asking->moved, 0);
    } else {
        want = tornado__dns_16(asking->reply_head) + (size_t)2;
        if (!asking->reply && !(asking->reply = TORNADO_MALLOC(want)))
            return false;
        moved = want > asking->moved ? recv(asking->fd, asking->reply + asking->moved - 2, want - asking->moved, 0) : 0;
    }
    if (moved <= 0)
        return moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS);
    asking->moved += (size_t)moved;
    if (asking->moved < want)
        return true;
    if (!asking->reading) {
        asking->reading = true;
        asking->moved = 0;
        return tornado_ioloop_update_handler(question->dns->loop, asking->fd, TORNADO_IOLOOP_READ);
    }
    tornado__dns_answer answer;
    tornado__dns_verdict verdict =
        tornado__dns_parse(asking->reply, want - 2, asking->packet + 2, asking->question_len, true, &answer);
    tornado__dns_judge(question, verdict, &answer);
    return true;
}

static void tornado__dns_event(int fd, unsigned events, void *arg)
{
    tornado__dns_question *question = arg;
    tornado__dns *dns = question->dns;
    (void)fd;
    (void)events;
    if (!question->asking->tcp && question->asking->reading)
        tornado__dns_readable(question);
    else if (!tornado__dns_move(question))
        tornado__dns_try_next(question);
    tornado__dns_pump(dns);
}

/* ---- DNS: lookups ---- */

/* What a lookup has of one question. */
typedef struct tornado__dns_slot {
    tornado__link link; /* of the question's lookups, while it waits */
    struct tornado__dns_lookup *lookup;
    bool waits;
    unsigned char (*addresses)[16];
    size_t count;
} tornado__dns_slot;

enum { TORNADO__DNS_SIX, TORNADO__DNS_FOUR };

typedef struct tornado__dns_lookup {
    tornado__link link;
    tornado__dns *dns;
    tornado_future *future;
    tornado__timer patience;
    int port, family;
    int candidate, candidates; /* of the names to try; which is under way, or next */
    bool as_it_is_first, failed, silent, nomem, no_data; /* what the questions so far came to */
    tornado__dns_slot slots[2];
    char name[254];
} tornado__dns_lookup;

static void tornado__dns_lookup_free(tornado__dns_lookup *lookup)
{
    tornado__dns *dns = lookup->dns;
    tornado__timer_clear(dns->loop, &lookup->patience);
    for (int i = 0; i < 2; i++) {
        tornado__link_remove(&lookup->slots[i].link);
        TORNADO_FREE(lookup->slots[i].addresses);
    }
    tornado__link_remove(&lookup->link);
    dns->lookups_count--;
    tornado_future_release(lookup->future);
    TORNADO_FREE(lookup);
}

static tornado_address tornado__dns_address(const unsigned char *bytes, int slot, int port)
{
    tornado_address address;
    memset(&address, 0, sizeof address);
    if (slot == TORNADO__DNS_SIX) {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)tornado__sockaddr(&address);
        six->sin6_family = AF_INET6;
        memcpy(&six->sin6_addr, bytes, 16);
        address.len = sizeof *six;
    } else {
        struct sockaddr_in *four = (struct sockaddr_in *)(void *)tornado__sockaddr(&address);
        four->sin_family = AF_INET;
        memcpy(&four->sin_addr, bytes, 4);
        address.len = sizeof *four;
    }
    tornado__address_set_port(&address, port);
    return address;
}

/* Whether there is a way to an address, as far as this machine knows: nothing is sent. */
static bool tornado__dns_reachable(const tornado_address *address)
{
    int fd = tornado__socket(tornado__sockaddr(address)->sa_family, SOCK_DGRAM);
    bool reachable = fd >= 0 && connect(fd, tornado__sockaddr(address), (socklen_t)address->len) == 0;
    if (fd >= 0)
        close(fd);
    return reachable;
}

/* The addresses of both slots, those of IPv6 first where they can be reached (of RFC 6724 what matters most). */
static tornado_addresses *tornado__dns_addresses(const tornado__dns_lookup *lookup)
{
    const tornado__dns_slot *slots = lookup->slots;
    tornado_addresses *addresses = tornado__addresses_new(slots[0].count + slots[1].count);
    int first = TORNADO__DNS_SIX;
    if (slots[0].count && slots[1].count) {
        tornado_address six = tornado__dns_address(slots[0].addresses[0], 0, 53);
        first = tornado__dns_reachable(&six) ? TORNADO__DNS_SIX : TORNADO__DNS_FOUR;
    }
    for (int i = 0; i < 2 && addresses; i++)
        for (size_t k = 0; k < slots[i ^ first].count; k++) {
            tornado_address address = tornado__dns_address(slots[i ^ first].addresses[k], i ^ first, lookup->port);
            tornado__addresses_add(addresses, &address);
        }
    return addresses;
}

/* Ends a lookup for which there is no more name to try. */
static void tornado__dns_lookup_failed(tornado__dns_lookup *lookup)
{
    if (lookup->nomem)
        tornado__nomem();
    else if (lookup->failed)
        tornado__unresolved(EAGAIN, lookup->name,
                            lookup->silent ? "no name server answered" : "the name servers could not tell");
    else
        tornado__unresolved(ENOENT, lookup->name,
                            lookup->no_data ? "it has no address of that family" : "there is no such name");
    tornado_future_set_error(lookup->future, &tornado__thread.last);
    tornado__dns_lookup_free(lookup);
}

/* Ends a lookup that has addresses. False: it has none. */
static bool tornado__dns_lookup_found(tornado__dns_lookup *lookup)
{
    if (!lookup->slots[0].count && !lookup->slots[1].count)
        return false;
    tornado_addresses *addresses = tornado__dns_addresses(lookup);
    if (addresses)
        tornado_future_set_result(lookup->future, addresses, tornado__addresses_free);
    else
        tornado_future_set_error(lookup->future, &tornado__thread.last);
    tornado__dns_lookup_free(lookup);
    return true;
}

/* Takes what a question came to. */
static void tornado__dns_take(tornado__dns_slot *slot, const tornado__dns_question *question)
{
    tornado__dns_lookup *lookup = slot->lookup;
    size_t size = question->count * sizeof *question->addresses;
    slot->waits = false;
    if (question->verdict == TORNADO__DNS_FOUND && (slot->addresses = TORNADO_MALLOC(size)) != NULL) {
        memcpy(slot->addresses, question->addresses, size);
        slot->count = question->count;
    }
    lookup->nomem |= question->verdict == TORNADO__DNS_FOUND && !slot->count;
    lookup->no_data |= question->verdict == TORNADO__DNS_NO_DATA;
    if (question->verdict == TORNADO__DNS_USELESS) {
        lookup->silent = question->silent;
        lookup->failed = true;
    }
}

/* The name to try next. False: it would be too long. */
static bool tornado__dns_candidate(const tornado__dns_lookup *lookup, char out[512])
{
    const tornado__dns_config *config = &lookup->dns->config;
    int domain = lookup->candidate - lookup->as_it_is_first;
    bool as_it_is = domain < 0 || domain >= config->domains_count;
    snprintf(out, 512, "%s%s%s", lookup->name, as_it_is ? "" : ".", as_it_is ? "" : config->domains[domain]);
    return strlen(out) <= 253;
}

/* Tries names until one has to be waited for, or the lookup is over. */
static void tornado__dns_lookup_go(tornado__dns_lookup *lookup)
{
    static const unsigned types[] = {TORNADO__DNS_AAAA, TORNADO__DNS_A};
    static const int families[] = {AF_INET6, AF_INET};
    for (char name[512]; lookup->candidate < lookup->candidates; lookup->candidate++) {
        bool waits = false;
        if (!tornado__dns_candidate(lookup, name))
            continue;
        for (int i = 0; i < 2; i++) {
            if (lookup->family && lookup->family != families[i])
                continue;
            tornado__dns_slot *slot = &lookup->slots[i];
            tornado__dns_question *question = tornado__dns_question_of(lookup->dns, name, types[i]);
            if (!question) {
                lookup->nomem = true;
            } else if (question->known) {
                tornado__dns_take(slot, question);
            } else {
                tornado__link_append(&question->lookups, &slot->link);
                waits = slot->waits = true;
            }
        }
        if (waits || tornado__dns_lookup_found(lookup))
            return;
    }
    tornado__dns_lookup_failed(lookup);
}

static void tornado__dns_impatient(tornado__timer *timer, tornado_ioloop *loop)
{
    (void)loop;
    tornado__dns_lookup_found(TORNADO__CONTAINER(timer, tornado__dns_lookup, patience));
}

/* A question that was waited for is known. */
static void tornado__dns_told(tornado__link *waiter, const tornado__dns_question *question)
{
    tornado__dns_slot *slot = TORNADO__CONTAINER(waiter, tornado__dns_slot, link);
    tornado__dns_lookup *lookup = slot->lookup;
    tornado__dns *dns = lookup->dns;
    tornado__dns_take(slot, question);
    if (lookup->slots[0].waits || lookup->slots[1].waits) {
        if (slot->count) /* RFC 8305 section 3: the other family is not waited for as long as it takes */
            tornado__timer_set(dns->loop, &lookup->patience,
                               tornado__add_ns(tornado__now_ns(), TORNADO__DNS_PATIENCE));
        return;
    }
    if (tornado__dns_lookup_found(lookup))
        return;
    lookup->candidate++;
    tornado__dns_lookup_go(lookup);
    tornado__dns_pump(dns);
}

/* ---- DNS: the resolver ---- */

/* Reads "127.0.0.1", "127.0.0.1:53", "::1" or "[::1]:53". */
static bool tornado__dns_server_read(tornado_address *address, const char *text, int port)
{
    char ip[64];
    size_t bracket = *text == '[', colon = strcspn(text, ":");
    bool several = strchr(text + colon + (text[colon] != '\0'), ':') != NULL; /* an address of IPv6 */
    const char *end = bracket ? strchr(text, ']') : several ? NULL : text + colon;
    size_t len = end ? (size_t)(end - text) - bracket : strlen(text);
    const char *behind = end ? end + bracket : "";
    if (len >= sizeof ip || (bracket && !end) || (*behind && *behind != ':'))
        return tornado__fail(TORNADO_ERR_INVALID, 0, "not a name server: \"%.60s\"", text);
    memcpy(ip, text + bracket, len);
    ip[len] = '\0';
    if (*behind) {
        port = 0;
        for (behind++; *behind >= '0' && *behind <= '9' && port <= 65535; behind++)
            port = port * 10 + (*behind - '0');
        if (*behind || port == 0)
            return tornado__fail(TORNADO_ERR_INVALID, 0, "not a name server: \"%.60s\"", text);
    }
    return tornado_address_ip(address, ip, port);
}

static bool tornado__dns_options(tornado__dns *dns, const tornado_resolver_options *options)
{
    tornado__dns_config *given = &dns->given;
    const char *const *servers = options->nameservers;
    int64_t timeout;
    dns->port = options->nameserver_port ? options->nameserver_port : 53;
    dns->cache_size = options->cache_size > 0 ? options->cache_size : options->cache_size < 0 ? 0 : 1000;
    given->attempts = options->attempts;
    if (!tornado__seconds_to_ns(options->timeout, &timeout) || timeout < 0 || options->attempts < 0 ||
        dns->port < 0 || dns->port > 65535)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_dns_resolver: timeout, attempts or port is not valid");
    given->timeout = timeout;
    for (; servers && *servers; servers++) {
        if (given->servers_count == TORNADO__DNS_SERVERS)
            return tornado__fail(TORNADO_ERR_LIMIT, 0, "more than %d name servers", TORNADO__DNS_SERVERS);
        if (!tornado__dns_server_read(&given->servers[given->servers_count++], *servers, dns->port))
            return false;
    }
    if (!given->servers_count) /* resolv.conf(5): where none is named */
        tornado_address_ip(&given->servers[0], "127.0.0.1", dns->port);
    return tornado_random_bytes(&dns->secret, sizeof dns->secret);
}

static void *tornado__dns_resolver_open(const tornado_resolver_options *options)
{
    const char *conf = options->resolv_conf ? options->resolv_conf : "/etc/resolv.conf";
    const char *hosts = options->hosts ? options->hosts : "/etc/hosts";
    tornado_ioloop *loop = tornado_ioloop_current();
    size_t conf_size = strlen(conf) + 1, hosts_size = strlen(hosts) + 1;
    tornado__dns *dns = loop ? TORNADO_MALLOC(sizeof *dns + conf_size + hosts_size) : NULL;
    if (!dns) {
        tornado__nomem();
        return NULL;
    }
    memset(dns, 0, sizeof *dns);
    dns->resolv_conf.path = memcpy(dns + 1, conf, conf_size);
    dns->hosts.path = memcpy((char *)(dns + 1) + conf_size, hosts, hosts_size);
    if (!tornado__dns_options(dns, options)) {
        TORNADO_FREE(dns);
        return NULL;
    }
    dns->loop = loop;
    tornado__ioloop_hold(loop);
    tornado__link_init(&dns->lookups);
    tornado__link_init(&dns->cached);
    tornado__link_init(&dns->waiting);
    return dns;
}

static void tornado__dns_resolver_close(void *state)
{
    static const tornado_error closed = {TORNADO_ERR_CLOSED, 0, 0, "the resolver was freed"};
    tornado__dns *dns = state;
    while (!tornado__link_empty(&dns->lookups)) {
        tornado__dns_lookup *lookup = TORNADO__CONTAINER(dns->lookups.next, tornado__dns_lookup, link);
        tornado_future_set_error(lookup->future, &closed);
        tornado__dns_lookup_free(lookup);
    }
    for (size_t i = 0; i < TORNADO__DNS_BUCKETS; i++)
        while (dns->buckets[i])
            tornado__dns_forget(dns->buckets[i]);
    TORNADO_FREE(dns->host_list);
    TORNADO_FREE(dns->hosts.text);
    TORNADO_FREE(dns->resolv_conf.text);
    tornado__ioloop_let_go(dns->loop);
    TORNADO_FREE(dns);
}

static bool tornado__dns_ends_in(const char *name, const char *domain)
{
    size_t len = strlen(name), tail = strlen(domain);
    return len >= tail && strcmp(name + len - tail, domain) == 0 && (len == tail || name[len - tail - 1] == '.');
}

/* What is told without asking: the hosts file, and names that RFC 6761 has reserved. NULL: a question for DNS. */
static tornado_future *tornado__dns_resolve_locally(const tornado__dns *dns, const char *name, int port, int family)
{
    static const unsigned char six[16] = {[15] = 1}, four[16] = {127, 0, 0, 1};
    tornado_addresses *addresses = NULL;
    if (tornado__dns_ends_in(name, "localhost")) { /* section 6.3: always, and nobody is asked */
        if ((addresses = tornado__addresses_new(2)) != NULL)
            for (int i = 0; i < 2; i++) {
                tornado_address address = tornado__dns_address(i == TORNADO__DNS_SIX ? six : four, i, port);
                if (tornado__family_fits(&address, family))
                    tornado__addresses_add(addresses, &address);
            }
    } else if (tornado__dns_ends_in(name, "invalid")) { /* section 6.4 */
        tornado__unresolved(ENOENT, name, "there is no such name");
    } else if (!(addresses = tornado__dns_hosts_find(dns, name, port, family))) {
        return NULL;
    }
    return tornado__addresses_future(addresses);
}

static tornado_future *tornado__dns_lookup_begin(tornado__dns *dns, const char *name, bool absolute, int port,
                                                 int family)
{
    tornado_future *future = tornado_future_new();
    tornado__dns_lookup *lookup = future->immortal ? NULL : TORNADO_MALLOC(sizeof *lookup);
    int dots = 0;
    if (!lookup) {
        tornado_future_release(future);
        return &tornado__future_nomem;
    }
    for (const char *at = name; *at; at++)
        dots += *at == '.';
    memset(lookup, 0, sizeof *lookup);
    strcpy(lookup->name, name);
    lookup->dns = dns;
    lookup->future = tornado_future_retain(future);
    lookup->patience.fire = tornado__dns_impatient;
    lookup->port = port;
    lookup->family = family;
    lookup->as_it_is_first = absolute || dots >= dns->config.ndots;
    lookup->candidates = absolute ? 1 : dns->config.domains_count + 1;
    for (int i = 0; i < 2; i++) {
        lookup->slots[i].lookup = lookup;
        tornado__link_init(&lookup->slots[i].link);
    }
    tornado__link_append(&dns->lookups, &lookup->link);
    dns->lookups_count++;
    tornado__dns_lookup_go(lookup);
    tornado__dns_pump(dns);
    return future;
}

static tornado_future *tornado__dns_resolve(void *state, const char *host, int port, int family)
{
    tornado__dns *dns = state;
    char name[254];
    tornado_future *future = tornado__resolve_literal(host, port, family);
    if (future)
        return future;
    if (!tornado__dns_copy_name(name, host)) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "not a host's name: \"%.120s\"", host);
        return tornado_future_failed(tornado_last_error());
    }
    if (dns->loop->closed) {
        tornado__fail(TORNADO_ERR_STATE, 0, "tornado_resolver_resolve: the loop is closed");
        return tornado_future_failed(tornado_last_error());
    }
    tornado__dns_refresh(dns);
    if ((future = tornado__dns_resolve_locally(dns, name, port, family)) != NULL)
        return future;
    if (dns->lookups_count >= TORNADO__DNS_LOOKUPS) {
        tornado__fail(TORNADO_ERR_LIMIT, 0, "%d names are being resolved already", dns->lookups_count);
        return tornado_future_failed(tornado_last_error());
    }
    return tornado__dns_lookup_begin(dns, name, host[strlen(host) - 1] == '.', port, family);
}

TORNADO__DATA const tornado_resolver_class tornado_dns_resolver = {
    tornado__dns_resolver_open, tornado__dns_resolve, tornado__dns_resolver_close};

/* ---- for all ---- */

TORNADO_API void tornado_resolver_configure(const tornado_resolver_options *options)
{
    static const tornado_resolver_options defaults;
    tornado__resolver_configured = options ? *options : defaults;
}

TORNADO_API tornado_resolver *tornado_resolver_new(const tornado_resolver_options *options)
{
    tornado_resolver_options o = options ? *options : tornado__resolver_configured;
    if (!o.kind)
        o.kind = tornado__resolver_configured.kind ? tornado__resolver_configured.kind : TORNADO__RESOLVER_DEFAULT;
    tornado_resolver *resolver = TORNADO_MALLOC(sizeof *resolver);
    if (!resolver) {
        tornado__nomem();
        return NULL;
    }
    resolver->kind = o.kind;
    resolver->state = o.kind->open ? o.kind->open(&o) : o.arg;
    if (o.kind->open && !resolver->state) {
        TORNADO_FREE(resolver);
        return NULL;
    }
    return resolver;
}

TORNADO_API void tornado_resolver_free(tornado_resolver *resolver)
{
    if (!resolver)
        return;
    if (resolver->kind->close)
        resolver->kind->close(resolver->state);
    TORNADO_FREE(resolver);
}

TORNADO_API tornado_future *tornado_resolver_resolve(tornado_resolver *resolver, const char *host, int port,
                                                     int family)
{
    const char *wrong = !host || !*host || strlen(host) > TORNADO__HOST_MAX ? "not a host's name"
                        : port < 0 || port > 65535                           ? "not a port"
                        : family && family != AF_INET && family != AF_INET6  ? "not a family of addresses"
                                                                             : NULL;
    if (!wrong)
        return resolver->kind->resolve(resolver->state, host, port, family);
    tornado__fail(TORNADO_ERR_INVALID, 0, "tornado_resolver_resolve: %s", wrong);
    return tornado_future_failed(tornado_last_error());
}

/*============================================================================
 * section: tcp (private)
 * A coroutine for each connection; the server outlives the last of them.
 *============================================================================*/

struct tornado_tcpserver {
    tornado_ioloop *loop;
    tornado__listener *listeners;
    tornado__service service;
    tornado_stream_handler handle_stream;
    void *arg;
    const char *name;
    tornado_iostream_options stream;
    size_t connections;
    int max_connections;
    int64_t told;
    bool freed;
};

typedef struct tornado__tcp_connection {
    tornado_tcpserver *server;
    tornado_iostream *stream;
} tornado__tcp_connection;

static void *tornado__tcp_main(void *arg)
{
    tornado__tcp_connection *connection = arg;
    connection->server->handle_stream(connection->stream, connection->server->arg);
    return NULL;
}

static void tornado__tcpserver_delete(tornado_tcpserver *server)
{
    tornado_ioloop *loop = server->loop;
    TORNADO_FREE(server);
    tornado__ioloop_let_go(loop);
}

static void tornado__tcp_done(tornado__coroutine *co)
{
    tornado__tcp_connection *connection = co->owner;
    tornado_tcpserver *server = connection->server;
    const tornado_error *error = &co->execution.raised;
    if (co->failed && error->code != TORNADO_ERR_CLOSED && error->code != TORNADO_ERR_CANCELLED)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "Error in connection callback of %s",
                           server->name);
    tornado_iostream_release(connection->stream);
    TORNADO_FREE(connection);
    server->connections--;
    if (server->freed && server->connections == 0)
        tornado__tcpserver_delete(server);
}

static void tornado__tcp_refused(tornado_tcpserver *server, const char *why)
{
    int64_t now = tornado__now_ns();
    if (!server->told || now - server->told > 1000000000)
        tornado_gen_log(TORNADO_LOG_WARNING, "%s: a connection was closed at once: %s", server->name, why);
    server->told = now;
}

static void tornado__tcp_accept(int fd, const tornado_address *address, void *arg)
{
    tornado_tcpserver *server = arg;
    (void)address;
    if (server->max_connections > 0 && server->connections >= (size_t)server->max_connections) {
        close(fd);
        tornado__tcp_refused(server, "the limit of connections is reached");
        return;
    }
    tornado_iostream *stream = tornado_iostream_new(fd, &server->stream);
    tornado__tcp_connection *connection = stream ? TORNADO_MALLOC(sizeof *connection) : NULL;
    if (stream && !connection)
        tornado__nomem();
    tornado__coroutine *co =
        connection ? tornado__coroutine_new(server->loop, tornado__tcp_main, connection, server->name) : NULL;
    if (!co) {
        tornado__tcp_refused(server, tornado_last_error()->message);
        tornado_iostream_release(stream);
        TORNADO_FREE(connection);
        return;
    }
    connection->server = server;
    connection->stream = stream;
    co->owner = connection;
    co->on_done = tornado__tcp_done;
    server->connections++;
    tornado__coroutine_continue(co);
}

static void tornado__tcp_stop_service(tornado__service *service)
{
    tornado_tcpserver_stop(TORNADO__CONTAINER(service, tornado_tcpserver, service));
}

static size_t tornado__tcp_busy(const tornado__service *service)
{
    return TORNADO__CONTAINER(service, tornado_tcpserver, service)->connections;
}

TORNADO_API tornado_tcpserver *tornado_tcpserver_new(tornado_stream_handler handle_stream, void *arg,
                                                     const tornado_tcpserver_options *options)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_tcpserver *server = loop ? TORNADO_MALLOC(sizeof *server) : NULL;
    if (!server) {
        tornado__nomem();
        return NULL;
    }
    memset(server, 0, sizeof *server);
    server->loop = loop;
    tornado__ioloop_hold(loop);
    server->handle_stream = handle_stream;
    server->arg = arg;
    server->name = options && options->name ? options->name : "tcpserver";
    if (options) {
        server->stream = options->stream;
        server->max_connections = options->max_connections;
    }
    server->service.stop = tornado__tcp_stop_service;
    server->service.busy = tornado__tcp_busy;
    tornado__link_append(&loop->services, &server->service.link);
    return server;
}

TORNADO_API bool tornado_tcpserver_listen(tornado_tcpserver *server, int port, const tornado_bind_options *options)
{
    return tornado__listen(&server->listeners, port, options, tornado__tcp_accept, server);
}

TORNADO_API bool tornado_tcpserver_add_socket(tornado_tcpserver *server, int fd)
{
    return tornado__listeners_add(&server->listeners, &fd, 1, tornado__tcp_accept, server);
}

TORNADO_API bool tornado_tcpserver_add_sockets(tornado_tcpserver *server, const tornado_sockets *sockets)
{
    return tornado__listeners_add(&server->listeners, sockets->fds, sockets->count, tornado__tcp_accept, server);
}

TORNADO_API int tornado_tcpserver_port(const tornado_tcpserver *server)
{
    return tornado__listeners_port(server->listeners);
}

TORNADO_API void tornado_tcpserver_stop(tornado_tcpserver *server)
{
    tornado__listeners_close(&server->listeners);
}

TORNADO_API void tornado_tcpserver_free(tornado_tcpserver *server)
{
    if (!server || server->freed)
        return;
    tornado_tcpserver_stop(server);
    tornado__link_remove(&server->service.link);
    server->freed = true;
    if (server->connections == 0)
        tornado__tcpserver_delete(server);
}

/*============================================================================
 * section: httputil (private)
 * Tables of characters and reasons, headers as arrays.
 *============================================================================*/

/* Statuses and their reasons, one after the other: a table of pointers would take twice the room. */
static const char tornado__reasons[] =
    "100 Continue\0" "101 Switching Protocols\0" "102 Processing\0" "103 Early Hints\0" "200 OK\0" "201 Created\0"
    "202 Accepted\0" "203 Non-Authoritative Information\0" "204 No Content\0" "205 Reset Content\0"
    "206 Partial Content\0" "207 Multi-Status\0" "208 Already Reported\0" "226 IM Used\0" "300 Multiple Choices\0"
    "301 Moved Permanently\0" "302 Found\0" "303 See Other\0" "304 Not Modified\0" "305 Use Proxy\0"
    "307 Temporary Redirect\0" "308 Permanent Redirect\0" "400 Bad Request\0" "401 Unauthorized\0"
    "402 Payment Required\0" "403 Forbidden\0" "404 Not Found\0" "405 Method Not Allowed\0" "406 Not Acceptable\0"
    "407 Proxy Authentication Required\0" "408 Request Timeout\0" "409 Conflict\0" "410 Gone\0"
    "411 Length Required\0" "412 Precondition Failed\0" "413 Content Too Large\0" "414 URI Too Long\0"
    "415 Unsupported Media Type\0" "416 Range Not Satisfiable\0" "417 Expectation Failed\0"
    "421 Misdirected Request\0" "422 Unprocessable Content\0" "423 Locked\0" "424 Failed Dependency\0"
    "425 Too Early\0" "426 Upgrade Required\0" "428 Precondition Required\0" "429 Too Many Requests\0"
    "431 Request Header Fields Too Large\0" "451 Unavailable For Legal Reasons\0" "500 Internal Server Error\0"
    "501 Not Implemented\0" "502 Bad Gateway\0" "503 Service Unavailable\0" "504 Gateway Timeout\0"
    "505 HTTP Version Not Supported\0" "506 Variant Also Negotiates\0" "507 Insufficient Storage\0"
    "508 Loop Detected\0" "510 Not Extended\0" "511 Network Authentication Required\0";

/* Whether an answer of this status never has a body: RFC 9110 section 6.4.1. */
static TORNADO__INLINE bool tornado__status_bodiless(int status)
{
    return status != 200 && (status < 200 || status == 204 || status == 304);
}

TORNADO_API const char *tornado_http_reason(int status)
{
    for (const char *at = tornado__reasons; *at; at += strlen(at) + 1)
        if ((at[0] - '0') * 100 + (at[1] - '0') * 10 + at[2] - '0' == status)
            return at + 4;
    return NULL;
}

/* What each byte may be part of: a token (RFC 9110 section 5.6.2), a host (RFC 3986 section 3.2.2), a request's
   target, which is a path up to a "?"; and what no value may have in it: a control other than a tab, or DEL (RFC
   9110 section 5.5). */
enum { TORNADO__TOKEN = 1, TORNADO__HOST = 2, TORNADO__TARGET = 4, TORNADO__CONTROL = 8, TORNADO__PATH = 16 };
static const unsigned char tornado__bytes[256] = {
     8,  8,  8,  8,  8,  8,  8,  8,  8,  0,  8,  8,  8,  8,  8,  8,
     8,  8,  8,  8,  8,  8,  8,  8,  8,  8,  8,  8,  8,  8,  8,  8,
     0, 23, 20,  1, 23, 23, 23, 23, 22, 22, 23, 23, 22, 23, 23, 20,
    23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 20, 22, 20, 22, 20,  4,
    20, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23,
    23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 20, 20, 20, 21, 23,
    21, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23,
    23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 20, 21, 20, 23,  8,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20,
};

static TORNADO__INLINE bool tornado__is(char c, int kind)
{
    return tornado__bytes[(unsigned char)c] & kind;
}

static bool tornado__is_token(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!tornado__is(text[i], TORNADO__TOKEN))
            return false;
    return len > 0;
}

/* The first control byte. There must be one, and 16 readable bytes behind it. */
static TORNADO__INLINE char *tornado__find_control(char *at)
{
#ifdef __SSE2__
    const __m128i space = _mm_set1_epi8(0x1f), tab = _mm_set1_epi8('\t'), del = _mm_set1_epi8(0x7f);
    for (;; at += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
        __m128i low = _mm_cmpeq_epi8(_mm_max_epu8(bytes, space), space);
        __m128i found = _mm_or_si128(_mm_andnot_si128(_mm_cmpeq_epi8(bytes, tab), low), _mm_cmpeq_epi8(bytes, del));
        unsigned mask = (unsigned)_mm_movemask_epi8(found);
        if (mask)
            return at + __builtin_ctz(mask);
    }
#else
    while (!tornado__is(*at, TORNADO__CONTROL))
        at++;
    return at;
#endif
}

static TORNADO__INLINE char tornado__lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

/* Whether `len` bytes are a word that is written in lower case here, in any case. The bytes hold no controls, or
   these could pass for others. */
static TORNADO__INLINE bool tornado__is_word(const char *text, size_t len, const char *word, size_t word_len)
{
    uint64_t a = 0, b = 0, lower = 0;
    size_t at = 0, step = word_len >= 8 ? 8 : word_len >= 4 ? 4 : 1;
    if (len != word_len)
        return false;
    memcpy(&lower, "        ", step); /* the bit by which lower case differs, which is a space, in each byte */
    do { /* word_len is a constant: this becomes a few loads, of which the last may overlap the one before */
        memcpy(&a, text + at, step);
        memcpy(&b, word + at, step);
        if ((a | lower) != b)
            return false;
        at = at + step <= len - step || at + step == len ? at + step : len - step;
    } while (at < len);
    return true;
}
#define TORNADO__IS_WORD(text, len, word) tornado__is_word(text, len, word, sizeof(word) - 1)

static bool tornado__same_name(const char *a, size_t a_len, const char *b, size_t b_len)
{
    if (a_len != b_len)
        return false;
    for (size_t i = 0; i < a_len; i++)
        if (tornado__lower(a[i]) != tornado__lower(b[i]))
            return false;
    return true;
}

TORNADO_API const tornado_http_header *tornado_http_headers_find(const tornado_http_headers *headers,
                                                                 const char *name, const tornado_http_header *after)
{
    size_t len = strlen(name);
    for (const tornado_http_header *at = after ? after + 1 : headers->items; at < headers->items + headers->count;
         at++)
        if (tornado__same_name(at->name, at->name_len, name, len))
            return at;
    return NULL;
}

/* The next element of a comma-separated list, without white space and not empty; false at its end. */
static bool tornado__next_element(const char **list, const char **element, size_t *len)
{
    const char *at = *list;
    while (*at == ',' || *at == ' ' || *at == '\t')
        at++;
    const char *end = at;
    while (*end && *end != ',')
        end++;
    *list = end;
    *element = at;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *len = (size_t)(end - at);
    return *len > 0;
}

/* Writes a number in decimal and returns what follows it. */
static TORNADO__INLINE char *tornado__put_decimal(char *out, uint64_t number)
{
    char digits[20];
    int count = 0;
    if (number < 10) {
        *out = (char)('0' + number);
        return out + 1;
    }
    if (number < 100) {
        out[0] = (char)('0' + number / 10);
        out[1] = (char)('0' + number % 10);
        return out + 2;
    }
    do
        digits[count++] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    while (count > 0)
        *out++ = digits[--count];
    return out;
}

static TORNADO__INLINE char *tornado__put(char *out, const void *data, size_t len)
{
    memcpy(out, data, len);
    return out + len;
}
#define TORNADO__PUT(out, literal) tornado__put(out, literal, sizeof(literal) - 1)

/* Whether an authority is a host with an optional port: a registered name, or an IPv6 literal in brackets. RFC 3986
   section 3.2.2. */
static bool tornado__is_authority(const char *text, size_t len)
{
    size_t at = 0;
    if (len && text[0] == '[') {
        for (at = 1; at < len && text[at] != ']'; at++)
            if (!tornado__is(text[at], TORNADO__HOST) && text[at] != ':')
                return false;
        if (at == len || at == 1)
            return false;
        at++;
    } else {
        while (at < len && tornado__is(text[at], TORNADO__HOST))
            at++;
    }
    if (at < len && text[at] != ':')
        return false;
    for (at++; at < len; at++)
        if (text[at] < '0' || text[at] > '9')
            return false;
    return true;
}

/* ---- arguments ----

   A list that grows is copied to a new array in the arena. From so many pairs on it has an index: their numbers,
   sorted by name and among those of one name by number. Names are ordered by length first, so that a step of the
   sort costs no more than the bytes it moves names past each other: sorting takes time in proportion to all names
   together and to the logarithm of their number, whatever the names are. No hash is there to be attacked. */
enum { TORNADO__MAX_FIELDS = 10000, TORNADO__MAX_PARAMETERS = 1000, TORNADO__INDEX_FROM = 16 };

/* Where a pair stands in the order of the index: before, at or behind a name and number. */
static int tornado__argument_compare(const tornado_arguments *arguments, size_t number, tornado_bytes name,
                                     size_t other)
{
    tornado_bytes own = arguments->items[number].name;
    if (own.len != name.len)
        return own.len < name.len ? -1 : 1;
    int result = own.len ? memcmp(own.data, name.data, own.len) : 0;
    return result ? result : number < other ? -1 : number > other;
}

/* Merges two sorted runs of pairs' numbers, from `start` to `middle` and on to `end`. */
static void tornado__arguments_merge(const tornado_arguments *arguments, const uint32_t *from, uint32_t *to,
                                     size_t start, size_t middle, size_t end)
{
    size_t a = start, b = middle;
    for (size_t at = start; at < end; at++) {
        bool second = a == middle;
        if (!second && b < end)
            second = tornado__argument_compare(arguments, from[a], arguments->items[from[b]].name, from[b]) > 0;
        to[at] = second ? from[b++] : from[a++];
    }
}

/* Makes the index by merging runs of 1, 2, 4... from one array into another and back. */
static bool tornado__arguments_sort(tornado_arena *arena, tornado_arguments *arguments)
{
    size_t count = arguments->count;
    uint32_t *from = tornado_arena_calloc(arena, 2 * count, sizeof *from);
    if (!from)
        return false;
    uint32_t *to = from + count;
    for (size_t i = 0; i < count; i++)
        from[i] = (uint32_t)i;
    for (size_t run = 1; run < count; run *= 2) {
        for (size_t start = 0; start < count;) {
            size_t middle = run < count - start ? start + run : count;
            size_t end = run < count - middle ? middle + run : count;
            tornado__arguments_merge(arguments, from, to, start, middle, end);
            start = end;
        }
        uint32_t *sorted = to;
        to = from;
        from = sorted;
    }
    arguments->order = from;
    arguments->ordered = count;
    return true;
}

/* Sees to an index when there are many pairs, and `least` times as many as it has. Lookups go through the rest. */
static bool tornado__arguments_index(tornado_arena *arena, tornado_arguments *arguments, size_t least)
{
    return arguments->count < TORNADO__INDEX_FROM || arguments->count <= arguments->ordered * least ||
           tornado__arguments_sort(arena, arguments);
}

/* The first place in the index that is not before a name and number. */
static size_t tornado__arguments_place(const tornado_arguments *arguments, tornado_bytes name, size_t number)
{
    size_t low = 0, high = arguments->ordered;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (tornado__argument_compare(arguments, arguments->order[middle], name, number) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

TORNADO_API const tornado_argument *tornado_arguments_get(const tornado_arguments *arguments, const char *name)
{
    tornado_bytes wanted = tornado_bytes_of(name);
    for (size_t at = arguments->count; at > arguments->ordered; at--) /* what the index has not */
        if (tornado_bytes_equal(arguments->items[at - 1].name, wanted))
            return &arguments->items[at - 1];
    size_t place = tornado__arguments_place(arguments, wanted, arguments->ordered);
    if (place == 0)
        return NULL;
    const tornado_argument *last = &arguments->items[arguments->order[place - 1]];
    return tornado_bytes_equal(last->name, wanted) ? last : NULL;
}

TORNADO_API const tornado_argument *tornado_arguments_find(const tornado_arguments *arguments, const char *name,
                                                           const tornado_argument *after)
{
    tornado_bytes wanted = tornado_bytes_of(name);
    size_t at = after ? (size_t)(after - arguments->items) + 1 : 0;
    if (at < arguments->ordered) {
        size_t place = tornado__arguments_place(arguments, wanted, at);
        const tornado_argument *next =
            place < arguments->ordered ? &arguments->items[arguments->order[place]] : NULL;
        if (next && tornado_bytes_equal(next->name, wanted))
            return next;
        at = arguments->ordered;
    }
    for (; at < arguments->count; at++)
        if (tornado_bytes_equal(arguments->items[at].name, wanted))
            return &arguments->items[at];
    return NULL;
}

/* Makes room for so many more pairs, if no more than `limit` are there then. */
static bool tornado__arguments_reserve(tornado_arena *arena, tornado_arguments *arguments, size_t more, int limit,
                                       const char *what)
{
    size_t count = arguments->count, most = limit < 0 ? INT32_MAX : (size_t)limit;
    if (count > most || more > most - count)
        return tornado__fail(TORNADO_ERR_LIMIT, 0, "more than %zu %s", most, what);
    if (more <= arguments->capacity - count)
        return true;
    size_t capacity = count + (more > count ? more : count);
    tornado_argument *items = tornado_arena_calloc(arena, capacity, sizeof *items);
    if (!items)
        return false;
    if (count)
        memcpy(items, arguments->items, count * sizeof *items);
    arguments->items = items;
    arguments->capacity = capacity;
    return true;
}

static void tornado__arguments_push(tornado_arguments *arguments, tornado_bytes name, tornado_bytes value)
{
    tornado_argument *item = &arguments->items[arguments->count++];
    item->name = name;
    item->value = value;
}

TORNADO_API bool tornado_arguments_add(tornado_arena *arena, tornado_arguments *arguments, const char *name,
                                       const char *value)
{
    tornado_arguments longer = *arguments;
    tornado_bytes copied_name = {tornado_arena_strdup(arena, name), strlen(name)};
    tornado_bytes copied_value = {tornado_arena_strdup(arena, value), strlen(value)};
    if (!copied_name.data || !copied_value.data ||
        !tornado__arguments_reserve(arena, &longer, 1, TORNADO_NONE, "arguments"))
        return false;
    tornado__arguments_push(&longer, copied_name, copied_value);
    if (!tornado__arguments_index(arena, &longer, 2))
        return false;
    *arguments = longer;
    return true;
}

/* What stands before the first separator; *rest is then what is behind it, its data NULL when there was none. */
static tornado_bytes tornado__cut(tornado_bytes *rest, char separator)
{
    const char *found = rest->len ? memchr(rest->data, separator, rest->len) : NULL;
    tornado_bytes part = {rest->data, found ? (size_t)(found - rest->data) : rest->len};
    rest->data = found ? found + 1 : NULL;
    rest->len = found ? rest->len - part.len - 1 : 0;
    return part;
}

/* How many pairs a text may have at most: fields that are not empty. */
static size_t tornado__count_fields(tornado_bytes text, char separator)
{
    size_t count = 0;
    while (text.data)
        count += tornado__cut(&text, separator).len > 0;
    return count;
}

/* Puts bytes with a NUL behind them at *out, and moves that on. */
static tornado_bytes tornado__put_bytes(char **out, tornado_bytes bytes)
{
    tornado_bytes copy = {*out, bytes.len};
    if (bytes.len)
        memcpy(*out, bytes.data, bytes.len);
    (*out)[bytes.len] = '\0';
    *out += bytes.len + 1;
    return copy;
}

static bool tornado__qs_strict(tornado_bytes query)
{
    while (query.data) {
        tornado_bytes field = tornado__cut(&query, '&');
        if (field.len == 0 || !memchr(field.data, '=', field.len))
            return tornado__fail(TORNADO_ERR_PARSE, 0, "a field without \"=\": \"%.*s\"",
                                 (int)(field.len < 60 ? field.len : 60), field.len ? field.data : "");
    }
    return true;
}

TORNADO_API bool tornado_parse_qs(tornado_arena *arena, tornado_arguments *arguments, tornado_bytes query,
                                  const tornado_arguments_options *options)
{
    static const tornado_arguments_options defaults = {0};
    tornado_arguments longer = *arguments;
    options = options ? options : &defaults;
    if (query.len == 0)
        return true;
    if (options->strict && !tornado__qs_strict(query))
        return false;
    int limit = options->max_fields ? options->max_fields : TORNADO__MAX_FIELDS;
    if (!tornado__arguments_reserve(arena, &longer, tornado__count_fields(query, '&'), limit, "arguments"))
        return false;
    char *out = tornado__escape_alloc(arena, query.len); /* a NUL for each "=" and "&", and one for the end */
    while (out && query.data) {
        tornado_bytes value = tornado__cut(&query, '&'), field = value, name = tornado__cut(&value, '=');
        if (field.len == 0 || (options->drop_blank && value.len == 0))
            continue;
        name = tornado__put_unescaped(&out, name, true);
        if (value.data)
            value = tornado__put_unescaped(&out, value, true);
        else
            value = (tornado_bytes){name.data + name.len, 0};
        tornado__arguments_push(&longer, name, value);
    }
    if (!out || !tornado__arguments_index(arena, &longer, 2))
        return false;
    *arguments = longer;
    return true;
}

/* Whether a Content-Type is of a type, given in lower case. */
static bool tornado__is_media_type(const char *content_type, const char *type, size_t len)
{
    const char *at = content_type + strspn(content_type, " \t");
    size_t own = strcspn(at, "; \t");
    return tornado__same_name(at, own, type, len);
}
#define TORNADO__IS_MEDIA_TYPE(content_type, type) tornado__is_media_type(content_type, type, sizeof(type) - 1)

TORNADO_API bool tornado_parse_body_arguments(tornado_arena *arena, tornado_arguments *arguments,
                                              const char *content_type, tornado_bytes body,
                                              const tornado_arguments_options *options)
{
    if (content_type && TORNADO__IS_MEDIA_TYPE(content_type, "application/x-www-form-urlencoded"))
        return tornado_parse_qs(arena, arguments, body, options);
    return true;
}

/* White space as str.isspace of Python has it: that of ASCII, and all. */
static bool tornado__is_ascii_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20);
}

static bool tornado__is_unicode_space(uint32_t c)
{
    return tornado__is_ascii_space(c) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* How many bytes of white space a text begins with; and how long it is without what it ends with. */
static size_t tornado__leading_space(const char *text, size_t len)
{
    uint32_t c = 0;
    size_t at = 0, size;
    while ((size = tornado_utf8_decode(text + at, len - at, &c)) > 0 && tornado__is_unicode_space(c))
        at += size;
    return at;
}

static size_t tornado__without_trailing_space(const char *text, size_t len)
{
    while (len > 0) {
        uint32_t c = 0;
        size_t at = len - 1;
        while (at > 0 && len - at < 4 && ((unsigned char)text[at] & 0xc0) == 0x80)
            at--;
        if (tornado_utf8_decode(text + at, len - at, &c) != len - at || !tornado__is_unicode_space(c))
            break;
        len = at;
    }
    return len;
}

TORNADO_API char *tornado_argument_text(tornado_arena *arena, tornado_bytes value, bool strip)
{
    size_t len = value.len;
    char *text = tornado_arena_memdup(arena, value.data, len);
    if (!text)
        return NULL;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c <= 0x08 || (c >= 0x0e && c <= 0x1f))
            text[i] = ' ';
    }
    if (!strip)
        return text;
    size_t start = tornado__leading_space(text, len); /* controls are white space by now */
    text += start;
    text[tornado__without_trailing_space(text, len - start)] = '\0';
    return text;
}

/* ---- cookies ---- */

/* Bytes without the white space of ASCII around them. No more, as str.strip would: in UTF-8 0x85 and 0xa0 are parts
   of characters. */
static tornado_bytes tornado__strip_ascii(tornado_bytes text)
{
    while (text.len > 0 && tornado__is_ascii_space((unsigned char)text.data[0])) {
        text.data++;
        text.len--;
    }
    while (text.len > 0 && tornado__is_ascii_space((unsigned char)text.data[text.len - 1]))
        text.len--;
    return text;
}

/* What \ooo at the start of a text stands for, or -1. */
static int tornado__octal(const char *text, size_t len)
{
    int value = 0;
    if (len < 4 || text[1] > '3')
        return -1;
    for (int i = 1; i < 4; i++) {
        if (text[i] < '0' || text[i] > '7')
            return -1;
        value = value * 8 + (text[i] - '0');
    }
    return value;
}

/* Puts the value of a cookie, without the quotes that it may be in. */
static tornado_bytes tornado__put_cookie(char **out, tornado_bytes value)
{
    if (value.len < 2 || value.data[0] != '"' || value.data[value.len - 1] != '"')
        return tornado__put_bytes(out, value);
    char *at = *out;
    size_t end = value.len - 1;
    for (size_t i = 1; i < end; i++) {
        int octal = value.data[i] == '\\' ? tornado__octal(value.data + i, end - i) : -1;
        if (octal >= 0)
            i += 3;
        else if (value.data[i] == '\\' && i + 1 < end)
            i++;
        *at++ = octal >= 0 ? (char)octal : value.data[i];
    }
    *at = '\0';
    tornado_bytes decoded = {*out, (size_t)(at - *out)};
    *out = at + 1;
    return decoded;
}

TORNADO_API bool tornado_parse_cookie(tornado_arena *arena, tornado_arguments *cookies, tornado_bytes header,
                                      const tornado_arguments_options *options)
{
    tornado_arguments longer = *cookies;
    int limit = options && options->max_fields ? options->max_fields : TORNADO__MAX_FIELDS;
    if (header.len == 0)
        return true;
    if (!tornado__arguments_reserve(arena, &longer, tornado__count_fields(header, ';'), limit, "cookies"))
        return false;
    char *out = tornado__escape_alloc(arena, header.len); /* a NUL for each "=" and ";", and one for the end */
    while (out && header.data) {
        tornado_bytes value = tornado__cut(&header, ';'), whole = value, name = tornado__cut(&value, '=');
        bool named = value.data != NULL;
        name = named ? tornado__strip_ascii(name) : (tornado_bytes){"", 0};
        value = tornado__strip_ascii(named ? value : whole);
        if (name.len == 0 && value.len == 0)
            continue;
        if (named)
            name = tornado__put_bytes(&out, name);
        tornado__arguments_push(&longer, name, tornado__put_cookie(&out, value));
    }
    if (!out || !tornado__arguments_index(arena, &longer, 2))
        return false;
    *cookies = longer;
    return true;
}

/* Whether a byte of a cookie's value or name needs no quotes; whether it stands for itself inside of them. */
static bool tornado__cookie_plain(char c)
{
    return tornado__is(c, TORNADO__TOKEN) || c == ':';
}

static bool tornado__cookie_quoted(char c)
{
    return tornado__cookie_plain(c) || (c && strchr(" ()/<=>?@[]{}", c));
}

static bool tornado__cookie_all_plain(const char *text)
{
    while (tornado__cookie_plain(*text))
        text++;
    return *text == '\0';
}

static bool tornado__cookie_name(const char *name)
{
    static const char attributes[][12] = {"comment",     "domain", "expires",  "httponly", "max-age",
                                          "partitioned", "path",   "samesite", "secure",   "version"};
    if (!*name || !tornado__cookie_all_plain(name))
        return tornado__fail(TORNADO_ERR_INVALID, 0, "a cookie cannot be named \"%.60s\"", name);
    for (size_t i = 0; i < TORNADO__COUNT(attributes); i++)
        if (tornado__same_name(name, strlen(name), attributes[i], strlen(attributes[i])))
            return tornado__fail(TORNADO_ERR_INVALID, 0, "a cookie cannot have the name of an attribute, %s", name);
    return true;
}

static void tornado__cookie_value(tornado_buffer *out, const char *value)
{
    if (*value && tornado__cookie_all_plain(value)) {
        tornado_buffer_puts(out, value);
        return;
    }
    tornado_buffer_append(out, "\"", 1);
    for (; *value; value++) {
        char escaped[4] = {'\\', *value};
        unsigned char c = (unsigned char)*value;
        if (tornado__cookie_quoted(*value)) {
            tornado_buffer_append(out, value, 1);
        } else if (c == '"' || c == '\\') {
            tornado_buffer_append(out, escaped, 2);
        } else {
            escaped[1] = (char)('0' + (c >> 6));
            escaped[2] = (char)('0' + (c >> 3 & 7));
            escaped[3] = (char)('0' + (c & 7));
            tornado_buffer_append(out, escaped, 4);
        }
    }
    tornado_buffer_append(out, "\"", 1);
}

/* Adds "; Name=value" unless the value is NULL or "". */
static bool tornado__cookie_attribute(tornado_buffer *out, const char *name, const char *value)
{
    for (const char *at = value; at && *at; at++)
        if ((unsigned char)*at <= ' ' || *at == ';' || *at == 0x7f)
            return tornado__fail(TORNADO_ERR_INVALID, 0, "a cookie's %s cannot be \"%.60s\"", name, value);
    if (value && *value)
        tornado_buffer_printf(out, "; %s=%s", name, value);
    return true;
}

/* When a cookie ends; 0: with the browser. */
static int64_t tornado__cookie_expires(const tornado_cookie *options)
{
    if (options->expires || !(options->expires_days < 0 || options->expires_days > 0))
        return options->expires;
    double when = tornado_time() + options->expires_days * 86400;
    if (when > 253402300799.0) /* the year 9999 */
        return INT64_C(253402300799);
    return when > 1 ? (int64_t)when : 1;
}

static bool tornado__cookie_print(tornado_buffer *out, const char *name, const char *value,
                                  const tornado_cookie *options)
{
    char date[30], seconds[24];
    int64_t expires = tornado__cookie_expires(options);
    snprintf(seconds, sizeof seconds, "%lld", (long long)(options->max_age > 0 ? options->max_age : 0));
    tornado_buffer_puts(out, name);
    tornado_buffer_append(out, "=", 1);
    tornado__cookie_value(out, value);
    if (!tornado__cookie_attribute(out, "Domain", options->domain))
        return false;
    if (expires)
        tornado_buffer_printf(out, "; expires=%s", tornado_format_timestamp(expires, date));
    if (options->httponly)
        tornado_buffer_puts(out, "; HttpOnly");
    if (!tornado__cookie_attribute(out, "Max-Age", options->max_age ? seconds : NULL) ||
        !tornado__cookie_attribute(out, "Path", options->path ? options->path : "/"))
        return false;
    if (options->secure)
        tornado_buffer_puts(out, "; Secure");
    if (!tornado__cookie_attribute(out, "SameSite", options->samesite))
        return false;
    if (options->partitioned)
        tornado_buffer_puts(out, "; Partitioned");
    return !out->failed;
}

/* What a buffer holds, in the arena; the buffer is freed. NULL when `ok` is false. */
static char *tornado__buffer_finish(tornado_arena *arena, tornado_buffer *buffer, bool ok)
{
    char *text = ok ? tornado_arena_memdup(arena, buffer->data, buffer->len) : NULL;
    tornado_buffer_free(buffer);
    return text;
}

TORNADO_API char *tornado_format_cookie(tornado_arena *arena, const char *name, const char *value,
                                        const tornado_cookie *options)
{
    static const tornado_cookie defaults = {0};
    tornado_buffer out = {0};
    bool ok = tornado__cookie_name(name) && tornado__cookie_print(&out, name, value, options ? options : &defaults);
    return tornado__buffer_finish(arena, &out, ok);
}

/* ---- parameters of a header ---- */

/* What stands before the first ";" that is not in quotes; *rest as after tornado__cut. */
static tornado_bytes tornado__cut_parameter(tornado_bytes *rest)
{
    bool quoted = false;
    size_t at = 0;
    for (; at < rest->len && (quoted || rest->data[at] != ';'); at++) {
        if (rest->data[at] == '"')
            quoted = !quoted;
        else if (quoted && rest->data[at] == '\\' && at + 1 < rest->len &&
                 (rest->data[at + 1] == '"' || rest->data[at + 1] == '\\'))
            at++;
    }
    tornado_bytes part = {rest->data, at};
    bool more = at < rest->len;
    rest->data = more ? rest->data + at + 1 : NULL;
    rest->len = more ? rest->len - at - 1 : 0;
    return part;
}

/* Puts a value without its quotes. */
static tornado_bytes tornado__put_unquoted(char **out, tornado_bytes value)
{
    if (value.len < 2 || value.data[0] != '"' || value.data[value.len - 1] != '"')
        return tornado__put_bytes(out, value);
    char *at = *out;
    for (size_t i = 1; i + 1 < value.len; i++) {
        if (value.data[i] == '\\' && i + 2 < value.len && (value.data[i + 1] == '"' || value.data[i + 1] == '\\'))
            i++;
        *at++ = value.data[i];
    }
    *at = '\0';
    tornado_bytes unquoted = {*out, (size_t)(at - *out)};
    *out = at + 1;
    return unquoted;
}

/* Turns ISO-8859-1 at the start of a buffer into UTF-8, from behind. There is room for twice as much. */
static size_t tornado__latin1_expand(char *text, size_t len)
{
    size_t size = len;
    for (size_t i = 0; i < len; i++)
        size += (unsigned char)text[i] >= 0x80;
    for (size_t from = len, to = size; from < to; from--) {
        unsigned char c = (unsigned char)text[from - 1];
        if (c >= 0x80)
            text[--to] = (char)(0x80 | (c & 0x3f));
        text[--to] = (char)(c >= 0x80 ? 0xc0 | c >> 6 : c);
    }
    text[size] = '\0';
    return size;
}

/* Puts the value of a "name*", RFC 8187 section 3.2: charset'language'value. NULL data, with nothing put, when it
   is none that can be decoded. */
static tornado_bytes tornado__put_extended(char **out, tornado_bytes value)
{
    static const tornado_bytes none = {NULL, 0};
    tornado_bytes text = value, charset = tornado__cut(&text, '\'');
    char *start = *out;
    bool utf8 = tornado__same_name(charset.data, charset.len, "utf-8", 5);
    if (!utf8 && !tornado__same_name(charset.data, charset.len, "iso-8859-1", 10))
        return none;
    tornado__cut(&text, '\'');
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] != '%' ? (unsigned char)text.data[i] >= 0x80
                                : text.len - i < 3 || tornado__hex_byte(text.data + i + 1) < 0)
            return none;
    }
    if (!text.data)
        return none;
    tornado_bytes decoded = tornado__put_unescaped(out, text, false);
    if (!utf8)
        decoded.len = tornado__latin1_expand(start, decoded.len);
    *out = start + decoded.len + 1;
    if (memchr(start, '\0', decoded.len) || !tornado_utf8_valid(start, decoded.len)) {
        *out = start;
        return none;
    }
    return decoded;
}

/* Adds one parameter, at *out. */
static void tornado__put_parameter(tornado_arguments *parameters, char **out, tornado_bytes name,
                                   tornado_bytes value, bool extended)
{
    char *copy = *out;
    name = tornado__put_bytes(out, name);
    for (size_t i = 0; i < name.len; i++)
        copy[i] = tornado__lower(copy[i]);
    tornado_bytes decoded = {NULL, 0};
    if (extended)
        decoded = tornado__put_extended(out, value);
    if (decoded.data)
        copy[--name.len] = '\0';
    else if (value.data)
        decoded = tornado__put_unquoted(out, value);
    tornado__arguments_push(parameters, name, decoded);
}

TORNADO_API char *tornado_parse_header(tornado_arena *arena, tornado_arguments *parameters, tornado_bytes line)
{
    tornado_arguments longer = *parameters;
    tornado_bytes rest = line, first = tornado__cut_parameter(&rest);
    size_t count = 0;
    for (tornado_bytes left = rest; left.data;)
        count += tornado__cut_parameter(&left).len > 0;
    if (!tornado__arguments_reserve(arena, &longer, count, TORNADO__MAX_PARAMETERS, "parameters of a header"))
        return NULL;
    char *key = tornado__escape_alloc(arena, line.len), *out = key; /* a NUL for each "=" and ";", one for all */
    if (!key)
        return NULL;
    tornado__put_bytes(&out, tornado__strip_ascii(first));
    for (int extended = 0; extended < 2; extended++) { /* those with a "*" go behind the others */
        for (tornado_bytes left = rest; left.data;) {
            tornado_bytes value = tornado__cut_parameter(&left), name = tornado__cut(&value, '=');
            name = tornado__strip_ascii(name);
            bool star = name.len > 1 && name.data[name.len - 1] == '*' && value.data;
            if (star == (extended == 1) && (name.len > 0 || value.data))
                tornado__put_parameter(&longer, &out, name, tornado__strip_ascii(value), star);
        }
    }
    if (!tornado__arguments_index(arena, &longer, 2))
        return NULL;
    *parameters = longer;
    return key;
}

/* Adds a value, in quotes when it is no token. */
static bool tornado__encode_parameter(tornado_buffer *out, tornado_bytes value)
{
    if (tornado__is_token(value.data, value.len))
        return tornado_buffer_append(out, value.data, value.len);
    tornado_buffer_append(out, "\"", 1);
    for (size_t i = 0; i < value.len; i++) {
        if (tornado__is(value.data[i], TORNADO__CONTROL))
            return tornado__fail(TORNADO_ERR_INVALID, 0, "a control character in a header's parameter");
        if (value.data[i] == '"' || value.data[i] == '\\')
            tornado_buffer_append(out, "\\", 1);
        tornado_buffer_append(out, value.data + i, 1);
    }
    return tornado_buffer_append(out, "\"", 1);
}

static bool tornado__encode_header(tornado_buffer *out, const char *key, const tornado_arguments *parameters)
{
    for (const char *at = key; *at; at++)
        if (tornado__is(*at, TORNADO__CONTROL))
            return tornado__fail(TORNADO_ERR_INVALID, 0, "a control character in a header");
    tornado_buffer_puts(out, key);
    for (size_t i = 0; parameters && i < parameters->count; i++) {
        tornado_bytes name = parameters->items[i].name, value = parameters->items[i].value;
        if (!tornado__is_token(name.data, name.len))
            return tornado__fail(TORNADO_ERR_INVALID, 0, "no name for a header's parameter: \"%.60s\"", name.data);
        tornado_buffer_puts(out, "; ");
        tornado_buffer_append(out, name.data, name.len);
        if (value.data && (!tornado_buffer_append(out, "=", 1) || !tornado__encode_parameter(out, value)))
            return false;
    }
    return !out->failed;
}

TORNADO_API char *tornado_encode_header(tornado_arena *arena, const char *key, const tornado_arguments *parameters)
{
    tornado_buffer out = {0};
    bool ok = tornado__encode_header(&out, key, parameters);
    return tornado__buffer_finish(arena, &out, ok);
}

/* ---- URLs ---- */

/* A query that grows: counted first, when `at` is NULL, then written. */
typedef struct tornado__query {
    char *at;
    uint64_t size;
    char next; /* what the next field begins with: "?", then "&" */
} tornado__query;

static void tornado__query_char(tornado__query *query, char c)
{
    query->size++;
    if (query->at)
        *query->at++ = c;
}

static void tornado__query_escape(tornado__query *query, unsigned char c)
{
    char shown = tornado__url_char(c, true);
    tornado__query_char(query, shown);
    if (shown == '%') {
        tornado__query_char(query, "0123456789ABCDEF"[c >> 4]);
        tornado__query_char(query, "0123456789ABCDEF"[c & 15]);
    }
}

static void tornado__query_add(tornado__query *query, tornado_bytes name, tornado_bytes value)
{
    tornado__query_char(query, query->next);
    for (size_t i = 0; i < name.len; i++)
        tornado__query_escape(query, (unsigned char)name.data[i]);
    tornado__query_char(query, '=');
    for (size_t i = 0; i < value.len; i++)
        tornado__query_escape(query, (unsigned char)value.data[i]);
    query->next = '&';
}

/* Adds a field that is encoded already: what is encoded needlessly, or not where it should be, changes. */
static void tornado__query_recode(tornado__query *query, tornado_bytes field)
{
    bool equals = false;
    tornado__query_char(query, query->next);
    for (size_t i = 0; i < field.len; i++) {
        char c = field.data[i];
        int value = c == '%' && field.len - i > 2 ? tornado__hex_byte(field.data + i + 1) : -1;
        if (c == '=' && !equals) {
            equals = true;
            tornado__query_char(query, '=');
        } else {
            tornado__query_escape(query, (unsigned char)(value >= 0 ? value : c == '+' ? ' ' : c));
            i += value >= 0 ? 2 : 0;
        }
    }
    if (!equals)
        tornado__query_char(query, '=');
    query->next = '&';
}

/* The fields that a URL has and those that are added, of which one list may be NULL. */
static void tornado__query_write(tornado__query *query, tornado_bytes old, const char *const *pairs,
                                 const tornado_arguments *arguments)
{
    query->next = '?';
    while (old.data) {
        tornado_bytes field = tornado__cut(&old, '&');
        if (field.len)
            tornado__query_recode(query, field);
    }
    for (; pairs && pairs[0]; pairs += 2)
        tornado__query_add(query, tornado_bytes_of(pairs[0]), tornado_bytes_of(pairs[1]));
    for (size_t i = 0; arguments && i < arguments->count; i++)
        tornado__query_add(query, arguments->items[i].name, arguments->items[i].value);
}

static char *tornado__url_concat(tornado_arena *arena, const char *url, const char *const *pairs,
                                 const tornado_arguments *arguments)
{
    if (!pairs && !arguments)
        return tornado_arena_strdup(arena, url);
    tornado__query query = {0};
    tornado_bytes fragment = tornado_bytes_of(url), old = tornado__cut(&fragment, '#'), before;
    before = tornado__cut(&old, '?');
    tornado__query_write(&query, old, pairs, arguments);
    char *text = tornado__escape_alloc(arena, query.size + before.len + fragment.len + 1);
    if (!text)
        return NULL;
    query.at = text + before.len;
    if (before.len)
        memcpy(text, before.data, before.len);
    tornado__query_write(&query, old, pairs, arguments);
    if (fragment.len) {
        *query.at++ = '#';
        memcpy(query.at, fragment.data, fragment.len);
    }
    query.at[fragment.len] = '\0';
    return text;
}

TORNADO_API char *tornado_url_concat(tornado_arena *arena, const char *url, const char *const *pairs)
{
    return tornado__url_concat(arena, url, pairs, NULL);
}

TORNADO_API char *tornado_url_concat_arguments(tornado_arena *arena, const char *url,
                                               const tornado_arguments *arguments)
{
    return tornado__url_concat(arena, url, NULL, arguments);
}

/* Reads a port behind a colon. No digits: -1. */
static bool tornado__url_port(tornado_bytes digits, int *port)
{
    int value = digits.len ? 0 : -1;
    for (size_t i = 0; i < digits.len; i++) {
        if (digits.data[i] < '0' || digits.data[i] > '9' || (value = value * 10 + (digits.data[i] - '0')) > 65535)
            return tornado__fail(TORNADO_ERR_PARSE, 0, "no port: \"%.*s\"",
                                 (int)(digits.len < 60 ? digits.len : 60), digits.data);
    }
    *port = value;
    return true;
}

/* Parts a host, with its brackets, and a port. */
static bool tornado__host_and_port(tornado_bytes netloc, tornado_bytes *host, int *port)
{
    tornado_bytes after = netloc;
    if (netloc.len && *netloc.data == '[') {
        *host = tornado__cut(&after, ']');
        host->len++;
        if (!after.data || host->len == 2 || (after.len && *after.data != ':'))
            return tornado__fail(TORNADO_ERR_PARSE, 0, "brackets out of place in a host");
        if (after.len) {
            after.data++;
            after.len--;
        }
        return tornado__url_port(after, port);
    }
    *host = tornado__cut(&after, ':');
    if (after.len && memchr(after.data, ':', after.len)) {
        *host = netloc;
        after.len = 0;
    } else if (after.data && host->len == 0) {
        return tornado__fail(TORNADO_ERR_PARSE, 0, "no host before a port");
    }
    return tornado__url_port(after, port);
}

TORNADO_API char *tornado_split_host_and_port(tornado_arena *arena, const char *netloc, int *port)
{
    tornado_bytes host;
    int number;
    if (!tornado__host_and_port(tornado_bytes_of(netloc), &host, &number))
        return NULL;
    char *copy = tornado_arena_memdup(arena, host.data, host.len);
    if (copy)
        *port = number;
    return copy;
}

/* Whether all bytes are of a kind or ":" (when `colon`), and each "%" has its digits. */
static bool tornado__url_all(tornado_bytes text, int kind, bool colon)
{
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        if (c == '%' ? text.len - i < 3 || tornado__hex_byte(text.data + i + 1) < 0
                     : !tornado__is(c, kind) && !(colon && c == ':'))
            return false;
    }
    return true;
}

/* The host of an authority in lower case, without brackets; NULL when it is none, or when memory is short. */
static char *tornado__url_host(tornado_arena *arena, tornado_bytes host)
{
    bool literal = host.len && *host.data == '[';
    if (literal)
        host = (tornado_bytes){host.data + 1, host.len - 2};
    char *copy = tornado_arena_memdup(arena, host.data, host.len);
    for (size_t i = 0; copy && i < host.len; i++)
        copy[i] = tornado__lower(copy[i]);
    if (!copy)
        return NULL;
    if (literal ? strchr(copy, ':') && tornado_is_valid_ip(copy) : tornado__url_all(host, TORNADO__HOST, false))
        return copy;
    tornado__fail(TORNADO_ERR_PARSE, 0, "no host: \"%.60s\"", copy);
    return NULL;
}

static bool tornado__url_authority(tornado_arena *arena, tornado_url *url, tornado_bytes authority)
{
    tornado_bytes host = authority, user = tornado__cut(&host, '@');
    bool with_user = host.data != NULL;
    if (!with_user)
        host = authority;
    if (!tornado__url_all(user, TORNADO__HOST, true) && with_user)
        return tornado__fail(TORNADO_ERR_PARSE, 0, "what stands before the \"@\" of a URL is not well-formed");
    if (!tornado__host_and_port(host, &host, &url->port))
        return false;
    if (host.len == 0 && authority.len)
        return tornado__fail(TORNADO_ERR_PARSE, 0, "a URL without a host");
    url->host = tornado__url_host(arena, host);
    url->authority = tornado_arena_memdup(arena, authority.data, authority.len);
    url->userinfo = with_user ? tornado_arena_memdup(arena, user.data, user.len) : NULL;
    return url->host && url->authority && (url->userinfo || !with_user);
}

static bool tornado__is_scheme(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        bool letter = tornado__lower(text[i]) >= 'a' && tornado__lower(text[i]) <= 'z';
        if (!letter && (i == 0 || !((text[i] >= '0' && text[i] <= '9') || strchr("+-.", text[i]))))
            return false;
    }
    return len > 0;
}

/* Takes a scheme from the front. */
static bool tornado__url_scheme(tornado_arena *arena, tornado_url *url, tornado_bytes *rest)
{
    const char *text = rest->data;
    size_t len = strcspn(text, ":/?#");
    if (text[len] != ':')
        return true;
    if (!tornado__is_scheme(text, len))
        return tornado__fail(TORNADO_ERR_PARSE, 0, "what stands before the first colon of a URL is no scheme");
    char *scheme = tornado_arena_memdup(arena, text, len);
    if (!scheme)
        return false;
    for (size_t i = 0; i < len; i++)
        scheme[i] = tornado__lower(scheme[i]);
    url->scheme = scheme;
    *rest = (tornado_bytes){text + len + 1, rest->len - len - 1};
    return true;
}

static bool tornado__url_parts(tornado_arena *arena, tornado_url *url, const char *text)
{
    tornado_bytes fragment = tornado_bytes_of(text), query, path;
    if (!tornado__url_scheme(arena, url, &fragment))
        return false;
    query = tornado__cut(&fragment, '#');
    path = tornado__cut(&query, '?');
    if (path.len >= 2 && memcmp(path.data, "//", 2) == 0) {
        tornado_bytes after = {path.data + 2, path.len - 2}, authority = tornado__cut(&after, '/');
        if (!tornado__url_authority(arena, url, authority))
            return false;
        path.data += 2 + authority.len;
        path.len -= 2 + authority.len;
    }
    if (path.len && memchr(path.data, '\\', path.len))
        return tornado__fail(TORNADO_ERR_PARSE, 0, "a backslash in the path of a URL");
    url->path = tornado_arena_memdup(arena, path.data, path.len);
    url->query = query.data ? tornado_arena_memdup(arena, query.data, query.len) : NULL;
    url->fragment = fragment.data ? tornado_arena_memdup(arena, fragment.data, fragment.len) : NULL;
    return url->path && (url->query || !query.data) && (url->fragment || !fragment.data);
}

enum { TORNADO__URL_MAX = 65536 };

TORNADO_API bool tornado_url_split(tornado_arena *arena, tornado_url *url, const char *text)
{
    tornado_url parts = {.port = -1};
    size_t len = strnlen(text, TORNADO__URL_MAX + 1);
    if (len > TORNADO__URL_MAX)
        return tornado__fail(TORNADO_ERR_LIMIT, 0, "a URL of more than %d bytes", TORNADO__URL_MAX);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] <= ' ' || text[i] == 0x7f)
            return tornado__fail(TORNADO_ERR_PARSE, 0, "a space or a control character in a URL, at offset %zu", i);
    if (!tornado__url_parts(arena, &parts, text))
        return false;
    *url = parts;
    return true;
}

/* Removes the segments "." and "..", the latter with the segment before. RFC 3986 section 5.2.4. */
static void tornado__remove_dots(char *path)
{
    char *out = path;
    const char *in = path;
    while (*in) {
        size_t slash = *in == '/', len = strcspn(in + slash, "/");
        bool dot = len == 1 && in[slash] == '.', dots = len == 2 && memcmp(in + slash, "..", 2) == 0;
        const char *next = in + slash + len;
        if (!dot && !dots) {
            memmove(out, in, slash + len);
            out += slash + len;
        } else {
            while (dots && slash && out > path && *--out != '/') /* not beyond the start */
                continue;
            if (!slash && *next)
                next++;
            else if (slash && !*next)
                *out++ = '/';
        }
        in = next;
    }
    *out = '\0';
}

/* The path of a relative one at a base. RFC 3986 section 5.2.3. */
static char *tornado__url_merge(tornado_arena *arena, const tornado_url *base, const char *path)
{
    const char *slash = strrchr(base->path, '/');
    size_t len = slash ? (size_t)(slash - base->path) + 1 : 0;
    if (base->authority && !*base->path)
        return tornado_arena_printf(arena, "/%s", path);
    return tornado_arena_printf(arena, "%.*s%s", (int)len, base->path, path);
}

/* The path of a URL that is joined, without dots; NULL when memory is short. */
static char *tornado__url_join_path(tornado_arena *arena, const tornado_url *base, const tornado_url *reference)
{
    char *path;
    if (!reference->scheme && !reference->authority && !*reference->path)
        return tornado_arena_strdup(arena, base->path);
    if (reference->scheme || reference->authority || *reference->path == '/')
        path = tornado_arena_strdup(arena, reference->path);
    else
        path = tornado__url_merge(arena, base, reference->path);
    if (path)
        tornado__remove_dots(path);
    return path;
}

TORNADO_API char *tornado_url_join(tornado_arena *arena, const char *base, const char *reference)
{
    tornado_url at, to;
    if (!tornado_url_split(arena, &at, base) || !tornado_url_split(arena, &to, reference))
        return NULL;
    if (!at.scheme) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "a URL that others are joined to needs a scheme: \"%.60s\"", base);
        return NULL;
    }
    const char *path = tornado__url_join_path(arena, &at, &to);
    if (!path)
        return NULL;
    const char *scheme = to.scheme ? to.scheme : at.scheme;
    const char *authority = to.scheme || to.authority ? to.authority : at.authority;
    const char *query = to.scheme || to.authority || *to.path || to.query ? to.query : at.query;
    /* Without an authority a path must not look like one. */
    bool hide = !authority && path[0] == '/' && path[1] == '/';
    return tornado_arena_printf(arena, "%s:%s%s%s%s%s%s%s%s", scheme, authority ? "//" : "",
                                authority ? authority : "", hide ? "/." : "", path, query ? "?" : "",
                                query ? query : "", to.fragment ? "#" : "", to.fragment ? to.fragment : "");
}

/*============================================================================
 * section: http1 (private)
 * The connection, from bytes to requests and from answers to bytes.
 *
 * A connection is a stream with an owner of its own: one allocation, about 170 bytes, which is all that an idle one
 * costs. When a head is complete a message begins: a block of the loop's pool with the message, its arena and a
 * copy of the head, which is parsed there, in place. So whatever a handler sees belongs to its request, also while
 * it waits and the next bytes come in.
 *
 * Requests are taken one at a time; what follows stays in the stream's buffer. Answers are queued, and sent when no
 * more requests are at hand (settle): at the end of what arrived together, or before the loop waits. While much is
 * queued nothing is taken, so a client that does not read its answers stops being read.
 *
 * A message is counted: by the connection until it is answered, and by whoever handles it.
 *============================================================================*/

#define TORNADO__SERVER_NAME    "tornado.h/" TORNADO_VERSION
#define TORNADO__HTTP_BACKLOG   65536 /* bytes behind a request under way, or not sent yet: then reading pauses */
#define TORNADO__CHUNK_LINE_MAX 4096
#define TORNADO__LINGER_NS      2000000000
#define TORNADO__LINGER_BYTES   1048576

/* Header lines that are ready to be sent: which of them an answer has. JSON: its type is that, not HTML. */
enum {
    TORNADO__SEND_SERVER = 1,
    TORNADO__SEND_TYPE = 2,
    TORNADO__SEND_DATE = 4,
    TORNADO__SEND_ALL = 7,
    TORNADO__SEND_JSON = 8
};

/* What all connections of a server share. */
typedef struct tornado__http1_host {
    tornado_ioloop *loop;
    tornado_http_delegate delegate;
    void *arg;
    bool no_keep_alive, closing;
    size_t max_header_size;
    uint64_t max_body_size;
    int64_t idle_timeout, header_timeout, body_timeout; /* ns; body_timeout -1: none */
    tornado__link connections;
    size_t count;
    unsigned references; /* the server's, and one of each message: a handler may outlive its server */
    void (*free)(struct tornado__http1_host *host);
    size_t known_host_len;
    char known_host[64]; /* the last valid Host: most requests have the same, and comparing is cheap */
    int64_t stamp_until; /* loop time at which the stamp gets old */
    struct {
        unsigned type_at, date_at, len;
        char text[128]; /* "Server: ...", "Content-Type: ...", "Date: ...", as lines */
    } stamps[2];        /* of HTML, of JSON */
} tornado__http1_host;

typedef struct tornado__http1 {
    tornado_iostream stream;
    tornado__http1_host *host;
    tornado__link link;
    struct tornado__message *message; /* being read, or waiting for its answer */
    tornado__timer timer;
    tornado__task task;
    union {
        char text[16];
        char *allocated;
    } ip;
    unsigned scanned; /* of an incomplete head, or of bytes that are discarded at the end */
    bool ip_allocated;
    bool feeding;     /* data is on the stack */
    bool queued;      /* task is */
    bool in_head;     /* a head has begun, the timer runs */
    bool closing;     /* nothing more is read; close when all is sent */
    bool linger;      /* ...but let the peer read it: it may still be sending */
    bool lingering;
} tornado__http1;

enum {
    TORNADO__BODY_NONE,
    TORNADO__BODY_LENGTH,
    TORNADO__BODY_CHUNK_SIZE,
    TORNADO__BODY_CHUNK,
    TORNADO__BODY_CHUNK_END,
    TORNADO__BODY_TRAILERS
};

typedef struct tornado__message {
    tornado_http_request request;
    tornado_arena arena;
    tornado__http1 *connection; /* NULL: answered, or the client is gone */
    tornado__http1_host *host;
    unsigned references;
    unsigned char body_state;
    bool announced;    /* the delegate knows it */
    bool reading;      /* its body is not complete */
    bool http10, head, keep_alive, keep_alive_asked, expects;
    bool has_length, has_host, is_chunked;
    bool conditional; /* it has If-None-Match */
    bool started, chunked, finished, no_body;
    uint64_t method_word; /* the method's bytes as in memory, filled up with zeros; 0: longer than 7 */
    size_t path_len;
    uint64_t left;     /* bytes of the body, or of its chunk, to come */
    uint64_t received;
    uint64_t out_left; /* bytes of the answer that were announced and not written; UINT64_MAX: any number */
    tornado_buffer body;
    int64_t begun, ended; /* loop time */
    tornado_future *flushed;
} tornado__message;

static void tornado__http1_host_release(tornado__http1_host *host)
{
    if (--host->references == 0)
        host->free(host);
}

static TORNADO__COLD void tornado__message_free(tornado__message *message)
{
    tornado__http1_host *host = message->host;
    if (message->announced && host->delegate.release)
        host->delegate.release(&message->request);
    TORNADO_FREE(message->body.data);
    tornado__arena_clear(&message->arena);
    tornado__http1_host_release(host);
}

static TORNADO__INLINE void tornado__message_release(tornado__message *message)
{
    if (--message->references == 0)
        tornado__message_free(message);
}

TORNADO_API void tornado_http_request_retain(tornado_http_request *request)
{
    ((tornado__message *)(void *)request)->references++;
}

TORNADO_API void tornado_http_request_release(tornado_http_request *request)
{
    tornado__message_release((tornado__message *)(void *)request);
}

TORNADO_API const char *tornado_http_request_header(tornado_http_request *request, const char *name)
{
    const tornado_http_header *first = tornado_http_headers_find(&request->headers, name, NULL);
    const tornado_http_header *next = first ? tornado_http_headers_find(&request->headers, name, first) : NULL;
    size_t len = first ? first->value_len : 0;
    if (!next)
        return first ? first->value : NULL;
    for (const tornado_http_header *at = next; at; at = tornado_http_headers_find(&request->headers, name, at))
        len += 1 + at->value_len;
    char *joined = tornado_arena_alloc(request->arena, len + 1), *out = joined;
    for (const tornado_http_header *at = first; joined && at;
         at = tornado_http_headers_find(&request->headers, name, at)) {
        if (at != first)
            *out++ = ',';
        out = tornado__put(out, at->value, at->value_len);
    }
    if (joined)
        *out = '\0';
    return joined;
}

TORNADO_API char *tornado_http_request_full_url(const tornado_http_request *request)
{
    return tornado_arena_printf(request->arena, "%s://%s%s", request->protocol, request->host, request->uri);
}

TORNADO_API char *tornado_http_request_host_name(const tornado_http_request *request)
{
    size_t len = strlen(request->host), digits = len;
    while (digits > 0 && request->host[digits - 1] >= '0' && request->host[digits - 1] <= '9')
        digits--;
    if (digits > 1 && digits < len && request->host[digits - 1] == ':')
        len = digits - 1;
    char *host = tornado_arena_memdup(request->arena, request->host, len);
    for (char *at = host; at && *at; at++)
        if (*at >= 'A' && *at <= 'Z')
            *at |= 0x20;
    return host;
}

TORNADO_API double tornado_http_request_time(const tornado_http_request *request)
{
    const tornado__message *message = (const tornado__message *)(const void *)request;
    return (double)((message->ended ? message->ended : tornado__now_ns()) - message->begun) / 1e9;
}

/* ---- reading a head ---- */

/* Where "\n\r\n" ends, at `from` or later, or 0. */
static TORNADO__INLINE size_t tornado__find_blank_line(const char *data, size_t from, size_t len)
{
    size_t at = from < 2 ? 2 : from;
#ifdef __SSE2__
    for (const __m128i newline = _mm_set1_epi8('\n'); len >= 18 && at < len; at += 16) {
        if (at > len - 16)
            at = len - 16; /* the last look overlaps the one before */
        __m128i here = _mm_loadu_si128((const __m128i *)(const void *)(data + at));
        __m128i before = _mm_loadu_si128((const __m128i *)(const void *)(data + at - 2));
        unsigned mask = (unsigned)_mm_movemask_epi8(
            _mm_and_si128(_mm_cmpeq_epi8(here, newline), _mm_cmpeq_epi8(before, newline)));
        for (; mask; mask &= mask - 1) {
            size_t place = at + (unsigned)__builtin_ctz(mask);
            if (data[place - 1] == '\r')
                return place + 1;
        }
    }
#endif
    for (; at < len; at++)
        if (data[at] == '\n' && data[at - 2] == '\n' && data[at - 1] == '\r')
            return at + 1;
    return 0;
}

/* The length of the head at the start of the data, with its blank line; 0: not complete; -1: a line that ends
   without a CR, which in a complete head is for the parser to find. Goes on where it stopped before. */
static TORNADO__INLINE ptrdiff_t tornado__head_length(const char *data, size_t len, unsigned *scanned)
{
    size_t end = tornado__find_blank_line(data, *scanned, len);
    if (TORNADO__LIKELY(end))
        return (ptrdiff_t)end;
    for (const char *at = data + *scanned; (at = memchr(at, '\n', (size_t)(data + len - at))) != NULL; at++)
        if (at == data || at[-1] != '\r')
            return -1;
    *scanned = (unsigned)len;
    return 0;
}

/* Takes the authority out of a target that is not a path. Returns a status, and where its path begins. RFC 9112
   section 3.2. */
static int tornado__parse_special_target(tornado__message *message, char *target, size_t len, char **path)
{
    tornado_http_request *request = &message->request;
    char *end = target + len, *authority;
    if (strcmp(request->method, "CONNECT") == 0) /* host and port, both */
        return tornado__is_authority(target, len) && len > 1 && end[-1] >= '0' && end[-1] <= '9' &&
                       strrchr(target, ':')
                   ? 0
                   : 400;
    if (*target == '/')
        return 0;
    if (len == 1 && *target == '*')
        return strcmp(request->method, "OPTIONS") == 0 ? 0 : 400;
    if (!(len > 7 && TORNADO__IS_WORD(target, 7, "http://")) &&
        !(len > 8 && TORNADO__IS_WORD(target, 8, "https://")))
        return 400;
    authority = strchr(target, ':') + 3;
    *path = authority;
    while (*path < end && **path != '/' && **path != '?')
        ++*path;
    if (*path == authority || !tornado__is_authority(authority, (size_t)(*path - authority)))
        return 400;
    request->host = tornado_arena_memdup(&message->arena, authority, (size_t)(*path - authority));
    return request->host ? 0 : 500;
}

/* Cuts a target into path and query. Returns a status. */
static TORNADO__INLINE int tornado__parse_target(tornado__message *message, char *target, char *query, char *end)
{
    tornado_http_request *request = &message->request;
    char *path = target;
    if (TORNADO__UNLIKELY(*target != '/' || message->request.method[0] == 'C')) { /* perhaps CONNECT */
        int status = tornado__parse_special_target(message, target, (size_t)(end - target), &path);
        if (status)
            return status;
    }
    message->path_len = (size_t)((query ? query : end) - path);
    request->query = query ? query + 1 : "";
    if (TORNADO__UNLIKELY(message->path_len == 0)) {
        request->path = "/";
        message->path_len = 1;
    } else {
        request->path = query ? tornado_arena_memdup(&message->arena, path, message->path_len) : path;
    }
    return request->path ? 0 : 500;
}

/* "HTTP/1.x\r\n". Returns a status. */
static TORNADO__INLINE int tornado__parse_version(tornado__message *message, const char *version)
{
    if (TORNADO__LIKELY(memcmp(version, "HTTP/1.1\r\n", 10) == 0))
        return 0;
    if (memcmp(version, "HTTP/", 5) != 0 || version[5] < '0' || version[5] > '9' || version[6] != '.' ||
        version[7] < '0' || version[7] > '9' || version[8] != '\r' || version[9] != '\n')
        return 400;
    message->http10 = version[7] == '0';
    return version[5] == '1' ? 0 : 505;
}

/* The first `len` bytes, of at most 7, as a number, the others zero. Eight must be readable. */
static TORNADO__INLINE uint64_t tornado__word(const char *text, size_t len)
{
    uint64_t word;
    memcpy(&word, text, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return word & ~(UINT64_MAX >> (8 * len));
#else
    return word & ((UINT64_C(1) << (8 * len)) - 1);
#endif
}

/* "METHOD target HTTP/1.x\r\n". Returns a status, and where the next line begins. RFC 9112 section 3. */
static TORNADO__INLINE int tornado__parse_request_line(tornado__message *message, char *at, char **next)
{
    tornado_http_request *request = &message->request;
    char *method = at;
    if (TORNADO__LIKELY(memcmp(at, "GET ", 4) == 0))
        at += 3;
    else
        while (tornado__is(*at, TORNADO__TOKEN))
            at++;
    if (at == method || *at != ' ')
        return 400;
    size_t method_len = (size_t)(at - method);
    message->method_word = method_len < 8 ? tornado__word(method, method_len) : 0;
    message->head = method_len == 4 && memcmp(method, "HEAD", 4) == 0;
    *at++ = '\0';
    char *target = at, *query = NULL;
    while (tornado__is(*at, TORNADO__PATH))
        at++;
    if (*at == '?')
        query = at;
    while (tornado__is(*at, TORNADO__TARGET))
        at++;
    if (at == target || *at != ' ')
        return 400;
    char *end = at;
    *at++ = '\0';
    request->method = method;
    request->uri = target;
    request->version = at;
    *next = at + 10;
    int status = tornado__parse_version(message, at);
    at[8] = '\0';
    return status ? status : tornado__parse_target(message, target, query, end);
}

static int tornado__parse_length(tornado__message *message, const char *value, size_t len)
{
    uint64_t length = 0;
    if (message->has_length || message->is_chunked || len == 0)
        return 400;
    for (size_t i = 0; i < len; i++) {
        if (value[i] < '0' || value[i] > '9')
            return 400;
        if (length > (UINT64_MAX - 9) / 10)
            return 413;
        length = length * 10 + (uint64_t)(value[i] - '0');
    }
    message->has_length = true;
    message->left = length;
    return 0;
}

static void tornado__parse_connection(tornado__message *message, const char *value)
{
    const char *element;
    size_t len;
    while (tornado__next_element(&value, &element, &len)) {
        if (TORNADO__IS_WORD(element, len, "close"))
            message->keep_alive = false;
        else if (TORNADO__IS_WORD(element, len, "keep-alive"))
            message->keep_alive_asked = true;
    }
}

/* Whether a Host is valid. RFC 9112 section 3.2. */
static TORNADO__INLINE bool tornado__host_valid(tornado__http1_host *host, const char *value, size_t len)
{
    if (len == host->known_host_len && memcmp(value, host->known_host, len) == 0)
        return true;
    if (!tornado__is_authority(value, len))
        return false;
    if (len <= sizeof host->known_host) {
        memcpy(host->known_host, value, len);
        host->known_host_len = len;
    }
    return true;
}

/* Acts on the headers that decide how a message is framed. Returns a status. RFC 9112 sections 3.2 and 6. */
static TORNADO__INLINE int tornado__parse_known(tornado__message *message, const tornado_http_header *header)
{
    const char *name = header->name, *value = header->value;
    size_t len = header->value_len;
    switch (header->name_len) {
    case 4:
        if (!TORNADO__IS_WORD(name, 4, "host"))
            break;
        if (message->has_host || !tornado__host_valid(message->host, value, len))
            return 400;
        message->has_host = true;
        if (!message->request.host)
            message->request.host = value;
        break;
    case 6:
        if (!TORNADO__IS_WORD(name, 6, "expect"))
            break;
        if (!TORNADO__IS_WORD(value, len, "100-continue"))
            return 417;
        message->expects = !message->http10;
        break;
    case 10:
        if (TORNADO__IS_WORD(name, 10, "connection"))
            tornado__parse_connection(message, value);
        break;
    case 13:
        if (TORNADO__IS_WORD(name, 13, "if-none-match"))
            message->conditional = true;
        break;
    case 14:
        if (TORNADO__IS_WORD(name, 14, "content-length"))
            return tornado__parse_length(message, value, len);
        break;
    case 17:
        if (!TORNADO__IS_WORD(name, 17, "transfer-encoding"))
            break;
        if (message->has_length || message->is_chunked || message->http10 ||
            !TORNADO__IS_WORD(value, len, "chunked"))
            return 400;
        message->is_chunked = true;
        break;
    default:
        break;
    }
    return 0;
}

/* Header lines up to a blank one, at `end`. Strings are cut in place. Returns a status. */
static int tornado__parse_headers(tornado__message *message, char *at, const char *end,
                                  tornado_http_headers *headers, bool trailers)
{
    size_t capacity = 16;
    tornado_http_header *items = tornado__arena_alloc(&message->arena, capacity * sizeof *items);
    if (!items)
        return 500;
    headers->items = items;
    while (at < end) {
        if (TORNADO__UNLIKELY(headers->count == capacity)) {
            if (capacity >= TORNADO_MAX_HEADERS)
                return 431;
            tornado_http_header *bigger = tornado_arena_alloc(&message->arena, capacity * 2 * sizeof *items);
            if (!bigger)
                return 500;
            memcpy(bigger, items, capacity * sizeof *items);
            headers->items = items = bigger;
            capacity *= 2;
        }
        tornado_http_header *header = &items[headers->count++];
        header->name = at;
        while (tornado__is(*at, TORNADO__TOKEN))
            at++;
        header->name_len = (uint32_t)(at - header->name);
        if (*at != ':' || header->name_len == 0)
            return 400; /* also a folded line, and white space before the colon */
        *at++ = '\0';
        while (*at == ' ' || *at == '\t')
            at++;
        header->value = at;
        at = tornado__find_control(at);
        if (at[0] != '\r' || at[1] != '\n')
            return 400;
        char *last = at;
        while (last > header->value && (last[-1] == ' ' || last[-1] == '\t'))
            last--;
        *last = '\0';
        header->value_len = (uint32_t)(last - header->value);
        at += 2;
        int status = trailers ? 0 : tornado__parse_known(message, header);
        if (TORNADO__UNLIKELY(status))
            return status;
    }
    return 0;
}

/* A message with a copy of its head, parsed. NULL when memory is short. *status: 0, or what the request is refused
   with. */
static tornado__message *tornado__message_new(tornado__http1 *connection, const char *head, size_t len, int *status)
{
    tornado__http1_host *host = connection->host;
    tornado__block *block = tornado__pool_get(&host->loop->blocks);
    if (!block)
        return NULL;
    tornado__message *message = (tornado__message *)(void *)((char *)block + TORNADO__BLOCK_HEAD);
    tornado__zero(message, sizeof *message);
    tornado__arena_init(&message->arena, &host->loop->blocks, block, TORNADO__BLOCK_HEAD + sizeof *message);
    message->request.arena = &message->arena;
    message->host = host;
    host->references++;
    message->references = 1;
    message->keep_alive = true;
    message->begun = host->loop->now;
    /* the text of an address takes less than 48 bytes; the scan may look 16 bytes ahead */
    char *ip = tornado__arena_alloc(&message->arena, 48 + len + 16), *next = NULL;
    if (!ip) {
        tornado__message_release(message);
        return NULL;
    }
    char *copy = ip + 48;
    memcpy(copy, head, len);
    memset(copy + len, 0, 16);
    if (TORNADO__LIKELY(!connection->ip_allocated))
        memcpy(ip, connection->ip.text, 16);
    else
        memcpy(ip, connection->ip.allocated, 46);
    message->request.remote_ip = ip;
    message->request.protocol = "http";
    message->request.body.data = "";
    *status = tornado__parse_request_line(message, copy, &next);
    if (!*status)
        *status = tornado__parse_headers(message, next, copy + len - 2, &message->request.headers, false);
    if (!*status && !message->has_host && !message->http10)
        *status = 400;
    if (!message->request.host)
        message->request.host = "127.0.0.1";
    message->keep_alive = message->keep_alive && !host->no_keep_alive && !host->closing &&
                          (!message->http10 || message->keep_alive_asked);
    return message;
}

/* ---- answering ---- */

static TORNADO__COLD void tornado__http1_restamp(tornado__http1_host *host)
{
    static const char *const types[] = {"Content-Type: text/html; charset=UTF-8\r\n",
                                        "Content-Type: application/json; charset=UTF-8\r\n"};
    struct timespec now;
    char date[30];
    clock_gettime(CLOCK_REALTIME, &now);
    tornado_format_timestamp((int64_t)now.tv_sec, date);
    for (int i = 0; i < 2; i++) {
        char *start = host->stamps[i].text, *out = TORNADO__PUT(start, "Server: " TORNADO__SERVER_NAME "\r\n");
        host->stamps[i].type_at = (unsigned)(out - start);
        out = tornado__put(out, types[i], strlen(types[i]));
        host->stamps[i].date_at = (unsigned)(out - start);
        out = TORNADO__PUT(out, "Date: ");
        out = tornado__put(out, date, 29);
        out = TORNADO__PUT(out, "\r\n");
        host->stamps[i].len = (unsigned)(out - start);
    }
    host->stamp_until = host->loop->now + 1000000000 - now.tv_nsec;
}

/* Keeps the ready-made header lines up to date: the clock is asked once a second. */
static TORNADO__INLINE void tornado__http1_stamp(tornado__http1_host *host)
{
    if (TORNADO__UNLIKELY(host->loop->now >= host->stamp_until))
        tornado__http1_restamp(host);
}

static TORNADO__INLINE char *tornado__put_stamp(const tornado__http1_host *host, char *out, unsigned defaults)
{
    int json = (defaults & TORNADO__SEND_JSON) != 0;
    const char *stamp = host->stamps[json].text;
    unsigned type_at = host->stamps[json].type_at, date_at = host->stamps[json].date_at,
             len = host->stamps[json].len;
    if (TORNADO__LIKELY((defaults & TORNADO__SEND_ALL) == TORNADO__SEND_ALL))
        return tornado__put(out, stamp, len);
    if (defaults & TORNADO__SEND_SERVER)
        out = tornado__put(out, stamp, type_at);
    if (defaults & TORNADO__SEND_TYPE)
        out = tornado__put(out, stamp + type_at, date_at - type_at);
    if (defaults & TORNADO__SEND_DATE)
        out = tornado__put(out, stamp + date_at, len - date_at);
    return out;
}

/* The start of an answer, as the sections above say it. Its headers were checked. */
typedef struct tornado__answer {
    int status;
    const char *reason; /* NULL: the standard's */
    unsigned defaults;  /* TORNADO__SEND_... */
    tornado_http_headers headers;
    const char *etag; /* NULL: none; a line of its own as it is so common */
    size_t etag_len;
    int64_t content_length; /* -1: not known */
} tornado__answer;

static char *tornado__put_status(char *out, const tornado__answer *answer, const char *reason, size_t reason_len)
{
    if (TORNADO__LIKELY(answer->status == 200 && !reason))
        return TORNADO__PUT(out, "HTTP/1.1 200 OK\r\n");
    out = TORNADO__PUT(out, "HTTP/1.1 ");
    out = tornado__put_decimal(out, (uint64_t)answer->status);
    *out++ = ' ';
    out = tornado__put(out, reason, reason_len);
    return TORNADO__PUT(out, "\r\n");
}

/* Queues status line and headers, with room for `body` more bytes right behind them, which the caller may fill.
   NULL when memory is short. */
static tornado__chunk *tornado__http1_start(tornado__message *message, const tornado__answer *answer, size_t body)
{
    tornado__http1 *connection = message->connection;
    const char *reason =
        answer->reason || answer->status == 200 ? answer->reason : tornado_http_reason(answer->status);
    size_t reason_len = reason ? strlen(reason) : 0, size = 256 + reason_len + answer->etag_len + body;
    tornado__http1_stamp(message->host);
    for (size_t i = 0; i < answer->headers.count; i++)
        size += answer->headers.items[i].name_len + answer->headers.items[i].value_len + 4;
    tornado__chunk *chunk = tornado__iostream_reserve(&connection->stream, size);
    if (!chunk)
        return NULL;
    char *out = tornado__put_status(chunk->end, answer, reason, reason_len);
    out = tornado__put_stamp(message->host, out, answer->defaults);
    for (size_t i = 0; i < answer->headers.count; i++) {
        out = tornado__put(out, answer->headers.items[i].name, answer->headers.items[i].name_len);
        out = TORNADO__PUT(out, ": ");
        out = tornado__put(out, answer->headers.items[i].value, answer->headers.items[i].value_len);
        out = TORNADO__PUT(out, "\r\n");
    }
    if (answer->etag) {
        out = TORNADO__PUT(out, "Etag: ");
        out = tornado__put(out, answer->etag, answer->etag_len);
        out = TORNADO__PUT(out, "\r\n");
    }
    bool bodiless = tornado__status_bodiless(answer->status);
    message->no_body = message->head || bodiless;
    message->out_left = answer->content_length < 0 ? UINT64_MAX : (uint64_t)answer->content_length;
    if (answer->content_length >= 0) {
        if (!bodiless) {
            out = TORNADO__PUT(out, "Content-Length: ");
            out = tornado__put_decimal(out, (uint64_t)answer->content_length);
            out = TORNADO__PUT(out, "\r\n");
        }
    } else if (!message->http10 && !bodiless) {
        message->chunked = true;
        out = TORNADO__PUT(out, "Transfer-Encoding: chunked\r\n");
    } else if (!message->no_body) {
        message->keep_alive = false; /* the end of the connection is the end of the body */
    }
    if (!message->keep_alive || message->reading || message->host->closing) {
        message->keep_alive = false;
        out = TORNADO__PUT(out, "Connection: close\r\n");
    } else if (message->http10) {
        out = TORNADO__PUT(out, "Connection: Keep-Alive\r\n");
    }
    chunk->end = TORNADO__PUT(out, "\r\n");
    message->started = true;
    return chunk;
}

/* A part of the body. */
static bool tornado__http1_write(tornado__message *message, const char *data, size_t len)
{
    tornado_iostream *stream = &message->connection->stream;
    if (message->no_body || len == 0)
        return true;
    if (message->chunked) {
        tornado__chunk *chunk = tornado__iostream_reserve(stream, 20);
        char digits[16];
        int count = 0;
        if (!chunk)
            return false;
        for (size_t rest = len; rest; rest >>= 4)
            digits[count++] = "0123456789abcdef"[rest & 15];
        while (count > 0)
            *chunk->end++ = digits[--count];
        chunk->end = TORNADO__PUT(chunk->end, "\r\n");
        return tornado__iostream_queue(stream, data, len) && tornado__iostream_queue(stream, "\r\n", 2);
    }
    if (message->out_left != UINT64_MAX) {
        if (len > message->out_left)
            return tornado__fail(TORNADO_ERR_INVALID, 0, "Tried to write more data than Content-Length");
        message->out_left -= len;
    }
    return tornado__iostream_queue(stream, data, len);
}

static void tornado__http1_continue(tornado__task *task, tornado_ioloop *loop);

/* Has the connection go on, before the loop waits, unless it is at it already. */
static void tornado__http1_queue(tornado__http1 *connection)
{
    if (connection->feeding || connection->queued)
        return;
    connection->queued = true;
    tornado__iostream_retain(&connection->stream);
    tornado__ioloop_before_wait(connection->host->loop, &connection->task);
}

static void tornado__message_flushed(tornado__message *message, const tornado_error *error)
{
    tornado_future *flushed = message->flushed;
    if (!flushed)
        return;
    message->flushed = NULL;
    if (error) {
        tornado_future_set_error(flushed, error);
        flushed->observed = true; /* on_connection_close tells as well */
    } else {
        tornado_future_set_result(flushed, NULL, NULL);
    }
    tornado_future_release(flushed);
}

/* Parts a message from its connection: it is answered, or the answer has nowhere to go. */
static void tornado__message_detach(tornado__message *message)
{
    tornado__http1 *connection = message->connection;
    message->connection = NULL;
    message->finished = true;
    message->ended = message->host->loop->now;
    connection->message = NULL;
    tornado__message_release(message);
}

/* Closes a connection in the middle of an answer, for the last failure. Complete answers before it leave first. */
static void tornado__http1_break(tornado__http1 *connection)
{
    tornado_error cause = tornado__thread.last;
    if (!connection->stream.closed && tornado__iostream_flush(&connection->stream))
        tornado__iostream_shut(&connection->stream, &cause);
    tornado__thread.last = cause;
}

/* The end of an answer. False: it was shorter than announced, and the connection is closed. */
static bool tornado__http1_finish(tornado__message *message)
{
    tornado__http1 *connection = message->connection;
    if (message->chunked && !message->no_body && !tornado__iostream_queue(&connection->stream, "0\r\n\r\n", 5)) {
        tornado__http1_break(connection);
        return false;
    }
    if (TORNADO__UNLIKELY(message->out_left != UINT64_MAX && message->out_left > 0 && !message->no_body)) {
        tornado__fail(TORNADO_ERR_INVALID, 0, "Tried to write %llu bytes less than Content-Length",
                      (unsigned long long)message->out_left);
        tornado__http1_break(connection);
        return false;
    }
    tornado__message_flushed(message, NULL);
    if (!message->keep_alive || message->reading) {
        connection->closing = true;
        connection->linger = message->reading;
    }
    tornado__http1_queue(connection);
    tornado__message_detach(message);
    return true;
}

/* Answers what cannot be served, and closes. */
static void tornado__http1_refuse(tornado__http1 *connection, int status, const char *why)
{
    tornado_iostream *stream = &connection->stream;
    const char *reason = tornado_http_reason(status);
    tornado_gen_log(TORNADO_LOG_INFO, "Malformed HTTP request from %s: %s (%d)",
                    connection->ip_allocated ? connection->ip.allocated : connection->ip.text, why, status);
    connection->closing = connection->linger = true;
    tornado__http1_stamp(connection->host);
    tornado__chunk *chunk = tornado__iostream_reserve(stream, 384);
    if (!chunk) {
        tornado__iostream_shut(stream, &tornado__thread.last);
        return;
    }
    tornado__answer answer = {.status = status};
    char *out = tornado__put_status(chunk->end, &answer, reason, strlen(reason));
    out = tornado__put_stamp(connection->host, out, TORNADO__SEND_SERVER | TORNADO__SEND_DATE);
    chunk->end = TORNADO__PUT(out, "Content-Length: 0\r\nConnection: close\r\n\r\n");
}

/* Refuses the request that is being read. */
static void tornado__message_refuse(tornado__message *message, int status, const char *why)
{
    tornado__http1 *connection = message->connection;
    if (message->started) { /* it is being answered while its body comes in: no other answer can follow */
        tornado__fail(TORNADO_ERR_CLOSED, 0, "%s", why);
        tornado__http1_break(connection);
    } else {
        tornado__http1_refuse(connection, status, why);
    }
    if (connection->message == message) {
        tornado__iostream_retain(&connection->stream);
        if (message->host->delegate.on_connection_close)
            message->host->delegate.on_connection_close(&message->request);
        if (connection->message == message)
            tornado__message_detach(message);
        tornado__iostream_release(&connection->stream);
    }
}

/* ---- reading a body ---- */

static bool tornado__message_collect(tornado__message *message, const char *data, size_t len)
{
    message->received += len;
    if (message->received > message->host->max_body_size) {
        tornado__message_refuse(message, 413, "the body is too large");
        return false;
    }
    if (message->host->delegate.data_received) {
        tornado_bytes chunk = {data, len};
        tornado__http1 *connection = message->connection;
        message->host->delegate.data_received(&message->request, chunk);
        return connection->message == message; /* else it was answered, and may be freed */
    }
    if (!tornado_buffer_append(&message->body, data, len)) {
        tornado__message_refuse(message, 503, "out of memory for the body");
        return false;
    }
    return true;
}

/* The request is complete. */
static void tornado__message_complete(tornado__message *message)
{
    message->reading = false;
    if (message->body.len) {
        message->request.body.data = message->body.data;
        message->request.body.len = message->body.len;
    }
    if (message->host->delegate.finish)
        message->host->delegate.finish(&message->request);
}

/* The length of a line with its CRLF; 0: not complete; -1: without a CR, or longer than `max`. */
static ptrdiff_t tornado__line_length(const char *data, size_t len, size_t max)
{
    const char *newline = memchr(data, '\n', len < max ? len : max);
    if (!newline)
        return len >= max ? -1 : 0;
    return newline > data && newline[-1] == '\r' ? newline + 1 - data : -1;
}

/* "1a2b;name=value\r\n". Returns what it used; 0: not complete, or refused. RFC 9112 section 7.1. */
static size_t tornado__chunk_size(tornado__message *message, const char *data, size_t len)
{
    ptrdiff_t line = tornado__line_length(data, len, TORNADO__CHUNK_LINE_MAX);
    uint64_t size = 0;
    ptrdiff_t at = 0;
    for (; line > 0 && at < line - 2; at++) {
        int c = (unsigned char)data[at];
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0)
            break;
        if (size >> 59) {
            tornado__message_refuse(message, 413, "a chunk is too large");
            return 0;
        }
        size = size << 4 | (unsigned)digit;
    }
    if (line == 0)
        return 0;
    ptrdiff_t extension = at;
    while (line > 0 && extension < line - 2 && (data[extension] == ' ' || data[extension] == '\t'))
        extension++;
    bool valid = line > 0 && at > 0 && (extension == line - 2 ? extension == at : data[extension] == ';');
    for (ptrdiff_t i = extension; valid && i < line - 2; i++)
        valid = !tornado__is(data[i], TORNADO__CONTROL);
    if (!valid) {
        tornado__message_refuse(message, 400, "a chunk's size is malformed");
        return 0;
    }
    if (size > message->host->max_body_size - message->received) {
        tornado__message_refuse(message, 413, "the body is too large");
        return 0;
    }
    message->left = size;
    message->body_state = size ? TORNADO__BODY_CHUNK : TORNADO__BODY_TRAILERS;
    return (size_t)line;
}

/* Trailers up to the blank line. Returns what it used. */
static size_t tornado__trailers(tornado__message *message, const char *data, size_t len)
{
    unsigned *scanned = &message->connection->scanned;
    if (len >= 2 && data[0] == '\r' && data[1] == '\n') {
        tornado__message_complete(message);
        return 2;
    }
    if (len < 2 && (len == 0 || data[0] == '\r'))
        return 0;
    ptrdiff_t length = tornado__head_length(data, len, scanned);
    if (length == 0 && len <= message->host->max_header_size)
        return 0;
    *scanned = 0;
    char *copy = length > 0 ? tornado_arena_alloc(&message->arena, (size_t)length + 16) : NULL;
    int status = length < 0                                                       ? 400
                 : (size_t)length > message->host->max_header_size || length == 0 ? 431
                 : copy                                                           ? 0
                                                                                  : 503;
    if (!status) {
        memcpy(copy, data, (size_t)length);
        memset(copy + length, 0, 16);
        status = tornado__parse_headers(message, copy, copy + length - 2, &message->request.trailers, true);
    }
    if (status) {
        tornado__message_refuse(message, status, "the trailers are malformed or too large");
        return 0;
    }
    tornado__message_complete(message);
    return (size_t)length;
}

/* Takes what it can of a body. Returns what it used; 0: it needs more, or the request was refused. */
static size_t tornado__message_body(tornado__message *message, const char *data, size_t len)
{
    switch (message->body_state) {
    case TORNADO__BODY_CHUNK_SIZE:
        return tornado__chunk_size(message, data, len);
    case TORNADO__BODY_CHUNK_END:
        if (len < 2 && (len == 0 || data[0] == '\r'))
            return 0;
        if (data[0] != '\r' || data[1] != '\n') {
            tornado__message_refuse(message, 400, "a chunk is longer than its size");
            return 0;
        }
        message->body_state = TORNADO__BODY_CHUNK_SIZE;
        return 2;
    case TORNADO__BODY_TRAILERS:
        return tornado__trailers(message, data, len);
    default:
        break;
    }
    size_t part = len < message->left ? len : (size_t)message->left;
    message->left -= part;
    if (!tornado__message_collect(message, data, part))
        return 0;
    if (message->left == 0) {
        if (message->body_state == TORNADO__BODY_CHUNK)
            message->body_state = TORNADO__BODY_CHUNK_END;
        else
            tornado__message_complete(message);
    }
    return part;
}

/* ---- the connection ---- */

static TORNADO__INLINE void tornado__http1_set_timer(tornado__http1 *connection, int64_t when)
{
    if (TORNADO__UNLIKELY(!tornado__timer_set(connection->host->loop, &connection->timer, when)))
        tornado__iostream_shut(&connection->stream, &tornado__thread.last);
}

/* Decides what a complete head leads to. */
static void tornado__http1_begin(tornado__http1 *connection, const char *head, size_t len, bool body_at_hand)
{
    tornado__http1_host *host = connection->host;
    int status = 0;
    tornado__message *message = tornado__message_new(connection, head, len, &status);
    connection->in_head = false;
    if (!message)
        status = 503;
    else if (!status && message->has_length && message->left > host->max_body_size)
        status = 413;
    if (TORNADO__UNLIKELY(status)) {
        tornado__http1_refuse(connection, status,
                              status == 413 ? "Content-Length is too large" : "the head cannot be accepted");
        if (message)
            tornado__message_release(message);
        return;
    }
    message->announced = true;
    message->connection = connection;
    connection->message = message;
    message->reading = message->is_chunked || message->left > 0;
    message->body_state = message->is_chunked ? TORNADO__BODY_CHUNK_SIZE : TORNADO__BODY_LENGTH;
    if (host->delegate.headers_received)
        host->delegate.headers_received(&message->request, host->arg);
    if (connection->message != message) /* it was answered already */
        return;
    if (!message->reading) {
        tornado__message_complete(message);
    } else {
        if (message->expects && !message->started && !body_at_hand &&
            tornado__iostream_queue(&connection->stream, "HTTP/1.1 100 Continue\r\n\r\n", 25) &&
            !tornado__iostream_flush(&connection->stream))
            return; /* closed, and the message is gone */
        if (message->has_length && !host->delegate.data_received)
            tornado_buffer_reserve(&message->body, message->left < TORNADO__HTTP_BACKLOG ? (size_t)message->left
                                                                                         : TORNADO__HTTP_BACKLOG);
        tornado__http1_set_timer(connection, tornado__add_ns(host->loop->now, host->body_timeout >= 0
                                                                                  ? host->body_timeout
                                                                                  : host->idle_timeout));
    }
}

/* Looks for a head. Returns what it used; 0: it is not complete, or was refused. */
static size_t tornado__http1_head(tornado__http1 *connection, const char *data, size_t len)
{
    tornado__http1_host *host = connection->host;
    if (TORNADO__UNLIKELY(*data == '\r' && len > 1 && data[1] == '\n')) {
        connection->in_head = false;
        connection->scanned = 0; /* empty lines before a request are to be ignored: RFC 9112 section 2.2 */
        return 2;
    }
    ptrdiff_t length = tornado__head_length(data, len, &connection->scanned);
    if (TORNADO__LIKELY(length > 0 && (size_t)length <= host->max_header_size)) {
        connection->scanned = 0;
        tornado__http1_begin(connection, data, (size_t)length, len > (size_t)length);
        return (size_t)length;
    }
    if (length < 0) {
        tornado__http1_refuse(connection, 400, "a line ends without CR");
    } else if (length > 0 || len > host->max_header_size) {
        bool in_line = !memchr(data, '\n', len < host->max_header_size ? len : host->max_header_size);
        tornado__http1_refuse(connection, in_line ? 414 : 431, "the head is too large");
    } else if (!connection->in_head) {
        connection->in_head = true;
        tornado__http1_set_timer(connection, tornado__add_ns(host->loop->now, host->header_timeout));
    }
    return 0;
}

/* The end of a connection that has refused something: what the peer still sends is read and dropped for a while, or
   it might never see the answer (RFC 9112 section 9.6). */
static void tornado__http1_linger(tornado__http1 *connection)
{
    connection->lingering = true;
    connection->scanned = 0;
    connection->stream.paused = connection->stream.unbuffered_ready = false;
    if (shutdown(connection->stream.fd, SHUT_WR) != 0 || !tornado__iostream_watch(&connection->stream))
        tornado__iostream_shut(&connection->stream, NULL);
    else
        tornado__http1_set_timer(connection, tornado__add_ns(connection->host->loop->now, TORNADO__LINGER_NS));
}

/* After requests were taken: send the answers, close if that is due, set the timer for what comes next. */
static TORNADO__INLINE void tornado__http1_settle(tornado__http1 *connection)
{
    tornado_iostream *stream = &connection->stream;
    tornado__http1_host *host = connection->host;
    tornado__message *message = connection->message;
    if (stream->closed || (stream->out && !tornado__iostream_flush(stream)))
        return;
    if (TORNADO__UNLIKELY(connection->closing) && !stream->out) {
        if (!connection->linger)
            tornado__iostream_shut(stream, NULL);
        else if (!connection->lingering)
            tornado__http1_linger(connection);
        return;
    }
    if (message && message->flushed && !stream->out)
        tornado__message_flushed(message, NULL);
    if (stream->out || (!message && !connection->in_head) ||
        (message && message->reading && host->body_timeout < 0))
        tornado__http1_set_timer(connection, host->loop->now + host->idle_timeout);
    else if (message && !message->reading)
        tornado__http1_set_timer(connection, INT64_MAX); /* it takes as long as its handler takes */
}

static size_t tornado__http1_data(tornado_iostream *stream, char *data, size_t len)
{
    tornado__http1 *connection = (tornado__http1 *)(void *)stream;
    size_t used = 0;
    if (TORNADO__UNLIKELY(connection->closing)) {
        connection->scanned += len < TORNADO__LINGER_BYTES ? (unsigned)len : TORNADO__LINGER_BYTES;
        if (connection->lingering && connection->scanned >= TORNADO__LINGER_BYTES)
            tornado__iostream_shut(stream, NULL);
        return len;
    }
    connection->feeding = true;
    while (used < len && !stream->closed && !connection->closing) {
        tornado__message *message = connection->message;
        size_t part;
        if (!message) {
            if (TORNADO__UNLIKELY(stream->out && stream->out->next) &&
                (!tornado__iostream_flush(stream) || (stream->out && stream->out->next)))
                break; /* the client does not read */
            part = tornado__http1_head(connection, data + used, len - used);
        } else if (message->reading) {
            part = tornado__message_body(message, data + used, len - used);
        } else {
            break; /* one at a time */
        }
        if (!part)
            break;
        used += part;
    }
    connection->feeding = false;
    if (TORNADO__UNLIKELY(len - used >= TORNADO__HTTP_BACKLOG) &&
        (connection->message ? !connection->message->reading : stream->out != NULL))
        stream->paused = true; /* until the answer is finished, or the client has read some */
    tornado__http1_settle(connection);
    return stream->closed || connection->closing ? len : used;
}

/* Takes up what was left: the next requests, or the answer to send. */
static void tornado__http1_resume(tornado__http1 *connection)
{
    tornado_iostream *stream = &connection->stream;
    if (stream->closed)
        return;
    if (stream->paused) {
        stream->paused = stream->unbuffered_ready = false;
        if (!tornado__iostream_watch_or_shut(stream))
            return;
    }
    if (stream->in && !connection->closing)
        tornado__iostream_feed(stream);
    else
        tornado__http1_settle(connection);
}

static void tornado__http1_continue(tornado__task *task, tornado_ioloop *loop)
{
    tornado__http1 *connection = TORNADO__CONTAINER(task, tornado__http1, task);
    connection->queued = false;
    if (!loop->closed)
        tornado__http1_resume(connection);
    tornado__iostream_release(&connection->stream);
}

static void tornado__http1_drained(tornado_iostream *stream)
{
    tornado__http1_resume((tornado__http1 *)(void *)stream);
}

static void tornado__http1_closed(tornado_iostream *stream, const tornado_error *cause)
{
    tornado__http1 *connection = (tornado__http1 *)(void *)stream;
    tornado__message *message = connection->message;
    (void)cause;
    tornado__timer_clear(connection->host->loop, &connection->timer);
    if (message) {
        connection->message = NULL;
        message->connection = NULL;
        message->ended = connection->host->loop->now;
        tornado__fail(TORNADO_ERR_CLOSED, 0, "Stream is closed");
        tornado__message_flushed(message, tornado_last_error());
        if (message->host->delegate.on_connection_close)
            message->host->delegate.on_connection_close(&message->request);
        tornado__message_release(message);
    }
    tornado__link_remove(&connection->link);
    connection->host->count--;
    tornado__iostream_release(stream); /* the server's */
}

static void tornado__http1_free(tornado_iostream *stream)
{
    tornado__http1 *connection = (tornado__http1 *)(void *)stream;
    if (connection->ip_allocated)
        TORNADO_FREE(connection->ip.allocated);
    TORNADO_FREE(connection);
}

static const tornado__stream_owner tornado__http1_owner = {
    .data = tornado__http1_data, .closed = tornado__http1_closed, .drained = tornado__http1_drained,
    .free = tornado__http1_free};

static void tornado__http1_late(tornado__timer *timer, tornado_ioloop *loop)
{
    tornado__http1 *connection = TORNADO__CONTAINER(timer, tornado__http1, timer);
    tornado_iostream *stream = &connection->stream;
    (void)loop;
    tornado__iostream_retain(stream);
    if (connection->closing || stream->out || (!connection->in_head && !connection->message)) {
        tornado__iostream_shut(stream, NULL);
    } else if (connection->message && connection->message->reading) {
        tornado__message_refuse(connection->message, 408, "the body took too long");
    } else if (connection->in_head) {
        tornado__http1_refuse(connection, 408, "the head took too long");
    } else {
        tornado__http1_set_timer(connection, INT64_MAX);
    }
    tornado__http1_settle(connection);
    tornado__iostream_release(stream);
}

/* Serves a connection that was accepted. Takes the fd over. */
static void tornado__http1_serve(tornado__http1_host *host, int fd, const tornado_address *address)
{
    char ip[46];
    tornado__http1 *connection = TORNADO_MALLOC(sizeof *connection);
    if (!connection) {
        tornado__nomem();
        close(fd);
        return;
    }
    memset(connection, 0, sizeof *connection);
    tornado__iostream_init(&connection->stream, host->loop, fd, &tornado__http1_owner);
    connection->host = host;
    connection->timer.fire = tornado__http1_late;
    connection->task.run = tornado__http1_continue;
    tornado__address_host(address, ip);
    connection->ip_allocated = strlen(ip) >= sizeof connection->ip.text;
    if (!connection->ip_allocated)
        strcpy(connection->ip.text, ip);
    else if ((connection->ip.allocated = TORNADO_MALLOC(sizeof ip)) != NULL)
        memcpy(connection->ip.allocated, ip, sizeof ip);
    tornado__link_append(&host->connections, &connection->link);
    host->count++;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bool memory = !connection->ip_allocated || connection->ip.allocated;
    if (!memory ||
        !tornado__timer_set(host->loop, &connection->timer, tornado__add_ns(host->loop->now, host->idle_timeout)) ||
        !tornado__iostream_watch(&connection->stream))
        tornado__iostream_shut(&connection->stream, &tornado__thread.last);
}

/* ---- the public way to answer ---- */

/* A reason phrase that may be sent, RFC 9112 section 4; any other becomes "Unknown". */
static const char *tornado__safe_reason(const char *reason)
{
    for (const char *at = reason; at && *at; at++)
        if (tornado__is(*at, TORNADO__CONTROL) || (unsigned char)*at >= 0x80)
            return "Unknown";
    return reason;
}

/* Whether a header may be sent. */
static bool tornado__header_valid(const char *name, size_t name_len, const char *value, size_t value_len)
{
    if (!tornado__is_token(name, name_len))
        return tornado__fail(TORNADO_ERR_INVALID, 0, "not a header's name: \"%.60s\"", name);
    for (size_t i = 0; i < value_len; i++)
        if (tornado__is(value[i], TORNADO__CONTROL))
            return tornado__fail(TORNADO_ERR_INVALID, 0, "the value of the header %.60s has a control character",
                                 name);
    return true;
}

static tornado__message *tornado__answerable(tornado_http_request *request, bool started, const char *what)
{
    tornado__message *message = (tornado__message *)(void *)request;
    if (message->finished)
        tornado__fail(TORNADO_ERR_STATE, 0, "%s: the answer is finished", what);
    else if (!message->connection)
        tornado__fail(TORNADO_ERR_CLOSED, 0, "%s: the client is gone", what);
    else if (message->started != started)
        tornado__fail(TORNADO_ERR_STATE, 0, "%s: the headers were %s", what,
                      started ? "not sent yet" : "sent already");
    else
        return message;
    return NULL;
}

TORNADO_API bool tornado_http_request_write_headers(tornado_http_request *request,
                                                    const tornado_http_response_start *start)
{
    tornado__message *message = tornado__answerable(request, false, "tornado_http_request_write_headers");
    tornado__answer answer = {.status = start->status, .reason = tornado__safe_reason(start->reason),
                              .headers = start->headers, .content_length = start->content_length,
                              .defaults = TORNADO__SEND_SERVER | TORNADO__SEND_DATE};
    if (!message)
        return false;
    if (start->status < 200 || start->status > 999 || start->content_length < TORNADO_NONE)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "not the status of an answer: %d", start->status);
    if (!answer.reason && !tornado_http_reason(start->status))
        answer.reason = "Unknown";
    for (size_t i = 0; i < start->headers.count; i++) {
        const tornado_http_header *header = &start->headers.items[i];
        if (!tornado__header_valid(header->name, header->name_len, header->value, header->value_len))
            return false;
        if (TORNADO__IS_WORD(header->name, header->name_len, "server"))
            answer.defaults &= ~(unsigned)TORNADO__SEND_SERVER;
        else if (TORNADO__IS_WORD(header->name, header->name_len, "date"))
            answer.defaults &= ~(unsigned)TORNADO__SEND_DATE;
        else if (TORNADO__IS_WORD(header->name, header->name_len, "content-length") ||
                 TORNADO__IS_WORD(header->name, header->name_len, "transfer-encoding") ||
                 TORNADO__IS_WORD(header->name, header->name_len, "connection"))
            return tornado__fail(TORNADO_ERR_INVALID, 0, "%.40s is not set as a header here", header->name);
    }
    if (tornado__http1_start(message, &answer, 0))
        return true;
    tornado__http1_break(message->connection);
    return false;
}

TORNADO_API bool tornado_http_request_write(tornado_http_request *request, tornado_bytes data)
{
    tornado__message *message = tornado__answerable(request, true, "tornado_http_request_write");
    if (!message)
        return false;
    if (tornado__http1_write(message, data.data, data.len)) {
        tornado__http1_queue(message->connection);
        return true;
    }
    tornado__http1_break(message->connection);
    return false;
}

TORNADO_API bool tornado_http_request_finish(tornado_http_request *request)
{
    tornado__message *message = tornado__answerable(request, true, "tornado_http_request_finish");
    return message && tornado__http1_finish(message);
}

/*============================================================================
 * section: httpserver (private)
 * Listening sockets that feed a host of connections.
 *============================================================================*/

struct tornado_httpserver {
    tornado__http1_host host; /* first: what connections know */
    tornado__service service;
    tornado__listener *listeners;
    int max_connections;
    bool told; /* that there are too many connections */
};

static void tornado__httpserver_accept(int fd, const tornado_address *address, void *arg)
{
    tornado_httpserver *server = arg;
    if (server->max_connections > 0 && server->host.count >= (size_t)server->max_connections) {
        if (!server->told)
            tornado_gen_log(TORNADO_LOG_WARNING, "the limit of %d connections is reached", server->max_connections);
        server->told = true;
        close(fd);
        return;
    }
    server->told = false;
    tornado__http1_serve(&server->host, fd, address);
}

static void tornado__httpserver_delete(tornado__http1_host *host)
{
    tornado_ioloop *loop = host->loop;
    TORNADO_FREE(TORNADO__CONTAINER(host, tornado_httpserver, host));
    tornado__ioloop_let_go(loop);
}

static int64_t tornado__timeout_option(double seconds, int64_t fallback)
{
    int64_t ns;
    if (seconds == 0 || !tornado__seconds_to_ns(seconds, &ns))
        return fallback;
    return ns < 0 ? INT64_MAX / 4 : ns;
}

static void tornado__httpserver_stop_service(tornado__service *service)
{
    tornado_httpserver *server = TORNADO__CONTAINER(service, tornado_httpserver, service);
    tornado_httpserver_stop(server);
    server->host.closing = true; /* answers say "Connection: close" from now on */
    for (tornado__link *link = server->host.connections.next, *next; link != &server->host.connections;
         link = next) {
        tornado__http1 *connection = TORNADO__CONTAINER(link, tornado__http1, link);
        next = link->next;
        if (!connection->message && !connection->stream.in && !connection->stream.out)
            tornado__iostream_shut(&connection->stream, NULL);
    }
}

static size_t tornado__httpserver_busy(const tornado__service *service)
{
    return TORNADO__CONTAINER(service, tornado_httpserver, service)->host.count;
}

TORNADO_API tornado_httpserver *tornado_httpserver_new(const tornado_http_delegate *delegate, void *arg,
                                                       const tornado_httpserver_options *options)
{
    static const tornado_httpserver_options defaults;
    const tornado_httpserver_options *o = options ? options : &defaults;
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_httpserver *server = loop ? TORNADO_MALLOC(sizeof *server) : NULL;
    if (!server) {
        tornado__nomem();
        return NULL;
    }
    memset(server, 0, sizeof *server);
    tornado__http1_host *host = &server->host;
    host->loop = loop;
    tornado__ioloop_hold(loop);
    host->delegate = *delegate;
    host->arg = arg;
    host->references = 1;
    host->free = tornado__httpserver_delete;
    host->no_keep_alive = o->http.no_keep_alive;
    host->max_header_size = o->http.max_header_size ? o->http.max_header_size : 65536;
    host->max_body_size = o->http.max_body_size > 0    ? (uint64_t)o->http.max_body_size
                          : o->http.max_body_size == 0 ? 104857600
                                                       : UINT64_MAX / 2;
    host->idle_timeout = tornado__timeout_option(o->http.idle_connection_timeout, 3600 * INT64_C(1000000000));
    host->header_timeout = tornado__timeout_option(o->http.header_timeout, 60 * INT64_C(1000000000));
    host->body_timeout = o->http.body_timeout > 0 ? tornado__timeout_option(o->http.body_timeout, -1) : -1;
    tornado__link_init(&host->connections);
    server->max_connections = o->max_connections;
    server->service.stop = tornado__httpserver_stop_service;
    server->service.busy = tornado__httpserver_busy;
    tornado__link_append(&loop->services, &server->service.link);
    return server;
}

TORNADO_API bool tornado_httpserver_listen(tornado_httpserver *server, int port,
                                           const tornado_bind_options *options)
{
    return tornado__listen(&server->listeners, port, options, tornado__httpserver_accept, server);
}

TORNADO_API bool tornado_httpserver_add_socket(tornado_httpserver *server, int fd)
{
    return tornado__listeners_add(&server->listeners, &fd, 1, tornado__httpserver_accept, server);
}

TORNADO_API bool tornado_httpserver_add_sockets(tornado_httpserver *server, const tornado_sockets *sockets)
{
    return tornado__listeners_add(&server->listeners, sockets->fds, sockets->count, tornado__httpserver_accept,
                                  server);
}

TORNADO_API int tornado_httpserver_port(const tornado_httpserver *server)
{
    return tornado__listeners_port(server->listeners);
}

TORNADO_API size_t tornado_httpserver_connections(const tornado_httpserver *server)
{
    return server->host.count;
}

TORNADO_API void tornado_httpserver_stop(tornado_httpserver *server)
{
    tornado__listeners_close(&server->listeners);
}

TORNADO_API void tornado_httpserver_close_all_connections(tornado_httpserver *server)
{
    while (!tornado__link_empty(&server->host.connections))
        tornado__iostream_shut(&TORNADO__CONTAINER(server->host.connections.next, tornado__http1, link)->stream,
                               NULL);
}

TORNADO_API void tornado_httpserver_free(tornado_httpserver *server)
{
    if (!server)
        return;
    tornado_httpserver_stop(server);
    tornado_httpserver_close_all_connections(server);
    tornado__link_remove(&server->service.link);
    tornado__http1_host_release(&server->host);
}

/*============================================================================
 * section: routing (private)
 * Rules are flattened into routes, which keep their order; nested ones know what has to match outside of them.
 *
 * Two tables find the routes that may match a path: one of those that are plain text, by the whole path, and one of
 * the patterns, by what every match of the pattern begins with, for each length that such a beginning has. Of what
 * they find the route with the lowest number that matches is the first in the order of the rules.
 *============================================================================*/

enum {
    TORNADO__ROUTE_PREFIX_LENGTHS = 33, /* of patterns: 0 to 32, the room that a tornado_regex has for it */
    TORNADO__ROUTE_SPANS = 32,          /* the whole match and the groups of a path */
    TORNADO__RULES_DEPTH = 16
};

/* What has to match for a rule's nested rules to be tried. */
typedef struct tornado__route_guard {
    const struct tornado__route_guard *outer;
    const tornado_regex *path, *host; /* NULL: any */
    bool default_host;                /* host is compared with the application's default one */
} tornado__route_guard;

typedef struct tornado__route {
    const char *path;           /* as the rule has it; NULL: any */
    const tornado_regex *regex; /* NULL: the path is plain text, or any */
    const char *key;            /* what it is found by: the path, or what matches of the pattern begin with */
    size_t key_len;
    bool pattern;               /* it is in the table of patterns */
    const tornado__route_guard *guard;
    const tornado_handler_class *handler; /* flattened */
    void *data;
    const char *name;
    const struct tornado__route *next; /* the next of those with the same key */
} tornado__route;

typedef struct tornado__router {
    tornado__route *routes;
    int count, capacity, host_count; /* those of add_handlers come first */
    const tornado__route **slots; /* the first of each chain; open addressing */
    size_t mask;
    uint64_t lengths;  /* bits: the lengths of the patterns' beginnings */
    bool plain, hosts; /* there are routes of plain text; a guard looks at the host */
    tornado_regex **regexes;
    int regexes_count, regexes_capacity;
} tornado__router;

/* Rules are the program's own, so no stranger can make them collide. */
static TORNADO__INLINE size_t tornado__route_hash(const char *path, size_t len, bool pattern)
{
    uint64_t head = pattern, tail = 0;
    if (TORNADO__LIKELY(len >= 8)) {
        memcpy(&head, path, 8);
        memcpy(&tail, path + len - 8, 8);
        head += pattern;
        for (size_t at = 8; at + 8 < len; at += 8) {
            uint64_t word;
            memcpy(&word, path + at, 8);
            head = (head ^ word) * UINT64_C(0x9e3779b97f4a7c15);
            head ^= head >> 32;
        }
    } else {
        for (size_t i = 0; i < len; i++)
            head = head << 8 | (unsigned char)path[i];
    }
    uint64_t hash = (head ^ len) * UINT64_C(0x9e3779b97f4a7c15) ^ tail;
    return (size_t)((hash * UINT64_C(0xd6e8feb86659fd93)) >> 32);
}

/* The first route with this key, or NULL. */
static TORNADO__INLINE const tornado__route *tornado__router_slot(const tornado__router *router, const char *key,
                                                                  size_t len, bool pattern)
{
    const tornado__route *route;
    for (size_t at = tornado__route_hash(key, len, pattern); (route = router->slots[at & router->mask]) != NULL;
         at++)
        if (route->key_len == len && route->pattern == pattern && memcmp(route->key, key, len) == 0)
            return route;
    return NULL;
}

/* What a request is matched by. */
typedef struct tornado__route_subject {
    tornado_bytes path;
    tornado_bytes host;         /* in lower case, without its port */
    tornado_bytes default_host; /* of the application; data NULL: there is none for this request */
    tornado_span *spans;        /* TORNADO__ROUTE_SPANS: where the groups of the route's path are */
    bool failed; /* memory is short for telling what matches: no rule does, lest one gets what another guards */
} tornado__route_subject;

static bool tornado__subject_matches(tornado__route_subject *subject, const tornado_regex *regex, tornado_bytes text,
                                     size_t spans)
{
    int found = tornado_regex_fullmatch(regex, text, 0, subject->spans, spans);
    subject->failed = subject->failed || found < 0;
    return found == 1;
}

static bool tornado__host_admits(const tornado__route_guard *guard, tornado__route_subject *subject)
{
    const tornado_bytes *host = guard->default_host ? &subject->default_host : &subject->host;
    if (host->data)
        return tornado__subject_matches(subject, guard->host, *host, 0);
    subject->failed = subject->failed || !guard->default_host;
    return false;
}

static bool tornado__guard_admits(const tornado__route_guard *guard, tornado__route_subject *subject)
{
    for (; guard; guard = guard->outer) {
        if (guard->host && !tornado__host_admits(guard, subject))
            return false;
        if (guard->path && !tornado__subject_matches(subject, guard->path, subject->path, 0))
            return false;
    }
    return true;
}

/* The first of the patterns that match and stand before `before`, or NULL. */
static TORNADO__COLD const tornado__route *tornado__router_find_pattern(const tornado__router *router,
                                                                        tornado__route_subject *subject,
                                                                        const tornado__route *before)
{
    const tornado__route *heads[TORNADO__ROUTE_PREFIX_LENGTHS];
    size_t count = 0;
    for (uint64_t lengths = router->lengths; lengths; lengths &= lengths - 1) {
        size_t len = (size_t)__builtin_ctzll(lengths);
        if (len <= subject->path.len &&
            (heads[count] = tornado__router_slot(router, subject->path.data, len, true)))
            count++;
    }
    while (count && !subject->failed) { /* the first in order of all chains */
        size_t first = 0;
        for (size_t i = 1; i < count; i++)
            if (heads[i] < heads[first])
                first = i;
        const tornado__route *route = heads[first];
        if (before && route > before)
            return NULL;
        size_t spans = route->regex ? tornado_regex_groups(route->regex) + 1 : 0;
        if ((!spans || tornado__subject_matches(subject, route->regex, subject->path, spans)) &&
            tornado__guard_admits(route->guard, subject))
            return route;
        heads[first] = route->next ? route->next : heads[--count];
    }
    return NULL;
}

/* The first route that matches, or NULL; also when subject->failed. */
static TORNADO__INLINE const tornado__route *tornado__router_find(const tornado__router *router,
                                                                  tornado__route_subject *subject)
{
    const tornado__route *plain =
        router->plain ? tornado__router_slot(router, subject->path.data, subject->path.len, false) : NULL;
    while (plain && TORNADO__UNLIKELY(plain->guard != NULL) && !tornado__guard_admits(plain->guard, subject))
        plain = subject->failed ? NULL : plain->next;
    if (TORNADO__LIKELY(!router->lengths))
        return plain;
    const tornado__route *pattern = tornado__router_find_pattern(router, subject, plain);
    return pattern ? pattern : subject->failed ? NULL : plain;
}

/* Fills the tables anew. */
static void tornado__router_fill(tornado__router *router)
{
    const tornado__route **slots = router->slots;
    for (size_t i = 0; i <= router->mask; i++)
        slots[i] = NULL;
    router->lengths = 0;
    router->plain = false;
    for (int i = router->count; i-- > 0;) { /* from the end, as each becomes the head of its chain */
        tornado__route *route = &router->routes[i];
        size_t at = tornado__route_hash(route->key, route->key_len, route->pattern);
        route->next = tornado__router_slot(router, route->key, route->key_len, route->pattern);
        while (slots[at & router->mask] && slots[at & router->mask] != route->next)
            at++;
        slots[at & router->mask] = route;
        if (route->pattern)
            router->lengths |= UINT64_C(1) << route->key_len;
        else
            router->plain = true;
    }
}

static bool tornado__router_index(tornado__router *router)
{
    size_t size = 4;
    while (size < (size_t)router->count * 2)
        size *= 2;
    const tornado__route **slots = TORNADO_MALLOC(size * sizeof *slots);
    if (!slots)
        return tornado__nomem();
    TORNADO_FREE(router->slots);
    router->slots = slots;
    router->mask = size - 1;
    tornado__router_fill(router);
    return true;
}

static bool tornado__path_is_plain(const char *path)
{
    size_t len = strcspn(path, "()[]{}*+?|^$.\\");
    return !path[len] || (path[len] == '$' && !path[len + 1]);
}

/* Compiles a pattern for the router, which owns it. */
static const tornado_regex *tornado__router_compile(tornado__router *router, const char *pattern, unsigned flags)
{
    void *regexes = router->regexes;
    if (!tornado__grow(&regexes, &router->regexes_capacity, router->regexes_count + 1, sizeof *router->regexes))
        return NULL;
    router->regexes = regexes;
    tornado_regex *regex = tornado_regex_new(pattern, flags);
    if (regex)
        router->regexes[router->regexes_count++] = regex;
    return regex;
}

static void tornado__router_free(tornado__router *router)
{
    while (router->regexes_count)
        tornado_regex_free(router->regexes[--router->regexes_count]);
    TORNADO_FREE(router->regexes);
    TORNADO_FREE(router->routes);
    TORNADO_FREE(router->slots);
}

/* Why a rule cannot be used, or NULL. */
static const char *tornado__rule_refused(const tornado_rule *rule)
{
    if (!rule->handler == !rule->rules)
        return rule->handler ? "has both a handler and rules" : "has no handler";
    if (rule->path && rule->path[0] != '/' && strcmp(rule->path, "*") != 0 && tornado__path_is_plain(rule->path))
        return "needs a path that begins with \"/\"";
    return NULL;
}

/* Sets a route's path. False with the reason. */
static bool tornado__route_set_path(tornado__router *router, tornado_arena *arena, tornado__route *route,
                                    const char *path)
{
    char *copy = path ? tornado_arena_strdup(arena, path) : NULL;
    if (path && !copy)
        return false;
    route->path = copy;
    route->pattern = !path || !(tornado__path_is_plain(path) || strcmp(path, "*") == 0);
    if (!route->pattern) {
        route->key = copy;
        route->key_len = strcspn(path, "$");
        copy[route->key_len] = '\0';
        return true;
    }
    if (path && !(route->regex = tornado__router_compile(router, path, TORNADO_REGEX_BYTES)))
        return false;
    route->key = path ? route->regex->prefix : "";
    route->key_len = path ? route->regex->prefix_len : 0;
    if (path && tornado_regex_groups(route->regex) >= TORNADO__ROUTE_SPANS)
        return tornado__fail(TORNADO_ERR_LIMIT, 0, "has more than %d groups", TORNADO__ROUTE_SPANS - 1);
    return true;
}

/* A guard for the rules inside a rule. NULL with the reason. */
static const tornado__route_guard *tornado__rule_guard(tornado__router *router, tornado_arena *arena,
                                                       const char *host, const char *path,
                                                       const tornado__route_guard *outer)
{
    tornado__route_guard *guard = tornado_arena_calloc(arena, 1, sizeof *guard);
    if (!guard || (host && !(guard->host = tornado__router_compile(router, host, TORNADO_REGEX_IGNORECASE))) ||
        (path && !(guard->path = tornado__router_compile(router, path, TORNADO_REGEX_BYTES))))
        return NULL;
    guard->outer = outer;
    router->hosts = router->hosts || host;
    return guard;
}

/* Finds the flattened class of a handler. NULL with the reason. */
typedef const tornado_handler_class *(*tornado__find_class)(void *arg, const tornado_handler_class *original);

/* Where rules go, and what their handlers are found by. */
typedef struct tornado__rule_target {
    tornado__router *router;
    tornado_arena *arena;
    int *at; /* the place of the next route */
    tornado__find_class find_class;
    void *arg;
} tornado__rule_target;

static bool tornado__router_add_rules(const tornado__rule_target *target, const tornado_rule *rules,
                                      const tornado__route_guard *guard, int depth);

/* Adds what one rule stands for. False with the reason. */
static bool tornado__router_add_rule(const tornado__rule_target *target, const tornado_rule *rule,
                                     const tornado__route_guard *guard, int depth)
{
    tornado__router *router = target->router;
    const char *refused = depth > TORNADO__RULES_DEPTH ? "is nested too deep" : tornado__rule_refused(rule);
    if (refused)
        return tornado__fail(TORNADO_ERR_INVALID, 0, "%s", refused);
    if (rule->host || rule->rules) {
        guard = tornado__rule_guard(router, target->arena, rule->host, rule->rules ? rule->path : NULL, guard);
        if (!guard)
            return false;
    }
    if (rule->rules)
        return tornado__router_add_rules(target, rule->rules, guard, depth + 1);
    void *routes = router->routes;
    tornado__route route = {.guard = guard, .data = rule->data};
    if (!tornado__grow(&routes, &router->capacity, router->count + 1, sizeof *router->routes))
        return false;
    router->routes = routes;
    if (!tornado__route_set_path(router, target->arena, &route, rule->path) ||
        !(route.handler = target->find_class(target->arg, rule->handler)) ||
        (rule->name && !(route.name = tornado_arena_strdup(target->arena, rule->name))))
        return false;
    tornado__route *place = &router->routes[*target->at];
    memmove(place + 1, place, (size_t)(router->count - *target->at) * sizeof *place);
    *place = route;
    router->count++;
    ++*target->at;
    return true;
}

/* The reason of a failure tells which rule it is. */
static bool tornado__router_add_rules(const tornado__rule_target *target, const tornado_rule *rules,
                                      const tornado__route_guard *guard, int depth)
{
    for (const tornado_rule *rule = rules;
         rule && (rule->path || rule->handler || rule->data || rule->name || rule->host || rule->rules); rule++)
        if (!tornado__router_add_rule(target, rule, guard, depth)) {
            if (depth > 1 && rule->rules)
                return false; /* the innermost and the outermost tell enough */
            tornado_error error = *tornado_last_error();
            return tornado__fail(error.code, error.sys_errno, "rule %d, \"%.80s\", %s", (int)(rule - rules) + 1,
                                 rule->path ? rule->path : "(no path)", error.message);
        }
    return true;
}

static bool tornado__is_alphanumeric(char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

/* Appends the path of a route, its groups replaced by arguments, which are quoted but for "/". False: as in
   Tornado, a pattern with more in it than plain groups cannot be reversed. */
static bool tornado__route_print(tornado_buffer *out, const tornado__route *route, tornado_arena *arena,
                                 const char *const *args)
{
    const char *at = route->path + (route->path[0] == '^');
    for (; *at; at++) {
        if (*at == '(') {
            char *quoted = tornado_url_escape(arena, *args++, false);
            at += 1 + strcspn(at + 1, "()");
            if (*at != ')' || !quoted)
                return !quoted;
            tornado_buffer_puts(out, quoted);
        } else if (*at == '\\') {
            if (tornado__is_alphanumeric(*++at))
                return false;
            tornado_buffer_append(out, at, 1);
        } else if (strchr("[]{}*+?|^)", *at) || (*at == '$' && at[1])) {
            return false;
        } else if (*at != '$') {
            tornado_buffer_append(out, at, 1);
        }
    }
    return true;
}

/* The URL of a route. NULL with the reason. */
static char *tornado__route_reverse(const tornado__route *route, tornado_arena *arena, const char *const *args,
                                    size_t count)
{
    tornado_buffer out = {NULL, 0, 0, false};
    size_t groups = route->regex ? tornado_regex_groups(route->regex) : 0, parentheses = 0;
    char *url = NULL;
    for (const char *at = route->path; at && *at; at++)
        parentheses += *at == '(';
    if (route->path && parentheses == groups && count != groups)
        tornado__fail(TORNADO_ERR_INVALID, 0, "the rule \"%.60s\" has %zu groups, not %zu", route->path, groups,
                      count);
    else if (!route->path || parentheses != groups || !tornado__route_print(&out, route, arena, args))
        tornado__fail(TORNADO_ERR_INVALID, 0, "the rule \"%.60s\" cannot be reversed",
                      route->path ? route->path : "(no path)");
    else if (out.failed || !(url = tornado_arena_memdup(arena, out.data ? out.data : "", out.len)))
        tornado__nomem();
    tornado_buffer_free(&out);
    return url;
}

/*============================================================================
 * section: web (private)
 * The application as a delegate of its servers; a request's life; the answer as it is put together.
 *
 * A request, its handler object and the answer are in the request's arena. The handler's functions run in one
 * coroutine, which holds the request; so does each that it spawns. The body is written into the arena first and
 * moves to memory of its own when it gets large; that memory is then handed to the stream, so a large body is not
 * copied.
 *============================================================================*/

#define TORNADO__FIRST_BODY 256  /* room that a handler starts with */
#define TORNADO__SMALL_BODY 8192 /* copied behind the headers; larger ones change hands */

enum {
    TORNADO__GET,
    TORNADO__HEAD,
    TORNADO__POST,
    TORNADO__DELETE,
    TORNADO__PATCH,
    TORNADO__PUT_METHOD,
    TORNADO__OPTIONS,
    TORNADO__METHODS
};

static const struct {
    char name[8]; /* filled up with zeros, so that names can be compared as numbers */
    size_t offset;
} tornado__methods[TORNADO__METHODS] = {
    {"GET", offsetof(tornado_handler_class, get)},         {"HEAD", offsetof(tornado_handler_class, head)},
    {"POST", offsetof(tornado_handler_class, post)},       {"DELETE", offsetof(tornado_handler_class, delete_)},
    {"PATCH", offsetof(tornado_handler_class, patch)},     {"PUT", offsetof(tornado_handler_class, put)},
    {"OPTIONS", offsetof(tornado_handler_class, options)},
};

typedef void (*tornado__handler_fn)(tornado_handler *self);

struct tornado_application {
    tornado_arena *arena; /* all but the servers is in it */
    size_t references;    /* the user's, and one of each handler */
    tornado__router router;
    tornado_settings settings;
    tornado_handler_class base;
    tornado__route fallback; /* for paths without a rule */
    struct tornado__flat_class *classes;
    struct tornado__app_server *servers;
    tornado_buffer json; /* reused by tornado_write_json */
};

/* What was read of a request's arguments and cookies, and the cookies to set: their names and the header's values.
   */
typedef struct tornado__form {
    tornado_arguments query, body, cookies, set_cookies;
    bool has_query, has_body, has_cookies;
} tornado__form;

typedef struct tornado__flat_class {
    struct tornado__flat_class *next;
    const tornado_handler_class *original;
    tornado_handler_class flat;
} tornado__flat_class;

typedef struct tornado__app_server {
    struct tornado__app_server *next;
    tornado_httpserver *server;
} tornado__app_server;

typedef struct tornado__response {
    tornado_handler *self;
    tornado__message *message;
    int status;
    const char *reason; /* NULL: the standard's */
    unsigned defaults;
    bool finished, sending_error, body_allocated, with_length;
    bool asynchronous; /* holds the message until it is finished */
    char method; /* TORNADO__GET...; TORNADO__METHODS: none of them */
    tornado_http_header *headers;
    size_t headers_count, headers_capacity;
    int64_t content_length;
    const char *etag; /* set by set_etag_header */
    char *body;
    size_t body_len, body_capacity;
    struct tornado__form *form;      /* arguments and cookies, once they are asked for or set */
    const tornado_regex *path;       /* the rule's; NULL: it has no groups */
    const tornado_bytes *path_sent;  /* its groups, as they were sent */
    const char **path_args;          /* decoded */
    char etag_text[36];
} tornado__response;

static TORNADO_NORETURN void tornado__raise_last(void)
{
    tornado__raise(tornado_last_error());
}

static void tornado__check_unfinished(const tornado_handler *self, const char *what)
{
    if (TORNADO__UNLIKELY(self->response->finished))
        tornado_raise(TORNADO_ERR_STATE, "Cannot %s() after finish()", what);
}

/* ---- output ---- */

static TORNADO__COLD char *tornado__body_grow(tornado__response *response, size_t len)
{
    size_t capacity = response->body_capacity ? response->body_capacity : TORNADO__FIRST_BODY;
    if (len > SIZE_MAX / 4 - response->body_len) {
        tornado__nomem();
        tornado__raise_last();
    }
    while (capacity < response->body_len + len)
        capacity *= 2;
    char *body;
    if (response->body_allocated)
        body = TORNADO_REALLOC(response->body, capacity);
    else if (capacity > 1024)
        body = TORNADO_MALLOC(capacity);
    else
        body = tornado_arena_alloc(&response->message->arena, capacity);
    if (!body) {
        tornado__nomem();
        tornado__raise_last();
    }
    if (!response->body_allocated && response->body_len)
        memcpy(body, response->body, response->body_len);
    response->body_allocated = response->body_allocated || capacity > 1024;
    response->body = body;
    response->body_capacity = capacity;
    return body + response->body_len;
}

static TORNADO__INLINE void tornado__body_append(tornado__response *response, const char *data, size_t len)
{
    char *at = TORNADO__LIKELY(len <= response->body_capacity - response->body_len)
                   ? response->body + response->body_len
                   : tornado__body_grow(response, len);
    if (len)
        memcpy(at, data, len);
    response->body_len += len;
}

static void tornado__body_drop(tornado__response *response)
{
    if (response->body_allocated)
        TORNADO_FREE(response->body);
    response->body = (char *)(uintptr_t)""; /* no bytes of it may be copied, nor any written */
    response->body_len = response->body_capacity = 0;
    response->body_allocated = false;
}

TORNADO_API void tornado_write_bytes(tornado_handler *self, tornado_bytes data)
{
    tornado__check_unfinished(self, "write");
    tornado__body_append(self->response, data.data, data.len);
}

TORNADO_API void tornado_write(tornado_handler *self, const char *text)
{
    tornado__check_unfinished(self, "write");
    tornado__body_append(self->response, text, strlen(text));
}

TORNADO_API void tornado_writef(tornado_handler *self, const char *format, ...)
{
    tornado__response *response = self->response;
    va_list args;
    tornado__check_unfinished(self, "write");
    for (int tries = 0; tries < 2; tries++) { /* the first may only tell how much room it needs */
        size_t room = response->body_capacity - response->body_len;
        va_start(args, format);
        int len = vsnprintf(response->body ? response->body + response->body_len : NULL, room, format, args);
        va_end(args);
        if (len < 0)
            tornado_raise(TORNADO_ERR_INVALID, "tornado_writef: the format \"%.60s\" cannot be printed", format);
        if ((size_t)len < room) {
            response->body_len += (size_t)len;
            return;
        }
        tornado__body_grow(response, (size_t)len + 1);
    }
}

TORNADO_API char *tornado_format(tornado_handler *self, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = tornado_arena_vprintf(self->arena, format, args);
    va_end(args);
    if (!text)
        tornado__raise_last();
    return text;
}

TORNADO_API void *tornado_alloc(tornado_handler *self, size_t size)
{
    void *memory = tornado_arena_calloc(self->arena, 1, size);
    if (!memory)
        tornado__raise_last();
    return memory;
}

static const struct {
    const char *name;
    size_t len;
    unsigned flag;
} tornado__default_headers[] = {
    {"server", 6, TORNADO__SEND_SERVER}, {"content-type", 12, TORNADO__SEND_TYPE}, {"date", 4, TORNADO__SEND_DATE}};

static unsigned tornado__default_flag(const char *name, size_t len)
{
    for (size_t i = 0; i < TORNADO__COUNT(tornado__default_headers); i++)
        if (tornado__is_word(name, len, tornado__default_headers[i].name, tornado__default_headers[i].len))
            return tornado__default_headers[i].flag;
    return 0;
}

/* Removes all of a name from place `from` on; whether there was one. */
static bool tornado__headers_remove(tornado__response *response, const char *name, size_t len, size_t from)
{
    size_t kept = from, before = response->headers_count;
    for (size_t i = from; i < before; i++)
        if (!tornado__same_name(response->headers[i].name, response->headers[i].name_len, name, len))
            response->headers[kept++] = response->headers[i];
    response->headers_count = kept;
    return kept < before;
}

/* Headers of the answer that decide its framing are noted, not just stored. Whether that was all. */
static bool tornado__header_special(tornado__response *response, const char *name, size_t len, const char *value)
{
    if (TORNADO__IS_WORD(name, len, "connection")) {
        const char *element;
        size_t element_len;
        while (tornado__next_element(&value, &element, &element_len))
            if (TORNADO__IS_WORD(element, element_len, "close"))
                response->message->keep_alive = false;
        return true;
    }
    if (TORNADO__IS_WORD(name, len, "transfer-encoding"))
        tornado_raise(TORNADO_ERR_INVALID, "Transfer-Encoding is not for handlers to set: use tornado_flush");
    if (TORNADO__IS_WORD(name, len, "content-length")) {
        int64_t length = 0;
        for (const char *at = value; *at; at++) {
            if (*at < '0' || *at > '9' || length > INT64_MAX / 10 - 9)
                tornado_raise(TORNADO_ERR_INVALID, "not a Content-Length: %.40s", value);
            length = length * 10 + (*at - '0');
        }
        if (!*value)
            tornado_raise(TORNADO_ERR_INVALID, "the Content-Length is empty");
        response->content_length = length;
        response->with_length = true;
        return true;
    }
    if (TORNADO__IS_WORD(name, len, "etag"))
        response->etag = NULL;
    return false;
}

static void tornado__header_put(tornado_handler *self, const char *name, const char *value, bool replace)
{
    tornado__response *response = self->response;
    size_t name_len = strlen(name), value_len = strlen(value);
    tornado__check_unfinished(self, "set_header");
    if (name_len > UINT32_MAX || value_len > UINT32_MAX || !tornado__header_valid(name, name_len, value, value_len))
        tornado__raise_last();
    if (tornado__header_special(response, name, name_len, value))
        return;
    response->defaults &= ~tornado__default_flag(name, name_len);
    if (replace)
        tornado__headers_remove(response, name, name_len, 0);
    if (response->headers_count == response->headers_capacity) {
        size_t capacity = response->headers_capacity ? response->headers_capacity * 2 : 8;
        tornado_http_header *headers = tornado_alloc(self, capacity * sizeof *headers);
        if (response->headers_count)
            memcpy(headers, response->headers, response->headers_count * sizeof *headers);
        response->headers = headers;
        response->headers_capacity = capacity;
    }
    tornado_http_header *header = &response->headers[response->headers_count];
    header->name = tornado_arena_memdup(self->arena, name, name_len);
    header->value = tornado_arena_memdup(self->arena, value, value_len);
    if (!header->name || !header->value)
        tornado__raise_last();
    header->name_len = (uint32_t)name_len;
    header->value_len = (uint32_t)value_len;
    response->headers_count++;
}

TORNADO_API void tornado_set_header(tornado_handler *self, const char *name, const char *value)
{
    tornado__header_put(self, name, value, true);
}

TORNADO_API void tornado_add_header(tornado_handler *self, const char *name, const char *value)
{
    tornado__header_put(self, name, value, false);
}

TORNADO_API void tornado_clear_header(tornado_handler *self, const char *name)
{
    size_t len = strlen(name);
    tornado__check_unfinished(self, "clear_header");
    self->response->defaults &= ~tornado__default_flag(name, len);
    tornado__headers_remove(self->response, name, len, 0);
    if (TORNADO__IS_WORD(name, len, "content-length"))
        self->response->with_length = false;
    if (TORNADO__IS_WORD(name, len, "etag"))
        self->response->etag = NULL;
}

TORNADO_API void tornado_set_status_reason(tornado_handler *self, int status, const char *reason)
{
    tornado__check_unfinished(self, "set_status");
    if (status < 100 || status > 999 || (!reason && !tornado_http_reason(status)))
        tornado_raise(TORNADO_ERR_INVALID, "unknown status code %d", status);
    self->response->status = status;
    self->response->reason = NULL;
    if (reason && !(self->response->reason = tornado_arena_strdup(self->arena, tornado__safe_reason(reason))))
        tornado__raise_last();
}

TORNADO_API void tornado_set_status(tornado_handler *self, int status)
{
    tornado_set_status_reason(self, status, NULL);
}

TORNADO_API int tornado_get_status(const tornado_handler *self)
{
    return self->response->status;
}

TORNADO_API void tornado_write_json(tornado_handler *self, const char *format, ...)
{
    tornado__response *response = self->response;
    tornado_buffer *json = &self->application->json;
    va_list args;
    tornado__check_unfinished(self, "write_json");
    if (TORNADO__UNLIKELY(*format != '{') && format[strspn(format, " \t\n")] != '{')
        tornado_raise(TORNADO_ERR_INVALID, "tornado_write_json writes objects only: put the list into one");
    json->len = 0;
    va_start(args, format);
    bool ok = tornado_json_vpack(json, format, args);
    va_end(args);
    if (!ok) {
        tornado_error error = *tornado_last_error();
        tornado_buffer_free(json);
        tornado__raise(&error);
    }
    if (TORNADO__UNLIKELY(!(response->defaults & TORNADO__SEND_TYPE)))
        tornado__headers_remove(response, "Content-Type", 12, 0);
    response->defaults |= TORNADO__SEND_TYPE | TORNADO__SEND_JSON;
    tornado__body_append(response, json->data, json->len);
    if (json->cap > 65536)
        tornado_buffer_free(json);
}

TORNADO_API void tornado_clear(tornado_handler *self)
{
    tornado__response *response = self->response;
    tornado__check_unfinished(self, "clear");
    tornado__body_drop(response);
    response->status = 200;
    response->reason = NULL;
    response->headers_count = 0;
    response->with_length = false;
    response->etag = NULL;
    response->defaults = TORNADO__SEND_ALL;
    self->cls->set_default_headers(self);
}

/* ---- ETag ---- */

static const char *tornado__default_etag(tornado_handler *self)
{
    tornado__response *response = self->response;
    unsigned char hash[16];
    tornado__hash128(response->body ? response->body : "", response->body_len, hash);
    response->etag_text[0] = '"';
    tornado_hex_encode(hash, sizeof hash, response->etag_text + 1);
    response->etag_text[33] = '"';
    response->etag_text[34] = '\0';
    return response->etag_text;
}

TORNADO_API void tornado_set_etag_header(tornado_handler *self)
{
    const char *etag = self->cls->compute_etag(self);
    if (etag && etag != self->response->etag_text && !tornado__header_valid("Etag", 4, etag, strlen(etag)))
        tornado__raise_last();
    if (etag && self->response->headers_count)
        tornado__headers_remove(self->response, "Etag", 4, 0);
    self->response->etag = etag;
}

/* Compares weakly, as If-None-Match does: RFC 9110 section 13.1.2. */
static bool tornado__etag_listed(const char *list, const char *etag)
{
    size_t len = strlen(etag);
    if (len > 2 && etag[0] == 'W' && etag[1] == '/') {
        etag += 2;
        len -= 2;
    }
    for (const char *at = list; *at;) {
        if (*at == '*')
            return true;
        if (*at != '"') {
            at++;
            continue;
        }
        const char *end = strchr(at + 1, '"');
        if (!end)
            return false;
        if ((size_t)(end + 1 - at) == len && memcmp(at, etag, len) == 0)
            return true;
        at = end + 1;
    }
    return false;
}

TORNADO_API const char *tornado_path_arg(const tornado_handler *self, size_t index)
{
    const tornado__response *response = self->response;
    bool there = response->path_args && index < tornado_regex_groups(response->path);
    return there ? response->path_args[index] : NULL;
}

TORNADO_API const char *tornado_path_kwarg(const tornado_handler *self, const char *name)
{
    const tornado_regex *path = self->response->path;
    size_t group = path ? tornado_regex_group_index(path, name) : 0;
    return group ? tornado_path_arg(self, group - 1) : NULL;
}

static tornado__form *tornado__form_of(tornado_handler *self)
{
    if (!self->response->form)
        self->response->form = tornado_alloc(self, sizeof *self->response->form);
    return self->response->form;
}

/* Raises what kept arguments from being read: too many are the client's fault. */
static TORNADO_NORETURN void tornado__raise_unread(void)
{
    if (tornado_last_error()->code == TORNADO_ERR_LIMIT)
        tornado_raise_http_error(400, "%s", tornado_last_error()->message);
    tornado__raise_last();
}

TORNADO_API const tornado_arguments *tornado_query_arguments(tornado_handler *self)
{
    tornado__form *form = tornado__form_of(self);
    if (!form->has_query &&
        !tornado_parse_qs(self->arena, &form->query, tornado_bytes_of(self->request->query), NULL))
        tornado__raise_unread();
    form->has_query = true;
    return &form->query;
}

TORNADO_API const tornado_arguments *tornado_body_arguments(tornado_handler *self)
{
    tornado__form *form = tornado__form_of(self);
    if (!form->has_body &&
        !tornado_parse_body_arguments(self->arena, &form->body, tornado_get_header(self, "Content-Type"),
                                      self->request->body, NULL))
        tornado__raise_unread();
    form->has_body = true;
    return &form->body;
}

TORNADO_API const tornado_arguments *tornado_cookies(tornado_handler *self)
{
    tornado__form *form = tornado__form_of(self);
    const tornado_http_header *line = NULL;
    while (!form->has_cookies &&
           (line = tornado_http_headers_find(&self->request->headers, "Cookie", line)) != NULL)
        if (!tornado_parse_cookie(self->arena, &form->cookies, (tornado_bytes){line->value, line->value_len}, NULL))
            tornado__raise_unread();
    if (!form->has_cookies && !tornado__arguments_index(self->arena, &form->cookies, 1))
        tornado__raise_last();
    form->has_cookies = true;
    return &form->cookies;
}

enum { TORNADO__FROM_QUERY = 1, TORNADO__FROM_BODY = 2, TORNADO__FROM_BOTH = 3 };

/* The text of a value, as the class decodes it. */
static const char *tornado__argument(tornado_handler *self, const tornado_argument *argument)
{
    char *text = tornado_argument_text(self->arena, argument->value, true);
    if (!text)
        tornado__raise_last();
    return self->cls->decode_argument(self, tornado_bytes_of(text), argument->name.data);
}

static const char *tornado__last_argument(tornado_handler *self, int from, const char *name, const char *fallback)
{
    const tornado_argument *last = NULL;
    if (from & TORNADO__FROM_BODY)
        last = tornado_arguments_get(tornado_body_arguments(self), name);
    if (!last && from & TORNADO__FROM_QUERY)
        last = tornado_arguments_get(tornado_query_arguments(self), name);
    return last ? tornado__argument(self, last) : fallback;
}

static const char *tornado__required_argument(tornado_handler *self, int from, const char *name)
{
    const char *value = tornado__last_argument(self, from, name, NULL);
    if (!value)
        tornado_raise_http_error(400, "Missing argument %s", name);
    return value;
}

static const char *const *tornado__all_arguments(tornado_handler *self, int from, const char *name, size_t *count)
{
    const tornado_arguments *const lists[] = {from & TORNADO__FROM_QUERY ? tornado_query_arguments(self) : NULL,
                                              from & TORNADO__FROM_BODY ? tornado_body_arguments(self) : NULL};
    size_t room = 1, used = 0;
    for (int i = 0; i < 2; i++)
        for (const tornado_argument *at = NULL;
             lists[i] && (at = tornado_arguments_find(lists[i], name, at)) != NULL;)
            room++;
    const char **values = tornado_alloc(self, room * sizeof *values);
    for (int i = 0; i < 2; i++)
        for (const tornado_argument *at = NULL;
             lists[i] && (at = tornado_arguments_find(lists[i], name, at)) != NULL;)
            values[used++] = tornado__argument(self, at);
    if (count)
        *count = used;
    return values;
}

TORNADO_API const char *tornado_get_argument(tornado_handler *self, const char *name, const char *fallback)
{
    return tornado__last_argument(self, TORNADO__FROM_BOTH, name, fallback);
}

TORNADO_API const char *tornado_require_argument(tornado_handler *self, const char *name)
{
    return tornado__required_argument(self, TORNADO__FROM_BOTH, name);
}

TORNADO_API const char *const *tornado_get_arguments(tornado_handler *self, const char *name, size_t *count)
{
    return tornado__all_arguments(self, TORNADO__FROM_BOTH, name, count);
}

TORNADO_API const char *tornado_get_query_argument(tornado_handler *self, const char *name, const char *fallback)
{
    return tornado__last_argument(self, TORNADO__FROM_QUERY, name, fallback);
}

TORNADO_API const char *tornado_require_query_argument(tornado_handler *self, const char *name)
{
    return tornado__required_argument(self, TORNADO__FROM_QUERY, name);
}

TORNADO_API const char *const *tornado_get_query_arguments(tornado_handler *self, const char *name, size_t *count)
{
    return tornado__all_arguments(self, TORNADO__FROM_QUERY, name, count);
}

TORNADO_API const char *tornado_get_body_argument(tornado_handler *self, const char *name, const char *fallback)
{
    return tornado__last_argument(self, TORNADO__FROM_BODY, name, fallback);
}

TORNADO_API const char *tornado_require_body_argument(tornado_handler *self, const char *name)
{
    return tornado__required_argument(self, TORNADO__FROM_BODY, name);
}

TORNADO_API const char *const *tornado_get_body_arguments(tornado_handler *self, const char *name, size_t *count)
{
    return tornado__all_arguments(self, TORNADO__FROM_BODY, name, count);
}

TORNADO_API const char *tornado_get_cookie(tornado_handler *self, const char *name, const char *fallback)
{
    const tornado_argument *cookie = tornado_arguments_get(tornado_cookies(self), name);
    return cookie ? cookie->value.data : fallback;
}

TORNADO_API void tornado_set_cookie(tornado_handler *self, const char *name, const char *value,
                                    const tornado_cookie *options)
{
    tornado__check_unfinished(self, "set_cookie");
    tornado_arguments *set = &tornado__form_of(self)->set_cookies;
    const char *header = tornado_format_cookie(self->arena, name, value, options);
    const tornado_argument *known = header ? tornado_arguments_get(set, name) : NULL;
    if (known)
        set->items[known - set->items].value = tornado_bytes_of(header);
    else if (!header || !tornado_arguments_add(self->arena, set, name, header))
        tornado__raise_last();
}

TORNADO_API void tornado_clear_cookie(tornado_handler *self, const char *name, const tornado_cookie *options)
{
    tornado_cookie past = options ? *options : (tornado_cookie){0};
    past.expires = (int64_t)tornado_time() - 365 * 86400;
    past.max_age = 0;
    tornado_set_cookie(self, name, "", &past);
}

TORNADO_API void tornado_clear_all_cookies(tornado_handler *self, const tornado_cookie *options)
{
    const tornado_arguments *cookies = tornado_cookies(self);
    for (size_t i = 0; i < cookies->count; i++) {
        const char *name = cookies->items[i].name.data;
        if (tornado__cookie_name(name) && tornado_arguments_get(cookies, name) == &cookies->items[i])
            tornado_clear_cookie(self, name, options);
    }
}

TORNADO_API const char *tornado_get_header(tornado_handler *self, const char *name)
{
    const char *value = tornado_http_request_header(self->request, name);
    if (!value && tornado_http_headers_find(&self->request->headers, name, NULL))
        tornado__raise_last();
    return value;
}

static const char *tornado__response_etag(const tornado__response *response)
{
    if (response->etag)
        return response->etag;
    for (size_t i = 0; i < response->headers_count; i++)
        if (TORNADO__IS_WORD(response->headers[i].name, response->headers[i].name_len, "etag"))
            return response->headers[i].value;
    return NULL;
}

TORNADO_API bool tornado_check_etag_header(tornado_handler *self)
{
    const char *etag = tornado__response_etag(self->response);
    const char *list = etag ? tornado_get_header(self, "If-None-Match") : NULL;
    return list && tornado__etag_listed(list, etag);
}

/* ---- sending ---- */

/* Headers that describe a body, which an answer without one does not have. */
static void tornado__clear_body_headers(tornado_handler *self)
{
    static const char names[][17] = {"Allow",       "Content-Encoding", "Content-Language", "Content-Length",
                                     "Content-MD5", "Content-Range",    "Content-Type",     "Last-Modified"};
    for (size_t i = 0; i < TORNADO__COUNT(names); i++)
        tornado_clear_header(self, names[i]);
}

static void tornado__response_send_failed(tornado__response *response)
{
    if (response->message->connection)
        tornado__http1_break(response->message->connection);
    tornado__raise_last();
}

/* The headers with a line for each cookie that was set. */
static TORNADO__COLD tornado_http_headers tornado__with_cookies(const tornado__response *response)
{
    const tornado_arguments *set = &response->form->set_cookies;
    size_t count = response->headers_count;
    tornado_http_header *items = tornado_alloc(response->self, (count + set->count) * sizeof *items);
    if (count)
        memcpy(items, response->headers, count * sizeof *items);
    for (const tornado_argument *at = set->items; at < set->items + set->count; at++)
        items[count++] = (tornado_http_header){"Set-Cookie", at->value.data, 10, (uint32_t)at->value.len};
    return (tornado_http_headers){items, count};
}

/* Sends the headers, and what there is of the body. `length` is the body's, or -1. */
static void tornado__response_send(tornado__response *response, int64_t length)
{
    tornado__message *message = response->message;
    tornado__answer answer = {.status = response->status,
                              .reason = response->reason,
                              .defaults = response->defaults,
                              .headers = {response->headers, response->headers_count},
                              .etag = response->etag,
                              .etag_len = !response->etag                         ? 0
                                          : response->etag == response->etag_text ? 34
                                                                                  : strlen(response->etag),
                              .content_length = response->with_length ? response->content_length : length};
    bool inline_body = response->body_len <= TORNADO__SMALL_BODY, ok = true;
    tornado__chunk *chunk = NULL;
    if (TORNADO__UNLIKELY(response->form && response->form->set_cookies.count && !message->started))
        answer.headers = tornado__with_cookies(response);
    if (!message->started &&
        !(chunk = tornado__http1_start(message, &answer, inline_body ? response->body_len : 0)))
        tornado__response_send_failed(response);
    if (TORNADO__LIKELY(chunk && inline_body && message->out_left == response->body_len && !message->no_body)) {
        memcpy(chunk->end, response->body, response->body_len); /* all of it, right behind the headers */
        chunk->end += response->body_len;
        message->out_left = 0;
    } else if (!inline_body && response->body_allocated && !message->no_body && !message->chunked &&
        message->out_left >= response->body_len) {
        char *memory = response->body;
        if (message->out_left != UINT64_MAX)
            message->out_left -= response->body_len;
        response->body = NULL;
        response->body_allocated = false;
        ok = tornado__iostream_adopt(&message->connection->stream, memory, response->body_len);
        response->body_capacity = 0;
    } else {
        ok = tornado__http1_write(message, response->body, response->body_len);
    }
    response->body_len = 0;
    if (!ok)
        tornado__response_send_failed(response);
}

TORNADO_API tornado_future *tornado_flush(tornado_handler *self)
{
    tornado__response *response = self->response;
    tornado__message *message = response->message;
    tornado__check_unfinished(self, "flush");
    if (!message->connection) {
        tornado__fail(TORNADO_ERR_CLOSED, 0, "Stream is closed");
        return tornado_future_failed(tornado_last_error());
    }
    tornado_iostream *stream = &message->connection->stream;
    tornado__response_send(response, -1);
    if (message->flushed)
        return tornado_future_retain(message->flushed);
    tornado_future *future = tornado_future_new();
    if (future->immortal)
        return future;
    message->flushed = tornado_future_retain(future);
    if (tornado__iostream_flush(stream) && !stream->out)
        tornado__message_flushed(message, NULL);
    return future;
}

static void tornado__request_summary(const tornado_handler *self, char *out, size_t size)
{
    snprintf(out, size, "%.20s %.300s (%s)", self->request->method, self->request->uri, self->request->remote_ip);
}

static TORNADO__COLD void tornado__log_answer(tornado_handler *self, tornado_log_level level)
{
    char summary[384];
    self->response->message->ended = tornado__now_ns(); /* the loop's own clock stands still within a turn */
    if (self->application->settings.log_function) {
        self->application->settings.log_function(self);
        return;
    }
    tornado__request_summary(self, summary, sizeof summary);
    tornado_access_log(level, "%d %s %.2fms", self->response->status, summary,
                       1000 * tornado_http_request_time(self->request));
}

static TORNADO__INLINE void tornado__log_request(tornado_handler *self)
{
    int status = self->response->status;
    tornado_log_level level = status < 400   ? TORNADO_LOG_INFO
                              : status < 500 ? TORNADO_LOG_WARNING
                                             : TORNADO_LOG_ERROR;
    if (self->application->settings.log_function || tornado_log_enabled(TORNADO_LOG_ACCESS, level))
        tornado__log_answer(self, level);
}

static void tornado__finish(void *arg)
{
    tornado_handler *self = arg;
    tornado__response *response = self->response;
    tornado__message *message = response->message;
    if (!message->started) {
        if (response->status == 200 && (response->method == TORNADO__GET || response->method == TORNADO__HEAD)) {
            const char *etag = tornado__response_etag(response);
            if (!etag || etag == response->etag_text) /* a hash of what was there then; now there may be more */
                tornado_set_etag_header(self);
            if (message->conditional && tornado_check_etag_header(self)) {
                tornado__body_drop(response);
                tornado_set_status(self, 304);
            }
        }
        if (tornado__status_bodiless(response->status)) {
            if (response->body_len)
                tornado_raise(TORNADO_ERR_INVALID, "an answer of status %d has no body", response->status);
            tornado__clear_body_headers(self);
        }
    }
    if (message->connection)
        tornado__response_send(response, (int64_t)response->body_len);
    bool ok = !message->connection || tornado__http1_finish(message);
    message->ended = message->host->loop->now;
    response->finished = true;
    tornado__log_request(self);
    if (!ok)
        tornado__raise_last();
    self->cls->on_finish(self);
}

/* Lets go of a request that nobody has a hold of any more, whatever comes of finishing it. What fails in the
   handler's own coroutine becomes an error page, so that the request goes on; elsewhere there is no boundary that
   would answer. */
static TORNADO__COLD void tornado__finish_asynchronous(tornado_handler *self)
{
    tornado__response *response = self->response;
    tornado__message *message = response->message;
    const struct tornado__coroutine *co = tornado__running()->coroutine;
    tornado_error error = {0};
    const tornado_error *raised = tornado_try(tornado__finish, self);
    if (raised)
        error = *raised;
    if (!response->finished && co && co->arg == response)
        tornado__raise(&error);
    if (!response->finished && message->connection)
        tornado__iostream_shut(&message->connection->stream, &error);
    response->finished = true;
    response->asynchronous = false;
    tornado__message_release(message);
    if (error.code)
        tornado__raise(&error);
}

TORNADO_API void tornado_finish(tornado_handler *self)
{
    if (self->response->finished)
        tornado_raise(TORNADO_ERR_STATE, "finish() called twice");
    if (TORNADO__UNLIKELY(self->response->asynchronous))
        tornado__finish_asynchronous(self);
    else
        tornado__finish(self);
}

TORNADO_API void tornado_asynchronous(tornado_handler *self)
{
    tornado__response *response = self->response;
    if (response->asynchronous || response->finished)
        return;
    response->asynchronous = true;
    response->message->references++;
}

TORNADO_API bool tornado_finished(const tornado_handler *self)
{
    return self->response->finished;
}

TORNADO_API bool tornado_connected(const tornado_handler *self)
{
    return self->response->finished || self->response->message->connection != NULL;
}

TORNADO_API void tornado_redirect_status(tornado_handler *self, const char *url, int status)
{
    if (self->response->message->started)
        tornado_raise(TORNADO_ERR_STATE, "Cannot redirect after headers have been written");
    if (status < 300 || status > 399 || !tornado_http_reason(status))
        tornado_raise(TORNADO_ERR_INVALID, "not the status of a redirect: %d", status);
    tornado_set_header(self, "Location", url); /* first, as it may raise */
    tornado_set_status(self, status);
    tornado_finish(self);
}

TORNADO_API void tornado_redirect(tornado_handler *self, const char *url, bool permanent)
{
    tornado_redirect_status(self, url, permanent ? 301 : 302);
}

TORNADO_API TORNADO_NORETURN void tornado_raise_finish(void)
{
    tornado_raise(TORNADO_ERR_FINISH, "the request was finished early");
}

/* Whether a browser takes what looks like a path for "//host". */
static bool tornado__leads_away(const char *url)
{
    return url[0] == '/' && (url[1] == '/' || url[1] == '\\');
}

/* Redirects GET and HEAD to the path cut to `len` bytes and `end`; others get a 404. */
static TORNADO_NORETURN void tornado__redirect_slash(tornado_handler *self, size_t len, const char *end)
{
    const tornado_http_request *request = self->request;
    if (self->response->method != TORNADO__GET && self->response->method != TORNADO__HEAD)
        tornado_raise_http_status(404);
    if (tornado__leads_away(request->path))
        tornado_raise_http_status(403);
    tornado_redirect(self,
                     tornado_format(self, "%.*s%s%s%s", (int)len, request->path, end, *request->query ? "?" : "",
                                    request->query),
                     true);
    tornado_raise_finish();
}

TORNADO_API void tornado_addslash(tornado_handler *self)
{
    size_t len = strlen(self->request->path);
    if (len == 0 || self->request->path[len - 1] != '/')
        tornado__redirect_slash(self, len, "/");
}

TORNADO_API void tornado_removeslash(tornado_handler *self)
{
    size_t len = strlen(self->request->path), kept = len;
    while (kept > 0 && self->request->path[kept - 1] == '/')
        kept--;
    if (kept < len &&
        (kept > 0 || (self->response->method != TORNADO__GET && self->response->method != TORNADO__HEAD)))
        tornado__redirect_slash(self, kept, "");
}

TORNADO_API char *tornado_application_reverse_url(const tornado_application *application, tornado_arena *arena,
                                                  const char *name, const char *const *args, size_t count)
{
    const tornado__router *router = &application->router;
    for (int i = 0; i < router->count; i++)
        if (router->routes[i].name && strcmp(router->routes[i].name, name) == 0)
            return tornado__route_reverse(&router->routes[i], arena, args, count);
    tornado__fail(TORNADO_ERR_INVALID, 0, "there is no rule named \"%.60s\"", name);
    return NULL;
}

TORNADO_API const char *tornado_reverse_url(tornado_handler *self, const char *name, const char *const *args,
                                            size_t count)
{
    const char *url = tornado_application_reverse_url(self->application, self->arena, name, args, count);
    if (!url)
        tornado__raise_last();
    return url;
}

/* ---- errors ---- */

typedef struct tornado__error_page {
    tornado_handler *self;
    int status;
    const tornado_error *error;
} tornado__error_page;

static void tornado__call_write_error(void *arg)
{
    tornado__error_page *page = arg;
    page->self->cls->write_error(page->self, page->status, page->error);
}

static void tornado__default_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    tornado_switch serve = self->application->settings.serve_traceback;
    if (tornado__status_bodiless(status)) {
        tornado_finish(self);
        return;
    }
    if (error && (serve == TORNADO_ON || (serve == TORNADO_DEFAULT && self->application->settings.debug))) {
        tornado_set_header(self, "Content-Type", "text/plain");
        tornado_writef(self, "%s: %s\n", tornado_error_name(error->code), error->message);
    } else {
        const char *reason = self->response->reason ? self->response->reason : tornado_http_reason(status);
        char *escaped = tornado_xhtml_escape(self->arena, reason ? reason : "Unknown");
        if (!escaped)
            tornado__raise_last();
        tornado_writef(self, "<html><title>%d: %s</title><body>%d: %s</body></html>", status, escaped, status,
                       escaped);
    }
    if (!self->response->finished)
        tornado_finish(self);
}

/* Sets Allow to the verbs that the class has: RFC 9110 section 15.5.6. */
static void tornado__set_allow(tornado_handler *self)
{
    char *allow = tornado_format(self, "%s", "");
    for (int i = 0; i < TORNADO__METHODS; i++) {
        tornado__handler_fn verb, missing;
        memcpy(&verb, (const char *)self->cls + tornado__methods[i].offset, sizeof verb);
        memcpy(&missing, (const char *)&self->application->base + tornado__methods[i].offset, sizeof missing);
        if (verb != missing)
            allow = tornado_format(self, "%s%s%s", allow, *allow ? ", " : "", tornado__methods[i].name);
    }
    for (const tornado_method *at = self->cls->methods; at && at->name; at++)
        allow = tornado_format(self, "%s%s%s", allow, *allow ? ", " : "", at->name);
    tornado_set_header(self, "Allow", allow);
}

static int tornado__error_status(int status)
{
    if (status >= 100 && status <= 999)
        return status;
    tornado_gen_log(TORNADO_LOG_ERROR, "Bad HTTP status code: %d", status);
    return 500;
}

static void tornado__call_clear(void *arg)
{
    tornado_clear(arg);
}

/* Discards what there is. That set_default_headers fails once more, maybe as it did before, must not cost the
   client its answer. */
static void tornado__clear_for_error(tornado_handler *self, const tornado_error *error)
{
    const tornado_error *failed = tornado_try(tornado__call_clear, self);
    if (failed && !(error && strcmp(failed->message, error->message) == 0))
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, failed, "Uncaught exception in set_default_headers");
}

static void tornado__send_error(tornado_handler *self, int status, const tornado_error *error)
{
    tornado__response *response = self->response;
    tornado__error_page page = {self, status, error};
    if (response->message->started || response->sending_error) {
        tornado_gen_log(TORNADO_LOG_ERROR, "Cannot send error response after headers written");
        if (!response->finished)
            tornado_finish(self);
        return;
    }
    response->sending_error = true;
    tornado__clear_for_error(self, error);
    if (response->finished)
        return;
    tornado_set_status_reason(self, status, tornado_http_reason(status) ? NULL : "Unknown");
    if (status == 405)
        tornado__set_allow(self);
    const tornado_error *failed = tornado_try(tornado__call_write_error, &page);
    if (failed)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, failed, "Uncaught exception in write_error");
    if (!response->finished)
        tornado_finish(self);
}

static void tornado__call_send_error(void *arg)
{
    const tornado__error_page *page = arg;
    tornado__send_error(page->self, page->status, NULL);
}

/* The request is held meanwhile: an asynchronous one goes when it is finished. */
TORNADO_API void tornado_send_error(tornado_handler *self, int status)
{
    tornado__error_page page = {self, tornado__error_status(status), NULL};
    tornado__message *message = self->response->message;
    tornado__check_unfinished(self, "send_error");
    message->references++;
    const tornado_error *raised = tornado_try(tornado__call_send_error, &page);
    tornado_error error = raised ? *raised : tornado__thread.last;
    tornado__message_release(message);
    if (raised)
        tornado__raise(&error);
}

static void tornado__default_log_exception(tornado_handler *self, const tornado_error *error)
{
    char summary[384];
    tornado__request_summary(self, summary, sizeof summary);
    if (error->http_status) {
        if (error->message[0])
            tornado_gen_log(TORNADO_LOG_WARNING, "%d %s: %s", error->http_status, summary, error->message);
    } else {
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "Uncaught exception %s", summary);
    }
}

static void tornado__method_not_allowed(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_status(405);
}

static void tornado__not_found(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_status(404);
}

static const char *tornado__default_decode_argument(tornado_handler *self, tornado_bytes value, const char *name)
{
    (void)self;
    if (!tornado_utf8_valid(value.data, value.len) || memchr(value.data, '\0', value.len))
        tornado_raise_http_error(400, "Invalid unicode in %.40s: %.60s", name ? name : "url", value.data);
    return value.data;
}

static void tornado__nothing(tornado_handler *self)
{
    (void)self;
}

static const tornado_handler_class tornado__base_class = {
    .name = "handler",
    .instance_size = sizeof(tornado_handler),
    .set_default_headers = tornado__nothing,
    .initialize = tornado__nothing,
    .prepare = tornado__nothing,
    .get = tornado__method_not_allowed,
    .head = tornado__method_not_allowed,
    .post = tornado__method_not_allowed,
    .delete_ = tornado__method_not_allowed,
    .patch = tornado__method_not_allowed,
    .put = tornado__method_not_allowed,
    .options = tornado__method_not_allowed,
    .on_finish = tornado__nothing,
    .on_connection_close = tornado__nothing,
    .write_error = tornado__default_write_error,
    .log_exception = tornado__default_log_exception,
    .compute_etag = tornado__default_etag,
    .decode_argument = tornado__default_decode_argument,
};

static void tornado__error_prepare(tornado_handler *self)
{
    const int *status = self->data;
    tornado_raise_http_status(status ? *status : 404);
}

static const tornado_handler_class tornado__not_found_class = {.name = "ErrorHandler",
                                                               .prepare = tornado__not_found};

TORNADO__DATA const tornado_handler_class tornado_error_handler = {.name = "ErrorHandler",
                                                                 .prepare = tornado__error_prepare};

/* The group of the path that a name in braces stands for: a number or a name; no bytes when there is none. */
static tornado_bytes tornado__redirect_group(const tornado__response *response, const char *name, size_t len)
{
    size_t group = 0, groups = response->path ? tornado_regex_groups(response->path) : 0;
    for (size_t i = 0; i < len && name[i] >= '0' && name[i] <= '9' && group <= groups; i++)
        group = group * 10 + (size_t)(name[i] - '0');
    if (len == 0 || name[0] < '0' || name[0] > '9')
        for (group = 0; group < groups; group++) {
            const char *known = tornado_regex_group_name(response->path, group + 1);
            if (known && strlen(known) == len && memcmp(known, name, len) == 0)
                break;
        }
    return group < groups ? response->path_sent[group] : (tornado_bytes){NULL, 0};
}

static void tornado__redirect_get(tornado_handler *self)
{
    const tornado_redirect_target *target = self->data;
    const char *query = self->request->query, *rest = "";
    char *url = tornado_format(self, "%s", "");
    for (const char *at = target ? target->url : ""; *at; at = rest) {
        size_t plain = strcspn(at, "{}");
        bool twice = at[plain] && at[plain + 1] == at[plain];
        rest = at + plain + (at[plain] ? 1 + twice : 0);
        url = tornado_format(self, "%s%.*s", url, (int)(plain + twice), at);
        if (at[plain] == '{' && !twice) {
            size_t len = strcspn(rest, "}");
            tornado_bytes group = tornado__redirect_group(self->response, rest, len);
            url = tornado_format(self, "%s%.*s", url, (int)group.len, group.data ? group.data : "");
            rest += len + (rest[len] == '}');
        }
    }
    if (target && !tornado__leads_away(target->url) && tornado__leads_away(url))
        tornado_raise_http_status(403);
    size_t len = strcspn(url, "#");
    if (*query)
        url = tornado_format(self, "%.*s%s%s%s", (int)len, url, memchr(url, '?', len) ? "&" : "?", query, url + len);
    tornado_redirect(self, url, !target || target->permanent != TORNADO_OFF);
}

TORNADO__DATA const tornado_handler_class tornado_redirect_handler = {
    .name = "RedirectHandler", .get = tornado__redirect_get, .head = tornado__redirect_get};

/* ---- a request's life ---- */

static TORNADO__INLINE char tornado__method_of(uint64_t word)
{
    for (int i = 0; i < TORNADO__METHODS; i++) {
        uint64_t name;
        memcpy(&name, tornado__methods[i].name, sizeof name);
        if (name == word)
            return (char)i;
    }
    return TORNADO__METHODS;
}

/* The method of that name in a list, or NULL. */
static const tornado_method *tornado__method_find(const tornado_method *methods, const char *name)
{
    for (; methods && methods->name; methods++)
        if (strcmp(methods->name, name) == 0)
            return methods;
    return NULL;
}

/* The function for a method that is none of the seven, or NULL. */
static TORNADO__COLD tornado__handler_fn tornado__more_methods(const tornado_handler *self)
{
    const tornado_method *method = tornado__method_find(self->cls->methods, self->request->method);
    return method ? method->run : NULL;
}

static TORNADO__COLD void tornado__decode_path_args(tornado_handler *self)
{
    tornado__response *response = self->response;
    size_t count = tornado_regex_groups(response->path);
    response->path_args = tornado_alloc(self, count * sizeof *response->path_args);
    for (size_t i = 0; i < count; i++) {
        if (!response->path_sent[i].data)
            continue;
        tornado_bytes value = tornado_url_unescape(self->arena, response->path_sent[i], false);
        if (!value.data)
            tornado__raise_last();
        response->path_args[i] =
            self->cls->decode_argument(self, value, tornado_regex_group_name(response->path, i + 1));
    }
}

static void *tornado__handler_execute(void *arg)
{
    tornado__response *response = arg;
    tornado_handler *self = response->self;
    self->cls->set_default_headers(self);
    self->cls->initialize(self);
    tornado__handler_fn more = NULL;
    if (TORNADO__UNLIKELY(response->method == TORNADO__METHODS) && !(more = tornado__more_methods(self)))
        tornado_raise_http_status(405);
    if (TORNADO__UNLIKELY(response->path != NULL))
        tornado__decode_path_args(self);
    self->cls->prepare(self);
    if (response->finished)
        return NULL;
    tornado__handler_fn verb = more;
    if (TORNADO__LIKELY(!more))
        memcpy(&verb, (const char *)self->cls + tornado__methods[(int)response->method].offset, sizeof verb);
    verb(self);
    if (!response->finished && TORNADO__LIKELY(!response->asynchronous))
        tornado_finish(self);
    return NULL;
}

typedef struct tornado__failure {
    tornado__response *response;
    tornado_error error;
} tornado__failure;

static void tornado__handler_log(void *arg)
{
    tornado__failure *failure = arg;
    failure->response->self->cls->log_exception(failure->response->self, &failure->error);
}

static void tornado__handler_answer(void *arg)
{
    tornado__failure *failure = arg;
    tornado__response *response = failure->response;
    int status = failure->error.http_status ? failure->error.http_status : 500;
    if (!response->finished) /* else the error came after finish: it was logged, there is nothing to send */
        tornado__send_error(response->self, tornado__error_status(status), &failure->error);
}

static void tornado__handler_finish(void *arg)
{
    tornado__failure *failure = arg;
    if (!failure->response->finished)
        tornado_finish(failure->response->self);
}

/* What was raised becomes a log line and an error page; when even that fails the connection is closed. */
static void tornado__handler_failed(tornado__response *response, const tornado_error *raised)
{
    tornado__failure failure = {response, *raised};
    if (raised->code == TORNADO_ERR_FINISH) {
        raised = tornado_try(tornado__handler_finish, &failure);
        if (!raised)
            return;
        failure.error = *raised;
    }
    bool gone = !response->message->connection && !response->finished;
    bool expected = raised->code == TORNADO_ERR_CLOSED || raised->code == TORNADO_ERR_CANCELLED;
    const tornado_error *error = gone && expected ? NULL : tornado_try(tornado__handler_log, &failure);
    if (error)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "Uncaught exception in log_exception");
    error = tornado_try(tornado__handler_answer, &failure);
    if (!error)
        return;
    if (!gone)
        tornado__log_error(TORNADO_LOG_APP, TORNADO_LOG_ERROR, error, "the answer cannot be sent");
    if (response->message->connection)
        tornado__iostream_shut(&response->message->connection->stream, error);
    response->finished = true;
    if (response->asynchronous) {
        response->asynchronous = false;
        tornado__message_release(response->message); /* which the coroutine still holds */
    }
}

static void tornado__handler_recover(tornado__coroutine *co)
{
    tornado__handler_failed(co->arg, &co->execution.raised);
}

static void tornado__handler_done(tornado__coroutine *co)
{
    tornado__message_release(co->owner);
}

/* Lends a coroutine the arena of a request, which it then keeps alive. */
static void tornado__coroutine_join(tornado__coroutine *co, tornado__message *message)
{
    co->arena = &message->arena;
    co->arena_is_lent = true;
    co->owner = message;
    co->on_done = tornado__handler_done;
    message->references++;
}

/* Answers without a handler, when there is no room for one. */
static void tornado__answer_unavailable(tornado__message *message)
{
    tornado__answer answer = {.status = 503, .defaults = TORNADO__SEND_SERVER | TORNADO__SEND_DATE};
    tornado_gen_log(TORNADO_LOG_WARNING, "503 %s %.200s (%s): %s", message->request.method, message->request.uri,
                    message->request.remote_ip, tornado_last_error()->message);
    message->keep_alive = false;
    if (!tornado__http1_start(message, &answer, 0))
        tornado__iostream_shut(&message->connection->stream, &tornado__thread.last);
    else
        tornado__http1_finish(message);
}

/* The host that a request names, in lower case and without its port; and the application's, for one behind no
   proxy. */
static TORNADO__COLD void tornado__subject_host(const tornado_application *application,
                                                    tornado_http_request *request, tornado__route_subject *subject)
{
    subject->host = tornado_bytes_of(tornado_http_request_host_name(request));
    bool proxied = tornado_http_headers_find(&request->headers, "X-Real-Ip", NULL) != NULL;
    subject->default_host = tornado_bytes_of(proxied ? NULL : application->settings.default_host);
}

/* Keeps where the groups of the path are. False: memory is short. */
static TORNADO__COLD bool tornado__keep_path_args(tornado__response *response, const tornado_regex *regex,
                                                      const tornado__route_subject *subject)
{
    size_t count = tornado_regex_groups(regex);
    if (count == 0)
        return true;
    tornado_bytes *sent = tornado_arena_calloc(&response->message->arena, count, sizeof *sent);
    if (!sent)
        return false;
    for (size_t i = 0; i < count; i++)
        if (subject->spans[i + 1].start >= 0) {
            sent[i].data = subject->path.data + subject->spans[i + 1].start;
            sent[i].len = (size_t)(subject->spans[i + 1].end - subject->spans[i + 1].start);
        }
    response->path = regex;
    response->path_sent = sent;
    return true;
}

static void tornado__application_finish(tornado_http_request *request)
{
    tornado__message *message = (tornado__message *)(void *)request;
    tornado_application *application = message->host->arg;
    tornado_span spans[TORNADO__ROUTE_SPANS];
    tornado__route_subject subject; /* its hosts are set when a rule asks for them */
    subject.path = (tornado_bytes){request->path, message->path_len};
    subject.spans = spans;
    subject.failed = false;
    if (TORNADO__UNLIKELY(application->router.hosts))
        tornado__subject_host(application, request, &subject);
    const tornado__route *route = tornado__router_find(&application->router, &subject);
    if (TORNADO__UNLIKELY(!route)) {
        if (subject.failed) {
            tornado__answer_unavailable(message);
            return;
        }
        route = &application->fallback;
    }
    const tornado_handler_class *cls = route->handler;
    size_t size = (sizeof(tornado__response) + cls->instance_size + TORNADO__ALIGN - 1) & ~(TORNADO__ALIGN - 1);
    char *memory = tornado__arena_alloc(&message->arena, size + TORNADO__FIRST_BODY);
    tornado__coroutine *co =
        memory ? tornado__coroutine_new(message->host->loop, tornado__handler_execute, memory, cls->name) : NULL;
    if (TORNADO__UNLIKELY(!co)) {
        tornado__answer_unavailable(message);
        return;
    }
    memset(memory, 0, size);
    co->recover = tornado__handler_recover;
    tornado__response *response = (tornado__response *)(void *)memory;
    tornado_handler *self = (tornado_handler *)(void *)(memory + sizeof *response);
    response->self = self;
    response->message = message;
    response->status = 200;
    response->defaults = TORNADO__SEND_ALL;
    response->body = memory + size;
    response->body_capacity = TORNADO__FIRST_BODY;
    response->method = tornado__method_of(message->method_word);
    self->cls = cls;
    self->application = application;
    application->references++;
    self->request = request;
    self->arena = &message->arena;
    self->data = route->data;
    self->response = response;
    request->context = response;
    if (TORNADO__UNLIKELY(route->regex != NULL) && !tornado__keep_path_args(response, route->regex, &subject)) {
        tornado__coroutine_free(co);
        tornado__answer_unavailable(message);
        return;
    }
    tornado__coroutine_join(co, message);
    tornado__coroutine_continue(co);
}

static void *tornado__call_connection_close(void *arg)
{
    tornado_handler *self = arg;
    self->cls->on_connection_close(self);
    return NULL;
}

TORNADO_API tornado_future *tornado_handler_spawn(tornado_handler *self, tornado_coroutine_fn fn, void *arg)
{
    tornado__message *message = self->response->message;
    tornado_future *future = tornado__spawn(message->host->loop, fn, arg, self->cls->name);
    if (future->coroutine)
        tornado__coroutine_join(future->coroutine, message);
    return future;
}

static void tornado__application_close(tornado_http_request *request)
{
    tornado__response *response = request->context;
    if (!response || response->finished || response->self->cls->on_connection_close == tornado__nothing)
        return;
    tornado_future_release(tornado_handler_spawn(response->self, tornado__call_connection_close, response->self));
}

static TORNADO__COLD void tornado__application_delete(tornado_application *application)
{
    tornado_buffer_free(&application->json);
    tornado__router_free(&application->router);
    tornado_arena_free(application->arena);
}

static void tornado__application_release(tornado_http_request *request)
{
    tornado__response *response = request->context;
    if (!response)
        return;
    tornado_application *application = response->self->application;
    if (response->body_allocated)
        TORNADO_FREE(response->body);
    if (TORNADO__UNLIKELY(--application->references == 0))
        tornado__application_delete(application);
}

static const tornado_http_delegate tornado__application_delegate = {.finish = tornado__application_finish,
                                                                    .on_connection_close =
                                                                        tornado__application_close,
                                                                    .release = tornado__application_release};

TORNADO_API const tornado_http_delegate *tornado_application_delegate(void)
{
    return &tornado__application_delegate;
}

/* ---- the application ---- */

TORNADO_API const tornado_handler_class *tornado_super(const tornado_handler *self,
                                                       const tornado_handler_class *cls)
{
    const tornado_handler_class *base = &self->application->base, *at = self->cls;
    while (at != base && TORNADO__CONTAINER(at, tornado__flat_class, flat)->original != cls)
        at = at->parent;
    return at->parent;
}

/* Which members of a class are inherited when NULL: all that are functions. */
static void tornado__class_inherit(tornado_handler_class *flat, const tornado_handler_class *parent)
{
    const size_t first = offsetof(tornado_handler_class, set_default_headers);
    for (size_t at = first; at < sizeof *flat; at += sizeof(tornado__handler_fn)) {
        tornado__handler_fn entry;
        memcpy(&entry, (char *)flat + at, sizeof entry);
        if (!entry)
            memcpy((char *)flat + at, (const char *)parent + at, sizeof entry);
    }
    if (!flat->name)
        flat->name = parent->name;
    if (flat->instance_size < parent->instance_size)
        flat->instance_size = parent->instance_size;
    flat->parent = parent;
}

/* Gives a class copies of its further methods and, behind them, those of its parent that it has none of the same
   name for. */
static bool tornado__class_copy_methods(tornado_application *application, tornado_handler_class *cls,
                                        const tornado_handler_class *parent)
{
    const tornado_method *const lists[] = {cls->methods, parent->methods};
    size_t room = 1, count = 0;
    for (int i = 0; i < 2; i++)
        for (const tornado_method *at = lists[i]; at && at->name; at++)
            room++;
    tornado_method *methods = room > 1 ? tornado_arena_calloc(application->arena, room, sizeof *methods) : NULL;
    cls->methods = methods;
    if (!methods)
        return room == 1;
    for (int i = 0; i < 2; i++)
        for (const tornado_method *at = lists[i]; at && at->name; at++) {
            if (tornado__method_find(methods, at->name))
                continue;
            methods[count].run = at->run;
            const char *name = tornado_arena_strdup(application->arena, at->name);
            if (!name)
                return false;
            methods[count++].name = name;
        }
    return true;
}

/* A class with every entry filled in; made once for each original. NULL with the reason. */
static const tornado_handler_class *tornado__class_flatten(tornado_application *application,
                                                           const tornado_handler_class *original)
{
    const tornado_handler_class *chain[32], *flat = &application->base;
    size_t depth = 0;
    for (const tornado_handler_class *at = original; at; at = at->parent) {
        if (depth == TORNADO__COUNT(chain)) {
            tornado__fail(TORNADO_ERR_INVALID, 0,
                          "the parents of a handler class form a ring, or are more than %zu",
                          TORNADO__COUNT(chain));
            return NULL;
        }
        chain[depth++] = at;
    }
    while (depth-- > 0) {
        tornado__flat_class *known = application->classes;
        while (known && known->original != chain[depth])
            known = known->next;
        if (!known) {
            known = tornado_arena_calloc(application->arena, 1, sizeof *known);
            if (!known)
                return NULL;
            known->original = chain[depth];
            known->flat = *chain[depth];
            if (known->flat.name &&
                !(known->flat.name = tornado_arena_strdup(application->arena, known->flat.name)))
                return NULL;
            if (!tornado__class_copy_methods(application, &known->flat, flat))
                return NULL;
            tornado__class_inherit(&known->flat, flat);
            known->next = application->classes;
            application->classes = known;
        }
        flat = &known->flat;
    }
    return flat;
}

static const tornado_handler_class *tornado__application_class(void *arg, const tornado_handler_class *original)
{
    return tornado__class_flatten(arg, original);
}

/* Adds rules at a place among the routes. */
static bool tornado__application_add_rules(tornado_application *application, const tornado_rule *rules,
                                           const tornado__route_guard *guard, int *at)
{
    tornado__rule_target target = {&application->router, application->arena, at, tornado__application_class,
                                   application};
    return tornado__router_add_rules(&target, rules, guard, 1);
}

/* The rules stand before those for any host; and behind them once more, for requests that count as for the default
   host. */
TORNADO_API bool tornado_application_add_handlers(tornado_application *application, const char *host_pattern,
                                                  const tornado_rule *rules)
{
    tornado__router *router = &application->router;
    int count = router->count, host_count = router->host_count;
    const tornado__route_guard *guard = tornado__rule_guard(router, application->arena, host_pattern, NULL, NULL);
    bool ok = guard && tornado__application_add_rules(application, rules, guard, &router->host_count);
    if (ok && application->settings.default_host) {
        tornado__route_guard *copy = (void *)tornado_arena_memdup(application->arena, guard, sizeof *guard);
        int end = router->count;
        if (copy)
            copy->default_host = true;
        ok = copy && tornado__application_add_rules(application, rules, copy, &end);
    }
    if (ok && tornado__router_index(router))
        return true;
    memmove(&router->routes[host_count], &router->routes[router->host_count],
            (size_t)(router->count - router->host_count) * sizeof *router->routes); /* as it was before */
    router->host_count = host_count;
    router->count = count;
    tornado__router_fill(router); /* the routes may have moved */
    return false;
}

static bool tornado__application_copy_settings(tornado_application *application)
{
    tornado_settings *settings = &application->settings;
    return !settings->default_host ||
           (settings->default_host = tornado_arena_strdup(application->arena, settings->default_host)) != NULL;
}

static bool tornado__application_fill(tornado_application *application, const tornado_rule *rules,
                                      const tornado_settings *settings)
{
    if (settings)
        application->settings = *settings;
    application->base = tornado__base_class;
    application->base.parent = &application->base; /* so that a class without a parent may call it */
    const tornado_handler_class *fallback = application->settings.default_handler_class;
    application->fallback.handler =
        tornado__class_flatten(application, fallback ? fallback : &tornado__not_found_class);
    application->fallback.data = application->settings.default_handler_data;
    if (!application->fallback.handler || !tornado__application_copy_settings(application))
        return false;
    int end = 0;
    return tornado__application_add_rules(application, rules, NULL, &end) &&
           tornado__router_index(&application->router);
}

TORNADO_API tornado_application *tornado_application_new(const tornado_rule *rules,
                                                         const tornado_settings *settings)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_application *application = arena ? tornado_arena_calloc(arena, 1, sizeof *application) : NULL;
    if (application) {
        application->arena = arena;
        application->references = 1;
        if (tornado__application_fill(application, rules, settings))
            return application;
    }
    tornado_gen_log(TORNADO_LOG_ERROR, "tornado_application_new: %s", tornado_last_error()->message);
    if (application)
        tornado__router_free(&application->router);
    tornado_arena_free(arena);
    return NULL;
}

TORNADO_API void tornado_application_free(tornado_application *application)
{
    if (!application)
        return;
    for (tornado__app_server *at = application->servers; at; at = at->next)
        tornado_httpserver_free(at->server);
    if (--application->references == 0)
        tornado__application_delete(application);
}

TORNADO_API tornado_httpserver *tornado_application_listen(tornado_application *application, int port,
                                                           const tornado_httpserver_options *options)
{
    tornado__app_server *entry = tornado_arena_alloc(application->arena, sizeof *entry);
    tornado_httpserver *server =
        entry ? tornado_httpserver_new(&tornado__application_delegate, application, options) : NULL;
    if (!server) {
        tornado_gen_log(TORNADO_LOG_ERROR, "tornado_application_listen: %s", tornado_last_error()->message);
        return NULL;
    }
    if (!tornado_httpserver_listen(server, port, options ? &options->bind : NULL)) {
        tornado_error error = *tornado_last_error();
        tornado_httpserver_free(server);
        tornado__thread.last = error;
        return NULL;
    }
    entry->server = server;
    entry->next = application->servers;
    application->servers = entry;
    return server;
}

#endif /* TORNADO_IMPLEMENTATION */

/*
   MIT License

   Copyright (c) 2026 the tornado.h authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
   documentation files (the "Software"), to deal in the Software without restriction, including without limitation
   the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
   to permit persons to whom the Software is furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
   Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
   WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
   COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
   OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
