/* Takes bodies of any size as they come, without keeping them: counts bytes and lines of what is sent.
   cc -O2 -o receive examples/receive.c && ./receive [port]
   head -c 10000000000 /dev/zero | curl -T - http://127.0.0.1:8888/zeroes */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

#define MOST ((int64_t)1 << 40)

typedef struct receiver {
    tornado_handler base;
    int64_t bytes, lines;
} receiver;

/* The headers are here, the body is not: the time to refuse it, or to take more of it than the server would. */
static void prepare(tornado_handler *self)
{
    tornado_http1_connection_set_max_body_size(self->request->connection, MOST);
}

/* This could wait, for a file or another server; the client then has to wait, too. */
static void data_received(tornado_handler *self, tornado_bytes chunk)
{
    receiver *r = (receiver *)self;
    const char *end = chunk.data + chunk.len;
    r->bytes += (int64_t)chunk.len;
    for (const char *at = chunk.data; (at = memchr(at, '\n', (size_t)(end - at))) != NULL; at++)
        r->lines++;
}

static void put(tornado_handler *self)
{
    const receiver *r = (const receiver *)self;
    tornado_writef(self, "%s: %lld bytes, %lld lines\n", tornado_path_arg(self, 0), (long long)r->bytes,
                   (long long)r->lines);
}

static const tornado_handler_class receive = {.name = "receive", .instance_size = sizeof(receiver),
                                              .stream_request_body = true, .prepare = prepare,
                                              .data_received = data_received, .put = put};

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_rule rules[] = {{.path = "/(.*)", .handler = &receive}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, (int)port, NULL) : NULL;
    if (!server)
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 5);
    printf("serving on http://127.0.0.1:%d/\n", tornado_httpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
