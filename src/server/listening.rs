//! Whether the listeners are this process's own. A connection that is accepted does not say by whom: between our look at a
//! port and pingora's bind, another process may have taken it.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::lifecycle::Lifecycle;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// How long one connection to a listener may take.
const CONNECT: Duration = Duration::from_secs(1);

/// A listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Tells the lifecycle once every listener is there and answers.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which serves nobody")]
pub fn tell_when_serving(listeners: Vec<SocketAddr>, lifecycle: Arc<Lifecycle>) {
    std::thread::spawn(move || {
        for address in listeners {
            while owns(address.port()) == Some(false)
                || TcpStream::connect_timeout(&reachable(address), CONNECT).is_err()
            {
                std::thread::sleep(LOOK);
            }
            tracing::info!(%address, "listening");
        }
        lifecycle.now_serving();
        tracing::info!("ready");
    });
}

/// Where a listener on every address is reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Whether a socket of this process listens on the port; `None` where the system does not tell (proc(5)).
fn owns(port: u16) -> Option<bool> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(fs::read_to_string);
    let mut listening = HashSet::new();
    for table in tables.iter().flatten() {
        listening.extend(table.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, state, inode) = (*fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
            let listens = state == LISTEN && u16::from_str_radix(local.rsplit(':').next()?, 16) == Ok(port);
            listens.then(|| format!("socket:[{inode}]"))
        }));
    }
    tables.iter().find(|table| table.is_ok())?;
    let own = fs::read_dir("/proc/self/fd").ok()?;
    let mut links = own.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    Some(links.any(|link| link.to_str().is_some_and(|link| listening.contains(link))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_owned_while_a_socket_of_ours_listens_on_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(owns(port), Some(true));
        drop(listener);
        assert_eq!(owns(port), Some(false));
    }
}
