/* Queues: the order of items and of those who wait, timeouts, and what becomes of items that nobody gets. */
#include "runtime.h"

#include <math.h>

/* Lets everything that is ready run `turns` times. */
static void let_run(int turns)
{
    while (turns-- > 0)
        tornado_await(tornado_moment());
}

static tornado_queue *queue;

/* Items are texts, of which a queue of `bounded` holds two, and which `noting` appends to the trace when destroyed. */
static const tornado_queue_options bounded = {.maxsize = 2};
static const tornado_queue_options noting = {.maxsize = 2, .destroy = note};

static bool put(const char *item)
{
    return tornado_queue_put_nowait(queue, (void *)(uintptr_t)item);
}

static tornado_future *put_later(const char *item)
{
    return tornado_queue_put(queue, (void *)(uintptr_t)item);
}

/* The next item, or "-" when there is none. */
static const char *get(void)
{
    void *item = "?";
    if (tornado_queue_get_nowait(queue, &item))
        return item;
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_QUEUE_EMPTY);
    return "-";
}

static void note_all(void)
{
    for (const char *item; strcmp(item = get(), "-") != 0;)
        note((void *)(uintptr_t)item);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int by_first_letter(const void *a, const void *b)
{
    return *(const char *)a - *(const char *)b;
}

/*----------------------------------------------------------------------------
 * The examples of Tornado's manual print what they print there.
 *----------------------------------------------------------------------------*/

static void say(const char *format, int number)
{
    char line[64];
    snprintf(line, sizeof line, format, number);
    note(line);
}

static void task_done(void *arg)
{
    CHECK(tornado_queue_task_done(arg));
}

static void *consumer(void *arg)
{
    tornado_scope scope;
    for (;;) {
        tornado_scope_enter(&scope);
        int *item = tornado_await(tornado_queue_get(arg));
        tornado_defer(task_done, arg);
        say("Doing work on %d\n", *item);
        tornado_await(tornado_sleep(0.01));
        tornado_scope_leave(&scope);
    }
    return NULL;
}

static void *produce_and_join(void *arg)
{
    static int items[5];
    tornado_queue *q = tornado_queue_new(&(tornado_queue_options){.maxsize = 2});
    tornado_future *consumes = tornado_spawn(consumer, q);
    for (int i = 0; i < 5; i++) {
        items[i] = i;
        tornado_await(tornado_queue_put(q, &items[i]));
        say("Put %d\n", i);
    }
    tornado_await(tornado_queue_join(q));
    note("Done\n");
    tornado_queue_free(q);
    CHECK(is_error(tornado_wait(consumes), TORNADO_ERR_CLOSED));
    return arg;
}

TEST_EACH_POLLER(queues_example)
{
    run(produce_and_join, NULL);
    CHECK_STR(trace, "Put 0\nPut 1\nDoing work on 0\nPut 2\nDoing work on 1\nPut 3\nDoing work on 2\nPut 4\n"
                     "Doing work on 3\nDoing work on 4\nDone\n");
}

typedef struct priority_item {
    int priority;
    const char *text;
} priority_item;

static int by_priority(const void *a, const void *b)
{
    const priority_item *left = a, *right = b;
    return (left->priority > right->priority) - (left->priority < right->priority);
}

TEST(queues_priority_example)
{
    priority_item items[] = {{1, "medium-priority item"}, {0, "high-priority item"}, {10, "low-priority item"}};
    tornado_queue *q = tornado_priority_queue_new(by_priority, NULL);
    char line[64];
    void *item;
    for (int i = 0; i < 3; i++)
        CHECK(tornado_queue_put_nowait(q, &items[i]));
    while (tornado_queue_get_nowait(q, &item)) {
        snprintf(line, sizeof line, "(%d, '%s')\n", ((priority_item *)item)->priority, ((priority_item *)item)->text);
        note(line);
    }
    CHECK_STR(trace, "(0, 'high-priority item')\n(1, 'medium-priority item')\n(10, 'low-priority item')\n");
    tornado_queue_free(q);
}

/*----------------------------------------------------------------------------
 * The order of items.
 *----------------------------------------------------------------------------*/

TEST(queues_give_the_first_item_first_or_the_last_or_the_least)
{
    struct {
        tornado_queue *queue;
        const char *order;
    } cases[] = {{tornado_queue_new(NULL), "b2 a1 b1 c1 a2 "},
                 {tornado_lifo_queue_new(NULL), "a2 c1 b1 a1 b2 "},
                 {tornado_priority_queue_new(by_text, NULL), "a1 a2 b1 b2 c1 "},
                 {tornado_priority_queue_new(by_first_letter, NULL), "a1 a2 b2 b1 c1 "}};
    static const char *const items[] = {"b2 ", "a1 ", "b1 ", "c1 ", "a2 "};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        queue = cases[i].queue;
        CHECK(tornado_queue_empty(queue) && !tornado_queue_full(queue));
        for (size_t j = 0; j < 5; j++)
            CHECK(put(items[j]));
        CHECK_INT(tornado_queue_qsize(queue), 5);
        CHECK_INT(tornado_queue_maxsize(queue), 0);
        note_all();
        CHECK_STR(traced(), cases[i].order);
        tornado_queue_free(queue);
    }
}

/* Puts and gets at random, beside a plain array in which the next item is searched for. */
TEST(queues_keep_their_order_however_they_grow)
{
    enum { STEPS = 20000 };
    static char items[STEPS][16], *model[STEPS];
    for (int kind = 0; kind < 3; kind++) {
        size_t count = 0;
        unsigned random = 1;
        queue = kind == 0   ? tornado_queue_new(NULL)
                : kind == 1 ? tornado_lifo_queue_new(NULL)
                            : tornado_priority_queue_new(by_first_letter, NULL);
        for (int step = 0; step < STEPS; step++) {
            random = random * 1103515245 + 12345;
            if ((random >> 16) % 100 < (step < STEPS / 2 ? 55u : 45u)) {
                snprintf(items[step], sizeof items[step], "%c%d", 'a' + (int)((random >> 8) % 20), step);
                CHECK(put(items[step]));
                model[count++] = items[step];
                continue;
            }
            size_t at = kind == 1 && count ? count - 1 : 0;
            for (size_t i = 1; kind == 2 && i < count; i++)
                if (by_first_letter(model[i], model[at]) < 0)
                    at = i;
            CHECK_STR(get(), count ? model[at] : "-");
            if (count)
                memmove(&model[at], &model[at + 1], (--count - at) * sizeof *model);
            CHECK_INT(tornado_queue_qsize(queue), count);
        }
        tornado_queue_free(queue);
    }
}

TEST(queues_take_null_as_an_item)
{
    void *item = &item;
    queue = tornado_queue_new(NULL);
    CHECK(put(NULL));
    CHECK_INT(tornado_queue_qsize(queue), 1);
    CHECK(tornado_queue_get_nowait(queue, &item));
    CHECK(item == NULL);
    tornado_queue_free(queue);
}

TEST(queues_that_are_full_or_empty_say_so)
{
    queue = tornado_queue_new(&bounded);
    CHECK_INT(tornado_queue_maxsize(queue), 2);
    CHECK_STR(get(), "-");
    CHECK(put("a") && !tornado_queue_full(queue) && put("b") && tornado_queue_full(queue));
    CHECK(!put("c"));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_QUEUE_FULL);
    CHECK_STR(get(), "a");
    CHECK(put("c"));
    note_all();
    CHECK_STR(trace, "bc");
    tornado_queue_free(queue);
}

/*----------------------------------------------------------------------------
 * Waiting.
 *----------------------------------------------------------------------------*/

static void *waiting_in_order(void *arg)
{
    tornado_future *gets[3], *puts[3];
    for (int i = 0; i < 3; i++)
        gets[i] = tornado_queue_get(queue);
    for (int i = 0; i < 3; i++)
        puts[i] = put_later(&"a\0b\0c"[i * 2]);
    CHECK_INT(tornado_queue_qsize(queue), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_STR(tornado_await(gets[i]), (&"a\0b\0c"[i * 2]));
        CHECK(tornado_await(puts[i]) == NULL);
    }
    CHECK(put("x") && put("y"));
    for (int i = 0; i < 3; i++) {
        puts[i] = put_later(&"d\0e\0f"[i * 2]);
        CHECK(!tornado_future_done(puts[i]));
    }
    for (int i = 0; i < 3; i++) {
        gets[i] = tornado_queue_get(queue);
        CHECK(tornado_future_done(gets[i]) && tornado_future_done(puts[i]));
        CHECK(i == 2 || !tornado_future_done(puts[i + 1]));
        CHECK_INT(tornado_queue_qsize(queue), 2);
        note(tornado_await(gets[i]));
        tornado_await(puts[i]);
    }
    note_all();
    CHECK_STR(trace, "xydef");
    return arg;
}

TEST_EACH_POLLER(queues_serve_those_first_who_have_waited_longest)
{
    queue = tornado_queue_new(&bounded);
    run(waiting_in_order, NULL);
    tornado_queue_free(queue);
}

static void *putter_of_the_least(void *arg)
{
    CHECK(put("b") && put("c"));
    tornado_future *waits = put_later("a");
    CHECK_STR(get(), "a"); /* the putter comes in before the item is taken */
    CHECK(tornado_future_done(waits));
    tornado_await(waits);
    note_all();
    CHECK_STR(trace, "bc");
    return arg;
}

TEST(queues_priority_of_those_who_wait_to_put_counts)
{
    queue = tornado_priority_queue_new(by_text, &bounded);
    run(putter_of_the_least, NULL);
    tornado_queue_free(queue);
}

static void *queue_times_out(void *arg)
{
    double begin = tornado_monotonic();
    CHECK(is_error(tornado_wait(tornado_queue_get_timeout(queue, 0.02)), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_monotonic() - begin >= 0.02);
    double deadline = tornado_ioloop_time(tornado_ioloop_current()) + 0.02;
    CHECK(is_error(tornado_wait(tornado_queue_get_timeout(queue, tornado_until(deadline))), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_monotonic() >= deadline);
    CHECK(is_error(tornado_wait(tornado_queue_get_timeout(queue, NAN)), TORNADO_ERR_INVALID));
    CHECK(put("a") && put("b"));
    CHECK(is_error(tornado_wait(tornado_queue_put_timeout(queue, "c", 0.01)), TORNADO_ERR_TIMEOUT));
    CHECK_STR(traced(), "c");
    CHECK(is_error(tornado_wait(tornado_queue_put_timeout(queue, "d", NAN)), TORNADO_ERR_INVALID));
    CHECK_STR(traced(), "d");
    CHECK(is_error(tornado_wait(tornado_queue_join_timeout(queue, 0)), TORNADO_ERR_TIMEOUT));
    CHECK_STR(tornado_await(tornado_queue_get_timeout(queue, 0)), "a"); /* nothing to wait for */
    CHECK(tornado_wait(tornado_queue_put_timeout(queue, "e", 0)) == NULL);
    note_all();
    CHECK_STR(traced(), "be");
    return arg;
}

TEST_EACH_POLLER(queues_time_out)
{
    queue = tornado_queue_new(&noting);
    run(queue_times_out, NULL);
    tornado_queue_free(queue);
    CHECK_STR(trace, "");
}

static void *later_than_a_timeout(void *arg)
{
    tornado_future *late = tornado_queue_get_timeout(queue, 0), *patient = tornado_queue_get_timeout(queue, 100);
    let_run(3);
    CHECK(put("a"));
    CHECK(is_error(tornado_wait(late), TORNADO_ERR_TIMEOUT));
    CHECK_STR(tornado_await(patient), "a");
    CHECK(put("b") && put("c"));
    late = tornado_queue_put_timeout(queue, "late ", 0);
    patient = tornado_queue_put_timeout(queue, "patient ", 100);
    let_run(3);
    CHECK_STR(get(), "b");
    CHECK(is_error(tornado_wait(late), TORNADO_ERR_TIMEOUT));
    CHECK(tornado_wait(patient) == NULL);
    note_all();
    CHECK_STR(trace, "late cpatient ");
    return arg;
}

TEST_EACH_POLLER(queues_pass_over_those_who_timed_out)
{
    queue = tornado_queue_new(&noting);
    run(later_than_a_timeout, NULL);
    tornado_queue_free(queue);
}

static void *many_time_out(void *arg)
{
    long live = 0;
    CHECK(put("a") && put("b"));
    for (int i = 0; i < 200; i++) {
        CHECK(is_error(tornado_wait(tornado_queue_put_timeout(queue, "c", 0)), TORNADO_ERR_TIMEOUT));
        CHECK(is_error(tornado_wait(tornado_queue_join_timeout(queue, 0)), TORNADO_ERR_TIMEOUT));
        if (i == 20)
            live = test_live();
    }
    CHECK_INT(test_live(), live);
    return arg;
}

TEST_EACH_POLLER(queues_keep_nothing_of_those_who_timed_out)
{
    queue = tornado_queue_new(&bounded);
    run(many_time_out, NULL);
    tornado_queue_free(queue);
}

/*----------------------------------------------------------------------------
 * Items that their getter does not take.
 *----------------------------------------------------------------------------*/

static void *note_item(void *arg)
{
    note(arg);
    note(tornado_await(tornado_queue_get(queue)));
    return NULL;
}

static void *cancel_getters(void *arg)
{
    tornado_future *first = tornado_spawn(note_item, "1"), *second = tornado_spawn(note_item, "2"),
                   *third = tornado_spawn(note_item, "3");
    let_run(2);
    CHECK(tornado_cancel(first)); /* while it waits */
    CHECK(put("a"));              /* for the second, */
    CHECK(put("b"));
    CHECK(tornado_cancel(second)); /* which is cancelled before it runs */
    CHECK(is_error(tornado_wait(first), TORNADO_ERR_CANCELLED));
    CHECK(is_error(tornado_wait(second), TORNADO_ERR_CANCELLED));
    CHECK(tornado_wait(third) == NULL);
    CHECK_STR(traced(), "123b");
    CHECK_INT(tornado_queue_qsize(queue), 1);
    CHECK_STR(get(), "a");
    return arg;
}

TEST_EACH_POLLER(queues_keep_the_item_of_a_getter_that_is_cancelled)
{
    queue = tornado_queue_new(NULL);
    run(cancel_getters, NULL);
    tornado_queue_free(queue);
}

static void *cancel_and_pass_on(void *arg)
{
    tornado_future *first = tornado_spawn(note_item, "1"), *second = tornado_spawn(note_item, "2");
    let_run(2);
    CHECK(put("a"));
    CHECK(tornado_cancel(first));
    CHECK(tornado_wait(second) == NULL);
    CHECK(is_error(tornado_wait(first), TORNADO_ERR_CANCELLED));
    CHECK_STR(trace, "12a");
    return arg;
}

TEST_EACH_POLLER(queues_pass_the_item_of_a_getter_that_is_cancelled_on_to_the_next)
{
    queue = tornado_queue_new(NULL);
    run(cancel_and_pass_on, NULL);
    tornado_queue_free(queue);
}

static void *give_back(void *arg)
{
    const char *orders[] = {"abcd", "dcba", "abcd"};
    tornado_queue *queues[] = {tornado_queue_new(NULL), tornado_lifo_queue_new(NULL),
                               tornado_priority_queue_new(by_first_letter, NULL)};
    for (int i = 0; i < 3; i++) {
        queue = queues[i];
        CHECK(put("a") && put("b") && put("c") && put("d"));
        tornado_future *unread = tornado_queue_get(queue);
        CHECK_INT(tornado_queue_qsize(queue), 3);
        tornado_future_release(unread);
        CHECK_INT(tornado_queue_qsize(queue), 4);
        note_all();
        CHECK_STR(traced(), orders[i]);
        tornado_queue_free(queue);
    }
    return arg;
}

TEST(queues_put_an_item_that_was_not_read_back_to_where_it_was)
{
    run(give_back, NULL);
}

static void *give_two_back(void *arg)
{
    const char *orders[] = {"abcd", "dcba", "abcd"};
    for (int i = 0; i < 12; i++) {
        tornado_queue *queues[] = {tornado_queue_new(NULL), tornado_lifo_queue_new(NULL),
                                   tornado_priority_queue_new(by_first_letter, NULL)};
        tornado_future *gets[2];
        bool wait = i / 3 % 2, reversed = i / 6;
        queue = queues[i % 3];
        for (int n = 0; n < 2 && wait; n++)
            gets[n] = tornado_queue_get(queue);
        CHECK(put("a") && put("b") && put("c") && put("d"));
        for (int n = 0; n < 2 && !wait; n++)
            gets[n] = tornado_queue_get(queue);
        CHECK_INT(tornado_queue_qsize(queue), 2);
        tornado_future_release(gets[reversed]);
        tornado_future_release(gets[!reversed]);
        CHECK_INT(tornado_queue_qsize(queue), 4);
        note_all();
        CHECK_STR(traced(), orders[i % 3]);
        for (int n = 0; n < 3; n++)
            tornado_queue_free(queues[n]);
    }
    return arg;
}

TEST(queues_put_two_items_back_in_order_whichever_comes_first)
{
    run(give_two_back, NULL);
}

/* However many items are on their way to somebody, there is room for them to come back. */
static void *give_many_back(void *arg)
{
    enum { COUNT = 100 };
    tornado_future *gets[COUNT];
    for (int i = 0; i < COUNT; i++)
        gets[i] = tornado_queue_get(queue);
    for (int i = 0; i < COUNT; i++)
        CHECK(put("a"));
    CHECK_INT(tornado_queue_qsize(queue), 0);
    CHECK(put("b") && put("c") && !put("d")); /* full, without those under way */
    for (int i = 0; i < COUNT; i++) {
        test_fail_alloc(1);
        tornado_future_release(gets[i]);
        test_fail_alloc(0);
    }
    CHECK_INT(tornado_queue_qsize(queue), COUNT + 2);
    CHECK(tornado_queue_full(queue));
    tornado_future *waits = put_later("d");
    for (int i = 0; i < COUNT; i++) {
        CHECK_STR(get(), "a");
        CHECK(!tornado_future_done(waits));
    }
    CHECK_STR(get(), "b");
    CHECK(tornado_await(waits) == NULL);
    note_all();
    CHECK_STR(trace, "cd");
    return arg;
}

TEST(queues_lose_no_item_that_comes_back_when_memory_is_short)
{
    queue = tornado_queue_new(&bounded);
    run(give_many_back, NULL);
    tornado_queue_free(queue);
}

static void *cancel_putter(void *arg)
{
    tornado_await(put_later(arg));
    FAIL("nobody made room");
    return NULL;
}

static void *cancel_putters(void *arg)
{
    CHECK(put("a") && put("b"));
    tornado_future *first = tornado_spawn(cancel_putter, "c"), *second = put_later("d");
    let_run(2);
    CHECK(tornado_cancel(first));
    CHECK(is_error(tornado_wait(first), TORNADO_ERR_CANCELLED));
    CHECK_STR(traced(), "c"); /* destroyed */
    CHECK_STR(get(), "a");
    CHECK(tornado_wait(second) == NULL);
    note_all();
    CHECK_STR(traced(), "bd");
    return arg;
}

TEST_EACH_POLLER(queues_destroy_the_item_of_a_putter_that_is_cancelled)
{
    queue = tornado_queue_new(&noting);
    run(cancel_putters, NULL);
    tornado_queue_free(queue);
}

static tornado_future *putter;

static void cancel_the_putter(void *item)
{
    note(item);
    CHECK(tornado_cancel(putter));
}

static void *cancel_by_the_item(void *arg)
{
    CHECK(put("a") && put("b"));
    putter = tornado_spawn(cancel_putter, "c");
    let_run(2);
    CHECK(tornado_cancel(putter)); /* which destroys the item, which cancels */
    CHECK_STR(traced(), "c");
    CHECK(is_error(tornado_wait(putter), TORNADO_ERR_CANCELLED));
    CHECK_INT(tornado_ioloop_coroutines(tornado_ioloop_current()), 1);
    CHECK_STR(get(), "a");
    CHECK_STR(get(), "b");
    return arg;
}

TEST_EACH_POLLER(queues_item_that_is_destroyed_may_cancel_its_putter_again)
{
    queue = tornado_queue_new(&(tornado_queue_options){.maxsize = 2, .destroy = cancel_the_putter});
    run(cancel_by_the_item, NULL);
    tornado_queue_free(queue);
}

/*----------------------------------------------------------------------------
 * Joining, and the end.
 *----------------------------------------------------------------------------*/

static void *join_and_note(void *arg)
{
    tornado_await(tornado_queue_join(queue));
    note(arg);
    return NULL;
}

static void *several_join(void *arg)
{
    CHECK(tornado_wait(tornado_queue_join(queue)) == NULL); /* nothing was put yet */
    CHECK(put("a") && put("b"));
    tornado_future *first = tornado_spawn(join_and_note, "1"), *second = tornado_spawn(join_and_note, "2");
    note_all();
    let_run(2);
    CHECK_STR(traced(), "ab");
    CHECK(tornado_queue_task_done(queue));
    let_run(2);
    CHECK_STR(traced(), "");
    CHECK(tornado_queue_task_done(queue));
    tornado_await(first);
    tornado_await(second);
    CHECK_STR(traced(), "12");
    log_keep();
    CHECK(!tornado_queue_task_done(queue));
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_STATE);
    CHECK_INT(logged("called more often"), 1);
    return arg;
}

TEST_EACH_POLLER(queues_join_is_done_when_all_tasks_are)
{
    queue = tornado_queue_new(NULL);
    run(several_join, NULL);
    tornado_queue_free(queue);
}

static void *leave_the_join(void *arg)
{
    CHECK(put("a"));
    tornado_future *leaves = tornado_spawn(join_and_note, "1"), *stays = tornado_spawn(join_and_note, "2");
    let_run(2);
    CHECK(tornado_cancel(leaves));
    CHECK(tornado_queue_task_done(queue));
    CHECK(is_error(tornado_wait(leaves), TORNADO_ERR_CANCELLED));
    CHECK(tornado_wait(stays) == NULL);
    CHECK_STR(trace, "2");
    return arg;
}

TEST_EACH_POLLER(queues_join_is_left_by_who_is_cancelled)
{
    queue = tornado_queue_new(NULL);
    run(leave_the_join, NULL);
    tornado_queue_free(queue);
}

static void *free_with_waiters(void *arg)
{
    CHECK(put("a") && put("b"));
    tornado_future *waits[] = {put_later("c"), tornado_queue_join(queue), tornado_queue_get(queue)};
    CHECK(tornado_future_done(waits[0]) && tornado_future_done(waits[2])); /* c came in for a */
    tornado_future *late = put_later("d");
    tornado_queue_free(queue);
    CHECK_STR(traced(), "bc");
    CHECK(is_error(tornado_wait(late), TORNADO_ERR_CLOSED));
    CHECK_STR(traced(), "d");
    CHECK(is_error(tornado_wait(waits[1]), TORNADO_ERR_CLOSED));
    tornado_future_release(waits[0]);
    tornado_future_release(waits[2]);
    CHECK_STR(traced(), "a");
    queue = tornado_queue_new(&noting);
    waits[0] = tornado_queue_get(queue);
    tornado_queue_free(queue);
    CHECK(is_error(tornado_wait(waits[0]), TORNADO_ERR_CLOSED));
    CHECK_STR(trace, "");
    return arg;
}

TEST_EACH_POLLER(queues_that_are_freed_destroy_what_is_left_and_fail_those_who_wait)
{
    log_keep();
    queue = tornado_queue_new(&noting);
    run(free_with_waiters, NULL);
    tornado_queue_free(NULL);
    CHECK_STR(log_text, "");
}

/*----------------------------------------------------------------------------
 * When memory is short.
 *----------------------------------------------------------------------------*/

static int made, destroyed;

static void destroy_item(void *item)
{
    destroyed++;
    free(item);
}

static void *get_ten(void *arg)
{
    tornado_scope scope;
    for (int i = 0; i < 10; i++) {
        tornado_scope_enter(&scope);
        destroy_item(tornado_await(tornado_queue_get_timeout(queue, 100)));
        tornado_queue_task_done(queue);
        tornado_scope_leave(&scope);
    }
    return arg;
}

static void *put_and_get_ten(void *arg)
{
    tornado_future *gets = tornado_spawn(get_ten, NULL);
    for (int i = 0; i < 10; i++) {
        void *item = malloc(1);
        made++;
        if (i == 9 && tornado_queue_put_nowait(queue, item))
            continue;
        if (i == 9) { /* still ours */
            destroy_item(item);
            continue;
        }
        const tornado_error *error = tornado_wait(tornado_queue_put_timeout(queue, item, 0.01));
        CHECK(!error || error->code == TORNADO_ERR_NOMEM || error->code == TORNADO_ERR_TIMEOUT);
    }
    (void)tornado_wait(tornado_queue_join_timeout(queue, 0.01));
    tornado_cancel(gets);
    (void)tornado_wait(gets);
    return arg;
}

static void queues_when_memory_is_short(void)
{
    tornado_ioloop *loop = tornado_ioloop_current();
    tornado_queue_options options = {.maxsize = 3, .destroy = destroy_item};
    made = destroyed = 0;
    queue = tornado_priority_queue_new(by_first_letter, &options);
    tornado_queue_free(queue);
    queue = tornado_queue_new(&options);
    if (loop && queue && !tornado_ioloop_run_sync(loop, put_and_get_ten, NULL))
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
    tornado_queue_free(queue);
    CHECK_INT(destroyed, made);
}

TEST(queues_nothing_leaks_whichever_allocation_fails)
{
    each_shortage(queues_when_memory_is_short);
}
