//! Redaction: a document of the API in, what a role may see out. Pure.
//!
//! A level that the policy reveals everything to gets the API's own bytes. A lower one gets the document without what is
//! secret: under the roots all that the policy does not name as public, elsewhere what has a secret name. What cannot be
//! read with certainty is refused, for a secret might hide in the doubt. Nothing here asks where a document came from,
//! how long it is or who waits for it; names of members are taken to tell nothing.
//!
//! Only [`redact`], [`redact_or_keep`] and [`redact_by_answer`] make a [`Redacted`], and only that can be stored or sent.

mod changes;
mod members;
mod names;
mod output;
mod policy;
mod reader;
mod refusal;
mod selectors;
mod text;
mod walk;

use std::fmt;

use bytes::Bytes;

use reader::{Reader, Value};
use telecomx_api::AccessLevel;

pub use policy::{Policy, Rule, RuleError, Rules};
pub use reader::{MAX_DEPTH, MAX_NESTING};
pub use refusal::{Reason, Refusal};

/// What takes a secret's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The member goes.
    Remove,
    /// The member stays, its value becomes `null`.
    Null,
    /// A string becomes `"***"`, anything else `null`.
    Mask,
}

impl Action {
    /// The word for it in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Remove => "remove",
            Action::Null => "null",
            Action::Mask => "mask",
        }
    }
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON object.
    Object,
    /// A JSON array or scalar.
    OtherJson,
    /// Nothing that a lower role could have been given. It may look like JSON: two members of one name are enough.
    NotJson,
}

/// A document of which its reader may see every byte.
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
    /// Says nothing of the content: it is safe for one reader, a log has others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redacted({:?}, {} bytes)", self.kind, self.bytes.len())
    }
}

/// What someone of this level may see of the document.
///
/// From `reveal_to` upwards: the document's own bytes, whatever they are, never a refusal. Below it, what stays keeps its
/// order and the text of its names, strings and numbers; white space between them goes. In particular
///
/// - a *root* is a member whose name says so in any spelling, or is a path through one; roots within roots are members;
/// - under a root a scalar stays where a public selector names its path, arrays being transparent; `secret_names` are not
///   asked there;
/// - elsewhere a member with a secret name goes whole, even if its name means a root too;
/// - a container that was emptied goes with what it held, one that came empty stays; the document itself stays;
/// - a container deeper than [`MAX_DEPTH`] is removed like a secret;
/// - where the policy hides changes, strings that name a root are removed, and so is what may be a side of a change in
///   every object that has to do with a root; `changes.rs` has the rules.
///
/// Redacting twice changes nothing more. The size of the document is the caller's to bound: memory is at most some
/// ten times the document's length (for an object of nothing but short names), time is its length, times the
/// logarithm of the number of members for objects of more than 16. Output may be longer than the document when the
/// action is `null` or `mask`, but not three times as long.
pub fn redact(policy: &Policy, level: AccessLevel, document: Bytes) -> Result<Redacted, Refusal> {
    if policy.reveals_to(level) {
        let kind = kind_of(&document);
        return Ok(Redacted { bytes: document, kind, removed: false });
    }
    let (out, kind, removed) = walk::walk(policy, &document)?;
    // Exactly as large as what it holds: a cache that counts bytes should hold no others.
    Ok(Redacted { bytes: Bytes::from(out.into_boxed_slice()), kind, removed })
}

/// As [`redact`] or, without a level, [`redact_by_answer`]; but a document from which nothing is removed keeps its own
/// bytes, white space included.
pub fn redact_or_keep(policy: &Policy, level: Option<AccessLevel>, document: Bytes) -> Result<Redacted, Refusal> {
    let redacted = match level {
        Some(level) => redact(policy, level, document.clone()),
        None => redact_by_answer(policy, document.clone()),
    }?;
    Ok(if redacted.removed { redacted } else { Redacted { bytes: document, ..redacted } })
}

/// As [`redact`], for the level that the document itself states in its top-level member `accessLevel`; if that is
/// missing, doubled, not a string or not a level, the lowest.
///
/// For answers that tell a caller what they may do, such as that of a login.
pub fn redact_by_answer(policy: &Policy, document: Bytes) -> Result<Redacted, Refusal> {
    // A document that is refused states nothing, and is refused again below.
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
