/* Text inside HTML and inside URLs. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"

static const char *guarded_text(const char *text)
{
    return guarded_string(text, strlen(text));
}

TEST(escape_makes_five_characters_safe)
{
    static const char *const rows[][2] = {
        {"", ""},
        {"plain text", "plain text"},
        {"<foo>", "&lt;foo&gt;"},
        {"<>&\"'", "&lt;&gt;&amp;&quot;&#39;"},
        {"&amp;", "&amp;amp;"},
        {"<\xc3\xa9>", "&lt;\xc3\xa9&gt;"},
        {"a<b", "a&lt;b"},
        {"&&&", "&amp;&amp;&amp;"},
        {"<script>alert('xss')</script>", "&lt;script&gt;alert(&#39;xss&#39;)&lt;/script&gt;"},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_STR(tornado_xhtml_escape(arena, guarded_text(rows[i][0])), rows[i][1]);
        CHECK_STR(tornado_xhtml_unescape(arena, guarded_text(rows[i][1])), rows[i][0]);
    }
    tornado_arena_free(arena);
}

TEST(escape_leaves_every_other_byte_alone)
{
    tornado_arena *arena = tornado_arena_new();
    for (int c = 1; c < 256; c++) {
        char text[] = {'x', (char)c, 'y', '\0'};
        const char *got = tornado_xhtml_escape(arena, text);
        if (strchr("&<>\"'", c))
            CHECK(strlen(got) > 3 && got[1] == '&');
        else
            CHECK_STR(got, text);
        CHECK(got != text);
        CHECK_STR(tornado_xhtml_unescape(arena, got), text);
    }
    tornado_arena_free(arena);
}

/* HTML 4 names these characters, U+00A0 to U+00FF. */
static const char *const latin_names[96] = {
    "nbsp", "iexcl", "cent", "pound", "curren", "yen", "brvbar", "sect", "uml", "copy", "ordf", "laquo", "not",
    "shy", "reg", "macr", "deg", "plusmn", "sup2", "sup3", "acute", "micro", "para", "middot", "cedil", "sup1",
    "ordm", "raquo", "frac14", "frac12", "frac34", "iquest", "Agrave", "Aacute", "Acirc", "Atilde", "Auml",
    "Aring", "AElig", "Ccedil", "Egrave", "Eacute", "Ecirc", "Euml", "Igrave", "Iacute", "Icirc", "Iuml", "ETH",
    "Ntilde", "Ograve", "Oacute", "Ocirc", "Otilde", "Ouml", "times", "Oslash", "Ugrave", "Uacute", "Ucirc",
    "Uuml", "Yacute", "THORN", "szlig", "agrave", "aacute", "acirc", "atilde", "auml", "aring", "aelig",
    "ccedil", "egrave", "eacute", "ecirc", "euml", "igrave", "iacute", "icirc", "iuml", "eth", "ntilde",
    "ograve", "oacute", "ocirc", "otilde", "ouml", "divide", "oslash", "ugrave", "uacute", "ucirc", "uuml",
    "yacute", "thorn", "yuml",
};
static const struct {
    const char *name;
    uint32_t code_point;
} other_names[] = {
    {"quot", 0x22}, {"amp", 0x26}, {"lt", 0x3c}, {"gt", 0x3e}, {"OElig", 0x152}, {"oelig", 0x153},
    {"Scaron", 0x160}, {"scaron", 0x161}, {"Yuml", 0x178}, {"fnof", 0x192}, {"circ", 0x2c6}, {"tilde", 0x2dc},
    {"Alpha", 0x391}, {"Beta", 0x392}, {"Gamma", 0x393}, {"Delta", 0x394}, {"Epsilon", 0x395}, {"Zeta", 0x396},
    {"Eta", 0x397}, {"Theta", 0x398}, {"Iota", 0x399}, {"Kappa", 0x39a}, {"Lambda", 0x39b}, {"Mu", 0x39c},
    {"Nu", 0x39d}, {"Xi", 0x39e}, {"Omicron", 0x39f}, {"Pi", 0x3a0}, {"Rho", 0x3a1}, {"Sigma", 0x3a3},
    {"Tau", 0x3a4}, {"Upsilon", 0x3a5}, {"Phi", 0x3a6}, {"Chi", 0x3a7}, {"Psi", 0x3a8}, {"Omega", 0x3a9},
    {"alpha", 0x3b1}, {"beta", 0x3b2}, {"gamma", 0x3b3}, {"delta", 0x3b4}, {"epsilon", 0x3b5}, {"zeta", 0x3b6},
    {"eta", 0x3b7}, {"theta", 0x3b8}, {"iota", 0x3b9}, {"kappa", 0x3ba}, {"lambda", 0x3bb}, {"mu", 0x3bc},
    {"nu", 0x3bd}, {"xi", 0x3be}, {"omicron", 0x3bf}, {"pi", 0x3c0}, {"rho", 0x3c1}, {"sigmaf", 0x3c2},
    {"sigma", 0x3c3}, {"tau", 0x3c4}, {"upsilon", 0x3c5}, {"phi", 0x3c6}, {"chi", 0x3c7}, {"psi", 0x3c8},
    {"omega", 0x3c9}, {"thetasym", 0x3d1}, {"upsih", 0x3d2}, {"piv", 0x3d6}, {"ensp", 0x2002}, {"emsp", 0x2003},
    {"thinsp", 0x2009}, {"zwnj", 0x200c}, {"zwj", 0x200d}, {"lrm", 0x200e}, {"rlm", 0x200f}, {"ndash", 0x2013},
    {"mdash", 0x2014}, {"lsquo", 0x2018}, {"rsquo", 0x2019}, {"sbquo", 0x201a}, {"ldquo", 0x201c},
    {"rdquo", 0x201d}, {"bdquo", 0x201e}, {"dagger", 0x2020}, {"Dagger", 0x2021}, {"bull", 0x2022},
    {"hellip", 0x2026}, {"permil", 0x2030}, {"prime", 0x2032}, {"Prime", 0x2033}, {"lsaquo", 0x2039},
    {"rsaquo", 0x203a}, {"oline", 0x203e}, {"frasl", 0x2044}, {"euro", 0x20ac}, {"image", 0x2111},
    {"weierp", 0x2118}, {"real", 0x211c}, {"trade", 0x2122}, {"alefsym", 0x2135}, {"larr", 0x2190},
    {"uarr", 0x2191}, {"rarr", 0x2192}, {"darr", 0x2193}, {"harr", 0x2194}, {"crarr", 0x21b5}, {"lArr", 0x21d0},
    {"uArr", 0x21d1}, {"rArr", 0x21d2}, {"dArr", 0x21d3}, {"hArr", 0x21d4}, {"forall", 0x2200},
    {"part", 0x2202}, {"exist", 0x2203}, {"empty", 0x2205}, {"nabla", 0x2207}, {"isin", 0x2208},
    {"notin", 0x2209}, {"ni", 0x220b}, {"prod", 0x220f}, {"sum", 0x2211}, {"minus", 0x2212}, {"lowast", 0x2217},
    {"radic", 0x221a}, {"prop", 0x221d}, {"infin", 0x221e}, {"ang", 0x2220}, {"and", 0x2227}, {"or", 0x2228},
    {"cap", 0x2229}, {"cup", 0x222a}, {"int", 0x222b}, {"there4", 0x2234}, {"sim", 0x223c}, {"cong", 0x2245},
    {"asymp", 0x2248}, {"ne", 0x2260}, {"equiv", 0x2261}, {"le", 0x2264}, {"ge", 0x2265}, {"sub", 0x2282},
    {"sup", 0x2283}, {"nsub", 0x2284}, {"sube", 0x2286}, {"supe", 0x2287}, {"oplus", 0x2295},
    {"otimes", 0x2297}, {"perp", 0x22a5}, {"sdot", 0x22c5}, {"lceil", 0x2308}, {"rceil", 0x2309},
    {"lfloor", 0x230a}, {"rfloor", 0x230b}, {"lang", 0x2329}, {"rang", 0x232a}, {"loz", 0x25ca},
    {"spades", 0x2660}, {"clubs", 0x2663}, {"hearts", 0x2665}, {"diams", 0x2666},
};

static void check_reference(tornado_arena *arena, const char *reference, uint32_t code_point)
{
    char text[128], want[128];
    char character[5] = "";
    CHECK(tornado_utf8_encode(code_point, character) > 0);
    snprintf(text, sizeof text, "%s", reference);
    CHECK_STR(tornado_xhtml_unescape(arena, guarded_text(text)), character);
    snprintf(text, sizeof text, "&a %s;%s&%s z", reference, reference, reference);
    snprintf(want, sizeof want, "&a %s;%s&%s z", character, character, character);
    CHECK_STR(tornado_xhtml_unescape(arena, guarded_text(text)), want);
}

TEST(escape_knows_the_named_references_of_html)
{
    tornado_arena *arena = tornado_arena_new();
    char text[16];
    for (uint32_t i = 0; i < 96; i++) {
        snprintf(text, sizeof text, "&%s;", latin_names[i]);
        check_reference(arena, text, 0xa0 + i);
    }
    for (size_t i = 0; i < sizeof other_names / sizeof other_names[0]; i++) {
        snprintf(text, sizeof text, "&%s;", other_names[i].name);
        check_reference(arena, text, other_names[i].code_point);
    }
    check_reference(arena, "&apos;", '\'');
    tornado_arena_free(arena);
}

TEST(escape_reads_numeric_references)
{
    static const struct {
        const char *text;
        uint32_t code_point;
    } rows[] = {
        {"&#39;", '\''},         {"&#x27;", '\''},         {"&#X27;", '\''},          {"&#65;", 'A'},
        {"&#1;", 1},             {"&#x1;", 1},             {"&#0000000000000065;", 'A'}, {"&#x000000000041;", 'A'},
        {"&#8364;", 0x20ac},     {"&#x20AC;", 0x20ac},     {"&#x20ac;", 0x20ac},      {"&#128;", 0x80},
        {"&#55295;", 0xd7ff},    {"&#57344;", 0xe000},     {"&#65535;", 0xffff},      {"&#65536;", 0x10000},
        {"&#x1F32A;", 0x1f32a},  {"&#1114111;", 0x10ffff}, {"&#x10FFFF;", 0x10ffff},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        check_reference(arena, rows[i].text, rows[i].code_point);
    tornado_arena_free(arena);
}

TEST(escape_reads_a_reference_to_every_character)
{
    tornado_arena *arena = tornado_arena_new();
    for (uint32_t c = 1; c <= 0x10ffff; c++) {
        char text[16], want[5] = "";
        snprintf(text, sizeof text, c % 2 ? "&#x%x;" : "&#%u;", (unsigned)c);
        const char *got = tornado_xhtml_unescape(arena, text);
        CHECK_STR(got, tornado_utf8_encode(c, want) ? want : text);
        if (c % 1024 == 0) {
            tornado_arena_free(arena);
            arena = tornado_arena_new();
        }
    }
    tornado_arena_free(arena);
}

TEST(escape_leaves_what_is_no_reference)
{
    static const char *const texts[] = {
        "&", "&&", "&;", "& amp;", "&amp", "&amp ", "&lt", "&#", "&#;", "&#x", "&#x;", "&#xg;", "&#39", "&#x27",
        "&#39a;", "&#a;", "&#-1;", "&#+1;", "&# 1;", "&#x 1;", "&#x-1;", "&#0x41;", "&#xx41;",
        "&#0;", "&#x0;", "&#000;",
        "&#55296;", "&#xD800;", "&#57343;", "&#xDFFF;", "&#1114112;", "&#x110000;", "&#99999999;",
        "&#4294967297;", "&#x100000041;", "&#18446744073709551681;", "&#x10000000000000041;",
        "&nosuch;", "&AMP;", "&Lt;", "&l;", "&a;", "&am;", "&ampx;", "&amp_;", "&\xc3\xa9;", "&-;", "&thetasymm;",
        "&abcdefghijklmnopqrstuvwxyz;", "&zwnjj;", "&zzz;", "&AAA;", "&1;", "&amp\n;", "&sup4;", "a&b;c", "AT&T",
        "?a=1&b=2&copy=3",
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        CHECK_STR(tornado_xhtml_unescape(arena, guarded_text(texts[i])), texts[i]);
    CHECK_STR(tornado_xhtml_unescape(arena, "&&amp;&amp&amp;;&#&#38;"), "&&&amp&;&#&");
    CHECK_STR(tornado_xhtml_unescape(arena, "&amp;lt;"), "&lt;");
    CHECK_STR(tornado_xhtml_unescape(arena, "&#38;lt;"), "&lt;");
    tornado_arena_free(arena);
}

TEST(escape_reads_references_cut_short_at_the_end_of_memory)
{
    static const char text[] = "&thetasym;&#x10FFFF;&amp;";
    tornado_arena *arena = tornado_arena_new();
    for (size_t cut = 0; cut < sizeof text; cut++) {
        size_t whole = cut < 10 ? 0 : cut < 20 ? 10 : cut < 25 ? 20 : 25;
        char want[64];
        snprintf(want, sizeof want, "%s%s%s%.*s", whole >= 10 ? "\xcf\x91" : "",
                 whole >= 20 ? "\xf4\x8f\xbf\xbf" : "", whole >= 25 ? "&" : "", (int)(cut - whole), text + whole);
        CHECK_STR(tornado_xhtml_unescape(arena, guarded_string(text, cut)), want);
    }
    tornado_arena_free(arena);
}

TEST(escape_then_unescape_gives_any_text_back)
{
    uint32_t random = 1;
    for (int round = 0; round < 20000; round++) {
        char text[48];
        size_t len = (size_t)round % sizeof text;
        for (size_t i = 0; i < len; i++) {
            random = random * 1664525 + 1013904223;
            text[i] = round % 2 ? "&<>\"'#x;amlt39a"[random >> 28] : (char)((random >> 24) | 1);
        }
        text[len ? len - 1 : 0] = '\0';
        tornado_arena *arena = tornado_arena_new();
        const char *escaped = tornado_xhtml_escape(arena, text);
        CHECK(strpbrk(escaped, "<>\"'") == NULL);
        CHECK_STR(tornado_xhtml_unescape(arena, escaped), text);
        CHECK(strlen(tornado_xhtml_unescape(arena, text)) <= strlen(text));
        for (int plus = 0; plus < 2; plus++) {
            const char *url = tornado_url_escape(arena, text, plus);
            tornado_bytes back = tornado_url_unescape(arena, tornado_bytes_of(url), plus);
            CHECK_MEM(back.data, back.len, text, strlen(text));
        }
        tornado_arena_free(arena);
    }
}

TEST(escape_url_encodes_every_byte)
{
    tornado_arena *arena = tornado_arena_new();
    for (int plus = 0; plus < 2; plus++)
        for (int c = 1; c < 256; c++) {
            char text[] = {(char)c, '\0'}, want[4];
            if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || strchr("_.-~", c) ||
                (c == '/' && !plus))
                snprintf(want, sizeof want, "%c", c);
            else if (c == ' ' && plus)
                strcpy(want, "+");
            else
                snprintf(want, sizeof want, "%%%02X", (unsigned)c);
            CHECK_STR(tornado_url_escape(arena, text, plus), want);
        }
    tornado_arena_free(arena);
}

TEST(escape_url_vectors)
{
    static const struct {
        const char *text, *plus, *path;
    } rows[] = {
        {"", "", ""},
        {"\xc3\xa9", "%C3%A9", "%C3%A9"},
        {"\xe9", "%E9", "%E9"},
        {"a b+c", "a+b%2Bc", "a%20b%2Bc"},
        {"/a path/to~this-file_1.txt", "%2Fa+path%2Fto~this-file_1.txt", "/a%20path/to~this-file_1.txt"},
        {"100% & more?=", "100%25+%26+more%3F%3D", "100%25%20%26%20more%3F%3D"},
        {"\r\n", "%0D%0A", "%0D%0A"},
        {"%41", "%2541", "%2541"},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        CHECK_STR(tornado_url_escape(arena, guarded_text(rows[i].text), true), rows[i].plus);
        CHECK_STR(tornado_url_escape(arena, guarded_text(rows[i].text), false), rows[i].path);
        CHECK_STR(tornado_url_unescape(arena, tornado_bytes_of(rows[i].plus), true).data, rows[i].text);
        CHECK_STR(tornado_url_unescape(arena, tornado_bytes_of(rows[i].path), false).data, rows[i].text);
    }
    tornado_arena_free(arena);
}

TEST(escape_url_decodes_what_it_can)
{
    static const struct {
        const char *text, *plus, *path;
        size_t len;
    } rows[] = {
        {"%C3%A9", "\xc3\xa9", "\xc3\xa9", 2},
        {"%c3%a9", "\xc3\xa9", "\xc3\xa9", 2},
        {"%C3%a9+1", "\xc3\xa9 1", "\xc3\xa9+1", 4},
        {"%2B", "+", "+", 1},
        {"%", "%", "%", 1},
        {"%4", "%4", "%4", 2},
        {"%4g", "%4g", "%4g", 3},
        {"%g4", "%g4", "%g4", 3},
        {"%%41", "%A", "%A", 2},
        {"%%", "%%", "%%", 2},
        {"%4%41", "%4A", "%4A", 3},
        {"%41%", "A%", "A%", 2},
        {"%41%4", "A%4", "A%4", 3},
        {"%2541", "%41", "%41", 3},
        {"% 1%-1%+1", "% 1%-1% 1", "% 1%-1%+1", 9},
        {"a%00b", "a\0b", "a\0b", 3},
        {"%ff%FE", "\xff\xfe", "\xff\xfe", 2},
    };
    tornado_arena *arena = tornado_arena_new();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t len = strlen(rows[i].text);
        tornado_bytes text = {guarded(rows[i].text, len), len};
        tornado_bytes got = tornado_url_unescape(arena, text, true);
        CHECK_MEM(got.data, got.len, rows[i].plus, rows[i].len);
        CHECK(got.data[got.len] == '\0');
        got = tornado_url_unescape(arena, text, false);
        CHECK_MEM(got.data, got.len, rows[i].path, rows[i].len);
    }
    tornado_arena_free(arena);
}

TEST(escape_url_decodes_every_pair_of_characters)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    tornado_arena *arena = tornado_arena_new();
    for (int high = 1; high < 256; high++)
        for (int low = 1; low < 256; low++) {
            char text[] = {'%', (char)high, (char)low, '\0'};
            tornado_bytes got = tornado_url_unescape(arena, tornado_bytes_of(text), false);
            if (strchr(digits, high) && strchr(digits, low)) {
                CHECK_INT(got.len, 1);
                CHECK_INT((unsigned char)got.data[0], strtol(text + 1, NULL, 16));
            } else {
                CHECK_STR(got.data, text);
            }
        }
    tornado_arena_free(arena);
}

TEST(escape_url_decodes_no_bytes_to_no_bytes)
{
    tornado_arena *arena = tornado_arena_new();
    tornado_bytes nothing = {NULL, 0};
    tornado_bytes got = tornado_url_unescape(arena, nothing, true);
    CHECK(got.data != NULL && got.len == 0 && got.data[0] == '\0');
    tornado_arena_free(arena);
}

/* What each function makes of a long text. */
static const char *run(int function, tornado_arena *arena, const char *text)
{
    switch (function) {
    case 0:
        return tornado_xhtml_escape(arena, text);
    case 1:
        return tornado_xhtml_unescape(arena, text);
    case 2:
        return tornado_url_escape(arena, text, true);
    case 3:
        return tornado_url_unescape(arena, tornado_bytes_of(text), true).data;
    }
    return NULL;
}

TEST(escape_survives_when_memory_is_short)
{
    static char plain[10001], special[10001];
    memset(plain, 'a', 10000);
    memset(special, '&', 10000);
    tornado_arena *arena = tornado_arena_new();
    for (int function = 0; function < 4; function++)
        for (int which = 0; which < 2; which++) {
            const char *text = which ? special : plain;
            test_fail_alloc(1);
            CHECK(run(function, arena, text) == NULL);
            CHECK_INT(tornado_last_error()->code, TORNADO_ERR_NOMEM);
            const char *got = run(function, arena, text);
            CHECK(got != NULL);
            CHECK_INT(strlen(got), !which || function % 2 ? 10000 : function ? 30000 : 50000);
        }
    tornado_arena_free(arena);
}

TEST(escape_takes_linear_time)
{
    static const char *const units[] = {"&", "&#", "&#x", "&a", "&#0", "&lt;", "&lt", "%", "%2", "%25", "<", "a"};
    size_t len = (size_t)1 << 18;
    char *text = malloc(len + 1);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        for (int function = 0; function < 4; function++) {
            for (size_t at = 0; at < len; at++)
                text[at] = units[i][at % strlen(units[i])];
            text[len] = '\0';
            tornado_arena *arena = tornado_arena_new();
            CHECK(run(function, arena, text) != NULL);
            memset(text + 2, 'a', len - 2); /* and one that never ends */
            CHECK(run(function, arena, text) != NULL);
            tornado_arena_free(arena);
        }
    free(text);
}
