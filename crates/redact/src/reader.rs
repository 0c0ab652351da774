//! A strict reader of RFC 8259: what it does not refuse, every other reader reads the same.
//!
//! It hands out tokens and checks the grammar around them; it builds nothing. Stricter than the RFC where parsers
//! disagree: a name that stands twice in one object, half a surrogate pair, a number beyond a double, a byte-order mark
//! and deep nesting are refused, because redaction must see what the caller's parser will see.

use super::members::Members;
use super::refusal::{Reason, Refusal};
use super::text::{Text, escape};

/// How many containers may stand inside one another. The API's documents have six; every parser in use reads 64. A container
/// that is deeper is removed like a secret.
pub const MAX_DEPTH: usize = 64;

/// How deep such a container may be nested itself, counted from the document; a document that is nested deeper is refused.
pub const MAX_NESTING: usize = 127;

/// Decimal digits that surely fit a double. What is longer, or has an exponent, is converted to be sure.
const SURELY_FINITE: usize = 300;

pub(super) struct Reader<'d> {
    text: &'d [u8],
    at: usize,
    depth: usize,
    /// [`MAX_DEPTH`], or [`MAX_NESTING`] within a container that is too deep.
    deepest: usize,
    members: Members,
}

/// The beginning of a value. Scalars are read whole, containers are open.
pub(super) enum Value<'d> {
    Object(Object),
    Array(Array),
    String(Text<'d>),
    /// A number, `true`, `false` or `null`, as it is written.
    Bare(&'d [u8]),
    /// A container deeper than [`MAX_DEPTH`], well-formed and read whole.
    TooDeep,
}

/// An open object: to be read with [`Reader::next_member`] until that says `None`.
pub(super) struct Object {
    first: bool,
    members_from: usize,
}

/// An open array: to be read with [`Reader::next_element`] until that says `false`.
pub(super) struct Array {
    first: bool,
}

/// The name of a member, whose value is next.
pub(super) struct Name<'d> {
    pub text: Text<'d>,
    /// Where it begins in the document.
    pub start: usize,
    /// Of the decoded name; see [`hash`](super::members::hash).
    pub hash: u64,
}

impl<'d> Reader<'d> {
    /// Refuses what is empty, begins with a byte-order mark, or is not UTF-8.
    pub(super) fn new(text: &'d [u8]) -> Result<Self, Refusal> {
        if [&b"\xEF\xBB\xBF"[..], b"\xFE\xFF", b"\xFF\xFE"].iter().any(|mark| text.starts_with(mark)) {
            return Err(Refusal::at(0, Reason::ByteOrderMark));
        }
        if let Err(error) = std::str::from_utf8(text) {
            return Err(Refusal::at(error.valid_up_to(), Reason::BadUtf8));
        }
        if text.iter().all(|byte| is_space(*byte)) {
            return Err(Refusal::at(0, Reason::Empty));
        }
        Ok(Reader { text, at: 0, depth: 0, deepest: MAX_DEPTH, members: Members::default() })
    }

    /// Where in the document the next byte is read.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// Reads a scalar, or opens a container.
    pub(super) fn value(&mut self) -> Result<Value<'d>, Refusal> {
        match self.peek()? {
            b'{' | b'[' if self.depth == MAX_DEPTH && self.deepest == MAX_DEPTH => {
                self.deepest = MAX_NESTING;
                let read = self.skip();
                self.deepest = MAX_DEPTH;
                read.map(|()| Value::TooDeep)
            }
            b'{' => {
                self.open()?;
                Ok(Value::Object(Object { first: true, members_from: self.members.mark() }))
            }
            b'[' => {
                self.open()?;
                Ok(Value::Array(Array { first: true }))
            }
            b'"' => Ok(Value::String(self.string()?)),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(self.refuse(Reason::NotJson)),
        }
    }

    /// The next member's name, its value being next; or the object is closed.
    pub(super) fn next_member(&mut self, object: &mut Object) -> Result<Option<Name<'d>>, Refusal> {
        match self.peek()? {
            b'}' => {
                self.members.close(object.members_from, self.text)?;
                self.close();
                return Ok(None);
            }
            b',' if !object.first => {
                self.at += 1;
                if self.peek()? != b'"' {
                    return Err(self.refuse(Reason::NotJson));
                }
            }
            b'"' if object.first => {}
            _ => return Err(self.refuse(Reason::NotJson)),
        }
        object.first = false;
        let start = self.at;
        let text = self.string()?;
        let hash = self.members.add(object.members_from, self.text, start, text)?;
        if self.peek()? != b':' {
            return Err(self.refuse(Reason::NotJson));
        }
        self.at += 1;
        Ok(Some(Name { text, start, hash }))
    }

    /// Whether another element follows, its value being next; if not, the array is closed.
    pub(super) fn next_element(&mut self, array: &mut Array) -> Result<bool, Refusal> {
        match self.peek()? {
            b']' => {
                // `[1,]` is caught where the value after the comma is read: `]` begins none.
                self.close();
                return Ok(false);
            }
            b',' if !array.first => self.at += 1,
            _ if array.first => {}
            _ => return Err(self.refuse(Reason::NotJson)),
        }
        array.first = false;
        Ok(true)
    }

    /// Reads a value and all in it, only to see that it is well-formed.
    pub(super) fn skip(&mut self) -> Result<(), Refusal> {
        match self.value()? {
            Value::Object(object) => self.skip_members(object),
            Value::Array(array) => self.skip_elements(array),
            Value::String(_) | Value::Bare(_) | Value::TooDeep => Ok(()),
        }
    }

    pub(super) fn skip_members(&mut self, mut object: Object) -> Result<(), Refusal> {
        while self.next_member(&mut object)?.is_some() {
            self.skip()?;
        }
        Ok(())
    }

    pub(super) fn skip_elements(&mut self, mut array: Array) -> Result<(), Refusal> {
        while self.next_element(&mut array)? {
            self.skip()?;
        }
        Ok(())
    }

    /// Refuses whatever but white space follows the document's value.
    pub(super) fn end(&mut self) -> Result<(), Refusal> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.refuse(Reason::TrailingData)) }
    }

    fn open(&mut self) -> Result<(), Refusal> {
        if self.depth == self.deepest {
            return Err(self.refuse(Reason::TooDeep));
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.at += 1;
    }

    fn refuse(&self, reason: Reason) -> Refusal {
        Refusal::at(self.at, reason)
    }

    /// The next byte that is not white space, not yet consumed.
    #[inline]
    fn peek(&mut self) -> Result<u8, Refusal> {
        self.skip_space();
        match self.text.get(self.at) {
            Some(byte) => Ok(*byte),
            None => Err(self.refuse(Reason::CutShort)),
        }
    }

    fn skip_space(&mut self) {
        while self.text.get(self.at).is_some_and(|byte| is_space(*byte)) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &'static [u8]) -> Result<Value<'d>, Refusal> {
        let rest = &self.text[self.at..];
        if rest.starts_with(word) {
            self.at += word.len();
            Ok(Value::Bare(&rest[..word.len()]))
        } else if word.starts_with(rest) {
            Err(Refusal::at(self.text.len(), Reason::CutShort))
        } else {
            Err(self.refuse(Reason::NotJson))
        }
    }

    fn string(&mut self) -> Result<Text<'d>, Refusal> {
        let start = self.at;
        let mut escaped = false;
        let mut at = start + 1;
        loop {
            at = plain_run(self.text, at);
            match self.text.get(at) {
                Some(b'"') => break,
                Some(b'\\') => (_, at) = escape(self.text, at)?,
                Some(_) => return Err(Refusal::at(at, Reason::NotJson)),
                None => return Err(Refusal::at(at, Reason::CutShort)),
            }
            escaped = true;
        }
        self.at = at + 1;
        Ok(Text::new(&self.text[start..self.at], escaped))
    }

    fn number(&mut self) -> Result<Value<'d>, Refusal> {
        let start = self.at;
        if self.text[self.at] == b'-' {
            self.at += 1;
        }
        match self.text.get(self.at) {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        let mut certain = self.at - start <= SURELY_FINITE;
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            certain = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        let raw = &self.text[start..self.at];
        if !certain {
            let parsed = std::str::from_utf8(raw).ok().and_then(|text| text.parse::<f64>().ok());
            if !parsed.is_some_and(f64::is_finite) {
                return Err(Refusal::at(start, Reason::NumberNotFinite));
            }
        }
        Ok(Value::Bare(raw))
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), Refusal> {
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at > start {
            return Ok(());
        }
        Err(self.refuse(if self.at == self.text.len() { Reason::CutShort } else { Reason::NotJson }))
    }
}

/// The white space of RFC 8259, section 2: no form feed, no Unicode space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// From `at` on, the place of the first byte that is a quote, a backslash or a control character; else the end.
/// Eight bytes at a time: a byte's high bit is set where the subtraction went below zero, exact for the lowest such.
fn plain_run(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    const QUOTES: u64 = ONES * b'"' as u64;
    const SLASHES: u64 = ONES * b'\\' as u64;
    const SPACES: u64 = ONES * b' ' as u64;
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        let quote = (word ^ QUOTES).wrapping_sub(ONES) & !(word ^ QUOTES);
        let slash = (word ^ SLASHES).wrapping_sub(ONES) & !(word ^ SLASHES);
        let control = word.wrapping_sub(SPACES) & !word;
        let found = (quote | slash | control) & HIGHS;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while text.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20)) {
        at += 1;
    }
    at
}
