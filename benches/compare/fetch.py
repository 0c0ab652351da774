#!/usr/bin/env python3
"""Cost of a fetch and of a forward of 1 KB: gateway binaries and nginx in turns, in front of one
origin.

    fetch.py NAME=BINARY...       (release builds)

The origin is an nginx too. The measured nginx forwards the same response with the request and
response fields that the gateway sets; it stores nothing and redacts nothing. Prints user and system
time of the server for each request (median of the rounds), its ratio to nginx in the same round,
system calls (strace) and user instructions (callgrind) for each request.

In the environment: ROUNDS (7), ROUND_SECONDS (2), CONNECTIONS (32), CASES=forward for one case,
COUNTS=0 to leave out strace and callgrind. The server has core 0, load and origin have core 1. On
a machine that others use, `nice -n -10` and the ratios help.
"""

import glob
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import servers
from cases import FRESH, HOST, name, token
from run import seed

ROUNDS = int(os.environ.get("ROUNDS", 7))
SECONDS = int(os.environ.get("ROUND_SECONDS", 2))
COUNTS = os.environ.get("COUNTS", "1") != "0"
CONNECTIONS = int(os.environ.get("CONNECTIONS", 32))
# Each fetch is for another customer, with a token that the gateway has validated.
CASES = {"fetch": name(FRESH), "forward": "/bytes/1024"}
if wanted := os.environ.get("CASES"):
    CASES = {case: path for case, path in CASES.items() if case in wanted.split(",")}


class Setup:
    """The folder and the origin of all servers: every token is valid, and every customer has a
    separate document."""

    def __init__(self, folder):
        self.folder, self.origin = folder, servers.free_port()
        self.certificate, self.key = servers.make_certificate(folder)
        with open(
            os.path.join(
                os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/upstream.json"
            )
        ) as file:
            document = file.read().strip()
        document = document.replace("73469a52f4fd7f77ec7b28cc", "$id")
        identity = '{"success":true,"employee":"5f00000000000000000000aa","customer":"x","accessLevel":"VIEWER"}'
        path = os.path.join(folder, "origin.conf")
        with open(path, "w") as file:
            http = f"""
    access_log off; default_type application/json;
    server {{
        listen 127.0.0.1:{self.origin};
        location /auth/ {{ return 200 '{identity}'; }}
        location /bytes/ {{ return 200 '{"x" * 1024}'; }}
        location ~ ^/customer/(?<id>[0-9a-f]+)/name$ {{
            add_header Cache-Control max-age=86400; add_header ETag '"$id"';
            return 200 '{document}';
        }}
    }}"""
            file.write(servers.nginx_config(folder, "origin", http))
        self.process = subprocess.Popen(["taskset", "-c", "1", "nginx", "-p", folder, "-c", path])
        servers.await_answer(f"http://127.0.0.1:{self.origin}/bytes/")

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Gateway(servers.Gateway):
    """A gateway of one binary. The cache is small, so that no case grows memory without end."""

    caching = 'cache.ttl = "6h"\ncache.max_bytes = "64MiB"\n'

    def __init__(self, setup, name, binary):
        self.name, self.binary = name, binary
        super().__init__(setup, 1, False)

    def commands(self):
        self.setup.binary = self.binary
        return super().commands()


class Nginx(servers.Server):
    """nginx as a proxy that sets the gateway's fields."""

    name, master = "nginx", "on"
    fields = servers.NGINX_FIELDS

    def commands(self):
        main = f"master_process {self.master};"
        config = self.write(
            "nginx.conf", servers.nginx_config(self.folder, "nginx", self.http(), main=main)
        )
        return [["nginx", "-p", self.folder, "-c", config]]

    def http(self):
        return f"""
    access_log off;
    upstream origin {{ server 127.0.0.1:{self.setup.origin}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{self.ports["http"]};
        proxy_http_version 1.1; proxy_set_header Connection "";{self.fields}
        location / {{ proxy_pass http://origin; }}
    }}"""


class BareNginx(Nginx):
    """nginx without fields."""

    name, fields = "nginx-no-fields", ""


class Counted:
    """A server under callgrind, which counts in one process."""

    master = "off"

    def start(self, command):
        super().start(
            [
                "valgrind",
                "--tool=callgrind",
                f"--callgrind-out-file={self.folder}/callgrind.%p",
                *command,
            ]
        )


def counted(kind):
    return type(f"Counted{kind.__name__}", (Counted, kind), {})


def load(setup, server, path, seconds):
    """Sends requests for a time, as fast as the server responds; returns their number."""
    requests = os.path.join(setup.folder, "requests")
    with open(requests, "w") as file:
        file.write(f"{token(0)} {path}\n")
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.lua")
    command = [
        "taskset",
        "-c",
        "1",
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "-s",
        script,
    ]
    url = f"http://127.0.0.1:{server.ports['http']}/"
    said = subprocess.run(
        [*command, url, "--", requests, seed(), "1", HOST],
        check=True,
        capture_output=True,
        text=True,
    )
    if "Non-2xx" in said.stdout or "Socket errors" in said.stdout:
        sys.exit(f"{server.name}: a response was not a 2xx\n{said.stdout}")
    return int(re.search(r"(\d+) requests in", said.stdout)[1])


def round_of(server, send):
    """Returns the CPU time per request in microseconds. `send` sends for a number of seconds and
    returns the number of responses."""
    before = server.cpu_seconds()
    count = send(SECONDS)
    return (server.cpu_seconds() - before) / count * 1e6


def system_calls(server, send):
    """Returns the system calls per request by name."""
    out = os.path.join(server.folder, "strace")
    pids = [word for pid in server.pids() for word in ("-p", str(pid))]
    tracer = subprocess.Popen(["strace", "-qcf", "-o", out, *pids], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    count = send(4)
    tracer.terminate()
    tracer.wait()
    calls = {}
    with open(out) as file:
        for line in file:
            if match := re.match(r" *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", line):
                calls[match[2]] = int(match[1]) / count
    total = calls.pop("total", sum(calls.values()))
    return total, {name: round(calls[name], 2) for name in calls if calls[name] > 0.02}


def instructions(server, send):
    """Returns the user instructions per request, from a dump of callgrind around the load."""
    send(3)
    for pid in server.pids():
        subprocess.run(["callgrind_control", "-z", str(pid)], check=True, capture_output=True)
    count = send(8)
    total = 0
    for pid in server.pids():
        dumps = set(glob.glob(f"{server.folder}/callgrind.*"))
        subprocess.run(["callgrind_control", "-d", str(pid)], check=True, capture_output=True)
        for dump in set(glob.glob(f"{server.folder}/callgrind.*")) - dumps:
            with open(dump) as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("summary:"))
    return total / count


def main(*binaries):
    folder = tempfile.mkdtemp(dir="/dev/shm")
    setup = Setup(folder)
    running = []
    try:
        given = [word.split("=", 1) for word in binaries]
        running += [Gateway(setup, name, os.path.abspath(binary)) for name, binary in given]
        running += [Nginx(setup, 1, False), BareNginx(setup, 1, False)]
        for server in running:
            server.ready()
        for case, path in CASES.items():
            for server in running:
                load(setup, server, path, 1)
            rounds = {server.name: [] for server in running}
            for _ in range(ROUNDS):
                for server in running:
                    rounds[server.name].append(round_of(server, partial(load, setup, server, path)))
            print(f"{case}: GET {path}")
            for server in running:
                of = rounds[server.name]
                ratios = [mine / its for mine, its in zip(of, rounds["nginx"])]
                line = f"  {server.name:18} {statistics.median(of):6.1f} µs ({min(of):.1f}–{max(of):.1f})"
                line += f"  {statistics.median(ratios):5.2f} × nginx ({min(ratios):.2f}–{max(ratios):.2f})"
                if COUNTS:
                    total, calls = system_calls(server, partial(load, setup, server, path))
                    line += f"  {total:5.2f} system calls {calls}"
                print(line, flush=True)
        while running:
            running.pop().stop()
        for name, binary in given if COUNTS else []:
            running.append(counted(Gateway)(setup, f"{name}-counted", os.path.abspath(binary)))
        if COUNTS:
            running.append(counted(Nginx)(setup, 1, True))
        for server in running:
            server.ready()
            for case, path in CASES.items():
                counted_for = instructions(server, partial(load, setup, server, path))
                print(
                    f"  {server.name:18} {case:8} {counted_for:9,.0f} user instructions", flush=True
                )
    finally:
        for server in running:
            server.stop()
        setup.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
