/* The loop as a source of GLib's main loop: prepare asks it how long it can wait, check and dispatch run a turn. Prints
   what has happened, in order. */
#define TORNADO_IMPLEMENTATION
#include "../../tornado.h"

#include <glib.h>

typedef struct source {
    GSource source;
    tornado_ioloop *loop;
    gpointer tag;
} source;

static GMainLoop *main_loop;

static gboolean prepare(GSource *base, gint *timeout)
{
    double seconds = tornado_ioloop_next_timeout(((source *)(void *)base)->loop);
    *timeout = seconds == TORNADO_NONE ? -1 : seconds > 0 ? (gint)(seconds * 1000) + 1 : 0;
    return *timeout == 0;
}

static gboolean check(GSource *base)
{
    source *self = (source *)(void *)base;
    return g_source_query_unix_fd(base, self->tag) != 0 || tornado_ioloop_next_timeout(self->loop) == 0;
}

static gboolean dispatch(GSource *base, GSourceFunc callback, gpointer data)
{
    (void)callback, (void)data;
    tornado_ioloop_run_once(((source *)(void *)base)->loop, 0);
    return G_SOURCE_CONTINUE;
}

static gboolean of_glib(gpointer data)
{
    (void)data;
    puts("a timer of GLib");
    return G_SOURCE_REMOVE;
}

static void called(void *arg)
{
    (void)arg;
    puts("called from a thread");
}

static void *from_thread(void *arg)
{
    tornado_ioloop_add_callback(arg, called, NULL);
    return NULL;
}

static void *work(void *arg)
{
    tornado_await(tornado_sleep(0.02));
    puts("slept");
    g_thread_join(g_thread_new("other", from_thread, arg));
    tornado_await(tornado_sleep(0.1));
    puts("done");
    g_main_loop_quit(main_loop);
    return NULL;
}

int main(void)
{
    static GSourceFuncs functions = {.prepare = prepare, .check = check, .dispatch = dispatch};
    tornado_ioloop *loop = tornado_ioloop_current();
    source *self = (source *)(void *)g_source_new(&functions, sizeof *self);
    self->loop = loop;
    self->tag = g_source_add_unix_fd(&self->source, tornado_ioloop_fileno(loop), G_IO_IN);
    g_source_attach(&self->source, NULL);
    main_loop = g_main_loop_new(NULL, FALSE);
    g_timeout_add(60, of_glib, NULL);
    tornado_ioloop_spawn_callback(loop, work, loop);
    g_main_loop_run(main_loop);
    g_source_destroy(&self->source);
    g_source_unref(&self->source);
    g_main_loop_unref(main_loop);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return 0;
}
