"""The two halves of the demo, the gateway and the sandbox of the API, on free ports of loopback."""

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
# Of the sandbox's document, and what it looks like to a VIEWER.
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
    """A running gateway in front of an API, which is the sandbox unless another address is given."""

    def __init__(self, gateway, public, admin, log):
        self.gateway, self.public, self.admin, self.log = gateway, public, admin, log

    def url(self, path):
        return f"http://127.0.0.1:{self.public}{path}"

    def ask(self, path=NAME, token=VIEWER, timeout=30):
        """Status and body of an answer on a fresh connection."""
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
        """The series of errors that are not zero."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        counted = [
            line.removeprefix("telecomx_gateway_")
            for line in lines
            if re.search(r"error|over_limit", line)
        ]
        return [line for line in counted if not line.startswith("#") and not line.endswith(" 0")]

    def resident(self):
        """Resident memory now, in MiB."""
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
        """What is wrong with the gateway, if anything is: it lives, answers rightly, and its log tells nothing."""
        if self.gateway.poll() is not None:
            return f"the gateway ended with {self.gateway.returncode}"
        status, body = self.ask()
        if status != 200 or b'"name":"Anders And & Co"' not in body:
            return f"{status}: {body[:200]}"
        if any(secret in body for secret in SECRETS):
            return "a secret in an answer to a VIEWER"
        with open(self.log, "rb") as file:
            log = file.read()
        told = [
            word
            for word in (b"internal error", b"panicked", b"sandbox-demo", *SECRETS)
            if word in log
        ]
        return f"the log tells {told}" if told else None


@contextlib.contextmanager
def running(binary, config="", upstream=None, server=""):
    """`server`: more keys of that table, beside the listener."""
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
