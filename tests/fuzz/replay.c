/* Runs a fuzzer over files, and over the files of directories, without libFuzzer: with any compiler. */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Of the sanitizers, where there are any. */
extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static const char *current; /* the input that runs */
static int inputs;

static void on_death(void)
{
    if (current)
        fprintf(stderr, "the input was %s\n", current);
}

static void on_abort(int number)
{
    on_death();
    signal(number, SIG_DFL);
    raise(number);
}

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t len = 0, got = 0;
    if (!file) {
        perror(path);
        return 1;
    }
    do {
        len += got;
        data = realloc(data, len + 65536);
        if (!data)
            abort();
    } while ((got = fread(data + len, 1, 65536, file)) > 0);
    fclose(file);
    uint8_t *exact = realloc(data, len ? len : 1); /* so that a read beyond its end is seen */
    if (!exact)
        abort();
    current = path;
    LLVMFuzzerTestOneInput(exact, len);
    current = NULL;
    inputs++;
    free(exact);
    return 0;
}

static int replay(const char *path)
{
    DIR *directory = opendir(path);
    int failed = 0;
    if (!directory)
        return replay_file(path);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char name[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        failed |= replay_file(name);
    }
    closedir(directory);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    signal(SIGABRT, on_abort);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(on_death);
    for (int i = 1; i < argc; i++)
        failed |= replay(argv[i]);
    printf("%s: %d inputs\n", argv[0], inputs);
    return failed || inputs == 0;
}
