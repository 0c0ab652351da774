//! What an answer is stored under: a value, not a joined string, so that no delimiter can be confused.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::api::{AccessLevel, CustomerId};

/// A caller, known by its token: a keyed 256-bit digest. The token itself is never kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CallerId([u8; 32]);

impl CallerId {
    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest that [`CallerId::as_bytes`] gave.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        CallerId(digest)
    }

    /// Eight bytes of a digest: they are as good as any hash of it, and nobody without the key can choose them.
    fn part(&self) -> u64 {
        self.0.first_chunk().map_or(0, |part| u64::from_le_bytes(*part))
    }

    /// Digests are uniform: two of their bytes are as good a slot as any hash of them.
    pub fn slot(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }
}

impl Hash for CallerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.part());
    }
}

impl fmt::Debug for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerId(…)")
    }
}

/// Makes caller ids, with a key that lives as long as the process.
pub struct CallerIds {
    key: zeroize::Zeroizing<[u8; 32]>,
}

impl CallerIds {
    /// With a fresh random key.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key)?;
        Ok(CallerIds { key })
    }

    /// With a key of one's own.
    pub fn with_key(key: [u8; 32]) -> Self {
        CallerIds { key: zeroize::Zeroizing::new(key) }
    }

    /// The id of the caller with that token.
    pub fn of(&self, token: &str) -> CallerId {
        CallerId(*blake3::keyed_hash(&self.key, token.as_bytes()).as_bytes())
    }
}

/// Caller, role, customer, and the policy by which the answer was redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub caller: CallerId,
    pub level: AccessLevel,
    pub customer: CustomerId,
    pub policy: u64,
}

/// By what there is much of: a caller has one level at a time, and few see a change of the policy.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.caller.hash(state);
        state.write(self.customer.as_bytes());
    }
}

/// Hashes of ids, of which a hit makes three. A caller cannot learn or choose what decides: each process seeds it anew, and digests
/// of tokens are keyed.
pub type IdHasher = foldhash::quality::RandomState;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_differ_are_callers_that_differ() {
        let callers = CallerIds::random().unwrap();
        assert_eq!(callers.of("abc"), callers.of("abc"));
        assert_ne!(callers.of("abc"), callers.of("abd"));
        assert_ne!(callers.of("abc"), CallerIds::random().unwrap().of("abc"));
        assert_eq!(format!("{:?}", callers.of("abc")), "CallerId(…)");
    }

    #[test]
    fn callers_are_spread_over_the_slots() {
        let callers = CallerIds::with_key([7; 32]);
        let slots: std::collections::HashSet<_> =
            (0..1000).map(|number| callers.of(&number.to_string()).slot()).collect();
        // Of a thousand thrown into 65,536 at random, some eight meet another.
        assert!(slots.len() > 900, "{}", slots.len());
    }
}
