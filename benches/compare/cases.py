"""The cases: requests, connections, rates, and everything else that is the same for all servers."""

import bisect
import itertools
import os
import random
from dataclasses import dataclass, field

KEYS = 2_000
# The origin has one document for all ids with this prefix, and so one entity tag.
ALIKE = "a11ce"
# The `Host` of every request, at any port.
HOST = "gateway.example"
# The load generators replace it by a new id in each request.
FRESH = "{}"

# Header sets of tests/headers with which hits are measured.
HEADER_SETS = [
    "curl",
    "chromium-cross-origin",
    "behind-ingress-nginx",
    "behind-aws-alb",
    "behind-envoy-istio",
]
# Of a hundred requests of production.
FORWARDS, HITS_OF_MIX = 80, 18

CACHES = ["gateway", "haproxy", "nginx", "varnish"]
HITS = ["floor", *CACHES, "pingora"]
PROXIES = [*CACHES, "pingora"]


def token(number):
    return f"b{number:031d}"


def name(customer):
    return f"/customer/{customer}/name"


def customer(number):
    return f"c{number:023x}"


def keys(count=KEYS):
    """As many callers as customers; each requests one."""
    return [(token(i), name(customer(i))) for i in range(count)]


def alike(count=KEYS):
    return [(token(i), name(f"{ALIKE}{i:019x}")) for i in range(count)]


def grid(callers, customers):
    """Each caller requests its own customers, in random order."""
    lines = [
        (token(i), name(customer(i * customers + j)))
        for i in range(callers)
        for j in range(customers)
    ]
    random.Random(1).shuffle(lines)
    return lines


def zipf_mix(count=KEYS, lines=50_000, fresh=0.1, exponent=1.0):
    """One in ten is new; the others are as popular as 1 / rank."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(count)))
    draw, known = random.Random(2), keys(count)
    return [
        (
            (token(0), name(FRESH))
            if draw.random() < fresh
            else known[bisect.bisect(weights, draw.random() * weights[-1])]
        )
        for _ in range(lines)
    ]


def header_set(name):
    """Returns the fields of a set without those that the load generators set."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/headers")
    with open(os.path.join(folder, f"{name}.txt")) as file:
        fields = [line.rstrip("\n") for line in file if not line.startswith("#")]
    return [field for field in fields if field.split(":")[0].lower() != "host"]


def hits_of_one_caller(count=KEYS):
    return [(token(0), name(customer(i))) for i in range(count)]


def production_mix(lines=5_000):
    """Forwards, hits and misses in the shares of production, in the same order each time."""
    draw, known = random.Random(3), hits_of_one_caller()
    shares = [(token(0), "/bytes/1024")] * FORWARDS + [None] * HITS_OF_MIX
    shares += [(token(0), name(FRESH))] * (100 - len(shares))
    return [draw.choice(shares) or draw.choice(known) for _ in range(lines)]


@dataclass
class Case:
    key: str
    title: str
    peers: list
    # Requests a second of the open loop.
    rate: int
    lines: object = keys
    # Requests that are sent once before, if they are not the same.
    warm: object = None
    connections: int = 32
    via: str = "http"
    # The servers: number of workers, and whether they log each request.
    group: str = "one"
    # Whether every request must be a hit.
    hits: bool = True
    conditional: bool = False
    # A header set that every request has.
    headers: str = ""
    notes: list = field(default_factory=list)


def cases(callers, customers):
    return [
        Case("hit", f"hit, {KEYS:,} keys, 32 connections", HITS, 4000),
        Case("hit-1000", f"hit, {KEYS:,} keys, 1,000 connections", HITS, 4000, connections=1000),
        Case(
            "304",
            "304 for a matching entity tag",
            HITS,
            4000,
            lines=alike,
            via="held",
            conditional=True,
        ),
        Case(
            "tls",
            "hit over TLS, kept connections",
            ["floor", "gateway", "haproxy", "nginx"],
            4000,
            via="tls",
            notes=["Varnish does not terminate TLS."],
        ),
        Case(
            "h2",
            "hit over h2 (cleartext), 32 connections of 8 streams",
            CACHES,
            4000,
            lines=hits_of_one_caller,
            via="h2",
            notes=["One caller: h2load sends the same fields with every request."],
        ),
        Case(
            "h2-forward",
            "forwarded over h2 (cleartext), 1 KB, 32 connections of 8 streams",
            CACHES,
            2000,
            lines=lambda: [(token(0), "/bytes/1024")],
            via="h2",
            hits=False,
        ),
        Case(
            "production",
            f"{FORWARDS} % forwards, {HITS_OF_MIX} % hits, {100 - FORWARDS - HITS_OF_MIX} % misses over HTTP/2 with TLS, "
            "200 connections",
            ["gateway", "haproxy", "nginx"],
            2000,
            lines=production_mix,
            warm=hits_of_one_caller,
            connections=200,
            via="h2s",
            hits=False,
            notes=["Varnish does not terminate TLS. Each connection has one request under way."],
        ),
        *(
            Case(
                f"hit-{headers}",
                f"hit with the header set {headers}",
                ["floor", "gateway", "haproxy"],
                4000,
                headers=headers,
            )
            for headers in HEADER_SETS
        ),
        Case(
            "miss",
            "miss, its caller known",
            PROXIES,
            2000,
            lines=lambda: [(token(0), name(FRESH))],
            warm=keys,
            hits=False,
            notes=["pingora forwards the same document and stores nothing."],
        ),
        Case(
            "forward-1k",
            "forwarded, 1 KB",
            PROXIES,
            2000,
            lines=lambda: [(token(0), "/bytes/1024")],
            hits=False,
        ),
        Case(
            "forward-1m",
            "forwarded, 1 MB",
            PROXIES,
            50,
            lines=lambda: [(token(0), "/bytes/1048576")],
            hits=False,
        ),
        Case(
            "mix",
            "nine hits of Zipf's popularity to one miss",
            CACHES,
            2000,
            lines=zipf_mix,
            warm=keys,
            hits=False,
        ),
        Case(
            "many",
            f"hit, {callers:,} callers of {customers} customers each",
            # HAProxy's cache takes 2,047 MB at most, which does not hold as many.
            [name for name in HITS if name != "haproxy" or callers * customers <= 500_000],
            4000,
            lines=lambda: grid(callers, customers),
            notes=(
                ["HAProxy is left out: its cache holds 2,047 MB at most."]
                if callers * customers > 500_000
                else []
            ),
        ),
        Case("logs", "hit, a line of log for each request", CACHES, 4000, group="logs"),
        Case(
            "two",
            "hit, two workers",
            HITS,
            4000,
            group="two",
            notes=["The load generator shares both cores with the server."],
        ),
        Case(
            "two-one",
            "hit, two workers, one response for all",
            HITS,
            4000,
            lines=lambda: keys(1),
            group="two",
            notes=[
                "With every request the workers write to the memory that they share of a response."
            ],
        ),
    ]
