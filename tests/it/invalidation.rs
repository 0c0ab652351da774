//! Which requests invalidate which entries: a client without a valid token never invalidates those
//! of others, and a write invalidates by the end of its response.

use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const CUSTOMER: &str = "/customer/73469a52f4fd7f77ec7b28cc";
const SYNC: &str = "/integration/also/customer/73469a52f4fd7f77ec7b28cc/sync";
const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";

fn named(name: &str) -> Answer {
    Answer::json(format!(r#"{{"_id":"{DUCK}","name":"{name}"}}"#))
}

#[test]
fn unattributable_logout_is_rejected() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let large = format!(r#"{{"x":"{}","token":"tok-a"}}"#, "y".repeat(70 << 10));
    let refused = || {
        let pieces: Vec<&[u8]> = large.as_bytes().chunks(9000).collect();
        vec![
            client.get("/auth/logout"),
            client.head("/auth/logout"),
            client.post("/auth/logout").body("{}"),
            client.post("/auth/logout").body("x"),
            client.post("/auth/logout").header("Content-Type", "application/json").body("{"),
            client.post("/auth/logout").header("Content-Type", "application/json").body(&large),
            client.post("/auth/logout").chunked(&pieces),
            client
                .post("/auth/logout")
                .header("Content-Type", "application/json")
                .chunked(&pieces)
                .bearer("tok-a"),
            client.post("/auth/logout").body(r#"{"token":["tok-a"]}"#),
            client.get("/auth/logout?token=tok-a").header("Authorization", "Basic dTpw"),
            client.get("/auth/logout").header("Authorization", "tok-a"),
            client.get("/auth/logout").header("Cookie", "session=tok-unknown"),
            client.get("/auth/logout").header("X-API-Key", "tok a"),
            client.post("/auth/organizationreseller").body("{}"),
        ]
    };
    for up in [true, false] {
        if !up {
            origin.when(Rule::on("/auth/validateToken").close());
        }
        let before = origin.requests();
        for (number, call) in refused().into_iter().enumerate() {
            let response = call.send();
            assert_eq!(response.status, 503, "{number}: {response:#?}");
            assert!(response.header("retry-after").is_some(), "{response:#?}");
        }
        for fields in [&[][..], &[("authorization", "Basic dTpw")]] {
            let http2 = Http2::connect(&client)
                .call("POST", "/auth/logout", fields, b"{}")
                .expect("a response");
            http2.assert_error(503, "unavailable");
        }
        assert_eq!(origin.requests(), before);
        if !up {
            client
                .get("/auth/logout")
                .bearer("tok-garbage")
                .send()
                .assert_error(503, "unavailable");
            client
                .post("/auth/logout")
                .body(r#"{"token":"tok-garbage"}"#)
                .send()
                .assert_error(503, "unavailable");
        }
        assert_eq!(origin.count(|seen| seen.path() == "/auth/logout"), 0);
        assert!(client.get(P).bearer("tok-a").send().is_hit());
    }
    for call in
        [client.call("OPTIONS", "/auth/logout"), client.call("OPTIONS", "/auth/logout").body("{}")]
    {
        call.send().assert_status(200);
    }
    assert!(client.get(P).bearer("tok-a").send().is_hit(), "OPTIONS changes nothing");
    let zeros = client.post("/auth/logout").header("Content-Length", "00").send();
    assert!(matches!(zeros.status, 400 | 503), "{zeros:#?}");
    assert!(client.get(P).bearer("tok-a").send().is_hit());
}

#[test]
fn logout_from_an_address_over_the_limit_is_rejected() {
    let origin = Origin::start();
    for token in ["tok-a", "tok-b"] {
        origin.knows_employee(token, "VIEWER", DUCK, "ee0000000000000000000001");
    }
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 1");
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    client.get(P).bearer("tok-guess").send().assert_error(401, "invalid_token");
    client.get("/auth/logout").bearer("tok-b").send().assert_error(503, "unavailable");
    assert_eq!(origin.count(|seen| seen.path() == "/auth/logout"), 0);
    assert!(client.get(P).bearer("tok-a").send().is_hit());
    client.get("/auth/logout").bearer("tok-a").send().assert_status(200);
    origin.forgets("tok-a");
    client.get(P).bearer("tok-a").send().assert_error(401, "invalid_token");
}

#[test]
fn stale_responses_survive_the_logout_of_another_caller() {
    let origin = Origin::start();
    let tokens = ["tok-1", "tok-2", "tok-3", "tok-4", "tok-5"];
    for token in tokens {
        origin.knows(token, "VIEWER", DUCK);
    }
    let gateway = Gateway::with(
        &origin,
        r#"cache = { ttl = "1s", stale_while_revalidate = "0s", stale_if_error = "10m" }"#,
    );
    let client = gateway.client();
    let get = |token: &str| client.get(P).bearer(token).send();
    for token in tokens {
        get(token).assert_status(200);
    }
    origin.stop();
    wait_until("what is stored is stale", || {
        get("tok-1").cache_status().contains("detail=stale-if-error")
    });
    for call in [
        client.get("/auth/logout").bearer("tok-garbage"),
        client.get("/auth/logout"),
        client.post("/auth/logout").body("{}"),
        client.get("/auth/logout?token=tok-garbage").bearer("tok-other"),
    ] {
        call.send().assert_error(503, "unavailable");
        client.call("OPTIONS", "/auth/logout").send().assert_error(502, "bad_gateway");
        for token in tokens {
            get(token).assert_status(200);
        }
    }
    // A valid logout invalidates that employee only.
    client.get("/auth/logout").bearer("tok-1").send().assert_error(502, "bad_gateway");
    assert!(get("tok-1").status >= 500);
    for token in &tokens[1..] {
        get(token).assert_status(200);
    }
}

#[test]
fn logout_invalidates_every_token_of_its_request() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let json = |call: Call| call.header("Content-Type", "application/json");
    type Form = Box<dyn Fn(Client) -> Call>;
    let forms: Vec<(&str, Form)> = vec![
        ("query and bearer", Box::new(|c| c.get("/auth/logout?token=tok-T").bearer("tok-OTHER"))),
        ("bearer and query", Box::new(|c| c.get("/auth/logout?token=tok-OTHER").bearer("tok-T"))),
        ("two in the query", Box::new(|c| c.get("/auth/logout?token=tok-OTHER&token=tok-T"))),
        ("brackets", Box::new(|c| c.get("/auth/logout?token[]=tok-T"))),
        (
            "brackets and bearer",
            Box::new(|c| c.get("/auth/logout?token[]=tok-T").bearer("tok-OTHER")),
        ),
        ("capitals", Box::new(|c| c.get("/auth/logout?Token=tok-T").bearer("tok-OTHER"))),
        (
            "key and cookie",
            Box::new(|c| {
                c.get("/auth/logout")
                    .header("X-API-Key", "tok-OTHER")
                    .header("Cookie", "token=tok-T")
            }),
        ),
        (
            "two cookies",
            Box::new(|c| c.get("/auth/logout").header("Cookie", "token=tok-OTHER; token=tok-T")),
        ),
        (
            "a cookie of another name",
            Box::new(|c| c.get("/auth/logout").header("Cookie", "sid=tok-T")),
        ),
        (
            "that and bearer",
            Box::new(|c| c.get("/auth/logout").header("Cookie", "sid=tok-T").bearer("tok-OTHER")),
        ),
        (
            "a JSON body",
            Box::new(move |c| json(c.post("/auth/logout")).body(r#"{"token":"tok-T"}"#)),
        ),
        ("a body of no type", Box::new(|c| c.post("/auth/logout").body(r#"{"token":"tok-T"}"#))),
        (
            "a body and bearer",
            Box::new(move |c| {
                json(c.post("/auth/logout")).body(r#"{"token":"tok-T"}"#).bearer("tok-OTHER")
            }),
        ),
        (
            "a chunked body",
            Box::new(move |c| {
                json(c.post("/auth/logout")).chunked(&[br#"{"tok"#, br#"en":"tok-T"}"#])
            }),
        ),
        (
            "a form",
            Box::new(|c| {
                c.post("/auth/logout")
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .body("a=b&token=tok-T")
            }),
        ),
        (
            "a form in another letter case",
            Box::new(|c| {
                c.post("/auth/logout")
                    .header("Content-Type", "Application/X-WWW-Form-URLencoded")
                    .body("a=b&token=tok-T")
            }),
        ),
        (
            "a large body",
            Box::new(move |c| {
                json(c.post("/auth/logout"))
                    .body(format!(r#"{{"x":"{}","token":"tok-T"}}"#, "y".repeat(60_000)))
            }),
        ),
    ];
    for (what, form) in &forms {
        origin.knows_employee("tok-T", "VIEWER", DUCK, "ee0000000000000000000001");
        origin.knows_employee("tok-same", "VIEWER", DUCK, "ee0000000000000000000001");
        origin.knows_employee("tok-OTHER", "VIEWER", DUCK, "ee0000000000000000000002");
        origin.knows_employee("tok-third", "VIEWER", DUCK, "ee0000000000000000000003");
        gateway.admin().delete("/cache").send().assert_status(200);
        for token in ["tok-T", "tok-same", "tok-third"] {
            client.get(P).bearer(token).send().assert_status(200);
        }
        let logout = form(client.clone()).send();
        assert_eq!(logout.status, 200, "{what}: {logout:#?}");
        origin.forgets("tok-T");
        origin.forgets("tok-same");
        client.get(P).bearer("tok-T").send().assert_error(401, "invalid_token");
        let same = client.get(P).bearer("tok-same").send();
        assert_eq!(same.status, 401, "{what}: {same:#?}");
        assert!(client.get(P).bearer("tok-third").send().is_hit(), "{what}");
    }
}

#[test]
fn client_without_a_valid_token_invalidates_nothing() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let employee = "ee0000000000000000000001";
    origin.knows_employee("tok-a", "VIEWER", DUCK, employee);
    origin.knows("tok-admin", "ADMIN", DUCK);
    client.get(P).bearer("tok-a").send().assert_status(200);
    let validations = origin.validations_of("tok-a");
    let paths = [
        ("POST", CUSTOMER.to_owned()),
        ("DELETE", CUSTOMER.to_owned()),
        ("POST", SYNC.to_owned()),
        ("POST", format!("/employee/{employee}")),
        ("DELETE", format!("/employee/{employee}/token/tok-a")),
        ("GET", CUSTOMER.to_owned()),
        ("GET", "/auth/logout".to_owned()),
        ("POST", "/auth/organizationreseller".to_owned()),
    ];
    for (method, path) in &paths {
        for status in [401, 403, 404, 405] {
            for token in [None, Some("tok-unknown")] {
                // Not while entries of other callers are checked.
                origin.when(
                    Rule::on(path).method(method).answer(Answer::error(status, "refused")).times(1),
                );
                let call = client.call(method, path).header("X-HTTP-Method-Override", "DELETE");
                let call = if *method == "GET" { call } else { call.body("{}") };
                let response = token
                    .map_or_else(
                        || client.call(method, path).header("X-HTTP-Method-Override", "DELETE"),
                        |token| call.bearer(token),
                    )
                    .send();
                let expected =
                    if path.starts_with("/auth") && token.is_none() { 503 } else { status };
                assert_eq!(response.status, expected, "{method} {path}: {response:#?}");
                origin.behave();
                let after = client.get(P).bearer("tok-a").send();
                assert!(after.is_hit(), "{method} {path} {token:?} {status}: {after:#?}");
            }
        }
    }
    assert_eq!(origin.validations_of("tok-a"), validations);
    // From a valid caller and accepted by the API, they invalidate.
    for (method, path) in &paths[..5] {
        client.call(method, path).bearer("tok-admin").body("{}").send().assert_status(200);
        let after = client.get(P).bearer("tok-a").send();
        assert_eq!(after.assert_status(200).cache_status(), STORED, "{method} {path}");
    }
}

#[test]
fn forwarded_401_invalidates_cached_tokens_only() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    origin.when(Rule::on("/elsewhere").answer(Answer::error(401, "expired")));
    let ended = || gateway.metric("cache_invalidations_total", &[("trigger", "unauthorized")]);
    let before = ended();
    for number in 0..20 {
        client.get("/elsewhere").bearer(&format!("tok-{number}")).send().assert_status(401);
    }
    client.get("/elsewhere").send().assert_status(401);
    assert!(client.get(P).bearer("tok-a").send().is_hit());
    assert_eq!(ended(), before);
    client.get("/elsewhere").bearer("tok-a").send().assert_status(401);
    assert_eq!(ended(), before + 1.0);
    assert!(!client.get(P).bearer("tok-a").send().is_hit());
}

#[test]
fn write_counts_from_the_end_of_its_response() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for (number, (path, token)) in
        [(SYNC, "tok-low"), (SYNC, "tok-high"), (CUSTOMER, "tok-low"), (CUSTOMER, "tok-high")]
            .into_iter()
            .enumerate()
    {
        for framing in [Framing::Chunked, Framing::Length, Framing::UntilClose] {
            for http2 in [false, true] {
                let what = format!("{path} {token} {framing:?} {http2}");
                let (old, new) =
                    (format!("old {number}"), format!("new {number} {framing:?} {http2}"));
                origin.document(DUCK, named(&old));
                gateway.admin().delete("/cache").send().assert_status(200);
                let gate = Gate::closed();
                let answer =
                    Answer::json(format!(r#"{{"x":"{}"}}"#, "y".repeat(100))).framing(framing);
                origin.when(Rule::on(path).method("POST").answer(answer).hold_body(&gate).times(1));
                let before = origin.count(|seen| seen.method == "POST");
                let write = std::thread::scope(|scope| {
                    let (client, gateway) = (&client, &gateway);
                    let write = scope.spawn(move || match http2 {
                        false => client.post(path).bearer(token).body("{}").send(),
                        true => {
                            let bearer = format!("Bearer {token}");
                            let fields = [("authorization", bearer.as_str())];
                            Http2::connect(&gateway.client())
                                .call("POST", path, &fields, b"{}")
                                .expect("a response")
                        }
                    });
                    origin.wait_until(&what, |seen| {
                        seen.iter().filter(|seen| seen.method == "POST" && seen.complete).count()
                            > before
                    });
                    // Fetched and stored while the response is under way.
                    wait_until("the old name is stored", || {
                        let between = client.get(P).bearer("tok-low").send();
                        assert!(between.text().contains(&old), "{what}: {between:#?}");
                        between.is_hit()
                    });
                    origin.document(DUCK, named(&new));
                    gate.open();
                    write.join().expect("a response")
                });
                write.assert_status(200);
                let after = client.get(P).bearer("tok-low").send();
                assert!(after.assert_status(200).text().contains(&new), "{what}: {after:#?}");
            }
        }
    }
}

#[test]
fn write_whose_client_left_is_settled() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let mut number = 0;
    for (path, token) in [(SYNC, "tok-low"), (CUSTOMER, "tok-high"), (CUSTOMER, "tok-low")] {
        for step in ["before the response", "in its body"] {
            number += 1;
            let what = format!("{path} {token} {step}");
            let (old, new) = (format!("old {number}"), format!("new {number}"));
            origin.document(DUCK, named(&old));
            client.get(P).bearer("tok-low").send().assert_status(200);
            let gate = Gate::closed();
            let rule = Rule::on(path)
                .method("POST")
                .answer(Answer::json("[1234567890]").framing(Framing::Chunked));
            let rule = if step == "in its body" { rule.hold_body(&gate) } else { rule.hold(&gate) };
            origin.when(rule.times(1));
            let before = origin.count(|seen| seen.method == "POST");
            let write = client.post(path).bearer(token).body("{}").start();
            origin.wait_until(&what, |seen| {
                seen.iter().filter(|seen| seen.method == "POST" && seen.complete).count() > before
            });
            drop(write);
            // Whether or not the gateway knows the client by now.
            for _ in 0..20 {
                assert!(client.get(P).bearer("tok-low").send().text().contains("name"));
                look_again();
            }
            origin.document(DUCK, named(&new));
            gate.open();
            let deadline = Instant::now() + Duration::from_secs(1);
            while Instant::now() < deadline {
                look_again();
            }
            for _ in 0..3 {
                let after = client.get(P).bearer("tok-low").send();
                assert!(after.assert_status(200).text().contains(&new), "{what}: {after:#?}");
            }
        }
    }
}

#[test]
fn client_that_left_without_a_token_unsettles_nothing() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/integration/").method("POST").hold(&gate));
    for (number, token) in [None, Some("tok-unknown")].into_iter().enumerate() {
        let call = client.post(SYNC).body("{}");
        let mut write =
            token.map_or_else(|| client.post(SYNC).body("{}"), |token| call.bearer(token)).start();
        origin.wait_until("the write", |seen| {
            seen.iter().filter(|seen| seen.method == "POST" && seen.complete).count() > number
        });
        write.connection.reset();
        drop(write);
    }
    origin.wait_until("the unknown token is validated", |seen| {
        seen.iter().any(|seen| seen.query("token").as_deref() == Some("tok-unknown"))
    });
    assert!(client.get(P).bearer("tok-a").send().is_hit());
    assert_eq!(gateway.metric("cache_invalidations_total", &[("trigger", "unsettled")]), 0.0);
    gate.open();
}

#[test]
fn registered_safe_methods_leave_entries_alone() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    for method in ["HEAD", "OPTIONS", "PROPFIND", "QUERY", "REPORT", "SEARCH"] {
        for path in [SYNC, CUSTOMER] {
            let call = client.call(method, path).bearer("tok-a");
            let call = if method == "HEAD" { call } else { call.body("{}") };
            call.send().assert_status(200);
            assert!(client.get(P).bearer("tok-a").send().is_hit(), "{method} {path}");
        }
    }
    client.call("UNKNOWN", SYNC).bearer("tok-a").body("{}").send().assert_status(200);
    assert_eq!(client.get(P).bearer("tok-a").send().cache_status(), STORED);
}
