/* IP addresses and paths of sockets as text: what is read is printed, and what is printed is read as the same. */
#include "fuzz.h"

static bool same(const tornado_address *a, const tornado_address *b)
{
    return a->len == b->len && memcmp(a->sockaddr.bytes, b->sockaddr.bytes, a->len) == 0;
}

/* An IPv4 address is four numbers below 256, RFC 3986 section 3.2.2: no zero in front, nothing else. */
static bool is_ipv4(const char *text)
{
    for (int part = 0; part < 4; part++) {
        size_t digits = strspn(text, "0123456789");
        if (digits == 0 || digits > 3 || (digits > 1 && *text == '0') || atoi(text) > 255)
            return false;
        text += digits;
        if (*text++ != (part < 3 ? '.' : '\0'))
            return false;
    }
    return true;
}

static void check_ip(const char *text, int port)
{
    tornado_address address, again;
    char printed[TORNADO_ADDRESS_MAX], host[46];
    bool ok = tornado_address_ip(&address, text, port);
    MUST(!tornado_is_valid_ip(text) || ok);
    MUST(ok || tornado_last_error()->code == TORNADO_ERR_INVALID);
    MUST(strchr(text, ':') || tornado_is_valid_ip(text) == is_ipv4(text));
    if (!ok)
        return;
    MUST(tornado_address_port(&address) == port);
    MUST(tornado_address_format(&address, printed) == printed);
    char *colon = strrchr(printed, ':');
    MUST(colon && atoi(colon + 1) == port);
    *colon = '\0';
    if (printed[0] == '[') {
        MUST(colon[-1] == ']');
        colon[-1] = '\0';
    }
    MUST(tornado_address_ip(&again, printed + (printed[0] == '['), port) && same(&address, &again));
    MUST(tornado_is_valid_ip(tornado__address_host(&address, host)) && strlen(host) < sizeof host);
}

static void check_unix(const char *path)
{
    tornado_address address;
    char printed[TORNADO_ADDRESS_MAX];
    size_t len = strlen(path);
    bool abstract = path[0] == '@';
    bool ok = tornado_address_unix(&address, path);
    MUST(ok == (len > abstract && len + !abstract <= 108));
    if (!ok) {
        MUST(tornado_last_error()->code == TORNADO_ERR_INVALID);
        return;
    }
    MUST(tornado_address_format(&address, printed) == printed && tornado_address_port(&address) == 0);
    MUST(strncmp(printed, "unix:", 5) == 0 && strcmp(printed + 5, path) == 0);
}

/* What a system might say of an address: any bytes. */
static void check_any(const uint8_t *data, size_t size)
{
    static const uint16_t families[] = {AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6};
    tornado_address address;
    char printed[TORNADO_ADDRESS_MAX], host[46];
    memset(&address, 0, sizeof address);
    address.len = (unsigned)(size < sizeof address.sockaddr.bytes ? size : sizeof address.sockaddr.bytes);
    if (size)
        memcpy(address.sockaddr.bytes, data, address.len);
    if (size >= 2)
        memcpy(address.sockaddr.bytes, &families[data[0] & 3], 2);
    tornado_address_format(&address, printed);
    MUST(memchr(printed, '\0', sizeof printed));
    MUST(tornado_address_port(&address) >= 0 && tornado_address_port(&address) <= 65535);
    MUST(tornado_is_valid_ip(tornado__address_host(&address, host)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = fuzz_string(data, size);
    check_ip(text, (int)(size * 40) & 0xffff);
    check_unix(text);
    check_any(data, size);
    free(text);
    return 0;
}
