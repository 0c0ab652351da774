//! Session tickets that all gateways of a cluster accept (RFC 5077, RFC 8446 section 4.6.1).
//!
//! Each gateway derives the ticket keys from the keys of the cluster and the time, so that a
//! session resumes at another gateway, after a restart and after an upgrade, without an exchange of
//! keys. A key encrypts for one period, and its tickets are accepted until the next period ends.
//!
//! A ticket is: period (8 bytes), nonce (24), ciphertext, tag (16).

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// Seconds for which a key encrypts: as long as rustls' own ticket keys.
const PERIOD_SECONDS: u32 = 6 * 60 * 60;

const NONCE_BYTES: usize = 24;

/// The secrets that the ticket keys are derived from.
pub struct TicketKeys {
    /// The first encrypts, all decrypt.
    secrets: Vec<Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys(…)")
    }
}

impl TicketKeys {
    pub fn new(secrets: Vec<Zeroizing<[u8; 32]>>) -> Self {
        TicketKeys { secrets }
    }

    fn encrypt_in(&self, period: u64, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).ok()?;
        let period_bytes = period.to_be_bytes();
        let cipher = cipher(self.secrets.first()?, period);
        let payload = Payload { msg: plain, aad: &period_bytes };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some([period_bytes.as_slice(), &nonce, &sealed].concat())
    }

    fn decrypt_in(&self, now: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        let (period_bytes, rest) = ticket.split_first_chunk::<8>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let period = u64::from_be_bytes(*period_bytes);
        // The clock of the gateway that issued it may be ahead.
        if !(now.saturating_sub(1)..=now + 1).contains(&period) {
            return None;
        }
        self.secrets.iter().find_map(|secret| {
            let payload = Payload { msg: sealed, aad: period_bytes };
            cipher(secret, period).decrypt(&XNonce::from(*nonce), payload).ok()
        })
    }
}

fn cipher(secret: &[u8; 32], period: u64) -> XChaCha20Poly1305 {
    let key = Zeroizing::new(*blake3::keyed_hash(secret, &period.to_be_bytes()).as_bytes());
    XChaCha20Poly1305::new((&*key).into())
}

fn period(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_epoch.as_secs() / u64::from(PERIOD_SECONDS)
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        PERIOD_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_in(period(SystemTime::now()), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_in(period(SystemTime::now()), cipher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secrets: &[u8]) -> TicketKeys {
        TicketKeys::new(secrets.iter().map(|byte| Zeroizing::new([*byte; 32])).collect())
    }

    #[test]
    fn ticket_is_accepted_until_the_next_period_ends() {
        let issuer = keys(&[1]);
        let ticket = issuer.encrypt_in(100, b"session").unwrap();
        for (now, accepted) in [(98, false), (99, true), (100, true), (101, true), (102, false)] {
            let plain = keys(&[1]).decrypt_in(now, &ticket);
            assert_eq!(plain.as_deref(), accepted.then_some(b"session".as_slice()), "{now}");
        }
    }

    #[test]
    fn ticket_of_another_key_or_changed_ticket_is_refused() {
        let ticket = keys(&[1]).encrypt_in(100, b"session").unwrap();
        assert!(keys(&[2]).decrypt_in(100, &ticket).is_none());
        assert!(keys(&[2, 1]).decrypt_in(100, &ticket).is_some(), "a second key decrypts");
        for index in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[index] ^= 1;
            assert!(keys(&[1]).decrypt_in(100, &changed).is_none(), "{index}");
        }
        for length in 0..ticket.len() {
            assert!(keys(&[1]).decrypt_in(100, &ticket[..length]).is_none(), "{length}");
        }
    }
}
