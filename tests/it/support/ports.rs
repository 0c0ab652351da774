//! Ports for the gateway, which binds them itself a moment after they were found free. Those that
//! the kernel gives out by itself (32,768 and up on Linux) would be taken in between by other tests
//! and by every connection; so they are looked for below, from a place that differs between
//! processes, and none is given twice in one run.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

/// An address that was free a moment ago. Another process may take it before it is used.
pub fn unused_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // A prime apart, so that neighbours in time do not meet soon.
        let start = std::process::id().wrapping_mul(4_099);
        let at = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + at).expect("below 32,768");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
