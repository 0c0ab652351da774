"""A gateway with clients, API and name server in network namespaces, for one scenario."""

import asyncio
import contextlib
import dataclasses
import json
import re
import time

import netns
from api import PORT, Api
from load import KINDS, POSTS, REPEATABLE, Clients, summarize
from name_server import NAME, NameServer

ADMIN_PORT = 9090

CONFIG = f"""
server.listen = ["127.0.0.1:8080"]
admin.listen = "127.0.0.1:{ADMIN_PORT}"
log.access = "errors"
"""

START_TIMEOUT = 15
LAG_PROBE_INTERVAL = 0.01


@dataclasses.dataclass
class Allowed:
    """Requests that may fail."""

    # Those that began at most so many seconds after the fault; None: not even those in flight.
    until: float | None = None
    # Of all requests, the share that may fail later than that.
    share: float = 0

    def problem(self, failures, requests, fault):
        late = [o for o in failures if self.until is None or o.began - fault > self.until]
        if len(late) <= self.share * requests:
            return None
        problem = f"{len(late)} of {requests} requests failed"
        if self.until is not None:
            problem += f" that began more than {self.until:g} s after the fault"
        if self.share:
            problem += f"; at most {self.share:.0%}"
        return problem


@dataclasses.dataclass
class Goal:
    """What clients may notice of a fault."""

    # Longest wait of a repeatable request, in seconds.
    longest: float
    # Repeatable requests, that is all methods except POST.
    repeatable: Allowed = dataclasses.field(default_factory=Allowed)
    posts: Allowed = dataclasses.field(default_factory=lambda: Allowed(until=0))
    # 90th percentile of the waits of each kind of repeatable request, in seconds.
    p90: float = 1.0
    # Kinds of upstream errors that the gateway may count; None: any.
    errors: frozenset | None = None
    # Statuses that clients may receive; None: any.
    statuses: frozenset | None = None
    # Queries that may wait for a reply at a time: A and AAAA of one lookup.
    dns_queries_at_once: int = 2


class Bench:
    def __init__(self, binary, log_path):
        self.binary = binary
        self.log_path = log_path
        self.network = netns.Network()
        self.clients = Clients()
        # The value of `upstream.url`.
        self.url = f"http://{NAME}:{PORT}"
        self.exits = contextlib.AsyncExitStack()
        # Start of the fault; its effect may begin some milliseconds later.
        self.fault_at = None
        # Longest delay of this process, which shows in every wait.
        self.lag = 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.exits.aclose()

    async def serve(self, addresses=3, ttl=30):
        """Starts API and name server."""
        self.api = Api(self.network, netns.API)
        await self.api.listen()
        self.addresses = [self.api.addresses[ip] for ip in netns.API[:addresses]]
        with self.network.in_api():
            ips = netns.API[:addresses]
            self.dns = await NameServer.start(netns.NAME_SERVER, ips, ttl)

    async def start(self, load=True):
        """Starts the gateway, and clients unless `load` is false."""
        # A string and a list of strings are written in TOML as in JSON.
        config = f"{CONFIG}upstream.url = {json.dumps(self.url)}\n"
        gateway = netns.running_gateway(self.binary, config, self.log_path)
        self.gateway = self.exits.enter_context(gateway)
        deadline = time.monotonic() + START_TIMEOUT
        while "200 OK" not in (await self.admin("/livez")).partition("\r\n")[0]:
            if self.gateway.poll() is not None or time.monotonic() > deadline:
                with open(self.log_path) as log:
                    raise RuntimeError(f"the gateway did not start: {log.read()[-2000:]}")
            await asyncio.sleep(0.02)
        self.spawn(self.watch_lag())
        if load:
            self.spawn(self.clients.send_at_rate())

    async def start_healthy(self, addresses=3, ttl=30):
        """Starts all, and returns after two seconds without a fault."""
        await self.serve(addresses, ttl)
        await self.start()
        await asyncio.sleep(2)
        if any(outcome.failed for outcome in self.clients.outcomes):
            raise RuntimeError("requests failed before the fault began")

    def spawn(self, coroutine):
        task = asyncio.create_task(coroutine)
        self.exits.callback(task.cancel)

    async def watch_lag(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PROBE_INTERVAL)
            self.lag = max(self.lag, time.monotonic() - before - LAG_PROBE_INTERVAL)

    def begin_fault(self):
        self.fault_at = time.monotonic()

    async def admin(self, path):
        """The response of the admin listener, or an empty string."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", ADMIN_PORT)
        except OSError:
            return ""
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        response = (await reader.read(-1)).decode()
        writer.close()
        return response

    async def upstream_errors(self):
        """Failed exchanges of the gateway's own, by kind."""
        pattern = r'(?m)^telecomx_gateway_upstream_errors_total\{[^}]*?kind="(\w+)".*\} (\d+)$'
        found = re.findall(pattern, await self.admin("/metrics"))
        return {kind: int(count) for kind, count in found if int(count)}

    async def report(self, goal):
        """Ends the load; what clients experienced, and which of it misses the goal."""
        await self.clients.stop()
        outcomes = self.clients.outcomes
        kinds = {}
        for kind in KINDS:
            if of_kind := [outcome for outcome in outcomes if outcome.kind == kind]:
                kinds[kind] = summarize(of_kind, self.fault_at)
        errors = await self.upstream_errors()
        problems = [
            *self.failures_not_allowed(goal),
            *self.waits_too_long(goal, [kinds[kind] for kind in REPEATABLE if kind in kinds]),
            *self.other_problems(goal, errors),
        ]
        return {
            "kinds": {kind: dataclasses.asdict(summary) for kind, summary in kinds.items()},
            "posts_repeated": sum(count > 1 for count in self.api.posts.values()),
            "requests_by_address": {a.ip: a.requests for a in self.api.addresses.values()},
            "dns_queries": self.dns.queries,
            "dns_queries_at_once": self.dns.most_waiting,
            "upstream_errors": errors,
            "lag": self.lag,
            "problems": problems,
        }

    def failures_not_allowed(self, goal):
        for is_repeatable, allowed in ((True, goal.repeatable), (False, goal.posts)):
            outcomes = [o for o in self.clients.outcomes if (o.kind in REPEATABLE) == is_repeatable]
            failures = [outcome for outcome in outcomes if outcome.failed]
            if problem := allowed.problem(failures, len(outcomes), self.fault_at):
                yield f"{'repeatable' if is_repeatable else 'POST'}: {problem}"

    def waits_too_long(self, goal, repeatable):
        longest = max((summary.longest for summary in repeatable), default=0)
        if longest > goal.longest + self.lag:
            yield f"longest wait {longest:.1f} s; at most {goal.longest:g} s"
        p90 = max((summary.p90 for summary in repeatable), default=0)
        if p90 > goal.p90 + self.lag:
            yield f"p90 of the waits {p90:.1f} s; at most {goal.p90:g} s"

    def other_problems(self, goal, errors):
        posts = self.api.posts
        if repeated := sum(count > 1 for count in posts.values()):
            yield f"{repeated} POSTs reached the API more than once"
        sent = [o for o in self.clients.outcomes if o.kind in POSTS and not o.failed]
        if lost := sum(outcome.target not in posts for outcome in sent):
            yield f"{lost} POSTs got 200 and did not reach the API"
        if unexpected := set(errors) - (set(errors) if goal.errors is None else goal.errors):
            yield f"upstream errors of kind {', '.join(sorted(unexpected))}"
        statuses = {outcome.result.partition(" ")[0] for outcome in self.clients.outcomes}
        if goal.statuses is not None and (unexpected := statuses - goal.statuses):
            yield f"responses: {', '.join(sorted(unexpected))}"
        if self.dns.most_waiting > goal.dns_queries_at_once:
            allowed = goal.dns_queries_at_once
            yield f"{self.dns.most_waiting} DNS queries at once; at most {allowed}"
        if self.gateway.poll() is not None:
            yield f"the gateway ended with {self.gateway.returncode}"


async def run(scenario, goal, binary, log_path):
    async with Bench(binary, log_path) as bench:
        await scenario(bench)
        return await bench.report(goal)
