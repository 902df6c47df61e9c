/* The program that the manual and README.md show, and what else they show that is in no example. */
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

static void get(tornado_handler *self)
{
    tornado_write(self, "Hello, world");
}

static const tornado_handler_class hello = {.get = get};

int main(void)
{
    tornado_rule rules[] = {{.path = "/", .handler = &hello}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    if (!app || !tornado_application_listen(app, 8888, NULL))
        return 1; /* the reason is in the log */
    tornado_ioloop_start(tornado_ioloop_current());
    return 0;
}

static void twice(tornado_handler *self)
{
    tornado_future *both[] = {tornado_sleep(0.3), tornado_sleep(0.3)};
    tornado_await(tornado_multi(both, 2)); /* 0.3 seconds, not 0.6 */
    tornado_write(self, "waited for two things at once\n");
}

static void in_time(tornado_handler *self)
{
    tornado_future *future = tornado_sleep(2);

    const tornado_error *error = tornado_wait(tornado_with_timeout(1.0, future));
    if (error) {
        tornado_set_status(self, 504);
        tornado_write(self, error->message);
        return;
    }
}

static void close_file(void *file)
{
    fclose(file);
}

static void with_file(tornado_handler *self)
{
    const char *path = tornado_path_arg(self, 0);

    FILE *file = fopen(path, "r");
    if (!file)
        tornado_raise_http_error(404, "no file %s", path);
    tornado_defer(close_file, file); /* however this function ends */
}

extern const tornado_handler_class others;
const tornado_handler_class others = {.get = twice, .post = in_time, .put = with_file};
