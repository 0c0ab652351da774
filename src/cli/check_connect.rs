//! `check --connect`: tests what a configuration names. It resolves the host names of the API,
//! connects with TLS, sends `GET /auth/validateToken`, and binds the listening addresses that are
//! free.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::CommandError;
use super::status_line::{self, DeadlineStream};
use crate::config::{Config, Loaded, UpstreamUrl};
use crate::server;
use crate::upstream::{self, TlsFailure};

/// The path that is requested without a token.
const PATH: &str = "/auth/validateToken";

/// A failed test.
struct Failure {
    key: &'static str,
    cause: String,
    remedy: &'static str,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { key, cause, remedy } = self;
        write!(f, "{key}: {cause}; {remedy}")
    }
}

/// Runs all tests and returns a line for each success.
///
/// # Errors
/// All failures, one per line.
pub(super) fn run(loaded: &Loaded) -> Result<Vec<String>, CommandError> {
    let config = &loaded.config;
    let mut successes = Vec::new();
    let mut failures = Vec::new();
    for url in &config.upstream.urls {
        match test_api(config, url) {
            Ok(success) => successes.push(success),
            Err(failure) => failures.push(failure),
        }
    }
    for (key, address) in config.listeners() {
        match test_listener(key, address) {
            Ok(success) => successes.push(success),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() {
        return Ok(successes);
    }
    let lines: Vec<String> =
        failures.iter().map(|failure| loaded.locate(&failure.to_string())).collect();
    Err(CommandError { exit_code: super::EXIT_FAILURE, message: lines.join("\n") })
}

fn upstream_failure(cause: String, remedy: &'static str) -> Failure {
    Failure { key: "upstream.url", cause, remedy }
}

/// Tests each address of a URL.
fn test_api(config: &Config, url: &UpstreamUrl) -> Result<String, Failure> {
    let authority = url.authority();
    let name = if url.is_absolute { format!("{}.", url.host) } else { url.host.clone() };
    let resolved = (name.as_str(), url.port).to_socket_addrs().map_err(|error| {
        let remedy = "check the name, and the DNS configuration of this machine";
        upstream_failure(format!("cannot resolve {}: {}", url.host, short(&error)), remedy)
    })?;
    let addresses: Vec<SocketAddr> = resolved.collect();
    let Some(first) = addresses.first() else {
        let cause = format!("{} has no address", url.host);
        return Err(upstream_failure(
            cause,
            "check the name, and the DNS configuration of this machine",
        ));
    };
    let mut failures = Vec::new();
    for address in &addresses {
        match test_address(config, url, *address) {
            Ok(code) => {
                let tls = if url.tls { ", TLS" } else { "" };
                return Ok(format!(
                    "upstream.url: {authority} at {address}{tls}: GET {PATH} returned {code}"
                ));
            }
            Err(failure) => failures.push(failure),
        }
    }
    // The gateway uses any address that works; the first failure is reported if none does.
    Err(failures.into_iter().next().unwrap_or_else(|| {
        upstream_failure(format!("cannot connect to {first}"), "check the address")
    }))
}

fn test_address(config: &Config, url: &UpstreamUrl, address: SocketAddr) -> Result<u16, Failure> {
    let upstream = &config.upstream;
    let connected = TcpStream::connect_timeout(&address, upstream.connect_timeout);
    let stream = connected.map_err(|error| {
        let remedy =
            "check the address and port, and the firewall between this machine and the API";
        upstream_failure(
            format!("cannot connect to {} ({address}): {}", url.authority(), short(&error)),
            remedy,
        )
    })?;
    let authority = url.authority();
    let line = if url.tls {
        let stream = DeadlineStream::new(stream, upstream.connect_timeout);
        let mut tls = handshake(config, url, stream)?;
        tls.sock.restart(upstream.timeout);
        status_line::get(&mut tls, &authority, PATH)
    } else {
        status_line::get(DeadlineStream::new(stream, upstream.timeout), &authority, PATH)
    };
    let line = line.map_err(|error| {
        let cause = format!("no response of {authority} to GET {PATH}: {}", short(&error));
        upstream_failure(
            cause,
            "check that the URL is that of the API, with the right scheme and port",
        )
    })?;
    match status_line::code(&line) {
        Some(code @ (200 | 401)) => Ok(code),
        Some(code) => {
            let cause = format!("{authority} returned {code} to GET {PATH}, expected 401");
            Err(upstream_failure(
                cause,
                "check that the URL is that of the API and that the API works",
            ))
        }
        None => {
            let cause = format!("{authority} does not speak HTTP/1.1");
            Err(upstream_failure(cause, "check scheme (http or https) and port"))
        }
    }
}

fn handshake(
    config: &Config,
    url: &UpstreamUrl,
    stream: DeadlineStream,
) -> Result<StreamOwned<ClientConnection, DeadlineStream>, Failure> {
    let client = upstream::client_config(&config.upstream).map_err(|error| Failure {
        key: "upstream.ca_file",
        cause: error.to_string(),
        remedy: "install trust anchors or name a file with them",
    })?;
    let name = ServerName::try_from(url.host.clone())
        .map_err(|error| upstream_failure(error.to_string(), "use a DNS name or an IP address"))?;
    let connection = ClientConnection::new(client, name)
        .map_err(|error| upstream_failure(error.to_string(), "use a DNS name or an IP address"))?;
    let mut tls = StreamOwned::new(connection, stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).map_err(|error| tls_failure(url, &error))?;
    }
    Ok(tls)
}

fn tls_failure(url: &UpstreamUrl, error: &io::Error) -> Failure {
    let authority = url.authority();
    let (cause, key, remedy) = match TlsFailure::from_io(error) {
        TlsFailure::Expired => {
            ("the certificate has expired", "upstream.url", "renew it at the API")
        }
        TlsFailure::NotYetValid => {
            ("the certificate is not valid yet", "upstream.url", "check the clock of this machine")
        }
        TlsFailure::UnknownAuthority => (
            "the certificate is signed by an unknown authority",
            "upstream.ca_file",
            "set upstream.ca_file to the certificate of that authority",
        ),
        TlsFailure::WrongName => (
            "the certificate is for another name",
            "upstream.url",
            "use the name of the certificate",
        ),
        TlsFailure::NotTls => {
            ("the server does not speak TLS", "upstream.url", "check scheme and port")
        }
        TlsFailure::TimedOut | TlsFailure::Other => (
            "the connection ended or timed out",
            "upstream.url",
            "check TLS versions and the client certificate (upstream.client_cert_file)",
        ),
    };
    Failure { key, cause: format!("TLS handshake with {authority} failed: {cause}"), remedy }
}

/// Binds an address. One that is in use is not a failure: a running gateway may use it.
fn test_listener(key: &'static str, address: SocketAddr) -> Result<String, Failure> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(format!("{key}: {address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Ok(format!("{key}: not tested: {}", server::cannot_listen(address, &error)))
        }
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "use a port from 1024 on, or give the process CAP_NET_BIND_SERVICE"
                }
                _ => "use an address of this machine",
            };
            Err(Failure {
                key,
                cause: format!("cannot listen on {address}: {}", short(&error)),
                remedy,
            })
        }
    }
}

/// The text of an error without its number.
fn short(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "timed out".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).replace('\n', " ")
        }
    }
}
