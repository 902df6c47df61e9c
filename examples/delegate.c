/* A server below the web framework: its delegate is told of each request as it comes, and answers by the connection.
   cc -O2 -o delegate examples/delegate.c && ./delegate [port]
   curl -d 'some text' http://127.0.0.1:8888/anything */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

/* One request; in the arena of its connection, so that nothing is freed here. */
typedef struct exchange {
    tornado_http1_connection *connection;
    const tornado_http_start_line *start;
    size_t bytes;
} exchange;

static tornado_future *headers_received(void *self, const tornado_http_start_line *start,
                                        const tornado_http_headers *headers)
{
    (void)headers;
    ((exchange *)self)->start = start;
    return NULL; /* go on; a future would have the body wait for it */
}

static tornado_future *data_received(void *self, tornado_bytes chunk)
{
    ((exchange *)self)->bytes += chunk.len;
    return NULL;
}

/* The request is complete. */
static void finish(void *self)
{
    const exchange *e = self;
    tornado_arena *arena = tornado_http1_connection_arena(e->connection);
    const char *text = tornado_arena_printf(arena, "You requested %s, with %zu bytes\n", e->start->path, e->bytes);
    tornado_http_start_line answer = {.code = 200};
    tornado_http_headers headers = {.count = 0};
    char length[24];
    snprintf(length, sizeof length, "%zu", text ? strlen(text) : 0);
    if (!text || !tornado_http_headers_add(arena, &headers, "Content-Type", "text/plain; charset=UTF-8") ||
        !tornado_http_headers_add(arena, &headers, "Content-Length", length)) {
        tornado_http1_connection_close(e->connection); /* memory is short */
        return;
    }
    tornado_bytes body = tornado_bytes_of(text);
    tornado_future_release(tornado_http1_connection_write_headers(e->connection, &answer, &headers, &body));
    tornado_future_release(tornado_http1_connection_finish(e->connection));
}

static const tornado_http_message_delegate messages = {
    .headers_received = headers_received, .data_received = data_received, .finish = finish};

static const tornado_http_message_delegate *start_request(void *self, tornado_http1_server_connection *server_conn,
                                                          tornado_http1_connection *request_conn, void **message)
{
    exchange *e = tornado_arena_calloc(tornado_http1_connection_arena(request_conn), 1, sizeof *e);
    (void)self;
    (void)server_conn;
    if (!e)
        return NULL; /* it is answered with 503 */
    e->connection = request_conn;
    *message = e;
    return &messages;
}

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    const tornado_http_server_connection_delegate delegate = {.start_request = start_request};
    tornado_httpserver *server = tornado_httpserver_new(&delegate, NULL, NULL);
    if (!server || !tornado_httpserver_listen(server, (int)port, NULL))
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 5);
    printf("serving on http://127.0.0.1:%d/\n", tornado_httpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_httpserver_free(server);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
