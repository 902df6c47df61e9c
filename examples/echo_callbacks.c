/* The server of echo.c in callback style: no coroutine waits, so it also builds with -DTORNADO_NO_COROUTINES.
   cc -O2 -o echo_callbacks examples/echo_callbacks.c && ./echo_callbacks [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static void read_line(tornado_iostream *stream);

/* Calls back when the future is done; where that is not possible, or it has failed, the connection ends. */
static void then(tornado_future *future, tornado_future_callback callback, tornado_iostream *stream)
{
    if (!tornado_future_add_done_callback(future, callback, stream))
        tornado_iostream_release(stream);
    tornado_future_release(future);
}

static void on_written(tornado_future *future, void *stream)
{
    if (tornado_future_error(future))
        tornado_iostream_release(stream);
    else
        read_line(stream);
}

static void on_line(tornado_future *future, void *stream)
{
    if (tornado_future_error(future)) /* the peer has closed, or sends a line without end */
        tornado_iostream_release(stream);
    else
        then(tornado_iostream_write(stream, tornado_future_bytes(future)), on_written, stream);
}

static void read_line(tornado_iostream *stream)
{
    then(tornado_iostream_read_until(stream, "\n"), on_line, stream);
}

/* Returns at once; the stream is kept until the connection ends. */
static void echo(tornado_iostream *stream, void *arg)
{
    (void)arg;
    read_line(tornado_iostream_retain(stream));
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
