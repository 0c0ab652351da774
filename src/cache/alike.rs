//! Equal answers of different callers are one in memory: most callers of a role see the same of a customer.
//!
//! Found by the validator, which is a digest of the body, and compared in full, so that what is shared is equal whatever
//! digests do. Only what is redacted already gets here, so nothing is shared with one who may see less.

use std::collections::HashMap;
use std::hash::BuildHasher;

use parking_lot::Mutex;

use super::key::IdHasher;
use crate::reply::{Forgettable, Representation};

/// Locks that answers are spread over: one is taken whenever an answer is stored, none when one is found.
const SHARDS: usize = 64;

/// What is stored, by its digest.
type Shard = Mutex<HashMap<u64, Forgettable, IdHasher>>;

/// Every answer that is stored, once.
pub struct Alike {
    shards: Box<[Shard]>,
    hasher: IdHasher,
}

impl Default for Alike {
    fn default() -> Self {
        Alike { shards: (0..SHARDS).map(|_| Shard::default()).collect(), hasher: IdHasher::default() }
    }
}

impl Alike {
    /// The equal one that is stored, or this one, which others find from here on.
    pub fn one_of(&self, representation: Representation) -> Representation {
        let digest = self.digest(&representation);
        let mut shard = self.shard(digest).lock();
        match shard.get(&digest).and_then(Representation::remembered) {
            Some(stored) if stored == representation => return stored,
            // Another one of that digest keeps its place.
            Some(_) => return representation,
            None => {}
        }
        if shard.len() == shard.capacity() {
            shard.retain(|_, stored| stored.strong_count() > 0);
            // Not again at once, where few of them were gone.
            let room = shard.len() / 4 + 1;
            shard.reserve(room);
        }
        shard.insert(digest, representation.forgettable());
        representation
    }

    /// An entry goes: its answer is forgotten with the last one that holds it.
    pub fn let_go(&self, representation: &Representation) {
        // Others may be asking for it this moment: then it stays, until its shard is full.
        if representation.held() > 1 {
            return;
        }
        let digest = self.digest(representation);
        let mut shard = self.shard(digest).lock();
        if shard.get(&digest).is_some_and(|stored| representation.is(stored)) {
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
    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::api::AccessLevel;
    use crate::config;
    use crate::redact::{Policy, redact};

    fn answer(status: StatusCode, own_type: Option<&'static str>, number: usize) -> Representation {
        let config = config::parse("test", "upstream.url = \"https://api.example\"", []).unwrap();
        let policy = Policy::compile(&config.redaction.rules()).unwrap();
        let redacted = redact(&policy, AccessLevel::Admin, format!("{{\"name\":\"{number}\"}}").into()).unwrap();
        Representation::new(status, own_type.map(HeaderValue::from_static).as_ref(), redacted)
    }

    fn one(this: &Representation, that: &Representation) -> bool {
        this.is(&that.forgettable())
    }

    #[test]
    fn equal_answers_are_one_and_others_are_not() {
        let alike = Alike::default();
        let first = alike.one_of(answer(StatusCode::OK, None, 1));
        assert!(one(&first, &alike.one_of(answer(StatusCode::OK, None, 1))));
        for other in [
            answer(StatusCode::OK, None, 2),
            answer(StatusCode::NOT_FOUND, None, 1),
            answer(StatusCode::OK, Some("application/json"), 1),
        ] {
            let stored = alike.one_of(other.clone());
            assert!(one(&stored, &other) && !one(&stored, &first));
        }
    }

    #[test]
    fn what_nobody_holds_any_more_is_forgotten() {
        let alike = Alike::default();
        let held = alike.one_of(answer(StatusCode::OK, None, 1));
        let other = alike.one_of(held.clone());
        alike.let_go(&other);
        drop(other);
        assert_eq!(alike.len(), 1, "somebody holds it");
        alike.let_go(&held);
        assert_eq!(alike.len(), 0);
    }

    #[test]
    fn what_went_without_a_word_takes_no_more_room_than_what_is_held() {
        let alike = Alike::default();
        let held: Vec<_> = (0..1000).map(|number| alike.one_of(answer(StatusCode::OK, None, number))).collect();
        for number in 1000..20_000 {
            drop(alike.one_of(answer(StatusCode::OK, None, number)));
        }
        assert!(alike.len() < 4 * held.len(), "{}", alike.len());
        assert!(one(&held[7], &alike.one_of(answer(StatusCode::OK, None, 7))));
    }
}
