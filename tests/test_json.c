/* Dynamic values: reading JSON, asking, comparing, building, writing, taking apart; held against Python's json module
   where that is there. */
#include "runtime.h"

#include <limits.h>
#include <locale.h>

#include "guard.h"

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

static const tornado_value *decode_bytes(const char *text, size_t len)
{
    return tornado_json_decode(arena(), (tornado_bytes){text, len});
}

/* A value that must be there. */
static const tornado_value *decode(const char *text)
{
    const tornado_value *value = decode_bytes(guarded(text, strlen(text)), strlen(text));
    if (!value)
        FAIL("%s: %s", text, tornado_last_error()->message);
    return value;
}

static const char *encode_with(const tornado_value *value, tornado_json_options options)
{
    tornado_buffer out = {NULL, 0, 0, false};
    if (!tornado_json_encode_with(&out, value, &options))
        FAIL("%s", tornado_last_error()->message);
    CHECK_INT(strlen(out.data), out.len);
    char *copy = tornado_arena_strdup(arena(), out.data);
    tornado_buffer_free(&out);
    return copy;
}

static const char *encode(const tornado_value *value)
{
    return encode_with(value, (tornado_json_options){.utf8 = false});
}

static double infinite(void)
{
    volatile double large = 1e308;
    return large * 10;
}

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

/* `count` times the same text. */
static char *repeat(const char *text, size_t count)
{
    size_t len = strlen(text);
    char *all = tornado_arena_alloc(arena(), len * count + 1);
    CHECK(all != NULL);
    for (size_t i = 0; i < count; i++)
        memcpy(all + i * len, text, len);
    all[len * count] = '\0';
    return all;
}

/*----------------------------------------------------------------------------
 * Reading.
 *----------------------------------------------------------------------------*/

/* JSON, and what it is written as. */
TEST(json_reads_what_is_json)
{
    static const char *const rows[][2] = {
        {"null", "null"},
        {"true", "true"},
        {"false", "false"},
        {"0", "0"},
        {"-0", "0"},
        {"-1", "-1"},
        {"42", "42"},
        {"\"\"", "\"\""},
        {"\"a\"", "\"a\""},
        {"[]", "[]"},
        {"{}", "{}"},
        {" \t\r\n[ \t\r\n] \t\r\n", "[]"},
        {" { } ", "{}"},
        {"[1,2 , 3]", "[1, 2, 3]"},
        {"[[],[[]],{}]", "[[], [[]], {}]"},
        {"{\"a\":1,\"b\" : [true,null] ,\"c\":{\"d\":\"e\"}}",
         "{\"a\": 1, \"b\": [true, null], \"c\": {\"d\": \"e\"}}"},
        {"{\"\":0}", "{\"\": 0}"},
        {"{\"a\":1,\"a\":2}", "{\"a\": 1, \"a\": 2}"},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\b\\f\\n\\r\\t\""},
        {"\"\\u0041\\u00e9\\u20AC\\uD83D\\ude00\\u0000z\"", "\"A\\u00e9\\u20ac\\ud83d\\ude00\\u0000z\""},
        {"\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\x7f\"", "\"\\u00e9 \\u20ac \\ud83d\\ude00\\u007f\""},
        {"\"<\\/script>\"", "\"<\\/script>\""},
        {"[-1.5e3,1E2,1e+2,1e-2,0.0,-0.0]", "[-1500.0, 100.0, 100.0, 0.01, 0.0, -0.0]"},
        {"9223372036854775807", "9223372036854775807"},
        {"-9223372036854775808", "-9223372036854775808"},
        {"9223372036854775808", "9223372036854775808"},
        {"18446744073709551615", "18446744073709551615"},
        {"18446744073709551616", "1.8446744073709552e+19"},
        {"-9223372036854775809", "-9.223372036854776e+18"},
        {"123456789012345678901234567890", "1.2345678901234568e+29"},
        {"999999999999999999", "999999999999999999"},
        {"1000000000000000000", "1000000000000000000"},
        {"1e-400", "0.0"},
        {"-1e-400", "-0.0"},
        {"0e999999", "0.0"},
        {"[\"a\",\"b\"]", "[\"a\", \"b\"]"},
        {"\"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\"", "\"\\ud7ff\\ue000\\udbff\\udfff\""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK_STR(encode(decode(rows[i][0])), rows[i][1]);
}

/* What is wrong, and the byte that the message names. */
TEST(json_refuses_what_is_no_json)
{
    static const struct {
        const char *text;
        int byte;
    } rows[] = {
        {"", 0},
        {" ", 1},
        {"nul", 0},
        {"nulL", 0},
        {"True", 0},
        {"truex", 4},
        {"NaN", 0},
        {"Infinity", 0},
        {"-Infinity", 1},
        {"+1", 0},
        {"-", 1},
        {"01", 0},
        {"-01", 1},
        {"00", 0},
        {".5", 0},
        {"1.", 2},
        {"1.e5", 2},
        {"1e", 2},
        {"1e+", 3},
        {"1.5.5", 3},
        {"1e5e5", 3},
        {"0x10", 1},
        {"1e999", 0},
        {"-1e999", 0},
        {"[1,1e309]", 3},
        {"1.7976931348623159e308", 0},
        {"[", 1},
        {"[1", 2},
        {"[1,", 3},
        {"[1,]", 3},
        {"[,1]", 1},
        {"[1 2]", 3},
        {"[1}", 2},
        {"]", 0},
        {"[]]", 2},
        {"{", 1},
        {"{,}", 1},
        {"{\"a\"", 4},
        {"{\"a\":", 5},
        {"{\"a\":1", 6},
        {"{\"a\":1,", 7},
        {"{\"a\":1,}", 7},
        {"{\"a\" 1}", 5},
        {"{\"a\",1}", 4},
        {"{a:1}", 1},
        {"{'a':1}", 1},
        {"{1:1}", 1},
        {"{\"a\":1]", 6},
        {"{\"a\":}", 5},
        {"\"", 1},
        {"\"abc", 4},
        {"\"a\nb\"", 2},
        {"\"a\tb\"", 2},
        {"\"\x1f\"", 1},
        {"\"\\", 1},
        {"\"\\x\"", 1},
        {"\"\\u12\"", 1},
        {"\"\\u12g4\"", 1},
        {"\"\\U1234\"", 1},
        {"\"\\ud800\"", 1},
        {"\"\\udc00\"", 1},
        {"\"\\ud800\\u0041\"", 1},
        {"\"\\ud800\\ud800\"", 1},
        {"\"\\ud83dx\"", 1},
        {"\"a\\ud83d\\n\"", 2},
        {"\"\\\xc3\xa9\"", 1},
        {"\"\x80\"", 1},
        {"\"\xc3\"", 1},
        {"\"\xc0\xaf\"", 1},
        {"\"\xc1\xbf\"", 1},
        {"\"\xe0\x9f\xbf\"", 1},
        {"\"\xed\xa0\x80\"", 1},
        {"\"\xf0\x8f\xbf\xbf\"", 1},
        {"\"\xf4\x90\x80\x80\"", 1},
        {"\"\xf5\x80\x80\x80\"", 1},
        {"\"\xf8\x88\x80\x80\x80\"", 1},
        {"\"\xe2\x82\"", 1},
        {"\"\xf0\x9f\x98\"", 1},
        {"\"\xff\"", 1},
        {"\xc3\xa9", 0},
        {"\xef\xbb\xbf{}", 0},
        {"[\xc2\xa0]", 1},
        {"[]x", 2},
        {"1 2", 2},
        {"{} {}", 3},
        {"// a\n1", 0},
        {"/**/1", 0},
        {"[1]//", 3},
        {"\v1", 0},
        {"\f1", 0},
        {"'a'", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t len = strlen(rows[i].text);
        char want[40];
        if (decode_bytes(guarded(rows[i].text, len), len))
            FAIL("taken: %s", rows[i].text);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
        snprintf(want, sizeof want, "(byte %d)", rows[i].byte);
        if (!strstr(tornado_last_error()->message, want))
            FAIL("%s: no %s in: %s", rows[i].text, want, tornado_last_error()->message);
    }
}

TEST(json_refuses_a_nul_anywhere)
{
    static const char text[] = "[1, \"ab\", {\"c\": true}]";
    for (size_t at = 0; at < sizeof text; at++) {
        char copy[sizeof text];
        memcpy(copy, text, sizeof text);
        memmove(copy + at + 1, copy + at, sizeof text - 1 - at);
        copy[at] = '\0';
        CHECK(!decode_bytes(guarded(copy, sizeof copy), sizeof copy));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
    }
}

TEST(json_tells_line_column_and_byte_of_a_mistake)
{
    static const char *const rows[][2] = {
        {"[1,\n  2,\n  x]", "a value is wanted, at line 3 column 3 (byte 11)"},
        {"{\"\xc3\xa9\xe2\x82\xac\": 1,\r\n \"\xf0\x9f\x98\x80\" 2}",
         "a \":\" is wanted, at line 2 column 6 (byte 22)"},
        {"[1 2]", "a \",\" or a \"]\" is wanted, at line 1 column 4 (byte 3)"},
        {"\n\n", "a value is wanted, at line 3 column 1 (byte 2)"},
        {"\"abc", "the end of a string is missing, at line 1 column 5 (byte 4)"},
        {"{\"a\": 1,}", "a key in double quotes is wanted, at line 1 column 9 (byte 8)"},
        {"\"\xc3\xa9\\q\"", "a backslash that means nothing, at line 1 column 3 (byte 3)"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK(!decode_bytes(rows[i][0], strlen(rows[i][0])));
        CHECK_STR(tornado_last_error()->message, rows[i][1]);
    }
}

TEST(json_refuses_every_prefix)
{
    static const char text[] =
        "{\"a\\n\\u00e9\\ud83d\\ude00\": [1.25e+3, -7, true, null, \"\xc3\xa9\xf0\x9f\x98\x80 plain text "
        "that is longer than a block\"], \"b\": {}}";
    for (size_t len = 0; len < sizeof text - 1; len++) {
        CHECK(!decode_bytes(guarded(text, len), len));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
    }
    CHECK(decode(text) != NULL);
}

TEST(json_nests_up_to_512_deep)
{
    static const char *const rows[][3] = {{"[", "]", "1"}, {"{\"a\":", "}", "1"}, {"[{\"a\":", "}]", "[]"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t each = i == 2 ? 2 : 1, inside = rows[i][2][0] == '[', most = (512 - inside) / each;
        for (size_t count = most; count <= most + 1; count++) {
            char *text = tornado_arena_printf(arena(), "%s%s%s", repeat(rows[i][0], count), rows[i][2],
                                              repeat(rows[i][1], count));
            const tornado_value *value = decode_bytes(text, strlen(text));
            if (count * each + inside <= 512) {
                CHECK(value != NULL);
                CHECK(tornado_value_equal(value, decode_bytes(text, strlen(text))));
                CHECK(tornado_value_equal(value, decode_bytes(encode(value), strlen(encode(value)))));
            } else {
                CHECK(!value);
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
            }
        }
    }
    CHECK(!decode_bytes(repeat("[", 1000000), 1000000));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
}

/* Cells are counted beforehand: the densest texts there are. */
TEST(json_reads_many_values_in_little_text)
{
    static const char *const rows[][3] = {
        {"[", "1,", "1]"},     {"[", "[],", "[]]"},        {"{", "\"\":1,", "\"\":1}"}, {"[", "{},", "0]"},
        {"[[", "1],[", "1]]"}, {"[\"", ",:[{,:[{", "\"]"}, {"[", "{\"\":[0]},", "0]"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (size_t count = 0; count < 3000; count += 1 + count / 2) {
            char *text = tornado_arena_printf(arena(), "%s%s%s", rows[i][0], repeat(rows[i][1], count), rows[i][2]);
            const tornado_value *value = decode_bytes(text, strlen(text));
            CHECK(value != NULL);
            CHECK_STR(encode_with(value, (tornado_json_options){.compact = true}), text);
            for (size_t len = strlen(text) - 1; len > 0 && len + 12 > strlen(text); len--)
                CHECK(!decode_bytes(text, len));
        }
}

TEST(json_decodes_at_any_place_of_a_string_of_any_length)
{
    static const char fill[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char *const specials[][2] = {
        {"\\n", "\n"},  {"\\u00e9", "\xc3\xa9"}, {"\xc3\xa9", "\xc3\xa9"},
        {"\\\"", "\""}, {"\\\\\\/", "\\/"},      {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"}};
    for (size_t len = 0; len <= 40; len++)
        for (size_t at = 0; at <= len; at++)
            for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++)
                for (int twice = 0; twice < 2; twice++) {
                    char text[120], want[120];
                    int before = (int)at, behind = (int)(len - at);
                    size_t size = (size_t)snprintf(text, sizeof text, "\"%.*s%s%.*s%s\"", before, fill,
                                                   specials[i][0], behind, fill + at, twice ? specials[i][0] : "");
                    snprintf(want, sizeof want, "%.*s%s%.*s%s", before, fill, specials[i][1], behind, fill + at,
                             twice ? specials[i][1] : "");
                    tornado_bytes got = tornado_value_bytes(decode_bytes(guarded(text, size), size));
                    CHECK_MEM(got.data, got.len + 1, want, strlen(want) + 1);
                }
}

TEST(json_does_not_keep_the_text)
{
    char text[] = "{\"key\": [\"value\", \"\\u0041\"]}";
    const tornado_value *value = decode_bytes(text, sizeof text - 1);
    memset(text, 'x', sizeof text);
    CHECK_STR(encode(value), "{\"key\": [\"value\", \"A\"]}");
}

/* Wherever the text and what it is copied to begin. */
TEST(json_reads_text_at_any_address)
{
    static const char text[] = "{\"a\": [1, 2.5, \"a string of more than sixteen bytes \xc3\xa9\"], \"b\": null}";
    char *room = malloc(sizeof text + 64);
    CHECK(room != NULL);
    for (size_t at = 0; at < 64; at++) {
        memcpy(room + at, text, sizeof text - 1);
        CHECK_STR(encode(decode_bytes(room + at, sizeof text - 1)),
                  "{\"a\": [1, 2.5, \"a string of more than sixteen bytes \\u00e9\"], \"b\": null}");
    }
    free(room);
}

TEST(json_reads_doubles_whatever_the_locale)
{
    static const char *const locales[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "C"};
    for (size_t i = 0; i < sizeof locales / sizeof locales[0]; i++) {
        setlocale(LC_ALL, locales[i]);
        CHECK_STR(encode(decode("[1.5, 9007199254740993.0, 9007199254740993.00000000000000000000000000001]")),
                  "[1.5, 9007199254740992.0, 9007199254740994.0]");
    }
}

/* Halfway between two doubles, and next to that; far more digits than count; the ends of the range. */
TEST(json_reads_doubles_to_the_nearest)
{
    static const struct {
        const char *text;
        double want;
    } rows[] = {
        {"9007199254740993.0", 9007199254740992.0},
        {"9007199254740995.0", 9007199254740996.0},
        {"9007199254740992.99999999999999999999999", 9007199254740992.0},
        {"9007199254740993.00000000000000000000001", 9007199254740994.0},
        {"4.9e-324", 4.9e-324},
        {"2.4703282292062327e-324", 0},
        {"2.4703282292062328e-324", 4.9e-324},
        {"2e-324", 0},
        {"2.2250738585072011e-308", 0x0.fffffffffffffp-1022},
        {"2.2250738585072012e-308", 0x1p-1022},
        {"1.7976931348623157e308", 0x1.fffffffffffffp1023},
        {"1.7976931348623158e308", 0x1.fffffffffffffp1023},
        {"0.000000000000000000000000000000000000000000000000001e51", 1},
        {"100000000000000000000000000000000000e-35", 1},
        {"0.1", 0.1},
        {"123456789012345678.5", 123456789012345678.5},
        {"7.3177701707893310e+15", 7.3177701707893310e+15},
        {"1e23", 1e23},
        {"8.5e22", 8.5e22},
        {"1e-5", 1e-5},
        {"6.02214076e23", 6.02214076e23},
        {"1e0000000000000000000001", 10},
        {"1e-99999999999999999999999", 0},
        {"0.0e99999999999999999999999", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK_DOUBLE(tornado_value_double(decode(rows[i].text), -1), rows[i].want);
    char *zeros = repeat("0", 5000);
    CHECK_DOUBLE(tornado_value_double(decode_bytes(tornado_arena_printf(arena(), "1%se-5000", zeros), 5007), -1),
                 1);
    CHECK_DOUBLE(tornado_value_double(decode_bytes(tornado_arena_printf(arena(), "0.%s1e5001", zeros), 5008), -1),
                 1);
    char *halfway = tornado_arena_printf(arena(), "9007199254740993.%s1", zeros);
    CHECK_DOUBLE(tornado_value_double(decode_bytes(halfway, strlen(halfway)), -1), 9007199254740994.0);
    CHECK_DOUBLE(tornado_value_double(decode_bytes(halfway, strlen(halfway) - 1), -1), 9007199254740992.0);
}

/* Random decimals, and decimals next to the midpoint of two doubles, against strtod; what is written is read back. */
TEST(json_reads_any_double_as_strtod_does)
{
    random_state = 3;
    for (int i = 0; i < 60000; i++) {
        char text[900];
        uint64_t bits = random_next();
        double number, got;
        switch (i % 4) {
        case 0: {
            memcpy(&number, &bits, sizeof number);
            if (number - number != 0)
                continue;
            snprintf(text, sizeof text, "%.*e", (int)random_below(25), number);
            break;
        }
        case 1:
            snprintf(text, sizeof text, "%llue%d", (unsigned long long)bits >> random_below(64),
                     (int)random_below(660) - 345);
            break;
        case 2:
            snprintf(text, sizeof text, "%u.%0*llu", random_below(1000), (int)random_below(20),
                     (unsigned long long)bits >> (11 + random_below(50)));
            break;
        default: { /* the midpoint, exactly; perhaps with its last digit changed */
            uint64_t mantissa = (bits >> 11 & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1) << 52;
            uint64_t unit = UINT64_C(1) << (bits & 7);
            snprintf(text, sizeof text, "%llu.%s", (unsigned long long)((2 * mantissa + 1) / 2 / unit * unit), "5");
            break;
        }
        }
        if (strtod(text, NULL) - strtod(text, NULL) != 0)
            continue;
        const tornado_value *value = decode_bytes(text, strlen(text));
        CHECK(value != NULL);
        got = tornado_value_double(value, infinite());
        number = strtod(text, NULL);
        if (memcmp(&got, &number, sizeof got) != 0 && number != 0)
            FAIL("%s gives %a, not %a", text, got, number);
    }
}

/* Midpoints of neighbouring doubles, subnormal ones among them, with all their digits; and the decimals just above and
   below. Python works with integers there, and reads what is written here as bits. */
TEST(json_reads_points_halfway_between_doubles_as_python_does)
{
    TEST_NEED("python3");
    const test_output *out = test_run(
        "python3 - <<'END'\n"
        "import random, struct\n"
        "from decimal import Decimal, getcontext\n"
        "getcontext().prec = 1100\n"
        "random.seed(7)\n"
        "for n in range(600):\n"
        "    exponent = random.choice([0, 1, 2, 1000, 1022, 1023, 1075, 1080, 1100, 2000, 2046])\n"
        "    bits = random.getrandbits(52) | exponent << 52\n"
        "    bits = min(bits >> random.choice([0, 0, 50]), 0x7feffffffffffffe)\n"
        "    low, high = (Decimal(struct.unpack('d', struct.pack('Q', b))[0]) for b in (bits, bits + 1))\n"
        "    middle = format((low + high) / 2, 'e')\n"
        "    digits, e, power = middle.partition('e')\n"
        "    digits += '' if '.' in digits else '.0'\n"
        "    for digits in digits, digits + '1', digits + '0' * 900 + '1', digits[:random.randint(4, 25)]:\n"
        "        text = digits + e + power\n"
        "        print(text, struct.unpack('Q', struct.pack('d', float(text)))[0])\n"
        "END");
    int count = 0;
    for (const char *at = out->text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1, count++) {
        const char *space = memchr(at, ' ', (size_t)(end - at));
        CHECK(space != NULL);
        const tornado_value *value = decode_bytes(at, (size_t)(space - at));
        double number = tornado_value_double(value, -1);
        uint64_t bits, want = strtoull(space + 1, NULL, 10);
        memcpy(&bits, &number, sizeof bits);
        if (bits != want)
            FAIL("%.*s gives %a", (int)(space - at), at, number);
    }
    CHECK_INT(count, 2400);
}

TEST(json_takes_memory_linear_in_the_text)
{
    static const char *const units[] = {"1,", "[],", "\"a\",", "{\"a\":1},", "\",,,,,,,,,,\","};
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        char *text = tornado_arena_printf(arena(), "[%s0]", repeat(units[i], 20000));
        long before = test_allocs();
        CHECK(decode_bytes(text, strlen(text)) != NULL);
        CHECK(test_allocs() - before <= 2);
    }
}

/*----------------------------------------------------------------------------
 * Against Python.
 *----------------------------------------------------------------------------*/

/* Writes lines to a file, which a script then reads as `lines`; it must end without an exception. */
static FILE *python_file(char path[256])
{
    const char *directory = getenv("TMPDIR");
    TEST_NEED("python3");
    snprintf(path, 256, "%s/tornado-json-XXXXXX", directory ? directory : "/tmp");
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    FILE *file = fdopen(fd, "wb");
    CHECK(file != NULL);
    return file;
}

static void python_agrees(FILE *file, const char *path, const char *script)
{
    CHECK(fclose(file) == 0);
    const test_output *out = test_run("python3 - %s 2>&1 <<'END'\n"
                                      "import json, sys\n"
                                      "lines = open(sys.argv[1], 'rb').read().split(b'\\n')[:-1]\n"
                                      "%s"
                                      "print('done', len(lines))\n"
                                      "END\n",
                                      path, script);
    unlink(path);
    if (strncmp(out->text, "done ", 5) != 0)
        FAIL("python: %s", out->text);
    CHECK(atoi(out->text + 5) > 0);
}

/* Texts that are nearly JSON: right ones with a few bytes changed. */
TEST(json_takes_what_python_takes)
{
    static const char *const seeds[] = {
        "{\"a\":[1,-2.5e+3,true,false,null],\"b\\n\":{\"c\":\"\\u00e9\\ud83d\\ude00\"}}",
        "[[],{},[{}],\"x\\\\\",0.5,1e5]",
        "\"\\\"\\/\\b\\f\\n\\r\\t\"",
        "[10,20 , 30\n,{\"k\" : \"v\"}]",
        "-12345678901234567890.5",
        "[\"\xc3\xa9\xe2\x82\xac\"]"};
    static const char likely[] = "{}[],:\"\\0123456789.eE+-truefalsn \n/'u";
    char path[256];
    FILE *file = python_file(path);
    random_state = 4;
    for (int i = 0; i < 20000; i++) {
        const char *seed = seeds[random_below(sizeof seeds / sizeof seeds[0])];
        char text[128], hex[257];
        size_t len = strlen(seed);
        memcpy(text, seed, len);
        for (unsigned changes = random_below(3); changes > 0; changes--) {
            size_t at = random_below((unsigned)len);
            switch (random_below(3)) {
            case 0:
                text[at] = likely[random_below(sizeof likely - 1)];
                break;
            case 1:
                memmove(text + at, text + at + 1, len - at - 1);
                len--;
                break;
            default:
                memmove(text + at + 1, text + at, len - at);
                text[at] = likely[random_below(sizeof likely - 1)];
                len++;
            }
        }
        const tornado_value *value = decode_bytes(guarded(text, len), len);
        fprintf(file, "%s|%s\n", tornado_hex_encode(text, len, hex), value ? encode(value) : "-");
    }
    python_agrees(file, path,
                  "def refuse(word): raise ValueError(word)\n"
                  "def number(text):\n"
                  "    value = float(text)\n"
                  "    if value in (float('inf'), float('-inf')): raise ValueError(text)\n"
                  "    return value\n"
                  "def whole(text):\n"
                  "    return int(text) if -2**63 <= int(text) < 2**64 else number(text)\n"
                  "def pairs(items):\n"
                  "    return ('dict', items)\n"
                  "def read(text, **more):\n"
                  "    return json.loads(text, parse_constant=refuse, parse_float=number, parse_int=whole,\n"
                  "                      object_pairs_hook=pairs)\n"
                  "taken = 0\n"
                  "for line in lines:\n"
                  "    hex_, got = line.decode('ascii').split('|', 1)\n"
                  "    try:\n"
                  "        text = bytes.fromhex(hex_).decode('utf-8')\n"
                  "        want = read(text)\n"
                  "        json.dumps(want, ensure_ascii=False).encode('utf-8')\n"
                  "    except ValueError:\n"
                  "        assert got == '-', (text, got)\n"
                  "    else:\n"
                  "        taken += 1\n"
                  "        assert got != '-', text\n"
                  "        assert repr(read(got)) == repr(want), (text, got)\n"
                  "assert taken > 5000, taken\n");
}

/* A value at random, as JSON; with its dicts' keys all different. */
static const tornado_value *random_value(int depth)
{
    char bytes[80];
    size_t len = 0;
    tornado_value *all;
    for (unsigned count = random_below(14); count > 0; count--) {
        static const uint32_t kinds[][2] = {{0, 0x80},     {0x20, 0x5f},    {0x20, 0x5f},
                                            {0x80, 0x780}, {0x800, 0xd000}, {0x10000, 0x100000}};
        unsigned kind = random_below(6);
        len += tornado_utf8_encode(kinds[kind][0] + random_below(kinds[kind][1]), bytes + len);
    }
    switch (random_below(depth < 5 ? 9 : 6)) {
    case 0:
        return tornado_value_new_null(arena());
    case 1:
        return tornado_value_new_bool(arena(), random_below(2));
    case 2:
        return tornado_value_new_integer(arena(), (int64_t)random_next() >> random_below(64));
    case 3:
        return tornado_value_new_unsigned(arena(), random_next());
    case 4:
        return tornado_value_new_double(arena(), (double)(int64_t)random_next() / (double)(1 << random_below(30)));
    case 5:
        return tornado_value_new_bytes(arena(), (tornado_bytes){bytes, len});
    case 6:
        all = tornado_value_new_list(arena());
        for (unsigned count = random_below(5); count > 0; count--)
            tornado_value_append(all, random_value(depth + 1));
        return all;
    default:
        all = tornado_value_new_dict(arena());
        for (unsigned count = random_below(depth == 1 ? 80 : 6); count > 0; count--) {
            size_t key = (size_t)snprintf(bytes, sizeof bytes, "%u \xc3\xa9</", count);
            tornado_value_set_bytes(all, (tornado_bytes){bytes, key}, random_value(depth + 1));
        }
        return all;
    }
}

TEST_LIMIT(json_writes_values_as_python_does, 30)
{
    static const struct {
        tornado_json_options options;
        const char *python;
    } rows[] = {
        {{.utf8 = false}, ""},
        {{.utf8 = true}, "ensure_ascii=False"},
        {{.compact = true}, "separators=(',', ':')"},
        {{.utf8 = true, .indent = 3}, "ensure_ascii=False, indent=3"},
        {{.compact = true, .indent = 1}, "separators=(',', ':'), indent=1"},
    };
    char path[256];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        FILE *file = python_file(path);
        random_state = 5 + i;
        for (int n = 0; n < 120; n++) {
            const tornado_value *value = random_value(0);
            const char *text = encode(value), *styled = encode_with(value, rows[i].options);
            CHECK(tornado_value_equal(value, decode_bytes(text, strlen(text))));
            CHECK(tornado_value_equal(value, decode_bytes(styled, strlen(styled))));
            CHECK_STR(encode_with(decode_bytes(styled, strlen(styled)), rows[i].options), styled);
            char *hex = tornado_arena_alloc(arena(), 2 * strlen(styled) + 1);
            fprintf(file, "%s|%s\n", text, tornado_hex_encode(styled, strlen(styled), hex));
        }
        python_agrees(file, path,
                      tornado_arena_printf(arena(),
                                           "for line in lines:\n"
                                           "    text, hex_ = line.decode('ascii').rsplit('|', 1)\n"
                                           "    want = json.dumps(json.loads(text), %s).replace('</', '<\\\\/')\n"
                                           "    got = bytes.fromhex(hex_).decode('utf-8')\n"
                                           "    assert got == want, (got, want)\n",
                                           rows[i].python));
    }
}

/*----------------------------------------------------------------------------
 * Asking.
 *----------------------------------------------------------------------------*/

TEST(json_values_know_their_kind)
{
    static const struct {
        const char *text;
        tornado_value_type kind;
        const char *is; /* null, bool, integer, number, string, list, dict */
    } rows[] = {
        {"null", TORNADO_VALUE_NULL, "n"},   {"true", TORNADO_VALUE_BOOL, "b"},
        {"-1", TORNADO_VALUE_INTEGER, "iN"}, {"18446744073709551615", TORNADO_VALUE_UNSIGNED, "iN"},
        {"1.0", TORNADO_VALUE_DOUBLE, "N"},  {"\"\"", TORNADO_VALUE_STRING, "s"},
        {"[]", TORNADO_VALUE_LIST, "l"},     {"{}", TORNADO_VALUE_DICT, "d"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const tornado_value *value = decode(rows[i].text);
        CHECK_INT(tornado_value_kind(value), rows[i].kind);
        char is[8];
        snprintf(is, sizeof is, "%s%s%s%s%s%s%s", tornado_value_is_null(value) ? "n" : "",
                 tornado_value_is_bool(value) ? "b" : "", tornado_value_is_integer(value) ? "i" : "",
                 tornado_value_is_number(value) ? "N" : "", tornado_value_is_string(value) ? "s" : "",
                 tornado_value_is_list(value) ? "l" : "", tornado_value_is_dict(value) ? "d" : "");
        CHECK_STR(is, rows[i].is);
    }
    CHECK_INT(tornado_value_kind(NULL), TORNADO_VALUE_NULL);
    CHECK(tornado_value_is_null(NULL));
    CHECK(!tornado_value_is_dict(NULL));
}

TEST(json_values_give_what_they_hold)
{
    const tornado_value *v = decode(
        "{\"t\": true, \"i\": -5, \"u\": 18446744073709551615, \"f\": 2.5, \"s\": \"a\\u0000b\", \"l\": [1, [2]]}");
    CHECK(tornado_value_bool(tornado_value_get(v, "t"), false));
    CHECK_INT(tornado_value_integer(tornado_value_get(v, "i"), 0), -5);
    CHECK(tornado_value_unsigned(tornado_value_get(v, "u"), 0) == UINT64_MAX);
    CHECK_DOUBLE(tornado_value_double(tornado_value_get(v, "f"), 0), 2.5);
    CHECK_DOUBLE(tornado_value_double(tornado_value_get(v, "i"), 0), -5.0);
    CHECK_DOUBLE(tornado_value_double(tornado_value_get(v, "u"), 0), 18446744073709551616.0);
    tornado_bytes bytes = tornado_value_bytes(tornado_value_get(v, "s"));
    CHECK_MEM(bytes.data, bytes.len + 1, "a\0b", 4);
    CHECK_STR(tornado_value_string(tornado_value_get(v, "s")), "a");
    CHECK_INT(tornado_value_len(tornado_value_get(v, "s")), 3);
    CHECK_INT(tornado_value_len(tornado_value_get(v, "l")), 2);
    CHECK_INT(tornado_value_len(v), 6);
    CHECK_INT(tornado_value_integer(tornado_value_at(tornado_value_at(tornado_value_get(v, "l"), 1), 0), 0), 2);
}

TEST(json_questions_that_do_not_fit_give_the_fallback)
{
    const tornado_value *v = decode("[null, true, 1, 18446744073709551615, 1.0, \"s\", [1], {\"a\": 1}, -1]");
    for (size_t i = 0; i < 10; i++) { /* the last is NULL */
        const tornado_value *value = tornado_value_at(v, i);
        CHECK((value == NULL) == (i == 9));
        CHECK_INT(tornado_value_bool(value, false), i == 1);
        CHECK_INT(tornado_value_bool(value, true), 1);
        CHECK_INT(tornado_value_integer(value, 77), i == 2 ? 1 : i == 8 ? -1 : 77);
        CHECK(tornado_value_unsigned(value, 77) == (i == 2 ? 1 : i == 3 ? UINT64_MAX : 77));
        CHECK((tornado_value_double(value, 0.5) != 0.5) == (i == 2 || i == 3 || i == 4 || i == 8));
        CHECK((tornado_value_string(value) != NULL) == (i == 5));
        CHECK((tornado_value_bytes(value).data != NULL) == (i == 5));
        CHECK_INT(tornado_value_len(value), i >= 5 && i <= 7);
        CHECK((tornado_value_at(value, 0) != NULL) == (i == 6 || i == 7));
        CHECK(tornado_value_at(value, 1) == NULL);
        CHECK((tornado_value_get(value, "a") != NULL) == (i == 7));
        CHECK(tornado_value_get(value, "b") == NULL);
        CHECK(tornado_value_get(value, NULL) == NULL);
        CHECK((tornado_value_key(value, 0) != NULL) == (i == 7));
        CHECK(tornado_value_key(value, 1) == NULL);
        CHECK(tornado_value_string(tornado_value_get(tornado_value_get(value, "x"), "y")) == NULL);
    }
}

TEST(json_dicts_keep_their_order)
{
    const tornado_value *v = decode("{\"z\": 0, \"a\": 1, \"m\\u0000n\": 2}");
    static const char *const keys[] = {"z", "a", "m"};
    for (size_t i = 0; i < 3; i++) {
        CHECK_STR(tornado_value_key(v, i), keys[i]);
        CHECK_INT(tornado_value_integer(tornado_value_at(v, i), -1), (int)i);
    }
    tornado_bytes key = tornado_value_key_bytes(v, 2);
    CHECK_MEM(key.data, key.len, "m\0n", 3);
    CHECK(tornado_value_get(v, "m") == NULL);
    CHECK_INT(tornado_value_integer(tornado_value_get_bytes(v, key), -1), 2);
}

/* Of few keys, and of so many that there is an index. */
TEST(json_of_equal_keys_the_last_is_found)
{
    for (int count = 0; count < 200; count++) {
        tornado_buffer text = {NULL, 0, 0, false};
        for (int i = 0; i < count; i++)
            tornado_buffer_printf(&text, "%s\"%d\": %d", i ? ", " : "{", i % (count / 2 + 1), i);
        tornado_buffer_puts(&text, count ? "}" : "{}");
        const tornado_value *v = decode_bytes(text.data, text.len);
        CHECK_INT(tornado_value_len(v), count);
        for (int i = 0; i <= count; i++) {
            char key[16];
            int last = -1;
            snprintf(key, sizeof key, "%d", i);
            for (int j = i; j < count && i <= count / 2; j += count / 2 + 1)
                last = j;
            CHECK_INT(tornado_value_integer(tornado_value_get(v, key), -1), last);
        }
        CHECK_STR(encode(v), text.data);
        tornado_buffer_free(&text);
    }
}

/*----------------------------------------------------------------------------
 * Comparing.
 *----------------------------------------------------------------------------*/

TEST(json_values_equal_as_in_python)
{
    static const struct {
        const char *a, *b;
        bool equal;
    } rows[] = {
        {"null", "null", true},
        {"null", "false", false},
        {"true", "true", true},
        {"true", "false", false},
        {"true", "1", false},
        {"1", "1.0", true},
        {"1", "1.5", false},
        {"0", "-0.0", true},
        {"-1", "18446744073709551615", false},
        {"9007199254740993", "9007199254740992.0", false},
        {"9223372036854775807", "9223372036854775808.0", false},
        {"18446744073709551615", "18446744073709551616.0", false},
        {"9223372036854775808", "9223372036854775808.0", true},
        {"-9223372036854775808", "-9223372036854775808.0", true},
        {"1e300", "1", false},
        {"1", "-1e300", false},
        {"\"a\"", "\"\\u0061\"", true},
        {"\"a\"", "\"b\"", false},
        {"\"a\"", "\"a\\u0000\"", false},
        {"\"\"", "null", false},
        {"[]", "[]", true},
        {"[]", "{}", false},
        {"[]", "null", false},
        {"[1, 2]", "[1, 2]", true},
        {"[1, 2]", "[2, 1]", false},
        {"[1]", "[1, 2]", false},
        {"[[1], [2, [3]]]", "[[1], [2, [3]]]", true},
        {"[[1], [2, [3]]]", "[[1], [2, [4]]]", false},
        {"{\"a\": 1, \"b\": 2}", "{\"b\": 2, \"a\": 1}", true},
        {"{\"a\": 1}", "{\"a\": 2}", false},
        {"{\"a\": 1}", "{\"b\": 1}", false},
        {"{\"a\": 1}", "{\"a\": 1, \"b\": 2}", false},
        {"{\"a\": 1, \"a\": 2}", "{\"a\": 2}", true},
        {"{\"a\": 2, \"a\": 1}", "{\"a\": 2}", false},
        {"{\"a\": 1, \"a\": 2}", "{\"a\": 2, \"b\": 1}", false},
        {"{\"a\": {\"b\": [1, {}]}}", "{\"a\": {\"b\": [1.0, {}]}}", true},
        {"{\"a\": {\"b\": [1, {}]}}", "{\"a\": {\"b\": [1, []]}}", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const tornado_value *a = decode(rows[i].a), *b = decode(rows[i].b);
        if (tornado_value_equal(a, b) != rows[i].equal || tornado_value_equal(b, a) != rows[i].equal)
            FAIL("%s and %s", rows[i].a, rows[i].b);
        CHECK(tornado_value_equal(a, a));
    }
    CHECK(tornado_value_equal(NULL, NULL));
    CHECK(tornado_value_equal(NULL, decode("null")));
    CHECK(!tornado_value_equal(NULL, decode("[]")));
}

/*----------------------------------------------------------------------------
 * Building.
 *----------------------------------------------------------------------------*/

/* On 32 bits, too, where a size_t has no bits to spare. */
TEST(json_builds_strings_of_many_megabytes)
{
    size_t len = (size_t)9 << 20;
    char *text = malloc(len);
    tornado_arena *own = tornado_arena_new();
    CHECK(text && own);
    memset(text, 'x', len);
    const tornado_value *value = tornado_value_new_bytes(own, (tornado_bytes){text, len});
    CHECK(!tornado_value_failed(value));
    CHECK_INT(tornado_value_len(value), len);
    CHECK(memcmp(tornado_value_string(value), text, len) == 0);
    tornado_arena_free(own);
    free(text);
}

TEST(json_builds_values)
{
    tornado_value *dict = tornado_value_new_dict(arena()), *list = tornado_value_new_list(arena());
    CHECK(tornado_value_append(list, tornado_value_new_integer(arena(), INT64_MIN)));
    CHECK(tornado_value_append(list, tornado_value_new_unsigned(arena(), UINT64_MAX)));
    CHECK(tornado_value_append(list, tornado_value_new_double(arena(), 0.25)));
    CHECK(tornado_value_append(list, tornado_value_new_bytes(arena(), (tornado_bytes){"a\0b", 3})));
    CHECK(tornado_value_append(list, NULL));
    CHECK(tornado_value_append(list, tornado_value_new_string(arena(), NULL)));
    CHECK(tornado_value_set(dict, "list", list));
    CHECK(tornado_value_set(dict, "on", tornado_value_new_bool(arena(), true)));
    CHECK(tornado_value_set_bytes(dict, (tornado_bytes){"a\0b", 3}, tornado_value_new_null(arena())));
    CHECK(tornado_value_set(dict, "parsed", decode("{\"x\": [1]}")));
    CHECK_STR(encode(dict),
              "{\"list\": [-9223372036854775808, 18446744073709551615, 0.25, \"a\\u0000b\", null, null], "
              "\"on\": true, \"a\\u0000b\": null, \"parsed\": {\"x\": [1]}}");
    CHECK_INT(tornado_value_kind(tornado_value_new_unsigned(arena(), 5)), TORNADO_VALUE_INTEGER);
    CHECK_INT(tornado_value_len(list), 6);
    CHECK(!tornado_value_failed(dict));
}

TEST(json_setting_a_key_again_replaces_in_place)
{
    tornado_value *dict = tornado_value_new_dict(arena());
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 100; i++) {
            char key[16];
            snprintf(key, sizeof key, "k%d", i);
            CHECK(tornado_value_set(dict, key, tornado_value_new_integer(arena(), round * 1000 + i)));
        }
    CHECK_INT(tornado_value_len(dict), 100);
    for (size_t i = 0; i < 100; i++) {
        CHECK_INT(atoi(tornado_value_key(dict, i) + 1), (int)i);
        CHECK_INT(tornado_value_integer(tornado_value_at(dict, i), 0), 1000 + (int)i);
        CHECK(tornado_value_get(dict, tornado_value_key(dict, i)) == tornado_value_at(dict, i));
    }
}

TEST(json_what_is_in_a_list_or_dict_is_shared)
{
    tornado_value *outer = tornado_value_new_list(arena()), *inner = tornado_value_new_dict(arena());
    tornado_value_append(outer, inner);
    tornado_value_append(outer, inner);
    tornado_value_set(inner, "a", tornado_value_new_integer(arena(), 1));
    CHECK_STR(encode(outer), "[{\"a\": 1}, {\"a\": 1}]");
}

TEST(json_a_value_may_be_put_into_its_own_list_again)
{
    tornado_value *list = tornado_value_new_list(arena()), *dict = tornado_value_new_dict(arena());
    tornado_value_append(list, tornado_value_new_string(arena(), "x"));
    tornado_value_set(dict, "0", tornado_value_new_string(arena(), "x"));
    for (int i = 1; i < 100; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        CHECK(tornado_value_append(list, tornado_value_at(list, 0)));
        CHECK(tornado_value_set(dict, key, tornado_value_get(dict, "0")));
    }
    for (size_t i = 0; i < 100; i++) {
        CHECK_STR(tornado_value_string(tornado_value_at(list, i)), "x");
        CHECK_STR(tornado_value_string(tornado_value_at(dict, i)), "x");
    }
}

TEST(json_what_was_read_cannot_be_changed)
{
    tornado_value *list = (tornado_value *)(uintptr_t)decode("[1]"),
                  *dict = (tornado_value *)(uintptr_t)decode("{\"a\": 1}");
    tornado_value *built = tornado_value_new_list(arena()), *null = tornado_value_new_null(arena());
    tornado_buffer text = {NULL, 0, 0, false};
    for (int i = 0; i < 50; i++)
        tornado_buffer_printf(&text, "%s\"%d\":1", i ? "," : "{", i);
    tornado_buffer_puts(&text, "}");
    tornado_value *large = (tornado_value *)(uintptr_t)decode(text.data);
    tornado_buffer_free(&text);
    bool done[] = {
        tornado_value_append(list, null),    tornado_value_set(dict, "a", null),
        tornado_value_set(large, "a", null), tornado_value_set(large, "1", null),
        tornado_value_set(built, "a", null), tornado_value_append(NULL, null),
        tornado_value_append(null, null),    tornado_value_set(tornado_value_new_dict(arena()), NULL, null)};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++)
        CHECK(!done[i]);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_STR(encode(list), "[1]");
    CHECK_STR(encode(dict), "{\"a\": 1}");
    CHECK_INT(tornado_value_len(large), 50);
    CHECK(!tornado_value_failed(built));
}

TEST(json_builds_large_values_in_linear_time)
{
    enum { COUNT = 200000 };
    tornado_value *dict = tornado_value_new_dict(arena()), *list = tornado_value_new_list(arena());
    for (int i = 0; i < COUNT; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        tornado_value_set(dict, key, tornado_value_new_integer(arena(), i));
        tornado_value_append(list, tornado_value_new_integer(arena(), i));
    }
    CHECK(!tornado_value_failed(dict) && !tornado_value_failed(list));
    const char *text = encode(dict);
    const tornado_value *again = decode_bytes(text, strlen(text));
    CHECK(tornado_value_equal(dict, again));
    CHECK_INT(tornado_value_integer(tornado_value_get(again, "199999"), -1), 199999);
    CHECK_INT(tornado_value_len(list), COUNT);
}

/* A list that holds itself cannot be written, but does no harm. */
TEST(json_refuses_to_write_what_is_too_deep_or_not_finite)
{
    tornado_value *list = tornado_value_new_list(arena());
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(tornado_buffer_puts(&out, "before"));
    CHECK(tornado_value_append(list, list));
    CHECK(!tornado_json_encode(&out, list));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
    CHECK(!tornado_value_equal(list, list));
    CHECK(!tornado_json_encode(&out, tornado_value_new_double(arena(), infinite())));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_STR(out.data, "before");
    tornado_buffer_free(&out);
}

TEST(json_writes_broken_strings_with_replacements)
{
    tornado_value *value = tornado_value_new_string(arena(), "\xff</\xc3\xa9\x7f\xe2\x82\n");
    CHECK_STR(encode(value), "\"\\ufffd<\\/\\u00e9\\u007f\\ufffd\\n\"");
    CHECK_STR(encode_with(value, (tornado_json_options){.utf8 = true}),
              "\"\xef\xbf\xbd<\\/\xc3\xa9\x7f\xef\xbf\xbd\\n\"");
}

TEST(json_escapes_at_any_place_of_a_string_of_any_length)
{
    static const char fill[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char *const specials[][3] = {{"\"", "\\\"", "\\\""},
                                              {"\x1f", "\\u001f", "\\u001f"},
                                              {"\xc3\xa9", "\\u00e9", "\xc3\xa9"},
                                              {"</", "<\\/", "<\\/"},
                                              {"/", "/", "/"},
                                              {"<", "<", "<"},
                                              {"\x7f", "\\u007f", "\x7f"}};
    for (size_t len = 0; len <= 40; len++)
        for (size_t at = 0; at <= len; at++)
            for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++)
                for (int utf8 = 0; utf8 < 2; utf8++) {
                    char text[80], want[100];
                    int before = (int)at, behind = (int)(len - at);
                    snprintf(text, sizeof text, "%.*s%s%.*s", before, fill, specials[i][0], behind, fill + at);
                    snprintf(want, sizeof want, "\"%.*s%s%.*s\"", before, fill, specials[i][1 + utf8], behind,
                             fill + at);
                    tornado_buffer out = {NULL, 0, 0, false};
                    tornado_json_options options = {.utf8 = utf8 == 1};
                    CHECK(tornado_json_encode_with(&out, tornado_value_new_string(arena(), text), &options));
                    CHECK_STR(out.data, want);
                    tornado_buffer_free(&out);
                }
}

TEST(json_indents)
{
    CHECK_STR(
        encode_with(decode("{\"a\": [], \"b\": {}, \"c\": [1, {\"d\": 2}]}"), (tornado_json_options){.indent = 2}),
        "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1,\n    {\n      \"d\": 2\n    }\n  ]\n}");
    CHECK_STR(encode_with(decode("{\"a\": [1, 2]}"), (tornado_json_options){.compact = true}), "{\"a\":[1,2]}");
    CHECK_STR(encode_with(NULL, (tornado_json_options){.indent = 2}), "null");
}

/*----------------------------------------------------------------------------
 * Formats.
 *----------------------------------------------------------------------------*/

TEST(json_formats_take_values)
{
    const tornado_value *value = decode("{\"a\": [1, \"\xc3\xa9\"]}");
    CHECK_STR(tornado_json_format(arena(), "{v:o, w:[o, o], x:i}", value, NULL, tornado_value_get(value, "a"), 5),
              "{\"v\": {\"a\": [1, \"\\u00e9\"]}, \"w\": [null, [1, \"\\u00e9\"]], \"x\": 5}");
    CHECK_STR(tornado_json_format(arena(), "o", value), "{\"a\": [1, \"\\u00e9\"]}");
    CHECK(!tornado_json_format(arena(), "[o]", tornado_value_new_double(arena(), infinite())));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
}

/* Whatever the buffer's state is behind a value, 64 brackets fit. */
TEST(json_formats_close_64_brackets_behind_a_value)
{
    for (size_t len = 0; len < 300; len++) {
        char *text = repeat("x", len),
             *format = tornado_arena_printf(arena(), "%so%s", repeat("[", 64), repeat("]", 64));
        tornado_value *list = tornado_value_new_list(arena());
        tornado_value_append(list, tornado_value_new_string(arena(), text));
        CHECK_STR(tornado_json_format(arena(), format, list),
                  tornado_arena_printf(arena(), "%s\"%s\"%s", repeat("[", 65), text, repeat("]", 65)));
    }
}

TEST(json_packs_values)
{
    const tornado_value *v =
        tornado_value_pack(arena(), "{name:s, age:i, tags:[s, z, n], raw:j, sub:o, f:f, u:U, s:b}", "Ben", 30, "a",
                           (tornado_bytes){"b\0c", 3}, "[1,{}]", decode("[true]"), 0.1, UINT64_MAX, "key", true);
    CHECK_STR(encode(v),
              "{\"name\": \"Ben\", \"age\": 30, \"tags\": [\"a\", \"b\\u0000c\", null], \"raw\": [1, {}], "
              "\"sub\": [true], \"f\": 0.1, \"u\": 18446744073709551615, \"key\": true}");
    CHECK(!tornado_value_pack(arena(), "[i", 1));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(!tornado_value_pack(arena(), "[j]", "1,]"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
}

TEST(json_unpacks_each_kind)
{
    const char *s = NULL;
    tornado_bytes z = {NULL, 0};
    bool b = false;
    int i = 0;
    int64_t large = 0;
    uint64_t u = 0;
    double f = 0, whole = 0;
    const tornado_value *o = NULL,
                        *v = decode(
                            "{\"s\": \"text\", \"z\": \"a\\u0000b\", \"l\": [true, -7, -9223372036854775808, "
                            "18446744073709551615, [0.5, 3]], \"o\": {\"x\": 1}, \"n\": null}");
    CHECK(tornado_value_unpack(v, " { s : s , z:z, l:[b, i, I, U, [f, f]], o:o, n:n } ", "s", &s, &z, &b, &i,
                               &large, &u, &f, &whole, &o));
    CHECK_STR(s, "text");
    CHECK_MEM(z.data, z.len, "a\0b", 3);
    CHECK(b);
    CHECK_INT(i, -7);
    CHECK_INT(large, INT64_MIN);
    CHECK(u == UINT64_MAX);
    CHECK_DOUBLE(f, 0.5);
    CHECK_DOUBLE(whole, 3.0);
    CHECK(o == tornado_value_get(v, "o"));
    CHECK(tornado_value_unpack(decode("5"), "i", &i));
    CHECK_INT(i, 5);
}

TEST(json_unpacks_a_string_with_a_nul_as_bytes_only)
{
    const char *text = "untouched";
    tornado_bytes bytes;
    CHECK(tornado_value_unpack(decode("[\"a\\u0000b\"]"), "[z]", &bytes));
    CHECK_MEM(bytes.data, bytes.len, "a\0b", 3);
    CHECK(!tornado_value_unpack(decode("[\"a\\u0000b\"]"), "[s]", &text));
    CHECK_STR(text, "untouched");
    CHECK(tornado_value_unpack(decode("[\"\"]"), "[s]", &text));
    CHECK_STR(text, "");
}

TEST(json_unpacks_what_may_be_missing)
{
    int a = -1, b = -2, c = -3, d = -4;
    const char *s = "as it was";
    CHECK(tornado_value_unpack(decode("{\"a\": 1, \"n\": null, \"d\": 4}"),
                               "{a?:i, b?:{x:i, y:[i, s, {z ? :i!}!]}, n?:s, d:i}", &a, &b, &c, &s, &c, &s, &d));
    CHECK_INT(a, 1);
    CHECK_INT(b, -2);
    CHECK_INT(c, -3);
    CHECK_INT(d, 4);
    CHECK_STR(s, "as it was");
    CHECK(tornado_value_unpack(decode("{}"), "{s?:i}", "key", &a));
}

TEST(json_unpacking_tells_what_is_wrong_and_where)
{
    static const char *const rows[][3] = {
        {"{\"user\": {\"age\": \"x\"}}", "{user:{age:i}}", "user.age: an integer is wanted, not a string"},
        {"{\"user\": {}}", "{user:{age:i}}", "user.age: is missing"},
        {"{\"user\": []}", "{user:{age:i}}", "user: a dict is wanted, not a list"},
        {"[]", "{user:{age:i}}", "the value: a dict is wanted, not a list"},
        {"{\"a\": [1, [2, null]]}", "{a:[i, [i, s]]}", "a[1][1]: a string is wanted, not null"},
        {"{\"a\": [1, {\"b\": 1.5}]}", "{a:[i, {b:i}]}", "a[1].b: an integer is wanted, not a double"},
        {"[1]", "[i, i]", "[1]: is missing"},
        {"[1, 2, 3]", "[i, i!]", "the value: a list of 2 is wanted, not of 3"},
        {"{\"l\": [[], [1, 2]]}", "{l:[[!], [i!]]}", "l[1]: a list of 1 is wanted, not of 2"},
        {"{\"a\": 1, \"b\": 2}", "{a:i!}", "b: is not wanted"},
        {"{\"o\": {\"a\": 1, \"c\": 2}}", "{o:{a:i, b?:i!}}", "o.c: is not wanted"},
        {"[3000000000]", "[i]", "[0]: an integer from -2147483648 to 2147483647 is wanted"},
        {"[-3000000000]", "[i]", "[0]: an integer from -2147483648 to 2147483647 is wanted"},
        {"[9223372036854775808]", "[I]",
         "[0]: an integer from -9223372036854775808 to 9223372036854775807 is wanted"},
        {"[-1]", "[U]", "[0]: an integer from 0 to 18446744073709551615 is wanted"},
        {"[1]", "[b]", "[0]: a bool is wanted, not an integer"},
        {"[true]", "[f]", "[0]: a number is wanted, not a bool"},
        {"[1]", "[n]", "[0]: null is wanted, not an integer"},
        {"[18446744073709551615]", "[z]", "[0]: a string is wanted, not an integer"},
        {"null", "[z]", "the value: a list is wanted, not null"},
        {"{\"path\": \"a\\u0000b\"}", "{path:s}", "path: a string without NUL is wanted"},
        {"[\"\\u0000\"]", "[s]", "[0]: a string without NUL is wanted"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int64_t slots[6] = {0};
        CHECK(!tornado_value_unpack(decode(rows[i][0]), rows[i][1], &slots[0], &slots[2], &slots[4]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        CHECK_STR(tornado_last_error()->message, rows[i][2]);
    }
    CHECK(!tornado_value_unpack(NULL, "{a:i}", NULL));
    CHECK_STR(tornado_last_error()->message, "the value: a dict is wanted, not null");
}

TEST(json_unpacks_strictly_by_all_keys_of_a_dict)
{
    int a = 0, b = 0, c = 0;
    CHECK(tornado_value_unpack(decode("{\"a\": 1, \"o\": {\"b\": 2, \"b\": 3}, \"l\": [4]}"),
                               "{l:[i!], o:{b:i!}, a:i!}", &a, &b, &c));
    CHECK_INT(a * 100 + b * 10 + c, 431);
    CHECK(tornado_value_unpack(decode("{}"), "{!}"));
    CHECK(tornado_value_unpack(decode("{\"a\": 1}"), "{a:i, a:i, b?:i!}", &a, &b, &c));
    CHECK(!tornado_value_unpack(decode("{\"a\": {\"b\": 1}, \"b\": 2}"), "{a:{b:i}!}", &a));
    CHECK_STR(tornado_last_error()->message, "b: is not wanted");
}

TEST(json_refuses_malformed_formats_to_unpack)
{
    static const char *const formats[] = {
        "",       "x",     "j",    "[",  "[i",      "[i,",  "[i,]", "[i i]", "{a}", "{a:i", "{a:i}}",  "{:i}",
        "{a!:i}", "{a?i}", "[i?]", "i!", "[i!, i]", "[i!}", "[!!]", "{a:i]", "}",   "!",    "{a??:i}", "[i}"};
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        int64_t slots[4] = {0};
        const char *value = strchr(formats[i], '{') ? "{\"a\": 1}" : formats[i][0] == '[' ? "[1, 2, 3]" : "1";
        if (tornado_value_unpack(decode(value), formats[i], &slots[0], &slots[1], &slots[2]))
            FAIL("taken: %s", formats[i]);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        if (strncmp(tornado_last_error()->message, "tornado_value_unpack:", 21) != 0)
            FAIL("%s: %s", formats[i], tornado_last_error()->message);
    }
}

/*----------------------------------------------------------------------------
 * Little memory.
 *----------------------------------------------------------------------------*/

static void read_something(void)
{
    tornado_arena *own = tornado_arena_new();
    tornado_buffer text = {NULL, 0, 0, false};
    for (int i = 0; i < 2000; i++)
        tornado_buffer_printf(&text, "%s\"key %d\": [1, \"two\"]", i ? ", " : "{", i);
    tornado_buffer_puts(&text, "}");
    if (own && !text.failed) {
        const tornado_value *value = tornado_json_decode(own, (tornado_bytes){text.data, text.len});
        if (value)
            CHECK_INT(tornado_value_len(tornado_value_get(value, "key 1999")), 2);
        else
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    }
    tornado_buffer_free(&text);
    tornado_arena_free(own);
}

TEST(json_reading_survives_each_shortage_of_memory)
{
    each_shortage(read_something);
}

/* Nothing is checked on the way; the end tells. */
static void build_something(void)
{
    tornado_arena *own = tornado_arena_new();
    tornado_buffer out = {NULL, 0, 0, false};
    if (!own)
        return;
    tornado_value *root = tornado_value_new_dict(own);
    for (int i = 0; i < 100; i++) {
        char key[100];
        tornado_value *list = tornado_value_new_list(own);
        for (int j = 0; j < 5; j++)
            tornado_value_append(list, tornado_value_new_string(own, "a text"));
        snprintf(key, sizeof key, "key %d %80s", i, "");
        tornado_value_set(root, key, list);
    }
    if (tornado_json_encode(&out, root)) {
        const tornado_value *again = tornado_json_decode(own, (tornado_bytes){out.data, out.len});
        CHECK_INT(tornado_value_len(root), 100);
        CHECK(!tornado_value_failed(root));
        if (again) {
            CHECK(tornado_value_equal(root, again));
            CHECK(strstr(out.data, "[\"a text\", \"a text\", \"a text\", \"a text\", \"a text\"]}") != NULL);
        }
    } else {
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        CHECK_INT(out.len, 0);
    }
    tornado_buffer_free(&out);
    tornado_arena_free(own);
}

TEST(json_building_survives_each_shortage_of_memory)
{
    each_shortage(build_something);
}

/* A format that takes a value, reads it again, takes it apart and writes it. */
static void pack_something(void)
{
    tornado_arena *own = tornado_arena_new();
    tornado_buffer out = {NULL, 0, 0, false};
    static char long_text[3000];
    const char *got = NULL;
    const tornado_value *inner = NULL;
    int number = 0;
    if (!own)
        return;
    memset(long_text, 'x', sizeof long_text - 1);
    const tornado_value *value = tornado_value_pack(own, "{a: s, b: {c: [i, n, f]}}", long_text, 17, 2.5);
    if (value) {
        CHECK(tornado_value_unpack(value, "{a: s, b: o!}", &got, &inner));
        CHECK(tornado_value_unpack(inner, "{c: [i, n]}", &number));
        CHECK_STR(got, long_text);
        CHECK_INT(number, 17);
        CHECK(tornado_buffer_puts(&out, "x") || out.failed);
        size_t before = out.len;
        bool failed = out.failed;
        if (tornado_json_pack(&out, "{value: o, again: o}", value, inner))
            CHECK(strstr(out.data, "\"again\": {\"c\": [17, null, 2.5]}}") != NULL);
        else
            CHECK(out.len == before && out.failed == failed && tornado_last_error()->code == TORNADO_ERR_NOMEM);
        char *text = tornado_json_format(own, "[o]", inner);
        if (text)
            CHECK_STR(text, "[{\"c\": [17, null, 2.5]}]");
    } else {
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    }
    tornado_buffer_free(&out);
    tornado_arena_free(own);
}

TEST(json_packing_survives_each_shortage_of_memory)
{
    each_shortage(pack_something);
}

TEST(json_a_failure_to_make_a_value_fails_what_it_is_put_into)
{
    tornado_arena *own = tornado_arena_new();
    tornado_value *list = tornado_value_new_list(own), *dict = tornado_value_new_dict(own);
    tornado_buffer out = {NULL, 0, 0, false};
    test_fail_alloc(1);
    tornado_value *large = tornado_value_new_string(own, "x");
    for (int i = 0; i < 1000 && !tornado_value_failed(large); i++)
        large = tornado_value_new_string(own, "some text that fills the arena");
    test_fail_alloc(0);
    CHECK(tornado_value_failed(large));
    CHECK(tornado_value_is_null(large));
    CHECK(!tornado_json_encode(&out, large));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(!tornado_value_append(large, list));
    CHECK(!tornado_value_append(list, large));
    CHECK(!tornado_value_set(dict, "a", large));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(tornado_value_failed(list) && tornado_value_failed(dict));
    CHECK(!tornado_json_encode(&out, dict));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    tornado_buffer_free(&out);
    tornado_arena_free(own);
}
