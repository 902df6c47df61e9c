/* The examples as their users see them: processes that are started, talked to, and interrupted. */
#include "http_client.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#define GET(path) "GET " path " HTTP/1.1\r\nHost: localhost\r\n\r\n"
#define PAUSE     0.3 /* of examples/wait_twice.c */

static const char *const examples[] = {"hello", "wait_twice", "json", "books", "echo", "echo_callbacks",
                                       "long_poll", "form", "upload", "receive", "delegate"};
#define EXAMPLES (sizeof examples / sizeof examples[0])

typedef struct process {
    pid_t pid;
    int out, err; /* ends of pipes */
    int port;
    char line[256]; /* its first, without the newline */
} process;

static const char *example_path(const char *name)
{
    static char path[512];
    const char *directory = getenv("TEST_EXAMPLES");
    snprintf(path, sizeof path, "%s/%s", directory ? directory : "build/examples", name);
    if (access(path, X_OK) != 0)
        SKIP("%s is not there: make examples", path);
    return path;
}

/* Starts an example; with no rights when `nobody`. */
static process example_spawn(const char *name, const char *port, bool nobody)
{
    process p = {.pid = -1};
    int out[2], err[2];
    const char *path = example_path(name);
    CHECK(pipe(out) == 0 && pipe(err) == 0);
    fflush(NULL);
    p.pid = fork();
    CHECK(p.pid >= 0);
    if (p.pid == 0) {
        dup2(out[1], 1);
        dup2(err[1], 2);
        for (int fd = 3; fd < 64; fd++)
            close(fd);
        if (nobody && geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(126);
        execl(path, path, port, (char *)NULL);
        _exit(126);
    }
    close(out[1]);
    close(err[1]);
    p.out = out[0];
    p.err = err[0];
    return p;
}

/* Reads a pipe up to a newline, or to its end when `all`. */
static void read_text(int fd, char *text, size_t room, bool all)
{
    size_t len = 0;
    ssize_t got = 1;
    while (got > 0 && len + 1 < room && (all || len == 0 || text[len - 1] != '\n'))
        if ((got = read(fd, text + len, all ? room - len - 1 : 1)) > 0)
            len += (size_t)got;
    if (!all && len > 0 && text[len - 1] == '\n')
        len--;
    text[len] = '\0';
}

/* Starts an example on any free port and reads where it serves. */
static process example_start(const char *name)
{
    process p = example_spawn(name, "0", false);
    read_text(p.out, p.line, sizeof p.line, false);
    const char *at = strstr(p.line, "127.0.0.1:");
    if (!at || (p.port = atoi(at + 10)) <= 0)
        FAIL("%s does not say where it serves: \"%s\"", name, p.line);
    return p;
}

/* Waits for the end of the process: its exit status, or 128 and the signal. */
static int example_end(process *p)
{
    int status = 0;
    CHECK(waitpid(p->pid, &status, 0) == p->pid);
    close(p->out);
    close(p->err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void example_stop(process *p, int number)
{
    CHECK(kill(p->pid, number) == 0);
    CHECK_INT(example_end(p), 0);
}

/* An example that cannot serve exits with 1 after one line, which has `what` in it. */
static void check_refused(const char *name, const char *port, bool nobody, const char *what)
{
    char out[256], err[1024];
    process p = example_spawn(name, port, nobody);
    read_text(p.err, err, sizeof err, true);
    read_text(p.out, out, sizeof out, true);
    int status = example_end(&p);
    if (status == 126 && nobody)
        SKIP("%s cannot be run without rights here", name);
    CHECK_STR(out, "");
    const char *newline = strchr(err, '\n');
    if (!strstr(err, what) || !newline || newline[1])
        FAIL("%s %s should print one line with \"%s\", and prints \"%s\"", name, port, what, err);
    CHECK_INT(status, 1);
}

static char *file_text(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        FAIL("%s cannot be read", path);
    char *text = calloc(1, 1 << 20);
    size_t len = fread(text, 1, (1 << 20) - 1, file);
    fclose(file);
    CHECK(len > 0);
    return text;
}

/*----------------------------------------------------------------------------
 * What they answer.
 *----------------------------------------------------------------------------*/

TEST(examples_hello_says_hello)
{
    process p = example_start("hello");
    answer a = ask_once(p.port, GET("/"));
    CHECK_INT(a.status, 200);
    CHECK_STR(a.body.data, "Hello, world");
    CHECK_STR(head_value(a.head, "Content-Type"), "text/html; charset=UTF-8");
    CHECK_INT(ask_once(p.port, GET("/none")).status, 404);
    CHECK_INT(ask_once(p.port, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").status, 405);
    example_stop(&p, SIGTERM);
}

TEST(examples_json_answers_in_json)
{
    process p = example_start("json");
    answer a = ask_once(p.port, "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: \"me\"\r\n\r\n");
    CHECK_INT(a.status, 200);
    CHECK_STR(head_value(a.head, "Content-Type"), "application/json; charset=UTF-8");
    static const char begin[] = "{\"greeting\": \"Gr\\u00fc\\u00dfe\", \"host\": \"localhost\", "
                                "\"user_agent\": \"\\\"me\\\"\", \"time\": ",
                      end[] = ", \"numbers\": [1, 2], \"ok\": true}";
    CHECK(a.body.len > sizeof begin + sizeof end);
    CHECK_MEM(a.body.data, sizeof begin - 1, begin, sizeof begin - 1);
    CHECK_STR(a.body.data + a.body.len - (sizeof end - 1), end);
    example_stop(&p, SIGTERM);
}

/* A request with a body, which may be NULL; the answer lives until the next one. */
static answer ask_with(int port, const char *method, const char *path, const char *body)
{
    static char request[65536];
    body = body ? body : "";
    int len = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s",
                       method, path, strlen(body), body);
    CHECK(len > 0 && (size_t)len < sizeof request);
    return ask_once(port, request);
}

#define EMMA_BODY "{\"title\": \"Emma\", \"author\": \"Jane Austen\", \"year\": 1815}"
#define EMMA      "{\"id\": 1, \"title\": \"Emma\", \"author\": \"Jane Austen\", \"year\": 1815}"
#define GORIOT    "{\"id\": 2, \"title\": \"P\\u00e8re Goriot\", \"author\": \"Balzac\", \"year\": 1835}"

TEST(examples_books_are_added_listed_replaced_and_deleted)
{
    static const struct {
        const char *method, *path, *body;
        int status;
        const char *location, *answer;
    } steps[] = {
        {"GET", "/books", NULL, 200, NULL, "{\"total\": 0, \"offset\": 0, \"books\": []}"},
        {"POST", "/books", EMMA_BODY, 201, "/books/1", EMMA},
        {"POST", "/books", "{\"year\":1835,\"author\":\"Balzac\",\"title\":\"P\xc3\xa8re Goriot\"}", 201, "/books/2",
         GORIOT},
        {"GET", "/books/2", NULL, 200, NULL, GORIOT},
        {"GET", "/books", NULL, 200, NULL, "{\"total\": 2, \"offset\": 0, \"books\": [" EMMA ", " GORIOT "]}"},
        {"GET", "/books?limit=1", NULL, 200, NULL, "{\"total\": 2, \"offset\": 0, \"books\": [" EMMA "]}"},
        {"GET", "/books?offset=1&limit=5", NULL, 200, NULL, "{\"total\": 2, \"offset\": 1, \"books\": [" GORIOT "]}"},
        {"GET", "/books?offset=2", NULL, 200, NULL, "{\"total\": 2, \"offset\": 2, \"books\": []}"},
        {"PUT", "/books/2", "{\"title\": \"x\", \"author\": \"y\", \"year\": -8}", 200, NULL,
         "{\"id\": 2, \"title\": \"x\", \"author\": \"y\", \"year\": -8}"},
        {"DELETE", "/books/1", NULL, 204, NULL, ""},
        {"GET", "/books/1", NULL, 404, NULL, "{\"status\": 404, \"error\": \"there is no book 1\"}"},
        {"POST", "/books", EMMA_BODY, 201, "/books/3", NULL}, /* the id of what was deleted is not given again */
    };
    process p = example_start("books");
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        answer a = ask_with(p.port, steps[i].method, steps[i].path, steps[i].body);
        const char *location = head_value(a.head, "Location");
        if (a.status != steps[i].status || (steps[i].answer && strcmp(a.body.data, steps[i].answer) != 0))
            FAIL("step %zu, %s %s: %d %s", i, steps[i].method, steps[i].path, a.status, a.body.data);
        CHECK_STR(location ? location : "", steps[i].location ? steps[i].location : "");
    }
    example_stop(&p, SIGTERM);
}

#define WITH_TITLE(title) "{\"title\": " title ", \"author\": \"x\", \"year\": 1}"
#define X201              X50 X50 X50 X50 "x"
#define X50               "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

TEST(examples_books_say_in_json_what_is_wrong_with_a_request)
{
    static const struct {
        const char *method, *path, *body;
        int status;
        const char *error;
    } cases[] = {
        {"POST", "/books", "", 400, "a value is wanted, at line 1 column 1 (byte 0)"},
        {"POST", "/books", "{\"title\": \"Emma\", }", 400,
         "a key in double quotes is wanted, at line 1 column 19 (byte 18)"},
        {"POST", "/books", "[]", 400, "the value: a dict is wanted, not a list"},
        {"POST", "/books", "{}", 400, "title: is missing"},
        {"POST", "/books", WITH_TITLE("1"), 400, "title: a string is wanted, not an integer"},
        {"POST", "/books", WITH_TITLE("null"), 400, "title: a string is wanted, not null"},
        {"POST", "/books", WITH_TITLE("\"\""), 400, "title: 1 to 200 bytes without NUL are wanted"},
        {"POST", "/books", WITH_TITLE("\"a\\u0000b\""), 400, "title: 1 to 200 bytes without NUL are wanted"},
        {"POST", "/books", WITH_TITLE("\"" X201 "\""), 400, "title: 1 to 200 bytes without NUL are wanted"},
        {"POST", "/books", "{\"title\": \"x\", \"author\": \"y\", \"year\": 18.5}", 400,
         "year: an integer is wanted, not a double"},
        {"POST", "/books", "{\"title\": \"x\", \"author\": \"y\", \"year\": 1, \"id\": 7}", 400, "id: is not wanted"},
        {"PUT", "/books/1", "nothing", 400, "a value is wanted, at line 1 column 1 (byte 0)"},
        {"PUT", "/books/2", EMMA_BODY, 404, "there is no book 2"},
        {"DELETE", "/books/2", NULL, 404, "there is no book 2"},
        {"GET", "/books/99999999999999999999", NULL, 404, "there is no book 99999999999999999999"},
        {"GET", "/books/x", NULL, 404, "there is nothing at /books/x"},
        {"GET", "/", NULL, 404, "there is nothing at /"},
        {"PATCH", "/books/1", EMMA_BODY, 405, "Method Not Allowed"},
        {"DELETE", "/books", NULL, 405, "Method Not Allowed"},
        {"GET", "/books?limit=0", NULL, 400, "limit: an integer from 1 to 100 is wanted"},
        {"GET", "/books?limit=101", NULL, 400, "limit: an integer from 1 to 100 is wanted"},
        {"GET", "/books?limit=", NULL, 400, "limit: an integer from 1 to 100 is wanted"},
        {"GET", "/books?limit=5x", NULL, 400, "limit: an integer from 1 to 100 is wanted"},
        {"GET", "/books?offset=99999999999999999999", NULL, 400, "offset: an integer from 0 to 1000 is wanted"},
        {"GET", "/books?offset=-1", NULL, 400, "offset: an integer from 0 to 1000 is wanted"},
    };
    process p = example_start("books");
    CHECK_INT(ask_with(p.port, "POST", "/books", EMMA_BODY).status, 201);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char want[512];
        answer a = ask_with(p.port, cases[i].method, cases[i].path, cases[i].body);
        snprintf(want, sizeof want, "{\"status\": %d, \"error\": \"%s\"}", cases[i].status, cases[i].error);
        if (a.status != cases[i].status || strcmp(a.body.data, want) != 0)
            FAIL("%s %s %s: %d %s", cases[i].method, cases[i].path, cases[i].body, a.status, a.body.data);
        CHECK_STR(head_value(a.head, "Content-Type"), "application/json; charset=UTF-8");
    }
    CHECK_STR(ask_once(p.port, GET("/books/1")).body.data, EMMA); /* which none of that has changed */
    example_stop(&p, SIGTERM);
}

TEST(examples_books_refuse_what_is_too_deep_or_too_large)
{
    static char body[20000];
    process p = example_start("books");
    memset(body, '[', 10000);
    answer a = ask_with(p.port, "POST", "/books", body);
    CHECK_INT(a.status, 400);
    CHECK(strstr(a.body.data, "more than 512 lists and dicts in each other") != NULL);
    memset(body, ' ', sizeof body - 1);
    CHECK_INT(ask_with(p.port, "POST", "/books", body).status, 413);
    CHECK_STR(ask_once(p.port, GET("/books")).body.data, "{\"total\": 0, \"offset\": 0, \"books\": []}");
    example_stop(&p, SIGTERM);
}

TEST(examples_books_keep_no_more_than_a_thousand)
{
    process p = example_start("books");
    client c = client_open(p.port);
    char request[256];
    snprintf(request, sizeof request, "POST /books HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(EMMA_BODY), EMMA_BODY);
    for (int i = 0; i < 1000; i++)
        CHECK_INT(client_ask(&c, request).status, 201);
    answer a = client_ask(&c, request);
    CHECK_INT(a.status, 507);
    CHECK_STR(a.body.data, "{\"status\": 507, \"error\": \"the shelf is full\"}");
    CHECK_INT(client_ask(&c, "DELETE /books/500 HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 204);
    CHECK_STR(head_value(client_ask(&c, request).head, "Location"), "/books/1001");
    client_close(&c);
    example_stop(&p, SIGTERM);
}

TEST(examples_wait_twice_waits_for_coroutines_of_its_own)
{
    process p = example_start("wait_twice");
    CHECK_STR(ask_once(p.port, GET("/squares")).body.data, "{\"first\": 9, \"second\": 16}");
    example_stop(&p, SIGTERM);
}

TEST(examples_form_redirects_and_remembers_the_name)
{
    process p = example_start("form");
    answer a = ask_once(p.port, "POST / HTTP/1.1\r\nHost: localhost\r\n"
                                "Content-Type: application/x-www-form-urlencoded\r\n"
                                "Content-Length: 14\r\n\r\nname=Ben+%3Cb>");
    CHECK_INT(a.status, 302);
    CHECK_STR(head_value(a.head, "Location"), "/");
    CHECK(strstr(head_value(a.head, "Set-Cookie"), "name=\"Ben <b>\"; expires=") != NULL);
    a = ask_once(p.port, "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: name=\"Ben <b>\"\r\n\r\n");
    CHECK(strstr(a.body.data, "<li>Ben &lt;b&gt;</li>") != NULL);
    CHECK(strstr(a.body.data, "value=\"Ben &lt;b&gt;\"") != NULL);
    example_stop(&p, SIGTERM);
}

/* 40 characters of 3 bytes each, as a form sends them. */
#define KANJI_40 KANJI_10 KANJI_10 KANJI_10 KANJI_10
#define KANJI_10 "%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2%E6%BC%A2"

TEST(examples_form_says_what_is_wrong_with_a_name)
{
    static const struct {
        const char *form;
        int status;
        const char *says;
    } cases[] = {{"", 400, "Missing argument name"},
                 {"name=", 400, "A name has 1 to 40 characters."},
                 {"name=+%0a+", 400, "A name has 1 to 40 characters."},
                 {"name=%ff", 400, "Invalid unicode in name"},
                 {"name=" KANJI_40, 302, ""},
                 {"name=" KANJI_40 "x", 400, "A name has 1 to 40 characters."}};
    process p = example_start("form");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char request[1024];
        snprintf(request, sizeof request, "POST / HTTP/1.1\r\nHost: localhost\r\n"
                 "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %zu\r\n\r\n%s",
                 strlen(cases[i].form), cases[i].form);
        answer a = ask_once(p.port, request);
        if (a.status != cases[i].status || !strstr(a.body.data, cases[i].says))
            FAIL("%s: %d %s", cases[i].form, a.status, a.body.data);
    }
    answer a = ask_once(p.port, GET("/"));
    char *first = strstr(a.body.data, "<li>");
    CHECK(first != NULL && strstr(first + 1, "<li>") == NULL); /* the one good name signed, once */
    example_stop(&p, SIGTERM);
}

TEST(examples_long_poll_answers_at_once_who_is_behind)
{
    process p = example_start("long_poll");
    CHECK_INT(ask_with(p.port, "POST", "/say", "one").status, 200);
    CHECK_INT(ask_with(p.port, "POST", "/say", "two").status, 200);
    CHECK_STR(ask_once(p.port, GET("/next?after=1")).body.data, "{\"number\": 2, \"message\": \"two\"}");
    client c = client_open(p.port); /* one that is not behind waits */
    client_send(&c, GET("/next?after=2"));
    CHECK_INT(ask_once(p.port, GET("/")).status, 404);
    CHECK_INT(c.len, 0);
    CHECK_INT(ask_with(p.port, "POST", "/say", "three").status, 200);
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_STR(a.body.data, "{\"number\": 3, \"message\": \"three\"}");
    client_close(&c);
    example_stop(&p, SIGTERM);
}

TEST(examples_long_poll_answers_all_who_wait_with_the_next_message)
{
    process p = example_start("long_poll");
    client waiting[3];
    for (int i = 0; i < 3; i++) {
        waiting[i] = client_open(p.port);
        client_send(&waiting[i], GET("/next"));
    }
    client_close(&waiting[2]); /* who leaves is not missed */
    /* one request after the other on one connection: those above have come in before the second is read */
    CHECK_INT(ask_once(p.port, GET("/")).status, 404);
    answer a = ask_once(p.port, "POST /say HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello");
    CHECK_STR(a.body.data, "said\n");
    for (int i = 0; i < 2; i++) {
        CHECK(client_need(&waiting[i], 20));
        while (!strstr(waiting[i].data, "}") && client_more(&waiting[i]))
            ;
        CHECK(strstr(waiting[i].data, "{\"number\": 1, \"message\": \"hello\"}") != NULL);
        client_close(&waiting[i]);
    }
    CHECK_INT(ask_once(p.port, "POST /say HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").status, 400);
    example_stop(&p, SIGTERM);
}

/* In coroutine and in callback style. */
static const char *const echoes[] = {"echo", "echo_callbacks"};

static void check_lines_back(const char *name)
{
    process p = example_start(name);
    client one = client_open(p.port), two = client_open(p.port);
    client_send(&one, "first\nsec");
    client_send(&two, "of another\n");
    CHECK(client_need(&one, 6) && client_need(&two, 11));
    client_send(&one, "ond\n\nlast");
    CHECK(client_need(&one, 14));
    CHECK(shutdown(one.fd, SHUT_WR) == 0);
    while (client_more(&one))
        ;
    CHECK_MEM(one.data, one.len, "first\nsecond\n\n", 14); /* what is no line is not sent back */
    CHECK_MEM(two.data, two.len, "of another\n", 11);
    client_close(&one);
    client_close(&two);
    example_stop(&p, SIGTERM);
}

TEST(examples_echo_sends_lines_back)
{
    for (int i = 0; i < 2; i++)
        check_lines_back(echoes[i]);
}

TEST(examples_echo_drops_a_line_without_end)
{
    static char much[1 << 20];
    memset(much, 'x', sizeof much);
    for (int i = 0; i < 2; i++) {
        process p = example_start(echoes[i]);
        client c = client_open(p.port);
        client_send_bytes(&c, much, sizeof much);
        client_until_end(&c);
        client_close(&c);
        example_stop(&p, SIGTERM);
    }
}

/* A site for the spider. */
static void site_get(tornado_handler *self)
{
    static const struct {
        const char *path, *html;
    } pages[] = {
        {"", "<p>abc</p><a href=\"a\">a</a><A class='x' HREF = 'b?c=1&amp;d=2#e'>b</A><a href=\"/other\">outside</a>"
             "<link href=\"style.css\"><a href=\"mailto:me@localhost\">me</a><a name=\"x\">no link</a>"},
        {"a", "<a href=\"../site/a#again\">a</a><a href=\"missing\">gone</a><a href=\"./sub/deep\">deep</a>"},
        {"b", ""},
        {"sub/deep", "<a href=\"/site/none\">none</a><a href=\"..\">up</a><a href=\"http://127.0.0.1:1/\">elsewhere</a>"},
    };
    const char *path = tornado_path_arg(self, 0);
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++)
        if (strcmp(pages[i].path, path) == 0) {
            tornado_write(self, pages[i].html);
            return;
        }
    tornado_raise_http_error(404, "no page");
}

TEST_LIMIT(examples_spider_fetches_each_page_below_its_url_once, 20)
{
    static const tornado_handler_class site = {.name = "site", .get = site_get};
    tornado_rule rules[] = {{.path = "/site/(.*)", .handler = &site}, {0}};
    tornado_log_options errors_only = {.level = TORNADO_LOG_ERROR};
    tornado_enable_pretty_logging(&errors_only);
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, 0, NULL) : NULL;
    CHECK(server != NULL);
    int port = tornado_httpserver_port(server);
    const test_output *out = test_run_loop(tornado_ioloop_current(), "%s http://127.0.0.1:%d/site/ | "
                                           "sed 's/127.0.0.1:[0-9]*//; s/in [0-9]* s/in N s/' | LC_ALL=C sort", example_path("spider"), port);
    CHECK_STR(out->text, "Done in N seconds, fetched 4 URLs.\n"
                         "Exception: HTTP 404 http:///site/missing\n"
                         "Exception: HTTP 404 http:///site/none\n"
                         "fetched http:///site/\n"
                         "fetched http:///site/a\n"
                         "fetched http:///site/b?c=1&d=2\n"
                         "fetched http:///site/sub/deep\n"
                         "fetching http:///site/\n"
                         "fetching http:///site/a\n"
                         "fetching http:///site/b?c=1&d=2\n"
                         "fetching http:///site/missing\n"
                         "fetching http:///site/none\n"
                         "fetching http:///site/sub/deep\n");
    tornado_application_free(app);
}

TEST(examples_gzip_compresses_and_decompresses)
{
    const char *path = example_path("gzip");
    TEST_NEED("gzip");
    CHECK_STR(test_run("seq 100000 | %s | gzip -dc | tail -n 1", path)->text, "100000\n");
    CHECK_STR(test_run("seq 100000 | %s -9 | %s -d | tail -n 1", path, path)->text, "100000\n");
    const test_output *cut = test_run("seq 100000 | gzip | head -c 1000 | %s -d 2>&1 >/dev/null; echo \"exit $?\"", path);
    CHECK(strncmp(cut->text, "gzip: ", 6) == 0 && strstr(cut->text, "\nexit 1\n"));
}

TEST(examples_workers_answer_from_threads_and_from_other_programs)
{
    process p = example_start("workers");
    answer a = ask_once(p.port, GET("/primes?below=100"));
    CHECK(strncmp(a.body.data, "25 primes below 100, said process ", 34) == 0);
    CHECK_INT(ask_once(p.port, GET("/primes?below=0")).status, 400);
    a = ask_once(p.port, GET("/kernel"));
    CHECK_STR(a.body.data, test_run("uname -sr")->text);
    example_stop(&p, SIGTERM);
}

TEST(examples_own_loop_serves_until_its_input_ends)
{
    for (int asks = 0; asks < 2; asks++) {
        int input[2];
        CHECK(pipe(input) == 0 && dup2(input[0], 0) == 0);
        close(input[0]);
        process p = example_start("own_loop");
        if (asks)
            CHECK_INT(ask_once(p.port, GET("/")).status, 200);
        close(input[1]);
        CHECK_INT(example_end(&p), 0);
    }
}

static void pages_get(tornado_handler *self)
{
    tornado_write(self, "<a href=\"?page=2\">more</a>");
}

TEST_LIMIT(examples_spider_asks_for_the_root_where_a_url_has_no_path, 20)
{
    static const tornado_handler_class pages = {.name = "pages", .get = pages_get};
    tornado_rule rules[] = {{.path = "/", .handler = &pages}, {0}};
    tornado_log_options errors_only = {.level = TORNADO_LOG_ERROR};
    tornado_enable_pretty_logging(&errors_only);
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, 0, NULL) : NULL;
    CHECK(server != NULL);
    const test_output *out = test_run_loop(tornado_ioloop_current(), "%s http://127.0.0.1:%d | "
                                           "sed 's/127.0.0.1:[0-9]*//' | LC_ALL=C sort | grep '^fetched'",
                                           example_path("spider"), tornado_httpserver_port(server));
    CHECK_STR(out->text, "fetched http://\n"
                         "fetched http://?page=2\n");
    tornado_application_free(app);
}

TEST(examples_answer_curl)
{
    TEST_NEED("curl");
    process p = example_start("hello");
    const test_output *out = test_run("curl -s -w ' %%{http_code} %%{num_connects}\\n' http://127.0.0.1:%d/ "
                                      "http://127.0.0.1:%d/", p.port, p.port);
    CHECK_STR(out->text, "Hello, world 200 1\nHello, world 200 0\n");
    CHECK_STR(test_run("curl -sI http://127.0.0.1:%d/ | head -n 1", p.port)->text,
              "HTTP/1.1 405 Method Not Allowed\r\n");
    example_stop(&p, SIGTERM);
}

/* Runs the curl commands that an example's first comment shows, one after the other, and checks the statuses. */
static void check_commands(const char *name, const char *statuses)
{
    char path[128], got[256] = "";
    snprintf(path, sizeof path, "examples/%s.c", name);
    if (access(path, R_OK) != 0)
        SKIP("not started in the project's directory");
    process p = example_start(name);
    char *source = file_text(path);
    for (char *at = source; (at = strstr(at, "\n   curl ")) != NULL; at++) {
        char *port = strstr(at, ":8888"), *end = at + 1 + strcspn(at + 1, "\n");
        CHECK(port != NULL && port < end);
        end -= strncmp(end - 3, " */", 3) == 0 ? 3 : 0;
        const test_output *out = test_run("curl() { command curl -s -o /dev/null -w '%%{http_code} ' \"$@\"; };"
                                          "%.*s:%d%.*s",
                                          (int)(port - at), at, p.port, (int)(end - (port + 5)), port + 5);
        strcat(got, out->text);
    }
    free(source);
    CHECK_STR(got, statuses);
    example_stop(&p, SIGTERM);
}

TEST(examples_answer_the_commands_that_they_show)
{
    TEST_NEED("curl");
    check_commands("books", "201 200 200 204 ");
    check_commands("form", "302 ");
    check_commands("upload", "200 200 ");
}

TEST(examples_upload_takes_files_from_curl)
{
    TEST_NEED("curl");
    process p = example_start("upload");
    const char *directory = getenv("TMPDIR");
    const test_output *out =
        test_run("d=$(mktemp -d %s/tornado-upload-XXXXXX) && cd \"$d\" && head -c 300000 /dev/urandom > a.bin && : > b.txt &&"
                 " curl -s -F files1=@a.bin -F 'files1=@b.txt;filename=\"x;\xc3\xa9.txt\"' -F 'note=a&b' http://127.0.0.1:%d/post;"
                 " curl -s -T a.bin -H 'Content-Type: image/png' http://127.0.0.1:%d/a.bin; rm -r \"$d\"",
                 directory ? directory : "/tmp", p.port, p.port);
    CHECK_STR(out->text, "POST \"a.bin\" \"application/octet-stream\" 300000 bytes\n"
                         "POST \"x;\xc3\xa9.txt\" \"text/plain\" 0 bytes\n"
                         "note: a&b\n"
                         "PUT \"a.bin\" \"image/png\" 300000 bytes\n");
    out = test_run("curl -s -o /dev/null -w '%%{http_code}' -H 'Content-Type: multipart/form-data' -d x http://127.0.0.1:%d/post",
                   p.port);
    CHECK_STR(out->text, "400");
    example_stop(&p, SIGTERM);
}

TEST(examples_receive_counts_what_it_does_not_keep)
{
    TEST_NEED("curl");
    process p = example_start("receive");
    const test_output *out = test_run("yes | head -c 3000000 | curl -s -T - http://127.0.0.1:%d/yes;"
                                      " printf 'no newline' | curl -s -T - http://127.0.0.1:%d/text", p.port, p.port);
    CHECK_STR(out->text, "yes: 3000000 bytes, 1500000 lines\n"
                         "text: 10 bytes, 0 lines\n");
    example_stop(&p, SIGTERM);
}

TEST(examples_delegate_answers_below_the_framework)
{
    TEST_NEED("curl");
    process p = example_start("delegate");
    const test_output *out =
        test_run("curl -s -d 'some text' http://127.0.0.1:%d/anything http://127.0.0.1:%d/else?a=b", p.port, p.port);
    CHECK_STR(out->text, "You requested /anything, with 9 bytes\nYou requested /else?a=b, with 9 bytes\n");
    example_stop(&p, SIGTERM);
}

/*----------------------------------------------------------------------------
 * Waiting.
 *----------------------------------------------------------------------------*/

/* How long `count` requests take that are sent at once, each over a connection of its own. */
static double time_of(int port, const char *request, const char *body, int count)
{
    client clients[32];
    answer a;
    CHECK(count <= 32);
    for (int i = 0; i < count; i++)
        clients[i] = client_open(port);
    double began = tornado_monotonic();
    for (int i = 0; i < count; i++)
        client_send(&clients[i], request);
    for (int i = 0; i < count; i++) {
        CHECK(client_answer(&clients[i], &a));
        CHECK_INT(a.status, 200);
        CHECK_STR(a.body.data, body);
    }
    double took = tornado_monotonic() - began;
    for (int i = 0; i < count; i++)
        client_close(&clients[i]);
    return took;
}

TEST_LIMIT(examples_wait_twice_waits_for_both_at_once, 20)
{
    process p = example_start("wait_twice");
    double took = 1e9;
    for (int tries = 0; tries < 10 && took >= 1.8 * PAUSE; tries++) { /* a busy machine may be slow once */
        took = time_of(p.port, GET("/together"), "slept twice at once\n", 1);
        CHECK(took >= PAUSE * 0.99);
    }
    CHECK(took < 1.8 * PAUSE);
    CHECK(time_of(p.port, GET("/in_turn"), "slept twice in turn\n", 1) >= 2 * PAUSE * 0.99);
    example_stop(&p, SIGTERM);
}

TEST_LIMIT(examples_wait_twice_serves_others_meanwhile, 20)
{
    process p = example_start("wait_twice");
    double took = time_of(p.port, GET("/together"), "slept twice at once\n", 30); /* in turn: 9 s */
    CHECK(took >= PAUSE * 0.99 && took < test_scaled(4));
    took = time_of(p.port, GET("/in_turn"), "slept twice in turn\n", 30); /* in turn: 18 s */
    CHECK(took >= 2 * PAUSE * 0.99 && took < test_scaled(6));
    example_stop(&p, SIGTERM);
}

/*----------------------------------------------------------------------------
 * The end.
 *----------------------------------------------------------------------------*/

static void check_end_with_idle_connection(const char *name, const char *path, int number)
{
    process p = example_start(name);
    char request[128];
    client c = client_open(p.port), silent = client_open(p.port);
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
    answer a = client_ask(&c, request);
    CHECK_INT(a.status, 200);
    CHECK(!a.close);
    double began = tornado_monotonic();
    example_stop(&p, number);
    CHECK(tornado_monotonic() - began < test_scaled(4)); /* it does not wait for its idle clients: that would be 5 s */
    client_until_end(&c);
    client_until_end(&silent);
    client_close(&c);
    client_close(&silent);
}

TEST(examples_end_on_sigterm_with_idle_connections)
{
    check_end_with_idle_connection("hello", "/", SIGTERM);
    check_end_with_idle_connection("json", "/", SIGTERM);
    check_end_with_idle_connection("wait_twice", "/together", SIGTERM);
}

TEST(examples_end_on_sigint_with_idle_connections)
{
    check_end_with_idle_connection("hello", "/", SIGINT);
    check_end_with_idle_connection("json", "/", SIGINT);
    check_end_with_idle_connection("wait_twice", "/together", SIGINT);
}

TEST(examples_echo_ends_with_open_connections)
{
    for (int i = 0; i < 4; i++) {
        process p = example_start(echoes[i / 2]);
        client c = client_open(p.port);
        client_send(&c, "line\n");
        CHECK(client_need(&c, 5));
        example_stop(&p, i % 2 ? SIGINT : SIGTERM);
        client_until_end(&c);
        client_close(&c);
    }
}

TEST(examples_finish_a_request_before_they_end)
{
    process p = example_start("wait_twice");
    client c = client_open(p.port);
    answer a;
    client_send(&c, GET("/in_turn"));
    ask_once(p.port, GET("/together")); /* when this is answered the other one is under way */
    CHECK(kill(p.pid, SIGTERM) == 0);
    CHECK(client_answer(&c, &a));
    CHECK_INT(a.status, 200);
    CHECK_STR(a.body.data, "slept twice in turn\n");
    client_until_end(&c);
    CHECK(!c.reset);
    client_close(&c);
    CHECK_INT(example_end(&p), 0);
}

TEST(examples_end_at_once_on_a_second_signal)
{
    process p = example_start("wait_twice");
    client c = client_open(p.port);
    client_send(&c, GET("/in_turn"));
    ask_once(p.port, GET("/together"));
    CHECK(kill(p.pid, SIGINT) == 0);
    CHECK(kill(p.pid, SIGTERM) == 0);
    CHECK_INT(example_end(&p), 0);
    client_close(&c);
}

/*----------------------------------------------------------------------------
 * Ports that cannot be had.
 *----------------------------------------------------------------------------*/

TEST(examples_say_that_the_port_is_used)
{
    process p = example_start("hello");
    char port[8];
    snprintf(port, sizeof port, "%d", p.port);
    for (size_t i = 0; i < EXAMPLES; i++)
        check_refused(examples[i], port, false, port);
    CHECK_INT(ask_once(p.port, GET("/")).status, 200); /* the first one is not disturbed */
    example_stop(&p, SIGTERM);
}

TEST(examples_can_be_started_again_at_once)
{
    process p = example_start("hello");
    char port[8];
    snprintf(port, sizeof port, "%d", p.port);
    client c = client_open(p.port);
    client_ask(&c, GET("/"));
    example_stop(&p, SIGTERM); /* the server closes first: TIME_WAIT is on its side */
    client_close(&c);
    p = example_spawn("hello", port, false);
    read_text(p.out, p.line, sizeof p.line, false);
    CHECK(strstr(p.line, port) != NULL);
    example_stop(&p, SIGTERM);
}

TEST(examples_say_that_a_port_is_privileged)
{
    FILE *file = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "r");
    int first = 1024;
    if (file && fscanf(file, "%d", &first) != 1)
        first = 1024;
    if (file)
        fclose(file);
    if (first <= 1)
        SKIP("every user may listen on every port here");
    for (size_t i = 0; i < EXAMPLES; i++)
        check_refused(examples[i], "1", true, ":1: ");
}

TEST(examples_say_that_it_is_no_port)
{
    static const char *const wrong[] = {"65536", "-1", "http", "80x"};
    for (size_t i = 0; i < EXAMPLES; i++)
        for (size_t k = 0; k < sizeof wrong / sizeof wrong[0]; k++)
            check_refused(examples[i], wrong[k], false, wrong[k]);
}

/*----------------------------------------------------------------------------
 * README.md and the manual: each piece of code in them is in a file that is compiled.
 *----------------------------------------------------------------------------*/

/* Only what the compiler sees of it: without comments, white space, and the directories of includes. In place. */
static char *code_only(char *text)
{
    char *out = text;
    for (const char *at = text; *at;) {
        if (strncmp(at, "//", 2) == 0 && (at == text || at[-1] != ':')) {
            at += strcspn(at, "\n");
        } else if (strncmp(at, "/*", 2) == 0) {
            const char *end = strstr(at, "*/");
            at = end ? end + 2 : at + strlen(at);
        } else if (strncmp(at, "../", 3) == 0) {
            at += 3;
        } else if (strchr(" \n", *at)) {
            at++;
        } else {
            *out++ = *at++;
        }
    }
    *out = '\0';
    return text;
}

/* Fails unless `code` is in a file that is compiled. It is changed. */
static void check_compiled(const char *where, char *code)
{
    char shown[256];
    snprintf(shown, sizeof shown, "%s", code);
    code_only(code);
    static const char *const others[] = {"examples/workers.c", "tests/include/manual.c"};
    for (size_t i = 0; i < EXAMPLES + sizeof others / sizeof others[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "examples/%s.c", i < EXAMPLES ? examples[i] : "");
        char *source = code_only(file_text(i < EXAMPLES ? path : others[i - EXAMPLES]));
        bool found = strstr(source, code) != NULL;
        free(source);
        if (found)
            return;
    }
    FAIL("%s shows what is in no file that is compiled:\n%s", where, shown);
}

TEST(examples_the_readme_shows_code_that_is_compiled)
{
    if (access("README.md", R_OK) != 0)
        SKIP("not started in the project's directory");
    char *readme = file_text("README.md"), *at = readme, *end = readme;
    int found = 0;
    for (; (at = strstr(end, "\n```c\n")) != NULL; found++) {
        at += 6;
        CHECK((end = strstr(at, "\n```\n")) != NULL);
        *end++ = '\0';
        check_compiled("README.md", at);
    }
    CHECK(found > 0);
    free(readme);
}

/* The manual is the header's first comment; its code is indented by seven spaces or more. */
TEST(examples_the_manual_shows_code_that_is_compiled)
{
    if (access("tornado.h", R_OK) != 0)
        SKIP("not started in the project's directory");
    char *manual = calloc(1, 65536), code[4096] = "";
    FILE *file = fopen("tornado.h", "r");
    CHECK(file && fread(manual, 1, 65535, file) > 0);
    fclose(file);
    int found = 0;
    size_t len = 0;
    for (const char *line = manual; strncmp(line, "*/", 2) != 0; line = strchr(line, '\n') + 1) {
        size_t size = strcspn(line, "\n") + 1;
        CHECK(line[size - 1] == '\n');
        if (strncmp(line, "       ", 7) == 0 && strncmp(line, "       cc ", 10) != 0) {
            CHECK(len + size < sizeof code);
            memcpy(code + len, line, size);
            code[len += size] = '\0';
        } else if (len > 0) { /* a blank line may stand in a piece of code: then its parts are looked for */
            check_compiled("the manual", code);
            len = 0;
            found++;
        }
    }
    CHECK(found > 5);
    free(manual);
}
