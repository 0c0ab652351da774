//! Media types (RFC 9110 section 8.3.1) of responses and `Accept` fields, and the patterns of those
//! that pass a redacted route.

use std::fmt;

/// A media type without its parameters, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType {
    main: String,
    subtype: String,
}

impl MediaType {
    /// Parses a field value with parameters. `None`: not exactly one media type, so that two
    /// readers could see different ones.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
        // Another reader could take a second type behind a comma for the only one.
        let is_list = parameters.split('"').step_by(2).any(|part| part.contains(','));
        let (main, subtype) = essence.trim_matches([' ', '\t']).split_once('/')?;
        let is_type = is_token(main) && is_token(subtype) && !is_list;
        is_type.then(|| MediaType {
            main: main.to_ascii_lowercase(),
            subtype: subtype.to_ascii_lowercase(),
        })
    }

    /// Whether the type is JSON: `application/json`, `text/json`, `application/problem+json`,
    /// `application/json-seq` and similar ones.
    pub fn is_json(&self) -> bool {
        let subtype = self.subtype.strip_prefix("x-").unwrap_or(&self.subtype);
        subtype.starts_with("json") || subtype.ends_with("+json")
    }

    /// Whether the type is a stream of server-sent events.
    pub fn is_event_stream(&self) -> bool {
        self.main == "text" && self.subtype == "event-stream"
    }

    /// Whether a document of this type can contain script, like all XML.
    fn is_xml(&self) -> bool {
        self.subtype == "xml" || self.subtype.ends_with("+xml") || self.subtype == "svg"
    }
}

/// Whether a text is a token (RFC 9110 section 5.6.2).
pub fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// Pattern of media types that may pass without redaction: one type, or all subtypes of a main
/// type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaTypePattern {
    main: String,
    /// `None`: any subtype, except XML, which can contain script.
    subtype: Option<String>,
}

impl MediaTypePattern {
    /// The mistake in the pattern.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains(';') {
            return Err("has parameters");
        }
        let Some(MediaType { main, subtype }) = MediaType::parse(text.as_bytes()) else {
            return Err("is not a media type");
        };
        if main.contains('*') {
            return Err("names every type");
        }
        let subtype = match subtype.as_str() {
            "*" => None,
            other if other.contains('*') => return Err("has `*` within a subtype"),
            _ => Some(subtype),
        };
        let pattern = MediaTypePattern { main, subtype };
        let is_json = |subtype: &String| {
            MediaType { main: String::new(), subtype: subtype.clone() }.is_json()
        };
        if pattern.subtype.as_ref().is_some_and(is_json) {
            return Err("is JSON, which is redacted and never passed");
        }
        Ok(pattern)
    }

    /// Whether a response of this type passes.
    pub fn matches(&self, media_type: &MediaType) -> bool {
        let subtype = self
            .subtype
            .as_ref()
            .map_or(!media_type.is_xml(), |subtype| *subtype == media_type.subtype);
        self.main == media_type.main && subtype
    }

    /// Whether an `Accept` field names a type that this pattern lets pass. `*/*` names none.
    fn is_named_by(&self, range: &MediaType) -> bool {
        let all = range.subtype == "*" && range.main == self.main;
        all || self.matches(range)
    }
}

impl fmt::Display for MediaTypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.main, self.subtype.as_deref().unwrap_or("*"))
    }
}

/// Whether the values of a request's `Accept` name a type that one of the patterns lets pass.
pub fn accepts_any<'v>(
    accept: impl Iterator<Item = &'v [u8]>,
    patterns: &[MediaTypePattern],
) -> bool {
    let mut ranges = accept.flat_map(|value| value.split(|&byte| byte == b','));
    ranges.any(|range| {
        let refused = range.split(|&byte| byte == b';').skip(1).any(is_zero_quality);
        let named = MediaType::parse(range).filter(|_| !refused);
        named.is_some_and(|range| patterns.iter().any(|pattern| pattern.is_named_by(&range)))
    })
}

/// Whether a parameter is `q=0` (RFC 9110 section 12.4.2).
fn is_zero_quality(parameter: &[u8]) -> bool {
    let Some((name, value)) =
        std::str::from_utf8(parameter).ok().and_then(|text| text.split_once('='))
    else {
        return false;
    };
    let value = value.trim();
    name.trim().eq_ignore_ascii_case("q")
        && value.starts_with('0')
        && value[1..].bytes().all(|b| matches!(b, b'0' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<MediaTypePattern> {
        texts.iter().map(|text| MediaTypePattern::parse(text).unwrap()).collect()
    }

    fn passes(value: &str) -> bool {
        let patterns = patterns(&["text/csv", "image/*", "application/pdf", "application/zip"]);
        MediaType::parse(value.as_bytes())
            .is_some_and(|t| patterns.iter().any(|pattern| pattern.matches(&t)))
    }

    #[test]
    fn default_types_pass_and_types_with_script_do_not() {
        for yes in [
            "text/csv",
            "Text/CSV; charset=utf-8",
            "image/png",
            "IMAGE/webp",
            "application/pdf; a=\"b,c\"",
        ] {
            assert!(passes(yes), "{yes}");
        }
        for no in [
            "text/html",
            "image/svg+xml",
            "Image/SVG+XML; charset=utf-8",
            "image/svg",
            "application/octet-stream",
            "",
            "text/csv, application/json",
            "text",
            "text/",
            "/csv",
            "text/csv/x",
            "text /csv",
            "*/*",
            "image/x+xml",
            "text/csv; a=b, text/html",
        ] {
            assert!(!passes(no), "{no}");
        }
    }

    #[test]
    fn json_types_are_recognised() {
        let is_json = |value: &str| MediaType::parse(value.as_bytes()).is_some_and(|t| t.is_json());
        for yes in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/hal+json",
            "text/x-json",
            "application/json-seq",
        ] {
            assert!(is_json(yes), "{yes}");
        }
        assert!(!is_json("text/csv") && !is_json("text/javascript"));
    }

    #[test]
    fn patterns_that_pass_everything_or_json_are_refused() {
        for wrong in [
            "*/*",
            "image",
            "a/b;c",
            "application/json",
            "x/y+json",
            "image/p*",
            "*/csv",
            "a b/c",
            "",
        ] {
            assert!(MediaTypePattern::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            MediaTypePattern::parse("Text/Event-Stream").unwrap().to_string(),
            "text/event-stream"
        );
        assert_eq!(MediaTypePattern::parse("image/*").unwrap().to_string(), "image/*");
    }

    #[test]
    fn accept_names_a_type_only_explicitly() {
        let patterns = patterns(&["text/csv", "image/*"]);
        let named =
            |values: &[&str]| accepts_any(values.iter().map(|value| value.as_bytes()), &patterns);
        for yes in
            ["text/csv", "text/html, image/avif,*/*;q=0.8", "image/*", "text/*", "TEXT/CSV;q=0.1"]
        {
            assert!(named(&[yes]), "{yes}");
        }
        assert!(named(&["application/json", "text/csv"]));
        for no in [
            "*/*",
            "application/json",
            "image/svg+xml",
            "text/csv;q=0",
            "text/csv; q=0.000",
            "text/html",
            "",
        ] {
            assert!(!named(&[no]), "{no}");
        }
    }
}
