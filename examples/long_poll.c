/* Long polling: GET /next waits until somebody posts a message to /say, then answers with it; any number may wait.
   Who asks for /next?after=NUMBER, with the number of the last answer, does not wait when something was said between
   two requests: the latest message is answered at once, and by its number one sees how many others came before it.
   cc -O2 -o long_poll examples/long_poll.c && ./long_poll [port]
   curl http://127.0.0.1:8888/next &    curl -d hello http://127.0.0.1:8888/say */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

/* What those who wait have in common: a future that the next message resolves. */
typedef struct board {
    tornado_future *next;
    size_t count;
    char latest[1024];
} board;

static void next_get(tornado_handler *self)
{
    board *b = self->data;
    const char *after = tornado_get_query_argument(self, "after", NULL);
    bool behind = after && strtoul(after, NULL, 10) < b->count;
    if (!behind && tornado_wait(tornado_with_timeout(60, tornado_future_retain(b->next)))) {
        tornado_set_status(self, 204); /* nothing was said in time: the client asks again */
        return;
    }
    tornado_write_json(self, "{number:i, message:s}", (int)b->count, b->latest);
}

static void say_post(tornado_handler *self)
{
    board *b = self->data;
    tornado_bytes text = self->request->body;
    tornado_future *said = b->next;
    if (text.len == 0 || text.len >= sizeof b->latest || !tornado_utf8_valid(text.data, text.len))
        tornado_raise_http_error(400, "a message is UTF-8 text of 1 to %zu bytes", sizeof b->latest - 1);
    memcpy(b->latest, text.data, text.len);
    b->latest[text.len] = '\0';
    b->count++;
    b->next = tornado_future_new(); /* for those who come from now on */
    tornado_future_set_result(said, NULL, NULL);
    tornado_future_release(said);
    tornado_write(self, "said\n");
}

static const tornado_handler_class next = {.name = "next", .get = next_get};
static const tornado_handler_class say = {.name = "say", .post = say_post};

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    board b = {.next = tornado_future_new()};
    tornado_rule rules[] = {{.path = "/next", .handler = &next, .data = &b},
                            {.path = "/say", .handler = &say, .data = &b},
                            {0}};
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
    tornado_future_release(b.next);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
