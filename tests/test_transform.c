/* Output transforms: those of the program, and the one that compresses. */
#include "http_client.h"
#include "runtime.h"

static tornado_application *serve(const tornado_handler_class *cls, const tornado_settings *settings, int *port)
{
    tornado_application *app =
        tornado_application_new((tornado_rule[]){{.path = "/.*", .handler = cls}, {0}}, settings);
    CHECK(app != NULL);
    tornado_httpserver *server =
        tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(server != NULL);
    *port = tornado_httpserver_port(server);
    return app;
}

/* Serves a class for one request; `more` are further lines of it. */
static answer ask(const tornado_handler_class *cls, const tornado_settings *settings, const char *method,
                  const char *more)
{
    char request[1024];
    int port;
    tornado_application *app = serve(cls, settings, &port);
    snprintf(request, sizeof request, "%s / HTTP/1.1\r\nHost: a\r\n%s\r\n", method, more);
    answer a = ask_once(port, request);
    loop_turns(1);
    while (tornado_ioloop_coroutines(tornado_ioloop_current()) > 0)
        loop_turns(1);
    tornado_application_free(app);
    return a;
}

static const tornado_settings compressing = {.compress_response = TORNADO_GZIP};

#define ACCEPT    "Accept-Encoding: deflate, gzip\r\n"
#define CHECK_HEADER(answer, name, value)                                                                          \
    CHECK_STR(head_value((answer).head, name) ? head_value((answer).head, name) : "", value)

/* So many times "0123456789", and its type. */
static int tens = 300;
static const char *type;

static void get_tens(tornado_handler *self)
{
    if (type)
        tornado_set_header(self, "Content-Type", type);
    for (int i = 0; i < tens; i++)
        tornado_write(self, "0123456789");
}
static const tornado_handler_class tens_class = {.get = get_tens, .head = get_tens};

/* What a body is, once it is decompressed. */
static void check_tens(const answer *a, int count)
{
    tornado_buffer plain = {NULL, 0, 0, false};
    static const tornado_decompressor_options gzip = {.format = TORNADO_ZIP_GZIP};
    if (!tornado_decompress(&plain, (tornado_bytes){a->body.data, a->body.len}, &gzip))
        FAIL("%s", tornado_last_error()->message);
    CHECK_INT(plain.len, 10 * count);
    for (int i = 0; i < count; i++)
        CHECK_MEM(plain.data + 10 * i, 10, "0123456789", 10);
    tornado_buffer_free(&plain);
}

TEST(transform_gzip_compresses_for_those_who_accept_it)
{
    answer a = ask(&tens_class, &compressing, "GET", ACCEPT);
    CHECK_INT(a.status, 200);
    CHECK_HEADER(a, "Content-Encoding", "gzip");
    CHECK_HEADER(a, "Vary", "Accept-Encoding");
    CHECK(a.body.len < 200);
    check_tens(&a, 300);
    a = ask(&tens_class, &compressing, "GET", "");
    CHECK_HEADER(a, "Content-Encoding", "");
    CHECK_HEADER(a, "Vary", "Accept-Encoding");
    CHECK_INT(a.body.len, 3000);
    a = ask(&tens_class, &(tornado_settings){.gzip = TORNADO_GZIP}, "GET", ACCEPT);
    check_tens(&a, 300);
    a = ask(&tens_class, NULL, "GET", ACCEPT);
    CHECK_HEADER(a, "Vary", "");
    CHECK_INT(a.body.len, 3000);
}

TEST(transform_gzip_knows_how_a_client_says_that_it_accepts_it)
{
    static const struct {
        const char *accept;
        bool gzip;
    } rows[] = {{"gzip", true}, {"GZIP", true}, {"deflate,gzip;q=0.5", true}, {"gzip ; q=1.0, br", true},
                {"gzip;q=0", false}, {"gzip; q=0.000, deflate", false}, {"gzip;Q=0.", false}, {"gzip;q=0.001", true},
                {"deflate", false}, {"gzipped", false}, {"identity;q=0, gzip", true}, {"", false}, {"x;gzip", false}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char line[100];
        snprintf(line, sizeof line, "Accept-Encoding: %s\r\n", rows[i].accept);
        answer a = ask(&tens_class, &compressing, "GET", line);
        if ((head_value(a.head, "Content-Encoding") != NULL) != rows[i].gzip)
            FAIL("Accept-Encoding: %s", rows[i].accept);
    }
}

TEST(transform_gzip_compresses_text_of_some_length)
{
    static const struct {
        const char *type;
        int tens;
        bool gzip;
    } rows[] = {{NULL, 103, true}, {NULL, 102, false}, {"text/plain", 300, true}, {"application/json", 300, true},
                {"application/javascript; charset=UTF-8", 300, true}, {"image/svg+xml", 300, true},
                {"application/atom+xml", 300, true}, {"image/png", 300, false},
                {"application/octet-stream", 300, false},
                {"application/jsonp", 300, false}, {"TEXT/CSS", 300, true}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        type = rows[i].type;
        tens = rows[i].tens;
        answer a = ask(&tens_class, &compressing, "GET", ACCEPT);
        CHECK_HEADER(a, "Vary", "Accept-Encoding");
        if ((head_value(a.head, "Content-Encoding") != NULL) != rows[i].gzip)
            FAIL("%s, %d bytes", rows[i].type ? rows[i].type : "the default type", 10 * rows[i].tens);
    }
}

TEST(transform_gzip_large_answers_too)
{
    tens = 100000;
    answer a = ask(&tens_class, &compressing, "GET", ACCEPT);
    CHECK_HEADER(a, "Content-Encoding", "gzip");
    check_tens(&a, tens);
}

TEST(transform_gzip_head_has_the_length_of_what_get_sends)
{
    answer get = ask(&tens_class, &compressing, "GET", ACCEPT);
    char want[24];
    snprintf(want, sizeof want, "%zu", get.body.len);
    CHECK_HEADER(get, "Content-Length", want);
    answer head = ask(&tens_class, &compressing, "HEAD", ACCEPT);
    CHECK_HEADER(head, "Content-Length", want);
    CHECK_HEADER(head, "Content-Encoding", "gzip");
    CHECK_INT(head.body.len, 0);
}

TEST(transform_gzip_makes_etags_weak_which_still_match)
{
    char line[256], etag[64];
    answer plain = ask(&tens_class, &compressing, "GET", "");
    answer packed = ask(&tens_class, &compressing, "GET", ACCEPT);
    snprintf(etag, sizeof etag, "W/%s", head_value(plain.head, "Etag"));
    CHECK_HEADER(packed, "Etag", etag);
    snprintf(line, sizeof line, ACCEPT "If-None-Match: %s\r\n", etag);
    answer same = ask(&tens_class, &compressing, "GET", line);
    CHECK_INT(same.status, 304);
    CHECK_HEADER(same, "Vary", "Accept-Encoding");
    CHECK_HEADER(same, "Etag", etag);
    CHECK_HEADER(same, "Content-Encoding", "");
    same = ask(&tens_class, &compressing, "HEAD", line);
    CHECK_INT(same.status, 304);
    CHECK_HEADER(same, "Etag", etag);
    snprintf(line, sizeof line, "If-None-Match: %s\r\n", etag); /* of who does not accept gzip it is the strong one */
    same = ask(&tens_class, &compressing, "GET", line);
    CHECK_INT(same.status, 304);
    CHECK_HEADER(same, "Vary", "Accept-Encoding");
    CHECK_HEADER(same, "Etag", etag + 2);
}

static void get_special(tornado_handler *self)
{
    tornado_write(self, "a");
    tornado_set_header(self, "Content-Encoding", "br");
    tornado_set_header(self, "Vary", "Cookie");
    get_tens(self);
}
static const tornado_handler_class special_class = {.get = get_special};

TEST(transform_gzip_leaves_what_is_encoded_as_it_is)
{
    answer a = ask(&special_class, &compressing, "GET", ACCEPT);
    CHECK_HEADER(a, "Content-Encoding", "br");
    CHECK_INT(a.body.len, 3001);
    CHECK(strstr(a.head, "\r\nVary: Cookie\r\n") && strstr(a.head, "\r\nVary: Accept-Encoding\r\n"));
}

static const char *varies;

static void get_varying(tornado_handler *self)
{
    tornado_set_header(self, "Vary", varies);
    get_tens(self);
}

TEST(transform_gzip_tells_once_that_it_varies)
{
    static const tornado_handler_class varying_class = {.get = get_varying};
    static const struct {
        const char *vary;
        bool said;
    } cases[] = {{"X-Accept-Encoding", false}, {"Accept-Encoding-X, Cookie", false}, {"Cookie", false},
                 {"accept-encoding", true}, {"Cookie,ACCEPT-ENCODING", true}, {"Cookie , Accept-Encoding", true},
                 {"*", true}, {"Cookie, *", true}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        varies = cases[i].vary;
        answer a = ask(&varying_class, &compressing, "GET", ACCEPT);
        check_tens(&a, 300);
        const char *first = strstr(a.head, "\r\nVary: "), *second = first ? strstr(first + 2, "\r\nVary: ") : NULL;
        CHECK(first && strncmp(first + 8, varies, strlen(varies)) == 0);
        if (cases[i].said ? second != NULL : !second || strncmp(second + 8, "Accept-Encoding\r\n", 17) != 0)
            FAIL("%s: %s", varies, a.head);
    }
}

static void get_range(tornado_handler *self)
{
    tornado_set_status(self, 206);
    tornado_set_header(self, "Content-Range", "bytes 0-2999/5000");
    get_tens(self);
}
static const tornado_handler_class range_class = {.get = get_range};

TEST(transform_gzip_leaves_ranges_as_they_are)
{
    answer a = ask(&range_class, &compressing, "GET", ACCEPT);
    CHECK_INT(a.status, 206);
    CHECK_HEADER(a, "Content-Encoding", "");
    CHECK_INT(a.body.len, 3000);
}

static void get_length(tornado_handler *self)
{
    tornado_set_header(self, "Content-Length", "3000");
    get_tens(self);
}
static const tornado_handler_class length_class = {.get = get_length};

TEST(transform_gzip_corrects_a_length_that_was_set)
{
    answer a = ask(&length_class, &compressing, "GET", ACCEPT);
    check_tens(&a, 300);
    CHECK(atoi(head_value(a.head, "Content-Length")) < 200);
}

static void get_parts(tornado_handler *self)
{
    tornado_set_header(self, "Content-Length", "200");
    for (int i = 0; i < 20; i++) {
        tornado_write(self, "0123456789");
        tornado_await(tornado_flush(self));
    }
}
static const tornado_handler_class parts_class = {.get = get_parts};

TEST(transform_gzip_streams_what_is_flushed)
{
    answer a = ask(&parts_class, &compressing, "GET", ACCEPT);
    CHECK_HEADER(a, "Content-Encoding", "gzip");
    CHECK_HEADER(a, "Content-Length", "");
    CHECK_HEADER(a, "Transfer-Encoding", "chunked");
    check_tens(&a, 20);
}

static int ticks_live[2];

static void get_ticks(tornado_handler *self)
{
    tornado_set_header(self, "Content-Type", "text/event-stream");
    for (int i = 0; i < 1000; i++) {
        tornado_write(self, "data: tick\n\n");
        tornado_await(tornado_flush(self));
        if (i == 100 || i == 999)
            ticks_live[i > 100] = (int)test_live();
    }
}
static const tornado_handler_class ticks_class = {.get = get_ticks};

TEST(transform_gzip_needs_no_more_memory_for_a_long_answer_than_for_a_short_one)
{
    answer a = ask(&ticks_class, &compressing, "GET", ACCEPT);
    CHECK_HEADER(a, "Content-Encoding", "gzip");
    if (ticks_live[1] > ticks_live[0] + 8)
        FAIL("%d blocks in the middle, %d at the end", ticks_live[0], ticks_live[1]);
}

/* Sends its first half, waits, and sends the second. */
static tornado_future *second_half;

static void get_halves(tornado_handler *self)
{
    get_tens(self);
    tornado_await(tornado_flush(self));
    tornado_await(tornado_future_retain(second_half));
    get_tens(self);
}
static const tornado_handler_class halves_class = {.get = get_halves};

TEST(transform_gzip_answers_that_are_under_way_at_once_do_not_meet)
{
    static const char slow[] = "GET /halves HTTP/1.1\r\nHost: a\r\n" ACCEPT "\r\n";
    static const char quick[] = "GET / HTTP/1.1\r\nHost: a\r\n" ACCEPT "\r\n";
    tornado_rule rules[] = {{.path = "/", .handler = &tens_class}, {.path = "/halves", .handler = &halves_class}, {0}};
    tornado_application *app = tornado_application_new(rules, &compressing);
    tornado_httpserver *server =
        tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(server != NULL);
    client clients[3];
    answer a;
    second_half = tornado_future_new();
    for (int i = 0; i < 3; i++)
        clients[i] = client_open(tornado_httpserver_port(server));
    for (int i = 0; i < 2; i++) {
        client_send(&clients[i], slow);
        while (!strstr(clients[i].data, "\r\n\r\n"))
            CHECK(client_more(&clients[i]));
    }
    for (int i = 0; i < 3; i++) {
        a = client_ask(&clients[2], quick);
        check_tens(&a, 300);
    }
    client_close(&clients[1]); /* one of them leaves */
    loop_turns(2);
    tornado_future_set_result(second_half, NULL, NULL);
    CHECK(client_answer(&clients[0], &a));
    check_tens(&a, 600);
    for (int i = 0; i < 3; i++) { /* now they have the same compressor, one after the other */
        a = client_ask(&clients[i == 1 ? 0 : 2], quick);
        check_tens(&a, 300);
    }
    tornado_future_release(second_half);
    client_close(&clients[0]);
    client_close(&clients[2]);
    while (tornado_ioloop_coroutines(tornado_ioloop_current()) > 0)
        loop_turns(1);
    tornado_application_free(app);
}

static void get_error(tornado_handler *self)
{
    get_tens(self);
    tornado_set_cookie(self, "name", "value", NULL);
    tornado_raise_http_error(418, "x");
}

static void write_long_error(tornado_handler *self, int status, const tornado_error *error)
{
    (void)status;
    (void)error;
    get_tens(self);
}
static const tornado_handler_class error_class = {.get = get_error},
                                   long_error_class = {.get = get_error, .write_error = write_long_error};

TEST(transform_gzip_error_pages_too)
{
    log_keep();
    answer a = ask(&error_class, &compressing, "GET", ACCEPT);
    CHECK_INT(a.status, 418);
    CHECK_HEADER(a, "Content-Encoding", "");
    CHECK_HEADER(a, "Vary", "Accept-Encoding");
    a = ask(&long_error_class, &compressing, "GET", ACCEPT);
    CHECK_INT(a.status, 418);
    check_tens(&a, 300);
    CHECK_HEADER(a, "Set-Cookie", "name=value; Path=/");
}

/*----------------------------------------------------------------------------
 * The program's own.
 *----------------------------------------------------------------------------*/

typedef struct count {
    int chunks;
    char text[100];
} count;

static int released;

/* Puts in front of each chunk which one it is. */
static tornado_bytes number_chunk(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    count *c = state;
    (void)self;
    int len = snprintf(c->text, sizeof c->text, "[%d%s]%.*s", c->chunks++, finishing ? ", last" : "", (int)chunk.len,
                       chunk.data);
    return (tornado_bytes){c->text, (size_t)len};
}

static tornado_bytes number_first(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    CHECK_STR(tornado_response_header(self, "content-type"), "text/html; charset=UTF-8");
    CHECK(tornado_response_header(self, "None") == NULL);
    tornado_set_header(self, "X-Numbered", "yes");
    tornado_set_status(self, 203);
    return number_chunk(self, state, chunk, finishing);
}

static void number_release(void *state)
{
    released += ((count *)state)->chunks;
}

/* Cuts the first byte off each chunk. */
static tornado_bytes cut(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    (void)self;
    (void)state;
    (void)finishing;
    return chunk.len ? (tornado_bytes){chunk.data + 1, chunk.len - 1} : chunk;
}

static const tornado_output_transform number = {.state_size = sizeof(count), .transform_first_chunk = number_first,
                                                .transform_chunk = number_chunk, .release = number_release},
                                      cutter = {.transform_first_chunk = cut, .transform_chunk = cut};

static void get_two_chunks(tornado_handler *self)
{
    tornado_write(self, "one");
    tornado_future_release(tornado_flush(self));
    tornado_write(self, "two");
}
static const tornado_handler_class two_chunks_class = {.get = get_two_chunks};

TEST(transform_of_the_program_sees_each_chunk)
{
    const tornado_output_transform *list[] = {&number, NULL};
    answer a = ask(&two_chunks_class, &(tornado_settings){.transforms = list}, "GET", "");
    CHECK_INT(a.status, 203);
    CHECK_HEADER(a, "X-Numbered", "yes");
    CHECK_STR(a.body.data, "[0]one[1, last]two");
    CHECK_INT(released, 2);
}

TEST(transform_works_on_what_the_one_before_made)
{
    const tornado_output_transform *list[] = {&cutter, &number, NULL};
    answer a = ask(&two_chunks_class, &(tornado_settings){.transforms = list}, "GET", "");
    CHECK_STR(a.body.data, "[0]ne[1, last]wo");
    const tornado_output_transform *other[] = {&number, &cutter, NULL};
    a = ask(&two_chunks_class, &(tornado_settings){.transforms = other}, "GET", "");
    CHECK_STR(a.body.data, "0]one1, last]two");
}

TEST(transform_may_be_added_to_an_application)
{
    int port;
    tornado_application *app = serve(&two_chunks_class, NULL, &port);
    CHECK(tornado_application_add_transform(app, &number));
    answer a = ask_once(port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    CHECK_STR(a.body.data, "[0]one[1, last]two");
    tornado_application_free(app);
}

/* Puts the same in place of each chunk: memory that cannot be written to. */
static tornado_bytes say_constant(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    (void)self;
    (void)state;
    (void)chunk;
    (void)finishing;
    return (tornado_bytes){"constant", 8};
}

static const tornado_output_transform constant = {.transform_first_chunk = say_constant,
                                                  .transform_chunk = say_constant};

static void get_nothing_twice(tornado_handler *self)
{
    tornado_future_release(tornado_flush(self));
    tornado_future_release(tornado_flush(self));
}

TEST(transform_may_give_memory_that_cannot_be_written_to)
{
    static const tornado_handler_class nothing_class = {.get = get_nothing_twice};
    const tornado_output_transform *list[] = {&constant, &cutter, NULL}, *alone[] = {&constant, NULL};
    answer a = ask(&two_chunks_class, &(tornado_settings){.transforms = list}, "GET", "");
    CHECK_STR(a.body.data, "onstantonstant");
    a = ask(&nothing_class, &(tornado_settings){.transforms = alone}, "GET", "");
    CHECK_STR(a.body.data, "constantconstantconstant");
}

/* Tells in a header what it was asked about; the body and its headers are there still. */
static void tell_not_modified(tornado_handler *self, void *state, tornado_bytes chunk)
{
    (void)state;
    CHECK_STR(tornado_response_header(self, "Content-Type"), "text/html; charset=UTF-8");
    CHECK_INT(tornado_get_status(self), 200);
    tornado_set_header(self, "Etag", tornado_format(self, "\"%.3s, %zu\"", chunk.data, chunk.len));
}

static tornado_bytes pass(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    (void)self;
    (void)state;
    (void)finishing;
    return chunk;
}

TEST(transform_that_is_asked_before_a_304_may_change_its_etag)
{
    static const tornado_output_transform telling = {.transform_first_chunk = pass, .transform_chunk = pass,
                                                     .transform_not_modified = tell_not_modified};
    const tornado_output_transform *list[] = {&telling, NULL};
    answer a = ask(&tens_class, &(tornado_settings){.transforms = list}, "GET", "If-None-Match: *\r\n");
    CHECK_INT(a.status, 304);
    CHECK_HEADER(a, "Etag", "\"012, 3000\"");
    CHECK_HEADER(a, "Content-Type", "");
    a = ask(&tens_class, &(tornado_settings){.transforms = list}, "GET", "If-None-Match: \"other\"\r\n");
    CHECK_INT(a.status, 200);
    CHECK(head_value(a.head, "Etag")[1] != '0' || strlen(head_value(a.head, "Etag")) > 12);
}

/* One that fails at the first chunk of all but error pages, and one that sends by itself. */
static tornado_bytes fail_once(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    (void)state;
    (void)finishing;
    if (tornado_get_status(self) == 200)
        tornado_raise_http_error(500, "the transform fails");
    return chunk;
}

static tornado_bytes send_itself(tornado_handler *self, void *state, tornado_bytes chunk, bool finishing)
{
    (void)state;
    (void)finishing;
    if (tornado_get_status(self) == 200)
        tornado_finish(self);
    return chunk;
}

static void flush_now(void *self)
{
    tornado_future_release(tornado_flush(self));
}

static void get_in_spite(tornado_handler *self)
{
    tornado_write(self, "one");
    CHECK(tornado_try(flush_now, self) != NULL);
    tornado_writef(self, "%01000d", 0);
    for (int i = 0; i < 1000; i++)
        tornado_write(self, "behind what failed");
}

/* What the first one made stands in the body's place then. */
TEST(transform_that_fails_behind_another_leaves_a_body_that_can_be_written_to)
{
    static const tornado_handler_class cls = {.get = get_in_spite};
    static const tornado_output_transform failing = {.transform_first_chunk = fail_once, .transform_chunk = cut};
    const tornado_output_transform *list[] = {&constant, &failing, NULL};
    log_keep();
    answer a = ask(&cls, &(tornado_settings){.transforms = list}, "GET", "");
    CHECK_INT(a.status, 500);
    CHECK_STR(a.body.data, "constant");
}

TEST(transform_that_fails_makes_the_answer_an_error_page)
{
    static const tornado_output_transform failing = {.transform_first_chunk = fail_once, .transform_chunk = cut},
                                          sending = {.transform_first_chunk = send_itself, .transform_chunk = cut};
    const tornado_output_transform *list[] = {&failing, NULL}, *other[] = {&sending, NULL};
    log_keep();
    answer a = ask(&tens_class, &(tornado_settings){.transforms = list}, "GET", "");
    CHECK_INT(a.status, 500);
    CHECK(logged("the transform fails"));
    a = ask(&tens_class, &(tornado_settings){.transforms = other}, "GET", "");
    CHECK_INT(a.status, 500);
    CHECK(logged("a transform cannot send anything itself"));
}
