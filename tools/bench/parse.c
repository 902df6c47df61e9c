/* HTTP/1.1: how fast the head of a browser's request is read, with all that the server checks of it and the strings
   made ready for a handler; and how fast a chunked body is, beside http-parser (-DBENCH_HTTP_PARSER), which calls back
   with pieces of what it was given.

     parse SECONDS    measures: a line "case engine figure" for each, separated by tabs; each figure is the best of
                      several of which each takes SECONDS */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <time.h>

#ifdef BENCH_HTTP_PARSER
#include <http_parser.h>
#endif

/* What a browser sends for a page. */
static const char browser[] =
    "GET /articles/2017/04/an-event-loop-for-c.html?utm_source=feed&page=2 HTTP/1.1\r\n"
    "Host: www.example.com\r\n"
    "Connection: keep-alive\r\n"
    "Cache-Control: max-age=0\r\n"
    "Upgrade-Insecure-Requests: 1\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 "
    "Safari/537.36\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n"
    "Sec-Fetch-Site: same-origin\r\n"
    "Sec-Fetch-Mode: navigate\r\n"
    "Referer: http://www.example.com/articles/\r\n"
    "Accept-Encoding: gzip, deflate\r\n"
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    "Cookie: session=4f1c9a3be07d42b1a8c5; theme=dark; _xsrf=2|b3c1|9f0e5a77d1|1492387200\r\n"
    "\r\n";

enum { BODY = 1 << 20, CHUNK = 1 << 16 };

/* BODY bytes in chunks, with the last one. */
static tornado_buffer chunked;

static void make_chunked(void)
{
    char *bytes = calloc(1, CHUNK);
    for (int i = 0; bytes && i < BODY; i += CHUNK) {
        tornado_buffer_printf(&chunked, "%x\r\n", CHUNK);
        tornado_buffer_append(&chunked, bytes, CHUNK);
        tornado_buffer_puts(&chunked, "\r\n");
    }
    tornado_buffer_puts(&chunked, "0\r\n\r\n");
    free(bytes);
    if (chunked.failed)
        abort();
}

/*----------------------------------------------------------------------------
 * tornado.h: what a connection does with a head that has come, and with a body.
 *----------------------------------------------------------------------------*/

static tornado__http1_host host;
static tornado__http1 connection;
static size_t received;

static bool count_data(tornado__message *message, const char *data, size_t len)
{
    (void)message;
    (void)data;
    received += len;
    return true;
}

static void finish(tornado__message *message)
{
    (void)message;
}

static const tornado__http1_sink sink = {.data = count_data, .finish = finish};

static tornado__message *read_head(const char *text, size_t len)
{
    unsigned scanned = 0;
    int status = 0;
    if (tornado__head_length(text, len, &scanned) != (ptrdiff_t)len)
        abort();
    tornado__message *message = tornado__message_new(&connection, text, len, &status);
    if (!message || status)
        abort();
    return message;
}

static void ours_head(void)
{
    tornado__message_release(read_head(browser, sizeof browser - 1));
}

static void ours_chunked(void)
{
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    tornado__message *message = read_head(head, sizeof head - 1);
    size_t used = 0;
    message->sink = &sink;
    message->connection = &connection;
    connection.message = message;
    message->reading = true;
    message->body_state = TORNADO__BODY_CHUNK_SIZE;
    received = 0;
    while (message->reading && used < chunked.len)
        used += tornado__message_body(message, chunked.data + used, chunked.len - used);
    if (used != chunked.len || received != BODY)
        abort();
    connection.message = NULL;
    tornado__message_release(message);
}

/*----------------------------------------------------------------------------
 * http-parser, with callbacks that note what they are given.
 *----------------------------------------------------------------------------*/

#ifdef BENCH_HTTP_PARSER
static struct {
    const char *at;
    size_t len;
} noted[64];
static size_t notes;

static int note(http_parser *parser, const char *at, size_t len)
{
    (void)parser;
    noted[notes].at = at;
    noted[notes].len = len;
    notes = (notes + 1) % 64;
    return 0;
}

static int note_body(http_parser *parser, const char *at, size_t len)
{
    (void)parser;
    (void)at;
    received += len;
    return 0;
}

static const http_parser_settings settings = {
    .on_url = note, .on_header_field = note, .on_header_value = note, .on_body = note_body};

static void peer_head(void)
{
    http_parser parser;
    http_parser_init(&parser, HTTP_REQUEST);
    if (http_parser_execute(&parser, &settings, browser, sizeof browser - 1) != sizeof browser - 1)
        abort();
}

static void peer_chunked(void)
{
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    http_parser parser;
    http_parser_init(&parser, HTTP_REQUEST);
    received = 0;
    if (http_parser_execute(&parser, &settings, head, sizeof head - 1) != sizeof head - 1 ||
        http_parser_execute(&parser, &settings, chunked.data, chunked.len) != chunked.len || received != BODY)
        abort();
}
#endif

/*----------------------------------------------------------------------------
 * Measuring.
 *----------------------------------------------------------------------------*/

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Of one round, the best of several tries, those of all engines in turn. */
static void measure(const char *what, size_t count, void (*const run[])(void), double seconds)
{
    static const char *const names[] = {"tornado.h", "http-parser"};
    double best[2] = {1e9, 1e9};
    for (int tries = 0; tries < 9; tries++)
        for (size_t i = 0; i < count; i++) {
            double begin = cpu_seconds(), spent = 0;
            long rounds = 0;
            for (; spent < seconds; rounds += 1000, spent = cpu_seconds() - begin)
                for (int k = 0; k < 1000; k++)
                    run[i]();
            best[i] = spent / (double)rounds < best[i] ? spent / (double)rounds : best[i];
        }
    for (size_t i = 0; i < count; i++)
        printf("%s\t%s\t%.1f\n", what, names[i], best[i] * 1e9);
}

int main(int argc, char **argv)
{
    double seconds = argc == 2 ? strtod(argv[1], NULL) : 0;
    char title[80];
    if (seconds <= 0) {
        fprintf(stderr, "usage: parse SECONDS\n");
        return 1;
    }
    make_chunked();
    host.loop = tornado_ioloop_current();
    host.references = 1;
    host.max_header_size = 65536;
    host.max_body_size = connection.max_body_size = BODY;
    host.chunk_size = CHUNK;
    connection.host = &host;
    strcpy(connection.ip.text, "127.0.0.1");
#ifdef BENCH_HTTP_PARSER
    void (*const heads[])(void) = {ours_head, peer_head}, (*const bodies[])(void) = {ours_chunked, peer_chunked};
#else
    void (*const heads[])(void) = {ours_head}, (*const bodies[])(void) = {ours_chunked};
#endif
    snprintf(title, sizeof title, "a browser's head of %zu bytes, ns", sizeof browser - 1);
    measure(title, sizeof heads / sizeof *heads, heads, seconds);
    measure("a chunked body of 1 MiB in chunks of 64 KiB, ns", sizeof bodies / sizeof *bodies, bodies, seconds);
    tornado_buffer_free(&chunked);
    tornado_ioloop_close(host.loop, false);
    return 0;
}
