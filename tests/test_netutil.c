/* Listening sockets: where they are bound, what is refused, and how connections are accepted. */
#include "faults.h"
#include "runtime.h"

#include "http_client.h"

#include <limits.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#define NOBODY 65534
#define OPTIONS(...) (&(tornado_bind_options){__VA_ARGS__})

static int open_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 2048; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Lets the process open so many more descriptors, and no other; returns the limit that was. */
static struct rlimit limit_descriptors(int spare)
{
    struct rlimit before, now;
    int fd = 0;
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    while (fcntl(fd, F_GETFD) >= 0 || spare-- > 0)
        fd++;
    now = before;
    now.rlim_cur = (rlim_t)fd;
    CHECK(setrlimit(RLIMIT_NOFILE, &now) == 0);
    return before;
}

static bool have_ipv6(void)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    bool have = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0)
        close(fd);
    return have;
}

static tornado_sockets bound(int port, const tornado_bind_options *options)
{
    tornado_sockets sockets;
    if (!tornado_bind_sockets(&sockets, port, options))
        FAIL("it cannot listen");
    CHECK(sockets.count > 0);
    return sockets;
}

/* Listens on a free port of 127.0.0.1. */
static tornado_sockets bound_loopback(void)
{
    return bound(0, OPTIONS(.address = "127.0.0.1"));
}

static const char *local_text(int fd)
{
    static char out[2][TORNADO_ADDRESS_MAX];
    static int next;
    tornado_address address;
    CHECK(tornado_address_local(&address, fd));
    return tornado_address_format(&address, out[next++ % 2]);
}

static int family_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    CHECK(getsockname(fd, (struct sockaddr *)&address, &len) == 0);
    return address.ss_family;
}

static int int_option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &len) == 0);
    return value;
}

/* The last error has this errno behind it, if not 0, and is one line that has both texts in it. */
static void check_error(int sys_errno, const char *what, const char *more)
{
    const tornado_error *error = tornado_last_error();
    CHECK(error->code != TORNADO_OK);
    if (strchr(error->message, '\n') || !strstr(error->message, what) || !strstr(error->message, more))
        FAIL("\"%s\" should be one line that names \"%s\" and \"%s\"", error->message, what, more);
    if (sys_errno) {
        CHECK_INT(error->code, TORNADO_ERR_SYSTEM);
        CHECK_INT(error->sys_errno, sys_errno);
        CHECK(strstr(error->message, strerror(sys_errno)) != NULL);
    }
}

/* Listening is refused, with an error as above, and nothing stays open. */
static void check_refused(int port, const tornado_bind_options *options, int sys_errno, const char *what,
                          const char *more)
{
    tornado_sockets sockets;
    int before = open_descriptors();
    if (tornado_bind_sockets(&sockets, port, options))
        FAIL("it listens on %s, port %d", local_text(sockets.fds[0]), sockets.port);
    check_error(sys_errno, what, more);
    CHECK_INT(sockets.count, 0);
    CHECK_INT(open_descriptors(), before);
}

/*----------------------------------------------------------------------------
 * Ports.
 *----------------------------------------------------------------------------*/

TEST(netutil_binds_one_port_of_every_interface_for_both_families)
{
    char four[32], six[32];
    static const tornado_bind_options empty = {.address = ""};
    if (!have_ipv6())
        SKIP("there is no IPv6 here");
    for (int i = 0; i < 2; i++) {
        tornado_sockets sockets = bound(0, i ? &empty : NULL);
        CHECK_INT(sockets.count, 2);
        CHECK(sockets.port > 0);
        snprintf(four, sizeof four, "0.0.0.0:%d", sockets.port);
        snprintf(six, sizeof six, "[::]:%d", sockets.port);
        bool six_first = *local_text(sockets.fds[0]) == '[';
        CHECK_STR(local_text(sockets.fds[six_first]), four);
        CHECK_STR(local_text(sockets.fds[!six_first]), six);
        tornado_sockets_close(&sockets);
    }
}

TEST(netutil_binds_the_address_and_family_that_it_is_given)
{
    static const struct {
        tornado_bind_options options;
        const char *text;
    } cases[] = {
        {{.address = "127.0.0.1"}, "127.0.0.1"},
        {{.address = "127.0.0.1", .ipv4_only = true}, "127.0.0.1"},
        {{.ipv4_only = true}, "0.0.0.0"},
        {{.address = "localhost", .ipv4_only = true}, "127.0.0.1"},
        {{.address = "::1"}, "[::1]"},
        {{.address = "::1", .ipv6_only = true}, "[::1]"},
        {{.ipv6_only = true}, "[::]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wanted[64];
        if (*cases[i].text == '[' && !have_ipv6())
            continue;
        tornado_sockets sockets = bound(0, &cases[i].options), again;
        CHECK_INT(sockets.count, 1);
        snprintf(wanted, sizeof wanted, "%s:%d", cases[i].text, sockets.port);
        CHECK_STR(local_text(sockets.fds[0]), wanted);
        tornado_sockets_close(&sockets);
        again = bound(atoi(strrchr(wanted, ':') + 1), &cases[i].options); /* the same port, now by its number */
        CHECK_STR(local_text(again.fds[0]), wanted);
        tornado_sockets_close(&again);
    }
}

TEST(netutil_sockets_close_closes_all_once)
{
    int before = open_descriptors();
    tornado_sockets sockets = bound(0, NULL);
    CHECK_INT(open_descriptors(), before + sockets.count);
    tornado_sockets_close(&sockets);
    CHECK_INT(open_descriptors(), before);
    int ends[2];
    CHECK(pipe(ends) == 0); /* these have the same numbers now */
    tornado_sockets_close(&sockets);
    CHECK_INT(open_descriptors(), before + 2);
    close(ends[0]);
    close(ends[1]);
}

TEST(netutil_listening_sockets_have_their_flags)
{
    tornado_sockets sockets = bound(0, NULL);
    for (int i = 0; i < sockets.count; i++) {
        int fd = sockets.fds[i];
        CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
        CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        CHECK(int_option(fd, SOL_SOCKET, SO_ACCEPTCONN));
        CHECK(int_option(fd, SOL_SOCKET, SO_REUSEADDR));
        CHECK(!int_option(fd, SOL_SOCKET, SO_REUSEPORT));
        if (family_of(fd) == AF_INET6)
            CHECK(int_option(fd, IPPROTO_IPV6, IPV6_V6ONLY));
    }
    tornado_sockets_close(&sockets);
}

TEST(netutil_backlog_is_128_or_what_it_is_given)
{
#ifndef __linux__
    SKIP("only Linux tells the backlog of a socket");
#else
    if (test_emulated())
        SKIP("QEMU does not pass on what Linux tells of a socket's backlog");
    static const struct {
        int given, used;
    } cases[] = {{0, 128}, {7, 7}, {1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tcp_info info;
        socklen_t len = sizeof info;
        tornado_sockets sockets = bound(0, OPTIONS(.address = "127.0.0.1", .backlog = cases[i].given));
        CHECK(getsockopt(sockets.fds[0], IPPROTO_TCP, TCP_INFO, &info, &len) == 0);
        CHECK_INT(info.tcpi_sacked, cases[i].used); /* that is what this field says of a listening socket */
        tornado_sockets_close(&sockets);
    }
#endif
}

TEST(netutil_bind_flags_are_those_of_getaddrinfo)
{
    const struct {
        tornado_bind_options options;
        const char *text;
    } cases[] = {
        {{.ipv4_only = true, .flags = AI_PASSIVE}, "0.0.0.0"},
        {{.ipv4_only = true, .flags = AI_NUMERICHOST}, "127.0.0.1"}, /* not passive: the loopback */
        {{.address = "127.0.0.1", .flags = AI_PASSIVE | AI_NUMERICHOST}, "127.0.0.1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wanted[64];
        tornado_sockets sockets = bound(0, &cases[i].options);
        snprintf(wanted, sizeof wanted, "%s:%d", cases[i].text, sockets.port);
        CHECK_STR(local_text(sockets.fds[0]), wanted);
        tornado_sockets_close(&sockets);
    }
    check_refused(54321, OPTIONS(.address = "localhost", .flags = AI_NUMERICHOST), 0, "localhost", "cannot listen");
}

static int fault_named(const char *call, const char *how)
{
    const test_fault *fault;
    for (int i = 0; (fault = test_fault_at(i)) != NULL; i++)
        if (strcmp(fault->call, call) == 0 && strcmp(fault->how, how) == 0)
            return i;
    FAIL("there is no fault %s %s", call, how);
}

/* A kernel without IPv6 knows no such sockets; one in which it is switched off has none of its addresses. */
TEST(netutil_binds_the_one_family_where_the_other_is_missing)
{
    static const struct {
        const char *call, *how;
        bool ipv4_may_miss;
    } cases[] = {{"socket", "EAFNOSUPPORT", true}, {"bind", "EADDRNOTAVAIL", false}};
    if (!have_ipv6())
        SKIP("there is no IPv6 here");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int left[2] = {0, 0}; /* IPv4, IPv6 */
        for (int which = 1; which <= 2; which++) {
            int before = open_descriptors();
            tornado_sockets sockets;
            test_fail_calls(fault_named(cases[i].call, cases[i].how), which, 1);
            bool ok = tornado_bind_sockets(&sockets, 0, NULL);
            test_fail_calls(-1, 0, 0);
            if (ok) {
                CHECK_INT(sockets.count, 1);
                CHECK(sockets.port > 0);
                left[family_of(sockets.fds[0]) == AF_INET6]++;
            }
            CHECK_INT(open_descriptors(), before + ok);
            tornado_sockets_close(&sockets);
        }
        CHECK_INT(left[0], 1);
        CHECK_INT(left[1], cases[i].ipv4_may_miss);
    }
}

TEST(netutil_bind_without_any_family_says_so)
{
    tornado_sockets sockets;
    int before = open_descriptors();
    test_fail_calls(fault_named("socket", "EAFNOSUPPORT"), 1, 100);
    CHECK(!tornado_bind_sockets(&sockets, 0, NULL));
    test_fail_calls(-1, 0, 0);
    check_error(EAFNOSUPPORT, "cannot listen", "");
    CHECK_INT(sockets.count, 0);
    CHECK_INT(open_descriptors(), before);
}

TEST(netutil_bind_to_an_address_of_the_missing_family_is_refused)
{
    tornado_sockets sockets;
    if (!have_ipv6())
        SKIP("there is no IPv6 here");
    test_fail_calls(fault_named("socket", "EAFNOSUPPORT"), 1, 1);
    CHECK(!tornado_bind_sockets(&sockets, 0, OPTIONS(.address = "::1")));
    test_fail_calls(-1, 0, 0);
    check_error(EAFNOSUPPORT, "[::1]", "");
}

/*----------------------------------------------------------------------------
 * Ports that cannot be had.
 *----------------------------------------------------------------------------*/

TEST(netutil_port_in_use_is_refused_by_its_number)
{
    char port_text[16], text[32];
    int port, listener = listen_loopback(&port), peer;
    snprintf(port_text, sizeof port_text, ":%d", port);
    snprintf(text, sizeof text, "127.0.0.1:%d", port);
    check_refused(port, OPTIONS(.address = "127.0.0.1"), EADDRINUSE, text, "");
    check_refused(port, OPTIONS(.address = "127.0.0.1", .reuse_port = true), EADDRINUSE, text, "");
    check_refused(port, OPTIONS(.ipv4_only = true), EADDRINUSE, "0.0.0.0", port_text);
    check_refused(port, NULL, EADDRINUSE, "0.0.0.0", port_text); /* also the socket for IPv6 is closed again */
    peer = connect_loopback(port); /* the one who has the port keeps it */
    CHECK(close(accept(listener, NULL, NULL)) == 0);
    close(peer);
    close(listener);
}

TEST(netutil_port_that_it_listens_on_is_in_use)
{
    char text[16];
    tornado_sockets sockets = bound(0, NULL);
    snprintf(text, sizeof text, ":%d", sockets.port);
    check_refused(sockets.port, NULL, EADDRINUSE, text, "");
    check_refused(sockets.port, OPTIONS(.address = "127.0.0.1"), EADDRINUSE, text, "127.0.0.1");
    tornado_sockets_close(&sockets);
}

/* Runs fn in a process without rights; what fails there fails the test. */
static void as_nobody(void (*fn)(void))
{
    const char *output;
    CHECK_INT(dies_of(fn, &output), 0);
    fputs(output, stderr);
}

static void give_up_rights(void)
{
    if (geteuid() == 0 && (setgid(NOBODY) != 0 || setuid(NOBODY) != 0))
        SKIP("this process cannot give up its rights");
}

static void refused_as_nobody(void)
{
    give_up_rights();
    check_refused(1, OPTIONS(.address = "127.0.0.1"), EACCES, "127.0.0.1:1:", "");
    check_refused(1, NULL, EACCES, ":1:", "");
    if (have_ipv6())
        check_refused(1, OPTIONS(.address = "::1"), EACCES, "[::1]:1:", "");
}

TEST(netutil_privileged_port_is_refused_by_its_number)
{
    FILE *file = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "r");
    int first = 1024;
    if (file && fscanf(file, "%d", &first) != 1)
        first = 1024;
    if (file)
        fclose(file);
    if (first <= 1)
        SKIP("every user may listen on every port here");
    as_nobody(refused_as_nobody);
}

TEST(netutil_address_of_another_machine_is_refused_by_name)
{
    int port, listener = listen_loopback(&port); /* a port that may be had, by its number */
    char text[64];
    close(listener);
    snprintf(text, sizeof text, "192.0.2.1:%d", port);
    check_refused(port, OPTIONS(.address = "192.0.2.1"), EADDRNOTAVAIL, text, "");
    snprintf(text, sizeof text, "[2001:db8::1]:%d", port);
    if (have_ipv6())
        check_refused(port, OPTIONS(.address = "2001:db8::1"), EADDRNOTAVAIL, text, "");
}

/* Neither addresses nor names, and so malformed that no name server is asked. */
static const char *const malformed[] = {"a..b", "a b", "127.0.0.1:80", "[::1]", ":::", "::1%nosuch", "127.0.0.1/8"};

TEST(netutil_malformed_address_is_refused_by_name)
{
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 1); /* should one be asked all the same */
    for (size_t i = 0; i < sizeof malformed / sizeof malformed[0]; i++)
        check_refused(54321, OPTIONS(.address = malformed[i]), 0, malformed[i], "cannot listen");
    check_refused(54321, OPTIONS(.address = "::1", .ipv4_only = true), 0, "::1", "cannot listen");
    check_refused(54321, OPTIONS(.address = "127.0.0.1", .ipv6_only = true), 0, "127.0.0.1", "cannot listen");
    check_refused(54321, OPTIONS(.ipv4_only = true, .ipv6_only = true), 0, "IPv4 only and by IPv6 only",
                  "cannot listen");
}

TEST(netutil_malformed_address_is_refused_with_its_port)
{
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 1);
    check_refused(54321, OPTIONS(.address = "a..b"), 0, "a..b", "54321");
}

TEST(netutil_malformed_address_is_refused_in_one_line)
{
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 1);
    check_refused(54321, OPTIONS(.address = "first\nsecond"), 0, "first", "second");
}

TEST(netutil_port_that_is_none_is_refused_by_its_number)
{
    static const int wrong[] = {-1, 65536, 65536 + 80, INT_MIN, INT_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", wrong[i]);
        check_refused(wrong[i], NULL, 0, text, "cannot listen");
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    }
}

TEST(netutil_bind_without_descriptors_leaves_none_open)
{
    struct rlimit before;
    int spare = 0;
    tornado_sockets sockets;
    for (bool ok = false; !ok; spare++) {
        CHECK(spare < 10);
        int open = open_descriptors();
        before = limit_descriptors(spare);
        ok = tornado_bind_sockets(&sockets, 0, NULL);
        CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
        if (!ok) {
            check_error(EMFILE, "cannot listen", "");
            CHECK_INT(sockets.count, 0);
        }
        CHECK_INT(open_descriptors(), open + (ok ? sockets.count : 0));
    }
    CHECK(spare > 1);
    tornado_sockets_close(&sockets);
}

/*----------------------------------------------------------------------------
 * Unix sockets.
 *----------------------------------------------------------------------------*/

typedef struct place {
    char directory[64], path[80];
} place;

/* A directory that is there for this test alone, and the path of a file in it that is not there. */
static place place_new(void)
{
    place p;
    snprintf(p.directory, sizeof p.directory, "/tmp/tornado-test-XXXXXX");
    CHECK(mkdtemp(p.directory) != NULL);
    snprintf(p.path, sizeof p.path, "%s/socket", p.directory);
    return p;
}

/* Removes both; the file must be there. */
static void place_free(place *p)
{
    CHECK(unlink(p->path) == 0);
    CHECK(rmdir(p->directory) == 0);
}

/* A raw socket, bound to a path, or connected to one. */
static int unix_raw(int type, const char *path, int (*join)(int, const struct sockaddr *, socklen_t))
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type, 0);
    CHECK(fd >= 0 && strlen(path) < sizeof un.sun_path);
    strcpy(un.sun_path, path);
    if (join(fd, (struct sockaddr *)&un, sizeof un) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int raw_bind(int fd, const struct sockaddr *address, socklen_t len)
{
    return bind(fd, address, len);
}

static int raw_connect(int fd, const struct sockaddr *address, socklen_t len)
{
    return connect(fd, address, len);
}

/* Someone listens at the path, and takes connections. */
static void check_served(int listener, const char *path)
{
    int peer = unix_raw(SOCK_STREAM, path, raw_connect);
    if (peer < 0)
        FAIL("nobody can connect to %s: %s", path, strerror(errno));
    CHECK(close(accept(listener, NULL, NULL)) == 0);
    close(peer);
}

static int bound_unix(const char *path, int mode)
{
    int fd = tornado_bind_unix_socket(path, mode, 0);
    if (fd < 0)
        FAIL("it cannot listen on %s", path);
    return fd;
}

/* Listening is refused with an error that names the path; what is there stays as it was. */
static void check_unix_refused(const char *path, int sys_errno)
{
    struct stat before, after;
    int open = open_descriptors(), there = lstat(path, &before), fd = tornado_bind_unix_socket(path, 0, 0);
    if (fd >= 0)
        FAIL("it listens on %s", path);
    check_error(0, path, "");
    if (sys_errno)
        CHECK_INT(tornado_last_error()->sys_errno, sys_errno);
    CHECK_INT(open_descriptors(), open);
    CHECK_INT(lstat(path, &after), there);
    if (there == 0)
        CHECK(before.st_ino == after.st_ino && before.st_mode == after.st_mode);
}

TEST(netutil_unix_socket_has_mode_0600_or_what_it_is_given)
{
    static const struct {
        int given, used, mask;
    } cases[] = {{0, 0600, 0}, {0, 0600, 0077}, {0660, 0660, 0077}, {0777, 0777, 0022}, {0400, 0400, 0}};
    place p = place_new();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct stat status;
        umask((mode_t)cases[i].mask);
        int fd = bound_unix(p.path, cases[i].given);
        CHECK(stat(p.path, &status) == 0 && S_ISSOCK(status.st_mode));
        CHECK_INT(status.st_mode & 07777, cases[i].used);
        CHECK_INT(umask(0), cases[i].mask); /* it is the process's own affair */
        close(fd);
    }
    place_free(&p);
}

TEST(netutil_unix_socket_has_its_flags)
{
    place p = place_new();
    tornado_sockets sockets = bound(80, OPTIONS(.unix_socket = p.path, .address = "a..b"));
    CHECK_INT(sockets.count, 1);
    CHECK_INT(sockets.port, 0);
    CHECK(fcntl(sockets.fds[0], F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(sockets.fds[0], F_GETFD) & FD_CLOEXEC);
    CHECK(int_option(sockets.fds[0], SOL_SOCKET, SO_ACCEPTCONN));
    check_served(sockets.fds[0], p.path);
    tornado_sockets_close(&sockets);
    place_free(&p);
}

TEST(netutil_unix_socket_stays_when_closed_and_is_replaced_then)
{
    place p = place_new();
    for (int i = 0; i < 3; i++) {
        int fd = bound_unix(p.path, 0);
        check_served(fd, p.path);
        close(fd);
        CHECK(access(p.path, F_OK) == 0);
    }
    place_free(&p);
}

TEST(netutil_unix_socket_replaces_no_other_file)
{
    enum { REGULAR, DIRECTORY, FIFO, LINK_TO_SOCKET, DANGLING, KINDS };
    struct stat status;
    place p = place_new(), other = place_new();
    int listener = bound_unix(other.path, 0);
    for (int kind = 0; kind < KINDS; kind++) {
        int made = kind == REGULAR          ? creat(p.path, 0600)
                   : kind == DIRECTORY      ? mkdir(p.path, 0700)
                   : kind == FIFO           ? mkfifo(p.path, 0600)
                   : kind == LINK_TO_SOCKET ? symlink(other.path, p.path)
                                            : symlink("nowhere", p.path);
        CHECK(made >= 0);
        if (kind == REGULAR)
            CHECK(write(made, "text", 4) == 4 && close(made) == 0);
        check_unix_refused(p.path, EEXIST);
        if (kind == REGULAR)
            CHECK(stat(p.path, &status) == 0 && status.st_size == 4);
        CHECK((kind == DIRECTORY ? rmdir : unlink)(p.path) == 0);
    }
    check_served(listener, other.path);
    close(listener);
    place_free(&other);
    CHECK(rmdir(p.directory) == 0);
}

TEST(netutil_unix_socket_of_a_live_server_is_in_use)
{
    place p = place_new();
    int fd = bound_unix(p.path, 0);
    check_unix_refused(p.path, EADDRINUSE);
    tornado_sockets sockets;
    CHECK(!tornado_bind_sockets(&sockets, 0, OPTIONS(.unix_socket = p.path)));
    check_error(EADDRINUSE, p.path, "");
    CHECK_INT(sockets.count, 0);
    while (close(accept(fd, NULL, NULL)) == 0) /* what looked whether someone listens */
        ;
    check_served(fd, p.path);
    close(fd);
    place_free(&p);
}

TEST(netutil_unix_socket_of_a_busy_server_is_in_use)
{
    place p = place_new();
    int fd = tornado_bind_unix_socket(p.path, 0, 1), clients[64], count = 0;
    CHECK(fd >= 0);
    do { /* until the backlog is full */
        CHECK(count < 64);
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        strcpy(un.sun_path, p.path);
        clients[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(clients[count] >= 0);
        if (connect(clients[count], (struct sockaddr *)&un, sizeof un) != 0)
            break;
    } while (count++ < 64);
    CHECK_INT(errno, EAGAIN);
    check_unix_refused(p.path, EADDRINUSE);
    for (int i = 0; i <= count; i++)
        close(clients[i]);
    close(fd);
    place_free(&p);
}

TEST(netutil_unix_socket_of_another_type_is_in_use)
{
    static const int types[] = {SOCK_SEQPACKET, SOCK_DGRAM};
    for (size_t i = 0; i < 2; i++) {
        place p = place_new();
        int fd = unix_raw(types[i], p.path, raw_bind);
        CHECK(fd >= 0 && (types[i] == SOCK_DGRAM || listen(fd, 5) == 0));
        check_unix_refused(p.path, 0);
        int peer = unix_raw(types[i], p.path, raw_connect);
        CHECK(peer >= 0); /* its owner can still be reached */
        close(peer);
        close(fd);
        place_free(&p);
    }
}

/* When it cannot be found out whether someone listens, for want of descriptors, nothing is removed. */
TEST(netutil_unix_socket_is_not_removed_without_descriptors)
{
    place p = place_new();
    int fd = bound_unix(p.path, 0), open = open_descriptors();
    struct rlimit before = limit_descriptors(0);
    CHECK(tornado_bind_unix_socket(p.path, 0, 0) < 0);
    check_error(0, p.path, strerror(EMFILE));
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_INT(open_descriptors(), open);
    check_served(fd, p.path);
    close(fd);
    place_free(&p);
}

static place shared_place;

static void refused_another_users_socket(void)
{
    give_up_rights();
    check_unix_refused(shared_place.path, 0);
}

/* Nor when the other user's socket may not be connected to, though the directory would let it be removed. */
TEST(netutil_unix_socket_of_another_users_server_is_in_use)
{
    if (geteuid() != 0)
        SKIP("it takes two users");
    shared_place = place_new();
    int fd = bound_unix(shared_place.path, 0);
    CHECK(chown(shared_place.directory, NOBODY, NOBODY) == 0);
    as_nobody(refused_another_users_socket);
    check_served(fd, shared_place.path);
    close(fd);
    place_free(&shared_place);
}

TEST(netutil_unix_socket_that_cannot_be_made_is_refused_by_its_path)
{
    place p = place_new();
    char path[256];
    snprintf(path, sizeof path, "%s/none/socket", p.directory);
    check_unix_refused(path, ENOENT);
    int fd = creat(p.path, 0600);
    snprintf(path, sizeof path, "%s/socket", p.path);
    check_unix_refused(path, ENOTDIR);
    close(fd);
    memset(path, 'p', 200);
    path[200] = '\0';
    CHECK(tornado_bind_unix_socket(path, 0, 0) < 0);
    path[60] = '\0';
    check_error(0, path, "");
    CHECK(tornado_bind_unix_socket("", 0, 0) < 0);
    check_error(0, "unix", "");
    place_free(&p);
}

TEST(netutil_unix_socket_with_the_longest_path_is_named_whole)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    place p = place_new();
    CHECK(chdir(p.directory) == 0);
    memset(path, 'p', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    int fd = bound_unix(path, 0);
    check_served(fd, path);
    check_unix_refused(path, EADDRINUSE);
    close(fd);
    CHECK(unlink(path) == 0 && rmdir(p.directory) == 0);
}

TEST(netutil_abstract_unix_socket_has_no_file)
{
#ifndef __linux__
    SKIP("only Linux has them");
#endif
    place p = place_new();
    char name[64];
    tornado_address address;
    CHECK(chdir(p.directory) == 0);
    snprintf(name, sizeof name, "@tornado-test-%d", (int)getpid());
    for (int i = 0; i < 2; i++) {
        int fd = bound_unix(name, 0), peer = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(access(name, F_OK) != 0);
        check_unix_refused(name, EADDRINUSE);
        CHECK(tornado_address_unix(&address, name) && peer >= 0);
        CHECK(connect(peer, (struct sockaddr *)(void *)address.sockaddr.bytes, (socklen_t)address.len) == 0);
        close(peer);
        close(fd);
    }
    CHECK(rmdir(p.directory) == 0);
}

TEST(netutil_unix_socket_that_cannot_be_listened_on_leaves_no_file)
{
    static const struct {
        const char *call, *how;
    } cases[] = {{"listen", "EADDRINUSE"}, {"chmod", "EPERM"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        place p = place_new();
        int before = open_descriptors();
        test_fail_calls(fault_named(cases[i].call, cases[i].how), 1, 1);
        CHECK_INT(tornado_bind_unix_socket(p.path, 0, 0), -1);
        test_fail_calls(-1, 0, 0);
        CHECK(strstr(tornado_last_error()->message, p.path) != NULL);
        CHECK_INT(open_descriptors(), before);
        CHECK(access(p.path, F_OK) != 0);
        CHECK(rmdir(p.directory) == 0);
    }
}

/*----------------------------------------------------------------------------
 * Accepting.
 *----------------------------------------------------------------------------*/

/* Runs the loop until something is true. */
#define UNTIL(expression)                                                                                          \
    do                                                                                                             \
        loop_turns(1);                                                                                             \
    while (!(expression))

#define MOST 256

/* What an accept handler has taken. */
typedef struct taken {
    tornado_acceptor *acceptor;
    int count, fds[MOST];
    char from[TORNADO_ADDRESS_MAX];
    int remove_after; /* removes its handler with the connection of this number */
    int raise_at;     /* raises an error with that */
} taken;

static void take(int fd, const tornado_address *address, void *arg)
{
    taken *t = arg;
    CHECK(t->count < MOST);
    t->fds[t->count++] = fd;
    tornado_address_format(address, t->from);
    if (t->count == t->remove_after)
        tornado_remove_accept_handler(t->acceptor);
    if (t->count == t->raise_at)
        tornado_raise(TORNADO_ERR_INVALID, "the callback fails");
}

static void taken_start(taken *t, int fd)
{
    t->acceptor = tornado_add_accept_handler(fd, take, t);
    CHECK(t->acceptor != NULL);
}

/* Closes the connections. */
static void taken_close(taken *t)
{
    while (t->count > 0)
        close(t->fds[--t->count]);
}

TEST_EACH_POLLER(netutil_accepts_with_flags_and_the_peers_address)
{
    place p = place_new();
    const tornado_bind_options options[] = {{.address = "127.0.0.1"}, {.address = "::1"}, {.unix_socket = p.path}};
    for (size_t i = 0; i < 3; i++) {
        taken t = {.count = 0};
        tornado_address address;
        if (i == 1 && !have_ipv6())
            continue;
        tornado_sockets sockets = bound(0, &options[i]);
        CHECK(tornado_address_local(&address, sockets.fds[0]));
        int peer = socket(family_of(sockets.fds[0]), SOCK_STREAM, 0);
        CHECK(peer >= 0);
        CHECK(connect(peer, (struct sockaddr *)(void *)address.sockaddr.bytes, (socklen_t)address.len) == 0);
        taken_start(&t, sockets.fds[0]);
        CHECK_INT(t.count, 0); /* nobody is called back from inside the call */
        UNTIL(t.count == 1);
        CHECK_STR(t.from, local_text(peer));
        CHECK(fcntl(t.fds[0], F_GETFL) & O_NONBLOCK);
        CHECK(fcntl(t.fds[0], F_GETFD) & FD_CLOEXEC);
        tornado_remove_accept_handler(t.acceptor);
        taken_close(&t);
        close(peer);
        CHECK(fcntl(sockets.fds[0], F_GETFD) >= 0); /* it stays the caller's */
        tornado_sockets_close(&sockets);
    }
    place_free(&p);
}

TEST_EACH_POLLER(netutil_accepts_at_most_128_in_a_row)
{
    enum { CLIENTS = 150 };
    static int clients[CLIENTS];
    taken t = {.count = 0};
    tornado_sockets sockets = bound(0, OPTIONS(.address = "127.0.0.1", .backlog = CLIENTS));
    CHECK(tornado_ioloop_current() != NULL);
    for (int i = 0; i < CLIENTS; i++) {
        struct sockaddr_in address = loopback(sockets.port);
        clients[i] = socket(AF_INET, SOCK_STREAM, 0);
        set_nonblocking(clients[i]); /* where the system's limit is lower, some wait */
        CHECK(connect(clients[i], (struct sockaddr *)&address, sizeof address) == 0 || errno == EINPROGRESS);
    }
    taken_start(&t, sockets.fds[0]);
    loop_turns(1);
    CHECK(t.count > 0 && t.count <= 128);
    UNTIL(t.count == CLIENTS);
    tornado_remove_accept_handler(t.acceptor);
    taken_close(&t);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    tornado_sockets_close(&sockets);
}

TEST(netutil_reuse_port_shares_connections)
{
    enum { CLIENTS = 100 }; /* the chance that one gets none is 1 to 2^99 */
    tornado_bind_options options = {.address = "127.0.0.1", .reuse_port = true};
    tornado_sockets first = bound(0, &options), second = bound(first.port, &options);
    static taken a, b;
    int clients[CLIENTS];
    CHECK_INT(second.port, first.port);
    taken_start(&a, first.fds[0]);
    taken_start(&b, second.fds[0]);
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_loopback(first.port);
    UNTIL(a.count + b.count == CLIENTS);
    CHECK(a.count > 0 && b.count > 0);
    tornado_remove_accept_handler(a.acceptor);
    tornado_remove_accept_handler(b.acceptor);
    taken_close(&a);
    taken_close(&b);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    tornado_sockets_close(&first);
    tornado_sockets_close(&second);
}

TEST_EACH_POLLER(netutil_accept_handler_may_be_removed_by_its_callback)
{
    taken t = {.remove_after = 1};
    int clients[3];
    tornado_sockets sockets = bound_loopback();
    for (int i = 0; i < 3; i++)
        clients[i] = connect_loopback(sockets.port);
    taken_start(&t, sockets.fds[0]);
    loop_turns(5);
    CHECK_INT(t.count, 1);
    t.remove_after = 0;
    taken_start(&t, sockets.fds[0]); /* the others were left where they were */
    UNTIL(t.count == 3);
    tornado_remove_accept_handler(t.acceptor);
    taken_close(&t);
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    tornado_sockets_close(&sockets);
}

TEST_EACH_POLLER(netutil_removed_accept_handler_accepts_nothing)
{
    taken t = {.count = 0};
    tornado_sockets sockets = bound_loopback();
    taken_start(&t, sockets.fds[0]);
    int peer = connect_loopback(sockets.port);
    tornado_remove_accept_handler(t.acceptor);
    loop_turns(5);
    CHECK_INT(t.count, 0);
    close(peer);
    tornado_sockets_close(&sockets);
}

static void check_one_raises(int which)
{
    taken t = {.raise_at = which};
    int clients[3];
    log_keep();
    tornado_sockets sockets = bound_loopback();
    for (int i = 0; i < 3; i++)
        clients[i] = connect_loopback(sockets.port);
    taken_start(&t, sockets.fds[0]);
    UNTIL(t.count == 3);
    CHECK_INT(logged("the callback fails"), 1);
    tornado_remove_accept_handler(t.acceptor);
    taken_close(&t);
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    tornado_sockets_close(&sockets);
}

TEST_EACH_POLLER(netutil_callback_that_raises_is_logged_and_the_others_go_on)
{
    check_one_raises(1);
    check_one_raises(2);
}

TEST(netutil_accept_handler_is_freed_though_its_last_callback_raised)
{
    check_one_raises(3);
}

TEST(netutil_callback_may_remove_its_handler_and_raise)
{
    taken t = {.raise_at = 2, .remove_after = 2};
    int clients[3];
    log_keep();
    tornado_sockets sockets = bound_loopback();
    for (int i = 0; i < 3; i++)
        clients[i] = connect_loopback(sockets.port);
    taken_start(&t, sockets.fds[0]);
    loop_turns(5);
    CHECK_INT(t.count, 2);
    CHECK_INT(logged("the callback fails"), 1);
    taken_close(&t);
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    tornado_sockets_close(&sockets);
}

TEST_EACH_POLLER(netutil_connections_reset_before_they_are_accepted_do_no_harm)
{
    enum { RESET = 20 };
    taken t = {.count = 0};
    int clients[RESET];
    log_keep();
    tornado_sockets sockets = bound_loopback();
    for (int i = 0; i < RESET; i++)
        clients[i] = connect_loopback(sockets.port);
    for (int i = 0; i < RESET; i++)
        close_with_reset(clients[i]);
    int peer = connect_loopback(sockets.port);
    taken_start(&t, sockets.fds[0]);
    UNTIL(t.count > 0 && strcmp(t.from, local_text(peer)) == 0);
    CHECK(t.count <= RESET + 1);
    CHECK_STR(log_text, "");
    tornado_remove_accept_handler(t.acceptor);
    taken_close(&t);
    close(peer);
    tornado_sockets_close(&sockets);
}

/* As when two processes share a socket: both are told, and one comes too late. */
TEST_EACH_POLLER(netutil_connection_that_another_one_took_does_no_harm)
{
    taken a = {.count = 0}, b = {.count = 0};
    log_keep();
    tornado_sockets sockets = bound_loopback();
    int same = dup(sockets.fds[0]), clients[4];
    taken_start(&a, sockets.fds[0]);
    taken_start(&b, same);
    for (int i = 0; i < 4; i++) {
        clients[i] = connect_loopback(sockets.port);
        UNTIL(a.count + b.count == i + 1);
        loop_turns(2);
    }
    CHECK_INT(a.count + b.count, 4);
    CHECK_STR(log_text, "");
    tornado_remove_accept_handler(a.acceptor);
    tornado_remove_accept_handler(b.acceptor);
    taken_close(&a);
    taken_close(&b);
    for (int i = 0; i < 4; i++)
        close(clients[i]);
    close(same);
    tornado_sockets_close(&sockets);
}

/*----------------------------------------------------------------------------
 * Sockets of a supervisor.
 *----------------------------------------------------------------------------*/

enum { FIRST_FD = 3 };

/* Becomes a process that a supervisor has run with three listening sockets, "web", "admin" and "web", of which it
   keeps the ports. */
static int handed_ports[3];

static void be_handed_sockets(void)
{
    char text[20];
    int fds[3];
    for (int i = 0; i < 3; i++) {
        int fd = listen_loopback(&handed_ports[i]);
        fds[i] = fcntl(fd, F_DUPFD, 100);
        CHECK(fds[i] >= 0 && close(fd) == 0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK(dup2(fds[i], FIRST_FD + i) == FIRST_FD + i);
        close(fds[i]);
    }
    snprintf(text, sizeof text, "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
    setenv("LISTEN_FDS", "3", 1);
    setenv("LISTEN_FDNAMES", "web:admin:web", 1);
}

static void handed(const char *name, int count, const int *places)
{
    tornado_sockets sockets;
    CHECK(tornado_listen_fds(&sockets, name));
    CHECK_INT(sockets.count, count);
    CHECK_INT(sockets.port, count ? handed_ports[places[0]] : 0);
    for (int i = 0; i < count; i++) {
        int fd = sockets.fds[i];
        CHECK_INT(fd, FIRST_FD + places[i]);
        CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
        CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    }
}

static void take_handed_sockets(void)
{
    static taken t;
    tornado_sockets sockets;
    be_handed_sockets();
    handed(NULL, 3, (int[]){0, 1, 2});
    handed("admin", 1, (int[]){1});
    handed("web", 2, (int[]){0, 2});
    handed("nothing", 0, NULL);
    unsetenv("LISTEN_FDNAMES");
    handed(NULL, 3, (int[]){0, 1, 2});
    handed("web", 0, NULL);
    CHECK(tornado_listen_fds(&sockets, NULL));
    taken_start(&t, sockets.fds[2]);
    int peer = connect_loopback(handed_ports[2]);
    UNTIL(t.count == 1);
    tornado_remove_accept_handler(t.acceptor);
    taken_close(&t);
    close(peer);
    tornado_sockets_close(&sockets);
}

TEST(netutil_takes_the_sockets_of_a_supervisor_by_name)
{
    as_nobody(take_handed_sockets);
}

static void refuse_handed_sockets(void)
{
    static const struct {
        const char *pid, *fds; /* NULL: not set; "": right */
        int code;
    } cases[] = {
        {NULL, NULL, 0}, {NULL, "", 0}, {"", NULL, 0}, {"1", "", 0}, {"", "0", 0}, {"x", "", TORNADO_ERR_INVALID},
        {"", "x", TORNADO_ERR_INVALID}, {"", "-1", TORNADO_ERR_INVALID}, {"", "3 ", TORNADO_ERR_INVALID},
        {"", "4", TORNADO_ERR_INVALID}, /* there is no such descriptor */
        {"", "99999999999999999999", TORNADO_ERR_INVALID}, {"99999999999999999999", "3", TORNADO_ERR_INVALID},
    };
    be_handed_sockets();
    char *pid = strdup(getenv("LISTEN_PID"));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tornado_sockets sockets;
        unsetenv("LISTEN_PID");
        unsetenv("LISTEN_FDS");
        if (cases[i].pid)
            setenv("LISTEN_PID", *cases[i].pid ? cases[i].pid : pid, 1);
        if (cases[i].fds)
            setenv("LISTEN_FDS", *cases[i].fds ? cases[i].fds : "3", 1);
        if (tornado_listen_fds(&sockets, NULL) != (cases[i].code == 0))
            FAIL("case %zu: %s", i, tornado_last_error()->message);
        CHECK_INT(sockets.count, 0);
        if (cases[i].code)
            CHECK_INT(tornado_last_error()->code, cases[i].code);
        CHECK(!(fcntl(FIRST_FD, F_GETFD) & FD_CLOEXEC)); /* as it was */
    }
    free(pid);
}

TEST(netutil_sockets_of_a_supervisor_must_make_sense)
{
    as_nobody(refuse_handed_sockets);
}

static void refuse_other_sockets(void)
{
    tornado_sockets sockets;
    be_handed_sockets();
    CHECK(dup2(socket(AF_INET, SOCK_DGRAM, 0), FIRST_FD + 1) == FIRST_FD + 1);
    CHECK(!tornado_listen_fds(&sockets, NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(strstr(tornado_last_error()->message, "fd 4") != NULL);
    handed("web", 2, (int[]){0, 2}); /* who does not ask for it is not disturbed */
    for (int fd = FIRST_FD; fd < FIRST_FD + 17; fd++)
        CHECK(fd == FIRST_FD || dup2(FIRST_FD, fd) == fd);
    setenv("LISTEN_FDS", "17", 1);
    CHECK(!tornado_listen_fds(&sockets, NULL));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
}

TEST(netutil_sockets_of_a_supervisor_must_listen_and_be_16_at_most)
{
    as_nobody(refuse_other_sockets);
}

/*----------------------------------------------------------------------------
 * Out of descriptors.
 *----------------------------------------------------------------------------*/

/* Sends back what comes, and closes at the end. */
static void echo_ready(int fd, unsigned events, void *arg)
{
    char data[64];
    ssize_t got = recv(fd, data, sizeof data, 0);
    (void)events;
    if (got > 0) {
        CHECK_INT(send(fd, data, (size_t)got, MSG_NOSIGNAL), got);
    } else {
        tornado_ioloop_remove_handler(arg, fd);
        close(fd);
    }
}

static int echoing;

static void echo_accept(int fd, const tornado_address *address, void *arg)
{
    (void)address;
    echoing++;
    CHECK(tornado_ioloop_add_handler(arg, fd, echo_ready, arg, TORNADO_IOLOOP_READ));
}

static void check_echo(client *c)
{
    client_send(c, "echo");
    CHECK(client_need(c, 4));
    CHECK_MEM(c->data + c->taken, 4, "echo", 4);
    c->taken += 4;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Valgrind keeps to the limit itself: a connection that does not fit is accepted, and closed. */
static void need_true_limit(void)
{
    if (under_valgrind())
        SKIP("valgrind does not leave connections where they are");
}

/* Whether the loop sleeps, most of the time; a busy machine may disturb it once. */
static bool loop_sleeps(void)
{
    for (int tries = 0; tries < 5; tries++) {
        double before = cpu_seconds();
        loop_run_for(0.25);
        if (cpu_seconds() - before < 0.25 / 3)
            return true;
    }
    return false;
}

TEST_EACH_POLLER(netutil_out_of_descriptors_it_waits_and_goes_on)
{
    enum { CLIENTS = 12, FIT = 4 };
    client clients[CLIENTS];
    tornado_ioloop *loop = tornado_ioloop_current();
    double started = tornado_monotonic();
    need_true_limit();
    log_keep();
    tornado_sockets sockets = bound_loopback();
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = client_open(sockets.port);
    struct rlimit before = limit_descriptors(FIT);
    tornado_acceptor *acceptor = tornado_add_accept_handler(sockets.fds[0], echo_accept, loop);
    CHECK(acceptor != NULL);
    UNTIL(log_text[0]);
    CHECK_INT(echoing, FIT);
    CHECK(loop_sleeps());
    for (int i = 0; i < FIT; i++) /* those that fit are served */
        check_echo(&clients[i]);
    CHECK(logged(strerror(EMFILE)) <= 1 + (int)(tornado_monotonic() - started)); /* at most once a second */
    for (int i = 0; i < CLIENTS; i++) { /* and each that leaves makes room for another */
        check_echo(&clients[i]);
        client_close(&clients[i]);
    }
    CHECK_INT(echoing, CLIENTS);
    tornado_remove_accept_handler(acceptor);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    loop_turns(3);
    tornado_sockets_close(&sockets);
}

TEST(netutil_accept_handler_may_be_removed_while_it_waits_for_descriptors)
{
    taken t = {.count = 0};
    need_true_limit();
    log_keep();
    CHECK(tornado_ioloop_current() != NULL);
    tornado_sockets sockets = bound_loopback();
    int peer = connect_loopback(sockets.port);
    struct rlimit before = limit_descriptors(0);
    taken_start(&t, sockets.fds[0]);
    UNTIL(log_text[0]);
    tornado_remove_accept_handler(t.acceptor);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    loop_run_for(0.15); /* beyond the time at which it would have looked again */
    CHECK_INT(t.count, 0);
    taken_start(&t, sockets.fds[0]);
    UNTIL(t.count == 1);
    tornado_ioloop_close(tornado_ioloop_current(), false); /* a handler may outlive its loop */
    tornado_remove_accept_handler(t.acceptor);
    taken_close(&t);
    close(peer);
    tornado_sockets_close(&sockets);
}

/*----------------------------------------------------------------------------
 * What cannot be accepted from.
 *----------------------------------------------------------------------------*/

TEST(netutil_accept_handler_of_no_descriptor_is_refused)
{
    static taken t;
    tornado_sockets sockets = bound_loopback();
    CHECK(!tornado_add_accept_handler(-1, take, &t));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    taken_start(&t, sockets.fds[0]);
    CHECK(!tornado_add_accept_handler(sockets.fds[0], take, &t)); /* one handler for a descriptor */
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    tornado_remove_accept_handler(t.acceptor);
    tornado_sockets_close(&sockets);
}

TEST_EACH_POLLER(netutil_accepting_from_what_does_not_listen_is_logged_once)
{
    static taken t;
    int ends[2], pipes[2];
    log_keep();
    tcp_pair(ends);
    CHECK(pipe(pipes) == 0);
    CHECK(send(ends[1], "x", 1, 0) == 1 && write(pipes[1], "x", 1) == 1); /* both are ready to be read */
    const int fds[] = {ends[0], pipes[0]};
    for (size_t i = 0; i < 2; i++) {
        char number[16];
        taken_start(&t, fds[i]);
        UNTIL(log_text[0]);
        loop_turns(5);
        snprintf(number, sizeof number, "fd %d", fds[i]);
        CHECK_INT(logged(number), 1);
        CHECK_INT(logged("\n"), 1);
        tornado_remove_accept_handler(t.acceptor);
        log_text[0] = '\0';
    }
    CHECK_INT(t.count, 0);
    for (int i = 0; i < 2; i++) {
        close(ends[i]);
        close(pipes[i]);
    }
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

/* A turn of the loop, though an allocation may fail. */
static void turn(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    while (!tornado_ioloop_add_callback(loop, loop_stop_callback, loop))
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    CHECK(tornado_ioloop_start(loop));
}

static void accept_when_memory_is_short(void)
{
    taken t = {.count = 0};
    tornado_sockets sockets;
    if (!tornado_ioloop_current())
        return;
    int open = open_descriptors();
    if (!tornado_bind_sockets(&sockets, 0, OPTIONS(.address = "127.0.0.1"))) {
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    } else {
        t.acceptor = tornado_add_accept_handler(sockets.fds[0], take, &t);
        if (!t.acceptor) {
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        } else {
            int peer = connect_loopback(sockets.port);
            while (t.count == 0)
                turn();
            close(peer);
            tornado_remove_accept_handler(t.acceptor);
        }
        taken_close(&t);
        tornado_sockets_close(&sockets);
    }
    CHECK_INT(open_descriptors(), open);
}

TEST(netutil_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(accept_when_memory_is_short);
}
