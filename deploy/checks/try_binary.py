#!/usr/bin/env python3
"""Runs a released binary as an operator would: version, schema, a gateway with TLS in front of the
sandbox, whose address is resolved by name, a miss, a hit, redaction, a drain.

    try_binary.py [EMULATOR...] BINARY      (in the root of the repository)

EMULATOR: a program with arguments that runs a binary of another architecture. One line per check.
"""

import http.client
import pathlib
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading

CUSTOMER = "/customer/73469a52f4fd7f77ec7b28cc/name"
# Emulation is slow.
SECONDS_MAX = 60
CONFIGURATION = """
[server]
listen = ["127.0.0.1:0"]
tls = {{ listen = ["127.0.0.1:0"], cert_file = "{folder}/cert.pem", key_file = "{folder}/key.pem" }}
[upstream]
url = "http://localhost:{port}"
[admin]
listen = "127.0.0.1:0"
[log]
format = "text"
"""


class Process:
    """A server in the background; `line` waits for a line of its output."""

    def __init__(self, command):
        self.lines = []
        self.changed = threading.Condition()
        self.child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def line(self, pattern):
        def found():
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self.changed:
            match = self.changed.wait_for(found, SECONDS_MAX)
        return match or sys.exit(f"no output {pattern!r}:\n{''.join(self.lines)}")

    def end(self):
        """Ends the process by SIGTERM; returns its exit code."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(SECONDS_MAX)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()


def check(name, holds, detail=""):
    if not holds:
        sys.exit(f"FAILED: {name}: {detail}")
    print(f"ok: {name}{f': {detail}' if detail else ''}", flush=True)


def output(command):
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"FAILED: {' '.join(map(str, command))}:\n{run.stdout}{run.stderr}")
    return run.stdout


def get(port, token):
    """The response to one request over TLS on a new connection: status, cache status, body."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS_MAX, context=trust)
    connection.request("GET", CUSTOMER, headers={"Authorization": f"Bearer sandbox-demo-{token}"})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, response.getheader("Cache-Status", ""), body


def try_gateway(binary, folder):
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2".split()
        + ["-addext", "subjectAltName=DNS:localhost"]
        + ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    with Process([*binary, "sandbox", "--listen", "127.0.0.1:0"]) as sandbox:
        port = sandbox.line(r"http://127\.0\.0\.1:(\d+)")[1]
        file = folder / "gateway.toml"
        file.write_text(CONFIGURATION.format(folder=folder, port=port))
        connects = output([*binary, "check", "-c", str(file), "--connect"])
        check("check --connect", "ok" in connects, connects.strip().splitlines()[-1])
        with Process([*binary, "run", "-c", str(file)]) as gateway:
            port = int(gateway.line(r"ready: .*TLS on [^ ]*:(\d+)")[1])
            miss, hit = get(port, "viewer"), get(port, "viewer")
            check("miss", miss[0] == 200 and "fwd" in miss[1], miss[1])
            check("hit", hit[0] == 200 and "; hit" in hit[1] and hit[2] == miss[2], hit[1])
            complete = get(port, "reseller")
            check("redaction", complete[0] == 200 and len(complete[2]) > len(hit[2]))
            check("drain", (code := gateway.end()) == 0, f"exit code {code}")


def main():
    binary = sys.argv[1:]
    version = output([*binary, "--version"]).strip()
    check("version", version.startswith("telecomx-gateway "), version)
    schema = pathlib.Path("config/gateway.schema.json").read_text()
    check("schema", output([*binary, "schema"]) == schema)
    with tempfile.TemporaryDirectory() as folder:
        try_gateway(binary, pathlib.Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
