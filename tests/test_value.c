/* The JSON writer, held against Python's json module where that is there. */
#include "runtime.h"

#include <limits.h>

#include "guard.h"

/* What a format and its arguments give, in an arena, which is freed with the test's process. */
#define JSON(...) tornado_json_format(arena(), __VA_ARGS__)

static tornado_arena *arena(void)
{
    static tornado_arena *all;
    if (!all) {
        TEST_MAY_LEAK();
        all = tornado_arena_new();
        CHECK(all != NULL);
    }
    return all;
}

static double infinite(void)
{
    volatile double large = 1e308; /* where doubles are computed with more bits, it takes a store */
    large *= 10;
    return large;
}

/* Random numbers that Python makes as well: see random_py. */
static uint64_t random_state;

static uint64_t random_next(void)
{
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static unsigned random_below(unsigned limit)
{
    return (unsigned)(random_next() >> 33) % limit;
}

static double double_of(uint64_t bits)
{
    double number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* A file for Python, which reads it as sys.argv[1]. */
static char python_path[256];

static FILE *python_file(void)
{
    const char *directory = getenv("TMPDIR");
    TEST_NEED("python3");
    snprintf(python_path, sizeof python_path, "%s/tornado-value-XXXXXX", directory ? directory : "/tmp");
    int fd = mkstemp(python_path);
    CHECK(fd >= 0);
    FILE *file = fdopen(fd, "wb");
    CHECK(file != NULL);
    return file;
}

/* Runs a script over the lines of that file, as bytes without their newlines; it must end without an exception. Its
   function `same` compares, and tells of a difference. */
static void python_agrees(FILE *file, const char *script)
{
    CHECK(fclose(file) == 0);
    const test_output *out = test_run("python3 - %s 2>&1 <<'END'\n"
                                      "import json, struct, sys\n"
                                      "lines = open(sys.argv[1], 'rb').read().split(b'\\n')[:-1]\n"
                                      "def written(value):\n"
                                      "    return json.dumps(value).replace('</', '<\\\\/')\n"
                                      "def same(got, want):\n"
                                      "    assert got == want, '%%r is not %%r' %% (got[:2000], want[:2000])\n"
                                      "%s"
                                      "print('done', len(lines))\n"
                                      "END\n",
                                      python_path, script);
    unlink(python_path);
    if (strncmp(out->text, "done ", 5) != 0)
        FAIL("python: %s", out->text);
    CHECK(atoi(out->text + 5) > 0);
}

/*----------------------------------------------------------------------------
 * Formats.
 *----------------------------------------------------------------------------*/

TEST(value_writes_each_kind)
{
    CHECK_STR(JSON("s", "text"), "\"text\"");
    CHECK_STR(JSON("z", (tornado_bytes){"a\0b", 3}), "\"a\\u0000b\"");
    CHECK_STR(JSON("b", true), "true");
    CHECK_STR(JSON("b", 2), "true");
    CHECK_STR(JSON("b", false), "false");
    CHECK_STR(JSON("f", 1.5), "1.5");
    CHECK_STR(JSON("j", "[1,{\"raw\":</>}]"), "[1,{\"raw\":</>}]");
    CHECK_STR(JSON("n"), "null");
    CHECK_STR(JSON("i", -7), "-7");
    CHECK_STR(JSON("I", INT64_C(-8)), "-8");
    CHECK_STR(JSON("U", UINT64_C(9)), "9");
    CHECK_STR(JSON("[]"), "[]");
    CHECK_STR(JSON("{}"), "{}");
}

TEST(value_writes_null_for_pointers_that_are_null)
{
    const char *none = NULL;
    CHECK_STR(JSON("[s, z, j]", none, (tornado_bytes){NULL, 5}, none), "[null, null, null]");
    CHECK_STR(JSON("[s, z]", "", (tornado_bytes){"x", 0}), "[\"\", \"\"]");
}

TEST(value_separates_as_python_does)
{
    CHECK_STR(JSON("{a:i, b:[i, i, {}], c:{d:n}}", 1, 2, 3), "{\"a\": 1, \"b\": [2, 3, {}], \"c\": {\"d\": null}}");
    CHECK_STR(JSON("[[], [[]], [i]]", 1), "[[], [[]], [1]]");
}

TEST(value_ignores_white_space_in_formats)
{
    CHECK_STR(JSON(" \t\r\n{ a : i ,b\n:\t[ i\n, n ] } \n", 1, 2), "{\"a\": 1, \"b\": [2, null]}");
    CHECK_STR(JSON("{a:i,b:[i,n]}", 1, 2), "{\"a\": 1, \"b\": [2, null]}");
    CHECK_STR(JSON(" [ ] "), "[]");
}

TEST(value_names_keys_in_the_format_or_by_an_argument)
{
    CHECK_STR(JSON("{first-name_2:i, 0:i, ss:i, S:i, s:i, z:i}", 1, 2, 3, 4, "s", 5, 6),
              "{\"first-name_2\": 1, \"0\": 2, \"ss\": 3, \"S\": 4, \"s\": 5, \"z\": 6}");
    CHECK_STR(JSON("{s:s, s : n}", "", "</", "</\"\xc3\xa9"), "{\"\": \"<\\/\", \"<\\/\\\"\\u00e9\": null}");
}

/* More of them than registers hold, of every size. */
TEST(value_takes_its_arguments_in_order)
{
    CHECK_STR(JSON("[i, f, I, s, z, U, f, b, i, f, z, f, j, f, f, i, f, f, f, z, I]", 1, 0.5, INT64_C(-3), "s",
                   tornado_bytes_of("z"), UINT64_C(4), 1.5, true, 5, 2.5, tornado_bytes_of("y"), 3.5, "{}", 4.5,
                   5.5, 6, 6.5, 7.5, 8.5, tornado_bytes_of("x"), INT64_C(7)),
              "[1, 0.5, -3, \"s\", \"z\", 4, 1.5, true, 5, 2.5, \"y\", 3.5, {}, 4.5, 5.5, 6, 6.5, 7.5, 8.5, \"x\", "
              "7]");
}

TEST(value_refuses_malformed_formats)
{
    static const char *const formats[] = {
        "", " ", "x", "S", "?", "\"", "}", "]", ",", ":", "i i", "i,", "i, i", "ii", "[", "{", "[i", "{a:i",
        "{a", "{a:", "{a:i,", "[i,", "[i,]", "{a:i,}", "[,i]", "{,a:i}", "[,]", "[i i]", "{a:i b:i}", "[i,,i]",
        "[i}", "{a:i]", "[}", "{]", "{i}", "{a,b:i}", "{:i}", "{a i}", "{a::i}", "{a b:i}", "[a:i]", "[i:i]",
        "{a:i}}", "[i]]", "[i]i", "{a:x}", "{a:}", "{a.b:i}", "{\"a\":i}", "{\xc3\xa9:i}", "{a:[}", "{a:i, :i}",
    };
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        tornado_buffer out = {NULL, 0, 0, false};
        CHECK(tornado_buffer_puts(&out, "before"));
        if (tornado_json_pack(&out, formats[i], 1, 2, 3, 4))
            FAIL("\"%s\" is taken and gives %s", formats[i], out.data);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        CHECK_STR(out.data, "before");
        CHECK_INT(out.len, 6);
        CHECK(!out.failed);
        CHECK(JSON(formats[i], 1, 2, 3, 4) == NULL);
        tornado_buffer_free(&out);
    }
}

TEST(value_tells_where_a_format_is_wrong)
{
    static const char *const rows[][2] = {
        {"{ab:i, c:}", "character 10 "}, {"[i, i", "character 6 "}, {"[i, ?]", "character 5 "},
        {"{a i}", "character 4 "},       {"{a:i}}", "character 6 "}, {"", "character 1 "},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK(JSON(rows[i][0], 1, 2, 3) == NULL);
        if (!strstr(tornado_last_error()->message, rows[i][1]))
            FAIL("no \"%s\" in: %s", rows[i][1], tornado_last_error()->message);
    }
}

TEST(value_refuses_a_key_that_is_null)
{
    const char *none = NULL;
    CHECK(JSON("{a:i, s:i}", 1, none, 2) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
}

/* The format of arrays, or of objects, one in the other. */
static char *nested(int depth, const char *opener, const char *inside, char closer)
{
    static char text[4096];
    text[0] = '\0';
    for (int i = 0; i < depth; i++)
        strcat(text, opener);
    text[strlen(text) - strlen(opener) + 1] = '\0'; /* the innermost is empty, or has `inside` */
    strcat(text, inside);
    size_t len = strlen(text);
    memset(text + len, closer, (size_t)depth);
    text[len + (size_t)depth] = '\0';
    return text;
}

TEST(value_nests_up_to_64_deep)
{
    CHECK_STR(JSON(nested(64, "[", "", ']')), nested(64, "[", "", ']'));
    CHECK(JSON(nested(65, "[", "", ']')) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(JSON(nested(2000, "[", "", ']')) == NULL);
    char *want = strdup(nested(64, "{\"a\": ", "\"b\": 1", '}'));
    CHECK_STR(JSON(nested(64, "{a:", "b:i", '}'), 1), want);
    CHECK(JSON(nested(65, "{a:", "b:i", '}'), 1) == NULL);
    free(want);
}

/* All brackets are closed behind a value that filled the buffer to any degree. */
TEST(value_closes_64_brackets_wherever_the_buffer_ends)
{
    static char text[400], want[1024];
    for (size_t len = 0; len < sizeof text - 1; len++) {
        memset(text, 'x', len);
        text[len] = '\0';
        size_t at = (size_t)snprintf(want, sizeof want, "%.*s\"%s\"", 64, nested(64, "[", "", ']'), text);
        memset(want + at, ']', 64);
        want[at + 64] = '\0';
        tornado_buffer out = {NULL, 0, 0, false};
        CHECK(tornado_json_pack(&out, nested(64, "[", "s", ']'), text));
        CHECK_STR(out.data, want);
        CHECK(out.len < out.cap);
        tornado_buffer_free(&out);
    }
}

/*----------------------------------------------------------------------------
 * Where it goes.
 *----------------------------------------------------------------------------*/

TEST(value_appends_to_a_buffer)
{
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(tornado_json_pack(&out, "[i]", 1));
    CHECK(tornado_json_pack(&out, "{}"));
    CHECK(tornado_buffer_puts(&out, "\n"));
    CHECK_MEM(out.data, out.len + 1, "[1]{}\n", 7);
    tornado_buffer_free(&out);
}

static bool pack_twice(tornado_buffer *out, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    bool ok = tornado_json_vpack(out, format, args) && tornado_json_vpack(out, format, again);
    va_end(again);
    va_end(args);
    return ok;
}

TEST(value_takes_a_va_list)
{
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(pack_twice(&out, "[i, f, s]", 1, 2.5, "x"));
    CHECK_STR(out.data, "[1, 2.5, \"x\"][1, 2.5, \"x\"]");
    tornado_buffer_free(&out);
}

TEST(value_leaves_a_buffer_as_it_was_when_memory_is_short)
{
    static char text[5000];
    bool hit = false;
    memset(text, '\x01', sizeof text - 1);
    for (long n = 1; n < 20; n++) {
        tornado_buffer out = {NULL, 0, 0, false};
        CHECK(tornado_buffer_puts(&out, "before"));
        test_fail_alloc(n);
        bool ok = tornado_json_pack(&out, "[s, s]", text, text);
        test_fail_alloc(0);
        if (!ok) {
            hit = true;
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
            CHECK_MEM(out.data, out.len + 1, "before", 7);
            CHECK(!out.failed);
            CHECK(tornado_json_pack(&out, "[]"));
            CHECK_STR(out.data, "before[]");
        }
        tornado_buffer_free(&out);
    }
    CHECK(hit);
}

TEST(value_refuses_a_buffer_that_has_failed)
{
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(tornado_buffer_puts(&out, "before"));
    test_fail_alloc(1);
    CHECK(tornado_buffer_reserve(&out, 100000) == NULL);
    CHECK(out.failed);
    CHECK(!tornado_json_pack(&out, "n"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(out.failed);
    CHECK_STR(out.data, "before");
    tornado_buffer_free(&out);
}

static void format_something(void)
{
    tornado_arena *own = tornado_arena_new();
    const char *text = NULL;
    if (own)
        text = tornado_json_format(own, "{list:[i, f, s, z], s:{}}", 1, 0.1, "a text that is quite long",
                                   tornado_bytes_of("\xe2\x82\xac"), "a key");
    if (text)
        CHECK_STR(text, "{\"list\": [1, 0.1, \"a text that is quite long\", \"\\u20ac\"], \"a key\": {}}");
    else
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    tornado_arena_free(own);
}

TEST(value_survives_each_shortage_of_memory)
{
    each_shortage(format_something);
}

TEST(value_frees_what_it_began_to_write)
{
    tornado_arena *own = tornado_arena_new();
    long live = test_live();
    CHECK(tornado_json_format(own, "[s, s, ?]", "some text", "more of it") == NULL);
    CHECK_INT(test_live(), live);
    tornado_arena_free(own);
}

/*----------------------------------------------------------------------------
 * Numbers.
 *----------------------------------------------------------------------------*/

TEST(value_writes_integers_up_to_their_limits)
{
    static const int64_t edges[] = {0,    1,         10,         99,        100,      999,
                                    1000, INT32_MAX, UINT32_MAX, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
        for (int near = -1; near <= 1; near++) {
            char want[128];
            uint64_t number = (uint64_t)edges[i] + (uint64_t)near, minus = 0 - number;
            snprintf(want, sizeof want, "[%lld, %lld, %llu, %d]", (long long)number, (long long)minus,
                     (unsigned long long)number, (int)number);
            CHECK_STR(JSON("[I, I, U, i]", (int64_t)number, (int64_t)minus, number, (int)number), want);
        }
    for (uint64_t ten = 1; ten <= UINT64_MAX / 10; ten *= 10) {
        char want[64];
        snprintf(want, sizeof want, "[%llu, %llu]", (unsigned long long)ten - 1, (unsigned long long)ten);
        CHECK_STR(JSON("[U, U]", ten - 1, ten), want);
    }
    CHECK_STR(JSON("[i, i]", INT_MIN, INT_MAX), "[-2147483648, 2147483647]");
}

TEST(value_writes_doubles_as_python_does)
{
    static const struct {
        double number;
        const char *want;
    } rows[] = {
        {0.0, "0.0"}, {-0.0, "-0.0"}, {1, "1.0"}, {-1, "-1.0"}, {0.1, "0.1"}, {100, "100.0"},
        {0.30000000000000004, "0.30000000000000004"}, {1.0 / 3, "0.3333333333333333"},
        {2.0 / 3, "0.6666666666666666"}, {1e15, "1000000000000000.0"},
        {9999999999999998.0, "9999999999999998.0"}, {1e16, "1e+16"}, {1.5e16, "1.5e+16"},
        {12345678901234567.0, "1.2345678901234568e+16"}, {1e22, "1e+22"}, {1e23, "1e+23"}, {1e100, "1e+100"},
        {0.001, "0.001"}, {0.0001, "0.0001"}, {0.00012345, "0.00012345"}, {0.00001, "1e-05"}, {1.5e-5, "1.5e-05"},
        {1e-7, "1e-07"}, {123456.789, "123456.789"}, {9007199254740991.0, "9007199254740991.0"},
        {9007199254740993.0, "9007199254740992.0"}, {5e-324, "5e-324"}, {1e-323, "1e-323"},
        {2.2250738585072011e-308, "2.225073858507201e-308"},
        {2.2250738585072014e-308, "2.2250738585072014e-308"},
        {1.7976931348623157e308, "1.7976931348623157e+308"}, {-1.7976931348623157e308, "-1.7976931348623157e+308"},
        {4.35, "4.35"}, {0.5, "0.5"}, {1234567890123456.0, "1234567890123456.0"},
        {0x1p-44, "5.684341886080802e-14"}, {-0x1p-44, "-5.684341886080802e-14"},
        {0x1p+89, "6.189700196426902e+26"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK_STR(JSON("f", rows[i].number), rows[i].want);
}

/* Hard cases, and many at random: all bits, near a power of ten, near a power of two, few digits. */
TEST(value_writes_any_double_as_python_does)
{
    FILE *file = python_file();
    random_state = 1;
    for (int i = 0; i < 12000; i++) {
        uint64_t bits = random_next();
        double number;
        char text[40];
        if (i < 2048) {
            number = double_of((uint64_t)i << 52); /* each power of two, and subnormal ones next */
        } else if (i < 2048 + 52) {
            number = double_of(UINT64_C(1) << (i - 2048));
        } else if (i < 2048 + 52 + 640) {
            snprintf(text, sizeof text, "1e%d", i - 2048 - 52 - 330);
            number = strtod(text, NULL);
        } else if (i % 4 == 0) {
            snprintf(text, sizeof text, "%ue%d", random_below(100000), (int)random_below(60) - 30);
            number = strtod(text, NULL);
        } else if (i % 4 == 1) {
            number = (double)(int64_t)bits / (double)(1 << random_below(30));
        } else {
            number = double_of(bits);
        }
        for (int step = -1; step <= 1; step++) {
            memcpy(&bits, &number, sizeof bits);
            double near = double_of(step < 0 && !bits ? bits : bits + (uint64_t)step);
            if (near - near != 0)
                continue;
            const char *got = JSON("f", near);
            CHECK(got != NULL);
            CHECK_DOUBLE(strtod(got, NULL), near);
            memcpy(&bits, &near, sizeof bits);
            fprintf(file, "%016llx %s\n", (unsigned long long)bits, got);
        }
    }
    python_agrees(file, "for line in lines:\n"
                        "    bits, got = line.decode().split()\n"
                        "    same(got, repr(struct.unpack('>d', bytes.fromhex(bits))[0]))\n");
}

TEST(value_refuses_numbers_that_are_not_finite)
{
    double bad[] = {infinite(), -infinite(), infinite() - infinite()};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tornado_buffer out = {NULL, 0, 0, false};
        CHECK(tornado_buffer_puts(&out, "before"));
        CHECK(!tornado_json_pack(&out, "{a:i, b:f}", 1, bad[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        CHECK_MEM(out.data, out.len + 1, "before", 7);
        tornado_buffer_free(&out);
    }
}

/*----------------------------------------------------------------------------
 * Strings.
 *----------------------------------------------------------------------------*/

TEST(value_escapes_what_json_must_and_no_more)
{
    static const char named[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    for (int c = 1; c < 128; c++) {
        char text[] = {'a', (char)c, 'b', '\0'}, want[16];
        const char *found = strchr(named, c);
        if (found)
            snprintf(want, sizeof want, "\"a\\%cb\"", names[found - named]);
        else
            snprintf(want, sizeof want, c < ' ' || c == 0x7f ? "\"a\\u%04xb\"" : "\"a%cb\"", (unsigned)c);
        CHECK_STR(JSON("s", text), want);
    }
    CHECK_STR(JSON("z", (tornado_bytes){"\0", 1}), "\"\\u0000\"");
}

TEST(value_escapes_what_would_end_a_script)
{
    CHECK_STR(JSON("s", "</script>"), "\"<\\/script>\"");
    CHECK_STR(JSON("s", "<</</ / //<"), "\"<<\\/<\\/ / //<\"");
    CHECK_STR(JSON("s", "/"), "\"/\"");
    CHECK_STR(JSON("[s, s]", "<", "/"), "[\"<\", \"/\"]");
}

TEST(value_writes_characters_beyond_ascii_as_escapes)
{
    CHECK_STR(JSON("s", "\xc2\x80 \xc3\xa9 \xe2\x80\xa8\xe2\x80\xa9 \xef\xbf\xbf \xf0\x9f\x98\x80 "
                        "\xf4\x8f\xbf\xbf"),
              "\"\\u0080 \\u00e9 \\u2028\\u2029 \\uffff \\ud83d\\ude00 \\udbff\\udfff\"");
}

TEST(value_writes_every_character_as_python_does)
{
    FILE *file = python_file();
    for (uint32_t from = 0; from < 0x110000; from += 4096) {
        tornado_buffer text = {NULL, 0, 0, false}, out = {NULL, 0, 0, false};
        for (uint32_t c = from; c < from + 4096; c++) {
            char bytes[4];
            tornado_buffer_append(&text, bytes, tornado_utf8_encode(c, bytes));
        }
        CHECK(!text.failed);
        CHECK(tornado_json_pack(&out, "z", (tornado_bytes){text.data ? text.data : "", text.len}));
        fprintf(file, "%s\n", out.data);
        tornado_buffer_free(&text);
        tornado_buffer_free(&out);
    }
    python_agrees(file, "assert len(lines) == 0x110\n"
                        "for number, line in enumerate(lines):\n"
                        "    codes = range(number * 4096, number * 4096 + 4096)\n"
                        "    want = ''.join(chr(c) for c in codes if not 0xd800 <= c < 0xe000)\n"
                        "    same(line.decode('ascii'), written(want))\n");
}

TEST(value_replaces_what_is_no_character)
{
    static const char *const rows[][2] = {
        {"\xff", "\\ufffd"},
        {"a\x80z", "a\\ufffdz"},
        {"\xc3", "\\ufffd"},
        {"\xc3(", "\\ufffd("},
        {"\xc0\xaf", "\\ufffd\\ufffd"},
        {"\xe0\x80\xaf", "\\ufffd\\ufffd\\ufffd"},
        {"\xe2\x82", "\\ufffd"},
        {"\xe2\x82<", "\\ufffd<"},
        {"\xed\xa0\x80", "\\ufffd\\ufffd\\ufffd"},
        {"\xed\xa0\xbd\xed\xb8\x80", "\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd"},
        {"\xf0\x9f\x98", "\\ufffd"},
        {"\xf0\x9f\x98\xc3\xa9", "\\ufffd\\u00e9"},
        {"\xf4\x90\x80\x80", "\\ufffd\\ufffd\\ufffd\\ufffd"},
        {"\xf8\x88\x80\x80\x80", "\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char want[64];
        snprintf(want, sizeof want, "\"%s\"", rows[i][1]);
        CHECK_STR(JSON("s", guarded_string(rows[i][0], strlen(rows[i][0]))), want);
        snprintf(want, sizeof want, "{\"%s\": null}", rows[i][1]);
        CHECK_STR(JSON("{s:n}", guarded_string(rows[i][0], strlen(rows[i][0]))), want);
    }
}

/* Bytes that are often nearly UTF-8. */
TEST(value_replaces_the_same_bytes_as_python)
{
    static const unsigned char likely[] = {0x00, 'a',  '<',  '/',  '"',  0x7f, 0x80, 0x8f, 0x90, 0x9f,
                                           0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed,
                                           0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff};
    FILE *file = python_file();
    random_state = 2;
    for (int i = 0; i < 20000; i++) {
        char bytes[24], hex[49];
        size_t len = random_below(sizeof bytes);
        for (size_t at = 0; at < len; at++)
            bytes[at] = (char)(random_below(4) ? likely[random_below(sizeof likely)] : random_next() & 0xff);
        const char *got = JSON("z", (tornado_bytes){guarded(bytes, len), len});
        CHECK(got != NULL);
        fprintf(file, "%s|%s\n", tornado_hex_encode(bytes, len, hex), got);
    }
    python_agrees(file, "for line in lines:\n"
                        "    bytes_, got = line.decode('ascii').split('|', 1)\n"
                        "    same(got, written(bytes.fromhex(bytes_).decode('utf-8', 'replace')))\n");
}

/* Short strings, and blocks of 16 bytes of longer ones, have ways of their own. */
TEST(value_escapes_at_any_place_of_a_string_of_any_length)
{
    static const char fill[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char *const specials[][2] = {{"\"", "\\\""},   {"\x1f", "\\u001f"}, {"\xc3\xa9", "\\u00e9"},
                                              {"</", "<\\/"}, {"/", "/"},          {"\xff", "\\ufffd"}};
    for (size_t len = 0; len <= 52; len++)
        for (size_t at = 0; at <= len; at++)
            for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++) {
                char text[80], want[100];
                int before = (int)at, behind = (int)(len - at);
                snprintf(text, sizeof text, "%.*s%s%.*s", before, fill, specials[i][0], behind, fill + at);
                snprintf(want, sizeof want, "\"%.*s%s%.*s\"", before, fill, specials[i][1], behind, fill + at);
                size_t size = strlen(text);
                tornado_buffer out = {NULL, 0, 0, false};
                CHECK(tornado_json_pack(&out, "z", (tornado_bytes){guarded(text, size), size}));
                CHECK_STR(out.data, want);
                tornado_buffer_free(&out);
            }
}

TEST(value_writes_long_strings)
{
    enum { LEN = 300000 };
    char *text = malloc(LEN + 1);
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(text != NULL);
    memset(text, '\x02', LEN);
    text[LEN] = '\0';
    CHECK(tornado_json_pack(&out, "[s, s]", text, "x"));
    CHECK_INT(out.len, 6 * (size_t)LEN + 2 + 7);
    for (size_t i = 0; i < LEN; i++)
        CHECK(memcmp(out.data + 2 + 6 * i, "\\u0002", 6) == 0);
    CHECK_STR(out.data + out.len - 7, "\", \"x\"]");
    tornado_buffer_free(&out);
    free(text);
}

/*----------------------------------------------------------------------------
 * Whole documents.
 *----------------------------------------------------------------------------*/

/* A string of up to 20 characters of all kinds; without NUL in a key. */
static tornado_bytes random_string(bool key)
{
    char *text = tornado_arena_alloc(arena(), 20 * 4 + 1);
    size_t len = 0;
    CHECK(text != NULL);
    for (unsigned count = random_below(20); count > 0; count--) {
        static const uint32_t kinds[][2] = {
            {0, 0x80}, {0x20, 0x5f}, {0x80, 0x780}, {0x800, 0xd000}, {0x10000, 0x100000}};
        unsigned kind = random_below(7);
        uint32_t c = kind == 5 ? '<' : kind == 6 ? '/' : kinds[kind][0] + random_below(kinds[kind][1]);
        len += tornado_utf8_encode(key && !c ? 'x' : c, text + len);
    }
    text[len] = '\0';
    return (tornado_bytes){text, len};
}

static const char *random_tree(int depth)
{
    static const char *const lists[] = {"[]", "[j]", "[j, j]", "[j, j, j]"};
    static const char *const objects[] = {"{}", "{s:j}", "{s:j, s:j}", "{s:j, s:j, s:j}"};
    const char *keys[3] = {"", "", ""}, *values[3] = {"", "", ""};
    unsigned kind = random_below(depth < 6 ? 9 : 7), count;
    switch (kind) {
    case 0:
        return JSON("n");
    case 1:
        return JSON("b", random_below(2) == 1);
    case 2:
        return JSON("I", (int64_t)random_next());
    case 3:
        return JSON("U", random_next());
    case 4:
        return JSON("f", double_of(random_next() & ~(UINT64_C(1) << 52))); /* finite, that is */
    case 5:
        return JSON("z", random_string(false));
    case 6:
        return JSON("i", (int)random_below(1000) - 500);
    default:
        break;
    }
    count = random_below(4);
    for (unsigned i = 0; i < count; i++) {
        if (kind == 8)
            keys[i] = tornado_arena_printf(arena(), "%u%s", i, random_string(true).data);
        values[i] = random_tree(depth + 1);
        CHECK(keys[i] && values[i]);
    }
    if (kind == 7)
        return JSON(lists[count], values[0], values[1], values[2]);
    return JSON(objects[count], keys[0], values[0], keys[1], values[1], keys[2], values[2]);
}

TEST(value_writes_random_trees_as_python_does)
{
    FILE *file = python_file();
    random_state = 3;
    for (int i = 0; i < 1500; i++)
        fprintf(file, "%s\n", random_tree(i < 100 ? 6 : 0));
    python_agrees(file,
                  "state = 3\n"
                  "def next_():\n"
                  "    global state\n"
                  "    z = state = (state + 0x9e3779b97f4a7c15) % 2**64\n"
                  "    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 % 2**64\n"
                  "    z = (z ^ z >> 27) * 0x94d049bb133111eb % 2**64\n"
                  "    return z ^ z >> 31\n"
                  "def below(limit): return (next_() >> 33) % limit\n"
                  "kinds = [(0, 0x80), (0x20, 0x5f), (0x80, 0x780), (0x800, 0xd000), (0x10000, 0x100000)]\n"
                  "def character(key):\n"
                  "    kind = below(7)\n"
                  "    if kind > 4: return '</'[kind - 5]\n"
                  "    c = kinds[kind][0] + below(kinds[kind][1])\n"
                  "    return 'x' if key and c == 0 else chr(c)\n"
                  "def string(key): return ''.join(character(key) for i in range(below(20)))\n"
                  "def signed(n): return n - 2**64 if n >= 2**63 else n\n"
                  "def tree(depth):\n"
                  "    kind = below(9 if depth < 6 else 7)\n"
                  "    if kind == 0: return None\n"
                  "    if kind == 1: return below(2) == 1\n"
                  "    if kind == 2: return signed(next_())\n"
                  "    if kind == 3: return next_()\n"
                  "    if kind == 4: return struct.unpack('>d', struct.pack('>Q', next_() & ~(1 << 52)))[0]\n"
                  "    if kind == 5: return string(False)\n"
                  "    if kind == 6: return below(1000) - 500\n"
                  "    if kind == 7: return [tree(depth + 1) for i in range(below(4))]\n"
                  "    return {str(i) + string(True): tree(depth + 1) for i in range(below(4))}\n"
                  "for number, line in enumerate(lines):\n"
                  "    want = tree(6 if number < 100 else 0)\n"
                  "    same(line.decode('ascii'), written(want))\n"
                  "    same(json.loads(line), want)\n"
                  "assert len(lines) == 1500\n");
}
