/* Streams: what a line costs a server that sends it back to 64 connections, what a line costs that is read from a long
   stream, and what an idle stream holds; beside a bare epoll loop without any buffers, libevent's bufferevent
   (-DBENCH_LIBEVENT) and libuv (-DBENCH_LIBUV).

     stream SECONDS    measures: a line "case engine figure unit" for each, separated by tabs. Times are CPU time, user
                       and system, of the process measured, the least of several runs of SECONDS

   Each case has a process of its own; who sends has another. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include "process.h"

#ifdef BENCH_LIBEVENT
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#endif
#ifdef BENCH_LIBUV
#include <uv.h>
#endif

enum { CONNECTIONS = 64, LINE = 80, TRIES = 3, IDLE = 10000, MEGABYTES = 100 };

static double seconds;
static int pairs[CONNECTIONS][2]; /* connected: the server's, the client's */
static long lines;                /* what the engine under test has done */

static void tcp_pair(int ends[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    require(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0 &&
            getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    ends[1] = socket(AF_INET, SOCK_STREAM, 0);
    require(connect(ends[1], (struct sockaddr *)&address, sizeof address) == 0);
    ends[0] = accept(listener, NULL, NULL);
    close(listener);
    for (int i = 0; i < 2; i++) {
        setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        require(fcntl(ends[i], F_SETFL, O_NONBLOCK) == 0);
    }
}

/* ---- the other side: each connection has a line under way, for the time given ---- */

static void client_of_lines(void)
{
    struct epoll_event events[CONNECTIONS];
    char line[LINE];
    int epoll = epoll_create1(0);
    memset(line, 'x', LINE - 1);
    line[LINE - 1] = '\n';
    for (int i = 0; i < CONNECTIONS; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = pairs[i][1]};
        require(epoll_ctl(epoll, EPOLL_CTL_ADD, pairs[i][1], &event) == 0 &&
                send(pairs[i][1], line, LINE, MSG_NOSIGNAL) == LINE);
    }
    int64_t end = tornado__now_ns() + (int64_t)(seconds * 1e9);
    while (tornado__now_ns() < end) {
        int count = epoll_wait(epoll, events, CONNECTIONS, 100);
        for (int i = 0; i < count; i++)
            if (recv(events[i].data.fd, line, LINE, 0) > 0)
                send(events[i].data.fd, line, LINE, MSG_NOSIGNAL);
    }
}

static void client_of_one_stream(void)
{
    static char block[LINE * 800];
    memset(block, 'x', sizeof block);
    for (size_t i = LINE - 1; i < sizeof block; i += LINE)
        block[i] = '\n';
    fcntl(pairs[0][1], F_SETFL, 0);
    for (long left = MEGABYTES * 1000000L / (long)sizeof block; left > 0; left--)
        require(send(pairs[0][1], block, sizeof block, MSG_NOSIGNAL) == (ssize_t)sizeof block);
}

/* ---- the engines: each serves until the other side ends ---- */

static void echo_epoll(void)
{
    struct epoll_event events[CONNECTIONS];
    char data[65536];
    int epoll = epoll_create1(0), open = CONNECTIONS;
    for (int i = 0; i < CONNECTIONS; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = pairs[i][0]};
        require(epoll_ctl(epoll, EPOLL_CTL_ADD, pairs[i][0], &event) == 0);
    }
    while (open) {
        int count = epoll_wait(epoll, events, CONNECTIONS, -1);
        for (int i = 0; i < count; i++) {
            ssize_t got = recv(events[i].data.fd, data, sizeof data, 0);
            if (got <= 0) {
                close(events[i].data.fd);
                open--;
            } else if (send(events[i].data.fd, data, (size_t)got, MSG_NOSIGNAL) == got) {
                lines++;
            }
        }
    }
}

static void *echo_coroutine(void *arg)
{
    for (;;) {
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(arg, "\n"));
        tornado_await(tornado_iostream_write(arg, line));
        lines++;
    }
    return NULL;
}

static void *tornado_echo_all(void *arg)
{
    tornado_future *all[CONNECTIONS];
    for (int i = 0; i < CONNECTIONS; i++)
        all[i] = tornado_spawn(echo_coroutine, tornado_iostream_new(pairs[i][0], NULL));
    for (int i = 0; i < CONNECTIONS; i++)
        (void)tornado_wait(all[i]);
    return arg;
}

static void echo_tornado(void)
{
    tornado_ioloop_run_sync(tornado_ioloop_current(), tornado_echo_all, NULL);
}

static void *read_lines(void *arg)
{
    for (;;) {
        tornado_await_bytes(tornado_iostream_read_until(arg, "\n"));
        lines++;
    }
    return NULL;
}

static void lines_tornado(void)
{
    tornado_ioloop_run_sync(tornado_ioloop_current(), read_lines, tornado_iostream_new(pairs[0][0], NULL));
}

#ifdef BENCH_LIBEVENT
static struct event_base *base;
static int open_events;

static void libevent_end(struct bufferevent *event, short what, void *arg)
{
    (void)what, (void)arg;
    bufferevent_free(event);
    if (--open_events == 0)
        event_base_loopbreak(base);
}

static void libevent_echo(struct bufferevent *event, void *arg)
{
    size_t len;
    char *line;
    while ((line = evbuffer_readln(bufferevent_get_input(event), &len, EVBUFFER_EOL_LF)) != NULL) {
        if (arg) {
            line[len] = '\n';
            bufferevent_write(event, line, len + 1);
        }
        free(line);
        lines++;
    }
}

static void libevent_serve(int count, bool echo)
{
    base = event_base_new();
    open_events = count;
    for (int i = 0; i < count; i++) {
        struct bufferevent *event = bufferevent_socket_new(base, pairs[i][0], BEV_OPT_CLOSE_ON_FREE);
        bufferevent_setcb(event, libevent_echo, NULL, libevent_end, echo ? &lines : NULL);
        bufferevent_enable(event, EV_READ | EV_WRITE);
    }
    event_base_dispatch(base);
}

static void echo_libevent(void)
{
    libevent_serve(CONNECTIONS, true);
}

static void lines_libevent(void)
{
    libevent_serve(1, false);
}
#endif

#ifdef BENCH_LIBUV
static void uv_room(uv_handle_t *handle, size_t size, uv_buf_t *buffer)
{
    (void)handle;
    buffer->base = malloc(size);
    buffer->len = size;
}

static void uv_wrote(uv_write_t *request, int status)
{
    (void)status;
    free(request->data);
    free(request);
}

static void uv_got(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer)
{
    if (got < 0) {
        free(buffer->base);
        uv_close((uv_handle_t *)stream, NULL);
        return;
    }
    uv_write_t *request = malloc(sizeof *request);
    uv_buf_t out = uv_buf_init(buffer->base, (unsigned)got);
    request->data = buffer->base;
    uv_write(request, stream, &out, 1, uv_wrote);
    lines++;
}

static void echo_libuv(void)
{
    static uv_tcp_t streams[CONNECTIONS];
    for (int i = 0; i < CONNECTIONS; i++) {
        uv_tcp_init(uv_default_loop(), &streams[i]);
        uv_tcp_open(&streams[i], pairs[i][0]);
        uv_read_start((uv_stream_t *)&streams[i], uv_room, uv_got);
    }
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
#endif

/* ---- measuring ---- */

/* Runs `work` in a process with the other side in another; the least of a few times for a line, which is printed. */
static void measure(const char *name, const char *engine, void (*work)(void), void (*other)(void), int count)
{
    double best = 1e300;
    for (int i = 0; i < TRIES; i++) {
        int result[2];
        double ns = 0;
        require(pipe(result) == 0);
        fflush(stdout);
        for (int at = 0; at < count; at++)
            tcp_pair(pairs[at]);
        pid_t sender = fork();
        if (sender == 0) {
            for (int at = 0; at < count; at++)
                close(pairs[at][0]);
            other();
            _exit(0);
        }
        pid_t pid = fork();
        if (pid == 0) {
            for (int at = 0; at < count; at++)
                close(pairs[at][1]);
            double begin = cpu_ns();
            work();
            ns = (cpu_ns() - begin) / (double)lines;
            require(write(result[1], &ns, sizeof ns) == sizeof ns);
            _exit(0);
        }
        for (int at = 0; at < count; at++) {
            close(pairs[at][0]);
            close(pairs[at][1]);
        }
        require(read(result[0], &ns, sizeof ns) == sizeof ns && waitpid(pid, NULL, 0) == pid &&
                waitpid(sender, NULL, 0) == sender);
        close(result[0]);
        close(result[1]);
        best = ns < best ? ns : best;
    }
    printf("%s\t%s\t%.1f\tns\n", name, engine, best);
}

/* Memory of the process that the kernel has given pages for. */
static long private_bytes(void)
{
    long size = 0, resident = 0, shared = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    require(file && fscanf(file, "%ld %ld %ld", &size, &resident, &shared) == 3);
    fclose(file);
    return (resident - shared) * 4096;
}

static void ignore(void *arg)
{
    (void)arg;
}

static void idle(bool reading)
{
    static tornado_iostream *streams[IDLE];
    static tornado_future *reads[IDLE];
    static int fds[IDLE];
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < IDLE + 200)
        return;
    for (int i = 0; i < IDLE; i++) /* to which nothing will ever come */
        require((fds[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0)) >= 0);
    tornado_ioloop_current();
    long before = private_bytes();
    for (int i = 0; i < IDLE; i++) {
        require((streams[i] = tornado_iostream_new(fds[i], NULL)) != NULL);
        tornado_iostream_set_close_callback(streams[i], ignore, NULL);
        if (reading)
            require((reads[i] = tornado_iostream_read_until(streams[i], "\n")) != NULL);
    }
    printf("%s\ttornado.h\t%.0f\tbytes\n", reading ? "idle, reading" : "idle",
           (double)(private_bytes() - before) / IDLE);
}

static void alone(void (*work)(bool), bool arg)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        work(arg);
        fflush(stdout);
        _exit(0);
    }
    require(waitpid(pid, NULL, 0) == pid);
}

int main(int argc, char **argv)
{
    seconds = argc > 1 ? atof(argv[1]) : 0.3;
    measure("echo", "tornado.h", echo_tornado, client_of_lines, CONNECTIONS);
    measure("echo", "epoll", echo_epoll, client_of_lines, CONNECTIONS);
#ifdef BENCH_LIBEVENT
    measure("echo", "libevent", echo_libevent, client_of_lines, CONNECTIONS);
#endif
#ifdef BENCH_LIBUV
    measure("echo", "libuv", echo_libuv, client_of_lines, CONNECTIONS);
#endif
    measure("lines", "tornado.h", lines_tornado, client_of_one_stream, 1);
#ifdef BENCH_LIBEVENT
    measure("lines", "libevent", lines_libevent, client_of_one_stream, 1);
#endif
    alone(idle, false);
    alone(idle, true);
    return 0;
}
