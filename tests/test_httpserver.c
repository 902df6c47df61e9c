/* The server as a whole: many connections, times, limits, and its end, with handlers that wait. */
#include "delegate.h"
#include "http_client.h"
#include "runtime.h"

#include <netinet/tcp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Requests of an application wait here until a test lets them go on. */
static struct {
    tornado_future *gate;
    int entered, left, unwound, finished, closed;
} state;

static void note_unwound(void *arg)
{
    (void)arg;
    state.unwound++;
}

static void wait_get(tornado_handler *self)
{
    state.entered++;
    tornado_defer(note_unwound, NULL);
    tornado_await(tornado_future_retain(state.gate));
    state.left++;
    tornado_write(self, "waited\n");
}

static void hello_get(tornado_handler *self)
{
    tornado_write(self, "hello\n");
}

static void echo_post(tornado_handler *self)
{
    tornado_write_bytes(self, self->request->body);
}

/* Bytes as fast as the client takes them. */
static void flood_get(tornado_handler *self)
{
    static const char block[65536];
    tornado_await(tornado_moment()); /* the turn in which the request came is over */
    for (int i = 0; i < 160; i++) {
        tornado_write_bytes(self, (tornado_bytes){block, sizeof block});
        tornado_await(tornado_flush(self));
        state.entered++;
    }
}

enum { BIG = 32 << 20 };

/* All at once, however slow the client is. */
static void big_get(tornado_handler *self)
{
    char *bytes = calloc(1, BIG);
    tornado_write_bytes(self, (tornado_bytes){bytes, BIG});
    free(bytes);
}

/* Flushes again and again, and never waits for that. */
static void push_get(tornado_handler *self)
{
    static const char block[1 << 20];
    for (int i = 0; i < 200 && tornado_connected(self); i++) {
        tornado_write_bytes(self, (tornado_bytes){block, i < 20 ? sizeof block : 1});
        tornado_future_release(tornado_flush(self));
        tornado_await(tornado_sleep(0.05));
    }
}

static void note_finish(tornado_handler *self)
{
    (void)self;
    state.finished++;
}

static void note_closed(tornado_handler *self)
{
    (void)self;
    state.closed++;
}

static const tornado_handler_class base_class = {.on_finish = note_finish, .on_connection_close = note_closed};
static const tornado_handler_class wait_class = {.parent = &base_class, .get = wait_get};
static const tornado_handler_class hello_class = {.parent = &base_class, .get = hello_get};
static const tornado_handler_class echo_class = {.parent = &base_class, .post = echo_post};
static const tornado_handler_class flood_class = {.parent = &base_class, .get = flood_get};
static const tornado_handler_class big_class = {.parent = &base_class, .get = big_get};
static const tornado_handler_class push_class = {.parent = &base_class, .get = push_get};

typedef struct site {
    tornado_application *app;
    tornado_httpserver *server;
    int port;
} site;

static site site_new(tornado_httpserver_options options)
{
    site s;
    memset(&state, 0, sizeof state);
    state.gate = tornado_future_new();
    options.bind.address = "127.0.0.1";
    s.app = tornado_application_new((tornado_rule[]){{.path = "/", .handler = &hello_class},
                                                     {.path = "/wait", .handler = &wait_class},
                                                     {.path = "/echo", .handler = &echo_class},
                                                     {.path = "/flood", .handler = &flood_class},
                                                     {.path = "/big", .handler = &big_class},
                                                     {.path = "/push", .handler = &push_class},
                                                     {0}}, NULL);
    CHECK(s.app != NULL);
    s.server = tornado_application_listen(s.app, 0, &options);
    CHECK(s.server != NULL);
    s.port = tornado_httpserver_port(s.server);
    CHECK(s.port > 0);
    return s;
}

#define SITE(...) site_new((tornado_httpserver_options){__VA_ARGS__})
#define HELLO "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#define BIG_  "GET /big HTTP/1.1\r\nHost: a\r\n\r\n"
#define WAIT  "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"

static void open_gate(void)
{
    CHECK(tornado_future_set_result(state.gate, NULL, NULL));
}

static void site_free(site *s)
{
    tornado_application_free(s->app);
    tornado_future_release(state.gate);
}

/* Runs the loop until a counter has a value. */
#define UNTIL(expression)                                                                                          \
    do                                                                                                             \
        loop_turns(1);                                                                                             \
    while (!(expression))

/* Checks that the server closes without another answer, and in about that time; on a slow machine part of it may have
   passed already. */
static void expect_close(client *c, double seconds)
{
    double start = tornado_monotonic();
    while (client_more(c))
        ;
    double took = tornado_monotonic() - start;
    if (test_scaled(took) < seconds * 0.5 || took > test_scaled(seconds * 3 + 2))
        FAIL("it closed after %g seconds, not %g", took, seconds);
}

/*----------------------------------------------------------------------------
 * Times.
 *----------------------------------------------------------------------------*/

TEST(httpserver_head_that_takes_too_long_is_answered_408)
{
    site s = SITE(.header_timeout = 0.2);
    client c = client_open(s.port);
    answer a;
    client_send(&c, "GET / HT");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 408);
    CHECK(a.close);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_dribbling_a_head_does_not_help)
{
    site s = SITE(.header_timeout = 0.3);
    client c = client_open(s.port);
    const char *at = HELLO;
    double start = tornado_monotonic();
    while (!c.len && !c.ended && *at) {
        client_send_bytes(&c, at++, 1);
        loop_run_for(0.05);
        client_read(&c);
    }
    CHECK(tornado_monotonic() - start < test_scaled(1.2));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 408);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_empty_lines_do_not_keep_a_connection)
{
    site s = SITE(.idle_connection_timeout = 0.3);
    client c = client_open(s.port);
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    for (int i = 0; i < 1000 && !c.ended; i++) {
        ssize_t ignored = send(c.fd, "\r\n", 2, MSG_NOSIGNAL);
        (void)ignored;
        loop_run_for(0.05);
        client_read(&c);
    }
    CHECK(c.ended);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_empty_line_behind_a_request_leaves_the_connection_its_idle_time)
{
    site s = SITE(.idle_connection_timeout = 0.2);
    client c = client_open(s.port);
    answer a;
    client_send(&c, WAIT "\r\n");
    UNTIL(state.entered == 1);
    open_gate();
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    while (!c.ended) { /* else the test's time ends */
        loop_run_for(0.05);
        client_read(&c);
    }
    client_close(&c);
    site_free(&s);
}

/* Sends a body to /echo, encoded as a header says. */
static answer echo_encoded(client *c, const char *header, tornado_bytes body)
{
    char head[256];
    answer a;
    snprintf(head, sizeof head, "POST /echo HTTP/1.1\r\nHost: a\r\n%sContent-Length: %zu\r\n\r\n", header, body.len);
    client_send(c, head);
    client_send_bytes(c, body.data, body.len);
    CHECK(client_answer(c, &a));
    return a;
}

TEST(httpserver_decompress_request_decodes_bodies_that_say_they_are_gzip)
{
    static const char text[] = "a body that says it again, and says it again, and says it again\n";
    tornado_buffer packed = {0};
    CHECK(tornado_compress(&packed, (tornado_bytes){text, sizeof text - 1}, NULL));
    tornado_bytes body = {packed.data, packed.len};
    site s = SITE(.decompress_request = TORNADO_GUNZIP);
    client c = client_open(s.port);
    CHECK_STR(echo_encoded(&c, "Content-Encoding: gzip\r\n", body).body.data, text);
    CHECK_STR(echo_encoded(&c, "Content-Encoding: x-gzip\r\n", body).body.data, text);
    CHECK_STR(echo_encoded(&c, "Content-Encoding: br\r\nContent-Encoding: GZIP\r\n", body).body.data, text);
    static const char *const others[] = {"" /* nothing says so */, "Content-Encoding: gzip\r\nContent-Encoding: br\r\n",
                                         "Content-Encoding: gzip, br\r\n", "Content-Encoding: x-\r\n"};
    answer a;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        a = echo_encoded(&c, others[i], body);
        CHECK(a.body.len == body.len && memcmp(a.body.data, body.data, body.len) == 0);
    }
    client_close(&c);
    site_free(&s);
    s = SITE(0); /* not asked for */
    c = client_open(s.port);
    a = echo_encoded(&c, "Content-Encoding: gzip\r\n", body);
    CHECK(a.body.len == body.len && memcmp(a.body.data, body.data, body.len) == 0);
    client_close(&c);
    site_free(&s);
    tornado_buffer_free(&packed);
}

/* Answers with the headers that tell of an encoding, and the body. */
static void tell_coding(tornado_http_request *request, void *arg)
{
    tornado_buffer text = {0};
    (void)arg;
    for (size_t i = 0; i < request->headers.count; i++)
        if (strstr(request->headers.items[i].name, "Encoding"))
            tornado_buffer_printf(&text, "%s=%.*s;", request->headers.items[i].name,
                                  (int)request->headers.items[i].value_len, request->headers.items[i].value);
    CHECK(tornado_buffer_append(&text, request->body.data, request->body.len));
    CHECK(sent(write_head(request->connection, 200, (int64_t)text.len, NULL)));
    CHECK(sent(tornado_http1_connection_write(request->connection, (tornado_bytes){text.data, text.len})));
    CHECK(sent(tornado_http1_connection_finish(request->connection)));
    tornado_buffer_free(&text);
}

TEST(httpserver_decompress_request_takes_off_the_coding_that_was_applied_last)
{
    static const struct {
        const char *header, *seen;
    } cases[] = {{"gzip", "X-Consumed-Content-Encoding=gzip;"},
                 {"x-gzip", "X-Consumed-Content-Encoding=x-gzip;"},
                 {"deflate, gzip", "Content-Encoding=deflate;"},
                 {"br,gzip", "Content-Encoding=br;"},
                 {"br ,\tX-GZip", "Content-Encoding=br;"},
                 {"a, b, gzip", "Content-Encoding=a, b;"},
                 {"gzip,", "X-Consumed-Content-Encoding=gzip,;"},
                 {"br, gzip , ,", "Content-Encoding=br;"},
                 {",gzip", "X-Consumed-Content-Encoding=,gzip;"},
                 {"br\r\nContent-Encoding: gzip", "Content-Encoding=br;X-Consumed-Content-Encoding=gzip;"}};
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}, .decompress_request = TORNADO_GUNZIP};
    tornado_httpserver *server = tornado_httpserver_new_callback(tell_coding, NULL, &options);
    CHECK(server && tornado_httpserver_listen(server, 0, NULL));
    client c = client_open(tornado_httpserver_port(server));
    tornado_buffer packed = {0};
    CHECK(tornado_compress(&packed, tornado_bytes_of("body"), NULL));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char header[100], want[100];
        snprintf(header, sizeof header, "Content-Encoding: %s\r\n", cases[i].header);
        snprintf(want, sizeof want, "%sbody", cases[i].seen);
        CHECK_STR(echo_encoded(&c, header, (tornado_bytes){packed.data, packed.len}).body.data, want);
    }
    client_close(&c);
    tornado_buffer_free(&packed);
    tornado_httpserver_free(server);
}

TEST(httpserver_decompressed_bodies_are_bounded_and_corrupt_ones_refused)
{
    enum { SIZE = 1000000 };
    static char zeroes[SIZE];
    static const struct {
        size_t cut, flip; /* of the compressed bytes: how many are left out at the end, which one is changed */
        int64_t limit;
        int status;
    } cases[] = {{0, 0, SIZE, 200}, {0, 0, SIZE - 1, 413}, {0, 0, 10000, 413}, {4, 0, SIZE, 400}, {0, 1, SIZE, 400}};
    tornado_buffer packed = {0};
    CHECK(tornado_compress(&packed, (tornado_bytes){zeroes, SIZE}, NULL));
    CHECK(packed.len < 10000);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        site s = SITE(.decompress_request = TORNADO_GUNZIP, .max_body_size = cases[i].limit);
        client c = client_open(s.port);
        packed.data[cases[i].flip] ^= cases[i].flip ? 0x55 : 0;
        tornado_bytes body = {packed.data, packed.len - cases[i].cut};
        answer a = echo_encoded(&c, "Content-Encoding: gzip\r\n", body);
        packed.data[cases[i].flip] ^= cases[i].flip ? 0x55 : 0;
        if (a.status != cases[i].status)
            FAIL("case %zu: %d, not %d", i, a.status, cases[i].status);
        CHECK(a.status != 200 || a.body.len == SIZE);
        client_close(&c);
        site_free(&s);
    }
    tornado_buffer_free(&packed);
}

TEST(httpserver_chunks_of_little_but_extensions_are_refused)
{
    for (int ext = 0; ext < 2; ext++) {
        char line[64] = "1", request[] = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        tornado_buffer chunks = {0};
        if (ext)
            snprintf(line, sizeof line, "1;%050d", 0);
        for (int i = 0; i < 40000; i++)
            tornado_buffer_printf(&chunks, "%s\r\nx\r\n", line);
        tornado_buffer_puts(&chunks, "0\r\n\r\n");
        site s = SITE(.no_keep_alive = true);
        client c = client_open(s.port);
        answer a;
        client_send(&c, request);
        for (size_t at = 0; at < chunks.len && !c.len; at += 4096) {
            client_send_bytes(&c, chunks.data + at, chunks.len - at < 4096 ? chunks.len - at : 4096);
            client_read(&c);
        }
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, ext ? 400 : 200);
        CHECK(ext || a.body.len == 40000);
        client_close(&c);
        site_free(&s);
        tornado_buffer_free(&chunks);
    }
}

/* Begins with another loop, which has no memory at hand yet. */
static void fresh_loop(void)
{
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_ioloop_clear_current();
}

/* Sends a request that is the first of its loop, and has the n-th allocation fail; waits until something comes, else
   the test's time ends. Whether there was such an allocation. */
static bool ask_in_need(client *c, const char *request, long n)
{
    loop_turns(3);
    client_send(c, request);
    long before = test_allocs();
    test_fail_alloc(n);
    while (!client_read(c) && !c->ended)
        tornado_ioloop_run_once(tornado_ioloop_current(), 0.01);
    bool hit = test_allocs() - before >= n;
    test_fail_alloc(0);
    return hit;
}

TEST(httpserver_client_that_waits_for_100_hears_something_when_memory_is_short)
{
    bool hit = true;
    log_keep();
    for (long n = 1; hit; n++) {
        fresh_loop();
        site s = SITE(.no_keep_alive = false);
        client c = client_open(s.port);
        answer a;
        hit = ask_in_need(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", n);
        if (!c.ended && client_answer(&c, &a) && a.status == 100) {
            a = client_ask(&c, "abc");
            CHECK(a.status == 200 || a.status == 503);
        } else if (!c.ended) {
            CHECK_INT(a.status, 503);
        }
        client_close(&c);
        site_free(&s);
    }
}

TEST(httpserver_max_buffer_size_is_the_limit_of_bodies_that_have_no_other)
{
    static const struct {
        int64_t buffer, body;
        int status;
    } cases[] = {{1000, 0, 413}, {1001, 0, 200}, {1000, 1001, 200}};
    static char body[1001];
    memset(body, 'x', sizeof body);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        site s = SITE(.max_buffer_size = cases[i].buffer, .max_body_size = cases[i].body);
        client c = client_open(s.port);
        CHECK_INT(echo_encoded(&c, "", (tornado_bytes){body, sizeof body}).status, cases[i].status);
        client_close(&c);
        site_free(&s);
    }
}

TEST(httpserver_head_timeout_counts_for_each_request_alone)
{
    site s = SITE(.header_timeout = test_scaled(0.4));
    client c = client_open(s.port);
    for (int i = 0; i < 4; i++) {
        client_send(&c, "GET / HTTP/1.1\r\n");
        loop_run_for(test_scaled(0.15));
        CHECK_INT(client_ask(&c, "Host: a\r\n\r\n").status, 200);
    }
    loop_run_for(test_scaled(0.6)); /* idle is not the same as late */
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_body_that_takes_too_long_is_answered_408)
{
    site s = SITE(.body_timeout = 0.2);
    client c = client_open(s.port);
    answer a;
    client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n012");
    loop_run_for(0.05);
    client_send(&c, "3");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 408);
    CHECK(a.close);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_body_that_stops_is_given_up_when_idle_for_too_long)
{
    site s = SITE(.idle_connection_timeout = 0.2);
    client c = client_open(s.port);
    client_send(&c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n012");
    UNTIL(tornado_httpserver_connections(s.server) == 1);
    UNTIL(tornado_httpserver_connections(s.server) == 0 || (client_read(&c), c.len > 0));
    client_close(&c);
    site_free(&s);
}

TEST_EACH_POLLER(httpserver_idle_connections_are_closed)
{
    site s = SITE(.idle_connection_timeout = 0.2);
    client fresh = client_open(s.port), used = client_open(s.port);
    CHECK_INT(client_ask(&used, HELLO).status, 200);
    expect_close(&used, 0.2);
    expect_close(&fresh, 0);
    CHECK_INT(fresh.len, 0);
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    client_close(&fresh);
    client_close(&used);
    site_free(&s);
}

TEST(httpserver_a_handler_that_waits_is_not_idle)
{
    site s = SITE(.idle_connection_timeout = 0.1, .header_timeout = 0.1, .body_timeout = 0.1);
    client c = client_open(s.port);
    answer a;
    client_send(&c, WAIT);
    loop_run_for(0.4);
    open_gate();
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "waited\n", 7);
    client_close(&c);
    site_free(&s);
}

/* Has the system receive little that the client has not read, whatever it would by itself. */
static void take_little(client *c)
{
    int size = 65536;
    CHECK(setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
}

TEST(httpserver_a_client_that_stops_reading_is_given_up)
{
    site s = SITE(.idle_connection_timeout = 0.3);
    client c = client_open(s.port);
    take_little(&c);
    client_send(&c, "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
    UNTIL(tornado_httpserver_connections(s.server) == 1);
    UNTIL(tornado_httpserver_connections(s.server) == 0);
    CHECK(state.entered < 160);
    loop_turns(4);
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 0);
    CHECK_INT(state.closed, 1);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_a_client_that_only_sends_is_given_up)
{
    static const struct {
        const char *request, *dribble;
    } cases[] = {{BIG_, "\r\n"}, {BIG_, "G"}, {"GET /push HTTP/1.1\r\nHost: a\r\n\r\n", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        site s = SITE(.idle_connection_timeout = 0.4);
        client c = client_open(s.port);
        take_little(&c);
        client_send(&c, cases[i].request);
        UNTIL(tornado_httpserver_connections(s.server) == 1);
        while (tornado_httpserver_connections(s.server) > 0) { /* else the test's time ends */
            ssize_t ignored = send(c.fd, cases[i].dribble, strlen(cases[i].dribble), MSG_NOSIGNAL);
            (void)ignored;
            loop_run_for(0.05);
        }
        UNTIL(tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
        client_close(&c);
        site_free(&s);
    }
}

TEST_LIMIT(httpserver_a_client_that_reads_slowly_is_not_given_up, 30)
{
    double idle = test_scaled(0.5);
    site s = SITE(.idle_connection_timeout = idle);
    client c = client_open(s.port);
    static char bytes[65536];
    size_t got = 0;
    take_little(&c);
    client_send(&c, BIG_);
    for (double start = tornado_monotonic(); got < BIG;) {
        ssize_t len = got < (tornado_monotonic() - start) * BIG / (4 * idle) ? recv(c.fd, bytes, sizeof bytes, 0) : -2;
        if (len == 0 || (len == -1 && errno != EAGAIN))
            FAIL("closed after %zu bytes, %g seconds", got, tornado_monotonic() - start);
        got += len > 0 ? (size_t)len : 0;
        if (len > 0)
            loop_turns(1);
        else
            loop_run_for(0.002);
    }
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_what_comes_behind_an_unread_answer_has_its_time_when_that_was_read)
{
    for (int body = 0; body < 2; body++) {
        site s = SITE(.header_timeout = body ? 0 : 0.3, .body_timeout = body ? 0.3 : 0);
        client c = client_open(s.port);
        answer a;
        take_little(&c);
        client_send(&c, body ? BIG_ "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc" : BIG_ "GET / HT");
        loop_run_for(0.7);
        CHECK_INT(tornado_httpserver_connections(s.server), 1);
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.body.len, BIG);
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, 408);
        CHECK(!client_more(&c));
        client_close(&c);
        site_free(&s);
    }
}

TEST_EACH_POLLER(httpserver_a_flood_goes_at_the_clients_pace)
{
    site s = SITE(.max_connections = TORNADO_NONE);
    client c = client_open(s.port);
    answer a;
    take_little(&c);
    client_send(&c, "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
    loop_turns(300);
    CHECK(state.entered < 155);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.body.len, 160 * 65536);
    CHECK_INT(state.entered, 160);
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    client_close(&c);
    site_free(&s);
}

/*----------------------------------------------------------------------------
 * Clients that go away.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(httpserver_a_client_that_leaves_while_a_handler_waits)
{
    for (int reset = 0; reset < 2; reset++) {
        site s = SITE(.max_connections = 0);
        client c = client_open(s.port);
        CHECK_INT(client_ask(&c, HELLO).status, 200);
        client_send(&c, WAIT);
        UNTIL(state.entered == 1);
        if (reset) {
            close_with_reset(c.fd);
            c.fd = -1;
        }
        client_close(&c);
        UNTIL(state.closed == 1);
        CHECK_INT(tornado_httpserver_connections(s.server), 0);
        CHECK_INT(state.left, 0);
        CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 1); /* it is not cancelled */
        open_gate();
        UNTIL(state.left == 1);
        loop_turns(3);
        CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 0);
        CHECK_INT(state.unwound, 1);
        CHECK_INT(state.closed, 1);
        site_free(&s);
    }
}

TEST(httpserver_a_client_that_leaves_with_more_requests_in_the_pipe)
{
    site s = SITE(.max_connections = 0);
    client c = client_open(s.port);
    client_send(&c, WAIT HELLO HELLO WAIT);
    UNTIL(state.entered == 1);
    close_with_reset(c.fd);
    c.fd = -1;
    client_close(&c);
    UNTIL(tornado_httpserver_connections(s.server) == 0);
    loop_turns(3);
    CHECK_INT(state.closed, 1);
    CHECK_INT(state.entered, 1);
    open_gate();
    loop_turns(5);
    CHECK_INT(state.entered, 1);
    CHECK_INT(state.left, 1);
    site_free(&s);
}

TEST(httpserver_a_client_that_shuts_down_its_sending_side_after_asking_is_answered)
{
    site s = SITE(.max_connections = 0);
    client c = client_open(s.port);
    answer a;
    client_send(&c, HELLO);
    CHECK(shutdown(c.fd, SHUT_WR) == 0);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK(!client_more(&c));
    client_close(&c);
    site_free(&s);
}

/*----------------------------------------------------------------------------
 * Many.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(httpserver_many_handlers_wait_at_once)
{
    enum { CLIENTS = 100 };
    site s = SITE(.max_connections = 0);
    client clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = client_open(s.port);
        client_send(&clients[i], WAIT);
    }
    UNTIL(state.entered == CLIENTS);
    CHECK_INT(tornado_httpserver_connections(s.server), CLIENTS);
    CHECK_INT(ask_once(s.port, HELLO).status, 200); /* others are served meanwhile */
    open_gate();
    for (int i = 0; i < CLIENTS; i++) {
        answer a;
        CHECK(client_answer(&clients[i], &a));
        CHECK_MEM(a.body.data, a.body.len, "waited\n", 7);
        client_close(&clients[i]);
    }
    site_free(&s);
}

TEST(httpserver_connections_beyond_the_maximum_are_closed)
{
    site s = SITE(.max_connections = 2);
    client a = client_open(s.port), b = client_open(s.port), c;
    CHECK_INT(client_ask(&a, HELLO).status, 200);
    CHECK_INT(client_ask(&b, HELLO).status, 200);
    c = client_open(s.port);
    CHECK(!client_more(&c));
    client_close(&c);
    CHECK_INT(client_ask(&a, HELLO).status, 200);
    client_close(&a);
    UNTIL(tornado_httpserver_connections(s.server) == 1);
    c = client_open(s.port);
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    client_close(&b);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_limit_of_connections_is_logged_once_a_second)
{
    log_keep();
    site s = SITE(.max_connections = 1);
    double start = tornado_monotonic();
    for (int i = 0; i < 10; i++) {
        client in = client_open(s.port), out;
        CHECK_INT(client_ask(&in, HELLO).status, 200);
        out = client_open(s.port);
        CHECK(!client_more(&out));
        client_close(&out);
        client_close(&in);
        UNTIL(tornado_httpserver_connections(s.server) == 0);
    }
    CHECK(logged("the limit of 1 connections is reached") >= 1);
    CHECK(logged("the limit of") <= 1 + (int)(tornado_monotonic() - start));
    site_free(&s);
}

TEST(httpserver_no_keep_alive_closes_after_each_answer)
{
    site s = SITE(.no_keep_alive = true);
    client c = client_open(s.port);
    answer a = client_ask(&c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    CHECK(a.close);
    CHECK(!client_more(&c));
    client_close(&c);
    c = client_open(s.port);
    a = client_ask(&c, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    CHECK(a.close);
    client_close(&c);
    site_free(&s);
}

/*----------------------------------------------------------------------------
 * The end.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(httpserver_close_all_connections_closes_idle_and_busy_ones)
{
    site s = SITE(.max_connections = 0);
    client idle = client_open(s.port), busy = client_open(s.port), half = client_open(s.port);
    CHECK_INT(client_ask(&idle, HELLO).status, 200);
    client_send(&busy, WAIT);
    client_send(&half, "GET / HT");
    UNTIL(state.entered == 1);
    tornado_httpserver_close_all_connections(s.server);
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    CHECK(!client_more(&idle));
    CHECK(!client_more(&busy));
    CHECK(!client_more(&half));
    UNTIL(state.closed == 1);
    open_gate();
    UNTIL(state.left == 1);
    CHECK_INT(ask_once(s.port, HELLO).status, 200); /* it still accepts */
    client_close(&idle);
    client_close(&busy);
    client_close(&half);
    site_free(&s);
}

TEST(httpserver_stop_refuses_new_connections_and_serves_the_old_ones)
{
    site s = SITE(.max_connections = 0);
    client c = client_open(s.port);
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    tornado_httpserver_stop(s.server);
    struct sockaddr_in address = loopback(s.port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) != 0);
    close(fd);
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    CHECK_INT(tornado_httpserver_port(s.server), 0);
    tornado_httpserver_stop(s.server);
    client_close(&c);
    site_free(&s);
}

static int delegate_finished, delegate_closed, delegate_released;

static void outliving_finish(void *self)
{
    tornado_http1_connection *connection = *(tornado_http1_connection **)self;
    tornado_http1_connection_retain(connection);
    delegate_finished++;
}

static void outliving_closed(void *arg)
{
    (void)arg;
    delegate_closed++;
}

static void outliving_release(void *self)
{
    (void)self;
    delegate_released++;
}

static const tornado_http_message_delegate *outliving_start(void *self, tornado_http1_server_connection *server,
                                                            tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {.finish = outliving_finish, .release = outliving_release};
    (void)server;
    CHECK(*message == self);
    *(tornado_http1_connection **)self = connection;
    tornado_http1_connection_set_close_callback(connection, outliving_closed, NULL);
    return &delegate;
}

TEST(httpserver_requests_may_outlive_their_server)
{
    static const tornado_http_server_connection_delegate delegate = {.start_request = outliving_start};
    tornado_http1_connection *connection = NULL;
    tornado_httpserver *server = tornado_httpserver_new(&delegate, &connection, NULL);
    CHECK(server && tornado_httpserver_listen(server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    client c = client_open(tornado_httpserver_port(server));
    client_send(&c, "GET /path HTTP/1.1\r\nHost: a\r\n\r\n");
    UNTIL(delegate_finished);
    tornado_httpserver_free(server);
    CHECK_INT(delegate_closed, 1);
    CHECK_INT(delegate_released, 0);
    CHECK_STR(tornado_http1_connection_request(connection)->path, "/path");
    CHECK_INT(failure(write_head(connection, 200, 0, NULL)), TORNADO_ERR_CLOSED);
    tornado_http1_connection_release(connection);
    CHECK_INT(delegate_released, 1);
    CHECK(!client_more(&c));
    client_close(&c);
}

TEST(httpserver_freed_while_handlers_wait)
{
    static const tornado_rule rules[] = {{.path = "/wait", .handler = &wait_class}, {0}};
    memset(&state, 0, sizeof state);
    state.gate = tornado_future_new();
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = tornado_httpserver_new(tornado_application_delegate(), app, NULL);
    CHECK(server && tornado_httpserver_listen(server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    client c = client_open(tornado_httpserver_port(server));
    client_send(&c, WAIT);
    UNTIL(state.entered == 1);
    tornado_httpserver_free(server);
    CHECK(!client_more(&c));
    open_gate();
    UNTIL(state.left == 1);
    loop_turns(3);
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 0);
    CHECK_INT(state.closed, 1);
    tornado_application_free(app);
    tornado_future_release(state.gate);
    client_close(&c);
}

TEST_EACH_POLLER(httpserver_shutdown_closes_the_idle_and_waits_for_the_busy)
{
    site s = SITE(.max_connections = 0);
    tornado_ioloop *loop = tornado_ioloop_current();
    client idle = client_open(s.port), busy = client_open(s.port);
    answer a;
    CHECK_INT(client_ask(&idle, HELLO).status, 200);
    client_send(&busy, WAIT);
    UNTIL(state.entered == 1);
    tornado_ioloop_shutdown(loop, 30);
    CHECK(!client_more(&idle));
    CHECK_INT(tornado_httpserver_connections(s.server), 1);
    open_gate();
    CHECK(tornado_ioloop_start(loop)); /* until it has stopped by itself */
    CHECK(client_read(&busy));
    CHECK(client_answer(&busy, &a));
    CHECK_MEM(a.body.data, a.body.len, "waited\n", 7);
    CHECK(a.close);
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    client_close(&idle);
    client_close(&busy);
    site_free(&s);
}

TEST(httpserver_shutdown_cancels_what_outlives_the_grace)
{
    site s = SITE(.max_connections = 0);
    tornado_ioloop *loop = tornado_ioloop_current();
    client busy = client_open(s.port);
    client_send(&busy, WAIT);
    UNTIL(state.entered == 1);
    tornado_ioloop_shutdown(loop, 0.1);
    CHECK(tornado_ioloop_start(loop));
    CHECK_INT(state.left, 0);
    CHECK_INT(state.unwound, 1);
    CHECK_INT(tornado_ioloop_coroutines(loop), 0);
    client_close(&busy);
    site_free(&s);
}

TEST(httpserver_port_in_use_is_one_clear_line_and_null)
{
    int port, listener = listen_loopback(&port);
    char wanted[16];
    site s = SITE(.max_connections = 0);
    snprintf(wanted, sizeof wanted, "%d", port);
    CHECK(!tornado_application_listen(s.app, port, &(tornado_httpserver_options){.bind.address = "127.0.0.1"}));
    CHECK(strstr(tornado_last_error()->message, wanted) != NULL);
    CHECK(!strchr(tornado_last_error()->message, '\n'));
    CHECK_INT(tornado_last_error()->sys_errno, EADDRINUSE);
    CHECK(!tornado_application_listen(s.app, 65536, NULL));
    CHECK(!tornado_application_listen(s.app, -1, NULL));
    CHECK_INT(ask_once(s.port, HELLO).status, 200);
    close(listener);
    site_free(&s);
}

TEST(httpserver_serves_a_unix_socket)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/tornado-test-%d.sock", (int)getpid());
    site s = SITE(.max_connections = 0);
    CHECK(tornado_httpserver_listen(s.server, 0, &(tornado_bind_options){.unix_socket = path}));
    TEST_NEED("curl");
    const test_output *out = test_run_loop(tornado_ioloop_current(), "curl -sS --unix-socket %s http://x/", path);
    CHECK_STR(out->text, "hello\n");
    unlink(path);
    site_free(&s);
}

/*----------------------------------------------------------------------------
 * Other people's clients.
 *----------------------------------------------------------------------------*/

TEST(httpserver_is_understood_by_curl)
{
    TEST_NEED("curl");
    site s = SITE(.max_connections = 0);
    tornado_ioloop *loop = tornado_ioloop_current();
    CHECK_STR(test_run_loop(loop, "curl -sS --http1.1 http://127.0.0.1:%d/", s.port)->text, "hello\n");
    CHECK_STR(test_run_loop(loop, "curl -sS --http1.0 http://127.0.0.1:%d/", s.port)->text, "hello\n");
    CHECK_STR(test_run_loop(loop, "curl -sS -d some=data http://127.0.0.1:%d/echo", s.port)->text, "some=data");
    CHECK_STR(test_run_loop(loop, "curl -sS -H 'Transfer-Encoding: chunked' -d x=y http://127.0.0.1:%d/echo", s.port)->text,
              "x=y");
    CHECK_STR(test_run_loop(loop, "curl -sSI http://127.0.0.1:%d/ | head -1 | tr -d '\\r'", s.port)->text,
              "HTTP/1.1 405 Method Not Allowed\n");
    CHECK_STR(test_run_loop(loop, "curl -sS -o /dev/null -w '%%{http_code} %%{num_connects}' http://127.0.0.1:%d/ "
                                  "--next -sS -o /dev/null -w ' %%{http_code} %%{num_connects}' http://127.0.0.1:%d/",
                            s.port, s.port)->text, "200 1 200 0");
    CHECK_STR(test_run_loop(loop, "head -c 10000000 /dev/zero | curl -sS -T - -X POST http://127.0.0.1:%d/echo | wc -c",
                            s.port)->text, "10000000\n");
    CHECK_STR(test_run_loop(loop, "head -c 10000000 /dev/zero | curl -sS --data-binary @- http://127.0.0.1:%d/echo | wc -c",
                            s.port)->text, "10000000\n");
    CHECK_STR(test_run_loop(loop, "curl -sS http://127.0.0.1:%d/flood | wc -c", s.port)->text, "10485760\n");
    site_free(&s);
}

TEST(httpserver_is_understood_by_python)
{
    TEST_NEED("python3");
    site s = SITE(.max_connections = 0);
    const test_output *out = test_run_loop(
        tornado_ioloop_current(),
        "python3 -c \"\nimport http.client\nc = http.client.HTTPConnection('127.0.0.1', %d)\n"
        "for i in range(3):\n    c.request('GET', '/'); r = c.getresponse(); print(r.status, r.read(), r.getheader('Content-Length'))\n"
        "c.request('POST', '/echo', (b'%%d.' %% i for i in range(5)), encode_chunked=True, headers={'Transfer-Encoding': 'chunked'})\n"
        "print(c.getresponse().read())\nc.request('PUT', '/'); r = c.getresponse(); r.read(); print(r.status, r.getheader('Allow'))\"",
        s.port);
    CHECK_STR(out->text, "200 b'hello\\n' 6\n200 b'hello\\n' 6\n200 b'hello\\n' 6\nb'0.1.2.3.4.'\n405 GET\n");
    site_free(&s);
}

TEST(httpserver_is_understood_by_ab)
{
    TEST_NEED("ab");
    site s = SITE(.max_connections = 0);
    for (int keep = 0; keep < 2; keep++) {
        const test_output *out = test_run_loop(tornado_ioloop_current(), "ab -q %s -n 500 -c 20 http://127.0.0.1:%d/ 2>&1",
                                               keep ? "-k" : "", s.port);
        if (!strstr(out->text, "Complete requests:      500\n") || !strstr(out->text, "Failed requests:        0\n") ||
            strstr(out->text, "Non-2xx") || (keep && !strstr(out->text, "Keep-Alive requests:    500\n")))
            FAIL("%s", out->text);
    }
    site_free(&s);
}

TEST(httpserver_is_understood_by_wrk)
{
    TEST_NEED("wrk");
    site s = SITE(.max_connections = 0);
    const test_output *out =
        test_run_loop(tornado_ioloop_current(), "wrk -t1 -c30 -d1s http://127.0.0.1:%d/ 2>&1", s.port);
    if (!strstr(out->text, "requests in") || strstr(out->text, "Non-2xx") || strstr(out->text, "Socket errors"))
        FAIL("%s", out->text);
    site_free(&s);
}

TEST(httpserver_is_understood_by_h2load)
{
    TEST_NEED("h2load");
    site s = SITE(.max_connections = 0);
    const test_output *out =
        test_run_loop(tornado_ioloop_current(), "h2load --h1 -n 2000 -c 20 -m 10 http://127.0.0.1:%d/ 2>&1", s.port);
    if (!strstr(out->text, "2000 succeeded, 0 failed, 0 errored, 0 timeout"))
        FAIL("%s", out->text);
    site_free(&s);
}

/*----------------------------------------------------------------------------
 * Options and delegates.
 *----------------------------------------------------------------------------*/

/* Answers with who asks, and how. */
static void tell_address(tornado_http_request *request, void *arg)
{
    char text[80];
    CHECK(arg == &delegate_finished);
    snprintf(text, sizeof text, "%s %s", request->remote_ip, request->protocol);
    CHECK(sent(write_head(request->connection, 200, (int64_t)strlen(text), NULL)));
    CHECK(sent(tornado_http1_connection_write(request->connection, tornado_bytes_of(text))));
    CHECK(sent(tornado_http1_connection_finish(request->connection)));
}

static tornado_httpserver *address_server(const tornado_httpserver_options *options)
{
    tornado_httpserver *server = tornado_httpserver_new_callback(tell_address, &delegate_finished, options);
    CHECK(server != NULL);
    return server;
}

TEST(httpserver_xheaders_tell_who_asks)
{
    static const char *const trusted[] = {"10.0.0.1", "10.0.0.2", NULL};
    static const struct {
        bool xheaders;
        const char *protocol, *headers, *answer;
    } cases[] = {
        {false, NULL, "X-Real-Ip: 1.2.3.4\r\nX-Scheme: https\r\n", "127.0.0.1 http"},
        {false, "https", "", "127.0.0.1 https"},
        {true, NULL, "", "127.0.0.1 http"},
        {true, NULL, "X-Real-Ip: 1.2.3.4\r\n", "1.2.3.4 http"},
        {true, NULL, "X-Real-Ip: 2001:db8::1\r\n", "2001:db8::1 http"},
        {true, NULL, "X-Real-Ip: example.com\r\n", "127.0.0.1 http"},
        {true, NULL, "X-Real-Ip: \r\n", "127.0.0.1 http"},
        {true, NULL, "X-Real-Ip: 1.2.3.4, 5.6.7.8\r\n", "127.0.0.1 http"},
        {true, NULL, "X-Forwarded-For: 1.2.3.4\r\n", "1.2.3.4 http"},
        {true, NULL, "X-Forwarded-For: 9.9.9.9, 1.2.3.4\r\n", "1.2.3.4 http"},
        {true, NULL, "X-Forwarded-For: 9.9.9.9, 1.2.3.4, 10.0.0.2,10.0.0.1\r\n", "1.2.3.4 http"},
        {true, NULL, "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 10.0.0.1\r\n", "1.2.3.4 http"},
        {true, NULL, "X-Forwarded-For: 10.0.0.2, 10.0.0.1\r\n", "10.0.0.2 http"},
        {true, NULL, "X-Forwarded-For: <script>\r\n", "127.0.0.1 http"},
        {true, NULL, "X-Forwarded-For: 1.2.3.4\r\nX-Real-Ip: 5.6.7.8\r\n", "5.6.7.8 http"},
        {true, NULL, "X-Scheme: https\r\n", "127.0.0.1 https"},
        {true, NULL, "X-Forwarded-Proto: https\r\n", "127.0.0.1 https"},
        {true, NULL, "X-Scheme: http\r\nX-Forwarded-Proto: https\r\n", "127.0.0.1 http"},
        {true, NULL, "X-Forwarded-Proto: http, https\r\n", "127.0.0.1 https"},
        {true, "https", "X-Scheme: ftp\r\n", "127.0.0.1 https"},
        {true, "https", "X-Scheme: http\r\n", "127.0.0.1 http"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tornado_httpserver_options options = {.xheaders = cases[i].xheaders, .protocol = cases[i].protocol,
                                              .trusted_downstream = trusted, .bind = {.address = "127.0.0.1"}};
        tornado_httpserver *server = address_server(&options);
        CHECK(tornado_httpserver_listen(server, 0, NULL));
        client c = client_open(tornado_httpserver_port(server));
        char request[256];
        snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", cases[i].headers);
        answer a = client_ask(&c, request);
        CHECK_STR(a.body.data, cases[i].answer);
        a = client_ask(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); /* each request for itself */
        CHECK(strncmp(a.body.data, "127.0.0.1 ", 10) == 0);
        client_close(&c);
        tornado_httpserver_free(server);
    }
}

/* Answers with the whole URL. */
static void tell_url(tornado_http_request *request, void *arg)
{
    const char *text = tornado_http_request_full_url(request);
    (void)arg;
    CHECK(sent(write_head(request->connection, 200, (int64_t)strlen(text), NULL)));
    CHECK(sent(tornado_http1_connection_write(request->connection, tornado_bytes_of(text))));
    CHECK(sent(tornado_http1_connection_finish(request->connection)));
}

TEST(httpserver_targets_that_are_no_paths_have_a_url)
{
    static const struct {
        const char *target, *url;
    } cases[] = {{"GET /a?b", "http://h:80/a?b"}, {"GET http://b.example/u?x", "http://b.example/u?x"},
                 {"GET http://b:81?x://y", "http://b:81?x://y"}, {"GET http://b", "http://b"},
                 {"GET /x://y", "http://h:80/x://y"}, {"OPTIONS *", "http://h:80"}, {"CONNECT b:443", "http://h:80"}};
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}};
    tornado_httpserver *server = tornado_httpserver_new_callback(tell_url, NULL, &options);
    CHECK(server && tornado_httpserver_listen(server, 0, NULL));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char request[100];
        snprintf(request, sizeof request, "%s HTTP/1.1\r\nHost: h:80\r\n\r\n", cases[i].target);
        CHECK_STR(ask_once(tornado_httpserver_port(server), request).body.data, cases[i].url);
    }
    tornado_httpserver_free(server);
}

/* The same where memory is short. */
static void try_to_tell_address(tornado_http_request *request, void *arg)
{
    (void)arg;
    if (!sent(write_head(request->connection, 200, (int64_t)strlen(request->remote_ip), NULL)) ||
        !sent(tornado_http1_connection_write(request->connection, tornado_bytes_of(request->remote_ip))) ||
        !sent(tornado_http1_connection_finish(request->connection)))
        tornado_http1_connection_close(request->connection);
}

TEST_LIMIT(httpserver_client_of_a_proxy_is_not_the_proxy_when_memory_is_short, 60)
{
    tornado_httpserver_options options = {.xheaders = true, .bind = {.address = "127.0.0.1"}};
    int refused = 0;
    log_keep();
    for (int more = 0; more < 4096; more += 16) { /* so that the address is what needs another block */
        bool hit = true;
        for (long n = 1; hit; n++) {
            char request[4200];
            answer a;
            fresh_loop();
            tornado_httpserver *server = tornado_httpserver_new_callback(try_to_tell_address, NULL, &options);
            CHECK(server && tornado_httpserver_listen(server, 0, NULL));
            client c = client_open(tornado_httpserver_port(server));
            snprintf(request, sizeof request,
                     "GET / HTTP/1.1\r\nHost: a\r\nX: %0*d\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", more + 1, 0);
            hit = ask_in_need(&c, request, n);
            if (!c.ended && client_answer(&c, &a)) {
                if (a.status < 500 && strcmp(a.body.data, "1.2.3.4") != 0)
                    FAIL("%d more, allocation %ld: %d %s", more, n, a.status, a.body.data);
                refused += a.status >= 500;
            }
            client_close(&c);
            tornado_httpserver_free(server);
        }
    }
    CHECK(refused > 0);
}

/* Whether a descriptor of this process is the other end of a client, and sends at once. */
static bool sends_at_once(int fd, const client *c)
{
    struct sockaddr_in mine, peer;
    socklen_t len = sizeof mine, peer_len = sizeof peer, size = sizeof(int);
    int on = 0;
    CHECK(getsockname(c->fd, (struct sockaddr *)&mine, &len) == 0);
    return getpeername(fd, (struct sockaddr *)&peer, &peer_len) == 0 && peer.sin_port == mine.sin_port &&
           peer.sin_family == AF_INET && getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &size) == 0 && on;
}

TEST(httpserver_answers_are_sent_at_once)
{
    site s = SITE(.no_keep_alive = false);
    client c = client_open(s.port);
    int found = 0;
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    for (int fd = 3; fd < 64; fd++)
        found += sends_at_once(fd, &c);
    CHECK_INT(found, 1);
    client_close(&c);
    site_free(&s);
}

TEST(httpserver_accepts_on_sockets_that_listen_already)
{
    for (int several = 0; several < 2; several++) {
        tornado_sockets sockets = {.count = 2};
        int ports[2];
        tornado_httpserver *server = address_server(NULL);
        for (int i = 0; i < 2; i++)
            sockets.fds[i] = listen_loopback(&ports[i]);
        if (several)
            CHECK(tornado_httpserver_add_sockets(server, &sockets));
        for (int i = 0; i < 2 && !several; i++)
            CHECK(tornado_httpserver_add_socket(server, sockets.fds[i]));
        CHECK_INT(tornado_httpserver_port(server), ports[0]);
        for (int i = 0; i < 2; i++)
            CHECK_INT(ask_once(ports[i], HELLO).status, 200);
        tornado_httpserver_free(server); /* which closes them */
        CHECK(fcntl(sockets.fds[0], F_GETFD) < 0 && fcntl(sockets.fds[1], F_GETFD) < 0);
    }
}

TEST(httpserver_bind_listens_and_start_serves)
{
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_ioloop_clear_current();
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}};
    tornado_httpserver *server = address_server(&options);
    CHECK(tornado_httpserver_bind(server, 0, NULL));
    int port = tornado_httpserver_port(server);
    CHECK(port > 0);
    client c = client_open(port); /* it waits to be accepted */
    CHECK(tornado_httpserver_start(server, 1));
    CHECK(!tornado_httpserver_start(server, 2)); /* it has a loop already */
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_INT(client_ask(&c, HELLO).status, 200);
    client_close(&c);
    tornado_httpserver_free(server);
}

TEST(httpserver_listen_logs_why_there_can_be_no_loop)
{
    struct rlimit before, none;
    log_keep();
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    tornado_httpserver *server = address_server(NULL);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    bool listens = tornado_httpserver_listen(server, 0, NULL);
    tornado_error error = *tornado_last_error();
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(!listens);
    CHECK_INT(error.code, TORNADO_ERR_SYSTEM);
    CHECK_INT(error.sys_errno, EMFILE);
    CHECK_INT(logged(strerror(EMFILE)), 1);
    tornado_httpserver_free(server);
}

/* In a process of its own: becomes two children that serve. */
static void start_two(int port_pipe)
{
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}};
    tornado_httpserver *server = address_server(&options);
    int port = tornado_httpserver_bind(server, 0, NULL) ? tornado_httpserver_port(server) : 0;
    if (write(port_pipe, &port, sizeof port) != (ssize_t)sizeof port || !tornado_httpserver_start(server, 2))
        _exit(1);
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 1);
    tornado_ioloop_start(loop);
    tornado_httpserver_free(server);
    _exit(0);
}

TEST(httpserver_start_serves_in_several_processes)
{
    int ends[2], port = 0, status = 0;
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_ioloop_clear_current();
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0)
        start_two(ends[1]);
    CHECK(read(ends[0], &port, sizeof port) == (ssize_t)sizeof port && port > 0);
    for (int i = 0; i < 5; i++)
        CHECK_INT(ask_once(port, HELLO).status, 200);
    kill(pid, SIGTERM);
    CHECK(waitpid(pid, &status, 0) == pid);
    close(ends[0]);
    close(ends[1]);
}

TEST(httpserver_connections_of_one_address_beyond_the_maximum_are_closed)
{
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}, .max_connections_per_ip = 2};
    tornado_httpserver *server = address_server(&options);
    CHECK(tornado_httpserver_listen(server, 0, NULL));
    int port = tornado_httpserver_port(server);
    for (int rounds = 0; rounds < 2; rounds++) { /* places become free again */
        client a = client_open(port), b = client_open(port);
        CHECK_INT(client_ask(&a, HELLO).status, 200);
        CHECK_INT(client_ask(&b, HELLO).status, 200);
        client third = client_open(port);
        CHECK(!client_more(&third));
        client_close(&third);
        client other = {.fd = socket(AF_INET, SOCK_STREAM, 0), .data = calloc(1, 1)};
        struct sockaddr_in from = loopback(0), to = loopback(port);
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1); /* 127.0.0.2 */
        CHECK(bind(other.fd, (struct sockaddr *)&from, sizeof from) == 0);
        CHECK(connect(other.fd, (struct sockaddr *)&to, sizeof to) == 0);
        set_nonblocking(other.fd);
        CHECK_STR(client_ask(&other, HELLO).body.data, "127.0.0.2 http");
        client_close(&other);
        client_close(&a);
        client_close(&b);
        UNTIL(tornado_httpserver_connections(server) == 0);
    }
    tornado_httpserver_free(server);
}

TEST(httpserver_drain_waits_for_answers_under_way)
{
    site s = SITE(.no_keep_alive = false);
    client idle = client_open(s.port), busy = client_open(s.port);
    CHECK_INT(client_ask(&idle, HELLO).status, 200);
    client_send(&busy, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    UNTIL(state.entered == 1);
    tornado_future *drained = tornado_httpserver_drain(s.server), *again = tornado_httpserver_drain(s.server);
    CHECK(!client_more(&idle));
    loop_turns(3);
    CHECK(!tornado_future_done(drained));
    CHECK_INT(tornado_httpserver_port(s.server), 0);
    open_gate();
    answer a;
    CHECK(client_answer(&busy, &a) && a.close);
    CHECK_INT(loop_code(drained), 0);
    CHECK_INT(loop_code(again), 0);
    CHECK_INT(loop_code(tornado_httpserver_drain(s.server)), 0);
    client_close(&idle);
    client_close(&busy);
    site_free(&s);
}

/* Answers with a head and three bytes, and goes on when the test wants to; or with much. */
static tornado_http_request *begun;

static void begin_answer(tornado_http_request *request, void *arg)
{
    tornado_http_start_line ok = {.code = 200};
    (void)arg;
    if (strcmp(request->path, "/big") == 0) {
        char *bytes = calloc(1, BIG);
        CHECK(sent(write_head(request->connection, 200, BIG, NULL)));
        CHECK(sent(tornado_http1_connection_write(request->connection, (tornado_bytes){bytes, BIG})));
        CHECK(sent(tornado_http1_connection_finish(request->connection)));
        free(bytes);
        return;
    }
    tornado_http_request_retain(request);
    begun = request;
    CHECK(sent(tornado_http1_connection_write_headers(request->connection, &ok, NULL, &(tornado_bytes){"abc", 3})));
}

TEST(httpserver_drain_closes_behind_answers_whose_head_was_sent_before)
{
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}};
    tornado_httpserver *server = tornado_httpserver_new_callback(begin_answer, NULL, &options);
    CHECK(server && tornado_httpserver_listen(server, 0, NULL));
    client c = client_open(tornado_httpserver_port(server));
    client_send(&c, HELLO);
    UNTIL(begun);
    while (c.len == 0)
        CHECK(client_more(&c));
    tornado_future *drained = tornado_httpserver_drain(server);
    loop_turns(3);
    CHECK(!tornado_future_done(drained));
    CHECK(sent(tornado_http1_connection_finish(begun->connection)));
    tornado_http_request_release(begun);
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "abc", 3);
    CHECK_INT(loop_code(drained), 0);
    CHECK(!client_more(&c));
    client_close(&c);
    tornado_httpserver_free(server);
}

TEST(httpserver_drain_waits_until_answers_are_read)
{
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}};
    tornado_httpserver *server = tornado_httpserver_new_callback(begin_answer, NULL, &options);
    CHECK(server && tornado_httpserver_listen(server, 0, NULL));
    client c = client_open(tornado_httpserver_port(server));
    take_little(&c);
    client_send(&c, BIG_);
    CHECK(client_more(&c));
    tornado_future *drained = tornado_httpserver_drain(server);
    loop_turns(5);
    CHECK(!tornado_future_done(drained));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.body.len, BIG);
    CHECK_INT(loop_code(drained), 0);
    CHECK(!client_more(&c));
    client_close(&c);
    tornado_httpserver_free(server);
}

/* Servers whose connections, when they close, take others with them. */
static struct {
    tornado_httpserver *servers[2];
    tornado_http1_server_connection *connections[2];
    int count, closed;
    bool free_all;
} group;

static void group_finish(void *self)
{
    CHECK(sent(write_head(self, 200, 0, NULL)));
    CHECK(sent(tornado_http1_connection_finish(self)));
}

static const tornado_http_message_delegate *group_start(void *self, tornado_http1_server_connection *server,
                                                        tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {.finish = group_finish};
    (void)self;
    group.connections[group.count++] = server;
    *message = connection;
    return &delegate;
}

/* Closes the other connection; or frees the other server, or, when there is none, its own. */
static void group_closed(void *self, tornado_http1_server_connection *server)
{
    group.closed++;
    for (int i = 0; i < 2; i++)
        if (group.connections[i] == server)
            group.connections[i] = NULL;
    for (int i = 0; i < 2; i++) {
        tornado_httpserver *freed = group.servers[i];
        if (group.connections[i] && !group.free_all)
            tornado_future_release(tornado_http1_server_connection_close(group.connections[i]));
        if (group.free_all && freed && (!group.servers[1] || self != &group.servers[i])) {
            group.servers[i] = NULL;
            tornado_httpserver_free(freed);
        }
    }
}

static const tornado_http_server_connection_delegate group_delegate = {.start_request = group_start,
                                                                       .on_close = group_closed};

static int group_listen(int i)
{
    group.servers[i] = tornado_httpserver_new(&group_delegate, &group.servers[i], NULL);
    CHECK(group.servers[i] != NULL);
    CHECK(tornado_httpserver_listen(group.servers[i], 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    return tornado_httpserver_port(group.servers[i]);
}

TEST(httpserver_drain_survives_what_on_close_does)
{
    for (int i = 0; i < 2; i++) {
        memset(&group, 0, sizeof group);
        group.free_all = i > 0;
        int port = group_listen(0);
        client a = client_open(port), b = client_open(port);
        CHECK_INT(client_ask(&a, HELLO).status, 200);
        CHECK_INT(client_ask(&b, HELLO).status, 200);
        tornado_future *drained = tornado_httpserver_drain(group.servers[0]);
        UNTIL(group.closed == 2);
        loop_until(drained);
        tornado_future_release(drained);
        CHECK(!client_more(&a) && !client_more(&b));
        client_close(&a);
        client_close(&b);
        tornado_httpserver_free(group.servers[0]);
    }
}

TEST(httpserver_shutdown_survives_an_on_close_that_frees_another_server)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    memset(&group, 0, sizeof group);
    group.free_all = true;
    client clients[2];
    for (int i = 0; i < 2; i++)
        clients[i] = client_open(group_listen(i));
    for (int i = 0; i < 2; i++)
        CHECK_INT(client_ask(&clients[i], HELLO).status, 200);
    tornado_ioloop_shutdown(loop, 5);
    CHECK(tornado_ioloop_start(loop));
    CHECK_INT(group.closed, 2);
    for (int i = 0; i < 2; i++) {
        CHECK(!client_more(&clients[i]));
        client_close(&clients[i]);
        tornado_httpserver_free(group.servers[i]);
    }
}

/* A server whose delegate ends it, or its connections, when it hears of a client that is gone. */
static struct {
    tornado_httpserver *server;
    tornado_http1_connection *connection;
    int told, closed;
    bool frees;
} ending;

static void end_server(void)
{
    ending.told++;
    if (ending.frees)
        tornado_httpserver_free(ending.server);
    else
        tornado_future_release(tornado_httpserver_close_all_connections(ending.server));
}

static void ending_lost(void *self, const tornado_error *error)
{
    (void)self;
    CHECK_INT(error->code, TORNADO_ERR_CLOSED);
    if (!ending.told)
        end_server();
}

static void ending_released(void *self)
{
    (void)self;
    if (ending.connection)
        end_server();
}

static const tornado_http_message_delegate *ending_start(void *self, tornado_http1_server_connection *server,
                                                         tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate lost = {.on_connection_close = ending_lost},
                                               released = {.release = ending_released};
    (void)server;
    (void)message;
    if (self)
        ending.connection = connection;
    return self ? &released : &lost;
}

static void ending_closed(void *self, tornado_http1_server_connection *server)
{
    (void)self;
    (void)server;
    ending.closed++;
}

static const tornado_http_server_connection_delegate ending_delegate = {.start_request = ending_start,
                                                                        .on_close = ending_closed};

TEST(httpserver_delegate_may_close_all_connections_or_free_it_when_one_is_lost)
{
    for (int frees = 0; frees < 2; frees++) {
        memset(&ending, 0, sizeof ending);
        ending.frees = frees;
        ending.server = tornado_httpserver_new(&ending_delegate, NULL, NULL);
        CHECK(ending.server &&
              tornado_httpserver_listen(ending.server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
        int port = tornado_httpserver_port(ending.server);
        client busy = client_open(port), other = client_open(port), idle = client_open(port);
        client_send(&busy, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na");
        client_send(&other, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na");
        UNTIL(tornado_httpserver_connections(ending.server) == 3);
        loop_turns(5);
        client_close(&busy);
        UNTIL(ending.closed == 3);
        CHECK_INT(ending.told, 1);
        CHECK(!client_more(&other) && !client_more(&idle));
        client_close(&other);
        client_close(&idle);
        if (!frees)
            tornado_httpserver_free(ending.server);
    }
}

TEST(httpserver_delegate_may_free_it_when_a_request_that_is_detached_from_is_released)
{
    memset(&ending, 0, sizeof ending);
    ending.frees = true;
    ending.server = tornado_httpserver_new(&ending_delegate, &ending, NULL);
    CHECK(ending.server &&
          tornado_httpserver_listen(ending.server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    client c = client_open(tornado_httpserver_port(ending.server));
    client_send(&c, HELLO);
    UNTIL(ending.connection != NULL);
    loop_turns(3);
    tornado_iostream *stream = tornado_http1_connection_detach(ending.connection);
    CHECK(stream != NULL);
    CHECK_INT(ending.told, 1);
    CHECK_INT(ending.closed, 1);
    CHECK_INT(loop_code(tornado_iostream_write(stream, tornado_bytes_of("raw"))), 0);
    CHECK(client_need(&c, 3));
    CHECK_STR(c.data, "raw");
    tornado_iostream_release(stream);
    client_close(&c);
}

TEST(httpserver_close_all_connections_can_be_waited_for)
{
    site s = SITE(.no_keep_alive = false);
    client idle = client_open(s.port);
    CHECK_INT(client_ask(&idle, HELLO).status, 200);
    CHECK_INT(loop_code(tornado_httpserver_close_all_connections(s.server)), 0);
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    CHECK(!client_more(&idle));
    client_close(&idle);
    site_free(&s);
}

/* A delegate for some requests; the others are the application's. */
static void *the_application;

static const tornado_http_message_delegate *share_start(void *self, tornado_http1_server_connection *server,
                                                        tornado_http1_connection *connection, void **message)
{
    const tornado_http_server_connection_delegate *application = tornado_application_delegate();
    (void)server;
    static char own[4096];
    CHECK(self == NULL);
    tornado_http1_connection_request(connection)->context = own; /* which means nothing to the application */
    if (strncmp(tornado_http1_connection_request(connection)->path, "/hand", 5) != 0) {
        *message = the_application;
        return application->messages;
    }
    static const tornado_http_message_delegate delegate = {.finish = outliving_finish};
    static tornado_http1_connection *of_hand;
    of_hand = connection;
    *message = &of_hand;
    CHECK(sent(write_head(connection, 200, 0, NULL)));
    CHECK(sent(tornado_http1_connection_finish(connection)));
    return &delegate;
}

TEST(httpserver_delegates_may_leave_requests_to_an_application)
{
    static const tornado_http_server_connection_delegate delegate = {.start_request = share_start};
    static const int teapot = 418;
    tornado_rule rules[] = {{.path = "/tea", .handler = &tornado_error_handler, .data = (void *)(uintptr_t)&teapot}, {0}};
    tornado_application *application = the_application = tornado_application_new(rules, NULL);
    tornado_httpserver *server = tornado_httpserver_new(&delegate, NULL, NULL);
    CHECK(application && server && tornado_httpserver_listen(server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    int port = tornado_httpserver_port(server);
    client c = client_open(port);
    CHECK_INT(client_ask(&c, "GET /tea HTTP/1.1\r\nHost: a\r\n\r\n").status, 418);
    CHECK_INT(client_ask(&c, "GET /hand HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    CHECK_INT(client_ask(&c, "POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").status, 404);
    client_send(&c, "POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx");
    loop_turns(3);
    client_close(&c); /* before the application has all of it */
    while (tornado_httpserver_connections(server) > 0)
        loop_turns(1);
    tornado_httpserver_free(server);
    tornado_application_free(application);
}
