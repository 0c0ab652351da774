//! The one pass that redacts: what is read and may stay is written, in the order and the spelling in which it came.
//!
//! What goes is read and written all the same, and then taken back: nothing malformed hides in it.

use super::changes::{Mention, Named, find_mentions, names_root};
use super::names::Meaning;
use super::output::Output;
use super::policy::Policy;
use super::reader::{Array, Name, Object, Reader, Value};
use super::refusal::Refusal;
use super::{Action, Kind};

/// The document as someone may see it to whom `policy` does not reveal everything, and whether that removed anything.
pub(super) fn walk(policy: &Policy, document: &[u8]) -> Result<(Vec<u8>, Kind, bool), Refusal> {
    let mentions = match &policy.log {
        Some(log) => find_mentions(document, &policy.names, log)?,
        None => Vec::new(),
    };
    let mut walk = Walk {
        policy,
        action: policy.rules().action,
        reader: Reader::new(document)?,
        out: Output::new(document),
        positions: Vec::new(),
        scratch: Vec::new(),
        objects: mentions.iter(),
        removed: false,
    };
    let named = walk.objects.next().map_or(Named::No, |document| document.here);
    let top = walk.reader.value()?;
    let (kind, empty) = match &top {
        Value::Object(_) => (Kind::Object, &b"{}"[..]),
        Value::Array(_) => (Kind::OtherJson, &b"[]"[..]),
        Value::String(_) | Value::Bare(_) | Value::TooDeep => (Kind::OtherJson, &b"null"[..]),
    };
    let scope = Scope { place: Place::Outside, named, hides_scalars: named == Named::InText };
    let fate = walk.any(top, scope)?;
    walk.reader.end()?;
    if fate == Fate::Gone {
        // The document itself cannot go.
        walk.out.text(empty);
    }
    let removed = walk.removed;
    Ok((walk.out.finish(), kind, removed))
}

struct Walk<'p, 'd> {
    policy: &'p Policy,
    action: Action,
    reader: Reader<'d>,
    out: Output<'d>,
    /// The positions in the selectors, of every level from the root down to here.
    positions: Vec<u64>,
    scratch: Vec<u8>,
    /// For each object to come where it mentions a root; nothing where changes are not hidden.
    objects: std::slice::Iter<'p, Mention>,
    /// Whether a value was hidden so far.
    removed: bool,
}

/// Whether a value was written, or is to leave no trace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Gone,
}

#[derive(Clone, Copy)]
struct Scope {
    place: Place,
    /// How this object, or one around it, names a root.
    named: Named,
    /// A scalar here may be a side of a change.
    hides_scalars: bool,
}

#[derive(Clone, Copy)]
enum Place {
    /// Everything may be seen that is not named as secret.
    Outside,
    /// Under a root, at the position that begins here in `positions`: nothing may be seen that is not public.
    Under(usize),
}

impl<'d> Walk<'_, 'd> {
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
                Ok(self.scalar(text.raw, Scope { hides_scalars: scope.hides_scalars || is_quote, ..scope }))
            }
            Value::Bare(raw) => Ok(self.scalar(raw, scope)),
            Value::TooDeep => Ok(self.hide(self.out.len())),
        }
    }

    /// The scalar that was just read.
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
        let mut came_empty = true;
        while let Some(name) = self.reader.next_member(&mut object)? {
            came_empty = false;
            let before = self.separate(from);
            if self.member(&name, inside, mention.below)? == Fate::Gone {
                self.out.truncate(before);
            }
        }
        Ok(self.close(from, came_empty, b'}'))
    }

    /// Writes the member whose name was just read. If it is gone, the name may still have been written. `below`: an object
    /// below this one names a root.
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
                let unknown = scope.named == Named::InText && log.is_some_and(|log| !log.is_metadata(decoded));
                hides_scalars = unknown || side;
                let place = if root { Place::Under(position) } else { Place::Outside };
                (place, secret || (change && (is_named || below)) || (side && is_named))
            }
            Place::Under(at) => {
                policy.selectors.step(&mut self.positions, at, name.hash, decoded);
                (Place::Under(position), (is_named || below) && policy.names.meaning(decoded).change)
            }
        };
        let fate = self.value(Scope { place, hides_scalars, ..scope })?;
        self.positions.truncate(position);
        Ok(if secret { self.hide(value_from) } else { fate })
    }

    fn array(&mut self, mut array: Array, scope: Scope) -> Result<Fate, Refusal> {
        let from = self.open(b'[');
        let mut came_empty = true;
        while self.reader.next_element(&mut array)? {
            came_empty = false;
            let before = self.separate(from);
            if self.value(scope)? == Fate::Gone {
                self.out.truncate(before);
            }
        }
        Ok(self.close(from, came_empty, b']'))
    }

    /// Opens a container; says where it begins.
    fn open(&mut self, bracket: u8) -> usize {
        let from = self.out.len();
        self.out.sign(bracket);
        from
    }

    /// Whether the open container that begins at `from` holds something.
    fn holds_something(&self, from: usize) -> bool {
        self.out.len() > from + 1
    }

    /// Writes the comma in front of another member or element; says where both begin.
    fn separate(&mut self, from: usize) -> usize {
        let before = self.out.len();
        if self.holds_something(from) {
            self.out.sign(b',');
        }
        before
    }

    /// Closes the container that begins at `from`. One that redaction emptied goes; one that came empty stays.
    fn close(&mut self, from: usize, came_empty: bool, bracket: u8) -> Fate {
        if self.holds_something(from) || came_empty {
            self.out.sign(bracket);
            Fate::Kept
        } else {
            self.out.truncate(from);
            Fate::Gone
        }
    }

    /// Takes back the value that was written from here on, and writes what is to stand there instead.
    fn hide(&mut self, from: usize) -> Fate {
        let is_string = self.out.get(from) == Some(b'"');
        self.removed = true;
        self.out.truncate(from);
        match self.action {
            Action::Remove => return Fate::Gone,
            Action::Mask if is_string => self.out.text(b"\"***\""),
            Action::Mask | Action::Null => self.out.text(b"null"),
        }
        Fate::Kept
    }
}
