//! TLS to the API: session resumption, trust that changes at a reload, the name that is asked for,
//! and the certificate of the gateway.

use crate::support::*;

fn get(gateway: &Gateway, number: usize) -> Response {
    gateway.client().get(&format!("/plain/{number}")).send()
}

fn reload(gateway: &Gateway) -> Response {
    gateway.admin().post("/reload").body("").send()
}

fn gateway(origin: &Origin, api: &TlsApi, authority: &Authority) -> Gateway {
    let url = format!("https://localhost.:{}", api.address.port());
    let config = format!("upstream = {{ url = \"{url}\", ca_file = \"{{dir}}/ca.pem\" }}");
    Gateway::set_up(origin).file("ca.pem", authority.pem()).config(&config).start()
}

#[test]
fn later_handshakes_resume_and_ask_for_the_name_without_dot() {
    let authority = Authority::new();
    let api = TlsApi::start(&authority.certificate(), None);
    let origin = Origin::start();
    let gateway = gateway(&origin, &api, &authority);
    for number in 0..10 {
        get(&gateway, number).assert_status(200);
    }
    let handshakes = api.handshakes();
    assert_eq!(handshakes.len(), 10);
    assert!(!handshakes[0].is_resumed);
    let resumed = handshakes.iter().filter(|handshake| handshake.is_resumed).count();
    assert!(resumed >= 8, "{handshakes:?}");
    assert!(
        handshakes.iter().all(|handshake| handshake.server_name.as_deref() == Some("localhost"))
    );
}

#[test]
fn changed_ca_file_counts_after_a_reload() {
    let (old, new) = (Authority::new(), Authority::new());
    let origin = Origin::start_tls(&new.certificate());
    origin.knows("tok-a", "VIEWER", DUCK);
    let setup = Gateway::set_up(&origin).file("ca.pem", old.pem());
    let gateway = setup.config(r#"upstream.ca_file = "{dir}/ca.pem""#).start();
    get(&gateway, 1).assert_error(502, "bad_gateway");
    gateway.rewrite("ca.pem", new.pem());
    reload(&gateway).assert_status(200);
    get(&gateway, 2).assert_status(200);
    let kept = origin.last("/plain/2").expect("it was sent").connection;
    // A file that cannot be used is refused, and the anchors stay.
    for broken in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    {
        gateway.rewrite("ca.pem", broken);
        let refused = reload(&gateway);
        assert_eq!(refused.status, 422, "{broken:?}: {refused:#?}");
        assert!(refused.text().contains("upstream.ca_file"), "{refused:#?}");
        get(&gateway, 3).assert_status(200);
    }
    // Connections that are open go on when trust changes; new ones need the new trust.
    gateway.rewrite("ca.pem", old.pem());
    reload(&gateway).assert_status(200);
    get(&gateway, 4).assert_status(200);
    assert_eq!(origin.last("/plain/4").expect("it was sent").connection, kept);
    origin.stop();
    origin.resume();
    get(&gateway, 5).assert_error(502, "bad_gateway");
    assert!(origin.last("/plain/5").is_none());
}

#[test]
fn removed_authority_is_not_trusted_by_resumption() {
    let (old, new) = (Authority::new(), Authority::new());
    let api = TlsApi::start(&old.certificate(), None);
    let origin = Origin::start();
    let gateway = gateway(&origin, &api, &old);
    for number in 0..3 {
        get(&gateway, number).assert_status(200);
    }
    gateway.rewrite("ca.pem", new.pem());
    reload(&gateway).assert_status(200);
    get(&gateway, 4).assert_error(502, "bad_gateway");
    assert_eq!(api.handshakes().len(), 3);
    assert_eq!(
        gateway.metric("upstream_error_causes_total", &[("cause", "tls_unknown_authority")]),
        1.0
    );
}

#[test]
fn client_certificate_is_presented_on_request() {
    let authority = Authority::new();
    let clients = Authority::new();
    let api = TlsApi::start(&authority.certificate(), Some(&clients));
    let origin = Origin::start();
    let (certificate, key) = clients.certificate().pem();
    let url = format!("https://{}", api.address);
    let without = format!("upstream = {{ url = \"{url}\", ca_file = \"{{dir}}/ca.pem\" }}");
    let refused = Gateway::set_up(&origin).file("ca.pem", authority.pem()).config(&without).start();
    get(&refused, 1).assert_error(502, "bad_gateway");
    let with = without.replace(
        " }",
        ", client_cert_file = \"{dir}/client.pem\", client_key_file = \"{dir}/client.key\" }",
    );
    let setup = Gateway::set_up(&origin).file("ca.pem", authority.pem());
    let gateway =
        setup.file("client.pem", &certificate).file("client.key", &key).config(&with).start();
    for number in 0..3 {
        get(&gateway, number).assert_status(200);
    }
    assert!(api.handshakes().iter().all(|handshake| handshake.has_client_certificate));
    // A pair that does not belong together is refused by a reload, and the one in force stays.
    gateway.rewrite("client.key", &clients.certificate().pem().1);
    let refused = reload(&gateway);
    assert_eq!(refused.status, 422, "{refused:#?}");
    assert!(refused.text().contains("upstream.client_"), "{refused:#?}");
    get(&gateway, 9).assert_status(200);
}

#[test]
fn unusable_client_certificate_ends_with_78() {
    let clients = Authority::new();
    let (certificate, key) = clients.certificate().pem();
    let (_, other_key) = clients.certificate().pem();
    let (cert_key, key_key) = ("upstream.client_cert_file", "upstream.client_key_file");
    for (certificate, key, named) in [
        (certificate.as_str(), other_key.as_str(), cert_key),
        ("nonsense", key.as_str(), cert_key),
        ("", key.as_str(), cert_key),
        (certificate.as_str(), "nonsense", key_key),
        (certificate.as_str(), "", key_key),
        (certificate.as_str(), certificate.as_str(), key_key),
    ] {
        let dir = TempDir::new();
        let cert_file = dir.write("client.pem", certificate).display().to_string();
        let key_file = dir.write("client.key", key).display().to_string();
        let ca_file = dir.write("ca.pem", clients.pem()).display().to_string();
        let text = format!(
            "[upstream]\nurl = \"https://127.0.0.1:1\"\nca_file = \"{ca_file}\"\n\
             client_cert_file = \"{cert_file}\"\nclient_key_file = \"{key_file}\"\n"
        );
        assert_refused(&dir, &text, named);
    }
}

#[test]
fn one_of_the_two_client_keys_is_a_configuration_error() {
    for (given, missing) in
        [("client_cert_file", "client_key_file"), ("client_key_file", "client_cert_file")]
    {
        let dir = TempDir::new();
        let text =
            format!("[upstream]\nurl = \"https://127.0.0.1:1\"\n{given} = \"/nowhere.pem\"\n");
        assert_refused(&dir, &text, missing);
    }
}

#[test]
fn files_for_tls_are_not_needed_for_http() {
    let origin = Origin::start();
    let variables = [("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")];
    let setup = variables
        .iter()
        .fold(Gateway::set_up(&origin), |setup, (name, value)| setup.variable(name, value));
    let gateway = setup.start();
    get(&gateway, 1).assert_status(200);
}

/// `check` and `run` end with 78 and name the key.
fn assert_refused(dir: &TempDir, config: &str, key: &str) {
    let path = dir.write("gateway.toml", config).display().to_string();
    for command in ["check", "run"] {
        let run = run_binary(&[command, "-c", &path], b"");
        let output = format!("{}{}", run.stdout, run.stderr);
        assert_eq!(run.code, Some(78), "{command}: {output}");
        assert!(output.contains(key), "{command} does not name {key}: {output}");
    }
}
