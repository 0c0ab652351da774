//! What may pass a redacted route below `reveal_to`, and the fields that it has.

use crate::support::*;

const CUSTOMER: &str = "/customer/73469a52f4fd7f77ec7b28cc";

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

fn typed(content_type: &str, body: &str) -> Answer {
    Answer::new(200).header("Content-Type", content_type).body(body)
}

#[test]
fn type_that_is_neither_json_nor_listed_is_refused() {
    let (origin, gateway) = scene();
    let secret = r#"{"integrations":{"criipto":{"clientSecret":"PLANTED"}}}"#;
    let bodies = [
        (
            "text/javascript; charset=utf-8",
            format!("/**/ typeof cb === 'function' && cb({secret})"),
        ),
        ("application/javascript", format!("cb({secret})")),
        ("text/html", format!("<pre>{secret}</pre>")),
        ("text/plain", format!(")]}}',\n{secret}")),
        ("application/json", format!("\"{}\"", secret.replace('"', "\\\""))),
        ("application/json", format!("while(1);{secret}")),
        ("text/event-stream", format!("data: {secret}\n\n")),
        ("application/json-seq", format!("\u{1e}{secret}\n")),
        ("application/octet-stream", format!("\u{1e}{secret}\n")),
        (
            "multipart/mixed; boundary=x",
            format!("--x\r\nContent-Type: application/json\r\n\r\n{secret}\r\n--x--"),
        ),
        ("application/xml", "<clientSecret>PLANTED</clientSecret>".to_owned()),
        ("image/svg+xml", "<svg><text>PLANTED</text></svg>".to_owned()),
        ("application/yaml", "integrations:\n  criipto:\n    clientSecret: PLANTED\n".to_owned()),
        ("application/x-ndjson", format!("{secret}\n{secret}\n")),
        ("application/octet-stream", "\u{1f}\u{8b}PLANTED".to_owned()),
        ("application/rtf", "{\\rtf1 PLANTED}".to_owned()),
        ("text/csv", format!("{secret}\nPLANTED")),
        ("text/csv, text/html", "PLANTED".to_owned()),
        ("", "PLANTED".to_owned()),
    ];
    for (content_type, body) in &bodies {
        for framing in [Framing::Length, Framing::Chunked, Framing::UntilClose] {
            for status in [200, 201, 206, 404, 500] {
                let answer = typed(content_type, body).status(status).framing(framing);
                let answer =
                    if content_type.is_empty() { answer.without("content-type") } else { answer };
                let answer =
                    answer.header("Accept-Ranges", "bytes").header("ETag", "\"of-the-api\"");
                origin.when(Rule::on(CUSTOMER).answer(answer).times(1));
                let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
                let expected = if status < 400 { 502 } else { status };
                response.assert_status(expected);
                assert_eq!(
                    response.json()["error"]["status"],
                    expected,
                    "{content_type}: {response:#?}"
                );
                let code = response.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
                assert_eq!(
                    code == "redaction_failed",
                    status < 400,
                    "{content_type}: {response:#?}"
                );
                for name in ["etag", "accept-ranges"] {
                    assert_eq!(response.header(name), None, "{response:#?}");
                }
                assert!(
                    response.header("cache-control").unwrap_or_default().contains("private"),
                    "{response:#?}"
                );
            }
        }
    }
    let http2 = Http2::connect(&gateway.client());
    for (content_type, body) in bodies.iter().filter(|(content_type, _)| !content_type.is_empty()) {
        origin.when(Rule::on(CUSTOMER).answer(typed(content_type, body)).times(1));
        http2.get(CUSTOMER, "tok-low").assert_error(502, "redaction_failed");
    }
}

#[test]
fn failure_of_the_api_is_not_a_redaction_failure() {
    let (origin, gateway) = scene();
    // An exchange is counted after its response was written.
    let wait_for_errors = |count: f64| {
        wait_until("the failure is counted", || {
            gateway.metric("upstream_errors_total", &[("kind", "status")]) >= count
        });
        assert_eq!(gateway.metric("upstream_errors_total", &[]), count);
    };
    for status in [429, 500, 502, 503, 504] {
        for (content_type, body) in
            [("text/html", "<html>oops</html>"), ("application/json", "<html>"), ("text/html", "")]
        {
            let answer = typed(content_type, body).status(status).header("Retry-After", "7");
            origin.when(Rule::on(CUSTOMER).answer(answer).times(1));
            let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
            response.assert_status(status);
            assert_eq!(response.json()["error"]["status"], status);
            assert_eq!(response.header("retry-after"), Some("7"));
        }
        origin.when(Rule::on(CUSTOMER).answer(Answer::error(status, "of_the_api")).times(1));
        gateway.client().get(CUSTOMER).bearer("tok-low").send().assert_error(status, "of_the_api");
    }
    assert_eq!(gateway.metric("redaction_failures_total", &[]), 0.0);
    wait_for_errors(20.0);
    origin.when(
        Rule::on(CUSTOMER).answer(typed("text/html", "<html>gone</html>").status(404)).times(1),
    );
    gateway.client().get(CUSTOMER).bearer("tok-low").send().assert_error(404, "not_found");
    assert_eq!(gateway.metric("redaction_failures_total", &[]), 1.0);
    assert_eq!(gateway.metric("upstream_errors_total", &[]), 20.0);
    origin.when(Rule::on("/x").answer(typed("text/html", "<html>").status(502)));
    assert_eq!(
        gateway.client().get("/x").bearer("tok-low").send().assert_status(502).text(),
        "<html>"
    );
    wait_for_errors(21.0);
}

#[test]
fn listed_type_passes_byte_for_byte_with_its_fields() {
    let (origin, gateway) = scene();
    for content_type in
        ["text/csv; charset=utf-8", "image/png", "application/pdf", "Application/ZIP"]
    {
        let answer = typed(content_type, "a;b\n1;{2}\n")
            .header("ETag", "\"f\"")
            .header("Accept-Ranges", "bytes");
        origin.when(Rule::on(CUSTOMER).answer(answer));
        let get =
            gateway.client().get(CUSTOMER).bearer("tok-low").header("Range", "bytes=0-1").send();
        assert_eq!(get.assert_status(200).text(), "a;b\n1;{2}\n");
        let head = gateway.client().head(CUSTOMER).bearer("tok-low").send();
        for name in
            ["content-type", "content-length", "etag", "accept-ranges", "cache-control", "vary"]
        {
            assert_eq!(get.header(name), head.header(name), "{name}: {head:#?}");
        }
        assert_eq!(get.header("etag"), Some("\"f\""));
        assert_eq!(get.header("accept-ranges"), None);
    }
    // Of JSON it is not known what a GET would remove.
    origin.when(
        Rule::on(CUSTOMER).answer(Answer::json(upstream_document(DUCK)).header("ETag", "\"f\"")),
    );
    for call in [gateway.client().head(CUSTOMER), gateway.client().get(CUSTOMER)] {
        assert_eq!(call.bearer("tok-low").send().assert_status(200).header("etag"), None);
    }
}

#[test]
fn list_of_types_changes_with_a_reload() {
    let (origin, gateway) = scene();
    origin.when(Rule::on(CUSTOMER).answer(typed("text/plain", "plain")));
    let ask = || gateway.client().get(CUSTOMER).bearer("tok-low").send();
    ask().assert_error(502, "redaction_failed");
    let file = std::fs::read_to_string(gateway.config_file()).unwrap();
    let rule = "[[forward.redact]]\npath = \"/customer/**\"\npass_types = [\"text/plain\"]\n";
    gateway.rewrite("gateway.toml", &format!("{file}\n{rule}"));
    gateway.admin().post("/reload").send().assert_status(200);
    assert_eq!(ask().assert_status(200).text(), "plain");
    origin.when(Rule::on(CUSTOMER).answer(typed("text/csv", "a;b")));
    ask().assert_error(502, "redaction_failed");
}

#[test]
fn document_without_a_secret_keeps_its_bytes_and_fields() {
    let (origin, gateway) = scene();
    let pretty = "{\n  \"a\" : 1\n}\n";
    let answer = Answer::json(pretty)
        .header("ETag", "\"v1\"")
        .header("Digest", "x")
        .header("Accept-Ranges", "bytes");
    origin.when(Rule::on(CUSTOMER).answer(answer));
    let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
    assert_eq!(response.assert_status(200).text(), pretty);
    assert_eq!((response.header("etag"), response.header("digest")), (Some("\"v1\""), Some("x")));
    assert_eq!(response.header("accept-ranges"), None);
}

#[test]
fn every_coding_but_identity_is_refused() {
    let (origin, gateway) = scene();
    let json = upstream_document(DUCK);
    for (content_type, body) in
        [("application/json", json.as_str()), ("text/csv", "a"), ("text/plain", "a")]
    {
        for codings in [
            &["gzip"][..],
            &["GZIP"],
            &["identity", "gzip"],
            &["gzip", "identity"],
            &["identity, br"],
        ] {
            let answer = typed(content_type, body);
            let answer = codings
                .iter()
                .fold(answer, |answer, coding| answer.header("Content-Encoding", coding));
            origin.when(Rule::on(CUSTOMER).answer(answer).times(1));
            gateway
                .client()
                .get(CUSTOMER)
                .bearer("tok-low")
                .send()
                .assert_error(502, "redaction_failed");
        }
    }
    for coding in ["Identity", "identity", ""] {
        origin.when(
            Rule::on(CUSTOMER)
                .answer(Answer::json(json.as_str()).header("Content-Encoding", coding))
                .times(1),
        );
        let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{coding:?}");
    }
}

#[test]
fn response_of_a_redacted_route_is_private_at_every_level() {
    let (origin, gateway) = scene();
    for (sent, expected) in [
        (&["public, max-age=3600"][..], "private, max-age=3600"),
        (&[], "private"),
        (&["no-store"], "private, no-store"),
        (&["public", "s-maxage=9, no-cache"], "private, no-cache"),
    ] {
        let answer = Answer::json(upstream_document(DUCK))
            .header("Vary", "Accept")
            .header("Surrogate-Control", "max-age=9");
        let answer =
            sent.iter().fold(answer, |answer, value| answer.header("Cache-Control", value));
        origin.when(Rule::on(CUSTOMER).answer(answer));
        for token in ["tok-low", "tok-high"] {
            let calls = [
                gateway.client().get(CUSTOMER).bearer(token),
                gateway.client().get(CUSTOMER).header("X-API-Key", token),
                gateway.client().get(&format!("{CUSTOMER}?token={token}")),
                gateway.client().get(CUSTOMER).header("Cookie", &format!("token={token}")),
                gateway.client().head(CUSTOMER).bearer(token),
            ];
            for call in calls {
                let response = call.revealed().send();
                assert_eq!(response.assert_status(200).all("cache-control"), [expected], "{token}");
                assert_eq!(response.all("vary"), ["Accept, Authorization, X-API-Key, Cookie"]);
                assert_eq!(response.header("surrogate-control"), None);
            }
        }
    }
    // What no rule matches stays as it is.
    origin.when(Rule::on("/x").answer(Answer::json("{}").header("Cache-Control", "public")));
    assert_eq!(gateway.client().get("/x").send().all("cache-control"), ["public"]);
}

#[test]
fn conditionals_and_ranges_reach_the_api_above_reveal_to_only() {
    const FIELDS: [(&str, &str); 6] = [
        ("If-None-Match", "\"a\""),
        ("If-Match", "\"a\""),
        ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("Range", "bytes=0-1"),
        ("If-Range", "\"a\""),
    ];
    let (origin, gateway) = scene();
    for (token, forwarded) in [("tok-low", false), ("tok-high", true)] {
        for method in ["GET", "HEAD", "POST"] {
            let call = gateway.client().call(method, CUSTOMER).bearer(token).revealed();
            FIELDS.iter().fold(call, |call, (name, value)| call.header(name, value)).send();
            let seen = origin.last(CUSTOMER).unwrap();
            for (name, _) in FIELDS {
                assert_eq!(seen.header(name).is_some(), forwarded, "{token}: {method}: {name}");
            }
        }
    }
    // A 304 that answers no condition would confirm what the client guessed.
    origin.when(Rule::on(CUSTOMER).answer(Answer::new(304).header("ETag", "\"a\"")));
    let response =
        gateway.client().get(CUSTOMER).bearer("tok-low").header("If-None-Match", "\"a\"").send();
    response.assert_error(502, "bad_gateway");
}

#[test]
fn json_is_requested_unless_a_listed_type_is_accepted() {
    let (origin, gateway) = scene();
    for (accept, expected) in [
        (None, "application/json"),
        (Some("*/*"), "application/json"),
        (Some("text/html, */*;q=0.8"), "application/json"),
        (Some("text/csv;q=0"), "application/json"),
        (Some("text/csv"), "text/csv"),
        (Some("image/avif,image/webp,*/*;q=0.8"), "image/avif,image/webp,*/*;q=0.8"),
        (Some("image/svg+xml"), "application/json"),
    ] {
        let call = gateway.client().get(CUSTOMER).bearer("tok-low");
        let call = accept.into_iter().fold(call, |call, accept| call.header("Accept", accept));
        call.send();
        assert_eq!(origin.last(CUSTOMER).unwrap().header("accept"), Some(expected), "{accept:?}");
    }
    gateway
        .client()
        .get(CUSTOMER)
        .bearer("tok-high")
        .revealed()
        .header("Accept", "text/html")
        .send();
    assert_eq!(origin.last(CUSTOMER).unwrap().header("accept"), Some("text/html"));
}

#[test]
fn empty_response_passes_with_its_status() {
    let (origin, gateway) = scene();
    for status in [200, 201, 204, 302] {
        let answer = Answer::new(status).header("Location", "/elsewhere");
        origin.when(Rule::on(CUSTOMER).answer(answer));
        let response = gateway.client().post(CUSTOMER).bearer("tok-low").body("{}").send();
        assert_eq!(response.assert_status(status).header("location"), Some("/elsewhere"));
        assert!(response.body.is_empty());
    }
}
