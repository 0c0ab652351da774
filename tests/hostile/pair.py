"""The gateway and the sandbox of the API, on free ports of loopback."""

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

CUSTOMER = "73469a52f4fd7f77ec7b28cc"
NAME = f"/customer/{CUSTOMER}/name"
VIEWER = "sandbox-demo-viewer"
# The sandbox's document, and its redacted form for a VIEWER.
SECRETS = (b"apitestpassword123!", b"bearerToken", b"clientSecret")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_answer(url, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Pair:
    """A running gateway in front of an API, by default the sandbox."""

    def __init__(self, gateway, public, admin, log):
        self.gateway, self.public, self.admin, self.log = gateway, public, admin, log

    def url(self, path):
        return f"http://127.0.0.1:{self.public}{path}"

    def ask(self, path=NAME, token=VIEWER, timeout=30):
        """Sends a request on a new connection; returns status and body."""
        request = urllib.request.Request(
            self.url(path), headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.split("{")[0].split(" ")[0] == name
        )

    def errors(self):
        """Returns the error series that are not zero."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        counted = [
            line.removeprefix("telecomx_gateway_")
            for line in lines
            if re.search(r"error|over_limit", line)
        ]
        return [line for line in counted if not line.startswith("#") and not line.endswith(" 0")]

    def resident(self):
        """Returns the current resident memory in MiB."""
        return self.status("VmRSS")

    def peak(self):
        return self.status("VmHWM")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.gateway.pid}/fd"))

    def forget_peak(self):
        with open(f"/proc/{self.gateway.pid}/clear_refs", "w") as file:
            file.write("5")

    def status(self, field):
        with open(f"/proc/{self.gateway.pid}/status") as file:
            return (
                next(int(line.split()[1]) for line in file if line.startswith(field + ":")) / 1024
            )

    def fault(self):
        """Returns a fault of the gateway or None: it is alive, responds correctly, and its log has
        no secret."""
        if self.gateway.poll() is not None:
            return f"the gateway ended with {self.gateway.returncode}"
        status, body = self.ask()
        if status != 200 or b'"name":"Anders And & Co"' not in body:
            return f"{status}: {body[:200]}"
        if any(secret in body for secret in SECRETS):
            return "a secret in a response to a VIEWER"
        with open(self.log, "rb") as file:
            log = file.read()
        leaked = [
            word
            for word in (b"internal error", b"panicked", b"sandbox-demo", *SECRETS)
            if word in log
        ]
        return f"the log has {leaked}" if leaked else None


@contextlib.contextmanager
def running(binary, config="", upstream=None, server=""):
    """Runs a gateway. `server`: further keys of that table."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        api, public, admin = free_port(), free_port(), free_port()

        def start(*arguments, **options):
            process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, **options)
            ends.callback(process.wait)
            ends.callback(process.terminate)
            return process

        if upstream is None:
            start("sandbox", "--listen", f"127.0.0.1:{api}", stderr=subprocess.DEVNULL)
            upstream = f"http://127.0.0.1:{api}"
        path, log = os.path.join(folder, "gateway.toml"), os.path.join(folder, "log")
        with open(path, "w") as file:
            file.write(
                f'server = {{ listen = ["127.0.0.1:{public}"]{server} }}\nadmin.listen = "127.0.0.1:{admin}"\n'
                f'upstream.url = "{upstream}"\n{config}\n'
            )
        with open(log, "wb") as file:
            gateway = start("run", "-c", path, stderr=file)
        await_answer(f"http://127.0.0.1:{admin}/readyz")
        await_answer(upstream)
        yield Pair(gateway, public, admin, log)
