//! `docs/CONFIGURATION.md`: the reference for people, from the list of keys, as the schema and the shipped file are.

use super::keys::{Key, Need, Presence, TABLES, Table, keys_of};

const HEAD: &str = r##"# Configuration

Every table and key, in the order of [gateway.toml](../config/gateway.toml). This page is made by
`telecomx-gateway schema --markdown`; for editors and validators there is a
[JSON Schema](../config/gateway.schema.json), made from the same list.

One TOML file. A duration is written with its units, `"250ms"`, `"30s"`, `"1h30m"`, a year at most; a size too, `"512B"`,
`"32KiB"`, `"256MiB"`, `"1MB"`. Unknown keys are errors. Secrets stand in files of their own, never in this one.

The environment goes over the file: `TELECOMX_GATEWAY__CACHE__TTL=30s` is `ttl` of `[cache]`, and so on for every key that
stands in no `[[table]]`.

`telecomx-gateway check -c FILE` says all that is wrong, with file, line, key and what would be right; `--explain` says in
words what the gateway will do. A changed file is taken over at HUP or `POST /reload`, all of it or nothing; the answer names
the keys whose change needs a restart.
"##;

/// Columns of the text.
const WIDTH: usize = 118;

/// The page, as Markdown.
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
        }
    }
    text
}

fn title(table: &Table) -> String {
    match table.presence {
        Presence::Repeated { .. } => format!("[[{}]]", table.path),
        Presence::Always | Presence::Optional => format!("[{}]", table.path),
    }
}

/// What renderers of Markdown make of the heading.
fn anchor(table: &Table) -> String {
    table.path.replace('.', "")
}

fn presence(table: &Table) -> String {
    match table.presence {
        Presence::Always => String::new(),
        Presence::Optional => " Not there unless it is written.".to_owned(),
        Presence::Repeated { default } => format!(" Without any: `{}`.", one_line(default)),
    }
}

fn value(text: &mut String, key: &Key) {
    let kind = key.kind.in_words();
    let (word, sample) = match key.need {
        Need::Default(sample) => ("default", sample),
        Need::Optional { example } => ("no default; for example", example),
        Need::Required { example } => ("**required**; for example", example),
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

/// Filled to the width. What a renderer would take for emphasis or for a tag is shown as it is written.
fn paragraph(text: &mut String, doc: &str) {
    let mut line = String::new();
    for word in doc.split_whitespace() {
        let word = if word.contains('`') { word.to_owned() } else { plain(word) };
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

fn plain(word: &str) -> String {
    let mut text = String::new();
    for character in word.chars() {
        if matches!(character, '*' | '<' | '[' | ']' | '_') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}
