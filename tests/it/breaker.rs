//! The circuit breaker: which failures open it, and how requests are served while it is half open.

use std::time::{Duration, Instant};

use crate::support::*;

fn get(gateway: &Gateway, token: &str, id: &str) -> Response {
    gateway.client().get(&name_of(id)).bearer(token).send()
}

fn circuit(gateway: &Gateway) -> String {
    gateway.stats()["upstream"]["circuit"].as_str().unwrap().to_owned()
}

/// Callers with cached identities that are not validated again.
fn with_callers(origin: &Origin, config: &str) -> Gateway {
    let callers: Vec<_> = (0..12).map(|number| format!("tok-{number}")).collect();
    callers.iter().for_each(|token| origin.knows(token, "VIEWER", DUCK));
    let config = format!("identity = {{ ttl = \"10m\", refresh_after = \"10m\" }}\n{config}");
    let gateway = Gateway::with(origin, &config);
    for token in &callers {
        get(&gateway, token, DUCK).assert_status(200);
    }
    gateway
}

#[test]
fn bypass_requests_do_not_open_the_circuit() {
    let origin = Origin::start();
    let gateway = with_callers(&origin, "");
    origin.when(Rule::on(&name_of(DUCK)).answer(Answer::error(503, "down")));
    for number in 0..100 {
        let target = format!("{}?boom={number}", name_of(DUCK));
        gateway.client().get(&target).bearer("tok-0").send().assert_status(503);
    }
    assert_eq!(circuit(&gateway), "closed");
    get(&gateway, "tok-1", OTHER).assert_status(200);
}

#[test]
fn failures_of_one_caller_do_not_open_the_circuit() {
    let origin = Origin::start();
    let gateway = with_callers(&origin, "");
    origin.when(Rule::on("/customer/").answer(Answer::error(503, "down")));
    for number in 0..20 {
        get(&gateway, "tok-0", &customer(number)).assert_status(503);
    }
    assert_eq!(circuit(&gateway), "closed");
    for number in 1..7 {
        get(&gateway, &format!("tok-{number}"), OTHER).assert_status(503);
    }
    assert_eq!(circuit(&gateway), "closed");
    get(&gateway, "tok-7", OTHER).assert_status(503);
    assert_ne!(circuit(&gateway), "closed");
}

#[test]
fn api_that_accepts_and_closes_opens_the_circuit() {
    for at_head in [false, true] {
        let origin = Origin::start();
        let gateway = with_callers(&origin, "");
        let rule = Rule::on("/customer/");
        origin.when(if at_head { rule.close_at_head() } else { rule.close() });
        for number in 0..8 {
            get(&gateway, &format!("tok-{number}"), OTHER).assert_error(502, "bad_gateway");
        }
        assert_ne!(circuit(&gateway), "closed", "{at_head}");
    }
}

#[test]
fn circuit_gauge_is_zero_once_a_probe_is_permitted() {
    let origin = Origin::start();
    let gateway = with_callers(&origin, "");
    origin.stop();
    for number in 0..8 {
        get(&gateway, &format!("tok-{number}"), OTHER);
    }
    assert_ne!(circuit(&gateway), "closed");
    // No traffic from here on.
    let opened = Instant::now();
    wait_until("circuit_open is 0", || gateway.metric("circuit_open", &[]) == 0.0);
    assert!(opened.elapsed() < Duration::from_secs(20));
    assert_eq!(circuit(&gateway), "half_open");
}

#[test]
fn half_open_probe_gets_a_stale_response_at_once() {
    let origin = Origin::start();
    let gateway = with_callers(
        &origin,
        r#"upstream = { timeout = "30s" }
        cache = { ttl = "300ms", stale_while_revalidate = "0s", stale_if_error = "10m" }"#,
    );
    origin.stop();
    for number in 0..8 {
        get(&gateway, &format!("tok-{number}"), OTHER);
    }
    wait_until("the pause is over", || circuit(&gateway) == "half_open");
    // The API is back and silent: the probe takes all of its time.
    let gate = Gate::closed();
    origin.when(Rule::on("/").hold(&gate));
    origin.resume();
    let before = origin.fetches(DUCK);
    let began = Instant::now();
    let response = get(&gateway, "tok-9", DUCK);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(
        response.assert_status(200).cache_status().ends_with("detail=stale-if-error"),
        "{response:#?}"
    );
    origin.wait_for_fetches(DUCK, before + 1);
    gate.open();
    wait_until("the circuit is closed", || circuit(&gateway) == "closed");
}
