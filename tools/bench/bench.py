#!/usr/bin/env python3
"""Measures tornado.h beside other servers of hello, world, in one run on one machine, and prints one table.

Every server is one process on one core, the load generator (wrk, one thread) has another. Without pipelining the
generator is the bottleneck, so requests/s say little: CPU time, instructions and system calls per request do. The
bare epoll loop parses nothing: it is the floor.

  load          wrk, the servers in turn, run after run; CPU time is the server's, user and system
  instructions  in user mode, by callgrind: two runs of different length on one connection, their difference;
                a repeated instruction (rep stosb) counts as often as it repeats, so libc is told to use none
  routes        the same of tornado.h with few and with many patterns to choose from
  calls         system calls by strace: two runs of different length, their difference
  memory        what the resident set grows by per idle connection that has had one answer; what was set aside at
                the start is not in it (nginx does that for its connections)
  crowd         64 busy connections with and without idle ones beside them
  size          of a small program with tornado.h in it, and the time to compile it
  regex         patterns beside other engines: CPU time of one match, and of each further byte of text
  json          a document of 600 KB read and written beside other engines: megabytes of it for a second of CPU time
  zip           HTML, JSON and noise compressed and decompressed, about 1 MB each, beside other engines: megabytes of
                it for a second of CPU time, and how small it becomes
  parse         a browser's request and a chunked body beside another parser: CPU time of one
  core          coroutines, timers, callbacks of another thread, memory of those that wait, beside other event loops
  stream        lines sent back to 64 connections, lines of a long stream, memory of idle streams, beside other event
                loops and a bare epoll loop without buffers; CPU time, user and system
  upload        a body of 4 GiB (a quarter in a quick run) taken as it comes, beside a bare recv loop: megabytes for a
                second and for a second of CPU time, user and system, and by how much memory grows meanwhile
  resolver      names asked of dnsmasq, known already, or localhost, beside another resolver, the system's and a bare
                epoll loop; connections from connect to close beside such a loop; CPU time, user and system
  tls           handshakes beside nginx, with the same certificate and new sessions, from eight clients on the other
                core; a file beside openssl s_server; memory of idle connections. CPU time is the server's, user and
                system, and steady; what a second brings depends on the client's core, too

What is not installed is left out and named below the table. All traffic is on 127.0.0.1; output is in build/bench/.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, "build", "bench")
CC = shlex.split(os.environ.get("CC", "cc"))
CFLAGS = ["-O2", "-D_GNU_SOURCE"]
BODY = b"Hello, world"


class Failure(Exception):
    """Something that was to be measured cannot be; the text says why."""


def find(pattern, text, what):
    found = re.search(pattern, text, re.M)
    if not found:
        raise Failure(f"no {what} in: {text.strip()[-200:]!r}")
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The servers.
# ----------------------------------------------------------------------------------------------------------------------

def compiled(program, *flags):
    """A server in C: how to make it ready. Missing when it does not compile."""
    def prepare():
        compile_c(program, *flags)
        return lambda port: [built(program), str(port)]
    return prepare


def nginx(listen=""):
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if not program:
        raise Failure("nginx is not installed")

    def command(port):
        home = os.path.join(BUILD, "nginx", str(port))
        os.makedirs(home, exist_ok=True)
        with open(os.path.join(home, "nginx.conf"), "w") as config:
            config.write(NGINX_CONFIG.replace("PORT", str(port)).replace("LISTEN", listen))
        return [program, "-p", home, "-c", "nginx.conf"]
    return command


NGINX_CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events { worker_connections 20000; }
http {
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    default_type text/plain;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    server {
        listen 127.0.0.1:PORT backlog=4096 LISTEN;
        location / { return 200 "Hello, world"; }
    }
}
"""


def python_tornado():
    python = "/usr/bin/python3"
    found = os.path.exists(python) and subprocess.run([python, "-c", "import tornado"], stderr=subprocess.DEVNULL)
    if not found or found.returncode:
        raise Failure("python3-tornado is not installed")
    return lambda port: [python, os.path.join(HERE, "tornado_hello.py"), str(port)]


@dataclasses.dataclass
class Server:
    name: str
    prepare: object                     # returns a function from a port to a command, or raises Failure
    package: str = ""                   # of Debian and its like; "" for what this repository has
    path: str = "/"
    body: bytes = BODY                  # how the answer's body ends, at least
    every: int = 1                      # of so many runs of the load, one: for peers that are far away
    rounds: tuple = (500, 3500)         # requests while instructions are counted
    idle: int = 1 << 30                 # idle connections at most, for those whose loop looks at all of them
    slow: bool = False                  # under valgrind: left out of a quick run
    command: object = None
    ready: object = None                # waits until it is; default: until it answers a request
    results: dict = dataclasses.field(default_factory=dict)


BARE = Server("bare epoll loop", compiled("bare"))
OURS = Server("tornado.h", compiled("tornado_hello", f"-I{ROOT}"))
OURS_JSON = Server("tornado.h, JSON", compiled("tornado_hello", f"-I{ROOT}"), path="/json", body=b"}", every=3)
SERVERS = [
    BARE,
    OURS,
    OURS_JSON,
    Server("h2o (libh2o)", compiled("h2o", "-lh2o-evloop", "-lssl", "-lcrypto"), "libh2o-evloop-dev libssl-dev"),
    Server("nginx", nginx, "nginx-light"),
    Server("libmicrohttpd", compiled("microhttpd", "-lmicrohttpd"), "libmicrohttpd-dev", every=3, idle=2000),
    Server("libevent evhttp", compiled("evhttp", "-levent"), "libevent-dev", every=3),
    Server("Python Tornado", python_tornado, "python3-tornado", every=3, rounds=(50, 250), slow=True),
]


# ----------------------------------------------------------------------------------------------------------------------
# Building and running.
# ----------------------------------------------------------------------------------------------------------------------

def built(program):
    return os.path.join(BUILD, program)


@functools.lru_cache(None)
def compile_c(program, *flags):
    command = [*CC, *CFLAGS, os.path.join(HERE, program + ".c"), "-o", built(program), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if done.returncode:
        raise Failure(find(r"^.*(?:error|cannot find).*$", done.stdout, "reason")[0])


def on_core(core):
    """For preexec_fn: keeps the process on a core, where there is one of that number."""
    def pin():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})
    return pin if core is not None else None


ports = itertools.count(20000)


def free_port():
    """Below the range that the kernel gives to clients, so that no connection can take it first."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


def child_of(pid):
    """Its first child, or itself when it has none."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            return int((children.read().split() or [pid])[0])
    except OSError:
        return pid


def end(process, pid):
    """Asks a process of ours, or its child `pid`, to end, and sees that it does."""
    if process.poll() is not None:
        return
    for number in signal.SIGTERM, signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
            return
    process.kill()
    process.wait()


def wait_until_it_answers(server, process, port, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failure(f"ended with {process.returncode} at its start: see {os.path.relpath(BUILD)}/log")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), seconds) as s:
            s.sendall(f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            answer = s.recv(65536)
            while not answer.endswith(server.body) and (more := s.recv(65536)):
                answer += more
            if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(server.body):
                raise Failure(f"does not answer as expected: {answer!r}")
            return
        time.sleep(0.02)
    raise Failure("does not listen")


def wait_until_it_listens(_, process, port, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), seconds):
            return
        time.sleep(0.02)
    raise Failure(f"does not listen: see {os.path.relpath(BUILD)}/log")


# What makes two runs alike, for counting.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "GLIBC_TUNABLES": "glibc.cpu.x86_rep_stosb_threshold=1073741824:glibc.cpu.x86_rep_movsb_threshold=1073741824",
}


class Running:
    """A server at work. `pid` is the server's own, also under a tool that runs it as a child."""

    def __init__(self, server, core, tool=()):
        self.server, self.port = server, free_port()
        environment = dict(os.environ, **(ENVIRONMENT if tool else {}))
        with open(os.path.join(BUILD, "log"), "a") as log:
            self.process = subprocess.Popen([*tool, *server.command(self.port)], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, env=environment, preexec_fn=on_core(core))
        try:
            (server.ready or wait_until_it_answers)(server, self.process, self.port)
            self.pid = child_of(self.process.pid)
        except BaseException:
            end(self.process, child_of(self.process.pid))
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process, self.pid)

    def client(self, connections, rounds, batch, core=None, **options):
        command = [built("client"), str(self.port), self.server.path, str(connections), str(rounds), str(batch)]
        return command, dict(stderr=subprocess.PIPE, universal_newlines=True, preexec_fn=on_core(core), **options)

    def tls_client(self, *arguments, core=None, **options):
        command = [built("tls"), arguments[0], str(self.port), *map(str, arguments[1:])]
        return command, dict(stderr=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
                             preexec_fn=on_core(core), **options)

    def exchange(self, *args, **options):
        """Sends exactly connections * (1 + rounds * batch) requests."""
        command, options = self.client(*args, **options)
        done = subprocess.run(command, timeout=120, **options)
        if done.returncode:
            raise Failure(done.stderr.strip().splitlines()[-1])

    def holding(self, connections, core):
        """Meanwhile so many idle connections exist, each of which has had one answer."""
        command, options = self.client(connections, 0, 1, core, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self.held_by(command + ["hold"], options)

    @contextlib.contextmanager
    def held_by(self, command, options):
        client = subprocess.Popen(command, **options)
        try:
            if client.stdout.readline() != "held\n":
                raise Failure(client.stderr.read().strip())
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                client.stdin.close()
            client.wait(30)
            client.stdout.close()
            client.stderr.close()

    def resident(self):
        with open(f"/proc/{self.pid}/smaps_rollup") as maps:
            return int(find(r"^Rss: +(\d+) kB", maps.read(), "resident set")[1]) * 1024

    def clocks(self):
        """CPU time in nanoseconds: exact, and by the timer's tick in all and in user mode."""
        return [time.clock_gettime_ns((~self.pid << 3) | which) for which in (2, 0, 1)]


SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
while os.getppid() == parent:
    pass
"""


@contextlib.contextmanager
def cores_awake(cores):
    """Busy loops at idle priority, so that no core sleeps or slows down while something waits."""
    spinners = [subprocess.Popen([sys.executable, "-S", "-c", SPIN, str(core)], stderr=subprocess.DEVNULL)
                for core in cores]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def busy_seconds():
    """CPU time of everybody on this machine, and of this program and its children that have ended."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return ((user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"),
            sum(usage.ru_utime + usage.ru_stime for usage in usages))


@contextlib.contextmanager
def watching_for_others(step):
    """Says so when others had a good part of the machine meanwhile: the figures are worth less then."""
    start, (all_before, ours_before) = time.monotonic(), busy_seconds()
    yield
    seconds, (all_after, ours_after) = time.monotonic() - start, busy_seconds()
    share = ((all_after - all_before) - (ours_after - ours_before)) / (seconds * os.cpu_count())
    if seconds > 3 and share > 0.05:
        note(f"measure again: while measuring {step}, others used {share:.0%} of the machine")


# ----------------------------------------------------------------------------------------------------------------------
# Load.
# ----------------------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Load:
    name: str
    connections: int
    batch: int = 1


KEEP_ALIVE = Load("keep-alive, 256 connections", 256)
MANY = Load("keep-alive, 512 connections", 512)
PIPELINED = Load("pipelined by 16, 64 connections", 64, 16)
LOADS = [KEEP_ALIVE, MANY, PIPELINED]

Sample = collections.namedtuple("Sample", "requests seconds cpu tick_cpu tick_user")


def wrk(running, load, seconds, core):
    """One run of the generator: what it counted, and the server's CPU time meanwhile."""
    script = ["-s", os.path.join(HERE, "pipeline.lua")] if load.batch > 1 else []
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", *script,
               f"http://127.0.0.1:{running.port}{running.server.path}", "--", str(load.batch)]
    before = running.clocks()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                          timeout=seconds + 30, preexec_fn=on_core(core))
    spent = [after - earlier for after, earlier in zip(running.clocks(), before)]
    counted = find(r"(\d+) requests in ([\d.]+)s", done.stdout, "count")
    wrong = re.search(r"Non-2xx.*|Socket errors:.*", done.stdout)
    if wrong or counted[1] == "0":
        raise Failure(f"{load.name}: {wrong[0] if wrong else 'no request was answered'}")
    return Sample(int(counted[1]), float(counted[2]), *spent)


def measure_load(servers, options):
    if not shutil.which("wrk"):
        raise Failure("wrk is not installed (apt-get install wrk)")
    samples = {(server.name, load.name): {} for server in servers for load in options.loads}
    with contextlib.ExitStack() as stack:
        running = {}
        for server in servers:
            with failing(server, "load"):
                running[server.name] = stack.enter_context(Running(server, options.server_core))
        for run, load in itertools.product(range(options.runs), options.loads):
            progress(f"load: run {run + 1} of {options.runs}, {load.name}")
            for server in servers[run % len(servers):] + servers[:run % len(servers)]:
                if run % server.every == 0 and server.name in running:
                    with failing(server, "load"):
                        samples[server.name, load.name][run] = wrk(running[server.name], load, options.seconds,
                                                                   options.client_core)
    for server, load in itertools.product(servers, options.loads):
        if samples[server.name, load.name]:
            floor = samples.get((BARE.name, load.name), {})
            server.results[load.name] = summary(samples[server.name, load.name], floor)


def microseconds(sample):
    return sample.cpu / sample.requests / 1000


def summary(samples, floor):
    """The figures of one server under one load. Ratios are between neighbours in time; the share of user time is of
    all runs together, because the tick is coarse."""
    ticks = sum(sample.tick_cpu for sample in samples.values())
    cpu = figure(microseconds(sample) for sample in samples.values())
    return {
        "requests_per_second": figure(sample.requests / sample.seconds for sample in samples.values()),
        "cpu_us_per_request": cpu,
        "user_us_per_request": cpu["median"] * sum(s.tick_user for s in samples.values()) / ticks if ticks else None,
        "cpu_to_bare": figure(microseconds(samples[run]) / microseconds(floor[run]) for run in samples if run in floor),
    }


def figure(values):
    values = sorted(values)
    if not values:
        return None
    return {"median": statistics.median(values), "min": values[0], "max": values[-1], "runs": len(values)}


# ----------------------------------------------------------------------------------------------------------------------
# What one request costs, counted.
# ----------------------------------------------------------------------------------------------------------------------

def instructions_of(server, rounds):
    """Of a whole run, with so many requests on one keep-alive connection."""
    profile = os.path.join(BUILD, f"callgrind.{server.name}.{rounds}")
    with Running(server, None, ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={profile}"]) as running:
        running.exchange(1, rounds, 1)
    with open(profile) as lines:
        return int(find(r"^(?:totals|summary): (\d+)", lines.read(), "total")[1])


def measure_instructions(servers, options):
    if not shutil.which("valgrind"):
        raise Failure("valgrind is not installed (apt-get install valgrind)")
    wanted = [server for server in servers if not (options.quick and server.slow)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {server.name: [pool.submit(instructions_of, server, rounds) for rounds in server.rounds]
                for server in reversed(wanted)}
        for server in wanted:
            progress(f"instructions: {server.name}")
            with failing(server, "instructions"):
                short, long = [job.result() for job in jobs[server.name]]
                server.results["instructions"] = (long - short) / (server.rounds[1] - server.rounds[0])


ROUTES = (10, 1000)
ROUTES_ASKED = {"the middle one": lambda count: count // 2, "the last": lambda count: count - 1}


def server_of_routes(count, asked):
    path = f"/p{ROUTES_ASKED[asked](count):04}/42"
    server = Server(f"{count} routes, {asked}", None, path=path, body=b"42")
    server.command = lambda port: [built("routes"), str(port), str(count)]
    return server


def measure_routes(servers, _):
    """Many routes should cost a request no more than few."""
    if OURS not in servers:
        return
    if not shutil.which("valgrind"):
        raise Failure("valgrind is not installed (apt-get install valgrind)")
    progress("routes")
    with failing(OURS, "routes"), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compile_c("routes", f"-I{ROOT}")
        short, long = OURS.rounds
        jobs = {(asked, count): [pool.submit(instructions_of, server_of_routes(count, asked), rounds)
                                 for rounds in (short, long)] for asked in ROUTES_ASKED for count in ROUTES}
        counted = {key: (job[1].result() - job[0].result()) / (long - short) for key, job in jobs.items()}
        OURS.results["routes"] = {asked: {count: counted[asked, count] for count in ROUTES} for asked in ROUTES_ASKED}


# Of the summary of strace: % time, seconds, usecs/call, calls, errors (or nothing), name.
CALL_ROW = r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$"


def calls_of(server, load, rounds, options):
    """System calls of a whole run by name."""
    table = os.path.join(BUILD, "strace")
    with Running(server, options.server_core, ["strace", "-f", "-c", "-o", table]) as running:
        running.exchange(load.connections, rounds, load.batch, core=options.client_core)
    with open(table) as lines:
        rows = re.findall(CALL_ROW, lines.read(), re.M)
    return collections.Counter({name: int(calls) for calls, name in rows if name != "total"})


# Rounds of the short and the long run. Opening and closing cost a few calls more or less each time; the difference
# has to be long enough to hide that.
CALL_ROUNDS = {KEEP_ALIVE.name: (2, 52), PIPELINED.name: (2, 12)}


def measure_calls(servers, options):
    if not shutil.which("strace"):
        raise Failure("strace is not installed (apt-get install strace)")
    for server, load in itertools.product(servers, (KEEP_ALIVE, PIPELINED)):
        progress(f"calls: {server.name}, {load.name}")
        with failing(server, "calls"):
            few, many = CALL_ROUNDS[load.name]
            short, long = [calls_of(server, load, rounds, options) for rounds in (few, many)]
            requests = (many - few) * load.connections * load.batch
            by_name = {name: (long[name] - short[name]) / requests for name in long | short}
            server.results.setdefault("calls", {})[load.name] = {
                "all": sum(by_name.values()),
                "by_name": {name: each for name, each in sorted(by_name.items(), key=lambda item: -item[1])
                            if each >= 0.0005}}


# ----------------------------------------------------------------------------------------------------------------------
# Idle connections.
# ----------------------------------------------------------------------------------------------------------------------

def settled(running):
    """The resident set once the server has nothing to do."""
    time.sleep(0.2)
    return running.resident()


def measure_memory(servers, options):
    for server in servers:
        progress(f"memory: {server.name}")
        with failing(server, "memory"), Running(server, options.server_core) as running:
            connections = min(options.idle, server.idle)
            running.exchange(1, 200, 1, core=options.client_core)
            before = settled(running)
            with running.holding(connections, options.client_core):
                server.results["bytes_per_idle"] = (settled(running) - before) / connections


CROWD = Load("64 busy connections", 64)
CROWD_RUNS = 3


def measure_crowd(servers, options):
    for server in servers:
        if server not in (BARE, OURS) or options.quick:
            continue
        progress(f"crowd: {server.name}")
        with failing(server, "crowd"), Running(server, options.server_core) as alone, \
                Running(server, options.server_core) as crowded, \
                crowded.holding(options.idle, options.client_core):
            pairs = [[wrk(running, CROWD, options.seconds, options.client_core) for running in (alone, crowded)]
                     for _ in range(CROWD_RUNS)]
            server.results["crowd"] = {name: {
                "requests_per_second": figure(sample.requests / sample.seconds for sample in column),
                "cpu_us_per_request": figure(microseconds(sample) for sample in column),
            } for name, column in zip(("alone", "crowded"), zip(*pairs))}


# ----------------------------------------------------------------------------------------------------------------------
# Size and time to compile.
# ----------------------------------------------------------------------------------------------------------------------

HELLO = [os.path.join(ROOT, "examples", "hello.c"), os.path.join(HERE, "tornado_hello.c")]
SMALL = ["-Os", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-s"]


def cpu_seconds_of(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise Failure("does not compile: " + " ".join(command))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_size(servers, options):
    if OURS not in servers:
        return
    progress("size")
    source = next(path for path in HELLO if os.path.exists(path))
    with failing(OURS, "size"):
        small, unit = built("small"), built("tornado_h.o")
        cpu_seconds_of([*CC, *SMALL, source, f"-I{ROOT}", "-o", small])
        whole = ["-DTORNADO_IMPLEMENTATION", "-x", "c", os.path.join(ROOT, "tornado.h"), "-c", "-o", unit]
        OURS.results["size"] = {
            "source": os.path.relpath(source, ROOT),
            "bytes": os.path.getsize(small),
            "compile_seconds_O0": min(cpu_seconds_of([*CC, "-O0", *whole]) for _ in range(3)),
        }


# ----------------------------------------------------------------------------------------------------------------------
# Patterns: the cases are those of regex.c, which measures all engines but Python's.
# ----------------------------------------------------------------------------------------------------------------------

REGEX_LONG = 20000
REGEX_PATIENCE = 2  # seconds that one match of Python's may take
regex_figures = {}  # case: {engine: [ns of one match, ns of each further byte]}, as text


class TooSlow(Exception):
    pass


@contextlib.contextmanager
def patient_for(seconds):
    def give_up(*_):
        raise TooSlow
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def python_ns(match, text, seconds):
    """The least of several times of one match. The first tells whether Python comes to an end at all."""
    with patient_for(REGEX_PATIENCE):
        match(text)
    rounds, best = 1, None
    for _ in range(5):
        while True:
            before = time.thread_time_ns()
            for _ in range(rounds):
                match(text)
            spent = time.thread_time_ns() - before
            if spent >= seconds * 1e9:
                break
            rounds = rounds * 10 if spent < seconds * 1e8 else int(rounds * seconds * 1.1e9 / spent) + 1
        best = spent / rounds if best is None else min(best, spent / rounds)
    return best


def python_figures(search, pattern, head, unit, tail, count, start, end, seconds):
    pattern, head, unit, tail = (column.encode().decode("unicode_escape").encode()
                                 for column in (pattern, head, unit, tail))
    regex = re.compile(pattern)
    match = regex.search if search == "1" else regex.fullmatch
    text, figures = head + unit * int(count) + tail, ["-", "-"]
    try:
        figures[0] = python_ns(match, text, seconds)
        found = match(text)
        if (found.span() if found else (-1, -1)) != (int(start), int(end)):
            return ["differs", "-"]
        if unit:
            half, whole = (python_ns(match, head + unit * (REGEX_LONG // part) + tail, seconds) for part in (2, 1))
            figures[1] = (whole - half) / (len(unit) * (REGEX_LONG - REGEX_LONG // 2))
    except TooSlow:
        figures[figures.index("-")] = f"> {REGEX_PATIENCE} s"
    return figures


def compile_regex():
    """With the engines that are installed; the others become notes."""
    flags = [f"-I{ROOT}"]
    try:
        done = subprocess.run([*shlex.split(os.environ.get("CXX", "c++")), "-O2", "-c",
                               os.path.join(HERE, "regex_re2.cc"), "-o", built("regex_re2.o")],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    except OSError:
        done = 1
    re2 = ["-DBENCH_RE2", built("regex_re2.o"), "-lre2", "-lstdc++"]
    for name, package, more, there in (("RE2", "libre2-dev", re2, not done),
                                       ("PCRE2", "libpcre2-dev", ["-DBENCH_PCRE2", "-lpcre2-8"], True)):
        try:
            if not there:
                raise Failure("does not compile")
            compile_c("regex", *flags, *more)
            flags += more
        except Failure as problem:
            note(f"not measured: {name} (apt-get install {package}): {problem}")
    compile_c("regex", *flags)


def measure_regex(_, options):
    seconds = 0.002 if options.quick else 0.02
    progress("regex")
    compile_regex()
    run = functools.partial(subprocess.run, stdout=subprocess.PIPE, universal_newlines=True, check=True,
                            preexec_fn=on_core(options.server_core))
    try:
        for line in run([built("regex"), str(seconds)], timeout=600).stdout.splitlines():
            case, engine, *figures = line.split("\t")
            regex_figures.setdefault(case, {})[engine] = [as_number(figure) for figure in figures]
        cases = run([built("regex"), "list"]).stdout.splitlines()
    except subprocess.SubprocessError as problem:
        raise Failure(problem)
    for line in cases:
        case, *fields = line.split("\t")
        regex_figures[case]["Python"] = python_figures(*fields, seconds)


def as_number(text):
    try:
        return float(text)
    except ValueError:
        return text


def regex_table():
    """Of each case a line, of each engine two columns."""
    engines = list(dict.fromkeys(engine for row in regex_figures.values() for engine in row))
    grid = [["pattern"] + [title for _ in engines for title in ("ns", "ns/byte")]]
    for case, row in regex_figures.items():
        figures = [figure for engine in engines for figure in row.get(engine, ["-", "-"])]
        grid.append([case] + [figure if isinstance(figure, str) else digits(figure if figure > 0 else 0) for figure in figures])
    widths = [max(map(len, column)) for column in zip(*grid)]
    yield group_line(["", *(engine for engine in engines for _ in range(2))][1:], widths)
    for line in grid:
        yield "  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])


# ----------------------------------------------------------------------------------------------------------------------
# JSON: the document is that of json.c, which measures all engines but Python's.
# ----------------------------------------------------------------------------------------------------------------------

json_figures = {}  # case: {engine: megabytes per second}


def measure_json(_, options):
    seconds = 0.02 if options.quick else 0.2
    progress("json")
    try:
        compile_c("json", f"-I{ROOT}", "-DBENCH_JANSSON", "-ljansson")
    except Failure as problem:
        note(f"not measured: jansson (apt-get install libjansson-dev): {problem}")
        compile_c("json", f"-I{ROOT}")
    run = functools.partial(subprocess.run, stdout=subprocess.PIPE, check=True, preexec_fn=on_core(options.server_core))
    try:
        lines = run([built("json"), str(seconds)], timeout=600).stdout.decode().splitlines()
        document = run([built("json"), "document"]).stdout
    except subprocess.SubprocessError as problem:
        raise Failure(problem)
    for line in lines:
        case, engine, figure = line.split("\t")
        json_figures.setdefault(case, {})[engine] = float(figure)
    value = json.loads(document)
    for case, call, argument in (("read", json.loads, document),
                                 ("write, UTF-8", functools.partial(json.dumps, ensure_ascii=False), value),
                                 ("write, \\u", json.dumps, value)):
        json_figures[case]["Python"] = len(document) * 1000 / python_ns(call, argument, seconds)


def beside_peers(title, figures, ratio):
    """Of each case a line, of each engine its figure, of each peer how many times as good tornado.h is."""
    engines = list(dict.fromkeys(engine for row in figures.values() for engine in row))
    grid = [[title] + [heading for engine in engines for heading in (engine, *([] if is_ours(engine) else ["ours"]))]]
    for case, row in figures.items():
        grid.append([case])
        for engine in engines:
            grid[-1].append(digits(row[engine]) if engine in row else "-")
            if not is_ours(engine):
                grid[-1].append(f"{digits(ratio(case, row[OURS.name], row[engine]))} x" if engine in row else "")
    widths = [max(map(len, column)) for column in zip(*grid)]
    for line in grid:
        yield "  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])])


def is_ours(engine):
    return engine.startswith(OURS.name)


def json_table():
    return beside_peers("JSON", json_figures, lambda _, ours, peer: ours / peer)


# ----------------------------------------------------------------------------------------------------------------------
# DEFLATE: zip.c measures all.
# ----------------------------------------------------------------------------------------------------------------------

zip_figures = {}  # case: {engine: megabytes per second, or a ratio}


def measure_zip(_, options):
    progress("zip")
    flags = []
    for peer, more in (("zlib1g", ["-DBENCH_ZLIB", "-lz"]), ("libdeflate", ["-DBENCH_LIBDEFLATE", "-ldeflate"])):
        try:
            compile_c("zip", f"-I{ROOT}", *flags, *more)
            flags += more
        except Failure as problem:
            note(f"not measured: {peer} (apt-get install {peer}-dev): {problem}")
    compile_c("zip", f"-I{ROOT}", *flags)
    try:
        lines = subprocess.run([built("zip"), "0.01" if options.quick else "0.05"], stdout=subprocess.PIPE, check=True,
                               universal_newlines=True, preexec_fn=on_core(options.server_core),
                               timeout=600).stdout.splitlines()
    except subprocess.SubprocessError as problem:
        raise Failure(problem)
    for line in lines:
        case, engine, figure = line.split("\t")
        zip_figures.setdefault(case, {})[engine] = float(figure)


def zip_table():
    return beside_peers("zip", zip_figures, lambda _, ours, peer: ours / peer)


# ----------------------------------------------------------------------------------------------------------------------
# Parsing: parse.c measures all.
# ----------------------------------------------------------------------------------------------------------------------

parse_figures = {}  # case: {engine: nanoseconds}


def measure_parse(_, options):
    progress("parse")
    try:
        compile_c("parse", f"-I{ROOT}", "-DBENCH_HTTP_PARSER", "-lhttp_parser")
    except Failure as problem:
        note(f"not measured: http-parser (apt-get install libhttp-parser-dev): {problem}")
        compile_c("parse", f"-I{ROOT}")
    try:
        lines = subprocess.run([built("parse"), "0.02" if options.quick else "0.2"], stdout=subprocess.PIPE,
                               universal_newlines=True, check=True, timeout=600,
                               preexec_fn=on_core(options.server_core)).stdout.splitlines()
    except subprocess.SubprocessError as problem:
        raise Failure(problem)
    for line in lines:
        case, engine, figure = line.split("\t")
        parse_figures.setdefault(case, {})[engine] = float(figure)


def parse_table():
    return beside_peers("parse", parse_figures, lambda _, ours, peer: peer / ours)


# ----------------------------------------------------------------------------------------------------------------------
# The core: core.c measures all.
# ----------------------------------------------------------------------------------------------------------------------

core_figures = {}  # "case, unit": {engine: figure}
CORE_PEERS = [("libevent", ["-DBENCH_LIBEVENT", "-levent"]),  # before libev, which has functions of the same names
              ("libev", ["-DBENCH_LIBEV", "-lev"]), ("libuv1", ["-DBENCH_LIBUV", "-luv"])]


stream_figures = {}
STREAM_PEERS = [peer for peer in CORE_PEERS if peer[0] != "libev"]

resolver_figures = {}
RESOLVER_PEERS = [("libc-ares", ["-DBENCH_CARES", "-lcares"])]


def measure_cases(program, peers, seconds, figures):
    """Runs a program that prints a line for each case and engine, with the peers that are installed."""
    progress(program)
    flags = [f"-I{ROOT}", "-pthread"]
    for peer, more in peers:
        try:
            compile_c(program, *flags, *more)
            flags += more
        except Failure as problem:
            note(f"not measured: {peer} (apt-get install {peer}-dev): {problem}")
    compile_c(program, *flags)
    try:  # on any core: a case has two threads or processes
        lines = subprocess.run([built(program), seconds], stdout=subprocess.PIPE, universal_newlines=True, check=True,
                               timeout=600).stdout.splitlines()
    except subprocess.SubprocessError as problem:
        raise Failure(problem)
    for line in lines:
        case, engine, figure, unit = line.split("\t")
        figures.setdefault(f"{case}, {unit}", {})[engine] = float(figure)


def measure_core(_, options):
    measure_cases("core", CORE_PEERS, "0.01" if options.quick else "0.1", core_figures)


def measure_stream(_, options):
    measure_cases("stream", STREAM_PEERS, "0.1" if options.quick else "1", stream_figures)


upload_figures = {}


def measure_upload(_, options):
    measure_cases("upload", [], "0.25" if options.quick else "4", upload_figures)


def measure_resolver(_, options):
    measure_cases("resolver", RESOLVER_PEERS, "0.05" if options.quick else "0.5", resolver_figures)
    if "lookup, ns" not in resolver_figures:
        note("not measured: lookups (apt-get install dnsmasq-base)")


def cases_table(title, figures):
    return beside_peers(title, figures, lambda case, ours, peer: peer / ours if case.endswith((" ns", " us", " bytes"))
                        else ours / peer)


def core_table():
    return cases_table("core", core_figures)


def stream_table():
    return cases_table("stream", stream_figures)


def upload_table():
    return cases_table("upload", upload_figures)


def resolver_table():
    return cases_table("resolver", resolver_figures)


# ----------------------------------------------------------------------------------------------------------------------
# TLS: tls.c is our server, and all clients.
# ----------------------------------------------------------------------------------------------------------------------

tls_figures = {}
TLS_HOME = os.path.join(BUILD, "tls_files")
TLS_FILES = [os.path.join(TLS_HOME, name) for name in ("certificate.pem", "key.pem", "file")]
TLS_FILE_MEGABYTES = 64


def tls_servers():
    """Ours, nginx and s_server, where there are such."""
    certificate, key, file = map(shlex.quote, TLS_FILES)
    os.makedirs(TLS_HOME, exist_ok=True)
    made = shutil.which("openssl") and subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", TLS_FILES[1], "-out", TLS_FILES[0]], stderr=subprocess.DEVNULL)
    if not made or made.returncode:
        raise Failure("no certificate was made (apt-get install openssl)")
    with open(TLS_FILES[2], "wb") as out:
        out.write(os.urandom(1 << 20) * TLS_FILE_MEGABYTES)
    compile_c("tls", f"-I{ROOT}", "-pthread", "-lssl", "-lcrypto")
    ours = Server(OURS.name, None, ready=wait_until_it_listens,
                  command=lambda port: [built("tls"), "serve", str(port), *TLS_FILES])
    s_server = Server("openssl s_server", None, "openssl", ready=wait_until_it_listens, command=lambda port: [
        "sh", "-c", f"cd {shlex.quote(TLS_HOME)} && exec openssl s_server -accept 127.0.0.1:{port} "
                    f"-cert {certificate} -key {key} -WWW -quiet"])
    try:
        listen = f"ssl; ssl_certificate {TLS_FILES[0]}; ssl_certificate_key {TLS_FILES[1]}; " \
                 "ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache off"
        return ours, Server("nginx", None, "nginx-light", ready=wait_until_it_listens, command=nginx(listen)), s_server
    except Failure as problem:
        note(f"not measured, tls: nginx (apt-get install nginx-light): {problem}")
        return ours, None, s_server


def tls_in_turn(case, rate, servers, command, scale, runs, options):
    """Runs a client against each server in turn. What it counts, `scale` at a time: CPU time of one, and how many
    there are in a second."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Running(server, options.server_core)) for server in servers if server]
        samples = {each.server.name: [] for each in running}
        for _, each in itertools.product(range(runs), running):
            client, how = each.tls_client(*command, core=options.client_core)
            start, before = time.monotonic(), each.clocks()[0]
            done = subprocess.run(client, timeout=120, **how)
            if done.returncode:
                raise Failure(f"{each.server.name}: {done.stderr.strip()}")
            spent, seconds = each.clocks()[0] - before, time.monotonic() - start
            count = int(done.stdout) / scale
            samples[each.server.name].append((spent / count / 1000, count / seconds))
    for name, found in samples.items():
        tls_figures.setdefault(f"{case}, us", {})[name] = statistics.median(cpu for cpu, _ in found)
        tls_figures.setdefault(f"{rate}/s", {})[name] = statistics.median(each for _, each in found)


def measure_tls(_, options):
    ours, other, s_server = tls_servers()
    runs = 3 if options.quick else 5
    progress("tls: handshakes")
    tls_in_turn("handshake", "handshakes", (ours, other), ("shake", options.seconds), 1, runs, options)
    progress("tls: a file")
    tls_in_turn("a megabyte", "MB", (ours, s_server), ("bulk", "/file", options.seconds), 1e6, runs, options)
    for server in filter(None, (ours, other)):
        progress(f"tls: memory: {server.name}")
        with Running(server, options.server_core) as running:
            subprocess.run(running.tls_client("shake", 0.2)[0], stdout=subprocess.DEVNULL, timeout=60, check=True)
            before = settled(running)
            with running.held_by(*running.tls_client("hold", options.idle, core=options.client_core,
                                                     stdin=subprocess.PIPE)):
                tls_figures.setdefault("idle, bytes", {})[server.name] = (settled(running) - before) / options.idle


def tls_table():
    return cases_table("TLS", tls_figures)


# ----------------------------------------------------------------------------------------------------------------------
# The report.
# ----------------------------------------------------------------------------------------------------------------------

STEPS = {
    "load": measure_load,
    "instructions": measure_instructions,
    "routes": measure_routes,
    "calls": measure_calls,
    "memory": measure_memory,
    "crowd": measure_crowd,
    "size": measure_size,
    "regex": measure_regex,
    "json": measure_json,
    "zip": measure_zip,
    "parse": measure_parse,
    "core": measure_core,
    "stream": measure_stream,
    "upload": measure_upload,
    "resolver": measure_resolver,
    "tls": measure_tls,
}

notes = []
broken = set()


def note(text):
    if text not in notes:
        notes.append(text)


@contextlib.contextmanager
def failing(server, step):
    """What goes wrong with one server becomes a note, and the others go on."""
    try:
        yield
    except (Failure, OSError, subprocess.TimeoutExpired) as problem:
        broken.add(server.name)
        note(f"{server.name}, {step}: {problem}")


def progress(text):
    print(f"  {time.monotonic() - started:4.0f} s  {text}", file=sys.stderr)


started = time.monotonic()


def digits(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def thousands(value):
    return digits(value / 1000)


def look_up(results, path):
    for key in path:
        results = results.get(key) if results else None
    return results


def columns(loads):
    """(group, title, where the figure is, how it is written)"""
    for load in loads:
        yield load.name, "thousand/s", (load.name, "requests_per_second"), thousands
        yield load.name, "CPU us", (load.name, "cpu_us_per_request"), digits
        yield load.name, "user us", (load.name, "user_us_per_request"), digits
        yield load.name, "x bare", (load.name, "cpu_to_bare"), digits
    yield "counted, per request", "instructions", ("instructions",), "{:,.0f}".format
    yield "counted, per request", "calls", ("calls", KEEP_ALIVE.name, "all"), "{:.2f}".format
    yield "counted, per request", "pipelined", ("calls", PIPELINED.name, "all"), "{:.2f}".format
    yield "memory", "bytes/idle", ("bytes_per_idle",), "{:,.0f}".format


def cells(value, write):
    """A figure and its range, or a figure alone, or nothing."""
    if value is None:
        return "-", ""
    if not isinstance(value, dict):
        return write(value), ""
    spread = f"[{write(value['min'])}..{write(value['max'])}]" if value["runs"] > 1 else ""
    return write(value["median"]), spread


def bands(servers, loads, width):
    """The columns that have figures, cut between groups where a line would become too long."""
    known = [column for column in columns(loads)
             if any(look_up(server.results, column[2]) is not None for server in servers)]
    band = []
    for _, group in itertools.groupby(known, key=lambda column: column[0]):
        group = list(group)
        if band and len(lay_out(servers, band + group)[1]) > width:
            yield band
            band = []
        band += group
    if band:
        yield band


def lay_out(servers, shown):
    """Per server a line of medians and one of ranges, below two lines of headings."""
    grid = [["server"] + [title for _, title, _, _ in shown]]
    for server in servers:
        both = [cells(look_up(server.results, path), write) for _, _, path, write in shown]
        grid += [[server.name] + [median for median, _ in both], [""] + [spread for _, spread in both]]
    widths = [max(map(len, column)) for column in zip(*grid)]
    lines = ["  ".join([row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])])
             for row in grid if any(row)]
    return [group_line([group for group, _, _, _ in shown], widths), *lines]


def group_line(groups, widths):
    line, at = " " * widths[0], 1
    for name, members in itertools.groupby(groups):
        count = len(list(members))
        width = sum(widths[at:at + count]) + 2 * (count - 1)
        line += "  " + f" {name} ".center(width, "-")
        at += count
    return line


def remarks(options):
    for server in BARE, OURS:
        for name, title in ("alone", "alone"), ("crowded", f"beside {options.idle:,} idle ones"):
            if figures := look_up(server.results, ("crowd", name)):
                yield (f"{server.name}, 64 busy connections {title}: "
                       f"{' '.join(cells(figures['requests_per_second'], thousands))} thousand/s, "
                       f"{' '.join(cells(figures['cpu_us_per_request'], digits))} us CPU")
    if size := OURS.results.get("size"):
        yield (f"tornado.h in {size['source']}: {size['bytes']:,} bytes (-Os, sections collected, stripped); the whole "
               f"implementation compiles in {size['compile_seconds_O0']:.2f} s at -O0")
    for asked, by_count in OURS.results.get("routes", {}).items():
        few, many = (by_count[count] for count in ROUTES)
        yield (f"tornado.h, of {ROUTES[0]:,} patterns {asked}: {few:,.0f} instructions per request; of {ROUTES[1]:,}: "
               f"{many:,.0f}, {many / few:.2f} times as many")
    for load, calls in OURS.results.get("calls", {}).items():
        yield f"tornado.h calls, {load}: " + ", ".join(f"{name} {each:.3f}" for name, each in calls["by_name"].items())


def version_of(server):
    names = server.package.split()
    done = shutil.which("dpkg-query") and names and subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", names[0]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        universal_newlines=True)
    return done.stdout if done else ""


def machine():
    with open("/proc/cpuinfo") as info:
        model = re.search(r"^(?:model name|Model)\s*: (.*)", info.read(), re.M)
    compiler = subprocess.run([*CC, "--version"], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return {"cpu": model[1] if model else platform.machine(), "cores": os.cpu_count(),
            "kernel": platform.release(), "compiler": compiler.splitlines()[0]}


def report(servers, options):
    host = machine()
    print(f"{host['cpu']}, {host['cores']} cores; Linux {host['kernel']}; {host['compiler']}; "
          f"{options.runs} runs of {options.seconds} s in turn (every third for servers far from the floor), "
          f"server on core {options.server_core}, generator on core {options.client_core}")
    print("Medians [least..most]. CPU is the server's, per request.\n")
    for band in bands(servers, options.loads, options.width):
        print("\n".join(line.rstrip() for line in lay_out(servers, band)) + "\n")
    if regex_figures:
        print("Patterns: CPU time of one match, and of each byte between 10,000 and 20,000 of them.\n")
        print("\n".join(line.rstrip() for line in regex_table()) + "\n")
    if json_figures:
        print("A JSON document of 600 KB: MB/s of CPU time.\n")
        print("\n".join(line.rstrip() for line in json_table()) + "\n")
    if zip_figures:
        print("About 1 MB of HTML, of JSON and of noise at level 6, in parts of 64 KiB but for what is whole: MB/s of "
              "CPU time; how\nmany times smaller it becomes.\n")
        print("\n".join(line.rstrip() for line in zip_table()) + "\n")
    if parse_figures:
        print("Parsing: CPU time; of a head with its checks and strings, of a body with its pieces handed on.\n")
        print("\n".join(line.rstrip() for line in parse_table()) + "\n")
    if core_figures:
        print("The core: CPU time, where two threads work time by the clock; memory of each of 100,000 coroutines "
              "(10,000 whose own\nstack was deep: 32 KiB), of 1,000 requests; inside: the library's own timers, "
              "without handle and clock.\n")
        print("\n".join(line.rstrip() for line in core_table()) + "\n")
    if stream_figures:
        print("Streams: CPU time of the process measured, user and system, for a line of 80 bytes; memory of each of "
              "10,000\nstreams, idle, and with a read that waits.\n")
        print("\n".join(line.rstrip() for line in stream_table()) + "\n")
    if upload_figures:
        print("Upload of a large body: by the clock, by the receiver's CPU time, user and system, and by how much its "
              "memory grows\nfrom the first sixteenth of the body to its end.\n")
        print("\n".join(line.rstrip() for line in upload_table()) + "\n")
    if resolver_figures:
        print("Names: CPU time of a lookup; c-ares asks all questions from one port, tornado.h each from another, as a "
              "bare loop does\nthat checks nothing. Connections: of both ends together, from connect to close.\n")
        print("\n".join(line.rstrip() for line in resolver_table()) + "\n")
    if tls_figures:
        print(f"TLS: CPU time of the server, user and system, of a handshake and for a megabyte of a file; memory of "
              f"each of {options.idle:,}\nidle connections.\n")
        print("\n".join(line.rstrip() for line in tls_table()) + "\n")
    peers = [f"{server.name} {version_of(server)}" for server in servers if version_of(server)]
    for line in [*remarks(options), *([f"peers: {', '.join(peers)}"] if peers else []), *notes]:
        print(line)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": host,
                       "runs": options.runs, "seconds": options.seconds, "idle": options.idle, "notes": notes,
                       "regex": regex_figures, "json": json_figures, "zip": zip_figures, "parse": parse_figures,
                       "core": core_figures, "stream": stream_figures, "upload": upload_figures,
                       "resolver": resolver_figures, "tls": tls_figures,
                       "servers": [{"name": server.name, "package": server.package, "version": version_of(server),
                                    **server.results} for server in servers]}, file, indent=1)


# ----------------------------------------------------------------------------------------------------------------------
# From the command line.
# ----------------------------------------------------------------------------------------------------------------------

def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of everything, in a minute or so")
    parser.add_argument("--runs", type=int, help="runs of the load (9; quick: 3)")
    parser.add_argument("--seconds", type=int, help="of each run (2; quick: 1)")
    parser.add_argument("--idle", type=int, help="idle connections (10,000; quick: 2,000)")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated; default: %(default)s")
    parser.add_argument("--servers", default="", help="comma-separated parts of names; the bare loop is always there")
    parser.add_argument("--server-core", type=int, default=1)
    parser.add_argument("--client-core", type=int, default=0)
    parser.add_argument("--no-spin", action="store_true", help="let the cores sleep")
    parser.add_argument("--width", type=int, default=shutil.get_terminal_size((120, 0)).columns,
                        help="of the table; what does not fit goes below")
    parser.add_argument("--json", metavar="FILE", help="write all figures there, too")
    options = parser.parse_args()
    defaults = {"runs": (9, 3), "seconds": (2, 1), "idle": (10000, 2000)}
    for name, by_speed in defaults.items():
        setattr(options, name, getattr(options, name) or by_speed[options.quick])
    options.loads = [KEEP_ALIVE, PIPELINED] if options.quick else LOADS
    options.steps = [step.strip() for step in options.steps.split(",")]
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(unknown)}")
    return options


def wanted(server, options):
    return server is BARE or any(part.strip().lower() in server.name.lower() for part in options.servers.split(","))


def raise_limits(options):
    """Room for the idle connections; fewer of them where the system does not give it."""
    needed, (_, hard) = options.idle + 2000, resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, hard)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.idle = max(100, hard - 2000)
    note(f"only {options.idle:,} idle connections: the limit of open files is {hard:,}")


def prepared(options):
    """The servers that can be run; the others become notes."""
    ready = []
    for server in SERVERS:
        if not wanted(server, options):
            continue
        try:
            server.command = server.prepare()
            ready.append(server)
        except Failure as problem:
            where = f" (apt-get install {server.package})" if server.package else ""
            note(f"not measured: {server.name}{where}: {problem}")
            if not server.package:
                broken.add(server.name)
    return ready


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    shutil.rmtree(BUILD, ignore_errors=True)
    os.makedirs(BUILD)
    compile_c("client")
    raise_limits(options)
    servers = prepared(options)
    cores = {options.server_core, options.client_core} & os.sched_getaffinity(0)
    for step in options.steps:
        spinning = cores if not options.no_spin and step in ("load", "crowd") else ()
        try:
            with watching_for_others(step), cores_awake(spinning):
                STEPS[step](servers, options)
        except Failure as problem:
            note(f"not measured: {step}: {problem}")
    report(servers, options)
    print(f"measured in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 1 if broken & {BARE.name, OURS.name, OURS_JSON.name} else 0


if __name__ == "__main__":
    sys.exit(main())
