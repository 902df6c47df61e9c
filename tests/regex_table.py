#!/usr/bin/env python3
"""Python's answers to tests/regex.txt, which test_regex.c compares ours with.

  regex_table.py verify           whether Python finds what the table says
  regex_table.py write            puts what Python finds into the table: to add a row, write it without results
  regex_table.py random SEED N    a table of N random patterns on standard output

The table is text, its columns are separated by tabs, and any byte may be written as %XX:

  # ...                                            a remark
  p  FLAGS  PATTERN                                a pattern; FLAGS are of "imsxB" (B: bytes) or "-"
  t  TEXT  POS  MATCH  FULLMATCH  SEARCH           a text for it, and what is found from POS on
  e  FLAGS  PATTERN  N                             a malformed pattern: Python refuses it, too, at position N
                                                   ("-": it does not say where)
  r  FLAGS  PATTERN  N                             one that is refused because it is not linear
  l  FLAGS  PATTERN                                one that is refused because it is too large

What is found is START,END of the whole match and of each group, in bytes; "." is a group that took no part, "-" is
no match. All is as with re.ASCII.
"""
import os
import random
import re
import signal
import sys
import urllib.parse
import warnings

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "regex.txt")
FLAGS = {"i": re.I, "m": re.M, "s": re.S, "x": re.X, "B": 0, "-": 0}
SKIPPED = 77


def unescape(field):
    return urllib.parse.unquote_to_bytes(field)


def escape(data):
    """Prints what can be read, and blanks only between other characters."""
    text = data.replace(b"%", b"%25").decode("utf-8", "backslashreplace")
    if text.encode() != data.replace(b"%", b"%25"):
        text = "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in data.replace(b"%", b"%25"))
    text = "".join(char if char.isprintable() else hexadecimal(char.encode()) for char in text)
    return re.sub("^ | $", "%20", text)


def hexadecimal(data):
    return "".join(f"%{byte:02X}" for byte in data)


def compiled(flags, pattern):
    bits = re.A
    for letter in flags:
        bits |= FLAGS[letter]
    return re.compile(pattern if "B" in flags else pattern.decode(), bits)


def found(regex, method, text, pos):
    """A column of the table."""
    subject = text if isinstance(regex.pattern, bytes) else text.decode()
    start = pos if subject is text else len(text[:pos].decode())
    match = getattr(regex, method)(subject, start)
    if not match:
        return "-"

    def offset(index):
        return index if subject is text else len(subject[:index].encode())
    return " ".join("." if match.start(group) < 0 else f"{offset(match.start(group))},{offset(match.end(group))}"
                    for group in range(regex.groups + 1))


def row(regex, text, pos):
    return "\t".join(["t", escape(text), str(pos), *(found(regex, method, text, pos)
                                                      for method in ("match", "fullmatch", "search"))])


def position_of_error(flags, pattern):
    """Where Python sees an error, in bytes; "-" when it does not say; None: nowhere."""
    try:
        compiled(flags, pattern)
        return None
    except (re.error, ValueError) as error:
        if getattr(error, "pos", None) is None:
            return "-"
        before = error.pattern[:error.pos]
        return len(before if isinstance(before, bytes) else before.encode())


def as_python_has_it(lines):
    regex = None
    for number, line in enumerate(lines, 1):
        kind, *fields = line.split("\t")
        if kind == "p":
            try:
                regex = compiled(fields[0], unescape(fields[1]))
            except re.error as error:
                sys.exit(f"regex.txt:{number}: {error}")
        elif kind == "t":
            text, pos = unescape(fields[0]), int(fields[1]) if len(fields) > 1 else 0
            line = row(regex, text, pos)
        elif kind == "e":
            line = "\t".join(["e", *fields[:2], str(position_of_error(fields[0], unescape(fields[1])))])
        yield line


def verify(lines):
    wrong = 0
    for number, (ours, theirs) in enumerate(zip(lines, as_python_has_it(lines)), 1):
        if ours != theirs:
            print(f"regex.txt:{number}: {ours!r} should be {theirs!r}")
            wrong += 1
    return wrong


# ------------------------------------------------------------------------------------------------------------------
# Random tables.
# ------------------------------------------------------------------------------------------------------------------

ATOMS = ["a", "b", "a", "b", "0", "/", "-", "_", "A", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]",
         "[^a]", "[a-z]", "[0-9_]", "[^/]", r"[\d-]", r"[^\w]", "[]a]", "[^]a]", "[a-]", r"\n", r"\x61", "(?#a)a"]
ASSERTIONS = ["^", "$", r"\b", r"\B", r"\A", r"\Z"]
WIDE = ["é", "€", "[é-ü]", "[^é]", r"\u20ac", "[a€]", "😀"]
GROUPS = ["(", "(", "(", "(?:", "(?:", "(?i:", "(?s-i:", "(?m:"]
COUNTS = ["*", "*", "+", "+", "?", "?", "{2}", "{1,2}", "{0,2}", "{,1}", "{2,}", "{0}", "{1}", "{1,}", "{3}",
          "{0,}"]


def random_item(atoms, depth):
    inside = depth > 0 and random.random() < 0.45
    item = random.choice(GROUPS) + random_pattern(atoms, depth - 1) + ")" if inside else random.choice(atoms)
    if random.random() < (0.6 if inside else 0.01 if item in ASSERTIONS else 0.35):
        item += random.choice(COUNTS) + random.choice(["", "", "?"])
    return item


def random_pattern(atoms, depth):
    ways = random.choice([1, 1, 1, 2, 2, 3])
    return "|".join("".join(random_item(atoms, depth) for _ in range(random.choice([0, 1, 1, 2, 2, 3, 4])))
                    for _ in range(ways))


def random_rows(letters, regex):
    for _ in range(4):
        text = "".join(random.choice(letters) for _ in range(random.choice([0, 1, 2, 3, 4, 6, 8, 10])))
        starts = [0, 0, 0, random.randint(0, len(text))]
        yield row(regex, text.encode(), len(text[:random.choice(starts)].encode()))


def out_of_time(*_):
    raise TimeoutError


def random_table(seed, count):
    """A pattern that Python refuses becomes an error, one that takes it too long is left out."""
    random.seed(seed)
    signal.signal(signal.SIGALRM, out_of_time)
    while count > 0:
        wide = random.random() < 0.3
        flags = random.choice(["", "", "", "i", "m", "s", "im", "x"])
        flags = flags + ("" if wide or random.random() < 0.7 else "B") or "-"
        pattern = random_pattern(ATOMS + ASSERTIONS + (WIDE if wide else []), random.choice([1, 2, 2, 3])).encode()
        if re.search(rb"\\u", pattern) and "B" in flags:
            continue
        if (position := position_of_error(flags, pattern)) is not None:
            print("e", flags, escape(pattern), position, sep="\t")
            count -= 1
            continue
        regex = compiled(flags, pattern)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            rows = list(random_rows("aabb01-_/ \nA" + ("é€ü😀" if wide else ""), regex))
        except TimeoutError:
            continue
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        print("p", flags, escape(pattern), sep="\t")
        print("\n".join(rows))
        count -= 1


def main():
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        print("Python's patterns are other ones before 3.11 and after 3.13")
        return SKIPPED
    warnings.simplefilter("ignore")
    sys.stdout.reconfigure(encoding="utf-8")
    if sys.argv[1:2] == ["random"]:
        return random_table(int(sys.argv[2]), int(sys.argv[3]))
    with open(TABLE, encoding="utf-8", newline="\n") as file:
        lines = file.read().splitlines()
    if sys.argv[1:] == ["verify"]:
        return 1 if verify(lines) else 0
    if sys.argv[1:] == ["write"]:
        lines = list(as_python_has_it(lines))
        with open(TABLE, "w", encoding="utf-8", newline="\n") as file:
            file.write("".join(line + "\n" for line in lines))
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
