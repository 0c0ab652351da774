//! PROXY headers of load balancers: required from listed peers, refused from all others, over
//! HTTP/1.1, HTTP/2 and TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::*;

const NAME: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const DUCK: &str = "73469a52f4fd7f77ec7b28cc";
const CLIENT: &str = "198.51.100.7";
const LISTED: &str = "proxy_protocol = [\"127.0.0.0/8\"]";
const TLS: &str =
    r#"tls = { listen = ["{tls}"], cert_file = "{dir}/c.pem", key_file = "{dir}/k.pem" }"#;

/// Header of version 1 for [`CLIENT`].
const V1: &[u8] = b"PROXY TCP4 198.51.100.7 10.0.0.1 51234 80\r\n";

/// Header of version 2: command, address family and payload.
fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &length, payload].concat()
}

/// Header of version 2 for [`CLIENT`], with two extensions.
fn v2_of_client() -> Vec<u8> {
    let block = [198, 51, 100, 7, 10, 0, 0, 1, 0xc8, 0x22, 0, 80];
    v2(1, 0x11, &[&block[..], &[4, 0, 2, 0, 0], &[0xea, 0, 3, 1, 2, 3]].concat())
}

/// Header of version 2 for an IPv4-mapped address, the one of [`CLIENT`].
fn v2_of_mapped_client() -> Vec<u8> {
    let source = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 7];
    v2(1, 0x21, &[&source[..], &[0; 16], &[0xc8, 0x22, 0, 80]].concat())
}

fn scene(server: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, &format!("[server]\n{server}"));
    (origin, gateway)
}

fn scene_with_tls(server: &str) -> (Origin, Gateway, Authority) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let setup = Gateway::set_up(&origin).file("c.pem", &certificate).file("k.pem", &key);
    let gateway = setup.config(&format!("[server]\n{TLS}\n{server}")).start();
    (origin, gateway, authority)
}

/// The value of `X-Forwarded-For` that the API received for this path.
fn forwarded_for(origin: &Origin, path: &str) -> String {
    let seen = origin.last(path).expect("a request");
    seen.header("x-forwarded-for").expect("an address").to_owned()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer tok-a\r\n\r\n")
}

/// Sends bytes in pieces of `step` on a new connection and reads the response to a GET.
fn send(gateway: &Gateway, bytes: &[u8], step: usize) -> Option<Response> {
    let mut connection = gateway.client().connect();
    for piece in bytes.chunks(step) {
        connection.send_raw(piece);
    }
    connection.read("GET", Kind::Forwarded)
}

#[test]
fn header_of_a_listed_peer_sets_the_client_address() {
    for listed in
        [LISTED, "proxy_protocol = [\"::ffff:127.0.0.0/104\"]", "proxy_protocol = [\"127.0.0.1\"]"]
    {
        let (origin, gateway) = scene(listed);
        let headers = [
            V1.to_vec(),
            v2_of_client(),
            v2_of_mapped_client(),
            b"PROXY TCP6 ::ffff:198.51.100.7 ::1 1 2\r\n".to_vec(),
        ];
        for (number, header) in headers.into_iter().enumerate() {
            for step in [1, 7, 1000] {
                let path = format!("/x/{number}-{step}");
                let response = send(&gateway, &[&header[..], get(&path).as_bytes()].concat(), step);
                response.expect("a response").assert_status(200);
                assert_eq!(forwarded_for(&origin, &path), CLIENT, "{listed}: {path}");
            }
        }
        // Further requests of the connection have the same client.
        let mut connection = gateway.client().connect();
        connection.send_raw([V1, get("/first").as_bytes()].concat());
        connection.read("GET", Kind::Forwarded).expect("a response").assert_status(200);
        connection.send_raw(get("/second"));
        connection.read("GET", Kind::Forwarded).expect("a response").assert_status(200);
        assert_eq!(forwarded_for(&origin, "/second"), CLIENT);
    }
}

#[test]
fn address_of_a_header_is_no_trusted_proxy() {
    let (origin, gateway) = scene(LISTED);
    let request = get("/x")
        .replace("\r\n\r\n", "\r\nX-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\n\r\n");
    send(&gateway, &[V1, request.as_bytes()].concat(), 1000)
        .expect("a response")
        .assert_status(200);
    assert_eq!(forwarded_for(&origin, "/x"), CLIENT);
    assert_eq!(origin.last("/x").expect("a request").header("x-real-ip"), None);
    // A header may also state a trusted proxy, whose field is trusted.
    let (origin, gateway) = scene(&format!("{LISTED}\ntrusted_proxies = [\"198.51.100.0/24\"]"));
    send(&gateway, &[V1, request.as_bytes()].concat(), 1000)
        .expect("a response")
        .assert_status(200);
    assert_eq!(forwarded_for(&origin, "/x"), "203.0.113.9, 198.51.100.7");
}

#[test]
fn header_without_an_address_keeps_the_peer_address() {
    let (origin, gateway) = scene(LISTED);
    let headers = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(),
        v2(0, 0, &[]),
        v2(0, 0x11, &[1, 2, 3]),
        v2(1, 0, &[4, 0, 1, 0]),
    ];
    for (number, header) in headers.iter().enumerate() {
        let path = format!("/x/{number}");
        let response = send(&gateway, &[header, get(&path).as_bytes()].concat(), 1000);
        response.expect("a response").assert_status(200);
        assert_eq!(forwarded_for(&origin, &path), "127.0.0.1", "{number}");
    }
}

#[test]
fn header_works_on_every_protocol() {
    let (origin, gateway, authority) = scene_with_tls(LISTED);
    let client = gateway.client();
    let tls = gateway.tls_address();
    for header in [V1.to_vec(), v2_of_client()] {
        for connection in [
            Http2::connect_behind(&client, &header),
            Http2::connect_tls_behind(&client, tls, &authority, &header),
        ] {
            connection.get("/h2", "tok-a").assert_status(200);
            connection.get(NAME, "tok-a").assert_status(200);
            assert_eq!(forwarded_for(&origin, "/h2"), CLIENT);
        }
        let mut stream = TcpStream::connect(tls).expect("a connection");
        stream.write_all(&header).expect("an open connection");
        let mut stream = authority.connect_over(stream);
        let request = get("/tls").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("an open connection");
        let mut response = String::new();
        let _ = stream.read_to_string(&mut response);
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        assert_eq!(forwarded_for(&origin, "/tls"), CLIENT);
    }
    // The intercepted route has the fast path and the ordinary path.
    for _ in 0..2 {
        send(&gateway, &[V1, get(NAME).as_bytes()].concat(), 1000)
            .expect("a response")
            .assert_status(200);
    }
}

#[test]
fn listed_peer_without_a_header_gets_400() {
    let (origin, gateway) = scene(LISTED);
    for bytes in [
        get("/x").into_bytes(),
        b"PROXY TCP4 198.51.100.7 10.0.0.1 1\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"PROXY UDP4 198.51.100.7 10.0.0.1 1 2\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
        [v2(2, 0x11, &[0; 12]), get("/x").into_bytes()].concat(),
        v2(1, 0x11, &[0; 5000]),
    ] {
        let response = send(&gateway, &bytes, 1000).expect("a response");
        response.assert_error(400, "bad_request");
        let id = response.header("x-request-id").expect("an id").to_owned();
        gateway.wait_for_log(&id);
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains(&id)).expect("a line");
        assert!(line.contains(r#""cause":"missing_proxy_header""#), "{line}");
    }
    // A second header is a malformed request.
    let twice = [V1, V1, get("/x").as_bytes()].concat();
    send(&gateway, &twice, 1000).expect("a response").assert_error(400, "bad_request");
    assert_eq!(origin.count(|seen| seen.path() == "/x"), 0);
}

#[test]
fn header_of_another_peer_gets_400_with_its_cause() {
    for server in ["", "proxy_protocol = [\"10.0.0.0/8\"]"] {
        let (origin, gateway, _authority) = scene_with_tls(server);
        let addresses = [gateway.public_address(), gateway.tls_address()];
        for (address, header) in
            addresses.iter().flat_map(|address| [(address, V1.to_vec()), (address, v2_of_client())])
        {
            let response = exchange(*address, &[&header[..], get("/x").as_bytes()].concat());
            assert!(response.starts_with("HTTP/1.1 400 "), "{address}: {response}");
            let id = response
                .split("x-request-id: ")
                .nth(1)
                .and_then(|rest| rest.lines().next())
                .expect("an id");
            gateway.wait_for_log(id);
            let log = gateway.log();
            let line = log.lines().find(|line| line.contains(id)).expect("a line");
            assert!(line.contains(r#""cause":"unexpected_proxy_header""#), "{line}");
            assert!(line.contains(r#""http.route":"none""#), "{line}");
        }
        let log = gateway.log();
        let warning = log.lines().find(|line| line.contains("because of their PROXY header"));
        assert!(warning.is_some_and(|line| line.contains("127.0.0.1")), "{log}");
        // Empty lines in front of a request are permitted.
        send(&gateway, &[b"\r\n\r\n", get("/y").as_bytes()].concat(), 1)
            .expect("a response")
            .assert_status(200);
        assert_eq!(origin.count(|seen| seen.path() == "/x"), 0);
    }
}

/// Sends bytes and returns everything that is received until the peer closes.
fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(bytes).expect("an open connection");
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn connection_without_a_header_ends_in_time() {
    let (_origin, gateway) = scene(&format!("{LISTED}\nheader_timeout = \"1s\""));
    for start in [&b""[..], b"PROXY TCP4 198", &v2_of_client()[..20]] {
        let mut connection = gateway.client().connect();
        connection.send_raw(start);
        assert_eq!(connection.rest(), b"", "no response to a part of a header");
    }
    gateway.wait_for_metric("requests_total", &[("route", "none"), ("status", "408")], 2.0);
}

#[test]
fn drain_ends_connections_that_wait_for_a_header() {
    let (_origin, mut gateway) =
        scene(&format!("{LISTED}\nheader_timeout = \"5m\"\ndrain = \"30s\""));
    let mut waiting = gateway.client().connect();
    let began = std::time::Instant::now();
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(waiting.rest(), b"");
}

#[test]
fn limits_count_the_address_of_the_header() {
    let (_origin, gateway) = scene(&format!("{LISTED}\nmax_connections_per_address = 1"));
    let header = |last: u8| format!("PROXY TCP4 198.51.100.{last} 10.0.0.1 1 2\r\n{}", get("/x"));
    let mut first = gateway.client().connect();
    first.send_raw(header(1));
    first.read("GET", Kind::Forwarded).expect("a response").assert_status(200);
    let second = send(&gateway, header(1).as_bytes(), 1000).expect("a response");
    second.assert_error(503, "unavailable");
    send(&gateway, header(2).as_bytes(), 1000).expect("a response").assert_status(200);
    gateway.wait_for_metric(
        "connections_refused_total",
        &[("reason", "connections_per_address")],
        1.0,
    );
}

#[test]
fn refused_connection_with_a_header_gets_503() {
    let (_origin, gateway) = scene(&format!("{LISTED}\nmax_connections = 1"));
    let mut first = gateway.client().connect();
    first.send_raw([V1, get("/x").as_bytes()].concat());
    first.read("GET", Kind::Forwarded).expect("a response").assert_status(200);
    let second = send(&gateway, &[V1, get("/x").as_bytes()].concat(), 1000).expect("a response");
    second.assert_error(503, "unavailable");
}

#[test]
fn reload_changes_the_listed_peers() {
    let (origin, gateway) = scene("");
    send(&gateway, get("/before").as_bytes(), 1000).expect("a response").assert_status(200);
    let config = std::fs::read_to_string(gateway.config_file()).expect("the configuration");
    gateway.rewrite("gateway.toml", &config.replace("[server]", &format!("[server]\n{LISTED}")));
    gateway.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the header is required", || {
        let response = send(&gateway, &[V1, get("/after").as_bytes()].concat(), 1000);
        response.is_some_and(|response| response.status == 200)
    });
    assert_eq!(forwarded_for(&origin, "/after"), CLIENT);
}
