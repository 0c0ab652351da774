//! Responses to connections and heads that are refused before any session exists, and the end of
//! such connections.

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::{DATE, HeaderName, HeaderValue};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::date::get_cached_date;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{timeout, timeout_at};

use super::client_session::Application;
use super::connection::{ConnectionHandler, H2_PREFACE};
use super::head_writer::{ConnectionOption, HeadWriter};
use super::http2_connection;
use super::http2_stream::Http2Io;
use super::linger::{LINGER, close_unread};
use super::proxy_header::AcceptedConnection;
use crate::api::ApiError;
use crate::clock;
use crate::read_buffer::READ_BYTES;
use crate::reply::{Reply, origin_in, origin_of};
use crate::server::listener_kind::ListenerKind;
use crate::server::tls::ListenerTls;
use crate::telemetry::Record;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl<A: Application> ConnectionHandler<A> {
    /// Refuses a connection over a limit with 503, in the client's protocol.
    ///
    /// Waits up to [`LINGER`] for the request, whose head has the protocol and the origin, and
    /// responds without it after that.
    pub(super) async fn refuse_over_limit(
        &self,
        connection: AcceptedConnection,
        tls: Option<&ListenerTls>,
    ) {
        let Some((mut stream, mut head)) = self.terminate_tls(connection, tls).await else {
            return;
        };
        let deadline = clock::now() + LINGER;
        let mut may_continue = true;
        while may_continue && !is_complete(&head) {
            head.reserve(READ_BYTES);
            let read = timeout_at(deadline.into(), stream.read_buf(&mut head)).await;
            may_continue = matches!(read, Ok(Ok(1..))) && head.len() < 2 * READ_BYTES;
        }
        self.refuse_in_protocol(stream, head, ApiError::Unavailable).await;
    }

    /// Responds with an error in the protocol that the received bytes begin.
    pub(super) async fn refuse_in_protocol(
        &self,
        stream: Stream,
        received: BytesMut,
        error: ApiError,
    ) {
        if received.starts_with(H2_PREFACE) {
            self.refuse_http2(stream, received, error).await;
        } else {
            self.refuse(stream, error, &received).await;
        }
    }

    /// Records a refused connection that gets no response. `head`: the received bytes.
    pub(super) fn record_refusal(&self, error: ApiError, head: &[u8]) {
        let record = self.record(error, method_of(head));
        self.end_record(&record);
    }

    /// Returns the record of a refused request.
    fn record(&self, error: ApiError, method: Option<Method>) -> Record {
        let mut record = Record::begin(clock::now());
        record.status = error.status();
        record.error = Some(error);
        record.request_id = self.active.load().new_request_id();
        record.method = method.unwrap_or(record.method);
        record
    }

    fn end_record(&self, record: &Record) {
        let state = self.active.load();
        if self.kind == ListenerKind::Public {
            record.end(state.gateway.metrics(), state.access);
        }
    }

    /// Responds to the first request of an HTTP/2 connection with an error, and ends the
    /// connection.
    async fn refuse_http2(&self, stream: Stream, received: BytesMut, error: ApiError) {
        let io = Http2Io::new(stream, received, self.active.clone(), false);
        http2_connection::refuse(io, LINGER, |request| {
            let reply = Reply::from(error);
            let mut record = self.record(error, Some(request.method.clone()));
            let mut response = http::Response::new(());
            *response.status_mut() = reply.status();
            let headers = response.headers_mut();
            let state = self.active.load();
            reply.fields(
                &state.gateway.cors,
                origin_of(&request.headers),
                &record.request_id,
                |name, value| {
                    headers.insert(name, value.to_header());
                },
            );
            headers.extend(HeaderValue::try_from(&record.request_id).map(|id| (X_REQUEST_ID, id)));
            headers.insert(DATE, get_cached_date());
            let is_head_request = request.method == Method::HEAD;
            let body = if is_head_request { Bytes::new() } else { reply.body(&record.request_id) };
            record.body_bytes = body.len();
            self.end_record(&record);
            (response, body)
        })
        .await;
    }

    /// Records a request whose head did not arrive in time. No response is sent.
    pub(super) fn record_timeout(&self, head: &[u8]) {
        self.record_refusal(ApiError::RequestTimeout, head);
    }

    /// Responds with an error, without a session, and ends the connection so that the response
    /// arrives. `head`: the received part of the request.
    pub(super) async fn refuse(&self, stream: Stream, error: ApiError, head: &[u8]) {
        let reply = Reply::from(error);
        let method = method_of(head);
        let is_head_request = method == Some(Method::HEAD);
        let mut record = self.record(error, method);
        let body = if is_head_request { Bytes::new() } else { reply.body(&record.request_id) };
        record.body_bytes = body.len();
        let is_public = self.kind == ListenerKind::Public;
        let origin = if is_public { origin_in(head) } else { None };
        let mut response = Vec::new();
        let mut writer = HeadWriter::begin(&mut response, reply.status());
        reply.fields(
            &self.active.load().gateway.cors,
            origin.as_ref(),
            &record.request_id,
            |name, value| {
                writer.field_with(name, |out| value.append_to(out));
            },
        );
        writer.field(&X_REQUEST_ID, record.request_id.as_bytes());
        writer.finish(ConnectionOption::Close);
        response.extend_from_slice(&body);
        self.end_record(&record);
        Self::send_last(stream, &response).await;
    }

    /// Sends the last bytes of a connection and ends it so that they arrive.
    pub(super) async fn send_last(mut stream: Stream, bytes: &[u8]) {
        let written = timeout(LINGER, async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
        if matches!(written.await, Ok(Ok(()))) {
            close_unread(stream).await;
        }
    }
}

/// Whether the bytes hold a complete head, or the preface of HTTP/2.
fn is_complete(head: &[u8]) -> bool {
    let has_end = memchr::memmem::find(head, b"\r\n\r\n").is_some();
    head.starts_with(H2_PREFACE) || (has_end && !H2_PREFACE.starts_with(head))
}

/// Returns the method at the beginning of a head, which may be incomplete or malformed.
fn method_of(head: &[u8]) -> Option<Method> {
    let name = head.split(|&byte| byte == b' ').next()?;
    Method::from_bytes(name).ok()
}
