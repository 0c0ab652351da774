//! The API's response on the intercepted route: status and fields that pass, and reasons not to
//! store it.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const LATER: &str = "Wed, 21 Oct 2099 07:28:00 GMT";

fn get(gateway: &Gateway, token: &str, id: &str) -> Response {
    gateway.client().get(&name_of(id)).bearer(token).send()
}

fn viewer_and_reseller(origin: &Origin) {
    origin.knows("tok-viewer", "VIEWER", DUCK);
    origin.knows("tok-reseller", "RESELLER", DUCK);
}

/// The document with the default of `cache.keep_fields`.
fn with_fields(id: &str) -> Answer {
    Answer::json(upstream_document(id))
        .header("Content-Language", "da")
        .header("Link", "</terms>; rel=\"license\"")
        .header("Link", "</help>; rel=\"help\"")
        .header("Deprecation", "@1767225600")
        .header("Sunset", LATER)
        .header("RateLimit", "\"a\";r=1")
        .header("RateLimit-Policy", "\"a\";q=100")
        .header("X-Internal", "never promised")
        .header("Access-Control-Allow-Origin", "*")
}

#[track_caller]
fn assert_stored_fields(response: &Response) {
    assert_eq!(
        response.all("link"),
        ["</terms>; rel=\"license\"", "</help>; rel=\"help\""],
        "{response:#?}"
    );
    for (name, value) in [
        ("content-language", "da"),
        ("deprecation", "@1767225600"),
        ("sunset", LATER),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}: {response:#?}");
    }
}

#[test]
fn listed_fields_pass_on_miss_hit_and_304() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    origin.document(DUCK, with_fields(DUCK));
    let gateway = Gateway::start(&origin);
    for token in ["tok-viewer", "tok-reseller"] {
        let miss = gateway.client().get(P).bearer(token).revealed().send();
        assert_stored_fields(miss.assert_status(200));
        assert_eq!(miss.header("ratelimit"), Some("\"a\";r=1"));
        assert_eq!(miss.header("ratelimit-policy"), Some("\"a\";q=100"));
        // The fast path, the ordinary path, and HTTP/2.
        let etag = miss.header("etag").unwrap().to_owned();
        let call = || gateway.client().get(P).bearer(token).revealed();
        let hits = [
            call().send(),
            call().header("X-Other", "1").send(),
            gateway.client().send_h2c(vec![call()]).remove(0),
        ];
        for hit in hits {
            assert!(hit.is_hit(), "{hit:#?}");
            assert_stored_fields(&hit);
            assert!(
                hit.header("ratelimit").is_none() && hit.header("ratelimit-policy").is_none(),
                "{hit:#?}"
            );
        }
        let unchanged = gateway.client().get(P).bearer(token).header("If-None-Match", &etag).send();
        assert_stored_fields(unchanged.assert_status(304));
    }
    let bypass = gateway.client().get(&format!("{P}?x=1")).bearer("tok-viewer").send();
    assert_stored_fields(bypass.assert_status(200));
    assert_eq!(bypass.header("ratelimit"), Some("\"a\";r=1"));
}

#[test]
fn nominated_and_unlisted_fields_stay_behind() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let answer = Answer::json(upstream_document(DUCK))
        .header("Connection", "Link, Retry-After")
        .header("Link", "</a>")
        .header("Retry-After", "3")
        .header("Server-Timing", "db;dur=1")
        .header("Sunset", LATER);
    origin.document(DUCK, answer);
    let gateway = Gateway::start(&origin);
    let response = get(&gateway, "tok-viewer", DUCK);
    assert_eq!(response.header("sunset"), Some(LATER));
    for name in ["link", "retry-after", "server-timing"] {
        assert!(response.header(name).is_none(), "{name}: {response:#?}");
    }
}

#[test]
fn fields_are_updated_by_a_304_of_the_api() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    origin.document(DUCK, with_fields(DUCK).header("ETag", "\"v1\""));
    let gateway =
        Gateway::with(&origin, r#"cache = { ttl = "1s", stale_while_revalidate = "0s" }"#);
    get(&gateway, "tok-viewer", DUCK).assert_status(200);
    let not_modified = Answer::new(304)
        .header("ETag", "\"v1\"")
        .header("Link", "</new>")
        .header("RateLimit", "\"a\";r=0");
    origin.when(Rule::on("/customer/").answer(not_modified));
    let mut renewed = get(&gateway, "tok-viewer", DUCK);
    wait_until("it is validated", || {
        renewed = get(&gateway, "tok-viewer", DUCK);
        renewed.cache_status().contains("fwd-status=304")
    });
    let hit = get(&gateway, "tok-viewer", DUCK);
    for response in [&renewed, &hit] {
        assert_eq!(response.all("link"), ["</new>"], "{response:#?}");
        assert_eq!(response.header("sunset"), Some(LATER), "{response:#?}");
    }
    assert_eq!(renewed.header("ratelimit"), Some("\"a\";r=0"));
}

#[test]
fn field_that_a_reload_adds_is_present() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    origin.document(
        DUCK,
        Answer::json(upstream_document(DUCK)).header("X-Kept", "1").header("Link", "</a>"),
    );
    let gateway = Gateway::start(&origin);
    let before = get(&gateway, "tok-viewer", DUCK);
    assert!(before.header("x-kept").is_none() && before.header("link").is_some(), "{before:#?}");
    let config = std::fs::read_to_string(gateway.config_file()).unwrap();
    let config = config.replace("[cache]\n", "[cache]\nkeep_fields = [\"X-Kept\"]\n");
    assert!(config.contains("X-Kept"), "{config}");
    gateway.rewrite("gateway.toml", &config);
    gateway.admin().post("/reload").send().assert_status(200);
    for _ in 0..2 {
        let after = get(&gateway, "tok-viewer", DUCK);
        assert_eq!(after.header("x-kept"), Some("1"), "{after:#?}");
        assert!(after.header("link").is_none(), "{after:#?}");
    }
}

#[test]
fn retry_after_of_the_api_passes() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::start(&origin);
    for status in [429, 503] {
        for value in ["30", LATER] {
            origin.behave();
            origin.when(
                Rule::on("/customer/")
                    .answer(Answer::error(status, "later").header("Retry-After", value)),
            );
            for token in ["tok-viewer", "tok-reseller"] {
                let response = get(&gateway, token, DUCK);
                assert_eq!(
                    response.assert_status(status).all("retry-after"),
                    [value],
                    "{response:#?}"
                );
            }
        }
    }
}

#[test]
fn challenge_of_the_api_passes_unchanged() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::start(&origin);
    let challenge = "Bearer realm=\"telecomx\", error=\"invalid_token\"";
    let answer = Answer::new(401)
        .header("WWW-Authenticate", challenge)
        .header("WWW-Authenticate", "Basic realm=\"x\"");
    origin.when(Rule::on("/customer/").answer(answer));
    let response = get(&gateway, "tok-viewer", DUCK);
    response.assert_error(401, "invalid_token");
    assert_eq!(response.all("www-authenticate"), [challenge, "Basic realm=\"x\""]);
    origin.behave();
    origin.when(Rule::on("/customer/").answer(Answer::new(401)));
    assert_eq!(get(&gateway, "tok-reseller", DUCK).all("www-authenticate"), ["Bearer"]);
}

#[test]
fn retry_after_of_validate_token_is_kept_with_503() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::start(&origin);
    for status in [429, 503] {
        for (value, expected) in
            [(Some("30"), "30"), (Some(LATER), LATER), (None, "1"), (Some("soon"), "1")]
        {
            origin.behave();
            let answer = Answer::error(status, "later");
            let answer = value.map_or(answer.clone(), |value| answer.header("Retry-After", value));
            origin.when(Rule::on("/auth/validateToken").answer(answer));
            for path in [
                P,
                "/customer/73469a52f4fd7f77ec7b28cc",
                "/customer/73469a52f4fd7f77ec7b28cc/name?x=1",
            ] {
                let response = gateway.client().get(path).bearer("tok-new").send();
                response.assert_error(503, "unavailable");
                assert_eq!(response.all("retry-after"), [expected], "{path}: {response:#?}");
            }
        }
    }
}

#[test]
fn validate_token_that_is_not_an_object_is_a_502() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for body in
        [r#"[true,"5f00000000000000000000aa","ADMIN"]"#, "\"x\"", "1", "true", "null", "[]", ""]
    {
        origin.behave();
        origin.when(Rule::on("/auth/validateToken").answer(Answer::json(body)));
        for path in [P, "/customer/73469a52f4fd7f77ec7b28cc"] {
            gateway.client().get(path).bearer("tok-new").send().assert_error(502, "bad_gateway");
        }
    }
}

#[test]
fn each_valid_status_passes_and_is_not_stored() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "10m" }"#);
    let ask = |token: &str| gateway.client().get(P).bearer(token).revealed().send();
    for status in [201, 202, 203, 207, 208, 226, 299] {
        origin.behave();
        origin.when(
            Rule::on("/customer/").answer(Answer::json(upstream_document(DUCK)).status(status)),
        );
        for _ in 0..2 {
            let response = get(&gateway, "tok-viewer", DUCK);
            assert_eq!(response.assert_status(status).text(), redacted_document(DUCK));
            assert_eq!(response.cache_status(), "telecomx-gateway; fwd=uri-miss");
        }
        assert_eq!(ask("tok-reseller").assert_status(status).text(), upstream_document(DUCK));
        origin.behave();
        origin.when(Rule::on("/customer/").answer(Answer::new(status)));
        for token in ["tok-viewer", "tok-reseller"] {
            assert_eq!(ask(token).assert_status(status).text(), "");
        }
    }
    for status in [204, 205] {
        origin.behave();
        let framing = if status == 204 { Framing::AsGiven } else { Framing::Length };
        origin.when(Rule::on("/customer/").answer(Answer::new(status).framing(framing)));
        let response = gateway.client().get(P).bearer("tok-viewer").send();
        assert_eq!(response.assert_status(status).text(), "");
        assert!(response.header("content-type").is_none(), "{response:#?}");
        assert_eq!(response.header("content-length").is_some(), status == 205, "{response:#?}");
    }
}

#[test]
fn redirect_passes_with_its_location_unless_it_holds_a_secret() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "10m" }"#);
    let to = "/v2/customer/73469a52f4fd7f77ec7b28cc/name";
    for status in [300, 301, 302, 303, 305, 307, 308] {
        origin.behave();
        let answer = Answer::new(status)
            .header("Location", to)
            .header("Content-Type", "text/html")
            .body("<a>moved</a>");
        origin.when(Rule::on("/customer/").answer(answer));
        for _ in 0..2 {
            let response = get(&gateway, "tok-viewer", DUCK);
            assert_eq!(response.assert_status(status).text(), "");
            assert_eq!(response.header("location"), Some(to));
            assert_eq!(response.cache_status(), "telecomx-gateway; fwd=uri-miss");
        }
        let response = get(&gateway, "tok-reseller", DUCK);
        assert_eq!(response.assert_status(status).text(), "<a>moved</a>");
    }
    for secret in [
        "/x?token=abc",
        "/x?q=tok-viewer",
        "https://u:p@a/x",
        "/x?clientSecret=1",
        "/x?next=%2Fy%3Ftoken%3Dabc",
    ] {
        origin.behave();
        origin.when(Rule::on("/customer/").answer(Answer::new(307).header("Location", secret)));
        let response = get(&gateway, "tok-viewer", DUCK);
        assert!(
            response.assert_status(307).header("location").is_none(),
            "{secret}: {response:#?}"
        );
    }
    // Neither a part nor a 304 that was not requested can be forwarded.
    for (status, message) in [(206, "partial"), (304, "invalid response")] {
        origin.behave();
        origin.when(
            Rule::on("/customer/").answer(Answer::json(upstream_document(DUCK)).status(status)),
        );
        for token in ["tok-viewer", "tok-reseller"] {
            let response = get(&gateway, token, DUCK);
            response.assert_error(502, "bad_gateway");
            assert!(response.text().contains(message), "{response:#?}");
        }
    }
}

#[test]
fn each_reason_not_to_store_is_counted_and_logged_once() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::with(&origin, r#"identity = { ttl = "10m" }"#);
    let document = || Answer::json(upstream_document(DUCK));
    let cases = [
        ("status", Answer::json(upstream_document(DUCK)).status(201)),
        ("set_cookie", document().header("Set-Cookie", "a=b")),
        ("vary", document().header("Vary", "User-Agent")),
        ("no_store", document().header("Cache-Control", "no-store")),
        ("no_cache", document().header("Cache-Control", "no-cache")),
        ("expired", document().header("Cache-Control", "s-maxage=0")),
        ("not_an_object", Answer::json("[]")),
    ];
    for (reason, answer) in cases {
        origin.document(DUCK, answer);
        for times in 1..3 {
            get(&gateway, "tok-viewer", DUCK);
            assert_eq!(
                gateway.metric("cache_not_stored_total", &[("reason", reason)]),
                f64::from(times),
                "{reason}"
            );
        }
        gateway.wait_for_log(reason);
        let is_warning =
            |line: &&str| line.contains("cache_not_stored_total") && line.contains(reason);
        assert_eq!(gateway.log().lines().filter(is_warning).count(), 1, "{reason}");
    }
    assert_eq!(gateway.metric("cache_not_stored_total", &[]), 14.0);
}

#[test]
fn shared_cache_directives_shorten_and_forbid_stale() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::with(
        &origin,
        r#"cache = { ttl = "1s", stale_while_revalidate = "0s", stale_if_error = "10m" }"#,
    );
    for (number, control) in
        ["proxy-revalidate", "s-maxage=1", "max-age=3600, s-maxage=1"].into_iter().enumerate()
    {
        let id = customer(number);
        origin.document(&id, Answer::json(upstream_document(&id)).header("Cache-Control", control));
        get(&gateway, "tok-viewer", &id).assert_status(200);
    }
    get(&gateway, "tok-viewer", DUCK).assert_status(200);
    origin.when(Rule::on("/customer/").close());
    wait_until("all are stale", || {
        get(&gateway, "tok-viewer", DUCK).cache_status().ends_with("stale-if-error")
    });
    for number in 0..3 {
        get(&gateway, "tok-viewer", &customer(number)).assert_error(502, "bad_gateway");
    }
}

#[test]
fn response_to_a_request_with_no_store_is_not_stored() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let gateway = Gateway::with(&origin, r#"cache = { ttl = "1s" }"#);
    let silent = |id: &str| {
        gateway.client().get(&name_of(id)).bearer("tok-viewer").header("Cache-Control", "no-store")
    };
    assert_eq!(
        silent(DUCK).send().assert_status(200).cache_status(),
        "telecomx-gateway; fwd=uri-miss"
    );
    let stored = get(&gateway, "tok-viewer", DUCK);
    assert_eq!(stored.cache_status(), "telecomx-gateway; fwd=uri-miss; stored");
    assert!(silent(DUCK).send().is_hit());
    assert!(get(&gateway, "tok-viewer", DUCK).is_hit());
    // Both at once: one fetch, stored for the other client.
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let first = silent(OTHER).start();
    origin.wait_for_fetches(OTHER, 1);
    let second = gateway.client().get(&name_of(OTHER)).bearer("tok-viewer").start();
    // It has joined once a later request for another customer is at the API.
    let third = gateway.client().get(&name_of(THIRD)).bearer("tok-viewer").start();
    origin.wait_for_fetches(THIRD, 1);
    pace(std::time::Duration::from_millis(200));
    gate.open();
    first.finish().assert_status(200);
    second.finish().assert_status(200);
    third.finish().assert_status(200);
    assert_eq!(origin.fetches(OTHER), 1);
    assert_eq!(gateway.metric("cache_not_stored_total", &[("reason", "request_no_store")]), 1.0);
    // A background refresh that such a request starts stores nothing.
    origin.behave();
    wait_until("it is stale", || {
        silent(DUCK).send().cache_status().contains("detail=revalidating")
    });
    gateway.wait_for_metric("cache_not_stored_total", &[("reason", "request_no_store")], 2.0);
    assert!(!get(&gateway, "tok-viewer", DUCK).is_hit());
}

#[test]
fn each_error_status_passes_with_a_readable_body() {
    let origin = Origin::start();
    viewer_and_reseller(&origin);
    let config =
        "cache = { not_found_ttl = \"0s\", forbidden_ttl = \"0s\" }\nidentity = { ttl = \"10m\" }";
    let gateway = Gateway::with(&origin, config);
    let client_errors =
        (400..=418).filter(|status| *status != 401).chain([421, 422, 426, 428, 429, 431, 451, 499]);
    for status in client_errors.chain(500..=511).chain([599]) {
        origin.behave();
        origin.when(Rule::on("/customer/").answer(Answer::error(status, "of_the_api")));
        for token in ["tok-viewer", "tok-reseller"] {
            get(&gateway, token, DUCK).assert_error(status, "of_the_api");
        }
        origin.behave();
        let page =
            Answer::new(status).header("Content-Type", "text/html").body("<html>oops</html>");
        origin.when(Rule::on("/customer/").answer(page));
        let response = get(&gateway, "tok-viewer", DUCK);
        assert_eq!(
            response.assert_status(status).json()["error"]["status"],
            status,
            "{response:#?}"
        );
        assert_ne!(response.json()["error"]["code"], "redaction_failed");
        assert!(!response.text().contains("oops"), "{response:#?}");
        assert_eq!(
            get(&gateway, "tok-reseller", DUCK).assert_status(status).text(),
            "<html>oops</html>"
        );
    }
}
