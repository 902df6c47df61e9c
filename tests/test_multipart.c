/* Forms of parts, with and without files: parsed alone, and as what a handler gets. */
#include "delegate.h"
#include "http_client.h"
#include "runtime.h"

#include "guard.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* What a form holds: "name=value" for an argument, "name=filename(type)body" for a file, between "|". Static memory. */
static const char *shown(const tornado_arguments *arguments, const tornado_http_files *files)
{
    static char text[8192];
    size_t len = 0;
    text[0] = '\0';
    for (size_t i = 0; i < arguments->count; i++) {
        const tornado_argument *at = &arguments->items[i];
        CHECK_INT(at->value.data[at->value.len], 0);
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s=%s", len ? "|" : "", at->name.data,
                                at->value.data);
    }
    for (size_t i = 0; i < files->count; i++) {
        const tornado_http_file *at = &files->items[i];
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s=%s(%s)%.*s", len ? "|" : "", at->name,
                                at->filename, at->content_type, (int)at->body.len, at->body.data);
    }
    CHECK(len < sizeof text);
    return text;
}

/* Parses a form of boundary 1234; what it holds, or the error's name. */
static const char *parsed(const char *data, const tornado_arguments_options *options)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    tornado_http_files files = {0};
    size_t len = strlen(data);
    const char *text = tornado_error_name(0);
    if (tornado_parse_multipart_form_data(arena, &arguments, &files, tornado_bytes_of("1234"),
                                          (tornado_bytes){guarded(data, len), len}, options)) {
        text = shown(&arguments, &files);
    } else {
        CHECK(arguments.count == 0 && files.count == 0);
        text = tornado_error_name(tornado_last_error()->code);
    }
    tornado_arena_free(arena);
    return text;
}

/* A part whose header is given. */
#define PART(header, value)      "--1234\r\n" header "\r\n\r\n" value "\r\n"
#define FIELD(parameters, value) PART("Content-Disposition: form-data; " parameters, value)
#define END                      "--1234--\r\n"

TEST(multipart_forms_are_read_in_any_shape)
{
    static const char *const rows[][2] = {
        {END, ""},
        {"--1234--", ""},
        {FIELD("name=a", "1") END, "a=1"},
        {FIELD("name=\"a\"", "1") "--1234--", "a=1"},
        {FIELD("name=a", "1") FIELD("name=b", "two\r\nlines\r\n") FIELD("name=a", "") END,
         "a=1|b=two\r\nlines\r\n|a="},
        {FIELD("name=\"files\"; filename=\"ab.txt\"", "Foo") END, "files=ab.txt(application/unknown)Foo"},
        {"--1234\r\nContent-Disposition: form-data; name=f; filename=a.png\r\nContent-Type: "
         "image/png\r\n\r\n\r\n--1234--",
         "f=a.png(image/png)"},
        {PART("content-type:text/plain; charset=x\r\nCONTENT-DISPOSITION:\tForm-Data;NAME=f;FileName=x", "y") END,
         "f=x(text/plain; charset=x)y"},
        {FIELD("name=f; filename=\"\"", "x") END, "f=x"}, /* a browser's field without a file */
        {FIELD("name=f; filename=x", "1") FIELD("name=a", "2") FIELD("name=f; filename=y", "3") END,
         "a=2|f=x(application/unknown)1|f=y(application/unknown)3"},
        /* lines that look like boundaries, and are none */
        {FIELD("name=a", "--1234x\r\n--123\r\n --1234\r\nx--1234\r\n\r\n--\r\n-") END,
         "a=--1234x\r\n--123\r\n --1234\r\nx--1234\r\n\r\n--\r\n-"},
        {FIELD("name=a", "x\n--1234\r\ny\n--1234--") END, "a=x\n--1234\r\ny\n--1234--"},
        /* before the first boundary and behind the last one */
        {FIELD("name=a", "1") END "anything\r\n--1234\r\n", "a=1"},
        {"\r\n" FIELD("name=a", "1") "--1234--trailing", "a=1"},
        {"--1234 \t\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--1234--", "a=1"},
        {"--1234\r\nContent-Disposition: form-data;\r\n name=a\r\n\r\n1\r\n" END, "a=1"}, /* folded */
        {"--1234\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: binary\r\n\r\n1\r\n" END,
         "a=1"},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_STR(parsed(rows[i][0], NULL), rows[i][1]);
}

TEST(multipart_file_names_are_decoded)
{
    static const char *const rows[][2] = {
        {"\"ab.txt\"", "ab.txt"},
        {"ab.txt", "ab.txt"},
        {"\"a;b.txt\"", "a;b.txt"},
        {"\"a\\\"b.txt\"", "a\"b.txt"},
        {"\"a\\\";b.txt\"", "a\";b.txt"},
        {"\"a\\\\\\\"b.txt\"", "a\\\"b.txt"},
        {"\"a\\b.txt\"", "a\\b.txt"},
        {"\"C:\\dir\\a.txt\"", "C:\\dir\\a.txt"},
        {"\"\xc3\xa1\xe2\x82\xac.txt\"", "\xc3\xa1\xe2\x82\xac.txt"},
        {"\"a%22b%0D%0A.txt\"",
         "a%22b%0D%0A.txt"}, /* as browsers send it: whether they encoded it cannot be known */
        {"\"ab.txt\"; filename*=UTF-8''%C3%A1.txt", "\xc3\xa1.txt"},
        {"x; filename*=utf-8'en'%e2%82%ac%20rates", "\xe2\x82\xac rates"},
        {"x; filename*=iso-8859-1'en'%A3%20rates", "\xc2\xa3 rates"},
        {"x; filename*=koi8-r''%A3", "x"},   /* not a charset of RFC 8187 */
        {"x; filename*=UTF-8''%C3%28", "x"}, /* not UTF-8 */
        {"x; filename*=UTF-8''a%00b", "x"},
        {"x; filename*=UTF-8'a.txt", "x"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char data[512], want[512];
        snprintf(data, sizeof data, FIELD("name=f; filename=%s", "Foo") END, rows[i][0]);
        snprintf(want, sizeof want, "f=%s(application/unknown)Foo", rows[i][1]);
        CHECK_STR(parsed(data, NULL), want);
    }
    CHECK_STR(parsed(FIELD("filename*=UTF-8''%41; name*=UTF-8''b", "x") END, NULL), "b=A(application/unknown)x");
}

TEST(multipart_what_is_malformed_is_refused)
{
    static const char *const rows[] = {
        "",
        "--1234",
        "--1234-",
        "1234--",
        "x--1234--",
        "preamble\r\n" FIELD("name=a", "1") END,
        "\r\n\r\n" FIELD("name=a", "1") END,
        FIELD("name=a", "1"), /* no last boundary */
        FIELD("name=a", "1") "--1234",
        FIELD("name=a", "1") "--1235--\r\n",
        "--1234\r\n" END, /* no header */
        "--1234\r\n\r\nvalue\r\n" END,
        "--1234\r\nContent-Disposition: form-data; name=a\r\n" END,
        "--1234\r\nContent-Disposition: form-data; name=a\n\n1\r\n" END, /* bare LF */
        "--1234\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" END,
        PART("Content-Disposition: form-data; name=a\rX: y", "1") END, /* bare CR */
        PART("Content-Disposition: form-data; name=\"a\rb\"", "1") END,
        PART("Content-Disposition: form-data; name=\"a\x01\"", "1") END,
        PART("Content-Disposition: form-data; name=\xff", "1") END,
        PART("Content-Disposition : form-data; name=a", "1") END,
        PART("Content-Type: text/plain", "1") END,
        PART("Content-Disposition: form-data", "1") END,
        FIELD("name=\"\"", "1") END,
        FIELD("filename=x", "1") END,
        PART("Content-Disposition: attachment; name=a", "1") END,
        PART("Content-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b", "1") END,
        FIELD("name=a", "1") PART("nonsense", "2") END, /* the first part is not kept */
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        if (strcmp(parsed(rows[i], NULL), tornado_error_name(TORNADO_ERR_PARSE)) != 0)
            FAIL("parsed as %s: %s", parsed(rows[i], NULL), rows[i]);
}

TEST(multipart_a_prefix_of_a_form_is_refused)
{
    static const char form[] = FIELD("name=a", "1") FIELD("name=f; filename=x", "2") "--1234--";
    for (size_t len = 0; len < sizeof form - 1; len++) {
        char part[sizeof form] = "";
        memcpy(part, form, len);
        CHECK_STR(parsed(part, NULL), tornado_error_name(TORNADO_ERR_PARSE));
    }
    CHECK_STR(parsed(form, NULL), "a=1|f=x(application/unknown)2");
}

TEST(multipart_numbers_and_sizes_are_limited)
{
    static char form[200000];
    const char *limit = tornado_error_name(TORNADO_ERR_LIMIT);
    for (int parts = 100; parts <= 101; parts++) {
        char *end = form;
        for (int i = 0; i < parts; i++)
            end += sprintf(end, FIELD("name=a", "%d"), i);
        strcpy(end, END);
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        tornado_http_files files = {0};
        bool ok = tornado_parse_multipart_form_data(arena, &arguments, &files, tornado_bytes_of("1234"),
                                                    tornado_bytes_of(form), NULL);
        CHECK_INT(ok, parts == 100);
        CHECK_INT(arguments.count, ok ? 100 : 0);
        CHECK(ok || tornado_last_error()->code == TORNADO_ERR_LIMIT);
        CHECK(tornado_parse_multipart_form_data(arena, &arguments, &files, tornado_bytes_of("1234"),
                                                tornado_bytes_of(form),
                                                &(tornado_arguments_options){.max_parts = TORNADO_NONE}));
        tornado_arena_free(arena);
    }
    static const char head[] = "Content-Disposition: form-data; name=a\r\nX: ";
    for (int len = 10240 - (int)sizeof head - 3; len < 10240 - (int)sizeof head + 3; len++) {
        snprintf(form, sizeof form, "--1234\r\n%s%0*d\r\n\r\n1\r\n" END, head, len, 0);
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        tornado_http_files files = {0};
        bool ok = tornado_parse_multipart_form_data(arena, &arguments, &files, tornado_bytes_of("1234"),
                                                    tornado_bytes_of(form), NULL);
        CHECK_INT(ok, sizeof head - 1 + (size_t)len + 4 <= 10240); /* with the blank line */
        CHECK(ok || tornado_last_error()->code == TORNADO_ERR_LIMIT);
        tornado_arena_free(arena);
    }
    CHECK_STR(parsed(FIELD("name=a", "1") FIELD("name=b", "1") END, &(tornado_arguments_options){.max_parts = 1}),
              limit);
    CHECK_STR(parsed(FIELD("name=a", "1") FIELD("name=b", "1") END, &(tornado_arguments_options){.max_fields = 1}),
              limit);
    CHECK_STR(parsed(FIELD("name=a", "1") END, &(tornado_arguments_options){.max_part_header_size = 20}), limit);
}

/* Lines that are nearly boundaries, as long as they like, cost no more than others. */
TEST_LIMIT(multipart_takes_no_quadratic_time, 20)
{
    enum { SIZE = 4000000, BOUNDARY = 60000 };
    char *data = malloc(SIZE + 1), *boundary = malloc(BOUNDARY);
    tornado_arena *arena = tornado_arena_new();
    tornado_arguments arguments = {0};
    tornado_http_files files = {0};
    memset(boundary, '-', BOUNDARY);
    for (size_t line = 2; line <= BOUNDARY; line *= 30) {
        memset(data, '-', SIZE);
        for (size_t i = 0; i + 1 < SIZE; i += line)
            memcpy(data + i, "\r\n", 2);
        CHECK(!tornado_parse_multipart_form_data(arena, &arguments, &files, (tornado_bytes){boundary, BOUNDARY},
                                                 (tornado_bytes){data, SIZE}, NULL));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
    }
    tornado_arena_free(arena);
    free(boundary);
    free(data);
}

TEST(multipart_the_boundary_comes_from_the_content_type)
{
    static const struct {
        const char *type;
        bool ok;
    } rows[] = {{"multipart/form-data; boundary=1234", true},
                {"Multipart/Form-Data;charset=utf-8; BOUNDARY=\"1234\"", true},
                {"multipart/form-data; boundary=\"\\\"1234\\\"\"", true},
                {"multipart/form-data", false},
                {"multipart/form-data; boundary=", false},
                {"multipart/form-data; boundary=12345", false},
                {"multipart/form-data; xboundary=1234", false},
                {"multipart/form-data; boundary=\"\"", false}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        tornado_http_files files = {0};
        bool ok = tornado_parse_body_arguments(arena, &arguments, &files, rows[i].type,
                                               tornado_bytes_of(FIELD("name=a", "1") END), NULL);
        if (ok != rows[i].ok || arguments.count != ok)
            FAIL("%s", rows[i].type);
        tornado_arena_free(arena);
    }
}

TEST(multipart_memory_may_run_short_anywhere)
{
    static char form[40000];
    char *end = form;
    bool failed = true;
    for (int i = 0; i < 60; i++)
        end += sprintf(end, FIELD("name=a%d", "1") FIELD("name=f; filename=\"x\"", "2"), i);
    strcpy(end, END);
    for (long n = 1; failed; n++) {
        tornado_arena *arena = tornado_arena_new();
        tornado_arguments arguments = {0};
        tornado_http_files files = {0};
        long allocs = test_allocs();
        test_fail_alloc(n);
        bool ok = tornado_parse_body_arguments(arena, &arguments, &files, "multipart/form-data; boundary=1234",
                                               tornado_bytes_of(form),
                                               &(tornado_arguments_options){.max_parts = TORNADO_NONE});
        failed = test_allocs() - allocs >= n;
        test_fail_alloc(0);
        CHECK_INT(ok, !failed);
        CHECK_INT(arguments.count, ok ? 60 : 0);
        CHECK_INT(files.count, ok ? 60 : 0);
        CHECK(ok || tornado_last_error()->code == TORNADO_ERR_NOMEM);
        tornado_arena_free(arena);
    }
}

/*----------------------------------------------------------------------------
 * A handler's files.
 *----------------------------------------------------------------------------*/

static void upload(tornado_handler *self)
{
    const tornado_http_file *first = tornado_get_file(self, "f");
    tornado_writef(self, "%s %s", first ? first->filename : "-",
                   shown(tornado_body_arguments(self), tornado_files(self)));
    CHECK(tornado_files(self) == tornado_http_request_files(self->request));
    CHECK(first == tornado_http_files_find(tornado_files(self), "f", NULL));
    CHECK(tornado_get_file(self, "g") == NULL);
    CHECK_STR(tornado_arguments_get(tornado_query_arguments(self), "f")->value.data, "query");
    if (first)
        CHECK(first->body.data >= self->request->body.data &&
              first->body.data + first->body.len <= self->request->body.data + self->request->body.len);
}

static const tornado_handler_class uploads = {.post = upload, .put = upload};

static answer send_form(const char *method, const char *type, const char *lines, const char *form)
{
    static char request[8192];
    tornado_rule rules[] = {{.path = "/", .handler = &uploads}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server =
        tornado_application_listen(app, 0, &(tornado_httpserver_options){.bind.address = "127.0.0.1"});
    CHECK(server != NULL);
    snprintf(request, sizeof request,
             "%s /?f=query HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n%s", method,
             type, strlen(form), lines, form);
    answer a = ask_once(tornado_httpserver_port(server), request);
    tornado_application_free(app);
    return a;
}

TEST(multipart_a_handler_gets_files_and_arguments)
{
    static const char form[] =
        FIELD("name=a", "1") FIELD("name=f; filename=x", "2") FIELD("name=f; filename=y", "3") END;
    answer a = send_form("POST", "multipart/form-data; boundary=1234", "", form);
    CHECK_INT(a.status, 200);
    CHECK_STR(a.body.data, "x a=1|f=x(application/unknown)2|f=y(application/unknown)3");
    a = send_form("PUT", "multipart/form-data; boundary=1234", "", END);
    CHECK_STR(a.body.data, "- ");
    a = send_form("POST", "application/x-www-form-urlencoded", "", "a=2");
    CHECK_STR(a.body.data, "- a=2");
    a = send_form("POST", "image/png", "", form);
    CHECK_STR(a.body.data, "- ");
}

TEST(multipart_a_malformed_form_is_one_400_and_one_line_of_the_log)
{
    log_keep();
    answer a = send_form("POST", "multipart/form-data; boundary=1234", "",
                         FIELD("name=a", "1") "--1234\r\n" PART("x", "y"));
    CHECK_INT(a.status, 400);
    CHECK_INT(logged("multipart/form-data"), 1);
    CHECK_INT(logged("400 POST"), 2); /* that one, and the access log's */
    a = send_form("POST", "multipart/form-data", "", END);
    CHECK_INT(a.status, 400);
    CHECK_INT(logged("boundary not found"), 1);
}

TEST(multipart_a_form_with_a_content_encoding_is_not_read)
{
    log_keep();
    answer a = send_form("POST", "multipart/form-data; boundary=1234", "Content-Encoding: br\r\n",
                         FIELD("name=a", "1") END);
    CHECK_INT(a.status, 200);
    CHECK_STR(a.body.data, "- ");
    CHECK_INT(logged("Unsupported Content-Encoding: br"), 1);
}

/*----------------------------------------------------------------------------
 * The same, without a handler.
 *----------------------------------------------------------------------------*/

static void tell_input(tornado_http_request *request, void *arg)
{
    (void)arg;
    char text[1024];
    const tornado_arguments *all = tornado_http_request_arguments(request), *query, *body, *cookies;
    query = tornado_http_request_query_arguments(request);
    body = tornado_http_request_body_arguments(request);
    cookies = tornado_http_request_cookies(request);
    CHECK(all && query && body && cookies && tornado_http_request_arguments(request) == all);
    CHECK_STR(request->version, "HTTP/1.1");
    CHECK_STR(request->remote_ip, "127.0.0.1");
    CHECK_STR(request->protocol, "http");
    size_t len = (size_t)snprintf(text, sizeof text, "%zu %zu %zu %s ", query->count, body->count, cookies->count,
                                  tornado_arguments_get(cookies, "c")->value.data);
    len += (size_t)snprintf(text + len, sizeof text - len, "%s", shown(all, tornado_http_request_files(request)));
    CHECK(sent(write_head(request->connection, 200, (int64_t)len, NULL)));
    CHECK(sent(tornado_http1_connection_write(request->connection, (tornado_bytes){text, len})));
    CHECK(sent(tornado_http1_connection_finish(request->connection)));
}

TEST(httputil_a_request_has_arguments_files_and_cookies)
{
    static const char form[] = FIELD("name=a", "2") FIELD("name=f; filename=x", "y") END;
    char request[2048];
    tornado_httpserver *server = tornado_httpserver_new_callback(tell_input, NULL, NULL);
    CHECK(tornado_httpserver_listen(server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    snprintf(request, sizeof request,
             "POST /?a=1&b=%%20 HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=1234\r\nCookie: "
             "c=1; d=2\r\n"
             "Cookie: c=3\r\nContent-Length: %zu\r\n\r\n%s",
             sizeof form - 1, form);
    CHECK_STR(ask_once(tornado_httpserver_port(server), request).body.data,
              "2 1 3 3 a=1|b= |a=2|f=x(application/unknown)y");
    tornado_httpserver_free(server);
}

static int unread; /* what the request of many arguments fails with */

static void tell_unread(tornado_http_request *request, void *arg)
{
    (void)arg;
    CHECK(tornado_http_request_arguments(request) == NULL && tornado_http_request_body_arguments(request) == NULL);
    CHECK(tornado_http_request_files(request) == NULL && tornado_http_request_query_arguments(request) != NULL);
    unread = tornado_last_error()->code;
    CHECK(sent(write_head(request->connection, 400, 0, NULL)));
    CHECK(sent(tornado_http1_connection_finish(request->connection)));
}

TEST(httputil_a_request_tells_each_time_why_its_form_cannot_be_read)
{
    tornado_httpserver *server = tornado_httpserver_new_callback(tell_unread, NULL, NULL);
    CHECK(tornado_httpserver_listen(server, 0, &(tornado_bind_options){.address = "127.0.0.1"}));
    CHECK_INT(ask_once(tornado_httpserver_port(server), "POST /?a=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
                                                        "Content-Type: multipart/form-data; boundary=1234\r\n\r\nx")
                  .status,
              400);
    CHECK_INT(unread, TORNADO_ERR_PARSE);
    tornado_httpserver_free(server);
}
