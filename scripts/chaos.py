#!/usr/bin/env python3
"""Reloads, certificate changes, upgrades and a shutdown under load; counts lost requests.

    scripts/chaos.py BINARY

Four wrk request a customer's name continuously: over kept connections and with a new one for each
request, in cleartext and over TLS. Meanwhile there are 100 reloads (HUP and POST /reload in turn,
each with another configuration), 20 changes of the certificate and 5 upgrades (`run --upgrade`).
Every response must be a 200, and none may be missing. Then a TERM, with clients of this script (wrk
does not distinguish a refused connection from a lost one): a client that is connected must receive
a response, and a refused connection came too late. Prints the counts; exits with 1 if a request was
lost.

Needs wrk and openssl. Everything listens on free loopback ports.
"""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

RELOADS, SWAPS, UPGRADES = 100, 20, 5
PATIENCE = 60
TARGET = "/customer/73469a52f4fd7f77ec7b28cc/name"
BEARER = "Authorization: Bearer sandbox-demo-viewer"
# Longer than everything takes: wrk is stopped.
LOAD_SECONDS = 600


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def await_that(what, condition):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if found := condition():
                return found
        except (OSError, ssl.SSLError):
            pass
        if time.monotonic() > deadline:
            sys.exit(f"timed out waiting until {what}")
        time.sleep(0.02)


class Chaos:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.plain, self.tls, self.admin, self.api = free_ports(4)
        self.log = open(f"{folder}/log", "wb")
        self.certificates = [self.certificate(number) for number in range(2)]
        self.shown = 0
        self.show(0)
        self.ttl = 60
        self.configure()

    def path(self, name):
        return os.path.join(self.folder, name)

    def certificate(self, number):
        """A certificate with its key, and what a client sees of it."""
        cert, key = self.path(f"cert{number}.pem"), self.path(f"key{number}.pem")
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ]
            + ["-subj", f"/CN=gateway{number}.example", "-keyout", key, "-out", cert],
            check=True,
            capture_output=True,
        )
        with open(cert) as file:
            pem = file.read()
        with open(key) as file:
            return pem, file.read()

    def show(self, number):
        for name, text in zip(("key.pem", "cert.pem"), reversed(self.certificates[number])):
            with open(self.path(name + ".new"), "w") as file:
                file.write(text)
            os.rename(self.path(name + ".new"), self.path(name))
        self.shown = number

    def configure(self):
        with open(self.path("gateway.toml"), "w") as file:
            file.write(f"""
server.listen = ["127.0.0.1:{self.plain}"]
server.tls = {{ listen = ["127.0.0.1:{self.tls}"], cert_file = "{self.path('cert.pem')}", key_file = "{self.path('key.pem')}" }}
server.upgrade_socket = "{self.path('meet/upgrade.socket')}"
admin.listen = "127.0.0.1:{self.admin}"
upstream.url = "http://127.0.0.1:{self.api}"
cache.ttl = "{self.ttl}s"
log.access = "errors"
""")

    def start(self, *more):
        command = [self.binary, "run", "-c", self.path("gateway.toml"), *more]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def stats(self):
        return json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/stats", timeout=5))

    def reload(self, process, number):
        self.ttl = 50 + number % 10
        self.configure()
        before = self.stats()["config_generation"]
        if number % 2:
            process.send_signal(signal.SIGHUP)
        else:
            request = urllib.request.Request(f"http://127.0.0.1:{self.admin}/reload", method="POST")
            urllib.request.urlopen(request, timeout=PATIENCE).read()
        await_that("the reload is done", lambda: self.stats()["config_generation"] > before)

    def swap(self):
        self.show(1 - self.shown)
        wanted = ssl.PEM_cert_to_DER_cert(self.certificates[self.shown][0])
        address = ("127.0.0.1", self.tls)
        await_that(
            "the changed certificate is shown",
            lambda: ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address)) == wanted,
        )

    def upgrade(self, process):
        successor = self.start("--upgrade")
        if code := process.wait(PATIENCE):
            sys.exit(f"the process before ended with {code}")
        await_that("the successor is ready", lambda: self.ready())
        return successor

    def ready(self):
        return (
            urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).status == 200
        )

    def load(self, name, scheme, port, *headers):
        command = ["wrk", "-t1", "-c8", f"-d{LOAD_SECONDS}s", "--timeout", "30s", "-H", BEARER]
        for header in headers:
            command += ["-H", header]
        command.append(f"{scheme}://127.0.0.1:{port}{TARGET}")
        return name, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class Caller:
    """Sends requests until a connection is refused."""

    def __init__(self, port, kept):
        self.port, self.kept, self.answered, self.lost = port, kept, 0, 0
        self.thread = threading.Thread(target=self.ask, daemon=True)
        self.thread.start()

    def ask(self):
        name, value = BEARER.split(": ")
        connection = None
        while True:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            try:
                connection.request("GET", TARGET, headers={name: value})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self.lost += 1
                connection = None
                continue
            self.answered += 1
            self.lost += answer.status != 200
            if not self.kept or answer.will_close:
                connection.close()
                connection = None


def main():
    binary = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(binary, folder)
        sandbox = subprocess.Popen(
            [binary, "sandbox", "--listen", f"127.0.0.1:{chaos.api}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        process, loads = chaos.start(), []
        try:
            await_that("it is ready", chaos.ready)
            loads = [
                chaos.load("kept", "http", chaos.plain),
                chaos.load("a connection each", "http", chaos.plain, "Connection: close"),
                chaos.load("kept, TLS", "https", chaos.tls),
                chaos.load("a connection each, TLS", "https", chaos.tls, "Connection: close"),
            ]
            began = time.monotonic()
            for number in range(1, RELOADS + 1):
                chaos.reload(process, number)
                if number % (RELOADS // SWAPS) == 0:
                    chaos.swap()
                if number % (RELOADS // UPGRADES) == 0:
                    process = chaos.upgrade(process)
            took = time.monotonic() - began
            for _, load in loads:
                load.send_signal(signal.SIGINT)
            results = [(name, load.communicate(timeout=PATIENCE)[0]) for name, load in loads]
            callers = [Caller(chaos.plain, kept=number % 2 == 0) for number in range(8)]
            await_that(
                "each caller was answered", lambda: all(caller.answered > 10 for caller in callers)
            )
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
            for caller in callers:
                caller.thread.join(PATIENCE)
        finally:
            for left in [process, sandbox, *(load for _, load in loads)]:
                if left.poll() is None:
                    left.kill()
                    left.wait()
        print(
            f"{RELOADS} reloads, {SWAPS} changes of the certificate, {UPGRADES} upgrades in {took:.0f} s, then TERM: exit code {code}"
        )
        lost = sum(print_outcome(name, result) for name, result in results)
        lost += sum(caller.lost for caller in callers)
        print(
            f"at the TERM, {len(callers)} callers: {sum(caller.answered for caller in callers)} answered, "
            f"{sum(caller.lost for caller in callers)} lost; each was refused a connection at the end"
        )
        if code or lost:
            with open(chaos.path("log"), errors="replace") as file:
                print(
                    "".join(line for line in file if '"ERROR"' in line or '"WARN"' in line)[:4000]
                )
            sys.exit(1)


def print_outcome(name, result):
    """Prints the outcomes of the requests of one wrk; returns the number of lost ones."""
    answered = int(re.search(r"(\d+) requests in", result)[1])
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", result)
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", result
    )
    connect, read, write, timeout = map(int, errors.groups()) if errors else (0, 0, 0, 0)
    other = int(others[1]) if others else 0
    print(
        f"{name}: {answered} answered; other statuses {other}, errors: connect {connect}, read {read}, write {write}, "
        f"timeout {timeout}"
    )
    return connect + read + write + timeout + other + (not answered)


if __name__ == "__main__":
    main()
