/* The implementation as the tests see it: its allocations are counted and can fail, its assertions end the test, and
   each kind of system call that it makes can go wrong, in each way that the system has. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#endif

void *test_malloc(size_t size, int line);
void *test_realloc(void *pointer, size_t size, int line);
void test_free(void *pointer, int line);
void test_assertion_failed(const char *condition, int line);

/*----------------------------------------------------------------------------
 * System calls that go wrong.
 *----------------------------------------------------------------------------*/

/* The calls that do nothing when they fail. */
#define FAILING(type, name, call, parameters, arguments)                                                           \
    static type test_##name parameters                                                                             \
    {                                                                                                              \
        return test_fault_of(#call) ? -1 : name arguments;                                                         \
    }

FAILING(int, socket, socket, (int family, int type, int protocol), (family, type, protocol))
FAILING(int, bind, bind, (int fd, const struct sockaddr *address, socklen_t len), (fd, address, len))
FAILING(int, listen, listen, (int fd, int backlog), (fd, backlog))
FAILING(int, getsockopt, getsockopt, (int fd, int level, int name, void *value, socklen_t *len),
        (fd, level, name, value, len))
FAILING(int, setsockopt, setsockopt, (int fd, int level, int name, const void *value, socklen_t len),
        (fd, level, name, value, len))
FAILING(int, getsockname, getsockname, (int fd, struct sockaddr *address, socklen_t *len), (fd, address, len))
FAILING(ssize_t, sendto, sendto,
        (int fd, const void *data, size_t len, int flags, const struct sockaddr *address, socklen_t address_len),
        (fd, data, len, flags, address, address_len))
FAILING(ssize_t, recvmsg, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
FAILING(int, lstat, lstat, (const char *path, struct stat *status), (path, status))
FAILING(int, chmod, chmod, (const char *path, mode_t mode), (path, mode))
FAILING(int, unlink, unlink, (const char *path), (path))
FAILING(int, pipe, pipe, (int ends[2]), (ends))
FAILING(int, poll, poll, (struct pollfd *fds, nfds_t count, int timeout), (fds, count, timeout))
FAILING(int, select, select, (int top, fd_set *in, fd_set *out, fd_set *odd, struct timeval *timeout),
        (top, in, out, odd, timeout))
FAILING(int, mprotect, mprotect, (void *memory, size_t len, int protection), (memory, len, protection))

/* Where guards can be had by advice, they are never made by mprotect. */
static int test_madvise(void *memory, size_t len, int advice)
{
    return test_fault_of("madvise") || test_fault_is("mprotect") ? -1 : madvise(memory, len, advice);
}

static ssize_t test_recv(int fd, void *data, size_t len, int flags)
{
    int fault = test_fault_of("recv");
    return fault > 0 ? -1 : recv(fd, data, fault == TEST_SHORT && len ? 1 : len, flags);
}

static ssize_t test_send(int fd, const void *data, size_t len, int flags)
{
    int fault = test_fault_of("send");
    return fault > 0 ? -1 : send(fd, data, fault == TEST_SHORT && len ? 1 : len, flags);
}

static ssize_t test_sendmsg(int fd, const struct msghdr *message, int flags)
{
    int fault = test_fault_of("sendmsg");
    if (fault == TEST_SHORT)
        return send(fd, message->msg_iov[0].iov_base, 1, flags);
    return fault ? -1 : sendmsg(fd, message, flags);
}

static ssize_t test_read(int fd, void *data, size_t len)
{
    int fault = test_fault_of("read");
    return fault > 0 ? -1 : read(fd, data, fault == TEST_SHORT && len ? 1 : len);
}

static ssize_t test_pread(int fd, void *data, size_t len, off_t at)
{
    int fault = test_fault_of("pread");
    return fault > 0 ? -1 : pread(fd, data, fault == TEST_SHORT && len ? 1 : len, at);
}

static ssize_t test_write(int fd, const void *data, size_t len)
{
    struct stat status;
    int fault = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? test_fault_of("write") : 0;
    return fault > 0 ? -1 : write(fd, data, fault == TEST_SHORT && len ? 1 : len);
}

/* The descriptor is closed all the same. */
static int test_close(int fd)
{
    int fault = test_fault_of("close"), result = close(fd);
    if (!fault)
        return result;
    errno = fault;
    return -1;
}

static int test_shutdown(int fd, int how)
{
    int fault = test_fault_of("shutdown"), result = shutdown(fd, how);
    if (!fault)
        return result;
    errno = fault;
    return -1;
}

static int test_connect(int fd, const struct sockaddr *address, socklen_t len)
{
    int fault = test_fault_of("connect");
    if (fault && fault != EINTR)
        return -1;
    int result = connect(fd, address, len);
    if (fault && result != 0 && errno == EINPROGRESS)
        errno = EINTR; /* and it goes on */
    return result;
}

static int test_getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                            struct addrinfo **found)
{
    int fault = test_fault_of("getaddrinfo");
    return fault ? fault : getaddrinfo(host, service, hints, found);
}

static void *test_mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset)
{
    return test_fault_of("mmap") ? MAP_FAILED : mmap(at, len, protection, flags, fd, offset);
}

#ifdef __linux__
FAILING(int, epoll_create1, epoll_create, (int flags), (flags))

/* A connection that was reset before it was accepted is gone; other failures leave it where it is. */
static int test_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
    int fault = test_fault_of("accept");
    if (fault && fault != ECONNABORTED && fault != EPROTO)
        return -1;
    int accepted = accept4(fd, address, len, flags);
    if (!fault || accepted < 0)
        return accepted;
    close(accepted);
    errno = fault;
    return -1;
}

static int test_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    return operation == EPOLL_CTL_ADD && test_fault_of("epoll_add") ? -1 : epoll_ctl(epoll, operation, fd, event);
}

static int test_epoll_wait(int epoll, struct epoll_event *events, int room, int timeout)
{
    int fault = test_fault_of("epoll_wait");
    return fault > 0 ? -1 : epoll_wait(epoll, events, fault == TEST_SHORT ? 1 : room, timeout);
}

/* Where pread is to fail, it is called: there is no sendfile. */
static ssize_t test_sendfile(int socket, int file, off_t *at, size_t len)
{
    int fault = test_fault_of("sendfile");
    if (test_fault_is("pread")) {
        errno = ENOSYS;
        return -1;
    }
    return fault > 0 ? -1 : sendfile(socket, file, at, fault == TEST_SHORT && len ? 1 : len);
}

static long test_syscall(long number, ...)
{
    long arguments[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(args, long);
    va_end(args);
    int fault = number == SYS_getrandom ? test_fault_of("getrandom") : 0;
    if (fault > 0)
        return -1;
    return syscall(number, arguments[0], fault == TEST_SHORT ? 1 : arguments[1], arguments[2], arguments[3],
                   arguments[4], arguments[5]);
}
#define accept4       test_accept4
#define epoll_create1 test_epoll_create1
#define epoll_ctl     test_epoll_ctl
#define epoll_wait    test_epoll_wait
#define sendfile      test_sendfile
#define syscall       test_syscall
#endif

/* All headers that declare these have been included above. Fields of that name change theirs as well, here only. */
#define bind        test_bind
#define chmod       test_chmod
#define close       test_close
#define connect     test_connect
#define getaddrinfo test_getaddrinfo
#define getsockname test_getsockname
#define getsockopt  test_getsockopt
#define listen      test_listen
#define lstat       test_lstat
#define madvise     test_madvise
#define mmap        test_mmap
#define mprotect    test_mprotect
#define pipe        test_pipe
#define poll        test_poll
#define pread       test_pread
#define read        test_read
#define recv        test_recv
#define recvmsg     test_recvmsg
#define select      test_select
#define send        test_send
#define sendmsg     test_sendmsg
#define sendto      test_sendto
#define setsockopt  test_setsockopt
#define shutdown    test_shutdown
#define socket      test_socket
#define unlink      test_unlink
#define write       test_write

#define TORNADO_MALLOC(size)           test_malloc(size, __LINE__)
#define TORNADO_REALLOC(pointer, size) test_realloc(pointer, size, __LINE__)
#define TORNADO_FREE(pointer)          test_free(pointer, __LINE__)
#define TORNADO_ASSERT(condition)      ((condition) ? (void)0 : test_assertion_failed(#condition, __LINE__))
#define TORNADO_TESTING                1
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"
