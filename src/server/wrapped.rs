//! A connection with what pingora's own lack: bytes that were read already are given back first, on any stream (pingora's
//! way of giving back works on plain TCP alone); of an HTTP/1.1 connection pingora reads one request and no byte behind it;
//! and a chunked body is watched as it comes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType, raw_connect,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::{Chunks, Doubtful};
use super::head::BodyFraming;
use super::http2::Watch;

/// Bytes behind a request that are read before it is answered; more of them wait in the kernel.
pub const MAX_BEHIND: usize = 16 << 10;

/// A connection that pingora closed with data unread, so that a close would reset it.
pub type Unread = Arc<Mutex<Option<Stream>>>;

/// The one request that is read from an HTTP/1.1 connection.
#[derive(Debug)]
struct OneRequest {
    body: Body,
    /// Other bytes may follow: those of another protocol.
    open: bool,
    /// What came behind it: the next request.
    behind: BytesMut,
    unread: Unread,
}

/// The part of a request's body that was not read yet.
#[derive(Debug)]
pub enum Body {
    Left(u64),
    Chunked(Chunks),
}

impl Body {
    pub fn new(framing: BodyFraming) -> Self {
        match framing {
            BodyFraming::Length(length) => Body::Left(length),
            BodyFraming::Chunked => Body::Chunked(Chunks::default()),
        }
    }

    pub fn is_over(&self) -> bool {
        match self {
            Body::Left(left) => *left == 0,
            Body::Chunked(chunks) => chunks.is_over(),
        }
    }

    /// Reads the next bytes of the connection; returns how many of them belong to the body.
    ///
    /// # Errors
    /// Two readers could read this differently.
    pub fn read(&mut self, bytes: &[u8]) -> Result<usize, Doubtful> {
        match self {
            Body::Left(left) => {
                let part = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= part as u64;
                Ok(part)
            }
            Body::Chunked(chunks) => chunks.read(bytes),
        }
    }
}

/// `stream`, with something before it.
#[derive(Debug)]
pub struct Wrapped {
    /// `None` only when it was taken out at the end.
    stream: Option<Stream>,
    /// As if this had not been read.
    read: BytesMut,
    request: Option<OneRequest>,
    /// Of an HTTP/2 connection.
    watch: Option<Box<Watch>>,
    /// What the connection speaks, where this is known better than by TLS.
    speaks: Option<ALPN>,
}

impl Wrapped {
    /// The stream with what was read of it.
    pub fn rewound(stream: Stream, read: BytesMut) -> Self {
        Wrapped { stream: Some(stream), read, request: None, watch: None, speaks: None }
    }

    /// HTTP/2, of which something was read: whatever TLS agreed on.
    pub fn http2(stream: Stream, read: BytesMut, watch: Watch) -> Self {
        let watch = Some(Box::new(watch));
        Wrapped { stream: Some(stream), read, request: None, watch, speaks: Some(ALPN::H2) }
    }

    /// One request, of which `body` is not read yet and `behind` was read already. Reads fail from the first piece of the
    /// body on that two readers could read differently. With `open`, everything behind the body is read as well. If the
    /// connection is dropped while a part of the request or something behind it is unread, it is left in `unread`.
    pub fn one_request(stream: Stream, body: Body, open: bool, behind: BytesMut, unread: Unread) -> Self {
        let request = Some(OneRequest { body, open, behind, unread });
        Wrapped { stream: Some(stream), read: BytesMut::new(), request, watch: None, speaks: None }
    }

    fn note_written(&mut self, written: &io::Result<usize>) {
        if let (Some(watch), Ok(count)) = (&mut self.watch, written) {
            watch.wrote(*count);
        }
    }

    /// The connection that one request was read from, and what was read behind it.
    pub fn into_next(stream: Stream) -> (Stream, BytesMut) {
        if !(*stream).as_any().is::<Wrapped>() {
            return (stream, BytesMut::new());
        }
        let mut wrapped = stream.into_any().downcast::<Wrapped>().expect("it was looked at just now");
        let behind = wrapped.request.take().map(|request| request.behind).unwrap_or_default();
        (wrapped.stream.take().expect("it is taken once"), behind)
    }

    fn stream(&self) -> &Stream {
        self.stream.as_ref().expect("it is taken at the end")
    }

    fn stream_mut(&mut self) -> Pin<&mut Stream> {
        Pin::new(self.stream.as_mut().expect("it is taken at the end"))
    }

    /// Keeps what comes behind the request. Ready, with an error, when the client resets the connection.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some(request), Some(stream)) = (&mut self.request, &mut self.stream) else { return Poll::Pending };
        let mut piece = [0; 4096];
        while request.behind.len() < MAX_BEHIND {
            let mut into = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut into))?;
            if into.filled().is_empty() {
                // The client ended its sending, which is not a disconnect. The next read of the connection meets it again.
                return Poll::Pending;
            }
            request.behind.extend_from_slice(into.filled());
        }
        Poll::Pending
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        if let Some(request) = &self.request
            && (!request.body.is_over() || !request.behind.is_empty())
        {
            *request.unread.lock() = self.stream.take();
        }
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

/// Whether this is the end of a connection whose body could be read in two ways.
pub fn is_doubtful(error: &pingora_core::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData)
}

impl AsyncRead for Wrapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.request.as_ref().is_some_and(|request| request.body.is_over() && !request.open) {
            return self.poll_behind(cx);
        }
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
            if let Some(request) = &mut self.request {
                let piece = &into.filled()[before..];
                let part = request.body.read(piece).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                if !request.open && part < piece.len() {
                    request.behind.extend_from_slice(&piece[part..]);
                    into.set_filled(before + part);
                }
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
        let stream = stream.as_mut().expect("it is taken at the end");
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
        self.stream().is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Wrapped {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut **self.stream.as_mut().expect("it is taken at the end")).await;
    }
}

impl UniqueID for Wrapped {
    fn id(&self) -> UniqueIDType {
        self.stream().id()
    }
}

impl Ssl for Wrapped {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.speaks.clone().or_else(|| self.stream().selected_alpn_proto())
    }
}

impl GetTimingDigest for Wrapped {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream().get_timing_digest()
    }
}

impl GetProxyDigest for Wrapped {
    fn get_proxy_digest(&self) -> Option<Arc<raw_connect::ProxyDigest>> {
        self.stream().get_proxy_digest()
    }
}

impl GetSocketDigest for Wrapped {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream().get_socket_digest()
    }
}

/// Not supported, as on other streams than plain TCP.
impl Peek for Wrapped {}
