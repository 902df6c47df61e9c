/* A form that redirects: GET / shows a guest book and asks for a name, POST / signs it, remembers the name in a cookie and
   redirects, so that reloading signs nothing twice.
   cc -O2 -o form examples/form.c && ./form [port] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

enum { GUESTS = 100, NAME = 40 };

typedef struct book {
    size_t count;
    char names[GUESTS][NAME + 1];
} book;

static void show(tornado_handler *self)
{
    const book *b = self->data;
    char *name = tornado_xhtml_escape(self->arena, tornado_get_cookie(self, "name", ""));
    tornado_writef(self,
                   "<!doctype html><title>Guest book</title><form method=post>\n"
                   "<input name=name maxlength=%d value=\"%s\"><button>Sign</button></form>\n<ol>\n",
                   NAME, name ? name : "");
    for (size_t i = 0; i < b->count; i++) {
        char *guest = tornado_xhtml_escape(self->arena, b->names[i]);
        tornado_writef(self, "<li>%s</li>\n", guest ? guest : "?");
    }
    tornado_write(self, "</ol>\n");
}

static void sign(tornado_handler *self)
{
    book *b = self->data;
    const char *name = tornado_require_body_argument(self, "name"); /* a 400 when it is missing or not UTF-8 */
    if (!*name || strlen(name) > NAME)
        tornado_raise_http_error(400, "a name has 1 to %d bytes", NAME);
    if (b->count == GUESTS)
        tornado_raise_http_error(503, "the book is full");
    strcpy(b->names[b->count++], name);
    tornado_set_cookie(self, "name", name, &(tornado_cookie){.expires_days = 30, .httponly = true, .samesite = "Lax"});
    tornado_redirect(self, "/", false);
}

/* Errors of our own: every page of an error looks like this. */
static void write_error(tornado_handler *self, int status, const tornado_error *error)
{
    (void)error; /* what it says is for the log */
    tornado_writef(self, "<!doctype html><title>Sorry</title><p>%d %s. <a href=\"/\">Back</a>\n", status,
                   tornado_http_reason(status));
}

static const tornado_handler_class guests = {.name = "guests", .get = show, .post = sign, .write_error = write_error};

int main(int argc, char **argv)
{
    static book b;
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_rule rules[] = {{.path = "/", .handler = &guests, .data = &b}, {0}};
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
    return 0;
}
