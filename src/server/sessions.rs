//! TLS sessions: which handshakes may be resumed, and whether one was.

use std::cell::Cell;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, ServerConfig, SignatureAlgorithm, SignatureScheme};

/// Sessions of clients without tickets that are stored: some 4 MiB. Such clients speak TLS 1.2 at
/// most.
const STORED: usize = 16_384;

/// The sessions of this process. They outlive a change of the certificate.
pub struct Sessions {
    /// Each key is used for six hours and accepted for six more.
    tickets: Arc<dyn ProducesTickets>,
    stored: Arc<dyn StoresServerSessions>,
}

impl Sessions {
    /// # Errors
    /// The operating system gives no randomness.
    pub fn new() -> Result<Self, Error> {
        Ok(Sessions { tickets: Ticketer::new()?, stored: ServerSessionMemoryCache::new(STORED) })
    }

    /// Lets clients of this configuration resume the sessions.
    pub fn allow(&self, config: &mut ServerConfig) {
        config.ticketer = self.tickets.clone();
        config.session_storage = self.stored.clone();
    }

    /// Lets no client resume a session.
    pub fn forbid(config: &mut ServerConfig) {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }

    /// A key whose signatures [`was_signed`] sees.
    pub fn observe(&self, mut certified: CertifiedKey) -> CertifiedKey {
        certified.key = Arc::new(ObservedKey(certified.key));
        certified
    }
}

tokio::task_local! {
    /// Whether the handshake that this task does was signed.
    static SIGNED: Cell<bool>;
}

/// Does a handshake, within which [`was_signed`] may be asked.
pub async fn note_signatures<T>(handshake: impl Future<Output = T>) -> T {
    SIGNED.scope(Cell::new(false), handshake).await
}

/// Whether this handshake proved the certificate. A resumed one does not: it is cheap since it
/// signs nothing.
pub fn was_signed() -> bool {
    SIGNED.try_with(Cell::get).unwrap_or(true)
}

#[derive(Debug)]
struct ObservedKey(Arc<dyn SigningKey>);

impl SigningKey for ObservedKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0.choose_scheme(offered).map(|signer| Box::new(ObservedSigner(signer)) as Box<dyn Signer>)
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
