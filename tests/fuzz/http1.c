/* What a stranger sends to an HTTP server.
 *
 * An input is one character, of whose bits the modes are made (so "0" is the plain application), and what the
 * client sends. Two bytes mean something else: 0xff that the client pauses there until the server waits for more;
 * 0xfe that the byte before it is repeated, 64 times what the byte after it says. The server is a real one on one
 * end of a socket pair. The loop is a real one, too, whose poller plays the client whenever the loop would wait, so
 * that nothing depends on time.
 *
 * The same bytes are sent as the input cuts them, whole, and a few at a time. What must be true: what comes back is
 * a sequence of well-formed answers, one for each request that a handler answered, and the same each time; the
 * connection then ends, or serves another request; and nothing is left of it in memory.
 */
#include "fuzz.h"

enum { DELEGATE = 1, SMALL_LIMITS = 2, NO_KEEP_ALIVE = 4, END_EARLY = 8 };
enum { CUT = 0xff, REPEAT = 0xfe, LONGEST = 200000 };
enum { PIECES = 400 }; /* what is longer than so many bytes is sent two by two, and so on */

/*----------------------------------------------------------------------------
 * The client, in place of a poller.
 *----------------------------------------------------------------------------*/

static struct {
    /* what the loop watches; its wake-up pipe is nothing to us */
    int fd;
    unsigned events;
    uint64_t key;
    bool watched;
    /* the client */
    int socket;
    const uint8_t *data; /* not sent yet */
    size_t len;
    size_t piece;        /* bytes at a time; 0: all */
    bool by_cuts, shut_at_end;
    bool drained;        /* the server has just read what there was */
    bool ended;          /* the server has closed */
    tornado_buffer got;
} wire;

static tornado_ioloop *loop;

static void *wire_open(void)
{
    return &wire;
}

static void wire_close(void *state)
{
    (void)state;
}

static int wire_watch(void *state, int fd, unsigned events, uint64_t key)
{
    (void)state;
    if (fd == wire.fd) {
        wire.watched = true;
        wire.events = events;
        wire.key = key;
    }
    return 0;
}

static int wire_remove(void *state, int fd)
{
    (void)state;
    if (fd == wire.fd)
        wire.watched = false;
    return 0;
}

/* Reads what the server has sent; false when there was nothing. */
static bool client_read(void)
{
    bool some = false;
    while (!wire.ended) {
        char *at = tornado_buffer_reserve(&wire.got, 65536);
        MUST(at != NULL);
        ssize_t got = recv(wire.socket, at, 65536, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (got > 0)
            wire.got.len += (size_t)got;
        else
            wire.ended = true;
        some = true;
    }
    return some;
}

/* Sends the next piece; false when there is none, or the server does not take it. */
static bool client_send(void)
{
    size_t len = wire.len;
    if (wire.by_cuts && len) {
        const uint8_t *cut = memchr(wire.data, CUT, len);
        if (cut == wire.data) {
            wire.data++;
            wire.len--;
            return true;
        }
        len = cut ? (size_t)(cut - wire.data) : len;
    }
    if (wire.piece && len > wire.piece)
        len = wire.piece;
    if (len) {
        ssize_t sent = send(wire.socket, wire.data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN)
            return false;
        if (sent < 0) { /* the server has closed: it drops the rest */
            wire.len = 0;
            return false;
        }
        wire.data += sent;
        wire.len -= (size_t)sent;
        if (wire.len || !wire.shut_at_end)
            return true;
    }
    if (wire.shut_at_end) { /* right behind the last bytes */
        wire.shut_at_end = false;
        shutdown(wire.socket, SHUT_WR);
        return true;
    }
    return false;
}

static int wire_wait(void *state, tornado_poller_event *events, int max, int64_t timeout)
{
    (void)state;
    (void)max;
    events[0].key = wire.key;
    for (;;) {
        if (wire.watched && !(wire.drained && wire.events == (POLLIN | POLLERR | POLLHUP))) {
            struct pollfd look = {wire.fd, (short)wire.events, 0};
            if (poll(&look, 1, 0) == 1) {
                events[0].events = (unsigned)look.revents;
                return 1;
            }
        }
        wire.drained = false;
        if (timeout == 0)
            return 0;
        if (client_send()) {
            if (!wire.piece || !wire.len || !wire.watched || !(wire.events & POLLIN))
                continue;
            wire.drained = true; /* so few: no need to ask whether they are there, nor whether they are gone */
            events[0].events = POLLIN;
            return 1;
        }
        if (client_read())
            continue;
        if (timeout > 0 && timeout <= 10000000) { /* a handler sleeps */
            fuzz_ns += timeout;
            return 0;
        }
        tornado_ioloop_stop(loop);
        return 0;
    }
}

static const tornado_poller wire_poller = {"wire",     wire_open,   wire_close, wire_watch,
                                           wire_watch, wire_remove, wire_wait, NULL};

/*----------------------------------------------------------------------------
 * What a handler may rely on.
 *----------------------------------------------------------------------------*/

static bool has_control(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (((unsigned char)text[i] < ' ' && text[i] != '\t') || text[i] == 0x7f)
            return true;
    return false;
}

static bool is_token(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!strchr("!#$%&'*+-.^_`|~", text[i]) && !(text[i] >= '0' && text[i] <= '9') &&
            !((text[i] | 32) >= 'a' && (text[i] | 32) <= 'z'))
            return false;
    return len > 0 && !memchr(text, '\0', len);
}

static void check_headers(const tornado_http_headers *headers)
{
    MUST(headers->count <= TORNADO_MAX_HEADERS);
    for (size_t i = 0; i < headers->count; i++) {
        const tornado_http_header *header = &headers->items[i];
        MUST(strlen(header->name) == header->name_len && is_token(header->name, header->name_len));
        MUST(strlen(header->value) == header->value_len && !has_control(header->value, header->value_len));
        if (header->value_len)
            MUST(!strchr(" \t", header->value[0]) && !strchr(" \t", header->value[header->value_len - 1]));
    }
}

static size_t count_headers(const tornado_http_headers *headers, const char *name)
{
    size_t count = 0;
    for (const tornado_http_header *at = NULL; (at = tornado_http_headers_find(headers, name, at)) != NULL;)
        count++;
    return count;
}

/* RFC 9112: what decides where a message ends was unambiguous. */
static void check_request(tornado_http_request *request)
{
    const tornado_http_headers *headers = &request->headers;
    const char *length = tornado_http_request_header(request, "content-LENGTH");
    bool http11 = strcmp(request->version, "HTTP/1.0") != 0;
    MUST(is_token(request->method, strlen(request->method)));
    MUST(strncmp(request->version, "HTTP/1.", 7) == 0 && strlen(request->version) == 8);
    MUST(request->uri[0] && !has_control(request->uri, strlen(request->uri)) && !strpbrk(request->uri, " \t#"));
    MUST(request->path[0] && !strchr(request->path, '?'));
    MUST(request->path[0] == '/' || strcmp(request->method, "CONNECT") == 0 ||
         (strcmp(request->path, "*") == 0 && strcmp(request->method, "OPTIONS") == 0));
    const char *query = strchr(request->uri, '?');
    MUST(strcmp(request->query, query ? query + 1 : "") == 0);
    MUST(strcmp(request->remote_ip, "127.0.0.1") == 0 && strcmp(request->protocol, "http") == 0);
    check_headers(headers);
    check_headers(&request->trailers);
    MUST(count_headers(headers, "Host") == 1 || (!http11 && count_headers(headers, "Host") == 0));
    MUST(!has_control(request->host, strlen(request->host)) && !strpbrk(request->host, " \t/\\@?#"));
    MUST(count_headers(headers, "Content-Length") + count_headers(headers, "Transfer-Encoding") <= 1);
    if (count_headers(headers, "Transfer-Encoding"))
        MUST(http11 && strcasecmp(tornado_http_request_header(request, "transfer-encoding"), "chunked") == 0);
    else
        MUST(request->trailers.count == 0);
    if (length)
        MUST(*length && strspn(length, "0123456789") == strlen(length));
}

static bool body_is_announced(tornado_http_request *request, size_t len)
{
    const char *length = tornado_http_request_header(request, "Content-Length");
    if (length)
        return strtoull(length, NULL, 10) == len;
    return len == 0 || count_headers(&request->headers, "Transfer-Encoding") == 1;
}

static void check_body(tornado_http_request *request)
{
    MUST(request->body.data && request->body.data[request->body.len] == '\0');
    MUST(body_is_announced(request, request->body.len));
}

/* All that a handler sees of a request. */
static void dump(tornado_buffer *out, const tornado_http_request *request)
{
    const tornado_http_headers *both[] = {&request->headers, &request->trailers};
    tornado_buffer_printf(out, "%s %s %s\npath %s\nquery %s\nhost %s\n", request->method, request->uri,
                          request->version, request->path, request->query, request->host);
    for (int i = 0; i < 2; i++)
        for (size_t j = 0; j < both[i]->count; j++)
            tornado_buffer_printf(out, "%d %s: %s\n", i, both[i]->items[j].name, both[i]->items[j].value);
}

/*----------------------------------------------------------------------------
 * Answers that are expected, in the order in which handlers gave them.
 *----------------------------------------------------------------------------*/

typedef struct expected {
    int status;
    bool head, broken; /* to HEAD; its handler breaks off */
} expected;

static struct {
    expected items[4096];
    size_t count;
} told;

static void tell(int status, bool head, bool broken)
{
    if (told.count < TORNADO__COUNT(told.items))
        told.items[told.count++] = (expected){status, head, broken};
}

/*----------------------------------------------------------------------------
 * The application.
 *----------------------------------------------------------------------------*/

static void app_log(tornado_handler *self)
{
    tell(tornado_get_status(self), strcmp(self->request->method, "HEAD") == 0,
         strcmp(self->request->path, "/short") == 0);
}

static void app_prepare(tornado_handler *self)
{
    check_request(self->request);
    check_body(self->request);
}

static void release_buffer(void *buffer)
{
    tornado_buffer_free(buffer);
}

static void dump_any(tornado_handler *self)
{
    tornado_buffer *text = tornado_alloc(self, sizeof *text);
    tornado_defer(release_buffer, text);
    dump(text, self->request);
    tornado_buffer_append(text, self->request->body.data, self->request->body.len);
    MUST(!text->failed);
    tornado_write_bytes(self, (tornado_bytes){text->data, text->len});
}

static void dump_closed(tornado_handler *self)
{
    tornado_await(tornado_moment());
    check_request(self->request);
    MUST(!tornado_connected(self) || tornado_finished(self));
}

static void echo_any(tornado_handler *self)
{
    const char *type = tornado_get_header(self, "Content-Type"), *names[] = {"X-A", "Accept", "Host"};
    if (type)
        tornado_set_header(self, "Content-Type", type);
    for (size_t i = 0; i < TORNADO__COUNT(names); i++)
        if (tornado_get_header(self, names[i]))
            tornado_add_header(self, "X-A", tornado_get_header(self, names[i]));
    tornado_write_bytes(self, self->request->body);
}

static void json_any(tornado_handler *self)
{
    tornado_write_json(self, "{method:s, uri:s, body:z, length:U, headers:[i, i]}", self->request->method,
                       self->request->uri, self->request->body, (uint64_t)self->request->body.len,
                       (int)self->request->headers.count, (int)self->request->trailers.count);
}

static void wait_any(tornado_handler *self)
{
    tornado_await(tornado_moment());
    tornado_write(self, "half\n");
    tornado_await(tornado_sleep(0.001));
    tornado_await(tornado_moment());
    dump_any(self);
}

static void raise_any(tornado_handler *self)
{
    int status = atoi(self->request->query) % 1200;
    const char *uri = self->request->uri;
    tornado_write(self, "lost");
    if (strcmp(self->request->method, "GET") == 0)
        tornado_raise(TORNADO_ERR_INVALID, "%s", uri);
    if (strcmp(self->request->method, "POST") == 0)
        tornado_raise_http_error(status, "%s", uri);
    if (strcmp(self->request->method, "PUT") == 0)
        tornado_set_status_reason(self, status, uri);
    else
        tornado_send_error(self, status > 599 || !tornado_http_reason(status) ? 500 : status);
}

static void flush_any(tornado_handler *self)
{
    tornado_write(self, "one ");
    tornado_await(tornado_flush(self));
    tornado_await(tornado_sleep(0.001));
    tornado_write_bytes(self, self->request->body);
    tornado_future_release(tornado_flush(self));
    if (self->request->query[0] == 'r')
        tornado_raise(TORNADO_ERR_INVALID, "after the headers");
    tornado_write(self, " two");
}

/* Says more than it gives: the connection can only be closed. */
static void short_any(tornado_handler *self)
{
    tornado_set_header(self, "Content-Length", "10");
    tornado_write(self, "short");
}

static void *spawned(void *arg)
{
    tornado_handler *self = arg;
    tornado_await(tornado_sleep(0.002));
    check_request(self->request);
    return NULL;
}

static void spawn_any(tornado_handler *self)
{
    tornado_future_release(tornado_handler_spawn(self, spawned, self));
    tornado_write(self, "spawned");
}

/* More than the socket takes at once. */
static void big_any(tornado_handler *self)
{
    static char block[30000];
    memset(block, 'b', sizeof block);
    tornado_write_bytes(self, (tornado_bytes){block, sizeof block});
}

#define EVERY_VERB(fn)                                                                                             \
    {.parent = &base_class, .get = fn, .head = fn, .post = fn, .put = fn, .patch = fn, .delete_ = fn, .options = fn}

static const tornado_handler_class base_class = {.prepare = app_prepare, .on_connection_close = dump_closed};
static const tornado_handler_class dump_class = EVERY_VERB(dump_any), echo_class = EVERY_VERB(echo_any),
                                   json_class = EVERY_VERB(json_any), wait_class = EVERY_VERB(wait_any),
                                   raise_class = EVERY_VERB(raise_any), flush_class = EVERY_VERB(flush_any),
                                   short_class = EVERY_VERB(short_any), spawn_class = EVERY_VERB(spawn_any),
                                   big_class = EVERY_VERB(big_any);
static const tornado_handler_class get_class = {.parent = &base_class, .get = dump_any};

static tornado_application *new_application(void)
{
    static const tornado_rule rules[] = {
        {.path = "/echo", .handler = &echo_class},   {.path = "/json", .handler = &json_class},
        {.path = "/wait", .handler = &wait_class},   {.path = "/raise", .handler = &raise_class},
        {.path = "/flush", .handler = &flush_class}, {.path = "/short", .handler = &short_class},
        {.path = "/spawn", .handler = &spawn_class}, {.path = "/big", .handler = &big_class},
        {.path = "/get", .handler = &get_class},     {0},
    };
    static const tornado_settings settings = {
        .log_function = app_log, .default_handler_class = &dump_class, .serve_traceback = TORNADO_ON};
    return tornado_application_new(rules, &settings);
}

/*----------------------------------------------------------------------------
 * A delegate that takes bodies as they come, and may answer before they end.
 *----------------------------------------------------------------------------*/

typedef struct exchange {
    tornado_http_request *request;
    char kind; /* the second character of the path: 'e' echoes as it comes, 'f' answers first, 'h' answers later, 'w' waits
                  for each piece */
    bool complete, closed, started, answered;
    uint64_t received;
    tornado_buffer body;
} exchange;

static size_t exchanges;

static bool sent(tornado_future *future)
{
    bool ok = !tornado_future_error(future);
    tornado_future_release(future);
    return ok;
}

static bool start_answer(exchange *x, int status, int64_t length)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)length);
    tornado_http_header items[] = {{"X-Method", x->request->method, 8, (uint32_t)strlen(x->request->method)},
                                   {"Content-Length", digits, 14, (uint32_t)len}};
    tornado_http_headers headers = {.items = items, .count = length < 0 ? 1 : 2};
    tornado_http_start_line start = {.code = status};
    x->started = sent(tornado_http1_connection_write_headers(x->request->connection, &start, &headers, NULL));
    MUST(x->started == !x->closed);
    return x->started;
}

static void end_answer(exchange *x)
{
    MUST(!x->closed);
    x->answered = true;
    tell(200, strcmp(x->request->method, "HEAD") == 0, false);
    MUST(sent(tornado_http1_connection_finish(x->request->connection))); /* and with it x */
}

static void answer_all(exchange *x)
{
    tornado_buffer text = {NULL, 0, 0, false};
    dump(&text, x->request);
    tornado_buffer_append(&text, x->body.data, x->body.len);
    MUST(!text.failed);
    if (start_answer(x, 200, (int64_t)text.len)) {
        MUST(sent(tornado_http1_connection_write(x->request->connection, (tornado_bytes){text.data, text.len})));
        end_answer(x);
    }
    tornado_buffer_free(&text);
}

static tornado_future *delegate_headers(void *self, const tornado_http_start_line *start,
                                        const tornado_http_headers *headers)
{
    exchange *x = self;
    MUST(start->method == x->request->method && start->path == x->request->uri && headers == &x->request->headers);
    x->kind = x->request->path[1];
    check_request(x->request);
    if (x->kind == 'e') {
        start_answer(x, 200, TORNADO_NONE);
    } else if (x->kind == 'f') {
        start_answer(x, 200, 5);
        MUST(sent(tornado_http1_connection_write(x->request->connection, (tornado_bytes){"first", 5})));
        end_answer(x);
    } else if (x->kind == 'w') {
        return tornado_sleep(0.001);
    }
    return NULL;
}

static tornado_future *delegate_data(void *self, tornado_bytes chunk)
{
    exchange *x = self;
    MUST(x && !x->complete && !x->closed && !x->answered && chunk.len);
    x->received += chunk.len;
    if (x->kind == 'e')
        MUST(sent(tornado_http1_connection_write(x->request->connection, chunk)));
    else
        MUST(tornado_buffer_append(&x->body, chunk.data, chunk.len));
    return x->kind == 'w' ? tornado_sleep(0.001) : NULL;
}

static void answer_held(void *arg)
{
    exchange *x = arg;
    if (!x->closed)
        answer_all(x);
    else
        MUST(!sent(tornado_http1_connection_finish(x->request->connection)));
    tornado_http_request_release(x->request);
}

static void delegate_finish(void *self)
{
    exchange *x = self;
    MUST(x && !x->complete && !x->closed && !x->answered);
    MUST(body_is_announced(x->request, x->received));
    check_request(x->request);
    x->complete = true;
    if (x->kind == 'e') {
        end_answer(x);
    } else if (x->kind == 'h') {
        tornado_http_request_retain(x->request);
        MUST(tornado_ioloop_call_later(loop, 0.001, answer_held, x));
    } else {
        answer_all(x);
    }
}

/* The client has gone before the answer was complete. */
static void exchange_closed(void *arg)
{
    exchange *x = arg;
    MUST(x && !x->closed && !x->answered);
    x->closed = true;
    if (x->started)
        tell(200, strcmp(x->request->method, "HEAD") == 0, true);
}

static void delegate_closed(void *self, const tornado_error *error)
{
    const exchange *x = self;
    MUST(!x->complete && error->code && error->message[0]);
}

static void delegate_release(void *self)
{
    exchange *x = self;
    MUST(x && (x->closed || x->answered));
    tornado_buffer_free(&x->body);
    exchanges--;
}

static const tornado_http_message_delegate *delegate_start(void *self, tornado_http1_server_connection *server,
                                                           tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {
        .headers_received = delegate_headers, .data_received = delegate_data, .finish = delegate_finish,
        .on_connection_close = delegate_closed, .release = delegate_release};
    exchange *x = tornado_arena_calloc(tornado_http1_connection_arena(connection), 1, sizeof *x);
    MUST(x && !self && server);
    exchanges++;
    x->request = tornado_http1_connection_request(connection);
    tornado_http1_connection_set_close_callback(connection, exchange_closed, x);
    *message = x;
    return &delegate;
}

static const tornado_http_server_connection_delegate raw_delegate = {.start_request = delegate_start};

/*----------------------------------------------------------------------------
 * Reading answers, strictly.
 *----------------------------------------------------------------------------*/

/* The value of a header between `head` and `end`, or NULL; *len is its length. */
static const char *header_value(const char *head, const char *end, const char *name, size_t *len)
{
    const char *found = NULL;
    for (const char *line = head; line < end;) {
        const char *line_end = memmem(line, (size_t)(end - line), "\r\n", 2), *colon;
        MUST(line_end != NULL);
        colon = memchr(line, ':', (size_t)(line_end - line));
        MUST(colon && is_token(line, (size_t)(colon - line)) && colon[1] == ' ');
        MUST(!has_control(colon, (size_t)(line_end - colon)));
        if ((size_t)(colon - line) == strlen(name) && strncasecmp(line, name, strlen(name)) == 0) {
            MUST(!found);
            found = colon + 2;
            *len = (size_t)(line_end - found);
        }
        line = line_end + 2;
    }
    return found;
}

/* Takes the chunks at `at`, appending what is in them; NULL when they do not end. */
static const char *take_chunks(const char *at, const char *end, tornado_buffer *body)
{
    for (;;) {
        const char *line = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (!line)
            return NULL;
        char *digits_end;
        unsigned long size = strtoul(at, &digits_end, 16);
        MUST(digits_end == line && strspn(at, "0123456789abcdef") == (size_t)(line - at));
        MUST(!size || *at != '0');
        at = line + 2;
        if ((size_t)(end - at) < size + 2) {
            tornado_buffer_append(body, at, (size_t)(end - at) < size ? (size_t)(end - at) : size);
            return NULL;
        }
        MUST(memcmp(at + size, "\r\n", 2) == 0);
        tornado_buffer_append(body, at, size);
        at += size + 2;
        if (size == 0)
            return at;
    }
}

typedef struct outcome {
    tornado_buffer text; /* every answer: its head, and its body without its framing */
    size_t answers;      /* complete ones, but for those of status 100 */
    size_t whole;        /* the length of their text */
    int refused;         /* the status of the last, when no handler gave it */
} outcome;

/* Reads one answer; NULL when it is cut short. */
static const char *take_answer(const char *at, const char *end, outcome *o)
{
    const char *head_end = memmem(at, (size_t)(end - at), "\r\n\r\n", 4), *headers, *coding, *length, *connection;
    size_t coding_len = 0, length_len = 0, connection_len = 0;
    int status = 0;
    expected from = o->answers < told.count ? told.items[o->answers] : (expected){0, false, false};
    if (!head_end)
        return NULL;
    MUST(memcmp(at, "HTTP/1.1 ", 9) == 0 && strspn(at + 9, "0123456789") == 3 && at[12] == ' ');
    status = atoi(at + 9);
    headers = memmem(at, (size_t)(end - at), "\r\n", 2);
    MUST(!has_control(at, (size_t)(headers - at)) && headers > at + 13);
    headers += 2;
    head_end += 2;
    coding = header_value(headers, head_end, "Transfer-Encoding", &coding_len);
    length = header_value(headers, head_end, "Content-Length", &length_len);
    connection = header_value(headers, head_end, "Connection", &connection_len);
    if (status == 100) {
        MUST(headers == head_end);
        return head_end + 2;
    }
    MUST(header_value(headers, head_end, "Date", &(size_t){0}));
    if (o->answers < told.count)
        MUST(status == from.status);
    MUST(!o->refused); /* a refusal is the last */
    MUST(!(coding && length));
    tornado_buffer_append(&o->text, at, (size_t)(head_end - at));
    at = head_end + 2;
    if (from.head || status < 200 || status == 204 || status == 304) {
        MUST(!(status < 200 || status == 204) || (!coding && !length));
    } else if (coding) {
        MUST(coding_len == 7 && memcmp(coding, "chunked", 7) == 0);
        at = take_chunks(at, end, &o->text);
    } else if (length) {
        MUST(strspn(length, "0123456789") == length_len);
        size_t len = strtoul(length, NULL, 10);
        if ((size_t)(end - at) < len)
            return NULL;
        tornado_buffer_append(&o->text, at, len);
        at += len;
    } else {
        MUST(connection && connection_len == 5 && memcmp(connection, "close", 5) == 0);
        if (!wire.ended || from.broken) /* only the end of the connection says that it is complete */
            return NULL;
        tornado_buffer_append(&o->text, at, (size_t)(end - at));
        at = end;
    }
    if (at && connection && connection_len == 5)
        MUST(at == end && wire.ended); /* what says so is the last */
    return at;
}

static void read_answers(outcome *o)
{
    const char *at = wire.got.data, *end = at + wire.got.len;
    while (at && at < end) {
        at = take_answer(at, end, o);
        if (at && o->text.len > o->whole) {
            if (o->answers == told.count)
                o->refused = atoi(o->text.data + o->whole + 9);
            o->answers++;
            o->whole = o->text.len;
        }
    }
    MUST(!o->text.failed);
    if (!at && wire.ended) /* cut short */
        MUST(o->answers < told.count && told.items[o->answers].broken);
    else if (!at) /* its request is not complete yet */
        MUST(o->answers == told.count && exchanges == 1);
}

/*----------------------------------------------------------------------------
 * One connection.
 *----------------------------------------------------------------------------*/

static void check_log(const tornado_log_record *record, void *arg)
{
    (void)arg;
    const char *text = record->formatted;
    size_t len = strlen(text);
    MUST(tornado_utf8_valid(text, len));
    for (size_t at = 0; at < len;) {
        uint32_t c = 0;
        at += tornado_utf8_decode(text + at, len - at, &c);
        if (c == '\n')
            MUST(strncmp(text + at, "    ", 4) == 0);
        else
            MUST(c == '\t' || (c >= ' ' && (c < 0x7f || c >= 0xa0)));
    }
}

/* Blocks that the loop keeps to use them again. */
static long kept(void)
{
    long count = (long)loop->blocks.count + (long)loop->chunks.count + (long)loop->futures.count;
    count += (long)loop->free_callbacks_count;
    count += loop->timer_chunks_count + (loop->timer_chunks != NULL) + (loop->heap != NULL);
    count += (loop->scratch != NULL) + (loop->fds != NULL) + (loop->stacks != NULL);
    for (const tornado__slab *slab = loop->stacks ? loop->stacks->slabs : NULL; slab; slab = slab->next)
        count++;
    return count;
}

static void close_loop(void)
{
    tornado_buffer_free(&wire.got);
    tornado_ioloop_close(loop, false);
}

static void run_loop(void)
{
    MUST(tornado_ioloop_start(loop));
}

static void pass_time(int seconds)
{
    fuzz_ns += (int64_t)seconds * 1000000000;
    run_loop();
    client_read();
}

static void say(const char *text)
{
    wire.data = (const uint8_t *)text;
    wire.len = strlen(text);
    wire.by_cuts = false;
    wire.piece = 0;
    run_loop();
}

/* The connection as the client leaves it: it is at an end, or serves another request, or ends in time. */
static void check_end(tornado_httpserver *server)
{
    if (wire.ended) /* it may wait a while for the client to close as well */
        return;
    tornado__http1 *connection = TORNADO__CONTAINER(server->host.connections.next, tornado__http1, link);
    MUST(tornado_httpserver_connections(server) == 1);
    size_t before = wire.got.len, count = told.count;
    bool idle = !connection->message && !connection->own.in && !connection->in_head;
    pass_time(200);
    if (!idle) { /* in the middle of a request, which takes too long, or is not being answered */
        for (int i = 0; i < 30 && !wire.ended; i++)
            pass_time(200);
        MUST(wire.ended);
        return;
    }
    MUST(!wire.ended && wire.got.len == before);
    say("GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n");
    MUST(told.count == count + 1 && wire.got.len > before);
    MUST(memmem(wire.got.data + before, wire.got.len - before, "GET /probe HTTP/1.1\npath /probe\n", 32));
    for (int i = 0; i < 30 && !wire.ended; i++)
        pass_time(200);
    MUST(wire.ended);
}

typedef enum manner { BY_CUTS, WHOLE, BY_BYTES, SHUT } manner;

static outcome connection_run(int mode, const uint8_t *data, size_t len, manner how)
{
    static const tornado_httpserver_options limits = {.max_header_size = 300, .max_body_size = 50};
    tornado_httpserver_options options = mode & SMALL_LIMITS ? limits : (tornado_httpserver_options){0};
    tornado_address address;
    outcome o;
    int ends[2], size = 4096;
    long before = fuzz_live - kept();
    memset(&o, 0, sizeof o);
    options.no_keep_alive = (mode & NO_KEEP_ALIVE) != 0;
    fuzz_ns = 0;
    told.count = 0;
    tornado_application *app = mode & DELEGATE ? NULL : new_application();
    tornado_httpserver *server =
        tornado_httpserver_new(app ? tornado_application_delegate() : &raw_delegate, app, &options);
    MUST(server && tornado_address_ip(&address, "127.0.0.1", 1234));
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    wire.fd = ends[0];
    wire.socket = ends[1];
    wire.data = data;
    wire.len = len;
    wire.by_cuts = how == BY_CUTS;
    wire.piece = how == BY_BYTES ? 1 + len / PIECES : 0;
    wire.shut_at_end = how == SHUT;
    wire.ended = false;
    wire.got.len = 0;
    MUST(tornado__httpserver_activate(server) && tornado__http1_serve(&server->host, ends[0], &address));
    run_loop();
    client_read();
    if (how == SHUT)
        MUST(wire.ended && tornado_httpserver_connections(server) == 0);
    else
        read_answers(&o);
    if (how == BY_CUTS) {
        outcome again;
        memset(&again, 0, sizeof again);
        check_end(server);
        read_answers(&again);
        tornado_buffer_free(&again.text);
    }
    close(wire.socket);
    run_loop();
    MUST(tornado_httpserver_connections(server) == 0 && !wire.watched);
    pass_time(1); /* what handlers have spawned */
    MUST(tornado_ioloop_coroutines(loop) == 0 && exchanges == 0 && server->host.references == 1);
    tornado_httpserver_free(server);
    tornado_application_free(app);
    if (how == SHUT) /* how far answers got before the end was seen is not said */
        tornado_buffer_append(&o.text, wire.got.data, wire.got.len);
    if (fuzz_live - kept() != before + (o.text.data != NULL))
        fprintf(stderr, "%ld blocks are left\n", fuzz_live - kept() - before);
    MUST(fuzz_live - kept() == before + (o.text.data != NULL));
    return o;
}

/* Two ways to send the same bytes have the same answers. Of two faults in one head a line that ends without CR may
   be found first when it comes first, and last when it comes with the rest. */
static void check_same(const outcome *a, const outcome *b)
{
    MUST(a->answers == b->answers && !a->refused == !b->refused);
    if (a->refused == b->refused)
        MUST(a->whole == b->whole && (!a->whole || memcmp(a->text.data, b->text.data, a->whole) == 0));
    else
        MUST(a->refused == 400 || b->refused == 400);
}

/* What is sent, with its cuts. */
static uint8_t *expand(const uint8_t *data, size_t size, size_t *len)
{
    uint8_t *out = malloc(LONGEST + size);
    MUST(out != NULL);
    *len = 0;
    for (size_t i = 0; i < size; i++) {
        if (data[i] != REPEAT) {
            out[(*len)++] = data[i];
            continue;
        }
        size_t times = i + 1 < size ? 64 * (size_t)data[++i] : 0;
        if (*len && *len + times <= LONGEST) {
            memset(out + *len, out[*len - 1], times);
            *len += times;
        }
    }
    return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    outcome cut, other;
    if (size < 1)
        return 0;
    if (!loop) {
        tornado_ioloop_options options = {.custom = &wire_poller};
        tornado_log_options log = {.level = TORNADO_LOG_DEBUG, .hook = check_log};
        tornado_enable_pretty_logging(&log);
        loop = tornado_ioloop_new(&options);
        MUST(loop && tornado_buffer_reserve(&wire.got, 65536));
        atexit(close_loop);
    }
    int mode = data[0] & 15;
    size_t pieces_len, len = 0;
    uint8_t *pieces = expand(data + 1, size - 1, &pieces_len), *plain = malloc(pieces_len + 1);
    MUST(plain != NULL);
    for (size_t i = 0; i < pieces_len; i++)
        if (pieces[i] != CUT)
            plain[len++] = pieces[i];
    cut = connection_run(mode, pieces, pieces_len, BY_CUTS);
    if (len < pieces_len) {
        other = connection_run(mode, plain, len, WHOLE);
        check_same(&cut, &other);
        tornado_buffer_free(&other.text);
    }
    other = connection_run(mode, plain, len, BY_BYTES);
    check_same(&cut, &other);
    tornado_buffer_free(&other.text);
    if (mode & END_EARLY) {
        other = connection_run(mode, plain, len, SHUT);
        tornado_buffer_free(&other.text);
    }
    tornado_buffer_free(&cut.text);
    free(pieces);
    free(plain);
    return 0;
}
