//! TLS to the API: trust anchors, verification, and the cause of a failed handshake.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, ClientConfig, RootCertStore};

use super::anchors::{self, TrustError};
use crate::config;

/// Cause of a failed TLS handshake with the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// No trust anchor vouches for the certificate.
    UnknownAuthority,
    /// The certificate is for another name.
    WrongName,
    /// The peer does not speak TLS.
    NotTls,
    /// The handshake did not end within `upstream.connect_timeout`.
    TimedOut,
    /// Any other failure, such as no common version or a refused client certificate.
    Other,
}

impl TlsFailure {
    pub const fn as_str(self) -> &'static str {
        match self {
            TlsFailure::Expired => "tls_expired",
            TlsFailure::NotYetValid => "tls_not_yet_valid",
            TlsFailure::UnknownAuthority => "tls_unknown_authority",
            TlsFailure::WrongName => "tls_wrong_name",
            TlsFailure::NotTls => "tls_not_tls",
            TlsFailure::TimedOut => "tls_timeout",
            TlsFailure::Other => "tls",
        }
    }

    /// Classifies the error of a handshake. Looks at its kind only, never at its text.
    pub fn from_io(error: &io::Error) -> Self {
        let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match rustls {
            Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    TlsFailure::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    TlsFailure::NotYetValid
                }
                // An authority of the same name as a trusted one has another key.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    TlsFailure::UnknownAuthority
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => TlsFailure::WrongName,
                _ => TlsFailure::Other,
            },
            Some(rustls::Error::InvalidMessage(_)) => TlsFailure::NotTls,
            _ => TlsFailure::Other,
        }
    }
}

/// Builds the client configuration: trust anchors of the system and of `upstream.ca_file`, and the
/// client certificate.
///
/// # Errors
///
/// A named file cannot be used, or there is no trust anchor at all.
pub fn client_config(config: &config::Upstream) -> Result<Arc<ClientConfig>, TrustError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = trust_anchors(config)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError(format!("upstream: TLS: {error}")))?
        .with_root_certificates(roots);
    let mut client = match client_certificate(config)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            TrustError(format!(
                "upstream.client_cert_file: {error}; certificate and key must belong together"
            ))
        })?,
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

/// Checks the files that the configuration of the API names, and whether there are trust anchors.
///
/// # Errors
///
/// A file cannot be used, or there is no trust anchor.
pub fn check_files(config: &config::Upstream) -> Result<(), TrustError> {
    if config.is_tls() { client_config(config).map(drop) } else { Ok(()) }
}

/// Trust anchors of the system and of `upstream.ca_file`. Without such a file the system must have
/// some.
fn trust_anchors(config: &config::Upstream) -> Result<RootCertStore, TrustError> {
    let (mut roots, skipped) = match config.ca_file {
        Some(_) => anchors::system_store(),
        None => anchors::require_system_store()?,
    };
    if skipped > 0 {
        tracing::warn!(skipped, "skipped system trust anchors that cannot be decoded");
    }
    let Some(file) = config.ca_file.as_deref() else { return Ok(roots) };
    for certificate in certificates_of(file)? {
        roots.add(certificate).map_err(|error| ca_file_error(file, &error))?;
    }
    Ok(roots)
}

fn ca_file_error(file: &Path, cause: &dyn fmt::Display) -> TrustError {
    let shown = file.display();
    TrustError(format!("upstream.ca_file: {shown}: {cause}; it must hold certificates in PEM"))
}

/// Certificates of `upstream.ca_file`, at least one.
///
/// # Errors
///
/// The file cannot be read or decoded, or holds no certificate.
fn certificates_of(file: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let found: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| ca_file_error(file, &error))?;
    if found.is_empty() {
        return Err(ca_file_error(file, &"no certificate found"));
    }
    Ok(found)
}

/// A certificate chain with its private key.
type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificate that the gateway presents to the API, if one is configured.
///
/// # Errors
///
/// A file cannot be read or decoded.
fn client_certificate(config: &config::Upstream) -> Result<Option<ClientCertificate>, TrustError> {
    let (Some(cert_file), Some(key_file)) = (&config.client_cert_file, &config.client_key_file)
    else {
        return Ok(None);
    };
    let wrong = |key: &str, file: &Path, cause: &dyn fmt::Display| {
        TrustError(format!("upstream.{key}: {}: {cause}; it must be PEM", file.display()))
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert_file)
        .and_then(Iterator::collect)
        .map_err(|error| wrong("client_cert_file", cert_file, &error))?;
    if chain.is_empty() {
        return Err(wrong("client_cert_file", cert_file, &"no certificate found"));
    }
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| wrong("client_key_file", key_file, &error))?;
    Ok(Some((chain, key)))
}
