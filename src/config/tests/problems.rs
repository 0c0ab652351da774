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
        r#"config/gateway.toml: upstream.url: is missing; write e.g. url = "https://api.telecomx.dk""#,
        r#"config/gateway.toml:3: server.listen: "localhost:80" is not an IP address with a port; write e.g. "127.0.0.1:80""#,
        r#"config/gateway.toml:3: server.listen: "127.0.0.1" has no port, or no brackets; write e.g. "127.0.0.1:8080""#,
        r#"config/gateway.toml:4: server.threads: -1 is out of range; write a number from 0 to 1024"#,
        r#"config/gateway.toml:5: server.max_conections: is no known key; did you mean `server.max_connections`?"#,
        r#"config/gateway.toml:8: cache.ttl: "60" is not a duration; write e.g. "60s""#,
        r#"config/gateway.toml:9: cache.ttl_jitter: is out of range; write a number from 0 to 0.5, e.g. 0.1"#,
        r#"config/gateway.toml:10: cache.max_bytes: 1000000 has no unit; write e.g. "1000000B""#,
        r#"config/gateway.toml:12: upstrem: is no known key; did you mean `upstream`?"#,
        r#"config/gateway.toml:16: log.level: "verbose" is none of the words that fit; write one of "error", "warn", "info", "debug", "trace""#,
    ];
    // A file that is not TOML throughout is not said to lack a key: it may be in what could not be read.
    let without_duplicate = text.replace("access = \"off\"\n", "").replace("access = true", "access = \"on\"");
    let clean = parse("config/gateway.toml", &without_duplicate, []).unwrap_err();
    assert_eq!(clean.iter().len(), expected.len() + 1, "{clean}");
    for (problem, expected) in clean.iter().zip(expected) {
        assert!(problem.to_string().starts_with(expected), "{problem}\nis not\n{expected}");
    }
    assert_eq!(lines.len(), expected.len() - 1 + 2, "{shown}");
    assert!(
        lines.contains(&"config/gateway.toml:18: log.access: is defined twice; remove one of the two definitions"),
        "{shown}"
    );
    assert!(!shown.contains("is missing"), "{shown}");
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
    assert!(problems[0].starts_with("gateway.toml:2: not TOML: "), "{}", problems[0]);
    assert!(problems[1].starts_with("gateway.toml:3: cache.not_found_ttl: 5 has no unit"), "{}", problems[1]);
    assert!(problems[2].starts_with("gateway.toml:5: log.level: "), "{}", problems[2]);
    // A secret on a broken line is not repeated.
    let shown = problems_of("token = \"hunter2").concat();
    assert!(shown.contains("not TOML") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn duplicates_are_named_with_their_line() {
    for (extra, starts) in [
        ("[cache]\nttl = \"1s\"\nttl = \"2s\"", "gateway.toml:3: cache.ttl: is defined twice"),
        ("[log]\n[cache]\n[log]", "gateway.toml:3: log: is defined twice"),
        ("[server]\n[server.tls]\n[server.tls]", "gateway.toml:3: server.tls: is defined twice"),
        ("cache.ttl = \"1s\"\ncache.ttl = \"2s\"", "gateway.toml:2: cache.ttl: is defined twice"),
        ("cache = { ttl = \"1s\", ttl = \"2s\" }", "gateway.toml:1: cache.ttl: is defined twice"),
        ("[[forward.redact]]\npath = \"/a\"\npath = \"/b\"", "gateway.toml:3: forward.redact.path: is defined twice"),
        ("[[forward.redact]]\npath = \"/a\"\n[forward.redact]", "gateway.toml:3: forward.redact: is defined twice"),
        ("[cache]\nttl = \"1s\"\n[log]\n[[cache]]", "gateway.toml:4: cache: is defined twice"),
    ] {
        let problems = problems_of(extra);
        assert!(problems.iter().any(|problem| problem.starts_with(starts)), "{extra}: {problems:#?}");
    }
    // The second definition of [upstream] is the one that `with` adds.
    let problems = problems_of("upstream.url = \"https://a.example\"\n");
    assert!(problems[0].starts_with("gateway.toml:3: upstream: is defined twice"), "{problems:#?}");
    let problem = problem_of("[redaction]\nroots = [\n\"a\",\n\"b\",\n\"a\"]");
    assert_eq!(problem, "gateway.toml:5: redaction.roots: \"a\" stands twice; write it once");
}

#[test]
fn unknown_keys_come_with_what_was_probably_meant() {
    for (extra, starts) in [
        (
            "[cache]\ntll = \"1s\"",
            "gateway.toml:2: cache.tll: is no known key; did you mean `cache.ttl`? known in [cache]: ttl, not_found_ttl",
        ),
        ("[cache]\nmax-bytes = 1", "gateway.toml:2: cache.max-bytes: is no known key; did you mean `cache.max_bytes`?"),
        (
            "[cache]\nsession = \"1s\"",
            "gateway.toml:2: cache.session: is no known key; did you mean `identity.session`?",
        ),
        ("[Server]", "gateway.toml:1: Server: is no known key; did you mean `server`? known at the top: server, admin"),
        ("[server.tsl]", "gateway.toml:1: server.tsl: is no known key; did you mean `server.tls`?"),
        ("[tls]", "gateway.toml:1: tls: is no known key; did you mean `server.tls`?"),
        ("[[redact]]", "gateway.toml:1: redact: is no known key; did you mean `forward.redact`?"),
        ("[cache.log]", "gateway.toml:1: cache.log: is no known key; did you mean `log`? known in [cache]: ttl"),
        ("[something]", "gateway.toml:1: something: is no known key; known at the top: server, admin"),
        (
            "[[forward.redact]]\npath = \"/a\"\nroles = 1",
            "gateway.toml:3: forward.redact.roles: is no known key; did you mean `forward.redact.role`? known in [forward.redact]: path, role, secret_names, pass_types",
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
        ("[cache]\nttl = 60", r#"cache.ttl: 60 has no unit; write e.g. "60s""#),
        ("[cache]\nttl = true", r#"cache.ttl: a duration in quotes is expected, not true or false; write e.g. "60s""#),
        (
            "[cache]\nmax_bytes = \"1\"",
            r#"cache.max_bytes: "1" is not a size; write e.g. "256MiB"; units are B, KB, KiB, MB, MiB, GB, GiB"#,
        ),
        ("[server]\nthreads = \"4\"", "server.threads: a whole number is expected, not a string; write e.g. 0"),
        ("[server]\nthreads = 1.5", "server.threads: a whole number is expected, not a number; write e.g. 0"),
        (
            "[server]\nlisten = \"127.0.0.1:1\"",
            r#"server.listen: a list is expected, not a string; write e.g. ["127.0.0.1:8080"]"#,
        ),
        (
            "[server]\nlisten = [8080]",
            r#"server.listen: a string is expected, not a whole number; write e.g. "127.0.0.1:8080""#,
        ),
        (
            "[identity]\nsend_client_ip = \"yes\"",
            "identity.send_client_ip: true or false is expected, not a string; write e.g. true",
        ),
        (
            "[identity]\ncookie = false",
            r#"identity.cookie: a string is expected, not true or false; write e.g. "token""#,
        ),
        ("cache = 1", "cache: is a table; write [cache] on a line of its own"),
        ("[[cache]]", "cache: is a table; write [cache] on a line of its own"),
        (
            "[forward.redact]\npath = \"/a\"",
            "forward.redact: is a list of tables; write [[forward.redact]], with two brackets",
        ),
        ("forward.redact = [1]", "forward.redact: is a list of tables; write [[forward.redact]]"),
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
    assert!(problems.starts_with("f:2: upstream.url: holds user information"), "{problems}");
    assert!(!problems.contains("hunter2"));
}

#[test]
fn tables_with_a_part_missing_are_told_at_their_line() {
    let problems = problems_of("\n[server.tls]\nlisten = [\"127.0.0.1:8443\"]");
    assert_eq!(problems.len(), 2, "{problems:#?}");
    for (problem, key) in problems.iter().zip(["cert_file", "key_file"]) {
        assert!(
            problem.starts_with(&format!("gateway.toml:2: server.tls.{key}: is missing; write e.g. {key} = ")),
            "{problem}"
        );
    }
    let problem = problem_of("[[forward.redact]]\npath = \"/a\"\n[[forward.redact]]\nrole = \"answer\"");
    assert!(problem.starts_with("gateway.toml:3: forward.redact.path: is missing"), "{problem}");
    let problem = parse("f", "[upstream]\ntimeout = \"1s\"", []).unwrap_err().to_string();
    assert!(problem.starts_with("f:1: upstream.url: is missing"), "{problem}");
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
            let mut text = crate::config::sample::gateway_toml().replace("\n#", "\n");
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
