/* Failures on purpose: each kind of system call that the header makes goes wrong, in each way that the system has.
   Allocations fail by test_fail_alloc, of harness.h. */
#ifndef TEST_FAULTS_H
#define TEST_FAULTS_H

#include <stdbool.h>

typedef struct test_fault {
    const char *call, *how; /* "recv", "EINTR"; "SHORT": it does a part of what it could */
    bool harmless;          /* nothing that anybody asked for may come to harm by it */
} test_fault;

/* The fault with this index, or NULL behind the last. */
const test_fault *test_fault_at(int index);

/* The n-th call from now on that can have that fault has it, and those behind it, `row` in all; 1 is the next. An
   index of -1: none has any. */
void test_fail_calls(int index, long n, long row);

/* The index of a fault; -1: there is none such. */
int test_fault_named(const char *call, const char *how);

/* How many calls could have had the fault since then. */
long test_fault_calls(void);

/* What is to happen to this call: 0 nothing, an errno (which is in errno, too), or TEST_SHORT. */
enum { TEST_SHORT = -1 };
int test_fault_of(const char *call);

/* Whether it is this call that may have one. */
bool test_fault_is(const char *call);

#endif
