#!/usr/bin/env python3
"""Writes the header sets of this folder: what real clients and proxies send with a request.

Each file has the fields as the gateway receives them over HTTP/1.1, without a credential, behind lines that
begin with `#` and name the source. Software that is installed is recorded against a stub on loopback; the
other sets are taken from the documentation of the vendor.

    record.py            writes all sets
"""

import contextlib
import http.server
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "clients"))
sys.dont_write_bytecode = True

import chromium  # noqa: E402

PATIENCE = 30
PATH = "/customer/73469a52f4fd7f77ec7b28cc/name"
HOST, PAGE = "gateway.example", "https://app.example"
# Sent by pages next to a token, and removed before a set is written.
CREDENTIALS = {"authorization"}
COOKIES = "_ga=GA1.1.1404125345.1764380000; _ga_5XK2=GS2.1.s1764380000; theme=dark"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Stub(http.server.ThreadingHTTPServer):
    """Answers everything with CORS fields, and keeps the heads of requests for PATH."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.heads = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self, method="GET"):
        """The fields of the first request with that method, when there is one."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for at, (its, fields) in enumerate(self.heads):
                if its == method:
                    del self.heads[: at + 1]
                    return fields
            time.sleep(0.02)
        raise SystemExit(f"no {method} arrived; arrived: {self.heads}")


class StubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        if self.path == PATH:
            self.server.heads.append((self.command, list(self.headers.items())))
        body = b"<!doctype html><link rel=icon href=data:,>"
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
        self.send_header("Access-Control-Allow-Credentials", "true")
        self.send_header("Access-Control-Allow-Headers", "authorization")
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_OPTIONS = answer

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def child(command, output, **options):
    with open(output, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def write(name, source, fields, stubs=()):
    """Writes a set; addresses of loopback become those of an example."""
    lines = []
    for field, value in fields:
        if field.lower() in CREDENTIALS:
            continue
        for url, instead in stubs:
            value = value.replace(url, instead)
            value = value.replace(url.removeprefix("http://"), instead.removeprefix("https://"))
        lines.append(f"{field}: {value}" if value else f"{field}:")
    text = "".join(f"# {line}\n" for line in source.splitlines()) + "\n".join(lines) + "\n"
    (HERE / f"{name}.txt").write_text(text)
    print(f"{name}: {len(lines)} fields")


def version(*command):
    said = subprocess.run(command, capture_output=True, text=True)
    return (said.stdout + said.stderr).splitlines()[0].strip()


def record_programs(stub, folder):
    """curl, Node's fetch and Java's HttpClient."""
    to = [(stub.url, f"https://{HOST}")]
    subprocess.run(["curl", "-s", "-o", folder / "curl", stub.url + PATH], check=True)
    write("curl", f"Recorded: {version('curl', '--version')}", stub.take(), to)
    script = f"fetch({stub.url + PATH!r}).then(response => response.text())"
    subprocess.run(["node", "-e", script], check=True)
    write("node-fetch", f"Recorded: fetch of Node {version('node', '--version')}", stub.take(), to)
    source = folder / "Get.java"
    source.write_text(
        "import java.net.URI; import java.net.http.*;\n"
        "public class Get { public static void main(String[] urls) throws Exception {\n"
        "  var request = HttpRequest.newBuilder(URI.create(urls[0])).build();\n"
        "  HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()); } }\n"
    )
    subprocess.run(["java", source, stub.url + PATH], check=True)
    write(
        "java-httpclient",
        f"Recorded: java.net.http.HttpClient, {version('java', '-version')}",
        stub.take(),
        to,
    )


def record_chromium(stub, page, folder):
    """A page of the same origin, one of another, its preflight, and a reload. Returns the fields of the second."""
    browser = chromium.find()
    what = f"Recorded: {version(browser, '--version')}"
    to = [(stub.url, f"https://{HOST}"), (page.url, PAGE)]
    fetch = f"fetch('{stub.url + PATH}', {{credentials: 'include', headers: {{Authorization: 'Bearer x'}}}})"
    cookies = "; ".join(f"document.cookie = '{cookie}; path=/'" for cookie in COOKIES.split("; "))
    with chromium.tab(child_of(folder), browser, folder, PATIENCE) as tab:

        def run(script):
            tab.tell(
                "Runtime.evaluate",
                expression=f"{cookies}; {script}.then(r => r.text())",
                awaitPromise=True,
            )

        def go(url):
            tab.tell("Page.navigate", url=url)
            time.sleep(1)

        go(stub.url + "/")
        run(fetch)
        write(
            "chromium-same-origin", f"{what}, fetch() of a page of the same origin", stub.take(), to
        )
        go(page.url + "/")
        run(fetch)
        preflight = stub.take("OPTIONS")
        write(
            "chromium-preflight",
            f"{what}, preflight of a fetch() with Authorization",
            preflight,
            to,
        )
        cross = stub.take()
        write(
            "chromium-cross-origin",
            f"{what}, fetch() with cookies of a page of another origin",
            cross,
            to,
        )
        go(stub.url + PATH)
        stub.take()
        tab.tell("Page.reload")
        write("chromium-reload", f"{what}, reload of the address itself", stub.take(), to)
    return cross, to


def child_of(folder):
    def start(command, output, **options):
        return child(command, output, start_new_session=True, **options)

    return start


def record_proxies(stub, fields, to, folder):
    """nginx with the fields of ingress-nginx, and HAProxy, each in front of the stub."""
    head = "".join(
        f"{name}: {value}\r\n" for name, value in fields if name.lower() not in CREDENTIALS
    )
    request = f"GET {PATH} HTTP/1.1\r\n{head}\r\n".encode()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(INGRESS_NGINX.format(folder=folder, port=port, stub=stub.url))
    with child(["nginx", "-p", folder, "-c", config], folder / "nginx.log"):
        send(port, request)
        source = (
            f"Recorded: {version('nginx', '-v')} with the proxy_set_header lines of ingress-nginx\n"
        )
        source += "https://github.com/kubernetes/ingress-nginx/blob/main/rootfs/etc/nginx/template/nginx.tmpl"
        write("behind-ingress-nginx", source, stub.take(), to)
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, stub=stub.url.removeprefix("http://")))
    with child(["haproxy", "-db", "-f", config], folder / "haproxy.log"):
        send(port, request)
        source = f"Recorded: {version('haproxy', '-v')} with option forwardfor and unique-id-header"
        write("behind-haproxy", source, stub.take(), to)


def free_port():
    with contextlib.closing(__import__("socket").create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


def send(port, request):
    import socket

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(request)
                connection.recv(1)
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


INGRESS_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {stub};
            proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Request-ID $request_id;
            proxy_set_header X-Real-IP 203.0.113.9;
            proxy_set_header X-Forwarded-For 203.0.113.9;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port 443;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header X-Forwarded-Scheme https;
            proxy_set_header X-Scheme https;
            proxy_set_header Proxy "";
        }}
    }}
}}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend public
    bind 127.0.0.1:{port}
    option forwardfor
    unique-id-format %[uuid()]
    unique-id-header X-Unique-ID
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Port 443
    default_backend stub
backend stub
    server stub {stub}
"""


def fields_of(text):
    return [tuple(map(str.strip, line.split(":", 1))) for line in text.strip().splitlines()]


# Programs that are not installed: the name of the file, the source, the fields.
DOCUMENTED = {
    "firefox": (
        "From the documentation: https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers, and\n"
        "https://developer.mozilla.org/en-US/docs/Web/HTTP/Content_negotiation/List_of_default_Accept_values",
        f"""
        Host: {HOST}
        User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0
        Accept: */*
        Accept-Language: en-US,en;q=0.5
        Accept-Encoding: gzip, deflate, br, zstd
        Referer: {PAGE}/
        Origin: {PAGE}
        DNT: 1
        Sec-GPC: 1
        Connection: keep-alive
        Cookie: {COOKIES}
        Sec-Fetch-Dest: empty
        Sec-Fetch-Mode: cors
        Sec-Fetch-Site: cross-site
        Priority: u=4
        """,
    ),
    "safari": (
        "From the documentation: https://webkit.org/blog/13686 (Fetch Metadata, Priority), and\n"
        "https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/User-Agent",
        f"""
        Host: {HOST}
        Accept: */*
        Origin: {PAGE}
        Sec-Fetch-Site: cross-site
        Sec-Fetch-Mode: cors
        Sec-Fetch-Dest: empty
        User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15
        Referer: {PAGE}/
        Accept-Language: en-GB,en;q=0.9
        Priority: u=3, i
        Accept-Encoding: gzip, deflate, br
        Connection: keep-alive
        """,
    ),
    "go": (
        "From the documentation: https://pkg.go.dev/net/http#Request.Write and #Transport (DisableCompression)",
        f"""
        Host: {HOST}
        User-Agent: Go-http-client/1.1
        Accept-Encoding: gzip
        """,
    ),
    "axios-traced": (
        "From the documentation: https://axios-http.com/docs/config_defaults,\n"
        "https://docs.sentry.io/platforms/javascript/guides/node/tracing/distributed-tracing and W3C Trace Context",
        f"""
        Accept: application/json, text/plain, */*
        Content-Type: application/json
        User-Agent: axios/1.11.0
        Accept-Encoding: gzip, compress, deflate, br
        sentry-trace: {TRACE}-b7ad6b7169203331-1
        baggage: sentry-environment=production,sentry-release=1.4.2,sentry-public_key=a1b2c3,sentry-trace_id={TRACE},sentry-sample_rate=0.1
        traceparent: 00-{TRACE}-b7ad6b7169203331-01
        tracestate: congo=t61rcWkgMzE
        Host: {HOST}
        Connection: keep-alive
        """,
    ),
}

# Proxies that are not installed: what each adds to the fields of a browser.
BEHIND = {
    "behind-aws-alb": (
        "From the documentation: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/x-forwarded-headers.html,\n"
        "https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-request-tracing.html",
        """
        X-Forwarded-For: 203.0.113.9
        X-Forwarded-Proto: https
        X-Forwarded-Port: 443
        X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678
        """,
    ),
    "behind-envoy-istio": (
        "From the documentation: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers,\n"
        "https://istio.io/latest/docs/tasks/observability/distributed-tracing/overview",
        f"""
        x-forwarded-for: 203.0.113.9
        x-forwarded-proto: https
        x-request-id: 3f2c1b9e-7e59-9d2f-8a3d-8b8a1c6f1d11
        x-envoy-external-address: 203.0.113.9
        x-envoy-attempt-count: 1
        x-envoy-decorator-operation: gateway.default.svc.cluster.local:80/*
        x-envoy-internal: true
        x-envoy-peer-metadata-id: router~10.1.2.3~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local
        x-forwarded-client-cert: By=spiffe://cluster.local/ns/default/sa/gateway;Hash=468ed33be74eee6556d90c0149c1309e;URI=spiffe://cluster.local/ns/istio-system/sa/ingress
        x-b3-traceid: {TRACE}
        x-b3-spanid: 00f067aa0ba902b7
        x-b3-parentspanid: 05e3ac9a4f6e3b90
        x-b3-sampled: 1
        """,
    ),
    "behind-traefik": (
        "From the documentation: https://doc.traefik.io/traefik/getting-started/faq/#what-are-the-forwarded-headers-when-proxying-http-requests",
        f"""
        X-Forwarded-For: 203.0.113.9
        X-Forwarded-Host: {HOST}
        X-Forwarded-Port: 443
        X-Forwarded-Proto: https
        X-Forwarded-Server: traefik-7d5c6f9b4-x2x9k
        X-Real-Ip: 203.0.113.9
        """,
    ),
    "behind-cloudflare": (
        "From the documentation: https://developers.cloudflare.com/fundamentals/reference/http-headers",
        """
        CF-Connecting-IP: 203.0.113.9
        CF-IPCountry: DK
        CF-RAY: 92f5a1b2c3d4e5f6-CPH
        CF-Visitor: {"scheme":"https"}
        CDN-Loop: cloudflare; loops=1
        X-Forwarded-For: 203.0.113.9
        X-Forwarded-Proto: https
        """,
    ),
    "behind-apache": (
        "From the documentation: https://httpd.apache.org/docs/2.4/mod/mod_proxy.html#x-headers",
        f"""
        X-Forwarded-For: 203.0.113.9
        X-Forwarded-Host: {HOST}
        X-Forwarded-Server: {HOST}
        """,
    ),
}


def main():
    missing = [
        name for name in ("curl", "node", "java", "nginx", "haproxy") if not shutil.which(name)
    ]
    if missing or not chromium.find():
        sys.exit(f"not installed: {', '.join(missing) or 'chromium'}")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    stub, page = Stub(), Stub()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        record_programs(stub, folder)
        cross, to = record_chromium(stub, page, folder)
        record_proxies(stub, cross, to, folder)
    for name, (source, text) in DOCUMENTED.items():
        write(name, source, fields_of(text))
    of_hop = {"connection"}
    for name, (source, text) in BEHIND.items():
        browser = [field for field in cross if field[0].lower() not in of_hop]
        write(
            name,
            f"{source}\nadded to the fields of chromium-cross-origin.txt",
            browser + fields_of(text),
            to,
        )


if __name__ == "__main__":
    main()
