/* From names to addresses: each kind of resolver, and the DNS client beside servers that are true, slow and hostile. */
#include "runtime.h"

#include "http_client.h"

#include <limits.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __linux__
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <sys/ioctl.h>
#endif

#define UNTIL(expression)                                                                                          \
    do                                                                                                             \
        tornado_ioloop_run_once(tornado_ioloop_current(), 1);                                                      \
    while (!(expression))

#define OPTIONS(...) (&(tornado_resolver_options){__VA_ARGS__})

static tornado_resolver *opened(const tornado_resolver_options *options)
{
    tornado_resolver *resolver = tornado_resolver_new(options);
    if (!resolver)
        FAIL("it cannot be opened: %s", tornado_last_error()->message);
    return resolver;
}

/* The result of a future of addresses as text, "127.0.0.1:80 [::1]:80", or its error's code and errno; uses it up. */
static const char *text_of(tornado_future *future)
{
    static char text[8192];
    const tornado_error *error = loop_until(future);
    const tornado_addresses *found = tornado_future_result(future);
    size_t len = 0;
    if (error)
        snprintf(text, sizeof text, "%s %s", tornado_error_name(error->code) + strlen("TORNADO_ERR_"),
                 error->sys_errno == ENOENT ? "ENOENT" : error->sys_errno == EAGAIN ? "EAGAIN" : "");
    text[error ? strlen(text) : 0] = '\0';
    for (size_t i = 0; found && i < found->count; i++) {
        char one[TORNADO_ADDRESS_MAX];
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", i ? " " : "",
                                tornado_address_format(&found->items[i], one));
        CHECK(len < sizeof text);
    }
    tornado_future_release(future);
    return text;
}

static const char *resolved(tornado_resolver *resolver, const char *host, int family)
{
    return text_of(tornado_resolver_resolve(resolver, host, 80, family));
}

/*----------------------------------------------------------------------------
 * The system's ways, and the table.
 *----------------------------------------------------------------------------*/

static const tornado_resolver_class *const kinds[] = {&tornado_blocking_resolver, &tornado_threaded_resolver,
                                                      &tornado_executor_resolver, &tornado_override_resolver,
                                                      &tornado_dns_resolver};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

/* Whatever allocates for the process goes with this. */
static void end_threads(void)
{
    CHECK(tornado_executor_shutdown(NULL, false));
}

TEST(resolver_of_each_kind_takes_addresses_as_they_are)
{
    static const struct {
        const char *host;
        int family;
        const char *result;
    } cases[] = {
        {"127.0.0.1", 0, "127.0.0.1:80"},     {"127.0.0.1", AF_INET, "127.0.0.1:80"},
        {"::1", 0, "[::1]:80"},               {"::1", AF_INET6, "[::1]:80"},
        {"192.0.2.7", 0, "192.0.2.7:80"},     {"2001:DB8::7", 0, "[2001:db8::7]:80"},
        {"127.0.0.1", AF_INET6, "RESOLVE ENOENT"}, {"::1", AF_INET, "RESOLVE ENOENT"},
        {"::1::", 0, "RESOLVE ENOENT"},       {"1:2", 0, "RESOLVE ENOENT"},
    };
    for (int kind = 0; kind < KINDS; kind++) {
        tornado_resolver *resolver = opened(OPTIONS(.kind = kinds[kind]));
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            CHECK_STR(resolved(resolver, cases[i].host, cases[i].family), cases[i].result);
        tornado_resolver_free(resolver);
    }
    end_threads();
}

TEST(resolver_of_each_kind_knows_localhost)
{
    for (int kind = 0; kind < KINDS; kind++) {
        tornado_resolver *resolver = opened(OPTIONS(.kind = kinds[kind]));
        CHECK_STR(resolved(resolver, "localhost", AF_INET), "127.0.0.1:80");
        tornado_resolver_free(resolver);
    }
    end_threads();
}

TEST(resolver_of_each_kind_refuses_what_makes_no_sense)
{
    char longest[300];
    memset(longest, 'a', sizeof longest);
    longest[256] = '\0';
    const struct {
        const char *host;
        int port, family;
    } cases[] = {{NULL, 80, 0}, {"", 80, 0}, {longest, 80, 0}, {"a", -1, 0}, {"a", 65536, 0}, {"a", 80, 12345}};
    for (int kind = 0; kind < KINDS; kind++) {
        tornado_resolver *resolver = opened(OPTIONS(.kind = kinds[kind]));
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            CHECK_STR(text_of(tornado_resolver_resolve(resolver, cases[i].host, cases[i].port, cases[i].family)),
                      "INVALID ");
        tornado_resolver_free(resolver);
    }
    tornado_resolver_free(NULL);
    end_threads();
}

TEST(resolver_of_the_system_says_when_there_is_no_such_name)
{
    for (int kind = 0; kind < 4; kind++) {
        tornado_resolver *resolver = opened(OPTIONS(.kind = kinds[kind]));
        CHECK_STR(resolved(resolver, "a..b", 0), "RESOLVE ENOENT"); /* so malformed that no server is asked */
        tornado_resolver_free(resolver);
    }
    end_threads();
}

TEST(resolver_with_threads_does_not_block)
{
    tornado_resolver *resolver = opened(OPTIONS(.kind = &tornado_threaded_resolver));
    tornado_future *future = tornado_resolver_resolve(resolver, "localhost", 1234, AF_INET);
    CHECK(!tornado_future_done(future));
    tornado_resolver_free(resolver); /* the lookup goes on */
    CHECK_STR(text_of(future), "127.0.0.1:1234");
    end_threads();
}

TEST(resolvers_with_threads_of_their_own_share_them)
{
    TEST_MAY_LEAK(); /* their threads are the process's */
    tornado_resolver *one = opened(OPTIONS(.kind = &tornado_threaded_resolver, .num_threads = 2));
    tornado_resolver *two = opened(OPTIONS(.kind = &tornado_threaded_resolver, .num_threads = 7));
    tornado_future *futures[20];
    for (int i = 0; i < 20; i++)
        futures[i] = tornado_resolver_resolve(i % 2 ? one : two, "localhost", 1000 + i, AF_INET);
    for (int i = 0; i < 20; i++) {
        char want[32];
        snprintf(want, sizeof want, "127.0.0.1:%d", 1000 + i);
        CHECK_STR(text_of(futures[i]), want);
    }
    CHECK_INT(tornado_executor_queued(NULL), 0);
    tornado_resolver_free(one);
    tornado_resolver_free(two);
}

TEST(resolver_on_an_executor_frees_it_unless_it_is_kept)
{
    for (int keep = 0; keep < 2; keep++) {
        tornado_executor *executor = tornado_executor_new(&(tornado_executor_options){.max_workers = 1});
        tornado_resolver *resolver =
            opened(OPTIONS(.kind = &tornado_executor_resolver, .executor = executor, .keep_executor = keep));
        CHECK_STR(resolved(resolver, "localhost", AF_INET), "127.0.0.1:80");
        tornado_resolver_free(resolver);
        if (keep)
            tornado_executor_free(executor);
    } /* what is left, or freed twice, fails the test */
}

static const tornado_resolver_override table[] = {
    {.host = "example.com", .to = "127.0.1.1"},
    {.host = "login.example.com", .port = 443, .to = "localhost", .to_port = 1443},
    {.host = "login.example.com", .port = 80, .family = AF_INET6, .to = "::1", .to_port = 8080},
    {.host = "192.0.2.9", .to = "127.0.0.9"},
    {NULL, 0, 0, NULL, 0},
};

TEST(resolver_with_a_table_looks_there_first)
{
    tornado_resolver *other = opened(OPTIONS(.kind = &tornado_dns_resolver));
    tornado_resolver *resolver =
        opened(OPTIONS(.kind = &tornado_override_resolver, .overrides = table, .resolver = other));
    static const struct {
        const char *host;
        int port, family;
        const char *result;
    } cases[] = {
        {"example.com", 80, 0, "127.0.1.1:80"},
        {"EXAMPLE.com", 81, AF_INET, "127.0.1.1:81"},
        {"login.example.com", 443, AF_INET, "127.0.0.1:1443"},
        {"login.example.com", 80, AF_INET6, "[::1]:8080"},
        {"192.0.2.9", 1, 0, "127.0.0.9:1"},
        {"192.0.2.10", 1, 0, "192.0.2.10:1"},
        {"localhost", 1, AF_INET, "127.0.0.1:1"},
        {"none.invalid", 1, 0, "RESOLVE ENOENT"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_STR(text_of(tornado_resolver_resolve(resolver, cases[i].host, cases[i].port, cases[i].family)),
                  cases[i].result);
    tornado_resolver_free(resolver);
    tornado_resolver_free(other);
}

TEST(resolver_with_a_table_refuses_one_with_a_hole)
{
    static const tornado_resolver_override holed[] = {{.host = "a", .to = "b"}, {.host = "c"}, {.host = NULL}};
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_override_resolver, .overrides = holed)));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(strstr(tornado_last_error()->message, "\"c\"") != NULL);
}

/* A class of the program's own: every name is this address. */
static tornado_future *everywhere_resolve(void *state, const char *host, int port, int family)
{
    static tornado_address address;
    static tornado_addresses addresses = {1, &address};
    tornado_future *future = tornado_future_new();
    (void)host;
    (void)family;
    CHECK(tornado_address_ip(&address, state, port));
    tornado_future_set_result(future, &addresses, NULL);
    return future;
}

static const tornado_resolver_class everywhere = {.resolve = everywhere_resolve};

TEST(resolver_is_what_was_configured)
{
    static char ip[] = "127.0.0.77";
    tornado_resolver_configure(OPTIONS(.kind = &everywhere, .arg = ip));
    tornado_resolver *resolver = opened(NULL);
    CHECK_STR(resolved(resolver, "anything", 0), "127.0.0.77:80");
    tornado_resolver_free(resolver);
    tornado_resolver_configure(OPTIONS(.kind = &tornado_override_resolver, .overrides = table));
    resolver = opened(NULL);
    CHECK_STR(resolved(resolver, "example.com", 0), "127.0.1.1:80");
    CHECK_STR(resolved(resolver, "localhost", AF_INET), "127.0.0.1:80");
    tornado_resolver_free(resolver);
    tornado_resolver_configure(NULL);
    resolver = opened(NULL); /* threaded */
    tornado_future *future = tornado_resolver_resolve(resolver, "localhost", 80, AF_INET);
    CHECK(!tornado_future_done(future));
    CHECK_STR(text_of(future), "127.0.0.1:80");
    tornado_resolver_free(resolver);
    end_threads();
}

/*----------------------------------------------------------------------------
 * A name server that says whatever a test wants.
 *----------------------------------------------------------------------------*/

enum { A = 1, CNAME = 5, SOA = 6, AAAA = 28, NO_ERROR = 0, FORMERR = 1, SERVFAIL = 2, NXDOMAIN = 3, NOTIMP = 4 };

typedef struct reply {
    unsigned char data[65535];
    size_t len;
} reply;

typedef struct question {
    char name[256]; /* in lower case */
    int type;
    bool tcp, edns;
    int port;       /* where it came from */
    unsigned id;
    const unsigned char *data;
    size_t len, end; /* end: of the question itself */
} question;

typedef struct server {
    int udp, tcp, port;
    char text[32];  /* "127.0.0.1:port" */
    int asked, asked_by_tcp, accepted;
    bool hangs_up; /* on who connects */
    void (*answer)(struct server *s, const question *q); /* calls say, any number of times */
    /* of the question that is being answered */
    struct sockaddr_in from;
    int connection;
} server;

static void say_bytes(server *s, const void *data, size_t len)
{
    if (s->connection >= 0) {
        unsigned char head[2] = {(unsigned char)(len >> 8), (unsigned char)len};
        CHECK(send(s->connection, head, 2, MSG_NOSIGNAL) == 2);
        CHECK(send(s->connection, data, len, MSG_NOSIGNAL) == (ssize_t)len);
    } else {
        CHECK(sendto(s->udp, data, len, 0, (struct sockaddr *)&s->from, sizeof s->from) == (ssize_t)len);
    }
}

static void say(server *s, const reply *r)
{
    say_bytes(s, r->data, r->len);
}

/* A reply to a question, with no records in it yet. */
static reply *begun(const question *q, int code)
{
    static reply r;
    memcpy(r.data, q->data, q->end);
    memset(r.data + 4, 0, 8);
    r.data[2] = 0x81;
    r.data[3] = (unsigned char)(0x80 | code);
    r.data[5] = 1;
    r.len = q->end;
    return &r;
}

static void put(reply *r, const void *data, size_t len)
{
    CHECK(r->len + len <= sizeof r->data);
    memcpy(r->data + r->len, data, len);
    r->len += len;
}

static void put_16(reply *r, int value)
{
    put(r, (unsigned char[]){(unsigned char)(value >> 8), (unsigned char)value}, 2);
}

/* A name without compression; NULL stands for the question's. */
static void put_name(reply *r, const char *name)
{
    if (!name) {
        put_16(r, 0xc00c);
        return;
    }
    while (*name) {
        size_t len = strcspn(name, ".");
        put(r, (unsigned char[]){(unsigned char)len}, 1);
        put(r, name, len);
        name += len + (name[len] == '.');
    }
    put(r, "", 1);
}

/* A record; `section` is 6 for answers, 8 for authority. */
static void put_record(reply *r, int section, const char *name, int type, int ttl, const void *data, size_t len)
{
    put_name(r, name);
    put_16(r, type);
    put_16(r, 1);
    put_16(r, ttl >> 16);
    put_16(r, ttl);
    put_16(r, (int)len);
    put(r, data, len);
    int count = (r->data[section] << 8 | r->data[section + 1]) + 1;
    r->data[section] = (unsigned char)(count >> 8);
    r->data[section + 1] = (unsigned char)count;
}

static void put_address(reply *r, const char *name, const char *ip, int ttl)
{
    unsigned char bytes[16];
    int family = strchr(ip, ':') ? AF_INET6 : AF_INET;
    CHECK(inet_pton(family, ip, bytes) == 1);
    put_record(r, 6, name, family == AF_INET ? A : AAAA, ttl, bytes, family == AF_INET ? 4 : 16);
}

static void put_alias(reply *r, const char *name, const char *alias, int ttl)
{
    reply data = {.len = 0};
    put_name(&data, alias);
    put_record(r, 6, name, CNAME, ttl, data.data, data.len);
}

static void put_soa(reply *r, const char *zone, int ttl, int minimum)
{
    reply data = {.len = 0};
    put_name(&data, "ns.test");
    put_name(&data, "root.test");
    for (int i = 0; i < 4; i++)
        put(&data, "\0\0\0\1", 4);
    put_16(&data, minimum >> 16);
    put_16(&data, minimum);
    put_record(r, 8, zone, SOA, ttl, data.data, data.len);
}

/* Has the server answer a question as it came, by UDP or by a connection. */
static void server_asked(server *s, const unsigned char *data, size_t len)
{
    question q = {.data = data, .len = len, .tcp = s->connection >= 0, .port = ntohs(s->from.sin_port)};
    size_t at = 12, out = 0;
    CHECK(len > 12 && data[5] == 1);
    q.id = (unsigned)data[0] << 8 | data[1];
    while (data[at]) {
        CHECK(at + data[at] + 5 < len && out + data[at] + 2 < sizeof q.name);
        if (out)
            q.name[out++] = '.';
        for (size_t i = 1; i <= data[at]; i++)
            q.name[out++] = (char)(data[at + i] | (data[at + i] >= 'A' && data[at + i] <= 'Z' ? 32 : 0));
        at += data[at] + 1;
    }
    q.end = at + 5;
    CHECK(q.end <= len);
    q.type = data[at + 1] << 8 | data[at + 2];
    q.edns = len == q.end + 11 && data[11] == 1 && data[q.end + 2] == 41;
    s->asked++;
    s->asked_by_tcp += q.tcp;
    if (s->answer)
        s->answer(s, &q);
}

static void server_udp(int fd, unsigned events, void *arg)
{
    server *s = arg;
    unsigned char data[600];
    socklen_t len = sizeof s->from;
    ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&s->from, &len);
    (void)events;
    s->connection = -1;
    if (got > 0)
        server_asked(s, data, (size_t)got);
}

/* A question always comes in one piece here. */
static void server_connection(int fd, unsigned events, void *arg)
{
    server *s = arg;
    unsigned char data[600];
    ssize_t got = recv(fd, data, sizeof data, 0);
    (void)events;
    if (got > 2) {
        CHECK_INT(data[0] << 8 | data[1], got - 2);
        s->connection = fd;
        server_asked(s, data + 2, (size_t)got - 2);
        if (s->connection >= 0)
            return;
    }
    tornado_ioloop_remove_handler(tornado_ioloop_current(), fd);
    close(fd);
}

static void server_tcp(int fd, unsigned events, void *arg)
{
    server *s = arg;
    int connection = accept(fd, NULL, NULL);
    (void)events;
    CHECK(connection >= 0);
    s->accepted++;
    if (s->hangs_up) {
        close(connection);
        return;
    }
    set_nonblocking(connection);
    CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), connection, server_connection, s,
                                     TORNADO_IOLOOP_READ));
}

static void server_start(server *s, void (*answer)(server *, const question *))
{
    memset(s, 0, sizeof *s);
    s->answer = answer;
    for (int tries = 0; s->udp <= 0; tries++) { /* a port that is free for both */
        struct sockaddr_in address;
        CHECK(tries < 20);
        s->tcp = listen_loopback(&s->port);
        address = loopback(s->port);
        s->udp = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(s->udp, (struct sockaddr *)&address, sizeof address) == 0)
            break;
        close(s->udp);
        close(s->tcp);
        s->udp = 0;
    }
    set_nonblocking(s->udp);
    snprintf(s->text, sizeof s->text, "127.0.0.1:%d", s->port);
    CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), s->udp, server_udp, s, TORNADO_IOLOOP_READ));
    CHECK(tornado_ioloop_add_handler(tornado_ioloop_current(), s->tcp, server_tcp, s, TORNADO_IOLOOP_READ));
}

static void server_stop(server *s)
{
    tornado_ioloop_remove_handler(tornado_ioloop_current(), s->udp);
    tornado_ioloop_remove_handler(tornado_ioloop_current(), s->tcp);
    close(s->udp);
    close(s->tcp);
}

/* A directory with a resolv.conf and a hosts file of the test's own; both are empty unless written. */
static char directory[64], conf_path[80], hosts_path[80];

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void files_new(const char *conf, const char *hosts)
{
    snprintf(directory, sizeof directory, "/tmp/tornado-test-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(conf_path, sizeof conf_path, "%s/resolv.conf", directory);
    snprintf(hosts_path, sizeof hosts_path, "%s/hosts", directory);
    write_text(conf_path, conf);
    write_text(hosts_path, hosts);
}

static void files_free(void)
{
    unlink(conf_path);
    unlink(hosts_path);
    CHECK(rmdir(directory) == 0);
}

/* A DNS resolver that asks these servers and reads those files. */
static tornado_resolver *asking(server *one, server *two, const tornado_resolver_options *options)
{
    tornado_resolver_options o = {.timeout = test_scaled(2)};
    const char *servers[] = {one ? one->text : NULL, two ? two->text : NULL, NULL};
    if (options)
        o = *options;
    o.kind = &tornado_dns_resolver;
    o.timeout = o.timeout ? o.timeout : test_scaled(2);
    o.resolv_conf = conf_path;
    o.hosts = hosts_path;
    o.nameservers = servers;
    return opened(&o);
}

/* The usual: one server, and files without content. */
static server main_server;
static tornado_resolver *main_resolver;

static void begin(void (*answer)(server *, const question *), const tornado_resolver_options *options)
{
    files_new("", "");
    server_start(&main_server, answer);
    main_resolver = asking(&main_server, NULL, options);
}

static void end(void)
{
    tornado_resolver_free(main_resolver);
    server_stop(&main_server);
    files_free();
}

static const char *ask(const char *host, int family)
{
    return resolved(main_resolver, host, family);
}

/* The same while the n-th allocation fails; *hit: there was such a one. */
static const char *ask_in_shortage(const char *host, long n, bool *hit)
{
    long allocs = test_allocs();
    test_fail_alloc(n);
    tornado_future *future = tornado_resolver_resolve(main_resolver, host, 80, AF_INET);
    while (!tornado_future_done(future))
        tornado_ioloop_run_once(tornado_ioloop_current(), 1);
    *hit = test_allocs() - allocs >= n;
    test_fail_alloc(0);
    return text_of(future);
}

/* Every name has one address of each family. */
static void answer_any(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, q->type == A ? "192.0.2.1" : "2001:db8::1", 300);
    say(s, r);
}

static void answer_any_a(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    if (q->type == A)
        put_address(r, NULL, "192.0.2.1", 300);
    say(s, r);
}

/*----------------------------------------------------------------------------
 * What is asked, and how.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(resolver_by_dns_asks_for_both_families_or_for_one)
{
    begin(answer_any, NULL);
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    CHECK_STR(ask("example.com", AF_INET6), "[2001:db8::1]:80");
    CHECK_INT(main_server.asked, 2);
    const char *both = ask("two.example.com", 0);
    if (strcmp(both, "192.0.2.1:80 [2001:db8::1]:80") != 0) /* whichever can be reached comes first */
        CHECK_STR(both, "[2001:db8::1]:80 192.0.2.1:80");
    CHECK_INT(main_server.asked, 4);
    end();
}

static struct {
    unsigned id;
    int port;
    unsigned char name[64];
    size_t len;
} seen[64];
static int seen_count;

static void answer_and_note(server *s, const question *q)
{
    seen[seen_count].id = q->id;
    seen[seen_count].port = q->port;
    seen[seen_count].len = q->end - 12;
    CHECK(seen[seen_count].len <= sizeof seen[0].name);
    memcpy(seen[seen_count++].name, q->data + 12, q->end - 12);
    CHECK(q->edns);
    answer_any(s, q);
}

TEST(resolver_by_dns_has_another_id_port_and_case_for_each_question)
{
    enum { ASKED = 32 };
    int same_id = 0, same_port = 0, same_case = 0;
    begin(answer_and_note, OPTIONS(.cache_size = TORNADO_NONE));
    for (int i = 0; i < ASKED; i++)
        CHECK_STR(ask("some-longer-name.example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(seen_count, ASKED);
    for (int i = 1; i < ASKED; i++) {
        same_id += seen[i].id == seen[i - 1].id;
        same_port += seen[i].port == seen[i - 1].port;
        same_case += memcmp(seen[i].name, seen[i - 1].name, seen[i].len) == 0;
    }
    CHECK(same_id < 4 && same_port < 8 && same_case < 4);
    end();
}

TEST(resolver_by_dns_asks_the_same_only_once_at_a_time)
{
    tornado_future *futures[50];
    begin(answer_any, OPTIONS(.cache_size = TORNADO_NONE));
    for (int i = 0; i < 50; i++)
        futures[i] = tornado_resolver_resolve(main_resolver, "example.com", 1000 + i, AF_INET);
    for (int i = 0; i < 50; i++) {
        char want[32];
        snprintf(want, sizeof want, "192.0.2.1:%d", 1000 + i);
        CHECK_STR(text_of(futures[i]), want);
    }
    CHECK_INT(main_server.asked, 1);
    end();
}

TEST(resolver_by_dns_resolves_many_names_at_once)
{
    enum { MANY = 1000 };
    static tornado_future *futures[MANY];
    char name[32];
    begin(answer_any, NULL);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "name%d.example.com", i);
        futures[i] = tornado_resolver_resolve(main_resolver, name, 80, AF_INET);
    }
    for (int i = 0; i < MANY; i++)
        CHECK_STR(text_of(futures[i]), "192.0.2.1:80");
    end();
}

static char asked_names[1000];

static void answer_nothing(server *s, const question *q)
{
    size_t len = strlen(asked_names);
    snprintf(asked_names + len, sizeof asked_names - len, "%s ", q->name);
    say(s, begun(q, NXDOMAIN));
}

TEST(resolver_by_dns_searches_in_the_domains_of_resolv_conf)
{
    static const struct {
        const char *conf, *host, *asked;
    } cases[] = {
        {"", "a", "a "},
        {"search one.test two.test\n", "a", "a.one.test a.two.test a "},
        {"search one.test two.test\n", "a.", "a "},
        {"search one.test two.test\n", "a.b", "a.b a.b.one.test a.b.two.test "},
        {"search one.test\noptions ndots:2\n", "a.b", "a.b.one.test a.b "},
        {"search one.test\noptions ndots:2\n", "A.B.c", "a.b.c a.b.c.one.test "},
        {"search one.test\ndomain Two.Test. # the last\n", "a", "a.two.test a "},
        {"; search one.test\n# search two.test\n\n  search\tthree.test ; four.test\n", "a", "a.three.test a "},
        {"search bad..name -.. good.test\noptions ndots:99 ndots:0", "a", "a a.good.test "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(answer_nothing, NULL);
        write_text(conf_path, cases[i].conf);
        asked_names[0] = '\0';
        CHECK_STR(ask(cases[i].host, AF_INET), "RESOLVE ENOENT");
        CHECK_STR(asked_names, cases[i].asked);
        end();
    }
}

TEST(resolver_by_dns_refuses_what_is_no_name)
{
    char label[80], longest[256];
    memset(label, 'a', sizeof label);
    label[64] = '\0';
    memset(longest, 'a', sizeof longest);
    for (size_t i = 63; i < sizeof longest; i += 64)
        longest[i] = '.';
    longest[254] = '\0';
    const char *const wrong[] = {"a..b", ".", ".a", "a b", "a/b", "a\nb", "b\xc3\xa4r", label, longest, "a..",
                                 "127.1", "1", "1.2.3.4.", "1.2.3.256", "a.0"};
    begin(answer_any, NULL);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_STR(ask(wrong[i], 0), "INVALID ");
    tornado_future *future = tornado_resolver_resolve(main_resolver, "b\xc3\xa4r.example", 80, 0);
    CHECK(strstr(loop_until(future)->message, "xn--") != NULL);
    tornado_future_release(future);
    CHECK_INT(main_server.asked, 0);
    longest[253] = '\0';
    CHECK_STR(ask(longest, AF_INET), "192.0.2.1:80");
    label[63] = '\0';
    CHECK_STR(ask(label, AF_INET), "192.0.2.1:80");
    CHECK_STR(ask("_srv.a-b.Example.COM.", AF_INET), "192.0.2.1:80");
    CHECK_STR(ask("1.2.3.4a", AF_INET), "192.0.2.1:80");
    CHECK_STR(ask("4.-", AF_INET), "192.0.2.1:80");
    end();
}

TEST(resolver_by_dns_asks_nobody_for_reserved_names)
{
    static const struct {
        const char *host;
        int family;
        const char *result;
    } cases[] = {{"localhost", AF_INET, "127.0.0.1:80"},     {"LocalHost.", AF_INET6, "[::1]:80"},
                 {"a.b.localhost", AF_INET, "127.0.0.1:80"}, {"none.invalid", 0, "RESOLVE ENOENT"},
                 {"invalid.", 0, "RESOLVE ENOENT"},          {"some.Onion", 0, "RESOLVE ENOENT"}};
    begin(answer_any, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_STR(ask(cases[i].host, cases[i].family), cases[i].result);
    CHECK_INT(main_server.asked, 0);
    CHECK_STR(ask("notlocalhost", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    end();
}

TEST(resolver_by_dns_looks_into_the_hosts_file)
{
    begin(answer_any, NULL);
    write_text(hosts_path, "# comment\n127.0.0.5 five Five.Example.com # five.not\n\n2001:db8::5\tfive\r\n"
                           "127.0.0.6 five\nnonsense six\n127.0.0.7\n127.0.0.8 bad..name seven");
    CHECK_STR(ask("five", AF_INET), "127.0.0.5:80 127.0.0.6:80");
    CHECK_STR(ask("FIVE", AF_INET6), "[2001:db8::5]:80");
    CHECK_STR(ask("five.example.com.", 0), "127.0.0.5:80");
    CHECK_STR(ask("seven", 0), "127.0.0.8:80");
    CHECK_INT(main_server.asked, 0);
    CHECK_STR(ask("five.example.com", AF_INET6), "[2001:db8::1]:80"); /* there is none of this family there */
    CHECK_STR(ask("six", AF_INET), "192.0.2.1:80");
    write_text(hosts_path, "127.0.0.50 five\n");
    CHECK_STR(ask("five", 0), "127.0.0.50:80"); /* it has changed */
    CHECK(unlink(hosts_path) == 0);
    CHECK_STR(ask("five", AF_INET), "192.0.2.1:80");
    end();
}

/* Also when neither its length nor the second is another. */
TEST(resolver_by_dns_reads_a_file_again_that_was_written_again)
{
    struct timespec times[2] = {{1000000000, 0}, {1000000000, 1}};
    begin(answer_any, NULL);
    for (int i = 0; i < 3; i++) {
        char line[32], want[32];
        snprintf(line, sizeof line, "127.0.0.%d a\n", 5 + i);
        snprintf(want, sizeof want, "127.0.0.%d:80", 5 + i);
        write_text(hosts_path, line);
        times[1].tv_nsec += 1000;
        CHECK(utimensat(AT_FDCWD, hosts_path, times, 0) == 0);
        CHECK_STR(ask("a", AF_INET), want);
    }
    end();
}

/* What a short memory left of the names that were there may not be looked at. */
TEST(resolver_by_dns_forgets_a_hosts_file_that_it_has_no_memory_for)
{
    bool hit = true;
    for (long n = 1; hit; n++) {
        begin(answer_any, NULL);
        write_text(hosts_path, "# farther in than what free overwrites\n127.0.0.5 five\n");
        CHECK_STR(ask("five", AF_INET), "127.0.0.5:80");
        write_text(hosts_path, "127.0.0.6 five\n");
        const char *changed = ask_in_shortage("five", n, &hit);
        if (strcmp(changed, "NOMEM ") != 0)
            CHECK_STR(changed, "127.0.0.6:80");
        CHECK(unlink(hosts_path) == 0);
        CHECK_STR(ask("five", AF_INET), "192.0.2.1:80");
        end();
    }
}

TEST(resolver_by_dns_says_once_that_a_file_is_too_large)
{
    begin(answer_any, NULL);
    log_keep();
    write_text(hosts_path, "127.0.0.5 a\n");
    CHECK_STR(ask("a", AF_INET), "127.0.0.5:80");
    CHECK(truncate(hosts_path, 4194305) == 0);
    CHECK_STR(ask("a", AF_INET), "192.0.2.1:80");
    CHECK_STR(ask("a", AF_INET), "192.0.2.1:80");
    CHECK_INT(logged("is too large and is not read"), 1);
    end();
}

TEST(resolver_by_dns_forgets_what_it_knows_when_resolv_conf_is_another)
{
    begin(answer_any, NULL);
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    write_text(conf_path, "nameserver 192.0.2.53\n");
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 2);
    end();
}

TEST(resolver_by_dns_ends_what_is_under_way_when_resolv_conf_is_another)
{
    begin(NULL, NULL); /* which says nothing at first */
    tornado_resolver_options options = {.kind = &tornado_dns_resolver, .resolv_conf = conf_path, .hosts = hosts_path,
                                        .nameserver_port = main_server.port, .timeout = 0.05, .attempts = 5};
    write_text(conf_path, "nameserver 127.0.0.1\nnameserver 127.0.0.1\nnameserver 127.0.0.1\n");
    tornado_resolver *resolver = opened(&options);
    tornado_future *before = tornado_resolver_resolve(resolver, "a.test", 80, AF_INET);
    UNTIL(main_server.asked == 1);
    main_server.answer = answer_any;
    write_text(conf_path, "nameserver 127.0.0.1\n");
    CHECK_STR(resolved(resolver, "b.test", AF_INET), "192.0.2.1:80");
    CHECK_STR(text_of(before), "192.0.2.1:80"); /* though the next server is not there any more */
    tornado_resolver_free(resolver);
    end();
}

TEST(resolver_by_dns_takes_servers_of_resolv_conf_with_a_port_of_the_options)
{
    char conf[100];
    begin(answer_any, NULL);
    tornado_resolver_options options = {.kind = &tornado_dns_resolver, .resolv_conf = conf_path, .hosts = hosts_path,
                                        .nameserver_port = main_server.port};
    tornado_resolver *resolver = opened(&options);
    CHECK_STR(resolved(resolver, "a", AF_INET), "192.0.2.1:80"); /* none is there: that of this machine */
    snprintf(conf, sizeof conf, "nameserver nonsense\nnameserver 127.0.0.1 # this\noptions timeout:2 attempts:1\n");
    write_text(conf_path, conf);
    CHECK_STR(resolved(resolver, "b", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 2);
    tornado_resolver_free(resolver);
    end();
}

TEST(resolver_by_dns_refuses_options_that_make_no_sense)
{
    static const char *const wrong[] = {"", "a", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x",
                                        "[::1", "[::1]x", "[::1]:", "::1:", "1.2.3.4.5", "[]:53",
                                        "1111111111111111111111111111111111111111111111111111111111111111111111"};
    static const char *const right[] = {"127.0.0.1", "127.0.0.1:1", "::1", "[::1]", "[::1]:65535"};
    const char *many[10] = {"::1", "::1", "::1", "::1", "::1", "::1", "::1", "::1", "::1", NULL};
    const char *one[2] = {NULL, NULL};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        one[0] = wrong[i];
        if (tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver, .nameservers = one)))
            FAIL("\"%s\" is taken", wrong[i]);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    }
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        one[0] = right[i];
        tornado_resolver_free(opened(OPTIONS(.kind = &tornado_dns_resolver, .nameservers = one)));
    }
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver, .nameservers = many)));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver, .timeout = -1)));
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver, .timeout = 0.0 / 0.0)));
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver, .attempts = -1)));
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver, .nameserver_port = 65536)));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
}

/*----------------------------------------------------------------------------
 * What is kept.
 *----------------------------------------------------------------------------*/

static int ttl;

static void answer_with_ttl(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, "192.0.2.1", ttl);
    say(s, r);
}

/* How often the server is asked by so many lookups of a name. */
static int asked_by(int lookups, const char *name)
{
    int before = main_server.asked;
    while (lookups-- > 0)
        ask(name, AF_INET);
    return main_server.asked - before;
}

TEST(resolver_by_dns_keeps_an_answer_for_as_long_as_it_says)
{
    begin(answer_with_ttl, NULL);
    ttl = 0;
    CHECK_INT(asked_by(3, "not-kept"), 3);
    ttl = 300;
    CHECK_INT(asked_by(3, "kept"), 1);
    CHECK_INT(asked_by(3, "KEPT."), 0);
    ttl = -1; /* RFC 2181 section 8: as if it were 0 */
    CHECK_INT(asked_by(2, "below-zero"), 2);
    ttl = 1;
    CHECK(asked_by(1, "for-a-second") == 1);
    loop_run_for(1.05);
    CHECK_INT(asked_by(1, "for-a-second"), 1);
    end();
}

TEST(resolver_by_dns_keeps_no_more_than_it_may)
{
    begin(answer_with_ttl, OPTIONS(.cache_size = 2));
    ttl = 300;
    CHECK_INT(asked_by(1, "a") + asked_by(1, "b"), 2);
    CHECK_INT(asked_by(1, "a"), 0);
    CHECK_INT(asked_by(1, "c"), 1); /* b was used least recently */
    CHECK_INT(asked_by(1, "a"), 0);
    CHECK_INT(asked_by(1, "b"), 1);
    end();
    begin(answer_with_ttl, OPTIONS(.cache_size = TORNADO_NONE));
    CHECK_INT(asked_by(3, "a"), 3);
    end();
}

static struct {
    int code;
    const char *zone; /* of the SOA record; NULL: there is none */
    int ttl, minimum;
} nothing;

static void answer_nothing_kept(server *s, const question *q)
{
    reply *r = begun(q, nothing.code);
    if (nothing.zone)
        put_soa(r, nothing.zone, nothing.ttl, nothing.minimum);
    say(s, r);
}

TEST(resolver_by_dns_keeps_that_there_is_nothing_for_as_long_as_the_zone_says)
{
    static const struct {
        int code;
        const char *zone;
        int ttl, minimum, asked;
    } cases[] = {
        {NXDOMAIN, "test", 300, 300, 1}, {NO_ERROR, "test", 300, 300, 1}, {NXDOMAIN, NULL, 0, 0, 3},
        {NXDOMAIN, "test", 300, 0, 3},   {NXDOMAIN, "test", 0, 300, 3},   {NXDOMAIN, "other", 300, 300, 3},
        {NXDOMAIN, "", 300, 300, 1},     {SERVFAIL, "test", 300, 300, 6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(answer_nothing_kept, NULL);
        nothing.code = cases[i].code;
        nothing.zone = cases[i].zone;
        nothing.ttl = cases[i].ttl;
        nothing.minimum = cases[i].minimum;
        if (asked_by(3, "a.test") != cases[i].asked)
            FAIL("case %zu: asked %d times", i, main_server.asked);
        CHECK_STR(ask("a.test", AF_INET), cases[i].code == SERVFAIL ? "RESOLVE EAGAIN" : "RESOLVE ENOENT");
        end();
    }
}

/*----------------------------------------------------------------------------
 * Aliases.
 *----------------------------------------------------------------------------*/

static int chain;

static void answer_alias(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    char from[32], to[32];
    for (int i = chain - 1; i >= 0; i--) { /* the last first: order does not matter */
        snprintf(from, sizeof from, "alias%d.test", i);
        snprintf(to, sizeof to, "Alias%d.Test", i + 1);
        put_alias(r, i ? from : NULL, to, 100);
    }
    snprintf(from, sizeof from, "ALIAS%d.test", chain);
    put_address(r, from, "192.0.2.9", 300);
    put_address(r, "unasked.test", "192.0.2.66", 300);
    say(s, r);
}

TEST(resolver_by_dns_follows_aliases_up_to_16)
{
    static const int lengths[] = {1, 3, 15, 16, 40};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        begin(answer_alias, OPTIONS(.attempts = 1));
        chain = lengths[i];
        CHECK_STR(ask("alias0.test", AF_INET), chain < 16 ? "192.0.2.9:80" : "RESOLVE EAGAIN");
        end();
    }
}

static void answer_alias_loop(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_alias(r, NULL, "b.test", 100);
    put_alias(r, "b.test", "a.test", 100);
    say(s, r);
}

TEST(resolver_by_dns_does_not_follow_aliases_in_circles)
{
    begin(answer_alias_loop, OPTIONS(.attempts = 1));
    CHECK_STR(ask("a.test", AF_INET), "RESOLVE EAGAIN");
    end();
}

/* An alias whose target is not in the answer: of "a3.test" it says that it is "a2.test", and so on to "a0.test", which
   has an address. "loop0.test" and "loop1.test" are each the other. */
static int left_out_ttl;

static void answer_left_out(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    char to[32];
    int number = q->name[strcspn(q->name, "0123456789")] - '0';
    if (strncmp(q->name, "loop", 4) == 0)
        snprintf(to, sizeof to, "Loop%d.test", !number);
    else if (strncmp(q->name, "long", 4) == 0)
        snprintf(to, sizeof to, "long%.*s0.test", (int)strcspn(q->name + 4, "."), q->name + 4);
    else
        snprintf(to, sizeof to, "A%d.Test", number - 1);
    if (strcmp(q->name, "a0.test") == 0)
        put_address(r, NULL, "192.0.2.8", 300);
    else
        put_alias(r, NULL, to, left_out_ttl);
    say(s, r);
}

TEST_EACH_POLLER(resolver_by_dns_asks_for_the_target_of_an_alias_that_was_left_out)
{
    left_out_ttl = 300;
    begin(answer_left_out, NULL);
    CHECK_STR(ask("a1.test", AF_INET), "192.0.2.8:80");
    CHECK_INT(main_server.asked, 2);
    CHECK_INT(asked_by(2, "a1.test"), 0); /* that is kept as a whole */
    CHECK_INT(asked_by(2, "a9.test"), 10);
    left_out_ttl = 0; /* for as long as the shortest-lived part of it says */
    CHECK_INT(asked_by(2, "a2.test"), 6);
    end();
}

TEST(resolver_by_dns_follows_left_out_aliases_up_to_16)
{
    left_out_ttl = 300;
    begin(answer_left_out, NULL);
    CHECK_STR(ask("long0.test", AF_INET), "RESOLVE EAGAIN");
    CHECK_INT(main_server.asked, 16);
    CHECK_STR(ask("loop0.test", AF_INET), "RESOLVE EAGAIN");
    CHECK_INT(main_server.asked, 32);
    end();
}

/* Names on the wire may have any bytes, and none at all. */
static void answer_odd_alias(server *s, const question *q)
{
    static const char *const odd[] = {"", "a b.c\\d", "\xc3\xa4.test"};
    reply *r = begun(q, NO_ERROR);
    int number = q->name[0] - '0';
    if (number >= 0 && number < 3)
        put_alias(r, NULL, odd[number], 300);
    else
        put_address(r, NULL, strcmp(q->name, odd[s->asked / 2 - 1]) ? "192.0.2.66" : "192.0.2.8", 300);
    say(s, r);
}

TEST(resolver_by_dns_asks_for_targets_of_any_bytes)
{
    begin(answer_odd_alias, NULL);
    CHECK_STR(ask("0.test", AF_INET), "192.0.2.8:80");
    CHECK_STR(ask("1.test", AF_INET), "192.0.2.8:80");
    CHECK_STR(ask("2.test", AF_INET), "192.0.2.8:80");
    CHECK_INT(main_server.asked, 6);
    end();
}

/* An alias whose target has no address: the server says so, or leaves that out, too. */
static void answer_alias_of_nothing(server *s, const question *q)
{
    reply *r = begun(q, strncmp(q->name, "nxdomain", 8) == 0 ? NXDOMAIN : NO_ERROR);
    if (strcmp(q->name, "target.test") != 0)
        put_alias(r, NULL, "target.test", 300);
    if (strncmp(q->name, "vague", 5) != 0)
        put_soa(r, "test", 300, 300);
    say(s, r);
}

TEST(resolver_by_dns_asks_for_no_target_of_which_it_was_told_that_there_is_none)
{
    begin(answer_alias_of_nothing, NULL);
    CHECK_INT(asked_by(2, "nxdomain.test"), 1);
    CHECK_INT(asked_by(2, "no-data.test"), 1);
    CHECK_INT(asked_by(2, "vague.test"), 2);
    CHECK_STR(ask("vague.test", AF_INET), "RESOLVE ENOENT");
    end();
}

static void answer_alias_only(server *s, const question *q)
{
    reply *r = begun(q, strcmp(q->name, "target.test") ? NO_ERROR : SERVFAIL);
    put_alias(r, NULL, "target.test", 300);
    say(s, r);
}

TEST(resolver_by_dns_asks_the_next_server_for_the_target_when_the_first_does_not_know_it)
{
    static server second;
    begin(answer_alias_only, NULL);
    server_start(&second, answer_any_a);
    tornado_resolver *both = asking(&main_server, &second, NULL);
    CHECK_STR(resolved(both, "example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 2);
    CHECK_INT(second.asked, 1);
    tornado_resolver_free(both);
    server_stop(&second);
    end();
}

/*----------------------------------------------------------------------------
 * Hostile replies: what is wrong is no answer, and the true one counts when it comes.
 *----------------------------------------------------------------------------*/

static reply *forged(const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, "192.0.2.66", 300);
    return r;
}

static void wrong_id(server *s, const question *q)
{
    reply *r = forged(q);
    r->data[0] ^= 1;
    say(s, r);
}

static void wrong_name(server *s, const question *q)
{
    reply *r = forged(q);
    r->data[13] = r->data[13] == 'z' ? 'y' : 'z';
    say(s, r);
}

static void wrong_type(server *s, const question *q)
{
    reply *r = forged(q);
    r->data[q->end - 3] ^= 29;
    say(s, r);
}

static void not_a_reply(server *s, const question *q)
{
    reply *r = forged(q);
    r->data[2] = 1;
    say(s, r);
}

static void no_question(server *s, const question *q)
{
    reply *r = forged(q);
    r->data[5] = 0;
    say(s, r);
}

static void garbage(server *s, const question *q)
{
    static const char text[] = "HTTP/1.1 200 OK\r\n\r\n";
    (void)q;
    say_bytes(s, text, 0);
    say_bytes(s, text, 1);
    say_bytes(s, text, 11);
    say_bytes(s, text, 12);
    say_bytes(s, text, sizeof text);
}

static void (*const foreign[])(server *, const question *) = {wrong_id,    wrong_name,  wrong_type,
                                                              not_a_reply, no_question, garbage};
static void (*lie)(server *, const question *);

static void answer_lie_first(server *s, const question *q)
{
    lie(s, q);
    answer_any_a(s, q);
}

static void answer_lie(server *s, const question *q)
{
    lie(s, q);
}

TEST(resolver_by_dns_takes_no_reply_that_is_not_to_its_question)
{
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        lie = foreign[i];
        begin(answer_lie_first, NULL);
        CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
        CHECK_INT(main_server.asked, 1);
        end();
        begin(answer_lie, OPTIONS(.timeout = 0.03, .attempts = 1));
        CHECK_STR(ask("example.com", AF_INET), "RESOLVE EAGAIN"); /* nothing else comes */
        end();
    }
}

static void answer_many_lies(server *s, const question *q)
{
    if (q->tcp) {
        answer_any_a(s, q);
        return;
    }
    for (int i = 0; i < 20; i++)
        wrong_id(s, q);
}

TEST(resolver_by_dns_asks_by_tcp_when_somebody_guesses)
{
    begin(answer_many_lies, NULL);
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 2);
    CHECK_INT(main_server.asked_by_tcp, 1);
    end();
}

static void answer_recased(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, q->tcp ? "192.0.2.1" : "192.0.2.66", 300);
    for (size_t i = 12; i < q->end - 4; i++)
        if ((r->data[i] | 32) >= 'a' && (r->data[i] | 32) <= 'z')
            r->data[i] |= 32; /* servers that do not keep the case do this */
    r->data[13] ^= (r->data[13] ^ q->data[13]) & 32 ? 0 : 32;
    say(s, r);
}

TEST(resolver_by_dns_asks_by_tcp_when_the_case_is_another)
{
    begin(answer_recased, NULL);
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked_by_tcp, 1);
    end();
}

static void servfail_thrice(server *s, const question *q)
{
    if (s->asked <= 3)
        say(s, begun(q, SERVFAIL));
    else
        answer_any_a(s, q);
}

/* Servers that answer in one case, and not by TCP, are asked in the one case. */
static void answer_in_lower_case(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, "192.0.2.1", 300);
    for (size_t i = 12; i < q->end - 4; i++)
        if (r->data[i] >= 'A' && r->data[i] <= 'Z')
            r->data[i] |= 32;
    say(s, r);
}

static void answer_in_upper_case(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, "192.0.2.1", 300);
    for (size_t i = 12; i < q->end - 4; i++)
        if (r->data[i] >= 'a' && r->data[i] <= 'z')
            r->data[i] &= (unsigned char)~32;
    say(s, r);
}

static void answer_in_lower_case_by_udp(server *s, const question *q)
{
    if (!q->tcp)
        answer_in_lower_case(s, q);
}

TEST(resolver_by_dns_does_without_case_where_a_server_has_neither_that_nor_tcp)
{
    static const struct {
        void (*answer)(server *, const question *);
        bool hangs_up;
        int asked;
    } cases[] = {{answer_in_lower_case, true, 2}, {answer_in_upper_case, true, 2},
                 {answer_in_lower_case_by_udp, false, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(cases[i].answer, OPTIONS(.timeout = 0.1, .attempts = 1));
        main_server.hangs_up = cases[i].hangs_up;
        CHECK_STR(ask("some-longer-name-with-letters.example.com", AF_INET), "192.0.2.1:80");
        CHECK_INT(main_server.accepted, 1);
        CHECK_INT(main_server.asked, cases[i].asked);
        end();
    }
}

TEST(resolver_by_dns_may_be_told_to_try_again_and_again)
{
    begin(servfail_thrice, OPTIONS(.attempts = INT_MAX));
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 4);
    end();
}

TEST(resolver_by_dns_asks_the_next_server_when_somebody_guesses_and_there_is_no_tcp)
{
    static server second;
    begin(answer_many_lies, NULL);
    main_server.hangs_up = true;
    server_start(&second, answer_any_a);
    tornado_resolver *both = asking(&main_server, &second, NULL);
    CHECK_STR(resolved(both, "example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    CHECK_INT(second.asked, 1);
    CHECK_INT(second.asked_by_tcp, 0); /* that is another server */
    tornado_resolver_free(both);
    server_stop(&second);
    end();
}

static void circle(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[7] = 1;
    put_16(r, 0xc000 | (int)r->len); /* a name that points to itself */
    put(r, "\0\1\0\1\0\0\1\0\0\4\1\2\3\4", 14);
    say(s, r);
}

static void circle_of_two(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    int at = (int)r->len;
    r->data[7] = 1;
    put_16(r, 0xc000 | (at + 2));
    put_16(r, 0xc000 | at);
    put(r, "\0\1\0\1\0\0\1\0\0\4\1\2\3\4", 14);
    say(s, r);
}

static void forward(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[7] = 1;
    put_16(r, 0xc000 | ((int)r->len + 16)); /* to a name that comes later */
    put(r, "\0\1\0\1\0\0\1\0\0\4\1\2\3\4", 14);
    put_name(r, "example.com");
    say(s, r);
}

static void beyond(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[7] = 1;
    put_16(r, 0xffff);
    put(r, "\0\1\0\1\0\0\1\0\0\4\1\2\3\4", 14);
    say(s, r);
}

static void reserved_label(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[7] = 1;
    put(r, "\x80" "a\0\0\1\0\1\0\0\1\0\0\4\1\2\3\4", 17);
    say(s, r);
}

static void name_too_long(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[7] = 1;
    for (int i = 0; i < 128; i++)
        put(r, "\1a", 2);
    put(r, "\0\0\1\0\1\0\0\1\0\0\4\1\2\3\4", 15);
    say(s, r);
}

static void length_beyond(server *s, const question *q)
{
    reply *r = forged(q);
    r->data[r->len - 6] = 0xff; /* of the record */
    say(s, r);
}

static void length_wrong(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_record(r, 6, NULL, A, 300, "\1\2\3", 3);
    say(s, r);
}

static void count_beyond(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[6] = r->data[7] = 0xff;
    say(s, r);
}

static void alias_cut(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_record(r, 6, NULL, CNAME, 300, "\3ab", 3);
    say(s, r);
}

static void servfail(server *s, const question *q)
{
    say(s, begun(q, SERVFAIL));
}

static void refused(server *s, const question *q)
{
    say(s, begun(q, 5));
}

/* A server that asks nobody else, and has no answer of its own. */
static void referral(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    r->data[3] = 0;
    put_record(r, 8, "com", 2, 300, "\2ns\0", 4);
    say(s, r);
}

static void cut_at_every_byte(server *s, const question *q)
{
    static size_t len;
    reply *r = forged(q);
    r->len = len++ % (r->len - 1);
    say(s, r);
}

static void (*const useless[])(server *, const question *) = {
    circle,       circle_of_two, forward,   beyond,  reserved_label, name_too_long,    length_beyond,
    length_wrong, count_beyond,  alias_cut, servfail, refused,        referral,         cut_at_every_byte};

TEST(resolver_by_dns_asks_the_next_server_when_a_reply_is_useless)
{
    for (size_t i = 0; i < sizeof useless / sizeof useless[0]; i++) {
        static server second;
        lie = useless[i];
        begin(answer_lie, OPTIONS(.timeout = 0.03, .attempts = 1));
        CHECK_STR(ask("example.com", AF_INET), "RESOLVE EAGAIN");
        server_start(&second, answer_any_a);
        double timeout = useless[i] == cut_at_every_byte ? 0.03 : 0;
        tornado_resolver *both = asking(&main_server, &second, OPTIONS(.timeout = timeout));
        CHECK_STR(resolved(both, "example.com", AF_INET), "192.0.2.1:80");
        CHECK_INT(second.asked, 1);
        tornado_resolver_free(both);
        server_stop(&second);
        end();
    }
}

TEST(resolver_by_dns_survives_a_reply_cut_at_every_byte)
{
    lie = cut_at_every_byte;
    begin(answer_lie, OPTIONS(.timeout = 0.005, .attempts = 1, .cache_size = TORNADO_NONE));
    for (int i = 0; i < 45; i++)
        CHECK_STR(ask("example.com", AF_INET), "RESOLVE EAGAIN");
    end();
}

static void answer_of_others(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    put_address(r, "bank.test", "192.0.2.66", 300);
    put_address(r, "b.example.com", "192.0.2.67", 300);
    put_alias(r, "bank.test", "example.com", 300);
    put_record(r, 6, NULL, 16, 300, "\3txt", 4);
    put_record(r, 8, NULL, A, 300, "\300\0\2\102", 4); /* in another section */
    say(s, r);
}

TEST(resolver_by_dns_takes_nothing_about_other_names)
{
    begin(answer_of_others, NULL);
    CHECK_STR(ask("example.com", AF_INET), "RESOLVE ENOENT");
    CHECK_INT(main_server.asked, 1);
    CHECK_STR(ask("bank.test", AF_INET), "192.0.2.66:80"); /* asked for itself */
    CHECK_INT(main_server.asked, 2);
    end();
}

static void answer_oversized(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    char ip[32];
    for (int i = 0; r->len < 60000; i++) {
        snprintf(ip, sizeof ip, "10.0.%d.%d", i / 250, i % 250);
        put_address(r, NULL, ip, 300);
    }
    say(s, r);
}

TEST(resolver_by_dns_takes_64_addresses_of_a_reply_that_is_too_large)
{
    begin(answer_oversized, NULL);
    const char *text = ask("example.com", AF_INET);
    int count = 1;
    for (const char *at = text; *at; at++)
        count += *at == ' ';
    CHECK_INT(count, 64);
    CHECK(strncmp(text, "10.0.0.0:80 10.0.0.1:80 ", 24) == 0);
    end();
}

/*----------------------------------------------------------------------------
 * By TCP, and without EDNS.
 *----------------------------------------------------------------------------*/

static void answer_truncated(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    if (!q->tcp)
        r->data[2] |= 2;
    put_address(r, NULL, q->tcp ? "192.0.2.1" : "192.0.2.66", 300);
    say(s, r);
}

TEST_EACH_POLLER(resolver_by_dns_asks_by_tcp_when_a_reply_is_truncated)
{
    begin(answer_truncated, NULL);
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 2);
    CHECK_INT(main_server.accepted, 1);
    end();
}

TEST(resolver_by_dns_asks_by_tcp_when_resolv_conf_says_so)
{
    begin(answer_any_a, NULL);
    write_text(conf_path, "options use-vc\n");
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked_by_tcp, 1);
    CHECK_INT(main_server.asked, 1);
    end();
}

static reply dribbled;
static size_t dribbled_len;

static void dribble(void *arg)
{
    server *s = arg;
    unsigned char head[2] = {(unsigned char)(dribbled.len >> 8), (unsigned char)dribbled.len};
    CHECK(send(s->connection, dribbled_len < 2 ? &head[dribbled_len] : &dribbled.data[dribbled_len - 2], 1,
               MSG_NOSIGNAL) == 1);
    if (++dribbled_len < dribbled.len + 2)
        CHECK(tornado_ioloop_add_callback(tornado_ioloop_current(), dribble, s));
}

static void answer_dribbling(server *s, const question *q)
{
    reply *r = begun(q, NO_ERROR);
    if (!q->tcp) {
        answer_truncated(s, q);
        return;
    }
    put_address(r, NULL, "192.0.2.1", 300);
    dribbled = *r;
    dribbled_len = 0;
    dribble(s);
}

TEST(resolver_by_dns_takes_a_reply_by_tcp_byte_by_byte)
{
    begin(answer_dribbling, NULL);
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    end();
}

/* Several replies in one connection: the first counts. */
static void answer_twice_by_tcp(server *s, const question *q)
{
    answer_truncated(s, q);
    if (q->tcp)
        say(s, forged(q));
}

static void answer_for_another_by_tcp(server *s, const question *q)
{
    if (q->tcp)
        wrong_id(s, q);
    answer_truncated(s, q);
}

static void answer_nothing_by_tcp(server *s, const question *q)
{
    if (q->tcp)
        say_bytes(s, "", 0);
    else
        answer_truncated(s, q);
}

TEST(resolver_by_dns_takes_the_first_reply_of_a_connection)
{
    static const struct {
        void (*answer)(server *, const question *);
        const char *result;
    } cases[] = {{answer_twice_by_tcp, "192.0.2.1:80"},
                 {answer_for_another_by_tcp, "RESOLVE EAGAIN"},
                 {answer_nothing_by_tcp, "RESOLVE EAGAIN"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(cases[i].answer, OPTIONS(.attempts = 1));
        CHECK_STR(ask("example.com", AF_INET), cases[i].result);
        CHECK_INT(main_server.accepted, 1);
        end();
    }
}

static int hang_up_after;

static void answer_hanging_up(server *s, const question *q)
{
    if (!q->tcp) {
        answer_truncated(s, q);
        return;
    }
    reply *r = begun(q, NO_ERROR);
    put_address(r, NULL, "192.0.2.66", 300);
    unsigned char whole[100] = {0, (unsigned char)r->len};
    memcpy(whole + 2, r->data, r->len);
    CHECK(hang_up_after < (int)r->len + 2);
    CHECK(send(s->connection, whole, (size_t)hang_up_after, MSG_NOSIGNAL) == hang_up_after);
    s->connection = -1; /* and it is closed */
}

TEST(resolver_by_dns_asks_the_next_server_when_a_connection_ends_early)
{
    static const int cuts[] = {0, 1, 2, 3, 14, 40};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        static server second;
        hang_up_after = cuts[i];
        begin(answer_hanging_up, NULL);
        server_start(&second, answer_any_a);
        tornado_resolver *both = asking(&main_server, &second, NULL);
        CHECK_STR(resolved(both, "example.com", AF_INET), "192.0.2.1:80");
        CHECK_INT(second.asked, 1);
        tornado_resolver_free(both);
        server_stop(&second);
        end();
    }
}

static void answer_silent_by_tcp(server *s, const question *q)
{
    if (!q->tcp)
        answer_truncated(s, q);
}

TEST(resolver_by_dns_waits_for_tcp_no_longer_than_its_timeout)
{
    begin(answer_silent_by_tcp, OPTIONS(.timeout = 0.03, .attempts = 2));
    CHECK_STR(ask("example.com", AF_INET), "RESOLVE EAGAIN");
    CHECK(main_server.accepted >= 1);
    end();
}

static void answer_without_edns(server *s, const question *q)
{
    if (q->edns)
        say(s, begun(q, FORMERR));
    else
        answer_any_a(s, q);
}

static void answer_notimp_to_edns(server *s, const question *q)
{
    if (q->edns)
        say(s, begun(q, NOTIMP));
    else
        answer_any_a(s, q);
}

static void answer_without_edns_and_question(server *s, const question *q)
{
    reply *r = begun(q, FORMERR);
    r->data[5] = 0;
    r->len = 12;
    if (q->edns)
        say(s, r);
    else
        answer_any_a(s, q);
}

TEST(resolver_by_dns_asks_without_edns_a_server_that_does_not_know_it)
{
    begin(answer_without_edns, NULL);
    CHECK_STR(ask("example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 2);
    main_server.answer = answer_without_edns_and_question;
    CHECK_STR(ask("b.example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 4);
    main_server.answer = answer_notimp_to_edns;
    CHECK_STR(ask("c.example.com", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 6);
    end();
}

static void answer_formerr(server *s, const question *q)
{
    say(s, begun(q, FORMERR));
}

TEST(resolver_by_dns_asks_without_edns_only_once)
{
    begin(answer_formerr, OPTIONS(.attempts = 1));
    CHECK_STR(ask("example.com", AF_INET), "RESOLVE EAGAIN");
    CHECK_INT(main_server.asked, 2);
    end();
}

/*----------------------------------------------------------------------------
 * Servers that do not answer.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(resolver_by_dns_gives_up_when_no_server_answers)
{
    begin(NULL, OPTIONS(.timeout = 0.02, .attempts = 3));
    tornado_future *future = tornado_resolver_resolve(main_resolver, "example.com", 80, AF_INET);
    const tornado_error *error = loop_until(future);
    CHECK(is_error(error, TORNADO_ERR_RESOLVE));
    CHECK_STR(error->message, "cannot resolve \"example.com\": no name server answered");
    CHECK_INT(error->sys_errno, EAGAIN);
    CHECK_INT(main_server.asked, 3);
    tornado_future_release(future);
    end();
}

TEST(resolver_by_dns_asks_a_silent_server_last_for_a_while)
{
    static server second;
    begin(NULL, NULL);
    server_start(&second, answer_any);
    tornado_resolver *both = asking(&main_server, &second, OPTIONS(.timeout = 0.05));
    CHECK_STR(resolved(both, "a.test", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    CHECK_STR(resolved(both, "b.test", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    CHECK_INT(second.asked, 2);
    tornado_resolver_free(both);
    server_stop(&second);
    end();
}

TEST(resolver_by_dns_does_not_wait_for_a_server_that_is_not_there)
{
    static server second;
    begin(NULL, NULL);
    server gone = main_server;
    server_start(&second, answer_any);
    int port, listener = listen_loopback(&port);
    close(listener);
    snprintf(gone.text, sizeof gone.text, "127.0.0.1:%d", port);
    tornado_resolver *both = asking(&gone, &second, OPTIONS(.timeout = 1000));
    CHECK_STR(resolved(both, "a.test", AF_INET), "192.0.2.1:80");
    tornado_resolver_free(both);
    server_stop(&second);
    end();
}

TEST(resolver_by_dns_takes_turns_when_resolv_conf_says_so)
{
    static server second;
    char name[32];
    begin(answer_any, NULL);
    server_start(&second, answer_any);
    write_text(conf_path, "options rotate\n");
    tornado_resolver *both = asking(&main_server, &second, NULL);
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "name%d.test", i);
        CHECK_STR(resolved(both, name, AF_INET), "192.0.2.1:80");
    }
    CHECK_INT(main_server.asked, 3);
    CHECK_INT(second.asked, 3);
    tornado_resolver_free(both);
    server_stop(&second);
    end();
}

/* Else a name would be another one whenever a server is slow. */
static void answer_all_but(server *s, const question *q)
{
    if (strcmp(q->name, "failing.one.test") == 0)
        say(s, begun(q, SERVFAIL));
    else if (strcmp(q->name, "silent.one.test") != 0)
        answer_any(s, q);
}

TEST(resolver_by_dns_searches_no_further_when_no_server_answers)
{
    begin(answer_all_but, OPTIONS(.timeout = 0.03, .attempts = 1));
    write_text(conf_path, "search one.test two.test\n");
    CHECK_STR(ask("silent", AF_INET), "RESOLVE EAGAIN");
    CHECK_INT(main_server.asked, 1);
    CHECK_STR(ask("failing", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 3);
    end();
}

TEST(resolver_by_dns_says_why_no_server_answers)
{
    int port, listener = listen_loopback(&port);
    server gone = {.port = port};
    files_new("", "");
    close(listener);
    snprintf(gone.text, sizeof gone.text, "127.0.0.1:%d", port);
    main_resolver = asking(&gone, NULL, NULL);
    tornado_future *future = tornado_resolver_resolve(main_resolver, "a.test", 80, AF_INET);
    const tornado_error *error = loop_until(future);
    CHECK(is_error(error, TORNADO_ERR_RESOLVE));
    CHECK_STR(error->message, "cannot resolve \"a.test\": no name server answered: Connection refused");
    CHECK_INT(error->sys_errno, EAGAIN);
    tornado_future_release(future);
    tornado_resolver_free(main_resolver);
    files_free();
}

static void answer_one_name(server *s, const question *q)
{
    CHECK_STR(q->name, "db.example");
    answer_any(s, q);
}

TEST(resolver_by_dns_searches_no_further_when_memory_is_short)
{
    bool hit = true;
    for (long n = 1; hit; n++) {
        begin(answer_one_name, NULL);
        write_text(conf_path, "search one.test\n");
        const char *found = ask_in_shortage("db.example", n, &hit);
        if (strcmp(found, "NOMEM ") != 0 && strcmp(found, "RESOLVE EAGAIN") != 0)
            CHECK_STR(found, "192.0.2.1:80");
        CHECK_STR(ask("db.example", AF_INET), "192.0.2.1:80");
        end();
    }
}

static void answer_one_family(server *s, const question *q)
{
    if (q->type == A)
        answer_any(s, q);
}

TEST(resolver_by_dns_does_not_wait_for_the_other_family_for_long)
{
    begin(answer_one_family, OPTIONS(.timeout = 1000));
    CHECK_STR(ask("example.com", 0), "192.0.2.1:80");
    CHECK_STR(ask("example.com", 0), "192.0.2.1:80"); /* nor when the first is known already */
    CHECK_INT(main_server.asked, 2);
    end();
}

/* Nothing of it may be left over, and nobody is left waiting. */
TEST(resolver_by_dns_that_is_freed_ends_its_lookups)
{
    for (int loop_first = 0; loop_first < 2; loop_first++) {
        begin(answer_silent_by_tcp, NULL);
        tornado_future *futures[300];
        char name[32];
        for (int i = 0; i < 300; i++) {
            snprintf(name, sizeof name, "name%d.test", i);
            futures[i] = tornado_resolver_resolve(main_resolver, name, 80, 0);
        }
        UNTIL(main_server.accepted > 3);
        if (loop_first)
            break;
        tornado_resolver_free(main_resolver);
        main_resolver = NULL;
        for (int i = 0; i < 300; i++)
            CHECK_INT(loop_code(futures[i]), TORNADO_ERR_CLOSED);
        end();
    }
    TEST_MAY_LEAK(); /* futures of a loop that is closed, of which this test has no list */
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_resolver_free(main_resolver);
    close(main_server.udp);
    close(main_server.tcp);
    files_free();
}

TEST_EACH_POLLER(resolver_by_dns_keeps_what_nobody_waits_for_any_more)
{
    begin(answer_any, NULL);
    tornado_future_release(tornado_resolver_resolve(main_resolver, "a.test", 80, AF_INET));
    UNTIL(main_server.asked == 1);
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK_INT(main_server.asked, 1);
    tornado_future_release(tornado_resolver_resolve(main_resolver, "b.test", 80, 0)); /* and with that it is freed */
    end();
}

TEST(resolver_by_dns_has_10000_lookups_under_way_at_most)
{
    enum { MOST = 10000 };
    static tornado_future *futures[MOST];
    char name[32];
    begin(NULL, NULL);
    for (int i = 0; i < MOST; i++) {
        snprintf(name, sizeof name, "name%d.test", i % 500);
        futures[i] = tornado_resolver_resolve(main_resolver, name, 80, AF_INET);
    }
    CHECK_STR(ask("one.more", AF_INET), "LIMIT ");
    CHECK_STR(ask("localhost", AF_INET), "127.0.0.1:80"); /* of which nobody is asked */
    tornado_resolver_free(main_resolver);
    main_resolver = NULL;
    for (int i = 0; i < MOST; i++)
        CHECK_INT(loop_code(futures[i]), TORNADO_ERR_CLOSED);
    end();
}

TEST(resolver_by_dns_out_of_descriptors_says_so_and_goes_on)
{
    struct rlimit limit;
    begin(answer_any, NULL);
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    tornado_future *future = tornado_resolver_resolve(main_resolver, "b.test", 80, AF_INET);
    const tornado_error *error = loop_until(future);
    CHECK(is_error(error, TORNADO_ERR_RESOLVE));
    CHECK_INT(error->sys_errno, EAGAIN);
    CHECK(strstr(error->message, strerror(EMFILE)) != NULL);
    tornado_future_release(future);
    limit.rlim_cur = before;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_STR(ask("b.test", AF_INET), "192.0.2.1:80");
    end();
}

TEST(resolver_by_dns_out_of_descriptors_gives_up_however_often_it_may_try)
{
    struct rlimit limit;
    begin(answer_any, OPTIONS(.attempts = INT_MAX));
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_STR(ask("b.test", AF_INET), "RESOLVE EAGAIN"); /* at once: the loop stands still meanwhile */
    limit.rlim_cur = before;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_STR(ask("b.test", AF_INET), "192.0.2.1:80");
    end();
}

TEST(resolver_by_dns_out_of_descriptors_says_that_it_gets_no_loop)
{
    struct rlimit before, none;
    CHECK(tornado_ioloop_close(tornado_ioloop_current(), false));
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(!tornado_resolver_new(OPTIONS(.kind = &tornado_dns_resolver)));
    tornado_error error = *tornado_last_error();
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_INT(error.code, TORNADO_ERR_SYSTEM);
    CHECK_INT(error.sys_errno, EMFILE);
}

TEST(resolver_by_dns_out_of_descriptors_keeps_what_the_files_said)
{
    struct rlimit limit;
    begin(answer_any, NULL);
    write_text(hosts_path, "127.0.0.5 five\n");
    write_text(conf_path, "search one.test\n");
    CHECK_STR(ask("five", AF_INET), "127.0.0.5:80");
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80");
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_STR(ask("five", AF_INET), "127.0.0.5:80");
    CHECK_STR(ask("a.test", AF_INET), "192.0.2.1:80"); /* which another resolv.conf would have it forget */
    limit.rlim_cur = before;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_STR(ask("five", AF_INET), "127.0.0.5:80");
    CHECK_INT(main_server.asked, 1);
    CHECK(unlink(hosts_path) == 0);
    CHECK_STR(ask("five", AF_INET), "192.0.2.1:80");
    end();
}

static void *resolve_and_wait(void *arg)
{
    const tornado_addresses *found = tornado_await(tornado_resolver_resolve(main_resolver, arg, 80, AF_INET));
    CHECK_INT(found->count, 1);
    return NULL;
}

TEST(resolver_result_lives_as_long_as_its_scope)
{
    begin(answer_any, NULL);
    run(resolve_and_wait, (void *)(uintptr_t)"example.com");
    end();
}

/* Asks a port that nobody listens on. */
static void resolve_in_shortage(void)
{
    const char *servers[] = {main_server.text, NULL};
    tornado_resolver_options options = {.kind = &tornado_dns_resolver, .resolv_conf = conf_path, .hosts = hosts_path,
                                        .nameservers = servers};
    tornado_resolver *resolver = tornado_resolver_new(&options);
    for (int i = 0; i < 3 && resolver; i++) {
        static const char *const names[] = {"a", "localhost", "x"};
        tornado_future *future = tornado_resolver_resolve(resolver, names[i], 80, 0);
        for (int turns = 0; !tornado_future_done(future) && turns < 100; turns++)
            tornado_ioloop_run_once(tornado_ioloop_current(), 0.1);
        CHECK(tornado_future_done(future));
        tornado_future_release(future);
    }
    tornado_resolver_free(resolver);
}

/* Threads allocate when they like, so nobody is asked. */
static void open_in_shortage(void)
{
    static const tornado_resolver_override rows[] = {{.host = "a", .to = "127.0.0.1"}, {.host = NULL}};
    for (int kind = 0; kind < KINDS; kind++) {
        tornado_resolver *resolver = tornado_resolver_new(OPTIONS(.kind = kinds[kind], .overrides = rows));
        if (!resolver)
            continue;
        tornado_future *future = tornado_resolver_resolve(resolver, "127.0.0.1", 80, 0);
        CHECK(tornado_future_done(future));
        const tornado_error *error = tornado_future_error(future);
        CHECK(!error || error->code == TORNADO_ERR_NOMEM);
        tornado_future_release(future);
        tornado_resolver_free(resolver);
    }
}

TEST(resolver_of_each_kind_leaks_nothing_whichever_allocation_fails)
{
    each_shortage(open_in_shortage);
}

TEST(resolver_by_dns_leaks_nothing_whichever_allocation_fails)
{
    int port, listener = listen_loopback(&port);
    close(listener);
    snprintf(main_server.text, sizeof main_server.text, "127.0.0.1:%d", port);
    files_new("search one.test\n", "127.0.0.1 x\n127.0.0.2 y\n");
    each_shortage(resolve_in_shortage);
    files_free();
}

/*----------------------------------------------------------------------------
 * The order of addresses, in a network of the test's own.
 *----------------------------------------------------------------------------*/

#ifdef __linux__

/* Gives the loopback an address of IPv6. */
static void network_six(int fd, const char *ip, unsigned bits)
{
    struct {
        struct in6_addr address;
        uint32_t bits;
        int interface;
        char rest[sizeof(struct ifreq)]; /* for who thinks that it is one */
    } request = {.bits = bits, .interface = (int)if_nametoindex("lo")};
    CHECK(inet_pton(AF_INET6, ip, &request.address) == 1);
    if (ioctl(fd, SIOCSIFADDR, &request) != 0)
        SKIP("no address of IPv6 can be set: %s", strerror(errno));
}

/* A network that has nothing but a loopback, with addresses, 10.0.0.1 one of them, and where all of IPv6 is. */
static void network_new(const char *const *six)
{
    struct ifreq four = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    struct sockaddr_in ip = {.sin_family = AF_INET};
    struct in6_rtmsg route = {.rtmsg_flags = RTF_UP, .rtmsg_metric = 1024};
    if (test_emulated())
        SKIP("QEMU does not know all of these calls");
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
        SKIP("a process may have no network of its own here: %s", strerror(errno));
    int fd = socket(AF_INET, SOCK_DGRAM, 0), fd6 = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd6 < 0)
        SKIP("there is no IPv6 here");
    CHECK(fd >= 0);
    if (ioctl(fd, SIOCSIFFLAGS, &four) != 0)
        SKIP("a network of one's own cannot be set up: %s", strerror(errno));
    ip.sin_addr.s_addr = htonl(0x0a000001);
    strcpy(four.ifr_name, "lo:1");
    memcpy(&four.ifr_addr, &ip, sizeof ip);
    CHECK(ioctl(fd, SIOCSIFADDR, &four) == 0);
    for (; *six; six++)
        network_six(fd6, *six, strchr(*six, '8') ? 33 : 64);
    route.rtmsg_ifindex = (int)if_nametoindex("lo");
    if (ioctl(fd6, SIOCADDRT, &route) != 0)
        SKIP("no route of IPv6 can be set: %s", strerror(errno));
    close(fd);
    close(fd6);
}

/* Looks up a name that a hosts file gives addresses, in words, in their order. */
static void check_order(const char *given, const char *want)
{
    char text[512], *at = text;
    size_t len = 0;
    snprintf(text, sizeof text, "%s", given);
    files_new("", "");
    FILE *file = fopen(hosts_path, "w");
    CHECK(file != NULL);
    for (char *word; (word = strtok(at, " ")) != NULL; at = NULL)
        fprintf(file, "%s a\n", word);
    CHECK(fclose(file) == 0);
    main_resolver = asking(NULL, NULL, NULL);
    tornado_future *future = tornado_resolver_resolve(main_resolver, "a", 0, 0);
    CHECK(loop_until(future) == NULL);
    const tornado_addresses *found = tornado_future_result(future);
    for (size_t i = 0; i < found->count; i++) {
        char ip[TORNADO_ADDRESS_MAX];
        tornado_address_format(&found->items[i], ip);
        bool six = *ip == '[';
        ip[strlen(ip) - (six ? 3 : 2)] = '\0';
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", i ? " " : "", ip + six);
    }
    tornado_future_release(future);
    tornado_resolver_free(main_resolver);
    CHECK_STR(text, want);
    files_free();
}

TEST(resolver_by_dns_puts_the_best_address_first)
{
    static const char *const own[] = {"2001:db8:1::1", "2001:db8:8000::1", "fd00:1::1", "fe80::1", NULL};
    static const struct {
        const char *given, *want; /* by the rules of RFC 6724 section 6 */
    } cases[] = {
        {"192.0.2.9 10.0.0.9 192.0.2.8", "192.0.2.9 10.0.0.9 192.0.2.8"},          /* nothing to choose from */
        {"192.0.2.9 2001:db8:1::9", "2001:db8:1::9 192.0.2.9"},                    /* 1: no way to the first */
        {"192.0.2.9 10.0.0.9 fd00:1::9", "10.0.0.9 fd00:1::9 192.0.2.9"},          /* 1, then 6 */
        {"ff01::1 ff0e::1", "ff0e::1 ff01::1"},                                    /* 2: from where scopes differ */
        {"2002:c000:204::1 fd00:1::9", "fd00:1::9 2002:c000:204::1"},              /* 5: from another label */
        {"fd00:1::9 10.0.0.9 2001:db8:1::9 ::1", "::1 2001:db8:1::9 10.0.0.9 fd00:1::9"}, /* 6 */
        {"2001:db8:1::9 fe80::9%lo", "fe80::9%lo 2001:db8:1::9"},                  /* 8: the nearer one */
        {"2001:db8:ffff::9 2001:db8:8000::9", "2001:db8:8000::9 2001:db8:ffff::9"}, /* 9: more bits in common */
        {"2001:db8:1::7 2001:db8:1::8 2001:db8:1::9", "2001:db8:1::7 2001:db8:1::8 2001:db8:1::9"}, /* 10 */
        {"10.0.0.9 2001:db8:1::9 10.0.0.8 2001:db8:1::8", "2001:db8:1::9 2001:db8:1::8 10.0.0.9 10.0.0.8"},
    };
    network_new(own);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_order(cases[i].given, cases[i].want);
}

/* The usual way to have IPv6 and no use of it. */
TEST(resolver_by_dns_prefers_ipv4_to_ipv6_from_a_private_address)
{
    static const char *const own[] = {"fd00:1::1", NULL};
    network_new(own);
    check_order("2001:db8:1::9 10.0.0.9", "10.0.0.9 2001:db8:1::9");
    check_order("2001:db8:1::9 127.0.0.9 ::1", "::1 127.0.0.9 2001:db8:1::9");
}

#endif

/*----------------------------------------------------------------------------
 * A real server.
 *----------------------------------------------------------------------------*/

static pid_t dnsmasq;

/* Runs dnsmasq on a free port of 127.0.0.1, with what a file says, and gives a resolver that asks it. */
static tornado_resolver *dnsmasq_start(const char *records)
{
    static char port_text[32];
    server probe;
    TEST_NEED("dnsmasq");
    files_new("", "");
    server_start(&probe, NULL); /* a port that is free for both */
    server_stop(&probe);
    char path[100], conf[120];
    snprintf(path, sizeof path, "%s/dnsmasq", directory);
    write_text(path, records);
    snprintf(conf, sizeof conf, "--conf-file=%s", path);
    snprintf(port_text, sizeof port_text, "--port=%d", probe.port);
    fflush(NULL);
    if ((dnsmasq = fork()) == 0) {
        execlp("dnsmasq", "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--listen-address=127.0.0.1",
               "--bind-interfaces", "--pid-file=", "--user=", "--group=", "--local-ttl=60", port_text, conf,
               (char *)NULL);
        _exit(127);
    }
    CHECK(dnsmasq > 0);
    for (int fd = -1; fd < 0;) { /* it listens */
        struct sockaddr_in address = loopback(probe.port);
        int status;
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (waitpid(dnsmasq, &status, WNOHANG) != 0)
            FAIL("dnsmasq ends: %d", status);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
            close(fd);
            fd = -1;
            loop_run_for(0.01);
        } else {
            close(fd);
        }
    }
    unlink(path);
    return main_resolver = asking(&probe, NULL, NULL);
}

static void dnsmasq_stop(void)
{
    kill(dnsmasq, SIGKILL);
    CHECK(waitpid(dnsmasq, NULL, 0) == dnsmasq);
    tornado_resolver_free(main_resolver);
    files_free();
}

TEST(resolver_by_dns_understands_dnsmasq)
{
    static const struct {
        const char *host;
        int family;
        const char *result;
    } cases[] = {
        {"four.test", AF_INET, "192.0.2.4:80"},        {"four.test", AF_INET6, "RESOLVE ENOENT"},
        {"four.test", 0, "192.0.2.4:80"},              {"six.test", 0, "[2001:db8::6]:80"},
        {"Alias.Test", AF_INET, "192.0.2.4:80"},       {"none.test", 0, "RESOLVE ENOENT"},
        {"any.wild.test", AF_INET, "192.0.2.99:80"},   {"two.test.", AF_INET6, "[2001:db8::2]:80"},
        {"second.alias.test", AF_INET, "192.0.2.4:80"}, {"refused.example", AF_INET, "RESOLVE EAGAIN"},
    };
    dnsmasq_start("local=/test/\nhost-record=four.test,192.0.2.4\nhost-record=six.test,2001:db8::6\n"
                  "host-record=two.test,192.0.2.2,2001:db8::2\ncname=alias.test,four.test\n"
                  "cname=second.alias.test,alias.test\naddress=/wild.test/192.0.2.99\n");
    for (int again = 0; again < 2; again++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            CHECK_STR(ask(cases[i].host, cases[i].family), cases[i].result);
    dnsmasq_stop();
}

/* dnsmasq leaves out what an alias stands for where that is a pattern, and, as the server of a zone, another alias. */
TEST(resolver_by_dns_asks_dnsmasq_for_the_target_of_an_alias)
{
    dnsmasq_start("local=/test/\naddress=/wild.test/192.0.2.99\ncname=alias.test,any.wild.test\n");
    CHECK_STR(ask("alias.test", AF_INET), "192.0.2.99:80");
    CHECK_STR(ask("alias.test", 0), "192.0.2.99:80");
    dnsmasq_stop();
    dnsmasq_start("auth-server=ns.zone.test,lo\nauth-zone=zone.test\nauth-zone=other.test\n"
                  "host-record=last.other.test,192.0.2.98\ncname=one.zone.test,two.zone.test\n"
                  "cname=two.zone.test,three.other.test\ncname=three.other.test,last.other.test\n"
                  "cname=dead.zone.test,none.zone.test\n");
    CHECK_STR(ask("one.zone.test", AF_INET), "192.0.2.98:80");
    CHECK_STR(ask("one.zone.test", AF_INET6), "RESOLVE ENOENT");
    CHECK_STR(ask("dead.zone.test", 0), "RESOLVE ENOENT");
    CHECK_STR(ask("one.elsewhere.test", AF_INET), "RESOLVE EAGAIN"); /* it asks nobody */
    dnsmasq_stop();
}

TEST(resolver_by_dns_asks_dnsmasq_by_tcp_for_what_is_too_long)
{
    static char records[8192];
    size_t len = 0;
    for (int i = 1; i <= 120; i++)
        len += (size_t)snprintf(records + len, sizeof records - len, "address=/many.test/10.1.1.%d\n", i);
    dnsmasq_start(records);
    const char *text = ask("many.test", AF_INET);
    int count = 0;
    for (const char *at = text; (at = strstr(at, "10.1.1.")) != NULL; at++)
        count++;
    CHECK_INT(count, 64); /* those that are used of 120 */
    dnsmasq_stop();
}
