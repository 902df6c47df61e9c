/* The floor: an epoll loop that parses nothing. For every blank line that it reads it sends one canned answer, and
   all that belong to one read with one send. A request that is cut in the middle of its blank line would be lost:
   those of this benchmark are written whole. The answer is as long as the one that tornado_hello.c gives. */
#include "listen.h"

#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS  512
#define ANSWERS 2048 /* requests in one read at most */

static const char answer[] =
    "HTTP/1.1 200 OK\r\n"
    "Server: bare-loop/0.0\r\n"
    "Content-Type: text/html; charset=UTF-8\r\n"
    "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    "Etag: \"00000000000000000000000000000000\"\r\n"
    "Content-Length: 12\r\n"
    "\r\n" BENCH_BODY;

static char answers[ANSWERS * (sizeof(answer) - 1)];
static char input[65536];

static size_t count_requests(const char *data, size_t len)
{
    const char *end = data + len, *blank;
    size_t count = 0;

    for (; (blank = memmem(data, (size_t)(end - data), "\r\n\r\n", 4)) != NULL; data = blank + 4)
        count++;
    return count < ANSWERS ? count : ANSWERS;
}

static bool serve(int fd)
{
    ssize_t got = recv(fd, input, sizeof(input), 0);
    size_t len;

    if (got <= 0)
        return false;
    len = count_requests(input, (size_t)got) * (sizeof(answer) - 1);
    return send(fd, answers, len, MSG_NOSIGNAL) == (ssize_t)len;
}

static void watch(int epoll, int fd)
{
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){ .events = EPOLLIN, .data.fd = fd });
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS];
    int listener = bench_listen(argc, argv), epoll = epoll_create1(0);

    for (size_t i = 0; i < ANSWERS; i++)
        memcpy(answers + i * (sizeof(answer) - 1), answer, sizeof(answer) - 1);
    watch(epoll, listener);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);

        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;

            if (fd == listener)
                watch(epoll, accept4(listener, NULL, NULL, SOCK_NONBLOCK));
            else if (!serve(fd))
                close(fd);
        }
    }
}
