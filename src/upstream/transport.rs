//! The gateway's own requests over connections to the API: built, sent, read whole, and repeated
//! where that cannot do harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, IF_MODIFIED_SINCE, IF_NONE_MATCH, ORIGIN, USER_AGENT,
};
use http::{Method, StatusCode};
use http1::{BodyLength, FieldLines, RequestFraming, ResponseHead};
use tokio::time::timeout_at;

use super::connector::{AddressStatus, Connector};
use super::endpoint::EndpointState;
use super::exchange::{Event, Exchange};
use super::{ApiResponse, Request, RequestKind, Transport, UpstreamError};
use crate::clock;
use crate::config;

/// Kept connections that may turn out closed before a request takes a fresh one.
///
/// An API that restarts closes all of them; trying each would only cost time.
pub const STALE_CONNECTIONS_MAX: usize = 2;

/// The gateway's own requests over connections to the API.
pub struct Connections {
    connector: Arc<Connector>,
    max_body: usize,
    /// Time without a response head after which a request tries another address.
    slow_after: Duration,
}

impl Connections {
    pub fn new(config: &config::Upstream, connector: Arc<Connector>) -> Self {
        Connections {
            connector,
            max_body: usize::try_from(config.max_body).unwrap_or(usize::MAX),
            slow_after: config.timeout / 2,
        }
    }
}

impl Transport for Connections {
    fn failing_addresses(&self) -> String {
        let addresses = self.connector.addresses();
        let is_failing = |address: &&AddressStatus| address.state != EndpointState::Healthy;
        let failing: Vec<_> = addresses.iter().filter(is_failing).collect();
        let shown = if failing.is_empty() { addresses.iter().collect() } else { failing };
        shown.iter().map(|address| address.address.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Repeats the request, which is a GET, while no byte of a response has arrived: on a fresh
    /// connection instead of kept ones, and once at each other address. An address that does not
    /// respond in half of the time is given up if another one is healthy.
    async fn exchange(
        &self,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Result<ApiResponse, UpstreamError> {
        let lines = field_lines(request);
        let mut tried = Vec::new();
        let mut stale = 0;
        loop {
            let connection = self.connector.open(&tried, stale >= STALE_CONNECTIONS_MAX).await?;
            let is_reused = connection.is_reused;
            let endpoint = connection.endpoint().clone();
            tried.push(endpoint.id);
            let mut exchange = Exchange::new(
                connection,
                Method::GET,
                request.target,
                &lines,
                RequestFraming::None,
            );
            let slow_at = clock::now() + self.slow_after;
            let gives_up = slow_at < deadline && self.connector.has_healthy(&tried);
            let head_by = if gives_up { slow_at } else { deadline };
            // A failure of a target with a client's query says nothing about the address.
            let counts = request.kind != RequestKind::Bypass;
            let error = match self.read_response(&mut exchange, head_by, deadline).await {
                Ok(response) => {
                    if counts || !response.status.is_server_error() {
                        self.connector.record_status(&endpoint, response.status);
                    }
                    if let Some(connection) = exchange.into_reusable() {
                        self.connector.keep(connection, clock::now());
                    }
                    return Ok(response);
                }
                Err(UpstreamError::Truncated) if !exchange.has_received() => {
                    if is_reused {
                        stale += 1;
                        tried.pop();
                        continue;
                    }
                    UpstreamError::NoResponse
                }
                Err(error) => error,
            };
            let is_failure = matches!(
                error,
                UpstreamError::NoResponse | UpstreamError::Timeout | UpstreamError::BodyTimeout
            );
            if counts && is_failure {
                self.connector.record_failed_exchange(&endpoint, error.cause());
            }
            let may_repeat = match error {
                UpstreamError::NoResponse => self.connector.has_untried(&tried),
                UpstreamError::Timeout => gives_up,
                _ => false,
            };
            if !may_repeat {
                return Err(error);
            }
        }
    }
}

impl Connections {
    /// Reads a response; its head must arrive by `head_by`, its end by `deadline`.
    async fn read_response(
        &self,
        exchange: &mut Exchange,
        head_by: Instant,
        deadline: Instant,
    ) -> Result<ApiResponse, UpstreamError> {
        let head = timeout_at(head_by.into(), read_head(exchange));
        let head = head.await.unwrap_or(Err(UpstreamError::Timeout))?;
        let body = timeout_at(deadline.into(), self.read_body(exchange, &head));
        let body = body.await.unwrap_or(Err(UpstreamError::BodyTimeout))?;
        Ok(ApiResponse { status: head.status, headers: head.fields.to_map(), body })
    }

    async fn read_body(
        &self,
        exchange: &mut Exchange,
        head: &ResponseHead,
    ) -> Result<Bytes, UpstreamError> {
        if matches!(head.body, BodyLength::Known(length) if length > self.max_body as u64) {
            return Err(UpstreamError::TooLarge);
        }
        let mut body = Body::default();
        loop {
            match exchange.next_event().await? {
                Event::Data(data) if body.len() + data.len() > self.max_body => {
                    return Err(UpstreamError::TooLarge);
                }
                Event::Data(data) => body.push(data),
                Event::Trailers(_) => {}
                Event::End => return Ok(body.into_bytes()),
                Event::Interim(_) | Event::Head(_) => return Err(UpstreamError::Protocol),
            }
        }
    }
}

/// Reads the final head.
async fn read_head(exchange: &mut Exchange) -> Result<ResponseHead, UpstreamError> {
    loop {
        match exchange.next_event().await? {
            Event::Interim(_) => {}
            // The gateway requests no upgrade.
            Event::Head(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(UpstreamError::Protocol);
            }
            Event::Head(head) => return Ok(head),
            Event::Data(_) | Event::Trailers(_) | Event::End => {
                return Err(UpstreamError::Protocol);
            }
        }
    }
}

/// Field lines of a request. They hold nothing of a client's request except its token and, without
/// `[cors]`, its `Origin`.
fn field_lines(request: &Request<'_>) -> FieldLines {
    const AGENT: &[u8] = concat!("telecomx-gateway/", env!("CARGO_PKG_VERSION")).as_bytes();
    let mut lines = FieldLines::with_capacity(512);
    if let Some(token) = request.token {
        lines.push_parts(&AUTHORIZATION, &[b"Bearer ", token.expose().as_bytes()]);
    }
    lines.push(&ACCEPT, b"application/json");
    lines.push(&ACCEPT_ENCODING, b"identity");
    lines.push(&USER_AGENT, AGENT);
    if let Some(origin) = request.origin {
        lines.push(&ORIGIN, origin.as_bytes());
    }
    if let Some(etag) = request.validators.and_then(|validators| validators.etag.as_ref()) {
        lines.push(&IF_NONE_MATCH, etag.as_bytes());
    }
    if let Some(modified) =
        request.validators.and_then(|validators| validators.last_modified.as_ref())
    {
        lines.push(&IF_MODIFIED_SINCE, modified.as_bytes());
    }
    lines
}

/// A body in pieces; a single piece is not copied.
#[derive(Default)]
struct Body {
    first: Bytes,
    joined: BytesMut,
}

impl Body {
    fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    fn push(&mut self, data: Bytes) {
        if self.first.is_empty() && self.joined.is_empty() {
            self.first = data;
            return;
        }
        let first = std::mem::take(&mut self.first);
        self.joined.extend_from_slice(&first);
        self.joined.extend_from_slice(&data);
    }

    fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.first } else { self.joined.freeze() }
    }
}
