//! PROXY headers of load balancers. Peers in `server.proxy_protocol` must send one; from other
//! peers a header is refused.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use pingora_core::protocols::GetSocketDigest;
use proxy_protocol::Source;
use tokio::io::AsyncReadExt;
use tokio::time::timeout_at;

use super::client_stream::ClientStream;
use super::keepalive_timer::KeepaliveTimer;
use crate::clock;

/// Number of bytes read at once.
const READ_BYTES: usize = 1024;

/// An accepted connection before its protocol is known.
pub struct AcceptedConnection {
    /// Boxed, because a session holds a boxed stream.
    pub stream: Box<ClientStream>,
    /// Bytes that were read behind the PROXY header.
    pub received: BytesMut,
    /// Address of the client: the peer's, or the one of the PROXY header.
    pub client: IpAddr,
}

/// Outcome of reading a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderOutcome {
    Complete,
    /// The received bytes are not a header.
    Malformed,
    /// A part of a header. No response is sent.
    TimedOut,
    /// The peer closed or was idle, as a health check is. No response is sent.
    Closed,
}

impl AcceptedConnection {
    pub fn new(stream: Box<ClientStream>) -> Self {
        let digest = stream.get_socket_digest();
        let peer = digest.as_ref().and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip()));
        let client = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        AcceptedConnection { stream, received: BytesMut::new(), client }
    }

    /// Reads the PROXY header and takes the client's address from it, within `longest`. `keepalive`
    /// ends the wait for the first byte at a drain.
    pub async fn read_proxy_header(
        &mut self,
        mut keepalive: KeepaliveTimer,
        longest: Duration,
    ) -> HeaderOutcome {
        let AcceptedConnection { stream, received, client } = self;
        let began: Instant = clock::now();
        let deadline = began + longest;
        if !keepalive.read(stream, received, began, longest).await {
            return HeaderOutcome::Closed;
        }
        loop {
            match proxy_protocol::parse(received) {
                Ok(Some(header)) => {
                    received.advance(header.length);
                    if let Source::Address(address) = header.source {
                        *client = address.to_canonical();
                    }
                    return HeaderOutcome::Complete;
                }
                Ok(None) => {}
                Err(_) => return HeaderOutcome::Malformed,
            }
            received.reserve(READ_BYTES);
            match timeout_at(deadline.into(), stream.read_buf(received)).await {
                Ok(Ok(1..)) => {}
                Err(_) => return HeaderOutcome::TimedOut,
                Ok(_) => return HeaderOutcome::Closed,
            }
        }
    }
}
