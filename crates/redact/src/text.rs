//! A string of a JSON document and its escapes.

use super::refusal::{Reason, Refusal};

/// A string of the document, found well-formed.
#[derive(Clone, Copy)]
pub(super) struct Text<'d> {
    /// As written, with its quotes.
    pub raw: &'d [u8],
    escaped: bool,
}

impl<'d> Text<'d> {
    pub(super) fn new(raw: &'d [u8], escaped: bool) -> Self {
        Text { raw, escaped }
    }

    /// Returns the decoded text. `scratch` is only used if the string has escapes.
    #[inline]
    pub(super) fn decoded<'a>(&self, scratch: &'a mut Vec<u8>) -> &'a [u8]
    where
        'd: 'a,
    {
        let inner = &self.raw[1..self.raw.len() - 1];
        if self.escaped { unescape(inner, scratch) } else { inner }
    }
}

/// Decodes into `scratch` a string whose escapes were validated when it was read.
fn unescape<'a>(inner: &[u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    scratch.clear();
    let mut at = 0;
    loop {
        let end = memchr::memchr(b'\\', &inner[at..]).map_or(inner.len(), |found| at + found);
        scratch.extend_from_slice(&inner[at..end]);
        // Only the end of the string is not a valid escape.
        let Ok((character, next)) = escape(inner, end) else { break };
        scratch.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        at = next;
    }
    scratch
}

/// Returns the character of the escape at `at` and the position behind it. A surrogate pair is one
/// escape.
pub(super) fn escape(text: &[u8], at: usize) -> Result<(char, usize), Refusal> {
    let refused = |reason| Err(Refusal::at(at, reason));
    let character = match text.get(at + 1) {
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let first = hex4(text, at + 2)?;
            if let Some(character) = char::from_u32(first) {
                return Ok((character, at + 6));
            }
            // A surrogate: a high one needs a low one directly behind it.
            if first >= 0xDC00 || text.get(at + 6..at + 8) != Some(b"\\u") {
                return refused(Reason::LoneSurrogate);
            }
            let second = hex4(text, at + 8)?;
            if !(0xDC00..0xE000).contains(&second) {
                return refused(Reason::LoneSurrogate);
            }
            return match char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)) {
                Some(character) => Ok((character, at + 12)),
                None => refused(Reason::LoneSurrogate),
            };
        }
        Some(_) => return refused(Reason::NotJson),
        None => return refused(Reason::CutShort),
    };
    Ok((character, at + 2))
}

fn hex4(text: &[u8], at: usize) -> Result<u32, Refusal> {
    let Some(digits) = text.get(at..at + 4) else {
        return Err(Refusal::at(text.len(), Reason::CutShort));
    };
    digits.iter().try_fold(0, |value, digit| match char::from(*digit).to_digit(16) {
        Some(digit) => Ok(value << 4 | digit),
        None => Err(Refusal::at(at, Reason::NotJson)),
    })
}
