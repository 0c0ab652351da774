//! One credential decides how a response is redacted, and that one alone is forwarded.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const CUSTOMER: &str = "/customer/73469a52f4fd7f77ec7b28cc";

const PLACES: [&str; 4] = ["Authorization", "X-API-Key", "?token", "Cookie"];

/// The target and the fields of a request that holds a token in each of these places.
fn request(path: &str, tokens: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
    let mut target = path.to_owned();
    let mut fields = Vec::new();
    for (place, token) in tokens {
        match *place {
            "Authorization" => fields.push(("authorization".to_owned(), format!("Bearer {token}"))),
            "Cookie" => fields.push(("cookie".to_owned(), format!("a=b; token={token}; c=d"))),
            "?token" => {
                let delimiter = if target.contains('?') { '&' } else { '?' };
                target = format!("{target}{delimiter}token={token}");
            }
            name => fields.push((name.to_ascii_lowercase(), (*token).to_owned())),
        }
    }
    (target, fields)
}

/// Sends a request over HTTP/1.1 or HTTP/2 and gives the status of the response.
fn send(
    gateway: &Gateway,
    http2: bool,
    method: &str,
    target: &str,
    fields: &[(String, String)],
    body: &str,
) -> u16 {
    let client = gateway.client();
    let call = fields
        .iter()
        .fold(client.call(method, target), |call, (name, value)| call.header(name, value));
    match http2 {
        false if body.is_empty() => call.revealed().send().status,
        false => call.body(body).revealed().send().status,
        true => client.send_h2c(vec![call.h2_body(body).revealed()])[0].status,
    }
}

/// The only token that a request holds, wherever it is.
fn only_token(seen: &Seen) -> String {
    let whole =
        format!("{} {:?} {}", seen.target, seen.headers, String::from_utf8_lossy(&seen.body));
    assert_eq!(whole.matches(TOKEN_MARKER).count(), 1, "not one credential: {seen:#?}");
    let token = seen.token().or_else(|| {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).ok()?;
        body["token"].as_str().map(str::to_owned)
    });
    token.unwrap_or_else(|| panic!("no credential: {seen:#?}"))
}

#[test]
fn redacted_route_forwards_the_deciding_credential_alone() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    for http2 in [false, true] {
        for path in [CUSTOMER.to_owned(), format!("{CUSTOMER}?x=1"), "/log/changelog".to_owned()] {
            for (better, one) in PLACES.iter().enumerate() {
                for other in &PLACES[better..] {
                    for (decides, ignored) in [("tok-low", "tok-high"), ("tok-high", "tok-low")] {
                        let tokens = [(*one, decides), (*other, ignored)];
                        let tokens = if one == other { &tokens[..1] } else { &tokens[..] };
                        let (target, fields) = request(&path, tokens);
                        let what =
                            format!("{target} {fields:?} over HTTP/{}", if http2 { 2 } else { 1 });
                        assert_eq!(
                            send(&gateway, http2, "GET", &target, &fields, ""),
                            200,
                            "{what}"
                        );
                        let seen = origin
                            .last(path.split('?').next().unwrap_or_default())
                            .expect("a request");
                        assert_eq!(only_token(&seen), decides, "{what}: {seen:#?}");
                        assert_eq!(
                            seen.target.contains("x=1"),
                            path.contains("x=1"),
                            "{what}: {seen:#?}"
                        );
                        let has_cookie = tokens.iter().any(|(place, _)| *place == "Cookie");
                        assert_eq!(
                            seen.header("cookie").is_some_and(|all| all.contains("c=d")),
                            has_cookie,
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn other_spellings_of_the_query_token_are_removed() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    for alias in [
        "token",
        "token[]",
        "Token",
        "TOKEN",
        "%74oken",
        "token%5B%5D",
        "[token]",
        "token[a]",
        "+token",
        "%2574oken",
        "tok;en",
        ";token;",
        "t%6f;ken",
    ] {
        for http2 in [false, true] {
            for (path, decides) in
                [(P, "tok-low"), (P, "tok-high"), (CUSTOMER, "tok-low"), (CUSTOMER, "tok-high")]
            {
                let target = format!("{path}?a=1&{alias}=tok-other&b=2");
                let fields = [("authorization".to_owned(), format!("Bearer {decides}"))];
                assert_eq!(send(&gateway, http2, "GET", &target, &fields, ""), 200, "{target}");
                let seen = origin.last(path).expect("a request");
                assert_eq!(seen.target, format!("{path}?a=1&b=2"), "{target}");
                assert_eq!(only_token(&seen), decides, "{target}");
            }
        }
    }
}

#[test]
fn repeated_credentials_travel_once() {
    let origin = Origin::start();
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for call in [
        client.get(CUSTOMER).bearer("tok-high").bearer("tok-high"),
        client.get(CUSTOMER).header("X-API-Key", "tok-high").header("X-API-Key", "tok-high"),
        client.get(&format!("{CUSTOMER}?token=tok-high&token=tok-high")),
        client
            .get(CUSTOMER)
            .header("Cookie", "token=tok-high; token=tok-other")
            .header("Cookie", "token=tok-more"),
        client
            .get(&format!("{CUSTOMER}?token="))
            .header("X-API-Key", "")
            .header("Cookie", "token=tok-high"),
    ] {
        call.revealed().send().assert_status(200);
        assert_eq!(only_token(&origin.last(CUSTOMER).expect("a request")), "tok-high");
    }
}

#[test]
fn credential_that_cannot_be_read_is_refused_on_redacted_routes() {
    let origin = Origin::start();
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let basic =
        client.get(&format!("{CUSTOMER}?token=tok-high")).header("Authorization", "Basic dTpw");
    basic.send().assert_error(401, "format_error");
    client
        .get(&format!("{CUSTOMER}?token=tok-a&token=tok-b"))
        .send()
        .assert_error(400, "bad_request");
    client.get(CUSTOMER).header("X-API-Key", "tok a").send().assert_error(400, "bad_request");
    assert_eq!(origin.requests(), 0);
    client.get(CUSTOMER).send().assert_status(200);
    client
        .get(CUSTOMER)
        .bearer("tok-unknown")
        .header("X-API-Key", "tok-high")
        .send()
        .assert_status(200);
    assert_eq!(only_token(&origin.last(CUSTOMER).expect("a request")), "tok-unknown");
}

#[test]
fn token_in_a_json_body_decides_or_must_agree() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    origin.when(Rule::on(CUSTOMER).method("POST").answer(Answer::json(upstream_document(DUCK))));
    let gateway = Gateway::start(&origin);
    let json = ("content-type".to_owned(), "application/json".to_owned());
    for http2 in [false, true] {
        for token in ["tok-low", "tok-high"] {
            let body = format!(r#"{{"name":"x","token":"{token}"}}"#);
            for fields in [&[][..], std::slice::from_ref(&json)] {
                assert_eq!(send(&gateway, http2, "POST", CUSTOMER, fields, &body), 200);
                let seen = origin.last(CUSTOMER).expect("a request");
                assert_eq!(
                    (seen.body.as_slice(), only_token(&seen).as_str()),
                    (body.as_bytes(), token)
                );
            }
        }
        let posts = || origin.count(|seen| seen.method == "POST");
        let before = posts();
        for (place, decides, other) in
            PLACES.iter().flat_map(|p| [(*p, "tok-low", "tok-high"), (*p, "tok-high", "tok-low")])
        {
            let (target, mut fields) = request(CUSTOMER, &[(place, decides)]);
            fields.push(json.clone());
            let body = format!(r#"{{"token":"{other}"}}"#);
            assert_eq!(send(&gateway, http2, "POST", &target, &fields, &body), 400, "{place}");
        }
        for body in [r#"{"token":"tok-low","token":"tok-high"}"#, r#"{"token":["tok-high"]}"#] {
            assert_eq!(
                send(&gateway, http2, "POST", CUSTOMER, std::slice::from_ref(&json), body),
                400,
                "{body}"
            );
        }
        assert_eq!(posts(), before);
        // The same token twice is one.
        let (target, fields) = request(CUSTOMER, &[("Authorization", "tok-low")]);
        assert_eq!(send(&gateway, http2, "POST", &target, &fields, r#"{"token":"tok-low"}"#), 200);
    }
}

#[test]
fn json_body_is_redacted_for_its_token() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    origin.when(Rule::on(CUSTOMER).method("POST").answer(Answer::json(upstream_document(DUCK))));
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let post = |token: &str| {
        client
            .post(CUSTOMER)
            .header("Content-Type", "application/json")
            .body(format!(r#"{{"token":"{token}"}}"#))
    };
    assert_eq!(post("tok-low").send().assert_status(200).text(), redacted_document(DUCK));
    assert_eq!(
        post("tok-high").revealed().send().assert_status(200).text(),
        upstream_document(DUCK)
    );
    assert_eq!(post("tok-unknown").send().assert_status(200).text(), redacted_document(DUCK));
    // Too large to be read: no token in it is believed, and the whole of it is forwarded.
    let large = format!(r#"{{"x":"{}","token":"tok-high"}}"#, "y".repeat(70 << 10));
    for chunked in [false, true] {
        for bearer in [false, true] {
            let call = client.post(CUSTOMER).header("Content-Type", "application/json");
            let call = if bearer { call.bearer("tok-high") } else { call };
            let pieces: Vec<&[u8]> = large.as_bytes().chunks(9000).collect();
            let call = if chunked { call.chunked(&pieces) } else { call.body(&large) };
            assert_eq!(
                call.send().assert_status(200).text(),
                redacted_document(DUCK),
                "{chunked} {bearer}"
            );
            assert!(
                origin.last(CUSTOMER).expect("a request").body == large.as_bytes(),
                "{chunked} {bearer}"
            );
        }
    }
    let http2 = Http2::connect(&client).call(
        "POST",
        CUSTOMER,
        &[("content-type", "application/json")],
        large.as_bytes(),
    );
    assert_eq!(http2.expect("a response").text(), redacted_document(DUCK));
    assert!(origin.last(CUSTOMER).expect("a request").body == large.as_bytes());
}

#[test]
fn body_that_was_read_ahead_arrives_unchanged() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let json = format!(r#"{{"x":"{}"}}"#, "y".repeat((64 << 10) - 20));
    let csv = "a;b\n".repeat(50_000);
    for token in ["tok-low", "tok-high"] {
        for (media, body) in [
            ("application/json", "{}"),
            ("application/json", ""),
            ("application/json", &json),
            ("text/csv", &csv),
            ("application/octet-stream", &csv),
            ("", &csv),
            ("", "  "),
            ("text/plain", "{ this is not JSON"),
        ] {
            let typed = |call: Call| {
                if media.is_empty() { call } else { call.header("Content-Type", media) }
            };
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(7000).collect();
            let calls = [
                typed(client.post(CUSTOMER).bearer(token)).body(body),
                typed(client.post(CUSTOMER).bearer(token)).chunked(&pieces),
                typed(client.post(CUSTOMER).bearer(token))
                    .header("Expect", "100-continue")
                    .body(body),
            ];
            for call in calls {
                let what = format!("{token} {media:?} {} bytes", body.len());
                call.revealed().send().assert_status(200);
                let seen = origin.last(CUSTOMER).expect("a request");
                assert!(
                    seen.complete && seen.body == body.as_bytes(),
                    "{what}: {} came",
                    seen.body.len()
                );
            }
            let bearer = format!("Bearer {token}");
            let fields = [("authorization", bearer.as_str()), ("content-type", media)];
            let fields = if media.is_empty() { &fields[..1] } else { &fields[..] };
            Http2::connect(&client)
                .call("POST", CUSTOMER, fields, body.as_bytes())
                .expect("a response")
                .assert_status(200);
            assert!(
                origin.last(CUSTOMER).expect("a request").body == body.as_bytes(),
                "{token} {media:?} over HTTP/2"
            );
        }
    }
}

#[test]
fn token_with_reserved_characters_is_one_caller_in_each_place() {
    let origin = Origin::start();
    origin.knows("tok-a+b/c==", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let calls = [
        client.get(P).bearer("tok-a+b/c=="),
        client.get(P).header("X-API-Key", "tok-a+b/c=="),
        client.get(&format!("{P}?token=tok-a%2Bb%2Fc%3D%3D")),
        client.get(P).header("Cookie", "token=tok-a%2Bb%2Fc%3D%3D"),
        client.get(P).header("Cookie", "token=\"tok-a%2bb/c%3d=\""),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.send().assert_status(200).is_hit(), number > 0, "call {number}");
    }
    assert_eq!(origin.validations(), 1);
    client
        .get("/auth/logout")
        .header("Cookie", "token=tok-a%2Bb%2Fc%3D%3D")
        .send()
        .assert_status(200);
    origin.forgets("tok-a+b/c==");
    client.get(P).bearer("tok-a+b/c==").send().assert_error(401, "invalid_token");
}

#[test]
fn empty_credential_is_a_401_in_each_place() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for call in [
        client.get(P).header("X-API-Key", ""),
        client.get(&format!("{P}?token=")),
        client.get(&format!("{P}?token")),
        client.get(&format!("{P}?token=&token=")),
        client.get(P).header("Cookie", "token="),
        client.get(P).header("Cookie", "token=\"\""),
    ] {
        call.send().assert_error(401, "credentials_invalid");
    }
    for value in ["", "Bearer", "Bearer "] {
        assert_eq!(client.get(P).header("Authorization", value).send().status, 401, "{value:?}");
    }
    let http2 = Http2::connect(&client);
    http2
        .call("GET", &format!("{P}?token="), &[], b"")
        .expect("a response")
        .assert_error(401, "credentials_invalid");
    assert_eq!(
        http2.call("GET", P, &[("authorization", "")], b"").expect("a response").status,
        401
    );
    assert_eq!(origin.requests(), 0);
}
