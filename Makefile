# tornado.h is one header: what is built here are its examples, its tests and measurements. All output is in build/.
#
#   make                 the examples and the test program
#   make run             builds and runs examples/hello
#   make test            runs the tests; needs a C compiler and nothing else
#   make test TESTS='escape -v'          only tests whose name contains "escape", and names them
#   make check           what must hold before a change goes in, with a part of the rest that changes from commit to
#                        commit; 15 minutes on 2 cores at most
#   make check-all       everything there is to check
#   make faults          every failure point of every scenario of tests/test_faults.c, and how many there are
#   make test-NAME       the tests in one environment: see "Environments" below
#   make fuzz            searches for inputs that break something, until stopped: see "Fuzzers" below
#   make soak            an hour of traffic, and what depends on time again and again: see "Soak" below
#   make coverage        what the tests run of the header, by section
#   make warnings symbols parts map manual docs analyse examples size compile-time bench install clean
#
# A step whose tool is missing says so and is skipped; with CI=true in the environment it fails instead.

CC ?= cc
CFLAGS ?= -O2
PREFIX ?= /usr/local
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

# Sub-makes run in parallel even when this one was not told to.
SUBMAKE = $(MAKE) -s --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(CORES))

.SUFFIXES:
.DELETE_ON_ERROR:

.PHONY: all
all: examples build/plain/tests

.PHONY: run
run: build/examples/hello
	build/examples/hello

#-------------------------------------------------------------------------------------------------------------------
# Environments. Each builds the test program in build/NAME/ and has
#   NAME.is     what it is, in words
#   NAME.cc     its compiler
#   NAME.flags  for compiling and linking
#   NAME.run    the command in front of the program, and variables
#   NAME.args   arguments of the program
# An environment is there when an empty program can be built and run in it.
#-------------------------------------------------------------------------------------------------------------------

ENVIRONMENTS = plain gcc clang asan asan-clang tsan valgrind ucontext c11 gnu17 O0 O3 poll select kqueue \
    musl musl-static i386 armel armhf arm64 riscv64 s390x

WARN = -Wall -Wextra
SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

plain.is = $(CC), with its own defaults
plain.cc = $(CC)
plain.flags = -O1 -g $(WARN)

gcc.is = gcc
gcc.cc = gcc
gcc.flags = -O2 -g $(WARN)
gcc.run = MALLOC_PERTURB_=165

clang.is = clang
clang.cc = clang
clang.flags = -O2 -g $(WARN)

asan.is = $(CC), AddressSanitizer and UndefinedBehaviorSanitizer
asan.cc = $(CC)
asan.flags = $(SANITIZE) $(WARN)
asan.run = TEST_TIME_SCALE=4 ASAN_OPTIONS=$(call leaks,asan)

asan-clang.is = clang, the sanitizers, and uses of a stack frame after its return
asan-clang.cc = clang
asan-clang.flags = $(SANITIZE) $(WARN)
asan-clang.run = TEST_TIME_SCALE=4 ASAN_OPTIONS=detect_stack_use_after_return=1:$(call leaks,asan-clang)

# The tests that have several threads.
tsan.is = $(CC), ThreadSanitizer
tsan.cc = $(CC)
tsan.flags = -O1 -g -fsanitize=thread -fno-omit-frame-pointer -Wno-tsan $(WARN)
tsan.run = TEST_TIME_SCALE=10 TSAN_OPTIONS=halt_on_error=1:die_after_fork=0
tsan.args = thread executor resolver log_ ioloop_ embedding signal

valgrind.is = valgrind
valgrind.cc = $(CC)
valgrind.flags = -O1 -g $(WARN)
valgrind.run = TEST_TIME_SCALE=20 valgrind -q --error-exitcode=99
valgrind.args = $(VALGRIND_TESTS)

ucontext.is = ucontext in place of assembly
ucontext.cc = $(CC)
ucontext.flags = -O2 -g -DTORNADO_UCONTEXT $(WARN)

c11.is = -std=c11
c11.cc = $(CC)
c11.flags = -std=c11 -O1 -g $(WARN)

gnu17.is = -std=gnu17
gnu17.cc = $(CC)
gnu17.flags = -std=gnu17 -O1 -g $(WARN)

O0.is = no optimisation
O0.cc = $(CC)
O0.flags = -O0 -g $(WARN)

O3.is = much optimisation
O3.cc = $(CC)
O3.flags = -O3 -march=native -g $(WARN)

poll.is = poll as the default poller
poll.cc = $(CC)
poll.flags = -O1 -g -DTORNADO_POLLER='"poll"' $(WARN)

select.is = select as the default poller
select.cc = $(CC)
select.flags = -O1 -g -DTORNADO_POLLER='"select"' $(WARN)

kqueue.is = kqueue as the default poller: an imitation, or with KQUEUE=-lkqueue the library
kqueue.cc = $(CC)
kqueue.flags = -O1 -g -DTORNADO_KQUEUE $(WARN) $(KQUEUE)
KQUEUE = -Itests/kqueue

musl.is = musl
musl.cc = musl-gcc
musl.flags = -O1 -g $(WARN)
musl.run = TEST_TIME_SCALE=4

musl-static.is = musl, linked statically
musl-static.cc = musl-gcc
musl-static.flags = -static -O1 -g $(WARN)
musl-static.run = TEST_TIME_SCALE=4

# Other processors: Debian's cross compilers and their C libraries. QEMU runs the test program, but not the programs
# that it starts, which are this machine's; i386 runs as it is.
qemu = TEST_EMULATED=1 TEST_TIME_SCALE=10 qemu-$(1)-static -L /usr/$(2)

i386.is = x86 of 32 bits
i386.cc = i686-linux-gnu-gcc
i386.flags = -O1 -g $(WARN) -Wl,--dynamic-linker=/usr/i686-linux-gnu/lib/ld-linux.so.2,-rpath,/usr/i686-linux-gnu/lib
i386.run = TEST_TIME_SCALE=4

armel.is = ARMv5 of 32 bits without floating point, in QEMU
armel.cc = arm-linux-gnueabi-gcc
armel.flags = -O2 -g -funwind-tables $(WARN)
armel.run = $(call qemu,arm,arm-linux-gnueabi)

armhf.is = ARMv7 of 32 bits with floating point, in QEMU
armhf.cc = arm-linux-gnueabihf-gcc
armhf.flags = -O2 -g -funwind-tables $(WARN)
armhf.run = $(call qemu,arm,arm-linux-gnueabihf)

arm64.is = ARM of 64 bits, in QEMU
arm64.cc = aarch64-linux-gnu-gcc
arm64.flags = -O1 -g $(WARN)
arm64.run = $(call qemu,aarch64,aarch64-linux-gnu)

riscv64.is = RISC-V of 64 bits, in QEMU
riscv64.cc = riscv64-linux-gnu-gcc
riscv64.flags = -O1 -g $(WARN)
riscv64.run = $(call qemu,riscv64,riscv64-linux-gnu)

s390x.is = big endian and ucontext, in QEMU
s390x.cc = s390x-linux-gnu-gcc
s390x.flags = -O1 -g $(WARN)
s390x.run = $(call qemu,s390x,s390x-linux-gnu)

# LeakSanitizer cannot work everywhere (under ptrace, in some containers): only where the probe has shown it.
leaks = detect_leaks=$$(build/$(1)/probe >/dev/null 2>&1 && echo 1 || echo 0)

# The tests run these as programs, the same in each environment.
EXAMPLES := $(patsubst examples/%.c,build/examples/%,$(sort $(wildcard examples/*.c)))

TEST_SOURCES := tests/harness.c tests/faults.c tests/impl.c $(sort $(wildcard tests/test_*.c))

HASH := \#

define environment
$(1).objects = $$(TEST_SOURCES:tests/%.c=build/$(1)/%.o)

build/$(1)/tests: $$($(1).objects)
	@$$($(1).cc) $$($(1).flags) -pthread $$($(1).objects) -o $$@ $$$$(test ! -s build/$(1)/openssl || echo -lssl -lcrypto)

build/$(1)/%.o: tests/%.c build/$(1)/flags build/$(1)/openssl
	@echo "$$($(1).cc) $$< ($(1))"
	@$$($(1).cc) $$($(1).flags) $$$$(cat build/$(1)/openssl) -pthread -MMD -MP -c $$< -o $$@

# Whether a program with OpenSSL can be built: then the tests are, too.
build/$(1)/openssl: Makefile
	@mkdir -p $$(@D)
	@echo '$(HASH)include <openssl/ssl.h>\nint main(void) { return !OPENSSL_init_ssl(0, 0); }' | sed 's/\\n/\n/' > $$@.c
	@if $$($(1).cc) $$($(1).flags) $$@.c -o $$@.probe -lssl -lcrypto 2>/dev/null; then echo -DTORNADO_OPENSSL; fi > $$@

# Changes when the compiler or the flags do.
build/$(1)/flags: always
	@mkdir -p $$(@D)
	@echo $$($(1).cc) $$($(1).flags) | cmp -s - $$@ || echo $$($(1).cc) $$($(1).flags) > $$@

build/$(1)/probe: always
	@mkdir -p $$(@D)
	@echo 'int main(void) { return 0; }' | $$($(1).cc) $$($(1).flags) -x c - -o $$@
endef
$(foreach name,$(ENVIRONMENTS),$(eval $(call environment,$(name))))
-include $(wildcard build/*/*.d)

.PHONY: always
always:

.PHONY: test
test: build/plain/tests $(EXAMPLES)
	@build/plain/tests $(TESTS)

# For each scenario, its failure points by allocation and system call: calls times the ways in which each may fail.
.PHONY: faults
faults: build/plain/tests
	@rm -f build/faults
	@FAULTS=build/faults TEST_TIME_SCALE=60 build/plain/tests faults_
	@awk -f tools/faults.awk build/faults

# What a recipe says when something that it needs is not there, and whether it then fails.
missing = echo "skipped $@: $(1)"; test "$$CI" != true

.PHONY: $(ENVIRONMENTS:%=test-%)
$(ENVIRONMENTS:%=test-%): test-%:
	@echo "== $@: $($*.is)"
	+@if $(SUBMAKE) build/$*/probe >/dev/null 2>&1 && $($*.run) build/$*/probe >/dev/null 2>&1; then \
	    rm -f build/$*/output; $(SUBMAKE) build/$*/tests $(EXAMPLES) && \
	    { { $($*.run) build/$*/tests $($*.args) $(TESTS); echo $$? > build/$*/status; } | tee build/$*/output; } && \
	    exit $$(cat build/$*/status); \
	else \
	    mkdir -p build/$*; echo "skipped: cannot be built and run" > build/$*/output; \
	    $(call missing,no empty program can be built and run that way); \
	fi

# What became of each environment that was run, and why tests were skipped there.
.PHONY: table
table:
	@printf '%-12s %-24s %-6s %-26s %-7s %s\n' environment target libc compiler poller result
	@$(foreach name,$(ENVIRONMENTS),if [ -f build/$(name)/output ]; then printf '%-12s %-24s %-6s %-26s %-7s %s\n' \
	    $(name) "$$($($(name).cc) -dumpmachine 2>/dev/null)" $(if $(findstring musl,$(name)),musl,glibc) \
	    "$($(name).cc)" $(or $(filter poll select kqueue,$(name)),epoll) "$$(tail -n 1 build/$(name)/output)"; \
	    sed -n 's/^skip /    /p' build/$(name)/output; fi;)

#-------------------------------------------------------------------------------------------------------------------
# Warnings: each file of tests/include/ with each compiler, none tolerated.
#-------------------------------------------------------------------------------------------------------------------

STRICT = -O1 -pthread -Wall -Wextra -Wpedantic -Wshadow -Werror
STRICT_C = implementation user static callbacks manual openssl

# compiler/standard/file
STRICT_BUILDS = g++/c++11/public clang++/c++11/public $(foreach cc,gcc clang, \
    $(STRICT_C:%=$(cc)/c11/%) $(STRICT_C:%=$(cc)/gnu17/%) $(cc)/gnu17/libc_first)
STRICT_OBJECTS = $(STRICT_BUILDS:%=build/warnings/%.o)

.PHONY: warnings
warnings:
	@echo "== $@: every way to include the header; $(STRICT)"
	+@$(SUBMAKE) -k $(STRICT_OBJECTS)

strict_cc = $(word 3,$(subst /, ,$@))
strict_std = $(word 4,$(subst /, ,$@))
strict_source = $(wildcard tests/include/$(basename $(@F)).c*)

$(STRICT_OBJECTS): tornado.h Makefile $(wildcard tests/include/*)
	@mkdir -p $(@D)
	@if command -v $(strict_cc) >/dev/null; then \
	    echo "$(strict_cc) -std=$(strict_std) $(strict_source)"; \
	    $(strict_cc) -std=$(strict_std) $(STRICT) -c $(strict_source) -o $@; \
	else \
	    $(call missing,$(strict_cc) is not installed); \
	fi

#-------------------------------------------------------------------------------------------------------------------
# Fuzzers: tests/fuzz/NAME.c, with inputs to begin with in tests/fuzz/corpus/NAME/, perhaps a dictionary NAME.dict.
#
#   make fuzz-replay     runs each over its inputs, those that once broke something among them
#   make fuzz-short      searches for new ones for 10 seconds each
#   make fuzz            searches until stopped, all at once, or for FUZZ_TIME seconds of the processor each
#   make fuzz FUZZERS='request chunked' FUZZ_TIME=600 FUZZ_JOBS=2
#   make fuzz-coverage   the lines of each parser that the inputs kept here reach: see "Coverage" below
#
# New inputs go to build/fuzz/NAME/, one that breaks something to build/fuzz/NAME-crash-...; `make fuzz` adds what it
# did to tests/fuzz/hours.tsv, which is kept.
#-------------------------------------------------------------------------------------------------------------------

FUZZERS = $(filter-out replay,$(patsubst tests/fuzz/%.c,%,$(sort $(wildcard tests/fuzz/*.c))))
FUZZ_TIME = 0
FUZZ_SHORT_TIME = 10
FUZZ_JOBS = $(words $(FUZZERS))
FUZZ_LOG = tests/fuzz/hours.tsv

fuzz.is = clang with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer
fuzz.cc = clang
# Coroutines have stacks of their own, so the depth of the stack says nothing of an input.
fuzz.flags = $(SANITIZE) -fsanitize=fuzzer -fno-sanitize-coverage=stack-depth $(WARN)

FUZZ_HEADERS = tests/fuzz/fuzz.h tornado.h Makefile
FUZZ_QUICK = -O0 -g1
FUZZ_KIND = fuzzer

build/fuzz/%.replay: tests/fuzz/%.c tests/fuzz/replay.c $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	@echo "$(asan.cc) $< (replay)"
	@$(asan.cc) $(asan.flags) $(FUZZ_QUICK) $< tests/fuzz/replay.c -o $@

build/fuzz/%.fuzzer: tests/fuzz/%.c $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	@echo "$(fuzz.cc) $< (fuzzer)"
	@$(fuzz.cc) $(fuzz.flags) $< -o $@

# For a short search: the compiler's time matters more than the program's.
build/fuzz/%.short: tests/fuzz/%.c $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	@echo "$(fuzz.cc) $< (short fuzzer)"
	@$(fuzz.cc) $(fuzz.flags) $(FUZZ_QUICK) $< -o $@

build/fuzz/probe: always
	@mkdir -p $(@D)
	@echo 'int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return !data && size; }' | \
	    $(fuzz.cc) $(fuzz.flags) -x c - -o $@

.PHONY: $(FUZZERS:%=fuzz-replay-%) $(FUZZERS:%=fuzz-search-%)
$(FUZZERS:%=fuzz-replay-%): fuzz-replay-%: build/fuzz/%.replay
	@ASAN_OPTIONS=$(call leaks,asan) $< tests/fuzz/corpus/$*

# What it prints while it searches goes to a file, of which the end is shown when something was found.
$(FUZZERS:%=fuzz-search-%): fuzz-search-%: build/fuzz/%.$(FUZZ_KIND)
	@mkdir -p build/fuzz/$*
	@ASAN_OPTIONS=$(call leaks,asan-clang) $(FUZZ_RUN) $< $(FUZZ_LIMIT) -max_len=2048 -timeout=20 \
	    $(patsubst %,-dict=%,$(wildcard tests/fuzz/$*.dict)) -artifact_prefix=build/fuzz/$*- \
	    build/fuzz/$* tests/fuzz/corpus/$* > build/fuzz/$*.log 2>&1 || { tail -n 40 build/fuzz/$*.log; exit 1; }
	@echo "$*: $$(grep -a 'DONE\|INITED' build/fuzz/$*.log | tail -n 1)"

.PHONY: fuzz-replay
fuzz-replay:
	@echo "== $@: each fuzzer over its inputs; $(asan.is)"
	+@if $(SUBMAKE) build/asan/probe >/dev/null 2>&1 && build/asan/probe >/dev/null 2>&1; then \
	    $(SUBMAKE) -k $(FUZZERS:%=fuzz-replay-%); \
	else \
	    $(call missing,no empty program can be built and run that way); \
	fi

.PHONY: fuzz-short fuzz
fuzz-short: fuzz_options = FUZZ_KIND=short FUZZ_RUN= FUZZ_LIMIT=-max_total_time=$(FUZZ_SHORT_TIME)
fuzz: fuzz_options = -j$(FUZZ_JOBS) FUZZ_RUN='tools/fuzz $$* $(FUZZ_TIME) $(FUZZ_LOG)'
fuzz-short fuzz:
	@echo "== $@: new inputs for each fuzzer; $(fuzz.is)"
	+@if $(SUBMAKE) build/fuzz/probe build/asan-clang/probe >/dev/null 2>&1 && \
	    build/fuzz/probe -runs=1 >/dev/null 2>&1; then \
	    $(SUBMAKE) -k $(fuzz_options) FUZZERS='$(FUZZERS)' $(FUZZERS:%=fuzz-search-%); \
	else \
	    $(call missing,no empty fuzzer can be built and run that way); \
	fi

#-------------------------------------------------------------------------------------------------------------------
# Coverage of tornado.h, by clang and llvm-cov; also of what runs in a process that is killed.
#
#   make coverage        lines and branches that the tests run, by section; then `tools/coverage missing
#                        build/coverage/tests.json SECTION` shows what they do not
#   make fuzz-coverage   lines of each parser that the inputs in tests/fuzz/corpus reach: tests/fuzz/coverage.tsv says
#                        which functions are whose, and why some lines are not reached
#-------------------------------------------------------------------------------------------------------------------

coverage.cc = clang
coverage.flags = -O0 -g -fprofile-instr-generate -fcoverage-mapping -mllvm -runtime-counter-relocation -Wno-unused-command-line-argument $(WARN)
# Counted in a file that all processes map (%c), and none empties that begins later (%m, which adds a number).
coverage.run = TEST_TIME_SCALE=4 LLVM_PROFILE_FILE=build/coverage/$(1)%m%c.profraw
coverage.counts = build/coverage/$(1)[0-9]*.profraw
$(eval $(call environment,coverage))

LEAST_LINES = 95
LEAST_BRANCHES = 85

# $(1): the name of a trace, $(2): its program
coverage_trace = llvm-profdata merge $(call coverage.counts,$(1)) -o build/coverage/$(1).profdata && \
    llvm-cov export -skip-functions -instr-profile=build/coverage/$(1).profdata $(2) > build/coverage/$(1).json

.PHONY: coverage
coverage:
	@echo "== $@: what the tests run"
	+@if command -v llvm-cov >/dev/null && $(SUBMAKE) build/coverage/probe; then \
	    $(SUBMAKE) build/coverage/tests $(EXAMPLES) && rm -f $(call coverage.counts,tests) && \
	    $(call coverage.run,tests) build/coverage/tests $(TESTS) && $(call coverage_trace,tests,build/coverage/tests) && \
	    tools/coverage sections build/coverage/tests.json --lines $(LEAST_LINES) --branches $(LEAST_BRANCHES); \
	else \
	    $(call missing,clang or llvm-cov is not installed); \
	fi

build/coverage/%.replay: tests/fuzz/%.c tests/fuzz/replay.c $(FUZZ_HEADERS)
	@mkdir -p $(@D)
	@$(coverage.cc) $(coverage.flags) $< tests/fuzz/replay.c -o $@

build/coverage/%.json: build/coverage/%.replay always
	@rm -f $(call coverage.counts,$*)
	@$(call coverage.run,$*) $< tests/fuzz/corpus/$* >/dev/null
	@$(call coverage_trace,$*,$<)

.PHONY: fuzz-coverage
fuzz-coverage:
	@echo "== $@: what the inputs of each fuzzer reach of its parser"
	+@if command -v llvm-cov >/dev/null && $(SUBMAKE) build/coverage/probe; then \
	    $(SUBMAKE) $(FUZZERS:%=build/coverage/%.json) && \
	    tools/coverage fuzzers $(FUZZERS:%=build/coverage/%.json); \
	else \
	    $(call missing,clang or llvm-cov is not installed); \
	fi

#-------------------------------------------------------------------------------------------------------------------
# Soak: what shows only after a long time, or when the machine has other things to do. Linux.
#
#   make soak                          both parts
#   make soak-tests                    each test that depends on time, SOAK_REPEAT times with each poller, beside two
#                                      busy loops
#   make soak-traffic SOAK_TIME=60     mixed traffic of SOAK_CONNECTIONS clients; the picture is build/soak.svg
#   make soak-short                    less than a minute of it
#   make soak-sanitized                a few times with sanitizers
#-------------------------------------------------------------------------------------------------------------------

SOAK_TIME = 3600
SOAK_CONNECTIONS = 5000
SOAK_REPEAT = 200
SOAK_JOBS = 32
# Timing, order, fairness, cancelling, other threads, restarts of processes.
SOAK_TESTS = timer _time _late sleep periodic timeout idle grace shutdown slow deadline \
    order fair cancel thread restart '!faults_'

.PHONY: soak soak-short soak-tests soak-sanitized soak-traffic
soak: soak-tests soak-traffic

soak-short:
	+@if command -v python3 >/dev/null && [ -d /proc/self/fd ]; then \
	    $(SUBMAKE) soak-traffic SOAK_TIME=45 SOAK_CONNECTIONS=1000; \
	else \
	    $(call missing,it needs python3 and Linux); \
	fi

soak-tests:
	+@$(SUBMAKE) build/plain/tests build/poll/tests build/select/tests $(EXAMPLES)
	@echo "== $@: what depends on time, $(SOAK_REPEAT) times with each poller, beside two busy loops"
	@trap 'kill $$one $$two' EXIT; \
	(while :; do :; done) & one=$$!; \
	(while :; do :; done) & two=$$!; \
	failed=0; for poller in plain poll select; do \
	    TEST_TIME_SCALE=20 build/$$poller/tests -j $(SOAK_JOBS) --repeat $(SOAK_REPEAT) $(SOAK_TESTS) || failed=1; \
	done; exit $$failed

build/soak-server: tools/soak/server.c tornado.h
	@mkdir -p $(@D)
	@$(CC) -O2 -g $(WARN) $< -o $@

# For make check: fewer times, but with both sanitizers.
soak-sanitized:
	+@$(SUBMAKE) build/asan/tests build/asan/probe $(EXAMPLES)
	@echo "== $@: what depends on time, 5 times; $(asan.is)"
	@$(asan.run) build/asan/tests -j 8 --repeat 5 $(SOAK_TESTS)

soak-traffic: build/soak-server
	@echo "== $@: $(SOAK_CONNECTIONS) connections of mixed traffic for $(SOAK_TIME) seconds"
	@tools/soak/soak.py $< --seconds $(SOAK_TIME) --connections $(SOAK_CONNECTIONS) --picture build/soak.svg

#-------------------------------------------------------------------------------------------------------------------
# The header as a whole.
#-------------------------------------------------------------------------------------------------------------------

build/implementation.o build/static.o: build/%.o: tests/include/%.c tornado.h
	@mkdir -p $(@D)
	@$(CC) -O1 -c $< -o $@

.PHONY: symbols
symbols: build/implementation.o build/static.o
	@echo "== $@: the implementation defines tornado_ symbols only, and none but main with TORNADO_STATIC;" \
	    "units that disagree do not link"
	@nm -g build/implementation.o > build/implementation.nm
	@nm -g build/static.o > build/static.nm
	@awk 'NF == 3 { count++ } NF == 3 && $$3 !~ /^_?tornado_/ { print "not ours: " $$3; bad = 1 } \
	    END { print count + 0 " symbols"; exit bad || !count }' build/implementation.nm
	@awk 'NF == 3 && $$3 !~ /^_?main$$/ { print "not static: " $$3; bad = 1 } END { exit bad }' build/static.nm
	@$(CC) -c tests/include/user.c -o build/user.o
	@$(CC) -c -DTORNADO_NO_COROUTINES tests/include/user.c -o build/other.o
	@echo 'int main(void) { return 0; }' > build/main.c
	@$(CC) build/main.c build/user.o build/implementation.o -pthread -o build/units
	@! $(CC) build/main.c build/other.o build/implementation.o -pthread -o build/units 2>/dev/null || \
	    { echo "a unit without coroutines links with an implementation that has them"; exit 1; }

.PHONY: map
map:
	@echo "== $@: lines per section, layers, comments"
	@if command -v python3 >/dev/null; then tools/map; else $(call missing,python3 is not installed); fi

.PHONY: manual
manual:
	@echo "== $@: what each documented name of Tornado is here, and the tests that show it"
	@if command -v python3 >/dev/null; then tools/manual; else $(call missing,python3 is not installed); fi

# The same for reading, as Markdown.
.PHONY: docs
docs:
	@if command -v python3 >/dev/null; then tools/manual --markdown; else $(call missing,python3 is not installed); fi

# Exceptions, each with its reason, are in .clang-tidy and tools/cppcheck.txt.
.PHONY: analyse
analyse:
	@echo "== $@: clang-tidy and cppcheck"
	@if command -v clang-tidy >/dev/null && command -v cppcheck >/dev/null; then \
	    failed=0; \
	    clang-tidy --quiet tests/include/implementation.c -- -std=gnu11 2>/dev/null || failed=1; \
	    cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability \
	        --suppressions-list=tools/cppcheck.txt -D__linux__ -D__x86_64__ -D__GNUC__=12 \
	        tests/include/implementation.c || failed=1; \
	    exit $$failed; \
	else \
	    $(call missing,clang-tidy or cppcheck is not installed); \
	fi

# Sections that can be left out: each alone, and all.
PARTS = nothing ZIP EXECUTOR PROCESS RESOLVER TCP WEB HTTP all
parts_flags = $(if $(filter all,$(1)),$(patsubst %,-DTORNADO_NO_%,$(filter-out nothing all,$(PARTS))), \
    $(if $(filter nothing,$(1)),,-DTORNADO_NO_$(1)))

.PHONY: parts
parts: $(PARTS:%=build/parts/%)
	@echo "== $@: the library with a section left out, each alone and all"
	@for part in $(PARTS); do build/parts/$$part || { echo "FAILED without $$part"; exit 1; }; done

$(PARTS:%=build/parts/%): tests/include/parts.c tornado.h
	@mkdir -p $(@D)
	@$(CC) -O0 -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Werror $(call parts_flags,$(@F)) -o $@ $<

.PHONY: callbacks
callbacks: build/callbacks
	@echo "== $@: the library without coroutines and threads"
	@build/callbacks 2>build/callbacks.log || { cat build/callbacks.log; exit 1; }

build/callbacks: tests/include/callbacks.c tornado.h
	@mkdir -p $(@D)
	@$(CC) -O1 -g $(WARN) -o $@ $<

.PHONY: examples
examples: $(EXAMPLES)
	@echo "== $@: $(words $(EXAMPLES)) built"

$(EXAMPLES): build/examples/%: examples/%.c tornado.h
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(if $(SSL_EXAMPLE),$$(cat $(SSL_EXAMPLE))) -o $@ $< -I. $(if $(SSL_EXAMPLE),$$(test ! -s $(SSL_EXAMPLE) || echo -lssl -lcrypto))

# With TLS where that can be had; else it says what is missing.
build/examples/https: SSL_EXAMPLE = build/plain/openssl
build/examples/https: build/plain/openssl

comma = ,
.PHONY: size
size:
	@echo "== $@: what each section costs, and hello, stripped, for a small program"
	@mkdir -p build/size
	@$(CC) -Os -g -ffunction-sections -fdata-sections -c -o build/size/implementation.o tests/include/implementation.c
	@tools/map --sizes build/size/implementation.o
	@$(foreach part,$(PARTS),$(CC) -Os -c $(call parts_flags,$(part)) -o build/size/part.o tests/include/parts.c && \
	    echo "$$(size build/size/part.o | awk 'NR == 2 { print $$1 + $$2 }') bytes of object without $(part)";)
	@$(foreach cc,$(CC) musl-gcc+-static arm-linux-gnueabihf-gcc, \
	    if command -v $(word 1,$(subst +, ,$(cc))) >/dev/null; then \
	        $(subst +, ,$(cc)) -Os -ffunction-sections -fdata-sections -Wl$(comma)--gc-sections -s -o build/size/hello \
	            examples/hello.c && echo "$$(wc -c < build/size/hello) bytes by $(subst +, ,$(cc))"; fi;)

.PHONY: compile-time
compile-time:
	@echo "== $@: the implementation at -O0 (user and system time)"
	@mkdir -p build
	@sh -c '$(CC) -O0 -c tests/include/implementation.c -o build/compile-time.o && times' | tail -n 1

.PHONY: bench
bench:
	@echo "== $@: beside other servers, in one run"
	@tools/bench/bench.py

#-------------------------------------------------------------------------------------------------------------------

# What `make check` always does, and of what takes its turns: so many of each row as its first word says, begun at a
# place that the commit decides, so that a commit always has the same ones; `make check ROTATION=7` has others. What
# takes longer (the processors under QEMU 5 to 20 minutes each) is for `make check-all`.
CHECKS = map manual symbols warnings parts callbacks examples test-asan soak-sanitized fuzz-short
TURNS_native = 1 gcc clang asan-clang ucontext c11 gnu17 O0 O3 poll select
TURNS_other = 1 valgrind-part analyse fuzz-replay test-tsan
# Tests by the beginnings of their names; all of them take Valgrind too long.
TURNS_valgrind = 1 web_+routing_+transform+multipart http+conformance \
    coroutine+gen_+future+locks_+queues_+ioloop_+context iostream_+tcp_+netutil_+process_+resolver_+executor_+tls_ \
    json+value+regex_+zip_+escape_+codec+time_+log_

ROTATION := $(shell echo $$((0x$$(git rev-parse --short=6 HEAD 2>/dev/null || date +%j))))

# $(1): how many, $(2): of what
turns = $(if $(2),$(shell set -- $(2); n=$$#; set -- "$$@" "$$@"; shift $$(($(ROTATION) % n)); \
    for i in $$(seq $(1)); do [ $$i -le $$n ] && echo $$1; shift; done))
turns_of = $(call turns,$(firstword $(TURNS_$(1))),$(wordlist 2,99,$(TURNS_$(1))))

# One of these, which the commit decides.
.PHONY: valgrind-part
valgrind-part:
	+@$(MAKE) --no-print-directory test-valgrind VALGRIND_TESTS='$(subst +, ,$(call turns_of,valgrind))'

ROTATING = $(addprefix test-,$(call turns_of,native)) $(call turns_of,other)
ALL_CHECKS = $(CHECKS) $(filter-out $(CHECKS) test-plain,$(ENVIRONMENTS:%=test-%)) \
    fuzz-replay faults analyse coverage fuzz-coverage soak-short size compile-time

# One after the other, each parallel in itself, so that test programs do not slow each other down.
define run_checks
	+@failed=; for step in $(1); do \
	    $(MAKE) --no-print-directory $$step || failed="$$failed $$step"; \
	done; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; else echo "== $@: all is well"; fi
endef

.PHONY: check
check: ROTATING := $(ROTATING)
check:
	@echo "== $@: rotation $(ROTATION) adds $(ROTATING)"
	$(call run_checks,$(CHECKS) $(ROTATING))

.PHONY: check-all
check-all:
	$(call run_checks,$(ALL_CHECKS) table)

.PHONY: install
install:
	install -d $(DESTDIR)$(PREFIX)/include
	install -m 644 tornado.h $(DESTDIR)$(PREFIX)/include/tornado.h

.PHONY: clean
clean:
	rm -rf build
