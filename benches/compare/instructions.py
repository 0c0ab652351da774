#!/usr/bin/env python3
"""Compares the instructions of one key, lookup, redaction and reply, and of one request of each
kind, with the stored numbers.

    instructions.py INSIDE GATEWAY STORED        ACCEPT=1: stores the new numbers

Fails if one grew by more than 5 %. callgrind counts. The cost of an operation is the difference of
two runs that differ in their number only; a request is one of many that a load generator sends to
the gateway (fetch.py, http2.py).
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from functools import partial

import fetch
import http2

OPERATIONS = ("key", "lookup", "redact", "reply")
FEW, MANY = 1_000, 11_000
ALLOWED = 1.05
HEAD = """\
# User instructions of one operation or request, counted by `make bench-instructions` on x86_64 with
# AVX2, in the release profile: a document of 1.2 KB, redacted for a viewer; a forward of 1 KB. The
# command fails if one grew by more than 5 %, and stores new numbers with ACCEPT=1.
"""


def count(inside, operation, times):
    command = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        inside,
        "count",
        operation,
        str(times),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return int(re.search(r"Collected : (\d+)", said)[1])


def requests(gateway):
    """Returns the user instructions of one request of each kind."""
    setup = fetch.Setup(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        server = fetch.counted(http2.Gateway)(setup, "gateway", os.path.abspath(gateway))
        try:
            server.ready()
            sends = {
                "request_hit": partial(fetch.load, setup, server, http2.WHAT),
                "request_forward": partial(fetch.load, setup, server, fetch.CASES["forward"]),
                "request_fetch": partial(fetch.load, setup, server, fetch.CASES["fetch"]),
                "request_h2_hit": partial(http2.load, server, http2.CASES["hit"]),
                "request_h2_forward": partial(http2.load, server, http2.CASES["forward"]),
            }
            return {name: round(fetch.instructions(server, send)) for name, send in sends.items()}
        finally:
            server.stop()
    finally:
        setup.close()


def main(inside, gateway, kept):
    counted = {
        name: round((count(inside, name, MANY) - count(inside, name, FEW)) / (MANY - FEW))
        for name in OPERATIONS
    }
    counted |= requests(gateway)
    if os.environ.get("ACCEPT", "") not in ("", "0"):
        with open(kept, "w") as file:
            file.write(HEAD + "".join(f"{name} = {number}\n" for name, number in counted.items()))
    with open(kept, "rb") as file:
        before = tomllib.load(file)
    grown = []
    for name, number in counted.items():
        ratio = number / before[name]
        print(f"{name:18} {number:8} instructions, {before[name]:8} before: {ratio:5.3f}")
        if ratio > ALLOWED:
            grown.append(name)
    if grown:
        sys.exit(
            f"grew by more than {ALLOWED - 1:.0%}: {', '.join(grown)}. If that is intended: ACCEPT=1 make bench-instructions"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
