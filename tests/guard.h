/* Input that ends where memory ends: reading one byte too far is a crash, in every build. */
#ifndef TEST_GUARD_H
#define TEST_GUARD_H

#include "harness.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A copy of up to a page of bytes with a page behind it that must not be touched. The next call overwrites it. */
static inline char *guarded(const void *data, size_t len)
{
    static char *end;
    if (!end) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(pages != MAP_FAILED);
        end = pages + page;
        CHECK(mprotect(end, page, PROT_NONE) == 0);
    }
    CHECK(len <= (size_t)sysconf(_SC_PAGESIZE));
    return len ? memcpy(end - len, data, len) : end;
}

/* The same for the first `len` characters of a string, with a NUL as the last byte that may be read. */
static inline char *guarded_string(const char *text, size_t len)
{
    char copy[4096];
    CHECK(len < sizeof copy);
    memcpy(copy, text, len);
    copy[len] = '\0';
    return guarded(copy, len + 1);
}

#endif
