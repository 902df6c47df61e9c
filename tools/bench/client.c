/* A client that does exactly what it is told, for counting: opens CONNECTIONS with one request on each, and in each
   of ROUNDS rounds writes BATCH requests at once on every connection, then reads all the answers. With HOLD it says
   "held" and keeps the connections open until its input ends. An answer's end is known by its length, the first's.

   usage: client PORT PATH CONNECTIONS ROUNDS BATCH [HOLD] */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { PORT = 1, PATH, CONNECTIONS, ROUNDS, BATCH, HOLD };

static char input[1 << 20];

static void fail(const char *what)
{
    fprintf(stderr, "client: %s: ", what);
    perror(NULL);
    exit(1);
}

static int dial(int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct timeval patience = { .tv_sec = 20 };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_port = htons((unsigned short)port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
        fail("connect");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    return fd;
}

static void write_all(int fd, const char *data, size_t len)
{
    if (send(fd, data, len, MSG_NOSIGNAL) != (ssize_t)len)
        fail("send");
}

static void read_all(int fd, size_t len)
{
    while (len) {
        ssize_t got = recv(fd, input, len < sizeof(input) ? len : sizeof(input), 0);

        if (got <= 0)
            fail("recv");
        len -= (size_t)got;
    }
}

/* The length of the answer at the start of the input, or 0 when there is not enough of it. */
static size_t answer_length(void)
{
    char *blank = strstr(input, "\r\n\r\n"), *length = strcasestr(input, "\r\nContent-Length:");

    if (!blank || !length || length > blank)
        return 0;
    return (size_t)(blank + 4 - input) + strtoul(length + strlen("\r\nContent-Length:"), NULL, 10);
}

/* Asks once and reads the whole answer, which must be a good one. */
static size_t first_answer(int fd, const char *request)
{
    size_t have = 0, want = 0;

    write_all(fd, request, strlen(request));
    while (!want || have < want) {
        ssize_t got = recv(fd, input + have, sizeof(input) - 1 - have, 0);

        if (got <= 0)
            fail("recv");
        have += (size_t)got;
        want = answer_length();
    }
    if (strncmp(input, "HTTP/1.1 200 ", 13) || have != want) {
        fprintf(stderr, "client: not the answer that was expected:\n%.*s\n", (int)have, input);
        exit(1);
    }
    return want;
}

static char *repeat(const char *text, int count)
{
    char *copies = calloc((size_t)count, strlen(text) + 1);

    while (count--)
        strcat(copies, text);
    return copies;
}

int main(int argc, char **argv)
{
    char request[512], *batch;
    int port, connections, rounds, per_batch, *fds;
    size_t length = 0, batch_length;

    if (argc <= BATCH) {
        fprintf(stderr, "usage: %s PORT PATH CONNECTIONS ROUNDS BATCH [HOLD]\n", argv[0]);
        return 2;
    }
    port = atoi(argv[PORT]);
    connections = atoi(argv[CONNECTIONS]);
    rounds = atoi(argv[ROUNDS]);
    per_batch = atoi(argv[BATCH]);
    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", argv[PATH], port);
    batch = repeat(request, per_batch);
    batch_length = strlen(batch);
    fds = calloc((size_t)connections, sizeof(*fds));

    for (int i = 0; i < connections; i++) {
        fds[i] = dial(port);
        length = first_answer(fds[i], request);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < connections; i++)
            write_all(fds[i], batch, batch_length);
        for (int i = 0; i < connections; i++)
            read_all(fds[i], length * (size_t)per_batch);
    }
    if (argc > HOLD) {
        puts("held");
        fflush(stdout);
        while (read(0, input, sizeof(input)) > 0)
            continue;
    }
    return 0;
}
