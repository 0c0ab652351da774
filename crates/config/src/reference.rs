//! The reference `docs/CONFIGURATION.md`, generated from the schema table.

use super::schema_table::{KeySpec, Presence, Reload, Requirement, TABLES, TableSpec, keys_of};

const HEAD: &str = r##"# Configuration

Every table and key, in the order of [gateway.toml](../config/gateway.toml). This page is generated
by `telecomx-gateway schema --markdown`. Editors and validators can use the [JSON
Schema](../config/gateway.schema.json), generated from the same list.

The configuration is one TOML file. Durations have units (`"250ms"`, `"30s"`, `"2m"`, `"1h30m"`; at
most a year), and so have sizes (`"512B"`, `"32KiB"`, `"256MiB"`, `"1MB"`). Unknown keys are errors.
Secrets are read from separate files.

Environment variables override the file: `TELECOMX_GATEWAY__CACHE__TTL=30s` sets `ttl` of `[cache]`.
Keys of a `[[table]]` cannot be set this way. Variables that were probably meant for a key are
errors: in lower case, with single underscores, or not UTF-8. Other variables with a similar name
are ignored, for example those of a Kubernetes Service (`TELECOMX_GATEWAY_SERVICE_HOST`).

`telecomx-gateway check -c FILE` reports every error with file, line, key and fix; `--explain`
describes what the gateway will do, `--connect` tests what the file names, and `--diff OTHER` lists
the differences between two files.

SIGHUP or `POST /reload` applies a changed file, as a whole or not at all. Each key says whether a
reload applies it; otherwise the old value stays in force until a restart or an upgrade, and the
response names the key.
"##;

/// Columns of the text.
const WIDTH: usize = 100;

/// Returns the reference as Markdown.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    text.push('\n');
    for table in TABLES {
        text.push_str(&format!("- [`{}`](#{})", title(table), anchor(table)));
        let names: Vec<_> = keys_of(table.path).map(|key| format!("`{}`", key.name())).collect();
        text.push_str(&format!(": {}\n", names.join(", ")));
    }
    for table in TABLES {
        text.push_str(&format!("\n## {}\n\n", title(table)));
        paragraph(&mut text, &format!("{}{}", table.doc, presence(table)));
        for key in keys_of(table.path) {
            text.push_str(&format!("\n### `{}`\n\n", key.path));
            value(&mut text, key);
            text.push('\n');
            paragraph(&mut text, key.doc);
            text.push_str(match key.reload {
                Reload::Applies => "\nReload: applied.\n",
                Reload::NeedsRestart => "\nReload: not applied; a change needs a restart.\n",
            });
        }
    }
    text
}

fn title(table: &TableSpec) -> String {
    match table.presence {
        Presence::Repeated { .. } => format!("[[{}]]", table.path),
        Presence::Always | Presence::Optional => format!("[{}]", table.path),
    }
}

/// The anchor that Markdown renderers generate for the heading.
fn anchor(table: &TableSpec) -> String {
    table.path.replace('.', "")
}

fn presence(table: &TableSpec) -> String {
    match table.presence {
        Presence::Always => String::new(),
        Presence::Optional => " Disabled if the table is missing.".to_owned(),
        Presence::Repeated { default } => format!(" Default: `{}`.", one_line(default)),
    }
}

fn value(text: &mut String, key: &KeySpec) {
    let kind = key.value_type.description();
    let (word, sample) = match key.requirement {
        Requirement::Default(sample) => ("default", sample),
        Requirement::Optional { example } => ("no default; for example", example),
        Requirement::Required { example } => ("**required**; for example", example),
    };
    if sample.contains('\n') {
        text.push_str(&format!("{kind}; {word}\n\n```toml\n{} = {sample}\n```\n", key.name()));
    } else {
        text.push_str(&format!("{kind}; {word} `{sample}`\n"));
    }
}

fn one_line(toml: &str) -> String {
    toml.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Writes a paragraph of at most `WIDTH` columns. Characters that Markdown would interpret are
/// escaped.
fn paragraph(text: &mut String, doc: &str) {
    let mut line = String::new();
    for word in doc.split_whitespace() {
        let word = if word.contains('`') { word.to_owned() } else { escaped(word) };
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    text.push_str(&line);
    text.push('\n');
}

fn escaped(word: &str) -> String {
    let mut text = String::new();
    for character in word.chars() {
        if matches!(character, '*' | '<' | '[' | ']' | '_') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}
