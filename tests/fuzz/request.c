/* Heads of requests, RFC 9112 sections 2 to 6: against a parser that is slow and plain, byte by byte, with the same
   status for what is refused. What follows from a head, on a whole connection, is for the fuzzer http1. */
#include "fuzz.h"

#include <ctype.h>

typedef struct head {
    int status; /* 0: accepted */
    char method[4096], uri[4096], version[9], path[4096], query[4096], host[4096];
    size_t headers;
    bool has_host, chunked, has_length, expects, keep_alive;
    uint64_t length;
} head;

static bool is_one_of(char c, const char *characters)
{
    return c && strchr(characters, c);
}

#define ALPHANUMERIC "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

static bool is_token_char(char c)
{
    return is_one_of(c, "!#$%&'*+-.^_`|~" ALPHANUMERIC);
}

/* A host, an address of IPv6 in brackets or a name, and perhaps a port; or nothing: RFC 3986 section 3.2.2. */
static bool is_authority(const char *text)
{
    const char *end = text;
    if (*text == '[') {
        char ip[46] = "";
        unsigned char bytes[16];
        size_t len = strcspn(text + 1, "]");
        if (len >= sizeof ip || !text[1 + len])
            return false;
        memcpy(ip, text + 1, len);
        end = text + len + 2;
        if (inet_pton(AF_INET6, ip, bytes) != 1)
            return false;
    } else {
        for (; is_one_of(*end, "!$&'()*+,;=-._~%" ALPHANUMERIC); end++)
            if (*end == '%' && (!isxdigit((unsigned char)end[1]) || !isxdigit((unsigned char)end[2])))
                return false;
        if (end == text)
            return !*text;
    }
    return !*end || (*end == ':' && end[1 + strspn(end + 1, "0123456789")] == '\0');
}

/* The four forms of a target, RFC 9112 section 3.2. */
static int read_target(head *h)
{
    char *path = h->uri, *query = strchr(h->uri, '?'), *colon = strrchr(h->uri, ':');
    strcpy(h->query, query ? query + 1 : "");
    if (strcmp(h->method, "CONNECT") == 0) {
        if (!is_authority(h->uri) || !colon || !colon[1] || colon[strlen(colon) - 1] == ']')
            return 400;
    } else if (strcmp(h->uri, "*") == 0) {
        if (strcmp(h->method, "OPTIONS") != 0)
            return 400;
    } else if (h->uri[0] != '/') {
        size_t scheme = strncasecmp(h->uri, "http://", 7) == 0 ? 7 : strncasecmp(h->uri, "https://", 8) == 0 ? 8 : 0;
        if (!scheme || !h->uri[scheme])
            return 400;
        path = h->uri + scheme + strcspn(h->uri + scheme, "/?");
        memcpy(h->host, h->uri + scheme, (size_t)(path - h->uri) - scheme);
        if (!h->host[0] || !is_authority(h->host))
            return 400;
    }
    memcpy(h->path, path, strcspn(path, "?"));
    if (!h->path[0])
        strcpy(h->path, "/");
    return 0;
}

/* "METHOD target HTTP/1.x\r\n". Returns what follows, NULL when it is refused. */
static const char *read_request_line(head *h, const char *at, const char *end)
{
    size_t len = 0;
    h->status = 400;
    while (at < end && is_token_char(*at))
        h->method[len++] = *at++;
    if (!len || at == end || *at++ != ' ')
        return NULL;
    for (len = 0; at < end && (unsigned char)*at > ' ' && *at != 0x7f && *at != '#'; at++)
        h->uri[len++] = *at;
    if (!len || at == end || *at++ != ' ' || end - at < 10)
        return NULL;
    memcpy(h->version, at, 8);
    if (strncmp(h->version, "HTTP/", 5) != 0 || !is_one_of(h->version[5], "0123456789") || h->version[6] != '.' ||
        !is_one_of(h->version[7], "0123456789") || memcmp(at + 8, "\r\n", 2) != 0)
        return NULL;
    h->status = h->version[5] == '1' ? read_target(h) : 505;
    return h->status ? NULL : at + 10;
}

static int read_length(head *h, const char *value)
{
    if (h->has_length || h->chunked || !*value)
        return 400;
    for (h->has_length = true; *value; value++) {
        if (!is_one_of(*value, "0123456789"))
            return 400;
        if (h->length > (UINT64_MAX - 9) / 10)
            return 413;
        h->length = h->length * 10 + (uint64_t)(*value - '0');
    }
    return 0;
}

static void read_connection(const char *value, bool *close, bool *keep)
{
    while (*value) {
        size_t len = strcspn(value, ",");
        const char *from = value, *to = value + len;
        while (from < to && (*from == ' ' || *from == '\t'))
            from++;
        while (to > from && (to[-1] == ' ' || to[-1] == '\t'))
            to--;
        *close |= to - from == 5 && strncasecmp(from, "close", 5) == 0;
        *keep |= to - from == 10 && strncasecmp(from, "keep-alive", 10) == 0;
        value += len + (value[len] == ',');
    }
}

static void read_head(head *h, const char *text, size_t len)
{
    const char *end = text + len - 2, *at = read_request_line(h, text, end), *from;
    bool http10 = h->version[7] == '0', close = false, keep = false;
    size_t name, value_len;
    while (at && at < end && !h->status) {
        char value[4096] = "";
        size_t line = fuzz_header(at, (size_t)(end - at), &name, &from, &value_len);
        if (h->headers++ >= TORNADO_MAX_HEADERS) {
            h->status = 431;
        } else if (!line) {
            h->status = 400;
        } else {
            memcpy(value, from, value_len);
            if (name == 4 && strncasecmp(at, "Host", 4) == 0) {
                if (h->has_host || !is_authority(value))
                    h->status = 400;
                if (!h->has_host && !h->host[0])
                    strcpy(h->host, value);
                h->has_host = true;
            } else if (name == 6 && strncasecmp(at, "Expect", 6) == 0) {
                h->status = strcasecmp(value, "100-continue") == 0 ? 0 : 417;
                h->expects = !http10;
            } else if (name == 10 && strncasecmp(at, "Connection", 10) == 0) {
                read_connection(value, &close, &keep);
            } else if (name == 14 && strncasecmp(at, "Content-Length", 14) == 0) {
                h->status = read_length(h, value);
            } else if (name == 17 && strncasecmp(at, "Transfer-Encoding", 17) == 0) {
                if (h->has_length || h->chunked || http10 || strcasecmp(value, "chunked") != 0)
                    h->status = 400;
                h->chunked = true;
            }
        }
        at += line;
    }
    if (!h->status && !h->has_host && !http10)
        h->status = 400;
    h->keep_alive = !close && (!http10 || keep);
}

/* Where the blank line behind a head ends; 0: there is none yet; -1: a line ends without CR. */
static long find_end(const char *text, size_t len)
{
    for (size_t i = 2; i < len; i++)
        if (memcmp(text + i - 2, "\n\r\n", 3) == 0)
            return (long)i + 1;
    for (size_t i = 0; i < len; i++)
        if (text[i] == '\n' && (i == 0 || text[i - 1] != '\r'))
            return -1;
    return 0;
}

/* A head is found at the same place however it comes in. */
static void check_end(const char *text, size_t len, size_t piece)
{
    unsigned scanned = 0;
    for (size_t end = 0; end < len;) {
        end = len - end > piece ? end + piece : len;
        char *copy = fuzz_copy(text, end);
        long want = find_end(text, end);
        MUST(tornado__head_length(copy, end, &scanned) == want);
        free(copy);
        if (want)
            return;
    }
}

static void check_parsed(const tornado__message *message, const head *want)
{
    const tornado_http_request *request = &message->request;
    MUST(strcmp(request->method, want->method) == 0 && strcmp(request->uri, want->uri) == 0);
    MUST(strcmp(request->version, want->version) == 0 && strcmp(request->path, want->path) == 0);
    MUST(strcmp(request->query, want->query) == 0 && strlen(request->path) == message->path_len);
    MUST(strcmp(request->host, want->has_host || want->host[0] ? want->host : "127.0.0.1") == 0);
    MUST(request->headers.count == want->headers && message->keep_alive == want->keep_alive);
    MUST(message->is_chunked == want->chunked && message->expects == want->expects);
    MUST(message->has_length == want->has_length && message->left == want->length);
    MUST(message->head == (strcmp(want->method, "HEAD") == 0));
}

static void check_headers(const tornado__message *message, const char *text)
{
    const char *at = strstr(text, "\r\n") + 2, *value;
    size_t name, value_len;
    for (size_t i = 0; i < message->request.headers.count; i++) {
        const tornado_http_header *header = &message->request.headers.items[i];
        size_t line = fuzz_header(at, strlen(at), &name, &value, &value_len);
        MUST(header->name_len == name && memcmp(header->name, at, name) == 0 && header->name[name] == '\0');
        MUST(header->value_len == value_len && memcmp(header->value, value, value_len) == 0);
        MUST(header->value[value_len] == '\0');
        at += line;
        MUST(tornado_http_headers_find(&message->request.headers, header->name, NULL) <= header);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tornado__http1_host host;
    static tornado__http1 connection;
    static head want;
    size_t piece = size ? 1 + data[0] % 64 : 1;
    long len;
    if (size > sizeof want.uri - 1)
        return 0;
    if (!host.loop) {
        host.loop = tornado_ioloop_current();
        host.references = 1;
        connection.host = &host;
        strcpy(connection.ip.text, "127.0.0.1");
    }
    char *text = fuzz_copy(data, size);
    check_end(text, size, piece);
    check_end(text, size, size);
    if ((len = find_end(text, size)) > 0) {
        char *copy = fuzz_copy(text, (size_t)len);
        int status = 0;
        tornado__message *message = tornado__message_new(&connection, copy, (size_t)len, &status);
        memset(&want, 0, sizeof want);
        read_head(&want, text, (size_t)len);
        MUST(message && status == want.status);
        if (!status) {
            check_parsed(message, &want);
            char *whole = fuzz_string(data, (size_t)len);
            check_headers(message, whole);
            free(whole);
        }
        tornado__message_release(message);
        MUST(host.references == 1);
        free(copy);
    }
    free(text);
    return 0;
}
