/* A web spider: ten workers take URLs from a queue, fetch the pages, and put the links below the first URL into it.
   The host must be an IP address.
   cc -O2 -o spider examples/spider.c && ./spider http://127.0.0.1:8888/ */
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"

#include <sys/socket.h>

#define WORKERS      10
#define PAGE_SECONDS 20
#define ALL_SECONDS  300
#define PAGE_BYTES   (4 << 20) /* and no larger */
#define MOST_PAGES   10000

typedef struct page {
    struct page *next;
    const char *url;
} page;

typedef struct spider {
    const char *base;
    tornado_queue *queue; /* of pages to fetch */
    tornado_arena *arena; /* of the pages */
    tornado_regex *link;
    page *seen;           /* every page ever put into the queue */
    int seen_count, fetched_count;
} spider;

/* What one visit works with. */
typedef struct visit {
    spider *spider;
    const page *page;
} visit;

static void release_stream(void *stream)
{
    tornado_iostream_release(stream);
}

static void free_arena(void *arena)
{
    tornado_arena_free(arena);
}

static void task_done(void *queue)
{
    tornado_queue_task_done(queue);
}

/* The body of the page at a URL, which lives until the scope ends. Raises when there is none. */
static tornado_bytes fetch(tornado_arena *arena, const char *text)
{
    tornado_url url;
    tornado_address address;
    if (!tornado_url_split(arena, &url, text) || !url.host ||
        !tornado_address_ip(&address, url.host, url.port < 0 ? 80 : url.port))
        tornado_raise(TORNADO_ERR_INVALID, "not a URL with an IP address");
    tornado_iostream *stream = tornado_iostream_new(socket(strchr(url.host, ':') ? AF_INET6 : AF_INET, SOCK_STREAM, 0),
                                                    &(tornado_iostream_options){.max_buffer_size = PAGE_BYTES});
    if (!stream)
        tornado_raise_error(tornado_last_error());
    tornado_defer(release_stream, stream);
    const char *request = tornado_arena_printf(arena, "GET %s%s%s HTTP/1.0\r\nHost: %s\r\n\r\n",
                                               *url.path ? url.path : "/", url.query ? "?" : "",
                                               url.query ? url.query : "", url.authority);
    if (!request)
        tornado_raise_error(tornado_last_error());
    tornado_await(tornado_with_timeout(PAGE_SECONDS, tornado_iostream_connect(stream, &address)));
    tornado_await(tornado_iostream_write(stream, tornado_bytes_of(request)));
    tornado_bytes answer =
        tornado_await_bytes(tornado_with_timeout(PAGE_SECONDS, tornado_iostream_read_until_close(stream)));
    const char *body = strstr(answer.data, "\r\n\r\n");
    int status = 0;
    if (!body || sscanf(answer.data, "HTTP/1.%*1d %3d", &status) != 1 || status != 200)
        tornado_raise(TORNADO_ERR_HTTP, "HTTP %d", status);
    body += 4;
    return (tornado_bytes){body, answer.len - (size_t)(body - answer.data)};
}

/* Puts a URL below the base into the queue, unless it was there before. */
static void add(spider *s, const char *url)
{
    if (strncmp(url, s->base, strlen(s->base)) != 0 || s->seen_count >= MOST_PAGES)
        return;
    for (page *seen = s->seen; seen; seen = seen->next)
        if (strcmp(seen->url, url) == 0)
            return;
    page *new_page = tornado_arena_alloc(s->arena, sizeof *new_page);
    const char *copy = tornado_arena_strdup(s->arena, url);
    if (!new_page || !copy)
        tornado_raise_error(tornado_last_error());
    *new_page = (page){s->seen, copy};
    s->seen = new_page;
    s->seen_count++;
    tornado_await(tornado_queue_put(s->queue, new_page));
}

static void visit_page(void *arg)
{
    spider *s = ((visit *)arg)->spider;
    const char *url = ((visit *)arg)->page->url;
    tornado_span spans[2];
    tornado_defer(task_done, s->queue); /* however this ends */
    tornado_arena *arena = tornado_arena_new();
    if (!arena)
        tornado_raise_error(tornado_last_error());
    tornado_defer(free_arena, arena);
    printf("fetching %s\n", url);
    tornado_bytes html = fetch(arena, url);
    printf("fetched %s\n", url);
    s->fetched_count++;
    for (size_t at = 0; tornado_regex_search(s->link, html, at, spans, 2) == 1; at = (size_t)spans[0].end) {
        char *href = tornado_arena_memdup(arena, html.data + spans[1].start, (size_t)(spans[1].end - spans[1].start));
        href = href ? tornado_xhtml_unescape(arena, href) : NULL;
        char *link = href ? tornado_url_join(arena, url, href) : NULL;
        if (link) {
            link[strcspn(link, "#")] = '\0';
            add(s, link);
        }
    }
}

static void *worker(void *arg)
{
    visit v = {.spider = arg};
    for (;;) {
        v.page = tornado_await(tornado_queue_get(v.spider->queue));
        const tornado_error *error = tornado_try(visit_page, &v);
        if (error)
            printf("Exception: %s %s\n", error->message, v.page->url);
    }
    return NULL;
}

static void *crawl(void *arg)
{
    spider *s = arg;
    tornado_future *workers[WORKERS];
    double start = tornado_monotonic();
    add(s, s->base);
    for (int i = 0; i < WORKERS; i++)
        workers[i] = tornado_spawn(worker, s);
    const tornado_error *error = tornado_wait(tornado_queue_join_timeout(s->queue, ALL_SECONDS));
    if (error)
        fprintf(stderr, "%s\n", error->message);
    for (int i = 0; i < WORKERS; i++) {
        tornado_cancel(workers[i]);
        (void)tornado_wait(workers[i]);
    }
    printf("Done in %d seconds, fetched %d URLs.\n", (int)(tornado_monotonic() - start), s->fetched_count);
    return NULL;
}

int main(int argc, char **argv)
{
    spider s = {.base = argc > 1 ? argv[1] : "http://127.0.0.1:8888/"};
    tornado_ioloop *loop = tornado_ioloop_current();
    s.queue = tornado_queue_new(NULL);
    s.arena = tornado_arena_new();
    s.link = tornado_regex_new("<a\\s(?:[^>]*\\s)?href\\s*=\\s*[\"']([^\"'>]+)[\"']", TORNADO_REGEX_IGNORECASE);
    if (!loop || !s.queue || !s.arena || !s.link || !tornado_ioloop_run_sync(loop, crawl, &s)) {
        fprintf(stderr, "%s\n", tornado_last_error()->message);
        return 1;
    }
    tornado_queue_free(s.queue);
    tornado_arena_free(s.arena);
    tornado_regex_free(s.link);
    tornado_ioloop_close(loop, false);
    tornado_ioloop_clear_current();
    return s.fetched_count > 0 ? 0 : 1;
}
