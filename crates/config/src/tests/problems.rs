//! Problems with their lines, keys and remedies.

use super::*;

#[test]
fn all_problems_are_reported_in_file_order() {
    let text = r#"
[server]
listen = ["localhost:80", "127.0.0.1"]
threads = -1
max_conections = 5

[cache]
ttl = "60"
ttl_jitter = 0.6
max_bytes = 1000000

[upstrem]
url = "https://api.telecomx.dk"

[log]
level = "verbose"
access = true
access = "off"
"#;
    let problems = parse("config/gateway.toml", text, []).unwrap_err();
    let shown = problems.to_string();
    let lines: Vec<&str> = shown.lines().collect();
    let expected = [
        r#"config/gateway.toml: upstream.url: missing required key; for example url = "https://api.telecomx.dk""#,
        r#"config/gateway.toml:3: server.listen: invalid address "localhost:80": the host is not an IP address; for example "127.0.0.1:80""#,
        r#"config/gateway.toml:3: server.listen: invalid address "127.0.0.1": the port is missing, or the brackets of IPv6; for example "127.0.0.1:8080""#,
        r#"config/gateway.toml:4: server.threads: -1 is out of range; expected a number from 0 to 1024"#,
        r#"config/gateway.toml:5: server.max_conections: unknown key; did you mean `server.max_connections`?"#,
        r#"config/gateway.toml:8: cache.ttl: invalid duration "60"; expected a whole number with h, m, s or ms; for example "60s""#,
        r#"config/gateway.toml:9: cache.ttl_jitter: out of range; expected a number from 0 to 0.5, for example 0.1"#,
        r#"config/gateway.toml:10: cache.max_bytes: 1000000 has no unit; expected a whole number with B, KB, KiB, MB, MiB, GB or GiB; for example "1000000B""#,
        r#"config/gateway.toml:12: upstrem: unknown key; did you mean [upstream]?"#,
        r#"config/gateway.toml:16: log.level: unknown value "verbose"; expected one of "error", "warn", "info", "debug", "trace""#,
    ];
    // A broken line may define a missing key, so none is reported.
    let without_duplicate =
        text.replace("access = \"off\"\n", "").replace("access = true", "access = \"on\"");
    let clean = parse("config/gateway.toml", &without_duplicate, []).unwrap_err();
    assert_eq!(clean.iter().len(), expected.len() + 1, "{clean}");
    for (problem, expected) in clean.iter().zip(expected) {
        assert!(problem.to_string().starts_with(expected), "{problem}\nis not\n{expected}");
    }
    assert_eq!(lines.len(), expected.len() - 1 + 2, "{shown}");
    assert!(
        lines.contains(&"config/gateway.toml:18: log.access: duplicate key, also defined in line 17; remove one of the two definitions"),
        "{shown}"
    );
    assert!(!shown.contains("missing required key"), "{shown}");
}

#[test]
fn locations_have_columns() {
    let problems = with("[server]\nlisten = [\"127.0.0.1:1\", \"ø\", \"x\"]").unwrap_err();
    let columns: Vec<&Location> = problems.iter().map(|problem| &problem.location).collect();
    let location = |column| Location::Line { file: "gateway.toml".to_owned(), line: 2, column };
    assert_eq!(columns, [&location(26), &location(31)]);
}

#[test]
fn toml_error_has_line_and_hides_no_other_problem() {
    let problems = problems_of("[cache]\nttl = \nnot_found_ttl = 5\n[log]\nlevel = \"x\"");
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(problems[0].starts_with("gateway.toml:2: invalid TOML: "), "{}", problems[0]);
    assert!(
        problems[1].starts_with("gateway.toml:3: cache.not_found_ttl: 5 has no unit"),
        "{}",
        problems[1]
    );
    assert!(problems[2].starts_with("gateway.toml:5: log.level: "), "{}", problems[2]);
    // A secret on a broken line is not repeated.
    let shown = problems_of("token = \"hunter2").concat();
    assert!(shown.contains("invalid TOML") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn duplicate_key_names_both_lines() {
    for (extra, starts) in [
        (
            "[cache]\nttl = \"1s\"\nttl = \"2s\"",
            "gateway.toml:3: cache.ttl: duplicate key, also defined in line 2;",
        ),
        ("[log]\n[cache]\n[log]", "gateway.toml:3: log: duplicate key, also defined in line 1;"),
        (
            "[server]\n[server.tls]\n[server.tls]",
            "gateway.toml:3: server.tls: duplicate key, also defined in line 2;",
        ),
        (
            "cache.ttl = \"1s\"\ncache.ttl = \"2s\"",
            "gateway.toml:2: cache.ttl: duplicate key, also defined in line 1;",
        ),
        (
            "cache = { ttl = \"1s\", ttl = \"2s\" }",
            "gateway.toml:1: cache.ttl: duplicate key, also defined in line 1;",
        ),
        (
            "[[forward.redact]]\npath = \"/a\"\npath = \"/b\"",
            "gateway.toml:3: forward.redact.path: duplicate key, also defined in line 2;",
        ),
        (
            "[[forward.redact]]\npath = \"/a\"\n[forward.redact]",
            "gateway.toml:3: forward.redact: duplicate key, also defined in line 1;",
        ),
        (
            "[cache]\nttl = \"1s\"\n[log]\n[[cache]]",
            "gateway.toml:4: cache: duplicate key, also defined in line 1;",
        ),
    ] {
        let problems = problems_of(extra);
        assert!(
            problems.iter().any(|problem| problem.starts_with(starts)),
            "{extra}: {problems:#?}"
        );
    }
    // The second definition of [upstream] is the one that `with` adds.
    let problems = problems_of("upstream.url = \"https://a.example\"\n");
    assert!(problems[0].starts_with("gateway.toml:3: upstream: duplicate key"), "{problems:#?}");
    let problem = problem_of("[redaction]\nroots = [\n\"a\",\n\"b\",\n\"a\"]");
    assert_eq!(
        problem,
        "gateway.toml:5: redaction.roots: duplicate item \"a\"; remove one of the two"
    );
}

#[test]
fn unknown_key_has_a_hint() {
    for (extra, starts) in [
        (
            "[cache]\ntll = \"1s\"",
            "gateway.toml:2: cache.tll: unknown key; did you mean `cache.ttl`? expected one of: ttl, not_found_ttl",
        ),
        (
            "[cache]\nmax-bytes = 1",
            "gateway.toml:2: cache.max-bytes: unknown key; did you mean `cache.max_bytes`?",
        ),
        (
            "[cache]\nsession = \"1s\"",
            "gateway.toml:2: cache.session: unknown key; did you mean `identity.session`?",
        ),
        (
            "[Server]",
            "gateway.toml:1: Server: unknown key; did you mean [server]? expected one of: server, admin",
        ),
        ("[server.tsl]", "gateway.toml:1: server.tsl: unknown key; did you mean [server.tls]?"),
        ("[tls]", "gateway.toml:1: tls: unknown key; did you mean [server.tls]?"),
        ("[[redact]]", "gateway.toml:1: redact: unknown key; did you mean [[forward.redact]]?"),
        (
            "[cache.log]",
            "gateway.toml:1: cache.log: unknown key; did you mean [log]? expected one of: ttl",
        ),
        (
            "[caching]",
            "gateway.toml:1: caching: unknown key; did you mean [cache]? expected one of: server",
        ),
        ("[something]", "gateway.toml:1: something: unknown key; expected one of: server, admin"),
        (
            "[[forward.redact]]\npath = \"/a\"\nroles = 1",
            "gateway.toml:3: forward.redact.roles: unknown key; did you mean `forward.redact.role`? expected one of: path, role, secret_names, pass_types",
        ),
    ] {
        let problem = problem_of(extra);
        assert!(problem.starts_with(starts), "{problem}");
    }
    // The value of a misspelled key may be a secret.
    assert!(!problem_of("[admin]\ntoken = \"hunter2\"").contains("hunter2"));
}

#[test]
fn wrong_type_names_expected_and_found() {
    for (extra, expected) in [
        (
            "[cache]\nttl = 60",
            r#"cache.ttl: 60 has no unit; expected a whole number with h, m, s or ms; for example "60s""#,
        ),
        (
            "[cache]\nttl = true",
            r#"cache.ttl: expected a duration in quotes, found true or false; expected a whole number with h, m, s or ms; for example "60s""#,
        ),
        (
            "[cache]\nmax_bytes = \"1\"",
            r#"cache.max_bytes: invalid size "1"; expected a whole number with B, KB, KiB, MB, MiB, GB or GiB; for example "1B""#,
        ),
        (
            "[server]\nthreads = \"4\"",
            "server.threads: expected a whole number, found a string; for example 0",
        ),
        (
            "[server]\nthreads = 1.5",
            "server.threads: expected a whole number, found a number; for example 0",
        ),
        (
            "[server]\nlisten = \"127.0.0.1:1\"",
            r#"server.listen: expected a list, found a string; for example ["127.0.0.1:8080"]"#,
        ),
        (
            "[server]\nlisten = [8080]",
            r#"server.listen: expected a string, found a whole number; for example "127.0.0.1:8080""#,
        ),
        (
            "[identity]\nsend_client_ip = \"yes\"",
            "identity.send_client_ip: expected true or false, found a string; for example true",
        ),
        (
            "[identity]\ncookie = false",
            r#"identity.cookie: expected a string, found true or false; for example "token""#,
        ),
        ("cache = 1", "cache: expected a table; use a line [cache]"),
        ("[[cache]]", "cache: expected a table; use a line [cache]"),
        (
            "[forward.redact]\npath = \"/a\"",
            "forward.redact: expected a list of tables; use [[forward.redact]], with double brackets",
        ),
        (
            "forward.redact = [1]",
            "forward.redact: expected a list of tables; use [[forward.redact]], with double brackets",
        ),
    ] {
        let problem = problem_of(extra);
        let (_, after_line) = problem.split_once(": ").unwrap();
        assert_eq!(after_line, expected);
    }
}

#[test]
fn values_out_of_bounds_are_refused() {
    for (table, key, wrong, right) in [
        ("server", "max_connections", &["0", "1000001"][..], &["1"][..]),
        ("server", "max_connections_per_address", &["0", "1000001"], &["1"]),
        ("server", "max_requests", &["0", "1000001"], &["1"]),
        ("server", "max_header_bytes", &["\"1023B\"", "\"2MiB\""], &["\"1KiB\"", "\"1MiB\""]),
        ("server", "header_timeout", &["\"0s\"", "\"9000h\""], &["\"1ms\""]),
        ("server", "keepalive_timeout", &["\"0s\""], &["\"1s\""]),
        ("server", "write_timeout", &["\"0s\"", "\"9000h\""], &["\"1s\""]),
        ("server", "drain", &["\"-1s\""], &["\"0s\""]),
        ("server", "listen", &["[]"], &["[\"0.0.0.0:0\"]"]),
        (
            "server",
            "trusted_proxies",
            &["[\"10.0.0.1/8\"]", "[\"lan\"]"],
            &["[]", "[\"10.0.0.1\", \"fd00::/8\"]"],
        ),
        (
            "server",
            "proxy_protocol",
            &["[\"10.0.0.1/8\"]", "[\"lan\"]"],
            &["[]", "[\"10.0.0.1\", \"fd00::/8\"]"],
        ),
        ("upstream", "connect_timeout", &["\"0ms\""], &["\"250ms\""]),
        ("upstream", "timeout", &["\"0s\""], &["\"1m\""]),
        ("upstream", "max_in_flight", &["0"], &["1"]),
        ("upstream", "max_body", &["\"0B\""], &["\"1KiB\""]),
        ("identity", "session", &["\"0s\""], &["\"2h\""]),
        ("identity", "cookie", &["\"a b\""], &["\"\"", "\"sid\""]),
        ("identity", "max_invalid_per_minute", &["0"], &["1"]),
        ("cache", "max_bytes", &["\"1048575B\""], &["\"1MiB\""]),
        ("cache", "ttl_jitter", &["0.51", "-0.1", "nan", "inf"], &["0", "0.5", "0.0"]),
        ("redaction", "reveal_to", &["\"reseller\"", "\"ROOT\""], &["\"ADMIN\""]),
        ("redaction", "action", &["\"delete\""], &["\"mask\""]),
        ("redaction", "roots", &["[]", "[\"\"]", "[\"a.b\"]"], &["[\"integrations\"]"]),
        ("redaction", "public", &["[\"a..b\"]", "[\"a[0]\"]"], &["[]"]),
        ("redaction", "secret_names", &["[\"\"]", "[\"*\"]"], &["[]", "[\"*pin*\"]"]),
        (
            "forward",
            "blocked",
            &["[\"tools\"]", "[\"/a**\"]", "[\"/a/\"]"],
            &["[]", "[\"/a/**/b\"]"],
        ),
        (
            "cors",
            "allowed_origins",
            &["[\"https://App.example\"]", "\"https://app.example\""],
            &["[\"https://app.example:8443\"]"],
        ),
    ] {
        // [upstream] may be the table of the key.
        let text = |value: &str| {
            format!(
                "[{table}]\n{key} = {value}\n{}",
                if table == "upstream" {
                    "url = \"http://a\""
                } else {
                    "[upstream]\nurl = \"http://a\""
                }
            )
        };
        for value in wrong {
            let problems = parse("f", &text(value), []).expect_err(value);
            for problem in problems.iter() {
                assert_eq!(
                    (problem.key.as_str(), problem.location.line()),
                    (format!("{table}.{key}").as_str(), Some(2)),
                    "{value}"
                );
                assert!(!problem.remedy.is_empty(), "{problem}");
            }
        }
        for value in right {
            parse("f", &text(value), [])
                .unwrap_or_else(|problems| panic!("{key} = {value}: {problems}"));
        }
    }
}

#[test]
fn url_fault_does_not_repeat_the_password() {
    let problems = parse("f", "[upstream]\nurl = \"https://me:hunter2@api.telecomx.dk\"", [])
        .unwrap_err()
        .to_string();
    assert!(
        problems.starts_with("f:2: upstream.url: the URL contains user information"),
        "{problems}"
    );
    assert!(!problems.contains("hunter2"));
}

#[test]
fn missing_key_has_the_line_of_its_table() {
    let problems = problems_of("\n[server.tls]\nlisten = [\"127.0.0.1:8443\"]");
    assert_eq!(problems.len(), 2, "{problems:#?}");
    for (problem, key) in problems.iter().zip(["cert_file", "key_file"]) {
        assert!(
            problem.starts_with(&format!(
                "gateway.toml:2: server.tls.{key}: missing required key; for example {key} = "
            )),
            "{problem}"
        );
    }
    let problem =
        problem_of("[[forward.redact]]\npath = \"/a\"\n[[forward.redact]]\nrole = \"answer\"");
    assert!(
        problem.starts_with("gateway.toml:3: forward.redact.path: missing required key"),
        "{problem}"
    );
    let problem = parse("f", "[upstream]\ntimeout = \"1s\"", []).unwrap_err().to_string();
    assert!(problem.starts_with("f:1: upstream.url: missing required key"), "{problem}");
}

#[test]
fn duration_and_size_faults_list_the_units() {
    for value in
        ["\"1d\"", "\"1min\"", "\"1.5m\"", "\"60\"", "60", "true", "\"-1s\"", "\"\"", "\"9000h\""]
    {
        let problem = problem_of(&format!("[cache]\nttl = {value}"));
        assert!(
            problem.contains("expected a whole number with h, m, s or ms; for example"),
            "{problem}"
        );
    }
    let zero = problem_of("[server]\nheader_timeout = \"0s\"");
    assert!(
        zero.contains("must be greater than zero; expected a whole number with h, m, s or ms"),
        "{zero}"
    );
    for value in ["\"1\"", "1", "\"1mb\"", "\"1.5MiB\"", "\"1B\"", "true"] {
        let problem = problem_of(&format!("[cache]\nmax_bytes = {value}"));
        assert!(
            problem.contains("expected a whole number with B, KB, KiB, MB, MiB, GB or GiB"),
            "{problem}"
        );
    }
}

/// Line and name of a commented key, and line and path of its commented header.
type CommentedKey = (usize, String, Option<(usize, String)>);

/// The lines of the shipped file that set a key when their `#` is removed, with the last header
/// before them.
fn commented_keys(text: &str) -> Vec<CommentedKey> {
    let mut header = None;
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            header = None;
        } else if line.starts_with("#[") {
            header = Some((index + 1, line.trim_matches(['#', '[', ']']).to_owned()));
        } else if let Some(name) = line.strip_prefix('#').and_then(|rest| rest.split_once(" = "))
            && !line.starts_with("# ")
        {
            keys.push((index, name.0.to_owned(), header.clone()));
        }
    }
    keys
}

#[test]
fn key_uncommented_alone_names_its_commented_header() {
    let shipped = crate::example::gateway_toml();
    let mut below_commented_header = 0;
    for (index, name, header) in commented_keys(&shipped) {
        let mut is_open = false;
        let text: String = shipped
            .lines()
            .enumerate()
            .map(|(at, line)| {
                // A list may continue on the next lines.
                let is_uncommented = at == index || (is_open && line.starts_with('#'));
                is_open = is_uncommented && (line.ends_with('[') || is_open && line != "#]");
                let line = if is_uncommented { line.trim_start_matches('#') } else { line };
                format!("{line}\n")
            })
            .collect();
        let result = parse("gateway.toml", &text, []);
        match header {
            // One of a pair requires the other.
            None if name.starts_with("client_") => {
                assert!(result.unwrap_err().to_string().contains("requires upstream.client_"));
            }
            None => assert!(result.is_ok(), "{name}: {result:?}"),
            Some((line, table)) => {
                below_commented_header += 1;
                let problems = result.expect_err(&name).to_string();
                let place = format!("gateway.toml:{}: ", index + 1);
                let hint = format!("[{table}]");
                assert!(problems.starts_with(&place) && problems.contains(&hint), "{problems}");
                assert!(
                    problems.contains(&format!("in line {line} is commented out")),
                    "{problems}"
                );
            }
        }
    }
    assert!(below_commented_header > 25, "{below_commented_header}");
    // Prose in a comment is not a header.
    with("[server]\n# [server.tls] and listen\nlisten = [\"127.0.0.1:1\"]").unwrap();
    with("[cache]\n#[cache]\nttl = \"1s\"").unwrap();
}

mod any_input {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Nothing that can stand in the file or a variable ends the program, and every location is
        /// one of the file.
        #[test]
        fn has_problems_with_existing_locations(
            cut in 0_usize..8000, length in 0_usize..40, instead in "[\\[\\]=\"'{}.,#\na-z0-9ø*\\\\/:-]{0,12}", value in "\\PC{0,20}",
        ) {
            let mut text = crate::example::gateway_toml().replace("\n#", "\n");
            let start = text.floor_char_boundary(cut.min(text.len()));
            let end = text.floor_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &instead);
            let lines = text.lines().count() + 1;
            for key in ["SERVER__LISTEN", "CACHE__TTL", "REDACTION__PUBLIC", "UPSTREAM__URL", "CORS__ALLOWED_ORIGINS"] {
                let env = [(format!("TELECOMX_GATEWAY__{key}"), value.clone())];
                if let Err(problems) = parse("f", &text, env) {
                    prop_assert!(problems.iter().len() > 0);
                    for problem in problems.iter() {
                        prop_assert!(problem.location.line().is_none_or(|line| (1..=lines).contains(&line)), "{problem}");
                        prop_assert!(!problem.cause.is_empty());
                    }
                }
            }
        }
    }
}
