//! Export of spans in builds with the feature `otlp`. Other builds reject `otlp.endpoint`.

use crate::support::*;

#[cfg(not(feature = "otlp"))]
#[test]
fn build_without_otlp_rejects_an_endpoint() {
    let dir = TempDir::new();
    dir.write(
        "gateway.toml",
        "upstream.url = \"http://127.0.0.1:1\"\notlp.endpoint = \"http://127.0.0.1:4318\"\n",
    );
    let path = dir.path().join("gateway.toml").display().to_string();
    for command in ["check", "run"] {
        let run = run_binary(&[command, "-c", &path], b"");
        assert_eq!(run.code, Some(78), "{command}: {run:#?}");
        assert!(run.stderr.contains("build with `--features otlp`"), "{command}: {run:#?}");
    }
}

#[cfg(feature = "otlp")]
mod with_a_collector {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use nix::sys::signal::Signal;
    use parking_lot::Mutex;

    use super::*;

    const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    /// Head and body of each request.
    type Received = Mutex<Vec<(String, Vec<u8>)>>;

    /// A collector that keeps the requests that it receives.
    struct Collector {
        address: String,
        received: Arc<Received>,
    }

    impl Collector {
        fn start(status: &'static str) -> Collector {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = format!("http://{}", listener.local_addr().expect("an address"));
            let received: Arc<Received> = Arc::default();
            let kept = received.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let kept = kept.clone();
                    std::thread::spawn(move || {
                        while serve(stream.as_ref().expect("a stream"), &kept, status).is_some() {}
                    });
                }
            });
            Collector { address, received }
        }

        /// Whether any body contains these bytes.
        fn contains(&self, bytes: &[u8]) -> bool {
            self.received
                .lock()
                .iter()
                .any(|(_, body)| body.windows(bytes.len()).any(|window| window == bytes))
        }
    }

    fn serve(mut stream: &TcpStream, kept: &Received, status: &str) -> Option<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let mut body = vec![0; length.expect("a length")];
        stream.read_exact(&mut body).ok()?;
        kept.lock().push((head, body));
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
        )
        .ok()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| {
                u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex")
            })
            .collect()
    }

    fn scene(collector: &Collector, sample: &str) -> (Origin, Gateway) {
        let origin = Origin::start();
        origin.knows("tok-a", "VIEWER", DUCK);
        let config = format!("[otlp]\nendpoint = {:?}\nsample = {sample}\n", collector.address);
        let gateway = Gateway::with(&origin, &config);
        (origin, gateway)
    }

    #[test]
    fn span_belongs_to_the_clients_trace_and_has_no_secret() {
        let collector = Collector::start("200 OK");
        let (_origin, gateway) = scene(&collector, "0.0");
        let untraced =
            gateway.client().get(P).bearer("tok-a").header("X-Request-Id", "untraced").send();
        untraced.assert_status(200);
        let traced = format!("00-{TRACE}-{PARENT}-01");
        gateway
            .client()
            .get(P)
            .bearer("tok-a")
            .header("traceparent", &traced)
            .send()
            .assert_status(200);
        let unsampled = traced.replace("4bf9", "5bf9").replace("-01", "-00");
        gateway
            .client()
            .get(P)
            .bearer("tok-a")
            .header("traceparent", &unsampled)
            .send()
            .assert_status(200);
        wait_until("the span is received", || collector.contains(&bytes(TRACE)));
        assert!(collector.contains(&bytes(PARENT)), "its parent is the client's span");
        for text in
            ["telecomx-gateway", "service.name", "GET customer_name", "http.route", "VIEWER", "hit"]
        {
            assert!(collector.contains(text.as_bytes()), "{text}");
        }
        let (head, _) = collector.received.lock()[0].clone();
        assert!(
            head.starts_with("post /v1/traces http/1.1\r\n")
                && head.contains("application/x-protobuf"),
            "{head}"
        );
        gateway.wait_for_metric("otlp_spans_total", &[("result", "sent")], 1.0);
        assert_eq!(
            gateway.metric("otlp_spans_total", &[]),
            1.0,
            "the client decides for its trace; no other request is sampled"
        );
        for secret in ["tok-a", DUCK, MARKER, "untraced"] {
            assert!(!collector.contains(secret.as_bytes()), "{secret}");
        }
        assert!(!collector.contains(&bytes(&unsampled[3..35])));
    }

    #[test]
    fn queued_spans_are_sent_at_exit() {
        let collector = Collector::start("200 OK");
        let (_origin, mut gateway) = scene(&collector, "1.0");
        gateway
            .client()
            .get(P)
            .bearer("tok-a")
            .header("X-Request-Id", "the-last-one")
            .send()
            .assert_status(200);
        gateway.signal(Signal::SIGTERM);
        assert_eq!(gateway.wait().code, Some(0));
        assert!(collector.contains(b"the-last-one"));
    }

    #[test]
    fn failing_collector_fails_no_request() {
        let collector = Collector::start("503 Service Unavailable");
        let (_origin, gateway) = scene(&collector, "1.0");
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
        gateway.wait_for_metric("otlp_spans_total", &[("result", "failed")], 1.0);
        gateway.wait_for_log("failed to export spans to otlp.endpoint");
        assert!(gateway.client().get(P).bearer("tok-a").send().is_hit());
    }
}
