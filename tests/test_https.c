/* Servers with TLS, and our streams beside other programs that speak it. */
#include "certificates.h"
#include "delegate.h"
#include "faults.h"
#include "http_client.h"

#ifdef TORNADO_OPENSSL

#include <signal.h>
#include <sys/wait.h>

static char large[5 << 20];

static void get_hello(tornado_handler *self)
{
    tornado_write_json(self, "{s:s}", "protocol", self->request->protocol);
}

static void get_large(tornado_handler *self)
{
    tornado_write_bytes(self, (tornado_bytes){large, sizeof large});
}

static void post_length(tornado_handler *self)
{
    tornado_write(self, tornado_format(self, "%zu", self->request->body.len));
}

static const tornado_handler_class hello = {.get = get_hello}, large_class = {.get = get_large},
                                   length = {.post = post_length};

static struct {
    tornado_application *app;
    tornado_httpserver *server;
    int port;
} site;

static tornado_ssl_options server_files(void)
{
    return (tornado_ssl_options){.certfile = certificate_path("server.pem"), .keyfile = certificate_path("server.key")};
}

static void site_open(void)
{
    tornado_rule rules[] = {{.path = "/", .handler = &hello},
                            {.path = "/large", .handler = &large_class},
                            {.path = "/length", .handler = &length},
                            {0}};
    certificates_make();
    memset(large, 'x', sizeof large);
    tornado_ssl_options ssl = server_files();
    tornado_httpserver_options options = {.bind.address = "127.0.0.1", .ssl_options = &ssl};
    site.app = tornado_application_new(rules, NULL);
    site.server = tornado_application_listen(site.app, 0, &options);
    CHECK(site.server != NULL);
    site.port = tornado_httpserver_port(site.server);
}

static void site_close(void)
{
    tornado_application_free(site.app);
    certificates_remove();
}

static tornado_iostream *dial_with(int port, const tornado_ssl_options *ssl)
{
    tornado_address address;
    tornado_iostream_options options = {.ssl_options = ssl};
    tornado_iostream *stream = tornado_iostream_new(socket(AF_INET, SOCK_STREAM, 0), &options);
    CHECK(stream && tornado_address_ip(&address, "127.0.0.1", port));
    tornado_future *connected = tornado_iostream_connect(stream, &address);
    const tornado_error *error = loop_until(connected);
    if (error)
        FAIL("no connection: %s", error->message);
    tornado_future_release(connected);
    return stream;
}

static tornado_iostream *dial(int port)
{
    tornado_ssl_options ssl = {.server_hostname = "localhost", .ca_certs = certificate_path("root.pem")};
    return dial_with(port, &ssl);
}

/* The head of the next answer; its body is read as so many bytes. */
static const char *ask(tornado_iostream *stream, const char *request, size_t *length_of_body)
{
    static char head[2000];
    tornado_future *wrote = tornado_iostream_write(stream, tornado_bytes_of(request));
    tornado_future *read = tornado_iostream_read_until(stream, "\r\n\r\n");
    const tornado_error *error = loop_until(read);
    if (error)
        FAIL("no answer: %s", error->message);
    snprintf(head, sizeof head, "%s", tornado_future_bytes(read).data);
    tornado_future_release(read);
    CHECK_INT(loop_code(wrote), 0);
    const char *field = strstr(head, "Content-Length: ");
    *length_of_body = field ? strtoul(field + 16, NULL, 10) : 0;
    return head;
}

static tornado_future *body(tornado_iostream *stream, size_t len)
{
    tornado_future *read = tornado_iostream_read_bytes(stream, len);
    CHECK(loop_until(read) == NULL);
    return read;
}

TEST(https_connection_that_is_refused_ends_as_tls_does_when_the_socket_has_room_for_that)
{
    for (long sends = 0; sends < 3; sends++) {
        site_open();
        tornado_iostream *stream = dial(site.port);
        CHECK_INT(loop_code(tornado_iostream_write(stream, tornado_bytes_of("GET / HTTP/9.9\r\n\r\n"))), 0);
        tornado_future *all = tornado_iostream_read_until_close(stream);
        test_fail_calls(test_fault_named("send", "EAGAIN"), 2, sends); /* behind the answer */
        const tornado_error *error = loop_until(all);
        if (error)
            FAIL("it did not end well: %s", error->message);
        CHECK(strncmp(tornado_future_bytes(all).data, "HTTP/1.1 505 ", 13) == 0);
        CHECK(test_fault_calls() > sends);
        tornado_future_release(all);
        tornado_iostream_release(stream);
        test_fail_calls(-1, 0, 0);
        site_close();
    }
}

TEST_EACH_POLLER(https_answers_one_request_after_the_other)
{
    size_t len;
    site_open();
    tornado_iostream *stream = dial(site.port);
    for (int i = 0; i < 3; i++) {
        CHECK(strncmp(ask(stream, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &len), "HTTP/1.1 200 OK\r\n", 17) == 0);
        tornado_future *read = body(stream, len);
        CHECK_STR(tornado_future_bytes(read).data, "{\"protocol\": \"https\"}");
        tornado_future_release(read);
    }
    ask(stream, "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n", &len);
    CHECK_INT(len, sizeof large);
    tornado_future *read = body(stream, len);
    CHECK_MEM(tornado_future_bytes(read).data, len, large, sizeof large);
    tornado_future_release(read);
    ask(stream, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", &len);
    read = tornado_iostream_read_until_close(stream); /* an end without a word would be an error */
    CHECK(loop_until(read) == NULL);
    CHECK_INT(tornado_future_bytes(read).len, len);
    tornado_future_release(read);
    tornado_iostream_release(stream);
    site_close();
}

TEST_EACH_POLLER(https_takes_large_bodies_and_many_requests_at_once)
{
    enum { MANY = 300 };
    char request[200];
    size_t len;
    site_open();
    tornado_iostream *stream = dial(site.port);
    snprintf(request, sizeof request, "POST /length HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n", sizeof large);
    tornado_future *head = tornado_iostream_write(stream, tornado_bytes_of(request));
    tornado_future *rest = tornado_iostream_write(stream, (tornado_bytes){large, sizeof large});
    ask(stream, "", &len);
    CHECK_INT(loop_code(head), 0);
    CHECK_INT(loop_code(rest), 0);
    tornado_future *read = body(stream, len);
    CHECK_STR(tornado_future_bytes(read).data, "5242880");
    tornado_future_release(read);
    tornado_buffer all = {0};
    for (int i = 0; i < MANY; i++)
        CHECK(tornado_buffer_append(&all, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 35));
    tornado_future *wrote = tornado_iostream_write(stream, (tornado_bytes){all.data, all.len});
    for (int i = 0; i < MANY; i++) {
        ask(stream, "", &len);
        tornado_future_release(body(stream, len));
    }
    CHECK_INT(loop_code(wrote), 0);
    tornado_buffer_free(&all);
    tornado_iostream_release(stream);
    site_close();
}

static void get_name(tornado_handler *self)
{
    const tornado_ssl_certificate *shown = tornado_http_request_get_ssl_certificate(self->request);
    tornado_write(self, shown ? shown->common_name : "nobody");
}

static const tornado_handler_class name_class = {.get = get_name};

TEST(https_tells_a_handler_whose_certificate_the_client_has_shown)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    static const char *const clients[] = {"alice", NULL};
    certificates_make();
    certificate_make((certificate){.name = "alice", .issuer = "root"});
    tornado_ssl_options ssl = server_files();
    ssl.cert_reqs = TORNADO_CERT_OPTIONAL;
    ssl.ca_certs = certificate_path("root.pem");
    tornado_httpserver_options options = {.bind.address = "127.0.0.1", .ssl_options = &ssl};
    tornado_application *app = tornado_application_new((tornado_rule[]){{.path = "/", .handler = &name_class}, {0}}, NULL);
    tornado_httpserver *server = tornado_application_listen(app, 0, &options);
    CHECK(server != NULL);
    for (size_t i = 0; i < 2; i++) {
        tornado_ssl_options own = {.server_hostname = "localhost", .ca_certs = certificate_path("root.pem")};
        own.certfile = clients[i] ? certificate_path("alice.pem") : NULL;
        own.keyfile = clients[i] ? certificate_path("alice.key") : NULL;
        size_t len;
        tornado_iostream *stream = dial_with(tornado_httpserver_port(server), &own);
        CHECK(strncmp(ask(stream, request, &len), "HTTP/1.1 200 OK\r\n", 17) == 0);
        tornado_future *read = body(stream, len);
        CHECK_STR(tornado_future_bytes(read).data, clients[i] ? clients[i] : "nobody");
        tornado_future_release(read);
        tornado_iostream_release(stream);
    }
    tornado_application_free(app);
    certificates_remove();
}

TEST(https_survives_whatever_is_no_tls)
{
    static const char *const sent[] = {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\x16\x03\x01\x02", "", "\x80\x2e\x01\x03\x01"};
    size_t len;
    site_open();
    for (size_t i = 0; i < sizeof sent / sizeof *sent; i++) {
        client c = client_open(site.port);
        client_send(&c, sent[i]);
        CHECK(shutdown(c.fd, SHUT_WR) == 0);
        client_until_end(&c);
        client_close(&c);
    }
    tornado_iostream *stream = dial(site.port);
    ask(stream, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &len);
    tornado_future_release(body(stream, len));
    tornado_iostream_release(stream);
    loop_turns(3);
    CHECK_INT(tornado_httpserver_connections(site.server), 0);
    site_close();
}

TEST(https_server_without_its_files_says_which)
{
    tornado_ssl_options ssl = {.certfile = "/nowhere/cert.pem"};
    tornado_httpserver_options options = {.ssl_options = &ssl};
    tornado_rule rules[] = {{.path = "/", .handler = &hello}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    CHECK(tornado_application_listen(app, 0, &options) == NULL);
    CHECK(strstr(tornado_last_error()->message, "/nowhere/cert.pem: No such file"));
    tornado_application_free(app);
    tornado_tcpserver_options tcp = {.stream.ssl_options = &ssl};
    CHECK(tornado_tcpserver_new(NULL, NULL, &tcp) == NULL);
    CHECK(strstr(tornado_last_error()->message, "/nowhere/cert.pem: No such file"));
}

TEST(https_and_curl)
{
    TEST_NEED("curl");
    site_open();
    tornado_ioloop *loop = tornado_ioloop_current();
    const test_output *got =
        test_run_loop(loop, "curl -sS --cacert %s https://localhost:%d/ https://localhost:%d/",
                      certificate_path("root.pem"), site.port, site.port);
    CHECK_INT(got->status, 0);
    CHECK_STR(got->text, "{\"protocol\": \"https\"}{\"protocol\": \"https\"}");
    got = test_run_loop(loop, "curl -sS --tls-max 1.2 --cacert %s https://127.0.0.1:%d/large | wc -c",
                        certificate_path("root.pem"), site.port);
    CHECK_INT(atoi(got->text), sizeof large);
    got = test_run_loop(loop, "curl -sS https://localhost:%d/ 2>&1", site.port);
    CHECK_INT(got->status, 60); /* it does not trust us */
    got = test_run_loop(loop, "curl -sS --tls-max 1.1 --cacert %s https://localhost:%d/ 2>&1",
                        certificate_path("root.pem"), site.port);
    CHECK_INT(got->status, 35);
    site_close();
}

TEST(https_and_pythons_ssl)
{
    TEST_NEED("python3");
    site_open();
    const test_output *got = test_run_loop(
        tornado_ioloop_current(),
        "python3 -c 'import socket, ssl\n"
        "context = ssl.create_default_context(cafile=\"%s\")\n"
        "raw = socket.create_connection((\"127.0.0.1\", %d))\n"
        "s = context.wrap_socket(raw, server_hostname=\"localhost\", suppress_ragged_eofs=False)\n"
        "s.sendall(b\"GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n\")\n"
        "data = b\"\"\n"
        "while True:\n"
        "    part = s.recv(100)\n"
        "    if not part: break\n"
        "    data += part\n"
        "print(s.version(), data.split(b\"\\r\\n\")[0].decode(), data.split(b\"\\r\\n\\r\\n\")[1].decode())'",
        certificate_path("root.pem"), site.port);
    CHECK_INT(got->status, 0);
    CHECK_STR(got->text, "TLSv1.3 HTTP/1.1 200 OK {\"protocol\": \"https\"}\n");
    site_close();
}

static void echo(tornado_iostream *stream, void *arg)
{
    for (; arg;) {
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
        tornado_await(tornado_iostream_write(stream, line));
    }
}

TEST(https_tcpserver_with_tls_and_openssl_s_client)
{
    TEST_NEED("openssl");
    certificates_make();
    tornado_ssl_options ssl = server_files();
    tornado_tcpserver_options options = {.stream.ssl_options = &ssl};
    tornado_bind_options bind = {.address = "127.0.0.1"};
    tornado_tcpserver *server = tornado_tcpserver_new(echo, &ssl, &options);
    CHECK(server && tornado_tcpserver_listen(server, 0, &bind));
    int port = tornado_tcpserver_port(server);
    const test_output *got = test_run_loop(
        tornado_ioloop_current(),
        "(echo a line; echo another; sleep %g) | openssl s_client -quiet -no_ign_eof -verify_return_error "
        "-verify_hostname localhost -CAfile %s -connect 127.0.0.1:%d 2>/dev/null",
        test_scaled(0.3), certificate_path("root.pem"), port);
    CHECK_STR(got->text, "a line\nanother\n");
    client c = client_open(port);
    client_send(&c, "no TLS at all\n");
    client_until_end(&c);
    client_close(&c);
    tornado_iostream *stream = dial(port);
    size_t none;
    CHECK_STR(ask(stream, "still there\r\n\r\n", &none), "still there\r\n\r\n");
    tornado_iostream_release(stream);
    tornado_tcpserver_free(server);
    certificates_remove();
}

/* The names that a server shows to a new connection. */
static void shows(int port, const char *names)
{
    tornado_iostream *stream = dial(port);
    CHECK_STR(tornado_iostream_get_ssl_certificate(stream)->alt_names, names);
    tornado_iostream_release(stream);
}

TEST(https_example_serves_and_reads_its_certificate_again)
{
    char line[200], log[200];
    int port = 0;
    const char *directory = getenv("TEST_EXAMPLES");
    snprintf(line, sizeof line, "%s/https", directory ? directory : "build/examples");
    if (access(line, X_OK) != 0)
        SKIP("%s is not there: make examples", line);
    certificates_make();
    const test_output *without = test_run("%s 0 /nowhere/cert.pem 2>&1", line);
    CHECK(without->status != 0);
    if (strstr(without->text, "build it with"))
        SKIP("the examples were built without OpenSSL");
    char command[1000];
    snprintf(command, sizeof command, "echo $$; exec %s 0 %s %s 2>&1", line, certificate_path("server.pem"),
             certificate_path("server.key"));
    FILE *output = popen(command, "r");
    CHECK(output && fgets(log, sizeof log, output));
    pid_t pid = (pid_t)atol(log);
    while (fgets(log, sizeof log, output) && sscanf(log, "serving on https://127.0.0.1:%d/", &port) != 1) {
    }
    CHECK(port > 0);
    shows(port, "DNS:localhost, IP Address:127.0.0.1");
    certificate_make((certificate){.name = "server", .issuer = "root", .alt_names = "DNS:localhost"});
    CHECK(kill(pid, SIGHUP) == 0);
    while (fgets(log, sizeof log, output) && !strstr(log, "the certificate was read again")) {
    }
    shows(port, "DNS:localhost");
    CHECK(unlink(certificate_path("server.key")) == 0 && kill(pid, SIGHUP) == 0);
    while (fgets(log, sizeof log, output) && !strstr(log, "the old certificate stays: ")) {
    }
    shows(port, "DNS:localhost");
    CHECK(kill(pid, SIGTERM) == 0);
    CHECK_INT(pclose(output), 0);
    certificates_remove();
}

/* Starts openssl s_server, which answers with its lines reversed. */
static pid_t reversing_server(int *port)
{
    char accept[16];
    int listener = listen_loopback(port);
    close(listener); /* a port that is likely to stay free */
    snprintf(accept, sizeof accept, "%d", *port);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK(freopen("/dev/null", "r", stdin) && freopen("/dev/null", "w", stdout));
        execlp("openssl", "openssl", "s_server", "-accept", accept, "-rev", "-quiet", "-cert",
               certificate_path("server.pem"), "-key", certificate_path("server.key"), (char *)NULL);
        _exit(127);
    }
    for (int fd = -1, tries = 0; fd < 0; tries++) {
        struct sockaddr_in address = loopback(*port);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
            close(fd);
            break;
        }
        close(fd);
        fd = -1;
        loop_run_for(0.02);
        CHECK(tries < 400);
    }
    return pid;
}

TEST(https_streams_and_openssl_s_server)
{
    TEST_NEED("openssl");
    int port;
    certificates_make();
    pid_t pid = reversing_server(&port);
    tornado_iostream *stream = dial(port);
    for (int i = 0; i < 3; i++) {
        tornado_future *wrote = tornado_iostream_write(stream, tornado_bytes_of("0123456789\n"));
        tornado_future *read = tornado_iostream_read_until(stream, "\n");
        CHECK(loop_until(read) == NULL);
        CHECK_STR(tornado_future_bytes(read).data, "9876543210\n");
        tornado_future_release(read);
        CHECK_INT(loop_code(wrote), 0);
    }
    tornado_iostream_release(stream);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    certificates_remove();
}

/* Answers with the protocol. */
static void tell_protocol(void *self)
{
    tornado_http1_connection *c = self;
    const char *protocol = tornado_http1_connection_request(c)->protocol;
    CHECK(sent(write_head(c, 200, (int64_t)strlen(protocol), NULL)));
    CHECK(sent(tornado_http1_connection_write(c, tornado_bytes_of(protocol))));
    CHECK(sent(tornado_http1_connection_finish(c)));
}

static const tornado_http_message_delegate *start_telling(void *self, tornado_http1_server_connection *server,
                                                          tornado_http1_connection *connection, void **message)
{
    static const tornado_http_message_delegate telling = {.finish = tell_protocol};
    (void)self;
    (void)server;
    *message = connection;
    return &telling;
}

static void serve_http(tornado_iostream *stream, void *arg)
{
    static const tornado_http_server_connection_delegate delegate = {.start_request = start_telling};
    (void)arg;
    tornado_await(tornado_iostream_wait_for_handshake(stream));
    tornado_http1_server_connection *connection = tornado_http1_server_connection_new(stream, NULL, NULL);
    CHECK(connection && tornado_http1_server_connection_start_serving(connection, &delegate, NULL));
    tornado_http1_server_connection_release(connection);
}

TEST(https_server_connection_over_a_stream_with_tls_says_https)
{
    certificates_make();
    tornado_ssl_options ssl = server_files();
    tornado_tcpserver_options options = {.stream.ssl_options = &ssl};
    tornado_bind_options bind = {.address = "127.0.0.1"};
    tornado_tcpserver *server = tornado_tcpserver_new(serve_http, NULL, &options);
    CHECK(server && tornado_tcpserver_listen(server, 0, &bind));
    tornado_iostream *stream = dial(tornado_tcpserver_port(server));
    size_t len;
    ask(stream, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &len);
    tornado_future *said = body(stream, len);
    CHECK_MEM(tornado_future_bytes(said).data, len, "https", 5);
    tornado_future_release(said);
    tornado_iostream_release(stream);
    tornado_tcpserver_free(server);
    certificates_remove();
}
#endif
