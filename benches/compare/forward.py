#!/usr/bin/env python3
"""CPU time of the gateway per request, for several kinds of requests in one interleaved run.

Needs wrk and a release build of the binary, which is the only argument. Everything listens on free
loopback ports. Prints the median of the rounds, in microseconds of user and system time, and the
ratio to a forward without redaction.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile

import servers

ROUNDS, SECONDS, CONNECTIONS = 5, 2, 16
CUSTOMER = "73469a52f4fd7f77ec7b28cc"
CASES = {
    "forward (RESELLER)": ("sandbox-demo-reseller", f"/customer/{CUSTOMER}"),
    "forward, redacted (VIEWER)": ("sandbox-demo-viewer", f"/customer/{CUSTOMER}"),
    "hit (VIEWER)": ("sandbox-demo-viewer", f"/customer/{CUSTOMER}/name"),
    "fetched each time, redacted (VIEWER)": (
        "sandbox-demo-viewer",
        f"/customer/{CUSTOMER}/name?x=1",
    ),
}


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port, token, path):
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{SECONDS}s",
        "-H",
        f"Authorization: Bearer {token}",
    ]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, text=True
    ).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"{path}: a response was not a 2xx\n{said}")
    return int(re.search(r"(\d+) requests in", said)[1])


def main(binary):
    api, public, admin = servers.free_port(), servers.free_port(), servers.free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "gateway.toml")
        with open(config, "w") as file:
            file.write(
                f'server.listen = ["127.0.0.1:{public}"]\nserver.threads = 1\nadmin.listen = "127.0.0.1:{admin}"\n'
                f'upstream.url = "http://127.0.0.1:{api}"\nlog.access = "off"\n'
            )
        sandbox = subprocess.Popen(
            [binary, "sandbox", "--listen", f"127.0.0.1:{api}"], stdout=subprocess.DEVNULL
        )
        gateway = subprocess.Popen([binary, "run", "-c", config], stderr=subprocess.DEVNULL)
        try:
            servers.await_answer(f"http://127.0.0.1:{admin}/readyz")
            servers.await_answer(f"http://127.0.0.1:{api}/")
            spent = {case: [] for case in CASES}
            for _ in range(ROUNDS):
                for case, (token, path) in CASES.items():
                    before = cpu_seconds(gateway.pid)
                    answered = load(public, token, path)
                    spent[case].append((cpu_seconds(gateway.pid) - before) / answered * 1e6)
        finally:
            for process in (gateway, sandbox):
                process.terminate()
                process.wait()
    medians = {case: statistics.median(rounds) for case, rounds in spent.items()}
    base = medians["forward (RESELLER)"]
    for case, microseconds in medians.items():
        print(f"{case:36} {microseconds:6.1f} µs   {microseconds / base:4.2f} ×")


if __name__ == "__main__":
    main(sys.argv[1])
