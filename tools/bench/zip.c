/* DEFLATE: how fast data are decompressed, and how fast and how small they are compressed, beside zlib (-DBENCH_ZLIB)
   and libdeflate (-DBENCH_LIBDEFLATE), which knows whole buffers only. The data are made here, the same each time,
   about 1 MB each: a page of HTML, JSON, and noise.

     zip SECONDS       measures: a line "case engine figure" for each, separated by tabs; MB/s of the plain data, the
                       best of several of which each takes SECONDS, or the ratio
     zip DATA          writes html, json or noise, for other engines */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <time.h>

#ifdef BENCH_ZLIB
#include <zlib.h>
#endif
#ifdef BENCH_LIBDEFLATE
#include <libdeflate.h>
#endif

enum { SIZE = 1000000, PART = 65536, ROUNDS = 7 };

/*----------------------------------------------------------------------------
 * The data.
 *----------------------------------------------------------------------------*/

static uint64_t state;

static unsigned next_random(unsigned limit)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(state >> 33) % limit;
}

/* A word; the first ones are more frequent, as in any text. */
static const char *word(void)
{
    static const char *const all[] = {
        "the",      "of",        "and",      "to",      "in",       "is",        "for",       "that",     "with",
        "on",       "as",        "are",      "this",    "by",       "be",        "from",      "or",       "an",
        "request",  "server",    "handler",  "which",   "time",     "not",       "connection", "has",     "when",
        "other",    "waiting",   "response", "between", "header",   "method",    "coroutine", "future",   "stream",
        "result",   "loop",      "browser",  "network", "template", "secure",    "cookie",    "example",  "argument",
        "callback", "performance", "thousands", "open", "library",  "framework", "web",       "async",    "timeout",
        "language", "different", "without",  "several", "because",  "compression", "quality", "document", "password",
        "already"};
    unsigned limit = 1 + next_random(sizeof all / sizeof all[0]);
    return all[next_random(limit)];
}

static void words(tornado_buffer *out, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        tornado_buffer_printf(out, "%s%s", i ? " " : "", word());
}

static void make_html(tornado_buffer *out)
{
    tornado_buffer_puts(out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n"
                             "<title>Stories</title>\n"
                             "<link rel=\"stylesheet\" href=\"/static/style.css?v=8f14e45f\"></head>\n<body>\n");
    for (unsigned id = 1000; out->len < SIZE; id++) {
        tornado_buffer_printf(out, "<div class=\"story\" id=\"story-%u\">\n  <h2><a href=\"/story/%u/", id, id);
        tornado_buffer_printf(out, "%s-%s\">", word(), word());
        words(out, 3 + next_random(5));
        tornado_buffer_printf(out, "</a></h2>\n  <p class=\"meta\">by <a href=\"/user/%s%u\">%s</a> on <time "
                                   "datetime=\"2014-%02u-%02uT%02u:%02u:00Z\">", word(), next_random(1000), word(),
                              1 + next_random(12), 1 + next_random(28), next_random(24), next_random(60));
        tornado_buffer_printf(out, "%u days ago</time> &middot; %u comments</p>\n  <p>", next_random(400),
                              next_random(90));
        words(out, 20 + next_random(60));
        tornado_buffer_puts(out, ".</p>\n  <ul class=\"tags\">");
        for (unsigned i = 0; i < 3; i++)
            tornado_buffer_printf(out, "<li><a href=\"/tag/%s\">#%u</a></li>", word(), next_random(50));
        tornado_buffer_puts(out, "</ul>\n</div>\n");
    }
    tornado_buffer_puts(out, "</body>\n</html>\n");
}

static void make_json(tornado_buffer *out)
{
    tornado_buffer_puts(out, "[");
    for (unsigned id = 0; out->len < SIZE; id++) {
        tornado_buffer_printf(out, "%s{\"id\": %u, \"user\": {\"name\": \"%s %s\", \"mail\": \"%s%u@example.com\", "
                                   "\"verified\": %s}, \"text\": \"", id ? ", " : "", 100000 + id * 7, word(), word(),
                              word(), next_random(1000), next_random(2) ? "true" : "false");
        words(out, 5 + next_random(20));
        tornado_buffer_printf(out, "\", \"position\": [%u.%06u, %u.%06u], \"count\": %u, \"tags\": [\"%s\", \"%s\"], "
                                   "\"reply_to\": null}", next_random(90), next_random(1000000), next_random(180),
                              next_random(1000000), next_random(5000), word(), word());
    }
    tornado_buffer_puts(out, "]");
}

static void make_noise(tornado_buffer *out)
{
    while (out->len < SIZE) {
        unsigned number = next_random(1u << 30);
        tornado_buffer_append(out, &number, 3);
    }
}

static const struct {
    const char *name;
    void (*make)(tornado_buffer *out);
} sets[] = {{"html", make_html}, {"json", make_json}, {"noise", make_noise}};

/*----------------------------------------------------------------------------
 * The engines. Each gives the length of what it made, in `room` bytes; streams are given and give parts.
 *----------------------------------------------------------------------------*/

typedef size_t engine_function(tornado_bytes data, char *out, size_t room, bool gzip);

static size_t ours_inflate(tornado_bytes data, char *out, size_t room, bool gzip)
{
    tornado_decompressor_options options = {.format = gzip ? TORNADO_ZIP_GZIP : TORNADO_ZIP_RAW};
    tornado_decompressor *decompressor = tornado_decompressor_new(&options);
    static tornado_buffer buffer;
    size_t len = 0;
    for (size_t at = 0; at < data.len; at += PART) {
        tornado_bytes part = {data.data + at, data.len - at < PART ? data.len - at : PART};
        while (part.len > 0) {
            buffer.len = 0;
            if (!tornado_decompressor_decompress(decompressor, &buffer, part, PART) || len + buffer.len > room)
                abort();
            len += buffer.len;
            part = tornado_decompressor_unconsumed_tail(decompressor);
        }
    }
    if (!tornado_decompressor_flush(decompressor))
        abort();
    tornado_decompressor_free(decompressor);
    (void)out;
    return len;
}

static size_t ours_inflate_whole(tornado_bytes data, char *out, size_t room, bool gzip)
{
    tornado_decompressor_options options = {.format = gzip ? TORNADO_ZIP_GZIP : TORNADO_ZIP_RAW};
    static tornado_buffer buffer;
    buffer.len = 0;
    if (!tornado_decompress(&buffer, data, &options))
        abort();
    (void)out;
    (void)room;
    return buffer.len;
}

static size_t ours_deflate(tornado_bytes data, char *out, size_t room, bool gzip)
{
    tornado_compressor_options options = {.format = gzip ? TORNADO_ZIP_GZIP : TORNADO_ZIP_RAW};
    tornado_compressor *compressor = tornado_compressor_new(&options);
    static tornado_buffer buffer;
    bool ok = true;
    buffer.len = 0;
    for (size_t at = 0; at < data.len; at += PART)
        ok = ok && tornado_compressor_compress(
                       compressor, &buffer,
                       (tornado_bytes){data.data + at, data.len - at < PART ? data.len - at : PART});
    if (!ok || !tornado_compressor_flush(compressor, &buffer, TORNADO_ZIP_FINISH))
        abort();
    tornado_compressor_free(compressor);
    (void)out;
    (void)room;
    return buffer.len;
}

#ifdef BENCH_ZLIB
static size_t zlib_inflate(tornado_bytes data, char *out, size_t room, bool gzip)
{
    z_stream z = {0};
    static char buffer[PART];
    size_t len = 0;
    (void)out;
    (void)room;
    if (inflateInit2(&z, gzip ? 31 : -15) != Z_OK)
        abort();
    for (size_t at = 0; at < data.len; at += PART) {
        z.next_in = (Bytef *)(uintptr_t)(data.data + at);
        z.avail_in = (uInt)(data.len - at < PART ? data.len - at : PART);
        do {
            z.next_out = (Bytef *)buffer;
            z.avail_out = PART;
            int result = inflate(&z, Z_NO_FLUSH);
            if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
                abort();
            len += PART - z.avail_out;
        } while (z.avail_out == 0);
    }
    inflateEnd(&z);
    return len;
}

static size_t zlib_deflate(tornado_bytes data, char *out, size_t room, bool gzip)
{
    z_stream z = {0};
    if (deflateInit2(&z, 6, Z_DEFLATED, gzip ? 31 : -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        abort();
    z.next_out = (Bytef *)out;
    z.avail_out = (uInt)room;
    for (size_t at = 0; at < data.len; at += PART) {
        z.next_in = (Bytef *)(uintptr_t)(data.data + at);
        z.avail_in = (uInt)(data.len - at < PART ? data.len - at : PART);
        if (deflate(&z, at + PART >= data.len ? Z_FINISH : Z_NO_FLUSH) < 0)
            abort();
    }
    deflateEnd(&z);
    return room - z.avail_out;
}
#endif

#ifdef BENCH_LIBDEFLATE
static size_t libdeflate_inflate(tornado_bytes data, char *out, size_t room, bool gzip)
{
    struct libdeflate_decompressor *decompressor = libdeflate_alloc_decompressor();
    size_t len = 0;
    enum libdeflate_result result =
        gzip ? libdeflate_gzip_decompress(decompressor, data.data, data.len, out, room, &len)
             : libdeflate_deflate_decompress(decompressor, data.data, data.len, out, room, &len);
    if (result != LIBDEFLATE_SUCCESS)
        abort();
    libdeflate_free_decompressor(decompressor);
    return len;
}

static size_t libdeflate_deflate(tornado_bytes data, char *out, size_t room, bool gzip)
{
    struct libdeflate_compressor *compressor = libdeflate_alloc_compressor(6);
    size_t len = gzip ? libdeflate_gzip_compress(compressor, data.data, data.len, out, room)
                      : libdeflate_deflate_compress(compressor, data.data, data.len, out, room);
    libdeflate_free_compressor(compressor);
    return len;
}
#endif

static const struct {
    const char *name;
    engine_function *inflate, *deflate;
} engines[] = {
    {"tornado.h", ours_inflate, ours_deflate},
    {"tornado.h, whole", ours_inflate_whole, NULL},
#ifdef BENCH_ZLIB
    {"zlib", zlib_inflate, zlib_deflate},
#endif
#ifdef BENCH_LIBDEFLATE
    {"libdeflate, whole", libdeflate_inflate, libdeflate_deflate},
#endif
};
enum { ENGINES = sizeof engines / sizeof engines[0] };

/*----------------------------------------------------------------------------
 * Measuring.
 *----------------------------------------------------------------------------*/

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Megabytes of plain data for a second. */
static double measure(engine_function *run, tornado_bytes data, size_t plain, char *out, size_t room, bool gzip,
                      double seconds)
{
    double begin = cpu_seconds(), taken;
    long count = 0;
    do {
        run(data, out, room, gzip);
        count++;
        taken = cpu_seconds() - begin;
    } while (taken < seconds);
    return (double)plain * (double)count / taken / 1e6;
}

/* What all engines are to decompress; valid until the next call. */
static tornado_bytes pack(tornado_bytes plain, bool gzip)
{
    static tornado_buffer packed;
    tornado_compressor_options options = {.format = gzip ? TORNADO_ZIP_GZIP : TORNADO_ZIP_RAW};
    packed.len = 0;
    if (!tornado_compress(&packed, plain, &options))
        abort();
    return (tornado_bytes){packed.data, packed.len};
}

static void measure_set(const char *name, tornado_bytes plain, double seconds)
{
    size_t room = plain.len * 9 / 8 + 1000;
    char *out = malloc(room);
    for (int way = 0; way < 2; way++) {
        for (int gzip = 0; gzip < 2; gzip++) {
            double best[ENGINES] = {0};
            tornado_bytes data = plain;
            if (way == 0)
                data = pack(plain, gzip);
            for (int round = 0; round < ROUNDS; round++)
                for (int i = 0; i < ENGINES; i++) {
                    engine_function *run = way == 0 ? engines[i].inflate : engines[i].deflate;
                    double figure = run ? measure(run, data, plain.len, out, room, gzip, seconds) : 0;
                    best[i] = figure > best[i] ? figure : best[i];
                }
            for (int i = 0; i < ENGINES; i++)
                if (best[i] > 0)
                    printf("%s %s, %s\t%s\t%.1f\n", way ? "compress" : "decompress", name, gzip ? "gzip" : "raw",
                           engines[i].name, best[i]);
        }
    }
    for (int i = 0; i < ENGINES; i++)
        if (engines[i].deflate)
            printf("ratio %s\t%s\t%.3f\n", name, engines[i].name,
                   (double)plain.len / (double)engines[i].deflate(plain, out, room, false));
    free(out);
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        tornado_buffer data = {NULL, 0, 0, false};
        state = 1;
        sets[i].make(&data);
        if (argc > 1 && strcmp(argv[1], sets[i].name) == 0)
            return fwrite(data.data, 1, data.len, stdout) == data.len ? 0 : 1;
        if (argc < 2 || atof(argv[1]) > 0)
            measure_set(sets[i].name, (tornado_bytes){data.data, data.len}, argc > 1 ? atof(argv[1]) : 0.1);
        tornado_buffer_free(&data);
    }
    return 0;
}
