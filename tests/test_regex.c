/* Patterns: what Python finds, by each of the two machines; what is refused; time, memory and threads. The private
   part is here, too, as a second and static copy, so that each machine can be given any text. */
#define _GNU_SOURCE 1
#define TORNADO_STATIC
#include "impl.c"

#include "guard.h"
#include "runtime.h"

#include <pthread.h>

enum { GROUPS = TORNADO__RE_GROUPS_MAX + 2 };

/* How a text can be matched: by the public functions, by either machine, and a byte at a time as streams do. */
enum { PUBLIC, BACKTRACKER, WALK, WALK_FED, MACHINES };

static const char *const machine_names[] = {"public", "backtracker", "walk", "walk in parts"};

static int by_public(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, tornado_span *spans)
{
    size_t count = tornado_regex_groups(regex) + 1;
    return how == TORNADO__RE_MATCH_HERE  ? tornado_regex_match(regex, text, pos, spans, count)
           : how == TORNADO__RE_MATCH_ALL ? tornado_regex_fullmatch(regex, text, pos, spans, count)
                                          : tornado_regex_search(regex, text, pos, spans, count);
}

static int by_backtracker(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, ptrdiff_t *slots)
{
    tornado__re_machine m = {.regex = regex, .text = text.data, .len = text.len, .pos = pos, .how = how};
    m.slots = slots;
    m.slots_count = 2 * (tornado_regex_groups(regex) + 1);
    m.visited = calloc((regex->checks * (text.len - pos + 1) + 63) / 64 + 1, sizeof *m.visited);
    CHECK(m.visited != NULL);
    int found = tornado__re_backtrack(&m);
    free(m.visited);
    return found;
}

static int by_walk(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, ptrdiff_t *slots)
{
    return tornado__re_walk_text(regex, text, pos, how, slots, 2 * (tornado_regex_groups(regex) + 1));
}

static int by_walk_in_parts(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, ptrdiff_t *slots)
{
    tornado__re_walk walk;
    size_t count = 2 * (tornado_regex_groups(regex) + 1);
    CHECK(tornado__re_walk_init(&walk, regex, count, how));
    walk.place = pos;
    walk.before = pos ? (unsigned char)text.data[pos - 1] : -1;
    for (size_t len = pos; len < text.len; len++)
        tornado__re_walk_feed(&walk, text.data, len);
    tornado__re_walk_feed(&walk, text.data, text.len);
    if (!tornado__re_walk_over(&walk))
        tornado__re_walk_close(&walk, -1, false);
    memcpy(slots, walk.best, count * sizeof *slots);
    TORNADO_FREE(walk.memory);
    return walk.found;
}

static int match(int machine, const tornado_regex *regex, tornado_bytes text, size_t pos, int how,
                 tornado_span *spans)
{
    ptrdiff_t slots[2 * GROUPS];
    if (machine == PUBLIC)
        return by_public(regex, text, pos, how, spans);
    int found = machine == BACKTRACKER ? by_backtracker(regex, text, pos, how, slots)
                : machine == WALK      ? by_walk(regex, text, pos, how, slots)
                                       : by_walk_in_parts(regex, text, pos, how, slots);
    for (size_t i = 0; i <= tornado_regex_groups(regex); i++)
        spans[i] = (tornado_span){slots[2 * i], slots[2 * i + 1]};
    return found;
}

/* What was found, as the table has it. Lives until the next call. */
static const char *found_by(int machine, const tornado_regex *regex, tornado_bytes text, size_t pos, int how)
{
    static char out[GROUPS * 24];
    tornado_span spans[GROUPS], *span = spans;
    int found = match(machine, regex, text, pos, how, spans);
    char *at = out;
    if (found != 1)
        return found == 0 ? "-" : "memory is short";
    for (; span <= &spans[tornado_regex_groups(regex)]; span++)
        if (span->start == -1 && span->end == -1)
            at += sprintf(at, " .");
        else
            at += sprintf(at, " %td,%td", span->start, span->end);
    return out + 1;
}

static tornado_regex *regex_of(const char *pattern, unsigned flags)
{
    tornado_regex *regex = tornado_regex_new(pattern, flags);
    if (!regex)
        FAIL("%s: %s", pattern, tornado_last_error()->message);
    return regex;
}

static void check_found(const char *pattern, unsigned flags, const char *text, size_t len, int how,
                        const char *want)
{
    tornado_regex *regex = regex_of(pattern, flags);
    for (int machine = 0; machine < MACHINES; machine++)
        CHECK_STR(found_by(machine, regex, (tornado_bytes){text, len}, 0, how), want);
    tornado_regex_free(regex);
}

/* Whether what is found depends on where the text ends: "$" looks one byte further than what follows. */
static bool looks_at_end(const tornado_regex *regex)
{
    for (uint32_t i = 0; i < regex->code_count; i++)
        if (regex->code[i].op == TORNADO__RE_ASSERT && regex->code[i].other == TORNADO__RE_LAST_END)
            return true;
    return false;
}

/* ---- tables: see regex_table.py ---- */

typedef struct table {
    char *rest;
    const char *kind;
    char *fields[5];
    int fields_count, line;
    const char *pattern;
    tornado_regex *regex;
    int rows, wrong;
} table;

/* Cuts the next line that is not a remark into its fields. */
static bool table_next(table *t)
{
    while (t->rest && *t->rest) {
        char *line = strsep(&t->rest, "\n");
        t->line++;
        if (!*line || *line == '#')
            continue;
        t->kind = strsep(&line, "\t");
        for (t->fields_count = 0; line && t->fields_count < 5;)
            t->fields[t->fields_count++] = strsep(&line, "\t");
        return true;
    }
    return false;
}

/* Takes the %XX out of a field in place. */
static size_t unescaped(char *field)
{
    char *out = field;
    for (char *in = field; *in; in++) {
        unsigned byte;
        if (*in == '%' && sscanf(in + 1, "%2x", &byte) == 1) {
            *out++ = (char)byte;
            in += 2;
        } else {
            *out++ = *in;
        }
    }
    *out = '\0';
    return (size_t)(out - field);
}

static unsigned flags_of(const char *letters)
{
    static const char known[] = "imsxB";
    unsigned flags = 0;
    for (; *letters; letters++)
        flags |= *letters == '-' ? 0 : 1u << (strchr(known, *letters) - known);
    return flags;
}

static void wrong(table *t, const char *what, const char *got, const char *want)
{
    fprintf(stderr, "line %d: %s: %s: is %s, not %s\n", t->line, t->pattern, what, got, want);
    t->wrong++;
}

static void check_text(table *t)
{
    static const char *const hows[] = {"match", "fullmatch", "search"};
    CHECK_INT(t->fields_count, 5);
    size_t len = unescaped(t->fields[0]);
    tornado_bytes text = {guarded(t->fields[0], len), len};
    size_t pos = (size_t)atoi(t->fields[1]);
    for (int machine = 0; machine < MACHINES; machine++)
        for (int how = 0; how < 3; how++) {
            char what[64];
            if (machine == WALK_FED && looks_at_end(t->regex))
                continue;
            const char *got = found_by(machine, t->regex, text, pos, how);
            snprintf(what, sizeof what, "%s by %s", hows[how], machine_names[machine]);
            if (strcmp(got, t->fields[2 + how]) != 0)
                wrong(t, what, got, t->fields[2 + how]);
        }
}

/* Whether the last error says "at position N" and nothing behind it. */
static bool is_at(const char *position)
{
    char end[64];
    const char *message = tornado_last_error()->message;
    snprintf(end, sizeof end, " at position %s", position);
    return strlen(message) >= strlen(end) && strcmp(message + strlen(message) - strlen(end), end) == 0;
}

static void check_refused(table *t)
{
    if (t->regex) {
        wrong(t, "accepted", "a regex", "an error");
        return;
    }
    const tornado_error *error = tornado_last_error();
    const char *position = t->fields_count > 2 ? t->fields[2] : NULL;
    if (*t->kind == 'l' ? error->code != TORNADO_ERR_LIMIT : error->code != TORNADO_ERR_PARSE)
        wrong(t, "error", error->message, "of this kind");
    else if (*t->kind != 'l' && strcmp(position, "-") != 0 && !is_at(position))
        wrong(t, "error", error->message, position);
    else if (*t->kind == 'r' && !strstr(error->message, "linear"))
        wrong(t, "error", error->message, "that it is not linear");
}

/* Runs a table, of which only some kinds of lines. Random patterns may be too large for us. */
static void run_table(char *text, const char *kinds, bool random, int least)
{
    table t = {.rest = text};
    while (table_next(&t)) {
        if (*t.kind == 't' && strchr(kinds, 'p') && t.regex) {
            t.rows++;
            check_text(&t);
        }
        if (*t.kind == 't' || !strchr(kinds, *t.kind))
            continue;
        tornado_regex_free(t.regex);
        unescaped(t.fields[1]);
        t.pattern = t.fields[1];
        t.regex = tornado_regex_new(t.pattern, flags_of(t.fields[0]));
        if (*t.kind != 'p') {
            t.rows++;
            check_refused(&t);
        } else if (!t.regex && !(random && tornado_last_error()->code == TORNADO_ERR_LIMIT)) {
            wrong(&t, "refused", tornado_last_error()->message, "a regex");
        }
    }
    tornado_regex_free(t.regex);
    if (t.wrong || t.rows < least)
        FAIL("%d of %d are wrong", t.wrong, t.rows);
}

static char *table_text(void)
{
    FILE *file = fopen("tests/regex.txt", "r");
    if (!file)
        FAIL("tests/regex.txt cannot be read");
    static char text[1 << 18];
    size_t len = fread(text, 1, sizeof text - 1, file);
    CHECK(len > 0 && len < sizeof text - 1);
    fclose(file);
    return text;
}

TEST(regex_finds_what_python_finds)
{
    run_table(table_text(), "p", false, 1000);
}

TEST(regex_malformed_is_refused_where_python_refuses_it)
{
    run_table(table_text(), "e", false, 150);
}

TEST(regex_not_linear_is_refused_by_name)
{
    run_table(table_text(), "r", false, 20);
}

TEST(regex_too_large_is_refused_quickly)
{
    run_table(table_text(), "l", false, 10);
}

/* The output of regex_table.py. */
static const test_output *python(const char *args)
{
    TEST_NEED("python3");
    const test_output *out = test_run("python3 tests/regex_table.py %s", args);
    if (out->status == 77)
        SKIP("%s", out->text);
    return out;
}

TEST_LIMIT(regex_table_is_what_python_says, 30)
{
    const test_output *out = python("verify");
    CHECK_STR(out->text, "");
    CHECK_INT(out->status, 0);
}

TEST_LIMIT(regex_finds_what_python_finds_at_random, 60)
{
    const test_output *out = python(instrumented() ? "random 1 500" : "random 1 4000");
    CHECK_INT(out->status, 0);
    run_table(out->text, "pe", true, 500);
}

/* ---- what no table of Python's can say ---- */

TEST(regex_bytes_that_are_not_utf8_are_matched_by_nothing)
{
    static const struct {
        const char *pattern, *text, *want;
    } rows[] = {
        {".", "\xff", "-"},
        {"[^a]", "\xc3", "-"},
        {"\\W", "\x80", "-"},
        {"\\D", "\xc0\x80", "-"},              /* overlong */
        {".", "\xe0\x9f\xbf", "-"},            /* overlong */
        {".", "\xf0\x8f\xbf\xbf", "-"},        /* overlong */
        {".", "\xed\xa0\x80", "-"},            /* a surrogate */
        {"[^a]", "\xed\xbf\xbf", "-"},         /* a surrogate */
        {"[\\ud000-\\uf000]", "\xed\xa0\x80", "-"},
        {".", "\xf4\x90\x80\x80", "-"},        /* beyond U+10FFFF */
        {".", "\xed\x9f\xbf", "0,3"},
        {".", "\xee\x80\x80", "0,3"},
        {".", "\xf4\x8f\xbf\xbf", "0,4"},
        {".", "\xff" "a", "1,2"},
        {".", "\xc3\xa9", "0,2"},
        {"\xc3\xa9", "\xc3", "-"},
        {".*", "ab\xff" "cd", "0,2"},
        {"a.b", "a\xe2\x82" "b", "-"},
        {"\\bb", "\xff" "b", "1,2"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_found(rows[i].pattern, 0, rows[i].text, strlen(rows[i].text), TORNADO__RE_SEARCH, rows[i].want);
}

TEST(regex_search_does_not_begin_inside_a_character)
{
    check_found("", 0, "\xc3\xa9", 2, TORNADO__RE_SEARCH, "0,0");
    check_found("(?:)$", 0, "\xe2\x82\xac", 3, TORNADO__RE_SEARCH, "3,3");
    check_found("\\B", 0, "a\xe2\x82\xac", 4, TORNADO__RE_SEARCH, "4,4");
    check_found("\\B", TORNADO_REGEX_BYTES, "a\xe2\x82\xac", 4, TORNADO__RE_SEARCH, "2,2");
    check_found("^", 0, "\x80", 1, TORNADO__RE_MATCH_HERE, "0,0");
    check_found("^", 0, "\x80", 1, TORNADO__RE_SEARCH, "0,0"); /* what a match finds at the start, a search does */
}

TEST(regex_no_character_is_a_surrogate)
{
    tornado_regex *regex = tornado_regex_new("\\ud800", 0);
    if (!regex) { /* refused: as good */
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_PARSE));
        return;
    }
    tornado_regex_free(regex);
    check_found("\\ud800", 0, "", 0, TORNADO__RE_MATCH_ALL, "-");
    check_found("\\ud800", 0, "a\xed\xa0\x80", 4, TORNADO__RE_SEARCH, "-");
    check_found("x[\\ud800-\\udfff]", 0, "x", 1, TORNADO__RE_MATCH_ALL, "-");
    check_found("x[\\ud800-\\udfff]*", 0, "x\xed\xa0\x80", 4, TORNADO__RE_MATCH_HERE, "0,1");
}

TEST(regex_pattern_that_is_not_utf8_is_refused)
{
    static const struct {
        const char *pattern, *position;
    } rows[] = {{"\xff", "0"},
                {"ab\xc3", "2"},
                {"[\xed\xa0\x80]", "1"},
                {"\xc3\xa9\\\xff", "3"},
                {"a\xc0\x80", "1"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK(!tornado_regex_new(rows[i].pattern, 0));
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_PARSE);
        CHECK(is_at(rows[i].position));
        tornado_regex_free(regex_of(rows[i].pattern, TORNADO_REGEX_BYTES));
    }
}

/* Python has other characters in these; the comment of the section says that only ASCII is known. */
TEST(regex_unicode_is_not_switched_on)
{
    check_found("\\w", 0, "\xc3\xa9", 2, TORNADO__RE_SEARCH, "-");
    check_found("\\d", 0, "\xd9\xa3", 2, TORNADO__RE_SEARCH, "-");
    check_found("\\s", 0, "\xc2\xa0", 2, TORNADO__RE_SEARCH, "-");
    check_found("k", TORNADO_REGEX_IGNORECASE, "\xe2\x84\xaa", 3, TORNADO__RE_SEARCH, "-");
}

TEST(regex_null_text_is_the_empty_text)
{
    check_found("", 0, NULL, 0, TORNADO__RE_SEARCH, "0,0");
    check_found("a*$", 0, NULL, 0, TORNADO__RE_MATCH_ALL, "0,0");
    check_found("[a-z]|()", 0, NULL, 0, TORNADO__RE_MATCH_HERE, "0,0 0,0");
    check_found("abc", 0, NULL, 0, TORNADO__RE_SEARCH, "-");
    check_found("[^a]+", 0, NULL, 0, TORNADO__RE_SEARCH, "-");
}

TEST(regex_text_may_hold_nul_bytes)
{
    check_found("a.b", 0, "a\0b", 3, TORNADO__RE_MATCH_ALL, "0,3");
    check_found("b", 0, "\0\0b", 3, TORNADO__RE_SEARCH, "2,3");
}

TEST(regex_pos_beyond_the_end_is_the_end)
{
    tornado_regex *regex = regex_of("(a)?$", 0);
    tornado_span spans[2];
    CHECK_INT(tornado_regex_search(regex, tornado_bytes_of("aa"), 7, spans, 2), 1);
    CHECK_INT(spans[0].start, 2);
    CHECK_INT(spans[0].end, 2);
    CHECK_INT(spans[1].start, -1);
    tornado_regex_free(regex);
}

TEST(regex_spans_as_many_as_wanted)
{
    tornado_regex *regex = regex_of("(a)(x)?(b)", 0);
    tornado_bytes text = tornado_bytes_of("-ab");
    tornado_span spans[8];
    CHECK_INT(tornado_regex_search(regex, text, 0, NULL, 0), 1);
    CHECK_INT(tornado_regex_match(regex, text, 0, NULL, 0), 0);
    CHECK_INT(tornado_regex_fullmatch(regex, text, 1, NULL, 0), 1);
    for (size_t count = 1; count <= 7; count++) {
        static const tornado_span want[] = {{1, 3}, {1, 2}, {-1, -1}, {2, 3}, {-1, -1}, {-1, -1}, {-1, -1}};
        memset(spans, 99, sizeof spans);
        CHECK_INT(tornado_regex_search(regex, text, 0, spans, count), 1);
        CHECK_MEM(spans, count * sizeof *spans, want, count * sizeof *want);
        CHECK_MEM(&spans[count], 1, "c", 1);
    }
    memset(spans, 99, sizeof spans);
    CHECK_INT(tornado_regex_match(regex, text, 0, spans, 5), 0);
    for (int i = 0; i < 5; i++)
        CHECK(spans[i].start == -1 && spans[i].end == -1);
    tornado_regex_free(regex);
}

TEST(regex_groups_have_names_and_numbers)
{
    char pattern[] = "(?P<year>\\d+)(-)(?P<day_2>\\d+)|(?:x)(?P<\xc3\xa9>y)";
    tornado_regex *regex = regex_of(pattern, 0);
    memset(pattern, 'x', sizeof pattern); /* nothing of it is kept */
    CHECK_INT(tornado_regex_groups(regex), 4);
    CHECK_STR(tornado_regex_group_name(regex, 1), "year");
    CHECK(tornado_regex_group_name(regex, 2) == NULL);
    CHECK_STR(tornado_regex_group_name(regex, 3), "day_2");
    CHECK_STR(tornado_regex_group_name(regex, 4), "\xc3\xa9");
    CHECK(tornado_regex_group_name(regex, 0) == NULL);
    CHECK(tornado_regex_group_name(regex, 5) == NULL);
    CHECK_INT(tornado_regex_group_index(regex, "year"), 1);
    CHECK_INT(tornado_regex_group_index(regex, "day_2"), 3);
    CHECK_INT(tornado_regex_group_index(regex, "\xc3\xa9"), 4);
    CHECK_INT(tornado_regex_group_index(regex, "day"), 0);
    CHECK_INT(tornado_regex_group_index(regex, ""), 0);
    tornado_regex_free(regex);
    tornado_regex_free(NULL);
}

TEST(regex_is_cut_nowhere)
{
    static const char pattern[] = "(?P<ab>a[b-d\\x41]{2,3}?)|(?i:x)\\012*?(?#c)";
    for (size_t len = 0; len < sizeof pattern; len++)
        tornado_regex_free(tornado_regex_new(guarded_string(pattern, len), TORNADO_REGEX_VERBOSE));
}

/* ---- limits ---- */

/* A pattern of so many of each part. Lives until the call after the next. */
static char *pattern_of(const char *first, const char *middle, const char *last, int count)
{
    static char patterns[2][1 << 18];
    static int turn;
    char *pattern = patterns[turn = !turn];
    size_t first_len = strlen(first), last_len = strlen(last);
    char *out = pattern;
    CHECK((first_len + last_len) * (size_t)count + strlen(middle) < sizeof *patterns);
    for (int i = 0; i < count; i++, out += first_len)
        memcpy(out, first, first_len);
    out = stpcpy(out, middle);
    for (int i = 0; i < count; i++, out += last_len)
        memcpy(out, last, last_len);
    *out = '\0';
    return pattern;
}

static void check_limit(const char *pattern, bool fits)
{
    tornado_regex *regex = tornado_regex_new(pattern, 0);
    if (!regex)
        CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
    if (!regex == fits)
        FAIL("%.60s... is %s", pattern, fits ? tornado_last_error()->message : "accepted");
    tornado_regex_free(regex);
}

TEST(regex_pattern_of_64_KiB_is_the_longest)
{
    check_limit(pattern_of("(?#", pattern_of("c", "", "", 65536 - 4), ")", 1), true);
    check_limit(pattern_of("(?#", pattern_of("c", "", "", 65537 - 4), ")", 1), false);
}

TEST(regex_100_levels_of_groups_are_the_deepest)
{
    check_limit(pattern_of("(?:", "a", ")", 100), true);
    check_limit(pattern_of("(?:", "a", ")", 101), false);
    check_limit(pattern_of("(", "a", ")", 100), true);
    check_limit(pattern_of("(", "a", ")", 101), false);
    check_limit(pattern_of("(?i:", "a", "", 30000 / 4), false); /* before it is seen that nothing closes them */
}

TEST(regex_255_groups_are_the_most)
{
    check_limit(pattern_of("(a)", "", "", 255), true);
    check_limit(pattern_of("(a)", "", "", 256), false);
    check_found(pattern_of("(a?)", "", "", 255), 0, "", 0, TORNADO__RE_MATCH_ALL,
                pattern_of("0,0 ", "0,0", "", 255));
}

TEST(regex_counts_up_to_what_they_multiply_to)
{
    check_limit("a{10000}", true);
    check_limit("(?:a{100}){100}", true);
    check_limit("(?:(?:a{10}){10}){10}", true);
    check_limit("((a{0,10}){0,10}){0,10}", true);
    check_found("(a{3000})", 0, pattern_of("a", "", "", 3000), 3000, TORNADO__RE_MATCH_ALL, "0,3000 0,3000");
    check_found("a{2,3000}?b", 0, pattern_of("a", "b", "", 2999), 3000, TORNADO__RE_MATCH_ALL, "0,3000");
}

/* Patterns of little text that could cost much to compile: done or refused in a moment. */
TEST(regex_compiling_is_quick)
{
    static const char *const rows[] = {
        "(?:(?:(?:){20000}){20000}){20000}", "(?:(?:(?:|){20000}){20000}){20000}", "(?:(?:a{0}){20000}){20000}",
        "(?:(?:(?:^){20000}){20000}){20000}", "(?:(?:(?:){0,20000}){0,20000}){0,20000}",
        "((((((((((((((((((((a*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*",
        "((((((((((a?){2}){2}){2}){2}){2}){2}){2}){2}){2}){2}",
        "(?:(?:(?:[^a]{0,99}){0,99}){0,99}){0,99}",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        tornado_regex_free(tornado_regex_new(rows[i], 0));
    tornado_regex_free(tornado_regex_new(pattern_of("(?:", "", ")*", 100), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("(?:", "", ")*?", 100), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("(?:(?:)", "", "(?:))", 100), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("a||", "", "", 20000), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("[^a]|", "", "", 13000), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("(?:", pattern_of("(?:)", "", "", 15000), "){0,9000}", 1), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("(?:", pattern_of("(?:)", "", "", 15000), "){9000}", 1), 0));
}

/* ---- stack ---- */

static void *compile_deep(void *arg)
{
    static const char *const rows[][3] = {
        {"(", "a", ")"},         {"(?:", "a", ")*"},       {"(", "a*", ")*?"},        {"(?:", "", "|)"},
        {"(a|", "b", ")"},       {"(?:a|", "b", ")*"},     {"(", "a?", "){0,2}"},     {"(?:(?i:", "a", ")?)+"},
        {"(?:a?(b|", "", ")*)*"}, {"(?:(a)|", "b", ")"},   {"(?:(?:^|", "a", ")+?)*"}, {"(?:[^a]|", "a", ")?"},
        {"(?:a|b|", "c", "|d)"}, {"(?:\xc3\xa9?", "", ")*"},
    };
    (void)arg;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int count = 5; count <= 100; count += count < 20 ? 1 : 40) {
            tornado_regex *regex = tornado_regex_new(pattern_of(rows[i][0], rows[i][1], rows[i][2], count), 0);
            if (regex)
                tornado_regex_search(regex, tornado_bytes_of("aaaaabbbbbaaaac"), 0, NULL, 0);
            else
                CHECK_INT(tornado_last_error()->code, TORNADO_ERR_LIMIT);
            tornado_regex_free(regex);
        }
    tornado_regex_free(tornado_regex_new(pattern_of("a|", "", "", 6000), 0)); /* its first bytes are collected */
    tornado_regex_free(tornado_regex_new(pattern_of("[a-c]|", "b", "", 6000), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("a?", "b", "", 6000), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("(?:", "a", "|b)", 99), 0));
    tornado_regex_free(tornado_regex_new(pattern_of("[^a]?", "b", "", 900), 0));
    return NULL;
}

TEST_LIMIT(regex_deep_nesting_fits_the_stack_of_a_coroutine, 30)
{
    run(compile_deep, NULL);
    tornado_ioloop_close(tornado_ioloop_current(), false);
    tornado_ioloop_clear_current();
}

/* ---- time ---- */

static char long_text[1 << 17];

/* CPU seconds of this thread. */
static double cpu_seconds(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The least time that one of some matches takes, each of them repeated for at least 2 ms. */
static double time_of(int machine, const tornado_regex *regex, size_t len, int how)
{
    double least = 1e9;
    for (int i = 0; i < 3; i++) {
        double begin = cpu_seconds(), spent;
        int rounds = 0;
        do {
            tornado_span spans[GROUPS];
            match(machine, regex, (tornado_bytes){long_text, len}, 0, how, spans);
            rounds++;
            spent = cpu_seconds() - begin;
        } while (spent < 2e-3);
        if (spent / rounds < least)
            least = spent / rounds;
    }
    return least;
}

/* What would take Python longer than anybody waits, or at least the square of the text's length. */
static const struct {
    const char *pattern, *text; /* repeated */
    const char *end;
} hostile[] = {
    {"(a*)*b", "a", ""},
    {"(a|aa)+$", "a", "b"},
    {"(.*)*x", "a", ""},
    {"(.*)(.*)(.*)x", "a", ""},
    {"a*a*a*a*b", "a", ""},
    {"(x+x+)+y", "x", ""},
    {"((a{0,10}){0,10}){0,10}b", "a", ""},
    {"(a+)+$", "a", "b"},
    {"([a-z]+)*=", "a", ""},
    {"(a|b|ab)*c", "ab", ""},
    {"^(([a-z])+.)+[A-Z]([a-z])+$", "a", ""},
    {"(?:a?){20}a{20}b", "a", ""},
    {"[a-z]+y", "a", ""},
    {"[a-z]+\\d+x", "a1", ""},
    {".*.*=.*", "a", ""},
    {"\\s+$", " ", "x"},
    {"\\w+@\\w+\\.com", "a", ""},
    {"(?:\\w|\\w\\w|[a-z]*)+!", "a", ""},
    {"(\\w*?)*?!", "a", ""},
    {"(?:\xc3\xa9|.)*x", "\xc3\xa9", ""},
    {"ab*c", "ab", ""},
    {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "a", ""},
    {"(a*b?)*$", "a", "c"},
    {"\"(?:[^\"\\\\]|\\\\.)*\"", "\"\\", ""},
    {"/\\*(.|\n)*?\\*/", "/*", ""},
};

/* Eight times the text may take 20 times as long, which is far from the 64 of a square. What a smaller text takes
   is measured again when it does not look so: something else may have run meanwhile. */
static void check_linear(int machine)
{
    size_t small = instrumented() ? 500 : 2000;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        tornado_regex *regex = regex_of(hostile[i].pattern, 0);
        size_t unit = strlen(hostile[i].text), end = strlen(hostile[i].end);
        for (int how = 0; how < 3; how++) {
            double times[2] = {1e9, 1e9};
            int rounds = 0;
            do {
                for (int large = 0; large < 2; large++) {
                    size_t len = small * (large ? 8 : 1);
                    for (size_t at = 0; at < len; at++)
                        long_text[at] = hostile[i].text[at % unit];
                    memcpy(long_text + len, hostile[i].end, end);
                    double time = time_of(machine, regex, len + end, how);
                    times[large] = time < times[large] ? time : times[large];
                }
            } while (times[1] > 20 * times[0] && ++rounds < 5);
            if (times[1] > 20 * times[0])
                FAIL("%s, how %d: %zu bytes take %.6f s, 8 times as many %.6f s", hostile[i].pattern, how, small,
                     times[0], times[1]);
        }
        tornado_regex_free(regex);
    }
}

TEST_LIMIT(regex_backtracker_is_linear_in_the_text, 60)
{
    check_linear(BACKTRACKER);
}

TEST_LIMIT(regex_walk_is_linear_in_the_text, 60)
{
    check_linear(WALK);
}

/* In one go, through the public functions, whichever machine they choose. */
TEST_LIMIT(regex_hostile_patterns_end, 60)
{
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        tornado_regex *regex = regex_of(hostile[i].pattern, 0);
        for (size_t at = 0; at < 20000; at++)
            long_text[at] = hostile[i].text[at % strlen(hostile[i].text)];
        for (int how = 0; how < 3; how++) {
            tornado_span spans[GROUPS], walked[GROUPS];
            tornado_bytes text = {long_text, 20000};
            CHECK(match(PUBLIC, regex, text, 0, how, spans) >= 0);
            text.len = 2000;
            int found = match(PUBLIC, regex, text, 0, how, spans);
            CHECK_INT(match(WALK, regex, text, 0, how, walked), found);
            size_t size = found ? sizeof *spans * (regex->groups + 1) : 0;
            CHECK_MEM(walked, size, spans, size);
        }
        tornado_regex_free(regex);
    }
}

/* ---- memory ---- */

static void *compile_pattern(void *pattern)
{
    if (pattern)
        tornado_regex_free(tornado_regex_new(pattern, 0));
    return NULL;
}

/* How many bytes of its stack a thread touches that compiles a pattern; NULL: that does nothing. */
static size_t stack_used(char *pattern)
{
    static char stack[512 * 1024] __attribute__((aligned(4096)));
    pthread_t thread;
    pthread_attr_t attributes;
    memset(stack, 0x5a, sizeof stack);
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstack(&attributes, stack, sizeof stack) == 0);
    CHECK(pthread_create(&thread, &attributes, compile_pattern, pattern) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    pthread_attr_destroy(&attributes);
    size_t untouched = 0;
    while (untouched < sizeof stack && stack[untouched] == 0x5a)
        untouched++;
    return sizeof stack - untouched;
}

/* Stacks of coroutines may have 64 KiB, in which a handler stands before it compiles anything. */
TEST(regex_compiling_needs_little_stack)
{
    static char deep[5000], wide[5000], counted[5000];
    strcpy(deep, pattern_of("((?:", "a", "|b)*?|[^c])*", 50));
    strcpy(wide, pattern_of("(?:[^a]?", "", ")?", 99));
    strcpy(counted, pattern_of("(?:a?", "", "){0,2}", 99));
    char *const rows[] = {deep, wide, counted, "(((((((((a|b|c)|d)|e)|f)|g)|h)|i)|j)|k)*l",
                          "a||||||||||||||||||||||||||||||||||||||||||||||||||||||||b*", "(((((((((", "[\\w-z]"};
    if (instrumented())
        SKIP("frames have another size, and the stack of a thread that has ended may not be read");
    size_t idle = stack_used(NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t used = stack_used(rows[i]) - idle;
        if (used > 16 * 1024)
            FAIL("%.60s takes %zu bytes of stack", rows[i], used);
    }
}

/* With 17 groups: more than fits the stack. */
static const char many_groups[] =
    "(a)(b)?(c)?(d)?(e)?(f)?(g)?(h)?(i)?(j)?(k)?(l)?(m)?(n)?(o)?(p)?((?P<last>x)|a)*b";

static void compile_and_match(void)
{
    tornado_span spans[GROUPS];
    tornado_regex *regex = tornado_regex_new(many_groups, 0);
    if (!regex) {
        CHECK(is_error(tornado_last_error(), TORNADO_ERR_NOMEM));
        return;
    }
    memset(long_text, 'a', sizeof long_text);
    long_text[1000] = long_text[100000] = 'b';
    for (size_t len = 1001; len <= 100001; len += 99000) {
        size_t pos = len == 1001 ? 0 : 1001;
        int found = tornado_regex_fullmatch(regex, (tornado_bytes){long_text, len}, pos, spans, 19);
        CHECK(found == 1 || is_error(tornado_last_error(), TORNADO_ERR_NOMEM));
        CHECK_INT(found, found < 0 ? -1 : 1);
        CHECK_INT(spans[0].end, found < 0 ? -1 : (ptrdiff_t)len);
        CHECK_INT(spans[17].start, found < 0 ? -1 : (ptrdiff_t)len - 2);
    }
    tornado_regex_free(regex);
}

TEST_LIMIT(regex_shortage_of_memory, 30)
{
    each_shortage(compile_and_match);
}

static void compile_much(void)
{
    static const char *const rows[] = {"[^\\x00-\xc3\xa9]+(?P<name>[a-c-e\\d]*)", "(?i)(a|[b-d]|\\w){2,5}?",
                                       "(((a*)*)*)*x"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        tornado_regex *regex = tornado_regex_new(rows[i], 0);
        CHECK(regex || is_error(tornado_last_error(), TORNADO_ERR_NOMEM));
        tornado_regex_free(regex);
    }
}

TEST(regex_compiling_in_shortage_of_memory)
{
    each_shortage(compile_much);
}

static void match_short(void)
{
    static tornado_regex *regex;
    tornado_span spans[3];
    long allocs = test_allocs();
    if (!regex)
        regex = regex_of("/story/([0-9]+)/(edit|show)?", TORNADO_REGEX_BYTES);
    allocs = test_allocs();
    CHECK_INT(tornado_regex_fullmatch(regex, tornado_bytes_of("/story/12345/edit"), 0, spans, 3), 1);
    CHECK_INT(tornado_regex_search(regex, tornado_bytes_of("http://a/story/1/b"), 0, spans, 3), 1);
    CHECK_INT(test_allocs() - allocs, 0);
}

/* Where there is only one way nothing is noted, however long the text is. */
TEST(regex_one_way_needs_no_memory)
{
    size_t len = 1 << 20;
    char *text = malloc(len);
    tornado_span spans[3];
    tornado_regex *regex = regex_of("/([a-z]+)/([^/]*)/edit", TORNADO_REGEX_BYTES);
    memset(text, 'a', len);
    text[0] = text[len / 2] = '/';
    memcpy(text + len - 5, "/edit", 5);
    long allocs = test_allocs();
    CHECK_INT(tornado_regex_fullmatch(regex, (tornado_bytes){text, len}, 0, spans, 3), 1);
    CHECK_INT(spans[1].end, len / 2);
    CHECK_INT(spans[2].end, len - 5);
    CHECK_INT(tornado_regex_fullmatch(regex, (tornado_bytes){text, len - 1}, 0, spans, 3), 0);
    CHECK_INT(test_allocs() - allocs, 0);
    tornado_regex_free(regex);
    free(text);
}

TEST(regex_short_texts_need_no_memory)
{
    TEST_MAY_LEAK(); /* the regex */
    match_short();
    match_short();
}

/* ---- threads ---- */

static void *match_often(void *arg)
{
    const tornado_regex *regex = arg;
    char memory[2048];
    tornado_bytes text = {memory, sizeof memory};
    memset(memory, 'a', sizeof memory);
    for (size_t i = 0; i < 300; i++) {
        tornado_span spans[3];
        size_t at = i * 5 % (sizeof memory - 2);
        memory[at] = 'b';
        memory[at + 1] = 'c';
        CHECK_INT(match(i % 3 ? PUBLIC : WALK, regex, text, 0, TORNADO__RE_SEARCH, spans), 1);
        CHECK_INT(spans[0].start, 0);
        CHECK_INT(spans[0].end, at + 2);
        CHECK_INT(spans[2].start, at + 1);
        memory[at] = memory[at + 1] = 'a';
        CHECK_INT(match(PUBLIC, regex, text, 0, TORNADO__RE_SEARCH, spans), 0);
    }
    return NULL;
}

TEST_LIMIT(regex_of_several_threads_at_once, 30)
{
    pthread_t threads[4];
    tornado_regex *regex = regex_of("(a|aa)*b(c)", 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, match_often, regex) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    tornado_regex_free(regex);
}
