/* From paths to handlers: plain paths, their order, many of them, rules that are refused. Reasons and headers. */
#include "http_client.h"
#include "runtime.h"

/* Each rule's data is the text that it answers with. */
static void data_get(tornado_handler *self)
{
    tornado_write(self, self->data ? self->data : "(no data)");
}

static const tornado_handler_class data_class = {.get = data_get};

typedef struct site {
    tornado_application *app;
    int port;
} site;

static site serve(const tornado_rule *rules)
{
    site s;
    s.app = tornado_application_new(rules, NULL);
    CHECK(s.app != NULL);
    tornado_httpserver *server =
        tornado_application_listen(s.app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(server != NULL);
    s.port = tornado_httpserver_port(server);
    return s;
}

/* Asks for a target: the body of a 200, or NULL for a 404; static memory. */
static const char *get(client *c, const char *target)
{
    static char body[1000];
    char *request = malloc(strlen(target) + 100);
    sprintf(request, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", target);
    answer a = client_ask(c, request);
    free(request);
    if (a.status == 404)
        return NULL;
    CHECK_INT(a.status, 200);
    snprintf(body, sizeof body, "%.*s", (int)a.body.len, a.body.data);
    return body;
}

#define RULE(path_, data_) {.path = (path_), .handler = &data_class, .data = (void *)(uintptr_t)(data_)}

TEST(routing_a_path_matches_as_a_whole_and_as_it_was_sent)
{
    static const struct {
        const char *target, *want;
    } rows[] = {{"/", "root"}, {"/?", "root"}, {"/?a=/a", "root"}, {"/a", "a"}, {"/a?x", "a"}, {"/a/", "a/"},
                {"/a/b", "a/b"}, {"/a%20b", "escaped"}, {"/r.txt", "dot"}, {"/x;y=1,2@z:~-_!&'=", "signs"},
                {"/h\xc3\xa9", "utf-8"}, {"//", "slashes"}, {"/12345678", "eight"}, {"/1234567", "seven"},
                {"http://a/a?x", "a"}, {"http://a", "root"}, {"/A", NULL}, {"/%61", NULL}, {"/a%2Fb", NULL},
                {"/a+b", NULL}, {"/rxtxt", NULL}, {"/a//b", NULL}, {"/./a", NULL}, {"/a/../a", NULL}, {"///", NULL},
                {"/123456789", NULL}, {"/123456", NULL}, {"/2345678", NULL}, {"/ab", NULL}, {"/a%20B", NULL},
                {"/h%c3%a9", NULL}, {"/a%00", NULL}};
    site s = serve((tornado_rule[]){RULE("/", "root"), RULE("/a", "a"), RULE("/a/", "a/"), RULE("/a/b", "a/b"),
                                    RULE("/a%20b", "escaped"), RULE("/r.txt", "dot"), RULE("/h\xc3\xa9", "utf-8"),
                                    RULE("/x;y=1,2@z:~-_!&'=", "signs"), RULE("//", "slashes"),
                                    RULE("/12345678", "eight"), RULE("/1234567", "seven"), {0}});
    client c = client_open(s.port);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *got = get(&c, rows[i].target);
        if (!got != !rows[i].want || (got && strcmp(got, rows[i].want) != 0))
            FAIL("%s goes to %s", rows[i].target, got ? got : "nothing");
    }
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_the_first_of_several_rules_for_a_path_wins)
{
    tornado_rule rules[42] = {RULE("/first", "first"), RULE("/other", "other")};
    for (int i = 2; i < 41; i++)
        rules[i] = (tornado_rule)RULE(i % 2 ? "/first" : "/other", "a later one");
    site s = serve(rules);
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/first"), "first");
    CHECK_STR(get(&c, "/other"), "other");
    client_close(&c);
    tornado_application_free(s.app);
}

/* Writes the path of a rule out of many: of each length, or alike at both ends. */
static char *many_path(int i, bool alike, char path[64])
{
    if (alike)
        snprintf(path, 64, "/a/long/beginning/%07d/and/the/same/end", i);
    else
        snprintf(path, 64, "/%x%.*s", i, i % 20, "/the/rest/of/a/path/");
    return path;
}

static void check_many(int count, bool alike)
{
    tornado_rule *rules = calloc((size_t)count + 1, sizeof *rules);
    char (*paths)[64] = calloc((size_t)count, sizeof *paths), path[64];
    CHECK(rules && paths);
    for (int i = 0; i < count; i++)
        rules[i] = (tornado_rule)RULE(many_path(i, alike, paths[i]), paths[i]);
    site s = serve(rules);
    client c = client_open(s.port);
    for (int i = 0; i < count; i += count / 250) {
        CHECK_STR(get(&c, many_path(i, alike, path)), paths[i]);
        CHECK_STR(get(&c, many_path(i + count + 7, alike, path)), NULL);
    }
    CHECK_STR(get(&c, paths[count - 1]), paths[count - 1]);
    client_close(&c);
    tornado_application_free(s.app);
    free(rules);
    free(paths);
}

TEST(routing_finds_each_of_thousands_of_rules)
{
    check_many(5000, false);
}

TEST(routing_finds_paths_that_differ_in_the_middle_only)
{
    check_many(1000, true);
}

TEST(routing_rules_and_paths_are_copied)
{
    static char data[] = "borrowed";
    tornado_rule *rules = calloc(2, sizeof *rules);
    char *path = strdup("/path");
    CHECK(rules && path);
    rules[0].path = path;
    rules[0].handler = &data_class;
    rules[0].data = data;
    rules[0].name = path;
    site s = serve(rules);
    memset(rules, 0xff, 2 * sizeof *rules);
    memset(path, '?', 5);
    free(rules);
    free(path);
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/path"), "borrowed");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_without_rules_everything_is_404)
{
    static const tornado_rule none[] = {{0}};
    for (int i = 0; i < 2; i++) {
        site s = serve(i ? none : NULL);
        client c = client_open(s.port);
        CHECK_STR(get(&c, "/"), NULL);
        CHECK_STR(get(&c, "/path"), NULL);
        client_close(&c);
        tornado_application_free(s.app);
    }
}

/* Checks that rules are refused with one line, which has both texts in it, and that nothing is left. */
static void check_refused(const tornado_rule *rules, const char *which, const char *why)
{
    long live = test_live();
    log_keep();
    CHECK(tornado_application_new(rules, NULL) == NULL);
    const tornado_error *error = tornado_last_error();
    CHECK_INT(error->code, TORNADO_ERR_INVALID);
    if (!strstr(error->message, which) || !strstr(error->message, why) || strchr(error->message, '\n'))
        FAIL("\"%s\" does not say \"%s\" and \"%s\" in one line", error->message, which, why);
    CHECK_INT(logged("\n"), 1);
    CHECK(strncmp(log_text, "[E ", 3) == 0);
    CHECK_INT(logged(error->message), 1);
    CHECK_INT(test_live(), live);
}

TEST(routing_a_path_that_is_a_pattern_is_refused_by_name)
{
    static const char *const paths[] = {"/(.*)", "/a)", "/[a", "/a]", "/{x", "/x}", "/a*", "/a+", "/a?",
                                        "/a|b", "/^a", "/a$", "/\\d"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        check_refused((tornado_rule[]){RULE("/fine", NULL), RULE(paths[i], NULL), {0}}, paths[i], "pattern");
    check_refused((tornado_rule[]){RULE("/fine", NULL), RULE("/a*", NULL), {0}}, "rule 2", "pattern");
}

TEST(routing_a_rule_without_handler_or_path_is_refused_by_name)
{
    check_refused((tornado_rule[]){RULE("/fine", NULL), {.path = "/lost"}, {0}}, "\"/lost\"", "handler");
    check_refused((tornado_rule[]){{.handler = &data_class}, {0}}, "rule 1", "path");
    check_refused((tornado_rule[]){RULE("/fine", NULL), RULE("", NULL), {0}}, "rule 2", "path");
    check_refused((tornado_rule[]){RULE("fine", NULL), {0}}, "\"fine\"", "\"/\"");
    check_refused((tornado_rule[]){RULE("*", NULL), {0}}, "rule 1", "");
}

TEST(routing_only_a_rule_that_is_all_zero_ends_the_list)
{
    static char data[] = "x";
    check_refused((tornado_rule[]){RULE("/fine", NULL), {.name = "lost"}, RULE("/too", NULL), {0}}, "rule 2", "");
    check_refused((tornado_rule[]){RULE("/fine", NULL), {.data = data}, RULE("/too", NULL), {0}}, "rule 2", "");
}

TEST(routing_a_long_path_in_a_refused_rule_is_cut)
{
    char path[2000];
    memset(path, 'a', sizeof path);
    memcpy(path, "/first", 6);
    memcpy(path + sizeof path - 3, "(x", 3);
    check_refused((tornado_rule[]){RULE(path, NULL), {0}}, "/firsta", "pattern");
}

TEST(routing_a_class_whose_parents_form_a_ring_is_refused)
{
    tornado_handler_class ring[3] = {{.parent = &ring[1]}, {.parent = &ring[2]}, {.parent = &ring[0]}};
    check_refused((tornado_rule[]){{.path = "/ring", .handler = &ring[0]}, {0}}, "", "parent");
    ring[0].parent = &ring[0];
    check_refused((tornado_rule[]){{.path = "/ring", .handler = &ring[0]}, {0}}, "", "parent");
    log_keep();
    CHECK(tornado_application_new(NULL, &(tornado_settings){.default_handler_class = &ring[0]}) == NULL);
    CHECK_INT(logged("parent"), 1);
}

TEST(routing_a_class_may_have_many_parents)
{
    tornado_handler_class chain[20] = {{.get = data_get}};
    for (int i = 1; i < 20; i++)
        chain[i].parent = &chain[i - 1];
    site s = serve((tornado_rule[]){{.path = "/", .handler = &chain[19]},
                                    {.path = "/10", .handler = &chain[10]}, {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/"), "(no data)");
    CHECK_STR(get(&c, "/10"), "(no data)");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_applications_are_apart)
{
    site a = serve((tornado_rule[]){RULE("/", "a"), RULE("/a", "a"), {0}});
    site b = serve((tornado_rule[]){RULE("/", "b"), {0}});
    client to_a = client_open(a.port), to_b = client_open(b.port);
    CHECK_STR(get(&to_a, "/"), "a");
    CHECK_STR(get(&to_b, "/"), "b");
    CHECK_STR(get(&to_a, "/a"), "a");
    CHECK_STR(get(&to_b, "/a"), NULL);
    tornado_application_free(a.app);
    CHECK_STR(get(&to_b, "/"), "b");
    client_close(&to_a);
    client_close(&to_b);
    tornado_application_free(b.app);
}

TEST(routing_an_application_can_listen_on_several_ports)
{
    site s = serve((tornado_rule[]){RULE("/", "one"), {0}});
    tornado_httpserver *second =
        tornado_application_listen(s.app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(second && tornado_httpserver_port(second) != s.port);
    client a = client_open(s.port), b = client_open(tornado_httpserver_port(second));
    CHECK_STR(get(&a, "/"), "one");
    CHECK_STR(get(&b, "/"), "one");
    client_close(&a);
    client_close(&b);
    tornado_application_free(s.app);
    tornado_application_free(NULL);
}

TEST(routing_a_table_that_memory_does_not_suffice_for_is_refused)
{
    tornado_rule rules[9] = {{0}};
    char paths[8][64];
    bool hit = true;
    for (int i = 0; i < 8; i++)
        rules[i] = (tornado_rule)RULE(many_path(i, true, paths[i]), NULL);
    log_keep();
    for (long n = 1; hit; n++) {
        long live = test_live(), allocs = test_allocs();
        test_fail_alloc(n);
        tornado_application *app = tornado_application_new(rules, NULL);
        hit = test_allocs() - allocs >= n;
        test_fail_alloc(0);
        CHECK_INT(app == NULL, hit);
        if (!app)
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        tornado_application_free(app);
        CHECK_INT(test_live(), live);
    }
}

/*----------------------------------------------------------------------------
 * What HTTP messages are made of.
 *----------------------------------------------------------------------------*/

TEST(httputil_reasons_are_those_of_the_standard)
{
    static const struct {
        int status;
        const char *reason;
    } rows[] = {{100, "Continue"}, {101, "Switching Protocols"}, {200, "OK"}, {201, "Created"}, {202, "Accepted"},
                {203, "Non-Authoritative Information"}, {204, "No Content"}, {205, "Reset Content"},
                {206, "Partial Content"}, {300, "Multiple Choices"}, {301, "Moved Permanently"}, {302, "Found"},
                {303, "See Other"}, {304, "Not Modified"}, {305, "Use Proxy"}, {307, "Temporary Redirect"},
                {308, "Permanent Redirect"}, {400, "Bad Request"}, {401, "Unauthorized"}, {402, "Payment Required"},
                {403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"}, {406, "Not Acceptable"},
                {407, "Proxy Authentication Required"}, {408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
                {411, "Length Required"}, {412, "Precondition Failed"}, {413, "Content Too Large"},
                {414, "URI Too Long"}, {415, "Unsupported Media Type"}, {416, "Range Not Satisfiable"},
                {417, "Expectation Failed"}, {421, "Misdirected Request"}, {422, "Unprocessable Content"},
                {426, "Upgrade Required"}, {500, "Internal Server Error"}, {501, "Not Implemented"},
                {502, "Bad Gateway"}, {503, "Service Unavailable"}, {504, "Gateway Timeout"},
                {505, "HTTP Version Not Supported"}}; /* all of RFC 9110 section 15 */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(tornado_http_reason(rows[i].status), rows[i].reason);
    static const int unknown[] = {0, -1, 99, 199, 299, 306, 418, 499, 599, 600, 999, 65736, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        CHECK_STR(tornado_http_reason(unknown[i]), NULL);
}

TEST(httputil_find_goes_through_all_headers_of_a_name)
{
    static const tornado_http_header items[] = {{"Via", "1", 3, 1}, {"vi", "x", 2, 1}, {"Viaa", "x", 4, 1},
                                                {"VIA", "", 3, 0}, {"V[A", "x", 3, 1}, {"via", "3", 3, 1}};
    const tornado_http_headers headers = {items, 6}, none = {NULL, 0};
    const tornado_http_header *at = tornado_http_headers_find(&headers, "via", NULL);
    CHECK(at == &items[0]);
    CHECK((at = tornado_http_headers_find(&headers, "vIA", at)) == &items[3]);
    CHECK((at = tornado_http_headers_find(&headers, "Via", at)) == &items[5]);
    CHECK(tornado_http_headers_find(&headers, "Via", at) == NULL);
    CHECK(tornado_http_headers_find(&headers, "v{a", NULL) == NULL); /* "[" and "{" differ by the bit of case */
    CHECK(tornado_http_headers_find(&headers, "", NULL) == NULL);
    CHECK(tornado_http_headers_find(&none, "Via", NULL) == NULL);
}
