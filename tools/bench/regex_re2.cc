/* RE2 for regex.c. */
#include <re2/re2.h>

extern "C" {
void *bench_re2_compile(const char *pattern, bool search);
int bench_re2_match(void *compiled, const char *text, size_t len, bool search, ptrdiff_t (*spans)[2], size_t count);
void bench_re2_free(void *compiled);
}

void *bench_re2_compile(const char *pattern, bool)
{
    RE2::Options options(RE2::Latin1);
    options.set_log_errors(false);
    RE2 *regex = new RE2(pattern, options);
    if (regex->ok())
        return regex;
    delete regex;
    return nullptr;
}

int bench_re2_match(void *compiled, const char *text, size_t len, bool search, ptrdiff_t (*spans)[2], size_t count)
{
    const RE2 *regex = static_cast<RE2 *>(compiled);
    re2::StringPiece groups[16];
    size_t known = static_cast<size_t>(regex->NumberOfCapturingGroups()) + 1;
    size_t wanted = known < count ? known : count;
    bool found = regex->Match(re2::StringPiece(text, len), 0, len, search ? RE2::UNANCHORED : RE2::ANCHOR_BOTH,
                              groups, static_cast<int>(wanted));
    for (size_t i = 0; i < count; i++) {
        bool there = found && i < wanted && groups[i].data();
        spans[i][0] = there ? groups[i].data() - text : -1;
        spans[i][1] = there ? spans[i][0] + static_cast<ptrdiff_t>(groups[i].size()) : -1;
    }
    return found;
}

void bench_re2_free(void *compiled)
{
    delete static_cast<RE2 *>(compiled);
}
