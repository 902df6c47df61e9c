/* Files from a form, and without one: POST /post takes the files of a multipart form and tells what came, PUT /NAME
   takes the body as a file. Nothing is kept. GET / shows a form.
   cc -O2 -o upload examples/upload.c && ./upload [port]
   curl -F files1=@LICENSE -F note=hello http://127.0.0.1:8888/post
   curl -T LICENSE http://127.0.0.1:8888/LICENSE */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static void show_form(tornado_handler *self)
{
    tornado_write(self, "<!doctype html><title>Upload</title>\n"
                        "<form method=post action=/post enctype=multipart/form-data>\n"
                        "<input type=file name=files1 multiple> <input name=note> <button>Send</button></form>\n");
}

/* A file's name is what the client says: it may be "../../etc/passwd". It is for showing, not for opening. */
static void post(tornado_handler *self)
{
    const tornado_http_files *files = tornado_files(self); /* a 400 when the form is malformed */
    tornado_set_header(self, "Content-Type", "text/plain; charset=UTF-8");
    for (size_t i = 0; i < files->count; i++) {
        const tornado_http_file *file = &files->items[i];
        tornado_writef(self, "POST \"%s\" \"%s\" %zu bytes\n", file->filename, file->content_type, file->body.len);
    }
    tornado_writef(self, "note: %s\n", tornado_get_body_argument(self, "note", ""));
}

static void put(tornado_handler *self)
{
    const char *type = tornado_get_header(self, "Content-Type");
    tornado_set_header(self, "Content-Type", "text/plain; charset=UTF-8");
    tornado_writef(self, "PUT \"%s\" \"%s\" %zu bytes\n", tornado_path_arg(self, 0),
                   type ? type : "application/unknown", self->request->body.len);
}

static const tornado_handler_class form = {.name = "form", .get = show_form};
static const tornado_handler_class post_files = {.name = "post", .post = post};
static const tornado_handler_class put_file = {.name = "put", .put = put};

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_rule rules[] = {{.path = "/", .handler = &form},
                            {.path = "/post", .handler = &post_files},
                            {.path = "/(.*)", .handler = &put_file},
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
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
