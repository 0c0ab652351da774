//! What the redaction of a forwarded response depends on: the rule, the access level, and what the
//! response claims to be.

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

/// What the response to a forwarded request must go through.
#[derive(Clone)]
pub struct Veil {
    pub(super) policy: Arc<Policy>,
    /// `None`: the level that the response itself states.
    pub(super) level: Option<AccessLevel>,
    pub(super) pass_types: Arc<[MediaTypePattern]>,
}

impl Veil {
    /// `level`: the caller's. `None`: it may see everything.
    pub fn new(rule: RedactRule, level: Option<AccessLevel>) -> Option<Self> {
        let RedactRule { role, policy, pass_types } = rule;
        let level = if role == ForwardRole::Answer { None } else { level };
        let reveals = level.is_some_and(|level| policy.reveals_to(level));
        (!reveals).then_some(Veil { policy, level, pass_types })
    }

    /// Media types that pass without redaction.
    pub(super) fn pass_types(&self) -> &[MediaTypePattern] {
        &self.pass_types
    }

    pub(super) const fn role(&self) -> &'static str {
        match self.level {
            Some(level) => level.as_str(),
            None => "answer",
        }
    }

    pub(super) async fn redact(&self, body: Bytes) -> Result<Redacted, Refusal> {
        let (policy, level) = (self.policy.clone(), self.level);
        offload::run(body.len(), move || redact_or_keep(&policy, level, body)).await
    }

    /// What the API's head says of the body.
    pub(super) fn content(&self, head: &HeaderMap) -> Content {
        let mut types = head.get_all(CONTENT_TYPE).iter().map(|value| MediaType::parse(value.as_bytes()));
        match (types.next(), types.next()) {
            (None, _) => Content::Untyped,
            (Some(Some(one)), None) if one.is_json() => Content::Json,
            (Some(Some(one)), None) if self.pass_types.iter().any(|pattern| pattern.matches(&one)) => {
                Content::Passing { streams: one.is_event_stream() }
            }
            (Some(Some(one)), None) if one.is_event_stream() => Content::EventStream,
            // Several types, or none that can be read: the body itself decides, or nothing passes.
            _ => Content::Other,
        }
    }
}

/// What a response claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Json,
    /// It passes unless it turns out to be JSON. `streams`: its head does not wait for its body.
    Passing {
        streams: bool,
    },
    /// Events, which do not pass, and whose first byte may never come.
    EventStream,
    Untyped,
    Other,
}

/// Whether a media type is JSON or one of its relatives.
pub(super) fn is_json(content_type: &[u8]) -> bool {
    let first = content_type.split(|&byte| byte == b',').next().unwrap_or_default();
    MediaType::parse(first).is_some_and(|media_type| media_type.is_json())
}

/// Makes a response private to its caller: it depends on the access level.
pub(super) fn restrict_caching(response: &mut Response<()>) {
    let fields = response.headers_mut();
    let names: Vec<HeaderName> = fields.keys().filter(|name| is_for_shared_caches(name)).cloned().collect();
    for name in names {
        fields.remove(name);
    }
    fields.insert(CACHE_CONTROL, private_cache_control(fields));
    fields.insert(VARY, vary_on_credentials(fields));
}
