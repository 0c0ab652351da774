//! Several certificates on one TLS listener, chosen by SNI: selection, rotation, reload, metrics.

use crate::support::*;

const REQUEST: &str = "GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

const TLS: &str = r#"
[server.tls]
listen = ["{tls}"]
cert_file = "{dir}/default.pem"
key_file = "{dir}/default.key"
[[server.tls.certificates]]
cert_file = "{dir}/a.pem"
key_file = "{dir}/a.key"
"#;

const SECOND: &str = r#"
[[server.tls.certificates]]
cert_file = "{dir}/b.pem"
key_file = "{dir}/b.key"
"#;

/// Authorities of the default certificate and of the certificates a and b.
struct Authorities {
    default: Authority,
    a: Authority,
    b: Authority,
}

impl Authorities {
    fn new() -> Authorities {
        Authorities { default: Authority::new(), a: Authority::new(), b: Authority::new() }
    }

    fn start(&self, origin: &Origin) -> Gateway {
        let (default, default_key) = self.default.certificate().pem();
        let (a, a_key) = self.a.certificate_for(&["a.example", "www.a.example"]).pem();
        let (b, b_key) = self.b.certificate_for(&["*.b.example"]).pem();
        let setup =
            Gateway::set_up(origin).file("default.pem", &default).file("default.key", &default_key);
        let setup = setup.file("a.pem", &a).file("a.key", &a_key);
        setup.file("b.pem", &b).file("b.key", &b_key).config(&format!("{TLS}{SECOND}")).start()
    }
}

fn is_presented(authority: &Authority, gateway: &Gateway, name: &str) -> bool {
    let response = authority.exchange_with_name(name, gateway.tls_address(), REQUEST);
    response.is_ok_and(|response| response.starts_with("HTTP/1.1 200"))
}

#[test]
fn certificate_is_selected_by_server_name() {
    let origin = Origin::start();
    let authorities = Authorities::new();
    let gateway = authorities.start(&origin);
    for name in ["a.example", "A.EXAMPLE", "www.a.example"] {
        assert!(is_presented(&authorities.a, &gateway, name), "{name}");
    }
    assert!(is_presented(&authorities.b, &gateway, "x.b.example"));
    // A wildcard matches one label.
    assert!(!is_presented(&authorities.b, &gateway, "b.example"));
    assert!(!is_presented(&authorities.b, &gateway, "y.x.b.example"));
    // Without SNI, and for an unknown name, the default certificate is presented.
    assert!(authorities.default.exchange(gateway.tls_address(), REQUEST).is_ok(), "by address");
    assert!(is_presented(&authorities.default, &gateway, "localhost"));
    assert!(!is_presented(&authorities.a, &gateway, "localhost"));
}

#[test]
fn rotation_of_one_certificate_survives_a_fault_of_another() {
    let origin = Origin::start();
    let authorities = Authorities::new();
    let gateway = authorities.start(&origin);
    gateway.rewrite("a.pem", "nonsense");
    gateway.wait_for_log("server.tls.certificates.cert_file");
    wait_until("the failure counts", || gateway.metric("tls_last_load_successful", &[]) == 0.0);
    let renewed = Authority::new();
    let (b, b_key) = renewed.certificate_for(&["*.b.example"]).pem();
    gateway.rewrite("b.key", &b_key);
    gateway.rewrite("b.pem", &b);
    wait_until("b is renewed", || is_presented(&renewed, &gateway, "x.b.example"));
    assert!(
        is_presented(&authorities.a, &gateway, "a.example"),
        "the old certificate stays in use"
    );
    assert_eq!(gateway.metric("tls_last_load_successful", &[]), 0.0);
    let (a, a_key) = authorities.a.certificate_for(&["a.example"]).pem();
    gateway.rewrite("a.key", &a_key);
    gateway.rewrite("a.pem", &a);
    wait_until("a is loaded", || gateway.metric("tls_last_load_successful", &[]) == 1.0);
    assert!(is_presented(&authorities.a, &gateway, "a.example"));
}

#[test]
fn reload_adds_and_removes_certificates() {
    let origin = Origin::start();
    let authorities = Authorities::new();
    let gateway = authorities.start(&origin);
    let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    let at = config.rfind("[[server.tls.certificates]]").expect("two certificates");
    let end = config[at + 1..].find("\n[").map_or(config.len(), |end| at + 1 + end);
    let without_b = format!("{}{}", &config[..at], &config[end..]);
    gateway.rewrite("gateway.toml", &without_b);
    let reload = gateway.admin().post("/reload").send();
    assert_eq!(reload.status, 200, "{reload:?}");
    assert_eq!(reload.json()["restart_needed_for"], serde_json::json!([]));
    assert!(!is_presented(&authorities.b, &gateway, "x.b.example"));
    assert!(is_presented(&authorities.a, &gateway, "a.example"));
    gateway.rewrite("gateway.toml", &config);
    assert_eq!(gateway.admin().post("/reload").send().status, 200);
    assert!(is_presented(&authorities.b, &gateway, "x.b.example"));
    // One invalid certificate refuses the reload as a whole.
    gateway.rewrite("b.pem", "nonsense");
    assert_eq!(gateway.admin().post("/reload").send().status, 422);
    assert!(is_presented(&authorities.b, &gateway, "x.b.example"));
}

#[test]
fn expiry_of_every_certificate_is_a_metric() {
    let origin = Origin::start();
    let gateway = Authorities::new().start(&origin);
    // 1 January 4000, when the certificates of the tests expire.
    let expiry = 64_060_588_800.0;
    assert_eq!(gateway.metric("tls_certificate_expiry_timestamp_seconds", &[]), expiry);
    for name in ["default", "a.example", "*.b.example"] {
        let labels = [("certificate", name)];
        assert_eq!(
            gateway.metric("tls_server_certificate_expiry_timestamp_seconds", &labels),
            expiry,
            "{name}"
        );
    }
}
