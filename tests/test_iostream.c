/* Streams over real sockets: every form of read and write, and every way in which a peer can end. */
#include "http_client.h"

/* A stream, and the raw socket at its other end. */
typedef struct pair {
    tornado_iostream *stream;
    int peer;
} pair;

static pair pair_new_with(const tornado_iostream_options *options)
{
    int ends[2];
    tcp_pair(ends);
    set_nonblocking(ends[1]);
    pair p = {tornado_iostream_new(ends[0], options), ends[1]};
    CHECK(p.stream != NULL);
    return p;
}

static pair pair_new(void)
{
    return pair_new_with(NULL);
}

static void pair_free(pair *p)
{
    if (p->peer >= 0)
        close(p->peer);
    tornado_iostream_release(p->stream);
}

static void peer_send(pair *p, const char *text)
{
    CHECK_INT(send(p->peer, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void peer_close(pair *p)
{
    close(p->peer);
    p->peer = -1;
}

/* Waits for a read, which must succeed with these bytes and a NUL behind them. */
static void expect_bytes(tornado_future *future, const char *want, size_t len)
{
    const tornado_error *error = loop_until(future);
    if (error)
        FAIL("the read failed: %s", error->message);
    tornado_bytes got = tornado_future_bytes(future);
    CHECK_MEM(got.data, got.len, want, len);
    CHECK(got.data[got.len] == '\0');
    tornado_future_release(future);
}

static void expect(tornado_future *future, const char *want)
{
    expect_bytes(future, want, strlen(want));
}

static tornado_future *read_with(pair *p, tornado_read_options options)
{
    return tornado_iostream_read(p->stream, &options);
}

/*----------------------------------------------------------------------------
 * Reads.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(iostream_reads_exactly_so_many_bytes)
{
    pair p = pair_new();
    peer_send(&p, "abcdefgh");
    expect(tornado_iostream_read_bytes(p.stream, 3), "abc");
    expect(tornado_iostream_read_bytes(p.stream, 5), "defgh");
    tornado_future *later = tornado_iostream_read_bytes(p.stream, 4);
    loop_turns(2);
    peer_send(&p, "ij");
    loop_turns(3);
    CHECK(!tornado_future_done(later));
    CHECK(tornado_iostream_reading(p.stream));
    peer_send(&p, "kl");
    expect(later, "ijkl");
    CHECK(!tornado_iostream_reading(p.stream));
    pair_free(&p);
}

TEST(iostream_reads_zero_bytes_at_once)
{
    pair p = pair_new();
    expect(tornado_iostream_read_bytes(p.stream, 0), "");
    expect(read_with(&p, (tornado_read_options){.partial = true}), "");
    peer_send(&p, "x");
    expect(tornado_iostream_read_bytes(p.stream, 1), "x");
    expect(tornado_iostream_read_bytes(p.stream, 0), "");
    pair_free(&p);
}

TEST(iostream_partial_read_gives_what_there_is_and_never_more)
{
    pair p = pair_new();
    tornado_future *future = read_with(&p, (tornado_read_options){.bytes = 100, .partial = true});
    peer_send(&p, "abc");
    expect(future, "abc");
    peer_send(&p, "defgh");
    expect(read_with(&p, (tornado_read_options){.bytes = 2, .partial = true}), "de");
    expect(read_with(&p, (tornado_read_options){.bytes = 100, .partial = true}), "fgh");
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_reads_until_a_delimiter)
{
    pair p = pair_new();
    peer_send(&p, "one\ntwo\nthree");
    expect(tornado_iostream_read_until(p.stream, "\n"), "one\n");
    expect(tornado_iostream_read_until(p.stream, "\n"), "two\n");
    tornado_future *future = tornado_iostream_read_until(p.stream, "\n");
    loop_turns(2);
    CHECK(!tornado_future_done(future));
    peer_send(&p, "\n");
    expect(future, "three\n");
    pair_free(&p);
}

TEST(iostream_delimiter_may_be_split_over_packets_anywhere)
{
    static const char text[] = "head\r\n\r\r\n\r\n", rest[] = "tail";
    for (size_t cut = 1; cut < sizeof text - 1; cut++) {
        pair p = pair_new();
        tornado_future *future = tornado_iostream_read_until(p.stream, "\r\n\r\n");
        CHECK(send(p.peer, text, cut, MSG_NOSIGNAL) == (ssize_t)cut);
        loop_turns(2);
        CHECK(!tornado_future_done(future));
        peer_send(&p, text + cut);
        expect(future, text);
        peer_send(&p, rest);
        expect(tornado_iostream_read_bytes(p.stream, 4), rest);
        pair_free(&p);
    }
}

/* A pattern, what the peer sends, what is read of it, and whether a byte at a time gives the same: greedy ends depend on
   what has come. */
static const struct {
    const char *pattern, *sent, *read;
    bool alike;
} regex_reads[] = {
    {"\r?\n\r?\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", true},
    {"\r?\n\r?\n", "a\n\nb", "a\n\n", true},
    {"[0-9]+;", "12;34;", "12;", true},
    {"b|abc;", "xxabc;", "xxabc;", false},
    {"(?:ab)+", "ababab-", "ababab", false},
    {"(?:ab)+?", "ababab-", "ab", true},
    {"^b|c", "abc", "abc", true},
    {"\\bend\\b", "bend ending end.", "bend ending end", false},
    {"x*", "axx", "", true},
    {"[^a]{3}", "aabbabbba", "aabbabbb", true},
};

TEST(iostream_reads_until_a_pattern)
{
    for (size_t i = 0; i < sizeof regex_reads / sizeof *regex_reads; i++)
        for (int slowly = 0; slowly < 1 + regex_reads[i].alike; slowly++) {
            pair p = pair_new();
            tornado_regex *regex = tornado_regex_new(regex_reads[i].pattern, 0);
            const char *at = regex_reads[i].sent;
            if (!slowly)
                peer_send(&p, at);
            loop_turns(2);
            tornado_future *future = tornado_iostream_read_until_regex(p.stream, regex);
            for (; slowly && *at; at++) {
                peer_send(&p, (const char[]){*at, '\0'});
                loop_turns(2);
            }
            expect(future, regex_reads[i].read);
            tornado_regex_free(regex);
            pair_free(&p);
        }
}

TEST(iostream_reading_until_a_pattern_is_linear_in_what_comes)
{
    pair p = pair_new();
    tornado_regex *regex = tornado_regex_new("(?:a|b|ab)*c", 0);
    tornado_future *future = tornado_iostream_read_until_regex(p.stream, regex);
    static char many[20002];
    memset(many, 'a', 20000);
    for (int i = 0; i < 20000; i++) { /* were all of it looked at again each time, this would take minutes */
        peer_send(&p, "a");
        loop_turns(1);
    }
    peer_send(&p, "c");
    many[20000] = 'c';
    expect_bytes(future, many, 20001);
    tornado_regex_free(regex);
    pair_free(&p);
}

TEST(iostream_pattern_that_ends_too_late_or_never_closes_the_stream)
{
    tornado_regex *regex = tornado_regex_new("x+;", 0);
    for (int i = 0; i < 3; i++) {
        pair p = pair_new();
        tornado_future *future = read_with(&p, (tornado_read_options){.until_regex = regex, .max_bytes = 4});
        peer_send(&p, i == 0 ? "xxx;" : i == 1 ? "xxxx;" : "aaaaaaa");
        if (i == 0) {
            expect(future, "xxx;");
        } else {
            CHECK_INT(loop_code(future), TORNADO_ERR_UNSATISFIABLE);
            CHECK(tornado_iostream_closed(p.stream));
        }
        pair_free(&p);
    }
    tornado_regex_free(regex);
}

TEST(iostream_pattern_excludes_other_forms_and_may_not_stream)
{
    pair p = pair_new();
    tornado_regex *regex = tornado_regex_new("x", 0);
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.until_regex = regex, .bytes = 1})), TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.until_regex = regex, .until_close = true})),
              TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.until_regex = regex, .until = {"y", 1}})),
              TORNADO_ERR_INVALID);
    for (long n = 1; n < 5; n++) { /* memory for it that cannot be had */
        test_fail_alloc(n);
        tornado_future *future = tornado_iostream_read_until_regex(p.stream, regex);
        test_fail_alloc(0);
        if (tornado_future_done(future)) {
            CHECK_INT(loop_code(future), TORNADO_ERR_NOMEM);
            continue;
        }
        peer_send(&p, "yx");
        expect(future, "yx");
    }
    tornado_regex_free(regex);
    pair_free(&p);
}

TEST(iostream_reads_a_byte_at_a_time)
{
    static const char text[] = "a long enough line, then CRLF\r\n";
    pair p = pair_new();
    tornado_future *future = tornado_iostream_read_until(p.stream, "\r\n");
    for (size_t i = 0; i + 1 < sizeof text; i++) {
        CHECK(!tornado_future_done(future));
        CHECK(send(p.peer, text + i, 1, MSG_NOSIGNAL) == 1);
        loop_turns(2);
    }
    expect(future, text);
    pair_free(&p);
}

TEST(iostream_delimiter_may_be_long_and_hold_zeros)
{
    static const char delimiter[] = "\0--- a delimiter that is longer than sixteen bytes ---\0";
    pair p = pair_new();
    tornado_future *future = read_with(&p, (tornado_read_options){.until = {delimiter, sizeof delimiter}});
    peer_send(&p, "content");
    CHECK(send(p.peer, delimiter, 10, MSG_NOSIGNAL) == 10);
    loop_turns(2);
    CHECK(send(p.peer, delimiter + 10, sizeof delimiter - 10, MSG_NOSIGNAL) == (ssize_t)sizeof delimiter - 10);
    char want[7 + sizeof delimiter];
    memcpy(want, "content", 7);
    memcpy(want + 7, delimiter, sizeof delimiter);
    expect_bytes(future, want, sizeof want);
    pair_free(&p);
}

TEST(iostream_max_bytes_includes_the_delimiter)
{
    static const struct {
        const char *text;
        size_t max;
        bool ok;
    } cases[] = {
        {"abc\r\n", 5, true},    {"abc\r\n", 6, true},  {"abc\r\n", 4, false},
        {"abcdefgh", 5, false}, {"abcd\r", 6, true}, {"\r\n", 2, true},   {"\r\n", 1, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pair p = pair_new();
        tornado_future *future =
            read_with(&p, (tornado_read_options){.until = {"\r\n", 2}, .max_bytes = cases[i].max});
        peer_send(&p, cases[i].text);
        if (cases[i].ok) {
            loop_turns(2);
            if (!strstr(cases[i].text, "\n")) {
                CHECK(!tornado_future_done(future));
                peer_send(&p, "\n");
            }
            CHECK_INT(loop_code(future), 0);
        } else {
            CHECK_INT(loop_code(future), TORNADO_ERR_UNSATISFIABLE);
            CHECK(tornado_iostream_closed(p.stream));
            CHECK_INT(tornado_iostream_error(p.stream)->code, TORNADO_ERR_UNSATISFIABLE);
        }
        pair_free(&p);
    }
}

TEST_EACH_POLLER(iostream_reads_until_the_peer_closes)
{
    pair p = pair_new();
    peer_send(&p, "first ");
    tornado_future *future = tornado_iostream_read_until_close(p.stream);
    loop_turns(2);
    peer_send(&p, "second");
    loop_turns(2);
    CHECK(!tornado_future_done(future));
    peer_close(&p);
    expect(future, "first second");
    CHECK(tornado_iostream_closed(p.stream));
    CHECK(tornado_iostream_error(p.stream) == NULL);
    CHECK_INT(tornado_iostream_fileno(p.stream), -1);
    pair_free(&p);
}

TEST(iostream_reads_nothing_until_close_when_nothing_came)
{
    pair p = pair_new();
    tornado_future *future = tornado_iostream_read_until_close(p.stream);
    peer_close(&p);
    expect(future, "");
    expect(tornado_iostream_read_until_close(p.stream), "");
    CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, 1)), TORNADO_ERR_CLOSED);
    pair_free(&p);
}

TEST(iostream_what_was_received_can_be_read_after_the_close)
{
    pair p = pair_new();
    peer_send(&p, "line\nmore\nrest");
    expect(tornado_iostream_read_until(p.stream, "\n"), "line\n");
    peer_close(&p);
    loop_turns(3);
    expect(tornado_iostream_read_until(p.stream, "\n"), "more\n");
    loop_turns(3);
    expect(tornado_iostream_read_bytes(p.stream, 2), "re");
    expect(tornado_iostream_read_until_close(p.stream), "st");
    CHECK_INT(loop_code(tornado_iostream_read_until(p.stream, "\n")), TORNADO_ERR_CLOSED);
    pair_free(&p);
}

TEST(iostream_result_stays_until_the_next_read)
{
    pair p = pair_new();
    peer_send(&p, "first\n");
    tornado_future *first = tornado_iostream_read_until(p.stream, "\n");
    CHECK(loop_until(first) == NULL);
    tornado_bytes got = tornado_future_bytes(first);
    peer_send(&p, "second\n"); /* comes in, but may not move what was given */
    loop_turns(5);
    CHECK_STR(got.data, "first\n");
    tornado_future_release(first);
    CHECK_STR(got.data, "first\n");
    peer_close(&p);
    loop_turns(5);
    CHECK_STR(got.data, "first\n");
    expect(tornado_iostream_read_until(p.stream, "\n"), "second\n");
    pair_free(&p);
}

TEST(iostream_future_that_is_kept_gives_the_same_after_further_reads)
{
    pair p = pair_new();
    peer_send(&p, "one\ntwo\nthree\nfour\n12345");
    expect(tornado_iostream_read_until(p.stream, "\n"), "one\n");
    tornado_future *two = tornado_iostream_read_until(p.stream, "\n");
    tornado_future *three = tornado_iostream_read_until(p.stream, "\n");
    tornado_future *four = tornado_iostream_read_bytes(p.stream, 5);
    tornado_bytes gave = tornado_future_bytes(two);
    CHECK_MEM(gave.data, gave.len, "two\n", 4);
    gave = tornado_future_bytes(three);
    CHECK_MEM(gave.data, gave.len, "three\n", 6);
    expect(four, "four\n");
    tornado_future_release(two);
    tornado_future_release(three);
    expect(tornado_iostream_read_bytes(p.stream, 4), "1234");
    expect(tornado_iostream_read_bytes(p.stream, 1), "5");
    pair_free(&p);
}

TEST(iostream_result_stays_when_it_came_in_pieces)
{
    pair p = pair_new();
    tornado_future *future = tornado_iostream_read_bytes(p.stream, 6);
    peer_send(&p, "abc");
    loop_turns(2);
    peer_send(&p, "def");
    expect(future, "abcdef");
    loop_turns(2);
    future = tornado_iostream_read_bytes(p.stream, 4);
    peer_send(&p, "gh");
    loop_turns(2);
    peer_send(&p, "ijk");
    expect(future, "ghij");
    expect(tornado_iostream_read_bytes(p.stream, 1), "k");
    pair_free(&p);
}

TEST(iostream_a_nul_behind_a_result_does_not_harm_the_bytes_behind)
{
    pair p = pair_new();
    peer_send(&p, "abcdef");
    for (const char *at = "abcdef"; *at; at++)
        expect_bytes(tornado_iostream_read_bytes(p.stream, 1), at, 1);
    pair_free(&p);
}

TEST(iostream_a_second_read_is_an_error_and_the_first_goes_on)
{
    pair p = pair_new();
    tornado_future *first = tornado_iostream_read_bytes(p.stream, 2);
    CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, 1)), TORNADO_ERR_STATE);
    CHECK_INT(loop_code(tornado_iostream_read_until(p.stream, "\n")), TORNADO_ERR_STATE);
    CHECK_INT(loop_code(tornado_iostream_read_until_close(p.stream)), TORNADO_ERR_STATE);
    peer_send(&p, "ok");
    expect(first, "ok");
    pair_free(&p);
}

TEST(iostream_read_options_that_exclude_each_other_are_refused)
{
    pair p = pair_new();
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.bytes = 1, .until_close = true})), TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.bytes = 1, .until = {"\n", 1}})), TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(tornado_iostream_read_until(p.stream, "")), TORNADO_ERR_INVALID);
    CHECK(!tornado_iostream_closed(p.stream));
    peer_send(&p, "x");
    expect(tornado_iostream_read_bytes(p.stream, 1), "x");
    pair_free(&p);
}

TEST(iostream_reads_more_than_the_buffer_may_hold_are_refused)
{
    pair p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = 1000});
    static char block[4000];
    CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, 1001)), TORNADO_ERR_BUFFER_FULL);
    pair_free(&p);

    p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = 1000});
    memset(block, 'x', sizeof block - 1);
    peer_send(&p, block);
    CHECK_INT(loop_code(tornado_iostream_read_until(p.stream, "\n")), TORNADO_ERR_UNSATISFIABLE);
    CHECK(tornado_iostream_closed(p.stream));
    pair_free(&p);

    p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = 1000});
    peer_send(&p, block);
    CHECK_INT(loop_code(tornado_iostream_read_until_close(p.stream)), TORNADO_ERR_BUFFER_FULL);
    CHECK(tornado_iostream_closed(p.stream));
    pair_free(&p);
}

TEST(iostream_a_peer_that_floods_between_reads_is_not_buffered)
{
    pair p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = 100000});
    static char block[65536];
    size_t sent = 0;
    peer_send(&p, "x");
    expect(tornado_iostream_read_bytes(p.stream, 1), "x");
    for (int i = 0; i < 1000; i++) {
        ssize_t part = send(p.peer, block, sizeof block, MSG_NOSIGNAL);
        sent += part > 0 ? (size_t)part : 0;
        loop_turns(1);
    }
    CHECK(sent < 64u * 1024 * 1024 - 1);
    CHECK(tornado_iostream_read_buffer_size(p.stream) <= 100000 + 65536);
    while (sent > 0) {
        size_t part = sent < 50000 ? sent : 50000;
        CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, part)), 0);
        sent -= part;
    }
    pair_free(&p);
}

/*----------------------------------------------------------------------------
 * Streaming.
 *----------------------------------------------------------------------------*/

typedef struct sink {
    tornado_iostream *stream;
    tornado_buffer all;
    int calls, close_at, raise_at;
    bool in_call; /* of the test: nothing may be called back from inside it */
} sink;

static void sink_chunk(tornado_bytes chunk, void *arg)
{
    sink *s = arg;
    CHECK(!s->in_call);
    CHECK(chunk.len > 0);
    CHECK(tornado_buffer_append(&s->all, chunk.data, chunk.len));
    s->calls++;
    if (s->calls == s->close_at)
        tornado_iostream_close(s->stream);
    if (s->calls == s->raise_at)
        tornado_raise(TORNADO_ERR_INVALID, "from a streaming callback");
}

TEST_EACH_POLLER(iostream_streams_a_count_of_bytes)
{
    pair p = pair_new();
    sink s = {.stream = p.stream};
    peer_send(&p, "x0123");
    expect(tornado_iostream_read_bytes(p.stream, 1), "x");
    s.in_call = true;
    tornado_future *future =
        read_with(&p, (tornado_read_options){.bytes = 10, .streaming_callback = sink_chunk, .arg = &s});
    s.in_call = false;
    loop_turns(2);
    CHECK_STR(s.all.data, "0123");
    CHECK(!tornado_future_done(future));
    peer_send(&p, "456789tail");
    expect(future, "");
    CHECK_STR(s.all.data, "0123456789");
    expect(tornado_iostream_read_bytes(p.stream, 4), "tail");
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_streams_until_close)
{
    pair p = pair_new();
    sink s = {.stream = p.stream};
    tornado_future *future =
        read_with(&p, (tornado_read_options){.until_close = true, .streaming_callback = sink_chunk, .arg = &s});
    for (int i = 0; i < 5; i++) {
        peer_send(&p, "part ");
        loop_turns(2);
        CHECK_INT(s.calls, i + 1);
    }
    peer_send(&p, "end");
    peer_close(&p);
    expect(future, "");
    CHECK_STR(s.all.data, "part part part part part end");
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

TEST(iostream_streams_what_was_buffered_when_the_peer_had_closed_already)
{
    pair p = pair_new();
    sink s = {.stream = p.stream};
    peer_send(&p, "a\nbcd");
    expect(tornado_iostream_read_until(p.stream, "\n"), "a\n");
    peer_close(&p);
    loop_turns(3);
    expect(read_with(&p, (tornado_read_options){.until_close = true, .streaming_callback = sink_chunk, .arg = &s}),
           "");
    CHECK_STR(s.all.data, "bcd");
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

TEST(iostream_streaming_callback_may_close_the_stream)
{
    pair p = pair_new();
    sink s = {.stream = p.stream, .close_at = 1};
    tornado_future *future =
        read_with(&p, (tornado_read_options){.bytes = 10, .streaming_callback = sink_chunk, .arg = &s});
    peer_send(&p, "abc");
    CHECK_INT(loop_code(future), TORNADO_ERR_CLOSED);
    CHECK_INT(s.calls, 1);
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

TEST(iostream_streaming_callback_that_raises_does_no_harm)
{
    pair p = pair_new();
    sink s = {.stream = p.stream, .raise_at = 1};
    tornado_future *future =
        read_with(&p, (tornado_read_options){.bytes = 6, .streaming_callback = sink_chunk, .arg = &s});
    peer_send(&p, "abc");
    loop_turns(2);
    peer_send(&p, "def");
    expect(future, "");
    CHECK_STR(s.all.data, "abcdef");
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

TEST(iostream_streams_more_than_the_buffer_may_hold)
{
    pair p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = 70000});
    sink s = {.stream = p.stream};
    static char block[1000001];
    memset(block, 'y', sizeof block - 1);
    tornado_future *future = read_with(
        &p, (tornado_read_options){.bytes = sizeof block - 1, .streaming_callback = sink_chunk, .arg = &s});
    for (size_t at = 0; at < sizeof block - 1;) {
        ssize_t part = send(p.peer, block + at, sizeof block - 1 - at, MSG_NOSIGNAL);
        at += part > 0 ? (size_t)part : 0;
        loop_turns(1);
    }
    expect(future, "");
    CHECK_MEM(s.all.data, s.all.len, block, sizeof block - 1);
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

/*----------------------------------------------------------------------------
 * Writes.
 *----------------------------------------------------------------------------*/

/* Reads so many bytes at the peer while the loop runs. */
static size_t peer_drain(pair *p, size_t want, bool (*valid)(size_t at, char c))
{
    static char block[65536];
    size_t got = 0;
    while (got < want) {
        ssize_t part = recv(p->peer, block, sizeof block, 0);
        if (part == 0)
            break;
        if (part < 0) {
            CHECK(errno == EAGAIN);
            loop_until_fd(p->peer, TORNADO_IOLOOP_READ);
            continue;
        }
        for (ssize_t i = 0; valid && i < part; i++)
            if (!valid(got + (size_t)i, block[i]))
                FAIL("byte %zu is wrong", got + (size_t)i);
        got += (size_t)part;
    }
    return got;
}

static bool is_pattern(size_t at, char c)
{
    return c == (char)(at * 31 + at / 251);
}

static char *pattern(size_t len)
{
    char *data = malloc(len);
    CHECK(data != NULL);
    for (size_t i = 0; i < len; i++)
        data[i] = (char)(i * 31 + i / 251);
    return data;
}

TEST(iostream_small_write_is_done_at_once)
{
    pair p = pair_new();
    char got[16] = "";
    tornado_future *future = tornado_iostream_write(p.stream, tornado_bytes_of("hello"));
    CHECK(tornado_future_done(future));
    tornado_future_release(future);
    CHECK(!tornado_iostream_writing(p.stream));
    CHECK_INT(recv(p.peer, got, sizeof got, 0), 5);
    CHECK_STR(got, "hello");
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, tornado_bytes_of(""))), 0);
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, tornado_bytes_of(NULL))), 0);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_writes_ten_megabytes_at_the_readers_pace)
{
    const size_t len = 10u << 20;
    pair p = pair_new();
    char *data = pattern(len);
    tornado_future *future = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    CHECK(!tornado_future_done(future));
    CHECK(tornado_iostream_writing(p.stream));
    CHECK(tornado_iostream_write_buffer_size(p.stream) > 0);
    memset(data, 0, len); /* it was copied */
    free(data);
    CHECK_INT(peer_drain(&p, len, is_pattern), len);
    CHECK_INT(loop_code(future), 0);
    CHECK_INT(tornado_iostream_write_buffer_size(p.stream), 0);
    pair_free(&p);
}

typedef struct order {
    int done[8], count;
} order;

static void note_done(tornado_future *future, void *arg)
{
    order *o = arg;
    (void)future;
    o->done[o->count] = o->count;
    o->count++;
}

TEST(iostream_write_futures_are_done_in_order)
{
    enum { WRITES = 8, LEN = 1 << 20 };
    pair p = pair_new();
    order o = {.count = 0};
    char *data = pattern((size_t)WRITES * LEN);
    tornado_future *futures[WRITES];
    for (int i = 0; i < WRITES; i++) {
        futures[i] = tornado_iostream_write(p.stream, (tornado_bytes){data + (size_t)i * LEN, LEN});
        CHECK(tornado_future_add_done_callback(futures[i], note_done, &o));
    }
    tornado_future *empty = tornado_iostream_write(p.stream, tornado_bytes_of(""));
    CHECK(!tornado_future_done(empty)); /* its turn has not come */
    for (size_t drained = 0; drained < (size_t)WRITES * LEN; drained += LEN / 2) {
        CHECK_INT(peer_drain(&p, LEN / 2 - 65536, NULL) > 0, 1);
        loop_turns(2);
        for (int i = 1; i < WRITES; i++)
            CHECK(tornado_future_done(futures[i - 1]) || !tornado_future_done(futures[i]));
        if (tornado_future_done(empty))
            break;
    }
    CHECK_INT(loop_code(empty), 0);
    for (int i = 0; i < WRITES; i++)
        CHECK_INT(loop_code(futures[i]), 0);
    loop_turns(2);
    CHECK_INT(o.count, WRITES);
    free(data);
    pair_free(&p);
}

TEST(iostream_a_full_write_buffer_refuses_and_takes_nothing)
{
    const size_t len = 8u << 20;
    pair p = pair_new_with(&(tornado_iostream_options){.max_write_buffer_size = (int64_t)len});
    char *data = pattern(2 * len);
    tornado_future *first = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, (tornado_bytes){data + len, len})), TORNADO_ERR_BUFFER_FULL);
    CHECK(!tornado_iostream_closed(p.stream));
    CHECK_INT(peer_drain(&p, len, is_pattern), len);
    CHECK_INT(loop_code(first), 0);
    tornado_future *second = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    CHECK_INT(peer_drain(&p, len, is_pattern), len);
    CHECK_INT(loop_code(second), 0);
    free(data);
    pair_free(&p);
}

TEST(iostream_writing_to_a_peer_that_is_gone_fails_without_a_signal)
{
    pair p = pair_new();
    close_with_reset(p.peer);
    p.peer = -1;
    int code = 0;
    for (int i = 0; i < 10 && !code; i++)
        code = loop_code(tornado_iostream_write(p.stream, tornado_bytes_of("x")));
    CHECK_INT(code, TORNADO_ERR_CLOSED);
    CHECK(tornado_iostream_closed(p.stream));
    CHECK(tornado_iostream_error(p.stream) != NULL);
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, tornado_bytes_of("x"))), TORNADO_ERR_CLOSED);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_pending_writes_fail_when_the_peer_resets)
{
    const size_t len = 8u << 20;
    pair p = pair_new();
    char *data = pattern(len);
    tornado_future *first = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    tornado_future *second = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    loop_turns(2);
    close_with_reset(p.peer);
    p.peer = -1;
    CHECK_INT(loop_code(first), TORNADO_ERR_CLOSED);
    CHECK_INT(loop_code(second), TORNADO_ERR_CLOSED);
    CHECK(tornado_iostream_closed(p.stream));
    free(data);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_pending_writes_fail_when_the_peer_shuts_a_unix_socket_down)
{
    int ends[2];
    const size_t len = 8u << 20;
    char *data = pattern(len);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pair p = {tornado_iostream_new(ends[0], NULL), ends[1]};
    tornado_future *write = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    loop_turns(2);
    CHECK(!tornado_future_done(write));
    CHECK(shutdown(p.peer, SHUT_RDWR) == 0); /* what it has not read keeps the socket full */
    CHECK_INT(loop_code(write), TORNADO_ERR_CLOSED);
    CHECK_INT(tornado_iostream_error(p.stream)->sys_errno, EPIPE);
    free(data);
    pair_free(&p);
}

TEST(iostream_reads_and_writes_at_once)
{
    const size_t len = 4u << 20;
    pair p = pair_new();
    char *data = pattern(len);
    tornado_future *read = tornado_iostream_read_until(p.stream, "\n");
    tornado_future *write = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    peer_send(&p, "a line\n");
    expect(read, "a line\n");
    CHECK(!tornado_future_done(write));
    CHECK_INT(peer_drain(&p, len, is_pattern), len);
    CHECK_INT(loop_code(write), 0);
    free(data);
    pair_free(&p);
}

TEST(iostream_writes_to_a_peer_that_closed_only_its_sending_side)
{
    /* A peer that shuts down its sending side looks the same as one that closes: the stream ends, as in Tornado. */
    pair p = pair_new();
    char got[64] = "";
    peer_send(&p, "question\n");
    CHECK(shutdown(p.peer, SHUT_WR) == 0);
    expect(tornado_iostream_read_until(p.stream, "\n"), "question\n");
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, tornado_bytes_of("answer"))), 0);
    CHECK_INT(recv(p.peer, got, sizeof got, 0), 6);
    CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, 1)), TORNADO_ERR_CLOSED);
    pair_free(&p);
}

/*----------------------------------------------------------------------------
 * Reads into memory of the caller's.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(iostream_reads_into_memory_of_the_callers)
{
    pair p = pair_new();
    char memory[12];
    memset(memory, '-', sizeof memory);
    tornado_future *future = tornado_iostream_read_into(p.stream, memory, 10);
    peer_send(&p, "0123");
    loop_turns(3);
    CHECK(!tornado_future_done(future));
    CHECK_MEM(memory, 4, "0123", 4);
    peer_send(&p, "456789tail");
    CHECK(loop_until(future) == NULL);
    CHECK(tornado_future_bytes(future).data == memory);
    CHECK_INT(tornado_future_bytes(future).len, 10);
    CHECK_MEM(memory, sizeof memory, "0123456789--", sizeof memory);
    tornado_future_release(future);
    expect(tornado_iostream_read_bytes(p.stream, 4), "tail");
    pair_free(&p);
}

TEST(iostream_reads_into_memory_first_what_is_buffered)
{
    pair p = pair_new();
    char memory[9] = "";
    peer_send(&p, "line\nrest");
    expect(tornado_iostream_read_until(p.stream, "\n"), "line\n");
    tornado_future *future = read_with(&p, (tornado_read_options){.bytes = 8, .into = memory, .partial = true});
    CHECK(tornado_future_done(future));
    CHECK_MEM(tornado_future_bytes(future).data, tornado_future_bytes(future).len, "rest", 4);
    CHECK_INT(memory[4], 0);
    tornado_future_release(future);
    future = read_with(&p, (tornado_read_options){.bytes = 8, .into = memory, .partial = true});
    CHECK(!tornado_future_done(future));
    peer_send(&p, "abcdefghijk");
    CHECK(loop_until(future) == NULL);
    CHECK_STR(memory, "abcdefgh");
    tornado_future_release(future);
    expect(tornado_iostream_read_bytes(p.stream, 3), "ijk");
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.into = memory})), 0);
    CHECK_INT(loop_code(read_with(&p, (tornado_read_options){.into = memory, .until_close = true})),
              TORNADO_ERR_INVALID);
    pair_free(&p);
}

TEST(iostream_reads_into_memory_more_than_the_buffer_may_hold)
{
    pair p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = 1000});
    const size_t len = 200000;
    char *memory = malloc(len), *data = pattern(len);
    tornado_future *future = tornado_iostream_read_into(p.stream, memory, len);
    for (size_t at = 0; at < len; loop_turns(1)) {
        ssize_t part = send(p.peer, data + at, len - at, MSG_NOSIGNAL);
        at += part > 0 ? (size_t)part : 0;
    }
    CHECK_INT(loop_code(future), 0);
    CHECK_MEM(memory, len, data, len);
    future = tornado_iostream_read_into(p.stream, memory, len);
    peer_close(&p);
    CHECK_INT(loop_code(future), TORNADO_ERR_CLOSED);
    free(memory);
    free(data);
    pair_free(&p);
}

TEST(iostream_receives_no_more_at_once_than_a_chunk)
{
    pair p = pair_new_with(&(tornado_iostream_options){.read_chunk_size = 3});
    peer_send(&p, "0123456789");
    expect(read_with(&p, (tornado_read_options){.bytes = 100, .partial = true}), "012");
    expect(tornado_iostream_read_bytes(p.stream, 5), "34567");
    CHECK_INT(tornado_iostream_read_buffer_size(p.stream), 1);
    expect(tornado_iostream_read_bytes(p.stream, 2), "89");
    pair_free(&p);
}

TEST(iostream_delimiter_at_the_end_of_much_is_looked_for_once)
{
    enum { PIECES = 20000 };
    pair p = pair_new();
    static char many[PIECES * 32 + 1];
    memset(many, 'a', sizeof many - 1);
    tornado_future *future = tornado_iostream_read_until(p.stream, "aaaaaaaaaaaaaaab"); /* which each byte might begin */
    for (int i = 0; i < PIECES; i++) {
        CHECK(send(p.peer, many, 32, MSG_NOSIGNAL) == 32);
        loop_turns(1);
    }
    peer_send(&p, "b");
    many[sizeof many - 1] = 'b';
    expect_bytes(future, many, sizeof many);
    pair_free(&p);
}

TEST(iostream_lines_of_a_long_stream_come_whole_and_in_order)
{
    enum { LINES = 30000 };
    pair p = pair_new();
    char line[64], block[8192];
    size_t held = 0, at = 0;
    for (int sent = 0, read = 0; read < LINES;) {
        while (sent < LINES && held == at) {
            for (held = at = 0; sent < LINES && held < sizeof block - 64; sent++)
                held += (size_t)snprintf(block + held, 64, "%d %.*s\n", sent, sent % 40,
                                         "the quick brown fox jumps over the lazy dog");
            ssize_t part = send(p.peer, block, held, MSG_NOSIGNAL);
            at = part > 0 ? (size_t)part : 0;
        }
        if (at < held) {
            ssize_t part = send(p.peer, block + at, held - at, MSG_NOSIGNAL);
            at += part > 0 ? (size_t)part : 0;
        }
        for (int i = 0; i < 100 && read < LINES && read < sent; i++, read++) {
            tornado_future *future = tornado_iostream_read_until(p.stream, "\n");
            if (read + 200 > sent && at < held) { /* perhaps the rest of this line was not sent yet */
                ssize_t part = send(p.peer, block + at, held - at, MSG_NOSIGNAL);
                at += part > 0 ? (size_t)part : 0;
            }
            int len = snprintf(line, sizeof line, "%d %.*s\n", read, read % 40,
                               "the quick brown fox jumps over the lazy dog");
            expect_bytes(future, line, (size_t)len);
        }
    }
    pair_free(&p);
}

/*----------------------------------------------------------------------------
 * Writes of several parts, and of files.
 *----------------------------------------------------------------------------*/

/* A file with a pattern, without a name. */
static int pattern_file(size_t len)
{
    char name[] = "/tmp/tornado-stream-XXXXXX", *data = pattern(len);
    int fd = mkstemp(name);
    CHECK(fd >= 0 && unlink(name) == 0);
    CHECK_INT(write(fd, data, len), len);
    free(data);
    return fd;
}

TEST(iostream_writes_several_parts_as_one)
{
    pair p = pair_new();
    char got[64] = "";
    tornado_bytes parts[] = {{"one ", 4}, {NULL, 0}, {"two ", 4}, {"three", 5}};
    CHECK_INT(loop_code(tornado_iostream_writev(p.stream, parts, 4)), 0);
    CHECK_INT(recv(p.peer, got, sizeof got, 0), 13);
    CHECK_STR(got, "one two three");
    CHECK_INT(loop_code(tornado_iostream_writev(p.stream, parts, 0)), 0);
    CHECK_INT(loop_code(tornado_iostream_writev(p.stream, parts + 1, 1)), 0);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_writes_many_large_parts_at_the_readers_pace)
{
    enum { PARTS = 40, LEN = 300000 };
    pair p = pair_new();
    char *data = pattern((size_t)PARTS * LEN);
    tornado_bytes parts[PARTS];
    for (size_t i = 0; i < PARTS; i++)
        parts[i] = (tornado_bytes){data + i * LEN, LEN};
    tornado_future *future = tornado_iostream_writev(p.stream, parts, PARTS);
    memset(data, 0, (size_t)PARTS * LEN);
    CHECK(!tornado_future_done(future));
    CHECK_INT(peer_drain(&p, (size_t)PARTS * LEN, is_pattern), (size_t)PARTS * LEN);
    CHECK_INT(loop_code(future), 0);
    free(data);
    pair_free(&p);
}

TEST(iostream_a_write_is_done_before_those_behind_it_are_sent)
{
    const size_t len = 6u << 20;
    pair p = pair_new();
    char *data = pattern(2 * len);
    tornado_future *first = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    tornado_future *second = tornado_iostream_write(p.stream, (tornado_bytes){data + len, len});
    size_t drained = peer_drain(&p, len, is_pattern);
    CHECK_INT(loop_code(first), 0);
    CHECK(!tornado_future_done(second));
    CHECK(tornado_iostream_write_buffer_size(p.stream) <= len);
    CHECK_INT(peer_drain(&p, 2 * len - drained, NULL), 2 * len - drained);
    CHECK_INT(loop_code(second), 0);
    free(data);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_writes_a_part_of_a_file_between_other_bytes)
{
    const size_t len = 3u << 20, from = 251 * 8;
    pair p = pair_new();
    int file = pattern_file(len);
    char before[from], *data = pattern(len);
    memcpy(before, data, from);
    tornado_future *futures[3] = {
        tornado_iostream_write(p.stream, (tornado_bytes){before, from}),
        tornado_iostream_write_file(p.stream, file, (int64_t)from, (int64_t)(len - from - 100)),
        tornado_iostream_write(p.stream, (tornado_bytes){data + len - 100, 100})};
    close(file); /* the stream has its own */
    CHECK(tornado_iostream_writing(p.stream));
    CHECK_INT(peer_drain(&p, len, is_pattern), len);
    for (int i = 0; i < 3; i++)
        CHECK_INT(loop_code(futures[i]), 0);
    CHECK_INT(tornado_iostream_write_buffer_size(p.stream), 0);
    free(data);
    pair_free(&p);
}

TEST(iostream_writes_a_file_to_a_pipe)
{
    const size_t len = 300000;
    int ends[2], file = pattern_file(len);
    CHECK(pipe(ends) == 0);
    tornado_iostream *in = tornado_iostream_new(ends[0], NULL), *out = tornado_iostream_new(ends[1], NULL);
    tornado_future *wrote = tornado_iostream_write_file(out, file, 0, (int64_t)len);
    tornado_future *read = tornado_iostream_read_bytes(in, len);
    CHECK(loop_until(read) == NULL);
    char *data = pattern(len);
    CHECK_MEM(tornado_future_bytes(read).data, tornado_future_bytes(read).len, data, len);
    CHECK_INT(loop_code(wrote), 0);
    tornado_future_release(read);
    tornado_iostream_release(in);
    tornado_iostream_release(out);
    free(data);
    close(file);
}

TEST(iostream_file_that_is_shorter_than_its_part_ends_the_stream)
{
    pair p = pair_new();
    int file = pattern_file(1000);
    tornado_future *future = tornado_iostream_write_file(p.stream, file, 500, 1000);
    CHECK_INT(loop_code(future), TORNADO_ERR_CLOSED);
    CHECK_INT(tornado_iostream_error(p.stream)->sys_errno, EIO);
    CHECK_INT(peer_drain(&p, 1000, NULL), 500);
    CHECK_INT(loop_code(tornado_iostream_write_file(p.stream, file, 0, 10)), TORNADO_ERR_CLOSED);
    pair_free(&p);

    p = pair_new();
    CHECK_INT(loop_code(tornado_iostream_write_file(p.stream, file, -1, 10)), TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(tornado_iostream_write_file(p.stream, file, 10, -1)), TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(tornado_iostream_write_file(p.stream, file, INT64_MAX, 10)), TORNADO_ERR_INVALID);
    CHECK_INT(loop_code(tornado_iostream_write_file(p.stream, -1, 0, 10)), TORNADO_ERR_SYSTEM);
    CHECK_INT(loop_code(tornado_iostream_write_file(p.stream, file, 990, 0)), 0);
    CHECK(!tornado_iostream_closed(p.stream));
    pair_free(&p);
    close(file);
}

TEST(iostream_file_for_a_peer_that_is_gone_raises_no_signal)
{
    pair p = pair_new();
    int file = pattern_file(1000), code = 0;
    close_with_reset(p.peer);
    p.peer = -1;
    for (int i = 0; i < 10 && !code; i++)
        code = loop_code(tornado_iostream_write_file(p.stream, file, 0, 1000));
    CHECK_INT(code, TORNADO_ERR_CLOSED);
    pair_free(&p);
    close(file);
}

/*----------------------------------------------------------------------------
 * A backend of the program's own.
 *----------------------------------------------------------------------------*/

/* Bytes go over a socket with a bit changed. It reads ahead, and can be told to fail, or to wait for the other way. */
typedef struct odd_backend {
    char ahead[16];
    size_t ahead_len;
    int closed, read_error, other_way;
    tornado_error error;
} odd_backend;

static ptrdiff_t odd_read(void *state, int fd, void *data, size_t room)
{
    odd_backend *odd = state;
    if (odd->read_error) {
        errno = odd->read_error;
        return -1;
    }
    if (odd->other_way) {
        odd->other_way--;
        return TORNADO_IOSTREAM_OTHER_WAY;
    }
    if (!odd->ahead_len) {
        ssize_t got = recv(fd, odd->ahead, sizeof odd->ahead, 0);
        if (got <= 0)
            return got;
        odd->ahead_len = (size_t)got;
    }
    size_t len = room < 3 ? room : odd->ahead_len < 3 ? odd->ahead_len : 3;
    for (size_t i = 0; i < len; i++)
        ((char *)data)[i] = (char)(odd->ahead[i] ^ 1);
    odd->ahead_len -= len;
    memmove(odd->ahead, odd->ahead + len, odd->ahead_len);
    return (ptrdiff_t)len;
}

static ptrdiff_t odd_write(void *state, int fd, const void *data, size_t len)
{
    odd_backend *odd = state;
    char block[5];
    size_t part = len < sizeof block ? len : sizeof block;
    if (odd->other_way) {
        odd->other_way--;
        return TORNADO_IOSTREAM_OTHER_WAY;
    }
    for (size_t i = 0; i < part; i++)
        block[i] = (char)(((const char *)data)[i] ^ 1);
    return send(fd, block, part, MSG_NOSIGNAL);
}

static void odd_close(void *state, int fd)
{
    ((odd_backend *)state)->closed++;
    close(fd);
}

static const tornado_error *odd_error(void *state, int fd)
{
    odd_backend *odd = state;
    (void)fd;
    return odd->error.code ? &odd->error : NULL;
}

static bool odd_pending(void *state, int fd)
{
    (void)fd;
    return ((odd_backend *)state)->ahead_len > 0;
}

static tornado_iostream_options odd_options(odd_backend *odd)
{
    static const tornado_iostream_backend odd_class = {.read_from_fd = odd_read, .write_to_fd = odd_write,
                                                       .close_fd = odd_close, .get_fd_error = odd_error,
                                                       .pending = odd_pending};
    memset(odd, 0, sizeof *odd);
    return (tornado_iostream_options){.backend = &odd_class, .backend_state = odd};
}

static pair odd_pair(odd_backend *odd)
{
    tornado_iostream_options options = odd_options(odd);
    return pair_new_with(&options);
}

TEST_EACH_POLLER(iostream_reads_and_writes_by_a_backend_of_the_programs)
{
    odd_backend odd;
    char got[64] = "";
    pair p = odd_pair(&odd);
    CHECK(fcntl(tornado_iostream_fileno(p.stream), F_SETFL, O_NONBLOCK) == 0);
    tornado_future *future = tornado_iostream_read_until(p.stream, "-");
    peer_send(&p, "012,456789012345678");    /* of which the backend holds more than it gives */
    expect(future, "103-");
    expect(tornado_iostream_read_bytes(p.stream, 15), "547698103254769");
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, tornado_bytes_of("a message in pieces"))), 0);
    CHECK_INT(loop_code(tornado_iostream_writev(p.stream, (tornado_bytes[]){{"0123456", 7}, {"89", 2}}, 2)), 0);
    CHECK_INT(recv(p.peer, got, sizeof got, 0), 28);
    CHECK_STR(got, "`!ldrr`fd!ho!qhdbdr103254798");
    CHECK_INT(odd.closed, 0);
    peer_close(&p);
    expect(tornado_iostream_read_until_close(p.stream), "");
    CHECK_INT(odd.closed, 1);
    pair_free(&p);
    CHECK_INT(odd.closed, 1);
}

/* A peer that always has as much as there is room for, up to the last piece. */
typedef struct fast_peer {
    size_t left, room; /* room: what there was for the last piece */
} fast_peer;

static ptrdiff_t fast_read(void *state, int fd, void *data, size_t room)
{
    fast_peer *fast = state;
    size_t len = room < fast->left ? room : fast->left;
    (void)fd;
    if (!len) {
        errno = EAGAIN;
        return -1;
    }
    memset(data, 'x', len);
    fast->room = room;
    fast->left -= len;
    return (ptrdiff_t)len;
}

static ptrdiff_t fast_write(void *state, int fd, const void *data, size_t len)
{
    (void)state, (void)fd, (void)data;
    return (ptrdiff_t)len;
}

static void fast_close(void *state, int fd)
{
    (void)state;
    close(fd);
}

TEST(iostream_receives_more_at_once_from_a_peer_that_is_faster)
{
    static const struct {
        int64_t max_buffer_size;
        size_t read_chunk_size, first, next;
    } cases[] = {
        {0, 0, 65536, 262144}, {0, 100000, 65536, 100000}, {100001, 0, 65536, 100001},
        {0, 1000000, 65536, 262144}, {5000, 0, 5000, 5000}, {0, 7, 7, 7},
    };
    static const tornado_iostream_backend fast_class = {
        .read_from_fd = fast_read, .write_to_fd = fast_write, .close_fd = fast_close};
    const tornado_read_options any = {.bytes = 1 << 20, .partial = true};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fast_peer fast = {cases[i].first + cases[i].next * 2 + 5, 0};
        pair p = pair_new_with(&(tornado_iostream_options){.max_buffer_size = cases[i].max_buffer_size,
                                                           .read_chunk_size = cases[i].read_chunk_size,
                                                           .backend = &fast_class, .backend_state = &fast});
        const size_t rooms[] = {cases[i].first, cases[i].next, cases[i].next, cases[i].next, cases[i].first};
        peer_send(&p, "x"); /* so that there is always something to read */
        for (int at = 0; at < 5; at++) {
            size_t len = rooms[at];
            if (at == 3)
                len = 5; /* the last for now */
            if (at == 4)
                fast.left = len;
            tornado_future *future = read_with(&p, any);
            CHECK_INT(loop_code(tornado_future_retain(future)), 0);
            CHECK_INT(fast.room, rooms[at]);
            CHECK_INT(tornado_future_bytes(future).len, len);
            tornado_future_release(future);
        }
        pair_free(&p);
    }
}

TEST_EACH_POLLER(iostream_backend_may_wait_for_the_other_way)
{
    odd_backend odd;
    char got[64] = "";
    pair p = odd_pair(&odd);
    CHECK(fcntl(tornado_iostream_fileno(p.stream), F_SETFL, O_NONBLOCK) == 0);
    odd.other_way = 1;
    tornado_future *read = tornado_iostream_read_bytes(p.stream, 2);
    peer_send(&p, "01");
    expect(read, "10");
    odd.other_way = 1;
    tornado_future *wrote = tornado_iostream_write(p.stream, tornado_bytes_of("01"));
    loop_turns(3);
    CHECK(!tornado_future_done(wrote)); /* there is nothing to read yet */
    peer_send(&p, "2");
    CHECK_INT(loop_code(wrote), 0);
    CHECK_INT(recv(p.peer, got, sizeof got, 0), 2);
    expect(tornado_iostream_read_bytes(p.stream, 1), "3");
    pair_free(&p);
}

TEST(iostream_backend_tells_why_it_failed)
{
    for (int own = 0; own < 2; own++) {
        odd_backend odd;
        pair p = odd_pair(&odd);
        odd.read_error = EPROTO;
        if (own)
            odd.error = (tornado_error){.code = TORNADO_ERR_PARSE, .message = "the bit was missing"};
        tornado_future *future = tornado_iostream_read_bytes(p.stream, 1);
        peer_send(&p, "x");
        CHECK_INT(loop_code(future), own ? TORNADO_ERR_PARSE : TORNADO_ERR_CLOSED);
        CHECK_INT(tornado_iostream_error(p.stream)->sys_errno, own ? 0 : EPROTO);
        CHECK_INT(odd.closed, 1);
        pair_free(&p);
    }
}

TEST(iostream_backend_is_closed_when_there_is_no_memory_for_a_stream)
{
    for (long n = 1; n <= 2; n++) {
        int ends[2];
        odd_backend odd;
        tornado_iostream_options options = odd_options(&odd);
        options.max_buffer_size = 5;
        tornado_ioloop_current();
        tcp_pair(ends);
        test_fail_alloc(n);
        CHECK(!tornado_iostream_new(ends[0], &options));
        test_fail_alloc(0);
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
        CHECK_INT(odd.closed, 1);
        close(ends[1]);
    }
}

/*----------------------------------------------------------------------------
 * The end.
 *----------------------------------------------------------------------------*/

static void set_flag(void *arg)
{
    *(int *)arg += 1;
}

static void note_order(void *arg)
{
    order *o = arg;
    o->done[o->count++] = 100;
}

TEST_EACH_POLLER(iostream_close_callback_comes_when_the_peer_closes_an_idle_stream)
{
    pair p = pair_new();
    int closed = 0;
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    CHECK(!closed);
    peer_close(&p);
    loop_turns(4);
    CHECK_INT(closed, 1);
    CHECK(tornado_iostream_closed(p.stream));
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_close_callback_that_is_set_after_the_peer_has_closed_is_called)
{
    pair p = pair_new();
    int closed = 0;
    tornado_future *read = tornado_iostream_read_until(p.stream, "\n");
    loop_turns(2);
    peer_send(&p, "last\n");
    expect(read, "last\n");
    peer_close(&p);
    loop_turns(4);
    CHECK(!tornado_iostream_closed(p.stream)); /* without a callback one may still write */
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    loop_turns(4);
    CHECK_INT(closed, 1);
    pair_free(&p);
}

TEST_EACH_POLLER(iostream_close_callback_waits_for_what_is_unread)
{
    pair p = pair_new();
    int closed = 0;
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    peer_send(&p, "one\ntwo\n");
    expect(tornado_iostream_read_until(p.stream, "\n"), "one\n");
    peer_close(&p);
    loop_turns(5);
    CHECK_INT(closed, 0);
    expect(tornado_iostream_read_until(p.stream, "\n"), "two\n");
    CHECK_INT(loop_code(tornado_iostream_read_until(p.stream, "\n")), TORNADO_ERR_CLOSED);
    loop_turns(3);
    CHECK_INT(closed, 1);
    pair_free(&p);
}

TEST(iostream_close_callback_comes_after_unread_data_was_left_in_the_kernel)
{
    pair p = pair_new();
    int closed = 0;
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    peer_send(&p, "one\n");
    peer_close(&p);
    loop_turns(5);
    CHECK_INT(closed, 0);
    CHECK(!tornado_iostream_closed(p.stream));
    expect(tornado_iostream_read_until(p.stream, "\n"), "one\n");
    loop_turns(5);
    CHECK_INT(closed, 1);
    pair_free(&p);
}

TEST(iostream_close_fails_what_is_pending_and_calls_back_in_a_later_turn)
{
    pair p = pair_new();
    order o = {.count = 0};
    tornado_future *read = tornado_iostream_read_bytes(p.stream, 1);
    CHECK(tornado_future_add_done_callback(read, note_done, &o));
    tornado_iostream_set_close_callback(p.stream, note_order, &o);
    tornado_iostream_close(p.stream);
    CHECK_INT(o.count, 0);
    CHECK(tornado_iostream_closed(p.stream));
    CHECK_INT(tornado_iostream_fileno(p.stream), -1);
    CHECK_INT(loop_code(read), TORNADO_ERR_CLOSED);
    loop_turns(2);
    CHECK_INT(o.count, 2);
    CHECK_INT(o.done[0], 0); /* the future, then the callback */
    CHECK_INT(o.done[1], 100);
    tornado_iostream_close(p.stream);
    loop_turns(2);
    CHECK_INT(o.count, 2);
    pair_free(&p);
}

TEST(iostream_close_callback_comes_behind_the_futures_of_a_read_that_streams)
{
    pair p = pair_new();
    order o = {.count = 0};
    sink s = {.stream = p.stream};
    peer_send(&p, "xy");
    expect(tornado_iostream_read_bytes(p.stream, 1), "x");
    tornado_iostream_set_close_callback(p.stream, note_order, &o);
    tornado_future *read =
        read_with(&p, (tornado_read_options){.bytes = 10, .streaming_callback = sink_chunk, .arg = &s});
    CHECK(tornado_future_add_done_callback(read, note_done, &o));
    tornado_iostream_close(p.stream);
    CHECK_INT(loop_code(read), TORNADO_ERR_CLOSED);
    CHECK_INT(tornado_iostream_read_buffer_size(p.stream), 1); /* of which it is the user's to say what is done */
    expect(tornado_iostream_read_bytes(p.stream, 1), "y");
    loop_turns(3);
    CHECK_INT(o.count, 2);
    CHECK_INT(o.done[0], 0);
    CHECK_INT(o.done[1], 100);
    tornado_buffer_free(&s.all);
    pair_free(&p);
}

TEST(iostream_close_with_an_error_has_that_as_its_reason)
{
    pair p = pair_new();
    tornado_error error = {.code = TORNADO_ERR_LIMIT, .message = "too many of them"};
    tornado_future *read = tornado_iostream_read_bytes(p.stream, 1);
    tornado_iostream_close_with(p.stream, &error);
    error.message[0] = '-';
    CHECK_STR(loop_until(read)->message, "too many of them");
    tornado_future_release(read);
    CHECK_INT(tornado_iostream_error(p.stream)->code, TORNADO_ERR_LIMIT);
    CHECK_INT(loop_code(tornado_iostream_write(p.stream, tornado_bytes_of("x"))), TORNADO_ERR_LIMIT);
    tornado_iostream_close_with(p.stream, NULL);
    CHECK_INT(tornado_iostream_error(p.stream)->code, TORNADO_ERR_LIMIT);
    pair_free(&p);
}

TEST(iostream_close_callback_set_after_the_close_is_called)
{
    pair p = pair_new();
    int closed = 0;
    tornado_iostream_close(p.stream);
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    CHECK_INT(closed, 0);
    loop_turns(2);
    CHECK_INT(closed, 1);
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    tornado_iostream_set_close_callback(p.stream, NULL, NULL);
    loop_turns(2);
    CHECK_INT(closed, 1);
    pair_free(&p);
}

static void release_stream(void *arg)
{
    tornado_iostream_release(arg);
}

TEST(iostream_close_callback_may_release_the_stream)
{
    pair p = pair_new();
    tornado_iostream_set_close_callback(p.stream, release_stream, p.stream);
    peer_close(&p);
    loop_turns(4);
}

TEST(iostream_release_with_a_pending_read_fails_it)
{
    pair p = pair_new();
    tornado_future *read = tornado_iostream_read_bytes(p.stream, 5);
    tornado_iostream_release(p.stream);
    char c;
    CHECK_INT(loop_code(read), TORNADO_ERR_CLOSED);
    CHECK_INT(recv(p.peer, &c, 1, 0), 0);
    close(p.peer);
}

TEST(iostream_release_with_pending_writes_fails_them)
{
    const size_t len = 8u << 20;
    pair p = pair_new();
    char *data = pattern(len);
    tornado_future *write = tornado_iostream_write(p.stream, (tornado_bytes){data, len});
    tornado_iostream_release(p.stream);
    CHECK_INT(loop_code(write), TORNADO_ERR_CLOSED);
    free(data);
    close(p.peer);
}

TEST(iostream_release_with_a_pending_streaming_read_and_close_callback)
{
    pair p = pair_new();
    sink s = {.stream = p.stream};
    int closed = 0;
    peer_send(&p, "xy");
    expect(tornado_iostream_read_bytes(p.stream, 1), "x");
    tornado_iostream_set_close_callback(p.stream, set_flag, &closed);
    tornado_future *future =
        read_with(&p, (tornado_read_options){.bytes = 10, .streaming_callback = sink_chunk, .arg = &s});
    tornado_iostream_release(p.stream);
    loop_turns(4);
    tornado_iostream *stream = p.stream;
    (void)stream;
    tornado_future_release(future);
    tornado_buffer_free(&s.all);
    close(p.peer);
    loop_turns(4);
}

TEST_EACH_POLLER(iostream_peer_that_closes_within_a_read_fails_it_at_every_byte)
{
    static const char text[] = "0123456789\r\n";
    for (int reset = 0; reset < 2; reset++)
        for (size_t cut = 0; cut < sizeof text - 2; cut++)
            for (int form = 0; form < 2; form++) {
                pair p = pair_new();
                tornado_future *future = form ? tornado_iostream_read_until(p.stream, "\r\n")
                                              : tornado_iostream_read_bytes(p.stream, sizeof text - 1);
                CHECK(send(p.peer, text, cut, MSG_NOSIGNAL) == (ssize_t)cut);
                loop_turns(2);
                if (reset)
                    close_with_reset(p.peer);
                else
                    close(p.peer);
                p.peer = -1;
                CHECK_INT(loop_code(future), TORNADO_ERR_CLOSED);
                CHECK((tornado_iostream_error(p.stream) != NULL) == reset);
                pair_free(&p);
            }
}

TEST_EACH_POLLER(iostream_until_close_of_a_reset_connection_fails)
{
    pair p = pair_new();
    tornado_future *future = tornado_iostream_read_until_close(p.stream);
    peer_send(&p, "abc");
    loop_turns(2);
    close_with_reset(p.peer);
    p.peer = -1;
    CHECK_INT(loop_code(future), TORNADO_ERR_CLOSED);
    CHECK_INT(tornado_iostream_error(p.stream)->sys_errno, ECONNRESET);
    pair_free(&p);
}

/*----------------------------------------------------------------------------
 * Connecting and making.
 *----------------------------------------------------------------------------*/

TEST_EACH_POLLER(iostream_connects_and_sends_what_was_written_before)
{
    int port, listener = listen_loopback(&port);
    tornado_address address;
    char got[16] = "";
    CHECK(tornado_address_ip(&address, "127.0.0.1", port));
    tornado_iostream *stream = tornado_iostream_new(socket(AF_INET, SOCK_STREAM, 0), NULL);
    CHECK(stream != NULL);
    tornado_future *connected = tornado_iostream_connect(stream, &address);
    tornado_future *written = tornado_iostream_write(stream, tornado_bytes_of("early"));
    CHECK(loop_until(connected) == NULL);
    CHECK(tornado_future_result(connected) == stream);
    tornado_future_release(connected);
    CHECK_INT(loop_code(written), 0);
    int peer = accept(listener, NULL, NULL);
    CHECK_INT(recv(peer, got, sizeof got, 0), 5);
    CHECK_STR(got, "early");
    CHECK_INT(send(peer, "hi\n", 3, 0), 3);
    pair p = {stream, peer};
    expect(tornado_iostream_read_until(stream, "\n"), "hi\n");
    pair_free(&p);
    close(listener);
}

TEST_EACH_POLLER(iostream_connect_refused_fails_and_closes)
{
    int port, listener = listen_loopback(&port), closed = 0;
    tornado_address address;
    close(listener);
    CHECK(tornado_address_ip(&address, "127.0.0.1", port));
    tornado_iostream *stream = tornado_iostream_new(socket(AF_INET, SOCK_STREAM, 0), NULL);
    tornado_iostream_set_close_callback(stream, set_flag, &closed);
    tornado_future *connected = tornado_iostream_connect(stream, &address);
    const tornado_error *error = loop_until(connected);
    CHECK(error && (error->code == TORNADO_ERR_SYSTEM || error->code == TORNADO_ERR_CLOSED));
    CHECK_INT(error->sys_errno, ECONNREFUSED);
    tornado_future_release(connected);
    loop_turns(2);
    CHECK(tornado_iostream_closed(stream));
    CHECK_INT(closed, 1);
    tornado_iostream_release(stream);
}

TEST(iostream_released_while_connecting_fails_the_connect)
{
    int port, listener = listen_loopback(&port);
    tornado_address address;
    CHECK(tornado_address_ip(&address, "127.0.0.1", port));
    tornado_iostream *stream = tornado_iostream_new(socket(AF_INET, SOCK_STREAM, 0), NULL);
    tornado_future *connected = tornado_iostream_connect(stream, &address);
    bool done = tornado_future_done(connected);
    tornado_iostream_release(stream);
    CHECK_INT(loop_code(connected), done ? 0 : TORNADO_ERR_CLOSED);
    close(listener);
}

TEST(iostream_refuses_what_is_no_socket_or_pipe)
{
    int file = open("/dev/null", O_RDWR);
    CHECK(tornado_iostream_new(-1, NULL) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK(file >= 0 && tornado_iostream_new(file, NULL) == NULL);
    CHECK_INT(tornado_last_error()->code, TORNADO_ERR_INVALID);
    CHECK_INT(fcntl(file, F_GETFD), -1); /* taken over, and closed */
}

static void *talk_through_a_pipe(void *arg)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    tornado_iostream *in = tornado_iostream_new(ends[0], NULL), *out = tornado_iostream_new(ends[1], NULL);
    for (int i = 0; i < 3; i++) {
        tornado_future *line = tornado_iostream_read_until(in, "\n");
        tornado_await(tornado_iostream_write(out, tornado_bytes_of("a line\n")));
        tornado_bytes got = tornado_await_bytes(line);
        CHECK_MEM(got.data, got.len, "a line\n", 7);
    }
    tornado_iostream_release(out);
    CHECK_INT(tornado_await_bytes(tornado_iostream_read_until_close(in)).len, 0);
    tornado_iostream_release(in);
    return arg;
}

TEST_EACH_POLLER(iostream_works_over_the_ends_of_a_pipe)
{
    CHECK(tornado_ioloop_run_sync(tornado_ioloop_current(), talk_through_a_pipe, NULL));
}

TEST(iostream_works_over_a_unix_socket)
{
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pair p = {tornado_iostream_new(ends[0], NULL), ends[1]};
    tornado_iostream_set_nodelay(p.stream, true);
    peer_send(&p, "abc\n");
    expect(tornado_iostream_read_until(p.stream, "\n"), "abc\n");
    peer_close(&p);
    CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, 1)), TORNADO_ERR_CLOSED);
    pair_free(&p);
}

/*----------------------------------------------------------------------------
 * In coroutines.
 *----------------------------------------------------------------------------*/

static void *read_in_coroutine(void *arg)
{
    pair *p = arg;
    tornado_await_bytes(tornado_iostream_read_until(p->stream, "\n"));
    return NULL;
}

static void *write_in_coroutine(void *arg)
{
    pair *p = arg;
    static char data[8 << 20];
    tornado_await(tornado_iostream_write(p->stream, (tornado_bytes){data, sizeof data}));
    return NULL;
}

TEST(iostream_a_coroutine_can_be_cancelled_in_a_read)
{
    pair p = pair_new();
    tornado_future *coroutine = tornado_spawn(read_in_coroutine, &p);
    loop_turns(2);
    CHECK(tornado_cancel(coroutine));
    CHECK_INT(loop_code(coroutine), TORNADO_ERR_CANCELLED);
    CHECK(tornado_iostream_reading(p.stream)); /* the read itself goes on */
    CHECK_INT(loop_code(tornado_iostream_read_bytes(p.stream, 1)), TORNADO_ERR_STATE);
    peer_send(&p, "a line\n");
    loop_turns(3);
    CHECK(!tornado_iostream_reading(p.stream));
    pair_free(&p);
}

TEST(iostream_a_coroutine_can_be_cancelled_in_a_write)
{
    pair p = pair_new();
    tornado_future *coroutine = tornado_spawn(write_in_coroutine, &p);
    loop_turns(2);
    CHECK(tornado_cancel(coroutine));
    CHECK_INT(loop_code(coroutine), TORNADO_ERR_CANCELLED);
    CHECK_INT(peer_drain(&p, 8 << 20, NULL), 8 << 20); /* what was written is sent all the same */
    pair_free(&p);
}

static void *echo_lines(void *arg)
{
    pair *p = arg;
    while (p) {
        tornado_bytes line = tornado_await_bytes(tornado_iostream_read_until(p->stream, "\n"));
        tornado_await(tornado_iostream_write(p->stream, line));
    }
    return NULL;
}

TEST_EACH_POLLER(iostream_an_echo_loop_runs_in_constant_memory)
{
    pair p = pair_new();
    char got[64];
    tornado_future *coroutine = tornado_spawn(echo_lines, &p);
    long live = 0;
    for (int i = 0; i < 2000; i++) {
        peer_send(&p, "some line\n");
        ssize_t len;
        while ((len = recv(p.peer, got, sizeof got, 0)) < 0)
            loop_until_fd(p.peer, TORNADO_IOLOOP_READ);
        CHECK_MEM(got, (size_t)len, "some line\n", 10);
        if (i == 100)
            live = test_live();
    }
    CHECK(test_live() <= live + 4);
    peer_close(&p);
    CHECK_INT(loop_code(coroutine), TORNADO_ERR_CLOSED);
    pair_free(&p);
}

TEST(iostream_failing_allocations_close_or_fail_and_never_crash)
{
    for (long n = 1; n <= 12; n++) {
        int ends[2];
        loop_turns(3);
        tcp_pair(ends);
        test_fail_alloc(n);
        tornado_iostream *stream = tornado_iostream_new(ends[0], NULL);
        if (stream) {
            tornado_future *read = tornado_iostream_read_until(stream, "a delimiter that is not short\n");
            static char big[4 << 20];
            tornado_future *write = tornado_iostream_write(stream, (tornado_bytes){big, sizeof big});
            CHECK(send(ends[1], "abc", 3, MSG_NOSIGNAL) == 3);
            for (int i = 0; i < 3; i++) {
                if (tornado_ioloop_add_callback(tornado_ioloop_current(), loop_stop_callback, tornado_ioloop_current()))
                    tornado_ioloop_start(tornado_ioloop_current());
            }
            test_fail_alloc(0);
            tornado_iostream_release(stream);
            loop_code(read);
            loop_code(write);
        }
        test_fail_alloc(0);
        close(ends[1]);
    }
}
