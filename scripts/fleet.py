#!/usr/bin/env python3
"""Measures a cluster of three gateways: delay of invalidations, CPU time of a hit, faults.

    scripts/fleet.py BINARY spread [WRITES]
    scripts/fleet.py BINARY cost [ROUNDS]
    scripts/fleet.py BINARY bound [SECONDS]
    scripts/fleet.py BINARY scale [CHANGES]
    scripts/fleet.py BINARY restart [SECONDS]

A redis-server, the sandbox and three gateways, on free loopback ports.

spread: a client for each of two gateways requests a customer's name without a pause, while another
one changes the name through the third gateway. The delay of a change at a gateway is the time
between the end of the write's response and the beginning of the last request that still received an
older name; without such a request it is 0. Prints quantiles, and the gateways' metric
(cluster_spread_seconds). Exits with 1 if the 99th percentile is 50 ms or more, or if a name never
arrived.

cost: wrk requests the same entry of a single gateway and of one of the cluster in turn, two seconds
each. Prints the CPU time of a hit for both, and the median of the ratios of neighbouring rounds.
Needs wrk.

bound: changes are made through the first gateway all the time. The second is stopped (SIGSTOP) for
SECONDS; the same, and the stream is trimmed meanwhile; Redis is killed, and started again after
SECONDS; Redis is silent (SIGSTOP); the second gateway's interface to Redis is taken down. Clients
send requests to it without a pause, and clients of the stopped gateway receive their response when
it continues. No response may be older than cluster.max_isolation, which is 2 s here: it must not
have a name whose replacement was acknowledged more than 2 s before the request (for clients of a
stopped gateway: before their response). Runs in network namespaces, as root.

scale: with `tier`, the CPU time of gateways and Redis, and the memory of Redis, that
docs/SCALING.md uses. Ten tokens request each customer of the sandbox: first through one gateway,
then through another, which finds the responses in the tier, then through a single one. Then one
purges CHANGES customers through the admin listener, and so does the single one.

restart: with `tier`, four connections request random pairs of token and customer of a gateway
without a pause; it is killed and started again. Prints, from its first response on, the share of
hits in memory or the tier, and the requests to the API by then, for a gateway of the cluster and
for a single one. Exits with 1 if the one of the cluster is not above 90 % in its first second.
"""

import http.client
import json
import multiprocessing
import os
import random
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

TARGET = "/customer/73469a52f4fd7f77ec7b28cc/name"
WRITE = "/customer/73469a52f4fd7f77ec7b28cc"
BOUND = 0.050
ISOLATION = 2.0
# Time that a response may be on its way at the end, on a busy machine.
TOLERANCE = 0.2
PATIENCE = 30
# Between writes: the others must be found with the answer in memory.
PAUSE = 0.02


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def await_that(what, condition):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"timed out waiting until {what}")


def ask(port, method, path, token=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if body:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def watch(port, until, out, host="127.0.0.1"):
    """Sends requests without a pause; returns the start and the number in the name of each, and the
    number of hits."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    seen, hits = [], 0
    while not until.is_set():
        began = time.monotonic()
        connection.request("GET", TARGET, headers={"Authorization": "Bearer sandbox-demo-viewer"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            out.put(f"{answer.status}: {body.decode()}")
            return
        name = json.loads(body)["name"]
        hits += "; hit" in answer.headers["Cache-Status"]
        number = re.fullmatch(r"name (\d+)", name)
        seen.append((began, int(number[1]) if number else -1))
    out.put((seen, hits))


def quantile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def spread_of(ports):
    """Returns the p99 of cluster_spread_seconds of the writing gateway: the upper bound of its
    bucket."""
    _, text = ask(ports[0], "GET", "/metrics")
    buckets = re.findall(r'cluster_spread_seconds_bucket\{le="([^"]+)"\} (\d+)', text)
    count = int(buckets[-1][1])
    return next(float(bound) for bound, below in buckets if int(below) >= 0.99 * count), count


class Fleet:
    """Three gateways of a cluster, and a single one."""

    def __init__(self, binary, folder, apart=None, tier=False):
        """`apart`: the second one has Redis at another address, behind the namespace of that
        process."""
        self.folder = folder
        api, redis, *ports = free_ports(10)
        self.api = api
        self.public, self.admin = ports[:4], ports[4:]
        self.processes, self.log = [], open(f"{folder}/log", "wb")
        with open(f"{folder}/keys", "w") as keys:
            keys.write(f"a {secrets.token_hex(32)}\n")
        redis_server = [
            "redis-server",
            "--port",
            str(redis),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            folder,
        ]
        commands = [redis_server, [binary, "sandbox", "--listen", f"127.0.0.1:{api}"]]
        for number in range(4):
            path = f"{folder}/{number}.toml"
            with open(path, "w") as file:
                file.write(
                    f'[server]\nlisten = ["127.0.0.1:{self.public[number]}"]\nthreads = 2\n'
                    f'[admin]\nlisten = "127.0.0.1:{self.admin[number]}"\n'
                    f'[upstream]\nurl = "http://127.0.0.1:{api}"\n'
                    '[log]\naccess = "off"\n'
                )
                if number < 3:
                    file.write(
                        f'[cluster]\nurl = "redis://127.0.0.1:{redis}"\nkey_file = "{folder}/keys"\n'
                    )
                    file.write("tier = true\n" if tier else "")
                if apart:
                    file.write(
                        f'max_isolation = "{ISOLATION:g}s"\nconnect_timeout = "500ms"\n'
                        if number < 3
                        else ""
                    )
            commands.append([binary, "run", "-c", path])
        if apart:
            apart.lead(commands, folder, api, redis, self.public[1], self.admin[1])
        self.redis_port, self.commands = redis, commands

    def __enter__(self):
        for command in self.commands:
            self.processes.append(subprocess.Popen(command, stdout=self.log, stderr=self.log))
        for port in [self.admin[0], self.admin[2]]:
            await_that(
                "the gateways are connected",
                lambda port=port: json.loads(ask(port, "GET", "/stats")[1])["cluster"]["connected"],
            )
        await_that(
            "the single gateway is ready", lambda: ask(self.admin[3], "GET", "/readyz")[0] == 200
        )
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def cpu(self, number):
        """Returns the CPU time of this gateway in seconds, to the nanosecond."""
        return self.cpu_of(self.processes[2 + number].pid)

    def redis_cpu(self):
        return self.cpu_of(self.processes[0].pid)

    @staticmethod
    def cpu_of(process):
        folder = f"/proc/{process}/task"
        times = (
            open(f"{folder}/{task}/schedstat").read().split()[0] for task in os.listdir(folder)
        )
        return sum(map(int, times)) / 1e9


def cost(fleet, rounds):
    lone, member = 3, 0
    microseconds = {lone: [], member: []}

    def load(number, seconds):
        before = fleet.cpu(number)
        url = f"http://127.0.0.1:{fleet.public[number]}{TARGET}"
        command = [
            "wrk",
            "-t1",
            "-c16",
            f"-d{seconds}s",
            "-H",
            "Authorization: Bearer sandbox-demo-viewer",
            url,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in output or "Socket errors" in output:
            sys.exit(output)
        return (fleet.cpu(number) - before) / int(re.search(r"(\d+) requests in", output)[1]) * 1e6

    for number in microseconds:
        load(number, 1)
    for turn in range(rounds):
        for number in (lone, member) if turn % 2 else (member, lone):
            microseconds[number].append(load(number, 2))
    ratios = [
        with_fleet / alone for with_fleet, alone in zip(microseconds[member], microseconds[lone])
    ]
    for number, name in ((lone, "by itself"), (member, "of a fleet")):
        print(
            f"a hit of a gateway {name}: {statistics.median(microseconds[number]):.2f} µs of CPU time"
        )
    quartiles = statistics.quantiles(ratios, n=4)
    print(
        f"ratio, median of {rounds}: {statistics.median(ratios):.3f} (quartiles {quartiles[0]:.3f} and {quartiles[2]:.3f})"
    )


def scale(fleet, changes):
    def redis(*words):
        command = ["redis-cli", "-p", str(fleet.redis_port), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def spent(what, number, count, work):
        watched = [
            lambda: fleet.cpu(0),
            lambda: fleet.cpu(1),
            lambda: fleet.cpu(2),
            lambda: fleet.cpu(3),
            fleet.redis_cpu,
        ]
        before = [read() for read in watched]
        work(number)
        time.sleep(0.5)
        used = [(read() - then) / count * 1e6 for read, then in zip(watched, before)]
        names = ["first", "second", "third", "by itself", "Redis"]
        print(f"{what}: " + ", ".join(f"{name} {time:.1f} µs" for name, time in zip(names, used)))

    pairs = pairs_of(fleet)

    def wave(number):
        connection = http.client.HTTPConnection("127.0.0.1", fleet.public[number], timeout=PATIENCE)
        for token, customer in pairs:
            connection.request(
                "GET", f"/customer/{customer}/name", headers={"Authorization": f"Bearer {token}"}
            )
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"{customer}: {answer.status}")

    def purge(number):
        connection = http.client.HTTPConnection("127.0.0.1", fleet.admin[number], timeout=PATIENCE)
        for customer in range(changes):
            connection.request("DELETE", f"/cache/customers/{customer:024x}")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.exit(f"a purge: {answer.status}")

    print(f"CPU time for each of {len(pairs)} requests, of one client:")
    spent("fetched by the first, written to the tier", 0, len(pairs), wave)
    spent("hit in the tier of the second", 1, len(pairs), wave)
    spent("hit in memory of the second", 1, len(pairs), wave)
    spent("fetched by the single one", 3, len(pairs), wave)
    spent("hit in memory of the single one", 3, len(pairs), wave)
    _, metrics = ask(fleet.admin[1], "GET", "/metrics")
    print("\n".join(line for line in metrics.splitlines() if "tier_requests_total{" in line))
    names = [
        name
        for name in redis("--scan", "--pattern", "telecomx-gateway:*").split()
        if not name.endswith(":changes")
    ]
    sizes = [int(redis("memory", "usage", name)) for name in names[:300]]
    print(f"{len(names)} values in Redis, {statistics.mean(sizes):.0f} bytes each, of 300")
    print(f"CPU time for each of {changes} changes:")
    spent("seen by the first", 0, changes, purge)
    spent("seen by the single one", 3, changes, purge)
    usage, length = int(redis("memory", "usage", "telecomx-gateway:changes", "samples", "0")), int(
        redis("xlen", "telecomx-gateway:changes")
    )
    print(f"{length} messages in the stream, {usage / length:.0f} bytes each")
    for line in redis("info", "commandstats").splitlines():
        if command := re.match(
            r"cmdstat_(xadd|xread|xinfo\|stream|set|getrange|get|time):calls=(\d+).*usec_per_call=([0-9.]+)",
            line,
        ):
            print(
                f"Redis: {command[1]}, {command[2]} calls, {command[3]} µs each within the command"
            )


def pairs_of(fleet):
    """Returns ten tokens of an employee who sees every customer, each with each customer."""
    credentials = json.dumps({"username": "admin@sandbox.example", "password": "demo-admin"})
    tokens = [
        json.loads(ask(fleet.api, "POST", "/auth/login", body=credentials)[1])["token"]
        for _ in range(10)
    ]
    customers = json.loads(ask(fleet.api, "GET", "/customer", tokens[0])[1])["customers"]
    return [(token, customer["_id"]) for token in tokens for customer in customers]


def ask_any(port, pairs, start, until, out):
    """Requests random pairs without a pause, also while no gateway responds; records the time of
    each response, and whether it was a hit."""
    draw, seen, connection = random.Random(start), [], None
    while not until.is_set():
        token, customer = draw.choice(pairs)
        try:
            connection = connection or http.client.HTTPConnection(
                "127.0.0.1", port, timeout=PATIENCE
            )
            connection.request(
                "GET", f"/customer/{customer}/name", headers={"Authorization": f"Bearer {token}"}
            )
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection = None
            time.sleep(0.005)
            continue
        if answer.status != 200:
            out.put(f"{customer}: {answer.status}")
            return
        seen.append((time.monotonic(), "; hit" in answer.headers["Cache-Status"]))
    out.put(seen)


def restart(fleet, seconds):
    pairs = pairs_of(fleet)

    def asked(number):
        _, text = ask(fleet.admin[number], "GET", "/metrics")
        counts = re.findall(
            r'upstream_request_duration_seconds_count\{kind="(fetch|validate)"\} (\d+)', text
        )
        return ", ".join(f"{count} times to {kind}" for kind, count in counts) or "nothing"

    good = True
    for number, name in ((1, "of a fleet with `tier`"), (3, "by itself")):
        until, out = multiprocessing.Event(), multiprocessing.Queue()
        callers = [
            multiprocessing.Process(
                target=ask_any, args=(fleet.public[number], pairs, start, until, out)
            )
            for start in range(4)
        ]
        for caller in callers:
            caller.start()
        time.sleep(seconds)
        before = asked(number)
        fleet.processes[2 + number].kill()
        fleet.processes[2 + number].wait()
        killed = time.monotonic()
        fleet.processes[2 + number] = subprocess.Popen(
            fleet.commands[2 + number], stdout=fleet.log, stderr=fleet.log
        )
        time.sleep(seconds)
        after = asked(number)
        until.set()
        seen = []
        for _ in callers:
            its = out.get(timeout=PATIENCE)
            if isinstance(its, str):
                sys.exit(its)
            seen += its
        for caller in callers:
            caller.join()
        back = min(at for at, _ in seen if at > killed)
        tenths = [[] for _ in range(10)]
        for at, hit in seen:
            if back <= at < back + 1:
                tenths[int((at - back) * 10)].append(hit)
        whole = [hit for tenth in tenths for hit in tenth]
        print(
            f"a {name} gateway, {len(pairs)} pairs: back {back - killed:.2f} s after it was killed"
        )
        print(
            "  hits in each tenth of its first second: "
            + ", ".join(f"{statistics.mean(of):.0%} of {len(of)}" for of in tenths if of)
        )
        print(f"  in the whole second: {statistics.mean(whole):.1%} of {len(whole)}")
        print(
            f"  requests to the API: {before} before it was killed, {after} in the {seconds} s after"
        )
        good = good and (number != 1 or statistics.mean(whole) > 0.9)
    if not good:
        sys.exit("not above 90 % within a second")


def spread(fleet, writes):
    public, admin = fleet.public, fleet.admin
    until, out = multiprocessing.Event(), multiprocessing.Queue()
    watchers = [
        multiprocessing.Process(target=watch, args=(port, until, out)) for port in public[1:3]
    ]
    for watcher in watchers:
        watcher.start()
    time.sleep(0.5)
    done = []
    for number in range(writes):
        status, body = ask(
            public[0], "POST", WRITE, "sandbox-demo-owner", json.dumps({"name": f"name {number}"})
        )
        done.append(time.monotonic())
        if status != 200:
            sys.exit(f"a write got {status}: {body}")
        time.sleep(PAUSE)
    time.sleep(0.5)
    until.set()
    results = [out.get(timeout=PATIENCE) for _ in watchers]
    for watcher in watchers:
        watcher.join()
    p99_bound, count = spread_of(admin)
    late = []
    for seen, hits in results:
        print(f"{len(seen)} requests of one caller, {hits} of them hits")
        if seen[-1][1] != writes - 1:
            sys.exit(f"the last name never arrived: {seen[-1]}")
        at = 0
        for number, end in enumerate(done):
            # The last request that began after the write's response and received an older name.
            while at < len(seen) and seen[at][0] <= end:
                at += 1
            last, look = 0.0, at
            while look < len(seen) and seen[look][1] < number:
                last = seen[look][0] - end
                look += 1
            late.append(last)
    p50, p99, worst = quantile(late, 0.5), quantile(late, 0.99), max(late)
    print(f"{writes} writes, received by two other gateways")
    print(
        f"delay after the write's response: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms, at most {worst * 1000:.2f} ms"
    )
    print(
        f"by the gateway's metric (cluster_spread_seconds, {count} changes): p99 below {p99_bound * 1000:g} ms"
    )
    if p99 >= BOUND:
        sys.exit(f"p99 is not below {BOUND * 1000:g} ms")


class Apart:
    """A network namespace for one gateway, with an interface for clients and the API, and one for
    Redis."""

    NEAR, FAR = ("10.213.1.1", "10.213.2.1"), ("10.213.1.2", "10.213.2.2")

    def __init__(self):
        run = lambda *words: subprocess.run(words, check=True)
        run("ip", "link", "set", "lo", "up")
        # It ends when its standard input is closed.
        self.holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE)
        self.within = ["nsenter", "-t", str(self.holder.pid), "-n"]
        host = os.readlink("/proc/self/ns/net")
        await_that(
            "the namespace exists", lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != host
        )
        for number, (near, far) in enumerate(zip(self.NEAR, self.FAR)):
            run(
                "ip",
                "link",
                "add",
                f"near{number}",
                "type",
                "veth",
                "peer",
                "name",
                f"far{number}",
                "netns",
                str(self.holder.pid),
            )
            run("ip", "address", "add", f"{near}/24", "dev", f"near{number}")
            run("ip", "link", "set", f"near{number}", "up")
            run(*self.within, "ip", "address", "add", f"{far}/24", "dev", f"far{number}")
            run(*self.within, "ip", "link", "set", f"far{number}", "up")

    def lead(self, commands, folder, api, redis, public, admin):
        commands[0] += ["--protected-mode", "no"]
        commands[0][commands[0].index("--bind") + 1 : commands[0].index("--save")] = [
            "127.0.0.1",
            self.NEAR[1],
        ]
        commands[1][-1] = f"0.0.0.0:{api}"
        path = f"{folder}/1.toml"
        text = open(path).read().replace(f"127.0.0.1:{redis}", f"{self.NEAR[1]}:{redis}")
        text = text.replace(f"127.0.0.1:{api}", f"{self.NEAR[0]}:{api}").replace(
            f"127.0.0.1:{public}", f"{self.FAR[0]}:{public}"
        )
        text = text.replace(
            f'"127.0.0.1:{admin}"', f'"{self.FAR[0]}:{admin}"\ntoken_file = "{folder}/token"'
        )
        open(f"{folder}/token", "w").write("a-token-of-the-admin-listener")
        open(path, "w").write(text)
        commands[3] = self.within + commands[3]

    def partition(self, cut):
        subprocess.run(["ip", "link", "set", "near1", "down" if cut else "up"], check=True)

    def end(self):
        self.holder.stdin.close()
        self.holder.wait()


def bound(binary, folder, seconds):
    apart = Apart()
    try:
        with Fleet(binary, folder, apart) as fleet:
            judge(fleet, apart, seconds)
    finally:
        apart.end()


def judge(fleet, apart, seconds):
    host, port = Apart.FAR[0], fleet.public[1]
    process = fleet.processes[3]
    done, until = [], threading.Event()

    def write():
        number = 0
        while not until.is_set():
            status, body = ask(
                fleet.public[0],
                "POST",
                WRITE,
                "sandbox-demo-owner",
                json.dumps({"name": f"name {number}"}),
            )
            if status != 200:
                print(f"a write got {status}: {body}")
                os._exit(1)
            done.append(time.monotonic())
            number += 1
            time.sleep(0.05)

    def redis(*words):
        subprocess.run(
            ["redis-cli", "-p", str(fleet.redis_port), *words], check=True, capture_output=True
        )

    def stopped(while_stopped=lambda: None):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        callers = []
        end = time.monotonic() + seconds - 0.5
        while time.monotonic() < end:
            caller = socket.create_connection((host, port))
            caller.sendall(
                f"GET {TARGET} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer sandbox-demo-viewer\r\nConnection: close\r\n\r\n".encode()
            )
            callers.append(caller)
            time.sleep(0.25)
        while_stopped()
        process.send_signal(signal.SIGCONT)
        answers = []
        for caller in callers:
            text = b"".join(iter(lambda: caller.recv(65536), b"")).decode()
            answers.append((time.monotonic(), int(re.search(r'"name":"name (\d+)"', text)[1])))
        return answers

    def killed():
        fleet.processes[0].kill()
        fleet.processes[0].wait()
        time.sleep(seconds)
        fleet.processes[0] = subprocess.Popen(fleet.commands[0], stdout=fleet.log, stderr=fleet.log)

    def silent():
        fleet.processes[0].send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        fleet.processes[0].send_signal(signal.SIGCONT)

    def partitioned():
        apart.partition(True)
        time.sleep(seconds)
        apart.partition(False)

    faults = {
        "nothing is wrong": lambda: time.sleep(seconds),
        "the gateway is stopped": stopped,
        "it is stopped, and the stream is trimmed": lambda: stopped(
            lambda: redis("XTRIM", "telecomx-gateway:changes", "MAXLEN", "0")
        ),
        "Redis is killed": killed,
        "Redis is silent": silent,
        "the network to Redis is down": partitioned,
    }
    writer = threading.Thread(target=write)
    writer.start()
    await_that("there is a first name", lambda: done)
    failed = False
    for name, fault in faults.items():
        ends, out = multiprocessing.Event(), multiprocessing.Queue()
        watcher = multiprocessing.Process(target=watch, args=(port, ends, out, host))
        watcher.start()
        time.sleep(1)
        waited = fault() or []
        # Until it is connected again, and some more.
        time.sleep(3)
        ends.set()
        result = out.get(timeout=PATIENCE)
        if isinstance(result, str):
            print(f"{name}: a response was {result}")
            os._exit(1)
        seen, hits = result
        watcher.join()
        seen = [(at, number) for at, number in seen if number >= 0]

        def age(at, number):
            return max(0.0, at - done[number + 1]) if number + 1 < len(done) else 0.0

        oldest, oldest_waited = (
            max((age(*answer) for answer in answers), default=0.0) for answers in (seen, waited)
        )
        verdict = max(oldest, oldest_waited) <= ISOLATION + TOLERANCE
        failed |= not verdict
        also = f", {len(waited)} clients that waited: {oldest_waited:.2f} s" if waited else ""
        print(
            f"{name}: {len(seen)} responses, {hits} hits; oldest {oldest:.2f} s{also}{'' if verdict else ': TOO OLD'}"
        )
    until.set()
    writer.join()
    print(f"{len(done)} changes; bound {ISOLATION:g} s")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    modes = {
        "spread": (spread, 1000),
        "cost": (cost, 12),
        "bound": (None, 6),
        "scale": (scale, 20000),
        "restart": (restart, 5),
    }
    if (
        len(sys.argv) not in (3, 4)
        or not os.access(sys.argv[1], os.X_OK)
        or sys.argv[2] not in modes
    ):
        sys.exit(__doc__)
    mode, count = modes[sys.argv[2]]
    count = int(sys.argv[3]) if len(sys.argv) == 4 else count
    if mode is None and os.environ.get("WITHIN") is None:
        os.environ["WITHIN"] = "a namespace"
        os.execvp("unshare", ["unshare", "-n", *sys.argv])
    with tempfile.TemporaryDirectory() as scratch:
        if mode is None:
            bound(sys.argv[1], scratch, count)
        else:
            with Fleet(sys.argv[1], scratch, tier=mode in (scale, restart)) as running:
                mode(running, count)
