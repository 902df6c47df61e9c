/* Sockets for datagrams: what goes through them, who gets it, what waits, and what the system refuses. */
#include "faults.h"
#include "runtime.h"

#include "http_client.h"

#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

static tornado_address ip_address(const char *ip, int port)
{
    tornado_address address;
    CHECK(tornado_address_ip(&address, ip, port));
    return address;
}

static tornado_address local_of(const tornado_datagram_socket *s)
{
    tornado_address address;
    CHECK(tornado_address_local(&address, tornado_datagram_socket_fileno(s)));
    return address;
}

static tornado_datagram_socket *opened(const tornado_datagram_options *options)
{
    tornado_datagram_socket *s = tornado_datagram_socket_new(options);
    if (!s)
        FAIL("it cannot be opened: %s", tornado_last_error()->message);
    return s;
}

/* One that is bound to a free port of 127.0.0.1, and one that is connected to it. */
typedef struct pair {
    tornado_datagram_socket *server, *client;
    tornado_address server_address, client_address;
} pair;

static pair pair_of(const char *ip)
{
    pair p;
    tornado_address any = ip_address(ip, 0);
    p.server = opened(&(tornado_datagram_options){.local = &any});
    p.server_address = local_of(p.server);
    p.client = opened(&(tornado_datagram_options){.peer = &p.server_address});
    p.client_address = local_of(p.client);
    return p;
}

static void pair_free(pair *p)
{
    tornado_datagram_socket_free(p->server);
    tornado_datagram_socket_free(p->client);
}

static void send_text(tornado_datagram_socket *s, const char *text)
{
    CHECK_INT(loop_code(tornado_datagram_socket_send(s, tornado_bytes_of(text))), TORNADO_OK);
}

/* Waits for a future of a datagram, which has to be this one, and uses it up. */
static void check_text(tornado_future *future, const char *text)
{
    const tornado_error *error = loop_until(future);
    if (error)
        FAIL("instead of \"%s\": %s", text, error->message);
    const tornado_datagram *d = tornado_future_result(future);
    CHECK_STR(d->data.data, text); /* there is a NUL behind it */
    CHECK_INT(d->data.len, strlen(text));
    CHECK(!d->truncated);
    tornado_future_release(future);
}

static void check_from(const tornado_address *got, const tornado_address *want)
{
    char a[TORNADO_ADDRESS_MAX], b[TORNADO_ADDRESS_MAX];
    CHECK_STR(tornado_address_format(got, a), tornado_address_format(want, b));
}

static bool have_ipv6(void)
{
    tornado_address any = ip_address("::1", 0);
    tornado_datagram_socket *s = tornado_datagram_socket_new(&(tornado_datagram_options){.local = &any});
    tornado_datagram_socket_free(s);
    return s != NULL;
}

/*----------------------------------------------------------------------------
 * What goes through.
 *----------------------------------------------------------------------------*/

/* A question to a bound socket and an answer to where it came from. */
static void check_exchange(pair *p)
{
    tornado_future *future = tornado_datagram_socket_receive(p->server);
    CHECK(!tornado_future_done(future));
    send_text(p->client, "question");
    CHECK(loop_until(future) == NULL);
    const tornado_datagram *d = tornado_future_result(future);
    CHECK_MEM(d->data.data, d->data.len, "question", 8);
    check_from(&d->from, &p->client_address);
    CHECK_INT(loop_code(tornado_datagram_socket_send_to(p->server, &d->from, tornado_bytes_of("answer"))), TORNADO_OK);
    tornado_future_release(future);
    future = tornado_datagram_socket_receive(p->client);
    CHECK(loop_until(future) == NULL);
    check_from(&((const tornado_datagram *)tornado_future_result(future))->from, &p->server_address);
    check_text(tornado_future_retain(future), "answer");
    tornado_future_release(future);
}

TEST_EACH_POLLER(datagrams_go_both_ways_over_ipv4)
{
    pair p = pair_of("127.0.0.1");
    check_exchange(&p);
    pair_free(&p);
}

TEST_EACH_POLLER(datagrams_go_both_ways_over_ipv6)
{
    if (!have_ipv6())
        SKIP("there is no IPv6 here");
    pair p = pair_of("::1");
    check_exchange(&p);
    pair_free(&p);
}

/* A directory that is there for this test alone, with two unix sockets in it. */
typedef struct place {
    char directory[64], server[80], client[80];
} place;

static place place_new(void)
{
    place at;
    snprintf(at.directory, sizeof at.directory, "/tmp/tornado-test-XXXXXX");
    CHECK(mkdtemp(at.directory) != NULL);
    snprintf(at.server, sizeof at.server, "%s/server", at.directory);
    snprintf(at.client, sizeof at.client, "%s/client", at.directory);
    return at;
}

static void place_free(place *at)
{
    unlink(at->server);
    unlink(at->client);
    CHECK(rmdir(at->directory) == 0);
}

static pair unix_pair(const place *at, const tornado_datagram_options *client)
{
    pair p;
    tornado_datagram_options options = *client;
    CHECK(tornado_address_unix(&p.server_address, at->server) && tornado_address_unix(&p.client_address, at->client));
    p.server = opened(&(tornado_datagram_options){.local = &p.server_address});
    options.local = &p.client_address;
    options.peer = &p.server_address;
    p.client = opened(&options);
    return p;
}

TEST_EACH_POLLER(datagrams_go_both_ways_over_unix_sockets)
{
    struct stat status;
    place at = place_new();
    pair p = unix_pair(&at, &(tornado_datagram_options){.unix_mode = 0620});
    check_exchange(&p);
    CHECK(stat(at.server, &status) == 0 && S_ISSOCK(status.st_mode));
    CHECK_INT(status.st_mode & 0777, 0600);
    CHECK(stat(at.client, &status) == 0);
    CHECK_INT(status.st_mode & 0777, 0620);
    pair_free(&p);
    place_free(&at);
}

TEST(datagrams_without_a_name_have_no_sender)
{
    place at = place_new();
    tornado_address address;
    char text[TORNADO_ADDRESS_MAX];
    CHECK(tornado_address_unix(&address, at.server));
    tornado_datagram_socket *server = opened(&(tornado_datagram_options){.local = &address});
    tornado_datagram_socket *client = opened(&(tornado_datagram_options){.peer = &address});
    send_text(client, "who?");
    tornado_future *future = tornado_datagram_socket_receive(server);
    CHECK(loop_until(future) == NULL);
    CHECK_STR(tornado_address_format(&((const tornado_datagram *)tornado_future_result(future))->from, text), "(none)");
    tornado_future_release(future);
    tornado_datagram_socket_free(server);
    tornado_datagram_socket_free(client);
    place_free(&at);
}

TEST(datagrams_of_any_length_come_whole)
{
    static const size_t sizes[] = {0, 1, 512, 1472, 9000, 60000};
    static char data[60000];
    pair p = pair_of("127.0.0.1");
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 7);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        tornado_bytes bytes = {data, sizes[i]};
        CHECK_INT(loop_code(tornado_datagram_socket_send(p.client, bytes)), TORNADO_OK);
        tornado_future *future = tornado_datagram_socket_receive(p.server);
        CHECK(loop_until(future) == NULL);
        const tornado_datagram *d = tornado_future_result(future);
        CHECK_MEM(d->data.data, d->data.len, data, sizes[i]);
        CHECK(d->data.data[d->data.len] == '\0' && !d->truncated);
        tornado_future_release(future);
    }
    pair_free(&p);
}

TEST(datagrams_longer_than_the_room_for_them_are_told_as_cut)
{
    static char data[70000];
    place at = place_new();
    pair p = unix_pair(&at, &(tornado_datagram_options){.unix_mode = 0});
    memset(data, 'a', sizeof data);
    if (loop_code(tornado_datagram_socket_send(p.client, (tornado_bytes){data, sizeof data})) != TORNADO_OK)
        SKIP("the system takes no datagram that is longer");
    tornado_future *future = tornado_datagram_socket_receive(p.server);
    CHECK(loop_until(future) == NULL);
    const tornado_datagram *d = tornado_future_result(future);
    CHECK(d->truncated);
    CHECK_MEM(d->data.data, d->data.len, data, 65536);
    tornado_future_release(future);
    pair_free(&p);
    place_free(&at);
}

static int echoes;

static void *echo(void *arg)
{
    tornado_scope scope;
    while (arg) { /* until it is closed */
        tornado_scope_enter(&scope);
        const tornado_datagram *d = tornado_await(tornado_datagram_socket_receive(arg));
        tornado_await(tornado_datagram_socket_send_to(arg, &d->from, d->data));
        tornado_scope_leave(&scope);
        echoes++;
    }
    return NULL;
}

TEST_EACH_POLLER(datagrams_echoed_in_a_loop_take_constant_memory)
{
    enum { ROUNDS = 300 };
    pair p = pair_of("127.0.0.1");
    tornado_future *server = tornado_spawn(echo, p.server);
    long live = 0;
    for (int i = 0; i < ROUNDS; i++) {
        char text[20];
        snprintf(text, sizeof text, "number %d", i);
        tornado_future *answer = tornado_datagram_socket_receive(p.client);
        send_text(p.client, text);
        check_text(answer, text);
        if (i == 10)
            live = test_live();
    }
    CHECK(test_live() <= live);
    CHECK_INT(echoes, ROUNDS);
    pair_free(&p);
    CHECK_INT(loop_code(server), TORNADO_ERR_CLOSED);
}

/*----------------------------------------------------------------------------
 * Who waits.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(datagrams_go_to_who_has_waited_longest)
{
    pair p = pair_of("127.0.0.1");
    tornado_future *waits[3];
    for (int i = 0; i < 3; i++)
        waits[i] = tornado_datagram_socket_receive(p.server);
    send_text(p.client, "one");
    send_text(p.client, "two");
    send_text(p.client, "three");
    check_text(waits[0], "one");
    check_text(waits[1], "two");
    check_text(waits[2], "three");
    pair_free(&p);
}

TEST(datagrams_that_nobody_waits_for_stay_with_the_system)
{
    pair p = pair_of("127.0.0.1");
    send_text(p.client, "one");
    send_text(p.client, "two");
    loop_turns(3);
    check_text(tornado_datagram_socket_receive(p.server), "one");
    check_text(tornado_datagram_socket_receive(p.server), "two");
    pair_free(&p);
}

TEST(datagrams_do_not_go_to_who_has_given_up)
{
    pair p = pair_of("127.0.0.1");
    tornado_future_release(tornado_datagram_socket_receive(p.server));
    tornado_future *late = tornado_with_timeout(0.001, tornado_datagram_socket_receive(p.server));
    CHECK_INT(loop_code(late), TORNADO_ERR_TIMEOUT);
    tornado_future *second = tornado_datagram_socket_receive(p.server);
    send_text(p.client, "for the second");
    check_text(second, "for the second");
    pair_free(&p);
}

TEST_EACH_POLLER(datagrams_are_waited_for_until_the_time_is_up)
{
    pair p = pair_of("127.0.0.1");
    CHECK_INT(loop_code(tornado_datagram_socket_receive_timeout(p.server, 0.01)), TORNADO_ERR_TIMEOUT);
    tornado_future *patient = tornado_datagram_socket_receive_timeout(p.server, test_scaled(5));
    send_text(p.client, "in time");
    check_text(patient, "in time");
    CHECK_INT(loop_code(tornado_datagram_socket_receive_timeout(p.server, 0.0 / 0.0)), TORNADO_ERR_INVALID);
    pair_free(&p);
}

TEST(datagrams_come_only_from_the_peer_of_a_connected_socket)
{
    pair p = pair_of("127.0.0.1"), other = pair_of("127.0.0.1");
    tornado_future *answer = tornado_datagram_socket_receive(p.client);
    CHECK_INT(loop_code(tornado_datagram_socket_send_to(other.server, &p.client_address, tornado_bytes_of("forged"))),
              TORNADO_OK);
    CHECK_INT(loop_code(tornado_datagram_socket_send_to(p.server, &p.client_address, tornado_bytes_of("genuine"))),
              TORNADO_OK);
    check_text(answer, "genuine");
    pair_free(&p);
    pair_free(&other);
}

/*----------------------------------------------------------------------------
 * What cannot be sent.
 *----------------------------------------------------------------------------*/

static double cpu_seconds(void)
{
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Whether the loop sleeps, most of the time; a busy machine may disturb it once. */
static bool loop_sleeps(void)
{
    for (int tries = 0; tries < 5; tries++) {
        double before = cpu_seconds();
        loop_run_for(0.1);
        if (cpu_seconds() - before < 0.1 / 3)
            return true;
    }
    return false;
}

TEST_EACH_POLLER(datagrams_to_a_closed_port_are_reported_and_do_no_harm)
{
    pair p = pair_of("127.0.0.1");
    tornado_datagram_socket_free(p.server);
    tornado_future *wait = tornado_datagram_socket_receive(p.client);
    send_text(p.client, "anybody?");
    const tornado_error *error = loop_until(wait);
    CHECK(is_error(error, TORNADO_ERR_SYSTEM));
    CHECK_INT(error->sys_errno, ECONNREFUSED);
    CHECK(strstr(error->message, "receive") != NULL);
    tornado_future_release(wait);
    send_text(p.client, "nobody waits for this error");
    CHECK(loop_sleeps());
    p.server = opened(&(tornado_datagram_options){.local = &p.server_address});
    error = loop_until(wait = tornado_datagram_socket_send(p.client, tornado_bytes_of("lost")));
    if (error)
        CHECK_INT(error->sys_errno, ECONNREFUSED); /* of the one before */
    tornado_future_release(wait);
    send_text(p.client, "found");
    wait = tornado_datagram_socket_receive(p.server);
    CHECK(loop_until(wait) == NULL);
    tornado_future_release(wait);
    pair_free(&p);
}

TEST(datagrams_that_are_too_long_are_refused)
{
    static char data[65536];
    pair p = pair_of("127.0.0.1");
    tornado_future *future = tornado_datagram_socket_send(p.client, (tornado_bytes){data, sizeof data});
    const tornado_error *error = loop_until(future);
    CHECK(is_error(error, TORNADO_ERR_SYSTEM));
    CHECK_INT(error->sys_errno, EMSGSIZE);
    tornado_future_release(future);
    send_text(p.client, "short");
    check_text(tornado_datagram_socket_receive(p.server), "short");
    pair_free(&p);
}

TEST(datagrams_without_a_peer_need_an_address)
{
    pair p = pair_of("127.0.0.1");
    CHECK_INT(loop_code(tornado_datagram_socket_send(p.server, tornado_bytes_of("x"))), TORNADO_ERR_STATE);
    pair_free(&p);
}

/* The queue of a unix socket's peer is short, and its sender has to wait when it is full. */
TEST_EACH_POLLER(datagrams_wait_in_order_until_the_system_takes_them)
{
    enum { MANY = 5000 };
    static tornado_future *sent[MANY];
    char text[32];
    place at = place_new();
    pair p = unix_pair(&at, &(tornado_datagram_options){.max_write_buffer_size = 10000});
    int count = 0;
    for (; count < MANY; count++) {
        snprintf(text, sizeof text, "number %d", count);
        sent[count] = tornado_datagram_socket_send(p.client, tornado_bytes_of(text));
        if (tornado_future_done(sent[count]) && tornado_future_error(sent[count]))
            break;
    }
    CHECK(count > 2 && count < MANY);
    CHECK_INT(loop_code(sent[count]), TORNADO_ERR_BUFFER_FULL);
    CHECK(!tornado_future_done(sent[count - 1]));
    size_t waiting = tornado_datagram_socket_write_buffer_size(p.client);
    CHECK(waiting > 5000 && waiting <= 10000);
    for (int i = 0; i < count; i++) {
        snprintf(text, sizeof text, "number %d", i);
        check_text(tornado_datagram_socket_receive(p.server), text);
    }
    for (int i = 0; i < count; i++)
        CHECK_INT(loop_code(sent[i]), TORNADO_OK);
    CHECK_INT(tornado_datagram_socket_write_buffer_size(p.client), 0);
    CHECK(loop_sleeps());
    pair_free(&p);
    place_free(&at);
}

/* Sends until one has to wait, and gives its future; *count: how many there are. */
static tornado_future *send_until_full(tornado_datagram_socket *from, const tornado_address *to, int *count)
{
    for (*count = 1;; ++*count) {
        tornado_future *sent = tornado_datagram_socket_send_to(from, to, tornado_bytes_of("one of many"));
        if (!tornado_future_done(sent))
            return sent;
        CHECK(*count < 5000 && !tornado_future_error(sent));
        tornado_future_release(sent);
    }
}

static void receive_all(tornado_datagram_socket *s, int count)
{
    while (count-- > 0)
        check_text(tornado_datagram_socket_receive(s), "one of many");
}

/* Whether, while one has to wait, that is looked at now and then and not on and on. */
static bool tries_seldom(void)
{
    double began = tornado_monotonic();
    test_fail_calls(test_fault_named("sendto", "EAGAIN"), LONG_MAX, 1); /* counts only */
    loop_run_for(0.2);
    return (double)test_fault_calls() <= 2 + (tornado_monotonic() - began) / 0.01;
}

TEST_EACH_POLLER(datagrams_for_who_takes_none_are_tried_now_and_then)
{
    int count;
    place at = place_new();
    tornado_address here, there;
    CHECK(tornado_address_unix(&here, at.server) && tornado_address_unix(&there, at.client));
    tornado_datagram_socket *server = opened(&(tornado_datagram_options){.local = &here});
    tornado_datagram_socket *client = opened(&(tornado_datagram_options){.local = &there});
    tornado_future *sent = send_until_full(server, &there, &count);
    CHECK(tries_seldom()); /* though it can be written, as the system says, where there is no peer */
    CHECK(!tornado_future_done(sent));
    receive_all(client, count);
    CHECK_INT(loop_code(sent), TORNADO_OK);
    sent = send_until_full(server, &there, &count);
    CHECK(tries_seldom());
    tornado_datagram_socket_free(server); /* while it pauses */
    CHECK_INT(loop_code(sent), TORNADO_ERR_CLOSED);
    loop_run_for(0.05);
    tornado_datagram_socket_free(client);
    place_free(&at);
}

TEST_EACH_POLLER(datagrams_that_nobody_waits_for_do_not_wake_a_loop_that_waits_to_send)
{
    int count;
    place at = place_new();
    pair p = unix_pair(&at, &(tornado_datagram_options){0});
    tornado_future *received = tornado_datagram_socket_receive(p.client);
    CHECK_INT(loop_code(tornado_datagram_socket_send_to(p.server, &p.client_address, tornado_bytes_of("first"))), 0);
    check_text(received, "first");
    tornado_future *sent = send_until_full(p.client, NULL, &count);
    CHECK_INT(loop_code(tornado_datagram_socket_send_to(p.server, &p.client_address, tornado_bytes_of("second"))), 0);
    CHECK(tries_seldom());
    CHECK(!tornado_future_done(sent));
    check_text(tornado_datagram_socket_receive(p.client), "second");
    receive_all(p.server, count);
    CHECK_INT(loop_code(sent), TORNADO_OK);
    pair_free(&p);
    place_free(&at);
}

/* The next datagram has to wait. */
static void delay_next(void)
{
    int fault = 0;
    while (strcmp(test_fault_at(fault)->call, "sendto") != 0 || strcmp(test_fault_at(fault)->how, "EAGAIN") != 0)
        fault++;
    test_fail_calls(fault, 1, 1);
}

TEST(datagrams_wait_in_any_number_where_that_is_wanted)
{
    enum { MANY = 1000 };
    static tornado_future *sent[MANY];
    static char text[1000];
    place at = place_new();
    pair p = unix_pair(&at, &(tornado_datagram_options){.max_write_buffer_size = TORNADO_NONE});
    for (int i = 0; i < MANY; i++)
        sent[i] = tornado_datagram_socket_send(p.client, (tornado_bytes){text, sizeof text});
    CHECK(tornado_datagram_socket_write_buffer_size(p.client) > 262144);
    for (int i = 0; i < MANY; i++)
        tornado_future_release(tornado_datagram_socket_receive(p.server));
    pair_free(&p);
    for (int i = 0; i < MANY; i++)
        tornado_future_release(sent[i]);
    place_free(&at);
}

TEST_EACH_POLLER(datagrams_that_wait_go_to_their_address)
{
    tornado_address any = ip_address("127.0.0.1", 0), to;
    tornado_datagram_socket *client = opened(&(tornado_datagram_options){.local = &any});
    tornado_datagram_socket *server = opened(&(tornado_datagram_options){.local = &any});
    CHECK(tornado_address_local(&to, tornado_datagram_socket_fileno(server)));
    delay_next();
    tornado_future *sent = tornado_datagram_socket_send_to(client, &to, tornado_bytes_of("late"));
    CHECK(!tornado_future_done(sent));
    CHECK_INT(loop_code(sent), TORNADO_OK);
    check_text(tornado_datagram_socket_receive(server), "late");
    CHECK(loop_sleeps());
    tornado_datagram_socket_free(client);
    tornado_datagram_socket_free(server);
}

/*----------------------------------------------------------------------------
 * Opening and closing.
 *----------------------------------------------------------------------------*/

TEST(datagram_socket_that_is_closed_fails_who_waits)
{
    place at = place_new();
    pair p = unix_pair(&at, &(tornado_datagram_options){.unix_mode = 0});
    tornado_future *receive = tornado_datagram_socket_receive(p.client), *send;
    do
        send = tornado_datagram_socket_send(p.client, tornado_bytes_of("x"));
    while (tornado_future_done(send));
    pair_free(&p);
    CHECK_INT(loop_code(receive), TORNADO_ERR_CLOSED);
    CHECK_INT(loop_code(send), TORNADO_ERR_CLOSED);
    tornado_datagram_socket_free(NULL);
    place_free(&at);
}

TEST(datagram_socket_outlives_its_loop)
{
    pair p = pair_of("127.0.0.1");
    tornado_future *wait = tornado_datagram_socket_receive(p.server);
    CHECK(tornado_future_add_done_callback(wait, loop_future_done, tornado_ioloop_current()));
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_future_release(wait);
    pair_free(&p);
}

TEST(datagram_socket_after_its_loop_closed_all_descriptors_closes_none_again)
{
    pair p = pair_of("127.0.0.1");
    int fd = tornado_datagram_socket_fileno(p.server);
    tornado_future *wait = tornado_datagram_socket_receive(p.server);
    tornado_ioloop_close(tornado_ioloop_current(), true);
    CHECK(fcntl(fd, F_GETFD) < 0);
    CHECK(dup2(0, fd) == fd); /* somebody else has the number now */
    tornado_future_release(wait);
    pair_free(&p);
    CHECK(fcntl(fd, F_GETFD) >= 0);
}

static void check_refused(const tornado_datagram_options *options, int code, int sys_errno, const char *what)
{
    tornado_datagram_socket *s = tornado_datagram_socket_new(options);
    if (s)
        FAIL("it is opened, and should be refused for \"%s\"", what);
    CHECK_INT(tornado_last_error()->code, code);
    CHECK_INT(tornado_last_error()->sys_errno, sys_errno);
    CHECK(strstr(tornado_last_error()->message, what) != NULL);
}

TEST(datagram_socket_that_cannot_be_had_is_refused_by_its_address)
{
    char text[TORNADO_ADDRESS_MAX];
    tornado_address far = ip_address("192.0.2.1", 9), nobody;
    pair p = pair_of("127.0.0.1");
    check_refused(&(tornado_datagram_options){.unix_mode = 0}, TORNADO_ERR_INVALID, 0, "neither");
    check_refused(&(tornado_datagram_options){.local = &p.server_address}, TORNADO_ERR_SYSTEM, EADDRINUSE,
                  tornado_address_format(&p.server_address, text));
    check_refused(&(tornado_datagram_options){.local = &far}, TORNADO_ERR_SYSTEM, EADDRNOTAVAIL, "192.0.2.1:9");
    CHECK(tornado_address_unix(&nobody, "/nonexistent/socket"));
    check_refused(&(tornado_datagram_options){.peer = &nobody}, TORNADO_ERR_SYSTEM, ENOENT, "connect to unix:/none");
    check_refused(&(tornado_datagram_options){.local = &nobody}, TORNADO_ERR_SYSTEM, ENOENT, "bind unix:/none");
    pair_free(&p);
}

TEST(datagram_socket_replaces_a_stale_file_but_no_other)
{
    struct stat status;
    place at = place_new();
    tornado_address address;
    CHECK(tornado_address_unix(&address, at.server));
    const tornado_datagram_options options = {.local = &address};
    tornado_datagram_socket *first = opened(&options);
    check_refused(&options, TORNADO_ERR_SYSTEM, EADDRINUSE, at.server);
    tornado_datagram_socket_free(first);
    CHECK(stat(at.server, &status) == 0);
    tornado_datagram_socket_free(opened(&options));
    CHECK(unlink(at.server) == 0);
    int listener = tornado_bind_unix_socket(at.server, 0, 0);
    check_refused(&options, TORNADO_ERR_SYSTEM, EADDRINUSE, at.server);
    close(listener);
    CHECK(unlink(at.server) == 0 && mkdir(at.server, 0700) == 0);
    check_refused(&options, TORNADO_ERR_SYSTEM, EEXIST, at.server);
    CHECK(rmdir(at.server) == 0);
    place_free(&at);
}

TEST(datagram_socket_of_an_abstract_name_has_no_file)
{
#ifndef __linux__
    SKIP("only Linux has abstract names");
#else
    char name[64];
    tornado_address address;
    snprintf(name, sizeof name, "@tornado-test-%d", (int)getpid());
    CHECK(tornado_address_unix(&address, name));
    tornado_datagram_socket *server = opened(&(tornado_datagram_options){.local = &address});
    tornado_datagram_socket *client = opened(&(tornado_datagram_options){.peer = &address});
    send_text(client, "hello");
    check_text(tornado_datagram_socket_receive(server), "hello");
    tornado_datagram_socket_free(server);
    tornado_datagram_socket_free(client);
#endif
}

TEST(datagram_socket_has_the_options_that_it_is_given)
{
    static const struct {
        tornado_datagram_options options;
        int name;
    } cases[] = {{{.reuse_port = true}, SO_REUSEPORT}, {{.broadcast = true}, SO_BROADCAST}};
    tornado_address any = ip_address("127.0.0.1", 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int given = 0; given < 2; given++) {
            int value = -1;
            socklen_t len = sizeof value;
            tornado_datagram_options options = {.local = &any};
            if (given)
                options = cases[i].options;
            options.local = &any;
            tornado_datagram_socket *s = opened(&options);
            int fd = tornado_datagram_socket_fileno(s);
            CHECK(getsockopt(fd, SOL_SOCKET, cases[i].name, &value, &len) == 0);
            CHECK_INT(value != 0, given);
            CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
            CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
            tornado_datagram_socket_free(s);
        }
}

static void exchange_in_shortage(void)
{
    tornado_address any;
    CHECK(tornado_address_ip(&any, "127.0.0.1", 0));
    tornado_datagram_socket *server = tornado_datagram_socket_new(&(tornado_datagram_options){.local = &any});
    if (!server)
        return;
    CHECK(tornado_address_local(&any, tornado_datagram_socket_fileno(server)));
    tornado_datagram_socket *client = tornado_datagram_socket_new(&(tornado_datagram_options){.peer = &any});
    if (client) {
        tornado_future *wait = tornado_datagram_socket_receive_timeout(server, test_scaled(5));
        tornado_future_release(tornado_datagram_socket_send(client, tornado_bytes_of("x")));
        delay_next();
        tornado_future *late = tornado_datagram_socket_send(client, tornado_bytes_of("late"));
        test_fail_calls(-1, 0, 0);
        tornado_future_release(late);
        for (int i = 0; i < 3; i++)
            tornado_ioloop_run_once(tornado_ioloop_current(), 0);
        tornado_future_release(wait);
    }
    tornado_datagram_socket_free(client);
    tornado_datagram_socket_free(server);
}

TEST(datagrams_leak_nothing_whichever_allocation_fails)
{
    each_shortage(exchange_in_shortage);
}
