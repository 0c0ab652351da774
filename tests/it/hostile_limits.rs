//! Slow, idle or many clients: each wait has a deadline or gets 503, and other clients are served
//! meanwhile.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn scene(config: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, config);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    (origin, gateway)
}

/// Whether the peer has closed, as far as a write shows it.
fn drips(
    connection: &mut Connection,
    bytes: impl Iterator<Item = u8>,
    pause: Duration,
) -> Duration {
    let began = Instant::now();
    for byte in bytes {
        if connection.try_send_raw(&[byte]).is_err() || began.elapsed() > Duration::from_secs(30) {
            break;
        }
        pace(pause);
    }
    began.elapsed()
}

#[test]
fn slow_head_is_cut_off_at_its_deadline() {
    let (_origin, gateway) = scene(r#"server.header_timeout = "1s""#);
    let client = gateway.client();
    let heads: [(&str, bool); 5] = [
        ("GET /x HTTP/1.1\r\nHost: x\r\nX-Long: ", false),
        ("", false),
        ("GET /x HTTP/1.1\r\nHost: x\r\nX-Long: ", true),
        ("\r\n", true),
        ("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX: ", true),
    ];
    let drippers: Vec<_> = heads
        .into_iter()
        .map(|(start, kept)| {
            let client = client.clone();
            std::thread::spawn(move || {
                let mut connection = client.connect();
                if kept {
                    client.get("/x").send_on(&mut connection).assert_status(200);
                }
                connection.send_raw(start);
                let filler = if start == "\r\n" {
                    "\r\n".bytes().cycle().take(1000)
                } else {
                    "xx".bytes().cycle().take(1000)
                };
                drips(&mut connection, filler, Duration::from_millis(100))
            })
        })
        .collect();
    // Others are served meanwhile.
    assert!(client.get(P).bearer("tok-a").send().assert_status(200).is_hit());
    for (dripper, head) in drippers.into_iter().zip(heads) {
        let took = dripper.join().expect("no panic");
        assert!(took < Duration::from_secs(20), "{head:?} held its connection for {took:?}");
        assert!(took > Duration::from_millis(500), "{head:?} was cut off after {took:?}");
    }
}

#[test]
fn silent_connection_is_closed() {
    let (_origin, gateway) =
        scene(r#"server = { header_timeout = "1s", keepalive_timeout = "2s" }"#);
    let client = gateway.client();
    let began = Instant::now();
    assert_eq!(client.connect().rest(), b"");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let mut kept = client.connect();
    client.get(P).bearer("tok-a").send_on(&mut kept).assert_status(200);
    // Within the keepalive time, which starts again with each request.
    for _ in 0..3 {
        pace(Duration::from_millis(700));
        client.get("/x").send_on(&mut kept).assert_status(200);
    }
    let idle = Instant::now();
    assert_eq!(kept.rest(), b"");
    let took = idle.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(20)).contains(&took), "{took:?}");
}

#[test]
fn connection_over_the_limit_gets_503_with_retry_after() {
    let (_origin, gateway) = scene("server.max_connections = 5");
    let client = gateway.client();
    // One that came before may still be counted for a moment.
    let connected = || {
        let mut found = None;
        wait_until("there is room for a connection", || {
            let mut connection = client.connect();
            let sent = connection.try_send_raw(&client.get(P).bearer("tok-a").bytes()).is_ok();
            let answer = sent.then(|| connection.read("GET", Kind::Intercepted)).flatten();
            found = answer.is_some_and(|answer| answer.status == 200).then_some(connection);
            found.is_some()
        });
        found.expect("it was waited for")
    };
    let mut held: Vec<_> = (0..5).map(|_| connected()).collect();
    let refused = client.connect().read("GET", Kind::Intercepted).expect("an answer");
    refused.assert_error(503, "unavailable");
    assert!(
        refused.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()),
        "{refused:#?}"
    );
    // Those who have one go on.
    for connection in &mut held {
        client.get(P).bearer("tok-a").send_on(connection).assert_status(200);
    }
    // A crowd that is turned away does not keep others out once there is room.
    let mut crowd: Vec<_> = (0..400).map(|_| client.connect()).collect();
    for connection in &mut crowd {
        // Refused with 503, or closed beyond the number of refusals.
        connection.read("GET", Kind::Intercepted);
    }
    drop(held);
    let began = Instant::now();
    wait_until("there is room", || {
        client.get(P).bearer("tok-a").try_send().is_some_and(|answer| answer.status == 200)
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(crowd);
}

#[test]
fn http2_connections_count_in_the_limit() {
    let (_origin, gateway) = scene("server.max_connections = 2");
    let client = gateway.client();
    // One that came before may still be counted for a moment: its caller has left, and the gateway
    // has not seen it yet.
    let connected = || {
        let mut found = None;
        wait_until("there is room for a connection", || {
            let http2 = Http2::connect(&client);
            let answer = http2.call("GET", P, &[("authorization", "Bearer tok-a")], b"");
            found = answer.is_ok_and(|answer| answer.status == 200).then_some(http2);
            found.is_some()
        });
        found.expect("it was waited for")
    };
    let held = [connected(), connected()];
    client
        .connect()
        .read("GET", Kind::Intercepted)
        .expect("an answer")
        .assert_error(503, "unavailable");
    drop(held);
    wait_until("there is room", || {
        client.get(P).bearer("tok-a").try_send().is_some_and(|answer| answer.status == 200)
    });
}

#[test]
fn tls_handshake_counts_as_a_connection_and_has_a_deadline() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let config = r#"
        server.max_connections = 3
        server.header_timeout = "2s"
        server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }
    "#;
    let setup = Gateway::set_up(&origin)
        .file("cert.pem", &certificate)
        .file("key.pem", &key)
        .config(config);
    let gateway = setup.start();
    let client = gateway.client();
    // Nothing, the beginning of a record, and a handshake without its end.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let beginnings = [&b""[..], &hello[..3], &hello[..]];
    let (mut began, mut held) = (Instant::now(), Vec::new());
    // An earlier connection may still be counted, so that one of these is refused: try again.
    wait_until("all three are counted", || {
        began = Instant::now();
        held = beginnings
            .iter()
            .map(|start| {
                let mut stream = TcpStream::connect(gateway.tls_address()).expect("a connection");
                // One that was counted out is closed, and may be so before this.
                let _ = stream.write_all(start);
                stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
                stream
            })
            .collect();
        std::iter::repeat_with(|| {
            client.get(P).try_send().is_some_and(|answer| answer.status == 503)
        })
        .take_while(|_| began.elapsed() < Duration::from_secs(1))
        .any(|refused| refused)
    });
    for stream in &mut held {
        let mut rest = Vec::new();
        // An alert, or nothing.
        let _ = stream.read_to_end(&mut rest);
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&took), "{took:?}");
    wait_until("there is room", || {
        client.get("/x").try_send().is_some_and(|answer| answer.status == 200)
    });
    let request = format!(
        "GET {P} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\nConnection: close\r\n\r\n"
    );
    let answer = authority.exchange(gateway.tls_address(), &request).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn gateway_recovers_from_descriptor_exhaustion() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::set_up(&origin).open_files(64).start();
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    // The kernel takes them, the gateway cannot.
    let crowd: Vec<_> = (0..200).map(|_| client.connect()).collect();
    let used = gateway.cpu_time();
    pace(Duration::from_secs(1));
    let spun = gateway.cpu_time() - used;
    assert!(
        spun < Duration::from_millis(700),
        "it spins: {spun:?} of CPU time in a second of nothing"
    );
    drop(crowd);
    wait_until("it serves again", || {
        client.get(P).bearer("tok-a").try_send().is_some_and(|answer| answer.status == 200)
            && client.get("/x").try_send().is_some_and(|answer| answer.status == 200)
    });
}

#[test]
fn thousands_of_idle_connections_leave_room_for_others() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    let count = usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(500).min(5000);
    let (_origin, gateway) =
        scene(r#"server = { header_timeout = "10m", keepalive_timeout = "10m" }"#);
    let client = gateway.client();
    let before = gateway.memory();
    let (silent, kept, begun) = (count / 3, count / 3, count / 3);
    let mut idle: Vec<_> = (0..silent).map(|_| client.connect()).collect();
    for _ in 0..kept {
        let mut connection = client.connect();
        client.get(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
        idle.push(connection);
    }
    for _ in 0..begun {
        let mut connection = client.connect();
        connection.send_raw("GET /x HTTP/1.1\r\nHost: x\r\nX: ");
        idle.push(connection);
    }
    let answer = client.get(P).bearer("tok-a").send();
    assert!(answer.assert_status(200).is_hit());
    let each = gateway.memory().saturating_sub(before) / idle.len();
    println!("{} idle connections, {each} KiB each, {before} KiB before", idle.len());
    assert!(each <= 32, "{each} KiB an idle connection");
    drop(idle);
    client.get("/x").send().assert_status(200);
}

#[test]
fn client_that_reads_nothing_is_disconnected() {
    let (origin, gateway) = scene("server.write_timeout = \"10s\"");
    let large = vec![b'x'; 64 << 20];
    origin.when(
        Rule::on("/large")
            .answer(Answer::new(200).header("Content-Type", "text/plain").body(large)),
    );
    let http1 = client_of_nothing(&gateway);
    let mut frames = Frames::open(&gateway.client(), &[(4, 0)]);
    let list = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/large")];
    frames.request(1, &list).expect("an open connection");
    let busy = || gateway.metric("requests_total", &[("route", "forward")]);
    let began = Instant::now();
    wait_until("both are given up", || busy() >= 2.0);
    println!("given up after {:?}", began.elapsed());
    assert!(gateway.memory() < 256 << 10, "{} KiB", gateway.memory());
    drop((http1, frames));
}

#[test]
fn http2_client_that_reads_nothing_is_disconnected() {
    let (origin, gateway) = scene("server.write_timeout = \"1s\"\nserver.max_connections = 1");
    let body = vec![b'x'; 64 << 20];
    origin.when(
        Rule::on("/large").answer(Answer::new(200).header("Content-Type", "text/plain").body(body)),
    );
    // Windows that never fill: what stops the response is the connection.
    let open = |gateway: &Gateway| {
        let mut frames = Frames::open(&gateway.client(), &[(4, 0x7fff_ffff)]);
        frames.send(8, 0, 0, &0x7fff_0000_u32.to_be_bytes()).expect("an open connection");
        let list =
            [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/large")];
        frames.request(1, &list).expect("an open connection");
        frames
    };
    let frames = open(&gateway);
    origin
        .wait_until("the response begins", |seen| seen.iter().any(|seen| seen.path() == "/large"));
    let began = Instant::now();
    // There is room for another connection when this one has ended.
    wait_until("another client is served", || gateway.client().get("/x").send().status == 200);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(gateway.memory() < 256 << 10, "{} KiB", gateway.memory());
    drop(frames);
    gateway.wait_for_log("client_timeout");
    // The response was the API's, and no error.
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("client_timeout")).expect("a line");
    assert!(!line.contains("error.code"), "{line}");
    // A client that reads slowly is served to the end.
    let gateway = Gateway::with(&origin, "server.write_timeout = \"1s\"");
    let mut frames = open(&gateway);
    let mut received = 0;
    while received < 64 << 20 {
        let frame = frames.next().expect("the whole response");
        if frame.kind == Frames::DATA {
            received += frame.payload.len();
            // A pause of 0.5 s after each 8 MiB.
            if received % (8 << 20) < frame.payload.len() {
                pace(Duration::from_millis(500));
            }
        }
    }
}

/// One who asks and does not read.
fn client_of_nothing(gateway: &Gateway) -> Connection {
    let mut connection = gateway.client().connect();
    connection.send_raw(gateway.client().get("/large").bytes());
    connection
}

#[test]
fn missing_or_slow_body_ends_the_request() {
    let (_origin, gateway) = scene("");
    let senders: Vec<_> =
        [("/slow", false), ("/auth/login", false), ("/slow", true), ("/auth/login", true)]
            .into_iter()
            .map(|(path, dripping)| {
                let client = gateway.client();
                std::thread::spawn(move || {
                    let mut connection = client.connect();
                    connection.send_raw(format!(
                        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
                    ));
                    let began = Instant::now();
                    while dripping && began.elapsed() < Duration::from_secs(120) {
                        if connection.try_send_raw(b"x").is_err() {
                            break;
                        }
                        pace(Duration::from_secs(1));
                    }
                    let answer = connection.read("POST", Kind::Forwarded).expect("an answer");
                    (path, dripping, answer.status, began.elapsed())
                })
            })
            .collect();
    for sender in senders {
        let (path, dripping, status, took) = sender.join().expect("no panic");
        println!("{path} dripping={dripping}: {status} after {took:?}");
        assert_eq!(status, 408);
        assert!(
            took < Duration::from_secs(if dripping { 75 } else { 45 }),
            "{path} {dripping}: {took:?}"
        );
    }
}
