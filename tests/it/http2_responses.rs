//! What an HTTP/2 client receives, over cleartext and TLS, on every kind of route: informational
//! responses, the API's `Date`, and the same response with and without the fast path.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const OLD_DATE: &str = "Mon, 01 Jan 2024 00:00:00 GMT";

/// A response as it was received: informational heads and the final one, with their fields.
#[derive(Debug)]
struct Received {
    interim: Vec<http::Response<()>>,
    head: http::response::Parts,
    body: Vec<u8>,
}

impl Received {
    fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.head.headers.get_all(name).iter();
        let first = all.next().map(|value| value.to_str().expect("text"));
        assert!(all.next().is_none(), "{name} occurs twice: {self:?}");
        first
    }
}

/// How a client connects.
enum Via {
    Cleartext(SocketAddr),
    Tls(SocketAddr, Box<Authority>),
}

impl Via {
    fn send(&self, path: &str, token: &str) -> Received {
        runtime().block_on(async {
            match self {
                Via::Cleartext(address) => {
                    let stream = TcpStream::connect(address).await.expect("a connection");
                    exchange(stream, path, token).await
                }
                Via::Tls(address, authority) => {
                    let mut config = authority.trusting();
                    config.alpn_protocols = vec![b"h2".to_vec()];
                    let stream = TcpStream::connect(address).await.expect("a connection");
                    let connector = TlsConnector::from(Arc::new(config));
                    let stream =
                        connector.connect(address.ip().into(), stream).await.expect("a handshake");
                    exchange(stream, path, token).await
                }
            }
        })
    }
}

async fn exchange<S>(stream: S, path: &str, token: &str) -> Received
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://gateway.example{path}"))
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .expect("a request");
    let mut sender = sender.ready().await.expect("an open connection");
    let (mut response, _) = sender.send_request(request, true).expect("an open connection");
    let mut interim = Vec::new();
    while let Some(head) =
        std::future::poll_fn(|context| response.poll_informational(context)).await
    {
        interim.push(head.expect("an informational response"));
    }
    let (head, mut stream) = response.await.expect("a response").into_parts();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece.expect("the whole body");
        stream.flow_control().release_capacity(piece.len()).expect("a window");
        body.extend_from_slice(&piece);
    }
    Received { interim, head, body }
}

/// A gateway with a TLS listener and this configuration, and how to connect to it.
fn both(origin: &Origin, config: &str) -> (Gateway, [Via; 2]) {
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;
    let setup = Gateway::set_up(origin).file("cert.pem", &certificate).file("key.pem", &key);
    let gateway = setup.config(&format!("{config}\n{tls}")).start();
    let via = [
        Via::Cleartext(gateway.public_address()),
        Via::Tls(gateway.tls_address(), Box::new(authority)),
    ];
    (gateway, via)
}

/// The intercepted route, a redacted and a plain one; callers below and above `reveal_to`.
const ROUTES: [(&str, &str); 4] = [
    ("/customer/x", "tok-VIEWER"),
    ("/customer/x", "tok-ADMIN"),
    ("/x", "tok-VIEWER"),
    ("/x", "none"),
];

#[test]
fn informational_responses_reach_an_http2_client() {
    let api = RawApi::start(|mut exchange| {
        exchange.write("HTTP/1.1 102 Processing\r\n\r\n");
        exchange
            .write("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n");
        exchange.write(response(
            "200 OK",
            &["Content-Type: application/json", "TE: x", "Keep-Alive: 1"],
            "{}",
        ));
        Some(exchange.stream)
    });
    let origin = Origin::start();
    let (_gateway, via) = both(&origin, &api.config());
    for via in &via {
        for (path, token) in ROUTES {
            let received = via.send(path, token);
            assert_eq!(
                (received.head.status, &received.body[..]),
                (http::StatusCode::OK, &b"{}"[..]),
                "{path} {token}"
            );
            let statuses: Vec<_> =
                received.interim.iter().map(|head| head.status().as_u16()).collect();
            assert_eq!(statuses, [102, 103], "{path} {token}");
            let hints = received.interim[1].headers();
            assert_eq!(hints.get("link").expect("its field"), "</a.css>; rel=preload");
            for field in ["x-hop", "connection", "content-length"] {
                assert!(!hints.contains_key(field), "{field}: {hints:?}");
            }
            // Fields of one connection, which HTTP/2 does not have.
            assert_eq!(
                (received.field("te"), received.field("keep-alive")),
                (None, None),
                "{path} {token}"
            );
        }
    }
}

#[test]
fn date_of_the_api_reaches_an_http2_client() {
    for date in [Some(OLD_DATE), None] {
        let api = RawApi::start(move |mut exchange| {
            let date = date.map(|date| format!("Date: {date}"));
            let fields: Vec<_> =
                ["Content-Type: application/json"].into_iter().chain(date.as_deref()).collect();
            exchange.write(response("200 OK", &fields, "{\"a\":1}"));
            Some(exchange.stream)
        });
        let origin = Origin::start();
        let (_gateway, via) = both(&origin, &api.config());
        for via in &via {
            for (path, token) in ROUTES {
                let received = via.send(path, token);
                let sent = received.field("date").expect("a date");
                match date {
                    Some(date) => assert_eq!(sent, date, "{path} {token}"),
                    // Now, within a day.
                    None => assert!(
                        sent != OLD_DATE && sent.ends_with(" GMT"),
                        "{path} {token}: {sent}"
                    ),
                }
            }
        }
    }
}

/// The parts of a response that do not differ from request to request.
fn lasting(received: &Received) -> (u16, Vec<(String, String)>, String) {
    let varies = ["x-request-id", "date", "age", "cache-status"];
    let mut fields: Vec<_> = received
        .head
        .headers
        .iter()
        .filter(|(name, _)| !varies.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .collect();
    fields.sort();
    let body = without_request_id(&String::from_utf8_lossy(&received.body));
    (received.head.status.as_u16(), fields, body)
}

#[test]
fn hit_over_http2_takes_the_fast_path() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let cors = "cors.allowed_origins = [\"https://app.example\"]";
    let (with, via) = both(&origin, cors);
    let (without, other) = both(&origin, &format!("server.fast_path = false\n{cors}"));
    for via in via.iter().chain(&other) {
        via.send(P, "tok-a");
    }
    let query = format!("{P}?token=tok-a");
    for (via, other) in via.iter().zip(&other) {
        for (path, token, status) in [
            (P, "tok-a", 200),
            (&*query, "tok-a", 200),
            (P, "tok a", 401),
            // These are not known at once.
            (P, "tok-unknown", 401),
        ] {
            let received = via.send(path, token);
            assert_eq!(lasting(&received), lasting(&other.send(path, token)), "{path} {token}");
            assert_eq!(received.head.status, status, "{path} {token}");
            assert_eq!(received.field("x-request-id").expect("an id").len(), 32);
            assert!(received.field("date").is_some());
        }
    }
    assert!(with.metric("fast_path_hits_total", &[]) >= 4.0, "{}", with.metrics());
    assert_eq!(without.metric("fast_path_hits_total", &[]), 0.0);
    let requests =
        |gateway: &Gateway, status| gateway.metric("requests_total", &[("status", status)]);
    for status in ["200", "401"] {
        wait_until("both have counted the same", || {
            requests(&with, status) == requests(&without, status)
        });
    }
}

#[test]
fn fast_path_over_http2_serves_each_method_and_condition() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "cors.allowed_origins = [\"https://app.example\"]");
    let http2 = Http2::connect(&gateway.client());
    let whole = http2.get(P, "tok-a");
    let length = whole.assert_status(200).body.len().to_string();
    let bearer = ("authorization", "Bearer tok-a");
    let call = |method: &str, fields: &[(&str, &str)]| {
        http2.call(method, P, fields, b"").expect("a response")
    };
    let counted = || gateway.metric("fast_path_hits_total", &[]);
    for fields in
        [&[bearer][..], &[("x-api-key", "tok-a")], &[("cookie", "a=b"), ("cookie", "token=tok-a")]]
    {
        let before = counted();
        assert_eq!(call("GET", fields).assert_status(200).body, whole.body, "{fields:?}");
        let head = call("HEAD", fields);
        assert_eq!(head.assert_status(200).header("content-length"), Some(&*length), "{fields:?}");
        assert!(head.body.is_empty());
        let etag = whole.header("etag").expect("an ETag");
        let unchanged = call("GET", &[fields, &[("if-none-match", etag)]].concat());
        assert!(unchanged.assert_status(304).body.is_empty());
        wait_until("all three are hits of the fast path", || counted() == before + 3.0);
    }
    let own = call("GET", &[bearer, ("x-request-id", "my-own"), ("origin", "https://app.example")]);
    assert_eq!(own.header("x-request-id"), Some("my-own"));
    assert_eq!(own.header("access-control-allow-origin"), Some("https://app.example"));
    call("GET", &[("authorization", "Basic x")]).assert_error(401, "format_error");
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "GET")];
    call("OPTIONS", &preflight).assert_status(204);
    // Names that other readers take for another's, and heads that are too large, are refused.
    let before = counted();
    call("GET", &[bearer, ("x_request_id", "a")]).assert_error(400, "bad_request");
    let large = "v".repeat(40 << 10);
    call("GET", &[bearer, ("x-large", &large)]).assert_error(431, "bad_request");
    assert_eq!(counted(), before);
    // A body: nothing stored answers it.
    let with_body = http2.call("GET", P, &[bearer], b"a body").expect("a response");
    assert!(!with_body.cache_status().contains("hit"), "{with_body:#?}");
}

#[test]
fn hit_waits_for_the_window_of_an_http2_client() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "server.write_timeout = \"1s\"");
    let body = gateway.client().get(P).bearer("tok-a").send().assert_status(200).body.clone();
    let list = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", P),
        ("authorization", "Bearer tok-a"),
    ];
    // No window at first.
    let mut frames = Frames::open(&gateway.client(), &[(4, 0)]);
    frames.request(1, &list).expect("an open connection");
    assert!(frames.outcome(1).is_ok());
    let mut received = Vec::new();
    while received.len() < body.len() {
        frames.send(8, 0, 1, &100_u32.to_be_bytes()).expect("an open connection");
        let frame = frames.next().expect("a frame");
        if frame.kind == Frames::DATA {
            received.extend_from_slice(&frame.payload);
        }
    }
    assert_eq!(received, body);
    // It never opens: the stream is reset.
    frames.request(3, &list).expect("an open connection");
    assert!(frames.outcome(3).is_ok());
    assert_eq!(frames.outcome(3), Outcome::Reset);
    gateway.wait_for_log("client_timeout");
}
