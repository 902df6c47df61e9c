/* A TCP server that sends each line back. Each connection has a coroutine of its own; try nc 127.0.0.1 8888.
   cc -O2 -o echo examples/echo.c && ./echo [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static void echo(tornado_iostream *stream, void *arg)
{
    (void)arg;
    for (;;) { /* ends when the peer closes: the wait unwinds, quietly */
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
        tornado_await(tornado_iostream_write(stream, line));
    }
}

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_tcpserver_options options = {.name = "echo", .stream.max_buffer_size = 65536}; /* of a line, at most */
    tornado_tcpserver *server = tornado_tcpserver_new(echo, NULL, &options);
    if (!server || !tornado_tcpserver_listen(server, (int)port, NULL))
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 1);
    printf("echoing lines on 127.0.0.1:%d\n", tornado_tcpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_tcpserver_free(server);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
