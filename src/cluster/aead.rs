//! Authenticated encryption of everything that gateways write to Redis: a reader of the server
//! learns no token, id or body, and a value that was changed there is not decrypted.
//!
//! XChaCha20-Poly1305, because any number of gateways may draw its nonces of 24 bytes at random for
//! as long as a key is used. A value's context (its Redis key or stream) is authenticated with it,
//! so that a value moved to another Redis key is rejected.
//!
//! Format: version (1 byte), length of the key id (1 byte), key id, nonce (24), ciphertext, tag
//! (16).

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// Version of the format. Other versions are rejected.
const VERSION: u8 = 1;

const NONCE_BYTES: usize = 24;

/// Longest key id, in bytes.
pub const KEY_ID_BYTES_MAX: usize = 32;

/// Separates encryption keys from every other use of the same secret. Part of the key, so the text
/// never changes.
const KEY_CONTEXT: &str = "telecomx-gateway 2026-11-25 values sealed for a fleet";

/// Why a value was not decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecryptError {
    /// The value has another format or version.
    Malformed,
    /// The value names a key that the key file does not contain.
    UnknownKey,
    /// The value was encrypted for another context or with another key, or was changed since.
    Forged,
}

impl DecryptError {
    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            DecryptError::Malformed => "malformed",
            DecryptError::UnknownKey => "unknown_key",
            DecryptError::Forged => "forged",
        }
    }
}

struct Key {
    id: Box<str>,
    cipher: XChaCha20Poly1305,
}

/// The encryption keys of a cluster: the first encrypts, every key decrypts.
pub struct Cipher {
    first: Key,
    others: Box<[Key]>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(…)")
    }
}

impl Key {
    fn new(id: &str, secret: &[u8; 32]) -> Self {
        debug_assert!(id.len() <= KEY_ID_BYTES_MAX, "the key file's parser limits ids");
        let secret = Zeroizing::new(blake3::derive_key(KEY_CONTEXT, secret));
        Key { id: id.into(), cipher: XChaCha20Poly1305::new((&*secret).into()) }
    }
}

impl Cipher {
    /// `first` encrypts; `first` and `others` decrypt. Ids are distinct and have at most
    /// [`KEY_ID_BYTES_MAX`] bytes.
    pub fn new<'a>(
        first: (&str, &[u8; 32]),
        others: impl IntoIterator<Item = (&'a str, &'a [u8; 32])>,
    ) -> Self {
        let others = others.into_iter().map(|(id, secret)| Key::new(id, secret)).collect();
        Cipher { first: Key::new(first.0, first.1), others }
    }

    /// Encrypts a value for `context`, the only one in which it can be decrypted.
    ///
    /// # Errors
    /// The operating system provides no randomness.
    pub fn encrypt(&self, context: &[u8], value: &[u8]) -> Result<Vec<u8>, getrandom::Error> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)?;
        let header = header(&self.first.id);
        let associated_data = [header.as_slice(), context].concat();
        let payload = Payload { msg: value, aad: &associated_data };
        // Fails only for values of more than 256 GiB.
        let ciphertext =
            self.first.cipher.encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        Ok([header.as_slice(), &nonce, &ciphertext].concat())
    }

    /// Decrypts a value that was encrypted for `context`.
    ///
    /// # Errors
    /// The value was encrypted for another context or with another key.
    pub fn decrypt(&self, context: &[u8], encrypted: &[u8]) -> Result<Vec<u8>, DecryptError> {
        let (&[version, id_length], rest) =
            encrypted.split_first_chunk::<2>().ok_or(DecryptError::Malformed)?;
        if version != VERSION {
            return Err(DecryptError::Malformed);
        }
        let (id, rest) = rest.split_at_checked(id_length.into()).ok_or(DecryptError::Malformed)?;
        let (nonce, rest) =
            rest.split_first_chunk::<NONCE_BYTES>().ok_or(DecryptError::Malformed)?;
        let mut keys = std::iter::once(&self.first).chain(&self.others);
        let key = keys.find(|key| key.id.as_bytes() == id).ok_or(DecryptError::UnknownKey)?;
        let associated_data = [header(&key.id).as_slice(), context].concat();
        let payload = Payload { msg: rest, aad: &associated_data };
        key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| DecryptError::Forged)
    }
}

fn header(id: &str) -> Vec<u8> {
    // The parser of the key file rejects ids of this length.
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
    [&[VERSION, length], id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [u8; 32] = [1; 32];
    const NEW: [u8; 32] = [2; 32];

    #[test]
    fn value_that_was_moved_or_changed_is_rejected() {
        let cipher = Cipher::new(("a", &OLD), []);
        let encrypted = cipher.encrypt(b"here", b"a secret").unwrap();
        assert_eq!(cipher.decrypt(b"here", &encrypted), Ok(b"a secret".to_vec()));
        assert!(!encrypted.windows(6).any(|window| window == b"secret"));
        assert_eq!(cipher.decrypt(b"there", &encrypted), Err(DecryptError::Forged));
        for at in 0..encrypted.len() {
            for bit in 0..8 {
                let mut changed = encrypted.clone();
                changed[at] ^= 1 << bit;
                assert!(cipher.decrypt(b"here", &changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        for length in 0..encrypted.len() {
            assert!(cipher.decrypt(b"here", &encrypted[..length]).is_err(), "cut to {length}");
        }
        assert!(cipher.decrypt(b"here", &[encrypted.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn equal_values_are_encrypted_differently() {
        let cipher = Cipher::new(("a", &OLD), []);
        assert_ne!(
            cipher.encrypt(b"here", b"same").unwrap(),
            cipher.encrypt(b"here", b"same").unwrap()
        );
    }

    #[test]
    fn key_rotation_keeps_values_readable_at_each_step() {
        let [before, both, swapped, after] = [
            Cipher::new(("a", &OLD), []),
            Cipher::new(("a", &OLD), [("b", &NEW)]),
            Cipher::new(("b", &NEW), [("a", &OLD)]),
            Cipher::new(("b", &NEW), []),
        ];
        let [by_old, by_new] =
            [&before, &swapped].map(|cipher| cipher.encrypt(b"c", b"v").unwrap());
        for (cipher, old, new) in [
            (&before, Ok(b"v".to_vec()), Err(DecryptError::UnknownKey)),
            (&both, Ok(b"v".to_vec()), Ok(b"v".to_vec())),
            (&swapped, Ok(b"v".to_vec()), Ok(b"v".to_vec())),
            (&after, Err(DecryptError::UnknownKey), Ok(b"v".to_vec())),
        ] {
            assert_eq!((cipher.decrypt(b"c", &by_old), cipher.decrypt(b"c", &by_new)), (old, new));
        }
        assert_eq!(both.encrypt(b"c", b"v").unwrap()[..3], by_old[..3]);
    }

    #[test]
    fn id_of_another_key_decrypts_nothing() {
        let encrypted = Cipher::new(("a", &OLD), []).encrypt(b"c", b"v").unwrap();
        assert_eq!(
            Cipher::new(("a", &NEW), []).decrypt(b"c", &encrypted),
            Err(DecryptError::Forged)
        );
    }
}
