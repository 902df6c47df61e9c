/* Hello from GNU libmicrohttpd: one thread, an answer made once. With poll, because its epoll mode (0.9.75) stalls
   when more than 128 connections come at once. */
#include "listen.h"

#include <microhttpd.h>
#include <unistd.h>

static enum MHD_Result hello(void *response, struct MHD_Connection *connection, const char *url, const char *method,
                             const char *version, const char *upload, size_t *upload_size, void **state)
{
    (void)url;
    (void)method;
    (void)version;
    (void)upload;
    (void)upload_size;
    if (!*state) { /* the head is there; a body would come first, and answering now would end the connection */
        *state = response;
        return MHD_YES;
    }
    return MHD_queue_response(connection, MHD_HTTP_OK, response);
}

int main(int argc, char **argv)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(sizeof(BENCH_BODY) - 1, BENCH_BODY, MHD_RESPMEM_PERSISTENT);
    struct MHD_Daemon *daemon = MHD_start_daemon(
        MHD_USE_POLL | MHD_USE_INTERNAL_POLLING_THREAD, 0, NULL, NULL, hello, response, MHD_OPTION_LISTEN_SOCKET,
        bench_listen(argc, argv), MHD_OPTION_CONNECTION_LIMIT, 30000u, MHD_OPTION_END);

    if (!daemon)
        return 1;
    for (;;)
        pause();
}
