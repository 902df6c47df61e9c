/* A JSON API: books, kept in memory. Whatever is wrong with a request, the answer says so in JSON.
   cc -O2 -o books examples/books.c && ./books [port]

   curl -i http://127.0.0.1:8888/books -d '{"title": "Emma", "author": "Jane Austen", "year": 1815}'
   curl -i 'http://127.0.0.1:8888/books?offset=0&limit=10'
   curl -i http://127.0.0.1:8888/books/1 -X PUT -d '{"title": "Emma", "author": "Jane Austen", "year": 1816}'
   curl -i http://127.0.0.1:8888/books/1 -X DELETE */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

enum { BOOKS = 1000, TEXT = 200, BODY = 16384 };

typedef struct book {
    int id, year;
    char title[TEXT + 1], author[TEXT + 1];
} book;

static struct {
    int count, last_id; /* no id is given twice */
    book books[BOOKS];  /* in the order of their ids */
} shelf;

#define BOOK "{id:i, title:s, author:s, year:i}"

/* What all handlers here inherit. What was raised with a status and a text is meant for the client; the rest is not. */
static void write_error(tornado_handler *self, int status, const tornado_error *error)
{
    bool told = error && error->code == TORNADO_ERR_HTTP && *error->message;
    tornado_write_json(self, "{status:i, error:s}", status, told ? error->message : tornado_http_reason(status));
}

static const tornado_handler_class base = {.write_error = write_error};

/* An argument of the query: an integer from `least` to `most`. */
static int integer_argument(tornado_handler *self, const char *name, const char *fallback, int least, int most)
{
    char *end;
    const char *text = tornado_get_query_argument(self, name, fallback);
    long number = strtol(text, &end, 10);
    if (end == text || *end || number < least || number > most)
        tornado_raise_http_error(400, "%s: an integer from %d to %d is wanted", name, least, most);
    return (int)number;
}

static void copy_text(char out[TEXT + 1], const char *name, tornado_bytes text)
{
    if (text.len == 0 || text.len > TEXT || memchr(text.data, 0, text.len))
        tornado_raise_http_error(400, "%s: 1 to %d bytes without NUL are wanted", name, TEXT);
    memcpy(out, text.data, text.len + 1);
}

/* The book that the body describes; its id is still to be given. */
static book book_of_body(tornado_handler *self)
{
    book b = {0};
    tornado_bytes title, author;
    const tornado_value *json = tornado_json_decode(self->arena, self->request->body);
    if (!json || !tornado_value_unpack(json, "{title:z, author:z, year:i!}", &title, &author, &b.year))
        tornado_raise_http_error(400, "%s", tornado_last_error()->message);
    copy_text(b.title, "title", title);
    copy_text(b.author, "author", author);
    return b;
}

/* The book that the path names. */
static book *book_of_path(tornado_handler *self)
{
    long id = strtol(tornado_path_arg(self, 0), NULL, 10);
    for (int i = 0; i < shelf.count; i++)
        if (shelf.books[i].id == id)
            return &shelf.books[i];
    tornado_raise_http_error(404, "there is no book %s", tornado_path_arg(self, 0));
}

static void list(tornado_handler *self)
{
    int offset = integer_argument(self, "offset", "0", 0, BOOKS);
    int limit = integer_argument(self, "limit", "20", 1, 100);
    tornado_value *page = tornado_value_new_list(self->arena);
    for (int i = offset; i < shelf.count && i < offset + limit; i++) {
        const book *b = &shelf.books[i];
        const tornado_value *value = tornado_value_pack(self->arena, BOOK, b->id, b->title, b->author, b->year);
        if (!value || !tornado_value_append(page, value))
            tornado_raise_error(tornado_last_error());
    }
    tornado_write_json(self, "{total:i, offset:i, books:o}", shelf.count, offset, page);
}

static void add(tornado_handler *self)
{
    book b = book_of_body(self);
    if (shelf.count == BOOKS)
        tornado_raise_http_error(507, "the shelf is full");
    b.id = ++shelf.last_id;
    const char *id = tornado_format(self, "%d", b.id);
    tornado_set_header(self, "Location", tornado_reverse_url(self, "book", &id, 1));
    tornado_set_status(self, 201);
    tornado_write_json(self, BOOK, b.id, b.title, b.author, b.year);
    shelf.books[shelf.count++] = b; /* last, when nothing can fail any more */
}

static void show(tornado_handler *self)
{
    const book *b = book_of_path(self);
    tornado_write_json(self, BOOK, b->id, b->title, b->author, b->year);
}

static void replace(tornado_handler *self)
{
    book *b = book_of_path(self), with = book_of_body(self); /* nothing waits, so the book stays where it is */
    with.id = b->id;
    *b = with;
    show(self);
}

static void drop(tornado_handler *self)
{
    book *b = book_of_path(self), *end = shelf.books + shelf.count--;
    memmove(b, b + 1, (size_t)(end - (b + 1)) * sizeof *b);
    tornado_set_status(self, 204);
}

static void not_found(tornado_handler *self)
{
    tornado_raise_http_error(404, "there is nothing at %s", self->request->path);
}

static const tornado_handler_class all = {.parent = &base, .name = "all", .get = list, .post = add};
static const tornado_handler_class one = {.parent = &base, .name = "one", .get = show, .put = replace, .delete_ = drop};
static const tornado_handler_class none = {.parent = &base, .name = "none", .prepare = not_found};

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8888;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_rule rules[] = {{.path = "/books", .handler = &all},
                            {.path = "/books/([1-9][0-9]*)", .handler = &one, .name = "book"},
                            {0}};
    tornado_httpserver_options options = {.max_body_size = BODY};
    tornado_application *app = tornado_application_new(rules, &(tornado_settings){.default_handler_class = &none});
    tornado_httpserver *server = app ? tornado_application_listen(app, (int)port, &options) : NULL;
    if (!server)
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 5);
    printf("serving on http://127.0.0.1:%d/books\n", tornado_httpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
