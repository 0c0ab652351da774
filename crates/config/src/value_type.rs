//! The types of values: how each is read from TOML, and its JSON Schema. A value that was read is
//! valid by itself; relations between values are checked in `check`.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use redact::Rule;
use serde_json::{Value as Json, json};
use telecomx_api::PathPattern;
use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::Fault;
use super::model::{RedisUrl, UpstreamUrl};
use super::{address, pattern, units};

pub(super) enum ValueType {
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
    /// A number of bytes.
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
    /// Letters, digits, `.`, `_`, `:` and `-`.
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
        of: &'static ValueType,
        at_least: usize,
    },
}

/// Values of `cors.allowed_origins` instead of a list of origins.
const ORIGIN_WORDS: [&str; 2] = ["*", "loopback"];

/// Minimum of a duration that must not be zero.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(1);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TypedValue {
    Whole(u64),
    Fraction(f64),
    Flag(bool),
    Duration(Duration),
    Text(String),
    Listen(SocketAddr),
    Network(IpNet),
    UpstreamUrl(UpstreamUrl),
    RedisUrl(RedisUrl),
    PathPattern(PathPattern),
    List(Vec<TypedValue>),
}

/// A fault and its place in the text.
#[derive(Debug)]
pub(super) struct FaultAt {
    pub span: Range<usize>,
    pub fault: Fault,
}

impl FaultAt {
    fn new(value: &Spanned<DeValue>, fault: Fault) -> Self {
        FaultAt { span: value.span(), fault }
    }
}

impl ValueType {
    /// Reads a value, with all faults of a list. `example` is a valid value, as TOML, for the
    /// message.
    pub(super) fn read(
        &self,
        value: &Spanned<DeValue>,
        example: &str,
    ) -> Result<TypedValue, Vec<FaultAt>> {
        match self {
            ValueType::List { of, at_least } => read_list(of, *at_least, value, example),
            ValueType::UpstreamUrls => read_upstream_urls(value, example),
            ValueType::Origins => {
                // The words need no list.
                if let Some(word) =
                    value.get_ref().as_str().filter(|text| ORIGIN_WORDS.contains(text))
                {
                    return Ok(TypedValue::List(vec![TypedValue::Text(word.to_owned())]));
                }
                let origins = read_list(&ValueType::Origin, 0, value, example)?;
                let TypedValue::List(items) = &origins else { return Ok(origins) };
                let is_item = |word: &&&str| items.contains(&TypedValue::Text((**word).to_owned()));
                match ORIGIN_WORDS.iter().find(is_item).filter(|_| items.len() > 1) {
                    Some(word) => {
                        let remedy = format!("use [{word:?}], or list the origins");
                        let fault = Fault::new(format!("{word:?} must be the only item"), remedy);
                        Err(vec![FaultAt::new(value, fault)])
                    }
                    None => Ok(origins),
                }
            }
            _ => self
                .read_one(value.get_ref(), example)
                .map_err(|fault| vec![FaultAt::new(value, fault)]),
        }
    }

    fn read_one(&self, value: &DeValue, example: &str) -> Result<TypedValue, Fault> {
        match (self, value) {
            (ValueType::Whole { min, max }, DeValue::Integer(number)) => {
                let read = u64::from_str_radix(number.as_str(), number.radix()).ok();
                read.filter(|number| (*min..=*max).contains(number))
                    .map(TypedValue::Whole)
                    .ok_or_else(|| {
                        Fault::new(
                            format!("{number} is out of range"),
                            format!("expected a number from {min} to {max}"),
                        )
                    })
            }
            (ValueType::Fraction { max }, DeValue::Integer(_) | DeValue::Float(_)) => {
                let text = match value {
                    DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
                    DeValue::Float(number) => number.as_str(),
                    _ => "",
                };
                let read = text.parse().ok().filter(|number: &f64| (0.0..=*max).contains(number));
                // Adding zero turns `-0.0` into `0.0`.
                read.map(|number| TypedValue::Fraction(number + 0.0)).ok_or_else(|| {
                    Fault::new(
                        "out of range",
                        format!("expected a number from 0 to {max}, for example {example}"),
                    )
                })
            }
            (ValueType::Flag, DeValue::Boolean(flag)) => Ok(TypedValue::Flag(*flag)),
            (ValueType::Duration { .. } | ValueType::Size { .. }, DeValue::Integer(number)) => {
                let unit = if matches!(self, ValueType::Duration { .. }) { "s" } else { "B" };
                let remedy = self.remedy(&format!("\"{number}{unit}\""));
                Err(Fault::new(format!("{number} has no unit"), remedy))
            }
            (_, DeValue::String(text)) if self.is_text() => self.read_text(text, example),
            _ => Err(Fault::new(
                format!("expected {}, found {}", self.noun(), type_of(value)),
                self.remedy(&on_one_line(example)),
            )),
        }
    }

    fn read_text(&self, text: &str, example: &str) -> Result<TypedValue, Fault> {
        let as_text = || TypedValue::Text(text.to_owned());
        match self {
            ValueType::Duration { min } => {
                let Some(duration) = units::parse_duration(text) else {
                    let all_digits =
                        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    let example =
                        if all_digits { format!("\"{text}s\"") } else { example.to_owned() };
                    return Err(Fault::new(
                        format!("invalid duration {text:?}"),
                        self.remedy(&example),
                    ));
                };
                if duration < *min {
                    let cause = match *min {
                        MIN_TIMEOUT => "must be greater than zero".to_owned(),
                        min => format!(
                            "{text:?} is too short; expected at least {}",
                            units::show_duration(min)
                        ),
                    };
                    return Err(Fault::new(cause, self.remedy(example)));
                }
                if duration > units::DURATION_MAX {
                    let cause = format!("{text:?} is too long; expected at most a year");
                    return Err(Fault::new(cause, self.remedy(example)));
                }
                Ok(TypedValue::Duration(duration))
            }
            ValueType::Size { min, max } => {
                let Some(size) = units::parse_size(text) else {
                    let all_digits =
                        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    let example =
                        if all_digits { format!("\"{text}B\"") } else { example.to_owned() };
                    return Err(Fault::new(
                        format!("invalid size {text:?}"),
                        self.remedy(&example),
                    ));
                };
                if !(*min..=*max).contains(&size) {
                    let (min, max) = (units::show_size(*min), units::show_size(*max));
                    let cause =
                        format!("{text:?} is out of range; expected a size from {min} to {max}");
                    return Err(Fault::new(cause, self.remedy(example)));
                }
                Ok(TypedValue::Whole(size))
            }
            ValueType::Word(words) if words.contains(&text) => Ok(as_text()),
            ValueType::Word(words) => {
                let remedy = format!("expected one of {}", quoted(words).join(", "));
                Err(Fault::new(format!("unknown value {text:?}"), remedy))
            }
            ValueType::Listen => address::listen_address(text).map(TypedValue::Listen),
            ValueType::Network => address::network(text).map(TypedValue::Network),
            ValueType::UpstreamUrl => address::upstream_url(text).map(TypedValue::UpstreamUrl),
            ValueType::RedisUrl => address::redis_url(text).map(TypedValue::RedisUrl),
            ValueType::Name => pattern::name(text, example).map(|()| as_text()),
            ValueType::File if text.is_empty() || text.contains('\0') => Err(Fault::new(
                "not a file path",
                format!("for example {example}, or omit the key"),
            )),
            ValueType::File => Ok(as_text()),
            ValueType::Cookie => pattern::cookie_name(text).map(|()| as_text()),
            ValueType::Member => pattern::redaction_rule(text, Rule::Root).map(|()| as_text()),
            ValueType::NamePattern => {
                pattern::redaction_rule(text, Rule::SecretName).map(|()| as_text())
            }
            ValueType::Selector => pattern::redaction_rule(text, Rule::Public).map(|()| as_text()),
            ValueType::PathPattern => pattern::path_pattern(text).map(TypedValue::PathPattern),
            ValueType::MediaType => pattern::media_type(text).map(|()| as_text()),
            ValueType::KeptField => pattern::kept_field(text).map(|()| as_text()),
            ValueType::Origin if ORIGIN_WORDS.contains(&text) => Ok(as_text()),
            ValueType::Origin => address::origin(text).map(TypedValue::Text),
            ValueType::Whole { .. }
            | ValueType::Fraction { .. }
            | ValueType::Flag
            | ValueType::List { .. }
            | ValueType::UpstreamUrls
            | ValueType::Origins => Err(Fault::new(
                format!("expected {}, found a string", self.noun()),
                self.remedy(example),
            )),
        }
    }

    /// Whether a value is written as a string.
    pub(super) fn is_text(&self) -> bool {
        !self.is_list()
            && !matches!(
                self,
                ValueType::Whole { .. } | ValueType::Fraction { .. } | ValueType::Flag
            )
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, ValueType::List { .. } | ValueType::Origins | ValueType::UpstreamUrls)
    }

    /// The remedy of a fault: the units of a duration or size, and an example.
    fn remedy(&self, example: &str) -> String {
        match self {
            ValueType::Duration { .. } => {
                format!("expected a whole number with h, m, s or ms; for example {example}")
            }
            ValueType::Size { .. } => {
                format!(
                    "expected a whole number with B, KB, KiB, MB, MiB, GB or GiB; for example {example}"
                )
            }
            _ => format!("for example {example}"),
        }
    }

    fn noun(&self) -> &'static str {
        match self {
            ValueType::Whole { .. } => "a whole number",
            ValueType::Fraction { .. } => "a number",
            ValueType::Flag => "true or false",
            ValueType::Duration { .. } => "a duration in quotes",
            ValueType::Size { .. } => "a size in quotes",
            ValueType::List { .. } | ValueType::Origins => "a list",
            ValueType::UpstreamUrls => "a URL or a list of URLs",
            _ => "a string",
        }
    }

    /// The permitted values, for the reference.
    pub(super) fn description(&self) -> String {
        match self {
            ValueType::Whole { min, max } => format!("whole number from {min} to {max}"),
            ValueType::Fraction { max } => format!("number from 0 to {max}"),
            ValueType::Flag => "`true` or `false`".to_owned(),
            ValueType::Duration { min } if min.is_zero() => "duration".to_owned(),
            ValueType::Duration { .. } => "duration, not `\"0s\"`".to_owned(),
            ValueType::Size { min, max } => {
                format!("size from {} to {}", units::show_size(*min), units::show_size(*max))
            }
            ValueType::Word(words) => {
                let words: Vec<_> = quoted(words).iter().map(|word| format!("`{word}`")).collect();
                format!("one of {}", words.join(", "))
            }
            ValueType::Listen => "IP address and port".to_owned(),
            ValueType::Network => "network or IP address".to_owned(),
            ValueType::UpstreamUrl => "URL without a path".to_owned(),
            ValueType::UpstreamUrls => "URL without a path, or a list of such URLs".to_owned(),
            ValueType::RedisUrl => "URL of a Redis or Valkey".to_owned(),
            ValueType::File => "path of a file".to_owned(),
            ValueType::Name => "name: letters, digits, `.`, `_`, `:` and `-`".to_owned(),
            ValueType::Cookie => "name of a cookie".to_owned(),
            ValueType::Member => "name of a member".to_owned(),
            ValueType::NamePattern => "pattern of a name".to_owned(),
            ValueType::Selector => "selector".to_owned(),
            ValueType::PathPattern => "pattern of a path".to_owned(),
            ValueType::MediaType => "media type, or `image/*` for all subtypes".to_owned(),
            ValueType::KeptField => "name of a response field".to_owned(),
            ValueType::Origin => "origin".to_owned(),
            ValueType::Origins => "list of origins, `\"*\"` or `\"loopback\"`".to_owned(),
            ValueType::List { of, at_least } => {
                let not_empty = if *at_least > 0 { ", not empty" } else { "" };
                format!("list{not_empty}; each: {}", of.description())
            }
        }
    }

    /// The JSON Schema. Addresses and patterns are only partly checked by it; `parse` checks them
    /// in full.
    pub(super) fn schema(&self) -> Json {
        let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
        match self {
            ValueType::Whole { min, max } => {
                json!({ "type": "integer", "minimum": min, "maximum": max })
            }
            ValueType::Fraction { max } => {
                json!({ "type": "number", "minimum": 0, "maximum": max })
            }
            ValueType::Flag => json!({ "type": "boolean" }),
            ValueType::Duration { min } if min.is_zero() => text(units::DURATION_PATTERN),
            // A digit other than 0.
            ValueType::Duration { .. } => {
                json!({ "type": "string", "pattern": units::DURATION_PATTERN, "not": { "pattern": "^[0hms]*$" } })
            }
            ValueType::Size { .. } => text(units::SIZE_PATTERN),
            ValueType::Word(words) => json!({ "enum": words }),
            ValueType::Listen => text(r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$"),
            ValueType::Network => text("^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"),
            ValueType::UpstreamUrl => text(r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\]+/?$"),
            ValueType::UpstreamUrls => json!({ "anyOf": [
                ValueType::UpstreamUrl.schema(),
                { "type": "array", "items": ValueType::UpstreamUrl.schema(), "minItems": 1, "uniqueItems": true },
            ] }),
            ValueType::RedisUrl => {
                text(r"^([Rr][Ee][Dd][Ii][Ss][Ss]?://[^/?#@\\]+(/[0-9]*)?|unix:///.+)$")
            }
            ValueType::Name => text("^[A-Za-z0-9._:-]{1,64}$"),
            ValueType::Cookie => text("^[!#$%&'*+.^_`|~0-9A-Za-z-]*$"),
            ValueType::Member => text("^[^*{}.,]+$"),
            ValueType::File | ValueType::NamePattern | ValueType::Selector => {
                json!({ "type": "string", "minLength": 1 })
            }
            ValueType::PathPattern => text(r"^(/(\*|\*\*|[A-Za-z0-9._~!$&'()+,=:@-]+(\.\*)?))+$"),
            ValueType::MediaType => text(r"^[A-Za-z0-9!#$&^_.+-]+/(\*|[A-Za-z0-9!#$&^_.+-]+)$"),
            ValueType::KeptField => text(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"),
            ValueType::Origin => text(r"^[a-z][a-z0-9+.-]*://[^/A-Z]+$"),
            ValueType::Origins => json!({ "anyOf": [
                { "enum": ORIGIN_WORDS },
                { "type": "array", "items": { "enum": ORIGIN_WORDS }, "minItems": 1, "maxItems": 1 },
                { "type": "array", "items": ValueType::Origin.schema(), "uniqueItems": true },
            ] }),
            ValueType::List { of, at_least } => {
                json!({ "type": "array", "items": of.schema(), "minItems": at_least, "uniqueItems": true })
            }
        }
    }
}

/// Reads one URL or a list of URLs, which must have the same scheme: a request must not lose TLS
/// because another address was chosen.
fn read_upstream_urls(value: &Spanned<DeValue>, example: &str) -> Result<TypedValue, Vec<FaultAt>> {
    if let DeValue::Array(_) = value.get_ref() {
        let urls = read_list(&ValueType::UpstreamUrl, 1, value, example)?;
        let TypedValue::List(items) = &urls else { return Ok(urls) };
        let uses_tls = |item: &TypedValue| matches!(item, TypedValue::UpstreamUrl(url) if url.tls);
        if items.iter().any(uses_tls) && !items.iter().all(uses_tls) {
            let fault = Fault::new("http and https are mixed", "use one scheme for all URLs");
            return Err(vec![FaultAt::new(value, fault)]);
        }
        let authorities: Vec<_> = items
            .iter()
            .filter_map(|item| {
                if let TypedValue::UpstreamUrl(url) = item { Some(url.authority()) } else { None }
            })
            .collect();
        // With and without a trailing dot: the same name for certificates and `Host`.
        let repeated = |at: &usize| authorities[..*at].contains(&authorities[*at]);
        if let Some(at) = (0..authorities.len()).find(repeated) {
            let fault = Fault::new(
                format!("duplicate address {}", authorities[at]),
                "remove one of the two",
            );
            return Err(vec![FaultAt::new(value, fault)]);
        }
        return Ok(urls);
    }
    ValueType::UpstreamUrl.read(value, example).map(|url| TypedValue::List(vec![url]))
}

fn read_list(
    of: &ValueType,
    at_least: usize,
    value: &Spanned<DeValue>,
    example: &str,
) -> Result<TypedValue, Vec<FaultAt>> {
    let remedy = || format!("for example {}", on_one_line(example));
    let DeValue::Array(items) = value.get_ref() else {
        let fault =
            Fault::new(format!("expected a list, found {}", type_of(value.get_ref())), remedy());
        return Err(vec![FaultAt::new(value, fault)]);
    };
    if items.len() < at_least {
        return Err(vec![FaultAt::new(value, Fault::new("the list is empty", remedy()))]);
    }
    let mut list = Vec::new();
    let mut faults = Vec::new();
    // The example of an item is the first item of the list's example.
    let item_example =
        example.split('"').nth(1).map_or("\"…\"".to_owned(), |item| format!("{item:?}"));
    for item in items.iter() {
        match of.read(item, &item_example) {
            Ok(read) if list.contains(&read) => {
                let cause = format!("duplicate item {}", show(item.get_ref()));
                faults.push(FaultAt::new(item, Fault::new(cause, "remove one of the two")));
            }
            Ok(read) => list.push(read),
            Err(item_faults) => faults.extend(item_faults),
        }
    }
    if faults.is_empty() { Ok(TypedValue::List(list)) } else { Err(faults) }
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

/// A TOML text on one line. A list is shortened to its first two items.
fn on_one_line(toml: &str) -> String {
    let line = toml.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    match line.match_indices(", ").nth(1) {
        Some((end, _)) if line.starts_with('[') => format!("{}, …]", &line[..end]),
        _ => line,
    }
}

/// The Rust type of a value. `None` for another type, which is a mistake in the schema table.
pub(super) trait FromValue: Sized {
    fn from_value(value: TypedValue) -> Option<Self>;
}

impl FromValue for u64 {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Whole(number) = value { Some(number) } else { None }
    }
}

impl FromValue for usize {
    fn from_value(value: TypedValue) -> Option<Self> {
        u64::from_value(value)?.try_into().ok()
    }
}

impl FromValue for u32 {
    fn from_value(value: TypedValue) -> Option<Self> {
        u64::from_value(value)?.try_into().ok()
    }
}

impl FromValue for f64 {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Fraction(number) = value { Some(number) } else { None }
    }
}

impl FromValue for bool {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Flag(flag) = value { Some(flag) } else { None }
    }
}

impl FromValue for Duration {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Duration(duration) = value { Some(duration) } else { None }
    }
}

impl FromValue for String {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Text(text) = value { Some(text) } else { None }
    }
}

impl FromValue for PathBuf {
    fn from_value(value: TypedValue) -> Option<Self> {
        String::from_value(value).map(PathBuf::from)
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Listen(address) = value { Some(address) } else { None }
    }
}

impl FromValue for IpNet {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::Network(network) = value { Some(network) } else { None }
    }
}

impl FromValue for UpstreamUrl {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::UpstreamUrl(url) = value { Some(url) } else { None }
    }
}

impl FromValue for PathPattern {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::PathPattern(pattern) = value { Some(pattern) } else { None }
    }
}

impl FromValue for RedisUrl {
    fn from_value(value: TypedValue) -> Option<Self> {
        if let TypedValue::RedisUrl(url) = value { Some(url) } else { None }
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: TypedValue) -> Option<Self> {
        let TypedValue::List(items) = value else { return None };
        items.into_iter().map(T::from_value).collect()
    }
}
