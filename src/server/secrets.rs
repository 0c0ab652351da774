//! Warnings about secrets that other users or machines can read.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::{self, Config, RedisEndpoint};

/// Folders in which the service manager or the container runtime decides on the access.
const MANAGED: [&str; 2] = ["/run/secrets", "/run/credentials"];

/// The warnings about a configuration, which `check`, the start and a reload report.
pub fn warnings(config: &Config) -> Vec<String> {
    let Config { admin, server, upstream, change_log, cluster, .. } = config;
    let cluster = cluster.as_ref();
    let mut files = vec![
        ("admin.token_file", admin.token_file.clone()),
        ("upstream.client_key_file", upstream.client_key_file.clone()),
        ("change_log.token_file", change_log.as_ref().map(|log| log.token_file.clone())),
        ("cluster.key_file", cluster.map(|cluster| cluster.key_file.clone())),
        ("cluster.password_file", cluster.and_then(|cluster| cluster.password_file.clone())),
    ];
    let certificates = server.tls.iter().flat_map(config::Tls::certificate_files);
    files.extend(certificates.enumerate().map(|(index, files)| {
        let key =
            if index == 0 { "server.tls.key_file" } else { "server.tls.certificates.key_file" };
        (key, Some(files.key_file))
    }));
    let readable = files.into_iter().filter_map(|(key, file)| readable_by_others(key, &file?));
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
    let RedisEndpoint::Host { tls: false, host, .. } = &cluster.url.endpoint else { return None };
    let loopback =
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
    (!loopback).then(|| {
        format!("cluster.url: the password is sent to {host} in cleartext; use rediss:// (TLS)")
    })
}
