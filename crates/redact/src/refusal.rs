//! Why a document is not let through to a lower role. A refusal says where and why, never what stood there.

use std::fmt;

/// What is wrong with a document that cannot be redacted safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No byte, or white space alone.
    Empty,
    /// A byte-order mark of UTF-8 or UTF-16 (RFC 8259, section 8.1).
    ByteOrderMark,
    /// Not UTF-8.
    BadUtf8,
    /// Not what the grammar of RFC 8259 allows here: comments, `NaN`, single quotes, stray commas.
    NotJson,
    /// The document ends before its value does.
    CutShort,
    /// Something follows the value.
    TrailingData,
    /// One object holds the same name twice, whichever way the two are spelled.
    DuplicateName,
    /// `\uD800` and the like without its other half.
    LoneSurrogate,
    /// A number that a double cannot hold, such as `1e400`.
    NumberNotFinite,
    /// More than [`MAX_NESTING`](super::MAX_NESTING) containers inside one another.
    TooDeep,
}

impl Reason {
    /// Every reason, for a metric that wants its series from the start.
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

/// A document that is not let through: the reason, and the offset in bytes at which it showed.
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
