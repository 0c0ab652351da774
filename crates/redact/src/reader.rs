//! Strict reader of RFC 8259: every document that it accepts is read identically by every other
//! reader.
//!
//! It returns tokens and checks the grammar around them; it builds no tree. It is stricter than the
//! RFC where parsers disagree: a duplicate name in an object, half a surrogate pair, a number
//! beyond a double, a byte-order mark and deep nesting are refused, because redaction must see what
//! the client's parser will see.

use super::members::Members;
use super::refusal::{Reason, Refusal};
use super::text::{Text, escape};

/// Maximum depth of nested containers. The API's documents have six levels; every parser in use
/// reads 64. A deeper container is removed like a secret.
pub const MAX_DEPTH: usize = 64;

/// Maximum nesting within such a container, counted from the document; a deeper document is
/// refused.
pub const MAX_NESTING: usize = 127;

/// Number of decimal digits that always fit a double. A longer number, or one with an exponent, is
/// converted to check it.
const ALWAYS_FINITE_DIGITS: usize = 300;

pub(super) struct Reader<'d> {
    text: &'d [u8],
    at: usize,
    depth: usize,
    /// [`MAX_DEPTH`], or [`MAX_NESTING`] within a container that is too deep.
    max_depth: usize,
    members: Members,
}

/// Beginning of a value. Scalars are complete, containers are open.
pub(super) enum Value<'d> {
    Object(Object),
    Array(Array),
    String(Text<'d>),
    /// A number, `true`, `false` or `null` as written.
    Bare(&'d [u8]),
    /// A container deeper than [`MAX_DEPTH`], well-formed and read to its end.
    TooDeep,
}

/// An open object; read it with [`Reader::next_member`] until that returns `None`.
pub(super) struct Object {
    first: bool,
    members_from: usize,
}

/// An open array; read it with [`Reader::next_element`] until that returns `false`.
pub(super) struct Array {
    first: bool,
}

/// Name of a member, whose value is next.
pub(super) struct Name<'d> {
    pub text: Text<'d>,
    /// Its position in the document.
    pub start: usize,
    /// Hash of the decoded name; see [`hash`](super::members::hash).
    pub hash: u64,
}

impl<'d> Reader<'d> {
    /// Starts reading. Refuses an empty document, a byte-order mark and text that is not UTF-8.
    pub(super) fn new(text: &'d [u8]) -> Result<Self, Refusal> {
        if [&b"\xEF\xBB\xBF"[..], b"\xFE\xFF", b"\xFF\xFE"]
            .iter()
            .any(|mark| text.starts_with(mark))
        {
            return Err(Refusal::at(0, Reason::ByteOrderMark));
        }
        if let Err(error) = std::str::from_utf8(text) {
            return Err(Refusal::at(error.valid_up_to(), Reason::BadUtf8));
        }
        if text.iter().all(|byte| is_space(*byte)) {
            return Err(Refusal::at(0, Reason::Empty));
        }
        Ok(Reader { text, at: 0, depth: 0, max_depth: MAX_DEPTH, members: Members::default() })
    }

    /// Position of the next byte.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// Reads a scalar, or opens a container.
    pub(super) fn value(&mut self) -> Result<Value<'d>, Refusal> {
        match self.peek()? {
            b'{' | b'[' if self.depth == MAX_DEPTH && self.max_depth == MAX_DEPTH => {
                self.max_depth = MAX_NESTING;
                let read = self.skip();
                self.max_depth = MAX_DEPTH;
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

    /// Returns the next member's name, whose value is next; `None` closes the object.
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

    /// Whether another element follows, whose value is next; `false` closes the array.
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

    /// Reads a value to its end, only to check that it is well-formed.
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

    /// Refuses anything except white space behind the document's value.
    pub(super) fn end(&mut self) -> Result<(), Refusal> {
        self.skip_space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.refuse(Reason::TrailingData)) }
    }

    fn open(&mut self) -> Result<(), Refusal> {
        if self.depth == self.max_depth {
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

    /// Returns the next byte that is not white space, without consuming it.
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
        let mut certain = self.at - start <= ALWAYS_FINITE_DIGITS;
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
        Err(self.refuse(if self.at == self.text.len() {
            Reason::CutShort
        } else {
            Reason::NotJson
        }))
    }
}

/// The white space of RFC 8259, section 2: no form feed, no Unicode space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// Returns the position, from `at` on, of the first quote, backslash or control character;
/// otherwise the end. Reads eight bytes at a time: a byte's high bit is set where the subtraction
/// went below zero, exact for the lowest such.
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
