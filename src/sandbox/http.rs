//! The glue to hyper: connections, bodies and their bounds. What is answered is `state`'s business.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Sandbox;
use super::answer::Refusal;

const LARGEST_BODY: usize = 1 << 20;
/// For a request head, and so for how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Further connections wait in the listener's queue.
const MOST_CONNECTIONS: usize = 1024;
/// Before the next try when a connection could not be accepted, for want of file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Sandbox {
    /// Serves HTTP/1.1 until the future is dropped, which ends all its connections.
    ///
    /// Errors: the listener's own, at the start. One connection's errors concern that connection alone.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        tracing::info!(address = %listener.local_addr()?, "sandbox of the API started listening");
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "sandbox failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let sandbox = self.clone();
            connections.spawn(async move {
                sandbox.serve_connection(stream, peer.ip()).await;
                drop(place);
            });
        }
    }

    async fn serve_connection(&self, stream: TcpStream, peer: IpAddr) {
        // Answers are written whole; there is nothing to wait for. Without it they are slower, not wrong.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.respond(request, peer).await) });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(true)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "connection to the sandbox ended early");
        }
    }

    async fn respond(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
        let response = match whole(request).await {
            Ok(request) => self.state.lock().answer(&request, peer, SystemTime::now()),
            Err(refusal) => {
                // What is left of the body is not read as the next request.
                let mut response = Response::from(refusal);
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        };
        tokio::time::sleep(self.latency).await;
        response.map(Full::new)
    }
}

/// The request with its body read.
///
/// Errors: 413 over `LARGEST_BODY`, 408 over `BODY_TIMEOUT`, 400 for a body that is cut short or badly framed.
async fn whole(request: Request<Incoming>) -> Result<Request<Bytes>, Refusal> {
    let (head, body) = request.into_parts();
    let reading = Limited::new(body, LARGEST_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Err(_) => Err(Refusal::TooSlow),
        Ok(Err(error)) => Err(unreadable(&*error)),
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
    }
}

fn unreadable(error: &(dyn Error + 'static)) -> Refusal {
    match error.is::<LengthLimitError>() {
        true => Refusal::TooLarge,
        false => Refusal::BadRequest("The body cannot be read"),
    }
}
