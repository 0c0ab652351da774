//! The fast path serves the same responses as the ordinary path, byte for byte, with the same
//! metrics and log lines.

use std::time::Instant;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const PLAIN: &str = "Host: gateway\r\nAuthorization: Bearer tok-a\r\n";

/// A gateway with the fast path and one without, in front of the same API.
struct Both {
    origin: Origin,
    with: Gateway,
    without: Gateway,
}

impl Both {
    fn start(config: &str) -> Both {
        let origin = Origin::start();
        origin.knows("tok-a", "VIEWER", DUCK);
        let with = Gateway::with(&origin, config);
        let without = Gateway::with(&origin, &format!("server.fast_path = false\n{config}"));
        Both { origin, with, without }
    }

    /// Sends these bytes to both gateways, each on a new connection, and compares the responses.
    /// Returns whether the fast path served the request.
    fn send(&self, bytes: &[u8]) -> bool {
        let before = self.with.metric("fast_path_hits_total", &[]);
        let [with, without] = [&self.with, &self.without].map(|gateway| {
            let mut connection = gateway.client().connect();
            connection.send_raw(bytes);
            connection.end_of_sending();
            settled(&connection.rest())
        });
        assert_eq!(with, without, "{:?}", String::from_utf8_lossy(bytes));
        assert_eq!(self.without.metric("fast_path_hits_total", &[]), 0.0);
        self.with.metric("fast_path_hits_total", &[]) > before
    }

    fn plain(&self, fields: &str) -> bool {
        self.send(format!("GET {P} HTTP/1.1\r\n{PLAIN}{fields}\r\n").as_bytes())
    }
}

/// Without what the clock and the process decide.
fn settled(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let ttl = |line: &str| line.split_once("ttl=").map(|(before, _)| format!("{before}ttl="));
    let line = |line: &str| match line.split_once(':') {
        Some(("Age" | "Date", _)) => line.split(':').next().unwrap_or_default().to_owned(),
        // Ids that the gateway made: 32 digits.
        Some(("x-request-id", id)) if id.trim().len() == 32 => "x-request-id".to_owned(),
        Some(("cache-status", _)) => ttl(line).unwrap_or_else(|| line.to_owned()),
        _ => line.to_owned(),
    };
    without_request_id(&text.split("\r\n").map(line).collect::<Vec<_>>().join("\r\n"))
}

/// The lines of one kind of log entry or metric, without what the clock and the process decide.
fn access_lines(gateway: &Gateway) -> Vec<String> {
    let log = gateway.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let access =
        lines.filter(|line| line["target"] == "telecomx_gateway::access").map(|mut line| {
            for unsettled in ["timestamp", "duration_us", "http.request.id"] {
                assert!(
                    line.as_object_mut().expect("an object").remove(unsettled).is_some(),
                    "{unsettled}: {line}"
                );
            }
            // Random, where the request has a trace, and absent, where the API was not asked.
            for unsettled in ["span_id", "api.duration_us"] {
                line.as_object_mut().expect("an object").remove(unsettled);
            }
            line.to_string()
        });
    access.collect()
}

fn counters(gateway: &Gateway) -> Vec<String> {
    let counted = ["requests_total{", "request_duration_seconds_count{", "identity_lookups_total{"];
    let is_counted = |line: &&str| {
        line.strip_prefix("telecomx_gateway_")
            .is_some_and(|rest| counted.iter().any(|name| rest.starts_with(name)))
    };
    gateway.metrics().lines().filter(is_counted).map(str::to_owned).collect()
}

#[test]
fn request_gets_the_same_response_on_both_paths() {
    let both = Both::start("");
    let etag = both
        .with
        .client()
        .get(P)
        .bearer("tok-a")
        .send()
        .header("etag")
        .expect("an ETag")
        .to_owned();
    both.without.client().get(P).bearer("tok-a").send().assert_status(200);
    assert!(both.plain(""), "a plain hit is answered in the fast path");
    for taken in [
        "Accept: */*\r\nUser-Agent: curl/8.5.0\r\nConnection: keep-alive\r\n",
        "X-Request-Id: abc-1\r\n",
        "X-Request-Id: holds-tok-a-\r\n",
        "X-Request-Id: no id\r\n",
        "X-Request-Id:\r\n",
        "If-None-Match: \"other\"\r\n",
        "If-None-Match: *\r\n",
        &format!("If-None-Match: {etag}\r\n"),
        &format!("If-None-Match: \"a\", W/{etag}\r\n"),
        "If-None-Match: nonsense\r\n",
        "X-Forwarded-Proto: https\r\nX-Real-IP: 198.51.100.7\r\nForwarded: for=198.51.100.7\r\n",
        "Accept: \u{e6}\r\n",
        "Cookie: token=tok-b\r\n",
        "Cookie: _ga=1; theme=dark\r\nOrigin: https://page.example\r\n",
        "Origin: https://page.example\r\n",
        "X-HTTP-Method-Override: DELETE\r\n",
        "Anything: else\r\n",
        "X-Forwarded-Scheme: https\r\nX-Forwarded-Server: a\r\nX-Amzn-Trace-Id: Root=1-67-1\r\n",
        "CF-Ray: 1\r\nCF-Connecting-IP: 198.51.100.7\r\nCDN-Loop: cloudflare\r\nx-envoy-attempt-count: 1\r\n",
        "Content-Type: application/json\r\nX-Requested-With: fetch\r\nSec-GPC: 1\r\n",
        "Sec-Fetch-Mode: navigate\r\nSec-CH-UA: \"x\"\r\nReferer: https://a/b?c\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive, te\r\nTE: trailers\r\n",
        "Content-Length: 0\r\n",
        "Cookie: a=b\r\nCookie: c=d\r\n",
        "Expect: 100-continue\r\n",
        "Host2: a\r\nRange: bytes=0-3\r\nIf-Range: \"x\"\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "X-API-Key: tok-b\r\n",
        "X-Request-Id: abc\r\nCookie: token=tok-b\r\n",
        "X-Request-Id: with-tok-b\r\nCookie: token=tok-b\r\n",
        "Cache-Control: only-if-cached\r\n",
        "Cache-Control: max-stale=5\r\n",
        "Cache-Control: max-age=30\r\nPragma: no-cache\r\n",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=b\r\n",
        "traceparent: nonsense\r\nbaggage: a=b\r\nsentry-trace: 1\r\n",
    ] {
        assert!(both.plain(taken), "{taken:?}");
    }
    for credential in [
        "X-API-Key: tok-a",
        "authorization: bearer tok-a",
        "Authorization: Bearer  tok-a",
        "Cookie: _ga=1; token=tok-a",
        "Cookie: _ga=1\r\nCookie: token=%74ok-a",
        "X-API-Key:\r\nCookie: token=\"tok-a\"",
    ] {
        let head = format!(
            "GET {P} HTTP/1.1\r\nHost: gateway\r\n{credential}\r\nOrigin: https://a\r\n\r\n"
        );
        assert!(both.send(head.as_bytes()), "{credential}");
    }
    for (token, field) in
        [("tok-a", "198.51.100.7"), ("tok-a", "198.51.100.8, 127.0.0.1"), ("tok-a", "nonsense")]
    {
        let field = format!("X-Forwarded-For: {field}\r\nX-Forwarded-For: 127.0.0.1\r\n");
        both.plain(&field);
        assert!(both.plain(&field), "{token} {field:?}");
    }
    for declined in [
        "Connection: Authorization\r\n",
        "Origin: https://page.example\r\nOrigin: https://page.example\r\n",
        "Authorization: Bearer tok-a\r\n",
        "Authorization: Bearer tok-b\r\n",
        "Host: gateway\r\n",
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n",
        "Content_Length: 5\r\n",
        "Pragma: no-cache\r\n",
        "Accept: a\r\n folded\r\n",
        "Accept : a\r\n",
        "Accept: a\nX: b\r\n",
        "Accept: \0\r\n",
        "\r\nGET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\nHost: gateway\r\n",
    ] {
        assert!(!both.plain(declined), "{declined:?}");
    }
    for (line, fields) in [
        (format!("GET {P}/ HTTP/1.1"), PLAIN),
        (format!("GET {P}#a HTTP/1.1"), PLAIN),
        (format!("GET http://gateway{P} HTTP/1.1"), PLAIN),
        (format!("GET http://evil{P} HTTP/1.1"), PLAIN),
        (format!("GET /customer/{DUCK}/Name HTTP/1.1"), PLAIN),
        (format!("GET /customer/{DUCK}/%6eame HTTP/1.1"), PLAIN),
        (format!("GET {P} HTTP/1.1"), "Host: gateway\r\n"),
        (format!("GET {P} HTTP/1.1"), "Authorization: Bearer tok-a\r\n"),
        (format!("GET {P} HTTP/1.1"), "Host: gate way\r\nAuthorization: Bearer tok-a\r\n"),
        (format!("GET {P} HTTP/1.1"), "Host: gateway\r\nAuthorization: Basic tok-a\r\n"),
        (format!("GET {P} HTTP/1.1"), "Host: gateway\r\nAuthorization: Bearer tok a\r\n"),
        (format!("GET {P} HTTP/1.1"), "Host: gateway\r\nAuthorization: Bearer tok-unknown\r\n"),
        (format!("GET {P} HTTP/1.1\nHost: gateway"), "Authorization: Bearer tok-a\r\n"),
    ] {
        assert!(!both.send(format!("{line}\r\n{fields}\r\n").as_bytes()), "{line:?} {fields:?}");
    }
    for (line, fields) in [
        (format!("HEAD {P} HTTP/1.1"), PLAIN),
        (format!("GET {P} HTTP/1.0"), PLAIN),
        (format!("GET {P} HTTP/1.0\r\nConnection: keep-alive"), PLAIN),
        (format!("GET {P} HTTP/1.0"), "Authorization: Bearer tok-a\r\n"),
        (format!("GET {P}? HTTP/1.1"), PLAIN),
        (format!("GET {P}?token=tok-a HTTP/1.1"), "Host: gateway\r\n"),
        (format!("GET {P}?token=tok%2Da HTTP/1.1"), "Host: gateway\r\nCookie: token=tok-b\r\n"),
        (format!("GET {P}?token=tok-b HTTP/1.1"), PLAIN),
    ] {
        assert!(both.send(format!("{line}\r\n{fields}\r\n").as_bytes()), "{line:?} {fields:?}");
    }
    let upper = format!("GET /customer/{}/name HTTP/1.1\r\n{PLAIN}\r\n", DUCK.to_uppercase());
    assert!(both.send(upper.as_bytes()), "ids in either letter case");
    assert!(
        both.send(format!("\r\nGET {P} HTTP/1.1\r\n{PLAIN}\r\n").as_bytes()),
        "an empty line in front"
    );
    both.origin.document(DUCK, Answer::json("{}").status(404));
    for gateway in [&both.with, &both.without] {
        gateway.admin().delete("/cache").send().assert_status(200);
    }
    both.plain("");
    assert!(both.plain(""), "a stored 404 is a hit too");

    assert_eq!(counters(&both.with), counters(&both.without));
    let [count, other] = [&both.with, &both.without].map(|gateway| counters(gateway).len());
    assert!(count > 5 && count == other, "they were counted at all");
    wait_until("both logs are whole", || {
        access_lines(&both.with).len() == access_lines(&both.without).len()
    });
    assert_eq!(access_lines(&both.with), access_lines(&both.without));
}

#[test]
fn head_at_the_size_limit_has_the_same_verdict_on_both_paths() {
    let both = Both::start("server.max_header_bytes = \"1KiB\"");
    both.plain("");
    let mut taken = 0;
    for size in (700..1100).step_by(7) {
        // A field without its blank is longer by pingora's count than by ours.
        taken += usize::from(both.plain(&format!("Accept:{}\r\n", "x".repeat(size))));
    }
    assert!(taken > 0, "some are below the limit");
}

#[test]
fn cors_fields_are_the_same_on_both_paths() {
    let both = Both::start("cors.allowed_origins = [\"https://page.example\"]");
    both.plain("");
    assert!(both.plain(""), "without an origin");
    for origin in ["https://page.example", "https://other.example"] {
        assert!(both.plain(&format!("Origin: {origin}\r\n")), "{origin}");
    }
}

#[test]
fn connection_alternates_between_both_paths() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let mut connection = client.connect();
    for _ in 0..3 {
        let hit = client.get(P).bearer("tok-a").send_on(&mut connection);
        assert_eq!(hit.assert_status(200).text(), redacted_document(DUCK));
        let forwarded = client.post("/elsewhere").body("a body").send_on(&mut connection);
        assert_eq!(forwarded.assert_status(200).json()["target"], "/elsewhere");
        client.get(P).send_on(&mut connection).assert_error(401, "credentials_invalid");
        client.head(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
    }
    // The first GET was a miss; each HEAD was a hit.
    gateway.wait_for_metric("fast_path_hits_total", &[], 5.0);
}

#[test]
fn preflight_has_the_same_response_on_both_paths() {
    for config in ["cors.allowed_origins = [\"https://page.example\"]", ""] {
        let both = Both::start(config);
        for fields in [
            "",
            "Origin: https://page.example\r\n",
            "Origin: https://page.example\r\nAccess-Control-Request-Method: GET\r\n",
            "Origin: https://other.example\r\nAccess-Control-Request-Method: GET\r\n",
            "Origin: https://page.example\r\nAccess-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: authorization,baggage\r\n",
        ] {
            both.send(
                format!("OPTIONS {P} HTTP/1.1\r\nHost: gateway\r\nX-Request-Id: r\r\n{fields}\r\n")
                    .as_bytes(),
            );
        }
        assert_eq!(counters(&both.with), counters(&both.without));
        wait_until("both logs are whole", || {
            access_lines(&both.with).len() == access_lines(&both.without).len()
        });
        assert_eq!(access_lines(&both.with), access_lines(&both.without));
    }
}

#[test]
fn change_invalidates_hits_of_the_fast_path_at_once() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let mut connection = client.connect();
    let mut ask = || client.get(P).bearer("tok-a").send_on(&mut connection);
    ask();
    assert!(ask().is_hit());
    origin.document(DUCK, Answer::json(r#"{"name":"changed"}"#));
    client.call("PUT", &format!("/customer/{DUCK}")).bearer("tok-a").body("{}").send();
    assert_eq!(ask().assert_status(200).json()["name"], "changed");
    assert!(ask().is_hit());
    client.post("/auth/logout").bearer("tok-a").send();
    origin.forgets("tok-a");
    ask().assert_error(401, "invalid_token");
    assert_eq!(gateway.metric("fast_path_hits_total", &[]), 2.0);
}

#[test]
fn connection_keeps_its_deadlines_after_the_fast_path() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    for (config, second) in [
        ("server.keepalive_timeout = \"2s\"", ""),
        ("server.header_timeout = \"2s\"", "GET /customer/"),
    ] {
        let gateway = Gateway::with(&origin, config);
        let client = gateway.client();
        client.get(P).bearer("tok-a").send();
        let mut connection = client.connect();
        client.get(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
        // Counted when it is written, which may be a moment after it is read.
        gateway.wait_for_metric("fast_path_hits_total", &[], 1.0);
        connection.send_raw(second);
        assert_eq!(connection.rest(), b"", "{config}");
    }
}

#[test]
fn reload_disables_the_fast_path() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "server.fast_path = true");
    let client = gateway.client();
    let mut connection = client.connect();
    let mut ask = || client.get(P).bearer("tok-a").send_on(&mut connection);
    ask();
    assert!(ask().is_hit());
    let config = std::fs::read_to_string(gateway.config_file()).expect("the configuration");
    gateway.rewrite("gateway.toml", &config.replace("fast_path = true", "fast_path = false"));
    gateway.admin().post("/reload").send().assert_status(200);
    assert!(ask().is_hit());
    assert_eq!(gateway.metric("fast_path_hits_total", &[]), 1.0, "only the one before the reload");
    gateway.rewrite(
        "gateway.toml",
        &format!("{config}\n[forward]\nblocked = [\"/customer/*/name\"]\n"),
    );
    gateway.admin().post("/reload").send().assert_status(200);
    ask().assert_error(403, "access_denied");
}

#[test]
fn miss_gets_the_same_response_on_both_paths() {
    let both = Both::start("upstream.timeout = \"1s\"\nidentity.max_invalid_per_minute = 3");
    let ask = |token: &str, id: &str, fields: &str| {
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\n",
            name_of(id)
        );
        assert!(
            !both.send(format!("{head}{fields}\r\n").as_bytes()),
            "no hit: {token} {id} {fields}"
        );
    };
    ask("tok-a", DUCK, "X-Request-Id: r-1\r\n");
    ask("tok-a", &customer(1), "If-None-Match: *\r\n");
    ask("tok-a", &customer(2), "If-None-Match: \"other\"\r\nAccept: */*\r\n");
    let revealed = "{\"rackbeatApiKey\":\"x\"}";
    for (number, answer) in [
        Answer::error(404, "customer"),
        Answer::error(403, "access_denied"),
        Answer::error(429, "too_many").header("Retry-After", "7"),
        Answer::error(500, "internal"),
        Answer::json("{\"broken\":"),
        Answer::json("[]").header("Content-Encoding", "gzip"),
        Answer::json("").status(204),
        Answer::json(revealed).header("Cache-Control", "no-store"),
        Answer::json(revealed).header("Age", "5").header("ETag", "\"v1\""),
        Answer::new(302).header("Location", "https://elsewhere.example/"),
    ]
    .into_iter()
    .enumerate()
    {
        both.origin.document(&customer(10 + number), answer);
        ask("tok-a", &customer(10 + number), "");
    }
    for number in 0..5 {
        ask(&format!("tok-unknown-{number}"), DUCK, "");
    }
    let gate = Gate::closed();
    both.origin.when(Rule::on(&name_of(&customer(30))).hold(&gate));
    ask("tok-a", &customer(30), "");
    gate.open();
    both.origin.stop();
    ask("tok-a", &customer(31), "");
    both.origin.resume();

    assert_eq!(counters(&both.with), counters(&both.without));
    assert!(counters(&both.with).len() > 8, "they were counted at all: {:?}", counters(&both.with));
    wait_until("both logs are whole", || {
        access_lines(&both.with).len() == access_lines(&both.without).len()
    });
    assert_eq!(access_lines(&both.with), access_lines(&both.without));
}

/// Four threads, and connections that they share.
fn connected(origin: &Origin, config: &str) -> (Gateway, Vec<Connection>) {
    let gateway = Gateway::with(origin, &format!("server.threads = 4\n{config}"));
    let connections = (0..16).map(|_| gateway.client().connect()).collect();
    (gateway, connections)
}

#[test]
fn replaced_entry_is_served_by_every_thread() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let (gateway, mut connections) = connected(&origin, "");
    let client = gateway.client();
    for version in ["1", "2", "3"] {
        origin.document(DUCK, Answer::json(format!(r#"{{"name":"{version}"}}"#)));
        let began = Instant::now();
        loop {
            // Every thread has found the one before, and each of them just now.
            for connection in &mut connections {
                client.get(P).bearer("tok-a").send_on(connection).assert_status(200);
            }
            let renewed = client.get(P).bearer("tok-a").header("Cache-Control", "no-cache").send();
            if renewed.json()["name"] == *version {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "the API was never asked again");
        }
        for connection in &mut connections {
            let answer = client.get(P).bearer("tok-a").send_on(connection);
            assert_eq!(answer.assert_status(200).json()["name"], *version);
        }
    }
    assert!(gateway.metric("fast_path_hits_total", &[]) >= 3.0 * 16.0);
}

#[test]
fn renewed_identity_is_used_by_every_thread() {
    let origin = Origin::start();
    origin.knows("tok-a", "ADMIN", DUCK);
    let (gateway, mut connections) =
        connected(&origin, "identity = { ttl = \"60s\", refresh_after = \"1s\" }");
    let client = gateway.client();
    for level in ["VIEWER", "ADMIN", "VIEWER"] {
        for connection in &mut connections {
            client.get(P).bearer("tok-a").revealed().send_on(connection).assert_status(200);
        }
        origin.knows("tok-a", level, DUCK);
        let (began, mut seen, mut rounds) = (Instant::now(), false, 0);
        while rounds < 3 {
            for connection in &mut connections {
                let answer = client.get(P).bearer("tok-a").revealed().send_on(connection);
                let redacted = answer.assert_status(200).text() == redacted_document(DUCK);
                let is_new = redacted == (level == "VIEWER");
                assert!(is_new || !seen, "{level}: the level before came back");
                seen |= is_new;
            }
            rounds += usize::from(seen);
            assert!(began.elapsed() < PATIENCE, "{level}: never asked for");
        }
    }
    assert!(gateway.metric("fast_path_hits_total", &[]) > 0.0);
}
