//! Responses of forwarded requests that are redacted: for callers below `reveal_to` on the routes of
//! `forward.redact`, and for responses that state an access level themselves.
//!
//! A response must be whole before it can be redacted, and its head must wait for that. What is
//! neither redacted JSON nor of a listed media type does not reach the client.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue,
};
use http::{Method, Response, StatusCode};
use tokio::time::timeout_at;

use super::client_session::ClientSession;
use super::exchange::{ApiHead, ApiSide, Failure, or_left, response_of};
use super::request_context::{Exchange, Proxy, end_if_draining};
use super::response_budget::{Client, MAX_BODY, Reserved, Sending};
use super::veil::{Content, Veil, restrict_caching};
use crate::api::{Query, error_body};
use crate::offload::MAX_IN_PLACE;
use crate::redact::Kind;
use crate::upstream::{UpstreamError, has_content_coding};

/// How long the reading of one response may take, waiting for room included.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Fields that describe the bytes of a body, and so what was removed from it.
const OF_THE_BODY: [&str; 5] = ["etag", "content-md5", "digest", "content-digest", "repr-digest"];

impl Proxy {
    /// The API's head as the client receives it, except for what depends on the body.
    fn veiled_head(head: &ApiHead, exchange: &Exchange) -> Response<()> {
        let mut response = response_of(head.status, head.fields.clone());
        response.headers_mut().remove(ACCEPT_RANGES);
        restrict_caching(&mut response);
        Self::set_answer_fields(&mut response, exchange);
        response
    }

    /// Gives the client what it may see of the response with this head.
    pub(super) async fn answer_veiled(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        veil: &Veil,
        side: &mut ApiSide,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Switched);
        }
        // A 304 answers a condition that was not sent.
        if head.status == StatusCode::NOT_MODIFIED {
            return Err(UpstreamError::Protocol.into());
        }
        match self.pass_body(session, exchange, veil, side, head).await {
            Err(Failure::Unredactable(reason)) if head.status.as_u16() >= 400 && session.status_written().is_none() => {
                if !head.status.is_server_error() {
                    exchange.state.gateway.metrics().redaction_failed(reason);
                }
                exchange.record.cause = Some(reason);
                self.pass_error(session, exchange, side, head).await
            }
            other => other,
        }
    }

    async fn pass_body(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        veil: &Veil,
        side: &mut ApiSide,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        let content = veil.content(&head.fields);
        let is_head = session.request().method == Method::HEAD;
        if head.status == StatusCode::NO_CONTENT {
            return self.pass_head(session, exchange, head, false).await;
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
            let is_empty = head.fields.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
            return match content {
                Content::Passing { .. } => self.pass_head(session, exchange, head, true).await,
                Content::Other if !is_empty => Err(Failure::Unredactable("media_type")),
                _ => self.pass_head(session, exchange, head, false).await,
            };
        }
        if let Content::Passing { streams: true } = content {
            self.begin_stream(session, exchange, side, head).await?;
            session.flush().await?;
        }
        let mut held = BytesMut::new();
        let mut ended = false;
        // A few bytes show what it is; blanks in front do not.
        while looks_like_json(&held).is_none() && held.len() < MAX_IN_PLACE {
            match self.receive_body(session, exchange, side).await? {
                Some(chunk) => held.extend_from_slice(&chunk),
                None => {
                    ended = true;
                    break;
                }
            }
        }
        let is_json = match looks_like_json(&held) {
            Some(json) => json || content == Content::Json,
            // So many blanks and nothing else are not a harmless beginning.
            None => !held.is_empty() && (content == Content::Json || !ended),
        };
        if is_json {
            if session.status_written().is_some() {
                return Err(Failure::Unredactable("media_type"));
            }
            return self.pass_redacted(session, exchange, veil, side, head, (held, ended)).await;
        }
        match content {
            Content::Passing { .. } => self.pass_stream(session, exchange, side, head, (held.freeze(), ended)).await,
            // Nothing is there to be seen.
            _ if held.is_empty() && head.status.as_u16() < 400 => {
                self.pass_stream(session, exchange, side, head, (Bytes::new(), ended)).await
            }
            _ => Err(Failure::Unredactable("media_type")),
        }
    }

    /// A response without a body. `described`: the body that is not sent would be the API's own.
    async fn pass_head(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        head: &ApiHead,
        described: bool,
    ) -> Result<(), Failure> {
        let mut response = Self::veiled_head(head, exchange);
        if !described {
            // They would describe bytes that this client does not get.
            remove_digests(&mut response);
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        self.response_complete(exchange);
        end_if_draining(session, exchange);
        session.write_head(response, true).await.map_err(Failure::from)
    }

    /// An error in the API's shape, with the API's status and fields, in place of a body that may not be shown.
    async fn pass_error(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        let mut response = Self::veiled_head(head, exchange);
        remove_digests(&mut response);
        let fields = response.headers_mut();
        for name in [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_DISPOSITION] {
            fields.remove(name);
        }
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        let body = error_body(head.status);
        fields.insert(CONTENT_LENGTH, body.len().into());
        self.response_complete(exchange);
        end_if_draining(session, exchange);
        let body = if session.request().method == Method::HEAD { Bytes::new() } else { Bytes::from(body) };
        self.write_whole(session, side, response, body).await
    }

    /// Reads a body to its end, redacts it and sends it.
    async fn pass_redacted(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        veil: &Veil,
        side: &mut ApiSide,
        head: &ApiHead,
        (held, ended): (BytesMut, bool),
    ) -> Result<(), Failure> {
        let (before, reserved) = self.hold(session, exchange, side, head, (held, ended)).await?;
        self.response_piece(exchange, &before);
        let redacted = or_left(session, veil.redact(before)).await?;
        let redacted = redacted.map_err(|refusal| Failure::Unredactable(refusal.as_str()))?;
        let _sending: Option<Sending> = reserved.map(Reserved::into_sending);
        let (removed, kind) = (redacted.has_removed(), redacted.kind());
        let body = redacted.into_bytes();
        if kind == Kind::OtherJson && is_string_with_json(&body) {
            return Err(Failure::Unredactable("json_in_a_string"));
        }
        exchange.state.gateway.metrics().redacted(veil.role());
        let mut response = Self::veiled_head(head, exchange);
        if removed {
            remove_digests(&mut response);
        }
        response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        self.response_complete(exchange);
        end_if_draining(session, exchange);
        self.write_whole(session, side, response, body).await
    }

    /// Reads a body to its end. A large one needs room first, so that the memory of all has a bound; one that drips has a
    /// deadline, so that it does not keep its room.
    async fn hold(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: &ApiHead,
        (mut held, ended): (BytesMut, bool),
    ) -> Result<(Bytes, Option<Reserved>), Failure> {
        if ended {
            return Ok((held.freeze(), None));
        }
        let declared = head.fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|length| length > MAX_BODY) {
            return Err(Failure::Unredactable("too_large"));
        }
        let clients = exchange.clients(session);
        let deadline = Instant::now() + LONGEST_HOLD;
        let mut reserved = None;
        let reading = async {
            while let Some(chunk) = self.receive_body(session, exchange, side).await? {
                if held.len() + chunk.len() > MAX_BODY {
                    return Err(Failure::Unredactable("too_large"));
                }
                if reserved.is_none() && held.len() + chunk.len() > MAX_IN_PLACE {
                    let budget = &exchange.state.process.responses;
                    let room = budget.reserve(&clients, declared.unwrap_or(MAX_BODY));
                    reserved = Some(or_left(session, room).await?.map_err(|_| Failure::Internal)?);
                }
                held.extend_from_slice(&chunk);
            }
            Ok(())
        };
        timeout_at(deadline.into(), reading).await.unwrap_or(Err(Failure::Upstream(UpstreamError::BodyTimeout)))?;
        if let Some(reserved) = reserved.as_mut() {
            reserved.shrink_to(held.len());
        }
        Ok((held.freeze(), reserved))
    }

    /// Writes the head of a response that passes as it comes.
    async fn begin_stream(
        &self,
        session: &mut ClientSession,
        exchange: &Exchange,
        side: &ApiSide,
        head: &ApiHead,
    ) -> Result<(), Failure> {
        let response = Self::veiled_head(head, exchange);
        self.write_stream_head(session, exchange, side, response).await
    }

    /// Passes a body as it comes, whose first bytes were read already.
    async fn pass_stream(
        &self,
        session: &mut ClientSession,
        exchange: &mut Exchange,
        side: &mut ApiSide,
        head: &ApiHead,
        (first, ended): (Bytes, bool),
    ) -> Result<(), Failure> {
        if session.status_written().is_none() {
            self.begin_stream(session, exchange, side, head).await?;
        }
        self.pass_pieces(session, exchange, side, first, ended).await
    }
}

impl Exchange {
    /// Whose shares of memory a large response counts in.
    fn clients(&self, session: &ClientSession) -> Vec<Client> {
        let request = session.request();
        let address = Client::Address(self.address);
        let gateway = &self.state.gateway;
        let found = gateway.credential(&request.fields, &Query::unvalidated(request.query()));
        let caller = found.ok().map(|credential| Client::Caller(gateway.caller_of(&credential.token)));
        caller.into_iter().chain([address]).collect()
    }
}

/// Removes the fields that describe the bytes of a body, and so what was removed from it.
fn remove_digests(response: &mut Response<()>) {
    for name in OF_THE_BODY {
        response.headers_mut().remove(name);
    }
}

/// Whether a body looks like JSON that could hold a secret: an object or an array. `None`: nothing but blanks so far. A
/// byte-order mark, and the zero bytes of wider encodings, are looked past.
fn looks_like_json(body: &[u8]) -> Option<bool> {
    let is_blank = |b: &u8| b.is_ascii_whitespace() || matches!(b, 0 | 0x0b | 0xef | 0xbb | 0xbf | 0xfe | 0xff);
    let first = body.iter().find(|b| !is_blank(b))?;
    Some(matches!(first, b'{' | b'['))
}

/// Whether a document is one string that can hold a document itself, which nothing redacts.
fn is_string_with_json(document: &[u8]) -> bool {
    let is_string = document.trim_ascii_start().first() == Some(&b'"');
    is_string && (document.iter().any(|b| matches!(b, b'{' | b'[')) || memchr::memmem::find(document, b"\\u").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_begin_like_json_are_taken_for_it() {
        for yes in ["{", " \n[", "\u{feff}{", "\0{\0", "\u{b}{"] {
            assert_eq!(looks_like_json(yes.as_bytes()), Some(true), "{yes:?}");
        }
        for no in ["id;name", "\"a\"", "<html>", "1", "\u{1e}{"] {
            assert_eq!(looks_like_json(no.as_bytes()), Some(false), "{no:?}");
        }
        assert_eq!(looks_like_json(b" \r\n"), None);
        assert!(is_string_with_json(br#" "{\"a\":1}""#) && is_string_with_json(br#""\u007b\u007d""#));
        assert!(!is_string_with_json(br#""plain""#) && !is_string_with_json(b"{}"));
    }
}
