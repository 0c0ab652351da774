//! What a value of the shared tier says, in bytes: an answer or an identity, when the API was asked for it, and how much of
//! the stream of changes had been obeyed then. Read strictly: whatever is odd is no value.
//!
//! Numbers are little-endian, texts have their length in front. It is written and read by gateways of one fleet alone, and
//! sealed; a new form gets a new number, and until every gateway knows it, they do without each other's values.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::ledger::{Position, StreamId};
use crate::api::{AccessLevel, EmployeeId, Identity};
use crate::cache::{Lifetime, Validators};
use crate::reply::ApiFields;

/// Of both forms; a part of the name and of the seal.
pub const VERSION: u8 = 2;

/// Longer than any time that may be configured or said; what is longer is odd.
const LONGEST: Duration = Duration::from_secs(1 << 32);

/// Milliseconds of the server's clock, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerTime(pub u64);

impl ServerTime {
    /// How long ago `earlier` was, at least: both are cut to milliseconds. `None`: it is yet to come, so a clock was set
    /// back and nothing can be said.
    pub fn since(self, earlier: ServerTime) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(|since| Duration::from_millis(since.saturating_add(1)))
    }
}

/// When the API was asked, and what was known then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub position: Position,
    /// Before it was asked.
    pub asked_at: ServerTime,
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    pub origin: Origin,
    pub initial_age: Duration,
    pub lifetime: Lifetime,
    pub status: StatusCode,
    pub content_type: HeaderValue,
    pub validators: Option<Box<Validators>>,
    pub fields: ApiFields,
    pub body: Bytes,
}

/// A stored identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredIdentity {
    pub origin: Origin,
    pub identity: Identity,
}

impl StoredAnswer {
    pub fn to_bytes(&self) -> Vec<u8> {
        let StoredAnswer { origin, initial_age, lifetime, status, content_type, validators, fields: kept, body } = self;
        let Lifetime { fresh, stale_while_revalidate, stale_if_error } = lifetime;
        let mut out = Vec::with_capacity(256 + body.len());
        put_origin(&mut out, origin);
        out.put_u64_le(to_millis(*initial_age));
        [fresh, stale_while_revalidate, stale_if_error].into_iter().for_each(|time| out.put_u64_le(to_millis(*time)));
        out.put_u16_le(status.as_u16());
        put_text(&mut out, content_type.as_bytes());
        let fields =
            validators.as_deref().map(|Validators { etag, last_modified }| (etag.as_ref(), last_modified.as_ref()));
        let (etag, last_modified) = fields.unwrap_or_default();
        [etag, last_modified]
            .into_iter()
            .for_each(|field| put_text(&mut out, field.map_or(b"", HeaderValue::as_bytes)));
        put_fields(&mut out, kept);
        out.put_slice(body);
        out
    }

    /// `None`: it is odd in some way.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let origin = origin(&mut rest)?;
        let initial_age = time(&mut rest)?;
        let (fresh, stale_while_revalidate, stale_if_error) = (time(&mut rest)?, time(&mut rest)?, time(&mut rest)?);
        let lifetime = Lifetime { fresh, stale_while_revalidate, stale_if_error };
        let status = StatusCode::from_u16(rest.try_get_u16_le().ok()?).ok()?;
        let content_type = field(&mut rest)??;
        let (etag, last_modified) = (field(&mut rest)?, field(&mut rest)?);
        let validators =
            (etag.is_some() || last_modified.is_some()).then(|| Box::new(Validators { etag, last_modified }));
        let kept = fields(&mut rest)?;
        let storable = matches!(status, StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::FORBIDDEN);
        let body = Bytes::copy_from_slice(rest);
        storable.then_some(StoredAnswer {
            origin,
            initial_age,
            lifetime,
            status,
            content_type,
            validators,
            fields: kept,
            body,
        })
    }
}

impl StoredIdentity {
    pub fn to_bytes(&self) -> Vec<u8> {
        let StoredIdentity { origin, identity: Identity { employee, level } } = self;
        let mut out = Vec::with_capacity(96);
        put_origin(&mut out, origin);
        put_text(&mut out, level.as_str().as_bytes());
        put_text(&mut out, employee.as_str().as_bytes());
        out
    }

    /// `None`: it is odd in some way.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let origin = origin(&mut rest)?;
        let level = std::str::from_utf8(text(&mut rest)?).ok()?.parse::<AccessLevel>().ok()?;
        let employee = EmployeeId::parse(std::str::from_utf8(text(&mut rest)?).ok()?)?;
        rest.is_empty().then_some(StoredIdentity { origin, identity: Identity { employee, level } })
    }
}

fn put_origin(out: &mut Vec<u8>, origin: &Origin) {
    let Origin { position: Position { epoch, at }, asked_at } = origin;
    out.put_u64_le(*epoch);
    out.put_u64_le(at.to_bits());
    out.put_u64_le(asked_at.0);
}

fn origin(rest: &mut &[u8]) -> Option<Origin> {
    let (epoch, at) = (rest.try_get_u64_le().ok()?, StreamId::from_bits(rest.try_get_u64_le().ok()?));
    Some(Origin { position: Position { epoch, at }, asked_at: ServerTime(rest.try_get_u64_le().ok()?) })
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    // Longer ones cannot be told from their length and are left out: a value without a content type is not read.
    let text = if text.len() > usize::from(u16::MAX) { b"" } else { text };
    out.put_u16_le(text.len() as u16);
    out.put_slice(text);
}

/// Their number, then name and value of each.
fn put_fields(out: &mut Vec<u8>, fields: &ApiFields) {
    let fields: Vec<_> = fields.iter().take(usize::from(u16::MAX)).collect();
    out.put_u16_le(fields.len() as u16);
    for (name, value) in fields {
        put_text(out, name.as_str().as_bytes());
        put_text(out, value.as_bytes());
    }
}

fn fields(rest: &mut &[u8]) -> Option<ApiFields> {
    let count = rest.try_get_u16_le().ok()?;
    let field = |_| {
        let name = HeaderName::from_bytes(text(rest)?).ok()?;
        Some((name, HeaderValue::from_bytes(text(rest)?).ok()?))
    };
    (0..count).map(field).collect::<Option<Vec<_>>>().map(ApiFields::from_iter)
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = rest.try_get_u16_le().ok()?;
    let (text, after) = rest.split_at_checked(length.into())?;
    *rest = after;
    Some(text)
}

/// An empty text is no field.
fn field(rest: &mut &[u8]) -> Option<Option<HeaderValue>> {
    match text(rest)? {
        b"" => Some(None),
        value => HeaderValue::from_bytes(value).ok().map(Some),
    }
}

fn time(rest: &mut &[u8]) -> Option<Duration> {
    Some(Duration::from_millis(rest.try_get_u64_le().ok()?)).filter(|time| *time <= LONGEST)
}

fn to_millis(time: Duration) -> u64 {
    u64::try_from(time.min(LONGEST).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_origin() -> Origin {
        let at = StreamId::parse("1732567890123-7").unwrap();
        Origin { position: Position { epoch: u64::MAX - 3, at }, asked_at: ServerTime(1_732_567_890_456) }
    }

    fn answer() -> StoredAnswer {
        StoredAnswer {
            origin: some_origin(),
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
                [("link", "</terms>"), ("link", ""), ("content-language", "da")]
                    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
            ),
            body: Bytes::from_static(b"{\"_id\":\"73469a52f4fd7f77ec7b28cc\"}"),
        }
    }

    fn identity() -> StoredIdentity {
        let employee = EmployeeId::parse("5f00000000000000000000aa").unwrap();
        StoredIdentity { origin: some_origin(), identity: Identity { employee, level: AccessLevel::ResellerAdmin } }
    }

    #[test]
    fn what_was_written_is_read_again() {
        assert_eq!(StoredAnswer::from_bytes(&answer().to_bytes()), Some(answer()));
        for status in [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN] {
            let plain = StoredAnswer { status, validators: None, body: Bytes::new(), ..answer() };
            assert_eq!(StoredAnswer::from_bytes(&plain.to_bytes()).unwrap().status, status);
        }
        assert_eq!(StoredIdentity::from_bytes(&identity().to_bytes()), Some(identity()));
    }

    #[test]
    fn a_status_that_is_never_stored_is_not_read() {
        for status in [StatusCode::CREATED, StatusCode::UNAUTHORIZED, StatusCode::INTERNAL_SERVER_ERROR] {
            assert_eq!(StoredAnswer::from_bytes(&StoredAnswer { status, ..answer() }.to_bytes()), None, "{status}");
        }
    }

    #[test]
    fn what_is_cut_or_too_long_is_not_read() {
        let whole = answer().to_bytes();
        // The body is what is left, so only what stands before it has an end; the seal holds the whole.
        let head = whole.len() - answer().body.len();
        (0..head).for_each(|length| assert_eq!(StoredAnswer::from_bytes(&whole[..length]), None, "{length}"));
        let whole = identity().to_bytes();
        (0..whole.len()).for_each(|length| assert_eq!(StoredIdentity::from_bytes(&whole[..length]), None, "{length}"));
        assert_eq!(StoredIdentity::from_bytes(&[whole.as_slice(), b"x"].concat()), None);
        assert_eq!(StoredIdentity::from_bytes(&answer().to_bytes()), None);
    }

    #[test]
    fn a_clock_that_was_set_back_says_nothing() {
        assert_eq!(ServerTime(5).since(ServerTime(5)), Some(Duration::from_millis(1)));
        assert_eq!(ServerTime(4).since(ServerTime(5)), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0..60_usize) {
            let _ = (StoredAnswer::from_bytes(&bytes), StoredIdentity::from_bytes(&bytes));
            let mut whole = answer().to_bytes();
            let length = bytes.len().min(whole.len() - at);
            whole[at..at + length].copy_from_slice(&bytes[..length]);
            let _ = StoredAnswer::from_bytes(&whole);
        }
    }
}
