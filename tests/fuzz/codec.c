/* Bytes as text: hexadecimal and UTF-8, against decoders that are slow and plain; CRC-32, bit by bit; and that the
   hash for ETags depends on nothing but the bytes. */
#include "fuzz.h"

static void check_hex(const char *bytes, size_t size)
{
    char *digits = malloc(2 * size + 1), *back = malloc(size ? size : 1);
    bool valid = size % 2 == 0;
    MUST(digits && back);
    MUST(tornado_hex_encode(bytes, size, digits) == digits && digits[2 * size] == '\0');
    MUST(strspn(digits, "0123456789abcdef") == 2 * size);
    MUST(tornado_hex_decode(digits, 2 * size, back) && (!size || memcmp(back, bytes, size) == 0));
    for (size_t i = 0; i < size; i++)
        valid = valid && bytes[i] && strchr("0123456789abcdefABCDEF", bytes[i]);
    MUST(tornado_hex_decode(bytes, size, back) == valid);
    if (valid) {
        tornado_hex_encode(back, size / 2, digits);
        MUST(strncasecmp(digits, bytes, size) == 0);
    } else {
        MUST(tornado_last_error()->code == TORNADO_ERR_PARSE);
    }
    free(digits);
    free(back);
}

static void check_utf8(const char *bytes, size_t size)
{
    size_t at = 0;
    bool valid = true;
    while (at < size) {
        uint32_t c = 0xffffffff;
        bool whole;
        char again[4];
        size_t len = tornado_utf8_decode(bytes + at, size - at, &c);
        size_t want = fuzz_utf8(bytes + at, size - at, &whole);
        MUST(whole == (len > 0));
        if (!whole) {
            MUST(tornado__utf8_broken(bytes + at, size - at) == want);
            valid = false;
            at += want;
            continue;
        }
        MUST(len == want);
        MUST(tornado_utf8_encode(c, again) == len && memcmp(again, bytes + at, len) == 0);
        at += len;
    }
    MUST(at == size && tornado_utf8_valid(bytes, size) == valid);
    MUST((tornado__utf8_span(bytes, size) == size) == valid);
}

/* The first four bytes as a character that may be none. */
static void check_code_point(const uint8_t *data, size_t size)
{
    uint32_t c = 0, back = 0;
    char bytes[4];
    if (size)
        memcpy(&c, data, size < 4 ? size : 4);
    for (int i = 0; i < 2; i++, c &= 0x1fffff) {
        size_t len = tornado_utf8_encode(c, bytes);
        bool valid = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
        MUST((len > 0) == valid && len <= 4);
        MUST(!valid || (tornado_utf8_decode(bytes, len, &back) == len && back == c));
    }
}

static void check_hash(const char *bytes, size_t size)
{
    unsigned char first[16], second[16];
    char *moved = calloc(1, size + 1);
    MUST(moved != NULL);
    if (size)
        memcpy(moved + 1, bytes, size);
    tornado__hash128(bytes, size, first);
    tornado__hash128(moved + 1, size, second);
    MUST(memcmp(first, second, 16) == 0);
    if (size) {
        moved[1 + size / 2] ^= 1;
        tornado__hash128(moved + 1, size, second);
        MUST(memcmp(first, second, 16) != 0);
    }
    free(moved);
}

static void check_crc(const char *bytes, size_t size)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= (unsigned char)bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
    }
    MUST(tornado__crc32(0, bytes, size) == ~crc);
    MUST(~tornado__crc_plain(UINT32_MAX, (const unsigned char *)bytes, size) == ~crc);
    MUST(tornado__crc32(tornado__crc32(0, bytes, size / 3), bytes + size / 3, size - size / 3) == ~crc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *bytes = fuzz_copy(data, size);
    check_hex(bytes, size);
    check_utf8(bytes, size);
    check_code_point(data, size);
    check_hash(bytes, size);
    check_crc(bytes, size);
    free(bytes);
    return 0;
}
