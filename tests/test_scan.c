/* What is found in heads by blocks of bytes is what is found byte by byte; with the private half of the header, in
   which that is. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "harness.h"

#include "guard.h"

enum { ROOM = 200, BEHIND = 16 }; /* a scan may look so far behind what stops it */

static unsigned random_below(unsigned limit)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state = state * 6364136223846793005 + 1442695040888963407;
    return (unsigned)(state >> 33) % limit;
}

/* Bytes that are looked for now and then, others mostly; or any. Returns their number. */
static size_t random_bytes(char *out, size_t room)
{
    static const char rare[] = "\0\t\r\n\x1f #?:_~\x7f\x80\xff@[`{/^\"";
    size_t len = random_below((unsigned)room);
    unsigned mode = random_below(3), often = 1 + random_below(60);
    for (size_t i = 0; i < len; i++)
        out[i] = mode == 0             ? (char)random_below(256)
                 : random_below(often) ? (char)('!' + random_below(mode == 1 ? 94 : 14))
                                       : rare[random_below(sizeof rare - 1)];
    return len;
}

static size_t first_not_of(const char *text, int kind)
{
    size_t at = 0;
    while (tornado__is(text[at], kind))
        at++;
    return at;
}

TEST(scan_finds_by_blocks_what_is_found_byte_by_byte)
{
    for (int round = 0; round < 200000; round++) {
        char bytes[ROOM + BEHIND];
        size_t len = random_bytes(bytes, ROOM), at = 0;
        memset(bytes + len, 0, BEHIND); /* which stops each, with as much behind it as may be read */
        char *text = guarded(bytes, len + BEHIND);
        while (!tornado__is(text[at], TORNADO__CONTROL))
            at++;
        CHECK_INT(tornado__find_control(text) - text, at);
        CHECK_INT(tornado__skip_name(text) - text, first_not_of(text, TORNADO__TOKEN));
        CHECK_INT(tornado__skip_target(text, '?') - text, first_not_of(text, TORNADO__PATH));
        CHECK_INT(tornado__skip_target(text, ' ') - text, first_not_of(text, TORNADO__TARGET));
    }
}

TEST(scan_tells_every_byte_apart_wherever_it_stands)
{
    for (int c = 0; c < 256; c++)
        for (size_t place = 0; place < 40; place++) {
            char bytes[40 + 1 + BEHIND];
            memset(bytes, 'a', 40);
            memset(bytes + 40, 0, 1 + BEHIND);
            bytes[place] = (char)c;
            char *text = guarded(bytes, sizeof bytes);
            CHECK_INT(tornado__find_control(text) - text, tornado__is((char)c, TORNADO__CONTROL) ? place : 40);
            CHECK_INT(tornado__skip_name(text) - text, tornado__is((char)c, TORNADO__TOKEN) ? 40 : place);
            CHECK_INT(tornado__skip_target(text, '?') - text, tornado__is((char)c, TORNADO__PATH) ? 40 : place);
            CHECK_INT(tornado__skip_target(text, ' ') - text, tornado__is((char)c, TORNADO__TARGET) ? 40 : place);
        }
}

/* Also when the search goes on where it stopped, and with nothing behind the last byte. */
TEST(scan_finds_the_blank_line_that_ends_a_head)
{
    for (int round = 0; round < 200000; round++) {
        char bytes[ROOM];
        size_t len = random_below(ROOM), end = 0;
        for (size_t i = 0; i < len; i++)
            bytes[i] = "\r\na\r\n"[random_below(round % 2 ? 5 : 3)];
        if (round % 3 == 0 && len > 4)
            memcpy(bytes + random_below((unsigned)len - 4), "\r\n\r\n", 4);
        char *text = guarded(bytes, len);
        for (size_t at = 2; at < len && !end; at++)
            if (memcmp(text + at - 2, "\n\r\n", 3) == 0)
                end = at + 1;
        size_t from = random_below((unsigned)(end ? end : len + 1)); /* what is before was searched */
        CHECK_INT(tornado__find_blank_line(text, from, len), end);
    }
}
