//! What the operator gave: the values of the file and of the environment, found under the paths of known keys, each with
//! the place where it stands. Unknown keys and tables are problems here; what the values mean is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key_path::key_path;
use super::keys::{self, KEYS, Presence, TABLES};
use super::problem::{Place, Problem, Wrong};

/// Variables that start so override keys, `__` standing for the dots. One underscore is not enough: orchestrators set
/// variables such as `TELECOMX_GATEWAY_SERVICE_HOST` by themselves.
pub(super) const PREFIX: &str = "TELECOMX_GATEWAY__";

pub(super) type Values<'a> = BTreeMap<&'static str, Entry<'a>>;

/// Everything that was given.
pub(super) struct Given<'a> {
    pub text: Text<'a>,
    pub values: Values<'a>,
    /// The tables that are there, with the place of each.
    pub tables: BTreeMap<&'static str, Place>,
    /// The tables of `[[forward.redact]]`; `None` where the key is absent.
    pub rules: Option<Vec<(Place, Values<'a>)>>,
    /// The lines that are not TOML: what else seems wrong with them is but a consequence.
    pub broken_lines: BTreeSet<usize>,
    pub problems: Vec<Problem>,
}

/// A value and where it comes from.
pub(super) struct Entry<'a> {
    pub value: Spanned<DeValue<'a>>,
    pub origin: Origin<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    File,
    Variable(&'a str),
}

/// The file's name and text, which turn offsets into lines.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Text<'_> {
    pub(super) fn place(&self, offset: usize) -> Place {
        // Offsets of the parser stand between characters; one that does not is taken for the end.
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::Line {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(super) fn whole(&self) -> Place {
        Place::File { file: self.file.to_owned() }
    }
}

impl Entry<'_> {
    /// Where a part of the value stands.
    pub(super) fn place_of(&self, text: &Text, span: Range<usize>) -> Place {
        match self.origin {
            Origin::File => text.place(span.start),
            Origin::Variable(name) => Place::Variable { name: name.to_owned() },
        }
    }

    pub(super) fn place(&self, text: &Text) -> Place {
        self.place_of(text, self.value.span())
    }
}

/// Reads the file's text, then lets the variables override it.
pub(super) fn gather<'a>(file: &'a str, text: &'a str, env: &'a [(String, String)]) -> Given<'a> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut given = Given {
        text: Text { file, text },
        values: Values::new(),
        tables: BTreeMap::new(),
        rules: None,
        broken_lines: BTreeSet::new(),
        problems: Vec::new(),
    };
    given.walk_tables(document.get_ref(), "");
    given.drop_what_broken_lines_cause(&errors);
    for (name, value) in env {
        if let Some(rest) = name.strip_prefix(PREFIX) {
            given.override_from(name, rest, value);
        }
    }
    given
}

impl<'a> Given<'a> {
    fn walk_tables(&mut self, table: &DeTable<'a>, prefix: &str) {
        for (name, value) in table {
            let path = join(prefix, name.get_ref());
            match (keys::key(&path), keys::table(&path), value.get_ref()) {
                (Some(key), _, _) if !is_repeated(prefix) => {
                    self.values.insert(key.path, Entry { value: value.clone(), origin: Origin::File });
                }
                (_, Some(table), _) if is_repeated(table.path) => self.walk_rules(table.path, value),
                (_, Some(table), DeValue::Table(inner)) => {
                    self.tables.insert(table.path, self.text.place(value.span().start));
                    self.walk_tables(inner, table.path);
                }
                (_, Some(table), _) => {
                    let wrong = Wrong::new("expected a table", format!("use a line [{}]", table.path));
                    self.problems.push(Problem::new(self.text.place(value.span().start), path, wrong));
                }
                _ => self.unknown(name, prefix),
            }
        }
    }

    fn walk_rules(&mut self, path: &'static str, value: &Spanned<DeValue<'a>>) {
        let place = self.text.place(value.span().start);
        let DeValue::Array(items) = value.get_ref() else {
            let wrong = Wrong::new("expected a list of tables", format!("use [[{path}]], with double brackets"));
            self.problems.push(Problem::new(place, path, wrong));
            return;
        };
        let mut rules = Vec::new();
        for item in items.iter() {
            let place = self.text.place(item.span().start);
            let DeValue::Table(table) = item.get_ref() else {
                let wrong = Wrong::new("expected a list of tables", format!("use [[{path}]], with double brackets"));
                self.problems.push(Problem::new(place, path, wrong));
                continue;
            };
            let mut values = Values::new();
            for (name, value) in table {
                match keys::key(&join(path, name.get_ref())) {
                    Some(key) => {
                        values.insert(key.path, Entry { value: value.clone(), origin: Origin::File });
                    }
                    None => self.unknown(name, path),
                }
            }
            rules.push((place, values));
        }
        self.rules = Some(rules);
    }

    /// The value is not repeated: it may be a secret under a misspelled name.
    fn unknown(&mut self, name: &Spanned<std::borrow::Cow<'a, str>>, prefix: &str) {
        let path = join(prefix, name.get_ref());
        let here: Vec<&str> = known_in(prefix).collect();
        // The very name in another table is likelier than another name in this one.
        let paths = KEYS.iter().map(|key| key.path).filter(|path| !is_repeated(table_of(path)));
        let mut paths = paths.chain(TABLES.iter().map(|table| table.path));
        let elsewhere = paths.find(|known| known.rsplit('.').next() == Some(name.get_ref()));
        let hint = match (elsewhere, closest(name.get_ref(), here.iter().copied())) {
            (Some(known), _) => format!("did you mean `{known}`? "),
            (None, Some(close)) => format!("did you mean `{}`? ", join(prefix, close)),
            (None, None) => String::new(),
        };
        let wrong = Wrong::new("unknown key", format!("{hint}expected one of: {}", here.join(", ")));
        self.problems.push(Problem::new(self.text.place(name.span().start), path, wrong));
    }

    /// Drops the problems of lines that are not TOML, which the errors of the parser cause, and adds those errors.
    fn drop_what_broken_lines_cause(&mut self, errors: &[toml::de::Error]) {
        let mut broken = Vec::new();
        for error in errors {
            let span = error.span().unwrap_or_default();
            let place = self.text.place(span.start);
            self.broken_lines.extend(place.line());
            // `message` alone: `Display` would print the line, and with it whatever secret was put there.
            broken.push(match error.message() {
                "duplicate key" => {
                    let wrong = Wrong::new("duplicate key", "remove one of the two definitions");
                    Problem::new(place, key_path(self.text.text, &span), wrong)
                }
                message => Problem::new(place, "", Wrong::new(format!("invalid TOML: {message}"), "")),
            });
        }
        let broken_lines = &self.broken_lines;
        self.problems.retain(|problem| problem.place.line().is_none_or(|line| !broken_lines.contains(&line)));
        self.problems.extend(broken);
    }

    fn override_from(&mut self, name: &'a str, rest: &str, text: &'a str) {
        let place = Place::Variable { name: name.to_owned() };
        let repeated = TABLES
            .iter()
            .map(|table| table.path)
            .find(|path| is_repeated(path) && rest.starts_with(&variable_part(path)));
        if let Some(path) = repeated {
            let wrong = Wrong::new("cannot be set by an environment variable", format!("use [[{path}]] in the file"));
            self.problems.push(Problem::new(place, path, wrong));
            return;
        }
        let known = || KEYS.iter().filter(|key| !is_repeated(key.table()));
        let Some(key) = known().find(|key| variable_part(key.path) == rest) else {
            let parts: Vec<String> = known().map(|key| variable_part(key.path)).collect();
            let right = match closest(rest, parts.iter().map(String::as_str)) {
                Some(close) => format!("did you mean {PREFIX}{close}?"),
                None => format!("expected {PREFIX}TABLE__KEY, for example {PREFIX}UPSTREAM__URL"),
            };
            self.problems.push(Problem::new(place, "", Wrong::new("unknown variable", right)));
            return;
        };
        self.tables.entry(key.table()).or_insert_with(|| place.clone());
        match variable_value(text, key.kind.is_text(), key.kind.is_list()) {
            Ok(value) => {
                self.values
                    .insert(key.path, Entry { value: Spanned::new(0..0, value), origin: Origin::Variable(name) });
            }
            Err(wrong) => self.problems.push(Problem::new(place, key.path, wrong)),
        }
    }
}

/// A variable's text is TOML where that gives what the key needs, and else the string itself: `30s` as well as `"30s"`,
/// `127.0.0.1:1` as well as `["127.0.0.1:1"]`.
fn variable_value(text: &str, wants_text: bool, wants_list: bool) -> Result<DeValue<'_>, Wrong> {
    let parsed = DeValue::parse(text).ok().map(Spanned::into_inner);
    let string = || DeValue::String(text.into());
    match parsed {
        Some(value) if value.is_str() && !wants_list => Ok(value),
        Some(_) | None if wants_text => Ok(string()),
        Some(value @ DeValue::Array(_)) => Ok(value),
        _ if wants_list => {
            let item = match parsed {
                Some(value @ DeValue::String(_)) => value,
                _ if text.starts_with('[') && text.contains(['"', '\'']) => {
                    return Err(Wrong::new("invalid TOML list", r#"for example ["a", "b"]"#));
                }
                _ => string(),
            };
            if comma_outside_braces(text) {
                return Err(Wrong::new("contains a comma", r#"write several items as a list, for example ["a", "b"]"#));
            }
            let items = if text.is_empty() { vec![] } else { vec![Spanned::new(0..0, item)] };
            Ok(DeValue::Array(items.into_iter().collect()))
        }
        Some(value) => Ok(value),
        None => Ok(string()),
    }
}

/// A comma inside `{a,b}` belongs to a selector.
fn comma_outside_braces(text: &str) -> bool {
    let mut depth = 0_i32;
    text.chars().any(|character| {
        depth += match character {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        character == ',' && depth <= 0
    })
}

fn variable_part(path: &str) -> String {
    path.to_ascii_uppercase().replace('.', "__")
}

/// The path of the table that a key or table stands in; empty at the top.
fn table_of(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(table, _)| table)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn is_repeated(path: &str) -> bool {
    keys::table(path).is_some_and(|table| matches!(table.presence, Presence::Repeated { .. }))
}

/// The names that may stand in a table: its keys, then the tables in it.
fn known_in(prefix: &str) -> impl Iterator<Item = &'static str> {
    let tables = TABLES.iter().filter_map(move |table| match table.path.rsplit_once('.') {
        Some((parent, name)) => (parent == prefix).then_some(name),
        None => prefix.is_empty().then_some(table.path),
    });
    keys::keys_of(prefix).map(|key| key.name()).chain(tables)
}

/// The known name that was probably meant: a third of its letters may differ, two at least.
fn closest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    known
        .map(|known| (strsim::osa_distance(&name, &known.to_ascii_lowercase()), known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(2) && *distance < known.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}
