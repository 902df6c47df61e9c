/* Arguments of queries and forms, cookies, parameters of headers, URLs. */
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

/* A list as text, "a=1|b=|c" with c being without a value; "%" and NUL bytes as "%25" and "%00". Checks that a NUL
   follows each string. Static memory. */
static const char *shown(const tornado_arguments *arguments)
{
    static char text[8192];
    tornado_buffer out = {0};
    for (size_t i = 0; i < arguments->count; i++) {
        tornado_bytes both[] = {arguments->items[i].name, arguments->items[i].value};
        tornado_buffer_puts(&out, i ? "|" : "");
        for (int half = 0; half < 2; half++) {
            if (!both[half].data)
                continue;
            CHECK_INT(both[half].data[both[half].len], 0);
            tornado_buffer_puts(&out, half ? "=" : "");
            for (size_t at = 0; at < both[half].len; at++) {
                char c = both[half].data[at];
                if (c == '%' || c == '\0')
                    tornado_buffer_printf(&out, "%%%02x", (unsigned)c);
                else
                    tornado_buffer_append(&out, &c, 1);
            }
        }
    }
    snprintf(text, sizeof text, "%s", out.data ? out.data : "");
    tornado_buffer_free(&out);
    return text;
}

static void check_fails(bool result, int code)
{
    CHECK(!result);
    CHECK_STR(tornado_error_name(tornado_last_error()->code), tornado_error_name(code));
}

/* The value that a name has last, or NULL. */
static const char *last(const tornado_arguments *arguments, const char *name)
{
    const tornado_argument *found = tornado_arguments_get(arguments, name);
    return found ? found->value.data : NULL;
}

/* Random numbers that are the same in each run. */
static unsigned random_below(unsigned limit)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state = state * 6364136223846793005 + 1442695040888963407;
    return (unsigned)(state >> 33) % limit;
}

/* Up to `most` bytes out of an alphabet, as a string. */
static const char *random_text(char *out, const char *alphabet, unsigned most)
{
    unsigned len = random_below(most + 1);
    for (unsigned i = 0; i < len; i++)
        out[i] = alphabet[random_below((unsigned)strlen(alphabet))];
    out[len] = '\0';
    return out;
}

/* The same text so many times over; to be freed. */
static char *repeated(const char *text, size_t times)
{
    size_t len = strlen(text);
    char *all = malloc(len * times + 1);
    CHECK(all != NULL);
    for (size_t i = 0; i < times; i++)
        memcpy(all + i * len, text, len);
    all[len * times] = '\0';
    return all;
}

/* A file for Python, with a line for each case: fields in hexadecimal, separated by commas. */
static char python_path[256];

static FILE *python_file(void)
{
    const char *directory = getenv("TMPDIR");
    TEST_NEED("python3");
    snprintf(python_path, sizeof python_path, "%s/tornado-httputil-XXXXXX", directory ? directory : "/tmp");
    int fd = mkstemp(python_path);
    CHECK(fd >= 0);
    FILE *file = fdopen(fd, "wb");
    CHECK(file != NULL);
    return file;
}

static void python_field(FILE *file, tornado_bytes field, bool ends_line)
{
    for (size_t i = 0; i < field.len; i++)
        fprintf(file, "%02x", (unsigned char)field.data[i]);
    fputc(ends_line ? '\n' : ',', file);
}

/* Runs a script for each line: `f` are its fields, as text of Latin-1, and same(got, want) compares. */
static void python_agrees(FILE *file, const char *script)
{
    CHECK(fclose(file) == 0);
    const test_output *out =
        test_run("python3 - %s 2>&1 <<'END'\n"
                 "import http.cookies, sys, urllib.parse\n"
                 "def same(got, want):\n"
                 "    assert got == want, '%%r is not %%r, of %%r' %% (got, want, f)\n"
                 "done = 0\n"
                 "for line in open(sys.argv[1]):\n"
                 "    f = [bytes.fromhex(x).decode('latin-1') for x in line.strip('\\n').split(',')]\n"
                 "%s"
                 "    done += 1\n"
                 "print('done', done)\n"
                 "END\n",
                 python_path, script);
    unlink(python_path);
    if (strncmp(out->text, "done ", 5) != 0)
        FAIL("python: %s", out->text);
    CHECK(atoi(out->text + 5) > 0);
}

/*----------------------------------------------------------------------------
 * Arguments.
 *----------------------------------------------------------------------------*/

TEST(httputil_a_query_becomes_pairs)
{
    static const char *const rows[][2] = {
        {"", ""},
        {"a=1", "a=1"},
        {"a=1&b=2", "a=1|b=2"},
        {"a=1&a=2&a=1", "a=1|a=2|a=1"},
        {"a", "a="},
        {"a=", "a="},
        {"=1", "=1"},
        {"=", "="},
        {"a=b=c", "a=b=c"},
        {"&", ""},
        {"&&a=1&&&b=2&&", "a=1|b=2"},
        {"a=1;b=2", "a=1;b=2"}, /* only "&" separates */
        {"a+b=c+d", "a b=c d"},
        {"a%20b=c%2Bd%2b", "a b=c+d+"},
        {"%61%3d=%26", "a==&"},
        {"a=%00%0a", "a=%00\n"},
        {"a=%e9%C3%A9", "a=\xe9\xc3\xa9"},
        {"\xc3\xa9=\xff", "\xc3\xa9=\xff"},
        {"a=%&b=%1&c=%zz&d=%1g&e=%%41&f=100%", "a=%25|b=%251|c=%25zz|d=%251g|e=%25A|f=100%25"},
        {"a=%4&1=", "a=%254|1="}, /* what follows the "&" is no digit of it */
        {"?a=1", "?a=1"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        CHECK(tornado_parse_qs(arena, &arguments, guarded_bytes(rows[i][0]), NULL));
        CHECK_STR(shown(&arguments), rows[i][1]);
        tornado_arena_free(arena);
    }
}

TEST(httputil_blank_values_can_be_left_out)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of("a=&b&=&c=1&d=%&=2"),
                           &(tornado_arguments_options){.drop_blank = true}));
    CHECK_STR(shown(&arguments), "c=1|d=%25|=2");
    tornado_arena_free(arena);
}

TEST(httputil_a_strict_query_has_no_field_without_an_equals_sign)
{
    static const char *const good[] = {"", "a=1", "a=&b=", "=", "a=%"};
    static const char *const bad[] = {"a", "a=1&", "&a=1", "a=1&&b=2", "a=1&b", "&"};
    const tornado_arguments_options strict = {.strict = true};
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    for (size_t i = 0; i < COUNT(good); i++)
        CHECK(tornado_parse_qs(arena, &arguments, guarded_bytes(good[i]), &strict));
    CHECK_STR(shown(&arguments), "a=1|a=|b=|=|a=%25");
    for (size_t i = 0; i < COUNT(bad); i++)
        check_fails(tornado_parse_qs(arena, &arguments, guarded_bytes(bad[i]), &strict), TORNADO_ERR_PARSE);
    CHECK_INT(arguments.count, 5);
    tornado_arena_free(arena);
}

TEST(httputil_the_last_value_counts_and_all_are_there)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0}, none = {0};
    const tornado_argument *at = NULL;
    CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of("a=1&b=2&a=&A=4&aa=5"), NULL));
    CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of("a=6&c=7"), NULL));
    CHECK_STR(shown(&arguments), "a=1|b=2|a=|A=4|aa=5|a=6|c=7");
    CHECK_STR(last(&arguments, "a"), "6");
    CHECK_STR(last(&arguments, "b"), "2");
    CHECK_STR(last(&arguments, "c"), "7");
    CHECK_STR(last(&arguments, ""), NULL);
    CHECK_STR(last(&arguments, "d"), NULL);
    CHECK_STR(last(&none, "a"), NULL);
    static const int places[] = {0, 2, 5};
    for (size_t i = 0; i < COUNT(places); i++) {
        at = tornado_arguments_find(&arguments, "a", at);
        CHECK(at == &arguments.items[places[i]]);
    }
    CHECK(tornado_arguments_find(&arguments, "a", at) == NULL);
    CHECK(tornado_arguments_find(&none, "a", NULL) == NULL);
    tornado_arena_free(arena);
}

/* Names of several lengths, so often repeated that each has many values. */
static void check_lookups(const tornado_arguments *arguments, const char *name)
{
    const tornado_argument *got = NULL, *want = NULL;
    size_t len = strlen(name);
    for (size_t i = 0; i < arguments->count; i++) {
        const tornado_argument *item = &arguments->items[i];
        if (item->name.len != len || memcmp(item->name.data, name, len) != 0)
            continue;
        want = item;
        got = tornado_arguments_find(arguments, name, got);
        CHECK(got == want);
    }
    CHECK(tornado_arguments_find(arguments, name, got) == NULL || !got);
    CHECK(got || tornado_arguments_find(arguments, name, NULL) == NULL);
    CHECK(tornado_arguments_get(arguments, name) == want);
}

TEST_LIMIT(httputil_lookups_are_the_same_however_many_pairs_there_are, 30)
{
    char name[8];
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    for (size_t count = 1; count <= 150; count++) {
        CHECK(tornado_arguments_add(arena, &arguments, random_text(name, "ab%", 3), "x"));
        CHECK_INT(arguments.count, count);
        for (int i = 0; i < 20; i++)
            check_lookups(&arguments, random_text(name, "ab%c", 3));
    }
    for (int i = 0; i < 20; i++) { /* further pairs behind those that were added one by one */
        CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of("a=1&ab=2&b=3&=4&%00"), NULL));
        CHECK(tornado_arguments_add(arena, &arguments, random_text(name, "ab%", 3), "y"));
        for (int k = 0; k < 20; k++)
            check_lookups(&arguments, random_text(name, "ab%c", 3));
    }
    CHECK_INT(arguments.count, 150 + 20 * 6);
    tornado_arena_free(arena);
}

TEST(httputil_arguments_that_are_added_are_copies)
{
    char name[] = "name", value[] = "value";
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    CHECK(tornado_arguments_add(arena, &arguments, name, value));
    memset(name, 'x', 4);
    memset(value, 'x', 5);
    CHECK_STR(shown(&arguments), "name=value");
    tornado_arena_free(arena);
}

/* With a step for each pair before, this would take hours. */
TEST_LIMIT(httputil_many_arguments_take_no_quadratic_time, 30)
{
    enum { MANY = 100000 };
    const tornado_arguments_options unlimited = {.max_fields = TORNADO_NONE};
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    tornado_buffer query = {0};
    const tornado_argument *at = NULL;
    char name[40];
    for (int i = 0; i < MANY; i++)
        tornado_buffer_printf(&query, "the_name_of_an_argument_%06d=%d&same=%d&", i, i, i);
    CHECK(tornado_parse_qs(arena, &arguments, (tornado_bytes){query.data, query.len}, &unlimited));
    CHECK_INT(arguments.count, 2 * MANY);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "the_name_of_an_argument_%06d", i);
        CHECK_INT(atoi(last(&arguments, name)), i);
        at = tornado_arguments_find(&arguments, "same", at);
        CHECK(at && atoi(at->value.data) == i);
    }
    CHECK_INT(atoi(last(&arguments, "same")), MANY - 1);
    tornado_buffer_free(&query);
    tornado_arena_free(arena);
}

TEST(httputil_the_number_of_arguments_is_limited)
{
    char *query = repeated("&a", 10001);
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0}, few = {0};
    check_fails(tornado_parse_qs(arena, &arguments, tornado_bytes_of(query), NULL), TORNADO_ERR_LIMIT);
    CHECK_INT(arguments.count, 0);
    CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of(query + 2), NULL));
    CHECK_INT(arguments.count, 10000);
    check_fails(tornado_parse_qs(arena, &arguments, tornado_bytes_of("b"), NULL), TORNADO_ERR_LIMIT);
    CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of("b"),
                           &(tornado_arguments_options){.max_fields = TORNADO_NONE}));
    CHECK_INT(arguments.count, 10001);
    check_fails(
        tornado_parse_qs(arena, &few, tornado_bytes_of("a&b&c&d"), &(tornado_arguments_options){.max_fields = 3}),
        TORNADO_ERR_LIMIT);
    CHECK(tornado_parse_qs(arena, &few, tornado_bytes_of("a&&b&&c&&"),
                           &(tornado_arguments_options){.max_fields = 3}));
    CHECK_STR(shown(&few), "a=|b=|c=");
    tornado_arena_free(arena);
    free(query);
}

TEST(httputil_a_form_is_known_by_its_type)
{
    static const struct {
        const char *type, *want;
    } rows[] = {{"application/x-www-form-urlencoded", "a=1|b=2 3"},
                {"Application/X-WWW-Form-Urlencoded; charset=utf-8", "a=1|b=2 3"},
                {" application/x-www-form-urlencoded\t;x", "a=1|b=2 3"},
                {"application/x-www-form-urlencoded2", ""},
                {"application/x-www-form-urlencode", ""},
                {"application/json", ""},
                {"text/plain; application/x-www-form-urlencoded", ""},
                {"", ""},
                {NULL, ""}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        tornado_http_files files = {0};
        CHECK(tornado_parse_body_arguments(arena, &arguments, &files, rows[i].type, guarded_bytes("a=1&b=2+3"), NULL));
        CHECK_INT(files.count, 0);
        CHECK_STR(shown(&arguments), rows[i].want);
        tornado_arena_free(arena);
    }
}

TEST(httputil_a_form_has_the_limits_of_a_query)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    tornado_http_files files = {0};
    check_fails(tornado_parse_body_arguments(arena, &arguments, &files, "application/x-www-form-urlencoded",
                                             tornado_bytes_of("a&b"),
                                             &(tornado_arguments_options){.max_fields = 1}),
                TORNADO_ERR_LIMIT);
    CHECK_INT(arguments.count, 0);
    tornado_arena_free(arena);
}

TEST(httputil_the_text_of_an_argument_has_no_controls_and_no_space_around_it)
{
    static const struct {
        tornado_bytes value;
        const char *plain, *stripped;
    } rows[] = {
        {{"", 0}, "", ""},
        {{NULL, 0}, "", ""},
        {{"abc", 3}, "abc", "abc"},
        {{" a b ", 5}, " a b ", "a b"},
        {{"a\0b\x01\x08z", 6}, "a b  z", "a b  z"},
        {{"\0a\0", 3}, " a ", "a"},
        {{"\x0e\x1fz\x1c", 4}, "  z ", "z"},
        {{"\t\n\v\f\ra\tb\r\n", 10}, "\t\n\v\f\ra\tb\r\n", "a\tb"},
        {{"a\x7f", 2}, "a\x7f", "a\x7f"},
        {{" \t\0 ", 4}, " \t  ", ""},
        {{"\xc2\xa0 \xe3\x80\x80z\xe3\x80\x80 \xc2\x85", 13}, "\xc2\xa0 \xe3\x80\x80z\xe3\x80\x80 \xc2\x85", "z"},
        {{"\xc3\xa0", 2}, "\xc3\xa0", "\xc3\xa0"},                 /* ends with a byte that is a space in Latin-1 */
        {{" \xe2\x80\x8b ", 5}, " \xe2\x80\x8b ", "\xe2\x80\x8b"}, /* of no width, and no space to Python */
        {{" \xa0 ", 3}, " \xa0 ", "\xa0"},                         /* not UTF-8 */
        {{"a\x80\xe3\x80\x80", 5}, "a\x80\xe3\x80\x80", "a\x80"},
        {{"\xe3\x80", 2}, "\xe3\x80", "\xe3\x80"},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_bytes value = {guarded(rows[i].value.data ? rows[i].value.data : "", rows[i].value.len),
                               rows[i].value.len};
        CHECK_STR(tornado_argument_text(arena, value, false), rows[i].plain);
        CHECK_STR(tornado_argument_text(arena, value, true), rows[i].stripped);
    }
    tornado_arena_free(arena);
}

TEST_LIMIT(httputil_strips_what_python_strips, 30)
{
    FILE *file = python_file();
    tornado_arena *arena = NULL;
    for (uint32_t c = 1; c <= 0x3100; c++) {
        char text[16];
        size_t size = tornado_utf8_encode(c, text);
        if (c % 256 == 1) {
            tornado_arena_free(arena);
            arena = tornado_arena_new();
        }
        text[size] = 'x';
        size += 1 + tornado_utf8_encode(c, text + size + 1);
        python_field(file, (tornado_bytes){text, size}, false);
        python_field(file, tornado_bytes_of(tornado_argument_text(arena, (tornado_bytes){text, size}, true)), true);
    }
    tornado_arena_free(arena);
    python_agrees(file, "    c = f[0].encode('latin-1').decode()\n"
                        "    c = ''.join(' ' if ord(x) < 9 or 13 < ord(x) < 32 else x for x in c).strip()\n"
                        "    same(f[1], c.encode().decode('latin-1'))\n");
}

TEST_LIMIT(httputil_reads_queries_as_python_does, 30)
{
    FILE *file = python_file();
    for (int i = 0; i < 1500; i++) {
        char query[64];
        bool drop_blank = i % 2;
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        random_text(query, "ab&&==+%%%24Fg;\xc3\xa9#? ", 40);
        CHECK(tornado_parse_qs(arena, &arguments, guarded_bytes(query),
                               &(tornado_arguments_options){.drop_blank = drop_blank}));
        python_field(file, tornado_bytes_of(query), false);
        python_field(file, tornado_bytes_of(drop_blank ? "" : "1"), arguments.count == 0);
        for (size_t k = 0; k < arguments.count; k++) {
            python_field(file, arguments.items[k].name, false);
            python_field(file, arguments.items[k].value, k + 1 == arguments.count);
        }
        tornado_arena_free(arena);
    }
    python_agrees(file,
                  "    want = urllib.parse.parse_qsl(f[0], keep_blank_values=bool(f[1]), encoding='latin-1')\n"
                  "    same(f[2:], [x for pair in want for x in pair])\n");
}

/*----------------------------------------------------------------------------
 * Cookies.
 *----------------------------------------------------------------------------*/

TEST(httputil_cookies_are_read_as_browsers_read_them)
{
    static const char *const rows[][2] = {
        {"", ""},
        {"a=b", "a=b"},
        {"a=b; c=d", "a=b|c=d"},
        {"a=b;c=d;", "a=b|c=d"},
        {"a=b=c", "a=b=c"},
        {"a=", "a="},
        {"=b", "=b"},
        {"b", "=b"},
        {"=", ""},
        {" ; = ; ;", ""},
        {" a \t=\t b c ; d", "a=b c|=d"},
        {"a=b; a=c", "a=b|a=c"},
        {"a=b; Domain=example.com; $Version=1", "a=b|Domain=example.com|$Version=1"},
        {"a=b, c=d", "a=b, c=d"},
        {"a=\"b;c\"", "a=\"b|=c\""}, /* quotes do not hide a semicolon */
        {"a=\"b\\073c\"", "a=b;c"},
        {"a=\"b\"", "a=b"},
        {"a=\"\"", "a="},
        {"a=\"", "a=\""},
        {"a=b\"", "a=b\""},
        {"a=\"b\"c", "a=\"b\"c"},
        {"a=b\\073c", "a=b\\073c"}, /* without quotes nothing is decoded */
        {"a=\"\\\"\\\\\"", "a=\"\\"},
        {"a=\"\\000\\377z\\400\\08\\1\"", "a=%00\xffz400081"},
        {"a=\"\\1\"", "a=1"},
        {"a=\"b\\\"", "a=b\\"},
        {"a=\"\\\\073\"", "a=\\073"},
        {"\"a\"=b", "\"a\"=b"},
        {"a=\xc3\xa0; \xa0=\x85", "a=\xc3\xa0|\xa0=\x85"},
        {"a=%41+b", "a=%2541+b"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments cookies = {0};
        CHECK(tornado_parse_cookie(arena, &cookies, guarded_bytes(rows[i][0]), NULL));
        CHECK_STR(shown(&cookies), rows[i][1]);
        tornado_arena_free(arena);
    }
}

TEST(httputil_the_last_cookie_of_a_name_counts)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments cookies = {0};
    CHECK(tornado_parse_cookie(arena, &cookies, tornado_bytes_of("a=1; b=2; a=3; =4; 5"), NULL));
    CHECK_STR(last(&cookies, "a"), "3");
    CHECK_STR(last(&cookies, "b"), "2");
    CHECK_STR(last(&cookies, ""), "5");
    CHECK_STR(last(&cookies, "A"), NULL);
    tornado_arena_free(arena);
}

TEST(httputil_the_number_of_cookies_is_limited)
{
    char *header = repeated(";a", 10001);
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments cookies = {0};
    check_fails(tornado_parse_cookie(arena, &cookies, tornado_bytes_of(header), NULL), TORNADO_ERR_LIMIT);
    CHECK_INT(cookies.count, 0);
    CHECK(tornado_parse_cookie(arena, &cookies, tornado_bytes_of(header + 2), NULL));
    CHECK_INT(cookies.count, 10000);
    check_fails(tornado_parse_cookie(arena, &cookies, tornado_bytes_of("b=c"), NULL), TORNADO_ERR_LIMIT);
    CHECK(tornado_parse_cookie(arena, &cookies, tornado_bytes_of("b=c"),
                               &(tornado_arguments_options){.max_fields = 10001}));
    tornado_arena_free(arena);
    free(header);
}

/* With a look at all that follows for each backslash, this would take hours. */
TEST(httputil_a_cookie_of_backslashes_takes_no_quadratic_time)
{
    enum { MANY = 500000 };
    static const char *const units[] = {"\\", "\\1", "\\\"", "\"", "\\07", "\\007"};
    for (size_t i = 0; i < COUNT(units); i++) {
        char *inside = repeated(units[i], MANY);
        char *header = malloc(strlen(inside) + 5);
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments cookies = {0};
        sprintf(header, "a=\"%s\"", inside);
        CHECK(tornado_parse_cookie(arena, &cookies, tornado_bytes_of(header), NULL));
        CHECK_INT(cookies.count, 1);
        CHECK(cookies.items[0].value.len >= MANY / 2);
        tornado_arena_free(arena);
        free(header);
        free(inside);
    }
}

TEST(httputil_a_cookie_is_written)
{
    static const struct {
        const char *name, *value, *want;
        tornado_cookie options;
    } rows[] = {
        {"a", "b", "a=b; Path=/", {0}},
        {"a", "", "a=\"\"; Path=/", {0}},
        {"a", "b=c", "a=\"b=c\"; Path=/", {0}},
        {"a", "b;c", "a=\"b\\073c\"; Path=/", {0}},
        {"a", "b\"c\\d", "a=\"b\\\"c\\\\d\"; Path=/", {0}},
        {"a", "b, c", "a=\"b\\054 c\"; Path=/", {0}},
        {"a", "\r\n\x01\x7f", "a=\"\\015\\012\\001\\177\"; Path=/", {0}},
        {"a", "\xc3\xa9", "a=\"\\303\\251\"; Path=/", {0}},
        {"a", "AZaz09!#$%&'*+-.^_`|~:", "a=AZaz09!#$%&'*+-.^_`|~:; Path=/", {0}},
        {"a",
         "2|1:0|10:1300000000|3:key|8:dmFsdWU=|3d",
         "a=\"2|1:0|10:1300000000|3:key|8:dmFsdWU=|3d\"; Path=/",
         {0}},
        {"__Host-a.b:c", "1", "__Host-a.b:c=1; Path=/", {0}},
        {"a", "b", "a=b; Domain=foo.com; Path=/foo", {.domain = "foo.com", .path = "/foo"}},
        {"a", "b", "a=b", {.path = "", .domain = "", .samesite = ""}},
        {"a", "b", "a=b; HttpOnly; Path=/; Secure", {.httponly = true, .secure = true}},
        {"a", "b", "a=b; Max-Age=3600; Path=/", {.max_age = 3600}},
        {"a", "b", "a=b; Max-Age=0; Path=/", {.max_age = -1}},
        {"a", "b", "a=b; Max-Age=0; Path=/", {.max_age = INT64_MIN}},
        {"a", "b", "a=b; Max-Age=9223372036854775807; Path=/", {.max_age = INT64_MAX}},
        {"a", "b", "a=b; expires=Sun, 06 Nov 1994 08:49:37 GMT; Path=/", {.expires = 784111777}},
        {"a", "b", "a=b; expires=Sun, 06 Nov 1994 08:49:37 GMT; Path=/", {.expires = 784111777, .expires_days = 3}},
        {"a", "b", "a=b; expires=Wed, 31 Dec 1969 23:59:59 GMT; Path=/", {.expires = -1}},
        {"a", "b", "a=b; expires=Thu, 01 Jan 1970 00:00:01 GMT; Path=/", {.expires_days = -1e300}},
        {"a", "b", "a=b; expires=Fri, 31 Dec 9999 23:59:59 GMT; Path=/", {.expires_days = 1e300}},
        {"a", "b", "a=b; Path=/; SameSite=Lax", {.samesite = "Lax"}},
        {"a",
         "b",
         "a=b; Domain=d; expires=Sun, 06 Nov 1994 08:49:37 GMT; HttpOnly; Max-Age=1; Path=/p; Secure; "
         "SameSite=None; Partitioned",
         {"d", "/p", 784111777, 0, 1, true, true, "None", true}},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_STR(tornado_format_cookie(arena, rows[i].name, rows[i].value, &rows[i].options), rows[i].want);
    CHECK_STR(tornado_format_cookie(arena, "a", "b", NULL), "a=b; Path=/");
    tornado_arena_free(arena);
}

TEST(httputil_a_cookie_expires_days_from_now)
{
    static const double days[] = {30, 0.5, -1};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(days); i++) {
        char date[30];
        int64_t when = 0;
        double before = tornado_time();
        const char *text = tornado_format_cookie(arena, "a", "b", &(tornado_cookie){.expires_days = days[i]});
        double after = tornado_time();
        CHECK(strlen(text) == strlen("a=b; expires=") + 29 + strlen("; Path=/"));
        snprintf(date, sizeof date, "%s", text + strlen("a=b; expires="));
        CHECK(tornado_parse_timestamp(date, &when));
        CHECK(when >= (int64_t)before + (int64_t)(days[i] * 86400) - 1);
        CHECK(when <= (int64_t)after + (int64_t)(days[i] * 86400) + 1);
    }
    tornado_arena_free(arena);
}

TEST(httputil_a_cookie_cannot_be_named_anything)
{
    static const char *const bad[] = {"",         "a b",       "a=b",     "a;b",     "a,b",        "a\r\nb",
                                      "\"a\"",    "a\xc3\xa9", "(a)",     "a\x7f",   "a/b",        "[",
                                      "path",     "Path",      "DOMAIN",  "expires", "max-age",    "Secure",
                                      "HttpOnly", "SameSite",  "version", "comment", "partitioned"};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(bad); i++)
        check_fails(tornado_format_cookie(arena, bad[i], "b", NULL), TORNADO_ERR_INVALID);
    for (int c = 1; c < 256; c++) {
        char name[] = {'a', (char)c, '\0'};
        bool good = c < 128 && (strchr("!#$%&'*+-.^_`|~:", c) || (c >= '0' && c <= '9') ||
                                ((c | 32) >= 'a' && (c | 32) <= 'z'));
        CHECK_INT(tornado_format_cookie(arena, name, "b", NULL) != NULL, good);
    }
    tornado_arena_free(arena);
}

TEST(httputil_a_cookies_attributes_have_nothing_that_could_end_them)
{
    tornado_arena *arena = tornado_arena_new();
    for (int c = 1; c < 256; c++) {
        const char text[] = {'a', (char)c, 'b', '\0'};
        const tornado_cookie rows[] = {{.domain = text}, {.path = text}, {.samesite = text}};
        for (size_t i = 0; i < COUNT(rows); i++) {
            const char *got = tornado_format_cookie(arena, "n", "v", &rows[i]);
            if (c > ' ' && c != ';' && c != 0x7f)
                CHECK(got && strstr(got, text));
            else
                check_fails(got, TORNADO_ERR_INVALID);
        }
    }
    tornado_arena_free(arena);
}

TEST_LIMIT(httputil_what_is_written_into_a_cookie_is_read_from_it, 30)
{
    char value[80], alphabet[256];
    for (int c = 1; c < 256; c++)
        alphabet[c - 1] = (char)c;
    alphabet[255] = '\0';
    for (int i = 0; i < 2000; i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments cookies = {0};
        random_text(value, i % 3 ? alphabet : "\"\\0123;=, a", sizeof value - 1);
        char *text = tornado_format_cookie(arena, "a", value, NULL);
        CHECK(tornado_parse_cookie(arena, &cookies, guarded_bytes(text), NULL));
        CHECK_INT(cookies.count, 2);
        CHECK_STR(cookies.items[0].value.data, value);
        CHECK_STR(cookies.items[1].name.data, "Path");
        tornado_arena_free(arena);
    }
}

TEST_LIMIT(httputil_quotes_and_unquotes_cookies_as_python_does, 30)
{
    FILE *file = python_file();
    char text[40];
    for (int i = 0; i < 2000; i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments cookies = {0};
        /* What Python decodes as ours: newlines aside, which no header has. */
        char *header = tornado_arena_printf(arena, "a=\"%s\"", random_text(text, "\\\\\\\\\"0123478ab =,\xe9", 30));
        CHECK(tornado_parse_cookie(arena, &cookies, tornado_bytes_of(header), NULL));
        python_field(file, tornado_bytes_of("read"), false);
        python_field(file, tornado_bytes_of(header + 2), false);
        python_field(file, cookies.items[0].value, true);
        random_text(text, i % 2 ? "ab-_:.1" : "\\\" =;,/?@{}\x01\x7f\xc3\xa9\n", 5);
        python_field(file, tornado_bytes_of("write"), false);
        python_field(file, tornado_bytes_of(text), false);
        python_field(file, tornado_bytes_of(tornado_format_cookie(arena, "a", text, &(tornado_cookie){.path = ""})),
                     true);
        tornado_arena_free(arena);
    }
    python_agrees(file, "    jar = http.cookies.SimpleCookie()\n"
                        "    if f[0] == 'read':\n"
                        "        same(f[2], jar.value_decode(f[1])[0])\n"
                        "    else:\n"
                        "        same(f[2], 'a=' + jar.value_encode(f[1])[1])\n");
}

TEST_LIMIT(httputil_writes_cookies_as_python_does, 30)
{
    FILE *file = python_file();
    tornado_arena *arena = tornado_arena_new();
    for (unsigned bits = 0; bits < 64; bits++) { /* each choice of attributes; Python has SameSite elsewhere */
        tornado_cookie options = {.domain = bits & 1 ? "example.com" : NULL,
                                  .path = bits & 2 ? "/a/b" : NULL,
                                  .expires = bits & 4 ? 1700000000 : 0,
                                  .max_age = bits & 8 ? 7 : 0,
                                  .httponly = bits & 16,
                                  .secure = bits & 32};
        char number[8];
        snprintf(number, sizeof number, "%u", bits);
        python_field(file, tornado_bytes_of(number), false);
        python_field(file, tornado_bytes_of(tornado_format_cookie(arena, "name", "va lue", &options)), true);
    }
    tornado_arena_free(arena);
    python_agrees(file, "    bits = int(f[0])\n"
                        "    jar = http.cookies.SimpleCookie()\n"
                        "    jar['name'] = 'va lue'\n"
                        "    m = jar['name']\n"
                        "    m['path'] = '/a/b' if bits & 2 else '/'\n"
                        "    if bits & 1: m['domain'] = 'example.com'\n"
                        "    if bits & 4: m['expires'] = 'Tue, 14 Nov 2023 22:13:20 GMT'\n"
                        "    if bits & 8: m['max-age'] = 7\n"
                        "    if bits & 16: m['httponly'] = True\n"
                        "    if bits & 32: m['secure'] = True\n"
                        "    same(f[1], m.OutputString())\n");
}

/*----------------------------------------------------------------------------
 * Parameters of headers.
 *----------------------------------------------------------------------------*/

TEST(httputil_a_header_has_parameters)
{
    static const struct {
        const char *line, *key, *want;
    } rows[] = {
        {"", "", ""},
        {"form-data", "form-data", ""},
        {" Form-Data ; ", "Form-Data", ""},
        {"form-data; name=\"a\"; FileName=b.txt", "form-data", "name=a|filename=b.txt"},
        {"form-data; foo=\"b\\\\a\\\"r\"; file*=utf-8''T%C3%A4st", "form-data", "foo=b\\a\"r|file=T\xc3\xa4st"},
        {"a;b=\"c;d\";e", "a", "b=c;d|e"},
        {"a; b = c ; d= \"e f\" ", "a", "b=c|d=e f"},
        {"a;;;b=c;;", "a", "b=c"},
        {"permessage-deflate; client_max_window_bits; x=1", "permessage-deflate", "client_max_window_bits|x=1"},
        {"a; b=\"C:\\dir\\file\"", "a", "b=C:\\dir\\file"},
        {"a; b=\"c\\\"; d=e", "a", "b=\"c\\\"; d=e"}, /* the quotes do not end */
        {"a; b=\"c", "a", "b=\"c"},
        {"a; b=c\"; d\"; e=f", "a", "b=c\"; d\"|e=f"},
        {"a; =b", "a", "=b"},
        {"a; b=", "a", "b="},
        {"a; b=\"\"", "a", "b="},
        {"a; b=\"", "a", "b=\""},
        {"a; b=c=d", "a", "b=c=d"},
        {"a; n*=utf-8''%e2%82%ac; n=EUR", "a", "n=EUR|n=\xe2\x82\xac"}, /* what is extended counts */
        {"a; n*=UTF-8'en'%e2%82%ac%20rates", "a", "n=\xe2\x82\xac rates"},
        {"a; n*=iso-8859-1''%a3%20plain%e9", "a", "n=\xc2\xa3 plain\xc3\xa9"},
        {"a; n*=koi8-r''%a3", "a", "n*=koi8-r''%25a3"},
        {"a; n*=utf-8''%ff", "a", "n*=utf-8''%25ff"},
        {"a; n*=utf-8''%a", "a", "n*=utf-8''%25a"},
        {"a; n*=utf-8''a%00b", "a", "n*=utf-8''a%2500b"},
        {"a; n*=utf-8", "a", "n*=utf-8"},
        {"a; n*=utf-8'a", "a", "n*=utf-8'a"},
        {"a; n*", "a", "n*"},
        {"a; *=utf-8''b", "a", "*=utf-8''b"},
        {"a; n*=utf-8''", "a", "n="},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments parameters = {0};
        CHECK_STR(tornado_parse_header(arena, &parameters, guarded_bytes(rows[i].line)), rows[i].key);
        CHECK_STR(shown(&parameters), rows[i].want);
        tornado_arena_free(arena);
    }
}

TEST(httputil_the_number_of_parameters_is_limited)
{
    char *line = repeated(";a", 1001), *quoted = repeated(";", 5000);
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments parameters = {0};
    check_fails(tornado_parse_header(arena, &parameters, tornado_bytes_of(line)), TORNADO_ERR_LIMIT);
    CHECK_INT(parameters.count, 0);
    CHECK_STR(tornado_parse_header(arena, &parameters, tornado_bytes_of(line + 1)), "a");
    CHECK_INT(parameters.count, 1000);
    CHECK_STR(tornado_parse_header(arena, &(tornado_arguments){0},
                                   tornado_bytes_of(tornado_arena_printf(arena, "b;c=\"%s\"", quoted))),
              "b");
    tornado_arena_free(arena);
    free(line);
    free(quoted);
}

/* With a look at all that follows for each quote or semicolon, this would take hours. */
TEST(httputil_long_headers_take_no_quadratic_time)
{
    static const char *const units[] = {"\"", "\";", "\\\"", ";\"\\", ";", "\";\"", "'", "%C3", "*="};
    for (size_t i = 0; i < COUNT(units); i++) {
        char *line = repeated(units[i], 300000);
        memcpy(line, "a;b", strlen(units[i]) < 3 ? strlen(units[i]) : 3);
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments parameters = {0};
        if (!tornado_parse_header(arena, &parameters, tornado_bytes_of(line)))
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
        tornado_arena_free(arena);
        free(line);
    }
}

TEST(httputil_parameters_are_written_as_they_are_read)
{
    static const char *const rows[] = {
        "form-data", "form-data; name=a; filename=\"b c.txt\"", "a; b=\"c\\\"d\\\\\"; e",
        "permessage-deflate; client_max_window_bits; server_max_window_bits=10", "a; b=\"\"; c=\"\xc3\xa9\t\""};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arguments parameters = {0};
        const char *key = tornado_parse_header(arena, &parameters, tornado_bytes_of(rows[i]));
        CHECK_STR(tornado_encode_header(arena, key, &parameters), rows[i]);
    }
    CHECK_STR(tornado_encode_header(arena, "a", NULL), "a");
    tornado_arena_free(arena);
}

TEST(httputil_no_control_gets_into_a_header)
{
    static const struct {
        const char *key, *name, *value;
    } rows[] = {{"a\r\nb", "n", "v"}, {"a\n", "n", "v"}, {"a", "n", "v\r\nw"}, {"a", "n", "v\x7f"},
                {"a", "n", "\x01"},   {"a", "n\n", "v"}, {"a", "", "v"},       {"a", "n m", "v"},
                {"a", "n=", "v"},     {"a", "n;", "v"}};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arguments parameters = {0};
        CHECK(tornado_arguments_add(arena, &parameters, rows[i].name, rows[i].value));
        check_fails(tornado_encode_header(arena, rows[i].key, &parameters), TORNADO_ERR_INVALID);
    }
    tornado_arguments parameters = {0}; /* a NUL inside a value */
    CHECK(tornado_parse_qs(arena, &parameters, tornado_bytes_of("n=a%00b"), NULL));
    check_fails(tornado_encode_header(arena, "a", &parameters), TORNADO_ERR_INVALID);
    tornado_arena_free(arena);
}

/*----------------------------------------------------------------------------
 * URLs.
 *----------------------------------------------------------------------------*/

#define PAIRS(...) ((const char *const[]){__VA_ARGS__, NULL})

TEST(httputil_arguments_are_added_to_a_url)
{
    static const char *const yz[] = {"y", "y", "z", "z", NULL};
    static const char *const none[] = {NULL};
    const struct {
        const char *url;
        const char *const *pairs;
        const char *want;
    } rows[] = {
        {"https://localhost/path", yz, "https://localhost/path?y=y&z=z"},
        {"https://localhost/path", PAIRS("y", "/y", "z", "z"), "https://localhost/path?y=%2Fy&z=z"},
        {"https://localhost/path?", yz, "https://localhost/path?y=y&z=z"},
        {"https://localhost/path?x", yz, "https://localhost/path?x=&y=y&z=z"},
        {"https://localhost/path?x&", yz, "https://localhost/path?x=&y=y&z=z"},
        {"https://localhost/path?a=1&b=2", yz, "https://localhost/path?a=1&b=2&y=y&z=z"},
        {"https://localhost/path?r=1&t=2", none, "https://localhost/path?r=1&t=2"},
        {"https://localhost/path?r=1&t=2", NULL, "https://localhost/path?r=1&t=2"},
        {"https://localhost/path?x#", NULL, "https://localhost/path?x#"},
        {"https://localhost/path?x#", none, "https://localhost/path?x="},
        {"https://localhost/path#tab", yz, "https://localhost/path?y=y&z=z#tab"},
        {"https://localhost/path#tab?a=b", yz, "https://localhost/path?y=y&z=z#tab?a=b"},
        {"https://localhost/path?a=b#tab#c", yz, "https://localhost/path?a=b&y=y&z=z#tab#c"},
        {"/path", PAIRS("y", "1", "y", "2"), "/path?y=1&y=2"},
        {"/path?r=1&r=2", yz, "/path?r=1&r=2&y=y&z=z"},
        {"/path?a=%2f+%20%41%&b=c=d", none, "/path?a=%2F++A%25&b=c%3Dd"},
        {"/path?a?b", none, "/path?a%3Fb="},
        {"", yz, "?y=y&z=z"},
        {"?", none, ""},
        {"/", PAIRS("a b", "&=+\xc3\xa9-._~", "", ""), "/?a+b=%26%3D%2B%C3%A9-._~&="},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_STR(tornado_url_concat(arena, guarded_string(rows[i].url, strlen(rows[i].url)), rows[i].pairs),
                  rows[i].want);
    tornado_arena_free(arena);
}

TEST(httputil_a_list_of_arguments_is_added_to_a_url)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0}, parameters = {0};
    CHECK(tornado_parse_qs(arena, &arguments, tornado_bytes_of("a=%00%26&b&a=1"), NULL));
    CHECK_STR(tornado_url_concat_arguments(arena, "/x?y=1#z", &arguments), "/x?y=1&a=%00%26&b=&a=1#z");
    CHECK_STR(tornado_url_concat_arguments(arena, "/x?y", &parameters), "/x?y=");
    CHECK_STR(tornado_url_concat_arguments(arena, "/x?y", NULL), "/x?y");
    CHECK_STR(tornado_parse_header(arena, &parameters, tornado_bytes_of("k; v")), "k");
    CHECK_STR(tornado_url_concat_arguments(arena, "/x", &parameters), "/x?v=");
    tornado_arena_free(arena);
}

TEST_LIMIT(httputil_adds_arguments_to_urls_as_python_does, 30)
{
    FILE *file = python_file();
    for (int i = 0; i < 1500; i++) {
        char query[40], name[10], value[10];
        tornado_arena *arena = tornado_arena_new();
        random_text(query, "ab&&==+%%%24Fg;~\xc3\xa9?/ ", 30);
        random_text(name, "ab+ =&%\xc3\xa9?#/~_", 8);
        random_text(value, "ab+ =&%\xc3\xa9?#/~_", 8);
        char *url = tornado_arena_printf(arena, "http://a/b?%s#f", query);
        python_field(file, tornado_bytes_of(query), false);
        python_field(file, tornado_bytes_of(name), false);
        python_field(file, tornado_bytes_of(value), false);
        python_field(file, tornado_bytes_of(tornado_url_concat(arena, url, PAIRS(name, value))), true);
        tornado_arena_free(arena);
    }
    python_agrees(file, "    pairs = urllib.parse.parse_qsl(f[0], keep_blank_values=True, encoding='latin-1')\n"
                        "    pairs.append((f[1], f[2]))\n"
                        "    want = urllib.parse.urlencode(pairs, encoding='latin-1')\n"
                        "    same(f[3], 'http://a/b?' + want + '#f')\n");
}

TEST(httputil_a_host_is_parted_from_its_port)
{
    static const struct {
        const char *netloc, *host;
        int port;
    } rows[] = {{"example.com", "example.com", -1},
                {"example.com:80", "example.com", 80},
                {"example.com:", "example.com", -1},
                {"127.0.0.1:0", "127.0.0.1", 0},
                {"a:65535", "a", 65535},
                {"a:00080", "a", 80},
                {"[::1]", "[::1]", -1},
                {"[::1]:443", "[::1]", 443},
                {"[::1]:", "[::1]", -1},
                {"::1", "::1", -1},
                {"fe80::1:80", "fe80::1:80", -1},
                {"", "", -1}};
    static const char *const bad[] = {"a:65536", "a:99999999999999999999",
                                      "a:b",     "a:-1",
                                      "a:+1",    "a: 1",
                                      ":80",     ":",
                                      "[::1",    "[]",
                                      "[]:80",   "[::1]80",
                                      "[::1]:x", "a:8\xc2\xb2",
                                      "[",       "[::1]:65536"};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        int port = 12345;
        CHECK_STR(tornado_split_host_and_port(arena, guarded_string(rows[i].netloc, strlen(rows[i].netloc)), &port),
                  rows[i].host);
        CHECK_INT(port, rows[i].port);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        int port = 12345;
        check_fails(tornado_split_host_and_port(arena, guarded_string(bad[i], strlen(bad[i])), &port),
                    TORNADO_ERR_PARSE);
        CHECK_INT(port, 12345);
    }
    tornado_arena_free(arena);
}

TEST(httputil_a_url_is_taken_apart)
{
    static const struct {
        const char *text;
        tornado_url want; /* scheme, authority, userinfo, host, path, query, fragment, port */
    } rows[] = {
        {"", {NULL, NULL, NULL, NULL, "", NULL, NULL, -1}},
        {"http://example.com", {"http", "example.com", NULL, "example.com", "", NULL, NULL, -1}},
        {"HTTPS://Example.COM:443/A?B#C", {"https", "Example.COM:443", NULL, "example.com", "/A", "B", "C", 443}},
        {"http://a/?#", {"http", "a", NULL, "a", "/", "", "", -1}},
        {"http://u:p@[2001:DB8::1]:8080/",
         {"http", "u:p@[2001:DB8::1]:8080", "u:p", "2001:db8::1", "/", NULL, NULL, 8080}},
        {"http://@a", {"http", "@a", "", "a", "", NULL, NULL, -1}},
        {"http://a:/b", {"http", "a:", NULL, "a", "/b", NULL, NULL, -1}},
        {"http://a?b/c:d@e", {"http", "a", NULL, "a", "", "b/c:d@e", NULL, -1}},
        {"http://a#b?c", {"http", "a", NULL, "a", "", NULL, "b?c", -1}},
        {"http://%41", {"http", "%41", NULL, "%41", "", NULL, NULL, -1}},
        {"file:///etc/passwd", {"file", "", NULL, "", "/etc/passwd", NULL, NULL, -1}},
        {"mailto:a@b.c", {"mailto", NULL, NULL, NULL, "a@b.c", NULL, NULL, -1}},
        {"a+1-.:", {"a+1-.", NULL, NULL, NULL, "", NULL, NULL, -1}},
        {"//a/b", {NULL, "a", NULL, "a", "/b", NULL, NULL, -1}},
        {"/a:b", {NULL, NULL, NULL, NULL, "/a:b", NULL, NULL, -1}},
        {"a/b:c", {NULL, NULL, NULL, NULL, "a/b:c", NULL, NULL, -1}},
        {"?a:b", {NULL, NULL, NULL, NULL, "", "a:b", NULL, -1}},
        {"#a:b", {NULL, NULL, NULL, NULL, "", NULL, "a:b", -1}},
        {"/a//b?\\#\\", {NULL, NULL, NULL, NULL, "/a//b", "\\", "\\", -1}},
        {"/h\xc3\xa9?%zz", {NULL, NULL, NULL, NULL, "/h\xc3\xa9", "%zz", NULL, -1}},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_url got;
        const tornado_url *want = &rows[i].want;
        CHECK(tornado_url_split(arena, &got, guarded_string(rows[i].text, strlen(rows[i].text))));
        CHECK_STR(got.scheme, want->scheme);
        CHECK_STR(got.authority, want->authority);
        CHECK_STR(got.userinfo, want->userinfo);
        CHECK_STR(got.host, want->host);
        CHECK_STR(got.path, want->path);
        CHECK_STR(got.query, want->query);
        CHECK_STR(got.fragment, want->fragment);
        CHECK_INT(got.port, want->port);
    }
    tornado_arena_free(arena);
}

TEST(httputil_a_malformed_url_is_refused)
{
    static const char *const bad[] = {"http://a b/",
                                      "http://a/ b",
                                      "/a?b c",
                                      "/#a b",
                                      " /",
                                      "/ ",
                                      "/\t",
                                      "/a\r\nb",
                                      "/\x7f",
                                      "/\x01",
                                      ":",
                                      ":a",
                                      "1a:b",
                                      "a_b:c",
                                      "a%:b",
                                      "a%41:b",
                                      "h\xc3\xa9:b",
                                      "+a:b",
                                      "http://a:b",
                                      "http://a:65536/",
                                      "http://a:-1",
                                      "http://:80",
                                      "http://u@",
                                      "http://u@:80",
                                      "http://a@b@c/",
                                      "http://u%zz@a",
                                      "http://u%4@a",
                                      "http://[a@b",
                                      "http://[::1",
                                      "http://[::1]a",
                                      "http://[]",
                                      "http://[a]",
                                      "http://[127.0.0.1]",
                                      "http://[v1.a]",
                                      "http://[::1%25eth0]",
                                      "http://::1/",
                                      "http://a:b:80/",
                                      "http://\xc3\xa9/",
                                      "http://a\\b/",
                                      "http://a/\\b",
                                      "\\\\a\\b",
                                      "/\\a",
                                      "http://a%/",
                                      "http://a%4/",
                                      "http://a\"b",
                                      "http://<a>",
                                      "http://a^b",
                                      "http://u[@a"};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(bad); i++) {
        tornado_url url = {.port = 12345};
        if (tornado_url_split(arena, &url, guarded_string(bad[i], strlen(bad[i]))))
            FAIL("\"%s\" is taken apart", bad[i]);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
        CHECK_INT(url.port, 12345);
    }
    tornado_arena_free(arena);
}

TEST(httputil_a_url_has_at_most_64_kib)
{
    char *text = repeated("a", 65537);
    tornado_arena *arena = tornado_arena_new();
    tornado_url url;
    check_fails(tornado_url_split(arena, &url, text), TORNADO_ERR_LIMIT);
    CHECK(tornado_url_split(arena, &url, text + 1));
    CHECK_INT(strlen(url.path), 65536);
    check_fails(tornado_url_join(arena, "http://a", text), TORNADO_ERR_LIMIT);
    tornado_arena_free(arena);
    free(text);
}

TEST(httputil_a_reference_is_resolved_as_the_standard_says)
{
    static const char *const rows[][2] = {
        /* RFC 3986 section 5.4.1 */
        {"g:h", "g:h"},
        {"g", "http://a/b/c/g"},
        {"./g", "http://a/b/c/g"},
        {"g/", "http://a/b/c/g/"},
        {"/g", "http://a/g"},
        {"//g", "http://g"},
        {"?y", "http://a/b/c/d;p?y"},
        {"g?y", "http://a/b/c/g?y"},
        {"#s", "http://a/b/c/d;p?q#s"},
        {"g#s", "http://a/b/c/g#s"},
        {"g?y#s", "http://a/b/c/g?y#s"},
        {";x", "http://a/b/c/;x"},
        {"g;x", "http://a/b/c/g;x"},
        {"g;x?y#s", "http://a/b/c/g;x?y#s"},
        {"", "http://a/b/c/d;p?q"},
        {".", "http://a/b/c/"},
        {"./", "http://a/b/c/"},
        {"..", "http://a/b/"},
        {"../", "http://a/b/"},
        {"../g", "http://a/b/g"},
        {"../..", "http://a/"},
        {"../../", "http://a/"},
        {"../../g", "http://a/g"},
        /* section 5.4.2 */
        {"../../../g", "http://a/g"},
        {"../../../../g", "http://a/g"},
        {"/./g", "http://a/g"},
        {"/../g", "http://a/g"},
        {"g.", "http://a/b/c/g."},
        {".g", "http://a/b/c/.g"},
        {"g..", "http://a/b/c/g.."},
        {"..g", "http://a/b/c/..g"},
        {"./../g", "http://a/b/g"},
        {"./g/.", "http://a/b/c/g/"},
        {"g/./h", "http://a/b/c/g/h"},
        {"g/../h", "http://a/b/c/h"},
        {"g;x=1/./y", "http://a/b/c/g;x=1/y"},
        {"g;x=1/../y", "http://a/b/c/y"},
        {"g?y/./x", "http://a/b/c/g?y/./x"},
        {"g?y/../x", "http://a/b/c/g?y/../x"},
        {"g#s/./x", "http://a/b/c/g#s/./x"},
        {"g#s/../x", "http://a/b/c/g#s/../x"},
        {"http:g", "http:g"},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_STR(tornado_url_join(arena, "http://a/b/c/d;p?q", rows[i][0]), rows[i][1]);
    tornado_arena_free(arena);
}

TEST(httputil_a_reference_is_resolved_at_any_base)
{
    static const struct {
        const char *base, *reference, *want;
    } rows[] = {
        {"http://a", "b", "http://a/b"},
        {"http://a?q", "b", "http://a/b"},
        {"http://a", "../b", "http://a/b"},
        {"http://a", "?b", "http://a?b"},
        {"http://a/b#c", "", "http://a/b"},
        {"http://a/b", "?", "http://a/b?"},
        {"http://a/b?c", "#", "http://a/b?c#"},
        {"http://u:p@A:80/b", "c", "http://u:p@A:80/c"},
        {"HTTP://a/b", "//c", "http://c"},
        {"http://a/b", "HTTPS://C/../d/./", "https://C/d/"},
        {"http://a//b/c", "..//d", "http://a///d"},
        {"http://a/b/c", "/..", "http://a/"},
        {"http://a/b/c", "/.", "http://a/"},
        {"http://a/b/c", "d/..", "http://a/b/"},
        {"http://a/b/../c", "", "http://a/b/../c"},
        {"http://a/b/c", "%2e%2e/d", "http://a/b/%2e%2e/d"},
        {"file:/a/b", "..//c", "file:/.//c"}, /* not //c, which would name a host */
        {"file:///a", "b", "file:///b"},
        {"urn:a:b", "c", "urn:c"},
        {"urn:a/b/../c", "./d/../../../e", "urn:/e"},
        {"a:b", "../c", "a:c"},
        {"a:", "..", "a:"},
        {"a:", ".", "a:"},
        {"a:b/c", "..", "a:/"},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_STR(tornado_url_join(arena, rows[i].base, rows[i].reference), rows[i].want);
    tornado_arena_free(arena);
}

TEST(httputil_a_reference_needs_a_base_that_is_whole)
{
    static const struct {
        const char *base, *reference;
        int code;
    } rows[] = {{"/a", "b", TORNADO_ERR_INVALID},       {"//a/b", "c", TORNADO_ERR_INVALID},
                {"", "http://a", TORNADO_ERR_INVALID},  {"http://a b", "c", TORNADO_ERR_PARSE},
                {"http://a", "/ b", TORNADO_ERR_PARSE}, {"http://a", "1:", TORNADO_ERR_PARSE},
                {"http://a", "/\\b", TORNADO_ERR_PARSE}};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT(rows); i++)
        check_fails(tornado_url_join(arena, rows[i].base, rows[i].reference), rows[i].code);
    tornado_arena_free(arena);
}

/* With a move of all that was kept for each "..", this would take minutes. */
TEST(httputil_long_paths_take_no_quadratic_time)
{
    static const char *const units[] = {"/..", "/a", "/.", "../", "a/../", "//", "./"};
    for (size_t i = 0; i < COUNT(units); i++) {
        char *reference = repeated(units[i], 65536 / strlen(units[i]));
        tornado_arena *arena = tornado_arena_new();
        for (int k = 0; k < 20; k++)
            CHECK(tornado_url_join(arena, "http://a/b/c", reference + 1) != NULL);
        tornado_arena_free(arena);
        free(reference);
    }
}

/*----------------------------------------------------------------------------
 * Memory.
 *----------------------------------------------------------------------------*/

/* Each may fail for want of memory, and then leaves its list as it was. */
static bool add_one(tornado_arena *arena, tornado_arguments *list)
{
    return tornado_arguments_add(arena, list, "name", "value");
}

static bool add_many(tornado_arena *arena, tornado_arguments *list)
{
    tornado_arguments longer = *list;
    for (int i = 0; i < 100; i++)
        if (!tornado_arguments_add(arena, &longer, "name", "value"))
            return false;
    *list = longer;
    return true;
}

static const char *long_query; /* 300 fields in which "&" and ";" separate */

static bool parse_query(tornado_arena *arena, tornado_arguments *list)
{
    return tornado_parse_qs(arena, list, tornado_bytes_of(long_query), NULL);
}

static bool parse_cookies(tornado_arena *arena, tornado_arguments *list)
{
    return tornado_parse_cookie(arena, list, tornado_bytes_of(long_query), NULL);
}

static bool parse_header(tornado_arena *arena, tornado_arguments *list)
{
    return tornado_parse_header(arena, list, tornado_bytes_of(long_query)) != NULL;
}

static bool take_text(tornado_arena *arena, tornado_arguments *list)
{
    (void)list;
    return tornado_argument_text(arena, tornado_bytes_of(long_query), true) != NULL;
}

static bool format_cookie(tornado_arena *arena, tornado_arguments *list)
{
    (void)list;
    return tornado_format_cookie(arena, "a", long_query, &(tornado_cookie){.secure = true}) != NULL;
}

static bool encode_header(tornado_arena *arena, tornado_arguments *list)
{
    return tornado_encode_header(arena, long_query, list) != NULL;
}

static bool concat(tornado_arena *arena, tornado_arguments *list)
{
    return tornado_url_concat_arguments(arena, long_query, list) != NULL;
}

static bool split_and_join(tornado_arena *arena, tornado_arguments *list)
{
    static const char url[] = "http://u:p@example.com:80/path?query#fragment";
    tornado_url parts;
    int port;
    (void)list;
    for (int i = 0; i < 200; i++)
        if (!tornado_url_split(arena, &parts, url) || !tornado_url_join(arena, url, "../a?b#c") ||
            !tornado_split_host_and_port(arena, "example.com:80", &port))
            return false;
    return true;
}

TEST_LIMIT(httputil_memory_may_run_short_anywhere, 30)
{
    static bool (*const calls[])(tornado_arena *, tornado_arguments *) = {
        add_one,   add_many,      parse_query,   parse_cookies, parse_header,
        take_text, format_cookie, encode_header, concat,        split_and_join};
    char *text = repeated("name=value%41&x;", 300);
    long_query = text;
    for (size_t i = 0; i < COUNT(calls); i++) {
        bool failed = true;
        for (long n = 1; failed; n++) {
            tornado_arena *arena = tornado_arena_new();
            tornado_arguments list = {0};
            CHECK(tornado_parse_qs(arena, &list, tornado_bytes_of("a=1&b=2"), NULL));
            long allocs = test_allocs();
            test_fail_alloc(n);
            bool ok = calls[i](arena, &list);
            failed = test_allocs() - allocs >= n;
            test_fail_alloc(0);
            CHECK_INT(ok, !failed);
            if (failed) {
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
                CHECK_STR(shown(&list), "a=1|b=2");
            }
            tornado_arena_free(arena);
        }
    }
    free(text);
}
