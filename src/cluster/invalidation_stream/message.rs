//! The encoding of messages of the invalidation stream. Each is encrypted before it is sent, and
//! decoding is strict. All messages have one length, so that a reader of the Redis does not learn
//! what kind of change a message is about.

use bytes::{Buf, BufMut};

use crate::api::{CustomerId, EmployeeId};
use crate::cache::{CallerId, Scope};
use crate::cluster::environment::{ENVIRONMENT_BYTES, Environment};

/// Version of the format. A gateway that does not know a message's version invalidates everything.
const VERSION: u8 = 2;

const HELLO: u8 = 0;
const ALL: u8 = 1;
const CUSTOMER: u8 = 2;
const EMPLOYEE: u8 = 3;
const CALLER: u8 = 4;
const POLICY: u8 = 5;

/// Length of the longest body, an employee's id. Shorter bodies are padded with zeros.
const BODY_BYTES: usize = EmployeeId::MAX_LEN;

/// Length of version, environment, sender, number, kind and length of the body.
const HEAD_BYTES: usize = 1 + ENVIRONMENT_BYTES + 8 + 8 + 1 + 1;

/// Length of every message.
const MESSAGE_BYTES: usize = HEAD_BYTES + BODY_BYTES;

/// The inputs of a gateway's messages other than their content.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The API to which the gateway forwards.
    pub environment: Environment,
    /// Tag of the key by which the gateway digests tokens.
    pub caller_key_tag: [u8; 8],
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// Random number of the sending process.
    pub sender: u64,
    /// The sender's number of the change in its change index, or of the policy.
    pub number: u64,
    pub payload: Payload,
}

/// Content of a message.
#[derive(Debug)]
pub enum Payload {
    /// Marks a position in the stream.
    Hello,
    Change(Scope),
    /// The sender redacts by the policy of this fingerprint. `since`: when that began, in
    /// milliseconds of the server's clock.
    Policy {
        fingerprint: u64,
        since: u64,
    },
    /// The sender forwards to another API, so the message is ignored. Never written.
    OtherEnvironment,
}

impl Message {
    /// The message as it is encrypted.
    pub fn to_bytes(&self, context: &Context) -> Vec<u8> {
        let mut body = Vec::with_capacity(BODY_BYTES);
        let kind = match &self.payload {
            Payload::Hello | Payload::OtherEnvironment => HELLO,
            Payload::Policy { fingerprint, since } => {
                body.put_u64_le(*fingerprint);
                body.put_u64_le(*since);
                POLICY
            }
            Payload::Change(Scope::All) => ALL,
            Payload::Change(Scope::Customer(id)) => {
                body.put_slice(id.to_string().as_bytes());
                CUSTOMER
            }
            Payload::Change(Scope::Employee(id)) => {
                body.put_slice(id.as_str().as_bytes());
                EMPLOYEE
            }
            Payload::Change(Scope::Caller(id)) => {
                body.put_slice(&context.caller_key_tag);
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
        // At most `BODY_BYTES`, which fits.
        out.put_u8(body.len() as u8);
        out.put_slice(&body);
        out.resize(MESSAGE_BYTES, 0);
        out
    }

    /// Decodes a message; `None` if it is malformed. A caller whose token was digested with another
    /// key may be any caller, so its change becomes one of everything.
    pub fn from_bytes(bytes: &[u8], context: &Context) -> Option<Self> {
        let mut rest: &[u8] = <&[u8; MESSAGE_BYTES]>::try_from(bytes).ok()?;
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (environment, mut rest) = rest.split_first_chunk::<ENVIRONMENT_BYTES>()?;
        let (sender, number) = (rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?);
        if environment != context.environment.as_bytes() {
            return Some(Message { sender, number, payload: Payload::OtherEnvironment });
        }
        let (kind, length) = (rest.try_get_u8().ok()?, rest.try_get_u8().ok()?);
        let (mut body, padding) = rest.split_at_checked(length.into())?;
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        let payload = match (kind, body) {
            (HELLO, []) => Payload::Hello,
            (POLICY, [..]) => {
                let fingerprint = body.try_get_u64_le().ok()?;
                let since = body.try_get_u64_le().ok()?;
                body.is_empty().then_some(Payload::Policy { fingerprint, since })?
            }
            (ALL, []) => Payload::Change(Scope::All),
            (CUSTOMER, id) => Payload::Change(Scope::Customer(CustomerId::parse(id)?)),
            (EMPLOYEE, id) => {
                let id = EmployeeId::parse(std::str::from_utf8(id).ok()?)?;
                Payload::Change(Scope::Employee(id))
            }
            (CALLER, rest) => {
                let (tag, id) = rest.split_first_chunk::<8>()?;
                let id = CallerId::from_bytes(id.try_into().ok()?);
                Payload::Change(if *tag == context.caller_key_tag {
                    Scope::Caller(id)
                } else {
                    Scope::All
                })
            }
            _ => return None,
        };
        Some(Message { sender, number, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CallerIds;
    use crate::config;
    use proptest::prelude::*;

    fn context(url: &str, caller_key_tag: &[u8; 8]) -> Context {
        let config = config::parse("test", &format!("upstream.url = {url:?}"), []).unwrap();
        Context {
            environment: Environment::from_upstream(&config.upstream),
            caller_key_tag: *caller_key_tag,
        }
    }

    fn own() -> Context {
        context("https://api.example", b"a key id")
    }

    fn payloads() -> [Payload; 6] {
        [
            Payload::Hello,
            Payload::Policy { fingerprint: 0x0123_4567_89ab_cdef, since: 1_732_567_890_123 },
            Payload::Change(Scope::All),
            Payload::Change(Scope::Customer(
                CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap(),
            )),
            Payload::Change(Scope::Employee(
                EmployeeId::parse("5f00000000000000000000aa").unwrap(),
            )),
            Payload::Change(Scope::Caller(CallerIds::with_key([7; 32]).id_of("a"))),
        ]
    }

    #[test]
    fn message_decodes_only_at_its_full_length() {
        for payload in payloads() {
            let message = Message { sender: 7, number: u64::MAX, payload };
            let bytes = message.to_bytes(&own());
            assert_eq!(bytes.len(), MESSAGE_BYTES, "{message:?}: every kind has the same length");
            assert_eq!(
                format!("{:?}", Message::from_bytes(&bytes, &own()).unwrap()),
                format!("{message:?}")
            );
            for length in 0..bytes.len() {
                assert!(
                    Message::from_bytes(&bytes[..length], &own()).is_none(),
                    "{message:?} cut to {length}"
                );
            }
            assert!(
                Message::from_bytes(&[&bytes[..], b"!"].concat(), &own()).is_none(),
                "{message:?}"
            );
            let mut padded = bytes.clone();
            padded[MESSAGE_BYTES - 1] = 1;
            assert!(
                Message::from_bytes(&padded, &own()).is_none(),
                "{message:?}: padding that is not zero"
            );
        }
    }

    #[test]
    fn longest_employee_id_fits_a_message() {
        let id = EmployeeId::parse(&"a".repeat(EmployeeId::MAX_LEN)).unwrap();
        let message =
            Message { sender: 7, number: 1, payload: Payload::Change(Scope::Employee(id)) };
        let bytes = message.to_bytes(&own());
        assert_eq!(
            format!("{:?}", Message::from_bytes(&bytes, &own()).unwrap()),
            format!("{message:?}")
        );
    }

    #[test]
    fn message_of_another_environment_is_ignored() {
        for payload in payloads() {
            let bytes = Message { sender: 1, number: 1, payload }.to_bytes(&own());
            let read =
                Message::from_bytes(&bytes, &context("https://staging.example", b"a key id"))
                    .unwrap();
            assert!(matches!(read.payload, Payload::OtherEnvironment));
        }
    }

    #[test]
    fn caller_of_another_key_becomes_everything() {
        let [.., payload] = payloads();
        let bytes = Message { sender: 1, number: 1, payload }.to_bytes(&own());
        let other = context("https://api.example", b"another!");
        assert!(matches!(
            Message::from_bytes(&bytes, &other).unwrap().payload,
            Payload::Change(Scope::All)
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_a_panic(
            has_environment in any::<bool>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..2 * MESSAGE_BYTES),
        ) {
            let mut bytes = bytes;
            if has_environment && bytes.len() > ENVIRONMENT_BYTES {
                bytes.resize(MESSAGE_BYTES, 0);
                bytes[0] = VERSION;
                bytes[1..=ENVIRONMENT_BYTES].copy_from_slice(own().environment.as_bytes());
            }
            let _ = Message::from_bytes(&bytes, &own());
        }
    }
}
