#!/usr/bin/env python3
"""The gateway's parts, each in a separate process: memory of an entry, `max_bytes`, cost of
lookups.

    parts.py INSIDE RESULTS        (the program of benches/inside, of a release build)
"""

import json
import os
import statistics
import subprocess
import sys

QUICK = os.environ.get("QUICK", "") not in ("", "0")
ENTRIES = 100_000 if QUICK else 1_000_000
SIZES = [1_000, 10_000, 100_000, ENTRIES] if not QUICK else [1_000, ENTRIES]
ROUNDS = 3


def main(inside, file):
    def ask(*words):
        return json.loads(
            subprocess.run(
                [inside, *map(str, words)], check=True, capture_output=True, text=True
            ).stdout
        )

    def lookup(entries, threads):
        return statistics.median(
            ask("lookup", entries, threads)["ns"]
            for _ in range(1 if entries == ENTRIES else ROUNDS)
        )

    results = {
        "entries": ENTRIES,
        "memory": ask("memory", ENTRIES),
        "alike": ask("alike", ENTRIES),
        "bare": ask("bare", ENTRIES),
        "bounded": ask("bounded", 64 if QUICK else 256),
        "lookup": {str(entries): lookup(entries, 1) for entries in SIZES},
        "threads": {str(threads): lookup(100_000, threads) for threads in (1, 2)},
    }
    with open(file, "w") as out:
        json.dump(results, out, indent=1)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
