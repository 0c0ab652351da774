//! Relations between keys.

use super::*;

#[test]
fn cache_lifetime_must_be_shorter_than_the_session() {
    let problem = problem_of("[cache]\nttl = \"14m30s\"\n");
    assert_eq!(
        problem,
        "gateway.toml:2: cache.ttl: the sum with cache.stale_while_revalidate, \"15m\", is not less than identity.session \
         (\"15m\"); shorten one of them; otherwise the API logs out a caller who is served from the cache only"
    );
    with("[cache]\nttl = \"14m29s\"\n").unwrap();
    // The line is that of the key that is set.
    assert!(
        problem_of("[cache]\nstale_while_revalidate = \"1h\"")
            .starts_with("gateway.toml:2: cache.ttl: ")
    );
    assert!(
        problem_of("[identity]\n\nsession = \"90s\"").starts_with("gateway.toml:3: cache.ttl: ")
    );
}

#[test]
fn refresh_after_must_not_exceed_identity_ttl() {
    let problem = problem_of("[identity]\nttl = \"20s\"");
    assert_eq!(
        problem,
        "gateway.toml:2: identity.refresh_after: \"30s\" is longer than identity.ttl (\"20s\"); expected at most \"20s\""
    );
    with("[identity]\nttl = \"20s\"\nrefresh_after = \"20s\"").unwrap();
    with("[identity]\nttl = \"0s\"").unwrap();
}

#[test]
fn admin_listener_beyond_loopback_requires_token() {
    let problem = problem_of("[admin]\nlisten = \"0.0.0.0:9090\"");
    assert!(
        problem.starts_with(
            "gateway.toml:2: admin.listen: \"0.0.0.0:9090\" is not a loopback address"
        ),
        "{problem}"
    );
    with("[admin]\nlisten = \"0.0.0.0:9090\"\ntoken_file = \"token\"").unwrap();
    with("[admin]\nlisten = \"[::1]:9090\"").unwrap();
}

#[test]
fn overlapping_listeners_are_refused() {
    for extra in [
        "[admin]\nlisten = \"127.0.0.1:8080\"",
        "\n[server]\nlisten = [\"0.0.0.0:1\", \"127.0.0.1:1\"]".trim_start(),
        "[server]\ntls = { listen = [\"[::]:9090\"], cert_file = \"c\", key_file = \"k\" }",
    ] {
        let problem = problem_of(extra);
        assert!(
            problem.starts_with("gateway.toml:2: ") && problem.contains("overlaps with"),
            "{problem}"
        );
    }
    with("[server]\nlisten = [\"127.0.0.1:0\", \"0.0.0.0:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"")
        .unwrap();
}

#[test]
fn client_auth_requires_client_ca_file() {
    let tls = |more: &str| {
        format!(
            "[server]\ntls = {{ listen = [\"[::]:1\"], cert_file = \"c\", key_file = \"k\", {more} }}"
        )
    };
    let problem = problem_of(&tls("client_auth = \"required\""));
    assert!(
        problem.starts_with(
            "gateway.toml:2: server.tls.client_auth: has no effect without client_ca_file"
        ),
        "{problem}"
    );
    let clients = |more: &str| {
        with(&tls(more)).unwrap().server.tls.unwrap().clients.map(|clients| clients.auth)
    };
    assert_eq!(clients(""), None);
    // An authority alone makes the certificate required.
    assert_eq!(clients("client_ca_file = \"a\""), Some(ClientAuth::Required));
    assert_eq!(
        clients("client_ca_file = \"a\", client_auth = \"required\""),
        Some(ClientAuth::Required)
    );
    assert_eq!(
        clients("client_ca_file = \"a\", client_auth = \"optional\""),
        Some(ClientAuth::Optional)
    );
}

#[test]
fn cluster_keys_must_fit_together() {
    let cluster =
        |url: &str, more: &str| format!("[cluster]\nurl = {url:?}\nkey_file = \"k\"\n{more}");
    let problem = problem_of(&cluster("redis://r", "ca_file = \"a\""));
    assert!(
        problem.starts_with("gateway.toml:4: cluster.ca_file: has no effect without TLS"),
        "{problem}"
    );
    let problem = problem_of(&cluster("redis://r", "username = \"u\""));
    assert!(
        problem.starts_with("gateway.toml:4: cluster.username: requires cluster.password_file"),
        "{problem}"
    );
    with(&cluster("rediss://r", "ca_file = \"a\"\nusername = \"u\"\npassword_file = \"p\""))
        .unwrap();
    let problem = problem_of(&cluster("redis://u:hunter2@r", ""));
    assert!(
        problem.contains("cluster.url: the URL contains user information")
            && !problem.contains("hunter2"),
        "{problem}"
    );
    let problem = problem_of(&cluster("redis://r", "max_isolation = \"500ms\""));
    assert!(
        problem.starts_with(
            "gateway.toml:4: cluster.max_isolation: \"500ms\" is too short; expected at least 1s"
        ),
        "{problem}"
    );
}

#[test]
fn relations_of_an_invalid_key_are_not_checked() {
    // The default of an invalid key must not be reported.
    let problem = problem_of(
        "[cache]\nttl = \"14m\"\nstale_while_revalidate = \"x\"\n[identity]\nsession = \"10m\"",
    );
    assert!(
        problem.starts_with("gateway.toml:3: cache.stale_while_revalidate: invalid duration \"x\""),
        "{problem}"
    );
    let problem = problem_of("[identity]\nttl = \"20s\"\nrefresh_after = 20s");
    assert!(problem.starts_with("gateway.toml:3: invalid TOML"), "{problem}");
}

#[test]
fn missing_url_hides_no_other_problem() {
    let problems = parse("f", "[identity]\nttl = \"20s\"", []).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["upstream.url", "identity.refresh_after"]);
}
