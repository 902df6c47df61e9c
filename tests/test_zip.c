/* DEFLATE, zlib and gzip, both ways. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"

#define BYTES(literal) ((tornado_bytes){literal, sizeof(literal) - 1})

static tornado_bytes from_hex(const char *digits)
{
    static char places[4][2048];
    static unsigned place;
    char *out = places[place++ % 4];
    size_t len = strlen(digits);
    CHECK(len / 2 <= sizeof places[0] && tornado_hex_decode(digits, len, out));
    return (tornado_bytes){out, len / 2};
}

/* Feeds a stream in parts of `step` bytes, asking for `room` bytes at most each time (0: all), to its end. False when
   that failed; what came out is in `out`. */
static bool feed(tornado_decompressor *decompressor, tornado_buffer *out, tornado_bytes data, size_t step, size_t room)
{
    for (size_t at = 0; at < data.len; at += step) {
        tornado_bytes part = {data.data + at, data.len - at < step ? data.len - at : step};
        while (part.len > 0) {
            size_t before = out->len, left = part.len;
            if (!tornado_decompressor_decompress(decompressor, out, part, room))
                return false;
            part = tornado_decompressor_unconsumed_tail(decompressor);
            CHECK(room == 0 || out->len - before <= room);
            CHECK(part.len < left || out->len > before);
            CHECK(room != 0 || part.len == 0);
        }
    }
    return tornado_decompressor_flush(decompressor);
}

/* The same with a decompressor of its own, and input that ends where memory ends. */
static bool unpack(tornado_buffer *out, tornado_bytes data, tornado_zip_format format, size_t step, size_t room)
{
    tornado_decompressor_options options = {.format = format};
    tornado_decompressor *decompressor = tornado_decompressor_new(&options);
    CHECK(decompressor);
    out->len = 0;
    bool ok = feed(decompressor, out, data, step, room);
    tornado_decompressor_free(decompressor);
    return ok;
}

/*----------------------------------------------------------------------------
 * Vectors that need nothing.
 *----------------------------------------------------------------------------*/

static const struct {
    const char *what;
    tornado_zip_format format;
    const char *packed, *plain;
} vectors[] = {
    {"fixed codes", TORNADO_ZIP_RAW, "cb48cdc9c957c8409000", "hello hello hello"},
    {"stored", TORNADO_ZIP_RAW, "010500faff68656c6c6f", "hello"},
    {"stored, and nothing", TORNADO_ZIP_RAW, "000500faff68656c6c6f010000ffff", "hello"},
    {"codes of one to fifteen bits", TORNADO_ZIP_RAW,
     "05e0019224499224cb9e158945cd23ab67dfbf3f0000c007eddef7fbfbf7dffffeeffffd7fff3feddef7fbfbf7dffffeeffffd7fffbfff3f",
     "abcdefghijklmnoabcdefghijklmno"},
    {"no code but for the end", TORNADO_ZIP_RAW, "05e005090000000020fc7f2d00", ""},
    {"one code for distances", TORNADO_ZIP_RAW, "0de0010900000080206cedff893406", "aaaa"},
    {"zlib", TORNADO_ZIP_ZLIB, "789c2bc92fca4b4cc907000c1902f8", "tornado"},
    {"zlib without content", TORNADO_ZIP_ZLIB, "789c030000000001", ""},
    {"gzip with every field", TORNADO_ZIP_GZIP,
     "1f8b081f00ca9a3b020306004150020078796e616d65006120636f6d6d656e7400d7332bc92fca4b4cc907002bd68bb107000000",
     "tornado"},
    {"gzip of three members", TORNADO_ZIP_GZIP,
     "1f8b08000000000000ff2bc92fca4b4cc907002bd68bb107000000" "1f8b08000000000000ff0300000000000000000"
     "01f8b08000000000000ff010500faff68656c6c6f86a6103605000000",
     "tornadohello"},
};
enum { VECTORS = sizeof vectors / sizeof vectors[0] };

TEST(zip_reads_every_kind_of_block_and_wrapping_in_any_parts)
{
    static const size_t sizes[] = {1, 2, 3, 5, 17, 1000};
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < VECTORS; i++) {
        tornado_bytes data = from_hex(vectors[i].packed), end = {guarded(data.data, data.len), data.len};
        for (size_t step = 0; step < sizeof sizes / sizeof sizes[0]; step++)
            for (size_t room = 0; room <= sizeof sizes / sizeof sizes[0]; room++) {
                if (!unpack(&out, end, vectors[i].format, sizes[step], room ? sizes[room - 1] : 0))
                    FAIL("%s: %s", vectors[i].what, tornado_last_error()->message);
                CHECK_MEM(out.data, out.len, vectors[i].plain, strlen(vectors[i].plain));
            }
        tornado_decompressor_options options = {.format = vectors[i].format};
        out.len = 0;
        CHECK(tornado_decompress(&out, end, &options));
        CHECK_MEM(out.data, out.len, vectors[i].plain, strlen(vectors[i].plain));
    }
    tornado_buffer_free(&out);
}

TEST(zip_sees_by_itself_whether_it_is_gzip_or_zlib)
{
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < VECTORS; i++) {
        tornado_bytes data = from_hex(vectors[i].packed);
        out.len = 0;
        bool ok = tornado_decompress(&out, data, NULL);
        CHECK(ok == (vectors[i].format != TORNADO_ZIP_RAW));
        CHECK(!ok || strcmp(out.data ? out.data : "", vectors[i].plain) == 0);
        CHECK(unpack(&out, data, TORNADO_ZIP_DEFAULT, 1, 1) == ok);
    }
    tornado_buffer_free(&out);
}

/*----------------------------------------------------------------------------
 * What is malformed.
 *----------------------------------------------------------------------------*/

static const struct {
    tornado_zip_format format;
    const char *packed;
    int code;
    const char *message;
} malformed[] = {
    {TORNADO_ZIP_RAW, "", TORNADO_ERR_PARSE, "the compressed data end early, at byte 0"},
    {TORNADO_ZIP_RAW, "07", TORNADO_ERR_PARSE, "a block of no known kind, at byte 1"},
    {TORNADO_ZIP_RAW, "010500fbff68656c6c6f", TORNADO_ERR_PARSE, "the length of a stored block is damaged, at byte 5"},
    {TORNADO_ZIP_RAW, "1b03", TORNADO_ERR_PARSE, "a code that stands for nothing, at byte 2"},
    {TORNADO_ZIP_RAW, "4b043e", TORNADO_ERR_PARSE, "a code that stands for nothing, at byte 3"},
    {TORNADO_ZIP_RAW, "4b0442", TORNADO_ERR_PARSE,
     "a match refers to what was before the beginning, or out of the window, at byte 3"},
    {TORNADO_ZIP_RAW, "f50000", TORNADO_ERR_PARSE, "more codes than there are symbols, at byte 3"},
    {TORNADO_ZIP_RAW, "051e00", TORNADO_ERR_PARSE, "more codes than there are symbols, at byte 3"},
    {TORNADO_ZIP_RAW, "05e00104000000401000", TORNADO_ERR_PARSE, "lengths of codes that are no code, at byte 10"},
    {TORNADO_ZIP_RAW, "05e00108000000002000", TORNADO_ERR_PARSE, "lengths of codes that are no code, at byte 10"},
    {TORNADO_ZIP_RAW, "05e00509000000002004", TORNADO_ERR_PARSE,
     "a length is repeated that is not there, or too often, at byte 10"},
    {TORNADO_ZIP_RAW, "05e005090000000020fcff0f", TORNADO_ERR_PARSE,
     "a length is repeated that is not there, or too often, at byte 12"},
    {TORNADO_ZIP_RAW, "05e005090000000020e8ffd500", TORNADO_ERR_PARSE,
     "there is no code for the end of the block, at byte 13"},
    {TORNADO_ZIP_RAW, "05e005090000000020e8ffd302", TORNADO_ERR_PARSE,
     "lengths of codes that are no code, at byte 13"},
    {TORNADO_ZIP_RAW, "05e005090000008000e8ffd302", TORNADO_ERR_PARSE,
     "lengths of codes that are no code, at byte 13"},
    {TORNADO_ZIP_RAW, "0de101090000008020d4ffd355", TORNADO_ERR_PARSE,
     "lengths of codes that are no code, at byte 13"},
    {TORNADO_ZIP_RAW, "0de201090000008020d4ffd3a502", TORNADO_ERR_PARSE,
     "lengths of codes that are no code, at byte 14"},
    {TORNADO_ZIP_RAW, "05e005090000000020fc7f2d01", TORNADO_ERR_PARSE, "a code that stands for nothing, at byte 13"},
    {TORNADO_ZIP_RAW, "0de0010900000080206cedff893407", TORNADO_ERR_PARSE,
     "a code that stands for nothing, at byte 15"},
    {TORNADO_ZIP_RAW, "0de0010900000080206cedff892406", TORNADO_ERR_PARSE,
     "a code that stands for nothing, at byte 15"},
    {TORNADO_ZIP_RAW, "010500faff68656c6c6f00", TORNADO_ERR_PARSE,
     "something follows the compressed data, at byte 10"},
    {TORNADO_ZIP_ZLIB, "789d030000000001", TORNADO_ERR_PARSE, "this is not zlib, at byte 2"},
    {TORNADO_ZIP_ZLIB, "7998030000000001", TORNADO_ERR_PARSE, "this is not zlib, at byte 2"},
    {TORNADO_ZIP_ZLIB, "8898030000000001", TORNADO_ERR_PARSE, "this is not zlib, at byte 2"},
    {TORNADO_ZIP_ZLIB, "78bb030000000001", TORNADO_ERR_UNSUPPORTED, "a preset dictionary is wanted, at byte 2"},
    {TORNADO_ZIP_ZLIB, "789c030000000002", TORNADO_ERR_PARSE, "the checksum is wrong, at byte 8"},
    {TORNADO_ZIP_ZLIB, "789c03000000000100", TORNADO_ERR_PARSE, "something follows the compressed data, at byte 8"},
    {TORNADO_ZIP_DEFAULT, "03000000", TORNADO_ERR_PARSE, "this is neither gzip nor zlib, at byte 2"},
    {TORNADO_ZIP_DEFAULT, "1f9d9000", TORNADO_ERR_PARSE, "this is not gzip, at byte 2"},
    {TORNADO_ZIP_GZIP, "789c030000000001", TORNADO_ERR_PARSE, "this is not gzip, at byte 1"},
    {TORNADO_ZIP_GZIP, "1f8b07", TORNADO_ERR_PARSE, "this is not compressed by DEFLATE, at byte 3"},
    {TORNADO_ZIP_GZIP, "1f8b0820", TORNADO_ERR_PARSE, "a flag that means nothing, at byte 4"},
    {TORNADO_ZIP_GZIP, "1f8b0802000000000003" "ffff", TORNADO_ERR_PARSE,
     "the header's checksum is wrong, at byte 11"},
    {TORNADO_ZIP_GZIP, "1f8b08000000000000ff2bc92fca4b4cc907002cd68bb107000000", TORNADO_ERR_PARSE,
     "the checksum is wrong, at byte 23"},
    {TORNADO_ZIP_GZIP, "1f8b08000000000000ff2bc92fca4b4cc907002bd68bb108000000", TORNADO_ERR_PARSE,
     "the length is wrong, at byte 27"},
    {TORNADO_ZIP_GZIP, "1f8b08000000000000ff2bc92fca4b4cc907002bd68bb10700000000", TORNADO_ERR_PARSE,
     "this is not gzip, at byte 28"},
    {TORNADO_ZIP_GZIP, "1f8b08000000000000ff2bc92fca4b4cc907002bd68bb1070000001f", TORNADO_ERR_PARSE,
     "the compressed data end early, at byte 28"},
    {TORNADO_ZIP_GZIP, "1f8b08000000000000ff2bc92fca4b4cc907002bd68bb107000000" "1f8b08000000000000ff0302",
     TORNADO_ERR_PARSE, "a match refers to what was before the beginning, or out of the window, at byte 39"},
};

TEST(zip_says_what_is_malformed_and_where)
{
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < sizeof malformed / sizeof malformed[0]; i++) {
        tornado_bytes data = from_hex(malformed[i].packed);
        tornado_decompressor_options options = {.format = malformed[i].format};
        CHECK(!tornado_decompress(&out, data, &options));
        CHECK_STR(tornado_last_error()->message, malformed[i].message);
        CHECK_INT(tornado_last_error()->code, malformed[i].code);
        if (strncmp(malformed[i].message, "something follows", 9) == 0)
            continue;
        CHECK(!unpack(&out, data, malformed[i].format, 1, 1));
        CHECK_STR(tornado_last_error()->message, malformed[i].message);
        CHECK_INT(tornado_last_error()->code, malformed[i].code);
    }
    tornado_buffer_free(&out);
}

TEST(zip_that_failed_goes_on_failing_until_it_is_reset)
{
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_decompressor *decompressor = tornado_decompressor_new(NULL);
    tornado_bytes good = from_hex(vectors[6].packed);
    CHECK(!tornado_decompressor_decompress(decompressor, &out, BYTES("\x78\x9c\x07"), 0));
    for (int i = 0; i < 2; i++) {
        tornado_decompress(&out, BYTES("x"), NULL);
        CHECK(!tornado_decompressor_decompress(decompressor, &out, good, 0));
        CHECK_STR(tornado_last_error()->message, "a block of no known kind, at byte 3");
        CHECK(!tornado_decompressor_flush(decompressor));
        CHECK_STR(tornado_last_error()->message, "a block of no known kind, at byte 3");
        CHECK(!tornado_decompressor_eof(decompressor));
        CHECK_INT(tornado_decompressor_unconsumed_tail(decompressor).len, 0);
    }
    tornado_decompressor_reset(decompressor);
    CHECK(tornado_decompressor_decompress(decompressor, &out, good, 0));
    CHECK(tornado_decompressor_eof(decompressor));
    CHECK_STR(out.data, "tornado");
    tornado_decompressor_free(decompressor);
    tornado_buffer_free(&out);
}

TEST(zip_each_beginning_of_a_stream_ends_early)
{
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < VECTORS; i++) {
        tornado_bytes data = from_hex(vectors[i].packed);
        for (size_t len = 0; len < data.len; len++) {
            tornado_bytes part = {guarded(data.data, len), len};
            bool member = vectors[i].format == TORNADO_ZIP_GZIP && strstr(vectors[i].what, "members") &&
                          (len == 27 || len == 47);
            CHECK(unpack(&out, part, vectors[i].format, 100, 0) == member);
            CHECK(unpack(&out, part, vectors[i].format, 1, 1) == member);
            if (!member)
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
        }
    }
    tornado_buffer_free(&out);
}

/* One bit of a small stream is wrong: an error, or nothing that matters, such as the time in a header. */
TEST(zip_each_wrong_bit_is_an_error_or_changes_nothing)
{
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < VECTORS; i++) {
        tornado_bytes data = from_hex(vectors[i].packed);
        char copy[512];
        memcpy(copy, data.data, data.len);
        for (size_t bit = 0; bit < 8 * data.len; bit++) {
            copy[bit / 8] ^= (char)(1 << bit % 8);
            tornado_bytes wrong = {guarded(copy, data.len), data.len};
            tornado_decompressor_options options = {.format = vectors[i].format};
            out.len = 0;
            bool ok = tornado_decompress(&out, wrong, &options);
            if (ok && vectors[i].format != TORNADO_ZIP_RAW)
                CHECK_MEM(out.data, out.len, vectors[i].plain, strlen(vectors[i].plain));
            if (!ok)
                CHECK_INT(tornado_last_error()->code == TORNADO_ERR_UNSUPPORTED ? TORNADO_ERR_PARSE
                                                                                : tornado_last_error()->code,
                          TORNADO_ERR_PARSE);
            tornado_buffer parts = {NULL, 0, 0, false};
            CHECK(unpack(&parts, wrong, vectors[i].format, 1, 3) == ok || out.len < data.len);
            if (ok)
                CHECK_MEM(parts.data, parts.len, out.data, out.len);
            tornado_buffer_free(&parts);
            copy[bit / 8] ^= (char)(1 << bit % 8);
        }
    }
    tornado_buffer_free(&out);
}

/*----------------------------------------------------------------------------
 * Streams.
 *----------------------------------------------------------------------------*/

TEST(zip_what_follows_a_stream_is_not_touched)
{
    static const tornado_decompressor_options raw = {.format = TORNADO_ZIP_RAW};
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_decompressor *decompressor = tornado_decompressor_new(&raw);
    tornado_bytes rest;
    CHECK(!tornado_decompressor_eof(decompressor));
    CHECK(tornado_decompressor_decompress(decompressor, &out, BYTES("\x01\x01\0\xfe\xff" "a" "\x01\x02"), 0));
    CHECK(tornado_decompressor_eof(decompressor));
    rest = tornado_decompressor_unused_data(decompressor);
    CHECK_MEM(rest.data, rest.len, "\x01\x02", 2);
    CHECK_INT(tornado_decompressor_unconsumed_tail(decompressor).len, 0);
    CHECK(tornado_decompressor_decompress(decompressor, &out, BYTES("more"), 0));
    rest = tornado_decompressor_unused_data(decompressor);
    CHECK_MEM(rest.data, rest.len, "more", 4);
    CHECK(tornado_decompressor_flush(decompressor));
    CHECK_STR(out.data, "a");
    tornado_decompressor_free(decompressor);
    tornado_buffer_free(&out);
}

TEST(zip_members_may_end_and_begin_where_parts_do)
{
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_decompressor *decompressor = tornado_gzip_decompressor_new();
    tornado_bytes data = from_hex(vectors[9].packed);
    CHECK(tornado_decompressor_decompress(decompressor, &out, (tornado_bytes){data.data, 27}, 0));
    CHECK(tornado_decompressor_eof(decompressor));
    CHECK_STR(out.data, "tornado");
    CHECK(tornado_decompressor_decompress(decompressor, &out, (tornado_bytes){data.data + 27, 10}, 0));
    CHECK(!tornado_decompressor_eof(decompressor));
    CHECK(tornado_decompressor_decompress(decompressor, &out, (tornado_bytes){data.data + 37, data.len - 37}, 0));
    CHECK(tornado_decompressor_eof(decompressor));
    CHECK_STR(out.data, "tornadohello");
    CHECK_INT(tornado_decompressor_unused_data(decompressor).len, 0);
    tornado_decompressor_free(decompressor);
    tornado_buffer_free(&out);
}

TEST(zip_max_length_leaves_the_rest_for_the_next_call)
{
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_decompressor *decompressor = tornado_gzip_decompressor_new();
    tornado_bytes part = from_hex(vectors[8].packed);
    static const char plain[] = "tornado";
    for (size_t len = 1; len <= 7; len++) {
        CHECK(part.len > 0);
        CHECK(tornado_decompressor_decompress(decompressor, &out, part, 1));
        CHECK_MEM(out.data, out.len, plain, len);
        part = tornado_decompressor_unconsumed_tail(decompressor);
    }
    CHECK(part.len == 0 && tornado_decompressor_eof(decompressor));
    tornado_decompressor_free(decompressor);
    tornado_buffer_free(&out);
}

/* A match is longer than there is room and its last byte of input is used: that byte comes again. */
TEST(zip_more_to_come_always_leaves_a_tail)
{
    static const tornado_decompressor_options raw = {.format = TORNADO_ZIP_RAW};
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_decompressor *decompressor = tornado_decompressor_new(&raw);
    tornado_bytes data = from_hex("0de0010900000080206cedff893406");
    for (size_t at = 0; at < data.len; at++) {
        tornado_bytes part = {data.data + at, 1};
        for (int turn = 0; part.len > 0; turn++) {
            CHECK(turn < 5 && part.data == data.data + at && part.len == 1);
            CHECK(tornado_decompressor_decompress(decompressor, &out, part, 1));
            part = tornado_decompressor_unconsumed_tail(decompressor);
        }
    }
    CHECK_STR(out.data, "aaaa");
    CHECK(tornado_decompressor_flush(decompressor));
    tornado_decompressor_free(decompressor);
    tornado_buffer_free(&out);
}

TEST(zip_limit_is_for_all_that_comes_out)
{
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_bytes data = from_hex(vectors[9].packed);
    for (int64_t limit = 1; limit <= 13; limit++)
        for (int whole = 0; whole < 2; whole++) {
            tornado_decompressor_options options = {.limit = limit};
            tornado_decompressor *decompressor = tornado_decompressor_new(&options);
            out.len = 0;
            bool ok = whole ? tornado_decompress(&out, data, &options) : feed(decompressor, &out, data, 3, 2);
            tornado_decompressor_free(decompressor);
            CHECK(ok == (limit >= 12));
            CHECK_MEM(out.data, out.len, "tornadohello", limit < 12 ? (size_t)limit : 12);
            if (!ok)
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
        }
    tornado_buffer_free(&out);
}

TEST(zip_window_bits_bound_how_far_back_a_match_reaches)
{
    tornado_buffer out = {NULL, 0, 0, false}, packed = {NULL, 0, 0, false};
    char plain[600];
    for (size_t i = 0; i < sizeof plain; i++)
        plain[i] = (char)(i * 31 % 251);
    tornado_buffer_append(&packed, "\0\x2c\x01\xd3\xfe", 5);
    tornado_buffer_append(&packed, plain, 300);
    for (int beyond = 0; beyond < 2; beyond++) { /* three bytes from 256 or 257 back */
        packed.len = 305;
        tornado_buffer_append(&packed, beyond ? "\x03\x06\x00\x00" : "\x03\xfa\x1f\x00", 4);
        for (int bits = 8; bits <= 9; bits++) {
            tornado_decompressor_options options = {
                .format = TORNADO_ZIP_RAW, .window_bits = bits, .limit = TORNADO_NONE};
            out.len = 0;
            bool ok = tornado_decompress(&out, (tornado_bytes){packed.data, packed.len}, &options);
            CHECK(ok == (bits == 9 || !beyond));
            if (ok)
                CHECK_MEM(out.data + 300, out.len - 300, plain + 300 - 256 - beyond, 3);
            else
                CHECK(strstr(tornado_last_error()->message, "out of the window"));
        }
    }
    tornado_buffer_free(&out);
    tornado_buffer_free(&packed);
}

TEST(zip_refuses_zlib_with_a_larger_window_than_allowed)
{
    static const tornado_decompressor_options small = {.window_bits = 14};
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(!tornado_decompress(&out, from_hex("789c030000000001"), &small));
    CHECK_STR(tornado_last_error()->message, "the window is larger than allowed, at byte 2");
    CHECK(tornado_decompress(&out, from_hex("6881030000000001"), &small));
    tornado_buffer_free(&out);
}

TEST(zip_options_that_make_no_sense_are_refused)
{
    static const tornado_decompressor_options bad[] = {
        {.format = (tornado_zip_format)4}, {.window_bits = 7}, {.window_bits = 16}, {.window_bits = -15},
        {.limit = -2}};
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(!tornado_decompressor_new(&bad[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        CHECK(!tornado_decompress(&out, BYTES("x"), &bad[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    }
    tornado_decompressor_free(NULL);
}

TEST(zip_short_memory_is_an_error)
{
    tornado_bytes data = from_hex(vectors[9].packed);
    for (int whole = 0; whole < 2; whole++)
        for (long n = 1;; n++) {
            tornado_buffer out = {NULL, 0, 0, false};
            test_fail_alloc(n);
            long before = test_allocs();
            tornado_decompressor *decompressor = whole ? NULL : tornado_decompressor_new(NULL);
            bool ok = whole ? tornado_decompress(&out, data, NULL)
                            : decompressor && feed(decompressor, &out, data, 5, 0);
            bool failed = test_allocs() - before >= n;
            test_fail_alloc(0);
            CHECK(ok == !failed);
            if (failed)
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
            tornado_decompressor_free(decompressor);
            tornado_buffer_free(&out);
            if (!failed)
                break;
        }
}

/*----------------------------------------------------------------------------
 * Beside Python.
 *----------------------------------------------------------------------------*/

typedef struct record {
    char format[8], name[64];
    tornado_bytes plain, packed;
} record;

/* The next record of tests/zip_vectors.py; false behind the last. */
static bool next_record(const test_output *output, size_t *at, record *r)
{
    size_t plain, packed;
    int head;
    if (*at == output->len)
        return false;
    CHECK(sscanf(output->text + *at, "%7s %zu %zu %63s%n", r->format, &plain, &packed, r->name, &head) == 4);
    *at += (size_t)head + 1;
    r->plain = (tornado_bytes){output->text + *at, plain};
    r->packed = (tornado_bytes){output->text + *at + plain, packed};
    *at += plain + packed;
    CHECK(*at <= output->len);
    return true;
}

static tornado_zip_format format_of(const char *name)
{
    return strcmp(name, "gzip") == 0   ? TORNADO_ZIP_GZIP
           : strcmp(name, "zlib") == 0 ? TORNADO_ZIP_ZLIB
                                       : TORNADO_ZIP_RAW;
}

static const test_output *python_vectors(void)
{
    TEST_NEED("python3");
    const test_output *output = test_run("python3 tests/zip_vectors.py");
    CHECK(output->status == 0 && output->len > 100000);
    return output;
}

TEST_LIMIT(zip_reads_what_python_wrote_in_any_parts, 60)
{
    static const struct {
        size_t step, room;
    } ways[] = {{SIZE_MAX / 2, 0}, {1, 0}, {100, 7}, {31, 1000}, {1400, 65536}, {65536, 300}, {33, 281}};
    const test_output *output = python_vectors();
    tornado_buffer out = {NULL, 0, 0, false};
    record r;
    for (size_t at = 0; next_record(output, &at, &r);) {
        tornado_decompressor_options options = {.format = format_of(r.format)};
        out.len = 0;
        if (!tornado_decompress(&out, r.packed, &options))
            FAIL("%s %s: %s", r.format, r.name, tornado_last_error()->message);
        CHECK_MEM(out.data, out.len, r.plain.data, r.plain.len);
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            if (!unpack(&out, r.packed, options.format, ways[i].step, ways[i].room))
                FAIL("%s %s: %s", r.format, r.name, tornado_last_error()->message);
            CHECK_MEM(out.data, out.len, r.plain.data, r.plain.len);
        }
    }
    tornado_buffer_free(&out);
}

/*----------------------------------------------------------------------------
 * Compressing.
 *----------------------------------------------------------------------------*/

static uint32_t chance;

static unsigned next_random(unsigned limit)
{
    chance = chance * 1664525 + 1013904223;
    return (chance >> 8) % limit;
}

/* Data of several kinds, `len` bytes of them. */
enum { EMPTY, ZEROS, TEXT, NOISE, BYTES_OF_FEW, PERIODS, MIXED, KINDS };

static void make(tornado_buffer *out, int kind, size_t len)
{
    static const char *const words[] = {"the ", "request ", "of ", "<div class=\"story\">",
                                        "and ", "server",   "\n", "0123"};
    out->len = 0;
    chance = (uint32_t)kind + 1;
    while (kind != EMPTY && out->len < len) {
        int now = kind == MIXED ? (int)(out->len / 7000) % MIXED : kind;
        char byte = (char)next_random(256);
        if (now == TEXT)
            tornado_buffer_puts(out, words[next_random(8)]);
        else if (now == PERIODS)
            tornado_buffer_append(out, out->len < 300 ? &byte : out->data + out->len - 1 - next_random(4) * 66, 1);
        else
            tornado_buffer_append(out, now == ZEROS ? "" : now == BYTES_OF_FEW ? (byte &= 3, &byte) : &byte, 1);
    }
    if (out->len > len)
        out->len = len;
}

/* What we make of it comes back by our own decompressor. */
static void check_round_trip(tornado_bytes plain, tornado_bytes packed, tornado_zip_format format, int window_bits)
{
    tornado_decompressor_options options = {.format = format, .window_bits = window_bits};
    tornado_buffer back = {NULL, 0, 0, false};
    if (!tornado_decompress(&back, packed, &options))
        FAIL("%s", tornado_last_error()->message);
    CHECK_MEM(back.data, back.len, plain.data, plain.len);
    tornado_buffer_free(&back);
}

static tornado_bytes bytes_of(const tornado_buffer *buffer)
{
    return (tornado_bytes){buffer->data, buffer->len};
}

/* Noise, which is stored, and repetitions of what was before, from all distances that there may be: what is stored goes
   another way than what is coded, and each refers to the other, in one call and from one to the next. */
TEST_LIMIT(zip_stored_and_coded_blocks_refer_to_each_other_across_calls, 60)
{
    static const size_t steps[] = {1, 999, 40000, SIZE_MAX}, rooms[] = {0, 1, 5000, 32768, 65536, 100000};
    tornado_compressor *compressor = tornado_compressor_new(NULL);
    tornado_buffer plain = {NULL, 0, 0, false}, packed = {NULL, 0, 0, false}, out = {NULL, 0, 0, false};
    uint32_t state = 1;
    for (int i = 0; i < 24; i++) {
        size_t before = plain.len, len = (size_t[]){20000, 500, 70000, 3000}[i % 4];
        for (size_t k = 0; k < len; k++) {
            state = state * 1664525 + 1013904223;
            char byte = (char)(state >> 24);
            size_t back = 32768 - (size_t)i * 1300;
            if (i % 2 == 1 && plain.len >= back)
                byte = plain.data[plain.len - back];
            CHECK(tornado_buffer_append(&plain, &byte, 1));
        }
        CHECK(tornado_compressor_compress(compressor, &packed, (tornado_bytes){plain.data + before, len}));
        CHECK(tornado_compressor_flush(compressor, &packed, i == 23 ? TORNADO_ZIP_FINISH : TORNADO_ZIP_SYNC));
    }
    CHECK(packed.len < plain.len - 10000);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        for (size_t k = 0; k < sizeof rooms / sizeof rooms[0]; k++) {
            if ((steps[i] == 1) != (rooms[k] == 1) && (steps[i] == 1 || rooms[k] == 1))
                continue; /* takes long */
            if (!unpack(&out, (tornado_bytes){packed.data, packed.len}, TORNADO_ZIP_GZIP,
                        steps[i] < packed.len ? steps[i] : packed.len, rooms[k]))
                FAIL("steps of %zu, room for %zu: %s", steps[i], rooms[k], tornado_last_error()->message);
            CHECK_MEM(out.data, out.len, plain.data, plain.len);
        }
    tornado_compressor_free(compressor);
    tornado_buffer_free(&plain);
    tornado_buffer_free(&packed);
    tornado_buffer_free(&out);
}

TEST_LIMIT(zip_what_is_compressed_comes_back_whatever_the_options, 60)
{
    tornado_buffer plain = {NULL, 0, 0, false}, out = {NULL, 0, 0, false};
    for (int kind = 0; kind < KINDS; kind++) {
        make(&plain, kind, kind % 2 ? 41000 : 80000);
        for (int level = TORNADO_NONE; level <= 9; level++)
            for (int window_bits = 9; window_bits <= 15; window_bits += 2)
                for (int mem_level = 1; mem_level <= 9; mem_level += 4) {
                    tornado_zip_format format = (tornado_zip_format)((level + kind + mem_level) & 3);
                    tornado_compressor_options options = {format, level, window_bits, mem_level};
                    out.len = 0;
                    CHECK(tornado_compress(&out, bytes_of(&plain), &options));
                    check_round_trip(bytes_of(&plain), bytes_of(&out), options.format, window_bits);
                    if (kind == TEXT && level > 0)
                        CHECK(out.len < plain.len / 2);
                    CHECK(out.len <= plain.len + plain.len / (mem_level == 1 ? 20 : 500) + 200);
                }
    }
    tornado_buffer_free(&plain);
    tornado_buffer_free(&out);
}

TEST(zip_output_does_not_depend_on_how_the_input_comes)
{
    static const size_t steps[] = {1, 7, 300, 65536};
    tornado_buffer plain = {NULL, 0, 0, false}, whole = {NULL, 0, 0, false}, parts = {NULL, 0, 0, false};
    make(&plain, MIXED, 150000);
    for (int level = 1; level <= 9; level += 4) {
        tornado_compressor_options options = {.level = level};
        tornado_compressor *compressor = tornado_compressor_new(&options);
        whole.len = 0;
        CHECK(tornado_compress(&whole, bytes_of(&plain), &options));
        for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
            parts.len = 0;
            for (size_t at = 0; at < plain.len; at += steps[i]) {
                size_t len = plain.len - at < steps[i] ? plain.len - at : steps[i];
                CHECK(tornado_compressor_compress(compressor, &parts, (tornado_bytes){plain.data + at, len}));
            }
            CHECK(tornado_compressor_flush(compressor, &parts, TORNADO_ZIP_FINISH));
            CHECK_MEM(parts.data, parts.len, whole.data, whole.len);
            tornado_compressor_reset(compressor);
        }
        tornado_compressor_free(compressor);
    }
    tornado_buffer_free(&plain);
    tornado_buffer_free(&whole);
    tornado_buffer_free(&parts);
}

/* Messages as a WebSocket compresses them: each can be read when it was flushed. */
TEST(zip_flush_makes_all_readable_that_was_given)
{
    static const tornado_zip_flush flushes[] = {TORNADO_ZIP_SYNC, TORNADO_ZIP_FULL};
    static const tornado_decompressor_options raw = {.format = TORNADO_ZIP_RAW};
    for (int way = 0; way < 2; way++)
        for (int level = TORNADO_NONE; level <= 9; level += 2) {
            tornado_compressor_options options = {.format = TORNADO_ZIP_RAW, .level = level};
            tornado_compressor *compressor = tornado_compressor_new(&options);
            tornado_decompressor *decompressor = tornado_decompressor_new(&raw);
            tornado_buffer plain = {NULL, 0, 0, false}, out = {NULL, 0, 0, false}, back = {NULL, 0, 0, false};
            for (size_t message = 0; message < 60; message++) {
                make(&plain, (int)(message % KINDS), message * message % 700 + message % 5);
                out.len = back.len = 0;
                CHECK(tornado_compressor_compress(compressor, &out, bytes_of(&plain)));
                CHECK(tornado_compressor_flush(compressor, &out, flushes[way]));
                CHECK(out.len >= 5);
                CHECK_MEM(out.data + out.len - 4, 4, "\0\0\xff\xff", 4);
                CHECK(tornado_decompressor_decompress(decompressor, &back, bytes_of(&out), 0));
                CHECK_MEM(back.data, back.len, plain.data, plain.len);
                if (flushes[way] == TORNADO_ZIP_FULL) /* nothing refers to what was before */
                    tornado_decompressor_reset(decompressor);
            }
            tornado_compressor_free(compressor);
            tornado_decompressor_free(decompressor);
            tornado_buffer_free(&plain);
            tornado_buffer_free(&out);
            tornado_buffer_free(&back);
        }
}

TEST(zip_flush_sync_lets_what_follows_refer_to_what_was_before)
{
    static const tornado_compressor_options raw = {.format = TORNADO_ZIP_RAW};
    static const char message[] = "{\"type\": \"message\", \"text\": \"the same as before, or nearly so\"}";
    size_t lens[3];
    for (int way = 0; way < 3; way++) {
        tornado_compressor *compressor = tornado_compressor_new(&raw);
        tornado_buffer out = {NULL, 0, 0, false};
        for (int i = 0; i < 2; i++) {
            out.len = 0;
            CHECK(tornado_compressor_compress(compressor, &out, BYTES(message)));
            CHECK(tornado_compressor_flush(compressor, &out, way == 1 ? TORNADO_ZIP_FULL : TORNADO_ZIP_SYNC));
            if (way == 2)
                tornado_compressor_reset(compressor);
        }
        lens[way] = out.len;
        tornado_compressor_free(compressor);
        tornado_buffer_free(&out);
    }
    CHECK(lens[0] < 16 && lens[1] > 50 && lens[2] > 50);
}

TEST(zip_reset_gives_the_same_bytes_as_a_new_compressor)
{
    tornado_buffer plain = {NULL, 0, 0, false}, first = {NULL, 0, 0, false}, again = {NULL, 0, 0, false};
    tornado_compressor *compressor = tornado_compressor_new(NULL);
    make(&plain, TEXT, 3000);
    for (int i = 0; i < 100; i++) {
        tornado_buffer *out = i ? &again : &first;
        out->len = 0;
        CHECK(tornado_compressor_compress(compressor, out, bytes_of(&plain)));
        if (i % 3 != 1) { /* else it is left in the middle */
            CHECK(tornado_compressor_flush(compressor, out, TORNADO_ZIP_FINISH));
            CHECK_MEM(out->data, out->len, first.data, first.len);
        }
        tornado_compressor_reset(compressor);
    }
    tornado_compressor_free(compressor);
    tornado_buffer_free(&plain);
    tornado_buffer_free(&first);
    tornado_buffer_free(&again);
}

TEST(zip_header_of_gzip_has_no_time_and_says_how_hard_was_tried)
{
    static const struct {
        int level;
        const char *head;
    } rows[] = {{1, "1f8b08000000000004ff"}, {0, "1f8b08000000000000ff"}, {9, "1f8b08000000000002ff"}};
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        tornado_compressor_options options = {.level = rows[i].level};
        tornado_bytes head = from_hex(rows[i].head);
        out.len = 0;
        CHECK(tornado_compress(&out, BYTES("x"), &options));
        CHECK_MEM(out.data, 10, head.data, head.len);
    }
    tornado_buffer_free(&out);
}

TEST(zip_behind_the_end_of_a_stream_nothing_may_come)
{
    tornado_compressor *compressor = tornado_compressor_new(NULL);
    tornado_buffer out = {NULL, 0, 0, false};
    CHECK(tornado_compressor_flush(compressor, &out, TORNADO_ZIP_FINISH));
    CHECK_INT(out.len, 20);
    CHECK(!tornado_compressor_compress(compressor, &out, BYTES("x")));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK(!tornado_compressor_flush(compressor, &out, TORNADO_ZIP_FINISH));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_INT(out.len, 20);
    tornado_compressor_free(compressor);
    tornado_compressor_free(NULL);
    tornado_buffer_free(&out);
}

TEST(zip_compressor_options_that_make_no_sense_are_refused)
{
    static const tornado_compressor_options bad[] = {{.format = (tornado_zip_format)4}, {.level = 10}, {.level = -2},
                                                     {.window_bits = 8},  {.window_bits = 16}, {.mem_level = 10},
                                                     {.mem_level = -1}};
    tornado_buffer out = {NULL, 0, 0, false};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(!tornado_compressor_new(&bad[i]));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        CHECK(!tornado_compress(&out, BYTES("x"), &bad[i]));
    }
}

TEST(zip_compressing_with_short_memory_is_an_error)
{
    tornado_buffer plain = {NULL, 0, 0, false};
    make(&plain, MIXED, 100000);
    for (int level = TORNADO_NONE; level <= 6; level += 7)
        for (long n = 1;; n++) {
            tornado_compressor_options options = {.level = level};
            tornado_buffer out = {NULL, 0, 0, false};
            test_fail_alloc(n);
            long before = test_allocs();
            tornado_compressor *compressor = tornado_compressor_new(&options);
            bool ok = compressor && tornado_compressor_compress(compressor, &out, bytes_of(&plain));
            ok = compressor && tornado_compressor_flush(compressor, &out, TORNADO_ZIP_FINISH) && ok;
            bool failed = test_allocs() - before >= n;
            test_fail_alloc(0);
            CHECK(ok == !failed);
            if (failed)
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
            tornado_compressor_free(compressor);
            tornado_buffer_free(&out);
            if (!failed)
                break;
        }
    tornado_buffer_free(&plain);
}

TEST(zip_buffer_has_its_nul_after_memory_ran_short)
{
    static char text[1 << 20];
    unsigned x = 1;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "abcdefgh"[(x = x * 1664525u + 1013904223u) >> 29];
    tornado_buffer out = {0};
    tornado_compressor *compressor = tornado_compressor_new(NULL);
    int failures = 0;
    for (long n = 1;; n++) {
        tornado_compressor_reset(compressor);
        tornado_buffer_free(&out);
        test_fail_alloc(n);
        bool ok = tornado_compressor_compress(compressor, &out, (tornado_bytes){text, sizeof text});
        test_fail_alloc(0);
        CHECK(!out.data || out.data[out.len] == '\0');
        if (ok)
            break;
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        failures += out.len > 0;
    }
    CHECK(failures > 0);
    tornado_compressor_free(compressor);
    tornado_buffer_free(&out);
}

/*----------------------------------------------------------------------------
 * What we write, read by others.
 *----------------------------------------------------------------------------*/

static void write_file(const char *path, tornado_bytes data)
{
    FILE *file = fopen(path, "wb");
    CHECK(file && (data.len == 0 || fwrite(data.data, 1, data.len, file) == data.len) && fclose(file) == 0);
}

TEST_LIMIT(zip_python_reads_what_we_write, 60)
{
    TEST_NEED("python3");
    char plain_path[] = "/tmp/tornado-zip-XXXXXX", packed_path[64];
    tornado_buffer plain = {NULL, 0, 0, false}, packed = {NULL, 0, 0, false};
    int fd = mkstemp(plain_path);
    CHECK(fd >= 0 && close(fd) == 0);
    snprintf(packed_path, sizeof packed_path, "%s.packed", plain_path);
    for (int kind = 0; kind < KINDS; kind++) { /* for each level a line of lengths, then the streams in a row */
        make(&plain, kind, 30000);
        packed.len = 0;
        for (int level = TORNADO_NONE; level <= 9; level++) {
            tornado_compressor_options options = {
                .format = (tornado_zip_format)(1 + (level + 1) % 3),
                .level = level,
                .window_bits = 9 + (level + 1) % 7};
            tornado_buffer one = {NULL, 0, 0, false};
            CHECK(tornado_compress(&one, bytes_of(&plain), &options));
            tornado_buffer_printf(&packed, "%d %d %zu\n", (int)options.format, options.window_bits, one.len);
            tornado_buffer_append(&packed, one.data, one.len);
            tornado_buffer_free(&one);
        }
        write_file(plain_path, bytes_of(&plain));
        write_file(packed_path, bytes_of(&packed));
        const test_output *output =
            test_run("python3 - %s %s <<'END'\nimport sys, zlib\nplain = open(sys.argv[1], 'rb').read()\n"
                     "file = open(sys.argv[2], 'rb')\nfor line in file:\n"
                     "    form, bits, size = map(int, line.split())\n"
                     "    bits = {1: bits + 16, 2: bits, 3: -bits}[form]\n"
                     "    reader = zlib.decompressobj(bits)\n"
                     "    assert reader.decompress(file.read(size)) == plain, line\n"
                     "    assert reader.eof and not reader.unused_data, line\nprint('fine')\nEND",
                     plain_path, packed_path);
        remove(plain_path);
        remove(packed_path);
        CHECK_STR(output->text, "fine\n");
    }
    tornado_buffer_free(&plain);
    tornado_buffer_free(&packed);
}

static const char *gzip_example(void)
{
    static char path[512];
    const char *directory = getenv("TEST_EXAMPLES");
    snprintf(path, sizeof path, "%s/gzip", directory ? directory : "build/examples");
    if (access(path, X_OK) != 0)
        SKIP("%s is not there: make examples", path);
    return path;
}

TEST_LIMIT(zip_example_and_gzip_read_each_other, 30)
{
    TEST_NEED("gzip");
    const char *ours = gzip_example();
    const test_output *output;
    CHECK_INT(test_run("%s < tornado.h | gzip -t", ours)->status, 0);
    CHECK_INT(test_run("%s -9 < tornado.h | gzip -d | cmp - tornado.h", ours)->status, 0);
    CHECK_INT(test_run("gzip < tornado.h | %s -d | cmp - tornado.h", ours)->status, 0);
    CHECK_INT(test_run("(%s -1 < Makefile; gzip -9 < tornado.h) | %s -d > /dev/null", ours, ours)->status, 0);
    output = test_run("%s < Makefile | head -c 100 | %s -d 2>&1 > /dev/null", ours, ours);
    CHECK_STR(output->text, "gzip: the compressed data end early, at byte 100\n");
    output = test_run("echo text | %s -d 2>&1", ours);
    CHECK_STR(output->text, "gzip: this is not gzip, at byte 1\n");
    CHECK_INT(output->status, 1);
    CHECK_INT(test_run("%s -x < /dev/null 2>/dev/null", ours)->status, 2);
}
