//! TLS of the listeners: the certificate that is shown and the authorities of clients'
//! certificates, taken up again when their files change. A connection keeps what it was made with;
//! files that cannot be used are reported, and the old ones
//! stay.
//!
//! TlsSessions are resumed by tickets, whose keys rotate, or from a store; a renewed certificate keeps
//! them. Where clients' certificates are asked for, no session is resumed: a resumed session keeps
//! the chain that it began with and does not check it again, so it would outlive the certificate
//! and its authority.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::{IO, Stream};
use pingora_rustls::sign::{CertifiedKey, SingleCertAndKey};
use pingora_rustls::{CryptoProvider, RootCertStore, RusTlsError, ServerConfig, WebPkiClientVerifier, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::start_error::StartError;
use super::tls_sessions::{TlsSessions, observe_signatures, was_signed};
use crate::config::{ClientAuth, Clients, Tls};
use crate::crypto;
use crate::telemetry::TlsMetrics;

/// How often the files are looked at. They are read when they were the same twice, since two files are not written at
/// once: what changed is shown within two looks and a bit.
const LOOK: Duration = Duration::from_millis(400);

/// What is agreed on by ALPN, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS of the listeners.
pub struct Certificate {
    files: Tls,
    shown: ArcSwap<Shown>,
    sessions: TlsSessions,
    metrics: TlsMetrics,
}

/// What connections are made with.
struct Shown {
    acceptor: Acceptor,
    digest: blake3::Hash,
}

/// Files that were read and can be used.
pub struct Loaded {
    shown: Shown,
    /// From when and until when the certificate itself is valid, in seconds since the epoch.
    valid: (i64, i64),
    /// When the first certificate of the chain to expire does, in seconds since the epoch.
    pub expires: i64,
}

/// What changes when a file is written or replaced: its times of change, of content and of
/// everything, size and number.
type Stamp = Option<(SystemTime, (i64, i64), u64, u64)>;

impl Certificate {
    /// # Errors
    /// What is wrong with the files. A time that is over is none: without a start there would be no plain listener either.
    pub fn load(files: &Tls, metrics: TlsMetrics) -> Result<Self, StartError> {
        let sessions = TlsSessions::new().map_err(|error| StartError::Environment(format!("TLS tickets: {error}")))?;
        let loaded = read(files, &sessions).map_err(|problems| StartError::Configuration(problems.join("\n")))?;
        if let Err(wrong) = loaded.is_valid_now(files) {
            tracing::error!(wrong, "clients will reject the certificate");
        }
        metrics.set_loaded(loaded.expires);
        Ok(Certificate { files: files.clone(), shown: ArcSwap::from_pointee(loaded.shown), sessions, metrics })
    }

    /// Reads the files as they are now. What is shown already may be shown on, also where its time
    /// is over: to refuse it would change nothing.
    ///
    /// # Errors
    /// They cannot be used; all that is wrong with them.
    pub fn reload(&self) -> Result<Loaded, Vec<String>> {
        let loaded = read(&self.files, &self.sessions).and_then(|loaded| {
            let time = if self.is_shown(&loaded) { Ok(()) } else { loaded.is_valid_now(&self.files) };
            time.map(|()| loaded).map_err(|wrong| vec![wrong])
        });
        if loaded.is_err() {
            self.metrics.set_load_failed();
        }
        loaded
    }

    /// Shows what was read from now on.
    pub fn store(&self, loaded: Loaded) {
        self.metrics.set_loaded(loaded.expires);
        if !self.is_shown(&loaded) {
            self.shown.store(Arc::new(loaded.shown));
        }
    }

    fn is_shown(&self, loaded: &Loaded) -> bool {
        self.shown.load().digest == loaded.shown.digest
    }

    /// Looks at the files from now on, as long as the process lives. Files that cannot be used are
    /// tried again at each look: what is wrong may end without a change of them, such as a
    /// certificate that is not valid yet.
    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which serves nobody")]
    pub fn watch(self: &Arc<Self>) {
        let certificate = self.clone();
        std::thread::spawn(move || {
            let mut read = certificate.stamps();
            let mut seen = read.clone();
            let mut failed: Option<Vec<String>> = None;
            loop {
                std::thread::sleep(LOOK);
                let now = certificate.stamps();
                let settled = now == seen;
                seen = now;
                if !settled || (seen == read && failed.is_none()) {
                    continue;
                }
                match certificate.reload() {
                    Ok(loaded) => {
                        let (expires, is_new) = (loaded.expires, !certificate.is_shown(&loaded));
                        certificate.store(loaded);
                        if is_new {
                            tracing::info!(expires, "reloaded the certificate");
                        }
                        failed = None;
                    }
                    // Once for each thing that is wrong, not for each look.
                    Err(problems) if failed.as_ref() != Some(&problems) => {
                        let text = problems.join("\n");
                        tracing::error!(
                            problems = text,
                            "failed to reload the certificate; the current one stays in use"
                        );
                        failed = Some(problems);
                    }
                    Err(_) => {}
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
            Some((data.modified().ok()?, (data.ctime(), data.ctime_nsec()), data.len(), data.ino()))
        };
        files.map(stamp).collect()
    }

    /// Counts a connection that ended before its handshake.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.metrics.count_failure(reason, "");
    }

    /// Does the handshake; `None`: it failed, or took too long.
    pub async fn handshake(&self, stream: impl IO + 'static, longest: Duration) -> Option<Stream> {
        let shown = self.shown.load_full();
        let handshake = observe_signatures(async {
            let done = shown.acceptor.tls_handshake(stream).await;
            done.map(|stream| (stream, if was_signed() { "full" } else { "resumed" }))
        });
        match tokio::time::timeout(longest, handshake).await {
            Ok(Ok((stream, kind))) => {
                self.metrics.count_handshake(kind);
                Some(Box::new(stream))
            }
            Ok(Err(error)) => {
                let (reason, cause) = reason(&error);
                self.metrics.count_failure(reason, cause);
                None
            }
            Err(_) => {
                self.metrics.count_failure("timeout", "");
                None
            }
        }
    }
}

/// Why a handshake failed, and of a client certificate what is wrong with it. pingora keeps the
/// text of the cause only, so it is read from how rustls words its messages.
fn reason(error: &pingora_core::Error) -> (&'static str, &'static str) {
    const REASONS: [(&str, &str); 5] = [
        ("invalid peer certificate", "client_certificate"),
        ("peer is incompatible", "incompatible"),
        ("received fatal alert", "refused_by_client"),
        ("peer misbehaved", "protocol"),
        ("received corrupt message", "protocol"),
    ];
    const CAUSES: [(&str, &str); 7] = [
        ("certificate expired", "expired"),
        ("certificate not valid yet", "not_yet_valid"),
        ("UnknownIssuer", "unknown_authority"),
        // Of another authority that has the same name.
        ("BadSignature", "unknown_authority"),
        ("certificate does not allow extended key usage", "wrong_purpose"),
        ("UnsupportedCertVersion", "version"),
        ("Revoked", "revoked"),
    ];
    let text = error.context.as_ref().map(|context| context.as_str()).unwrap_or_default();
    let find =
        |table: &[(&str, &'static str)]| table.iter().find(|(part, _)| text.contains(part)).map(|(_, word)| *word);
    if text.contains("peer sent no certificates") {
        return ("client_certificate", "missing");
    }
    match find(&REASONS).unwrap_or("connection") {
        "client_certificate" => ("client_certificate", find(&CAUSES).unwrap_or("other")),
        reason => (reason, ""),
    }
}

/// Reads the files, and says all that is wrong with them, the times that they are valid included.
///
/// # Errors
/// All that is wrong.
pub fn check(files: &Tls) -> Result<Loaded, Vec<String>> {
    let sessions = TlsSessions::new().map_err(|error| vec![format!("TLS tickets: {error}")])?;
    let loaded = read(files, &sessions)?;
    loaded.is_valid_now(files).map_err(|wrong| vec![wrong])?;
    Ok(loaded)
}

impl Loaded {
    fn is_valid_now(&self, files: &Tls) -> Result<(), String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let file = &files.cert_file;
        let (begins, ends) = self.valid;
        if ends <= now {
            let right = "install a renewed certificate";
            return Err(wrong("cert_file", file, format_args!("expired at {}; {right}", time(ends))));
        }
        if begins > now {
            let right = "check the clock, or install a certificate that is valid now";
            return Err(wrong("cert_file", file, format_args!("is not valid before {}; {right}", time(begins))));
        }
        if self.expires <= now {
            let (file, expired) = (file.display(), time(self.expires));
            tracing::warn!(%file, expired, "a further certificate of the chain has expired");
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

fn read(files: &Tls, sessions: &TlsSessions) -> Result<Loaded, Vec<String>> {
    crypto::install_provider();
    let chain = chain_of("cert_file", &files.cert_file);
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| {
        let right = "contains no usable PEM private key; encrypted keys are not supported";
        wrong("key_file", &files.key_file, unreadable(&error).unwrap_or(right.to_owned()))
    });
    let authorities = files.clients.as_ref().map(|clients| authorities(&clients.ca_file)).transpose();
    let (chain, key, authorities) = match (chain, key, authorities) {
        (Ok(chain), Ok(key), Ok(authorities)) => (chain, key, authorities),
        (chain, key, authorities) => {
            return Err([chain.err(), key.err(), authorities.err()].into_iter().flatten().collect());
        }
    };
    let (valid, expires) = validity(&chain).map_err(|what| vec![wrong("cert_file", &files.cert_file, what)])?;
    let digest = digest(&chain, &key, authorities.as_ref().map(|(_, certificates)| certificates.as_slice()));
    let Some(provider) = CryptoProvider::get_default() else { return Err(vec!["no TLS provider".into()]) };
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let what = match error {
            RusTlsError::InconsistentKeys(_) => {
                format!("does not belong to the certificate in {}; install the matching key", files.cert_file.display())
            }
            error => error.to_string(),
        };
        vec![wrong("key_file", &files.key_file, what)]
    })?;
    let builder = ServerConfig::builder_with_protocol_versions(&[&version::TLS13, &version::TLS12]);
    let builder = match (authorities, &files.clients) {
        (Some((authorities, _)), Some(Clients { ca_file, auth })) => {
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
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(sessions.observe(certified))));
    match files.clients {
        Some(_) => TlsSessions::forbid(&mut config),
        None => sessions.allow(&mut config),
    }
    config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = Acceptor::from_server_config(Arc::new(config));
    Ok(Loaded { shown: Shown { acceptor, digest }, valid, expires })
}

/// A digest of all that the files hold: by it an unchanged certificate is known.
fn digest(
    chain: &[CertificateDer<'_>],
    key: &PrivateKeyDer<'_>,
    authorities: Option<&[CertificateDer<'_>]>,
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&(chain.len() as u64).to_le_bytes());
    chain.iter().for_each(|certificate| part(certificate));
    part(key.secret_der());
    authorities.into_iter().flatten().for_each(|certificate| part(certificate));
    hasher.finalize()
}

fn unreadable(error: &rustls_pki_types::pem::Error) -> Option<String> {
    match error {
        rustls_pki_types::pem::Error::Io(error) => Some(format!("cannot be read: {error}")),
        _ => None,
    }
}

fn chain_of(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let none = "contains no PEM certificate";
    let chain = chain.map_err(|error| wrong(key, file, unreadable(&error).unwrap_or(format!("{none}: {error}"))))?;
    if chain.is_empty() { Err(wrong(key, file, none)) } else { Ok(chain) }
}

fn authorities(file: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let mut store = RootCertStore::empty();
    let certificates = chain_of("client_ca_file", file)?;
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|error| wrong("client_ca_file", file, error))?;
    }
    Ok((store, certificates))
}

/// From when and until when the first certificate is valid, which is the gateway's own, and when
/// the first of the chain expires; in seconds since the epoch.
fn validity(chain: &[CertificateDer<'_>]) -> Result<((i64, i64), i64), String> {
    let mut valid = None;
    let mut expires = i64::MAX;
    for certificate in chain {
        let (_, parsed) =
            parse_x509_certificate(certificate).map_err(|error| format!("invalid certificate: {error}"))?;
        let of_this = parsed.validity();
        let times = (of_this.not_before.timestamp(), of_this.not_after.timestamp());
        valid.get_or_insert(times);
        expires = expires.min(times.1);
    }
    Ok((valid.ok_or("holds no certificate")?, expires))
}
