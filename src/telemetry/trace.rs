//! The caller's place in a distributed trace (W3C Trace Context, level 2).
//!
//! A `traceparent` that is one is logged, and goes on to the API with a forwarded request, with the gateway's own span in the
//! place of the caller's. What is no `traceparent` is dropped, its `tracestate` with it. Requests of the gateway's own carry
//! none: their answers may be stored, and several callers may wait for one of them.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of version 00: `00-` and 32, 16 and 2 hexadecimal digits with hyphens between them.
const LENGTH: usize = 55;

/// A request's place in a trace, as text that can be logged: hexadecimal digits alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// `00-`, the trace, the gateway's own span, the flags.
    text: String,
    /// The caller's span.
    parent: u64,
}

impl Trace {
    /// What the caller sent, with `span` for this request. `None`: nothing, or nothing that is one.
    pub fn continued(headers: &HeaderMap, span: u64) -> Option<Self> {
        let mut fields = headers.get_all(TRACEPARENT).iter();
        let (field, None) = (fields.next()?, fields.next()) else { return None };
        Self::parse(field.as_bytes(), span)
    }

    /// Parses the value of the only `traceparent` field.
    pub fn parse(field: &[u8], span: u64) -> Option<Self> {
        let text = std::str::from_utf8(field).ok().filter(|text| text.is_ascii())?;
        let (version, rest) = (text.get(..2)?, text.get(2..)?);
        // A later version may say more after a hyphen; what it says of these is the same.
        let ends = if version == "00" {
            text.len() == LENGTH
        } else {
            matches!(rest.as_bytes().get(LENGTH - 2), None | Some(b'-'))
        };
        let (trace, parent, flags) = (text.get(3..35)?, text.get(36..52)?, text.get(53..LENGTH)?);
        let hyphens = [2, 35, 52].iter().all(|at| text.as_bytes()[*at] == b'-');
        let hex = |digits: &str| digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let some = |digits: &str| digits.bytes().any(|b| b != b'0');
        let all_hex = [version, trace, parent, flags].into_iter().all(hex);
        if !(ends && hyphens && all_hex && version != "ff" && some(trace) && some(parent)) {
            return None;
        }
        // Of the flags a later version may have more; these two are known: sampled, and a random trace id.
        let known = u8::from_str_radix(flags, 16).ok()? & 0b11;
        let parent = u64::from_str_radix(parent, 16).ok()?;
        Some(Trace { text: format!("00-{trace}-{:016x}-{known:02x}", span.max(1)), parent })
    }

    /// The trace's id.
    pub fn trace_id(&self) -> &str {
        &self.text[3..35]
    }

    /// The id of the gateway's own span.
    pub fn span_id(&self) -> &str {
        &self.text[36..52]
    }

    /// The id of the caller's span.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// Whether the caller says that this trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.text.ends_with(['1', '3'])
    }

    /// For the API.
    pub fn field(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn continued(fields: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(TRACEPARENT, HeaderValue::from_str(field).unwrap());
        }
        Trace::continued(&headers, 0xab).map(|trace| trace.text)
    }

    #[test]
    fn the_trace_stays_and_the_span_is_our_own() {
        let ours = "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ab-01";
        assert_eq!(continued(&[GIVEN]).as_deref(), Some(ours));
        let trace = Trace { text: ours.into(), parent: 0 };
        assert_eq!((trace.trace_id(), trace.span_id()), ("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000ab"));
        // Later versions are read as far as they are known, and unknown flags are not passed on.
        for later in [GIVEN.replacen("00", "cc", 1), format!("{}-what-comes", GIVEN.replacen("00", "01", 1))] {
            assert_eq!(continued(&[&later]).as_deref(), Some(ours), "{later}");
        }
        assert!(continued(&[&GIVEN.replace("-01", "-ff")]).is_some_and(|text| text.ends_with("-03")));
    }

    #[test]
    fn what_is_none_is_none() {
        let (no_trace, no_parent) = ("0".repeat(32), "0".repeat(16));
        let wrong = [
            String::new(),
            "00".into(),
            GIVEN.to_uppercase(),
            GIVEN.replacen("00", "ff", 1),
            format!("{GIVEN}-more"),
            format!("{GIVEN} "),
            format!("{}x", GIVEN.replacen("00", "01", 1)),
            GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &no_trace),
            GIVEN.replace("00f067aa0ba902b7", &no_parent),
            GIVEN.replace('-', "_"),
            GIVEN.replace("4bf", "4bg"),
            GIVEN[1..].into(),
        ];
        for wrong in wrong {
            assert_eq!(continued(&[wrong.trim_start()]), None, "{wrong:?}");
        }
        assert_eq!(continued(&[GIVEN, GIVEN]), None, "two say nothing");
    }
}
