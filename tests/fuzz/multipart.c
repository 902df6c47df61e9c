/* Forms of parts: what is read of one is in it, and is read again when it is written anew. */
#include "fuzz.h"

#include <strings.h>

/* Appends a parameter in quotes. */
static void quote(tornado_buffer *out, const char *text)
{
    tornado_buffer_puts(out, "\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            tornado_buffer_puts(out, "\\");
        tornado_buffer_append(out, text, 1);
    }
    tornado_buffer_puts(out, "\"");
}

static void write_form(tornado_buffer *out, const tornado_arguments *arguments, const tornado_http_files *files)
{
    for (size_t i = 0; i < arguments->count; i++) {
        tornado_buffer_puts(out, "--Again\r\nContent-Disposition: form-data; name=");
        quote(out, arguments->items[i].name.data);
        tornado_buffer_puts(out, "\r\n\r\n");
        tornado_buffer_append(out, arguments->items[i].value.data, arguments->items[i].value.len);
        tornado_buffer_puts(out, "\r\n");
    }
    for (size_t i = 0; i < files->count; i++) {
        tornado_buffer_printf(out, "--Again\r\nContent-Type: %s\r\nContent-Disposition: form-data; name=",
                              files->items[i].content_type);
        quote(out, files->items[i].name);
        tornado_buffer_puts(out, "; filename=");
        quote(out, files->items[i].filename);
        tornado_buffer_puts(out, "\r\n\r\n");
        tornado_buffer_append(out, files->items[i].body.data, files->items[i].body.len);
        tornado_buffer_puts(out, "\r\n");
    }
    tornado_buffer_puts(out, "--Again--");
}

static void check_again(tornado_arena *arena, const tornado_arguments *arguments, const tornado_http_files *files)
{
    static const tornado_arguments_options any = {.max_part_header_size = 1 << 20};
    tornado_buffer out = {0};
    tornado_arguments arguments2 = {0};
    tornado_http_files files2 = {0};
    write_form(&out, arguments, files);
    MUST(!out.failed);
    MUST(tornado_parse_multipart_form_data(arena, &arguments2, &files2, tornado_bytes_of("\"Again\""),
                                           (tornado_bytes){out.data, out.len}, &any));
    MUST(arguments2.count == arguments->count && files2.count == files->count);
    for (size_t i = 0; i < arguments->count; i++) {
        MUST(tornado_bytes_equal(arguments->items[i].name, arguments2.items[i].name));
        MUST(tornado_bytes_equal(arguments->items[i].value, arguments2.items[i].value));
    }
    for (size_t i = 0; i < files->count; i++) {
        MUST(strcmp(files->items[i].name, files2.items[i].name) == 0);
        MUST(strcmp(files->items[i].filename, files2.items[i].filename) == 0);
        MUST(strcmp(files->items[i].content_type, files2.items[i].content_type) == 0);
        MUST(tornado_bytes_equal(files->items[i].body, files2.items[i].body));
    }
    tornado_buffer_free(&out);
}

/* The input is a Content-Type up to a newline, and the body behind it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    tornado_http_files files = {0};
    const uint8_t *newline = size ? memchr(data, '\n', size) : NULL;
    size_t first = newline ? (size_t)(newline - data) : 0, rest = newline ? size - first - 1 : size;
    char *type = fuzz_string(data, first), *body = fuzz_copy(data + size - rest, rest);
    bool again = !memmem(data, size, "\r\n--Again", 9);
    MUST(arena != NULL);
    if (tornado_parse_body_arguments(arena, &arguments, &files, *type ? type : "multipart/form-data; boundary=B",
                                     (tornado_bytes){body, rest}, NULL)) {
        MUST(files.count <= 100);
        fuzz_lookups(&arguments);
        for (size_t i = 0; i < files.count; i++) {
            tornado_bytes in = files.items[i].body;
            MUST(in.data >= body && in.data + in.len <= body + rest);
            MUST(*files.items[i].name && *files.items[i].filename);
            MUST(tornado_http_files_find(&files, files.items[i].name, NULL) <= &files.items[i]);
            MUST(tornado_utf8_valid(files.items[i].filename, strlen(files.items[i].filename)));
        }
        if (again && (!*type || strncasecmp(type, "multipart/form-data", 19) == 0))
            check_again(arena, &arguments, &files);
    } else {
        MUST(arguments.count == 0 && files.count == 0);
        MUST(tornado_last_error()->code == TORNADO_ERR_PARSE || tornado_last_error()->code == TORNADO_ERR_LIMIT);
    }
    free(type);
    free(body);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
