//! The TLS listener: certificates, client certificates, failed handshakes.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use crate::support::*;

const REQUEST: &str = "GET /customer/73469a52f4fd7f77ec7b28cc/name HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\
                       Connection: close\r\n\r\n";

fn start(origin: &Origin, certificate: &Certificate) -> Gateway {
    let (certificate, key) = certificate.pem();
    let setup = Gateway::set_up(origin).file("cert.pem", &certificate).file("key.pem", &key);
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;
    setup.config(tls).start()
}

#[test]
fn tls_listener_shares_the_cache_of_the_plain_one() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    for _ in 0..2 {
        let answer = authority.exchange(gateway.tls_address(), REQUEST).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with(&redacted_document(DUCK)), "{answer}");
    }
    let plain = gateway.client().get(&name_of(DUCK)).bearer("tok-a").send();
    assert!(plain.assert_status(200).is_hit(), "one cache for both");
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn forwarded_proto_is_https_for_a_request_over_tls() {
    let origin = Origin::start();
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    let request = "GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(
        authority
            .exchange(gateway.tls_address(), request)
            .expect("an answer")
            .starts_with("HTTP/1.1 200")
    );
    let seen = origin.last("/elsewhere").expect("it was forwarded");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

#[test]
fn changed_certificate_is_loaded() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let (first, second) = (Authority::new(), Authority::new());
    let gateway = start(&origin, &first.certificate());
    assert!(first.exchange(gateway.tls_address(), REQUEST).is_ok());
    assert!(second.exchange(gateway.tls_address(), REQUEST).is_err());
    let (certificate, key) = second.certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    wait_until("the new certificate is presented", || {
        second.exchange(gateway.tls_address(), REQUEST).is_ok()
    });
}

/// TLS with client certificates.
const CLIENTS: &str = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem",
    client_ca_file = "{dir}/clients.pem", client_auth = "WHICH" }"#;

#[test]
fn client_certificate_is_required_or_optional_as_configured() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let (own, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (certificate, key) = own.certificate().pem();
    for (which, without) in [("required", false), ("optional", true)] {
        let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
        let gateway = setup
            .file("clients.pem", clients.pem())
            .config(&CLIENTS.replace("WHICH", which))
            .start();
        let address = gateway.tls_address();
        let known = own.exchange_as(&clients.certificate(), address, REQUEST).expect("an answer");
        assert!(known.starts_with("HTTP/1.1 200"), "{which}: {known}");
        assert_eq!(own.exchange(address, REQUEST).is_ok(), without, "{which}");
        for stranger in [strangers.certificate(), clients.expired_certificate()] {
            assert!(
                own.exchange_as(&stranger, address, REQUEST).is_err(),
                "{which}: must be valid"
            );
        }
        let failures = if without { 2.0 } else { 3.0 };
        gateway.wait_for_metric(
            "tls_handshake_failures_total",
            &[("reason", "client_certificate")],
            failures,
        );
        // The certificate admits the client; the token identifies the caller.
        let without_token = REQUEST.replace("Authorization: Bearer tok-a\r\n", "");
        let answer =
            own.exchange_as(&clients.certificate(), address, &without_token).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 401"), "{which}: {answer}");
    }
}

#[test]
fn unusable_certificate_files_keep_the_old_ones_in_use() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    let good = |gateway: &Gateway| {
        let answer = authority.exchange(gateway.tls_address(), REQUEST).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    // 1 January 4000, when the certificates of the tests expire.
    assert_eq!(gateway.metric("tls_certificate_expiry_timestamp_seconds", &[]), 64_060_588_800.0);
    assert_eq!(gateway.metric("tls_last_load_successful", &[]), 1.0);
    let (_, anothers) = authority.certificate().pem();
    let (expired, its_key) = authority.expired_certificate().pem();
    let wrong: [(&[(&str, &str)], &str); 3] = [
        (&[("key.pem", &anothers)], "does not belong to the certificate"),
        (&[("cert.pem", "nonsense")], "contains no PEM certificate"),
        (&[("key.pem", &its_key), ("cert.pem", &expired)], "expired at"),
    ];
    for (files, why) in wrong {
        for (name, contents) in files {
            gateway.rewrite(name, contents);
        }
        gateway.wait_for_log(why);
        wait_until("it counts", || gateway.metric("tls_last_load_successful", &[]) == 0.0);
        assert_eq!(
            gateway.metric("tls_certificate_expiry_timestamp_seconds", &[]),
            64_060_588_800.0
        );
        good(&gateway);
    }
    let (certificate, key) = authority.certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    wait_until("it is loaded", || gateway.metric("tls_last_load_successful", &[]) == 1.0);
    good(&gateway);
}

#[test]
fn failed_handshakes_are_counted_by_reason() {
    let origin = Origin::start();
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    let counted = |reason| {
        gateway.wait_for_metric("tls_handshake_failures_total", &[("reason", reason)], 1.0)
    };
    // A client that trusts another authority sends an alert.
    assert!(Authority::new().exchange(gateway.tls_address(), REQUEST).is_err());
    counted("refused_by_client");
    let send = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(gateway.tls_address()).expect("a connection");
        stream.write_all(bytes).expect("an open connection");
        stream.shutdown(Shutdown::Write).expect("an open connection");
    };
    send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    counted("protocol");
    send(b"");
    counted("connection");
}
