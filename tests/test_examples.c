/* The examples as their users see them: processes that are started, talked to, and interrupted. */
#include "http_client.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#define GET(path) "GET " path " HTTP/1.1\r\nHost: localhost\r\n\r\n"
#define PAUSE     0.3 /* of examples/wait_twice.c */

static const char *const examples[] = {"hello", "wait_twice", "json", "echo", "long_poll", "form"};
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
    static const char begin[] = "{\"greeting\": \"Gr\\u00fc\\u00dfe\", \"host\": \"localhost\", \"user_agent\": \"\\\"me\\\"\", "
                                "\"time\": ",
                      end[] = ", \"numbers\": [1, 2], \"ok\": true}";
    CHECK(a.body.len > sizeof begin + sizeof end);
    CHECK_MEM(a.body.data, sizeof begin - 1, begin, sizeof begin - 1);
    CHECK_STR(a.body.data + a.body.len - (sizeof end - 1), end);
    a = ask_once(p.port, GET("/none"));
    CHECK_INT(a.status, 404);
    CHECK_STR(head_value(a.head, "Content-Type"), "application/json; charset=UTF-8");
    CHECK_STR(a.body.data, "{\"status\": 404, \"error\": \"Not Found\"}");
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
    answer a = ask_once(p.port, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                                "Content-Length: 14\r\n\r\nname=Ben+%3Cb>");
    CHECK_INT(a.status, 302);
    CHECK_STR(head_value(a.head, "Location"), "/");
    CHECK(strstr(head_value(a.head, "Set-Cookie"), "name=\"Ben <b>\"; expires=") != NULL);
    a = ask_once(p.port, "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: name=\"Ben <b>\"\r\n\r\n");
    CHECK(strstr(a.body.data, "<li>Ben &lt;b&gt;</li>") != NULL && strstr(a.body.data, "value=\"Ben &lt;b&gt;\"") != NULL);
    CHECK_INT(ask_once(p.port, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").status, 400);
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

TEST(examples_echo_sends_lines_back)
{
    process p = example_start("echo");
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

TEST(examples_echo_drops_a_line_without_end)
{
    static char much[1 << 20];
    process p = example_start("echo");
    client c = client_open(p.port);
    memset(much, 'x', sizeof much);
    client_send_bytes(&c, much, sizeof much);
    client_until_end(&c);
    client_close(&c);
    example_stop(&p, SIGTERM);
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

TEST(examples_answer_curl)
{
    TEST_NEED("curl");
    process p = example_start("hello");
    const test_output *out = test_run("curl -s -w ' %%{http_code} %%{num_connects}\\n' http://127.0.0.1:%d/ "
                                      "http://127.0.0.1:%d/", p.port, p.port);
    CHECK_STR(out->text, "Hello, world 200 1\nHello, world 200 0\n");
    CHECK_STR(test_run("curl -sI http://127.0.0.1:%d/ | head -n 1", p.port)->text, "HTTP/1.1 405 Method Not Allowed\r\n");
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
    for (int i = 0; i < 2; i++) {
        process p = example_start("echo");
        client c = client_open(p.port);
        client_send(&c, "line\n");
        CHECK(client_need(&c, 5));
        example_stop(&p, i ? SIGINT : SIGTERM);
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
 * The README.
 *----------------------------------------------------------------------------*/

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

TEST(examples_in_the_readme_are_the_files_text)
{
    if (access("README.md", R_OK) != 0)
        SKIP("not started in the project's directory");
    char *readme = file_text("README.md");
    int found = 0;
    for (char *at = readme; (at = strstr(at, "<!-- examples/")) != NULL;) {
        char path[128];
        CHECK(sscanf(at, "<!-- %127s -->\n```c\n", path) == 1);
        char *code = strstr(at, "```c\n"), *end = code ? strstr(code + 5, "\n```") : NULL, *source = file_text(path);
        CHECK(end != NULL);
        end[1] = '\0';
        if (!strstr(source, code + 5))
            FAIL("%s does not have what README.md shows of it", path);
        free(source);
        at = end + 2;
        found++;
    }
    CHECK(found > 0);
    free(readme);
}

/* A piece of the manual's code, from the line `begin` to the first that is "}", without its indentation. */
static char *manual_code(const char *manual, const char *begin)
{
    char line[256];
    snprintf(line, sizeof line, "\n       %s\n", begin);
    const char *at = strstr(manual, line), *end = at ? strstr(at, "\n       }\n") : NULL;
    if (!end)
        FAIL("the manual does not have %s", begin);
    char *code = calloc(1, (size_t)(end - at) + 4), *out = code;
    for (at++; at < end + 9; at = strchr(at, '\n') + 1) {
        const char *text = *at == '\n' ? at : at + 7;
        size_t len = strcspn(text, "\n") + 1;
        memcpy(out, text, len);
        out += len;
    }
    return code;
}

TEST(examples_the_manual_shows_code_of_them)
{
    static const struct {
        const char *begin, *file;
    } shown[] = {{"static void get(tornado_handler *self)", "examples/hello.c"},
                 {"static void *slow_square(void *arg)", "examples/wait_twice.c"},
                 {"static void squares(tornado_handler *self)", "examples/wait_twice.c"}};
    if (access("tornado.h", R_OK) != 0)
        SKIP("not started in the project's directory");
    FILE *file = fopen("tornado.h", "r");
    char *manual = calloc(1, 65536);
    CHECK(file && fread(manual, 1, 65535, file) > 0);
    fclose(file);
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        char *code = manual_code(manual, shown[i].begin), *source = file_text(shown[i].file);
        if (!strstr(source, code))
            FAIL("%s does not have what the manual shows of it:\n%s", shown[i].file, code);
        free(code);
        free(source);
    }
    free(manual);
}
