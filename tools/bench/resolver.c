/* Names and connections: what it costs to ask a name server on this machine (dnsmasq) for a name that is not known yet,
   for one that is, and to look up localhost; beside c-ares (-DBENCH_CARES), getaddrinfo and a bare epoll loop. What a
   connection costs both ends, in one process, from connect to close; beside a bare epoll loop.

     resolver SECONDS    measures: a line "case engine figure unit" for each, separated by tabs. Times are CPU time,
                         user and system, the least of several runs of SECONDS

   64 lookups are under way at once; connections follow each other. c-ares asks all questions from one port, with the
   letters as they are; tornado.h has a socket for each, so that whoever guesses has to guess the port as well. Each
   case has a process of its own. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include "process.h"

#ifdef BENCH_CARES
#include <ares.h>
#endif

enum { AT_ONCE = 64, TRIES = 3 };

static double seconds;
static int server_port;      /* of dnsmasq */
static int64_t until;        /* when to begin nothing any more */
static long done, under_way; /* lookups, or connections */
static bool same_name;       /* ask for the one name again and again */

static const char *next_name(char out[32])
{
    static unsigned long number;
    snprintf(out, 32, "n%lu.test", same_name ? 0 : number++);
    return out;
}

static bool time_is_up(void)
{
    return done % 16 == 0 && tornado__now_ns() >= until;
}

/* ---- tornado.h ---- */

static tornado_resolver *resolver;

static void ask(void);

static void answered(tornado_future *future, void *arg)
{
    (void)arg;
    require(!tornado_future_error(future) && ((tornado_addresses *)tornado_future_result(future))->count == 1);
    done++;
    if (until && time_is_up())
        until = 0;
    if (until)
        ask();
    else if (--under_way == 0)
        tornado_ioloop_stop(tornado_ioloop_current());
}

static void ask(void)
{
    char name[32];
    tornado_future *future = tornado_resolver_resolve(resolver, next_name(name), 80, AF_INET);
    require(tornado_future_add_done_callback(future, answered, NULL));
    tornado_future_release(future);
}

static void names_tornado(void)
{
    char server[32];
    const char *servers[] = {server, NULL};
    tornado_resolver_options options = {.kind = &tornado_dns_resolver, .nameservers = servers, .hosts = "/dev/null",
                                        .resolv_conf = "/dev/null"};
    snprintf(server, sizeof server, "127.0.0.1:%d", server_port);
    require((resolver = tornado_resolver_new(&options)) != NULL);
    for (under_way = 0; under_way < AT_ONCE; under_way++)
        ask();
    tornado_ioloop_start(tornado_ioloop_current());
}

/* Without the loop: what is known is there at once. */
static void known_tornado(void)
{
    char name[32];
    const char *host = next_name(name);
    tornado_resolver_options options = {.kind = &tornado_dns_resolver};
    require((resolver = tornado_resolver_new(&options)) != NULL);
    if (server_port) { /* learn it */
        same_name = true;
        until = 1;
        names_tornado();
        until = tornado__now_ns() + (int64_t)(seconds * 1e9);
        done = 0;
    } else {
        host = "localhost";
    }
    for (; !time_is_up(); done++) {
        tornado_future *future = tornado_resolver_resolve(resolver, host, 80, AF_INET);
        require(tornado_future_done(future) && !tornado_future_error(future));
        tornado_future_release(future);
    }
}

/* ---- the system ---- */

static void hosts_getaddrinfo(void)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    for (; !time_is_up(); done++) {
        require(getaddrinfo("localhost", NULL, &hints, &found) == 0);
        freeaddrinfo(found);
    }
}

/* ---- c-ares ---- */

#ifdef BENCH_CARES
static ares_channel channel;

static void ask_cares(void);

static void answered_cares(void *arg, int status, int timeouts, struct ares_addrinfo *found)
{
    (void)arg;
    (void)timeouts;
    require(status == ARES_SUCCESS && found->nodes != NULL);
    ares_freeaddrinfo(found);
    done++;
    if (until && time_is_up())
        until = 0;
    if (until)
        ask_cares();
    else
        under_way--;
}

static void ask_cares(void)
{
    char name[32];
    struct ares_addrinfo_hints hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = ARES_AI_NOSORT};
    ares_getaddrinfo(channel, server_port ? next_name(name) : "localhost", NULL, &hints, answered_cares, NULL);
}

static void names_cares(void)
{
    struct ares_options options = {.lookups = (char *)(uintptr_t)(server_port ? "b" : "f")};
    char servers[32];
    require(ares_library_init(ARES_LIB_INIT_ALL) == ARES_SUCCESS &&
            ares_init_options(&channel, &options, ARES_OPT_LOOKUPS) == ARES_SUCCESS);
    snprintf(servers, sizeof servers, "127.0.0.1:%d", server_port);
    require(!server_port || ares_set_servers_ports_csv(channel, servers) == ARES_SUCCESS);
    if (!server_port) { /* it answers at once, from within the call */
        for (int64_t end = until; tornado__now_ns() < end;) {
            until = 0;
            under_way = 1;
            ask_cares();
        }
        return;
    }
    for (under_way = 0; under_way < AT_ONCE; under_way++)
        ask_cares();
    while (under_way) {
        ares_socket_t fds[ARES_GETSOCK_MAXNUM];
        struct pollfd polled[ARES_GETSOCK_MAXNUM];
        nfds_t count = 0;
        int bits = ares_getsock(channel, fds, ARES_GETSOCK_MAXNUM);
        for (int i = 0; i < ARES_GETSOCK_MAXNUM; i++)
            if (ARES_GETSOCK_READABLE(bits, i))
                polled[count++] = (struct pollfd){.fd = fds[i], .events = POLLIN};
        require(poll(polled, count, 1000) >= 0);
        for (nfds_t i = 0; i < count; i++)
            if (polled[i].revents)
                ares_process_fd(channel, polled[i].fd, ARES_SOCKET_BAD);
    }
}
#endif

/* ---- a bare loop, that neither checks nor keeps anything, with a socket for each question, too ---- */

static void ask_epoll(int epoll)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char name[32], question[64] = "id\1\0\0\1\0\0\0\0\0\0";
    int label = (int)strcspn(next_name(name), "."), fd = tornado__socket(AF_INET, SOCK_DGRAM);
    int len = 12 + snprintf(question + 12, 40, "%c%.*s\4test", label, label, name) + 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    question[len + 1] = question[len + 3] = 1;
    len += 4;
    require(connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
            send(fd, question, (size_t)len, 0) == len && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void names_epoll(void)
{
    struct epoll_event events[AT_ONCE];
    char reply[1232];
    int epoll = epoll_create1(0);
    for (under_way = 0; under_way < AT_ONCE; under_way++)
        ask_epoll(epoll);
    while (under_way) {
        int count = epoll_wait(epoll, events, AT_ONCE, 1000);
        for (int i = 0; i < count; i++) {
            require(recv(events[i].data.fd, reply, sizeof reply, 0) > 28 && close(events[i].data.fd) == 0);
            done++;
            if (until && time_is_up())
                until = 0;
            if (until)
                ask_epoll(epoll);
            else
                under_way--;
        }
    }
}

/* ---- connections ---- */

static tornado_tcpclient *client;
static int connect_port;

static void wait_for_the_end(tornado_iostream *stream, void *arg)
{
    (void)arg;
    (void)tornado_wait(tornado_iostream_read_until_close(stream));
}

static void *connect_all(void *arg)
{
    tornado_scope scope;
    for (; !time_is_up(); done++) {
        tornado_scope_enter(&scope);
        (void)tornado_await(tornado_tcpclient_connect(client, "127.0.0.1", connect_port, NULL));
        tornado_scope_leave(&scope);
    }
    return arg;
}

static void connect_tornado(void)
{
    tornado_bind_options options = {.address = "127.0.0.1"};
    tornado_tcpserver *server = tornado_tcpserver_new(wait_for_the_end, NULL, NULL);
    require(server && tornado_tcpserver_listen(server, 0, &options));
    connect_port = tornado_tcpserver_port(server);
    require((client = tornado_tcpclient_new(NULL)) != NULL);
    tornado_ioloop_run_sync(tornado_ioloop_current(), connect_all, NULL);
}

/* Both ends as a careful program has them: without blocking, and each end sees that the other has closed. */
static void connect_epoll(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = tornado__socket(AF_INET, SOCK_STREAM), epoll = epoll_create1(0), on = 1;
    require(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 128) == 0 &&
            getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    require(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0);
    for (; !time_is_up(); done++) {
        char byte;
        int ends[2] = {tornado__socket(AF_INET, SOCK_STREAM), -1};
        setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        require(connect(ends[0], (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS);
        event = (struct epoll_event){.events = EPOLLOUT, .data.fd = ends[0]};
        require(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) == 0);
        for (bool connected = false, closed = false; !closed;) {
            struct epoll_event ready[4];
            int count = epoll_wait(epoll, ready, 4, -1);
            for (int i = 0; i < count; i++)
                if (ready[i].data.fd == listener) {
                    struct sockaddr_in from;
                    socklen_t from_len = sizeof from;
                    ends[1] = accept4(listener, (struct sockaddr *)&from, &from_len, SOCK_NONBLOCK | SOCK_CLOEXEC);
                    setsockopt(ends[1], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    event = (struct epoll_event){.events = EPOLLIN, .data.fd = ends[1]};
                    require(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &event) == 0);
                } else if (ready[i].data.fd == ends[1]) {
                    require(recv(ends[1], &byte, 1, 0) == 0 && close(ends[1]) == 0);
                    closed = true;
                } else if (!connected) {
                    int error = 0;
                    socklen_t size = sizeof error;
                    require(getsockopt(ends[0], SOL_SOCKET, SO_ERROR, &error, &size) == 0 && !error);
                    connected = true;
                    require(close(ends[0]) == 0);
                }
        }
    }
}

/* ---- measuring ---- */

/* Runs `work` in a process of its own, a few times; prints the least of them for one lookup or connection. */
static void measure(const char *name, const char *engine, void (*work)(void))
{
    double best = 1e300;
    for (int i = 0; i < TRIES; i++) {
        int result[2];
        double ns = 0;
        require(pipe(result) == 0);
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            until = tornado__now_ns() + (int64_t)(seconds * 1e9);
            double begin = cpu_ns();
            work();
            ns = (cpu_ns() - begin) / (double)done;
            require(write(result[1], &ns, sizeof ns) == sizeof ns);
            _exit(0);
        }
        require(read(result[0], &ns, sizeof ns) == sizeof ns && waitpid(pid, NULL, 0) == pid);
        close(result[0]);
        close(result[1]);
        best = ns < best ? ns : best;
    }
    printf("%s\t%s\t%.1f\tns\n", name, engine, best);
}

/* dnsmasq on a port that was free a moment ago: every name below "test" has an address. -1 when it is not there. */
static pid_t dnsmasq_start(void)
{
    tornado_sockets sockets;
    char port[32];
    tornado_bind_options options = {.address = "127.0.0.1"};
    require(tornado_bind_sockets(&sockets, 0, &options));
    server_port = sockets.port;
    tornado_sockets_close(&sockets);
    snprintf(port, sizeof port, "--port=%d", server_port);
    pid_t pid = fork();
    if (pid == 0) {
        execlp("dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
               "--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file=", "--user=", "--group=",
               "--local-ttl=3600", "--address=/test/192.0.2.1", "--dns-forward-max=1000", port, (char *)NULL);
        _exit(127);
    }
    for (int tries = 0; tries < 200; tries++) {
        struct timespec moment = {0, 20000000};
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        bool there = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
        close(fd);
        if (there)
            return pid;
        if (waitpid(pid, NULL, WNOHANG) == pid)
            return -1;
        nanosleep(&moment, NULL);
    }
    return -1;
}

int main(int argc, char **argv)
{
    seconds = argc > 1 ? atof(argv[1]) : 0.3;
    pid_t dnsmasq = dnsmasq_start();
    if (dnsmasq > 0) {
        measure("lookup", "tornado.h", names_tornado);
#ifdef BENCH_CARES
        measure("lookup", "c-ares", names_cares);
#endif
        measure("lookup", "epoll", names_epoll);
        measure("known", "tornado.h", known_tornado);
        require(kill(dnsmasq, SIGKILL) == 0 && waitpid(dnsmasq, NULL, 0) == dnsmasq);
    }
    server_port = 0;
    measure("localhost", "tornado.h", known_tornado);
    measure("localhost", "getaddrinfo", hosts_getaddrinfo);
#ifdef BENCH_CARES
    measure("localhost", "c-ares", names_cares);
#endif
    measure("connection", "tornado.h", connect_tornado);
    measure("connection", "epoll", connect_epoll);
    return 0;
}
