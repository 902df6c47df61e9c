/* The parameters of headers: what is written of them is read as the same. */
#include "fuzz.h"

static void check_parameters(tornado_arena *arena, tornado_bytes line)
{
    tornado_arguments first = {0}, second = {0};
    const char *key = tornado_parse_header(arena, &first, line);
    MUST(key && strlen(key) <= line.len);
    fuzz_lookups(&first);
    if (line.len && memchr(line.data, '\0', line.len)) /* of the key the caller sees what stands before it */
        return;
    for (size_t i = 0; i < first.count; i++) {
        size_t len = first.items[i].name.len; /* "name*" would be taken for extended once more */
        if (len && first.items[i].name.data[len - 1] == '*')
            return;
    }
    const char *text = tornado_encode_header(arena, key, &first);
    if (!text || strpbrk(key, "\"") || (first.count && strchr(key, ';')))
        return;
    const char *again = tornado_parse_header(arena, &second, tornado_bytes_of(text));
    MUST(again && strcmp(key, again) == 0 && first.count == second.count);
    for (size_t i = 0; i < first.count; i++) {
        MUST(tornado_bytes_equal(first.items[i].name, second.items[i].name));
        MUST(tornado_bytes_equal(first.items[i].value, second.items[i].value));
        MUST(!first.items[i].value.data == !second.items[i].value.data);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *bytes = fuzz_copy(data, size);
    MUST(arena != NULL);
    check_parameters(arena, (tornado_bytes){bytes, size});
    free(bytes);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
