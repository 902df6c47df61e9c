/* Everything that a test can make fail fails: each scenario does a whole useful thing over real sockets, again and
   again, while each allocation and each system call in turn goes wrong, once or a few times. Whatever that is,
   nothing crashes, hangs or leaks, no connection gets what is another's, at most one comes to harm by each failure,
   none by those that only delay, and the server serves on.

   `make test` tries a part of the failure points, `make faults` all of them; it prints how many each scenario has. */
#include "certificates.h"
#include "faults.h"
#include "delegate.h"
#include "http_client.h"
#include "runtime.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

/*----------------------------------------------------------------------------
 * A scenario, run with one thing going wrong or none.
 *----------------------------------------------------------------------------*/

enum { NOTHING = -2, MEMORY = -1 }; /* what goes wrong, besides the indices of faults.h */
enum { ALL = 1000000 };             /* in a row */

static struct {
    const char *scenario;
    int kind;    /* of what goes wrong */
    long n, row; /* which of those, and how many in a row */
    long allocs; /* when it began */
    int harmed;  /* connections, or other things asked for, that came to harm */
} trial;

static const char *trial_text(void)
{
    static char text[200];
    const test_fault *fault = test_fault_at(trial.kind);
    char more[40] = "";
    if (trial.row > 1)
        snprintf(more, sizeof more, trial.row < ALL ? " and %ld more" : " and all others", trial.row - 1);
    if (trial.kind == NOTHING)
        snprintf(text, sizeof text, "%s, with nothing going wrong", trial.scenario);
    else
        snprintf(text, sizeof text, "%s, %s %ld%s: %s", trial.scenario, fault ? fault->call : "allocation", trial.n,
                 more, fault ? fault->how : "no memory");
    return text;
}

/* Whether it has gone wrong already. */
static bool trial_hit(void)
{
    return trial.kind == MEMORY ? test_allocs() - trial.allocs >= trial.n
                                : trial.kind >= 0 && test_fault_calls() >= trial.n;
}

/* Something was not done, which is to be explained by what went wrong. Returns false. */
static bool harm(const char *what)
{
    const test_fault *fault = test_fault_at(trial.kind);
    if (++trial.harmed > trial.row || !trial_hit() || (fault && fault->harmless))
        FAIL("%s: %s%s\n  the log:\n%s", trial_text(), what,
             trial.harmed > trial.row ? ", and that is not the only harm" : "", log_text);
    return false;
}

/* Whether something was done. */
static bool did(bool done, const char *what)
{
    return done || harm(what);
}

#define DO(done) did(done, #done)

static void trial_hangs(int number)
{
    (void)number;
    FAIL("%s: it hangs\n  so far: %s\n  the log:\n%s", trial_text(), trace, log_text);
}

static void trial_time(double seconds)
{
    struct itimerval timer;
    memset(&timer, 0, sizeof timer);
    timer.it_value.tv_sec = (time_t)seconds;
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

static int open_files(void)
{
    int count = 0;
    for (int fd = 0; fd < 40; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Runs the scenario once. Whether it came so far that something went wrong. */
static bool trial_run(void (*scenario)(void), int kind, long n, long row)
{
    long live = test_live();
    int files = open_files();
    trial.kind = kind;
    trial.n = n;
    trial.row = row;
    trial.harmed = 0;
    log_text[0] = trace[0] = '\0';
    trial_time(test_scaled(5));
    trial.allocs = test_allocs();
    test_fail_allocs(kind == MEMORY ? n : 0, row);
    test_fail_calls(kind >= 0 ? kind : -1, n, row);
    scenario();
    bool hit = trial_hit();
    test_fail_alloc(0);
    test_fail_calls(-1, 0, 0);
    trial_time(0);
    if (test_live() != live || open_files() != files)
        FAIL("%s: left are %ld blocks and %d descriptors\n  the log:\n%s", trial_text(), test_live() - live,
             open_files() - files, log_text);
    return hit;
}

/* Runs it with everything going wrong in turn. With FAULTS=name in the environment it leaves no point out and tells
   that file of each kind how many there are. */
static void trial_all(const char *name, void (*scenario)(void))
{
    const char *report = getenv("FAULTS");
    FILE *file = report ? fopen(report, "a") : NULL;
    CHECK(!report || (file && setvbuf(file, NULL, _IOLBF, 0) == 0)); /* others write, too */
    trial.scenario = name;
    tornado_ioloop_clear_current();
    log_keep();
    CHECK(signal(SIGALRM, trial_hangs) != SIG_ERR);
    trial_run(scenario, NOTHING, 1, 1); /* what the process keeps for ever, it gets here */
    trial_run(scenario, NOTHING, 1, 1);
    for (int kind = MEMORY; kind < 0 || test_fault_at(kind); kind++) {
        long points = 0;
        for (long n = 1; trial_run(scenario, kind, n, 1); n += report || kind < 0 ? 1 : 1 + n / 4)
            points++;
        for (long n = 1; trial_run(scenario, kind, n, 3); n += report ? 1 : 1 + n / 2)
            points++;
        for (long n = 1; kind == MEMORY && trial_run(scenario, kind, n, ALL); n++)
            points++;
        if (file)
            fprintf(file, "%s%s%s %s %s %ld\n", name, *test_poller ? "/" : "", test_poller,
                    kind < 0 ? "memory" : test_fault_at(kind)->call, kind < 0 ? "NULL" : test_fault_at(kind)->how, points);
    }
    if (file)
        fclose(file);
}

/* The test `faults_name`, which is in the function of that name; and one that is run with each poller. Each point may
   cost some milliseconds of waiting. */
#define SCENARIO_TEST(name)        TEST_LIMIT(name, 40)
#define SCENARIO(name)             SCENARIO_BY(SCENARIO_TEST, name)
#define SCENARIO_EACH_POLLER(name) SCENARIO_BY(TEST_EACH_POLLER, name)
#define SCENARIO_BY(test, name)                                                                                    \
    static void name(void);                                                                                        \
    test(faults_##name)                                                                                            \
    {                                                                                                              \
        trial_all(#name, name);                                                                                    \
    }                                                                                                              \
    static void name(void)

/*----------------------------------------------------------------------------
 * The loop, with nothing of it used to run it for a turn: a descriptor that is always ready stops it.
 *----------------------------------------------------------------------------*/

static struct {
    tornado_ioloop *loop;
    int ticking[2];
} world;

static void tick(int fd, unsigned events, void *arg)
{
    (void)fd;
    (void)events;
    tornado_ioloop_stop(arg);
}

static void world_close(void)
{
    if (world.loop)
        tornado_ioloop_close(world.loop, false);
    tornado_ioloop_clear_current();
    close(world.ticking[0]);
    close(world.ticking[1]);
}

static bool world_open(void)
{
    CHECK(pipe(world.ticking) == 0 && write(world.ticking[1], "", 1) == 1);
    world.loop = tornado_ioloop_current();
    if (DO(world.loop != NULL) &&
        DO(tornado_ioloop_add_handler(world.loop, world.ticking[0], tick, world.loop, TORNADO_IOLOOP_READ)))
        return true;
    world_close();
    return false;
}

static void turn(void)
{
    CHECK(tornado_ioloop_start(world.loop));
}

static void turns(int count)
{
    while (count-- > 0)
        turn();
}

/* Runs the loop until an expression is true; where that takes many turns, only time can help. */
#define UNTIL(expression)                                                                                          \
    for (int tries = 0; !(expression); tries++)                                                                    \
    poll(NULL, 0, tries > 20), turn()

static void wait_for(int fd, unsigned events)
{
    struct pollfd look = {fd, events & TORNADO_IOLOOP_READ ? POLLIN : POLLOUT, 0};
    UNTIL(poll(&look, 1, 0) > 0);
}

/*----------------------------------------------------------------------------
 * A site and its clients.
 *----------------------------------------------------------------------------*/

typedef struct site {
    tornado_application *app;
    tornado_httpserver *server;
    int port;
} site;

static void site_close(site *s)
{
    UNTIL(!s->server || (!tornado_ioloop_coroutines(world.loop) && !tornado_httpserver_connections(s->server)));
    tornado_application_free(s->app);
    world_close();
}

static bool site_open(site *s, const tornado_rule *rules, const tornado_httpserver_options *options)
{
    tornado_httpserver_options o = {.bind.address = "127.0.0.1"};
    memset(s, 0, sizeof *s);
    client_wait = wait_for;
    if (!world_open())
        return false;
    s->app = tornado_application_new(rules, NULL);
    if (DO(s->app != NULL))
        s->server = tornado_application_listen(s->app, 0, options ? options : &o);
    if (!s->app || !DO(s->server != NULL)) {
        tornado_application_free(s->app);
        world_close();
        return false;
    }
    bool unix_socket = options && options->bind.unix_socket;
    s->port = unix_socket ? 0 : tornado_httpserver_port(s->server);
    if (s->port == 0 && !unix_socket) { /* its system call is one of those that fail */
        harm("tornado_httpserver_port");
        site_close(s);
        return false;
    }
    return true;
}

/* A client whose bytes leave at once. */
static client dialled(int port)
{
    client c = client_open(port);
    int on = 1;
    CHECK(setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
    return c;
}

/* Takes the answer to a request, which is this one unless something has gone wrong; then the connection is given up. A
   NULL stands for any body. */
static bool takes(client *c, int status, const char *body)
{
    answer a;
    char text[300];
    if (c->fd < 0)
        return false;
    bool whole = client_answer(c, &a);
    bool same = !body || (strlen(body) == a.body.len && (!*body || memcmp(body, a.body.data, a.body.len) == 0));
    if (whole && a.status == status && same)
        return true;
    snprintf(text, sizeof text, "the answer to be %d %.50s is %s %d %.100s", status, body ? body : "",
             whole ? "a whole" : "cut,", a.status, whole ? a.body.data : "");
    if (whole && a.status != 500 && a.status != 503)
        FAIL("%s: %s\n  the log:\n%s", trial_text(), text, log_text);
    client_close(c);
    return harm(text);
}

static void says(client *c, const char *text)
{
    if (c->fd >= 0)
        client_send(c, text);
}

static bool asks(client *c, const char *request, int status, const char *body)
{
    if (c->fd < 0)
        return false;
    says(c, request);
    return takes(c, status, body);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"

static void number_get(tornado_handler *self)
{
    tornado_writef(self, "number %s", tornado_path_arg(self, 0));
}

static const tornado_handler_class number_class = {.get = number_get};

/* Does something with a client while another is served, and asks once more when all is over. */
static void served(const tornado_rule *rules, const tornado_httpserver_options *options,
                   client (*dial)(void), void (*talk)(site *s, client *c))
{
    site s;
    tornado_rule all[20] = {{.path = "/number/(\\d+)", .handler = &number_class}};
    for (size_t i = 1; rules && (rules->path || rules->handler); i++)
        all[i] = *rules++;
    if (!site_open(&s, all, options))
        return;
    client one = {.fd = -1}, beside = {.fd = -1}, last = {.fd = -1};
    client *const clients[] = {&beside, &one, &last};
    for (int i = 0; i < 3; i++) {
        *clients[i] = dial ? dial() : dialled(s.port);
        if (i == 0)
            says(&beside, GET("/number/1"));
        if (i == 1) {
            talk(&s, &one);
            takes(&beside, 200, "number 1");
            asks(&beside, GET("/number/2"), 200, "number 2");
        }
        if (i == 2)
            asks(&last, GET("/number/3"), 200, "number 3");
    }
    for (int i = 0; i < 3; i++)
        client_close(clients[i]);
    site_close(&s);
}

/*----------------------------------------------------------------------------
 * Scenarios: a web site.
 *----------------------------------------------------------------------------*/

static void keep_alive_talk(site *s, client *c)
{
    (void)s;
    asks(c, GET("/number/10"), 200, "number 10");
    turns(2);
    asks(c, GET("/number/11"), 200, "number 11");
    asks(c, GET("/number/12"), 200, "number 12");
}

SCENARIO_EACH_POLLER(keep_alive)
{
    served(NULL, NULL, NULL, keep_alive_talk);
}

static void pipelined_talk(site *s, client *c)
{
    (void)s;
    says(c, GET("/number/10") GET("/number/11") GET("/number/12") GET("/none") GET("/number/13"));
    (void)(takes(c, 200, "number 10") && takes(c, 200, "number 11") && takes(c, 200, "number 12") &&
           takes(c, 404, NULL) && takes(c, 200, "number 13"));
}

SCENARIO(pipelined)
{
    served(NULL, NULL, NULL, pipelined_talk);
}

/* A body is told by its length and the sum of its bytes. */
static void sum_post(tornado_handler *self)
{
    tornado_bytes body = self->request->body;
    unsigned long sum = 0;
    for (size_t i = 0; i < body.len; i++)
        sum += (unsigned char)body.data[i] * (i % 251 + 1);
    tornado_writef(self, "%zu bytes, sum %lu", body.len, sum);
}

static const tornado_handler_class sum_class = {.post = sum_post};

static void upload_talk(site *s, client *c)
{
    static char chunk[3000];
    char want[64];
    size_t total = 0;
    unsigned long sum = 0;
    (void)s;
    says(c, "POST /sum HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n");
    for (int i = 0; i < 6; i++) {
        char head[24];
        size_t len = (size_t)(1 << 2 * i) * 2 + 1;
        for (size_t k = 0; k < len; k++, total++) {
            chunk[k] = (char)('a' + (total + (size_t)i) % 26);
            sum += (unsigned char)chunk[k] * (total % 251 + 1);
        }
        snprintf(head, sizeof head, "%zx\r\n", len);
        says(c, head);
        turn();
        if (c->fd >= 0)
            client_send_bytes(c, chunk, len);
        turn();
        says(c, "\r\n");
    }
    says(c, "0\r\nX: y\r\n\r\n");
    snprintf(want, sizeof want, "%zu bytes, sum %lu", total, sum);
    takes(c, 200, want);
    asks(c, "POST /sum HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", 200, "2 bytes, sum 293");
}

SCENARIO(chunked_upload)
{
    served((tornado_rule[]){{.path = "/sum", .handler = &sum_class}, {0}}, NULL, NULL, upload_talk);
}

enum { LARGE_PARTS = 8, LARGE_PART = 50000 };

static const char *large_part(int i)
{
    static char part[LARGE_PART];
    memset(part, 'a' + i, sizeof part);
    return part;
}

static void large_get(tornado_handler *self)
{
    for (int i = 0; i < LARGE_PARTS; i++) {
        tornado_write_bytes(self, (tornado_bytes){large_part(i), LARGE_PART});
        tornado_await(tornado_flush(self));
    }
}

static const tornado_handler_class large_class = {.get = large_get};

/* Reads its answer only when nothing more fits into the system's buffers, which are small. */
static void large_talk(site *s, client *c)
{
    answer a;
    int small = 20000, port, listener = listen_loopback(&port);
    CHECK(setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    if (!DO(tornado_httpserver_add_socket(s->server, listener))) {
        close(listener);
        return;
    }
    client slow = dialled(port);
    says(&slow, GET("/large"));
    turns(20);
    bool whole = client_answer(&slow, &a);
    for (size_t i = 0; a.status == 200 && i < a.body.len / LARGE_PART; i++)
        if (memcmp(a.body.data + i * LARGE_PART, large_part((int)i), LARGE_PART) != 0)
            FAIL("%s: part %zu of the large answer is wrong", trial_text(), i);
    /* an error in the middle ends the answer, as it does in Tornado */
    if (DO(whole && a.status == 200 && a.body.len == LARGE_PARTS * LARGE_PART))
        asks(&slow, GET("/number/5"), 200, "number 5");
    client_close(&slow);
    asks(c, GET("/number/6"), 200, "number 6");
}

SCENARIO(large_answer_to_a_slow_client)
{
    served((tornado_rule[]){{.path = "/large", .handler = &large_class}, {0}}, NULL, NULL, large_talk);
}

static void form_post(tornado_handler *self)
{
    size_t count;
    const char *const *tags = tornado_get_arguments(self, "tag", &count);
    tornado_set_cookie(self, "seen", tornado_get_cookie(self, "user", "nobody"), NULL);
    tornado_set_header(self, "X-Name", tornado_require_argument(self, "name"));
    tornado_writef(self, "%s has %zu tags: %s %s; %s", tornado_get_argument(self, "name", NULL), count, tags[0],
                   tags[1], tornado_get_query_argument(self, "q", "?"));
}

static const tornado_handler_class form_class = {.post = form_post};

static void form_talk(site *s, client *c)
{
    (void)s;
    asks(c,
         "POST /form?q=%C3%A9+1 HTTP/1.1\r\nHost: a\r\nCookie: other=1; user=\"ben\"\r\n"
         "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 25\r\n\r\nname=Ben+B&tag=a%26&tag=b",
         200, "Ben B has 2 tags: a& b; \xc3\xa9 1");
    asks(c, "POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 400, NULL);
}

SCENARIO(form_with_cookies)
{
    served((tornado_rule[]){{.path = "/form", .handler = &form_class}, {0}}, NULL, NULL, form_talk);
}

static void json_post(tornado_handler *self)
{
    const char *name;
    int age = 0;
    const tornado_value *tags, *value = tornado_json_decode(self->arena, self->request->body);
    if (!value || !tornado_value_unpack(value, "{name:s, age?:i, tags:o}", &name, &age, &tags)) {
        if (tornado_last_error()->code == TORNADO_ERR_NOMEM)
            tornado_raise_error(tornado_last_error());
        tornado_raise_http_error(400, "%s", tornado_last_error()->message);
    }
    tornado_write_json(self, "{hello:s, age:i, tags:o, and:[f, n, b]}", name, age, tags, 0.5, true);
}

static const tornado_handler_class json_class = {.post = json_post};

static void json_talk(site *s, client *c)
{
    (void)s;
    asks(c,
         "POST /json HTTP/1.1\r\nHost: a\r\nContent-Length: 58\r\n\r\n"
         "{\"name\": \"Ben \\u00e9\", \"age\": 30, \"tags\": [1, {\"a\": 2.5}]}",
         200, "{\"hello\": \"Ben \\u00e9\", \"age\": 30, \"tags\": [1, {\"a\": 2.5}], \"and\": [0.5, null, true]}");
    asks(c, "POST /json HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n[1]", 400, NULL);
}

SCENARIO(json_api)
{
    served((tornado_rule[]){{.path = "/json", .handler = &json_class}, {0}}, NULL, NULL, json_talk);
}

static void text_get(tornado_handler *self)
{
    for (int i = 0; i < 200; i++)
        tornado_writef(self, "line %d\n", i);
    if (self->data)
        tornado_await(tornado_flush(self));
    tornado_write(self, "the end\n");
}

static const tornado_handler_class text_class = {.get = text_get};

static void compressed_talk(site *s, client *c)
{
    if (!DO(tornado_application_add_transform(s->app, TORNADO_GZIP)))
        return;
    asks(c, "GET /text HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n", 200, NULL);
    asks(c, "GET /parts HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n", 200, NULL);
}

SCENARIO(compressed_answers)
{
    served((tornado_rule[]){{.path = "/text", .handler = &text_class},
                            {.path = "/parts", .handler = &text_class, .data = (void *)&text_class},
                            {0}},
           NULL, NULL, compressed_talk);
}

static void leave_get(tornado_handler *self)
{
    tornado_redirect(self, "/number/7", false);
}

static const tornado_handler_class leave_class = {.get = leave_get};
static const tornado_redirect_target moved = {.url = "/number/{0}?from={{}}"};

static void redirect_talk(site *s, client *c)
{
    (void)s;
    asks(c, GET("/leave"), 302, "");
    asks(c, GET("/old/7"), 301, "");
}

SCENARIO(redirects)
{
    served((tornado_rule[]){{.path = "/leave", .handler = &leave_class},
                            {.path = "/old/(\\d+)", .handler = &tornado_redirect_handler, .data = (void *)&moved},
                            {0}},
           NULL, NULL, redirect_talk);
}

static void late_finish(void *arg)
{
    tornado_write(arg, "late");
    tornado_finish(arg);
}

static void late_get(tornado_handler *self)
{
    if (!tornado_ioloop_call_later(tornado_ioloop_current(), 0.001, late_finish, self))
        tornado_raise_error(tornado_last_error());
    tornado_asynchronous(self);
}

static const tornado_handler_class late_class = {.get = late_get};

static void late_talk(site *s, client *c)
{
    (void)s;
    asks(c, GET("/late"), 200, "late");
    asks(c, GET("/late"), 200, "late");
}

SCENARIO(asynchronous)
{
    served((tornado_rule[]){{.path = "/late", .handler = &late_class}, {0}}, NULL, NULL, late_talk);
}

/* Whoever asks for /next waits until somebody posts to /say. */
static tornado_future *said;

static void next_get(tornado_handler *self)
{
    tornado_await(tornado_with_timeout(test_scaled(4), tornado_future_retain(said)));
    tornado_write(self, "something was said");
}

static void say_post(tornado_handler *self)
{
    tornado_future_set_result(said, NULL, NULL);
    tornado_write(self, "said");
}

static const tornado_handler_class next_class = {.get = next_get};
static const tornado_handler_class say_class = {.post = say_post};

static void poll_talk(site *s, client *c)
{
    static const char say[] = "POST /say HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n!";
    said = tornado_future_new();
    if (!DO(!tornado_future_error(said))) {
        tornado_future_release(said);
        return;
    }
    says(c, GET("/next"));
    turns(3);
    client other = dialled(s->port);
    if (!asks(&other, say, 200, "said") && !tornado_future_done(said))
        tornado_future_set_result(said, NULL, NULL);
    takes(c, 200, "something was said");
    client_close(&other);
    tornado_future_release(said);
}

SCENARIO(long_poll)
{
    served((tornado_rule[]){{.path = "/next", .handler = &next_class},
                            {.path = "/say", .handler = &say_class},
                            {0}},
           NULL, NULL, poll_talk);
}

static void broken_get(tornado_handler *self)
{
    tornado_write(self, "begun");
    tornado_raise(TORNADO_ERR_INVALID, "broken");
}

static void refused_get(tornado_handler *self)
{
    (void)self;
    tornado_raise_http_error(403, "no");
}

static const tornado_handler_class broken_class = {.get = broken_get};
static const tornado_handler_class refused_class = {.get = refused_get};

static void errors_talk(site *s, client *c)
{
    (void)s;
    asks(c, GET("/none"), 404, NULL);
    asks(c, GET("/broken"), 500, NULL);
    asks(c, GET("/refused"), 403, NULL);
    asks(c, "PUT /broken HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405, NULL);
    asks(c, "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, NULL);
}

SCENARIO(error_pages)
{
    served((tornado_rule[]){{.path = "/broken", .handler = &broken_class},
                            {.path = "/refused", .handler = &refused_class},
                            {0}},
           NULL, NULL, errors_talk);
}

static void hosts_talk(site *s, client *c)
{
    static const tornado_rule rules[] = {{.path = "/(\\w+)/(?P<rest>.*)", .handler = &number_class}, {0}};
    if (!DO(tornado_application_add_handlers(s->app, "(www\\.)?example\\.com", rules)))
        return;
    asks(c, "GET /number/5 HTTP/1.1\r\nHost: a\r\n\r\n", 200, "number 5");
    asks(c, "GET /abc/5 HTTP/1.1\r\nHost: www.example.com:80\r\n\r\n", 200, "number abc");
    asks(c, "GET /abc/5 HTTP/1.1\r\nHost: www.example.org\r\n\r\n", 404, NULL);
}

SCENARIO(routing_by_host_and_pattern)
{
    served(NULL, NULL, NULL, hosts_talk);
}

enum { MANY = 8 };

static void many_talk(site *s, client *c)
{
    client many[MANY];
    for (int i = 0; i < MANY; i++) {
        many[i] = dialled(s->port);
        says(&many[i], GET("/number/1"));
    }
    for (int i = 0; i < MANY; i++) {
        takes(&many[i], 200, "number 1");
        client_close(&many[i]);
    }
    asks(c, GET("/number/10"), 200, "number 10");
}

SCENARIO_EACH_POLLER(many_accepts)
{
    served(NULL, NULL, NULL, many_talk);
}

/* Serves on a unix socket, where one that nobody listens on any more is in the way. */
static char unix_path[100];

static int unix_socket(bool listening)
{
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, unix_path);
    CHECK(fd >= 0);
    if ((listening ? bind : connect)(fd, (struct sockaddr *)&address, sizeof address) != 0)
        FAIL("%s: %s: %s", trial_text(), unix_path, strerror(errno));
    return fd;
}

static client dial_unix(void)
{
    client c = {.fd = unix_socket(false), .data = calloc(1, 1)};
    set_nonblocking(c.fd);
    return c;
}

SCENARIO(unix_sockets)
{
    tornado_httpserver_options options = {.bind.unix_socket = unix_path};
    snprintf(unix_path, sizeof unix_path, "/tmp/tornado-faults-%ld", (long)getpid());
    unlink(unix_path);
    close(unix_socket(true));
    served(NULL, &options, dial_unix, keep_alive_talk);
    unlink(unix_path);
}

/* A handler that asks another server, by a stream of its own. */
static int service_port;

static void service(tornado_iostream *stream, void *arg)
{
    static const char digits[] = "0123456789";
    (void)arg;
    tornado_iostream_set_nodelay(stream, true);
    for (;;) {
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
        size_t count = line.len < 10 ? line.len : 10;
        tornado_await(tornado_iostream_write(stream, (tornado_bytes){digits, count}));
        tornado_await(tornado_iostream_write(stream, tornado_bytes_of("\n")));
    }
}

static void release_stream(void *stream)
{
    tornado_iostream_release(stream);
}

static void ask_get(tornado_handler *self)
{
    tornado_address address;
    tornado_iostream *stream = tornado_iostream_new(socket(AF_INET, SOCK_STREAM, 0), NULL);
    if (!stream)
        tornado_raise_error(tornado_last_error());
    tornado_defer(release_stream, stream);
    CHECK(tornado_address_ip(&address, "127.0.0.1", service_port));
    tornado_await(tornado_iostream_connect(stream, &address));
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of("abcd\n")));
    tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
    tornado_writef(self, "%.*s", (int)line.len - 1, line.data);
}

static const tornado_handler_class ask_class = {.get = ask_get};

static void ask_talk(site *s, client *c)
{
    (void)s;
    tornado_tcpserver *server = tornado_tcpserver_new(service, NULL, NULL);
    tornado_bind_options options = {.address = "127.0.0.1"};
    if (!DO(server != NULL))
        return;
    if (DO(tornado_tcpserver_listen(server, 0, &options)) && DO((service_port = tornado_tcpserver_port(server)) != 0)) {
        asks(c, GET("/ask"), 200, "01234");
        asks(c, GET("/ask"), 200, "01234");
    }
    tornado_tcpserver_free(server);
}

SCENARIO(a_handler_that_asks_another_server)
{
    served((tornado_rule[]){{.path = "/ask", .handler = &ask_class}, {0}}, NULL, NULL, ask_talk);
}

/* A server behind a proxy, whose header comes in two parts. */
static void proxied_talk(int port)
{
    client c = dialled(port);
    client_send(&c, "PROXY TCP4 192.0.2.1 192.0");
    turns(2);
    client_send(&c, ".2.2 1234 443\r\nabcd\n");
    if (DO(client_need(&c, 6)))
        CHECK_MEM(c.data, 6, "01234\n", 6);
    client_close(&c);
}

SCENARIO_EACH_POLLER(tcp_behind_a_proxy)
{
    static const tornado_tcpserver_options options = {.proxy_protocol = true};
    static const tornado_bind_options where = {.address = "127.0.0.1"};
    int port;
    client_wait = wait_for;
    if (!world_open())
        return;
    tornado_tcpserver *server = tornado_tcpserver_new(service, NULL, &options);
    if (DO(server != NULL) && DO(tornado_tcpserver_listen(server, 0, &where)) &&
        DO((port = tornado_tcpserver_port(server)) != 0))
        for (int i = 0; i < 2; i++)
            proxied_talk(port);
    tornado_tcpserver_free(server);
    UNTIL(!tornado_ioloop_coroutines(world.loop));
    world_close();
}

static void slow_get(tornado_handler *self)
{
    tornado_await(tornado_sleep(0.005));
    tornado_write(self, "slow");
}

static const tornado_handler_class slow_class = {.get = slow_get};

/* One request under way, one connection idle. */
SCENARIO(shutdown_with_a_request_under_way)
{
    site s;
    if (!site_open(&s, (tornado_rule[]){{.path = "/", .handler = &slow_class}, {0}}, NULL))
        return;
    client busy = dialled(s.port), idle = dialled(s.port);
    if (asks(&idle, GET("/"), 200, "slow")) {
        says(&busy, GET("/"));
        UNTIL(tornado_ioloop_coroutines(world.loop) || client_read(&busy) || busy.ended);
        tornado_ioloop_shutdown(world.loop, test_scaled(2));
        takes(&busy, 200, "slow");
        client_until_end(&idle);
    }
    client_close(&busy);
    client_close(&idle);
    site_close(&s);
}

/* Clients that leave: while their request is being served, in the middle of one, and without a word. */
static void gone(tornado_handler *self)
{
    (void)self;
    note("gone ");
}

static void patient_get(tornado_handler *self)
{
    while (tornado_connected(self))
        tornado_await(tornado_sleep(0.001));
    tornado_write(self, "to nobody");
}

static const tornado_handler_class patient_class = {.get = patient_get, .on_connection_close = gone};

static void leaving_talk(site *s, client *c)
{
    client resets = dialled(s->port), silent = dialled(s->port);
    says(c, GET("/patient"));
    says(&resets, "POST /sum HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n0123456789");
    UNTIL(tornado_ioloop_coroutines(world.loop) || trial_hit());
    client_close(c);
    close_with_reset(resets.fd);
    resets.fd = -1;
    client_close(&resets);
    client_close(&silent);
}

SCENARIO(clients_that_leave)
{
    served((tornado_rule[]){{.path = "/patient", .handler = &patient_class},
                            {.path = "/sum", .handler = &sum_class},
                            {0}},
           NULL, NULL, leaving_talk);
}

/* What is too much, too late or malformed is refused, each over a connection of its own. */
static void limits_talk(site *s, client *c)
{
    static char long_head[3000];
    static const struct {
        const char *request;
        int status;
    } rows[] = {
        {"POST /sum HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413},
        {"POST /sum HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n", 413},
        {"GARBAGE\r\n\r\n", 400},
        {"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505},
        {long_head, 431},
        {"POST /sum HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", 100},
    };
    memset(long_head, 'x', sizeof long_head - 1);
    memcpy(long_head, "GET / HTTP/1.1\r\nX: ", 19);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        client one = dialled(s->port);
        asks(&one, rows[i].request, rows[i].status, NULL);
        client_close(&one);
    }
    says(c, "GET /number/1 HTTP/1.0\r\n\r\n");
    takes(c, 200, "number 1");
}

SCENARIO(limits)
{
    tornado_httpserver_options options = {.bind.address = "127.0.0.1",
                                          .max_header_size = 2000, .max_body_size = 100};
    served((tornado_rule[]){{.path = "/sum", .handler = &sum_class}, {0}}, &options, NULL, limits_talk);
}

/* Connections that say nothing, and that do not say all, are closed. */
static void late_clients_talk(site *s, client *c)
{
    client idle = dialled(s->port), slow = dialled(s->port);
    says(&slow, "GET / HTTP/1.1\r\nHo");
    says(c, "POST /sum HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na");
    client_until_end(&idle);
    client_until_end(&slow);
    client_until_end(c);
    client_close(&idle);
    client_close(&slow);
}

SCENARIO(clients_that_are_late)
{
    site s;
    tornado_httpserver_options options = {.bind.address = "127.0.0.1",
                                          .header_timeout = 0.01, .body_timeout = 0.01,
                                                   .idle_connection_timeout = 0.01};
    if (!site_open(&s, (tornado_rule[]){{.path = "/sum", .handler = &sum_class}, {0}}, &options))
        return;
    client c = dialled(s.port);
    late_clients_talk(&s, &c);
    client_close(&c);
    site_close(&s);
}

/* Work besides: coroutines of the request, one of which fails; what is put off until the end. */
static void *part(void *arg)
{
    tornado_defer(note, (void *)(uintptr_t) "");
    tornado_await(tornado_moment());
    if (!arg)
        tornado_raise(TORNADO_ERR_INVALID, "no part");
    return arg;
}

static void parts_get(tornado_handler *self)
{
    int *numbers = tornado_alloc(self, 3 * sizeof *numbers);
    tornado_future *three[] = {tornado_handler_spawn(self, part, &numbers[0]),
                               tornado_handler_spawn(self, part, &numbers[1]),
                               tornado_handler_spawn(self, part, &numbers[2])};
    void **got = tornado_await(tornado_multi(three, 3));
    CHECK(got[0] == &numbers[0] && got[1] == &numbers[1] && got[2] == &numbers[2]);
    const tornado_error *error = tornado_wait(tornado_handler_spawn(self, part, NULL));
    CHECK(error != NULL);
    if (error->code != TORNADO_ERR_INVALID)
        tornado_raise_error(error);
    tornado_write(self, "all parts");
    tornado_future_release(tornado_handler_spawn(self, part, self)); /* goes on while the answer is out */
}

static const tornado_handler_class parts_class = {.get = parts_get};

static void parts_talk(site *s, client *c)
{
    (void)s;
    asks(c, GET("/parts"), 200, "all parts");
    asks(c, GET("/parts"), 200, "all parts");
}

SCENARIO(work_besides)
{
    served((tornado_rule[]){{.path = "/parts", .handler = &parts_class}, {0}}, NULL, NULL, parts_talk);
}

/* Bodies that go to a delegate as they come, and an answer in pieces. */
static void pieces_finish(void *self)
{
    char text[40];
    tornado_http1_connection *c = self;
    tornado_http_header header = header_of("X-Pieces", "yes");
    snprintf(text, sizeof text, "%zu", (size_t)(uintptr_t)tornado_http1_connection_request(c)->context);
    if (sent(write_head(c, 200, TORNADO_NONE, &header)) &&
        sent(tornado_http1_connection_write(c, tornado_bytes_of("got "))) &&
        sent(tornado_http1_connection_write(c, tornado_bytes_of(text))))
        sent(tornado_http1_connection_finish(c));
}

/* To /early it answers when the first comes. */
static tornado_future *pieces_received(void *self, tornado_bytes chunk)
{
    tornado_http_request *request = tornado_http1_connection_request(self);
    request->context = (void *)((uintptr_t)request->context + chunk.len);
    if (strcmp(request->path, "/early") == 0)
        pieces_finish(self);
    return NULL;
}

static const tornado_http_message_delegate *pieces_start(void *self, tornado_http1_server_connection *server,
                                                         tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate delegate = {.data_received = pieces_received, .finish = pieces_finish};
    (void)self;
    (void)server;
    *message = connection;
    return &delegate;
}

SCENARIO(delegate)
{
    static const tornado_http_server_connection_delegate delegate = {.start_request = pieces_start};
    static char body[70000];
    tornado_bind_options options = {.address = "127.0.0.1"};
    client_wait = wait_for;
    if (!world_open())
        return;
    tornado_httpserver *server = tornado_httpserver_new(&delegate, NULL, NULL);
    int port = 0;
    if (DO(server != NULL) && DO(tornado_httpserver_listen(server, 0, &options)) &&
        DO((port = tornado_httpserver_port(server)) != 0)) {
        client c = dialled(port);
        memset(body, 'b', sizeof body - 1);
        says(&c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 69999\r\n\r\n");
        says(&c, body);
        takes(&c, 200, "got 69999");
        asks(&c, GET("/"), 200, "got 0");
        asks(&c, "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234", 200, "got 4");
        client_close(&c);
    }
    tornado_httpserver_free(server);
    world_close();
}

/* Bodies that a handler takes as they come: with a length, in chunks, encoded, and answered early. */
typedef struct taker {
    tornado_handler base;
    size_t bytes;
} taker;

static void take_prepare(tornado_handler *self)
{
    tornado_http1_connection_set_max_body_size(self->request->connection, 100000);
    tornado_await(tornado_moment());
}

static void take_piece(tornado_handler *self, tornado_bytes chunk)
{
    ((taker *)(void *)self)->bytes += chunk.len;
    tornado_await(tornado_moment());
    if (chunk.data[0] == '!') {
        tornado_write(self, "enough");
        tornado_finish(self);
    }
}

static void take_put(tornado_handler *self)
{
    tornado_writef(self, "took %zu", ((taker *)(void *)self)->bytes);
}

static const tornado_handler_class taker_class = {
    .instance_size = sizeof(taker), .stream_request_body = true, .prepare = take_prepare,
    .data_received = take_piece, .put = take_put};

static void uploads_talk(site *s, client *c)
{
    static char large[50001];
    tornado_buffer encoded = {0};
    char head[100];
    (void)s;
    memset(large, 'u', sizeof large - 1);
    says(c, "PUT /take HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n");
    says(c, large);
    takes(c, 200, "took 50000");
    asks(c, "PUT /take HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n", 200, "took 5");
    if (DO(tornado_compress(&encoded, (tornado_bytes){large, 50000}, NULL)) && c->fd >= 0) {
        snprintf(head, sizeof head, "PUT /take HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
                                    "Content-Length: %zu\r\n\r\n", encoded.len);
        says(c, head);
        client_send_bytes(c, encoded.data, encoded.len);
        takes(c, 200, "took 50000");
    }
    tornado_buffer_free(&encoded);
    asks(c, "PUT /take HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n!", 200, "enough");
}

SCENARIO(uploads)
{
    tornado_httpserver_options options = {.bind.address = "127.0.0.1", .max_body_size = 1000,
                                          .decompress_request = TORNADO_GUNZIP};
    served((tornado_rule[]){{.path = "/take", .handler = &taker_class}, {0}}, &options, NULL, uploads_talk);
}

/* A proxy tells of each connection first who is behind it. */
SCENARIO(http_behind_a_proxy)
{
    site s;
    tornado_httpserver_options options = {.bind.address = "127.0.0.1", .proxy_protocol = TORNADO_PROXY_PROTOCOL};
    tornado_rule rules[] = {{.path = "/number/(\\d+)", .handler = &number_class}, {0}};
    if (!site_open(&s, rules, &options))
        return;
    for (int i = 0; i < 2; i++) {
        client c = dialled(s.port), silent = dialled(s.port);
        says(&c, "PROXY TCP4 192.0.2.1 ");
        turns(2);
        says(&c, "192.0.2.2 1234 443\r\n");
        asks(&c, GET("/number/1"), 200, "number 1");
        asks(&c, GET("/number/2"), 200, "number 2");
        client_close(&c);
        client_close(&silent);
    }
    site_close(&s);
}

/* Forms with files, one of which is malformed. */
static void multipart_post(tornado_handler *self)
{
    const tornado_http_file *file = tornado_get_file(self, "f");
    const char *a = tornado_require_argument(self, "a");
    tornado_writef(self, "%s, %s: %zu", a, file ? file->filename : "none", file ? file->body.len : 0);
}

static const tornado_handler_class multipart_class = {.post = multipart_post};

static void forms_talk(site *s, client *c)
{
    static const char good[] = "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\n"
                               "--b\r\nContent-Disposition: form-data; name=\"f\"; filename*=utf-8''%e2%82%ac\r\n"
                               "Content-Type: text/plain\r\n\r\nfile\r\n--b--\r\n";
    static const char bad[] = "--b\r\nContent-Disposition: form-data\r\n\r\none\r\n--b--\r\n";
    static const struct {
        const char *body;
        int status;
        const char *answer;
    } rows[] = {{good, 200, "one, \xe2\x82\xac: 4"}, {bad, 400, NULL}, {good, 200, "one, \xe2\x82\xac: 4"}};
    char request[500];
    (void)s;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(request, sizeof request, "POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: %zu\r\n"
                                          "Content-Type: multipart/form-data; boundary=b\r\n\r\n%s",
                 strlen(rows[i].body), rows[i].body);
        asks(c, request, rows[i].status, rows[i].answer);
    }
}

SCENARIO(forms)
{
    served((tornado_rule[]){{.path = "/form", .handler = &multipart_class}, {0}}, NULL, NULL, forms_talk);
}

/* The client's side of a connection: requests with bodies, and every way in which a response's may be framed. */
typedef struct exchange {
    char body[64];
    int finished, closed, released;
} exchange;

static tornado_future *exchange_headers(void *self, const tornado_http_start_line *start,
                                        const tornado_http_headers *headers)
{
    (void)self;
    CHECK(start->code == 200 && headers != NULL);
    return tornado_moment();
}

static tornado_future *exchange_data(void *self, tornado_bytes chunk)
{
    exchange *e = self;
    size_t len = strlen(e->body);
    CHECK(len + chunk.len < sizeof e->body);
    memcpy(e->body + len, chunk.data, chunk.len);
    return tornado_moment();
}

static void exchange_finish(void *self)
{
    ((exchange *)self)->finished++;
}

static void exchange_close(void *self, const tornado_error *error)
{
    CHECK(error && error->code);
    ((exchange *)self)->closed++;
}

static void exchange_release(void *self)
{
    ((exchange *)self)->released++;
}

/* Whether a response came as it was sent, so that the stream can have another exchange. */
static bool exchanged(tornado_iostream *stream, client *peer, tornado_bytes response)
{
    static const tornado_http_message_delegate delegate = {
        .headers_received = exchange_headers, .data_received = exchange_data, .finish = exchange_finish,
        .on_connection_close = exchange_close, .release = exchange_release};
    static const tornado_http1_connection_parameters parameters = {.decompress = TORNADO_GUNZIP};
    exchange e = {.body = ""};
    tornado_http_start_line start = {.method = "POST", .path = "/"};
    tornado_http_header host = header_of("Host", "a");
    tornado_http_headers headers = {.items = &host, .count = 1};
    tornado_http1_connection *c = tornado_http1_connection_new(stream, true, &parameters, NULL);
    if (!DO(c != NULL))
        return false;
    tornado_future *done = tornado_http1_connection_read_response(c, &delegate, &e);
    bool begun = !tornado_future_done(done);
    bool asked = begun && sent(tornado_http1_connection_write_headers(c, &start, &headers, NULL)) &&
                 sent(tornado_http1_connection_write(c, tornado_bytes_of("question"))) &&
                 sent(tornado_http1_connection_finish(c));
    if (!asked)
        tornado_http1_connection_close(c);
    while (asked && !tornado_future_done(done) && !(peer->len && strstr(peer->data, "\r\n0\r\n\r\n"))) {
        if (!client_read(peer))
            turn();
        asked = !peer->ended;
    }
    peer->len = 0;
    client_send_bytes(peer, response.data, response.len);
    if (memmem(response.data, response.len, "Length", 6) == NULL && memmem(response.data, response.len, "chunked", 7) == NULL)
        shutdown(peer->fd, SHUT_WR);
    UNTIL(tornado_future_done(done));
    bool ok = DO(!tornado_future_error(done));
    tornado_future_release(done);
    tornado_http1_connection_release(c);
    UNTIL(e.released); /* when the future that it returned last is done */
    CHECK_INT(e.released, 1);
    CHECK(e.finished + e.closed == 1 || (!begun && !e.finished));
    CHECK(!ok || (e.finished && strcmp(e.body, "response") == 0));
    return ok;
}

SCENARIO(client_role)
{
#define RESPONSE(text) {"HTTP/1.1 200 OK\r\n" text, sizeof("HTTP/1.1 200 OK\r\n" text) - 1}
    static const tornado_bytes responses[] = {
        RESPONSE("Content-Length: 8\r\n\r\nresponse"),
        RESPONSE("Transfer-Encoding: chunked\r\n\r\n3\r\nres\r\n5\r\nponse\r\n0\r\nT: u\r\n\r\n"),
        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nresponse", 71},
        RESPONSE("Content-Encoding: gzip\r\nContent-Length: 28\r\n\r\n"
                 "\x1f\x8b\x08\0\0\0\0\0\0\x03\x2b\x4a\x2d\x2e\xc8\xcf\x2b\x4e\x05\0\xfb\x0b\x7b\x3e\x08\0\0\0"),
        RESPONSE("\r\nresponse")};
#undef RESPONSE
    int ends[2];
    client_wait = wait_for;
    if (!world_open())
        return;
    tcp_pair(ends);
    set_nonblocking(ends[1]);
    client peer = {.fd = ends[1], .data = calloc(1, 1)};
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    bool ok = DO(stream != NULL);
    for (size_t i = 0; ok && i < sizeof responses / sizeof *responses; i++)
        ok = exchanged(stream, &peer, responses[i]);
    if (stream)
        tornado_iostream_release(stream);
    else
        close(ends[0]);
    client_close(&peer);
    turns(2);
    world_close();
}

/*----------------------------------------------------------------------------
 * Scenarios: streams.
 *----------------------------------------------------------------------------*/

static tornado_regex *word;

/* A line, a word, five bytes; then all up to the end, which it answers with its length. */
static void reader(tornado_iostream *stream, void *arg)
{
    char text[32];
    (void)arg;
    tornado_iostream_set_nodelay(stream, true);
    tornado_await(tornado_iostream_write(stream, tornado_await_bytes(tornado_iostream_read_until(stream, "\r\n"))));
    tornado_await(tornado_iostream_write(stream, tornado_await_bytes(tornado_iostream_read_until_regex(stream, word))));
    tornado_await(tornado_iostream_write(stream, tornado_await_bytes(tornado_iostream_read_bytes(stream, 5))));
    size_t len = tornado_await_bytes(tornado_iostream_read_bytes(stream, 20000)).len;
    snprintf(text, sizeof text, "%zu.", len);
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(text)));
}

/* Says all that to the server, so many bytes at a time. */
static void reader_talk(int port, size_t step)
{
    static const char back[] = "line one\r\n  word,1234520000.";
    static char all[20022] = "line one\r\n  word,12345";
    client c = dialled(port);
    memset(all + 22, 'x', 20000);
    for (size_t i = 0, len; i < sizeof all; i += len) {
        len = i < 100 ? step : 7000;
        if (len > sizeof all - i)
            len = sizeof all - i;
        client_send_bytes(&c, all + i, len);
        turn();
    }
    while (client_more(&c)) {
    }
    if (c.len > sizeof back - 1 || memcmp(c.data, back, c.len) != 0)
        FAIL("%s: the server says %s", trial_text(), c.data);
    DO(c.len == sizeof back - 1);
    client_close(&c);
}

SCENARIO_EACH_POLLER(streams)
{
    client_wait = wait_for;
    if (!world_open())
        return;
    tornado_bind_options options = {.address = "127.0.0.1"};
    word = tornado_regex_new("\\w+,", 0);
    tornado_tcpserver *server = tornado_tcpserver_new(reader, NULL, NULL);
    if (DO(word && server) && DO(tornado_tcpserver_listen(server, 0, &options))) {
        int port = tornado_tcpserver_port(server);
        if (DO(port != 0)) {
            reader_talk(port, 5);
            reader_talk(port, 50000);
            reader_talk(port, 1001);
        }
    }
    tornado_tcpserver_free(server);
    UNTIL(!tornado_ioloop_coroutines(world.loop));
    tornado_regex_free(word);
    world_close();
}

/* A number is sent until it comes; when it could not be received it may have been lost, or may come later. */
static void number_over(tornado_datagram_socket *from, tornado_datagram_socket *to, int number)
{
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    for (int came = -1; came < number && (trial.row < ALL || !trial_hit());) {
        tornado_future *wait = tornado_datagram_socket_receive(to);
        tornado_future *send = tornado_datagram_socket_send(from, tornado_bytes_of(text));
        UNTIL(tornado_future_done(send));
        if (DO(!tornado_future_error(send))) {
            UNTIL(tornado_future_done(wait));
            if (DO(!tornado_future_error(wait)))
                came = atoi(((const tornado_datagram *)tornado_future_result(wait))->data.data);
            if (came > number)
                FAIL("%s: %d came before it was sent", trial_text(), came);
        }
        tornado_future_release(send);
        tornado_future_release(wait);
    }
}

SCENARIO_EACH_POLLER(datagrams)
{
    tornado_address address;
    if (!world_open())
        return;
    CHECK(tornado_address_ip(&address, "127.0.0.1", 0));
    tornado_datagram_socket *server = tornado_datagram_socket_new(&(tornado_datagram_options){.local = &address});
    if (DO(server != NULL) && DO(tornado_address_local(&address, tornado_datagram_socket_fileno(server)))) {
        tornado_datagram_socket *client = tornado_datagram_socket_new(&(tornado_datagram_options){.peer = &address});
        for (int i = 0; i < 3 && DO(client != NULL); i++)
            number_over(client, server, i);
        tornado_datagram_socket_free(client);
    }
    tornado_datagram_socket_free(server);
    world_close();
}

/* A name server without the loop: by UDP each reply is cut, by TCP it has an address. */
typedef struct name_server {
    int udp, tcp, connection;
    char text[32];
} name_server;

static void name_server_open(name_server *s)
{
    int port;
    s->connection = -1;
    for (s->udp = -1; s->udp < 0;) { /* a port that is free for both */
        s->tcp = listen_loopback(&port);
        struct sockaddr_in address = loopback(port);
        s->udp = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(s->udp, (struct sockaddr *)&address, sizeof address) != 0) {
            close(s->udp);
            close(s->tcp);
            s->udp = -1;
        }
    }
    set_nonblocking(s->tcp);
    snprintf(s->text, sizeof s->text, "127.0.0.1:%d", port);
}

static void name_server_close(name_server *s)
{
    close(s->udp);
    close(s->tcp);
    if (s->connection >= 0)
        close(s->connection);
}

/* Turns a question, of which `room` bytes may follow, into its answer, and gives the answer's length. */
static size_t name_server_answer(unsigned char *data, bool cut)
{
    static const unsigned char record[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, 1};
    size_t end = 12 + strlen((char *)data + 12) + 5;
    bool four = data[end - 3] == 1;
    data[2] = cut ? 0x83 : 0x81;
    data[7] = four && !cut;
    data[11] = 0;
    memcpy(data + end, record, four && !cut ? sizeof record : 0);
    return end + (four && !cut ? sizeof record : 0);
}

static void name_server_turn(name_server *s)
{
    unsigned char data[600];
    struct sockaddr_in from;
    socklen_t from_len = sizeof from;
    ssize_t got = recvfrom(s->udp, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &from_len);
    if (got > 12)
        sendto(s->udp, data, name_server_answer(data, true), 0, (struct sockaddr *)&from, from_len);
    if (s->connection < 0 && (s->connection = accept(s->tcp, NULL, NULL)) >= 0)
        set_nonblocking(s->connection);
    if (s->connection < 0 || (got = recv(s->connection, data, sizeof data, MSG_DONTWAIT | MSG_PEEK)) < 0)
        return;
    if (got > 14 && got == data[1] + 2) { /* it has come whole */
        recv(s->connection, data, sizeof data, MSG_DONTWAIT);
        size_t len = name_server_answer(data + 2, false);
        data[0] = 0;
        data[1] = (unsigned char)len;
        send(s->connection, data, len + 2, MSG_NOSIGNAL);
    }
    if (got == 0) {
        close(s->connection);
        s->connection = -1;
    }
}

/* Its files are not those of the machine, of which nobody knows what is in them. */
static const char *name_file(const char *text)
{
    static char path[64];
    FILE *file;
    snprintf(path, sizeof path, "/tmp/tornado-test-%d", (int)getpid());
    CHECK((file = fopen(path, "w")) != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    return path;
}

SCENARIO(names)
{
    name_server server;
    if (!world_open())
        return;
    name_server_open(&server);
    const char *servers[] = {server.text, NULL}, *path = name_file("127.0.0.9 nine\n127.0.0.1 two\n::1 two\n");
    tornado_resolver_options options = {.kind = &tornado_dns_resolver, .resolv_conf = path, .hosts = path,
                                        .nameservers = servers, .timeout = 0.05};
    tornado_resolver *resolver = tornado_resolver_new(&options);
    static const struct {
        const char *name;
        size_t count; /* of its addresses */
    } hosts[] = {{"a.test", 1}, {"nine", 1}, {"a.test", 1}, {"two", 2}};
    for (size_t i = 0; i < 4 && DO(resolver != NULL); i++) {
        tornado_future *future = tornado_resolver_resolve(resolver, hosts[i].name, 80, 0);
        for (int tries = 0; !tornado_future_done(future); tries++) {
            name_server_turn(&server);
            poll(NULL, 0, tries > 20);
            turn();
        }
        DO(!tornado_future_error(future));
        const tornado_addresses *found = tornado_future_result(future);
        if (found && found->count != hosts[i].count)
            FAIL("%s: %s has %zu addresses", trial_text(), hosts[i].name, found->count);
        tornado_future_release(future);
    }
    tornado_resolver_free(resolver);
    name_server_close(&server);
    unlink(path);
    world_close();
}

/* A line goes to a server and back, by the second of two addresses; the first refuses. */
static tornado_address connect_to[2];
static const tornado_addresses connect_list = {2, connect_to};

static tornado_future *connect_resolve(void *state, const char *host, int port, int family)
{
    (void)state;
    (void)host;
    (void)port;
    (void)family;
    return tornado_future_resolved((void *)(uintptr_t)&connect_list);
}

static const tornado_resolver_class connect_resolver = {.resolve = connect_resolve};

static void connect_and_talk(tornado_tcpclient *client, int listener)
{
    tornado_future *future = tornado_tcpclient_connect(client, "a.test", 80, NULL), *line = NULL;
    UNTIL(tornado_future_done(future));
    const tornado_error *error = tornado_future_error(future);
    int peer = error ? -1 : accept(listener, NULL, NULL);
    if (DO(!error)) {
        CHECK(peer >= 0 && write(peer, "line\n", 5) == 5);
        line = tornado_iostream_read_until(tornado_future_result(future), "\n");
        UNTIL(tornado_future_done(line));
        DO(!tornado_future_error(line));
    }
    tornado_future_release(line);
    tornado_future_release(future);
    if (peer >= 0)
        close(peer);
    while (error && (peer = accept(listener, NULL, NULL)) >= 0)
        close(peer); /* of one that was given up */
}

SCENARIO_EACH_POLLER(connecting)
{
    int refusing_port, port, refusing = refuse_loopback(&refusing_port), listener = listen_loopback(&port);
    set_nonblocking(listener);
    CHECK(tornado_address_ip(&connect_to[0], "127.0.0.1", refusing_port));
    CHECK(tornado_address_ip(&connect_to[1], "127.0.0.1", port));
    if (world_open()) {
        tornado_resolver *resolver = tornado_resolver_new(&(tornado_resolver_options){.kind = &connect_resolver});
        tornado_tcpclient *client = resolver ? tornado_tcpclient_new(resolver) : NULL;
        for (int i = 0; i < 2 && DO(client != NULL); i++)
            connect_and_talk(client, listener);
        tornado_tcpclient_free(client);
        tornado_resolver_free(resolver);
        world_close();
    }
    close(listener);
    close(refusing);
}

/* A stream that is used with callbacks: what is written to one end, in both directions, is read at the other. */
static void pair_step(tornado_future *future, void *arg)
{
    const tornado_error *error = tornado_future_error(future);
    tornado_bytes bytes = tornado_future_bytes(future);
    char text[64];
    snprintf(text, sizeof text, "%s%s%zu ", (const char *)arg, error ? "failed" : "", bytes.len);
    note(text);
}

static bool then(tornado_future *future, const char *name)
{
    bool ok = tornado_future_add_done_callback(future, pair_step, (void *)(uintptr_t)name);
    tornado_future_release(future);
    return ok;
}

SCENARIO(streams_with_callbacks)
{
    static char large[200000];
    int ends[2];
    client_wait = wait_for;
    if (!world_open())
        return;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    tornado_iostream *a = tornado_iostream_new(ends[0], NULL), *b = tornado_iostream_new(ends[1], NULL);
    memset(large, 'x', sizeof large);
    if (DO(a && b)) {
        tornado_iostream_set_close_callback(a, note, (void *)(uintptr_t) "closed ");
        tornado_iostream_set_close_callback(b, note, (void *)(uintptr_t) "closed ");
    }
    if (a && b && DO(then(tornado_iostream_read_until_close(b), "all")) &&
        DO(then(tornado_iostream_read_bytes(a, 3), "three")) &&
        DO(then(tornado_iostream_write(b, tornado_bytes_of("xyz")), "written")) &&
        DO(then(tornado_iostream_write(a, (tornado_bytes){large, sizeof large}), "sent"))) {
        UNTIL(strstr(trace, "three") && strstr(trace, "written") && strstr(trace, "sent"));
        if (strstr(trace, "failed") || !strstr(trace, "three3 "))
            harm(trace);
        tornado_iostream_close(a);
        UNTIL(strstr(trace, "all"));
        if (!strstr(trace, "all200000 ") && !trial.harmed)
            harm(trace);
        UNTIL(strstr(trace, "closed "));
        if (!trial.harmed || test_fault_is("epoll_add")) /* else nobody may have read what came in before the end */
            UNTIL(strstr(strstr(trace, "closed ") + 1, "closed "));
    }
    tornado_iostream_release(a);
    tornado_iostream_release(b);
    world_close();
}

/* A part of a file between two parts of memory, read into memory at the other end. */
SCENARIO(streams_of_a_file)
{
    enum { LEN = 3000, ALL = LEN + 8 };
    static char memory[ALL];
    char name[] = "/tmp/tornado-faults-XXXXXX", block[1000];
    int ends[2], file = mkstemp(name);
    client_wait = wait_for;
    CHECK(file >= 0 && unlink(name) == 0);
    memset(block, 'f', sizeof block);
    for (int i = 0; i < 3; i++)
        CHECK_INT(write(file, block, sizeof block), sizeof block);
    if (!world_open()) {
        close(file);
        return;
    }
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    tornado_iostream *a = tornado_iostream_new(ends[0], NULL), *b = tornado_iostream_new(ends[1], NULL);
    tornado_bytes parts[] = {{"one ", 4}, {"two ", 4}};
    if (DO(a && b) && DO(then(tornado_iostream_read_into(b, memory, ALL), "all")) &&
        DO(then(tornado_iostream_writev(a, parts, 2), "parts")) &&
        DO(then(tornado_iostream_write_file(a, file, 0, LEN), "file"))) {
        UNTIL(strstr(trace, "parts") && strstr(trace, "file"));
        if (strstr(trace, "failed")) /* then the rest of it is not to come */
            tornado_iostream_close(a);
        UNTIL(strstr(trace, "all"));
        if (!strstr(trace, "all3008 "))
            harm(trace);
        else
            CHECK(memcmp(memory, "one two fff", 11) == 0 && memory[ALL - 1] == 'f');
    }
    close(file);
    tornado_iostream_release(a);
    tornado_iostream_release(b);
    world_close();
}

#ifdef TORNADO_OPENSSL
/* Lines and an end by TLS. OpenSSL's own allocations do not fail. */
SCENARIO(streams_with_tls)
{
    int ends[2];
    client_wait = wait_for;
    if (!*certificates_directory)
        certificates_make();
    if (!world_open())
        return;
    tcp_pair(ends);
    tornado_ssl_options server = {.server_side = true, .certfile = certificate_path("server.pem"),
                                  .keyfile = certificate_path("server.key")};
    tornado_ssl_options client = {.server_hostname = "localhost", .ca_certs = certificate_path("root.pem")};
    tornado_iostream *a = tornado_iostream_new(ends[0], &(tornado_iostream_options){.ssl_options = &server});
    tornado_iostream *b = tornado_iostream_new(ends[1], &(tornado_iostream_options){.ssl_options = &client});
    if (DO(a && b) && DO(then(tornado_iostream_wait_for_handshake(b), "shaken")) &&
        DO(then(tornado_iostream_read_until(a, "\n"), "line")) &&
        DO(then(tornado_iostream_write(b, tornado_bytes_of("a line\n")), "written"))) {
        UNTIL(strstr(trace, "shaken") && strstr(trace, "line") && strstr(trace, "written"));
        if (strstr(trace, "failed"))
            harm(trace);
        else if (DO(tornado_iostream_ssl_info(b) != NULL) &&
                 DO(then(tornado_iostream_read_until_close(b), "all")) &&
                 DO(then(tornado_iostream_write(a, tornado_bytes_of("an answer")), "answered"))) {
            UNTIL(strstr(trace, "answered"));
            tornado_iostream_close(a);
            UNTIL(strstr(trace, "all"));
            if (!strstr(trace, "all9 ") && !trial.harmed)
                harm(trace);
        }
    }
    tornado_iostream_release(a);
    tornado_iostream_release(b);
    world_close();
}
#endif

/* Who waits for the end alone is told of it, also when the system cannot watch for it. */
SCENARIO(a_close_callback_alone)
{
    int ends[2];
    if (!world_open())
        return;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    if (DO(stream != NULL)) {
        tornado_iostream_set_close_callback(stream, note, (void *)(uintptr_t) "closed ");
        close(ends[1]);
        UNTIL(strstr(trace, "closed "));
    } else {
        close(ends[1]);
    }
    tornado_iostream_release(stream);
    world_close();
}

/*----------------------------------------------------------------------------
 * Scenarios: loop and coroutines.
 *----------------------------------------------------------------------------*/

static void again(void *arg)
{
    int *left = arg;
    note("p");
    --*left;
}

static void *from_thread(void *arg)
{
    bool *added = arg;
    *added = tornado_ioloop_add_callback(world.loop, note, (void *)(uintptr_t) "t");
    return NULL;
}

/* Callbacks, timers that are cancelled and not, a periodic one, a callback from another thread: what was accepted
   runs. */
SCENARIO(loop)
{
    bool added = false;
    int left = 3;
    char want[8] = "";
    pthread_t thread;
    if (!world_open())
        return;
    tornado_periodic_callback *periodic = tornado_periodic_callback_new(again, &left, 1, 0.5);
    CHECK(pthread_create(&thread, NULL, from_thread, &added) == 0 && pthread_join(thread, NULL) == 0);
    if (DO(added))
        strcat(want, "t");
    if (DO(tornado_ioloop_add_callback(world.loop, note, (void *)(uintptr_t) "c")))
        strcat(want, "c");
    tornado_timeout cancelled = tornado_ioloop_call_later(world.loop, 0, note, (void *)(uintptr_t) "x");
    if (DO(cancelled))
        CHECK(tornado_ioloop_remove_timeout(world.loop, cancelled));
    if (DO(tornado_ioloop_call_later(world.loop, 0, note, (void *)(uintptr_t) "1")))
        strcat(want, "1");
    if (DO(tornado_ioloop_call_later(world.loop, 0.001, note, (void *)(uintptr_t) "2")))
        strcat(want, "2");
    UNTIL(strlen(trace) >= strlen(want));
    CHECK_STR(traced(), want);
    if (DO(periodic != NULL) && DO(tornado_periodic_callback_start(periodic)))
        UNTIL(left <= 0 || logged("a periodic callback ends"));
    tornado_periodic_callback_free(periodic);
    world_close();
}

static void *wait_a_little(void *arg)
{
    tornado_await(tornado_sleep(0.001));
    return arg;
}

static void *wait_for_ever(void *arg)
{
    tornado_await(tornado_sleep(1e6));
    return arg;
}

static void *coroutines_main(void *arg)
{
    static char results[3];
    tornado_future *three[] = {tornado_spawn(wait_a_little, &results[0]), tornado_spawn(wait_a_little, &results[1]),
                               tornado_moment()};
    void **got = tornado_await(tornado_multi(three, 3));
    CHECK(got[0] == &results[0] && got[1] == &results[1] && got[2] == NULL);
    CHECK(tornado_await(tornado_with_timeout(10, tornado_spawn(wait_a_little, &results[2]))) == &results[2]);
    tornado_future *endless = tornado_spawn(wait_for_ever, NULL);
    const tornado_error *error = tornado_wait(tornado_with_timeout(0.001, tornado_future_retain(endless)));
    int code = error ? error->code : 0;
    bool cancelled = tornado_cancel(endless);
    const tornado_error *end = tornado_wait(endless);
    CHECK(end != NULL);
    if (code != TORNADO_ERR_TIMEOUT || !cancelled || end->code != TORNADO_ERR_CANCELLED)
        tornado_raise(TORNADO_ERR_NOMEM, "%d, %d, %d", code, cancelled, end->code);
    *(bool *)arg = true;
    return NULL;
}

SCENARIO(coroutines)
{
    bool finished = false;
    if (!world_open())
        return;
    tornado_future *whole = tornado_spawn(coroutines_main, &finished);
    UNTIL(tornado_future_done(whole));
    const tornado_error *error = tornado_future_error(whole);
    if (error && error->code != TORNADO_ERR_NOMEM)
        FAIL("%s: %s", trial_text(), error->message);
    CHECK(finished == !error);
    DO(finished);
    tornado_future_release(whole);
    UNTIL(!tornado_ioloop_coroutines(world.loop));
    world_close();
}

/* What is put off until the end runs, once, whatever happens; an error stops where it is caught. */
static void putting_off(void *arg)
{
    tornado_scope scope;
    tornado_defer(note, (void *)(uintptr_t) "a");
    tornado_scope_enter(&scope);
    tornado_defer(note, (void *)(uintptr_t) "b");
    tornado_await(tornado_moment());
    tornado_scope_leave(&scope);
    if (arg)
        tornado_raise(TORNADO_ERR_INVALID, "raised");
}

static void *catching(void *arg)
{
    const tornado_error *error = tornado_try(putting_off, arg);
    CHECK(error != NULL);
    if (error->code != TORNADO_ERR_INVALID)
        tornado_raise_error(error);
    return arg;
}

SCENARIO(errors_and_what_is_put_off)
{
    if (!world_open())
        return;
    tornado_future *whole = tornado_spawn(catching, &world);
    UNTIL(tornado_future_done(whole));
    const tornado_error *error = tornado_future_error(whole);
    DO(!error);
    CHECK(!error || error->code == TORNADO_ERR_NOMEM);
    const char *done = traced();
    CHECK(strcmp(done, "ba") == 0 || (error && (!*done || !strcmp(done, "a")))); /* none twice, none left out */
    tornado_future_release(whole);
    world_close();
}

/*----------------------------------------------------------------------------
 * Scenarios: without a loop.
 *----------------------------------------------------------------------------*/

/* Each line that is logged to a file is there, whole, unless the disk is full. */
SCENARIO(log_file)
{
    char path[100], text[2000];
    snprintf(path, sizeof path, "/tmp/tornado-faults-log-%ld", (long)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && unlink(path) == 0);
    tornado_log_options options = {.fd = fd};
    tornado_enable_pretty_logging(&options);
    for (int i = 0; i < 10; i++)
        tornado_app_log(TORNADO_LOG_INFO, "line %d", i);
    log_keep();
    ssize_t len = pread(fd, text, sizeof text - 1, 0);
    CHECK(len >= 0);
    text[len] = '\0';
    for (int i = 0; i < 10; i++) {
        char want[20];
        snprintf(want, sizeof want, "] line %d\n", i);
        if (!strstr(text, want))
            harm(want);
    }
    close(fd);
}

SCENARIO(values)
{
    static const char text[] = "{\"list\": [1, -2, 3.5, \"a\\u00e9\\n\", null], "
                               "\"dict\": {\"b\": true, \"c\": []}, \"n\": 7}";
    tornado_buffer out = {0};
    tornado_arena *arena = tornado_arena_new();
    int n = 0;
    const char *string = NULL;
    if (!DO(arena != NULL))
        return;
    const tornado_value *value = tornado_json_decode(arena, tornado_bytes_of(text));
    if (DO(value != NULL)) {
        CHECK(tornado_value_unpack(value, "{list:[o, o, o, s], n:i}", &(const tornado_value *){NULL},
                                   &(const tornado_value *){NULL}, &(const tornado_value *){NULL}, &string, &n));
        CHECK_STR(string, "a\xc3\xa9\n");
        CHECK_INT(n, 7);
        if (DO(tornado_json_encode(&out, value)))
            CHECK_MEM(out.data, out.len, text, sizeof text - 1);
    }
    tornado_buffer_free(&out);
    tornado_value *list = tornado_value_new_list(arena);
    bool built = true;
    for (int i = 0; i < 100; i++) {
        tornado_value *dict = tornado_value_new_dict(arena);
        built = tornado_value_set(dict, "key", tornado_value_new_integer(arena, i)) && built;
        built = tornado_value_append(list, dict) && built;
    }
    bool encoded = tornado_json_encode(&out, list);
    CHECK(built || !encoded);
    if (DO(encoded))
        CHECK_INT(out.len, 10 * 10 + 90 * 11 + 2 * 99 + 2);
    tornado_buffer_free(&out);
    tornado_arena_free(arena);
}

SCENARIO(compressed_data)
{
    static const char text[] = "compressed data, compressed again: compressed data";
    tornado_buffer packed = {0}, plain = {0};
    if (DO(tornado_compress(&packed, (tornado_bytes){text, sizeof text - 1}, NULL)) &&
        DO(tornado_decompress(&plain, (tornado_bytes){packed.data, packed.len}, NULL)))
        CHECK_MEM(plain.data, plain.len, text, sizeof text - 1);
    tornado_buffer_free(&packed);
    tornado_buffer_free(&plain);
}

SCENARIO(patterns)
{
    static const char subject[] = "2024-05-06 and key=value; other=\"x y\" http://example.com/?q=1";
    static const struct {
        const char *pattern;
        unsigned flags;
        ptrdiff_t start, end;
    } rows[] = {
        {"(\\d{4})-(\\d\\d)-(\\d\\d)", 0, 0, 10},
        {"(?P<key>[a-z]+)=(?:\"([^\"]*)\"|(\\w+))", 0, 15, 24},
        {"HTTP://([\\w.]+)(/[^?]*)?(\\?.*)?$", TORNADO_REGEX_IGNORECASE, 38, 61},
        {"(?:a|b|c|d|e){3,40}x", 0, -1, -1},
        {"\\b(and|or|not)\\b", TORNADO_REGEX_MULTILINE, 11, 14},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tornado_span spans[4];
        tornado_regex *regex = tornado_regex_new(rows[i].pattern, rows[i].flags);
        if (!regex) {
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
            harm(rows[i].pattern);
            continue;
        }
        int found = tornado_regex_search(regex, tornado_bytes_of(subject), 0, spans, 4);
        CHECK(found >= 0 || tornado_last_error()->code == TORNADO_ERR_NOMEM);
        if (DO(found >= 0)) {
            CHECK_INT(found, rows[i].start >= 0);
            if (found) {
                CHECK_INT(spans[0].start, rows[i].start);
                CHECK_INT(spans[0].end, rows[i].end);
            }
        }
        tornado_regex_free(regex);
    }
}

/* Each makes a text, or says that memory is short. */
SCENARIO(texts)
{
    static const char *const pairs[] = {"a", "1 2", "b", "&", NULL};
    tornado_arguments arguments = {0}, cookies = {0}, parameters = {0};
    tornado_arena *arena = tornado_arena_new();
    char query[3000] = "n=0";
    tornado_url url;
    if (!DO(arena != NULL))
        return;
    for (int i = 1; i < 200; i++)
        snprintf(query + strlen(query), sizeof query - strlen(query), "&n%d=%%41+%d", i % 7, i);
    struct {
        const char *got, *want;
    } rows[] = {
        {tornado_xhtml_escape(arena, "<a href='x'>\"&\"</a>"),
         "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;&lt;/a&gt;"},
        {tornado_xhtml_unescape(arena, "&lt;&eacute;&#x41;&nothing;"), "<\xc3\xa9" "A&nothing;"},
        {tornado_url_escape(arena, "a b/\xc3\xa9", true), "a+b%2F%C3%A9"},
        {tornado_url_concat(arena, "http://a/?x=1#f", pairs), "http://a/?x=1&a=1+2&b=%26#f"},
        {tornado_url_join(arena, "http://a/b/c?d", "../e/./f"), "http://a/e/f"},
        {tornado_parse_header(arena, &parameters, tornado_bytes_of("text/html; charset=\"utf-8\"; x=1")), "text/html"},
        {tornado_format_cookie(arena, "name", "va;lue", NULL), "name=\"va\\073lue\"; Path=/"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (DO(rows[i].got != NULL))
            CHECK_STR(rows[i].got, rows[i].want);
    if (DO(tornado_parse_qs(arena, &arguments, tornado_bytes_of(query), NULL))) {
        CHECK_INT(arguments.count, 200);
        CHECK_STR(tornado_arguments_get(&arguments, "n1")->value.data, "A 197");
    }
    if (DO(tornado_parse_cookie(arena, &cookies, tornado_bytes_of("a=1; b=\"2\\073\"; c"), NULL)))
        CHECK_STR(tornado_arguments_get(&cookies, "b")->value.data, "2;");
    if (DO(tornado_url_split(arena, &url, "http://u:p@host:80/p;q?r#s")))
        CHECK(url.path != NULL);
    tornado_arena_free(arena);
}
