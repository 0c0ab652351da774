//! Heads and trailers over HTTP/2: what RFC 9113 section 8.1.1 calls malformed ends the stream,
//! what the gateway does not serve gets its own error; each is logged and counted, and nothing of
//! it reaches the API.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/x")];

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

fn block(list: &[(&str, &str)]) -> Vec<u8> {
    let list: Vec<_> =
        list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    fields(&list)
}

#[test]
fn host_that_differs_from_the_authority_gets_the_apis_400() {
    let (origin, gateway) = scene();
    let http2 = Http2::connect(&gateway.client());
    for (number, path) in ["/x", P, "/customer/x", "/auth/validateToken"].into_iter().enumerate() {
        let list = [
            ("host", "evil.invalid"),
            ("authorization", "Bearer tok-a"),
            ("x-request-id", "my-id-1"),
        ];
        let answer = http2.call("GET", path, &list, b"").expect("a response");
        answer.assert_error(400, "bad_request");
        assert_eq!(answer.header("x-request-id"), Some("my-id-1"), "{path}");
        let labels = [("route", "none"), ("status", "400"), ("method", "GET")];
        gateway.wait_for_metric("requests_total", &labels, (number + 1) as f64);
    }
    let post = http2.call("POST", "/x", &[("host", "evil.invalid")], b"abc").expect("a response");
    post.assert_error(400, "bad_request");
    assert_eq!(origin.requests(), 0);
    // The same name is no contradiction.
    let own = gateway.client().address().to_string();
    let answer = http2.call("GET", "/x", &[("host", &own)], b"").expect("a response");
    answer.assert_status(200);
    assert_eq!(origin.requests(), 1);
}

#[test]
fn malformed_request_resets_its_stream_and_is_counted() {
    let (origin, gateway) = scene();
    let mut cases = vec![];
    for field in [
        ("X-Upper", "1"),
        ("x a", "1"),
        ("x-a", " y "),
        ("x-a", "y\t"),
        ("x-a", "1\ny"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip"),
        (":path", "/y"),
        (":status", "200"),
        (":protocol", "websocket"),
    ] {
        cases.push(GET.iter().copied().chain([field]).collect::<Vec<_>>());
    }
    for missing in [":method", ":scheme", ":path"] {
        cases.push(GET.iter().copied().filter(|(name, _)| *name != missing).collect());
    }
    cases.push([("x-a", "b")].into_iter().chain(GET).collect());
    for (number, case) in cases.iter().enumerate() {
        let mut frames = Frames::open(&gateway.client(), &[]);
        frames.request(1, case).expect("an open connection");
        let reset = loop {
            let frame = frames.next().expect("a frame");
            if frame.stream == 1 {
                break frame;
            }
        };
        assert_eq!((reset.kind, reset.payload), (Frames::RST_STREAM, vec![0, 0, 0, 1]), "{case:?}");
        // The connection continues.
        frames.request(3, &GET).expect("an open connection");
        assert!(frames.outcome(3).is_ok(), "{case:?}");
        let labels = [("route", "none"), ("status", "400")];
        gateway.wait_for_metric("requests_total", &labels, (number + 1) as f64);
    }
    assert_eq!(origin.requests(), cases.len());
}

#[test]
fn pseudo_field_in_trailers_resets_the_stream() {
    let (origin, gateway) = scene();
    for path in ["/x", "/customer/x"] {
        for (trailer, right) in [
            ((":path", "/hidden"), false),
            (("x-sum", "1"), true),
            (("connection", "close"), false),
        ] {
            let mut frames = Frames::open(&gateway.client(), &[]);
            let mut list = GET.to_vec();
            (list[0].1, list[3].1) = ("POST", path);
            frames
                .send(Frames::HEADERS, Frames::END_HEADERS, 1, &block(&list))
                .expect("an open connection");
            frames.send(Frames::DATA, 0, 1, b"hello").expect("an open connection");
            frames.send(Frames::HEADERS, 5, 1, &block(&[trailer])).expect("an open connection");
            let outcome = frames.outcome(1);
            assert_eq!(outcome.is_ok(), right, "{path} {trailer:?}: {outcome:?}");
            assert!(right || outcome == Outcome::Reset, "{path} {trailer:?}: {outcome:?}");
        }
    }
    let complete = origin.count(|seen| seen.complete && seen.path() != "/auth/validateToken");
    assert_eq!(complete, 2, "{:?}", origin.seen());
}

#[test]
fn refusal_field_of_a_client_is_removed() {
    let (origin, gateway) = scene();
    let mark = ("x-telecomx-gateway-refusal", "0");
    let answer =
        Http2::connect(&gateway.client()).call("GET", "/x", &[mark], b"").expect("a response");
    answer.assert_status(200);
    gateway.client().get("/x").header(mark.0, mark.1).send().assert_status(200);
    let seen = origin.seen();
    assert!(!seen[0].header_names().iter().any(|name| name == mark.0), "{:#?}", seen[0]);
}

#[test]
fn head_in_any_pieces_and_compression_is_read() {
    let (origin, gateway) = scene();
    let long = "v".repeat(20_000);
    let list = GET.iter().copied().chain([("x-long", long.as_str())]).collect::<Vec<_>>();
    let block = block(&list);
    for cut in [1, 7, 400, 9000, 16_384] {
        let mut frames = Frames::open(&gateway.client(), &[]);
        let pieces: Vec<&[u8]> = if cut < 100 {
            [&block[..cut], &block[cut..16_000], &block[16_000..]].to_vec()
        } else {
            block.chunks(cut).collect()
        };
        for (number, piece) in pieces.iter().enumerate() {
            let kind = if number == 0 { Frames::HEADERS } else { Frames::CONTINUATION };
            let flags = if number == 0 { Frames::END_STREAM } else { 0 };
            let last = if number + 1 == pieces.len() { Frames::END_HEADERS } else { 0 };
            frames.send(kind, flags | last, 1, piece).expect("an open connection");
        }
        assert!(frames.outcome(1).is_ok(), "{cut}");
    }
    assert_eq!(origin.count(|seen| seen.header("x-long") == Some(long.as_str())), 5);
    // A client that compresses, with Huffman coding and a table, over one connection.
    let http2 = Http2::connect(&gateway.client());
    for number in 0..50 {
        let value = format!("value-{}-\u{7e}{}", number % 7, "q".repeat(number));
        let answer = http2.call(
            "GET",
            "/x",
            &[("x-some", &value), ("user-agent", "Mozilla/5.0 (X11)")],
            b"",
        );
        answer.expect("a response").assert_status(200);
        let seen = origin.last("/x").expect("it was forwarded");
        assert_eq!(seen.header("x-some"), Some(value.as_str()));
        assert_eq!(seen.header("user-agent"), Some("Mozilla/5.0 (X11)"));
    }
}

/// RFC 9113 sections 5.1 and 5.1.1.
#[test]
fn head_on_an_ended_stream_is_an_error_of_that_kind() {
    let (origin, gateway) = scene();
    let code = |frames: &mut Frames| {
        while let Some(frame) = frames.next() {
            match frame.kind {
                Frames::RST_STREAM => return Some((frame.kind, frame.payload[3])),
                Frames::GOAWAY => return Some((frame.kind, frame.payload[7])),
                _ => {}
            }
        }
        None
    };
    const STREAM_CLOSED: u8 = 5;
    const PROTOCOL_ERROR: u8 = 1;
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames.request(1, &GET).expect("an open connection");
    assert!(frames.outcome(1).is_ok());
    frames.request(1, &GET).expect("an open connection");
    let (kind, ended) = code(&mut frames).expect("an error");
    // The connection ends, or the stream by the reason that it has ended.
    assert!(kind == Frames::GOAWAY || ended == STREAM_CLOSED, "{kind} {ended}");
    let mut frames = Frames::open(&gateway.client(), &[]);
    frames.request(5, &GET).expect("an open connection");
    assert!(frames.outcome(5).is_ok());
    frames.request(3, &GET).expect("an open connection");
    assert_eq!(code(&mut frames), Some((Frames::GOAWAY, PROTOCOL_ERROR)));
    assert_eq!(origin.requests(), 2);
}
