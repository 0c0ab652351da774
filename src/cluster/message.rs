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

/// One message.
#[derive(Debug)]
pub struct Message {
    /// The process that sent it: a random number.
    pub sender: u64,
    /// The sender's number of the change, which the ledger gave.
    pub number: u64,
    /// Nothing, where it only marks a place in the stream.
    pub scope: Option<Scope>,
}

impl Message {
    /// `tag`: by which key the sender digests tokens.
    pub fn to_bytes(&self, tag: &[u8; 8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u64_le(self.sender);
        out.put_u64_le(self.number);
        match &self.scope {
            None => out.put_u8(HELLO),
            Some(Scope::All) => out.put_u8(ALL),
            Some(Scope::Customer(id)) => {
                out.put_u8(CUSTOMER);
                out.put_slice(id.to_string().as_bytes());
            }
            Some(Scope::Employee(id)) => {
                out.put_u8(EMPLOYEE);
                out.put_slice(id.as_str().as_bytes());
            }
            Some(Scope::Caller(id)) => {
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
        let scope = match (rest.try_get_u8().ok()?, rest) {
            (HELLO, []) => None,
            (ALL, []) => Some(Scope::All),
            (CUSTOMER, id) => Some(Scope::Customer(CustomerId::parse(id)?)),
            (EMPLOYEE, id) => Some(Scope::Employee(EmployeeId::parse(std::str::from_utf8(id).ok()?)?)),
            (CALLER, rest) => {
                let (by, id) = rest.split_first_chunk::<8>()?;
                let id = CallerId::from_bytes(id.try_into().ok()?);
                Some(if by == tag { Scope::Caller(id) } else { Scope::All })
            }
            _ => return None,
        };
        Some(Message { sender, number, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CallerIds;
    use proptest::prelude::*;

    const TAG: [u8; 8] = *b"a key id";

    fn scopes() -> [Option<Scope>; 5] {
        [
            None,
            Some(Scope::All),
            CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").map(Scope::Customer),
            EmployeeId::parse("5f00000000000000000000aa").map(Scope::Employee),
            Some(Scope::Caller(CallerIds::with_key([7; 32]).of("a"))),
        ]
    }

    #[test]
    fn what_was_written_is_read_again_and_nothing_shorter_or_longer() {
        for scope in scopes() {
            let message = Message { sender: 7, number: u64::MAX, scope };
            let bytes = message.to_bytes(&TAG);
            assert_eq!(format!("{:?}", Message::from_bytes(&bytes, &TAG).unwrap()), format!("{message:?}"));
            let id_may_be_shorter = matches!(message.scope, Some(Scope::Employee(_)));
            for length in 0..bytes.len() {
                let read = Message::from_bytes(&bytes[..length], &TAG);
                assert!(read.is_none() || (id_may_be_shorter && length > 18), "{message:?} cut to {length}");
            }
            assert!(Message::from_bytes(&[&bytes[..], b"!"].concat(), &TAG).is_none(), "{message:?}");
        }
    }

    #[test]
    fn a_caller_by_another_key_may_be_anyone() {
        let [.., scope] = scopes();
        let bytes = Message { sender: 1, number: 1, scope }.to_bytes(&TAG);
        assert!(matches!(Message::from_bytes(&bytes, b"another!").unwrap().scope, Some(Scope::All)));
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::from_bytes(&bytes, &TAG);
        }
    }
}
