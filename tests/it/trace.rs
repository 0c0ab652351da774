//! Distributed tracing: `traceparent` is logged and forwarded.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn line_of(gateway: &Gateway, request_id: &str) -> serde_json::Value {
    gateway.wait_for_log(request_id);
    let lines = gateway.log();
    let mut lines =
        lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.find(|line| line["http.request.id"] == request_id).expect("its line")
}

#[test]
fn forwarded_request_carries_the_gateways_span() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for (path, id) in [("/elsewhere", "id-1"), ("/customer/73469a52f4fd7f77ec7b28cc", "id-2")] {
        let call = gateway.client().get(path).bearer("tok-a").header("traceparent", GIVEN);
        call.header("tracestate", "vendor=1").header("X-Request-Id", id).send();
        let seen = origin.last(path).expect("it was forwarded");
        let sent = seen.header("traceparent").expect("a trace").to_owned();
        assert!(sent.starts_with(&format!("00-{TRACE}-")) && sent.ends_with("-01"), "{sent}");
        assert!(sent.len() == GIVEN.len() && !sent.contains("00f067aa0ba902b7"), "{sent}");
        assert_eq!(seen.header("tracestate"), Some("vendor=1"));
        let line = line_of(&gateway, id);
        assert_eq!(line["trace_id"], TRACE);
        assert_eq!(line["span_id"], sent[36..52], "{line}");
    }
}

#[test]
fn invalid_traceparent_is_removed_with_tracestate() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let wrong = [
        "nonsense",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ];
    for (number, wrong) in wrong.iter().enumerate() {
        let (path, id) = (format!("/elsewhere/{number}"), format!("wrong-{number}"));
        let call = gateway
            .client()
            .get(&path)
            .header("traceparent", wrong)
            .header("tracestate", "vendor=1");
        call.header("X-Request-Id", &id).send().assert_status(200);
        let seen = origin.last(&path).expect("it was forwarded");
        assert_eq!(
            (seen.header("traceparent"), seen.header("tracestate")),
            (None, None),
            "{wrong}"
        );
        assert!(line_of(&gateway, &id).get("trace_id").is_none());
    }
}

#[test]
fn fetch_carries_no_trace() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for id in ["first", "second"] {
        let call = gateway.client().get(P).bearer("tok-a").header("traceparent", GIVEN);
        call.header("tracestate", "vendor=1").header("X-Request-Id", id).send().assert_status(200);
        assert_eq!(line_of(&gateway, id)["trace_id"], TRACE);
    }
    for seen in origin.seen() {
        assert_eq!(
            (seen.header("traceparent"), seen.header("tracestate")),
            (None, None),
            "{}",
            seen.path()
        );
    }
}

#[test]
fn traceparent_with_a_credential_is_removed() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    let token = "4bf92f3577b34da6a3ce929d0e0e4736";
    let call = gateway.client().get("/elsewhere").bearer(token).header("traceparent", GIVEN);
    call.header("X-Request-Id", "hidden").send().assert_status(200);
    assert_eq!(origin.last("/elsewhere").expect("it was forwarded").header("traceparent"), None);
    assert!(line_of(&gateway, "hidden").get("trace_id").is_none());
    assert!(!gateway.log().contains(token));
}
