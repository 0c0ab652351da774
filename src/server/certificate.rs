//! TLS of the listeners: the certificate that is shown and the authorities of callers' certificates, taken up anew when
//! their files change. A connection keeps what it was made with; files that cannot be used are told of, and the old ones
//! stay.
//!
//! Each change makes a whole configuration of TLS, so no session that began under other authorities is resumed.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_rustls::sign::{CertifiedKey, SingleCertAndKey};
use pingora_rustls::{
    CryptoProvider, RootCertStore, RusTlsError, ServerConfig, WebPkiClientVerifier, install_default_crypto_provider,
    version,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::start::StartError;
use super::wrapped::Wrapped;
use crate::config::{ClientAuth, Clients, Tls};
use crate::telemetry::TlsMetrics;

/// How often the files are looked at. They are read when they were the same twice, since two files are not written at
/// once: what changed is shown within two looks and a bit.
const LOOK: Duration = Duration::from_millis(400);

/// What is agreed on by ALPN, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS of the listeners.
pub struct Certificate {
    files: Tls,
    shown: ArcSwap<Acceptor>,
    metrics: TlsMetrics,
}

/// Files that were read and can be used.
pub struct Loaded {
    acceptor: Acceptor,
    begins: i64,
    /// When the first certificate of the chain to expire does, in seconds since the epoch.
    pub expires: i64,
}

/// What tells that a file was written anew, or replaced.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Certificate {
    /// # Errors
    /// What is wrong with the files. A time that is over is none: without a start there would be no plain listener either.
    pub fn load(files: &Tls, metrics: TlsMetrics) -> Result<Self, StartError> {
        let loaded = read(files).map_err(|problems| StartError::Configuration(problems.join("\n")))?;
        if let Err(wrong) = loaded.is_valid_now(files) {
            tracing::error!(wrong, "callers will not trust the certificate");
        }
        metrics.loaded(loaded.expires);
        Ok(Certificate { files: files.clone(), shown: ArcSwap::from_pointee(loaded.acceptor), metrics })
    }

    /// Reads the files as they are now.
    ///
    /// # Errors
    /// They cannot be used; all that is wrong with them.
    pub fn renewed(&self) -> Result<Loaded, Vec<String>> {
        let loaded = check(&self.files);
        if loaded.is_err() {
            self.metrics.not_loaded();
        }
        loaded
    }

    /// Shows what was read from now on.
    pub fn show(&self, loaded: Loaded) {
        self.metrics.loaded(loaded.expires);
        self.shown.store(Arc::new(loaded.acceptor));
    }

    /// Looks at the files from now on, as long as the process lives.
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which serves nobody")]
    pub fn watch(self: &Arc<Self>) {
        let certificate = self.clone();
        std::thread::spawn(move || {
            let mut read = certificate.stamps();
            let mut seen = read.clone();
            loop {
                std::thread::sleep(LOOK);
                let now = certificate.stamps();
                let settled = now == seen;
                seen = now;
                if !settled || seen == read {
                    continue;
                }
                match certificate.renewed() {
                    Ok(loaded) => {
                        let expires = loaded.expires;
                        certificate.show(loaded);
                        tracing::info!(expires, "the changed certificate is shown from now on");
                    }
                    Err(problems) => {
                        let problems = problems.join("\n");
                        tracing::error!(problems, "the changed certificate cannot be used; the old one stays");
                    }
                }
                read = seen.clone();
            }
        });
    }

    fn stamps(&self) -> Vec<Stamp> {
        let Tls { cert_file, key_file, clients, .. } = &self.files;
        let files = [cert_file, key_file].into_iter().chain(clients.as_ref().map(|clients| &clients.ca_file));
        let stamp = |file| {
            let data = std::fs::metadata(file).ok()?;
            Some((data.modified().ok()?, data.len(), data.ino()))
        };
        files.map(stamp).collect()
    }

    /// Counts a connection that ended before its handshake.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.metrics.handshake_failed(reason);
    }

    /// Does the handshake; `None`: it failed, or took too long.
    pub async fn handshake(&self, stream: Wrapped, longest: Duration) -> Option<Stream> {
        let acceptor = self.shown.load_full();
        match tokio::time::timeout(longest, acceptor.tls_handshake(stream)).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                self.metrics.handshake_failed(reason(&error));
                None
            }
            Err(_) => {
                self.metrics.handshake_failed("timeout");
                None
            }
        }
    }
}

/// Why a handshake failed, in a word. pingora keeps the text of the cause only, so it is told by how rustls begins its
/// messages.
fn reason(error: &pingora_core::Error) -> &'static str {
    const REASONS: [(&str, &str); 6] = [
        ("peer sent no certificates", "client_certificate"),
        ("invalid peer certificate", "client_certificate"),
        ("peer is incompatible", "incompatible"),
        ("received fatal alert", "refused_by_client"),
        ("peer misbehaved", "protocol"),
        ("received corrupt message", "protocol"),
    ];
    let text = error.context.as_ref().map(|context| context.as_str()).unwrap_or_default();
    REASONS.iter().find(|(begins, _)| text.contains(begins)).map_or("connection", |(_, reason)| reason)
}

/// Reads the files, and says all that is wrong with them, the times that they are valid included.
///
/// # Errors
/// All that is wrong.
pub fn check(files: &Tls) -> Result<Loaded, Vec<String>> {
    let loaded = read(files)?;
    loaded.is_valid_now(files).map_err(|wrong| vec![wrong])?;
    Ok(loaded)
}

impl Loaded {
    fn is_valid_now(&self, files: &Tls) -> Result<(), String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let file = &files.cert_file;
        if self.expires <= now {
            let right = "put a renewed certificate there";
            return Err(wrong("cert_file", file, format_args!("expired at {}; {right}", time(self.expires))));
        }
        if self.begins > now {
            let right = "look at the clock, or put one there that is valid now";
            return Err(wrong("cert_file", file, format_args!("is not valid before {}; {right}", time(self.begins))));
        }
        Ok(())
    }
}

fn time(seconds: i64) -> String {
    ASN1Time::from_timestamp(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn wrong(key: &str, file: &Path, what: impl Display) -> String {
    format!("server.tls.{key}: {}: {what}", file.display())
}

fn read(files: &Tls) -> Result<Loaded, Vec<String>> {
    install_default_crypto_provider();
    let chain = chain_of("cert_file", &files.cert_file);
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| {
        let right = "holds no private key in PEM that can be used; an encrypted one cannot";
        wrong("key_file", &files.key_file, unreadable(&error).unwrap_or(right.to_owned()))
    });
    let authorities = files.clients.as_ref().map(|clients| authorities(&clients.ca_file)).transpose();
    let (chain, key, authorities) = match (chain, key, authorities) {
        (Ok(chain), Ok(key), Ok(authorities)) => (chain, key, authorities),
        (chain, key, authorities) => {
            return Err([chain.err(), key.err(), authorities.err()].into_iter().flatten().collect());
        }
    };
    let valid = validity(&chain).map_err(|what| vec![wrong("cert_file", &files.cert_file, what)])?;
    let Some(provider) = CryptoProvider::get_default() else { return Err(vec!["no TLS provider".into()]) };
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let what = match error {
            RusTlsError::InconsistentKeys(_) => {
                format!(
                    "is not the key of the certificate in {}; put the one there that belongs to it",
                    files.cert_file.display()
                )
            }
            error => error.to_string(),
        };
        vec![wrong("key_file", &files.key_file, what)]
    })?;
    let builder = ServerConfig::builder_with_protocol_versions(&[&version::TLS13, &version::TLS12]);
    let builder = match (authorities, &files.clients) {
        (Some(authorities), Some(Clients { ca_file, auth })) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(authorities));
            let verifier = match auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            let unusable = |error| vec![wrong("client_ca_file", ca_file, error)];
            builder.with_client_cert_verifier(verifier.build().map_err(unusable)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = Acceptor::from_server_config(Arc::new(config));
    Ok(Loaded { acceptor, begins: valid.0, expires: valid.1 })
}

fn unreadable(error: &rustls_pki_types::pem::Error) -> Option<String> {
    match error {
        rustls_pki_types::pem::Error::Io(error) => Some(format!("cannot be read: {error}")),
        _ => None,
    }
}

fn chain_of(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let none = "holds no certificate in PEM";
    let chain = chain.map_err(|error| wrong(key, file, unreadable(&error).unwrap_or(format!("{none}: {error}"))))?;
    if chain.is_empty() { Err(wrong(key, file, none)) } else { Ok(chain) }
}

fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in chain_of("client_ca_file", file)? {
        store.add(certificate).map_err(|error| wrong("client_ca_file", file, error))?;
    }
    Ok(store)
}

/// From when and until when every certificate of the chain is valid, in seconds since the epoch.
fn validity(chain: &[CertificateDer<'_>]) -> Result<(i64, i64), String> {
    let mut valid = (i64::MIN, i64::MAX);
    for certificate in chain {
        let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| format!("is no certificate: {error}"))?;
        let of_this = parsed.validity();
        valid = (valid.0.max(of_this.not_before.timestamp()), valid.1.min(of_this.not_after.timestamp()));
    }
    Ok(valid)
}
