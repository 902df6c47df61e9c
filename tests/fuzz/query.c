/* Queries and URLs: every field is where the rules put it, what is added to a URL is found in it, a URL is the sum
   of its parts, and a resolved one stays as it is. */
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

static void append(char **out, const char *before, const char *part)
{
    if (part)
        *out += sprintf(*out, "%s%s", before, part);
}

/* A URL is the sum of its parts, but for the scheme's case. */
static void check_split(tornado_arena *arena, const char *text)
{
    tornado_url url;
    if (!tornado_url_split(arena, &url, text)) {
        MUST(tornado_last_error()->code == TORNADO_ERR_PARSE || tornado_last_error()->code == TORNADO_ERR_LIMIT);
        return;
    }
    char *sum = tornado_arena_alloc(arena, strlen(text) + 1), *at = sum;
    append(&at, "", url.scheme);
    append(&at, url.scheme ? ":" : "", "");
    append(&at, "//", url.authority);
    append(&at, "", url.path);
    append(&at, "?", url.query);
    append(&at, "#", url.fragment);
    size_t scheme = url.scheme ? strlen(url.scheme) : 0;
    MUST(strncasecmp(sum, text, scheme) == 0 && strcmp(sum + scheme, text + scheme) == 0);
    MUST(!url.authority == !url.host && url.port >= -1 && url.port <= 65535);
    MUST(!url.authority || strlen(url.host) <= strlen(url.authority));
    MUST(!url.authority || !url.path[0] || url.path[0] == '/');
}

/* What a reference means stays the same wherever it is resolved. */
static void check_join(tornado_arena *arena, const char *base, const char *reference)
{
    tornado_url url;
    const char *joined = tornado_url_join(arena, base, reference), *at;
    if (!joined || !tornado_url_split(arena, &url, joined))
        return; /* too long, perhaps */
    MUST(url.scheme);
    if ((at = tornado_url_join(arena, "x://y/z?q", joined)) != NULL && *reference) {
        const char *twice = tornado_url_join(arena, "x://y/z?q", at);
        MUST(twice && strcmp(at, twice) == 0);
    }
    if (strchr(reference, ':') == NULL && strncmp(reference, "//", 2) != 0) { /* stays with the base's host */
        tornado_url of_base;
        MUST(tornado_url_split(arena, &of_base, base) && strcmp(of_base.scheme, url.scheme) == 0);
        MUST(!of_base.authority == !url.authority);
        MUST(!url.authority || strcmp(of_base.authority, url.authority) == 0);
    }
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

static void check_host(tornado_arena *arena, const char *netloc)
{
    int port = -2;
    const char *host = tornado_split_host_and_port(arena, netloc, &port);
    MUST(host ? port >= -1 && port <= 65535 && strncmp(netloc, host, strlen(host)) == 0 : port == -2);
}

/* The input is a query; and two strings up to a newline. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *bytes = fuzz_copy(data, size), *first = fuzz_string(data, size), *newline = strchr(first, '\n');
    char *second = fuzz_string(newline ? newline + 1 : "", newline ? strlen(newline + 1) : 0);
    MUST(arena != NULL);
    check_query(arena, bytes, size);
    check_text(arena, (tornado_bytes){bytes, size});
    if (newline)
        *newline = '\0';
    check_split(arena, first);
    check_host(arena, first);
    check_join(arena, first, second);
    check_join(arena, "http://u@a:80/b/c/d;p?q#f", first);
    check_concat(arena, first, second);
    free(bytes);
    free(first);
    free(second);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
