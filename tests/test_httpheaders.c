/* Lists of headers, start lines, lists with weights, ranges: what messages begin with. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static tornado_bytes guarded_bytes(const char *text)
{
    size_t len = strlen(text);
    return (tornado_bytes){guarded(text, len), len};
}

/* "Name: value|Name: value"; checks that the lengths are those of the strings. Static memory. */
static const char *shown(const tornado_http_headers *headers)
{
    static char text[8192];
    size_t len = 0;
    text[0] = '\0';
    for (size_t i = 0; i < headers->count; i++) {
        const tornado_http_header *at = &headers->items[i];
        CHECK(strlen(at->name) == at->name_len && strlen(at->value) == at->value_len);
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s: %s", i ? "|" : "", at->name, at->value);
        CHECK(len < sizeof text);
    }
    return text;
}

static void check_error(bool result, int code)
{
    CHECK(!result);
    CHECK_STR(tornado_error_name(tornado_last_error()->code), tornado_error_name(code));
}

/*----------------------------------------------------------------------------
 * Headers.
 *----------------------------------------------------------------------------*/

/* The example of Tornado's manual. */
TEST(httpheaders_are_found_in_any_case_and_joined)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_http_headers h = {0};
    size_t count = 0;
    CHECK(tornado_http_headers_add(arena, &h, "content-type", "text/html"));
    CHECK_STR(shown(&h), "Content-Type: text/html");
    CHECK_STR(tornado_http_headers_get(arena, &h, "CONTENT-type"), "text/html");
    CHECK(tornado_http_headers_add(arena, &h, "Set-Cookie", "A=B"));
    CHECK(tornado_http_headers_add(arena, &h, "set-cookie", "C=D"));
    CHECK_STR(tornado_http_headers_get(arena, &h, "set-cookie"), "A=B,C=D");
    const char *const *list = tornado_http_headers_get_list(arena, &h, "set-cookie", &count);
    CHECK_INT(count, 2);
    CHECK_STR(list[0], "A=B");
    CHECK_STR(list[1], "C=D");
    CHECK(list[2] == NULL);
    CHECK_STR(shown(&h), "Content-Type: text/html|Set-Cookie: A=B|Set-Cookie: C=D");
    CHECK(tornado_http_headers_get(arena, &h, "Cookie") == NULL);
    list = tornado_http_headers_get_list(arena, &h, "Cookie", NULL);
    CHECK(list && list[0] == NULL);
    tornado_arena_free(arena);
}

TEST(httpheaders_names_begin_each_part_with_a_capital)
{
    static const char *const rows[][2] = {
        {"host", "Host"},     {"ETAG", "Etag"},     {"x-forwarded-FOR", "X-Forwarded-For"},
        {"-a--b-", "-A--B-"}, {"x_y-1z", "X_y-1z"}, {"WWW-Authenticate", "Www-Authenticate"}};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_http_headers h = {0};
        CHECK(tornado_http_headers_add(arena, &h, rows[i][0], ""));
        CHECK_STR(h.items[0].name, rows[i][1]);
        CHECK_STR(tornado_http_headers_get(arena, &h, rows[i][0]), "");
    }
    tornado_arena_free(arena);
}

TEST(httpheaders_setting_replaces_all_of_a_name_in_its_place)
{
    static const tornado_http_header items[] = {{"Via", "1", 3, 1}, {"Age", "2", 3, 1}, {"via", "3", 3, 1}};
    tornado_arena *arena = tornado_arena_new();
    tornado_http_headers h = {.items = items, .count = 3};
    CHECK(tornado_http_headers_set(arena, &h, "VIA", "4"));
    CHECK_STR(shown(&h), "Via: 4|Age: 2");
    CHECK(tornado_http_headers_set(arena, &h, "age", tornado_http_headers_get(arena, &h, "via")));
    CHECK(tornado_http_headers_set(arena, &h, "new", "5"));
    CHECK_STR(shown(&h), "Via: 4|Age: 4|New: 5");
    CHECK(tornado_http_headers_remove(arena, &h, "AGE") && tornado_http_headers_remove(arena, &h, "Age"));
    CHECK_STR(shown(&h), "Via: 4|New: 5");
    CHECK_STR(items[2].value, "3"); /* what it was given stays as it was */
    tornado_http_headers given = {.items = items, .count = 3};
    CHECK(tornado_http_headers_remove(arena, &given, "via"));
    CHECK_STR(shown(&given), "Age: 2");
    CHECK(tornado_http_headers_remove(arena, &given, "age") && given.count == 0);
    tornado_arena_free(arena);
}

TEST(httpheaders_that_may_not_be_sent_are_refused)
{
    static const char *const rows[][2] = {{"", "x"},     {"a b", "x"},   {"a:", "x"},     {"a\r", "x"},
                                          {"\xc3", "x"}, {"a", "x\ny"},  {"a", "x\ry"},   {"a", "\x01"},
                                          {"a", "\x7f"}, {"a", "x\r\n"}, {"a", "\r\nb:c"}};
    tornado_arena *arena = tornado_arena_new();
    tornado_http_headers h = {0};
    CHECK(tornado_http_headers_add(arena, &h, "a", "tab\tand \xc3\xa9"));
    for (size_t i = 0; i < COUNT(rows); i++) {
        check_error(tornado_http_headers_add(arena, &h, rows[i][0], rows[i][1]), TORNADO_ERR_INVALID);
        check_error(tornado_http_headers_set(arena, &h, rows[i][0], rows[i][1]), TORNADO_ERR_INVALID);
    }
    CHECK_STR(shown(&h), "A: tab\tand \xc3\xa9");
    tornado_arena_free(arena);
}

TEST(httpheaders_blocks_are_parsed)
{
    static const char *const rows[][2] = {
        {"", ""},
        {"\r\n", ""},
        {"A: 1\r\nB:2\r\n", "A: 1|B: 2"},
        {"A: 1\r\nB:2", "A: 1|B: 2"},
        {"A: 1\nB:2\n\n", "A: 1|B: 2"},
        {"a:\r\nb: \t \r\n", "A: |B: "},
        {"A: \t x y \t\r\n", "A: x y"},
        {"Content-Length:1:2\r\n", "Content-Length: 1:2"},
        {"Foo: bar\r\n baz\r\nAsdf: qwer\r\n\tzxcv\r\nFoo: even\r\n     more\r\n     lines\r\n",
         "Foo: bar baz|Asdf: qwer zxcv|Foo: even more lines"},
        {"A: x \t\r\n \r\n  y\r\nB: z\r\n", "A: x y|B: z"},
        {"A:\n b", "A: b"},
        {"A: b\r\n ", "A: b"},
        {"A: \xc3\xa9\x80\xe2\x80\xa8\r\n", "A: \xc3\xa9\x80\xe2\x80\xa8"}, /* U+2028 ends no line */
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_http_headers h = {0};
        CHECK(tornado_http_headers_parse(arena, &h, guarded_bytes(rows[i][0])));
        CHECK_STR(shown(&h), rows[i][1]);
    }
    tornado_arena_free(arena);
}

TEST(httpheaders_malformed_lines_are_refused)
{
    static const char *const rows[] = {" A: 1",       "A",       "A 1",       "A : 1",         ": 1",
                                       "A: 1\rB: 2",  "A: \r",   "A: \r\r\n", "A: 1\r\nB",     "A\r\n: 1",
                                       "\xc3\xa9: 1", "A: \x01", "\tA: 1",    "A: 1\r\n\r\n b"};
    tornado_arena *arena = tornado_arena_new();
    tornado_http_headers h = {0};
    CHECK(tornado_http_headers_parse_line(arena, &h, guarded_bytes("First: 1")));
    for (size_t i = 0; i < COUNT(rows); i++) {
        if (tornado_http_headers_parse(arena, &h, guarded_bytes(rows[i])))
            FAIL("parsed: %s", rows[i]);
        check_error(false, TORNADO_ERR_PARSE);
    }
    check_error(tornado_http_headers_parse_line(arena, &h, (tornado_bytes){"A: b\0c", 6}), TORNADO_ERR_PARSE);
    check_error(tornado_http_headers_parse_line(arena, &h, guarded_bytes("A: b\nC: d")), TORNADO_ERR_PARSE);
    CHECK_STR(shown(&h), "First: 1"); /* nothing was added */
    tornado_arena_free(arena);
}

TEST(httpheaders_copies_are_their_own)
{
    tornado_arena *first = tornado_arena_new(), *second = tornado_arena_new();
    tornado_http_headers h = {0}, copy = {0}, empty = {0};
    CHECK(tornado_http_headers_parse(first, &h, tornado_bytes_of("A: 1\r\nB: 2\r\n")));
    CHECK(tornado_http_headers_copy(second, &copy, &h));
    CHECK(tornado_http_headers_copy(second, &copy, &empty));
    CHECK(tornado_http_headers_set(first, &h, "A", "3"));
    tornado_arena_free(first);
    CHECK_STR(shown(&copy), "A: 1|B: 2");
    tornado_arena_free(second);
}

TEST(httpheaders_many_of_a_name_take_no_quadratic_time)
{
    enum { LINES = 100000 };
    tornado_arena *arena = tornado_arena_new();
    tornado_http_headers h = {0};
    char *text = malloc(LINES * 6 + 1), *end = text;
    for (int i = 0; i < LINES; i++)
        end += sprintf(end, i % 2 ? " x\r\n" : "A: x\r\n");
    CHECK(tornado_http_headers_parse(arena, &h, (tornado_bytes){text, (size_t)(end - text)}));
    CHECK_INT(h.count, LINES / 2);
    CHECK_INT(strlen(tornado_http_headers_get(arena, &h, "a")), LINES / 2 * 4 - 1);
    memset(text, ' ', LINES * 6); /* one header that goes on for ever, in lines of nothing */
    memcpy(text, "A: x", 4);
    for (int i = 4; i < LINES * 6; i += 2)
        text[i] = '\n';
    h = (tornado_http_headers){0};
    CHECK(tornado_http_headers_parse(arena, &h, (tornado_bytes){text, LINES * 6}));
    CHECK_STR(shown(&h), "A: x");
    free(text);
    tornado_arena_free(arena);
}

/*----------------------------------------------------------------------------
 * Start lines.
 *----------------------------------------------------------------------------*/

TEST(httputil_request_start_lines)
{
    static const char *const bad[] = {"",
                                      "GET",
                                      "GET /",
                                      "GET  / HTTP/1.1",
                                      "GET / HTTP/1.1 ",
                                      "GET / HTTP/2.0",
                                      "GET / HTTP/1.10",
                                      "GET / http/1.1",
                                      " GET / HTTP/1.1",
                                      "GET\t/ HTTP/1.1",
                                      "GET / x HTTP/1.1",
                                      "G(T / HTTP/1.1",
                                      "GET /\x7f HTTP/1.1",
                                      "GET / HTTP/1.1\r",
                                      "GET / HTTP/1.x",
                                      " / HTTP/1.1"};
    tornado_arena *arena = tornado_arena_new();
    tornado_http_start_line line;
    CHECK(tornado_parse_request_start_line(arena, &line, guarded_bytes("GET /foo HTTP/1.1")));
    CHECK_STR(line.method, "GET");
    CHECK_STR(line.path, "/foo");
    CHECK_STR(line.version, "HTTP/1.1");
    for (size_t i = 0; i < COUNT(bad); i++) {
        check_error(tornado_parse_request_start_line(arena, &line, guarded_bytes(bad[i])), TORNADO_ERR_PARSE);
        CHECK_STR(line.path, "/foo");
    }
    CHECK(tornado_parse_request_start_line(arena, &line, guarded_bytes("M-SEARCH * HTTP/1.0")));
    CHECK_STR(line.method, "M-SEARCH");
    CHECK_STR(line.path, "*");
    CHECK_STR(line.version, "HTTP/1.0");
    tornado_arena_free(arena);
}

TEST(httputil_response_start_lines)
{
    static const struct {
        const char *line;
        int code;
        const char *reason;
    } rows[] = {{"HTTP/1.1 200 OK", 200, "OK"},
                {"HTTP/1.0 404 Not Found", 404, "Not Found"},
                {"HTTP/1.1 204 ", 204, ""},
                {"HTTP/1.1 204", 204, ""},
                {"HTTP/1.1 599 \xc3\xa9\t!", 599, "\xc3\xa9\t!"},
                {"HTTP/1.1 999  two", 999, " two"}};
    static const char *const bad[] = {"",
                                      "HTTP/1.1",
                                      "HTTP/1.1 ",
                                      "HTTP/1.1  200 OK",
                                      "HTTP/1.1 20 OK",
                                      "HTTP/1.1 2000 OK",
                                      "HTTP/1.1 2x0 OK",
                                      "HTTP/1.1 099 OK",
                                      "HTTP/2 200 OK",
                                      "HTTP/2.0 200 OK",
                                      "http/1.1 200 OK",
                                      "HTTP/1.1 200 O\rK",
                                      "HTTP/1.1 200 OK\n",
                                      "HTTP/1.1 200 \x7f",
                                      "HTTP/1.1\t200 OK",
                                      "HTTP/1.1 -20 OK"};
    tornado_arena *arena = tornado_arena_new();
    tornado_http_start_line line = {0};
    for (size_t i = 0; i < COUNT(rows); i++) {
        CHECK(tornado_parse_response_start_line(arena, &line, guarded_bytes(rows[i].line)));
        CHECK_MEM(line.version, 8, rows[i].line, 8);
        CHECK_INT(line.code, rows[i].code);
        CHECK_STR(line.reason, rows[i].reason);
    }
    for (size_t i = 0; i < COUNT(bad); i++)
        check_error(tornado_parse_response_start_line(arena, &line, guarded_bytes(bad[i])), TORNADO_ERR_PARSE);
    CHECK_INT(line.code, 999);
    tornado_arena_free(arena);
}

/*----------------------------------------------------------------------------
 * Lists with weights, ranges.
 *----------------------------------------------------------------------------*/

TEST(httputil_preferences_are_sorted_by_weight)
{
    static const char *const rows[][2] = {
        {"", ""},
        {" , ,\t", ""},
        {"gzip", "gzip=1000"},
        {"da, en-gb;q=0.8, en;q=0.7", "da=1000 en-gb=800 en=700"},
        {"a;q=0.5,b;q=1,c;q=0.75, d,e;q=0.500", "b=1000 d=1000 c=750 a=500 e=500"},
        {"*;q=0, identity; q=0.001 ,x ;\tQ=1.000", "x=1000 identity=1 *=0"},
        {"a;q=1.001, b;q=2, c;q=, d;q=.5, e;q=0.1234, f;q=-1, g;q=\"1\", h;q=0.x, i;q=1.",
         "i=1000 a=0 b=0 c=0 d=0 e=0 f=0 g=0 h=0"},
        {"text/html;level=1, text/*;q=0.3, text/html;level=2;q=0.4, text/html ; a=\"q=0;,\\\"\";q=0.7",
         "text/html;level=1=1000 text/html ; a=\"q=0;,\\\"\"=700 text/html;level=2=400 text/*=300"},
        {"a;qq=0, b;x;q=0.2;y", "a;qq=0=1000 b;x=200"},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[512] = "";
        size_t count = 99, len = 0;
        const tornado_preference *list = tornado_parse_preferences(arena, guarded_bytes(rows[i][0]), &count);
        CHECK(list != NULL);
        for (size_t k = 0; k < count; k++)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s%.*s=%d", k ? " " : "",
                                    (int)list[k].value.len, list[k].value.data, list[k].weight);
        CHECK_STR(text, rows[i][1]);
    }
    tornado_arena_free(arena);
}

TEST(httputil_the_number_of_preferences_is_limited)
{
    static char text[2002];
    tornado_arena *arena = tornado_arena_new();
    size_t count = 0;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 2 ? ',' : 'x';
    CHECK(tornado_parse_preferences(arena, (tornado_bytes){text, 2000}, &count) && count == 1000);
    check_error(tornado_parse_preferences(arena, (tornado_bytes){text, 2001}, &count) != NULL, TORNADO_ERR_LIMIT);
    tornado_arena_free(arena);
}

TEST(httputil_a_range_is_partial_whole_or_not_there)
{
    static const struct {
        const char *header;
        uint64_t size;
        int status;
        uint64_t start, end;
    } rows[] = {
        {NULL, 1000, 200, 0, 1000},
        {"bytes=0-499", 1000, 206, 0, 500},
        {"bytes=500-", 1000, 206, 500, 1000},
        {"bytes=-500", 1000, 206, 500, 1000},
        {"bytes=0-0", 1000, 206, 0, 1},
        {"bytes=999-", 1000, 206, 999, 1000},
        {"bytes=9-9999", 1000, 206, 9, 1000},
        {"bytes=9-99999999999999999999999", 1000, 206, 9, 1000},
        {"Bytes= 1-2 \t", 1000, 206, 1, 3},
        {"bytes=0-", 1000, 200, 0, 1000},
        {"bytes=0-999", 1000, 200, 0, 1000},
        {"bytes=-1000", 1000, 200, 0, 1000},
        {"bytes=-5000", 1000, 200, 0, 1000},
        {"bytes=-99999999999999999999999", 1000, 200, 0, 1000},
        {"bytes=-1", 0, 200, 0, 0},
        {"bytes=1000-", 1000, 416, 7, 7},
        {"bytes=99999999999999999999999-", 1000, 416, 7, 7},
        {"bytes=-0", 1000, 416, 7, 7},
        {"bytes=5-2", 1000, 416, 7, 7},
        {"bytes=0-", 0, 416, 7, 7},
        {"bytes=1-2,4-5", 1000, 200, 0, 1000},
        {"items=1-2", 1000, 200, 0, 1000},
        {"bytes", 1000, 200, 0, 1000},
        {"bytes=", 1000, 200, 0, 1000},
        {"bytes=-", 1000, 200, 0, 1000},
        {"bytes=1", 1000, 200, 0, 1000},
        {"bytes=+1-2", 1000, 200, 0, 1000},
        {"bytes=1-+2", 1000, 200, 0, 1000},
        {"bytes=1--2", 1000, 200, 0, 1000},
        {"bytes=0x1-2", 1000, 200, 0, 1000},
        {"bytes =1-2", 1000, 200, 0, 1000},
        {"bytes=1-2x", 1000, 200, 0, 1000},
        {"", 1000, 200, 0, 1000},
        {"bytes=0-18446744073709551615", UINT64_MAX, 200, 0, UINT64_MAX},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_range range = {7, 7};
        const char *header = rows[i].header ? guarded(rows[i].header, strlen(rows[i].header) + 1) : NULL;
        int status = tornado_parse_range(header, rows[i].size, &range);
        if (status != rows[i].status || range.start != rows[i].start || range.end != rows[i].end)
            FAIL("%s of %llu: %d, %llu-%llu", header ? header : "none", (unsigned long long)rows[i].size, status,
                 (unsigned long long)range.start, (unsigned long long)range.end);
    }
    CHECK_STR(tornado_content_range(arena, &(tornado_range){0, 100}, 1234), "bytes 0-99/1234");
    CHECK_STR(tornado_content_range(arena, NULL, 1234), "bytes */1234");
    tornado_arena_free(arena);
}

/*----------------------------------------------------------------------------
 * Memory.
 *----------------------------------------------------------------------------*/

static bool change(tornado_arena *arena, tornado_http_headers *headers)
{
    tornado_http_headers with = *headers;
    size_t count;
    for (int i = 0; i < 60; i++)
        if (!tornado_http_headers_add(arena, &with, "name",
                                      "a value that is long enough for memory to run short") ||
            !tornado_http_headers_parse_line(arena, &with, tornado_bytes_of("folded: a\r\n b")))
            return false;
    if (!tornado_http_headers_get(arena, &with, "name") ||
        !tornado_http_headers_get_list(arena, &with, "name", &count) ||
        !tornado_http_headers_copy(arena, &with, headers) || !tornado_http_headers_remove(arena, &with, "name") ||
        !tornado_http_headers_set(arena, &with, "folded", "c"))
        return false;
    *headers = with;
    return true;
}

static bool start_lines(tornado_arena *arena, tornado_http_headers *headers)
{
    tornado_http_start_line request;
    tornado_http_start_line response;
    size_t count;
    (void)headers;
    for (int i = 0; i < 100; i++)
        if (!tornado_parse_request_start_line(arena, &request, tornado_bytes_of("GET / HTTP/1.1")) ||
            !tornado_parse_response_start_line(arena, &response, tornado_bytes_of("HTTP/1.1 200 OK")) ||
            !tornado_parse_preferences(arena, tornado_bytes_of("a,b,c"), &count))
            return false;
    return true;
}

TEST(httpheaders_memory_may_run_short_anywhere)
{
    static bool (*const calls[])(tornado_arena *, tornado_http_headers *) = {change, start_lines};
    for (size_t i = 0; i < COUNT(calls); i++) {
        bool failed = true;
        for (long n = 1; failed; n++) {
            tornado_arena *arena = tornado_arena_new();
            tornado_http_headers list = {0};
            CHECK(tornado_http_headers_add(arena, &list, "a", "1"));
            long allocs = test_allocs();
            test_fail_alloc(n);
            bool ok = calls[i](arena, &list);
            failed = test_allocs() - allocs >= n;
            test_fail_alloc(0);
            CHECK_INT(ok, !failed);
            if (failed) {
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
                CHECK_STR(shown(&list), "A: 1");
            }
            tornado_arena_free(arena);
        }
    }
}
