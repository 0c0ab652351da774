#!/usr/bin/env python3
"""Resident memory of each server for an idle connection after a hit, over HTTP/1.1 and HTTP/2, and
for a request under way.

    connections.py BINARY PEERS RESULTS        (both of a release build)

CONNECTIONS (1000) in the environment. A request is under way while the API does not respond.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time

import servers
from cases import HOST, name, token

COUNT = int(os.environ.get("CONNECTIONS", 1000))
NAMES = ("gateway", "haproxy", "nginx")
# Time after which all data was read and written.
SETTLE = 1.0
# The preface of HTTP/2 with empty SETTINGS (RFC 9113 section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


def request(path):
    return (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token(0)}\r\n\r\n".encode()
    )


def hit_request():
    """Returns the HEADERS frame of a hit, with literals only."""

    def literal(index, value):
        return bytes([index]) + bytes([len(value)]) + value.encode()

    block = (
        b"\x82\x86"
        + literal(0x04, name(f"{7:024x}"))
        + literal(0x01, HOST)
        + b"\x0f\x08"
        + literal(0, f"Bearer {token(0)}")[1:]
    )
    return len(block).to_bytes(3, "big") + b"\x01\x05\0\0\0\x01" + block


class SilentApi:
    """An API that accepts requests and never responds, except to `/asked`."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port, self.taken = self.socket.getsockname()[1], []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            self.taken.append(self.socket.accept()[0])


class Setup:
    """The setup of servers.Setup, in front of the silent API for requests under way."""

    def __init__(self, setup, origin):
        self.folder, self.binary, self.peers = (
            tempfile.mkdtemp(dir=setup.folder),
            setup.binary,
            setup.peers,
        )
        self.certificate, self.key, self.origin = setup.certificate, setup.key, origin


def growth(server, connect):
    """Returns the bytes that each of COUNT connections adds; `connect` opens one."""
    before = server.resident()
    connections = [connect() for _ in range(COUNT)]
    time.sleep(SETTLE)
    grown = server.resident() - before
    for connection in connections:
        connection.close()
    return grown / COUNT


def await_connection(server):
    """Waits until the server listens, whose API never responds."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", server.ports["http"])).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def until(connection, end):
    received = b""
    while end not in received:
        part = connection.recv(65536)
        if not part:
            sys.exit(f"closed after {received!r}")
        received += part


def idle_http1(server):
    path = name(f"{7:024x}")

    def connect():
        connection = socket.create_connection(("127.0.0.1", server.ports["http"]))
        connection.sendall(request(path))
        until(connection, b"\r\n\r\n")
        return connection

    for _ in range(2 * COUNT):
        connect().close()
    return growth(server, connect)


def idle_http2(server):
    def connect():
        connection = socket.create_connection(("127.0.0.1", server.ports["h2"]))
        connection.sendall(PREFACE + hit_request())
        # The frame that ends stream 1.
        until(connection, b"\x00\x01\0\0\0\x01")
        return connection

    connect().close()
    return growth(server, connect)


def under_way(server):
    def connect():
        connection = socket.create_connection(("127.0.0.1", server.ports["http"]))
        connection.sendall(request("/slow"))
        return connection

    return growth(server, connect)


def main(binary, peers, file):
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    setup = servers.Setup(folder, os.path.abspath(binary), os.path.abspath(peers))
    running, results = [], {}
    try:
        for called in NAMES:
            of = results[called] = {}
            # Each in a new process: allocators keep freed memory.
            for what, measure in (
                ("idle_http1", idle_http1),
                ("idle_http2", idle_http2),
                ("under_way", under_way),
            ):
                place = Setup(setup, SilentApi().port if measure is under_way else setup.origin)
                server = servers.KINDS[called](place, 1, False)
                running.append(server)
                if measure is under_way:
                    await_connection(server)
                else:
                    server.ready()
                of[what] = measure(server)
                running.pop().stop()
            print(
                f"  {called:10} idle: HTTP/1 {of['idle_http1'] / 1024:.1f} KiB, HTTP/2 {of['idle_http2'] / 1024:.1f} KiB; "
                f"request under way {of['under_way'] / 1024:.1f} KiB",
                flush=True,
            )
        with open(file, "w") as out:
            json.dump(results, out, indent=1)
    finally:
        for server in running:
            server.stop()
        setup.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
