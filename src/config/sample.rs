//! The text of `config/gateway.toml`, from the list of keys: a test holds the committed file to it.

use super::keys::{Key, Need, Presence, TABLES, Table, keys_of};

const HEAD: &str = r##"# telecomx-gateway in front of https://api.telecomx.dk
#
# Every key stands here. A line that begins with `#` and no space shows a default: take the `#` away to change it.
# Durations are written with their units, "250ms", "30s", "2m", "1h30m"; "0s" switches a remembering off. Sizes too:
# "512B", "32KiB", "256MiB", "1MB". Unknown keys are errors. Secrets stand in files of their own, never here.
#
# Environment variables override single keys: TELECOMX_GATEWAY__CACHE__TTL=30s is `ttl` of [cache].
#
# telecomx-gateway check -c FILE             says all that is wrong, with its lines
# telecomx-gateway check -c FILE --explain   says in words what the gateway will do
# A running gateway takes changes over at HUP or POST /reload; with errors the old configuration stays in force.
"##;

/// Columns of the comments.
const WIDTH: usize = 118;

pub(super) fn gateway_toml() -> String {
    let mut text = HEAD.to_owned();
    for table in TABLES {
        text.push('\n');
        match table.presence {
            Presence::Repeated { .. } => rules(&mut text, table),
            Presence::Always | Presence::Optional => plain(&mut text, table),
        }
    }
    text
}

fn plain(text: &mut String, table: &Table) {
    comment(text, table.doc);
    let hidden = matches!(table.presence, Presence::Optional);
    if hidden {
        comment(text, "Take every `#` of this table away together, that of its name too.");
    }
    text.push_str(&format!("{}[{}]\n", if hidden { "#" } else { "" }, table.path));
    for key in keys_of(table.path) {
        text.push('\n');
        comment(text, key.doc);
        let shown = matches!(key.need, Need::Required { .. }) && !hidden;
        setting(text, key, if shown { "" } else { "#" });
    }
}

fn setting(text: &mut String, key: &Key, mark: &str) {
    for line in format!("{} = {}", key.name(), key.sample()).lines() {
        text.push_str(&format!("{mark}{line}\n"));
    }
}

fn rules(text: &mut String, table: &Table) {
    comment(text, table.doc);
    for key in keys_of(table.path) {
        comment(text, &format!("- {}: {}", key.name(), key.doc));
    }
    text.push_str(
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
"##,
    );
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
