#!/usr/bin/env python3
"""Resident memory of the gateway under load that is made to fill it; see scripts/hostile.

The first argument is the binary; a release build, or it takes an hour. Needs wrk and nginx, which
is the API here. Prints figures and the bound of each, and ends with 1 if one is passed. The bounds
are those of docs/ARCHITECTURE.md, in MiB.
"""

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from pair import CUSTOMER, await_answer, free_port, running

FOLDER = os.path.dirname(os.path.abspath(__file__))
REQUESTS = 1_000_000
IDLE = 10_000
CACHE = 64
MIB = 1 << 20

# The bound of resident memory in docs/BOUNDS.md, in MiB.
STRANGERS = 64 + 2 * CACHE + 200_000 * 2 / 1024
IDLERS = 64 + IDLE * 32 / 1024
CONNECTIONS = 100
HTTP2_CONNECTIONS = 400
HTTP2_STREAMS = 100
MAX_REQUESTS = 2048
HTTP2 = 64 + 2 * CACHE + HTTP2_CONNECTIONS * 64 / 1024 + MAX_REQUESTS * 64 / 1024
LARGE = 64 + 2 * CACHE + 2 * CONNECTIONS
VALID = b'{"success":true,"employee":"ee0000000000000000000001","customer":"%s","accessLevel":"%s"}'

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; default_type application/json; keepalive_requests 1000000000;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d;
    scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {folder};
        location = /auth/validateToken {{
            if ($arg_token ~ ^tok-big) {{ rewrite ^ /viewer.json last; }}
            rewrite ^ /{verdict}.json last;
        }}
        location = /viewer.json {{ }}
        location = /invalid.json {{ }}
        location / {{ try_files /{document}.json =404; }}
    }}
}}
"""


@contextlib.contextmanager
def api(verdict, document):
    """An API for which every token is valid, or none, and every customer has the same document."""
    with open(os.path.join(FOLDER, "../golden/upstream.json"), "rb") as file:
        golden = file.read().strip()
    few = b'{"name":"x","list":[' + b",".join([golden] * (60_000 // len(golden))) + b"]}"
    many = b'{"name":"x","list":[' + b",".join([golden] * (MIB // len(golden))) + b"]}"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        port, config = free_port(), os.path.join(folder, "nginx.conf")
        files = {
            "viewer.json": VALID % (CUSTOMER.encode(), b"VIEWER"),
            "invalid.json": b'{"success":false}',
        }
        files |= {"golden.json": golden, "many.json": many, "list.json": few}
        for name, content in files.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        with open(config, "w") as file:
            file.write(NGINX.format(folder=folder, port=port, verdict=verdict, document=document))
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        process = subprocess.Popen(
            [nginx, "-p", folder, "-c", config, "-e", os.path.join(folder, "error.log")]
        )
        try:
            await_answer(f"http://127.0.0.1:{port}/golden")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def wrk(connections, seconds, url, *options, script=()):
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        *options,
        url,
        *(["--", *script] if script else []),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return int(re.search(r"(\d+) requests in", said)[1]), int(other[1]) if other else 0


bad = []


def verdict(what, pair, peak, bound, more=""):
    beyond = peak > bound or pair.gateway.poll() is not None
    print(
        f"{'BAD ' if beyond else 'good'} {what}: {peak:.0f} MiB at most, bound {bound:.0f} MiB{more}",
        flush=True,
    )
    if beyond:
        bad.append(what)


def strangers(binary, verdict_of_api, bound):
    """A million callers, each with a different token, customer and address."""
    config = f'cache.max_bytes = "{CACHE}MiB"\nlog.access = "off"\nlog.level = "error"\n'
    with api(verdict_of_api, "golden") as upstream, running(binary, config, upstream) as pair:
        asked, refused, seed, began = 0, 0, 1, time.monotonic()
        while asked < REQUESTS:
            script = os.path.join(FOLDER, "tokens.lua")
            more, other = wrk(64, 10, pair.url(""), "-s", script, script=[str(seed)])
            asked, refused, seed = asked + more, refused + other, seed + 1
        more = f"; {asked} tokens and ids in {time.monotonic() - began:.0f} s, {refused} not 2xx"
        more += f", {pair.metric('telecomx_gateway_cache_entries'):.0f} entries at the end"
        verdict(
            f"a million tokens, ids and addresses, for the API {verdict_of_api}",
            pair,
            pair.peak(),
            bound,
            more,
        )


def is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True


def idle(binary):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < IDLE + 500:
        print(f"skipped: idle connections: no more than {most} open files are allowed")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 500, most))
    server = f', max_connections = {IDLE + 100}, keepalive_timeout = "10m"'
    with running(binary, server=server) as pair, contextlib.ExitStack() as open_ones:
        before, connections = pair.resident(), []
        head = f"GET /customer/{CUSTOMER}/name HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sandbox-demo-viewer\r\n\r\n"
        for _ in range(IDLE):
            connection = open_ones.enter_context(
                socket.create_connection(("127.0.0.1", pair.public), timeout=10)
            )
            connections.append(connection)
            connection.sendall(head.encode())
            answer = b""
            while not answer.endswith(b"}}}"):
                piece = connection.recv(65536)
                if not piece:
                    raise SystemExit(f"the gateway closed an idle connection: {answer[:100]}")
                answer += piece
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"no response: {answer[:100]}")
        each = (pair.resident() - before) * 1024 / IDLE
        still = sum(is_open(connection) for connection in connections)
        fault = pair.fault()
        more = (
            f"; {each:.1f} KiB for each, {still} still open, {fault or 'another client is served'}"
        )
        verdict(f"{IDLE} idle connections, each after one request", pair, pair.peak(), IDLERS, more)
        if fault:
            bad.append(fault)


def large(binary):
    config = f'cache.max_bytes = "{CACHE}MiB"\nlog.level = "error"\n'
    with api("viewer", "many") as upstream, running(binary, config, upstream) as pair:
        for what, path in [
            ("hits", f"/customer/{CUSTOMER}/name"),
            ("fetched for each", None),
            ("forwarded redacted", f"/customer/{CUSTOMER}"),
            ("forwarded", "/elsewhere"),
        ]:
            pair.forget_peak()
            options = (
                ("-H", "Authorization: Bearer tok-big")
                if path
                else ("-s", os.path.join(FOLDER, "tokens.lua"))
            )
            asked, other = wrk(
                CONNECTIONS, 10, pair.url(path or ""), *options, script=() if path else ["7"]
            )
            if asked == 0 or other:
                bad.append(f"{what}: {other} of {asked} not 2xx")
            verdict(
                f"responses of 1 MiB to {CONNECTIONS} connections, {what}",
                pair,
                pair.peak(),
                LARGE,
                f"; {asked} answers",
            )


def frame(kind, flags, stream, payload=b""):
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def literal(text):
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def stalled(port, path):
    """Opens an HTTP/2 connection with requests whose responses have a window of 0."""
    fields = {
        ":method": "GET",
        ":scheme": "http",
        ":authority": "x",
        ":path": path,
        "authorization": "Bearer tok-big",
    }
    block = b"".join(b"\0" + literal(name) + literal(value) for name, value in fields.items())
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"\0\4\0\0\0\0")
    sent += b"".join(frame(1, 5, 2 * number + 1, block) for number in range(HTTP2_STREAMS))
    connection.sendall(sent)
    return connection


def http2(binary):
    """400 connections with 100 streams each, while responses wait for their clients."""
    config = f'cache.max_bytes = "{CACHE}MiB"\nlog.level = "error"\n'
    server = f", max_requests = {MAX_REQUESTS}"
    for document in ("golden", "list"):
        for what, path in [
            ("intercepted", f"/customer/{CUSTOMER}/name"),
            ("redacted", f"/customer/{CUSTOMER}"),
            ("plain", "/elsewhere"),
        ]:
            with api("viewer", document) as upstream, running(
                binary, config, upstream, server=server
            ) as pair:
                connections = [stalled(pair.public, path) for _ in range(HTTP2_CONNECTIONS)]
                time.sleep(10)
                more = f"; {pair.resident():.0f} MiB at the end, another token gets {pair.ask('/other', 'tok-big2')[0]}"
                for connection in connections:
                    connection.close()
                what = f"{HTTP2_CONNECTIONS} x {HTTP2_STREAMS} stalled streams, {what}, {document}"
                verdict(what, pair, pair.peak(), HTTP2, more)


def main(binary, *names):
    parts = {
        "valid": lambda: strangers(binary, "viewer", STRANGERS),
        "invalid": lambda: strangers(binary, "invalid", STRANGERS),
        "idle": lambda: idle(binary),
        "large": lambda: large(binary),
        "http2": lambda: http2(binary),
    }
    for name, part in parts.items():
        if not names or name in names:
            part()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
