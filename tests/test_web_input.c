/* What handlers get from a request and set for the client: arguments of query and form, cookies, the request's URL. */
#include "http_client.h"
#include "runtime.h"

typedef struct site {
    tornado_application *app;
    int port;
} site;

static site serve(const tornado_handler_class *cls)
{
    tornado_rule rules[] = {{.path = "/.*", .handler = cls}, {0}};
    site s = {.app = tornado_application_new(rules, NULL)};
    CHECK(s.app != NULL);
    tornado_httpserver *server =
        tornado_application_listen(s.app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(server != NULL);
    s.port = tornado_httpserver_port(server);
    return s;
}

/* Asks one server for a target; with a form when it is not NULL, and with further header lines. */
static answer ask(const site *s, const char *target, const char *form, const char *lines)
{
    static char request[200000];
    if (form)
        snprintf(request, sizeof request,
                 "POST %s HTTP/1.1\r\nHost: A.example:80\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                 "Content-Length: %zu\r\n%s\r\n%s",
                 target, strlen(form), lines, form);
    else
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: A.example:80\r\n%s\r\n", target, lines);
    return ask_once(s->port, request);
}

/*----------------------------------------------------------------------------
 * Arguments.
 *----------------------------------------------------------------------------*/

/* Writes what each way of asking for "a" gives: any, query, body; then all of them. */
static void arguments(tornado_handler *self)
{
    size_t count;
    const char *const *all = tornado_get_arguments(self, "a", &count);
    tornado_writef(self, "%s|%s|%s|", tornado_get_argument(self, "a", "-"), tornado_get_query_argument(self, "a", "-"),
                   tornado_get_body_argument(self, "a", "-"));
    for (size_t i = 0; i < count; i++)
        tornado_writef(self, "%s%s", i ? "," : "", all[i]);
    CHECK(all[count] == NULL);
}

static const tornado_handler_class argument_class = {.get = arguments, .post = arguments};

TEST(web_arguments_of_query_and_form)
{
    static const struct {
        const char *target, *form, *answer;
    } rows[] = {
        {"/", NULL, "-|-|-|"},
        {"/?a=1", NULL, "1|1|-|1"},
        {"/?a=1&b=2&a=3", NULL, "3|3|-|1,3"},
        {"/?a=1&a=2", "a=3&a=4", "4|2|4|1,2,3,4"},
        {"/?b=1", "a=x+y%20z", "x y z|-|x y z|x y z"},
        {"/?a=1", "b=2", "1|1|-|1"},
        {"/?a=", NULL, "|||"},
        {"/?a", NULL, "|||"},
        {"/?a=+%20x%09+", NULL, "x|x|-|x"},
        {"/?a=%00%01b%1f", NULL, "b|b|-|b"},
        {"/?a=b%0ac%08d", NULL, "b\nc d|b\nc d|-|b\nc d"},
        {"/?a=%c3%a9%e2%80%83", NULL, "\xc3\xa9|\xc3\xa9|-|\xc3\xa9"},
        {"/?a=%zz%4", NULL, "%zz%4|%zz%4|-|%zz%4"},
        {"/?a=1;a=2", NULL, "1;a=2|1;a=2|-|1;a=2"},
        {"/?A=1&%61=2", NULL, "2|2|-|2"},
        {"/?&&=&a=1&", "&=&", "1|1|-|1"},
    };
    site s = serve(&argument_class);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        answer a = ask(&s, rows[i].target, rows[i].form, "");
        CHECK_INT(a.status, 200);
        const char *want = rows[i].answer;
        CHECK_STR(a.body.data, strcmp(want, "|||") == 0 ? "||-|" : want);
    }
    tornado_application_free(s.app);
}

TEST(web_arguments_that_are_not_utf8_are_400)
{
    site s = serve(&argument_class);
    static const char *const bad[] = {"/?a=%ff", "/?a=%c3", "/?a=1&a=%ed%a0%80", "/?a=x%f5"};
    log_keep();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_INT(ask(&s, bad[i], NULL, "").status, 400);
    CHECK_INT(logged("Invalid unicode in a"), sizeof bad / sizeof *bad);
    CHECK_INT(ask(&s, "/?b=%ff", NULL, "").status, 200); /* nobody asked for it */
    tornado_application_free(s.app);
}

static void required(tornado_handler *self)
{
    tornado_write(self, tornado_require_argument(self, "a"));
    tornado_write(self, tornado_require_query_argument(self, "b"));
    tornado_write(self, tornado_require_body_argument(self, "c"));
}

TEST(web_arguments_that_are_required_are_400_when_missing)
{
    static const tornado_handler_class cls = {.get = required, .post = required};
    site s = serve(&cls);
    log_keep();
    CHECK_INT(ask(&s, "/", NULL, "").status, 400);
    CHECK_INT(logged("Missing argument a"), 1);
    CHECK_INT(ask(&s, "/?a=1", "b=2", "").status, 400);
    CHECK_INT(logged("Missing argument b"), 1);
    CHECK_INT(ask(&s, "/?a=1&b=2&c=3", NULL, "").status, 400);
    CHECK_INT(logged("Missing argument c"), 1);
    CHECK_STR(ask(&s, "/?a=1&b=2", "c=3", "").body.data, "123");
    tornado_application_free(s.app);
}

TEST(web_a_body_that_is_no_form_has_no_arguments)
{
    site s = serve(&argument_class);
    static const char json[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\na=1";
    static const char none[] = "POST /?a=2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na=1";
    CHECK_STR(ask_once(s.port, json).body.data, "-|-|-|");
    CHECK_STR(ask_once(s.port, none).body.data, "2|2|-|2");
    tornado_application_free(s.app);
}

static char many[160000];

TEST(web_ten_thousand_arguments_are_read_and_more_are_400)
{
    site s = serve(&argument_class);
    for (int count = 10000; count <= 10001; count++) {
        char *at = many;
        for (int i = 0; i < count - 1; i++)
            at += sprintf(at, "n%d=%d&", i % 5000, i);
        strcpy(at, "a=x");
        CHECK_INT(ask(&s, "/", many, "").status, count == 10000 ? 200 : 400);
    }
    memset(many, 'n', 150000); /* a name of a hundred kilobytes and more */
    strcpy(many + 150000, "=1&a=2");
    CHECK_STR(ask(&s, "/", many, "").body.data, "2|-|2|2");
    tornado_application_free(s.app);
}

static void giant(tornado_handler *self)
{
    const tornado_arguments *form = tornado_body_arguments(self);
    const char *value = tornado_get_argument(self, "a", "-");
    CHECK_INT(form->items[0].name.len, 4 << 20);
    CHECK(tornado_get_argument(self, form->items[0].name.data, NULL) != NULL);
    tornado_writef(self, "%zu %zu", form->count, strlen(value));
}

/* Names of megabytes, as they are and encoded, beside a value of as many. */
TEST(web_arguments_with_names_of_megabytes_are_read)
{
    enum { SIZE = 4 << 20 };
    static const tornado_handler_class cls = {.post = giant};
    static const char *const units[] = {"n", "%6e", "%", "+", "%0"};
    site s = serve(&cls);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t unit = strlen(units[i]), count = unit == 3 ? SIZE : SIZE / unit, len = count * unit;
        char *request = malloc(len + SIZE + 300), *at = request;
        client c = client_open(s.port);
        answer a;
        at += sprintf(at, "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                          "Content-Length: %zu\r\n\r\n", len + SIZE + 4);
        for (size_t k = 0; k < len; k++)
            *at++ = units[i][k % unit];
        at += sprintf(at, "=&a=");
        memset(at, 'v', SIZE);
        client_send_bytes(&c, request, (size_t)(at - request) + SIZE);
        CHECK(client_answer(&c, &a));
        CHECK_INT(a.status, 200);
        CHECK_MEM(a.body.data, a.body.len, "2 4194304", 9);
        client_close(&c);
        free(request);
    }
    tornado_application_free(s.app);
}

/* Bytes that are no text, in a name, do not keep other arguments from being read. */
TEST(web_arguments_with_names_that_are_not_utf8_are_like_others)
{
    static const char *const names[] = {"%ff", "%00", "a%00b", "%c3", "\xff", "%", "%ed%a0%80", "", "%0d%0aX:"};
    site s = serve(&argument_class);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char target[100];
        snprintf(target, sizeof target, "/?%s=1&a=2&%s=%%ff", names[i], names[i]);
        answer a = ask(&s, target, NULL, "");
        CHECK_INT(a.status, 200);
        CHECK_STR(a.body.data, "2|2|-|2");
    }
    tornado_application_free(s.app);
}

static const char *shout(tornado_handler *self, tornado_bytes value, const char *name)
{
    (void)value;
    return tornado_format(self, "%s!", name ? name : "path");
}

static void path_and_argument(tornado_handler *self)
{
    tornado_writef(self, "%s %s", tornado_path_arg(self, 0), tornado_get_argument(self, "a", "-"));
}

TEST(web_a_class_may_decode_arguments_its_own_way)
{
    static const tornado_handler_class cls = {.get = path_and_argument, .decode_argument = shout};
    tornado_rule rules[] = {{.path = "/(.*)", .handler = &cls}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    site s = {app, tornado_httpserver_port(tornado_application_listen(app, 0, NULL))};
    CHECK_STR(ask(&s, "/%ff?a=%ff", NULL, "").body.data, "path! a!");
    tornado_application_free(app);
}

/*----------------------------------------------------------------------------
 * Cookies.
 *----------------------------------------------------------------------------*/

static void read_cookies(tornado_handler *self)
{
    tornado_writef(self, "%s|%s|%zu", tornado_get_cookie(self, "a", "-"), tornado_get_cookie(self, "b", "-"),
                   tornado_cookies(self)->count);
}

TEST(web_cookies_of_the_client)
{
    static const tornado_handler_class cls = {.get = read_cookies};
    static const char *const rows[][2] = {
        {"", "-|-|0"},
        {"Cookie: a=1; b=2\r\n", "1|2|2"},
        {"Cookie: a=1;b=2;a=3\r\n", "3|2|3"},
        {"Cookie: a=\"x\\073 \\\"y\\\"\"; b\r\n", "x; \"y\"|-|2"},
        {"Cookie: a=1\r\nCookie: b=2\r\n", "1|2|2"},
        {"Cookie: a==;; b = c=d \r\n", "=|c=d|2"},
        {"Cookie: a\r\n", "-|-|1"},
    };
    site s = serve(&cls);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CHECK_STR(ask(&s, "/", NULL, rows[i][0]).body.data, rows[i][1]);
    tornado_application_free(s.app);
}

static void set_cookies(tornado_handler *self)
{
    tornado_set_cookie(self, "first", "1", NULL);
    tornado_set_cookie(self, "second", "a b", &(tornado_cookie){.max_age = 60, .secure = true, .httponly = true,
                                                               .path = "/x", .domain = "a.example"});
    tornado_set_cookie(self, "first", "2", NULL); /* in its place */
    tornado_set_header(self, "X-Lost", "when an error discards headers");
    if (self->request->query[0] == 'e')
        tornado_raise_http_status(403);
    if (self->request->query[0] == 'f')
        tornado_future_release(tornado_flush(self));
    if (self->request->query[0] == 'c')
        tornado_clear_all_cookies(self, NULL);
}

/* The lines of a head that begin with Set-Cookie, joined. */
static const char *cookie_lines(const char *head)
{
    static char lines[2000];
    lines[0] = '\0';
    for (const char *at = head; (at = strstr(at, "\r\nSet-Cookie: ")) != NULL; at += 14)
        snprintf(lines + strlen(lines), sizeof lines - strlen(lines), "%.*s\n", (int)strcspn(at + 14, "\r"), at + 14);
    return lines;
}

TEST(web_cookies_are_set_once_each_and_survive_errors)
{
    static const tornado_handler_class cls = {.get = set_cookies};
    static const char both[] = "first=2; Path=/\nsecond=\"a b\"; Domain=a.example; HttpOnly; Max-Age=60; Path=/x; Secure\n";
    site s = serve(&cls);
    answer a = ask(&s, "/", NULL, "");
    CHECK_STR(cookie_lines(a.head), both);
    CHECK(head_value(a.head, "X-Lost") != NULL);
    a = ask(&s, "/?e", NULL, "");
    CHECK_INT(a.status, 403);
    CHECK_STR(cookie_lines(a.head), both);
    CHECK(head_value(a.head, "X-Lost") == NULL);
    CHECK_STR(cookie_lines(ask(&s, "/?f", NULL, "").head), both);
    a = ask(&s, "/?c", NULL, "Cookie: old=1; first=x\r\n");
    CHECK(strstr(cookie_lines(a.head), "old=\"\"; expires=") != NULL);
    CHECK(strstr(cookie_lines(a.head), "first=\"\"; expires=") != NULL);
    CHECK(strstr(cookie_lines(a.head), "first=2") == NULL);
    tornado_application_free(s.app);
}

/* Writes how many cookies there are, and the first bytes of one. */
static void count_cookies(tornado_handler *self)
{
    tornado_writef(self, "%zu %.9s", tornado_cookies(self)->count, tornado_get_cookie(self, "a", "-"));
}

TEST(web_cookies_of_any_shape_are_read_or_refused)
{
    static const struct {
        const char *first, *unit;
        int count;
        const char *last, *want; /* want NULL: 400 */
    } rows[] = {
        {"", ";", 60000, "a=1", "1 1"},
        {"", "x;", 9999, "a=1", "10000 1"},
        {"", "x;", 10000, "a=1", NULL},
        {"", "=;", 9999, "a=1", "1 1"},
        {"a=", "=", 60000, "", "1 ========="},
        {"a=\"", "\\", 60000, "\"", "1 \\\\\\\\\\\\\\\\\\"},
        {"a=\"", "\\101", 15000, "\"", "1 AAAAAAAAA"},
        {"a=\"", "\\\"", 30000, "", "1 \"\"\"\"\"\"\"\"\""},
        {"a=1;", "n", 60000, "", "2 1"},
        {"a=1; ", "\"", 60000, "=\"", "2 1"},
        {"a=1; b", " \t", 20000, "=2; a = 3 ", "3 3"},
        {"a=1; \xff=\xfe; \xc3", "\xff", 1, "", "3 1"},
        {"a=1; __proto__=x; $Version=1; Path=/; a", ".", 1, "=2", "5 1"},
    };
    static const tornado_handler_class cls = {.get = count_cookies};
    site s = serve(&cls);
    log_keep();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *line = malloc(70000), *at = line + sprintf(line, "Cookie: %s", rows[i].first);
        for (int k = 0; k < rows[i].count; k++)
            at = stpcpy(at, rows[i].unit);
        sprintf(at, "%s\r\n", rows[i].last);
        answer a = ask(&s, "/", NULL, line);
        if (a.status != (rows[i].want ? 200 : 400) || (rows[i].want && strcmp(a.body.data, rows[i].want) != 0))
            FAIL("row %zu: %d %s", i, a.status, a.body.data);
        free(line);
    }
    CHECK_INT(logged("more than 10000"), 1);
    tornado_application_free(s.app);
}

/* As many lines as a head may have, with as many cookies as may be: sorting all anew for each line takes 10 MB. */
TEST(web_cookies_in_many_lines_need_little_memory)
{
    static char lines[65000];
    static const tornado_handler_class cls = {.get = count_cookies};
    char *at = lines;
    for (int i = 0; i < 200; i++) {
        at += sprintf(at, "Cookie: a=%d", i);
        for (int k = 0; k < 49; k++)
            at += sprintf(at, ";n%d", i);
        at += sprintf(at, "\r\n");
    }
    site s = serve(&cls);
    CHECK_STR(ask(&s, "/", NULL, "").body.data, "0 -");
    long allocs = test_allocs();
    CHECK_STR(ask(&s, "/", NULL, lines).body.data, "10000 199");
    CHECK(test_allocs() - allocs < 200);
    tornado_application_free(s.app);
}

static void clear_cookies(tornado_handler *self)
{
    tornado_set_cookie(self, "mine", "1", NULL);
    tornado_set_cookie(self, "ok", "2", NULL);
    tornado_clear_all_cookies(self, NULL);
    tornado_write(self, "bye");
}

/* Whoever can plant a cookie of an odd name must not keep others from logging out. */
TEST(web_clear_all_cookies_passes_over_names_that_cannot_be_set)
{
    static const tornado_handler_class cls = {.get = clear_cookies};
    site s = serve(&cls);
    answer a = ask(&s, "/", NULL, "Cookie: a b=1; path=x; ok=1; \"q\"=2; other=1; ok=3; ,=4; \xc3\xa9=5; 6; Secure\r\n");
    CHECK_INT(a.status, 200);
    const char *lines = cookie_lines(a.head);
    CHECK(strncmp(lines, "mine=1; Path=/\nok=\"\"; expires=", 30) == 0);
    CHECK(strstr(lines, "\nother=\"\"; expires=") != NULL);
    int count = 0;
    for (const char *at = lines; (at = strchr(at, '\n')) != NULL; at++)
        count++;
    CHECK_INT(count, 3);
    tornado_application_free(s.app);
}

static void clear_one_cookie(tornado_handler *self)
{
    tornado_clear_cookie(self, "a", &(tornado_cookie){"d.example", "/p", INT64_MAX, 9, 9, true, true, "None", true});
}

TEST(web_clear_cookie_takes_all_attributes_but_when_it_ends)
{
    static const tornado_handler_class cls = {.get = clear_one_cookie};
    site s = serve(&cls);
    const char *lines = cookie_lines(ask(&s, "/", NULL, "").head), *date = strstr(lines, "expires=");
    char rest[100];
    int64_t when;
    CHECK(strncmp(lines, "a=\"\"; Domain=d.example; expires=", 32) == 0);
    CHECK_STR(date + 8 + 29, "; HttpOnly; Path=/p; Secure; SameSite=None; Partitioned\n");
    snprintf(rest, sizeof rest, "%.29s", date + 8);
    CHECK(tornado_parse_timestamp(rest, &when) && when < (int64_t)tornado_time() - 86400);
    tornado_application_free(s.app);
}

static void bad_cookie(void *self) { tornado_set_cookie(self, "a b", "1", NULL); }
static void split_cookie(void *self) { tornado_set_cookie(self, "a\r\nX: 1", "1", NULL); }
static void bad_path(void *self) { tornado_set_cookie(self, "a", "1", &(tornado_cookie){.path = "/;x"}); }
static void bad_samesite(void *self) { tornado_set_cookie(self, "a", "1", &(tornado_cookie){.samesite = "Lax\x7f"}); }
static void bad_domain(void *self) { tornado_set_cookie(self, "a", "1", &(tornado_cookie){.domain = "a\r\nb"}); }

static void bad_cookies(tornado_handler *self)
{
    static const tornado_callback bad[] = {bad_cookie, split_cookie, bad_path, bad_samesite, bad_domain};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(is_error(tornado_try(bad[i], self), TORNADO_ERR_INVALID));
    tornado_set_cookie(self, "odd", "a\r\nb;c", NULL); /* a value may be anything: it is quoted */
}

TEST(web_cookies_that_would_split_a_header_are_refused)
{
    static const tornado_handler_class cls = {.get = bad_cookies};
    site s = serve(&cls);
    CHECK_STR(cookie_lines(ask(&s, "/", NULL, "").head), "odd=\"a\\015\\012b\\073c\"; Path=/\n");
    tornado_application_free(s.app);
}

/*----------------------------------------------------------------------------
 * The URL, and memory that is short.
 *----------------------------------------------------------------------------*/

static void url(tornado_handler *self)
{
    tornado_writef(self, "%s %s %s", tornado_http_request_full_url(self->request),
                   tornado_http_request_host_name(self->request), self->request->protocol);
}

TEST(web_request_tells_its_url_and_host)
{
    static const tornado_handler_class cls = {.get = url};
    site s = serve(&cls);
    CHECK_STR(ask(&s, "/x%20y?a=b", NULL, "").body.data, "http://A.example:80/x%20y?a=b a.example http");
    CHECK_STR(ask_once(s.port, "GET / HTTP/1.1\r\nHost: [::1]:8888\r\n\r\n").body.data, "http://[::1]:8888/ [::1] http");
    CHECK_STR(ask_once(s.port, "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n").body.data, "http://[::1]/ [::1] http");
    CHECK_STR(ask_once(s.port, "GET / HTTP/1.1\r\nHost: admin:\r\n\r\n").body.data, "http://admin:/ admin http");
    CHECK_STR(ask_once(s.port, "GET http://b.example/u?x=http://c HTTP/1.1\r\nHost: a\r\n\r\n").body.data,
              "http://b.example/u?x=http://c b.example http");
    CHECK_STR(ask_once(s.port, "GET http://b.example?x HTTP/1.1\r\nHost: a\r\n\r\n").body.data, "http://b.example?x b.example http");
    tornado_application_free(s.app);
}

static void everything(tornado_handler *self)
{
    arguments(self);
    read_cookies(self);
    set_cookies(self);
    url(self);
}

TEST_LIMIT(web_input_whichever_allocation_fails_the_server_goes_on, 30)
{
    static const tornado_handler_class cls = {.post = everything};
    bool hit = true;
    log_keep();
    for (long n = 1; hit; n++) {
        site s = serve(&cls);
        CHECK_INT(ask(&s, "/?a=1&b=2", "a=3", "Cookie: a=1\r\n").status, 200);
        long live = test_live();
        int fd = connect_loopback(s.port);
        CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), 0.02, stop_loop, NULL));
        long allocs = test_allocs();
        test_fail_alloc(n);
        static const char request[] = "POST /?a=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: a=1; b=2\r\nContent-Type: "
                                      "application/x-www-form-urlencoded\r\nContent-Length: 7\r\n\r\na=1&a=2";
        CHECK_INT(send(fd, request, sizeof request - 1, MSG_NOSIGNAL), sizeof request - 1);
        CHECK(tornado_ioloop_start(tornado_ioloop_current()));
        hit = test_allocs() - allocs >= n;
        test_fail_alloc(0);
        close(fd);
        CHECK_INT(ask(&s, "/?a=1&b=2", "a=3", "Cookie: a=1\r\n").status, 200);
        loop_turns(3);
        if (test_live() > live + 4)
            FAIL("%ld blocks more after allocation %ld failed", test_live() - live, n);
        tornado_application_free(s.app);
        log_text[0] = '\0';
    }
}
