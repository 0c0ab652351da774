//! The number of validations, also under requests of other clients.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// Validations and requests of 20 callers in three seconds, with `rate` anonymous writes a second
/// that the API answers with `status`.
fn validations(rate: u32, status: u16) -> (usize, usize, Duration) {
    let origin = Origin::start();
    let tokens: Vec<String> = (0..20).map(|number| format!("tok-{number}")).collect();
    for token in &tokens {
        origin.knows(token, "VIEWER", DUCK);
    }
    // As slow as a real API.
    origin.when(Rule::on("/auth/validateToken").made_slowly(|seen| async move {
        tokio::time::sleep(Duration::from_millis(40)).await;
        let token = seen.query("token").unwrap_or_default();
        let employee = employee_of(&token);
        Answer::json(format!(
            r#"{{"success":true,"employee":"{employee}","customer":"{DUCK}","accessLevel":"VIEWER"}}"#
        ))
    }));
    origin.when(
        Rule::on("/employee/")
            .method("POST")
            .answer(Answer::error(status, "refused").status(status)),
    );
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "1s", refresh_after = "1s" }"#);
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let (mut requests, mut times) = (0, Vec::new());
    std::thread::scope(|scope| {
        if rate > 0 {
            scope.spawn(|| {
                let mut connection = gateway.client().connect();
                while !over.load(Ordering::Relaxed) {
                    gateway
                        .client()
                        .post("/employee/0123")
                        .body("")
                        .send_on(&mut connection)
                        .assert_status(status);
                    pace(Duration::from_secs(1) / rate);
                }
            });
        }
        let mut connections: Vec<_> = tokens.iter().map(|_| gateway.client().connect()).collect();
        while began.elapsed() < Duration::from_secs(4) {
            for (token, connection) in tokens.iter().zip(&mut connections) {
                let asked = Instant::now();
                gateway.client().get(P).bearer(token).send_on(connection).assert_status(200);
                times.push(asked.elapsed());
                requests += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    times.sort();
    (origin.validations(), requests, times[times.len() / 2])
}

#[test]
fn anonymous_writes_do_not_add_validations() {
    let (alone, requests, median) = validations(0, 401);
    println!("alone: {alone} validations of {requests} requests, median {median:?}");
    for (rate, status) in [(25, 401), (100, 401), (25, 200), (100, 200)] {
        let (with, requests, median) = validations(rate, status);
        println!(
            "{rate} a second, {status}: {with} validations of {requests} requests, median {median:?}"
        );
        // Each of 20 callers once a second; the number of seconds that begin is random.
        assert!(
            with <= 20 * 5,
            "{with} validations of {requests} requests; {alone} without the writes"
        );
    }
}

#[test]
fn validation_outdated_by_an_employee_change_is_not_cached() {
    let origin = Origin::start();
    origin.knows("tok-admin", "ADMIN", DUCK);
    origin.knows("tok-a", "RESELLER", DUCK);
    origin.knows("tok-b", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-admin").revealed().send().assert_status(200);
    let gate = Gate::closed();
    let answer = |token: &str| {
        Answer::json(format!(
            r#"{{"success":true,"employee":"{}","customer":"{DUCK}","accessLevel":"RESELLER"}}"#,
            employee_of(token)
        ))
    };
    origin.when(
        Rule::on("/auth/validateToken")
            .hold(&gate)
            .made(move |seen| answer(&seen.query("token").unwrap_or_default()))
            .times(2),
    );
    let before = origin.validations();
    let early: Vec<_> =
        ["tok-a", "tok-b"].map(|token| client.get(P).bearer(token).revealed().start()).into();
    origin.wait_for_validations(before + 2);
    client
        .post(&format!("/employee/{}", employee_of("tok-a")))
        .bearer("tok-admin")
        .body("{}")
        .send()
        .assert_status(200);
    origin.knows("tok-a", "VIEWER", DUCK);
    // They join validations that began before the change, whose result one of them must not use.
    let late: Vec<_> =
        ["tok-a", "tok-b"].map(|token| client.get(P).bearer(token).revealed().start()).into();
    gateway.wait_for_metric("identity_lookups_total", &[("result", "collapsed")], 2.0);
    gate.open();
    for early in early {
        early.finish().assert_status(200);
    }
    let late: Vec<_> = late.into_iter().map(Pending::finish).collect();
    assert_eq!(late[0].text(), redacted_document(DUCK), "the change came before this request");
    assert_eq!(late[1].text(), upstream_document(DUCK));
    assert_eq!(client.get(P).bearer("tok-a").send().text(), redacted_document(DUCK));
    assert_eq!(origin.validations_of("tok-b"), 1, "the change is of another employee");
}

#[test]
fn concurrent_guesses_stay_within_the_limit() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 20");
    let client = gateway.client();
    let pending: Vec<_> =
        (0..200).map(|number| client.get(P).bearer(&format!("tok-{number}")).start()).collect();
    let statuses: Vec<u16> = pending.into_iter().map(|pending| pending.finish().status).collect();
    assert_eq!(origin.validations(), 20);
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 20);
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 180);
}

#[test]
fn concurrent_valid_tokens_are_all_served() {
    let origin = Origin::start();
    let tokens: Vec<String> = (0..60).map(|number| format!("tok-{number}")).collect();
    for token in &tokens {
        origin.knows(token, "VIEWER", DUCK);
    }
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 3");
    let client = gateway.client();
    let pending: Vec<_> = tokens.iter().map(|token| client.get(P).bearer(token).start()).collect();
    for pending in pending {
        pending.finish().assert_status(200);
    }
    client.get(P).bearer("tok-guess").send().assert_error(401, "invalid_token");
}

#[test]
fn addresses_of_one_ipv6_network_share_the_limit() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 5");
    let from = |address: &str, token: &str| {
        gateway.client().get(P).bearer(token).header("X-Forwarded-For", address).send().status
    };
    assert_eq!(from("2001:db8:0:1::1", "tok-a"), 200);
    let statuses: Vec<u16> = (0..50)
        .map(|number| {
            from(&format!("2001:db8:0:1:{number:x}::{number:x}"), &format!("tok-{number}"))
        })
        .collect();
    assert!(
        statuses[..5].iter().all(|status| *status == 401)
            && statuses[5..].iter().all(|status| *status == 429)
    );
    assert_eq!(from("2001:db8:0:1::1", "tok-a"), 200, "a known caller is still served");
    assert_eq!(from("2001:db8:0:2::1", "tok-x"), 401, "another network");
    let mapped: Vec<u16> = (0..8)
        .map(|number| {
            from(
                if number % 2 == 0 { "203.0.113.7" } else { "::ffff:203.0.113.7" },
                &format!("tok-m{number}"),
            )
        })
        .collect();
    assert_eq!(mapped, [401, 401, 401, 401, 401, 429, 429, 429]);
}

#[test]
fn repeated_invalid_tokens_count_each_validation() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway =
        Gateway::with(&origin, r#"identity = { max_invalid_per_minute = 6, negative_ttl = "0s" }"#);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let statuses: Vec<u16> = (0..30)
        .map(|number| client.get(P).bearer(&format!("tok-guess-{}", number % 3)).send().status)
        .collect();
    assert!(statuses[..6].iter().all(|status| *status == 401), "{statuses:?}");
    assert!(statuses[6..].iter().all(|status| *status == 429), "{statuses:?}");
    assert_eq!(origin.validations(), 7);
    client.get(P).bearer("tok-a").send().assert_status(200);
}

#[test]
fn forwarded_validations_stay_within_the_limit() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    for rules in ["", "\n[[forward.redact]]\npath = \"/customer/**\"\n"] {
        let gateway =
            Gateway::with(&origin, &format!("identity.max_invalid_per_minute = 5\n{rules}"));
        let client = gateway.client();
        let validate =
            |token: &str| client.get(&format!("/auth/validateToken?token={token}")).send().status;
        client.get(P).bearer("tok-a").send().assert_status(200);
        for _ in 0..10 {
            assert_eq!(validate("tok-b"), 200, "a valid token returns its permit");
        }
        let before = origin.validations();
        let statuses: Vec<u16> =
            (0..50).map(|number| validate(&format!("tok-guess-{number}"))).collect();
        assert!(statuses[..5].iter().all(|status| *status == 200), "{statuses:?}");
        assert!(statuses[5..].iter().all(|status| *status == 429), "{statuses:?}");
        assert_eq!(origin.validations(), before + 5);
        assert_eq!(validate("tok-a"), 200, "a known caller is still served");
        client.get(P).bearer("tok-guess-60").send().assert_error(429, "too_many_requests");
        client.get(P).bearer("tok-a").send().assert_status(200);
    }
}

#[test]
fn rejected_forwards_count_as_guesses() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.when(Rule::on("/elsewhere").answer(Answer::error(401, "expired")));
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 5");
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    for number in 0..5 {
        client
            .get("/elsewhere")
            .bearer(&format!("tok-{number}"))
            .send()
            .assert_error(401, "expired");
    }
    client.get(P).bearer("tok-new").send().assert_error(429, "too_many_requests");
    assert!(client.get(P).bearer("tok-a").send().is_hit());
}
