//! A stream with bytes that were read already in front of it, and the watch over an HTTP/2 connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType, raw_connect,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2::Watch;

/// `stream`, with something before it.
#[derive(Debug)]
pub struct Wrapped {
    stream: Stream,
    /// As if this had not been read.
    read: BytesMut,
    /// Of an HTTP/2 connection.
    watch: Option<Box<Watch>>,
    /// What the connection speaks, where this is known better than by TLS.
    speaks: Option<ALPN>,
}

impl Wrapped {
    /// The stream with what was read of it.
    pub fn rewound(stream: Stream, read: BytesMut) -> Self {
        Wrapped { stream, read, watch: None, speaks: None }
    }

    /// HTTP/2, of which something was read: whatever TLS agreed on.
    pub fn http2(stream: Stream, read: BytesMut, watch: Watch) -> Self {
        let watch = Some(Box::new(watch));
        Wrapped { stream, read, watch, speaks: Some(ALPN::H2) }
    }

    fn note_written(&mut self, written: &io::Result<usize>) {
        if let (Some(watch), Ok(count)) = (&mut self.watch, written) {
            watch.wrote(*count);
        }
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
        loop {
            let before = into.filled().len();
            if let Some(watch) = &mut self.watch {
                // The accept loop is woken, and polls no read before it has ended the connection.
                if watch.is_flooded() {
                    return Poll::Pending;
                }
                if !watch.rest().is_empty() {
                    give(watch.rest(), into);
                    return Poll::Ready(Ok(()));
                }
            }
            if self.read.is_empty() {
                ready!(self.stream_mut().poll_read(cx, into))?;
            } else {
                give(&mut self.read, into);
            }
            let came = into.filled().len() > before;
            if let Some(watch) = &mut self.watch
                && came
            {
                watch.read(&into.filled()[before..]);
                into.set_filled(before);
                continue;
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for Wrapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.stream_mut().poll_write(cx, bytes));
        self.note_written(&written);
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wrapped { stream, watch, .. } = &mut *self;
        let Some(watch) = watch else { return Pin::new(stream).poll_shutdown(cx) };
        if !watch.lingers() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        watch.poll_linger(stream, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.stream_mut().poll_write_vectored(cx, slices));
        self.note_written(&written);
        Poll::Ready(written)
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
        self.speaks.clone().or_else(|| self.stream.selected_alpn_proto())
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
