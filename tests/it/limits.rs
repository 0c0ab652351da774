//! What a caller cannot do by being slow, many or old-fashioned; and what HTTP/2 changes, which is
//! nothing.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

#[test]
fn endless_slow_head_ends_at_the_deadline() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"server.header_timeout = "1s""#);
    let mut silent = gateway.client().connect();
    silent.send_raw("GET /x HTTP/1.1\r\nHost: x\r\n");
    let mut dripping = gateway.client().connect();
    dripping.send_raw("GET /x HTTP/1.1\r\nX-Long: ");
    wait_until("the dripping one is closed", || {
        dripping.send_raw("a");
        dripping.is_closed()
    });
    silent.rest();
    assert_eq!(origin.requests(), 0);
}

#[test]
fn second_head_of_a_connection_has_the_same_deadline() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"server.header_timeout = "1s""#);
    let mut connection = gateway.client().connect();
    gateway.client().get("/x").send_on(&mut connection).assert_status(200);
    connection.send_raw("GET /y HTTP/1.1\r\nX-Long: ");
    wait_until("it is closed", || {
        connection.send_raw("a");
        connection.is_closed()
    });
    assert_eq!(origin.count(|seen| seen.path() == "/y"), 0);
}

#[test]
fn idle_connection_is_closed_after_its_timeout() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"server.keepalive_timeout = "1s""#);
    let mut connection = gateway.client().connect();
    gateway.client().get("/x").send_on(&mut connection).assert_status(200);
    assert_eq!(connection.rest(), b"");
}

#[test]
fn connection_over_the_limit_is_refused_and_others_continue() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "server.max_connections = 3");
    let gate = Gate::closed();
    origin.when(Rule::on("/held").hold(&gate));
    let held: Vec<_> = (0..3).map(|_| gateway.client().get("/held").start()).collect();
    origin.wait_until("three are there", |seen| {
        seen.iter().filter(|seen| seen.path() == "/held").count() == 3
    });
    let shed = gateway.client().get("/shed").try_send();
    assert!(shed.is_none_or(|response| response.status == 503));
    assert_eq!(origin.count(|seen| seen.path() == "/shed"), 0);
    gate.open();
    for held in held {
        held.finish().assert_status(200);
    }
    wait_until("there is room again", || {
        gateway.client().get("/x").try_send().is_some_and(|r| r.status == 200)
    });
}

#[test]
fn http10_request_is_served_and_its_connection_closed() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for _ in 0..2 {
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "GET {P} HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\r\n"
        ));
        let answer = String::from_utf8(connection.rest()).expect("text");
        assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 "), "{answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{}", redacted_document(DUCK))), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    }
}

#[test]
fn client_that_expects_continue_receives_it() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let mut connection = gateway.client().connect();
    connection.send_raw(
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
    );
    connection.wait_for(b"HTTP/1.1 100 ");
    connection.send_raw("body");
    let response = connection.read("POST", Kind::Forwarded).expect("an answer");
    assert_eq!(response.assert_status(200).json()["body"], "body");
}

#[test]
fn http2_gets_the_same_responses() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let one = |call: Call| client.send_h2c(vec![call]).remove(0);
    let miss = one(client.get(P).bearer("tok-a"));
    assert_eq!(miss.assert_status(200).text(), redacted_document(DUCK));
    assert_eq!(miss.cache_status(), "telecomx-gateway; fwd=uri-miss; stored");
    let hit = one(client.get(P).bearer("tok-a"));
    assert!(hit.assert_status(200).is_hit() && hit.body == miss.body, "{hit:#?}");
    assert!(client.get(P).bearer("tok-a").send().is_hit(), "one cache for both");
    let etag = hit.header("etag").expect("an ETag").to_owned();
    assert_eq!(one(client.get(P).bearer("tok-a").header("If-None-Match", &etag)).status, 304);
    let head = one(client.head(P).bearer("tok-a"));
    assert_eq!((head.status, head.body.len()), (200, 0));
    one(client.get(P)).assert_error(401, "credentials_invalid");
    one(client.get("/Customer/x")).assert_error(400, "bad_request");
    one(client.get("/tools/realtime")).assert_error(403, "access_denied");
    let forwarded = one(client.post("/elsewhere").body("over HTTP/2"));
    assert_eq!(forwarded.assert_status(200).json()["body"], "over HTTP/2");
    assert_eq!(
        origin.last("/elsewhere").expect("it was forwarded").header("host"),
        Some(origin.address().to_string().as_str())
    );
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn callers_on_one_connection_share_no_entries() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let mut calls = Vec::new();
    for number in 0..20 {
        let token = format!("tok-{}", number % 5);
        origin.knows(&token, "VIEWER", DUCK);
        calls.push(client.get(P).bearer(&token));
    }
    origin.when(Rule::on("/customer/").made(|seen| {
        Answer::json(
            serde_json::json!({"said": seen.token().map(|token| token.replace("tok-", "to "))})
                .to_string(),
        )
    }));
    for (number, response) in client.send_h2c(calls).into_iter().enumerate() {
        assert_eq!(response.assert_status(200).json()["said"], format!("to {}", number % 5));
    }
    assert_eq!((origin.fetches(DUCK), origin.validations()), (5, 5));
}
