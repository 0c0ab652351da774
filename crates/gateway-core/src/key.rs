//! Keys of cached responses: structured values instead of joined strings, so that no delimiter is
//! ambiguous.

use std::fmt;
use std::hash::{Hash, Hasher};

use telecomx_api::{AccessLevel, CustomerId};

/// A caller: keyed 256-bit digest of its token, which is not kept itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CallerId([u8; 32]);

impl CallerId {
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The inverse of [`CallerId::as_bytes`].
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        CallerId(digest)
    }

    /// The first eight bytes: as uniform as any hash of the digest, and not to be chosen without
    /// the key.
    fn prefix(&self) -> u64 {
        self.0.first_chunk().map_or(0, |prefix| u64::from_le_bytes(*prefix))
    }

    /// Index into a table of 65,536 slots. Digests are uniform, so two bytes need no further hash.
    pub fn slot(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }
}

impl Hash for CallerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.prefix());
    }
}

impl fmt::Debug for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerId(…)")
    }
}

/// Derives caller ids from tokens.
pub struct CallerIds {
    key: zeroize::Zeroizing<[u8; 32]>,
}

impl CallerIds {
    /// With a random key, for this process.
    ///
    /// # Errors
    /// The operating system provides no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key)?;
        Ok(CallerIds { key })
    }

    pub fn with_key(key: [u8; 32]) -> Self {
        CallerIds { key: zeroize::Zeroizing::new(key) }
    }

    /// The id of the caller with a token.
    pub fn id_of(&self, token: &str) -> CallerId {
        CallerId(*blake3::keyed_hash(&self.key, token.as_bytes()).as_bytes())
    }
}

/// Key of a cached response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub caller: CallerId,
    pub level: AccessLevel,
    pub customer: CustomerId,
    /// Fingerprint of the policy that redacted the response.
    pub policy: u64,
}

/// Hashes caller and customer only: a caller has one level at a time, and the policy rarely
/// changes.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.caller.hash(state);
        state.write(self.customer.as_bytes());
    }
}

/// Hasher of ids, fast because a hit hashes three. A client cannot cause collisions: the seed
/// differs per process, and digests of tokens are keyed.
pub type IdHasher = foldhash::quality::RandomState;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caller_ids_differ_by_token_and_key() {
        let callers = CallerIds::random().unwrap();
        assert_eq!(callers.id_of("abc"), callers.id_of("abc"));
        assert_ne!(callers.id_of("abc"), callers.id_of("abd"));
        assert_ne!(callers.id_of("abc"), CallerIds::random().unwrap().id_of("abc"));
        assert_eq!(format!("{:?}", callers.id_of("abc")), "CallerId(…)");
    }

    #[test]
    fn caller_slots_are_uniform() {
        let callers = CallerIds::with_key([7; 32]);
        let slots: std::collections::HashSet<_> =
            (0..1000).map(|number| callers.id_of(&number.to_string()).slot()).collect();
        // Of a thousand ids in 65,536 random slots, about eight share one.
        assert!(slots.len() > 900, "{}", slots.len());
    }
}
