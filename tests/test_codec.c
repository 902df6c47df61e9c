/* Hexadecimal, UTF-8, random bytes. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "filter.h"
#include "guard.h"

TEST(codec_hex_vectors_of_rfc_4648)
{
    static const char *const rows[][2] = {
        {"", ""},           {"f", "66"},           {"fo", "666f"},          {"foo", "666f6f"},
        {"foob", "666f6f62"}, {"fooba", "666f6f6261"}, {"foobar", "666f6f626172"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[32], bytes[32];
        size_t len = strlen(rows[i][0]);
        CHECK(tornado_hex_encode(rows[i][0], len, text) == text);
        CHECK_STR(text, rows[i][1]);
        CHECK(tornado_hex_decode(text, 2 * len, bytes));
        CHECK_MEM(bytes, len, rows[i][0], len);
    }
    char bytes[8];
    CHECK(tornado_hex_decode("666F6F626172", 12, bytes));
    CHECK_MEM(bytes, 6, "foobar", 6);
    CHECK(tornado_hex_decode("aAbBcCdDeEfF", 12, bytes));
    CHECK_MEM(bytes, 6, "\xaa\xbb\xcc\xdd\xee\xff", 6);
}

TEST(codec_hex_writes_exactly_what_it_says)
{
    unsigned char bytes[256];
    for (int i = 0; i < 256; i++)
        bytes[i] = (unsigned char)(i * 7 + 3);
    for (size_t len = 0; len <= 256; len++) {
        char text[520], back[257];
        memset(text, '#', sizeof text);
        tornado_hex_encode(guarded(bytes, len), len, text);
        for (size_t i = 0; i < len; i++) {
            char want[3];
            snprintf(want, sizeof want, "%02x", bytes[i]);
            CHECK_MEM(text + 2 * i, 2, want, 2);
        }
        CHECK(text[2 * len] == '\0' && text[2 * len + 1] == '#');
        memset(back, '#', sizeof back);
        CHECK(tornado_hex_decode(guarded(text, 2 * len), 2 * len, back));
        CHECK_MEM(back, len, bytes, len);
        CHECK(back[len] == '#');
    }
}

TEST(codec_hex_refuses_odd_lengths_and_other_characters)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    char text[9], out[4];
    for (size_t len = 1; len < 8; len += 2) {
        CHECK(!tornado_hex_decode(guarded("00000000", len), len, out));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
    }
    for (size_t at = 0; at < 8; at++)
        for (int c = 0; c < 256; c++) {
            memcpy(text, "00000000", 9);
            text[at] = (char)c;
            bool want = c != 0 && strchr(digits, c) != NULL;
            CHECK(tornado_hex_decode(guarded(text, 8), 8, out) == want);
            if (!want)
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
        }
}

/* The grammar of RFC 3629 section 4, line by line; "tail" is 80-BF. */
static const struct {
    size_t len;
    unsigned char first[2], second[2];
} utf8_grammar[] = {
    {1, {0x00, 0x7f}, {0, 0}},
    {2, {0xc2, 0xdf}, {0x80, 0xbf}},
    {3, {0xe0, 0xe0}, {0xa0, 0xbf}},
    {3, {0xe1, 0xec}, {0x80, 0xbf}},
    {3, {0xed, 0xed}, {0x80, 0x9f}},
    {3, {0xee, 0xef}, {0x80, 0xbf}},
    {4, {0xf0, 0xf0}, {0x90, 0xbf}},
    {4, {0xf1, 0xf3}, {0x80, 0xbf}},
    {4, {0xf4, 0xf4}, {0x80, 0x8f}},
};

/* The length of the character at the beginning by that grammar, or 0. */
static size_t grammar_length(const unsigned char *bytes, size_t len)
{
    for (size_t i = 0; i < sizeof utf8_grammar / sizeof utf8_grammar[0]; i++) {
        size_t want = utf8_grammar[i].len;
        if (want > len || bytes[0] < utf8_grammar[i].first[0] || bytes[0] > utf8_grammar[i].first[1])
            continue;
        bool ok = want == 1 || (bytes[1] >= utf8_grammar[i].second[0] && bytes[1] <= utf8_grammar[i].second[1]);
        for (size_t at = 2; ok && at < want; at++)
            ok = bytes[at] >= 0x80 && bytes[at] <= 0xbf;
        if (ok)
            return want;
    }
    return 0;
}

TEST(codec_utf8_every_code_point_goes_there_and_back)
{
    for (uint32_t c = 0; c <= 0x110100; c++) {
        char out[5] = "####";
        size_t len = tornado_utf8_encode(c, out);
        bool scalar = c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
        CHECK_INT(len, !scalar ? 0 : c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4);
        for (size_t i = len; i < 4; i++)
            CHECK(out[i] == '#');
        if (!scalar)
            continue;
        uint32_t back = ~c;
        CHECK_INT(tornado_utf8_decode(out, len, &back), len);
        CHECK_INT(back, c);
        CHECK_INT(tornado_utf8_decode(out, 4, &back), len);
        CHECK(tornado_utf8_valid(out, len));
        for (size_t cut = 1; cut < len; cut++) {
            CHECK_INT(tornado_utf8_decode(out, cut, &back), 0);
            CHECK(!tornado_utf8_valid(out, cut));
        }
    }
    char out[4];
    CHECK_INT(tornado_utf8_encode(UINT32_MAX, out), 0);
}

TEST(codec_utf8_known_characters)
{
    static const struct {
        const char *text;
        uint32_t code_point;
    } rows[] = {{"$", 0x24}, {"\xc2\xa2", 0xa2}, {"\xe2\x82\xac", 0x20ac}, {"\xed\x95\x9c", 0xd55c},
                {"\xf0\x90\x8d\x88", 0x10348}, {"\xf0\x9f\x8c\xaa", 0x1f32a}, {"\xf4\x8f\xbf\xbf", 0x10ffff},
                {"\xef\xbb\xbf", 0xfeff}, {"\xef\xbf\xbf", 0xffff}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t code_point = 0;
        size_t len = strlen(rows[i].text);
        CHECK_INT(tornado_utf8_decode(rows[i].text, len, &code_point), len);
        CHECK_INT(code_point, rows[i].code_point);
    }
}

TEST_LIMIT(codec_utf8_agrees_with_the_grammar_on_every_three_bytes, 60)
{
    for (uint32_t n = 0; n < 1u << 24; n++) {
        unsigned char bytes[4] = {(unsigned char)(n >> 16), (unsigned char)(n >> 8), (unsigned char)n, 0};
        uint32_t ignored;
        size_t want = grammar_length(bytes, 3);
        if (tornado_utf8_decode((char *)bytes, 3, &ignored) != want)
            FAIL("%02x %02x %02x is not %zu bytes long", bytes[0], bytes[1], bytes[2], want);
        size_t all = 0;
        for (size_t step = 1; step && all < 3; all += step)
            step = grammar_length(bytes + all, 3 - all);
        if (tornado_utf8_valid((char *)bytes, 3) != (all == 3))
            FAIL("%02x %02x %02x is not %svalid", bytes[0], bytes[1], bytes[2], all == 3 ? "in" : "");
    }
}

TEST_LIMIT(codec_utf8_agrees_with_the_grammar_on_four_bytes, 60)
{
    static const unsigned char tails[] = {0x00, 0x7f, 0x80, 0x81, 0xbf, 0xc0, 0xff};
    for (int first = 0xe0; first < 256; first++)
        for (int second = 0; second < 256; second++)
            for (size_t i = 0; i < sizeof tails * sizeof tails; i++) {
                unsigned char bytes[4] = {(unsigned char)first, (unsigned char)second, tails[i / sizeof tails],
                                          tails[i % sizeof tails]};
                uint32_t ignored;
                CHECK_INT(tornado_utf8_decode((char *)bytes, 4, &ignored), grammar_length(bytes, 4));
            }
}

TEST(codec_utf8_malformed_sequences)
{
    static const char *const texts[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc0\xaf", "\xc1\xbf", "\xc2", "\xc2\x20", "\xc2\xc2\x80",
        "\xe0\x80\xaf", "\xe0\x9f\xbf", "\xe2\x82", "\xe2\x28\xa1", "\xe2\x82\x28", "\xed\xa0\x80", "\xed\xad\xbf",
        "\xed\xb0\x80", "\xed\xbf\xbf", "\xed\xa0\x80\xed\xb0\x80", "\xf0\x80\x80\xaf", "\xf0\x8f\xbf\xbf",
        "\xf0\x9f\x8c", "\xf0\x9f", "\xf0", "\xf0\x28\x8c\xbc", "\xf0\x90\x28\xbc", "\xf0\x90\x8c\x28",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf7\xbf\xbf\xbf", "\xf8\x88\x80\x80\x80", "\xfb\xbf\xbf\xbf\xbf",
        "\xfc\x84\x80\x80\x80\x80", "\xfd\xbf\xbf\xbf\xbf\xbf", "\xfe", "\xff",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t len = strlen(texts[i]);
        uint32_t code_point = 42;
        CHECK_INT(tornado_utf8_decode(guarded(texts[i], len), len, &code_point), 0);
        CHECK(!tornado_utf8_valid(guarded(texts[i], len), len));
        char text[64];
        for (size_t before = 0; before < 20; before++) {
            int all = snprintf(text, sizeof text, "%.*s%stail of it", (int)before, "abcdefghijklmnopqrst",
                               texts[i]);
            CHECK(!tornado_utf8_valid(guarded(text, (size_t)all), (size_t)all));
            CHECK(!tornado_utf8_valid(text, before + len));
        }
    }
    uint32_t code_point;
    CHECK_INT(tornado_utf8_decode("", 0, &code_point), 0);
    CHECK_INT(tornado_utf8_decode("\0", 1, &code_point), 1);
    CHECK_INT(code_point, 0);
}

TEST(codec_utf8_finds_one_bad_byte_anywhere)
{
    char text[80];
    for (size_t len = 0; len < sizeof text; len++) {
        memset(text, 'a', len);
        CHECK(tornado_utf8_valid(guarded(text, len), len));
        for (size_t at = 0; at < len; at++) {
            text[at] = (char)0x80;
            CHECK(!tornado_utf8_valid(guarded(text, len), len));
            text[at] = '\0';
            CHECK(tornado_utf8_valid(guarded(text, len), len));
            text[at] = 'a';
        }
    }
}

TEST(codec_utf8_mixed_text_is_valid_up_to_each_whole_character)
{
    static const char text[] = "Gr\xc3\xbc\xc3\x9f Gott, \xd0\xbc\xd0\xb8\xd1\x80, \xe4\xb8\x96\xe7\x95\x8c and "
                               "\xf0\x9f\x8c\xaa\xf0\x9f\x8c\xaa plain again, for long enough\xf0\x9f\x8c\xaa";
    size_t whole = 0, len = sizeof text - 1;
    for (size_t cut = 0; cut <= len; cut++) {
        while (whole < cut) {
            size_t size = grammar_length((const unsigned char *)text + whole, len - whole);
            if (whole + size > cut)
                break;
            whole += size;
        }
        CHECK(tornado_utf8_valid(guarded(text, cut), cut) == (whole == cut));
    }
}

TEST(codec_random_bytes_fill_just_what_was_asked)
{
    CHECK(tornado_random_bytes(NULL, 0));
    for (size_t len = 1; len <= 300; len++) {
        unsigned char seen[301] = {0}, bytes[301];
        for (int round = 0; round < 8; round++) { /* a byte is zero each time once in 2^64 */
            memset(bytes, 0, sizeof bytes);
            CHECK(tornado_random_bytes(bytes, len));
            for (size_t i = 0; i < sizeof bytes; i++)
                seen[i] |= bytes[i];
        }
        for (size_t i = 0; i < len; i++)
            CHECK(seen[i] != 0);
        CHECK(seen[len] == 0);
    }
}

#ifdef HAVE_SECCOMP
TEST(codec_random_bytes_come_from_a_device_where_the_system_call_is_refused)
{
    if (!filter_refuse(SYS_getrandom, ENOSYS))
        SKIP("system calls cannot be filtered here");
    unsigned char one[32] = {0}, two[32] = {0};
    CHECK(tornado_random_bytes(one, sizeof one) && tornado_random_bytes(two, sizeof two));
    CHECK(memcmp(one, two, sizeof one) != 0);
    struct rlimit before, none;
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(tornado_random_bytes(one, 0));
    CHECK(!tornado_random_bytes(one, sizeof one));
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0); /* sanitizers look around at the end */
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_SYSTEM);
    CHECK_INT(tornado_last_error()->sys_errno, EMFILE);
}
#endif

TEST(codec_random_bytes_look_random)
{
    size_t len = (size_t)1 << 20;
    unsigned char *bytes = malloc(2 * len);
    CHECK(bytes != NULL);
    CHECK(tornado_random_bytes(bytes, len) && tornado_random_bytes(bytes + len, len));
    CHECK(memcmp(bytes, bytes + len, len) != 0);
    size_t counts[256] = {0};
    for (size_t i = 0; i < 2 * len; i++)
        counts[bytes[i]]++;
    for (int i = 0; i < 256; i++) /* 8192 expected; ten standard deviations are 905 */
        CHECK(counts[i] > 8192 - 905 && counts[i] < 8192 + 905);
    free(bytes);
}
