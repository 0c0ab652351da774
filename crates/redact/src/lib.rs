//! Redaction of the API's JSON documents by access level. Performs no input or output.
//!
//! A level at or above `reveal_to` gets the API's own bytes. A lower level gets the document
//! without secrets: below a root every scalar that no public selector names, elsewhere every member
//! with a secret name. A document that cannot be parsed with certainty is refused, because it could
//! hide a secret. The crate does not know where a document came from, how long it is or who waits
//! for it. Member names are assumed to be public.
//!
//! Only [`redact`], [`redact_or_keep`] and [`redact_by_own_level`] create a [`Redacted`], the only
//! type that can be stored or sent.

mod change_entries;
mod members;
mod names;
mod policy;
mod reader;
mod refusal;
mod rewrite;
mod selectors;
mod splice;
mod text;

use std::fmt;

use bytes::Bytes;

use reader::{Reader, Value};
use telecomx_api::AccessLevel;

pub use policy::{Policy, Rule, RuleError, Rules};
pub use reader::{MAX_DEPTH, MAX_NESTING};
pub use refusal::{Reason, Refusal};

/// Replacement of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The member is removed.
    Remove,
    /// The member's value becomes `null`.
    Null,
    /// A string becomes `"***"`, anything else `null`.
    Mask,
}

impl Action {
    /// The value of the configuration key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Remove => "remove",
            Action::Null => "null",
            Action::Mask => "mask",
        }
    }
}

/// Type of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON object.
    Object,
    /// A JSON array or scalar.
    OtherJson,
    /// Not JSON, and therefore never sent to a lower level. Text that looks like JSON is included:
    /// an object with a duplicate name is enough.
    NotJson,
}

/// A document that its recipient may see in full.
#[derive(Clone)]
pub struct Redacted {
    bytes: Bytes,
    kind: Kind,
    removed: bool,
}

impl Redacted {
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a value of the document was removed or replaced.
    pub fn has_removed(&self) -> bool {
        self.removed
    }
}

impl fmt::Debug for Redacted {
    /// Shows no content: the recipient may see it, readers of logs may not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redacted({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

/// Returns what an access level may see of the document.
///
/// From `reveal_to` upwards, the document's own bytes, whatever they are; never a refusal. Below
/// it, the remaining text keeps its order and spelling; white space between tokens is removed. In
/// detail:
///
/// - A *root* is a member whose name folds to the name of a root, or is a path through one. A root
///   within a root is an ordinary member.
/// - Below a root a scalar remains if a public selector names its path; arrays are transparent.
///   `secret_names` do not apply there.
/// - Elsewhere a member with a secret name is removed as a whole, even if it is also a root.
/// - A container that redaction emptied is removed; one that arrived empty remains, and so does the
///   document itself.
/// - A container deeper than [`MAX_DEPTH`] is removed like a secret.
/// - If the policy hides changes, strings that name a root are removed, and so are the sides of a
///   change in every object that mentions a root; see `change_entries.rs`.
///
/// Redaction is idempotent. The caller bounds the size of the document: memory is at most about ten
/// times its length (for an object of short names only), time is its length, times the logarithm of
/// the number of members for objects of more than 16. Output may be longer than the document if the
/// action is `null` or `mask`, at most three times as long.
pub fn redact(policy: &Policy, level: AccessLevel, document: Bytes) -> Result<Redacted, Refusal> {
    if policy.reveals_to(level) {
        let kind = kind_of(&document);
        return Ok(Redacted { bytes: document, kind, removed: false });
    }
    let (out, kind, removed) = rewrite::rewrite(policy, &document)?;
    // A cache that counts bytes must not hold spare capacity.
    Ok(Redacted { bytes: Bytes::from(out.into_boxed_slice()), kind, removed })
}

/// Like [`redact`] or, without a level, [`redact_by_own_level`]; but a document from which nothing
/// is removed keeps its bytes, white space included.
pub fn redact_or_keep(
    policy: &Policy,
    level: Option<AccessLevel>,
    document: Bytes,
) -> Result<Redacted, Refusal> {
    let redacted = match level {
        Some(level) => redact(policy, level, document.clone()),
        None => redact_by_own_level(policy, document.clone()),
    }?;
    Ok(if redacted.removed { redacted } else { Redacted { bytes: document, ..redacted } })
}

/// Like [`redact`], for the level that the document states in its top-level member `accessLevel`;
/// the lowest level if that member is missing, duplicated, not a string or unknown.
///
/// For responses that state the caller's own access level, such as that of a login.
pub fn redact_by_own_level(policy: &Policy, document: Bytes) -> Result<Redacted, Refusal> {
    // A refused document states no level, and is refused again below.
    let level = stated_level(&document).ok().flatten().unwrap_or(AccessLevel::LOWEST);
    redact(policy, level, document)
}

fn kind_of(document: &[u8]) -> Kind {
    let read = || -> Result<Kind, Refusal> {
        let mut reader = Reader::new(document)?;
        let kind = match reader.value()? {
            Value::Object(object) => reader.skip_members(object).map(|()| Kind::Object),
            Value::Array(array) => reader.skip_elements(array).map(|()| Kind::OtherJson),
            Value::String(_) | Value::Bare(_) | Value::TooDeep => Ok(Kind::OtherJson),
        }?;
        reader.end().map(|()| kind)
    };
    read().unwrap_or(Kind::NotJson)
}

fn stated_level(document: &[u8]) -> Result<Option<AccessLevel>, Refusal> {
    let mut reader = Reader::new(document)?;
    let Value::Object(mut object) = reader.value()? else { return Ok(None) };
    let (mut scratch, mut level) = (Vec::new(), None);
    while let Some(name) = reader.next_member(&mut object)? {
        if name.text.decoded(&mut scratch) != b"accessLevel" {
            reader.skip()?;
            continue;
        }
        match reader.value()? {
            Value::String(text) => {
                let stated = std::str::from_utf8(text.decoded(&mut scratch)).ok();
                level = stated.and_then(|word| word.parse().ok());
            }
            Value::Bare(_) | Value::TooDeep => {}
            Value::Object(object) => reader.skip_members(object)?,
            Value::Array(array) => reader.skip_elements(array)?,
        }
    }
    reader.end().map(|()| level)
}
