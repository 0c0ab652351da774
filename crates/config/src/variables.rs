//! Environment variables: names and values. `TELECOMX_GATEWAY__CACHE__TTL` sets `cache.ttl`.
//!
//! A name that was probably meant for a key and does not set it is an error. Other names pass,
//! because orchestrators set variables of similar names: Kubernetes sets
//! `TELECOMX_GATEWAY_SERVICE_HOST` for a Service `telecomx-gateway`.

use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::Fault;
use super::schema_table::{KEYS, KeySpec, TABLES, is_repeated};
use super::suggestion::closest;
use super::value_type::ValueType;

/// Start of a variable that sets a key; `__` replaces the dots of the path.
pub(super) const PREFIX: &str = "TELECOMX_GATEWAY__";

/// A fault of a name.
pub(super) struct NameFault {
    /// The key that was probably meant; empty if unknown.
    pub key: &'static str,
    pub fault: Fault,
}

/// The key that a variable sets; `None` if the name has nothing to do with the configuration.
pub(super) fn target(name: &str) -> Option<Result<&'static KeySpec, NameFault>> {
    let has_prefix = name.to_ascii_uppercase().starts_with(PREFIX);
    let spec = KEYS.iter().find(|spec| folded(&variable_name(spec.path)) == folded(name));
    match spec {
        Some(spec) if is_repeated(spec.table()) => Some(Err(repeated(spec.table()))),
        Some(spec) if variable_name(spec.path) == name => Some(Ok(spec)),
        Some(spec) => {
            let has_lower_case = name.bytes().any(|byte| byte.is_ascii_lowercase());
            let cause = if has_lower_case {
                "variable names are upper case"
            } else {
                "misspelled variable"
            };
            let remedy = format!("set {} instead", variable_name(spec.path));
            Some(Err(NameFault { key: spec.path, fault: Fault::new(cause, remedy) }))
        }
        None if has_prefix => Some(Err(unknown(name))),
        None => None,
    }
}

fn unknown(name: &str) -> NameFault {
    let rest = name.get(PREFIX.len()..).unwrap_or_default().to_ascii_uppercase();
    let tables = TABLES.iter().map(|table| table.path).filter(|path| is_repeated(path));
    for table in tables {
        if rest.starts_with(&variable_part(table)) {
            return repeated(table);
        }
    }
    let parts: Vec<String> = KEYS
        .iter()
        .filter(|spec| !is_repeated(spec.table()))
        .map(|spec| variable_part(spec.path))
        .collect();
    let remedy = match closest(&rest, parts.iter().map(String::as_str)) {
        Some(close) => format!("did you mean {PREFIX}{close}?"),
        None => format!("expected {PREFIX}TABLE__KEY, for example {PREFIX}UPSTREAM__URL"),
    };
    NameFault { key: "", fault: Fault::new("unknown variable", remedy) }
}

fn repeated(table: &'static str) -> NameFault {
    let remedy = format!("use [[{table}]] in the file");
    NameFault { key: table, fault: Fault::new("cannot be set by an environment variable", remedy) }
}

/// A name in upper case with single underscores: equal for all misspellings of one key.
fn folded(name: &str) -> String {
    let mut folded = String::with_capacity(name.len());
    for character in name.chars() {
        if character != '_' || !folded.ends_with('_') {
            folded.push(character.to_ascii_uppercase());
        }
    }
    folded
}

/// The variable that sets a key.
pub(super) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", variable_part(path))
}

fn variable_part(path: &str) -> String {
    path.to_ascii_uppercase().replace('.', "__")
}

/// Whether a variable that is not UTF-8, shown as its lossy text, was probably meant for a key.
pub(super) fn is_for_configuration(name: &str) -> bool {
    target(name).is_some()
}

/// Reads the text of a variable as TOML if that gives the type of the key, and else as the string
/// itself: `30s` as well as `"30s"`, `127.0.0.1:1` as well as `["127.0.0.1:1"]`.
pub(super) fn value<'v>(text: &'v str, value_type: &ValueType) -> Result<DeValue<'v>, Fault> {
    let (wants_text, wants_list) = (value_type.is_text(), value_type.is_list());
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
                    return Err(Fault::new("invalid TOML list", r#"for example ["a", "b"]"#));
                }
                _ => string(),
            };
            if has_comma_outside_braces(text) {
                let remedy = r#"write several items as a list, for example ["a", "b"]"#;
                return Err(Fault::new("contains a comma", remedy));
            }
            let items = if text.is_empty() { vec![] } else { vec![Spanned::new(0..0, item)] };
            Ok(DeValue::Array(items.into_iter().collect()))
        }
        Some(value) => Ok(value),
        None => Ok(string()),
    }
}

/// Whether a comma separates items. A comma inside `{a,b}` belongs to a selector.
fn has_comma_outside_braces(text: &str) -> bool {
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
