/* Connecting to names: which of several addresses is used, how long it may take, from where, and every failure. */
#include "certificates.h"
#include "http_client.h"
#include "runtime.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/un.h>

#define OPTIONS(...) (&(tornado_connect_options){__VA_ARGS__})

/*----------------------------------------------------------------------------
 * Servers, and a resolver that says what a test wants.
 *----------------------------------------------------------------------------*/

static void echo(tornado_iostream *stream, void *arg)
{
    (void)arg;
    for (;;)
        tornado_await(tornado_iostream_write(stream, tornado_await_bytes(tornado_iostream_read_until(stream, "\n"))));
}

static tornado_tcpserver *echo_start(const tornado_bind_options *options)
{
    tornado_tcpserver *server = tornado_tcpserver_new(echo, NULL, NULL);
    if (!server || !tornado_tcpserver_listen(server, 0, options))
        SKIP("this machine cannot listen on %s", options->address ? options->address : options->unix_socket);
    return server;
}

#define LOOPBACK (&(tornado_bind_options){.address = "127.0.0.1"})

static void echo_stop(tornado_tcpserver *server)
{
    tornado_tcpserver_free(server);
    while (tornado_ioloop_coroutines(tornado_ioloop_current()))
        loop_turns(1);
}

/* Every name has these addresses, in this order, whatever family is asked for. */
static int asked_family;
static tornado_address answers[8];
static tornado_addresses found = {0, answers};
static double answer_after; /* seconds */

static void answer_late(void *future)
{
    tornado_future_set_result(future, &found, NULL);
    tornado_future_release(future);
}

static tornado_future *fixed_resolve(void *state, const char *host, int port, int family)
{
    tornado_future *future = tornado_future_new();
    (void)state;
    (void)host;
    (void)port;
    asked_family = family;
    if (answer_after <= 0)
        tornado_future_set_result(future, &found, NULL);
    else if (!tornado_future_done(future))
        CHECK(tornado_ioloop_call_later(tornado_ioloop_current(), answer_after, answer_late,
                                        tornado_future_retain(future)) != 0);
    return future;
}

static const tornado_resolver_class fixed = {.resolve = fixed_resolve};

static void answer_with(const char *ip, int port)
{
    CHECK(tornado_address_ip(&answers[found.count++], ip, port));
}

static tornado_resolver *resolver;
static tornado_tcpclient *client_of_test;

static void begin(void)
{
    resolver = tornado_resolver_new(&(tornado_resolver_options){.kind = &fixed});
    client_of_test = tornado_tcpclient_new(resolver);
    CHECK(resolver && client_of_test);
    found.count = 0;
    answer_after = 0;
}

static void end(void)
{
    tornado_tcpclient_free(client_of_test);
    tornado_resolver_free(resolver);
}

static tornado_future *connecting(const tornado_connect_options *options)
{
    return tornado_tcpclient_connect(client_of_test, "some.test", 80, options);
}

/* A line comes back by a stream that a future has; uses the future up. */
static void check_echo(tornado_future *future)
{
    const tornado_error *error = loop_until(future);
    if (error)
        FAIL("it is not connected: %s", error->message);
    tornado_iostream *stream = tornado_future_result(future);
    CHECK_INT(loop_code(tornado_iostream_write(stream, tornado_bytes_of("line\n"))), TORNADO_OK);
    tornado_future *line = tornado_iostream_read_until(stream, "\n");
    CHECK(loop_until(line) == NULL);
    CHECK_MEM(tornado_future_bytes(line).data, tornado_future_bytes(line).len, "line\n", 5);
    tornado_future_release(line);
    tornado_future_release(future);
}

static void check_fails(tornado_future *future, int code, int sys_errno, const char *message)
{
    const tornado_error *error = loop_until(future);
    CHECK(error != NULL);
    CHECK_INT(error->code, code);
    if (sys_errno)
        CHECK_INT(error->sys_errno, sys_errno);
    if (!strstr(error->message, message))
        FAIL("\"%s\" should be in \"%s\"", message, error->message);
    tornado_future_release(future);
}

/* A port of 127.0.0.1 that answers no connection: its queue is full. */
typedef struct silent {
    int port, listener, fds[64];
} silent;

static void silent_start(silent *s)
{
    struct pollfd look = {.events = POLLOUT};
    s->listener = listen_loopback(&s->port);
    CHECK(listen(s->listener, 0) == 0);
    for (int i = 0; i < 64; i++) {
        struct sockaddr_in address = loopback(s->port);
        look.fd = s->fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        set_nonblocking(look.fd);
        if (connect(look.fd, (struct sockaddr *)&address, sizeof address) != 0 && poll(&look, 1, 100) == 0)
            return;
    }
    SKIP("a full queue answers all the same here");
}

/* A port of 127.0.0.1 that refuses connections, to the end of the test. */
static int refusing_port(void)
{
    int port;
    refuse_loopback(&port);
    return port;
}

/* A port that nobody has, for now. */
static int free_port(void)
{
    int port;
    close(refuse_loopback(&port));
    return port;
}

/*----------------------------------------------------------------------------
 * Where it connects.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcpclient_connects_to_names_and_addresses)
{
    static const char *const hosts[] = {"127.0.0.1", "localhost"};
    tornado_tcpserver *server = echo_start(LOOPBACK);
    tornado_tcpclient *client = tornado_tcpclient_new(NULL);
    for (size_t i = 0; i < 2; i++)
        check_echo(tornado_tcpclient_connect(client, hosts[i], tornado_tcpserver_port(server),
                                             OPTIONS(.family = AF_INET)));
    check_echo(tornado_tcpclient_connect(client, "127.0.0.1", tornado_tcpserver_port(server),
                                         OPTIONS(.timeout = TORNADO_NONE, .deadline = TORNADO_NONE)));
    tornado_tcpclient_free(client);
    tornado_tcpclient_free(NULL);
    CHECK(tornado_executor_shutdown(NULL, false));
    echo_stop(server);
}

TEST(tcpclient_connects_by_ipv6)
{
    tornado_tcpserver *server = echo_start(&(tornado_bind_options){.address = "::1"});
    tornado_tcpclient *client = tornado_tcpclient_new(NULL);
    check_echo(tornado_tcpclient_connect(client, "::1", tornado_tcpserver_port(server), NULL));
    check_fails(tornado_tcpclient_connect(client, "::1", free_port(), NULL), TORNADO_ERR_SYSTEM, ECONNREFUSED,
                "cannot connect to [::1]:");
    tornado_tcpclient_free(client);
    echo_stop(server);
}

TEST_EACH_POLLER(tcpclient_connects_to_unix_sockets)
{
    char directory[64] = "/tmp/tornado-test-XXXXXX", path[80];
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/socket", directory);
    begin();
    tornado_tcpserver *server = echo_start(&(tornado_bind_options){.unix_socket = path});
    check_echo(connecting(OPTIONS(.unix_socket = path)));
    check_echo(tornado_tcpclient_connect(client_of_test, NULL, 0, OPTIONS(.unix_socket = path)));
    echo_stop(server);
    check_fails(connecting(OPTIONS(.unix_socket = path)), TORNADO_ERR_SYSTEM, ECONNREFUSED, path);
    CHECK(unlink(path) == 0 && rmdir(directory) == 0);
    check_fails(connecting(OPTIONS(.unix_socket = path)), TORNADO_ERR_SYSTEM, ENOENT, path);
    check_fails(connecting(OPTIONS(.unix_socket = "")), TORNADO_ERR_INVALID, 0, "path");
    end();
}

static void *talk(void *arg)
{
    tornado_iostream *stream =
        tornado_await(tornado_tcpclient_connect(client_of_test, "some.test", *(int *)arg, NULL));
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of("a\n")));
    tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
    CHECK_MEM(line.data, line.len, "a\n", 2);
    return NULL;
}

TEST(tcpclient_stream_is_closed_with_the_scope_that_waited)
{
    begin();
    tornado_tcpserver *server = echo_start(LOOPBACK);
    int port = tornado_tcpserver_port(server);
    answer_with("127.0.0.1", port);
    run(talk, &port);
    echo_stop(server); /* ends only when the stream is closed */
    end();
}

TEST(tcpclient_stream_can_be_kept_longer)
{
    begin();
    tornado_tcpserver *server = echo_start(LOOPBACK);
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    tornado_future *future = connecting(NULL);
    CHECK(loop_until(future) == NULL);
    tornado_iostream *stream = tornado_iostream_retain(tornado_future_result(future));
    tornado_future_release(future);
    CHECK_INT(loop_code(tornado_iostream_write(stream, tornado_bytes_of("b\n"))), TORNADO_OK);
    CHECK_INT(loop_code(tornado_iostream_read_until(stream, "\n")), TORNADO_OK);
    tornado_iostream_release(stream);
    tornado_future_release(connecting(NULL)); /* and what nobody waits for is closed */
    loop_turns(3);
    echo_stop(server);
    end();
}

TEST(tcpclient_stream_has_the_limits_that_are_given)
{
    begin();
    tornado_tcpserver *server = echo_start(LOOPBACK);
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    tornado_future *future = connecting(OPTIONS(.stream.max_buffer_size = 100));
    CHECK(loop_until(future) == NULL);
    CHECK_INT(loop_code(tornado_iostream_read_bytes(tornado_future_result(future), 101)), TORNADO_ERR_BUFFER_FULL);
    tornado_future_release(future);
    echo_stop(server);
    end();
}

TEST(tcpclient_comes_from_the_address_and_port_that_are_given)
{
    char text[TORNADO_ADDRESS_MAX], want[TORNADO_ADDRESS_MAX];
    int port = free_port();
    begin();
    tornado_tcpserver *server = echo_start(LOOPBACK);
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    for (int i = 0; i < 3; i++) {
        tornado_connect_options options = {.source_ip = i != 1 ? "127.0.0.5" : NULL, .source_port = i ? port : 0};
        tornado_address local;
        tornado_future *future = connecting(&options);
        const tornado_error *error = loop_until(future);
        if (error)
            SKIP("there is no such address here: %s", error->message);
        CHECK(tornado_address_local(&local, tornado_iostream_fileno(tornado_future_result(future))));
        snprintf(want, sizeof want, "%s:%d", i != 1 ? "127.0.0.5" : "127.0.0.1",
                 i ? port : tornado_address_port(&local));
        CHECK_STR(tornado_address_format(&local, text), want);
        check_echo(future);
        CHECK_INT(asked_family, i != 1 ? AF_INET : 0); /* others cannot be connected to from there */
    }
    check_fails(connecting(OPTIONS(.source_ip = "192.0.2.1")), TORNADO_ERR_SYSTEM, EADDRNOTAVAIL, "some.test:80");
    check_fails(connecting(OPTIONS(.source_ip = "::1")), TORNADO_ERR_SYSTEM, 0, "some.test:80");
    check_fails(connecting(OPTIONS(.source_ip = "here")), TORNADO_ERR_INVALID, 0, "here");
    check_fails(connecting(OPTIONS(.source_port = 65536)), TORNADO_ERR_INVALID, 0, "65536");
    check_fails(connecting(OPTIONS(.source_port = -1)), TORNADO_ERR_INVALID, 0, "-1");
    echo_stop(server);
    end();
}

/*----------------------------------------------------------------------------
 * One of several addresses.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcpclient_goes_on_at_once_when_an_address_refuses)
{
    begin();
    tornado_tcpserver *server = echo_start(LOOPBACK);
    answer_with("127.0.0.1", refusing_port());
    answer_with("127.0.0.1", refusing_port());
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    check_echo(connecting(NULL));
    echo_stop(server);
    end();
}

static int open_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 512; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

TEST_EACH_POLLER(tcpclient_tries_the_next_address_beside_one_that_is_silent)
{
    silent s;
    begin();
    silent_start(&s);
    tornado_tcpserver *server = echo_start(LOOPBACK);
    answer_with("127.0.0.1", s.port);
    answer_with("127.0.0.1", s.port);
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    int before = open_descriptors();
    double start = tornado_monotonic();
    tornado_future *future = connecting(NULL);
    CHECK(loop_until(future) == NULL);
    CHECK(tornado_monotonic() - start > 0.09); /* twice the delay, which tests have shorter */
    loop_turns(2);
    CHECK(open_descriptors() <= before + 2); /* the stream, and its other end: those that lost are closed */
    check_echo(future);
    echo_stop(server);
    end();
}

TEST(tcpclient_lets_the_families_take_turns)
{
    char text[TORNADO_ADDRESS_MAX], want[TORNADO_ADDRESS_MAX];
    tornado_address peer;
    begin();
    tornado_tcpserver *six = echo_start(&(tornado_bind_options){.address = "::1"}), *four = echo_start(LOOPBACK);
    answer_with("::1", free_port());
    answer_with("::1", tornado_tcpserver_port(six));
    answer_with("::1", tornado_tcpserver_port(six));
    answer_with("127.0.0.1", tornado_tcpserver_port(four));
    tornado_future *future = connecting(NULL);
    CHECK(loop_until(future) == NULL);
    CHECK(tornado_address_peer(&peer, tornado_iostream_fileno(tornado_future_result(future))));
    snprintf(want, sizeof want, "127.0.0.1:%d", tornado_tcpserver_port(four));
    CHECK_STR(tornado_address_format(&peer, text), want);
    check_echo(future);
    answers[3] = answers[0]; /* and when the other has none left, or refuses, it goes on with the first */
    check_echo(connecting(NULL));
    echo_stop(six);
    echo_stop(four);
    end();
}

TEST(tcpclient_fails_with_the_last_error_when_no_address_can_be_had)
{
    char name[40];
    begin();
    answer_with("127.0.0.1", refusing_port());
    answer_with("127.0.0.1", refusing_port());
    check_fails(connecting(NULL), TORNADO_ERR_SYSTEM, ECONNREFUSED, "cannot connect to some.test:80: ");
    snprintf(name, sizeof name, "%s", strerror(ECONNREFUSED));
    check_fails(connecting(NULL), TORNADO_ERR_SYSTEM, ECONNREFUSED, name);
    end();
}

TEST(tcpclient_says_of_an_address_without_a_way_only_when_there_is_nothing_else_to_say)
{
    begin();
    answer_with("127.0.0.1", refusing_port());
    answer_with("255.255.255.255", 80); /* is not connected to, wherever this is */
    check_fails(connecting(NULL), TORNADO_ERR_SYSTEM, ECONNREFUSED, "cannot connect to some.test:80: ");
    answers[0] = answers[1];
    tornado_future *future = connecting(NULL);
    const tornado_error *error = loop_until(future);
    CHECK(is_error(error, TORNADO_ERR_SYSTEM));
    CHECK(error->sys_errno != ECONNREFUSED);
    tornado_future_release(future);
    end();
}

TEST(tcpclient_fails_when_a_resolver_finds_nothing)
{
    begin(); /* against its contract */
    check_fails(connecting(NULL), TORNADO_ERR_RESOLVE, ENOENT, "found nothing");
    end();
}

TEST(tcpclient_fails_as_its_resolver_does)
{
    tornado_resolver *dns = tornado_resolver_new(&(tornado_resolver_options){.kind = &tornado_dns_resolver});
    tornado_tcpclient *client = tornado_tcpclient_new(dns);
    check_fails(tornado_tcpclient_connect(client, "none.invalid", 80, NULL), TORNADO_ERR_RESOLVE, ENOENT, "none.inv");
    check_fails(tornado_tcpclient_connect(client, "", 80, NULL), TORNADO_ERR_INVALID, 0, "host");
    check_fails(tornado_tcpclient_connect(client, NULL, 80, NULL), TORNADO_ERR_INVALID, 0, "host");
    check_fails(tornado_tcpclient_connect(client, "::1", 80, OPTIONS(.family = AF_INET)), TORNADO_ERR_RESOLVE, ENOENT,
                "family");
    tornado_tcpclient_free(client);
    tornado_resolver_free(dns);
}

/*----------------------------------------------------------------------------
 * Time.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(tcpclient_gives_up_when_the_time_is_up)
{
    silent s;
    begin();
    silent_start(&s);
    answer_with("127.0.0.1", s.port);
    answer_with("127.0.0.1", s.port);
    const char *message = "Timeout while connecting to some.test:80";
    check_fails(connecting(OPTIONS(.timeout = 0.02)), TORNADO_ERR_TIMEOUT, ETIMEDOUT, message);
    check_fails(connecting(OPTIONS(.timeout = 0.12)), TORNADO_ERR_TIMEOUT, ETIMEDOUT, message);
    double soon = tornado_ioloop_time(tornado_ioloop_current()) + 0.02;
    check_fails(connecting(OPTIONS(.deadline = soon)), TORNADO_ERR_TIMEOUT, ETIMEDOUT, message);
    check_fails(connecting(OPTIONS(.deadline = soon, .timeout = 1000)), TORNADO_ERR_TIMEOUT, ETIMEDOUT, message);
    check_fails(connecting(OPTIONS(.deadline = soon + 1000, .timeout = 0.02)), TORNADO_ERR_TIMEOUT, ETIMEDOUT, message);
    check_fails(connecting(OPTIONS(.timeout = 0.0 / 0.0)), TORNADO_ERR_INVALID, 0, "timeout");
    check_fails(connecting(OPTIONS(.deadline = 0.0 / 0.0)), TORNADO_ERR_INVALID, 0, "timeout");
    end();
}

TEST(tcpclient_counts_resolving_as_a_part_of_its_time)
{
    begin();
    tornado_tcpserver *server = echo_start(LOOPBACK);
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    answer_after = 0.03;
    check_echo(connecting(OPTIONS(.timeout = test_scaled(5))));
    check_echo(connecting(OPTIONS(.timeout = TORNADO_NONE)));
    answer_after = 0.2;
    check_fails(connecting(OPTIONS(.timeout = 0.01)), TORNADO_ERR_TIMEOUT, ETIMEDOUT, "Timeout while connecting");
    loop_run_for(0.25); /* the resolver comes too late */
    echo_stop(server);
    end();
}

/*----------------------------------------------------------------------------
 * Ends.
 *----------------------------------------------------------------------------*/

TEST(tcpclient_that_is_freed_ends_what_is_being_connected)
{
    silent s;
    begin();
    silent_start(&s);
    answer_with("127.0.0.1", s.port);
    answer_with("127.0.0.1", s.port);
    tornado_future *first = connecting(NULL);
    answer_after = 0.02;
    tornado_future *second = connecting(NULL);
    loop_run_for(0.005);
    tornado_tcpclient_free(client_of_test);
    client_of_test = NULL;
    CHECK_INT(loop_code(first), TORNADO_ERR_CLOSED);
    CHECK_INT(loop_code(second), TORNADO_ERR_CLOSED);
    loop_run_for(0.03);
    end();
}

TEST(tcpclient_may_be_freed_when_an_attempt_is_just_done)
{
    for (int turns = 0; turns < 6; turns++) {
        begin();
        tornado_tcpserver *server = echo_start(LOOPBACK);
        answer_with("127.0.0.1", turns % 2 ? refusing_port() : tornado_tcpserver_port(server));
        tornado_future *future = connecting(NULL);
        loop_turns(turns / 2);
        end();
        const tornado_error *error = loop_until(future);
        CHECK(!error || error->code == TORNADO_ERR_CLOSED || error->sys_errno == ECONNREFUSED);
        tornado_future_release(future);
        echo_stop(server);
    }
}

TEST(tcpclient_outlives_its_loop)
{
    silent s;
    begin();
    silent_start(&s);
    answer_with("127.0.0.1", s.port);
    tornado_future *future = connecting(OPTIONS(.timeout = 1000));
    loop_turns(1);
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_future *late = tornado_tcpclient_connect(client_of_test, "a", 1, NULL);
    CHECK(is_error(tornado_future_error(late), TORNADO_ERR_STATE));
    tornado_future_release(late);
    end();
    CHECK(is_error(tornado_future_error(future), TORNADO_ERR_CLOSED));
    tornado_future_release(future);
}

static int shortage_port;

static void connect_in_shortage(void)
{
    tornado_tcpclient *client = tornado_tcpclient_new(resolver);
    tornado_future *future =
        client ? tornado_tcpclient_connect(client, "a", 1, OPTIONS(.timeout = test_scaled(5))) : NULL;
    for (int turns = 0; future && !tornado_future_done(future) && turns < 100; turns++)
        tornado_ioloop_run_once(tornado_ioloop_current(), 0.1);
    CHECK(!future || tornado_future_done(future));
    tornado_future_release(future);
    tornado_tcpclient_free(client);
}

TEST(tcpclient_leaks_nothing_whichever_allocation_fails)
{
    int listener = listen_loopback(&shortage_port);
    begin();
    tornado_tcpclient_free(client_of_test);
    answer_with("127.0.0.1", refusing_port());
    answer_with("127.0.0.1", shortage_port);
    tornado_ioloop_close(tornado_ioloop_current(), false);
    each_shortage(connect_in_shortage);
    tornado_resolver_free(resolver);
    close(listener);
}

/*----------------------------------------------------------------------------
 * TLS.
 *----------------------------------------------------------------------------*/

#ifdef TORNADO_OPENSSL

/* Waits for the handshake, says who was asked for, and sends lines back. */
static void secret_echo(tornado_iostream *stream, void *arg)
{
    char text[100];
    tornado_await(tornado_iostream_wait_for_handshake(stream));
    const char *name = tornado_iostream_ssl_info(stream)->server_hostname;
    snprintf(text, sizeof text, "%s\n", name ? name : "nobody");
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(text)));
    echo(stream, arg);
}

static tornado_tcpserver *secret_start(bool proxied)
{
    certificates_make();
    tornado_ssl_options ssl = {.certfile = certificate_path("server.pem"), .keyfile = certificate_path("server.key")};
    tornado_tcpserver_options options = {.stream.ssl_options = &ssl, .proxy_protocol = proxied};
    tornado_tcpserver *server = tornado_tcpserver_new(secret_echo, NULL, &options);
    if (!server || !tornado_tcpserver_listen(server, 0, LOOPBACK))
        FAIL("no server: %s", tornado_last_error()->message);
    return server;
}

static void check_secret(tornado_future *future, const char *greeting)
{
    const tornado_error *error = loop_until(future);
    if (error)
        FAIL("it is not connected: %s", error->message);
    tornado_future *line = tornado_iostream_read_until(tornado_future_result(future), "\n");
    CHECK(loop_until(line) == NULL);
    CHECK_STR(tornado_future_bytes(line).data, greeting);
    tornado_future_release(line);
    check_echo(future);
}

TEST_EACH_POLLER(tcpclient_connects_by_tls_to_the_host_it_was_asked_for)
{
    begin();
    tornado_tcpserver *server = secret_start(false);
    tornado_ssl_options ssl = {.ca_certs = certificate_path("root.pem")};
    answer_with("127.0.0.1", refusing_port());
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    check_secret(tornado_tcpclient_connect(client_of_test, "localhost", 443, OPTIONS(.stream.ssl_options = &ssl)),
                 "localhost\n");
    check_secret(tornado_tcpclient_connect(client_of_test, "localhost.", 443, OPTIONS(.stream.ssl_options = &ssl)),
                 "localhost\n");
    ssl.server_hostname = "localhost";
    check_secret(connecting(OPTIONS(.stream.ssl_options = &ssl)), "localhost\n");
    ssl.context = tornado_ssl_options_to_context(&ssl);
    check_secret(connecting(OPTIONS(.stream.ssl_options = &ssl, .timeout = test_scaled(5))), "localhost\n");
    tornado_ssl_context_release(ssl.context);
    echo_stop(server);
    end();
}

TEST(tcpclient_does_not_take_another_hosts_certificate)
{
    begin();
    log_keep();
    tornado_tcpserver *server = secret_start(false);
    tornado_ssl_options ssl = {.ca_certs = certificate_path("root.pem")};
    answer_with("127.0.0.1", tornado_tcpserver_port(server));
    check_fails(connecting(OPTIONS(.stream.ssl_options = &ssl)), TORNADO_ERR_SSL, 0, "some.test");
    ssl.ca_certs = NULL; /* nor one of an authority that this machine does not know */
    check_fails(tornado_tcpclient_connect(client_of_test, "localhost", 443, OPTIONS(.stream.ssl_options = &ssl)),
                TORNADO_ERR_SSL, 0, "");
    echo_stop(server);
    end();
}

TEST(tcpclient_gives_up_when_the_handshake_takes_too_long)
{
    int port, listener = listen_loopback(&port);
    tornado_ssl_options ssl = {.server_hostname = "localhost"};
    begin();
    answer_with("127.0.0.1", port);
    check_fails(connecting(OPTIONS(.stream.ssl_options = &ssl, .timeout = 0.05)), TORNADO_ERR_TIMEOUT, ETIMEDOUT,
                "Timeout while connecting to some.test:80");
    tornado_future *future = connecting(OPTIONS(.stream.ssl_options = &ssl));
    loop_turns(5);
    end(); /* while it shakes hands */
    CHECK_INT(loop_code(future), TORNADO_ERR_CLOSED);
    close(listener);
}

TEST(tcpclient_fails_when_the_other_end_does_not_speak_tls)
{
    int port, listener = listen_loopback(&port), peer;
    tornado_ssl_options ssl = {.server_hostname = "localhost"};
    begin();
    answer_with("127.0.0.1", port);
    for (int i = 0; i < 2; i++) {
        tornado_future *future = connecting(OPTIONS(.stream.ssl_options = &ssl));
        loop_turns(3);
        CHECK((peer = accept(listener, NULL, NULL)) >= 0);
        if (i == 0)
            CHECK(write(peer, "HTTP/1.1 400 Bad Request\r\n\r\n", 28) == 28);
        else
            close(peer);
        const tornado_error *error = loop_until(future);
        CHECK(error && (error->code == TORNADO_ERR_SSL || error->code == TORNADO_ERR_SYSTEM ||
                        error->code == TORNADO_ERR_CLOSED));
        tornado_future_release(future);
        if (i == 0)
            close(peer);
    }
    end();
    close(listener);
}

TEST(tcpclient_and_server_refuse_certificates_that_cannot_be_read)
{
    tornado_ssl_options ssl = {.certfile = "/nonexistent.pem", .ca_certs = "/nonexistent.pem"};
    begin();
    answer_with("127.0.0.1", refusing_port());
    check_fails(connecting(OPTIONS(.stream.ssl_options = &ssl)), TORNADO_ERR_SYSTEM, ENOENT, "/nonexistent.pem");
    CHECK(!tornado_tcpserver_new(echo, NULL, &(tornado_tcpserver_options){.stream.ssl_options = &ssl}));
    CHECK(strstr(tornado_last_error()->message, "/nonexistent.pem") != NULL);
    end();
}

/* The header is in the clear, TLS is right behind it, and nothing of that may be lost. */
static void *talk_behind_a_header(void *arg)
{
    tornado_ssl_options ssl = {.server_hostname = "localhost", .ca_certs = certificate_path("root.pem")};
    tornado_iostream *stream =
        tornado_await(tornado_tcpclient_connect(client_of_test, "some.test", *(int *)arg, NULL));
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")));
    tornado_await(tornado_iostream_start_tls(stream, &ssl));
    tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
    CHECK_MEM(line.data, line.len, "localhost\n", 10);
    return NULL;
}

TEST_EACH_POLLER(tcp_server_reads_a_proxy_header_before_tls)
{
    begin();
    tornado_tcpserver *server = secret_start(true);
    int port = tornado_tcpserver_port(server);
    answer_with("127.0.0.1", port);
    for (int i = 0; i < 5; i++)
        run(talk_behind_a_header, &port);
    echo_stop(server);
    end();
}

#else

TEST(tcpclient_and_server_without_tls_say_so)
{
    tornado_ssl_options ssl = {.server_hostname = "localhost"};
    begin();
    answer_with("127.0.0.1", refusing_port());
    check_fails(connecting(OPTIONS(.stream.ssl_options = &ssl)), TORNADO_ERR_UNSUPPORTED, 0, "TORNADO_OPENSSL");
    CHECK(!tornado_tcpserver_new(echo, NULL, &(tornado_tcpserver_options){.stream.ssl_options = &ssl}));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_UNSUPPORTED);
    end();
}

#endif

TEST(tcpclient_takes_no_backend)
{
    static const tornado_iostream_backend backend = {.pending = NULL};
    begin();
    check_fails(connecting(OPTIONS(.stream.backend = &backend)), TORNADO_ERR_INVALID, 0, "backend");
    end();
}
