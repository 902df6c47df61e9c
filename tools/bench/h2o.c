/* Hello from libh2o: one event loop, HTTP/1 only. */
#define H2O_USE_EPOLL 1
#define H2O_USE_LIBUV 0
#include "listen.h"

#include <h2o.h>
#include <h2o/http1.h>

static h2o_globalconf_t config;
static h2o_context_t context;
static h2o_accept_ctx_t accepting = { .ctx = &context };

static int hello(h2o_handler_t *handler, h2o_req_t *request)
{
    (void)handler;
    request->res.status = 200;
    request->res.reason = "OK";
    request->res.content_length = sizeof(BENCH_BODY) - 1;
    h2o_add_header(&request->pool, &request->res.headers, H2O_TOKEN_CONTENT_TYPE, NULL, H2O_STRLIT("text/plain"));
    h2o_send_inline(request, H2O_STRLIT(BENCH_BODY));
    return 0;
}

static void on_accept(h2o_socket_t *listener, const char *error)
{
    h2o_socket_t *client;

    if (!error && (client = h2o_evloop_socket_accept(listener)) != NULL)
        h2o_accept(&accepting, client);
}

int main(int argc, char **argv)
{
    int fd = bench_listen(argc, argv);
    h2o_hostconf_t *host;

    h2o_config_init(&config);
    config.http1.req_timeout = 600 * 1000; /* the idle timeout, too; in milliseconds */
    host = h2o_config_register_host(&config, h2o_iovec_init(H2O_STRLIT("default")), 65535);
    h2o_create_handler(h2o_config_register_path(host, "/", 0), sizeof(h2o_handler_t))->on_req = hello;
    h2o_context_init(&context, h2o_evloop_create(), &config);
    accepting.hosts = config.hosts;
    h2o_socket_read_start(h2o_evloop_socket_create(context.loop, fd, H2O_SOCKET_FLAG_DONT_READ), on_accept);
    while (h2o_evloop_run(context.loop, INT32_MAX) == 0)
        continue;
    return 1;
}
