//! A client that sends everything before it reads, and one whose API has stopped sending: neither
//! direction waits for the other.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::*;

/// More than all buffers between client and API hold.
const LARGE: usize = 24 << 20;

/// Short, so that a direction that waits for the other fails in time.
const CONFIG: &str = "server.write_timeout = \"3s\"\n";

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

const UPGRADE: &str = "GET /socket.io/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// An API that sends `head` and `LARGE` bytes at once, while it reads `LARGE` bytes.
fn sends_while_it_reads(head: String) -> (RawApi, Arc<AtomicUsize>) {
    let received = Arc::new(AtomicUsize::new(0));
    let count = received.clone();
    let api = RawApi::start(move |mut exchange| {
        exchange.write(&head);
        let mut sender = exchange.stream.try_clone().expect("a second handle");
        let writer = thread::spawn(move || {
            let _ = sender.write_all(&vec![b'a'; LARGE]);
        });
        count.fetch_add(exchange.read_body(LARGE), Ordering::SeqCst);
        writer.join().expect("everything was sent");
        None
    });
    (api, received)
}

#[test]
fn tunnel_of_a_client_that_sends_all_before_it_reads() {
    let (api, received) = sends_while_it_reads(SWITCH.to_owned());
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &format!("{CONFIG}{}", api.config()));
    let mut connection = gateway.client().connect();
    connection.send_raw(UPGRADE);
    assert_eq!(connection.read("GET", Kind::Forwarded).expect("a response").status, 101);
    connection.send_raw(vec![b'c'; LARGE]);
    wait_until("the API has everything", || received.load(Ordering::SeqCst) == LARGE);
    assert!(connection.take(LARGE).iter().all(|byte| *byte == b'a'));
}

#[test]
fn upload_of_a_client_that_sends_all_before_it_reads() {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {LARGE}\r\n\r\n");
    let (api, received) = sends_while_it_reads(head);
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &format!("{CONFIG}{}", api.config()));
    let mut connection = gateway.client().connect();
    connection
        .send_raw(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n"));
    connection.send_raw(vec![b'c'; LARGE]);
    wait_until("the API has everything", || received.load(Ordering::SeqCst) == LARGE);
    let answer = connection.read("POST", Kind::Forwarded).expect("a response");
    assert_eq!((answer.status, answer.body.len()), (200, LARGE));
}

#[test]
fn tunnel_passes_data_after_the_api_half_closes() {
    let received = Arc::new(AtomicUsize::new(0));
    let count = received.clone();
    let api = RawApi::start(move |mut exchange| {
        exchange.write(SWITCH);
        exchange.write("last words");
        let _ = exchange.stream.shutdown(Shutdown::Write);
        count.fetch_add(exchange.read_body(1 << 20), Ordering::SeqCst);
        exchange.until_closed();
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, &format!("{CONFIG}{}", api.config()));
    let mut connection = gateway.client().connect();
    connection.send_raw(UPGRADE);
    assert_eq!(connection.read("GET", Kind::Forwarded).expect("a response").status, 101);
    assert_eq!(String::from_utf8_lossy(&connection.rest()), "last words");
    connection.send_raw(vec![b'c'; 1 << 20]);
    wait_until("the API has everything", || received.load(Ordering::SeqCst) == 1 << 20);
    connection.end_of_sending();
    wait_until("the API sees the end", || received.load(Ordering::SeqCst) == (1 << 20) + 1);
}
