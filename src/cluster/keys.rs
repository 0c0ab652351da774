//! The cluster's keys, from a file on every gateway: lines of an id and 64 hexadecimal digits.
//! The first key encrypts and every key decrypts, so that gateways understand each other at each
//! step of a rotation: append the new key on every gateway, then put it first on every gateway,
//! then remove the old key on every gateway.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use super::aead::{Cipher, KEY_ID_BYTES_MAX};
use super::environment::Environment;
use crate::cache::CallerIds;
use crate::secret_file::{SecretFileError, SecretText};

/// Separates the key of caller ids from other uses of the first key. Part of the key, so the text
/// never changes.
const CALLER_KEY_CONTEXT: &str = "telecomx-gateway 2026-11-26 digests of tokens in a fleet";
/// Derives a public tag of the key of caller ids, by which gateways find out whether theirs are
/// equal.
const CALLER_TAG_CONTEXT: &str =
    "telecomx-gateway 2026-11-26 whether digests of tokens are of one key";

/// Why the key file cannot be used. A line is named by its number alone: an invalid line may begin
/// with the secret.
#[derive(Debug, Error)]
#[error("cluster.key_file: {}: {problem}", path.display())]
pub struct KeyFileError {
    path: PathBuf,
    problem: KeyFileProblem,
}

#[derive(Debug, Error)]
enum KeyFileProblem {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error(
        "contains no key; for example write the output of `echo \"a $(openssl rand -hex 32)\"`"
    )]
    Empty,
    #[error("line {number}: {problem}")]
    Line { number: usize, problem: LineProblem },
}

/// Expected form of a line.
const LINE_FORMAT: &str =
    "expected an id, a space and 64 hexadecimal digits, for example from `openssl rand -hex 32`";

#[derive(Debug, Error)]
enum LineProblem {
    #[error("invalid line; {LINE_FORMAT}")]
    Line,
    #[error(
        "invalid id: expected up to {KEY_ID_BYTES_MAX} letters, digits, `.`, `_` and `-`; {LINE_FORMAT}"
    )]
    Id,
    #[error("invalid key; {LINE_FORMAT}")]
    Key,
    #[error("weak key: all bytes are equal; {LINE_FORMAT}")]
    WeakKey,
    #[error("duplicate key id; give each key its own id")]
    DuplicateId,
}

/// The keys of a cluster; at least one.
pub struct Keys {
    first: Key,
    others: Vec<Key>,
}

struct Key {
    id: String,
    secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Reads the key file.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        Self::read(path).map_err(|problem| KeyFileError { path: path.to_owned(), problem })
    }

    fn read(path: &Path) -> Result<Self, KeyFileProblem> {
        Self::parse(SecretText::read(path)?.as_str())
    }

    fn parse(text: &str) -> Result<Self, KeyFileProblem> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = |problem| KeyFileProblem::Line { number, problem };
            let key = parse_line(line).map_err(invalid)?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(invalid(LineProblem::DuplicateId));
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or(KeyFileProblem::Empty)?;
        Ok(Keys { first, others: keys.collect() })
    }

    /// Derives the keys that only one environment uses, with the same ids.
    pub fn for_environment(&self, environment: &Environment) -> Keys {
        let derive = |key: &Key| Key {
            id: key.id.clone(),
            secret: Zeroizing::new(environment.derive_key(&key.secret)),
        };
        Keys { first: derive(&self.first), others: self.others.iter().map(derive).collect() }
    }

    /// Encrypts with the first key, decrypts with each.
    pub fn cipher(&self) -> Cipher {
        let others = self.others.iter().map(|key| (key.id.as_str(), &*key.secret));
        Cipher::new((&self.first.id, &self.first.secret), others)
    }

    /// Derives a key from the first. `context` is a text that no other use has.
    pub fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, &*self.first.secret))
    }

    /// Derives a key from each key, the first one first.
    pub fn derive_all(&self, context: &str) -> Vec<Zeroizing<[u8; 32]>> {
        let keys = std::iter::once(&self.first).chain(&self.others);
        keys.map(|key| Zeroizing::new(blake3::derive_key(context, &*key.secret))).collect()
    }

    /// Caller ids that are equal on every gateway with the same first key.
    pub fn caller_ids(&self) -> CallerIds {
        CallerIds::with_key(*self.derive(CALLER_KEY_CONTEXT))
    }

    /// A tag that is equal on two gateways if [`Keys::caller_ids`] is.
    pub fn caller_key_tag(&self) -> [u8; 8] {
        let tag = self.derive(CALLER_TAG_CONTEXT);
        std::array::from_fn(|at| tag[at])
    }
}

fn parse_line(line: &str) -> Result<Key, LineProblem> {
    let mut words = line.split_ascii_whitespace();
    let (Some(id), Some(digits), None) = (words.next(), words.next(), words.next()) else {
        return Err(LineProblem::Line);
    };
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if id.len() > KEY_ID_BYTES_MAX || !id.bytes().all(is_id) {
        return Err(LineProblem::Id);
    }
    let secret = blake3::Hash::from_hex(digits).map_err(|_| LineProblem::Key)?;
    if secret.as_bytes().iter().all(|byte| *byte == secret.as_bytes()[0]) {
        return Err(LineProblem::WeakKey);
    }
    Ok(Key { id: id.to_owned(), secret: Zeroizing::new(*secret.as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const B: &str = "b f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f";

    #[test]
    fn gateways_understand_each_other_during_a_rotation() {
        let steps =
            [A.to_owned(), format!("# both\n{A}\n\n{B}\n"), format!("{B}\n{A}"), B.to_owned()];
        let keys = steps.map(|text| Keys::parse(&text).unwrap());
        for pair in keys.windows(2) {
            for (from, to) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let encrypted = from.cipher().encrypt(b"p", b"v").unwrap();
                assert_eq!(to.cipher().decrypt(b"p", &encrypted), Ok(b"v".to_vec()));
            }
        }
        // Caller ids and their tag depend on the first key alone.
        let [a, both, swapped, b] = keys;
        let of = |keys: &Keys| (keys.caller_ids().id_of("t"), keys.caller_key_tag());
        assert_eq!(of(&a), of(&both));
        assert_eq!(of(&b), of(&swapped));
        assert!(of(&a).0 != of(&b).0 && of(&a).1 != of(&b).1);
    }

    #[test]
    fn key_file_error_does_not_show_the_line() {
        for (text, expected) in [
            ("", "contains no key"),
            ("# nothing\n", "contains no key"),
            ("0001", "line 1: invalid line"),
            (&A[..40], "line 1: invalid key"),
            (&format!("{A}ff"), "line 1: invalid key"),
            (&format!("{A}\n{A}"), "line 2: duplicate key id"),
            // A secret of up to 32 digits in place of the id, with or without a secret after it.
            (&A[2..34], "line 1: invalid line"),
            (&format!("{} {}", &A[2..34], &A[34..]), "line 1: invalid key"),
            (&format!("{} a", &A[2..34]), "line 1: invalid key"),
            (&format!("{0} {1}\n{0} {1}", &A[2..34], &A[2..]), "line 2: duplicate key id"),
            (&format!("\n{A} x"), "line 2: invalid line"),
            (&format!("{} {}", "i".repeat(33), &A[2..]), "invalid id: expected up to 32"),
            (&format!("a {}", "ab".repeat(32)), "weak key"),
        ] {
            let error = Keys::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains("0102") && !error.contains("abab"), "{error}");
        }
        assert_eq!(format!("{:?}", Keys::parse(A).unwrap()), "Keys(…)");
    }
}
