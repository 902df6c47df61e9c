/* HTTP/1.x, case by case: the files in tests/http/ say what is sent and what has to become of it; their README tells
   how to read them. */
#include "delegate.h"
#include "http_client.h"

#include <dirent.h>
#include <netinet/tcp.h>

#define REQUESTS  "tests/http"
#define RESPONSES "tests/http/responses"

/*----------------------------------------------------------------------------
 * Cases, read from the files.
 *----------------------------------------------------------------------------*/

enum { ANSWERS = 12 };

typedef struct expected {
    int status; /* 0: no answer */
    bool open, bodiless;
    const char *error; /* what a response is refused with; NULL: it is not */
    const char *understood; /* NULL: does not matter */
} expected;

typedef struct test_row {
    char *name; /* "length: two, equal" */
    const char *method; /* of the request that a response is for */
    expected answers[ANSWERS];
    size_t count;
    tornado_buffer message;
    struct test_row *next;
} test_row;

/* One byte written with a backslash; *at is behind that, and moves on. */
static char escaped_byte(const char **at)
{
    static const char letters[] = "rnt0\\", bytes[] = "\r\n\t\0\\";
    const char *letter = **at ? strchr(letters, *(*at)++) : NULL;
    char digits[3] = "";
    if (letter)
        return bytes[letter - letters];
    CHECK((*at)[-1] == 'x' && (*at)[0] && (*at)[1]);
    memcpy(digits, *at, 2);
    *at += 2;
    return (char)strtoul(digits, NULL, 16);
}

/* Appends text up to its end, or up to a "}". Returns where it stopped: at a backslash that ends it, too. */
static const char *append_text(tornado_buffer *out, const char *at, bool repeated)
{
    while (*at && !(repeated && *at == '}')) {
        char c = *at++;
        if (c == '\\' && !*at)
            return at - 1;
        if (c == '\\' && *at == '{') {
            char *text;
            unsigned long times = strtoul(at + 1, &text, 10);
            CHECK(*text == ':' && times > 0 && !repeated);
            while (times-- > 0)
                at = append_text(out, text + 1, true);
            CHECK(*at++ == '}');
            continue;
        }
        if (c == '\\')
            c = escaped_byte(&at);
        CHECK(tornado_buffer_append(out, &c, 1));
    }
    return at;
}

static void read_answer(test_row *row, char *line)
{
    CHECK(row->count < ANSWERS);
    if (strncmp(line, "to ", 3) == 0) {
        row->method = strdup(line + 3);
        return;
    }
    expected *answer = &row->answers[row->count++];
    char *understood = strstr(line, ": "), word[16] = "", more[16] = "";
    if (understood) {
        *understood = '\0';
        answer->understood = strdup(understood + 2);
    }
    if (strcmp(line, "none") == 0)
        return;
    if (strncmp(line, "error ", 6) == 0) {
        answer->error = strdup(line + 6);
        return;
    }
    CHECK(sscanf(line, "%3d %15s %15s", &answer->status, word, more) >= 2);
    answer->open = strcmp(word, "open") == 0;
    answer->bodiless = strcmp(more, "bodiless") == 0;
    CHECK((answer->open || strcmp(word, "close") == 0) && (answer->bodiless || !*more));
}

static test_row *row_new(const char *file, const char *title)
{
    test_row *row = calloc(1, sizeof *row);
    size_t stem = strcspn(file, "."), size = stem + strlen(title) + 3;
    CHECK(row && (row->name = malloc(size)) != NULL);
    snprintf(row->name, size, "%.*s: %s", (int)stem, file, title);
    return row;
}

/* Appends the cases of a file. */
static void read_file(const char *directory, const char *file, test_row ***end)
{
    enum { BEFORE, ANSWER, MESSAGE } part = BEFORE;
    char path[512], *line = NULL;
    size_t room = 0;
    ssize_t len;
    test_row *row = NULL;
    snprintf(path, sizeof path, "%s/%s", directory, file);
    FILE *stream = fopen(path, "r");
    if (!stream)
        FAIL("%s cannot be read", path);
    while ((len = getline(&line, &room, stream)) >= 0) {
        if (len > 0 && line[len - 1] == '\n')
            line[--len] = '\0';
        if (strncmp(line, "=== ", 4) == 0) {
            row = row_new(file, line + 4);
            **end = row;
            *end = &row->next;
            part = ANSWER;
        } else if (part == ANSWER && strcmp(line, "---") == 0) {
            part = MESSAGE;
        } else if (part == ANSWER) {
            read_answer(row, line);
        } else if (part == MESSAGE) {
            const char *stopped = append_text(&row->message, line, false);
            CHECK(*stopped || tornado_buffer_append(&row->message, "\r\n", 2));
        }
    }
    free(line);
    fclose(stream);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All cases of all files in a directory. */
static test_row *read_rows(const char *path)
{
    char *files[64];
    size_t count = 0;
    test_row *rows = NULL, **end = &rows;
    DIR *directory = opendir(path);
    if (!directory)
        FAIL("%s cannot be read: not started in the project's directory", path);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strstr(entry->d_name, ".txt")) {
            CHECK(count < 64);
            files[count++] = strdup(entry->d_name);
        }
    closedir(directory);
    qsort(files, count, sizeof *files, by_name);
    for (size_t i = 0; i < count; i++) {
        read_file(path, files[i], &end);
        free(files[i]);
    }
    for (test_row *row = rows; row; row = row->next)
        CHECK(row->count > 0 && row->message.len > 0);
    return rows;
}

static void free_rows(test_row *rows)
{
    while (rows) {
        test_row *next = rows->next;
        for (size_t i = 0; i < rows->count; i++) {
            free((char *)(uintptr_t)rows->answers[i].understood);
            free((char *)(uintptr_t)rows->answers[i].error);
        }
        free((char *)(uintptr_t)rows->method);
        tornado_buffer_free(&rows->message);
        free(rows->name);
        free(rows);
        rows = next;
    }
}

/*----------------------------------------------------------------------------
 * A server that tells what it understood.
 *----------------------------------------------------------------------------*/

static struct {
    tornado_httpserver *server;
    int port;
    int begun, finished, closed, released; /* requests */
} service;

/* Bytes as they are written in the files; long ones are cut. */
static void show(tornado_buffer *out, const char *data, size_t len)
{
    for (size_t i = 0; i < len && i < 100; i++) {
        static const char bytes[] = "\r\n\t\\", letters[] = "rnt\\0";
        unsigned char c = (unsigned char)data[i];
        const char *special = strchr(bytes, c); /* NUL is the last of them */
        if (special)
            tornado_buffer_printf(out, "\\%c", letters[special - bytes]);
        else
            tornado_buffer_printf(out, c < ' ' || c > '~' ? "\\x%02x" : "%c", c);
    }
    if (len > 100)
        tornado_buffer_printf(out, "... (%zu)", len);
}

static void show_headers(tornado_buffer *out, const char *what, const tornado_http_headers *headers, bool all)
{
    static const char *const known[] = {"Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect"};
    for (size_t i = 0; i < headers->count && i < 10; i++) {
        const tornado_http_header *at = &headers->items[i];
        bool shown = true;
        for (size_t k = 0; k < sizeof known / sizeof *known && !all; k++)
            shown = shown && strcasecmp(at->name, known[k]) != 0;
        if (!shown)
            continue;
        tornado_buffer_printf(out, " %s[%s: ", what, at->name);
        show(out, at->value, at->value_len);
        tornado_buffer_puts(out, "]");
    }
}

static void show_request(tornado_buffer *out, const tornado_http_request *request)
{
    show(out, request->method, strlen(request->method));
    tornado_buffer_puts(out, " ");
    show(out, request->uri, strlen(request->uri));
    tornado_buffer_printf(out, " host=%s", request->host);
    if (strcmp(request->path, request->uri) != 0) {
        tornado_buffer_puts(out, " path=");
        show(out, request->path, strlen(request->path));
    }
    if (*request->query) {
        tornado_buffer_puts(out, " query=");
        show(out, request->query, strlen(request->query));
    }
    show_headers(out, "", &request->headers, false);
    if (request->body.len) {
        tornado_buffer_puts(out, " body=");
        show(out, request->body.data, request->body.len);
    }
    show_headers(out, "trailer=", &request->trailers, true);
}

/* The path tells how to answer. */
static void service_finish(void *self)
{
    tornado_http1_connection *c = self;
    const tornado_http_request *request = tornado_http1_connection_request(c);
    bool bodiless = strcmp(request->path, "/204") == 0 || strcmp(request->path, "/304") == 0;
    bool pieces = strcmp(request->path, "/pieces") == 0;
    tornado_buffer body = {0};
    service.finished++;
    if (!bodiless)
        show_request(&body, request);
    CHECK(sent(write_head(c, bodiless ? atoi(request->path + 1) : 200, pieces ? TORNADO_NONE : (int64_t)body.len,
                          NULL)));
    for (size_t i = 0; pieces && i < body.len; i++)
        CHECK(sent(tornado_http1_connection_write(c, (tornado_bytes){body.data + i, 1})));
    CHECK(pieces || sent(tornado_http1_connection_write(c, (tornado_bytes){body.data, body.len})));
    CHECK(sent(tornado_http1_connection_finish(c)));
    tornado_buffer_free(&body);
}

static void service_closed(void *self, const tornado_error *error)
{
    CHECK(self && error->code);
    service.closed++;
}

static void service_release(void *self)
{
    (void)self;
    service.released++;
}

static const tornado_http_message_delegate *service_begin(void *self, tornado_http1_server_connection *server,
                                                          tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {
        .finish = service_finish, .on_connection_close = service_closed, .release = service_release};
    (void)self;
    (void)server;
    service.begun++;
    *message = connection;
    return &delegate;
}

static void service_start(void)
{
    static const tornado_http_server_connection_delegate delegate = {.start_request = service_begin};
    tornado_bind_options bind = {.address = "127.0.0.1"};
    static const tornado_log_options errors_only = {.level = TORNADO_LOG_ERROR};
    tornado_enable_pretty_logging(&errors_only);
    service.server = tornado_httpserver_new(&delegate, NULL, NULL);
    CHECK(service.server && tornado_httpserver_listen(service.server, 0, &bind));
    service.port = tornado_httpserver_port(service.server);
}

/* Each request that began came to its end or to grief, and nothing is left of it. */
static void service_end(void)
{
    tornado_httpserver_free(service.server);
    CHECK_INT(service.finished + service.closed, service.begun);
    CHECK_INT(service.released, service.begun);
}

/*----------------------------------------------------------------------------
 * Cases against the server.
 *----------------------------------------------------------------------------*/

static client client_now(void)
{
    client c = client_open(service.port);
    int on = 1;
    CHECK(setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
    return c;
}

/* Takes the answers; answers of status 100 count for nothing. `how` tells how the case was sent. */
static void check_answers(const test_row *row, client *c, const char *how)
{
    for (size_t i = 0; i < row->count && row->answers[i].status; i++) {
        const expected *want = &row->answers[i];
        answer a;
        do
            if (!client_answer_to(c, want->bodiless, &a))
                FAIL("%s (%s): no answer of number %zu", row->name, how, i + 1);
        while (a.status == 100);
        if (a.status != want->status)
            FAIL("%s (%s): answer %zu is %d, not %d", row->name, how, i + 1, a.status, want->status);
        if (a.close == want->open)
            FAIL("%s (%s): answer %zu says %s", row->name, how, i + 1, a.close ? "close" : "open");
        if (want->understood)
            test_check_mem(__FILE__, __LINE__, row->name, a.body.data, a.body.len, want->understood,
                           strlen(want->understood));
    }
}

/* What must hold once all is sent. With `next`, that was sent, too. When not `whole`, something may have been sent
   after the server had closed, which is answered with a reset. */
static void check_row(const test_row *row, client *c, bool whole, bool next, const char *how)
{
    const expected *last = &row->answers[row->count - 1];
    answer a;
    check_answers(row, c, how);
    if (last->open) {
        if (!next)
            client_send(c, "GET /next HTTP/1.1\r\nHost: n\r\n\r\n");
        if (!client_answer(c, &a))
            FAIL("%s (%s): the next request has no answer", row->name, how);
        test_check_mem(__FILE__, __LINE__, row->name, a.body.data, a.body.len, "GET /next host=n", 16);
    }
    shutdown(c->fd, SHUT_WR);
    if (client_more(c))
        FAIL("%s (%s): something follows: %.200s", row->name, how, c->data + c->taken);
    if (c->reset && whole)
        FAIL("%s (%s): a reset", row->name, how);
}

static void send_whole(const test_row *row, bool next)
{
    client c = client_now();
    tornado_buffer all = {0};
    CHECK(tornado_buffer_append(&all, row->message.data, row->message.len));
    if (next)
        CHECK(tornado_buffer_puts(&all, "GET /next HTTP/1.1\r\nHost: n\r\n\r\n"));
    client_send_bytes(&c, all.data, all.len);
    check_row(row, &c, true, next, next ? "with a request behind" : "at once");
    tornado_buffer_free(&all);
    client_close(&c);
}

TEST_EACH_POLLER(conformance_of_messages_that_come_at_once)
{
    test_row *rows = read_rows(REQUESTS);
    service_start();
    for (test_row *row = rows; row; row = row->next)
        send_whole(row, false);
    service_end();
    free_rows(rows);
}

TEST(conformance_of_messages_with_another_one_right_behind)
{
    test_row *rows = read_rows(REQUESTS);
    service_start();
    for (test_row *row = rows; row; row = row->next)
        if (row->answers[row->count - 1].status) /* else it would be part of what is not complete */
            send_whole(row, true);
    service_end();
    free_rows(rows);
}

/* Long messages come in steps, which meet their limits at other bytes. */
TEST_LIMIT(conformance_of_messages_that_come_a_byte_at_a_time, 60)
{
    test_row *rows = read_rows(REQUESTS);
    service_start();
    for (test_row *row = rows; row; row = row->next) {
        client c = client_now();
        size_t step = row->message.len > 2000 ? 997 : 1;
        for (size_t at = 0; at < row->message.len && !c.ended; at += step) {
            size_t left = row->message.len - at;
            client_send_bytes(&c, row->message.data + at, left < step ? left : step);
            loop_turns(1);
            client_read(&c);
        }
        check_row(row, &c, false, false, "byte by byte");
        client_close(&c);
    }
    service_end();
    free_rows(rows);
}

TEST_LIMIT(conformance_of_messages_in_two_pieces, 120)
{
    test_row *rows = read_rows(REQUESTS);
    service_start();
    for (test_row *row = rows; row; row = row->next)
        for (size_t cut = 1; cut < row->message.len && row->message.len < 400; cut++) {
            char how[64];
            client c = client_now();
            snprintf(how, sizeof how, "cut after %zu bytes", cut);
            client_send_bytes(&c, row->message.data, cut);
            loop_turns(3);
            client_send_bytes(&c, row->message.data + cut, row->message.len - cut);
            check_row(row, &c, false, false, how);
            client_close(&c);
        }
    service_end();
    free_rows(rows);
}

/* Wherever a client stops, and however, nothing of it is left. */
TEST_LIMIT(conformance_of_messages_that_stop_anywhere, 120)
{
    test_row *rows = read_rows(REQUESTS);
    service_start();
    loop_turns(2);
    for (test_row *row = rows; row; row = row->next)
        for (size_t cut = 0; cut < row->message.len && row->message.len < 400 && row->answers[0].status < 300;
             cut++) {
            client c = client_now();
            client_send_bytes(&c, row->message.data, cut);
            loop_turns(2);
            if (cut % 2) {
                close_with_reset(c.fd);
                c.fd = -1;
            }
            client_close(&c);
            loop_turns(2);
            if (tornado_httpserver_connections(service.server))
                FAIL("%s, cut after %zu bytes: the connection is still there", row->name, cut);
        }
    service_end();
    free_rows(rows);
}

/*----------------------------------------------------------------------------
 * Responses, against the client's side of a connection.
 *----------------------------------------------------------------------------*/

/* What a client's delegate is told. */
typedef struct exchange {
    tornado_http1_connection *connection;
    tornado_buffer seen;
    int status;
    bool body, over;
} exchange;

static tornado_future *exchange_headers(void *self, const tornado_http_start_line *start,
                                        const tornado_http_headers *headers)
{
    exchange *e = self;
    e->status = start->code;
    if (strcmp(start->version, "HTTP/1.1") != 0)
        tornado_buffer_printf(&e->seen, "%s ", start->version);
    show(&e->seen, start->reason, strlen(start->reason));
    show_headers(&e->seen, "", headers, false);
    return NULL;
}

static tornado_future *exchange_data(void *self, tornado_bytes chunk)
{
    exchange *e = self;
    if (!e->body)
        tornado_buffer_puts(&e->seen, " body=");
    e->body = true;
    show(&e->seen, chunk.data, chunk.len);
    return NULL;
}

static void exchange_finish(void *self)
{
    exchange *e = self;
    CHECK(!e->over);
    e->over = true;
    show_headers(&e->seen, "trailer=", tornado_http1_connection_trailers(e->connection), true);
}

static void exchange_closed(void *self, const tornado_error *error)
{
    exchange *e = self;
    (void)error;
    CHECK(!e->over);
    e->over = true;
}

static void exchange_informational(void *self, const tornado_http_start_line *start,
                                   const tornado_http_headers *headers)
{
    exchange *e = self;
    tornado_buffer_printf(&e->seen, "(%d", start->code);
    show_headers(&e->seen, "", headers, true);
    tornado_buffer_puts(&e->seen, ") ");
}

static const tornado_http_message_delegate exchange_delegate = {.headers_received = exchange_headers,
                                                                .data_received = exchange_data,
                                                                .finish = exchange_finish,
                                                                .on_connection_close = exchange_closed,
                                                                .informational = exchange_informational};

/* Asks over a stream and starts to read the response. */
static tornado_future *exchange_begin(exchange *e, tornado_iostream *stream, const char *method)
{
    tornado_http_header host = {"Host", "a", 4, 1};
    tornado_http_headers headers = {.items = &host, .count = 1};
    tornado_http_start_line start = {.method = method, .path = "/"};
    memset(e, 0, sizeof *e);
    e->connection = tornado_http1_connection_new(stream, true, NULL, NULL);
    CHECK(e->connection != NULL);
    tornado_future_release(tornado_http1_connection_write_headers(e->connection, &start, &headers, NULL));
    tornado_future_release(tornado_http1_connection_finish(e->connection));
    return tornado_http1_connection_read_response(e->connection, &exchange_delegate, e);
}

static void exchange_end(exchange *e)
{
    tornado_http1_connection_release(e->connection);
    tornado_buffer_free(&e->seen);
}

/* Plays the server for one case, which comes in steps of so many bytes. */
static void check_response(const test_row *row, size_t step)
{
    const expected *want = &row->answers[0];
    exchange e;
    int ends[2];
    tcp_pair(ends);
    client server = {.fd = ends[1], .data = calloc(1, 1)};
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    set_nonblocking(server.fd);
    tornado_future *done = exchange_begin(&e, stream, row->method ? row->method : "GET");
    for (size_t at = 0; at < row->message.len && !tornado_future_done(done); at += step) {
        size_t left = row->message.len - at;
        client_send_bytes(&server, row->message.data + at, left < step ? left : step);
        if (left > step)
            loop_turns(1);
    }
    if (!want->open)
        shutdown(server.fd, SHUT_WR);
    const tornado_error *error = loop_until(done);
    const char *name = error ? tornado_error_name(error->code) + 12 : NULL, *seen = e.seen.data ? e.seen.data : "";
    if (want->error ? !name || strcmp(name, want->error) != 0 : name || e.status != want->status)
        FAIL("%s, %zu at a time: %d, %s: %s", row->name, step, e.status, name ? name : "no error", seen);
    if (want->understood && strcmp(seen, want->understood) != 0)
        FAIL("%s, %zu at a time: %s", row->name, step, seen);
    if (tornado_iostream_closed(stream) == want->open)
        FAIL("%s, %zu at a time: the stream is %s", row->name, step, want->open ? "closed" : "open");
    tornado_future_release(done);
    exchange_end(&e);
    if (want->open) {
        done = exchange_begin(&e, stream, "GET");
        client_send(&server, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext");
        CHECK(loop_until(done) == NULL);
        CHECK_STR(e.seen.data, "OK body=next");
        tornado_future_release(done);
        exchange_end(&e);
    }
    tornado_iostream_release(stream);
    client_close(&server);
    loop_turns(2); /* a connection that refused something lingers until then */
}

TEST_EACH_POLLER(conformance_of_responses_that_come_at_once)
{
    test_row *rows = read_rows(RESPONSES);
    for (test_row *row = rows; row; row = row->next)
        check_response(row, SIZE_MAX);
    free_rows(rows);
}

TEST_LIMIT(conformance_of_responses_that_come_a_byte_at_a_time, 30)
{
    test_row *rows = read_rows(RESPONSES);
    for (test_row *row = rows; row; row = row->next)
        check_response(row, row->message.len > 2000 ? 997 : 1);
    free_rows(rows);
}
