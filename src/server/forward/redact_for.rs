//! Redaction of a forwarded response: the rule, the access level, and the media type that the
//! response states.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, Response};

use crate::api::{AccessLevel, MediaType, MediaTypePattern};
use crate::config::ForwardRole;
use crate::offload;
use crate::redact::{Policy, Redacted, Refusal, redact_or_keep};
use crate::reply::{is_for_shared_caches, private_cache_control, vary_on_credentials};

/// A rule of `[[forward.redact]]`, as it applies to one request.
pub struct RedactRule {
    pub role: ForwardRole,
    pub policy: Arc<Policy>,
    pub pass_types: Arc<[MediaTypePattern]>,
}

/// Redaction of the response to a forwarded request.
#[derive(Clone)]
pub struct RedactFor {
    pub policy: Arc<Policy>,
    /// Access level of the caller; `None`: the level that the response itself states.
    pub level: Option<AccessLevel>,
    pub pass_types: Arc<[MediaTypePattern]>,
}

impl RedactFor {
    /// Returns the redaction for a caller of `level`; `None` if the caller may see everything.
    pub fn new(rule: RedactRule, level: Option<AccessLevel>) -> Option<Self> {
        let RedactRule { role, policy, pass_types } = rule;
        let level = if role == ForwardRole::Answer { None } else { level };
        let reveals = level.is_some_and(|level| policy.reveals_to(level));
        (!reveals).then_some(RedactFor { policy, level, pass_types })
    }

    /// Media types that pass without redaction.
    pub fn pass_types(&self) -> &[MediaTypePattern] {
        &self.pass_types
    }

    pub const fn role(&self) -> &'static str {
        match self.level {
            Some(level) => level.as_str(),
            None => "answer",
        }
    }

    pub async fn redact(&self, body: Bytes) -> Result<Redacted, Refusal> {
        let (policy, level) = (self.policy.clone(), self.level);
        offload::run(body.len(), move || redact_or_keep(&policy, level, body)).await
    }

    /// Returns the class of the body that the API's head states.
    pub fn content(&self, head: &HeaderMap) -> Content {
        let mut types =
            head.get_all(CONTENT_TYPE).iter().map(|value| MediaType::parse(value.as_bytes()));
        match (types.next(), types.next()) {
            (None, _) => Content::Untyped,
            (Some(Some(one)), None) if one.is_json() => Content::Json,
            (Some(Some(one)), None)
                if self.pass_types.iter().any(|pattern| pattern.matches(&one)) =>
            {
                Content::Passing { streams: one.is_event_stream() }
            }
            (Some(Some(one)), None) if one.is_event_stream() => Content::EventStream,
            // Several or malformed types: the body decides.
            _ => Content::Other,
        }
    }
}

/// Class of a response body, by the media type that its head states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Json,
    /// Of a listed type: passes unless the body is JSON. `streams`: the head does not wait for the
    /// body.
    Passing {
        streams: bool,
    },
    /// An event stream that is not listed. Its first byte may never arrive.
    EventStream,
    Untyped,
    Other,
}

/// Whether a media type is JSON or has a `+json` suffix.
pub fn is_json(content_type: &[u8]) -> bool {
    let first = content_type.split(|&byte| byte == b',').next().unwrap_or_default();
    MediaType::parse(first).is_some_and(|media_type| media_type.is_json())
}

/// Makes a response private to its caller, because it depends on the access level.
pub fn restrict_caching(response: &mut Response<()>) {
    let fields = response.headers_mut();
    let names: Vec<HeaderName> =
        fields.keys().filter(|name| is_for_shared_caches(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
    fields.insert(CACHE_CONTROL, private_cache_control(fields));
    fields.insert(VARY, vary_on_credentials(fields));
}
