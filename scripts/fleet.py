#!/usr/bin/env python3
"""How long a change takes to reach the other gateways of a fleet, as their callers see it.

    scripts/fleet.py BINARY [WRITES]

A redis-server, the sandbox and three gateways, on free loopback ports. One caller for each of two gateways asks for a customer's
name without a pause, while another one changes the name through the third gateway. A change is late at a gateway by the time
between the end of the write's answer and the beginning of the last request that was still answered with an older name; if
there is none, by 0. Prints quantiles of both, and what the gateways say themselves (cluster_spread_seconds). Ends with 1 if the
99th percentile is 50 ms or more, or if a name never came.
"""

import http.client
import json
import multiprocessing
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time

TARGET = "/customer/73469a52f4fd7f77ec7b28cc/name"
WRITE = "/customer/73469a52f4fd7f77ec7b28cc"
BOUND = 0.050
PATIENCE = 30
# Between writes: the others must be found with the answer in memory.
PAUSE = 0.02


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def await_that(what, condition):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"waited in vain until {what}")


def ask(port, method, path, token=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if body:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def watch(port, until, out):
    """Asks without a pause; tells, for each request, when it began and the number in the name, and how many were hits."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    seen, hits = [], 0
    while not until.is_set():
        began = time.monotonic()
        connection.request("GET", TARGET, headers={"Authorization": "Bearer sandbox-demo-viewer"})
        answer = connection.getresponse()
        name = json.loads(answer.read())["name"]
        hits += "; hit" in answer.headers["Cache-Status"]
        number = re.fullmatch(r"name (\d+)", name)
        seen.append((began, int(number[1]) if number else -1))
    out.put((seen, hits))


def quantile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def own_word(ports):
    """p99 of cluster_spread_seconds of the gateway that was written through: the bucket that holds it."""
    _, text = ask(ports[0], "GET", "/metrics")
    buckets = re.findall(r'cluster_spread_seconds_bucket\{le="([^"]+)"\} (\d+)', text)
    count = int(buckets[-1][1])
    return next(float(bound) for bound, below in buckets if int(below) >= 0.99 * count), count


def main(binary, writes):
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        api, redis, *ports = free_ports(8)
        public, admin = ports[:3], ports[3:]
        with open(f"{folder}/keys", "w") as keys:
            keys.write(f"a {secrets.token_hex(32)}\n")
        commands = [
            ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            [binary, "sandbox", "--listen", f"127.0.0.1:{api}"],
        ]
        for number in range(3):
            path = f"{folder}/{number}.toml"
            with open(path, "w") as file:
                file.write(
                    f'[server]\nlisten = ["127.0.0.1:{public[number]}"]\nthreads = 2\n'
                    f'[admin]\nlisten = "127.0.0.1:{admin[number]}"\n'
                    f'[upstream]\nurl = "http://127.0.0.1:{api}"\n'
                    f'[cluster]\nurl = "redis://127.0.0.1:{redis}"\nkey_file = "{folder}/keys"\n'
                    '[log]\naccess = "off"\n'
                )
            commands.append([binary, "run", "-c", path])
        log = open(f"{folder}/log", "wb")
        try:
            for command in commands:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
            for port in admin:
                await_that(
                    "the gateways hear each other",
                    lambda port=port: json.loads(ask(port, "GET", "/stats")[1])["cluster"]["connected"],
                )
            until, out = multiprocessing.Event(), multiprocessing.Queue()
            watchers = [multiprocessing.Process(target=watch, args=(port, until, out)) for port in public[1:]]
            for watcher in watchers:
                watcher.start()
            time.sleep(0.5)
            done = []
            for number in range(writes):
                status, body = ask(public[0], "POST", WRITE, "sandbox-demo-owner", json.dumps({"name": f"name {number}"}))
                done.append(time.monotonic())
                if status != 200:
                    sys.exit(f"a write got {status}: {body}")
                time.sleep(PAUSE)
            time.sleep(0.5)
            until.set()
            results = [out.get(timeout=PATIENCE) for _ in watchers]
            for watcher in watchers:
                watcher.join()
            told, count = own_word(admin)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    late = []
    for seen, hits in results:
        print(f"{len(seen)} requests of one caller, {hits} of them answered from memory")
        if seen[-1][1] != writes - 1:
            sys.exit(f"the last name never came: {seen[-1]}")
        at = 0
        for number, end in enumerate(done):
            # The last request that began after the write's answer and got an older name.
            while at < len(seen) and seen[at][0] <= end:
                at += 1
            last, look = 0.0, at
            while look < len(seen) and seen[look][1] < number:
                last = seen[look][0] - end
                look += 1
            late.append(last)
    p50, p99, worst = quantile(late, 0.5), quantile(late, 0.99), max(late)
    print(f"{writes} writes, seen by two other gateways")
    print(f"late after the write's answer: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms, at most {worst * 1000:.2f} ms")
    print(f"by the gateway's own word (cluster_spread_seconds, {count} changes): p99 below {told * 1000:g} ms")
    if p99 >= BOUND:
        sys.exit(f"p99 is not below {BOUND * 1000:g} ms")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or not os.access(sys.argv[1], os.X_OK):
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 1000)
