/* From paths to handlers: plain paths and patterns, their order, many of them, rules that are refused, hosts,
   nested rules, reversing. Reasons and headers. */
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
static void check_refused_as(int code, const tornado_rule *rules, const char *which, const char *why)
{
    long live = test_live();
    log_keep();
    CHECK(tornado_application_new(rules, NULL) == NULL);
    const tornado_error *error = tornado_last_error();
    CHECK_INT(error->code, code);
    if (!strstr(error->message, which) || !strstr(error->message, why) || strchr(error->message, '\n'))
        FAIL("\"%s\" does not say \"%s\" and \"%s\" in one line", error->message, which, why);
    CHECK_INT(logged("\n"), 1);
    CHECK(strncmp(log_text, "[E ", 3) == 0);
    CHECK_INT(logged(error->message), 1);
    CHECK_INT(test_live(), live);
}

static void check_refused(const tornado_rule *rules, const char *which, const char *why)
{
    check_refused_as(TORNADO_ERR_INVALID, rules, which, why);
}

TEST(routing_a_pattern_that_cannot_be_compiled_is_refused_by_name)
{
    static const struct {
        const char *path, *why;
    } rows[] = {{"/(.*", "missing ), unterminated subpattern at position 1"},
                {"/a)", "unbalanced parenthesis at position 2"},
                {"/[a", "unterminated character set at position 1"},
                {"/a**", "multiple repeat at position 3"},
                {"*a", "nothing to repeat at position 0"},
                {"/(?=a)", "look-ahead"},
                {"/(a)\\1", "backreferences"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char named[40];
        snprintf(named, sizeof named, "rule 2, \"%s\"", rows[i].path);
        check_refused_as(TORNADO_ERR_PARSE,
                         (tornado_rule[]){RULE("/fine", NULL), RULE(rows[i].path, NULL), {0}}, named, rows[i].why);
        check_refused_as(TORNADO_ERR_PARSE,
                         (tornado_rule[]){RULE("/fine", NULL),
                                          {.path = rows[i].path, .rules = (tornado_rule[]){RULE("/", NULL), {0}}},
                                          {0}},
                         named, rows[i].why);
    }
}

TEST(routing_a_pattern_for_hosts_that_cannot_be_compiled_is_refused_by_name)
{
    check_refused_as(TORNADO_ERR_PARSE,
                     (tornado_rule[]){{.path = "/a", .handler = &data_class, .host = "(b"}, {0}}, "rule 1, \"/a\"",
                     "missing ), unterminated subpattern at position 0");
}

TEST(routing_a_pattern_for_hosts_may_be_refused_where_there_are_no_rules)
{
    tornado_application *app = tornado_application_new(NULL, NULL);
    CHECK(app && !tornado_application_add_handlers(app, "(", NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
    tornado_application_free(app);
}

TEST(routing_a_refused_rule_inside_another_is_named_with_both)
{
    tornado_rule inner[] = {RULE("/fine", NULL), RULE("/bad(", NULL), {0}};
    tornado_rule rules[] = {RULE("/", NULL), RULE("/a", NULL), {.path = "/out.*", .rules = inner}, {0}};
    check_refused_as(TORNADO_ERR_PARSE, rules, "rule 3, \"/out.*\"", "rule 2, \"/bad(\"");
}

TEST(routing_a_rule_with_both_a_handler_and_rules_is_refused)
{
    tornado_rule inner[] = {RULE("/", NULL), {0}};
    check_refused((tornado_rule[]){{.path = "/both", .handler = &data_class, .rules = inner}, {0}}, "\"/both\"",
                  "both");
}

TEST(routing_a_rule_without_a_path_matches_what_the_others_left)
{
    site s = serve(
        (tornado_rule[]){RULE("/a", "a"), RULE("/b/.*", "b"), RULE(NULL, "rest"), RULE("/c", "never"), {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/a"), "a");
    CHECK_STR(get(&c, "/b/"), "b");
    CHECK_STR(get(&c, "/b"), "rest");
    CHECK_STR(get(&c, "/c"), "rest");
    CHECK_STR(get(&c, "//x\xff%00?/a"), "rest");
    client_close(&c);
    tornado_application_free(s.app);
}

static const tornado_handler_class star_class = {.get = data_get, .options = data_get};

TEST(routing_a_star_is_a_plain_path)
{
    static const char request[] = "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
    for (int any = 0; any < 2; any++) { /* a rule without a path matches it, too */
        site s = serve((tornado_rule[]){{.path = any ? NULL : "*", .handler = &star_class, .data = "star"}, {0}});
        CHECK_MEM(ask_once(s.port, request).body.data, 4, "star", 4);
        client c = client_open(s.port);
        CHECK_STR(get(&c, "/x"), any ? "star" : NULL);
        client_close(&c);
        tornado_application_free(s.app);
    }
    site s = serve((tornado_rule[]){RULE("/.*", "path"), {0}});
    CHECK_INT(ask_once(s.port, request).status, 404);
    tornado_application_free(s.app);
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
    const tornado_http_headers headers = {.items = items, .count = 6}, none = {0};
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

static unsigned random_below(unsigned limit)
{
    static unsigned seed = 7;
    seed = seed * 1103515245 + 12345;
    return (seed >> 16) % limit;
}

#define RANDOM_OF(list) (list)[random_below(sizeof(list) / sizeof *(list))]

/* A path for a rule: plain text half of the time, else a pattern that begins in one of many ways. */
static void random_rule_path(char path[64])
{
    static const char *const texts[] = {"a", "b", "ab", "/", "/a", "%61"};
    static const char *const pieces[] = {".", "[ab]", "(a|b)", "(?:/a)?", "a*", "b+", "(.*)", "a??", "(a)?b", "\\w",
                                         "a{0,2}", "b{0}", "(?:a|/b)", "[^/]+", "\\.", "/(\\w*)", "$", "\\b",
                                         "a|/b"};
    static const char *const starts[] = {"/", "/", "/", "^/", "(?i)/A", "(?:/a|/b)", "/?", ".", "(/)", "\\/"};
    bool plain = random_below(2);
    strcpy(path, plain ? "/" : RANDOM_OF(starts));
    for (unsigned count = random_below(4); count > 0; count--)
        strcat(path, plain || random_below(2) ? RANDOM_OF(texts) : RANDOM_OF(pieces));
}

/* As a model: the rules one after the other, each by its patterns of path and host. */
TEST_LIMIT(routing_finds_what_trying_all_rules_in_order_finds, 30)
{
    static const char *const hosts[] = {NULL, NULL, NULL, "a", "[ab]", ".*c"};
    static const char *const steps[] = {"/", "a", "b", ".", "A"};
    enum { RULES = 12 };
    for (int round = 0; round < (instrumented() ? 60 : 400); round++) {
        tornado_rule rules[RULES + 1] = {{0}};
        tornado_regex *regexes[RULES] = {0}, *host_regexes[RULES] = {0};
        char paths[RULES][64], names[RULES][12], target[16], request[80];
        int count = 1 + (int)random_below(RULES);
        for (int i = 0; i < count; i++) {
            random_rule_path(paths[i]);
            snprintf(names[i], sizeof names[i], "%d", i);
            rules[i] = (tornado_rule)RULE(paths[i], names[i]);
            rules[i].host = RANDOM_OF(hosts);
            CHECK((regexes[i] = tornado_regex_new(paths[i], TORNADO_REGEX_BYTES)) != NULL);
            CHECK(!rules[i].host || (host_regexes[i] = tornado_regex_new(rules[i].host, 0)) != NULL);
        }
        site s = serve(rules);
        client c = client_open(s.port);
        for (int k = 0; k < 10; k++) {
            static const char *const named[] = {"a", "b", "c"};
            const char *host = RANDOM_OF(named);
            int want = 0;
            strcpy(target, "/");
            for (unsigned len = random_below(5); len > 0; len--)
                strcat(target, RANDOM_OF(steps));
            while (want < count &&
                   (tornado_regex_fullmatch(regexes[want], tornado_bytes_of(target), 0, NULL, 0) != 1 ||
                    (host_regexes[want] &&
                     tornado_regex_fullmatch(host_regexes[want], tornado_bytes_of(host), 0, NULL, 0) != 1)))
                want++;
            snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, host);
            answer a = client_ask(&c, request);
            if (a.status != (want < count ? 200 : 404) ||
                (want < count && strncmp(a.body.data, names[want], a.body.len) != 0))
                FAIL("%s at %s goes to %.*s, not to rule %d, \"%s\", in round %d", target, host, (int)a.body.len,
                     a.body.data, want, want < count ? paths[want] : "none", round);
        }
        client_close(&c);
        tornado_application_free(s.app);
        for (int i = 0; i < count; i++) {
            tornado_regex_free(regexes[i]);
            tornado_regex_free(host_regexes[i]);
        }
    }
}

/* Patterns that each begin in their own way, or all alike, so that many are tried for one path. */
static void check_many_patterns(int count, bool alike)
{
    char (*paths)[48] = calloc((size_t)count, sizeof *paths), target[64], want[64];
    tornado_rule *rules = calloc((size_t)count + 1, sizeof *rules);
    CHECK(paths && rules);
    for (int i = 0; i < count; i++) {
        snprintf(paths[i], sizeof *paths, alike ? "/item/([a-z]+)/%d" : "/section%d/([a-z]+)/", i);
        rules[i] = (tornado_rule)GROUPS(paths[i], paths[i]);
    }
    site s = serve(rules);
    client c = client_open(s.port);
    for (int i = 0; i < count; i += i < count - 1 && i + count / 20 >= count ? count - 1 - i : count / 20) {
        snprintf(target, sizeof target, alike ? "/item/abc/%d" : "/section%d/abc/", i);
        snprintf(want, sizeof want, "%s abc - -", paths[i]);
        CHECK_STR(get(&c, target), want);
        snprintf(target, sizeof target, alike ? "/item/abc/%d" : "/section%d/abc/", i + count);
        CHECK_STR(get(&c, target), NULL);
    }
    client_close(&c);
    tornado_application_free(s.app);
    free(paths);
    free(rules);
}

TEST_LIMIT(routing_finds_each_of_thousands_of_patterns, 30)
{
    check_many_patterns(1000, false);
    check_many_patterns(5000, false);
}

TEST_LIMIT(routing_finds_each_of_a_thousand_patterns_that_begin_alike, 30)
{
    check_many_patterns(1000, true);
}

TEST(routing_the_order_of_plain_paths_and_patterns_is_that_of_the_list)
{
    site s = serve((tornado_rule[]){RULE("/a", "plain first"), RULE("/[ab]", "pattern second"),
                                    RULE("/b", "plain third"), RULE("/c/.*", "wide"), RULE("/c/d", "hidden"),
                                    RULE("/.*", "last"), {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/a"), "plain first");
    CHECK_STR(get(&c, "/b"), "pattern second");
    CHECK_STR(get(&c, "/c/d"), "wide");
    CHECK_STR(get(&c, "/c"), "last");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_nested_rules_are_left_when_none_of_them_matches)
{
    tornado_rule inner[] = {GROUPS("/in/(a)", "inner"), GROUPS(".*z", "any z"), {0}};
    site s = serve((tornado_rule[]){{.path = "/in/.*", .rules = inner}, GROUPS("/in/(.)", "outer"), {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/in/a"), "inner a - -");
    CHECK_STR(get(&c, "/in/b"), "outer b - -");
    CHECK_STR(get(&c, "/in/z"), "any z - - -");
    CHECK_STR(get(&c, "/out/z"), NULL);
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_rules_may_be_nested_in_levels)
{
    enum { LEVELS = 10 };
    tornado_rule lists[LEVELS][3] = {{{0}}};
    char names[LEVELS][16];
    for (int i = 0; i < LEVELS; i++) { /* each level serves one path, the next ones what is left of it */
        snprintf(names[i], sizeof names[i], "/%.*s", i + 1, "aaaaaaaaaaaaaa");
        lists[i][0] = (tornado_rule)RULE(names[i], names[i]);
        if (i + 1 < LEVELS)
            lists[i][1] = (tornado_rule){.path = "/a+", .rules = lists[i + 1]};
    }
    site s = serve(lists[0]);
    client c = client_open(s.port);
    for (int i = 0; i < LEVELS; i++)
        CHECK_STR(get(&c, names[i]), names[i]);
    CHECK_STR(get(&c, "/aaaaaaaaaaaaaaaa"), NULL);
    CHECK_STR(get(&c, "/b"), NULL);
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_a_ring_of_nested_rules_is_refused)
{
    tornado_rule lists[3][2] = {{{0}}};
    for (int i = 0; i < 3; i++)
        lists[i][0] = (tornado_rule){.path = "/.*", .rules = lists[(i + 1) % 3]};
    check_refused(lists[0], "rule 1, \"/.*\"", "nested too deep");
}

TEST(routing_nested_rules_need_the_path_and_the_host_of_all_around_them)
{
    static const char *const rows[][3] = {{"/a/x", "one", "inner"}, {"/a/x", "two", "rest"},
                                          {"/a/y", "one", "middle"}, {"/b/x", "one", "rest"},
                                          {"/a/z", "one", "rest"}, {"/a/", "one", "rest"}};
    tornado_rule inner[] = {RULE("/a/x", "inner"), RULE("/b/x", "never"), {0}};
    tornado_rule middle[] = {{.host = "one", .rules = inner},
                             {.rules = (tornado_rule[]){{0}}, .name = "an empty list"},
                             {.path = "/a/y", .handler = &data_class, .data = "middle", .host = "one"}, {0}};
    site s = serve((tornado_rule[]){{.path = "/a/.*", .rules = middle}, RULE(NULL, "rest"), {0}});
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[100];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", rows[i][0], rows[i][1]);
        CHECK_STR(ask_once(s.port, request).body.data, rows[i][2]);
    }
    tornado_application_free(s.app);
}

TEST(routing_groups_around_nested_rules_are_no_arguments)
{
    tornado_rule inner[] = {GROUPS("/a/(.)", "pattern"), GROUPS("/a/bb", "plain"), {0}};
    site s = serve((tornado_rule[]){{.path = "/(.)/(.*)", .rules = inner}, {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/a/b"), "pattern b - -");
    CHECK_STR(get(&c, "/a/bb"), "plain - - -");
    client_close(&c);
    tornado_application_free(s.app);
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
        CHECK(app != NULL);
        CHECK(tornado_application_add_handlers(app, "www\\.example", (tornado_rule[]){RULE("/", "www"), {0}}));
        CHECK(tornado_application_add_handlers(app, ".*\\.example", (tornado_rule[]){RULE("/", "any"), {0}}));
        CHECK(!tornado_application_add_handlers(app, "(", (tornado_rule[]){RULE("/", "bad"), {0}}));
        CHECK(!tornado_application_add_handlers(app, "b",
                                                (tornado_rule[]){RULE("/", "b"), RULE("/(", "bad"), {0}}));
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

TEST(routing_a_host_is_compared_whole_in_lower_case_and_without_its_port)
{
    static const char *const rows[][2] = {
        {"a.example", "name"}, {"A.eXample", "name"}, {"a.example:80", "name"}, {"A.EXAMPLE:65535", "name"},
        {"a.example.evil", "other"}, {"evil.a.example", "other"}, {"axexample", "other"}, {"b", "other"},
        {"[::1]", "loopback"}, {"[::1]:8888", "loopback"}, {"[2001:DB8::A]", "v6"}, {"[2001:db8::a]:1", "v6"},
        {"[::11]", "other"}, {"127.0.0.1", "v4"}, {"127.0.0.1:8888", "v4"}, {"127.0.0.10", "other"}};
    site s = serve((tornado_rule[]){{.path = "/", .handler = &data_class, .data = "name", .host = "a\\.example"},
                                    {.path = "/", .handler = &data_class, .data = "loopback", .host = "\\[::1\\]"},
                                    {.path = "/", .handler = &data_class, .data = "v6", .host = "\\[2001:db8::a]"},
                                    {.path = "/", .handler = &data_class, .data = "v4", .host = "127\\.0\\.0\\.1"},
                                    RULE("/.*", "other"), {0}});
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *got = host_get(s.port, rows[i][0], "");
        if (strcmp(got, rows[i][1]) != 0)
            FAIL("%s goes to \"%s\"", rows[i][0], got);
    }
    tornado_application_free(s.app);
}

TEST(routing_a_request_of_http_1_0_without_a_host_names_127_0_0_1)
{
    site s = serve((tornado_rule[]){{.path = "/", .handler = &data_class, .data = "v4", .host = "127\\.0\\.0\\.1"},
                                    RULE("/", "other"), {0}});
    CHECK_STR(ask_once(s.port, "GET / HTTP/1.0\r\n\r\n").body.data, "v4");
    tornado_application_free(s.app);
}

TEST(routing_hosts_that_were_added_are_tried_in_their_order_and_left_for_any_host)
{
    site s = serve((tornado_rule[]){RULE("/any", "any"), RULE("/.*", "rest"), {0}});
    static const struct {
        const char *pattern, *path, *data;
    } added[] = {{"a", "/1", "a 1"}, {"[ab]", "/[12]", "ab 12"}, {"a", "/.", "a ."}, {".*", "/any", "every host"}};
    static const char *const rows[][3] = {{"/1", "a", "a 1"}, {"/1", "b", "ab 12"}, {"/2", "a", "ab 12"},
                                          {"/3", "a", "a ."}, {"/3", "b", "rest"}, {"/1", "c", "rest"},
                                          {"/any", "a", "every host"}, {"/any", "c", "every host"},
                                          {"/", "a", "rest"}};
    CHECK_STR(host_get(s.port, "a", ""), "rest");
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) /* while the server runs */
        CHECK(tornado_application_add_handlers(s.app, added[i].pattern,
                                               (tornado_rule[]){RULE(added[i].path, added[i].data), {0}}));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[100];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", rows[i][0], rows[i][1]);
        const char *got = ask_once(s.port, request).body.data;
        if (strcmp(got, rows[i][2]) != 0)
            FAIL("%s at %s goes to \"%s\"", rows[i][0], rows[i][1], got);
    }
    tornado_application_free(s.app);
}

TEST(routing_the_default_host_counts_behind_the_rules_for_any_host_and_not_behind_a_proxy)
{
    static char host[] = "www";
    tornado_settings settings = {.default_host = host};
    tornado_application *app = tornado_application_new((tornado_rule[]){RULE("/any", "any"), {0}}, &settings);
    host[0] = '?'; /* it was copied */
    CHECK(app != NULL);
    CHECK(tornado_application_add_handlers(app, "www",
                                           (tornado_rule[]){RULE("/any", "www any"), RULE("/", "www"), {0}}));
    CHECK(tornado_application_add_handlers(app, "w.*", (tornado_rule[]){RULE("/", "w"), RULE("/w", "w"), {0}}));
    tornado_httpserver *server =
        tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(server != NULL);
    static const struct {
        const char *path, *host, *more, *want;
    } rows[] = {{"/any", "www", "", "www any"}, {"/any", "x", "", "any"}, {"/", "x", "", "www"},
                {"/w", "x", "", "w"}, {"/", "wx", "", "w"}, {"/", "x", "X-Real-Ip: 1.2.3.4\r\n", NULL},
                {"/", "x", "x-real-ip:\r\n", NULL},
                {"/w", "x", "X-Real-Ip: 1.2.3.4\r\n", NULL}, {"/", "www", "X-Real-Ip: 1.2.3.4\r\n", "www"},
                {"/any", "x", "X-Real-Ip: 1.2.3.4\r\n", "any"}, {"/x", "x", "", NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char request[100];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", rows[i].path, rows[i].host,
                 rows[i].more);
        answer a = ask_once(tornado_httpserver_port(server), request);
        if (a.status != (rows[i].want ? 200 : 404) || (rows[i].want && strcmp(a.body.data, rows[i].want) != 0))
            FAIL("row %zu: %d %s", i, a.status, a.body.data);
    }
    tornado_application_free(app);
}

TEST(routing_rules_that_cannot_be_added_leave_the_application_as_it_was)
{
    for (int defaulted = 0; defaulted < 2; defaulted++) {
        tornado_rule rules[17] = {{0}}, many[42] = {{0}};
        char paths[40][64];
        for (int i = 0; i < 40; i++) {
            snprintf(paths[i], sizeof paths[i], i % 2 ? "/%d" : "/(%d)", i);
            many[i] = (tornado_rule)RULE(paths[i], "many");
            if (i < 16)
                rules[i] = (tornado_rule)RULE(paths[i], "own");
        }
        many[40] = (tornado_rule)RULE("/bad(", NULL);
        tornado_application *app =
            tornado_application_new(rules, &(tornado_settings){.default_host = defaulted ? "b" : NULL});
        CHECK(app && tornado_application_add_handlers(app, "b", (tornado_rule[]){RULE("/1", "b"), {0}}));
        int port = tornado_httpserver_port(
            tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"}));
        for (int done = 0; done < 2; done++) {
            static const char *const bad[] = {"(", "a"};
            for (int i = 0; i < 2 && !done; i++) {
                CHECK(!tornado_application_add_handlers(app, bad[i], many));
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
                CHECK(i == 0 || strstr(tornado_last_error()->message, "rule 41, \"/bad(\""));
            }
            memset(&many[40], 0, sizeof many[40]);
            CHECK(!done || tornado_application_add_handlers(app, "a", many));
            client c = client_open(port);
            CHECK_STR(get(&c, "/3"), done ? "many" : "own"); /* its Host is "a" */
            CHECK_STR(get(&c, "/12"), done ? "many" : "own");
            CHECK_STR(get(&c, "/39"), done ? "many" : NULL);
            client_close(&c);
            CHECK_STR(ask_once(port, "GET /1 HTTP/1.1\r\nHost: b\r\n\r\n").body.data, "b");
        }
        tornado_application_free(app);
    }
}

static void adding_get(tornado_handler *self)
{
    static char paths[60][24];
    tornado_rule rules[61] = {{0}};
    for (int i = 0; i < 60; i++) {
        snprintf(paths[i], sizeof paths[i], "/x%d(.*)", i);
        rules[i] = (tornado_rule)GROUPS(paths[i], "added");
    }
    CHECK(tornado_application_add_handlers(self->application, "a", rules));
    groups_get(self);
}

static const tornado_handler_class adding_class = {.get = adding_get};

TEST(routing_a_handler_may_add_rules_and_keeps_its_own_arguments)
{
    site s = serve((tornado_rule[]){{.path = "/add/(.)/(?:.*)", .handler = &adding_class, .data = "own"}, {0}});
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/x7y"), NULL);
    CHECK_STR(get(&c, "/add/z/"), "own z - -");
    CHECK_STR(get(&c, "/x7y"), "added y - -");
    CHECK_STR(get(&c, "/add/z/"), "own z - -");
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_names_can_be_reversed)
{
    static const struct {
        const char *path, *args[3], *url;
    } rows[] = {{"/plain", {NULL}, "/plain"}, {"/story/([0-9]+)/edit", {"42"}, "/story/42/edit"},
                {"/(.*)/(.*)$", {"a b", "c/d?e"}, "/a%20b/c/d%3Fe"},
                {"^/x\\.y/(\\w+)", {"\xc3\xa9"}, "/x.y/%C3%A9"},
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

TEST(routing_a_pattern_may_have_31_groups)
{
    char path[200] = "/";
    tornado_rule rules[] = {RULE("/fine", NULL), GROUPS(path, "31"), {0}};
    for (int i = 0; i < 31; i++)
        strcat(path, "(.)");
    site s = serve(rules);
    client c = client_open(s.port);
    CHECK_STR(get(&c, "/abcdefghijklmnopqrstuvwxyz12345"), "31 a b c");
    CHECK_STR(get(&c, "/abcdefghijklmnopqrstuvwxyz1234"), NULL);
    client_close(&c);
    tornado_application_free(s.app);
    strcat(path, "(.)");
    check_refused_as(TORNADO_ERR_LIMIT, rules, "rule 2, ", "more than 31 groups");
}

/*----------------------------------------------------------------------------
 * Reversing.
 *----------------------------------------------------------------------------*/

/* A pattern with more in it than plain groups is refused, or else the URL is one that the rule matches. */
TEST(routing_what_is_reversed_matches_its_own_rule)
{
    static const char *const paths[] = {
        "/[ab]",  "/a{2}",      "/a+b",    "/a|/b",  "/([^)]+)",    "/(a\\))", "/(\\()x",    "/\\(a\\)", "/([(])",
        "/a\\.b", "/\\-/(.*)", "/(a)?b",  "/(a)+b", "^/a$",        "/$",      "/(?i:v)",    "/v\\$",    "/[$]",
        "/a\\",   "/\\$(.*)$", "(?i)/V", "/\\x41", "/(?#note)v", "/a\\t",   "/(.*)\\/x", "/\\Z"};
    static const char *const args[] = {"a", "a"};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        log_keep();
        tornado_application *app = tornado_application_new(
            (tornado_rule[]){{.path = paths[i], .handler = &data_class, .name = "it"}, {0}}, NULL);
        tornado_regex *regex = tornado_regex_new(paths[i], TORNADO_REGEX_BYTES);
        CHECK_INT(!app, !regex);
        if (!app)
            continue;
        size_t groups = tornado_regex_groups(regex);
        const char *url = tornado_application_reverse_url(app, arena, "it", args, groups);
        if (url && tornado_regex_fullmatch(regex, tornado_bytes_of(url), 0, NULL, 0) != 1)
            FAIL("%s is reversed to %s", paths[i], url);
        if (!url)
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        tornado_regex_free(regex);
        tornado_application_free(app);
    }
    tornado_arena_free(arena);
}

TEST(routing_a_reversed_url_brings_its_arguments_back)
{
    site s = serve((tornado_rule[]){
        {.path = "/([^/]*)/x/(.*)", .handler = &groups_class, .name = "two", .data = "two"}, {0}});
    client c = client_open(s.port);
    static const char *const rows[][2] = {{"a", "b/c"}, {"", ""}, {" + ", "%2F+%"}, {"a?b=c&d#e", "//x/../y"},
                                          {"h\xc3\xa9\xe2\x82\xac", "\"<>\\^`{|}'"},
                                          {"\x01\n\x7f", "~._-!$*(),;:@="}};
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char want[100];
        const char *url = tornado_application_reverse_url(s.app, arena, "two", rows[i], 2);
        CHECK(url != NULL);
        snprintf(want, sizeof want, "two %s %s -", rows[i][0], rows[i][1]);
        CHECK_STR(get(&c, url), want);
    }
    CHECK_STR(tornado_application_reverse_url(s.app, arena, "two", (const char *const[]){"+ %", "a/b c?"}, 2),
              "/%2B%20%25/x/a/b%20c%3F");
    tornado_arena_free(arena);
    client_close(&c);
    tornado_application_free(s.app);
}

TEST(routing_names_are_found_in_nested_rules_and_in_those_of_hosts)
{
    tornado_rule inner[] = {{.path = "/in/(.*)", .handler = &data_class, .name = "inner"}, {0}};
    tornado_rule rules[] = {{.path = "/(.*)/(.*)", .rules = inner}, {.handler = &data_class, .name = "pathless"},
                            {0}};
    tornado_application *app = tornado_application_new(rules, &(tornado_settings){.default_host = "b"});
    tornado_rule named[] = {{.path = "/host", .handler = &data_class, .name = "host"}, {0}};
    CHECK(app && tornado_application_add_handlers(app, "a", named));
    tornado_arena *arena = tornado_arena_new();
    static const char *const args[] = {"x", "y"};
    CHECK_STR(tornado_application_reverse_url(app, arena, "inner", args, 1), "/in/x");
    CHECK_STR(tornado_application_reverse_url(app, arena, "host", NULL, 0), "/host");
    static const struct {
        const char *name;
        size_t count;
        const char *why;
    } bad[] = {{"pathless", 0, "cannot be reversed"}, {"none", 0, "no rule named \"none\""},
               {"", 0, "no rule named"}, {"inner", 2, "has 1 groups, not 2"}, {"inner", 0, "has 1 groups, not 0"},
               {"host", 1, "has 0 groups, not 1"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(!tornado_application_reverse_url(app, arena, bad[i].name, args, bad[i].count));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        if (!strstr(tornado_last_error()->message, bad[i].why))
            FAIL("%s: %s", bad[i].name, tornado_last_error()->message);
    }
    tornado_arena_free(arena);
    tornado_application_free(app);
}

static void reversing_get(tornado_handler *self)
{
    static const char *const args[] = {"a b/c"};
    tornado_write(self, tornado_reverse_url(self, "it", args, self->request->query[0] ? 0 : 1));
}

static const tornado_handler_class reversing_class = {.get = reversing_get};

TEST(routing_a_handler_reverses_names_and_raises_what_cannot_be)
{
    site s = serve((tornado_rule[]){{.path = "/(.*)", .handler = &reversing_class, .name = "it"}, {0}});
    client c = client_open(s.port);
    log_keep();
    CHECK_STR(get(&c, "/"), "/a%20b/c");
    CHECK_INT(client_ask(&c, "GET /?bad HTTP/1.1\r\nHost: a\r\n\r\n").status, 500);
    CHECK_INT(logged("TORNADO_ERR_INVALID"), 1);
    client_close(&c);
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * Memory.
 *----------------------------------------------------------------------------*/

/* All kinds of rules; with those of add_handlers more than there is room for at first. */
static const tornado_rule short_inner[] = {RULE("/in/a", "inner"), GROUPS("/in/(.)/x", "inner"), {0}};
static const tornado_rule short_rules[] = {RULE("/plain", "plain"), GROUPS("/p/(\\w+)", "pattern"),
                                           {.path = "/in/.*", .rules = short_inner},
                                           {.path = "/hosts/(?P<name>.*)", .handler = &groups_class, .host = "[ab]",
                                            .name = "named"},
                                           RULE("/5", ""), RULE("/6", ""), RULE("/7", ""), RULE("/8", ""),
                                           RULE("/9", ""), RULE("/10", ""), RULE("/11", ""), RULE("/12", ""),
                                           RULE("/13", ""), RULE("/14", ""),
                                           {0}};
static const tornado_rule short_added[] = {RULE("/plain", "added"), GROUPS("/a/(.*)", "added"),
                                           {.path = "/in/.*", .rules = short_inner}, {0}};

static void application_when_memory_is_short(void)
{
    long allocs = test_allocs();
    tornado_application *app = tornado_application_new(short_rules, &(tornado_settings){.default_host = "a"});
    CHECK(app || tornado_last_error()->code == TORNADO_ERR_NOMEM);
    CHECK(test_allocs() > allocs);
    tornado_application_free(app);
}

TEST(routing_a_url_that_memory_does_not_suffice_for_is_none_and_not_a_part_of_it)
{
    static char long_argument[20000];
    const char *const args[] = {long_argument};
    tornado_application *app = tornado_application_new(
        (tornado_rule[]){{.path = "/u/(.*)", .handler = &data_class, .name = "it"}, {0}}, NULL);
    CHECK(app != NULL);
    memset(long_argument, 'x', sizeof long_argument - 1);
    bool hit = true;
    for (long n = 1; hit; n++) {
        tornado_arena *arena = tornado_arena_new();
        long allocs = test_allocs();
        test_fail_alloc(n);
        const char *url = tornado_application_reverse_url(app, arena, "it", args, 1);
        hit = test_allocs() - allocs >= n;
        test_fail_alloc(0);
        CHECK_INT(url ? strlen(url) : 0, hit ? 0 : 3 + strlen(long_argument));
        if (hit)
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        tornado_arena_free(arena);
    }
    tornado_application_free(app);
}

TEST(routing_rules_that_memory_does_not_suffice_for_leave_nothing)
{
    each_shortage(application_when_memory_is_short);
}

TEST_LIMIT(routing_an_application_is_as_before_when_memory_does_not_suffice_for_more_rules, 30)
{
    bool hit = true;
    tornado_ioloop_clear_current();
    log_keep();
    for (long n = 1; hit; n++) {
        long live = test_live();
        tornado_application *app = tornado_application_new(short_rules, &(tornado_settings){.default_host = "a"});
        CHECK(app != NULL);
        int port = tornado_httpserver_port(
            tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"}));
        long allocs = test_allocs();
        test_fail_alloc(n);
        bool added = tornado_application_add_handlers(app, "a", short_added);
        hit = test_allocs() - allocs >= n;
        test_fail_alloc(0);
        CHECK_INT(added, !hit);
        CHECK(added || tornado_last_error()->code == TORNADO_ERR_NOMEM);
        for (int again = 0; again < 2; again++) {
            client c = client_open(port);
            CHECK_STR(get(&c, "/plain"), added ? "added" : "plain");
            CHECK_STR(get(&c, "/p/x"), "pattern x - -");
            CHECK_STR(get(&c, "/in/a"), "inner");
            CHECK_STR(get(&c, "/hosts/x"), " x - - name=x");
            CHECK_STR(get(&c, "/a/x"), added ? "added x - -" : NULL);
            CHECK_STR(get(&c, "/none"), NULL);
            client_close(&c);
            if (!again && !added)
                CHECK((added = tornado_application_add_handlers(app, "a", short_added)));
        }
        tornado_application_free(app);
        tornado_ioloop_close(tornado_ioloop_current(), false);
        tornado_ioloop_clear_current();
        if (test_live() != live)
            FAIL("%ld blocks are left after allocation %ld failed", test_live() - live, n);
        log_text[0] = '\0';
    }
}
