/* The server that tools/soak/soak.py talks to: handlers of each kind, and /stats, where it tells what it holds.
   Counts the library's blocks of memory. Prints its port. */
#include <stdlib.h>

static long live; /* blocks that the library holds; one thread only */

static void *counted_realloc(void *pointer, size_t size)
{
    void *memory = realloc(pointer, size);
    live += !pointer && memory;
    return memory;
}

static void counted_free(void *pointer)
{
    live -= pointer != NULL;
    free(pointer);
}

#define TORNADO_MALLOC(size)           counted_realloc(NULL, size)
#define TORNADO_REALLOC(pointer, size) counted_realloc(pointer, size)
#define TORNADO_FREE(pointer)          counted_free(pointer)
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

enum { BIG_PARTS = 64, BIG_PART = 16384 };

static void hello_get(tornado_handler *self)
{
    tornado_writef(self, "Hello, %s", tornado_get_argument(self, "name", "world"));
}

static void echo_post(tornado_handler *self)
{
    tornado_write_bytes(self, self->request->body);
}

static void wait_get(tornado_handler *self)
{
    tornado_future *both[] = {tornado_sleep(0.2), tornado_with_timeout(1, tornado_sleep(0.1))};
    tornado_await(tornado_multi(both, 2));
    tornado_write(self, "waited");
}

static void big_get(tornado_handler *self)
{
    char *part = tornado_alloc(self, BIG_PART);
    memset(part, 'b', BIG_PART);
    for (int i = 0; i < BIG_PARTS; i++) { /* at the client's pace; ends here when it is gone */
        tornado_scope scope;
        tornado_scope_enter(&scope);
        tornado_write_bytes(self, (tornado_bytes){part, BIG_PART});
        tornado_await(tornado_flush(self));
        tornado_scope_leave(&scope);
    }
}

static void fail_get(tornado_handler *self)
{
    (void)self;
    tornado_raise(TORNADO_ERR_STATE, "on purpose");
}

static void stats_get(tornado_handler *self)
{
    const tornado_httpserver *const *server = self->data;
    tornado_write_json(self, "{blocks:I, connections:i, coroutines:i}", (int64_t)live,
                       (int)tornado_httpserver_connections(*server),
                       (int)tornado_ioloop_coroutines(tornado_ioloop_current()));
}

int main(int argc, char **argv)
{
    static const tornado_handler_class hello = {.name = "hello", .get = hello_get},
                                       echo = {.name = "echo", .post = echo_post},
                                       wait = {.name = "wait", .get = wait_get},
                                       big = {.name = "big", .get = big_get},
                                       fail = {.name = "fail", .get = fail_get},
                                       stats = {.name = "stats", .get = stats_get};
    tornado_log_options quiet = {.level = TORNADO_LOG_CRITICAL};
    tornado_httpserver_options options = {.bind = {.address = "127.0.0.1", .backlog = 1024},
                                          .header_timeout = 5, .body_timeout = 10,
                                                   .idle_connection_timeout = 120, .max_body_size = 1 << 20};
    tornado_httpserver *server = NULL;
    tornado_rule rules[] = {{.path = "/", .handler = &hello}, {.path = "/echo", .handler = &echo},
                            {.path = "/wait", .handler = &wait}, {.path = "/big", .handler = &big},
                            {.path = "/fail", .handler = &fail},
                            {.path = "/stats", .handler = &stats, .data = &server}, {0}};
    tornado_ioloop_options with = {.poller = argc > 1 ? argv[1] : NULL};
    tornado_enable_pretty_logging(&quiet);
    tornado_ioloop *loop = tornado_ioloop_new(&with);
    if (!loop)
        return fprintf(stderr, "%s\n", tornado_last_error()->message), 1;
    tornado_ioloop_make_current(loop);
    tornado_application *app = tornado_application_new(rules, NULL);
    if (!app || (server = tornado_application_listen(app, 0, &options)) == NULL)
        return fprintf(stderr, "%s\n", tornado_last_error()->message), 1;
    tornado_ioloop_shutdown_on_signals(loop, 5);
    printf("%d\n", tornado_httpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    if (live)
        fprintf(stderr, "%ld blocks were not freed\n", live);
    return live != 0;
}
