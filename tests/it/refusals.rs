//! Every request that the gateway refuses gets an error in the API's shape and a request id, and is
//! counted and logged, on every protocol.

use std::io::{Read, Write};

use crate::support::*;

const DUCK: &str = "73469a52f4fd7f77ec7b28cc";

/// Asserts that a refusal has the API's shape and an id, and that its access line agrees with it.
#[track_caller]
fn assert_recorded(gateway: &Gateway, response: &Response, status: u16, route: &str) {
    let json = response.assert_status(status).json();
    assert_eq!(json["error"]["status"], status, "{response:#?}");
    assert!(
        json["error"]["code"].is_string() && json["error"]["message"].is_string(),
        "{response:#?}"
    );
    let id = response.header("x-request-id").expect("a request id").to_owned();
    assert_eq!(json["error"]["requestId"], id.as_str(), "{response:#?}");
    gateway.wait_for_log(&id);
    let log = gateway.log();
    let line = log
        .lines()
        .find(|line| line.contains(&id) && line.contains("\"http.route\""))
        .expect("an access line");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["http.route"], route, "{line}");
    assert_eq!(line["http.response.status_code"], status, "{line}");
    assert_eq!(line["http.response.body.size"], response.body.len(), "{line}");
    assert_eq!(line["error.code"], json["error"]["code"], "{line}");
    assert_eq!(line["cause"].is_string(), status == 400, "{line}");
}

#[test]
fn refusals_over_http1_are_recorded() {
    let origin = Origin::start();
    let gateway = Gateway::with(
        &origin,
        "server.header_timeout = \"1s\"\nserver.max_header_bytes = \"4KiB\"",
    );
    let many = "X: 1\r\n".repeat(100);
    let long = "x".repeat(5000);
    let requests = [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            "none",
        ),
        ("GET / HTTP/1.1\r\n\r\n", 400, "none"),
        ("GET / HTTP/1.1\nHost: a\n\n", 400, "none"),
        ("GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", 400, "none"),
        ("GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "none"),
        ("GET /x HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400, "none"),
        ("GET /x HTTP/1.1\r\nHost: a\r\nConnection: authorization\r\n\r\n", 400, "none"),
        ("GET /x HTTP/1.1\r\nHost: a\r\nX_Api_Key: 1\r\n\r\n", 400, "none"),
        ("GET /x HTTP/1.1\r\nHost: a\r\nX-API-Key: 1\r\nX-API-Key: 2\r\n\r\n", 400, "none"),
        ("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "none"),
        ("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "none"),
        (
            "PROXY TCP4 198.51.100.7 10.0.0.1 51234 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "none",
        ),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "none"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405, "none"),
        (&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431, "none"),
        (&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431, "none"),
        (&format!("GET /{long}"), 431, "none"),
        ("GET /customer//x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "blocked"),
        ("GET /tools/realtime HTTP/1.1\r\nHost: a\r\n\r\n", 403, "blocked"),
    ];
    let counted = || gateway.metric("requests_total", &[]);
    let before = counted();
    for (request, status, route) in requests {
        let mut connection = gateway.client().connect();
        connection.send_raw(request);
        let response = connection
            .read("GET", Kind::Forwarded)
            .unwrap_or_else(|| panic!("no answer to {request:?}"));
        assert_recorded(&gateway, &response, status, route);
    }
    wait_until("each is counted", || counted() >= before + requests.len() as f64);
    assert_eq!(counted(), before + requests.len() as f64);
}

#[test]
fn refusals_over_http2_are_recorded() {
    let origin = Origin::start();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;
    let gateway = setup.config(tls).start();
    let many: Vec<(String, &str)> = (0..101).map(|number| (format!("x-{number}"), "1")).collect();
    let many: Vec<(&str, &str)> =
        many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let disguised: &[(&str, &str)] = &[("x_api_key", "1")];
    let two: &[(&str, &str)] = &[("x-api-key", "1"), ("x-api-key", "2")];
    for connection in [
        Http2::connect(&gateway.client()),
        Http2::connect_tls(&gateway.client(), gateway.tls_address(), &authority),
    ] {
        for (method, target, fields, status, route) in [
            ("GET", "/x", many.as_slice(), 431, "none"),
            ("GET", "/x", disguised, 400, "none"),
            ("GET", "/x", two, 400, "none"),
            ("TRACE", "/x", &[], 405, "none"),
            ("GET", "/customer//x", &[], 400, "blocked"),
            ("GET", "/tools/realtime", &[], 403, "blocked"),
        ] {
            let response = connection.call(method, target, fields, b"").expect("an answer");
            assert_recorded(&gateway, &response, status, route);
        }
    }
}

#[test]
fn request_without_tls_to_the_tls_port_is_recorded() {
    let origin = Origin::start();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;
    let gateway = setup.config(tls).start();
    let mut stream = std::net::TcpStream::connect(gateway.tls_address()).expect("a connection");
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").expect("an open connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, and the end");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("requires TLS"), "{answer}");
    gateway.wait_for_metric("requests_total", &[("route", "none"), ("status", "400")], 1.0);
    gateway.wait_for_metric("tls_handshake_failures_total", &[("reason", "protocol")], 1.0);
}

#[test]
fn head_that_times_out_is_recorded_as_408() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "server.header_timeout = \"1s\"");
    let mut connection = gateway.client().connect();
    connection.send_raw("POST /x HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(connection.rest(), b"", "no response");
    let labels = [("route", "none"), ("status", "408"), ("method", "POST")];
    gateway.wait_for_metric("requests_total", &labels, 1.0);
    gateway.wait_for_log("request_timeout");
}

#[test]
fn connections_beyond_the_limit_are_recorded() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "server.max_connections = 1");
    let client = gateway.client();
    let mut held = client.connect();
    client.get("/x").send_on(&mut held).assert_status(200);
    assert_recorded(&gateway, &client.get("/x").send(), 503, "none");
    // A client that sends nothing is answered too.
    let silent = client.connect().read("GET", Kind::Forwarded).expect("an answer");
    assert_recorded(&gateway, &silent, 503, "none");
    let http2 = Http2::connect(&client).call("POST", "/x", &[], b"body").expect("an answer");
    assert_recorded(&gateway, &http2, 503, "none");
}

/// RFC 9110 section 9.3.2.
#[test]
fn refused_head_request_has_no_body_over_http1() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for head in [
        "HEAD /x` HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /x HTTP/1.1\r\n\r\n",
        "HEAD /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HEAD /customer//x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        let mut connection = gateway.client().connect();
        connection.send_raw(head);
        let bytes = connection.rest();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert!(
            bytes.starts_with(b"HTTP/1.1 400"),
            "{head:?}: {:?}",
            bytes.escape_ascii().to_string()
        );
        assert_eq!(bytes[end..].escape_ascii().to_string(), "", "{head:?}");
    }
}
