//! Secrets in the change log: which objects mention a root, and which strings name one.
//!
//! An entry names the changed member in one place and holds its values in others: `{"path":
//! "integrations.billing.economic.agreementGrantToken", "oldValue": "...", "newValue": "..."}`. The
//! members may come in any order and the path may be an array of names, so the document is read
//! once before it is redacted, only to find where it mentions a root. In detail:
//!
//! - A string that names a root is removed, also within JSON that it quotes.
//! - An object with a member name that names a root loses the sides of a change (`oldValue`,
//!   `from`).
//! - An object with a string that names a root, or a path below one, loses every scalar that is not
//!   known metadata (an id, a date, a path), because a log may give a side of a change any name.
//! - Both apply to nested objects. An enclosing object loses members named like sides, and scalars
//!   that may be one.

use std::borrow::Cow;

use super::names::{Names, Pattern};
use super::reader::{Reader, Value};
use super::refusal::Refusal;

/// Names of the sides of a change in other logs.
const SIDES: [&str; 17] = [
    "old",
    "new",
    "from",
    "to",
    "value",
    "before",
    "after",
    "previous",
    "previousValue",
    "current",
    "currentValue",
    "was",
    "now",
    "lhs",
    "rhs",
    "left",
    "right",
];

/// Names of scalars that are not a side of a change.
const METADATA: [&str; 44] = [
    "_id",
    "id",
    "customer",
    "customerId",
    "reseller",
    "resellerId",
    "employee",
    "employeeId",
    "user",
    "userId",
    "who",
    "by",
    "author",
    "when",
    "date",
    "time",
    "timestamp",
    "created",
    "createdAt",
    "updated",
    "updatedAt",
    "where",
    "what",
    "type",
    "kind",
    "op",
    "operation",
    "action",
    "path",
    "field",
    "key",
    "property",
    "attribute",
    "pointer",
    "collection",
    "entity",
    "ip",
    "status",
    "success",
    "count",
    "total",
    "page",
    "limit",
    "version",
];

/// Names of members that hold the path of a change.
const PATHS: [&str; 6] = ["path", "field", "key", "property", "attribute", "pointer"];

/// Maximum depth of JSON quoted in strings; deeper quotations count as naming a root.
const MAX_QUOTINGS: usize = 8;

/// Names with a meaning in the change log.
pub(super) struct LogNames {
    sides: Names,
    metadata: Names,
    paths: Names,
    /// Containers below a root as roots, and the secret names: parts of a path relative to a root.
    below_root: Names,
}

impl LogNames {
    /// `public`: the selectors, whose containers are below a root. `secret_names`: those of the
    /// policy from which this one is derived.
    pub(super) fn new(public: &[String], secret_names: &[String]) -> Self {
        let listed = |names: &[&str]| {
            let patterns: Vec<Pattern> =
                names.iter().filter_map(|name| Pattern::glob(name).ok()).collect();
            Names::new(&[], &patterns, false)
        };
        let containers = public.iter().flat_map(|selector| {
            let mut segments: Vec<&str> = selector.split('.').collect();
            segments.pop();
            segments.into_iter().flat_map(|segment| segment.split(['{', '}', ',']))
        });
        let containers: Vec<Pattern> =
            containers.filter_map(|name| Pattern::root(name).ok()).collect();
        let secrets: Vec<Pattern> =
            secret_names.iter().filter_map(|name| Pattern::glob(name).ok()).collect();
        LogNames {
            sides: listed(&SIDES),
            metadata: listed(&METADATA),
            paths: listed(&PATHS),
            below_root: Names::new(&containers, &secrets, false),
        }
    }

    /// Whether a member of this name may be a side of a change.
    pub(super) fn is_side(&self, name: &[u8]) -> bool {
        self.sides.meaning(name).secret
    }

    /// Whether a scalar of this name is not a side of a change.
    pub(super) fn is_metadata(&self, name: &[u8]) -> bool {
        self.metadata.meaning(name).secret
    }

    /// Whether a text is a path to a secret, relative to a root: `criipto.clientSecret`.
    fn is_path_below_root(&self, text: &[u8]) -> bool {
        let is_delimiter = |byte: &u8| b"./[]".contains(byte);
        if text.iter().any(u8::is_ascii_whitespace) {
            return false;
        }
        let names: Vec<&[u8]> = text.split(is_delimiter).filter(|name| !name.is_empty()).collect();
        let ends_secret = names.last().is_some_and(|name| self.below_root.meaning(name).secret);
        ends_secret
            || (names.len() > 1 && names.iter().any(|name| self.below_root.meaning(name).root))
    }
}

/// Whether a text names a root, or quotes JSON that does.
pub(super) fn names_root(names: &Names, text: &[u8]) -> bool {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_QUOTINGS {
        if names.mentions_root(&text) {
            return true;
        }
        if memchr::memchr(b'\\', &text).is_none() {
            return false;
        }
        text = Cow::Owned(unquoted(&text));
    }
    true
}

/// Removes one level of JSON escapes. A backslash that does not begin an escape is removed.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let digits = rest
            .strip_prefix(b"u")
            .and_then(|rest| rest.get(..4))
            .and_then(|d| std::str::from_utf8(d).ok());
        if let Some(code) = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
            let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[5..];
        } else if let Some((escaped, after)) = rest.split_first() {
            out.push(if b"nrtbf".contains(escaped) { b' ' } else { *escaped });
            rest = after;
        }
    }
    out.extend_from_slice(rest);
    out
}

/// How an object, or an enclosing one, names a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    #[default]
    No,
    /// In the name of a member.
    InName,
    /// In a string, possibly within arrays.
    InText,
}

/// Mentions of a root in an object.
#[derive(Clone, Copy, Default)]
pub(super) struct Mention {
    /// In the object itself. Applies to all nested objects too.
    pub here: Named,
    /// In a nested object.
    pub below: bool,
}

/// Finds mentions: one [`Mention`] for the document, then one for each of its objects in the order
/// in which they open.
pub(super) fn find_mentions(
    document: &[u8],
    names: &Names,
    log: &LogNames,
) -> Result<Vec<Mention>, Refusal> {
    let mentions = vec![Mention::default()];
    let mut search =
        Search { reader: Reader::new(document)?, names, log, mentions, scratch: Vec::new() };
    search.value(0, false)?;
    search.reader.end()?;
    Ok(search.mentions)
}

struct Search<'d, 'p> {
    reader: Reader<'d>,
    names: &'p Names,
    log: &'p LogNames,
    mentions: Vec<Mention>,
    scratch: Vec<u8>,
}

impl Search<'_, '_> {
    /// Reads a value that belongs to the object with this index. `is_path`: its name means a path.
    fn value(&mut self, owner: usize, is_path: bool) -> Result<(), Refusal> {
        match self.reader.value()? {
            Value::Object(mut object) => {
                let index = self.mentions.len();
                self.mentions.push(Mention::default());
                while let Some(name) = self.reader.next_member(&mut object)? {
                    let name = name.text.decoded(&mut self.scratch);
                    let is_root = self.names.mentions_root(name);
                    let is_path = self.log.paths.meaning(name).secret;
                    if is_root {
                        self.note(index, Named::InName);
                    }
                    self.value(index, is_path)?;
                }
                let Mention { here, below } = self.mentions[index];
                self.mentions[owner].below |= here != Named::No || below;
            }
            Value::Array(mut array) => {
                while self.reader.next_element(&mut array)? {
                    self.value(owner, is_path)?;
                }
            }
            Value::String(text) => {
                let text = text.decoded(&mut self.scratch);
                let is_below_root = || is_path && self.log.is_path_below_root(text);
                if names_root(self.names, text) || is_below_root() {
                    self.note(owner, Named::InText);
                }
            }
            // A container that is too deep is removed; it may have named a root.
            Value::TooDeep => self.note(owner, Named::InName),
            Value::Bare(_) => {}
        }
        Ok(())
    }

    fn note(&mut self, index: usize, named: Named) {
        let here = &mut self.mentions[index].here;
        *here = named.max(*here);
    }
}
