//! Responses of the intercepted route, ready to be written: representations with their validators,
//! and the fields around them. No I/O and no clock.
//!
//! Whatever can be computed when a response is stored is computed then; a hit formats only `Age`
//! and the `ttl` of `Cache-Status`.

mod api_cors;
mod api_fields;
mod cache_status;
mod caching;
mod conditional;
mod cors;
mod value;

use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::StatusCode;
use http::header::{
    AGE, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
    RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};

pub use api_cors::ApiCors;
use api_cors::is_for_one_origin;
pub use api_fields::{ApiFields, FieldFilter};
pub use cache_status::{CacheStatus, ForwardReason};
pub use caching::{is_for_shared_caches, private_cache_control, vary_on_credentials};
pub use conditional::{if_none_match, matches_etag};
pub use cors::{Cors, Preflight, is_preflight, origin_in, origin_of, requested_fields};
pub use value::Value;

use redact::Redacted;
use telecomx_api::ApiError;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
static JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
/// The client may keep the response, and revalidates it before each use.
static PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");
static VARY_ON_CREDENTIALS: HeaderValue =
    HeaderValue::from_static("Authorization, X-API-Key, Cookie");
static VARY_WITH_ORIGIN: HeaderValue =
    HeaderValue::from_static("Authorization, X-API-Key, Cookie, Origin");
const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A strong validator: 32 hexadecimal digits in quotes.
pub type ETag = [u8; 34];

/// A redacted response of the API: status, content type, validator and body. Clones share memory.
///
/// One allocation, since each entry has one: status (two bytes), validator, length of the type (two
/// bytes), type (empty for JSON), body.
#[derive(Clone, PartialEq, Eq)]
pub struct Representation(Arc<[u8]>);

/// A reference that does not keep a [`Representation`] in memory.
pub type WeakRepresentation = Weak<[u8]>;

const TAG_AT: usize = 2;
const TYPE_AT: usize = TAG_AT + size_of::<ETag>() + 2;

impl Representation {
    /// `own_type`: the API's `Content-Type`, if the caller may see the API's bytes; `None` for JSON
    /// that was redacted.
    pub fn new(status: StatusCode, own_type: Option<&HeaderValue>, redacted: Redacted) -> Self {
        Representation::with_body(status, own_type, &redacted.into_bytes())
    }

    /// An error of the gateway's with a status of the API. `body`: JSON.
    pub fn error(status: StatusCode, body: &str) -> Self {
        Representation::with_body(status, None, body.as_bytes())
    }

    /// A response without a body.
    pub fn empty(status: StatusCode) -> Self {
        Representation::with_body(status, None, &[])
    }

    fn with_body(status: StatusCode, own_type: Option<&HeaderValue>, body: &[u8]) -> Self {
        let own_type = own_type.map_or(&[][..], HeaderValue::as_bytes);
        // A longer value is not a media type.
        let (own_type, length) =
            u16::try_from(own_type.len()).map_or((&[][..], 0), |length| (own_type, length));
        let mut whole = Vec::with_capacity(TYPE_AT + own_type.len() + body.len());
        whole.extend_from_slice(&status.as_u16().to_le_bytes());
        whole.push(b'"');
        // The first half of the digest.
        whole.extend_from_slice(&blake3::hash(body).to_hex().as_bytes()[..32]);
        whole.push(b'"');
        whole.extend_from_slice(&length.to_le_bytes());
        whole.extend_from_slice(own_type);
        whole.extend_from_slice(body);
        Representation(whole.into())
    }

    pub fn body(&self) -> &[u8] {
        &self.0[TYPE_AT + self.type_length()..]
    }

    pub fn content_type(&self) -> &[u8] {
        match &self.0[TYPE_AT..][..self.type_length()] {
            [] => JSON.as_bytes(),
            own_type => own_type,
        }
    }

    /// The API's status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(u16::from_le_bytes([self.0[0], self.0[1]]))
            .unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// Strong validator of the body, quotes included.
    pub fn etag(&self) -> &ETag {
        self.0[TAG_AT..].first_chunk().expect("with_body writes the tag")
    }

    /// Number of strong references.
    pub fn reference_count(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    pub fn downgrade(&self) -> WeakRepresentation {
        Arc::downgrade(&self.0)
    }

    /// Returns the representation, if it is still in memory.
    pub fn upgrade(weak: &WeakRepresentation) -> Option<Self> {
        weak.upgrade().map(Representation)
    }

    /// Whether both refer to the same memory.
    pub fn is_same_as(&self, other: &WeakRepresentation) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0), other.as_ptr())
    }

    fn type_length(&self) -> usize {
        usize::from(u16::from_le_bytes([self.0[TYPE_AT - 2], self.0[TYPE_AT - 1]]))
    }
}

/// Body of a representation as an owner of [`Bytes`].
struct Body(Representation);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        self.0.body()
    }
}

/// A response of the intercepted route.
pub struct Reply {
    pub content: Content,
    /// `Cache-Status`, if the cache was used.
    pub cache_status: Option<CacheStatus>,
    /// `Age` in seconds, if the response is the API's.
    pub age: Option<u64>,
    /// Fields of the API that are stored with the response.
    pub api_fields: ApiFields,
    /// Fields of the API that pass with this exchange only.
    pub exchange_fields: ApiFields,
}

/// Content of a reply.
pub enum Content {
    Whole(Representation),
    /// The client has this representation already.
    NotModified(Representation),
    Error(ApiError),
    /// Response to a CORS preflight.
    Preflight(Preflight),
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        Reply::without_cache(Content::Error(error))
    }
}

impl From<Preflight> for Reply {
    fn from(preflight: Preflight) -> Self {
        Reply::without_cache(Content::Preflight(preflight))
    }
}

impl Reply {
    const fn without_cache(content: Content) -> Self {
        let (api_fields, exchange_fields) = (ApiFields::NONE, ApiFields::NONE);
        Reply { content, cache_status: None, age: None, api_fields, exchange_fields }
    }

    pub fn status(&self) -> StatusCode {
        match &self.content {
            Content::Whole(representation) => representation.status(),
            Content::NotModified(_) => StatusCode::NOT_MODIFIED,
            Content::Error(error) => error.status(),
            Content::Preflight(_) => StatusCode::NO_CONTENT,
        }
    }

    /// The gateway's error, if the reply is one.
    pub fn error(&self) -> Option<ApiError> {
        match self.content {
            Content::Error(error) => Some(error),
            _ => None,
        }
    }

    /// Body of the response to GET. A response to HEAD has its length only. An error contains the
    /// request id.
    pub fn body(&self, request_id: &str) -> Bytes {
        match &self.content {
            Content::Whole(representation) => Bytes::from_owner(Body(representation.clone())),
            Content::Error(error) => error.body(request_id).into(),
            Content::NotModified(_) | Content::Preflight(_) => Bytes::new(),
        }
    }

    /// Body of a stored representation; empty for other content.
    pub fn stored_body(&self) -> &[u8] {
        match &self.content {
            Content::Whole(representation) => representation.body(),
            Content::NotModified(_) | Content::Error(_) | Content::Preflight(_) => &[],
        }
    }

    /// Passes every field of the response except `X-Request-Id` to `put`, in order. A field of the
    /// API may occur several times. `cors`: the CORS fields for `origin`, that of the request.
    pub fn fields(
        &self,
        cors: &Cors,
        origin: Option<&HeaderValue>,
        request_id: &str,
        mut put: impl FnMut(&HeaderName, Value<'_>),
    ) {
        match &self.content {
            // No content, and therefore no length (RFC 9110 section 8.6).
            Content::Whole(representation) if representation.status() == StatusCode::NO_CONTENT => {
            }
            Content::Whole(representation) => {
                let status = representation.status();
                let may_be_empty =
                    status.is_redirection() || (status.is_success() && status != StatusCode::OK);
                if !(may_be_empty && representation.body().is_empty()) {
                    put(
                        &CONTENT_TYPE,
                        match representation.content_type() {
                            _ if representation.type_length() == 0 => Value::Ready(&JSON),
                            own_type => Value::Bytes(own_type),
                        },
                    );
                }
                put(&CONTENT_LENGTH, Value::Number(representation.body().len() as u64));
                if representation.status() == StatusCode::OK {
                    put(&ETAG, Value::Tag(representation.etag()));
                }
            }
            Content::NotModified(representation) => put(&ETAG, Value::Tag(representation.etag())),
            Content::Error(error) => {
                put(&CONTENT_TYPE, Value::Ready(&JSON));
                put(&CONTENT_LENGTH, Value::Number(error.body(request_id).len() as u64));
                if let Some(retry_after) =
                    error.retry_after().filter(|_| !self.exchange_fields.contains(&RETRY_AFTER))
                {
                    put(&RETRY_AFTER, Value::Bytes(retry_after.to_string().as_bytes()));
                }
                match error.status() {
                    // The API's field is not changed (RFC 9110 section 11.6.1).
                    StatusCode::UNAUTHORIZED
                        if self.exchange_fields.contains(&WWW_AUTHENTICATE) => {}
                    StatusCode::UNAUTHORIZED => put(&WWW_AUTHENTICATE, Value::Text("Bearer")),
                    StatusCode::METHOD_NOT_ALLOWED => put(&ALLOW, Value::Text(ALLOWED)),
                    _ => {}
                }
            }
            Content::Preflight(_) => {}
        }
        if let Some(age) = self.age {
            put(&AGE, Value::Number(age));
        }
        if let Some(status) = self.cache_status {
            put(&CACHE_STATUS, Value::Status(status));
        }
        for (name, value) in self.api_fields.iter().chain(self.exchange_fields.iter()) {
            put(name, Value::Ready(value));
        }
        put(&CACHE_CONTROL, Value::Ready(&PRIVATE));
        if let Some(origin) = origin
            && !cors.is_on()
        {
            return self.api_cors_fields(cors, origin, put);
        }
        put(&VARY, cors.vary(matches!(self.content, Content::Preflight(_))));
        match &self.content {
            Content::Preflight(preflight) => cors.preflight_fields(preflight, origin, &mut put),
            _ => cors.response_fields(origin, &mut put),
        }
    }

    /// `Vary` and, for an error of the gateway's, the API's CORS fields. Not inlined: few responses
    /// need it, and each instruction of [`Reply::fields`] counts for a hit.
    #[inline(never)]
    fn api_cors_fields(
        &self,
        cors: &Cors,
        origin: &HeaderValue,
        mut put: impl FnMut(&HeaderName, Value<'_>),
    ) {
        let learned = match self.content {
            Content::Error(_) => cors.api_fields(origin),
            _ => ApiFields::NONE,
        };
        for (name, value) in learned.iter() {
            put(name, Value::Ready(value));
        }
        let varies_on_origin = is_for_one_origin(&self.api_fields) || is_for_one_origin(&learned);
        let vary = if varies_on_origin { &VARY_WITH_ORIGIN } else { &VARY_ON_CREDENTIALS };
        put(&VARY, Value::Ready(vary));
    }
}
