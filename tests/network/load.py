"""Clients of the gateway: requests at a fixed rate, whatever became of those before, and what
became of each.
"""

import asyncio
import collections
import dataclasses
import itertools
import json
import secrets
import time

GATEWAY_PORT = 8080
# A client gives up then. Longer than `upstream.timeout`, whose default is 10 s.
PATIENCE = 12
# Tokens that are known to the gateway once each has been used.
CALLERS = 20

# GETs of a customer's name that is not cached, by a known caller and by one whose token must be
# validated first; forwards without and with redaction.
REPEATABLE = ["miss", "new-caller", "forward", "redacted", "put"]
POSTS = ["post", "redacted-post"]
KINDS = REPEATABLE + POSTS

# The order in which requests are sent.
MIXTURE = "miss forward post miss redacted forward miss new-caller post miss forward".split()
INTERVAL = 1 / 55


@dataclasses.dataclass
class Outcome:
    kind: str
    target: str
    began: float
    took: float
    # "200"; else the status and the error code of the response, or why there was none.
    result: str

    @property
    def failed(self):
        return self.result != "200"


async def exchange(method, target, token):
    """The result of a request on a new connection, as in `Outcome`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", GATEWAY_PORT)
    try:
        body = "" if method == "GET" else "{}"
        writer.write(
            f"{method} {target} HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}".encode()
        )
        response = await reader.read(-1)
    finally:
        writer.close()
    head, separator, body = response.partition(b"\r\n\r\n")
    if not separator:
        return "closed without a response"
    status_line, *lines = head.decode("latin-1").lower().split("\r\n")
    status = status_line.split(" ")[1]
    if f"content-length: {len(body)}" not in lines and "transfer-encoding: chunked" not in lines:
        return f"{status} cut short"
    if status == "200":
        return status
    try:
        return f"{status} {json.loads(body)['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return status


class Clients:
    def __init__(self):
        self.outcomes = []
        self.numbers = itertools.count()
        self.tasks = set()
        self.stopped = False

    def request(self, kind):
        """Method, target and token of a new request. No two have the same target."""
        number = next(self.numbers)
        caller = f"caller-{number % CALLERS}"
        customer = secrets.token_hex(12)
        match kind:
            case "miss":
                return "GET", f"/customer/{customer}/name", caller
            case "new-caller":
                return "GET", f"/customer/{customer}/name", f"new-caller-{number}"
            case "forward":
                return "GET", f"/product/{number}", caller
            case "redacted":
                return "GET", f"/customer/{customer}", caller
            case "post":
                return "POST", f"/ticket/{number}", caller
            case "redacted-post":
                return "POST", f"/customer/{customer}", caller
            case "put":
                return "PUT", f"/ticket/{number}", caller
        raise ValueError(kind)

    async def send(self, kind, began=None):
        method, target, token = self.request(kind)
        began = began or time.monotonic()
        try:
            result = await asyncio.wait_for(exchange(method, target, token), PATIENCE)
        except asyncio.TimeoutError:
            result = f"no response within {PATIENCE} s"
        except OSError as error:
            result = type(error).__name__
        outcome = Outcome(kind, target, began, time.monotonic() - began, result)
        self.outcomes.append(outcome)
        return outcome

    async def send_at_rate(self):
        """Sends until `stop`, at times that do not depend on the responses."""
        start = time.monotonic()
        for count, kind in enumerate(itertools.cycle(MIXTURE)):
            due = start + count * INTERVAL
            await asyncio.sleep(due - time.monotonic())
            if self.stopped:
                return
            task = asyncio.create_task(self.send(kind, due))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def stop(self):
        """Ends `send_at_rate` and waits for what it sent."""
        self.stopped = True
        while self.tasks:
            await asyncio.wait(self.tasks)


@dataclasses.dataclass
class Summary:
    """What clients experienced with one kind of request. Times are in seconds."""

    requests: int
    failed: int
    # Of the failed ones, those that began after the fault.
    failed_later: int
    # When the last one that failed began, after the fault; None if none failed.
    last_failure: float | None
    longest: float
    p50: float
    p90: float
    results: dict


def summarize(outcomes, fault):
    took = sorted(outcome.took for outcome in outcomes)
    failures = [outcome.began - fault for outcome in outcomes if outcome.failed]
    return Summary(
        requests=len(outcomes),
        failed=len(failures),
        failed_later=sum(began > 0 for began in failures),
        last_failure=max(failures, default=None),
        longest=took[-1],
        p50=took[len(took) // 2],
        p90=took[len(took) * 9 // 10],
        results=dict(collections.Counter(outcome.result for outcome in outcomes)),
    )
