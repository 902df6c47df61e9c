/* Dates: what can be read is printed back the same, and any moment comes back from what is printed of it. */
#include "fuzz.h"

static const int64_t year_0 = INT64_C(-62167219200), year_10000 = INT64_C(253402300800);

static void check_moment(int64_t when)
{
    char http[30], iso[21];
    int64_t back = 0, clipped = when < year_0 ? year_0 : when >= year_10000 ? year_10000 - 1 : when;
    MUST(tornado_format_timestamp(when, http) == http && strlen(http) == 29);
    MUST(tornado_parse_timestamp(http, &back) && back == clipped);
    MUST(tornado_format_iso8601(when, iso) == iso && strlen(iso) == 20);
    MUST(tornado_parse_iso8601(iso, &back) && back == clipped);
}

/* Whether a time of day in a text is a leap second, which is printed as the second after it. */
static bool is_leap(const char *text)
{
    return strstr(text, ":60") != NULL;
}

static void check_http(const char *text)
{
    char printed[30];
    int64_t when = 77;
    if (!tornado_parse_timestamp(text, &when)) {
        MUST(when == 77 && tornado_last_error()->code == TORNADO_ERR_PARSE);
        return;
    }
    MUST(when >= year_0 && when <= year_10000);
    check_moment(when);
    tornado_format_timestamp(when, printed);
    size_t len = strlen(text);
    if (is_leap(text))
        return;
    if (len == 29) { /* the weekday need not be the right one */
        MUST(strcmp(text + 3, printed + 3) == 0);
    } else if (len == 24 && text[3] == ' ') { /* asctime: Sun Nov  6 08:49:37 1994 */
        MUST(memcmp(text + 4, printed + 8, 3) == 0 && memcmp(text + 11, printed + 17, 8) == 0);
        MUST(memcmp(text + 20, printed + 12, 4) == 0);
        MUST(text[9] == printed[6] && (text[8] == printed[5] || (text[8] == ' ' && printed[5] == '0')));
    } else { /* RFC 850: Sunday, 06-Nov-94 08:49:37 GMT */
        const char *day = strchr(text, ' ') + 1;
        MUST(memcmp(day, printed + 5, 2) == 0 && memcmp(day + 3, printed + 8, 3) == 0);
        MUST(memcmp(day + 7, printed + 14, 2) == 0 && strcmp(day + 10, printed + 17) == 0);
        char now[30];
        tornado_format_timestamp(1700000000, now); /* 2023: at most 50 years ahead, at most 50 behind */
        MUST(atoi(printed + 12) <= atoi(now + 12) + 50 && atoi(printed + 12) >= atoi(now + 12) - 50);
    }
}

static void check_iso(const char *text)
{
    char printed[21];
    int64_t when = 77;
    size_t len = strlen(text);
    if (!tornado_parse_iso8601(text, &when)) {
        MUST(tornado_last_error()->code == TORNADO_ERR_PARSE);
        return;
    }
    MUST(when >= year_0 - 86400 && when <= year_10000 + 86400);
    check_moment(when);
    tornado_format_iso8601(when, printed);
    if (is_leap(text))
        return;
    if ((text[len - 1] | 32) == 'z')
        MUST(memcmp(text, printed, 10) == 0 && memcmp(text + 11, printed + 11, 8) == 0);
    else
        MUST(strchr("+-", text[len - 6]) && text[len - 3] == ':');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = fuzz_string(data, size);
    int64_t when = 0;
    check_http(text);
    check_iso(text);
    if (size)
        memcpy(&when, data, size < sizeof when ? size : sizeof when);
    check_moment(when);
    check_moment(when % INT64_C(400000000000));
    free(text);
    return 0;
}
