//! A client that leaves: one line and one count with status 499, on every kind of route and over
//! both protocols. The end of its sending alone is not a disconnect.

use std::time::Instant;

use crate::support::*;

const REDACTED: &str = "/customer/5f0000000000000000000009/users";
const PLAIN: &str = "/x/slow";

const CODE: &str = r#""http.response.status_code":499"#;

/// The intercepted, the plain and the redacted route.
fn targets() -> [String; 3] {
    [name_of(OTHER), PLAIN.to_owned(), REDACTED.to_owned()]
}

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(&name_of(DUCK)).bearer("tok-a").send().assert_status(200);
    // A request is counted a moment after its response is read.
    wait_until("the first request is counted", || all_counted(&gateway) > 0.0);
    (origin, gateway)
}

fn counted(gateway: &Gateway) -> f64 {
    gateway.metric("requests_total", &[("status", "499")])
}

fn all_counted(gateway: &Gateway) -> f64 {
    gateway.metric("requests_total", &[])
}

/// Waits until one more request ended, with 499 and the cause.
fn left_once(gateway: &Gateway, before: (f64, f64), what: &str) {
    wait_until(&format!("{what}: a 499"), || counted(gateway) > before.0);
    assert_eq!(counted(gateway) - before.0, 1.0, "{what}");
    assert_eq!(all_counted(gateway) - before.1, 1.0, "{what}");
    let log = || gateway.log();
    let written = |log: &str| log.lines().filter(|line| line.contains(CODE)).count();
    wait_until(&format!("{what}: a line"), || written(&log()) as f64 > before.0);
    let log = log();
    let line = log.lines().rfind(|line| line.contains(CODE)).expect("a line");
    assert!(line.contains(r#""cause":"client_closed""#), "{what}: {line}");
    assert!(!line.contains("error.code"), "{what}: {line}");
}

fn get(path: &str) -> [(&str, &str); 5] {
    [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("authorization", "Bearer tok-a"),
    ]
}

const CANCEL: &[u8] = &[0, 0, 0, 8];

#[test]
fn http1_reset_while_waiting_is_499() {
    let (origin, gateway) = scene();
    for target in &targets() {
        let gate = Gate::closed();
        origin.when(Rule::on(target).hold(&gate));
        let before = (counted(&gateway), all_counted(&gateway));
        let asked = origin.count(|seen| seen.path() == target);
        let mut pending = gateway.client().get(target).bearer("tok-a").start();
        origin.wait_until("the request arrived", |seen| {
            seen.iter().filter(|s| s.path() == target).count() > asked
        });
        pending.connection.reset();
        drop(pending);
        left_once(&gateway, before, target);
        gate.open();
        origin.behave();
    }
}

#[test]
fn http2_cancel_while_waiting_is_499() {
    let (origin, gateway) = scene();
    for target in &targets() {
        let gate = Gate::closed();
        origin.when(Rule::on(target).hold(&gate));
        let before = (counted(&gateway), all_counted(&gateway));
        let mut frames = Frames::open(&gateway.client(), &[]);
        frames.request(1, &get(target)).expect("an open connection");
        origin.wait_until("the request arrived", |seen| seen.iter().any(|s| s.path() == target));
        frames.send(Frames::RST_STREAM, 0, 1, CANCEL).expect("an open connection");
        left_once(&gateway, before, target);
        gate.open();
        origin.behave();
    }
}

#[test]
fn http2_cancel_with_the_head_of_a_hit_is_499() {
    let (_origin, gateway) = scene();
    let before = (counted(&gateway), all_counted(&gateway));
    let mut frames = Frames::open(&gateway.client(), &[]);
    let path = name_of(DUCK);
    let list = get(&path);
    let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    let mut both =
        frame(Frames::HEADERS, Frames::END_HEADERS | Frames::END_STREAM, 1, &fields(&list));
    both.extend(frame(Frames::RST_STREAM, 0, 1, CANCEL));
    frames.send_raw(&both).expect("an open connection");
    // The library may drop a stream that was reset before it was accepted; then nothing is counted.
    frames.request(3, &get("/x/after")).expect("an open connection");
    assert!(frames.outcome(3).is_ok());
    wait_until("the second was counted", || all_counted(&gateway) > before.1);
    let errors = gateway.metric("requests_total", &[("status", "500")])
        + gateway.metric("requests_total", &[("status", "400")]);
    assert_eq!(errors, 0.0);
    let line = gateway.log().lines().find(|line| line.contains(":499")).map(str::to_owned);
    assert!(line.is_none_or(|line| line.contains(r#""cache":"hit""#)));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn disconnect_during_the_request_body_is_499() {
    let (_origin, gateway) = scene();
    let before = (counted(&gateway), all_counted(&gateway));
    let mut connection = gateway.client().connect();
    connection.send_raw("POST /x/body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhello");
    _origin.wait_until("the head arrived", |seen| {
        seen.iter().any(|s| s.path() == "/x/body" && s.body == b"hello")
    });
    connection.reset();
    drop(connection);
    left_once(&gateway, before, "HTTP/1.1");

    let before = (counted(&gateway), all_counted(&gateway));
    let mut frames = Frames::open(&gateway.client(), &[]);
    let mut list = get("/x/body2");
    list[0].1 = "POST";
    let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    frames
        .send(Frames::HEADERS, Frames::END_HEADERS, 1, &fields(&list))
        .expect("an open connection");
    frames.send(Frames::DATA, 0, 1, b"hello").expect("an open connection");
    _origin.wait_until("the head arrived", |seen| {
        seen.iter().any(|s| s.path() == "/x/body2" && s.body == b"hello")
    });
    frames.send(Frames::RST_STREAM, 0, 1, CANCEL).expect("an open connection");
    left_once(&gateway, before, "HTTP/2");
}

#[test]
fn disconnect_during_the_response_is_499() {
    let (origin, gateway) = scene();
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    let piece = [b"4000\r\n".to_vec(), vec![b'x'; 0x4000], b"\r\n".to_vec()].concat();
    origin.when(Rule::on("/x/endless").forever(head, piece));
    let before = (counted(&gateway), all_counted(&gateway));
    let mut pending = gateway.client().get("/x/endless").start();
    pending.connection.wait_for(b"xxxx");
    pending.connection.reset();
    drop(pending);
    left_once(&gateway, before, "HTTP/1.1");

    let before = (counted(&gateway), all_counted(&gateway));
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames.request(1, &get("/x/endless")).expect("an open connection");
    assert!(frames.outcome(1).is_ok());
    frames.send(Frames::RST_STREAM, 0, 1, CANCEL).expect("an open connection");
    left_once(&gateway, before, "HTTP/2");
}

/// Responses and request bodies of a redacted route, which the gateway reads before it responds.
#[test]
fn disconnect_on_a_redacted_route_is_499() {
    let (origin, gateway) = scene();
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let piece = [&b"1000\r\n"[..], &[b' '; 0x1000], b"\r\n"].concat();
    origin.when(Rule::on(REDACTED).forever(head.to_vec(), piece));
    let post = format!(
        "POST {REDACTED} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\nContent-Length: 100\r\n\r\nhello"
    );
    let mut started = 0;
    for request in [gateway.client().get(REDACTED).bearer("tok-a").bytes(), post.into_bytes()] {
        let before = (counted(&gateway), all_counted(&gateway));
        let mut connection = gateway.client().connect();
        connection.send_raw(request);
        started += 1;
        origin.wait_until("the request arrived", |seen| {
            seen.iter().filter(|seen| seen.path() == REDACTED).count() == started
        });
        connection.reset();
        drop(connection);
        left_once(&gateway, before, "HTTP/1.1");
    }
    for (method, flags) in [("GET", Frames::END_STREAM), ("POST", 0)] {
        let before = (counted(&gateway), all_counted(&gateway));
        let mut frames = Frames::open(&gateway.client(), &[]);
        let mut list = get(REDACTED);
        list[0].1 = method;
        let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        frames
            .send(Frames::HEADERS, flags | Frames::END_HEADERS, 1, &fields(&list))
            .expect("an open connection");
        if flags == 0 {
            frames.send(Frames::DATA, 0, 1, b"hello").expect("an open connection");
        }
        started += 1;
        origin.wait_until("the request arrived", |seen| {
            seen.iter().filter(|seen| seen.path() == REDACTED).count() == started
        });
        frames.send(Frames::RST_STREAM, 0, 1, CANCEL).expect("an open connection");
        left_once(&gateway, before, "HTTP/2");
    }
}

/// The gateway asks for the caller before it forwards the request.
#[test]
fn disconnect_during_a_validation_is_499() {
    let (origin, gateway) = scene();
    let gate = Gate::closed();
    origin.when(Rule::on("/auth/validateToken").hold(&gate));
    for (number, target) in [&name_of(OTHER), REDACTED, "/auth/logout"].into_iter().enumerate() {
        let before = (counted(&gateway), all_counted(&gateway));
        let asked = origin.requests();
        let mut pending = gateway.client().get(target).bearer(&format!("tok-{number}")).start();
        origin.wait_until("the validation began", |seen| seen.len() > asked);
        let left = Instant::now();
        pending.connection.reset();
        drop(pending);
        left_once(&gateway, before, target);
        assert!(left.elapsed().as_secs() < 5, "{target}: {:?}", left.elapsed());

        let before = (counted(&gateway), all_counted(&gateway));
        let asked = origin.requests();
        let bearer = format!("Bearer tok-http2-{number}");
        let mut list = get(target);
        list[4].1 = &bearer;
        let mut frames = Frames::open(&gateway.client(), &[]);
        frames.request(1, &list).expect("an open connection");
        origin.wait_until("the validation began", |seen| seen.len() > asked);
        let left = Instant::now();
        frames.send(Frames::RST_STREAM, 0, 1, CANCEL).expect("an open connection");
        left_once(&gateway, before, target);
        assert!(left.elapsed().as_secs() < 5, "{target}: {:?}", left.elapsed());
        assert_eq!(origin.count(|seen| seen.path() == target), 0, "{target}");
    }
    gate.open();
}

/// A JSON body, which the gateway reads before it forwards the request.
#[test]
fn close_during_a_body_that_is_read_ahead_is_499() {
    let (origin, gateway) = scene();
    for target in [REDACTED, "/auth/logout", "/customer/5f0000000000000000000009"] {
        let before = (counted(&gateway), all_counted(&gateway));
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: 100\r\n\r\n{{\"a\":"
        ));
        connection.end_of_sending();
        assert_eq!(connection.rest(), b"", "{target}");
        left_once(&gateway, before, target);
        assert_eq!(origin.count(|seen| seen.path() == target), 0, "{target}");
    }
}

#[test]
fn half_close_behind_a_request_gets_the_response() {
    let (origin, gateway) = scene();
    for target in targets() {
        for method in ["GET", "POST"] {
            let gate = Gate::closed();
            origin.when(Rule::on(&target).hold(&gate));
            let client = gateway.client();
            let call = if method == "GET" {
                client.get(&target)
            } else {
                client.post(&target).body("hello")
            };
            let asked = origin.requests();
            let mut pending = call.bearer("tok-a").start();
            pending.connection.end_of_sending();
            origin.wait_until("the request arrived", |seen| seen.len() > asked);
            gate.open();
            let response = pending.finish();
            assert_eq!(response.status, 200, "{method} {target}: {response:#?}");
            origin.behave();
            gateway.admin().delete("/cache").send().assert_status(200);
        }
    }
    assert_eq!(counted(&gateway), 0.0);
}

#[test]
fn reset_of_a_plain_forward_ends_it_within_a_second() {
    let (origin, gateway) = scene();
    let gate = Gate::closed();
    origin.when(Rule::on(PLAIN).hold(&gate));
    let mut pending = gateway.client().get(PLAIN).start();
    origin.wait_until("the request arrived", |seen| seen.iter().any(|s| s.path() == PLAIN));
    let left = Instant::now();
    pending.connection.reset();
    drop(pending);
    wait_until("a 499", || counted(&gateway) > 0.0);
    assert!(left.elapsed().as_secs() < 5, "{:?}", left.elapsed());
    gate.open();
}
