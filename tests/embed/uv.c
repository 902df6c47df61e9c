/* The loop inside libuv's: the fd is polled, and what the loop wants to do by itself is a timer of libuv's. Prints what
   has happened, in order. */
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

#include <uv.h>

static tornado_ioloop *loop;
static uv_timer_t wake;
static uv_poll_t poller;

static void turn(void);

static void on_time(uv_timer_t *timer)
{
    (void)timer;
    turn();
}

static void on_ready(uv_poll_t *handle, int status, int events)
{
    (void)handle, (void)status, (void)events;
    turn();
}

static void turn(void)
{
    tornado_ioloop_run_once(loop, 0);
    double timeout = tornado_ioloop_next_timeout(loop);
    if (timeout == TORNADO_NONE)
        uv_timer_stop(&wake);
    else
        uv_timer_start(&wake, on_time, timeout > 0 ? (uint64_t)(timeout * 1000) + 1 : 0, 0);
}

static void of_uv(uv_timer_t *timer)
{
    puts("a timer of libuv");
    uv_close((uv_handle_t *)timer, NULL);
}

static void *serve(void *arg)
{
    int *pair = arg;
    tornado_iostream *stream = tornado_iostream_new(pair[0], NULL);
    tornado_await(tornado_sleep(0.02));
    puts("slept");
    if (write(pair[1], "a line\n", 7) != 7)
        abort();
    tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(stream, "\n"));
    printf("read %.*s", (int)line.len, line.data);
    tornado_await(tornado_sleep(0.1));
    tornado_iostream_close(stream);
    tornado_iostream_release(stream);
    puts("done");
    uv_close((uv_handle_t *)&wake, NULL);
    uv_close((uv_handle_t *)&poller, NULL);
    return NULL;
}

int main(void)
{
    uv_timer_t other;
    int pair[2];
    loop = tornado_ioloop_current();
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return 1;
    uv_timer_init(uv_default_loop(), &wake);
    uv_timer_init(uv_default_loop(), &other);
    uv_timer_start(&other, of_uv, 60, 0);
    uv_poll_init(uv_default_loop(), &poller, tornado_ioloop_fileno(loop));
    uv_poll_start(&poller, UV_READABLE, on_ready);
    tornado_ioloop_spawn_callback(loop, serve, pair);
    turn();
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    close(pair[1]);
    return uv_loop_close(uv_default_loop());
}
