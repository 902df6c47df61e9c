/* The JSON writer: formats right and wrong, strings of any bytes, any number; what it writes is read by a reader of
   the fuzzer's own. */
#include "fuzz.h"

enum { DEPTH = 64 };

/*----------------------------------------------------------------------------
 * JSON, as RFC 8259 defines it: where a value ends, or NULL.
 *----------------------------------------------------------------------------*/

static const char *json_string(const char *at)
{
    if (*at++ != '"')
        return NULL;
    for (; *at != '"'; at++) {
        if (*at < ' ' || *at > '~') /* all else is escaped */
            return NULL;
        if (*at != '\\')
            continue;
        if (*++at == 'u' && strspn(at + 1, "0123456789abcdef") >= 4)
            at += 4;
        else if (!*at || !strchr("\"\\/bfnrt", *at))
            return NULL;
    }
    return at + 1;
}

static const char *json_number(const char *at)
{
    at += *at == '-';
    size_t digits = strspn(at, "0123456789");
    if (digits == 0 || (*at == '0' && digits > 1))
        return NULL;
    at += digits;
    if (*at == '.') {
        digits = strspn(at + 1, "0123456789");
        at += 1 + digits;
    }
    if (digits && *at == 'e') {
        at += 1 + (at[1] == '-' || at[1] == '+');
        digits = strspn(at, "0123456789");
        at += digits;
    }
    return digits ? at : NULL;
}

static const char *json_value(const char *at, int depth)
{
    if (*at == '{' || *at == '[') {
        char closer = *at == '{' ? '}' : ']';
        if (depth == DEPTH)
            return NULL;
        if (*++at == closer)
            return at + 1;
        for (;;) {
            if (closer == '}' && (!(at = json_string(at)) || *at++ != ':' || *at++ != ' '))
                return NULL;
            if (!(at = json_value(at, depth + 1)))
                return NULL;
            if (*at == closer)
                return at + 1;
            if (*at++ != ',' || *at++ != ' ')
                return NULL;
        }
    }
    if (*at == '"')
        return json_string(at);
    for (size_t i = 0; i < 3; i++) {
        static const char *const words[] = {"null", "true", "false"};
        if (strncmp(at, words[i], strlen(words[i])) == 0)
            return at + strlen(words[i]);
    }
    return json_number(at);
}

static bool is_json(const char *text)
{
    const char *end = json_value(text, 0);
    return end && *end == '\0';
}

/*----------------------------------------------------------------------------
 * Formats.
 *----------------------------------------------------------------------------*/

/* Arguments are strings, which are JSON, too; some are NULL. */
#define STRINGS_8(text) text, text, text, NULL, text, text, text, text
#define STRINGS_64(t)                                                                                              \
    STRINGS_8(t), STRINGS_8(t), STRINGS_8(t), STRINGS_8(t), STRINGS_8(t), STRINGS_8(t), STRINGS_8(t), STRINGS_8(t)

typedef struct format {
    const char *at;
    int taken; /* arguments */
} format;

static char peek(format *f)
{
    while (*f->at > 0 && *f->at <= ' ')
        f->at++;
    return *f->at;
}

static bool format_key(format *f)
{
    peek(f);
    size_t len = strspn(f->at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    bool null = len == 1 && *f->at == 's' && f->taken++ % 8 == 3;
    f->at += len;
    return len && !null && peek(f) == ':' && f->at++;
}

/* Whether a format is one, by the grammar in the manual. */
static bool format_value(format *f, int depth)
{
    char letter = peek(f), closer = letter == '{' ? '}' : ']';
    if (letter != '{' && letter != '[') {
        f->taken += letter == 's' || letter == 'j';
        return letter && strchr("sjn", letter) && f->at++;
    }
    f->at++;
    if (depth == DEPTH)
        return false;
    if (peek(f) == closer)
        return f->at++, true;
    for (;;) {
        if ((closer == '}' && !format_key(f)) || !format_value(f, depth + 1))
            return false;
        letter = peek(f);
        if (letter == closer)
            return f->at++, true;
        if (letter != ',')
            return false;
        f->at++;
    }
}

static void check_format(const uint8_t *data, size_t size)
{
    char *text = fuzz_string(data, size);
    tornado_buffer out = {NULL, 0, 0, false};
    int strings = 0;
    for (char *at = text; *at; at++) {
        if (strchr("zbfiIUo", *at)) /* would take arguments of other types */
            *at = 'n';
        strings += *at == 's' || *at == 'j';
        if (strings == 64)
            *at = '\0';
        if (!*at)
            break;
    }
    format f = {text, 0};
    bool valid = format_value(&f, 0) && !peek(&f);
    tornado_buffer_puts(&out, "before");
    bool ok = tornado_json_pack(&out, text, STRINGS_64("\"</a\\n\\u0001>\""));
    MUST(ok == valid && !out.failed && memcmp(out.data, "before", 6) == 0 && out.data[out.len] == '\0');
    if (ok)
        MUST(is_json(out.data + 6));
    else
        MUST(out.len == 6 && tornado_last_error()->code == TORNADO_ERR_INVALID);
    tornado_buffer_free(&out);
    free(text);
}

/*----------------------------------------------------------------------------
 * Strings.
 *----------------------------------------------------------------------------*/

/* Reads \uXXXX; *at is behind the "u". */
static uint32_t read_unit(const char **at)
{
    char digits[5] = {0};
    memcpy(digits, *at, 4);
    *at += 4;
    return (uint32_t)strtoul(digits, NULL, 16);
}

/* Whether the JSON string at `json` is these bytes, with U+FFFD for what is no character. Returns its end. */
static const char *same_string(const char *json, const char *bytes, size_t len)
{
    MUST(*json++ == '"');
    for (size_t at = 0; at < len;) {
        bool whole;
        size_t size = fuzz_utf8(bytes + at, len - at, &whole);
        uint32_t want = 0xfffd, got = (unsigned char)*json++;
        if (whole)
            MUST(tornado_utf8_decode(bytes + at, len - at, &want) == size);
        if (got == '\\') {
            static const char letters[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
            char letter = *json++;
            if (letter == 'u') {
                got = read_unit(&json);
                if (got >= 0xd800 && got <= 0xdbff) {
                    MUST(json[0] == '\\' && json[1] == 'u');
                    json += 2;
                    uint32_t low = read_unit(&json);
                    MUST(low >= 0xdc00 && low <= 0xdfff);
                    got = 0x10000 + ((got - 0xd800) << 10) + (low - 0xdc00);
                }
                MUST(got >= 0x7f || !strchr(means, (int)got) || !got); /* the short way, where there is one */
            } else {
                MUST(strchr(letters, letter));
                got = (unsigned char)means[strchr(letters, letter) - letters];
                MUST(letter != '/' || (at > 0 && bytes[at - 1] == '<'));
            }
        }
        MUST(got == want);
        at += size;
    }
    MUST(*json++ == '"');
    return json;
}

static void check_strings(const uint8_t *data, size_t size)
{
    char *bytes = fuzz_copy(data, size), *text = fuzz_string(data, size);
    tornado_buffer out = {NULL, 0, 0, false};
    MUST(tornado_buffer_reserve(&out, size % 100));
    MUST(tornado_json_pack(&out, "{s:z, b:[s, n]}", text, (tornado_bytes){bytes, size}, text));
    MUST(is_json(out.data) && !strstr(out.data, "</"));
    const char *at = same_string(out.data + 1, text, strlen(text));
    MUST(memcmp(at, ": ", 2) == 0);
    at = same_string(at + 2, bytes, size);
    MUST(memcmp(at, ", \"b\": [", 8) == 0);
    at = same_string(at + 8, text, strlen(text));
    MUST(strcmp(at, ", null]}") == 0 && out.len == strlen(out.data));
    tornado_buffer_free(&out);
    free(bytes);
    free(text);
}

/*----------------------------------------------------------------------------
 * Numbers.
 *----------------------------------------------------------------------------*/

/* Whether a number of so many digits reads as `number`: the nearest there is, or one of its neighbours. */
static bool has_short_form(double number, int digits)
{
    char text[40];
    snprintf(text, sizeof text, "%.*e", digits - 1, number < 0 ? -number : number);
    char *e = strchr(text, 'e');
    int exponent = atoi(e + 1) - (digits - 1);
    uint64_t mantissa = 0;
    for (const char *at = text; at < e; at++)
        if (*at != '.')
            mantissa = mantissa * 10 + (uint64_t)(*at - '0');
    for (uint64_t near = mantissa - 1; near <= mantissa + 1; near++) {
        snprintf(text, sizeof text, "%llue%d", (unsigned long long)near, exponent);
        if (strtod(text, NULL) == (number < 0 ? -number : number))
            return true;
    }
    return false;
}

static void check_double(double number)
{
    tornado_buffer out = {NULL, 0, 0, false};
    bool ok = tornado_json_pack(&out, "f", number);
    MUST(ok == (number - number == 0));
    if (ok) {
        double back = strtod(out.data, NULL);
        MUST(is_json(out.data) && memcmp(&back, &number, sizeof back) == 0 && strpbrk(out.data, ".e"));
        int digits = 0, zeros = 0; /* zeros: at the end, which may be there to fill places */
        for (const char *at = out.data; *at && *at != 'e'; at++) {
            digits += *at >= '1' && *at <= '9' ? 1 + zeros : 0;
            zeros = *at == '0' && digits ? zeros + 1 : *at == '.' || *at == '-' ? zeros : 0;
        }
        MUST(digits <= 17 && (digits < 2 || !has_short_form(number, digits - 1)));
    }
    tornado_buffer_free(&out);
}

static void check_integers(int64_t number)
{
    char want[100];
    tornado_buffer out = {NULL, 0, 0, false};
    MUST(tornado_json_pack(&out, "[I, U, i]", number, (uint64_t)number, (int)number));
    snprintf(want, sizeof want, "[%lld, %llu, %d]", (long long)number, (unsigned long long)number, (int)number);
    MUST(strcmp(out.data, want) == 0);
    tornado_buffer_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_format(data, size);
    check_strings(data, size);
    for (size_t at = 0; at + 8 <= size && at < 64; at += 8) {
        double number;
        int64_t integer;
        memcpy(&number, data + at, 8);
        memcpy(&integer, data + at, 8);
        check_double(number);
        check_double((double)integer);
        check_double((double)integer / 1000);
        check_integers(integer);
    }
    MUST(fuzz_live == 0);
    return 0;
}
