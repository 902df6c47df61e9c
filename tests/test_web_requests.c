/* What handlers do with requests beyond writing: arguments of the path, redirects, slashes, ending early and ending
   later, methods beyond the seven, and the handlers that come with the library. */
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

static site serve_rules(const tornado_rule *rules)
{
    site s;
    s.app = tornado_application_new(rules, NULL);
    CHECK(s.app != NULL);
    s.server = tornado_application_listen(s.app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(s.server != NULL);
    s.port = tornado_httpserver_port(s.server);
    return s;
}

static site serve(const char *path, const tornado_handler_class *cls, void *data)
{
    return serve_rules((tornado_rule[]){{.path = path, .handler = cls, .data = data}, {0}});
}

/* Runs the loop until an expression is true. */
#define UNTIL(expression)                                                                                          \
    while (!(expression))                                                                                          \
    loop_turns(1)

/* Asks over a connection that has to serve another request behind it. */
static answer ask(const site *s, const char *method, const char *target, const char *lines)
{
    static char body[65536], request[4000];
    client c = client_open(s->port);
    snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: a\r\n%s\r\n", method, target, lines);
    answer a = client_ask(&c, request);
    CHECK(a.body.len < sizeof body);
    memcpy(body, a.body.data, a.body.len);
    body[a.body.len] = '\0';
    a.body.data = body;
    CHECK(client_ask(&c, "BREW /next HTTP/1.1\r\nHost: a\r\n\r\n").status >= 400);
    client_close(&c);
    return a;
}

static void text_get(tornado_handler *self)
{
    tornado_write(self, self->data ? self->data : "text");
}

static const tornado_handler_class text_class = {.get = text_get, .post = text_get};

/*----------------------------------------------------------------------------
 * Arguments of the path.
 *----------------------------------------------------------------------------*/

static void args_prepare(tornado_handler *self)
{
    (void)self;
    note("prepare ");
}

static void args_get(tornado_handler *self)
{
    for (size_t i = 0; i < 3; i++)
        tornado_writef(self, "[%s]", tornado_path_arg(self, i) ? tornado_path_arg(self, i) : "none");
    CHECK(!tornado_path_arg(self, 31) && !tornado_path_arg(self, SIZE_MAX) && !tornado_path_kwarg(self, ""));
}

static const tornado_handler_class args_class = {.prepare = args_prepare, .get = args_get};

TEST(web_path_arguments_are_decoded_and_their_plus_is_kept)
{
    static const char *const rows[][2] = {
        {"/a/b", "[a][b][none]"},          {"//", "[][][none]"},
        {"/a%2Fb/c/d", "[a/b][c/d][none]"}, {"/+/%2b%20", "[+][+ ][none]"},
        {"/%252f/%25", "[%2f][%][none]"},   {"/%/%zz%4", "[%][%zz%4][none]"},
        {"/%41%c3%a9/\xc3\xa9", "[A\xc3\xa9][\xc3\xa9][none]"}, {"/%0d%0a/%7f%01", "[\r\n][\x7f\x01][none]"},
        {"/a/b?c/d", "[a][b][none]"},       {"/%20/ ", NULL},
    };
    site s = serve("/([^/]*)/(.*)", &args_class, NULL);
    for (size_t i = 0; rows[i][1]; i++)
        CHECK_STR(ask(&s, "GET", rows[i][0], "").body.data, rows[i][1]);
    tornado_application_free(s.app);
}

TEST(web_a_group_that_took_no_part_is_no_argument_and_an_empty_one_is)
{
    site s = serve("/(?:(a)|(b))(c*)", &args_class, NULL);
    CHECK_STR(ask(&s, "GET", "/a", "").body.data, "[a][none][]");
    CHECK_STR(ask(&s, "GET", "/bcc", "").body.data, "[none][b][cc]");
    tornado_application_free(s.app);
}

TEST(web_a_path_without_groups_has_no_arguments)
{
    site s = serve_rules((tornado_rule[]){{.path = "/plain", .handler = &args_class},
                                          {.path = "/pattern.*", .handler = &args_class},
                                          {.handler = &args_class}, {0}});
    CHECK_STR(ask(&s, "GET", "/plain", "").body.data, "[none][none][none]");
    CHECK_STR(ask(&s, "GET", "/patterns", "").body.data, "[none][none][none]");
    CHECK_STR(ask(&s, "GET", "/any", "").body.data, "[none][none][none]");
    tornado_application_free(s.app);
}

static void kwargs_get(tornado_handler *self)
{
    static const char *const names[] = {"year", "name", "yea", "years", "YEAR"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = tornado_path_kwarg(self, names[i]);
        tornado_writef(self, "[%s]", value ? value : "none");
    }
}

static const tornado_handler_class kwargs_class = {.get = kwargs_get};

TEST(web_path_arguments_with_names)
{
    site s = serve("/(?P<year>[0-9]*)-?(?P<name>x.*)?", &kwargs_class, NULL);
    CHECK_STR(ask(&s, "GET", "/2026-x%2Fy", "").body.data, "[2026][x/y][none][none][none]");
    CHECK_STR(ask(&s, "GET", "/", "").body.data, "[][none][none][none][none]");
    tornado_application_free(s.app);
}

static void mixed_get(tornado_handler *self)
{
    tornado_writef(self, "%s %s %s %s", tornado_path_arg(self, 0), tornado_path_arg(self, 1), tornado_path_arg(self, 2),
                   tornado_path_kwarg(self, "name"));
}

TEST(web_path_arguments_with_names_are_there_by_position_too)
{
    static const tornado_handler_class cls = {.get = mixed_get};
    site s = serve("/(.)(?P<name>.)(.)", &cls, NULL);
    CHECK_STR(ask(&s, "GET", "/abc", "").body.data, "a b c b");
    tornado_application_free(s.app);
}

TEST(web_path_arguments_that_are_not_utf8_are_400_before_prepare)
{
    static const char *const targets[] = {"/a/%ff",    "/%c3/b",            "/a/\xff", "/%ed%a0%80/b",
                                          "/%c0%af/b", "/a/x%f4%90%80%80", "/a/%00",  "/a%00b/b"};
    site s = serve("/([^/]*)/(.*)", &args_class, NULL);
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        log_keep();
        answer a = ask(&s, "GET", targets[i], "");
        if (a.status != 400 || strstr(a.body.data, "Invalid"))
            FAIL("%s is answered %d %s", targets[i], a.status, a.body.data);
        CHECK_INT(logged("Invalid unicode"), 1);
        CHECK_STR(traced(), "");
    }
    tornado_application_free(s.app);
}

static const char *own_decode(tornado_handler *self, tornado_bytes value, const char *name)
{
    if (value.len == 3)
        tornado_raise_http_error(422, "three");
    return tornado_format(self, "%s=%zu", name ? name : "-", value.len);
}

TEST(web_a_class_may_decode_path_arguments_its_own_way)
{
    static const tornado_handler_class by_place = {.parent = &args_class, .decode_argument = own_decode},
                                       by_name = {.parent = &kwargs_class, .decode_argument = own_decode};
    site s = serve_rules((tornado_rule[]){{.path = "/p/(.*)/(x)?", .handler = &by_place},
                                          {.path = "/n/(?P<year>.*)/(?P<name>x)?", .handler = &by_name}, {0}});
    log_keep();
    CHECK_STR(ask(&s, "GET", "/p/%ff%ff/", "").body.data, "[-=2][none][none]");
    CHECK_STR(ask(&s, "GET", "/n/%00/x", "").body.data, "[year=1][name=1][none][none][none]");
    CHECK_INT(ask(&s, "GET", "/p/abc/", "").status, 422);
    tornado_application_free(s.app);
}

static void all_args_get(tornado_handler *self)
{
    for (size_t i = 0; i < 31; i++)
        tornado_write(self, tornado_path_arg(self, i));
    CHECK(!tornado_path_arg(self, 31));
}

TEST(web_31_path_arguments)
{
    static const tornado_handler_class cls = {.get = all_args_get};
    char path[200] = "/";
    for (int i = 0; i < 31; i++)
        strcat(path, "(.)");
    site s = serve(path, &cls, NULL);
    CHECK_STR(ask(&s, "GET", "/ABCDEFGHIJKLMNOPQRSTUVWXYZ01234", "").body.data, "ABCDEFGHIJKLMNOPQRSTUVWXYZ01234");
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Redirects.
 *----------------------------------------------------------------------------*/

typedef struct redirect_row {
    const char *url;
    int how; /* -1: permanent, -2: not; else the status */
    int status;
} redirect_row;

static void redirect_get(tornado_handler *self)
{
    const redirect_row *row = self->data;
    if (row->how < 0)
        tornado_redirect(self, row->url, row->how == -1);
    else
        tornado_redirect_status(self, row->url, row->how);
    CHECK(tornado_finished(self));
    note("returned ");
}

static const tornado_handler_class redirect_class = {
    .get = redirect_get, .head = redirect_get, .post = redirect_get};

TEST(web_redirect_sends_its_url_as_it_is)
{
    static redirect_row rows[] = {{"/a", -1, 301}, {"/a", -2, 302}, {"http://other.example/x?y#z", -2, 302},
                                  {"relative/../x", -2, 302}, {"", -2, 302}, {"//host/", -2, 302}, {"?q", -1, 301},
                                  {"/sp ace\xc3\xa9\"<>", -2, 302}, {"/a", 300, 300}, {"/a", 303, 303},
                                  {"/a", 307, 307}, {"/a", 308, 308}};
    static const char *const methods[] = {"GET", "HEAD", "POST"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        site s = serve("/", &redirect_class, &rows[i]);
        for (size_t k = 0; k < 3; k++) {
            answer a = ask(&s, methods[k], "/", k == 2 ? "Content-Length: 0\r\n" : "");
            CHECK_INT(a.status, rows[i].status);
            CHECK_STR(head_value(a.head, "Location"), rows[i].url);
            CHECK_INT(a.body.len, 0);
            CHECK(!head_value(a.head, "Etag"));
        }
        CHECK_STR(traced(), "returned returned returned ");
        tornado_application_free(s.app);
    }
}

TEST(web_redirect_refuses_control_characters_and_what_is_no_status_of_a_redirect)
{
    static redirect_row rows[] = {{"/a\r\nSet-Cookie: x=y", -1, 0}, {"/a\n", -2, 0}, {"/a\x7f", 303, 0},
                                  {"/\x01", -1, 0}, {"/a", 299, 0}, {"/a", 400, 0}, {"/a", 200, 0}, {"/a", 0, 0},
                                  {"/a", 65836, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        site s = serve("/", &redirect_class, &rows[i]);
        log_keep();
        answer a = ask(&s, "GET", "/", "");
        CHECK_INT(a.status, 500);
        CHECK(!head_value(a.head, "Location") && !head_value(a.head, "Set-Cookie"));
        CHECK_INT(logged("TORNADO_ERR_INVALID"), 1);
        CHECK_STR(traced(), "");
        tornado_application_free(s.app);
    }
}

static void redirect_try_split(void *arg)
{
    tornado_redirect(arg, "/a\r\nX: y", true);
}

static void redirect_try_unnamed(void *arg)
{
    tornado_redirect_status(arg, "/a", 310);
}

static void refused_redirect_get(tornado_handler *self)
{
    CHECK(is_error(tornado_try(redirect_try_split, self), TORNADO_ERR_INVALID));
    CHECK(is_error(tornado_try(redirect_try_unnamed, self), TORNADO_ERR_INVALID));
    CHECK_INT(tornado_get_status(self), 200);
    tornado_write(self, "as before");
}

TEST(web_redirect_that_is_refused_changes_nothing)
{
    static const tornado_handler_class cls = {.get = refused_redirect_get};
    site s = serve("/", &cls, NULL);
    answer a = ask(&s, "GET", "/", "");
    CHECK_INT(a.status, 200);
    CHECK(!head_value(a.head, "Location"));
    CHECK_STR(a.body.data, "as before");
    tornado_application_free(s.app);
}

static void try_redirect(void *arg)
{
    tornado_redirect(arg, "/elsewhere", false);
}

static void late_redirect_get(tornado_handler *self)
{
    tornado_write(self, "first");
    if (strcmp(self->request->query, "flushed") == 0)
        tornado_await(tornado_flush(self));
    else
        tornado_finish(self);
    CHECK(is_error(tornado_try(try_redirect, self), TORNADO_ERR_STATE));
    note("refused ");
}

TEST(web_redirect_after_the_headers_were_sent_is_an_error)
{
    static const tornado_handler_class cls = {.get = late_redirect_get};
    site s = serve("/", &cls, NULL);
    for (int i = 0; i < 2; i++) {
        answer a = ask(&s, "GET", i ? "/?flushed" : "/?finished", "");
        CHECK_INT(a.status, 200);
        CHECK(!head_value(a.head, "Location"));
        CHECK_STR(a.body.data, "first");
        CHECK_STR(traced(), "refused ");
    }
    tornado_application_free(s.app);
}

static void written_redirect_get(tornado_handler *self)
{
    tornado_set_header(self, "Location", "/first");
    tornado_set_header(self, "X-Kept", "yes");
    tornado_set_cookie(self, "c", "v", NULL);
    tornado_write(self, "moved");
    tornado_redirect(self, "/second", false);
}

TEST(web_redirect_keeps_what_was_written_and_set)
{
    static const tornado_handler_class cls = {.get = written_redirect_get};
    site s = serve("/", &cls, NULL);
    answer a = ask(&s, "GET", "/", "");
    CHECK_INT(a.status, 302);
    CHECK_STR(head_value(a.head, "Location"), "/second");
    CHECK(!strstr(a.head, "/first"));
    CHECK_STR(head_value(a.head, "X-Kept"), "yes");
    CHECK(head_value(a.head, "Set-Cookie") != NULL);
    CHECK_STR(a.body.data, "moved");
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Slashes at the end.
 *----------------------------------------------------------------------------*/

static void slash_verb(tornado_handler *self)
{
    ((void (*)(tornado_handler *))(uintptr_t)self->data)(self);
    note("verb ");
    tornado_write(self, "ok");
}

static const tornado_handler_class slash_class = {.get = slash_verb, .head = slash_verb, .post = slash_verb};
#define SLASH(fn) serve(NULL, &slash_class, (void *)(uintptr_t)(fn))

typedef struct slash_row {
    const char *method, *target, *location; /* location NULL: none */
    int status;
} slash_row;

static void check_slashes(site s, const slash_row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *lines = strcmp(rows[i].method, "POST") == 0 ? "Content-Length: 0\r\n" : "";
        answer a = ask(&s, rows[i].method, rows[i].target, lines);
        const char *location = head_value(a.head, "Location");
        bool right = rows[i].location ? location && strcmp(location, rows[i].location) == 0 : !location;
        if (a.status != rows[i].status || !right)
            FAIL("%s %s is answered %d %s", rows[i].method, rows[i].target, a.status, location ? location : "");
        CHECK_STR(traced(), a.status == 200 ? "verb " : "");
    }
    tornado_application_free(s.app);
}

TEST(web_addslash_redirects_to_the_path_with_a_slash)
{
    static const slash_row rows[] = {
        {"GET", "/a", "/a/", 301},    {"GET", "/a?x=1&y", "/a/?x=1&y", 301}, {"HEAD", "/a/b", "/a/b/", 301},
        {"GET", "/a?", "/a/", 301},   {"GET", "/a%2F?b/", "/a%2F/?b/", 301}, {"GET", "/a/", NULL, 200},
        {"HEAD", "/a/", NULL, 200},   {"GET", "/", NULL, 200},               {"GET", "/a/?x", NULL, 200},
        {"POST", "/a", NULL, 404},    {"POST", "/a/", NULL, 200},
        {"GET", "/h\xc3\xa9", "/h\xc3\xa9/", 301}, {"GET", "http://a/x?y", "/x/?y", 301},
        {"GET", "/a//b", "/a//b/", 301}};
    log_keep();
    check_slashes(SLASH(tornado_addslash), rows, sizeof rows / sizeof *rows);
}

TEST(web_removeslash_redirects_to_the_path_without_slashes)
{
    static const slash_row rows[] = {
        {"GET", "/a/", "/a", 301},    {"GET", "/a/?x=1&y/", "/a?x=1&y/", 301}, {"HEAD", "/a/b/", "/a/b", 301},
        {"GET", "/a///", "/a", 301},  {"GET", "/a/?", "/a", 301},             {"GET", "/a", NULL, 200},
        {"HEAD", "/a", NULL, 200},    {"GET", "/", NULL, 200},                {"GET", "/?x/", NULL, 200},
        {"GET", "//", NULL, 200},     {"POST", "/a/", NULL, 404},             {"POST", "/a", NULL, 200},
        {"GET", "/a//b/", "/a//b", 301}, {"GET", "http://a/x/", "/x", 301}};
    log_keep();
    check_slashes(SLASH(tornado_removeslash), rows, sizeof rows / sizeof *rows);
}

/* A browser takes what begins with two slashes, of either kind, for a host. */
TEST(web_slashes_never_redirect_to_another_host)
{
    static const char *const paths[] = {"//evil.example", "///evil.example", "//evil.example/x", "/\\evil.example",
                                        "/\\/evil.example", "//evil.example//x", "http://a//evil.example",
                                        "http://a/\\evil.example", "//evil.example?x"};
    for (int removes = 0; removes < 2; removes++) {
        site s = removes ? SLASH(tornado_removeslash) : SLASH(tornado_addslash);
        log_keep();
        for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
            char target[100];
            size_t len = strcspn(paths[i], "?");
            snprintf(target, sizeof target, "%.*s%s%s", (int)len, paths[i], removes ? "/" : "", paths[i] + len);
            answer a = ask(&s, "GET", target, "");
            const char *location = head_value(a.head, "Location");
            if (a.status == 200 || (location && (location[0] != '/' || location[1] == '/' || location[1] == '\\')))
                FAIL("%s is answered %d %s", target, a.status, location ? location : "");
        }
        tornado_application_free(s.app);
    }
}

/*----------------------------------------------------------------------------
 * Ending early.
 *----------------------------------------------------------------------------*/

static void finish_deep(void)
{
    tornado_defer(note, "deferred ");
    tornado_raise_finish();
}

/* Ends where the query says, after what it says. */
static void finish_here(tornado_handler *self, const char *where)
{
    const char *query = self->request->query;
    note((void *)(uintptr_t)where);
    note(" ");
    if (!strstr(query, where))
        return;
    if (strstr(query, "status")) {
        tornado_set_status(self, 401);
        tornado_set_header(self, "WWW-Authenticate", "Basic realm=\"something\"");
    }
    if (strstr(query, "output"))
        tornado_write(self, "written");
    if (strstr(query, "flush"))
        tornado_await(tornado_flush(self));
    if (strstr(query, "more"))
        tornado_write(self, " more");
    if (strstr(query, "done"))
        tornado_finish(self);
    finish_deep();
}

static void finish_initialize(tornado_handler *self)
{
    finish_here(self, "initialize");
}

static void finish_prepare(tornado_handler *self)
{
    finish_here(self, "prepare");
}

static void finish_verb(tornado_handler *self)
{
    finish_here(self, "verb");
    tornado_write(self, "whole");
}

static void finish_on_finish(tornado_handler *self)
{
    (void)self;
    note("finished ");
}

static void finish_write_error(tornado_handler *self, int status, const tornado_error *error)
{
    (void)self;
    (void)status;
    (void)error;
    note("write_error ");
}

static void finish_log(tornado_handler *self, const tornado_error *error)
{
    (void)self;
    (void)error;
    note("log_exception ");
}

static const tornado_handler_class finish_class = {.initialize = finish_initialize, .prepare = finish_prepare,
                                                   .get = finish_verb, .head = finish_verb, .post = finish_verb,
                                                   .on_finish = finish_on_finish, .write_error = finish_write_error,
                                                   .log_exception = finish_log};

TEST(web_raise_finish_ends_the_request_with_what_was_written_so_far)
{
    static const struct {
        const char *method, *query, *trace, *body;
        int status;
    } rows[] = {
        {"GET", "", "initialize prepare verb finished ", "whole", 200},
        {"GET", "verb+", "initialize prepare verb deferred finished ", "", 200},
        {"GET", "prepare+", "initialize prepare deferred finished ", "", 200},
        {"GET", "initialize+", "initialize deferred finished ", "", 200},
        {"GET", "verb+output", "initialize prepare verb deferred finished ", "written", 200},
        {"GET", "prepare+status", "initialize prepare deferred finished ", "", 401},
        {"POST", "prepare+status+output", "initialize prepare deferred finished ", "written", 401},
        {"GET", "verb+status+output+flush", "initialize prepare verb deferred finished ", "written", 401},
        {"GET", "verb+output+flush+more", "initialize prepare verb deferred finished ", "written more", 200},
        {"POST", "prepare+output+flush+more", "initialize prepare deferred finished ", "written more", 200},
        {"HEAD", "verb+output", "initialize prepare verb deferred finished ", "", 200},
        {"GET", "verb+output+done", "initialize prepare verb finished deferred ", "written", 200},
    };
    site s = serve("/", &finish_class, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char target[100];
        snprintf(target, sizeof target, "/?%s", rows[i].query);
        log_keep();
        answer a = ask(&s, rows[i].method, target, strcmp(rows[i].method, "POST") ? "" : "Content-Length: 0\r\n");
        CHECK_INT(a.status, rows[i].status);
        CHECK_STR(a.body.data, rows[i].body);
        CHECK_INT(head_value(a.head, "WWW-Authenticate") != NULL, a.status == 401);
        CHECK_INT(logged("Uncaught"), 0);
        CHECK_STR(traced(), rows[i].trace);
    }
    tornado_application_free(s.app);
}

static void finish_caught(void *arg)
{
    (void)arg;
    tornado_raise_finish();
}

static void catching_get(tornado_handler *self)
{
    CHECK(is_error(tornado_try(finish_caught, NULL), TORNADO_ERR_FINISH));
    CHECK(!tornado_finished(self));
    tornado_write(self, "goes on");
}

TEST(web_raise_finish_can_be_caught)
{
    static const tornado_handler_class cls = {.get = catching_get};
    site s = serve("/", &cls, NULL);
    CHECK_STR(ask(&s, "GET", "/", "").body.data, "goes on");
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Ending later.
 *----------------------------------------------------------------------------*/

static tornado_handler *pending; /* waits for its end */

static void pending_get(tornado_handler *self)
{
    tornado_asynchronous(self);
    tornado_asynchronous(self); /* twice is as once */
    tornado_write(self, "begun");
    pending = self;
    self->data = tornado_format(self, "%s", "kept");
}

static void pending_close(tornado_handler *self)
{
    CHECK(self == pending && !tornado_connected(self));
    note("closed ");
}

static const tornado_handler_class pending_class = {
    .name = "pending", .get = pending_get, .post = pending_get, .on_connection_close = pending_close,
    .on_finish = finish_on_finish};

/* Serves a request that waits for its end, over a client that is still open. */
static site pend(const tornado_handler_class *cls, client *c, const char *request)
{
    site s = serve("/", cls, NULL);
    *c = client_open(s.port);
    pending = NULL;
    log_keep();
    client_send(c, request);
    UNTIL(pending && tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
    return s;
}

static void finish_later(void *arg)
{
    tornado_handler *self = arg;
    tornado_writef(self, " %s ", (const char *)self->data);
    tornado_write_json(self, "{a:i}", 1);
    tornado_finish(self);
    note("timer ");
}

TEST(web_asynchronous_ends_when_a_timer_finishes)
{
    client c;
    answer a;
    site s = pend(&pending_class, &c, GET("/"));
    loop_turns(3);
    CHECK(!client_read(&c) && !c.ended);
    CHECK_STR(traced(), "");
    CHECK(!tornado_finished(pending) && tornado_connected(pending));
    CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.001, finish_later, pending));
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK_STR(a.body.data, "begun kept {\"a\": 1}");
    CHECK(head_value(a.head, "Etag") != NULL);
    CHECK_STR(traced(), "finished timer ");
    CHECK_INT(logged("200 GET /"), 1);
    client_close(&c);
    tornado_application_free(s.app);
}

static void *finish_coroutine(void *arg)
{
    tornado_handler *self = arg;
    for (int i = 0; i < 3; i++) {
        tornado_await(tornado_sleep(0.001));
        tornado_writef(self, " %d", i);
        tornado_await(tornado_flush(self));
    }
    tornado_write(self, " end");
    tornado_finish(self);
    return NULL;
}

TEST(web_asynchronous_ends_when_another_coroutine_finishes)
{
    client c;
    answer a;
    site s = pend(&pending_class, &c, POST("/"));
    tornado_future_release(tornado_spawn(finish_coroutine, pending));
    CHECK(client_answer(&c, &a));
    CHECK_STR(head_value(a.head, "Transfer-Encoding"), "chunked");
    CHECK_STR(a.body.data, "begun 0 1 2 end");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_requests_behind_an_asynchronous_one_wait_for_it)
{
    client c;
    answer a;
    site s = pend(&pending_class, &c, GET("/") GET("/none") GET("/"));
    tornado_handler *first = pending;
    loop_turns(3);
    CHECK(pending == first && !client_read(&c));
    pending = NULL;
    tornado_finish(first);
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, "begun", 5);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 404);
    UNTIL(pending);
    tornado_finish(pending);
    CHECK(client_answer(&c, &a));
    CHECK_STR(a.body.data, "begun");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_asynchronous_lives_on_when_the_client_is_gone)
{
    for (int reset = 0; reset < 2; reset++) {
        client c;
        site s = pend(&pending_class, &c, GET("/"));
        if (reset) {
            close_with_reset(c.fd);
            c.fd = -1;
        }
        client_close(&c);
        UNTIL(tornado_httpserver_connections(s.server) == 0 && strstr(trace, "closed "));
        loop_turns(3);
        CHECK_STR(traced(), "closed ");
        CHECK(!tornado_finished(pending) && !tornado_connected(pending));
        CHECK_STR(pending->data, "kept");
        CHECK_STR(pending->request->path, "/");
        tornado_write(pending, "unread");
        CHECK_INT(loop_code(tornado_flush(pending)), TORNADO_ERR_CLOSED);
        tornado_finish(pending);
        CHECK_STR(traced(), "finished ");
        CHECK_INT(logged("Uncaught"), 0);
        tornado_application_free(s.app);
    }
}

TEST(web_what_is_flushed_to_a_client_that_is_gone_takes_no_memory)
{
    client c;
    site s = pend(&pending_class, &c, GET("/"));
    static char text[10001];
    long allocs[2];
    memset(text, 'x', sizeof text - 1);
    client_close(&c);
    UNTIL(strstr(trace, "closed "));
    tornado_write(pending, text);
    for (int with_text = 0; with_text < 2; with_text++) {
        long before = test_allocs();
        for (int i = 0; i < 100; i++) {
            if (with_text)
                tornado_write(pending, text);
            CHECK_INT(loop_code(tornado_flush(pending)), TORNADO_ERR_CLOSED);
        }
        allocs[with_text] = test_allocs() - before;
    }
    CHECK_INT(allocs[1], allocs[0]);
    tornado_finish(pending);
    tornado_application_free(s.app);
}

static void finishing_close(tornado_handler *self)
{
    note("closed ");
    tornado_await(tornado_moment());
    tornado_finish(self);
    CHECK_STR(self->data, "kept"); /* this coroutine keeps the request, too */
}

TEST(web_asynchronous_may_end_in_on_connection_close)
{
    static const tornado_handler_class cls = {.parent = &pending_class, .on_connection_close = finishing_close};
    client c;
    site s = pend(&cls, &c, GET("/"));
    client_close(&c);
    UNTIL(strstr(trace, "finished ") && tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
    CHECK_STR(traced(), "closed finished ");
    tornado_application_free(s.app);
}

static tornado_future *etag_gate;

static const char *waiting_etag(tornado_handler *self)
{
    tornado_future *gate = etag_gate;
    (void)self;
    etag_gate = NULL;
    if (gate)
        tornado_await(gate);
    return NULL;
}

static void *finish_beside(void *self)
{
    tornado_finish(self);
    return NULL;
}

static void overtaken_get(tornado_handler *self)
{
    if (self->request->query[0]) {
        tornado_asynchronous(self);
        tornado_future_release(tornado_handler_spawn(self, finish_beside, self));
    }
}

static void overtaking_close(tornado_handler *self)
{
    note("closed ");
    tornado_finish(self);
}

TEST(web_a_request_that_another_finishes_while_compute_etag_waits_is_finished_once)
{
    static const tornado_handler_class cls = {.get = overtaken_get, .compute_etag = waiting_etag,
                                              .on_connection_close = overtaking_close,
                                              .on_finish = finish_on_finish};
    static const char *const requests[] = {GET("/"), GET("/?asynchronous")};
    log_keep();
    for (int i = 0; i < 2; i++) {
        tornado_future *gate = tornado_future_new();
        site s = serve("/", &cls, NULL);
        client c = client_open(s.port);
        etag_gate = tornado_future_retain(gate);
        client_send(&c, requests[i]);
        UNTIL(!etag_gate);
        client_close(&c);
        UNTIL(strstr(trace, "finished "));
        tornado_future_set_result(gate, NULL, NULL);
        tornado_future_release(gate);
        UNTIL(tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
        CHECK_STR(traced(), "closed finished ");
        CHECK_INT(logged("Uncaught"), 0);
        tornado_application_free(s.app);
    }
}

TEST(web_asynchronous_lives_on_when_the_server_is_freed)
{
    for (int timer = 0; timer < 2; timer++) {
        client c;
        site s = pend(&pending_class, &c, GET("/"));
        tornado_application_free(s.app);
        CHECK(!client_more(&c));
        client_close(&c);
        UNTIL(strstr(trace, "closed "));
        loop_turns(3);
        CHECK_STR(pending->cls->name, "pending");
        CHECK_STR(pending->data, "kept");
        traced();
        if (timer) {
            CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.001, finish_later, pending));
            UNTIL(strstr(trace, "timer "));
        } else {
            tornado_finish(pending);
        }
        CHECK(strstr(traced(), "finished ") != NULL);
    }
}

static void ending_get(tornado_handler *self)
{
    const char *query = self->request->query;
    tornado_asynchronous(self);
    tornado_write(self, "begun");
    if (strstr(query, "wait"))
        tornado_await(tornado_sleep(0.001));
    if (strstr(query, "flush"))
        tornado_await(tornado_flush(self));
    if (strstr(query, "http"))
        tornado_raise_http_error(418, "raised");
    if (strstr(query, "raise"))
        tornado_raise(TORNADO_ERR_PARSE, "raised");
    if (strstr(query, "error"))
        tornado_send_error(self, 403);
    else if (strstr(query, "early"))
        tornado_raise_finish();
    else if (strstr(query, "redirect"))
        tornado_redirect(self, "/", false);
    else
        tornado_finish(self);
    tornado_asynchronous(self); /* too late to matter */
    CHECK(tornado_finished(self));
    CHECK_STR(self->request->path, "/"); /* alive while its verb runs */
    if (strstr(query, "after"))
        tornado_raise(TORNADO_ERR_PARSE, "raised");
}

TEST(web_asynchronous_may_end_in_its_verb_in_any_way)
{
    static const struct {
        const char *query;
        int status, raised;
    } rows[] = {{"", 200, 0},          {"wait", 200, 0},       {"raise", 500, 1},       {"wait+raise", 500, 1},
                {"flush+raise", 200, 1}, {"http", 418, 1},       {"wait+http", 418, 1},   {"error", 403, 0},
                {"wait+error", 403, 0}, {"early", 200, 0},      {"wait+early", 200, 0},  {"flush+early", 200, 0},
                {"redirect", 302, 0},  {"after", 200, 1},      {"wait+after", 200, 1},  {"flush", 200, 0}};
    static const tornado_handler_class cls = {.get = ending_get, .on_finish = finish_on_finish};
    site s = serve("/", &cls, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char target[40];
        snprintf(target, sizeof target, "/?%s", rows[i].query);
        log_keep();
        answer a = ask(&s, "GET", target, "");
        if (a.status != rows[i].status)
            FAIL("%s is answered %d", target, a.status);
        CHECK_INT(logged("raised"), rows[i].raised);
        CHECK_STR(traced(), "finished ");
    }
    UNTIL(tornado_ioloop_coroutines(tornado_ioloop_current()) == 0);
    tornado_application_free(s.app);
}

static void asynchronous_prepare(tornado_handler *self)
{
    tornado_asynchronous(self);
}

TEST(web_asynchronous_in_prepare_counts_for_the_verb)
{
    static const tornado_handler_class cls = {.prepare = asynchronous_prepare, .get = pending_get};
    client c;
    answer a;
    site s = pend(&cls, &c, GET("/"));
    loop_turns(3);
    CHECK(!client_read(&c));
    tornado_finish(pending);
    CHECK(client_answer(&c, &a));
    CHECK_STR(a.body.data, "begun");
    client_close(&c);
    tornado_application_free(s.app);
}

/* Ends a request that waits, from outside of any coroutine. */
static void end_by_error(void *arg)
{
    tornado_send_error(arg, 503);
}

static void end_by_redirect(void *arg)
{
    tornado_redirect(arg, "/elsewhere", false);
}

static void end_without_body(void *arg)
{
    tornado_set_status(arg, 204);
    tornado_finish(arg); /* but something was written */
}

static void end_with_wrong_length(void *arg)
{
    tornado_set_header(arg, "Content-Length", "100");
    tornado_finish(arg);
}

TEST(web_asynchronous_ends_with_an_error_page_or_a_redirect)
{
    for (int i = 0; i < 4; i++) { /* the second time without a client */
        client c;
        answer a;
        site s = pend(&pending_class, &c, GET("/"));
        if (i & 2) {
            client_close(&c);
            UNTIL(strstr(trace, "closed "));
            loop_turns(3);
        }
        traced();
        tornado_callback end = i & 1 ? end_by_redirect : end_by_error;
        CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), end, pending));
        UNTIL(strstr(trace, "finished "));
        CHECK_STR(traced(), "finished ");
        CHECK_INT(logged("Uncaught"), 0);
        if (!(i & 2)) {
            CHECK(client_answer(&c, &a));
            CHECK_INT(a.status, i ? 302 : 503);
            CHECK_INT(client_ask(&c, GET("/none")).status, 404);
            client_close(&c);
        }
        tornado_application_free(s.app);
    }
}

/* After tornado_finish nobody may touch the handler any more, whatever came of it: so the request ends also when it
   fails. */
TEST(web_asynchronous_that_cannot_be_finished_ends_too)
{
    static const tornado_callback ends[] = {end_without_body, end_with_wrong_length};
    static const tornado_handler_class cls = {.get = pending_get};
    for (size_t i = 0; i < 2; i++) {
        client c;
        answer a;
        site s = pend(&cls, &c, GET("/"));
        long before = test_live();
        tornado_try(ends[i], pending);
        CHECK(!client_answer(&c, &a) || a.status == 500);
        client_close(&c);
        UNTIL(tornado_httpserver_connections(s.server) == 0);
        loop_turns(3);
        CHECK(test_live() <= before);
        tornado_application_free(s.app);
    }
}

static void raising_on_finish(tornado_handler *self)
{
    (void)self;
    tornado_raise(TORNADO_ERR_PARSE, "raised by on_finish");
}

TEST(web_asynchronous_ends_also_when_on_finish_raises)
{
    static const tornado_handler_class cls = {.get = pending_get, .on_finish = raising_on_finish};
    client c;
    answer a;
    site s = pend(&cls, &c, GET("/"));
    CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), finish_later, pending));
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK_INT(logged("raised by on_finish"), 1);
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(web_thousands_of_asynchronous_requests_leave_nothing_behind)
{
    client c;
    answer a;
    site s = pend(&pending_class, &c, GET("/"));
    long live = 0;
    for (int i = 0; i < 2000; i++) {
        tornado_handler *last = pending;
        pending = NULL;
        tornado_finish(last);
        CHECK(client_answer(&c, &a));
        client_send(&c, GET("/"));
        UNTIL(pending);
        trace[0] = log_text[0] = '\0';
        if (i == 100)
            live = test_live();
    }
    CHECK(test_live() <= live);
    tornado_finish(pending);
    CHECK(client_answer(&c, &a));
    client_close(&c);
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Further methods.
 *----------------------------------------------------------------------------*/

static void dav_propfind(tornado_handler *self)
{
    tornado_writef(self, "%s %.*s", self->request->method, (int)self->request->body.len, self->request->body.data);
}

static void dav_own(tornado_handler *self)
{
    tornado_write(self, "own");
}

static const tornado_method dav_methods[] = {{"PROPFIND", dav_propfind}, {"MKCOL", dav_propfind},
                                             {"VERSION-CONTROL", dav_propfind}, {"M-SEARCH", dav_propfind}, {0}};
static const tornado_method dav_child_methods[] = {{"LOCK", dav_own}, {"MKCOL", dav_own}, {0}};
static const tornado_handler_class dav_class = {.methods = dav_methods, .get = text_get, .prepare = args_prepare};
static const tornado_handler_class dav_child_class = {
    .parent = &dav_class, .methods = dav_child_methods, .put = dav_own};
static const tornado_handler_class dav_grandchild_class = {.parent = &dav_child_class};
static const tornado_rule dav_rules[] = {{.path = "/", .handler = &dav_class},
                                         {.path = "/child", .handler = &dav_child_class},
                                         {.path = "/grandchild", .handler = &dav_grandchild_class},
                                         {.path = "/plain", .handler = &text_class}, {0}};

TEST(web_methods_beyond_the_seven_run_and_are_inherited)
{
    static const struct {
        const char *method, *path, *body; /* body NULL: 405 */
    } rows[] = {{"PROPFIND", "/", "PROPFIND body"}, {"MKCOL", "/", "MKCOL body"},
                {"M-SEARCH", "/", "M-SEARCH body"},
                {"VERSION-CONTROL", "/", "VERSION-CONTROL body"}, {"GET", "/", "text"}, {"LOCK", "/", NULL},
                {"PROPFIND", "/child", "PROPFIND body"}, {"MKCOL", "/child", "own"}, {"LOCK", "/child", "own"},
                {"LOCK", "/grandchild", "own"}, {"MKCOL", "/grandchild", "own"}, {"GET", "/grandchild", "text"},
                {"VERSION-CONTROL", "/grandchild", "VERSION-CONTROL body"}, {"PROPFIND", "/plain", NULL},
                {"PROPFIN", "/", NULL}, {"PROPFINDX", "/", NULL}, {"propfind", "/", NULL}, {"VERSION-", "/", NULL},
                {"get", "/", NULL}, {"GETX", "/", NULL}, {"PUT", "/child", "own"}, {"PUT", "/", NULL}};
    site s = serve_rules(dav_rules);
    client c = client_open(s.port);
    log_keep();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[200];
        snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
                 rows[i].method, rows[i].path);
        answer a = client_ask(&c, request);
        if (a.status != (rows[i].body ? 200 : 405))
            FAIL("%s %s is answered %d", rows[i].method, rows[i].path, a.status);
        if (rows[i].body)
            CHECK_MEM(a.body.data, a.body.len, rows[i].body, strlen(rows[i].body));
        bool seven = strcmp(rows[i].method, "PUT") == 0;
        if (strcmp(rows[i].path, "/plain") != 0)
            CHECK_STR(traced(), rows[i].body || seven ? "prepare " : "");
    }
    client_close(&c);
    tornado_application_free(s.app);
}

/* How often a word stands in a list with commas. */
static int listed(const char *list, const char *word)
{
    int count = 0;
    size_t len = strlen(word);
    for (const char *at = list; *at; at += strcspn(at, ","), at += strspn(at, ", "))
        count += strcspn(at, ", ") == len && memcmp(at, word, len) == 0;
    return count;
}

TEST(web_allow_tells_each_method_once)
{
    static const struct {
        const char *path, *words[12];
    } rows[] = {{"/", {"GET", "PROPFIND", "MKCOL", "VERSION-CONTROL", "M-SEARCH"}},
                {"/child", {"GET", "PUT", "PROPFIND", "MKCOL", "VERSION-CONTROL", "M-SEARCH", "LOCK"}},
                {"/grandchild", {"GET", "PUT", "PROPFIND", "MKCOL", "VERSION-CONTROL", "M-SEARCH", "LOCK"}},
                {"/plain", {"GET", "POST"}}};
    site s = serve_rules(dav_rules);
    log_keep();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        answer a = ask(&s, "PATCH", rows[i].path, "Content-Length: 0\r\n");
        const char *allow = head_value(a.head, "Allow");
        int commas = 0, words = 0;
        CHECK_INT(a.status, 405);
        CHECK(allow != NULL);
        for (const char *at = allow; (at = strchr(at, ',')) != NULL; at++)
            commas++;
        for (; rows[i].words[words]; words++)
            if (listed(allow, rows[i].words[words]) != 1)
                FAIL("%s allows \"%s\", where %s is not once", rows[i].path, allow, rows[i].words[words]);
        CHECK_INT(commas, words - 1);
    }
    tornado_application_free(s.app);
}

TEST(web_methods_are_copied_with_their_names)
{
    char name[] = "PURGE";
    tornado_method methods[] = {{name, dav_own}, {0}};
    tornado_handler_class cls = {.methods = methods};
    site s = serve("/", &cls, NULL);
    memset(name, 'X', 5);
    memset(methods, 0xff, sizeof methods);
    memset(&cls, 0xff, sizeof cls);
    CHECK_STR(ask(&s, "PURGE", "/", "").body.data, "own");
    log_keep();
    CHECK_INT(ask(&s, "XXXXX", "/", "").status, 405);
    tornado_application_free(s.app);
}

static void dav_status(tornado_handler *self)
{
    tornado_set_status_reason(self, 207, "Multi-Status");
    tornado_write(self, "<multistatus/>");
    if (self->request->query[0])
        tornado_raise_finish();
}

TEST(web_a_further_method_has_neither_etag_nor_304)
{
    static const tornado_method methods[] = {{"REPORT", dav_status}, {"SEARCH", dav_own}, {0}};
    static const tornado_handler_class cls = {.methods = methods};
    site s = serve("/", &cls, NULL);
    answer a = ask(&s, "REPORT", "/", "If-None-Match: *\r\n");
    CHECK_INT(a.status, 207);
    CHECK_STR(a.body.data, "<multistatus/>");
    CHECK_INT(ask(&s, "REPORT", "/?early", "").status, 207);
    a = ask(&s, "SEARCH", "/", "If-None-Match: *\r\n");
    CHECK_INT(a.status, 200);
    CHECK(!head_value(a.head, "Etag"));
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * The handlers that come with the library.
 *----------------------------------------------------------------------------*/

TEST(web_error_handler_answers_each_request_with_its_status)
{
    static const int statuses[] = {403, 404, 410, 451, 503};
    static const char *const methods[] = {"GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS"};
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        if (!tornado_http_reason(statuses[i]))
            continue;
        site s = serve("/(.*)", &tornado_error_handler, (void *)(uintptr_t)&statuses[i]);
        log_keep();
        for (size_t k = 0; k < sizeof methods / sizeof *methods; k++) {
            answer a = ask(&s, methods[k], "/x", k < 2 ? "" : "Content-Length: 0\r\n");
            CHECK_INT(a.status, statuses[i]);
            CHECK_INT(a.body.len > 0, k != 1);
        }
        CHECK_INT(logged("Uncaught"), 0);
        tornado_application_free(s.app);
    }
    site s = serve("/", &tornado_error_handler, NULL);
    CHECK_INT(ask(&s, "GET", "/", "").status, 404);
    tornado_application_free(s.app);
}

static void teapot_error(tornado_handler *self, int status, const tornado_error *error)
{
    (void)error;
    tornado_writef(self, "own page of %d", status);
}

TEST(web_error_handler_may_be_a_parent)
{
    static const tornado_handler_class cls = {.parent = &tornado_error_handler, .write_error = teapot_error};
    static const int gone = 410;
    site s = serve("/", &cls, (void *)(uintptr_t)&gone);
    log_keep();
    CHECK_STR(ask(&s, "GET", "/", "").body.data, "own page of 410");
    tornado_application_free(s.app);
}

TEST(web_redirect_handler_puts_path_arguments_and_the_query_into_its_url)
{
    static const struct {
        const char *path, *url, *target, *location;
    } rows[] = {
        {"/old", "/new", "/old", "/new"},
        {"/old", "/new", "/old?a=1&b", "/new?a=1&b"},
        {"/old", "/new?x=y", "/old?a=1", "/new?x=y&a=1"},
        {"/old", "/new?x=y", "/old", "/new?x=y"},
        {"/old", "/new", "/old?", "/new"},
        {"/old", "http://other.example/", "/old?q", "http://other.example/?q"},
        {"/old", "/new#part", "/old", "/new#part"},
        {"/old", "/new#part", "/old?a=1", "/new?a=1#part"},
        {"/old", "/new?x#part?", "/old?a=1", "/new?x&a=1#part?"},
        {"/(.*)/(.*)/(.*)", "/{0}{1}/{2}", "/pics/x/y", "/picsx/y"},
        {"/(.*)/(.*)", "/{1}-{0}-{1}", "/a/b", "/b-a-b"},
        {"/(.*)", "/n/{0}", "/%2F+%20%c3%a9?q=%20", "/n/%2F+%20%c3%a9?q=%20"},
        {"/(.*)", "/n/{0}", "/", "/n/"},
        {"/(a)?b", "/n/{0}", "/b", "/n/"},
        {"/(a)?b", "/n/{0}{1}{7}{name}{}", "/ab", "/n/a"},
        {"/(?P<name>.*)/(?P<id>\\d)", "/{id}/{name}", "/x%2Fy/7", "/7/x%2Fy"},
        {"/(?P<name>.*)", "/{nam}{names}", "/x", "/"},
        {"/(.*)", "/{{0}}{{{0}}}", "/x", "/{0}{x}"},
        {"/old", "/{{}}", "/old", "/{}"},
        {"/old", "/{0}", "/old", "/"},
        {"/(.)(.)(.)(.)(.)(.)(.)(.)(.)(.)(.)", "/{10}{1}", "/abcdefghijk", "/kb"},
    };
    static const char *const methods[] = {"GET", "HEAD"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tornado_redirect_target target = {.url = rows[i].url};
        site s = serve(rows[i].path, &tornado_redirect_handler, &target);
        log_keep();
        for (size_t k = 0; k < 2; k++) {
            answer a = ask(&s, methods[k], rows[i].target, "");
            const char *location = head_value(a.head, "Location");
            if (a.status != 301 || !location || strcmp(location, rows[i].location) != 0)
                FAIL("%s to %s sends %s to %d %s", rows[i].path, rows[i].url, rows[i].target, a.status,
                     location ? location : "");
        }
        tornado_application_free(s.app);
    }
}

/* "/{0}" must not become "//evil.example", which is another host; a url that names one itself may. */
TEST(web_redirect_handler_never_leads_to_a_host_that_a_client_chose)
{
    static const struct {
        const char *path, *url, *target;
        int status;
    } rows[] = {
        {"/old/(.*)", "/{0}", "/old//evil.example", 403},
        {"/old/(.*)", "/{0}", "/old/\\evil.example", 403},
        {"/old/(.*)", "/{0}", "/old//evil.example/x?y", 403},
        {"/old(.*)", "{0}", "/old//evil.example", 403},
        {"/old/(.*)/(.*)", "/{0}{1}", "/old///evil.example", 403},
        {"/old/(?P<rest>.*)", "/{rest}", "/old//evil.example", 403},
        {"/old/(.*)", "/{0}", "/old/%2fevil.example", 301},
        {"/old/(.*)", "/{0}", "/old/x//evil.example", 301},
        {"/old/(.*)", "/new/{0}", "/old//evil.example", 301},
        {"/old/(.*)", "//cdn.example/{0}", "/old//x", 301},
        {"/old", "//cdn.example", "/old", 301},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tornado_redirect_target target = {.url = rows[i].url};
        site s = serve(rows[i].path, &tornado_redirect_handler, &target);
        log_keep();
        answer a = ask(&s, "GET", rows[i].target, "");
        if (a.status != rows[i].status)
            FAIL("%s to %s sends %s to %d", rows[i].path, rows[i].url, rows[i].target, a.status);
        CHECK_INT(head_value(a.head, "Location") != NULL, rows[i].status == 301);
        tornado_application_free(s.app);
    }
}

TEST(web_redirect_handler_is_permanent_or_not_and_for_get_and_head_alone)
{
    static const tornado_switch switches[] = {TORNADO_DEFAULT, TORNADO_ON, TORNADO_OFF};
    for (size_t i = 0; i < 3; i++) {
        tornado_redirect_target target = {.url = "/new", .permanent = switches[i]};
        site s = serve("/", &tornado_redirect_handler, &target);
        log_keep();
        CHECK_INT(ask(&s, "GET", "/", "").status, i == 2 ? 302 : 301);
        CHECK_INT(ask(&s, "HEAD", "/", "").status, i == 2 ? 302 : 301);
        answer a = ask(&s, "POST", "/", "Content-Length: 0\r\n");
        CHECK_INT(a.status, 405);
        CHECK_STR(head_value(a.head, "Allow"), "GET, HEAD");
        tornado_application_free(s.app);
    }
}

/*----------------------------------------------------------------------------
 * Memory.
 *----------------------------------------------------------------------------*/

static int later_begun, later_ended;

static void later_write(void *arg)
{
    tornado_writef(arg, "%0500d", 1);
}

static void later_finish(void *arg)
{
    tornado_finish(arg);
}

static void later_timer(void *arg)
{
    later_ended++;
    tornado_try(later_write, arg);
    tornado_try(later_finish, arg);
}

static void later_get(tornado_handler *self)
{
    tornado_asynchronous(self);
    if (!tornado_ioloop_call_later(tornado_ioloop_current(), 0.0001, later_timer, self))
        tornado_raise_error(tornado_last_error());
    later_begun++;
}

static void *later_coroutine(void *arg)
{
    tornado_error error = {0};
    (void)!tornado_wait(tornado_sleep(0.0001));
    const tornado_error *failed = tornado_try(later_write, arg);
    if (failed)
        error = *failed;
    if (!error.code && tornado_wait(tornado_moment()))
        error.code = 1;
    later_ended++;
    tornado_try(later_finish, arg);
    return NULL;
}

static void spawned_get(tornado_handler *self)
{
    tornado_asynchronous(self);
    tornado_future *future = tornado_spawn(later_coroutine, self);
    if (tornado_future_done(future))
        tornado_await(future); /* it could not be started */
    else
        later_begun++, tornado_future_release(future);
}

static void named_get(tornado_handler *self)
{
    const char *name = tornado_path_kwarg(self, "name");
    tornado_writef(self, "%s %s", name, tornado_reverse_url(self, "named", &name, 1));
}

static void slashed_get(tornado_handler *self)
{
    tornado_addslash(self);
    tornado_removeslash(self);
}

static void early_get(tornado_handler *self)
{
    tornado_set_status(self, 401);
    tornado_write(self, "early");
    tornado_raise_finish();
}

static const int short_status = 410;
static const tornado_redirect_target short_target = {.url = "/{0}/{{{1}}}"};
static const tornado_handler_class later_class = {.get = later_get}, spawned_class = {.get = spawned_get},
                                   named_class = {.get = named_get}, slashed_class = {.get = slashed_get},
                                   early_class = {.get = early_get};
static const tornado_rule short_rules[] = {
    {.path = "/later", .handler = &later_class},
    {.path = "/spawned", .handler = &spawned_class},
    {.path = "/named/(?P<name>.*)", .handler = &named_class, .name = "named"},
    {.path = "/slashed", .handler = &slashed_class},
    {.path = "/early", .handler = &early_class},
    {.path = "/dav", .handler = &dav_class},
    {.path = "/error", .handler = &tornado_error_handler, .data = (void *)(uintptr_t)&short_status},
    {.path = "/r/(.*)/(.*)", .handler = &tornado_redirect_handler, .data = (void *)(uintptr_t)&short_target},
    {0}};

static const char *const short_requests[] = {
    GET("/later"), GET("/spawned"), GET("/named/a%20b"), GET("/slashed"), GET("/early"),
    "PROPFIND /dav HTTP/1.1\r\nHost: a\r\n\r\n", "LOCK /dav HTTP/1.1\r\nHost: a\r\n\r\n", GET("/error"),
    GET("/r/a/b?q"), "GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"};
#define SHORT_STATUSES "200 200 200 301 401 200 405 410 301 404 "

/* What has come over a connection, read without allocating. */
static char short_got[65536];
static size_t short_len;

static void short_read(int fd, unsigned events, void *arg)
{
    ssize_t got;
    (void)events;
    while ((got = recv(fd, short_got + short_len, sizeof short_got - 1 - short_len, 0)) > 0)
        short_len += (size_t)got;
    if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        tornado_ioloop_stop(arg);
}

/* The statuses of all answers to some requests, the last of which closes, while the n-th allocation fails if n is
   not 0. Whether there was such a one. */
static bool short_ask(int port, const char *requests, long n, char statuses[100])
{
    tornado_ioloop *loop = tornado_ioloop_current();
    int fd = connect_loopback(port);
    set_nonblocking(fd);
    CHECK_INT(send(fd, requests, strlen(requests), MSG_NOSIGNAL), strlen(requests));
    CHECK(tornado_ioloop_add_handler(loop, fd, short_read, loop, TORNADO_IOLOOP_READ));
    short_len = 0;
    long allocs = test_allocs();
    test_fail_alloc(n);
    CHECK(tornado_ioloop_start(loop));
    bool hit = n && test_allocs() - allocs >= n;
    test_fail_alloc(0);
    CHECK(tornado_ioloop_remove_handler(loop, fd));
    close(fd);
    short_got[short_len] = statuses[0] = '\0';
    for (const char *at = short_got; (at = strstr(at, "HTTP/1.1 ")) != NULL && strlen(statuses) < 90; at += 9)
        snprintf(statuses + strlen(statuses), 5, "%.3s ", at + 9);
    return hit;
}

/* Serves rules and asks again and again, each time with a new loop, in which nothing is kept for reuse, while the
   1st, 2nd, 3rd... allocation fails. Each answer has its status or is an error of the server, and next time all
   are right. */
static void check_short(const tornado_rule *rules, const char *requests, const char *right)
{
    bool hit = true;
    tornado_ioloop_clear_current();
    log_keep();
    for (long n = 1; hit; n++) {
        char statuses[100];
        long live = test_live();
        tornado_ioloop *loop = tornado_ioloop_current();
        site s = serve_rules(rules);
        later_begun = later_ended = 0;
        hit = short_ask(s.port, requests, n, statuses);
        for (size_t i = 0; i < strlen(statuses) / 4; i++)
            if (memcmp(statuses + 4 * i, right + 4 * i, 4) != 0 && statuses[4 * i] != '5')
                FAIL("when allocation %ld fails the answers are %s", n, statuses);
        if (!hit)
            CHECK_STR(statuses, right);
        short_ask(s.port, requests, 0, statuses);
        if (strcmp(statuses, right) != 0)
            FAIL("after allocation %ld failed the answers are %s", n, statuses);
        UNTIL(tornado_ioloop_coroutines(loop) == 0 && tornado_httpserver_connections(s.server) == 0 &&
              later_begun == later_ended);
        tornado_application_free(s.app);
        tornado_ioloop_close(loop, false);
        tornado_ioloop_clear_current();
        if (test_live() != live)
            FAIL("%ld blocks are left after allocation %ld failed", test_live() - live, n);
        log_text[0] = trace[0] = '\0';
    }
}

TEST_LIMIT(web_requests_whichever_allocation_fails_are_answered_right_or_refused, 60)
{
    static char requests[4000];
    for (size_t i = 0; i < sizeof short_requests / sizeof *short_requests; i++)
        strcat(requests, short_requests[i]);
    check_short(short_rules, requests, SHORT_STATUSES);
}

/* Else a request could get past the rule that guards its path. */
TEST_LIMIT(web_a_request_never_goes_to_a_later_rule_because_memory_is_short, 60)
{
    static const tornado_rule long_inner[] = {{.path = "/in/.*", .handler = &text_class}, {0}};
    static const tornado_rule long_rules[] = {{.path = "/long/((?:a|b|ab)*)/(\\w+)*", .handler = &text_class},
                                              {.path = "/in/((?:a|b|ab)*)/(\\w+)*", .rules = long_inner},
                                              {.handler = &tornado_error_handler,
                                               .data = (void *)(uintptr_t)&short_status}, {0}};
    static char requests[8100];
    for (int nested = 0; nested < 2; nested++) {
        size_t len = (size_t)sprintf(requests, nested ? "GET /in/" : "GET /long/");
        memset(requests + len, 'a', 7900); /* long enough for matching to need memory */
        strcpy(requests + len + 7900, "/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        check_short(long_rules, requests, "200 ");
    }
    /* a host in lower case needs memory, too, when little is left of the request's */
    static const tornado_rule host_rules[] = {{.handler = &text_class, .host = "h*"},
                                              {.handler = &tornado_error_handler,
                                               .data = (void *)(uintptr_t)&short_status}, {0}};
    strcpy(requests, "GET / HTTP/1.1\r\nConnection: close\r\nHost: ");
    memset(requests + strlen(requests), 'H', 7900);
    strcpy(requests + strlen("GET / HTTP/1.1\r\nConnection: close\r\nHost: ") + 7900, "\r\n\r\n");
    check_short(host_rules, requests, "200 ");
}
