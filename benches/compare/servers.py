"""The servers: started on free loopback ports in front of one origin, each with the settings that
its documentation recommends for this work, without a log unless all have one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

DAY = 86_400

# The gateway's fields of requests to the API and of responses, as the other servers set them.
NGINX_FIELDS = """
        proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header Via "1.1 telecomx-gateway"; proxy_set_header X-Request-Id $request_id;
        add_header Cache-Status "telecomx-gateway; fwd=bypass"; add_header X-Request-Id $request_id;"""
HAPROXY_REQUEST_FIELDS = """
    http-request set-header x-forwarded-for %[src]
    http-request set-header x-forwarded-proto http
    http-request set-header via "1.1 telecomx-gateway"
    http-request set-header x-request-id %[var(txn.id)]"""
HAPROXY_RESPONSE_FIELDS = """
    http-request set-var(txn.id) uuid()
    http-after-response set-header cache-status "telecomx-gateway; fwd=bypass"
    http-after-response set-header x-request-id %[var(txn.id)]"""
SUITE = "TLS_AES_256_GCM_SHA384"
P256 = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_answer(url, alive=lambda: True):
    """Returns the response to a GET; waits until the server listens."""
    deadline = time.monotonic() + 30
    request = urllib.request.Request(url, headers={"Authorization": "Bearer anybody"})
    while True:
        try:
            return urllib.request.urlopen(request, timeout=5).read()
        except OSError:
            if not alive() or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def make_certificate(folder, key_type=P256):
    """Returns the paths of a self-signed certificate for localhost and its key. `key_type`: the
    arguments of `openssl req -newkey`."""
    certificate, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    new = ["openssl", "req", "-x509", "-newkey", *key_type, "-nodes", "-days", "2"]
    files = ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*new, *files], check=True, capture_output=True)
    return certificate, key


def nginx_config(folder, name, http, workers=1, main=""):
    """The text of an nginx configuration whose files are in one folder, under that name. `http`:
    the content of the block `http`. `main`: further directives outside of it."""
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{name}-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
{user} daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}-error.log crit; {main}
worker_processes {workers}; worker_rlimit_nofile 16384;
events {{ worker_connections 4096; }}
http {{
    keepalive_requests 1000000000; keepalive_timeout 1d; {temporary}
{http}
}}
"""


class Server:
    """One server: its processes, its ports, its CPU time so far."""

    def __init__(self, setup, workers, logs):
        self.setup, self.workers, self.logs = setup, workers, logs
        self.folder = os.path.join(
            setup.folder, f"{self.name}-{workers}-{'logs' if logs else 'quiet'}"
        )
        os.makedirs(self.folder)
        # `held`: for clients with the entity tag.
        self.ports = {via: free_port() for via in ("http", "tls", "h2", "held")}
        self.processes = []
        for command in self.commands():
            self.start(command)

    def ready(self):
        """Waits until the server responds; if it does not, prints its output."""
        url = f"http://127.0.0.1:{self.ports['http']}/customer/{'0' * 24}/name"
        try:
            await_answer(url, lambda: all(process.poll() is None for process in self.processes))
        except OSError as error:
            for number in range(len(self.processes)):
                with open(os.path.join(self.folder, f"out-{number}"), errors="replace") as said:
                    print(said.read(), file=sys.stderr)
            raise SystemExit(f"{self.name} does not respond: {error}") from None

    def write(self, file, text):
        path = os.path.join(self.folder, file)
        with open(path, "w") as handle:
            handle.write(text)
        return path

    def start(self, command):
        out = open(os.path.join(self.folder, f"out-{len(self.processes)}"), "ab")
        # One worker has a core; load and origin have the other.
        pinned = ["taskset", "-c", "0"] if self.workers == 1 else []
        self.processes.append(
            subprocess.Popen([*pinned, *command], stdout=out, stderr=out, start_new_session=True)
        )

    def pids(self):
        """Returns the started processes and their children."""
        found = []
        for process in self.processes:
            if process.poll() is not None:
                raise SystemExit(f"{self.name} ended: see {self.folder}")
            found += [process.pid]
        for pid in found:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    found += [int(child) for child in children.read().split()]
        return found

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident(self):
        """Returns bytes: each shared page once, and files in memory."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += (
                    next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) * 1024
                )
        for folder, _, files in os.walk(os.path.join(self.folder, "cache")):
            total += sum(os.stat(os.path.join(folder, file)).st_blocks * 512 for file in files)
        return total

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Gateway(Server):
    name = "gateway"
    caching = 'cache.ttl = "6h"\ncache.max_bytes = "8GiB"\n'

    def commands(self):
        self.ports["admin"] = free_port()
        config = self.write(
            "gateway.toml",
            f"server.listen = {[f'127.0.0.1:{self.ports[via]}' for via in ('http', 'h2', 'held')]}\n"
            f"server.threads = {self.workers}\n"
            f'server.tls.listen = ["127.0.0.1:{self.ports["tls"]}"]\n'
            f'server.tls.cert_file = "{self.setup.certificate}"\nserver.tls.key_file = "{self.setup.key}"\n'
            f'admin.listen = "127.0.0.1:{self.ports["admin"]}"\nupstream.url = "http://127.0.0.1:{self.setup.origin}"\n'
            'identity.ttl = "6h"\nidentity.refresh_after = "6h"\nidentity.session = "20h"\n'
            f'{self.caching}log.access = "{"all" if self.logs else "off"}"\n',
        )
        return [[self.setup.binary, "run", "-c", config]]


class Floor(Server):
    name = "floor"

    def commands(self):
        self.ports["held"] = self.ports["http"]
        tls = f"127.0.0.1:{self.ports['tls']}"
        address = f"127.0.0.1:{self.ports['http']}"
        return [
            [
                self.setup.peers,
                "floor",
                str(self.workers),
                address,
                tls,
                self.setup.certificate,
                self.setup.key,
            ]
        ]


class Pingora(Server):
    name = "pingora"

    def commands(self):
        self.ports["held"] = self.ports["http"]
        address, origin = f"127.0.0.1:{self.ports['http']}", f"127.0.0.1:{self.setup.origin}"
        return [[self.setup.peers, "pingora", str(self.workers), address, origin]]


class Nginx(Server):
    name = "nginx"

    def commands(self):
        log = (
            f"access_log {self.folder}/access.log combined buffer=64k flush=1s;"
            if self.logs
            else "access_log off;"
        )
        http = f"""
    {log}
    sendfile on; tcp_nopush on; types_hash_max_size 4096;
    proxy_cache_path {self.folder}/cache levels=1:2 keys_zone=names:1024m max_size=8g inactive=1d use_temp_path=off;
    open_file_cache max=8192 inactive=1d; open_file_cache_valid 1d;
    upstream origin {{ server 127.0.0.1:{self.setup.origin}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{self.ports["http"]} reuseport;
        listen 127.0.0.1:{self.ports["held"]} reuseport;
        listen 127.0.0.1:{self.ports["tls"]} ssl http2 reuseport;
        listen 127.0.0.1:{self.ports["h2"]} http2 reuseport;
        ssl_certificate {self.setup.certificate}; ssl_certificate_key {self.setup.key}; ssl_protocols TLSv1.2 TLSv1.3;
        proxy_http_version 1.1; proxy_set_header Connection "";{NGINX_FIELDS}
        location / {{ proxy_pass http://origin; }}
        location /customer/ {{
            proxy_pass http://origin;
            proxy_cache names; proxy_cache_key $http_authorization$request_uri; proxy_cache_valid 200 1d;
            proxy_cache_bypass $args; proxy_no_cache $args;
        }}
    }}"""
        config = self.write("nginx.conf", nginx_config(self.folder, "nginx", http, self.workers))
        # Its files are in memory, like the responses of the others.
        return [["nginx", "-p", self.folder, "-c", config]]


class Haproxy(Server):
    name = "haproxy"

    def commands(self):
        log = "log stdout format raw local0" if self.logs else ""
        option = "option httplog\n    log global" if self.logs else ""
        pem = self.write(
            "both.pem", open(self.setup.certificate).read() + open(self.setup.key).read()
        )
        # The key of its cache is the URI at `cache-use`, so the token is put into the query until
        # then. And it does not store the response to a request that still has the field.
        use = """
    http-request set-var(txn.name) bool(true) if { path_beg /customer/ } !{ query -m found }
    http-request set-query %[req.hdr(authorization),field(2,' ')] if { var(txn.name) -m found }
    http-request set-var(txn.caller) req.hdr(authorization)
    http-request del-header authorization
    http-request cache-use names if { var(txn.name) -m found }
    http-request set-header authorization %[var(txn.caller)]
    http-response cache-store names if { var(txn.name) -m found }
    default_backend origin"""
        config = self.write(
            "haproxy.cfg",
            f"""
global
    {log}
    nbthread {self.workers}
    maxconn 4096
defaults
    mode http
    {option}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
cache names
    total-max-size 2047
    max-object-size 65536
    max-age {DAY}
frontend public
    bind 127.0.0.1:{self.ports["http"]}
    bind 127.0.0.1:{self.ports["tls"]} ssl crt {pem} ssl-min-ver TLSv1.2 alpn h2,http/1.1
    bind 127.0.0.1:{self.ports["h2"]} proto h2{HAPROXY_RESPONSE_FIELDS}{use}
frontend held
    bind 127.0.0.1:{self.ports["held"]}
    # wrk waits for a body if a 304 has a length.
    http-after-response del-header content-length if {{ status 304 }}{HAPROXY_RESPONSE_FIELDS}{use}
backend origin{HAPROXY_REQUEST_FIELDS}
    server origin 127.0.0.1:{self.setup.origin}
""",
        )
        return [["haproxy", "-db", "-f", config]]


class Varnish(Server):
    name = "varnish"

    def commands(self):
        vcl = self.write(
            "names.vcl",
            f"""
vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{self.setup.origin}"; }}
sub vcl_recv {{
    if (req.url ~ "^/customer/[0-9a-f]+/name$") {{ return (hash); }}
    return (pass);
}}
sub vcl_backend_fetch {{
    set bereq.http.X-Forwarded-Proto = "http";
    set bereq.http.X-Request-Id = bereq.xid;
}}
sub vcl_deliver {{
    set resp.http.Cache-Status = "telecomx-gateway; fwd=bypass";
    set resp.http.X-Request-Id = req.xid;
}}
sub vcl_hash {{ hash_data(req.http.Authorization); hash_data(req.url); return (lookup); }}
sub vcl_backend_response {{ set beresp.ttl = 1d; return (deliver); }}
""",
        )
        self.ports["held"] = self.ports["http"]
        listen = f"127.0.0.1:{self.ports['http']}"
        work = os.path.join(self.folder, "work")
        command = [
            *[
                "varnishd",
                "-F",
                "-j",
                "none",
                "-n",
                work,
                "-a",
                listen,
                "-a",
                f"127.0.0.1:{self.ports['h2']}",
            ],
            *[
                "-f",
                vcl,
                "-s",
                "malloc,8G",
                "-p",
                "feature=+http2",
                "-p",
                f"thread_pools={self.workers}",
            ],
            *["-p", "thread_pool_min=100", "-p", "thread_pool_max=2000"],
        ]
        if not self.logs:
            # It always logs to shared memory; every tag that can be masked is.
            return [[*command, "-p", f"vsl_mask={varnish_masks()}"]]
        return [command, ["varnishncsa", "-t", "30", "-n", work, "-w", f"{self.folder}/access.log"]]


def varnish_masks():
    """Returns the setting that masks every tag of its log."""
    listed = subprocess.run(
        ["varnishd", "-x", "vsl"], capture_output=True, text=True
    ).stdout.splitlines()
    tags = [
        tag for tag, line in zip(listed, listed[1:]) if len(line) > 1 and line == "-" * len(tag)
    ]
    return ",".join(f"-{tag}" for tag in tags) or "default"


KINDS = {kind.name: kind for kind in (Floor, Gateway, Haproxy, Nginx, Pingora, Varnish)}


class Setup:
    """The setup that all servers share: the origin, a certificate, a folder in memory."""

    def __init__(self, folder, binary, peers):
        self.folder, self.binary, self.peers = folder, binary, peers
        self.certificate, self.key = make_certificate(folder)
        self.origin = free_port()
        self.process = subprocess.Popen(
            ["taskset", "-c", "1", peers, "origin", f"127.0.0.1:{self.origin}"]
        )
        await_answer(f"http://127.0.0.1:{self.origin}/asked")

    def asked(self):
        return int(await_answer(f"http://127.0.0.1:{self.origin}/asked"))

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
