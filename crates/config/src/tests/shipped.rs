//! The shipped files. After a change of the schema table,
//! `UPDATE_SHIPPED=1 cargo test -p config generated_from_the_schema_table` writes them again.

use super::*;
use serde_json::Value as Json;
use std::fs;
use toml::de::DeTable;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join("config").join(name)
}

#[track_caller]
fn is_committed_as(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    if std::env::var_os("UPDATE_SHIPPED").is_some() {
        fs::write(&path, text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    // Not `assert_eq`: its message would hold both texts.
    assert!(
        committed == text,
        "{name} is not generated from the schema table; run UPDATE_SHIPPED=1 cargo test -p config \
         generated_from_the_schema_table"
    );
}

fn json(toml: &str) -> Json {
    let table = DeTable::parse(toml).unwrap().into_inner();
    schema::json_of(&toml::de::DeValue::Table(table))
}

#[test]
fn committed_files_are_generated_from_the_schema_table() {
    is_committed_as("config/gateway.toml", &example::gateway_toml());
    is_committed_as("config/gateway.schema.json", &format!("{:#}\n", schema()));
    is_committed_as("docs/CONFIGURATION.md", &reference());
}

#[test]
fn documentation_names_no_rust_type() {
    const PERMITTED: [&str; 4] = ["KiB", "LimitNOFILE", "OpenTelemetry", "RateLimit"];
    let is_type = |word: &&str| {
        let has_hump = word
            .as_bytes()
            .windows(2)
            .any(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase());
        has_hump && word.as_bytes()[0].is_ascii_uppercase() && !PERMITTED.contains(word)
    };
    let keys = schema_table::KEYS.iter().map(|key| key.doc);
    let texts = keys.chain(schema_table::TABLES.iter().map(|table| table.doc));
    let words = texts.flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric()));
    assert_eq!(words.filter(is_type).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn shipped_configurations_are_valid() {
    let gateway =
        load(&shipped("gateway.toml"), []).unwrap_or_else(|problems| panic!("{problems}")).config;
    assert_eq!(gateway, with("").unwrap());
    let demo =
        load(&shipped("demo.toml"), []).unwrap_or_else(|problems| panic!("{problems}")).config;
    assert_eq!((warnings(&gateway), warnings(&demo)), (vec![], vec![]));
    let host = "127.0.0.1".to_owned();
    assert_eq!(
        demo.upstream.urls,
        [UpstreamUrl { tls: false, host, is_absolute: false, port: 8081 }]
    );
    assert_eq!(demo.server.listen, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(demo.admin.listen, "127.0.0.1:9090".parse().unwrap());
}

/// `config/gateway.toml` with every default set.
fn uncommented() -> String {
    let text = fs::read_to_string(shipped("gateway.toml")).unwrap();
    let bare = |line: &str| match line.strip_prefix('#') {
        Some(rest)
            if !rest.is_empty() && !rest.starts_with([' ', ':']) || line.starts_with("#  \"") =>
        {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    text.lines().map(|line| bare(line) + "\n").collect()
}

#[test]
fn commented_defaults_are_the_defaults() {
    let text = uncommented();
    let mut config =
        parse("gateway.toml", &text, []).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    // These have an example instead of a default.
    assert!(config.server.upgrade_socket.take().is_some());
    assert!(config.server.max_connections_per_address.take().is_some());
    assert!(config.server.tls.take().is_some());
    assert!(config.admin.token_file.take().is_some());
    assert!(config.upstream.ca_file.take().is_some());
    assert!(config.upstream.client_cert_file.take().is_some());
    assert!(config.upstream.client_key_file.take().is_some());
    assert!(config.cluster.take().is_some());
    assert!(config.change_log.take().is_some());
    assert!(config.otlp.take().is_some());
    assert_eq!(config, with("").unwrap());
}

#[test]
fn shipped_file_documents_every_key() {
    let text = fs::read_to_string(shipped("gateway.toml")).unwrap();
    let words = |text: &str| {
        text.split_whitespace().filter(|word| *word != "#").collect::<Vec<_>>().join(" ")
    };
    let prose = words(&text);
    let all = json(&uncommented());
    for key in schema_table::KEYS {
        assert!(prose.contains(&words(key.doc)), "{} is not explained", key.path);
        let pointer = format!("/{}", key.path.replace('.', "/")).replace("/redact/", "/redact/1/");
        let pointer = pointer.replace("/certificates/", "/certificates/0/");
        assert!(all.pointer(&pointer).is_some(), "{} is not shown", key.path);
    }
}

#[test]
fn every_default_has_its_type() {
    let mut read = 0;
    for key in schema_table::KEYS {
        let value = toml::de::DeValue::parse(key.example()).unwrap();
        assert!(key.value_type.read(&value, "").is_ok(), "{}", key.path);
        assert!(schema_table::table_spec(key.table()).is_some(), "{} has no table", key.path);
        read += 1;
    }
    assert!(read > 40);
}

#[test]
fn schema_agrees_with_the_reader() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    assert!(jsonschema::draft202012::meta::is_valid(&schema()));
    for name in ["gateway.toml", "demo.toml"] {
        let document = json(&fs::read_to_string(shipped(name)).unwrap());
        assert!(
            validator.is_valid(&document),
            "{name}: {:?}",
            validator.iter_errors(&document).next()
        );
    }
    assert!(validator.is_valid(&json(&uncommented())));
    for extra in [
        "[cache]\ntll = \"1s\"",
        "[cache]\nttl = \"60\"",
        "[cache]\nttl = \"\"",
        "[cache]\nttl = 60",
        "[cache]\nttl_jitter = 0.6",
        "[cache]\nmax_bytes = \"1mb\"",
        "[server]\nlisten = []",
        "[server]\nlisten = [\"localhost:80\"]",
        "[server]\nheader_timeout = \"0s\"",
        "[server.tls]\nlisten = [\"127.0.0.1:1\"]",
        "[log]\nlevel = \"loud\"",
        "[cluster]\nurl = \"redis://127.0.0.1\"",
        "[cluster]\nkey_file = \"k\"\nurl = \"127.0.0.1:6379\"",
        "[cluster]\nkey_file = \"k\"\nurl = \"unix://s\"",
        "[cluster]\nkey_file = \"k\"\nurl = \"redis://r\"\nname = \"a b\"",
        "[redaction]\nroots = []",
        "[forward]\nblocked = [\"tools\"]",
        "[[forward.redact]]\nrole = \"answer\"",
        "[cors]\nallowed_origins = [\"*\", \"https://app.example\"]",
    ] {
        let text = format!("{extra}\n[upstream]\nurl = \"https://api.telecomx.dk\"");
        assert!(!validator.is_valid(&json(&text)), "the schema takes {extra}");
        assert!(parse("f", &text, []).is_err(), "the reader takes {extra}");
    }
    for extra in [
        "[cors]\nallowed_origins = \"*\"",
        "[cors]\nallowed_origins = [\"*\"]",
        "[cache]\nttl = \"1m5s\"",
        "[cluster]\nkey_file = \"k\"\nurl = \"REDISS://redis.example:7000/3\"",
        "[cluster]\nkey_file = \"k\"\nurl = \"unix:///run/redis/redis.sock\"",
        "[server]\nheader_timeout = \"10s\"",
    ] {
        let text = format!("{extra}\n[upstream]\nurl = \"https://api.telecomx.dk\"");
        assert!(validator.is_valid(&json(&text)), "the schema refuses {extra}");
        assert!(parse("f", &text, []).is_ok(), "the reader refuses {extra}");
    }
    for text in ["", "[upstream]", "[upstream]\nurl = \"ftp://a\""] {
        assert!(!validator.is_valid(&json(text)) && parse("f", text, []).is_err(), "{text}");
    }
}
