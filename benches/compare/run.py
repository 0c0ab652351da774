#!/usr/bin/env python3
"""CPU time of each server per request in one interleaved run, and the latency of each at a rate
well below saturation. Writes the results to a file from which report.py makes docs/PERFORMANCE.md.

    run.py BINARY PEERS RESULTS        (both of a release build)

In the environment: QUICK=1 for short rounds of a few keys; CASES=hit,304 and SERVERS=gateway,floor
for some alone; ROUNDS, ROUND_SECONDS, LATENCY_SECONDS, CALLERS and CUSTOMERS (of the case `many`).
"""

import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time

import servers
from cases import HOST, cases, header_set, token

QUICK = os.environ.get("QUICK", "") not in ("", "0")


def setting(name, full, quick):
    return type(full)(os.environ.get(name) or (quick if QUICK else full))


ROUNDS = setting("ROUNDS", 3, 2)
# Integers: wrk accepts no others.
SECONDS = setting("ROUND_SECONDS", 2, 1)
LATENCY_SECONDS = setting("LATENCY_SECONDS", 3.0, 0.5)
CALLERS = setting("CALLERS", 100_000, 5_000)
CUSTOMERS = setting("CUSTOMERS", 10, 2)
# A quick run leaves out the cases that are slowest to set up.
LEFT_OUT = {"hit-1000", "many", "forward-1m", "h2-forward"} if QUICK else set()
LEFT_OUT |= {"hit-curl", "hit-behind-ingress-nginx", "hit-behind-aws-alb"} if QUICK else set()
H2_STREAMS = 8


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def seed():
    return secrets.token_hex(6)


class Measuring:
    """One case, on the servers of its group."""

    def __init__(self, setup, case, peers):
        self.setup, self.case, self.peers = setup, case, peers
        # If the servers have one core, the load has the other.
        self.pinned = ["taskset", "-c", "1"] if peers[0].workers == 1 else []

    def lines(self, server, lines):
        """Writes the file of the requests for this server."""
        path = os.path.join(self.setup.folder, "requests")
        # Without a query pingora would respond from memory, which is no miss.
        aside = "?plain" if self.case.key == "miss" and server.name == "pingora" else ""
        etag = f" {self.etag(server)}" if self.case.conditional else ""
        with open(path, "w") as file:
            if self.case.headers:
                file.writelines(f"+{field}\n" for field in header_set(self.case.headers))
            file.writelines(f"{whose} {what}{aside}{etag}\n" for whose, what in lines)
        return path

    def etag(self, server):
        """Returns the entity tag of all documents of this case at this server."""
        whose, what = self.case.lines()[0]
        url = f"http://127.0.0.1:{server.ports['http']}{what}"
        head = run(
            [
                "curl",
                "-sf",
                "-D-",
                "-o/dev/null",
                "-H",
                f"Host: {HOST}",
                "-H",
                f"Authorization: Bearer {whose}",
                url,
            ]
        )
        return re.search(r"^etag: *(\S+)", head, re.I | re.M)[1]

    def once(self, server, lines):
        """Sends every request once; returns the statuses."""
        address = f"127.0.0.1:{server.ports['http']}"
        return json.loads(
            run(
                [
                    *self.pinned,
                    self.setup.peers,
                    "once",
                    self.lines(server, lines),
                    seed(),
                    "16",
                    address,
                ]
            )
        )

    def warm(self):
        lines = (self.case.warm or self.case.lines)()
        for server in self.peers:
            if self.case.conditional:
                plain, self.case.conditional = True, False
                self.once(server, lines)
                self.case.conditional = plain
            else:
                self.once(server, lines)
            asked = self.setup.asked()
            again = self.once(server, lines)
            wanted = "304" if self.case.conditional else "200"
            if set(again) != {wanted}:
                sys.exit(
                    f"{self.case.key}: {server.name} responded with {again}, not only {wanted}"
                )
            if (
                (self.case.hits or self.case.warm)
                and server.name != "pingora"
                and self.setup.asked() > asked + 1
            ):
                sys.exit(
                    f"{self.case.key}: {server.name} asked the origin again: not all were hits"
                )

    def saturate(self, server, seconds, warm=True):
        """Sends as many requests as possible; returns their number and the server's CPU time."""
        requests = self.lines(server, self.case.lines())
        asked, before = self.setup.asked(), server.cpu_seconds()
        if self.case.via == "h2":
            count, rate = self.h2load(server, requests, ["-D", str(seconds)])
        elif self.case.via == "h2s":
            said = self.http2(server, requests, seconds)
            count, rate = said["count"], said["rps"]
        else:
            scheme = "https" if self.case.via == "tls" else "http"
            url = f"{scheme}://127.0.0.1:{server.ports[self.case.via]}/"
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.lua")
            command = [
                "wrk",
                "-t1",
                f"-c{self.case.connections}",
                f"-d{seconds}s",
                "--timeout",
                "10s",
                "-s",
                script,
            ]
            said = run([*self.pinned, *command, url, "--", requests, seed(), "1", HOST])
            if "Non-2xx" in said or "Socket errors" in said:
                sys.exit(f"{self.case.key}: {server.name}: not every response was good\n{said}")
            count = int(re.search(r"(\d+) requests in", said)[1])
            if not count:
                sys.exit(f"{self.case.key}: {server.name} sent no response\n{said}")
            rate = float(re.search(r"Requests/sec: *([\d.]+)", said)[1])
        spent = server.cpu_seconds() - before
        # Requests under way when h2load ends may have any status.
        cut_off = self.case.connections * H2_STREAMS if self.case.via == "h2" else 0
        if warm and self.case.hits and self.setup.asked() > asked + 1 + cut_off:
            sys.exit(
                f"{self.case.key}: {server.name} asked the origin {self.setup.asked() - asked} times of {count}: not all were hits"
            )
        return {"us": spent / count * 1e6, "rps": rate, "busy": spent / (count / rate)}

    def h2load(self, server, requests, how, log=None):
        url = f"http://127.0.0.1:{server.ports['h2']}"
        with open(requests) as file:
            paths = [line.split()[1] for line in file]
        uris = os.path.join(self.setup.folder, "uris")
        with open(uris, "w") as file:
            file.writelines(f"{url}{path}\n" for path in paths)
        command = [
            "h2load",
            "-t1",
            f"-c{self.case.connections}",
            f"-m{H2_STREAMS}",
            "-i",
            uris,
            *how,
        ]
        command += ["-H", f"Authorization: Bearer {token(0)}", "-H", f":authority: {HOST}"]
        said = run([*self.pinned, *command, *(["--log-file", log] if log else [])])
        good = int(re.search(r"status codes: (\d+) 2xx", said)[1])
        if not re.search(r", 0 failed, 0 errored, 0 timeout", said) or not good:
            sys.exit(f"{self.case.key}: {server.name}: not every response was good\n{said}")
        return good, float(re.search(r"finished in .*?, ([\d.]+) req/s", said)[1])

    def http2(self, server, requests, seconds, *rate):
        """Sends over HTTP/2 with TLS; returns the results of the load generator."""
        address = f"127.0.0.1:{server.ports['tls']}"
        command = [
            self.setup.peers,
            "http2",
            requests,
            seed(),
            str(self.case.connections),
            address,
            str(seconds),
        ]
        said = json.loads(run([*self.pinned, *command, *map(str, rate)]))
        if set(said["statuses"]) != {"200"}:
            sys.exit(
                f"{self.case.key}: {server.name}: not every response was good: {said['statuses']}"
            )
        return said

    def latency(self, server):
        """Percentiles in microseconds at the case's rate."""
        requests = self.lines(server, self.case.lines())
        if self.case.via == "h2":
            log = os.path.join(self.setup.folder, "h2.log")
            if os.path.exists(log):
                os.remove(log)
            each = self.case.rate // self.case.connections
            self.h2load(
                server, requests, ["-D", str(max(1, round(LATENCY_SECONDS))), f"--rps={each}"], log
            )
            with open(log) as file:
                times = sorted(int(line.split()[2]) for line in file)
            return {
                name: times[int((len(times) - 1) * part)]
                for name, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
            }
        if self.case.via == "h2s":
            said = self.http2(server, requests, LATENCY_SECONDS, self.case.rate)
            return {name: said[name] for name in ("p50", "p99", "p999")}
        address = f"127.0.0.1:{server.ports[self.case.via]}"
        command = [self.setup.peers, "paced", requests, seed(), str(self.case.connections), address]
        command += [
            str(self.case.rate),
            str(LATENCY_SECONDS),
            *(["tls"] if self.case.via == "tls" else []),
        ]
        said = json.loads(run([*self.pinned, *command]))
        if set(said.pop("statuses")) != {"304" if self.case.conditional else "200"}:
            sys.exit(
                f"{self.case.key}: {server.name}: not every response was good at a steady rate"
            )
        return said

    def warm_http2(self, server):
        """Requests every path over HTTP/2. Each connection of h2load begins with the first path, so
        that a timed run may not reach the last."""
        lines = self.case.lines()
        count = len(lines) * self.case.connections
        self.h2load(server, self.lines(server, lines), ["-n", str(count)])

    def all(self):
        self.warm()
        for server in self.peers:
            if self.case.via == "h2":
                self.warm_http2(server)
            # HAProxy's cache has other keys for requests over HTTP/2, so it fetches once more.
            self.saturate(server, 1, warm=self.case.via not in ("h2", "h2s"))
        rounds = {server.name: [] for server in self.peers}
        for _ in range(ROUNDS):
            for server in self.peers:
                rounds[server.name].append(self.saturate(server, SECONDS))
        results = {}
        for server in self.peers:
            median = {
                what: statistics.median(each[what] for each in rounds[server.name])
                for what in ("us", "rps", "busy")
            }
            every = [each["us"] for each in rounds[server.name]]
            results[server.name] = {
                **median,
                "least": min(every),
                "most": max(every),
                "rss": server.resident(),
            }
            results[server.name] |= self.latency(server)
        return results


def commit():
    changed = "+" if run(["git", "status", "--porcelain", "src", "Cargo.lock"]) else ""
    return run(["git", "rev-parse", "--short=12", "HEAD"]).strip() + changed


def main(binary, peers, file):
    wanted = [word for word in os.environ.get("CASES", "").split(",") if word]
    only = [word for word in os.environ.get("SERVERS", "").split(",") if word]
    every = cases(CALLERS, CUSTOMERS)
    if unknown := set(wanted) - {case.key for case in every}:
        sys.exit(
            f"no such case: {', '.join(unknown)}; expected one of {', '.join(case.key for case in every)}"
        )
    chosen = [
        case for case in every if (case.key in wanted if wanted else case.key not in LEFT_OUT)
    ]
    results = {"cases": {}}
    if os.path.exists(file):
        with open(file) as before:
            results = json.load(before)
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    setup = servers.Setup(folder, os.path.abspath(binary), os.path.abspath(peers))
    running = []
    try:
        for group in ("one", "logs", "two"):
            of_group = [case for case in chosen if case.group == group]
            names = {name for case in of_group for name in case.peers if not only or name in only}
            kinds = [servers.KINDS[name] for name in servers.KINDS if name in names]
            for kind in kinds:
                running.append(kind(setup, 2 if group == "two" else 1, group == "logs"))
            for server in running:
                server.ready()
            for case in of_group:
                began = time.monotonic()
                found = Measuring(
                    setup, case, [server for server in running if server.name in case.peers]
                ).all()
                results["cases"][case.key] = {
                    "title": case.title,
                    "notes": case.notes,
                    "servers": found,
                    "rate": case.rate,
                    "quick": QUICK,
                    "rounds": ROUNDS,
                    "seconds": SECONDS,
                    "commit": commit(),
                }
                print(f"{case.title} ({time.monotonic() - began:.0f} s)")
                for name, of in found.items():
                    print(
                        f"  {name:10} {of['us']:7.1f} µs {of['rps']:9.0f}/s {of['busy'] * 100:4.0f} % busy  p50 {of['p50']:6.0f} "
                        f"p99 {of['p99']:6.0f} p99.9 {of['p999']:6.0f} µs {of['rss'] / 1e6:7.0f} MB",
                        flush=True,
                    )
                with open(file, "w") as after:
                    json.dump(results, after, indent=1)
            while running:
                running.pop().stop()
    finally:
        for server in running:
            server.stop()
        setup.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
