//! What gateways of a fleet tell each other in the stream, in bytes. Sealed before it leaves, read strictly.

use bytes::{Buf, BufMut};

use crate::api::{CustomerId, EmployeeId};
use crate::cache::{CallerId, Scope};

/// Of this form. A new form gets a new number; a gateway that does not know it drops everything instead.
const VERSION: u8 = 1;

const HELLO: u8 = 0;
const ALL: u8 = 1;
const CUSTOMER: u8 = 2;
const EMPLOYEE: u8 = 3;
const CALLER: u8 = 4;
const POLICY: u8 = 5;

/// One message.
#[derive(Debug)]
pub struct Message {
    /// The process that sent it: a random number.
    pub sender: u64,
    /// The sender's number of the change, which the ledger gave.
    pub number: u64,
    pub word: Word,
}

/// What it says.
#[derive(Debug)]
pub enum Word {
    /// It only marks a place in the stream.
    Hello,
    Change(Scope),
    /// The sender was told to redact by another policy from now on, which has this fingerprint.
    Policy(u64),
}

impl Message {
    /// `tag`: by which key the sender digests tokens.
    pub fn to_bytes(&self, tag: &[u8; 8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u64_le(self.sender);
        out.put_u64_le(self.number);
        match &self.word {
            Word::Hello => out.put_u8(HELLO),
            Word::Policy(fingerprint) => {
                out.put_u8(POLICY);
                out.put_u64_le(*fingerprint);
            }
            Word::Change(Scope::All) => out.put_u8(ALL),
            Word::Change(Scope::Customer(id)) => {
                out.put_u8(CUSTOMER);
                out.put_slice(id.to_string().as_bytes());
            }
            Word::Change(Scope::Employee(id)) => {
                out.put_u8(EMPLOYEE);
                out.put_slice(id.as_str().as_bytes());
            }
            Word::Change(Scope::Caller(id)) => {
                out.put_u8(CALLER);
                out.put_slice(tag);
                out.put_slice(id.as_bytes());
            }
        }
        out
    }

    /// `None`: it is odd in some way. `tag`: by which key the receiver digests tokens; a caller by another one may be anyone
    /// here, so that everything is meant.
    pub fn from_bytes(bytes: &[u8], tag: &[u8; 8]) -> Option<Self> {
        let mut rest = bytes;
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (sender, number) = (rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?);
        let word = match (rest.try_get_u8().ok()?, rest) {
            (HELLO, []) => Word::Hello,
            (POLICY, fingerprint) => Word::Policy(u64::from_le_bytes(fingerprint.try_into().ok()?)),
            (ALL, []) => Word::Change(Scope::All),
            (CUSTOMER, id) => Word::Change(Scope::Customer(CustomerId::parse(id)?)),
            (EMPLOYEE, id) => Word::Change(Scope::Employee(EmployeeId::parse(std::str::from_utf8(id).ok()?)?)),
            (CALLER, rest) => {
                let (by, id) = rest.split_first_chunk::<8>()?;
                let id = CallerId::from_bytes(id.try_into().ok()?);
                Word::Change(if by == tag { Scope::Caller(id) } else { Scope::All })
            }
            _ => return None,
        };
        Some(Message { sender, number, word })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CallerIds;
    use proptest::prelude::*;

    const TAG: [u8; 8] = *b"a key id";

    fn words() -> [Word; 6] {
        [
            Word::Hello,
            Word::Policy(0x0123_4567_89ab_cdef),
            Word::Change(Scope::All),
            Word::Change(Scope::Customer(CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap())),
            Word::Change(Scope::Employee(EmployeeId::parse("5f00000000000000000000aa").unwrap())),
            Word::Change(Scope::Caller(CallerIds::with_key([7; 32]).of("a"))),
        ]
    }

    #[test]
    fn what_was_written_is_read_again_and_nothing_shorter_or_longer() {
        for word in words() {
            let message = Message { sender: 7, number: u64::MAX, word };
            let bytes = message.to_bytes(&TAG);
            assert_eq!(format!("{:?}", Message::from_bytes(&bytes, &TAG).unwrap()), format!("{message:?}"));
            let id_may_be_shorter = matches!(message.word, Word::Change(Scope::Employee(_)));
            for length in 0..bytes.len() {
                let read = Message::from_bytes(&bytes[..length], &TAG);
                assert!(read.is_none() || (id_may_be_shorter && length > 18), "{message:?} cut to {length}");
            }
            assert!(Message::from_bytes(&[&bytes[..], b"!"].concat(), &TAG).is_none(), "{message:?}");
        }
    }

    #[test]
    fn a_caller_by_another_key_may_be_anyone() {
        let [.., word] = words();
        let bytes = Message { sender: 1, number: 1, word }.to_bytes(&TAG);
        assert!(matches!(Message::from_bytes(&bytes, b"another!").unwrap().word, Word::Change(Scope::All)));
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::from_bytes(&bytes, &TAG);
        }
    }
}
