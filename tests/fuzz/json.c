/* JSON: what is accepted, and what it means, is held against a reader of the fuzzer's own, which walks through the text
   and the value side by side; written in any style it reads as the same value, and so does a copy that was built. What
   stands before a first NUL is a format, by which the value is taken apart. */
#include "fuzz.h"

#include <math.h>

enum { DEPTH = 512, ARGUMENTS = 64 };

/*----------------------------------------------------------------------------
 * A reader: RFC 8259, and what tornado_json_decode says of halves of surrogate pairs, large numbers and depth. Each
 * function takes where something begins and returns where it ends, or NULL; the value may be NULL, to read only.
 *----------------------------------------------------------------------------*/

static const char *read_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

static long read_unit(const char *at)
{
    char digits[5] = {0};
    if (at[0] != '\\' || at[1] != 'u' || strspn(at + 2, "0123456789abcdefABCDEF") < 4)
        return -1;
    memcpy(digits, at + 2, 4);
    return strtol(digits, NULL, 16);
}

static const char *read_escape(const char *at, uint32_t *code_point)
{
    static const char letters[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    long unit = read_unit(at), low = unit >= 0xd800 && unit < 0xdc00 ? read_unit(at + 6) : 0;
    const char *letter = at[1] ? strchr(letters, at[1]) : NULL;
    if (letter)
        *code_point = (unsigned char)means[letter - letters];
    else if (low >= 0xdc00 && low < 0xe000)
        *code_point = 0x10000 + ((uint32_t)(unit - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
    else
        *code_point = (uint32_t)unit;
    if (letter)
        return at + 2;
    return unit < 0 || (*code_point >= 0xd800 && *code_point < 0xe000) ? NULL : at + (low ? 12 : 6);
}

/* A string, which must hold these bytes unless they are NULL. */
static const char *read_string(const char *at, const char *bytes, size_t len)
{
    size_t count = 0;
    if (*at++ != '"')
        return NULL;
    while (*at != '"') {
        uint32_t code_point = 0;
        char character[4];
        bool whole = true;
        size_t size = *at == '\\' ? 0 : fuzz_utf8(at, strlen(at), &whole);
        if (!whole || (unsigned char)*at < ' ')
            return NULL;
        if (size == 0) {
            if (!(at = read_escape(at, &code_point)))
                return NULL;
            size = tornado_utf8_encode(code_point, character);
        } else {
            memcpy(character, at, size);
            at += size;
        }
        MUST(!bytes || (count + size <= len && memcmp(bytes + count, character, size) == 0));
        count += size;
    }
    MUST(!bytes || (count == len && bytes[count] == '\0'));
    return at + 1;
}

static size_t read_digits(const char *at)
{
    return strspn(at, "0123456789");
}

static const char *read_number(const char *at, const tornado_value *value)
{
    const char *start = at, *digits = at += *at == '-';
    bool integer = true;
    at += read_digits(at);
    if (at == digits || (*digits == '0' && at > digits + 1))
        return NULL;
    if (*at == '.') {
        integer = false;
        if (!read_digits(++at))
            return NULL;
        at += read_digits(at);
    }
    if (*at == 'e' || *at == 'E') {
        integer = false;
        at += 1 + (at[1] == '-' || at[1] == '+');
        if (!read_digits(at))
            return NULL;
        at += read_digits(at);
    }
    double number = strtod(start, NULL);
    if (integer && value && tornado_value_kind(value) != TORNADO_VALUE_DOUBLE) {
        char text[32];
        if (*start == '-')
            snprintf(text, sizeof text, "-%llu", 0ULL - (unsigned long long)tornado_value_integer(value, 0));
        else
            snprintf(text, sizeof text, "%llu", (unsigned long long)tornado_value_unsigned(value, 0));
        MUST(strlen(text) == (size_t)(at - start) && memcmp(text, start, strlen(text)) == 0);
    } else if (value) {
        double got = tornado_value_double(value, 0);
        MUST(!integer || (number >= 0x1p64 || number <= -0x1p63));
        MUST(memcmp(&got, &number, sizeof got) == 0);
    }
    return isfinite(number) ? at : NULL;
}

static const char *read_value(const char *at, const tornado_value *value, int depth)
{
    static const char *const words[] = {"null", "false", "true"};
    const char opener = *at, closer = opener == '{' ? '}' : ']';
    for (size_t i = 0; i < 3; i++)
        if (strncmp(at, words[i], strlen(words[i])) == 0) {
            MUST(!value || (i ? tornado_value_bool(value, i == 1) == (i == 2) : tornado_value_is_null(value)));
            return at + strlen(words[i]);
        }
    if (opener == '"')
        return read_string(at, tornado_value_string(value), tornado_value_len(value));
    if (opener != '{' && opener != '[')
        return read_number(at, value);
    size_t count = 0;
    if (depth == DEPTH)
        return NULL;
    MUST(!value || tornado_value_kind(value) == (opener == '{' ? TORNADO_VALUE_DICT : TORNADO_VALUE_LIST));
    for (at = read_space(at + 1); *at != closer || count; at = read_space(at + 1), count++) {
        if (opener == '{') {
            tornado_bytes key = tornado_value_key_bytes(value, count);
            MUST(!value || key.data);
            if (!(at = read_string(at, key.data, key.len)) || *(at = read_space(at)) != ':')
                return NULL;
            at = read_space(at + 1);
        }
        const tornado_value *item = tornado_value_at(value, count);
        MUST(!value || item);
        if (!(at = read_value(at, item, depth + 1)))
            return NULL;
        at = read_space(at);
        if (*at == closer && ++count)
            break;
        if (*at != ',')
            return NULL;
    }
    MUST(!value || tornado_value_len(value) == count);
    return at + 1;
}

/* Whether a text is JSON; its value, if there is one, must be what it says. */
static bool read_text(const char *text, size_t len, const tornado_value *value)
{
    const char *end = read_value(read_space(text), value, 0);
    return end && read_space(end) == text + len;
}

/*----------------------------------------------------------------------------
 * What is done with a value.
 *----------------------------------------------------------------------------*/

static tornado_value *rebuild(tornado_arena *arena, const tornado_value *value)
{
    tornado_value *copy;
    switch (tornado_value_kind(value)) {
    case TORNADO_VALUE_BOOL:
        return tornado_value_new_bool(arena, tornado_value_bool(value, false));
    case TORNADO_VALUE_INTEGER:
        return tornado_value_new_integer(arena, tornado_value_integer(value, 0));
    case TORNADO_VALUE_UNSIGNED:
        return tornado_value_new_unsigned(arena, tornado_value_unsigned(value, 0));
    case TORNADO_VALUE_DOUBLE:
        return tornado_value_new_double(arena, tornado_value_double(value, 0));
    case TORNADO_VALUE_STRING:
        return tornado_value_new_bytes(arena, tornado_value_bytes(value));
    case TORNADO_VALUE_LIST:
        copy = tornado_value_new_list(arena);
        for (size_t i = 0; i < tornado_value_len(value); i++)
            MUST(tornado_value_append(copy, rebuild(arena, tornado_value_at(value, i))));
        return copy;
    case TORNADO_VALUE_DICT:
        copy = tornado_value_new_dict(arena);
        for (size_t i = 0; i < tornado_value_len(value); i++)
            MUST(tornado_value_set_bytes(copy, tornado_value_key_bytes(value, i),
                                         rebuild(arena, tornado_value_at(value, i))));
        return copy;
    default:
        return tornado_value_new_null(arena);
    }
}

/* Of equal keys the last is found, whichever way the dict is searched. */
static void check_keys(const tornado_value *value)
{
    for (size_t i = 0; i < tornado_value_len(value) && !tornado_value_is_string(value); i++) {
        if (tornado_value_is_dict(value)) {
            tornado_bytes key = tornado_value_key_bytes(value, i);
            size_t last = tornado_value_len(value) - 1;
            while (!tornado_bytes_equal(tornado_value_key_bytes(value, last), key))
                last--;
            MUST(tornado_value_get_bytes(value, key) == tornado_value_at(value, last));
        }
        check_keys(tornado_value_at(value, i));
    }
}

static void check_styles(tornado_arena *arena, const tornado_value *value)
{
    for (int style = 0; style < 8; style++) {
        tornado_json_options options = {style & 1, style & 2, style / 4};
        tornado_buffer out = {NULL, 0, 0, false}, again = {NULL, 0, 0, false};
        MUST(tornado_json_encode_with(&out, value, &options) && out.data[out.len] == '\0');
        char *copy = fuzz_copy(out.data, out.len);
        const tornado_value *back = tornado_json_decode(arena, (tornado_bytes){copy, out.len});
        free(copy);
        MUST(back && tornado_value_equal(value, back) && tornado_value_equal(back, value));
        MUST(read_text(out.data, out.len, value) && !strstr(out.data, "</"));
        for (const char *at = out.data; !options.utf8 && *at; at++)
            MUST((*at >= ' ' && *at <= '~') || (*at == '\n' && options.indent));
        MUST(tornado_json_encode_with(&again, back, &options) && again.len == out.len &&
             memcmp(again.data, out.data, out.len) == 0);
        tornado_buffer_free(&out);
        tornado_buffer_free(&again);
    }
}

#define SLOTS_4(at)  &slots[at], &slots[(at) + 1], &slots[(at) + 2], &slots[(at) + 3]
#define SLOTS_16(at) SLOTS_4(at), SLOTS_4((at) + 4), SLOTS_4((at) + 8), SLOTS_4((at) + 12)

/* Takes a value apart by any format. What a letter stands for goes to a place of its own; as a key such a place is the
   name "a". */
static void check_unpack(const tornado_value *value, char *format)
{
    union {
        char name[sizeof(tornado_bytes)];
        tornado_bytes bytes;
        uint64_t number;
        const void *pointer;
    } slots[ARGUMENTS];
    size_t taken = 0;
    for (char *at = format; *at; at++)
        if (strchr("szbiIUfo", *at) && taken++ == ARGUMENTS)
            *at = '\0', at--;
    memset(slots, 0, sizeof slots);
    for (size_t i = 0; i < ARGUMENTS; i++)
        slots[i].name[0] = 'a';
    if (!tornado_value_unpack(value, format, SLOTS_16(0), SLOTS_16(16), SLOTS_16(32), SLOTS_16(48)))
        MUST(tornado_last_error()->code == TORNADO_ERR_INVALID && tornado_last_error()->message[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    const uint8_t *text = nul ? nul + 1 : data;
    size_t len = size - (size_t)(text - data);
    tornado_arena *arena = tornado_arena_new();
    char *copy = fuzz_copy(text, len), *string = malloc(len + 1);
    MUST(arena && string);
    memcpy(string, copy, len);
    string[len] = '\0';
    const tornado_value *value = tornado_json_decode(arena, (tornado_bytes){copy, len});
    free(copy);
    MUST(read_text(string, len, value) == (value != NULL));
    if (value) {
        check_keys(value);
        check_styles(arena, value);
        tornado_value *built = rebuild(arena, value);
        MUST(!tornado_value_failed(built) && tornado_value_equal(value, built) && tornado_value_equal(built, value));
        check_styles(arena, built);
    } else {
        MUST(tornado_last_error()->code == TORNADO_ERR_PARSE || tornado_last_error()->code == TORNADO_ERR_LIMIT);
    }
    if (nul) {
        char *format = fuzz_string(data, size);
        check_unpack(value, format);
        free(format);
    }
    free(string);
    tornado_arena_free(arena);
    MUST(fuzz_live == 0);
    return 0;
}
