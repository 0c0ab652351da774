#!/usr/bin/env python3
"""Compares the instructions of one key, lookup, redaction and reply with the stored numbers.

    instructions.py INSIDE STORED        ACCEPT=1: stores the new numbers

Fails if one grew by more than 5 %. callgrind counts; the cost of an operation is the difference of
two runs that differ in their number only.
"""

import os
import re
import subprocess
import sys
import tomllib

OPERATIONS = ("key", "lookup", "redact", "reply")
FEW, MANY = 1_000, 11_000
ALLOWED = 1.05
HEAD = """\
# Instructions of one operation, counted by `make bench-instructions` on x86_64 with AVX2, in the
# release profile: a document of 1.2 KB, redacted for a viewer. The command fails if one grew by
# more than 5 %, and stores new numbers with ACCEPT=1.
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


def main(inside, kept):
    counted = {
        name: round((count(inside, name, MANY) - count(inside, name, FEW)) / (MANY - FEW))
        for name in OPERATIONS
    }
    if os.environ.get("ACCEPT", "") not in ("", "0"):
        with open(kept, "w") as file:
            file.write(HEAD + "".join(f"{name} = {number}\n" for name, number in counted.items()))
    with open(kept, "rb") as file:
        before = tomllib.load(file)
    grown = []
    for name, number in counted.items():
        ratio = number / before[name]
        print(f"{name:8} {number:8} instructions, {before[name]:8} before: {ratio:5.3f}")
        if ratio > ALLOWED:
            grown.append(name)
    if grown:
        sys.exit(
            f"grew by more than {ALLOWED - 1:.0%}: {', '.join(grown)}. If that is intended: ACCEPT=1 make bench-instructions"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
