//! The choice of a certificate by SNI (RFC 6066 section 3).

use std::collections::HashMap;
use std::sync::Arc;

use pingora_rustls::sign::CertifiedKey;
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};

use super::certificate::ServerCertificate;

/// The certificates of the listeners. A name selects the certificates that contain it, or else
/// those that contain its wildcard; without a match the default certificate is presented. Of
/// several certificates with the same name, such as one with an RSA and one with an ECDSA key, the
/// first that the client can verify is presented.
#[derive(Debug)]
pub struct CertificateResolver {
    default: Vec<Arc<CertifiedKey>>,
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl CertificateResolver {
    /// `certificates`: the default one first.
    pub fn new(certificates: &[Arc<ServerCertificate>]) -> Self {
        let mut by_name: HashMap<String, Vec<_>> = HashMap::new();
        for certificate in certificates {
            for name in &certificate.names {
                by_name.entry(name.clone()).or_default().push(certificate.certified.clone());
            }
        }
        let default = certificates.iter().take(1).map(|certificate| certificate.certified.clone());
        CertificateResolver { default: default.collect(), by_name }
    }

    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = || name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            let exact = self.by_name.get(&name);
            exact.or_else(|| self.by_name.get(&wildcard()?))
        });
        let candidates = named.unwrap_or(&self.default);
        let is_usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        candidates.iter().find(is_usable).or_else(|| candidates.first()).cloned()
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
    }
}
