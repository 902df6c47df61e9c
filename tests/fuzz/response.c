/* Responses as a client reads them, RFC 9112: the delegate is told one end, and the same whether they come at once or in
   pieces. The first byte of an input chooses the request, what is decoded, and the pieces. */
#include "fuzz.h"

#include <sys/socket.h>

typedef struct outcome {
    int starts, code, finished, closed, error;
    size_t headers, len;
    uint32_t sum;
} outcome;

static tornado_future *headers_received(void *self, const tornado_http_start_line *start,
                                        const tornado_http_headers *headers)
{
    outcome *o = self;
    MUST(!o->finished && !o->closed && start->code >= 100);
    o->starts++;
    o->code = start->code;
    o->headers = headers->count;
    return NULL;
}

static tornado_future *data_received(void *self, tornado_bytes chunk)
{
    outcome *o = self;
    MUST(o->starts == 1 && !o->finished && !o->closed && chunk.len > 0);
    o->len += chunk.len;
    for (size_t i = 0; i < chunk.len; i++)
        o->sum = o->sum * 31 + (unsigned char)chunk.data[i];
    return NULL;
}

static void finish(void *self)
{
    outcome *o = self;
    MUST(o->starts == 1);
    o->finished++;
}

static void closed(void *self, const tornado_error *error)
{
    outcome *o = self;
    o->closed++;
    o->error = error->code;
    MUST(o->error != 0);
}

static const tornado_http_message_delegate delegate = {.headers_received = headers_received,
    .data_received = data_received, .finish = finish, .on_connection_close = closed};

static void turn(int times)
{
    while (times-- > 0)
        MUST(tornado_ioloop_run_once(tornado_ioloop_current(), 0));
}

static outcome read_response(const uint8_t *data, size_t size, size_t piece, unsigned mode)
{
    int ends[2];
    outcome o = {0};
    const char *method = mode & 1 ? "HEAD" : "GET";
    tornado_http_header host = {"Host", "a", 4, 1};
    tornado_http_headers headers = {.items = &host, .count = 1};
    tornado_http_start_line start = {.method = method, .path = "/"};
    tornado_http1_connection_parameters parameters = {.max_body_size = 4096,
                                                      .decompress = mode & 2 ? TORNADO_GUNZIP : NULL};
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    tornado_http1_connection *c = tornado_http1_connection_new(stream, true, &parameters, NULL);
    MUST(c != NULL);
    tornado_future_release(tornado_http1_connection_write_headers(c, &start, &headers, NULL));
    tornado_future_release(tornado_http1_connection_finish(c));
    tornado_future *read = tornado_http1_connection_read_response(c, &delegate, &o);
    for (size_t at = 0; at < size; at += piece) {
        size_t len = size - at < piece ? size - at : piece;
        MUST(send(ends[1], data + at, len, MSG_NOSIGNAL) == (ssize_t)len || o.finished || o.closed);
        turn(1);
    }
    shutdown(ends[1], SHUT_WR);
    for (int i = 0; i < 100 && !tornado_future_done(read); i++)
        turn(1);
    MUST(tornado_future_done(read) && o.finished + o.closed == 1);
    MUST((tornado_future_error(read) != NULL) == (o.closed == 1));
    tornado_future_release(read);
    tornado_http1_connection_release(c);
    tornado_iostream_close(stream);
    tornado_iostream_release(stream);
    close(ends[1]);
    turn(2);
    return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    static const tornado_log_options quiet = {.level = TORNADO_LOG_OFF};
    tornado_enable_pretty_logging(&quiet);
    unsigned mode = data[0];
    outcome whole = read_response(data + 1, size - 1, size, mode);
    outcome pieces = read_response(data + 1, size - 1, 1 + mode / 4 % 16, mode);
    MUST(whole.starts == pieces.starts && whole.code == pieces.code && whole.headers == pieces.headers);
    MUST(whole.finished == pieces.finished && whole.error == pieces.error);
    MUST(!whole.finished || (whole.len == pieces.len && whole.sum == pieces.sum));
    return 0;
}
