/* The implementation as the tests see it: its allocations are counted and can fail, its assertions end the test. */
#include <stddef.h>

void *test_malloc(size_t size, int line);
void *test_realloc(void *pointer, size_t size, int line);
void test_free(void *pointer, int line);
void test_assertion_failed(const char *condition, int line);

#define TORNADO_MALLOC(size)           test_malloc(size, __LINE__)
#define TORNADO_REALLOC(pointer, size) test_realloc(pointer, size, __LINE__)
#define TORNADO_FREE(pointer)          test_free(pointer, __LINE__)
#define TORNADO_ASSERT(condition)      ((condition) ? (void)0 : test_assertion_failed(#condition, __LINE__))
#define TORNADO_TESTING                1
#define TORNADO_IMPLEMENTATION
#include "../tornado.h"
