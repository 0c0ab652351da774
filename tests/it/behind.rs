//! The shipped edge snippets with TLS for nginx, HAProxy and Envoy, in front of a gateway.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::support::*;

const NAME: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// A running edge.
struct Edge {
    _process: Running,
    address: SocketAddr,
    authority: Authority,
    _dir: TempDir,
}

/// A process that this test started and that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// `None` if the program is not installed.
    fn start(command: &mut Command, address: SocketAddr) -> Option<Running> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running(quiet.spawn().ok()?);
        wait_until(&format!("{command:?} listens"), || {
            assert!(
                running.0.try_wait().expect("its state").is_none(),
                "{command:?} did not start"
            );
            TcpStream::connect(address).is_ok()
        });
        Some(running)
    }
}

fn snippet(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/edge/");
    std::fs::read_to_string(format!("{path}{name}")).expect("a shipped file")
}

/// Replaces values that differ between hosts. Each must exist, or the snippet has changed.
fn adapted(mut text: String, changes: &[(&str, String)]) -> String {
    for (from, to) in changes {
        assert!(text.contains(from), "the snippet has no {from:?}");
        text = text.replace(from, to);
    }
    text
}

impl Edge {
    fn start(program: &str, gateway: &Gateway) -> Option<Edge> {
        let (dir, authority, address) = (TempDir::new(), Authority::new(), unused_port());
        let (certificate, key) = authority.certificate().pem();
        let cert = dir.write("cert.pem", &certificate).display().to_string();
        let key_file = dir.write("key.pem", &key).display().to_string();
        let both = dir.write("both.pem", &format!("{certificate}{key}")).display().to_string();
        let public = gateway.public_address().to_string();
        let mut command = Command::new(program);
        if program == "envoy" {
            let port = |address: SocketAddr| format!("port_value: {}", address.port());
            let changes = [
                (
                    "address: 0.0.0.0, port_value: 443",
                    format!("address: 127.0.0.1, {}", port(address)),
                ),
                ("port_value: 8080", port(gateway.public_address())),
                ("port_value: 9090", port(gateway.admin_address())),
                ("/etc/ssl/gateway/cert.pem", cert),
                ("/etc/ssl/gateway/key.pem", key_file),
            ];
            let config = dir.write("envoy.yaml", &adapted(snippet("envoy.yaml"), &changes));
            // Several Envoys of one machine share memory unless each has its own id.
            let id = ["--use-dynamic-base-id", "--concurrency", "1"];
            command.args(id).arg("-c").arg(config);
        } else if program == "nginx" {
            let changes = [
                ("listen 443", format!("listen {address}")),
                ("127.0.0.1:8080", public),
                ("/etc/ssl/gateway/cert.pem", cert),
                ("/etc/ssl/gateway/key.pem", key_file),
            ];
            let config = in_nginx(&dir, &adapted(snippet("nginx.conf"), &changes));
            command.arg("-p").arg(dir.path()).arg("-c").arg(config);
        } else {
            let changes = [
                ("bind :443", format!("bind {address}")),
                ("127.0.0.1:8080", public),
                ("port 9090", format!("port {}", gateway.admin_address().port())),
                ("/etc/ssl/gateway/both.pem", both),
            ];
            let config = dir.write("haproxy.cfg", &adapted(snippet("haproxy.cfg"), &changes));
            command.arg("-db").arg("-f").arg(config);
        }
        let process = Running::start(&mut command, address)?;
        Some(Edge { _process: process, address, authority, _dir: dir })
    }

    /// Sends one request on a new connection.
    fn ask(&self, request: &str) -> String {
        let request =
            request.replacen("\r\n", "\r\nHost: localhost\r\nConnection: close\r\n", 1) + "\r\n";
        self.authority.exchange(self.address, &request).expect("an answer")
    }
}

/// A configuration for one nginx process without workers, with all its files in that folder.
fn in_nginx(dir: &TempDir, servers: &str) -> std::path::PathBuf {
    let at = dir.path().display();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String =
        kinds.iter().map(|kind| format!("{kind}_temp_path {at}/{kind};\n")).collect();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr; events {{}}\n\
         http {{ access_log off;\n{temporary}{servers}}}\n"
    );
    dir.write("nginx.conf", &config)
}

/// Reads until the text arrives.
fn read_until(stream: &mut impl Read, needle: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(needle) {
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).expect("bytes"),
            1,
            "connection closed after {}",
            String::from_utf8_lossy(&read)
        );
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn serves_through(program: &str) {
    let origin = Origin::start();
    origin.knows("a-token", "RESELLER", "73469a52f4fd7f77ec7b28cc");
    let gateway = Gateway::start(&origin);
    let Some(edge) = Edge::start(program, &gateway) else {
        println!("skipped: behind::{program}: {program} is not installed");
        return;
    };
    // HAProxy and Envoy use a server after a successful health check.
    wait_until("the edge forwards requests", || {
        edge.ask("GET /ready HTTP/1.1\r\n").starts_with("HTTP/1.1 200")
    });

    // The gateway trusts the edge, and the edge replaces the fields of the client.
    edge.ask(
        "GET /elsewhere HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: gopher\r\n",
    );
    let seen = origin.last("/elsewhere").expect("a forwarded request");
    let addresses = seen.header("x-forwarded-for").expect("addresses");
    assert!(!addresses.contains("203.0.113.7"), "{addresses}");
    // Envoy writes its own address in place of a loopback one.
    assert!(addresses.starts_with("127.0.0.1") || program == "envoy", "{addresses}");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));

    // A miss and a hit on a kept connection.
    let mut connection = edge.authority.connect(edge.address).expect("a connection");
    for expected in ["fwd=uri-miss", "hit"] {
        let request = format!(
            "GET {NAME} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a-token\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).expect("a write");
        let answer = read_until(&mut connection, "\r\n\r\n").to_ascii_lowercase();
        assert!(
            answer.starts_with("http/1.1 200") && answer.contains(expected),
            "{program}: {answer}"
        );
        assert!(!answer.contains("connection: close"), "{program}: {answer}");
        let length = answer
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .expect("a length");
        let mut body = vec![0; length.trim().parse().expect("a number")];
        connection.read_exact(&mut body).expect("the body");
    }

    // The edge does not decode a path, and the gateway refuses the encoded one.
    let refused = edge.ask(&format!("GET {}%65 HTTP/1.1\r\n", NAME.trim_end_matches('e')));
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("bad_request"),
        "{program}: {refused}"
    );

    // WebSocket.
    origin.when(Rule::on("/socket.io/").upgrade());
    let mut socket = edge.authority.connect(edge.address).expect("a connection");
    socket
        .write_all(
            b"GET /socket.io/?transport=websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
              Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .expect("a write");
    let switched = read_until(&mut socket, "\r\n\r\n");
    assert!(switched.starts_with("HTTP/1.1 101"), "{program}: {switched}");
    for word in ["there ", "and back"] {
        socket.write_all(word.as_bytes()).expect("a write");
        read_until(&mut socket, word);
    }
}

#[test]
fn nginx_snippet_forwards_requests_and_upgrades() {
    serves_through("nginx");
}

#[test]
fn haproxy_snippet_forwards_requests_and_upgrades() {
    serves_through("haproxy");
}

/// The gateway terminates TLS behind HAProxy, which states the client's address in a PROXY header.
#[test]
fn haproxy_in_tcp_mode_states_the_client_address() {
    for version in ["send-proxy-v2", "send-proxy"] {
        let origin = Origin::start();
        let authority = Authority::new();
        let (certificate, key) = authority.certificate().pem();
        let setup = Gateway::set_up(&origin).file("c.pem", &certificate).file("k.pem", &key);
        let gateway = setup
            .config(
                r#"[server]
                proxy_protocol = ["127.0.0.1"]
                trusted_proxies = []
                tls = { listen = ["{tls}"], cert_file = "{dir}/c.pem", key_file = "{dir}/k.pem" }"#,
            )
            .start();
        let (dir, address) = (TempDir::new(), unused_port());
        let changes = [
            ("bind :443", format!("bind {address}")),
            ("127.0.0.1:8443 ", format!("{} ", gateway.tls_address())),
            ("port 9090", format!("port {}", gateway.admin_address().port())),
            ("send-proxy-v2", version.to_owned()),
        ];
        let config = dir.write("haproxy.cfg", &adapted(snippet("haproxy-tcp.cfg"), &changes));
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(config);
        let Some(_haproxy) = Running::start(&mut command, address) else {
            println!("skipped: behind::haproxy: haproxy is not installed");
            return;
        };
        let request = "GET /tcp HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.7\r\nConnection: close\r\n\r\n";
        wait_until("HAProxy passes connections on", || {
            let response = authority.exchange_from([127, 0, 0, 2], address, request);
            response.is_ok_and(|response| response.starts_with("HTTP/1.1 200"))
        });
        let seen = origin.last("/tcp").expect("it was forwarded");
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.2"), "{version}");
    }
}

#[test]
fn envoy_snippet_forwards_requests_and_upgrades() {
    serves_through("envoy");
}

#[test]
fn status_page_snippet_requires_a_password() {
    let origin = Origin::start();
    let setup =
        Gateway::set_up(&origin).file("admin-token", "tok-operator\n").admin_token("tok-operator");
    let gateway = setup.config(r#"admin.token_file = "{dir}/admin-token""#).start();
    let (dir, address) = (TempDir::new(), unused_port());
    // From `openssl passwd -apr1 -salt saltsalt secret`.
    let users = dir.write("htpasswd", "operator:$apr1$saltsalt$LrttParrLPdxvgutaSXWJ0\n");
    let token = dir.write("token", "proxy_set_header Authorization \"Bearer tok-operator\";\n");
    let changes = [
        ("listen 127.0.0.1:9091", format!("listen {address}")),
        ("127.0.0.1:9090", gateway.admin_address().to_string()),
        ("/etc/nginx/telecomx-gateway.htpasswd", users.display().to_string()),
        ("/etc/nginx/telecomx-gateway-token", token.display().to_string()),
    ];
    let config = in_nginx(&dir, &adapted(snippet("status-page.conf"), &changes));
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir.path()).arg("-c").arg(config);
    let Some(_nginx) = Running::start(&mut command, address) else {
        println!("skipped: behind::nginx: nginx is not installed");
        return;
    };
    let ask = |line: &str, fields: &str| {
        let mut stream = TcpStream::connect(address).expect("a connection");
        let request =
            format!("{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).expect("a write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    // operator:secret
    let known = "Authorization: Basic b3BlcmF0b3I6c2VjcmV0\r\n";
    assert!(ask("GET /", "").starts_with("HTTP/1.1 401"));
    let page = ask("GET /", known);
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("script-src 'nonce-"), "{page}");
    let own = ask("DELETE /cache", &format!("{known}Origin: http://{address}\r\n"));
    assert!(own.starts_with("HTTP/1.1 200"), "{own}");
    // A browser sends the password with requests of other pages too.
    let foreign = ask(
        "POST /reload",
        &format!("{known}Content-Length: 0\r\nOrigin: https://page.example\r\n"),
    );
    assert!(foreign.starts_with("HTTP/1.1 403"), "{foreign}");
}
