/* Blocks of headers, start lines, lists with weights, ranges: what is read of them is what stands there. */
#include "fuzz.h"

/* A block is read as its lines are, and again as the same when it is written anew. */
static void check_block(tornado_arena *arena, tornado_bytes text)
{
    tornado_http_headers first = {0}, second = {0};
    tornado_buffer out = {0};
    if (!tornado_http_headers_parse(arena, &first, text)) {
        MUST(tornado_last_error()->code == TORNADO_ERR_PARSE && first.count == 0);
        return;
    }
    for (size_t i = 0; i < first.count; i++) {
        const tornado_http_header *at = &first.items[i];
        size_t name = 0, value_len = 0, before = out.len;
        const char *value = NULL;
        MUST(strlen(at->name) == at->name_len && strlen(at->value) == at->value_len);
        MUST(tornado_buffer_printf(&out, "%s: %s\r\n", at->name, at->value));
        MUST(fuzz_header(out.data + before, out.len - before, &name, &value, &value_len) == out.len - before);
        MUST(name == at->name_len && value_len == at->value_len);
        MUST(tornado_http_headers_find(&first, at->name, NULL) <= at);
    }
    MUST(tornado_http_headers_parse(arena, &second, (tornado_bytes){out.data, out.len}));
    MUST(second.count == first.count);
    for (size_t i = 0; i < first.count; i++)
        MUST(strcmp(first.items[i].name, second.items[i].name) == 0 &&
             strcmp(first.items[i].value, second.items[i].value) == 0);
    if (first.count) {
        const char *name = first.items[0].name;
        size_t count = 0, len = 0;
        const char *const *list = tornado_http_headers_get_list(arena, &first, name, &count);
        const char *joined = tornado_http_headers_get(arena, &first, name);
        for (size_t i = 0; i < count; i++)
            len += strlen(list[i]) + (i > 0);
        MUST(joined && strlen(joined) == len);
        tornado_http_headers copy = {0};
        MUST(tornado_http_headers_copy(arena, &copy, &first) && copy.count == first.count);
        MUST(tornado_http_headers_add(arena, &copy, name, joined) && copy.count == first.count + 1);
        MUST(strcmp(copy.items[first.count].name, name) == 0);
        MUST(tornado_http_headers_set(arena, &second, name, "x") && second.count == first.count - count + 1);
        MUST(tornado_http_headers_remove(arena, &second, name) && second.count == first.count - count);
        MUST(tornado_http_headers_remove(arena, &second, name) && second.count == first.count - count);
    }
    tornado_buffer_free(&out);
}

/* A line that is accepted is its parts. */
static void check_start_lines(tornado_arena *arena, tornado_bytes line)
{
    tornado_http_start_line request;
    tornado_http_start_line response;
    if (tornado_parse_request_start_line(arena, &request, line)) {
        const char *text = tornado_arena_printf(arena, "%s %s %s", request.method, request.path, request.version);
        MUST(tornado_bytes_equal(tornado_bytes_of(text), line));
    }
    if (tornado_parse_response_start_line(arena, &response, line)) {
        const char *text =
            tornado_arena_printf(arena, "%s %d %s", response.version, response.code, response.reason);
        MUST(strncmp(text, line.data, line.len) == 0 && line.len >= 12 && strlen(text) <= line.len + 1);
        MUST(response.code >= 100 && response.code <= 999);
    }
}

static void check_preferences(tornado_arena *arena, tornado_bytes list)
{
    size_t count = 0;
    const tornado_preference *all = tornado_parse_preferences(arena, list, &count);
    if (!all) {
        MUST(tornado_last_error()->code == TORNADO_ERR_LIMIT);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        MUST(all[i].weight >= 0 && all[i].weight <= 1000);
        MUST(i == 0 || all[i].weight < all[i - 1].weight ||
             (all[i].weight == all[i - 1].weight && all[i].value.data > all[i - 1].value.data));
        MUST(all[i].value.data >= list.data && all[i].value.data + all[i].value.len <= list.data + list.len);
    }
}

static void check_range(const char *header)
{
    static const uint64_t sizes[] = {0, 1, 10, 1000, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        tornado_range range = {9, 3};
        int status = tornado_parse_range(header, sizes[i], &range);
        MUST(status == 200 ? range.start == 0 && range.end == sizes[i]
             : status == 206
                 ? range.start < range.end && range.end <= sizes[i] && range.end - range.start < sizes[i]
                 : status == 416 && range.start == 9 && range.end == 3);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *bytes = fuzz_copy(data, size), *string = fuzz_string(data, size);
    MUST(arena != NULL);
    check_block(arena, (tornado_bytes){bytes, size});
    check_start_lines(arena, (tornado_bytes){bytes, size});
    check_preferences(arena, (tornado_bytes){bytes, size});
    check_range(string);
    free(bytes);
    free(string);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
