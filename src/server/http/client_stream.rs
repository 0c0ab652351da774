//! An accepted TCP connection.
//!
//! Unlike the type of pingora, it has no buffers, because readers and writers have their own, and
//! measures no times. Bytes that were read before the TLS handshake can be put back. Its
//! descriptor can become a spare when it closes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType, raw_connect,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::descriptors::Spares;

/// Maximum time to send the last bytes of a connection.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection of a client.
#[derive(Debug)]
pub struct ClientStream {
    /// `None` only while it is dropped.
    stream: Option<TcpStream>,
    /// Bytes that were put back. They are read first.
    prefix: BytesMut,
    digest: Arc<SocketDigest>,
    /// Spares that may need the descriptor when the connection ends.
    spares: Option<Arc<Spares>>,
}

impl ClientStream {
    pub fn new(stream: TcpStream, peer: SocketAddr, spares: Option<Arc<Spares>>) -> Self {
        // Without it, a second short write would wait for the client's acknowledgement of the
        // first. It fails only if the client has reset the connection.
        let _ = stream.set_nodelay(true);
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // The digest is new, so it has no address yet.
        let _ = digest.peer_addr.set(Some(peer.into()));
        ClientStream {
            stream: Some(stream),
            prefix: BytesMut::new(),
            digest: Arc::new(digest),
            spares,
        }
    }

    /// Puts back bytes that were read, so that they are read again.
    pub fn put_back(&mut self, bytes: BytesMut) {
        debug_assert!(self.prefix.is_empty(), "bytes are put back once");
        self.prefix = bytes;
    }

    fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("taken only when dropped")
    }

    fn stream_mut(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("taken only when dropped"))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        if let Some(spares) = &self.spares
            && let Ok(socket) = stream.into_std()
        {
            spares.close(socket.into());
        }
    }
}

/// Moves as many bytes as fit. An empty buffer holds no memory.
pub fn copy_into(from: &mut BytesMut, into: &mut ReadBuf<'_>) {
    let count = from.len().min(into.remaining());
    into.put_slice(&from[..count]);
    from.advance(count);
    if from.is_empty() {
        *from = BytesMut::new();
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return self.stream_mut().poll_read(cx, into);
        }
        copy_into(&mut self.prefix, into);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // Over TLS this writes, which a client that reads nothing would block forever. It fails if
        // the client has closed the connection.
        let _ = timeout(SHUTDOWN_TIMEOUT, AsyncWriteExt::shutdown(self)).await;
    }
}

impl UniqueID for ClientStream {
    /// Returns the descriptor.
    fn id(&self) -> UniqueIDType {
        self.stream().as_raw_fd()
    }
}

impl Ssl for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<raw_connect::ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}

impl Peek for ClientStream {}
