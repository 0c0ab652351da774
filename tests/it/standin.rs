//! The stand-in and the client, against each other: what the other tests stand on must itself be
//! right.

use std::panic::AssertUnwindSafe;

use crate::support::*;

const PATH: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// The panic that a closure ends in, as text.
fn panic_of<T>(f: impl FnOnce() -> T) -> String {
    let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(f)) else {
        panic!("no panic where one was due")
    };
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn known_tokens_are_valid_and_others_are_not() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let client = Client::of_origin(&origin);
    let known = client.get("/auth/validateToken?token=tok%2Da&ip=127.0.0.1").send();
    assert_eq!(known.json()["accessLevel"], "VIEWER");
    assert_eq!(known.json()["customer"], DUCK);
    assert_eq!(known.json()["employee"], employee_of("tok-a"));
    assert_eq!(client.get("/auth/validateToken?token=tok-b").send().text(), r#"{"success":false}"#);
    assert_eq!((origin.validations(), origin.validations_of("tok-a")), (2, 1));
    origin.forgets("tok-a");
    assert_eq!(client.get("/auth/validateToken?token=tok-a").send().json()["success"], false);
}

#[test]
fn serves_planted_documents_to_known_callers_only() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    origin.missing(OTHER);
    origin.forbidden(THIRD);
    let client = Client::of_origin(&origin);
    let get = |path: &str| client.get(path).kind(Kind::Forwarded).bearer("tok-a");
    let document = get(PATH).revealed().send();
    assert_eq!(document.text(), upstream_document(DUCK));
    assert_eq!(document.text().matches(MARKER).count(), 7);
    get(&name_of(OTHER)).send().assert_error(404, "customer");
    get(&name_of(THIRD)).send().assert_error(403, "access_denied");
    client.get(PATH).kind(Kind::Forwarded).send().assert_error(401, "invalid_token");
    assert_eq!(origin.fetches(&DUCK.to_uppercase()), 2);
    assert_eq!(origin.fetched(DUCK)[0].header("authorization"), Some("Bearer tok-a"));
}

#[test]
fn echo_keeps_order_and_spelling() {
    let origin = Origin::start();
    let client = Client::of_origin(&origin);
    let echo = client
        .post("/x/y%20z?q=1")
        .header("X-ODD-case", "v")
        .chunked(&[b"ab", b"cde"])
        .send()
        .json();
    assert_eq!(
        (echo["method"].as_str(), echo["target"].as_str()),
        (Some("POST"), Some("/x/y%20z?q=1"))
    );
    assert_eq!(echo["body"], "abcde");
    assert_eq!(echo["headers"][1][0], "X-ODD-case");
    let seen = origin.last("/x/y%20z").expect("a request");
    assert_eq!((seen.body.as_slice(), seen.complete), (b"abcde".as_slice(), true));
}

#[test]
fn kept_connections_are_counted() {
    let origin = Origin::start();
    let client = Client::of_origin(&origin);
    let mut connection = client.connect();
    client.get("/1").send_on(&mut connection).assert_status(200);
    client.head("/2").send_on(&mut connection).assert_status(200);
    client.get("/3").send_on(&mut connection).assert_status(200);
    client.get("/4").send();
    let numbers: Vec<usize> = origin.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(numbers, [0, 0, 0, 1]);
}

#[test]
fn body_ends_by_length_chunks_or_close() {
    let origin = Origin::start();
    let client = Client::of_origin(&origin);
    for framing in [Framing::Length, Framing::Chunked, Framing::UntilClose] {
        origin.when(Rule::on("/x").answer(Answer::new(200).body("0123456789").framing(framing)));
        assert_eq!(client.get("/x").send().assert_status(200).text(), "0123456789");
    }
    origin.when(Rule::on("/x").answer(Answer::new(200).body("0123456789")).drip());
    assert_eq!(client.get("/x").send().assert_status(200).text(), "0123456789");
}

#[test]
fn gate_holds_the_response_or_half_of_the_body() {
    let origin = Origin::start();
    let client = Client::of_origin(&origin);
    let (gate, body_gate) = (Gate::closed(), Gate::closed());
    origin.when(
        Rule::on("/x")
            .answer(Answer::new(200).body("firstlast."))
            .hold(&gate)
            .hold_body(&body_gate),
    );
    let mut pending = client.get("/x").start();
    origin.wait_until("the request is there", |seen| seen.len() == 1);
    gate.open();
    pending.connection.wait_for(b"first");
    body_gate.open();
    assert_eq!(pending.finish().text(), "firstlast.");
}

#[test]
fn cuts_closes_and_raw_bytes_arrive_unchanged() {
    let origin = Origin::start();
    let client = Client::of_origin(&origin);
    origin.when(Rule::on("/cut").answer(Answer::new(200).body("0123456789")).cut_body_after(4));
    let cut = client.get("/cut").send();
    assert_eq!((cut.text().as_str(), cut.broken_off.is_some()), ("0123", true));
    origin.when(
        Rule::on("/chunks")
            .answer(Answer::new(200).body("0123456789").framing(Framing::Chunked))
            .cut_body_after(8),
    );
    assert!(client.get("/chunks").send().broken_off.is_some());
    origin.when(Rule::on("/close").close().times(1));
    assert!(client.get("/close").try_send().is_none());
    client.get("/close").send().assert_status(200);
    origin.when(Rule::on("/head").close_at_head());
    assert!(client.post("/head").header("Content-Length", "5").try_send().is_none());
    origin.when(Rule::on("/raw").raw("HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nhi and more"));
    let mut connection = client.connect();
    connection.send_raw("GET /raw HTTP/1.1\r\n\r\n");
    let raw = connection.read("GET", Kind::Forwarded).expect("an answer");
    assert_eq!((raw.status, raw.text().as_str()), (299, "hi"));
    assert_eq!(connection.rest(), b" and more");
}

#[test]
fn upgraded_connection_echoes() {
    let origin = Origin::start();
    origin.when(Rule::on("/socket.io/").upgrade());
    let client = Client::of_origin(&origin);
    let mut connection = client.connect();
    connection
        .send_raw("GET /socket.io/ HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    assert_eq!(connection.read("GET", Kind::Forwarded).expect("an answer").status, 101);
    connection.send_raw([0, 1, 2, 255]);
    assert_eq!(connection.take(4), [0, 1, 2, 255]);
}

#[test]
fn stopped_origin_returns_on_the_same_port() {
    let origin = Origin::start();
    let client = Client::of_origin(&origin);
    let mut kept = client.connect();
    client.get("/x").send_on(&mut kept).assert_status(200);
    for _ in 0..3 {
        origin.stop();
        assert!(client.try_connect().is_err());
        origin.resume();
        client.get("/x").send().assert_status(200);
    }
    assert_eq!(kept.rest(), b"");
}

#[test]
fn client_rejects_undocumented_fields() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let client = Client::of_origin(&origin);
    let panic = panic_of(move || client.get(PATH).bearer("tok-a").revealed().send());
    assert!(panic.contains("was never promised"), "{panic}");
}

#[test]
fn client_rejects_secrets_and_tokens() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.document(OTHER, Answer::json("{}").header("Etag", "\"planted\""));
    let client = Client::of_origin(&origin);
    let (first, second) = (client.clone(), client.clone());
    let in_body = panic_of(move || first.get(PATH).kind(Kind::Forwarded).bearer("tok-a").send());
    assert!(
        in_body.contains("secret in the head") || in_body.contains("secret in the body"),
        "{in_body}"
    );
    let in_head = panic_of(move || second.get(&name_of(OTHER)).bearer("tok-a").send());
    assert!(in_head.contains("secret in the head"), "{in_head}");
    origin.when(Rule::on("/x").answer(Answer::json("{}").header("X-Request-Id", "tok-a")));
    let token = panic_of(move || client.get("/x").send());
    assert!(token.contains("token in the head"), "{token}");
}

#[test]
fn golden_documents_lose_their_secrets() {
    let (misplaced, redacted) = misplaced_documents();
    assert_eq!(misplaced.matches(MARKER).count(), 8);
    for safe in [redacted_document(DUCK), redacted] {
        assert!(!safe.contains(MARKER) && safe.contains("integrations"), "{safe}");
    }
}

/// What a client that trusts `authority` gets from an origin with that certificate.
fn over_tls(authority: &Authority, certificate: &Certificate) -> std::io::Result<String> {
    let origin = Origin::start_tls(certificate);
    authority.exchange(origin.address(), "GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")
}

#[test]
fn only_the_right_certificate_is_accepted() {
    let authority = Authority::new();
    assert!(
        over_tls(&authority, &authority.certificate())
            .expect("an answer")
            .starts_with("HTTP/1.1 200")
    );
    assert!(over_tls(&authority, &authority.certificate_for_another_name()).is_err());
    assert!(over_tls(&authority, &authority.expired_certificate()).is_err());
    assert!(over_tls(&Authority::new(), &authority.certificate()).is_err());
}
