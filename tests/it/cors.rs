//! CORS fields of responses that the gateway makes itself: on every route, for every error, over
//! both protocols.

use crate::support::*;

const APP: &str = "https://app.example";
const DUCK: &str = "73469a52f4fd7f77ec7b28cc";
const NAME: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const REDACTED: &str = "/customer/list";
const LISTED: &str = r#"cors.allowed_origins = ["https://app.example"]"#;

fn scene(config: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, &format!("{LISTED}\n{config}"));
    (origin, gateway)
}

/// Asserts that a page of the listed origin can read this response and every field that the gateway
/// sets.
#[track_caller]
fn assert_readable(response: &Response) {
    assert_eq!(response.all("access-control-allow-origin"), [APP], "{response:#?}");
    assert_eq!(response.all("access-control-allow-credentials"), ["true"], "{response:#?}");
    assert!(response.header("vary").is_some_and(|vary| vary.contains("Origin")), "{response:#?}");
    let exposed =
        response.header("access-control-expose-headers").unwrap_or_default().to_ascii_lowercase();
    let exposed: Vec<&str> = exposed.split(", ").collect();
    assert!(exposed.contains(&"retry-after") && exposed.contains(&"x-request-id"), "{exposed:?}");
    let safelisted = [
        "cache-control",
        "content-language",
        "content-length",
        "content-type",
        "expires",
        "connection",
    ];
    for (name, _) in &response.headers {
        let name = name.to_ascii_lowercase();
        let readable = exposed.contains(&name.as_str()) || safelisted.contains(&name.as_str());
        assert!(
            readable || name.starts_with("access-control-"),
            "{name} is not exposed: {response:#?}"
        );
    }
}

#[track_caller]
fn assert_unreadable(response: &Response) {
    let granted = response
        .headers
        .iter()
        .find(|(name, _)| name.to_ascii_lowercase().starts_with("access-control-"));
    assert_eq!(granted, None, "{response:#?}");
}

#[test]
fn errors_of_every_route_carry_cors_fields() {
    let (origin, gateway) = scene("upstream.timeout = \"300ms\"");
    origin.when(Rule::on("/customer/bad").answer(Answer::json("{\"integrations\": ")));
    let never = Gate::closed();
    origin.when(Rule::on(&format!("/customer/{}", "0".repeat(24))).hold(&never));
    let slow = format!("/customer/{}/name", "0".repeat(24));
    let requests = [
        ("GET", NAME, "", 401),
        ("GET", slow.as_str(), "tok-a", 504),
        ("GET", "/tools/realtime", "tok-a", 403),
        ("GET", "/customer//x", "tok-a", 400),
        ("GET", "/customer/bad", "tok-a", 502),
    ];
    let http2 = Http2::connect(&gateway.client());
    let check = |method: &str, target: &str, token: &str, status: u16| {
        for (page, readable) in [(APP, true), ("https://evil.example", false)] {
            let bearer = format!("Bearer {token}");
            let mut fields = vec![("origin", page)];
            fields.extend((!token.is_empty()).then_some(("authorization", bearer.as_str())));
            let mut call = gateway.client().call(method, target).kind(Kind::Intercepted);
            for (name, value) in &fields {
                call = call.header(name, value);
            }
            let responses =
                [call.send(), http2.call(method, target, &fields, b"").expect("an answer")];
            for response in responses {
                response.assert_status(status);
                if readable { assert_readable(&response) } else { assert_unreadable(&response) }
            }
        }
    };
    for (method, target, token, status) in requests {
        check(method, target, token, status);
    }
    // An API that cannot be reached.
    origin.stop();
    check("GET", "/elsewhere", "tok-a", 502);
    check("POST", REDACTED, "tok-a", 502);
}

#[test]
fn errors_of_the_connection_layer_carry_cors_fields() {
    let (_origin, gateway) = scene("server.max_header_bytes = \"1KiB\"");
    let long = "x".repeat(2000);
    for (head, status) in [
        (
            "GET /x HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            400,
        ),
        ("GET /x#y HTTP/1.1\r\nHost: a\r\norigin:{origin}\r\n\r\n", 400),
        ("GET /x HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\nX: {long}\r\n\r\n", 431),
        ("GET /x HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\nX: {long}", 431),
        ("TRACE /x HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\n\r\n", 405),
    ] {
        for (page, readable) in [(APP, true), ("https://evil.example", false)] {
            let mut connection = gateway.client().connect();
            connection.send_raw(head.replace("{origin}", page).replace("{long}", &long));
            let response = connection.read("GET", Kind::Intercepted).expect("an answer");
            response.assert_status(status);
            if readable { assert_readable(&response) } else { assert_unreadable(&response) }
        }
    }
}

#[test]
fn errors_of_refused_http2_heads_carry_cors_fields() {
    let (_origin, gateway) = scene("");
    let many: Vec<String> = (0..101).map(|number| format!("x-{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
    let long = "A".repeat(33);
    for (page, readable) in [(APP, true), ("https://evil.example", false)] {
        let connection = Http2::connect(&gateway.client());
        for (method, fields, status) in [
            ("GET", &[("host", "other.example")][..], 400),
            ("GET", &many[..], 431),
            ("GET", &[("x_api_key", "1")][..], 400),
            ("TRACE", &[][..], 405),
            (long.as_str(), &[][..], 501),
        ] {
            let fields = [fields, &[("origin", page)]].concat();
            let response = connection.call(method, "/x", &fields, b"").expect("a response");
            response.assert_status(status);
            if readable { assert_readable(&response) } else { assert_unreadable(&response) }
        }
    }
}

#[test]
fn error_of_a_cleartext_request_to_tls_carries_cors_fields() {
    let origin = Origin::start();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let setup = Gateway::set_up(&origin).file("c.pem", &certificate).file("k.pem", &key);
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/c.pem", key_file = "{dir}/k.pem" }"#;
    let gateway = setup.config(&format!("{LISTED}\n{tls}")).start();
    let client = gateway.client_of(gateway.tls_address());
    for (page, readable) in [(APP, true), ("https://evil.example", false)] {
        let mut connection = client.connect();
        connection.send_raw(format!("GET /x HTTP/1.1\r\nHost: a\r\nOrigin: {page}\r\n\r\n"));
        let response = connection.read("GET", Kind::Intercepted).expect("a response");
        response.assert_status(400);
        if readable { assert_readable(&response) } else { assert_unreadable(&response) }
    }
}

#[test]
fn too_many_connections_are_readable_on_both_protocols() {
    let (_origin, gateway) = scene("server.max_connections = 2");
    let client = gateway.client();
    let mut held = [client.connect(), client.connect()];
    for connection in &mut held {
        client.get("/x").send_on(connection).assert_status(200);
    }
    let refused = client.get(NAME).header("Origin", APP).send();
    assert_readable(refused.assert_error(503, "unavailable"));
    assert!(refused.header("retry-after").is_some());
    let refused =
        Http2::connect(&client).call("GET", NAME, &[("origin", APP)], b"").expect("an answer");
    assert_readable(refused.assert_error(503, "unavailable"));
    assert!(refused.header("x-request-id").is_some());
    gateway.wait_for_metric("requests_total", &[("status", "503"), ("route", "none")], 2.0);
}

#[test]
fn preflights_permit_the_requested_fields() {
    let (origin, gateway) = scene("");
    let requested =
        "authorization,content-type, sentry-trace,baggage,x-requested-with,X-CSRF-Token,x-made-up";
    let fields = |page| {
        [
            ("origin", page),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", requested),
        ]
    };
    for path in [NAME, "/tools/realtime", "/customer//x"] {
        let preflight = |page| {
            let mut call = gateway.client().call("OPTIONS", path).kind(Kind::Intercepted);
            for (name, value) in fields(page) {
                call = call.header(name, value);
            }
            let http2 = Http2::connect(&gateway.client());
            [call.send(), http2.call("OPTIONS", path, &fields(page), b"").expect("an answer")]
        };
        for response in preflight(APP) {
            assert_eq!(
                response.assert_status(204).header("access-control-allow-origin"),
                Some(APP)
            );
            let permitted = response
                .header("access-control-allow-headers")
                .expect("names")
                .to_ascii_lowercase();
            let permitted: Vec<&str> = permitted.split(", ").collect();
            for name in requested.to_ascii_lowercase().split(',') {
                assert!(permitted.contains(&name.trim()), "{name} is not in {permitted:?}");
            }
            assert_eq!(response.header("access-control-max-age"), Some("7200"));
        }
        for response in preflight("https://evil.example") {
            assert_unreadable(&response);
        }
    }
    assert_eq!(origin.count(|seen| seen.method == "OPTIONS"), 0);
    gateway.client().get("/tools/realtime").send().assert_error(403, "access_denied");
}

#[test]
fn max_age_of_a_preflight_is_configured() {
    let (_origin, gateway) = scene("cors.max_age = \"90s\"");
    let call = gateway.client().call("OPTIONS", NAME).kind(Kind::Intercepted).header("Origin", APP);
    let response = call.header("Access-Control-Request-Method", "GET").send();
    assert_eq!(response.assert_status(204).header("access-control-max-age"), Some("90"));
}

#[test]
fn responses_of_the_api_keep_their_own_cors_fields() {
    let (origin, gateway) = scene("");
    let own = |status| {
        Answer::json("{}")
            .status(status)
            .header("Access-Control-Allow-Origin", "https://other.example")
    };
    for status in [200, 403, 500] {
        for path in ["/elsewhere", REDACTED] {
            origin.when(Rule::on(path).answer(own(status)));
            let response = gateway.client().get(path).bearer("tok-a").header("Origin", APP).send();
            assert_eq!(
                response.assert_status(status).all("access-control-allow-origin"),
                ["https://other.example"]
            );
        }
    }
}

const PAGES: [&str; 2] = ["https://a.example", "https://b.example"];

/// CORS of an API in front of which the gateway has no `[cors]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApiCors {
    /// `*` on every response.
    Star,
    /// The request's origin, with credentials.
    Reflected,
    /// As `Reflected`, for the first page only.
    FirstPage,
}

impl ApiCors {
    fn add(self, seen: &Seen, answer: Answer) -> Answer {
        let origin = seen.header("origin").unwrap_or_default();
        match self {
            ApiCors::Star => answer.header("Access-Control-Allow-Origin", "*"),
            ApiCors::FirstPage if origin != PAGES[0] => answer,
            _ if origin.is_empty() => answer,
            _ => answer
                .header("Access-Control-Allow-Origin", origin)
                .header("Access-Control-Allow-Credentials", "true")
                .header("Vary", "Origin"),
        }
    }

    #[track_caller]
    fn assert_granted(self, response: &Response, page: &str) {
        let allowed = response.all("access-control-allow-origin");
        let vary = response.header("vary").unwrap_or_default();
        match self {
            ApiCors::Star => assert_eq!(allowed, ["*"], "{page}: {response:#?}"),
            ApiCors::FirstPage if page != PAGES[0] => assert_unreadable(response),
            _ => {
                assert_eq!(allowed, [page], "{response:#?}");
                assert_eq!(
                    response.all("access-control-allow-credentials"),
                    ["true"],
                    "{response:#?}"
                );
                assert!(vary.contains("Origin"), "{response:#?}");
            }
        }
    }
}

/// A stand-in with these CORS fields on every response, errors included, and a gateway without
/// `[cors]`.
fn api_with_cors(cors: ApiCors) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.when(Rule::on("/").made(move |seen| {
        let valid = format!(
            r#"{{"success":true,"employee":"{}","accessLevel":"VIEWER"}}"#,
            employee_of("tok-a")
        );
        let answer = match (seen.path(), seen.token().as_deref(), seen.query("token").as_deref()) {
            ("/auth/validateToken", _, Some("tok-a")) => Answer::json(valid),
            ("/auth/validateToken", ..) => Answer::json(r#"{"success":false}"#),
            (path, ..) if path == name_of(OTHER) => Answer::error(404, "customer"),
            (path, ..) if path == name_of(THIRD) => {
                Answer::new(500).header("Content-Type", "text/html").body("<html>")
            }
            (_, Some("tok-a"), _) => Answer::json(upstream_document(DUCK)).header("ETag", "\"v1\""),
            _ => Answer::error(401, "invalid_token"),
        };
        cors.add(seen, answer)
    }));
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

/// Sends a request of a page on the fast path, on the ordinary path and over HTTP/2.
fn on_every_path(
    gateway: &Gateway,
    target: &str,
    page: &str,
    fields: &[(&str, &str)],
) -> [Response; 3] {
    let all: Vec<_> = fields.iter().copied().chain([("origin", page)]).collect();
    let call = |call: Call| all.iter().fold(call, |call, (name, value)| call.header(name, value));
    let ordinary = (0..5)
        .fold(gateway.client().get(target), |call, _| call.header("X-Forwarded-For", "192.0.2.1"));
    let http2 =
        Http2::connect(&gateway.client()).call("GET", target, &all, b"").expect("a response");
    [call(gateway.client().get(target)).send(), call(ordinary).send(), http2]
}

#[test]
fn cors_fields_of_the_api_pass_without_own_cors() {
    for cors in [ApiCors::Star, ApiCors::Reflected, ApiCors::FirstPage] {
        let (origin, gateway) = api_with_cors(cors);
        let bearer = ("authorization", "Bearer tok-a");
        for (at, page) in PAGES.into_iter().enumerate() {
            let first = gateway.client().get(NAME).bearer("tok-a").header("Origin", page).send();
            cors.assert_granted(first.assert_status(200), page);
            // An entry for every origin serves each page.
            assert_eq!(
                first.is_hit(),
                cors == ApiCors::Star && at > 0,
                "{cors:?} {page}: {first:#?}"
            );
            let fetches = origin.fetches(DUCK);
            for hit in on_every_path(&gateway, NAME, page, &[bearer]) {
                cors.assert_granted(hit.assert_status(200), page);
                assert!(hit.is_hit(), "{hit:#?}");
            }
            let etag = first.header("etag").expect("an ETag").to_owned();
            for unchanged in
                on_every_path(&gateway, NAME, page, &[bearer, ("if-none-match", &etag)])
            {
                cors.assert_granted(unchanged.assert_status(304), page);
            }
            assert_eq!(origin.fetches(DUCK), fetches);
            for bypass in on_every_path(&gateway, &format!("{NAME}?x=1"), page, &[bearer]) {
                cors.assert_granted(bypass.assert_status(200), page);
            }
            for (target, status) in [(name_of(OTHER), 404), (name_of(THIRD), 500)] {
                for error in on_every_path(&gateway, &target, page, &[bearer]) {
                    cors.assert_granted(error.assert_status(status), page);
                }
            }
            // The gateway makes this error, without a request to the route.
            for error in on_every_path(&gateway, NAME, page, &[]) {
                cors.assert_granted(error.assert_error(401, "credentials_invalid"), page);
            }
            for error in
                on_every_path(&gateway, NAME, page, &[("authorization", "Bearer tok-unknown")])
            {
                cors.assert_granted(error.assert_error(401, "invalid_token"), page);
            }
        }
        let fetched = origin.fetched(DUCK);
        assert!(
            fetched
                .iter()
                .all(|seen| seen.header("origin").is_some_and(|origin| PAGES.contains(&origin)))
        );
        if cors == ApiCors::Reflected {
            let without = gateway.client().get(NAME).bearer("tok-a").send();
            assert_unreadable(without.assert_status(200));
        }
    }
}

#[test]
fn response_of_an_api_without_cors_serves_every_origin() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(NAME).bearer("tok-a").header("Origin", PAGES[0]).send().assert_status(200);
    for page in ["", PAGES[0], PAGES[1]] {
        let response = gateway.client().get(NAME).bearer("tok-a").header("Origin", page).send();
        assert_unreadable(&response);
        assert!(response.is_hit(), "{response:#?}");
    }
    // From the first response for one origin on, none without CORS fields serves a page.
    for (path, body) in [("/elsewhere", "{}".to_owned()), ("/customer/", upstream_document(DUCK))] {
        origin.when(
            Rule::on(path)
                .made(move |seen| ApiCors::Reflected.add(seen, Answer::json(body.as_str()))),
        );
    }
    gateway.client().get("/elsewhere").header("Origin", PAGES[0]).send().assert_status(200);
    for page in PAGES {
        wait_until("the page can read the name", || {
            let response = gateway.client().get(NAME).bearer("tok-a").header("Origin", page).send();
            response.all("access-control-allow-origin") == [page]
        });
    }
}

#[test]
fn unknown_token_of_a_page_gets_the_cors_fields_of_the_validation() {
    for cors in [ApiCors::Star, ApiCors::Reflected] {
        let (_origin, gateway) = api_with_cors(cors);
        for (page, token) in PAGES.into_iter().zip(["tok-one", "tok-two"]) {
            let response = gateway.client().get(NAME).bearer(token).header("Origin", page).send();
            cors.assert_granted(response.assert_error(401, "invalid_token"), page);
        }
    }
}

#[test]
fn forwarded_preflight_grants_the_errors_of_its_page() {
    let origin = Origin::start();
    origin.when(
        Rule::on("/").made(|seen| ApiCors::Reflected.add(seen, Answer::new(204))).method("OPTIONS"),
    );
    let gateway = Gateway::start(&origin);
    let [page, other] = PAGES;
    let preflight = gateway.client().call("OPTIONS", NAME).header("Origin", page);
    let preflight = preflight.header("Access-Control-Request-Method", "GET").send();
    assert_eq!(preflight.assert_status(204).all("access-control-allow-origin"), [page]);
    let error = gateway.client().get(NAME).header("Origin", page).send();
    ApiCors::Reflected.assert_granted(error.assert_error(401, "credentials_invalid"), page);
    let error = gateway.client().get(NAME).header("Origin", other).send();
    assert_unreadable(error.assert_error(401, "credentials_invalid"));
}

#[test]
fn origin_is_not_sent_to_the_api_with_own_cors() {
    let (origin, gateway) = scene("");
    assert_readable(
        gateway.client().get(NAME).bearer("tok-a").header("Origin", APP).send().assert_status(200),
    );
    assert!(origin.fetched(DUCK).iter().all(|seen| seen.header("origin").is_none()));
}

#[test]
fn listed_fields_of_the_api_are_exposed_to_pages() {
    let (origin, gateway) = scene("");
    let error = Answer::error(503, "down")
        .header("Link", "</a>")
        .header("RateLimit", "1")
        .header("Retry-After", "3");
    origin.when(Rule::on(NAME).answer(error));
    let response = gateway.client().get(NAME).bearer("tok-a").header("Origin", APP).send();
    assert_readable(response.assert_status(503));
    for name in ["link", "ratelimit", "retry-after"] {
        assert!(response.header(name).is_some(), "{name}: {response:#?}");
    }
}
