/* Answers with what it knows of the request, in JSON; see books.c for more.
   cc -O2 -o json examples/json.c && ./json [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static void get(tornado_handler *self)
{
    tornado_write_json(self, "{greeting:s, host:s, user_agent:s, time:f, numbers:[i, i], ok:b}", "Grüße",
                       self->request->host, tornado_get_header(self, "User-Agent"), tornado_time(), 1, 2, true);
}

static const tornado_handler_class hello = {.name = "hello", .get = get};

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_rule rules[] = {{.path = "/", .handler = &hello}, {0}};
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
