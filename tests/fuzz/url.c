/* URLs: one is the sum of its parts, and a resolved one stays as it is. */
#include "fuzz.h"

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

static void check_host(tornado_arena *arena, const char *netloc)
{
    int port = -2;
    const char *host = tornado_split_host_and_port(arena, netloc, &port);
    MUST(host ? port >= -1 && port <= 65535 && strncmp(netloc, host, strlen(host)) == 0 : port == -2);
}

/* The input is two strings, up to a newline and behind it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tornado_arena *arena = tornado_arena_new();
    char *first = fuzz_string(data, size), *newline = strchr(first, '\n');
    char *second = fuzz_string(newline ? newline + 1 : "", newline ? strlen(newline + 1) : 0);
    MUST(arena != NULL);
    if (newline)
        *newline = '\0';
    check_split(arena, first);
    check_host(arena, first);
    check_join(arena, first, second);
    check_join(arena, "http://u@a:80/b/c/d;p?q#f", first);
    free(first);
    free(second);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
