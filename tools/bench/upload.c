/* A large body sent to a handler that takes it as it comes (data_received), with a length and in chunks, beside a bare
   recv loop that takes the same bytes and looks at none of them: megabytes of body for a second, the same for a second
   of the receiver's CPU time, user and system, and by how much the receiver's resident set grows from the first
   sixteenth of the body to its end.

     upload GIBIBYTES  measures: a line "case engine figure unit" for each, separated by tabs; the best of several

   Each receiver has a process of its own; who sends has another. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <sys/resource.h>
#include <sys/wait.h>

enum { CHUNK = 65536, ROUNDS = 5, SIXTEENTHS = 16 };

static uint64_t body_size; /* of bytes that are no framing; a multiple of 16 chunks */

static void require(bool ok)
{
    if (!ok)
        abort();
}

/* What is sent: a head, and the body of chunks, each with what stands around it. */
typedef struct shape {
    const char *name, *head, *before, *after, *end;
} shape;

static const shape shapes[] = {
    {"with a length", "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %llu\r\n\r\n", "", "", ""},
    {"in chunks", "PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", "10000\r\n", "\r\n",
     "0\r\n\r\n"}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static size_t print_head(char *out, size_t room, const shape *s)
{
    return (size_t)snprintf(out, room, s->head, (unsigned long long)body_size);
}

/*----------------------------------------------------------------------------
 * The receivers: each takes one request from a connection to `listener`, answers, and returns.
 *----------------------------------------------------------------------------*/

typedef void receiver_function(int listener, const shape *s);

static void bare_receiver(int listener, const shape *s)
{
    static char buffer[CHUNK];
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    uint64_t left = print_head(buffer, sizeof buffer, s) + strlen(s->end) +
                    body_size / CHUNK * (strlen(s->before) + CHUNK + strlen(s->after));
    int fd = accept(listener, NULL, NULL);
    while (left > 0) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        require(got > 0);
        left -= (uint64_t)got;
    }
    require(send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL) == (ssize_t)sizeof answer - 1);
}

static uint64_t received;

static void prepare(tornado_handler *self)
{
    tornado_http1_connection_set_max_body_size(self->request->connection, (int64_t)body_size);
}

static void data_received(tornado_handler *self, tornado_bytes chunk)
{
    (void)self;
    received += chunk.len;
}

static void put(tornado_handler *self)
{
    (void)self;
    require(received == body_size);
}

static void on_finish(tornado_handler *self)
{
    (void)self;
    tornado_ioloop_stop(tornado_ioloop_current());
}

static void our_receiver(int listener, const shape *s)
{
    static const tornado_handler_class handler = {.stream_request_body = true, .prepare = prepare,
                                                  .data_received = data_received, .put = put,
                                                  .on_finish = on_finish};
    tornado_rule rules[] = {{.path = "/", .handler = &handler}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_httpserver_new(tornado_application_delegate(), app, NULL) : NULL;
    require(server && tornado_httpserver_add_socket(server, listener));
    tornado_ioloop_start(tornado_ioloop_current());
    (void)s;
}

static const struct {
    const char *name;
    receiver_function *run;
} engines[] = {{"tornado.h", our_receiver}, {"bare recv loop", bare_receiver}};
enum { ENGINES = sizeof engines / sizeof engines[0] };

/*----------------------------------------------------------------------------
 * Measuring.
 *----------------------------------------------------------------------------*/

typedef struct figures {
    double wall, cpu; /* seconds */
    long grown;       /* bytes */
} figures;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static long resident(pid_t pid)
{
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%ld/statm", (long)pid);
    FILE *file = fopen(path, "r");
    if (file && fscanf(file, "%*s %ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static void send_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(fd, data, len, MSG_NOSIGNAL);
        require(sent > 0);
        data += sent;
        len -= (size_t)sent;
    }
}

/* Sends a request as it is described, and waits for the answer's first byte. Returns by how much the receiver grew. */
static long send_request(int fd, const shape *s, pid_t receiver)
{
    static char chunk[CHUNK + 64];
    long first = 0, most = 0;
    size_t before = strlen(s->before), len = before + CHUNK + strlen(s->after);
    send_all(fd, chunk, print_head(chunk, sizeof chunk, s));
    memset(chunk, 'a', sizeof chunk);
    memcpy(chunk, s->before, before);
    memcpy(chunk + before + CHUNK, s->after, strlen(s->after));
    for (unsigned part = 0; part < SIXTEENTHS; part++) {
        for (uint64_t i = 0; i < body_size / CHUNK / SIXTEENTHS; i++)
            send_all(fd, chunk, len);
        long size = resident(receiver);
        first = part ? first : size;
        most = size > most ? size : most;
    }
    send_all(fd, s->end, strlen(s->end));
    require(recv(fd, chunk, sizeof chunk, 0) > 12 && memcmp(chunk, "HTTP/1.1 200", 12) == 0);
    return most - first;
}

static figures measure(receiver_function *run, const shape *s)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0), status;
    struct rusage usage;
    figures result;
    require(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0 &&
            getsockname(listener, (struct sockaddr *)&address, &len) == 0);
    pid_t pid = fork();
    require(pid >= 0);
    if (pid == 0) {
        close(fd);
        run(listener, s);
        _exit(0);
    }
    close(listener);
    require(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    result.wall = now();
    result.grown = send_request(fd, s, pid);
    result.wall = now() - result.wall;
    close(fd);
    require(wait4(pid, &status, 0, &usage) == pid && status == 0);
    result.cpu = (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                 ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec) / 1e6;
    return result;
}

int main(int argc, char **argv)
{
    double gibibytes = argc > 1 ? atof(argv[1]) : 0.25;
    body_size = (uint64_t)(gibibytes * 1024) * 1024 * 1024;
    require(body_size > 0);
    for (int i = 0; i < SHAPES; i++) {
        figures best[ENGINES];
        for (int round = 0; round < ROUNDS; round++)
            for (int k = 0; k < ENGINES; k++) {
                figures f = measure(engines[k].run, &shapes[i]);
                best[k].wall = round == 0 || f.wall < best[k].wall ? f.wall : best[k].wall;
                best[k].cpu = round == 0 || f.cpu < best[k].cpu ? f.cpu : best[k].cpu;
                best[k].grown = round == 0 || f.grown > best[k].grown ? f.grown : best[k].grown;
            }
        for (int k = 0; k < ENGINES; k++) {
            printf("%s\t%s\t%.0f\tMB/s\n", shapes[i].name, engines[k].name, (double)body_size / best[k].wall / 1e6);
            printf("%s, CPU\t%s\t%.0f\tMB/s\n", shapes[i].name, engines[k].name,
                   (double)body_size / best[k].cpu / 1e6);
        }
        printf("%s, growth\t%s\t%ld\tbytes\n", shapes[i].name, engines[0].name, best[0].grown);
    }
    return 0;
}
