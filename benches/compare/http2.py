#!/usr/bin/env python3
"""Cost of hits and forwards of 1 KB over HTTP/2: gateway binaries, HAProxy and nginx in turns, in
front of one origin.

    http2.py NAME=BINARY...       (release builds)

All servers set the gateway's fields, except `…-no-fields`. 32 connections of 8 streams each. Prints
user and system time of the server for each request (median of the rounds), its ratio to HAProxy for
hits and to nginx for forwards in the same round, system calls (strace) and user instructions
(callgrind) for each request, and the memory of an idle connection.

The environment, cores and origin are those of fetch.py.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import fetch
import servers
from cases import HOST, name, token
from connections import PREFACE, hit_request

CONNECTIONS, STREAMS, IDLE = 32, 8, 1000
WHO, WHAT = token(0), name(f"{7:024x}")
# Each case with its path, its port and the server that it is compared with.
CASES = {
    "hit": (WHAT, "h2", "haproxy"),
    "hit, TLS": (WHAT, "tls", "haproxy"),
    "forward": ("/bytes/1024", "h2", "nginx"),
    "forward, TLS": ("/bytes/1024", "tls", "nginx"),
}
# In the environment: CASES for some only (hit,forward); PEERS=0 to leave out the peers.
if wanted := os.environ.get("CASES"):
    CASES = {case: CASES[case] for case in wanted.split(",")}
PEERS = os.environ.get("PEERS", "1") != "0"


class Gateway(fetch.Gateway):
    """A gateway that keeps as many connections to the origin as nginx."""

    caching = fetch.Gateway.caching + "upstream.max_idle_connections = 256\n"


class Nginx(fetch.Nginx):
    """nginx with a cache for names."""

    def http(self):
        return f"""
    access_log off; http2_max_requests 1000000000;
    proxy_cache_path {self.folder}/cache levels=1:2 keys_zone=names:64m max_size=1g inactive=1d use_temp_path=off;
    open_file_cache max=8192 inactive=1d; open_file_cache_valid 1d;
    upstream origin {{ server 127.0.0.1:{self.setup.origin}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{self.ports["http"]};
        listen 127.0.0.1:{self.ports["h2"]} http2;
        listen 127.0.0.1:{self.ports["tls"]} ssl http2;
        ssl_certificate {self.setup.certificate}; ssl_certificate_key {self.setup.key}; ssl_protocols TLSv1.3;
        proxy_http_version 1.1; proxy_set_header Connection "";{self.fields}
        location / {{ proxy_pass http://origin; }}
        location /customer/ {{
            proxy_pass http://origin;
            proxy_cache names; proxy_cache_key $http_authorization$request_uri; proxy_cache_valid 200 1d;
        }}
    }}"""


class Haproxy(servers.Server):
    """HAProxy that sets the gateway's fields."""

    name = "haproxy"
    fields, request_fields = servers.HAPROXY_RESPONSE_FIELDS, servers.HAPROXY_REQUEST_FIELDS

    def commands(self):
        pem = self.write(
            "both.pem", open(self.setup.certificate).read() + open(self.setup.key).read()
        )
        listen = f"ssl crt {pem} ssl-min-ver TLSv1.3 alpn h2,http/1.1"
        # See servers.Haproxy: the key of its cache is the URI, and it does not store the response
        # to a request with the field.
        config = self.write(
            "haproxy.cfg",
            f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
cache names
    total-max-size 64
    max-object-size 65536
    max-age 86400
frontend public
    bind 127.0.0.1:{self.ports["http"]}
    bind 127.0.0.1:{self.ports["h2"]} proto h2
    bind 127.0.0.1:{self.ports["tls"]} {listen}{self.fields}
    http-request set-var(txn.name) bool(true) if {{ path_beg /customer/ }}
    http-request set-query %[req.hdr(authorization),field(2,' ')] if {{ var(txn.name) -m found }}
    http-request set-var(txn.caller) req.hdr(authorization)
    http-request del-header authorization if {{ var(txn.name) -m found }}
    http-request cache-use names if {{ var(txn.name) -m found }}
    http-request set-header authorization %[var(txn.caller)] if {{ var(txn.name) -m found }}
    http-response cache-store names if {{ var(txn.name) -m found }}
    default_backend origin
backend origin{self.request_fields}
    server origin 127.0.0.1:{self.setup.origin}
""",
        )
        return [["haproxy", "-db", "-f", config]]


class BareHaproxy(Haproxy):
    """HAProxy without fields."""

    name, fields, request_fields = "haproxy-no-fields", "", ""


class BareNginx(Nginx):
    """nginx without fields."""

    name, fields = "nginx-no-fields", ""


def load(server, case, seconds):
    """Sends requests for a time, as fast as the server responds; returns their number."""
    path, via, _ = case
    scheme = "https" if via == "tls" else "http"
    command = [
        "taskset",
        "-c",
        "1",
        "h2load",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-m{STREAMS}",
        "-D",
        str(seconds),
    ]
    command += ["-H", f"Authorization: Bearer {WHO}", "-H", f":authority: {HOST}"]
    url = f"{scheme}://127.0.0.1:{server.ports[via]}{path}"
    said = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
    good = int(re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", said)[1])
    if not good or not re.search(r", 0 failed, 0 errored, 0 timeout", said):
        sys.exit(f"{server.name}: a response was not a 2xx\n{said}")
    return good


def idle_bytes(server):
    """Returns the resident memory of an idle connection after a hit, in a new server."""
    load(server, (WHAT, "h2", ""), 1)
    time.sleep(1)
    before = server.resident()
    connections = []
    for _ in range(IDLE):
        connection = socket.create_connection(("127.0.0.1", server.ports["h2"]))
        connection.sendall(PREFACE + hit_request())
        received = b""
        # Until the frame that ends stream 1.
        while b"\x00\x01\0\0\0\x01" not in received:
            received += connection.recv(65536)
        connections.append(connection)
    time.sleep(1)
    grown = server.resident() - before
    for connection in connections:
        connection.close()
    return grown / IDLE


def main(*binaries):
    folder = tempfile.mkdtemp(dir="/dev/shm")
    setup = fetch.Setup(folder)
    given = [word.split("=", 1) for word in binaries]
    kinds = [partial(Gateway, setup, called, os.path.abspath(binary)) for called, binary in given]
    running, results = [], {}
    try:
        running += [kind() for kind in kinds]
        if PEERS:
            running += [kind(setup, 1, False) for kind in (Haproxy, BareHaproxy, Nginx, BareNginx)]
        for server in running:
            server.ready()
            print(
                f"  {server.name:18} an idle connection takes {idle_bytes(server) / 1024:6.1f} KiB",
                flush=True,
            )
        for case, (path, via, other) in CASES.items():
            for server in running:
                load(server, CASES[case], 1)
            rounds = {server.name: [] for server in running}
            for _ in range(fetch.ROUNDS):
                for server in running:
                    rounds[server.name].append(
                        fetch.round_of(server, partial(load, server, CASES[case]))
                    )
            print(f"{case}: GET {path}")
            for server in running:
                of = rounds[server.name]
                ratios = [mine / its for mine, its in zip(of, rounds.get(other, of))]
                line = f"  {server.name:18} {statistics.median(of):6.1f} µs ({min(of):.1f}–{max(of):.1f})"
                line += f"  {statistics.median(ratios):5.2f} × {other} ({min(ratios):.2f}–{max(ratios):.2f})"
                if fetch.COUNTS:
                    total, calls = fetch.system_calls(server, partial(load, server, CASES[case]))
                    line += f"  {total:5.2f} system calls {calls}"
                print(line, flush=True)
        while running:
            running.pop().stop()
        if fetch.COUNTS:
            for called, binary in given:
                running.append(
                    fetch.counted(Gateway)(setup, f"{called}-counted", os.path.abspath(binary))
                )
            running += [fetch.counted(kind)(setup, 1, True) for kind in (Haproxy, Nginx) if PEERS]
        for server in running:
            server.ready()
            for case in CASES:
                each = fetch.instructions(server, partial(load, server, CASES[case]))
                results[f"{server.name} {case}"] = round(each)
                print(f"  {server.name:18} {case:12} {each:9,.0f} user instructions", flush=True)
        print(json.dumps(results))
    finally:
        for server in running:
            server.stop()
        setup.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
