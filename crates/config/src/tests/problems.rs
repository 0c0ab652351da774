//! Problems: all of them, each at its line.

use super::*;

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
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
        r#"config/gateway.toml:8: cache.ttl: invalid duration "60"; for example "60s""#,
        r#"config/gateway.toml:9: cache.ttl_jitter: out of range; expected a number from 0 to 0.5, for example 0.1"#,
        r#"config/gateway.toml:10: cache.max_bytes: 1000000 has no unit; for example "1000000B""#,
        r#"config/gateway.toml:12: upstrem: unknown key; did you mean `upstream`?"#,
        r#"config/gateway.toml:16: log.level: unknown value "verbose"; expected one of "error", "warn", "info", "debug", "trace""#,
    ];
    // A file that is invalid TOML throughout is not said to lack a key: it may be in what could not be read.
    let without_duplicate = text.replace("access = \"off\"\n", "").replace("access = true", "access = \"on\"");
    let clean = parse("config/gateway.toml", &without_duplicate, []).unwrap_err();
    assert_eq!(clean.iter().len(), expected.len() + 1, "{clean}");
    for (problem, expected) in clean.iter().zip(expected) {
        assert!(problem.to_string().starts_with(expected), "{problem}\nis not\n{expected}");
    }
    assert_eq!(lines.len(), expected.len() - 1 + 2, "{shown}");
    assert!(
        lines.contains(&"config/gateway.toml:18: log.access: duplicate key; remove one of the two definitions"),
        "{shown}"
    );
    assert!(!shown.contains("missing required key"), "{shown}");
}

#[test]
fn places_have_columns() {
    let problems = with("[server]\nlisten = [\"127.0.0.1:1\", \"ø\", \"x\"]").unwrap_err();
    let columns: Vec<&Place> = problems.iter().map(|problem| &problem.place).collect();
    let place = |column| Place::Line { file: "gateway.toml".to_owned(), line: 2, column };
    assert_eq!(columns, [&place(26), &place(31)]);
}

#[test]
fn errors_of_toml_itself_have_lines_and_hide_nothing_else() {
    let problems = problems_of("[cache]\nttl = \nnot_found_ttl = 5\n[log]\nlevel = \"x\"");
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(problems[0].starts_with("gateway.toml:2: invalid TOML: "), "{}", problems[0]);
    assert!(problems[1].starts_with("gateway.toml:3: cache.not_found_ttl: 5 has no unit"), "{}", problems[1]);
    assert!(problems[2].starts_with("gateway.toml:5: log.level: "), "{}", problems[2]);
    // A secret on a broken line is not repeated.
    let shown = problems_of("token = \"hunter2").concat();
    assert!(shown.contains("invalid TOML") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn duplicates_are_named_with_their_line() {
    for (extra, starts) in [
        ("[cache]\nttl = \"1s\"\nttl = \"2s\"", "gateway.toml:3: cache.ttl: duplicate key"),
        ("[log]\n[cache]\n[log]", "gateway.toml:3: log: duplicate key"),
        ("[server]\n[server.tls]\n[server.tls]", "gateway.toml:3: server.tls: duplicate key"),
        ("cache.ttl = \"1s\"\ncache.ttl = \"2s\"", "gateway.toml:2: cache.ttl: duplicate key"),
        ("cache = { ttl = \"1s\", ttl = \"2s\" }", "gateway.toml:1: cache.ttl: duplicate key"),
        ("[[forward.redact]]\npath = \"/a\"\npath = \"/b\"", "gateway.toml:3: forward.redact.path: duplicate key"),
        ("[[forward.redact]]\npath = \"/a\"\n[forward.redact]", "gateway.toml:3: forward.redact: duplicate key"),
        ("[cache]\nttl = \"1s\"\n[log]\n[[cache]]", "gateway.toml:4: cache: duplicate key"),
    ] {
        let problems = problems_of(extra);
        assert!(problems.iter().any(|problem| problem.starts_with(starts)), "{extra}: {problems:#?}");
    }
    // The second definition of [upstream] is the one that `with` adds.
    let problems = problems_of("upstream.url = \"https://a.example\"\n");
    assert!(problems[0].starts_with("gateway.toml:3: upstream: duplicate key"), "{problems:#?}");
    let problem = problem_of("[redaction]\nroots = [\n\"a\",\n\"b\",\n\"a\"]");
    assert_eq!(problem, "gateway.toml:5: redaction.roots: duplicate item \"a\"; remove one of the two");
}

#[test]
fn unknown_keys_come_with_what_was_probably_meant() {
    for (extra, starts) in [
        (
            "[cache]\ntll = \"1s\"",
            "gateway.toml:2: cache.tll: unknown key; did you mean `cache.ttl`? expected one of: ttl, not_found_ttl",
        ),
        ("[cache]\nmax-bytes = 1", "gateway.toml:2: cache.max-bytes: unknown key; did you mean `cache.max_bytes`?"),
        ("[cache]\nsession = \"1s\"", "gateway.toml:2: cache.session: unknown key; did you mean `identity.session`?"),
        ("[Server]", "gateway.toml:1: Server: unknown key; did you mean `server`? expected one of: server, admin"),
        ("[server.tsl]", "gateway.toml:1: server.tsl: unknown key; did you mean `server.tls`?"),
        ("[tls]", "gateway.toml:1: tls: unknown key; did you mean `server.tls`?"),
        ("[[redact]]", "gateway.toml:1: redact: unknown key; did you mean `forward.redact`?"),
        ("[cache.log]", "gateway.toml:1: cache.log: unknown key; did you mean `log`? expected one of: ttl"),
        ("[something]", "gateway.toml:1: something: unknown key; expected one of: server, admin"),
        (
            "[[forward.redact]]\npath = \"/a\"\nroles = 1",
            "gateway.toml:3: forward.redact.roles: unknown key; did you mean `forward.redact.role`? expected one of: path, role, secret_names, pass_types",
        ),
    ] {
        let problem = problem_of(extra);
        assert!(problem.starts_with(starts), "{problem}");
    }
    // What stands under a misspelled name may be a secret.
    assert!(!problem_of("[admin]\ntoken = \"hunter2\"").contains("hunter2"));
}

#[test]
fn wrong_types_are_told_with_the_right_one() {
    for (extra, expected) in [
        ("[cache]\nttl = 60", r#"cache.ttl: 60 has no unit; for example "60s""#),
        ("[cache]\nttl = true", r#"cache.ttl: expected a duration in quotes, found true or false; for example "60s""#),
        (
            "[cache]\nmax_bytes = \"1\"",
            r#"cache.max_bytes: invalid size "1"; for example "256MiB"; units are B, KB, KiB, MB, MiB, GB, GiB"#,
        ),
        ("[server]\nthreads = \"4\"", "server.threads: expected a whole number, found a string; for example 0"),
        ("[server]\nthreads = 1.5", "server.threads: expected a whole number, found a number; for example 0"),
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
        ("server", "trusted_proxies", &["[\"10.0.0.1/8\"]", "[\"lan\"]"], &["[]", "[\"10.0.0.1\", \"fd00::/8\"]"]),
        ("server", "proxy_protocol", &["[\"10.0.0.1/8\"]", "[\"lan\"]"], &["[]", "[\"10.0.0.1\", \"fd00::/8\"]"]),
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
        ("forward", "blocked", &["[\"tools\"]", "[\"/a**\"]", "[\"/a/\"]"], &["[]", "[\"/a/**/b\"]"]),
        (
            "cors",
            "allowed_origins",
            &["[\"https://App.example\"]", "\"https://app.example\""],
            &["[\"https://app.example:8443\"]"],
        ),
    ] {
        // The table of the URL is written here too, so that every table can be.
        let text = |value: &str| {
            format!(
                "[{table}]\n{key} = {value}\n{}",
                if table == "upstream" { "url = \"http://a\"" } else { "[upstream]\nurl = \"http://a\"" }
            )
        };
        for value in wrong {
            let problems = parse("f", &text(value), []).expect_err(value);
            for problem in problems.iter() {
                assert_eq!(
                    (problem.key.as_str(), problem.place.line()),
                    (format!("{table}.{key}").as_str(), Some(2)),
                    "{value}"
                );
                assert!(!problem.right.is_empty(), "{problem}");
            }
        }
        for value in right {
            parse("f", &text(value), []).unwrap_or_else(|problems| panic!("{key} = {value}: {problems}"));
        }
    }
}

#[test]
fn the_url_is_told_without_what_may_be_a_password_in_it() {
    let problems = parse("f", "[upstream]\nurl = \"https://me:hunter2@api.telecomx.dk\"", []).unwrap_err().to_string();
    assert!(problems.starts_with("f:2: upstream.url: the URL contains user information"), "{problems}");
    assert!(!problems.contains("hunter2"));
}

#[test]
fn tables_with_a_part_missing_are_told_at_their_line() {
    let problems = problems_of("\n[server.tls]\nlisten = [\"127.0.0.1:8443\"]");
    assert_eq!(problems.len(), 2, "{problems:#?}");
    for (problem, key) in problems.iter().zip(["cert_file", "key_file"]) {
        assert!(
            problem
                .starts_with(&format!("gateway.toml:2: server.tls.{key}: missing required key; for example {key} = ")),
            "{problem}"
        );
    }
    let problem = problem_of("[[forward.redact]]\npath = \"/a\"\n[[forward.redact]]\nrole = \"answer\"");
    assert!(problem.starts_with("gateway.toml:3: forward.redact.path: missing required key"), "{problem}");
    let problem = parse("f", "[upstream]\ntimeout = \"1s\"", []).unwrap_err().to_string();
    assert!(problem.starts_with("f:1: upstream.url: missing required key"), "{problem}");
}

mod whatever_is_written {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Nothing that can stand in the file or a variable ends the program, and every place is one of the file.
        #[test]
        fn is_answered_with_places_that_exist(
            cut in 0_usize..8000, length in 0_usize..40, instead in "[\\[\\]=\"'{}.,#\na-z0-9ø*\\\\/:-]{0,12}", value in "\\PC{0,20}",
        ) {
            let mut text = crate::sample::gateway_toml().replace("\n#", "\n");
            let start = text.floor_char_boundary(cut.min(text.len()));
            let end = text.floor_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &instead);
            let lines = text.lines().count() + 1;
            for key in ["SERVER__LISTEN", "CACHE__TTL", "REDACTION__PUBLIC", "UPSTREAM__URL", "CORS__ALLOWED_ORIGINS"] {
                let env = [(format!("TELECOMX_GATEWAY__{key}"), value.clone())];
                if let Err(problems) = parse("f", &text, env) {
                    prop_assert!(problems.iter().len() > 0);
                    for problem in problems.iter() {
                        prop_assert!(problem.place.line().is_none_or(|line| (1..=lines).contains(&line)), "{problem}");
                        prop_assert!(!problem.wrong.is_empty());
                    }
                }
            }
        }
    }
}
