//! Freshness: RFC 9111 as a private cache per caller with configured lifetimes, which the API's
//! responses can only shorten.

use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";
const FETCHED_AGAIN: &str = "telecomx-gateway; fwd=stale; stored";
const ASKED_FOR: &str = "telecomx-gateway; fwd=request; stored";
const RENEWED: &str = "telecomx-gateway; fwd=stale; fwd-status=304; stored";

/// Fresh for ten minutes, never served stale.
const LONG: &str = r#"
    cache = { ttl = "10m", stale_while_revalidate = "0s" }
    identity = { ttl = "10m", refresh_after = "10m", session = "1h" }
"#;
/// Fresh for a moment, then fetched again before it is served.
const SHORT: &str = r#"
    cache = { ttl = "300ms", stale_while_revalidate = "0s" }
    identity = { ttl = "10m", refresh_after = "10m" }
"#;
/// Fresh for a moment, then served stale for a long time.
const SHORT_THEN_STALE: &str = r#"
    cache = { ttl = "300ms", stale_while_revalidate = "10m" }
    identity = { ttl = "10m", refresh_after = "10m", session = "1h" }
"#;

/// A stand-in API that accepts `tok-a`, a VIEWER.
fn origin() -> Origin {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin
}

fn get(gateway: &Gateway, id: &str) -> Response {
    gateway.client().get(&name_of(id)).bearer("tok-a").send()
}

/// Sends requests until a response is `wanted`, and returns it. Each one before is a 200.
fn get_until(
    gateway: &Gateway,
    id: &str,
    what: &str,
    wanted: impl Fn(&Response) -> bool,
) -> Response {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let response = get(gateway, id);
        response.assert_status(200);
        if wanted(&response) {
            return response;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}: {response:#?}");
        look_again();
    }
}

/// The remaining lifetime of a fresh response in seconds.
#[track_caller]
fn left(response: &Response) -> u64 {
    let ttl = response
        .cache_status()
        .strip_prefix("telecomx-gateway; hit; ttl=")
        .and_then(|ttl| ttl.parse().ok());
    ttl.unwrap_or_else(|| panic!("not fresh: {response:#?}"))
}

/// The seconds since a stale response expired, if its `Cache-Status` has this detail.
fn past(response: &Response, detail: &str) -> Option<u64> {
    let rest = response.cache_status().strip_prefix("telecomx-gateway; hit; ttl=-")?;
    rest.strip_suffix(detail)?.strip_suffix("; detail=")?.parse().ok().filter(|past| *past >= 1)
}

fn age(response: &Response) -> u64 {
    response
        .header("age")
        .and_then(|age| age.parse().ok())
        .unwrap_or_else(|| panic!("no Age: {response:#?}"))
}

fn document(id: &str, name: &str) -> Answer {
    Answer::json(format!(r#"{{"_id":"{id}","name":"{name}"}}"#))
}

#[test]
fn api_can_shorten_a_lifetime_but_not_lengthen_it() {
    let origin = origin();
    let gateway = Gateway::with(&origin, LONG);
    let cases: [(&[(&str, &str)], u64); 14] = [
        (&[], 600),
        (&[("Cache-Control", "max-age=60")], 60),
        (&[("Cache-Control", "MAX-AGE=60, private")], 60),
        (&[("Cache-Control", "max-age=\"60\"")], 60),
        (&[("Cache-Control", "max-age=300, max-age=60")], 60),
        (&[("Cache-Control", "max-age=60"), ("Cache-Control", "max-age=300")], 60),
        (&[("Cache-Control", "ext=\"no-store, max-age=5\", max-age=60")], 60),
        (&[("Cache-Control", "ext=\"\\\", no-store\", max-age=60")], 60),
        (&[("Cache-Control", "max-age=100"), ("Age", "40")], 60),
        (&[("Cache-Control", "max-age=99999999999")], 600),
        (&[("Cache-Control", "s-maxage=60")], 60),
        (&[("Cache-Control", "max-age=300, s-maxage=60")], 60),
        (&[("Cache-Control", "public, immutable")], 600),
        (&[("Vary", "Authorization, Accept-Encoding"), ("Vary", "Origin")], 600),
    ];
    for (number, (fields, seconds)) in cases.into_iter().enumerate() {
        let id = customer(number);
        let answer = fields
            .iter()
            .fold(document(&id, "n"), |answer, (name, value)| answer.header(name, value));
        origin.document(&id, answer);
        assert_eq!(get(&gateway, &id).assert_status(200).cache_status(), STORED, "{fields:?}");
        let left = left(&get(&gateway, &id));
        // Up to twenty seconds may pass on a busy machine; no two cases are that close.
        assert!((seconds - 20..=seconds).contains(&left), "{fields:?}: {left}");
        assert_eq!(origin.fetches(&id), 1, "{fields:?}");
    }
}

#[test]
fn response_that_must_not_be_stored_is_not_stored() {
    let origin = origin();
    let gateway = Gateway::with(&origin, LONG);
    let cases = [
        ("Cache-Control", "no-store"),
        ("Cache-Control", "No-Store, max-age=60"),
        ("Cache-Control", "no-cache"),
        ("Cache-Control", "no-cache=\"set-cookie\""),
        ("Cache-Control", "max-age=0"),
        ("Cache-Control", "max-age=\"0\""),
        ("Cache-Control", "max-age=60, max-age=0"),
        ("Cache-Control", "max-age=-1"),
        ("Cache-Control", "max-age=soon"),
        ("Cache-Control", "max-age"),
        ("Cache-Control", "ext=\"never closed, max-age=60"),
        ("Set-Cookie", "a=b"),
        ("Vary", "*"),
        ("Vary", "Authorization, X-Device"),
    ];
    for (number, (name, value)) in cases.into_iter().enumerate() {
        let id = customer(number);
        origin.document(&id, document(&id, "n").header(name, value));
        for round in 1..=2 {
            let response = get(&gateway, &id);
            assert_eq!(
                response.assert_status(200).cache_status(),
                "telecomx-gateway; fwd=uri-miss",
                "{name}: {value}"
            );
            assert_eq!(origin.fetches(&id), round, "{name}: {value}");
            assert_eq!(response.header("set-cookie"), None);
        }
    }
    // The same for an entry that was stored before.
    let id = customer(99);
    origin.document(&id, document(&id, "old").header("Cache-Control", "max-age=1"));
    get(&gateway, &id);
    origin.document(&id, document(&id, "new").header("Cache-Control", "no-store"));
    get_until(&gateway, &id, "the new answer", |response| response.text().contains("new"));
    origin.when(Rule::on("/customer/").close());
    get(&gateway, &id).assert_error(502, "bad_gateway");
}

#[test]
fn entry_is_fetched_once_per_lifetime() {
    let origin = origin();
    let gateway =
        Gateway::with(&origin, r#"cache = { ttl = "2s", stale_while_revalidate = "0s" }"#);
    let began = Instant::now();
    assert_eq!(get(&gateway, DUCK).assert_status(200).cache_status(), STORED);
    let again = get_until(&gateway, DUCK, "its end", |response| !response.is_hit());
    assert_eq!((again.cache_status(), origin.fetches(DUCK)), (FETCHED_AGAIN, 2));
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "not before its whole time: {:?}",
        began.elapsed()
    );
    assert!(age(&again) < 2, "{again:#?}");
    assert!(get(&gateway, DUCK).is_hit());
}

#[test]
fn age_of_a_slow_response_counts_from_its_request() {
    let origin = origin();
    let gateway = Gateway::with(&origin, LONG);
    get(&gateway, OTHER);
    let gate = Gate::closed();
    origin.when(Rule::on(P).hold(&gate));
    let began = Instant::now();
    let pending = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    wait_until("a second has passed", || began.elapsed() > Duration::from_millis(1200));
    gate.open();
    assert!(
        age(pending.finish().assert_status(200)) >= 1,
        "the API may have made it when it was asked"
    );
    assert!(left(&get(&gateway, DUCK)) < 599);
}

#[test]
fn no_cache_revalidates_at_most_once_a_second() {
    let origin = origin();
    let gateway = Gateway::with(&origin, LONG);
    let wishes = [
        ("Cache-Control", "no-cache"),
        ("Cache-Control", "max-age=0"),
        ("Cache-Control", "min-fresh=3600"),
        ("Pragma", "no-cache"),
    ];
    let wish = |number: usize| {
        let (name, value) = wishes[number];
        gateway.client().get(&name_of(&customer(number))).bearer("tok-a").header(name, value).send()
    };
    let began = Instant::now();
    let numbers = 0..wishes.len();
    for number in numbers.clone() {
        assert_eq!(wish(number).assert_status(200).cache_status(), STORED);
        assert!(wish(number).is_hit(), "not twice in a second: {:?}", wishes[number]);
    }
    let fetches = |number| origin.fetches(&customer(number));
    let mut asked = 0;
    while numbers.clone().any(|number| fetches(number) < 3) {
        for number in numbers.clone() {
            let response = wish(number);
            let status = response.assert_status(200).cache_status();
            assert!(response.is_hit() || status == ASKED_FOR, "{response:#?}");
            asked += 1;
        }
        assert!(began.elapsed() < PATIENCE, "the API is not asked");
    }
    for number in numbers {
        let most = 1 + began.elapsed().as_secs() as usize;
        assert!(
            fetches(number) <= most,
            "{:?}: {} fetches in {:?}",
            wishes[number],
            fetches(number),
            began.elapsed()
        );
        assert!(
            get(&gateway, &customer(number)).is_hit(),
            "who asked for nothing is served from what is stored"
        );
    }
    assert!(asked > 40, "there was something to be bounded: {asked}");
}

#[test]
fn max_stale_of_a_client_is_ignored() {
    let origin = origin();
    let gateway = Gateway::with(&origin, SHORT);
    get(&gateway, DUCK);
    let lax = || {
        gateway
            .client()
            .get(P)
            .bearer("tok-a")
            .header("Cache-Control", "max-stale=9999, max-stale")
            .send()
    };
    wait_until("it is past its time", || !lax().assert_status(200).is_hit());
    assert!(origin.fetches(DUCK) >= 2);
    origin.when(Rule::on("/customer/").answer(Answer::error(404, "customer")));
    wait_until("the API's word counts", || lax().status == 404);
}

#[test]
fn only_if_cached_is_a_hit_or_504() {
    let origin = origin();
    let only_cached = |gateway: &Gateway| {
        gateway
            .client()
            .get(P)
            .bearer("tok-a")
            .header("Cache-Control", "only-if-cached, no-cache")
            .send()
    };
    let gateway = Gateway::with(&origin, SHORT);
    only_cached(&gateway).assert_error(504, "gateway_timeout");
    assert_eq!(origin.fetches(DUCK), 0);
    get(&gateway, DUCK);
    wait_until("it is past its time", || only_cached(&gateway).status == 504);
    only_cached(&gateway).assert_error(504, "gateway_timeout");
    assert_eq!(origin.fetches(DUCK), 1, "the API was not asked");
    gateway
        .client()
        .get(P)
        .header("Cache-Control", "only-if-cached")
        .send()
        .assert_error(401, "credentials_invalid");
    drop(gateway);
    let gateway = Gateway::with(&origin, LONG);
    get(&gateway, DUCK);
    assert!(only_cached(&gateway).assert_status(200).is_hit());
}

#[test]
fn stale_entry_is_served_while_one_refresh_runs() {
    let origin = origin();
    origin.knows("tok-b", "OWNER", DUCK);
    let gateway = Gateway::with(&origin, SHORT_THEN_STALE);
    let ask = |token: &str| gateway.client().get(P).header("X-API-Key", token).send();
    for token in ["tok-a", "tok-b"] {
        assert_eq!(ask(token).assert_status(200).cache_status(), STORED);
    }
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").answer(document(DUCK, "new")).hold(&gate));
    for token in ["tok-a", "tok-b"] {
        wait_until("it is past its time", || {
            past(ask(token).assert_status(200), "revalidating").is_some()
        });
        for _ in 0..20 {
            let stale = ask(token);
            assert!(past(&stale, "revalidating").is_some(), "{stale:#?}");
            assert_eq!(stale.assert_status(200).text(), redacted_document(DUCK));
        }
    }
    origin.wait_for_fetches(DUCK, 4);
    let tokens: Vec<_> =
        origin.fetched(DUCK).iter().map(|seen| seen.token().unwrap_or_default()).collect();
    assert_eq!(
        tokens,
        ["tok-a", "tok-b", "tok-a", "tok-b"],
        "one refresh for each, as that caller"
    );
    gate.open();
    for token in ["tok-a", "tok-b"] {
        wait_until("the next is the new one", || {
            ask(token).assert_status(200).text().contains("new")
        });
    }
    assert!(gateway.metric("cache_stale_served_total", &[("reason", "revalidating")]) >= 42.0);
}

#[test]
fn refusal_of_the_api_ends_stale_entries() {
    for (remembered, while_revalidating) in
        [("0s", "0s"), ("0s", "10m"), ("300ms", "0s"), ("300ms", "10m")]
    {
        let origin = origin();
        let config = format!(
            r#"cache = {{ ttl = "300ms", stale_while_revalidate = "{while_revalidating}", stale_if_error = "10m",
            forbidden_ttl = "{remembered}", not_found_ttl = "{remembered}" }}
            identity = {{ ttl = "10m", refresh_after = "10m", session = "1h" }}"#
        );
        let gateway = Gateway::with(&origin, &config);
        // A 401 ends all entries of its token, so each case has its own token.
        let cases = [(401, DUCK), (403, OTHER), (404, THIRD)]
            .map(|(said, id)| (said, id, format!("tok-{said}")));
        let ask = |id: &str, token: &str| gateway.client().get(&name_of(id)).bearer(token).send();
        for (said, id, token) in &cases {
            origin.knows(token, "VIEWER", DUCK);
            ask(id, token).assert_status(200);
            origin.document(id, Answer::error(*said, "no"));
        }
        for (said, id, token) in &cases {
            wait_until("the API's no", || ask(id, token).status == *said);
        }
        origin.when(Rule::on("/").close());
        for (said, id, token) in &cases {
            // Wait until the negative entry has expired.
            wait_until("the API fails", || ask(id, token).status != *said);
            for _ in 0..3 {
                ask(id, token).assert_error(502, "bad_gateway");
            }
        }
    }
}

/// The document `name`, or 304 for its validator.
fn validated(
    id: &'static str,
    name: &'static str,
    field: &'static str,
    validator: &'static str,
) -> Rule {
    let asked_with = if field == "ETag" { "If-None-Match" } else { "If-Modified-Since" };
    Rule::on("/customer/").made(move |seen| match seen.header(asked_with) {
        Some(given) if given == validator => Answer::new(304).header(field, validator),
        _ => document(id, name).header(field, validator),
    })
}

#[test]
fn entry_is_renewed_by_a_304() {
    for (field, asked_with, first, second) in [
        ("ETag", "If-None-Match", "\"v1\"", "W/\"v2\""),
        (
            "Last-Modified",
            "If-Modified-Since",
            "Thu, 01 Jan 2026 00:00:00 GMT",
            "Fri, 02 Jan 2026 00:00:00 GMT",
        ),
    ] {
        let origin = origin();
        let gateway = Gateway::with(&origin, SHORT);
        origin.when(validated(DUCK, "one", field, first));
        let original = get(&gateway, DUCK);
        assert_eq!(original.assert_status(200).cache_status(), STORED);
        for _ in 0..2 {
            let renewed = get_until(&gateway, DUCK, "its end", |response| !response.is_hit());
            assert_eq!(renewed.cache_status(), RENEWED, "{field}");
            assert_eq!(
                (&renewed.body, renewed.header("etag")),
                (&original.body, original.header("etag"))
            );
        }
        // After a change the gateway revalidates with the new validator.
        origin.when(validated(DUCK, "two", field, second));
        let changed =
            get_until(&gateway, DUCK, "the change", |response| response.text().contains("two"));
        assert_eq!(changed.cache_status(), FETCHED_AGAIN);
        get_until(&gateway, DUCK, "its end", |response| response.cache_status() == RENEWED);
        let asked: Vec<_> = origin
            .fetched(DUCK)
            .iter()
            .map(|seen| seen.header(asked_with).map(str::to_owned))
            .collect();
        let expected = [None, Some(first), Some(first), Some(first), Some(second)];
        assert_eq!(asked.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn background_revalidation_makes_the_next_response_fresh() {
    let origin = origin();
    let gateway = Gateway::with(
        &origin,
        r#"cache = { ttl = "2s", stale_while_revalidate = "10m" }
        identity.session = "1h""#,
    );
    origin.when(validated(DUCK, "one", "ETag", "\"v1\""));
    get(&gateway, DUCK);
    let stale = get_until(&gateway, DUCK, "a stale answer", |response| {
        past(response, "revalidating").is_some()
    });
    let fresh = get_until(&gateway, DUCK, "a fresh one", Response::is_hit);
    assert!(age(&stale) >= 2 && age(&fresh) < 2, "a new entry: {fresh:#?}");
    let conditional = origin.count(|seen| seen.header("if-none-match") == Some("\"v1\""));
    assert!(
        conditional >= 1 && conditional == origin.fetches(DUCK) - 1,
        "{:#?}",
        origin.fetched(DUCK)
    );
}

#[test]
fn unrequested_304_is_a_502() {
    let origin = origin();
    origin.when(Rule::on("/customer/").answer(Answer::new(304).header("ETag", "\"v1\"")));
    let gateway = Gateway::start(&origin);
    get(&gateway, DUCK).assert_error(502, "bad_gateway");
    // The client's validator is not the gateway's.
    let call = gateway.client().get(P).bearer("tok-a").header("If-None-Match", "\"v1\"");
    call.send().assert_error(502, "bad_gateway");
    assert!(origin.fetched(DUCK).iter().all(|seen| seen.header("if-none-match").is_none()));
    origin.behave();
    assert_eq!(get(&gateway, DUCK).assert_status(200).cache_status(), STORED);
}

#[test]
fn no_store_on_a_304_evicts_the_entry() {
    let origin = origin();
    let gateway = Gateway::with(&origin, SHORT);
    origin.when(
        Rule::on("/customer/").answer(document(DUCK, "one").header("ETag", "\"v1\"")).times(1),
    );
    get(&gateway, DUCK);
    let forbidding = Answer::new(304).header("ETag", "\"v1\"").header("Cache-Control", "no-store");
    origin.when(Rule::on("/customer/").answer(forbidding));
    let last = get_until(&gateway, DUCK, "its end", |response| !response.is_hit());
    assert_eq!(last.cache_status(), "telecomx-gateway; fwd=stale; fwd-status=304");
    origin.when(Rule::on("/customer/").close());
    get(&gateway, DUCK).assert_error(502, "bad_gateway");
}

#[test]
fn restarted_gateway_has_an_empty_cache() {
    let origin = origin();
    for start in 1..=2 {
        let gateway = Gateway::with(&origin, LONG);
        assert_eq!(get(&gateway, DUCK).assert_status(200).cache_status(), STORED);
        assert!(get(&gateway, DUCK).is_hit());
        assert_eq!((origin.fetches(DUCK), origin.validations()), (start, start));
    }
}
