//! A stream with bytes that were read already in front of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType, raw_connect,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `stream`, with something before it.
#[derive(Debug)]
pub struct Wrapped {
    stream: Stream,
    /// As if this had not been read.
    read: BytesMut,
}

impl Wrapped {
    /// The stream with what was read of it.
    pub fn rewound(stream: Stream, read: BytesMut) -> Self {
        Wrapped { stream, read }
    }

    fn stream_mut(&mut self) -> Pin<&mut Stream> {
        Pin::new(&mut self.stream)
    }
}

/// Gives as much as there is room for. An empty buffer holds no memory.
fn give(from: &mut BytesMut, into: &mut ReadBuf<'_>) {
    let count = from.len().min(into.remaining());
    into.put_slice(&from[..count]);
    from.advance(count);
    if from.is_empty() {
        *from = BytesMut::new();
    }
}

impl AsyncRead for Wrapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return self.stream_mut().poll_read(cx, into);
        }
        give(&mut self.read, into);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wrapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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
        self.stream.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Wrapped {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

impl UniqueID for Wrapped {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Wrapped {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Wrapped {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
}

impl GetProxyDigest for Wrapped {
    fn get_proxy_digest(&self) -> Option<Arc<raw_connect::ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Wrapped {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

/// Not supported, as on other streams than plain TCP.
impl Peek for Wrapped {}
