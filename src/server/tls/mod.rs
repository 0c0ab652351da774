//! TLS of the listeners: certificates chosen by SNI, client certificates, sessions.
//!
//! Changed files are loaded again without a restart. A connection keeps what its handshake used.
//! Files that cannot be used are reported, and the certificate loaded before stays in use.
//!
//! Sessions are resumed by tickets, whose keys rotate, or from a store; a renewed certificate keeps
//! them. With client certificates no session is resumed: a resumed session keeps the chain of its
//! first handshake without verifying it again, so it would outlive the certificate and its
//! authority.

mod certificate;
mod failure;
mod resolver;
mod sessions;
mod tickets;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::{IO, Stream};
use pingora_rustls::{ServerConfig, version};

pub use tickets::TicketKeys;

use super::file_watch;
use super::start_error::StartError;
use crate::config;
use crate::crypto;
use crate::telemetry::TlsMetrics;
use certificate::{ClientAuthorities, ServerCertificate};
use resolver::CertificateResolver;
use sessions::{TlsSessions, observe_signatures, was_signed};

/// The protocols of ALPN, preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS configuration of the listeners.
pub struct ListenerTls {
    active: ArcSwap<LoadedTls>,
    /// Locked while the active certificates are replaced, by a reload or by the file watch.
    lock: Mutex<()>,
    sessions: TlsSessions,
    metrics: TlsMetrics,
}

/// Certificates and client authorities in use, and the acceptor made of them.
pub struct LoadedTls {
    files: config::Tls,
    /// The default certificate first, then those of `server.tls.certificates`.
    certificates: Vec<Arc<ServerCertificate>>,
    clients: Option<Arc<ClientAuthorities>>,
    acceptor: Acceptor,
}

impl ListenerTls {
    /// Loads all files. An expired certificate is logged and used: without a start there would be
    /// no cleartext listener either.
    ///
    /// # Errors
    /// All problems of the files.
    pub fn load(
        files: &config::Tls,
        tickets: Option<TicketKeys>,
        metrics: TlsMetrics,
    ) -> Result<Self, StartError> {
        let sessions = TlsSessions::new(tickets)
            .map_err(|error| StartError::Environment(format!("TLS tickets: {error}")))?;
        let loaded = LoadedTls::load(files, &sessions);
        let loaded = loaded.map_err(|problems| StartError::Configuration(problems.join("\n")))?;
        for certificate in &loaded.certificates {
            if let Err(problem) = certificate.check_validity() {
                tracing::error!(wrong = problem, "clients will reject the certificate");
            }
            certificate.log_warnings();
        }
        let tls = ListenerTls {
            active: ArcSwap::from_pointee(loaded),
            lock: Mutex::new(()),
            sessions,
            metrics,
        };
        tls.report(true);
        Ok(tls)
    }

    /// Loads all files of a configuration for a reload. A certificate that is in use may stay in
    /// use even if it has expired: to refuse it would change nothing.
    ///
    /// # Errors
    /// All problems of the files.
    pub fn prepare(&self, files: &config::Tls) -> Result<LoadedTls, Vec<String>> {
        let loaded = LoadedTls::load(files, &self.sessions).and_then(|loaded| {
            let certificates = loaded.certificates.iter();
            let problems: Vec<String> = certificates
                .filter(|certificate| !self.is_in_use(certificate))
                .filter_map(|certificate| certificate.check_validity().err())
                .collect();
            if problems.is_empty() { Ok(loaded) } else { Err(problems) }
        });
        if loaded.is_err() {
            self.report(false);
        }
        loaded
    }

    /// Uses what [`ListenerTls::prepare`] loaded.
    pub fn apply(&self, loaded: LoadedTls) {
        let _lock = self.lock.lock();
        for certificate in &loaded.certificates {
            if !self.is_in_use(certificate) {
                certificate.log_loaded();
                certificate.log_warnings();
            }
        }
        self.active.store(Arc::new(loaded));
        self.report(true);
    }

    fn is_in_use(&self, certificate: &ServerCertificate) -> bool {
        self.active.load().certificates.iter().any(|active| active.digest == certificate.digest)
    }

    fn report(&self, is_successful: bool) {
        let active = self.active.load();
        let expiries = active
            .certificates
            .iter()
            .map(|certificate| (certificate.label.as_str(), certificate.chain_expiry));
        self.metrics.set_loaded(is_successful, expiries);
    }

    /// Loads changed files from now on, as long as the process runs. Files that cannot be used are
    /// tried again at each interval: the cause may end without another change, such as a
    /// certificate that is not valid yet.
    pub fn watch(self: &Arc<Self>) {
        let (watched, reloaded) = (self.clone(), self.clone());
        let mut logged: Vec<String> = Vec::new();
        let files = move || watched.active.load().files();
        file_watch::spawn("TLS files", files, move || {
            let problems = reloaded.reload_changed();
            // Each set of problems is logged once, not at each interval.
            if !problems.is_empty() && problems != logged {
                tracing::error!(
                    problems = problems.join("\n"),
                    "failed to reload the certificate; the current one stays in use"
                );
            }
            logged = problems;
            logged.is_empty()
        });
    }

    /// Loads each file again, and uses those that are valid; returns the problems of the others.
    fn reload_changed(&self) -> Vec<String> {
        let _lock = self.lock.lock();
        let active = self.active.load_full();
        let mut problems = Vec::new();
        let mut certificates = Vec::with_capacity(active.certificates.len());
        for current in &active.certificates {
            match current.reload() {
                Ok(Some(renewed)) => {
                    renewed.log_loaded();
                    renewed.log_warnings();
                    certificates.push(Arc::new(renewed));
                }
                Ok(None) => certificates.push(current.clone()),
                Err(problem) => {
                    problems.extend(problem);
                    certificates.push(current.clone());
                }
            }
        }
        let clients = match active.clients.as_ref().map(|clients| clients.reload()).transpose() {
            Ok(renewed) => renewed.map(Arc::new),
            Err(problem) => {
                problems.push(problem);
                active.clients.clone()
            }
        };
        let files = active.files.clone();
        let loaded = LoadedTls::new(files, certificates, clients, &self.sessions);
        self.active.store(Arc::new(loaded));
        self.report(problems.is_empty());
        problems
    }

    /// Counts a connection that ended before its handshake.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.metrics.count_failure(reason, "");
    }

    /// Accepts a TLS connection; `None` if the handshake failed, or took longer than `timeout`.
    pub async fn handshake(&self, stream: impl IO + 'static, timeout: Duration) -> Option<Stream> {
        let active = self.active.load_full();
        let handshake = observe_signatures(async {
            let done = active.acceptor.tls_handshake(stream).await;
            done.map(|stream| (stream, if was_signed() { "full" } else { "resumed" }))
        });
        match tokio::time::timeout(timeout, handshake).await {
            Ok(Ok((stream, kind))) => {
                self.metrics.count_handshake(kind);
                Some(Box::new(stream))
            }
            Ok(Err(error)) => {
                let failure = failure::HandshakeFailure::from_error(&error);
                self.metrics.count_failure(failure.reason, failure.cause);
                None
            }
            Err(_) => {
                self.metrics.count_failure("timeout", "");
                None
            }
        }
    }
}

impl LoadedTls {
    fn load(files: &config::Tls, sessions: &TlsSessions) -> Result<Self, Vec<String>> {
        crypto::install_provider();
        let certificates = ServerCertificate::load_all(files);
        let clients = files.clients.as_ref().map(ClientAuthorities::load).transpose();
        match (certificates, clients) {
            (Ok(certificates), Ok(clients)) => {
                let certificates = certificates.into_iter().map(Arc::new).collect();
                Ok(LoadedTls::new(files.clone(), certificates, clients.map(Arc::new), sessions))
            }
            (certificates, clients) => {
                let mut problems = certificates.err().unwrap_or_default();
                problems.extend(clients.err());
                Err(problems)
            }
        }
    }

    fn new(
        files: config::Tls,
        certificates: Vec<Arc<ServerCertificate>>,
        clients: Option<Arc<ClientAuthorities>>,
        sessions: &TlsSessions,
    ) -> Self {
        let builder =
            ServerConfig::builder_with_protocol_versions(&[&version::TLS13, &version::TLS12]);
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(clients.verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let resolver = CertificateResolver::new(&certificates);
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        match clients {
            Some(_) => TlsSessions::forbid(&mut config),
            None => sessions.allow(&mut config),
        }
        config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = Acceptor::from_server_config(Arc::new(config));
        LoadedTls { files, certificates, clients, acceptor }
    }

    fn files(&self) -> Vec<PathBuf> {
        files(&self.files)
    }
}

/// The files that a TLS configuration names.
pub fn files(config: &config::Tls) -> Vec<PathBuf> {
    let certificates = config.certificate_files();
    let mut files: Vec<PathBuf> =
        certificates.flat_map(|files| [files.cert_file, files.key_file]).collect();
    files.extend(config.clients.as_ref().map(|clients| clients.ca_file.clone()));
    files
}

/// The result of a check of the files: warnings, or all problems.
///
/// # Errors
/// All problems, invalid times included.
pub fn check(files: &config::Tls) -> Result<Vec<String>, Vec<String>> {
    crypto::install_provider();
    let certificates = ServerCertificate::load_all(files);
    let clients = files.clients.as_ref().map(ClientAuthorities::load).transpose();
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    match certificates {
        Ok(certificates) => {
            for certificate in &certificates {
                problems.extend(certificate.check_validity().err());
                warnings.extend(certificate.warnings());
            }
        }
        Err(invalid) => problems.extend(invalid),
    }
    problems.extend(clients.err());
    if problems.is_empty() { Ok(warnings) } else { Err(problems) }
}
