//! Callers who pretend: tokens that look like others, fields that would poison what is stored, and
//! tokens and secrets planted wherever a log could pick them up.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// An API whose answer says whose token it was asked with.
fn telling() -> Origin {
    let origin = Origin::start();
    origin.when(Rule::on("/customer/").made(|seen| {
        let token = seen.token().unwrap_or_default();
        Answer::json(serde_json::json!({"_id": DUCK, "name": employee_of(&token)}).to_string())
    }));
    origin
}

#[test]
fn similar_tokens_are_different_callers() {
    let origin = telling();
    let gateway = Gateway::with(&origin, r#"server.max_header_bytes = "256KiB""#);
    let client = gateway.client();
    let long = "x".repeat(64 << 10);
    let mut tokens = vec![
        format!("tok-{long}a"),
        format!("tok-{long}b"),
        format!("tok-{long}"),
        "tok-a".to_owned(),
        "tok-aa".to_owned(),
        "tok-A".to_owned(),
        "tok-a|b".to_owned(),
        "tok-a:b".to_owned(),
        "tok-a/b".to_owned(),
        "tok-a=b".to_owned(),
        "tok-a%7Cb".to_owned(),
        "tok-a%00".to_owned(),
        "tok-a.b".to_owned(),
        "tok-a+b".to_owned(),
        "tok-ab".to_owned(),
        format!("tok-a{DUCK}"),
        format!("tok-a/customer/{DUCK}"),
        "tok-a\\".to_owned(),
    ];
    for token in &tokens {
        origin.knows(token, "VIEWER", DUCK);
    }
    // A token that the API does not know.
    tokens.extend(["tok-b".to_owned(), "tok-".to_owned(), "tok-a\u{e6}".to_owned()]);
    let mut served = std::collections::BTreeSet::new();
    for round in 0..2 {
        for token in &tokens {
            let shown: String = token.chars().take(40).collect();
            for call in [client.get(P).bearer(token), client.get(P).header("X-API-Key", token)] {
                let answer = call.send();
                match answer.status {
                    200 => {
                        assert_eq!(
                            answer.json()["name"],
                            employee_of(token),
                            "{shown} in round {round}"
                        );
                        served.insert(shown.clone());
                    }
                    400 | 401 => {}
                    _ => panic!("{shown}: {answer:#?}"),
                }
            }
        }
    }
    assert!(served.len() >= 10, "only these were served: {served:?}");
    // A token is the same caller in each credential place, escaped or not.
    let escaped = client.get(&format!("{P}?token=tok-a%7Cb")).send();
    assert_eq!(escaped.assert_status(200).json()["name"], employee_of("tok-a|b"));
    assert!(escaped.is_hit());
    let plus = client.get(&format!("{P}?token=tok-a%2Bb")).send();
    assert_eq!(plus.assert_status(200).json()["name"], employee_of("tok-a+b"));
}

#[test]
fn token_and_id_that_join_to_one_text_are_distinct_keys() {
    let origin = telling();
    let gateway = Gateway::start(&origin);
    // The end of one token is the start of another's id.
    let pairs = [
        ("tok-1", "5e0000000000000000000001"),
        ("tok-15e", "000000000000000000000100"),
        ("tok-15", "e00000000000000000000010"),
    ];
    for (token, _) in pairs {
        origin.knows(token, "VIEWER", DUCK);
    }
    for _ in 0..2 {
        for (token, id) in pairs {
            let answer = gateway.client().get(&name_of(id)).bearer(token).send();
            assert_eq!(answer.assert_status(200).json()["name"], employee_of(token));
        }
    }
    for (_, id) in pairs {
        assert_eq!(origin.fetches(id), 1);
    }
}

#[test]
fn additions_of_a_caller_change_no_fetch_and_no_entry() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let poison = [
        ("X-Forwarded-Host", "evil.invalid"),
        ("X-Forwarded-Scheme", "nothttps"),
        ("X-Host", "evil.invalid"),
        ("X-Original-URL", "/auth/login"),
        ("X-Rewrite-URL", "/auth/login"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-HTTP-Method", "DELETE"),
        ("X-Method-Override", "DELETE"),
        ("X-Forwarded-Prefix", "/evil"),
        ("Accept", "text/html"),
        ("Accept-Charset", "utf-16"),
        ("Accept-Encoding", "gzip, br, zstd"),
        ("Accept-Language", "da"),
        ("Range", "bytes=0-0"),
        ("If-Range", "\"x\""),
        ("If-Match", "\"x\""),
        ("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"),
        ("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("X-Access-Level", "ADMIN"),
        ("X-Role", "ADMIN"),
        ("X-User", "admin"),
        ("X-Customer", OTHER),
        ("Via", "1.1 evil"),
        ("Max-Forwards", "0"),
        ("Transfer-Encoding-X", "chunked"),
        ("X-Illegal", "a\u{80}b"),
        ("Cookie", "session=1; accessLevel=ADMIN"),
    ];
    for (name, value) in poison {
        gateway.admin().delete("/cache").send().assert_status(200);
        let first = client.get(P).bearer("tok-a").header(name, value).send();
        assert_eq!(first.assert_status(200).text(), redacted_document(DUCK), "{name}");
        let fetched = origin.fetched(DUCK).pop().expect("a fetch");
        assert!(
            fetched.header(name).is_none_or(|sent| sent != value),
            "{name} travelled: {fetched:#?}"
        );
        assert_eq!((fetched.method.as_str(), fetched.target.as_str()), ("GET", P), "{name}");
        let second = client.get(P).bearer("tok-a").send();
        assert_eq!(second.assert_status(200).body, first.body, "{name}");
        assert!(second.is_hit(), "{name}");
    }
}

#[test]
fn provoked_error_is_not_stored() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let long = "x".repeat(40 << 10);
    let many = (0..120).fold(client.get(P).bearer("tok-a"), |call, number| {
        call.header(&format!("X-{number}"), "1")
    });
    let provoked = [
        (client.get(P).bearer("tok-a").header("X-Long", &long), 431),
        (many, 431),
        (client.get(P).bearer("tok-a").header("Connection", "Authorization"), 400),
        (client.get(P).bearer("tok-a").header("Content-Length", "x"), 400),
        (client.get(&format!("{P}?%zz")).bearer("tok-a"), 400),
        (client.get(P).bearer("tok-a").bearer("tok-b"), 400),
        (client.get(P), 401),
    ];
    for (call, status) in provoked {
        let refused = call.send();
        assert_eq!(refused.status, status, "{refused:#?}");
        let next = client.get(P).bearer("tok-a").send();
        assert_eq!(next.assert_status(200).text(), redacted_document(DUCK));
        gateway.admin().delete("/cache").send().assert_status(200);
    }
}

#[test]
fn claimed_access_level_is_ignored_on_every_route() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let claims = [
        ("X-Access-Level", "ADMIN"),
        ("X-Role", "ADMIN"),
        ("AccessLevel", "ADMIN"),
        ("Cookie", "accessLevel=ADMIN"),
    ];
    for (name, value) in claims {
        let intercepted = gateway.client().get(P).bearer("tok-a").header(name, value).send();
        assert_eq!(intercepted.assert_status(200).text(), redacted_document(DUCK), "{name}");
        origin.when(Rule::on("/customer/").answer(Answer::json(upstream_document(DUCK))));
        let passed = gateway
            .client()
            .get(&format!("/customer/{DUCK}"))
            .bearer("tok-a")
            .header(name, value)
            .send();
        assert_eq!(passed.assert_status(200).text(), redacted_document(DUCK), "{name}");
        let query = gateway.client().get(&format!("{P}?accessLevel=ADMIN")).bearer("tok-a").send();
        assert_eq!(query.assert_status(200).text(), redacted_document(DUCK));
    }
}

#[test]
fn planted_secret_appears_in_no_log_and_no_metric() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config =
        "log = { level = \"trace\" }\nupstream.timeout = \"1s\"\nserver.header_timeout = \"1s\"";
    let gateway = Gateway::with(&origin, config);
    let client = gateway.client();
    let answered = |call: Call| drop(call.try_send());
    // In every place of a request, good and bad.
    answered(client.get(&format!("{P}?token=tok-query")));
    answered(client.get("/auth/login?username=x&password=PLANTED&token=tok-query").revealed());
    answered(client.get("/x?agreementGrantToken=PLANTED&token=tok-%zz").revealed());
    answered(client.delete("/employee/ee0000000000000000000001/token/tok-path").bearer("tok-a"));
    answered(client.delete("/employee/ee0000000000000000000001//token/tok-path").bearer("tok-a"));
    answered(client.get("/Customer/tok-path").bearer("tok-b"));
    answered(client.get(P).header("X-API-Key", "tok-key").header("Cookie", "token=tok-cookie"));
    answered(client.get(P).header("Authorization", "Basic tok-basic"));
    answered(client.get(P).bearer("tok-a").bearer("tok-b"));
    answered(client.get(P).bearer("tok-a").header("X-Request-Id", "tok-a"));
    answered(
        client.post("/auth/login").body(r#"{"token":"tok-body","password":"PLANTED"}"#).revealed(),
    );
    answered(client.call("tok-method", "/x").bearer("tok-a"));
    answered(client.get("/x").host("tok-host"));
    answered(client.get(&format!("/{}", "tok-long".repeat(8000))));
    for bytes in [
        "GET /tok-malformed\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-nul\0\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer tok-space\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: x\r\ntok-name\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\ntok-chunk\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\ntok-short",
        "GET /x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-unfinished",
    ] {
        let mut connection = client.connect();
        connection.send_raw(bytes);
        connection.end_of_sending();
        connection.rest();
    }
    let http2 = Http2::connect(&client);
    let _ = http2.call(
        "GET",
        P,
        &[("authorization", "Bearer tok-http2"), ("cookie", "token=tok-cookie")],
        b"",
    );
    let mut frames = Frames::open(&client, &[]);
    let list = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", "/tok-h2 x"),
        ("x-A", "tok-h2"),
    ];
    frames.request(1, &list).expect("an open connection");
    frames.outcome(1);
    // In every place of an answer.
    let ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    for bytes in [
        "PLANTED tok-answer\r\n\r\n".to_owned(),
        "HTTP/1.1 200 PLANTED\r\nPLANTED\0: tok-x\r\n\r\n".to_owned(),
        format!("{ok}X-Note: PLANTED\0tok-x\r\nContent-Length: 2\r\n\r\n{{}}"),
        format!("{ok}Content-Length: PLANTED\r\n\r\n{{}}"),
        format!("{ok}Transfer-Encoding: chunked\r\n\r\nPLANTED\r\n"),
        format!("{ok}Content-Length: 20\r\n\r\n{{\"PLANTED\": tok-x}}  "),
        format!("{ok}Content-Encoding: PLANTED\r\nContent-Length: 2\r\n\r\n{{}}"),
        "HTTP/1.1 302 Found\r\nLocation: http://PLANTED.invalid/tok-x\r\nContent-Length: 0\r\n\r\n"
            .to_owned(),
        format!("{ok}Content-Length: 9\r\n\r\n{{\"PLANTED"),
    ] {
        for way in [P, "/customer/73469a52f4fd7f77ec7b28cc", "/auth/validateToken"] {
            gateway.admin().delete("/cache").send().assert_status(200);
            origin.when(Rule::on(way).raw(bytes.as_str()));
            let token = if way == "/auth/validateToken" { "tok-new" } else { "tok-a" };
            let mut connection = client.connect();
            connection.send_raw(client.get(P).bearer(token).bytes());
            connection.end_of_sending();
            connection.rest();
            connection = client.connect();
            connection.send_raw(client.get(way).bearer(token).bytes());
            connection.wait_for(b"HTTP/1.1 ");
            origin.behave();
        }
    }
    // The gateway's end looks through its log, its metrics and its statistics; an explanation is
    // looked through here.
    let config = gateway.config_file();
    let explained = run_binary(&["check", "-c", &config.display().to_string(), "--explain"], b"");
    assert_eq!(explained.code, Some(0), "{explained:#?}");
    let statistics = gateway.stats().to_string();
    for output in [&explained.stdout, &explained.stderr, &statistics, &gateway.metrics()] {
        assert!(!output.contains(TOKEN_MARKER) && !output.contains(MARKER), "{output}");
    }
    assert!(gateway.log().contains("access"), "something was logged");
    assert_eq!(
        client.get(P).bearer("tok-a").send().assert_status(200).text(),
        redacted_document(DUCK)
    );
}
