"""A headless Chromium, controlled over a pipe (`--remote-debugging-pipe`): commands of the Chrome
DevTools Protocol as JSON, each ended by a zero byte. Needs no port and no library."""

import base64
import contextlib
import json
import os
import select
import shutil
import time

# Options of every browser of the tests.
OPTIONS = [
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars",
    # Chromium's sandbox does not work for root; the pages are trusted.
    *(["--no-sandbox"] if os.geteuid() == 0 else []),
]  # fmt: skip


def find():
    """Returns the browser of this machine, or None."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Failed(Exception):
    """A command of the browser failed."""


class Tab:
    """One tab. `errors` has the errors in the page's log and the violations of its policy, `asked`
    each requested URL, `protocols` the URL and the protocol of each response."""

    def __init__(self, reader, writer, patience):
        self._reader, self._writer, self._patience = reader, writer, patience
        self._buffer, self._number, self._session = b"", 0, None
        self.errors, self.asked, self.protocols = [], [], []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.command(f"{domain}.enable")

    def command(self, method, **parameters):
        """Executes one command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._patience
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Failed(f"{method}: {answer['error']}")
                return answer["result"]
            self._happened(answer)

    def _read(self, deadline):
        while b"\0" not in self._buffer:
            if not select.select([self._reader], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failed(f"no answer in {self._patience} s")
            chunk = os.read(self._reader, 1 << 16)
            if not chunk:
                raise Failed("the browser ended")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _happened(self, event):
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Network.responseReceived":
            self.protocols.append((params["response"]["url"], params["response"].get("protocol")))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(
                params["exceptionDetails"].get("exception", {}).get("description") or "an exception"
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif (
            method == "Audits.issueAdded"
            and params["issue"]["code"] == "ContentSecurityPolicyIssue"
        ):
            self.errors.append(json.dumps(params["issue"]["details"]))

    def open(self, url):
        self.command("Page.navigate", url=url)

    def value(self, expression):
        """Returns the value of the expression in the page; awaits promises."""
        params = self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in params:
            raise Failed(
                f"{expression}: {params['exceptionDetails'].get('exception', {}).get('description')}"
            )
        return params["result"].get("value")

    def _is_true(self, expression):
        try:
            return self.value(expression)
        except Failed:
            return False

    def wait(self, expression):
        """Waits until the expression is true in the page. It may fail while the page loads."""
        deadline = time.monotonic() + self._patience
        while not self._is_true(expression):
            if time.monotonic() > deadline:
                shown = self.value("document.body.innerText")
                raise Failed(f"timed out waiting until {expression}; the page shows {shown!r}")
            time.sleep(0.05)

    def press(self, key, modifiers=0):
        """Presses one key: a character, or Tab, Enter, Escape."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        key_of = {
            "key": key,
            "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())),
            "modifiers": modifiers,
        }
        self.command(
            "Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **key_of
        )
        self.command("Input.dispatchKeyEvent", type="keyUp", **key_of)

    def type(self, text):
        for character in text:
            self.press(character)

    def scheme(self, name):
        """Sets the color scheme: `light` or `dark`."""
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}]
        )

    def size(self, width, height, scale=1):
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def picture(self):
        """Returns the whole page as PNG."""
        return base64.b64decode(
            self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        )


@contextlib.contextmanager
def tab(child, browser, folder, patience, options=()):
    """Yields a tab of a browser with a fresh profile. `child` runs a process while the block
    runs."""
    from_us, to_us = os.pipe(), os.pipe()
    # The browser reads from its descriptor 3 and writes to 4.
    command = [
        "sh", "-c", f'exec "$@" 3<&{from_us[0]} 4>&{to_us[1]}', "sh",
        browser, *OPTIONS, *options,
        "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    try:
        with child(command, folder / "browser.log", pass_fds=(from_us[0], to_us[1])):
            os.close(from_us[0])
            os.close(to_us[1])
            yield Tab(to_us[0], from_us[1], patience)
    finally:
        os.close(from_us[1])
        os.close(to_us[0])
