/* A server with a coroutine for each connection: where it listens, what its handlers may do, and every end. */
#include "runtime.h"

#include "haproxy.h"
#include "http_client.h"

#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/un.h>

/* Runs the loop until something is true. */
#define UNTIL(expression)                                                                                          \
    do                                                                                                             \
        loop_turns(1);                                                                                             \
    while (!(expression))

#define LOOPBACK (&(tornado_bind_options){.address = "127.0.0.1"})

static struct {
    int begun, ended;     /* handlers */
    int code;             /* of the error that a handler saw, or is to raise */
    tornado_future *gate; /* handlers may wait for it */
    tornado_iostream *kept;
    tornado_tcpserver *server;
} state;

static void count_ended(void *arg)
{
    (void)arg;
    state.ended++;
}

/* What each handler begins with. */
static void begin(void)
{
    state.begun++;
    tornado_defer(count_ended, NULL);
}

static void echo(tornado_iostream *stream, void *arg)
{
    (void)arg;
    begin();
    for (;;) {
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
        tornado_await(tornado_iostream_write(stream, line));
    }
}

static void wait_for_gate(tornado_iostream *stream, void *arg)
{
    (void)arg;
    begin();
    tornado_await(tornado_future_retain(state.gate));
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of("open\n")));
}

static tornado_tcpserver *server_new(tornado_stream_handler handler, const tornado_tcpserver_options *options)
{
    memset(&state, 0, sizeof state);
    CHECK(tornado_ioloop_current() != NULL); /* its descriptors are none of the server's */
    state.server = tornado_tcpserver_new(handler, NULL, options);
    CHECK(state.server != NULL);
    return state.server;
}

/* A server on a free port of 127.0.0.1. */
static tornado_tcpserver *server_start(tornado_stream_handler handler, const tornado_tcpserver_options *options)
{
    tornado_tcpserver *server = server_new(handler, options);
    CHECK(tornado_tcpserver_listen(server, 0, LOOPBACK));
    CHECK(tornado_tcpserver_port(server) > 0);
    return server;
}

/* Frees a server whose connections were closed by their clients, and waits for its handlers. */
static void server_end(tornado_tcpserver *server)
{
    tornado_tcpserver_free(server);
    UNTIL(tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
    CHECK_INT(state.ended, state.begun);
}

static void check_line(client *c, const char *line)
{
    size_t len = strlen(line);
    CHECK(client_need(c, len));
    CHECK_MEM(c->data + c->taken, len, line, len);
    c->taken += len;
}

static void check_echo(client *c)
{
    client_send(c, "some line\n");
    check_line(c, "some line\n");
}

static bool port_refuses(int port)
{
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool refused = connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

static int open_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 2048; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static bool have_ipv6(void)
{
    tornado_sockets sockets;
    bool have = tornado_bind_sockets(&sockets, 0, &(tornado_bind_options){.address = "::1"});
    tornado_sockets_close(&sockets);
    return have;
}

/*----------------------------------------------------------------------------
 * Where it listens.
 *----------------------------------------------------------------------------*/

/* Connects to where a listening socket is bound, and gets a line back. */
static void check_served(const tornado_address *address)
{
    const struct sockaddr *to = (const void *)address->sockaddr.bytes;
    client c = {.fd = socket(to->sa_family, SOCK_STREAM, 0), .data = calloc(1, 1)};
    if (c.fd < 0 || connect(c.fd, to, (socklen_t)address->len) != 0)
        FAIL("cannot connect: %s", strerror(errno));
    set_nonblocking(c.fd);
    check_echo(&c);
    client_close(&c);
}

TEST_EACH_POLLER(tcp_serves_ipv4_ipv6_and_unix_sockets)
{
    tornado_address address;
    char path[64];
    snprintf(path, sizeof path, "/tmp/tornado-test-%d.sock", (int)getpid());
    tornado_tcpserver *server = server_new(echo, NULL);
    CHECK_INT(tornado_tcpserver_port(server), 0);
    CHECK(tornado_tcpserver_listen(server, 80, &(tornado_bind_options){.unix_socket = path}));
    CHECK_INT(tornado_tcpserver_port(server), 0);
    CHECK(tornado_address_unix(&address, path));
    check_served(&address);
    server_end(server);
    unlink(path);

    server = server_new(echo, NULL);
    CHECK(tornado_tcpserver_listen(server, 0, NULL)); /* every interface */
    int port = tornado_tcpserver_port(server);
    CHECK(port > 0);
    CHECK(tornado_address_ip(&address, "127.0.0.1", port));
    check_served(&address);
    CHECK(tornado_address_ip(&address, "::1", port));
    if (have_ipv6())
        check_served(&address);
    server_end(server);
}

TEST_EACH_POLLER(tcp_listens_on_several_ports)
{
    tornado_sockets sockets[2];
    tornado_tcpserver *server = server_start(echo, NULL);
    int ports[4] = {tornado_tcpserver_port(server)};
    CHECK(tornado_tcpserver_listen(server, 0, LOOPBACK));
    for (int i = 0; i < 2; i++) {
        CHECK(tornado_bind_sockets(&sockets[i], 0, LOOPBACK));
        ports[2 + i] = sockets[i].port;
    }
    CHECK(tornado_tcpserver_add_sockets(server, &sockets[0]));
    CHECK(tornado_tcpserver_add_socket(server, sockets[1].fds[0]));
    CHECK_INT(tornado_tcpserver_port(server), ports[0]); /* of the first */
    ports[1] = ports[0];
    client clients[4];
    for (int i = 0; i < 4; i++) {
        clients[i] = client_open(ports[i]);
        check_echo(&clients[i]);
    }
    tornado_tcpserver_stop(server);
    for (int i = 0; i < 4; i++) {
        CHECK(port_refuses(ports[i]));
        check_echo(&clients[i]);
        client_close(&clients[i]);
    }
    server_end(server);
}

TEST(tcp_server_closes_the_sockets_that_it_was_given)
{
    tornado_sockets sockets;
    tornado_tcpserver *server = server_new(echo, NULL);
    int before = open_descriptors();
    CHECK(tornado_bind_sockets(&sockets, 0, NULL));
    CHECK(tornado_tcpserver_add_sockets(server, &sockets));
    CHECK_INT(open_descriptors(), before + sockets.count);
    tornado_tcpserver_free(server);
    CHECK_INT(open_descriptors(), before);
}

TEST(tcp_listen_that_is_refused_is_logged_in_one_line)
{
    char text[32];
    int port, listener = listen_loopback(&port);
    snprintf(text, sizeof text, "127.0.0.1:%d", port);
    log_keep();
    tornado_tcpserver *server = server_start(echo, NULL);
    int before = open_descriptors(), first = tornado_tcpserver_port(server);
    CHECK(!tornado_tcpserver_listen(server, port, LOOPBACK));
    CHECK_INT(tornado_last_error()->sys_errno, EADDRINUSE);
    CHECK(strstr(tornado_last_error()->message, text) != NULL);
    CHECK_INT(logged(text), 1);
    CHECK_INT(logged("\n"), 1);
    CHECK(!tornado_tcpserver_listen(server, 65536, LOOPBACK));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_INT(logged("65536"), 1);
    CHECK_INT(logged("\n"), 2);
    CHECK_INT(open_descriptors(), before);
    client c = client_open(first); /* where it listened before it still does */
    check_echo(&c);
    client_close(&c);
    server_end(server);
    close(listener);
}

TEST(tcp_add_socket_of_no_descriptor_is_refused)
{
    tornado_tcpserver *server = server_new(echo, NULL);
    CHECK(!tornado_tcpserver_add_socket(server, -1));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_INT(tornado_tcpserver_port(server), 0);
    tornado_tcpserver_free(server);
    tornado_tcpserver_free(NULL);
}

/* A port is bound before the fork, and served by each child; who dies takes only its own connections along. */
TEST(tcp_sockets_are_shared_by_processes)
{
    enum { CHILDREN = 2 };
    tornado_sockets sockets;
    pid_t children[CHILDREN];
    CHECK(tornado_bind_sockets(&sockets, 0, LOOPBACK));
    fflush(NULL);
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            tornado_tcpserver *server = server_new(echo, NULL);
            CHECK(tornado_tcpserver_add_sockets(server, &sockets));
            tornado_ioloop_start(tornado_ioloop_current());
            _exit(0);
        }
    }
    for (int round = 0; round < CHILDREN; round++) {
        for (int i = 0; i < 10; i++) {
            client c = client_open(sockets.port);
            check_echo(&c);
            client_close(&c);
        }
        CHECK(kill(children[round], SIGKILL) == 0 && waitpid(children[round], NULL, 0) == children[round]);
    }
    tornado_sockets_close(&sockets);
    CHECK(port_refuses(sockets.port));
}

/*----------------------------------------------------------------------------
 * Bound first, started later.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcp_server_that_is_bound_accepts_when_it_is_started)
{
    tornado_tcpserver *server = server_new(echo, NULL);
    CHECK(tornado_tcpserver_bind(server, 0, LOOPBACK));
    int port = tornado_tcpserver_port(server);
    CHECK(port > 0);
    CHECK(tornado_tcpserver_bind(server, 0, LOOPBACK));
    client c = client_open(port); /* it waits in the queue */
    loop_turns(3);
    CHECK_INT(state.begun, 0);
    CHECK(tornado_tcpserver_start(server, 1));
    CHECK_INT(tornado_tcpserver_port(server), port);
    check_echo(&c);
    CHECK(!tornado_tcpserver_start(server, 1));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    client_close(&c);
    server_end(server);
    CHECK(port_refuses(port));
}

TEST(tcp_server_that_is_bound_and_freed_closes_its_sockets)
{
    tornado_tcpserver *server = server_new(echo, NULL);
    int before = open_descriptors();
    CHECK(tornado_tcpserver_bind(server, 0, LOOPBACK));
    CHECK_INT(open_descriptors(), before + 1);
    tornado_tcpserver_stop(server);
    CHECK_INT(open_descriptors(), before);
    CHECK(tornado_tcpserver_bind(server, 0, LOOPBACK));
    tornado_tcpserver_free(server);
    CHECK_INT(open_descriptors(), before);
}

TEST(tcp_bind_that_is_refused_is_logged_in_one_line)
{
    char port_text[16];
    int port, listener = listen_loopback(&port);
    log_keep();
    tornado_tcpserver *server = server_new(echo, NULL);
    CHECK(!tornado_tcpserver_bind(server, port, LOOPBACK));
    snprintf(port_text, sizeof port_text, ":%d", port);
    CHECK_INT(logged(port_text), 1);
    CHECK_INT(tornado_last_error()->sys_errno, EADDRINUSE);
    for (int i = 0; i < 16; i++)
        CHECK(tornado_tcpserver_bind(server, 0, LOOPBACK));
    CHECK(!tornado_tcpserver_bind(server, 0, LOOPBACK));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
    tornado_tcpserver_free(server);
    close(listener);
}

static void tell_task(tornado_iostream *stream, void *arg)
{
    char text[20];
    (void)arg;
    snprintf(text, sizeof text, "%d\n", tornado_task_id());
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(text)));
}

/* Becomes two processes that serve a port, which it tells first. */
static void serve_in_two_processes(void)
{
    tornado_tcpserver *server = tornado_tcpserver_new(tell_task, NULL, NULL);
    CHECK(server && tornado_tcpserver_bind(server, 0, LOOPBACK));
    dprintf(2, "%d\n", tornado_tcpserver_port(server));
    CHECK(tornado_tcpserver_start(server, 2));
    tornado_ioloop_start(tornado_ioloop_current());
}

TEST(tcp_server_is_started_in_several_processes)
{
    char line[16];
    int ends[2], port = 0, seen[2] = {0, 0};
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], 2);
        serve_in_two_processes();
        _exit(0);
    }
    ssize_t got = read(ends[0], line, sizeof line - 1);
    CHECK(got > 0);
    line[got] = '\0';
    port = atoi(line);
    while (!seen[0] || !seen[1]) { /* whoever is faster; both come to it */
        client c = client_open(port);
        CHECK(client_need(&c, 2));
        CHECK(*c.data == '0' || *c.data == '1');
        seen[*c.data - '0']++;
        client_close(&c);
    }
    CHECK(kill(pid, SIGTERM) == 0); /* which is passed on to the children */
    CHECK(waitpid(pid, NULL, 0) == pid);
    close(ends[0]);
    close(ends[1]);
    CHECK(port_refuses(port));
}

TEST(tcp_server_is_not_forked_once_there_is_a_loop)
{
    log_keep();
    tornado_tcpserver *server = server_new(echo, NULL); /* which has made a loop */
    CHECK(tornado_tcpserver_bind(server, 0, LOOPBACK));
    CHECK(!tornado_tcpserver_start(server, 2));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK(tornado_tcpserver_start(server, 1));
    tornado_tcpserver_free(server);
}

/*----------------------------------------------------------------------------
 * Both ends, and the PROXY protocol.
 *----------------------------------------------------------------------------*/

/* Says who is at both ends, then sends lines back. */
static void tell_ends(tornado_iostream *stream, void *arg)
{
    const tornado_connection *connection = tornado_current_connection();
    char remote[TORNADO_ADDRESS_MAX], local[TORNADO_ADDRESS_MAX], text[300];
    CHECK(connection != NULL);
    snprintf(text, sizeof text, "%s %s %d\n", tornado_address_format(&connection->remote, remote),
             tornado_address_format(&connection->local, local), connection->proxied);
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(text)));
    echo(stream, arg);
}

static void check_ends(client *c, bool proxied)
{
    tornado_address a, b;
    char text[300], remote[TORNADO_ADDRESS_MAX], local[TORNADO_ADDRESS_MAX];
    CHECK(tornado_address_local(&a, c->fd) && tornado_address_peer(&b, c->fd));
    snprintf(text, sizeof text, "%s %s %d\n", tornado_address_format(&a, remote), tornado_address_format(&b, local),
             proxied);
    check_line(c, text);
}

TEST_EACH_POLLER(tcp_handler_is_told_both_ends_of_its_connection)
{
    CHECK(tornado_current_connection() == NULL);
    tornado_tcpserver *server = server_start(tell_ends, NULL);
    client c = client_open(tornado_tcpserver_port(server));
    check_ends(&c, false);
    check_echo(&c);
    client_close(&c);
    server_end(server);
}

static tornado_tcpserver *proxied_start(double timeout)
{
    tornado_tcpserver_options options = {.proxy_protocol = true, .proxy_timeout = timeout};
    return server_start(tell_ends, &options);
}

#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"
#define V2(rest)  SIGNATURE rest, sizeof(SIGNATURE rest) - 1
#define V1(line)  line, sizeof(line) - 1

typedef struct header {
    const char *data;
    size_t len;
    const char *ends; /* as the handler tells them; NULL: those of the socket */
} header;

static const header headers[] = {
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n"), "192.0.2.1:1234 192.0.2.2:443 1\n"},
    {V1("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"),
     "255.255.255.255:65535 255.255.255.255:65535 1\n"},
    {V1("PROXY TCP6 2001:db8::1 ::1 0 1\r\n"), "[2001:db8::1]:0 [::1]:1 1\n"},
    {V1("PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"),
     "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535 [ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535 1\n"},
    {V1("PROXY UNKNOWN\r\n"), NULL},
    {V1("PROXY UNKNOWN ffff::1 whatever else this line has\r\n"), NULL},
    {V2("\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), "192.0.2.1:1234 192.0.2.2:443 1\n"},
    {V2("\x21\x11\0\x10\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb\4\0\1x"), "192.0.2.1:1234 192.0.2.2:443 1\n"},
    {V2("\x21\x21\0\x24\x20\1\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\4\xd2\1\xbb"),
     "[2001:db8::1]:1234 [::1]:443 1\n"},
    {V2("\x20\0\0\0"), NULL},                               /* the proxy's own */
    {V2("\x20\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL},
    {V2("\x20\x11\0\1x"), NULL},
    {V2("\x20\xff\0\1x"), NULL},
    {V2("\x21\0\0\0"), NULL},                               /* of no family that anybody knows */
    {V2("\x21\0\0\3abc"), NULL},
    {V2("\x21\x12\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL}, /* datagrams */
    {V2("\x21\x11\0\x13\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb\3\0\4\x91\x31\xab\xde"), "checksum"}, /* see below */
};

static const header malformed[] = {
    {V1("GET / HTTP/1.1\r\n\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 1234 443 \r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 1234 443 1\r\n"), NULL},
    {V1("PROXY TCP4  192.0.2.1 192.0.2.2 1234 443\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 1234\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 01234 443\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 -1 443\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 123456 443\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.01 192.0.2.2 1234 443\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2 192.0.2.2 1234 443\r\n"), NULL},
    {V1("PROXY TCP4 ::1 192.0.2.2 1234 443\r\n"), NULL},
    {V1("PROXY TCP6 192.0.2.1 ::1 1234 443\r\n"), NULL},
    {V1("PROXY TCP6 ::1%lo ::1 1234 443\r\n"), NULL},
    {V1("PROXY TCP5 ::1 ::1 1234 443\r\n"), NULL},
    {V1("PROXY tcp4 192.0.2.1 192.0.2.2 1234 443\r\n"), NULL},
    {V1("PROXY UNKNOWN2\r\n"), NULL},
    {V1("PROXY  UNKNOWN\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\n\r\n"), NULL},
    {V1("PROXY TCP4 192.0.2.1\0 192.0.2.2 1234 443\r\n"), NULL},
    {V1("proxy TCP4 192.0.2.1 192.0.2.2 1234 443\r\n"), NULL},
    {V1("PROXY UNKNOWN "
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"), NULL},
    {V2("\x11\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL}, /* another version */
    {V2("\x22\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL}, /* another command */
    {V2("\x21\x41\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL}, /* another family */
    {V2("\x21\x13\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL}, /* another transport */
    {V2("\x21\x11\0\x0b\xc0\0\2\1\xc0\0\2\2\4\xd2\1"), NULL},     /* too short */
    {V2("\x21\x21\0\x0c\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb"), NULL},
    {V2("\x21\x11\0\x0e\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb\4\0"), NULL},  /* a value that is cut */
    {V2("\x21\x11\0\x10\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb\4\0\2x"), NULL},
    {V2("\x21\x11\0\x13\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb\3\0\4\1\2\3\4"), NULL}, /* a wrong checksum */
    {V2("\x21\x11\x10\0"), NULL},                            /* longer than 4 KiB, all in all */
    {SIGNATURE "\x21\x11\xff\xff", 16, NULL},
};

/* CRC-32C by its definition, of a header whose last four bytes are the checksum, in which they count as zeros. */
static void put_checksum(char *data, size_t len)
{
    unsigned long crc = 0xffffffff;
    memset(data + len - 4, 0, 4);
    for (size_t i = 0; i < len; i++)
        for (int bit = 0; bit < 8; bit++) {
            unsigned long in = ((unsigned char)data[i] >> bit & 1) ^ (crc & 1);
            crc = crc >> 1 ^ (in ? 0x82f63b78 : 0);
        }
    crc = ~crc & 0xffffffff;
    for (int i = 0; i < 4; i++)
        data[len - 4 + (size_t)i] = (char)(crc >> (24 - 8 * i));
}

/* What goes with a header, and how it is told: with the right checksum where it has one. */
static const char *whole_header(const header *h, char *data)
{
    memcpy(data, h->data, h->len);
    if (!h->ends || strcmp(h->ends, "checksum") != 0)
        return h->ends;
    put_checksum(data, h->len);
    return "192.0.2.1:1234 192.0.2.2:443 1\n";
}

TEST_EACH_POLLER(tcp_proxy_header_tells_both_ends)
{
    static char data[5000];
    tornado_tcpserver *server = proxied_start(0);
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        const char *ends = whole_header(&headers[i], data);
        client c = client_open(tornado_tcpserver_port(server));
        memcpy(data + headers[i].len, "behind\n", 7);
        client_send_bytes(&c, data, headers[i].len + 7);
        if (ends)
            check_line(&c, ends);
        else
            check_ends(&c, false);
        check_line(&c, "behind\n"); /* which is not a part of it */
        check_echo(&c);
        client_close(&c);
    }
    server_end(server);
}

TEST(tcp_proxy_header_may_come_byte_by_byte)
{
    static char data[5000];
    tornado_tcpserver *server = proxied_start(0);
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i += 3) {
        const char *ends = whole_header(&headers[i], data);
        client c = client_open(tornado_tcpserver_port(server));
        for (size_t k = 0; k < headers[i].len; k++) {
            client_send_bytes(&c, data + k, 1);
            loop_turns(1);
        }
        if (ends)
            check_line(&c, ends);
        else
            check_ends(&c, false);
        client_close(&c);
    }
    server_end(server);
}

TEST_EACH_POLLER(tcp_proxy_header_that_is_malformed_closes_the_connection)
{
    log_keep();
    tornado_tcpserver *server = proxied_start(0);
    for (size_t i = 0; i < sizeof malformed / sizeof malformed[0]; i++) {
        client c = client_open(tornado_tcpserver_port(server));
        client_send_bytes(&c, malformed[i].data, malformed[i].len);
        client_until_end(&c);
        if (c.len)
            FAIL("header %zu is taken", i);
        client_close(&c);
    }
    CHECK_INT(state.begun, 0);
    CHECK(logged("tcpserver: a connection was closed at once: its PROXY header") > 0);
    client c = client_open(tornado_tcpserver_port(server));
    client_send(&c, headers[0].data);
    check_line(&c, headers[0].ends);
    client_close(&c);
    server_end(server);
}

/* Of unix sockets it has paths; one that fills all its bytes is longer than any here. */
TEST(tcp_proxy_header_tells_paths)
{
    static const struct {
        const char *remote, *local, *ends;
    } cases[] = {{"/run/a.sock", "@b", "unix:/run/a.sock unix:@b 1\n"}, {"", "/x", "unix: unix:/x 1\n"},
                 {NULL, "/x", "unix: unix:/x 1\n"}};
    tornado_tcpserver *server = proxied_start(0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char data[16 + 216] = SIGNATURE "\x21\x31\0\xd8";
        client c = client_open(tornado_tcpserver_port(server));
        if (cases[i].remote)
            memcpy(data + 16, cases[i].remote, strlen(cases[i].remote));
        else
            memset(data + 16, 'x', 108);
        memcpy(data + 16 + 108, cases[i].local, strlen(cases[i].local));
        if (cases[i].local[0] == '@')
            data[16 + 108] = '\0';
        client_send_bytes(&c, data, sizeof data);
        check_line(&c, cases[i].ends);
        check_echo(&c);
        client_close(&c);
    }
    server_end(server);
}

TEST(tcp_proxy_header_of_4_kib_is_the_longest)
{
    static char data[4096] = SIGNATURE "\x21\x11\x0f\xf0\xc0\0\2\1\xc0\0\2\2\4\xd2\1\xbb\4\x0f\xe1";
    tornado_tcpserver *server = proxied_start(0);
    client c = client_open(tornado_tcpserver_port(server));
    client_send_bytes(&c, data, sizeof data);
    check_line(&c, "192.0.2.1:1234 192.0.2.2:443 1\n");
    client_close(&c);
    server_end(server);
}

TEST_EACH_POLLER(tcp_proxy_header_that_does_not_come_in_time_closes_the_connection)
{
    static const size_t cuts[] = {0, 1, 12, 13, 40};
    log_keep();
    tornado_tcpserver *server = proxied_start(0.03);
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        client c = client_open(tornado_tcpserver_port(server));
        client_send_bytes(&c, headers[0].data, cuts[i]);
        client_until_end(&c);
        CHECK_INT(c.len, 0);
        client_close(&c);
    }
    CHECK(logged("no PROXY header came in time") > 0);
    CHECK_INT(state.begun, 0);
    server_end(server);
}

TEST(tcp_proxy_header_may_take_any_time_where_that_is_wanted)
{
    tornado_tcpserver *server = proxied_start(TORNADO_NONE);
    client c = client_open(tornado_tcpserver_port(server));
    client_send_bytes(&c, headers[0].data, 20);
    loop_run_for(0.05); /* which others have as a whole; below zero it would be over at once */
    client_send_bytes(&c, headers[0].data + 20, headers[0].len - 20);
    check_line(&c, headers[0].ends);
    client_close(&c);
    server_end(server);
}

/* Bytes that come one by one do not buy time. */
TEST(tcp_proxy_header_that_dribbles_closes_the_connection)
{
    log_keep();
    tornado_tcpserver *server = proxied_start(0.05);
    client c = client_open(tornado_tcpserver_port(server));
    client_send(&c, "PROXY UNKNOWN ");
    for (int sent = 0; send(c.fd, "x", 1, MSG_NOSIGNAL) == 1 && sent < 80; sent++)
        loop_run_for(0.005);
    client_until_end(&c);
    CHECK_INT(c.len, 0);
    CHECK_INT(logged("no PROXY header came in time"), 1);
    client_close(&c);
    server_end(server);
}

TEST(tcp_connection_that_ends_before_its_proxy_header_is_quiet)
{
    log_keep();
    tornado_tcpserver *server = proxied_start(0);
    for (size_t cut = 0; cut < headers[0].len; cut++) {
        client c = client_open(tornado_tcpserver_port(server));
        client_send_bytes(&c, headers[0].data, cut);
        loop_turns(1);
        client_close(&c);
        loop_turns(3);
    }
    CHECK_INT(state.begun, 0);
    CHECK_STR(log_text, "");
    server_end(server);
}

/* Their number is bound like that of others, and they end with the server's loop. */
TEST(tcp_connections_without_their_proxy_header_yet_count)
{
    tornado_tcpserver_options options = {.proxy_protocol = true, .max_connections = 2};
    tornado_tcpserver *server = server_start(tell_ends, &options);
    client clients[3];
    log_keep();
    for (int i = 0; i < 3; i++) {
        clients[i] = client_open(tornado_tcpserver_port(server));
        loop_turns(2);
    }
    client_until_end(&clients[2]);
    CHECK_INT(logged("the limit of connections is reached"), 1);
    client_send(&clients[0], headers[0].data);
    check_line(&clients[0], headers[0].ends);
    tornado_tcpserver_free(server);
    tornado_ioloop_close(tornado_ioloop_current(), false);
    for (int i = 0; i < 3; i++)
        client_close(&clients[i]);
}

/* A real proxy. */
static void check_haproxy(const char *send)
{
    char text[TORNADO_ADDRESS_MAX], want[400];
    tornado_address own;
    tornado_tcpserver *server = proxied_start(0);
    haproxy proxy = haproxy_start("tcp", tornado_tcpserver_port(server), send);
    client c = client_open(proxy.port);
    CHECK(tornado_address_local(&own, c.fd));
    snprintf(want, sizeof want, "%s 127.0.0.1:%d 1\n", tornado_address_format(&own, text), proxy.port);
    client_send(&c, "line\n");
    while (!strchr(c.data, '\n'))
        haproxy_more(&proxy, &c);
    check_line(&c, want);
    check_line(&c, "line\n");
    client_close(&c);
    haproxy_end(&proxy);
    server_end(server);
}

TEST(tcp_proxy_header_of_haproxy_is_understood)
{
    check_haproxy("send-proxy");
}

TEST(tcp_proxy_header_of_haproxy_is_understood_in_version_2)
{
    check_haproxy("send-proxy-v2 proxy-v2-options crc32c,unique-id");
}

/*----------------------------------------------------------------------------
 * Handlers.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcp_handlers_wait_side_by_side)
{
    enum { CLIENTS = 50 };
    client clients[CLIENTS];
    tornado_tcpserver *server = server_start(wait_for_gate, NULL);
    state.gate = tornado_future_new();
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = client_open(tornado_tcpserver_port(server));
    UNTIL(state.begun == CLIENTS);
    CHECK_INT(state.ended, 0);
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), CLIENTS);
    CHECK(tornado_future_set_result(state.gate, NULL, NULL));
    for (int i = 0; i < CLIENTS; i++) {
        check_line(&clients[i], "open\n");
        CHECK(!client_more(&clients[i])); /* closed, as the handler has returned */
        CHECK(!clients[i].reset);
        client_close(&clients[i]);
    }
    tornado_future_release(state.gate);
    server_end(server);
}

static void take_argument(tornado_iostream *stream, void *arg)
{
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(arg)));
}

TEST(tcp_handlers_are_given_the_servers_argument)
{
    char text[] = "the argument\n";
    tornado_tcpserver *server = tornado_tcpserver_new(take_argument, text, NULL);
    CHECK(server && tornado_tcpserver_listen(server, 0, LOOPBACK));
    client c = client_open(tornado_tcpserver_port(server));
    check_line(&c, text);
    client_close(&c);
    server_end(server);
}

static void keep_stream(tornado_iostream *stream, void *arg)
{
    (void)arg;
    begin();
    state.kept = tornado_iostream_retain(stream);
}

TEST_EACH_POLLER(tcp_stream_that_somebody_holds_outlives_handler_and_server)
{
    tornado_tcpserver *server = server_start(keep_stream, NULL);
    client c = client_open(tornado_tcpserver_port(server));
    UNTIL(state.ended == 1);
    server_end(server);
    CHECK(!tornado_iostream_closed(state.kept));
    CHECK_INT(loop_code(tornado_iostream_write(state.kept, tornado_bytes_of("kept\n"))), TORNADO_OK);
    check_line(&c, "kept\n");
    tornado_iostream_release(state.kept);
    CHECK(!client_more(&c));
    client_close(&c);
}

static void raise_code(tornado_iostream *stream, void *arg)
{
    (void)arg;
    begin();
    tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
    tornado_raise(state.code, "it fails so");
}

TEST_EACH_POLLER(tcp_error_of_a_handler_is_logged_and_closes_its_connection)
{
    static const int codes[] = {TORNADO_ERR_INVALID, TORNADO_ERR_NOMEM, TORNADO_ERR_TIMEOUT, TORNADO_ERR_LIMIT};
    tornado_tcpserver *server = server_start(raise_code, &(tornado_tcpserver_options){.name = "failing server"});
    int port = tornado_tcpserver_port(server);
    client other = client_open(port);
    log_keep();
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        client c = client_open(port);
        state.code = codes[i];
        client_send(&c, "x\n");
        CHECK(!client_more(&c));
        client_close(&c);
        CHECK_INT(logged("it fails so"), 1);
        CHECK_INT(logged("failing server"), 1);
        log_text[0] = '\0';
    }
    state.code = TORNADO_ERR_CLOSED; /* the usual end */
    client_send(&other, "x\n");
    CHECK(!client_more(&other));
    CHECK_STR(log_text, "");
    client_close(&other);
    server_end(server);
}

TEST(tcp_server_without_a_name_is_logged_as_tcpserver)
{
    tornado_tcpserver *server = server_start(raise_code, NULL);
    client c = client_open(tornado_tcpserver_port(server));
    state.code = TORNADO_ERR_STATE;
    log_keep();
    client_send(&c, "x\n");
    CHECK(!client_more(&c));
    CHECK_INT(logged("tcpserver"), 1);
    client_close(&c);
    server_end(server);
}

/*----------------------------------------------------------------------------
 * Limits.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcp_connections_beyond_the_maximum_are_closed)
{
    tornado_tcpserver *server = server_start(echo, &(tornado_tcpserver_options){.max_connections = 2});
    int port = tornado_tcpserver_port(server);
    double began = tornado_monotonic();
    log_keep();
    client a = client_open(port), b = client_open(port);
    check_echo(&a);
    check_echo(&b);
    for (int i = 0; i < 20; i++) {
        client c = client_open(port);
        client_until_end(&c);
        client_close(&c);
    }
    CHECK(logged("limit") >= 1 && logged("limit") <= 1 + (int)(tornado_monotonic() - began)); /* once a second */
    check_echo(&a);
    client_close(&a);
    UNTIL(state.ended == 1);
    a = client_open(port); /* its place is free again */
    check_echo(&a);
    client_close(&a);
    client_close(&b);
    server_end(server);
}

TEST(tcp_connections_beyond_the_limit_of_coroutines_are_closed)
{
    tornado_ioloop *loop = tornado_ioloop_new(&(tornado_ioloop_options){.max_coroutines = 2});
    CHECK(loop == tornado_ioloop_current());
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server);
    log_keep();
    client a = client_open(port), b = client_open(port), c = client_open(port);
    check_echo(&a);
    check_echo(&b);
    client_until_end(&c);
    CHECK_INT(logged("\n"), 1);
    client_close(&a);
    client_close(&c);
    UNTIL(state.ended == 1);
    a = client_open(port);
    check_echo(&a);
    client_close(&a);
    client_close(&b);
    server_end(server);
}

TEST_EACH_POLLER(tcp_line_longer_than_the_buffer_ends_its_connection)
{
    enum { MOST = 1000 };
    static char line[4 * MOST];
    tornado_tcpserver *server = server_start(echo, &(tornado_tcpserver_options){.stream.max_buffer_size = MOST});
    log_keep();
    client c = client_open(tornado_tcpserver_port(server)), other = client_open(tornado_tcpserver_port(server));
    memset(line, 'x', sizeof line);
    line[MOST - 1] = '\n';
    client_send_bytes(&c, line, MOST); /* as long as may be */
    CHECK(client_need(&c, MOST));
    CHECK_MEM(c.data, MOST, line, MOST);
    CHECK_STR(log_text, "");
    line[MOST - 1] = 'x';
    client_send_bytes(&c, line, sizeof line);
    client_until_end(&c);
    CHECK_INT(logged("Error in connection callback"), 1);
    check_echo(&other);
    client_close(&c);
    client_close(&other);
    server_end(server);
}

static void write_much(tornado_iostream *stream, void *arg)
{
    static char much[8 << 20];
    (void)arg;
    begin();
    const tornado_error *error = tornado_wait(tornado_iostream_write(stream, (tornado_bytes){much, sizeof much}));
    state.code = error ? error->code : 0;
}

TEST(tcp_write_beyond_the_write_buffer_is_refused)
{
    tornado_tcpserver *server =
        server_start(write_much, &(tornado_tcpserver_options){.stream.max_write_buffer_size = 1000});
    client c = client_open(tornado_tcpserver_port(server));
    UNTIL(state.ended == 1);
    CHECK_INT(state.code, TORNADO_ERR_BUFFER_FULL);
    client_close(&c);
    server_end(server);
}

/*----------------------------------------------------------------------------
 * Clients that come and go.
 *----------------------------------------------------------------------------*/

/* What a client does before it vanishes, at each byte of what it sends. */
TEST_EACH_POLLER(tcp_client_that_vanishes_at_any_byte_is_a_quiet_end)
{
    static const char lines[] = "first\nsecond\n";
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server), clients = 0;
    log_keep();
    for (size_t sent = 0; sent < sizeof lines; sent++)
        for (int way = 0; way < 6; way++) {
            int fd = connect_loopback(port);
            CHECK_INT(send(fd, lines, sent, MSG_NOSIGNAL), sent);
            loop_turns(way % 3); /* not accepted yet; accepted; answered */
            if (way < 3)
                close_with_reset(fd);
            else
                close(fd);
            clients++;
        }
    UNTIL(state.begun == clients && state.ended == clients);
    CHECK_STR(log_text, "");
    server_end(server);
}

TEST_EACH_POLLER(tcp_two_thousand_connections_open_and_close)
{
    enum { ROUNDS = 40, CLIENTS = 50 };
    int fds[CLIENTS], before = 0;
    long live = 0;
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS; i++)
            fds[i] = connect_loopback(port);
        UNTIL(state.begun == (round + 1) * CLIENTS);
        for (int i = 0; i < CLIENTS; i++)
            close(fds[i]);
        UNTIL(state.ended == (round + 1) * CLIENTS);
        if (round == 1) {
            before = open_descriptors();
            live = test_live();
        }
    }
    CHECK_INT(open_descriptors(), before);
    CHECK(test_live() <= live + 4);
    server_end(server);
}

TEST_LIMIT(tcp_two_thousand_connections_at_once, 20)
{
    enum { CLIENTS = 2000 };
    static int fds[CLIENTS];
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < 2 * CLIENTS + 100) {
        limit.rlim_cur = 2 * CLIENTS + 100;
        if (limit.rlim_max < limit.rlim_cur || setrlimit(RLIMIT_NOFILE, &limit) != 0)
            SKIP("so many descriptors are not allowed");
    }
    if (strcmp(tornado_ioloop_poller(tornado_ioloop_current()), "select") == 0)
        SKIP("select cannot watch so many");
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = connect_loopback(port);
        if (i % 100 == 99)
            UNTIL(state.begun == i + 1);
    }
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), CLIENTS);
    for (int i = 0; i < CLIENTS; i += 99) { /* some of them */
        char data[8];
        CHECK(send(fds[i], "line\n", 5, MSG_NOSIGNAL) == 5);
        loop_until_fd(fds[i], TORNADO_IOLOOP_READ);
        CHECK_INT(recv(fds[i], data, sizeof data, 0), 5);
    }
    for (int i = 0; i < CLIENTS; i++)
        close(fds[i]);
    server_end(server);
}

/*----------------------------------------------------------------------------
 * The end.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcp_stop_refuses_new_connections_and_serves_the_old_ones)
{
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server);
    client c = client_open(port);
    check_echo(&c);
    tornado_tcpserver_stop(server);
    CHECK_INT(tornado_tcpserver_port(server), 0);
    CHECK(port_refuses(port));
    check_echo(&c);
    tornado_tcpserver_stop(server); /* no harm */
    CHECK(tornado_tcpserver_listen(server, port, LOOPBACK));
    client again = client_open(port);
    check_echo(&again);
    check_echo(&c);
    client_close(&c);
    client_close(&again);
    server_end(server);
}

TEST_EACH_POLLER(tcp_freed_server_serves_its_connections_to_their_end)
{
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server);
    client a = client_open(port), b = client_open(port);
    check_echo(&a);
    check_echo(&b);
    tornado_tcpserver_free(server);
    CHECK(port_refuses(port));
    check_echo(&a);
    client_close(&a);
    UNTIL(state.ended == 1);
    check_echo(&b);
    client_close(&b);
    UNTIL(state.ended == 2);
}

/* Whom a stopped or freed server had not accepted yet is not left waiting. */
TEST(tcp_stop_closes_what_was_not_accepted_yet)
{
    tornado_tcpserver *server = server_start(echo, NULL);
    client c = client_open(tornado_tcpserver_port(server));
    tornado_tcpserver_stop(server);
    client_until_end(&c);
    CHECK_INT(state.begun, 0);
    client_close(&c);
    server_end(server);
}

static void stop_or_free(tornado_iostream *stream, void *arg)
{
    (void)arg;
    begin();
    if (state.code)
        tornado_tcpserver_free(state.server);
    else
        tornado_tcpserver_stop(state.server);
    if (state.gate)
        tornado_await(tornado_future_retain(state.gate));
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of("stopped\n")));
}

TEST_EACH_POLLER(tcp_handler_may_stop_and_free_its_server)
{
    for (int way = 0; way < 4; way++) {
        tornado_tcpserver *server = server_start(stop_or_free, NULL);
        int port = tornado_tcpserver_port(server);
        bool waits = way & 1, frees = way & 2;
        state.code = frees;
        state.gate = waits ? tornado_future_new() : NULL;
        client c = client_open(port), late = client_open(port); /* the second one is not accepted any more */
        UNTIL(state.begun == 1);
        CHECK(port_refuses(port));
        if (waits)
            CHECK(tornado_future_set_result(state.gate, NULL, NULL));
        check_line(&c, "stopped\n");
        client_until_end(&c);
        client_until_end(&late);
        CHECK_INT(state.begun, 1);
        client_close(&c);
        client_close(&late);
        tornado_future_release(state.gate);
        if (!frees)
            server_end(server);
    }
}

/* Closes the loop while handlers wait in a read, and while one has not been accepted yet. */
static void check_loop_close(bool free_first, bool all_fds)
{
    int before = open_descriptors();
    client clients[3];
    tornado_ioloop *loop = tornado_ioloop_new(NULL);
    CHECK(loop && loop == tornado_ioloop_current());
    tornado_tcpserver *server = server_start(echo, NULL);
    for (int i = 0; i < 3; i++) {
        clients[i] = client_open(tornado_tcpserver_port(server));
        if (i < 2)
            check_echo(&clients[i]);
    }
    if (free_first)
        tornado_tcpserver_free(server);
    CHECK(tornado_ioloop_close(loop, all_fds));
    CHECK_INT(state.begun, 2);
    CHECK_INT(state.ended, 2); /* they have unwound */
    if (!free_first)
        tornado_tcpserver_free(server);
    for (int i = 0; i < 3; i++) {
        char byte;
        ssize_t got;
        struct pollfd ended = {clients[i].fd, POLLIN, 0};
        CHECK(poll(&ended, 1, (int)(test_scaled(5) * 1000)) == 1);
        while ((got = recv(clients[i].fd, &byte, 1, 0)) > 0)
            ;
        CHECK(got == 0 || errno == ECONNRESET);
        client_close(&clients[i]);
    }
    CHECK_INT(open_descriptors(), before);
}

TEST_EACH_POLLER(tcp_loop_closed_with_connections_open_leaks_nothing)
{
    long live = test_live();
    for (int way = 0; way < 4; way++) {
        check_loop_close(way & 1, way & 2);
        CHECK_INT(test_live(), live);
    }
}

/* The numbers of descriptors that were closed with the loop may belong to others when the server, or a stream, is
   freed. */
static void check_closed_once(bool server_last)
{
    enum { OTHERS = 32 };
    int others[OTHERS];
    tornado_tcpserver *server = server_start(keep_stream, NULL);
    client c = client_open(tornado_tcpserver_port(server));
    UNTIL(state.ended == 1);
    tornado_future *read = tornado_iostream_read_until(state.kept, "\n"); /* so that the loop watches it */
    loop_turns(2);
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), true));
    if (server_last)
        tornado_iostream_release(state.kept);
    for (int i = 0; i < OTHERS; i++)
        CHECK((others[i] = dup(2)) >= 0);
    if (server_last)
        tornado_tcpserver_free(server);
    else
        tornado_iostream_release(state.kept);
    for (int i = 0; i < OTHERS; i++) {
        if (fcntl(others[i], F_GETFD) < 0)
            FAIL("it has closed descriptor %d, which is another one's now", others[i]);
        close(others[i]);
    }
    if (!server_last)
        tornado_tcpserver_free(server);
    CHECK(tornado_future_error(read) != NULL);
    tornado_future_release(read);
    client_close(&c);
}

TEST(tcp_server_freed_after_the_loop_closed_all_descriptors_closes_none_again)
{
    check_closed_once(true);
}

enum { LATE_OTHERS = 32 };

static int late_others[LATE_OTHERS];

static void free_server_late(void *arg)
{
    for (int i = 0; i < LATE_OTHERS; i++)
        CHECK((late_others[i] = dup(2)) >= 0);
    tornado_tcpserver_free(arg);
}

static void *hold_server(void *arg)
{
    tornado_defer(free_server_late, arg);
    tornado_await(tornado_future_retain(state.gate));
    return NULL;
}

TEST(tcp_server_freed_as_its_loop_ends_closes_no_descriptor_again_though_it_had_to_pause)
{
    struct rlimit before, now;
    int fd = 0;
    if (under_valgrind())
        SKIP("valgrind does not leave connections where they are");
    log_keep();
    tornado_tcpserver *server = server_start(keep_stream, NULL);
    state.gate = tornado_future_new();
    tornado_future *holding = tornado_spawn(hold_server, server);
    int peer = connect_loopback(tornado_tcpserver_port(server));
    while (fcntl(fd, F_GETFD) >= 0)
        fd++;
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    now = before;
    now.rlim_cur = (rlim_t)fd;
    CHECK(setrlimit(RLIMIT_NOFILE, &now) == 0);
    UNTIL(logged(strerror(EMFILE)));
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), true));
    for (int i = 0; i < LATE_OTHERS; i++) {
        if (fcntl(late_others[i], F_GETFD) < 0)
            FAIL("it has closed descriptor %d, which is another one's now", late_others[i]);
        close(late_others[i]);
    }
    tornado_future_release(holding);
    tornado_future_release(state.gate);
    close(peer);
}

TEST(tcp_stream_released_after_the_loop_closed_all_descriptors_closes_none_again)
{
    check_closed_once(false);
}

/*----------------------------------------------------------------------------
 * Orderly shutdown.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcp_shutdown_without_connections_stops_the_loop)
{
    tornado_tcpserver *server = server_start(echo, NULL);
    int port = tornado_tcpserver_port(server);
    tornado_ioloop_shutdown(tornado_ioloop_current(), 1e6);
    CHECK(port_refuses(port));
    CHECK(tornado_ioloop_start(tornado_ioloop_current()));
    tornado_tcpserver_free(server);
}

TEST_EACH_POLLER(tcp_shutdown_waits_for_handlers)
{
    tornado_tcpserver *server = server_start(wait_for_gate, NULL);
    int port = tornado_tcpserver_port(server);
    state.gate = tornado_future_new();
    client c = client_open(port);
    UNTIL(state.begun == 1);
    log_keep();
    tornado_ioloop_shutdown(tornado_ioloop_current(), 1e6);
    CHECK(port_refuses(port));
    loop_turns(5);
    CHECK_INT(state.ended, 0);
    CHECK(tornado_future_set_result(state.gate, NULL, NULL));
    CHECK(tornado_ioloop_start(tornado_ioloop_current())); /* until it has stopped by itself */
    CHECK_INT(state.ended, 1);
    check_line(&c, "open\n");
    CHECK_STR(log_text, "");
    client_close(&c);
    tornado_future_release(state.gate);
    tornado_tcpserver_free(server);
}

TEST_EACH_POLLER(tcp_shutdown_cancels_handlers_when_the_time_is_up)
{
    tornado_tcpserver *server = server_start(echo, NULL);
    client c = client_open(tornado_tcpserver_port(server)), idle = client_open(tornado_tcpserver_port(server));
    check_echo(&c);
    UNTIL(state.begun == 2);
    log_keep();
    tornado_ioloop_shutdown(tornado_ioloop_current(), 0.05);
    CHECK(tornado_ioloop_start(tornado_ioloop_current()));
    CHECK_INT(state.ended, 2);
    CHECK_INT(logged("shutdown"), 1);
    if (logged("\n") > 1) /* that they were cancelled is no error of theirs */
        FAIL("more is logged than that the time is up:\n%s", log_text);
    CHECK(!client_read(&c) && c.ended && !client_read(&idle) && idle.ended);
    client_close(&c);
    client_close(&idle);
    tornado_tcpserver_free(server);
}

/* Takes no notice of errors, nor of being cancelled. */
static void never_end(tornado_iostream *stream, void *arg)
{
    (void)stream;
    (void)arg;
    begin();
    for (;;)
        state.code += tornado_wait(tornado_future_retain(state.gate)) != NULL;
}

TEST(tcp_shutdown_names_and_leaves_a_handler_that_does_not_end)
{
    tornado_tcpserver *server = server_start(never_end, &(tornado_tcpserver_options){.name = "stubborn"});
    state.gate = tornado_future_new();
    client c = client_open(tornado_tcpserver_port(server));
    TEST_MAY_LEAK(); /* what is left cannot be freed */
    UNTIL(state.begun == 1);
    log_keep();
    tornado_ioloop_shutdown(tornado_ioloop_current(), 0.05);
    CHECK(tornado_ioloop_start(tornado_ioloop_current())); /* returns a second later */
    CHECK_INT(state.ended, 0);
    CHECK(state.code > 0);
    CHECK_INT(logged("stubborn"), 1);
    client_close(&c);
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

/* A turn of the loop, though an allocation may fail. */
static void turn(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    while (!tornado_ioloop_add_callback(loop, loop_stop_callback, loop))
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(tornado_ioloop_start(loop));
}

static int lines_sent_back;

static void serve_when_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    char data[16];
    if (!loop)
        return;
    int before = open_descriptors();
    memset(&state, 0, sizeof state);
    tornado_tcpserver *server = tornado_tcpserver_new(echo, NULL, NULL);
    if (!server || !tornado_tcpserver_listen(server, 0, LOOPBACK)) {
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    } else {
        int fd = connect_loopback(tornado_tcpserver_port(server));
        ssize_t got;
        set_nonblocking(fd);
        CHECK_INT(send(fd, "line\n", 5, MSG_NOSIGNAL), 5);
        while ((got = recv(fd, data, sizeof data, 0)) < 0 && errno == EAGAIN) /* a line, or the end */
            turn();
        lines_sent_back += got == 5;
        close(fd);
    }
    tornado_tcpserver_free(server);
    while (tornado_ioloop_coroutines(loop) > 0)
        turn();
    CHECK_INT(state.ended, state.begun);
    CHECK_INT(open_descriptors(), before);
}

TEST(tcp_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(serve_when_memory_is_short);
    CHECK(lines_sent_back > 0);
}

/* Starts to listen on two sockets, in one of two ways, while each allocation fails in turn. */
static void check_all_or_nothing(bool add)
{
    log_keep();
    bool ok = false;
    for (long n = 1; !ok; n++) {
        tornado_sockets sockets = {.count = 0};
        tornado_tcpserver *server = server_new(echo, NULL);
        CHECK(!add || tornado_bind_sockets(&sockets, 0, NULL));
        int before = open_descriptors();
        test_fail_alloc(n);
        ok = add ? tornado_tcpserver_add_sockets(server, &sockets) : tornado_tcpserver_listen(server, 0, NULL);
        test_fail_alloc(0);
        if (!ok) {
            if (tornado_tcpserver_port(server))
                FAIL("allocation %ld failed, and it listens all the same", n);
            CHECK_INT(open_descriptors(), before);
            tornado_sockets_close(&sockets);
        }
        tornado_tcpserver_free(server);
    }
}

TEST(tcp_listen_that_fails_listens_on_nothing)
{
    if (!have_ipv6())
        SKIP("it takes two sockets: there is no IPv6 here");
    check_all_or_nothing(false);
}

/* Those who get false still own what they have bound, all of it. */
TEST(tcp_add_sockets_that_fails_takes_none)
{
    if (!have_ipv6())
        SKIP("it takes two sockets: there is no IPv6 here");
    check_all_or_nothing(true);
}

/*----------------------------------------------------------------------------
 * The examples' argument.
 *----------------------------------------------------------------------------*/

/* What a program prints, given a port that is none; it must not serve. Returns its exit status. */
static int example_status(const char *name, const char *port, char *text, size_t room)
{
    const char *directory = getenv("TEST_EXAMPLES");
    char path[512];
    int ends[2], status;
    size_t len = 0;
    snprintf(path, sizeof path, "%s/%s", directory ? directory : "build/examples", name);
    if (access(path, X_OK) != 0)
        SKIP("%s is not there: make examples", path);
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        execl(path, path, port, (char *)NULL);
        _exit(126);
    }
    close(ends[1]);
    for (ssize_t got; len + 1 < room && (got = read(ends[0], text + len, room - 1 - len)) > 0;) {
        len += (size_t)got;
        text[len] = '\0';
        if (strstr(text, "127.0.0.1:"))
            FAIL("%s serves with \"%s\" as its port: %s", name, port, text);
    }
    text[len] = '\0';
    close(ends[0]);
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void check_example_refuses(const char *port)
{
    static const char *const examples[] = {"hello", "wait_twice", "json", "echo", "echo_callbacks"};
    for (size_t i = 0; i < sizeof examples / sizeof examples[0]; i++) {
        char text[1024];
        CHECK_INT(example_status(examples[i], port, text, sizeof text), 1);
        const char *newline = strchr(text, '\n');
        if (!strstr(text, port) || !newline || newline[1])
            FAIL("%s should print one line with \"%s\", and prints \"%s\"", examples[i], port, text);
    }
}

TEST(tcp_examples_refuse_a_number_with_something_else)
{
    static const char *const wrong[] = {"8888.5", "80 ", "1e3", "0x50", "80:80", "99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        check_example_refuses(wrong[i]);
}

TEST(tcp_examples_refuse_an_empty_port)
{
    check_example_refuses("");
    check_example_refuses(" ");
}
