/* Patterns: a byte of flags, one for where to begin, the pattern up to a NUL, the text. Both machines must find the
   same, at once and in parts; what a search finds must be the first place where a match is; and it has to end. */
#include "fuzz.h"

enum { SLOTS = 2 * (TORNADO__RE_GROUPS_MAX + 1), PATTERN_MAX = 600, TEXT_MAX = 1000, SECONDS_MAX = 10 };

static void check_spans(const ptrdiff_t *slots, size_t count, size_t pos, size_t len)
{
    MUST(slots[0] >= (ptrdiff_t)pos && slots[0] <= slots[1] && slots[1] <= (ptrdiff_t)len);
    for (size_t i = 2; i < count; i += 2)
        MUST((slots[i] == -1 && slots[i + 1] == -1) ||
             (slots[0] <= slots[i] && slots[i] <= slots[i + 1] && slots[i + 1] <= slots[1]));
}

static int by_function(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, ptrdiff_t *slots)
{
    tornado_span spans[SLOTS / 2];
    size_t count = tornado_regex_groups(regex) + 1;
    int found = how == TORNADO__RE_MATCH_HERE  ? tornado_regex_match(regex, text, pos, spans, count)
                : how == TORNADO__RE_MATCH_ALL ? tornado_regex_fullmatch(regex, text, pos, spans, count)
                                               : tornado_regex_search(regex, text, pos, spans, count);
    for (size_t i = 0; i < count; i++) {
        slots[2 * i] = spans[i].start;
        slots[2 * i + 1] = spans[i].end;
        MUST(found == 1 || (spans[i].start == -1 && spans[i].end == -1));
    }
    return found;
}

/* As streams do it, in parts of a length; where a match ends must not depend on it. */
static int by_parts(const tornado_regex *regex, tornado_bytes text, size_t pos, int how, size_t part,
                    ptrdiff_t *slots)
{
    tornado__re_walk walk;
    size_t count = 2 * (tornado_regex_groups(regex) + 1);
    MUST(tornado__re_walk_init(&walk, regex, count, how));
    walk.place = pos;
    walk.before = pos ? (unsigned char)text.data[pos - 1] : -1;
    for (size_t len = pos; len < text.len; len += part)
        tornado__re_walk_feed(&walk, text.data, len);
    tornado__re_walk_feed(&walk, text.data, text.len);
    if (!tornado__re_walk_over(&walk))
        tornado__re_walk_close(&walk, -1, false);
    memcpy(slots, walk.best, count * sizeof *slots);
    TORNADO_FREE(walk.memory);
    return walk.found;
}

/* Whether "$" is in it, which looks one byte ahead of what follows. */
static bool looks_at_end(const tornado_regex *regex)
{
    for (uint32_t i = 0; i < regex->code_count; i++)
        if (regex->code[i].op == TORNADO__RE_ASSERT && regex->code[i].other == TORNADO__RE_LAST_END)
            return true;
    return false;
}

/* What a search found is what a match finds there, and none finds anything before. */
static void check_first(const tornado_regex *regex, tornado_bytes text, size_t pos, int found,
                        const ptrdiff_t *slots)
{
    ptrdiff_t again[SLOTS];
    size_t row = 2 * (tornado_regex_groups(regex) + 1) * sizeof *slots;
    for (size_t at = pos; at <= text.len; at++) {
        if (at > pos && at < text.len && !regex->bytes && (text.data[at] & 0xc0) == 0x80)
            continue;
        int here = by_function(regex, text, at, TORNADO__RE_MATCH_HERE, again);
        MUST(here == (found == 1 && (ptrdiff_t)at == slots[0]));
        if (here) {
            MUST(memcmp(again, slots, row) == 0);
            return;
        }
    }
    MUST(found == 0);
}

static void check_match(const tornado_regex *regex, tornado_bytes text, size_t pos)
{
    ptrdiff_t slots[3][SLOTS], other[SLOTS];
    size_t count = 2 * (tornado_regex_groups(regex) + 1), row = count * sizeof **slots;
    int found[3];
    bool parts = !looks_at_end(regex);
    for (int how = 0; how < 3; how++) {
        found[how] = by_function(regex, text, pos, how, slots[how]);
        MUST(found[how] == 0 || found[how] == 1);
        if (found[how])
            check_spans(slots[how], count, pos, text.len);
        MUST(tornado__re_walk_text(regex, text, pos, how, other, count) == found[how]);
        MUST(!found[how] || memcmp(other, slots[how], row) == 0);
        for (size_t part = 1; parts && part <= 7; part += 6) {
            MUST(by_parts(regex, text, pos, how, part, other) == found[how]);
            MUST(!found[how] || memcmp(other, slots[how], row) == 0);
        }
    }
    MUST(!found[TORNADO__RE_MATCH_ALL] || (found[TORNADO__RE_MATCH_HERE] && slots[TORNADO__RE_MATCH_ALL][0] ==
                                                                                (ptrdiff_t)pos));
    MUST(!found[TORNADO__RE_MATCH_HERE] || found[TORNADO__RE_SEARCH]);
    if (text.len <= 64)
        check_first(regex, text, pos, found[TORNADO__RE_SEARCH], slots[TORNADO__RE_SEARCH]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    clock_t begin = clock();
    if (size < 2)
        return 0;
    unsigned flags = data[0] & 31, start = data[1];
    char *pattern = fuzz_string(data + 2, size - 2 < PATTERN_MAX ? size - 2 : PATTERN_MAX);
    size_t used = 2 + strlen(pattern);
    used += used < size && data[used] == 0;
    size_t len = size - used < TEXT_MAX ? size - used : TEXT_MAX;
    char *text = fuzz_copy(data + used, len);
    tornado_regex *regex = tornado_regex_new(pattern, flags);
    if (regex) {
        size_t pos = len ? start % (len + 1) : 0;
        for (size_t i = 1; i <= tornado_regex_groups(regex); i++) {
            const char *name = tornado_regex_group_name(regex, i);
            MUST(!name || (strstr(pattern, name) && tornado_regex_group_index(regex, name) == i));
        }
        check_match(regex, (tornado_bytes){text, len}, pos);
        if (pos)
            check_match(regex, (tornado_bytes){text, len}, 0);
        tornado_regex_free(regex);
    } else {
        const tornado_error *error = tornado_last_error();
        const char *at = strstr(error->message, " at position ");
        MUST(error->code == TORNADO_ERR_LIMIT || (error->code == TORNADO_ERR_PARSE && at));
        MUST(error->code == TORNADO_ERR_LIMIT || strtoul(at + 13, NULL, 10) <= strlen(pattern));
    }
    MUST(clock() - begin < SECONDS_MAX * CLOCKS_PER_SEC);
    free(pattern);
    free(text);
    MUST(fuzz_live == 0);
    return 0;
}
