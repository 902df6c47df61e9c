/* Patterns: how long one match takes, and how much longer one more byte of text makes it, beside PCRE2 with and
   without its compiler (-DBENCH_PCRE2) and RE2 (-DBENCH_RE2, with regex_re2.cc). All take text as bytes and fill
   the spans of all groups; for the hostile patterns, that of the whole match only.

     regex SECONDS   measures: a line "case engine ns ns-per-byte" for each, separated by tabs; each figure is the
                     least of several of which each takes SECONDS. "-": there is none; "gives up": the engine did
     regex list      the cases, for other engines: "case search pattern head unit tail count start end", the last
                     two of what is found, or -1

   A text is its head, so many units, its tail. What another engine finds must be what we find. */
#define TORNADO_STATIC
#define TORNADO_IMPLEMENTATION
#include "tornado.h"

#include <time.h>

#ifdef BENCH_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

enum { LONG = 20000, GROUPS = 8, GAVE_UP = -2 };

static const struct bench_case {
    const char *name;
    bool search; /* or else a match of the whole text */
    const char *pattern, *head, *unit, *tail;
    int count;   /* units; the slope is taken from LONG and half of it */
} cases[] = {
    {"static", false, "/about/company", "/about/company", "", "", 0},
    {"static, another", false, "/about/company", "/about/customers", "", "", 0},
    {"number", false, "/story/([0-9]+)/edit", "/story/", "7", "/edit", 5},
    {"number, at its end", false, "/story/([0-9]+)/edit", "/story/", "7", "/show", 5},
    {"two segments", false, "/([^/]+)/([^/]+)", "/story/", "a", "", 10},
    {"anything", false, "/static/(.*)", "/static/", "a", ".css", 10},
    {"anything twice", false, "/(.*)/(.*)", "/story/", "a", "", 10},
    {"names, optional", false, "/(?P<year>\\d{4})/(?P<month>\\d{1,2})(?:/(?P<slug>[\\w-]+))?", "/2016/07/", "a", "",
     10},
    {"one of many", false, "/(?:index|about|contact|search|login|logout)\\.(html|json)", "/logout.json", "", "", 0},
    {"blank line", true, "\\r?\\n\\r?\\n", "GET / HTTP/1.1\r\n", "Name: value\r\n", "\r\n", 8},
    {"word at the end", true, "[a-z]+ing\\b", "", "the word is ", "ending", 8},
    {"(a*)*[bc]", true, "(a*)*[bc]", "", "a", "", LONG},
    {"(a|aa)+$", true, "(a|aa)+$", "", "a", "b", LONG},
    {"(x+x+)+[yz]", true, "(x+x+)+[yz]", "", "x", "", LONG},
    {"(.*)*[xyz]", false, "(.*)*[xyz]", "", "a", "", LONG},
    {"a*a*a*a*[bc]", false, "a*a*a*a*[bc]", "", "a", "", LONG},
    {"[a-z]+[=:]", true, "[a-z]+[=:]", "", "a", "", LONG},
};

enum { CASES = sizeof cases / sizeof cases[0] };

typedef struct subject {
    const struct bench_case *of;
    char *text;
    size_t len;
} subject;

/* An engine: a compiled pattern, or NULL; 1, 0 or GAVE_UP, and the spans; and the end of it. */
typedef struct engine {
    const char *name;
    void *(*compile)(const char *pattern, bool search);
    int (*match)(void *compiled, const char *text, size_t len, bool search, ptrdiff_t (*spans)[2], size_t count);
    void (*free)(void *compiled);
} engine;

static void *ours_compile(const char *pattern, bool search)
{
    (void)search;
    return tornado_regex_new(pattern, TORNADO_REGEX_BYTES);
}

static int ours_match(void *compiled, const char *text, size_t len, bool search, ptrdiff_t (*spans)[2],
                      size_t count)
{
    tornado_bytes bytes = {text, len};
    tornado_span *out = (tornado_span *)spans;
    return search ? tornado_regex_search(compiled, bytes, 0, out, count)
                  : tornado_regex_fullmatch(compiled, bytes, 0, out, count);
}

static void ours_free(void *compiled)
{
    tornado_regex_free(compiled);
}

#ifdef BENCH_PCRE2
typedef struct pcre2 {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
} pcre2;

static void *pcre2_new(const char *pattern, bool search)
{
    int error;
    PCRE2_SIZE offset;
    pcre2 *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                            search ? 0 : PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &offset, NULL);
    p->data = p->code ? pcre2_match_data_create_from_pattern(p->code, NULL) : NULL;
    p->context = pcre2_match_context_create(NULL);
    return p->data && p->context ? p : NULL;
}

static void *pcre2_new_jit(const char *pattern, bool search)
{
    pcre2 *p = pcre2_new(pattern, search);
    if (!p || pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) != 0)
        return NULL;
    p->stack = pcre2_jit_stack_create(32768, 16 << 20, NULL);
    pcre2_jit_stack_assign(p->context, NULL, p->stack);
    return p;
}

static int pcre2_run(void *compiled, const char *text, size_t len, bool search, ptrdiff_t (*spans)[2],
                     size_t count)
{
    pcre2 *p = compiled;
    int found = pcre2_match(p->code, (PCRE2_SPTR)text, len, 0, 0, p->data, p->context);
    PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(p->data);
    (void)search;
    for (size_t i = 0; i < count; i++)
        for (int end = 0; end < 2; end++)
            spans[i][end] = found > (int)i && offsets[2 * i] != PCRE2_UNSET ? (ptrdiff_t)offsets[2 * i + end] : -1;
    return found > 0 ? 1 : found == PCRE2_ERROR_NOMATCH ? 0 : GAVE_UP;
}

static void pcre2_end(void *compiled)
{
    pcre2 *p = compiled;
    pcre2_jit_stack_free(p->stack);
    pcre2_match_context_free(p->context);
    pcre2_match_data_free(p->data);
    pcre2_code_free(p->code);
    free(p);
}
#endif

#ifdef BENCH_RE2
void *bench_re2_compile(const char *pattern, bool search);
int bench_re2_match(void *compiled, const char *text, size_t len, bool search, ptrdiff_t (*spans)[2],
                    size_t count);
void bench_re2_free(void *compiled);
#endif

static const engine engines[] = {
    {"tornado.h", ours_compile, ours_match, ours_free},
#ifdef BENCH_PCRE2
    {"PCRE2", pcre2_new, pcre2_run, pcre2_end},
    {"PCRE2, JIT", pcre2_new_jit, pcre2_run, pcre2_end},
#endif
#ifdef BENCH_RE2
    {"RE2", bench_re2_compile, bench_re2_match, bench_re2_free},
#endif
};

static subject subject_of(const struct bench_case *of, int count)
{
    size_t head = strlen(of->head), unit = strlen(of->unit), tail = strlen(of->tail);
    subject s = {of, malloc(head + unit * (size_t)count + tail + 1), head};
    if (!s.text)
        abort();
    memcpy(s.text, of->head, head);
    for (int i = 0; i < count; i++, s.len += unit)
        memcpy(s.text + s.len, of->unit, unit);
    memcpy(s.text + s.len, of->tail, tail + 1);
    s.len += tail;
    return s;
}

static double cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* Nanoseconds of one match, or GAVE_UP. */
static double time_of(const engine *e, void *compiled, const subject *s, double seconds)
{
    ptrdiff_t spans[GROUPS][2];
    size_t count = s->of->count == LONG ? 1 : GROUPS / 2;
    double best = 1e300;
    long rounds = 1;
    for (int i = 0; i < 5;) {
        double begin = cpu_ns();
        for (long round = 0; round < rounds; round++)
            if (e->match(compiled, s->text, s->len, s->of->search, spans, count) == GAVE_UP)
                return GAVE_UP;
        double spent = cpu_ns() - begin;
        if (spent < seconds * 1e9 && rounds < 1L << 40) {
            rounds = spent > seconds * 1e8 ? (long)((double)rounds * seconds * 1.1e9 / spent) + 1 : rounds * 10;
            continue;
        }
        best = spent / (double)rounds < best ? spent / (double)rounds : best;
        i++;
    }
    return best;
}

/* Whether the engine finds what ours does. */
static bool agrees(const engine *e, void *compiled, const subject *s)
{
    ptrdiff_t spans[2][GROUPS][2];
    void *ours = ours_compile(s->of->pattern, s->of->search);
    if (!ours)
        abort();
    int want = ours_match(ours, s->text, s->len, s->of->search, spans[0], GROUPS / 2);
    int got = e->match(compiled, s->text, s->len, s->of->search, spans[1], GROUPS / 2);
    ours_free(ours);
    return got == GAVE_UP || (got == want && (!got || memcmp(spans[0], spans[1], sizeof spans[0] / 2) == 0));
}

static void print_figure(double value)
{
    if (value == GAVE_UP)
        printf("\tgives up");
    else
        printf("\t%.3f", value);
}

static void measure(const struct bench_case *of, const engine *e, double seconds)
{
    subject s = subject_of(of, of->count), half = subject_of(of, LONG / 2), whole = subject_of(of, LONG);
    void *compiled = e->compile(of->pattern, of->search);
    printf("%s\t%s", of->name, e->name);
    if (!compiled || !agrees(e, compiled, &s)) {
        printf("\t%s\t-\n", compiled ? "differs" : "-");
        return;
    }
    double ns = time_of(e, compiled, &s, seconds);
    print_figure(ns);
    if (ns == GAVE_UP || !of->unit[0]) {
        printf("\t-\n");
    } else {
        double small = time_of(e, compiled, &half, seconds), large = time_of(e, compiled, &whole, seconds);
        print_figure(small == GAVE_UP || large == GAVE_UP ? GAVE_UP
                                                          : (large - small) / (double)(whole.len - half.len));
        printf("\n");
    }
    e->free(compiled);
    free(s.text);
    free(half.text);
    free(whole.text);
}

/* A text as it can stand between tabs. */
static void print_escaped(const char *text)
{
    putchar('\t');
    for (; *text; text++)
        if (*text < ' ' || *text == '\\')
            printf("\\x%02x", (unsigned)*text);
        else
            putchar(*text);
}

static void list(const struct bench_case *of)
{
    ptrdiff_t spans[1][2];
    subject s = subject_of(of, of->count);
    void *ours = ours_compile(of->pattern, of->search);
    if (!ours)
        abort();
    ours_match(ours, s.text, s.len, of->search, spans, 1);
    printf("%s\t%d", of->name, of->search);
    print_escaped(of->pattern);
    print_escaped(of->head);
    print_escaped(of->unit);
    print_escaped(of->tail);
    printf("\t%d\t%td\t%td\n", of->count, spans[0][0], spans[0][1]);
    ours_free(ours);
    free(s.text);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SECONDS | list\n", argv[0]);
        return 2;
    }
    bool listing = strcmp(argv[1], "list") == 0;
    for (size_t i = 0; i < CASES; i++) {
        if (listing)
            list(&cases[i]);
        for (size_t j = 0; !listing && j < sizeof engines / sizeof engines[0]; j++)
            measure(&cases[i], &engines[j], atof(argv[1]));
    }
    return 0;
}
