/* Serves "Hello, world" until it is interrupted.
   cc -O2 -o hello examples/hello.c && ./hello [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static void get(tornado_handler *self)
{
    tornado_write(self, "Hello, world");
}

static const tornado_handler_class hello = {.name = "hello", .get = get};

int main(int argc, char **argv)
{
    tornado_rule rules[] = {{.path = "/", .handler = &hello}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, argc > 1 ? atoi(argv[1]) : 8888, NULL) : NULL;
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
