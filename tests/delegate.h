/* What tests of delegates share: answering by hand. */
#ifndef TEST_DELEGATE_H
#define TEST_DELEGATE_H

#include "harness.h"

#include <stdio.h>
#include <string.h>

/* Whether what a future is for has not failed, so far; uses the reference up. */
static inline bool sent(tornado_future *future)
{
    bool ok = !tornado_future_error(future);
    tornado_future_release(future);
    return ok;
}

/* The code of what a future has failed with, or 0; uses the reference up. */
static inline int failure(tornado_future *future)
{
    const tornado_error *error = tornado_future_error(future);
    int code = error ? error->code : 0;
    tornado_future_release(future);
    return code;
}

static inline tornado_http_header header_of(const char *name, const char *value)
{
    return (tornado_http_header){name, value, (uint32_t)strlen(name), (uint32_t)strlen(value)};
}

/* Starts an answer with a length, or TORNADO_NONE, and perhaps one more header. */
static inline tornado_future *write_head(tornado_http1_connection *c, int status, int64_t length,
                                         const tornado_http_header *more)
{
    char text[24];
    tornado_http_header items[2];
    tornado_http_headers headers = {.items = items};
    tornado_http_start_line start = {.code = status};
    snprintf(text, sizeof text, "%lld", (long long)length);
    if (length >= 0)
        items[headers.count++] = header_of("Content-Length", text);
    if (more)
        items[headers.count++] = *more;
    return tornado_http1_connection_write_headers(c, &start, &headers, NULL);
}

#endif
