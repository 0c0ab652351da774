//! The pass that redacts: everything that may remain is written in its order and spelling.
//!
//! Removed values are read and written too, and then truncated, so that nothing malformed hides in
//! them.

use super::change_entries::{Mention, Named, find_mentions, names_root};
use super::names::Meaning;
use super::policy::Policy;
use super::reader::{Array, Name, Object, Reader, Value};
use super::refusal::Refusal;
use super::splice::Output;
use super::{Action, Kind};

/// Returns the document without what the policy hides, its type, and whether anything was removed.
pub(super) fn rewrite(policy: &Policy, document: &[u8]) -> Result<(Vec<u8>, Kind, bool), Refusal> {
    let mentions = match &policy.log {
        Some(log) => find_mentions(document, &policy.names, log)?,
        None => Vec::new(),
    };
    let mut rewriter = Rewriter {
        policy,
        action: policy.rules().action,
        reader: Reader::new(document)?,
        out: Output::new(document),
        positions: Vec::new(),
        scratch: Vec::new(),
        objects: mentions.iter(),
        removed: false,
    };
    let named = rewriter.objects.next().map_or(Named::No, |document| document.here);
    let top = rewriter.reader.value()?;
    let (kind, empty) = match &top {
        Value::Object(_) => (Kind::Object, &b"{}"[..]),
        Value::Array(_) => (Kind::OtherJson, &b"[]"[..]),
        Value::String(_) | Value::Bare(_) | Value::TooDeep => (Kind::OtherJson, &b"null"[..]),
    };
    let scope = Scope { place: Place::Outside, named, hides_scalars: named == Named::InText };
    let fate = rewriter.any(top, scope)?;
    rewriter.reader.end()?;
    if fate == Fate::Removed {
        // The document itself is never removed.
        rewriter.out.text(empty);
    }
    let removed = rewriter.removed;
    Ok((rewriter.out.finish(), kind, removed))
}

struct Rewriter<'p, 'd> {
    policy: &'p Policy,
    action: Action,
    reader: Reader<'d>,
    out: Output<'d>,
    /// Positions in the selectors, one for each level from the root to the current value.
    positions: Vec<u64>,
    scratch: Vec<u8>,
    /// Mentions of a root of the objects that follow; empty if changes are not hidden.
    objects: std::slice::Iter<'p, Mention>,
    /// Whether a value was hidden.
    removed: bool,
}

/// Whether a value was written or removed without a trace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Removed,
}

#[derive(Clone, Copy)]
struct Scope {
    place: Place,
    /// How this object, or an enclosing one, names a root.
    named: Named,
    /// Whether a scalar here may be a side of a change.
    hides_scalars: bool,
}

#[derive(Clone, Copy)]
enum Place {
    /// Outside the roots: everything is visible unless its name is secret.
    Outside,
    /// Below a root, at the position that begins here in `positions`: only public scalars are
    /// visible.
    Under(usize),
}

impl<'d> Rewriter<'_, 'd> {
    fn value(&mut self, scope: Scope) -> Result<Fate, Refusal> {
        let value = self.reader.value()?;
        self.any(value, scope)
    }

    fn any(&mut self, value: Value<'d>, scope: Scope) -> Result<Fate, Refusal> {
        match value {
            Value::Object(object) => self.object(object, scope),
            Value::Array(array) => self.array(array, scope),
            Value::String(text) => {
                let is_quote = matches!(scope.place, Place::Outside)
                    && self.policy.log.is_some()
                    && names_root(&self.policy.names, text.decoded(&mut self.scratch));
                Ok(self.scalar(
                    text.raw,
                    Scope { hides_scalars: scope.hides_scalars || is_quote, ..scope },
                ))
            }
            Value::Bare(raw) => Ok(self.scalar(raw, scope)),
            Value::TooDeep => Ok(self.hide(self.out.len())),
        }
    }

    /// Writes the scalar that was just read.
    fn scalar(&mut self, raw: &[u8], scope: Scope) -> Fate {
        let public = match scope.place {
            Place::Outside => !scope.hides_scalars,
            Place::Under(at) => self.policy.selectors.is_public(&self.positions[at..]),
        };
        let from = self.out.len();
        let end = self.reader.offset();
        self.out.token(end - raw.len()..end);
        if public { Fate::Kept } else { self.hide(from) }
    }

    fn object(&mut self, mut object: Object, scope: Scope) -> Result<Fate, Refusal> {
        let mention = self.objects.next().copied().unwrap_or_default();
        let inside = Scope { named: scope.named.max(mention.here), ..scope };
        let from = self.open(b'{');
        let mut was_empty = true;
        while let Some(name) = self.reader.next_member(&mut object)? {
            was_empty = false;
            let before = self.separate(from);
            if self.member(&name, inside, mention.below)? == Fate::Removed {
                self.out.truncate(before);
            }
        }
        Ok(self.close(from, was_empty, b'}'))
    }

    /// Writes the member whose name was just read. If it is removed, its name may still have been
    /// written. `below`: a nested object names a root.
    fn member(&mut self, name: &Name<'d>, scope: Scope, below: bool) -> Result<Fate, Refusal> {
        let policy = self.policy;
        let is_named = scope.named != Named::No;
        let mut hides_scalars = false;
        self.out.token(name.start..name.start + name.text.raw.len());
        self.out.sign(b':');
        let value_from = self.out.len();
        let position = self.positions.len();
        let decoded = name.text.decoded(&mut self.scratch);
        let (place, secret) = match scope.place {
            Place::Outside => {
                let Meaning { root, secret, change } = policy.names.meaning(decoded);
                if root {
                    self.positions.extend_from_slice(policy.selectors.at_root());
                }
                let log = policy.log.as_ref().filter(|_| is_named || below);
                let side = log.is_some_and(|log| log.is_side(decoded));
                let unknown = scope.named == Named::InText
                    && log.is_some_and(|log| !log.is_metadata(decoded));
                hides_scalars = unknown || side;
                let place = if root { Place::Under(position) } else { Place::Outside };
                (place, secret || (change && (is_named || below)) || (side && is_named))
            }
            Place::Under(at) => {
                policy.selectors.step(&mut self.positions, at, name.hash, decoded);
                (
                    Place::Under(position),
                    (is_named || below) && policy.names.meaning(decoded).change,
                )
            }
        };
        let fate = self.value(Scope { place, hides_scalars, ..scope })?;
        self.positions.truncate(position);
        Ok(if secret { self.hide(value_from) } else { fate })
    }

    fn array(&mut self, mut array: Array, scope: Scope) -> Result<Fate, Refusal> {
        let from = self.open(b'[');
        let mut was_empty = true;
        while self.reader.next_element(&mut array)? {
            was_empty = false;
            let before = self.separate(from);
            if self.value(scope)? == Fate::Removed {
                self.out.truncate(before);
            }
        }
        Ok(self.close(from, was_empty, b']'))
    }

    /// Opens a container and returns its position in the output.
    fn open(&mut self, bracket: u8) -> usize {
        let from = self.out.len();
        self.out.sign(bracket);
        from
    }

    /// Whether the open container at `from` has any content.
    fn has_content(&self, from: usize) -> bool {
        self.out.len() > from + 1
    }

    /// Writes the comma before the next member or element, and returns the position before it.
    fn separate(&mut self, from: usize) -> usize {
        let before = self.out.len();
        if self.has_content(from) {
            self.out.sign(b',');
        }
        before
    }

    /// Closes the container at `from`. One that redaction emptied is removed; one that arrived
    /// empty remains.
    fn close(&mut self, from: usize, was_empty: bool, bracket: u8) -> Fate {
        if self.has_content(from) || was_empty {
            self.out.sign(bracket);
            Fate::Kept
        } else {
            self.out.truncate(from);
            Fate::Removed
        }
    }

    /// Truncates the output to `from` and writes the replacement of the value.
    fn hide(&mut self, from: usize) -> Fate {
        let is_string = self.out.get(from) == Some(b'"');
        self.removed = true;
        self.out.truncate(from);
        match self.action {
            Action::Remove => return Fate::Removed,
            Action::Mask if is_string => self.out.text(b"\"***\""),
            Action::Mask | Action::Null => self.out.text(b"null"),
        }
        Fate::Kept
    }
}
