/* The three streams: what is printed where, and that no message can pass for another. */
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <termios.h>
#include <time.h>
#include <wchar.h>

/*----------------------------------------------------------------------------
 * A file that lines go to.
 *----------------------------------------------------------------------------*/

static int sink_new(void)
{
    FILE *file = tmpfile();
    CHECK(file != NULL);
    return fileno(file);
}

/* All that was written to the sink; begins anew. Lives until the next call. */
static const char *sink_take(int sink)
{
    static char text[1 << 20];
    ssize_t len = pread(sink, text, sizeof text - 1, 0);
    CHECK(len >= 0);
    text[len] = '\0';
    CHECK_INT(strlen(text), len);
    CHECK(ftruncate(sink, 0) == 0 && lseek(sink, 0, SEEK_SET) == 0);
    return text;
}

/* Everything goes to a new sink from now on. */
static int sink_log(void)
{
    int sink = sink_new();
    tornado_enable_pretty_logging(&(tornado_log_options){.level = TORNADO_LOG_DEBUG, .fd = sink});
    return sink;
}

/* Makes standard error another file, and returns what it was, for a second call to bring back. */
static int swap_stderr(int with)
{
    int before = dup(2);
    CHECK(before >= 0 && dup2(with, 2) == 2);
    return before;
}

/* "[W 261121 06:54:38 test_log:12] " */
static const char *prefix_at(char letter, time_t when, int line)
{
    static char text[64];
    char date[32];
    struct tm local;
    CHECK(localtime_r(&when, &local) != NULL);
    CHECK(strftime(date, sizeof date, "%y%m%d %H:%M:%S", &local) > 0);
    snprintf(text, sizeof text, "[%c %s test_log:%d] ", letter, date, line);
    return text;
}

/* What stands behind the prefix of the sink's one line, its newline removed. */
static const char *sink_message(int sink)
{
    char *text = (char *)(uintptr_t)sink_take(sink);
    char *message = strstr(text, "] ");
    CHECK(message != NULL);
    CHECK(text[0] == '[' && text[strlen(text) - 1] == '\n');
    text[strlen(text) - 1] = '\0';
    return message + 2;
}

/*----------------------------------------------------------------------------
 * Lines.
 *----------------------------------------------------------------------------*/

static const struct {
    tornado_log_level level;
    char letter;
    int color; /* 0: whatever it is */
} kinds[] = {
    {TORNADO_LOG_DEBUG, 'D', 4}, {TORNADO_LOG_INFO, 'I', 2},     {TORNADO_LOG_WARNING, 'W', 3},
    {TORNADO_LOG_ERROR, 'E', 1}, {TORNADO_LOG_CRITICAL, 'C', 0},
};

#define KINDS (sizeof kinds / sizeof kinds[0])

TEST(log_line_has_level_date_time_module_and_line)
{
    static const char *const zones[] = {"UTC0", "XYZ-5:30", "ABC11"};
    int sink = sink_log();
    for (size_t i = 0; i < KINDS * 3; i++) {
        char letter = kinds[i % KINDS].letter;
        CHECK(setenv("TZ", zones[i / KINDS], 1) == 0);
        tzset();
        time_t before = time(NULL);
        int line = __LINE__ + 1;
        tornado_gen_log(kinds[i % KINDS].level, "cup %d of %s", 7, "tea");
        time_t after = time(NULL);
        const char *got = sink_take(sink);
        bool found = false;
        for (time_t when = before; when <= after + 1 && !found; when++) {
            const char *prefix = prefix_at(letter, when, line);
            found = strncmp(got, prefix, strlen(prefix)) == 0 && !strcmp(got + strlen(prefix), "cup 7 of tea\n");
        }
        if (!found)
            FAIL("the line is %s", got);
    }
}

TEST(log_module_is_the_file_without_directory_and_suffix)
{
    static const char *const names[][2] = {
        {"hello.c", "hello"},         {"src/hello.c", "hello"},     {"/a.b/c", "c"},
        {"../x/c.d.e", "c.d"},        {"/home/.hidden", ".hidden"}, {"plain", "plain"},
        {"C:/src/main.cpp", "main"},
    };
    int sink = sink_log();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char want[64];
        tornado_log_write(TORNADO_LOG_APP, TORNADO_LOG_INFO, names[i][0], 12, "m");
        const char *got = sink_take(sink);
        snprintf(want, sizeof want, " %s:12] m\n", names[i][1]);
        CHECK(strlen(got) > 18);
        CHECK_STR(got + 18, want);
    }
}

TEST(log_module_of_any_length_leaves_a_whole_line)
{
    static char name[5000];
    int sink = sink_log();
    for (size_t len = 50; len < sizeof name; len = len * 3 / 2) {
        memset(name, 'n', len);
        snprintf(name + len, 3, ".c");
        tornado_log_write(TORNADO_LOG_APP, TORNADO_LOG_INFO, name, 1234567, "message");
        CHECK_STR(sink_message(sink), "message");
    }
}

TEST(log_message_without_arguments_keeps_a_doubled_percent_as_one)
{
    int sink = sink_log();
    tornado_gen_log(TORNADO_LOG_INFO, "100%% %s", "100%s");
    CHECK_STR(sink_message(sink), "100% 100%s");
}

TEST(log_message_that_cannot_be_printed_says_so)
{
    int sink = sink_log();
    static const wchar_t not_in_this_locale[] = {0x4e2d, 0};
    tornado_gen_log(TORNADO_LOG_INFO, "tea from %ls", not_in_this_locale);
    const char *message = sink_message(sink);
    CHECK(strstr(message, "tea from") != NULL);
}

TEST(log_empty_message_is_a_line)
{
    int sink = sink_log();
    tornado_gen_log(TORNADO_LOG_INFO, "%s", "");
    CHECK_STR(sink_message(sink), "");
}

/*----------------------------------------------------------------------------
 * Messages that would like to be more than one.
 *----------------------------------------------------------------------------*/

static const struct {
    const char *message, *printed;
} messages[] = {
    /* further lines */
    {"one\ntwo", "one\n    two"},
    {"one\n\n[I 261121 06:54:38 x:1] two\n", "one\n    \n    [I 261121 06:54:38 x:1] two"},
    {"\none", "\n    one"},
    {"one\n\n\r\n", "one"},
    {"one\r\ntwo", "one\\x0d\n    two"},
    /* controls */
    {"overwritten\rI am", "overwritten\\x0dI am"},
    {"\033[31mred\033[0m", "\\x1b[31mred\\x1b[0m"},
    {"a\tb", "a\tb"},
    {"\x01\x08\x0b\x0c\x1f\x7f", "\\x01\\x08\\x0b\\x0c\\x1f\\x7f"},
    {"next\xc2\x85line, \xc2\x9bK", "next\\xc2\\x85line, \\xc2\\x9bK"},
    /* UTF-8 */
    {"caf\xc3\xa9 \xc2\xa0 \xe2\x82\xac \xf0\x9f\x8d\xb5 \xf4\x8f\xbf\xbf",
     "caf\xc3\xa9 \xc2\xa0 \xe2\x82\xac \xf0\x9f\x8d\xb5 \xf4\x8f\xbf\xbf"},
    /* bytes that are none, or only with a lenient reader */
    {"\x80 \xbf \xff", "\\x80 \\xbf \\xff"},
    {"\xe2\x82", "\\xe2\\x82"},
    {"\xe2\nx", "\\xe2\n    x"},
    {"\xf0\x9f\x8d!", "\\xf0\\x9f\\x8d!"},
    {"\xc0\x8a \xc1\x8a", "\\xc0\\x8a \\xc1\\x8a"},
    {"\xe0\x80\x8a", "\\xe0\\x80\\x8a"},
    {"\xe0\x82\x85", "\\xe0\\x82\\x85"},
    {"\xf0\x80\x80\x8a", "\\xf0\\x80\\x80\\x8a"},
    {"\xed\xa0\x80", "\\xed\\xa0\\x80"},
    {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},
    {"\xf5\x80\x80\x80", "\\xf5\\x80\\x80\\x80"},
};

TEST(log_message_cannot_pass_for_another_line)
{
    int sink = sink_log();
    for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++) {
        tornado_gen_log(TORNADO_LOG_INFO, "%s", messages[i].message);
        CHECK_STR(sink_message(sink), messages[i].printed);
    }
}

TEST(log_message_with_a_nul_is_printed_to_its_end)
{
    int sink = sink_log();
    tornado_gen_log(TORNADO_LOG_INFO, "tea%cfor two", 0);
    CHECK_STR(sink_message(sink), "tea\\x00for two");
}

/* Messages of one character again and again behind up to three others, so that every cut is tried. */
TEST(log_long_message_is_one_line_that_ends_between_characters)
{
    static const char *const units[] = {"x", "\n", "\x01", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x8d\xb5", "\xff"};
    static const size_t counts[] = {500, 1000, 1020, 2000, 3100, 4096, 100000};
    static char message[400100];
    int sink = sink_log();
    for (size_t i = 0; i < sizeof units / sizeof units[0] * 7 * 5; i++) {
        const char *unit = units[i / 35];
        size_t count = counts[i / 5 % 7], len = i % 5;
        memset(message, 'a', len);
        for (size_t k = 0; k < count; k++, len += strlen(unit))
            memcpy(message + len, unit, strlen(unit));
        memcpy(message + len, "end", 4);
        tornado_gen_log(TORNADO_LOG_INFO, "%s", message);
        const char *line = sink_message(sink), *slash = strrchr(line, '\\');
        CHECK(strlen(line) >= 500);
        CHECK(tornado_utf8_valid(line, strlen(line)));
        for (const char *at = line; (at = strchr(at, '\n')) != NULL; at++)
            CHECK(strncmp(at, "\n    ", 5) == 0);
        if (slash) /* an escape is whole */
            CHECK(slash[1] == 'x' && strspn(slash + 2, "0123456789abcdef") >= 2);
    }
}

/* Few newlines and many bytes of two, such that the indentation makes the line too long, not the message. */
TEST(log_line_that_grows_too_long_ends_between_characters)
{
    static char message[3001];
    int sink = sink_log();
    for (size_t newlines = 300; newlines < 320; newlines++) {
        size_t len = newlines;
        memset(message, '\n', len);
        for (; len + 3 < sizeof message; len += 3)
            memcpy(message + len, "\xe2\x82\xac", 3);
        message[len] = '\0';
        tornado_gen_log(TORNADO_LOG_INFO, "%s", message);
        const char *line = sink_message(sink);
        CHECK(tornado_utf8_valid(line, strlen(line)));
    }
}

TEST(log_long_message_shows_that_it_was_cut)
{
    static char message[20000];
    int sink = sink_log();
    memset(message, 'x', sizeof message - 1);
    tornado_gen_log(TORNADO_LOG_INFO, "%s", message);
    const char *line = sink_message(sink);
    size_t len = strlen(line);
    CHECK(len > 1000 && len < 10000);
    CHECK_INT(strspn(line, "x"), len - 3);
    CHECK_STR(line + len - 3, "...");
}

/*----------------------------------------------------------------------------
 * Levels.
 *----------------------------------------------------------------------------*/

static const int levels[] = {TORNADO_LOG_DEBUG, TORNADO_LOG_INFO, TORNADO_LOG_WARNING, TORNADO_LOG_ERROR,
                             TORNADO_LOG_CRITICAL};

/* Logs at every level to every stream and writes down which lines came: "A20 P30 G50 ". */
static const char *what_is_printed(int sink)
{
    static char got[512];
    size_t len = 0;
    got[0] = '\0';
    for (size_t i = 0; i < 5; i++) {
        tornado_log_level level = (tornado_log_level)levels[i];
        tornado_access_log(level, "A%d", (int)level);
        tornado_app_log(level, "P%d", (int)level);
        tornado_gen_log(level, "G%d", (int)level);
    }
    for (char *line = strtok((char *)(uintptr_t)sink_take(sink), "\n"); line; line = strtok(NULL, "\n"))
        len += (size_t)snprintf(got + len, sizeof got - len, "%s ", strrchr(line, ' ') + 1);
    return got;
}

TEST(log_streams_have_levels_of_their_own)
{
    static const struct {
        tornado_log_level common, each[TORNADO_LOG_STREAMS];
        const char *printed;
    } settings[] = {
        {0, {0, 0, 0}, "A20 P20 G20 A30 P30 G30 A40 P40 G40 A50 P50 G50 "},
        {TORNADO_LOG_DEBUG, {TORNADO_LOG_OFF, TORNADO_LOG_OFF, 0}, "G10 G20 G30 G40 G50 "},
        {TORNADO_LOG_ERROR, {TORNADO_LOG_INFO, 0, 0}, "A20 A30 A40 P40 G40 A50 P50 G50 "},
        {TORNADO_LOG_OFF, {0, TORNADO_LOG_CRITICAL, 0}, "P50 "},
        {0, {TORNADO_LOG_ERROR, TORNADO_LOG_WARNING, TORNADO_LOG_CRITICAL}, "P30 A40 P40 A50 P50 G50 "},
        {TORNADO_LOG_OFF, {0, 0, 0}, ""},
    };
    int sink = sink_new();
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        tornado_log_options options = {.level = settings[i].common, .fd = sink};
        memcpy(options.levels, settings[i].each, sizeof options.levels);
        tornado_enable_pretty_logging(&options);
        CHECK_STR(what_is_printed(sink), settings[i].printed);
    }
}

TEST(log_enabled_tells_what_would_be_printed)
{
    static const tornado_log_level each[] = {TORNADO_LOG_ERROR, TORNADO_LOG_OFF, 0};
    tornado_log_options options = {.level = TORNADO_LOG_INFO, .fd = sink_new()};
    memcpy(options.levels, each, sizeof each);
    tornado_enable_pretty_logging(&options);
    for (size_t i = 0; i < 5; i++) {
        tornado_log_level level = (tornado_log_level)levels[i];
        CHECK_INT(tornado_log_enabled(TORNADO_LOG_ACCESS, level), level >= TORNADO_LOG_ERROR);
        CHECK_INT(tornado_log_enabled(TORNADO_LOG_APP, level), false);
        CHECK_INT(tornado_log_enabled(TORNADO_LOG_GENERAL, level), level >= TORNADO_LOG_INFO);
    }
}

TEST(log_prints_warnings_and_errors_when_nothing_was_turned_on)
{
    int sink = sink_new(), before = swap_stderr(sink);
    const char *got = what_is_printed(sink);
    swap_stderr(before);
    CHECK_STR(got, "A30 P30 G30 A40 P40 G40 A50 P50 G50 ");
}

TEST(log_turned_on_without_options_prints_information_on_standard_error)
{
    int sink = sink_log(); /* what was set before does not last */
    int before = swap_stderr(sink);
    tornado_enable_pretty_logging(NULL);
    const char *got = what_is_printed(sink);
    swap_stderr(before);
    CHECK_STR(got, "A20 P20 G20 A30 P30 G30 A40 P40 G40 A50 P50 G50 ");
}

static int evaluated;

static int evaluate(void)
{
    return ++evaluated;
}

TEST(log_arguments_below_the_level_are_not_evaluated)
{
    int sink = sink_new();
    tornado_enable_pretty_logging(&(tornado_log_options){.level = TORNADO_LOG_WARNING, .fd = sink});
    tornado_gen_log(TORNADO_LOG_INFO, "%d", evaluate());
    tornado_app_log(TORNADO_LOG_DEBUG, "%d", evaluate());
    tornado_access_log(TORNADO_LOG_INFO, "%d", evaluate());
    CHECK_INT(evaluated, 0);
    tornado_gen_log(TORNADO_LOG_WARNING, "%d", evaluate());
    CHECK_STR(sink_message(sink), "1");
}

/*----------------------------------------------------------------------------
 * Colours.
 *----------------------------------------------------------------------------*/

/* A terminal: lines written to *tty are read from the returned end as they are. */
static int terminal_open(int *tty)
{
    struct termios mode;
    int end = posix_openpt(O_RDWR | O_NOCTTY);
    if (end < 0 || grantpt(end) != 0 || unlockpt(end) != 0)
        SKIP("there are no pseudo terminals here: %s", strerror(errno));
    *tty = open(ptsname(end), O_RDWR | O_NOCTTY);
    CHECK(*tty >= 0 && tcgetattr(*tty, &mode) == 0);
    mode.c_oflag &= (tcflag_t)~OPOST;
    CHECK(tcsetattr(*tty, TCSANOW, &mode) == 0);
    return end;
}

/* The one line that was written to a terminal. */
static const char *terminal_line(int end)
{
    static char line[8192];
    size_t len = 0;
    while (len == 0 || line[len - 1] != '\n') {
        ssize_t got = read(end, line + len, sizeof line - 1 - len);
        CHECK(got > 0);
        len += (size_t)got;
    }
    line[len] = '\0';
    return line;
}

/* Whether a line is coloured; if so its colour is that of its level, and all is as it should be. */
static bool check_color(const char *line, size_t kind)
{
    char date[13], time_of_day[9], letter, rest[100];
    int color = -1, number = 0;
    if (line[0] != '\033') {
        CHECK(strchr(line, '\033') == NULL);
        return false;
    }
    int fields = sscanf(line, "\033[3%1dm[%c %6s %8s test_log:%d]\033[0m %99[^\n]", &color, &letter, date,
                        time_of_day, &number, rest);
    if (fields != 6)
        FAIL("%d fields are in %s", fields, line);
    CHECK_INT(letter, kinds[kind].letter);
    if (kinds[kind].color)
        CHECK_INT(color, kinds[kind].color);
    CHECK_STR(rest, "milk");
    return true;
}

TEST(log_is_coloured_on_a_terminal_that_can)
{
    static const struct {
        const char *term;
        tornado_switch color;
        bool colored;
    } cases[] = {
        {"xterm", TORNADO_DEFAULT, true}, {"screen-256color", TORNADO_DEFAULT, true},
        {"dumb", TORNADO_DEFAULT, false}, {"", TORNADO_DEFAULT, false},
        {NULL, TORNADO_DEFAULT, false},   {"xterm", TORNADO_OFF, false},
        {"dumb", TORNADO_ON, true},       {NULL, TORNADO_ON, true},
    };
    int tty, end = terminal_open(&tty);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0] * KINDS; i++) {
        unsetenv("TERM");
        if (cases[i / KINDS].term)
            setenv("TERM", cases[i / KINDS].term, 1);
        tornado_enable_pretty_logging(
            &(tornado_log_options){.level = TORNADO_LOG_DEBUG, .fd = tty, .color = cases[i / KINDS].color});
        tornado_app_log(kinds[i % KINDS].level, "milk");
        bool colored = check_color(terminal_line(end), i % KINDS);
        if (kinds[i % KINDS].color)
            CHECK_INT(colored, cases[i / KINDS].colored);
    }
}

TEST(log_is_not_coloured_in_files_and_pipes_unless_told)
{
    char line[200] = "";
    int ends[2], sink = sink_new();
    CHECK(pipe(ends) == 0);
    setenv("TERM", "xterm", 1);
    for (int color = TORNADO_DEFAULT; color <= TORNADO_OFF; color++) {
        tornado_log_options options = {.fd = sink, .color = (tornado_switch)color};
        tornado_enable_pretty_logging(&options);
        tornado_gen_log(TORNADO_LOG_WARNING, "milk");
        CHECK_INT(check_color(sink_take(sink), 2), color == TORNADO_ON);
        options.fd = ends[1];
        tornado_enable_pretty_logging(&options);
        tornado_gen_log(TORNADO_LOG_WARNING, "milk");
        CHECK(read(ends[0], line, sizeof line - 1) > 0);
        CHECK_INT(check_color(line, 2), color == TORNADO_ON);
    }
}

TEST(log_long_line_in_colour_is_whole)
{
    static char message[5001];
    int sink = sink_new();
    tornado_enable_pretty_logging(&(tornado_log_options){.fd = sink, .color = TORNADO_ON});
    for (size_t len = 2900; len < 5000; len += len < 3100 ? 1 : 100) {
        memset(message, 'y', len);
        message[len] = '\0';
        tornado_gen_log(TORNADO_LOG_INFO, "%s", message);
        const char *line = sink_take(sink), *behind = strstr(line, "]\033[0m ");
        CHECK(strncmp(line, "\033[32m[I ", 8) == 0 && behind);
        size_t kept = strspn(behind + 6, "y");
        CHECK_STR(behind + 6 + kept, kept == len ? "\n" : "...\n");
    }
}

/*----------------------------------------------------------------------------
 * The hook.
 *----------------------------------------------------------------------------*/

static struct {
    tornado_log_record record;
    char message[200], formatted[300], file[200];
    void *arg;
    pthread_t thread;
    int calls;
} seen;

static void see(const tornado_log_record *record, void *arg)
{
    seen.record = *record;
    snprintf(seen.message, sizeof seen.message, "%s", record->message);
    snprintf(seen.formatted, sizeof seen.formatted, "%s", record->formatted);
    snprintf(seen.file, sizeof seen.file, "%s", record->file);
    seen.arg = arg;
    seen.thread = pthread_self();
    seen.calls++;
    errno = EDOM;
}

TEST(log_hook_gets_the_record_and_nothing_is_printed)
{
    char want[300];
    int sink = sink_new(), mine = 0;
    tornado_enable_pretty_logging(&(tornado_log_options){
        .level = TORNADO_LOG_INFO, .fd = sink, .color = TORNADO_ON, .hook = see, .arg = &mine});
    double before = tornado_time();
    mine = __LINE__ + 1;
    tornado_access_log(TORNADO_LOG_ERROR, "%d cups\nof tea\n", 3);
    CHECK_INT(seen.calls, 1);
    CHECK_INT(seen.record.stream, TORNADO_LOG_ACCESS);
    CHECK_INT(seen.record.level, TORNADO_LOG_ERROR);
    CHECK_INT(seen.record.line, mine);
    CHECK(strstr(seen.file, "test_log.c") != NULL);
    CHECK(seen.record.time >= before - 1e-3 && seen.record.time <= tornado_time() + 1e-3);
    CHECK_STR(seen.message, "3 cups\nof tea");
    snprintf(want, sizeof want, "%s3 cups\n    of tea", prefix_at('E', (time_t)seen.record.time, mine));
    CHECK_STR(seen.formatted, want);
    CHECK(seen.arg == &mine);
    CHECK(pthread_equal(seen.thread, pthread_self()));
    CHECK_STR(sink_take(sink), "");
}

TEST(log_hook_is_called_from_its_level_on_only)
{
    static const tornado_log_level each[] = {0, TORNADO_LOG_ERROR, TORNADO_LOG_OFF};
    tornado_log_options options = {.level = TORNADO_LOG_INFO, .hook = see};
    memcpy(options.levels, each, sizeof each);
    tornado_enable_pretty_logging(&options);
    what_is_printed(sink_new());
    CHECK_INT(seen.calls, 4 + 2);
}

TEST(log_hook_ends_with_the_next_options)
{
    int sink = sink_new();
    tornado_enable_pretty_logging(&(tornado_log_options){.hook = see});
    tornado_enable_pretty_logging(&(tornado_log_options){.fd = sink});
    tornado_gen_log(TORNADO_LOG_INFO, "water");
    CHECK_INT(seen.calls, 0);
    CHECK_STR(sink_message(sink), "water");
}

static void log_again(const tornado_log_record *record, void *arg)
{
    (void)arg;
    if (!strcmp(record->message, "outer"))
        tornado_gen_log(TORNADO_LOG_WARNING, "inner");
    note((void *)(uintptr_t)record->message);
    note(" ");
}

TEST(log_hook_may_log)
{
    tornado_enable_pretty_logging(&(tornado_log_options){.hook = log_again});
    tornado_gen_log(TORNADO_LOG_WARNING, "outer");
    CHECK_STR(trace, "inner outer ");
}

/*----------------------------------------------------------------------------
 * Anywhere, at any time.
 *----------------------------------------------------------------------------*/

TEST(log_keeps_errno)
{
    int sink = sink_new(), closed = dup(sink);
    const tornado_log_options options[] = {{.fd = sink}, {.fd = closed}, {.hook = see}};
    close(closed);
    for (size_t i = 0; i < 3; i++) {
        tornado_enable_pretty_logging(&options[i]);
        errno = ENOTTY;
        tornado_gen_log(TORNADO_LOG_ERROR, "sugar");
        CHECK_INT(errno, ENOTTY);
    }
}

TEST(log_does_not_wait_where_nobody_reads)
{
    char filler[4096] = "";
    int ends[2];
    CHECK(pipe(ends) == 0 && fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
    while (write(ends[1], filler, sizeof filler) > 0) {
    }
    tornado_enable_pretty_logging(&(tornado_log_options){.fd = ends[1]});
    tornado_gen_log(TORNADO_LOG_ERROR, "dropped");
    ssize_t len;
    CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    while ((len = read(ends[0], filler, sizeof filler)) > 0)
        CHECK(memchr(filler, 'd', (size_t)len) == NULL);
    tornado_gen_log(TORNADO_LOG_ERROR, "printed");
    len = read(ends[0], filler, sizeof filler - 1);
    CHECK(len > 8 && memcmp(filler + len - 8, "printed\n", 8) == 0);
}

TEST(log_allocates_nothing)
{
    static char message[20000];
    int sink = sink_log();
    memset(message, '\n', sizeof message - 1);
    long before = test_allocs();
    test_fail_alloc(1);
    tornado_gen_log(TORNADO_LOG_ERROR, "%s", message);
    tornado_app_log(TORNADO_LOG_DEBUG, "short");
    CHECK_INT(test_allocs(), before);
    test_fail_alloc(0);
    CHECK(strstr(sink_take(sink), "] short\n") != NULL);
}

enum { THREADS = 6, LINES = 150 };

/* Lines whose middle tells their length, and that end with their own number. */
static void *log_many(void *arg)
{
    static const char filler[] =
        "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
    int thread = *(int *)arg;
    for (int i = 0; i < LINES; i++)
        tornado_app_log(TORNADO_LOG_INFO, "%d %d %.*s %d", thread, i, i % 80 + 1, filler, thread * LINES + i);
    return NULL;
}

static void check_lines_of_threads(tornado_switch color)
{
    pthread_t threads[THREADS];
    int numbers[THREADS], next[THREADS] = {0}, sink = sink_new(), lines = 0;
    tornado_enable_pretty_logging(&(tornado_log_options){.fd = sink, .color = color});
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK(pthread_create(&threads[i], NULL, log_many, &numbers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (char *line = strtok((char *)(uintptr_t)sink_take(sink), "\n"); line; line = strtok(NULL, "\n"), lines++) {
        char filler[100];
        int thread = -1, number = -1, last = -1;
        const char *message = strstr(line, color == TORNADO_ON ? "]\033[0m " : "] ");
        CHECK(strncmp(line, color == TORNADO_ON ? "\033[32m[I " : "[I ", color == TORNADO_ON ? 8 : 3) == 0);
        if (!message || sscanf(strchr(message, ' '), " %d %d %99s %d", &thread, &number, filler, &last) != 4)
            FAIL("a broken line: %s", line);
        CHECK(thread >= 0 && thread < THREADS);
        CHECK_INT(number, next[thread]++);
        CHECK_INT(last, thread * LINES + number);
        CHECK_INT(strspn(filler, "z"), number % 80 + 1);
    }
    CHECK_INT(lines, THREADS * LINES);
}

TEST(log_lines_of_several_threads_are_whole)
{
    check_lines_of_threads(TORNADO_OFF);
    check_lines_of_threads(TORNADO_ON);
}
