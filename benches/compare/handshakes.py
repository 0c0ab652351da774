#!/usr/bin/env python3
"""CPU time of each server for a TLS connection with one hit: full handshakes and resumed ones.

    handshakes.py BINARY PEERS RESULTS        (both of a release build)

Prints microseconds of user and system time per connection (median of the rounds) for TLS 1.2 and
1.3 with a P-256 and an RSA-2048 key, and the share of connections that were resumed. The client is
Python's `ssl`, so the group is X25519. In the environment: ROUNDS (3), CONNECTIONS (300).
"""

import json
import os
import socket
import ssl
import statistics
import sys
import tempfile

import servers
from cases import HOST, customer, name, token

ROUNDS = int(os.environ.get("ROUNDS", 3))
CONNECTIONS = int(os.environ.get("CONNECTIONS", 300))
NAMES = ("gateway", "haproxy", "nginx")
KEYS = {"P-256": servers.P256, "RSA-2048": ["rsa:2048"]}
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
REQUEST = (
    f"GET {name(customer(0))} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token(0)}\r\n"
    "Connection: close\r\n\r\n"
).encode()


def context(version):
    """A client context that verifies nothing: the certificate is self-signed."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.minimum_version = made.maximum_version = version
    return made


def connect(server, client, session):
    """Sends one request on a new connection; returns its session and whether it was resumed."""
    with socket.create_connection(("127.0.0.1", server.ports["tls"])) as plain:
        with client.wrap_socket(plain, session=session) as stream:
            stream.sendall(REQUEST)
            response = b""
            while piece := stream.recv(65536):
                response += piece
            if not response.startswith(b"HTTP/1.1 200"):
                sys.exit(f"{server.name}: {response[:80]!r}")
            return stream.session, stream.session_reused


def measure(server, version, resume):
    """CPU time per connection in microseconds, and the share of resumed connections."""
    client = context(version)
    session, resumed = connect(server, client, None)[0], 0
    before = server.cpu_seconds()
    for _ in range(CONNECTIONS):
        new, is_resumed = connect(server, client, session if resume else None)
        resumed += is_resumed
        # A ticket of TLS 1.3 is for one connection (RFC 8446 appendix C.4).
        session = new if version is ssl.TLSVersion.TLSv1_3 else session
    return (server.cpu_seconds() - before) / CONNECTIONS * 1e6, resumed / CONNECTIONS


def measure_all(running):
    """The median cost of each kind of handshake at each server, measured in turns."""
    costs = {}
    for _ in range(ROUNDS):
        for label, version in VERSIONS.items():
            for resume in (False, True):
                for server in running:
                    kind = f"{label}, {'resumed' if resume else 'full'}"
                    costs.setdefault((kind, server.name), []).append(
                        measure(server, version, resume)
                    )
    results = {}
    for (kind, server), measured in costs.items():
        microseconds = statistics.median(cost for cost, _ in measured)
        share = statistics.mean(share for _, share in measured)
        results.setdefault(kind, {})[server] = {"us": microseconds, "resumed": share}
    return results


def main(binary, peers, file):
    results = {}
    for key in KEYS:
        folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        setup = servers.Setup(folder, os.path.abspath(binary), os.path.abspath(peers))
        # In place of the one that all benchmarks use.
        servers.make_certificate(folder, KEYS[key])
        running = []
        try:
            for kind in NAMES:
                running.append(servers.KINDS[kind](setup, 1, False))
                running[-1].ready()
            results[key] = measure_all(running)
        finally:
            for server in running:
                server.stop()
            setup.close()
        for kind, costs in results[key].items():
            shown = "  ".join(
                f"{server} {cost['us']:6.0f} µs ({cost['resumed']:.0%} resumed)"
                for server, cost in costs.items()
            )
            print(f"{key:9} {kind:17} {shown}", flush=True)
    with open(file, "w") as out:
        json.dump(results, out, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
