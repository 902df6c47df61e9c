/* What the fuzzers share: the implementation in the same file, a clock of their own, counted memory, checks that
   end the process. Each fuzzer is one file with an LLVMFuzzerTestOneInput; see "Fuzzers" in the Makefile. */
#ifndef FUZZ_H
#define FUZZ_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The clock stands still unless a fuzzer moves it: an input does the same whenever it runs. */
static int64_t fuzz_ns;

__attribute__((unused)) static int fuzz_clock(struct timespec *now)
{
    now->tv_sec = (time_t)(1700000000 + fuzz_ns / 1000000000);
    now->tv_nsec = (long)(fuzz_ns % 1000000000);
    return 0;
}
#define clock_gettime(clock, now) ((void)(clock), fuzz_clock(now))

/* How many blocks the header holds. */
static long fuzz_live;

__attribute__((unused)) static void *fuzz_realloc(void *pointer, size_t size)
{
    void *memory = realloc(pointer, size);
    fuzz_live += !pointer && memory;
    return memory;
}

__attribute__((unused)) static void fuzz_free(void *pointer)
{
    fuzz_live -= pointer != NULL;
    free(pointer);
}

#define TORNADO_MALLOC(size)           fuzz_realloc(NULL, size)
#define TORNADO_REALLOC(pointer, size) fuzz_realloc(pointer, size)
#define TORNADO_FREE(pointer)          fuzz_free(pointer)
#define TORNADO_ASSERT(condition)      MUST(condition)

/* What must be true whatever the input is. */
#define MUST(condition) ((condition) ? (void)0 : fuzz_failed(__FILE__, __LINE__, #condition))

__attribute__((noreturn, unused)) static void fuzz_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: not true: %s\n", file, line, condition);
    abort();
}

#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* AddressSanitizer: less memory in quarantine, which each input fills and empties again, is much faster. */
const char *__asan_default_options(void);
__attribute__((unused, visibility("default"))) const char *__asan_default_options(void)
{
    return "quarantine_size_mb=16";
}

/* A copy that ends where its memory ends, so that AddressSanitizer sees a read beyond it. The caller frees it. */
__attribute__((unused)) static char *fuzz_copy(const void *data, size_t size)
{
    char *copy = malloc(size ? size : 1);
    MUST(copy != NULL);
    if (size)
        memcpy(copy, data, size);
    return copy;
}

/* The same up to the first NUL, with a NUL behind it. */
__attribute__((unused)) static char *fuzz_string(const void *data, size_t size)
{
    size_t len = strnlen(size ? data : "", size);
    char *copy = malloc(len + 1);
    MUST(copy != NULL);
    if (len)
        memcpy(copy, data, len);
    copy[len] = '\0';
    return copy;
}

/* The length of the character at the start of a text, by the table of RFC 3629 section 4. Where there is no whole
   one: how many bytes could have begun one, at least 1. */
__attribute__((unused)) static size_t fuzz_utf8(const char *text, size_t len, bool *whole)
{
    static const struct {
        unsigned char first, last, low, high, size;
    } rows[] = {{0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
                {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    const unsigned char *b = (const unsigned char *)text;
    *whole = false;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t at = 1;
        if (b[0] < rows[i].first || b[0] > rows[i].last)
            continue;
        while (at < rows[i].size && at < len && b[at] >= (at == 1 ? rows[i].low : 0x80) &&
               b[at] <= (at == 1 ? rows[i].high : 0xbf))
            at++;
        *whole = at == rows[i].size;
        return at;
    }
    return 1;
}

/* Lookups by each name that has no NUL in it find the last, and all. */
__attribute__((unused)) static void fuzz_lookups(const tornado_arguments *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const char *name = list->items[i].name.data;
        const tornado_argument *at = NULL, *last = NULL;
        if (strlen(name) != list->items[i].name.len)
            continue;
        for (size_t k = 0; k < list->count; k++)
            if (tornado_bytes_equal(list->items[k].name, list->items[i].name)) {
                last = &list->items[k];
                at = tornado_arguments_find(list, name, at);
                MUST(at == last);
            }
        MUST(tornado_arguments_find(list, name, at) == NULL && tornado_arguments_get(list, name) == last);
    }
}

/* A line of a header as RFC 9112 section 5 wants it, at the start of a text. Returns its length with its CRLF, or 0
   when it is malformed; where the value is. */
__attribute__((unused)) static size_t fuzz_header(const char *line, size_t len, size_t *name, const char **value,
                                                  size_t *value_len)
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t at = 0, end;
    while (at < len && memchr(token, line[at], sizeof token - 1))
        at++;
    *name = at;
    if (at == 0 || at == len || line[at++] != ':')
        return 0;
    while (at < len && (line[at] == ' ' || line[at] == '\t'))
        at++;
    for (end = at; end < len && line[end] != '\r'; end++)
        if (((unsigned char)line[end] < ' ' && line[end] != '\t') || line[end] == 0x7f)
            return 0;
    if (len - end < 2 || line[end + 1] != '\n')
        return 0;
    *value = line + at;
    *value_len = end - at;
    while (*value_len && (line[at + *value_len - 1] == ' ' || line[at + *value_len - 1] == '\t'))
        --*value_len;
    return end + 2;
}

#endif
