/* TLS: a server of one file by tornado.h, in callback style, and the clients that measure any server.

     tls serve PORT CERTFILE KEYFILE FILE     sends FILE to whoever sends a head of HTTP, and closes
     tls shake PORT SECONDS                   handshakes, whole ones, from eight processes: prints how many
     tls bulk PORT PATH SECONDS               fetches PATH again and again: prints how many bytes came
     tls hold PORT COUNT                      opens so many connections, says "held", and keeps them until its input
                                              ends */
#define TORNADO_STATIC
#define TORNADO_OPENSSL
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <fcntl.h>
#include <openssl/ssl.h>
#include <sys/wait.h>

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

/* ---- the server ---- */

static struct {
    int fd;
    int64_t size;
} file;

static void on_sent(tornado_future *future, void *stream)
{
    (void)tornado_future_error(future);
    tornado_iostream_close(stream);
    tornado_iostream_release(stream);
}

static void on_head(tornado_future *future, void *stream)
{
    if (tornado_future_error(future)) {
        tornado_iostream_release(stream);
        return;
    }
    tornado_future *sent = tornado_iostream_write_file(stream, file.fd, 0, file.size);
    require(tornado_future_add_done_callback(sent, on_sent, stream), "callback");
    tornado_future_release(sent);
}

static void accepted(tornado_iostream *stream, void *arg)
{
    (void)arg;
    tornado_future *head = tornado_iostream_read_until(stream, "\r\n\r\n");
    require(tornado_future_add_done_callback(head, on_head, tornado_iostream_retain(stream)), "callback");
    tornado_future_release(head);
}

static int serve(char **argv)
{
    tornado_ssl_options ssl = {.server_side = true, .certfile = argv[3], .keyfile = argv[4]};
    tornado_tcpserver_options options = {.stream.ssl_options = &ssl};
    file.fd = open(argv[5], O_RDONLY);
    file.size = lseek(file.fd, 0, SEEK_END);
    require(file.size > 0, argv[5]);
    tornado_tcpserver *server = tornado_tcpserver_new(accepted, NULL, &options);
    require(server && tornado_tcpserver_listen(server, atoi(argv[2]),
                                               &(tornado_bind_options){.address = "127.0.0.1", .backlog = 4096}),
            tornado_last_error()->message);
    tornado_ioloop_shutdown_on_signals(tornado_ioloop_current(), 0);
    tornado_ioloop_start(tornado_ioloop_current());
    return 0;
}

/* ---- the clients ---- */

static SSL_CTX *client;
static int port;

static SSL *dial(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    SSL *ssl = SSL_new(client);
    require(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
    require(ssl && SSL_set_fd(ssl, fd) == 1 && SSL_connect(ssl) == 1, "handshake");
    return ssl;
}

static void hang_up(SSL *ssl)
{
    char rest[4096];
    int fd = SSL_get_fd(ssl);
    SSL_shutdown(ssl);
    shutdown(fd, SHUT_WR);
    while (recv(fd, rest, sizeof rest, 0) > 0) /* tickets, and the end */
        continue;
    SSL_free(ssl);
    close(fd);
}

static void shake(double seconds)
{
    enum { PROCESSES = 8 };
    int counts[2];
    long all = 0, count = 0;
    require(pipe(counts) == 0, "pipe");
    for (int i = 0; i < PROCESSES; i++)
        if (fork() == 0) {
            for (double end = tornado_monotonic() + seconds; tornado_monotonic() < end; count++)
                hang_up(dial());
            require(write(counts[1], &count, sizeof count) == sizeof count, "write");
            _exit(0);
        }
    close(counts[1]);
    while (read(counts[0], &count, sizeof count) == sizeof count)
        all += count;
    while (wait(NULL) > 0)
        continue;
    printf("%ld\n", all);
}

static void bulk(const char *path, double seconds)
{
    static char data[65536];
    int64_t bytes = 0;
    for (double end = tornado_monotonic() + seconds; tornado_monotonic() < end;) {
        SSL *ssl = dial();
        int len = snprintf(data, sizeof data, "GET %s HTTP/1.0\r\n\r\n", path);
        require(SSL_write(ssl, data, len) == len, "write");
        while ((len = SSL_read(ssl, data, sizeof data)) > 0)
            bytes += len;
        hang_up(ssl);
    }
    printf("%lld\n", (long long)bytes);
}

static void hold(int count)
{
    for (int i = 0; i < count; i++) {
        char byte;
        SSL *ssl = dial();
        fcntl(SSL_get_fd(ssl), F_SETFL, O_NONBLOCK);
        SSL_read(ssl, &byte, 1); /* the tickets */
    }
    puts("held");
    fflush(stdout);
    while (getchar() != EOF)
        continue;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "serve") == 0)
        return serve(argv);
    require(argc > 3 && (client = SSL_CTX_new(TLS_client_method())) != NULL, "usage");
    SSL_CTX_set_mode(client, SSL_MODE_RELEASE_BUFFERS);
    port = atoi(argv[2]);
    if (strcmp(argv[1], "shake") == 0)
        shake(atof(argv[3]));
    else if (strcmp(argv[1], "hold") == 0)
        hold(atoi(argv[3]));
    else if (argc == 5 && strcmp(argv[1], "bulk") == 0)
        bulk(argv[3], atof(argv[4]));
    return 0;
}
