//! The public port over TLS.

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
