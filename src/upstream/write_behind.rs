//! A connection to the API whose writes never wait: what the API does not take yet is kept, and goes out while its
//! response is read. pingora's session reads or writes, never both, but a response may come before the request is whole
//! (RFC 9112 section 9.3), and an API that stopped reading still has one to give.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1::client::HttpSession as Http1Session;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType, raw_connect,
};
use pingora_core::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Bytes that may wait for the API before no more of a request body is read: about what a socket holds anyway.
const MAX_WAITING: usize = 64 << 10;

/// How far the writing of a request is behind.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Writes are kept; otherwise the connection behaves as any other.
    is_on: AtomicBool,
    waiting: AtomicUsize,
    failed: AtomicBool,
    progress: Notify,
}

impl Backlog {
    /// Whether more may be written.
    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < MAX_WAITING
    }

    /// Whether the API takes no more. Its response may have arrived all the same.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether everything that was written is out.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Waits until the API took something, or takes no more.
    pub async fn progress(&self) {
        self.progress.notified().await;
    }

    /// The request is over: writes wait again, as the next request on this connection expects.
    pub fn end(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }
}

/// The same connection, whose writes do not wait from now on.
pub fn write_behind(session: HttpSession, peer: &HttpPeer) -> (HttpSession, Arc<Backlog>) {
    let HttpSession::H1(h1) = session else { return (session, Arc::default()) };
    let stream = h1.into_inner();
    let (stream, backlog): (Stream, _) = match (*stream).as_any().downcast_ref::<WriteBehind>() {
        Some(kept) => {
            let backlog = kept.backlog.clone();
            (stream, backlog)
        }
        None => {
            let backlog = Arc::<Backlog>::default();
            (
                Box::new(WriteBehind { stream, waiting: BytesMut::new(), flushed: true, backlog: backlog.clone() }),
                backlog,
            )
        }
    };
    backlog.is_on.store(true, Ordering::Relaxed);
    (HttpSession::H1(Http1Session::new_with_options(stream, peer)), backlog)
}

#[derive(Debug)]
struct WriteBehind {
    stream: Stream,
    waiting: BytesMut,
    /// Whether the stream beneath holds nothing back.
    flushed: bool,
    backlog: Arc<Backlog>,
}

impl WriteBehind {
    fn is_on(&self) -> bool {
        self.backlog.is_on.load(Ordering::Relaxed)
    }

    /// Writes what waits. `Ready`: all of it is out, or no more of it can be.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.waiting) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.waiting.advance(count);
                    self.flushed = false;
                    self.note_progress();
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.fail(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.fail(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        if !self.flushed {
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
                return Poll::Ready(Err(self.fail(error)));
            }
            self.flushed = true;
            self.waiting = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn note_progress(&self) {
        self.backlog.waiting.store(self.waiting.len(), Ordering::Relaxed);
        self.backlog.progress.notify_one();
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        self.backlog.failed.store(true, Ordering::Relaxed);
        self.waiting = BytesMut::new();
        self.flushed = true;
        self.note_progress();
        error
    }
}

impl AsyncRead for WriteBehind {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_on() {
            // A failure is noted; what the API said before it is still to be read.
            let _ = self.poll_drain(cx);
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for WriteBehind {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.is_on() {
            ready!(self.poll_drain(cx))?;
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        if !self.backlog.has_failed() {
            self.waiting.extend_from_slice(bytes);
            self.backlog.waiting.store(self.waiting.len(), Ordering::Relaxed);
            let _ = self.poll_drain(cx);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_drain(cx);
        if self.is_on() {
            return Poll::Ready(Ok(()));
        }
        ready!(drained)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for WriteBehind {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut *self.stream).await;
    }
}

impl UniqueID for WriteBehind {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for WriteBehind {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for WriteBehind {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
}

impl GetProxyDigest for WriteBehind {
    fn get_proxy_digest(&self) -> Option<Arc<raw_connect::ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for WriteBehind {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

/// Not supported, as on other streams than plain TCP.
impl Peek for WriteBehind {}
