/* HTTP/1.x as it is on the wire: what is answered, what is refused, and what becomes of the connection. */
#include "http_client.h"

/* A server whose answer tells what it understood of the request. */
typedef struct service {
    tornado_httpserver *server;
    int port;
    int finished, closed, released;
    tornado_http_request *waiting[32]; /* for "/wait": answered by hand */
    int waiting_count;
} service;

static service *the_service;

static void describe(tornado_http_request *request, tornado_buffer *out)
{
    tornado_buffer_printf(out, "%s %s host=%s", request->method, request->uri, request->host);
    if (*request->query)
        tornado_buffer_printf(out, " path=%s query=%s", request->path, request->query);
    if (request->body.len) {
        tornado_buffer_puts(out, " body=");
        tornado_buffer_append(out, request->body.data, request->body.len);
    }
    for (size_t i = 0; i < request->trailers.count; i++)
        tornado_buffer_printf(out, " trailer=%s:%s", request->trailers.items[i].name, request->trailers.items[i].value);
    tornado_buffer_puts(out, "\n");
}

static bool answer_with(tornado_http_request *request, int status, tornado_bytes body)
{
    tornado_http_response_start start = {.status = status, .content_length = (int64_t)body.len};
    return tornado_http_request_write_headers(request, &start) && tornado_http_request_write(request, body) &&
           tornado_http_request_finish(request);
}

/* In pieces of an unknown number. */
static bool answer_in_pieces(tornado_http_request *request, tornado_bytes body)
{
    tornado_http_response_start start = {.status = 200, .content_length = TORNADO_NONE};
    if (!tornado_http_request_write_headers(request, &start))
        return false;
    for (size_t i = 0; i < body.len; i++)
        if (!tornado_http_request_write(request, (tornado_bytes){body.data + i, 1}))
            return false;
    return tornado_http_request_finish(request);
}

static void service_headers(tornado_http_request *request, void *arg)
{
    request->context = arg;
}

static void service_finish(tornado_http_request *request)
{
    service *s = request->context;
    tornado_buffer body = {0};
    s->finished++;
    CHECK(request->body.data != NULL && request->body.data[request->body.len] == '\0');
    describe(request, &body);
    if (strcmp(request->path, "/wait") == 0) {
        tornado_http_request_retain(request);
        s->waiting[s->waiting_count++] = request;
    } else if (strcmp(request->path, "/pieces") == 0) {
        answer_in_pieces(request, (tornado_bytes){body.data, body.len});
    } else if (strcmp(request->path, "/204") == 0 || strcmp(request->path, "/304") == 0) {
        answer_with(request, atoi(request->path + 1), (tornado_bytes){NULL, 0});
    } else if (strcmp(request->path, "/none") == 0) {
        /* nobody answers, and nobody holds it */
    } else {
        answer_with(request, 200, (tornado_bytes){body.data, body.len});
    }
    tornado_buffer_free(&body);
}

static void service_closed(tornado_http_request *request)
{
    ((service *)request->context)->closed++;
}

static void service_release(tornado_http_request *request)
{
    ((service *)request->context)->released++;
}

static const tornado_http_delegate service_delegate = {.headers_received = service_headers, .finish = service_finish,
                                                       .on_connection_close = service_closed,
                                                       .release = service_release};

static void service_start_with(service *s, const tornado_http1_params *params)
{
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1"}};
    if (params)
        options.http = *params;
    memset(s, 0, sizeof *s);
    the_service = s;
    s->server = tornado_httpserver_new(&service_delegate, s, &options);
    CHECK(s->server && tornado_httpserver_listen(s->server, 0, &options.bind));
    s->port = tornado_httpserver_port(s->server);
}

static void service_start(service *s)
{
    service_start_with(s, NULL);
}

static void service_end(service *s)
{
    tornado_httpserver_free(s->server);
    for (int i = 0; i < s->waiting_count; i++)
        tornado_http_request_release(s->waiting[i]);
    s->waiting_count = 0;
}

/*----------------------------------------------------------------------------
 * Conformance: a request, the status of its answer, whether the connection stays open, what was understood.
 *----------------------------------------------------------------------------*/

#define H "Host: a\r\n"
#define CHUNKED "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"

typedef struct conformance {
    const char *why;
    const char *request;
    size_t len; /* 0: the string's */
    int status;
    bool open;
    const char *body; /* NULL: does not matter */
} conformance;

#define REQUEST(text) text, sizeof(text) - 1

static const conformance valid[] = {
    {"plain", REQUEST("GET / HTTP/1.1\r\n" H "\r\n"), 200, true, "GET / host=a\n"},
    {"query", REQUEST("GET /p?a=b?c HTTP/1.1\r\n" H "\r\n"), 200, true, "GET /p?a=b?c host=a path=/p query=a=b?c\n"},
    {"empty query", REQUEST("GET /p? HTTP/1.1\r\n" H "\r\n"), 200, true, "GET /p? host=a\n"},
    {"two slashes", REQUEST("GET //x HTTP/1.1\r\n" H "\r\n"), 200, true, "GET //x host=a\n"},
    {"empty host", REQUEST("GET / HTTP/1.1\r\nHost:\r\n\r\n"), 200, true, "GET / host=\n"},
    {"host with port", REQUEST("GET / HTTP/1.1\r\nHost: a.b:80\r\n\r\n"), 200, true, "GET / host=a.b:80\n"},
    {"IPv6 host", REQUEST("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), 200, true, "GET / host=[::1]:80\n"},
    {"name in any case", REQUEST("GET / HTTP/1.1\r\nhOST: a\r\n\r\n"), 200, true, "GET / host=a\n"},
    {"white space around a value", REQUEST("GET / HTTP/1.1\r\nHost: \t a \t\r\nX:\r\n\r\n"), 200, true, "GET / host=a\n"},
    {"no space before a value", REQUEST("GET / HTTP/1.1\r\nHost:a\r\n\r\n"), 200, true, "GET / host=a\n"},
    {"bytes beyond ASCII in a value", REQUEST("GET / HTTP/1.1\r\n" H "X: \xc3\xa4\xff\r\n\r\n"), 200, true, NULL},
    {"one empty line before", REQUEST("\r\nGET / HTTP/1.1\r\n" H "\r\n"), 200, true, "GET / host=a\n"},
    {"empty lines before", REQUEST("\r\n\r\n\r\nGET / HTTP/1.1\r\n" H "\r\n"), 200, true, "GET / host=a\n"},
    {"absolute form", REQUEST("GET http://x:8/p?q HTTP/1.1\r\n" H "\r\n"), 200, true,
     "GET http://x:8/p?q host=x:8 path=/p query=q\n"},
    {"absolute form without a path", REQUEST("GET http://x HTTP/1.1\r\n" H "\r\n"), 200, true, "GET http://x host=x\n"},
    {"absolute form, query only", REQUEST("GET http://x?q HTTP/1.1\r\n" H "\r\n"), 200, true,
     "GET http://x?q host=x path=/ query=q\n"},
    {"asterisk form", REQUEST("OPTIONS * HTTP/1.1\r\n" H "\r\n"), 200, true, "OPTIONS * host=a\n"},
    {"authority form", REQUEST("CONNECT x:1 HTTP/1.1\r\n" H "\r\n"), 200, true, "CONNECT x:1 host=a\n"},
    {"unknown method", REQUEST("FROB / HTTP/1.1\r\n" H "\r\n"), 200, true, "FROB / host=a\n"},
    {"a token as method", REQUEST("a!#$%&'*+-.^_`|~9 / HTTP/1.1\r\n" H "\r\n"), 200, true, "a!#$%&'*+-.^_`|~9 / host=a\n"},
    {"HTTP/1.2 is treated as 1.1", REQUEST("GET / HTTP/1.2\r\n" H "\r\n"), 200, true, "GET / host=a\n"},
    {"close", REQUEST("GET / HTTP/1.1\r\n" H "Connection: close\r\n\r\n"), 200, false, "GET / host=a\n"},
    {"close among others", REQUEST("GET / HTTP/1.1\r\n" H "Connection: x, CLOSE ,y\r\n\r\n"), 200, false, NULL},
    {"keep-alive", REQUEST("GET / HTTP/1.1\r\n" H "Connection: keep-alive\r\n\r\n"), 200, true, NULL},
    {"HTTP/1.0 closes", REQUEST("GET / HTTP/1.0\r\n\r\n"), 200, false, "GET / host=127.0.0.1\n"},
    {"HTTP/1.0 with keep-alive", REQUEST("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), 200, true, NULL},
    {"HTTP/1.0 with close and keep-alive", REQUEST("GET / HTTP/1.0\r\nConnection: close, keep-alive\r\n\r\n"), 200,
     false, NULL},
    {"body", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc"), 200, true, "POST / host=a body=abc\n"},
    {"body with GET", REQUEST("GET / HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc"), 200, true, "GET / host=a body=abc\n"},
    {"body of none", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 0\r\n\r\n"), 200, true, "POST / host=a\n"},
    {"no length, no body", REQUEST("POST / HTTP/1.1\r\n" H "\r\n"), 200, true, "POST / host=a\n"},
    {"leading zeros", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 00003\r\n\r\nabc"), 200, true,
     "POST / host=a body=abc\n"},
    {"HTTP/1.0 body", REQUEST("POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"), 200, false, NULL},
    {"body that looks like a request", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 28\r\n\r\nGET /x HTTP/1.1\r\nHost: b\r\n\r\n"),
     200, true, "POST / host=a body=GET /x HTTP/1.1\r\nHost: b\r\n\r\n\n"},
    {"chunks", REQUEST(CHUNKED "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"), 200, true, "POST / host=a body=abc0123456789\n"},
    {"no chunks", REQUEST(CHUNKED "0\r\n\r\n"), 200, true, "POST / host=a\n"},
    {"chunk size with zeros", REQUEST(CHUNKED "0003\r\nabc\r\n000\r\n\r\n"), 200, true, "POST / host=a body=abc\n"},
    {"chunk extension", REQUEST(CHUNKED "3;a=b;c=\"d e\"\r\nabc\r\n0;x\r\n\r\n"), 200, true, "POST / host=a body=abc\n"},
    {"space before a chunk extension", REQUEST(CHUNKED "3 ;a\r\nabc\r\n0\r\n\r\n"), 200, true, NULL},
    {"trailers", REQUEST(CHUNKED "3\r\nabc\r\n0\r\nX: 1\r\nContent-Length: 5\r\n\r\n"), 200, true,
     "POST / host=a body=abc trailer=X:1 trailer=Content-Length:5\n"},
    {"chunked in any case", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"), 200,
     true, "POST / host=a body=x\n"},
    {"zeros in a body", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\n\r\n\r"), 200, true, NULL},
    {"expectation with the body behind", REQUEST("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"), 200,
     false, NULL},
    {"HEAD", REQUEST("HEAD / HTTP/1.1\r\n" H "\r\n"), 200, true, ""},
    {"204", REQUEST("GET /204 HTTP/1.1\r\n" H "\r\n"), 204, true, ""},
    {"304", REQUEST("GET /304 HTTP/1.1\r\n" H "\r\n"), 304, true, ""},
    {"chunked answer", REQUEST("GET /pieces HTTP/1.1\r\n" H "\r\n"), 200, true, "GET /pieces host=a\n"},
    {"answer that ends with the connection", REQUEST("GET /pieces HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), 200, false,
     "GET /pieces host=127.0.0.1\n"},
};

static const conformance invalid[] = {
    {"two lengths, different", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 400, 0, 0},
    {"two lengths, equal", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"), 400, 0, 0},
    {"list of lengths", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3, 3\r\n\r\nabc"), 400, 0, 0},
    {"length with plus", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: +3\r\n\r\nabc"), 400, 0, 0},
    {"length with minus", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: -3\r\n\r\nabc"), 400, 0, 0},
    {"length in hex", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 0x3\r\n\r\nabc"), 400, 0, 0},
    {"length that is empty", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\nabc"), 400, 0, 0},
    {"length with inner space", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3 3\r\n\r\nabc"), 400, 0, 0},
    {"length with underscore", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 1_0\r\n\r\nabc"), 400, 0, 0},
    {"length with a fraction", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3.0\r\n\r\nabc"), 400, 0, 0},
    {"length that is no number", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: abc\r\n\r\nabc"), 400, 0, 0},
    {"length in other digits", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: \xd9\xa3\r\n\r\nabc"), 400, 0, 0},
    {"length too long for 64 bits", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 18446744073709551619\r\n\r\nabc"), 413, 0, 0},
    {"length of many digits", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999999999999999\r\n\r\n"), 413, 0, 0},
    {"length above the limit", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 104857601\r\n\r\n"), 413, 0, 0},
    {"CL.TE", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE.CL", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE.TE", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE.TE, one unknown", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE: xchunked", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE: chunked, chunked", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE: gzip, chunked", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE: chunked, identity", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE: identity", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: identity\r\n\r\n"), 400, 0, 0},
    {"TE: chunked;q=1", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE: \"chunked\"", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE that is empty", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE with a vertical tab", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE with a no-break space", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding: \xa0"
                                         "chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE with HTTP/1.0", REQUEST("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"TE in a folded line", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"space before the colon", REQUEST("POST / HTTP/1.1\r\n" H "Content-Length : 3\r\n\r\nabc"), 400, 0, 0},
    {"tab before the colon", REQUEST("POST / HTTP/1.1\r\n" H "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"), 400, 0, 0},
    {"folded line", REQUEST("GET / HTTP/1.1\r\n" H "X: a\r\n b\r\n\r\n"), 400, 0, 0},
    {"folded with a tab", REQUEST("GET / HTTP/1.1\r\n" H "X: a\r\n\tb\r\n\r\n"), 400, 0, 0},
    {"folded first line", REQUEST("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), 400, 0, 0},
    {"line without colon", REQUEST("GET / HTTP/1.1\r\n" H "X\r\n\r\n"), 400, 0, 0},
    {"line without name", REQUEST("GET / HTTP/1.1\r\n" H ": x\r\n\r\n"), 400, 0, 0},
    {"name with a space", REQUEST("GET / HTTP/1.1\r\n" H "X Y: x\r\n\r\n"), 400, 0, 0},
    {"name with quotes", REQUEST("GET / HTTP/1.1\r\n" H "\"X\": x\r\n\r\n"), 400, 0, 0},
    {"name beyond ASCII", REQUEST("GET / HTTP/1.1\r\n" H "X\xc3\xa4: x\r\n\r\n"), 400, 0, 0},
    {"NUL in a name", REQUEST("GET / HTTP/1.1\r\n" H "X\0Y: x\r\n\r\n"), 400, 0, 0},
    {"NUL in a value", REQUEST("GET / HTTP/1.1\r\n" H "X: a\0b\r\n\r\n"), 400, 0, 0},
    {"NUL in the target", REQUEST("GET /\0 HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"NUL in the method", REQUEST("G\0T / HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"DEL in a value", REQUEST("GET / HTTP/1.1\r\n" H "X: a\x7f\r\n\r\n"), 400, 0, 0},
    {"BEL in a value", REQUEST("GET / HTTP/1.1\r\n" H "X: a\a\r\n\r\n"), 400, 0, 0},
    {"bare CR in a value", REQUEST("GET / HTTP/1.1\r\n" H "X: a\rb\r\n\r\n"), 400, 0, 0},
    {"bare CR in a name", REQUEST("GET / HTTP/1.1\r\n" H "\rX: a\r\n\r\n"), 400, 0, 0},
    {"two CRs at a line's end", REQUEST("GET / HTTP/1.1\r\n" H "X: a\r\r\n\r\n"), 400, 0, 0},
    {"bare CR in the request line", REQUEST("GET / HTTP/1.1\r\rHost: a\r\n\r\n"), 400, 0, 0},
    {"bare LF after the request line", REQUEST("GET / HTTP/1.1\n" H "\r\n"), 400, 0, 0},
    {"bare LF after a header", REQUEST("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400, 0, 0},
    {"bare LF for the blank line", REQUEST("GET / HTTP/1.1\r\n" H "\n"), 400, 0, 0},
    {"bare LFs", REQUEST("GET / HTTP/1.1\nHost: a\n\n"), 400, 0, 0},
    {"bare LF before", REQUEST("\nGET / HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"a smuggled header behind a bare LF", REQUEST("GET / HTTP/1.1\r\n" H "X: a\nContent-Length: 5\r\n\r\nhello"), 400, 0, 0},
    {"no target", REQUEST("GET HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"no version", REQUEST("GET /\r\n" H "\r\n"), 400, 0, 0},
    {"two spaces before the target", REQUEST("GET  / HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"two spaces before the version", REQUEST("GET /  HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"space behind the version", REQUEST("GET / HTTP/1.1 \r\n" H "\r\n"), 400, 0, 0},
    {"tab for a space", REQUEST("GET\t/\tHTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"space before the method", REQUEST(" GET / HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"space in the target", REQUEST("GET /a b HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"method with a bracket", REQUEST("GE[T / HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"version in lower case", REQUEST("GET / http/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"version without a dot", REQUEST("GET / HTTP/11\r\n" H "\r\n"), 400, 0, 0},
    {"version of two digits", REQUEST("GET / HTTP/1.10\r\n" H "\r\n"), 400, 0, 0},
    {"version with a sign", REQUEST("GET / HTTP/+1.1\r\n" H "\r\n"), 400, 0, 0},
    {"version with a space", REQUEST("GET / HTTP/ 1.1\r\n" H "\r\n"), 400, 0, 0},
    {"HTTP/2.0", REQUEST("GET / HTTP/2.0\r\n" H "\r\n"), 505, 0, 0},
    {"HTTP/0.9", REQUEST("GET / HTTP/0.9\r\n" H "\r\n"), 505, 0, 0},
    {"HTTP/2's preface", REQUEST("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505, 0, 0},
    {"another protocol", REQUEST("GET / FTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"TLS", REQUEST("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n"), 400, 0, 0},
    {"no Host", REQUEST("GET / HTTP/1.1\r\n\r\n"), 400, 0, 0},
    {"two Hosts", REQUEST("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400, 0, 0},
    {"two Hosts, equal", REQUEST("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400, 0, 0},
    {"two Hosts in 1.0", REQUEST("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), 400, 0, 0},
    {"Host with a comma and space", REQUEST("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"), 400, 0, 0},
    {"Host with a path", REQUEST("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), 400, 0, 0},
    {"Host with a user", REQUEST("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"), 400, 0, 0},
    {"Host with markup", REQUEST("GET / HTTP/1.1\r\nHost: <a>\r\n\r\n"), 400, 0, 0},
    {"Host with a bad port", REQUEST("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"), 400, 0, 0},
    {"Host with two ports", REQUEST("GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n"), 400, 0, 0},
    {"Host with an open bracket", REQUEST("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"), 400, 0, 0},
    {"Host beyond ASCII", REQUEST("GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n"), 400, 0, 0},
    {"absolute form without a Host", REQUEST("GET http://x/ HTTP/1.1\r\n\r\n"), 400, 0, 0},
    {"absolute form without an authority", REQUEST("GET http:///p HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"absolute form with a user", REQUEST("GET http://u@x/ HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"absolute form of another scheme", REQUEST("GET ftp://x/ HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"target that is no path", REQUEST("GET p HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"asterisk with GET", REQUEST("GET * HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"authority with GET", REQUEST("GET x:1 HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"CONNECT with a path", REQUEST("CONNECT / HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"CONNECT without a port", REQUEST("CONNECT x HTTP/1.1\r\n" H "\r\n"), 400, 0, 0},
    {"chunk without size", REQUEST(CHUNKED "\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size with sign", REQUEST(CHUNKED "+3\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size with minus", REQUEST(CHUNKED "-3\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size with 0x", REQUEST(CHUNKED "0x3\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size with underscore", REQUEST(CHUNKED "0_3\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size with leading space", REQUEST(CHUNKED " 3\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size with trailing space", REQUEST(CHUNKED "3 \r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size that is no number", REQUEST(CHUNKED "g\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size that overflows 64 bits", REQUEST(CHUNKED "10000000000000003\r\nabc\r\n0\r\n\r\n"), 413, 0, 0},
    {"chunk size that overflows to a sign", REQUEST(CHUNKED "ffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 413, 0, 0},
    {"chunk above the limit", REQUEST(CHUNKED "6400001\r\n"), 413, 0, 0},
    {"chunk longer than its size", REQUEST(CHUNKED "3\r\nabcd\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk shorter than its size", REQUEST(CHUNKED "5\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk that ends with LF", REQUEST(CHUNKED "3\r\nabc\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size that ends with LF", REQUEST(CHUNKED "3\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"chunk size that ends with CR", REQUEST(CHUNKED "3\rabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"LF in a chunk extension", REQUEST(CHUNKED "3;\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"CR in a chunk extension", REQUEST(CHUNKED "3;a\rb\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"NUL in a chunk extension", REQUEST(CHUNKED "3;a\0\r\nabc\r\n0\r\n\r\n"), 400, 0, 0},
    {"trailer without colon", REQUEST(CHUNKED "0\r\nX\r\n\r\n"), 400, 0, 0},
    {"trailer with a bare LF", REQUEST(CHUNKED "0\r\nX: 1\n\r\n"), 400, 0, 0},
    {"trailer that is folded", REQUEST(CHUNKED "0\r\nX: 1\r\n 2\r\n\r\n"), 400, 0, 0},
    {"last chunk with a bare LF behind", REQUEST(CHUNKED "0\r\n\n"), 400, 0, 0},
    {"unknown expectation", REQUEST("POST / HTTP/1.1\r\n" H "Expect: a-miracle\r\nContent-Length: 1\r\n\r\nx"), 417, 0, 0},
};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* What must hold of an answer. `fed` tells how the request was sent. */
static void check_conformance(const conformance *t, client *c, bool head, const char *fed)
{
    answer a;
    if (!client_answer_to(c, head, &a))
        FAIL("%s (%s): no answer", t->why, fed);
    if (a.status != t->status)
        FAIL("%s (%s): the status is %d, not %d", t->why, fed, a.status, t->status);
    if (a.close == t->open)
        FAIL("%s (%s): the answer says %s", t->why, fed, a.close ? "close" : "keep-alive");
    if (t->body)
        test_check_mem(__FILE__, __LINE__, t->why, a.body.data, a.body.len, t->body, strlen(t->body));
    if (t->open) {
        answer next = client_ask(c, "GET /next HTTP/1.1\r\nHost: n\r\n\r\n");
        test_check_mem(__FILE__, __LINE__, t->why, next.body.data, next.body.len, "GET /next host=n\n", 17);
    } else {
        CHECK(shutdown(c->fd, SHUT_WR) == 0);
        if (client_more(c) || c->reset)
            FAIL("%s (%s): something follows the last answer: %.100s", t->why, fed,
                 c->reset ? "a reset" : c->data + c->taken);
    }
}

static bool is_head(const conformance *t)
{
    return strstr(t->request, "HEAD ") == t->request;
}

TEST_EACH_POLLER(http1_valid_requests_are_answered)
{
    service s;
    service_start(&s);
    for (size_t i = 0; i < COUNT(valid); i++) {
        client c = client_open(s.port);
        client_send_bytes(&c, valid[i].request, valid[i].len);
        check_conformance(&valid[i], &c, is_head(&valid[i]), "at once");
        client_close(&c);
    }
    service_end(&s);
}

TEST_EACH_POLLER(http1_invalid_requests_are_refused_and_close)
{
    service s;
    service_start(&s);
    for (size_t i = 0; i < COUNT(invalid); i++) {
        client c = client_open(s.port);
        client_send_bytes(&c, invalid[i].request, invalid[i].len);
        check_conformance(&invalid[i], &c, false, "at once");
        CHECK_INT(s.finished, 0);
        client_close(&c);
    }
    service_end(&s);
}

TEST_LIMIT(http1_requests_a_byte_at_a_time_are_understood_the_same, 30)
{
    service s;
    service_start(&s);
    for (int table = 0; table < 2; table++)
        for (size_t i = 0; i < (table ? COUNT(invalid) : COUNT(valid)); i++) {
            const conformance *t = table ? &invalid[i] : &valid[i];
            client c = client_open(s.port);
            int on = 1;
            setsockopt(c.fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &on, sizeof on);
            for (size_t at = 0; at < t->len && !c.len && !c.ended; at++) {
                client_send_bytes(&c, t->request + at, 1);
                loop_turns(1);
                client_read(&c);
            }
            check_conformance(t, &c, is_head(t), "byte by byte");
            client_close(&c);
        }
    service_end(&s);
}

TEST_LIMIT(http1_requests_in_two_pieces_are_understood_the_same, 60)
{
    service s;
    service_start(&s);
    for (int table = 0; table < 2; table++)
        for (size_t i = 0; i < (table ? COUNT(invalid) : COUNT(valid)); i++) {
            const conformance *t = table ? &invalid[i] : &valid[i];
            for (size_t cut = 1; cut < t->len; cut++) {
                char fed[64];
                client c = client_open(s.port);
                snprintf(fed, sizeof fed, "cut after %zu bytes", cut);
                client_send_bytes(&c, t->request, cut);
                loop_turns(3);
                client_send_bytes(&c, t->request + cut, t->len - cut);
                check_conformance(t, &c, is_head(t), fed);
                client_close(&c);
            }
        }
    service_end(&s);
}

TEST_LIMIT(http1_requests_that_stop_anywhere_leave_nothing_behind, 30)
{
    service s;
    service_start(&s);
    loop_turns(2);
    for (int reset = 0; reset < 2; reset++)
        for (size_t i = 0; i < COUNT(valid); i++)
            for (size_t cut = 0; cut < valid[i].len; cut++) {
                client c = client_open(s.port);
                client_send_bytes(&c, valid[i].request, cut);
                loop_turns(2);
                if (reset) {
                    close_with_reset(c.fd);
                    c.fd = -1;
                }
                client_close(&c);
                loop_turns(2);
                if (tornado_httpserver_connections(s.server))
                    FAIL("%s, cut after %zu bytes: the connection is still there", valid[i].why, cut);
            }
    service_end(&s);
    CHECK_INT(s.released, s.finished + s.closed);
}

/*----------------------------------------------------------------------------
 * Limits.
 *----------------------------------------------------------------------------*/

static char *repeated(const char *before, const char *part, size_t times, const char *behind)
{
    tornado_buffer text = {0};
    tornado_buffer_puts(&text, before);
    for (size_t i = 0; i < times; i++)
        tornado_buffer_puts(&text, part);
    tornado_buffer_puts(&text, behind);
    char *copy = malloc(text.len + 1);
    CHECK(copy && !text.failed);
    memcpy(copy, text.data, text.len + 1);
    tornado_buffer_free(&text);
    return copy;
}

TEST(http1_limits_have_their_answers)
{
    static const struct {
        const char *why, *before, *part;
        size_t times;
        const char *behind;
        int status;
    } cases[] = {
        {"a long target is fine", "GET /", "x", 60000, " HTTP/1.1\r\n" H "\r\n", 200},
        {"too long a target", "GET /", "x", 70000, " HTTP/1.1\r\n" H "\r\n", 414},
        {"a target without end", "GET /", "x", 300000, "", 414},
        {"a long header is fine", "GET / HTTP/1.1\r\n" H "X: ", "x", 60000, "\r\n\r\n", 200},
        {"too long a header", "GET / HTTP/1.1\r\n" H "X: ", "x", 70000, "\r\n\r\n", 431},
        {"a header without end", "GET / HTTP/1.1\r\n" H "X: ", "x", 300000, "", 431},
        {"255 more headers are fine", "GET / HTTP/1.1\r\n" H, "X: y\r\n", 255, "\r\n", 200},
        {"too many headers", "GET / HTTP/1.1\r\n" H, "X: y\r\n", 256, "\r\n", 431},
        {"headers without end", "GET / HTTP/1.1\r\n" H, "X: y\r\n", 100000, "", 431},
        {"trailers are fine", CHUNKED "0\r\n", "X: y\r\n", 200, "\r\n", 200},
        {"too many trailers", CHUNKED "0\r\n", "X: y\r\n", 300, "\r\n", 431},
        {"trailers without end", CHUNKED "0\r\n", "X: y\r\n", 100000, "", 431},
        {"a trailer without end", CHUNKED "0\r\nX: ", "y", 100000, "", 431},
        {"a chunk extension is fine", CHUNKED "0;", "y", 4000, "\r\n\r\n", 200},
        {"too long a chunk extension", CHUNKED "0;", "y", 5000, "\r\n\r\n", 400},
        {"a chunk extension without end", CHUNKED "0;", "y", 100000, "", 400},
        {"many tiny chunks are fine", CHUNKED, "1\r\nx\r\n", 20000, "0\r\n\r\n", 200},
    };
    service s;
    service_start(&s);
    for (size_t i = 0; i < COUNT(cases); i++) {
        answer a;
        client c = client_open(s.port);
        char *request = repeated(cases[i].before, cases[i].part, cases[i].times, cases[i].behind);
        client_send(&c, request);
        if (!client_answer(&c, &a))
            FAIL("%s: no answer", cases[i].why);
        if (a.status != cases[i].status)
            FAIL("%s: the status is %d, not %d", cases[i].why, a.status, cases[i].status);
        CHECK(a.close == (a.status != 200));
        free(request);
        client_close(&c);
        loop_turns(2);
    }
    service_end(&s);
}

TEST(http1_small_limits_are_kept_to_the_byte)
{
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    for (int over = 0; over < 2; over++) {
        service s;
        service_start_with(&s, &(tornado_http1_params){.max_header_size = sizeof head - 1 - (size_t)over});
        client c = client_open(s.port);
        client_send(&c, head);
        client_send(&c, "0123456789");
        answer a;
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, over ? 431 : 200);
        client_close(&c);
        service_end(&s);
        service_start_with(&s, &(tornado_http1_params){.max_body_size = 10 - over});
        c = client_open(s.port);
        client_send(&c, head);
        client_send(&c, "0123456789");
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, over ? 413 : 200);
        client_close(&c);
        c = client_open(s.port);
        client_send(&c, CHUNKED "5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, over ? 413 : 200);
        client_close(&c);
        service_end(&s);
    }
}

TEST(http1_client_still_sending_a_refused_body_reads_the_answer)
{
    service s;
    service_start_with(&s, &(tornado_http1_params){.max_body_size = 1000});
    client c = client_open(s.port);
    static char body[500000];
    answer a;
    client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n");
    loop_turns(3); /* it is refused by now */
    client_send_bytes(&c, body, sizeof body);
    loop_turns(10);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 413);
    CHECK(a.close);
    CHECK(!client_more(&c));
    CHECK(!c.reset);
    client_close(&c);
    loop_turns(3);
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    service_end(&s);
}

TEST(http1_client_that_never_stops_sending_a_refused_body_is_cut_off)
{
    service s;
    service_start_with(&s, &(tornado_http1_params){.max_body_size = 1000});
    client c = client_open(s.port);
    static char body[65536];
    client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000000\r\n\r\n");
    size_t sent = 0;
    for (int i = 0; i < 2000 && tornado_httpserver_connections(s.server) + (i < 5); i++) {
        ssize_t part = send(c.fd, body, sizeof body, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
    }
    CHECK_INT(tornado_httpserver_connections(s.server), 0);
    CHECK(sent < 20u << 20);
    client_close(&c);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Expectations.
 *----------------------------------------------------------------------------*/

TEST(http1_expect_100_continue_is_answered_before_the_body)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 100);
    CHECK(!head_value(a.head, "Content-Length"));
    client_send(&c, "abc");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK_MEM(a.body.data, a.body.len, "POST / host=a body=abc\n", 23);
    /* no body to come, no interim answer */
    a = client_ask(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n");
    CHECK_INT(a.status, 200);
    /* the body is there already */
    a = client_ask(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    CHECK_INT(a.status, 200);
    client_close(&c);
    service_end(&s);
}

TEST(http1_expect_100_continue_of_too_large_a_body_is_refused_at_once)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 413);
    client_close(&c);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Pipelines.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(http1_pipelined_requests_are_answered_in_order_by_one_send)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    tornado_buffer all = {0};
    answer a;
    for (int i = 0; i < 16; i++)
        tornado_buffer_printf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i);
    client_send_bytes(&c, all.data, all.len);
    tornado_buffer_free(&all);
    for (int i = 0; i < 16; i++) {
        char want[64];
        CHECK(client_answer(&c, &a));
        int len = snprintf(want, sizeof want, "GET /%d host=a\n", i);
        CHECK_MEM(a.body.data, a.body.len, want, (size_t)len);
        CHECK_INT(c.reads, 1);
    }
    CHECK_INT(c.len, c.taken);
    client_close(&c);
    service_end(&s);
}

TEST(http1_pipelined_requests_wait_for_the_one_under_way)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /wait HTTP/1.1\r\n" H "\r\nPOST /second HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc"
                    "GET /wait HTTP/1.1\r\n" H "\r\nGET /fourth HTTP/1.1\r\n" H "\r\n");
    loop_turns(5);
    CHECK_INT(s.finished, 1);
    CHECK(!client_read(&c));
    CHECK(answer_with(s.waiting[0], 200, tornado_bytes_of("first")));
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "first", 5);
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "POST /second host=a body=abc\n", 29);
    CHECK_INT(s.finished, 3);
    CHECK(answer_in_pieces(s.waiting[1], tornado_bytes_of("third")));
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "third", 5);
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "GET /fourth host=a\n", 19);
    client_close(&c);
    service_end(&s);
}

TEST(http1_what_a_request_holds_does_not_change_while_more_comes_in)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "POST /wait?q HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 4\r\n\r\nbody");
    loop_turns(4);
    CHECK_INT(s.waiting_count, 1);
    for (int i = 0; i < 50; i++) {
        client_send(&c, "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: b\r\n\r\n");
        loop_turns(1);
    }
    tornado_http_request *request = s.waiting[0];
    CHECK_STR(request->uri, "/wait?q");
    CHECK_STR(request->path, "/wait");
    CHECK_STR(request->query, "q");
    CHECK_STR(request->body.data, "body");
    CHECK_STR(tornado_http_request_header(request, "x"), "y");
    CHECK_STR(request->remote_ip, "127.0.0.1");
    client_close(&c);
    loop_turns(3);
    CHECK_STR(request->uri, "/wait?q");
    service_end(&s);
}

TEST(http1_requests_behind_one_that_closes_are_not_served)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /1 HTTP/1.1\r\n" H "Connection: close\r\n\r\nGET /2 HTTP/1.1\r\n" H "\r\n");
    CHECK(client_answer(&c, &a));
    CHECK(a.close);
    CHECK(!client_more(&c));
    CHECK_INT(s.finished, 1);
    client_close(&c);
    service_end(&s);
}

TEST(http1_a_bad_request_behind_a_good_one_lets_the_good_one_be_answered)
{
    service s;
    answer a;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /1 HTTP/1.1\r\n" H "\r\nrubbish\r\n\r\n");
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 400);
    CHECK(!client_more(&c));
    client_close(&c);
    service_end(&s);
}

TEST(http1_client_that_pipelines_thousands_and_never_reads_is_not_buffered)
{
    service s;
    char *block = repeated("", "GET /a-path HTTP/1.1\r\nHost: a\r\n\r\n", 1000, "");
    service_start(&s);
    client c = client_open(s.port);
    size_t len = strlen(block), sent = 0, turns = 0;
    long live = test_live();
    while (turns < 3000) {
        ssize_t part = send(c.fd, block + sent % len, len - sent % len, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
        turns++;
    }
    CHECK(test_live() < live + 200);
    int served = s.finished;
    loop_turns(100);
    CHECK_INT(s.finished, served); /* it has stopped */
    int wanted = (int)(sent / (len / 1000)), got = 0;
    answer a;
    for (; got < wanted && client_answer(&c, &a); got++)
        CHECK_INT(a.status, 200);
    CHECK_INT(got, wanted); /* and goes on when the client reads */
    client_close(&c);
    free(block);
    service_end(&s);
}

TEST(http1_client_that_pipelines_behind_a_waiting_request_is_not_buffered)
{
    service s;
    char *block = repeated("", "GET /a-path HTTP/1.1\r\nHost: a\r\n\r\n", 1000, "");
    service_start(&s);
    client c = client_open(s.port);
    size_t len = strlen(block), sent = 0;
    client_send(&c, "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    loop_turns(4);
    for (int turns = 0; turns < 3000; turns++) {
        ssize_t part = send(c.fd, block + sent % len, len - sent % len, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
    }
    CHECK(sent < 60u << 20);
    CHECK_INT(s.finished, 1);
    CHECK(answer_with(s.waiting[0], 200, tornado_bytes_of("done")));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "done", 4);
    int wanted = (int)(sent / (len / 1000)), got = 0;
    for (; got < wanted && client_answer(&c, &a); got++)
        CHECK_INT(a.status, 200);
    CHECK_INT(got, wanted);
    client_close(&c);
    free(block);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Answers.
 *----------------------------------------------------------------------------*/

TEST(http1_head_answers_have_the_length_and_no_body)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    answer a = client_ask(&c, "HEAD /x HTTP/1.1\r\n" H "\r\n");
    CHECK_STR(head_value(a.head, "Content-Length"), "15");
    CHECK_INT(a.body.len, 0);
    a = client_ask(&c, "HEAD /pieces HTTP/1.1\r\n" H "\r\n");
    CHECK_STR(head_value(a.head, "Transfer-Encoding"), "chunked");
    a = client_ask(&c, "HEAD /204 HTTP/1.1\r\n" H "\r\n");
    CHECK_INT(a.status, 204);
    a = client_ask(&c, "GET /x HTTP/1.1\r\n" H "\r\n");
    CHECK_MEM(a.body.data, a.body.len, "GET /x host=a\n", 14);
    client_close(&c);
    service_end(&s);
}

TEST(http1_bodiless_answers_have_no_length_and_no_coding)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    for (int status = 204; status <= 304; status += 100) {
        char request[64];
        snprintf(request, sizeof request, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", status);
        answer a = client_ask(&c, request);
        CHECK_INT(a.status, status);
        CHECK(!head_value(a.head, "Content-Length"));
        CHECK(!head_value(a.head, "Transfer-Encoding"));
        CHECK(!a.close);
    }
    client_close(&c);
    service_end(&s);
}

TEST(http1_answers_have_date_and_server)
{
    service s;
    int64_t when;
    service_start(&s);
    answer a = ask_once(s.port, "GET / HTTP/1.1\r\n" H "\r\n");
    CHECK(tornado_parse_timestamp(head_value(a.head, "Date"), &when));
    CHECK(when >= (int64_t)tornado_time() - 2 && when <= (int64_t)tornado_time() + 1);
    CHECK(strstr(head_value(a.head, "Server"), "tornado.h/") != NULL);
    service_end(&s);
}

/* A request that waits, for a test to answer it by hand. */
static tornado_http_request *waiting_request(service *s, client *c)
{
    int before = s->waiting_count;
    client_send(c, "GET /wait HTTP/1.1\r\n" H "\r\n");
    while (s->waiting_count == before)
        loop_turns(1);
    return s->waiting[before];
}

TEST(http1_headers_with_control_characters_are_not_sent)
{
    static const struct {
        const char *name, *value;
    } bad[] = {
        {"X", "a\r\nSet-Cookie: b"}, {"X", "a\nb"}, {"X", "a\rb"}, {"X", "\x01"}, {"X", "a\x7f"}, {"X\r\nY", "a"},
        {"X Y", "a"}, {"", "a"}, {"X:", "a"}, {"X\n", "a"}, {"\xc3\xa4", "a"},
        {"Content-Length", "5"}, {"Transfer-Encoding", "chunked"}, {"Connection", "close"},
    };
    service s;
    service_start(&s);
    client c = client_open(s.port);
    tornado_http_request *request = waiting_request(&s, &c);
    for (size_t i = 0; i < COUNT(bad); i++) {
        tornado_http_header header = {bad[i].name, bad[i].value, (uint32_t)strlen(bad[i].name),
                                      (uint32_t)strlen(bad[i].value)};
        tornado_http_response_start start = {.status = 200, .headers = {&header, 1}};
        CHECK(!tornado_http_request_write_headers(request, &start));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    }
    tornado_http_header nul = {"X", "a\0b", 1, 3};
    CHECK(!tornado_http_request_write_headers(request, &(tornado_http_response_start){.status = 200, .headers = {&nul, 1}}));
    CHECK(!tornado_http_request_write_headers(request, &(tornado_http_response_start){.status = 99}));
    CHECK(!tornado_http_request_write_headers(request, &(tornado_http_response_start){.status = 1000}));
    CHECK(!tornado_http_request_write_headers(request, &(tornado_http_response_start){.status = 101}));
    tornado_http_header good = {"X-Tab", "a\tb \xff", 5, 5};
    CHECK(tornado_http_request_write_headers(
        request, &(tornado_http_response_start){.status = 299, .reason = "Fine\r\nX: y", .headers = {&good, 1}}));
    CHECK(tornado_http_request_finish(request));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK(strncmp(a.head, "HTTP/1.1 299 Unknown\r\n", 22) == 0);
    CHECK_STR(head_value(a.head, "X-Tab"), "a\tb \xff");
    client_close(&c);
    service_end(&s);
}

TEST(http1_answers_out_of_order_are_errors)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    tornado_http_request *request = waiting_request(&s, &c);
    tornado_http_response_start start = {.status = 200, .content_length = 3};
    CHECK(!tornado_http_request_write(request, tornado_bytes_of("x")));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK(!tornado_http_request_finish(request));
    CHECK(tornado_http_request_write_headers(request, &start));
    CHECK(!tornado_http_request_write_headers(request, &start));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK(tornado_http_request_write(request, tornado_bytes_of("abc")));
    CHECK(tornado_http_request_finish(request));
    CHECK(!tornado_http_request_finish(request));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK(!tornado_http_request_write(request, tornado_bytes_of("abc")));
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "abc", 3);
    client_close(&c);
    service_end(&s);
}

TEST(http1_a_body_of_another_length_than_was_said_closes)
{
    for (int over = 0; over < 2; over++) {
        service s;
        service_start(&s);
        client c = client_open(s.port);
        tornado_http_request *request = waiting_request(&s, &c);
        CHECK(tornado_http_request_write_headers(request,
                                                 &(tornado_http_response_start){.status = 200, .content_length = 3}));
        if (over) {
            CHECK(!tornado_http_request_write(request, tornado_bytes_of("abcd")));
        } else {
            CHECK(tornado_http_request_write(request, tornado_bytes_of("ab")));
            CHECK(!tornado_http_request_finish(request));
        }
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        answer a;
        CHECK(!client_answer(&c, &a));
        CHECK(c.ended);
        client_close(&c);
        service_end(&s);
    }
}

TEST(http1_answering_a_client_that_is_gone_fails)
{
    service s;
    service_start(&s);
    for (int started = 0; started < 2; started++) {
        client c = client_open(s.port);
        tornado_http_request *request = waiting_request(&s, &c);
        tornado_http_response_start start = {.status = 200, .content_length = 3};
        if (started)
            CHECK(tornado_http_request_write_headers(request, &start));
        client_close(&c);
        while (s.closed == started)
            loop_turns(1);
        CHECK(!(started ? tornado_http_request_write(request, tornado_bytes_of("abc"))
                        : tornado_http_request_write_headers(request, &start)));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_CLOSED);
    }
    service_end(&s);
    CHECK_INT(s.released, 2);
}

TEST(http1_several_headers_of_one_name_are_joined)
{
    service s;
    service_start(&s);
    client c = client_open(s.port);
    client_send(&c, "GET /wait HTTP/1.1\r\n" H "Via: a\r\nX: 1\r\nvia: b\r\nVIA:\r\nVia: d\r\n\r\n");
    while (!s.waiting_count)
        loop_turns(1);
    tornado_http_request *request = s.waiting[0];
    CHECK_STR(tornado_http_request_header(request, "Via"), "a,b,,d");
    CHECK_STR(tornado_http_request_header(request, "x"), "1");
    CHECK_STR(tornado_http_request_header(request, "y"), NULL);
    int count = 0;
    for (const tornado_http_header *h = NULL; (h = tornado_http_headers_find(&request->headers, "VIA", h)) != NULL;)
        count++;
    CHECK_INT(count, 4);
    CHECK_INT(request->headers.count, 6);
    CHECK_STR(request->version, "HTTP/1.1");
    CHECK_STR(request->protocol, "http");
    CHECK(tornado_http_request_time(request) >= 0);
    client_close(&c);
    service_end(&s);
}

/*----------------------------------------------------------------------------
 * Memory that runs out, at every allocation of two requests.
 *----------------------------------------------------------------------------*/

/* Sends a request as another process would, in two parts; what came back until the server closed, of at most `room`. */
static void outside_request(int port, char *got, size_t room)
{
    static const char request[] = "POST /pieces HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\nContent-Length: 5\r\n\r\nhello";
    size_t len = 0;
    int fd = connect_loopback(port);
    ssize_t part = send(fd, request, 30, MSG_NOSIGNAL);
    usleep(500); /* so that it arrives in two parts, most of the time */
    part = send(fd, request + 30, sizeof request - 31, MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    while (len < room - 1 && (part = recv(fd, got + len, room - 1 - len, 0)) > 0)
        len += (size_t)part;
    got[len] = '\0';
    close(fd);
}

/* A request, whatever comes back; then, when told to go on, another one that must be answered well. */
static void outside_client(int port, int told)
{
    char got[4096], go;
    outside_request(port, got, sizeof got);
    if (*got && strncmp(got, "HTTP/1.1 ", 9) != 0)
        _exit(1);
    if (write(told, "1", 1) != 1 || read(told, &go, 1) != 1)
        _exit(2);
    outside_request(port, got, sizeof got);
    if (strncmp(got, "HTTP/1.1 200", 12) != 0 || !strstr(got, "\r\n0\r\n\r\n"))
        _exit(3);
    if (write(told, "2", 1) != 1)
        _exit(4);
    _exit(0);
}

TEST_LIMIT(http1_every_failing_allocation_leaves_a_server_that_serves, 60)
{
    service s;
    tornado_ioloop *loop = tornado_ioloop_current();
    service_start(&s);
    ask_once(s.port, "GET / HTTP/1.1\r\n" H "\r\n");
    for (long n = 0; n < 40; n++) {
        int told[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, told) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            close(told[0]);
            outside_client(s.port, told[1]);
        }
        close(told[1]);
        CHECK(tornado_ioloop_add_handler(loop, told[0], loop_fd_ready, loop, TORNADO_IOLOOP_READ));
        for (char step = '1'; step <= '2'; step++) {
            char verdict = '?';
            test_fail_alloc(step == '1' ? n : 0);
            CHECK(tornado_ioloop_start(loop));
            test_fail_alloc(0);
            if (recv(told[0], &verdict, 1, 0) != 1 || verdict != step || (step == '1' && send(told[0], &verdict, 1, MSG_NOSIGNAL) != 1))
                FAIL("when allocation %ld fails: request %c is not answered well", n, step);
        }
        CHECK(tornado_ioloop_remove_handler(loop, told[0]));
        close(told[0]);
        loop_turns(3);
        CHECK_INT(tornado_httpserver_connections(s.server), 0);
    }
    service_end(&s);
}
