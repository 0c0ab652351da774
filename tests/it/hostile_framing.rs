//! Requests over HTTP/1.1 whose bytes are meant to be read in two ways: they are refused and the
//! connection ends, or the API sees exactly one request.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-evil\r\n\r\n";

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

/// The next request on a fresh connection is right, on both routes.
fn still_right(origin: &Origin, gateway: &Gateway, after: &str) {
    let intercepted = gateway.client().get(P).bearer("tok-a").send();
    assert_eq!(intercepted.assert_status(200).text(), redacted_document(DUCK), "after {after:?}");
    let forwarded = gateway.client().get("/alive").send();
    assert_eq!(forwarded.assert_status(200).json()["target"], "/alive", "after {after:?}");
    assert_eq!(origin.count(|seen| seen.path() == "/hidden"), 0, "{after:?} hid a request");
    assert_eq!(
        origin.count(|seen| format!("{seen:?}").contains("tok-evil")),
        0,
        "{after:?} hid a credential"
    );
}

/// Sends these bytes; the answer is a 400 (or another refusal named) and the connection ends with
/// it.
fn refused(gateway: &Gateway, bytes: &[u8], statuses: &[u16]) {
    let shown = String::from_utf8_lossy(bytes);
    let mut connection = gateway.client().connect();
    connection.send_raw(bytes);
    let answer =
        connection.read("GET", Kind::Forwarded).unwrap_or_else(|| panic!("no answer to {shown:?}"));
    assert!(statuses.contains(&answer.status), "{shown:?}: {answer:#?}");
    assert_eq!(connection.rest(), b"", "after {shown:?}");
}

#[test]
fn ambiguous_head_gets_400_on_every_route() {
    let (origin, gateway) = scene();
    let fields: [&[u8]; 31] = [
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked;q=1\r\n",
        b"Transfer-Encoding: \x0cchunked\r\n",
        b"Transfer-Encoding: \"chunked\"\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5,5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 5;\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5.0\r\n",
        b"Content-Length: 1e1\r\n",
        b"Content-Length: \xd9\xa5\r\n",
        b"Content-Length: 9223372036854775808\r\n",
        b"Content-Length: 00000000000000000000000005\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length\t: 5\r\n",
        b" Content-Length: 5\r\n",
        b"X: y\r\n\tContent-Length: 5\r\n",
        b"no colon\r\n",
        b": no name\r\n",
        b"X\xc3\xa6: y\r\n",
        b"X(: y\r\n",
        b"X: y\x00z\r\n",
        b"X: y\nContent-Length: 5\r\n",
    ];
    for field in fields {
        for line in [format!("GET {P}"), "POST /x".to_owned(), "POST /auth/login".to_owned()] {
            let mut bytes =
                format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n")
                    .into_bytes();
            bytes.extend_from_slice(field);
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(HIDDEN.as_bytes());
            refused(&gateway, &bytes, &[400]);
        }
        assert_eq!(origin.requests(), 0, "{:?}", String::from_utf8_lossy(field));
    }
    still_right(&origin, &gateway, "all of them");
}

#[test]
fn ambiguous_request_line_gets_400() {
    let (origin, gateway) = scene();
    let lines: [&[u8]; 15] = [
        b"GET /x http/1.1",
        b"GET /x HTTP/1.2",
        b"GET /x HTTP/2.0",
        b"GET /x HTTP/11",
        b"GET /x HTTP/1.1 ",
        b"GET /x  HTTP/1.1",
        b"GET\t/x\tHTTP/1.1",
        b"GET /x",
        b" GET /x HTTP/1.1",
        b"GE(T /x HTTP/1.1",
        b"GET /x y HTTP/1.1",
        b"GET /x\rHTTP/1.1",
        b"GET /x HTTP/1.1\r",
        b"GET /x HTTP/1.1\nX: y",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for line in lines {
        let mut bytes = line.to_vec();
        bytes.extend_from_slice(b"\r\nHost: x\r\n\r\n");
        refused(&gateway, &bytes, &[400]);
    }
    // HTTP/1.0 knows no transfer codings.
    let old = b"POST /x HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused(&gateway, old, &[400]);
    assert_eq!(origin.requests(), 0);
    // A head that is ended by bare line feeds alone is not waited for.
    refused(&gateway, b"GET /x HTTP/1.1\nHost: x\n\n", &[400]);
    assert_eq!(origin.requests(), 0);
    still_right(&origin, &gateway, "all of them");
}

#[test]
fn ambiguous_chunks_get_400() {
    let (origin, gateway) = scene();
    let long = format!("5;{}\r\nabcde\r\n0\r\n\r\n", "x".repeat(20_000));
    // The body, and whether it is refused.
    let cases: [(&str, bool); 39] = [
        ("5\r\nabcde\r\n0\r\n\r\n", false),
        ("5;a=b\r\nabcde\r\n0;c\r\n\r\n", false),
        ("05\r\nabcde\r\n00\r\n\r\n", false),
        ("5\r\nabcde\r\n0\r\nX: y\r\n\r\n", false),
        ("5 \r\nabcde\r\n0\r\n\r\n", true),
        ("5;\x01\r\nabcde\r\n0\r\n\r\n", true),
        ("5;\x00\r\nabcde\r\n0\r\n\r\n", true),
        ("5;a=\"\r\n\"\r\nabcde\r\n0\r\n\r\n", true),
        ("5;a\r\nabcde\r\n0\r\n\r\n", false),
        ("5;a=\"b;c\"\r\nabcde\r\n0\r\n\r\n", false),
        ("5;\r\nabcde\r\n0\r\n\r\n", true),
        ("5;a@b=[]\r\nabcde\r\n0\r\n\r\n", true),
        ("5;a=\"\r\nabcde\r\n0\r\n\r\n", true),
        ("5; a\r\nabcde\r\n0\r\n\r\n", true),
        ("5;a=\r\nabcde\r\n0\r\n\r\n", true),
        ("5;a=\"b\"c\r\nabcde\r\n0\r\n\r\n", true),
        ("5\r\nabcde\r\n0;\r\n\r\n", true),
        ("5;a\nabcde\r\n0\r\n\r\n", true),
        (&long, true),
        ("0x5\r\nabcde\r\n0\r\n\r\n", true),
        ("+5\r\nabcde\r\n0\r\n\r\n", true),
        ("-5\r\nabcde\r\n0\r\n\r\n", true),
        (" 5\r\nabcde\r\n0\r\n\r\n", true),
        ("5,5\r\nabcde\r\n0\r\n\r\n", true),
        ("\r\nabcde\r\n0\r\n\r\n", true),
        ("5\nabcde\n0\n\n", true),
        ("5\r\nabcde\n0\r\n\r\n", true),
        ("5\rabcde\r0\r\r", true),
        ("5\r\nabcdeXX0\r\n\r\n", true),
        ("5\r\nabcdef\r\n0\r\n\r\n", true),
        ("5\r\nabcde\r\r\n0\r\n\r\n", true),
        ("10000000000000005\r\nabcde\r\n0\r\n\r\n", true),
        ("ffffffffffffffff\r\nabcde\r\n0\r\n\r\n", true),
        ("fffffffffffffffe\r\nabcde\r\n0\r\n\r\n", true),
        ("7fffffffffffffff\r\nabcde\r\n0\r\n\r\n", true),
        ("5\r\nabcde\r\n0\r\nX y\r\n\r\n", true),
        ("5\r\nabcde\r\n0\r\nX: y\r\n folded\r\n\r\n", true),
        ("5\r\nabcde\r\n0\r\nX: y\n\r\n", true),
        ("5\r\nabcde\r\n0\r\n\n", true),
    ];
    // On a plainly forwarded route, on a redacted one; together with the head, and after it, when
    // the API has it already.
    for (number, (body, doubtful)) in cases.into_iter().enumerate() {
        for (route, later) in
            [("/chunks", false), ("/chunks", true), ("/log/chunks", false), ("/log/chunks", true)]
        {
            let path = format!("{route}/{number}");
            let before = origin.count(|seen| seen.path() == path);
            let mut connection = gateway.client().connect();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            let behind = if doubtful { HIDDEN } else { "" };
            if later {
                connection.send_raw(head);
                wait_until("the API has the head", || {
                    origin.count(|seen| seen.path() == path) > before
                });
                let _ = connection.try_send_raw(format!("{body}{behind}").as_bytes());
            } else {
                connection.send_raw(format!("{head}{body}{behind}"));
            }
            let shown: String = format!("{path} {later} {body:?}").chars().take(80).collect();
            let answer = connection
                .read("POST", Kind::Forwarded)
                .unwrap_or_else(|| panic!("no answer to {shown}"));
            if doubtful {
                answer.assert_error(400, "bad_request");
                assert_eq!(connection.rest(), b"", "after {shown}");
            } else {
                assert_eq!(answer.assert_status(200).json()["body"], "abcde", "{shown}");
            }
            for seen in origin.seen().iter().filter(|seen| seen.path() == path && seen.complete) {
                assert!(!doubtful, "{shown} went on as {seen:#?}");
            }
        }
    }
    still_right(&origin, &gateway, "all of them");
}

#[test]
fn unread_chunked_body_is_checked_or_ends_the_connection() {
    let (origin, gateway) = scene();
    for (body, status) in [("5\r\nabcde\r\n0\r\n\r\n", 200), ("\r\nabcde\r\n0\r\n\r\n", 400)] {
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "GET {P} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\
             Transfer-Encoding: chunked\r\n\r\n{body}{HIDDEN}"
        ));
        let answer = connection.read("GET", Kind::Intercepted).expect("an answer");
        assert_eq!(answer.status, status, "{body:?}: {answer:#?}");
        assert_eq!(connection.rest(), b"", "after {body:?}");
    }
    still_right(&origin, &gateway, "unread bodies");
}

/// A piece of which nothing is a body once was passed on as the last chunk, on redacted routes: the
/// rest of the body stood behind it, where the API reads a request.
#[test]
fn chunked_body_in_any_pieces_is_one_body() {
    let (origin, gateway) = scene();
    let body =
        format!("5\r\nabcde\r\n{:x};x=y\r\n{HIDDEN}\r\n2\r\nfg\r\n0\r\nX: y\r\n\r\n", HIDDEN.len());
    let whole = format!("abcde{HIDDEN}fg");
    let cuts = (1..20).chain([body.len() - 20, body.len() - 11, body.len() - 8, body.len() - 2]);
    for (number, cut) in cuts.enumerate() {
        for route in ["/cut", "/log/cut"] {
            let path = format!("{route}/{number}");
            let mut connection = gateway.client().connect();
            connection.send_raw(format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\nTransfer-Encoding: chunked\r\n\r\n"
            ));
            wait_until("the API has the head", || origin.last(&path).is_some());
            // Most of all a chunk's size without its end.
            connection.send_raw(&body[..cut]);
            pace(std::time::Duration::from_millis(20));
            connection.send_raw(&body[cut..]);
            let answer = connection.read("POST", Kind::Forwarded).expect("an answer");
            assert_eq!(answer.assert_status(200).json()["body"], whole, "{path}, cut at {cut}");
            assert_eq!(
                origin.last(&path).expect("it was forwarded").body,
                whole.as_bytes(),
                "{path}, cut at {cut}"
            );
        }
    }
    assert_eq!(origin.count(|seen| seen.path() == "/hidden"), 0);
}

#[test]
fn connection_continues_after_a_chunked_body() {
    let (origin, gateway) = scene();
    let client = gateway.client();
    let mut connection = client.connect();
    for number in 0..20 {
        let path = format!("/kept/{number}");
        client.post(&path).chunked(&[b"abc", b"de"]).send_on(&mut connection).assert_status(200);
        assert_eq!(origin.last(&path).expect("it was forwarded").body, b"abcde");
        client.get(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
    }
}

#[test]
fn request_trailers_do_not_become_fields() {
    let (origin, gateway) = scene();
    let trailers = [
        "Authorization: Bearer tok-evil",
        "Content-Length: 100",
        "Transfer-Encoding: chunked",
        "Host: evil.invalid",
        "X-Forwarded-For: 203.0.113.7",
        "Trailer-Field: x",
    ];
    for (number, trailer) in trailers.into_iter().enumerate() {
        let path = format!("/trailer/{number}");
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n\
             5\r\nabcde\r\n0\r\n{trailer}\r\n\r\n"
        ));
        let answer = connection.read("POST", Kind::Forwarded).expect("an answer");
        assert!(matches!(answer.status, 200 | 400), "{trailer}: {answer:#?}");
        if let Some(seen) = origin.last(&path) {
            let whole = format!("{seen:?}");
            assert!(!whole.contains("tok-evil") && !whole.contains("evil.invalid"), "{seen:#?}");
            assert!(
                !whole.contains("203.0.113.7") && seen.header("trailer-field").is_none(),
                "{seen:#?}"
            );
            assert_eq!((seen.header("content-length"), seen.complete), (None, true), "{seen:#?}");
        }
    }
    still_right(&origin, &gateway, "trailers");
}

#[test]
fn request_within_a_body_stays_a_body() {
    let (origin, gateway) = scene();
    let client = gateway.client();
    for (number, call) in [
        client.post("/body/0").body(HIDDEN),
        client.post("/body/1").chunked(&[HIDDEN.as_bytes()]),
        client.get("/body/2").body(HIDDEN),
        client.delete("/body/3").body(HIDDEN),
        client.call("OPTIONS", "/body/4").body(HIDDEN),
        client.head("/body/5").body(HIDDEN),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = client.connect();
        call.send_on(&mut connection).assert_status(200);
        let path = format!("/body/{number}");
        assert_eq!(origin.count(|seen| seen.path() == path), 1);
        assert_eq!(origin.count(|seen| seen.path() == "/hidden"), 0, "{path}");
        assert_eq!(origin.last(&path).expect("it was forwarded").body, HIDDEN.as_bytes());
        // What comes next on that connection is answered as itself, or not at all.
        connection.send_raw(client.get("/next").bytes());
        if let Some(next) = connection.read("GET", Kind::Forwarded) {
            assert_eq!(next.assert_status(200).json()["target"], "/next");
        }
    }
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
}

#[test]
fn refused_body_is_not_read_as_the_next_request() {
    let (origin, gateway) = scene();
    let client = gateway.client();
    for (call, status) in [
        (client.post("/tools/realtime").body(HIDDEN), 403),
        (client.post("/Customer/x").body(HIDDEN), 400),
        (client.get(P).body(HIDDEN), 401),
        (client.head(P).body(HIDDEN), 401),
        (client.get(P).bearer("tok-unknown").chunked(&[HIDDEN.as_bytes()]), 401),
        (client.get(P).bearer("tok-a").bearer("tok-b").body(HIDDEN), 400),
        (client.call("TRACE", "/x").body(HIDDEN), 405),
    ] {
        let mut connection = client.connect();
        let answer = call.send_on(&mut connection);
        assert_eq!(answer.status, status, "{answer:#?}");
        connection.send_raw(client.get("/next").bytes());
        // Not a second answer to what was one request.
        assert!(
            connection
                .read("GET", Kind::Forwarded)
                .is_none_or(|next| next.json()["target"] == "/next")
        );
    }
    still_right(&origin, &gateway, "bodies");
}

#[test]
fn expectation_gets_one_continue_and_is_forwarded_once() {
    let (origin, gateway) = scene();
    let mut connection = gateway.client().connect();
    connection.send_raw(
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    connection.wait_for(b"HTTP/1.1 100 ");
    connection.send_raw("abcde");
    assert_eq!(
        connection.read("POST", Kind::Forwarded).expect("an answer").assert_status(200).json()["body"],
        "abcde"
    );
    for (number, expect) in ["200-ok", "100-continue, x", "x=y", ""].into_iter().enumerate() {
        let path = format!("/expect/{number}");
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: {expect}\r\n\r\nabcde"
        ));
        let answer = connection.read("POST", Kind::Forwarded).expect("an answer");
        assert!(matches!(answer.status, 200 | 400 | 417), "{expect:?}: {answer:#?}");
        assert!(origin.count(|seen| seen.path() == path) <= 1, "{expect:?}");
    }
    // The intercepted route reads no body.
    let expecting = gateway
        .client()
        .get(P)
        .bearer("tok-a")
        .header("Expect", "100-continue")
        .body("abcde")
        .send();
    assert!(matches!(expecting.status, 200 | 417), "{expecting:#?}");
    still_right(&origin, &gateway, "Expect");
}

#[test]
fn upgrade_to_another_protocol_is_not_a_tunnel() {
    let (origin, gateway) = scene();
    // An API that would switch to anything.
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n";
    for upgrade in ["h2c", "H2C", "h2c, websocket", "TLS/1.3", "HTTP/2.0", "x"] {
        for (path, switches) in [(P, false), ("/x", false), ("/x", true)] {
            if switches {
                origin.when(Rule::on("/x").raw_kept_open(switch));
            }
            let before = origin.count(|seen| seen.path() == "/x");
            let mut connection = gateway.client().connect();
            connection.send_raw(format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\
                 Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n\
                 PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{HIDDEN}"
            ));
            connection.wait_for(b"\r\n\r\n");
            connection.end_of_sending();
            let answer = connection.rest();
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.starts_with(if switches { "HTTP/1.1 502" } else { "HTTP/1.1 200" }),
                "{upgrade}: {answer}"
            );
            assert!(!answer.contains(" 101 "), "{upgrade}: {answer}");
            origin.behave();
            assert!(origin.count(|seen| seen.path() == "/x") <= before + 1, "{upgrade}");
            for seen in origin.seen() {
                assert!(seen.header("http2-settings").is_none(), "{seen:#?}");
                let asked = seen.header("upgrade").unwrap_or_default().to_ascii_lowercase();
                assert!(
                    !asked.contains("h2c") && !asked.contains("tls") && !asked.contains("http"),
                    "{seen:#?}"
                );
                assert!(seen.method != "PRI", "a tunnel: {seen:#?}");
            }
            still_right(&origin, &gateway, upgrade);
        }
    }
}

#[test]
fn declined_websocket_is_not_a_tunnel() {
    let (origin, gateway) = scene();
    let asked =
        "GET /socket.io/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut connection = gateway.client().connect();
    connection.send_raw(format!("{asked}GET /tools/realtime HTTP/1.1\r\nHost: x\r\n\r\n"));
    connection.read("GET", Kind::Forwarded).expect("an answer").assert_status(200);
    // Whatever becomes of the rest, it is no tunnel's.
    connection.end_of_sending();
    connection.rest();
    assert_eq!(
        origin.count(|seen| seen.path() == "/tools/realtime"),
        0,
        "a blocked path was reached"
    );
    assert_eq!(origin.count(|seen| seen.path() == "/socket.io/"), 1);
    // The same on the intercepted route, cold and warm.
    for _ in 0..2 {
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "GET {P} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n{HIDDEN}"
        ));
        let answer = connection.read("GET", Kind::Intercepted).expect("an answer");
        assert_eq!(answer.assert_status(200).text(), redacted_document(DUCK));
    }
    still_right(&origin, &gateway, "a websocket");
}

#[test]
fn absolute_form_of_the_own_host_is_its_path() {
    let (origin, gateway) = scene();
    let host = gateway.public_address();
    let answer = gateway
        .client()
        .get(&format!("http://{host}{P}"))
        .bearer("tok-a")
        .kind(Kind::Intercepted)
        .send();
    assert_eq!(answer.assert_status(200).text(), redacted_document(DUCK));
    assert!(gateway.client().get(P).bearer("tok-a").send().is_hit(), "one entry for both");
    let blocked = gateway.client().get(&format!("http://{host}/tools/realtime")).send();
    blocked.assert_error(403, "access_denied");
    let alias =
        gateway.client().get(&format!("http://{host}/Customer/{DUCK}")).bearer("tok-a").send();
    alias.assert_error(400, "bad_request");
    assert_eq!(origin.count(|seen| seen.target.contains("://")), 0);
}
