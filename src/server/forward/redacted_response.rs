//! Redacted responses of forwarded requests: for callers below `reveal_to` on the routes of
//! `forward.redact`, and for responses that state an access level themselves.
//!
//! Redaction needs the complete body, so the head waits for it. A body that is neither redacted
//! JSON nor of a listed media type does not reach the client.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
    CONTENT_TYPE, HeaderValue,
};
use http::{Method, Response, StatusCode};
use tokio::time::timeout_at;

use super::exchange::{ApiExchange, ApiHead, Failure, response_of};
use super::redact_for::{Content, RedactFor, restrict_caching};
use super::request_context::{Proxy, RequestContext, end_if_draining};
use crate::api::{Query, error_body};
use crate::clock;
use crate::offload::MAX_IN_PLACE;
use crate::redact::Kind;
use crate::server::http::client_session::ClientSession;
use crate::server::response_budget::{Client, MAX_BODY, Reservation, SendReservation};
use crate::upstream::{UpstreamError, has_content_coding, is_failure};

/// Maximum time to read one response, including the wait for memory.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Fields that describe the bytes of a body, and thereby its removed parts.
const DIGEST_FIELDS: [&str; 5] = ["etag", "content-md5", "digest", "content-digest", "repr-digest"];

/// The part of a response body that was read so far.
#[derive(Default)]
struct BodyStart {
    bytes: BytesMut,
    is_complete: bool,
}

impl Proxy {
    /// Returns the API's head as the client receives it, except for the fields of the body.
    fn restricted_head(head: &ApiHead, context: &RequestContext) -> Response<()> {
        let mut response = response_of(head.status, head.fields.clone());
        response.headers_mut().remove(ACCEPT_RANGES);
        restrict_caching(&mut response);
        Self::set_gateway_fields(&mut response, context);
        response
    }

    /// Passes the parts of the response that the client may see.
    pub async fn pass_restricted(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        redact_for: &RedactFor,
        side: &mut ApiExchange,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Switched);
        }
        // No conditional request was sent.
        if head.status == StatusCode::NOT_MODIFIED {
            return Err(UpstreamError::Protocol.into());
        }
        match self.pass_body(session, context, redact_for, side, head).await {
            Err(Failure::Unredactable(reason))
                if head.status.as_u16() >= 400 && session.status_written().is_none() =>
            {
                // A failure of the API is not a failure of the redaction.
                if !is_failure(head.status) {
                    context.state.gateway.metrics().count_redaction_failure(reason);
                    context.record.cause = Some(reason);
                }
                self.pass_error(session, context, side, head).await
            }
            other => other,
        }
    }

    async fn pass_body(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        redact_for: &RedactFor,
        side: &mut ApiExchange,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        let content = redact_for.content(&head.fields);
        let is_head = session.request().method == Method::HEAD;
        if head.status == StatusCode::NO_CONTENT {
            return self.pass_head(session, context, head, false).await;
        }
        if has_content_coding(&head.fields) {
            return Err(Failure::Unredactable("content_coding"));
        }
        if head.status == StatusCode::PARTIAL_CONTENT {
            return Err(Failure::Unredactable("partial"));
        }
        if content == Content::EventStream {
            return Err(Failure::Unredactable("media_type"));
        }
        if is_head {
            let is_empty =
                head.fields.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
            return match content {
                Content::Passing { .. } => self.pass_head(session, context, head, true).await,
                Content::Other if head.status.as_u16() >= 400 => {
                    self.pass_error(session, context, side, head).await
                }
                Content::Other if !is_empty => Err(Failure::Unredactable("media_type")),
                _ => self.pass_head(session, context, head, false).await,
            };
        }
        if let Content::Passing { streams: true } = content {
            self.begin_stream(session, context, side, head).await?;
            session.flush().await?;
        }
        let mut start = BodyStart::default();
        // The first byte that is not blank decides whether the body is JSON.
        while looks_like_json(&start.bytes).is_none() && start.bytes.len() < MAX_IN_PLACE {
            match self.receive_body(session, context, side).await? {
                Some(piece) => start.bytes.extend_from_slice(&piece),
                None => {
                    start.is_complete = true;
                    break;
                }
            }
        }
        let is_json = match looks_like_json(&start.bytes) {
            Some(json) => json || content == Content::Json,
            // A long run of blanks may precede JSON.
            None => !start.bytes.is_empty() && (content == Content::Json || !start.is_complete),
        };
        if is_json {
            if session.status_written().is_some() {
                return Err(Failure::Unredactable("media_type"));
            }
            return self.pass_redacted(session, context, redact_for, side, head, start).await;
        }
        match content {
            Content::Passing { .. } => self.pass_stream(session, context, side, head, start).await,
            // An empty body reveals nothing.
            _ if start.bytes.is_empty() && head.status.as_u16() < 400 => {
                self.pass_stream(session, context, side, head, start).await
            }
            _ if start.bytes.is_empty() => self.pass_error(session, context, side, head).await,
            _ => Err(Failure::Unredactable("media_type")),
        }
    }

    /// Writes a response without a body. `is_unchanged`: the body would be the API's own.
    async fn pass_head(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        head: &ApiHead,
        is_unchanged: bool,
    ) -> Result<(), Failure> {
        let mut response = Self::restricted_head(head, context);
        if !is_unchanged {
            // They describe bytes that this client does not receive.
            remove_digests(&mut response);
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        self.on_upstream_end(context);
        end_if_draining(session, context);
        session.write_head(response, true).await.map_err(Failure::from)
    }

    /// Writes an error in the API's shape, with the API's status and fields, in place of a body
    /// that the client may not see.
    async fn pass_error(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        let mut response = Self::restricted_head(head, context);
        remove_digests(&mut response);
        let fields = response.headers_mut();
        for name in [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_DISPOSITION] {
            fields.remove(name);
        }
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        let body = error_body(head.status, &context.record.request_id);
        fields.insert(CONTENT_LENGTH, body.len().into());
        self.on_upstream_end(context);
        end_if_draining(session, context);
        let body =
            if session.request().method == Method::HEAD { Bytes::new() } else { Bytes::from(body) };
        self.write_whole(session, side, response, body).await
    }

    /// Reads a body to its end, redacts it and sends it.
    async fn pass_redacted(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        redact_for: &RedactFor,
        side: &mut ApiExchange,
        head: &ApiHead,
        start: BodyStart,
    ) -> Result<(), Failure> {
        let (before, reserved) = self.read_whole(session, context, side, head, start).await?;
        self.on_upstream_body(context, &before);
        let redacted = session.unless_closed(redact_for.redact(before)).await?;
        let redacted = redacted.map_err(|refusal| Failure::Unredactable(refusal.as_str()))?;
        let _sending: Option<SendReservation> = reserved.map(Reservation::into_send_reservation);
        let (removed, kind) = (redacted.has_removed(), redacted.kind());
        let body = redacted.into_bytes();
        if kind == Kind::OtherJson && is_string_with_json(&body) {
            return Err(Failure::Unredactable("json_in_a_string"));
        }
        context.state.gateway.metrics().count_redaction(redact_for.role());
        let mut response = Self::restricted_head(head, context);
        if removed {
            remove_digests(&mut response);
        }
        response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        self.on_upstream_end(context);
        end_if_draining(session, context);
        self.write_whole(session, side, response, body).await
    }

    /// Reads a body to its end. A large body needs a reservation, so that the memory of all has a
    /// bound, and has a deadline, so that a slow body does not keep its reservation.
    async fn read_whole(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        head: &ApiHead,
        start: BodyStart,
    ) -> Result<(Bytes, Option<Reservation>), Failure> {
        let BodyStart { bytes: mut body, is_complete } = start;
        if is_complete {
            return Ok((body.freeze(), None));
        }
        let declared = head
            .fields
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|length| length > MAX_BODY) {
            return Err(Failure::Unredactable("too_large"));
        }
        let clients = context.clients(session);
        let deadline = clock::now() + READ_TIMEOUT;
        let mut reserved = None;
        let reading = async {
            while let Some(piece) = self.receive_body(session, context, side).await? {
                if body.len() + piece.len() > MAX_BODY {
                    return Err(Failure::Unredactable("too_large"));
                }
                if reserved.is_none() && body.len() + piece.len() > MAX_IN_PLACE {
                    let budget = &context.state.process.responses;
                    let room = budget.reserve(&clients, declared.unwrap_or(MAX_BODY));
                    reserved =
                        Some(session.unless_closed(room).await?.map_err(|_| Failure::Internal)?);
                }
                body.extend_from_slice(&piece);
            }
            Ok(())
        };
        timeout_at(deadline.into(), reading)
            .await
            .unwrap_or(Err(Failure::Upstream(UpstreamError::BodyTimeout)))?;
        if let Some(reserved) = reserved.as_mut() {
            reserved.shrink_to(body.len());
        }
        Ok((body.freeze(), reserved))
    }

    /// Writes the head of a response that is passed through.
    async fn begin_stream(
        &self,
        session: &mut ClientSession,
        context: &RequestContext,
        side: &ApiExchange,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        let response = Self::restricted_head(head, context);
        self.write_stream_head(session, context, side, response).await
    }

    /// Passes a body through, after its first bytes.
    async fn pass_stream(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        side: &mut ApiExchange,
        head: &ApiHead,
        start: BodyStart,
    ) -> Result<(), Failure> {
        if session.status_written().is_none() {
            self.begin_stream(session, context, side, head).await?;
        }
        self.pass_pieces(session, context, side, start.bytes.freeze(), start.is_complete).await
    }
}

impl RequestContext {
    /// Returns the clients whose shares of memory a large response uses.
    fn clients(&self, session: &ClientSession) -> Vec<Client> {
        let request = session.request();
        let address = Client::Address(self.address);
        let gateway = &self.state.gateway;
        let found = gateway.credential(&request.fields, &Query::unvalidated(request.query()));
        let caller =
            found.ok().map(|credential| Client::Caller(gateway.caller_of(&credential.token)));
        caller.into_iter().chain([address]).collect()
    }
}

/// Removes the fields that describe the bytes of a body.
fn remove_digests(response: &mut Response<()>) {
    for name in DIGEST_FIELDS {
        response.headers_mut().remove(name);
    }
}

/// Whether a body begins as a JSON object or array, which could hold a secret. `None`: it is blank
/// so far. Byte-order marks and the zero bytes of wider encodings count as blanks.
fn looks_like_json(body: &[u8]) -> Option<bool> {
    let is_blank = |b: &u8| {
        b.is_ascii_whitespace() || matches!(b, 0 | 0x0b | 0xef | 0xbb | 0xbf | 0xfe | 0xff)
    };
    let first = body.iter().find(|b| !is_blank(b))?;
    Some(matches!(first, b'{' | b'['))
}

/// Whether a document is one string that may hold another document, which is not redacted.
fn is_string_with_json(document: &[u8]) -> bool {
    let is_string = document.trim_ascii_start().first() == Some(&b'"');
    is_string
        && (document.iter().any(|b| matches!(b, b'{' | b'['))
            || memchr::memmem::find(document, b"\\u").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_that_begins_as_json_is_taken_for_json() {
        for yes in ["{", " \n[", "\u{feff}{", "\0{\0", "\u{b}{"] {
            assert_eq!(looks_like_json(yes.as_bytes()), Some(true), "{yes:?}");
        }
        for no in ["id;name", "\"a\"", "<html>", "1", "\u{1e}{"] {
            assert_eq!(looks_like_json(no.as_bytes()), Some(false), "{no:?}");
        }
        assert_eq!(looks_like_json(b" \r\n"), None);
        assert!(
            is_string_with_json(br#" "{\"a\":1}""#) && is_string_with_json(br#""\u007b\u007d""#)
        );
        assert!(!is_string_with_json(br#""plain""#) && !is_string_with_json(b"{}"));
    }
}
