/* The implementation with sections left out, as the command line says; it still waits, on a loop of its own. */
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

static void *wait_a_moment(void *arg)
{
    tornado_await(tornado_sleep(0.001));
    return arg;
}

int main(void)
{
    int done = 0;
    tornado_ioloop *loop = tornado_ioloop_current();
    if (!loop || !tornado_ioloop_run_sync(loop, wait_a_moment, &done))
        return 1;
    tornado_ioloop_close(loop, true);
    return 0;
}
