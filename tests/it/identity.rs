//! Identification of callers: places of the token, its validation, and what is sent to the API.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

#[test]
fn token_is_found_in_each_of_its_four_places() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for token in ["tok-bearer", "tok-key", "tok-query", "tok-cookie"] {
        origin.knows(token, "VIEWER", DUCK);
    }
    let calls = [
        ("tok-bearer", client.get(P).header("Authorization", "Bearer tok-bearer")),
        ("tok-key", client.get(P).header("X-API-Key", "tok-key")),
        ("tok-query", client.get(&format!("{P}?token=tok-query"))),
        ("tok-cookie", client.get(P).header("Cookie", "a=b; token=tok-cookie; c=d")),
    ];
    for (at, (token, call)) in calls.into_iter().enumerate() {
        let response = call.send();
        assert_eq!(
            response.assert_status(200).cache_status(),
            "telecomx-gateway; fwd=uri-miss; stored",
            "{token}"
        );
        assert_travelled_alone(&origin.fetched(DUCK)[at], token);
    }
}

/// Asserts that this Bearer token is the only credential of a request.
fn assert_travelled_alone(seen: &Seen, token: &str) {
    let bearer = format!("Bearer {token}");
    assert_eq!(seen.header("authorization"), Some(bearer.as_str()), "{seen:#?}");
    let whole = format!("{seen:?}");
    assert_eq!(whole.matches(TOKEN_MARKER).count(), 1, "another credential travelled: {seen:#?}");
}

#[test]
fn first_token_in_order_decides_and_is_sent_alone() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for token in ["tok-1bearer", "tok-2key", "tok-3query", "tok-4cookie"] {
        origin.knows(token, "VIEWER", DUCK);
    }
    let cookie = |call: Call| call.header("Cookie", "token=tok-4cookie");
    let query = format!("{P}?token=tok-3query");
    let all = cookie(client.get(&query)).header("X-API-Key", "tok-2key").bearer("tok-1bearer");
    let three = cookie(client.get(&query)).header("X-API-Key", "tok-2key");
    let two = cookie(client.get(&query));
    for (at, (token, call)) in
        [("tok-1bearer", all), ("tok-2key", three), ("tok-3query", two)].into_iter().enumerate()
    {
        call.send().assert_status(200);
        assert_travelled_alone(&origin.fetched(DUCK)[at], token);
        assert_eq!(origin.validations_of(token), 1);
    }
    assert_eq!(origin.validations(), 3);
    // An invalid token in an earlier place is not replaced by a valid one in a later place.
    client
        .get(P)
        .bearer("tok-unknown")
        .header("X-API-Key", "tok-2key")
        .send()
        .assert_error(401, "invalid_token");
}

#[test]
fn fetch_sends_no_other_field_of_the_client() {
    let origin = Origin::start();
    origin.knows("tok-plain", "VIEWER", DUCK);
    origin.knows("tok-laden", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(P).bearer("tok-plain").send().assert_status(200);
    let laden = [
        ("Accept", "text/html"),
        ("Accept-Encoding", "gzip, br"),
        ("Accept-Language", "da"),
        ("Cookie", "session=abc"),
        ("Forwarded", "for=203.0.113.7"),
        ("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("Origin", "https://evil.example"),
        ("Range", "bytes=0-10"),
        ("Referer", "https://evil.example/"),
        ("User-Agent", "laden/1"),
        ("X-Access-Level", "ADMIN"),
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-Original-URL", "/customer"),
        ("X-Request-Id", "callers-own-id"),
    ];
    let call =
        laden.iter().fold(gateway.client().get(P).bearer("tok-laden"), |call, (name, value)| {
            call.header(name, value)
        });
    assert_eq!(call.send().assert_status(200).text(), redacted_document(DUCK));
    let fetched = origin.fetched(DUCK);
    let fields = |seen: &Seen, token: &str| -> BTreeSet<(String, String)> {
        // The gateway makes an id for each request. Without `[cors]` the API receives the `Origin`.
        let is_kept =
            |name: &str| !["x-request-id", "origin"].contains(&name.to_ascii_lowercase().as_str());
        let kept = seen.headers.iter().filter(|(name, _)| is_kept(name));
        kept.map(|(name, value)| (name.to_ascii_lowercase(), value.replace(token, "T"))).collect()
    };
    assert_eq!(fields(&fetched[0], "tok-plain"), fields(&fetched[1], "tok-laden"));
    assert!(!format!("{fetched:?}").contains("callers-own-id"), "{fetched:#?}");
    assert_eq!(fetched[1].target, P);
    for name in fetched[1].header_names() {
        let known = [
            "host",
            "authorization",
            "accept",
            "accept-encoding",
            "user-agent",
            "via",
            "connection",
        ];
        let is_known =
            known.contains(&name.as_str()) || ["x-request-id", "origin"].contains(&name.as_str());
        assert!(is_known, "{name} is not a field of a fetch: {fetched:#?}");
    }
    assert_eq!(fetched[1].header("host"), Some(origin.address().to_string().as_str()));
}

#[test]
fn each_kind_of_missing_token_has_its_code() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).send().assert_error(401, "credentials_invalid");
    client.get(P).header("Cookie", "other=tok-a").send().assert_error(401, "credentials_invalid");
    client.get(P).header("Authorization", "Basic dTpw").send().assert_error(401, "format_error");
    client.get(P).header("Authorization", "tok-bare").send().assert_error(401, "format_error");
    assert_eq!(origin.requests(), 0, "a malformed token is not validated");
    client.get(P).bearer("tok-unknown").send().assert_error(401, "invalid_token");
    for odd in ["Bearer", "Bearer ", "Bearer  ", "Bearer tok-a tok-b", "Bearer \u{e6}-tok-a"] {
        let response = client.get(P).header("Authorization", odd).send();
        assert!(matches!(response.status, 400 | 401), "{odd:?}: {response:#?}");
    }
    assert_eq!(origin.fetches(DUCK), 0);
}

#[test]
fn different_credentials_of_one_kind_are_rejected() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").bearer("tok-b").send().assert_error(400, "bad_request");
    let keys = client.get(P).header("X-API-Key", "tok-a").header("X-API-Key", "tok-b");
    keys.send().assert_error(400, "bad_request");
    // Also a forwarded request, since the API could take either token.
    client
        .get("/elsewhere")
        .bearer("tok-a")
        .bearer("tok-b")
        .send()
        .assert_error(400, "bad_request");
    assert_eq!(origin.requests(), 0);
    client.get(P).bearer("tok-a").bearer("tok-a").send().assert_status(200);
    assert_travelled_alone(&origin.fetched(DUCK)[0], "tok-a");
}

#[test]
fn invalid_token_is_cached() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"identity.negative_ttl = "10m""#);
    for _ in 0..5 {
        gateway.client().get(P).bearer("tok-unknown").send().assert_error(401, "invalid_token");
    }
    assert_eq!(origin.validations_of("tok-unknown"), 1);
}

#[test]
fn invalid_token_is_validated_again_after_negative_ttl() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"identity.negative_ttl = "1s""#);
    gateway.client().get(P).bearer("tok-late").send().assert_error(401, "invalid_token");
    origin.knows("tok-late", "VIEWER", DUCK);
    wait_until("the token is valid", || {
        gateway.client().get(P).bearer("tok-late").send().status == 200
    });
}

#[test]
fn valid_token_is_validated_again_after_its_ttl() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "2s", refresh_after = "1s" }"#);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    origin.forgets("tok-a");
    wait_until("the token is refused", || {
        gateway.client().get(P).bearer("tok-a").send().status == 401
    });
}

#[test]
fn changed_access_level_applies_within_the_identity_ttl() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "2s", refresh_after = "1s" }"#);
    let first = gateway.client().get(P).bearer("tok-a").revealed().send();
    assert_eq!(first.assert_status(200).text(), upstream_document(DUCK));
    origin.knows("tok-a", "VIEWER", DUCK);
    let redacted = redacted_document(DUCK);
    wait_until("the answer is redacted", || {
        gateway.client().get(P).bearer("tok-a").revealed().send().text() == redacted
    });
}

#[test]
fn client_address_is_taken_from_trusted_proxies_only() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let ip_of = |trusted: &str, forwarded_for: &str| {
        let gateway = Gateway::with(&origin, &format!("server.trusted_proxies = {trusted}"));
        let before = origin.validations();
        let call = gateway.client().get(P).bearer("tok-a");
        let call = if forwarded_for.is_empty() {
            call
        } else {
            call.header("X-Forwarded-For", forwarded_for)
        };
        call.send().assert_status(200);
        assert_eq!(origin.validations(), before + 1);
        origin.last("/auth/validateToken").and_then(|seen| seen.query("ip")).expect("an address")
    };
    assert_eq!(ip_of(r#"["127.0.0.0/8"]"#, "203.0.113.7"), "203.0.113.7");
    assert_eq!(
        ip_of(r#"["127.0.0.0/8"]"#, "198.51.100.1, 203.0.113.7"),
        "203.0.113.7",
        "the last address that no trusted proxy added"
    );
    assert_eq!(
        ip_of(r#"["127.0.0.0/8", "203.0.113.0/24"]"#, "198.51.100.1, 203.0.113.7"),
        "198.51.100.1"
    );
    assert_eq!(ip_of("[]", "203.0.113.7"), "127.0.0.1");
    assert_eq!(ip_of(r#"["127.0.0.0/8"]"#, ""), "127.0.0.1");
}

#[test]
fn client_address_is_not_sent_unless_configured() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "identity.send_client_ip = false");
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    assert_eq!(origin.last("/auth/validateToken").expect("a validation").query("ip"), None);
}

#[test]
fn identity_is_bound_to_the_validated_address() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.when(Rule::on("/auth/validateToken").made(|seen| match seen.query("ip").as_deref() {
        Some("203.0.113.7") => {
            let employee = "ee0000000000000000000001";
            Answer::json(format!(
                r#"{{"success":true,"employee":"{employee}","customer":"{DUCK}","accessLevel":"VIEWER"}}"#
            ))
        }
        _ => Answer::json(r#"{"success":false}"#),
    }));
    let gateway = Gateway::start(&origin);
    let from = |address: &str| {
        gateway.client().get(P).bearer("tok-a").header("X-Forwarded-For", address).send()
    };
    from("203.0.113.7").assert_status(200);
    from("203.0.113.8").assert_error(401, "invalid_token");
    assert!(from("203.0.113.7").assert_status(200).is_hit());
}

#[test]
fn unreadable_validation_is_502_without_an_identity() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let employee = r#""employee":"ee0000000000000000000001","customer":"73469a52f4fd7f77ec7b28cc""#;
    let bodies = [
        String::new(),
        "not JSON".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "true".to_owned(),
        format!(r#"{{"success":"true",{employee},"accessLevel":"ADMIN"}}"#),
        format!(r#"{{"success":1,{employee},"accessLevel":"ADMIN"}}"#),
        format!(r#"{{"success":true,{employee}}}"#),
        format!(r#"{{"success":true,{employee},"accessLevel":7}}"#),
        format!(r#"{{"success":true,{employee},"accessLevel":"ADMIN""#),
        format!(r#"{{"success":false,"success":true,{employee},"accessLevel":"ADMIN"}}"#),
        format!(r#"{{"success":true,{employee},"accessLevel":"VIEWER","accessLevel":"ADMIN"}}"#),
    ];
    for (at, body) in bodies.iter().enumerate() {
        let token = format!("tok-{at}");
        origin.knows(&token, "VIEWER", DUCK);
        origin.when(Rule::on("/auth/validateToken").answer(Answer::json(body.as_str())));
        gateway.client().get(P).bearer(&token).send().assert_error(502, "bad_gateway");
        origin.behave();
        let after = gateway.client().get(P).bearer(&token).send();
        assert_eq!(
            after.assert_status(200).text(),
            redacted_document(DUCK),
            "{body}: not remembered"
        );
    }
}

#[test]
fn validation_status_decides_between_401_and_502() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for (status, refused, code) in [
        (401, 401, "invalid_token"),
        (403, 401, "invalid_token"),
        (404, 502, "bad_gateway"),
        (302, 502, "bad_gateway"),
    ] {
        let valid = format!(
            r#"{{"success":true,"employee":"ee0000000000000000000001","customer":"{DUCK}","accessLevel":"ADMIN"}}"#
        );
        origin.when(Rule::on("/auth/validateToken").answer(Answer::json(valid).status(status)));
        let answer = gateway.client().get(P).bearer(&format!("tok-{status}")).send();
        answer.assert_error(refused, code);
        origin.behave();
    }
}

#[test]
fn reload_applies_to_cached_identities() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::with(
        &origin,
        r#"identity = { ttl = "10m", refresh_after = "10m", stale_if_error = "0s" }
        cache.ttl = "9m""#,
    );
    for token in ["tok-a", "tok-b", "tok-a"] {
        gateway.client().get(P).bearer(token).send().assert_status(200);
    }
    assert_eq!(gateway.stats()["identities"]["entries"], 2);
    origin.forgets("tok-a");
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    let before = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    let briefly = before.replace("10m", "1s");
    assert_ne!(briefly, before);
    gateway.rewrite("gateway.toml", &briefly);
    gateway.admin().post("/reload").send().assert_status(200);
    wait_until("it is trusted no longer", || {
        gateway.client().get(P).bearer("tok-a").send().status == 401
    });
}

#[test]
fn unknown_access_level_reveals_nothing() {
    let origin = Origin::start();
    origin.knows("tok-a", "SUPER_ADMIN", DUCK);
    let gateway = Gateway::start(&origin);
    let response = gateway.client().get(P).bearer("tok-a").send();
    assert!(matches!(response.status, 200 | 502), "{response:#?}");
}

#[test]
fn unknown_token_is_rejected_while_the_api_is_down() {
    let origin = Origin::start();
    origin.knows("tok-a", "ADMIN", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "3s""#);
    let client = gateway.client();
    let gate = Gate::closed();
    origin.when(Rule::on("/auth/validateToken").hold(&gate).times(1));
    client.get(P).bearer("tok-a").send().assert_error(504, "gateway_timeout");
    gate.open();
    origin.when(Rule::on("/auth/validateToken").cut_body_after(20));
    client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    origin.when(Rule::on("/auth/validateToken").answer(Answer::error(500, "internal_error")));
    client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    origin.stop();
    client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    assert_eq!(origin.fetches(DUCK), 0);
}

#[test]
fn known_caller_is_served_while_the_api_is_down() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config = r#"identity = { ttl = "2s", refresh_after = "1s", stale_if_error = "10m" }"#;
    let gateway = Gateway::with(&origin, config);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    origin.when(Rule::on("/auth/validateToken").close());
    // After its ttl, as another attempt to validate shows.
    let tried = origin.validations();
    wait_until("it was asked about again", || {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
        origin.validations() > tried + 3
    });
    gateway.client().get(P).bearer("tok-new").send().assert_error(502, "bad_gateway");
}

#[test]
fn concurrent_requests_of_a_token_share_one_validation() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/auth/validateToken").hold(&gate));
    let gateway = Gateway::start(&origin);
    let pending: Vec<_> = (0..30)
        .map(|number| gateway.client().get(&name_of(&customer(number))).bearer("tok-a").start())
        .collect();
    origin.wait_for_validations(1);
    gate.open();
    for (number, pending) in pending.into_iter().enumerate() {
        assert_eq!(pending.finish().assert_status(200).json()["_id"], customer(number));
    }
    assert_eq!(origin.validations(), 1);
}

#[test]
fn validation_survives_the_disconnect_of_its_first_client() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/auth/validateToken").hold(&gate));
    let gateway = Gateway::start(&origin);
    let first = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_validations(1);
    let second = gateway.client().get(P).bearer("tok-a").start();
    drop(first);
    gate.open();
    second.finish().assert_status(200);
    assert_eq!(origin.validations(), 1);
}

#[test]
fn unknown_tokens_are_limited_by_address() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 5");
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let refused = (0..200)
        .map(|number| client.get(P).bearer(&format!("tok-guess-{number}")).send())
        .find(|r| r.status == 429);
    let refused = refused.expect("a limit");
    refused.assert_error(429, "too_many_requests");
    let wait: u64 = refused.header("retry-after").expect("a Retry-After").parse().expect("seconds");
    assert!(Duration::from_secs(wait) <= Duration::from_secs(60), "{refused:#?}");
    client.get(P).bearer("tok-a").send().assert_status(200);
    assert!(origin.validations() < 50, "{}", origin.validations());
}
