//! HTTP/1.1 by hyper: connections, request bodies and their bounds.

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

use super::response::ErrorResponse;
use super::{Sandbox, cors};

const MAX_BODY_BYTES: usize = 1 << 20;
/// Maximum time for a request head, and so the maximum idle time of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Further connections wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

impl Sandbox {
    /// Serves HTTP/1.1 until the future is dropped, which ends all its connections.
    ///
    /// Errors: the local address of the listener cannot be read. An error of a connection closes
    /// only that connection.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        tracing::info!(address = %listener.local_addr()?, "sandbox of the API started listening");
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "sandbox failed to accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let sandbox = self.clone();
            connections.spawn(async move {
                sandbox.serve_connection(stream, peer.ip()).await;
                drop(permit);
            });
        }
    }

    async fn serve_connection(&self, stream: TcpStream, peer: IpAddr) {
        // hyper writes a whole response at once. If the option cannot be set, responses are only
        // slower.
        let _ = stream.set_nodelay(true);
        let service =
            service_fn(
                |request| async move { Ok::<_, Infallible>(self.respond(request, peer).await) },
            );
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
        if cors::is_preflight(&request) {
            return cors::preflight_response(request.headers()).map(Full::new);
        }
        let origin = cors::allowed_origin(request.headers());
        let mut response = match read_body(request).await {
            Ok(request) => self.state.lock().respond(&request, peer, SystemTime::now()),
            Err(error) => {
                // The rest of the body must not be read as the next request.
                let mut response = Response::from(error);
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        };
        cors::permit_reading(&mut response, origin);
        tokio::time::sleep(self.latency).await;
        response.map(Full::new)
    }
}

/// Reads the body of a request.
///
/// Errors: 413 over `MAX_BODY_BYTES`, 408 over `BODY_TIMEOUT`, 400 for a truncated or malformed
/// body.
async fn read_body(request: Request<Incoming>) -> Result<Request<Bytes>, ErrorResponse> {
    let (head, body) = request.into_parts();
    let reading = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Err(_) => Err(ErrorResponse::BodyTimeout),
        Ok(Err(error)) => Err(body_error(&*error)),
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
    }
}

fn body_error(error: &(dyn Error + 'static)) -> ErrorResponse {
    match error.is::<LengthLimitError>() {
        true => ErrorResponse::TooLarge,
        false => ErrorResponse::BadRequest("The request body is truncated or malformed"),
    }
}
