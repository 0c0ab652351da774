//! What leaves for Redis, sealed: whoever reads it there learns no token, no id and no body, and what was changed there is
//! not opened again.
//!
//! XChaCha20-Poly1305, since its nonces of 24 bytes may be drawn at random by any number of gateways for as long as a key
//! lives. What a value is for (the name it stands under, its kind) is authenticated with it, so that a value moved to
//! another name does not open there.
//!
//! A sealed value is: version (1 byte), length of the key's id (1 byte), the key's id, nonce (24), ciphertext, tag (16).

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// Of this form. Another one is not read.
const VERSION: u8 = 1;

const NONCE: usize = 24;

/// The longest id of a key, in bytes.
pub const MAX_KEY_ID: usize = 32;

/// A key's own purpose, so that none of its other uses shares a key with this one.
const PURPOSE: &str = "telecomx-gateway 2026-11-25 values sealed for a fleet";

/// Why a value is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// It is no sealed value, or one of another version.
    Malformed,
    /// It names a key that is not here (any more).
    UnknownKey,
    /// It was not sealed with that key for this place, or was changed since.
    Forged,
}

impl Unopened {
    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unopened::Malformed => "malformed",
            Unopened::UnknownKey => "unknown_key",
            Unopened::Forged => "forged",
        }
    }
}

struct Key {
    id: Box<str>,
    cipher: XChaCha20Poly1305,
}

/// The keys of a fleet: one seals, each of them opens.
pub struct Sealer {
    first: Key,
    others: Box<[Key]>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Key {
    fn new(id: &str, secret: &[u8; 32]) -> Self {
        debug_assert!(id.len() <= MAX_KEY_ID, "the id of a key is bounded where keys are read");
        let secret = Zeroizing::new(blake3::derive_key(PURPOSE, secret));
        Key { id: id.into(), cipher: XChaCha20Poly1305::new((&*secret).into()) }
    }
}

impl Sealer {
    /// `first` seals; it and `others` open. Ids of at most [`MAX_KEY_ID`] bytes, and all different.
    pub fn new<'a>(first: (&str, &[u8; 32]), others: impl IntoIterator<Item = (&'a str, &'a [u8; 32])>) -> Self {
        let others = others.into_iter().map(|(id, secret)| Key::new(id, secret)).collect();
        Sealer { first: Key::new(first.0, first.1), others }
    }

    /// Seals a value for `place`, the only one where it will open.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn seal(&self, place: &[u8], value: &[u8]) -> Result<Vec<u8>, getrandom::Error> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce)?;
        let header = header(&self.first.id);
        let bound = [header.as_slice(), place].concat();
        let payload = Payload { msg: value, aad: &bound };
        // It fails for values of more than 256 GiB only.
        let sealed = self.first.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        Ok([header.as_slice(), &nonce, &sealed].concat())
    }

    /// Opens a value that was sealed for `place`.
    ///
    /// # Errors
    /// It was not, or not by one of these keys.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        let (&[version, length], rest) = sealed.split_first_chunk::<2>().ok_or(Unopened::Malformed)?;
        if version != VERSION {
            return Err(Unopened::Malformed);
        }
        let (id, rest) = rest.split_at_checked(length.into()).ok_or(Unopened::Malformed)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(Unopened::Malformed)?;
        let mut keys = std::iter::once(&self.first).chain(&self.others);
        let key = keys.find(|key| key.id.as_bytes() == id).ok_or(Unopened::UnknownKey)?;
        let bound = [header(&key.id).as_slice(), place].concat();
        let payload = Payload { msg: rest, aad: &bound };
        key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| Unopened::Forged)
    }
}

fn header(id: &str) -> Vec<u8> {
    // Ids are far shorter than that; a longer one would not be found again, and so not opened.
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
    [&[VERSION, length], id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];

    #[test]
    fn opens_what_was_sealed_for_that_place_and_nothing_that_was_changed() {
        let sealer = Sealer::new(("a", &OLD), []);
        let sealed = sealer.seal(b"here", b"a secret").unwrap();
        assert_eq!(sealer.open(b"here", &sealed), Ok(b"a secret".to_vec()));
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(sealer.open(b"there", &sealed), Err(Unopened::Forged));
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut other = sealed.clone();
                other[at] ^= 1 << bit;
                assert!(sealer.open(b"here", &other).is_err(), "bit {bit} of byte {at}");
            }
        }
        for length in 0..sealed.len() {
            assert!(sealer.open(b"here", &sealed[..length]).is_err(), "cut to {length}");
        }
        assert!(sealer.open(b"here", &[sealed.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn a_value_says_nothing_twice() {
        let sealer = Sealer::new(("a", &OLD), []);
        assert_ne!(sealer.seal(b"here", b"same").unwrap(), sealer.seal(b"here", b"same").unwrap());
    }

    #[test]
    fn a_rotation_goes_by_the_id_of_the_key_and_forgets_no_value_on_its_way() {
        let [before, both, turned, after] = [
            Sealer::new(("a", &OLD), []),
            Sealer::new(("a", &OLD), [("b", &NEW)]),
            Sealer::new(("b", &NEW), [("a", &OLD)]),
            Sealer::new(("b", &NEW), []),
        ];
        let [by_old, by_new] = [&before, &turned].map(|sealer| sealer.seal(b"p", b"v").unwrap());
        for (sealer, old, new) in [
            (&before, Ok(b"v".to_vec()), Err(Unopened::UnknownKey)),
            (&both, Ok(b"v".to_vec()), Ok(b"v".to_vec())),
            (&turned, Ok(b"v".to_vec()), Ok(b"v".to_vec())),
            (&after, Err(Unopened::UnknownKey), Ok(b"v".to_vec())),
        ] {
            assert_eq!((sealer.open(b"p", &by_old), sealer.open(b"p", &by_new)), (old, new));
        }
        assert_eq!(both.seal(b"p", b"v").unwrap()[..3], by_old[..3]);
    }

    #[test]
    fn the_same_id_for_another_key_opens_nothing() {
        let sealed = Sealer::new(("a", &OLD), []).seal(b"p", b"v").unwrap();
        assert_eq!(Sealer::new(("a", &NEW), []).open(b"p", &sealed), Err(Unopened::Forged));
    }
}
