//! Fields and framing of the API's responses on forwarded routes, as the client's version has them.

use crate::support::*;

const PLAIN: &str = "/x/fields";
const REDACTED: &str = "/customer/fields";

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

/// The response over HTTP/1.1 and over HTTP/2.
fn both(gateway: &Gateway, target: &str) -> [Response; 2] {
    let http1 = gateway.client().get(target).send();
    let http2 = Http2::connect(&gateway.client()).call("GET", target, &[], b"");
    [http1, http2.unwrap_or_else(|error| panic!("{target}: {error}"))]
}

#[test]
fn hop_by_hop_fields_of_a_response_are_removed() {
    let (origin, gateway) = scene();
    for field in [
        ("Proxy-Connection", "close"),
        ("TE", "x"),
        ("Keep-Alive", "timeout=5"),
        ("Upgrade", "h2c"),
        ("Trailer", "X-Sum"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Authorization", "x"),
        ("HTTP2-Settings", "x"),
        ("Connection", "X-Named"),
    ] {
        let answer = Answer::new(200).header("Content-Type", "text/csv").header(field.0, field.1);
        origin.when(
            Rule::on("/").answer(answer.header("X-Named", "1").header("X-Other", "2").body("a;b")),
        );
        for target in [PLAIN, REDACTED] {
            for response in both(&gateway, target) {
                assert_eq!(response.assert_status(200).text(), "a;b", "{field:?} {target}");
                assert!(
                    field.0 == "Connection"
                        || response.header(field.0).is_none_or(|value| value != field.1),
                    "{response:#?}"
                );
                assert_eq!(
                    response.header("x-named").is_none(),
                    field.0 == "Connection",
                    "{response:#?}"
                );
                assert_eq!(response.header("x-other"), Some("2"));
            }
        }
        origin.behave();
    }
}

#[test]
fn hop_by_hop_fields_of_a_request_are_removed() {
    let (origin, gateway) = scene();
    for target in [PLAIN, REDACTED] {
        let call = gateway
            .client()
            .post(target)
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Connection", "close");
        let call = call
            .header("TE", "trailers")
            .header("Trailer", "X-Sum")
            .header("Proxy-Authorization", "x");
        call.header("HTTP2-Settings", "x")
            .header("Connection", "X-Named")
            .header("X-Named", "1")
            .body("hello")
            .send();
        let seen = origin.last(target).expect("it was forwarded");
        assert_eq!(seen.body, b"hello");
        for name in seen.header_names() {
            let hop = [
                "keep-alive",
                "proxy-connection",
                "te",
                "trailer",
                "proxy-authorization",
                "http2-settings",
                "x-named",
            ];
            assert!(!hop.contains(&name.as_str()), "{target}: {seen:#?}");
        }
    }
}

#[test]
fn announced_trailers_are_dropped_with_their_announcement() {
    let (origin, gateway) = scene();
    let raw = "HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nTrailer: Server-Timing\r\n\
               Transfer-Encoding: chunked\r\n\r\n3\r\na;b\r\n0\r\nServer-Timing: t\r\n\r\n";
    origin.when(Rule::on("/").raw_kept_open(raw));
    for target in [PLAIN, REDACTED] {
        for response in both(&gateway, target) {
            assert_eq!(response.assert_status(200).text(), "a;b", "{target}");
            assert_eq!(response.header("trailer"), None, "{response:#?}");
            assert_eq!(response.header("server-timing"), None, "{response:#?}");
        }
    }
}

#[test]
fn framing_fields_of_a_204_are_removed() {
    let (origin, gateway) = scene();
    for field in ["Content-Length: 5", "Content-Length: 0", "Transfer-Encoding: chunked"] {
        origin.when(
            Rule::on("/").raw_kept_open(format!("HTTP/1.1 204 No Content\r\n{field}\r\n\r\n")),
        );
        for target in [PLAIN, REDACTED] {
            for response in both(&gateway, target) {
                response.assert_status(204);
                assert_eq!(
                    response.header("content-length"),
                    None,
                    "{field} {target}: {response:#?}"
                );
                assert_eq!(
                    response.header("transfer-encoding"),
                    None,
                    "{field} {target}: {response:#?}"
                );
            }
        }
        origin.behave();
    }
}

/// The whole of what an HTTP/1.0 client receives.
fn http10(gateway: &Gateway, target: &str, more: &str) -> String {
    let mut connection = gateway.client().connect();
    let credential = "Authorization: Bearer tok-a\r\n";
    connection.send_raw(format!("GET {target} HTTP/1.0\r\nHost: a\r\n{credential}{more}\r\n"));
    String::from_utf8_lossy(&connection.rest()).into_owned()
}

#[test]
fn http10_client_reads_a_body_that_ends_with_the_connection() {
    let (origin, gateway) = scene();
    origin.knows("tok-a", "VIEWER", DUCK);
    for framing in [Framing::Chunked, Framing::UntilClose] {
        let answer =
            Answer::new(200).header("Content-Type", "text/csv").body("hello").framing(framing);
        origin.when(Rule::on("/x").answer(answer.clone()));
        origin.when(Rule::on("/customer/fields").answer(answer));
        for target in [PLAIN, REDACTED] {
            for keep in ["", "Connection: keep-alive\r\n"] {
                let text = http10(&gateway, target, keep);
                let (head, body) = text.split_once("\r\n\r\n").expect("a head");
                assert!(
                    !head.to_ascii_lowercase().contains("transfer-encoding"),
                    "{target}: {text}"
                );
                assert!(
                    head.to_ascii_lowercase().contains("connection: close"),
                    "{target}: {text}"
                );
                assert_eq!(body, "hello", "{target}");
            }
        }
        origin.document(DUCK, Answer::json(upstream_document(DUCK)).framing(framing));
        let text = http10(&gateway, &name_of(DUCK), "");
        assert!(text.ends_with(&redacted_document(DUCK)), "{text}");
        assert!(!text.to_ascii_lowercase().contains("transfer-encoding"), "{text}");
        gateway.admin().delete("/cache").send().assert_status(200);
    }
}

#[test]
fn informational_responses_depend_on_the_version() {
    let (origin, gateway) = scene();
    for status in ["103 Early Hints", "102 Processing", "100 Continue"] {
        let raw = format!(
            "HTTP/1.1 {status}\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n\
             Content-Type: text/csv\r\nContent-Length: 5\r\n\r\nhello"
        );
        origin.when(Rule::on("/").raw_kept_open(raw));
        for more in ["", "Expect: 100-continue\r\n"] {
            let text = http10(&gateway, PLAIN, more);
            assert!(text.starts_with("HTTP/1.1 200"), "{status}: {text}");
            assert!(text.ends_with("\r\n\r\nhello"), "{status}: {text}");
        }
        let mut connection = gateway.client().connect();
        connection
            .send_raw(format!("GET {PLAIN} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        let text = String::from_utf8_lossy(&connection.rest()).into_owned();
        assert!(text.starts_with(&format!("HTTP/1.1 {}", &status[..3])), "{text}");
        assert!(text.contains("\r\n\r\nHTTP/1.1 200") && text.ends_with("hello"), "{text}");
        let response =
            Http2::connect(&gateway.client()).call("GET", PLAIN, &[], b"").expect("a response");
        assert_eq!(response.assert_status(200).text(), "hello");
        origin.behave();
    }
}
