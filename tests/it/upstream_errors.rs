//! Why a request to the API failed: kind, cause and status, the same on every route, in metrics and
//! in the log.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use crate::support::*;

const INTERCEPTED: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const PLAIN: &str = "/plain";
const REDACTED: &str = "/customer/73469a52f4fd7f77ec7b28cc";
const ROUTES: [&str; 3] = [INTERCEPTED, PLAIN, REDACTED];

/// Requests every route over HTTP/1.1 and HTTP/2 and checks what is reported of each failure.
fn assert_failures(gateway: &Gateway, status: u16, kind: &str, cause: &str) {
    let client = gateway.client();
    let counted = |name, label, value| gateway.metric(name, &[(label, value)]);
    for route in ROUTES {
        for is_http2 in [false, true] {
            let before = (
                counted("upstream_errors_total", "kind", kind),
                counted("upstream_error_causes_total", "cause", cause),
            );
            let lines = cause_lines(gateway, cause);
            let call = || client.get(route).bearer("tok-a");
            let response =
                if is_http2 { client.send_h2c(vec![call()]).remove(0) } else { call().send() };
            assert_eq!(response.status, status, "{route} {cause}: {response:#?}");
            let all = gateway.metrics();
            let errors: Vec<_> =
                all.lines().filter(|line| line.contains("upstream_error")).collect();
            let after = (
                counted("upstream_errors_total", "kind", kind),
                counted("upstream_error_causes_total", "cause", cause),
            );
            assert_eq!(
                (after.0 - before.0, after.1 - before.1),
                (1.0, 1.0),
                "{route} {cause}: {errors:#?}"
            );
            wait_until(&format!("the log names {cause} for {route}"), || {
                cause_lines(gateway, cause) > lines
            });
        }
    }
}

/// Lines of the log about a request that failed for that cause.
fn cause_lines(gateway: &Gateway, cause: &str) -> usize {
    let field = format!("\"cause\":\"{cause}\"");
    let is_request =
        |line: &&str| line.contains(r#""message":"request""#) || line.contains("failed to ");
    gateway.log().lines().filter(|line| line.contains(&field)).filter(is_request).count()
}

/// A gateway in front of an API at `url` which cannot validate a token: each route needs the API.
fn gateway(origin: &Origin, url: &str, more: &str) -> Gateway {
    let config = format!(
        "upstream = {{ url = \"{url}\", connect_timeout = \"1s\", timeout = \"3s\"{more} }}"
    );
    Gateway::with(origin, &config)
}

/// Accepts connections at a free address and hands each to `serve`.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let serve = std::sync::Arc::new(serve);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

#[test]
fn refused_connection_is_a_connect_error() {
    let origin = Origin::start();
    let gateway = gateway(&origin, &origin.url(), "");
    origin.stop();
    assert_failures(&gateway, 502, "connect", "connect");
}

#[test]
fn connection_without_a_reply_is_a_connect_error() {
    let origin = Origin::start();
    // A listener whose queue is full drops what arrives, as a host that is away does.
    let socket = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    rustix::net::listen(socket.as_fd(), 0).expect("a shorter queue");
    let address = socket.local_addr().expect("a bound socket");
    let filling: Vec<_> = (0..4)
        .map_while(|_| {
            TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300)).ok()
        })
        .collect();
    assert!(filling.len() < 4, "the queue has room");
    let gateway = gateway(&origin, &format!("http://{address}"), "");
    assert_failures(&gateway, 502, "connect", "connect");
}

#[test]
fn peer_that_never_speaks_tls_is_a_tls_timeout() {
    let origin = Origin::start();
    let address = listen(|mut stream| while let Ok(1..) = stream.read(&mut [0; 1024]) {});
    let gateway = gateway(&origin, &format!("https://{address}"), "");
    assert_failures(&gateway, 502, "tls", "tls_timeout");
}

#[test]
fn peer_without_tls_is_not_tls() {
    for reply in ["HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-x\r\n"] {
        let origin = Origin::start();
        let address = listen(move |mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(reply.as_bytes());
        });
        let gateway = gateway(&origin, &format!("https://{address}"), "");
        assert_failures(&gateway, 502, "tls", "tls_not_tls");
    }
}

#[test]
fn each_fault_of_a_certificate_has_its_cause() {
    let authority = Authority::new();
    let other = Authority::new();
    for (certificate, cause) in [
        (authority.expired_certificate(), "tls_expired"),
        (authority.certificate_valid_in(3600), "tls_not_yet_valid"),
        (other.certificate(), "tls_unknown_authority"),
        (authority.certificate_for_another_name(), "tls_wrong_name"),
    ] {
        let origin = Origin::start_tls(&certificate);
        let config = r#"upstream = { ca_file = "{dir}/ca.pem", connect_timeout = "5s" }"#;
        let gateway =
            Gateway::set_up(&origin).file("ca.pem", authority.pem()).config(config).start();
        assert_failures(&gateway, 502, "tls", cause);
        assert_eq!(origin.requests(), 0, "{cause}");
    }
}

#[test]
fn name_without_an_address_is_a_resolve_error() {
    let origin = Origin::start();
    let gateway = gateway(&origin, "http://api.invalid.", "");
    assert_failures(&gateway, 502, "resolve", "resolve");
}

#[test]
fn connection_closed_before_a_response_is_no_response() {
    let origin = Origin::start();
    let gateway = gateway(&origin, &origin.url(), "");
    origin.when(Rule::on("/").close());
    assert_failures(&gateway, 502, "truncated", "no_response");
}

#[test]
fn response_without_a_head_is_a_timeout() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = gateway(&origin, &origin.url(), "");
    let gate = Gate::closed();
    origin.when(Rule::on(INTERCEPTED).hold(&gate));
    gateway.client().get(INTERCEPTED).bearer("tok-a").send().assert_error(504, "gateway_timeout");
    assert_eq!(gateway.metric("upstream_error_causes_total", &[("cause", "timeout")]), 1.0);
    gateway.wait_for_log("\"cause\":\"timeout\"");
}

#[test]
fn body_that_stalls_is_a_timeout_of_the_body() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = gateway(&origin, &origin.url(), "");
    let gate = Gate::closed();
    origin.when(Rule::on(INTERCEPTED).hold_body(&gate));
    gateway.client().get(INTERCEPTED).bearer("tok-a").send().assert_error(504, "gateway_timeout");
    assert_eq!(gateway.metric("upstream_errors_total", &[("kind", "timeout")]), 1.0);
    assert_eq!(gateway.metric("upstream_error_causes_total", &[("cause", "timeout_body")]), 1.0);
    gateway.wait_for_log("\"cause\":\"timeout_body\"");
}

#[test]
fn circuit_logs_its_opening_and_closing_once_each() {
    let origin = Origin::start();
    let callers: Vec<_> = (0..12).map(|number| format!("tok-{number}")).collect();
    callers.iter().for_each(|token| origin.knows(token, "VIEWER", DUCK));
    let gateway = Gateway::start(&origin);
    let get = |token: &str, id: &str| gateway.client().get(&name_of(id)).bearer(token).send();
    callers.iter().for_each(|token| drop(get(token, DUCK)));
    origin.stop();
    let circuit = || gateway.stats()["upstream"]["circuit"].as_str().map(str::to_owned);
    // Open, probed in vain several times, and open again.
    let mut number = 0;
    wait_until("several probes failed", || {
        number += 1;
        get(&callers[number % callers.len()], &customer(number));
        gateway.metric("upstream_error_causes_total", &[("cause", "connect")]) >= 11.0
    });
    let lines = |text: &str| gateway.log().lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("circuit breaker opened"), 1);
    origin.resume();
    wait_until("the circuit is closed", || {
        get("tok-1", OTHER);
        circuit().as_deref() == Some("closed")
    });
    gateway.wait_for_log("circuit breaker closed");
    for token in &callers {
        get(token, OTHER).assert_status(200);
    }
    assert_eq!((lines("circuit breaker opened"), lines("circuit breaker closed")), (1, 1));
}

/// Bodies of error pages: HTML with each media type, none, and a truncated document.
const ERROR_PAGES: [(&str, &str); 4] = [
    ("text/html", "<html>oops</html>"),
    ("application/json", "<html>"),
    ("text/html", ""),
    ("application/json", "{\"a\""),
];

#[test]
fn error_page_of_the_api_keeps_its_status_on_the_name_route() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    origin.knows("tok-high", "RESELLER", DUCK);
    let gateway = Gateway::with(&origin, "upstream.timeout = \"5s\"");
    let path = name_of(DUCK);
    let mut failures = 0.0;
    for status in [429, 500, 502, 503, 504] {
        for (content_type, body) in ERROR_PAGES {
            let page = Answer::new(status)
                .header("Content-Type", content_type)
                .body(body)
                .header("Retry-After", "7");
            origin.when(Rule::on("/customer/").answer(page));
            for response in [
                gateway.client().get(&path).bearer("tok-low").send(),
                gateway
                    .client()
                    .get(&path)
                    .bearer("tok-low")
                    .header("X-Unlisted", "1")
                    .header("Pragma", "x")
                    .send(),
                Http2::connect(&gateway.client()).get(&path, "tok-low"),
            ] {
                response.assert_status(status);
                assert_eq!(response.json()["error"]["status"], status, "{response:#?}");
                assert!(
                    response.json()["error"]["code"].is_string()
                        && response.json()["error"]["message"].is_string()
                );
                assert_ne!(response.json()["error"]["code"], "redaction_failed");
                assert_eq!(response.header("retry-after"), Some("7"), "{response:#?}");
                assert!(
                    response.header("content-type").is_some_and(|value| value.contains("json"))
                );
                assert!(
                    response.header("cache-status").is_some_and(|value| !value.contains("stored"))
                );
            }
            failures += 3.0;
            assert_eq!(
                gateway.metric("upstream_errors_total", &[("kind", "status")]),
                failures,
                "{status} {body:?}"
            );
            let high = gateway.client().get(&path).bearer("tok-high").revealed().send();
            assert_eq!(high.assert_status(status).text(), body);
            failures += 1.0;
        }
        origin.when(Rule::on("/customer/").answer(Answer::error(status, "of_the_api")));
        gateway.client().get(&path).bearer("tok-low").send().assert_error(status, "of_the_api");
        failures += 1.0;
    }
    assert_eq!(gateway.metric("redaction_failures_total", &[]), 0.0);
    assert_eq!(gateway.metric("upstream_errors_total", &[]), failures);
    // A client's error keeps its status too, and is a redaction failure.
    for (status, code) in
        [(400, "bad_request"), (403, "access_denied"), (404, "not_found"), (418, "bad_request")]
    {
        origin.when(
            Rule::on("/customer/")
                .answer(Answer::new(status).header("Content-Type", "text/html").body("<html>")),
        );
        origin.knows(&format!("tok-{status}"), "VIEWER", DUCK);
        gateway
            .client()
            .get(&path)
            .bearer(&format!("tok-{status}"))
            .send()
            .assert_error(status, code);
    }
    assert!(gateway.metric("redaction_failures_total", &[]) >= 4.0);
    origin.when(
        Rule::on("/customer/")
            .answer(Answer::new(200).header("Content-Type", "text/html").body("<html>")),
    );
    gateway.client().get(&path).bearer("tok-low").send().assert_error(502, "redaction_failed");
    assert_eq!(gateway.metric("upstream_errors_total", &[]), failures);
}

#[test]
fn stale_response_takes_precedence_over_an_error_page() {
    let origin = Origin::start();
    origin.knows("tok-low", "VIEWER", DUCK);
    let gateway = Gateway::with(
        &origin,
        "cache.ttl = \"1s\"\ncache.ttl_jitter = 0.0\ncache.stale_while_revalidate = \"0s\"",
    );
    let path = name_of(DUCK);
    gateway.client().get(&path).bearer("tok-low").send().assert_status(200);
    for status in [429, 500, 502, 503, 504] {
        let page =
            Answer::new(status).header("Content-Type", "text/html").body("<html>oops</html>");
        origin.when(Rule::on("/customer/").answer(page));
        let failures = || gateway.metric("upstream_errors_total", &[("kind", "status")]);
        let before = failures();
        wait_until("the failure is counted and a stale response served", || {
            let response = gateway.client().get(&path).bearer("tok-low").send();
            assert_eq!(response.assert_status(200).text(), redacted_document(DUCK));
            response.cache_status().contains("stale-if-error") && failures() > before
        });
    }
    assert_eq!(gateway.metric("redaction_failures_total", &[]), 0.0);
}
