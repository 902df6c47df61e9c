/* Handlers that take their connection over, for a protocol that begins with HTTP. */
#include "http_client.h"
#include "runtime.h"

typedef struct site {
    tornado_application *app;
    tornado_httpserver *server;
    client c;
} site;

static tornado_future *gate; /* what a handler waits for before it takes over, or NULL */
static bool asynchronous;
static int over, finished, closed;

static void let_go(void *stream)
{
    tornado_iostream_release(stream);
}

/* Sends two lines back, behind a head that tells how long the request's body was. */
static void take_over(tornado_handler *self)
{
    char text[100];
    if (asynchronous)
        tornado_asynchronous(self);
    if (gate)
        tornado_await(tornado_future_retain(gate));
    snprintf(text, sizeof text, "HTTP/1.1 101 Switching Protocols\r\nX-Length: %zu\r\n\r\n", self->request->body.len);
    tornado_iostream *stream = tornado_detach(self);
    tornado_defer(let_go, stream);
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(text)));
    for (int i = 0; i < 2; i++)
        tornado_await(tornado_iostream_write(stream, tornado_await_bytes(tornado_iostream_read_until(stream, "\n"))));
    CHECK(tornado_http1_connection_detach(self->request->connection) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_CLOSED);
    tornado_iostream_close(stream);
    over++;
}

static void on_finish(tornado_handler *self)
{
    (void)self;
    finished++;
}

static void on_close(tornado_handler *self)
{
    (void)self;
    closed++;
}

static const tornado_handler_class taking = {
    .get = take_over, .post = take_over, .on_finish = on_finish, .on_connection_close = on_close};
static const tornado_handler_class streaming = {.parent = &taking, .stream_request_body = true};

static void refused_get(tornado_handler *self)
{
    tornado_write(self, "answer");
    tornado_finish(self);
    tornado_detach(self);
}

static const tornado_handler_class refused = {.get = refused_get};

static site site_open(void)
{
    tornado_rule rules[] = {{.path = "/", .handler = &taking}, {.path = "/streaming", .handler = &streaming},
                            {.path = "/refused", .handler = &refused}, {0}};
    site s = {.app = tornado_application_new(rules, NULL)};
    s.server = tornado_application_listen(s.app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(s.server != NULL);
    s.c = client_open(tornado_httpserver_port(s.server));
    over = finished = closed = 0;
    log_keep();
    return s;
}

static void site_close(site *s)
{
    client_close(&s->c);
    loop_turns(1);
    while (tornado_ioloop_coroutines(tornado_ioloop_current()) > 0)
        loop_turns(1);
    CHECK_INT(tornado_httpserver_connections(s->server), 0);
    tornado_application_free(s->app);
}

static const struct {
    const char *request, *length;
} rows[] = {
    {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "0"},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", "4"},
    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "4"},
    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nT: u\r\n\r\n", "4"},
    {"POST /streaming HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", "0"},
    {"POST /streaming HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "0"},
};

/* However the bytes come: `step` at a time, or all at once. */
static void check_taken_over(size_t row, size_t step, bool waits)
{
    char all[300];
    answer a;
    site s = site_open();
    gate = waits ? tornado_future_new() : NULL;
    int len = snprintf(all, sizeof all, "%sone\nmore\n", rows[row].request);
    for (size_t at = 0; at < (size_t)len; at += step) {
        client_send_bytes(&s.c, all + at, (size_t)len - at < step ? (size_t)len - at : step);
        loop_turns(1);
    }
    if (waits) {
        loop_turns(3);
        tornado_future_set_result(gate, NULL, NULL);
        tornado_future_release(gate);
    }
    CHECK(client_answer(&s.c, &a));
    CHECK_INT(a.status, 101);
    CHECK_STR(head_value(a.head, "X-Length"), rows[row].length);
    while (client_more(&s.c)) {
    }
    CHECK_STR(s.c.data + s.c.taken, "one\nmore\n");
    site_close(&s);
    CHECK_INT(over, 1);
    CHECK_INT(finished + closed, 0);
    CHECK_STR(log_text, "");
}

TEST(web_detach_gives_the_stream_with_what_is_behind_the_request)
{
    static const size_t steps[] = {1000, 40, 1};
    for (size_t row = 0; row < sizeof rows / sizeof rows[0]; row++)
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
            for (int waits = 0; waits < 2; waits++)
                check_taken_over(row, steps[i], waits);
}

TEST(web_detach_works_in_a_handler_that_is_asynchronous)
{
    asynchronous = true;
    check_taken_over(0, 1000, false);
    check_taken_over(1, 1000, true);
}

TEST(web_detach_behind_the_end_of_an_answer_is_an_error)
{
    site s = site_open();
    answer a = client_ask(&s.c, "GET /refused HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK_STR(a.body.data, "answer");
    CHECK_INT(logged("detach"), 1);
    a = client_ask(&s.c, "GET /refused HTTP/1.1\r\nHost: a\r\n\r\n"); /* the connection is HTTP's still */
    CHECK_STR(a.body.data, "answer");
    client_close(&s.c);
    site_close(&s);
}

TEST(web_detach_of_a_client_that_is_gone_raises)
{
    site s = site_open();
    gate = tornado_future_new();
    client_send(&s.c, rows[0].request);
    loop_turns(3);
    close_with_reset(s.c.fd);
    s.c.fd = -1;
    while (!closed)
        loop_turns(1);
    tornado_future_set_result(gate, NULL, NULL);
    tornado_future_release(gate);
    site_close(&s);
    CHECK_INT(over, 0);
    CHECK_INT(closed, 1);
}
