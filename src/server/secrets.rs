//! What `check` and the start say of secrets: which are refused, and which an operator should keep
//! better.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::{Admin, Config, RedisPlace};

/// The shortest admin token beyond loopback: 16 characters of base64 are 96 bits.
const SHORTEST_ADMIN_TOKEN: usize = 16;

/// Below these the service manager decides who may read.
const MANAGED: [&str; 2] = ["/run/secrets", "/run/credentials"];

/// Reads the digest of the admin token.
///
/// # Errors
/// The file cannot be read, or any client could guess what it holds.
pub fn admin_token(admin: &Admin) -> Result<Option<blake3::Hash>, String> {
    let Some(file) = &admin.token_file else { return Ok(None) };
    let wrong = |what: String| format!("admin.token_file: {}: {what}", file.display());
    let token = std::fs::read(file).map(zeroize::Zeroizing::new).map_err(|error| wrong(error.to_string()))?;
    let token = token.trim_ascii();
    if token.len() < SHORTEST_ADMIN_TOKEN && !admin.listen.ip().to_canonical().is_loopback() {
        return Err(wrong(format!(
            "the token has fewer than {SHORTEST_ADMIN_TOKEN} characters and admin.listen is not a loopback address; generate one with \
             `openssl rand -hex 32`"
        )));
    }
    Ok(Some(blake3::hash(token)))
}

/// What works and should be kept better; a line each.
pub fn warnings(config: &Config) -> Vec<String> {
    let files = [
        ("admin.token_file", config.admin.token_file.as_deref()),
        ("server.tls.key_file", config.server.tls.as_ref().map(|tls| tls.key_file.as_path())),
        ("change_log.token_file", config.change_log.as_ref().map(|log| log.token_file.as_path())),
        ("cluster.key_file", config.cluster.as_ref().map(|cluster| cluster.key_file.as_path())),
        ("cluster.password_file", config.cluster.as_ref().and_then(|cluster| cluster.password_file.as_deref())),
    ];
    let readable = files.into_iter().filter_map(|(key, file)| readable_by_others(key, file?));
    readable.chain(plain_password(config)).collect()
}

fn readable_by_others(key: &str, file: &Path) -> Option<String> {
    if MANAGED.iter().any(|folder| file.starts_with(folder)) {
        return None;
    }
    let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o7777;
    (mode & 0o077 != 0).then(|| {
        format!(
            "{key}: {}: mode {mode:04o} gives access to other users; use mode 0600 and the gateway's user as owner",
            file.display()
        )
    })
}

fn plain_password(config: &Config) -> Option<String> {
    let cluster = config.cluster.as_ref()?;
    cluster.password_file.as_ref()?;
    let RedisPlace::Host { tls: false, host, .. } = &cluster.url.place else { return None };
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
    (!loopback).then(|| format!("cluster.url: the password is sent to {host} in cleartext; use rediss:// (TLS)"))
}
