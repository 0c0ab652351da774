//! Refusals of documents. A refusal names position and reason, never the content.

use std::fmt;

/// Reason why a document cannot be redacted safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No byte, or only white space.
    Empty,
    /// A byte-order mark of UTF-8 or UTF-16 (RFC 8259, section 8.1).
    ByteOrderMark,
    /// Not UTF-8.
    BadUtf8,
    /// Not allowed by the grammar of RFC 8259 at this position: comments, `NaN`, single quotes,
    /// stray commas.
    NotJson,
    /// The document ends before its value does.
    CutShort,
    /// Text behind the value.
    TrailingData,
    /// One object has the same name twice, in any spelling.
    DuplicateName,
    /// Half a surrogate pair, such as `\uD800` alone.
    LoneSurrogate,
    /// A number that a double cannot hold, such as `1e400`.
    NumberNotFinite,
    /// More than [`MAX_NESTING`](super::MAX_NESTING) containers inside one another.
    TooDeep,
}

impl Reason {
    /// Every reason, so that a metric can start all series at 0.
    pub const ALL: [Reason; 10] = [
        Reason::Empty,
        Reason::ByteOrderMark,
        Reason::BadUtf8,
        Reason::NotJson,
        Reason::CutShort,
        Reason::TrailingData,
        Reason::DuplicateName,
        Reason::LoneSurrogate,
        Reason::NumberNotFinite,
        Reason::TooDeep,
    ];

    /// The reason as a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::ByteOrderMark => "byte_order_mark",
            Reason::BadUtf8 => "bad_utf8",
            Reason::NotJson => "not_json",
            Reason::CutShort => "cut_short",
            Reason::TrailingData => "trailing_data",
            Reason::DuplicateName => "duplicate_name",
            Reason::LoneSurrogate => "lone_surrogate",
            Reason::NumberNotFinite => "number_not_finite",
            Reason::TooDeep => "too_deep",
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Reason::Empty => "there is no document",
            Reason::ByteOrderMark => "the document starts with a byte order mark",
            Reason::BadUtf8 => "not UTF-8",
            Reason::NotJson => "not JSON",
            Reason::CutShort => "the document is truncated",
            Reason::TrailingData => "data after the document",
            Reason::DuplicateName => "duplicate member name in one object",
            Reason::LoneSurrogate => "half a surrogate pair",
            Reason::NumberNotFinite => "a number out of the range of a double",
            Reason::TooDeep => "nesting too deep",
        }
    }
}

/// Refusal of a document: the reason, and the offset in bytes at which it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub offset: usize,
}

impl Refusal {
    pub(super) const fn at(offset: usize, reason: Reason) -> Self {
        Refusal { reason, offset }
    }

    /// The reason as a metric's label.
    pub const fn as_str(&self) -> &'static str {
        self.reason.as_str()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {})", self.reason.in_words(), self.offset)
    }
}

impl std::error::Error for Refusal {}
