/* Connections in both roles, over streams, and the delegates that they drive. */
#include "delegate.h"
#include "http_client.h"
#include "runtime.h"

#include <netinet/tcp.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/*----------------------------------------------------------------------------
 * A delegate that keeps what it is told as text.
 *----------------------------------------------------------------------------*/

typedef struct recorder {
    tornado_buffer text;
    tornado_future *headers_future, *data_future; /* to be returned, once */
    tornado_bytes piece;                          /* the last */
    void (*on_headers)(void);
    int pieces, released;
    bool over;
} recorder;

static tornado_future *take_future(tornado_future **future)
{
    tornado_future *taken = *future;
    *future = NULL;
    return taken ? tornado_future_retain(taken) : NULL;
}

static tornado_future *record_headers(void *self, const tornado_http_start_line *start,
                                      const tornado_http_headers *headers)
{
    recorder *r = self;
    if (start->method)
        tornado_buffer_printf(&r->text, "%s %s %s", start->method, start->path, start->version);
    else
        tornado_buffer_printf(&r->text, "%s %d %s", start->version, start->code, start->reason);
    for (size_t i = 0; i < headers->count; i++)
        tornado_buffer_printf(&r->text, "|%s=%s", headers->items[i].name, headers->items[i].value);
    tornado_buffer_puts(&r->text, ";");
    if (r->on_headers)
        r->on_headers();
    return take_future(&r->headers_future);
}

static tornado_future *record_data(void *self, tornado_bytes chunk)
{
    recorder *r = self;
    CHECK(chunk.len > 0);
    r->pieces++;
    r->piece = chunk;
    tornado_buffer_append(&r->text, chunk.data, chunk.len);
    return take_future(&r->data_future);
}

static void record_finish(void *self)
{
    recorder *r = self;
    CHECK(!r->over);
    r->over = true;
    tornado_buffer_puts(&r->text, "$");
}

static void record_close(void *self, const tornado_error *error)
{
    recorder *r = self;
    CHECK(!r->over && error->message[0]);
    r->over = true;
    tornado_buffer_printf(&r->text, "!%s", tornado_error_name(error->code) + 12);
}

static void record_informational(void *self, const tornado_http_start_line *start, const tornado_http_headers *headers)
{
    (void)headers;
    tornado_buffer_printf(&((recorder *)self)->text, "(%d)", start->code);
}

static void record_release(void *self)
{
    ((recorder *)self)->released++;
}

static const tornado_http_message_delegate recording = {
    .headers_received = record_headers, .data_received = record_data, .finish = record_finish,
    .on_connection_close = record_close, .informational = record_informational, .release = record_release};

static const char *recorded(const recorder *r)
{
    return r->text.data ? r->text.data : "";
}

static void recorder_end(recorder *r)
{
    CHECK_INT(r->released, 1);
    tornado_buffer_free(&r->text);
}

/*----------------------------------------------------------------------------
 * A client's connection, and the other end of it, which the test plays.
 *----------------------------------------------------------------------------*/

typedef struct dialogue {
    tornado_iostream *stream;
    tornado_http1_connection *connection;
    client peer;
    recorder seen;
    tornado_future *done;
} dialogue;

static dialogue dialogue_open(bool is_client, const tornado_http1_connection_parameters *parameters)
{
    int ends[2];
    dialogue d;
    memset(&d, 0, sizeof d);
    tcp_pair(ends);
    d.stream = tornado_iostream_new(ends[0], NULL);
    d.peer.fd = ends[1];
    set_nonblocking(ends[1]);
    d.peer.data = calloc(1, 1);
    d.connection = tornado_http1_connection_new(d.stream, is_client, parameters, &ends);
    CHECK(d.connection != NULL);
    CHECK(tornado_http1_connection_context(d.connection) == &ends);
    return d;
}

static void dialogue_read(dialogue *d)
{
    d->done = tornado_http1_connection_read_response(d->connection, &recording, &d->seen);
}

static void dialogue_send(dialogue *d, const char *method)
{
    tornado_http_header host = header_of("Host", "a");
    tornado_http_headers headers = {.items = &host, .count = 1};
    tornado_http_start_line start = {.method = method, .path = "/p?q"};
    CHECK(sent(tornado_http1_connection_write_headers(d->connection, &start, &headers, NULL)));
    CHECK(sent(tornado_http1_connection_finish(d->connection)));
}

static void dialogue_ask(dialogue *d, const char *method)
{
    dialogue_send(d, method);
    dialogue_read(d);
}

static void dialogue_end(dialogue *d)
{
    tornado_future_release(d->done);
    tornado_http1_connection_release(d->connection);
    tornado_iostream_release(d->stream);
    client_close(&d->peer);
    loop_turns(2); /* a connection that refused something lingers until then */
    recorder_end(&d->seen);
}

/* Runs the loop until the other end has had so many bytes. */
static void peer_needs(dialogue *d, size_t len)
{
    while (d->peer.len < len)
        if (!client_more(&d->peer))
            FAIL("closed after %zu bytes", d->peer.len);
}

#define OK_ "HTTP/1.1 200 OK\r\n"
#define TEXT(text) text, sizeof(text) - 1

static const struct {
    const char *why, *method, *response;
    size_t len;
    const char *seen;
    int code;  /* of the future */
    bool open; /* whether the stream can be used again */
} responses[] = {
    {"length", "GET", TEXT(OK_ "Content-Length: 3\r\n\r\nabc"), "HTTP/1.1 200 OK|Content-Length=3;abc$", 0, true},
    {"no body", "GET", TEXT(OK_ "Content-Length: 0\r\n\r\n"), "HTTP/1.1 200 OK|Content-Length=0;$", 0, true},
    {"chunks", "GET", TEXT(OK_ "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\nX: y\r\n\r\n"),
     "HTTP/1.1 200 OK|Transfer-Encoding=chunked;abc$", 0, true},
    {"to the end", "GET", TEXT(OK_ "\r\nabc"), "HTTP/1.1 200 OK;abc$", 0, false},
    {"nothing to the end", "GET", TEXT(OK_ "\r\n"), "HTTP/1.1 200 OK;$", 0, false},
    {"close", "GET", TEXT(OK_ "Connection: close\r\nContent-Length: 1\r\n\r\na"),
     "HTTP/1.1 200 OK|Connection=close|Content-Length=1;a$", 0, false},
    {"HTTP/1.0", "GET", TEXT("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na"), "HTTP/1.0 200 OK|Content-Length=1;a$", 0,
     false},
    {"HTTP/1.0 that stays", "GET", TEXT("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\na"),
     "HTTP/1.0 200 OK|Connection=Keep-Alive|Content-Length=1;a$", 0, true},
    {"HEAD", "HEAD", TEXT(OK_ "Content-Length: 3\r\n\r\n"), "HTTP/1.1 200 OK|Content-Length=3;$", 0, true},
    {"HEAD without a length", "HEAD", TEXT(OK_ "\r\n"), "HTTP/1.1 200 OK;$", 0, true},
    {"HEAD of chunks", "HEAD", TEXT(OK_ "Transfer-Encoding: chunked\r\n\r\n"),
     "HTTP/1.1 200 OK|Transfer-Encoding=chunked;$", 0, true},
    {"204", "GET", TEXT("HTTP/1.1 204 No Content\r\n\r\n"), "HTTP/1.1 204 No Content;$", 0, true},
    {"304 with a length", "GET", TEXT("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
     "HTTP/1.1 304 Not Modified|Content-Length=9;$", 0, true},
    {"100 before", "GET", TEXT("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: y\r\n\r\n" OK_ "Content-Length: 1\r\n\r\na"),
     "(100)(103)HTTP/1.1 200 OK|Content-Length=1;a$", 0, true},
    {"101", "GET", TEXT("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
     "HTTP/1.1 101 Switching Protocols|Upgrade=x;$", 0, true},
    {"no reason", "GET", TEXT("HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na"), "HTTP/1.1 200 |Content-Length=1;a$", 0, true},
    {"empty reason", "GET", TEXT("HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\na"), "HTTP/1.1 200 |Content-Length=1;a$", 0, true},
    {"bare LF", "GET", TEXT("HTTP/1.1 200 OK\nX: y\nContent-Length: 1\n\na"), "HTTP/1.1 200 OK|X=y|Content-Length=1;a$",
     0, true},
    {"a folded header", "GET", TEXT(OK_ "X: a\r\n  b\r\n\tc\r\nContent-Length: 1\r\n\r\na"),
     "HTTP/1.1 200 OK|X=a   b \tc|Content-Length=1;a$", 0, true},

    {"nothing", "GET", TEXT(""), "!CLOSED", TORNADO_ERR_CLOSED, false},
    {"half a head", "GET", TEXT(OK_ "Content-Le"), "!CLOSED", TORNADO_ERR_CLOSED, false},
    {"short body", "GET", TEXT(OK_ "Content-Length: 3\r\n\r\nab"), "HTTP/1.1 200 OK|Content-Length=3;ab!CLOSED",
     TORNADO_ERR_CLOSED, false},
    {"short chunk", "GET", TEXT(OK_ "Transfer-Encoding: chunked\r\n\r\n3\r\nab"),
     "HTTP/1.1 200 OK|Transfer-Encoding=chunked;ab!CLOSED", TORNADO_ERR_CLOSED, false},
    {"chunks without end", "GET", TEXT(OK_ "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"),
     "HTTP/1.1 200 OK|Transfer-Encoding=chunked;a!CLOSED", TORNADO_ERR_CLOSED, false},
    {"a bad chunk", "GET", TEXT(OK_ "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nx\r\n"),
     "HTTP/1.1 200 OK|Transfer-Encoding=chunked;a!PARSE", TORNADO_ERR_PARSE, false},
    {"a forbidden trailer", "GET", TEXT(OK_ "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n"),
     "HTTP/1.1 200 OK|Transfer-Encoding=chunked;!PARSE", TORNADO_ERR_PARSE, false},
    {"no HTTP", "GET", TEXT("SSH-2.0-x\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"HTTP/2", "GET", TEXT("HTTP/2.0 200 OK\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"two digits", "GET", TEXT("HTTP/1.1 20 OK\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"four digits", "GET", TEXT("HTTP/1.1 2000 OK\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"length and chunks", "GET", TEXT(OK_ "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), "!PARSE",
     TORNADO_ERR_PARSE, false},
    {"two lengths", "GET", TEXT(OK_ "Content-Length: 1\r\nContent-Length: 1\r\n\r\na"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"another coding", "GET", TEXT(OK_ "Transfer-Encoding: gzip, chunked\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"chunks in HTTP/1.0", "GET", TEXT("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE,
     false},
    {"204 with a body", "GET", TEXT("HTTP/1.1 204 x\r\nContent-Length: 1\r\n\r\na"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"100 with a body", "GET", TEXT("HTTP/1.1 100 x\r\nTransfer-Encoding: chunked\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE,
     false},
    {"a fold before the headers", "GET", TEXT(OK_ " X: y\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"a folded length", "GET", TEXT(OK_ "Content-Length:\r\n 1\r\n\r\na"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"a folded coding", "GET", TEXT(OK_ "Transfer-Encoding:\r\n chunked\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"a bare CR", "GET", TEXT(OK_ "X: a\rb\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"a NUL", "GET", TEXT(OK_ "X: a\0b\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
    {"white space before the colon", "GET", TEXT(OK_ "X : a\r\n\r\n"), "!PARSE", TORNADO_ERR_PARSE, false},
};

static void check_response(size_t i, size_t piece)
{
    static const char next[] = OK_ "Content-Length: 4\r\n\r\nnext";
    dialogue d = dialogue_open(true, NULL);
    dialogue_ask(&d, responses[i].method);
    for (size_t at = 0; at < responses[i].len; at += piece) {
        size_t len = responses[i].len - at < piece ? responses[i].len - at : piece;
        client_send_bytes(&d.peer, responses[i].response + at, len);
        if (piece < responses[i].len)
            loop_turns(1);
    }
    if (!responses[i].open)
        shutdown(d.peer.fd, SHUT_WR);
    const tornado_error *error = loop_until(d.done);
    if (strcmp(recorded(&d.seen), responses[i].seen) != 0 || (error ? error->code : 0) != responses[i].code)
        FAIL("%s, %zu at a time: %s, %s", responses[i].why, piece, recorded(&d.seen),
             error ? tornado_error_name(error->code) : "no error");
    if (tornado_iostream_closed(d.stream) == responses[i].open)
        FAIL("%s: the stream is %s", responses[i].why, responses[i].open ? "closed" : "open");
    if (responses[i].open) {
        tornado_future_release(d.done);
        tornado_http1_connection_release(d.connection);
        recorder_end(&d.seen);
        memset(&d.seen, 0, sizeof d.seen);
        d.connection = tornado_http1_connection_new(d.stream, true, NULL, NULL);
        CHECK(d.connection != NULL);
        dialogue_ask(&d, "GET");
        client_send_bytes(&d.peer, TEXT(next));
        CHECK(loop_until(d.done) == NULL);
        CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=4;next$");
    }
    dialogue_end(&d);
}

TEST(http1_connection_responses_are_understood_or_refused)
{
    for (size_t i = 0; i < COUNT(responses); i++)
        check_response(i, responses[i].len + 1);
}

TEST_LIMIT(http1_connection_responses_a_byte_at_a_time_are_understood_the_same, 60)
{
    for (size_t i = 0; i < COUNT(responses); i++)
        if (strstr(responses[i].seen, "abc$")) { /* several pieces of a body are one text */
            check_response(i, 2);
        } else {
            check_response(i, 1);
        }
}

TEST(http1_connection_responses_have_limits)
{
    static const struct {
        const char *before, *repeated;
        int times, code;
    } cases[] = {{OK_, "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", 20000, TORNADO_ERR_LIMIT},
                 {OK_, "X: y\r\n", 1000, TORNADO_ERR_LIMIT},
                 {"", "HTTP/1.1 100 Continue\r\n\r\n", 40, TORNADO_ERR_LIMIT},
                 {OK_ "Content-Length: 101\r\n\r\n", "", 0, TORNADO_ERR_LIMIT},
                 {OK_ "\r\n", "0123456789", 11, TORNADO_ERR_LIMIT},
                 {OK_ "Transfer-Encoding: chunked\r\n\r\n", "a\r\n0123456789\r\n", 11, TORNADO_ERR_LIMIT}};
    tornado_http1_connection_parameters parameters = {.max_body_size = 100};
    for (size_t i = 0; i < COUNT(cases); i++) {
        dialogue d = dialogue_open(true, &parameters);
        dialogue_ask(&d, "GET");
        client_send(&d.peer, cases[i].before);
        for (int n = 0; n < cases[i].times; n++)
            client_send(&d.peer, cases[i].repeated);
        client_send(&d.peer, "\r\n");
        shutdown(d.peer.fd, SHUT_WR);
        CHECK(is_error(loop_until(d.done), cases[i].code));
        dialogue_end(&d);
    }
}

TEST(http1_connection_timeouts_fail_a_response_that_does_not_come)
{
    for (int body = 0; body < 2; body++) {
        tornado_http1_connection_parameters parameters = {.header_timeout = body ? 0 : 0.05,
                                                          .body_timeout = body ? 0.05 : 0};
        dialogue d = dialogue_open(true, &parameters);
        dialogue_ask(&d, "GET");
        client_send(&d.peer, body ? OK_ "Content-Length: 2\r\n\r\na" : OK_ "X:");
        CHECK(is_error(loop_until(d.done), TORNADO_ERR_TIMEOUT));
        CHECK(tornado_iostream_closed(d.stream));
        dialogue_end(&d);
    }
}

/*----------------------------------------------------------------------------
 * What a client sends.
 *----------------------------------------------------------------------------*/

TEST(http1_connection_requests_are_framed_as_their_headers_say)
{
    static const struct {
        const char *method, *length, *connection, *body, *wire;
    } cases[] = {
        {"GET", NULL, NULL, "", "GET / HTTP/1.1\r\n\r\n"},
        {"POST", NULL, NULL, "abc", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
        {"PUT", "3", NULL, "abc", "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"},
        {"DELETE", "3", NULL, "abc", "DELETE / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"},
        {"PATCH", "0", "close", "", "PATCH / HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
        {"GET", NULL, "Upgrade", "", "GET / HTTP/1.1\r\nConnection: Upgrade\r\n\r\n"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        dialogue d = dialogue_open(true, NULL);
        tornado_http_header items[2];
        tornado_http_headers headers = {.items = items};
        tornado_http_start_line start = {.method = cases[i].method, .path = "/"};
        tornado_bytes body = tornado_bytes_of(cases[i].body);
        if (cases[i].length)
            items[headers.count++] = header_of("Content-Length", cases[i].length);
        if (cases[i].connection)
            items[headers.count++] = header_of("Connection", cases[i].connection);
        CHECK(sent(tornado_http1_connection_write_headers(d.connection, &start, &headers, &body)));
        CHECK_INT(loop_code(tornado_http1_connection_finish(d.connection)), 0);
        dialogue_read(&d);
        peer_needs(&d, strlen(cases[i].wire));
        CHECK_STR(d.peer.data, cases[i].wire);
        client_send(&d.peer, OK_ "Content-Length: 0\r\n\r\n");
        CHECK(loop_until(d.done) == NULL);
        CHECK_INT(tornado_iostream_closed(d.stream), cases[i].connection && strcmp(cases[i].connection, "close") == 0);
        dialogue_end(&d);
    }
}

TEST(http1_connection_requests_that_may_not_be_sent_are_not)
{
    static const struct {
        const char *method, *path, *name, *value;
    } bad[] = {
        {NULL, "/", "X", "y"},          {"", "/", "X", "y"},       {"GE T", "/", "X", "y"}, {"GET\r\n", "/", "X", "y"},
        {"GET", NULL, "X", "y"},        {"GET", "", "X", "y"},     {"GET", "/ x", "X", "y"}, {"GET", "/\r\nX: y", "X", "y"},
        {"GET", "/", "X", "y\r\nZ: a"}, {"GET", "/", "X", "y\nz"}, {"GET", "/", "X y", "z"}, {"GET", "/", "", "z"},
        {"GET", "/", "Content-Length", "1x"}, {"POST", "/", "Transfer-Encoding", "chunked"},
    };
    dialogue d = dialogue_open(true, NULL);
    for (size_t i = 0; i < COUNT(bad); i++) {
        tornado_http_header header = header_of(bad[i].name, bad[i].value);
        tornado_http_headers headers = {.items = &header, .count = 1};
        tornado_http_start_line start = {.method = bad[i].method, .path = bad[i].path};
        CHECK_INT(failure(tornado_http1_connection_write_headers(d.connection, &start, &headers, NULL)),
                  TORNADO_ERR_INVALID);
    }
    dialogue_ask(&d, "GET"); /* it can still be used */
    client_send(&d.peer, OK_ "Content-Length: 0\r\n\r\n");
    CHECK(loop_until(d.done) == NULL);
    CHECK(strncmp(d.peer.data, "GET /p?q HTTP/1.1\r\nHost: a\r\n\r\n", d.peer.len) == 0);
    dialogue_end(&d);
}

TEST(http1_connection_bodies_of_another_length_than_was_said_close)
{
    for (int over = 0; over < 2; over++) {
        dialogue d = dialogue_open(true, NULL);
        tornado_http_header header = header_of("Content-Length", "3");
        tornado_http_headers headers = {.items = &header, .count = 1};
        tornado_http_start_line start = {.method = "POST", .path = "/"};
        CHECK(sent(tornado_http1_connection_write_headers(d.connection, &start, &headers, NULL)));
        dialogue_read(&d);
        if (over) {
            CHECK_INT(failure(tornado_http1_connection_write(d.connection, tornado_bytes_of("abcd"))),
                      TORNADO_ERR_INVALID);
        } else {
            CHECK(sent(tornado_http1_connection_write(d.connection, tornado_bytes_of("ab"))));
            CHECK_INT(failure(tornado_http1_connection_finish(d.connection)), TORNADO_ERR_INVALID);
        }
        CHECK(tornado_iostream_closed(d.stream));
        CHECK(is_error(loop_until(d.done), TORNADO_ERR_INVALID));
        CHECK_STR(recorded(&d.seen), "!INVALID");
        dialogue_end(&d);
    }
}

TEST(http1_connection_trailers_are_sent_behind_chunks)
{
    static const char wire[] = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n";
    dialogue d = dialogue_open(true, NULL);
    tornado_http_header bad = header_of("Content-Length", "1"), good = header_of("X-Sum", "1");
    tornado_http_headers forbidden = {.items = &bad, .count = 1}, trailers = {.items = &good, .count = 1};
    tornado_http_start_line start = {.method = "POST", .path = "/"};
    tornado_bytes body = {"a", 1};
    CHECK(sent(tornado_http1_connection_write_headers(d.connection, &start, NULL, &body)));
    CHECK_INT(failure(tornado_http1_connection_finish_with_trailers(d.connection, &forbidden)), TORNADO_ERR_INVALID);
    CHECK(sent(tornado_http1_connection_finish_with_trailers(d.connection, &trailers)));
    dialogue_read(&d);
    peer_needs(&d, sizeof wire - 1);
    CHECK_STR(d.peer.data, wire);
    client_send(&d.peer, OK_ "Transfer-Encoding: chunked\r\n\r\n0\r\nX-Back: 2\r\n\r\n");
    CHECK(loop_until(d.done) == NULL);
    const tornado_http_headers *back = tornado_http1_connection_trailers(d.connection);
    CHECK_INT(back->count, 1);
    CHECK_STR(back->items[0].value, "2");
    dialogue_end(&d);
}

/*----------------------------------------------------------------------------
 * Delegates that wait.
 *----------------------------------------------------------------------------*/

TEST(http1_connection_nothing_is_read_until_what_the_delegate_returned_is_done)
{
    dialogue d = dialogue_open(true, NULL);
    tornado_future *headers = d.seen.headers_future = tornado_future_new();
    dialogue_ask(&d, "GET");
    client_send(&d.peer, OK_ "Content-Length: 6\r\n\r\nabc");
    while (!recorded(&d.seen)[0])
        loop_turns(1);
    loop_turns(5);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=6;");
    tornado_future *data = d.seen.data_future = tornado_future_new();
    tornado_future_set_result(headers, NULL, NULL);
    while (!d.seen.pieces)
        loop_turns(1);
    client_send(&d.peer, "def");
    shutdown(d.peer.fd, SHUT_WR); /* nor is the end seen, which comes before the body is read */
    loop_turns(5);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=6;abc");
    CHECK_MEM(d.seen.piece.data, d.seen.piece.len, "abc", 3);
    tornado_future_set_result(data, NULL, NULL);
    CHECK(loop_until(d.done) == NULL);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=6;abcdef$");
    tornado_future_release(headers);
    tornado_future_release(data);
    dialogue_end(&d);
}

TEST(http1_connection_pieces_are_at_most_chunk_size)
{
    tornado_http1_connection_parameters parameters = {.chunk_size = 4};
    dialogue d = dialogue_open(true, &parameters);
    dialogue_ask(&d, "GET");
    client_send(&d.peer, OK_ "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n");
    CHECK(loop_until(d.done) == NULL);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Transfer-Encoding=chunked;0123456789$");
    CHECK_INT(d.seen.pieces, 3);
    dialogue_end(&d);
}

TEST(http1_connection_failure_of_what_a_delegate_returned_closes)
{
    log_keep();
    dialogue d = dialogue_open(true, NULL);
    tornado_error error = {.code = TORNADO_ERR_STATE, .message = "no room"};
    tornado_future *future = d.seen.data_future = tornado_future_new();
    dialogue_ask(&d, "GET");
    client_send(&d.peer, OK_ "Content-Length: 6\r\n\r\nabc");
    while (!d.seen.pieces)
        loop_turns(1);
    tornado_future_set_error(future, &error);
    tornado_future_release(future);
    CHECK(is_error(loop_until(d.done), TORNADO_ERR_STATE));
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=6;abc!STATE");
    CHECK_INT(logged("Uncaught exception in data_received"), 1);
    dialogue_end(&d);
}

static tornado_future *raise_in_data(void *self, tornado_bytes chunk)
{
    (void)self;
    (void)chunk;
    tornado_raise(TORNADO_ERR_STATE, "raised");
}

TEST(http1_connection_what_a_delegate_raises_is_logged_and_closes)
{
    static const tornado_http_message_delegate raising = {.data_received = raise_in_data,
                                                          .on_connection_close = record_close};
    log_keep();
    dialogue d = dialogue_open(true, NULL);
    dialogue_ask(&d, "GET"); /* and again, with another delegate */
    CHECK_INT(failure(tornado_http1_connection_read_response(d.connection, &raising, &d.seen)), TORNADO_ERR_STATE);
    client_send(&d.peer, OK_ "Content-Length: 0\r\n\r\n");
    CHECK(loop_until(d.done) == NULL);
    dialogue_end(&d);
    d = dialogue_open(true, NULL);
    dialogue_send(&d, "GET");
    d.done = tornado_http1_connection_read_response(d.connection, &raising, &d.seen);
    client_send(&d.peer, OK_ "Content-Length: 1\r\n\r\nx");
    CHECK(is_error(loop_until(d.done), TORNADO_ERR_STATE));
    CHECK_STR(recorded(&d.seen), "!STATE");
    CHECK_INT(logged("Uncaught exception in data_received"), 1);
    d.seen.released = 1;
    dialogue_end(&d);
}

TEST(http1_connection_close_during_a_wait_is_told_when_that_is_over)
{
    dialogue d = dialogue_open(true, NULL);
    tornado_future *future = d.seen.data_future = tornado_future_new();
    dialogue_ask(&d, "GET");
    client_send(&d.peer, OK_ "Content-Length: 6\r\n\r\nabc");
    while (!d.seen.pieces)
        loop_turns(1);
    tornado_http1_connection_close(d.connection);
    loop_turns(3);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=6;abc");
    CHECK_MEM(d.seen.piece.data, d.seen.piece.len, "abc", 3);
    tornado_future_set_result(future, NULL, NULL);
    tornado_future_release(future);
    CHECK(is_error(loop_until(d.done), TORNADO_ERR_CLOSED));
    loop_turns(3);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=6;abc!CLOSED");
    dialogue_end(&d);
}

static tornado_http1_connection *answering;

static tornado_future *answer_and_wait(void *self, tornado_bytes chunk)
{
    tornado_future_release(write_head(answering, 200, 100, NULL));
    return record_data(self, chunk);
}

/* Also in the turn in which it came. */
TEST(http1_connection_piece_stays_when_the_peer_takes_no_answer)
{
    static const tornado_http_message_delegate delegate = {.data_received = answer_and_wait, .finish = record_finish,
                                                           .on_connection_close = record_close,
                                                           .release = record_release};
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc";
    char other[100];
    int ends[2], others[2];
    recorder r = {.data_future = tornado_future_new()};
    tornado_future *future = r.data_future;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, others) == 0);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL), *busy = tornado_iostream_new(others[0], NULL);
    answering = tornado_http1_connection_new(stream, false, NULL, NULL);
    tornado_future *done = tornado_http1_connection_read_response(answering, &delegate, &r);
    CHECK(write(ends[1], head, sizeof head - 1) == sizeof head - 1);
    CHECK(shutdown(ends[1], SHUT_RD) == 0);
    while (!tornado_iostream_closed(stream))
        loop_turns(1);
    memset(other, 'x', sizeof other);
    CHECK(write(others[1], other, sizeof other) == sizeof other);
    CHECK_INT(loop_code(tornado_iostream_read_bytes(busy, sizeof other)), 0);
    CHECK_MEM(r.piece.data, r.piece.len, "abc", 3);
    tornado_future_set_result(future, NULL, NULL);
    tornado_future_release(future);
    CHECK(loop_until(done) != NULL);
    loop_turns(3);
    CHECK(r.over);
    tornado_future_release(done);
    tornado_http1_connection_release(answering);
    tornado_iostream_release(stream);
    tornado_iostream_release(busy);
    close(ends[1]);
    close(others[1]);
    recorder_end(&r);
}

TEST(http1_connection_body_is_collected_without_data_received)
{
    static const tornado_http_message_delegate plain = {.finish = record_finish, .release = record_release};
    dialogue d = dialogue_open(true, NULL);
    d.done = tornado_http1_connection_read_response(d.connection, &plain, &d.seen);
    tornado_http_start_line start = {.method = "GET", .path = "/"};
    CHECK(sent(tornado_http1_connection_write_headers(d.connection, &start, NULL, NULL)));
    CHECK(sent(tornado_http1_connection_finish(d.connection)));
    client_send(&d.peer, OK_ "Content-Length: 6\r\n\r\nabcdef");
    CHECK(loop_until(d.done) == NULL);
    tornado_bytes body = tornado_http1_connection_body(d.connection);
    CHECK_MEM(body.data, body.len + 1, "abcdef", 7);
    dialogue_end(&d);
}

/*----------------------------------------------------------------------------
 * What is allowed during headers_received.
 *----------------------------------------------------------------------------*/

static dialogue *the_dialogue;
static tornado_iostream *detached;

static void allow_more(void)
{
    tornado_http1_connection_set_max_body_size(the_dialogue->connection, 6);
    tornado_http1_connection_set_body_timeout(the_dialogue->connection, 0.05);
}

TEST(http1_connection_limits_may_be_changed_for_one_message)
{
    tornado_http1_connection_parameters parameters = {.max_body_size = 2};
    for (int more = 0; more < 2; more++) {
        dialogue d = dialogue_open(true, &parameters);
        the_dialogue = &d;
        d.seen.on_headers = more ? allow_more : NULL;
        dialogue_ask(&d, "GET");
        client_send(&d.peer, OK_ "Content-Length: 6\r\n\r\nabc");
        CHECK(is_error(loop_until(d.done), more ? TORNADO_ERR_TIMEOUT : TORNADO_ERR_LIMIT));
        CHECK_STR(recorded(&d.seen), more ? "HTTP/1.1 200 OK|Content-Length=6;abc!TIMEOUT"
                                          : "HTTP/1.1 200 OK|Content-Length=6;!LIMIT");
        dialogue_end(&d);
    }
}

static void detach_now(void)
{
    detached = tornado_http1_connection_detach(the_dialogue->connection);
}

/* The stream is the user's, with what came behind the head. */
static void check_detached(dialogue *d)
{
    CHECK(detached == d->stream);
    tornado_future *read = tornado_iostream_read_bytes(detached, 8);
    client_send(&d->peer, "more");
    CHECK(loop_until(read) == NULL);
    CHECK_MEM(tornado_future_bytes(read).data, tornado_future_bytes(read).len, "\x81\x02himore", 8);
    tornado_future_release(read);
    CHECK_INT(loop_code(tornado_iostream_write(detached, tornado_bytes_of("raw"))), 0);
    peer_needs(d, d->peer.len + 3);
    CHECK_MEM(d->peer.data + d->peer.len - 3, 3, "raw", 3);
    tornado_iostream_release(detached);
    CHECK_STR(recorded(&d->seen), "HTTP/1.1 101 x;"); /* neither finish nor on_connection_close */
}

TEST(http1_connection_detach_gives_the_stream_with_what_is_behind_the_head)
{
    for (int pieces = 0; pieces < 2; pieces++) { /* in the loop's buffer, and in the stream's own */
        dialogue d = dialogue_open(true, NULL);
        the_dialogue = &d;
        CHECK(tornado_http1_connection_detach(d.connection) == NULL);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
        d.seen.on_headers = detach_now;
        dialogue_ask(&d, "GET");
        if (pieces) {
            client_send(&d.peer, "HTTP/1.1 101");
            while (!tornado_iostream_read_buffer_size(d.stream))
                loop_turns(1);
        }
        client_send(&d.peer, &"HTTP/1.1 101 x\r\n\r\n\x81\x02hi"[pieces ? 12 : 0]);
        CHECK(loop_until(d.done) == NULL);
        peer_needs(&d, strlen("GET /p?q HTTP/1.1\r\nHost: a\r\n\r\n"));
        check_detached(&d);
        dialogue_end(&d);
    }
}

TEST(http1_connection_detach_works_until_the_delegates_future_is_done)
{
    dialogue d = dialogue_open(true, NULL);
    the_dialogue = &d;
    tornado_future *future = d.seen.headers_future = tornado_future_new();
    dialogue_ask(&d, "GET");
    client_send(&d.peer, "HTTP/1.1 101 x\r\n\r\n\x81\x02hi");
    while (!recorded(&d.seen)[0])
        loop_turns(1);
    detach_now();
    CHECK(loop_until(d.done) == NULL);
    tornado_future_set_result(future, NULL, NULL);
    tornado_future_release(future);
    loop_turns(3);
    peer_needs(&d, strlen("GET /p?q HTTP/1.1\r\nHost: a\r\n\r\n"));
    check_detached(&d);
    dialogue_end(&d);
}

/*----------------------------------------------------------------------------
 * The stream.
 *----------------------------------------------------------------------------*/

TEST(http1_connection_has_the_stream_until_it_is_over)
{
    dialogue d = dialogue_open(true, NULL);
    CHECK_INT(loop_code(tornado_iostream_read_bytes(d.stream, 1)), TORNADO_ERR_STATE);
    CHECK_INT(loop_code(tornado_iostream_write(d.stream, tornado_bytes_of("x"))), TORNADO_ERR_STATE);
    CHECK(tornado_http1_connection_new(d.stream, true, NULL, NULL) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    tornado_http1_connection_release(d.connection); /* it was not used: the stream is free again */
    CHECK_INT(loop_code(tornado_iostream_write(d.stream, tornado_bytes_of("x"))), 0);
    tornado_future *read = tornado_iostream_read_bytes(d.stream, 1);
    CHECK(tornado_http1_connection_new(d.stream, true, NULL, NULL) == NULL);
    client_send(&d.peer, "y");
    CHECK_INT(loop_code(read), 0);
    tornado_iostream_close(d.stream);
    CHECK(tornado_http1_connection_new(d.stream, true, NULL, NULL) == NULL);
    tornado_iostream_release(d.stream);
    client_close(&d.peer);
}

static void close_when_released(void *self)
{
    dialogue *d = self;
    record_release(&d->seen);
    tornado_iostream_close(d->stream);
}

TEST(http1_connection_delegate_may_close_the_stream_when_it_is_released)
{
    static const tornado_http_message_delegate delegate = {.release = close_when_released};
    dialogue d = dialogue_open(true, NULL);
    dialogue_send(&d, "GET");
    d.done = tornado_http1_connection_read_response(d.connection, &delegate, &d);
    tornado_http1_connection_release(d.connection);
    d.connection = NULL;
    client_send(&d.peer, OK_ "Content-Length: 2\r\n\r\nok");
    CHECK(loop_until(d.done) == NULL);
    CHECK(tornado_iostream_closed(d.stream));
    dialogue_end(&d);
}

TEST(http1_connection_sends_at_once)
{
    for (int is_client = 0; is_client < 2; is_client++) {
        dialogue d = dialogue_open(is_client, NULL);
        socklen_t size = sizeof(int);
        int on = 0;
        CHECK(getsockopt(tornado_iostream_fileno(d.stream), IPPROTO_TCP, TCP_NODELAY, &on, &size) == 0 && on);
        d.seen.released = 1;
        dialogue_end(&d);
    }
}

TEST(http1_connection_a_delegate_that_comes_too_late_is_released)
{
    dialogue d = dialogue_open(true, NULL);
    tornado_iostream_close(d.stream);
    dialogue_read(&d);
    CHECK(is_error(tornado_future_error(d.done), TORNADO_ERR_CLOSED));
    CHECK_INT(failure(tornado_http1_connection_read_response(d.connection, &recording, &d.seen)), TORNADO_ERR_STATE);
    CHECK_INT(d.seen.released, 0);
    dialogue_end(&d);
    CHECK(!d.seen.over);
}

static void count(void *arg)
{
    ++*(int *)arg;
}

TEST(http1_connection_close_callback_tells_of_the_end_of_the_connection_only)
{
    int closed = 0, stream_closed = 0;
    dialogue d = dialogue_open(true, NULL);
    tornado_http1_connection_set_close_callback(d.connection, count, &closed);
    dialogue_ask(&d, "GET");
    client_send(&d.peer, OK_ "Content-Length: 0\r\n\r\n");
    CHECK(loop_until(d.done) == NULL);
    dialogue_end(&d);
    CHECK_INT(closed, 0);
    for (int taken_back = 0; taken_back < 2; taken_back++) {
        d = dialogue_open(true, NULL);
        tornado_http1_connection_set_close_callback(d.connection, count, &closed);
        if (taken_back)
            tornado_http1_connection_set_close_callback(d.connection, NULL, NULL);
        tornado_iostream_set_close_callback(d.stream, count, &stream_closed);
        dialogue_ask(&d, "GET");
        tornado_iostream_close(d.stream);
        CHECK(is_error(loop_until(d.done), TORNADO_ERR_CLOSED));
        loop_turns(2);
        CHECK_INT(closed, 1);
        CHECK_INT(stream_closed, 1 + taken_back);
        CHECK_INT(failure(tornado_http1_connection_write(d.connection, tornado_bytes_of("x"))), TORNADO_ERR_STATE);
        dialogue_end(&d);
    }
}

static void read_with_shortage(void)
{
    int ends[2];
    recorder seen = {.released = 0};
    tcp_pair(ends);
    tornado_iostream *stream = tornado_ioloop_current() ? tornado_iostream_new(ends[0], NULL) : NULL;
    tornado_http1_connection *c = stream ? tornado_http1_connection_new(stream, true, NULL, NULL) : NULL;
    if (c) {
        static const char response[] = OK_ "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n";
        tornado_http_start_line start = {.method = "POST", .path = "/"};
        tornado_future *done = tornado_http1_connection_read_response(c, &recording, &seen);
        tornado_bytes body = {"body", 4};
        if (sent(tornado_http1_connection_write_headers(c, &start, NULL, &body)))
            sent(tornado_http1_connection_finish(c));
        CHECK(send(ends[1], response, sizeof response - 1, MSG_NOSIGNAL) > 0);
        shutdown(ends[1], SHUT_WR);
        for (int turns = 0; turns < 50 && !tornado_future_done(done); turns++)
            tornado_ioloop_run_once(tornado_ioloop_current(), 0.001);
        tornado_future_error(done);
        tornado_future_release(done);
        tornado_http1_connection_release(c);
    }
    if (stream)
        tornado_iostream_close(stream);
    else
        close(ends[0]);
    tornado_iostream_release(stream);
    close(ends[1]);
    tornado_buffer_free(&seen.text);
}

TEST_LIMIT(http1_connection_memory_that_runs_short_leaks_nothing, 30)
{
    each_shortage(read_with_shortage);
}

/*----------------------------------------------------------------------------
 * Whose the bytes of a stream are.
 *----------------------------------------------------------------------------*/

/* Sends the head of a request whose body is still to come. */
static void dialogue_upload(dialogue *d, const char *length)
{
    tornado_http_header header = header_of("Content-Length", length);
    tornado_http_headers headers = {.items = &header, .count = 1};
    tornado_http_start_line start = {.method = "POST", .path = "/"};
    CHECK(sent(tornado_http1_connection_write_headers(d->connection, &start, &headers, NULL)));
}

/* The stream is the user's, who reads what else the peer sends. */
static void stream_is_free(dialogue *d, const char *more)
{
    tornado_future *read = tornado_iostream_read_bytes(d->stream, strlen(more));
    CHECK(loop_until(read) == NULL);
    CHECK_MEM(tornado_future_bytes(read).data, tornado_future_bytes(read).len, more, strlen(more));
    tornado_future_release(read);
}

TEST(http1_connection_response_that_comes_before_it_is_read_is_kept)
{
    static const struct {
        const char *response, *seen;
    } cases[] = {{"HTTP/1.1 413 no\r\nContent-Length: 2\r\n\r\nab", "HTTP/1.1 413 no|Content-Length=2;ab$"},
                 {"HTTP/1.1 100 Continue\r\n\r\n" OK_ "Content-Length: 0\r\n\r\n",
                  "(100)HTTP/1.1 200 OK|Content-Length=0;$"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        dialogue d = dialogue_open(true, NULL);
        dialogue_upload(&d, "3");
        client_send(&d.peer, cases[i].response);
        loop_turns(10);
        CHECK_STR(recorded(&d.seen), "");
        dialogue_read(&d);
        while (!d.seen.over)
            loop_turns(1);
        CHECK_STR(recorded(&d.seen), cases[i].seen);
        CHECK(!tornado_future_done(d.done)); /* the request is still under way */
        CHECK(sent(tornado_http1_connection_write(d.connection, tornado_bytes_of("abc"))));
        CHECK(sent(tornado_http1_connection_finish(d.connection)));
        CHECK(loop_until(d.done) == NULL);
        client_send(&d.peer, "more");
        stream_is_free(&d, "more");
        dialogue_end(&d);
    }
}

TEST(http1_connection_delegate_that_waits_at_the_end_leaves_a_stream_that_can_be_used)
{
    enum { EXTRA, END, MORE, CASES };
    for (int headers = 0; headers < 2; headers++)
        for (int what = 0; what < CASES; what++) {
            dialogue d = dialogue_open(true, NULL);
            tornado_future *gate = tornado_future_new();
            *(headers ? &d.seen.headers_future : &d.seen.data_future) = gate;
            dialogue_ask(&d, "GET");
            client_send(&d.peer, headers ? OK_ "Content-Length: 0\r\n\r\n" : OK_ "Content-Length: 2\r\n\r\nab");
            if (what == EXTRA)
                client_send(&d.peer, "EXTRA");
            while (headers ? !recorded(&d.seen)[0] : !d.seen.pieces)
                loop_turns(1);
            loop_turns(3);
            CHECK(!d.seen.over);
            tornado_future_set_result(gate, NULL, NULL);
            tornado_future_release(gate);
            CHECK(loop_until(d.done) == NULL);
            CHECK(d.seen.over);
            CHECK_INT(tornado_iostream_closed(d.stream), what == EXTRA);
            loop_turns(3);
            if (what == END) {
                shutdown(d.peer.fd, SHUT_WR);
                CHECK_INT(loop_code(tornado_iostream_read_bytes(d.stream, 1)), TORNADO_ERR_CLOSED);
            } else if (what == MORE) {
                client_send(&d.peer, "more");
                loop_turns(5); /* nobody reads */
                stream_is_free(&d, "more");
            }
            dialogue_end(&d);
        }
}

TEST(http1_connection_bytes_behind_a_response_are_no_response)
{
    static const struct {
        const char *response;
        bool open;
    } cases[] = {{OK_ "Content-Length: 0\r\n\r\nHTTP/1.1 299 Poison\r\nContent-Length: 0\r\n\r\n", false},
                 {OK_ "Content-Length: 1\r\n\r\na\r\n", false},
                 {OK_ "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", false},
                 {"HTTP/1.1 204 x\r\n\r\nx", false},
                 {"HTTP/1.1 101 x\r\n\r\n\x81\x02hi", true}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        dialogue d = dialogue_open(true, NULL);
        dialogue_ask(&d, "GET");
        client_send(&d.peer, cases[i].response);
        CHECK(loop_until(d.done) == NULL);
        if (tornado_iostream_closed(d.stream) == cases[i].open)
            FAIL("%s: the stream is %s", cases[i].response, cases[i].open ? "closed" : "open");
        if (cases[i].open)
            stream_is_free(&d, "\x81\x02hi");
        dialogue_end(&d);
    }
}

TEST(http1_connection_response_before_any_request_is_refused)
{
    for (int late = 0; late < 2; late++) {
        dialogue d = dialogue_open(true, NULL);
        if (!late)
            dialogue_read(&d);
        client_send(&d.peer, OK_ "Content-Length: 0\r\n\r\n");
        loop_turns(10);
        if (late)
            dialogue_read(&d);
        CHECK(is_error(loop_until(d.done), TORNADO_ERR_PARSE));
        CHECK(tornado_iostream_closed(d.stream));
        CHECK_STR(recorded(&d.seen), "!PARSE");
        dialogue_end(&d);
    }
}

TEST(http1_connection_piece_stays_while_its_future_is_pending)
{
    for (int held = 0; held < 2; held++) { /* whether the user still has the stream */
        dialogue d = dialogue_open(true, NULL);
        tornado_future *gate = d.seen.data_future = tornado_future_new();
        if (!held)
            tornado_iostream_release(d.stream);
        dialogue_ask(&d, "GET");
        client_send(&d.peer, OK_ "Content-Length: 6\r\n\r\nabc");
        while (!d.seen.pieces)
            loop_turns(1);
        tornado_http1_connection_close(d.connection);
        loop_turns(3);
        CHECK_MEM(d.seen.piece.data, d.seen.piece.len, "abc", 3);
        tornado_future_set_result(gate, NULL, NULL);
        tornado_future_release(gate);
        CHECK(is_error(loop_until(d.done), TORNADO_ERR_CLOSED));
        if (!held)
            d.stream = NULL;
        dialogue_end(&d);
    }
}

static void finish_both(void *self)
{
    CHECK(sent(tornado_http1_connection_finish(the_dialogue->connection)));
    CHECK_INT(failure(tornado_iostream_read_bytes(the_dialogue->stream, 4)), TORNADO_ERR_STATE); /* not yet */
    record_finish(self);
}

TEST(http1_connection_finish_that_ends_the_request_too_loses_nothing)
{
    static const tornado_http_message_delegate both = {.headers_received = record_headers, .data_received = record_data,
                                                       .finish = finish_both, .release = record_release};
    for (int pieces = 0; pieces < 2; pieces++) {
        static const char response[] = "HTTP/1.1 101 x\r\n\r\nWXYZ";
        size_t first = pieces ? 16 : sizeof response - 1;
        dialogue d = dialogue_open(true, NULL);
        the_dialogue = &d;
        dialogue_upload(&d, "0");
        d.done = tornado_http1_connection_read_response(d.connection, &both, &d.seen);
        client_send_bytes(&d.peer, response, first);
        while (pieces && !tornado_iostream_read_buffer_size(d.stream))
            loop_turns(1);
        client_send(&d.peer, response + first);
        CHECK(loop_until(d.done) == NULL);
        CHECK_STR(recorded(&d.seen), "HTTP/1.1 101 x;$");
        CHECK(!tornado_iostream_closed(d.stream));
        client_send(&d.peer, "more");
        stream_is_free(&d, "WXYZmore");
        dialogue_end(&d);
    }
}

static tornado_future *read_behind;

static void detach_and_read(void)
{
    detach_now();
    read_behind = tornado_iostream_read_bytes(detached, 4);
}

TEST(http1_connection_bytes_that_are_read_right_after_detach_stay)
{
    void *others[32];
    dialogue d = dialogue_open(true, NULL);
    the_dialogue = &d;
    d.seen.on_headers = detach_and_read;
    dialogue_ask(&d, "GET");
    client_send(&d.peer, "HTTP/1.1 101");
    while (!tornado_iostream_read_buffer_size(d.stream)) /* so that the bytes are in the stream's own buffer */
        loop_turns(1);
    client_send(&d.peer, " x\r\n\r\n\x81\x02hi");
    CHECK(loop_until(d.done) == NULL);
    for (size_t i = 0; i < COUNT(others); i++) { /* memory that was freed would be used again */
        CHECK((others[i] = malloc(4096)) != NULL);
        memset(others[i], 'x', 4096);
    }
    CHECK(loop_until(read_behind) == NULL);
    CHECK_MEM(tornado_future_bytes(read_behind).data, tornado_future_bytes(read_behind).len, "\x81\x02hi", 4);
    tornado_future_release(read_behind);
    for (size_t i = 0; i < COUNT(others); i++)
        free(others[i]);
    client_send(&d.peer, "more");
    stream_is_free(&d, "more");
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 101 x;");
    tornado_iostream_release(detached);
    dialogue_end(&d);
}

static void close_and_raise(void *self, const tornado_http_start_line *start, const tornado_http_headers *headers)
{
    record_informational(self, start, headers);
    tornado_http1_connection_close(the_dialogue->connection);
    tornado_raise(TORNADO_ERR_STATE, "no more");
}

TEST(http1_connection_informational_may_close_and_raise)
{
    static const tornado_http_message_delegate closing = {.informational = close_and_raise, .release = record_release,
                                                          .on_connection_close = record_close};
    log_keep();
    dialogue d = dialogue_open(true, NULL);
    the_dialogue = &d;
    dialogue_send(&d, "GET");
    d.done = tornado_http1_connection_read_response(d.connection, &closing, &d.seen);
    tornado_http1_connection_release(d.connection); /* it goes on, and is the last of it */
    client_send(&d.peer, "HTTP/1.1 103 Hints\r\n\r\n");
    CHECK(loop_until(d.done) != NULL);
    CHECK(strncmp(recorded(&d.seen), "(103)!", 6) == 0);
    CHECK_INT(logged("no more"), 1);
    CHECK(tornado_iostream_closed(d.stream));
    d.connection = NULL;
    dialogue_end(&d);
}

TEST(http1_connection_body_timeout_ends_with_the_body)
{
    enum { SIZE = 16 << 20 };
    tornado_http1_connection_parameters parameters = {.body_timeout = 0.3};
    dialogue d = dialogue_open(true, &parameters);
    char *body = calloc(1, SIZE), length[16];
    snprintf(length, sizeof length, "%d", SIZE);
    dialogue_upload(&d, length);
    dialogue_read(&d);
    tornado_future *written = tornado_http1_connection_write(d.connection, (tornado_bytes){body, SIZE});
    client_send(&d.peer, OK_ "Content-Length: 2\r\n\r\na");
    while (!d.seen.pieces)
        loop_turns(1);
    client_send(&d.peer, "b");
    while (!d.seen.over)
        loop_turns(1);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=2;ab$");
    loop_run_for(0.7);
    CHECK(!tornado_future_done(d.done) && !tornado_future_done(written));
    CHECK(!tornado_iostream_closed(d.stream));
    tornado_future *finished = tornado_http1_connection_finish(d.connection);
    peer_needs(&d, SIZE);
    CHECK_INT(loop_code(written), 0);
    CHECK_INT(loop_code(finished), 0);
    CHECK(loop_until(d.done) == NULL);
    free(body);
    dialogue_end(&d);
}

TEST(http1_connection_memory_that_runs_short_is_not_the_responses_fault)
{
    tornado_buffer response = {0};
    tornado_buffer_puts(&response, OK_ "Content-Length: 0\r\n");
    for (int i = 0; i < 200; i++)
        tornado_buffer_puts(&response, "A: b\r\n");
    tornado_buffer_puts(&response, "\r\n");
    log_keep();
    bool hit = true;
    int failed = 0;
    for (long n = 1; hit; n++) {
        dialogue d = dialogue_open(true, NULL);
        dialogue_ask(&d, "GET");
        loop_turns(3);
        client_send_bytes(&d.peer, response.data, response.len);
        long before = test_allocs();
        test_fail_alloc(n);
        while (!tornado_future_done(d.done))
            tornado_ioloop_run_once(tornado_ioloop_current(), 0.01);
        hit = test_allocs() - before >= n;
        test_fail_alloc(0);
        const tornado_error *error = tornado_future_error(d.done);
        if (error && error->code != TORNADO_ERR_NOMEM)
            FAIL("allocation %ld: %s: %s", n, tornado_error_name(error->code), error->message);
        failed += error != NULL;
        dialogue_end(&d);
    }
    CHECK(failed > 1);
    tornado_buffer_free(&response);
}

TEST(http1_connection_idle_timeout_is_none_of_a_clients)
{
    tornado_http1_connection_parameters parameters = {.idle_connection_timeout = 0.1};
    dialogue d = dialogue_open(true, &parameters);
    dialogue_ask(&d, "GET");
    client_send(&d.peer, OK_ "Content-Length: 10\r\n\r\n");
    for (int i = 0; i < 10; i++) {
        client_send(&d.peer, "x");
        loop_run_for(0.05);
    }
    CHECK(loop_until(d.done) == NULL);
    CHECK_STR(recorded(&d.seen), "HTTP/1.1 200 OK|Content-Length=10;xxxxxxxxxx$");
    dialogue_end(&d);
}

/*----------------------------------------------------------------------------
 * The server's role.
 *----------------------------------------------------------------------------*/

TEST(http1_connection_reads_one_request_and_answers_it)
{
    dialogue d = dialogue_open(false, NULL);
    CHECK_INT(failure(write_head(d.connection, 200, 0, NULL)), TORNADO_ERR_STATE);
    dialogue_read(&d);
    client_send(&d.peer, "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /next HTTP/1.1\r\n");
    while (!d.seen.over)
        loop_turns(1);
    CHECK_STR(recorded(&d.seen), "POST /p HTTP/1.1|Host=a|Content-Length=3;abc$");
    CHECK_STR(tornado_http1_connection_request(d.connection)->path, "/p");
    CHECK(!tornado_future_done(d.done));
    CHECK(sent(write_head(d.connection, 103, TORNADO_NONE, &(tornado_http_header){"Link", "x", 4, 1})));
    CHECK(sent(write_head(d.connection, 200, 2, NULL)));
    CHECK(sent(tornado_http1_connection_write(d.connection, tornado_bytes_of("ok"))));
    CHECK(sent(tornado_http1_connection_finish(d.connection)));
    CHECK(loop_until(d.done) == NULL);
    answer a;
    CHECK(client_answer(&d.peer, &a));
    CHECK_INT(a.status, 103);
    CHECK_STR(head_value(a.head, "Link"), "x");
    CHECK(client_answer(&d.peer, &a));
    CHECK_MEM(a.body.data, a.body.len, "ok", 2);
    tornado_future *rest = tornado_iostream_read_until(d.stream, "\r\n");
    CHECK(loop_until(rest) == NULL);
    CHECK_MEM(tornado_future_bytes(rest).data, tornado_future_bytes(rest).len, "GET /next HTTP/1.1\r\n", 20);
    tornado_future_release(rest);
    dialogue_end(&d);
}

TEST(http1_connection_refuses_one_bad_request)
{
    dialogue d = dialogue_open(false, NULL);
    dialogue_read(&d);
    client_send(&d.peer, "GET / HTTP/1.1\r\n\r\n");
    answer a;
    CHECK(client_answer(&d.peer, &a));
    CHECK_INT(a.status, 400);
    CHECK(is_error(loop_until(d.done), TORNADO_ERR_PARSE));
    CHECK_STR(recorded(&d.seen), ""); /* headers_received was not called, so nothing is */
    client_until_end(&d.peer);
    dialogue_end(&d);
}

TEST(http1_connection_for_one_request_does_not_wait_for_a_silent_client)
{
    tornado_http1_connection_parameters parameters = {.header_timeout = 0.2};
    for (int begun = 0; begun < 2; begun++) {
        dialogue d = dialogue_open(false, &parameters);
        dialogue_read(&d);
        if (begun)
            client_send(&d.peer, "GET / HT");
        CHECK(loop_until(d.done) != NULL);
        client_until_end(&d.peer);
        loop_turns(3);
        CHECK_STR(recorded(&d.seen), "");
        dialogue_end(&d);
    }
}

TEST(http1_connection_head_of_one_request_that_is_refused_fails_with_the_reason)
{
    static const struct {
        const char *head;
        int status, code;
    } cases[] = {{"GET / HTTP/1.1\nHost: a\r\n", 400, TORNADO_ERR_PARSE},
                 {"GET / HTTP/1.1\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 431, TORNADO_ERR_LIMIT},
                 {"GET /yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 414, TORNADO_ERR_LIMIT},
                 {"GET / HT", 408, TORNADO_ERR_TIMEOUT}};
    tornado_http1_connection_parameters parameters = {.max_header_size = 50};
    for (size_t i = 0; i < COUNT(cases); i++) {
        parameters.header_timeout = cases[i].code == TORNADO_ERR_TIMEOUT ? 0.5 : 0;
        dialogue d = dialogue_open(false, &parameters);
        answer a;
        dialogue_read(&d);
        client_send(&d.peer, cases[i].head);
        CHECK(client_answer(&d.peer, &a));
        CHECK_INT(a.status, cases[i].status);
        CHECK(is_error(loop_until(d.done), cases[i].code));
        CHECK_STR(recorded(&d.seen), "");
        client_until_end(&d.peer);
        dialogue_end(&d);
    }
}

static void answer_now(void)
{
    CHECK(sent(write_head(the_dialogue->connection, 200, 0, NULL)));
    CHECK(sent(tornado_http1_connection_finish(the_dialogue->connection)));
}

TEST(http1_connection_finish_is_not_told_of_a_request_that_was_answered_before)
{
    dialogue d = dialogue_open(false, NULL);
    answer a;
    the_dialogue = &d;
    d.seen.on_headers = answer_now;
    dialogue_read(&d);
    client_send(&d.peer, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK(loop_until(d.done) == NULL);
    CHECK_STR(recorded(&d.seen), "GET / HTTP/1.1|Host=a;");
    CHECK(client_answer(&d.peer, &a));
    CHECK_INT(a.status, 200);
    client_send(&d.peer, "more");
    stream_is_free(&d, "more");
    dialogue_end(&d);
}

TEST(http1_connection_for_one_request_is_over_when_its_answer_was_sent)
{
    enum { SIZE = 16 << 20 };
    tornado_http1_connection_parameters parameters = {.body_timeout = 0.3};
    char *body = calloc(1, SIZE);
    for (int close = 0; close < 2; close++) {
        dialogue d = dialogue_open(false, &parameters);
        dialogue_read(&d);
        client_send(&d.peer, close ? "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
                                   : "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        while (!d.seen.over)
            loop_turns(1);
        CHECK(sent(write_head(d.connection, 200, SIZE, NULL)));
        tornado_future *written = tornado_http1_connection_write(d.connection, (tornado_bytes){body, SIZE});
        tornado_future *finished = tornado_http1_connection_finish(d.connection);
        loop_run_for(0.7); /* which is no time for the body any more */
        CHECK(!tornado_future_done(written) && !tornado_future_done(finished));
        if (!close)
            CHECK(!tornado_future_done(d.done));
        CHECK(!tornado_iostream_closed(d.stream));
        answer a;
        CHECK(client_answer(&d.peer, &a));
        CHECK_INT(a.body.len, SIZE);
        CHECK_INT(loop_code(written), 0);
        CHECK_INT(loop_code(finished), 0);
        CHECK(loop_until(d.done) == NULL);
        if (close) {
            client_until_end(&d.peer);
        } else {
            client_send(&d.peer, "more");
            stream_is_free(&d, "more");
        }
        dialogue_end(&d);
    }
    free(body);
}

static tornado_future *allow_less(void *self, tornado_bytes chunk)
{
    if (!((recorder *)self)->pieces)
        tornado_http1_connection_set_max_body_size(the_dialogue->connection, 1);
    return record_data(self, chunk);
}

TEST(http1_connection_limit_below_what_has_come_is_a_limit)
{
    static const tornado_http_message_delegate less = {.headers_received = record_headers, .data_received = allow_less,
                                                       .finish = record_finish, .on_connection_close = record_close,
                                                       .release = record_release};
    dialogue d = dialogue_open(false, NULL);
    the_dialogue = &d;
    d.done = tornado_http1_connection_read_response(d.connection, &less, &d.seen);
    client_send(&d.peer, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
    while (!d.seen.pieces)
        loop_turns(1);
    client_send(&d.peer, "3\r\ncde\r\n0\r\n\r\n");
    answer a;
    CHECK(client_answer(&d.peer, &a));
    CHECK_INT(a.status, 413);
    CHECK(is_error(loop_until(d.done), TORNADO_ERR_LIMIT));
    CHECK_STR(recorded(&d.seen), "POST / HTTP/1.1|Host=a|Transfer-Encoding=chunked;ab!LIMIT");
    dialogue_end(&d);
}

static int server_closed;

static void server_on_close(void *self, tornado_http1_server_connection *connection)
{
    (void)self;
    CHECK(tornado_http1_server_connection_context(connection) == &server_closed);
    server_closed++;
}

static void echo_finish(void *self)
{
    tornado_http1_connection *c = self;
    tornado_bytes body = tornado_http1_connection_body(c);
    CHECK(tornado_http1_connection_context(c) == &server_closed);
    CHECK(sent(write_head(c, 200, (int64_t)body.len, NULL)));
    CHECK(sent(tornado_http1_connection_write(c, body)));
    CHECK(sent(tornado_http1_connection_finish(c)));
}

static const tornado_http_message_delegate *echo_start(void *self, tornado_http1_server_connection *server,
                                                       tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {.finish = echo_finish};
    (void)self;
    (void)server;
    *message = connection;
    return strcmp(tornado_http1_connection_request(connection)->path, "/none") == 0 ? NULL : &delegate;
}

static const tornado_http_server_connection_delegate echo_delegate = {.start_request = echo_start,
                                                                      .on_close = server_on_close};

TEST(http1_server_connection_serves_a_stream_until_it_is_closed)
{
    int ends[2];
    tcp_pair(ends);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    tornado_http1_server_connection *server = tornado_http1_server_connection_new(stream, NULL, &server_closed);
    tornado_iostream_release(stream);
    CHECK(server && tornado_http1_server_connection_start_serving(server, &echo_delegate, NULL));
    CHECK(!tornado_http1_server_connection_start_serving(server, &echo_delegate, NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    client c = {.fd = ends[1], .data = calloc(1, 1)};
    set_nonblocking(c.fd);
    for (int i = 0; i < 2; i++) {
        answer a = client_ask(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        CHECK_MEM(a.body.data, a.body.len, "hi", 2);
    }
    CHECK_INT(client_ask(&c, "GET /none HTTP/1.1\r\nHost: a\r\n\r\n").status, 503);
    CHECK_INT(server_closed, 0);
    CHECK_INT(loop_code(tornado_http1_server_connection_close(server)), 0);
    CHECK_INT(server_closed, 1);
    client_until_end(&c);
    client_close(&c);
    tornado_http1_server_connection_release(server);
}

TEST(http1_server_connection_goes_on_without_whoever_made_it)
{
    int ends[2];
    tcp_pair(ends);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    tornado_http1_connection_parameters parameters = {.no_keep_alive = true};
    tornado_http1_server_connection *server = tornado_http1_server_connection_new(stream, &parameters, &server_closed);
    tornado_iostream_release(stream);
    CHECK(server && tornado_http1_server_connection_start_serving(server, &echo_delegate, NULL));
    tornado_http1_server_connection_release(server);
    client c = {.fd = ends[1], .data = calloc(1, 1)};
    set_nonblocking(c.fd);
    answer a = client_ask(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    CHECK(a.close);
    client_until_end(&c);
    CHECK_INT(server_closed, 1);
    client_close(&c);
}

/* A server connection over a stream, with one delegate for all requests. */
static struct {
    tornado_http1_connection *connection; /* of the last request */
    tornado_iostream *stream;             /* detached from it */
    recorder seen;
    int requests;
} served;

static const tornado_http_message_delegate *record_start(void *self, tornado_http1_server_connection *server,
                                                         tornado_http1_connection *connection, void **message)
{
    (void)server;
    served.connection = connection;
    served.requests++;
    *message = &served.seen;
    return self;
}

static const tornado_http_server_connection_delegate record_requests = {.start_request = record_start};

static client serve_pair(const tornado_http1_connection_parameters *parameters,
                         const tornado_http_message_delegate *delegate)
{
    int ends[2];
    tcp_pair(ends);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    tornado_http1_server_connection *server = tornado_http1_server_connection_new(stream, parameters, NULL);
    tornado_iostream_release(stream);
    CHECK(server != NULL);
    CHECK(tornado_http1_server_connection_start_serving(server, &record_requests, (void *)(uintptr_t)delegate));
    tornado_http1_server_connection_release(server);
    client c = {.fd = ends[1], .data = calloc(1, 1)};
    set_nonblocking(c.fd);
    return c;
}

static void detach_served(void)
{
    served.stream = tornado_http1_connection_detach(served.connection);
    CHECK(served.stream != NULL);
}

TEST(http1_server_connection_that_is_detached_from_leaves_the_rest_alone)
{
    static const char *const behind[] = {"GET /next HTTP/1.1\r\nHost: a\r\n\r\n", "GET /ne", "\x81\x02hi", "\r\n\r\n"};
    tornado_http1_connection_parameters parameters = {.header_timeout = 0.2, .idle_connection_timeout = 0.2};
    for (size_t i = 0; i < COUNT(behind); i++) {
        char request[200];
        memset(&served, 0, sizeof served);
        served.seen.on_headers = detach_served;
        client c = serve_pair(&parameters, &recording);
        snprintf(request, sizeof request, "GET /up HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n%s", behind[i]);
        client_send(&c, request);
        while (!served.stream)
            loop_turns(1);
        loop_run_for(0.6);
        CHECK_INT(served.requests, 1);
        CHECK(!tornado_iostream_closed(served.stream));
        tornado_future *read = tornado_iostream_read_bytes(served.stream, strlen(behind[i]));
        CHECK(loop_until(read) == NULL);
        CHECK_MEM(tornado_future_bytes(read).data, tornado_future_bytes(read).len, behind[i], strlen(behind[i]));
        tornado_future_release(read);
        CHECK_INT(loop_code(tornado_iostream_write(served.stream, tornado_bytes_of("raw"))), 0);
        CHECK(client_need(&c, 3));
        CHECK_STR(c.data, "raw");
        CHECK_STR(recorded(&served.seen), "GET /up HTTP/1.1|Host=a|Upgrade=x;");
        tornado_iostream_release(served.stream);
        client_close(&c);
        loop_turns(2);
        recorder_end(&served.seen);
    }
}

TEST(http1_server_connection_piece_stays_when_the_answer_comes_early)
{
    memset(&served, 0, sizeof served);
    tornado_future *gate = served.seen.data_future = tornado_future_new();
    client c = serve_pair(NULL, &recording);
    client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc");
    while (!served.seen.pieces)
        loop_turns(1);
    CHECK(sent(write_head(served.connection, 413, 0, NULL)));
    CHECK(sent(tornado_http1_connection_finish(served.connection)));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 413);
    for (int i = 0; i < 5; i++) {
        client_send(&c, "defghijk");
        loop_turns(3);
        CHECK_MEM(served.seen.piece.data, served.seen.piece.len, "abc", 3);
    }
    tornado_future_set_result(gate, NULL, NULL);
    tornado_future_release(gate);
    client_close(&c);
    while (!served.seen.released)
        loop_turns(1);
    loop_turns(2); /* it lingered */
    CHECK_INT(served.seen.pieces, 1);
    recorder_end(&served.seen);
}

static bool closes_in_data;

static tornado_future *answer_in_data(void *self, tornado_bytes chunk)
{
    if (closes_in_data) {
        tornado_http1_connection_close(served.connection);
    } else {
        CHECK(sent(write_head(served.connection, 413, 0, NULL)));
        CHECK(sent(tornado_http1_connection_finish(served.connection)));
    }
    return record_data(self, chunk);
}

TEST(http1_server_connection_piece_stays_when_data_received_answers_or_closes_and_waits)
{
    static const tornado_http_message_delegate answering = {.data_received = answer_in_data, .release = record_release};
    for (int i = 0; i < 4; i++) {
        memset(&served, 0, sizeof served);
        closes_in_data = i % 2;
        tornado_future *gate = served.seen.data_future = tornado_future_new();
        client c = serve_pair(NULL, &answering), other = serve_pair(NULL, &answering);
        client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n");
        if (i < 2)
            loop_turns(3); /* the head is in the stream's own buffer */
        client_send(&c, "\r\nabc");
        while (!served.seen.pieces)
            loop_turns(1);
        char more[20000];
        memset(more, 'd', sizeof more);
        for (int k = 0; k < 10; k++) { /* what others send comes to the same memory */
            client_send_bytes(&c, more, sizeof more);
            for (int lines = 0; lines < 50; lines++)
                client_send(&other, "\r\n");
            loop_turns(3);
        }
        CHECK_MEM(served.seen.piece.data, served.seen.piece.len, "abc", 3);
        client_close(&c);
        client_close(&other);
        loop_turns(5);
        CHECK_MEM(served.seen.piece.data, served.seen.piece.len, "abc", 3);
        tornado_future_set_result(gate, NULL, NULL);
        tornado_future_release(gate);
        while (!served.seen.released)
            loop_turns(1);
        loop_turns(2);
        CHECK_INT(served.seen.pieces, 1);
        recorder_end(&served.seen);
    }
}

TEST(http1_server_connection_piece_stays_when_the_body_takes_too_long)
{
    tornado_http1_connection_parameters parameters = {.body_timeout = 0.05};
    char more[20000];
    answer a;
    memset(&served, 0, sizeof served);
    memset(more, 'd', sizeof more);
    tornado_future *gate = served.seen.data_future = tornado_future_new();
    client c = serve_pair(&parameters, &recording);
    client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 408);
    for (int i = 0; i < 5; i++) { /* it lingers, and drops what comes */
        client_send_bytes(&c, more, sizeof more);
        loop_turns(3);
        CHECK_MEM(served.seen.piece.data, served.seen.piece.len, "abc", 3);
    }
    CHECK(!served.seen.over);
    tornado_future_set_result(gate, NULL, NULL);
    tornado_future_release(gate);
    client_close(&c);
    while (!served.seen.released)
        loop_turns(1);
    loop_turns(2);
    CHECK_STR(recorded(&served.seen), "POST / HTTP/1.1|Host=a|Content-Length=1000000;abc!TIMEOUT");
    recorder_end(&served.seen);
}

/* A socket that takes nothing at the first attempt after each read, and everything at the second. */
static ptrdiff_t moody_read(void *state, int fd, void *data, size_t room)
{
    *(bool *)state = true;
    return recv(fd, data, room, 0);
}

static ptrdiff_t moody_write(void *state, int fd, const void *data, size_t len)
{
    bool *refuses = state;
    if (!*refuses)
        return send(fd, data, len, MSG_NOSIGNAL);
    *refuses = false;
    errno = EAGAIN;
    return -1;
}

static void moody_close(void *state, int fd)
{
    (void)state;
    if (fd >= 0)
        close(fd);
}

TEST(http1_server_connection_goes_on_when_the_client_reads_at_the_second_attempt)
{
    enum { REQUESTS = 400 }; /* whose answers are more than one chunk */
    static const tornado_iostream_backend moody = {.read_from_fd = moody_read, .write_to_fd = moody_write,
                                                   .close_fd = moody_close};
    bool refuses = false;
    int ends[2];
    tcp_pair(ends);
    set_nonblocking(ends[0]);
    tornado_iostream *stream =
        tornado_iostream_new(ends[0], &(tornado_iostream_options){.backend = &moody, .backend_state = &refuses});
    tornado_http1_server_connection *server = tornado_http1_server_connection_new(stream, NULL, &server_closed);
    tornado_iostream_release(stream);
    CHECK(server && tornado_http1_server_connection_start_serving(server, &echo_delegate, NULL));
    tornado_http1_server_connection_release(server);
    client c = {.fd = ends[1], .data = calloc(1, 1)};
    set_nonblocking(c.fd);
    tornado_buffer requests = {0};
    for (int i = 0; i < REQUESTS; i++)
        tornado_buffer_puts(&requests, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client_send_bytes(&c, requests.data, requests.len);
    tornado_buffer_free(&requests);
    for (int i = 0; i < REQUESTS; i++) {
        answer a;
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, 200);
    }
    client_close(&c);
    server_closed = 0;
    while (!server_closed)
        loop_turns(1);
}

/*----------------------------------------------------------------------------
 * Bodies that are compressed.
 *----------------------------------------------------------------------------*/

/* A response with a body that gzip has compressed, and perhaps cut or spoiled. */
static tornado_buffer gzip_response(size_t len, size_t cut, bool spoil)
{
    tornado_buffer text = {0}, body = {0}, response = {0};
    for (size_t i = 0; i < len; i++)
        tornado_buffer_append(&text, "x", 1);
    tornado_compressor_options options = {.format = TORNADO_ZIP_GZIP};
    CHECK(tornado_compress(&body, (tornado_bytes){text.data, text.len}, &options));
    if (spoil)
        body.data[body.len - 6] ^= 1; /* the checksum */
    body.len -= cut;
    tornado_buffer_printf(&response, OK_ "Content-Encoding: gzip\r\nContent-Length: %zu\r\n\r\n", body.len);
    tornado_buffer_append(&response, body.data, body.len);
    tornado_buffer_free(&text);
    tornado_buffer_free(&body);
    return response;
}

TEST(http1_connection_decompresses_bodies_within_the_limit)
{
    static const struct {
        size_t len, cut;
        bool spoil, wait;
        int code;
    } cases[] = {{10, 0, false, false, 0},
                 {900, 0, false, false, 0},
                 {900, 0, false, true, 0},
                 {1000000, 0, false, false, TORNADO_ERR_LIMIT}, /* of less than a thousand bytes */
                 {900, 4, false, false, TORNADO_ERR_PARSE},
                 {900, 0, true, false, TORNADO_ERR_PARSE}};
    tornado_http1_connection_parameters parameters = {.decompress = TORNADO_GUNZIP, .max_body_size = 1000,
                                                      .chunk_size = 100};
    for (size_t i = 0; i < COUNT(cases); i++) {
        tornado_buffer response = gzip_response(cases[i].len, cases[i].cut, cases[i].spoil);
        dialogue d = dialogue_open(true, &parameters);
        tornado_future *gate = tornado_future_new();
        d.seen.data_future = cases[i].wait ? gate : NULL;
        dialogue_ask(&d, "GET");
        client_send_bytes(&d.peer, response.data, response.len);
        while (cases[i].wait && !d.seen.pieces)
            loop_turns(1);
        tornado_future_set_result(gate, NULL, NULL);
        const tornado_error *error = loop_until(d.done);
        if ((error ? error->code : 0) != cases[i].code)
            FAIL("case %zu: %s", i, error ? error->message : "no error");
        if (!error) {
            const char *body = strchr(recorded(&d.seen), ';') + 1;
            CHECK_INT(strspn(body, "x"), cases[i].len);
            CHECK_STR(body + cases[i].len, "$");
            CHECK(strstr(recorded(&d.seen), "|X-Consumed-Content-Encoding=gzip|") != NULL);
            CHECK_INT(d.seen.pieces, (cases[i].len + 99) / 100);
        } else {
            CHECK(strchr(recorded(&d.seen), '$') == NULL);
        }
        tornado_future_release(gate);
        tornado_buffer_free(&response);
        dialogue_end(&d);
    }
}
