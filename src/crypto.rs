//! Cryptography provider of TLS, the same for clients, the API and Redis.

use rustls::crypto::CryptoProvider;

/// Installs aws-lc-rs as the provider of this process, unless one is installed. Dependencies
/// compile in further providers, so rustls cannot choose one itself.
pub fn install_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Whether the provider of this process is the FIPS module of AWS-LC, as in builds with the feature
/// `fips`.
pub fn is_fips() -> bool {
    CryptoProvider::get_default().is_some_and(|provider| provider.fips())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::server::ResolvesServerCertUsingSni;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};

    use super::*;

    #[test]
    fn tls_is_in_fips_mode_only_with_the_feature() {
        install_provider();
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        let client = ClientConfig::builder()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let is_expected = cfg!(feature = "fips");
        assert_eq!([is_fips(), server.fips(), client.fips()], [is_expected; 3]);
    }
}
