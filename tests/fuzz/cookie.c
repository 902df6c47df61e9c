/* Cookie headers, and cookies that are set: every pair is where the rules put it, what is written comes back,
   nothing gets into an attribute that would end it. */
#include "fuzz.h"

/* Reads a value as the comment of tornado_parse_cookie says. */
static size_t unquote(const char *value, size_t len, char *out)
{
    size_t size = 0;
    if (len < 2 || value[0] != '"' || value[len - 1] != '"') {
        memcpy(out, value, len);
        return len;
    }
    for (size_t i = 1; i + 1 < len; i++) {
        char digits[4] = {0};
        if (value[i] == '\\' && i + 4 < len)
            memcpy(digits, value + i + 1, 3);
        if (strlen(digits) == 3 && strspn(digits, "01234567") == 3 && digits[0] < '4') {
            out[size++] = (char)strtol(digits, NULL, 8);
            i += 3;
        } else {
            i += value[i] == '\\' && i + 2 < len;
            out[size++] = value[i];
        }
    }
    return size;
}

static void strip(const char **text, size_t *len)
{
    static const char space[] = " \t\n\v\f\r\x1c\x1d\x1e\x1f";
    while (*len && memchr(space, **text, sizeof space - 1))
        ++*text, --*len;
    while (*len && memchr(space, (*text)[*len - 1], sizeof space - 1))
        --*len;
}

static void check_item(const tornado_argument *item, const char *name, size_t name_len, const char *value,
                       size_t value_len)
{
    MUST(item->name.len == name_len && memcmp(item->name.data, name, name_len) == 0);
    MUST(item->value.len == value_len && memcmp(item->value.data, value, value_len) == 0);
    MUST(item->name.data[name_len] == '\0' && item->value.data[value_len] == '\0');
}

static void check_header(tornado_arena *arena, const char *header, size_t len)
{
    tornado_arguments cookies = {0};
    char *decoded = fuzz_copy(header, len);
    size_t count = 0;
    if (!tornado_parse_cookie(arena, &cookies, (tornado_bytes){header, len}, NULL)) {
        MUST(tornado_last_error()->code == TORNADO_ERR_LIMIT && len > 10000);
        free(decoded);
        return;
    }
    for (const char *at = header, *end = header + len; at < end;) {
        const char *stop = memchr(at, ';', (size_t)(end - at));
        stop = stop ? stop : end;
        const char *equals = memchr(at, '=', (size_t)(stop - at));
        const char *name = equals ? at : "", *value = equals ? equals + 1 : at;
        size_t name_len = equals ? (size_t)(equals - at) : 0, value_len = (size_t)(stop - value);
        strip(&name, &name_len);
        strip(&value, &value_len);
        if (name_len || value_len) {
            MUST(count < cookies.count);
            check_item(&cookies.items[count++], name, name_len, decoded, unquote(value, value_len, decoded));
        }
        at = stop + 1;
    }
    MUST(count == cookies.count);
    fuzz_lookups(&cookies);
    free(decoded);
}

/* The input is a value, a name, an attribute. */
static void check_written(tornado_arena *arena, const char *text)
{
    tornado_arguments cookies = {0};
    const char *set = tornado_format_cookie(arena, "a", text, NULL);
    MUST(set && strlen(set) > 8 && strcmp(set + strlen(set) - 8, "; Path=/") == 0);
    for (const char *at = set; *at; at++)
        MUST(*at >= ' ' && *at < 0x7f);
    MUST(tornado_parse_cookie(arena, &cookies, tornado_bytes_of(set), NULL) && cookies.count == 2);
    check_item(&cookies.items[0], "a", 1, text, strlen(text));
    const tornado_cookie options = {.domain = text, .path = text, .samesite = text, .max_age = 1};
    set = tornado_format_cookie(arena, "a", "b", &options);
    bool good = true;
    for (const char *at = text; *at; at++)
        good &= (unsigned char)*at > ' ' && *at != ';' && *at != 0x7f;
    MUST((set != NULL) == good);
    set = tornado_format_cookie(arena, text, "b", NULL);
    MUST(!set || (!strpbrk(text, " ;,=\"\\\t\r\n") && strncmp(set, text, strlen(text)) == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *text = fuzz_string(data, size), *bytes = fuzz_copy(data, size);
    MUST(arena != NULL);
    check_header(arena, bytes, size);
    check_written(arena, text);
    free(text);
    free(bytes);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
