//! Trust anchors of the system, for an API over TLS.
//!
//! Bundles are split here and not by a PEM reader, because a reader that meets a certificate
//! without its end also loses the certificates behind it.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

/// Reason why TLS to the API cannot be configured.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct TrustError(pub(super) String);

/// Places where systems keep their bundle; the first that exists counts.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Loads the system's trust anchors. The second value is the number of certificates that cannot be
/// used: one damaged file must not keep the gateway from starting.
///
/// `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the places of the system.
pub fn system_store() -> (RootCertStore, usize) {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let texts = texts(named("SSL_CERT_FILE").as_deref(), named("SSL_CERT_DIR").as_deref());
    usable(&texts)
}

/// As [`system_store`].
///
/// # Errors
///
/// The system has no trust anchor that can be used.
pub fn require_system_store() -> Result<(RootCertStore, usize), TrustError> {
    let (store, skipped) = system_store();
    if store.is_empty() {
        return Err(TrustError(
            "upstream.url: https requires trust anchors, and the system has no usable ones; install \
             its package of CA certificates (or set SSL_CERT_FILE or SSL_CERT_DIR), or set \
             upstream.ca_file"
                .into(),
        ));
    }
    Ok((store, skipped))
}

/// Reads the files that hold anchors.
fn texts(file: Option<&Path>, folder: Option<&Path>) -> Vec<String> {
    let read = |path: &Path| {
        std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    if file.is_none() && folder.is_none() {
        return BUNDLES.iter().find_map(|bundle| read(Path::new(bundle))).into_iter().collect();
    }
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
    let in_folder = entries.filter_map(|entry| read(&entry.ok()?.path()));
    file.and_then(read).into_iter().chain(in_folder).collect()
}

/// The certificates of these texts that can be anchors, each once, and the number of the others.
fn usable(texts: &[String]) -> (RootCertStore, usize) {
    let (mut store, mut skipped) = (RootCertStore::empty(), 0);
    let mut seen = std::collections::HashSet::new();
    for part in texts.iter().flat_map(|text| text.split(BEGIN).skip(1)) {
        let block = part.split_once(END).map(|(body, _)| format!("{BEGIN}{body}{END}\n"));
        let certificate =
            block.and_then(|block| CertificateDer::from_pem_slice(block.as_bytes()).ok());
        let is_usable =
            certificate.is_some_and(|der| !seen.insert(der.clone()) || store.add(der).is_ok());
        skipped += usize::from(!is_usable);
    }
    (store, skipped)
}
