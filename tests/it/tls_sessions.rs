//! TLS sessions and ALPN: which handshakes are resumed, and which protocol a connection speaks.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use crate::support::*;

const REQUEST: &str = "GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\
                       Connection: close\r\n\r\n";

const TLS: &str = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;

const CLIENTS: &str = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem",
    client_ca_file = "{dir}/clients.pem", client_auth = "WHICH" }"#;

fn api() -> Origin {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin
}

fn start(origin: &Origin, authority: &Authority, config: &str, clients: &str) -> Gateway {
    let (certificate, key) = authority.certificate().pem();
    let setup = Gateway::set_up(origin).file("cert.pem", &certificate).file("key.pem", &key);
    setup.file("clients.pem", clients).config(config).start()
}

/// Sends one request with `openssl s_client`; returns its output.
fn openssl(gateway: &Gateway, arguments: &[&str]) -> String {
    let address = gateway.tls_address().to_string();
    let mut client = Command::new("openssl")
        .args(["s_client", "-ign_eof", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    // The client may exit before it reads.
    let _ = client.stdin.take().expect("an input").write_all(REQUEST.as_bytes());
    let output = client.wait_with_output().expect("it ends");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn is_resumed(printed: &str) -> bool {
    assert!(printed.contains("HTTP/1.1 200"), "{printed}");
    printed.contains("Reused, TLS")
}

/// TLS versions, with tickets or session ids.
const WAYS: [&[&str]; 3] = [&["-tls1_3"], &["-tls1_2"], &["-tls1_2", "-no_ticket"]];

fn with<'a>(way: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    way.iter().chain(more).copied().collect()
}

/// Number of connections of a test; `TLS_CONNECTIONS` sets another one.
fn connections() -> usize {
    std::env::var("TLS_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

fn exchange(client: &SessionClient, gateway: &Gateway) {
    let answer = client.exchange(gateway.tls_address(), REQUEST).expect("a response");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Opens connections whose sessions could evict others.
fn others(gateway: &Gateway, authority: &Authority, count: usize) {
    for client in authority.clients_with(Sessions::Tls12Forgotten).take(count) {
        exchange(&client, gateway);
    }
}

#[test]
fn session_of_every_client_resumes() {
    let origin = api();
    let authority = Authority::new();
    let gateway = start(&origin, &authority, TLS, "");
    let count = connections();
    let handshakes = |kind| gateway.metric("tls_handshakes_total", &[("kind", kind)]);
    for sessions in [Sessions::Tls13Tickets, Sessions::Tls12Tickets, Sessions::Tls12Ids] {
        let before = [handshakes("full"), handshakes("resumed")];
        let clients: Vec<_> = authority.clients_with(sessions).take(count).collect();
        for client in clients.iter().chain(&clients) {
            exchange(client, &gateway);
        }
        let made = [handshakes("full") - before[0], handshakes("resumed") - before[1]];
        println!("{sessions:?}: {} full, {} resumed", made[0], made[1]);
        assert_eq!(made, [count as f64; 2], "{sessions:?}");
    }
}

#[test]
fn session_resumes_after_others_and_a_renewed_certificate() {
    let origin = api();
    let authority = Authority::new();
    let gateway = start(&origin, &authority, TLS, "");
    let dir = TempDir::new();
    let file = |index: usize| dir.path().join(format!("session-{index}")).display().to_string();
    for (index, way) in WAYS.into_iter().enumerate() {
        assert!(
            !is_resumed(&openssl(&gateway, &with(way, &["-sess_out", &file(index)]))),
            "{way:?}"
        );
    }
    let resumed = |when: &str| {
        for (index, way) in WAYS.into_iter().enumerate() {
            assert!(
                is_resumed(&openssl(&gateway, &with(way, &["-sess_in", &file(index)]))),
                "{when}: {way:?}"
            );
        }
    };
    let count = connections();
    others(&gateway, &authority, count);
    resumed("after other connections");
    assert!(gateway.metric("tls_handshakes_total", &[("kind", "resumed")]) >= 3.0);
    assert!(gateway.metric("tls_handshakes_total", &[("kind", "full")]) >= 3.0 + count as f64);
    let expiry = || authority.exchange(gateway.tls_address(), REQUEST).is_ok();
    let (certificate, key) = authority.certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    gateway.wait_for_log("reloaded the certificate");
    assert!(expiry());
    resumed("after a renewed certificate");
}

#[test]
fn session_with_client_certificates_never_resumes() {
    let origin = api();
    let (authority, clients) = (Authority::new(), Authority::new());
    let dir = TempDir::new();
    let (certificate, key) = clients.certificate().pem();
    let (certificate, key) = (dir.write("client.pem", &certificate), dir.write("client.key", &key));
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    for which in ["required", "optional"] {
        let gateway = start(&origin, &authority, &CLIENTS.replace("WHICH", which), clients.pem());
        for (index, way) in WAYS.into_iter().enumerate() {
            let session = dir.path().join(format!("{which}-{index}")).display().to_string();
            let shown = ["-cert", certificate.as_str(), "-key", key.as_str()];
            let first = with(&with(way, &shown), &["-sess_out", &session]);
            assert!(!is_resumed(&openssl(&gateway, &first)), "{which}: {way:?}");
            if std::fs::metadata(&session).is_ok_and(|data| data.len() > 0) {
                let again = with(&with(way, &shown), &["-sess_in", &session]);
                assert!(!is_resumed(&openssl(&gateway, &again)), "{which}: {way:?}");
            }
        }
        assert_eq!(gateway.metric("tls_handshakes_total", &[("kind", "resumed")]), 0.0, "{which}");
    }
}

#[test]
fn refused_client_certificate_is_counted_by_cause() {
    let origin = api();
    let (authority, clients) = (Authority::new(), Authority::new());
    let gateway = start(&origin, &authority, &CLIENTS.replace("WHICH", "optional"), clients.pem());
    let address = gateway.tls_address();
    let certificates = [
        ("expired", clients.expired_certificate()),
        ("unknown_authority", Authority::new().certificate()),
        ("wrong_purpose", clients.certificate_of_a_server()),
    ];
    for (cause, certificate) in certificates {
        assert!(authority.exchange_as(&certificate, address, REQUEST).is_err(), "{cause}");
        let labels = [("reason", "client_certificate"), ("cause", cause)];
        gateway.wait_for_metric("tls_handshake_failures_total", &labels, 1.0);
    }
    // rcgen makes version 3 only.
    let dir = TempDir::new();
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .current_dir(dir.path())
            .args(arguments)
            .output()
            .expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    dir.write("ca.pem", clients.pem());
    dir.write("ca.key", &clients.key_pem());
    run(&[
        "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "c.key", "-out", "c.csr", "-subj",
        "/CN=c",
    ]);
    run(&[
        "x509",
        "-req",
        "-in",
        "c.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "c.pem",
    ]);
    let file = |name: &str| dir.path().join(name).display().to_string();
    openssl(&gateway, &["-cert", &file("c.pem"), "-key", &file("c.key")]);
    let labels = [("reason", "client_certificate"), ("cause", "version")];
    gateway.wait_for_metric("tls_handshake_failures_total", &labels, 1.0);
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// The response to these bytes on a connection that offered these protocols.
fn answer(authority: &Authority, gateway: &Gateway, offered: &[&[u8]], bytes: &[u8]) -> Vec<u8> {
    let mut connection =
        authority.connect_offering(offered, gateway.tls_address()).expect("a connection");
    connection.write_all(bytes).expect("it reads");
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    // An HTTP/2 connection stays open, so the first frame is enough.
    while answer.len() < 9 {
        match connection.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("{error}"),
        }
    }
    answer
}

#[test]
fn connection_speaks_the_protocol_that_alpn_agreed_on() {
    let origin = api();
    let authority = Authority::new();
    let gateway = start(&origin, &authority, TLS, "");
    let says = |offered: &[&[u8]], bytes: &[u8]| answer(&authority, &gateway, offered, bytes);
    let frame = |answer: &[u8]| answer.get(3).copied();
    // SETTINGS, from HTTP/2; behind it nothing but GOAWAY where the beginning was wrong.
    assert_eq!(frame(&says(&[b"h2"], PREFACE)), Some(4));
    let wrong = says(&[b"h2"], REQUEST.as_bytes());
    assert_eq!(
        (frame(&wrong), wrong.get(9 + 3), wrong.len()),
        (Some(4), Some(&7), 26),
        "{wrong:?}"
    );
    assert_eq!(wrong.last(), Some(&1), "PROTOCOL_ERROR");
    for offered in [&[b"http/1.1".as_slice()][..], &[]] {
        let refused = says(offered, PREFACE);
        assert!(refused.starts_with(b"HTTP/1.1 400"), "{offered:?}: {refused:?}");
        let served = says(offered, REQUEST.as_bytes());
        assert!(served.starts_with(b"HTTP/1.1 200"), "{offered:?}: {served:?}");
    }
    // Without TLS the first bytes decide.
    let mut plain = gateway.client().connect();
    plain.send_raw(PREFACE);
}

#[test]
fn session_resumes_at_other_gateways_of_the_cluster() {
    let test = "tls_sessions::session_resumes_at_other_gateways_of_the_cluster";
    let Some(redis) = Redis::start(test) else { return };
    let origin = api();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let cluster_key = |digit: &str| format!("a {}1f\n", digit.repeat(62));
    let clients = Authority::new();
    let start_with = |tls: &str, keys: &str| {
        let config =
            format!("{tls}\n[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n", redis.url());
        let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
        let setup = setup.file("clients.pem", clients.pem());
        setup.variable("RUNTIME_DIRECTORY", "{dir}").file("keys", keys).config(&config).start()
    };
    let start = |keys: &str| start_with(TLS, keys);
    let mut first = start(&cluster_key("0"));
    let second = start(&cluster_key("0"));
    let stranger = start(&cluster_key("3"));
    let asks_clients = start_with(&CLIENTS.replace("WHICH", "optional"), &cluster_key("0"));
    let dir = TempDir::new();
    for (index, way) in WAYS[..2].iter().enumerate() {
        let file = dir.path().join(format!("session-{index}")).display().to_string();
        assert!(!is_resumed(&openssl(&first, &with(way, &["-sess_out", &file]))), "{way:?}");
        assert!(is_resumed(&openssl(&second, &with(way, &["-sess_in", &file]))), "{way:?}");
        for other in [&stranger, &asks_clients] {
            assert!(!is_resumed(&openssl(other, &with(way, &["-sess_in", &file]))), "{way:?}");
        }
    }
    assert_eq!(first.upgrade().code, Some(0));
    for (index, way) in WAYS[..2].iter().enumerate() {
        let file = dir.path().join(format!("session-{index}")).display().to_string();
        assert!(
            is_resumed(&openssl(&first, &with(way, &["-sess_in", &file]))),
            "after an upgrade: {way:?}"
        );
    }
    assert_eq!(first.terminate().code, Some(0));
    drop(first);
    let restarted = start(&cluster_key("0"));
    let file = dir.path().join("session-0").display().to_string();
    assert!(
        is_resumed(&openssl(&restarted, &with(WAYS[0], &["-sess_in", &file]))),
        "after a restart"
    );
}
