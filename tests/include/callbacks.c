/* The library without coroutines and threads: a handler answers at once, fails, answers from a callback, or takes a
   body as it comes; a client connects to a name. */
#define TORNADO_NO_COROUTINES
#define TORNADO_NO_THREADS
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

#define GET_(path)       "GET " path " HTTP/1.0\r\n\r\n"
#define PUT_(path, more) "PUT " path " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" more

static const struct {
    const char *request;
    int body_len; /* of a body of x that follows */
    const char *status, *body;
} requests[] = {
    {GET_("/"), 0, "200 OK", "Hello"},
    {GET_("/raise"), 0, "418 ", "418"},
    {GET_("/later"), 0, "200 OK", "at last"},
    {PUT_("/stream", "Content-Length: 3000\r\n\r\n"), 3000, "200 OK", "3000 in pieces of 500 at most"},
    {PUT_("/stream", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"), 0, "200 OK",
     "5 in pieces of 3 at most"},
    {PUT_("/stream", "Content-Length: 0\r\n\r\n"), 0, "200 OK", "0 in pieces of 0 at most"},
    {PUT_("/stream", "Content-Length: 3001\r\n\r\n"), 0, "413 ", "413"},
    {PUT_("/stream", "Content-Length: 9\r\n\r\nraise"), 0, "403 ", "403"},
    {PUT_("/stream", "Content-Length: 9\r\n\r\nfinish"), 0, "200 OK", "enough"},
    {PUT_("/stream", "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\nxyz\r\n"), 0, "400 ", "400"},
    {"OPTIONS /stream HTTP/1.0\r\nContent-Length: 2\r\n\r\nab", 0, "405 ", "405"},
};
enum { REQUESTS = sizeof requests / sizeof requests[0] };

static void get(tornado_handler *self)
{
    tornado_write(self, "Hello");
}

static void raise_get(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_error(418, "raised");
}

static void answer(void *arg)
{
    tornado_write(arg, "at last");
    tornado_finish(arg);
}

static void later_get(tornado_handler *self)
{
    tornado_asynchronous(self);
    tornado_ioloop_call_later(tornado_ioloop_current(), 0.01, answer, self);
}

/* A body as it comes: how much, and the largest piece. What follows a failure or the answer is not handed on. */
typedef struct taker {
    tornado_handler base;
    size_t bytes, most;
    bool over;
} taker;

static bool odd; /* something was called that should not have been */

static void take_prepare(tornado_handler *self)
{
    odd = odd || self->request->body.len;
    tornado_http1_connection_set_max_body_size(self->request->connection, 3000);
}

static void take_piece(tornado_handler *self, tornado_bytes chunk)
{
    taker *t = (taker *)(void *)self;
    odd = odd || t->over || chunk.len == 0;
    t->bytes += chunk.len;
    t->most = chunk.len > t->most ? chunk.len : t->most;
    t->over = chunk.data[0] == 'r' || chunk.data[0] == 'f';
    if (chunk.data[0] == 'r')
        tornado_raise_http_error(403, "no");
    if (chunk.data[0] == 'f') {
        tornado_write(self, "enough");
        tornado_finish(self);
    }
}

static void take_put(tornado_handler *self)
{
    const taker *t = (taker *)(void *)self;
    tornado_writef(self, "%zu in pieces of %zu at most", t->bytes, t->most);
}

static const tornado_handler_class streaming = {
    .instance_size = sizeof(taker), .stream_request_body = true, .prepare = take_prepare,
    .data_received = take_piece, .put = take_put};
static const tornado_handler_class hello = {.get = get}, raising = {.get = raise_get}, later = {.get = later_get};

static size_t answered;
static char text[4096];

/* What the server says, which closes at its end. */
static void on_answer(int fd, unsigned events, void *arg)
{
    size_t len = strlen(text);
    ssize_t got = read(fd, text + len, sizeof text - 1 - len);
    (void)events;
    (void)arg;
    if (got > 0)
        return;
    if (strstr(text, requests[answered].status) && strstr(text, requests[answered].body))
        answered++;
    tornado_ioloop_stop(tornado_ioloop_current());
}

static bool ask(int port, const char *head, int body_len)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), len = (int)strlen(head) + body_len;
    char request[4096];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(text, 0, sizeof text);
    memset(request, 'x', sizeof request);
    memcpy(request, head, strlen(head));
    bool sent = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
                write(fd, request, (size_t)len) == len &&
                tornado_ioloop_add_handler(tornado_ioloop_current(), fd, on_answer, NULL, TORNADO_IOLOOP_READ);
    if (sent) {
        tornado_ioloop_start(tornado_ioloop_current());
        tornado_ioloop_remove_handler(tornado_ioloop_current(), fd);
    }
    close(fd);
    return sent;
}

static void raise_limit(void *arg)
{
    tornado_raise(TORNADO_ERR_LIMIT, "%s", (const char *)arg);
}

static void *call(void *arg)
{
    const tornado_error *error = tornado_try(raise_limit, arg);
    return error && error->code == TORNADO_ERR_LIMIT ? arg : NULL;
}

static void *fail(void *arg)
{
    tornado_raise(TORNADO_ERR_STATE, "%s", (const char *)arg);
}

/* Lines go to a server of coroutines that do not wait, and back, by a name. */
static tornado_tcpclient *client;
static bool echoed;

static void then(tornado_future *future, tornado_future_callback callback, void *arg)
{
    if (!tornado_future_add_done_callback(future, callback, arg))
        tornado_ioloop_stop(tornado_ioloop_current());
    tornado_future_release(future);
}

static void on_echo_read(tornado_future *future, void *stream)
{
    if (!tornado_future_error(future))
        tornado_future_release(tornado_iostream_write(stream, tornado_future_bytes(future)));
    tornado_iostream_release(stream);
}

static void echo(tornado_iostream *stream, void *arg)
{
    (void)arg;
    then(tornado_iostream_read_until(stream, "\n"), on_echo_read, tornado_iostream_retain(stream));
}

static void on_line(tornado_future *future, void *stream)
{
    echoed = !tornado_future_error(future) && tornado_future_bytes(future).len == 5;
    tornado_iostream_release(stream);
    tornado_ioloop_stop(tornado_ioloop_current());
}

static void on_connected(tornado_future *future, void *arg)
{
    tornado_iostream *stream = tornado_future_result(future);
    (void)arg;
    if (!stream) {
        tornado_ioloop_stop(tornado_ioloop_current());
        return;
    }
    tornado_future_release(tornado_iostream_write(stream, tornado_bytes_of("line\n")));
    then(tornado_iostream_read_until(stream, "\n"), on_line, tornado_iostream_retain(stream));
}

/* Names are resolved by the library's own client of DNS here, which knows this one. */
static bool connect_by_name(void)
{
    tornado_bind_options options = {.address = "127.0.0.1"};
    tornado_connect_options to = {.timeout = 10};
    tornado_tcpserver *server = tornado_tcpserver_new(echo, NULL, NULL);
    client = tornado_tcpclient_new(NULL);
    if (client && server && tornado_tcpserver_listen(server, 0, &options)) {
        then(tornado_tcpclient_connect(client, "localhost", tornado_tcpserver_port(server), &to), on_connected, NULL);
        tornado_ioloop_start(tornado_ioloop_current());
    }
    tornado_tcpclient_free(client);
    tornado_tcpserver_free(server);
    return echoed;
}

int main(void)
{
    tornado_rule rules[] = {{.path = "/", .handler = &hello},
                            {.path = "/raise", .handler = &raising},
                            {.path = "/later", .handler = &later},
                            {.path = "/stream", .handler = &streaming},
                            {0}};
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver_options options = {.max_body_size = 10, .chunk_size = 500};
    tornado_httpserver *server = tornado_application_listen(app, 0, &options);
    for (size_t i = 0; server && answered == i && i < REQUESTS; i++)
        ask(tornado_httpserver_port(server), requests[i].request, requests[i].body_len);
    bool ran = tornado_ioloop_run_sync(loop, call, "x");
    bool failed = !tornado_ioloop_run_sync(loop, fail, "x") && tornado_last_error()->code == TORNADO_ERR_STATE;
    bool connected = connect_by_name();
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    if (answered != REQUESTS)
        fprintf(stderr, "the answer to %s was: %s\n", requests[answered].request, text);
    return answered != REQUESTS || odd || !ran || !failed || !connected;
}
