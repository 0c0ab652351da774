//! Naive implementation of the redaction rules: a tree in, a tree out, without regard to speed. It
//! shares no code with the crate; it folds only as much as the names in the properties need.

use redact::{Action, Rules};
use serde_json::{Map, Value};

pub struct Oracle<'r> {
    pub rules: &'r Rules,
    pub changes: bool,
}

const CHANGE_NAMES: [&str; 4] = ["oldvalue", "newvalue", "olddisplayvalue", "newdisplayvalue"];

const SIDES: [&str; 17] = [
    "old",
    "new",
    "from",
    "to",
    "value",
    "before",
    "after",
    "previous",
    "previousvalue",
    "current",
    "currentvalue",
    "was",
    "now",
    "lhs",
    "rhs",
    "left",
    "right",
];

/// Names in the properties that are not a side of a change.
const METADATA: [&str; 1] = ["path"];

/// How an object names a root: in a member name or in a string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    No,
    InName,
    InText,
}

#[derive(Clone, Copy)]
struct Scope<'p> {
    /// Names from the root to here, below a root.
    path: Option<&'p [String]>,
    named: Named,
    hides_scalars: bool,
}

impl Oracle<'_> {
    pub fn redact(&self, document: &Value) -> Value {
        let named = if document.is_object() { Named::No } else { self.named_here(document) };
        let scope = Scope { path: None, named, hides_scalars: named == Named::InText };
        self.value(document, scope).unwrap_or_else(|| match document {
            Value::Object(_) => Value::Object(Map::new()),
            Value::Array(_) => Value::Array(Vec::new()),
            _ => Value::Null,
        })
    }

    fn value(&self, value: &Value, scope: Scope<'_>) -> Option<Value> {
        match value {
            Value::Object(members) => {
                let named = scope.named.max(self.named_here(value));
                let concerned = named != Named::No || self.is_named_below(value);
                let mut kept = Map::new();
                for (name, value) in members {
                    let folded = fold(name);
                    let is = |names: &[&str]| names.contains(&folded.as_str());
                    let outside = scope.path.is_none();
                    let side = outside && self.changes && concerned && is(&SIDES);
                    let hidden = self.changes && concerned && is(&CHANGE_NAMES)
                        || side && named != Named::No
                        || outside
                            && self
                                .rules
                                .secret_names
                                .iter()
                                .any(|glob| glob_matches(&fold(glob), &folded));
                    let inner = match scope.path {
                        Some(path) => Some([path, std::slice::from_ref(name)].concat()),
                        None => self.mentions_root(name).then(Vec::new),
                    };
                    let unknown = outside && named == Named::InText && !is(&METADATA);
                    let inside =
                        Scope { path: inner.as_deref(), named, hides_scalars: side || unknown };
                    let value = if hidden { self.hidden(value) } else { self.value(value, inside) };
                    if let Some(value) = value {
                        kept.insert(name.clone(), value);
                    }
                }
                (members.is_empty() || !kept.is_empty()).then_some(Value::Object(kept))
            }
            Value::Array(elements) => {
                let kept: Vec<_> =
                    elements.iter().filter_map(|value| self.value(value, scope)).collect();
                (elements.is_empty() || !kept.is_empty()).then_some(Value::Array(kept))
            }
            scalar => {
                let quotes =
                    self.changes && scalar.as_str().is_some_and(|text| self.mentions_root(text));
                let is_public = match scope.path {
                    None => !scope.hides_scalars && !quotes,
                    Some(path) => {
                        !path.is_empty()
                            && self.rules.public.iter().any(|selector| selects(selector, path))
                    }
                };
                if is_public { Some(scalar.clone()) } else { self.hidden(scalar) }
            }
        }
    }

    fn hidden(&self, value: &Value) -> Option<Value> {
        match (self.rules.action, value) {
            (Action::Remove, _) => None,
            (Action::Mask, Value::String(_)) => Some("***".into()),
            _ => Some(Value::Null),
        }
    }

    fn named_here(&self, value: &Value) -> Named {
        if !self.changes {
            return Named::No;
        }
        let of = |value: &Value| if value.is_object() { Named::No } else { self.named_here(value) };
        match value {
            Value::Object(members) => members.iter().fold(Named::No, |named, (name, value)| {
                let in_name = if self.mentions_root(name) { Named::InName } else { Named::No };
                named.max(in_name).max(of(value))
            }),
            Value::Array(elements) => elements.iter().map(of).max().unwrap_or(Named::No),
            Value::String(text) if self.mentions_root(text) => Named::InText,
            _ => Named::No,
        }
    }

    fn is_named_below(&self, value: &Value) -> bool {
        let below = |value: &Value| {
            (value.is_object() && self.named_here(value) != Named::No) || self.is_named_below(value)
        };
        match value {
            Value::Object(members) => members.values().any(below),
            Value::Array(elements) => elements.iter().any(below),
            _ => false,
        }
    }

    /// Whether consecutive words form the name of a root.
    fn mentions_root(&self, text: &str) -> bool {
        let words: Vec<String> = text
            .split(|sign: char| !sign.is_ascii_alphanumeric())
            .map(str::to_ascii_lowercase)
            .collect();
        let roots: Vec<String> = self.rules.roots.iter().map(|root| fold(root)).collect();
        (0..words.len())
            .any(|from| (from..words.len()).any(|to| roots.contains(&words[from..=to].concat())))
    }
}

/// Enough for names of ASCII letters. Keeps `*`, which no name here contains.
fn fold(name: &str) -> String {
    name.chars()
        .filter(|sign| sign.is_ascii_alphanumeric() || *sign == '*')
        .collect::<String>()
        .to_ascii_lowercase()
}

fn glob_matches(glob: &str, name: &str) -> bool {
    match glob.strip_prefix('*') {
        Some(rest) => (0..=name.len()).any(|from| glob_matches(rest, &name[from..])),
        None if glob.is_empty() => name.is_empty(),
        None => name.starts_with(&glob[..1]) && glob_matches(&glob[1..], &name[1..]),
    }
}

fn selects(selector: &str, path: &[String]) -> bool {
    let (segment, rest) =
        selector.split_once('.').map_or((selector, None), |(segment, rest)| (segment, Some(rest)));
    let go_on = |path: &[String]| rest.map_or(path.is_empty(), |rest| selects(rest, path));
    match (segment, path) {
        ("**", _) => (0..=path.len()).any(|passed| go_on(&path[passed..])),
        (_, []) => false,
        ("*", [_, path @ ..]) => go_on(path),
        (_, [name, path @ ..]) => {
            segment.trim_matches(['{', '}']).split(',').any(|listed| listed == name) && go_on(path)
        }
    }
}
