/* Compressed data: a byte for the format, one for the lengths of parts, one for how much is asked for, and the stream.
   In parts it must give the same as at once, and it has to end. */
#include "fuzz.h"

enum { LIMIT = 1 << 20 };

/* As tornado_decompress does it, in parts. */
static bool by_parts(tornado_buffer *out, tornado_bytes data, const tornado_decompressor_options *options, size_t step,
                     size_t room)
{
    tornado_decompressor *decompressor = tornado_decompressor_new(options);
    bool ok = true, over = false;
    MUST(decompressor);
    for (size_t at = 0; ok && at < data.len; at += step) {
        char *copy = fuzz_copy(data.data + at, data.len - at < step ? data.len - at : step);
        tornado_bytes part = {copy, data.len - at < step ? data.len - at : step};
        over = tornado_decompressor_eof(decompressor) && options->format != TORNADO_ZIP_GZIP;
        while (ok && part.len > 0) {
            size_t before = out->len, left = part.len;
            ok = tornado_decompressor_decompress(decompressor, out, part, room);
            part = tornado_decompressor_unconsumed_tail(decompressor);
            MUST(!room || out->len - before <= room);
            MUST(!ok || part.len < left || out->len > before);
            over = over || tornado_decompressor_unused_data(decompressor).len > 0;
        }
        free(copy);
    }
    ok = ok && tornado_decompressor_flush(decompressor);
    MUST(!ok || tornado_decompressor_eof(decompressor));
    tornado_decompressor_free(decompressor);
    return ok && !over;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    tornado_decompressor_options options = {
        .format = (tornado_zip_format)(data[0] % 4), .window_bits = data[0] & 4 ? 8 : 0, .limit = LIMIT};
    size_t step = 1 + data[1], room = data[2];
    char *bytes = fuzz_copy(data + 3, size - 3);
    tornado_bytes stream = {bytes, size - 3};
    tornado_buffer whole = {NULL, 0, 0, false}, parts = {NULL, 0, 0, false};
    long live = fuzz_live;
    bool ok = tornado_decompress(&whole, stream, &options);
    char message[sizeof tornado_last_error()->message];
    memcpy(message, tornado_last_error()->message, sizeof message);
    bool again = by_parts(&parts, stream, &options, step, room);
    MUST(ok == again && whole.len == parts.len && whole.len <= LIMIT);
    MUST(whole.len == 0 || memcmp(whole.data, parts.data, whole.len) == 0);
    MUST(ok || strncmp(message, "something follows", 9) == 0 || tornado_last_error()->code != TORNADO_ERR_PARSE ||
         strcmp(message, tornado_last_error()->message) == 0);
    tornado_buffer_free(&whole);
    tornado_buffer_free(&parts);
    MUST(fuzz_live == live);
    free(bytes);
    return 0;
}
