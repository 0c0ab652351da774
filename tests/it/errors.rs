//! Errors that the gateway makes, in the API's shape: one test for each row of the contract's
//! table.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

#[test]
fn unidentified_client_gets_401() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).send().assert_error(401, "credentials_invalid");
    client.get(P).header("Authorization", "Basic dTpw").send().assert_error(401, "format_error");
    client.get(P).bearer("tok-unknown").send().assert_error(401, "invalid_token");
}

#[test]
fn blocked_path_gets_403_and_unknown_method_405() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get("/tools/realtime").send().assert_error(403, "access_denied");
    client.call("TRACE", "/x").send().assert_error(405, "bad_request");
}

#[test]
fn malformed_request_gets_400_or_431() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").bearer("tok-b").send().assert_error(400, "bad_request");
    client.get("/x/%zz").send().assert_error(400, "bad_request");
    client.get("/Customer/x").send().assert_error(400, "bad_request");
    client
        .get("/x")
        .header("X-Long", &"x".repeat(40 << 10))
        .send()
        .assert_error(431, "bad_request");
}

#[test]
fn too_many_validations_get_429_with_retry_after() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 1");
    let answers =
        (0..100).map(|number| gateway.client().get(P).bearer(&format!("tok-{number}")).send());
    let refused = answers.into_iter().find(|response| response.status == 429).expect("a limit");
    refused.assert_error(429, "too_many_requests");
    assert!(
        refused.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()),
        "{refused:#?}"
    );
}

#[test]
fn full_queue_gets_503_with_retry_after() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { max_in_flight = 1, timeout = "5s" }"#);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let pending: Vec<_> = (0..20)
        .map(|number| client.get(&name_of(&customer(number))).bearer("tok-a").start())
        .collect();
    origin.wait_until("one of them is there", |seen| {
        seen.iter().any(|seen| seen.path().starts_with("/customer/5e"))
    });
    // A hit needs no permit.
    assert!(client.get(P).bearer("tok-a").send().assert_status(200).is_hit());
    let mut refused = 0;
    for pending in pending {
        let response = pending.finish();
        // The request with the permit times out, since the API does not respond.
        if response.status == 503 {
            response.assert_error(503, "unavailable");
            assert!(
                response.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()),
                "{response:#?}"
            );
            refused += 1;
        } else {
            response.assert_error(504, "gateway_timeout");
        }
    }
    gate.open();
    assert!(refused >= 1, "no request was rejected");
}

#[test]
fn failing_api_gets_502() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream.max_body = "64KiB""#);
    let client = gateway.client();
    client.get(&name_of(OTHER)).bearer("tok-a").send().assert_status(200);
    origin.when(Rule::on("/customer/").close().times(1));
    // A GET may be repeated on another connection and succeed.
    let closed = client.get(P).bearer("tok-a").send();
    assert!(matches!(closed.status, 200 | 502), "{closed:#?}");
    gateway.admin().delete("/cache").send().assert_status(200);
    origin.when(Rule::on("/customer/").cut_body_after(100));
    client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    origin.behave();
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(65 << 10));
    for framing in [Framing::Length, Framing::Chunked, Framing::UntilClose] {
        origin.document(DUCK, Answer::json(large.as_str()).framing(framing));
        client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    }
    origin.stop();
    client.get(P).bearer("tok-a").send().assert_error(502, "bad_gateway");
    client.get("/elsewhere").send().assert_error(502, "bad_gateway");
}

#[test]
fn slow_api_gets_504() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "1s""#);
    gateway.client().get(P).bearer("tok-a").send().assert_error(504, "gateway_timeout");
    gate.open();
}

#[test]
fn unredactable_response_gets_502() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.document(DUCK, Answer::json(r#"{"integrations":"#));
    let gateway = Gateway::start(&origin);
    gateway.client().get(P).bearer("tok-a").send().assert_error(502, "redaction_failed");
}

#[test]
fn error_reveals_neither_token_nor_address_of_the_api() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let address = origin.address().to_string();
    let unknown = client.get(P).bearer("tok-unknown").send();
    origin.stop();
    let away = client.get("/elsewhere?token=tok-a").bearer("tok-a").send();
    for response in [unknown, away] {
        let text = response.text();
        assert!(!text.contains(TOKEN_MARKER) && !text.contains(&address), "{response:#?}");
    }
}

#[test]
fn every_error_body_contains_the_request_id() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let http2 = Http2::connect(&client);
    let check = |method: &str, path: &str, token: &str, expected: &[u16]| {
        let http1 = client.call(method, path).bearer(token).header("X-Request-Id", "an-id").send();
        let authorization = format!("Bearer {token}");
        let fields = [("authorization", authorization.as_str()), ("x-request-id", "an-id")];
        let http2 = http2.call(method, path, &fields, b"").expect("a response");
        for response in [http1, http2] {
            assert!(expected.contains(&response.status), "{method} {path}: {response:#?}");
            assert_eq!(
                response.json()["error"]["requestId"],
                "an-id",
                "{method} {path}: {response:#?}"
            );
            assert!(response.text().ends_with("}\n"), "{response:#?}");
        }
    };
    check("GET", P, "tok-unknown", &[401]);
    check("GET", "/tools/realtime", "tok-a", &[403]);
    check("GET", "/x/%zz", "tok-a", &[400]);
    check("GET", "/Customer/x", "tok-a", &[400]);
    origin.when(
        Rule::on("/")
            .answer(Answer::new(500).header("Content-Type", "text/html").body("<p>failed</p>")),
    );
    check("GET", &name_of(OTHER), "tok-a", &[500]);
    check("GET", &format!("/customer/{OTHER}/subscriptions"), "tok-a", &[500]);
    origin.behave();
    origin.stop();
    for path in ["/elsewhere", &format!("/customer/{OTHER}/subscriptions"), &name_of(THIRD)] {
        check("GET", path, "tok-a", &[502, 503]);
    }
    check("POST", "/elsewhere", "tok-a", &[502, 503]);
}
