//! HTTP/2, by prior knowledge and over TLS: the same rules for a token and a path, nothing smuggled
//! into HTTP/1.1 behind, and floods that end bounded.

use std::time::Duration;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const AUTHORITY: (&str, &str) = (":authority", "x");
const GET: [(&str, &str); 3] = [(":method", "GET"), (":scheme", "http"), AUTHORITY];

/// KiB that the gateway's memory may grow by in any of the floods below; they send many times more.
const GROWTH: usize = 64 << 10;

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    (origin, gateway)
}

/// Both protocols are served on fresh connections.
fn still_right(gateway: &Gateway) {
    let answer = Http2::connect(&gateway.client()).get(P, "tok-a");
    assert_eq!(answer.assert_status(200).text(), redacted_document(DUCK));
    assert_eq!(
        gateway.client().get(P).bearer("tok-a").send().assert_status(200).text(),
        redacted_document(DUCK)
    );
    gateway.client().get("/alive").send().assert_status(200);
}

/// A request's pseudo fields with that path, and these fields.
fn with(
    path: &'static str,
    more: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    GET.iter().copied().chain([(":path", path)]).chain(more.iter().copied()).collect()
}

#[test]
fn rules_are_the_same_as_over_http1() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let http2 = Http2::connect(&gateway.client());
    let miss = http2.get(P, "tok-a");
    assert_eq!(miss.assert_status(200).cache_status(), "telecomx-gateway; fwd=uri-miss; stored");
    assert_eq!(miss.text(), redacted_document(DUCK));
    let hit = http2.get(P, "tok-a");
    assert!(hit.assert_status(200).is_hit(), "{hit:#?}");
    assert_eq!(hit.body, miss.body);
    let call = |method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]| {
        http2.call(method, target, fields, body).expect("an answer")
    };
    let head = call("HEAD", P, &[("authorization", "Bearer tok-a")], b"");
    assert_eq!(
        head.assert_status(200).header("content-length"),
        Some(miss.body.len().to_string().as_str())
    );
    assert!(head.body.is_empty());
    let etag = miss.header("etag").expect("an ETag");
    let fields = [("authorization", "Bearer tok-a"), ("if-none-match", etag)];
    assert_eq!(call("GET", P, &fields, b"").status, 304);
    call("GET", P, &[], b"").assert_error(401, "credentials_invalid");
    call("GET", P, &[("authorization", "Bearer tok-unknown")], b"")
        .assert_error(401, "invalid_token");
    let two = [("authorization", "Bearer tok-a"), ("authorization", "Bearer tok-b")];
    call("GET", P, &two, b"").assert_error(400, "bad_request");
    call("GET", "/x", &two, b"").assert_error(400, "bad_request");
    call("GET", "/Customer/x", &[], b"").assert_error(400, "bad_request");
    call("GET", "/customer//x", &[], b"").assert_error(400, "bad_request");
    call("GET", "/x/%zz", &[], b"").assert_error(400, "bad_request");
    call("GET", "/tools/realtime", &[], b"").assert_error(403, "access_denied");
    call("TRACE", "/x", &[], b"").assert_error(405, "bad_request");
    // A cookie may come in crumbs (RFC 9113 section 8.2.3).
    let crumbs = [("cookie", "a=b"), ("cookie", "token=tok-a")];
    assert!(call("GET", P, &crumbs, b"").assert_status(200).is_hit());
    let echoed = call("POST", "/echo", &[("x-own", "1")], b"a body").assert_status(200).json();
    assert_eq!(echoed["body"], "a body");
    // A body on the intercepted route is not read, and nothing stored answers it.
    let with_body = http2.call("GET", P, &[("authorization", "Bearer tok-a")], b"a body");
    if let Ok(answer) = with_body {
        assert!(!answer.cache_status().contains("hit"), "{answer:#?}");
    }
    // A client library sends neither a fragment nor these characters.
    let mut frames = Frames::open(&gateway.client(), &[]);
    for (number, path) in (0_u32..).zip(["/tools/realtime#x", "/x#y", "/x<y", "/x`y", "/x?\"y"]) {
        frames.request(2 * number + 1, &with(path, &[])).expect("an open connection");
        let outcome = frames.outcome(2 * number + 1);
        assert!(
            matches!(&outcome, Outcome::Answered(head) if head.first() == Some(&0x8c)),
            "{path}: no 400"
        );
    }
    assert_eq!(origin.count(|seen| seen.path().starts_with("/x") && seen.path().len() > 2), 0);
    assert_eq!(origin.count(|seen| seen.path() == "/tools/realtime"), 0);
    for seen in origin.seen() {
        assert_eq!(seen.header("host"), Some(origin.address().to_string().as_str()), "{seen:#?}");
    }
    still_right(&gateway);
}

#[test]
fn http2_over_tls_has_the_same_rules() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;
    let gateway = setup.config(tls).start();
    let http2 = Http2::connect_tls(&gateway.client(), gateway.tls_address(), &authority);
    assert_eq!(http2.get(P, "tok-a").assert_status(200).text(), redacted_document(DUCK));
    assert!(http2.get(P, "tok-a").assert_status(200).is_hit());
    http2.call("GET", "/elsewhere", &[], b"").expect("an answer").assert_status(200);
    assert_eq!(
        origin.last("/elsewhere").expect("it was forwarded").header("x-forwarded-proto"),
        Some("https")
    );
}

#[test]
fn field_that_http1_reads_differently_never_reaches_the_api() {
    let (origin, gateway) = scene();
    let before = origin.requests();
    let mut cases: Vec<Vec<(&str, &str)>> = vec![
        with("/x", &[("transfer-encoding", "chunked")]),
        with("/x", &[("Transfer-Encoding", "chunked")]),
        with("/x", &[("connection", "close")]),
        with("/x", &[("connection", "authorization")]),
        with("/x", &[("keep-alive", "1")]),
        with("/x", &[("proxy-connection", "close")]),
        with("/x", &[("upgrade", "websocket")]),
        with("/x", &[("te", "gzip")]),
        with("/x", &[("X-Upper", "1")]),
        with("/x", &[("x-a", "1\r\nAuthorization: Bearer tok-evil")]),
        with("/x", &[("x-a", "1\nx: y")]),
        with("/x", &[("x-a", "1\ry")]),
        with("/x", &[("x-a", "1\0y")]),
        with("/x", &[("x-a\r\nx-b", "1")]),
        with("/x", &[("x a", "1")]),
        with("/x", &[("x-a:", "1")]),
        with("/x", &[("", "1")]),
        with("/x", &[("content-length", "5")]),
        with("/x", &[("content-length", "5"), ("content-length", "6")]),
        with("/x", &[("content-length", "x")]),
        with("/x", &[("content-length", "+0")]),
        with("/x", &[("host", "evil.invalid")]),
        with("/x", &[("host", "x"), ("host", "y")]),
        with("/x", &[("x_forwarded_for", "203.0.113.7")]),
        with("/x", &[("content_length", "5")]),
        with("/x", &[("x_api_key", "tok-evil")]),
        with("/x", &[(":path", "/y")]),
        with("/x", &[(":authority", "y")]),
        with("/x", &[(":method", "POST")]),
        with("/x", &[(":status", "200")]),
        with("/x", &[(":made-up", "x")]),
        with("/x HTTP/1.1\r\nHost: evil\r\n\r\nGET /hidden", &[]),
        with("/x\r\nX: y", &[]),
        with("/x y", &[]),
        with("/x\0", &[]),
        with("/x\ty", &[]),
        with("", &[]),
        with("x", &[]),
        with("*", &[]),
        with("http://evil.invalid/x", &[]),
        vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/x"),
            (":authority", "a@evil.invalid"),
        ],
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "x\r\ny")],
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "x y")],
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "")],
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/x")],
        vec![(":method", "GET"), (":path", "/x"), AUTHORITY],
        vec![(":method", "GET"), (":scheme", "http"), AUTHORITY],
        vec![(":scheme", "http"), (":path", "/x"), AUTHORITY],
        vec![
            (":method", "GET /hidden HTTP/1.1\r\nX:"),
            (":scheme", "http"),
            (":path", "/x"),
            AUTHORITY,
        ],
        vec![(":method", "GE T"), (":scheme", "http"), (":path", "/x"), AUTHORITY],
        vec![(":method", ""), (":scheme", "http"), (":path", "/x"), AUTHORITY],
        vec![(":method", "CONNECT"), (":authority", "evil.invalid:443")],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/x"),
            AUTHORITY,
        ],
        vec![("x-first", "1"), (":method", "GET"), (":scheme", "http"), (":path", "/x"), AUTHORITY],
    ];
    cases.push(with(P, &[("authorization", "Bearer tok-a"), ("connection", "authorization")]));
    let mut answered = Vec::new();
    for case in cases {
        let mut frames = Frames::open(&gateway.client(), &[]);
        frames.request(1, &case).expect("an open connection");
        let refused = !frames.outcome(1).is_ok();
        if !refused || origin.requests() != before + answered.len() {
            answered.push((case, origin.seen().pop()));
        }
    }
    assert!(answered.is_empty(), "these went through: {answered:?}");
    still_right(&gateway);
}

#[test]
fn repeated_length_is_forwarded_once() {
    let (origin, gateway) = scene();
    let mut frames = Frames::open(&gateway.client(), &[]);
    let mut list = with("/twice", &[("content-length", "5"), ("content-length", "5")]);
    list[0].1 = "POST";
    let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    frames
        .send(Frames::HEADERS, Frames::END_HEADERS, 1, &fields(&list))
        .expect("an open connection");
    let _ = frames.send(Frames::DATA, Frames::END_STREAM, 1, b"abcde");
    frames.outcome(1);
    if let Some(seen) = origin.last("/twice") {
        let lengths = seen.header_names().iter().filter(|name| *name == "content-length").count();
        assert!(lengths <= 1, "{seen:#?}");
    }
    still_right(&gateway);
}

#[test]
fn body_of_another_length_than_declared_is_never_complete() {
    let (origin, gateway) = scene();
    for (number, (declared, body)) in
        [("3", "abcde"), ("9", "abcde"), ("0", "abcde")].into_iter().enumerate()
    {
        let path = format!("/length/{number}");
        let mut frames = Frames::open(&gateway.client(), &[]);
        let list = [
            (":method", "POST"),
            (":scheme", "http"),
            AUTHORITY,
            (":path", &path),
            ("content-length", declared),
        ];
        let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        frames
            .send(Frames::HEADERS, Frames::END_HEADERS, 1, &fields(&list))
            .expect("an open connection");
        let _ = frames.send(Frames::DATA, Frames::END_STREAM, 1, body.as_bytes());
        assert!(!frames.outcome(1).is_ok(), "{declared} for {body:?}");
        assert_eq!(
            origin.count(|seen| seen.path() == path && seen.complete),
            0,
            "{declared} for {body:?}"
        );
    }
    still_right(&gateway);
}

#[test]
fn empty_body_may_end_with_its_head_or_after_it() {
    let (origin, gateway) = scene();
    for (number, flags) in
        [Frames::END_HEADERS | Frames::END_STREAM, Frames::END_HEADERS].into_iter().enumerate()
    {
        let path = format!("/length/{number}");
        let mut frames = Frames::open(&gateway.client(), &[]);
        let list = [
            (":method", "POST"),
            (":scheme", "http"),
            AUTHORITY,
            (":path", &path),
            ("content-length", "0"),
        ];
        let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        frames.send(Frames::HEADERS, flags, 1, &fields(&list)).expect("an open connection");
        if flags & Frames::END_STREAM == 0 {
            frames.send(Frames::DATA, Frames::END_STREAM, 1, b"").expect("an open connection");
        }
        assert!(frames.outcome(1).is_ok(), "{flags}");
        assert_eq!(origin.count(|seen| seen.path() == path && seen.complete), 1);
    }
}

#[test]
fn too_large_head_is_refused() {
    let (origin, gateway) = scene();
    let before = origin.requests();
    let many: Vec<(String, String)> =
        (0..101).map(|number| (format!("x-{number}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> =
        many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let long = "x".repeat(33 << 10);
    for fields in [many.as_slice(), &[("x-long", long.as_str())]] {
        for target in [P, "/x"] {
            let http2 = Http2::connect(&gateway.client());
            http2
                .call("GET", target, fields, b"")
                .expect("an answer")
                .assert_error(431, "bad_request");
        }
    }
    // Beyond the announced limits of HTTP/2, a reset without a response is permitted.
    let longer = "x".repeat(200 << 10);
    let http2 = Http2::connect(&gateway.client());
    if let Ok(answer) = http2.call("GET", "/x", &[("x-long", &longer)], b"") {
        assert_eq!(answer.status, 431, "{answer:#?}");
    }
    assert_eq!(origin.requests(), before);
    still_right(&gateway);
}

#[test]
fn endless_head_is_cut_off() {
    let (_origin, gateway) = scene();
    let before = gateway.memory();
    let mut frames = Frames::open(&gateway.client(), &[]);
    let start = fields(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/x"),
        (b":authority", b"x"),
    ]);
    frames.send(Frames::HEADERS, Frames::END_STREAM, 1, &start).expect("an open connection");
    let piece = fields(&[(b"x-piece", &[b'x'; 8000])]);
    // A gigabyte, unless the gateway stops it.
    let sent = (0..125_000)
        .take_while(|_| frames.send(Frames::CONTINUATION, 0, 1, &piece).is_ok())
        .count();
    assert!(sent < 10_000, "{sent} pieces were taken");
    // The same with empty pieces, which cost nothing but time.
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames.send(Frames::HEADERS, Frames::END_STREAM, 1, &start).expect("an open connection");
    let sent =
        (0..2_000_000).take_while(|_| frames.send(Frames::CONTINUATION, 0, 1, b"").is_ok()).count();
    assert!(sent < 2_000_000, "the gateway did not stop it");
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
    still_right(&gateway);
}

#[test]
fn header_bomb_is_not_expanded() {
    let (origin, gateway) = scene();
    let (asked, before) = (origin.requests(), gateway.memory());
    let mut frames = Frames::open(&gateway.client(), &[]);
    // A field of 4,000 bytes put into the table (RFC 7541 section 6.2.1) and then named by one byte
    // each time.
    let mut block = fields(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/x"),
        (b":authority", b"x"),
    ]);
    let mut field = fields(&[(b"x", &[b'y'; 4000])]);
    field[0] = 0x40;
    block.extend_from_slice(&field);
    block.extend_from_slice(&[0xbe; 12_000]);
    for stream in (1..200).step_by(2) {
        let flags = Frames::END_HEADERS | Frames::END_STREAM;
        if frames.send(Frames::HEADERS, flags, stream, &block).is_err() {
            break;
        }
    }
    assert!(!frames.outcome(1).is_ok());
    drop(frames);
    assert_eq!(origin.requests(), asked);
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
    still_right(&gateway);
}

#[test]
fn streams_reset_in_a_loop_end_the_connection() {
    let (origin, gateway) = scene();
    let gate = Gate::closed();
    origin.when(Rule::on("/slow").hold(&gate));
    let (asked, before) = (origin.requests(), gateway.memory());
    for path in ["/slow", P] {
        let mut frames = Frames::open(&gateway.client(), &[]);
        let list = with(path, &[("authorization", "Bearer tok-a")]);
        let opened = (0..20_000_u32)
            .take_while(|number| {
                let stream = number * 2 + 1;
                let sent = frames.request(stream, &list);
                sent.and_then(|()| frames.send(Frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes()))
                    .is_ok()
            })
            .count();
        println!(
            "{path}: {opened} streams before the end, {} requests to the API",
            origin.requests() - asked
        );
    }
    // Resets end what was begun: nothing of it waits for the API.
    gateway.wait_for_metric("upstream_in_flight", &[], 0.0);
    wait_until("nothing of it is left", || gateway.metric("upstream_in_flight", &[]) == 0.0);
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
    gate.open();
    still_right(&gateway);
}

#[test]
fn concurrent_streams_are_limited() {
    let (origin, gateway) = scene();
    let gate = Gate::closed();
    origin.when(Rule::on("/slow").hold(&gate));
    let mut frames = Frames::open(&gateway.client(), &[]);
    let list = with("/slow", &[]);
    for number in 0..60_u32 {
        frames.request(number * 2 + 1, &list).expect("an open connection");
    }
    origin.wait_until("some are there", |seen| {
        seen.iter().filter(|seen| seen.path() == "/slow").count() >= 50
    });
    // The gateway may close the connection, which cancels its requests.
    for number in 60..1000_u32 {
        if frames.request(number * 2 + 1, &list).is_err() {
            break;
        }
    }
    // Others are served meanwhile.
    still_right(&gateway);
    let waiting = origin.count(|seen| seen.path() == "/slow");
    assert!(waiting <= 200, "{waiting} at a time");
    gate.open();
    drop(frames);
    still_right(&gateway);
}

#[test]
fn flood_of_acknowledged_frames_is_bounded() {
    let (_origin, gateway) = scene();
    let before = gateway.memory();
    // The client reads no response.
    let floods: [(u8, u8, u32, &[u8]); 4] = [
        (Frames::PING, 0, 0, b"12345678"),
        (Frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]),
        (2, 0, 1, &[0, 0, 0, 0, 16]),
        (Frames::DATA, 0, 1, b""),
    ];
    for (kind, flags, stream, payload) in floods {
        let mut frames = Frames::open(&gateway.client(), &[]);
        if kind == Frames::DATA {
            let mut list = with("/x", &[]);
            list[0].1 = "POST";
            let list: Vec<_> = list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            frames
                .send(Frames::HEADERS, Frames::END_HEADERS, 1, &fields(&list))
                .expect("an open connection");
        }
        let _ =
            (0..100_000).take_while(|_| frames.send(kind, flags, stream, payload).is_ok()).count();
    }
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
    still_right(&gateway);
}

#[test]
fn connection_without_a_stream_ends_after_keepalive() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway =
        Gateway::with(&origin, r#"server = { keepalive_timeout = "1s", header_timeout = "1s" }"#);
    let began = std::time::Instant::now();
    Frames::open(&gateway.client(), &[]).until_closed();
    // Half a head is no stream.
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames
        .send(Frames::HEADERS, 0, 1, &fields(&[(b":method", b"GET")]))
        .expect("an open connection");
    frames.until_closed();
    // Half a preface neither.
    let mut connection = gateway.client().connect();
    connection.send_raw("PRI * HTTP/2.0\r\n\r\nSM");
    connection.rest();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    still_right(&gateway);
}

/// Forwarded as an empty chunk it would end the body.
#[test]
fn empty_frame_does_not_end_a_body() {
    let (origin, gateway) = scene();
    for path in ["/empty", "/log/empty"] {
        let mut frames = Frames::open(&gateway.client(), &[]);
        let list: Vec<_> = [(":method", "POST"), (":scheme", "http"), AUTHORITY, (":path", path)]
            .into_iter()
            .chain([("authorization", "Bearer tok-a")])
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        frames
            .send(Frames::HEADERS, Frames::END_HEADERS, 1, &fields(&list))
            .expect("an open connection");
        let pieces: [&[u8]; 4] = [b"ab", b"", b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n", b""];
        for piece in pieces {
            frames.send(Frames::DATA, 0, 1, piece).expect("an open connection");
            // So that each is passed on by itself.
            pace(Duration::from_millis(20));
        }
        frames.send(Frames::DATA, Frames::END_STREAM, 1, b"cd").expect("an open connection");
        assert!(frames.outcome(1).is_ok(), "{path}");
        let seen = origin.last(path).expect("it was forwarded");
        assert_eq!(
            String::from_utf8_lossy(&seen.body),
            "abGET /hidden HTTP/1.1\r\nHost: x\r\n\r\ncd",
            "{path}"
        );
    }
    assert_eq!(origin.count(|seen| seen.path() == "/hidden"), 0);
    still_right(&gateway);
}
