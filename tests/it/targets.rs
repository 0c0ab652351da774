//! Request targets: every byte and length gets the API's response or an error in its shape, and
//! what the gateway does not interpret is forwarded byte for byte.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"server.max_header_bytes = "128KiB""#);
    (origin, gateway)
}

/// One request on a new connection; the line ends in `HTTP/1.1` or `HTTP/1.0`.
fn raw(gateway: &Gateway, line: &str, fields: &str) -> Response {
    let mut connection = gateway.client().connect();
    connection.send_raw(format!("{line}\r\n{fields}\r\n").as_bytes());
    connection.read("GET", Kind::Forwarded).unwrap_or_else(|| panic!("no response to {line:?}"))
}

fn requests(gateway: &Gateway) -> f64 {
    gateway.metric("requests_total", &[])
}

#[test]
fn every_byte_of_a_target_gets_a_response_in_shape() {
    let (origin, gateway) = scene();
    let (before, mut sent) = (requests(&gateway), 0.0);
    for byte in b'!'..=b'~' {
        let byte = char::from(byte);
        for target in [
            format!("/x{byte}y"),
            format!("/x?q={byte}y"),
            format!("{P}?q={byte}"),
            format!("{P}{byte}"),
        ] {
            let seen = origin.requests();
            let response =
                raw(&gateway, &format!("GET {target} HTTP/1.1"), "Host: a\r\nX-API-Key: tok-a\r\n");
            sent += 1.0;
            assert!(response.header("x-request-id").is_some(), "{target}: {response:#?}");
            if response.status != 200 {
                response.assert_error(400, "bad_request");
                assert_eq!(origin.requests(), seen, "{target}");
            }
        }
    }
    assert_eq!(requests(&gateway) - before, sent);
}

#[test]
fn target_of_about_64_kib_gets_a_response_in_shape() {
    let (_origin, gateway) = scene();
    let before = requests(&gateway);
    for length in [65_533, 65_534, 65_535, 65_536, 65_600] {
        for start in ["/x?", &format!("{P}?q=")] {
            let target = format!("{start}{}", "x".repeat(length - start.len()));
            let response =
                raw(&gateway, &format!("GET {target} HTTP/1.1"), "Host: a\r\nX-API-Key: tok-a\r\n");
            if response.status != 200 {
                response.assert_error(414, "bad_request");
            }
            assert_eq!(response.status == 200, length <= 65_534, "{length}");
        }
    }
    assert_eq!(requests(&gateway) - before, 10.0);
}

#[test]
fn query_of_a_plain_route_is_forwarded_byte_for_byte() {
    let (origin, gateway) = scene();
    let http2 = Http2::connect(&gateway.client());
    for query in
        ["q=100%", "a=%u00e6", "%", "%%%=%zz", "a=%00", "?&&=", "filter={[|^`]}", "token=%"]
    {
        let target = format!("/x?{query}");
        raw(&gateway, &format!("GET {target} HTTP/1.1"), "Host: a\r\n").assert_status(200);
        assert_eq!(origin.last("/x").expect("it was forwarded").target, target);
        let target = format!("/y?{query}");
        http2.call("GET", &target, &[], b"").expect("a response").assert_status(200);
        assert_eq!(origin.last("/y").expect("it was forwarded").target, target);
    }
    let seen = origin.requests();
    for path in [P, "/customer/7", "/auth/logout", "/log/changelog"] {
        for query in ["token=%", "q=100%"] {
            let target = format!("{path}?{query}");
            raw(&gateway, &format!("GET {target} HTTP/1.1"), "Host: a\r\n")
                .assert_error(400, "bad_request");
            http2
                .call("GET", &target, &[], b"")
                .expect("a response")
                .assert_error(400, "bad_request");
        }
    }
    assert_eq!(origin.requests(), seen);
}

#[test]
fn absolute_target_of_the_same_authority_is_forwarded() {
    let (origin, gateway) = scene();
    for (line, fields, forwarded) in [
        ("GET http://a:80/x HTTP/1.1", "Host: a\r\n", "/x"),
        ("GET http://a/x HTTP/1.1", "Host: a:80\r\n", "/x"),
        ("GET HTTPS://A:443/x?y HTTP/1.1", "Host: a\r\n", "/x?y"),
        ("GET http://a?x=1 HTTP/1.1", "Host: a\r\n", "/?x=1"),
        ("GET http://a HTTP/1.1", "Host: a\r\n", "/"),
        ("GET http://b:8080/x HTTP/1.0", "", "/x"),
        ("GET http://a:80/x HTTP/1.0", "Host: a\r\n", "/x"),
    ] {
        raw(&gateway, line, fields).assert_status(200);
        let path = forwarded.split('?').next().expect("a path");
        assert_eq!(origin.last(path).expect("it was forwarded").target, forwarded, "{line}");
    }
    let seen = origin.requests();
    for (line, fields) in [
        ("GET http://a:81/x HTTP/1.1", "Host: a\r\n"),
        ("GET http://b/x HTTP/1.1", "Host: a\r\n"),
        ("GET https://a/x HTTP/1.1", "Host: a:80\r\n"),
        ("GET http://u@a/x HTTP/1.1", "Host: a\r\n"),
        ("GET http://a/tools%2Frealtime HTTP/1.1", "Host: a\r\n"),
        ("GET http://a/tools//realtime HTTP/1.0", ""),
    ] {
        raw(&gateway, line, fields).assert_error(400, "bad_request");
    }
    raw(&gateway, "GET http://b/tools/realtime HTTP/1.0", "").assert_error(403, "access_denied");
    assert_eq!(origin.requests(), seen);
}
