#!/usr/bin/env python3
"""Compressed data made by Python's zlib and gzip, for tests/test_zip.c. Each record is a line "FORMAT PLAIN PACKED
NAME", with two lengths in bytes, and then the plain and the packed bytes themselves."""
import gzip
import io
import random
import sys
import zlib


def plain_texts():
    chance = random.Random(1)
    words = ["the", "request", "of", "<div class=\"story\">", "and", "server", "\n", "handler", "0123456789"]
    text = " ".join(chance.choice(words) for _ in range(8000)).encode()
    yield "empty", b""
    yield "one", b"a"
    yield "zeros", bytes(70000)
    yield "short", text[:300]
    yield "text", text
    yield "noise", chance.randbytes(70000)
    yield "periods", b"".join(bytes(range(period)) * (700 // period) for period in range(1, 40))
    yield "skewed", bytes(min(int(chance.expovariate(0.3)), 255) for _ in range(40000))
    noise = chance.randbytes(32768)
    yield "far", noise + noise[:1000] + noise[-300:]
    yield "mixed", text[:20000] + chance.randbytes(20000) + bytes(3000) + text[20000:]


def packed(plain, bits, **more):
    compressor = zlib.compressobj(wbits=bits, **more)
    half = len(plain) // 2
    return compressor.compress(plain[:half]) + compressor.flush(zlib.Z_SYNC_FLUSH) + \
        compressor.compress(plain[half:]) + compressor.flush()


def records():
    for name, plain in plain_texts():
        for level in 0, 1, 6, 9:
            yield "gzip", f"{name}-{level}", plain, packed(plain, 31, level=level)
        yield "zlib", name, plain, zlib.compress(plain)
        yield "zlib", f"{name}-window-9", plain, packed(plain, 9)
        yield "zlib", f"{name}-fixed", plain, packed(plain, 15, strategy=zlib.Z_FIXED)
        yield "raw", f"{name}-huffman", plain, packed(plain, -15, strategy=zlib.Z_HUFFMAN_ONLY, memLevel=1)
        yield "raw", f"{name}-runs", plain, packed(plain, -15, strategy=zlib.Z_RLE)
    yield "gzip", "members", b"one two " + plain, b"".join(map(gzip.compress, (b"one ", b"two ", plain)))
    file = io.BytesIO()
    with gzip.GzipFile("a name", "wb", 9, file, 1000000000) as out:
        out.write(plain)
    yield "gzip", "named", plain, file.getvalue()


for form, name, plain, data in records():
    sys.stdout.buffer.write(f"{form} {len(plain)} {len(data)} {name}\n".encode() + plain + data)
