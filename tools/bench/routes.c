/* A server of COUNT patterns with prefixes of their own: /p0000/([0-9]+), /p0001/([0-9]+) and so on. */
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <stdlib.h>

enum { MOST = 10000 };

static char paths[MOST][24];
static tornado_rule rules[MOST + 1];

static void get(tornado_handler *self)
{
    tornado_write(self, tornado_path_arg(self, 0));
}

static const tornado_handler_class story = { .get = get };

int main(int argc, char **argv)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_application *app;
    int count = argc == 3 ? atoi(argv[2]) : 0;

    if (count < 1 || count > MOST)
        return 2;
    for (int i = 0; i < count; i++) {
        snprintf(paths[i], sizeof(paths[i]), "/p%04d/([0-9]+)", i);
        rules[i] = (tornado_rule){ .path = paths[i], .handler = &story };
    }
    app = tornado_application_new(rules, NULL);
    if (!app || !tornado_application_listen(app, atoi(argv[1]), &(tornado_httpserver_options){
            .bind = { .address = "127.0.0.1" } }))
        return 1;
    tornado_ioloop_shutdown_on_signals(loop, 1);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    return 0;
}
