/* Chunked bodies, RFC 9112 section 7.1: against a decoder that is slow and plain and sees all at once, while the
   connection gets them in pieces.
 *
 * An input is a byte that says how long pieces are, one that chooses limits, and what follows the head. */
#include "fuzz.h"

enum { COMPLETE, WAITING, REFUSED };

typedef struct outcome {
    int how;
    size_t used; /* of what is complete: how long it is */
    tornado_buffer body;
    size_t trailers;
} outcome;

/*----------------------------------------------------------------------------
 * The slow decoder.
 *----------------------------------------------------------------------------*/

/* One line's length with its CRLF; 0: there is none yet; -1: it is malformed. */
static long plain_line(const char *text, size_t len)
{
    for (size_t i = 0; i < len && i < TORNADO__CHUNK_LINE_MAX; i++)
        if (text[i] == '\n')
            return i > 0 && text[i - 1] == '\r' ? (long)i + 1 : -1;
    return len >= TORNADO__CHUNK_LINE_MAX ? -1 : 0;
}

/* A chunk's size in its line, or -1: malformed, or more than `most`. */
static long plain_size(const char *line, size_t len, size_t most)
{
    char digits[32], *end;
    size_t count = 0, at = 0;
    while (at < len && strchr("0123456789abcdefABCDEF", line[at]) && line[at]) {
        if (line[at] != '0' || count) /* a size may begin with any number of zeros */
            digits[count++] = line[at];
        at++;
        if (count == 17)
            return -1;
    }
    digits[count] = '\0';
    if (at == 0)
        return -1;
    if (at < len) {
        while (at < len && (line[at] == ' ' || line[at] == '\t'))
            at++;
        if (at == len || line[at] != ';')
            return -1;
        for (; at < len; at++)
            if (((unsigned char)line[at] < ' ' && line[at] != '\t') || line[at] == 0x7f)
                return -1;
    }
    unsigned long long size = strtoull(digits, &end, 16);
    return size > most ? -1 : (long)size;
}

/* Whether a field may not be a trailer. */
static bool is_forbidden(const char *name, size_t len)
{
    static const char all[] = " age authorization cache-control connection content-encoding content-length content-range"
                              " content-type cookie date expect expires host keep-alive location max-forwards pragma"
                              " proxy-authenticate proxy-authorization range retry-after set-cookie te trailer"
                              " transfer-encoding upgrade vary warning www-authenticate ";
    char word[40];
    if (len > 3 && strncasecmp(name, "if-", 3) == 0)
        return true;
    return len < 30 && snprintf(word, sizeof word, " %.*s ", (int)len, name) && strcasestr(all, word);
}

/* Trailers, with the blank line behind them. */
static int plain_trailers(const char *text, size_t len, size_t most, outcome *o)
{
    const char *end = NULL, *value;
    size_t name, value_len, used = 0;
    if (len >= 2 && text[0] == '\r' && text[1] == '\n') {
        o->used += 2;
        return COMPLETE;
    }
    if (len < 2 && (len == 0 || text[0] == '\r'))
        return WAITING;
    for (size_t i = 2; i < len && !end; i++)
        if (memcmp(text + i - 2, "\n\r\n", 3) == 0)
            end = text + i + 1;
    if (!end) {
        for (size_t i = 0; i < len; i++)
            if (text[i] == '\n' && (i == 0 || text[i - 1] != '\r'))
                return REFUSED;
        return len > most ? REFUSED : WAITING;
    }
    if ((size_t)(end - text) > most)
        return REFUSED;
    while (text + used < end - 2) {
        size_t line = fuzz_header(text + used, (size_t)(end - text) - used, &name, &value, &value_len);
        if (!line || ++o->trailers > TORNADO_MAX_HEADERS || is_forbidden(text + used, name))
            return REFUSED;
        used += line;
    }
    o->used += used + 2;
    return COMPLETE;
}

static void decode(const char *text, size_t len, size_t most_body, size_t most_head, outcome *o)
{
    for (o->how = REFUSED;;) {
        const char *at = text + o->used;
        size_t left = len - o->used;
        long line = plain_line(at, left), size;
        if (line <= 0) {
            o->how = line ? REFUSED : WAITING;
            return;
        }
        size = plain_size(at, (size_t)line - 2, most_body - o->body.len);
        if (size < 0)
            return;
        o->used += (size_t)line;
        at += line;
        left -= (size_t)line;
        if (size == 0) {
            o->how = plain_trailers(at, left, most_head, o);
            return;
        }
        size_t part = left < (size_t)size ? left : (size_t)size;
        MUST(tornado_buffer_append(&o->body, at, part));
        if ((left > (size_t)size && at[size] != '\r') || (left > (size_t)size + 1 && at[size + 1] != '\n'))
            return;
        if (left < (size_t)size + 2) {
            o->how = WAITING;
            return;
        }
        o->used += (size_t)size + 2;
    }
}

/*----------------------------------------------------------------------------
 * The connection.
 *----------------------------------------------------------------------------*/

static outcome got;

static tornado_future *take(void *self, tornado_bytes chunk)
{
    MUST(self && chunk.len && got.how == WAITING && tornado_buffer_append(&got.body, chunk.data, chunk.len));
    return NULL;
}

static void complete(void *self)
{
    MUST(got.how == WAITING);
    got.how = COMPLETE;
    got.trailers = tornado_http1_connection_trailers(self)->count;
}

static const tornado_http_message_delegate *begin(void *self, tornado_http1_server_connection *server,
                                                  tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {.data_received = take, .finish = complete};
    MUST(!self && server);
    *message = connection;
    return &delegate;
}

/* Gives a connection a text in pieces, as its stream does: what it did not use comes again, with more behind it. */
static void feed(tornado_httpserver *server, const char *text, size_t len, size_t piece)
{
    tornado__http1 *connection = TORNADO__CONTAINER(server->host.connections.next, tornado__http1, link);
    char head[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    size_t end = 0;
    tornado__iostream_retain(&connection->own);
    MUST(tornado__http1_data(&connection->own, head, sizeof head - 1) == sizeof head - 1);
    while (end < len && got.how == WAITING) {
        end = len - end > piece ? end + piece : len;
        char *data = fuzz_copy(text + got.used, end - got.used);
        size_t used = tornado__http1_data(&connection->own, data, end - got.used);
        MUST(used <= end - got.used);
        got.used += used;
        free(data);
        if (connection->closing || connection->own.closed)
            got.how = REFUSED;
    }
    tornado__iostream_release(&connection->own);
}

/* What a refusal says. */
static void check_answer(int fd)
{
    char answer[1024];
    ssize_t len = recv(fd, answer, sizeof answer - 1, MSG_DONTWAIT);
    MUST(len > 12);
    answer[len] = '\0';
    MUST(strncmp(answer, "HTTP/1.1 400 ", 13) == 0 || strncmp(answer, "HTTP/1.1 413 ", 13) == 0 ||
         strncmp(answer, "HTTP/1.1 431 ", 13) == 0);
    MUST(strstr(answer, "\r\nConnection: close\r\n\r\n") == answer + len - 23);
}

static void run(const char *text, size_t len, size_t piece, const tornado_httpserver_options *options)
{
    static const tornado_http_server_connection_delegate delegate = {.start_request = begin};
    tornado_httpserver *server = tornado_httpserver_new(&delegate, NULL, options);
    tornado_address address;
    int ends[2];
    MUST(server && tornado_address_ip(&address, "127.0.0.1", 1));
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    MUST(tornado__httpserver_activate(server) && tornado__http1_serve(&server->host, ends[0], &address));
    got = (outcome){.how = WAITING};
    feed(server, text, len, piece);
    if (got.how == REFUSED)
        check_answer(ends[1]);
    tornado_httpserver_free(server);
    close(ends[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    tornado_log_options quiet = {.level = TORNADO_LOG_OFF};
    static const int bodies[] = {1000000, 1000, 16, 3}, heads[] = {65536, 64};
    tornado_httpserver_options options = {.max_body_size = bodies[data[1] & 3],
                                          .max_header_size = (size_t)heads[data[1] >> 2 & 1]};
    size_t pieces[] = {size, 1 + data[0] % 16}, len = size - 2;
    outcome want = {.how = WAITING};
    const char *text = (const char *)data + 2;
    tornado_enable_pretty_logging(&quiet);
    decode(text, len, (size_t)options.max_body_size, options.max_header_size, &want);
    for (int i = 0; i < 2; i++) {
        run(text, len, pieces[i], &options);
        MUST(got.how == want.how);
        if (want.how == COMPLETE)
            MUST(got.used == want.used && got.trailers == want.trailers);
        if (want.how != REFUSED)
            MUST(tornado_bytes_equal((tornado_bytes){got.body.data, got.body.len},
                                     (tornado_bytes){want.body.data, want.body.len}));
        tornado_buffer_free(&got.body);
    }
    tornado_buffer_free(&want.body);
    return 0;
}
