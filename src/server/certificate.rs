//! The certificate of the TLS listeners, taken up anew when its files change. A connection keeps the one that it was made
//! with; files that cannot be used are told of, and the old ones stay.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use pingora_rustls::sign::CertifiedKey;
use pingora_rustls::{ClientHello, CryptoProvider, ResolvesServerCert, install_default_crypto_provider};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::start::StartError;
use crate::config::Tls;

/// How often the files are looked at: a renewed certificate is shown within this time.
const LOOK: Duration = Duration::from_secs(1);

/// The certificate that is shown.
#[derive(Debug)]
pub struct Certificate {
    files: Tls,
    shown: ArcSwap<CertifiedKey>,
}

impl Certificate {
    /// # Errors
    /// A file cannot be read, holds no PEM, or the key is another certificate's.
    pub fn load(files: &Tls) -> Result<Self, StartError> {
        install_default_crypto_provider();
        Ok(Certificate { files: files.clone(), shown: ArcSwap::from_pointee(read(files)?) })
    }

    /// Looks at the files from now on, as long as the process lives.
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which serves nobody")]
    pub fn watch(self: &Arc<Self>) {
        let certificate = self.clone();
        std::thread::spawn(move || {
            let mut seen = certificate.stamps();
            loop {
                std::thread::sleep(LOOK);
                let now = certificate.stamps();
                if now == seen {
                    continue;
                }
                match read(&certificate.files) {
                    Ok(key) => {
                        certificate.shown.store(Arc::new(key));
                        tracing::info!("the changed certificate is shown from now on");
                    }
                    Err(error) => tracing::error!(%error, "the changed certificate cannot be used; the old one stays"),
                }
                seen = now;
            }
        });
    }

    /// What tells that a file was written: its time and its size.
    fn stamps(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.files.cert_file, &self.files.key_file].map(|file| {
            let data = std::fs::metadata(file).ok()?;
            Some((data.modified().ok()?, data.len()))
        })
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

fn read(files: &Tls) -> Result<CertifiedKey, StartError> {
    let wrong = |key: &str, file: &Path, error: &dyn std::fmt::Display| {
        StartError::Configuration(format!("server.tls.{key}: {}: {error}", file.display()))
    };
    let chain = CertificateDer::pem_file_iter(&files.cert_file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong("cert_file", &files.cert_file, &error))?;
    if chain.is_empty() {
        return Err(wrong("cert_file", &files.cert_file, &"it must hold a certificate in PEM"));
    }
    let key =
        PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| wrong("key_file", &files.key_file, &error))?;
    let provider = CryptoProvider::get_default().ok_or_else(|| StartError::Environment("no TLS provider".into()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| wrong("key_file", &files.key_file, &error))
}
