//! Redaction on the intercepted route and on forwarded routes; unredactable responses are errors.
//! The client checks that no response below `reveal_to` holds a planted secret.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const CUSTOMER: &str = "/customer/73469a52f4fd7f77ec7b28cc";

/// An origin with callers below and above `reveal_to`, and a gateway.
fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-low", "OWNER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

/// Requests twice, so that an entry would show; then the valid document, which must pass.
fn refused(origin: &Origin, gateway: &Gateway, case: &str, answer: Answer, codes: &[&str]) {
    origin.document(DUCK, answer);
    for _ in 0..2 {
        let before = origin.fetches(DUCK);
        let response = gateway.client().get(P).bearer("tok-low").send();
        response.assert_status(502);
        let code = response.json()["error"]["code"].as_str().unwrap_or_default().to_owned();
        assert!(codes.contains(&code.as_str()), "{case}: {response:#?}");
        assert!(origin.fetches(DUCK) > before, "{case} was stored");
    }
    origin.document(DUCK, Answer::json(upstream_document(DUCK)));
    let good = gateway.client().get(P).bearer("tok-low").send();
    assert_eq!(good.assert_status(200).text(), redacted_document(DUCK), "after {case}");
    gateway.admin().delete("/cache").send().assert_status(200);
}

fn utf16(text: &str, little: bool) -> Vec<u8> {
    text.encode_utf16()
        .flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() })
        .collect()
}

/// A gzip file that holds its contents uncompressed, so that a secret in it can be seen.
fn gzip(contents: &[u8]) -> Vec<u8> {
    let crc = !contents.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    });
    let length = u16::try_from(contents.len()).expect("one block");
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    file.extend(length.to_le_bytes());
    file.extend((!length).to_le_bytes());
    file.extend(contents);
    file.extend(crc.to_le_bytes());
    file.extend(u32::from(length).to_le_bytes());
    file
}

#[test]
fn invalid_json_is_502_below_reveal_to_and_not_stored() {
    let (origin, gateway) = scene();
    let document = upstream_document(DUCK);
    let nested = |depth: usize| {
        format!(r#"{{"integrations":{}"PLANTED"{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    let surrogate = document.replace("Anders", "\\ud800");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a byte order mark", [b"\xef\xbb\xbf".as_slice(), document.as_bytes()].concat()),
        ("UTF-16, little end first", utf16(&document, true)),
        ("UTF-16, big end first", utf16(&format!("\u{feff}{document}"), false)),
        (
            "bad UTF-8",
            document
                .as_bytes()
                .iter()
                .map(|byte| if *byte == b'&' { 0xff } else { *byte })
                .collect(),
        ),
        ("a lone surrogate", surrogate.into_bytes()),
        ("a name twice", br#"{"integrations":{},"integrations":{"k":"PLANTED"}}"#.to_vec()),
        (
            "a name twice, the secret first",
            br#"{"integrations":{"k":"PLANTED"},"integrations":{}}"#.to_vec(),
        ),
        (
            "a name twice, once escaped",
            br#"{"integrations":{},"\u0069ntegrations":{"k":"PLANTED"}}"#.to_vec(),
        ),
        ("a name twice, deep inside", br#"{"a":[{"b":{"c":1,"c":"PLANTED"}}]}"#.to_vec()),
        ("two documents", format!("{document}{document}").into_bytes()),
        ("something after the end", format!("{document}PLANTED").into_bytes()),
        ("comments", format!("/* PLANTED */{document}").into_bytes()),
        ("NaN", br#"{"a":NaN,"integrations":{"k":"PLANTED"}}"#.to_vec()),
        ("single quotes", br"{'integrations':{'k':'PLANTED'}}".to_vec()),
        ("a comma too many", br#"{"integrations":{"k":"PLANTED",},}"#.to_vec()),
        ("cut in the middle", document.as_bytes()[..document.len() / 2].to_vec()),
        ("nested 200 deep", nested(200).into_bytes()),
        ("nested 100,000 deep", nested(100_000).into_bytes()),
        ("100,000 brackets", vec![b'['; 100_000]),
        ("a control character in a string", document.replace("Anders", "An\u{1}ders").into_bytes()),
        ("text", b"the password is PLANTED".to_vec()),
        ("compressed and not said so", gzip(document.as_bytes())),
    ];
    for (case, body) in cases {
        refused(&origin, &gateway, case, Answer::json(body), &["redaction_failed"]);
    }
}

#[test]
fn truncated_response_is_502() {
    let (origin, gateway) = scene();
    let document = upstream_document(DUCK);
    let short = |answer: Answer| answer.framing(Framing::AsGiven);
    let length = (document.len() + 1).to_string();
    let whole = Answer::json(document.as_str());
    origin.when(
        Rule::on("/customer/")
            .answer(short(whole.clone().header("Content-Length", &length)))
            .cut_body_after(usize::MAX),
    );
    gateway.client().get(P).bearer("tok-low").send().assert_error(502, "bad_gateway");
    origin.when(
        Rule::on("/customer/")
            .answer(whole.framing(Framing::Chunked))
            .cut_body_after(document.len()),
    );
    gateway.client().get(P).bearer("tok-low").send().assert_error(502, "bad_gateway");
    // Also from `reveal_to`: a part is not the whole document.
    let high = gateway.client().get(P).bearer("tok-high").revealed().send();
    high.assert_error(502, "bad_gateway");
    origin.behave();
    gateway.client().get(P).bearer("tok-low").send().assert_status(200);
}

#[test]
fn error_without_a_body_is_no_redaction_failure() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for (number, status) in [400, 403, 404, 409, 410].into_iter().enumerate() {
        let html = Answer::new(status).header("Content-Type", "text/html");
        for answer in [Answer::new(status), html, Answer::json("").status(status)] {
            for prefix in ["/customer/", "/log/"] {
                origin.when(Rule::on(prefix).answer(answer.clone()));
            }
            let id = customer(number);
            for target in [name_of(&id), format!("/customer/{id}"), "/log/x".to_owned()] {
                let response = gateway.client().get(&target).bearer("tok-a").send();
                let error = response.assert_status(status).json()["error"]["status"].clone();
                assert_eq!(error, status, "{target}");
                gateway.client().head(&target).bearer("tok-a").send().assert_status(status);
            }
            origin.behave();
            gateway.admin().delete("/cache").send().assert_status(200);
        }
    }
    assert_eq!(gateway.metric("redaction_failures_total", &[]), 0.0);
    // A body that is not JSON is one.
    let html = Answer::new(404).header("Content-Type", "text/html").body("<p>no</p>");
    origin.when(Rule::on("/customer/").answer(html));
    gateway.client().get(&name_of(OTHER)).bearer("tok-a").send().assert_status(404);
    assert_eq!(gateway.metric("redaction_failures_total", &[]), 1.0);
}

#[test]
fn too_large_response_is_502() {
    let (origin, gateway) = scene();
    let huge = format!(r#"{{"integrations":{{"k":"PLANTED{}"}}}}"#, "x".repeat(10 << 20));
    refused(&origin, &gateway, "10 MB", Answer::json(huge.as_str()), &["bad_gateway"]);
    refused(
        &origin,
        &gateway,
        "10 MB, chunked",
        Answer::json(huge).framing(Framing::Chunked),
        &["bad_gateway"],
    );
}

#[test]
fn odd_response_is_redacted_or_rejected() {
    let (origin, gateway) = scene();
    let document = upstream_document(DUCK);
    let many: String = (0..60_000).map(|at| format!(r#""k{at}":1,"#)).collect();
    let cases: Vec<(&str, Answer)> = vec![
        ("no content type", Answer::json(document.as_str()).without("content-type")),
        (
            "another content type",
            Answer::new(200).header("Content-Type", "text/html").body(document.as_str()),
        ),
        (
            "another charset",
            Answer::new(200)
                .header("Content-Type", "application/json; charset=utf-16")
                .body(document.as_str()),
        ),
        (
            "said to be compressed",
            Answer::json(document.as_str()).header("Content-Encoding", "gzip"),
        ),
        ("compressed", Answer::json(gzip(document.as_bytes())).header("Content-Encoding", "gzip")),
        (
            "an unknown coding",
            Answer::json(document.as_str()).header("Content-Encoding", "PLANTED"),
        ),
        ("empty", Answer::json("")),
        ("spaces", Answer::json("   ")),
        ("an escaped name", Answer::json(r#"{"\u0069ntegrations":{"k":"PLANTED"}}"#)),
        ("another letter case", Answer::json(r#"{"Integrations":{"k":"PLANTED"}}"#)),
        (
            "a zero-width character",
            Answer::json("{\"integ\u{200b}rations\":{\"password\":\"PLANTED\"}}"),
        ),
        (
            "a secret's name elsewhere",
            Answer::json(
                r#"{"x":{"password":"PLANTED","apiToken":"PLANTED","MyApi_Key":"PLANTED"}}"#,
            ),
        ),
        ("a root at any depth", Answer::json(r#"{"a":[[{"integrations":{"k":"PLANTED"}}]]}"#)),
        ("an array", Answer::json(r#"[{"integrations":{"k":"PLANTED"}}]"#)),
        (
            "an array at a root",
            Answer::json(r#"{"integrations":[["PLANTED"],{"enabled":{"k":"PLANTED"}}]}"#),
        ),
        ("a string at a root", Answer::json(r#"{"integrations":"PLANTED"}"#)),
        (
            "an object at a public place",
            Answer::json(r#"{"integrations":{"x":{"enabled":{"password":"PLANTED"}}}}"#),
        ),
        (
            "secrets of other types",
            Answer::json(
                r#"{"integrations":{"billing":{"rackbeat":{"bearerToken":["PLANTED",{"x":"PLANTED"}]}}}}"#,
            ),
        ),
        ("many names", Answer::json(format!(r#"{{{many}"integrations":{{"k":"PLANTED"}}}}"#))),
        (
            "secrets in fields",
            Answer::json("{}").header("ETag", "\"PLANTED\"").header("X", "PLANTED"),
        ),
        ("a cookie", Answer::json("{}").header("Set-Cookie", "a=PLANTED")),
        ("a 404 with secrets", Answer::json(document.as_str()).status(404)),
        (
            "a 403 that is no JSON",
            Answer::new(403).header("Content-Type", "text/html").body("<p>PLANTED</p>"),
        ),
        (
            "a 500 that is no JSON",
            Answer::new(500).header("Content-Type", "text/plain").body("at PLANTED.js:1"),
        ),
    ];
    for (case, answer) in cases {
        origin.document(DUCK, answer);
        for _ in 0..2 {
            let response = gateway.client().get(P).bearer("tok-low").send();
            assert!(
                matches!(response.status, 200 | 403 | 404 | 500 | 502),
                "{case}: {response:#?}"
            );
            // The response is JSON, as its type states.
            response.json();
            assert_eq!(response.broken_off, None, "{case}");
        }
        gateway.admin().delete("/cache").send().assert_status(200);
    }
    origin.document(DUCK, Answer::json(document.as_str()));
    assert_eq!(gateway.client().get(P).bearer("tok-low").send().text(), redacted_document(DUCK));
}

#[test]
fn other_media_type_passes_from_reveal_to_and_is_not_stored() {
    let (origin, gateway) = scene();
    for body in ["not JSON: PLANTED", "[1,2]", "\u{feff}{}"] {
        origin.document(DUCK, Answer::json(body));
        for _ in 0..2 {
            let before = origin.fetches(DUCK);
            let response = gateway.client().get(P).bearer("tok-high").revealed().send();
            assert_eq!(response.assert_status(200).text(), body);
            assert!(!response.cache_status().contains("stored"), "{response:#?}");
            assert_eq!(origin.fetches(DUCK), before + 1);
        }
    }
}

#[test]
fn action_decides_what_replaces_a_secret() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.document(
        DUCK,
        Answer::json(r#"{"integrations":{"x":{"enabled":true,"password":"PLANTED","count":7}}}"#),
    );
    for (action, x) in [
        ("remove", r#"{"enabled":true}"#),
        ("null", r#"{"enabled":true,"password":null,"count":null}"#),
        ("mask", r#"{"enabled":true,"password":"***","count":null}"#),
    ] {
        let gateway = Gateway::with(&origin, &format!("redaction.action = \"{action}\""));
        let response = gateway.client().get(P).bearer("tok-low").send();
        assert_eq!(
            response.assert_status(200).text(),
            format!(r#"{{"integrations":{{"x":{x}}}}}"#),
            "{action}"
        );
    }
}

#[test]
fn reveal_to_is_the_configured_level() {
    let origin = Origin::start();
    origin.knows("tok-reseller", "RESELLER", DUCK);
    origin.knows("tok-admin", "ADMIN", DUCK);
    let gateway = Gateway::with(&origin, r#"redaction.reveal_to = "ADMIN""#);
    let low = gateway.client().get(P).bearer("tok-reseller").send();
    assert_eq!(low.assert_status(200).text(), redacted_document(DUCK));
    let high = gateway.client().get(P).bearer("tok-admin").revealed().send();
    assert_eq!(high.assert_status(200).text(), upstream_document(DUCK));
}

#[test]
fn secrets_on_forwarded_routes_are_redacted() {
    let (origin, gateway) = scene();
    let document = upstream_document(DUCK);
    let list = format!(r#"{{"customers":[{document},{document}]}}"#);
    for (path, body, redacted) in [
        (CUSTOMER, document.clone(), redacted_document(DUCK)),
        (
            "/customer?full=true",
            list,
            format!(r#"{{"customers":[{0},{0}]}}"#, redacted_document(DUCK)),
        ),
    ] {
        for framing in [Framing::Length, Framing::Chunked, Framing::UntilClose] {
            let answer =
                Answer::json(body.as_str()).header("ETag", "\"of-the-api\"").framing(framing);
            origin.when(Rule::on("/customer").answer(answer));
            let low = gateway.client().get(path).bearer("tok-low").send();
            assert_eq!(low.assert_status(200).text(), redacted, "{path}");
            assert_eq!(low.header("etag"), None, "not of these bytes: {low:#?}");
            assert_eq!(low.cache_status(), "telecomx-gateway; fwd=bypass");
            let anonymous = gateway.client().get(path).send();
            assert!(matches!(anonymous.status, 200 | 401), "{anonymous:#?}");
            let high = gateway.client().get(path).bearer("tok-high").revealed().send();
            assert_eq!(high.assert_status(200).text(), body, "{path}");
            assert_eq!(high.header("etag"), Some("\"of-the-api\""));
        }
    }
}

#[test]
fn long_list_is_redacted_and_an_oversized_one_is_502() {
    let (origin, gateway) = scene();
    let list = |document: &str, many: usize| format!("[{}]", vec![document; many].join(","));
    let full = list(&upstream_document(DUCK), 500);
    let digests = ["Content-MD5", "Digest", "Content-Digest", "Repr-Digest"];
    let answer = digests.iter().fold(Answer::json(full.as_str()), |answer, name| {
        answer.header(name, "sha-256=:b2YtdGhlLWFwaQ==:")
    });
    origin.when(Rule::on("/customer").answer(answer));
    let low =
        gateway.client().get("/customer?full=true").bearer("tok-low").kind(Kind::Forwarded).send();
    assert!(low.assert_status(200).text() == list(&redacted_document(DUCK), 500));
    assert_eq!(low.header("content-length"), Some(low.body.len().to_string().as_str()));
    assert!(digests.iter().all(|name| low.header(name).is_none()), "{:?}", low.headers);
    let get_high =
        || gateway.client().get("/customer?full=true").bearer("tok-high").revealed().send();
    assert!(get_high().assert_status(200).text() == full);
    // 17 MiB.
    let vast = list(&upstream_document(DUCK), (17 << 20) / upstream_document(DUCK).len());
    for framing in [Framing::Length, Framing::Chunked, Framing::UntilClose] {
        origin.when(Rule::on("/customer").answer(Answer::json(vast.as_str()).framing(framing)));
        let low = gateway
            .client()
            .get("/customer?full=true")
            .bearer("tok-low")
            .kind(Kind::Forwarded)
            .send();
        low.assert_error(502, "redaction_failed");
        assert!(get_high().assert_status(200).text() == vast);
    }
}

#[test]
fn response_streams_from_reveal_to_and_is_buffered_below() {
    let (origin, gateway) = scene();
    let gate = Gate::closed();
    let answer = Answer::json(upstream_document(DUCK)).framing(Framing::Chunked);
    origin.when(Rule::on(CUSTOMER).answer(answer).hold_body(&gate));
    let ask = |token: &str| {
        let mut connection = gateway.client().connect();
        connection.send_raw(gateway.client().get(CUSTOMER).bearer(token).bytes());
        connection
    };
    let (mut low, mut high) = (ask("tok-low"), ask("tok-high"));
    high.wait_for(&upstream_document(DUCK).as_bytes()[..100]);
    wait_until("both are at the API", || origin.count(|seen| seen.path() == CUSTOMER) == 2);
    assert!(low.try_send_raw(b"").is_ok(), "not a byte yet");
    gate.open();
    let answer = low.read("GET", Kind::Forwarded).expect("an answer");
    assert_eq!(answer.assert_status(200).text(), redacted_document(DUCK));
}

#[test]
fn validator_is_kept_while_redaction_changes_no_byte() {
    let (origin, gateway) = scene();
    let compact = r#"{"a":1.0e2,"b":"\u00e6\/","integrations":{"x":{"enabled":true}}}"#;
    origin.when(Rule::on(CUSTOMER).answer(Answer::json(compact).header("ETag", "\"of-the-api\"")));
    let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
    assert_eq!(response.assert_status(200).text(), compact);
    assert_eq!(response.header("etag"), Some("\"of-the-api\""));
    // Redaction may remove white space, which makes another representation.
    let spaced = "{ \"a\" : 1.0e2,\n \"integrations\": {\"x\":{\"enabled\":true}} }\n";
    origin.when(Rule::on(CUSTOMER).answer(Answer::json(spaced).header("ETag", "\"of-the-api\"")));
    let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
    let squeezed = |text: &str| text.replace([' ', '\n'], "");
    assert_eq!(squeezed(&response.assert_status(200).text()), squeezed(spaced));
    assert_eq!(response.header("etag").is_some(), response.text() == spaced, "{response:#?}");
}

#[test]
fn forwarded_response_of_a_listed_type_passes() {
    let (origin, gateway) = scene();
    let csv = Answer::new(200).header("Content-Type", "text/csv").body("a;b\n1;2\n");
    origin.when(Rule::on(CUSTOMER).answer(csv));
    assert_eq!(
        gateway.client().get(CUSTOMER).bearer("tok-low").send().assert_status(200).text(),
        "a;b\n1;2\n"
    );
}

#[test]
fn json_with_another_media_type_is_redacted() {
    let (origin, gateway) = scene();
    for content_type in ["text/plain", "text/csv", "application/octet-stream", "image/png"] {
        let body = upstream_document(DUCK);
        origin.when(
            Rule::on(CUSTOMER)
                .answer(Answer::new(200).header("Content-Type", content_type).body(body)),
        );
        let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
        assert_eq!(response.assert_status(200).text(), redacted_document(DUCK), "{content_type}");
    }
    origin.when(Rule::on(CUSTOMER).answer(Answer::json("not JSON: PLANTED")));
    gateway.client().get(CUSTOMER).bearer("tok-low").send().assert_error(502, "redaction_failed");
}

#[test]
fn ranges_and_codings_are_not_forwarded() {
    let (origin, gateway) = scene();
    origin.when(Rule::on(CUSTOMER).made(|seen| {
        let document = upstream_document(DUCK);
        if let Some(coding) =
            seen.header("accept-encoding").filter(|coding| coding.contains("gzip"))
        {
            return Answer::json(gzip(document.as_bytes()))
                .header("Content-Encoding", "gzip")
                .header("X-Asked", coding);
        }
        let part = &document.as_bytes()[300..document.len() - 300];
        match seen.header("range") {
            Some("bytes=parts") => {
                let part = format!(
                    "--x\r\nContent-Range: bytes 300-900/1200\r\n\r\n{}\r\n--x--",
                    String::from_utf8_lossy(part)
                );
                Answer::new(206)
                    .header("Content-Type", "multipart/byteranges; boundary=x")
                    .body(part)
            }
            Some("bytes=text") => Answer::new(206).header("Content-Type", "text/plain").body(part),
            Some(_) => Answer::json(part).status(206),
            None => Answer::json(document),
        }
    }));
    let fields = [
        ("Range", "bytes=300-900"),
        ("Range", "bytes=parts"),
        ("Range", "bytes=text"),
        ("Accept-Encoding", "gzip"),
    ];
    for (name, value) in fields {
        let response = gateway.client().get(CUSTOMER).bearer("tok-low").header(name, value).send();
        assert!(matches!(response.status, 200 | 206 | 502), "{name}: {value}: {response:#?}");
    }
}

#[test]
fn access_level_of_a_login_is_that_of_its_response() {
    let (origin, gateway) = scene();
    let response = |level: &str, integration: &str| {
        format!(
            r#"{{"success":true,"token":"session-1",{level}"customerIntegrations":{{"x":{integration}}}}}"#
        )
    };
    let login = |level: &str| response(level, r#"{"enabled":true,"key":"PLANTED"}"#);
    let redacted = |level: &str| response(level, r#"{"enabled":true}"#);
    for path in ["/auth/login?username=u&password=p", "/auth/impersonate/ee0000000000000000000001"]
    {
        for level in
            ["\"accessLevel\":\"OWNER\",", "", "\"accessLevel\":\"KING\",", "\"accessLevel\":7,"]
        {
            origin.when(Rule::on("/auth/").answer(Answer::json(login(level))));
            let response = gateway.client().get(path).send();
            assert_eq!(
                response.assert_status(200).text(),
                redacted(level),
                "{path}: the session's token stays"
            );
        }
        origin
            .when(Rule::on("/auth/").answer(Answer::json(login("\"accessLevel\":\"RESELLER\","))));
        let high = gateway.client().get(path).revealed().send();
        assert_eq!(high.assert_status(200).text(), login("\"accessLevel\":\"RESELLER\","));
        let doubled = "\"accessLevel\":\"ADMIN\",\"accessLevel\":\"OWNER\",";
        origin.when(Rule::on("/auth/").answer(Answer::json(login(doubled))));
        let response = gateway.client().get(path).send();
        assert!(matches!(response.status, 200 | 502), "{response:#?}");
        origin.behave();
    }
}

#[test]
fn change_log_shows_no_old_or_new_secret() {
    let (origin, gateway) = scene();
    let log = concat!(
        r#"{"changes":[{"path":"integrations.billing.economic.agreementGrantToken","#,
        r#""oldValue":"PLANTED-1","newValue":"PLANTED-2","#,
        r#""oldDisplayValue":"PLANTED-3","newDisplayValue":"PLANTED-4"},"#,
        r#"{"path":"name","oldValue":"a","newValue":"b"}],"data":{"integrations":{"k":"PLANTED"}}}"#,
    );
    origin.when(Rule::on("/log/").answer(Answer::json(log)));
    let low = gateway
        .client()
        .get("/log/changelog/1?includeChanges=true&includeData=true")
        .bearer("tok-low")
        .send();
    let low = low.assert_status(200).json();
    assert_eq!(
        low["changes"],
        serde_json::json!([{"path": "name", "oldValue": "a", "newValue": "b"}])
    );
    let high = gateway.client().get("/log/changelog/1").bearer("tok-high").revealed().send();
    assert_eq!(high.assert_status(200).text(), log);
}

#[test]
fn routes_without_a_rule_are_not_redacted() {
    let (origin, gateway) = scene();
    origin.when(Rule::on("/elsewhere").answer(Answer::json(upstream_document(DUCK))));
    let response = gateway.client().get("/elsewhere").bearer("tok-low").revealed().send();
    assert_eq!(response.assert_status(200).text(), upstream_document(DUCK));
}

#[test]
fn redacted_response_keeps_fields_of_the_api() {
    let (origin, gateway) = scene();
    let answer = Answer::json(upstream_document(DUCK)).header("X-Of-The-Api", "as it was");
    origin.when(Rule::on("/customer").answer(answer));
    let response = gateway.client().get(CUSTOMER).bearer("tok-low").send();
    assert_eq!(response.assert_status(200).text(), redacted_document(DUCK));
    assert_eq!(response.header("x-of-the-api"), Some("as it was"));
}
