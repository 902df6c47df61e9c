/* A form that redirects: GET / shows a guest book and asks for a name, POST / signs it, remembers the name in a
   cookie and redirects, so that reloading signs nothing twice.
   cc -O2 -o form examples/form.c && ./form [port]
   curl -i -d 'name=Ben' http://127.0.0.1:8888/ */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

enum { GUESTS = 100, NAME = 40 /* characters as browsers count them, of 3 bytes at most */ };

typedef struct book {
    size_t count;
    char names[GUESTS][3 * NAME + 1];
} book;

/* Text that may stand in HTML. Nothing that a client sent goes into a page without this. */
static const char *html(tornado_handler *self, const char *text)
{
    const char *escaped = tornado_xhtml_escape(self->arena, text);
    if (!escaped)
        tornado_raise_error(tornado_last_error());
    return escaped;
}

static void show(tornado_handler *self)
{
    const book *b = self->data;
    tornado_writef(self,
                   "<!doctype html><title>Guest book</title><form method=post>\n"
                   "<input name=name maxlength=%d value=\"%s\"><button>Sign</button></form>\n<ol>\n",
                   NAME, html(self, tornado_get_cookie(self, "name", "")));
    for (size_t i = 0; i < b->count; i++)
        tornado_writef(self, "<li>%s</li>\n", html(self, b->names[i]));
    tornado_write(self, "</ol>\n");
}

static void sign(tornado_handler *self)
{
    book *b = self->data;
    const char *name = tornado_require_body_argument(self, "name"); /* a 400 when it is missing or not UTF-8 */
    if (!*name || strlen(name) >= sizeof b->names[0])
        tornado_raise_http_error(400, "A name has 1 to %d characters.", NAME);
    if (b->count == GUESTS)
        tornado_raise_http_error(503, "The book is full.");
    tornado_set_cookie(self, "name", name, &(tornado_cookie){.expires_days = 30, .httponly = true, .samesite = "Lax"});
    strcpy(b->names[b->count++], name);
    tornado_redirect(self, "/", false);
}

/* Errors of our own: what was raised with a status and a text is meant for the client; the rest is for the log. */
static void write_error(tornado_handler *self, int status, const tornado_error *error)
{
    bool told = error && error->code == TORNADO_ERR_HTTP && *error->message;
    tornado_writef(self, "<!doctype html><title>Sorry</title><h1>%s</h1><p>%s <a href=\"/\">Back</a>\n",
                   tornado_http_reason(status), told ? html(self, error->message) : "");
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
    tornado_ioloop_clear_current();
    return 0;
}
