#!/usr/bin/env python3
"""Mixed traffic against a server for a long time: what it holds must not grow.

    tools/soak/soak.py SERVER [--seconds 3600] [--connections 5000] [--picture build/soak.svg]

SERVER is the program made of server.c beside this file; it is started, with a port of its own on the loopback
interface. Most connections keep alive and ask now and then; the others pipeline, break off at any place, send a
byte at a time, close their half, read slowly, wait for handlers and leave before they answer, or send what is no
HTTP. Each answer is checked. All the while one connection measures how long an answer takes.

Memory, descriptors, blocks of the library and the times of answers are drawn in the picture as they come in. The
exit status is 1 when an answer was wrong, when memory, descriptors or blocks grew from the first half to the end, or
when something was left after all clients had gone.
"""
import argparse
import asyncio
import json
import logging
import os
import random
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time

HOST = "127.0.0.1"
WARM_UP = 0.2  # of the time: what is allocated until then is no growth


class Wrong(Exception):
    """An answer that is not what it must be."""


# ---- clients ----


class Client:
    """One connection; everything it does is bounded in time."""

    def __init__(self, port):
        self.port = port

    async def open(self, **options):
        self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection(HOST, self.port, **options), 60)
        return self

    async def ask(self, *requests):
        self.writer.write(b"".join(requests))
        return [await self.answer() for _ in requests]

    async def answer(self):
        return await asyncio.wait_for(self._answer(), 60)

    async def _answer(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:] if line)}
        if not lines[0].startswith("HTTP/1.1 "):
            raise Wrong(f"not an answer: {lines[0]!r}")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(await self.reader.readline(), 16)
                body += await self.reader.readexactly(size)
                if await self.reader.readexactly(2) != b"\r\n":
                    raise Wrong("a chunk does not end")
                if not size:
                    break
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), body

    async def end(self):
        """Until the server closes, which it must."""
        await asyncio.wait_for(self.reader.read(), 60)

    def close(self):
        self.writer.close()

    def abort(self):
        """With a reset, as a client that dies."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                                       struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def get(path, extra=""):
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{extra}\r\n".encode()


def post(body, chunked):
    if not chunked:
        return b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    cut = random.randrange(1, len(body))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
    return b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nx: y\r\n\r\n"


def expect(got, *wanted):
    if got != list(wanted):
        raise Wrong(f"{[(status, body[:60]) for status, body in got]} instead of "
                    f"{[(status, body[:60]) for status, body in wanted]}")


async def keep_alive(client):
    for _ in range(random.randrange(2, 30)):
        expect(await client.ask(get("/")), (200, b"Hello, world"))
        await asyncio.sleep(random.uniform(5, 60))
    client.close()


async def pipeline(client):
    for _ in range(random.randrange(1, 10)):
        names = [str(random.randrange(10**6)) for _ in range(random.randrange(2, 33))]
        expect(await client.ask(*(get(f"/?name={name}") for name in names)),
               *((200, f"Hello, {name}".encode()) for name in names))
        await asyncio.sleep(random.uniform(0.5, 4))
    client.close()


async def bodies(client):
    for _ in range(random.randrange(1, 6)):
        body = random.randbytes(random.choice((10, 1000, 30000, 200000)))
        expect(await client.ask(post(body, random.random() < 0.5)), (200, body))
        await asyncio.sleep(random.uniform(1, 8))
    client.close()


async def break_off(client):
    request = random.choice((get("/"), post(random.randbytes(5000), random.random() < 0.5), get("/wait"),
                             get("/big"), get("/") * 20))
    client.writer.write(request[:random.randrange(len(request) + 1)])
    await asyncio.sleep(random.uniform(0, 0.5))
    client.abort() if random.random() < 0.7 else client.close()
    await asyncio.sleep(random.uniform(1, 5))


async def dribble(client):
    """A byte at a time; every other one too slowly, which is answered 408."""
    slow = random.random() < 0.5
    try:
        for byte in get("/?name=dribble"):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(random.uniform(0.2, 1) if slow else random.uniform(0, 0.05))
            if client.reader.at_eof():
                break
    except ConnectionError:
        pass
    status, body = await client.answer()
    if (status, body) not in ((200, b"Hello, dribble"), (408, b"")):
        raise Wrong(f"a slow client got {status} {body[:60]!r}")
    client.close()


async def half_close(client):
    client.writer.write(get(random.choice(("/", "/wait"))))
    client.writer.write_eof()
    await client.end()  # it may be answered or not: the client is taken for gone
    client.close()
    await asyncio.sleep(random.uniform(1, 5))


async def read_slowly(client):
    client.writer.write(get("/big"))
    total = 0
    while total < 1 << 20:
        part = await asyncio.wait_for(client.reader.read(random.randrange(1, 60000)), 60)
        if not part:
            raise Wrong(f"the end after {total} bytes of a long answer")
        total += len(part)
        await asyncio.sleep(random.uniform(0, 0.3))
        if random.random() < 0.01:
            return client.abort()
    client.close()


async def wait_there(client):
    for _ in range(random.randrange(1, 5)):
        expect(await client.ask(get("/wait")), (200, b"waited"))
    client.writer.write(get("/wait"))
    await asyncio.sleep(random.uniform(0, 0.3))
    client.abort()
    await asyncio.sleep(random.uniform(1, 5))


async def go_wrong(client):
    text, status = random.choice(((b"GET / HTTP/1.1\r\nHost: a\nb: c\r\n\r\n", 400),
                                  (b"GET / HTTP/1.1\r\n\r\n", 400),
                                  (b"GET / HTTP/3.0\r\n\r\n", 505),
                                  (get("/", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400),
                                  (post(b"a", False).replace(b": 1\r\n", b": 9999999\r\n"), 413),
                                  (get("/" + "x" * 70000), 414),
                                  (get("/nothing"), 404), (get("/fail"), 500),
                                  (random.randbytes(100).replace(b"\r", b"?") + b"\n", 400)))
    got, _ = (await client.ask(text))[0]
    if got != status:
        raise Wrong(f"{text[:60]!r} got {got} instead of {status}")
    client.close()
    await asyncio.sleep(random.uniform(1, 5))


# How many of a thousand connections do what.
KINDS = ((keep_alive, 880), (pipeline, 20), (bodies, 20), (break_off, 10), (dribble, 30), (half_close, 10),
         (read_slowly, 10), (wait_there, 10), (go_wrong, 10))


class Soak:
    def __init__(self, options):
        self.options = options
        self.begun = time.monotonic()
        self.until = self.begun + options.seconds
        self.done = {kind.__name__: 0 for kind, _ in KINDS}
        self.wrong, self.dropped = [], 0
        self.rows = []  # second, RSS in KiB, descriptors, blocks, connections, median and worst time in ms

    def over(self):
        return time.monotonic() >= self.until

    async def work(self, kind):
        await asyncio.sleep(random.uniform(0, min(20, self.options.seconds / 10)))
        while not self.over():
            client = Client(self.port)
            try:
                await client.open(limit=1 << 18)
                await kind(client)
                self.done[kind.__name__] += 1
            except asyncio.CancelledError:
                raise
            except Wrong as error:
                self.wrong.append(f"{kind.__name__}: {error}")
            except asyncio.TimeoutError:
                self.wrong.append(f"{kind.__name__}: no answer within 60 seconds")
            except (ConnectionError, asyncio.IncompleteReadError, OSError) as error:
                self.dropped += 1  # a request may cross with the server's closing an idle connection
                if kind not in (break_off, dribble, go_wrong, half_close):
                    self.wrong.append(f"{kind.__name__}: {error!r}")
            finally:
                if hasattr(client, "writer"):
                    client.close()
                    client.writer = None
            if len(self.wrong) > 100:
                return
            await asyncio.sleep(0.05)

    def held(self):
        with open(f"/proc/{self.server.pid}/status") as file:
            rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        return rss, len(os.listdir(f"/proc/{self.server.pid}/fd"))

    async def sample(self):
        """One row each interval, of a connection that asks 20 times a second."""
        interval = max(0.5, self.options.seconds / 360)
        client = await Client(self.port).open()
        while not self.over():
            end, times = time.monotonic() + interval, []
            while time.monotonic() < end and not self.over():
                start = time.perf_counter()
                expect(await client.ask(get("/")), (200, b"Hello, world"))
                times.append((time.perf_counter() - start) * 1000)
                await asyncio.sleep(0.05)
            stats = await self.stats(client)
            self.rows.append((time.monotonic() - self.begun, *self.held(), stats["blocks"], stats["connections"],
                              statistics.median(times), max(times)))
            with open(self.options.picture, "w") as file:
                file.write(picture(self))
        return client

    async def stats(self, client):
        return json.loads((await client.ask(get("/stats")))[0][1])

    async def run(self):
        limit = self.options.connections + 100
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit if hard == -1 else min(limit, hard), hard))
        self.server = subprocess.Popen([self.options.server] + ([self.options.poller] if self.options.poller else []),
                                       stdout=subprocess.PIPE)
        try:
            self.port = int(self.server.stdout.readline())
            tasks = [asyncio.create_task(self.work(kind)) for kind, share in KINDS
                     for _ in range(max(1, self.options.connections * share // 1000))]
            client = await self.sample()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.left = None
            for _ in range(200):  # its handlers end, its connections close
                self.left = await self.stats(client)
                if self.left["connections"] == 1 and self.left["coroutines"] == 1:
                    break
                await asyncio.sleep(0.1)
            self.end = self.held()
            client.close()
        finally:
            self.server.send_signal(signal.SIGTERM)
            self.status = self.server.wait(30)

    def findings(self):
        """What is wrong, as lines."""
        found = list(self.wrong[:20])
        first = [row for row in self.rows if WARM_UP <= row[0] / self.options.seconds < 0.5]
        last = [row for row in self.rows if row[0] / self.options.seconds >= 0.75]
        # the number of connections varies a little all the time, and these with it
        for column, what, part, slack in ((1, "KiB of memory", 0.05, 1024), (2, "descriptors", 0.02, 30),
                                          (3, "blocks", 0.05, 200)):
            if first and last:
                before, after = (statistics.median(row[column] for row in rows) for rows in (first, last))
                if after > before * (1 + part) + slack:
                    found.append(f"{what} grew from {before:.0f} to {after:.0f}")
        if self.left["connections"] != 1 or self.left["coroutines"] != 1:
            found.append(f"left when all clients had gone: {self.left}")
        if self.end[1] > 12:
            found.append(f"{self.end[1]} descriptors are open when all clients have gone")
        if self.status:
            found.append(f"the server ended with status {self.status}")
        return found


# ---- the picture ----


def curve(rows, column, seconds, top, x, y, width, height, colour):
    points = " ".join(f"{x + row[0] / seconds * width:.1f},{y + height - min(row[column] / top, 1) * height:.1f}"
                      for row in rows)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def rounded(top):
    """The next round number."""
    step = 10 ** (len(str(int(top))) - 1)
    return next(n * step for n in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if n * step >= top) if top > 1 else 1


def picture(soak):
    seconds, rows = soak.options.seconds, soak.rows
    panels = (("memory (RSS), MiB", ((1, "#1f77b4", 1 / 1024),)),
              ("descriptors and, lighter, connections", ((2, "#2ca02c", 1), (4, "#98df8a", 1))),
              ("blocks of the library", ((3, "#9467bd", 1),)),
              ("time of an answer, ms: median and, lighter, worst", ((6, "#ffbb78", 1), (5, "#d62728", 1))))
    width, height, left, gap = 800, 120, 70, 46
    total = 40 + len(panels) * (height + gap)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + left + 30}" height="{total}" '
           'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{left}" y="20" font-size="14">{soak.options.connections} connections of mixed traffic for '
           f'{seconds:.0f} s</text>']
    for number, (title, lines) in enumerate(panels):
        y = 50 + number * (height + gap)
        scaled = [[row[0]] + [row[column] * scale for column, _, scale in lines] for row in rows]
        top = rounded(max((value for row in scaled for value in row[1:]), default=1))
        out.append(f'<text x="{left}" y="{y - 6}">{title}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for part in (0, 0.5, 1):
            out.append(f'<text x="{left - 6}" y="{y + height - part * height + 4:.0f}" text-anchor="end">'
                       f'{top * part:g}</text>')
            out.append(f'<text x="{left + part * width}" y="{y + height + 15}" text-anchor="middle">'
                       f'{seconds * part:.0f} s</text>')
        for index, (_, colour, _) in enumerate(lines):
            out.append(curve(scaled, index + 1, seconds, top, left, y, width, height, colour))
    return "\n".join(out + ["</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("server")
    parser.add_argument("poller", nargs="?", help="of the server; default: the best there is")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--picture", default="build/soak.svg")
    options = parser.parse_args()
    soak = Soak(options)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # writing to who has closed is part of it
    asyncio.run(soak.run())
    settled = [row for row in soak.rows if row[0] >= WARM_UP * options.seconds]
    for column, what in ((1, "memory, KiB"), (2, "descriptors"), (3, "blocks"), (4, "connections"),
                         (5, "median time, ms"), (6, "worst time, ms")):
        values = [row[column] for row in settled]
        print(f"{what:16} {min(values):10.1f} to {max(values):10.1f}, median {statistics.median(values):10.1f}")
    print("done: " + ", ".join(f"{count} {name}" for name, count in soak.done.items()))
    print(f"at the end: {soak.end[0]} KiB, {soak.end[1]} descriptors, {soak.left['blocks']} blocks; "
          f"picture: {options.picture}")
    found = soak.findings()
    for line in found:
        print("NOT RIGHT:", line)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
