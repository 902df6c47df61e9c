/* Queries: every field is where the rules put it, what is added to a URL is found in it. */
#include "fuzz.h"

/* Decodes one half of a field as the comment of tornado_parse_qs says. */
static size_t decode(const char *text, size_t len, char *out)
{
    size_t size = 0;
    for (size_t i = 0; i < len; i++) {
        char digits[3] = {0};
        if (text[i] == '%' && i + 2 < len)
            memcpy(digits, text + i + 1, 2);
        if (strlen(digits) == 2 && strspn(digits, "0123456789abcdefABCDEF") == 2) {
            out[size++] = (char)strtol(digits, NULL, 16);
            i += 2;
        } else {
            out[size++] = text[i] == '+' ? ' ' : text[i];
        }
    }
    return size;
}

static void check_half(tornado_bytes got, const char *text, size_t len, char *room)
{
    size_t want = decode(text, len, room);
    MUST(got.data && got.len == want && memcmp(got.data, room, want) == 0 && got.data[want] == '\0');
}

static bool same(const tornado_arguments *a, const tornado_arguments *b)
{
    bool equal = a->count == b->count;
    for (size_t i = 0; equal && i < a->count; i++)
        equal = tornado_bytes_equal(a->items[i].name, b->items[i].name) &&
                tornado_bytes_equal(a->items[i].value, b->items[i].value);
    return equal;
}

static void check_query(tornado_arena *arena, const char *query, size_t len)
{
    const tornado_arguments_options unlimited = {.max_fields = TORNADO_NONE},
                                    strict = {.strict = true, .max_fields = 3};
    tornado_arguments list = {0}, few = {0}, again = {0};
    char *room = fuzz_copy(query, len);
    size_t count = 0;
    MUST(tornado_parse_qs(arena, &list, (tornado_bytes){query, len}, &unlimited));
    bool strictly = len > 0;
    for (const char *at = query, *end = query + len; len && at <= end;) {
        const char *stop = at < end ? memchr(at, '&', (size_t)(end - at)) : NULL;
        stop = stop ? stop : end;
        const char *equals = at < stop ? memchr(at, '=', (size_t)(stop - at)) : NULL;
        strictly &= equals != NULL;
        if (at < stop) {
            MUST(count < list.count);
            check_half(list.items[count].name, at, (size_t)((equals ? equals : stop) - at), room);
            check_half(list.items[count].value, equals ? equals + 1 : stop,
                       equals ? (size_t)(stop - equals - 1) : 0, room);
            count++;
        }
        at = stop + 1;
    }
    MUST(count == list.count);
    if (count < 200)
        fuzz_lookups(&list);
    MUST(tornado_parse_qs(arena, &few, (tornado_bytes){query, len}, &strict) ==
         (len == 0 || (strictly && count <= 3)));
    MUST(few.count == (few.count ? count : 0));
    const char *url = tornado_url_concat_arguments(arena, "/#f", &list);
    MUST(url && url[0] == '/' && strcmp(url + strlen(url) - 2, "#f") == 0);
    MUST(tornado_parse_qs(arena, &again, (tornado_bytes){url + 2, strlen(url) - 4 + !list.count}, &unlimited) ||
         !list.count);
    MUST(!list.count || same(&list, &again));
    free(room);
}

/* The text of a value has no controls, is shorter, and stays as it is when it is taken once more. */
static void check_text(tornado_arena *arena, tornado_bytes value)
{
    const char *text = tornado_argument_text(arena, value, true);
    MUST(text && strlen(text) <= value.len);
    for (const char *at = text; *at; at++)
        MUST((unsigned char)*at >= ' ' || (*at >= 9 && *at <= 13));
    MUST(strcmp(tornado_argument_text(arena, tornado_bytes_of(text), true), text) == 0);
    MUST(!tornado_utf8_valid(value.data, value.len) || tornado_utf8_valid(text, strlen(text)));
    MUST(strlen(tornado_argument_text(arena, value, false)) == value.len);
}

static void check_concat(tornado_arena *arena, const char *url, const char *value)
{
    const char *longer = tornado_url_concat(arena, url, (const char *const[]){"name", value, NULL});
    const char *fragment = strchr(url, '#'), *query = strchr(longer, '?');
    tornado_arguments list = {0};
    MUST(longer && query && strncmp(longer, url, strcspn(url, "?#")) == 0);
    size_t len = strcspn(query + 1, "#");
    MUST(strcmp(query + 1 + len, fragment && fragment[1] ? fragment : "") == 0);
    MUST(tornado_parse_qs(arena, &list, (tornado_bytes){query + 1, len}, NULL));
    const tornado_argument *got = tornado_arguments_get(&list, "name");
    MUST(got == &list.items[list.count - 1] && strcmp(got->value.data, value) == 0);
}

/* The input is a query; and two strings up to a newline. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *bytes = fuzz_copy(data, size), *first = fuzz_string(data, size), *newline = strchr(first, '\n');
    MUST(arena != NULL);
    check_query(arena, bytes, size);
    check_text(arena, (tornado_bytes){bytes, size});
    if (newline)
        *newline = '\0';
    check_concat(arena, first, newline ? newline + 1 : "");
    free(bytes);
    free(first);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
