//! Valid and invalid configurations.

mod between;
mod environment;
mod explained;
mod files;
mod problems;
mod shipped;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redact::Action;
use telecomx_api::{AccessLevel, PathPattern};

use super::*;

/// A configuration with defaults, except for `extra`.
fn with(extra: &str) -> Result<Config, Problems> {
    parse("gateway.toml", &format!("{extra}\n[upstream]\nurl = \"https://api.telecomx.dk\"\n"), [])
}

/// The problems of such a configuration, one per line.
fn problems_of(extra: &str) -> Vec<String> {
    with(extra).expect_err(extra).iter().map(Problem::to_string).collect()
}

/// The only problem of such a configuration.
fn problem_of(extra: &str) -> String {
    let problems = problems_of(extra);
    assert_eq!(problems.len(), 1, "{extra}: {problems:#?}");
    problems.concat()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let pattern = |path: &str| PathPattern::parse(path).unwrap();
    let rule = |path, role| ForwardRedact {
        path: pattern(path),
        role,
        secret_names: vec![],
        pass_types: owned(&["text/csv", "image/*", "application/pdf", "application/zip"]),
    };
    let public = [
        "**.enabled",
        "**.economic.accrual",
        "**.uniconta.companyId",
        "**.criipto.{clientId,domain,clientIdRealm}",
        "**.also.customerId",
        "**.ms365.{tenantId,verified,calendarSync,contactsSync,orgContactsSync,presenceSync}",
        "**.ms365.calendarShowAsMappings.*",
        "**.ms365.calendarCategoryMappings.{category,presence}",
        "**.mvnoPrivate.portal",
    ];
    let expected = Config {
        server: Server {
            listen: vec!["127.0.0.1:8080".parse().unwrap()],
            threads: 0,
            trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
            proxy_protocol: Vec::new(),
            drain: seconds(10),
            drain_delay: seconds(0),
            upgrade_socket: None,
            header_timeout: seconds(10),
            max_connections: 10_000,
            write_timeout: seconds(60),
            max_connections_per_address: None,
            max_requests: 2048,
            keepalive_timeout: seconds(75),
            max_header_bytes: 32 * 1024,
            fast_path: true,
            tls: None,
        },
        admin: Admin { listen: "127.0.0.1:9090".parse().unwrap(), token_file: None },
        upstream: Upstream {
            urls: vec![UpstreamUrl {
                tls: true,
                host: "api.telecomx.dk".to_owned(),
                is_absolute: false,
                port: 443,
            }],
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            connect_timeout: seconds(2),
            timeout: seconds(10),
            max_body: 1024 * 1024,
            max_in_flight: 256,
            keepalive_timeout: seconds(4),
            max_idle_connections: 128,
        },
        identity: Identity {
            ttl: seconds(60),
            refresh_after: seconds(30),
            stale_if_error: seconds(120),
            negative_ttl: seconds(5),
            cookie: Some("token".to_owned()),
            send_client_ip: true,
            session: seconds(900),
            max_invalid_per_minute: 60,
        },
        cache: Cache {
            ttl: seconds(60),
            not_found_ttl: seconds(10),
            forbidden_ttl: seconds(5),
            stale_while_revalidate: seconds(30),
            stale_if_error: seconds(300),
            max_bytes: 256 * 1024 * 1024,
            ttl_jitter: 0.1,
            keep_fields: owned(&[
                "Content-Language",
                "Link",
                "Deprecation",
                "Sunset",
                "RateLimit",
                "RateLimit-Policy",
            ]),
        },
        change_log: None,
        redaction: Redaction {
            reveal_to: AccessLevel::Reseller,
            roots: owned(&["integrations", "customerIntegrations"]),
            public: owned(&public),
            secret_names: owned(&[
                "*password*",
                "*secret*",
                "*token*",
                "*apikey*",
                "*api_key*",
                "*credential*",
                "*privatekey*",
            ]),
            action: Action::Remove,
        },
        forward: Forward {
            blocked: [
                "/tools/realtime",
                "/tools/realtime/**",
                "/tools/realtime.*/**",
                "/porting/*/notify",
                "/porting/*/notify/**",
                "/porting/*/notify.*/**",
                "/pbx/app/notification/send/callerid",
                "/pbx/app/notification/send/callerid/**",
                "/pbx/app/notification/send/callerid.*/**",
            ]
            .map(pattern)
            .to_vec(),
            redact: vec![
                rule("/customer/**", ForwardRole::Caller),
                rule("/auth/**", ForwardRole::Answer),
                rule("/log/**", ForwardRole::Caller),
            ],
        },
        cors: Cors { allowed_origins: AllowedOrigins::Listed(vec![]), max_age: seconds(2 * 3600) },
        cluster: None,
        log: Log {
            format: LogFormat::Json,
            level: LogLevel::Info,
            access: Access { which: AccessLog::All, hits: 1.0, customer: false },
            buffer: 4 << 20,
        },
        otlp: None,
    };
    assert_eq!(with("").unwrap(), expected);
}

#[test]
fn set_values_are_used() {
    let config = with(
        r#"
        [server]
        listen = ["127.0.0.1:1", "[::1]:1"]
        threads = 0x10
        max_header_bytes = "1MiB"
        fast_path = false
        [server.tls]
        listen = ["127.0.0.1:2"]
        cert_file = "cert.pem"
        key_file = "key.pem"
        [identity]
        cookie = ""
        ttl = "0s"                       # so that refresh_after, longer by default, has no effect
        send_client_ip = false
        [cache]
        ttl = "1m30s"
        ttl_jitter = 0
        [redaction]
        public = []
        [[forward.redact]]
        path = "/a"
        [[forward.redact]]
        path = "/b"
        role = "answer"
        secret_names = ["x*"]
        pass_types = ["text/event-stream"]
        [cors]
        allowed_origins = ["https://app.example"]
        "#,
    )
    .unwrap();
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.threads, 16);
    assert_eq!(config.server.max_header_bytes, 1 << 20);
    assert!(!config.server.fast_path);
    assert_eq!(config.server.tls.unwrap().key_file, Path::new("key.pem"));
    assert_eq!(config.identity.cookie, None);
    assert!(!config.identity.send_client_ip);
    assert_eq!(config.cache.ttl, seconds(90));
    assert_eq!(config.cache.ttl_jitter, 0.0);
    assert!(config.redaction.public.is_empty());
    assert_eq!(
        config.cors.allowed_origins,
        AllowedOrigins::Listed(vec!["https://app.example".to_owned()])
    );
    // A rule without secret_names hides those of [redaction]: a forgotten key reveals nothing.
    assert_eq!(config.forward.redact[0].secret_names, config.redaction.secret_names);
    assert_eq!(config.forward.redact[1].secret_names, ["x*"]);
    assert_eq!(
        config.forward.redact[0].pass_types,
        ["text/csv", "image/*", "application/pdf", "application/zip"]
    );
    assert_eq!(config.forward.redact[1].pass_types, ["text/event-stream"]);
    assert_eq!(config.forward.redact[1].role, ForwardRole::Answer);
}

#[test]
fn cluster_requires_url_and_key_file() {
    let text = "[cluster]\nurl = \"redis://127.0.0.1\"\nkey_file = \"keys\"";
    let cluster = Cluster {
        url: RedisUrl {
            endpoint: RedisEndpoint::Host { tls: false, host: "127.0.0.1".to_owned(), port: 6379 },
            database: 0,
        },
        username: None,
        password_file: None,
        ca_file: None,
        key_file: "keys".into(),
        name: "telecomx-gateway".to_owned(),
        max_isolation: seconds(10),
        connect_timeout: seconds(1),
        timeout: Duration::from_millis(250),
        ready_when_isolated: true,
        tier: false,
        tier_timeout: Duration::from_millis(50),
    };
    assert_eq!(with(text).unwrap().cluster, Some(cluster));
    let missing = problems_of("[cluster]");
    assert!(
        missing.len() == 2
            && missing[0].contains("cluster.url: missing required key")
            && missing[1].contains("key_file"),
        "{missing:#?}"
    );
}

#[test]
fn every_allowed_word_has_a_meaning() {
    let mut words_read = 0;
    for key in schema_table::KEYS {
        let value_type::ValueType::Word(words) = key.value_type else { continue };
        for word in words {
            let table = if key.table() == "forward.redact" {
                "[[forward.redact]]\npath = \"/a\"".to_owned()
            } else if key.table() == "server.tls" {
                let files = "cert_file = \"/a\"\nkey_file = \"/b\"\nclient_ca_file = \"/c\"";
                format!("[server.tls]\nlisten = [\"127.0.0.1:8443\"]\n{files}")
            } else {
                format!("[{}]", key.table())
            };
            with(&format!("{table}\n{} = {word:?}", key.name())).unwrap();
            words_read += 1;
        }
    }
    assert_eq!(words_read, 2 + 8 + 3 + 2 + 2 + 5 + 3);
}

#[test]
fn star_must_be_the_only_origin() {
    for text in [r#""*""#, r#"["*"]"#] {
        let config = with(&format!("[cors]\nallowed_origins = {text}")).unwrap();
        assert_eq!(config.cors.allowed_origins, AllowedOrigins::Any);
    }
    for text in [r#""loopback""#, r#"["loopback"]"#] {
        let config = with(&format!("[cors]\nallowed_origins = {text}")).unwrap();
        assert_eq!(config.cors.allowed_origins, AllowedOrigins::Loopback);
    }
    let problem = problem_of("[cors]\nallowed_origins = [\"*\", \"https://app.example\"]");
    assert!(
        problem.starts_with("gateway.toml:2: cors.allowed_origins: \"*\" must be the only item"),
        "{problem}"
    );
}

#[test]
fn authority_omits_default_port() {
    for (url, authority) in [
        ("https://api.telecomx.dk", "api.telecomx.dk"),
        ("https://api.telecomx.dk:443", "api.telecomx.dk"),
        ("http://api.telecomx.dk:443", "api.telecomx.dk:443"),
        ("http://[::1]:8081", "[::1]:8081"),
    ] {
        let config = parse("f", &format!("upstream.url = {url:?}"), []).unwrap();
        assert_eq!(config.upstream.urls[0].authority(), authority);
    }
}
