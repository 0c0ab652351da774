#!/usr/bin/env python3
"""h2spec against the gateway in front of the sandbox, over cleartext and TLS, on free ports of
loopback.

    h2spec.py BINARY

Runs each case on a stored response (the fast path) and on a forwarded one. Fails if another case
than the known one fails, or if h2spec is missing:
`go install github.com/summerwind/h2spec/cmd/h2spec@latest`, or H2SPEC=PROGRAM.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(
    0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "benches", "compare")
)
import servers  # noqa: E402

CUSTOMER = "73469a52f4fd7f77ec7b28cc"
PATHS = {
    "stored": f"/customer/{CUSTOMER}/name?token=sandbox-demo-viewer",
    "forwarded": f"/customer/{CUSTOMER}?token=sandbox-demo-reseller",
}
# In cleartext one port serves both protocols, so that a wrong preface is an HTTP/1.1 request and
# gets 400.
KNOWN = {"cleartext": ["Sends invalid connection preface"], "TLS": []}


def run(program, port, path, is_tls):
    """The numbers of passed, skipped and failed cases, and the titles of those that failed."""
    command = [
        program,
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-P",
        path,
        "-o",
        "4",
        *(["-t", "-k"] if is_tls else []),
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    counts = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", said)
    if not counts:
        sys.exit(f"h2spec reported no result:\n{said}")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    failures = plain[plain.find("Failures:") :] if "Failures:" in plain else ""
    return [int(count) for count in counts.groups()], re.findall(r"\s×\s+(?:\d+: )?(.+)", failures)


def main(binary):
    program = os.environ.get("H2SPEC") or shutil.which("h2spec")
    if not program:
        sys.exit(
            "h2spec is missing: go install github.com/summerwind/h2spec/cmd/h2spec@latest, or set H2SPEC"
        )
    api, public, tls, admin = (
        servers.free_port(),
        servers.free_port(),
        servers.free_port(),
        servers.free_port(),
    )
    unexpected = []
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = servers.make_certificate(folder)
        config = os.path.join(folder, "gateway.toml")
        with open(config, "w") as file:
            file.write(
                f'server.listen = ["127.0.0.1:{public}"]\nadmin.listen = "127.0.0.1:{admin}"\n'
                f'server.tls = {{ listen = ["127.0.0.1:{tls}"], cert_file = "{certificate}", key_file = "{key}" }}\n'
                f'upstream.url = "http://127.0.0.1:{api}"\nlog.access = "off"\n'
            )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        sandbox = subprocess.Popen([binary, "sandbox", "--listen", f"127.0.0.1:{api}"], **quiet)
        gateway = subprocess.Popen([binary, "run", "-c", config], **quiet)
        try:
            servers.await_answer(f"http://127.0.0.1:{admin}/readyz")
            servers.await_answer(f"http://127.0.0.1:{api}/")
            urllib.request.urlopen(f"http://127.0.0.1:{public}{PATHS['stored']}", timeout=5).close()
            for over, port in (("cleartext", public), ("TLS", tls)):
                for route, path in PATHS.items():
                    (tests, passed, skipped, failed), titles = run(
                        program, port, path, over == "TLS"
                    )
                    print(
                        f"{over}, {route}: {passed} of {tests} passed, {skipped} skipped, {failed} failed {titles}"
                    )
                    if failed > len(KNOWN[over]) or any(
                        title not in KNOWN[over] for title in titles
                    ):
                        unexpected.append(f"{over}, {route}")
        finally:
            for process in (gateway, sandbox):
                process.terminate()
                process.wait()
    if unexpected:
        sys.exit(f"cases failed that are not known: {'; '.join(unexpected)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
