/* Hello from tornado.h, with nothing switched off, and the same as JSON. */
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <stdlib.h>

static void get(tornado_handler *self)
{
    tornado_write(self, "Hello, world");
}

static void get_json(tornado_handler *self)
{
    tornado_write_json(self, "{message:s}", "Hello, world");
}

static const tornado_handler_class hello = { .get = get }, hello_json = { .get = get_json };

int main(int argc, char **argv)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_application *app = tornado_application_new((tornado_rule[]){
        { .path = "/", .handler = &hello },
        { .path = "/json", .handler = &hello_json },
        { 0 }
    }, NULL);

    if (argc != 2 || !tornado_application_listen(app, atoi(argv[1]), &(tornado_httpserver_options){
            .bind = { .address = "127.0.0.1", .backlog = 4096 } }))
        return 1;
    tornado_ioloop_shutdown_on_signals(loop, 1);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    return 0;
}
