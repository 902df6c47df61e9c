/* HTTP servers behind a proxy that speaks the PROXY protocol. What headers there may be is tested with the TCP server,
   which reads them in the same way. */
#include "runtime.h"

#include "certificates.h"
#include "haproxy.h"
#include "http_client.h"

#define HEADER  "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n"
#define REQUEST "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

#define UNTIL(condition)                                                                                           \
    while (!(condition))                                                                                           \
    loop_turns(1)

static void tell_get(tornado_handler *self)
{
    tornado_writef(self, "%s %s", self->request->remote_ip, self->request->protocol);
}

static const tornado_handler_class tell = {.get = tell_get};

static struct {
    tornado_application *app;
    tornado_httpserver *server;
    int port;
} site;

static void site_open(tornado_httpserver_options options)
{
    tornado_rule rules[] = {{.path = "/", .handler = &tell}, {0}};
    options.bind.address = "127.0.0.1";
    options.proxy_protocol = TORNADO_PROXY_PROTOCOL;
    log_keep();
    site.app = tornado_application_new(rules, NULL);
    site.server = tornado_application_listen(site.app, 0, &options);
    CHECK(site.server != NULL);
    site.port = tornado_httpserver_port(site.server);
}

static void site_close(void)
{
    tornado_application_free(site.app);
}

static void check_told(client *c, const char *request, const char *told)
{
    CHECK_STR(client_ask(c, request).body.data, told);
}

TEST_EACH_POLLER(httpserver_behind_a_proxy_handlers_see_the_address_that_it_tells)
{
    static const struct {
        const char *header;
        size_t len;
        const char *told;
    } rows[] = {{HEADER, sizeof HEADER - 1, "192.0.2.1 http"},
                {"PROXY TCP6 2001:db8::1 ::1 1234 443\r\n", 37, "2001:db8::1 http"},
                {"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\7\xc0\0\2\2\4\xd2\1\xbb", 28, "192.0.2.7 http"},
                {"PROXY UNKNOWN\r\n", 15, "127.0.0.1 http"},
                {"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", 16, "127.0.0.1 http"}};
    site_open((tornado_httpserver_options){.no_keep_alive = false});
    for (size_t i = 0; i < 2 * (sizeof rows / sizeof rows[0]); i++) {
        client c = client_open(site.port);
        for (size_t at = 0, step = i % 2 ? 1 : rows[i / 2].len; at < rows[i / 2].len; at += step) {
            client_send_bytes(&c, rows[i / 2].header + at, step);
            if (i % 2)
                loop_turns(1);
        }
        check_told(&c, REQUEST, rows[i / 2].told);
        check_told(&c, REQUEST, rows[i / 2].told); /* it is for all of the connection */
        client_close(&c);
    }
    site_close();
}

TEST(httpserver_behind_a_proxy_xheaders_still_tell_more)
{
    site_open((tornado_httpserver_options){.xheaders = true});
    client c = client_open(site.port);
    check_told(&c, HEADER "GET / HTTP/1.1\r\nHost: a\r\nX-Real-Ip: 198.51.100.9\r\nX-Scheme: https\r\n\r\n",
               "198.51.100.9 https");
    check_told(&c, REQUEST, "192.0.2.1 http");
    client_close(&c);
    site_close();
}

TEST_EACH_POLLER(httpserver_behind_a_proxy_connections_without_its_header_are_closed)
{
    static const char *const rows[] = {REQUEST, "PROXY TCP4 192.0.2.1\r\n" REQUEST, "PROXY "};
    site_open((tornado_httpserver_options){.proxy_timeout = 0.05});
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        client c = client_open(site.port);
        client_send(&c, rows[i]);
        CHECK(!client_more(&c));
        client_close(&c);
    }
    CHECK_INT(logged("a connection was closed at once: its PROXY header is missing or malformed"), 1);
    client c = client_open(site.port);
    check_told(&c, HEADER REQUEST, "192.0.2.1 http");
    client_close(&c);
    site_close();
}

TEST(httpserver_behind_a_proxy_connections_that_wait_for_its_header_count)
{
    site_open((tornado_httpserver_options){.max_connections = 2});
    client first = client_open(site.port), second = client_open(site.port);
    check_told(&first, HEADER REQUEST, "192.0.2.1 http");
    client_send(&second, "PROXY");
    loop_turns(2);
    client third = client_open(site.port);
    CHECK(!client_more(&third));
    CHECK_INT(logged("the limit of 2 connections is reached"), 1);
    check_told(&second, " UNKNOWN\r\n" REQUEST, "127.0.0.1 http");
    client_close(&first);
    client_close(&second);
    client_close(&third);
    site_close();
}

TEST(httpserver_behind_a_proxy_connections_are_counted_by_the_address_that_it_tells)
{
    site_open((tornado_httpserver_options){.max_connections_per_ip = 1});
    client first = client_open(site.port), second = client_open(site.port), third = client_open(site.port);
    check_told(&first, HEADER REQUEST, "192.0.2.1 http");
    check_told(&second, "PROXY TCP4 192.0.2.9 192.0.2.2 1234 443\r\n" REQUEST, "192.0.2.9 http");
    client_send(&third, HEADER REQUEST);
    CHECK(!client_more(&third));
    CHECK_INT(logged("the limit of 1 connections of one address is reached"), 1);
    client_close(&first);
    client_close(&second);
    client_close(&third);
    site_close();
}

/* By whatever ends the server, or its loop. */
TEST(httpserver_behind_a_proxy_connections_that_wait_for_its_header_end_with_the_server)
{
    for (int way = 0; way < 4; way++) {
        site_open((tornado_httpserver_options){.no_keep_alive = false});
        client c = client_open(site.port);
        client_send(&c, "PROXY");
        loop_turns(3);
        if (way == 0)
            CHECK_INT(loop_code(tornado_httpserver_close_all_connections(site.server)), 0);
        if (way == 1)
            CHECK_INT(loop_code(tornado_httpserver_drain(site.server)), 0);
        if (way == 3) {
            tornado_ioloop_close(tornado_ioloop_current(), false);
            tornado_ioloop_clear_current();
        }
        if (way >= 2)
            site_close();
        CHECK(!client_more(&c));
        client_close(&c);
        if (way < 2)
            site_close();
    }
}

static void check_haproxy(const char *send)
{
    site_open((tornado_httpserver_options){.no_keep_alive = false});
    haproxy proxy = haproxy_start("http", site.port, send);
    client c = client_open(proxy.port);
    struct sockaddr_in own = loopback(0);
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 6); /* not the proxy's own, which the server would see without */
    close(c.fd);
    c.fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(c.fd >= 0 && bind(c.fd, (struct sockaddr *)&own, sizeof own) == 0);
    struct sockaddr_in to = loopback(proxy.port);
    CHECK(connect(c.fd, (struct sockaddr *)&to, sizeof to) == 0);
    set_nonblocking(c.fd);
    for (int i = 0; i < 2; i++) {
        answer a;
        client_send(&c, REQUEST);
        while (!strstr(c.data + c.taken, "127.0.0.7"))
            haproxy_more(&proxy, &c);
        CHECK(client_answer(&c, &a));
        CHECK_STR(a.body.data, "127.0.0.7 http");
    }
    client_close(&c);
    haproxy_end(&proxy);
    site_close();
}

TEST(httpserver_behind_haproxy_sees_its_clients)
{
    check_haproxy("send-proxy");
}

TEST(httpserver_behind_haproxy_sees_its_clients_by_version_2)
{
    check_haproxy("send-proxy-v2 proxy-v2-options crc32c,unique-id");
}

#ifdef TORNADO_OPENSSL
/* The header comes before TLS begins. */
TEST(httpserver_behind_a_proxy_speaks_tls)
{
    certificates_make();
    tornado_ssl_options ssl = {.certfile = certificate_path("server.pem"), .keyfile = certificate_path("server.key")};
    tornado_ssl_options blind = {.cert_reqs = TORNADO_CERT_NONE};
    tornado_iostream_options options = {.ssl_options = &blind};
    site_open((tornado_httpserver_options){.ssl_options = &ssl});
    client c = client_open(site.port);
    client_send(&c, HEADER);
    free(c.data);
    tornado_iostream *stream = tornado_iostream_new(c.fd, &options);
    CHECK(stream != NULL);
    CHECK_INT(loop_code(tornado_iostream_write(stream, tornado_bytes_of(REQUEST))), 0);
    tornado_future *read = tornado_iostream_read_until(stream, "192.0.2.1 https");
    CHECK_INT(loop_code(read), 0);
    tornado_iostream_release(stream);
    site_close();
    certificates_remove();
}
#endif
