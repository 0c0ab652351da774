//! The system's trust anchors, for an API over TLS without `upstream.ca_file`. They are read here
//! and not by pingora, which panics where there are none, or where one of them cannot be decoded.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use pingora_rustls::RootCertStore;
use rustix::fs::{MemfdFlags, memfd_create};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::TrustError;
use crate::config::Upstream;

/// Where systems keep their bundle; the first that is there counts.
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

/// A file for pingora that holds trust anchors which can all be decoded.
pub struct AnchorFile(Option<File>);

impl AnchorFile {
    /// Where it is, as long as this lives.
    pub fn path(&self) -> String {
        let descriptor = self.0.as_ref().map(File::as_raw_fd);
        // Nothing is trusted by it: the API is not asked over TLS, or has anchors of its own.
        descriptor.map_or_else(|| "/dev/null".to_owned(), |descriptor| format!("/proc/self/fd/{descriptor}"))
    }
}

/// The anchors that this upstream needs from the system, and how many were passed over.
///
/// # Errors
/// It needs some, and there are none.
pub fn system_anchors(upstream: &Upstream) -> Result<(AnchorFile, usize), TrustError> {
    if !upstream.url.tls || upstream.ca_file.is_some() {
        return Ok((AnchorFile(None), 0));
    }
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let texts = texts(named("SSL_CERT_FILE").as_deref(), named("SSL_CERT_DIR").as_deref());
    let (usable, skipped) = usable(&texts);
    if usable.is_empty() {
        return Err(TrustError(
            "upstream.url: https needs trust anchors, and this system has none that can be used; install its package of CA \
             certificates (SSL_CERT_FILE and SSL_CERT_DIR name other places), or set upstream.ca_file"
                .into(),
        ));
    }
    let kept =
        memfd_create("trust anchors", MemfdFlags::CLOEXEC).map_err(std::io::Error::from).and_then(|descriptor| {
            let mut file = File::from(descriptor);
            file.write_all(usable.as_bytes()).map(|()| file)
        });
    kept.map(|file| (AnchorFile(Some(file)), skipped))
        .map_err(|error| TrustError(format!("the trust anchors cannot be kept in memory: {error}")))
}

/// The texts of the files that hold anchors; the environment's choice replaces the system's.
fn texts(file: Option<&Path>, folder: Option<&Path>) -> Vec<String> {
    let read = |path: &Path| std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if file.is_none() && folder.is_none() {
        return BUNDLES.iter().find_map(|bundle| read(Path::new(bundle))).into_iter().collect();
    }
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
    let in_folder = entries.filter_map(|entry| read(&entry.ok()?.path()));
    file.and_then(read).into_iter().chain(in_folder).collect()
}

/// The certificates of these texts that can be anchors, as PEM, each once; and how many others
/// there are.
fn usable(texts: &[String]) -> (String, usize) {
    let (mut store, mut kept, mut skipped) = (RootCertStore::empty(), String::new(), 0);
    let mut seen = std::collections::HashSet::new();
    for part in texts.iter().flat_map(|text| text.split(BEGIN).skip(1)) {
        let block = part.split_once(END).map(|(body, _)| format!("{BEGIN}{body}{END}\n"));
        let decoded = block.and_then(|block| {
            let certificate = CertificateDer::from_pem_slice(block.as_bytes()).ok()?;
            store.add(certificate.clone()).ok().map(|()| (block, certificate))
        });
        match decoded {
            Some((block, certificate)) => {
                if seen.insert(certificate) {
                    kept.push_str(&block);
                }
            }
            None => skipped += 1,
        }
    }
    (kept, skipped)
}
