/* TLS between streams, and with other programs: handshakes that succeed, and each way in which they fail. */
#include "certificates.h"
#include "faults.h"
#include "http_client.h"

#include <limits.h>

#ifndef TORNADO_OPENSSL

TEST(tls_that_was_not_built_in_says_how_to_have_it)
{
    int ends[2];
    tornado_ssl_options options = {.server_hostname = "localhost"};
    CHECK(tornado_ssl_options_to_context(&options) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_UNSUPPORTED);
    CHECK(strstr(tornado_last_error()->message, "-DTORNADO_OPENSSL and -lssl -lcrypto"));
    CHECK(!tornado_ssl_context_reload(NULL) && !tornado_ssl_context_add_certificate(NULL, "", ""));
    CHECK(!tornado_ssl_context_handle(tornado_ssl_context_retain(NULL)));
    tornado_ssl_context_release(NULL);
    tcp_pair(ends);
    tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
    CHECK_INT(loop_code(tornado_iostream_start_tls(stream, &options)), TORNADO_ERR_UNSUPPORTED);
    CHECK(!tornado_iostream_closed(stream));
    CHECK_INT(loop_code(tornado_iostream_wait_for_handshake(stream)), TORNADO_ERR_STATE);
    CHECK(!tornado_iostream_get_ssl_certificate(stream) && !tornado_iostream_ssl_handle(stream));
    tornado_iostream_release(stream);
    tornado_iostream_options with = {.ssl_options = &options};
    CHECK(tornado_iostream_new(ends[1], &with) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_UNSUPPORTED);
}

TEST(tls_between_streams_and_with_other_programs)
{
    SKIP("there is no OpenSSL to build with");
}

#else

/* Both ends of a connection. */
typedef struct pair {
    tornado_iostream *server, *client;
} pair;

static tornado_ssl_options server_options(const char *name)
{
    char file[80];
    tornado_ssl_options options = {.server_side = true};
    snprintf(file, sizeof file, "%s.pem", name);
    options.certfile = certificate_path(file);
    snprintf(file, sizeof file, "%s.key", name);
    options.keyfile = certificate_path(file);
    return options;
}

static tornado_ssl_options client_options(const char *host)
{
    return (tornado_ssl_options){.server_hostname = host, .ca_certs = certificate_path("root.pem")};
}

/* A stream with TLS over a connected socket. */
static tornado_iostream *secured(int fd, const tornado_ssl_options *options)
{
    tornado_iostream_options with = {.ssl_options = options};
    tornado_iostream *stream = tornado_iostream_new(fd, &with);
    if (!stream)
        FAIL("no stream: %s", tornado_last_error()->message);
    return stream;
}

static pair pair_with(tornado_ssl_options server, tornado_ssl_options client)
{
    int ends[2];
    tcp_pair(ends);
    return (pair){secured(ends[0], &server), secured(ends[1], &client)};
}

/* Certificates as ever, and a connection. */
static pair pair_new(void)
{
    certificates_make();
    return pair_with(server_options("server"), client_options("localhost"));
}

static void pair_free(pair *p)
{
    tornado_iostream_release(p->server);
    tornado_iostream_release(p->client);
}

static void ok(tornado_future *future)
{
    const tornado_error *error = loop_until(future);
    if (error)
        FAIL("it failed: %s", error->message);
    tornado_future_release(future);
}

static void shake_hands(pair *p)
{
    tornado_future *server = tornado_iostream_wait_for_handshake(p->server);
    ok(tornado_iostream_wait_for_handshake(p->client));
    ok(server);
}

static void expect(tornado_future *future, const char *want)
{
    const tornado_error *error = loop_until(future);
    if (error)
        FAIL("the read failed: %s", error->message);
    tornado_bytes got = tornado_future_bytes(future);
    CHECK_MEM(got.data, got.len, want, strlen(want));
    tornado_future_release(future);
}

static void say(tornado_iostream *from, tornado_iostream *to, const char *line)
{
    tornado_future *read = tornado_iostream_read_until(to, "\n");
    ok(tornado_iostream_write(from, tornado_bytes_of(line)));
    expect(read, line);
}

/* What the client's handshake fails with, which is about certificates; the server then fails, too. */
static const char *refusal(tornado_ssl_options server, tornado_ssl_options client)
{
    static char message[256];
    pair p = pair_with(server, client);
    tornado_future *other = tornado_iostream_wait_for_handshake(p.server);
    tornado_future *future = tornado_iostream_wait_for_handshake(p.client);
    const tornado_error *error = loop_until(future);
    CHECK(error != NULL);
    CHECK_INT(error->code, TORNADO_ERR_SSL);
    snprintf(message, sizeof message, "%s", error->message);
    CHECK(tornado_iostream_closed(p.client));
    CHECK_STR(tornado_iostream_error(p.client)->message, message);
    tornado_future_release(future);
    CHECK_INT(loop_code(other), TORNADO_ERR_SSL);
    pair_free(&p);
    return message;
}

TEST_EACH_POLLER(tls_carries_lines_both_ways)
{
    pair p = pair_new();
    say(p.client, p.server, "written before the handshake was over\n");
    say(p.server, p.client, "an answer\n");
    say(p.client, p.server, "again\n");
    tornado_future *end = tornado_iostream_read_until_close(p.server);
    tornado_iostream_close(p.client);
    expect(end, "");
    CHECK(tornado_iostream_error(p.server) == NULL);
    pair_free(&p);
    certificates_remove();
}

TEST_EACH_POLLER(tls_carries_megabytes_both_ways_at_once)
{
    enum { LEN = 3 << 20 };
    pair p = pair_new();
    char *data = malloc(LEN), *got = malloc(LEN);
    for (int i = 0; i < LEN; i++)
        data[i] = (char)(i * 31 + i / 251);
    tornado_future *into = tornado_iostream_read_into(p.client, got, LEN);
    tornado_future *read = tornado_iostream_read_bytes(p.server, LEN);
    tornado_bytes halves[] = {{data, LEN / 2}, {data + LEN / 2, LEN - LEN / 2}};
    tornado_future *wrote[] = {tornado_iostream_write(p.client, (tornado_bytes){data, LEN}),
                               tornado_iostream_writev(p.server, halves, 2)};
    CHECK(loop_until(read) == NULL);
    CHECK_MEM(tornado_future_bytes(read).data, tornado_future_bytes(read).len, data, LEN);
    tornado_future_release(read);
    ok(into);
    CHECK_MEM(got, LEN, data, LEN);
    ok(wrote[0]);
    ok(wrote[1]);
    pair_free(&p);
    free(data);
    free(got);
    certificates_remove();
}

TEST(tls_sends_a_file)
{
    enum { LEN = 200000 };
    pair p = pair_new();
    static char data[LEN];
    int file = open(certificate_path("file.pem"), O_RDWR | O_CREAT, 0600);
    memset(data, 'f', sizeof data);
    CHECK_INT(write(file, data, sizeof data), sizeof data);
    tornado_future *wrote = tornado_iostream_write_file(p.server, file, 0, LEN);
    close(file);
    tornado_future *read = tornado_iostream_read_bytes(p.client, LEN);
    CHECK(loop_until(read) == NULL);
    CHECK_MEM(tornado_future_bytes(read).data, tornado_future_bytes(read).len, data, LEN);
    tornado_future_release(read);
    ok(wrote);
    pair_free(&p);
    certificates_remove();
}

TEST(tls_connects_with_the_handshake_and_tells_what_came_of_it)
{
    int port, listener = listen_loopback(&port);
    certificates_make();
    static const char *const server_speaks[] = {"h3", "http/1.1", NULL}, *const client_speaks[] = {"http/1.1", "h3", NULL};
    tornado_ssl_options server = server_options("server"), client = client_options("localhost");
    server.alpn_protocols = server_speaks;
    client.alpn_protocols = client_speaks;
    tornado_address address;
    CHECK(tornado_address_ip(&address, "127.0.0.1", port));
    pair p = {NULL, secured(socket(AF_INET, SOCK_STREAM, 0), &client)};
    tornado_future *connected = tornado_iostream_connect(p.client, &address);
    CHECK(tornado_iostream_ssl_info(p.client) == NULL);
    loop_until_fd(listener, TORNADO_IOLOOP_READ);
    p.server = secured(accept(listener, NULL, NULL), &server);
    CHECK(loop_until(connected) == NULL);
    CHECK(tornado_future_result(connected) == p.client);
    tornado_future_release(connected);
    const tornado_ssl_info *info = tornado_iostream_ssl_info(p.client);
    CHECK_STR(info->version, "TLSv1.3");
    CHECK_STR(info->alpn_protocol, "h3"); /* the server chooses */
    CHECK(*info->cipher && !info->session_reused);
    const tornado_ssl_certificate *certificate = tornado_iostream_get_ssl_certificate(p.client);
    CHECK(certificate == info->certificate);
    CHECK_STR(certificate->common_name, "server");
    CHECK_STR(certificate->subject, "CN=server,O=Tests");
    CHECK_STR(certificate->issuer, "CN=root,O=Tests");
    CHECK_STR(certificate->alt_names, "DNS:localhost, IP Address:127.0.0.1");
    CHECK_STR(certificate->serial, "1002");
    CHECK_INT(certificate->not_after - certificate->not_before, 11 * 86400);
    CHECK(certificate->der.len > 100 && certificate->der.data[0] == 0x30);
    CHECK(tornado_iostream_ssl_handle(p.client) != NULL);
    say(p.server, p.client, "hello\n");
    CHECK_STR(tornado_iostream_ssl_info(p.server)->server_hostname, "localhost");
    CHECK(tornado_iostream_get_ssl_certificate(p.server) == NULL);
    tornado_iostream_close(p.client);
    CHECK(!tornado_iostream_ssl_info(p.client) && !tornado_iostream_ssl_handle(p.client));
    pair_free(&p);
    close(listener);
    certificates_remove();
}

TEST(tls_handshake_that_is_waited_for_is_not_waited_for_twice)
{
    tornado_address address;
    certificates_make();
    tornado_ssl_options client = client_options("localhost");
    tornado_iostream *stream = secured(socket(AF_INET, SOCK_STREAM, 0), &client);
    tornado_future *first = tornado_iostream_wait_for_handshake(stream);
    CHECK_INT(loop_code(tornado_iostream_wait_for_handshake(stream)), TORNADO_ERR_STATE);
    CHECK(tornado_address_ip(&address, "127.0.0.1", 1));
    CHECK_INT(loop_code(tornado_iostream_connect(stream, &address)), TORNADO_ERR_STATE);
    tornado_iostream_close(stream);
    CHECK_INT(loop_code(first), TORNADO_ERR_CLOSED);
    tornado_iostream_release(stream);
    certificates_remove();
}

TEST(tls_starts_on_a_stream_in_the_clear)
{
    int ends[2];
    tcp_pair(ends);
    certificates_make();
    pair p = {tornado_iostream_new(ends[0], NULL), tornado_iostream_new(ends[1], NULL)};
    tornado_ssl_options server = server_options("server"), client = client_options("localhost");
    say(p.client, p.server, "STARTTLS\n");
    tornado_future *read = tornado_iostream_read_until(p.client, "\n");
    CHECK_INT(loop_code(tornado_iostream_start_tls(p.client, &client)), TORNADO_ERR_STATE); /* a read is under way */
    ok(tornado_iostream_write(p.server, tornado_bytes_of("go ahead\ninjected")));
    expect(read, "go ahead\n");
    CHECK_INT(loop_code(tornado_iostream_start_tls(p.client, &client)), TORNADO_ERR_STATE); /* there is more */
    expect(tornado_iostream_read_bytes(p.client, 8), "injected");
    tornado_future *one = tornado_iostream_start_tls(p.server, &server);
    tornado_future *other = tornado_iostream_start_tls(p.client, &client);
    CHECK_INT(loop_code(tornado_iostream_wait_for_handshake(p.client)), TORNADO_ERR_STATE);
    CHECK(loop_until(one) == NULL && loop_until(other) == NULL);
    CHECK(tornado_future_result(one) == p.server);
    tornado_future_release(one);
    tornado_future_release(other);
    ok(tornado_iostream_wait_for_handshake(p.client)); /* it is over */
    say(p.client, p.server, "secret\n");
    CHECK_INT(loop_code(tornado_iostream_start_tls(p.client, &client)), TORNADO_ERR_STATE);
    tornado_iostream_close(p.client);
    CHECK_INT(loop_code(tornado_iostream_start_tls(p.client, &client)), TORNADO_ERR_CLOSED);
    CHECK_INT(loop_code(tornado_iostream_wait_for_handshake(p.client)), TORNADO_ERR_CLOSED);
    pair_free(&p);
    certificates_remove();
}

TEST(tls_tells_what_is_wrong_with_a_certificate)
{
    static const struct {
        certificate certificate;
        const char *host, *message;
    } cases[] = {
        {{.name = "expired", .issuer = "root", .alt_names = "DNS:localhost", .begins = -9, .ends = -2}, "localhost",
         "the certificate of localhost has expired"},
        {{.name = "early", .issuer = "root", .alt_names = "DNS:localhost", .begins = 2, .ends = 9}, "localhost",
         "the certificate of localhost is not valid yet"},
        {{.name = "selfsigned", .alt_names = "DNS:localhost"}, "localhost",
         "the certificate of localhost is self-signed, and is not among those trusted"},
        {{.name = "stranger", .issuer = "others", .alt_names = "DNS:localhost"}, "localhost",
         "the certificate of localhost is by \"others\", whom nobody here trusts"},
        {{.name = "elsewhere", .issuer = "root", .alt_names = "DNS:example.com,IP:10.0.0.1"}, "localhost",
         "the certificate is not for localhost, but for \"elsewhere\""},
        {{.name = "elsewhere", .issuer = "root", .alt_names = "DNS:example.com,IP:10.0.0.1"}, "127.0.0.1",
         "the certificate is not for 127.0.0.1, but for \"elsewhere\""},
        {{.name = "partly", .issuer = "root", .alt_names = "DNS:w*.example.com"}, "www.example.com",
         "the certificate is not for www.example.com, but for \"partly\""},
    };
    certificates_make();
    certificate_make((certificate){.name = "others", .authority = true});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        certificate_make(cases[i].certificate);
        CHECK_STR(refusal(server_options(cases[i].certificate.name), client_options(cases[i].host)), cases[i].message);
    }
    tornado_ssl_options trusting = {.server_hostname = "localhost"}; /* whom the system does */
    CHECK_STR(refusal(server_options("server"), trusting),
              "the certificate of localhost is by \"root\", whom nobody here trusts");
    certificates_remove();
}

TEST(tls_accepts_a_certificate_for_the_host_however_it_is_named)
{
    static const struct {
        const char *alt_names, *host;
    } cases[] = {{"DNS:localhost", "localhost"},       {"DNS:a.example,DNS:b.example", "b.example"},
                 {"DNS:*.example.com", "w.example.com"}, {"IP:127.0.0.1", "127.0.0.1"},
                 {"IP:::1", "::1"},                    {"DNS:LocalHost", "localhost"},
                 {"DNS:localhost", "localhost."}}; /* the root of all names need not be named */
    certificates_make();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        certificate_make((certificate){.name = "some", .issuer = "root", .alt_names = cases[i].alt_names});
        pair p = pair_with(server_options("some"), client_options(cases[i].host));
        shake_hands(&p);
        pair_free(&p);
    }
    certificates_remove();
}

TEST(tls_checks_as_much_as_it_is_told_to)
{
    certificates_make();
    certificate_make((certificate){.name = "other", .issuer = "root", .alt_names = "DNS:example.com"});
    tornado_ssl_options no_check = {.cert_reqs = TORNADO_CERT_NONE}, no_host = client_options("localhost");
    tornado_ssl_options by_directory = client_options("localhost");
    no_host.check_hostname = TORNADO_OFF;
    pair p = pair_with(server_options("other"), no_check);
    shake_hands(&p);
    CHECK_STR(tornado_iostream_get_ssl_certificate(p.client)->common_name, "other");
    pair_free(&p);
    p = pair_with(server_options("other"), no_host);
    shake_hands(&p);
    pair_free(&p);
    tornado_ssl_options files = server_options("server");
    tornado_ssl_context *server = tornado_ssl_options_to_context(&files);
    CHECK(server && !tornado_ssl_options_to_context(&(tornado_ssl_options){.context = server}));
    CHECK_STR(tornado_last_error()->message, "the context was made for servers");
    tornado_ssl_context_release(server);
    const char *nobody[] = {NULL, "", "."};
    for (size_t i = 0; i < sizeof nobody / sizeof *nobody; i++) {
        int ends[2];
        tornado_ssl_options options = client_options(nobody[i]);
        tcp_pair(ends);
        CHECK(tornado_iostream_new(ends[0], &(tornado_iostream_options){.ssl_options = &options}) == NULL);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
        CHECK(strstr(tornado_last_error()->message, "server_hostname"));
        close(ends[1]);
    }
    by_directory.ca_certs = certificates_directory; /* without the names that OpenSSL looks for */
    CHECK(strstr(refusal(server_options("server"), by_directory), "nobody here trusts"));
    certificates_remove();
}

TEST(tls_server_asks_for_certificates_of_clients)
{
    certificates_make();
    certificate_make((certificate){.name = "alice", .issuer = "root"});
    certificate_make((certificate){.name = "others", .authority = true});
    certificate_make((certificate){.name = "mallory", .issuer = "others"});
    static const struct {
        int reqs;
        const char *client, *shown, *refused;
    } cases[] = {{TORNADO_CERT_NONE, "alice", NULL, NULL},
                 {TORNADO_CERT_OPTIONAL, "alice", "alice", NULL},
                 {TORNADO_CERT_OPTIONAL, NULL, NULL, NULL},
                 {TORNADO_CERT_REQUIRED, "alice", "alice", NULL},
                 {TORNADO_CERT_REQUIRED, NULL, NULL, "TLS handshake: the peer has shown no certificate"},
                 {TORNADO_CERT_OPTIONAL, "mallory", NULL,
                  "the certificate of the peer is by \"others\", whom nobody here trusts"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tornado_ssl_options server = server_options("server"), client = client_options("localhost");
        server.cert_reqs = cases[i].reqs;
        server.ca_certs = certificate_path("root.pem");
        if (cases[i].client) {
            tornado_ssl_options own = server_options(cases[i].client);
            client.certfile = own.certfile;
            client.keyfile = own.keyfile;
        }
        pair p = pair_with(server, client);
        tornado_future *shaken = tornado_iostream_wait_for_handshake(p.server);
        const tornado_error *error = loop_until(shaken);
        CHECK_STR(error ? error->message : "", cases[i].refused ? cases[i].refused : "");
        tornado_future_release(shaken);
        if (!error) {
            const tornado_ssl_certificate *certificate = tornado_iostream_get_ssl_certificate(p.server);
            CHECK_STR(certificate ? certificate->common_name : "", cases[i].shown ? cases[i].shown : "");
            say(p.server, p.client, "welcome\n");
        } else { /* in TLS 1.3 the client learns of it when it reads */
            CHECK_INT(loop_code(tornado_iostream_read_bytes(p.client, 1)), TORNADO_ERR_SSL);
            CHECK(strstr(tornado_iostream_error(p.client)->message, "the peer has refused: "));
        }
        pair_free(&p);
    }
    tornado_ssl_options server = server_options("server");
    server.cert_reqs = TORNADO_CERT_REQUIRED;
    CHECK(tornado_ssl_options_to_context(&server) == NULL);
    CHECK(strstr(tornado_last_error()->message, "ca_certs"));
    certificates_remove();
}

/* Whom the server shows itself as to a client that asks for a host. */
static const char *shown_to(tornado_ssl_context *context, const char *host)
{
    static char name[100];
    pair p = pair_with((tornado_ssl_options){.server_side = true, .context = context},
                       (tornado_ssl_options){.server_hostname = host, .cert_reqs = TORNADO_CERT_NONE});
    shake_hands(&p);
    snprintf(name, sizeof name, "%s", tornado_iostream_get_ssl_certificate(p.client)->common_name);
    say(p.client, p.server, "hello\n");
    pair_free(&p);
    return name;
}

TEST(tls_server_has_several_certificates_and_reads_them_again)
{
    certificates_make();
    certificate_make((certificate){.name = "one", .alt_names = "DNS:one.example,DNS:*.one.example"});
    certificate_make((certificate){.name = "two", .alt_names = "DNS:two.example"});
    tornado_ssl_options options = server_options("server"), two = server_options("two"), one = server_options("one");
    tornado_ssl_context *context = tornado_ssl_options_to_context(&options);
    CHECK(context && tornado_ssl_context_handle(context));
    CHECK(tornado_ssl_context_add_certificate(context, one.certfile, one.keyfile));
    CHECK(tornado_ssl_context_add_certificate(context, two.certfile, two.keyfile));
    CHECK_STR(shown_to(context, "one.example"), "one");
    CHECK_STR(shown_to(context, "sub.one.example"), "one");
    CHECK_STR(shown_to(context, "two.example"), "two");
    CHECK_STR(shown_to(context, "three.example"), "server");
    CHECK_STR(shown_to(context, NULL), "server");
    CHECK(!tornado_ssl_context_add_certificate(context, certificate_path("none.pem"), NULL));
    CHECK(strstr(tornado_last_error()->message, "none.pem: No such file or directory"));

    certificate_make((certificate){.name = "new", .alt_names = "DNS:two.example"});
    CHECK(rename(certificate_path("new.pem"), two.certfile) == 0);
    CHECK(!tornado_ssl_context_reload(context)); /* the key is another's */
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_SSL);
    CHECK_STR(shown_to(context, "two.example"), "two");
    CHECK(rename(certificate_path("new.key"), two.keyfile) == 0);
    CHECK(tornado_ssl_context_reload(context));
    CHECK_STR(shown_to(context, "two.example"), "new");
    CHECK_STR(shown_to(context, "one.example"), "one");
    tornado_ssl_context_release(context);
    certificates_remove();
}

TEST(tls_goes_on_with_sessions_also_over_a_reload)
{
    for (int version = TORNADO_TLS_1_2; version <= TORNADO_TLS_1_3; version++) {
        certificates_make();
        tornado_ssl_options server = server_options("server"), client = client_options("localhost");
        client.maximum_version = version;
        tornado_ssl_context *contexts[] = {tornado_ssl_options_to_context(&server),
                                           tornado_ssl_options_to_context(&client)};
        for (int i = 0; i < 4; i++) {
            pair p = pair_with((tornado_ssl_options){.server_side = true, .context = contexts[0]},
                               (tornado_ssl_options){.server_hostname = "localhost", .context = contexts[1]});
            shake_hands(&p);
            say(p.server, p.client, "by now the client has a ticket\n");
            CHECK_INT(tornado_iostream_ssl_info(p.client)->session_reused, i > 0);
            CHECK_INT(tornado_iostream_ssl_info(p.server)->session_reused, i > 0);
            pair_free(&p);
            CHECK(i != 1 || tornado_ssl_context_reload(contexts[0]));
        }
        tornado_ssl_context_release(contexts[0]);
        tornado_ssl_context_release(contexts[1]);
        certificates_remove();
    }
}

/* Whom one side trusted before a reload, and does not any more, cannot go on with a session. */
static void check_trust_ends(int version, bool by_server)
{
    certificates_make();
    certificate_make((certificate){.name = "newer", .authority = true});
    certificate_make((certificate){.name = "others", .authority = true});
    certificate_make((certificate){.name = "mallory", .issuer = by_server ? "others" : "root"});
    tornado_ssl_options server = server_options("server"), client = client_options("localhost");
    tornado_ssl_options mallory = server_options("mallory");
    client.certfile = mallory.certfile;
    client.keyfile = mallory.keyfile;
    client.maximum_version = version;
    CHECK(rename(certificate_path(by_server ? "others.pem" : "root.pem"), certificate_path("trusted.pem")) == 0);
    if (by_server)
        server.cert_reqs = TORNADO_CERT_REQUIRED;
    *(by_server ? &server.ca_certs : &client.ca_certs) = certificate_path("trusted.pem");
    tornado_ssl_context *contexts[] = {tornado_ssl_options_to_context(&server),
                                       tornado_ssl_options_to_context(&client)};
    tornado_ssl_options of_server = {.server_side = true, .context = contexts[0]};
    tornado_ssl_options of_client = {.server_hostname = "localhost", .context = contexts[1]};
    for (int i = 0; i < 2; i++) {
        pair p = pair_with(of_server, of_client);
        shake_hands(&p);
        say(p.server, p.client, "by now the client has a ticket\n");
        CHECK_INT(tornado_iostream_ssl_info(p.server)->session_reused, i > 0);
        pair_free(&p);
    }
    pair before = pair_with(of_server, of_client);
    shake_hands(&before);
    CHECK(rename(certificate_path("newer.pem"), certificate_path("trusted.pem")) == 0);
    CHECK(tornado_ssl_context_reload(contexts[by_server ? 0 : 1]));
    say(before.server, before.client, "tickets may come behind the handshake\n");
    pair p = pair_with(of_server, of_client);
    tornado_future *shaken = tornado_iostream_wait_for_handshake(by_server ? p.server : p.client);
    CHECK_INT(loop_code(shaken), TORNADO_ERR_SSL);
    pair_free(&p);
    pair_free(&before);
    tornado_ssl_context_release(contexts[0]);
    tornado_ssl_context_release(contexts[1]);
    certificates_remove();
}

TEST(tls_sessions_do_not_go_on_over_a_reload_with_whom_it_may_no_longer_trust)
{
    for (int version = TORNADO_TLS_1_2; version <= TORNADO_TLS_1_3; version++) {
        check_trust_ends(version, true);
        check_trust_ends(version, false);
    }
}

TEST(tls_versions_and_ciphers_are_as_they_are_told)
{
    certificates_make();
    tornado_ssl_options server = server_options("server"), client = client_options("localhost");
    server.ciphers = "ECDHE-ECDSA-AES256-GCM-SHA384";
    server.maximum_version = TORNADO_TLS_1_2;
    pair p = pair_with(server, client);
    shake_hands(&p);
    CHECK_STR(tornado_iostream_ssl_info(p.client)->version, "TLSv1.2");
    CHECK_STR(tornado_iostream_ssl_info(p.client)->cipher, "ECDHE-ECDSA-AES256-GCM-SHA384");
    pair_free(&p);
    client.ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256";
    client.maximum_version = TORNADO_TLS_1_2;
    CHECK(strstr(refusal(server, client), "the peer has refused: handshake failure"));
    client.ciphers = NULL;
    client.minimum_version = client.maximum_version = TORNADO_TLS_1_3;
    CHECK(strstr(refusal(server, client), "protocol version") ||
          strstr(tornado_last_error()->message, "no version"));
    client.ciphers = "NONSENSE";
    CHECK(tornado_ssl_options_to_context(&client) == NULL);
    CHECK(strstr(tornado_last_error()->message, "ciphers NONSENSE: "));
    certificates_remove();
}

TEST(tls_files_that_cannot_be_used_are_named)
{
    certificates_make();
    certificate_make((certificate){.name = "other"});
    FILE *file = certificate_file("text", "pem", "w");
    fputs("this is no certificate\n", file);
    fclose(file);
    const struct {
        const char *certfile, *keyfile, *message;
    } cases[] = {{NULL, NULL, "a TLS server needs a certfile"},
                 {"none.pem", NULL, "none.pem: No such file or directory"},
                 {"server.pem", "none.key", "none.key: No such file or directory"},
                 {"text.pem", NULL, "certfile "},
                 {"server.pem", NULL, "keyfile "},
                 {"server.pem", "other.key", "key values mismatch"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tornado_ssl_options options = {.server_side = true};
        options.certfile = cases[i].certfile ? certificate_path(cases[i].certfile) : NULL;
        options.keyfile = cases[i].keyfile ? certificate_path(cases[i].keyfile) : NULL;
        CHECK(tornado_ssl_options_to_context(&options) == NULL);
        if (!strstr(tornado_last_error()->message, cases[i].message))
            FAIL("\"%s\" does not say \"%s\"", tornado_last_error()->message, cases[i].message);
    }
    tornado_ssl_options client = {.ca_certs = certificate_path("text.pem")};
    CHECK(tornado_ssl_options_to_context(&client) == NULL);
    CHECK(strstr(tornado_last_error()->message, "ca_certs "));
    client.ca_certs = certificate_path("none.pem");
    CHECK(tornado_ssl_options_to_context(&client) == NULL);
    CHECK(strstr(tornado_last_error()->message, "No such file"));
    static const char *const nothing[] = {"", NULL};
    client = (tornado_ssl_options){.alpn_protocols = nothing};
    CHECK(tornado_ssl_options_to_context(&client) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    certificates_remove();
}

TEST(tls_by_an_ssl_ctx_of_the_programs)
{
    certificates_make();
    SSL_CTX *own = SSL_CTX_new(TLS_server_method());
    CHECK(SSL_CTX_use_certificate_chain_file(own, certificate_path("server.pem")) == 1);
    CHECK(SSL_CTX_use_PrivateKey_file(own, certificate_path("server.key"), SSL_FILETYPE_PEM) == 1);
    tornado_ssl_options server = {.server_side = true, .ssl_ctx = own};
    tornado_ssl_context *context = tornado_ssl_options_to_context(&server);
    SSL_CTX_free(own);
    CHECK(tornado_ssl_context_handle(context) == own);
    CHECK(tornado_ssl_context_retain(context) == context);
    tornado_ssl_context_release(context);
    CHECK(!tornado_ssl_context_reload(context) && !tornado_ssl_context_add_certificate(context, "a", "b"));
    pair p = pair_with((tornado_ssl_options){.server_side = true, .context = context}, client_options("localhost"));
    say(p.client, p.server, "hello\n");
    pair_free(&p);
    tornado_ssl_context_release(context);
    certificates_remove();
}

/*----------------------------------------------------------------------------
 * Peers that do not behave.
 *----------------------------------------------------------------------------*/

/* What the handshake of one side comes to when the other, a bare socket, sends this and perhaps closes. */
static tornado_error garbage(tornado_ssl_options options, const void *data, size_t len, bool closes)
{
    int ends[2];
    tcp_pair(ends);
    tornado_iostream *stream = secured(ends[0], &options);
    CHECK_INT(send(ends[1], data, len, MSG_NOSIGNAL), len);
    if (closes)
        CHECK(shutdown(ends[1], SHUT_WR) == 0);
    tornado_future *future = tornado_iostream_wait_for_handshake(stream);
    const tornado_error *error = loop_until(future);
    CHECK(error != NULL);
    tornado_error copy = *error;
    tornado_future_release(future);
    CHECK(tornado_iostream_closed(stream));
    tornado_iostream_release(stream);
    close(ends[1]);
    return copy;
}

TEST(tls_peer_that_reset_before_it_was_accepted_fails_the_handshake)
{
    int port, listener = listen_loopback(&port), peer = connect_loopback(port);
    certificates_make();
    tornado_ssl_options options = server_options("server");
    close_with_reset(peer);
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        SKIP("accept tells of the reset by itself: %s", strerror(errno));
    tornado_iostream *stream = secured(fd, &options);
    CHECK_INT(loop_code(tornado_iostream_wait_for_handshake(stream)), TORNADO_ERR_CLOSED);
    CHECK_INT(tornado_iostream_error(stream)->sys_errno, ECONNRESET);
    tornado_iostream_release(stream);
    close(listener);
    certificates_remove();
}

TEST(tls_peer_that_sends_something_else_is_told_from_one_that_closes)
{
    static const struct {
        const char *data, *message;
    } cases[] = {{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "TLS handshake: the peer speaks plain HTTP"},
                 {"SSH-2.0-OpenSSH_9.2\r\n", "TLS handshake: what the peer sends is not TLS"},
                 {"\x16\x03\x01\x7f\xff", "TLS handshake: "},
                 {"", "TLS handshake: the peer has closed the connection"},
                 {"\x16\x03\x01", "TLS handshake: the peer has closed the connection"}};
    certificates_make();
    for (int side = 0; side < 2; side++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            tornado_error error = garbage(side ? server_options("server") : client_options("localhost"), cases[i].data,
                                          strlen(cases[i].data), true);
            CHECK_INT(error.code, TORNADO_ERR_SSL);
            if (side || i > 0)
                CHECK_MEM(error.message, strlen(cases[i].message), cases[i].message, strlen(cases[i].message));
        }
    certificates_remove();
}

/* An alert, close_notify, that anybody on the way can put there, as it is not encrypted yet. */
TEST(tls_peer_that_says_goodbye_instead_of_shaking_hands_has_closed)
{
    certificates_make();
    for (int side = 0; side < 2; side++) {
        tornado_error error = garbage(side ? server_options("server") : client_options("localhost"),
                                      "\x15\x03\x03\0\x02\x01\0", 7, false);
        CHECK_INT(error.code, TORNADO_ERR_SSL);
        if (!side)
            CHECK_STR(error.message, "TLS handshake: the peer has closed the connection");
    }
    certificates_remove();
}

TEST(tls_peer_that_closes_anywhere_in_its_hello_is_an_error_and_nothing_leaks)
{
    certificates_make();
    int ends[2];
    char hello[2000];
    tcp_pair(ends);
    tornado_ssl_options client = client_options("localhost");
    tornado_iostream *stream = secured(ends[0], &client);
    ssize_t len = recv(ends[1], hello, sizeof hello, 0);
    CHECK(len > 100);
    tornado_iostream_release(stream);
    close(ends[1]);
    for (ssize_t cut = 0; cut < len; cut += cut < 20 ? 1 : 37) {
        tornado_error error = garbage(server_options("server"), hello, (size_t)cut, true);
        CHECK_STR(error.message, "TLS handshake: the peer has closed the connection");
    }
    certificates_remove();
}

TEST(tls_bytes_may_dribble)
{
    certificates_make();
    int one[2], other[2];
    char c;
    tcp_pair(one);
    tcp_pair(other);
    set_nonblocking(one[1]);
    set_nonblocking(other[1]);
    tornado_ssl_options server = server_options("server"), client = client_options("localhost");
    pair p = {secured(one[0], &server), secured(other[0], &client)};
    tornado_future *read = tornado_iostream_read_until(p.server, "\n");
    tornado_future *wrote = tornado_iostream_write(p.client, tornado_bytes_of("a line\n"));
    while (!tornado_future_done(read)) { /* a byte at a time from each to the other */
        if (recv(one[1], &c, 1, 0) == 1)
            CHECK_INT(send(other[1], &c, 1, 0), 1);
        if (recv(other[1], &c, 1, 0) == 1)
            CHECK_INT(send(one[1], &c, 1, 0), 1);
        loop_turns(1);
    }
    expect(read, "a line\n");
    ok(wrote);
    pair_free(&p);
    close(one[1]);
    close(other[1]);
    certificates_remove();
}

TEST(tls_handshake_that_takes_too_long_ends)
{
    certificates_make();
    for (int side = 0; side < 2; side++) {
        int ends[2];
        tcp_pair(ends);
        tornado_ssl_options options = side ? server_options("server") : client_options("localhost");
        options.handshake_timeout = 0.02;
        tornado_iostream *stream = secured(ends[0], &options);
        tornado_future *read = tornado_iostream_read_bytes(stream, 1);
        CHECK_INT(loop_code(read), TORNADO_ERR_TIMEOUT);
        CHECK_STR(tornado_iostream_error(stream)->message, "the TLS handshake took too long");
        tornado_iostream_release(stream);
        close(ends[1]);
    }
    certificates_remove();
}

TEST(tls_end_that_the_peer_has_not_announced_is_an_error_unless_told)
{
    for (int suppress = 0; suppress < 2; suppress++) {
        certificates_make();
        tornado_ssl_options client = client_options("localhost");
        client.suppress_ragged_eofs = suppress;
        pair p = pair_with(server_options("server"), client);
        say(p.server, p.client, "a line\n");
        tornado_future *rest = tornado_iostream_read_until_close(p.client);
        CHECK(shutdown(tornado_iostream_fileno(p.server), SHUT_WR) == 0);
        if (suppress) {
            expect(rest, "");
        } else {
            CHECK_INT(loop_code(rest), TORNADO_ERR_SSL);
            CHECK_STR(tornado_iostream_error(p.client)->message,
                      "TLS: the connection ended, but the peer has not said that it is done");
        }
        pair_free(&p);
        certificates_remove();
    }
}

/* From now on so many sends find the socket full. */
static void fill_the_socket(long sends)
{
    test_fail_calls(test_fault_named("send", "EAGAIN"), 1, sends);
}

TEST_EACH_POLLER(tls_end_is_told_when_the_socket_has_room_for_it)
{
    pair p = pair_new();
    say(p.server, p.client, "a line\n");
    tornado_future *rest = tornado_iostream_read_until_close(p.client);
    ok(tornado_iostream_write(p.server, tornado_bytes_of("the rest")));
    fill_the_socket(3);
    tornado_iostream_close(p.server);
    CHECK(tornado_iostream_fileno(p.server) == -1);
    expect(rest, "the rest");
    CHECK(!tornado_iostream_error(p.client));
    pair_free(&p);
    certificates_remove();
}

TEST(tls_end_that_cannot_be_told_is_waited_for_no_longer_than_a_handshake)
{
    certificates_make();
    tornado_ssl_options server = server_options("server");
    server.handshake_timeout = test_scaled(1);
    pair p = pair_with(server, client_options("localhost"));
    say(p.server, p.client, "a line\n");
    fill_the_socket(LONG_MAX);
    tornado_iostream_release(p.server);
    CHECK_INT(loop_code(tornado_iostream_read_until_close(p.client)), TORNADO_ERR_SSL);
    test_fail_calls(-1, 0, 0);
    tornado_iostream_release(p.client);
    certificates_remove();
}

TEST(tls_end_that_was_not_told_when_the_loop_closes_leaves_nothing)
{
    for (int all_fds = 0; all_fds < 2; all_fds++) {
        char byte;
        pair p = pair_new();
        say(p.server, p.client, "a line\n");
        int peer = dup(tornado_iostream_fileno(p.client));
        fill_the_socket(1);
        tornado_iostream_release(p.server);
        tornado_iostream_release(p.client);
        CHECK(tornado_ioloop_close(tornado_ioloop_current(), all_fds));
        while (recv(peer, &byte, 1, 0) > 0)
            continue;
        CHECK_INT(recv(peer, &byte, 1, 0), 0);
        close(peer);
        certificates_remove();
    }
}

TEST(tls_stream_that_closes_before_all_is_sent_does_not_claim_otherwise)
{
    static char many[10 << 20];
    pair p = pair_new();
    say(p.server, p.client, "a line\n");
    tornado_future *write = tornado_iostream_write(p.server, (tornado_bytes){many, sizeof many});
    CHECK(!tornado_future_done(write));
    tornado_iostream_close(p.server);
    CHECK_INT(loop_code(write), TORNADO_ERR_CLOSED);
    CHECK_INT(loop_code(tornado_iostream_read_until_close(p.client)), TORNADO_ERR_SSL);
    pair_free(&p);
    certificates_remove();
}

TEST(tls_bytes_that_were_changed_on_the_way_end_the_stream)
{
    pair p = pair_new();
    say(p.server, p.client, "a line\n");
    tornado_future *read = tornado_iostream_read_bytes(p.client, 1);
    CHECK_INT(send(tornado_iostream_fileno(p.server), "\x17\x03\x03\0\x20 0123456789012345678901234567890", 37, 0), 37);
    CHECK_INT(loop_code(read), TORNADO_ERR_SSL);
    CHECK(strstr(tornado_iostream_error(p.client)->message, "TLS: "));
    pair_free(&p);
    certificates_remove();
}

static void count_call(void *arg)
{
    ++*(int *)arg;
}

TEST_EACH_POLLER(tls_close_callback_comes_for_an_idle_stream_and_tickets_are_no_end)
{
    int closed = 0;
    pair p = pair_new();
    shake_hands(&p);
    tornado_iostream_set_close_callback(p.client, count_call, &closed);
    loop_turns(5); /* the server's tickets have come */
    CHECK_INT(closed, 0);
    ok(tornado_iostream_write(p.server, tornado_bytes_of("unread\n")));
    tornado_iostream_close(p.server);
    loop_turns(5);
    CHECK_INT(closed, 0);
    expect(tornado_iostream_read_until(p.client, "\n"), "unread\n");
    loop_turns(5);
    CHECK_INT(closed, 1);
    CHECK(tornado_iostream_error(p.client) == NULL);
    pair_free(&p);

    p = pair_with(server_options("server"), client_options("localhost"));
    shake_hands(&p);
    tornado_iostream_set_close_callback(p.server, count_call, &closed);
    tornado_iostream_close(p.client);
    loop_turns(5);
    CHECK_INT(closed, 2);
    pair_free(&p);
    certificates_remove();
}

TEST_EACH_POLLER(tls_close_callback_comes_also_when_the_handshake_was_begun_by_the_peer)
{
    int ends[2], closed = 0;
    tcp_pair(ends);
    certificates_make();
    pair p = {tornado_iostream_new(ends[0], NULL), tornado_iostream_new(ends[1], NULL)};
    tornado_ssl_options server = server_options("server"), client = client_options("localhost");
    server.maximum_version = TORNADO_TLS_1_2; /* no tickets behind it, or the client's end would be a reset */
    tornado_iostream_set_close_callback(p.server, count_call, &closed);
    tornado_future *other = tornado_iostream_start_tls(p.client, &client);
    loop_turns(4); /* the server's stream sees that something has come */
    tornado_future *one = tornado_iostream_start_tls(p.server, &server);
    ok(other);
    ok(one);
    tornado_iostream_close(p.client);
    loop_turns(5);
    CHECK_INT(closed, 1);
    pair_free(&p);
    certificates_remove();
}

TEST(tls_refuses_to_renegotiate)
{
    certificates_make();
    tornado_ssl_options server = server_options("server");
    server.maximum_version = TORNADO_TLS_1_2;
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    tornado_ssl_options client = {.ssl_ctx = ctx, .check_hostname = TORNADO_OFF};
    pair p = pair_with(server, client);
    shake_hands(&p);
    SSL *ssl = tornado_iostream_ssl_handle(p.client);
    SSL_clear_options(ssl, SSL_OP_NO_RENEGOTIATION);
    CHECK_INT(SSL_renegotiate(ssl), 1);
    tornado_future *read = tornado_iostream_read_bytes(p.server, 1);
    CHECK(SSL_do_handshake(ssl) != 1);
    tornado_future *answer = tornado_iostream_read_bytes(p.client, 1);
    CHECK_INT(loop_code(answer), TORNADO_ERR_SSL);
    CHECK(strstr(tornado_iostream_error(p.client)->message, "renegotiation"));
    tornado_iostream_close(p.server);
    loop_code(read);
    pair_free(&p);
    SSL_CTX_free(ctx);
    certificates_remove();
}

TEST(tls_released_in_the_middle_of_a_handshake)
{
    pair p = pair_new();
    tornado_future *future = tornado_iostream_wait_for_handshake(p.server);
    loop_turns(1);
    pair_free(&p);
    CHECK(loop_code(future) != 0);
    p = pair_with(server_options("server"), client_options("localhost"));
    loop_turns(2);
    tornado_ioloop_close(tornado_ioloop_current(), true);
    pair_free(&p);
    certificates_remove();
}

TEST(tls_handshake_that_is_over_is_not_waited_for_when_memory_is_short)
{
    pair p = pair_new();
    shake_hands(&p);
    for (long n = 1; n <= 4; n++) {
        test_fail_alloc(n);
        tornado_future *future = tornado_iostream_wait_for_handshake(p.client);
        test_fail_alloc(0);
        CHECK(tornado_future_done(future));
        tornado_future_release(future);
    }
    pair_free(&p);
    certificates_remove();
}

static void ignore_chunk(tornado_bytes chunk, void *arg)
{
    (void)chunk;
    (void)arg;
}

/* A client whose bytes go where the test wants. */
typedef struct bare {
    SSL *ssl;
    BIO *in, *out;
    int fd;
} bare;

static bare bare_new(int fd)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    bare b = {SSL_new(ctx), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()), fd};
    SSL_CTX_free(ctx);
    SSL_set_bio(b.ssl, b.in, b.out);
    SSL_set_connect_state(b.ssl);
    return b;
}

/* Sends up to so many of the bytes that it has for its peer. */
static void bare_send(bare *b, int most)
{
    char data[8192];
    int len = BIO_read(b->out, data, most);
    CHECK(len > 0 && send(b->fd, data, (size_t)len, MSG_NOSIGNAL) == len);
}

/* Gives it what has come, when something has. */
static void bare_receive(bare *b)
{
    char data[8192];
    loop_until_fd(b->fd, TORNADO_IOLOOP_READ);
    ssize_t got = recv(b->fd, data, sizeof data, 0);
    CHECK(got > 0 && BIO_write(b->in, data, (int)got) == got);
}

TEST(tls_read_that_streams_does_not_end_the_handshake_unnoticed)
{
    char text[16];
    int ends[2], got;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0); /* what is sent is there at once */
    certificates_make();
    tornado_ssl_options options = server_options("server");
    tornado_iostream *stream = secured(ends[0], &options);
    bare b = bare_new(ends[1]);
    tornado_future *shaken = tornado_iostream_wait_for_handshake(stream);
    tornado_future *written = tornado_iostream_write(stream, tornado_bytes_of("greeting"));
    SSL_do_handshake(b.ssl);
    bare_send(&b, 8192);
    while (SSL_do_handshake(b.ssl) != 1)
        bare_receive(&b);
    bare_send(&b, 8); /* change_cipher_spec, and a part of the last record */
    loop_turns(4);
    tornado_read_options streaming = {.bytes = 10, .streaming_callback = ignore_chunk};
    tornado_future *read = tornado_iostream_read(stream, &streaming);
    bare_send(&b, 8192); /* it has come when the loop looks whether there is something to be read */
    ok(shaken);
    ok(written);
    while ((got = SSL_read(b.ssl, text, sizeof text)) <= 0)
        bare_receive(&b);
    CHECK_MEM(text, (size_t)got, "greeting", 8);
    tornado_iostream_release(stream);
    CHECK_INT(loop_code(read), TORNADO_ERR_CLOSED);
    SSL_free(b.ssl);
    close(b.fd);
    certificates_remove();
}

TEST(tls_failing_allocations_fail_and_never_crash)
{
    certificates_make();
    for (long n = 1; n <= 40; n++) {
        int ends[2];
        tcp_pair(ends);
        tornado_ssl_options server = server_options("server"), client = client_options("localhost");
        tornado_ioloop_current();
        test_fail_alloc(n);
        tornado_iostream *a = tornado_iostream_new(ends[0], &(tornado_iostream_options){.ssl_options = &server});
        tornado_iostream *b = tornado_iostream_new(ends[1], &(tornado_iostream_options){.ssl_options = &client});
        tornado_future *read = a ? tornado_iostream_read_until(a, "\n") : NULL;
        tornado_future *wrote = b ? tornado_iostream_write(b, tornado_bytes_of("a line\n")) : NULL;
        for (int i = 0; i < 10; i++)
            if (tornado_ioloop_add_callback(tornado_ioloop_current(), loop_stop_callback, tornado_ioloop_current()))
                tornado_ioloop_start(tornado_ioloop_current());
        if (a && tornado_iostream_ssl_info(a))
            CHECK(tornado_iostream_ssl_info(a)->version != NULL);
        test_fail_alloc(0);
        tornado_iostream_release(a);
        tornado_iostream_release(b);
        tornado_future_release(read);
        tornado_future_release(wrote);
    }
    certificates_remove();
}
#endif
