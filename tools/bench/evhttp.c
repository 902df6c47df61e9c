/* Hello from libevent's HTTP server. */
#include "listen.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>

static void hello(struct evhttp_request *request, void *arg)
{
    struct evbuffer *body = evbuffer_new();

    (void)arg;
    evbuffer_add(body, BENCH_BODY, sizeof(BENCH_BODY) - 1);
    evhttp_send_reply(request, HTTP_OK, "OK", body);
    evbuffer_free(body);
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    struct evhttp *http = evhttp_new(base);

    evhttp_set_gencb(http, hello, NULL);
    if (evhttp_accept_socket(http, bench_listen(argc, argv)))
        return 1;
    return event_base_dispatch(base);
}
