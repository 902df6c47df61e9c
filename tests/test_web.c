/* The request handler: its life, its output, its errors, ETags, the access log, and clients that leave. Each test
   serves one class at "/", asks, and looks at the answer, the trace and the log. */
#include "http_client.h"
#include "runtime.h"

#define GET(path)  "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"
#define HEAD(path) "HEAD " path " HTTP/1.1\r\nHost: a\r\n\r\n"
#define POST(path) "POST " path " HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"

typedef struct site {
    tornado_application *app;
    tornado_httpserver *server;
    int port;
} site;

static site serve_rules(const tornado_rule *rules, const tornado_settings *settings)
{
    site s;
    s.app = tornado_application_new(rules, settings);
    CHECK(s.app != NULL);
    s.server = tornado_application_listen(s.app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(s.server != NULL);
    s.port = tornado_httpserver_port(s.server);
    return s;
}

static site serve(const tornado_handler_class *cls, const tornado_settings *settings)
{
    return serve_rules((tornado_rule[]){{.path = "/", .handler = cls}, {0}}, settings);
}

/* Runs the loop until an expression is true. */
#define UNTIL(expression)                                                                                          \
    while (!(expression))                                                                                          \
    loop_turns(1)

/* Runs the loop until no handler runs any more. */
static void settle(void)
{
    loop_turns(1);
    UNTIL(tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
}

/* Serves a class for one request. */
static answer ask_with(const tornado_handler_class *cls, const tornado_settings *settings, const char *request)
{
    site s = serve(cls, settings);
    answer a = ask_once(s.port, request);
    settle();
    tornado_application_free(s.app);
    return a;
}

static answer ask(const tornado_handler_class *cls, const char *request)
{
    return ask_with(cls, NULL, request);
}

/* The page of an error, as it is without write_error. */
#define PAGE(text) "<html><title>" text "</title><body>" text "</body></html>"

static void check_body(int line, answer a, const char *text)
{
    test_check_mem(__FILE__, line, "the body", a.body.data, a.body.len, text, strlen(text));
}
#define CHECK_BODY(answer, text) check_body(__LINE__, answer, text)

/* Whether an answer begins with this status and reason. */
static bool is_status(const answer *a, const char *status_line)
{
    size_t len = strlen(status_line);
    return strncmp(a->head + 9, status_line, len) == 0 && memcmp(a->head + 9 + len, "\r\n", 2) == 0;
}

/* How many headers of a name, in lower or mixed case, a head has. */
static int head_count(const char *head, const char *name)
{
    int count = 0;
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        count += strncasecmp(line + 2, name, strlen(name)) == 0 && line[2 + strlen(name)] == ':';
    return count;
}

/* The line of the kept log that has a text in it, or "". */
static const char *log_line(const char *text)
{
    static char line[4096];
    const char *at = strstr(log_text, text), *start = at;
    while (at && start > log_text && start[-1] != '\n')
        start--;
    snprintf(line, sizeof line, "%.*s", at ? (int)strcspn(start, "\n") : 0, at ? start : "");
    return line;
}

/* Handlers wait here until a test lets them go on. */
static tornado_future *gate;

static void gate_wait(void)
{
    tornado_await(tornado_future_retain(gate));
}

static void gate_open(void)
{
    CHECK(tornado_future_set_result(gate, NULL, NULL));
    tornado_future_release(gate);
}

static void hello_get(tornado_handler *self)
{
    tornado_write(self, "hello");
}

static const tornado_handler_class hello_class = {.get = hello_get};

/*----------------------------------------------------------------------------
 * The life of a request.
 *----------------------------------------------------------------------------*/

/* Which step raises or finishes; the others only wait. */
static const char *raise_in, *finish_in;

static void step(tornado_handler *self, const char *name)
{
    note("<");
    note((void *)(uintptr_t)name);
    tornado_await(tornado_sleep(0.001));
    if (raise_in && strcmp(raise_in, name) == 0)
        tornado_raise(TORNADO_ERR_PARSE, "secret of %s", name);
    if (finish_in && strcmp(finish_in, name) == 0)
        tornado_finish(self);
    note(">");
}

#define STEP(name)                                                                                                 \
    static void step_##name(tornado_handler *self)                                                                 \
    {                                                                                                              \
        step(self, #name);                                                                                         \
    }
STEP(set_default_headers)
STEP(initialize)
STEP(prepare)
STEP(get)
STEP(head)
STEP(post)
STEP(delete)
STEP(patch)
STEP(put)
STEP(options)
STEP(on_finish)
STEP(on_connection_close)

static const tornado_handler_class step_class;

static const char *step_compute_etag(tornado_handler *self)
{
    step(self, "compute_etag");
    return NULL;
}

static void step_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    step(self, "write_error");
    tornado_super(self, &step_class)->write_error(self, status, error);
}

static void step_log_exception(tornado_handler *self, const tornado_error *error)
{
    step(self, "log_exception");
    tornado_super(self, &step_class)->log_exception(self, error);
}

static const tornado_handler_class step_class = {
    .set_default_headers = step_set_default_headers, .initialize = step_initialize, .prepare = step_prepare,
    .get = step_get, .head = step_head, .post = step_post, .delete_ = step_delete, .patch = step_patch,
    .put = step_put, .options = step_options, .on_finish = step_on_finish,
    .on_connection_close = step_on_connection_close, .write_error = step_write_error,
    .log_exception = step_log_exception, .compute_etag = step_compute_etag};

#define BEGINNING "<set_default_headers><initialize><prepare>"
#define FAILED    "<log_exception><set_default_headers><write_error><on_finish>"

TEST(web_a_request_runs_each_function_once_and_in_order_and_each_may_wait)
{
    static const struct {
        const char *method, *verb;
    } rows[] = {{"GET", "<get><compute_etag>"}, {"HEAD", "<head><compute_etag>"}, {"POST", "<post>"},
                {"DELETE", "<delete>"}, {"PATCH", "<patch>"}, {"PUT", "<put>"}, {"OPTIONS", "<options>"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[100], want[300];
        snprintf(request, sizeof request, "%s / HTTP/1.1\r\nHost: a\r\n\r\n", rows[i].method);
        snprintf(want, sizeof want, BEGINNING "%s<on_finish>", rows[i].verb);
        CHECK_INT(ask(&step_class, request).status, 200);
        CHECK_STR(traced(), want);
    }
}

TEST(web_prepare_that_finishes_skips_the_verb)
{
    finish_in = "prepare";
    CHECK_INT(ask(&step_class, POST("/")).status, 200);
    CHECK_STR(traced(), "<set_default_headers><initialize><prepare<on_finish>>");
}

TEST(web_initialize_that_finishes_skips_the_verb)
{
    finish_in = "initialize";
    CHECK_INT(ask(&step_class, POST("/")).status, 200);
    CHECK_STR(traced(), "<set_default_headers><initialize<on_finish>><prepare>");
}

TEST(web_a_raise_in_any_function_is_logged_and_answered_500)
{
    static const struct {
        const char *in, *trace;
    } rows[] = {{"initialize", "<set_default_headers><initialize" FAILED},
                {"prepare", "<set_default_headers><initialize><prepare" FAILED},
                {"get", BEGINNING "<get" FAILED},
                {"compute_etag", BEGINNING "<get><compute_etag" FAILED}};
    log_keep();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char secret[64];
        site s = serve(&step_class, NULL);
        client c = client_open(s.port);
        raise_in = rows[i].in;
        snprintf(secret, sizeof secret, "secret of %s", raise_in);
        answer a = client_ask(&c, GET("/"));
        CHECK_INT(a.status, 500);
        CHECK_BODY(a, PAGE("500: Internal Server Error"));
        settle();
        CHECK_STR(traced(), rows[i].trace);
        CHECK_INT(logged(secret), 1);
        CHECK(strncmp(log_line(secret), "[E ", 3) == 0);
        CHECK(strstr(log_line(secret), "GET / (127.0.0.1)") != NULL);
        raise_in = NULL;
        CHECK_INT(client_ask(&c, GET("/")).status, 200); /* the connection goes on */
        settle();
        traced();
        client_close(&c);
        tornado_application_free(s.app);
    }
}

/* Though it raises again when the headers are set anew for the page. */
TEST(web_a_raise_in_set_default_headers_is_logged_once_and_answered_500)
{
    site s = serve(&step_class, NULL);
    client c = client_open(s.port);
    log_keep();
    raise_in = "set_default_headers";
    answer a = client_ask(&c, GET("/"));
    CHECK_INT(a.status, 500);
    CHECK_BODY(a, PAGE("500: Internal Server Error"));
    settle();
    CHECK_STR(traced(), "<set_default_headers<log_exception><set_default_headers<write_error><on_finish>");
    CHECK_INT(logged("secret of set_default_headers"), 1);
    raise_in = NULL;
    CHECK_INT(client_ask(&c, GET("/")).status, 200);
    settle();
    client_close(&c);
    tornado_application_free(s.app);
}

static int default_headers_calls;

static void default_headers_twice(tornado_handler *self)
{
    (void)self;
    if (++default_headers_calls % 2 == 0)
        tornado_raise(TORNADO_ERR_LIMIT, "not again");
}

static void default_headers_finish(tornado_handler *self)
{
    if (++default_headers_calls % 2 == 0)
        tornado_finish(self);
}

static void raising_post(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_error(418, "first");
}

TEST(web_set_default_headers_may_fail_or_finish_when_an_error_calls_it)
{
    static const tornado_handler_class raises = {.set_default_headers = default_headers_twice, .post = raising_post},
                                       finishes = {.set_default_headers = default_headers_finish,
                                                   .post = raising_post};
    log_keep();
    CHECK_INT(ask(&raises, POST("/")).status, 418);
    CHECK_INT(logged("first"), 1);
    CHECK_INT(logged("Uncaught exception in set_default_headers"), 1);
    log_keep();
    CHECK_INT(ask(&finishes, POST("/")).status, 200);
    CHECK_INT(logged("\n"), 2); /* the message and the access log */
}

static const char *raising_decode(tornado_handler *self, tornado_bytes value, const char *name)
{
    (void)self;
    (void)value;
    tornado_raise(TORNADO_ERR_PARSE, "secret of decoding %s", name ? name : "a path");
}

static void decoding_get(tornado_handler *self)
{
    tornado_write(self, tornado_get_argument(self, "a", "none"));
}

TEST(web_a_raise_in_decode_argument_is_logged_and_answered_500)
{
    static const tornado_handler_class cls = {.get = decoding_get, .decode_argument = raising_decode};
    site s = serve_rules((tornado_rule[]){{.path = "/", .handler = &cls}, {.path = "/p/(.*)", .handler = &cls}, {0}},
                         NULL);
    client c = client_open(s.port);
    log_keep();
    CHECK_INT(client_ask(&c, GET("/p/x")).status, 500);
    CHECK_INT(logged("secret of decoding a path"), 1);
    CHECK_INT(client_ask(&c, GET("/?a=1")).status, 500);
    CHECK_INT(logged("secret of decoding a"), 2);
    CHECK_BODY(client_ask(&c, GET("/")), "none");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_a_raise_in_on_finish_is_logged_and_the_answer_stays)
{
    site s = serve(&step_class, NULL);
    client c = client_open(s.port);
    log_keep();
    raise_in = "on_finish";
    for (int i = 0; i < 2; i++)
        CHECK_INT(client_ask(&c, POST("/")).status, 200);
    settle();
    CHECK_INT(logged("secret of on_finish"), 2);
    CHECK_INT(logged("200 POST /"), 2);
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_a_raise_in_log_exception_is_logged_and_the_page_is_sent)
{
    site s = serve(&step_class, NULL);
    log_keep();
    raise_in = "log_exception";
    CHECK_INT(ask_once(s.port, "BREW / HTTP/1.1\r\nHost: a\r\n\r\n").status, 405);
    settle();
    CHECK_STR(traced(), "<set_default_headers><initialize>"
                        "<log_exception<set_default_headers><write_error><on_finish>");
    CHECK_INT(logged("secret of log_exception"), 1);
    tornado_application_free(s.app);
}

static void gated_on_finish(tornado_handler *self)
{
    (void)self;
    note("finish ");
    gate_wait();
    note("gone ");
}

TEST(web_the_answer_and_the_next_request_do_not_wait_for_on_finish)
{
    static const tornado_handler_class cls = {.get = hello_get, .on_finish = gated_on_finish};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    gate = tornado_future_new();
    for (int i = 0; i < 3; i++)
        CHECK_BODY(client_ask(&c, GET("/")), "hello");
    CHECK_STR(traced(), "finish finish finish ");
    gate_open();
    settle();
    CHECK_STR(traced(), "gone gone gone ");
    client_close(&c);
    tornado_application_free(s.app);
}

static void write_in_on_finish(tornado_handler *self)
{
    tornado_write(self, "too late");
}

TEST(web_on_finish_may_not_write)
{
    static const tornado_handler_class cls = {.get = hello_get, .on_finish = write_in_on_finish};
    log_keep();
    CHECK_BODY(ask(&cls, GET("/")), "hello");
    CHECK_INT(logged("after finish()"), 1);
}

/*----------------------------------------------------------------------------
 * Classes.
 *----------------------------------------------------------------------------*/

static void base_prepare(tornado_handler *self)
{
    (void)self;
    note("base ");
}

static const tornado_handler_class base_class, extending_class, again_class;

static void extending_prepare(tornado_handler *self)
{
    note("before ");
    tornado_super(self, &extending_class)->prepare(self);
    note("after ");
}

static void again_prepare(tornado_handler *self)
{
    note("again ");
    tornado_super(self, &again_class)->prepare(self);
    tornado_super(self, &base_class)->prepare(self); /* no class of ours: does nothing */
}

static void named_get(tornado_handler *self)
{
    tornado_write(self, self->cls->name);
}

static const tornado_handler_class base_class = {.name = "base", .prepare = base_prepare, .get = named_get};
static const tornado_handler_class extending_class = {.parent = &base_class, .prepare = extending_prepare};
static const tornado_handler_class between_class = {.parent = &extending_class, .name = "between"};
static const tornado_handler_class again_class = {.parent = &between_class, .prepare = again_prepare};

TEST(web_a_class_inherits_what_it_leaves_out_and_extends_what_it_overrides)
{
    static const tornado_handler_class child_class = {.parent = &again_class, .name = "child"};
    static const struct {
        const tornado_handler_class *cls;
        const char *name, *trace;
    } rows[] = {{&base_class, "base", "base "}, {&extending_class, "base", "before base after "},
                {&between_class, "between", "before base after "},
                {&again_class, "between", "again before base after "},
                {&child_class, "child", "again before base after "}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK_BODY(ask(rows[i].cls, GET("/")), rows[i].name);
        CHECK_STR(traced(), rows[i].trace);
    }
}

static void super_get(tornado_handler *self)
{
    const tornado_handler_class *top = tornado_super(self, &base_class);
    top->initialize(self);
    top->on_finish(self);
    top->on_connection_close(self);
    top->set_default_headers(self);
    CHECK(tornado_super(self, &hello_class)->prepare != NULL); /* a class that is not above this one */
    CHECK(top->parent->compute_etag(self) != NULL);
    top->log_exception(self, &(tornado_error){.code = TORNADO_ERR_HTTP, .http_status = 409, .message = "logged by the default"});
    top->get(self);
}

TEST(web_above_all_classes_is_tornados_own)
{
    static const tornado_handler_class cls = {.parent = &base_class, .get = super_get};
    log_keep();
    CHECK_INT(ask(&cls, GET("/")).status, 405);
    CHECK_INT(logged("409 GET / (127.0.0.1): logged by the default"), 1);
}

typedef struct counting_handler {
    tornado_handler base;
    const char *greeting;
    char zeros[5000];
    int calls;
} counting_handler;

static void counting_initialize(tornado_handler *self)
{
    counting_handler *counting = (counting_handler *)self;
    for (size_t i = 0; i < sizeof counting->zeros; i++)
        CHECK(counting->zeros[i] == 0);
    CHECK(counting->calls++ == 0 && counting->greeting == NULL);
    memset(counting->zeros, 'x', sizeof counting->zeros);
    counting->greeting = self->data;
}

static void counting_get(tornado_handler *self)
{
    counting_handler *counting = (counting_handler *)self;
    tornado_await(tornado_moment());
    tornado_writef(self, "%s %d", counting->greeting, ++counting->calls);
}

static const tornado_handler_class counting_class = {
    .instance_size = sizeof(counting_handler), .initialize = counting_initialize, .get = counting_get};

typedef struct aligned_handler {
    tornado_handler base;
    max_align_t strict;
} aligned_handler;

static void aligned_get(tornado_handler *self)
{
    tornado_writef(self, "%zu", (size_t)((uintptr_t)self % _Alignof(aligned_handler)));
}

TEST(web_an_instance_is_aligned_for_whatever_is_in_it)
{
    static const tornado_handler_class cls = {.instance_size = sizeof(aligned_handler), .get = aligned_get};
    CHECK_BODY(ask(&cls, GET("/")), "0");
}

TEST(web_each_request_has_an_instance_of_its_own_with_the_data_of_its_rule)
{
    static const tornado_handler_class child = {.parent = &counting_class}; /* has the parent's size */
    static char hello[] = "hello", bye[] = "bye";
    site s = serve_rules((tornado_rule[]){{.path = "/", .handler = &counting_class, .data = hello},
                                          {.path = "/bye", .handler = &child, .data = bye}, {0}}, NULL);
    client c = client_open(s.port);
    for (int i = 0; i < 3; i++) {
        CHECK_BODY(client_ask(&c, GET("/")), "hello 2");
        CHECK_BODY(client_ask(&c, GET("/bye")), "bye 2");
    }
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_classes_and_names_are_copied)
{
    tornado_handler_class *parent = calloc(1, sizeof *parent), *cls = calloc(1, sizeof *cls);
    char *name = strdup("named");
    CHECK(parent && cls && name);
    parent->get = named_get;
    parent->name = name;
    cls->parent = parent;
    site s = serve(cls, NULL);
    memset(parent, 0xff, sizeof *parent);
    memset(cls, 0xff, sizeof *cls);
    memset(name, '?', 5);
    free(parent);
    free(cls);
    free(name);
    CHECK_BODY(ask_once(s.port, GET("/")), "named");
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Which verb.
 *----------------------------------------------------------------------------*/

TEST(web_a_verb_that_a_class_does_not_have_is_405_and_says_what_is_allowed)
{
    static const tornado_handler_class none = {.name = "none"}, get = {.get = hello_get};
    static const tornado_handler_class both = {.parent = &get, .post = hello_get};
    static const tornado_handler_class all = {
        .get = hello_get, .head = hello_get, .post = hello_get, .put = hello_get, .delete_ = hello_get,
        .patch = hello_get, .options = hello_get};
    static const struct {
        const tornado_handler_class *cls;
        const char *method, *allow;
    } rows[] = {{&get, "POST", "GET"}, {&get, "HEAD", "GET"}, {&get, "OPTIONS", "GET"}, {&get, "DELETE", "GET"},
                {&both, "PUT", "GET, POST"}, {&both, "PATCH", "GET, POST"}, {&both, "BREW", "GET, POST"},
                {&both, "get", "GET, POST"}, {&both, "GETGETGET", "GET, POST"}, {&none, "GET", ""},
                {&all, "BREW", "GET, HEAD, POST, DELETE, PATCH, PUT, OPTIONS"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[100];
        snprintf(request, sizeof request, "%s / HTTP/1.1\r\nHost: a\r\n\r\n", rows[i].method);
        answer a = ask(rows[i].cls, request);
        CHECK_INT(a.status, 405);
        CHECK_STR(head_value(a.head, "Allow"), rows[i].allow);
        if (strcmp(rows[i].method, "HEAD") != 0)
            CHECK_BODY(a, PAGE("405: Method Not Allowed"));
    }
}

TEST(web_prepare_runs_before_a_verb_is_refused_but_not_for_unknown_methods)
{
    CHECK_INT(ask(&base_class, POST("/")).status, 405);
    CHECK_STR(traced(), "base ");
    CHECK_INT(ask(&base_class, "BREW / HTTP/1.1\r\nHost: a\r\n\r\n").status, 405);
    CHECK_STR(traced(), "");
}

TEST(web_a_path_without_a_rule_is_404_for_every_verb)
{
    static const char *const requests[] = {GET("/x"), POST("/x"), HEAD("/x"), GET("/x?y=/"), GET("//")};
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        answer a = ask(&hello_class, requests[i]);
        CHECK_INT(a.status, 404);
        CHECK_INT(head_count(a.head, "Allow"), 0);
        CHECK_INT(head_count(a.head, "Etag"), 0);
        if (requests[i][0] != 'H')
            CHECK_BODY(a, PAGE("404: Not Found"));
    }
}

static void fallback_prepare(tornado_handler *self)
{
    tornado_set_status(self, 404);
    tornado_writef(self, "%s has no %s", (const char *)self->data, self->request->path);
    tornado_finish(self);
}

TEST(web_default_handler_class_serves_paths_without_a_rule)
{
    static const tornado_handler_class cls = {.prepare = fallback_prepare};
    static char data[] = "this site";
    tornado_settings settings = {.default_handler_class = &cls, .default_handler_data = data};
    answer a = ask_with(&hello_class, &settings, POST("/nothing"));
    CHECK_INT(a.status, 404);
    CHECK_BODY(a, "this site has no /nothing");
    CHECK_BODY(ask_with(&hello_class, &settings, GET("/")), "hello");
}

static void upper_get(tornado_handler *self)
{
    const char *value = tornado_get_header(self, "x-VALUE");
    tornado_writef(self, "%s", value ? value : "(none)");
}

TEST(web_get_header_joins_values_and_knows_no_case)
{
    static const tornado_handler_class cls = {.get = upper_get};
    CHECK_BODY(ask(&cls, GET("/")), "(none)");
    CHECK_BODY(ask(&cls, "GET / HTTP/1.1\r\nHost: a\r\nX-Value:\r\n\r\n"), "");
    CHECK_BODY(ask(&cls, "GET / HTTP/1.1\r\nHost: a\r\nX-Value: 1\r\nB: 2\r\nx-value: 3\r\n\r\n"), "1,3");
}

/*----------------------------------------------------------------------------
 * The body.
 *----------------------------------------------------------------------------*/

/* What emit_get answers with. */
static struct {
    size_t size, piece;
    bool flush, declare;
} emit;

static char emit_byte(size_t at)
{
    return (char)(at * 7 + (at >> 8) + (at >> 16));
}

static void emit_get(tornado_handler *self)
{
    char *piece = tornado_alloc(self, emit.piece + 1);
    if (emit.declare)
        tornado_set_header(self, "Content-Length", tornado_format(self, "%zu", emit.size));
    for (size_t at = 0; at < emit.size;) {
        size_t len = 0;
        for (; len < emit.piece && at < emit.size; at++)
            piece[len++] = emit_byte(at);
        tornado_write_bytes(self, (tornado_bytes){piece, len});
        if (emit.flush)
            tornado_await(tornado_flush(self));
    }
}

TEST(web_bodies_of_any_size_arrive_whole)
{
    static const tornado_handler_class cls = {.get = emit_get};
    static const size_t sizes[] = {0, 1, 255, 256, 257, 1023, 1024, 1025, 8191, 8192, 8193, 65535, 65536, 300000};
    static const char *const requests[] = {GET("/"), "GET / HTTP/1.0\r\n\r\n",
                                           "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"};
    site s = serve(&cls, NULL);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes * 3 * 4; i++) {
        const char *request = requests[i % 3];
        client c = client_open(s.port);
        emit.size = sizes[i / 12];
        emit.piece = i % 2 ? emit.size + 1 : emit.size / 5 + 1;
        emit.flush = i / 3 % 4 & 1;
        emit.declare = i / 3 % 4 & 2;
        for (int turn = 0; turn < 2; turn++) {
            answer a = client_ask(&c, request);
            bool chunked = head_count(a.head, "Transfer-Encoding");
            CHECK_INT(a.body.len, emit.size);
            for (size_t at = 0; at < emit.size; at++)
                if (a.body.data[at] != emit_byte(at))
                    FAIL("row %zu: byte %zu of %zu is wrong", i, at, emit.size);
            CHECK(!chunked || (emit.flush && !emit.declare && request == requests[0]));
            if (emit.declare || !emit.flush || !emit.size)
                CHECK_INT(strtoul(head_value(a.head, "Content-Length"), NULL, 10), emit.size);
            if (a.close) {
                CHECK(!client_more(&c));
                break;
            }
        }
        client_close(&c);
    }
    tornado_application_free(s.app);
}

static void formats_get(tornado_handler *self)
{
    static const char nul[] = {'a', 0, 'b'};
    tornado_write(self, "");
    tornado_write(self, "100% ");
    tornado_writef(self, "%d %s %05.1f%% ", 42, "x", 2.5);
    tornado_writef(self, "%s", "");
    tornado_writef(self, "%300d ", 7);
    tornado_write_bytes(self, (tornado_bytes){nul, 3});
    tornado_write_bytes(self, (tornado_bytes){NULL, 0});
    tornado_writef(self, "%c.", 0);
    char *text = tornado_format(self, "%s-%d", "made", 1);
    tornado_write(self, text);
}

TEST(web_write_takes_text_bytes_and_formats)
{
    static const tornado_handler_class cls = {.get = formats_get};
    char want[400];
    int len = snprintf(want, sizeof want, "100%% 42 x 002.5%% %300d a%cb%c.made-1", 7, 0, 0);
    answer a = ask(&cls, GET("/"));
    CHECK_MEM(a.body.data, a.body.len, want, (size_t)len);
    CHECK_STR(head_value(a.head, "Content-Type"), "text/html; charset=UTF-8");
}

/* Everything that may not be done after finish. */
static void op_write(void *self) { tornado_write(self, "x"); }
static void op_write_bytes(void *self) { tornado_write_bytes(self, (tornado_bytes){"x", 1}); }
static void op_writef(void *self) { tornado_writef(self, "%d", 1); }
static void op_write_json(void *self) { tornado_write_json(self, "{a:i}", 1); }
static void op_set_status(void *self) { tornado_set_status(self, 404); }
static void op_set_status_reason(void *self) { tornado_set_status_reason(self, 404, "Gone Fishing"); }
static void op_set_header(void *self) { tornado_set_header(self, "A", "b"); }
static void op_add_header(void *self) { tornado_add_header(self, "A", "b"); }
static void op_clear_header(void *self) { tornado_clear_header(self, "A"); }
static void op_flush(void *self) { tornado_future_release(tornado_flush(self)); }
static void op_finish(void *self) { tornado_finish(self); }
static void op_clear(void *self) { tornado_clear(self); }
static void op_send_error(void *self) { tornado_send_error(self, 500); }

static const tornado_callback all_output[] = {
    op_write, op_write_bytes, op_writef, op_write_json, op_set_status, op_set_status_reason, op_set_header,
    op_add_header, op_clear_header, op_flush, op_finish, op_clear, op_send_error};

static void late_get(tornado_handler *self)
{
    tornado_write(self, "in time");
    CHECK(!tornado_finished(self));
    tornado_finish(self);
    CHECK(tornado_finished(self));
    for (int waited = 0; waited < 2; waited++) {
        for (size_t i = 0; i < sizeof all_output / sizeof *all_output; i++)
            if (!is_error(tornado_try(all_output[i], self), TORNADO_ERR_STATE))
                FAIL("output function %zu after finish is no error", i);
        tornado_await(tornado_sleep(0.001));
    }
    CHECK_INT(tornado_get_status(self), 200);
    note("checked");
}

TEST(web_output_after_finish_is_an_error_and_finishing_twice_too)
{
    static const tornado_handler_class cls = {.get = late_get};
    log_keep();
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    for (int i = 0; i < 2; i++) {
        answer a = client_ask(&c, GET("/"));
        CHECK_INT(a.status, 200);
        CHECK_BODY(a, "in time");
        settle();
        CHECK_STR(traced(), "checked");
    }
    CHECK_INT(logged("[E "), 0);
    CHECK_INT(logged("200 GET /"), 2);
    client_close(&c);
    tornado_application_free(s.app);
}

static void finish_twice_get(tornado_handler *self)
{
    tornado_write(self, "once");
    tornado_finish(self);
    tornado_finish(self);
    note("not reached");
}

TEST(web_an_error_after_finish_is_logged_and_the_answer_stays)
{
    static const tornado_handler_class cls = {.get = finish_twice_get};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    log_keep();
    CHECK_BODY(client_ask(&c, GET("/")), "once");
    CHECK_BODY(client_ask(&c, GET("/")), "once");
    settle();
    CHECK_STR(traced(), "");
    CHECK_INT(logged("finish() called twice"), 2);
    CHECK_INT(logged("500 GET"), 0);
    client_close(&c);
    tornado_application_free(s.app);
}

static void clear_get(tornado_handler *self)
{
    tornado_set_status_reason(self, 201, "Mine");
    tornado_set_header(self, "X-Dropped", "1");
    tornado_set_header(self, "Content-Length", "1000");
    tornado_clear_header(self, "Server");
    tornado_write_json(self, "{a:i}", 1);
    tornado_clear(self);
    tornado_write(self, "new");
}

static void default_headers(tornado_handler *self)
{
    tornado_set_header(self, "X-Default", "always");
}

static void clear_only_get(tornado_handler *self)
{
    tornado_write(self, "dropped");
    tornado_clear(self);
    if (self->request->query[0])
        tornado_await(tornado_flush(self));
}

TEST(web_clear_may_be_the_last_call)
{
    static const tornado_handler_class cls = {.get = clear_only_get};
    CHECK_BODY(ask(&cls, GET("/")), "");
    CHECK_BODY(ask(&cls, GET("/?flush")), "");
}

TEST(web_clear_discards_what_was_written_and_set)
{
    static const tornado_handler_class cls = {.get = clear_get, .set_default_headers = default_headers};
    answer a = ask(&cls, GET("/"));
    CHECK(is_status(&a, "200 OK"));
    CHECK_BODY(a, "new");
    CHECK_STR(head_value(a.head, "X-Dropped"), NULL);
    CHECK_STR(head_value(a.head, "X-Default"), "always");
    CHECK_STR(head_value(a.head, "Content-Type"), "text/html; charset=UTF-8");
    CHECK_INT(head_count(a.head, "Server"), 1);
    CHECK_INT(head_count(a.head, "X-Default"), 1);
}

/*----------------------------------------------------------------------------
 * JSON.
 *----------------------------------------------------------------------------*/

static void json_get(tornado_handler *self)
{
    tornado_write_json(self,
                       "{text:s, html:s, none:s, n:n, yes:b, i:i, big:I, huge:U, f:f, tiny:f, list:[s, [], {}], "
                       "bytes:z, raw:j, s:i}",
                       "\"\\/\b\f\n\r\t\x01\x7f h\xc3\xa9 \xf0\x9f\x98\x80", "</script>", NULL, 1, -5,
                       INT64_MIN, UINT64_MAX, 0.1, 5e-324, "x", (tornado_bytes){"a\0b", 3}, "[1,  2]", "a key", 9);
}

TEST(web_write_json_is_what_python_reads_and_writes)
{
    static const tornado_handler_class cls = {.get = json_get};
    TEST_NEED("python3");
    answer a = ask(&cls, GET("/"));
    CHECK_INT(a.status, 200);
    CHECK_STR(head_value(a.head, "Content-Type"), "application/json; charset=UTF-8");
    CHECK(strstr(a.body.data, "</") == NULL);
    char *hex = malloc(a.body.len * 2 + 1);
    const test_output *out = test_run(
        "python3 - %s <<'END'\n"
        "import json, sys\n"
        "text = bytes.fromhex(sys.argv[1]).decode('ascii')\n"
        "value = json.loads(text)\n"
        "want = {'text': '\"\\\\/\\b\\f\\n\\r\\t\\x01\\x7f h\\xe9 \\U0001f600', 'html': '</script>',\n"
        "        'none': None, 'n': None, 'yes': True, 'i': -5, 'big': -2**63, 'huge': 2**64 - 1, 'f': 0.1,\n"
        "        'tiny': 5e-324, 'list': ['x', [], {}], 'bytes': 'a\\0b', 'raw': [1, 2], 'a key': 9}\n"
        "assert value == want, text\n"
        "assert list(value) == list(want), text\n"
        "assert json.dumps(want).replace('</', '<\\\\/').replace('[1, 2]', '[1,  2]') == text, text\n"
        "print('same')\n"
        "END\n", tornado_hex_encode(a.body.data, a.body.len, hex));
    CHECK_STR(out->text, "same\n");
    free(hex);
}

static void typed_before_get(tornado_handler *self)
{
    tornado_set_header(self, "Content-Type", "text/plain");
    tornado_write_json(self, "{a:i}", 1);
}

static void typed_after_get(tornado_handler *self)
{
    tornado_write_json(self, "{a:i}", 1);
    tornado_write(self, "\n");
    tornado_set_header(self, "content-type", "application/vnd.api+json");
}

static void untyped_get(tornado_handler *self)
{
    tornado_write_json(self, "{a:i}", 1);
    tornado_clear_header(self, "Content-Type");
}

TEST(web_write_json_sets_its_type_at_once_and_a_later_one_wins)
{
    static const tornado_handler_class before = {.get = typed_before_get}, after = {.get = typed_after_get};
    static const tornado_handler_class none = {.get = untyped_get};
    answer a = ask(&before, GET("/"));
    CHECK_STR(head_value(a.head, "Content-Type"), "application/json; charset=UTF-8");
    CHECK_INT(head_count(a.head, "Content-Type"), 1);
    a = ask(&none, GET("/"));
    CHECK_INT(head_count(a.head, "Content-Type"), 0);
    a = ask(&after, GET("/"));
    CHECK_BODY(a, "{\"a\": 1}\n");
    CHECK_STR(head_value(a.head, "Content-Type"), "application/vnd.api+json");
    CHECK_INT(head_count(a.head, "Content-Type"), 1);
}

static void spaced_get(tornado_handler *self)
{
    tornado_write_json(self, " \n{ a : i , b:[ ] } ", 1);
}

TEST(web_write_json_ignores_white_space_in_its_format)
{
    static const tornado_handler_class cls = {.get = spaced_get};
    CHECK_BODY(ask(&cls, GET("/")), "{\"a\": 1, \"b\": []}");
}

static void json_list(void *self) { tornado_write_json(self, "[i]", 1); }
static void json_text(void *self) { tornado_write_json(self, "s", "text"); }
static void json_open(void *self) { tornado_write_json(self, "{a:i", 1); }
static void json_more(void *self) { tornado_write_json(self, "{a:i}}", 1); }
static void json_empty(void *self) { tornado_write_json(self, "%s", ""); }
static void json_infinite(void *self) { tornado_write_json(self, "{a:i, b:f}", 1, 1e308 * 10); }

static void bad_json_get(tornado_handler *self)
{
    static const tornado_callback bad[] = {json_list, json_text, json_open, json_more, json_empty, json_infinite};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!is_error(tornado_try(bad[i], self), TORNADO_ERR_INVALID))
            FAIL("JSON %zu is not refused", i);
    tornado_write(self, "nothing of it");
}

TEST(web_write_json_refuses_lists_and_what_is_no_json)
{
    static const tornado_handler_class cls = {.get = bad_json_get};
    answer a = ask(&cls, GET("/"));
    CHECK_BODY(a, "nothing of it");
    CHECK_STR(head_value(a.head, "Content-Type"), "text/html; charset=UTF-8");
}

/*----------------------------------------------------------------------------
 * Status and headers.
 *----------------------------------------------------------------------------*/

static struct {
    int status;
    const char *reason;
} wanted;

static void set_wanted_status(void *arg)
{
    tornado_set_status_reason(arg, wanted.status, wanted.reason);
}

static void status_post(tornado_handler *self)
{
    if (wanted.reason)
        tornado_set_status_reason(self, wanted.status, wanted.reason);
    else
        tornado_set_status(self, wanted.status);
    CHECK_INT(tornado_get_status(self), wanted.status);
}

TEST(web_set_status_is_sent_with_its_reason)
{
    static const tornado_handler_class cls = {.post = status_post};
    static const struct {
        int status;
        const char *reason, *line;
    } rows[] = {{200, NULL, "200 OK"}, {201, NULL, "201 Created"}, {404, "Nothing Here", "404 Nothing Here"},
                {299, "Mine", "299 Mine"}, {999, "Last", "999 Last"}, {418, "I'm a <teapot>", "418 I'm a <teapot>"},
                {400, "a\r\nX: split", "400 Unknown"}, {400, "a\x7f", "400 Unknown"},
                {400, "h\xc3\xa9", "400 Unknown"}, {503, NULL, "503 Service Unavailable"},
                {204, NULL, "204 No Content"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        wanted.status = rows[i].status;
        wanted.reason = rows[i].reason;
        answer a = ask(&cls, POST("/"));
        if (!is_status(&a, rows[i].line))
            FAIL("not %s but %.40s", rows[i].line, a.head);
        CHECK_INT(head_count(a.head, "X"), 0);
    }
}

static void bad_status_get(tornado_handler *self)
{
    static const struct {
        int status;
        const char *reason;
    } rows[] = {{0, NULL}, {-200, NULL}, {99, "Low"}, {1000, "High"}, {418, NULL}, {299, NULL}, {999, NULL}};
    tornado_set_status(self, 202);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        wanted.status = rows[i].status;
        wanted.reason = rows[i].reason;
        if (!is_error(tornado_try(set_wanted_status, self), TORNADO_ERR_INVALID))
            FAIL("status %d is not refused", wanted.status);
        CHECK_INT(tornado_get_status(self), 202);
    }
}

TEST(web_set_status_refuses_what_is_no_status)
{
    static const tornado_handler_class cls = {.get = bad_status_get};
    answer a = ask(&cls, GET("/"));
    CHECK(is_status(&a, "202 Accepted"));
}

typedef struct header_try {
    tornado_handler *self;
    const char *name, *value;
    bool add;
} header_try;

static void try_header(void *arg)
{
    header_try *header = arg;
    (header->add ? tornado_add_header : tornado_set_header)(header->self, header->name, header->value);
}

static void bad_headers_get(tornado_handler *self)
{
    static const char *const rows[][2] = {
        {"", "x"}, {"X Y", "x"}, {"X:", "x"}, {"X\r\nY", "x"}, {"X\n", "x"}, {"X\t", "x"}, {"X\xc3\xa9", "x"},
        {"(X)", "x"}, {"X\x7f", "x"}, {"X", "a\r\nSet-Cookie: b"}, {"X", "a\n"}, {"X", "\r"}, {"X", "a\x01"},
        {"X", "a\x7f"}, {"X", "\x1b[31m"},
        {"Content-Length", "5\r\n"}, {"Content-Length", "-5"}, {"Content-Length", "+5"}, {"Content-Length", ""},
        {"Content-Length", "5,5"}, {"Content-Length", "99999999999999999999"}, {"Transfer-Encoding", "chunked"},
        {"Connection", "close\r\nX: y"}, {"Etag", "\"a\r\nX: y\""}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows * 2; i++) {
        header_try header = {self, rows[i / 2][0], rows[i / 2][1], i % 2};
        if (!is_error(tornado_try(try_header, &header), TORNADO_ERR_INVALID))
            FAIL("header %zu is not refused", i / 2);
    }
    tornado_set_header(self, "X-Good", "a\tb h\xc3\xa9");
    tornado_set_header(self, "!#$%&'*+-.^_`|~0aZ", "");
}

TEST(web_headers_that_would_split_the_answer_are_refused)
{
    static const tornado_handler_class cls = {.get = bad_headers_get};
    answer a = ask(&cls, GET("/"));
    CHECK_INT(a.status, 200);
    CHECK_STR(head_value(a.head, "X-Good"), "a\tb h\xc3\xa9");
    CHECK_STR(head_value(a.head, "!#$%&'*+-.^_`|~0aZ"), "");
    CHECK_STR(head_value(a.head, "X"), NULL);
    CHECK_INT(head_count(a.head, "Set-Cookie"), 0);
    CHECK_INT(head_count(a.head, "Content-Length"), 1);
    CHECK_STR(head_value(a.head, "Content-Length"), "0");
}

static void headers_get(tornado_handler *self)
{
    char name[] = "X-Copied", value[] = "copied";
    tornado_set_header(self, name, value);
    memset(name, '?', sizeof name - 1);
    memset(value, '?', sizeof value - 1);
    tornado_set_header(self, "x-one", "1");
    tornado_set_header(self, "X-ONE", "2");
    tornado_add_header(self, "X-Two", "1");
    tornado_add_header(self, "x-two", "2");
    tornado_set_header(self, "X-Three", "1");
    tornado_add_header(self, "X-Three", "2");
    tornado_set_header(self, "X-THREE", "3");
    tornado_add_header(self, "X-Four", "1");
    tornado_add_header(self, "X-Four", "2");
    tornado_clear_header(self, "x-FOUR");
    tornado_clear_header(self, "X-Not-There");
    tornado_set_header(self, "server", "mine");
    tornado_set_header(self, "DATE", "today");
    tornado_add_header(self, "Content-type", "text/plain");
    for (int i = 0; i < 50; i++)
        tornado_set_header(self, tornado_format(self, "X-Many-%d", i), "y");
}

TEST(web_headers_are_set_added_and_cleared_in_any_case)
{
    static const tornado_handler_class cls = {.get = headers_get};
    answer a = ask(&cls, GET("/"));
    CHECK_STR(head_value(a.head, "X-Copied"), "copied");
    CHECK_INT(head_count(a.head, "X-One"), 1);
    CHECK_STR(head_value(a.head, "X-One"), "2");
    CHECK_INT(head_count(a.head, "X-Two"), 2);
    CHECK(strstr(a.head, "X-Two: 1\r\n") < strstr(a.head, "x-two: 2\r\n"));
    CHECK_INT(head_count(a.head, "X-Three"), 1);
    CHECK_STR(head_value(a.head, "X-Three"), "3");
    CHECK_INT(head_count(a.head, "X-Four"), 0);
    CHECK_INT(head_count(a.head, "Server"), 1);
    CHECK_STR(head_value(a.head, "Server"), "mine");
    CHECK_INT(head_count(a.head, "Date"), 1);
    CHECK_STR(head_value(a.head, "Date"), "today");
    CHECK_INT(head_count(a.head, "Content-Type"), 1);
    CHECK_STR(head_value(a.head, "Content-Type"), "text/plain");
    CHECK_STR(head_value(a.head, "X-Many-0"), "y");
    CHECK_STR(head_value(a.head, "X-Many-49"), "y");
}

static void no_defaults_get(tornado_handler *self)
{
    tornado_clear_header(self, "Server");
    tornado_clear_header(self, "content-type");
    tornado_write(self, "bare");
}

TEST(web_default_headers_can_be_cleared)
{
    static const tornado_handler_class cls = {.get = no_defaults_get};
    answer a = ask(&cls, GET("/"));
    CHECK_BODY(a, "bare");
    CHECK_INT(head_count(a.head, "Server"), 0);
    CHECK_INT(head_count(a.head, "Content-Type"), 0);
    CHECK_INT(head_count(a.head, "Date"), 1);
}

/* What length_get says about five bytes. */
static const char *length_said[2];

static void length_get(tornado_handler *self)
{
    for (int i = 0; i < 2; i++)
        if (length_said[i])
            tornado_add_header(self, "Content-Length", length_said[i]);
    tornado_write(self, "12345");
}

TEST(web_a_content_length_that_is_set_is_sent_once)
{
    static const tornado_handler_class cls = {.get = length_get, .head = length_get};
    static const char *const rows[][2] = {{"5", NULL}, {"5", "5"}, {"7", "5"}, {"0005", NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        memcpy(length_said, rows[i], sizeof length_said);
        answer a = ask(&cls, GET("/"));
        CHECK_INT(a.status, 200);
        CHECK_INT(head_count(a.head, "Content-Length"), 1);
        CHECK_BODY(a, "12345");
    }
}

TEST(web_a_body_of_another_length_than_was_set_closes_the_connection)
{
    static const tornado_handler_class cls = {.get = length_get};
    static const char *const lengths[] = {"4", "6", "0", "1000000"};
    log_keep();
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        site s = serve(&cls, NULL);
        client c = client_open(s.port);
        length_said[0] = lengths[i];
        length_said[1] = NULL;
        client_send(&c, GET("/") GET("/"));
        while (client_more(&c))
            ;
        const char *second = c.len > 9 ? strstr(c.data + 9, "HTTP/1.1 ") : NULL;
        CHECK(second == NULL);
        settle();
        CHECK_INT(logged("Content-Length"), i + 1);
        client_close(&c);
        tornado_application_free(s.app);
    }
}

static void closing_get(tornado_handler *self)
{
    tornado_set_header(self, "Connection", "x, Close");
    tornado_write(self, "bye");
}

TEST(web_a_handler_can_close_the_connection)
{
    static const tornado_handler_class cls = {.get = closing_get};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    answer a = client_ask(&c, GET("/"));
    CHECK(a.close);
    CHECK_INT(head_count(a.head, "Connection"), 1);
    CHECK_BODY(a, "bye");
    CHECK(!client_more(&c));
    client_close(&c);
    tornado_application_free(s.app);
}

static void upgradable_get(tornado_handler *self)
{
    tornado_set_status(self, 426);
    tornado_set_header(self, "Upgrade", "echo");
    tornado_set_header(self, "Connection", "Upgrade");
}

TEST(web_a_handler_can_tell_what_to_upgrade_to)
{
    static const tornado_handler_class cls = {.get = upgradable_get};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    for (int i = 0; i < 2; i++) {
        answer a = client_ask(&c, GET("/"));
        CHECK_STR(head_value(a.head, "Connection"), "Upgrade");
        CHECK_STR(head_value(a.head, "Upgrade"), "echo");
        CHECK(!a.close);
    }
    client_close(&c);
    tornado_application_free(s.app);
}

static void bodiless_get(tornado_handler *self)
{
    tornado_set_status(self, atoi(self->request->query));
    tornado_set_header(self, "Content-Language", "en");
    tornado_set_header(self, "Content-Encoding", "br");
    tornado_set_header(self, "Last-Modified", "now");
    tornado_set_header(self, "Allow", "GET");
    tornado_set_header(self, "Etag", "\"x\"");
    tornado_set_header(self, "X-Kept", "1");
}

TEST(web_204_304_and_1xx_have_no_headers_that_describe_a_body)
{
    static const tornado_handler_class cls = {.get = bodiless_get};
    static const int statuses[] = {204, 304, 101};
    for (size_t i = 0; i < 3; i++) {
        char request[100];
        snprintf(request, sizeof request, "GET /?%d HTTP/1.1\r\nHost: a\r\n\r\n", statuses[i]);
        answer a = ask(&cls, request);
        CHECK_INT(a.status, statuses[i]);
        CHECK(!strstr(a.head, "\r\nContent-") && !strstr(a.head, "\r\nTransfer-"));
        CHECK(!strstr(a.head, "\r\nLast-Modified") && !strstr(a.head, "\r\nAllow"));
        CHECK_STR(head_value(a.head, "X-Kept"), "1");
        CHECK_STR(head_value(a.head, "Etag"), "\"x\"");
    }
}

static void sized_get(tornado_handler *self)
{
    for (int i = atoi(self->request->query); i > 0; i--)
        tornado_write(self, "0123456789");
}

/* Small ones are sent with the head, large ones behind it. */
TEST(web_an_answer_to_head_has_the_length_of_gets_and_no_body)
{
    static const tornado_handler_class cls = {.get = sized_get, .head = sized_get};
    static const char *const requests[][2] = {{GET("/?0"), HEAD("/?0")}, {GET("/?2"), HEAD("/?2")},
                                              {GET("/?5000"), HEAD("/?5000")}};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    for (size_t i = 0; i < 3; i++) {
        answer got = client_ask(&c, requests[i][0]), head = client_ask(&c, requests[i][1]);
        char length[20];
        snprintf(length, sizeof length, "%zu", got.body.len);
        CHECK_STR(head_value(head.head, "Content-Length"), length);
        char etag[100];
        snprintf(etag, sizeof etag, "%s", head_value(got.head, "Etag"));
        CHECK_STR(head_value(head.head, "Etag"), etag);
    }
    CHECK_INT(client_ask(&c, GET("/none")).status, 404); /* nothing of a body came in between */
    client_close(&c);
    tornado_application_free(s.app);
}

static void bodiful_get(tornado_handler *self)
{
    tornado_set_status(self, 204);
    tornado_write(self, "a body");
}

TEST(web_204_with_a_body_is_an_error)
{
    static const tornado_handler_class cls = {.get = bodiful_get};
    log_keep();
    CHECK_INT(ask(&cls, GET("/")).status, 500);
    CHECK_INT(logged("status 204"), 1);
}

/*----------------------------------------------------------------------------
 * Flush.
 *----------------------------------------------------------------------------*/

static void flush_get(tornado_handler *self)
{
    tornado_set_header(self, "X-Early", "1");
    tornado_write(self, "one ");
    tornado_await(tornado_flush(self));
    tornado_set_header(self, "X-Late", "1");
    tornado_write(self, "");
    tornado_await(tornado_flush(self)); /* nothing to send: must not look like the last chunk */
    gate_wait();
    tornado_write(self, "two ");
    tornado_await(tornado_flush(self));
    tornado_write(self, "three");
}

static const tornado_handler_class flush_class = {.get = flush_get, .head = flush_get};

TEST(web_flush_sends_the_headers_and_what_there_is)
{
    site s = serve(&flush_class, NULL);
    client c = client_open(s.port);
    answer a;
    gate = tornado_future_new();
    client_send(&c, GET("/"));
    while (!strstr(c.data, "one "))
        CHECK(client_more(&c));
    CHECK(strstr(c.data, "\r\n\r\n4\r\none \r\n") != NULL);
    CHECK(strstr(c.data, "\r\n0\r\n") == NULL);
    gate_open();
    CHECK(client_answer(&c, &a));
    CHECK_BODY(a, "one two three");
    CHECK_STR(head_value(a.head, "Transfer-Encoding"), "chunked");
    CHECK_STR(head_value(a.head, "Content-Length"), NULL);
    CHECK_STR(head_value(a.head, "Etag"), NULL);
    CHECK_STR(head_value(a.head, "X-Early"), "1");
    CHECK_STR(head_value(a.head, "X-Late"), NULL);
    client_close(&c);
    settle();
    tornado_application_free(s.app);
}

TEST(web_flush_to_a_client_of_http_1_0_ends_with_the_connection)
{
    static const char *const requests[] = {"GET / HTTP/1.0\r\n\r\n",
                                           "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"};
    for (int i = 0; i < 2; i++) {
        gate = tornado_future_resolved(NULL);
        answer a = ask(&flush_class, requests[i]);
        CHECK_BODY(a, "one two three");
        CHECK(a.close);
        CHECK_INT(head_count(a.head, "Transfer-Encoding"), 0);
        tornado_future_release(gate);
    }
}

TEST(web_flush_of_a_head_request_sends_the_headers_alone)
{
    site s = serve(&flush_class, NULL);
    client c = client_open(s.port);
    gate = tornado_future_resolved(NULL);
    for (int i = 0; i < 2; i++) {
        answer a = client_ask(&c, HEAD("/"));
        CHECK_INT(a.status, 200);
        CHECK_STR(head_value(a.head, "X-Early"), "1");
    }
    CHECK_BODY(client_ask(&c, GET("/")), "one two three"); /* nothing of a body came in between */
    client_close(&c);
    tornado_future_release(gate);
    tornado_application_free(s.app);
}

static void flush_many_get(tornado_handler *self)
{
    tornado_future *flushes[5];
    for (int i = 0; i < 5; i++) {
        tornado_writef(self, "%d", i);
        flushes[i] = tornado_flush(self);
    }
    tornado_finish(self);
    tornado_await(tornado_multi(flushes, 5));
    note("flushed");
}

TEST(web_flushes_that_nobody_waited_for_in_between_complete)
{
    static const tornado_handler_class cls = {.get = flush_many_get};
    CHECK_BODY(ask(&cls, GET("/")), "01234");
    CHECK_STR(traced(), "flushed");
}

static int flush_live[2];

static void flush_long_get(tornado_handler *self)
{
    for (int i = 0; i < 1500; i++) {
        tornado_scope scope;
        tornado_scope_enter(&scope);
        tornado_write(self, "0123456789");
        tornado_await(tornado_flush(self));
        tornado_scope_leave(&scope);
        if (i == 100 || i == 1499)
            flush_live[i > 100] = (int)test_live();
    }
}

TEST(web_a_long_answer_needs_no_more_memory_than_a_short_one)
{
    static const tornado_handler_class cls = {.get = flush_long_get};
    CHECK_INT(ask(&cls, GET("/")).body.len, 15000);
    if (flush_live[1] > flush_live[0] + 8)
        FAIL("%d blocks in the middle, %d at the end", flush_live[0], flush_live[1]);
}

static void flush_frames_get(tornado_handler *self)
{
    static const char frame[10000];
    for (int i = 0; i < 400; i++) {
        tornado_scope scope;
        tornado_scope_enter(&scope);
        tornado_write(self, "small");
        tornado_write_bytes(self, (tornado_bytes){frame, sizeof frame});
        tornado_await(tornado_flush(self));
        tornado_scope_leave(&scope);
        if (i == 50 || i == 399)
            flush_live[i > 50] = (int)test_live();
    }
}

/* To a client of HTTP/1.0, whose answer is not chunked, large pieces go by changing hands. */
TEST(web_a_long_answer_of_large_pieces_needs_no_more_memory_either)
{
    static const tornado_handler_class cls = {.get = flush_frames_get};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    flush_live[1] = 0;
    client_send(&c, "GET / HTTP/1.0\r\n\r\n");
    client_until_end(&c);
    client_close(&c);
    tornado_application_free(s.app);
    CHECK(flush_live[1] > 0);
    if (flush_live[1] > flush_live[0] + 8)
        FAIL("%d blocks in the middle, %d at the end", flush_live[0], flush_live[1]);
}

/*----------------------------------------------------------------------------
 * Errors.
 *----------------------------------------------------------------------------*/

static void deep(tornado_handler *self, int depth)
{
    static char names[10][3];
    if (self->request->method[0] != 'G') /* so that it is not taken for an endless recursion */
        return;
    names[depth][0] = (char)('0' + depth);
    names[depth][1] = ' ';
    tornado_defer(note, names[depth]);
    if (depth < 9)
        deep(self, depth + 1);
    else
        tornado_raise_http_error(404, "no file %s: %s", "<b>", "100% lost");
    tornado_write(self, "not reached");
}

static void deep_get(tornado_handler *self)
{
    tornado_write(self, "dropped");
    tornado_set_header(self, "X-Dropped", "1");
    deep(self, 0);
}

TEST(web_an_http_error_unwinds_from_deep_inside_and_is_a_page)
{
    static const tornado_handler_class cls = {.get = deep_get, .set_default_headers = default_headers};
    log_keep();
    answer a = ask(&cls, GET("/?q=1"));
    CHECK(is_status(&a, "404 Not Found"));
    CHECK_BODY(a, PAGE("404: Not Found"));
    CHECK_STR(head_value(a.head, "Content-Type"), "text/html; charset=UTF-8");
    CHECK_STR(head_value(a.head, "X-Dropped"), NULL);
    CHECK_STR(head_value(a.head, "X-Default"), "always");
    CHECK_STR(head_value(a.head, "Etag"), NULL);
    CHECK_STR(traced(), "9 8 7 6 5 4 3 2 1 0 ");
    CHECK_INT(logged("404 GET /?q=1 (127.0.0.1): no file <b>: 100% lost"), 1);
    CHECK(strncmp(log_line("no file"), "[W ", 3) == 0);
    CHECK_INT(logged("404 GET /?q=1 (127.0.0.1) "), 1);
    CHECK_INT(logged("\n"), 2);
}

static int raised_status;

static void raise_status_post(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_status(raised_status);
}

TEST(web_an_http_status_without_message_is_logged_by_the_access_log_alone)
{
    static const tornado_handler_class cls = {.post = raise_status_post};
    log_keep();
    raised_status = 403;
    CHECK_INT(ask(&cls, POST("/")).status, 403);
    CHECK_INT(logged("\n"), 1);
    CHECK_INT(logged("403 POST / (127.0.0.1) "), 1);
}

TEST(web_an_http_error_has_the_status_that_was_raised_or_500)
{
    static const tornado_handler_class cls = {.post = raise_status_post};
    static const int rows[][2] = {{400, 400}, {404, 404}, {503, 503}, {599, 599}, {200, 200}, {0, 500}, {-1, 500},
                                  {99, 500}, {1000, 500}, {INT32_MAX, 500}, {INT32_MIN, 500}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char page[200];
        const char *reason = tornado_http_reason(rows[i][1]);
        log_keep();
        raised_status = rows[i][0];
        answer a = ask(&cls, POST("/"));
        if (a.status != rows[i][1])
            FAIL("raising status %d is answered %d", rows[i][0], a.status);
        snprintf(page, sizeof page, "<html><title>%d: %s</title>", a.status, reason ? reason : "Unknown");
        CHECK(strncmp(a.body.data, page, strlen(page)) == 0);
    }
}

TEST(web_raising_a_status_that_has_no_body_answers_without_one_or_closes)
{
    static const tornado_handler_class cls = {.post = raise_status_post};
    static const int rows[] = {204, 304};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        site s = serve(&cls, NULL);
        client c = client_open(s.port);
        answer a;
        log_keep();
        raised_status = rows[i];
        client_send(&c, "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        if (client_answer(&c, &a)) {
            CHECK_INT(a.status, rows[i]);
            CHECK(!client_more(&c));
            CHECK_INT(c.len - c.taken, 0);
        }
        settle();
        client_close(&c);
        tornado_application_free(s.app);
    }
}

static void uncaught_get(tornado_handler *self)
{
    if (strstr(self->request->query, "system")) {
        tornado_future *future = tornado_future_failed(&(tornado_error){.code = TORNADO_ERR_SYSTEM, .sys_errno = 2, .message = "/secret/path"});
        tornado_await(future);
    }
    tornado_raise(TORNADO_ERR_PARSE, "<the> secret\r\n[E 700101 00:00:00 forged:1] line of 100%%");
}

TEST(web_an_error_that_is_not_http_is_500_and_only_the_log_tells_why)
{
    static const tornado_handler_class cls = {.get = uncaught_get};
    log_keep();
    answer a = ask(&cls, GET("/"));
    CHECK_INT(a.status, 500);
    CHECK_BODY(a, PAGE("500: Internal Server Error"));
    CHECK(!strstr(a.head, "secret"));
    CHECK_INT(logged("<the> secret"), 1);
    CHECK_INT(logged("line of 100%"), 1);
    CHECK_INT(logged("\n[E 700101 00:00:00 forged"), 0);
    CHECK(strncmp(log_line("<the> secret"), "[E ", 3) == 0);
    CHECK(strstr(log_line("<the> secret"), "Uncaught exception GET / (127.0.0.1)") != NULL);
    log_keep();
    a = ask(&cls, GET("/?system"));
    CHECK_INT(a.status, 500);
    CHECK(!strstr(a.body.data, "secret"));
    CHECK(logged("/secret/path") >= 1);
}

TEST(web_error_pages_tell_what_was_raised_when_the_settings_say_so)
{
    static const tornado_handler_class cls = {.get = uncaught_get};
    static const struct {
        tornado_settings settings;
        bool told;
    } rows[] = {{{0}, false}, {{.debug = true}, true}, {{.serve_traceback = TORNADO_ON}, true},
                {{.debug = true, .serve_traceback = TORNADO_OFF}, false}};
    log_keep();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        answer a = ask_with(&cls, &rows[i].settings, GET("/"));
        CHECK_INT(a.status, 500);
        CHECK_INT(strstr(a.body.data, "<the> secret") != NULL, rows[i].told);
        CHECK_STR(head_value(a.head, "Content-Type"), rows[i].told ? "text/plain" : "text/html; charset=UTF-8");
    }
}

static tornado_log_record place;
static int raised_at; /* the line */

static void keep_place(const tornado_log_record *record, void *arg)
{
    if (strstr(record->message, arg))
        place = *record;
}

static void failing_get(tornado_handler *self)
{
    bool http = strcmp(self->request->query, "http") == 0;
    raised_at = __LINE__ + 1;
    http ? tornado_raise_http_error(409, "a place") : tornado_raise(TORNADO_ERR_LIMIT, "a place");
}

TEST(web_error_is_logged_with_the_place_that_raised_it)
{
    static const tornado_handler_class cls = {.get = failing_get};
    tornado_log_options options = {.level = TORNADO_LOG_DEBUG, .hook = keep_place, .arg = "a place"};
    tornado_enable_pretty_logging(&options);
    for (int i = 0; i < 2; i++) {
        place = (tornado_log_record){0};
        CHECK_INT(ask(&cls, i ? GET("/?http") : GET("/")).status, i ? 409 : 500);
        CHECK(place.file != NULL);
        CHECK_STR(place.file, __FILE__);
        CHECK_INT(place.line, raised_at);
    }
}

static void page_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    tornado_await(tornado_sleep(0.001));
    tornado_set_header(self, "X-Page", "mine");
    tornado_writef(self, "%d %s", status, error ? error->message : "(sent)");
}

static void send_error_get(tornado_handler *self)
{
    tornado_write(self, "dropped");
    if (strcmp(self->request->query, "raise") == 0)
        tornado_raise_http_error(409, "a message");
    tornado_send_error(self, 409);
    CHECK(tornado_finished(self));
    note("goes on");
}

TEST(web_write_error_writes_the_page_and_may_wait)
{
    static const tornado_handler_class cls = {.get = send_error_get, .write_error = page_write_error};
    log_keep();
    answer a = ask(&cls, GET("/?raise"));
    CHECK_INT(a.status, 409);
    CHECK_BODY(a, "409 a message");
    CHECK_STR(head_value(a.head, "X-Page"), "mine");
    CHECK_STR(traced(), "");
    log_keep();
    a = ask(&cls, GET("/"));
    CHECK_INT(a.status, 409);
    CHECK_BODY(a, "409 (sent)");
    CHECK_STR(traced(), "goes on");
    CHECK_INT(logged("\n"), 1); /* the access log; nothing was raised */
}

static void bad_send_error_get(tornado_handler *self)
{
    tornado_write(self, "dropped");
    tornado_send_error(self, self->request->query[0] == 'l' ? 42 : 1000);
}

TEST(web_send_error_with_what_is_no_status_is_500)
{
    static const tornado_handler_class cls = {.get = bad_send_error_get};
    log_keep();
    CHECK_INT(ask(&cls, GET("/?low")).status, 500);
    CHECK_INT(ask(&cls, GET("/?high")).status, 500);
}

static const tornado_handler_class reason_class;

static void reason_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    tornado_set_status_reason(self, status, "<script>&\"'");
    tornado_super(self, &reason_class)->write_error(self, status, error);
}

static const tornado_handler_class reason_class = {.get = send_error_get, .write_error = reason_write_error};

TEST(web_the_reason_is_escaped_on_the_page)
{
    answer a = ask(&reason_class, GET("/"));
    CHECK(is_status(&a, "409 <script>&\"'"));
    CHECK_BODY(a, PAGE("409: &lt;script&gt;&amp;&quot;&#39;"));
}

static void failing_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    (void)error;
    tornado_write(self, "a part");
    if (strcmp(self->request->query, "http") == 0)
        tornado_raise_http_error(404, "hidden %d", status);
    if (strcmp(self->request->query, "again") == 0)
        tornado_send_error(self, 503);
    tornado_raise(TORNADO_ERR_LIMIT, "hidden %d", status);
}

static void fail_get(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_error(418, "first");
}

TEST(web_a_raise_in_write_error_is_logged_and_ends_the_answer)
{
    static const tornado_handler_class cls = {.get = fail_get, .write_error = failing_write_error};
    static const char *const requests[] = {GET("/"), GET("/?http"), GET("/?again")};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    for (int i = 0; i < 3; i++) {
        log_keep();
        answer a = client_ask(&c, requests[i]);
        CHECK_INT(a.status, 418);
        CHECK(!strstr(a.head, "hidden") && a.body.len < 7);
        settle();
        CHECK_INT(logged("hidden 418"), 1);
        CHECK_INT(logged("418 GET /"), 2); /* the message and the access log */
    }
    client_close(&c);
    tornado_application_free(s.app);
}

static void keep_error(tornado_handler *self, const tornado_error *error)
{
    tornado_await(tornado_sleep(0.001));
    (void)self;
    note((void *)(uintptr_t)tornado_error_name(error->code));
    note(" ");
    note((void *)(uintptr_t)error->message);
    CHECK_INT(error->http_status, 418);
}

TEST(web_log_exception_replaces_the_log_line_of_an_error)
{
    static const tornado_handler_class cls = {.get = fail_get, .log_exception = keep_error};
    log_keep();
    CHECK_INT(ask(&cls, GET("/")).status, 418);
    CHECK_STR(traced(), "TORNADO_ERR_HTTP first");
    CHECK_INT(logged("\n"), 1);
}

static void flushed_error_get(tornado_handler *self)
{
    if (strcmp(self->request->query, "length") == 0)
        tornado_set_header(self, "Content-Length", "1000");
    tornado_write(self, "half of it");
    tornado_await(tornado_flush(self));
    if (strcmp(self->request->query, "send") == 0)
        tornado_send_error(self, 503);
    else
        tornado_raise_http_error(503, "hidden");
}

TEST(web_an_error_after_the_headers_were_sent_never_sends_a_second_answer)
{
    static const tornado_handler_class cls = {.get = flushed_error_get};
    static const char *const queries[] = {"chunked", "length", "send"};
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++) {
        char request[200];
        site s = serve(&cls, NULL);
        client c = client_open(s.port);
        log_keep();
        snprintf(request, sizeof request, "GET /?%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", queries[i]);
        client_send(&c, request);
        while (client_more(&c))
            ;
        CHECK(strncmp(c.data, "HTTP/1.1 200 OK\r\n", 17) == 0);
        CHECK(strstr(c.data, "half of it") != NULL);
        CHECK(!strstr(c.data + 9, "HTTP/1.1") && !strstr(c.data, "503") && !strstr(c.data, "hidden"));
        settle();
        CHECK_INT(logged("Cannot send error response after headers written"), 1);
        CHECK_INT(logged("hidden"), strcmp(queries[i], "send") != 0);
        client_close(&c);
        tornado_application_free(s.app);
    }
}

TEST(web_an_error_in_an_answer_whose_length_was_sent_closes_the_connection)
{
    static const tornado_handler_class cls = {.get = flushed_error_get};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    answer a;
    log_keep();
    client_send(&c, GET("/?length") GET("/?length"));
    CHECK(!client_answer(&c, &a));
    CHECK(!strstr(c.data + 9, "HTTP/1.1"));
    settle();
    CHECK_INT(logged("200 GET /?length (127.0.0.1) "), 1); /* as the client was told; the second never began */
    client_close(&c);
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Defers and tries.
 *----------------------------------------------------------------------------*/

static void defer_prepare(tornado_handler *self)
{
    (void)self;
    tornado_defer(note, "prepare's ");
}

static void defer_get(tornado_handler *self)
{
    tornado_defer(note, "get's ");
    tornado_run_deferred(tornado_defer(note, "early "));
    tornado_await(tornado_moment());
    if (strcmp(self->request->query, "raise") == 0)
        tornado_raise_http_status(404);
    if (strcmp(self->request->query, "finish") == 0)
        tornado_finish(self);
    note("returns ");
}

static void defer_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    (void)error;
    note("page ");
    tornado_writef(self, "%d", status);
}

static void defer_on_finish(tornado_handler *self)
{
    (void)self;
    note("finished ");
}

TEST(web_defers_run_at_the_end_of_the_request_and_before_an_error_page)
{
    static const tornado_handler_class cls = {.prepare = defer_prepare, .get = defer_get,
                                              .write_error = defer_write_error, .on_finish = defer_on_finish};
    CHECK_INT(ask(&cls, GET("/")).status, 200);
    CHECK_STR(traced(), "early returns finished get's prepare's ");
    CHECK_INT(ask(&cls, GET("/?finish")).status, 200);
    CHECK_STR(traced(), "early finished returns get's prepare's ");
    CHECK_INT(ask(&cls, GET("/?raise")).status, 404);
    CHECK_STR(traced(), "early get's prepare's page finished ");
}

static void inner(void *arg)
{
    tornado_handler *self = arg;
    tornado_defer(note, "inner ");
    tornado_write(self, "written ");
    tornado_await(tornado_sleep(0.001));
    tornado_raise_http_error(404, "caught");
}

static void outer(void *arg)
{
    CHECK(is_error(tornado_try(inner, arg), TORNADO_ERR_HTTP));
    tornado_raise(TORNADO_ERR_LIMIT, "outer");
}

static void try_get(tornado_handler *self)
{
    const tornado_error *error = tornado_try(inner, self);
    CHECK(is_error(error, TORNADO_ERR_HTTP));
    CHECK_INT(error->http_status, 404);
    note("caught ");
    error = tornado_try(outer, self);
    CHECK(is_error(error, TORNADO_ERR_LIMIT));
    tornado_writef(self, "%s", error->message);
}

TEST(web_an_error_that_a_handler_catches_is_none)
{
    static const tornado_handler_class cls = {.get = try_get};
    log_keep();
    answer a = ask(&cls, GET("/"));
    CHECK_INT(a.status, 200);
    CHECK_BODY(a, "written written outer");
    CHECK_STR(traced(), "inner caught inner ");
    CHECK_INT(logged("\n"), 1);
}

/*----------------------------------------------------------------------------
 * Coroutines of a handler.
 *----------------------------------------------------------------------------*/

static void *spawned_write(void *arg)
{
    tornado_handler *self = arg;
    tornado_await(tornado_sleep(0.001));
    CHECK(tornado_current_arena() == self->arena);
    tornado_write(self, "spawned ");
    return tornado_format(self, "result");
}

static void *spawned_raise(void *arg)
{
    (void)arg;
    tornado_await(tornado_moment());
    tornado_raise_http_error(410, "went");
}

static void *spawned_finish(void *arg)
{
    tornado_await(tornado_moment());
    tornado_finish(arg);
    return NULL;
}

static void spawn_get(tornado_handler *self)
{
    tornado_coroutine_fn second = strcmp(self->request->query, "raise") == 0    ? spawned_raise
                                  : strcmp(self->request->query, "finish") == 0 ? spawned_finish
                                                                                : spawned_write;
    tornado_write(self, tornado_await(tornado_handler_spawn(self, spawned_write, self)));
    tornado_await(tornado_handler_spawn(self, second, self));
    note(tornado_finished(self) ? "finished" : "unfinished");
}

TEST(web_handler_spawn_runs_beside_the_handler_and_may_write_fail_and_finish)
{
    static const tornado_handler_class cls = {.get = spawn_get};
    log_keep();
    CHECK_BODY(ask(&cls, GET("/")), "spawned resultspawned ");
    CHECK_STR(traced(), "unfinished");
    CHECK_BODY(ask(&cls, GET("/?finish")), "spawned result");
    CHECK_STR(traced(), "finished");
    CHECK_INT(ask(&cls, GET("/?raise")).status, 410);
    CHECK_STR(traced(), "");
    CHECK_INT(logged("410 GET /?raise (127.0.0.1): went"), 1);
}

static void *spawned_late(void *arg)
{
    tornado_handler *self = arg;
    char *text = tornado_format(self, "%s %s", self->request->path, self->request->headers.items[0].value);
    gate_wait();
    CHECK(tornado_finished(self));
    CHECK(is_error(tornado_try(op_write, self), TORNADO_ERR_STATE));
    CHECK_STR(text, "/ a");
    note(text);
    memset(tornado_alloc(self, 10000), 1, 10000);
    return text;
}

static void spawn_late_get(tornado_handler *self)
{
    tornado_future_release(tornado_handler_spawn(self, spawned_late, self));
    tornado_await(tornado_moment());
    tornado_write(self, "answered");
}

TEST(web_handler_spawn_keeps_the_request_beyond_its_answer_and_its_connection)
{
    static const tornado_handler_class cls = {.get = spawn_late_get};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    gate = tornado_future_new();
    CHECK_BODY(client_ask(&c, GET("/")), "answered");
    CHECK_BODY(client_ask(&c, GET("/")), "answered");
    client_close(&c);
    UNTIL(tornado_httpserver_connections(s.server) == 0);
    CHECK_STR(traced(), "");
    gate_open();
    settle();
    CHECK_STR(traced(), "/ a/ a");
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * ETags.
 *----------------------------------------------------------------------------*/

static const char *etag_body = "hello", *etag_set;

static void etag_get(tornado_handler *self)
{
    if (etag_set)
        tornado_set_header(self, "ETAG", etag_set);
    tornado_set_header(self, "Content-Language", "en");
    tornado_set_header(self, "Content-Encoding", "identity");
    tornado_set_header(self, "Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT");
    tornado_set_header(self, "Cache-Control", "no-cache");
    tornado_set_header(self, "Vary", "Accept");
    if (strcmp(self->request->query, "created") == 0)
        tornado_set_status(self, 201);
    if (strcmp(self->request->query, "early") == 0)
        tornado_await(tornado_flush(self));
    tornado_write(self, etag_body);
}

static const tornado_handler_class etag_class = {.get = etag_get, .head = etag_get, .post = etag_get};

/* Asks with If-None-Match when that is given. */
static answer ask_etag(const tornado_handler_class *cls, const char *line, const char *if_none_match)
{
    char request[500];
    snprintf(request, sizeof request, "%s HTTP/1.1\r\nHost: a\r\n%s%s\r\n\r\n", line,
             if_none_match ? "If-None-Match: " : "A: b", if_none_match ? if_none_match : "");
    return ask(cls, request);
}

TEST(web_etag_is_a_strong_value_of_the_body)
{
    char first[100];
    answer a = ask_etag(&etag_class, "GET /", NULL);
    snprintf(first, sizeof first, "%s", head_value(a.head, "Etag"));
    size_t len = strlen(first);
    CHECK(len > 10 && first[0] == '"' && first[len - 1] == '"' && strcspn(first + 1, "\"") == len - 2);
    a = ask_etag(&etag_class, "HEAD /", NULL);
    CHECK_STR(head_value(a.head, "Etag"), first);
    CHECK_STR(head_value(a.head, "Content-Length"), "5");
    etag_body = "hellp";
    a = ask_etag(&etag_class, "GET /", NULL);
    CHECK(strcmp(head_value(a.head, "Etag"), first) != 0);
    etag_body = "";
    a = ask_etag(&etag_class, "GET /", NULL);
    CHECK(head_value(a.head, "Etag") && strcmp(head_value(a.head, "Etag"), first) != 0);
}

TEST(web_etag_that_the_client_has_gives_304)
{
    static const struct {
        const char *format; /* E stands for the ETag */
        int status;
    } rows[] = {{"E", 304}, {"W/E", 304}, {"*", 304}, {"\"a\", E", 304}, {"\"a\",W/\"b\" ,\tW/E,\"c\"", 304},
                {"\"a,b\", E", 304}, {"E,", 304}, {"\"a\"", 200}, {"W/\"a\", \"b\"", 200}, {"", 200}, {"x", 200},
                {"\"*\"", 200}, {"\"E", 200}, {"\"", 200}, {",", 200}};
    char etag[100];
    answer a = ask_etag(&etag_class, "GET /", NULL);
    snprintf(etag, sizeof etag, "%s", head_value(a.head, "Etag"));
    for (size_t i = 0; i < sizeof rows / sizeof *rows * 2; i++) {
        const char *format = rows[i / 2].format, *at = strchr(format, 'E');
        char value[300];
        if (strcmp(format, "\"E") == 0) /* without its last quote */
            snprintf(value, sizeof value, "%.*s", (int)strlen(etag) - 1, etag);
        else
            snprintf(value, sizeof value, "%.*s%s%s", at ? (int)(at - format) : (int)strlen(format), format,
                     at ? etag : "", at ? at + 1 : "");
        a = ask_etag(&etag_class, i % 2 ? "HEAD /" : "GET /", value);
        if (a.status != rows[i / 2].status)
            FAIL("If-None-Match %s gives %d", format, a.status);
        CHECK_STR(head_value(a.head, "Etag"), etag);
        CHECK_INT(strstr(a.head, "\r\nContent-") != NULL, a.status == 200);
        CHECK_INT(head_count(a.head, "Last-Modified"), a.status == 200);
        CHECK_INT(head_count(a.head, "Cache-Control"), 1);
        CHECK_INT(head_count(a.head, "Vary"), 1);
    }
}

TEST(web_304_has_no_body_and_the_connection_goes_on)
{
    site s = serve(&etag_class, NULL);
    client c = client_open(s.port);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(client_ask(&c, "GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\n\r\n").status, 304);
        CHECK_BODY(client_ask(&c, GET("/")), "hello");
    }
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_several_if_none_match_headers_count_as_one_list)
{
    char request[300];
    answer a = ask_etag(&etag_class, "GET /", NULL);
    snprintf(request, sizeof request,
             "GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\"\r\nif-none-match: %s\r\n\r\n",
             head_value(a.head, "Etag"));
    CHECK_INT(ask(&etag_class, request).status, 304);
}

TEST(web_etag_is_only_for_200_of_get_and_head_before_a_flush)
{
    static const struct {
        const char *line;
        int status;
    } rows[] = {{"POST /", 200}, {"GET /?created", 201}, {"GET /?early", 200}, {"GET /none", 404}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        answer a = ask_etag(&etag_class, rows[i].line, "*");
        CHECK_INT(a.status, rows[i].status);
        CHECK_STR(head_value(a.head, "Etag"), NULL);
    }
}

TEST(web_etag_set_by_the_handler_is_kept_and_compared)
{
    static const struct {
        const char *set, *asked;
        int status;
    } rows[] = {{"\"mine\"", NULL, 200}, {"\"mine\"", "\"mine\"", 304}, {"\"mine\"", "W/\"mine\"", 304},
                {"W/\"mine\"", "\"mine\"", 304}, {"W/\"mine\"", "\"other\"", 200}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        etag_set = rows[i].set;
        answer a = ask_etag(&etag_class, "GET /", rows[i].asked);
        CHECK_INT(a.status, rows[i].status);
        CHECK_INT(head_count(a.head, "Etag"), 1);
        CHECK_STR(head_value(a.head, "Etag"), rows[i].set);
    }
}

static const char *computed_etag;

static const char *custom_etag(tornado_handler *self)
{
    tornado_await(tornado_sleep(0.001));
    return computed_etag ? tornado_format(self, "%s", computed_etag) : NULL;
}

TEST(web_compute_etag_can_be_replaced_or_turned_off)
{
    static const tornado_handler_class cls = {.parent = &etag_class, .compute_etag = custom_etag};
    answer a = ask_etag(&cls, "GET /", "*");
    CHECK_INT(a.status, 200);
    CHECK_STR(head_value(a.head, "Etag"), NULL);
    computed_etag = "\"v1\"";
    a = ask_etag(&cls, "GET /", NULL);
    CHECK_STR(head_value(a.head, "Etag"), "\"v1\"");
    CHECK_INT(ask_etag(&cls, "GET /", "\"v0\", \"v1\"").status, 304);
    computed_etag = "\"v\r\nX-Split: 1\"";
    log_keep();
    a = ask_etag(&cls, "GET /", NULL);
    CHECK_INT(a.status, 500);
    CHECK_STR(head_value(a.head, "X-Split"), NULL);
}

static void check_early_get(tornado_handler *self)
{
    tornado_set_etag_header(self);
    if (tornado_check_etag_header(self)) {
        tornado_set_status(self, 304);
        return;
    }
    note("computed ");
    tornado_write(self, "expensive");
}

TEST(web_etag_can_be_checked_before_the_body_is_made)
{
    static const tornado_handler_class cls = {.get = check_early_get, .compute_etag = custom_etag};
    computed_etag = "\"v1\"";
    answer a = ask_etag(&cls, "GET /", "\"v1\"");
    CHECK_INT(a.status, 304);
    CHECK_STR(head_value(a.head, "Etag"), "\"v1\"");
    CHECK_STR(traced(), "");
    a = ask_etag(&cls, "GET /", "\"v0\"");
    CHECK_INT(a.status, 200);
    CHECK_INT(head_count(a.head, "Etag"), 1);
    CHECK_STR(traced(), "computed ");
}

static void twice_etag_get(tornado_handler *self)
{
    if (strcmp(self->request->query, "first") == 0)
        tornado_set_header(self, "Etag", "\"header\"");
    tornado_set_etag_header(self);
    if (strcmp(self->request->query, "last") == 0)
        tornado_set_header(self, "Etag", "\"header\"");
}

TEST(web_an_answer_has_one_etag_the_one_set_last)
{
    static const tornado_handler_class cls = {.get = twice_etag_get, .compute_etag = custom_etag};
    computed_etag = "\"computed\"";
    answer a = ask(&cls, GET("/?first"));
    CHECK_INT(head_count(a.head, "Etag"), 1);
    CHECK_STR(head_value(a.head, "Etag"), "\"computed\"");
    a = ask(&cls, GET("/?last"));
    CHECK_INT(head_count(a.head, "Etag"), 1);
    CHECK_STR(head_value(a.head, "Etag"), "\"header\"");
}

static void growing_get(tornado_handler *self)
{
    tornado_write(self, "the same beginning ");
    tornado_set_etag_header(self);
    tornado_write(self, self->request->query);
}

TEST(web_etag_is_that_of_the_whole_body_however_early_it_was_set)
{
    static const tornado_handler_class cls = {.get = growing_get};
    char first[100];
    answer a = ask(&cls, GET("/?one"));
    snprintf(first, sizeof first, "%s", head_value(a.head, "Etag"));
    a = ask(&cls, GET("/?two"));
    CHECK(strcmp(head_value(a.head, "Etag"), first) != 0);
}

/*----------------------------------------------------------------------------
 * The access log.
 *----------------------------------------------------------------------------*/

TEST(web_each_request_is_one_line_of_the_access_log)
{
    static const tornado_handler_class cls = {.post = status_post};
    static const struct {
        int status;
        char level;
    } rows[] = {{200, 'I'}, {302, 'I'}, {399, 'I'}, {400, 'W'}, {404, 'W'}, {499, 'W'}, {500, 'E'}, {503, 'E'}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char want[100], *end;
        log_keep();
        wanted.status = rows[i].status;
        wanted.reason = "Any";
        ask(&cls, "POST /?a=b%20c HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        snprintf(want, sizeof want, "] %d POST /?a=b%%20c (127.0.0.1) ", rows[i].status);
        CHECK_INT(logged("\n"), 1);
        CHECK_INT(logged(want), 1);
        CHECK_INT(log_text[1], rows[i].level);
        double took = strtod(strstr(log_text, want) + strlen(want), &end);
        CHECK(took >= 0 && took < 100000 && end[-3] == '.');
        CHECK_STR(end, "ms\n");
    }
}

static void busy_get(tornado_handler *self)
{
    double begin = tornado_monotonic();
    while (tornado_monotonic() - begin < 0.02)
        continue;
    tornado_write(self, "busy");
}

TEST(web_the_access_log_tells_how_long_a_handler_took_that_did_not_wait)
{
    static const tornado_handler_class cls = {.get = busy_get};
    log_keep();
    ask(&cls, GET("/"));
    const char *took = strstr(log_text, "(127.0.0.1) ");
    CHECK(took && strtod(took + 12, NULL) >= 20);
}

TEST(web_no_request_can_forge_lines_of_the_log)
{
    static const char *const targets[] = {"/%0a[E%20forged", "/\xc2\x9b" "31m", "/\xc2\x85" "x", "/?\xe2\x80\xa8",
                                          "/a\"b'c<d>", "/%s%n%d", "/\xff\xfe\x80"};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        char request[200];
        log_keep();
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", targets[i]);
        answer a = ask(&hello_class, request);
        if (a.status == 404 || a.status == 200)
            CHECK_INT(logged("GET /"), 1);
        CHECK_INT(logged("\n"), 1);
        for (const unsigned char *at = (const unsigned char *)log_text; *at; at++)
            if ((*at < 0x20 && *at != '\n') || *at == 0x7f || (*at == 0xc2 && at[1] < 0xa0)) /* to U+009F */
                FAIL("target %zu brings a control character into the log", i);
    }
    log_keep();
    CHECK_INT(ask(&hello_class, "GET /\x1b[31m HTTP/1.1\r\nHost: a\r\n\r\n").status, 400);
    CHECK_INT(logged("[31m"), 0);
}

static void log_function(tornado_handler *self)
{
    static char line[100];
    CHECK(tornado_finished(self));
    snprintf(line, sizeof line, "%s %d%s ", self->request->method, tornado_get_status(self),
             tornado_http_request_time(self->request) >= 0 ? "" : " (before it began)");
    note(line);
}

TEST(web_log_function_replaces_the_line)
{
    tornado_settings settings = {.log_function = log_function};
    log_keep();
    CHECK_INT(ask_with(&hello_class, &settings, GET("/")).status, 200);
    CHECK_INT(ask_with(&hello_class, &settings, POST("/")).status, 405);
    CHECK_INT(ask_with(&hello_class, &settings, GET("/none")).status, 404);
    CHECK_STR(traced(), "GET 200 POST 405 GET 404 ");
    CHECK_STR(log_text, "");
}

static void raising_log_function(tornado_handler *self)
{
    tornado_raise(TORNADO_ERR_PARSE, "raised for %s", self->request->uri);
}

TEST(web_a_raise_in_log_function_is_logged_and_the_answer_stays)
{
    tornado_settings settings = {.log_function = raising_log_function};
    log_keep();
    CHECK_BODY(ask_with(&hello_class, &settings, GET("/?a")), "hello");
    CHECK_INT(ask_with(&hello_class, &settings, GET("/none")).status, 404);
    CHECK_INT(logged("raised for /?a"), 1);
    CHECK_INT(logged("raised for /none"), 1);
}

/*----------------------------------------------------------------------------
 * Clients that leave.
 *----------------------------------------------------------------------------*/

static void leaving_close(tornado_handler *self)
{
    note("closed ");
    CHECK(!tornado_connected(self) && !tornado_finished(self));
    CHECK_STR(self->request->path, "/");
    tornado_await(tornado_sleep(0.001));
    CHECK_STR(tornado_format(self, "%s", self->request->path), "/");
    note("waited ");
}

static void leaving_get(tornado_handler *self)
{
    char *kept = tornado_format(self, "%s?%s", self->request->path, self->request->query);
    static char block[100000];
    CHECK(tornado_connected(self));
    if (strcmp(self->request->query, "flushed") == 0)
        tornado_await(tornado_flush(self));
    note("waits ");
    gate_wait();
    CHECK(!tornado_connected(self));
    CHECK_INT(strncmp(kept, "/?", 2), 0);
    tornado_set_header(self, "X", "y");
    tornado_write_bytes(self, (tornado_bytes){block, sizeof block});
    for (int i = 0; i < 2; i++)
        CHECK(is_error(tornado_wait(tornado_flush(self)), TORNADO_ERR_CLOSED));
    tornado_writef(self, "%s", kept);
    if (strcmp(self->request->query, "raise") == 0)
        tornado_raise_http_error(404, "nobody reads this");
    if (strcmp(self->request->query, "await") == 0)
        tornado_await(tornado_flush(self));
    note("ends ");
}

static const tornado_handler_class leaving_class = {
    .get = leaving_get, .on_connection_close = leaving_close, .on_finish = defer_on_finish};

TEST(web_a_client_that_leaves_is_told_once_and_the_handler_goes_on)
{
    static const struct {
        const char *query, *end;
    } rows[] = {{"plain", "ends finished "}, {"flushed", "ends finished "}, {"raise", "finished "},
                {"await", "finished "}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows * 2; i++) {
        char request[100];
        site s = serve(&leaving_class, NULL);
        client c = client_open(s.port);
        gate = tornado_future_new();
        log_keep();
        snprintf(request, sizeof request, "GET /?%s HTTP/1.1\r\nHost: a\r\n\r\n", rows[i / 2].query);
        client_send(&c, request);
        UNTIL(strstr(trace, "waits "));
        if (i % 2) {
            close_with_reset(c.fd);
            c.fd = -1;
        }
        client_close(&c);
        UNTIL(strstr(trace, "waited "));
        loop_turns(5);
        CHECK_STR(traced(), "waits closed waited ");
        gate_open();
        settle();
        CHECK_STR(traced(), rows[i / 2].end);
        CHECK_INT(logged("Uncaught"), 0);
        tornado_application_free(s.app);
    }
}

static void slow_close(tornado_handler *self)
{
    char *kept = tornado_format(self, "%s", "kept");
    note("closed ");
    gate_wait();
    CHECK_STR(kept, "kept");
    CHECK_STR(self->request->path, "/");
    note(kept);
}

static void short_get(tornado_handler *self)
{
    note("waits ");
    while (tornado_connected(self))
        tornado_await(tornado_sleep(0.001));
    note("ends ");
}

TEST(web_on_connection_close_may_outlive_the_handler)
{
    static const tornado_handler_class cls = {.get = short_get, .on_connection_close = slow_close};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    gate = tornado_future_new();
    client_send(&c, GET("/"));
    UNTIL(strstr(trace, "waits "));
    client_close(&c);
    UNTIL(strstr(trace, "closed ") && strstr(trace, "ends "));
    loop_turns(3);
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 1);
    traced();
    gate_open();
    settle();
    CHECK_STR(traced(), "kept");
    tornado_application_free(s.app);
}

TEST(web_on_connection_close_works_on_later_requests_of_a_connection)
{
    site s = serve_rules((tornado_rule[]){{.path = "/", .handler = &leaving_class},
                                          {.path = "/hello", .handler = &hello_class}, {0}}, NULL);
    client c = client_open(s.port);
    gate = tornado_future_new();
    for (int i = 0; i < 3; i++)
        CHECK_BODY(client_ask(&c, GET("/hello")), "hello");
    client_send(&c, GET("/?plain"));
    UNTIL(strstr(trace, "waits "));
    client_close(&c);
    UNTIL(strstr(trace, "waited "));
    gate_open();
    settle();
    CHECK_STR(traced(), "waits closed waited ends finished ");
    tornado_application_free(s.app);
}

TEST(web_on_connection_close_is_not_for_requests_that_were_answered)
{
    static const tornado_handler_class cls = {
        .get = hello_get, .on_connection_close = leaving_close, .on_finish = gated_on_finish};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    gate = tornado_future_new();
    CHECK_BODY(client_ask(&c, GET("/")), "hello");
    client_close(&c);
    UNTIL(tornado_httpserver_connections(s.server) == 0);
    gate_open();
    settle();
    CHECK_STR(traced(), "finish gone ");
    tornado_application_free(s.app);
}

static void failing_close(tornado_handler *self)
{
    (void)self;
    tornado_raise(TORNADO_ERR_PARSE, "raised by on_connection_close");
}

TEST(web_a_raise_in_on_connection_close_is_logged)
{
    static const tornado_handler_class cls = {
        .get = short_get, .on_connection_close = failing_close, .on_finish = defer_on_finish};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    log_keep();
    client_send(&c, GET("/"));
    UNTIL(strstr(trace, "waits "));
    client_close(&c);
    settle();
    CHECK_STR(traced(), "waits ends finished ");
    CHECK_INT(logged("raised by on_connection_close"), 1);
    tornado_application_free(s.app);
}

static void any_wait_get(tornado_handler *self)
{
    note("waits ");
    gate_wait();
    CHECK(!tornado_connected(self));
    tornado_write(self, self->cls->name);
    if (strcmp(self->request->query, "raise") == 0)
        tornado_raise(TORNADO_ERR_PARSE, "raised after the end");
}

TEST(web_an_application_may_be_freed_while_handlers_wait)
{
    static const tornado_handler_class cls = {.name = "long", .get = any_wait_get, .on_finish = defer_on_finish};
    site s = serve(&cls, &(tornado_settings){.debug = true});
    client a = client_open(s.port), b = client_open(s.port);
    log_keep();
    gate = tornado_future_new();
    client_send(&a, GET("/"));
    client_send(&b, GET("/?raise"));
    UNTIL(strstr(trace, "waits waits "));
    tornado_application_free(s.app);
    CHECK(!client_more(&a) && !client_more(&b));
    traced();
    gate_open();
    settle();
    CHECK_STR(traced(), "finished finished ");
    client_close(&a);
    client_close(&b);
}

/*----------------------------------------------------------------------------
 * Memory.
 *----------------------------------------------------------------------------*/

static void arena_prepare(tornado_handler *self)
{
    char **texts = tornado_alloc(self, 100 * sizeof *texts);
    for (int i = 0; i < 100; i++)
        CHECK(texts[i] == NULL);
    for (int i = 0; i < 100; i++)
        texts[i] = tornado_format(self, "%s %d %s", self->request->uri, i, tornado_get_header(self, "X"));
    ((counting_handler *)self)->greeting = (const char *)texts;
}

static void arena_on_finish(tornado_handler *self)
{
    const char *const *texts = (const char *const *)(const void *)((counting_handler *)self)->greeting;
    tornado_await(tornado_sleep(0.001));
    for (int i = 0; i < 100; i++) {
        char want[64];
        snprintf(want, sizeof want, "%s %d 1,2", self->request->uri, i);
        CHECK_STR(texts[i], want);
    }
    note("kept ");
}

static void arena_get(tornado_handler *self)
{
    tornado_await(tornado_sleep(0.001));
    tornado_write(self, "x");
}

TEST(web_what_a_handler_allocates_lives_until_the_request_ends)
{
    static const tornado_handler_class cls = {.instance_size = sizeof(counting_handler), .prepare = arena_prepare,
                                              .get = arena_get, .on_finish = arena_on_finish};
    site s = serve(&cls, NULL);
    client c = client_open(s.port);
    static const char request[] = "GET /?1 HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\n\r\n";
    for (int i = 0; i < 3; i++) /* while one finishes the next is read */
        CHECK_BODY(client_ask(&c, request), "x");
    client_close(&c);
    settle();
    CHECK_STR(traced(), "kept kept kept ");
    tornado_application_free(s.app);
}

static void *square(void *arg)
{
    int *number = arg;
    tornado_await(tornado_moment());
    *number *= *number;
    return number;
}

/* Uses nearly everything that a handler can use. */
static void all_get(tornado_handler *self)
{
    int *numbers = tornado_alloc(self, 2 * sizeof *numbers);
    const char *header = tornado_get_header(self, "X");
    numbers[0] = 3;
    numbers[1] = 4;
    tornado_defer(note, "");
    tornado_set_header(self, "X-Echo", header ? header : "none");
    for (int i = 0; i < 12; i++)
        tornado_add_header(self, "X-Many", tornado_format(self, "%d", i));
    /* both keep the request: one may go on when memory is too short for waiting */
    tornado_future *both[] = {tornado_handler_spawn(self, square, &numbers[0]),
                              tornado_handler_spawn(self, square, &numbers[1])};
    void **results = tornado_await(tornado_multi(both, 2));
    tornado_write_json(self, "{first:i, second:i, text:s}", *(int *)results[0], *(int *)results[1], "text");
}

static void big_get(tornado_handler *self)
{
    for (int i = 0; i < 200; i++)
        tornado_writef(self, "%0100d", i);
}

static void parts_get(tornado_handler *self)
{
    for (int i = 0; i < 3; i++) {
        tornado_writef(self, "%03000d", i);
        tornado_await(tornado_with_timeout(100, tornado_flush(self)));
    }
}

static void raising_get(tornado_handler *self)
{
    tornado_try(inner, self);
    tornado_set_status_reason(self, 299, "Will be dropped");
    tornado_defer(note, "");
    tornado_raise(TORNADO_ERR_PARSE, "raised");
}

static const tornado_handler_class all_class = {.get = all_get}, big_class = {.get = big_get},
                                   parts_class = {.get = parts_get},
                                   raising_class = {.get = raising_get, .set_default_headers = default_headers};
static const tornado_rule all_rules[] = {{.path = "/all", .handler = &all_class},
                                         {.path = "/big", .handler = &big_class},
                                         {.path = "/parts", .handler = &parts_class},
                                         {.path = "/raising", .handler = &raising_class}, {0}};

/* One request to each, and what the framework answers by itself; the last lacks its blank line. */
#define ALL_REQUESTS                                                                                               \
    "GET /all HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\n\r\n" GET("/big") GET("/parts")                             \
    GET("/raising") GET("/none") POST("/all")                                                                      \
    "GET /all HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\"\r\nIf-None-Match: *\r\n"
#define ALL_COUNT 7
#define ALL_STATUSES "200 200 200 500 404 405 304 "

TEST_LIMIT(web_ten_thousand_requests_leave_nothing_behind, 30)
{
    site s = serve_rules(all_rules, NULL);
    client c = client_open(s.port);
    long live = 0;
    log_keep();
    for (int i = 0; i < 10000 / ALL_COUNT + 1; i++) {
        answer a;
        char statuses[100] = "";
        client_send(&c, ALL_REQUESTS "\r\n");
        for (int k = 0; k < ALL_COUNT; k++) {
            CHECK(client_answer(&c, &a));
            snprintf(statuses + strlen(statuses), sizeof statuses - strlen(statuses), "%d ", a.status);
        }
        CHECK_STR(statuses, ALL_STATUSES);
        log_text[0] = '\0';
        trace[0] = '\0';
        if (i == 50) {
            settle();
            live = test_live();
        }
    }
    settle();
    if (test_live() > live)
        FAIL("%ld blocks after 350 requests, %ld after 10,000", live, test_live());
    client_close(&c);
    settle();
    tornado_application_free(s.app);
}

static void application_when_memory_is_short(void)
{
    static const tornado_handler_class child = {.parent = &counting_class, .name = "child"};
    tornado_rule rules[] = {{.path = "/", .handler = &counting_class}, {.path = "/child", .handler = &child}, {0}};
    tornado_settings settings = {.default_handler_class = &child};
    tornado_application *app = tornado_application_new(rules, &settings);
    if (!app)
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    if (app && !tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"}))
        CHECK(tornado_last_error()->code != TORNADO_OK);
    tornado_application_free(app);
}

TEST(web_an_application_that_memory_does_not_suffice_for_leaves_nothing)
{
    each_shortage(application_when_memory_is_short);
}

/* Whenever it is told a port over a socket, sends all requests there over a new connection and tells the statuses
   that came back, as text. It is a process of its own, so that its waiting allocates nothing here. */
static void outside_client(int told)
{
    static const char requests[] = ALL_REQUESTS "Connection: close\r\n\r\n";
    static char got[300000];
    char statuses[200];
    int port;
    while (read(told, &port, sizeof port) == sizeof port) {
        size_t len = 0;
        int fd = connect_loopback(port);
        ssize_t part = send(fd, requests, sizeof requests - 1, MSG_NOSIGNAL);
        while (len < sizeof got - 1 && (part = recv(fd, got + len, sizeof got - 1 - len, 0)) > 0)
            len += (size_t)part;
        close(fd);
        got[len] = '\0';
        statuses[0] = '\0';
        for (const char *at = got; (at = strstr(at, "HTTP/1.1 ")) != NULL && strlen(statuses) < 100; at += 9)
            snprintf(statuses + strlen(statuses), sizeof statuses - strlen(statuses), "%.4s", at + 9);
        if (len && strncmp(got, "HTTP/1.1 ", 9) != 0)
            strcpy(statuses, "garbage");
        if (write(told, statuses, strlen(statuses) + 1) < 1)
            break;
    }
    _exit(0);
}

/* Has the client ask, while the n-th allocation from now on fails if n is not 0. Whether there was such a one. */
static bool outside_ask(int told, int port, long n, char statuses[200])
{
    long before = test_allocs();
    test_fail_alloc(n);
    CHECK(send(told, &port, sizeof port, MSG_NOSIGNAL) == sizeof port);
    CHECK(tornado_ioloop_start(tornado_ioloop_current()));
    bool hit = test_allocs() - before >= n;
    test_fail_alloc(0);
    CHECK(recv(told, statuses, 200, 0) > 0);
    return hit;
}

TEST_LIMIT(web_every_failing_allocation_leaves_a_server_that_serves, 60)
{
    int told[2];
    bool hit = true;
    tornado_ioloop_clear_current();
    log_keep();
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, told) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(told[0]);
        outside_client(told[1]);
    }
    close(told[1]);
    for (long n = 1; hit; n++) { /* each time with a new loop, in which nothing is kept for reuse */
        char statuses[200];
        long live = test_live();
        tornado_ioloop *loop = tornado_ioloop_current();
        site s = serve_rules(all_rules, NULL);
        CHECK(tornado_ioloop_add_handler(loop, told[0], loop_fd_ready, loop, TORNADO_IOLOOP_READ));
        hit = outside_ask(told[0], s.port, n, statuses);
        if (strcmp(statuses, "garbage") == 0 || (!hit && strcmp(statuses, ALL_STATUSES) != 0))
            FAIL("when allocation %ld fails the answers are %s", n, statuses);
        outside_ask(told[0], s.port, 0, statuses);
        if (strcmp(statuses, ALL_STATUSES) != 0)
            FAIL("after allocation %ld failed the answers are %s", n, statuses);
        CHECK(tornado_ioloop_remove_handler(loop, told[0]));
        UNTIL(tornado_ioloop_coroutines(loop) == 0 && tornado_httpserver_connections(s.server) == 0);
        tornado_application_free(s.app);
        tornado_ioloop_close(loop, false);
        tornado_ioloop_clear_current();
        if (test_live() != live)
            FAIL("%ld blocks are left after allocation %ld failed", test_live() - live, n);
        log_text[0] = '\0';
        trace[0] = '\0';
    }
    close(told[0]);
    CHECK(waitpid(pid, NULL, 0) == pid);
}
