//! Environment variables.

use super::*;

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, Problems> {
    parse(
        "gateway.toml",
        text,
        env.iter().map(|(name, value)| (name.to_string(), value.to_string())),
    )
}

const URL: (&str, &str) = ("TELECOMX_GATEWAY__UPSTREAM__URL", "http://127.0.0.1:8081");

#[test]
fn variable_overrides_key_as_toml_or_text() {
    let config = with_env(
        "[cache]\nttl = \"5s\"",
        &[
            URL,
            ("TELECOMX_GATEWAY__CACHE__TTL", "30s"),
            ("TELECOMX_GATEWAY__CACHE__NOT_FOUND_TTL", "\"40s\""),
            ("TELECOMX_GATEWAY__CACHE__TTL_JITTER", "0.2"),
            ("TELECOMX_GATEWAY__SERVER__LISTEN", "[\"127.0.0.1:1\", '127.0.0.1:2']"),
            ("TELECOMX_GATEWAY__SERVER__THREADS", "3"),
            ("TELECOMX_GATEWAY__SERVER__TRUSTED_PROXIES", ""),
            ("TELECOMX_GATEWAY__REDACTION__PUBLIC", "**.ms365.{tenantId,verified}"),
            ("TELECOMX_GATEWAY__REDACTION__ROOTS", "\"integrations\""),
            ("TELECOMX_GATEWAY__IDENTITY__SEND_CLIENT_IP", "false"),
            ("TELECOMX_GATEWAY__IDENTITY__COOKIE", "true"),
            ("TELECOMX_GATEWAY__SERVER__TLS__LISTEN", "[::1]:8443"),
            ("TELECOMX_GATEWAY__SERVER__TLS__CERT_FILE", "/c"),
            ("TELECOMX_GATEWAY__SERVER__TLS__KEY_FILE", "/k"),
            ("PATH", "/bin"),
            // Set by Kubernetes for a service of this name.
            ("TELECOMX_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(config.upstream.urls[0].port, 8081);
    assert_eq!(config.cache.ttl, seconds(30));
    assert_eq!(config.cache.not_found_ttl, seconds(40));
    assert_eq!(config.cache.ttl_jitter, 0.2);
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.threads, 3);
    assert!(config.server.trusted_proxies.is_empty());
    assert_eq!(config.redaction.public, ["**.ms365.{tenantId,verified}"]);
    assert_eq!(config.redaction.roots, ["integrations"]);
    assert!(!config.identity.send_client_ip);
    assert_eq!(config.identity.cookie.as_deref(), Some("true"));
    assert_eq!(config.server.tls.unwrap().listen, ["[::1]:8443".parse().unwrap()]);
}

#[test]
fn problem_names_the_variable() {
    for (name, value, expected) in [
        (
            "TELECOMX_GATEWAY__CACHE__TTL",
            "30",
            "TELECOMX_GATEWAY__CACHE__TTL: cache.ttl: invalid duration \"30\"; expected a whole number with h, m, s or ms; for example \"30s\"",
        ),
        (
            "TELECOMX_GATEWAY__CACHE__TLL",
            "30s",
            "TELECOMX_GATEWAY__CACHE__TLL: unknown variable; did you mean TELECOMX_GATEWAY__CACHE__TTL?",
        ),
        (
            "TELECOMX_GATEWAY__X",
            "1",
            "TELECOMX_GATEWAY__X: unknown variable; expected TELECOMX_GATEWAY__TABLE__KEY, for example TELECOMX_GATEWAY__UPSTREAM__URL",
        ),
        (
            "TELECOMX_GATEWAY__FORWARD__REDACT",
            "[]",
            "TELECOMX_GATEWAY__FORWARD__REDACT: forward.redact: cannot be set by an environment variable; use [[forward.redact]] in the file",
        ),
        (
            "TELECOMX_GATEWAY__FORWARD__REDACT__PATH",
            "/a",
            "TELECOMX_GATEWAY__FORWARD__REDACT__PATH: forward.redact: cannot be set by an environment variable; use [[forward.redact]] in the file",
        ),
        (
            "TELECOMX_GATEWAY__SERVER__THREADS",
            "many",
            "TELECOMX_GATEWAY__SERVER__THREADS: server.threads: expected a whole number, found a string; for example 0",
        ),
        (
            "TELECOMX_GATEWAY__SERVER__LISTEN",
            "127.0.0.1:1,127.0.0.1:2",
            "TELECOMX_GATEWAY__SERVER__LISTEN: server.listen: contains a comma; write several items as a list, for example [\"a\", \"b\"]",
        ),
        (
            "TELECOMX_GATEWAY__SERVER__LISTEN",
            "[\"127.0.0.1:1\"",
            "TELECOMX_GATEWAY__SERVER__LISTEN: server.listen: invalid TOML list; for example [\"a\", \"b\"]",
        ),
        (
            "TELECOMX_GATEWAY__SERVER__TLS__CERT_FILE",
            "/c",
            "TELECOMX_GATEWAY__SERVER__TLS__CERT_FILE: server.tls.listen: missing required key; for example listen = [\"0.0.0.0:8443\"]",
        ),
        (
            "TELECOMX_GATEWAY__CACHE__STALE_WHILE_REVALIDATE",
            "1h",
            "TELECOMX_GATEWAY__CACHE__STALE_WHILE_REVALIDATE: cache.ttl: the sum with cache.stale_while_revalidate, \"1h1m\", is not less",
        ),
    ] {
        let problems = with_env("", &[URL, (name, value)]).expect_err(name);
        let first = problems.iter().next().unwrap().to_string();
        assert!(first.starts_with(expected), "{first}\nis not\n{expected}");
    }
}

#[test]
fn variable_replaces_invalid_value_of_the_file() {
    let env = [URL, ("TELECOMX_GATEWAY__CACHE__TTL", "1s")];
    with_env("[cache]\nttl = \"wrong\"", &env).unwrap();
}

#[test]
fn misspelled_variable_names_the_right_one() {
    for spec in schema_table::KEYS {
        let right = variables::variable_name(spec.path);
        let single = right.replace("__", "_");
        for name in [
            single.clone(),
            single.to_lowercase(),
            right.to_lowercase(),
            right.replace("__", "___"),
        ] {
            let problem = with_env("", &[URL, (&name, "1")]).expect_err(&name).to_string();
            let in_file = format!("use [[{}]] in the file", spec.table());
            let expected = if schema_table::is_repeated(spec.table()) { &in_file } else { &right };
            assert!(problem.starts_with(&name) && problem.contains(expected), "{problem}");
        }
    }
}

#[test]
fn variables_of_a_kubernetes_service_pass() {
    let names = [
        "TELECOMX_GATEWAY_SERVICE_HOST",
        "TELECOMX_GATEWAY_SERVICE_PORT",
        "TELECOMX_GATEWAY_SERVICE_PORT_HTTP",
        "TELECOMX_GATEWAY_PORT",
        "TELECOMX_GATEWAY_PORT_8080_TCP",
        "TELECOMX_GATEWAY_PORT_8080_TCP_PROTO",
        "TELECOMX_GATEWAY_PORT_8080_TCP_PORT",
        "TELECOMX_GATEWAY_PORT_8080_TCP_ADDR",
        "TELECOMX_GATEWAY_ADMIN_SERVICE_HOST",
        "TELECOMX_GATEWAY_ADMIN_PORT_9090_TCP_ADDR",
        "TELECOMX_GATEWAY_VERSION",
        "telecomx_gateway_home",
    ];
    let env: Vec<_> = names.into_iter().map(|name| (name, "10.0.0.1")).chain([URL]).collect();
    with_env("", &env).unwrap();
}

#[test]
fn variable_that_is_not_utf8_is_a_problem() {
    use std::os::unix::ffi::OsStringExt;
    let not_utf8 = || OsString::from_vec(b"\xff".to_vec());
    let folder = std::env::temp_dir().join(format!("telecomx-gateway-utf8-{}", std::process::id()));
    std::fs::write(&folder, "upstream.url = \"https://api.telecomx.dk\"").unwrap();
    let refused = load(&folder, [("TELECOMX_GATEWAY__CACHE__TTL".into(), not_utf8())]);
    let unrelated = load(
        &folder,
        [("TELECOMX_GATEWAY_SERVICE_HOST".into(), not_utf8()), (not_utf8(), not_utf8())],
    );
    std::fs::remove_file(&folder).unwrap();
    let problem = refused.unwrap_err().to_string();
    assert!(
        problem.starts_with("TELECOMX_GATEWAY__CACHE__TTL: name or value is not UTF-8"),
        "{problem}"
    );
    unrelated.unwrap();
}
