/* As much of kqueue as the poller uses, made of poll, to test it where there is none: level-triggered reading and
   writing of file descriptors. As with the real one, a descriptor that was closed is watched no more. */
#ifndef TEST_KQUEUE_H
#define TEST_KQUEUE_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#define EVFILT_READ  (-1)
#define EVFILT_WRITE (-2)
#define EV_ADD       0x0001
#define EV_DELETE    0x0002
#define EV_EOF       0x8000

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned fflags;
    intptr_t data;
    void *udata;
};

/* One queue for each descriptor that was one; it lives on until another queue has that number. The descriptor is that
   of an epoll which watches the same, as one waits for a queue by the descriptor. */
typedef struct test_kqueue {
    struct pollfd *watched;
    size_t count, capacity, next; /* next: where to look first, so that all get their turn */
} test_kqueue;

#define TEST_KQUEUES 4096
static test_kqueue test_kqueues[TEST_KQUEUES];

static inline int kqueue(void)
{
    int fd = epoll_create1(0);
    if (fd >= TEST_KQUEUES) {
        close(fd);
        errno = EMFILE;
        return -1;
    }
    if (fd >= 0)
        test_kqueues[fd].count = 0;
    return fd;
}

static inline void test_kqueue_tell(int queue, int fd, short events)
{
    struct epoll_event event = {.events = (events & POLLIN ? EPOLLIN : 0u) | (events & POLLOUT ? EPOLLOUT : 0u)};
    if (epoll_ctl(queue, events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, fd, &event) < 0 && errno == ENOENT && events)
        epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event);
}

static inline int test_kqueue_change(int number, const struct kevent *change)
{
    test_kqueue *queue = &test_kqueues[number];
    short event = change->filter == EVFILT_READ ? POLLIN : POLLOUT;
    int fd = (int)change->ident;
    size_t at = 0;
    while (at < queue->count && queue->watched[at].fd != fd)
        at++;
    bool known = at < queue->count && queue->watched[at].events & event;
    if (change->flags & EV_DELETE) {
        if (!known)
            return ENOENT;
        queue->watched[at].events &= (short)~event;
        test_kqueue_tell(number, fd, queue->watched[at].events);
        if (!queue->watched[at].events)
            queue->watched[at] = queue->watched[--queue->count];
        return 0;
    }
    if (fcntl(fd, F_GETFD) < 0)
        return errno;
    if (at == queue->count) {
        if (queue->count == queue->capacity) {
            size_t capacity = queue->capacity ? 2 * queue->capacity : 16;
            struct pollfd *watched = realloc(queue->watched, capacity * sizeof *watched);
            if (!watched)
                return ENOMEM;
            queue->watched = watched;
            queue->capacity = capacity;
        }
        queue->watched[queue->count].events = 0;
        queue->watched[queue->count++].fd = fd;
    }
    queue->watched[at].events |= event;
    test_kqueue_tell(number, fd, queue->watched[at].events);
    return 0;
}

static inline int test_kqueue_collect(test_kqueue *queue, struct kevent *events, int room)
{
    int count = 0;
    size_t first = queue->count ? queue->next++ % queue->count : 0;
    for (size_t i = 0; i < queue->count; i++) {
        const struct pollfd *one = &queue->watched[(first + i) % queue->count];
        for (int filter = EVFILT_READ; filter >= EVFILT_WRITE && count < room; filter--) {
            bool reading = filter == EVFILT_READ;
            short ended = reading ? POLLHUP | POLLERR | POLLRDHUP : POLLHUP | POLLERR;
            if (!(one->events & (reading ? POLLIN : POLLOUT)) ||
                !(one->revents & ((reading ? POLLIN : POLLOUT) | ended)))
                continue;
            memset(&events[count], 0, sizeof *events);
            events[count].ident = (uintptr_t)one->fd;
            events[count].filter = (short)filter;
            events[count].flags = one->revents & ended ? EV_EOF : 0;
            if (one->revents & POLLERR)
                events[count].fflags = EIO;
            count++;
        }
    }
    return count;
}

static inline int kevent(int fd, const struct kevent *changes, int change_count, struct kevent *events, int room,
                         const struct timespec *timeout)
{
    test_kqueue *queue = &test_kqueues[fd];
    for (int i = 0; i < change_count; i++) {
        int error = test_kqueue_change(fd, &changes[i]);
        if (error) {
            errno = error;
            return -1;
        }
    }
    if (!room)
        return 0;
    if (ppoll(queue->watched, queue->count, timeout, NULL) < 0)
        return -1;
    for (size_t i = queue->count; i-- > 0;)
        if (queue->watched[i].revents & POLLNVAL)
            queue->watched[i] = queue->watched[--queue->count];
    return test_kqueue_collect(queue, events, room);
}

#endif
