//! Fields of requests that the gateway forwards: what it removes, sets and translates, on plain and
//! redacted routes and over both protocols.

use crate::support::*;

const PLAIN: &str = "/elsewhere";
const REDACTED: &str = "/customer/list";
const NAME: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// A client's fields by which a server behind the gateway could take it for another, or read
/// another URL.
const CLAIMS: [(&str, &str); 22] = [
    ("forwarded", "for=10.9.8.7;host=evil"),
    ("x-real-ip", "10.9.8.7"),
    ("x-client-ip", "10.9.8.7"),
    ("true-client-ip", "10.9.8.7"),
    ("cf-connecting-ip", "10.9.8.7"),
    ("fastly-client-ip", "10.9.8.7"),
    ("x-cluster-client-ip", "10.9.8.7"),
    ("x-envoy-external-address", "10.9.8.7"),
    ("x-proxyuser-ip", "10.9.8.7"),
    ("client-ip", "10.9.8.7"),
    ("x-remote-addr", "10.9.8.7"),
    ("x-originating-ip", "10.9.8.7"),
    ("forwarded-for", "10.9.8.7"),
    ("x-forwarded", "10.9.8.7"),
    ("x-forwarded-host", "evil"),
    ("x-forwarded-port", "1"),
    ("x-forwarded-prefix", "/evil"),
    ("x-forwarded-server", "evil"),
    ("x-forwarded-scheme", "gopher"),
    ("x-forwarded-ssl", "on"),
    ("x-forwarded-uri", "/evil"),
    ("x-forwarded-made-up", "evil"),
];

/// What no client may send, trusted or not.
const URLS: [(&str, &str); 5] = [
    ("x-original-url", "/tools/realtime"),
    ("x-rewrite-url", "/tools/realtime"),
    ("x-original-uri", "/tools/realtime"),
    ("x-original-host", "evil"),
    ("x-original-method", "DELETE"),
];

fn scene(config: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", "73469a52f4fd7f77ec7b28cc");
    let gateway = Gateway::with(&origin, config);
    (origin, gateway)
}

#[test]
fn address_fields_pass_from_trusted_proxies_only() {
    for trusted in [false, true] {
        let networks = if trusted { r#"["::ffff:127.0.0.0/104"]"# } else { "[]" };
        let (origin, gateway) = scene(&format!("server.trusted_proxies = {networks}"));
        let fields: Vec<(&str, &str)> = CLAIMS.into_iter().chain(URLS).collect();
        for path in [PLAIN, REDACTED] {
            let mut call = gateway.client().get(path).bearer("tok-a");
            for (name, value) in &fields {
                call = call.header(name, value);
            }
            call.send().assert_status(200);
            let over_http1 = origin.last(path).expect("it was forwarded").header_names();
            let with_token: Vec<(&str, &str)> =
                fields.iter().copied().chain([("authorization", "Bearer tok-a")]).collect();
            let http2 = Http2::connect(&gateway.client());
            http2.call("GET", path, &with_token, b"").expect("an answer").assert_status(200);
            let over_http2 = origin.last(path).expect("it was forwarded").header_names();
            for names in [over_http1, over_http2] {
                let has = |name: &str| names.iter().any(|sent| sent.eq_ignore_ascii_case(name));
                for (name, _) in CLAIMS {
                    assert_eq!(has(name), trusted, "{name}, {path}, trusted: {trusted}");
                }
                for (name, _) in URLS {
                    assert!(!has(name), "{name}, {path}, trusted: {trusted}");
                }
                assert!(has("x-forwarded-for") && has("x-forwarded-proto"), "{names:?}");
            }
        }
    }
}

#[test]
fn empty_members_of_x_forwarded_for_are_skipped() {
    let (origin, gateway) = scene("");
    for path in [PLAIN, REDACTED] {
        for value in
            ["198.51.100.7, ", ", 198.51.100.7", "203.0.113.9,,198.51.100.7", "198.51.100.7,\t,"]
        {
            gateway
                .client()
                .get(path)
                .bearer("tok-a")
                .header("X-Forwarded-For", value)
                .send()
                .assert_status(200);
            let seen = origin.last(path).expect("it was forwarded");
            let sent = seen.header("x-forwarded-for").expect("addresses");
            assert!(
                sent.ends_with("198.51.100.7, 127.0.0.1") && !sent.contains(", ,"),
                "{value:?}: {sent:?}"
            );
        }
    }
    // The address of a validation is the client's.
    let validated = origin.seen().into_iter().find(|seen| seen.path() == "/auth/validateToken");
    assert_eq!(validated.expect("a validation").query("ip").as_deref(), Some("198.51.100.7"));
}

#[test]
fn via_states_the_version_that_was_received() {
    let (origin, gateway) = scene("");
    for path in [PLAIN, REDACTED] {
        let via = || origin.last(path).expect("it was forwarded").header("via").map(str::to_owned);
        let mut connection = gateway.client().connect();
        connection.send_raw(format!(
            "GET {path} HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer tok-a\r\n\r\n"
        ));
        connection.rest();
        assert_eq!(via().as_deref(), Some("1.0 telecomx-gateway"));
        gateway.client().get(path).bearer("tok-a").send().assert_status(200);
        assert_eq!(via().as_deref(), Some("1.1 telecomx-gateway"));
        Http2::connect(&gateway.client()).get(path, "tok-a").assert_status(200);
        assert_eq!(via().as_deref(), Some("2 telecomx-gateway"));
    }
}

#[test]
fn cookies_of_http2_reach_the_api_as_one_field() {
    let (origin, gateway) = scene("");
    let http2 = Http2::connect(&gateway.client());
    for path in [PLAIN, REDACTED] {
        let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("x-other", "1"), ("cookie", "c=3")];
        http2.call("GET", path, &fields, b"").expect("an answer").assert_status(200);
        let seen = origin.last(path).expect("it was forwarded");
        assert_eq!(seen.header("cookie"), Some("a=1; b=2; c=3"), "{path}");
        assert_eq!(
            seen.header_names().iter().filter(|name| *name == "cookie").count(),
            1,
            "{path}"
        );
        // Several fields over HTTP/1.1 join as well.
        let call = gateway.client().get(path).header("Cookie", "a=1; b=2").header("Cookie", "c=3");
        call.send().assert_status(200);
        assert_eq!(
            origin.last(path).expect("it was forwarded").header("cookie"),
            Some("a=1; b=2; c=3"),
            "{path}"
        );
    }
}

#[test]
fn token_is_found_in_any_cookie_field() {
    let (_origin, gateway) = scene("identity.cookie = \"token\"");
    let http2 = Http2::connect(&gateway.client());
    for at in 0..3 {
        let mut fields = vec![("cookie", "a=1"), ("cookie", "b=2"), ("x-other", "1")];
        fields.insert(at, ("cookie", "token=tok-a"));
        http2.call("GET", NAME, &fields, b"").expect("an answer").assert_status(200);
    }
}

#[test]
fn http2_requests_become_http1_requests() {
    let (origin, gateway) = scene("");
    let http2 = Http2::connect(&gateway.client());
    for path in [PLAIN, REDACTED] {
        // RFC 9113 section 8.2.2: the one field of a connection that HTTP/2 has.
        http2.call("GET", path, &[("te", "trailers")], b"").expect("an answer").assert_status(200);
        let seen = origin.last(path).expect("it was forwarded");
        assert_eq!(seen.header("te"), None, "{seen:#?}");
        assert_eq!(seen.header("host"), Some(origin.address().to_string().as_str()));
        assert_eq!(
            (seen.header("transfer-encoding"), seen.header("content-length")),
            (None, None),
            "{seen:#?}"
        );
        // A body without a length has a coding, and its end.
        http2.call("POST", path, &[], b"body").expect("an answer").assert_status(200);
        let seen = origin.last(path).expect("it was forwarded");
        assert_eq!(
            (seen.header("transfer-encoding"), seen.body.as_slice()),
            (Some("chunked"), &b"body"[..])
        );
        http2
            .call("POST", path, &[("content-length", "4")], b"body")
            .expect("an answer")
            .assert_status(200);
        let seen = origin.last(path).expect("it was forwarded");
        assert_eq!(
            (seen.header("content-length"), seen.body.as_slice()),
            (Some("4"), &b"body"[..])
        );
    }
}

#[test]
fn request_ids_reveal_no_number_of_requests() {
    let (_origin, gateway) = scene("");
    let mut connection = gateway.client().connect();
    let ids: Vec<u128> = (0..1000)
        .map(|_| {
            let response = gateway.client().get("/livez").send_on(&mut connection);
            u128::from_str_radix(response.header("x-request-id").expect("an id"), 16)
                .expect("hexadecimal digits")
        })
        .collect();
    let differences: std::collections::HashSet<u128> =
        ids.windows(2).map(|pair| pair[0].abs_diff(pair[1])).collect();
    assert_eq!(differences.len(), 999);
    assert!(differences.iter().all(|difference| *difference > 1 << 64), "{differences:?}");
}
