//! The public port over TLS.

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
fn the_same_is_served_over_tls_as_in_plain() {
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
fn the_api_is_told_that_it_came_over_tls() {
    let origin = Origin::start();
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    let request = "GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(authority.exchange(gateway.tls_address(), request).expect("an answer").starts_with("HTTP/1.1 200"));
    let seen = origin.last("/elsewhere").expect("it was forwarded");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

#[test]
fn a_certificate_that_changes_is_taken_up() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let (first, second) = (Authority::new(), Authority::new());
    let gateway = start(&origin, &first.certificate());
    assert!(first.exchange(gateway.tls_address(), REQUEST).is_ok());
    assert!(second.exchange(gateway.tls_address(), REQUEST).is_err());
    let (certificate, key) = second.certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    wait_until("the new certificate is shown", || second.exchange(gateway.tls_address(), REQUEST).is_ok());
}

/// The names of its files, which callers' certificates are looked at by.
const CLIENTS: &str = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem",
    client_ca_file = "{dir}/clients.pem", client_auth = "WHICH" }"#;

#[test]
fn callers_certificates_are_asked_for_where_it_says_so() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let (own, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (certificate, key) = own.certificate().pem();
    for (which, without) in [("required", false), ("optional", true)] {
        let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
        let gateway = setup.file("clients.pem", clients.pem()).config(&CLIENTS.replace("WHICH", which)).start();
        let address = gateway.tls_address();
        let known = own.exchange_as(&clients.certificate(), address, REQUEST).expect("an answer");
        assert!(known.starts_with("HTTP/1.1 200"), "{which}: {known}");
        assert_eq!(own.exchange(address, REQUEST).is_ok(), without, "{which}");
        for stranger in [strangers.certificate(), clients.expired_certificate()] {
            assert!(own.exchange_as(&stranger, address, REQUEST).is_err(), "{which}: a certificate shown must be good");
        }
        let failures = if without { 2.0 } else { 3.0 };
        gateway.wait_for_metric("tls_handshake_failures_total", &[("reason", "client_certificate")], failures);
        // A certificate says who may connect, not who calls.
        let nobody = REQUEST.replace("Authorization: Bearer tok-a\r\n", "");
        let answer = own.exchange_as(&clients.certificate(), address, &nobody).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 401"), "{which}: {answer}");
    }
}

#[test]
fn files_that_cannot_be_used_leave_the_old_ones_and_are_told_of() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    let good = |gateway: &Gateway| {
        let answer = authority.exchange(gateway.tls_address(), REQUEST).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    // 1 January 4000, the end of the stand-in's certificates.
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
        assert_eq!(gateway.metric("tls_certificate_expiry_timestamp_seconds", &[]), 64_060_588_800.0);
        good(&gateway);
    }
    let (certificate, key) = authority.certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    wait_until("it is taken up", || gateway.metric("tls_last_load_successful", &[]) == 1.0);
    good(&gateway);
}

#[test]
fn why_a_handshake_failed_is_counted() {
    let origin = Origin::start();
    let authority = Authority::new();
    let gateway = start(&origin, &authority.certificate());
    let counted = |reason| gateway.wait_for_metric("tls_handshake_failures_total", &[("reason", reason)], 1.0);
    // A client that trusts somebody else says so.
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
