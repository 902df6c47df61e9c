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
    CHECK(request != NULL);
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
                                    RULE("/a%20b", "escaped"), RULE("/r\\.txt", "dot"), RULE("/h\xc3\xa9", "utf-8"),
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

TEST(routing_a_pattern_that_cannot_be_compiled_is_refused_by_name)
{
    static const struct {
        const char *path, *why;
    } rows[] = {{"/(.*", "missing ), unterminated subpattern at position 1"}, {"/a)", "unbalanced parenthesis at position 2"},
                {"/[a", "unterminated character set at position 1"},         {"/a**", "multiple repeat at position 3"},
                {"/(?=a)", "look-ahead"},                                     {"/(a)\\1", "backreferences"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        log_keep();
        CHECK(!tornado_application_new((tornado_rule[]){RULE("/fine", NULL), RULE(rows[i].path, NULL), {0}}, NULL));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
        CHECK(strstr(tornado_last_error()->message, "rule 2") && strstr(tornado_last_error()->message, rows[i].path));
        CHECK(strstr(tornado_last_error()->message, rows[i].why) != NULL);
        CHECK_INT(logged("\n"), 1);
    }
}

TEST(routing_a_rule_without_handler_or_path_is_refused_by_name)
{
    check_refused((tornado_rule[]){RULE("/fine", NULL), {.path = "/lost"}, {0}}, "\"/lost\"", "handler");
    check_refused((tornado_rule[]){RULE("/fine", NULL), RULE("", NULL), {0}}, "rule 2", "path");
    check_refused((tornado_rule[]){RULE("fine", NULL), {0}}, "\"fine\"", "\"/\"");
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
    memcpy(path, "first", 5); /* without a slash in front */
    path[sizeof path - 1] = '\0';
    check_refused((tornado_rule[]){RULE(path, NULL), {0}}, "firsta", "begins with");
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

/*----------------------------------------------------------------------------
 * Patterns.
 *----------------------------------------------------------------------------*/

/* Writes the rule's data and the groups of its path. */
static void groups_get(tornado_handler *self)
{
    tornado_write(self, self->data ? self->data : "");
    for (size_t i = 0; i < 3; i++)
        tornado_writef(self, " %s", tornado_path_arg(self, i) ? tornado_path_arg(self, i) : "-");
    if (tornado_path_kwarg(self, "name"))
        tornado_writef(self, " name=%s", tornado_path_kwarg(self, "name"));
}

static const tornado_handler_class groups_class = {.get = groups_get};
#define GROUPS(path_, data_) {.path = (path_), .handler = &groups_class, .data = (void *)(uintptr_t)(data_)}

TEST(routing_patterns_give_their_groups_decoded)
{
    static const char *const rows[][2] = {
        {"/story/42/edit", "story 42 - -"}, {"/story/x/edit", NULL},          {"/story/42/edit/", NULL},
        {"/file/a/b%2Fc", "file a/b/c - -"}, {"/file/a+b%20c", "file a+b c - -"}, {"/file/", "file  - -"},
        {"/user/ann", "user ann - - name=ann"}, {"/user/", NULL},              {"/opt", "opt - - -"},
        {"/optx1", "opt x1 1 -"},           {"/alt/b", "alt b - -"},          {"/alt/c", NULL},
        {"/caf\xc3\xa9/1", "utf-8 1 - -"}, {"/end", "end - - -"},            {"/end\x0a", NULL},
    };
    site s = serve((tornado_rule[]){GROUPS("/story/([0-9]+)/edit", "story"), GROUPS("/file/(.*)", "file"),
                                    GROUPS("/user/(?P<name>\\w+)", "user"), GROUPS("/opt(x([0-9]))?", "opt"),
                                    GROUPS("^/alt/(a|b)$", "alt"), GROUPS("/caf\xc3\xa9/(.)", "utf-8"),
                                    GROUPS("/end$", "end"), {0}});
    client c = client_open(s.port);
    for (size_t i = 0; i + 1 < sizeof rows / sizeof *rows; i++) { /* not the last: it is no request */
        const char *got = get(&c, rows[i][0]);
        if (!got != !rows[i][1] || (got && strcmp(got, rows[i][1]) != 0))
            FAIL("%s goes to %s", rows[i][0], got ? got : "nothing");
    }
    client_close(&c);
    log_keep();
    CHECK_INT(ask_once(s.port, "GET /file/%ff HTTP/1.1\r\nHost: a\r\n\r\n").status, 400);
    CHECK_INT(ask_once(s.port, "GET /file/a%00b HTTP/1.1\r\nHost: a\r\n\r\n").status, 400);
    tornado_application_free(s.app);
}

/* As a model: the rules one after the other, each by its pattern. */
TEST(routing_finds_what_trying_all_rules_in_order_finds)
{
    static const char *const pieces[] = {"/", "/a", "/ab", "/a/b", "/a(.*)", "/a/(.*)", "/(.*)", "/a[bc]", "/ab?", "/a.*b",
                                         "/b/[0-9]+", "/b/1", "/b/(1|2)", "(?:/a|/b)", ".*b", "/b/.", "/abc", "/a|/b/1"};
    static const char *const paths[] = {"/", "/a", "/ab", "/abc", "/a/b", "/b/1", "/b/2", "/b/33", "/ac", "/b", "/x/y/b", "/c"};
    unsigned seed = 7;
    for (int round = 0; round < 200; round++) {
        tornado_rule rules[9] = {{0}};
        tornado_regex *regexes[8];
        char names[8][2];
        int count = 1 + round % 8;
        for (int i = 0; i < count; i++) {
            seed = seed * 1103515245 + 12345;
            const char *path = pieces[(seed >> 16) % (sizeof pieces / sizeof *pieces)];
            names[i][0] = (char)('0' + i);
            names[i][1] = '\0';
            rules[i] = (tornado_rule)RULE(path, names[i]);
            CHECK((regexes[i] = tornado_regex_new(path, TORNADO_REGEX_BYTES)) != NULL);
        }
        site s = serve(rules);
        client c = client_open(s.port);
        for (size_t k = 0; k < sizeof paths / sizeof *paths; k++) {
            int want = 0;
            while (want < count && tornado_regex_fullmatch(regexes[want], tornado_bytes_of(paths[k]), 0, NULL, 0) != 1)
                want++;
            const char *got = get(&c, paths[k]);
            if (want == count ? got != NULL : !got || strcmp(got, names[want]) != 0)
                FAIL("%s goes to %s, not to rule %d, in round %d", paths[k], got ? got : "nothing", want, round);
        }
        client_close(&c);
        tornado_application_free(s.app);
        for (int i = 0; i < count; i++)
            tornado_regex_free(regexes[i]);
    }
}

TEST(routing_nested_rules_are_left_when_none_of_them_matches)
{
    tornado_rule inner[] = {GROUPS("/in/(a)", "inner"), {.path = ".*z", .handler = &groups_class, .data = "any z"}, {0}};
    site s = serve((tornado_rule[]){{.path = "/in/.*", .rules = inner}, GROUPS("/in/(.)", "outer"), {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/in/a"), "inner a - -");
    CHECK_STR(get(&c, "/in/b"), "outer b - -");
    CHECK_STR(get(&c, "/in/z"), "any z - - -");
    CHECK_STR(get(&c, "/out/z"), NULL);
    client_close(&c);
    tornado_application_free(s.app);
    tornado_rule ring[2] = {{.path = "/", .rules = ring}, {0}};
    check_refused(ring, "", "nested too deep");
}

static const char *host_get(int port, const char *host, const char *more)
{
    static char text[200];
    char request[300];
    snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n", host, more);
    answer a = ask_once(port, request);
    snprintf(text, sizeof text, "%s", a.status == 200 ? a.body.data : "");
    return text;
}

TEST(routing_by_host)
{
    for (int defaulted = 0; defaulted < 2; defaulted++) {
        log_keep();
        tornado_application *app = tornado_application_new(
            (tornado_rule[]){{.path = "/", .handler = &data_class, .data = "own", .host = "own\\.example"}, {0}},
            &(tornado_settings){.default_host = defaulted ? "www.example" : NULL});
        CHECK(app && tornado_application_add_handlers(app, "www\\.example", (tornado_rule[]){RULE("/", "www"), {0}}));
        CHECK(tornado_application_add_handlers(app, ".*\\.example", (tornado_rule[]){RULE("/", "any"), {0}}));
        CHECK(!tornado_application_add_handlers(app, "(", (tornado_rule[]){RULE("/", "bad"), {0}}));
        CHECK(!tornado_application_add_handlers(app, "b", (tornado_rule[]){RULE("/", "b"), RULE("/(", "bad"), {0}}));
        tornado_httpserver *server = tornado_application_listen(app, 0, NULL);
        CHECK(server != NULL);
        int port = tornado_httpserver_port(server);
        CHECK_STR(host_get(port, "www.example", ""), "www");
        CHECK_STR(host_get(port, "WWW.Example:8080", ""), "www");
        CHECK_STR(host_get(port, "own.example", ""), "any"); /* those of add_handlers stand first */
        CHECK_STR(host_get(port, "b", ""), defaulted ? "www" : "");
        CHECK_STR(host_get(port, "127.0.0.1:8080", ""), defaulted ? "www" : "");
        CHECK_STR(host_get(port, "[::1]:8080", "X-Real-Ip: 1.2.3.4\r\n"), "");
        tornado_application_free(app);
    }
}

TEST(routing_names_can_be_reversed)
{
    static const struct {
        const char *path, *args[3], *url;
    } rows[] = {{"/plain", {NULL}, "/plain"}, {"/story/([0-9]+)/edit", {"42"}, "/story/42/edit"},
                {"/(.*)/(.*)$", {"a b", "c/d?e"}, "/a%20b/c/d%3Fe"}, {"^/x\\.y/(\\w+)", {"\xc3\xa9"}, "/x.y/%C3%A9"},
                {"/(?P<name>.*)", {"n"}, "/n"}, {"/(?:a)/(b)", {"b"}, NULL}, {"/\\(", {NULL}, NULL},
                {"/((a)b)", {"x", "y"}, NULL}, {"/(a)", {"x", "y"}, NULL}, {"/\\d", {NULL}, NULL}};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tornado_application *app = tornado_application_new(
            (tornado_rule[]){{.path = rows[i].path, .handler = &data_class, .name = "it"}, {0}}, NULL);
        size_t count = 0;
        while (rows[i].args[count])
            count++;
        CHECK(app != NULL);
        const char *url = tornado_application_reverse_url(app, arena, "it", rows[i].args, count);
        if (rows[i].url)
            CHECK_STR(url, rows[i].url);
        else
            CHECK(!url && tornado_last_error()->code == TORNADO_ERR_INVALID);
        CHECK(!tornado_application_reverse_url(app, arena, "other", NULL, 0));
        tornado_application_free(app);
    }
    tornado_arena_free(arena);
}

TEST(routing_many_patterns)
{
    enum { COUNT = 2000 };
    static char paths[COUNT][48], target[48];
    static tornado_rule rules[COUNT + 1];
    for (int i = 0; i < COUNT; i++) {
        snprintf(paths[i], sizeof paths[i], "/section%d/([a-z]+)/%d", i * 31, i);
        rules[i] = (tornado_rule)GROUPS(paths[i], "x");
    }
    site s = serve(rules);
    client c = client_open(s.port);
    for (int i = 0; i < COUNT; i += 97) {
        snprintf(target, sizeof target, "/section%d/abc/%d", i * 31, i);
        CHECK_STR(get(&c, target), "x abc - -");
        snprintf(target, sizeof target, "/section%d/abc/%d", i * 31, i + 1);
        CHECK_STR(get(&c, target), NULL);
    }
    client_close(&c);
    tornado_application_free(s.app);
}
