//! The files of a TLS configuration, loaded and checked: server certificates with their keys, and
//! the authorities of client certificates.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pingora_rustls::sign::CertifiedKey;
use pingora_rustls::{CryptoProvider, RootCertStore, RusTlsError, WebPkiClientVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::X509Certificate;
use zeroize::Zeroizing;

use super::sessions;
use crate::clock;
use crate::config::{self, CertificateFiles, ClientAuth};
use crate::secret_file;

/// The key types that the provider can sign with.
const SUPPORTED_KEYS: &str = "RSA from 2048 bits, ECDSA P-256, P-384 or P-521, Ed25519";

/// A certificate chain with its key.
pub struct ServerCertificate {
    key: &'static str,
    files: CertificateFiles,
    /// The label of metrics and logs: "default", or the first DNS name.
    pub label: String,
    /// DNS names of the certificate, in lower case.
    pub names: Vec<String>,
    pub certified: Arc<CertifiedKey>,
    /// The digest of chain and key: equal for an unchanged certificate.
    pub digest: blake3::Hash,
    leaf_times: Times,
    /// When the first certificate of the chain expires, in seconds since the epoch.
    pub chain_expiry: i64,
    chain_warnings: Vec<String>,
}

/// The validity of a certificate, in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    not_before: i64,
    not_after: i64,
}

impl ServerCertificate {
    /// Loads the default certificate and those of `server.tls.certificates`.
    ///
    /// # Errors
    /// The problems of all certificates.
    pub fn load_all(config: &config::Tls) -> Result<Vec<Self>, Vec<String>> {
        let mut certificates = Vec::new();
        let mut problems = Vec::new();
        for (index, files) in config.certificate_files().enumerate() {
            let key = if index == 0 { "server.tls" } else { "server.tls.certificates" };
            match ServerCertificate::load(key, &files) {
                Ok(certificate) => certificates.push(certificate),
                Err(invalid) => problems.extend(invalid),
            }
        }
        if problems.is_empty() { Ok(certificates) } else { Err(problems) }
    }

    fn load(key: &'static str, files: &CertificateFiles) -> Result<Self, Vec<String>> {
        let problem = |name: &str, file: &Path, text: &dyn Display| {
            format!("{key}.{name}: {}: {text}", file.display())
        };
        let chain = read_chain(&files.cert_file)
            .map_err(|error| problem("cert_file", &files.cert_file, &error));
        let private_key = read_private_key(&files.key_file)
            .map_err(|error| problem("key_file", &files.key_file, &error));
        let (chain, private_key) = match (chain, private_key) {
            (Ok(chain), Ok(private_key)) => (chain, private_key),
            (chain, private_key) => {
                return Err([chain.err(), private_key.err()].into_iter().flatten().collect());
            }
        };
        let digest = digest(&chain, &private_key);
        let described = describe_chain(&chain);
        let description =
            described.map_err(|error| vec![problem("cert_file", &files.cert_file, &error)])?;
        let certified = certify(chain, private_key).map_err(|error| {
            vec![match error {
                CertifyError::Key(text) => problem("key_file", &files.key_file, &text),
                CertifyError::Mismatch => problem(
                    "key_file",
                    &files.key_file,
                    &format_args!(
                        "does not belong to the certificate in {}; install the matching key",
                        files.cert_file.display()
                    ),
                ),
                CertifyError::Chain(text) => problem("cert_file", &files.cert_file, &text),
            }]
        })?;
        let is_default = key == "server.tls";
        if !is_default && description.names.is_empty() {
            let text = "has no DNS name (subjectAltName), so no client can select it by SNI; use it as \
                        server.tls.cert_file";
            return Err(vec![problem("cert_file", &files.cert_file, &text)]);
        }
        let label = match description.names.first().filter(|_| !is_default) {
            Some(name) => name.clone(),
            None => "default".to_owned(),
        };
        Ok(ServerCertificate {
            key,
            files: files.clone(),
            label,
            names: description.names,
            certified: Arc::new(sessions::observe(certified)),
            digest,
            leaf_times: description.leaf_times,
            chain_expiry: description.expiry,
            chain_warnings: description.warnings,
        })
    }

    /// Loads the files again; `None` if they are unchanged.
    ///
    /// # Errors
    /// The problems of the files, such as a time at which the certificate is not valid.
    pub fn reload(&self) -> Result<Option<Self>, Vec<String>> {
        let loaded = ServerCertificate::load(self.key, &self.files)?;
        if loaded.digest == self.digest {
            return Ok(None);
        }
        loaded.check_validity().map_err(|problem| vec![problem])?;
        Ok(Some(loaded))
    }

    /// Checks that the leaf is valid now.
    ///
    /// # Errors
    /// It has expired or is not valid yet.
    pub fn check_validity(&self) -> Result<(), String> {
        let now = seconds_since_epoch();
        let Times { not_before, not_after } = self.leaf_times;
        let problem = |text: String| {
            Err(format!("{}.cert_file: {}: {text}", self.key, self.files.cert_file.display()))
        };
        if not_after <= now {
            return problem(format!(
                "expired at {}; install a renewed certificate",
                date(not_after)
            ));
        }
        if not_before > now {
            return problem(format!(
                "is not valid before {}; check the clock, or install a certificate that is valid now",
                date(not_before)
            ));
        }
        Ok(())
    }

    /// Faults of the chain that some clients accept.
    pub fn warnings(&self) -> Vec<String> {
        let prefix = format!("{}.cert_file: {}", self.key, self.files.cert_file.display());
        let mut warnings: Vec<String> =
            self.chain_warnings.iter().map(|text| format!("{prefix}: {text}")).collect();
        let is_expired = |expiry: i64| expiry <= seconds_since_epoch();
        if is_expired(self.chain_expiry) && !is_expired(self.leaf_times.not_after) {
            warnings.push(format!(
                "{prefix}: a further certificate of the chain has expired at {}; remove or renew it",
                date(self.chain_expiry)
            ));
        }
        warnings
    }

    pub fn log_warnings(&self) {
        for warning in self.warnings() {
            tracing::warn!(warning, "the certificate chain has a fault");
        }
    }

    pub fn log_loaded(&self) {
        tracing::info!(
            target: "audit",
            certificate = self.label,
            expires = date(self.chain_expiry),
            "reloaded the certificate"
        );
    }
}

/// The authorities that sign client certificates.
pub struct ClientAuthorities {
    config: config::Clients,
    pub verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientAuthorities {
    /// # Errors
    /// The file contains no usable authority.
    pub fn load(config: &config::Clients) -> Result<Self, String> {
        let problem = |text: &dyn Display| {
            format!("server.tls.client_ca_file: {}: {text}", config.ca_file.display())
        };
        let mut store = RootCertStore::empty();
        for certificate in read_chain(&config.ca_file).map_err(|error| problem(&error))? {
            store.add(certificate).map_err(|error| problem(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder(Arc::new(store));
        let verifier = match config.auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier.build().map_err(|error| problem(&error))?;
        Ok(ClientAuthorities { config: config.clone(), verifier })
    }

    /// # Errors
    /// As [`ClientAuthorities::load`].
    pub fn reload(&self) -> Result<Self, String> {
        ClientAuthorities::load(&self.config)
    }
}

enum CertifyError {
    /// The key itself cannot be used.
    Key(String),
    /// The key belongs to another certificate.
    Mismatch,
    /// The chain cannot be used.
    Chain(String),
}

/// Joins a chain and its key.
fn certify(
    chain: Vec<CertificateDer<'static>>,
    private_key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, CertifyError> {
    let provider = CryptoProvider::get_default();
    let provider = provider.ok_or_else(|| CertifyError::Key("no TLS provider".to_owned()))?;
    let signing_key = provider.key_provider.load_private_key(private_key).map_err(|_| {
        CertifyError::Key(format!("is not a supported private key; supported: {SUPPORTED_KEYS}"))
    })?;
    let certified = CertifiedKey::new(chain, signing_key);
    match certified.keys_match() {
        // Unknown: the key type does not show its public key.
        Ok(()) | Err(RusTlsError::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(RusTlsError::InconsistentKeys(_)) => Err(explain_mismatch(&certified)),
        Err(error) => Err(CertifyError::Chain(match is_version_3(&certified.cert[0]) {
            Some(false) => {
                "is an X.509 version 1 certificate, which TLS clients reject; issue it with \
                            extensions, for example `openssl x509 -req -extfile FILE`"
                    .to_owned()
            }
            _ => error.to_string(),
        })),
    }
}

/// A key that does not match the first certificate may match a later one: the chain is reversed.
fn explain_mismatch(certified: &CertifiedKey) -> CertifyError {
    let matches = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], certified.key.clone()).keys_match().is_ok()
    };
    match certified.cert.iter().position(matches) {
        Some(index) => CertifyError::Chain(format!(
            "the key belongs to certificate {} of the file; put that one first, then its issuer, and so on",
            index + 1
        )),
        None => CertifyError::Mismatch,
    }
}

struct ChainDescription {
    names: Vec<String>,
    leaf_times: Times,
    expiry: i64,
    warnings: Vec<String>,
}

fn describe_chain(chain: &[CertificateDer<'_>]) -> Result<ChainDescription, String> {
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .map(|certificate| parse_x509_certificate(certificate).map(|(_, parsed)| parsed))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("invalid certificate: {error}"))?;
    let times: Vec<Times> = parsed.iter().map(times).collect();
    let Some((leaf, leaf_times)) = parsed.first().zip(times.first().copied()) else {
        return Err("contains no PEM certificate".to_owned());
    };
    let mut warnings = Vec::new();
    for (number, pair) in (2..).zip(parsed.windows(2)) {
        if let [certificate, issuer] = pair
            && certificate.issuer() != issuer.subject()
        {
            warnings.push(format!(
                "certificate {number} of the file did not issue certificate {}; put each certificate \
                 before its issuer",
                number - 1
            ));
        }
    }
    let expiry = times.iter().map(|times| times.not_after).min().unwrap_or(leaf_times.not_after);
    Ok(ChainDescription { names: dns_names(leaf), leaf_times, expiry, warnings })
}

fn times(certificate: &X509Certificate<'_>) -> Times {
    let validity = certificate.validity();
    Times { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() }
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

fn is_version_3(certificate: &CertificateDer<'_>) -> Option<bool> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    Some(parsed.version() == x509_parser::x509::X509Version::V3)
}

fn digest(chain: &[CertificateDer<'_>], key: &PrivateKeyDer<'_>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut update = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    update(&(chain.len() as u64).to_le_bytes());
    chain.iter().for_each(|certificate| update(certificate));
    update(key.secret_der());
    hasher.finalize()
}

fn read_pem(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let bytes = std::fs::read(file).map(Zeroizing::new);
    let bytes = bytes.map_err(|error| format!("cannot be read: {error}"))?;
    secret_file::check_encoding(&bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_pem(file)?;
    let chain: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Err(error) => Err(format!("contains no PEM certificate: {error}")),
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) if has_label(&pem, "PRIVATE KEY-----") => {
            Err("contains no PEM certificate, but a private key; check that cert_file and key_file are not swapped"
                .to_owned())
        }
        Ok(_) => Err("contains no PEM certificate".to_owned()),
    }
}

fn read_private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read_pem(file)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let text = if has_label(&pem, "ENCRYPTED PRIVATE KEY-----") || has_label(&pem, "Proc-Type: 4,ENCRYPTED") {
            "contains an encrypted private key; write it without a passphrase, for example by `openssl pkey -in \
             FILE -out FILE`"
        } else if has_label(&pem, "OPENSSH PRIVATE KEY-----") || has_label(&pem, "DSA PRIVATE KEY-----") {
            return format!(
                "contains no usable PEM private key; supported: {SUPPORTED_KEYS}, in PKCS#8, PKCS#1 or SEC1"
            );
        } else if has_label(&pem, "BEGIN CERTIFICATE-----") {
            "contains no usable PEM private key, but a certificate; check that cert_file and key_file are not swapped"
        } else {
            "contains no usable PEM private key; encrypted keys are not supported"
        };
        text.to_owned()
    })
}

fn has_label(pem: &[u8], label: &str) -> bool {
    memchr::memmem::find(pem, label.as_bytes()).is_some()
}

fn seconds_since_epoch() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A time in UTC, for logs and errors.
fn date(seconds: i64) -> String {
    let since_epoch = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let text = clock::timestamp(UNIX_EPOCH + since_epoch);
    format!("{}Z", text.split('.').next().unwrap_or(&text))
}
