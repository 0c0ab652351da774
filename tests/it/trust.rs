//! An identity as time passes: asked about again behind the answers, never trusted past its time, and never meeting what
//! another access level or another address may see.

use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn get(gateway: &Gateway, token: &str) -> Response {
    gateway.client().get(P).bearer(token).revealed().send()
}

/// Asks until the answer is none of 200; gives the last moment at which a request began that was still trusted, and the
/// first answer that says otherwise.
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
fn an_identity_is_asked_about_again_behind_the_answers() {
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
        assert!(get(&gateway, "tok-a").assert_status(200).is_hit(), "nobody waits for it");
    }
    assert_eq!(origin.validations(), 2, "one question for all of them");
    // What it brings counts from the next request on.
    origin.forgets("tok-a");
    gate.open();
    wait_until("its word counts", || get(&gateway, "tok-a").status == 401);
    // Who comes at the moment at which the verdict is being noted may ask once more.
    assert!(origin.validations() <= 3, "{}", origin.validations());
    get(&gateway, "tok-a").assert_error(401, "invalid_token");
}

#[test]
fn a_token_revoked_elsewhere_is_not_trusted_past_its_time() {
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
    // Nothing that was stored for it is given again when the token comes back.
    origin.knows("tok-a", "VIEWER", DUCK);
    wait_until("it is valid again", || get(&gateway, "tok-a").status == 200);
    assert_eq!(origin.fetches(DUCK), 2);
}

#[test]
fn past_its_time_an_identity_is_trusted_only_while_the_api_cannot_be_asked() {
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
        assert!(last - vouched_for < Duration::from_millis(ends), "{stale_if_error}: {:?}", last - vouched_for);
        assert!(before.elapsed() >= Duration::from_millis(ends), "{stale_if_error}: {:?}", before.elapsed());
        let past_its_time = last - vouched_for > Duration::from_millis(500);
        assert_eq!(past_its_time, stale_if_error != "0s", "{stale_if_error}: {:?}", last - vouched_for);
    }
}

#[test]
fn an_identity_that_outlived_its_time_ends_when_the_api_is_back_and_says_no() {
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
    // Not asked again within a second of a question that failed, which may have gone out just before.
    assert!(last < back + Duration::from_secs(2), "{:?}", last - back);
}

#[test]
fn an_identity_is_of_no_use_from_another_address_while_the_api_cannot_be_asked() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let from = |address: &str| gateway.client().get(P).bearer("tok-a").header("X-Forwarded-For", address).send();
    from("203.0.113.7").assert_status(200);
    origin.stop();
    from("203.0.113.8").assert_error(502, "bad_gateway");
    assert!(from("203.0.113.7").assert_status(200).is_hit());
}

#[test]
fn a_changed_level_never_meets_what_the_other_level_was_given() {
    let origin = Origin::start();
    let gateway = Gateway::with(
        &origin,
        r#"identity = { ttl = "10m", refresh_after = "300ms", session = "1h" }
        cache = { ttl = "1s", stale_while_revalidate = "10m", stale_if_error = "10m" }"#,
    );
    for (token, before, after) in [("tok-down", "RESELLER", "VIEWER"), ("tok-up", "OWNER", "ADMIN")] {
        let seen_by = |level: &str| {
            if HIGHER_ROLES.contains(&level) { upstream_document(DUCK) } else { redacted_document(DUCK) }
        };
        origin.behave();
        origin.knows(token, before, DUCK);
        assert_eq!(get(&gateway, token).assert_status(200).text(), seen_by(before));
        // Nothing can be fetched for the new level, and what is stored for the old one is no answer to it: neither
        // fresh nor stale nor as the better of two evils.
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
fn a_change_of_level_that_passes_through_counts_for_the_next_request() {
    let origin = Origin::start();
    origin.knows("tok-admin", "ADMIN", OTHER);
    let gateway = Gateway::start(&origin);
    for (before, after) in [("RESELLER", "VIEWER"), ("VIEWER", "RESELLER")] {
        origin.knows("tok-a", before, DUCK);
        let change = || {
            let path = format!("/employee/{}", employee_of("tok-a"));
            gateway.client().post(&path).bearer("tok-admin").body("{}").send().assert_status(200).clone()
        };
        change();
        get(&gateway, "tok-a").assert_status(200);
        origin.knows("tok-a", after, DUCK);
        change();
        let expected = if after == "VIEWER" { redacted_document(DUCK) } else { upstream_document(DUCK) };
        assert_eq!(get(&gateway, "tok-a").assert_status(200).text(), expected, "{before} to {after}");
    }
}
