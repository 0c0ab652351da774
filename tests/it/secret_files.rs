//! Files that the configuration names: secrets, trust anchors and certificates that are invalid.

use std::os::unix::fs::PermissionsExt;

use crate::support::*;

fn check(dir: &TempDir, toml: &str, variables: &[(&str, &str)]) -> Run {
    let config = dir.write("gateway.toml", toml).display().to_string();
    run_binary_with(variables, &["check", "-c", &config], b"")
}

fn secret(dir: &TempDir, name: &str, contents: &str, mode: u32) -> String {
    let path = dir.write(name, contents);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    path.display().to_string()
}

#[test]
fn short_admin_token_is_refused_beyond_loopback() {
    let dir = TempDir::new();
    for (length, listen, code) in [(1, "0.0.0.0", 78), (15, "0.0.0.0", 78), (16, "0.0.0.0", 0), (1, "127.0.0.1", 0)] {
        let token = secret(&dir, "token", &format!("{}\n", "x".repeat(length)), 0o600);
        let toml = format!(
            "upstream.url = \"http://127.0.0.1:1\"\nadmin = {{ listen = \"{listen}:9090\", token_file = {token:?} }}\n"
        );
        let run = check(&dir, &toml, &[]);
        assert_eq!(run.code, Some(code), "{length} at {listen}: {run:#?}");
        assert_eq!(run.stderr.contains("fewer than 16 characters"), code == 78, "{run:#?}");
    }
}

#[test]
fn secret_that_others_can_read_causes_a_warning() {
    let dir = TempDir::new();
    for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
        let keys = secret(&dir, "keys", "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n", mode);
        let password = secret(&dir, "password", "hunter2\n", 0o600);
        let redis = |url: &str| {
            format!(
                "upstream.url = \"http://127.0.0.1:1\"\n[cluster]\nurl = {url:?}\nkey_file = {keys:?}\n\
                 password_file = {password:?}\n"
            )
        };
        for (url, plain) in [
            ("redis://redis.internal.example:6379", true),
            ("redis://192.0.2.1", true),
            ("redis://127.0.0.1", false),
            ("redis://localhost", false),
            ("unix:///run/redis.sock", false),
        ] {
            let run = check(&dir, &redis(url), &[]);
            assert_eq!(run.code, Some(0), "{run:#?}");
            assert_eq!(run.stderr.contains("cluster.key_file"), warned, "{mode:o}: {run:#?}");
            assert_eq!(run.stderr.contains("in cleartext"), plain, "{url}: {run:#?}");
        }
    }
}

#[test]
fn failed_admin_credentials_are_counted() {
    let origin = Origin::start();
    let config = "admin.token_file = \"{dir}/token\"";
    let gateway = Gateway::set_up(&origin).file("token", "an admin token\n").config(config);
    let gateway = gateway.admin_token("an admin token").start();
    assert_eq!(gateway.admin().get("/stats").send().status, 401);
    assert_eq!(gateway.admin().get("/stats").bearer("another").send().status, 401);
    assert_eq!(gateway.metric("admin_credentials_refused_total", &[]), 2.0);
}

#[test]
fn missing_trust_anchors_are_a_configuration_error() {
    let dir = TempDir::new();
    let no_anchors = [("SSL_CERT_FILE", "/nonexistent"), ("SSL_CERT_DIR", "/nonexistent")];
    let toml = |scheme: &str| {
        format!(
            "upstream.url = \"{scheme}://127.0.0.1:1\"\nserver.listen = [\"{}\"]\nadmin.listen = \"{}\"\n",
            unused_port(),
            unused_port()
        )
    };
    let config = dir.write("gateway.toml", &toml("https")).display().to_string();
    for command in ["check", "run"] {
        let run = run_binary_with(&no_anchors, &[command, "-c", &config], b"");
        assert_eq!(run.code, Some(78), "{run:#?}");
        assert!(run.stderr.contains("trust anchors") && !run.stderr.contains("panicked"), "{run:#?}");
    }
    assert_eq!(check(&dir, &toml("http"), &no_anchors).code, Some(0));
    // A truncated certificate, one with bytes after its end, and a valid one.
    let (good, other) = (Authority::new(), Authority::new());
    let cut = other.pem().replace("-----END", "\n=====\n-----END");
    let (short, _) = other.pem().split_at(200);
    let bundle = dir.write("bundle.pem", &format!("{short}\n{}\n{cut}", good.pem())).display().to_string();
    let usable = [("SSL_CERT_FILE", bundle.as_str()), ("SSL_CERT_DIR", "/nonexistent")];
    assert_eq!(check(&dir, &toml("https"), &usable).code, Some(0));
}

#[test]
fn gateway_without_trust_anchors_serves_a_plain_api() {
    let origin = Origin::start();
    let set_up = Gateway::set_up(&origin).variable("SSL_CERT_FILE", "/nonexistent");
    let gateway = set_up.variable("SSL_CERT_DIR", "/nonexistent").start();
    gateway.client().get("/elsewhere").send().assert_status(200);
}

const TLS: &str = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;

#[test]
fn certificate_is_loaded_once_it_becomes_valid() {
    let origin = Origin::start();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let gateway = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key).config(TLS).start();
    let (certificate, key) = authority.certificate_valid_in(3).pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    gateway.wait_for_log("is not valid before");
    gateway.wait_for_log("reloaded the certificate");
    assert_eq!(gateway.metric("tls_last_load_successful", &[]), 1.0);
}

#[test]
fn unchanged_expired_certificate_does_not_refuse_a_reload() {
    let origin = Origin::start();
    let authority = Authority::new();
    let (certificate, key) = authority.expired_certificate().pem();
    let gateway = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key).config(TLS).start();
    assert_eq!(gateway.admin().post("/reload").send().status, 200);
    // The file is rewritten with the same content.
    gateway.rewrite("cert.pem", &certificate);
    assert_eq!(gateway.admin().post("/reload").send().status, 200);
    // Another expired certificate is refused.
    let (certificate, key) = authority.expired_certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &certificate);
    assert_eq!(gateway.admin().post("/reload").send().status, 422);
    // An expired extra certificate in the chain is not.
    let (certificate, key) = authority.certificate().pem();
    let (extra, _) = authority.expired_certificate().pem();
    gateway.rewrite("key.pem", &key);
    gateway.rewrite("cert.pem", &format!("{certificate}{extra}"));
    assert_eq!(gateway.admin().post("/reload").send().status, 200);
    gateway.wait_for_log("further certificate of the chain has expired");
}
