/* One process for each core, started again when it dies; what would block a loop runs on threads, or in another
   program: /primes?below=1000000 counts on a thread, /kernel asks uname.
   cc -O2 -o workers examples/workers.c && ./workers [port [processes]] */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

/* On a thread of the executor. What it allocates lives as long as the future of its result. */
static void *count_primes(void *arg)
{
    int below = *(const int *)arg, *count = tornado_arena_calloc(tornado_current_arena(), 1, sizeof *count);
    char *composite = tornado_arena_calloc(tornado_current_arena(), (size_t)below, 1);
    if (!count || !composite)
        tornado_raise_error(tornado_last_error());
    for (int i = 2; i < below; i++) {
        if (composite[i])
            continue;
        ++*count;
        for (int64_t multiple = (int64_t)i * i; multiple < below; multiple += i)
            composite[multiple] = 1;
    }
    return count;
}

static void primes(tornado_handler *self)
{
    int below = atoi(tornado_get_argument(self, "below", "1000000"));
    if (below < 1 || below > 100000000)
        tornado_raise_http_error(400, "below is not between 1 and 100000000");
    tornado_job_options options = {.copy = sizeof below};
    int *count = tornado_await(tornado_executor_submit_with(NULL, count_primes, &below, &options));
    tornado_writef(self, "%d primes below %d, said process %d\n", *count, below, tornado_task_id());
}

static void free_subprocess(void *process)
{
    tornado_subprocess_free(process);
}

static void kernel(tornado_handler *self)
{
    static const char *const uname[] = {"uname", "-sr", NULL};
    tornado_subprocess_options options = {.std_out = TORNADO_STREAM};
    tornado_subprocess *process = tornado_subprocess_new(uname, &options);
    if (!process)
        tornado_raise_error(tornado_last_error());
    tornado_defer(free_subprocess, process);
    tornado_iostream *out = tornado_subprocess_stdout(process);
    tornado_write_bytes(self, tornado_await_bytes(tornado_iostream_read_until_close(out)));
    tornado_await(tornado_subprocess_wait_for_exit(process, true));
}

static const tornado_handler_class primes_handler = {.name = "primes", .get = primes};
static const tornado_handler_class kernel_handler = {.name = "kernel", .get = kernel};

/* Serves, in each process, on sockets that all of them share. */
static bool serve(const tornado_sockets *sockets)
{
    tornado_rule rules[] = {{.path = "/primes", .handler = &primes_handler},
                            {.path = "/kernel", .handler = &kernel_handler},
                            {0}};
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_application *app = tornado_application_new(rules, NULL);
    tornado_httpserver *server = app ? tornado_httpserver_new(tornado_application_delegate(), app, NULL) : NULL;
    bool serving = server && tornado_httpserver_add_sockets(server, sockets);
    if (serving) {
        tornado_ioloop_shutdown_on_signals(loop, 5);
        tornado_ioloop_start(loop);
        tornado_executor_shutdown(NULL, true);
    }
    tornado_httpserver_free(server);
    tornado_application_free(app);
    tornado_ioloop_close(loop, false);
    return serving;
}

int main(int argc, char **argv)
{
    tornado_sockets sockets;
    tornado_bind_options options = {.address = "127.0.0.1"};
    if (!tornado_bind_sockets(&sockets, argc > 1 ? atoi(argv[1]) : 8888, &options)) {
        fprintf(stderr, "%s\n", tornado_last_error()->message);
        return 1;
    }
    printf("serving on http://127.0.0.1:%d/primes and /kernel\n", sockets.port);
    if (tornado_fork_processes(argc > 2 ? atoi(argv[2]) : TORNADO_PER_CORE, 100) < 0)
        return 1; /* the reason is in the log */
    return serve(&sockets) ? 0 : 1; /* in the children; the parent does not come here */
}
