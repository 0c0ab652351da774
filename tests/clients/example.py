"""Runs the `fetch` example of README in a page of another origin, once for each status that it
handles: with the sandbox as the API, and with an API that fails."""

import contextlib
import http.server
import json
import pathlib
import re
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
TOKEN = "example-token"
# A caller of the sandbox who may not see the customer.
DENIED = "sandbox-demo-no-login"
EMPLOYEE = {"success": True, "employee": "5f00000000000000000000aa", "accessLevel": "VIEWER"}

# Customers of the failing API: the first response to a request for the name, and the next ones.
FIRST = {
    "000000000000000000000403": (403, {}),
    "000000000000000000000429": (429, {"Retry-After": "7"}),
    "000000000000000000000502": (502, {}),
    "000000000000000000000503": (503, {"Retry-After": "3"}),
    "000000000000000000000504": (None, {}),
}
# Longer than `upstream.timeout` of the gateway under test.
SILENCE = 3

HARNESS = """<!doctype html>
<meta charset="utf-8">
<script>
let events = [];
const logIn = () => { events.push("log in"); return null; };
const showError = (message) => { events.push(`error: ${message}`); return null; };
const wait = async (seconds) => { events.push(`wait: ${seconds}`); };
EXAMPLE
(async () => {
  const outcomes = [];
  for (const { url, token } of CASES) {
    events = [];
    const result = await customerName(url, token, "shown before").catch((error) => `${error}`);
    outcomes.push({ events, result });
  }
  await fetch("/outcome", { method: "POST", body: JSON.stringify(outcomes) });
})();
</script>
"""


def example():
    """The example, from README."""
    blocks = re.findall(r"^```js\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    (block,) = [block for block in blocks if "fetch(" in block]
    return block


def page(cases):
    cases = [{"url": url, "token": token} for url, token in cases]
    return HARNESS.replace("EXAMPLE", example()).replace("CASES", json.dumps(cases))


class FailingApi(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FailingApiHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.failed = set()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class FailingApiHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/auth/validateToken"):
            return self.respond(200, {}, json.dumps(EMPLOYEE))
        customer = self.path.split("/")[2]
        status, fields = FIRST[customer]
        if status is None:
            time.sleep(SILENCE)
        is_pause = status in (429, 503)
        if is_pause and customer in self.server.failed:
            return self.respond(200, {}, json.dumps({"name": customer}))
        self.server.failed.add(customer)
        # An error page of a proxy in front of the API.
        return self.respond(status or 504, fields, "<html>", "text/html")

    def respond(self, status, fields, body, content_type="application/json"):
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def check(that, outcomes):
    """`outcomes`: in the order of `cases`."""
    named, anonymous, denied, forbidden, paused, bad, unavailable, late = outcomes
    that("200: the name", isinstance(named["result"], dict) and not named["events"], named)
    that("401: log in", anonymous["events"] == ["log in"], anonymous)
    for name, outcome in (("403", denied), ("403 of a proxy", forbidden)):
        is_shown = len(outcome["events"]) == 1 and outcome["events"][0].startswith("error: ")
        that(f"{name}: the error is shown", is_shown, outcome)
    for status, outcome, seconds in (("429", paused, "7"), ("503", unavailable, "3")):
        is_repeated = isinstance(outcome["result"], dict)
        that(
            f"{status}: wait for Retry-After, then repeat",
            outcome["events"] == [f"wait: {seconds}"] and is_repeated,
            outcome,
        )
    for status, outcome in (("502", bad), ("504", late)):
        is_kept = outcome["result"] == "shown before" and not outcome["events"]
        that(f"{status}: keep what is shown", is_kept, outcome)


def check_refusals(that, outcomes):
    """`outcomes`: in the order of `cases_of_one_gateway`."""
    named, anonymous, denied = outcomes
    that("demo: 200: the name", isinstance(named["result"], dict) and not named["events"], named)
    that("demo: 401: log in", anonymous["events"] == ["log in"], anonymous)
    is_shown = len(denied["events"]) == 1 and denied["events"][0].startswith("error: ")
    that("demo: 403: the error is shown", is_shown, denied)


def cases_of_one_gateway(gateway, customer, token):
    return [(f"{gateway}/customer/{customer}/name", token) for token in (token, "unknown", DENIED)]


def cases(sandbox_gateway, failing_gateway, customer, token):
    return cases_of_one_gateway(sandbox_gateway, customer, token) + [
        (f"{failing_gateway}/customer/{id}/name", TOKEN) for id in FIRST
    ]
