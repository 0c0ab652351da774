//! Bytes behind a request: the next request, answered in order; an empty line, ignored; or the rest
//! of a large upload, read for a while so that no reset overtakes the gateway's own response.

use std::thread;

use crate::support::*;

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

#[test]
fn pipelined_requests_get_responses_in_order_on_every_route() {
    let (origin, gateway) = scene();
    let client = gateway.client();
    for target in [name_of(DUCK), "/x".to_owned(), "/customer/list".to_owned()] {
        for warm in [false, true] {
            let mut connection = client.connect();
            let calls = [
                client.get(&target).bearer("tok-a"),
                client.get("/x/second"),
                client.post("/x/third").body("hello"),
                client.post("/customer/fourth").bearer("tok-a").chunked(&[b"a", b"b"]),
                client.get(&target).bearer("tok-a"),
            ];
            let bytes: Vec<u8> = calls.iter().flat_map(Call::bytes).collect();
            connection.send_raw(&bytes);
            for (number, target) in
                [&target, "/x/second", "/x/third", "/customer/fourth", &target].iter().enumerate()
            {
                let kind =
                    if target.ends_with("/name") { Kind::Intercepted } else { Kind::Forwarded };
                let response = connection
                    .read("GET", kind)
                    .unwrap_or_else(|| panic!("{number} {target} {warm}"));
                let json = response.assert_status(200).json();
                let own = if target.ends_with("/name") {
                    json["_id"] == DUCK
                } else {
                    json["target"] == **target
                };
                assert!(own, "{number} {target}: {response:#?}");
            }
        }
    }
    assert_eq!(origin.last("/x/third").expect("forwarded").body, b"hello");
    assert_eq!(origin.last("/customer/fourth").expect("forwarded").body, b"ab");
}

/// The head in two pieces makes the buffer of the connection larger than for a usual request.
#[test]
fn request_that_arrives_during_a_fetch_gets_its_response() {
    let (origin, gateway) = scene();
    let gate = Gate::closed();
    origin.when(Rule::on(&name_of(DUCK)).hold(&gate));
    let first = gateway.client().get(&name_of(DUCK)).bearer("tok-a").bytes();
    let (start, rest) = first.split_at(first.len() / 2);
    let mut connection = gateway.client().connect();
    connection.send_raw(start);
    connection.wait_until_read();
    connection.send_raw(rest);
    origin
        .wait_until("the fetch began", |seen| seen.iter().any(|seen| seen.path() == name_of(DUCK)));
    connection.send_raw(gateway.client().get("/x/second").bytes());
    connection.wait_until_read();
    gate.open();
    connection.read("GET", Kind::Intercepted).expect("a response").assert_status(200);
    let second = connection.read("GET", Kind::Forwarded).expect("a second response");
    assert_eq!(second.assert_status(200).json()["target"], "/x/second");
}

/// Java's HttpClient asks for h2c with its first request.
#[test]
fn upload_that_asks_for_h2c_keeps_its_connection() {
    let (origin, gateway) = scene();
    for target in ["/x/a", "/customer/a"] {
        for body in [
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            let mut connection = gateway.client().connect();
            connection.send_raw(format!("POST {target} HTTP/1.1\r\nHost: a\r\n{H2C}{body}"));
            connection.read("POST", Kind::Forwarded).expect("a response").assert_status(200);
            connection.send_raw(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            connection.read("GET", Kind::Forwarded).expect("a second response").assert_status(200);
            assert_eq!(origin.last(target).expect("forwarded").method, "GET");
        }
    }
}

/// What follows the request is meant for the protocol that was asked for, and is no request of
/// HTTP/1.1.
#[test]
fn bytes_behind_a_declined_upgrade_are_not_another_request() {
    let (origin, gateway) = scene();
    for target in ["/x/declined", "/customer/declined"] {
        for body in [
            "\r\n",
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let mut connection = gateway.client().connect();
            connection.send_raw(format!(
                "POST {target} HTTP/1.1\r\nHost: a\r\n{H2C}{body}GET /x/behind HTTP/1.1\r\nHost: a\r\n\r\n"
            ));
            let response = connection.read("POST", Kind::Forwarded).expect("a response");
            response.assert_status(200);
            assert_eq!(response.header("connection"), Some("close"), "{target} {body:?}");
            assert!(connection.read("GET", Kind::Forwarded).is_none(), "{target} {body:?}");
        }
    }
    assert!(origin.last("/x/behind").is_none(), "forwarded what came behind an upgrade");
}

#[test]
fn bytes_behind_a_pending_upgrade_are_not_another_request() {
    let (origin, gateway) = scene();
    for target in [name_of(DUCK), "/x/late".to_owned(), "/customer/late".to_owned()] {
        let gate = Gate::closed();
        origin.when(Rule::on(&target).hold(&gate));
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer tok-a\r\n{H2C}\r\n"
        ));
        origin.wait_until("the request is at the API", |seen| {
            seen.iter().any(|seen| seen.target == target)
        });
        connection.send_raw("GET /x/behind HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.wait_until_read();
        gate.open();
        let kind = if target.ends_with("/name") { Kind::Intercepted } else { Kind::Forwarded };
        let response = connection.read("GET", kind).expect("a response");
        assert_eq!(response.assert_status(200).header("connection"), Some("close"), "{target}");
        assert!(connection.read("GET", Kind::Forwarded).is_none(), "{target}");
    }
    assert!(origin.last("/x/behind").is_none(), "forwarded what came behind an upgrade");
}

/// A request for HTTP/2 on a connection of HTTP/1.1 (RFC 7540 section 3.2).
const H2C: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";

#[test]
fn empty_line_behind_a_body_is_ignored() {
    let (_origin, gateway) = scene();
    for target in ["/x/a", "/customer/a"] {
        for body in [
            "Content-Length: 5\r\n\r\nhello\r\n",
            "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n\r\n\r\n",
        ] {
            let mut connection = gateway.client().connect();
            connection.send_raw(format!("POST {target} HTTP/1.1\r\nHost: a\r\n{body}"));
            connection.read("POST", Kind::Forwarded).expect("a response").assert_status(200);
            connection.send_raw(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            connection.read("GET", Kind::Forwarded).expect("a second response").assert_status(200);
        }
    }
}

#[test]
fn thousand_pipelined_requests_get_responses() {
    let (_origin, gateway) = scene();
    let client = gateway.client();
    let padding = "x".repeat(240);
    let one = client.get("/x/many").header("X-Padding", &padding).bytes();
    assert!(one.len() * 1000 > 240_000);
    let mut connection = client.connect();
    let all = one.repeat(1000);
    let mut writing = connection.try_clone();
    let sender = thread::spawn(move || writing.send_raw(all));
    for number in 0..1000 {
        let response = connection
            .read("GET", Kind::Forwarded)
            .unwrap_or_else(|| panic!("no response {number}"));
        assert_eq!(response.assert_status(200).json()["target"], "/x/many");
    }
    sender.join().expect("the sender");
}

#[test]
fn own_error_to_a_large_upload_arrives_over_http1() {
    let (_origin, gateway) = scene();
    let body = vec![b'x'; 5 << 20];
    let rounds = std::env::var("UPLOADS").map_or(10, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds {
        for (target, status) in
            [("/tools/realtime", 403), ("/customer//x", 400), (&*name_of(DUCK), 401)]
        {
            let method = if status == 401 { "GET" } else { "POST" };
            let mut connection = gateway.client().connect();
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            connection.send_raw(head);
            connection.send_raw(&body);
            let kind = if status == 401 { Kind::Intercepted } else { Kind::Forwarded };
            let response = connection
                .read("POST", kind)
                .unwrap_or_else(|| panic!("{round} {target}: no response"));
            response.assert_status(status);
            assert_eq!(response.header("connection"), Some("close"), "{response:#?}");
        }
    }
}

#[test]
fn own_error_to_a_large_upload_arrives_over_http2() {
    let (_origin, gateway) = scene();
    let body = vec![b'x'; 5 << 20];
    let rounds = std::env::var("UPLOADS").map_or(10, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds {
        for (target, status) in
            [("/tools/realtime", 403), ("/customer//x", 400), (&*name_of(DUCK), 401)]
        {
            let method = if status == 401 { "GET" } else { "POST" };
            let http2 = Http2::connect(&gateway.client());
            let response = http2.call(method, target, &[], &body);
            response
                .unwrap_or_else(|error| panic!("{round} {target}: {error}"))
                .assert_status(status);
        }
    }
}
