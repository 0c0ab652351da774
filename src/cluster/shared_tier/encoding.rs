//! The encoding of values of the shared tier: a response or an identity, when it was requested from
//! the API, and how much of the invalidation stream had been applied then. Decoding is strict: a
//! malformed value is a miss.
//!
//! Integers are little-endian, strings are prefixed with their length. Only gateways of one cluster
//! read and write these values, encrypted. A new format gets a new version, and gateways of
//! different versions do not share values.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use crate::api::{AccessLevel, EmployeeId, Identity};
use crate::cache::{Lifetime, Validators};
use crate::cluster::change_index::Position;
use crate::cluster::server_time::ServerTime;
use crate::cluster::stream_id::StreamId;
use crate::reply::ApiFields;

/// Version of both formats. It is part of the Redis key.
pub const VERSION: u8 = 2;

/// Limit of a duration: longer than any that can be configured or that the API can send.
const DURATION_MAX: Duration = Duration::from_secs(1 << 32);

/// When a value was requested from the API, and which changes had been applied then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub position: Position,
    /// Before the request was sent.
    pub requested_at: ServerTime,
}

/// A response as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    pub origin: Origin,
    pub initial_age: Duration,
    pub lifetime: Lifetime,
    pub status: StatusCode,
    pub content_type: HeaderValue,
    pub validators: Option<Box<Validators>>,
    pub fields: ApiFields,
    pub body: Bytes,
}

/// An identity as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredIdentity {
    pub origin: Origin,
    pub identity: Identity,
}

impl StoredResponse {
    pub fn to_bytes(&self) -> Vec<u8> {
        let StoredResponse {
            origin,
            initial_age,
            lifetime,
            status,
            content_type,
            validators,
            fields,
            body,
        } = self;
        let Lifetime { fresh, stale_while_revalidate, stale_if_error } = lifetime;
        let mut out = Vec::with_capacity(256 + body.len());
        put_origin(&mut out, origin);
        out.put_u64_le(to_millis(*initial_age));
        for duration in [fresh, stale_while_revalidate, stale_if_error] {
            out.put_u64_le(to_millis(*duration));
        }
        out.put_u16_le(status.as_u16());
        put_string(&mut out, content_type.as_bytes());
        let etag = validators.as_deref().and_then(|validators| validators.etag.as_ref());
        let last_modified = validators.as_deref().and_then(|of| of.last_modified.as_ref());
        for field in [etag, last_modified] {
            put_string(&mut out, field.map_or(b"", HeaderValue::as_bytes));
        }
        put_fields(&mut out, fields);
        out.put_slice(body);
        out
    }

    /// `None` if the value is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let origin = decode_origin(&mut rest)?;
        let initial_age = duration(&mut rest)?;
        let (fresh, stale_while_revalidate, stale_if_error) =
            (duration(&mut rest)?, duration(&mut rest)?, duration(&mut rest)?);
        let lifetime = Lifetime { fresh, stale_while_revalidate, stale_if_error };
        let status = StatusCode::from_u16(rest.try_get_u16_le().ok()?).ok()?;
        let content_type = decode_field(&mut rest)??;
        let (etag, last_modified) = (decode_field(&mut rest)?, decode_field(&mut rest)?);
        let validators = (etag.is_some() || last_modified.is_some())
            .then(|| Box::new(Validators { etag, last_modified }));
        let fields = decode_fields(&mut rest)?;
        let storable =
            matches!(status, StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::FORBIDDEN);
        let body = Bytes::copy_from_slice(rest);
        storable.then_some(StoredResponse {
            origin,
            initial_age,
            lifetime,
            status,
            content_type,
            validators,
            fields,
            body,
        })
    }
}

impl StoredIdentity {
    pub fn to_bytes(&self) -> Vec<u8> {
        let StoredIdentity { origin, identity: Identity { employee, level } } = self;
        let mut out = Vec::with_capacity(96);
        put_origin(&mut out, origin);
        put_string(&mut out, level.as_str().as_bytes());
        put_string(&mut out, employee.as_str().as_bytes());
        out
    }

    /// `None` if the value is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let origin = decode_origin(&mut rest)?;
        let level = std::str::from_utf8(string(&mut rest)?).ok()?.parse::<AccessLevel>().ok()?;
        let employee = EmployeeId::parse(std::str::from_utf8(string(&mut rest)?).ok()?)?;
        rest.is_empty().then_some(StoredIdentity { origin, identity: Identity { employee, level } })
    }
}

fn put_origin(out: &mut Vec<u8>, origin: &Origin) {
    let Origin { position: Position { epoch, at }, requested_at } = origin;
    out.put_u64_le(*epoch);
    out.put_u64_le(at.to_bits());
    out.put_u64_le(requested_at.0);
}

fn decode_origin(rest: &mut &[u8]) -> Option<Origin> {
    let (epoch, at) =
        (rest.try_get_u64_le().ok()?, StreamId::from_bits(rest.try_get_u64_le().ok()?));
    Some(Origin {
        position: Position { epoch, at },
        requested_at: ServerTime(rest.try_get_u64_le().ok()?),
    })
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    // A longer string is replaced by an empty one: a value without a content type is malformed.
    let string = if string.len() > usize::from(u16::MAX) { b"" } else { string };
    out.put_u16_le(string.len() as u16);
    out.put_slice(string);
}

/// The number of fields, then name and value of each.
fn put_fields(out: &mut Vec<u8>, fields: &ApiFields) {
    let fields: Vec<_> = fields.iter().take(usize::from(u16::MAX)).collect();
    out.put_u16_le(fields.len() as u16);
    for (name, value) in fields {
        put_string(out, name.as_str().as_bytes());
        put_string(out, value.as_bytes());
    }
}

fn decode_fields(rest: &mut &[u8]) -> Option<ApiFields> {
    let count = rest.try_get_u16_le().ok()?;
    let field = |_| {
        let name = HeaderName::from_bytes(string(rest)?).ok()?;
        Some((name, HeaderValue::from_bytes(string(rest)?).ok()?))
    };
    (0..count).map(field).collect::<Option<Vec<_>>>().map(ApiFields::from_iter)
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = rest.try_get_u16_le().ok()?;
    let (string, after) = rest.split_at_checked(length.into())?;
    *rest = after;
    Some(string)
}

/// A header value; an empty string is no field.
fn decode_field(rest: &mut &[u8]) -> Option<Option<HeaderValue>> {
    match string(rest)? {
        b"" => Some(None),
        value => HeaderValue::from_bytes(value).ok().map(Some),
    }
}

fn duration(rest: &mut &[u8]) -> Option<Duration> {
    Some(Duration::from_millis(rest.try_get_u64_le().ok()?))
        .filter(|duration| *duration <= DURATION_MAX)
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.min(DURATION_MAX).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn test_origin() -> Origin {
        let at = StreamId::parse("1732567890123-7").unwrap();
        Origin {
            position: Position { epoch: u64::MAX - 3, at },
            requested_at: ServerTime(1_732_567_890_456),
        }
    }

    fn response() -> StoredResponse {
        StoredResponse {
            origin: test_origin(),
            initial_age: Duration::from_secs(3),
            lifetime: Lifetime {
                fresh: Duration::from_millis(54_321),
                stale_while_revalidate: Duration::from_secs(30),
                stale_if_error: Duration::from_secs(300),
            },
            status: StatusCode::OK,
            content_type: HeaderValue::from_static("application/json; charset=utf-8"),
            validators: Some(Box::new(Validators {
                etag: Some(HeaderValue::from_static("\"v1\"")),
                last_modified: None,
            })),
            fields: ApiFields::from_iter(
                [("link", "</terms>"), ("link", ""), ("content-language", "da")].map(
                    |(name, value)| {
                        (HeaderName::from_static(name), HeaderValue::from_static(value))
                    },
                ),
            ),
            body: Bytes::from_static(b"{\"_id\":\"73469a52f4fd7f77ec7b28cc\"}"),
        }
    }

    fn identity() -> StoredIdentity {
        let employee = EmployeeId::parse("5f00000000000000000000aa").unwrap();
        StoredIdentity {
            origin: test_origin(),
            identity: Identity { employee, level: AccessLevel::ResellerAdmin },
        }
    }

    #[test]
    fn encoded_values_decode_to_themselves() {
        assert_eq!(StoredResponse::from_bytes(&response().to_bytes()), Some(response()));
        for status in [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN] {
            let stored =
                StoredResponse { status, validators: None, body: Bytes::new(), ..response() };
            assert_eq!(StoredResponse::from_bytes(&stored.to_bytes()).unwrap().status, status);
        }
        assert_eq!(StoredIdentity::from_bytes(&identity().to_bytes()), Some(identity()));
    }

    #[test]
    fn response_with_an_unstorable_status_is_malformed() {
        for status in
            [StatusCode::CREATED, StatusCode::UNAUTHORIZED, StatusCode::INTERNAL_SERVER_ERROR]
        {
            assert_eq!(
                StoredResponse::from_bytes(&StoredResponse { status, ..response() }.to_bytes()),
                None,
                "{status}"
            );
        }
    }

    #[test]
    fn truncated_or_extended_value_is_malformed() {
        let whole = response().to_bytes();
        // The body is the rest of the value, so only the part before it can be cut; encryption
        // protects the whole.
        let head = whole.len() - response().body.len();
        (0..head).for_each(|length| {
            assert_eq!(StoredResponse::from_bytes(&whole[..length]), None, "{length}")
        });
        let whole = identity().to_bytes();
        (0..whole.len()).for_each(|length| {
            assert_eq!(StoredIdentity::from_bytes(&whole[..length]), None, "{length}")
        });
        assert_eq!(StoredIdentity::from_bytes(&[whole.as_slice(), b"x"].concat()), None);
        assert_eq!(StoredIdentity::from_bytes(&response().to_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            at in 0..60_usize,
        ) {
            let _ = (StoredResponse::from_bytes(&bytes), StoredIdentity::from_bytes(&bytes));
            let mut whole = response().to_bytes();
            let length = bytes.len().min(whole.len() - at);
            whole[at..at + length].copy_from_slice(&bytes[..length]);
            let _ = StoredResponse::from_bytes(&whole);
        }
    }
}
