#!/usr/bin/env python3
"""Writes docs/PERFORMANCE.md from the results of run.py, parts.py, tail.py, connections.py,
handshakes.py and the stored instruction counts.

    report.py COMPARE PARTS TAIL BUSY CONNECTIONS HANDSHAKES INSTRUCTIONS OUT

BUSY: the result of tail.py at half of saturation.

REMARK in the environment: a remark on this run.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tomllib

from cases import HEADER_SETS

ORDER = ["floor", "gateway", "haproxy", "nginx", "varnish", "pingora"]


def said(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip()
    except OSError:
        return ""


def version(*command):
    found = re.search(r"\d+\.\d+(\.\d+)?", said(*command))
    return found[0] if found else "unknown"


def machine():
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
            "unknown",
        )
    with open("/proc/meminfo") as file:
        memory = int(next(line.split()[1] for line in file if line.startswith("MemTotal"))) / 2**20
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, {said('rustc', '--version')}; "
        f"HAProxy {version('haproxy', '-v')}, nginx {version('nginx', '-v')}, Varnish {version('varnishd', '-V')}, "
        f"wrk {version('wrk', '-v')}, h2load {version('h2load', '--version')}"
    )


def case_table(case):
    servers = case["servers"]
    ours, floor = servers.get("gateway"), servers.get("floor")
    lines = [
        "| | µs CPU | of rounds | × gateway | × floor | req/s | core busy | p50 µs | p99 µs | p99.9 µs | MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in ORDER if name in servers):
        of = servers[name]
        ratio = lambda base: f"{of['us'] / base['us']:.2f}" if base else "–"  # noqa: E731
        lines.append(
            f"| {name} | {of['us']:.1f} | {of['least']:.1f}–{of['most']:.1f} | {ratio(ours)} | {ratio(floor)} | {of['rps']:,.0f} "
            f"| {of['busy']:.0%} | {of['p50']:,.0f} | {of['p99']:,.0f} | {of['p999']:,.0f} | {of['rss'] / 1e6:,.0f} |"
        )
    return lines


class Targets:
    def __init__(self, cases, parts, tail, busy, connections, counts):
        self.cases, self.parts, self.tail, self.busy, self.rows = cases, parts, tail, busy, []
        self.connections, self.counts = connections, counts

    def us(self, case, server):
        return self.cases.get(case, {}).get("servers", {}).get(server, {}).get("us")

    def most(self, what, value, bound, unit="×", note=""):
        if value is None:
            self.rows.append((what, "not measured", "–", note))
        else:
            self.rows.append(
                (what, f"{value:.2f} {unit}", "met" if value <= bound else "**not met**", note)
            )

    def rps(self, case, server):
        return self.cases.get(case, {}).get("servers", {}).get(server, {}).get("rps")

    def least(self, what, value, bound, note=""):
        if value is None:
            self.rows.append((what, "not measured", "–", note))
        else:
            self.rows.append(
                (what, f"{value:.2f} ×", "met" if value >= bound else "**not met**", note)
            )

    def ratio(self, one, other):
        return one / other if one and other else None

    def pipeline(self):
        """Adds the targets of header sets, HTTP/2, the mix of production, instructions and memory
        of connections."""
        by_set = {name: self.us(f"hit-{name}", "gateway") for name in HEADER_SETS}
        for name, cost in by_set.items():
            floor = self.ratio(cost, self.us(f"hit-{name}", "floor"))
            self.most(
                f"a hit with the header set {name} costs at most 1.15 × the floor", floor, 1.15
            )
            other = self.ratio(cost, self.us(f"hit-{name}", "haproxy"))
            self.most(f"a hit with the header set {name} costs less than HAProxy's", other, 1.0)
        measured = [cost for cost in by_set.values() if cost]
        spread = max(measured) / min(measured) if len(measured) == len(by_set) else None
        self.most("hits with different header sets differ by at most 1.3 ×", spread, 1.3)
        for case, bound in (("forward-1k", 0.9), ("forward-1m", 1.0)):
            ratio = self.ratio(self.us(case, "gateway"), self.us(case, "nginx"))
            self.most(
                f"`{case}` costs at most {bound} × nginx's, which sets the same fields",
                ratio,
                bound,
            )
        ratio = self.ratio(self.us("forward-1k", "gateway"), self.us("forward-1k", "pingora"))
        self.most("`forward-1k` costs at most 0.5 × plain pingora's", ratio, 0.5)
        ratio = self.ratio(self.us("h2", "gateway"), self.us("h2", "haproxy"))
        self.most("a hit over HTTP/2 costs at most 0.8 × HAProxy's", ratio, 0.8)
        ratio = self.ratio(self.us("h2-forward", "gateway"), self.us("h2-forward", "nginx"))
        self.most("a forward over HTTP/2 costs at most nginx's", ratio, 1.0)
        ratio = self.ratio(self.us("miss", "gateway"), self.us("miss", "haproxy"))
        self.most("a miss costs at most 1.15 × HAProxy's forward of the same", ratio, 1.15)
        ratio = self.ratio(self.us("production", "gateway"), self.us("production", "nginx"))
        self.most("the mix of production costs at most nginx's", ratio, 1.0)
        for key, what, bound in (
            ("request_forward", "a forward of 1 KB", 16_000),
            ("request_fetch", "a miss", 80_000),
            ("request_h2_hit", "a hit over HTTP/2", 40_000),
        ):
            count = self.counts.get(key)
            self.most(
                f"{what} takes at most {bound:,} user instructions",
                count and count / 1000,
                bound / 1000,
                "thousand",
            )
        of = self.connections.get("gateway", {})
        for key, what, bound in (
            ("idle_http1", "an idle connection of HTTP/1", 4),
            ("idle_http2", "an idle connection of HTTP/2", 16),
            ("under_way", "a request under way", 16),
        ):
            self.most(
                f"{what} takes at most {bound} KiB",
                of[key] / 1024 if key in of else None,
                bound,
                "KiB",
            )

    def all(self):
        self.pipeline()
        hit = self.us("hit", "gateway")
        plain = self.us("forward-1k", "pingora")
        self.most(
            "a hit costs at most 1.2 × the floor",
            self.ratio(hit, self.us("hit", "floor")),
            1.2,
            note="the fast path ([ADR 16](adr/0016-serve-the-intercepted-route-on-a-fast-path.md)) and the L1 cache of each thread "
            "([ADR 23](adr/0023-keep-an-l1-cache-per-thread.md))",
        )
        self.most(
            "a hit costs less than HAProxy's", self.ratio(hit, self.us("hit", "haproxy")), 1.0
        )
        self.most("a hit costs less than nginx's", self.ratio(hit, self.us("hit", "nginx")), 1.0)
        self.most(
            "a hit costs less than Varnish's", self.ratio(hit, self.us("hit", "varnish")), 1.0
        )
        self.most(
            "a forward of 1 KB costs at most 1.1 × plain pingora's",
            self.ratio(self.us("forward-1k", "gateway"), plain),
            1.1,
            note="mimalloc ([ADR 24](adr/0024-use-mimalloc-and-one-allocation-per-response.md)), peers made once for an address and paths read in one pass brought "
            "it from 1.56 ×; the rest is spread over fields for the API and the client, the check of the head, deadlines",
        )
        self.most(
            "a miss costs at most what plain pingora's forward does",
            self.ratio(self.us("miss", "gateway"), plain),
            1.0,
            note="misses use the fast path since they cost 2.2 × ([ADR 16](adr/0016-serve-the-intercepted-route-on-a-fast-path.md)). A forward passes "
            "bytes; a miss takes them apart (44,000 instructions of redaction, under Instructions), digests and stores them, runs in a "
            "task that outlives its client, so that one fetch serves all waiting requests, and in this case touches 2 KB of memory for the first "
            "time: a tenth of it is the kernel, zeroing pages",
        )
        memory, alike, bounded, lookup = (
            self.parts[key] for key in ("memory", "alike", "bounded", "lookup")
        )
        bare = self.parts["bare"]["overhead"]
        shared = (alike["resident"] - alike["bodies"]) / self.parts["entries"]
        note = (
            f"{shared:.0f} B with ten callers for each customer that receive the same bytes. moka alone takes {bare:.0f} B; the rest is the entry (96 B), the head "
            "of the response and what the allocator rounds up (84 B together), the table of equal responses"
        )
        self.most(
            "an entry takes at most 500 B in addition to its body",
            memory["overhead"],
            500,
            "B",
            note,
        )
        # Nine of ten bodies are those of another caller too: without sharing, all of them take
        # memory.
        own = alike["resident"] / memory["resident"]
        what = "equal bodies of different callers are stored once (resident, ten callers alike to none)"
        self.most(what, own, 0.6, note="[ADR 21](adr/0021-store-equal-responses-once.md)")
        self.most(
            "`max_bytes` holds against resident memory within 15 %",
            abs(bounded["ratio"] - 1) * 100,
            15,
            "% off",
        )
        sizes = sorted(lookup, key=int)
        self.most(
            f"lookups cost the same from {int(sizes[0]):,} to {int(sizes[-1]):,} entries, within 25 %",
            lookup[sizes[-1]] / lookup[sizes[0]],
            1.25,
            note="random lookups over all keys: the misses of the processor's caches grow",
        )
        many, few = self.us("many", "gateway"), self.us("hit", "gateway")
        self.most(
            "a hit costs the same with 1,000,000 entries as with 2,000, within 25 %",
            self.ratio(many, few),
            1.25,
            note=f"the floor, with one lookup: {self.ratio(self.us('many', 'floor'), self.us('hit', 'floor')) or 0:.2f} ×. "
            "The keys are requested in random order: no cache of the processor holds a million of them",
        )
        one, two = self.rps("hit", "gateway"), self.rps("two", "gateway")
        cost = self.ratio(self.us("two", "gateway"), few)
        floor = self.ratio(self.rps("two", "floor"), self.rps("hit", "floor"))
        self.least(
            "two workers serve 1.8 × the requests of one",
            self.ratio(two, one),
            1.8,
            note="the machine has two cores: with one worker, load and origin have the other core, with two they share both, so the load is the "
            f"limit (the floor: {floor or 0:.2f} ×). A hit costs {cost or 0:.2f} × the CPU time with two workers, "
            "where 1.11 × would allow 1.8 × the requests",
        )
        for tail, note in (
            (self.tail, ""),
            (
                self.busy,
                ". Half of the core is busy with hits: 2,000 fetches at once need the other half, and the load "
                "generator is at its limit (the floor)",
            ),
        ):
            disturbed = {
                title: of["p999"] / 1000
                for title, of in tail["cases"].items()
                if title.startswith(("the gateway", "…"))
            }
            worst = max(disturbed, key=disturbed.get)
            floors = tail["cases"]["the floor"]["p999"] / 1000
            self.most(
                f"at {tail['rate']:,} a second p99.9 of hits under 2 ms while misses, refreshes, evictions, changes, reloads and a purge happen",
                disturbed[worst],
                2,
                "ms",
                f"the worst: {worst.removeprefix('… and ').removeprefix('… ')}. Undisturbed {disturbed['the gateway']:.2f} ms, the floor "
                f"{floors:.2f} ms; see Tail{note}",
            )
        return self.rows


def handshake_section(handshakes):
    """CPU time per connection, by key, version and kind of handshake."""
    names = list(next(iter(next(iter(handshakes.values())).values())))
    return [
        "## Handshakes",
        "",
        "CPU time in µs for a connection with one hit, from a client that offers X25519 "
        "(benches/compare/handshakes.py); in brackets the share of connections that were resumed:",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {key}, {kind} | "
            + " | ".join(f"{cost['us']:,.0f} ({cost['resumed']:.0%})" for cost in costs.values())
            + " |"
            for key, kinds in handshakes.items()
            for kind, costs in kinds.items()
        ),
        "",
    ]


def main(compare, parts, tail, busy, connections, handshakes, instructions, out):
    with open(compare) as file:
        cases = json.load(file)["cases"]
    with open(parts) as file:
        parts = json.load(file)
    with open(tail) as file:
        tail = json.load(file)
    with open(busy) as file:
        busy = json.load(file)
    with open(connections) as file:
        connections = json.load(file)
    with open(handshakes) as file:
        handshakes = json.load(file)
    with open(instructions, "rb") as file:
        counts = tomllib.load(file)
    targets = Targets(cases, parts, tail, busy, connections, counts)
    any_case = next(iter(cases.values()))
    commits = sorted({case["commit"] for case in cases.values()})
    lines = [
        "# Performance",
        "",
        "Written by `make bench` (benches/compare/report.py); not edited by hand. The cases are in `benches/compare`.",
        "",
        f"Machine: {machine()}. Commit {', '.join(commits)}.",
        "",
        "Measured is the CPU time of the server per request (user and system time), the median of "
        f"{any_case['rounds']} rounds of {any_case['seconds']} s in which the servers take turns. The server has one core, load and "
        "origin the other, except with two workers. *floor* is a bare loop that reads, parses, digests the token, looks up in moka "
        "and writes bytes made before; *pingora* is pingora without the gateway. Latency is measured in an open loop at the stated rate. "
        "Where a server is not busy, the load generator limits its requests per second. MB: resident memory at the end of the case.",
        *(["", os.environ["REMARK"]] if os.environ.get("REMARK") else []),
        "",
        "## Targets",
        "",
        "| target | measured | verdict | |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in targets.all()),
        "",
        "## Side by side",
    ]
    for case in cases.values():
        lines += [
            "",
            f"### {case['title'][0].upper() + case['title'][1:]}",
            "",
            f"Latency at {case['rate']:,} requests a second.",
        ]
        lines += case["notes"] + ["", *case_table(case)]
    lines += [
        "",
        "## Tail",
        "",
        "Hits of 2,000 keys on 32 connections in an open loop, one worker on a dedicated core, with other work in parallel "
        f"(benches/compare/tail.py); medians of {tail['rounds']} rounds, in µs. The first line is the delay that the machine causes to a "
        "program that only reads the clock.",
        "",
        *(
            line
            for each in (tail, busy)
            for line in (
                f"At {each['rate']:,} a second for {each['seconds']:g} s:",
                "",
                "| | p50 | p99 | p99.9 | longest |",
                "|---|---|---|---|---|",
                *(
                    f"| {title} | {of['p50']:,.0f} | {of['p99']:,.0f} | {of['p999']:,.0f} | {of['max']:,.0f} |"
                    for title, of in each["cases"].items()
                ),
                "",
            )
        ),
        "## Memory",
        "",
        f"In one process, through the gateway's cache, {parts['entries']:,} entries with documents of 1.2 KB, redacted to 940 B:",
        "",
        "| | resident in addition to the bodies, B per entry |",
        "|---|---|",
        f"| a different customer for each caller | {parts['memory']['overhead']:.0f} |",
        f"| moka alone, a key of 32 bytes, a body of 1,024 behind an `Arc<Bytes>` | {parts['bare']['overhead']:.0f} |",
        "",
        f"With ten callers for each customer the same number of entries takes {parts['alike']['resident'] / 1e6:,.0f} MB, "
        f"without with {parts['memory']['resident'] / 1e6:,.0f} MB. "
        f"A cache of `max_bytes` {parts['bounded']['max_bytes'] / 2**20:.0f} MiB, into which four times as much was written, holds "
        f"{parts['bounded']['entries']:,} entries and takes {parts['bounded']['resident'] / 2**20:.0f} MiB.",
        "",
        "## Connections",
        "",
        "Resident memory that each of 1,000 connections adds to a server that has just started, in KiB "
        "(benches/compare/connections.py):",
        "",
        "| | idle, HTTP/1 | idle, HTTP/2 | request under way |",
        "|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(f'{of[key] / 1024:.1f}' for key in ('idle_http1', 'idle_http2', 'under_way'))} |"
            for name, of in connections.items()
        ),
        "",
        *handshake_section(handshakes),
        "## Lookups",
        "",
        "Two lookups of random keys with the comparison of their generations, as in a hit, of identity and entry, ns of CPU time:",
        "",
        "| entries | threads | ns |",
        "|---|---|---|",
        *(f"| {int(entries):,} | 1 | {ns:,.0f} |" for entries, ns in parts["lookup"].items()),
        *(f"| 100,000 | {threads} | {ns:,.0f} |" for threads, ns in parts["threads"].items()),
        "",
        "## Instructions",
        "",
        "Counted by callgrind, stored in `benches/instructions.toml`; `make bench-instructions` fails if one grew by more than 5 %.",
        "",
        "| operation | instructions |",
        "|---|---|",
        *(f"| {name} | {number:,} |" for name, number in counts.items()),
        "",
    ]
    with open(out, "w") as file:
        file.write("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
