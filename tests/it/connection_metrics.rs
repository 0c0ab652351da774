//! Metrics of connections, requests under way and streams, next to their limits.

use crate::support::*;

const DUCK: &str = "73469a52f4fd7f77ec7b28cc";

#[test]
fn metrics_of_connections_over_the_limit_add_up() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "server.max_connections = 20");
    let client = gateway.client();
    assert_eq!(gateway.metric("connections", &[("listener", "public")]), 0.0);
    assert_eq!(gateway.metric("connections_limit", &[]), 20.0);
    let connections: Vec<_> = (0..400).map(|_| client.connect()).collect();
    let accepted = || gateway.metric("connections_accepted_total", &[("listener", "public")]);
    let refused = || gateway.metric("connections_refused_total", &[]);
    wait_until("each connection is counted", || accepted() + refused() == 400.0);
    assert_eq!((accepted(), refused()), (20.0, 380.0));
    assert_eq!(gateway.metric("connections", &[("listener", "public")]), 20.0);
    assert_eq!(gateway.metric("connections_refused_total", &[("reason", "connections")]), 380.0);
    assert!(gateway.metric("connections", &[("listener", "admin")]) >= 1.0, "the scrape itself");
    drop(connections);
    wait_until("no connection is open", || {
        gateway.metric("connections", &[("listener", "public")]) == 0.0
    });
    assert_eq!(accepted() + refused(), 400.0);
}

#[test]
fn requests_and_streams_under_way_are_gauges() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "server.max_requests = 77");
    let in_flight = || gateway.metric("requests_in_flight", &[]);
    let streams = || gateway.metric("http2_streams", &[]);
    assert_eq!((in_flight(), streams()), (0.0, 0.0));
    assert_eq!(gateway.metric("requests_in_flight_limit", &[]), 77.0);
    let gate = Gate::closed();
    origin.when(Rule::on("/slow").hold(&gate));
    let pending: Vec<_> =
        (0..3).map(|_| gateway.client().get("/slow").bearer("tok-a").start()).collect();
    wait_until("the requests are under way", || in_flight() == 3.0);
    assert_eq!(streams(), 0.0);
    let mut frames = Frames::open(&gateway.client(), &[]);
    for stream in [1, 3] {
        let list =
            [(":method", "GET"), (":scheme", "http"), (":path", "/slow"), (":authority", "x")];
        frames.request(stream, &list).expect("an open connection");
    }
    wait_until("the streams are under way", || in_flight() == 5.0 && streams() == 2.0);
    gate.open();
    for pending in pending {
        pending.finish().assert_status(200);
    }
    wait_until("no request is under way", || in_flight() == 0.0 && streams() == 0.0);
}
