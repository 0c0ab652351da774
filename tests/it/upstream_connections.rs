//! Kept connections to the API: dead ones cost no request that may be repeated, a POST is sent
//! once, and the bounds of the pool hold.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt::set_socket_linger;

use crate::support::*;

/// What the API does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Respond,
    /// Ends the connection without a response: by a reset, or by a close.
    End {
        reset: bool,
    },
}

#[derive(Default)]
struct Seen {
    /// How often each request arrived, by its target.
    targets: Mutex<HashMap<String, usize>>,
    open: AtomicUsize,
    opened: AtomicUsize,
}

/// An API whose `act` decides by the number of its connection, the number of the request on it, and
/// the request's line.
struct Api {
    address: SocketAddr,
    seen: Arc<Seen>,
}

impl Api {
    fn start(act: impl Fn(usize, usize, &str) -> Act + Send + Sync + 'static) -> Api {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (seen, act) = (Arc::new(Seen::default()), Arc::new(act));
        let shared = seen.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (seen, act) = (shared.clone(), act.clone());
                let number = seen.opened.fetch_add(1, Ordering::SeqCst);
                seen.open.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    serve(stream, number, &*act, &seen);
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Api { address, seen }
    }

    fn gateway(&self, origin: &Origin, more: &str) -> Gateway {
        Gateway::with(origin, &format!("upstream = {{ url = \"http://{}\"{more} }}", self.address))
    }

    fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    fn count(&self, target: &str) -> usize {
        self.seen.targets.lock().get(target).copied().unwrap_or_default()
    }
}

fn serve(
    mut stream: TcpStream,
    number: usize,
    act: &dyn Fn(usize, usize, &str) -> Act,
    seen: &Seen,
) {
    let _ = stream.set_nodelay(true);
    for request in 0.. {
        let Some(line) = read_request(&mut stream) else { return };
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        *seen.targets.lock().entry(target.clone()).or_default() += 1;
        if let Act::End { reset } = act(number, request, &line) {
            if reset {
                let _ = set_socket_linger(&stream, Some(Duration::ZERO));
            }
            return;
        }
        let body = if target.starts_with("/auth/validateToken") {
            let employee = employee_of("tok-a");
            format!(
                r#"{{"success":true,"employee":"{employee}","customer":"{DUCK}","accessLevel":"VIEWER"}}"#
            )
        } else {
            r#"{"name":"x"}"#.to_owned()
        };
        let _ = stream
            .write_all(response("200 OK", &["Content-Type: application/json"], &body).as_bytes());
    }
}

/// Reads a request with its body; returns its first line.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let lower = head.to_ascii_lowercase();
            let length: Option<usize> = lower
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.parse().ok());
            let is_whole = match length {
                Some(length) => bytes.len() >= end + 4 + length,
                None => {
                    !lower.contains("transfer-encoding: chunked") || bytes.ends_with(b"0\r\n\r\n")
                }
            };
            if is_whole {
                return head.lines().next().map(str::to_owned);
            }
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
            _ => return None,
        }
    }
}

/// Opens so many connections to the API at once; they are kept afterwards.
fn keep_connections(gateway: &Gateway, count: usize) {
    let calls: Vec<_> = (0..count)
        .map(|number| gateway.client().call("GET", &format!("/warm/{number}")).start())
        .collect();
    for call in calls {
        call.finish().assert_status(200);
    }
}

#[test]
fn dead_kept_connections_fail_no_repeatable_request() {
    for reset in [true, false] {
        let is_dead = Arc::new(AtomicBool::new(false));
        let flag = is_dead.clone();
        let last = Arc::new(AtomicUsize::new(usize::MAX));
        let newest = last.clone();
        // Connections that exist when the fault begins end at their next request.
        let api = Api::start(move |connection, _, line| {
            let is_old = connection <= newest.load(Ordering::SeqCst);
            if flag.load(Ordering::SeqCst) && is_old {
                return Act::End { reset };
            }
            if line.contains("/warm/") {
                pace(Duration::from_millis(300));
            }
            Act::Respond
        });
        let origin = Origin::start();
        let gateway = api.gateway(&origin, ", max_in_flight = 256");
        gateway.client().get(&name_of(DUCK)).bearer("tok-a").send().assert_status(200);
        keep_connections(&gateway, 64);
        assert!(api.open() >= 32, "{} connections", api.open());
        last.store(api.seen.opened.load(Ordering::SeqCst) - 1, Ordering::SeqCst);
        is_dead.store(true, Ordering::SeqCst);
        let client = gateway.client();
        let body = "x".repeat(32 << 10);
        for number in 0..40 {
            let id = customer(number);
            client.get(&name_of(&id)).bearer("tok-a").send().assert_status(200);
            client.get(&format!("/plain/{number}")).send().assert_status(200);
            client.get(&format!("/customer/{id}")).bearer("tok-a").send().assert_status(200);
            for target in [format!("/put/{number}"), format!("/customer/{id}/put")] {
                client.call("PUT", &target).bearer("tok-a").body(&body).send().assert_status(200);
                client
                    .call("PUT", &target)
                    .bearer("tok-a")
                    .chunked(&[body.as_bytes()])
                    .send()
                    .assert_status(200);
                let put = client.call("PUT", &target).bearer("tok-a").h2_body(&body);
                client.send_h2c(vec![put]).remove(0).assert_status(200);
            }
        }
        assert_eq!(gateway.metric("upstream_errors_total", &[]), 0.0, "{reset}");
    }
}

#[test]
fn post_arrives_at_most_once_while_connections_are_reset() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let api = Api::start(move |_, _, line| {
        // One in three, with a generator whose period is longer than the test.
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        match line.starts_with("POST") && mixed.is_multiple_of(3) {
            true => Act::End { reset: mixed.is_multiple_of(2) },
            false => Act::Respond,
        }
    });
    let origin = Origin::start();
    let gateway = api.gateway(&origin, "");
    gateway.client().get("/plain").send().assert_status(200);
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (client, served, failed) = (gateway.client(), &served, &failed);
            scope.spawn(move || {
                let body = "x".repeat(if lane % 2 == 0 { 10 } else { 100 << 10 });
                for number in 0..250 {
                    let prefix = if number % 2 == 0 { "/customer" } else { "/write" };
                    let call = client.post(&format!("{prefix}/{lane}-{number}")).bearer("tok-a");
                    let response = if number % 3 == 0 {
                        client.send_h2c(vec![call.h2_body(&body)]).remove(0)
                    } else {
                        call.body(&body).send()
                    };
                    match response.status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        502 => failed.fetch_add(1, Ordering::Relaxed),
                        _ => panic!("{response:#?}"),
                    };
                }
            });
        }
    });
    let targets = api.seen.targets.lock().clone();
    let repeated: Vec<_> =
        targets.iter().filter(|(target, count)| target.contains('-') && **count > 1).collect();
    assert!(repeated.is_empty(), "{repeated:?}");
    assert!(served.into_inner() > 500 && failed.into_inner() > 100);
}

#[test]
fn post_on_a_connection_that_the_api_closed_succeeds() {
    // Closed while idle: nothing is sent on it, so the POST uses another connection.
    let api = Api::start(
        |_, request, _| if request == 0 { Act::Respond } else { Act::End { reset: true } },
    );
    let origin = Origin::start();
    let gateway = api.gateway(&origin, ", keepalive_timeout = \"500ms\"");
    for number in 0..5 {
        let target = format!("/write/{number}");
        gateway.client().post(&target).body("x").send().assert_status(200);
        assert_eq!(api.count(&target), 1);
        wait_until("the idle connection is closed", || api.open() == 0);
    }
}

#[test]
fn idle_connections_are_closed_after_their_time() {
    let api = Api::start(|_, _, _| Act::Respond);
    let origin = Origin::start();
    let gateway = api.gateway(&origin, ", keepalive_timeout = \"2s\"");
    gateway.client().get("/plain").send().assert_status(200);
    assert_eq!(api.open(), 1);
    let began = std::time::Instant::now();
    wait_until("the connection is closed", || api.open() == 0);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1500) && took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn number_of_idle_connections_is_limited() {
    for (most, config) in [(2, ", max_idle_connections = 2"), (0, ", max_idle_connections = 0")] {
        let api = Api::start(|_, _, line| {
            if line.contains("/warm/") {
                pace(Duration::from_millis(300));
            }
            Act::Respond
        });
        let origin = Origin::start();
        let gateway = api.gateway(&origin, config);
        keep_connections(&gateway, 12);
        wait_until("the others are closed", || api.open() <= most);
        assert_eq!(
            gateway.metric("upstream_address_connections", &[("state", "idle")]),
            most as f64
        );
        gateway.client().get("/plain").send().assert_status(200);
    }
}

#[test]
fn every_framing_of_a_response_is_read() {
    const JSON: &str = "Content-Type: application/json\r\n";
    let long_extension = "x".repeat(3000);
    let cases = [
        (format!("HTTP/1.0 200 OK\r\n{JSON}\r\n{{\"a\":1}}"), false),
        (format!("HTTP/1.0 200 OK\r\n{JSON}Content-Length: 7\r\n\r\n{{\"a\":1}}"), false),
        (
            format!(
                "HTTP/1.0 200 OK\r\n{JSON}Connection: keep-alive\r\nContent-Length: 7\r\n\r\n{{\"a\":1}}"
            ),
            true,
        ),
        (format!("HTTP/1.1 200 OK\r\n{JSON}\r\n{{\"a\":1}}"), false),
        (
            format!(
                "HTTP/1.1 200 OK\r\n{JSON}Connection: close\r\nContent-Length: 7\r\n\r\n{{\"a\":1}}"
            ),
            false,
        ),
        (
            format!(
                "HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n3\r\n{{\"a\r\n4\r\n\":1}}\r\n0\r\n\r\n"
            ),
            true,
        ),
        (
            format!(
                "HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n\
                 7;a={long_extension};b=\"c\"\r\n{{\"a\":1}}\r\n0\r\nX-T: 1\r\n\r\n"
            ),
            true,
        ),
        (
            format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
                 HTTP/1.1 200 OK\r\n{JSON}Content-Length: 7\r\n\r\n{{\"a\":1}}"
            ),
            true,
        ),
    ];
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(&name_of(DUCK)).bearer("tok-a").send().assert_status(200);
    for (number, (bytes, is_reusable)) in cases.iter().enumerate() {
        let id = customer(number);
        for target in [name_of(&id), format!("/plain/{number}"), format!("/customer/{id}")] {
            let rule = Rule::on(&target);
            let rule = if *is_reusable {
                rule.raw_kept_open(bytes.as_str())
            } else {
                rule.raw(bytes.as_str())
            };
            origin.when(rule.times(1));
            let response = gateway.client().get(&target).bearer("tok-a").send();
            assert_eq!(response.assert_status(200).text(), "{\"a\":1}", "{target} {bytes:?}");
            assert!(response.broken_off.is_none(), "{target} {bytes:?}");
            let connection = origin.last(&target).expect("it was sent").connection;
            gateway.client().get("/next").send().assert_status(200);
            let next = origin.last("/next").expect("it was sent").connection;
            assert!(*is_reusable || connection != next, "{target} {bytes:?}");
        }
    }
}
