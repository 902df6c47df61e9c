/* A proxy that speaks the PROXY protocol: HAProxy, in a process of its own. */
#ifndef TEST_HAPROXY_H
#define TEST_HAPROXY_H

#include "http_client.h"

#include <signal.h>
#include <sys/wait.h>

typedef struct haproxy {
    pid_t pid;
    int listener, port; /* where its clients come to */
    char directory[64], path[80];
} haproxy;

/* Passes connections on to a port of 127.0.0.1, in the mode "tcp" or "http"; `send` says how. */
static inline haproxy haproxy_start(const char *mode, int to, const char *send)
{
    haproxy proxy = {.directory = "/tmp/tornado-test-XXXXXX"};
    TEST_NEED("haproxy");
    proxy.listener = listen_loopback(&proxy.port);
    CHECK(mkdtemp(proxy.directory) != NULL);
    snprintf(proxy.path, sizeof proxy.path, "%s/conf", proxy.directory);
    FILE *file = fopen(proxy.path, "w");
    CHECK(file != NULL);
    fprintf(file, "defaults\n mode %s\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n"
                  "listen a\n bind fd@%d\n server b 127.0.0.1:%d %s\n", mode, proxy.listener, to, send);
    CHECK(fclose(file) == 0);
    fflush(NULL);
    proxy.pid = fork();
    CHECK(proxy.pid >= 0);
    if (proxy.pid == 0) {
        execlp("haproxy", "haproxy", "-db", "-q", "-f", proxy.path, (char *)NULL);
        _exit(127);
    }
    return proxy;
}

/* Waits for bytes that come through it; fails when it has ended instead. */
static inline void haproxy_more(haproxy *proxy, client *c)
{
    int status;
    CHECK(client_more(c));
    CHECK(waitpid(proxy->pid, &status, WNOHANG) == 0);
}

static inline void haproxy_end(haproxy *proxy)
{
    kill(proxy->pid, SIGKILL);
    CHECK(waitpid(proxy->pid, NULL, 0) == proxy->pid);
    CHECK(unlink(proxy->path) == 0 && rmdir(proxy->directory) == 0);
    close(proxy->listener);
}

#endif
