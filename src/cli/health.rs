//! `healthcheck`: asks a running gateway whether it is ready, for container images that hold no other client. It knows
//! where to ask from the configuration that the gateway itself was started with.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// For the connection, and for each read and write. A gateway on this machine answers in milliseconds or is not well.
const PATIENCE: Duration = Duration::from_secs(2);
/// The status line, and no more than is needed to tell what was wrong with it.
const MAX_LINE: u64 = 64;

/// Why a gateway is not called ready.
pub(super) enum Unwell {
    /// Nobody answered.
    Silent(SocketAddr, io::Error),
    /// It answered, with this status line.
    NotReady(SocketAddr, String),
}

impl fmt::Display for Unwell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unwell::Silent(address, error) => write!(f, "no response from the admin listener on {address}: {error}"),
            Unwell::NotReady(address, line) => write!(f, "not ready: http://{address}/readyz returned {line:?}"),
        }
    }
}

/// Asks `/readyz`, which needs no token. `admin` is where the gateway listens.
///
/// # Errors
/// It did not answer 200.
pub(super) fn ask(admin: SocketAddr) -> Result<(), Unwell> {
    let address = reachable(admin);
    let line = status_line(address).map_err(|error| Unwell::Silent(address, error))?;
    if line.split(' ').nth(1) == Some("200") { Ok(()) } else { Err(Unwell::NotReady(address, line)) }
}

/// A listener on every address is asked on loopback.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port())
}

fn status_line(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
