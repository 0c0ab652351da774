//! The shipped `config/gateway.toml`, generated from the schema table. A test compares the
//! committed file with it.

use super::schema_table::{KeySpec, Presence, Requirement, TABLES, TableSpec, keys_of};

const HEAD: &str = r##"#:schema ./gateway.schema.json
#
# telecomx-gateway in front of https://api.telecomx.dk
#
# This file lists every key. A line that begins with `#` and no space shows a default; remove the
# `#` to change it.
# Durations have units: "250ms", "30s", "2m", "1h30m". Sizes have units: "512B", "32KiB", "256MiB",
# "1MB". Unknown keys are errors. Secrets are read from separate files.
#
# Environment variables override keys: TELECOMX_GATEWAY__CACHE__TTL=30s sets `ttl` of [cache].
#
# telecomx-gateway check -c FILE             reports every error with its line
# telecomx-gateway check -c FILE --explain   describes what the gateway will do
# SIGHUP or POST /reload applies a changed file; if it has errors, the current configuration stays in
# force.
"##;

/// Columns of the comments.
const WIDTH: usize = 100;

pub(super) fn gateway_toml() -> String {
    let mut text = HEAD.to_owned();
    for table in TABLES {
        text.push('\n');
        match table.presence {
            Presence::Repeated { .. } => write_repeated(&mut text, table),
            Presence::Always | Presence::Optional => write_table(&mut text, table),
        }
    }
    text
}

fn write_table(text: &mut String, table: &TableSpec) {
    comment(text, table.doc);
    let hidden = matches!(table.presence, Presence::Optional);
    if hidden {
        comment(text, "To enable this table, also remove the `#` in front of its header.");
    }
    text.push_str(&format!("{}[{}]\n", if hidden { "#" } else { "" }, table.path));
    for key in keys_of(table.path) {
        text.push('\n');
        comment(text, key.doc);
        let shown = matches!(key.requirement, Requirement::Required { .. }) && !hidden;
        setting(text, key, if shown { "" } else { "#" });
    }
}

fn setting(text: &mut String, key: &KeySpec, prefix: &str) {
    for line in format!("{} = {}", key.name(), key.example()).lines() {
        text.push_str(&format!("{prefix}{line}\n"));
    }
}

fn write_repeated(text: &mut String, table: &TableSpec) {
    comment(text, table.doc);
    for key in keys_of(table.path) {
        comment(text, &format!("- {}: {}", key.name(), key.doc));
    }
    text.push_str(repeated_example(table));
}

fn repeated_example(table: &TableSpec) -> &'static str {
    if table.path != "forward.redact" {
        return r##"#[[server.tls.certificates]]
#cert_file = "/etc/telecomx-gateway/tls/other.pem"
#key_file = "/etc/telecomx-gateway/tls/other.key"
"##;
    }
    r##"#[[forward.redact]]
#path = "/customer/**"
#secret_names = []
#pass_types = ["text/csv", "image/*", "application/pdf", "application/zip"]
#[[forward.redact]]
#path = "/auth/**"
#role = "answer"
#secret_names = []
#pass_types = ["text/csv", "image/*", "application/pdf", "application/zip"]
#[[forward.redact]]
#path = "/log/**"
#secret_names = []
#pass_types = ["text/csv", "image/*", "application/pdf", "application/zip"]
"##
}

fn comment(text: &mut String, doc: &str) {
    let mut line = String::from("#");
    for word in doc.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}
