//! Distributed tracing (W3C Trace Context, level 2).
//!
//! A valid `traceparent` of a client is logged. It is forwarded to the API with the gateway's span
//! in place of the client's. An invalid one is removed together with `tracestate`. The gateway's
//! own requests carry no trace: their responses may be stored, and several clients may wait for
//! one.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of version 00: `00-`, then 32, 16 and 2 hexadecimal digits separated by hyphens.
const VERSION_00_LENGTH: usize = 55;

/// A trace context, as text that consists of hexadecimal digits and hyphens and can be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// `00-`, the trace id, the gateway's span id, the flags.
    text: String,
    /// The client's span id.
    parent: u64,
}

impl Trace {
    /// Continues the client's trace with the span `span`. `None` if the request has no single valid
    /// `traceparent`.
    pub fn from_headers(headers: &HeaderMap, span: u64) -> Option<Self> {
        let mut fields = headers.get_all(TRACEPARENT).iter();
        let (field, None) = (fields.next()?, fields.next()) else { return None };
        Self::parse(field.as_bytes(), span)
    }

    /// Parses the value of the only `traceparent` field.
    pub fn parse(field: &[u8], span: u64) -> Option<Self> {
        let text = std::str::from_utf8(field).ok().filter(|text| text.is_ascii())?;
        let (version, rest) = (text.get(..2)?, text.get(2..)?);
        // A later version may append members after a hyphen.
        let has_valid_end = if version == "00" {
            text.len() == VERSION_00_LENGTH
        } else {
            matches!(rest.as_bytes().get(VERSION_00_LENGTH - 2), None | Some(b'-'))
        };
        let (trace, parent, flags) =
            (text.get(3..35)?, text.get(36..52)?, text.get(53..VERSION_00_LENGTH)?);
        let hyphens = [2, 35, 52].iter().all(|at| text.as_bytes()[*at] == b'-');
        let is_hex = |digits: &str| digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_nonzero = |digits: &str| digits.bytes().any(|b| b != b'0');
        let all_hex = [version, trace, parent, flags].into_iter().all(is_hex);
        if !(has_valid_end
            && hyphens
            && all_hex
            && version != "ff"
            && is_nonzero(trace)
            && is_nonzero(parent))
        {
            return None;
        }
        // A later version may define further flags; level 2 defines sampled and random trace id.
        let known = u8::from_str_radix(flags, 16).ok()? & 0b11;
        let parent = u64::from_str_radix(parent, 16).ok()?;
        Some(Trace { text: format!("00-{trace}-{:016x}-{known:02x}", span.max(1)), parent })
    }

    /// The trace id.
    pub fn trace_id(&self) -> &str {
        &self.text[3..35]
    }

    /// The gateway's span id.
    pub fn span_id(&self) -> &str {
        &self.text[36..52]
    }

    /// The client's span id.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// Whether the client samples this trace.
    pub fn is_sampled(&self) -> bool {
        self.text.ends_with(['1', '3'])
    }

    /// The value of `traceparent` for the API.
    pub fn field(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEPARENT_VALUE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn forwarded(fields: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(TRACEPARENT, HeaderValue::from_str(field).unwrap());
        }
        Trace::from_headers(&headers, 0xab).map(|trace| trace.text)
    }

    #[test]
    fn trace_id_is_kept_and_the_span_is_the_gateways() {
        let expected = "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ab-01";
        assert_eq!(forwarded(&[TRACEPARENT_VALUE]).as_deref(), Some(expected));
        let trace = Trace { text: expected.into(), parent: 0 };
        assert_eq!(
            (trace.trace_id(), trace.span_id()),
            ("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000ab")
        );
        // Known parts of later versions are read; unknown flags are removed.
        for later in [
            TRACEPARENT_VALUE.replacen("00", "cc", 1),
            format!("{}-what-comes", TRACEPARENT_VALUE.replacen("00", "01", 1)),
        ] {
            assert_eq!(forwarded(&[&later]).as_deref(), Some(expected), "{later}");
        }
        assert!(
            forwarded(&[&TRACEPARENT_VALUE.replace("-01", "-ff")])
                .is_some_and(|text| text.ends_with("-03"))
        );
    }

    #[test]
    fn invalid_traceparent_is_ignored() {
        let (no_trace, no_parent) = ("0".repeat(32), "0".repeat(16));
        let wrong = [
            String::new(),
            "00".into(),
            TRACEPARENT_VALUE.to_uppercase(),
            TRACEPARENT_VALUE.replacen("00", "ff", 1),
            format!("{TRACEPARENT_VALUE}-more"),
            format!("{TRACEPARENT_VALUE} "),
            format!("{}x", TRACEPARENT_VALUE.replacen("00", "01", 1)),
            TRACEPARENT_VALUE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &no_trace),
            TRACEPARENT_VALUE.replace("00f067aa0ba902b7", &no_parent),
            TRACEPARENT_VALUE.replace('-', "_"),
            TRACEPARENT_VALUE.replace("4bf", "4bg"),
            TRACEPARENT_VALUE[1..].into(),
        ];
        for wrong in wrong {
            assert_eq!(forwarded(&[wrong.trim_start()]), None, "{wrong:?}");
        }
        assert_eq!(
            forwarded(&[TRACEPARENT_VALUE, TRACEPARENT_VALUE]),
            None,
            "two fields are ambiguous"
        );
    }
}
