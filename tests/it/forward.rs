//! Everything that is not intercepted: passed on as it is, in both directions, and never twice.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const BYPASS: &str = "telecomx-gateway; fwd=bypass";

#[test]
fn forwarded_response_states_bypass() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for method in ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND"] {
        let response = gateway.client().call(method, "/elsewhere?a=b").send();
        assert_eq!(response.assert_status(200).cache_status(), BYPASS, "{method}");
        assert_eq!(response.json()["method"], method);
        assert_eq!(response.json()["target"], "/elsewhere?a=b");
        assert_eq!(response.header("x-stand-in"), Some("echo"), "the origin's own fields pass");
    }
    let head = gateway.client().head("/elsewhere").send();
    assert_eq!(head.assert_status(200).cache_status(), BYPASS);
    assert_eq!(origin.requests(), 6);
}

#[test]
fn statuses_and_bodies_of_the_api_pass_unchanged() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let answers = [
        Answer::new(204),
        Answer::new(302).header("Location", "https://elsewhere.invalid/"),
        Answer::error(422, "validation"),
        Answer::error(500, "internal_error"),
        Answer::new(200).header("Content-Type", "text/csv").body("a;b\r\n1;2\r\n"),
        Answer::new(200)
            .header("Content-Type", "application/octet-stream")
            .body([0, 159, 146, 150, 255]),
        Answer::new(200).header("Set-Cookie", "a=1").header("Set-Cookie", "b=2").body("x"),
    ];
    for answer in answers {
        origin.when(Rule::on("/elsewhere").answer(answer.clone()));
        let response = gateway.client().get("/elsewhere").send();
        assert_eq!(
            (response.assert_status(answer.status).status, &response.body),
            (answer.status, &answer.body)
        );
        for (name, _) in &answer.headers {
            let sent: Vec<&str> = answer
                .headers
                .iter()
                .filter(|(field, _)| field == name)
                .map(|(_, value)| value.as_str())
                .collect();
            assert_eq!(response.all(name), sent);
        }
    }
}

#[test]
fn large_body_passes_in_both_directions() {
    let origin = Origin::start();
    origin.when(Rule::on("/elsewhere").made(|seen| Answer::new(200).body(seen.body.clone())));
    origin.when(
        Rule::on("/chunked")
            .made(|seen| Answer::new(200).body(seen.body.clone()).framing(Framing::Chunked)),
    );
    let gateway = Gateway::start(&origin);
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let length = gateway.client().post("/elsewhere").body(&body).send();
    assert!(length.assert_status(200).body == body, "other bytes came back");
    let pieces: Vec<&[u8]> = body.chunks(100_001).collect();
    let chunked = gateway.client().post("/chunked").chunked(&pieces).send();
    assert!(chunked.assert_status(200).body == body, "other bytes came back");
}

#[test]
fn request_body_is_forwarded_before_its_end() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let mut connection = gateway.client().connect();
    connection.send_raw("POST /elsewhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst");
    origin.wait_until("the first half is there", |seen| {
        seen.iter().any(|seen| seen.body == b"first" && !seen.complete)
    });
    connection.send_raw("last.");
    let response = connection.read("POST", Kind::Forwarded).expect("an answer");
    assert_eq!(response.assert_status(200).json()["body"], "firstlast.");
}

#[test]
fn response_body_is_forwarded_before_its_end() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    // A few bytes of a body of known length may wait in a buffer; more of it, or a body of unknown
    // length, may not.
    let large = format!("first{}last.", "x".repeat(1 << 20));
    for (framing, body) in [
        (Framing::Length, large.as_str()),
        (Framing::Chunked, large.as_str()),
        (Framing::UntilClose, "firstlast."),
    ] {
        let gate = Gate::closed();
        origin.when(
            Rule::on("/elsewhere")
                .answer(Answer::new(200).body(body).framing(framing))
                .hold_body(&gate),
        );
        let mut pending = gateway.client().get("/elsewhere").start();
        pending.connection.wait_for(b"first");
        gate.open();
        assert!(pending.finish().assert_status(200).text() == body, "{framing:?}: other bytes");
    }
}

#[test]
fn truncated_response_is_not_complete_for_the_client() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for framing in [Framing::Length, Framing::Chunked] {
        let answer = Answer::new(200)
            .header("Content-Type", "text/plain")
            .body("x".repeat(1000))
            .framing(framing);
        origin.when(Rule::on("/elsewhere").answer(answer).cut_body_after(500));
        let response = gateway.client().get("/elsewhere").try_send();
        let whole = response
            .as_ref()
            .is_some_and(|response| response.status == 200 && response.broken_off.is_none());
        assert!(!whole, "{framing:?}: {response:#?}");
    }
    gateway.client().get("/good").send().assert_status(200);
}

#[test]
fn upgraded_connection_passes_both_directions() {
    let origin = Origin::start();
    origin.when(Rule::on("/socket.io/").upgrade());
    let gateway = Gateway::start(&origin);
    let mut connection = gateway.client().connect();
    connection.send_raw(
        "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    let switched = connection.read("GET", Kind::Forwarded).expect("an answer");
    assert_eq!(switched.status, 101, "{switched:#?}");
    for round in 0..3_u8 {
        let frame: Vec<u8> = (0..=255).map(|byte: u8| byte ^ round).collect();
        connection.send_raw(&frame);
        assert_eq!(connection.take(frame.len()), frame);
    }
    let seen = origin.last("/socket.io/").expect("it was forwarded");
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(seen.header("sec-websocket-version"), Some("13"));
}

#[test]
fn hop_by_hop_request_fields_are_not_forwarded() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let call = gateway
        .client()
        .get("/elsewhere")
        .header("Connection", "keep-alive, X-Hop")
        .header("X-Hop", "1");
    let call = call
        .header("Keep-Alive", "timeout=9")
        .header("Proxy-Connection", "keep-alive")
        .header("X-Stays", "1");
    call.send().assert_status(200);
    let names = origin.last("/elsewhere").expect("it was forwarded").header_names();
    for hop in ["x-hop", "keep-alive", "proxy-connection"] {
        assert!(!names.contains(&hop.to_owned()), "{hop} went on: {names:?}");
    }
    assert!(names.contains(&"x-stays".to_owned()), "{names:?}");
}

// RFC 9110, section 7.6.1.
#[test]
fn hop_by_hop_response_fields_are_not_forwarded() {
    let origin = Origin::start();
    let answer = Answer::json("{}")
        .header("Connection", "X-Back")
        .header("X-Back", "1")
        .header("X-Stays", "1");
    origin.when(Rule::on("/elsewhere").answer(answer));
    let gateway = Gateway::start(&origin);
    let response = gateway.client().get("/elsewhere").send();
    assert_eq!(response.assert_status(200).header("x-stays"), Some("1"));
    assert_eq!(response.header("x-back"), None, "{response:#?}");
}

#[test]
fn api_receives_client_address_and_via() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let call = gateway
        .client()
        .get("/elsewhere")
        .host("gateway.example")
        .header("X-Forwarded-For", "203.0.113.7");
    let response = call.header("X-Request-Id", "asked-by-me").send();
    let seen = origin.last("/elsewhere").expect("it was forwarded");
    assert_eq!(
        seen.header("host"),
        Some(origin.address().to_string().as_str()),
        "the API's own host"
    );
    let forwarded_for: Vec<&str> =
        seen.header("x-forwarded-for").expect("addresses").split(", ").collect();
    assert_eq!(forwarded_for[0], "203.0.113.7", "believed, since we are a trusted proxy");
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert!(seen.header("via").is_some(), "{seen:#?}");
    assert_eq!(seen.header("x-request-id"), Some("asked-by-me"));
    assert_eq!(response.header("x-request-id"), Some("asked-by-me"));
    let made = gateway.client().get("/elsewhere").send();
    let seen = origin.last("/elsewhere").expect("it was forwarded");
    assert_eq!(seen.header("x-request-id"), made.header("x-request-id"));
}

#[test]
fn address_claimed_by_an_untrusted_client_is_not_forwarded() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "server.trusted_proxies = []");
    gateway
        .client()
        .get("/elsewhere")
        .header("X-Forwarded-For", "203.0.113.7")
        .send()
        .assert_status(200);
    let seen = origin.last("/elsewhere").expect("it was forwarded");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    let names = seen.header_names();
    assert_eq!(names.iter().filter(|name| *name == "x-forwarded-for").count(), 1);
}

#[test]
fn post_is_sent_once_whatever_its_outcome() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    // A connection is kept, and the POST may go out on it.
    client.get("/elsewhere").send().assert_status(200);
    origin.when(Rule::on("/write").close());
    client.post("/write").body("once").send().assert_error(502, "bad_gateway");
    assert_eq!(origin.count(|seen| seen.path() == "/write"), 1);
    client.get("/elsewhere").send().assert_status(200);
    origin.when(Rule::on("/head").close_at_head());
    client.post("/head").body("once").send().assert_error(502, "bad_gateway");
    assert_eq!(origin.count(|seen| seen.path() == "/head"), 1);
}

#[test]
fn post_on_a_closed_api_connection_is_sent_at_most_once() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for round in 0..5 {
        client.get("/elsewhere").send().assert_status(200);
        origin.stop();
        origin.resume();
        let path = format!("/write/{round}");
        let response = client.post(&path).body("once").send();
        let count = origin.count(|seen| seen.path() == path);
        match response.status {
            200 => assert_eq!(count, 1),
            _ => assert!(count <= 1 && response.assert_error(502, "bad_gateway").status == 502),
        }
    }
}

#[test]
fn unreachable_api_gets_502_until_it_returns() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    origin.stop();
    client.get("/elsewhere").send().assert_error(502, "bad_gateway");
    client.post("/elsewhere").body("x").send().assert_error(502, "bad_gateway");
    client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    origin.resume();
    wait_until("it is forwarded again", || client.get("/elsewhere").send().status == 200);
    wait_until("it is fetched again", || client.get(P).bearer("tok-a").send().status == 200);
}

/// Over TLS to an origin with that certificate: a forwarded answer and an intercepted one.
fn over_tls(certificate: &Certificate, authority: &Authority) -> (Response, Response) {
    let origin = Origin::start_tls(certificate);
    origin.knows("tok-a", "VIEWER", DUCK);
    let setup = Gateway::set_up(&origin).file("ca.pem", authority.pem());
    let gateway = setup.config(r#"upstream.ca_file = "{dir}/ca.pem""#).start();
    let forwarded = gateway.client().get("/elsewhere").send();
    let intercepted = gateway.client().get(P).bearer("tok-a").send();
    if forwarded.status != 200 {
        assert_eq!(origin.requests(), 0, "nothing is said to whom is not trusted");
    }
    (forwarded, intercepted)
}

#[test]
fn api_with_a_trusted_certificate_is_accepted() {
    let authority = Authority::new();
    let (forwarded, intercepted) = over_tls(&authority.certificate(), &authority);
    assert_eq!(forwarded.assert_status(200).json()["target"], "/elsewhere");
    assert_eq!(intercepted.assert_status(200).text(), redacted_document(DUCK));
}

#[test]
fn api_with_another_certificate_gets_502() {
    let authority = Authority::new();
    for certificate in [
        authority.certificate_for_another_name(),
        authority.expired_certificate(),
        Authority::new().certificate(),
    ] {
        let (forwarded, intercepted) = over_tls(&certificate, &authority);
        forwarded.assert_error(502, "bad_gateway");
        intercepted.assert_error(502, "bad_gateway");
    }
}

#[test]
fn tls_never_falls_back_to_cleartext() {
    let plain = Origin::start();
    let gateway =
        Gateway::with(&plain, &format!(r#"upstream.url = "https://{}""#, plain.address()));
    let response = gateway.client().get("/elsewhere").send();
    // The stand-in waits for the rest of what it takes for a head, so the time for connecting may
    // run out.
    assert!(matches!(response.status, 502 | 504), "{response:#?}");
    assert_eq!(plain.count(|seen| seen.path() == "/elsewhere"), 0);
}

#[test]
fn preflight_without_cors_is_forwarded() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let call = gateway.client().call("OPTIONS", P).header("Origin", "https://app.example");
    let response = call.header("Access-Control-Request-Method", "GET").send();
    assert_eq!(response.assert_status(200).json()["method"], "OPTIONS");
    assert_eq!(response.header("access-control-allow-origin"), None);
}

#[test]
fn listed_origin_alone_gets_cors_fields() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"cors.allowed_origins = ["https://app.example"]"#);
    let client = gateway.client();
    for _ in 0..2 {
        let listed = client.get(P).bearer("tok-a").header("Origin", "https://app.example").send();
        assert_eq!(
            listed.assert_status(200).header("access-control-allow-origin"),
            Some("https://app.example")
        );
        let exposed = listed
            .header("access-control-expose-headers")
            .expect("exposed fields")
            .to_ascii_lowercase();
        assert!(
            ["age", "cache-status", "etag"].iter().all(|name| exposed.contains(name)),
            "{exposed}"
        );
        assert!(listed.header("vary").is_some_and(|vary| vary.contains("Origin")), "{listed:#?}");
        let other = client.get(P).bearer("tok-a").header("Origin", "https://evil.example").send();
        assert_eq!(other.assert_status(200).header("access-control-allow-origin"), None);
        assert!(other.header("vary").is_some_and(|vary| vary.contains("Origin")), "{other:#?}");
    }
    let error = client.get(P).header("Origin", "https://app.example").send();
    error.assert_error(401, "credentials_invalid");
    assert_eq!(error.header("access-control-allow-origin"), Some("https://app.example"));
    let preflight =
        client.call("OPTIONS", P).kind(Kind::Intercepted).header("Origin", "https://app.example");
    let preflight = preflight.header("Access-Control-Request-Method", "GET");
    let preflight = preflight.header("Access-Control-Request-Headers", "authorization").send();
    assert!(matches!(preflight.status, 200 | 204), "{preflight:#?}");
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://app.example"));
    let allowed =
        preflight.header("access-control-allow-headers").unwrap_or_default().to_ascii_lowercase();
    assert!(allowed.contains("authorization"), "{preflight:#?}");
    assert_eq!(origin.count(|seen| seen.method == "OPTIONS"), 0);
}
