//! What must hold between keys.

use super::*;

#[test]
fn a_caller_served_from_the_cache_alone_keeps_its_session() {
    let problem = problem_of("[cache]\nttl = \"14m30s\"\n");
    assert_eq!(
        problem,
        "gateway.toml:2: cache.ttl: the sum with cache.stale_while_revalidate, \"15m\", is not less than identity.session \
         (\"15m\"); shorten one of them; otherwise the API logs out a caller who is served from the cache only"
    );
    with("[cache]\nttl = \"14m29s\"\n").unwrap();
    // The line is that of the key that was written.
    assert!(problem_of("[cache]\nstale_while_revalidate = \"1h\"").starts_with("gateway.toml:2: cache.ttl: "));
    assert!(problem_of("[identity]\n\nsession = \"90s\"").starts_with("gateway.toml:3: cache.ttl: "));
}

#[test]
fn identities_are_refreshed_before_they_end() {
    let problem = problem_of("[identity]\nttl = \"20s\"");
    assert_eq!(
        problem,
        "gateway.toml:2: identity.refresh_after: \"30s\" is longer than identity.ttl (\"20s\"); expected at most \"20s\""
    );
    with("[identity]\nttl = \"20s\"\nrefresh_after = \"20s\"").unwrap();
    with("[identity]\nttl = \"0s\"").unwrap();
}

#[test]
fn admin_beyond_loopback_needs_a_token() {
    let problem = problem_of("[admin]\nlisten = \"0.0.0.0:9090\"");
    assert!(
        problem.starts_with("gateway.toml:2: admin.listen: \"0.0.0.0:9090\" is not a loopback address"),
        "{problem}"
    );
    with("[admin]\nlisten = \"0.0.0.0:9090\"\ntoken_file = \"token\"").unwrap();
    with("[admin]\nlisten = \"[::1]:9090\"").unwrap();
}

#[test]
fn listeners_do_not_collide() {
    for extra in [
        "[admin]\nlisten = \"127.0.0.1:8080\"",
        "\n[server]\nlisten = [\"0.0.0.0:1\", \"127.0.0.1:1\"]".trim_start(),
        "[server]\ntls = { listen = [\"[::]:9090\"], cert_file = \"c\", key_file = \"k\" }",
    ] {
        let problem = problem_of(extra);
        assert!(problem.starts_with("gateway.toml:2: ") && problem.contains("overlaps with"), "{problem}");
    }
    with("[server]\nlisten = [\"127.0.0.1:0\", \"0.0.0.0:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"").unwrap();
}

#[test]
fn certificates_of_callers_need_an_authority() {
    let tls = |more: &str| {
        format!("[server]\ntls = {{ listen = [\"[::]:1\"], cert_file = \"c\", key_file = \"k\", {more} }}")
    };
    let problem = problem_of(&tls("client_auth = \"required\""));
    assert!(
        problem.starts_with("gateway.toml:2: server.tls.client_auth: has no effect without client_ca_file"),
        "{problem}"
    );
    let clients = |more: &str| with(&tls(more)).unwrap().server.tls.unwrap().clients.map(|clients| clients.auth);
    assert_eq!(clients(""), None);
    // Who names an authority means that it is asked for.
    assert_eq!(clients("client_ca_file = \"a\""), Some(ClientAuth::Required));
    assert_eq!(clients("client_ca_file = \"a\", client_auth = \"required\""), Some(ClientAuth::Required));
    assert_eq!(clients("client_ca_file = \"a\", client_auth = \"optional\""), Some(ClientAuth::Optional));
}

#[test]
fn what_a_fleet_is_told_fits_together() {
    let cluster = |url: &str, more: &str| format!("[cluster]\nurl = {url:?}\nkey_file = \"k\"\n{more}");
    let problem = problem_of(&cluster("redis://r", "ca_file = \"a\""));
    assert!(problem.starts_with("gateway.toml:4: cluster.ca_file: has no effect without TLS"), "{problem}");
    let problem = problem_of(&cluster("redis://r", "username = \"u\""));
    assert!(problem.starts_with("gateway.toml:4: cluster.username: requires cluster.password_file"), "{problem}");
    with(&cluster("rediss://r", "ca_file = \"a\"\nusername = \"u\"\npassword_file = \"p\"")).unwrap();
    let problem = problem_of(&cluster("redis://u:hunter2@r", ""));
    assert!(
        problem.contains("cluster.url: the URL contains user information") && !problem.contains("hunter2"),
        "{problem}"
    );
    let problem = problem_of(&cluster("redis://r", "max_isolation = \"500ms\""));
    assert!(
        problem.starts_with("gateway.toml:4: cluster.max_isolation: \"500ms\" is too short; expected at least 1s"),
        "{problem}"
    );
}

#[test]
fn nothing_is_said_of_what_stands_with_a_wrong_key() {
    // The default of a key that cannot be read must not be blamed on the operator.
    let problem = problem_of("[cache]\nttl = \"14m\"\nstale_while_revalidate = \"x\"\n[identity]\nsession = \"10m\"");
    assert!(problem.starts_with("gateway.toml:3: cache.stale_while_revalidate: invalid duration \"x\""), "{problem}");
    let problem = problem_of("[identity]\nttl = \"20s\"\nrefresh_after = 20s");
    assert!(problem.starts_with("gateway.toml:3: invalid TOML"), "{problem}");
}

#[test]
fn a_missing_url_hides_no_other_problem() {
    let problems = parse("f", "[identity]\nttl = \"20s\"", []).unwrap_err();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["upstream.url", "identity.refresh_after"]);
}
