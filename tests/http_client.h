/* Clients for tests of servers: raw sockets in the test's own process, used in straight lines. Whenever a client has to
   wait, the current loop runs; nothing here waits for a time. */
#ifndef TEST_HTTP_CLIENT_H
#define TEST_HTTP_CLIENT_H

#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/*----------------------------------------------------------------------------
 * Running the loop.
 *----------------------------------------------------------------------------*/

static inline void loop_stop_callback(void *arg)
{
    tornado_ioloop_stop(arg);
}

/* Runs a few turns of the loop: what is ready is done then. */
static inline void loop_turns(int count)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    while (count-- > 0) {
        CHECK(tornado_ioloop_add_callback(loop, loop_stop_callback, loop));
        CHECK(tornado_ioloop_start(loop));
    }
}

/* Runs the loop for a time. */
static inline void loop_run_for(double seconds)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_call_later(loop, seconds, loop_stop_callback, loop) != 0);
    CHECK(tornado_ioloop_start(loop));
}

static inline void loop_future_done(tornado_future *future, void *arg)
{
    (void)future;
    tornado_ioloop_stop(arg);
}

/* Runs the loop until a future is done, whose reference stays the caller's. What it failed with, or NULL. */
static inline const tornado_error *loop_until(tornado_future *future)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    if (!tornado_future_done(future)) {
        CHECK(tornado_ioloop_add_future(loop, future, loop_future_done, loop));
        CHECK(tornado_ioloop_start(loop));
    }
    CHECK(tornado_future_done(future));
    return tornado_future_error(future);
}

/* The same, using up the reference: the code of the error, or 0. */
static inline int loop_code(tornado_future *future)
{
    const tornado_error *error = loop_until(future);
    int code = error ? error->code : 0;
    tornado_future_release(future);
    return code;
}

static inline void loop_fd_ready(int fd, unsigned events, void *arg)
{
    (void)fd;
    (void)events;
    tornado_ioloop_stop(arg);
}

/* Runs the loop until a descriptor is ready. */
static inline void loop_until_fd(int fd, unsigned events)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK(tornado_ioloop_add_handler(loop, fd, loop_fd_ready, loop, events));
    CHECK(tornado_ioloop_start(loop));
    CHECK(tornado_ioloop_remove_handler(loop, fd));
}

/* How a client waits. A test that must not use the loop's own means for that brings something else. */
static void (*client_wait)(int fd, unsigned events) = loop_until_fd;

/*----------------------------------------------------------------------------
 * Sockets.
 *----------------------------------------------------------------------------*/

static inline struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void set_nonblocking(int fd)
{
    CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

/* A socket that has a free port of 127.0.0.1 and does not listen: whoever connects is refused, and nobody else can
   listen there. */
static inline int refuse_loopback(int *port)
{
    struct sockaddr_in address = loopback(0);
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &len) == 0);
    *port = ntohs(address.sin_port);
    return fd;
}

/* A socket that listens on a free port of 127.0.0.1. */
static inline int listen_loopback(int *port)
{
    struct sockaddr_in address = loopback(0);
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0); /* ports in TIME_WAIT will do */
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 128) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &len) == 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static inline int connect_loopback(int port)
{
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        FAIL("cannot connect to port %d: %s", port, strerror(errno));
    return fd;
}

/* Two ends of one TCP connection. */
static inline void tcp_pair(int ends[2])
{
    int port, listener = listen_loopback(&port);
    ends[1] = connect_loopback(port);
    ends[0] = accept(listener, NULL, NULL);
    CHECK(ends[0] >= 0);
    close(listener);
}

/* Closes with a reset instead of an orderly end. */
static inline void close_with_reset(int fd)
{
    struct linger linger = {1, 0};
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    close(fd);
}

/*----------------------------------------------------------------------------
 * A client: bytes out, answers in.
 *----------------------------------------------------------------------------*/

typedef struct client {
    int fd;
    char *data; /* what came and was not taken yet; NUL-terminated */
    size_t len, cap, taken;
    size_t reads; /* how often something was read */
    bool ended;   /* the server has closed, or reset */
    bool reset;
} client;

typedef struct answer {
    int status;
    char head[4096];    /* status line and headers, with the blank line */
    bool close;         /* it says "Connection: close" */
    tornado_bytes body; /* NUL-terminated; until the client's next answer */
} answer;

static inline client client_open(int port)
{
    client c = {.fd = connect_loopback(port)};
    set_nonblocking(c.fd);
    c.data = calloc(1, 1);
    return c;
}

static inline void client_close(client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    free(c->data);
    c->fd = -1;
    c->data = NULL;
}

/* Reads what is there now; false when there is nothing. */
static inline bool client_read(client *c)
{
    if (c->cap - c->len < 65536) {
        c->cap = c->cap * 2 + 65536;
        c->data = realloc(c->data, c->cap + 1);
        CHECK(c->data != NULL);
    }
    ssize_t got = c->ended ? 0 : recv(c->fd, c->data + c->len, c->cap - c->len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return false;
    if (got <= 0) {
        c->ended = true;
        c->reset = c->reset || got < 0;
        return false;
    }
    c->reads++;
    c->len += (size_t)got;
    c->data[c->len] = '\0';
    return true;
}

/* Runs the loop until something comes; false at the end. */
static inline bool client_more(client *c)
{
    while (!client_read(c)) {
        if (c->ended)
            return false;
        client_wait(c->fd, TORNADO_IOLOOP_READ);
    }
    return true;
}

/* Runs the loop until the server closes, and drops all that comes. */
static inline void client_until_end(client *c)
{
    while (client_more(c))
        c->len = c->taken = 0;
}

/* Sends all of it, unless the server closes. */
static inline void client_send_bytes(client *c, const void *data, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(c->fd, data, len, MSG_NOSIGNAL);
        if (sent >= 0) {
            data = (const char *)data + sent;
            len -= (size_t)sent;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            client_wait(c->fd, TORNADO_IOLOOP_WRITE);
        } else if (errno != EINTR) {
            return;
        }
    }
}

static inline void client_send(client *c, const char *text)
{
    client_send_bytes(c, text, strlen(text));
}

/* A header's value in a head, or NULL; static memory. */
static inline const char *head_value(const char *head, const char *name)
{
    static char value[4][1024];
    static int next;
    size_t len = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, len) == 0 && line[2 + len] == ':') {
            const char *from = line + 2 + len + 1 + strspn(line + 2 + len + 1, " ");
            char *out = value[next++ % 4];
            snprintf(out, sizeof value[0], "%.*s", (int)strcspn(from, "\r"), from);
            return out;
        }
    return NULL;
}

/* Needs `len` bytes at c->taken; false when the server closes before. */
static inline bool client_need(client *c, size_t len)
{
    while (c->len - c->taken < len)
        if (!client_more(c))
            return false;
    return true;
}

/* Unpacks the chunks at c->taken, in place, so that the body stands there; false when the server closes before their end. */
static inline bool client_chunks(client *c, answer *a)
{
    size_t body = 0;
    for (;;) {
        size_t at = c->taken + body;
        char *line_end;
        while (!(line_end = c->len > at ? strstr(c->data + at, "\r\n") : NULL))
            if (!client_more(c))
                return false;
        size_t size = strtoul(c->data + at, NULL, 16), head = (size_t)(line_end + 2 - (c->data + at));
        if (!client_need(c, body + head + size + 2))
            return false;
        CHECK(memcmp(c->data + at + head + size, "\r\n", 2) == 0);
        memmove(c->data + at, c->data + at + head, size);
        memmove(c->data + at + size, c->data + at + head + size + 2, c->len - (at + head + size + 2) + 1);
        c->len -= head + 2;
        body += size;
        if (size == 0) {
            a->body.len = body;
            return true;
        }
    }
}

/* Takes one answer; false when the server closes before it is complete. `no_body`: it is one to HEAD. Answers of status 100
   are answers, too. A body is followed by a NUL unless another answer is there already. */
static inline bool client_answer_to(client *c, bool no_body, answer *a)
{
    char *end;
    memmove(c->data, c->data + c->taken, c->len - c->taken + 1);
    c->len -= c->taken;
    c->taken = 0;
    memset(a, 0, sizeof *a);
    while (!(end = c->len ? strstr(c->data, "\r\n\r\n") : NULL))
        if (!client_more(c))
            return false;
    size_t head = (size_t)(end + 4 - c->data);
    CHECK(head < sizeof a->head);
    memcpy(a->head, c->data, head);
    CHECK(sscanf(a->head, "HTTP/1.1 %3d ", &a->status) == 1);
    const char *connection = head_value(a->head, "Connection"), *length = head_value(a->head, "Content-Length");
    const char *coding = head_value(a->head, "Transfer-Encoding");
    a->close = connection && strcasecmp(connection, "close") == 0;
    c->taken = head;
    bool ok = true;
    if (no_body || a->status < 200 || a->status == 204 || a->status == 304) {
        a->body.len = 0;
    } else if (coding) {
        CHECK_STR(coding, "chunked");
        CHECK(length == NULL);
        ok = client_chunks(c, a);
    } else if (length) {
        a->body.len = strtoul(length, NULL, 10);
        ok = client_need(c, a->body.len);
    } else {
        CHECK(a->close);
        while (client_more(c))
            ;
        ok = !c->reset;
        a->body.len = c->len - c->taken;
    }
    a->body.data = c->data + c->taken;
    c->taken += ok ? a->body.len : 0;
    return ok;
}

static inline bool client_answer(client *c, answer *a)
{
    return client_answer_to(c, false, a);
}

/* Sends a request and takes its answer, which must come. */
static inline answer client_ask(client *c, const char *request)
{
    answer a;
    client_send(c, request);
    if (!client_answer_to(c, strncmp(request, "HEAD ", 5) == 0, &a))
        FAIL("no complete answer to %.200s", request);
    return a;
}

/* The same over a connection of its own; the body is copied to static memory. */
static inline answer ask_once(int port, const char *request)
{
    static char body[65536];
    client c = client_open(port);
    answer a = client_ask(&c, request);
    CHECK(a.body.len < sizeof body);
    memcpy(body, a.body.data, a.body.len);
    body[a.body.len] = '\0';
    a.body.data = body;
    client_close(&c);
    return a;
}

#endif
