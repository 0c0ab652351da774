//! Interning of representations: most callers of an access level receive the same bytes for a
//! customer, which are stored once.
//!
//! A representation is found by its validator, a digest of the body, and compared in full. Only
//! redacted representations are interned, so nothing is shared with a caller who may see less.

use std::collections::HashMap;
use std::hash::BuildHasher;

use parking_lot::Mutex;

use crate::key::IdHasher;
use crate::reply::{Representation, WeakRepresentation};

/// Number of locks. One is taken when a response is stored, none when one is looked up.
const SHARDS: usize = 64;

/// Stored representations by digest.
type Shard = Mutex<HashMap<u64, WeakRepresentation, IdHasher>>;

/// Set of all stored representations.
pub struct BodyInterner {
    shards: Box<[Shard]>,
    hasher: IdHasher,
}

impl Default for BodyInterner {
    fn default() -> Self {
        BodyInterner {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: IdHasher::default(),
        }
    }
}

impl BodyInterner {
    /// Returns the equal representation in the set, or adds this one and returns it.
    pub fn intern(&self, representation: Representation) -> Representation {
        let digest = self.digest(&representation);
        let mut shard = self.shard(digest).lock();
        match shard.get(&digest).and_then(Representation::upgrade) {
            Some(stored) if stored == representation => return stored,
            // Another representation with this digest keeps its place.
            Some(_) => return representation,
            None => {}
        }
        if shard.len() == shard.capacity() {
            shard.retain(|_, stored| stored.strong_count() > 0);
            // Room for a quarter more, so that a set of live representations is not scanned at each
            // insertion.
            let room = shard.len() / 4 + 1;
            shard.reserve(room);
        }
        shard.insert(digest, representation.downgrade());
        representation
    }

    /// Removes a representation with its last entry.
    pub fn release(&self, representation: &Representation) {
        // If another reference exists, a response may be using it right now: it stays until its
        // shard is full.
        if representation.reference_count() > 1 {
            return;
        }
        let digest = self.digest(representation);
        let mut shard = self.shard(digest).lock();
        if shard.get(&digest).is_some_and(|stored| representation.is_same_as(stored)) {
            shard.remove(&digest);
        }
    }

    fn digest(&self, representation: &Representation) -> u64 {
        self.hasher.hash_one(representation.etag())
    }

    fn shard(&self, digest: u64) -> &Shard {
        &self.shards[digest as usize % SHARDS]
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use http::{HeaderValue, StatusCode};

    use super::*;
    use telecomx_api::AccessLevel;

    use redact::{Policy, redact};

    /// Compiled once: 20,000 times take half a minute in a debug build.
    static POLICY: LazyLock<Policy> = LazyLock::new(|| {
        let config = config::parse("test", "upstream.url = \"https://api.example\"", []).unwrap();
        Policy::compile(&config.redaction.rules()).unwrap()
    });

    fn representation(
        status: StatusCode,
        own_type: Option<&'static str>,
        number: usize,
    ) -> Representation {
        let redacted =
            redact(&POLICY, AccessLevel::Admin, format!("{{\"name\":\"{number}\"}}").into())
                .unwrap();
        Representation::new(status, own_type.map(HeaderValue::from_static).as_ref(), redacted)
    }

    fn is_shared(one: &Representation, other: &Representation) -> bool {
        one.is_same_as(&other.downgrade())
    }

    #[test]
    fn interner_shares_equal_representations_only() {
        let interner = BodyInterner::default();
        let first = interner.intern(representation(StatusCode::OK, None, 1));
        assert!(is_shared(&first, &interner.intern(representation(StatusCode::OK, None, 1))));
        for other in [
            representation(StatusCode::OK, None, 2),
            representation(StatusCode::NOT_FOUND, None, 1),
            representation(StatusCode::OK, Some("application/json"), 1),
        ] {
            let stored = interner.intern(other.clone());
            assert!(is_shared(&stored, &other) && !is_shared(&stored, &first));
        }
    }

    #[test]
    fn interner_drops_a_body_with_its_last_entry() {
        let interner = BodyInterner::default();
        let first = interner.intern(representation(StatusCode::OK, None, 1));
        let second = interner.intern(first.clone());
        interner.release(&second);
        drop(second);
        assert_eq!(interner.len(), 1, "the first entry has it");
        interner.release(&first);
        assert_eq!(interner.len(), 0);
    }

    #[test]
    fn interner_drops_unreferenced_bodies_before_growing() {
        let interner = BodyInterner::default();
        let live: Vec<_> = (0..1000)
            .map(|number| interner.intern(representation(StatusCode::OK, None, number)))
            .collect();
        for number in 1000..20_000 {
            drop(interner.intern(representation(StatusCode::OK, None, number)));
        }
        assert!(interner.len() < 4 * live.len(), "{}", interner.len());
        assert!(is_shared(&live[7], &interner.intern(representation(StatusCode::OK, None, 7))));
    }
}
