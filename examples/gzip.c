/* A filter like gzip: compresses its input, -d decompresses it, -1 to -9 say how hard to try. Takes the same memory
   whatever the length.
   cc -O2 -o gzip examples/gzip.c && ./gzip < file > file.gz */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

enum { PART = 65536 };

static bool put(tornado_buffer *out)
{
    bool ok = out->len == 0 || fwrite(out->data, 1, out->len, stdout) == out->len;
    if (!ok)
        fprintf(stderr, "gzip: %s\n", strerror(errno));
    out->len = 0;
    return ok;
}

static bool failed(void)
{
    fprintf(stderr, "gzip: %s\n", tornado_last_error()->message);
    return false;
}

static bool compress(int level, char *input, tornado_buffer *out)
{
    tornado_compressor_options options = {.level = level};
    tornado_compressor *compressor = tornado_compressor_new(&options);
    bool ok = compressor || failed();
    size_t len;
    while (ok && (len = fread(input, 1, PART, stdin)) > 0)
        ok = (tornado_compressor_compress(compressor, out, (tornado_bytes){input, len}) || failed()) && put(out);
    ok = ok && (tornado_compressor_flush(compressor, out, TORNADO_ZIP_FINISH) || failed()) && put(out);
    tornado_compressor_free(compressor);
    return ok;
}

static bool decompress(char *input, tornado_buffer *out)
{
    tornado_decompressor *decompressor = tornado_gzip_decompressor_new();
    bool ok = decompressor || failed();
    size_t len;
    while (ok && (len = fread(input, 1, PART, stdin)) > 0) {
        tornado_bytes part = {input, len};
        while (ok && part.len > 0) { /* 64 KiB of output at a time: input like zeros becomes a thousand times as long */
            ok = tornado_decompressor_decompress(decompressor, out, part, PART) || failed();
            ok = put(out) && ok;
            part = tornado_decompressor_unconsumed_tail(decompressor);
        }
    }
    ok = ok && (tornado_decompressor_flush(decompressor) || failed());
    tornado_decompressor_free(decompressor);
    return ok;
}

int main(int argc, char **argv)
{
    const char *option = argc > 1 ? argv[1] : "-6";
    bool back = strcmp(option, "-d") == 0, level = option[0] == '-' && option[1] >= '1' && option[1] <= '9';
    if (argc > 2 || (!back && (!level || option[2]))) {
        fprintf(stderr, "usage: gzip [-d | -1 ... -9] < input > output\n");
        return 2;
    }
    char *input = malloc(PART);
    tornado_buffer out = {NULL, 0, 0, false};
    bool ok = input && (back ? decompress(input, &out) : compress(option[1] - '0', input, &out));
    ok = ok && !ferror(stdin) && fflush(stdout) == 0;
    tornado_buffer_free(&out);
    free(input);
    return ok ? 0 : 1;
}
