//! The lifetime of an identity: background refresh, expiry, outages of the API, and changes of the
//! access level.

use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn get(gateway: &Gateway, token: &str) -> Response {
    gateway.client().get(P).bearer(token).revealed().send()
}

/// Sends requests until one does not get 200; returns the start of the last trusted request, and
/// the first other response.
fn trusted_until(ask: impl Fn() -> Response) -> (Instant, Response) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = Instant::now();
    loop {
        let began = Instant::now();
        let response = ask();
        if response.status != 200 {
            return (last, response);
        }
        last = began;
        assert!(began < deadline, "trusted without end: {response:#?}");
        look_again();
    }
}

#[test]
fn identity_is_refreshed_in_the_background() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "10m", refresh_after = "500ms" }"#);
    get(&gateway, "tok-a").assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/auth/validateToken").hold(&gate));
    wait_until("it is asked about again", || {
        assert!(get(&gateway, "tok-a").assert_status(200).is_hit());
        origin.validations() == 2
    });
    for _ in 0..20 {
        assert!(get(&gateway, "tok-a").assert_status(200).is_hit(), "no request waits for it");
    }
    assert_eq!(origin.validations(), 2, "one question for all of them");
    // Its result applies from the next request on.
    origin.forgets("tok-a");
    gate.open();
    wait_until("its word counts", || get(&gateway, "tok-a").status == 401);
    // A request that arrives while the result is stored may validate once more.
    assert!(origin.validations() <= 3, "{}", origin.validations());
    get(&gateway, "tok-a").assert_error(401, "invalid_token");
}

#[test]
fn revoked_token_is_not_trusted_past_identity_ttl() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(
        &origin,
        r#"identity = { ttl = "1s", refresh_after = "1s", stale_if_error = "10m", negative_ttl = "100ms" }
        cache = { ttl = "10m", stale_while_revalidate = "0s" }"#,
    );
    get(&gateway, "tok-a").assert_status(200);
    let vouched_for = Instant::now();
    origin.forgets("tok-a");
    let (last, refused) = trusted_until(|| get(&gateway, "tok-a"));
    refused.assert_error(401, "invalid_token");
    assert!(last - vouched_for < Duration::from_secs(1), "{:?}", last - vouched_for);
    // Entries of the token are not served again when the token returns.
    origin.knows("tok-a", "VIEWER", DUCK);
    wait_until("it is valid again", || get(&gateway, "tok-a").status == 200);
    assert_eq!(origin.fetches(DUCK), 2);
}

#[test]
fn expired_identity_is_used_only_while_the_api_is_unreachable() {
    // (stale_if_error, when it ends)
    for (stale_if_error, ends) in [("0s", 500), ("2s", 2500)] {
        let origin = Origin::start();
        origin.knows("tok-a", "VIEWER", DUCK);
        let config = format!(
            r#"identity = {{ ttl = "500ms", refresh_after = "500ms", stale_if_error = "{stale_if_error}" }}
            cache = {{ ttl = "10m", stale_while_revalidate = "0s" }}"#
        );
        let gateway = Gateway::with(&origin, &config);
        let before = Instant::now();
        get(&gateway, "tok-a").assert_status(200);
        let vouched_for = Instant::now();
        origin.stop();
        let (last, refused) = trusted_until(|| get(&gateway, "tok-a"));
        assert!(matches!(refused.status, 502 | 503), "it cannot be asked about: {refused:#?}");
        assert!(
            last - vouched_for < Duration::from_millis(ends),
            "{stale_if_error}: {:?}",
            last - vouched_for
        );
        assert!(
            before.elapsed() >= Duration::from_millis(ends),
            "{stale_if_error}: {:?}",
            before.elapsed()
        );
        let past_its_time = last - vouched_for > Duration::from_millis(500);
        assert_eq!(
            past_its_time,
            stale_if_error != "0s",
            "{stale_if_error}: {:?}",
            last - vouched_for
        );
    }
}

#[test]
fn stale_identity_ends_when_the_api_returns_and_refuses_it() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config = r#"identity = { ttl = "300ms", refresh_after = "300ms", stale_if_error = "10m" }"#;
    let gateway = Gateway::with(&origin, config);
    get(&gateway, "tok-a").assert_status(200);
    origin.when(Rule::on("/auth/").answer(Answer::error(500, "internal_error")));
    wait_until("it was asked about in vain", || {
        get(&gateway, "tok-a").assert_status(200);
        gateway.metric("identity_lookups_total", &[("result", "stale")]) >= 1.0
    });
    origin.forgets("tok-a");
    origin.behave();
    let back = Instant::now();
    let (last, refused) = trusted_until(|| get(&gateway, "tok-a"));
    refused.assert_error(401, "invalid_token");
    // No validation within a second of a failed one, which may have been sent just before.
    assert!(last < back + Duration::from_secs(2), "{:?}", last - back);
}

#[test]
fn stale_identity_is_not_used_from_another_address() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let from = |address: &str| {
        gateway.client().get(P).bearer("tok-a").header("X-Forwarded-For", address).send()
    };
    from("203.0.113.7").assert_status(200);
    origin.stop();
    from("203.0.113.8").assert_error(502, "bad_gateway");
    assert!(from("203.0.113.7").assert_status(200).is_hit());
}

#[test]
fn changed_level_never_gets_entries_of_the_other_level() {
    let origin = Origin::start();
    let gateway = Gateway::with(
        &origin,
        r#"identity = { ttl = "10m", refresh_after = "300ms", session = "1h" }
        cache = { ttl = "1s", stale_while_revalidate = "10m", stale_if_error = "10m" }"#,
    );
    for (token, before, after) in [("tok-down", "RESELLER", "VIEWER"), ("tok-up", "OWNER", "ADMIN")]
    {
        let seen_by = |level: &str| {
            if HIGHER_ROLES.contains(&level) {
                upstream_document(DUCK)
            } else {
                redacted_document(DUCK)
            }
        };
        origin.behave();
        origin.knows(token, before, DUCK);
        assert_eq!(get(&gateway, token).assert_status(200).text(), seen_by(before));
        // The API cannot be reached for the new level, and entries of the old level are not served
        // to it, neither fresh nor stale.
        origin.when(Rule::on("/customer/").answer(Answer::error(500, "internal_error")));
        origin.knows(token, after, DUCK);
        let (_, failed) = trusted_until(|| get(&gateway, token));
        assert_eq!(failed.status, 500, "{failed:#?}");
        for _ in 0..5 {
            assert_eq!(get(&gateway, token).status, 500);
        }
        origin.behave();
        for _ in 0..5 {
            assert_eq!(get(&gateway, token).assert_status(200).text(), seen_by(after));
        }
    }
}

#[test]
fn forwarded_level_change_applies_to_the_next_request() {
    let origin = Origin::start();
    origin.knows("tok-admin", "ADMIN", OTHER);
    let gateway = Gateway::start(&origin);
    for (before, after) in [("RESELLER", "VIEWER"), ("VIEWER", "RESELLER")] {
        origin.knows("tok-a", before, DUCK);
        let change = || {
            let path = format!("/employee/{}", employee_of("tok-a"));
            gateway
                .client()
                .post(&path)
                .bearer("tok-admin")
                .body("{}")
                .send()
                .assert_status(200)
                .clone()
        };
        change();
        get(&gateway, "tok-a").assert_status(200);
        origin.knows("tok-a", after, DUCK);
        change();
        let expected =
            if after == "VIEWER" { redacted_document(DUCK) } else { upstream_document(DUCK) };
        assert_eq!(
            get(&gateway, "tok-a").assert_status(200).text(),
            expected,
            "{before} to {after}"
        );
    }
}
