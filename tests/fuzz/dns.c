/* Replies of name servers: what is taken from one stands in it, and comes from records that lead from the question to
   it; a question is read back as it was written. The first byte says what was asked. */
#include "fuzz.h"

/* A second reader of names, by recursion: the length with the last zero, or 0 when there is none. *behind is where the
   name ends in the reply. */
static size_t name_at(const uint8_t *data, size_t size, size_t at, size_t *behind, uint8_t *out, int depth)
{
    size_t len = 0, ignored;
    while (at < size && depth < 130) {
        size_t label = data[at];
        if (label >= 0xc0) {
            if (at + 1 >= size)
                return 0;
            *behind = at + 2;
            at = (label & 0x3f) << 8 | data[at + 1];
            size_t rest = name_at(data, size, at, &ignored, out + len, depth + 1);
            return rest && len + rest <= 255 ? len + rest : 0;
        }
        if (label > 63 || at + label >= size || len + label + 1 > 255)
            return 0;
        out[len++] = (uint8_t)label;
        for (size_t i = 1; i <= label; i++)
            out[len++] = data[at + i] >= 'A' && data[at + i] <= 'Z' ? data[at + i] | 32 : data[at + i];
        at += label + 1;
        *behind = at;
        if (label == 0)
            return len;
    }
    return 0;
}

/* Whether these bytes are the data of some record in the reply, found by looking at every place. */
static bool stands_in(const uint8_t *data, size_t size, const unsigned char *bytes, size_t len)
{
    for (size_t i = 12; i + len <= size; i++)
        if (memcmp(data + i, bytes, len) == 0)
            return true;
    return false;
}

static void check_names(const uint8_t *data, size_t size)
{
    tornado__dns_reply reply = {data, size};
    for (size_t at = 0; at < size && at < 64; at++) {
        unsigned char name[TORNADO__DNS_NAME];
        uint8_t other[255 * 131];
        size_t end = at, behind, len = tornado__dns_name(&reply, &end, name);
        if (!len)
            continue;
        MUST(len <= sizeof name && name[len - 1] == 0 && end > at && end <= size);
        MUST(name_at(data, size, at, &behind, other, 0) == len && behind == end && memcmp(name, other, len) == 0);
    }
}

static void check_reply(const uint8_t *data, size_t size, unsigned type, bool recased)
{
    static const unsigned char random[34] = {'i', 'd', 0x5a, 0xa5, 0x33};
    unsigned char request[TORNADO__DNS_HEADER + TORNADO__DNS_NAME + 4 + 11];
    tornado__dns_answer answer;
    unsigned char name[TORNADO__DNS_NAME];
    size_t name_len = tornado__dns_name_write(name, "ab.example.com");
    size_t len = tornado__dns_question_write(request, name, name_len, type, random);
    MUST(tornado__dns_question_extend(request, len) == len + 11);
    request[11] = 0;
    tornado__dns_verdict verdict = tornado__dns_parse(data, size, request, len, recased, &answer);
    MUST(verdict >= TORNADO__DNS_FOREIGN && verdict <= TORNADO__DNS_FOUND);
    MUST((verdict == TORNADO__DNS_FOUND) == (answer.count > 0) || verdict < TORNADO__DNS_NO_NAME);
    if (verdict != TORNADO__DNS_FOREIGN) {
        MUST(size >= 12 && data[0] == 'i' && data[1] == 'd' && data[2] & 0x80);
        if (verdict != TORNADO__DNS_PLAINER)
            MUST(size >= len && data[5] == 1);
    }
    if (verdict >= TORNADO__DNS_TRUNCATED && verdict != TORNADO__DNS_PLAINER && !recased)
        MUST(memcmp(data + 12, request + 12, len - 12) == 0);
    if (verdict == TORNADO__DNS_ALIAS) {
        size_t at = 0;
        MUST(answer.aliases > 0 && answer.aliases < TORNADO__DNS_ALIASES && answer.count == 0);
        MUST(tornado__dns_name(&(tornado__dns_reply){answer.name, answer.name_len}, &at, name) == answer.name_len);
    }
    if (verdict < TORNADO__DNS_ALIAS)
        return;
    MUST(answer.ttl >= 0 && answer.ttl <= TORNADO__DNS_KEEP && answer.count <= TORNADO__DNS_MOST);
    MUST(verdict == TORNADO__DNS_FOUND || verdict == TORNADO__DNS_ALIAS || answer.ttl <= TORNADO__DNS_KEEP_NONE);
    for (size_t i = 0; i < answer.count; i++)
        MUST(stands_in(data, size, answer.addresses[i], type == TORNADO__DNS_A ? 4 : 16));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    char *copy = fuzz_copy(data + 1, size - 1);
    check_names((const uint8_t *)copy, size - 1);
    check_reply((const uint8_t *)copy, size - 1, data[0] & 1 ? TORNADO__DNS_AAAA : TORNADO__DNS_A, data[0] & 2);
    free(copy);
    return 0;
}
