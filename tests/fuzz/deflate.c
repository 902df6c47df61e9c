/* Data that are compressed and decompressed again: a byte for level and format, one for window and memory, one for the
   lengths of parts and what is flushed between them, and the data. What was flushed must be readable at once. */
#include "fuzz.h"

static void decompress(tornado_decompressor *decompressor, tornado_buffer *back, const tornado_buffer *packed)
{
    char *copy = fuzz_copy(packed->data, packed->len);
    MUST(tornado_decompressor_decompress(decompressor, back, (tornado_bytes){copy, packed->len}, 0));
    MUST(tornado_decompressor_unconsumed_tail(decompressor).len == 0);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4)
        return 0;
    int level = data[0] % 11 - 1, flush = data[3] % 4;
    tornado_compressor_options options = {.format = (tornado_zip_format)(data[0] / 11 % 4),
                                          .level = level,
                                          .window_bits = 9 + data[1] % 7,
                                          .mem_level = 1 + data[1] / 7 % 9};
    tornado_decompressor_options reading = {.format = options.format, .window_bits = options.window_bits};
    size_t step = 1 + data[2] * (data[3] & 4 ? 16u : 1u), repeat = 1 + (data[3] >> 3) * 32u;
    data += 4;
    size -= 4;
    long live = fuzz_live;
    tornado_compressor *compressor = tornado_compressor_new(&options);
    tornado_decompressor *decompressor = tornado_decompressor_new(&reading);
    tornado_buffer plain = {NULL, 0, 0, false}, packed = {NULL, 0, 0, false}, back = {NULL, 0, 0, false};
    MUST(compressor && decompressor);
    while (repeat-- > 0 && plain.len < 200000) /* beyond the window, and buffers that are moved */
        MUST(tornado_buffer_append(&plain, data, size));
    for (size_t at = 0; at < plain.len; at += step) {
        size_t len = plain.len - at < step ? plain.len - at : step;
        char *copy = fuzz_copy(plain.data + at, len);
        packed.len = 0;
        MUST(tornado_compressor_compress(compressor, &packed, (tornado_bytes){copy, len}));
        free(copy);
        if (flush && (at / step) % 5 == 0)
            MUST(tornado_compressor_flush(compressor, &packed, flush == 1 ? TORNADO_ZIP_SYNC : TORNADO_ZIP_FULL));
        decompress(decompressor, &back, &packed);
        MUST(!flush || (at / step) % 5 || back.len == at + len);
    }
    packed.len = 0;
    MUST(tornado_compressor_flush(compressor, &packed, TORNADO_ZIP_FINISH));
    decompress(decompressor, &back, &packed);
    MUST(tornado_decompressor_eof(decompressor) && tornado_decompressor_flush(decompressor));
    MUST(back.len == plain.len && (!plain.len || memcmp(back.data, plain.data, plain.len) == 0));
    tornado_compressor_free(compressor);
    tornado_decompressor_free(decompressor);
    tornado_buffer_free(&plain);
    tornado_buffer_free(&packed);
    tornado_buffer_free(&back);
    MUST(fuzz_live == live);
    return 0;
}
