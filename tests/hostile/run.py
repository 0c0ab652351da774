#!/usr/bin/env python3
"""Attack tools against the gateway in front of the sandbox; see scripts/hostile.

The first argument is the binary. Prints a verdict for each run, and ends with 1 if one is bad.
While a tool runs, a caller asks once in half a second on a fresh connection; it has to be answered
rightly, and in time.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from pair import CUSTOMER, NAME, VIEWER, running

BEARER = f"Authorization: Bearer {VIEWER}"
# The longest wait of another client while a tool runs. Wide, because the tools use the same cores.
PATIENCE = 5
# MiB that any run may add to resident memory.
GROWTH = 256

bad = []


class Caller(threading.Thread):
    """Sends requests while a tool runs; records the longest time and failures."""

    def __init__(self, pair):
        super().__init__()
        self.pair, self.over = pair, threading.Event()
        self.asked, self.longest, self.open, self.wrong = 0, 0.0, [], None

    def run(self):
        while not self.over.wait(0.5):
            began = time.monotonic()
            try:
                status, _ = self.pair.ask(timeout=PATIENCE)
                wrong = None if status == 200 else f"answered {status}"
            except OSError as error:
                wrong = f"not answered: {error}"
            self.asked += 1
            self.open.append(self.pair.open_files())
            self.longest = max(self.longest, time.monotonic() - began)
            self.wrong = self.wrong or wrong


def verdict(pair, name, run):
    """`run` returns its observations, and a fault or None."""
    pair.forget_peak()
    before, caller = pair.resident(), Caller(pair)
    caller.start()
    try:
        saw, wrong = run(pair)
    finally:
        caller.over.set()
        caller.join()
    grown = pair.peak() - before
    wrong = (
        wrong
        or caller.wrong
        or pair.fault()
        or (f"{grown:.0f} MiB more" if grown > GROWTH else None)
    )
    said = f"{saw}; another client sent {caller.asked} requests and waited {caller.longest * 1000:.0f} ms at most; the gateway took "
    said += f"{grown:.0f} MiB more at most, had {max(caller.open, default=0)} files open at most and {caller.open[-1] if caller.open else 0} at last"
    print(
        f"{'BAD ' if wrong else 'good'} {name}: {said}{f'; {wrong}' if wrong else ''}", flush=True
    )
    if wrong:
        bad.append(name)


def tool(*command, seconds=200):
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def slow(mode, *options):
    def run(pair):
        with tempfile.TemporaryDirectory() as folder:
            prefix = os.path.join(folder, "slow")
            said = tool("slowhttptest", mode, "-g", "-o", prefix, *options).stdout
            with open(prefix + ".csv") as file:
                rows = list(csv.DictReader(file))
        ended = re.search(r"Exit status:(?:\x1b\[[\d;]*m)*\s*([^\x1b\n]+)", said)
        away = [row["Seconds"] for row in rows if int(row["Service Available"]) == 0]
        most = max((int(row["Connected"]) for row in rows), default=0)
        saw = f"{most} connections at once, {rows[-1]['Closed']} closed within {rows[-1]['Seconds']} s"
        saw += f" ({ended[1].strip()})" if ended else ""
        if not most:
            return saw, "it did not connect"
        if away:
            return saw, f"the tool's probe received no response at {away[:5]} s"
        return saw, None

    return run


def load(*options):
    def run(pair):
        path = options[-1]
        # The first response is a miss. Without it thousands of requests of one caller wait for it,
        # of which those beyond the limit of a caller are 503.
        tool("h2load", "-n1", "-c1", "-H", BEARER, pair.url(path))
        said = tool("h2load", "-t1", "-H", BEARER, *options[:-1], pair.url(path)).stdout
        counts = re.search(
            r"requests: (\d+) total.*?(\d+) succeeded, (\d+) failed, (\d+) errored", said
        )
        codes = re.search(r"status codes: (\d+) 2xx.*", said)
        if not counts or not codes:
            return said[-200:], "it printed no summary of its requests"
        total, right, failed, errored = map(int, counts.groups())
        saw = f"{right} of {total} succeeded, {codes[1]} of them 2xx"
        is_good = right == int(codes[1]) == total and failed == errored == 0
        return saw, None if is_good else f"not all: {counts[0]}; {codes[0]}; {pair.errors()}"

    return run


CHECKS = "cl-te,te-cl,te-te,h2c,h2,cl-edge,cl-0,0-cl,parser-discrepancy"


def smuggle(path):
    def run(pair):
        said = tool(
            "smugglex",
            "--json",
            "--timeout",
            "3",
            "-H",
            BEARER,
            "-c",
            CHECKS,
            pair.url(path),
            seconds=600,
        ).stdout
        checks = [check for result in json.loads(said)["results"] for check in result["checks"]]
        found = [check["check_type"] for check in checks if check["vulnerable"]]
        failed = [
            check["check_type"] for check in checks if check["normal_status"] == "CHECK_FAILED"
        ]
        saw = f"{len(checks)} checks, {len(found)} findings"
        if found or failed:
            return saw, f"found {found}, could not do {failed}"
        return saw, None if len(checks) == CHECKS.count(",") + 1 else "not all checks were made"

    return run


RUNS = {
    "slowhttptest, headers": (
        "slowhttptest",
        lambda pair: slow(
            "-H", "-c", "1000", "-r", "500", "-i", "2", "-l", "40", "-p", "3", "-u", pair.url(NAME)
        ),
    ),
    "slowhttptest, body": (
        "slowhttptest",
        lambda pair: slow(
            "-B",
            "-c",
            "1000",
            "-r",
            "500",
            "-i",
            "90",
            "-l",
            "80",
            "-p",
            "3",
            "-u",
            pair.url("/elsewhere"),
        ),
    ),
    "slowhttptest, read": (
        "slowhttptest",
        lambda pair: slow(
            "-X",
            "-c",
            "1000",
            "-r",
            "500",
            "-l",
            "100",
            "-w",
            "1",
            "-y",
            "2",
            "-n",
            "5",
            "-z",
            "1",
            "-p",
            "3",
            "-u",
            pair.url("/customer"),
        ),
    ),
    "h2load, hits": (
        "h2load",
        lambda pair: load("-n", "100000", "-c", "100", "-m", "50", NAME),
    ),
    "h2load, forwarded redacted": (
        "h2load",
        lambda pair: load("-n", "10000", "-c", "50", "-m", "10", f"/customer/{CUSTOMER}"),
    ),
    "h2load, HTTP/1.1": ("h2load", lambda pair: load("--h1", "-n", "50000", "-c", "200", NAME)),
    "smugglex, hits": ("smugglex", lambda pair: smuggle(NAME)),
    "smugglex, forwarded redacted": ("smugglex", lambda pair: smuggle(f"/customer/{CUSTOMER}")),
    "smugglex, forwarded": ("smugglex", lambda pair: smuggle("/elsewhere")),
}


def main(binary, *names):
    with running(binary) as pair:
        for name, (needs, make) in RUNS.items():
            if names and not any(part in name for part in names):
                continue
            if not shutil.which(needs):
                print(f"skipped: {name}: {needs} is not installed", flush=True)
                continue
            verdict(pair, name, make(pair))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
