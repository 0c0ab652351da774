//! Files that the configuration names: secrets, trust anchors and certificates that are invalid.

use std::os::unix::fs::PermissionsExt;

use crate::support::*;

const CLUSTER_KEY: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

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
    for (length, listen, code) in
        [(1, "0.0.0.0", 78), (15, "0.0.0.0", 78), (16, "0.0.0.0", 0), (1, "127.0.0.1", 0)]
    {
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
        let keys = secret(&dir, "keys", &format!("{CLUSTER_KEY}\n"), mode);
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

/// The keys of the configuration that name a secret, according to its reference.
fn keys_of_secrets() -> Vec<String> {
    let reference = run_binary(&["schema", "--markdown"], b"").stdout;
    let titles = reference.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    let is_secret = |key: &&str| {
        ["key_file", "token_file", "password_file"].iter().any(|name| key.ends_with(name))
    };
    titles.filter(is_secret).map(str::to_owned).collect()
}

#[test]
fn every_secret_that_others_can_read_causes_a_warning() {
    let dir = TempDir::new();
    let (certificate, key) = Authority::new().certificate().pem();
    let certificate = secret(&dir, "certificate.pem", &certificate, 0o644);
    for (mode, is_warned) in [(0o600, false), (0o640, true)] {
        let file = |name: &str, contents: &str| secret(&dir, name, contents, mode);
        let toml = format!(
            r#"
            [upstream]
            url = "https://127.0.0.1:1"
            ca_file = {certificate:?}
            client_cert_file = {certificate:?}
            client_key_file = {:?}
            [server.tls]
            listen = ["127.0.0.1:8443"]
            cert_file = {certificate:?}
            key_file = {:?}
            [[server.tls.certificates]]
            cert_file = {certificate:?}
            key_file = {:?}
            [admin]
            token_file = {:?}
            [change_log]
            token_file = {:?}
            [cluster]
            url = "redis://127.0.0.1:1"
            key_file = {:?}
            password_file = {:?}
            "#,
            file("client.key", &key),
            file("default.key", &key),
            file("further.key", &key),
            file("admin", "an-admin-token\n"),
            file("change-log", "tok-log\n"),
            file("keys", &format!("{CLUSTER_KEY}\n")),
            file("password", "hunter2\n"),
        );
        let run = check(&dir, &toml, &[]);
        assert_eq!(run.code, Some(0), "{mode:o}: {run:#?}");
        let keys = keys_of_secrets();
        assert_eq!(keys.len(), 7, "{keys:?}");
        for key in keys {
            let is_named = run.stderr.contains(&format!("{key}: "));
            assert_eq!(is_named, is_warned, "{mode:o}: {key}: {run:#?}");
        }
    }
}

#[test]
fn failed_admin_credentials_are_counted() {
    let origin = Origin::start();
    let config = "admin.token_file = \"{dir}/token\"";
    let gateway = Gateway::set_up(&origin).file("token", "an-admin-token\n").config(config);
    let gateway = gateway.admin_token("an-admin-token").start();
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
        assert!(
            run.stderr.contains("trust anchors") && !run.stderr.contains("panicked"),
            "{run:#?}"
        );
    }
    assert_eq!(check(&dir, &toml("http"), &no_anchors).code, Some(0));
    // A truncated certificate, one with bytes after its end, and a valid one.
    let (good, other) = (Authority::new(), Authority::new());
    let cut = other.pem().replace("-----END", "\n=====\n-----END");
    let (short, _) = other.pem().split_at(200);
    let bundle =
        dir.write("bundle.pem", &format!("{short}\n{}\n{cut}", good.pem())).display().to_string();
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
    let gateway = Gateway::set_up(&origin)
        .file("cert.pem", &certificate)
        .file("key.pem", &key)
        .config(TLS)
        .start();
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
    let gateway = Gateway::set_up(&origin)
        .file("cert.pem", &certificate)
        .file("key.pem", &key)
        .config(TLS)
        .start();
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

/// A configuration that names every secrets file, valid except for the one in `key`.
fn config_with_secret(dir: &TempDir, key: &str, contents: &[u8]) -> String {
    let file = |name: &str, valid: &str| {
        let path = dir.path().join(name);
        let contents = if key.ends_with(name) { contents } else { valid.as_bytes() };
        std::fs::write(&path, contents).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        path.display().to_string()
    };
    format!(
        "upstream.url = \"http://127.0.0.1:1\"\nserver.listen = [\"{}\"]\n\
         admin = {{ listen = \"{}\", token_file = {:?} }}\nchange_log.token_file = {:?}\n\
         [cluster]\nurl = \"redis://127.0.0.1:1\"\nkey_file = {:?}\npassword_file = {:?}\n",
        unused_port(),
        unused_port(),
        file("admin.token_file", "an-admin-token\n"),
        file("change_log.token_file", "tok-log\n"),
        file("cluster.key_file", &format!("{CLUSTER_KEY}\n")),
        file("cluster.password_file", "hunter2\n"),
    )
}

const SECRETS: [(&str, &str); 4] = [
    ("admin.token_file", "0123456789abcdef"),
    ("change_log.token_file", "0123456789abcdef"),
    ("cluster.key_file", CLUSTER_KEY),
    ("cluster.password_file", "0123456789abcdef"),
];

#[test]
fn unusable_secret_is_refused_by_check_and_run() {
    let dir = TempDir::new();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for (key, secret) in SECRETS {
        let text = format!("{secret}\n");
        let is_list = key == "cluster.key_file";
        let forms = [
            (format!("\u{feff}{text}").into_bytes(), "byte order mark"),
            ([b"\xff\xfe".to_vec(), utf16(&text)].concat(), "UTF-16"),
            (utf16(&text), "UTF-16"),
            (format!("{}\0{}", &text[..3], &text[3..]).into_bytes(), "NUL"),
            (
                format!("{}\t{}", &text[..3], &text[3..]).into_bytes(),
                if is_list { "invalid line" } else { "control character U+0009" },
            ),
            (b"0123456789abcde\xff\n".to_vec(), "not UTF-8"),
            (b"".to_vec(), "is empty"),
            (b" \n".to_vec(), "is empty"),
            (
                format!(" {text}").into_bytes(),
                if is_list { "" } else { "begins or ends with a blank" },
            ),
            (
                format!("{secret} \r\n").into_bytes(),
                if is_list { "" } else { "begins or ends with a blank" },
            ),
            (
                format!("{text}{text}{text}").into_bytes(),
                if is_list { "duplicate key id" } else { "contains 3 lines" },
            ),
        ];
        for (contents, reason) in forms {
            let path = dir
                .write("gateway.toml", &config_with_secret(&dir, key, &contents))
                .display()
                .to_string();
            if reason.is_empty() {
                assert_eq!(
                    run_binary(&["check", "-c", &path], b"").code,
                    Some(0),
                    "{key}: {contents:?}"
                );
                continue;
            }
            for command in ["check", "run"] {
                let run = run_binary(&[command, "-c", &path], b"");
                assert_eq!(run.code, Some(78), "{command} {key}: {contents:?}: {run:#?}");
                assert!(
                    run.stderr.contains(key) && run.stderr.contains(reason),
                    "{command} {key}: {reason}: {run:#?}"
                );
                assert!(!run.stderr.contains("0123456789"), "the secret is not shown: {run:#?}");
            }
        }
        for end in ["", "\n", "\r\n"] {
            let config = config_with_secret(&dir, key, format!("{secret}{end}").as_bytes());
            let path = dir.write("gateway.toml", &config).display().to_string();
            let run = run_binary(&["check", "-c", &path], b"");
            assert_eq!(run.code, Some(0), "{key}: {end:?}: {run:#?}");
        }
    }
}

#[test]
fn admin_token_has_the_characters_of_a_bearer_token() {
    let dir = TempDir::new();
    for (token, named) in
        [("a b", "a blank"), ("gr\u{fc}n", "U+00FC"), ("a,b", "','"), ("a=b", "'='")]
    {
        let config = config_with_secret(&dir, "admin.token_file", format!("{token}\n").as_bytes());
        let path = dir.write("gateway.toml", &config).display().to_string();
        let run = run_binary(&["check", "-c", &path], b"");
        assert_eq!(run.code, Some(78), "{token}: {run:#?}");
        assert!(run.stderr.contains(named) && run.stderr.contains("RFC 6750"), "{token}: {run:#?}");
    }
}

#[test]
fn admin_token_rotates_without_a_gap() {
    let origin = Origin::start();
    // The driver's own requests use the token that stays valid.
    let setup = Gateway::set_up(&origin).file("token", "tok-old\n").admin_token("tok-3");
    let gateway = setup.config("admin.token_file = \"{dir}/token\"").start();
    let status = |token: &str| gateway.admin().get("/stats").bearer(token).send().status;
    assert_eq!((status("tok-old"), status("tok-new")), (200, 401));
    gateway.rewrite("token", "tok-old\r\ntok-new\r\n");
    wait_until("both tokens are accepted", || {
        assert_eq!(status("tok-old"), 200);
        status("tok-new") == 200
    });
    gateway.rewrite("token", "tok-new\n");
    wait_until("the old token is refused", || {
        assert_eq!(status("tok-new"), 200);
        status("tok-old") == 401
    });
    // An unusable file keeps the token in use, and refuses a reload.
    gateway.rewrite("token", "tok new\n");
    gateway.wait_for_log("failed to reload the admin token");
    assert_eq!(gateway.admin().post("/reload").bearer("tok-new").send().status, 422);
    assert_eq!(status("tok-new"), 200);
    gateway.rewrite("token", "tok-3\n");
    wait_until("the next token is accepted", || status("tok-3") == 200);
    assert_eq!(gateway.admin().post("/reload").bearer("tok-3").send().status, 200);
}

#[test]
fn reload_names_changed_files_that_only_a_restart_reads() {
    let Some(redis) =
        Redis::start("secret_files::reload_names_changed_files_that_only_a_restart_reads")
    else {
        return;
    };
    let origin = Origin::start();
    let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let config = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n", redis.url());
    let gateway =
        Gateway::set_up(&origin).file("keys", &format!("a {key}\n")).config(&config).start();
    let named = || {
        let reload = gateway.admin().post("/reload").send();
        assert_eq!(reload.status, 200, "{reload:?}");
        reload.json()["restart_needed_for"].clone()
    };
    assert_eq!(named(), serde_json::json!([]));
    gateway.rewrite("keys", &format!("b {}\na {key}\n", key.replace('0', "f")));
    assert_eq!(named(), serde_json::json!(["cluster.key_file"]));
}

#[test]
fn check_warns_of_a_fault_of_the_chain() {
    let dir = TempDir::new();
    let (certificate, key) = Authority::new().certificate().pem();
    let key = secret(&dir, "key.pem", &key, 0o600);
    for (chain, is_warned) in
        [(certificate.clone(), false), (format!("{certificate}{certificate}"), true)]
    {
        let chain = secret(&dir, "cert.pem", &chain, 0o644);
        let toml = format!(
            "upstream.url = \"http://127.0.0.1:1\"\n[server.tls]\nlisten = [\"127.0.0.1:8443\"]\n\
             cert_file = {chain:?}\nkey_file = {key:?}\n"
        );
        let run = check(&dir, &toml, &[]);
        assert_eq!(run.code, Some(0), "{run:#?}");
        let warning = "did not issue certificate 1";
        assert_eq!(run.stderr.contains(warning), is_warned, "{run:#?}");
    }
}

#[test]
fn unsupported_key_and_wrong_chain_are_explained() {
    let dir = TempDir::new();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate().pem();
    let run_openssl = |arguments: &[&str]| {
        let run =
            std::process::Command::new("openssl").current_dir(dir.path()).args(arguments).output();
        let run = run.expect("openssl is installed");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    };
    let subject =
        ["-subj", "/CN=gateway", "-days", "30", "-addext", "subjectAltName=DNS:gateway.example"];
    let self_signed = |new_key: &[&str], name: &str| {
        let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
        let files = ["-nodes", "-keyout", &key, "-out", &cert];
        run_openssl(&[&["req", "-x509", "-newkey"], new_key, &files, &subject].concat());
    };
    self_signed(&["rsa:1024"], "rsa1024");
    self_signed(&["ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "k1");
    self_signed(&["ed448"], "ed448");
    for (curve, name) in [("P-256", "p256"), ("P-384", "p384"), ("P-521", "p521")] {
        self_signed(&["ec", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")], name);
    }
    self_signed(&["ed25519"], "ed25519");
    self_signed(&["rsa:2048"], "rsa2048");
    run_openssl(&[
        "pkey",
        "-in",
        "rsa2048.key",
        "-aes256",
        "-passout",
        "pass:x",
        "-out",
        "encrypted.key",
    ]);
    let (other, _) = authority.certificate().pem();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a file");
    let supported = "RSA from 2048 bits, ECDSA P-256, P-384 or P-521, Ed25519";
    let cases = [
        (read("rsa1024.pem"), read("rsa1024.key"), supported),
        (read("k1.pem"), read("k1.key"), supported),
        (read("ed448.pem"), read("ed448.key"), supported),
        (read("p256.pem"), read("p256.key"), ""),
        (read("p384.pem"), read("p384.key"), ""),
        (read("p521.pem"), read("p521.key"), ""),
        (read("ed25519.pem"), read("ed25519.key"), ""),
        (read("rsa2048.pem"), read("rsa2048.key"), ""),
        (read("rsa2048.pem"), read("encrypted.key"), "encrypted"),
        (read("rsa2048.key"), read("rsa2048.pem"), "swapped"),
        (
            format!("{}{certificate}", authority.pem()),
            key.clone(),
            "the key belongs to certificate 2",
        ),
        (other, key.clone(), "does not belong to the certificate"),
        (format!("\u{feff}{certificate}"), key.clone(), "byte order mark"),
        (certificate.clone(), format!("\u{feff}{key}"), "byte order mark"),
        (certificate, key, ""),
    ];
    for (certificate, key, reason) in cases {
        dir.write("cert.pem", &certificate);
        secret(&dir, "key.pem", &key, 0o600);
        let at = dir.path().display();
        let toml = format!(
            "upstream.url = \"http://127.0.0.1:1\"\nserver.listen = [\"{}\"]\nadmin.listen = \"{}\"\n\
             server.tls = {{ listen = [\"{}\"], cert_file = \"{at}/cert.pem\", key_file = \"{at}/key.pem\" }}\n",
            unused_port(),
            unused_port(),
            unused_port(),
        );
        let path = dir.write("gateway.toml", &toml).display().to_string();
        let run = run_binary(&["check", "-c", &path], b"");
        if reason.is_empty() {
            assert_eq!(run.code, Some(0), "{run:#?}");
            continue;
        }
        assert!(run.code == Some(78) && run.stderr.contains(reason), "{reason}: {run:#?}");
        let run = run_binary(&["run", "-c", &path], b"");
        assert!(run.code == Some(78) && run.stderr.contains(reason), "{reason}: {run:#?}");
    }
}
