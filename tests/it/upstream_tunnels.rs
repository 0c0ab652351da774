//! Websocket tunnels through the gateway: both directions at once, half-closed in each direction,
//! and refused for other protocols.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::*;

const LARGE: usize = 8 << 20;

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

fn request(target: &str, protocol: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

fn tunnel(gateway: &Gateway) -> Connection {
    let mut connection = gateway.client().connect();
    connection.send_raw(request("/socket.io/", "websocket"));
    let switched = connection.read("GET", Kind::Forwarded).expect("a response");
    assert_eq!(switched.status, 101, "{switched:#?}");
    connection
}

#[test]
fn large_data_passes_in_both_directions_at_once() {
    let received = Arc::new(AtomicUsize::new(0));
    let count = received.clone();
    let api = RawApi::start(move |mut exchange| {
        exchange.write(SWITCH);
        let mut sender = exchange.stream.try_clone().expect("a second handle");
        let writer = std::thread::spawn(move || {
            let _ = sender.write_all(&vec![b'a'; LARGE]);
        });
        count.fetch_add(exchange.read_body(LARGE), Ordering::SeqCst);
        writer.join().expect("everything was sent");
        None
    });
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &api.config());
    let mut connection = tunnel(&gateway);
    let mut sender = connection.try_clone();
    let writer = std::thread::spawn(move || sender.send_raw(vec![b'c'; LARGE]));
    let bytes = connection.take(LARGE);
    assert!(bytes.iter().all(|byte| *byte == b'a'));
    writer.join().expect("everything was sent");
    wait_until("the API has everything", || received.load(Ordering::SeqCst) == LARGE);
}

#[test]
fn client_that_half_closes_a_tunnel_still_receives() {
    let api = RawApi::start(|mut exchange| {
        exchange.write(SWITCH);
        let mut all = std::mem::take(&mut exchange.rest);
        let _ = exchange.stream.read_to_end(&mut all);
        exchange.write(format!("received {}", all.len()));
        None
    });
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &api.config());
    let mut connection = tunnel(&gateway);
    connection.send_raw(vec![0; 100_000]);
    connection.end_of_sending();
    assert_eq!(String::from_utf8_lossy(&connection.rest()), "received 100000");
}

#[test]
fn api_that_half_closes_a_tunnel_ends_it_with_all_its_data() {
    let api = RawApi::start(|mut exchange| {
        exchange.write(SWITCH);
        exchange.write(vec![b'x'; 1 << 20]);
        let _ = exchange.stream.shutdown(Shutdown::Write);
        exchange.until_closed();
        None
    });
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &api.config());
    let mut connection = tunnel(&gateway);
    assert_eq!(connection.rest().len(), 1 << 20);
}

#[test]
fn bytes_behind_the_switch_are_the_first_of_the_tunnel() {
    let api = RawApi::start(|mut exchange| {
        exchange.write(format!("{SWITCH}early"));
        Some(exchange.stream).filter(|_| exchange.rest == b"never")
    });
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &api.config());
    let mut connection = tunnel(&gateway);
    assert_eq!(String::from_utf8_lossy(&connection.rest()), "early");
}

#[test]
fn switch_to_another_protocol_is_not_requested() {
    for protocol in ["h2c", "TLS/1.0", "websocket, h2c", "websocketx"] {
        let api = RawApi::start(|mut exchange| {
            let asked = exchange.has_field("upgrade:");
            exchange.write(response(if asked { "500 X" } else { "200 OK" }, &[], ""));
            Some(exchange.stream)
        });
        let origin = Origin::start();
        let gateway = Gateway::with(&origin, &api.config());
        let mut connection = gateway.client().connect();
        connection.send_raw(request("/socket.io/", protocol));
        let answer = connection.read("GET", Kind::Forwarded).expect("a response");
        assert_eq!(answer.status, 200, "{protocol}");
    }
}

#[test]
fn tunnel_continues_during_drain() {
    let origin = Origin::start();
    origin.when(Rule::on("/socket.io/").upgrade());
    let mut gateway = Gateway::with(&origin, r#"server.drain = "50s""#);
    let mut connection = tunnel(&gateway);
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("it drains", || gateway.client().try_connect().is_err());
    for _ in 0..3 {
        connection.send_raw("still here");
        assert_eq!(connection.take(10), b"still here");
    }
    connection.end_of_sending();
    connection.rest();
    assert_eq!(gateway.wait().code, Some(0));
}
