/* The asynchronous core: what a switch, a coroutine, a timer, a callback of another thread and a wait cost, beside
   libc's ucontext, libev (-DBENCH_LIBEV), libuv (-DBENCH_LIBUV) and libevent (-DBENCH_LIBEVENT).

     core SECONDS    measures: a line "case engine figure unit" for each, separated by tabs. Times are the least of
                     several of which each takes SECONDS; of CPU time, but where two threads work, which is by the clock

   Each case has a process of its own, so that none finds memory or caches as another left them. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#ifdef BENCH_LIBEV /* before libevent, which has macros of the same names */
#include <ev.h>
#endif
#ifdef BENCH_LIBEVENT
#include <event2/event.h>
#include <event2/event_struct.h>
#endif
#ifdef BENCH_LIBUV
#include <uv.h>
#endif

enum { BATCH = 1000, MOST = 1000000, POSTS = 1000000, WAITING = 100000, REQUESTS = 1000, DEEP = 32768, TRIES = 5,
       REST = 8 /* seconds */ };

static double seconds; /* that one measurement takes */

static void require(bool ok)
{
    if (!ok)
        abort();
}

static double ns_by(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* Nanoseconds of one of the `count` rounds that work(count) does. */
static double ns_of(void (*work)(long count))
{
    double best = 1e300;
    long count = BATCH;
    for (int i = 0; i < TRIES;) {
        double begin = ns_by(CLOCK_THREAD_CPUTIME_ID);
        work(count);
        double spent = ns_by(CLOCK_THREAD_CPUTIME_ID) - begin;
        if (spent < seconds * 1e9) {
            count = spent > seconds * 1e8 ? (long)((double)count * seconds * 1.1e9 / spent) + 1 : count * 10;
            continue;
        }
        best = spent / (double)count < best ? spent / (double)count : best;
        i++;
    }
    return best;
}

static void print(const char *what, const char *engine, double figure, const char *unit)
{
    printf("%s\t%s\t%.3f\t%s\n", what, engine, figure, unit);
}

/* Runs a case in a process of its own. */
static void apart(void (*measure)(const void *arg), const void *arg)
{
    fflush(stdout);
    int status = 0;
    pid_t child = fork();
    require(child >= 0);
    if (child == 0) {
        measure(arg);
        fflush(stdout);
        _exit(0);
    }
    require(waitpid(child, &status, 0) == child);
    if (status != 0)
        exit(1);
}

static unsigned next_random(unsigned limit)
{
    static uint64_t state = 1;
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)((state >> 33) * limit >> 31);
}

/*----------------------------------------------------------------------------
 * Coroutines.
 *----------------------------------------------------------------------------*/

static tornado_ioloop *loop;

static void *switch_forever(void *arg)
{
    tornado__coroutine *self = tornado__running()->coroutine;
    while (self)
        tornado__coroutine_suspend(self);
    return arg;
}

static void ours_switch(long count)
{
    tornado__coroutine *co = TORNADO__CONTAINER(loop->stacks->alive.next, tornado__coroutine, link);
    for (long i = 0; i < count; i++)
        tornado__coroutine_continue(co);
}

static void *nothing(void *arg)
{
    return arg;
}

static void ours_spawn(long count)
{
    for (long done = 0; done < count; done += BATCH / 4) {
        for (int i = 0; i < BATCH / 4; i++)
            tornado_future_release(tornado_spawn(nothing, NULL));
        tornado_ioloop_run_once(loop, 0);
    }
}

static void ours_spawn_callback(long count)
{
    for (long done = 0; done < count; done += BATCH / 4) {
        for (int i = 0; i < BATCH / 4; i++)
            require(tornado_ioloop_spawn_callback(loop, nothing, NULL));
        tornado_ioloop_run_once(loop, 0);
    }
}

/* As a request's handler is run: at once, without a future. */
static void ours_run(long count)
{
    for (long i = 0; i < count; i++)
        require(tornado__coroutine_continue(tornado__coroutine_new(loop, nothing, NULL, "coroutine")));
}

static ucontext_t here, there;
static char there_stack[65536];

static void there_forever(void)
{
    for (;;)
        swapcontext(&there, &here);
}

static void there_once(void)
{
}

static void there_make(void (*fn)(void))
{
    there.uc_stack.ss_sp = there_stack;
    there.uc_stack.ss_size = sizeof there_stack;
    there.uc_link = &here;
    makecontext(&there, fn, 0);
}

static void ucontext_switch(long count)
{
    for (long i = 0; i < count; i++)
        swapcontext(&here, &there);
}

static void ucontext_spawn(long count)
{
    for (long i = 0; i < count; i++) {
        there_make(there_once);
        swapcontext(&here, &there);
    }
}

static void measure_coroutines(const void *arg)
{
    (void)arg;
    loop = tornado_ioloop_current();
    require(loop != NULL);
    print("spawn, run, end; its future", "tornado.h", ns_of(ours_spawn), "ns");
    print("spawn, run, end", "tornado.h", ns_of(ours_spawn_callback), "ns");
    print("run, end", "tornado.h", ns_of(ours_run), "ns");
    require(!tornado__coroutine_continue(tornado__coroutine_new(loop, switch_forever, NULL, "coroutine")));
    print("switch and back", "tornado.h", ns_of(ours_switch), "ns");
    getcontext(&there);
    print("run, end", "ucontext", ns_of(ucontext_spawn), "ns");
    there_make(there_forever);
    print("switch and back", "ucontext", ns_of(ucontext_switch), "ns");
}

/*----------------------------------------------------------------------------
 * Timers: MOST at most are armed, and a batch of further ones.
 *----------------------------------------------------------------------------*/

typedef struct timers {
    const char *name;
    void (*open)(int count);
    void (*set)(int i, int ms); /* one that is not armed */
    void (*clear)(int i);
    void (*later)(int i, int ms); /* one that is armed, to a later time than before */
} timers;

static void *allocate(int count, size_t size)
{
    void *memory = calloc((size_t)count, size);
    require(memory != NULL);
    return memory;
}

static tornado__timer *inner_timers;
static int64_t inner_now;

static void inner_open(int count)
{
    loop = tornado_ioloop_current();
    inner_timers = allocate(count, sizeof *inner_timers);
    inner_now = tornado__now_ns();
}

static void inner_set(int i, int ms)
{
    require(tornado__timer_set(loop, &inner_timers[i], inner_now + (int64_t)ms * 1000000));
}

static void inner_clear(int i)
{
    tornado__timer_clear(loop, &inner_timers[i]);
}

static tornado_timeout *our_timers;
static double our_now;

static void never(void *arg)
{
    (void)arg;
}

static void ours_open(int count)
{
    loop = tornado_ioloop_current();
    our_timers = allocate(count, sizeof *our_timers);
    our_now = tornado_ioloop_time(loop);
}

/* From a time that was read before, as the others do. */
static void ours_set(int i, int ms)
{
    our_timers[i] = tornado_ioloop_call_at(loop, our_now + ms / 1e3, never, NULL);
    require(our_timers[i] != 0);
}

static void ours_set_from_now(int i, int ms)
{
    our_timers[i] = tornado_ioloop_call_later(loop, ms / 1e3, never, NULL);
    require(our_timers[i] != 0);
}

static void ours_clear(int i)
{
    require(tornado_ioloop_remove_timeout(loop, our_timers[i]));
}

static void ours_later(int i, int ms)
{
    ours_clear(i);
    ours_set(i, ms);
}

#ifdef BENCH_LIBEV
static struct ev_loop *ev;
static ev_timer *ev_timers;

static void ev_never(struct ev_loop *of, ev_timer *timer, int events)
{
    (void)of;
    (void)timer;
    (void)events;
}

static void ev_open(int count)
{
    ev = ev_default_loop(0);
    ev_timers = allocate(count, sizeof *ev_timers);
    for (int i = 0; i < count; i++)
        ev_timer_init(&ev_timers[i], ev_never, 0, 0);
}

static void ev_set(int i, int ms)
{
    ev_timer_set(&ev_timers[i], ms / 1e3, ms / 1e3);
    ev_timer_start(ev, &ev_timers[i]);
}

static void ev_clear(int i)
{
    ev_timer_stop(ev, &ev_timers[i]);
}

static void ev_later(int i, int ms)
{
    ev_timers[i].repeat = ms / 1e3;
    ev_timer_again(ev, &ev_timers[i]);
}
#endif

#ifdef BENCH_LIBUV
static uv_timer_t *uv_timers;

static void uv_never(uv_timer_t *timer)
{
    (void)timer;
}

static void uv_open(int count)
{
    uv_timers = allocate(count, sizeof *uv_timers);
    for (int i = 0; i < count; i++)
        uv_timer_init(uv_default_loop(), &uv_timers[i]);
}

static void uv_set(int i, int ms)
{
    require(uv_timer_start(&uv_timers[i], uv_never, (uint64_t)ms, 0) == 0);
}

static void uv_clear(int i)
{
    uv_timer_stop(&uv_timers[i]);
}
#endif

#ifdef BENCH_LIBEVENT
static struct event *event_timers;

static void event_never(evutil_socket_t fd, short events, void *arg)
{
    (void)fd;
    (void)events;
    (void)arg;
}

static void event_open(int count)
{
    struct event_base *base = event_base_new();
    event_timers = allocate(count, sizeof *event_timers);
    for (int i = 0; i < count; i++)
        evtimer_assign(&event_timers[i], base, event_never, NULL);
}

static void event_set(int i, int ms)
{
    struct timeval in = {ms / 1000, ms % 1000 * 1000};
    require(event_add(&event_timers[i], &in) == 0);
}

static void event_clear(int i)
{
    event_del(&event_timers[i]);
}
#endif

static const timers engines[] = {
    {"tornado.h", ours_open, ours_set, ours_clear, ours_later},
    {"tornado.h, call_later", ours_open, ours_set_from_now, ours_clear, ours_later},
    {"tornado.h, inside", inner_open, inner_set, inner_clear, inner_set},
#ifdef BENCH_LIBEV
    {"libev", ev_open, ev_set, ev_clear, ev_later},
#endif
#ifdef BENCH_LIBUV
    {"libuv", uv_open, uv_set, uv_clear, uv_set},
#endif
#ifdef BENCH_LIBEVENT
    {"libevent", event_open, event_set, event_clear, event_set},
#endif
};

static const timers *engine;
static int armed;

static int some_ms(void)
{
    return 3600000 + (int)next_random(3600000);
}

static void timers_add_cancel(long count)
{
    for (long done = 0; done < count; done += BATCH) {
        for (int i = armed; i < armed + BATCH; i++)
            engine->set(i, some_ms());
        for (int i = armed; i < armed + BATCH; i++)
            engine->clear(i);
    }
}

/* Of timers all over the memory. */
static void timers_cancel_add(long count)
{
    for (long done = 0; done < count; done++) {
        int i = (int)next_random((unsigned)armed);
        engine->clear(i);
        engine->set(i, some_ms());
    }
}

static void timers_later(long count)
{
    static int ms = 7200000;
    for (long done = 0; done < count; done += BATCH, ms++)
        for (int i = 0; i < BATCH; i++)
            engine->later(i, ms);
}

static void measure_timers(const void *arg)
{
    char what[60];
    engine = arg;
    engine->open(MOST + BATCH);
    for (int i = 0, count = 1000; count <= MOST; count *= 10) {
        for (armed = count; i < count; i++)
            engine->set(i, some_ms());
        snprintf(what, sizeof what, "add, cancel; %d timers", count);
        print(what, engine->name, ns_of(timers_add_cancel), "ns");
        snprintf(what, sizeof what, "cancel any, add; %d timers", count);
        print(what, engine->name, ns_of(timers_cancel_add), "ns");
    }
    print("to a later time; 1000000 timers", engine->name, ns_of(timers_later), "ns");
}

/*----------------------------------------------------------------------------
 * Callbacks of another thread. libev and libuv only wake; the line that programs bring is one behind a lock.
 *----------------------------------------------------------------------------*/

typedef struct inbox {
    const char *name;
    void (*open)(void);
    void (*post)(void);
    void (*run)(void); /* until POSTS have come */
} inbox;

static long came, wakes;

static int counted_wait(void *state, tornado_poller_event *events, int max, int64_t timeout_ns)
{
    int count = tornado__poller_epoll.wait(state, events, max, timeout_ns);
    wakes += count > 0;
    return count;
}

static void ours_came(void *arg)
{
    (void)arg;
    if (++came == POSTS)
        tornado_ioloop_stop(loop);
}

static void inbox_ours_open(void)
{
    static tornado_poller poller;
    poller = tornado__poller_epoll;
    poller.wait = counted_wait;
    loop = tornado_ioloop_new(&(tornado_ioloop_options){.custom = &poller});
    require(loop != NULL);
}

static void inbox_ours_post(void)
{
    require(tornado_ioloop_add_callback(loop, ours_came, NULL));
}

static void inbox_ours_run(void)
{
    tornado_ioloop_start(loop);
}

#if defined(BENCH_LIBEV) || defined(BENCH_LIBUV)
typedef struct note {
    struct note *next;
} note;

static pthread_mutex_t notes_lock = PTHREAD_MUTEX_INITIALIZER;
static note *notes, **notes_end = &notes;

/* Whether it is the first, for which the loop has to be woken. */
static bool notes_put(void)
{
    note *more = allocate(1, sizeof *more);
    pthread_mutex_lock(&notes_lock);
    bool first = !notes;
    *notes_end = more;
    notes_end = &more->next;
    pthread_mutex_unlock(&notes_lock);
    return first;
}

/* Whether all have come. */
static bool notes_take(void)
{
    pthread_mutex_lock(&notes_lock);
    note *all = notes;
    notes = NULL;
    notes_end = &notes;
    pthread_mutex_unlock(&notes_lock);
    wakes++;
    for (note *next; all; all = next, came++) {
        next = all->next;
        free(all);
    }
    return came == POSTS;
}
#endif

#ifdef BENCH_LIBEV
static ev_async ev_inbox;

static void ev_came(struct ev_loop *of, ev_async *async, int events)
{
    (void)async;
    (void)events;
    if (notes_take())
        ev_break(of, EVBREAK_ALL);
}

static void inbox_ev_open(void)
{
    ev = ev_default_loop(0);
    ev_async_init(&ev_inbox, ev_came);
    ev_async_start(ev, &ev_inbox);
}

static void inbox_ev_post(void)
{
    if (notes_put())
        ev_async_send(ev, &ev_inbox);
}

static void inbox_ev_run(void)
{
    ev_run(ev, 0);
}
#endif

#ifdef BENCH_LIBUV
static uv_async_t uv_inbox;

static void uv_came(uv_async_t *async)
{
    if (notes_take())
        uv_stop(async->loop);
}

static void inbox_uv_open(void)
{
    require(uv_async_init(uv_default_loop(), &uv_inbox, uv_came) == 0);
}

static void inbox_uv_post(void)
{
    if (notes_put())
        uv_async_send(&uv_inbox);
}

static void inbox_uv_run(void)
{
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
#endif

static const inbox inboxes[] = {
    {"tornado.h", inbox_ours_open, inbox_ours_post, inbox_ours_run},
#ifdef BENCH_LIBEV
    {"libev", inbox_ev_open, inbox_ev_post, inbox_ev_run},
#endif
#ifdef BENCH_LIBUV
    {"libuv", inbox_uv_open, inbox_uv_post, inbox_uv_run},
#endif
};

static void *post_all(void *arg)
{
    const inbox *to = arg;
    for (int i = 0; i < POSTS; i++)
        to->post();
    return NULL;
}

static void measure_inbox(const void *arg)
{
    const inbox *to = arg;
    double best = 1e300;
    long batches = 0;
    to->open();
    for (int i = 0; i < TRIES; i++) {
        pthread_t thread;
        came = wakes = 0;
        double begin = ns_by(CLOCK_MONOTONIC);
        require(pthread_create(&thread, NULL, post_all, (void *)to) == 0);
        to->run();
        double spent = ns_by(CLOCK_MONOTONIC) - begin;
        pthread_join(thread, NULL);
        if (spent < best) {
            best = spent;
            batches = wakes;
        }
    }
    print("another thread's callbacks", to->name, POSTS / best * 1e3, "million/s");
    print("another thread's callbacks", to->name, (double)POSTS / (double)batches, "for each wake-up");
}

/*----------------------------------------------------------------------------
 * Memory of those that wait.
 *----------------------------------------------------------------------------*/

/* A figure of /proc/self/status, in bytes. */
static double status_of(const char *name)
{
    char line[200];
    double kilobytes = -1;
    FILE *file = fopen("/proc/self/status", "r");
    require(file != NULL);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0)
            kilobytes = atof(line + strlen(name));
    fclose(file);
    return kilobytes * 1024;
}

typedef struct memory {
    double resident, tables;
} memory;

static memory memory_now(void)
{
    return (memory){status_of("VmRSS:"), status_of("VmPTE:")};
}

static void print_memory(const char *what, memory before, int count)
{
    char tables[100];
    memory after = memory_now();
    snprintf(tables, sizeof tables, "%s: page tables", what);
    print(what, "tornado.h", (after.resident - before.resident) / count, "bytes");
    print(tables, "tornado.h", (after.tables - before.tables) / count, "bytes");
}

static TORNADO__NOINLINE void use_stack(void)
{
    volatile char used[DEEP];
    for (size_t i = 0; i < sizeof used; i += 512)
        used[i] = 1;
}

static void *sleep_long(void *arg)
{
    if (arg)
        use_stack();
    tornado_wait(tornado_sleep(3600));
    return NULL;
}

static void *end_deep(void *arg)
{
    use_stack();
    return arg;
}

static void spawn_all(int count, tornado_coroutine_fn fn, void *arg)
{
    for (int i = 0; i < count; i++)
        require(tornado_ioloop_spawn_callback(loop, fn, arg));
    tornado_ioloop_run_once(loop, 0);
}

enum { SHALLOW, DEEP_BEFORE, DEEP_SINCE };

static void measure_sleepers(const void *arg)
{
    static const char *const names[] = {"a coroutine that waits", "its stack was deep before it",
                                        "its own stack was deep"};
    int depth = *(const int *)arg, count = depth == DEEP_SINCE ? WAITING / 10 : WAITING;
    loop = tornado_ioloop_new(&(tornado_ioloop_options){.max_coroutines = WAITING + 1});
    require(loop != NULL);
    memory before = memory_now();
    if (depth == DEEP_BEFORE)
        spawn_all(count, end_deep, NULL);
    spawn_all(count, sleep_long, depth == DEEP_SINCE ? loop : NULL);
    require(tornado_ioloop_coroutines(loop) == (size_t)count);
    for (int i = 0; depth == DEEP_SINCE && i < REST * 10; i++)
        tornado_ioloop_run_once(loop, 0.1);
    print_memory(names[depth], before, count);
}

static int requests;

static void get_late(tornado_handler *self)
{
    requests++;
    tornado_await(tornado_sleep(3600));
    tornado_write(self, "late");
}

static const tornado_handler_class late = {.get = get_late};

static void ask(int port, int count)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        require(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
        require(write(fd, request, sizeof request - 1) == (ssize_t)sizeof request - 1);
        tornado_ioloop_run_once(loop, 0);
    }
    while (requests < count)
        tornado_ioloop_run_once(loop, 1);
    requests = 0;
}

static void measure_requests(const void *arg)
{
    struct rlimit files = {3 * REQUESTS, 3 * REQUESTS};
    (void)arg;
    loop = tornado_ioloop_current();
    tornado_application *app =
        tornado_application_new((tornado_rule[]){{.path = "/", .handler = &late}, {0}}, NULL);
    tornado_httpserver *server =
        app ? tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind = {.address = "127.0.0.1"}})
            : NULL;
    require(server != NULL && setrlimit(RLIMIT_NOFILE, &files) == 0);
    ask(tornado_httpserver_port(server), REQUESTS / 10);
    memory before = memory_now();
    ask(tornado_httpserver_port(server), REQUESTS);
    print_memory("a request that waits", before, REQUESTS);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SECONDS\n", argv[0]);
        return 2;
    }
    seconds = atof(argv[1]);
    apart(measure_coroutines, NULL);
    for (size_t i = 0; i < TORNADO__COUNT(engines); i++)
        apart(measure_timers, &engines[i]);
    for (size_t i = 0; i < TORNADO__COUNT(inboxes); i++)
        apart(measure_inbox, &inboxes[i]);
    for (int depth = SHALLOW; depth <= DEEP_SINCE; depth++)
        apart(measure_sleepers, &depth);
    apart(measure_requests, NULL);
    return 0;
}
