/* A program that has a loop of its own, here a game's that draws frames and reads lines from its standard input, and
   serves HTTP beside it. The three calls that it takes fit into any loop: GLib's, libuv's, a GUI's.
   cc -O2 -o own_loop examples/own_loop.c && ./own_loop [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static long frames;

static void get(tornado_handler *self)
{
    tornado_await(tornado_sleep(0.05)); /* the game goes on */
    tornado_write_json(self, "{frames:I}", (int64_t)frames);
}

static const tornado_handler_class status = {.get = get};

/* Milliseconds until something has to be done: a frame of the game is due at `next`. */
static int timeout_ms(const tornado_ioloop *loop, double next)
{
    double left = next - tornado_monotonic(), timeout = tornado_ioloop_next_timeout(loop);
    if (timeout != TORNADO_NONE && timeout < left)
        left = timeout;
    return left > 0 ? (int)(left * 1000) + 1 : 0;
}

static void play(tornado_ioloop *loop)
{
    struct pollfd fds[] = {{.fd = tornado_ioloop_fileno(loop), .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    double next = tornado_monotonic();
    char line[256];
    for (;;) {
        if (poll(fds, 2, timeout_ms(loop, next)) < 0 && errno != EINTR)
            return;
        if (fds[1].revents && read(0, line, sizeof line) <= 0)
            return; /* its standard input has ended: the game is over */
        if (tornado_monotonic() >= next) {
            frames++;
            next += 1.0 / 60;
        }
        tornado_ioloop_run_once(loop, 0); /* does what is ready, and nothing else */
    }
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 8888;
    tornado_rule rules[] = {{.path = "/", .handler = &status}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, port, NULL) : NULL;
    if (!server)
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    printf("serving on 127.0.0.1:%d until the end of the input\n", tornado_httpserver_port(server));
    fflush(stdout);
    play(loop);
    tornado_application_free(app); /* and the server, which is its own */
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
