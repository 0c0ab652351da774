//! Cryptography provider of TLS, the same for clients, the API and Redis.

/// Installs aws-lc-rs as the provider of this process, unless one is installed. Dependencies
/// compile in further providers, so rustls cannot choose one itself.
pub fn install_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
