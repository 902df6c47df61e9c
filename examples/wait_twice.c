/* Two handlers that wait for 0.3 seconds twice: /together at once, /in_turn one after the other; and /squares, which
   waits for two coroutines of its own. Others are served meanwhile, on the same thread: try it from several terminals.
   cc -O2 -o wait_twice examples/wait_twice.c && ./wait_twice [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

#define PAUSE 0.3

static void together(tornado_handler *self)
{
    tornado_future *both[] = {tornado_sleep(PAUSE), tornado_sleep(PAUSE)};
    tornado_await(tornado_multi(both, 2));
    tornado_write(self, "slept twice at once\n");
}

static void in_turn(tornado_handler *self)
{
    tornado_await(tornado_sleep(PAUSE));
    tornado_await(tornado_sleep(PAUSE));
    tornado_write(self, "slept twice in turn\n");
}

static void *slow_square(void *arg)
{
    int *number = arg;
    tornado_await(tornado_sleep(0.1));
    *number *= *number;
    return number;
}

static void squares(tornado_handler *self)
{
    int *numbers = tornado_alloc(self, 2 * sizeof *numbers);
    numbers[0] = 3;
    numbers[1] = 4;
    tornado_future *both[] = {tornado_handler_spawn(self, slow_square, &numbers[0]),
                              tornado_handler_spawn(self, slow_square, &numbers[1])};
    void **results = tornado_await(tornado_multi(both, 2));
    tornado_write_json(self, "{first:i, second:i}", *(int *)results[0], *(int *)results[1]);
}

static const tornado_handler_class together_handler = {.name = "together", .get = together};
static const tornado_handler_class in_turn_handler = {.name = "in_turn", .get = in_turn};
static const tornado_handler_class squares_handler = {.name = "squares", .get = squares};

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_rule rules[] = {{.path = "/together", .handler = &together_handler},
                            {.path = "/in_turn", .handler = &in_turn_handler},
                            {.path = "/squares", .handler = &squares_handler},
                            {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, (int)port, NULL) : NULL;
    if (!server)
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 5);
    printf("serving on http://127.0.0.1:%d/together and /in_turn\n", tornado_httpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
