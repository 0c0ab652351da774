//! The raw configuration: the values of file and environment under the paths of known keys, each
//! with its location. Unknown keys and tables are problems; values are not interpreted.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Fault, Location, Problem};
use super::duplicate_key;
use super::schema_table::{self, KEYS, TABLES, TableSpec, is_repeated};
use super::suggestion::closest;
use super::variables;

pub(super) type RawValues<'a> = BTreeMap<&'static str, RawValue<'a>>;

/// The values of file and environment.
pub(super) struct RawConfig<'a> {
    pub text: SourceText<'a>,
    pub values: RawValues<'a>,
    /// The tables that are set, with their locations.
    pub tables: BTreeMap<&'static str, Location>,
    /// The tables of each repeated table that is set, such as `[[forward.redact]]`.
    pub repeated: BTreeMap<&'static str, Vec<RawTable<'a>>>,
    /// Lines that are not TOML. Other problems of these lines are consequences and are not
    /// reported.
    pub broken_lines: BTreeSet<usize>,
    pub problems: Vec<Problem>,
}

/// One table of a repeated table.
pub(super) struct RawTable<'a> {
    pub location: Location,
    pub values: RawValues<'a>,
}

/// A value and its source.
pub(super) struct RawValue<'a> {
    pub value: Spanned<DeValue<'a>>,
    pub source: ValueSource<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum ValueSource<'a> {
    File,
    Variable(&'a str),
}

/// Name and text of the file, which turn offsets into lines.
#[derive(Clone, Copy)]
pub(super) struct SourceText<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl SourceText<'_> {
    pub(super) fn location(&self, offset: usize) -> Location {
        // Offsets of the parser are between characters; an invalid one counts as the end.
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Location::Line {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(super) fn whole(&self) -> Location {
        Location::File { file: self.file.to_owned() }
    }
}

impl RawValue<'_> {
    /// The location of a part of the value.
    pub(super) fn location_of(&self, text: &SourceText, span: Range<usize>) -> Location {
        match self.source {
            ValueSource::File => text.location(span.start),
            ValueSource::Variable(name) => Location::Variable { name: name.to_owned() },
        }
    }

    pub(super) fn location(&self, text: &SourceText) -> Location {
        self.location_of(text, self.value.span())
    }
}

/// Parses the text of the file, then applies the environment variables.
pub(super) fn read_raw<'a>(
    file: &'a str,
    text: &'a str,
    env: &'a [(String, String)],
) -> RawConfig<'a> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut raw = RawConfig {
        text: SourceText { file, text },
        values: RawValues::new(),
        tables: BTreeMap::new(),
        repeated: BTreeMap::new(),
        broken_lines: BTreeSet::new(),
        problems: Vec::new(),
    };
    raw.read_table(document.get_ref(), "");
    raw.report_broken_lines(&errors, document.get_ref());
    for (name, value) in env {
        raw.apply_variable(name, value);
    }
    raw
}

impl<'a> RawConfig<'a> {
    fn read_table(&mut self, table: &DeTable<'a>, prefix: &str) {
        for (name, value) in table {
            let path = join(prefix, name.get_ref());
            let start = value.span().start;
            match (schema_table::key_spec(&path), schema_table::table_spec(&path), value.get_ref())
            {
                (Some(key), _, _) if !is_repeated(prefix) => {
                    self.check_commented_header(name, prefix);
                    self.values.insert(
                        key.path,
                        RawValue { value: value.clone(), source: ValueSource::File },
                    );
                }
                (_, Some(table), _) if is_repeated(table.path) => {
                    self.read_repeated(table.path, value)
                }
                (_, Some(table), DeValue::Table(inner)) => {
                    self.tables.insert(table.path, self.text.location(start));
                    self.read_table(inner, table.path);
                }
                (_, Some(table), _) => {
                    let fault =
                        Fault::new("expected a table", format!("use a line [{}]", table.path));
                    self.problems.push(Problem::new(self.text.location(start), path, fault));
                }
                _ => self.report_unknown_key(name, prefix),
            }
        }
    }

    fn read_repeated(&mut self, path: &'static str, value: &Spanned<DeValue<'a>>) {
        let location = self.text.location(value.span().start);
        let not_tables = || {
            Fault::new("expected a list of tables", format!("use [[{path}]], with double brackets"))
        };
        let DeValue::Array(array) = value.get_ref() else {
            self.problems.push(Problem::new(location, path, not_tables()));
            return;
        };
        let mut items = Vec::new();
        for item in array.iter() {
            let location = self.text.location(item.span().start);
            let DeValue::Table(table) = item.get_ref() else {
                self.problems.push(Problem::new(location, path, not_tables()));
                continue;
            };
            let mut values = RawValues::new();
            for (name, value) in table {
                match schema_table::key_spec(&join(path, name.get_ref())) {
                    Some(key) => {
                        values.insert(
                            key.path,
                            RawValue { value: value.clone(), source: ValueSource::File },
                        );
                    }
                    None => self.report_unknown_key(name, path),
                }
            }
            items.push(RawTable { location, values });
        }
        self.repeated.insert(path, items);
    }

    /// Reports an unknown key. The value is not repeated: it may be a secret under a misspelled
    /// name.
    fn report_unknown_key(&mut self, name: &Spanned<Cow<'a, str>>, prefix: &str) {
        let path = join(prefix, name.get_ref());
        let location = self.text.location(name.span().start);
        if let Some(header) = self.commented_header(name, prefix) {
            let fault = Fault::new("unknown key", header.remedy());
            self.problems.push(Problem::new(location, path, fault));
            return;
        }
        let names: Vec<&str> = known_names(prefix).collect();
        // The same name in another table is likelier than another name in this one.
        let paths = KEYS.iter().map(|key| key.path).filter(|path| !is_repeated(table_of(path)));
        let mut paths = paths.chain(TABLES.iter().map(|table| table.path));
        let elsewhere =
            paths.find(|known| known.rsplit('.').next() == Some(name.get_ref())).map(str::to_owned);
        let similar =
            || closest(name.get_ref(), names.iter().copied()).map(|close| join(prefix, close));
        let hint = match elsewhere.or_else(similar) {
            Some(table) if is_repeated(&table) => format!("did you mean [[{table}]]? "),
            Some(table) if schema_table::table_spec(&table).is_some() => {
                format!("did you mean [{table}]? ")
            }
            Some(key) => format!("did you mean `{key}`? "),
            None => String::new(),
        };
        let fault =
            Fault::new("unknown key", format!("{hint}expected one of: {}", names.join(", ")));
        self.problems.push(Problem::new(location, path, fault));
    }

    /// Reports a key that is valid where it is, but is below the commented-out header of another
    /// table that has a key of this name: `#[server.tls]` and `listen` would otherwise open a
    /// cleartext listener on the TLS port.
    fn check_commented_header(&mut self, name: &Spanned<Cow<'a, str>>, prefix: &str) {
        if let Some(header) = self.commented_header(name, prefix) {
            let cause = format!(
                "ambiguous: the key belongs to [{prefix}], but is below the commented-out header [{}]",
                header.table
            );
            let remedy = format!("{}, or move the key above it", header.remedy());
            let location = self.text.location(name.span().start);
            self.problems.push(Problem::new(
                location,
                join(prefix, name.get_ref()),
                Fault::new(cause, remedy),
            ));
        }
    }

    /// The commented-out table header above a key, if that table has a key of this name.
    fn commented_header(
        &self,
        name: &Spanned<Cow<'a, str>>,
        prefix: &str,
    ) -> Option<CommentedHeader> {
        let before = self.text.text.get(..name.span().start)?;
        // The text of the key's own line precedes the key in an inline table; the header is on an
        // earlier line.
        let lines: Vec<&str> = before.split('\n').collect();
        for (index, line) in lines.iter().enumerate().rev().skip(1) {
            let line = line.trim();
            if line.starts_with('[') {
                return None;
            }
            let Some(comment) = line.strip_prefix('#') else { continue };
            let comment = comment.trim();
            let Some(spec) = header_table(comment) else { continue };
            let has_key = schema_table::keys_of(spec.path).any(|key| key.name() == name.get_ref());
            return (has_key && spec.path != prefix)
                .then_some(CommentedHeader { table: spec.path, line: index + 1 });
        }
        None
    }

    /// Drops problems of lines that are not TOML, which the errors of the parser cause, and adds
    /// those errors.
    fn report_broken_lines(&mut self, errors: &[toml::de::Error], document: &DeTable) {
        let mut broken = Vec::new();
        for error in errors {
            let span = error.span().unwrap_or_default();
            let location = self.text.location(span.start);
            self.broken_lines.extend(location.line());
            // `message` alone: `Display` would print the line, and with it a secret that may be in
            // it.
            broken.push(match error.message() {
                "duplicate key" => {
                    let key = duplicate_key::key_path(self.text.text, &span);
                    let first =
                        duplicate_key::first_definition(self.text.text, document, &key, span.start);
                    let first_line = first.and_then(|offset| self.text.location(offset).line());
                    let cause = match first_line {
                        Some(line) => format!("duplicate key, also defined in line {line}"),
                        None => "duplicate key".to_owned(),
                    };
                    Problem::new(
                        location,
                        key,
                        Fault::new(cause, "remove one of the two definitions"),
                    )
                }
                message => {
                    Problem::new(location, "", Fault::new(format!("invalid TOML: {message}"), ""))
                }
            });
        }
        let broken_lines = &self.broken_lines;
        self.problems.retain(|problem| {
            problem.location.line().is_none_or(|line| !broken_lines.contains(&line))
        });
        self.problems.extend(broken);
    }

    fn apply_variable(&mut self, name: &'a str, text: &'a str) {
        let location = Location::Variable { name: name.to_owned() };
        let key = match variables::target(name) {
            None => return,
            Some(Ok(key)) => key,
            Some(Err(variables::NameFault { key, fault })) => {
                self.problems.push(Problem::new(location, key, fault));
                return;
            }
        };
        self.tables.entry(key.table()).or_insert_with(|| location.clone());
        match variables::value(text, &key.value_type) {
            Ok(value) => {
                let value = Spanned::new(0..0, value);
                self.values
                    .insert(key.path, RawValue { value, source: ValueSource::Variable(name) });
            }
            Err(fault) => self.problems.push(Problem::new(location, key.path, fault)),
        }
    }
}

/// The known table of a header line such as `[cache]`, without other text on the line.
fn header_table(line: &str) -> Option<&'static TableSpec> {
    let inner = line.strip_prefix('[')?.strip_suffix(']')?;
    schema_table::table_spec(inner.trim_start_matches('[').trim_end_matches(']').trim())
}

/// A line `#[table]`.
struct CommentedHeader {
    table: &'static str,
    line: usize,
}

impl CommentedHeader {
    fn remedy(&self) -> String {
        let CommentedHeader { table, line } = self;
        let header = if is_repeated(table) { format!("[[{table}]]") } else { format!("[{table}]") };
        format!("the header {header} in line {line} is commented out; remove its `#`")
    }
}

/// The path of the table of a key or table; empty at the top.
fn table_of(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(table, _)| table)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// The names that a table may contain: its keys, then its tables.
fn known_names(prefix: &str) -> impl Iterator<Item = &'static str> {
    let tables = TABLES.iter().filter_map(move |table| match table.path.rsplit_once('.') {
        Some((parent, name)) => (parent == prefix).then_some(name),
        None => prefix.is_empty().then_some(table.path),
    });
    schema_table::keys_of(prefix).map(|key| key.name()).chain(tables)
}
