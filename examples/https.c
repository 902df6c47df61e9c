/* Serves "Hello, world" by HTTPS. Send it a SIGHUP when the certificate was renewed: it reads the files again, and
   connections go on. To try it with a certificate of your own:
   openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
       -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem
   cc -O2 -DTORNADO_OPENSSL -o https examples/https.c -lssl -lcrypto && ./https [port] [cert.pem] [key.pem] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

static void get(tornado_handler *self)
{
    tornado_write(self, "Hello, world");
}

static const tornado_handler_class hello = {.name = "hello", .get = get};

static void renew(void *arg)
{
    if (tornado_ssl_context_reload(arg))
        printf("the certificate was read again\n");
    else
        printf("the old certificate stays: %s\n", tornado_last_error()->message);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char *end = NULL;
    long port = argc > 1 ? strtol(argv[1], &end, 10) : 8443;
    if (port < 0 || port > 65535 || (end && (*end || end == argv[1]))) {
        fprintf(stderr, "not a port: %s\n", argv[1]);
        return 1;
    }
    tornado_ssl_options files = {.server_side = true, .certfile = argc > 2 ? argv[2] : "cert.pem",
                                 .keyfile = argc > 3 ? argv[3] : "key.pem"};
    tornado_ssl_context *context = tornado_ssl_options_to_context(&files);
    if (!context) {
        fprintf(stderr, "%s\n", tornado_last_error()->message);
        return 1;
    }
    tornado_ssl_options ssl = {.context = context};
    tornado_httpserver_options options = {.ssl_options = &ssl};
    tornado_rule rules[] = {{.path = "/", .handler = &hello}, {0}};
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_application_listen(app, (int)port, &options) : NULL;
    if (!server)
        return 1; /* the reason is in the log */
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_ioloop_shutdown_on_signals(loop, 5);
    tornado_ioloop_add_signal_handler(loop, SIGHUP, renew, context);
    printf("serving on https://127.0.0.1:%d/\n", tornado_httpserver_port(server));
    fflush(stdout);
    tornado_ioloop_start(loop);
    tornado_application_free(app);
    tornado_ssl_context_release(context);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
