#!/usr/bin/env python3
"""The tail of hits: percentiles of an open loop of hits, undisturbed, and during misses, refreshes,
evictions, changes, reloads or the invalidation of everything. For comparison the delay that the
machine causes to a program that only reads the clock, and the floor.

    tail.py BINARY PEERS RESULTS        (both of a release build)

In the environment: TAIL_RATE (4,000 hits a second), TAIL_SECONDS (5), TAIL_STORED (200,000 entries
that are invalidated), ROUNDS (3).
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import servers
from cases import FRESH, customer, grid, keys, name, token
from run import run, seed

RATE = int(os.environ.get("TAIL_RATE") or 4000)
SECONDS = float(os.environ.get("TAIL_SECONDS") or 5)
STORED = int(os.environ.get("TAIL_STORED") or 200_000)
ROUNDS = int(os.environ.get("ROUNDS") or 3)
CONNECTIONS = 32
OTHERS = 400


class ShortLived(servers.Gateway):
    """A gateway that refreshes every entry after a second, in the background."""

    name = "short-lived"
    caching = 'cache.ttl = "1s"\ncache.stale_while_revalidate = "1h"\ncache.max_bytes = "8GiB"\n'


class Full(servers.Gateway):
    """A gateway with memory for 2,000 popular entries and little more."""

    name = "full"
    caching = 'cache.ttl = "6h"\ncache.max_bytes = "4MiB"\n'


class Tail:
    def __init__(self, setup):
        self.setup = setup

    def lines(self, kind, lines):
        path = os.path.join(self.setup.folder, f"requests-{kind}")
        with open(path, "w") as file:
            file.writelines(f"{whose} {what}\n" for whose, what in lines)
        return path

    def once(self, server, lines):
        run(
            [
                "taskset",
                "-c",
                "1",
                self.setup.peers,
                "once",
                self.lines("once", lines),
                seed(),
                "16",
                f"127.0.0.1:{server.ports['http']}",
            ]
        )

    def paced(self, server, kind, lines, rate, connections, seconds):
        return [
            "taskset",
            "-c",
            "1",
            self.setup.peers,
            "paced",
            self.lines(kind, lines),
            seed(),
            str(connections),
            f"127.0.0.1:{server.ports['http']}",
            str(rate),
            str(seconds),
        ]

    def measured(self, server, beside=None):
        stop, failed = threading.Event(), []

        def disturb():
            try:
                beside(server, stop)
            except Exception as error:  # noqa: BLE001
                failed.append(error)

        disturbing = threading.Thread(target=disturb) if beside else None
        if disturbing:
            disturbing.start()
        said = json.loads(
            run([*self.paced(server, "hits", keys(), RATE, CONNECTIONS, SECONDS), "hits"])
        )
        stop.set()
        if disturbing:
            disturbing.join()
        if failed or set(said.pop("statuses")) != {"200"}:
            sys.exit(f"{server.name}: not every answer was good: {failed}")
        return said

    def misses(self, server, stop):
        run(self.paced(server, "misses", [(token(0), name(FRESH))], OTHERS, 8, SECONDS))

    def changes(self, server, stop):
        connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"])
        number = 0
        while not stop.wait(0.02):
            number += 1
            connection.request(
                "PUT",
                f"/customer/{customer(number % 2000)}",
                headers={"Authorization": f"Bearer {token(1)}"},
            )
            connection.getresponse().read()

    def admin(self, server, method, path):
        connection = http.client.HTTPConnection("127.0.0.1", server.ports["admin"])
        connection.request(method, path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise OSError(f"{method} {path}: {answer.status}")

    def reloads(self, server, stop):
        while not stop.wait(0.1):
            self.admin(server, "POST", "/reload")

    def drops(self, server, stop):
        stop.wait(SECONDS / 2)
        self.admin(server, "DELETE", "/cache")


def main(binary, peers, file):
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    setup = servers.Setup(folder, os.path.abspath(binary), os.path.abspath(peers))
    tail, running = Tail(setup), []
    try:
        for kind in (servers.Floor, servers.Gateway, ShortLived, Full):
            running.append(kind(setup, 1, False))
        floor, gateway, short, full = running
        for server in running:
            server.ready()
            tail.once(server, keys())
        everything = grid(STORED // 2, 2)

        def clock():
            return {
                "counted": int(RATE * SECONDS),
                **json.loads(run(["taskset", "-c", "0", peers, "clock", str(RATE), str(SECONDS)])),
            }

        def dropped():
            tail.once(gateway, everything)
            tail.once(gateway, keys())
            return tail.measured(gateway, tail.drops)

        cases = {
            "a program that reads the clock": clock,
            "the floor": lambda: tail.measured(floor),
            "the gateway": lambda: tail.measured(gateway),
            f"… and {OTHERS} misses a second": lambda: tail.measured(gateway, tail.misses),
            "… each response refreshed every second": lambda: tail.measured(short),
            f"… and {OTHERS} misses a second, each evicting": lambda: tail.measured(
                full, tail.misses
            ),
            "… and 50 changes a second": lambda: tail.measured(gateway, tail.changes),
            "… and 10 reloads a second": lambda: tail.measured(gateway, tail.reloads),
            f"… and everything invalidated once, {STORED:,} entries": dropped,
        }
        rounds = {title: [] for title in cases}
        for _ in range(ROUNDS):
            for title, measure in cases.items():
                rounds[title].append(measure())
                time.sleep(0.2)
        found = {
            title: {
                key: statistics.median(each[key] for each in of)
                for key in ("p50", "p99", "p999", "max", "counted")
            }
            for title, of in rounds.items()
        }
        for title, of in found.items():
            print(
                f"{title:50} p50 {of['p50']:6.0f} p99 {of['p99']:6.0f} p99.9 {of['p999']:6.0f} max {of['max']:7.0f} µs of {of['counted']:,.0f}"
            )
        with open(file, "w") as out:
            json.dump(
                {"rate": RATE, "seconds": SECONDS, "rounds": ROUNDS, "cases": found}, out, indent=1
            )
    finally:
        for server in running:
            server.stop()
        setup.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
