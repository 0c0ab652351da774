//! `upstream.url` as a list, as a name with a trailing dot and as an IPv6 address: which address
//! receives a request, with which `Host`, and how an address that fails is avoided.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::sockopt::set_socket_linger;

use crate::support::*;

const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Two stand-ins at different addresses.
fn two() -> [Origin; 2] {
    let both = [Origin::start(), Origin::start_at(SECOND)];
    for origin in &both {
        origin.knows("tok-a", "VIEWER", DUCK);
    }
    // The checks of each response know the fields that the first one has sent.
    Client::of_origin(&both[0]).get("/fields").send().assert_status(200);
    both
}

fn list(first: SocketAddr, second: SocketAddr) -> String {
    format!(
        "upstream = {{ url = [\"http://{first}\", \"http://{second}\"], connect_timeout = \"2s\" }}"
    )
}

/// A path of each route for a customer that was not requested before.
fn targets(number: usize) -> [String; 3] {
    let id = customer(number);
    [name_of(&id), format!("/plain/{number}"), format!("/customer/{id}")]
}

/// Requests on every route over HTTP/1.1 and HTTP/2, none of which fails.
fn assert_all_served(gateway: &Gateway, rounds: usize) {
    let client = gateway.client();
    for round in 0..rounds {
        for target in targets(round) {
            client.get(&target).bearer("tok-a").send().assert_status(200);
        }
        let calls = targets(round + 1000).map(|target| client.get(&target).bearer("tok-a"));
        for response in client.send_h2c(calls.into()) {
            response.assert_status(200);
        }
    }
}

/// Health of each address as `/stats` reports it.
fn states(gateway: &Gateway) -> Vec<(String, String)> {
    let stats = gateway.stats();
    let addresses = stats["upstream"]["addresses"].as_array().expect("a list").clone();
    let text = |address: &serde_json::Value, key: &str| {
        address[key].as_str().expect("a string").to_owned()
    };
    addresses.iter().map(|address| (text(address, "address"), text(address, "state"))).collect()
}

fn state_of(gateway: &Gateway, address: SocketAddr) -> String {
    let found = states(gateway).into_iter().find(|(known, _)| *known == address.to_string());
    found.expect("a known address").1
}

/// An API at an own address that resets each connection once a request arrived.
fn resetting() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((SECOND, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let count = Arc::new(AtomicUsize::new(0));
    let resets = count.clone();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 4096]);
            resets.fetch_add(1, Ordering::Relaxed);
            let _ = set_socket_linger(&stream, Some(std::time::Duration::ZERO));
        }
    });
    (address, count)
}

#[test]
fn every_url_of_a_list_is_used_with_its_own_host() {
    let both = two();
    let gateway = Gateway::with(&both[0], &list(both[0].address(), both[1].address()));
    assert_all_served(&gateway, 20);
    for origin in &both {
        assert!(origin.requests() > 10, "{} requests at {}", origin.requests(), origin.address());
        for seen in origin.seen() {
            assert_eq!(seen.header("host"), Some(origin.address().to_string().as_str()));
        }
    }
    assert_eq!(states(&gateway).len(), 2);
}

#[test]
fn refusing_address_of_a_list_fails_no_request() {
    let both = two();
    let gateway = Gateway::with(&both[0], &list(both[0].address(), both[1].address()));
    assert_all_served(&gateway, 3);
    both[1].stop();
    assert_all_served(&gateway, 10);
    for number in 0..10 {
        gateway.client().post(&format!("/write/{number}")).body("x").send().assert_status(200);
    }
    assert_eq!(gateway.metric("upstream_errors_total", &[]), 0.0);
}

#[test]
fn resetting_address_of_a_list_fails_no_get() {
    let [good, _] = two();
    let (bad, resets) = resetting();
    let gateway = Gateway::with(&good, &list(good.address(), bad));
    assert_all_served(&gateway, 10);
    assert!(resets.load(Ordering::Relaxed) > 0, "the other address received no request");
    wait_until("it is left out", || {
        assert_all_served(&gateway, 3);
        state_of(&gateway, bad) == "ejected"
    });
    assert_eq!(gateway.metric("upstream_errors_total", &[]), 0.0);
}

#[test]
fn silent_address_of_a_list_fails_no_fetch() {
    let both = two();
    let config = list(both[0].address(), both[1].address()).replace("2s", "2s\", timeout = \"4s");
    let gateway = Gateway::with(&both[0], &config);
    let gate = Gate::closed();
    both[1].when(Rule::on("/customer/").hold(&gate));
    let pending: Vec<_> = (0..16)
        .map(|number| gateway.client().get(&targets(number)[0]).bearer("tok-a").start())
        .collect();
    for pending in pending {
        pending.finish().assert_status(200);
    }
    assert!(both[1].count(|seen| seen.path().starts_with("/customer/")) > 0);
    gate.open();
}

#[test]
fn ejected_address_is_reported_and_used_again_later() {
    let both = two();
    let (first, second) = (both[0].address(), both[1].address());
    let gateway = Gateway::with(&both[0], &list(first, second));
    both[1].stop();
    wait_until("the address is ejected", || {
        assert_all_served(&gateway, 1);
        state_of(&gateway, second) == "ejected"
    });
    assert_eq!(state_of(&gateway, first), "healthy");
    assert_eq!(gateway.metric("upstream_address_state", &[("state", "ejected")]), 1.0);
    assert_eq!(gateway.metric("upstream_address_state", &[("state", "healthy")]), 1.0);
    let metrics = gateway.metrics();
    let series: Vec<_> =
        metrics.lines().filter(|line| line.contains("upstream_address_")).collect();
    assert!(!series.is_empty());
    for line in series {
        assert!(!line.contains("127.0.0") && !line.contains(&second.port().to_string()), "{line}");
    }
    gateway.wait_for_log("address of the API ejected after failures");
    both[1].resume();
    let mut number = 100;
    wait_until("the address is healthy again", || {
        number += 1;
        gateway.client().get(&format!("/plain/{number}")).send().assert_status(200);
        state_of(&gateway, second) == "healthy"
    });
    gateway.wait_for_log("address of the API recovered");
}

#[test]
fn bypass_requests_do_not_eject_an_address() {
    let both = two();
    let gateway = Gateway::with(&both[0], &list(both[0].address(), both[1].address()));
    let client = gateway.client();
    client.get(&name_of(DUCK)).bearer("tok-a").send().assert_status(200);
    for origin in &both {
        origin.when(Rule::on(&name_of(DUCK)).answer(Answer::error(503, "down")));
    }
    for number in 0..40 {
        client
            .get(&format!("{}?boom={number}", name_of(DUCK)))
            .bearer("tok-a")
            .send()
            .assert_status(503);
    }
    for (address, state) in states(&gateway) {
        assert_eq!(state, "healthy", "{address}");
    }
}

#[test]
fn name_with_a_trailing_dot_sends_host_without_it() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let port = origin.address().port();
    for (host, expected) in [("localhost.", "localhost"), ("LocalHost", "localhost")] {
        let gateway = Gateway::with(&origin, &format!("upstream.url = \"http://{host}:{port}\""));
        for target in targets(1) {
            gateway.client().get(&target).bearer("tok-a").send().assert_status(200);
            let seen = origin.last(&target).expect("it was sent");
            assert_eq!(
                seen.header("host"),
                Some(format!("{expected}:{port}").as_str()),
                "{target}"
            );
        }
        let stats = gateway.stats();
        assert_eq!(stats["upstream"]["addresses"][0]["host"], "localhost");
    }
}

#[test]
fn ipv6_address_is_connected_to_and_named_in_brackets() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return;
    }
    let origin = Origin::start_at(Ipv6Addr::LOCALHOST.into());
    origin.knows("tok-a", "VIEWER", DUCK);
    let port = origin.address().port();
    let gateway =
        Gateway::with(&origin, &format!("upstream.url = \"http://[0:0:0:0:0:0:0:1]:{port}/\""));
    for target in targets(1) {
        gateway.client().get(&target).bearer("tok-a").send().assert_status(200);
        let seen = origin.last(&target).expect("it was sent");
        assert_eq!(seen.header("host"), Some(format!("[::1]:{port}").as_str()));
    }
}

#[test]
fn check_names_what_is_wrong_with_a_list_of_urls() {
    for (urls, expected) in [
        (r#"["http://a.example", "https://b.example"]"#, Some("http and https are mixed")),
        ("[]", Some("is empty")),
        (r#"["http://a.example", "HTTP://A.example:80/"]"#, Some("duplicate")),
        (r#"["http://a.example", "http://a.example."]"#, Some("duplicate")),
        (r#"["http://[::1]:80", "http://[0::1]"]"#, Some("duplicate")),
        (r#"["http://a.example", "b.example"]"#, Some("scheme")),
        (r#"["http://a.example", 1]"#, Some("upstream.url")),
        (r#""http://127.0.0.1.:80""#, Some("expected a DNS name or an IP address")),
        (r#""http://a.example..""#, Some("expected a DNS name or an IP address")),
        (r#""http://.""#, Some("expected a DNS name or an IP address")),
        (r#""http://a.example.:8080""#, None),
        (r#"["https://a.example", "https://b.example:8443", "https://[::1]"]"#, None),
    ] {
        let dir = TempDir::new();
        let path = dir.write("gateway.toml", &format!("[upstream]\nurl = {urls}\n"));
        let run = run_binary(&["check", "-c", &path.display().to_string()], b"");
        let output = format!("{}{}", run.stdout, run.stderr);
        assert_eq!(run.code, Some(if expected.is_some() { 78 } else { 0 }), "{urls}: {output}");
        assert!(output.contains(expected.unwrap_or_default()), "{urls}: {output}");
    }
}
