//! `healthcheck`: requests `/readyz` of a running gateway, for container images without an HTTP
//! client. The configuration of the gateway gives the address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use thiserror::Error;

use super::status_line::{self, DeadlineStream};

/// Maximum time to connect, and again for the exchange. A ready gateway on this machine responds in
/// milliseconds.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reason why a gateway is not ready.
#[derive(Debug, Error)]
pub(super) enum HealthcheckError {
    #[error("no response from the admin listener on {address}: {error}")]
    NoResponse { address: SocketAddr, error: io::Error },
    #[error("not ready: http://{address}/readyz returned {status_line:?}")]
    NotReady { address: SocketAddr, status_line: String },
}

/// Requests `/readyz`, which needs no token, from the gateway whose admin listener is `admin`.
///
/// # Errors
/// No response, or one other than 200.
pub(super) fn check(admin: SocketAddr) -> Result<(), HealthcheckError> {
    let address = reachable(admin);
    let status_line = request_status_line(address)
        .map_err(|error| HealthcheckError::NoResponse { address, error })?;
    match status_line::code(&status_line) {
        Some(200) => Ok(()),
        _ => Err(HealthcheckError::NotReady { address, status_line }),
    }
}

/// The loopback address of a listener on every address.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port())
}

fn request_status_line(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    status_line::get(DeadlineStream::new(stream, TIMEOUT), &address.to_string(), "/readyz")
}
