//! Path and first definition of a key that is defined twice. The parser names no key in its errors,
//! and drops the second definition.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// An enclosure of the current position.
enum Scope {
    /// The top of the file, or the lines after a `[header]`: that header.
    Table(String),
    /// `{ … }`, the value of that key.
    Inline(String),
    /// `[ … ]`, the value of that key.
    Array(String),
}

/// The path of the key whose name, or the last part of its name, has a span; empty if there is no
/// such key.
pub(super) fn key_path(text: &str, span: &Range<usize>) -> String {
    Scanner {
        text,
        at: 0,
        scopes: vec![Scope::Table(String::new())],
        key: String::new(),
        name_at: 0,
    }
    .find(span)
}

/// The offset of the last definition of a key or table before another one.
pub(super) fn first_definition(
    text: &str,
    document: &DeTable,
    path: &str,
    before: usize,
) -> Option<usize> {
    // The parser keeps the position of the last header of a table.
    let headers = text.split_inclusive('\n').scan(0, |next, line| {
        let start = *next;
        *next += line.len();
        Some((start, line))
    });
    let is_header = |line: &str| {
        let line = line.trim();
        line.starts_with('[') && header_path(line) == path
    };
    let earlier = headers.filter(|(start, line)| start + line.len() <= before && is_header(line));
    let header = earlier.map(|(start, _)| start).last();
    header.max(key_definition(document, path, before))
}

fn key_definition(document: &DeTable, path: &str, before: usize) -> Option<usize> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let definitions = document.iter().filter(|(key, _)| key.get_ref() == name);
    let offsets = definitions.flat_map(|(key, value)| match (rest, value.get_ref()) {
        (None, _) => vec![key.span().start],
        (Some(rest), DeValue::Table(table)) => {
            key_definition(table, rest, before).into_iter().collect()
        }
        (Some(rest), DeValue::Array(items)) => {
            let tables = items.iter().filter_map(|item| item.get_ref().as_table());
            tables.filter_map(|table| key_definition(table, rest, before)).collect()
        }
        _ => vec![],
    });
    offsets.filter(|offset| *offset < before).max()
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    /// The innermost last.
    scopes: Vec<Scope>,
    /// The key whose value is being read; empty while a name is expected.
    key: String,
    /// Start of the name that is being read.
    name_at: usize,
}

impl Scanner<'_> {
    fn find(mut self, span: &Range<usize>) -> String {
        while self.at < span.start {
            let Some(&byte) = self.text.as_bytes().get(self.at) else { break };
            match byte {
                b'#' => self.skip_to(b"\n"),
                b'"' | b'\'' => self.skip_string(byte),
                b'\n' => self.end_line(),
                b'=' if self.key.is_empty() => {
                    self.key = dotted_name(&self.text[self.name_at..self.at]);
                    self.at += 1;
                }
                b'[' if self.is_line_start() => {
                    let end = self.text[self.at..]
                        .find(['\n', '#'])
                        .map_or(self.text.len(), |end| self.at + end);
                    let path = header_path(&self.text[self.at..end]);
                    if end > span.start {
                        return path;
                    }
                    self.scopes = vec![Scope::Table(path)];
                    self.at = end;
                }
                b'[' => self.open(Scope::Array),
                b'{' => self.open(Scope::Inline),
                b']' | b'}' => {
                    if self.scopes.len() > 1 {
                        self.key = "…".to_owned();
                        self.scopes.pop();
                    }
                    self.at += 1;
                }
                b',' => {
                    self.at += 1;
                    self.begin_name();
                }
                _ => self.at += 1,
            }
        }
        let name = dotted_name(self.text.get(self.name_at..span.end).unwrap_or_default());
        let outer = self.scopes.iter().map(|scope| match scope {
            Scope::Table(path) | Scope::Inline(path) | Scope::Array(path) => path.as_str(),
        });
        let parts: Vec<&str> =
            outer.chain([name.as_str()]).filter(|part| !part.is_empty()).collect();
        parts.join(".")
    }

    fn is_line_start(&self) -> bool {
        self.scopes.len() == 1
            && self.key.is_empty()
            && self.text[self.name_at..self.at].trim().is_empty()
    }

    fn open(&mut self, scope: fn(String) -> Scope) {
        self.scopes.push(scope(std::mem::take(&mut self.key)));
        self.at += 1;
        self.begin_name();
    }

    fn begin_name(&mut self) {
        self.key.clear();
        self.name_at = self.at;
    }

    /// Ends a key and its value, except within brackets.
    fn end_line(&mut self) {
        self.at += 1;
        match self.scopes.as_slice() {
            [_] => self.begin_name(),
            [.., Scope::Inline(_)] if self.key.is_empty() => self.name_at = self.at,
            _ => {}
        }
    }

    fn skip_to(&mut self, end: &[u8]) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += memchr::memmem::find(rest, end).unwrap_or(rest.len());
    }

    /// Skips a string. One of a single line ends with the line, closed or not.
    fn skip_string(&mut self, quote: u8) {
        let bytes = self.text.as_bytes();
        let triple = [quote; 3];
        let is_multiline = bytes[self.at..].starts_with(&triple);
        self.at += if is_multiline { 3 } else { 1 };
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'\\' if quote == b'"' => self.at += 1,
                b'\n' if !is_multiline => return,
                _ if is_multiline && bytes[self.at..].starts_with(&triple) => {
                    self.at += 3;
                    return;
                }
                _ if byte == quote && !is_multiline => {
                    self.at += 1;
                    return;
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

/// The path of the table of a line that begins with `[`.
fn header_path(line: &str) -> String {
    dotted_name(line.trim_start_matches('[').split(']').next().unwrap_or_default())
}

/// A dotted name without blanks and quotes.
fn dotted_name(text: &str) -> String {
    let parts = text.split('.').map(|part| part.trim().trim_matches(['"', '\'']));
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path of the key after `^`.
    fn at_mark(text: &str) -> String {
        let start = text.find('^').unwrap();
        let text = text.replacen('^', "", 1);
        let end = text[start..].find([' ', '=', ']', '.']).map_or(text.len(), |end| start + end);
        key_path(&text, &(start..end))
    }

    #[test]
    fn key_path_includes_its_tables() {
        for (text, path) in [
            ("^a = 1", "a"),
            ("[cache]\nttl = \"1s\"\n^ttl = \"2s\"", "cache.ttl"),
            ("[cache] # [x]\n\"ttl\" = 1\n  ^ttl=2", "cache.ttl"),
            ("cache.ttl = 1\ncache.^ttl = 2", "cache.ttl"),
            (
                "[server.tls]\nlisten = [\n\"]\", # ]\n[\"[a]\"],\n]\n^listen = []",
                "server.tls.listen",
            ),
            ("[log]\n[cache]\n[^log]", "log"),
            ("[server.tls]\n[server.^tls]", "server.tls"),
            ("[[forward.redact]]\npath = \"a\"\n^path = \"b\"", "forward.redact.path"),
            ("[[forward.redact]]\n[forward.^redact]", "forward.redact"),
            ("upstream = { url = \"}\", ^url = 1 }", "upstream.url"),
            ("[forward]\nredact = [{ path = 1 }, { path = 1, ^path = 2 }]", "forward.redact.path"),
            ("a = \"\"\"\n[x]\n\"\"\"\n^b = 1", "b"),
            ("a = '''\n[x]\n'''\n[y]\nc = 'it'\n^b = 1", "y.b"),
            ("a = \"\\\"[x]\"\n[y]\n^b = 1", "y.b"),
            ("a = \"open\n[y]\n^b = 1", "y.b"),
            ("a = {\n  b = 1,\n  ^b = 2,\n}", "a.b"),
        ] {
            assert_eq!(at_mark(text), path, "{text}");
        }
    }
}
