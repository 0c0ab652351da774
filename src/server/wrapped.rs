//! A connection with what pingora's own lack: bytes that were read already are given back first, on any stream (pingora's
//! way of giving back works on plain TCP alone), and a chunked body is watched as it comes.

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

use super::chunks::Chunks;
use super::http2::Watch;

/// `stream`, with something before it.
#[derive(Debug)]
pub struct Wrapped {
    stream: Stream,
    /// As if this had not been read.
    read: BytesMut,
    chunks: Option<Chunks>,
    /// Of an HTTP/2 connection.
    watch: Option<Box<Watch>>,
    /// What the connection speaks, where this is known better than by TLS.
    speaks: Option<ALPN>,
}

impl Wrapped {
    /// As the stream itself.
    pub fn plain(stream: Stream) -> Self {
        Wrapped { stream, read: BytesMut::new(), chunks: None, watch: None, speaks: None }
    }

    /// The stream with what was read of it.
    pub fn rewound(stream: Stream, read: BytesMut) -> Self {
        Wrapped { read, ..Wrapped::plain(stream) }
    }

    /// HTTP/2, of which something was read: whatever TLS agreed on.
    pub fn http2(stream: Stream, read: BytesMut, watch: Watch) -> Self {
        Wrapped { read, speaks: Some(ALPN::H2), watch: Some(Box::new(watch)), ..Wrapped::plain(stream) }
    }

    /// Reads fail from the first piece of the body on that two readers could read differently.
    pub fn watched(stream: Stream, chunks: Chunks) -> Self {
        Wrapped { chunks: Some(chunks), ..Wrapped::plain(stream) }
    }

    fn note_written(&mut self, written: &io::Result<usize>) {
        if let (Some(watch), Ok(count)) = (&mut self.watch, written) {
            watch.wrote(*count);
        }
    }

    /// The connection that was wrapped in a watch, for its next request.
    pub fn unwatched(stream: Stream) -> Stream {
        if !(*stream).as_any().is::<Wrapped>() {
            return stream;
        }
        stream.into_any().downcast::<Wrapped>().expect("it was looked at just now").stream
    }
}

/// Whether this is the end of a connection whose body could be read in two ways.
pub fn is_doubtful(error: &pingora_core::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData)
}

impl AsyncRead for Wrapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        if self.watch.as_ref().is_some_and(|watch| watch.is_flooded()) {
            return Poll::Pending;
        }
        if self.read.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        } else {
            let count = self.read.len().min(into.remaining());
            into.put_slice(&self.read[..count]);
            self.read.advance(count);
            if self.read.is_empty() {
                self.read = BytesMut::new();
            }
        }
        if let Some(watch) = &mut self.watch
            && !watch.read(&into.filled()[before..])
        {
            // The accept loop is woken, and polls no read before it has ended the connection.
            into.set_filled(before);
            return Poll::Pending;
        }
        let judged = self.chunks.as_mut().map_or(Ok(()), |chunks| chunks.read(&into.filled()[before..]));
        Poll::Ready(judged.map_err(|_| io::Error::from(io::ErrorKind::InvalidData)))
    }
}

impl AsyncWrite for Wrapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.note_written(&written);
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
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
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
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
