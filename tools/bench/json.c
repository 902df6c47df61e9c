/* JSON: how fast a document is read into values and written again, beside jansson (-DBENCH_JANSSON). The document is
   made here, the same each time: 600 KB of records with text in several scripts, numbers, lists and dicts.

     json SECONDS    measures: a line "case engine MB/s" for each, separated by tabs, of the document's length; each
                     figure is the best of several of which each takes SECONDS. Memory is freed within the time
     json document   the document, for other engines */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <time.h>

#ifdef BENCH_JANSSON
#include <jansson.h>
#endif

enum { SIZE = 600000 };

/*----------------------------------------------------------------------------
 * The document.
 *----------------------------------------------------------------------------*/

static unsigned next_random(unsigned limit)
{
    static uint64_t state = 1;
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(state >> 33) % limit;
}

/* Some words, in a place that is used again after four calls. */
static const char *words(unsigned count)
{
    static const char *const all[] = {
        "the", "of", "request", "server", "handler", "time", "for", "waits", "a", "connection", "and", "text", "behind",
        "in", "is", "to", "\"quoted\"", "a line\n", "</b>", "Zo\xc3\xab", "caf\xc3\xa9", "\xc3\xbc\x62" "er",
        "\xd0\xbc\xd0\xb8\xd1\x80", "\xe6\x9d\xb1\xe4\xba\xac", "\xf0\x9f\x98\x80"};
    static char places[4][1000];
    static unsigned place;
    char *out = places[place++ % 4];
    size_t len = 0;
    for (unsigned i = 0; i < count; i++)
        len += (size_t)snprintf(out + len, sizeof places[0] - len, "%s%s", i ? " " : "",
                                all[next_random(sizeof all / sizeof all[0])]);
    return out;
}

/* With six places, from -most to most. */
static double degrees(int most)
{
    return ((int)next_random(2000000 * (unsigned)most) - 1000000 * most) / 1e6;
}

static bool add_record(tornado_buffer *out, int id)
{
    char mail[40];
    snprintf(mail, sizeof mail, "user%u@example.com", next_random(100000));
    return tornado_json_pack(
        out,
        "{id: I, created_at: s, text: s, truncated: b, user: {id: i, name: s, mail: s, description: s, verified: b,"
        " location: {lat: f, lon: f}}, retweet_count: i, score: f, lang: s, in_reply_to: n, tags: [s, s],"
        " entities: {urls: [], indices: [i, i]}}",
        INT64_C(505874924095815680) + id * 4096, "Sun Aug 31 00:29:15 +0000 2014", words(8 + next_random(16)),
        (int)next_random(2), (int)next_random(1 << 30), words(2), mail, words(next_random(12)), (int)next_random(2),
        degrees(90), degrees(180), (int)next_random(100), next_random(1 << 30) / 3e7, "en", "first", "second tag",
        (int)next_random(140), (int)next_random(140));
}

/* Characters beyond ASCII stand in it as they are. */
static tornado_buffer make_document(void)
{
    static const tornado_json_options utf8 = {.utf8 = true};
    tornado_buffer list = {NULL, 0, 0, false}, out = {NULL, 0, 0, false};
    tornado_arena *arena = tornado_arena_new();
    bool ok = arena && tornado_buffer_puts(&list, "[");
    for (int id = 0; ok && list.len < SIZE * 9 / 8; id++) /* escapes are longer */
        ok = (!id || tornado_buffer_puts(&list, ", ")) && add_record(&list, id);
    ok = ok && tornado_buffer_puts(&list, "]") &&
         tornado_json_encode_with(&out, tornado_json_decode(arena, (tornado_bytes){list.data, list.len}), &utf8);
    if (!ok)
        abort();
    tornado_buffer_free(&list);
    tornado_arena_free(arena);
    return out;
}

/*----------------------------------------------------------------------------
 * The engines.
 *----------------------------------------------------------------------------*/

/* Reads a document; writes what was read, in either way, and returns how long it became; frees what was read. */
typedef struct engine {
    const char *name;
    void *(*read)(tornado_bytes text);
    size_t (*write)(void *document, bool utf8);
    void (*free)(void *document);
} engine;

typedef struct ours {
    tornado_arena *arena;
    const tornado_value *value;
} ours;

static void *ours_read(tornado_bytes text)
{
    tornado_arena *arena = tornado_arena_new();
    ours *document = arena ? tornado_arena_alloc(arena, sizeof *document) : NULL;
    if (!document)
        abort();
    document->arena = arena;
    document->value = tornado_json_decode(arena, text);
    return document->value ? document : NULL;
}

static size_t ours_write(void *document, bool utf8)
{
    tornado_buffer out = {NULL, 0, 0, false};
    tornado_json_options options = {.utf8 = utf8};
    bool ok = tornado_json_encode_with(&out, ((ours *)document)->value, &options);
    size_t len = ok ? out.len : 0;
    tornado_buffer_free(&out);
    return len;
}

static void ours_free(void *document)
{
    tornado_arena_free(((ours *)document)->arena);
}

#ifdef BENCH_JANSSON
static void *jansson_read(tornado_bytes text)
{
    return json_loadb(text.data, text.len, 0, NULL);
}

static size_t jansson_write(void *document, bool utf8)
{
    char *text = json_dumps(document, utf8 ? 0 : JSON_ENSURE_ASCII);
    size_t len = text ? strlen(text) : 0;
    free(text);
    return len;
}

static void jansson_free(void *document)
{
    json_decref(document);
}
#endif

static const engine engines[] = {
    {"tornado.h", ours_read, ours_write, ours_free},
#ifdef BENCH_JANSSON
    {"jansson", jansson_read, jansson_write, jansson_free},
#endif
};

/*----------------------------------------------------------------------------
 * Measuring.
 *----------------------------------------------------------------------------*/

enum { READ, WRITE_UTF8, WRITE_ASCII, CASES };

static bool once(const engine *e, int what, tornado_bytes text, void *document)
{
    if (what != READ)
        return e->write(document, what == WRITE_UTF8) > 0;
    void *again = e->read(text);
    if (again)
        e->free(again);
    return again != NULL;
}

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static double megabytes_per_second(const engine *e, int what, tornado_bytes text, void *document, double seconds)
{
    double best = 0;
    for (int i = 0; i < 5; i++) {
        double begin = cpu_seconds(), spent = 0;
        long rounds = 0;
        for (; spent < seconds; rounds++, spent = cpu_seconds() - begin)
            if (!once(e, what, text, document))
                abort();
        double speed = (double)rounds * (double)text.len / 1e6 / spent;
        best = speed > best ? speed : best;
    }
    return best;
}

int main(int argc, char **argv)
{
    static const char *const cases[CASES] = {"read", "write, UTF-8", "write, \\u"};
    tornado_buffer buffer = make_document();
    tornado_bytes text = {buffer.data, buffer.len};
    if (argc == 2 && strcmp(argv[1], "document") == 0)
        return fwrite(text.data, 1, text.len, stdout) == text.len ? 0 : 1;
    if (argc != 2) {
        fprintf(stderr, "usage: %s SECONDS | document\n", argv[0]);
        return 2;
    }
    for (size_t i = 0; i < sizeof engines / sizeof engines[0]; i++) {
        void *document = engines[i].read(text);
        if (!document)
            abort();
        for (int what = 0; what < CASES; what++)
            printf("%s\t%s\t%.1f\n", cases[what], engines[i].name,
                   megabytes_per_second(&engines[i], what, text, document, atof(argv[1])));
        engines[i].free(document);
    }
    tornado_buffer_free(&buffer);
    return 0;
}
