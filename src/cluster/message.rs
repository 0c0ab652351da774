//! Messages of the invalidation stream, in bytes. Each is sealed before it is sent, and read
//! strictly. All have one length, so that a reader of the Redis does not learn what kind of change
//! a message is about.

use bytes::{Buf, BufMut};

use super::environment::{ENVIRONMENT_BYTES, Environment};
use crate::api::{CustomerId, EmployeeId};
use crate::cache::{CallerId, Scope};

/// Version of this form. A new form gets a new number; a gateway that does not know it drops
/// everything instead.
const VERSION: u8 = 2;

const HELLO: u8 = 0;
const ALL: u8 = 1;
const CUSTOMER: u8 = 2;
const EMPLOYEE: u8 = 3;
const CALLER: u8 = 4;
const POLICY: u8 = 5;

/// The longest body, an employee's id. Shorter bodies are padded with zeros to this length.
const BODY_BYTES: usize = EmployeeId::MAX_LEN;

/// Version, environment, sender, number, kind, length of the body.
const HEAD_BYTES: usize = 1 + ENVIRONMENT_BYTES + 8 + 8 + 1 + 1;

/// Length of every message.
const MESSAGE_BYTES: usize = HEAD_BYTES + BODY_BYTES;

/// What a gateway writes, and which gateways can understand it.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Which API the gateway is in front of.
    pub environment: Environment,
    /// By which key the gateway digests tokens.
    pub tag: [u8; 8],
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// The process that sent it: a random number.
    pub sender: u64,
    /// The sender's number of the change, which the ledger gave; of a policy, the sender's number
    /// of that policy.
    pub number: u64,
    pub word: Word,
}

/// What it says.
#[derive(Debug)]
pub enum Word {
    /// It only marks a place in the stream.
    Hello,
    Change(Scope),
    /// The sender redacts by the policy of this fingerprint since then, in milliseconds of the
    /// server's clock.
    Policy {
        fingerprint: u64,
        since: u64,
    },
    /// Its sender is in front of another API, so that it says nothing here. Never written.
    OtherEnvironment,
}

impl Message {
    /// The message as it is sealed.
    pub fn to_bytes(&self, context: &Context) -> Vec<u8> {
        let mut body = Vec::with_capacity(BODY_BYTES);
        let kind = match &self.word {
            Word::Hello | Word::OtherEnvironment => HELLO,
            Word::Policy { fingerprint, since } => {
                body.put_u64_le(*fingerprint);
                body.put_u64_le(*since);
                POLICY
            }
            Word::Change(Scope::All) => ALL,
            Word::Change(Scope::Customer(id)) => {
                body.put_slice(id.to_string().as_bytes());
                CUSTOMER
            }
            Word::Change(Scope::Employee(id)) => {
                body.put_slice(id.as_str().as_bytes());
                EMPLOYEE
            }
            Word::Change(Scope::Caller(id)) => {
                body.put_slice(&context.tag);
                body.put_slice(id.as_bytes());
                CALLER
            }
        };
        let mut out = Vec::with_capacity(MESSAGE_BYTES);
        out.put_u8(VERSION);
        out.put_slice(context.environment.as_bytes());
        out.put_u64_le(self.sender);
        out.put_u64_le(self.number);
        out.put_u8(kind);
        // No body is longer than `BODY_BYTES`, which fits.
        out.put_u8(body.len() as u8);
        out.put_slice(&body);
        out.resize(MESSAGE_BYTES, 0);
        out
    }

    /// Reads a message. `None`: it is malformed in some way. A caller that another key digested may
    /// be anyone here, so that everything is meant.
    pub fn from_bytes(bytes: &[u8], context: &Context) -> Option<Self> {
        let mut rest: &[u8] = <&[u8; MESSAGE_BYTES]>::try_from(bytes).ok()?;
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (environment, mut rest) = rest.split_first_chunk::<ENVIRONMENT_BYTES>()?;
        let (sender, number) = (rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?);
        if environment != context.environment.as_bytes() {
            return Some(Message { sender, number, word: Word::OtherEnvironment });
        }
        let (kind, length) = (rest.try_get_u8().ok()?, rest.try_get_u8().ok()?);
        let (mut body, padding) = rest.split_at_checked(length.into())?;
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        let word = match (kind, body) {
            (HELLO, []) => Word::Hello,
            (POLICY, [..]) => {
                let policy =
                    Word::Policy { fingerprint: body.try_get_u64_le().ok()?, since: body.try_get_u64_le().ok()? };
                body.is_empty().then_some(policy)?
            }
            (ALL, []) => Word::Change(Scope::All),
            (CUSTOMER, id) => Word::Change(Scope::Customer(CustomerId::parse(id)?)),
            (EMPLOYEE, id) => Word::Change(Scope::Employee(EmployeeId::parse(std::str::from_utf8(id).ok()?)?)),
            (CALLER, rest) => {
                let (by, id) = rest.split_first_chunk::<8>()?;
                let id = CallerId::from_bytes(id.try_into().ok()?);
                Word::Change(if *by == context.tag { Scope::Caller(id) } else { Scope::All })
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
    use crate::config;
    use proptest::prelude::*;

    fn context(url: &str, tag: &[u8; 8]) -> Context {
        let config = config::parse("test", &format!("upstream.url = {url:?}"), []).unwrap();
        Context { environment: Environment::of(&config.upstream), tag: *tag }
    }

    fn here() -> Context {
        context("https://api.example", b"a key id")
    }

    fn words() -> [Word; 6] {
        [
            Word::Hello,
            Word::Policy { fingerprint: 0x0123_4567_89ab_cdef, since: 1_732_567_890_123 },
            Word::Change(Scope::All),
            Word::Change(Scope::Customer(CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap())),
            Word::Change(Scope::Employee(EmployeeId::parse("5f00000000000000000000aa").unwrap())),
            Word::Change(Scope::Caller(CallerIds::with_key([7; 32]).id_of("a"))),
        ]
    }

    #[test]
    fn message_is_read_as_written_and_at_no_other_length() {
        for word in words() {
            let message = Message { sender: 7, number: u64::MAX, word };
            let bytes = message.to_bytes(&here());
            assert_eq!(bytes.len(), MESSAGE_BYTES, "{message:?}: every kind has the same length");
            assert_eq!(format!("{:?}", Message::from_bytes(&bytes, &here()).unwrap()), format!("{message:?}"));
            for length in 0..bytes.len() {
                assert!(Message::from_bytes(&bytes[..length], &here()).is_none(), "{message:?} cut to {length}");
            }
            assert!(Message::from_bytes(&[&bytes[..], b"!"].concat(), &here()).is_none(), "{message:?}");
            let mut padded = bytes.clone();
            padded[MESSAGE_BYTES - 1] = 1;
            assert!(Message::from_bytes(&padded, &here()).is_none(), "{message:?}: padding that says something");
        }
    }

    #[test]
    fn longest_employee_id_fits_a_message() {
        let id = EmployeeId::parse(&"a".repeat(EmployeeId::MAX_LEN)).unwrap();
        let message = Message { sender: 7, number: 1, word: Word::Change(Scope::Employee(id)) };
        let bytes = message.to_bytes(&here());
        assert_eq!(format!("{:?}", Message::from_bytes(&bytes, &here()).unwrap()), format!("{message:?}"));
    }

    #[test]
    fn message_of_another_environment_says_nothing() {
        for word in words() {
            let bytes = Message { sender: 1, number: 1, word }.to_bytes(&here());
            let read = Message::from_bytes(&bytes, &context("https://staging.example", b"a key id")).unwrap();
            assert!(matches!(read.word, Word::OtherEnvironment));
        }
    }

    #[test]
    fn caller_digested_by_another_key_means_everything() {
        let [.., word] = words();
        let bytes = Message { sender: 1, number: 1, word }.to_bytes(&here());
        let other = context("https://api.example", b"another!");
        assert!(matches!(Message::from_bytes(&bytes, &other).unwrap().word, Word::Change(Scope::All)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            environment in any::<bool>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..2 * MESSAGE_BYTES),
        ) {
            let mut bytes = bytes;
            if environment && bytes.len() > ENVIRONMENT_BYTES {
                bytes.resize(MESSAGE_BYTES, 0);
                bytes[0] = VERSION;
                bytes[1..=ENVIRONMENT_BYTES].copy_from_slice(here().environment.as_bytes());
            }
            let _ = Message::from_bytes(&bytes, &here());
        }
    }
}
