//! Successful responses of the intercepted route: their fields, and what each level receives.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// The `ttl` of a fresh hit without a `detail`.
fn ttl_of(response: &Response) -> i64 {
    let status = response.cache_status();
    let ttl = status.strip_prefix("telecomx-gateway; hit; ttl=").and_then(|ttl| ttl.parse().ok());
    ttl.unwrap_or_else(|| panic!("not a fresh hit: {response:#?}"))
}

#[test]
fn first_request_is_a_stored_miss_and_the_second_a_hit() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();

    let miss = client.get(P).bearer("tok-a").send();
    miss.assert_status(200);
    assert_eq!(miss.cache_status(), "telecomx-gateway; fwd=uri-miss; stored");
    let hit = client.get(P).bearer("tok-a").send();
    hit.assert_status(200);
    let (ttl, age) =
        (ttl_of(&hit), hit.header("age").and_then(|age| age.parse::<i64>().ok()).expect("an Age"));
    assert!((1..=60).contains(&ttl), "{hit:#?}");
    assert!((59..=61).contains(&(ttl + age)), "age and ttl add up to cache.ttl: {hit:#?}");
    assert_eq!(hit.body, miss.body);
    assert_eq!(hit.header("etag"), miss.header("etag"));
    assert_eq!((origin.fetches(DUCK), origin.validations()), (1, 1));
}

#[test]
fn every_response_has_validators_and_cache_fields() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for answer in ["miss", "hit"] {
        let response = gateway.client().get(P).bearer("tok-a").send();
        let etag = response.header("etag").expect("an ETag");
        assert!(
            etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'),
            "{answer}: strong: {response:#?}"
        );
        assert_eq!(
            response.header("content-length"),
            Some(response.body.len().to_string().as_str()),
            "{answer}"
        );
        assert_eq!(response.header("vary"), Some("Authorization, X-API-Key, Cookie"), "{answer}");
        assert_eq!(response.header("cache-control"), Some("private, no-cache"), "{answer}");
        assert!(
            response.header("content-type").expect("a type").starts_with("application/json"),
            "{answer}"
        );
        assert!(response.header("age").expect("an Age").parse::<u32>().is_ok(), "{answer}");
        assert!(response.header("x-request-id").is_some_and(|id| !id.is_empty()), "{answer}");
    }
}

#[test]
fn levels_below_reveal_to_receive_no_secret() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for role in LOWER_ROLES {
        let token = format!("tok-{role}");
        origin.knows(&token, role, DUCK);
        for _ in 0..2 {
            let response = gateway.client().get(P).bearer(&token).send();
            assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{role}");
        }
    }
    for role in HIGHER_ROLES {
        let token = format!("tok-{role}");
        origin.knows(&token, role, DUCK);
        for _ in 0..2 {
            let response = gateway.client().get(P).bearer(&token).revealed().send();
            assert_eq!(response.assert_status(200).text(), upstream_document(DUCK), "{role}");
        }
    }
    assert_eq!(origin.fetches(DUCK), LOWER_ROLES.len() + HIGHER_ROLES.len());
}

#[test]
fn reseller_receives_the_bytes_of_the_api() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    let odd = "{ \"z\" : 1.0e2,\n\"a\":\"\\u00e6\\/\", \"integrations\":{ \"k\": \"PLANTED\" } }\n";
    origin.document(DUCK, Answer::json(odd));
    let gateway = Gateway::start(&origin);
    for _ in 0..2 {
        let response = gateway.client().get(P).bearer("tok-a").revealed().send();
        assert_eq!(response.assert_status(200).text(), odd);
    }
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn misplaced_secrets_and_unknown_integrations_are_removed() {
    let (upstream, redacted) = misplaced_documents();
    let origin = Origin::start();
    origin.knows("tok-a", "OWNER", DUCK);
    origin.document(DUCK, Answer::json(upstream));
    let gateway = Gateway::start(&origin);
    assert_eq!(gateway.client().get(P).bearer("tok-a").send().assert_status(200).text(), redacted);
}

#[test]
fn letter_case_of_an_id_makes_no_second_entry() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let lower = gateway.client().get(P).bearer("tok-a").send();
    let upper = gateway.client().get(&name_of(&DUCK.to_uppercase())).bearer("tok-a").send();
    assert!(upper.is_hit(), "{upper:#?}");
    assert_eq!(upper.body, lower.body);
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn etag_depends_on_the_redacted_bytes() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let low = gateway.client().get(P).bearer("tok-low").send();
    let high = gateway.client().get(P).bearer("tok-high").revealed().send();
    assert_ne!(low.header("etag"), high.header("etag"));
    origin.document(DUCK, Answer::json(r#"{"name":"changed"}"#));
    gateway.admin().delete("/cache").send().assert_status(200);
    let changed = gateway.client().get(P).bearer("tok-low").send();
    assert_ne!(changed.header("etag"), low.header("etag"));
}

#[test]
fn if_none_match_gets_304_when_it_matches() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let etag = client.get(P).bearer("tok-a").send().header("etag").expect("an ETag").to_owned();
    let mut connection = client.connect();
    for matching in
        [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()]
    {
        for call in [client.get(P), client.head(P)] {
            let response =
                call.bearer("tok-a").header("If-None-Match", &matching).send_on(&mut connection);
            assert_eq!(response.status, 304, "{matching}: {response:#?}");
            assert_eq!(response.header("etag"), Some(etag.as_str()), "{matching}");
            assert!(response.is_hit(), "{response:#?}");
        }
    }
    for other in ["\"other\"", "\"a\", \"b\"", etag.trim_matches('"')] {
        let response =
            client.get(P).bearer("tok-a").header("If-None-Match", other).send_on(&mut connection);
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{other}");
    }
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn validator_is_not_compared_without_a_valid_token() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-high", "ADMIN", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let etag = client.get(P).bearer("tok-a").send().header("etag").expect("an ETag").to_owned();
    for validator in [etag.as_str(), "*"] {
        client
            .get(P)
            .header("If-None-Match", validator)
            .send()
            .assert_error(401, "credentials_invalid");
        let unknown = client.get(P).bearer("tok-unknown").header("If-None-Match", validator).send();
        unknown.assert_error(401, "invalid_token");
    }
    let other_bytes =
        client.get(P).bearer("tok-high").header("If-None-Match", &etag).revealed().send();
    assert_eq!(other_bytes.assert_status(200).text(), upstream_document(DUCK));
}

#[test]
fn head_has_the_length_and_no_body_on_miss_and_hit() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    // A body after the head would be read as the next response.
    let mut connection = client.connect();
    let length = redacted_document(DUCK).len().to_string();
    let cold = client.head(P).bearer("tok-a").send_on(&mut connection);
    assert_eq!(cold.assert_status(200).header("content-length"), Some(length.as_str()));
    assert_eq!(cold.cache_status(), "telecomx-gateway; fwd=uri-miss; stored");
    let warm = client.head(P).bearer("tok-a").send_on(&mut connection);
    assert_eq!(warm.assert_status(200).header("content-length"), Some(length.as_str()));
    assert!(warm.is_hit(), "{warm:#?}");
    let get = client.get(P).bearer("tok-a").send_on(&mut connection);
    assert_eq!(get.assert_status(200).text(), redacted_document(DUCK));
    assert!(get.is_hit(), "{get:#?}");
    assert_eq!(get.header("etag"), warm.header("etag"));
    client.head(P).send_on(&mut connection).assert_status(401);
    client.get(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn valid_request_id_of_the_client_is_kept() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let id_of = |path: &str, given: &str| {
        let response = client.get(path).bearer("tok-a").header("X-Request-Id", given).send();
        response.header("x-request-id").expect("a request id").to_owned()
    };
    let longest = "x".repeat(128);
    let too_long = "x".repeat(129);
    let mut made = Vec::new();
    // On a miss, a hit and a forwarded request.
    for path in [P, P, "/elsewhere"] {
        for good in ["a", "Abc-1_2.3", longest.as_str()] {
            assert_eq!(id_of(path, good), good, "{path}");
        }
        for bad in ["", "a b", "a/b", "\u{e6}", "a\"b", too_long.as_str(), "x-tok-a", "tok-a"] {
            let id = id_of(path, bad);
            assert_ne!(id, bad, "{path}");
            assert!((1..=128).contains(&id.len()), "{id}");
            assert!(
                id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
                "{id}"
            );
            made.push(id);
        }
    }
    let refused = client.get(P).header("X-Request-Id", "refused-1").send();
    assert_eq!(
        refused.assert_error(401, "credentials_invalid").header("x-request-id"),
        Some("refused-1")
    );
    let count = made.len();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), count, "each id is used once");
}
