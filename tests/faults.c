/* Which system call goes wrong next, and how: the state behind faults.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* netdb.h then has all of its errors */
#endif
#include "faults.h"

#include <errno.h>
#include <netdb.h>
#include <stdatomic.h>
#include <string.h>

/* Only what the manuals of Linux and POSIX name, and what the header can meet as it uses the call: a pipe that does
   not block is never interrupted, for instance. */
static const struct {
    test_fault fault;
    int error;
} faults[] = {
#define SHORT                 TEST_SHORT
#define HARMLESS(call, error) {{#call, #error, true}, error},
#define HARM(call, error)     {{#call, #error, false}, error},
    HARMLESS(recv, EINTR) HARMLESS(recv, EAGAIN) HARMLESS(recv, SHORT)
    HARM(recv, ECONNRESET) HARM(recv, ETIMEDOUT) HARM(recv, ENOMEM)
    HARMLESS(send, EINTR) HARMLESS(send, EAGAIN) HARMLESS(send, SHORT) HARMLESS(send, ENOBUFS)
    HARM(send, EPIPE) HARM(send, ECONNRESET) HARM(send, ENOMEM)
    HARMLESS(sendmsg, EINTR) HARMLESS(sendmsg, EAGAIN) HARMLESS(sendmsg, SHORT) HARMLESS(sendmsg, ENOBUFS)
    HARM(sendmsg, EPIPE) HARM(sendmsg, ECONNRESET) HARM(sendmsg, ENOMEM)
    HARMLESS(sendfile, EINTR) HARMLESS(sendfile, EAGAIN) HARMLESS(sendfile, SHORT) HARMLESS(sendfile, EINVAL)
    HARM(sendfile, EPIPE) HARM(sendfile, EIO) HARM(sendfile, ENOMEM)
    HARMLESS(pread, EINTR) HARMLESS(pread, SHORT) HARM(pread, EIO)
    HARMLESS(accept, EINTR) HARMLESS(accept, EAGAIN) HARMLESS(accept, EMFILE) HARMLESS(accept, ENFILE)
    HARMLESS(accept, ENOBUFS) HARMLESS(accept, ENOMEM) HARM(accept, ECONNABORTED) HARM(accept, EPROTO)
    HARMLESS(connect, EINTR) HARM(connect, ECONNREFUSED) HARM(connect, ENETUNREACH) HARM(connect, EADDRNOTAVAIL)
    HARM(socket, EMFILE) HARM(socket, ENFILE) HARM(socket, ENOBUFS) HARM(socket, ENOMEM) HARM(socket, EAFNOSUPPORT)
    HARMLESS(recvmsg, EINTR) HARMLESS(recvmsg, EAGAIN) HARM(recvmsg, ECONNREFUSED) HARM(recvmsg, ENOMEM)
    HARMLESS(sendto, EINTR) HARMLESS(sendto, EAGAIN) HARMLESS(sendto, ENOBUFS) HARM(sendto, ECONNREFUSED)
    HARM(sendto, EPERM) HARM(sendto, ENETUNREACH)
    HARM(bind, EADDRINUSE) HARM(bind, EADDRNOTAVAIL) HARM(bind, EACCES) HARM(bind, ENOMEM) HARM(listen, EADDRINUSE)
    HARM(getsockopt, ENOBUFS) HARM(setsockopt, ENOBUFS) HARM(getsockname, ENOBUFS) HARMLESS(shutdown, ENOTCONN)
    HARM(getaddrinfo, EAI_MEMORY) HARM(getaddrinfo, EAI_AGAIN)
    HARM(lstat, EACCES) HARM(chmod, EPERM) HARM(unlink, EPERM)
    HARM(pipe, EMFILE) HARM(pipe, ENFILE)
    HARM(epoll_create, EMFILE) HARM(epoll_create, ENFILE) HARM(epoll_create, ENOMEM)
    HARM(epoll_add, ENOMEM) HARM(epoll_add, ENOSPC)
    HARMLESS(epoll_wait, EINTR) HARMLESS(epoll_wait, SHORT)
    HARMLESS(poll, EINTR) HARM(poll, ENOMEM) HARMLESS(select, EINTR) HARM(select, ENOMEM)
    HARMLESS(read, EINTR) HARMLESS(read, SHORT) HARMLESS(close, EINTR)
    HARMLESS(write, EINTR) HARMLESS(write, SHORT) HARM(write, ENOSPC) HARM(write, EIO)
    HARM(mmap, ENOMEM) HARMLESS(madvise, EINVAL) HARM(mprotect, ENOMEM)
    HARMLESS(getrandom, EINTR) HARMLESS(getrandom, ENOSYS) HARMLESS(getrandom, SHORT)
#undef SHORT
#undef HARMLESS
#undef HARM
};

static atomic_int armed = -1;
static atomic_long seen, first, length;

const test_fault *test_fault_at(int index)
{
    return index >= 0 && index < (int)(sizeof faults / sizeof *faults) ? &faults[index].fault : NULL;
}

int test_fault_named(const char *call, const char *how)
{
    for (int i = 0; i < (int)(sizeof faults / sizeof *faults); i++)
        if (strcmp(faults[i].fault.call, call) == 0 && strcmp(faults[i].fault.how, how) == 0)
            return i;
    return -1;
}

void test_fail_calls(int index, long n, long row)
{
    atomic_store(&armed, -1);
    atomic_store(&seen, 0);
    atomic_store(&first, n);
    atomic_store(&length, row);
    atomic_store(&armed, index);
}

long test_fault_calls(void)
{
    return atomic_load(&seen);
}

bool test_fault_is(const char *call)
{
    int index = atomic_load(&armed);
    return index >= 0 && strcmp(faults[index].fault.call, call) == 0;
}

int test_fault_of(const char *call)
{
    if (!test_fault_is(call))
        return 0;
    int fault = faults[atomic_load(&armed)].error;
    long after = atomic_fetch_add(&seen, 1) + 1 - atomic_load(&first);
    if (after < 0 || after >= atomic_load(&length))
        return 0;
    if (fault > 0)
        errno = fault;
    return fault;
}
