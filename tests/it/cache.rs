//! The cache: which responses are stored, for which caller and how long; single flight; stale
//! responses.

use std::collections::BTreeMap;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";
const BYPASS: &str = "telecomx-gateway; fwd=bypass";

#[test]
fn entries_are_separate_for_each_caller() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    // Two tokens of one employee are two callers.
    origin.knows_employee("tok-c", "VIEWER", DUCK, &employee_of("tok-b"));
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for (at, token) in ["tok-a", "tok-b", "tok-c"].into_iter().enumerate() {
        assert_eq!(
            client.get(P).bearer(token).send().assert_status(200).cache_status(),
            STORED,
            "{token}"
        );
        assert_eq!(origin.fetches(DUCK), at + 1);
        assert_eq!(origin.fetched(DUCK)[at].token().as_deref(), Some(token));
    }
    client.get(P).send().assert_error(401, "credentials_invalid");
    client.get(P).bearer("tok-unknown").send().assert_error(401, "invalid_token");
    assert_eq!(origin.fetches(DUCK), 3);
    for token in ["tok-a", "tok-b", "tok-c"] {
        assert!(client.get(P).bearer(token).send().is_hit(), "{token}");
    }
}

#[test]
fn first_request_of_a_caller_always_asks_the_api() {
    let origin = Origin::start();
    for token in ["tok-a", "tok-b"] {
        origin.knows(token, "VIEWER", DUCK);
        origin.knows(token, "VIEWER", OTHER);
    }
    let questions = |gateway: &Gateway, customer: &str| {
        let before = origin.requests();
        let first = gateway.client().get(&name_of(customer)).bearer("tok-b").send();
        assert_eq!(first.assert_status(200).cache_status(), STORED);
        (
            origin.requests() - before,
            origin.seen()[before..].iter().filter_map(|seen| seen.token()).collect::<Vec<_>>(),
        )
    };
    let alone = questions(&Gateway::start(&origin), DUCK);
    let gateway = Gateway::start(&origin);
    for _ in 0..3 {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    }
    assert_eq!(
        questions(&gateway, DUCK),
        alone,
        "another caller's entry saves no request, so that no timing reveals it"
    );
    assert_eq!(
        alone,
        (2, vec!["tok-b".into(); 2]),
        "a validation and a fetch, with the caller's own token"
    );
}

#[test]
fn entries_are_separate_for_each_customer() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for id in [DUCK, OTHER, THIRD] {
        let response = gateway.client().get(&name_of(id)).bearer("tok-a").send();
        assert_eq!(response.assert_status(200).cache_status(), STORED);
        assert_eq!(response.json()["_id"], id);
    }
    for id in [DUCK, OTHER, THIRD] {
        let response = gateway.client().get(&name_of(id)).bearer("tok-a").send();
        assert!(response.is_hit(), "{response:#?}");
        assert_eq!(response.json()["_id"], id);
    }
}

#[test]
fn forbidden_response_is_cached_for_its_caller_only() {
    let origin = Origin::start();
    origin.knows("tok-may", "VIEWER", DUCK);
    origin.knows("tok-may-not", "VIEWER", OTHER);
    origin.when(Rule::on("/customer/").made(|seen| match seen.token().as_deref() {
        Some("tok-may") => Answer::json(upstream_document(DUCK)),
        _ => Answer::error(403, "access_denied"),
    }));
    let gateway = Gateway::start(&origin);
    for _ in 0..2 {
        gateway.client().get(P).bearer("tok-may").send().assert_status(200);
        gateway.client().get(P).bearer("tok-may-not").send().assert_error(403, "access_denied");
    }
    assert_eq!(origin.fetches(DUCK), 2);
}

#[test]
fn entries_are_separate_for_each_access_level() {
    for high_first in [true, false] {
        let origin = Origin::start();
        origin.knows("tok-high", "ADMIN", DUCK);
        origin.knows("tok-low", "NO_LOGIN", DUCK);
        let gateway = Gateway::start(&origin);
        let high = || {
            let response = gateway.client().get(P).bearer("tok-high").revealed().send();
            assert_eq!(response.assert_status(200).text(), upstream_document(DUCK));
        };
        let low = || {
            let response = gateway.client().get(P).bearer("tok-low").send();
            assert_eq!(response.assert_status(200).text(), redacted_document(DUCK));
        };
        if high_first {
            high();
        }
        low();
        high();
        low();
    }
}

#[test]
fn concurrent_requests_share_one_fetch_and_one_validation() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let gateway = Gateway::start(&origin);
    let pending: Vec<_> =
        (0..200).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    origin.wait_for_fetches(DUCK, 1);
    gate.open();
    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    for pending in pending {
        let response = pending.finish();
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK));
        let status = if response.is_hit() { "hit" } else { response.cache_status() };
        *statuses.entry(status.to_owned()).or_default() += 1;
    }
    assert_eq!((origin.fetches(DUCK), origin.validations()), (1, 1));
    assert_eq!(statuses.get(STORED), Some(&1), "one led: {statuses:?}");
    let collapsed =
        statuses.get("telecomx-gateway; fwd=uri-miss; collapsed").copied().unwrap_or_default();
    let hits = statuses.get("hit").copied().unwrap_or_default();
    assert_eq!(collapsed + hits, 199, "{statuses:?}");
}

#[test]
fn fetch_survives_the_disconnect_of_one_client() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let gateway = Gateway::start(&origin);
    let leader = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    let followers: Vec<_> =
        (0..5).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    drop(leader);
    gate.open();
    for follower in followers {
        assert_eq!(follower.finish().assert_status(200).text(), redacted_document(DUCK));
    }
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn not_found_and_forbidden_are_cached_unchanged() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.missing(OTHER);
    origin.forbidden(THIRD);
    let gateway =
        Gateway::with(&origin, r#"cache = { not_found_ttl = "10m", forbidden_ttl = "10m" }"#);
    for (id, status, code) in [(OTHER, 404, "customer"), (THIRD, 403, "access_denied")] {
        let first = gateway.client().get(&name_of(id)).bearer("tok-a").send();
        assert_eq!(first.assert_error(status, code).cache_status(), STORED);
        let second = gateway.client().get(&name_of(id)).bearer("tok-a").send();
        assert!(second.assert_error(status, code).is_hit(), "{second:#?}");
        assert_eq!(second.body, first.body);
        assert_eq!(origin.fetches(id), 1);
    }
}

#[test]
fn not_found_and_forbidden_expire_after_their_ttl() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.missing(OTHER);
    origin.forbidden(THIRD);
    let config =
        r#"cache = { not_found_ttl = "1s", forbidden_ttl = "1s", stale_while_revalidate = "0s" }"#;
    let gateway = Gateway::with(&origin, config);
    for id in [OTHER, THIRD] {
        gateway.client().get(&name_of(id)).bearer("tok-a").send();
        origin.document(id, Answer::json(upstream_document(id)));
        wait_until("it is asked for again", || {
            gateway.client().get(&name_of(id)).bearer("tok-a").send().status == 200
        });
    }
}

/// Changes a storable response into one that must not be stored.
type Change = fn(Answer) -> Answer;

#[test]
fn response_that_forbids_storing_is_not_stored() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let document = |id: &str| Answer::json(upstream_document(id));
    let cases: [(&str, u16, Change); 13] = [
        ("no-store", 200, |answer| answer.header("Cache-Control", "no-store")),
        ("no-store in a second field", 200, |answer| {
            answer
                .header("Cache-Control", "max-age=60")
                .header("Cache-Control", "private, No-Store")
        }),
        ("Expires in the past", 200, |answer| {
            answer
                .header("Date", "Thu, 18 Aug 2050 02:01:18 GMT")
                .header("Expires", "Wed, 17 Aug 2050 02:01:18 GMT")
        }),
        ("Vary: *", 200, |answer| answer.header("Vary", "*")),
        ("Vary on what the key does not hold", 200, |answer| {
            answer.header("Vary", "Accept-Language")
        }),
        ("Set-Cookie", 200, |answer| answer.header("Set-Cookie", "session=PLANTED; Path=/")),
        ("500", 500, |answer| answer.status(500)),
        ("503", 503, |answer| answer.status(503)),
        ("429", 429, |answer| answer.status(429)),
        ("400", 0, |answer| answer.status(400)),
        ("206", 0, |answer| answer.status(206).header("Content-Range", "bytes 0-9/10")),
        ("301", 0, |answer| {
            answer.status(301).header("Location", "http://elsewhere.invalid/?token=PLANTED")
        }),
        ("201", 0, |answer| answer.status(201)),
    ];
    for (number, (case, status, change)) in cases.into_iter().enumerate() {
        let id = customer(number);
        origin.document(&id, change(document(&id)));
        for round in 1..=2 {
            let response = gateway.client().get(&name_of(&id)).bearer("tok-a").send();
            // 0: any error status; the response leaks nothing and is not stored.
            if status != 0 {
                assert_eq!(response.assert_status(status).text(), redacted_document(&id), "{case}");
            }
            assert!(!response.cache_status().contains("stored"), "{case}: {response:#?}");
            assert!(!response.cache_status().contains("hit"), "{case}: {response:#?}");
            assert_eq!(origin.fetches(&id), round, "{case}");
        }
        origin.document(&id, document(&id));
        let good = gateway.client().get(&name_of(&id)).bearer("tok-a").send();
        assert_eq!(good.assert_status(200).cache_status(), STORED, "{case}");
    }
}

#[test]
fn age_includes_the_age_of_the_api_response() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let old = |id: &str| Answer::json(upstream_document(id)).header("Age", "30");
    origin.document(DUCK, old(DUCK));
    origin.document(OTHER, old(OTHER).header("Cache-Control", "no-store"));
    let gateway = Gateway::start(&origin);
    for (id, detail) in [(DUCK, "stored"), (DUCK, "hit"), (OTHER, "fwd=uri-miss")] {
        let response = gateway.client().get(&name_of(id)).bearer("tok-a").send();
        assert!(response.cache_status().contains(detail), "{response:#?}");
        let age: u32 = response.header("age").expect("an Age").parse().expect("seconds");
        assert!((30..90).contains(&age), "{response:#?}");
    }
}

#[test]
fn not_modified_without_freshness_info_keeps_the_lifetime() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.when(Rule::on("/customer/").made(|seen| {
        match seen.header("if-none-match") {
            Some(_) => Answer::new(304).header("ETag", "\"v1\""),
            None => Answer::json(upstream_document(DUCK))
                .header("ETag", "\"v1\"")
                .header("Cache-Control", "max-age=1"),
        }
    }));
    let gateway =
        Gateway::with(&origin, r#"cache = { ttl = "10m", stale_while_revalidate = "0s" }"#);
    // With the configured ttl instead of the API's second, there would be no third fetch for ten
    // minutes.
    wait_until("a third question", || {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
        origin.fetches(DUCK) >= 3
    });
    let asked = origin.fetched(DUCK);
    assert_eq!(asked[1].header("if-none-match"), Some("\"v1\""));
}

#[test]
fn redirect_is_never_followed() {
    let origin = Origin::start();
    let elsewhere = Origin::start();
    origin.knows("tok-a", "ADMIN", DUCK);
    origin.document(DUCK, Answer::new(302).header("Location", &format!("{}{P}", elsewhere.url())));
    let gateway = Gateway::start(&origin);
    let redirect = gateway.client().get(P).bearer("tok-a").send();
    assert_eq!(
        redirect.assert_status(302).header("location"),
        Some(format!("{}{P}", elsewhere.url()).as_str())
    );
    assert_eq!(elsewhere.requests(), 0);
}

#[test]
fn other_query_parameters_bypass_the_cache_and_are_redacted() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for query in ["x=1", "simple=true&token=tok-a", "token=tok-a&x=1", "Token=1"] {
        for _ in 0..2 {
            let before = origin.fetches(DUCK);
            let response = gateway.client().get(&format!("{P}?{query}")).bearer("tok-a").send();
            assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{query}");
            assert_eq!(response.cache_status(), BYPASS, "{query}");
            assert_eq!(origin.fetches(DUCK), before + 1, "{query}");
        }
    }
    // The response was not stored, and no entry serves this request.
    assert_eq!(gateway.client().get(P).bearer("tok-a").send().cache_status(), STORED);
    assert_eq!(
        gateway.client().get(&format!("{P}?x=1")).bearer("tok-a").send().cache_status(),
        BYPASS
    );
    gateway.client().get(&format!("{P}?x=1")).send().assert_error(401, "credentials_invalid");
}

#[test]
fn ttl_of_zero_stores_nothing() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"cache.ttl = "0s""#);
    for round in 1..=3 {
        let response = gateway.client().get(P).bearer("tok-a").send();
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK));
        assert!(
            !response.cache_status().contains("stored") && !response.cache_status().contains("hit"),
            "{response:#?}"
        );
        assert_eq!(origin.fetches(DUCK), round);
    }
}

#[test]
fn body_of_a_get_is_never_read_as_a_request() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    for call in [
        client.get(P).bearer("tok-a").body(hidden),
        client.get(P).bearer("tok-a").chunked(&[hidden.as_bytes()]),
    ] {
        let mut connection = client.connect();
        let response = call.send_on(&mut connection);
        assert!(matches!(response.status, 200 | 400), "{response:#?}");
        assert!(
            !response.all("cache-status").join("").contains("hit"),
            "not from the cache: {response:#?}"
        );
        // The next bytes on this connection are the response to the next request, if any.
        connection.send_raw(client.get(&name_of(OTHER)).bearer("tok-a").bytes());
        if let Some(next) = connection.read("GET", Kind::Intercepted) {
            assert_eq!(next.assert_status(200).json()["_id"], OTHER);
        }
    }
    assert!(client.get(P).bearer("tok-a").send().assert_status(200).is_hit());
    assert_eq!(origin.count(|seen| seen.path() == "/hidden"), 0);
}

/// A stale hit with this `detail`.
fn past_its_time(response: &Response, detail: &str) -> bool {
    let rest = response.cache_status().strip_prefix("telecomx-gateway; hit; ttl=");
    let ttl = rest.and_then(|rest| rest.strip_suffix(&format!("; detail={detail}")));
    // 0 in the first second after its expiry.
    ttl.is_some_and(|ttl| ttl.parse::<i64>().is_ok_and(|ttl| ttl <= 0))
}

#[test]
fn stale_response_is_served_during_its_refresh() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(
        &origin,
        r#"cache = { ttl = "1s", stale_while_revalidate = "10m" }
        identity.session = "1h""#,
    );
    let get = || gateway.client().get(P).bearer("tok-a").send();
    assert_eq!(get().assert_status(200).cache_status(), STORED);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    origin.document(DUCK, Answer::json(r#"{"_id":"73469a52f4fd7f77ec7b28cc","name":"new"}"#));
    wait_until("a stale answer", || get().assert_status(200).cache_status().contains("detail="));
    for _ in 0..5 {
        let stale = get();
        assert!(past_its_time(&stale, "revalidating"), "{stale:#?}");
        assert_eq!(stale.text(), redacted_document(DUCK));
    }
    origin.wait_for_fetches(DUCK, 2);
    assert_eq!(origin.fetches(DUCK), 2, "one fetch for all of them");
    gate.open();
    wait_until("the new answer", || get().assert_status(200).text().contains("\"new\""));
}

#[test]
fn stale_response_is_served_while_the_api_fails() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config = r#"cache = { ttl = "1s", stale_while_revalidate = "0s", stale_if_error = "10m" }"#;
    let gateway = Gateway::with(&origin, config);
    let get = || gateway.client().get(P).bearer("tok-a").send();
    assert_eq!(get().assert_status(200).cache_status(), STORED);
    for fault in ["no answer", "an error", "refused"] {
        match fault {
            "no answer" => origin.when(Rule::on("/customer/").close()),
            "an error" => {
                origin.when(Rule::on("/customer/").answer(Answer::error(500, "internal_error")))
            }
            _ => origin.stop(),
        }
        wait_until("a stale answer", || {
            get().assert_status(200).cache_status().contains("detail=")
        });
        let stale = get();
        assert_eq!(stale.assert_status(200).text(), redacted_document(DUCK), "{fault}");
        assert!(past_its_time(&stale, "stale-if-error"), "{fault}: {stale:#?}");
    }
    // A caller without a stale entry gets the error.
    origin.knows("tok-b", "VIEWER", DUCK);
    let other = gateway.client().get(P).bearer("tok-b").send();
    assert!(matches!(other.status, 502..=504), "{other:#?}");
    origin.behave();
    origin.resume();
    wait_until("a fresh answer", || get().status == 200 && get().is_hit());
}

#[test]
fn failure_is_shared_by_waiting_requests_and_not_cached() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(
        Rule::on("/customer/").answer(Answer::error(500, "internal_error")).hold(&gate).times(1),
    );
    let gateway = Gateway::start(&origin);
    let pending: Vec<_> =
        (0..10).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    origin.wait_for_fetches(DUCK, 1);
    gate.open();
    for pending in pending {
        // A request after the failure starts another fetch.
        let response = pending.finish();
        assert!(matches!(response.status, 200 | 500), "{response:#?}");
    }
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    assert!(origin.fetches(DUCK) <= 3, "{}", origin.fetches(DUCK));
}

#[test]
fn waiting_requests_get_an_error_page_with_their_own_id() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    let page = Answer::new(500).header("Content-Type", "text/html").body("<p>failed</p>");
    origin.when(Rule::on("/customer/").answer(page).hold(&gate));
    let gateway = Gateway::start(&origin);
    let pending: Vec<_> =
        (0..10).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    origin.wait_for_fetches(DUCK, 1);
    gate.open();
    for pending in pending {
        let response = pending.finish();
        response.assert_error(500, "internal_error");
        let id = response.header("x-request-id").expect("a request id");
        assert_eq!(response.json()["error"]["requestId"], id, "{response:#?}");
    }
}

#[test]
fn slow_api_response_times_out() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "3s""#);
    let (gate, body_gate) = (Gate::closed(), Gate::closed());
    origin.when(Rule::on("/customer/").hold(&gate).times(1));
    gateway.client().get(P).bearer("tok-a").send().assert_error(504, "gateway_timeout");
    // The timeout covers the whole exchange, not only the wait for its first byte.
    origin.when(Rule::on("/customer/").hold_body(&body_gate).times(1));
    gateway.client().get(P).bearer("tok-a").send().assert_error(504, "gateway_timeout");
    gate.open();
    body_gate.open();
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
}

#[test]
fn memory_of_purged_entries_is_released_without_requests() {
    const ANSWERS: usize = 200;
    let origin = Origin::start();
    origin.knows("tok-a", "ADMIN", DUCK);
    // Equal bodies would be stored once.
    let document = |number: usize| format!("{{\"name\":\"{number}{}\"}}", "x".repeat(200_000));
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").revealed().send().assert_status(200);
    let before = gateway.memory();
    for number in 0..ANSWERS {
        origin.document(&customer(number), Answer::json(document(number)));
        client
            .get(&name_of(&customer(number)))
            .bearer("tok-a")
            .revealed()
            .send()
            .assert_status(200);
    }
    let stored = gateway.memory().saturating_sub(before);
    assert!(stored > ANSWERS * 190, "{stored} KiB");
    gateway.admin().delete("/cache").send().assert_status(200);
    // No request arrives that could do the work. `benches/compare/tail.py` measures its cost for
    // one.
    wait_until("the memory is given back", || gateway.memory() < before + stored / 2);
}
