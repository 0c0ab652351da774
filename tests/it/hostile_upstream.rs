//! An API that answers as no API should: every wait, head and body of it has a bound, what it says
//! after an answer is no response, and a connection on which anything was odd is not used
//! again. On all three ways to it: intercepted, passed on, and passed on redacted.

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
/// Passed on as it is.
const PASSED: &str = "/plain";
/// Passed on and redacted for a lower role.
const REDACTED: &str = "/customer/73469a52f4fd7f77ec7b28cc";
const WAYS: [&str; 3] = [P, PASSED, REDACTED];

/// KiB that the gateway's memory may grow by when an answer has no end.
const GROWTH: usize = 96 << 10;

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "1s", max_body = "64KiB" }"#);
    (origin, gateway)
}

fn ask(gateway: &Gateway, way: &str) -> Option<Response> {
    gateway.client().get(way).bearer("tok-a").header("Connection", "close").try_send()
}

/// What is stored is dropped, so that the API is asked.
fn ask_anew(gateway: &Gateway, way: &str) -> Option<Response> {
    gateway.admin().delete("/cache").send().assert_status(200);
    ask(gateway, way)
}

/// The next answer on that way is right; the connection that brought it.
fn next_connection(origin: &Origin, gateway: &Gateway, way: &str, after: &str) -> usize {
    origin.behave();
    let next =
        ask_anew(gateway, way).unwrap_or_else(|| panic!("no answer on {way} after {after:?}"));
    match way {
        P => assert_eq!(next.assert_status(200).text(), redacted_document(DUCK), "after {after:?}"),
        _ => assert_eq!(next.assert_status(200).json()["target"], way, "after {after:?}"),
    }
    origin.last(way).expect("it was asked for").connection
}

/// Whether an answer that is odd may still be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// 502 or 504.
    Refused,
    /// 200 with a body of `{}`, and the connection is not used again.
    ReadOnce,
    /// 200 with a body of `{}`: odd, and yet there is one reading only.
    Read,
}

#[test]
fn malformed_response_gets_502_and_ends_its_connection() {
    use Then::{Read, ReadOnce, Refused};
    let (origin, gateway) = scene();
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"s\":\"SMUG\"}";
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let cases: Vec<(String, Then)> = vec![
        (format!("{ok}X: a\0b\r\nContent-Length: 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}X: a\rb\r\nContent-Length: 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}X\0: a\r\nContent-Length: 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}no colon\r\nContent-Length: 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}: no name\r\nContent-Length: 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}Vary: y\r\n Set-Cookie: folded=1\r\nContent-Length: 2\r\n\r\n{{}}"), Read),
        (format!("{ok}Vary : y\r\nContent-Length: 2\r\n\r\n{{}}"), Read),
        (format!("{ok}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: 2, 2\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: 2, 3\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: +2\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: -2\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: 0x2\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: 2x\r\n\r\n{{}}"), Refused),
        (format!("{ok}Content-Length: 99999999999999999999\r\n\r\n{{}}"), Refused),
        (
            format!(
                "{ok}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
            ),
            Refused,
        ),
        (
            format!("{ok}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"),
            Refused,
        ),
        (format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"), Refused),
        (
            format!("{ok}Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"),
            Refused,
        ),
        (
            format!("{ok}Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"),
            Refused,
        ),
        (format!("{ok}Content-Length: 2\r\n\r\n{{}}{smuggled}"), ReadOnce),
        (format!("{ok}Content-Length: 2\r\n\r\n{{}}\r\n"), ReadOnce),
        (
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
            ReadOnce,
        ),
        (format!("{ok}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"), Refused),
        (format!("{ok}Transfer-Encoding: chunked\r\n\r\n-2\r\n{{}}\r\n0\r\n\r\n"), Refused),
        (format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}XX0\r\n\r\n"), Refused),
        (
            format!("{ok}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{{}}\r\n0\r\n\r\n"),
            Refused,
        ),
        (
            format!(
                "{ok}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\nX-Trailer: PLANTED\r\n\r\n"
            ),
            Read,
        ),
        (
            format!(
                "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{smuggled}"
            ),
            Refused,
        ),
        (
            format!(
                "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n{smuggled}"
            ),
            Refused,
        ),
        (format!("HTTP/2 200\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"), Refused),
        (format!("HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"), Refused),
        (format!("HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"), Refused),
        (format!("HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"), Refused),
        ("nonsense\r\n\r\n".to_owned(), Refused),
        ("\0\0\0\0".to_owned(), Refused),
    ];
    let mut wrong = Vec::new();
    for (bytes, then) in &cases {
        for way in WAYS {
            origin.when(Rule::on(way).raw_kept_open(bytes.as_str()).times(1));
            let answer = ask_anew(&gateway, way);
            let odd = origin.last(way).expect("it was asked for").connection;
            let next = next_connection(&origin, &gateway, way, bytes);
            let (status, body, whole) = answer.as_ref().map_or((0, String::new(), false), |a| {
                (a.status, a.text(), a.broken_off.is_none())
            });
            let read = status == 200 && body == "{}" && whole;
            // An answer whose head was passed on already can only be cut, which its caller sees.
            let refused = matches!(status, 502 | 504) || (way == PASSED && status == 200 && !whole);
            let good = match then {
                Refused => refused,
                ReadOnce | Read => read || refused,
            };
            let again = odd == next && *then != Read;
            if !good || body.contains("SMUG") || again {
                wrong.push(format!(
                    "{way}: {bytes:?} {then:?}: {status} {body:?} whole={whole} again={}",
                    odd == next
                ));
            }
            // A folded field is one line, or none.
            assert!(answer.is_none_or(|answer| answer.header("set-cookie").is_none()), "{bytes:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bytes_on_an_idle_connection_end_it() {
    let (origin, gateway) = scene();
    let good = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let unasked = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"s\":\"SMUG\"}";
    for way in WAYS {
        for unasked in [
            unasked,
            "\r\n",
            "x",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 408 Request Timeout\r\n\r\n",
        ] {
            let gate = Gate::closed();
            origin.when(Rule::on(way).raw_and_unasked(good, &gate, unasked).times(1));
            assert_eq!(ask_anew(&gateway, way).expect("an answer").assert_status(200).text(), "{}");
            let odd = origin.last(way).expect("it was asked for").connection;
            gate.open();
            // Only what came before the next request can be known for unasked; a moment is all it
            // needs.
            pace(Duration::from_millis(100));
            let next = next_connection(&origin, &gateway, way, unasked);
            assert_ne!(odd, next, "{way}: a connection with {unasked:?} on it was used again");
        }
    }
}

#[test]
fn response_without_a_body_consumes_no_further_bytes() {
    let (origin, gateway) = scene();
    let extra = "Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"s\":\"SMUG\"}";
    for way in WAYS {
        for (method, status) in
            [("GET", "204 No Content"), ("GET", "304 Not Modified"), ("HEAD", "200 OK")]
        {
            origin.when(
                Rule::on(way).raw_kept_open(format!("HTTP/1.1 {status}\r\n{extra}")).times(1),
            );
            gateway.admin().delete("/cache").send().assert_status(200);
            let mut connection = gateway.client().connect();
            let kind = if way == P { Kind::Intercepted } else { Kind::Forwarded };
            let answer = gateway.client().call(method, way).bearer("tok-a").kind(kind);
            connection.send_raw(answer.bytes());
            connection.read(method, kind);
            // No byte of the body is read as the next response.
            connection.end_of_sending();
            let rest = connection.rest();
            assert!(!String::from_utf8_lossy(&rest).contains("SMUG"), "{way} {method} {status}");
            let odd = origin.last(way).expect("it was asked for").connection;
            let next = next_connection(&origin, &gateway, way, status);
            assert!(odd != next || (way == P && method == "HEAD"), "{way} {method} {status}");
        }
    }
}

#[test]
fn endless_informational_responses_are_cut_off() {
    let (origin, gateway) = scene();
    let before = gateway.memory();
    for way in WAYS {
        for line in ["100 Continue", "102 Processing", "103 Early Hints"] {
            origin.when(
                Rule::on(way).forever(
                    "",
                    format!("HTTP/1.1 {line}\r\nX-Filler: {}\r\n\r\n", "x".repeat(500)),
                ),
            );
            let began = Instant::now();
            let answer =
                ask_anew(&gateway, way).unwrap_or_else(|| panic!("no answer on {way} to {line}"));
            assert!(matches!(answer.status, 502 | 504), "{way} {line}: {answer:#?}");
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{way} {line}: {:?}",
                began.elapsed()
            );
            next_connection(&origin, &gateway, way, line);
        }
        // A few are well.
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
        let good =
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        origin.when(Rule::on(way).raw_kept_open(format!("{early}{early}{good}")).times(1));
        assert_eq!(
            ask_anew(&gateway, way).expect("an answer").assert_status(200).text(),
            "{}",
            "{way}"
        );
    }
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
}

#[test]
fn endless_response_head_gets_502() {
    let (origin, gateway) = scene();
    let before = gateway.memory();
    let filler = "x".repeat(4000);
    let heads = [
        ("HTTP/1.1 200 OK\r\nX: ".to_owned(), filler.clone()),
        ("HTTP/1.1 200 OK\r\n".to_owned(), format!("X: {filler}\r\n")),
        ("HTTP/1.1 200 OK\r\n".to_owned(), "X:\r\n".repeat(100)),
        (String::new(), filler),
    ];
    for way in WAYS {
        for (head, piece) in &heads {
            origin.when(Rule::on(way).forever(head.as_str(), piece.as_str()));
            let began = Instant::now();
            let answer = ask_anew(&gateway, way).expect("an answer");
            assert!(matches!(answer.status, 502 | 504), "{way}: {answer:#?}");
            assert!(began.elapsed() < Duration::from_secs(20), "{way}: {:?}", began.elapsed());
            next_connection(&origin, &gateway, way, "a head without end");
        }
    }
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
}

#[test]
fn endless_response_body_gets_502_or_ends_with_the_client() {
    let (origin, gateway) = scene();
    let before = gateway.memory();
    let filler = "x".repeat(16 << 10);
    let chunk = format!("{:x}\r\n{filler}\r\n", filler.len());
    let framings = [("", filler.as_str()), ("Transfer-Encoding: chunked\r\n", chunk.as_str())];
    for (framing, piece) in framings {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n");
        for way in [P, REDACTED] {
            origin.when(Rule::on(way).forever(head.as_str(), piece));
            let answer = ask_anew(&gateway, way).expect("an answer");
            assert!(matches!(answer.status, 502 | 504), "{way}: {answer:#?}");
            next_connection(&origin, &gateway, way, framing);
        }
        // A forwarded body is as fast as its client reads; a client that does not read holds a few
        // buffers.
        origin.when(Rule::on(PASSED).forever(head.as_str(), piece));
        let mut slow: Vec<_> = (0..10).map(|_| gateway.client().get(PASSED).start()).collect();
        for pending in &mut slow {
            pending.connection.wait_for(b"xxxx");
        }
        assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
        drop(slow);
        next_connection(&origin, &gateway, PASSED, framing);
    }
    // A caller who left ends it at the API as well.
    wait_until("nothing is in flight", || gateway.metric("upstream_in_flight", &[]) == 0.0);
    assert!(gateway.memory() < before + GROWTH, "{} KiB, {before} before", gateway.memory());
}

#[test]
fn slow_response_gets_504_in_time() {
    let (origin, gateway) = scene();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    // Never silent for long, and never done.
    for (start, piece) in
        [(head.to_owned(), "X-A: b\r\n"), (format!("{head}Content-Length: 60000\r\n\r\n"), " ")]
    {
        origin.when(Rule::on(P).forever(start.as_str(), piece).drip());
        let began = Instant::now();
        ask_anew(&gateway, P).expect("an answer").assert_error(504, "gateway_timeout");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        next_connection(&origin, &gateway, P, piece);
    }
}

#[test]
fn truncated_response_is_never_complete() {
    let (origin, gateway) = scene();
    let body = upstream_document(DUCK);
    let length = body.len();
    let half = &body[..length / 2];
    let cases = [
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{half}"
        ),
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{half}\r\n",
            half.len()
        ),
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{half}"),
    ];
    for bytes in &cases {
        for way in [P, REDACTED] {
            origin.when(Rule::on(way).raw(bytes.as_str()));
            let answer = ask_anew(&gateway, way).expect("an answer");
            assert_eq!(answer.status, 502, "{way}: {answer:#?}");
            next_connection(&origin, &gateway, way, "half a body");
        }
        origin.when(Rule::on(PASSED).raw(bytes.replace(MARKER, "no")));
        if let Some(answer) = ask_anew(&gateway, PASSED) {
            let is_declared = bytes.contains("Length") || bytes.contains("chunked");
            assert!(
                answer.status == 502 || answer.broken_off.is_some() || !is_declared,
                "{answer:#?}"
            );
        }
        next_connection(&origin, &gateway, PASSED, "half a body");
    }
}

#[test]
fn response_fields_with_secrets_do_not_pass() {
    let (origin, gateway) = scene();
    let laden = |answer: Answer| {
        answer
            .header("Set-Cookie", "session=PLANTED")
            .header("X-Debug", "PLANTED")
            .header("Warning", "199 - \"PLANTED\"")
            .header("ETag", "\"PLANTED\"")
            .header("Content-Location", "/PLANTED")
            .header("Connection", "X-Debug")
            .header("Trailer", "X-PLANTED")
    };
    for answer in [
        Answer::json(upstream_document(DUCK)),
        Answer::error(403, "access_denied"),
        Answer::error(404, "customer"),
        Answer::error(500, "internal_error"),
        Answer::new(302).header("Location", "http://elsewhere.invalid/?token=PLANTED"),
        Answer::json("not JSON: PLANTED"),
    ] {
        origin.document(DUCK, laden(answer));
        for _ in 0..2 {
            // The checks of every answer look for what was planted.
            ask(&gateway, P).expect("an answer");
        }
        gateway.admin().delete("/cache").send().assert_status(200);
    }
}

#[test]
fn invalid_certificate_of_the_api_gets_502_on_every_route() {
    let authority = Authority::new();
    let certificates = [
        ("another name", authority.certificate_for_another_name(), authority.pem()),
        ("expired", authority.expired_certificate(), authority.pem()),
    ];
    for (what, certificate, pem) in certificates {
        let origin = Origin::start_tls(&certificate);
        origin.knows("tok-a", "VIEWER", DUCK);
        let setup = Gateway::set_up(&origin).file("ca.pem", pem);
        let gateway = setup.config(r#"upstream.ca_file = "{dir}/ca.pem""#).start();
        for way in WAYS {
            ask(&gateway, way).expect("an answer").assert_error(502, "bad_gateway");
        }
        assert_eq!(origin.requests(), 0, "{what}");
    }
    // Plain text where TLS is expected: nothing is ever said in the clear.
    let plain = Origin::start();
    plain.knows("tok-a", "VIEWER", DUCK);
    let config = format!(
        r#"upstream = {{ url = "https://{}", timeout = "2s", connect_timeout = "1s" }}"#,
        plain.address()
    );
    let gateway = Gateway::with(&plain, &config);
    for way in WAYS {
        let answer = ask(&gateway, way).expect("an answer");
        assert!(matches!(answer.status, 502 | 504), "{way}: {answer:#?}");
    }
    assert_eq!(plain.count(|seen| format!("{seen:?}").contains(TOKEN_MARKER)), 0);
}

#[test]
fn unresolvable_api_gets_502_on_every_route() {
    let origin = Origin::start();
    // RFC 6761, section 6.4: no such name has an address.
    let config = r#"upstream = { url = "http://api.invalid:80", connect_timeout = "1s" }"#;
    let mut gateway = Gateway::with(&origin, config);
    for way in WAYS {
        ask(&gateway, way).expect("an answer").assert_error(502, "bad_gateway");
    }
    assert!(
        gateway.metric("upstream_errors_total", &[("kind", "resolve")]) >= 1.0,
        "{}",
        gateway.metrics()
    );
    gateway.admin().get("/readyz").send();
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(origin.requests(), 0);
}

/// JSON in gzip, a thousandth of its length: members one after the other (RFC 1952, section 2.2),
/// so that it is made fast.
fn bomb(length: usize) -> Vec<u8> {
    let member = |text: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).and_then(|()| encoder.finish()).expect("it is written to memory")
    };
    let mebibyte = member(&vec![b' '; 1 << 20]);
    let mut bomb = member(b"{\"name\":\"");
    (0..length >> 20).for_each(|_| bomb.extend_from_slice(&mebibyte));
    bomb.extend(member(b"\",\"integrations\":{\"key\":\"PLANTED\"}}"));
    bomb
}

#[test]
fn compression_bomb_is_not_expanded() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let unpacked =
        std::io::copy(&mut MultiGzDecoder::new(bomb(2 << 20).as_slice()), &mut std::io::sink());
    assert!(unpacked.is_ok_and(|length| length > 2 << 20), "it is one");
    let bomb = bomb(1 << 30);
    for limit in ["64KiB", "4MiB"] {
        let config = format!("upstream = {{ timeout = \"20s\", max_body = \"{limit}\" }}");
        let gateway = Gateway::with(&origin, &config);
        let before = gateway.memory();
        for coding in [Some("gzip"), Some("x-gzip"), None] {
            let plain = Answer::json(bomb.as_slice());
            let answer = coding
                .iter()
                .fold(plain, |answer, coding| answer.header("Content-Encoding", coding));
            origin.when(Rule::on("/customer/").answer(answer.clone()));
            for way in [P, REDACTED] {
                let refused = ask(&gateway, way).expect("an answer");
                assert_eq!(refused.status, 502, "{way} {coding:?}: {refused:#?}");
            }
            // Where nothing is redacted it is the caller's, who asked for it: not one byte is
            // touched.
            origin.when(Rule::on(PASSED).answer(answer));
            assert!(
                ask(&gateway, PASSED).expect("an answer").assert_status(200).body == bomb,
                "{coding:?}"
            );
            origin.behave();
        }
        let grown = gateway.memory().saturating_sub(before);
        println!("{} bytes of a GiB, up to {limit}: {grown} KiB more", bomb.len());
        assert!(grown < GROWTH, "{grown} KiB");
    }
}

#[test]
fn redirect_to_another_host_passes_and_is_not_followed() {
    let (origin, gateway) = scene();
    let elsewhere = Origin::start();
    for status in [301, 302, 303, 307, 308] {
        let location = format!("{}/x", elsewhere.url());
        let redirect = Answer::new(status).header("Location", &location);
        for way in [PASSED, REDACTED] {
            origin.when(Rule::on(way).answer(redirect.clone()).times(1));
            let answer = ask(&gateway, way).expect("an answer");
            assert_eq!(
                (answer.status, answer.header("location")),
                (status, Some(location.as_str())),
                "{answer:#?}"
            );
        }
        origin.when(Rule::on(P).answer(redirect).times(1));
        let answer = ask_anew(&gateway, P).expect("an answer");
        assert_eq!(
            (answer.status, answer.header("location")),
            (status, Some(location.as_str())),
            "{answer:#?}"
        );
    }
    assert_eq!(elsewhere.requests(), 0);
}
