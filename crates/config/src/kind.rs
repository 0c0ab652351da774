//! The kinds of values: how each is read from TOML, and what it looks like in the JSON Schema. A value that was read is
//! right in itself; what must hold between values is checked in `check`.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::DeValue;

use super::problem::Wrong;
use super::{RedisUrl, UpstreamUrl, address, pattern, units};

pub(super) enum Kind {
    Whole {
        min: u64,
        max: u64,
    },
    /// A number from 0 to `max`.
    Fraction {
        max: f64,
    },
    Flag,
    /// At most a year.
    Duration {
        min: Duration,
    },
    /// In bytes.
    Size {
        min: u64,
        max: u64,
    },
    Word(&'static [&'static str]),
    Listen,
    Network,
    UpstreamUrl,
    /// One URL, or a list of URLs of one API.
    UpstreamUrls,
    RedisUrl,
    File,
    /// Letters, digits and a few signs.
    Name,
    Cookie,
    Member,
    NamePattern,
    Selector,
    PathPattern,
    MediaType,
    /// A response field of the API that may pass.
    KeptField,
    Origin,
    /// Origins, or `*` alone.
    Origins,
    List {
        of: &'static Kind,
        at_least: usize,
    },
}

/// Minimum of a duration that must not be zero.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(1);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Fraction(f64),
    Flag(bool),
    Duration(Duration),
    Text(String),
    Listen(SocketAddr),
    Network(IpNet),
    UpstreamUrl(UpstreamUrl),
    RedisUrl(RedisUrl),
    List(Vec<Value>),
}

/// What is wrong, and where in the text.
pub(super) type WrongAt = (Range<usize>, Wrong);

impl Kind {
    /// Reads a value. `sample` is one that is right, as TOML, for the message. Every item of a list that is wrong is told.
    pub(super) fn read(&self, value: &Spanned<DeValue>, sample: &str) -> Result<Value, Vec<WrongAt>> {
        match self {
            Kind::List { of, at_least } => read_list(of, *at_least, value, sample),
            Kind::UpstreamUrls => read_upstream_urls(value, sample),
            Kind::Origins => {
                // `"*"` needs no list around it.
                if value.get_ref().as_str() == Some("*") {
                    return Ok(Value::List(vec![Value::Text("*".to_owned())]));
                }
                let origins = read_list(&Kind::Origin, 0, value, sample)?;
                match &origins {
                    Value::List(items) if items.len() > 1 && items.contains(&Value::Text("*".to_owned())) => {
                        let wrong = Wrong::new(r#""*" must be the only item"#, r#"use ["*"], or list the origins"#);
                        Err(vec![(value.span(), wrong)])
                    }
                    _ => Ok(origins),
                }
            }
            _ => self.read_one(value.get_ref(), sample).map_err(|wrong| vec![(value.span(), wrong)]),
        }
    }

    fn read_one(&self, value: &DeValue, sample: &str) -> Result<Value, Wrong> {
        match (self, value) {
            (Kind::Whole { min, max }, DeValue::Integer(number)) => {
                let read = u64::from_str_radix(number.as_str(), number.radix()).ok();
                read.filter(|number| (*min..=*max).contains(number)).map(Value::Whole).ok_or_else(|| {
                    Wrong::new(format!("{number} is out of range"), format!("expected a number from {min} to {max}"))
                })
            }
            (Kind::Fraction { max }, DeValue::Integer(_) | DeValue::Float(_)) => {
                let text = match value {
                    DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
                    DeValue::Float(number) => number.as_str(),
                    _ => "",
                };
                let read = text.parse().ok().filter(|number: &f64| (0.0..=*max).contains(number));
                // Adding zero turns `-0.0` into `0.0`.
                read.map(|number| Value::Fraction(number + 0.0)).ok_or_else(|| {
                    Wrong::new("out of range", format!("expected a number from 0 to {max}, for example {sample}"))
                })
            }
            (Kind::Flag, DeValue::Boolean(flag)) => Ok(Value::Flag(*flag)),
            (Kind::Duration { .. } | Kind::Size { .. }, DeValue::Integer(number)) => {
                let unit = if matches!(self, Kind::Duration { .. }) { "s" } else { "B" };
                Err(Wrong::new(format!("{number} has no unit"), format!("for example \"{number}{unit}\"")))
            }
            (_, DeValue::String(text)) if self.is_text() => self.read_text(text, sample),
            _ => Err(Wrong::new(
                format!("expected {}, found {}", self.noun(), type_of(value)),
                format!("for example {}", on_one_line(sample)),
            )),
        }
    }

    fn read_text(&self, text: &str, sample: &str) -> Result<Value, Wrong> {
        let kept = || Value::Text(text.to_owned());
        match self {
            Kind::Duration { min } => {
                let Some(duration) = units::parse_duration(text) else {
                    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    let right = if all_digits { format!("\"{text}s\"") } else { sample.to_owned() };
                    return Err(Wrong::new(format!("invalid duration {text:?}"), format!("for example {right}")));
                };
                if duration < *min {
                    let wrong = match *min {
                        MIN_TIMEOUT => "must be greater than zero".to_owned(),
                        min => format!("{text:?} is too short; expected at least {}", units::show_duration(min)),
                    };
                    return Err(Wrong::new(wrong, format!("for example {sample}")));
                }
                if duration > units::LONGEST {
                    let wrong = format!("{text:?} is too long; expected at most a year");
                    return Err(Wrong::new(wrong, format!("for example {sample}")));
                }
                Ok(Value::Duration(duration))
            }
            Kind::Size { min, max } => {
                let Some(size) = units::parse_size(text) else {
                    let wrong = format!("invalid size {text:?}");
                    return Err(Wrong::new(
                        wrong,
                        format!("for example {sample}; units are B, KB, KiB, MB, MiB, GB, GiB"),
                    ));
                };
                if !(*min..=*max).contains(&size) {
                    let (min, max) = (units::show_size(*min), units::show_size(*max));
                    return Err(Wrong::new(
                        format!("{text:?} is out of range"),
                        format!("expected a size from {min} to {max}"),
                    ));
                }
                Ok(Value::Whole(size))
            }
            Kind::Word(words) if words.contains(&text) => Ok(kept()),
            Kind::Word(words) => {
                let right = format!("expected one of {}", quoted(words).join(", "));
                Err(Wrong::new(format!("unknown value {text:?}"), right))
            }
            Kind::Listen => address::listen_address(text).map(Value::Listen),
            Kind::Network => address::network(text).map(Value::Network),
            Kind::UpstreamUrl => address::upstream_url(text).map(Value::UpstreamUrl),
            Kind::RedisUrl => address::redis_url(text).map(Value::RedisUrl),
            Kind::Name => pattern::name(text, sample).map(|()| kept()),
            Kind::File if text.is_empty() || text.contains('\0') => {
                Err(Wrong::new("not a file path", format!("for example {sample}, or omit the key")))
            }
            Kind::File => Ok(kept()),
            Kind::Cookie => pattern::cookie_name(text).map(|()| kept()),
            Kind::Member => pattern::member_name(text).map(|()| kept()),
            Kind::NamePattern => pattern::name_pattern(text).map(|()| kept()),
            Kind::Selector => pattern::selector(text).map(|()| kept()),
            Kind::PathPattern => pattern::path_pattern(text).map(|()| kept()),
            Kind::MediaType => pattern::media_type(text).map(|()| kept()),
            Kind::KeptField => pattern::kept_field(text).map(|()| kept()),
            Kind::Origin if text == "*" => Ok(kept()),
            Kind::Origin => address::origin(text).map(Value::Text),
            Kind::Whole { .. }
            | Kind::Fraction { .. }
            | Kind::Flag
            | Kind::List { .. }
            | Kind::UpstreamUrls
            | Kind::Origins => {
                Err(Wrong::new(format!("expected {}, found a string", self.noun()), format!("for example {sample}")))
            }
        }
    }

    /// Whether it is written as a string.
    pub(super) fn is_text(&self) -> bool {
        !self.is_list() && !matches!(self, Kind::Whole { .. } | Kind::Fraction { .. } | Kind::Flag)
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Kind::List { .. } | Kind::Origins | Kind::UpstreamUrls)
    }

    fn noun(&self) -> &'static str {
        match self {
            Kind::Whole { .. } => "a whole number",
            Kind::Fraction { .. } => "a number",
            Kind::Flag => "true or false",
            Kind::Duration { .. } => "a duration in quotes",
            Kind::Size { .. } => "a size in quotes",
            Kind::List { .. } | Kind::Origins => "a list",
            Kind::UpstreamUrls => "a URL or a list of URLs",
            _ => "a string",
        }
    }

    /// What may be written, for the reference.
    pub(super) fn in_words(&self) -> String {
        match self {
            Kind::Whole { min, max } => format!("whole number from {min} to {max}"),
            Kind::Fraction { max } => format!("number from 0 to {max}"),
            Kind::Flag => "`true` or `false`".to_owned(),
            Kind::Duration { min } if min.is_zero() => "duration".to_owned(),
            Kind::Duration { .. } => "duration, not `\"0s\"`".to_owned(),
            Kind::Size { min, max } => format!("size from {} to {}", units::show_size(*min), units::show_size(*max)),
            Kind::Word(words) => {
                let words: Vec<_> = quoted(words).iter().map(|word| format!("`{word}`")).collect();
                format!("one of {}", words.join(", "))
            }
            Kind::Listen => "IP address and port".to_owned(),
            Kind::Network => "network or IP address".to_owned(),
            Kind::UpstreamUrl => "URL without a path".to_owned(),
            Kind::UpstreamUrls => "URL without a path, or a list of such URLs".to_owned(),
            Kind::RedisUrl => "URL of a Redis or Valkey".to_owned(),
            Kind::File => "path of a file".to_owned(),
            Kind::Name => "name: letters, digits, `.`, `_`, `:` and `-`".to_owned(),
            Kind::Cookie => "name of a cookie".to_owned(),
            Kind::Member => "name of a member".to_owned(),
            Kind::NamePattern => "pattern of a name".to_owned(),
            Kind::Selector => "selector".to_owned(),
            Kind::PathPattern => "pattern of a path".to_owned(),
            Kind::MediaType => "media type, or `image/*` for all subtypes".to_owned(),
            Kind::KeptField => "name of a response field".to_owned(),
            Kind::Origin => "origin".to_owned(),
            Kind::Origins => "list of origins, or `\"*\"`".to_owned(),
            Kind::List { of, at_least } => {
                let not_empty = if *at_least > 0 { ", not empty" } else { "" };
                format!("list{not_empty}; each: {}", of.in_words())
            }
        }
    }

    /// What an editor can check; the fine print of addresses and patterns is left to `parse`.
    pub(super) fn schema(&self) -> Json {
        let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
        match self {
            Kind::Whole { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
            Kind::Fraction { max } => json!({ "type": "number", "minimum": 0, "maximum": max }),
            Kind::Flag => json!({ "type": "boolean" }),
            Kind::Duration { min } if min.is_zero() => text(units::DURATION_PATTERN),
            // Some digit other than 0.
            Kind::Duration { .. } => {
                json!({ "type": "string", "pattern": units::DURATION_PATTERN, "not": { "pattern": "^[0hms]*$" } })
            }
            Kind::Size { .. } => text(units::SIZE_PATTERN),
            Kind::Word(words) => json!({ "enum": words }),
            Kind::Listen => text(r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$"),
            Kind::Network => text("^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"),
            Kind::UpstreamUrl => text(r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\]+/?$"),
            Kind::UpstreamUrls => json!({ "anyOf": [
                Kind::UpstreamUrl.schema(),
                { "type": "array", "items": Kind::UpstreamUrl.schema(), "minItems": 1, "uniqueItems": true },
            ] }),
            Kind::RedisUrl => text(r"^([Rr][Ee][Dd][Ii][Ss][Ss]?://[^/?#@\\]+(/[0-9]*)?|unix:///.+)$"),
            Kind::Name => text("^[A-Za-z0-9._:-]{1,64}$"),
            Kind::Cookie => text("^[!#$%&'*+.^_`|~0-9A-Za-z-]*$"),
            Kind::Member => text("^[^*{}.,]+$"),
            Kind::File | Kind::NamePattern | Kind::Selector => json!({ "type": "string", "minLength": 1 }),
            Kind::PathPattern => text(r"^(/(\*|\*\*|[A-Za-z0-9._~!$&'()+,=:@-]+(\.\*)?))+$"),
            Kind::MediaType => text(r"^[A-Za-z0-9!#$&^_.+-]+/(\*|[A-Za-z0-9!#$&^_.+-]+)$"),
            Kind::KeptField => text(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"),
            Kind::Origin => text(r"^[a-z][a-z0-9+.-]*://[^/A-Z]+$"),
            Kind::Origins => json!({ "anyOf": [
                { "const": "*" },
                { "type": "array", "items": { "const": "*" }, "minItems": 1, "maxItems": 1 },
                { "type": "array", "items": Kind::Origin.schema(), "uniqueItems": true },
            ] }),
            Kind::List { of, at_least } => {
                json!({ "type": "array", "items": of.schema(), "minItems": at_least, "uniqueItems": true })
            }
        }
    }
}

/// Reads one URL or a list of URLs, which must have the same scheme: a request must not lose TLS
/// because another address was chosen.
fn read_upstream_urls(value: &Spanned<DeValue>, sample: &str) -> Result<Value, Vec<WrongAt>> {
    if let DeValue::Array(_) = value.get_ref() {
        let urls = read_list(&Kind::UpstreamUrl, 1, value, sample)?;
        let Value::List(items) = &urls else { return Ok(urls) };
        let uses_tls = |item: &Value| matches!(item, Value::UpstreamUrl(url) if url.tls);
        if items.iter().any(uses_tls) && !items.iter().all(uses_tls) {
            let wrong = Wrong::new("http and https are mixed", "use one scheme for all URLs");
            return Err(vec![(value.span(), wrong)]);
        }
        let authorities: Vec<_> = items
            .iter()
            .filter_map(|item| if let Value::UpstreamUrl(url) = item { Some(url.authority()) } else { None })
            .collect();
        // With and without a trailing dot: the same name for certificates and `Host`.
        let repeated = |at: &usize| authorities[..*at].contains(&authorities[*at]);
        if let Some(at) = (0..authorities.len()).find(repeated) {
            let wrong = Wrong::new(format!("duplicate address {}", authorities[at]), "remove one of the two");
            return Err(vec![(value.span(), wrong)]);
        }
        return Ok(urls);
    }
    Kind::UpstreamUrl.read(value, sample).map(|url| Value::List(vec![url]))
}

fn read_list(of: &Kind, at_least: usize, value: &Spanned<DeValue>, sample: &str) -> Result<Value, Vec<WrongAt>> {
    let write = || format!("for example {}", on_one_line(sample));
    let DeValue::Array(items) = value.get_ref() else {
        let wrong = Wrong::new(format!("expected a list, found {}", type_of(value.get_ref())), write());
        return Err(vec![(value.span(), wrong)]);
    };
    if items.len() < at_least {
        return Err(vec![(value.span(), Wrong::new("the list is empty", write()))]);
    }
    let mut list = Vec::new();
    let mut problems = Vec::new();
    // A list's sample is a list; an item's is what stands in it first.
    let item_sample = sample.split('"').nth(1).map_or("\"…\"".to_owned(), |item| format!("{item:?}"));
    for item in items.iter() {
        match of.read(item, &item_sample) {
            Ok(read) if list.contains(&read) => {
                problems.push((
                    item.span(),
                    Wrong::new(format!("duplicate item {}", show(item.get_ref())), "remove one of the two"),
                ));
            }
            Ok(read) => list.push(read),
            Err(wrong) => problems.extend(wrong),
        }
    }
    if problems.is_empty() { Ok(Value::List(list)) } else { Err(problems) }
}

fn show(value: &DeValue) -> String {
    value.as_str().map_or_else(|| type_of(value).to_owned(), |text| format!("{text:?}"))
}

fn type_of(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn quoted(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| format!("{word:?}")).collect()
}

/// A TOML text without its line breaks, cut where it is long.
fn on_one_line(toml: &str) -> String {
    let line = toml.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    match line.match_indices(", ").nth(1) {
        Some((end, _)) if line.starts_with('[') => format!("{}, …]", &line[..end]),
        _ => line,
    }
}

/// What a value is in the program. `None`: another kind, which is a mistake in the list of keys.
pub(super) trait FromValue: Sized {
    fn from_value(value: Value) -> Option<Self>;
}

impl FromValue for u64 {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Whole(number) = value { Some(number) } else { None }
    }
}

impl FromValue for usize {
    fn from_value(value: Value) -> Option<Self> {
        u64::from_value(value)?.try_into().ok()
    }
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Option<Self> {
        u64::from_value(value)?.try_into().ok()
    }
}

impl FromValue for f64 {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Fraction(number) = value { Some(number) } else { None }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Flag(flag) = value { Some(flag) } else { None }
    }
}

impl FromValue for Duration {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Duration(duration) = value { Some(duration) } else { None }
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text) } else { None }
    }
}

impl FromValue for PathBuf {
    fn from_value(value: Value) -> Option<Self> {
        String::from_value(value).map(PathBuf::from)
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Listen(address) = value { Some(address) } else { None }
    }
}

impl FromValue for IpNet {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Network(network) = value { Some(network) } else { None }
    }
}

impl FromValue for UpstreamUrl {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::UpstreamUrl(url) = value { Some(url) } else { None }
    }
}

impl FromValue for RedisUrl {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::RedisUrl(url) = value { Some(url) } else { None }
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: Value) -> Option<Self> {
        let Value::List(items) = value else { return None };
        items.into_iter().map(T::from_value).collect()
    }
}
