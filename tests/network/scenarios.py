"""The scenarios: a fault each, and what clients may notice of it.

The goals are those of an ideal client, where this is possible: a request that may be repeated does
not fail, and a POST fails only if the API may have received it. The time that a fault takes to be
noticed bounds the waits: 250 ms for an address that does not accept (RFC 8305 section 5), half of
`upstream.timeout` for one that accepts and does not respond.
"""

import asyncio
import dataclasses
import time
import typing

import netns
from api import PORT
from bench import Allowed, Bench, Goal
from load import CALLERS

# Waits of requests to an address that does not accept.
CONNECT = 1.4
# Waits of requests that are sent again, since no response came.
RESPONSE = 6.0


@dataclasses.dataclass
class Scenario:
    name: str
    title: str
    goal: Goal
    # Upper estimate, so that the longest begin first.
    seconds: int
    function: typing.Callable


SCENARIOS = {}


def scenario(title, goal, seconds=15):
    def add(function):
        name = function.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, title, goal, seconds, function)
        return function

    return add


@scenario("one of three addresses is silent from the start", Goal(longest=CONNECT))
async def silent_at_start(bench: Bench):
    await bench.serve()
    await bench.network.silence(bench.addresses[0].ip)
    bench.begin_fault()
    await bench.start()
    await asyncio.sleep(10)


@scenario("one of three URLs is silent from the start", Goal(longest=CONNECT))
async def url_silent_at_start(bench: Bench):
    await bench.serve()
    bench.url = [f"http://{address.ip}:{PORT}" for address in bench.addresses]
    await bench.network.silence(bench.addresses[0].ip)
    bench.begin_fault()
    await bench.start()
    await asyncio.sleep(6)


@scenario(
    "one of three addresses becomes silent, open connections too",
    Goal(longest=RESPONSE, posts=Allowed(until=RESPONSE)),
    seconds=22,
)
async def silent(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    await bench.network.silence(bench.api.busiest().ip)
    await asyncio.sleep(10)


@scenario(
    "one of three addresses refuses connections and resets open ones",
    # Until the resets are noticed.
    Goal(longest=CONNECT, posts=Allowed(until=0.3)),
)
async def refusing(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    await bench.api.busiest().refuse()
    await asyncio.sleep(8)


@scenario(
    "one of three addresses resets connections at each request",
    # A POST may be the request by which the address is tried again.
    Goal(longest=CONNECT, posts=Allowed(until=1, share=0.03)),
)
async def resetting(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    bench.api.busiest().mode = "reset"
    await asyncio.sleep(8)


@scenario(
    "one of three addresses accepts requests and does not respond",
    Goal(longest=RESPONSE, posts=Allowed(until=RESPONSE, share=0.03)),
    seconds=24,
)
async def mute(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    bench.api.busiest().mode = "mute"
    await asyncio.sleep(12)


@scenario(
    "one of three addresses responds after 1 s",
    # The wait of a new caller is two exchanges.
    Goal(longest=2.5, posts=Allowed(), p90=0.5),
)
async def slow(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    bench.api.busiest().delay = 1
    await asyncio.sleep(8)


@scenario(
    "one of three addresses responds with 503",
    # A 503 may be what all of the API responds, so the first ones reach clients, and one at each
    # further try.
    Goal(
        longest=CONNECT,
        repeatable=Allowed(until=1, share=0.03),
        posts=Allowed(until=1, share=0.03),
    ),
)
async def unavailable(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    bench.api.busiest().mode = "unavailable"
    await asyncio.sleep(8)


@scenario(
    "the name moves to another address; the old one refuses",
    Goal(longest=2, repeatable=Allowed(until=1), posts=Allowed(until=1)),
    seconds=40,
)
async def moved_refusing(bench: Bench):
    await bench.start_healthy(addresses=1)
    bench.begin_fault()
    bench.dns.addresses = [netns.API[3]]
    await bench.addresses[0].refuse()
    await asyncio.sleep(33)


@scenario(
    "the name moves to another address; the old one is silent",
    Goal(longest=RESPONSE, repeatable=Allowed(until=3), posts=Allowed(until=RESPONSE), p90=3),
    seconds=50,
)
async def moved_silent(bench: Bench):
    await bench.start_healthy(addresses=1)
    bench.begin_fault()
    bench.dns.addresses = [netns.API[3]]
    await bench.network.silence(bench.addresses[0].ip)
    await asyncio.sleep(33)


@scenario(
    "the only address is silent from the start: errors are those of a connection",
    Goal(
        longest=2.5,
        p90=2.5,
        repeatable=Allowed(share=1),
        posts=Allowed(share=1),
        errors=frozenset({"connect", "circuit_open"}),
        statuses=frozenset({"502", "503"}),
    ),
    seconds=8,
)
async def connect_timeout(bench: Bench):
    await bench.serve(addresses=1)
    await bench.network.silence(bench.addresses[0].ip)
    bench.begin_fault()
    await bench.start()
    await asyncio.sleep(5)


# The gateway may use addresses for 30 s before it looks them up again, whatever their TTL.


@scenario(
    "the name server takes 1.5 s for each reply; TTL 2 s",
    Goal(longest=CONNECT, posts=Allowed()),
    seconds=40,
)
async def dns_slow(bench: Bench):
    await bench.start_healthy(ttl=2)
    bench.begin_fault()
    bench.dns.delay = 1.5
    await asyncio.sleep(33)


@scenario(
    "the name server stops replying; TTL 2 s",
    Goal(longest=CONNECT, posts=Allowed()),
    seconds=40,
)
async def dns_silent(bench: Bench):
    await bench.start_healthy(ttl=2)
    bench.begin_fault()
    bench.dns.mode = "silent"
    await asyncio.sleep(33)


@scenario(
    "the name server replies without an address, then with SERVFAIL, then NXDOMAIN; TTL 2 s",
    Goal(longest=CONNECT, posts=Allowed()),
    seconds=40,
)
async def dns_empty(bench: Bench):
    await bench.start_healthy(ttl=2)
    bench.begin_fault()
    for mode, seconds in (("empty", 13), ("servfail", 10), ("nxdomain", 10)):
        bench.dns.mode = mode
        await asyncio.sleep(seconds)


@scenario(
    "the name server begins to reply 5 s after the start of the gateway",
    Goal(longest=3, repeatable=Allowed(until=8), posts=Allowed(until=8), p90=3),
    seconds=25,
)
async def dns_silent_at_start(bench: Bench):
    await bench.serve()
    bench.dns.mode = "silent"
    bench.begin_fault()
    await bench.start()
    await asyncio.sleep(bench.fault_at + 5 - time.monotonic())
    bench.dns.mode = "normal"
    await asyncio.sleep(10)


@scenario(
    "two addresses in alternating order, one of which refuses; TTL 2 s",
    Goal(longest=CONNECT, posts=Allowed(until=0.3)),
    seconds=40,
)
async def dns_rotating(bench: Bench):
    await bench.serve(addresses=2, ttl=2)
    bench.dns.rotates = True
    await bench.start()
    await asyncio.sleep(2)
    bench.begin_fault()
    await bench.api.busiest().refuse()
    await asyncio.sleep(35)


@scenario("an IPv6 address without a route precedes an IPv4 address", Goal(longest=CONNECT))
async def ipv6_without_route(bench: Bench):
    await bench.serve(addresses=1)
    bench.dns.addresses.append(netns.API_IPV6)
    bench.begin_fault()
    await bench.start()
    await asyncio.sleep(8)


@scenario("an IPv6 address with a silent route precedes an IPv4 address", Goal(longest=CONNECT))
async def ipv6_silent(bench: Bench):
    await bench.serve(addresses=1)
    bench.network.add_silent_ipv6()
    bench.dns.addresses.append(netns.API_IPV6)
    bench.begin_fault()
    await bench.start()
    await asyncio.sleep(8)


@scenario(
    "all addresses refuse for 5 s",
    Goal(longest=3, repeatable=Allowed(until=8), posts=Allowed(until=8)),
    seconds=25,
)
async def outage_refusing(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    for address in bench.addresses:
        await address.refuse()
    await asyncio.sleep(5)
    for address in bench.addresses:
        await address.listen()
    await asyncio.sleep(12)


@scenario(
    "all addresses are silent for 5 s",
    # The kernel sends again at 1, 3 and 7 s, so some of the requests in flight are answered then.
    Goal(longest=12, repeatable=Allowed(until=9), posts=Allowed(until=9), p90=12),
    seconds=35,
)
async def outage_silent(bench: Bench):
    await bench.start_healthy()
    bench.begin_fault()
    for address in bench.addresses:
        await bench.network.silence(address.ip)
    await asyncio.sleep(5)
    for address in bench.addresses:
        await bench.network.end_silence(address.ip)
    await asyncio.sleep(12)


@scenario(
    "64 kept connections are reset at their next use; then requests one after another",
    Goal(longest=CONNECT),
)
async def kept_connections_dead(bench: Bench):
    await bench.serve(addresses=1)
    await bench.start(load=False)
    address = bench.addresses[0]
    clients = bench.clients
    measured = []
    bench.begin_fault()
    for kind in ("miss", "forward", "redacted", "put"):
        address.delay = 0.3
        healthy = await asyncio.gather(*[clients.send(kind) for _ in range(64)])
        if any(outcome.failed for outcome in healthy):
            raise RuntimeError("requests failed before the fault began")
        clients.outcomes.clear()
        address.delay = 0
        address.doom_connections()
        measured += [await clients.send(kind) for _ in range(100)]
    clients.outcomes = measured


@scenario(
    "1,000 POSTs while one connection in three is reset or closed, at any moment",
    # All that fail were in flight when their connection ended.
    Goal(longest=CONNECT, posts=Allowed(share=0.25)),
)
async def posts_once(bench: Bench):
    await bench.serve(addresses=1)
    await bench.start(load=False)
    # Makes all callers known, so that only POSTs meet the fault.
    await asyncio.gather(*[bench.clients.send("redacted") for _ in range(CALLERS)])
    bench.clients.outcomes.clear()
    bench.begin_fault()
    bench.addresses[0].mode = "flaky"

    async def send(kind):
        for _ in range(50):
            await bench.clients.send(kind)

    await asyncio.gather(*[send(kind) for kind in ("post", "redacted-post") for _ in range(10)])
