/* Handlers that take the body as it comes: stream_request_body. */
#include "http_client.h"
#include "runtime.h"

typedef struct upload {
    tornado_handler base;
    size_t received;
} upload;

/* What handlers did, and what they wait for. */
static struct {
    tornado_future *prepare_gate, *data_gate;
    int prepared, pieces, finished, closed, unwound;
    int64_t limit;
    bool fail_prepare, fail_data, finish_in_data;
    const char *piece;
    char text[256];
} state;

static void note_unwound(void *arg)
{
    (void)arg;
    state.unwound++;
}

static void wait_at(tornado_future **gate)
{
    tornado_future *at = *gate;
    *gate = NULL;
    if (at)
        tornado_await(tornado_future_retain(at));
}

static void upload_prepare(tornado_handler *self)
{
    state.prepared++;
    tornado_defer(note_unwound, NULL); /* at the end of the request, not of prepare */
    CHECK(self->request->body.len == 0 && tornado_get_header(self, "Host") != NULL);
    wait_at(&state.prepare_gate);
    if (state.limit)
        tornado_http1_connection_set_max_body_size(self->request->connection, state.limit);
    if (state.fail_prepare)
        tornado_raise_http_error(403, "no");
}

static void upload_data(tornado_handler *self, tornado_bytes chunk)
{
    upload *u = (upload *)(void *)self;
    CHECK(chunk.len > 0 && state.unwound == 0);
    state.pieces++;
    state.piece = chunk.data;
    u->received += chunk.len;
    wait_at(&state.data_gate);
    size_t len = strlen(state.text);
    snprintf(state.text + len, sizeof state.text - len, "%.*s", (int)chunk.len, chunk.data);
    if (state.fail_data)
        tornado_raise(TORNADO_ERR_STATE, "no room");
    if (state.finish_in_data) {
        tornado_set_status(self, 413);
        tornado_finish(self);
    }
}

static void upload_post(tornado_handler *self)
{
    CHECK(self->request->body.len == 0 && !tornado_get_argument(self, "a", NULL));
    tornado_writef(self, "%zu", ((upload *)(void *)self)->received);
}

static void upload_finished(tornado_handler *self)
{
    (void)self;
    state.finished++;
}

static void upload_closed(tornado_handler *self)
{
    (void)self;
    state.closed++;
}

static const tornado_handler_class upload_class = {
    .instance_size = sizeof(upload), .stream_request_body = true, .prepare = upload_prepare,
    .data_received = upload_data, .post = upload_post, .get = upload_post, .on_finish = upload_finished,
    .on_connection_close = upload_closed};
static const tornado_handler_class derived_class = {.parent = &upload_class};

/* Waits, answers early, and waits again before it looks at what it was given. */
static void late_data(tornado_handler *self, tornado_bytes chunk)
{
    state.pieces++;
    wait_at(&state.prepare_gate);
    tornado_set_status(self, 413);
    tornado_finish(self);
    state.finished++;
    wait_at(&state.data_gate);
    snprintf(state.text, sizeof state.text, "%.*s", (int)chunk.len, chunk.data);
    state.unwound++;
}

static const tornado_handler_class late_class = {.stream_request_body = true, .data_received = late_data};

/* Answers from elsewhere, while the handler waits for more of the body. */
static void expire(void *self)
{
    tornado_send_error(self, 408);
}

static void expiring_prepare(tornado_handler *self)
{
    tornado_defer(note_unwound, NULL);
    if (self->request->query[0])
        tornado_asynchronous(self);
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), expire, self));
}

static const tornado_handler_class expiring_class = {.stream_request_body = true, .prepare = expiring_prepare};

static void plain_post(tornado_handler *self)
{
    tornado_writef(self, "%s %zu", tornado_get_argument(self, "a", "-"), self->request->body.len);
}

static const tornado_handler_class plain_class = {.post = plain_post};

static void typed_prepare(tornado_handler *self)
{
    CHECK_STR(tornado_get_argument(self, "a", "-"), "query");
    CHECK(!tornado_get_body_argument(self, "a", NULL) && !tornado_get_file(self, "a"));
    CHECK_INT(tornado_body_arguments(self)->count + tornado_files(self)->count, 0);
}

static const tornado_handler_class typed_class = {
    .stream_request_body = true, .prepare = typed_prepare, .post = plain_post};

typedef struct site {
    tornado_application *application;
    client c;
} site;

static site site_open(void)
{
    tornado_rule rules[] = {{.path = "/", .handler = &upload_class}, {.path = "/derived", .handler = &derived_class},
                            {.path = "/plain", .handler = &plain_class}, {.path = "/late", .handler = &late_class},
                            {.path = "/expiring", .handler = &expiring_class}, {.path = "/typed", .handler = &typed_class},
                            {0}};
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}, .max_body_size = 1000, .chunk_size = 100};
    site s = {.application = tornado_application_new(rules, NULL)};
    memset(&state, 0, sizeof state);
    tornado_httpserver *server = s.application ? tornado_application_listen(s.application, 0, &options) : NULL;
    CHECK(server != NULL);
    s.c = client_open(tornado_httpserver_port(server));
    return s;
}

static void site_close(site *s)
{
    client_close(&s->c);
    loop_turns(3);
    tornado_application_free(s->application);
}

#define UNTIL(condition)                                                                                           \
    while (!(condition))                                                                                           \
    loop_turns(1)
#define HEAD_OF(path, more) "POST " path " HTTP/1.1\r\nHost: a\r\n" more "\r\n"

TEST(web_stream_pieces_have_the_servers_chunk_size_at_most)
{
    char body[951] = "";
    memset(body, 'x', sizeof body - 1);
    site s = site_open();
    client_send(&s.c, HEAD_OF("/", "Content-Length: 950\r\n"));
    client_send(&s.c, body);
    answer a;
    CHECK(client_answer(&s.c, &a));
    CHECK_STR(a.body.data, "950");
    CHECK(state.pieces >= 10);
    site_close(&s);
}

TEST(web_stream_prepare_runs_at_the_headers_and_the_verb_behind_the_body)
{
    site s = site_open();
    client_send(&s.c, HEAD_OF("/", "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 5\r\n"));
    UNTIL(state.prepared);
    loop_turns(2);
    CHECK_INT(state.pieces, 0);
    client_send(&s.c, "a=");
    UNTIL(state.pieces == 1);
    client_send(&s.c, "bcd");
    answer a;
    CHECK(client_answer(&s.c, &a));
    CHECK_STR(a.body.data, "5");
    CHECK_STR(state.text, "a=bcd");
    CHECK_INT(state.finished, 1);
    CHECK_INT(state.unwound, 1);
    state.unwound = 0;
    a = client_ask(&s.c, HEAD_OF("/derived", "Transfer-Encoding: chunked\r\n") "1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n");
    CHECK_STR(a.body.data, "3");
    state.unwound = 0;
    CHECK_STR(client_ask(&s.c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").body.data, "0"); /* no body, nothing to wait for */
    a = client_ask(&s.c, HEAD_OF("/plain", "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n") "a=b");
    CHECK_STR(a.body.data, "b 3"); /* others are as ever */
    site_close(&s);
}

TEST(web_stream_has_the_arguments_of_the_query_and_no_form_whatever_its_type)
{
    site s = site_open();
    answer a = client_ask(&s.c, HEAD_OF("/typed?a=query", "Content-Type: multipart/form-data; boundary=b\r\n"
                                                          "Content-Length: 3\r\n") "--b");
    CHECK_STR(a.body.data, "query 0");
    site_close(&s);
}

TEST(web_stream_nothing_is_read_while_the_handler_waits)
{
    site s = site_open();
    tornado_future *prepare = state.prepare_gate = tornado_future_new(), *data = state.data_gate = tornado_future_new();
    client_send(&s.c, HEAD_OF("/", "Content-Length: 6\r\n") "abc");
    UNTIL(state.prepared);
    loop_turns(3);
    CHECK_INT(state.pieces, 0);
    tornado_future_set_result(prepare, NULL, NULL);
    UNTIL(state.pieces == 1);
    client_send(&s.c, "def");
    loop_turns(5);
    CHECK_INT(state.pieces, 1);
    CHECK_STR(state.text, "");
    tornado_future_set_result(data, NULL, NULL);
    answer a;
    CHECK(client_answer(&s.c, &a));
    CHECK_STR(a.body.data, "6");
    CHECK_STR(state.text, "abcdef"); /* the piece was there all the time */
    tornado_future_release(prepare);
    tornado_future_release(data);
    site_close(&s);
}

TEST(web_stream_the_limit_of_a_body_may_be_set_in_prepare)
{
    for (int limit = 0; limit < 2; limit++) {
        site s = site_open();
        char body[1501];
        memset(body, 'x', sizeof body - 1);
        body[sizeof body - 1] = '\0';
        state.limit = limit ? 1500 : 0;
        client_send(&s.c, HEAD_OF("/", "Content-Length: 1500\r\nExpect: 100-continue\r\n"));
        answer a;
        CHECK(client_answer(&s.c, &a));
        CHECK_INT(a.status, limit ? 100 : 413);
        if (limit) {
            client_send(&s.c, body);
            CHECK(client_answer(&s.c, &a));
            CHECK_STR(a.body.data, "1500");
        }
        site_close(&s);
    }
}

TEST(web_stream_errors_and_early_answers_end_the_request_and_close)
{
    log_keep();
    for (int i = 0; i < 3; i++) {
        site s = site_open();
        state.fail_prepare = i == 0;
        state.fail_data = i == 1;
        state.finish_in_data = i == 2;
        client_send(&s.c, HEAD_OF("/", "Content-Length: 10\r\n") "abc");
        answer a;
        CHECK(client_answer(&s.c, &a));
        CHECK_INT(a.status, i == 0 ? 403 : i == 1 ? 500 : 413);
        CHECK(a.close);
        CHECK_INT(state.finished, 1);
        UNTIL(state.unwound == 1);
        CHECK_INT(state.pieces, i > 0);
        site_close(&s);
        CHECK_INT(state.closed, 0);
    }
}

TEST(web_stream_piece_stays_after_an_early_answer)
{
    for (int waits = 0; waits < 2; waits++) { /* whether it has waited before it answers */
        site s = site_open();
        tornado_future *first = tornado_future_new(), *second = state.data_gate = tornado_future_new();
        state.prepare_gate = waits ? first : NULL;
        client_send(&s.c, HEAD_OF("/late", "Content-Length: 100\r\n") "abc");
        UNTIL(state.pieces);
        tornado_future_set_result(first, NULL, NULL);
        answer a;
        CHECK(client_answer(&s.c, &a));
        CHECK_INT(a.status, 413);
        char more[20000];
        memset(more, 'd', sizeof more);
        for (int i = 0; i < 10; i++) {
            client_send_bytes(&s.c, more, sizeof more);
            loop_turns(3);
        }
        client_close(&s.c);
        loop_turns(5);
        tornado_future_set_result(second, NULL, NULL);
        UNTIL(state.unwound);
        CHECK_STR(state.text, "abc");
        CHECK_INT(state.pieces, 1);
        tornado_future_release(first);
        tornado_future_release(second);
        site_close(&s);
    }
}

TEST(web_stream_handler_whose_request_is_finished_elsewhere_ends)
{
    static const char *const requests[] = {HEAD_OF("/expiring", "Content-Length: 10\r\n") "abc",
                                           HEAD_OF("/expiring?asynchronous", "Content-Length: 10\r\n") "abc"};
    log_keep();
    for (int i = 0; i < 2; i++) {
        site s = site_open();
        client_send(&s.c, requests[i]);
        answer a;
        CHECK(client_answer(&s.c, &a));
        CHECK_INT(a.status, 408);
        CHECK(a.close);
        UNTIL(state.unwound);
        UNTIL(tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
        site_close(&s);
    }
}

TEST(web_stream_data_received_that_raises_after_it_has_waited_ends_the_request)
{
    log_keep();
    site s = site_open();
    tornado_future *gate = state.data_gate = tornado_future_new();
    state.fail_data = true;
    client_send(&s.c, HEAD_OF("/", "Content-Length: 10\r\n") "abc");
    UNTIL(state.pieces);
    loop_turns(3);
    tornado_future_set_result(gate, NULL, NULL);
    tornado_future_release(gate);
    answer a;
    CHECK(client_answer(&s.c, &a));
    CHECK_INT(a.status, 500);
    CHECK(a.close);
    UNTIL(state.unwound == 1);
    site_close(&s);
}

TEST(web_stream_client_that_leaves_ends_the_handler_without_its_verb)
{
    /* select does not tell of a reset behind bytes that nobody reads */
    int ways = strcmp(tornado_ioloop_poller(tornado_ioloop_current()), "select") == 0 ? 1 : 3;
    for (int waiting = 0; waiting < ways; waiting++) { /* for more; in prepare; in data_received */
        site s = site_open();
        tornado_future *gate = tornado_future_new();
        *(waiting == 2 ? &state.data_gate : &state.prepare_gate) = waiting ? gate : NULL;
        client_send(&s.c, HEAD_OF("/", "Content-Length: 10\r\n") "abc");
        UNTIL(waiting == 1 ? state.prepared : state.pieces);
        close_with_reset(s.c.fd);
        s.c.fd = -1;
        UNTIL(state.closed == 1);
        tornado_future_set_result(gate, NULL, NULL);
        tornado_future_release(gate);
        UNTIL(state.unwound == 1);
        CHECK_INT(state.finished, 0);
        if (waiting != 1)
            CHECK_STR(state.text, "abc");
        site_close(&s);
    }
}

TEST(web_stream_bad_chunks_are_an_error_and_no_short_body)
{
    site s = site_open();
    client_send(&s.c, HEAD_OF("/", "Transfer-Encoding: chunked\r\n") "3\r\nabc\r\nxyz\r\n");
    answer a;
    CHECK(client_answer(&s.c, &a));
    CHECK_INT(a.status, 400);
    UNTIL(state.closed == 1);
    UNTIL(state.unwound == 1);
    CHECK_INT(state.finished, 0);
    site_close(&s);
}
