/* Text inside HTML, URLs and JSON: what was escaped comes back, what comes back is no longer than what went in, and
   nothing is read beyond its end. */
#include "fuzz.h"

static void check_xhtml(tornado_arena *arena, const char *text)
{
    const char *escaped = tornado_xhtml_escape(arena, text), *back;
    MUST(escaped && !strpbrk(escaped, "<>\"'"));
    for (const char *at = strchr(escaped, '&'); at; at = strchr(at + 1, '&'))
        MUST(!strncmp(at, "&amp;", 5) || !strncmp(at, "&lt;", 4) || !strncmp(at, "&gt;", 4) ||
             !strncmp(at, "&quot;", 6) || !strncmp(at, "&#39;", 5));
    back = tornado_xhtml_unescape(arena, escaped);
    MUST(back && strcmp(back, text) == 0);
    back = tornado_xhtml_unescape(arena, text);
    MUST(back && strlen(back) <= strlen(text));
    MUST(!tornado_utf8_valid(text, strlen(text)) || tornado_utf8_valid(back, strlen(back)));
    if (!strchr(text, '&') || !strchr(text, ';'))
        MUST(strcmp(back, text) == 0);
}

static void check_url(tornado_arena *arena, const char *text, bool plus)
{
    const char *escaped = tornado_url_escape(arena, text, plus);
    MUST(escaped && strlen(escaped) <= 3 * strlen(text));
    for (const char *at = escaped; *at; at++)
        MUST((*at >= '0' && *at <= '9') || ((*at | 32) >= 'a' && (*at | 32) <= 'z') || strchr("-._~%", *at) ||
             *at == (plus ? '+' : '/'));
    tornado_bytes back = tornado_url_unescape(arena, tornado_bytes_of(escaped), plus);
    MUST(back.data && tornado_bytes_equal(back, tornado_bytes_of(text)) && back.data[back.len] == '\0');
}

/* Decodes as the comment of tornado_url_unescape says. */
static size_t url_decode(const char *data, size_t len, bool plus, char *out)
{
    size_t size = 0;
    for (size_t i = 0; i < len; i++) {
        char digits[3] = {0};
        if (data[i] == '%' && i + 2 < len)
            memcpy(digits, data + i + 1, 2);
        if (strlen(digits) == 2 && strspn(digits, "0123456789abcdefABCDEF") == 2) {
            out[size++] = (char)strtol(digits, NULL, 16);
            i += 2;
        } else {
            out[size++] = plus && data[i] == '+' ? ' ' : data[i];
        }
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *text = fuzz_string(data, size), *bytes = fuzz_copy(data, size), *want = fuzz_copy(data, size);
    MUST(arena != NULL);
    check_xhtml(arena, text);
    for (int plus = 0; plus < 2; plus++) {
        check_url(arena, text, plus);
        tornado_bytes got = tornado_url_unescape(arena, (tornado_bytes){bytes, size}, plus);
        size_t len = url_decode(bytes, size, plus, want);
        MUST(got.data && got.len == len && memcmp(got.data, want, len) == 0 && got.data[len] == '\0');
    }
    free(text);
    free(bytes);
    free(want);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
