/* Headers of the PROXY protocol: a prefix never is one, what is read is written again and read as the same, and what a
   line says is what a plain reader finds in it. */
#include "fuzz.h"

static bool same(const tornado_address *a, const tornado_address *b)
{
    return a->len == b->len && memcmp(a->sockaddr.bytes, b->sockaddr.bytes, a->len) == 0;
}

static size_t whole(const uint8_t *data, size_t size)
{
    const uint8_t *end;
    size_t need = tornado__proxy_need(data, size);
    MUST(need <= TORNADO__PROXY_MAX);
    if (size < TORNADO__PROXY_BEGIN || need != TORNADO__PROXY_LINE || data[0] != 'P')
        return need;
    end = memmem(data, size, "\r\n", 2);
    return end ? (size_t)(end - data) + 2 : need;
}

/* A line is written from what was read, and compared word for word. */
static void check_line(const uint8_t *data, size_t len, const tornado_connection *connection)
{
    char from[TORNADO_ADDRESS_MAX], to[TORNADO_ADDRESS_MAX], line[200], ip[2][46];
    tornado_connection again = {.proxied = false};
    bool six = connection->remote.len == sizeof(struct sockaddr_in6);
    MUST(tornado_address_port(&connection->remote) >= 0 && connection->remote.len == connection->local.len);
    tornado_address_format(&connection->remote, from);
    tornado_address_format(&connection->local, to);
    MUST((from[0] == '[') == six && (to[0] == '[') == six);
    tornado__address_host(&connection->remote, ip[0]);
    tornado__address_host(&connection->local, ip[1]);
    int size = snprintf(line, sizeof line, "PROXY TCP%d %.*s %.*s %d %d\r\n", six ? 6 : 4,
                        (int)(strrchr(from, ':') - from - 2 * six), from + six, (int)(strrchr(to, ':') - to - 2 * six),
                        to + six, tornado_address_port(&connection->remote), tornado_address_port(&connection->local));
    MUST(tornado__proxy_parse((const uint8_t *)line, (size_t)size, &again) && again.proxied);
    MUST(same(&again.remote, &connection->remote) && same(&again.local, &connection->local));
    if (!six) /* there is one way to write this */
        MUST((size_t)size == len && memcmp(line, data, len) == 0);
}

static void check_binary(const uint8_t *data, size_t len, const tornado_connection *connection)
{
    MUST(data[12] == 0x21 && (data[13] & 15) == 1 && len >= 28);
    if (data[13] == 0x11) {
        struct sockaddr_in in;
        memcpy(&in, connection->remote.sockaddr.bytes, sizeof in);
        MUST(connection->remote.len == sizeof in && memcmp(&in.sin_addr, data + 16, 4) == 0);
        MUST(memcmp(&in.sin_port, data + 24, 2) == 0);
    } else if (data[13] == 0x21) {
        struct sockaddr_in6 in;
        memcpy(&in, connection->local.sockaddr.bytes, sizeof in);
        MUST(connection->local.len == sizeof in && memcmp(&in.sin6_addr, data + 32, 16) == 0);
        MUST(memcmp(&in.sin6_port, data + 50, 2) == 0 && len >= 52);
    } else {
        MUST(data[13] == 0x31 && len >= 232);
        MUST(connection->remote.len <= sizeof(struct sockaddr_un));
        MUST(connection->local.len <= sizeof(struct sockaddr_un));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[TORNADO_ADDRESS_MAX];
    uint8_t *copy = (uint8_t *)fuzz_copy(data, size);
    size_t len = whole(copy, size), need = 0;
    for (size_t i = 0; i <= size && i < 40; i++) { /* what is needed never becomes less */
        size_t now = tornado__proxy_need(copy, i);
        MUST(now >= need || now == 0);
        need = now;
    }
    if (len && len <= size) {
        tornado_connection connection = {.proxied = false};
        uint8_t *header = (uint8_t *)fuzz_copy(copy, len);
        bool ok = tornado__proxy_parse(header, len, &connection);
        MUST(!ok || !connection.proxied || connection.remote.len > 0);
        if (ok && connection.proxied) {
            tornado_address_format(&connection.remote, text);
            tornado_address_format(&connection.local, text);
            if (header[0] == 'P')
                check_line(header, len, &connection);
            else
                check_binary(header, len, &connection);
        }
        tornado_connection shorter = {.proxied = false};
        MUST(!tornado__proxy_parse(header, len - 1, &shorter));
        free(header);
    }
    free(copy);
    return 0;
}
