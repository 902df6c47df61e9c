/* Socket addresses from text and to text, and what the system says of sockets. */
#include "harness.h"

#include "guard.h"
#include "http_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATH_ROOM (sizeof((struct sockaddr_un *)0)->sun_path)

static const char *text_of(const tornado_address *address)
{
    static char out[TORNADO_ADDRESS_MAX];
    return tornado_address_format(address, out);
}

/* The last call failed with TORNADO_ERR_INVALID and one line that has `what` in it. */
static void check_invalid(const char *what)
{
    const tornado_error *error = tornado_last_error();
    CHECK_INT(error->code, TORNADO_ERR_INVALID);
    if (strchr(error->message, '\n') || !strstr(error->message, what))
        FAIL("\"%s\" should be one line that names \"%s\"", error->message, what);
}

/*----------------------------------------------------------------------------
 * IP addresses.
 *----------------------------------------------------------------------------*/

static const struct {
    const char *ip;
    int port;
    const char *text;
} addresses[] = {
    {"127.0.0.1", 8888, "127.0.0.1:8888"},
    {"0.0.0.0", 0, "0.0.0.0:0"},
    {"255.255.255.255", 65535, "255.255.255.255:65535"},
    {"::", 0, "[::]:0"},
    {"::1", 1, "[::1]:1"},
    {"0:0:0:0:0:0:0:1", 80, "[::1]:80"},
    {"2001:DB8:0:0:8::417A", 443, "[2001:db8::8:0:0:417a]:443"},
    {"::ffff:192.0.2.33", 80, "[::ffff:192.0.2.33]:80"},
    {"ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255", 65535, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
};
#define ADDRESSES (sizeof addresses / sizeof addresses[0])

TEST(address_of_an_ip_is_written_with_its_port)
{
    for (size_t i = 0; i < ADDRESSES; i++) {
        tornado_address address;
        char out[TORNADO_ADDRESS_MAX];
        const char *ip = guarded_string(addresses[i].ip, strlen(addresses[i].ip));
        if (!tornado_address_ip(&address, ip, addresses[i].port))
            FAIL("%s is refused", ip);
        CHECK(tornado_address_format(&address, out) == out);
        CHECK_STR(out, addresses[i].text);
        CHECK_INT(tornado_address_port(&address), addresses[i].port);
    }
}

TEST(address_that_was_written_can_be_read_again)
{
    for (size_t i = 0; i < ADDRESSES; i++) {
        tornado_address first, again;
        char text[TORNADO_ADDRESS_MAX];
        CHECK(tornado_address_ip(&first, addresses[i].ip, addresses[i].port));
        char *ip = tornado_address_format(&first, text), *colon = strrchr(text, ':');
        int port = atoi(colon + 1);
        *colon = '\0';
        if (*ip == '[') {
            ip++;
            colon[-1] = '\0';
        }
        CHECK(tornado_address_ip(&again, ip, port));
        CHECK_MEM(again.sockaddr.bytes, again.len, first.sockaddr.bytes, first.len);
    }
}

TEST(address_is_what_the_system_calls_a_sockaddr)
{
    tornado_address address;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
    CHECK(tornado_address_ip(&address, "192.0.2.1", 0x1234));
    CHECK_INT(address.len, sizeof four);
    memcpy(&four, address.sockaddr.bytes, sizeof four);
    CHECK_INT(four.sin_family, AF_INET);
    CHECK_INT(ntohs(four.sin_port), 0x1234);
    CHECK_INT(ntohl(four.sin_addr.s_addr), 0xc0000201);
    CHECK(tornado_address_ip(&address, "::1", 0x1234));
    CHECK_INT(address.len, sizeof six);
    memcpy(&six, address.sockaddr.bytes, sizeof six);
    CHECK_INT(six.sin6_family, AF_INET6);
    CHECK_INT(ntohs(six.sin6_port), 0x1234);
    CHECK(IN6_IS_ADDR_LOOPBACK(&six.sin6_addr));
}

TEST(address_keeps_the_scope_of_ipv6)
{
    char name[IF_NAMESIZE], ip[64], wanted[64];
    tornado_address address;
    struct sockaddr_in6 six;
    if (!if_indextoname(1, name))
        SKIP("there is no network interface with number 1");
    for (int by_name = 0; by_name < 2; by_name++) {
        snprintf(ip, sizeof ip, "fe80::1%%%s", by_name ? name : "1");
        snprintf(wanted, sizeof wanted, "[fe80::1%%%s]:80", name);
        if (!tornado_address_ip(&address, ip, 80))
            FAIL("%s is refused", ip);
        memcpy(&six, address.sockaddr.bytes, sizeof six);
        CHECK_INT(six.sin6_scope_id, 1);
        CHECK_STR(text_of(&address), wanted);
    }
}

static const char *const no_addresses[] = {
    "", " ", "127.0.0.1 ", " 127.0.0.1", "127.0.0.1:80", "127.0.0.1.1", "127.0.0.1.", "127..0.1", "256.0.0.1",
    "127.0.0.-1", "+127.0.0.1", "127.0.0.1/8", "127.0.0.1%1", "127,0,0,1", "localhost", "a b", "*", ":", ":::",
    "::1::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "::g", "::1 ", " ::1", "[::1]", "[::1]:80",
    "::256.0.0.1", "::1.2.3", "::1/64", "fe80::1%", "fe80::1%nosuch0", "fe80::1%4294967296", "fe80::1%-1", "%1",
    "unix:/x", "/x", "@x",
};
#define NO_ADDRESSES (sizeof no_addresses / sizeof no_addresses[0])

/* What inet_aton, unlike inet_pton, takes for an IPv4 address: fewer than four numbers, octal, hexadecimal. */
static const char *const old_addresses[] = {"127.0.0", "127.1", "127.0.1", "1", "2130706433", "0x7f000001",
                                            "0x7f.0.0.1", "0177.0.0.1", "127.0.0.01"};
#define OLD_ADDRESSES (sizeof old_addresses / sizeof old_addresses[0])

static void check_no_address(const char *ip)
{
    tornado_address address;
    if (tornado_address_ip(&address, guarded_string(ip, strlen(ip)), 80))
        FAIL("\"%s\" is taken for %s", ip, text_of(&address));
    check_invalid(ip);
    CHECK_STR(text_of(&address), "(none)"); /* nothing of what was there before */
    CHECK_INT(tornado_address_port(&address), 0);
}

TEST(address_of_what_is_no_ip_is_refused_by_name)
{
    for (size_t i = 0; i < NO_ADDRESSES; i++)
        check_no_address(no_addresses[i]);
}

TEST(address_of_ipv4_is_four_decimal_numbers)
{
    for (size_t i = 0; i < OLD_ADDRESSES; i++)
        check_no_address(old_addresses[i]);
}

TEST(address_of_nothing_and_of_too_much_is_refused)
{
    static char much[70000];
    tornado_address address;
    CHECK(!tornado_address_ip(&address, NULL, 80));
    check_invalid("not an IP address");
    memset(much, '1', sizeof much - 1);
    CHECK(!tornado_address_ip(&address, much, 80));
    check_invalid("111111");
    memcpy(much, "::1%", 4);
    CHECK(!tornado_address_ip(&address, much, 80));
    check_invalid("::1%111");
}

TEST(address_error_is_one_line_whatever_the_text)
{
    tornado_address address;
    CHECK(!tornado_address_ip(&address, "127.0.0.1\n", 80));
    check_invalid("127.0.0.1");
    CHECK(!tornado_address_ip(&address, "first\r\nsecond", 80));
    check_invalid("first");
}

TEST(address_port_is_0_to_65535)
{
    static const int wrong[] = {-1, 65536, 65536 + 80, INT_MIN, INT_MAX};
    tornado_address address;
    char number[16];
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK(!tornado_address_ip(&address, "127.0.0.1", wrong[i]));
        snprintf(number, sizeof number, "%d", wrong[i]);
        check_invalid(number);
        CHECK_STR(text_of(&address), "(none)");
    }
}

static bool is_valid(const char *ip)
{
    return tornado_is_valid_ip(guarded_string(ip, strlen(ip)));
}

TEST(address_valid_ip_is_one_that_inet_pton_reads)
{
    for (size_t i = 0; i < ADDRESSES; i++)
        if (!is_valid(addresses[i].ip))
            FAIL("%s is refused", addresses[i].ip);
    for (size_t i = 0; i < NO_ADDRESSES + OLD_ADDRESSES; i++) {
        const char *ip = i < NO_ADDRESSES ? no_addresses[i] : old_addresses[i - NO_ADDRESSES];
        if (is_valid(ip))
            FAIL("\"%s\" is taken for an IP address", ip);
    }
    CHECK(!tornado_is_valid_ip(NULL));
    CHECK(!is_valid("fe80::1%1")); /* a scope is not part of the address */
}

/*----------------------------------------------------------------------------
 * Unix sockets.
 *----------------------------------------------------------------------------*/

/* A name of `len` bytes that begins with `begin`; static. */
static char *name_of(const char *begin, size_t len)
{
    static char name[4096];
    CHECK(len < sizeof name && strlen(begin) <= len);
    memset(name, 'n', len);
    memcpy(name, begin, strlen(begin));
    name[len] = '\0';
    return name;
}

TEST(address_of_a_unix_socket_is_written_with_its_path)
{
    static const char *const paths[] = {"/run/app.sock", "relative", "./@x", "/a space", "@abstract", "@@", "@/x"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        tornado_address address;
        char wanted[64];
        CHECK(tornado_address_unix(&address, guarded_string(paths[i], strlen(paths[i]))));
        snprintf(wanted, sizeof wanted, "unix:%s", paths[i]);
        CHECK_STR(text_of(&address), wanted);
        CHECK_INT(tornado_address_port(&address), 0);
    }
}

TEST(address_of_a_unix_socket_has_a_longest_path)
{
    static const struct {
        const char *begin;
        size_t longest;
    } kinds[] = {{"/", PATH_ROOM - 1}, {"@", PATH_ROOM}}; /* a path has a NUL behind it, "@name" none */
    for (size_t i = 0; i < 2; i++) {
        tornado_address address;
        char wanted[PATH_ROOM + 8];
        char *longest = name_of(kinds[i].begin, kinds[i].longest);
        CHECK(tornado_address_unix(&address, longest));
        snprintf(wanted, sizeof wanted, "unix:%s", longest);
        CHECK_STR(text_of(&address), wanted);
        static const size_t more[] = {1, 2, 3, 1000};
        for (size_t k = 0; k < sizeof more / sizeof more[0]; k++) {
            CHECK(!tornado_address_unix(&address, name_of(kinds[i].begin, kinds[i].longest + more[k])));
            check_invalid(name_of(kinds[i].begin, 60)); /* a message has room for so much of it */
            CHECK_INT(tornado_last_error()->sys_errno, ENAMETOOLONG);
            CHECK_STR(text_of(&address), "(none)");
        }
    }
}

TEST(address_of_a_unix_socket_without_a_name_is_refused)
{
    static const char *const wrong[] = {NULL, "", "@"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        tornado_address address;
        CHECK(!tornado_address_unix(&address, wrong[i]));
        check_invalid(wrong[i] ? wrong[i] : "unix");
        CHECK_INT(tornado_last_error()->sys_errno, 0); /* it is not too long */
        CHECK_STR(text_of(&address), "(none)");
    }
}

/* The system's answer for a socket that was bound to an address: the same address, as text. */
static void check_bound(const char *path)
{
    tornado_address address, local;
    char wanted[TORNADO_ADDRESS_MAX];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(fd >= 0 && tornado_address_unix(&address, path));
    CHECK(bind(fd, (struct sockaddr *)(void *)address.sockaddr.bytes, (socklen_t)address.len) == 0);
    CHECK(tornado_address_local(&local, fd));
    CHECK_STR(text_of(&local), tornado_address_format(&address, wanted));
    close(fd);
}

/* Goes to a directory that is there for this test alone, so that paths may be as long as the system allows. */
static void enter_directory(char directory[64])
{
    snprintf(directory, 64, "/tmp/tornado-test-XXXXXX");
    CHECK(mkdtemp(directory) && chdir(directory) == 0);
}

TEST(address_of_a_unix_socket_survives_binding)
{
    char directory[64], name[64];
    enter_directory(directory);
    check_bound("a");
    check_bound(name_of("p", PATH_ROOM - 1));
    CHECK(unlink("a") == 0 && unlink(name_of("p", PATH_ROOM - 1)) == 0);
    CHECK(rmdir(directory) == 0);
#ifdef __linux__
    snprintf(name, sizeof name, "@tornado-test-%d", (int)getpid());
    check_bound(name);
    check_bound(name_of(name, PATH_ROOM));
#else
    (void)name;
#endif
}

TEST(address_of_a_path_without_a_nul_is_written_whole)
{
#ifndef __linux__
    SKIP("only Linux binds such a path");
#endif
    char directory[64], wanted[PATH_ROOM + 8], *path = name_of("x", PATH_ROOM);
    static struct {
        struct sockaddr_un un;
        char zeros[8]; /* for valgrind, which looks for a NUL */
    } bound;
    tornado_address local;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    enter_directory(directory);
    bound.un.sun_family = AF_UNIX;
    memcpy(bound.un.sun_path, path, PATH_ROOM);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&bound.un, sizeof bound.un) == 0);
    CHECK(tornado_address_local(&local, fd));
    snprintf(wanted, sizeof wanted, "unix:%s", path);
    CHECK_STR(text_of(&local), wanted);
    close(fd);
    CHECK(unlink(path) == 0 && rmdir(directory) == 0);
}

/*----------------------------------------------------------------------------
 * Of sockets.
 *----------------------------------------------------------------------------*/

TEST(address_local_and_peer_tell_both_ends)
{
    static const struct {
        const char *ip;
        int family;
    } kinds[] = {{"127.0.0.1", AF_INET}, {"::1", AF_INET6}};
    for (size_t i = 0; i < 2; i++) {
        tornado_address wanted, listening, seen;
        int listener = socket(kinds[i].family, SOCK_STREAM, 0), client = socket(kinds[i].family, SOCK_STREAM, 0);
        struct sockaddr *to = (struct sockaddr *)(void *)listening.sockaddr.bytes;
        char text[TORNADO_ADDRESS_MAX];
        CHECK(tornado_address_ip(&wanted, kinds[i].ip, 0));
        if (listener < 0 ||
            bind(listener, (struct sockaddr *)(void *)wanted.sockaddr.bytes, (socklen_t)wanted.len) != 0)
            SKIP("there is no %s here", kinds[i].ip);
        CHECK(listen(listener, 1) == 0 && tornado_address_local(&listening, listener));
        CHECK(tornado_address_port(&listening) > 0);
        CHECK(connect(client, to, (socklen_t)listening.len) == 0);
        int server = accept(listener, NULL, NULL);
        CHECK(server >= 0);
        CHECK(tornado_address_peer(&seen, client));
        CHECK_STR(text_of(&seen), tornado_address_format(&listening, text));
        CHECK(tornado_address_local(&seen, client) && tornado_address_peer(&wanted, server));
        CHECK_STR(text_of(&seen), tornado_address_format(&wanted, text));
        close(listener);
        close(client);
        close(server);
    }
}

TEST(address_of_a_unix_socket_without_a_path_says_so)
{
    tornado_address address;
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(tornado_address_local(&address, ends[0]));
    CHECK_STR(text_of(&address), "unix:");
    CHECK(tornado_address_peer(&address, ends[0]));
    CHECK_STR(text_of(&address), "unix:");
    CHECK_INT(tornado_address_port(&address), 0);
    close(ends[0]);
    close(ends[1]);
}

TEST(address_of_what_has_none_is_an_error_that_names_the_descriptor)
{
    int ends[2], lonely = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(lonely >= 0 && pipe(ends) == 0);
    const struct {
        bool peer;
        int fd, error;
    } cases[] = {{false, -1, EBADF}, {true, -1, EBADF}, {false, ends[0], ENOTSOCK}, {true, lonely, ENOTCONN}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tornado_address address;
        char number[16];
        CHECK(!(cases[i].peer ? tornado_address_peer : tornado_address_local)(&address, cases[i].fd));
        const tornado_error *error = tornado_last_error();
        CHECK_INT(error->code, TORNADO_ERR_SYSTEM);
        CHECK_INT(error->sys_errno, cases[i].error);
        snprintf(number, sizeof number, "fd %d", cases[i].fd);
        CHECK(strstr(error->message, number) && strstr(error->message, strerror(cases[i].error)));
        CHECK_STR(text_of(&address), "(none)");
    }
    close(lonely);
    close(ends[0]);
    close(ends[1]);
}

TEST(address_that_is_all_zero_is_none)
{
    tornado_address address;
    memset(&address, 0, sizeof address);
    CHECK_STR(text_of(&address), "(none)");
    CHECK_INT(tornado_address_port(&address), 0);
}

/*----------------------------------------------------------------------------
 * Of those who ask.
 *----------------------------------------------------------------------------*/

static void tell_peer(tornado_handler *self)
{
    tornado_write(self, self->request->remote_ip);
}

static const tornado_handler_class peer_class = {.get = tell_peer};

/* What a server with a socket of IPv6 calls a client that connects to an address of it. */
static void check_peer(int only_ipv6, const char *ip, const char *told)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    tornado_address to;
    socklen_t len = sizeof any;
    tornado_rule rules[] = {{.path = "/", .handler = &peer_class}, {0}};
    int listener = socket(AF_INET6, SOCK_STREAM, 0);
    if (listener < 0 || setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &only_ipv6, sizeof only_ipv6) != 0 ||
        bind(listener, (struct sockaddr *)&any, sizeof any) != 0)
        SKIP("there is no IPv6 here");
    CHECK(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&any, &len) == 0);
    CHECK(tornado_address_ip(&to, ip, ntohs(any.sin6_port)));
    const struct sockaddr *name = (const void *)to.sockaddr.bytes;
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver_options options = {.bind.address = "127.0.0.1"};
    tornado_httpserver *server = tornado_application_listen(app, 0, &options);
    CHECK(server && tornado_httpserver_add_socket(server, listener));
    client c = {.fd = socket(name->sa_family, SOCK_STREAM, 0), .data = calloc(1, 1)};
    CHECK(c.fd >= 0 && connect(c.fd, name, (socklen_t)to.len) == 0);
    set_nonblocking(c.fd);
    client_send(&c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    answer a;
    CHECK(client_answer(&c, &a));
    CHECK_MEM(a.body.data, a.body.len, told, strlen(told));
    client_close(&c);
    tornado_application_free(app);
}

TEST(address_of_an_ipv6_peer_is_told_as_it_is)
{
    check_peer(1, "::1", "::1");
}

TEST(address_of_an_ipv4_peer_is_told_as_ipv4_also_by_ipv6)
{
    check_peer(0, "127.0.0.1", "127.0.0.1");
}
