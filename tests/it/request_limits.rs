//! Limits on connections and requests under way, as a whole and of one address or caller: what is
//! over a limit gets 503 in the API's shape, and others are served.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::*;

/// The fields of a head over HTTP/2.
type Head<'a> = Vec<(&'a str, &'a str)>;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn scene(config: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, config);
    (origin, gateway)
}

/// A connection from another address of this machine.
fn connect_from(source: &str, gateway: &Gateway) -> TcpStream {
    let address = gateway.client().address();
    let source = format!("{source}:0").parse().expect("an address");
    let stream = runtime().block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(source)?;
        socket.connect(address).await
    });
    let stream = stream.and_then(tokio::net::TcpStream::into_std).expect("a connection");
    stream.set_nonblocking(false).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// One request over a fresh connection from that address; the bytes of its response.
fn get_from(source: &str, gateway: &Gateway) -> String {
    let mut stream = connect_from(source, gateway);
    let request = format!(
        "GET {P} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("an open connection");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("a response");
    String::from_utf8(response).expect("text")
}

#[test]
fn one_address_cannot_use_up_all_connections() {
    let (_origin, gateway) = scene("server = { max_connections = 60, trusted_proxies = [] }");
    let idle: Vec<_> = (0..60).map(|_| connect_from("127.0.0.1", &gateway)).collect();
    wait_until("its share is used", || {
        gateway.metric("over_limit_total", &[("limit", "connections_per_address")]) >= 30.0
    });
    for _ in 0..20 {
        assert!(get_from("127.0.0.2", &gateway).starts_with("HTTP/1.1 200"));
    }
    let refused = get_from("127.0.0.1", &gateway);
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{refused}");
    assert!(
        refused.contains(r#""code":"unavailable""#)
            && refused.to_ascii_lowercase().contains("x-request-id"),
        "{refused}"
    );
    drop(idle);
    wait_until("there is room", || get_from("127.0.0.1", &gateway).starts_with("HTTP/1.1 200"));
}

#[test]
fn share_of_connections_can_be_set_and_spares_proxies() {
    let (_origin, gateway) = scene(
        "server = { max_connections = 60, max_connections_per_address = 2, trusted_proxies = [\"127.0.0.2\"] }",
    );
    // One more each time: an idle connection that is counted after a request's is refused itself.
    let mut idle = vec![connect_from("127.0.0.3", &gateway)];
    wait_until("its share is used", || {
        idle.push(connect_from("127.0.0.3", &gateway));
        get_from("127.0.0.3", &gateway).starts_with("HTTP/1.1 503")
    });
    let proxy: Vec<_> = (0..40).map(|_| connect_from("127.0.0.2", &gateway)).collect();
    assert!(get_from("127.0.0.2", &gateway).starts_with("HTTP/1.1 200"));
    drop((idle, proxy));
}

/// Streams of one HTTP/2 connection, each with a request that the API holds.
fn hold(gateway: &Gateway, origin: &Origin, requests: &[Vec<(&str, &str)>]) -> Frames {
    let mut frames = Frames::open(&gateway.client(), &[]);
    let before = origin.requests();
    for (number, list) in (0_u32..).zip(requests) {
        frames.request(number * 2 + 1, list).expect("an open connection");
    }
    origin.wait_until("the API has them", |seen| seen.len() >= before + requests.len());
    frames
}

fn request<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", path)];
    head.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn requests_over_the_limit_get_503_on_every_route() {
    let (origin, gateway) = scene("server.max_requests = 4");
    // One at a time on one connection, so that each has left before the next comes.
    let mut last = gateway.client().connect();
    gateway.client().get(P).bearer("tok-a").send_on(&mut last).assert_status(200);
    gateway.client().get("/x").bearer("tok-a").send_on(&mut last).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/slow").hold(&gate));
    let held = hold(
        &gateway,
        &origin,
        &[request("/slow", &[]), request("/slow", &[]), request("/slow", &[])],
    );
    // One more is served, on every route.
    let bearer = [("authorization", "Bearer tok-a")];
    let other = "/customer/73469a52f4fd7f77ec7b28cd/name";
    for path in ["/x", P, "/customer/x"] {
        gateway.client().get(path).bearer("tok-a").send_on(&mut last).assert_status(200);
    }
    last.send_raw(gateway.client().get("/slow").bytes());
    origin.wait_until("the API has it", |seen| {
        seen.iter().filter(|seen| seen.path() == "/slow").count() == 4
    });
    let mut refused = 0.0;
    for path in ["/x", other, "/customer/x", "/auth/x"] {
        let answer = gateway.client().get(path).bearer("tok-a").send();
        answer.assert_error(503, "unavailable");
        assert_eq!(answer.header("retry-after"), Some("1"), "{path}");
        let http2 =
            Http2::connect(&gateway.client()).call("GET", path, &bearer, b"").expect("a response");
        http2.assert_error(503, "unavailable");
        assert_eq!(http2.header("retry-after"), Some("1"), "{path}");
        refused += 2.0;
    }
    assert_eq!(gateway.metric("over_limit_total", &[("limit", "requests")]), refused);
    // A hit that the fast path writes at once needs no place.
    assert!(gateway.client().get(P).bearer("tok-a").send().assert_status(200).is_hit());
    gate.open();
    drop((held, last));
    for path in ["/x", P, "/customer/x"] {
        let is_served = || gateway.client().get(path).bearer("tok-a").send().status == 200;
        wait_until("there is room", is_served);
    }
}

#[test]
fn one_address_or_caller_cannot_use_up_all_requests() {
    let (origin, gateway) = scene("server.max_requests = 20");
    let gate = Gate::closed();
    origin.when(Rule::on("/slow").hold(&gate));
    // The share of 20 is 16; addresses are those that a trusted proxy forwards.
    let own = ["192.0.2.1, 127.0.0.1", "2001:db8::1"];
    let others = ["192.0.2.2", "2001:db8:0:1::1"];
    for (own, other) in own.into_iter().zip(others) {
        let held =
            hold(&gateway, &origin, &vec![request("/slow", &[("x-forwarded-for", own)]); 16]);
        let refused = gateway.client().get("/x").header("X-Forwarded-For", own).send();
        refused.assert_error(503, "unavailable");
        gateway.client().get("/x").header("X-Forwarded-For", other).send().assert_status(200);
        gateway.client().get("/x").send().assert_status(200);
        drop(held);
        wait_until("there is room", || {
            gateway.client().get("/x").header("X-Forwarded-For", own).send().status == 200
        });
    }
    // One caller at many addresses, whichever place the token is in.
    let addresses: Vec<String> = (0..16).map(|number| format!("198.51.100.{number}")).collect();
    let requests: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| {
            let (path, field) = match number % 4 {
                0 => ("/slow", ("authorization", "Bearer tok-a")),
                1 => ("/slow", ("x-api-key", "tok-a")),
                2 => ("/slow", ("cookie", "token=tok-a")),
                _ => ("/slow?token=tok-a", ("x-a", "b")),
            };
            request(path, &[("x-forwarded-for", address), field])
        })
        .collect();
    let held = hold(&gateway, &origin, &requests);
    gateway.client().get("/x").bearer("tok-a").send().assert_error(503, "unavailable");
    gateway.client().get(P).bearer("tok-a").send().assert_error(503, "unavailable");
    gateway.client().get(P).bearer("tok-b").send().assert_status(200);
    assert_eq!(gateway.metric("over_limit_total", &[("limit", "requests_per_caller")]), 2.0);
    gate.open();
    drop(held);
    wait_until("there is room", || gateway.client().get(P).bearer("tok-a").send().status == 200);
}

#[test]
fn cookies_of_http2_count_as_one_field() {
    let (_origin, gateway) = scene("");
    let cookies: Vec<String> = (0..110).map(|number| format!("c{number}=1")).collect();
    let split: Vec<_> = cookies.iter().map(|cookie| ("cookie", cookie.as_str())).collect();
    for path in ["/x", P, "/customer/x"] {
        let bearer = [("authorization", "Bearer tok-a")];
        let all: Vec<_> = bearer.iter().copied().chain(split.iter().copied()).collect();
        let http2 = Http2::connect(&gateway.client());
        http2.call("GET", path, &all, b"").expect("a response").assert_status(200);
        gateway
            .client()
            .get(path)
            .bearer("tok-a")
            .header("Cookie", &cookies.join("; "))
            .send()
            .assert_status(200);
        let names: Vec<String> = (0..101).map(|number| format!("x-{number}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
        http2.call("GET", path, &many, b"").expect("a response").assert_error(431, "bad_request");
    }
}

#[test]
fn http2_head_that_http1_cannot_carry_is_refused() {
    let (origin, gateway) = scene("");
    let before = origin.requests();
    let long = "A".repeat(3000);
    let scheme = |scheme| {
        vec![(":method", "GET"), (":scheme", scheme), (":authority", "x"), (":path", "/x")]
    };
    let cases: [(Head, &[u8]); 5] = [
        (request("/x", &[("x-a", " y ")]), b"400"),
        (request("/x", &[("x-a", "y\t")]), b"400"),
        (scheme("ftp"), b"400"),
        (scheme(""), b"400"),
        (
            vec![(":method", &long), (":scheme", "http"), (":authority", "x"), (":path", "/x")],
            b"501",
        ),
    ];
    for (list, status) in cases {
        let shown: String = format!("{list:?}").chars().take(120).collect();
        let mut frames = Frames::open(&gateway.client(), &[]);
        frames.request(1, &list).expect("an open connection");
        match frames.outcome(1) {
            // 400 is in the static table (RFC 7541 appendix A), 501 is written out.
            Outcome::Answered(head) => {
                let right = if status == b"400" {
                    head.first() == Some(&0x8c)
                } else {
                    head.first() != Some(&0x88)
                };
                assert!(right, "{shown}: {head:?}");
            }
            Outcome::Reset => assert_eq!(status, b"400", "{shown}"),
            other => panic!("{shown}: {other:?}"),
        }
    }
    let answer = gateway.client().call(&long, "/x").send();
    answer.assert_error(501, "bad_request");
    assert_eq!(origin.requests(), before);
}
