//! Resumption of TLS sessions: which handshakes may be resumed, and whether one was.

use std::cell::Cell;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions,
};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, ServerConfig, SignatureAlgorithm, SignatureScheme};

use super::tickets::TicketKeys;
use crate::crypto;

/// Maximum number of stored sessions, for clients of TLS 1.2 without tickets: about 4 MiB.
const STORED_SESSIONS_MAX: usize = 16_384;

/// The resumable sessions of this process. They outlive a change of the certificate.
pub struct TlsSessions {
    /// The keys of the cluster, or keys of this process, each of which encrypts for six hours and
    /// decrypts for six more.
    tickets: Arc<dyn ProducesTickets>,
    stored: Arc<dyn StoresServerSessions>,
}

impl TlsSessions {
    /// `cluster`: the ticket keys that all gateways of a cluster derive. They are not used in FIPS
    /// mode, whose module does not contain their cipher.
    ///
    /// # Errors
    ///
    /// The operating system provides no random bytes.
    pub fn new(cluster: Option<TicketKeys>) -> Result<Self, Error> {
        let tickets = match cluster {
            Some(keys) if !crypto::is_fips() => Arc::new(keys),
            _ => Ticketer::new()?,
        };
        Ok(TlsSessions { tickets, stored: ServerSessionMemoryCache::new(STORED_SESSIONS_MAX) })
    }

    /// Permits clients of this configuration to resume sessions.
    pub fn allow(&self, config: &mut ServerConfig) {
        config.ticketer = self.tickets.clone();
        config.session_storage = self.stored.clone();
    }

    /// Permits no client of this configuration to resume a session.
    pub fn forbid(config: &mut ServerConfig) {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
}

/// Returns a key whose signatures [`was_signed`] observes.
pub fn observe(mut certified: CertifiedKey) -> CertifiedKey {
    certified.key = Arc::new(ObservedKey(certified.key));
    certified
}

tokio::task_local! {
    /// Whether the handshake of this task was signed.
    static SIGNED: Cell<bool>;
}

/// Runs a handshake, within which [`was_signed`] may be called.
pub async fn observe_signatures<T>(handshake: impl Future<Output = T>) -> T {
    SIGNED.scope(Cell::new(false), handshake).await
}

/// Whether this handshake proved the certificate. A resumed handshake does not: it is cheap because
/// it signs nothing.
pub fn was_signed() -> bool {
    SIGNED.try_with(Cell::get).unwrap_or(true)
}

#[derive(Debug)]
struct ObservedKey(Arc<dyn SigningKey>);

impl SigningKey for ObservedKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0
            .choose_scheme(offered)
            .map(|signer| Box::new(ObservedSigner(signer)) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<rustls_pki_types::SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct ObservedSigner(Box<dyn Signer>);

impl Signer for ObservedSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let _ = SIGNED.try_with(|signed| signed.set(true));
        self.0.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}
