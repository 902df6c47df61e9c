/* Arenas, buffers, bytes. */
#include "runtime.h"

#include <wchar.h>

/* A number from a fixed sequence. */
static unsigned next_random(void)
{
    static unsigned state = 12345;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/*----------------------------------------------------------------------------
 * Arenas.
 *----------------------------------------------------------------------------*/

TEST(memory_arena_gives_aligned_blocks_that_do_not_overlap)
{
    enum { COUNT = 2000 };
    static struct {
        unsigned char *data;
        size_t size;
    } blocks[COUNT];
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < COUNT; i++) {
        size_t size = next_random() % (i % 50 == 0 ? 20000 : i % 7 == 0 ? 1500 : 90);
        blocks[i].data = tornado_arena_alloc(arena, size);
        blocks[i].size = size;
        CHECK(blocks[i].data != NULL);
        CHECK_INT((uintptr_t)blocks[i].data % _Alignof(max_align_t), 0);
        memset(blocks[i].data, (int)(i % 251), size);
    }
    for (size_t i = 0; i < COUNT; i++)
        for (size_t k = 0; k < blocks[i].size; k++)
            if (blocks[i].data[k] != i % 251)
                FAIL("block %zu of %zu bytes was overwritten at %zu", i, blocks[i].size, k);
    tornado_arena_free(arena);
}

TEST(memory_arena_makes_few_allocations)
{
    tornado_arena *arena = tornado_arena_new();
    long allocs = test_allocs();
    for (int i = 0; i < 10000; i++)
        CHECK(tornado_arena_alloc(arena, 16) != NULL);
    CHECK(test_allocs() - allocs <= 10000 * 16 / 2000);
    tornado_arena_free(arena);
}

TEST(memory_arena_large_block_does_not_waste_the_rest_of_a_small_one)
{
    tornado_arena *arena = tornado_arena_new();
    long allocs = test_allocs();
    for (int i = 0; i < 50; i++) {
        CHECK(tornado_arena_alloc(arena, 5000) != NULL);
        CHECK(tornado_arena_alloc(arena, 16) != NULL);
    }
    CHECK_INT(test_allocs() - allocs, 50);
    tornado_arena_free(arena);
}

TEST(memory_arena_size_of_zero_gives_a_unique_pointer)
{
    tornado_arena *arena = tornado_arena_new();
    char *first = tornado_arena_alloc(arena, 0), *second = tornado_arena_alloc(arena, 0);
    CHECK(first && second && first != second);
    CHECK(tornado_arena_calloc(arena, 0, 100) != NULL);
    CHECK(tornado_arena_calloc(arena, 100, 0) != NULL);
    CHECK(tornado_arena_calloc(arena, SIZE_MAX, 0) != NULL);
    tornado_arena_free(arena);
}

TEST(memory_arena_refuses_what_no_memory_can_hold)
{
    static const size_t sizes[] = {SIZE_MAX,          SIZE_MAX - 1,  SIZE_MAX - 15, SIZE_MAX - 16,
                                   SIZE_MAX - 17,     SIZE_MAX - 32, SIZE_MAX - 64, SIZE_MAX - 4096,
                                   SIZE_MAX / 2 + 100};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        test_fail_alloc(1); /* should it get as far as the allocator */
        CHECK(tornado_arena_alloc(arena, sizes[i]) == NULL);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        test_fail_alloc(1);
        CHECK(tornado_arena_memdup(arena, "x", sizes[i]) == NULL);
        test_fail_alloc(1);
        CHECK(tornado_arena_calloc(arena, sizes[i], 1) == NULL);
    }
    test_fail_alloc(0);
    CHECK(tornado_arena_calloc(arena, SIZE_MAX / 2 + 1, 2) == NULL);
    CHECK(tornado_arena_calloc(arena, SIZE_MAX / 16 + 2, 16) == NULL); /* the product is 16 */
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(tornado_arena_alloc(arena, 10) != NULL); /* still usable */
    tornado_arena_free(arena);
}

TEST(memory_arena_calloc_clears_also_what_was_used_before)
{
    for (int round = 0; round < 3; round++) {
        tornado_arena *arena = tornado_arena_new();
        for (size_t count = 1; count < 3000; count += 97) {
            unsigned char *bytes = tornado_arena_calloc(arena, count, 3);
            for (size_t i = 0; i < count * 3; i++)
                CHECK_INT(bytes[i], 0);
            memset(bytes, 0xff, count * 3);
        }
        tornado_arena_free(arena);
    }
}

TEST(memory_arena_copies_end_with_a_nul)
{
    tornado_arena *arena = tornado_arena_new();
    CHECK_MEM(tornado_arena_memdup(arena, "a\0b", 3), 4, "a\0b\0", 4);
    CHECK_MEM(tornado_arena_memdup(arena, NULL, 0), 1, "", 1);
    const char *text = "text";
    char *copy = tornado_arena_strdup(arena, text);
    CHECK(copy != text);
    CHECK_STR(copy, "text");
    CHECK_STR(tornado_arena_strdup(arena, ""), "");
    tornado_arena_free(arena);
}

/* Every length, so that the text ends before, at and behind the end of a block. */
TEST(memory_arena_printf_prints_as_printf_at_every_place_in_a_block)
{
    char want[6000];
    tornado_arena *arena = tornado_arena_new();
    CHECK_STR(tornado_arena_printf(arena, "%s %d %c", "one", 2, '3'), "one 2 3");
    CHECK_STR(tornado_arena_printf(arena, "%s", ""), "");
    for (int len = 1; len < 1200; len++) {
        snprintf(want, sizeof want, "%0*d", len, len);
        char *text = tornado_arena_printf(arena, "%0*d", len, len);
        CHECK_STR(text, want);
        char *next = tornado_arena_alloc(arena, 24);
        memset(next, 'x', 24);
        CHECK_STR(text, want);
    }
    for (int len = 3900; len < 4100; len++) { /* about a block, into a new arena */
        tornado_arena *fresh = tornado_arena_new();
        snprintf(want, sizeof want, "%0*d", len, len);
        CHECK_STR(tornado_arena_printf(fresh, "%0*d", len, len), want);
        tornado_arena_free(fresh);
    }
    tornado_arena_free(arena);
}

TEST(memory_printf_with_what_cannot_be_printed_fails)
{
    static const wchar_t wrong[] = {(wchar_t)0x7fffffff, 0};
    char probe[8];
    if (snprintf(probe, sizeof probe, "%ls", wrong) >= 0)
        SKIP("this libc prints any wide character");
    tornado_arena *arena = tornado_arena_new();
    tornado_buffer buffer = {0};
    CHECK(tornado_arena_printf(arena, "%ls", wrong) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_STR(tornado_arena_printf(arena, "%d", 1), "1");
    CHECK(!tornado_buffer_printf(&buffer, "%ls", wrong));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(buffer.failed); /* who checks once finds it */
    CHECK(!tornado_buffer_puts(&buffer, "more"));
    tornado_buffer_free(&buffer);
    tornado_arena_free(arena);
}

TEST(memory_arena_free_of_null_is_allowed)
{
    tornado_arena_free(NULL);
}

/*----------------------------------------------------------------------------
 * Buffers.
 *----------------------------------------------------------------------------*/

TEST(memory_buffer_of_zeros_is_empty)
{
    tornado_buffer buffer = {0};
    CHECK(tornado_buffer_append(&buffer, NULL, 0));
    CHECK_INT(buffer.len, 0);
    CHECK(!buffer.data || *buffer.data == '\0');
    CHECK(tornado_buffer_puts(&buffer, ""));
    CHECK_INT(buffer.len, 0);
    tornado_buffer_free(&buffer);
    tornado_buffer_free(&buffer);
    CHECK(buffer.data == NULL && buffer.len == 0 && buffer.cap == 0 && !buffer.failed);
}

TEST(memory_buffer_appends_and_always_ends_with_a_nul)
{
    tornado_buffer buffer = {0};
    char want[70000] = "";
    size_t len = 0;
    for (int i = 0; len < 60000; i++) {
        char piece[200];
        size_t size = next_random() % sizeof piece;
        memset(piece, 'a' + i % 26, size);
        CHECK(tornado_buffer_append(&buffer, piece, size));
        memcpy(want + len, piece, size);
        len += size;
        CHECK_INT(buffer.len, len);
        CHECK_INT(buffer.data[len], 0);
        CHECK(buffer.cap > buffer.len);
    }
    CHECK_MEM(buffer.data, buffer.len, want, len);
    tornado_buffer_free(&buffer);
}

TEST(memory_buffer_keeps_nul_bytes)
{
    tornado_buffer buffer = {0};
    CHECK(tornado_buffer_append(&buffer, "a\0b", 3));
    CHECK(tornado_buffer_puts(&buffer, "cd"));
    CHECK(tornado_buffer_printf(&buffer, "%c%d", 0, 5));
    CHECK_MEM(buffer.data, buffer.len, "a\0bcd\0005", 7);
    tornado_buffer_free(&buffer);
}

TEST(memory_buffer_printf_prints_every_length)
{
    char want[400];
    for (int len = 1; len < 300; len++) {
        tornado_buffer buffer = {0};
        snprintf(want, sizeof want, "%0*d%s", len, 7, "ab");
        CHECK(tornado_buffer_printf(&buffer, "%0*d", len, 7));
        CHECK(tornado_buffer_printf(&buffer, "%s", "ab"));
        CHECK_MEM(buffer.data, buffer.len + 1, want, strlen(want) + 1);
        tornado_buffer_free(&buffer);
    }
}

TEST(memory_buffer_grows_in_few_steps)
{
    tornado_buffer buffer = {0};
    long allocs = test_allocs();
    for (int i = 0; i < 1000000; i++)
        tornado_buffer_append(&buffer, "x", 1);
    CHECK_INT(buffer.len, 1000000);
    CHECK(test_allocs() - allocs < 30);
    tornado_buffer_free(&buffer);
}

TEST(memory_buffer_reserve_gives_room_for_the_caller)
{
    tornado_buffer buffer = {0};
    for (size_t size = 0; size < 300; size++) {
        char *at = tornado_buffer_reserve(&buffer, size);
        CHECK(at == buffer.data + buffer.len);
        CHECK(buffer.cap > buffer.len + size); /* and a NUL */
        memset(at, 'r', size + 1);
        buffer.len += size;
    }
    CHECK_INT(buffer.len, 299 * 300 / 2);
    tornado_buffer_free(&buffer);
}

TEST(memory_buffer_refuses_what_no_memory_can_hold)
{
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 5, SIZE_MAX / 2, SIZE_MAX / 2 - 10};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        tornado_buffer buffer = {0};
        CHECK(tornado_buffer_puts(&buffer, "hello"));
        test_fail_alloc(1); /* should it get as far as the allocator */
        CHECK(tornado_buffer_reserve(&buffer, sizes[i]) == NULL);
        test_fail_alloc(0);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        CHECK(buffer.failed);
        CHECK_STR(buffer.data, "hello");
        tornado_buffer_free(&buffer);
    }
}

TEST(memory_buffer_that_failed_stays_as_it_was_until_it_is_freed)
{
    tornado_buffer buffer = {0};
    char big[1000] = "";
    CHECK(tornado_buffer_puts(&buffer, "kept"));
    test_fail_alloc(1);
    CHECK(!tornado_buffer_append(&buffer, big, sizeof big));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(buffer.failed);
    CHECK(!tornado_buffer_append(&buffer, "x", 1)); /* though there is room */
    CHECK(!tornado_buffer_puts(&buffer, "x"));
    CHECK(!tornado_buffer_puts(&buffer, ""));
    CHECK(!tornado_buffer_printf(&buffer, "%d", 1));
    CHECK(tornado_buffer_reserve(&buffer, 1) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK_INT(buffer.len, 4);
    CHECK_STR(buffer.data, "kept");
    tornado_buffer_free(&buffer);
    CHECK(!buffer.failed);
    CHECK(tornado_buffer_puts(&buffer, "again"));
    CHECK_STR(buffer.data, "again");
    tornado_buffer_free(&buffer);
}

/*----------------------------------------------------------------------------
 * Bytes.
 *----------------------------------------------------------------------------*/

TEST(memory_bytes_of_a_string_borrow_it)
{
    const char *text = "four";
    tornado_bytes bytes = tornado_bytes_of(text), none = tornado_bytes_of(NULL);
    CHECK(bytes.data == text);
    CHECK_INT(bytes.len, 4);
    CHECK_INT(none.len, 0);
    CHECK_INT(tornado_bytes_of("").len, 0);
}

TEST(memory_bytes_are_equal_when_all_of_them_are)
{
    tornado_bytes none = {NULL, 0}, zero = {"a\0b", 3}, other = {"a\0c", 3};
    CHECK(tornado_bytes_equal(none, none));
    CHECK(tornado_bytes_equal(none, tornado_bytes_of("")));
    CHECK(tornado_bytes_equal(zero, zero));
    CHECK(!tornado_bytes_equal(zero, other));
    CHECK(!tornado_bytes_equal(zero, tornado_bytes_of("a")));
    CHECK(!tornado_bytes_equal(tornado_bytes_of("ab"), tornado_bytes_of("abc")));
    CHECK(tornado_bytes_equal(tornado_bytes_of("abc"), tornado_bytes_of("abc")));
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

static void use_arena_and_buffer(void)
{
    tornado_buffer buffer = {0};
    bool ok = true;
    tornado_arena *arena = tornado_arena_new();
    for (size_t size = 1; arena && size < 10000; size *= 3) {
        CHECK(tornado_arena_alloc(arena, size) || is_error(tornado_last_error(), TORNADO_ERR_NOMEM));
        char *text = tornado_arena_printf(arena, "%0*d", (int)size, 1);
        CHECK(!text || strlen(text) == size);
        text = tornado_arena_memdup(arena, "copied", 6);
        CHECK(!text || strcmp(text, "copied") == 0);
        CHECK(tornado_arena_calloc(arena, size, 7) || is_error(tornado_last_error(), TORNADO_ERR_NOMEM));
    }
    tornado_arena_free(arena);
    for (int i = 0; i < 200; i++)
        ok = tornado_buffer_printf(&buffer, "%d,", i % 10) && ok;
    CHECK(ok == !buffer.failed);
    CHECK(!ok || buffer.len == 400);
    for (size_t i = 0; i < buffer.len; i++)
        CHECK_INT(buffer.data[i], i % 2 ? ',' : '0' + (int)(i / 2 % 10));
    tornado_buffer_free(&buffer);
}

TEST(memory_nothing_breaks_whichever_allocation_fails)
{
    each_shortage(use_arena_and_buffer);
}
