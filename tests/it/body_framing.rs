//! How a request body ends: whatever the client sends, the API reads one well-formed message, and
//! no byte of it reaches the next request on the same connection.

use crate::support::*;

const VIEWER: (&str, &str) = ("authorization", "Bearer tok-viewer");

/// The frames that end a body, each with its flags.
type Frame = (u8, u8, &'static [u8]);

/// A gateway in front of an API that records bytes. The origin serves only the checks of the
/// support.
fn scene() -> (Origin, Recorder, Gateway) {
    let origin = Origin::start();
    let recorder = Recorder::start();
    let gateway = Gateway::with(&origin, &recorder.config());
    (origin, recorder, gateway)
}

fn head(method: &str, path: &str, tag: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let list = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        (TAG, tag),
        VIEWER,
    ];
    let list: Vec<(&[u8], &[u8])> =
        list.iter().chain(more).map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    fields(&list)
}

/// Every way in which HTTP/2 ends a body, with the content that it carries.
fn endings() -> Vec<(&'static str, Vec<Frame>, &'static [u8])> {
    const DATA: u8 = Frames::DATA;
    const END: u8 = Frames::END_STREAM;
    const PADDED: u8 = 8;
    let trailers: &'static [u8] = Vec::leak(fields(&[(b"x-trailer", b"1")]));
    let trailing = (Frames::HEADERS, Frames::END_HEADERS | END, trailers);
    vec![
        ("data", vec![(DATA, END, b"hello")], b"hello"),
        ("data and empty data", vec![(DATA, 0, b"hello"), (DATA, END, b"")], b"hello"),
        ("empty data alone", vec![(DATA, END, b"")], b""),
        ("two empty frames", vec![(DATA, 0, b""), (DATA, END, b"")], b""),
        ("empty between", vec![(DATA, 0, b"he"), (DATA, 0, b""), (DATA, END, b"llo")], b"hello"),
        (
            "empty first",
            vec![(DATA, 0, b""), (DATA, 0, b"hello"), (DATA, 0, b""), (DATA, END, b"")],
            b"hello",
        ),
        ("trailers", vec![(DATA, 0, b"hello"), trailing], b"hello"),
        ("empty data and trailers", vec![(DATA, 0, b"hello"), (DATA, 0, b""), trailing], b"hello"),
        ("trailers alone", vec![trailing], b""),
        ("padding alone", vec![(DATA, 0, b"hello"), (DATA, END | PADDED, b"\x03\0\0\0")], b"hello"),
    ]
}

#[test]
fn http2_body_ends_exactly_once_at_the_api() {
    let (_origin, recorder, gateway) = scene();
    let mut number = 0;
    for path in ["/x/raw", "/customer/raw"] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "GET", "REPORT"] {
            for (name, frames, content) in endings() {
                number += 1;
                let tag = format!("{number}");
                let mut connection = Frames::open(&gateway.client(), &[]);
                let block = head(method, path, &tag, &[]);
                connection
                    .send(Frames::HEADERS, Frames::END_HEADERS, 1, &block)
                    .expect("an open connection");
                for (kind, flags, payload) in frames {
                    connection.send(kind, flags, 1, payload).expect("an open connection");
                }
                assert!(connection.outcome(1).is_ok(), "{method} {path}, {name}");
                let message = recorder.wait_for(&tag);
                assert_eq!(message.body, content, "{method} {path}, {name}");
                // Bytes behind the end arrive with the next request on the connection.
                gateway.client().get("/x/next").header(TAG, "next").send().assert_status(200);
                let raw = recorder.raw(message.connection);
                assert_eq!(
                    recorder.malformed(),
                    [""; 0],
                    "{method} {path}, {name}: {:?}",
                    String::from_utf8_lossy(&raw)
                );
            }
        }
    }
    drop(gateway);
    recorder.wait_until_idle();
    assert_eq!(recorder.malformed(), [""; 0]);
}

/// Bytes that look like a response.
const STRAY: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nstray";

#[test]
fn late_bytes_of_a_response_reach_no_other_client() {
    let origin = Origin::start();
    let id = customer(7);
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-r", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let json = "Content-Type: application/json\r\n";
    let responses = [
        ("HEAD", format!("HTTP/1.1 200 OK\r\n{json}Content-Length: 5\r\n\r\n")),
        ("HEAD", format!("HTTP/1.1 200 OK\r\n{json}Transfer-Encoding: chunked\r\n\r\n")),
        ("HEAD", "HTTP/1.1 204 No Content\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
        ("GET", format!("HTTP/1.1 200 OK\r\n{json}Content-Length: 2\r\n\r\n{{}}")),
        (
            "GET",
            format!(
                "HTTP/1.1 200 OK\r\n{json}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
            ),
        ),
    ];
    let targets = ["/x/late".to_owned(), "/customer/late".to_owned(), name_of(&id)];
    for (number, (method, response)) in responses.iter().enumerate() {
        let announces = response.contains("Content-Length: 5") || response.contains("chunked");
        let bodyless = response.contains(" 204 ") || response.contains(" 304 ");
        // The first connection is used for nothing more.
        let ends = *method == "HEAD" || (bodyless && announces);
        // On the intercepted route the gateway asks with GET for HEAD too, and would wait for a
        // body.
        for target in &targets[..if *method == "HEAD" { 2 } else { 3 }] {
            for token in ["tok-a", "tok-r"] {
                let gate = Gate::closed();
                origin.when(
                    Rule::on(target).raw_and_unasked(response.as_bytes(), &gate, STRAY).times(1),
                );
                let call = gateway
                    .client()
                    .call(method, target)
                    .bearer(token)
                    .header("If-None-Match", "\"x\"");
                call.revealed().try_send();
                let first = origin.last(target).expect("it was forwarded").connection;
                pace(std::time::Duration::from_millis(30));
                gate.open();
                // What comes while a request is under way is the response to that. Only a
                // connection that is used for nothing more protects from it.
                pace(std::time::Duration::from_millis(if ends { 0 } else { 50 }));
                for round in 0..3 {
                    let next = gateway.client().get("/x/next").send();
                    assert_eq!(
                        next.assert_status(200).json()["target"],
                        "/x/next",
                        "{number} {target} {round}"
                    );
                    let used = origin.last("/x/next").expect("it was forwarded").connection;
                    assert!(!ends || used != first, "{number} {target}: the connection was kept");
                    pace(std::time::Duration::from_millis(5));
                }
                gateway.admin().delete("/cache").send().assert_status(200);
            }
        }
    }
}
