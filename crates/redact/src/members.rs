//! Detection of duplicate member names. Names are compared decoded: `"a"` and `"\u0061"` are equal.
//!
//! Small objects are compared pair by pair while they are read; large ones are sorted once when
//! they close. The bound on time does not depend on the quality of the hash, so that no document
//! makes it quadratic.

use std::cmp::Ordering;

use super::refusal::{Reason, Refusal};
use super::text::Text;

/// Maximum number of members for which comparing pairs is cheaper than sorting.
const MAX_PAIRWISE: usize = 16;

/// Names of all open objects; those of the innermost object are last.
#[derive(Default)]
pub(super) struct Members {
    seen: Vec<Seen>,
    scratch: Vec<u8>,
}

/// A name: the hash of its decoded text, and its position, quotes included.
#[derive(Clone, Copy)]
struct Seen {
    hash: u64,
    start: usize,
    end: usize,
}

impl Members {
    /// Index at which the names of an object that opens now will begin.
    pub(super) fn mark(&self) -> usize {
        self.seen.len()
    }

    /// Adds the name at `start`, a name of the object whose names begin at `from`. Returns the
    /// name's hash.
    pub(super) fn add(
        &mut self,
        from: usize,
        text: &[u8],
        start: usize,
        name: Text<'_>,
    ) -> Result<u64, Refusal> {
        let hash = hash(name.decoded(&mut self.scratch));
        let new = Seen { hash, start, end: start + name.raw.len() };
        let earlier = &self.seen[from..];
        if earlier.len() < MAX_PAIRWISE
            && earlier.iter().any(|old| old.hash == hash && old.compare(&new, text).is_eq())
        {
            return Err(Refusal::at(start, Reason::DuplicateName));
        }
        self.seen.push(new);
        Ok(hash)
    }

    /// Closes the object whose names begin at `from`, after checking that they differ.
    pub(super) fn close(&mut self, from: usize, text: &[u8]) -> Result<(), Refusal> {
        if self.seen.len() - from > MAX_PAIRWISE {
            let names = &mut self.seen[from..];
            names.sort_unstable_by(|one, other| {
                one.hash.cmp(&other.hash).then_with(|| one.compare(other, text))
            });
            let same = |pair: &&[Seen]| {
                pair[0].hash == pair[1].hash && pair[0].compare(&pair[1], text).is_eq()
            };
            if let Some(pair) = names.windows(2).find(same) {
                return Err(Refusal::at(pair[0].start.max(pair[1].start), Reason::DuplicateName));
            }
        }
        self.seen.truncate(from);
        Ok(())
    }
}

impl Seen {
    /// Compares two decoded names.
    fn compare(&self, other: &Seen, text: &[u8]) -> Ordering {
        let name = |seen: &Seen| {
            let raw = &text[seen.start..seen.end];
            Text::new(raw, memchr::memchr(b'\\', raw).is_some())
        };
        let (mut one, mut two) = (Vec::new(), Vec::new());
        name(self).decoded(&mut one).cmp(name(other).decoded(&mut two))
    }
}

/// Fast hash of a decoded name. A collision costs one comparison.
#[inline]
pub(super) fn hash(name: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = name.as_chunks::<8>();
    let hash =
        words.iter().fold(name.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    // The rest is read at once, overlapping the bytes before it if there are any.
    match (rest, name.last_chunk::<8>(), name.first_chunk::<4>(), name.last_chunk::<4>()) {
        ([], ..) => hash,
        (_, Some(last), ..) => mix(hash, u64::from_le_bytes(*last)),
        (_, _, Some(first), Some(last)) => mix(
            hash,
            u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last)),
        ),
        _ => mix(hash, rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds the names as those of one object. Each has 16 bytes and no escapes.
    fn read(names: &[[u8; 16]]) -> Result<(), Refusal> {
        let text: Vec<u8> =
            names.iter().flat_map(|name| [b"\"", &name[..], b"\""].concat()).collect();
        let mut members = Members::default();
        for start in (0..text.len()).step_by(18) {
            members.add(0, &text, start, Text::new(&text[start..start + 18], false))?;
        }
        members.close(0, &text)
    }

    /// Different names with equal hashes: the second half cancels the effect of the first.
    fn colliding() -> impl Iterator<Item = [u8; 16]> {
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        (0u64..).filter_map(|first| {
            let mixed = (16u64.rotate_left(5) ^ first).wrapping_mul(FACTOR).rotate_left(5);
            let mut name = [0; 16];
            name[..8].copy_from_slice(&first.to_le_bytes());
            name[8..].copy_from_slice(&mixed.to_le_bytes());
            (!name.contains(&b'\\')).then_some(name)
        })
    }

    /// Performance depends on it, correctness does not.
    #[test]
    fn every_byte_of_a_name_counts_in_its_hash() {
        for length in 0..=40 {
            let name = vec![b'n'; length];
            let changed = (0..length).map(|place| {
                let mut other = name.clone();
                other[place] = b'm';
                hash(&other)
            });
            let hashes: std::collections::HashSet<_> = changed.chain([hash(&name)]).collect();
            assert_eq!(hashes.len(), length + 1, "of {length} bytes");
        }
    }

    #[test]
    fn colliding_names_are_compared_without_trying_every_pair() {
        let mut names: Vec<_> = colliding().take(100_000).collect();
        assert!(names.iter().all(|name| hash(name) == hash(&names[0])));
        // Comparing every pair would take five thousand million comparisons.
        assert_eq!(read(&names), Ok(()));
        assert_eq!(read(&names[..MAX_PAIRWISE]), Ok(()));
        names.push(names[50_000]);
        assert_eq!(read(&names).map_err(|refusal| refusal.reason), Err(Reason::DuplicateName));
    }
}
