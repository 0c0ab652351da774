//! Fair shares of the API: one caller, or unknown tokens from one address, cannot exclude other
//! callers. A fetch ends with the last client that waits for it.

use std::time::{Duration, Instant};

use crate::support::*;

fn get(gateway: &Gateway, token: &str, id: &str) -> Response {
    gateway.client().get(&name_of(id)).bearer(token).send()
}

/// Streams of one connection: the gateway allows 64.
const STREAMS: usize = 60;

/// Requests of one caller over HTTP/2, on so many connections, all in flight.
fn flood(
    gateway: &Gateway,
    connections: usize,
    streams: usize,
    target: impl Fn(usize) -> String,
) -> Vec<Frames> {
    let open = |number: usize| {
        let mut frames = Frames::open(&gateway.client(), &[]);
        for stream in 0..streams {
            let path = target(number * streams + stream);
            let fields = [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", path.as_str()),
                ("authorization", "Bearer tok-flood"),
            ];
            let _ = frames.request(u32::try_from(stream * 2 + 1).unwrap(), &fields);
        }
        frames
    };
    (0..connections).map(open).collect()
}

fn in_flight(gateway: &Gateway) -> usize {
    usize::try_from(gateway.stats()["upstream"]["in_flight"].as_u64().unwrap()).unwrap()
}

#[test]
fn misses_of_another_caller_are_served_under_a_flood() {
    let origin = Origin::start();
    origin.knows("tok-flood", "VIEWER", DUCK);
    origin.knows("tok-other", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "20s" }"#);
    get(&gateway, "tok-flood", DUCK).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on(&name_of(DUCK)).hold(&gate));
    let _flood = flood(&gateway, 74, STREAMS, |number| format!("{}?slow={number}", name_of(DUCK)));
    wait_until("the flood waits", || in_flight(&gateway) >= 64);
    // Also a caller that the gateway does not know yet.
    for number in 0..20 {
        let began = Instant::now();
        get(&gateway, "tok-other", &customer(number)).assert_status(200);
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "miss {number} took {:?}",
            began.elapsed()
        );
    }
    assert_eq!(in_flight(&gateway), 64, "a quarter of upstream.max_in_flight");
    gate.open();
}

#[test]
fn unknown_tokens_of_one_address_do_not_exclude_others() {
    let origin = Origin::start();
    origin.knows("tok-known", "VIEWER", DUCK);
    origin.knows("tok-new", "VIEWER", DUCK);
    let gateway = Gateway::with(
        &origin,
        r#"upstream = { max_in_flight = 16 }
        server = { trusted_proxies = ["127.0.0.0/8"] }"#,
    );
    let from = |address: &str, token: &str, id: &str| {
        gateway.client().get(&name_of(id)).bearer(token).header("X-Forwarded-For", address)
    };
    // An identity is bound to the address for which it was validated.
    from("192.0.2.1", "tok-known", DUCK).send().assert_status(200);
    origin.when(Rule::on("/auth/validateToken").made_slowly(|seen| async move {
        if seen.query("token").is_some_and(|token| token.starts_with("guess")) {
            std::future::pending::<()>().await;
        }
        Answer::json(format!(
            r#"{{"success":true,"employee":"{}","accessLevel":"VIEWER"}}"#,
            employee_of("tok-new")
        ))
    }));
    let guesses: Vec<_> =
        (0..300).map(|n| from("192.0.2.1", &format!("guess-{n}"), DUCK).start()).collect();
    wait_until("the guesses wait", || in_flight(&gateway) == 8);
    from("192.0.2.1", "tok-known", OTHER).send().assert_status(200);
    from("192.0.2.2", "tok-new", OTHER).send().assert_status(200);
    drop(guesses);
}

#[test]
fn fetch_ends_when_its_last_client_has_left() {
    let origin = Origin::start();
    origin.knows("tok-flood", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "50s" }"#);
    get(&gateway, "tok-flood", DUCK).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let flood = flood(&gateway, 3, STREAMS, |number| name_of(&customer(1000 + number)));
    wait_until("fetches are in flight", || in_flight(&gateway) == 64);
    drop(flood);
    let left = Instant::now();
    wait_until("no fetch is in flight", || in_flight(&gateway) == 0);
    assert!(left.elapsed() < Duration::from_secs(10), "{:?}", left.elapsed());
    gate.open();
}

#[test]
fn fetch_ends_when_its_stream_is_reset() {
    let origin = Origin::start();
    origin.knows("tok-flood", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "50s" }"#);
    get(&gateway, "tok-flood", DUCK).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let mut flood = flood(&gateway, 1, STREAMS, |number| name_of(&customer(1000 + number)));
    wait_until("fetches are in flight", || in_flight(&gateway) == STREAMS);
    for stream in 0..STREAMS {
        // CANCEL.
        let stream = u32::try_from(stream * 2 + 1).unwrap();
        flood[0].send(Frames::RST_STREAM, 0, stream, &[0, 0, 0, 8]).unwrap();
    }
    wait_until("no fetch is in flight", || in_flight(&gateway) == 0);
    gate.open();
}

#[test]
fn second_client_gets_the_response_when_the_first_leaves() {
    let origin = Origin::start();
    origin.knows("tok-flood", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    get(&gateway, "tok-flood", DUCK).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let first = flood(&gateway, 1, 1, |_| name_of(OTHER));
    origin.wait_for_fetches(OTHER, 1);
    let second = gateway.client().get(&name_of(OTHER)).bearer("tok-flood").start();
    // The second one has joined once a third, for another customer, is at the API.
    let third = gateway.client().get(&name_of(THIRD)).bearer("tok-flood").start();
    origin.wait_for_fetches(THIRD, 1);
    drop(first);
    gateway.wait_for_metric("requests_total", &[("method", "GET")], 2.0);
    gate.open();
    second.finish().assert_status(200);
    third.finish().assert_status(200);
    assert_eq!(origin.fetches(OTHER), 1);
}
