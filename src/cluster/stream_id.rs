//! Ids of messages in a Redis stream.

use std::fmt;

/// Bits of a [`StreamId`] that number the messages of one millisecond.
const SEQUENCE_BITS: u32 = 20;

/// The id of a message as one number, in the order of the ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    /// Less than the id of every message.
    pub const ZERO: StreamId = StreamId(0);

    /// `None` if there are more messages in a millisecond, or a later one, than a server whose
    /// clock is right can give.
    pub const fn new(milliseconds: u64, sequence: u64) -> Option<Self> {
        if sequence >> SEQUENCE_BITS != 0 || milliseconds >> (u64::BITS - SEQUENCE_BITS) != 0 {
            return None;
        }
        Some(StreamId(milliseconds << SEQUENCE_BITS | sequence))
    }

    /// Parses Redis' notation, `1732567890123-0`.
    pub fn parse(text: &str) -> Option<Self> {
        let (milliseconds, sequence) = text.split_once('-')?;
        Self::new(milliseconds.parse().ok()?, sequence.parse().ok()?)
    }

    /// When the message was added, in milliseconds of the server's clock.
    pub const fn milliseconds(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }

    pub const fn to_bits(self) -> u64 {
        self.0
    }

    pub const fn from_bits(bits: u64) -> Self {
        StreamId(bits)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds(), self.0 & ((1 << SEQUENCE_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_text_and_order() {
        let ids =
            ["0-0", "0-1", "1-0", "1732567890123-0", "1732567890123-1048575", "1732567890124-0"];
        let parsed = ids.map(|text| StreamId::parse(text).unwrap());
        assert!(parsed.is_sorted_by(|a, b| a < b));
        assert_eq!(parsed.map(|id| id.to_string()), ids.map(str::to_owned));
        assert_eq!(parsed.map(|id| StreamId::from_bits(id.to_bits())), parsed);
        for invalid in ["", "-", "1", "1-", "-1", "a-0", "1-1048576", "17592186044416-0", "1-0-0"] {
            assert_eq!(StreamId::parse(invalid), None, "{invalid}");
        }
    }
}
