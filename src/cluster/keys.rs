//! The fleet's keys, from a file that each of its gateways has: lines of an id and 64 hexadecimal digits. The first seals, and
//! each opens, so that a key is changed without a moment in which two gateways do not understand each other: the new one is
//! added below everywhere, then it is put first everywhere, then the old one is taken away everywhere.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use super::environment::Environment;
use super::seal::{MAX_KEY_ID, Sealer};
use crate::cache::CallerIds;

/// More is no key file.
const MAX_BYTES: usize = 64 << 10;

/// Digests of tokens have a key of their own, made from the first.
const CALLERS: &str = "telecomx-gateway 2026-11-26 digests of tokens in a fleet";
/// By which gateways find out whether they digest alike, without a word of the key.
const CALLERS_TAG: &str = "telecomx-gateway 2026-11-26 whether digests of tokens are of one key";

/// The keys of a fleet; never empty.
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
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, by the number of the line alone: a line that is wrong may begin with
    /// the secret.
    pub fn load(path: &Path) -> Result<Self, String> {
        let wrong = |what: String| format!("cluster.key_file: {}: {what}", path.display());
        let text = std::fs::read(path).map(Zeroizing::new).map_err(|error| wrong(error.to_string()))?;
        if text.len() > MAX_BYTES {
            return Err(wrong(format!("contains more than {MAX_BYTES} bytes; check that it is the right file")));
        }
        let text = std::str::from_utf8(&text).map_err(|_| wrong("is not text".into()))?;
        Self::parse(text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = parse_line(line).map_err(|what| format!("line {number}: {what}"))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("line {number}: duplicate key id; give each key its own id"));
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let first = keys
            .next()
            .ok_or("contains no key; for example write the output of `echo \"a $(openssl rand -hex 32)\"`")?;
        Ok(Keys { first, others: keys.collect() })
    }

    /// The keys that count in this environment alone; their ids stay.
    pub fn bound_to(&self, environment: &Environment) -> Keys {
        let bind = |key: &Key| Key { id: key.id.clone(), secret: Zeroizing::new(environment.bind(&key.secret)) };
        Keys { first: bind(&self.first), others: self.others.iter().map(bind).collect() }
    }

    /// Seals with the first, opens with each.
    pub fn sealer(&self) -> Sealer {
        let others = self.others.iter().map(|key| (key.id.as_str(), &*key.secret));
        Sealer::new((&self.first.id, &self.first.secret), others)
    }

    /// A key for one purpose, made from the first. `purpose`: a text that no other use has.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(purpose, &*self.first.secret))
    }

    /// What makes the same caller of the same token on each gateway.
    pub fn callers(&self) -> CallerIds {
        CallerIds::with_key(*self.derive(CALLERS))
    }

    /// The same on two gateways if [`Keys::callers`] is.
    pub fn callers_tag(&self) -> [u8; 8] {
        let tag = self.derive(CALLERS_TAG);
        std::array::from_fn(|at| tag[at])
    }
}

fn parse_line(line: &str) -> Result<Key, String> {
    const RIGHT: &str = "expected an id, a space and 64 hexadecimal digits, for example from `openssl rand -hex 32`";
    let mut words = line.split_ascii_whitespace();
    let (Some(id), Some(digits), None) = (words.next(), words.next(), words.next()) else {
        return Err(format!("invalid line; {RIGHT}"));
    };
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if id.len() > MAX_KEY_ID || !id.bytes().all(is_id) {
        return Err(format!("invalid id: expected up to {MAX_KEY_ID} letters, digits, `.`, `_` and `-`; {RIGHT}"));
    }
    let secret = blake3::Hash::from_hex(digits).map_err(|_| format!("invalid key; {RIGHT}"))?;
    if secret.as_bytes().iter().all(|byte| *byte == secret.as_bytes()[0]) {
        return Err(format!("weak key: all bytes are equal; {RIGHT}"));
    }
    Ok(Key { id: id.to_owned(), secret: Zeroizing::new(*secret.as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const B: &str = "b f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f";

    #[test]
    fn a_rotation_needs_no_moment_in_which_gateways_do_not_understand_each_other() {
        let steps = [A.to_owned(), format!("# both\n{A}\n\n{B}\n"), format!("{B}\n{A}"), B.to_owned()];
        let keys = steps.map(|text| Keys::parse(&text).unwrap());
        for pair in keys.windows(2) {
            for (from, to) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let sealed = from.sealer().seal(b"p", b"v").unwrap();
                assert_eq!(to.sealer().open(b"p", &sealed), Ok(b"v".to_vec()));
            }
        }
        // Digests of tokens are by the first key, and say so.
        let [a, both, swapped, b] = keys;
        assert_eq!((a.callers().id_of("t"), a.callers_tag()), (both.callers().id_of("t"), both.callers_tag()));
        assert_eq!((b.callers().id_of("t"), b.callers_tag()), (swapped.callers().id_of("t"), swapped.callers_tag()));
        assert_ne!(a.callers().id_of("t"), b.callers().id_of("t"));
        assert_ne!(a.callers_tag(), b.callers_tag());
    }

    #[test]
    fn key_file_error_shows_nothing_of_its_line() {
        for (text, wrong) in [
            ("", "contains no key"),
            ("# nothing\n", "contains no key"),
            ("0001", "line 1: invalid line"),
            (&A[..40], "line 1: invalid key"),
            (&format!("{A}ff"), "line 1: invalid key"),
            (&format!("{A}\n{A}"), "line 2: duplicate key id"),
            // A secret of up to 32 digits takes the place of the id, with another secret or none
            // behind it.
            (&A[2..34], "line 1: invalid line"),
            (&format!("{} {}", &A[2..34], &A[34..]), "line 1: invalid key"),
            (&format!("{} a", &A[2..34]), "line 1: invalid key"),
            (&format!("{0} {1}\n{0} {1}", &A[2..34], &A[2..]), "line 2: duplicate key id"),
            (&format!("\n{A} x"), "line 2: invalid line"),
            (&format!("{} {}", "i".repeat(33), &A[2..]), "invalid id: expected up to 32"),
            (&format!("a {}", "ab".repeat(32)), "weak key"),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(error.contains(wrong), "{text:?}: {error}");
            assert!(!error.contains("0102") && !error.contains("abab"), "{error}");
        }
        assert_eq!(format!("{:?}", Keys::parse(A).unwrap()), "Keys(…)");
    }
}
