/* HTTP/1.x as it is on the wire: what is answered, what is refused, and what becomes of the connection. */
#include "delegate.h"
#include "http_client.h"

/* A server whose answer tells what it understood of the request. */
typedef struct service {
    tornado_httpserver *server;
    int port;
    int finished, closed, released;
    tornado_http_request *waiting[32]; /* for "/wait": answered by hand */
    int waiting_count;
} service;

static service *the_service;

static void describe(tornado_http_request *request, tornado_buffer *out)
{
    tornado_buffer_printf(out, "%s %s host=%s", request->method, request->uri, request->host);
    if (*request->query)
        tornado_buffer_printf(out, " path=%s query=%s", request->path, request->query);
    if (request->body.len) {
        tornado_buffer_puts(out, " body=");
        tornado_buffer_append(out, request->body.data, request->body.len);
    }
    for (size_t i = 0; i < request->trailers.count; i++)
        tornado_buffer_printf(out, " trailer=%s:%s", request->trailers.items[i].name, request->trailers.items[i].value);
    tornado_buffer_puts(out, "\n");
}

static bool answer_with(tornado_http_request *request, int status, tornado_bytes body)
{
    tornado_http1_connection *c = request->connection;
    return sent(write_head(c, status, (int64_t)body.len, NULL)) && sent(tornado_http1_connection_write(c, body)) &&
           sent(tornado_http1_connection_finish(c));
}

/* In pieces of an unknown number. */
static bool answer_in_pieces(tornado_http_request *request, tornado_bytes body)
{
    tornado_http1_connection *c = request->connection;
    if (!sent(write_head(c, 200, TORNADO_NONE, NULL)))
        return false;
    for (size_t i = 0; i < body.len; i++)
        if (!sent(tornado_http1_connection_write(c, (tornado_bytes){body.data + i, 1})))
            return false;
    return sent(tornado_http1_connection_finish(c));
}

static void service_finish(void *self)
{
    tornado_http_request *request = self;
    service *s = request->context;
    tornado_buffer body = {0};
    s->finished++;
    CHECK(request->body.data != NULL && request->body.data[request->body.len] == '\0');
    describe(request, &body);
    if (strcmp(request->path, "/wait") == 0) {
        tornado_http_request_retain(request);
        s->waiting[s->waiting_count++] = request;
    } else if (strcmp(request->path, "/pieces") == 0) {
        answer_in_pieces(request, (tornado_bytes){body.data, body.len});
    } else if (strcmp(request->path, "/204") == 0 || strcmp(request->path, "/304") == 0) {
        answer_with(request, atoi(request->path + 1), (tornado_bytes){NULL, 0});
    } else if (strcmp(request->path, "/none") == 0) {
        /* nobody answers, and nobody holds it */
    } else {
        answer_with(request, 200, (tornado_bytes){body.data, body.len});
    }
    tornado_buffer_free(&body);
}

static void service_closed(void *request)
{
    ((service *)((tornado_http_request *)request)->context)->closed++;
}

static void service_release(void *request)
{
    ((service *)((tornado_http_request *)request)->context)->released++;
}

/* The delegate's functions get the request. */
static const tornado_http_message_delegate *service_start_request(void *self, tornado_http1_server_connection *server,
                                                                  tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {.finish = service_finish, .release = service_release};
    tornado_http_request *request = tornado_http1_connection_request(connection);
    (void)server;
    request->context = self;
    *message = request;
    tornado_http1_connection_set_close_callback(connection, service_closed, request);
    return &delegate;
}

static const tornado_http_server_connection_delegate service_delegate = {.start_request = service_start_request};

static void service_start_with(service *s, const tornado_httpserver_options *given)
{
    tornado_httpserver_options options = given ? *given : (tornado_httpserver_options){0};
    options.bind.address = "127.0.0.1";
    memset(s, 0, sizeof *s);
    the_service = s;
    s->server = tornado_httpserver_new(&service_delegate, s, &options);
    CHECK(s->server && tornado_httpserver_listen(s->server, 0, NULL));
    s->port = tornado_httpserver_port(s->server);
}

static void service_start(service *s)
{
    service_start_with(s, NULL);
}

static void service_end(service *s)
{
    tornado_httpserver_free(s->server);
    for (int i = 0; i < s->waiting_count; i++)
        tornado_http_request_release(s->waiting[i]);
    s->waiting_count = 0;
}

#define H "Host: a\r\n"
#define CHUNKED "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/*----------------------------------------------------------------------------
 * Limits. What is accepted and refused besides: tests/http/.
 *----------------------------------------------------------------------------*/

static char *repeated(const char *before, const char *part, size_t times, const char *behind)
{
    tornado_buffer text = {0};
    tornado_buffer_puts(&text, before);
    for (size_t i = 0; i < times; i++)
        tornado_buffer_puts(&text, part);
    tornado_buffer_puts(&text, behind);
    char *copy = malloc(text.len + 1);
    CHECK(copy && !text.failed);
    memcpy(copy, text.data, text.len + 1);
    tornado_buffer_free(&text);
    return copy;
}

TEST(http1_limits_have_their_answers)
{
    static const struct {
        const char *why, *before, *part;
        size_t times;
        const char *behind;
        int status;
    } cases[] = {
        {"a long target is fine", "GET /", "x", 60000, " HTTP/1.1\r\n" H "\r\n", 200},
        {"too long a target", "GET /", "x", 70000, " HTTP/1.1\r\n" H "\r\n", 414},
        {"a target without end", "GET /", "x", 300000, "", 414},
        {"a long header is fine", "GET / HTTP/1.1\r\n" H "X: ", "x", 60000, "\r\n\r\n", 200},
        {"too long a header", "GET / HTTP/1.1\r\n" H "X: ", "x", 70000, "\r\n\r\n", 431},
        {"a header without end", "GET / HTTP/1.1\r\n" H "X: ", "x", 300000, "", 431},
        {"255 more headers are fine", "GET / HTTP/1.1\r\n" H, "X: y\r\n", 255, "\r\n", 200},
        {"too many headers", "GET / HTTP/1.1\r\n" H, "X: y\r\n", 256, "\r\n", 431},
        {"headers without end", "GET / HTTP/1.1\r\n" H, "X: y\r\n", 100000, "", 431},
        {"trailers are fine", CHUNKED "0\r\n", "X: y\r\n", 200, "\r\n", 200},
        {"too many trailers", CHUNKED "0\r\n", "X: y\r\n", 300, "\r\n", 431},
        {"trailers without end", CHUNKED "0\r\n", "X: y\r\n", 100000, "", 431},
        {"a trailer without end", CHUNKED "0\r\nX: ", "y", 100000, "", 431},
        {"a chunk extension is fine", CHUNKED "0;", "y", 4000, "\r\n\r\n", 200},
        {"too long a chunk extension", CHUNKED "0;", "y", 5000, "\r\n\r\n", 400},
        {"a chunk extension without end", CHUNKED "0;", "y", 100000, "", 400},
        {"many tiny chunks are fine", CHUNKED, "1\r\nx\r\n", 20000, "0\r\n\r\n", 200},
    };
    service s;
    service_start(&s);
    for (size_t i = 0; i < COUNT(cases); i++) {
        answer a;
        client c = client_open(s.port);
        char *request = repeated(cases[i].before, cases[i].part, cases[i].times, cases[i].behind);
        client_send(&c, request);
        if (!client_answer(&c, &a))
            FAIL("%s: no answer", cases[i].why);
        if (a.status != cases[i].status)
            FAIL("%s: the status is %d, not %d", cases[i].why, a.status, cases[i].status);
        CHECK(a.close == (a.status != 200));
        free(request);
        client_close(&c);
        loop_turns(2);
    }
    service_end(&s);
}

TEST(http1_small_limits_are_kept_to_the_byte)
{
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    for (int over = 0; over < 2; over++) {
        service s;
        service_start_with(&s, &(tornado_httpserver_options){.max_header_size = sizeof head - 1 - (size_t)over});
        client c = client_open(s.port);
        client_send(&c, head);
        client_send(&c, "0123456789");
        answer a;
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, over ? 431 : 200);
        client_close(&c);
        service_end(&s);
        service_start_with(&s, &(tornado_httpserver_options){.max_body_size = 10 - over});
        c = client_open(s.port);
        client_send(&c, head);
        client_send(&c, "0123456789");
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, over ? 413 : 200);
        client_close(&c);
        c = client_open(s.port);
        client_send(&c, CHUNKED "5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, over ? 413 : 200);
        client_close(&c);
        service_end(&s);
    }
}

TEST(http1_client_still_sending_a_refused_body_reads_the_answer)
{
    service s;
    service_start_with(&s, &(tornado_httpserver_options){.max_body_size = 1000});
    client c = client_open(s.port);
    static char body[500000];
    answer a;
    client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n");
    loop_turns(3); /* it is refused by now */
    client_send_bytes(&c, body, sizeof body);
    loop_turns(10);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 413);
    CHECK(a.close);
    CHECK(!client_more(&c));
    CHECK(!c.reset);
    client_close(&c);
    loop_turns(3);
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    service_end(&s);
}

TEST(http1_client_that_never_stops_sending_a_refused_body_is_cut_off)
{
    service s;
    service_start_with(&s, &(tornado_httpserver_options){.max_body_size = 1000});
    client c = client_open(s.port);
    static char body[65536];
    client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000000\r\n\r\n");
    size_t sent = 0;
    for (int i = 0; i < 2000 && tornado_httpserver_connections(s.server) + (i < 5); i++) {
        ssize_t part = send(c.fd, body, sizeof body, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
    }
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    CHECK(sent < 20u << 20);
    client_close(&c);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Expectations.
 *----------------------------------------------------------------------------*/

TEST(http1_expect_100_continue_is_answered_before_the_body)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 100);
    CHECK(!head_value(a.head, "Content-Length"));
    client_send(&c, "abc");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK_MEM(a.body.data, a.body.len, "POST / host=a body=abc\n", 23);
    /* no body to come, no interim answer */
    a = client_ask(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n");
    CHECK_INT(a.status, 200);
    /* the body is there already */
    a = client_ask(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    CHECK_INT(a.status, 200);
    client_close(&c);
    service_end(&s);
}

TEST(http1_expect_100_continue_of_too_large_a_body_is_refused_at_once)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 413);
    client_close(&c);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Pipelines.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(http1_pipelined_requests_are_answered_in_order_by_one_send)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    tornado_buffer all = {0};
    answer a;
    for (int i = 0; i < 16; i++)
        tornado_buffer_printf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i);
    client_send_bytes(&c, all.data, all.len);
    tornado_buffer_free(&all);
    for (int i = 0; i < 16; i++) {
        char want[64];
        CHECK(client_answer(&c, &a));
        int len = snprintf(want, sizeof want, "GET /%d host=a\n", i);
        CHECK_MEM(a.body.data, a.body.len, want, (size_t)len);
        CHECK_INT(c.reads, 1);
    }
    CHECK_INT(c.len, c.taken);
    client_close(&c);
    service_end(&s);
}

TEST(http1_pipelined_requests_wait_for_the_one_under_way)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /wait HTTP/1.1\r\n" H "\r\nPOST /second HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc"
                    "GET /wait HTTP/1.1\r\n" H "\r\nGET /fourth HTTP/1.1\r\n" H "\r\n");
    loop_turns(5);
    CHECK_INT(s.finished, 1);
    CHECK(!client_read(&c));
    CHECK(answer_with(s.waiting[0], 200, tornado_bytes_of("first")));
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "first", 5);
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "POST /second host=a body=abc\n", 29);
    CHECK_INT(s.finished, 3);
    CHECK(answer_in_pieces(s.waiting[1], tornado_bytes_of("third")));
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "third", 5);
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "GET /fourth host=a\n", 19);
    client_close(&c);
    service_end(&s);
}

TEST(http1_what_a_request_holds_does_not_change_while_more_comes_in)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "POST /wait?q HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 4\r\n\r\nbody");
    loop_turns(4);
    CHECK_INT(s.waiting_count, 1);
    for (int i = 0; i < 50; i++) {
        client_send(&c, "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: b\r\n\r\n");
        loop_turns(1);
    }
    tornado_http_request *request = s.waiting[0];
    CHECK_STR(request->uri, "/wait?q");
    CHECK_STR(request->path, "/wait");
    CHECK_STR(request->query, "q");
    CHECK_STR(request->body.data, "body");
    CHECK_STR(tornado_http_request_header(request, "x"), "y");
    CHECK_STR(request->remote_ip, "127.0.0.1");
    client_close(&c);
    loop_turns(3);
    CHECK_STR(request->uri, "/wait?q");
    service_end(&s);
}

TEST(http1_requests_behind_one_that_closes_are_not_served)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /1 HTTP/1.1\r\n" H "Connection: close\r\n\r\nGET /2 HTTP/1.1\r\n" H "\r\n");
    CHECK(client_answer(&c, &a));
    CHECK(a.close);
    CHECK(!client_more(&c));
    CHECK_INT(s.finished, 1);
    client_close(&c);
    service_end(&s);
}

TEST(http1_a_bad_request_behind_a_good_one_lets_the_good_one_be_answered)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /1 HTTP/1.1\r\n" H "\r\nrubbish\r\n\r\n");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 400);
    CHECK(!client_more(&c));
    client_close(&c);
    service_end(&s);
}

TEST_LIMIT(http1_client_that_pipelines_thousands_and_never_reads_is_not_buffered, 30)
{
    service s;
    char *block = repeated("", "GET /a-path HTTP/1.1\r\nHost: a\r\n\r\n", 1000, "");
    service_start(&s);
    client c = client_open(s.port);
    size_t len = strlen(block), sent = 0, turns = 0;
    long live = test_live();
    while (turns < 3000) {
        ssize_t part = send(c.fd, block + sent % len, len - sent % len, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
        turns++;
    }
    CHECK(test_live() < live + 200);
    int served = s.finished;
    loop_turns(100);
    CHECK_INT(s.finished, served); /* it has stopped */
    int wanted = (int)(sent / (len / 1000)), got = 0;
    answer a;
    for (; got < wanted && client_answer(&c, &a); got++)
        CHECK_INT(a.status, 200);
    CHECK_INT(got, wanted); /* and goes on when the client reads */
    client_close(&c);
    free(block);
    service_end(&s);
}

TEST(http1_client_that_pipelines_behind_a_waiting_request_is_not_buffered)
{
    service s;
    char *block = repeated("", "GET /a-path HTTP/1.1\r\nHost: a\r\n\r\n", 1000, "");
    service_start(&s);
    client c = client_open(s.port);
    size_t len = strlen(block), sent = 0;
    client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    loop_turns(4);
    for (int turns = 0; turns < 3000; turns++) {
        ssize_t part = send(c.fd, block + sent % len, len - sent % len, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
    }
    CHECK(sent < 60u << 20);
    CHECK_INT(s.finished, 1);
    CHECK(answer_with(s.waiting[0], 200, tornado_bytes_of("done")));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "done", 4);
    int wanted = (int)(sent / (len / 1000)), got = 0;
    for (; got < wanted && client_answer(&c, &a); got++)
        CHECK_INT(a.status, 200);
    CHECK_INT(got, wanted);
    client_close(&c);
    free(block);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Answers.
 *----------------------------------------------------------------------------*/

TEST(http1_head_answers_have_the_length_and_no_body)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    answer a = client_ask(&c, "HEAD /x HTTP/1.1\r\n" H "\r\n");
    CHECK_STR(head_value(a.head, "Content-Length"), "15");
    CHECK_INT(a.body.len, 0);
    a = client_ask(&c, "HEAD /pieces HTTP/1.1\r\n" H "\r\n");
    CHECK_STR(head_value(a.head, "Transfer-Encoding"), "chunked");
    a = client_ask(&c, "HEAD /204 HTTP/1.1\r\n" H "\r\n");
    CHECK_INT(a.status, 204);
    a = client_ask(&c, "GET /x HTTP/1.1\r\n" H "\r\n");
    CHECK_MEM(a.body.data, a.body.len, "GET /x host=a\n", 14);
    client_close(&c);
    service_end(&s);
}

TEST(http1_bodiless_answers_have_no_length_and_no_coding)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    for (int status = 204; status <= 304; status += 100) {
        char request[64];
        snprintf(request, sizeof request, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", status);
        answer a = client_ask(&c, request);
        CHECK_INT(a.status, status);
        CHECK(!head_value(a.head, "Content-Length"));
        CHECK(!head_value(a.head, "Transfer-Encoding"));
        CHECK(!a.close);
    }
    client_close(&c);
    service_end(&s);
}

TEST(http1_answers_have_date_and_server)
{
    service s;
    int64_t when;
    service_start(&s);
    answer a = ask_once(s.port, "GET / HTTP/1.1\r\n" H "\r\n");
    CHECK(tornado_parse_timestamp(head_value(a.head, "Date"), &when));
    CHECK(when >= (int64_t)tornado_time() - 2 && when <= (int64_t)tornado_time() + 1);
    CHECK(strstr(head_value(a.head, "Server"), "tornado.h/") != NULL);
    service_end(&s);
}

/* A request that waits, for a test to answer it by hand. */
static tornado_http_request *waiting_request(service *s, client *c)
{
    int before = s->waiting_count;
    client_send(c, "GET /wait HTTP/1.1\r\n" H "\r\n");
    while (s->waiting_count == before)
        loop_turns(1);
    return s->waiting[before];
}

TEST(http1_headers_with_control_characters_are_not_sent)
{
    static const struct {
        const char *name, *value;
    } bad[] = {
        {"X", "a\r\nSet-Cookie: b"}, {"X", "a\nb"}, {"X", "a\rb"}, {"X", "\x01"}, {"X", "a\x7f"}, {"X\r\nY", "a"},
        {"X Y", "a"}, {"", "a"}, {"X:", "a"}, {"X\n", "a"}, {"\xc3\xa4", "a"},
        {"Content-Length", "x"}, {"Content-Length", "-1"}, {"Content-Length", ""}, {"Content-Length", "1 "},
        {"Transfer-Encoding", "chunked"},
    };
    service s;
    service_start(&s);
    client c = client_open(s.port);
    tornado_http_request *request = waiting_request(&s, &c);
    for (size_t i = 0; i < COUNT(bad); i++) {
        tornado_http_header header = header_of(bad[i].name, bad[i].value);
        CHECK_INT(failure(write_head(request->connection, 200, TORNADO_NONE, &header)), TORNADO_ERR_INVALID);
    }
    tornado_http_header nul = {"X", "a\0b", 1, 3};
    CHECK_INT(failure(write_head(request->connection, 200, 0, &nul)), TORNADO_ERR_INVALID);
    CHECK_INT(failure(write_head(request->connection, 99, 0, NULL)), TORNADO_ERR_INVALID);
    CHECK_INT(failure(write_head(request->connection, 1000, 0, NULL)), TORNADO_ERR_INVALID);
    tornado_http_header good[] = {header_of("X-Tab", "a\tb \xff"), header_of("Content-Length", "0")};
    tornado_http_headers headers = {.items = good, .count = 2};
    tornado_http_start_line start = {.code = 299, .reason = "Fine\r\nX: y"};
    CHECK(sent(tornado_http1_connection_write_headers(request->connection, &start, &headers, NULL)));
    CHECK(sent(tornado_http1_connection_finish(request->connection)));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK(strncmp(a.head, "HTTP/1.1 299 Unknown\r\n", 22) == 0);
    CHECK_STR(head_value(a.head, "X-Tab"), "a\tb \xff");
    client_close(&c);
    service_end(&s);
}

TEST(http1_answers_out_of_order_are_errors)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    tornado_http_request *request = waiting_request(&s, &c);
    tornado_http1_connection *x = request->connection;
    CHECK_INT(failure(tornado_http1_connection_write(x, tornado_bytes_of("x"))), TORNADO_ERR_STATE);
    CHECK_INT(failure(tornado_http1_connection_finish(x)), TORNADO_ERR_STATE);
    CHECK(sent(write_head(x, 200, 3, NULL)));
    CHECK_INT(failure(write_head(x, 200, 3, NULL)), TORNADO_ERR_STATE);
    CHECK(sent(tornado_http1_connection_write(x, tornado_bytes_of("abc"))));
    CHECK(sent(tornado_http1_connection_finish(x)));
    CHECK_INT(failure(tornado_http1_connection_finish(x)), TORNADO_ERR_STATE);
    CHECK_INT(failure(tornado_http1_connection_write(x, tornado_bytes_of("abc"))), TORNADO_ERR_STATE);
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "abc", 3);
    client_close(&c);
    service_end(&s);
}

TEST(http1_a_body_of_another_length_than_was_said_closes)
{
    for (int over = 0; over < 2; over++) {
        service s;
        service_start(&s);
        client c = client_open(s.port);
        tornado_http_request *request = waiting_request(&s, &c);
        CHECK(sent(write_head(request->connection, 200, 3, NULL)));
        if (over) {
            CHECK_INT(failure(tornado_http1_connection_write(request->connection, tornado_bytes_of("abcd"))),
                      TORNADO_ERR_INVALID);
        } else {
            CHECK(sent(tornado_http1_connection_write(request->connection, tornado_bytes_of("ab"))));
            CHECK_INT(failure(tornado_http1_connection_finish(request->connection)), TORNADO_ERR_INVALID);
        }
        answer a;
        CHECK(!client_answer(&c, &a));
        CHECK(c.ended);
        client_close(&c);
        service_end(&s);
    }
}

TEST(http1_answering_a_client_that_is_gone_fails)
{
    service s;
    service_start(&s);
    for (int started = 0; started < 2; started++) {
        client c = client_open(s.port);
        tornado_http_request *request = waiting_request(&s, &c);
        if (started)
            CHECK(sent(write_head(request->connection, 200, 3, NULL)));
        client_close(&c);
        while (s.closed == started)
            loop_turns(1);
        CHECK_INT(failure(started ? tornado_http1_connection_write(request->connection, tornado_bytes_of("abc"))
                                  : write_head(request->connection, 200, 3, NULL)),
                  TORNADO_ERR_CLOSED);
    }
    service_end(&s);
    CHECK_INT(s.released, 2);
}

TEST(http1_several_headers_of_one_name_are_joined)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /wait HTTP/1.1\r\n" H "Via: a\r\nX: 1\r\nvia: b\r\nVIA:\r\nVia: d\r\n\r\n");
    while (!s.waiting_count)
        loop_turns(1);
    tornado_http_request *request = s.waiting[0];
    CHECK_STR(tornado_http_request_header(request, "Via"), "a,b,,d");
    CHECK_STR(tornado_http_request_header(request, "x"), "1");
    CHECK_STR(tornado_http_request_header(request, "y"), NULL);
    int count = 0;
    for (const tornado_http_header *h = NULL; (h = tornado_http_headers_find(&request->headers, "VIA", h)) != NULL;)
        count++;
    CHECK_INT(count, 4);
    CHECK_INT(request->headers.count, 6);
    CHECK_STR(request->version, "HTTP/1.1");
    CHECK_STR(request->protocol, "http");
    CHECK(tornado_http_request_time(request) >= 0);
    client_close(&c);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Memory that runs out, at every allocation of two requests.
 *----------------------------------------------------------------------------*/

/* Sends a request as another process would, in two parts; what came back until the server closed, of at most `room`. */
static void outside_request(int port, char *got, size_t room)
{
    static const char request[] = "POST /pieces HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\nContent-Length: 5\r\n\r\nhello";
    size_t len = 0;
    int fd = connect_loopback(port);
    ssize_t part = send(fd, request, 30, MSG_NOSIGNAL);
    usleep(500); /* so that it arrives in two parts, most of the time */
    part = send(fd, request + 30, sizeof request - 31, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    while (len < room - 1 && (part = recv(fd, got + len, room - 1 - len, 0)) > 0)
        len += (size_t)part;
    got[len] = '\0';
    close(fd);
}

/* A request, whatever comes back; then, when told to go on, another one that must be answered well. */
static void outside_client(int port, int told)
{
    char got[4096], go;
    outside_request(port, got, sizeof got);
    if (*got && strncmp(got, "HTTP/1.1 ", 9) != 0)
        _exit(1);
    if (write(told, "1", 1) != 1 || read(told, &go, 1) != 1)
        _exit(2);
    outside_request(port, got, sizeof got);
    if (strncmp(got, "HTTP/1.1 200", 12) != 0 || !strstr(got, "\r\n0\r\n\r\n"))
        _exit(3);
    if (write(told, "2", 1) != 1)
        _exit(4);
    _exit(0);
}

TEST_LIMIT(http1_every_failing_allocation_leaves_a_server_that_serves, 60)
{
    service s;
    tornado_ioloop *loop = tornado_ioloop_current();
    service_start(&s);
    ask_once(s.port, "GET / HTTP/1.1\r\n" H "\r\n");
    for (long n = 0; n < 40; n++) {
        int told[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, told) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            close(told[0]);
            outside_client(s.port, told[1]);
        }
        close(told[1]);
        CHECK(tornado_ioloop_add_handler(loop, told[0], loop_fd_ready, loop, TORNADO_IOLOOP_READ));
        for (char step = '1'; step <= '2'; step++) {
            char verdict = '?';
            test_fail_alloc(step == '1' ? n : 0);
            CHECK(tornado_ioloop_start(loop));
            test_fail_alloc(0);
            if (recv(told[0], &verdict, 1, 0) != 1 || verdict != step || (step == '1' && send(told[0], &verdict, 1, MSG_NOSIGNAL) != 1))
                FAIL("when allocation %ld fails: request %c is not answered well", n, step);
        }
        CHECK(tornado_ioloop_remove_handler(loop, told[0]));
        close(told[0]);
        loop_turns(3);
        CHECK_INT(tornado_httpserver_connections(s.server), 0);
    }
    service_end(&s);
}
