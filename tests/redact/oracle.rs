//! The rules of redaction once more, as plainly as they can be said: a tree in, a tree out, no thought of speed. It
//! shares no code with what it judges; of folding it knows as much as the names in the properties need.

use serde_json::{Map, Value};
use telecomx_gateway::redact::{Action, Rules};

pub struct Oracle<'r> {
    pub rules: &'r Rules,
    pub changes: bool,
}

const CHANGE_NAMES: [&str; 4] = ["oldvalue", "newvalue", "olddisplayvalue", "newdisplayvalue"];

impl Oracle<'_> {
    pub fn redact(&self, document: &Value) -> Value {
        let mentioned = self.mentions_here(document);
        self.value(document, None, mentioned).unwrap_or_else(|| match document {
            Value::Object(_) => Value::Object(Map::new()),
            _ => Value::Array(Vec::new()),
        })
    }

    /// `path`: the names from the root to here, when this is under one.
    fn value(&self, value: &Value, path: Option<&[String]>, mentioned: bool) -> Option<Value> {
        match value {
            Value::Object(members) => {
                let mentioned = mentioned || self.mentions_here(value);
                let hides_changes = self.changes && (mentioned || self.mentions_below(value));
                let mut kept = Map::new();
                for (name, value) in members {
                    let hidden = hides_changes && CHANGE_NAMES.contains(&fold(name).as_str())
                        || path.is_none()
                            && self.rules.secret_names.iter().any(|glob| glob_matches(&fold(glob), &fold(name)));
                    let inner = match path {
                        Some(path) => Some([path, std::slice::from_ref(name)].concat()),
                        None => self.mentions_root(name).then(Vec::new),
                    };
                    let value =
                        if hidden { self.hidden(value) } else { self.value(value, inner.as_deref(), mentioned) };
                    if let Some(value) = value {
                        kept.insert(name.clone(), value);
                    }
                }
                (members.is_empty() || !kept.is_empty()).then_some(Value::Object(kept))
            }
            Value::Array(elements) => {
                let kept: Vec<_> = elements.iter().filter_map(|value| self.value(value, path, mentioned)).collect();
                (elements.is_empty() || !kept.is_empty()).then_some(Value::Array(kept))
            }
            scalar => match path {
                None => Some(scalar.clone()),
                Some(path) if !path.is_empty() && self.rules.public.iter().any(|selector| selects(selector, path)) => {
                    Some(scalar.clone())
                }
                Some(_) => self.hidden(scalar),
            },
        }
    }

    fn hidden(&self, value: &Value) -> Option<Value> {
        match (self.rules.action, value) {
            (Action::Remove, _) => None,
            (Action::Mask, Value::String(_)) => Some("***".into()),
            _ => Some(Value::Null),
        }
    }

    fn mentions_here(&self, value: &Value) -> bool {
        match value {
            Value::Object(members) => members
                .iter()
                .any(|(name, value)| self.mentions_root(name) || !value.is_object() && self.mentions_here(value)),
            Value::Array(elements) => elements.iter().any(|value| !value.is_object() && self.mentions_here(value)),
            Value::String(text) => self.mentions_root(text),
            _ => false,
        }
    }

    fn mentions_below(&self, value: &Value) -> bool {
        let below = |value: &Value| self.mentions_here(value) || self.mentions_below(value);
        match value {
            Value::Object(members) => members.values().any(below),
            Value::Array(elements) => elements.iter().any(below),
            _ => false,
        }
    }

    /// Whether some of the words that stand in a row make a root's name.
    fn mentions_root(&self, text: &str) -> bool {
        let words: Vec<String> =
            text.split(|sign: char| !sign.is_ascii_alphanumeric()).map(str::to_ascii_lowercase).collect();
        let roots: Vec<String> = self.rules.roots.iter().map(|root| fold(root)).collect();
        (0..words.len()).any(|from| (from..words.len()).any(|to| roots.contains(&words[from..=to].concat())))
    }
}

/// Enough for names whose letters are ASCII. Keeps `*`, which no name here holds.
fn fold(name: &str) -> String {
    name.chars().filter(|sign| sign.is_ascii_alphanumeric() || *sign == '*').collect::<String>().to_ascii_lowercase()
}

fn glob_matches(glob: &str, name: &str) -> bool {
    match glob.strip_prefix('*') {
        Some(rest) => (0..=name.len()).any(|from| glob_matches(rest, &name[from..])),
        None if glob.is_empty() => name.is_empty(),
        None => name.starts_with(&glob[..1]) && glob_matches(&glob[1..], &name[1..]),
    }
}

fn selects(selector: &str, path: &[String]) -> bool {
    let (segment, rest) = selector.split_once('.').map_or((selector, None), |(segment, rest)| (segment, Some(rest)));
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
