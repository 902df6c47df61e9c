/* The library without coroutines and threads: a handler answers at once, fails, or answers from a callback; a client
   connects to a name. */
#define TORNADO_NO_COROUTINES
#define TORNADO_NO_THREADS
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

static const struct {
    const char *path, *status, *body;
} requests[] = {{"/", "200 OK", "Hello"}, {"/raise", "418 ", "418"}, {"/later", "200 OK", "at last"}};

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

static const tornado_handler_class hello = {.get = get}, raising = {.get = raise_get}, later = {.get = later_get};

static size_t answered;
static char text[4096];

/* What a server of HTTP/1.0 says, which closes at its end. */
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

static bool ask(int port, const char *path)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), len;
    char request[100];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(text, 0, sizeof text);
    len = snprintf(request, sizeof request, "GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n", path);
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
                            {0}};
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = tornado_application_listen(app, 0, NULL);
    size_t count = sizeof requests / sizeof requests[0];
    for (size_t i = 0; server && i < count; i++)
        ask(tornado_httpserver_port(server), requests[i].path);
    bool ran = tornado_ioloop_run_sync(loop, call, "x");
    bool failed = !tornado_ioloop_run_sync(loop, fail, "x") && tornado_last_error()->code == TORNADO_ERR_STATE;
    bool connected = connect_by_name();
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    if (answered != count)
        fprintf(stderr, "the answer to %s was: %s\n", requests[answered].path, text);
    return answered != count || !ran || !failed || !connected;
}
