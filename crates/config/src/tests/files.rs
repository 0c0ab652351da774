//! The file itself, and the files that it names.

use super::*;
use std::fs;

/// A temporary directory that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir()
            .join(format!("telecomx-gateway-config-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const URL: &str = "upstream.url = \"https://api.telecomx.dk\"\n";

#[test]
fn unreadable_file_is_a_problem_with_the_reason() {
    let folder = Folder::new("missing");
    let path = folder.0.join("none.toml");
    let problem = load(&path, []).unwrap_err().to_string();
    assert!(
        problem.starts_with(&format!("{}: cannot read the file: No such file", path.display())),
        "{problem}"
    );
    let latin1 = folder.file("latin1.toml", b"# one\n# sm\xf8rrebr\xf8d\n");
    let problem = load(&latin1, []).unwrap_err().to_string();
    assert!(
        problem.contains("line 2 is not UTF-8 (byte 0xf8); save the file in the encoding UTF-8"),
        "{problem}"
    );
    assert!(load(&folder.0, []).is_err());
}

#[test]
fn load_reads_file_and_variables() {
    let folder = Folder::new("load");
    let path = folder.file("gateway.toml", URL);
    let env = [("TELECOMX_GATEWAY__CACHE__TTL".into(), "7s".into())];
    let loaded = load(&path, env).unwrap();
    assert_eq!(loaded.config.cache.ttl, seconds(7));
    let variable = "TELECOMX_GATEWAY__CACHE__TTL".to_owned();
    assert_eq!(loaded.overrides, [VariableOverride { key: "cache.ttl", variable }]);
    assert_eq!(loaded.locate("upstream.url: x"), format!("{}:1: upstream.url: x", path.display()));
    assert_eq!(loaded.locate("cache.ttl: x"), "TELECOMX_GATEWAY__CACHE__TTL: cache.ttl: x");
    assert_eq!(loaded.locate("otlp: x"), "otlp: x");
    let text = explain(&loaded.config, &loaded.overrides);
    assert!(text.contains("TELECOMX_GATEWAY__CACHE__TTL sets cache.ttl"), "{text}");
}

#[test]
fn every_key_that_names_a_file_is_checked() {
    let folder = Folder::new("every");
    let none = folder.0.join("none");
    let mut keys = Vec::new();
    let mut text = String::new();
    for table in schema_table::TABLES.iter().filter(|table| !schema_table::is_repeated(table.path))
    {
        text += &format!("[{}]\n", table.path);
        for key in schema_table::keys_of(table.path) {
            // The upgrade socket is created by the gateway.
            if key.path == "server.upgrade_socket" {
                continue;
            }
            if matches!(key.value_type, value_type::ValueType::File) {
                text += &format!("{} = {none:?}\n", key.name());
                keys.push(key.path);
            } else if matches!(key.requirement, schema_table::Requirement::Required { .. }) {
                text += &format!("{} = {}\n", key.name(), key.example());
            }
        }
    }
    let path = folder.file("gateway.toml", text);
    let problems = load(&path, []).unwrap_err();
    let is_file = |problem: &&Problem| problem.cause.contains("No such file");
    let found: Vec<&str> = problems.iter().filter(is_file).map(|p| p.key.as_str()).collect();
    assert_eq!(found, keys, "{problems}");
}

#[test]
fn named_files_must_exist_and_not_be_empty() {
    let folder = Folder::new("named");
    let there = folder.file("there", "hunter2\n");
    let empty = folder.file("empty", " \n");
    let none = folder.0.join("none");
    let text = |token: &Path, ca: &Path, cert: &Path, key: &Path| {
        format!(
            "{URL}upstream.ca_file = {ca:?}\n[admin]\ntoken_file = {token:?}\n[server.tls]\nlisten = [\"127.0.0.1:0\"]\n\
             cert_file = {cert:?}\nkey_file = {key:?}\n"
        )
    };
    let right = folder.file("right.toml", text(&there, &there, &there, &there));
    let config = load(&right, []).unwrap();
    // The contents of the files are not part of the configuration.
    assert!(!format!("{config:?}").contains("hunter2"));

    let wrong_text = text(&empty, &none, &none, &folder.0);
    let wrong = folder.file("wrong.toml", &wrong_text);
    let problems = load(&wrong, []).unwrap_err();
    let found: Vec<(Option<usize>, &str)> =
        problems.iter().map(|p| (p.location.line(), p.key.as_str())).collect();
    assert_eq!(
        found,
        [
            (Some(2), "upstream.ca_file"),
            (Some(4), "admin.token_file"),
            (Some(7), "server.tls.cert_file"),
            (Some(8), "server.tls.key_file"),
        ]
    );
    let shown = problems.to_string();
    assert!(
        shown.contains("none\": No such file") && shown.contains("/empty\" is empty"),
        "{shown}"
    );
    // Without the file system the same text is right.
    parse("wrong.toml", &wrong_text, []).unwrap();
}
