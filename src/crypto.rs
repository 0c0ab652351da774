//! The provider of cryptography for TLS, the same for clients, the API and Redis.

/// Makes aws-lc-rs the provider of this process, unless one is set. Several are compiled in, because
/// dependencies bring their own, so that rustls cannot choose itself.
pub fn install_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
