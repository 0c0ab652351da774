//! The fast path: a request for a customer's name in the one plain shape is answered here, without a session, in one write.
//!
//! It decides nothing of its own. Who is calling, whether an answer is fresh, what the API is asked, the answer's fields and its
//! record are what they are on the ordinary way; what it does not take, it leaves to the session, which gets every byte
//! of it.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use http::HeaderValue;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::date::get_cached_date;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::select;
use tokio::time::timeout;

use super::disconnect::{ClientFailure, client_closed_request};
use super::head;
use super::http1_session::{MAX_BEHIND, push_name};
use super::plain::Plain;
use super::setup::Setup;
use crate::api::ApiError;
use crate::clock;
use crate::gateway::PlainAsk;
use crate::reply::Reply;
use crate::telemetry::{Record, Route};

/// Room for the head of an answer.
const HEAD: usize = 512;

/// What became of a request.
pub enum Taken {
    /// Nothing of it: it is for the ordinary way.
    Declined,
    /// At that time.
    Answered(Instant),
    /// The caller left while it was answered.
    Gone,
}

/// One connection's lane.
pub struct Lane {
    peer: IpAddr,
    /// The head of an answer, and its request's id; their memory is kept for the next ones.
    answer: Vec<u8>,
    request_id: String,
    /// Bytes that came behind the request while the API was asked.
    behind: BytesMut,
}

impl Lane {
    pub fn new(stream: &Stream) -> Self {
        let digest = stream.get_socket_digest();
        let inet = digest.as_ref().and_then(|digest| digest.peer_addr()?.as_inet());
        let peer = inet.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        Lane { peer, answer: Vec::new(), request_id: String::new(), behind: BytesMut::new() }
    }

    /// Answers a request if it is one for the lane. `head`: whole, with its empty line and nothing behind it.
    pub async fn take(&mut self, setup: &Setup, stream: &mut Stream, head: &[u8]) -> Taken {
        // Counted as the ordinary way counts it, with more than any spelling of the fields could make of it. While the
        // process drains, answers say that their connection ends.
        if !setup.fast_path
            || head.len() + head::MAX_FIELDS > setup.limits.max_header_bytes
            || !setup.lifecycle.is_ready()
        {
            return Taken::Declined;
        }
        let Some(plain) = Plain::read(head) else { return Taken::Declined };
        let Ok(origin) = plain.origin.map(HeaderValue::from_bytes).transpose() else { return Taken::Declined };
        let now = clock::now();
        let address = setup.trusted.caller_by(self.peer, plain.forwarded_for.as_slice());
        let Plain { customer, token, if_none_match, .. } = plain;
        let ask = PlainAsk { customer, token, address, if_none_match };
        let mut record = Record::begin(now);
        record.route = Route::CustomerName;
        record.request_id = std::mem::take(&mut self.request_id);
        record.request_id.clear();
        match plain.request_id {
            Some(own) => record.request_id.push_str(own),
            None => setup.append_request_id(&mut record.request_id),
        }
        let (reply, _busy) = match setup.gateway.at_hand(&ask, now) {
            Ok((level, reply)) => {
                record.level = Some(level);
                record.cache = reply.cache_status;
                record.in_lane = true;
                (reply, None)
            }
            Err(caller) => {
                let busy = setup.lifecycle.busy();
                let limited = setup.limited_address(address);
                match setup.admission.request(setup.limits.requests, limited, Some(caller)) {
                    Ok(place) => {
                        // Apart, so that a connection is no larger for what few of its requests need.
                        let answering = Box::pin(async {
                            select! {
                                biased;
                                reply = setup.gateway.answer_plain(&ask, caller, &mut record) => Some(reply),
                                () = client_left(stream, &mut self.behind) => None,
                            }
                        });
                        let Some(reply) = answering.await else {
                            return self.give_up(ClientFailure::Closed, record, setup);
                        };
                        (reply, Some((busy, Some(place))))
                    }
                    Err(limit) => {
                        setup.gateway.metrics.over_limit(limit.as_str());
                        record.cause = Some(limit.as_str());
                        record.error = Some(ApiError::Unavailable);
                        (Reply::from(ApiError::Unavailable), Some((busy, None)))
                    }
                }
            }
        };
        record.status = reply.status();
        let made = reply.error().map(ApiError::body);
        let body = made.as_deref().map_or(reply.stored_body(), str::as_bytes);
        record.body_bytes = body.len();
        // It may have begun while the API was asked.
        let ends = setup.lifecycle.is_draining();
        self.write_head(setup, &reply, origin.as_ref(), &record.request_id, ends);
        if let Err(failure) = self.write(setup, stream, body).await {
            return self.give_up(failure, record, setup);
        }
        let ended = record.end(&setup.gateway.metrics, setup.access);
        self.request_id = record.request_id;
        if ends {
            let _ = timeout(setup.limits.write_timeout, stream.shutdown()).await;
            return Taken::Gone;
        }
        Taken::Answered(ended)
    }

    /// What came behind the request that was answered.
    pub fn take_behind(&mut self) -> BytesMut {
        std::mem::take(&mut self.behind)
    }

    /// Ends the record of a request whose client left or is too slow.
    fn give_up(&mut self, failure: ClientFailure, mut record: Record, setup: &Setup) -> Taken {
        record.cause = Some(failure.as_str());
        if failure == ClientFailure::Closed {
            record.client_closed = true;
            record.status = client_closed_request();
            record.error = None;
        }
        record.end(&setup.gateway.metrics, setup.access);
        Taken::Gone
    }

    /// Head and body in one write.
    async fn write(&self, setup: &Setup, stream: &mut Stream, body: &[u8]) -> Result<(), ClientFailure> {
        let mut whole = Buf::chain(&self.answer[..], body);
        let at_once = {
            let mut writing = pin!(async {
                stream.write_all_buf(&mut whole).await?;
                stream.flush().await
            });
            // Mostly the connection takes it at once: no timer is needed then, and no drain can overtake it.
            poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx))).await
        };
        if let Poll::Ready(written) = at_once {
            return written.map_err(|_| ClientFailure::Closed);
        }
        let _busy = (setup.lifecycle.busy(), setup.admission.started_request());
        let longest = setup.limits.write_timeout;
        while whole.has_remaining() {
            match timeout(longest, stream.write_buf(&mut whole)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return Err(ClientFailure::Closed),
                Err(_) => return Err(ClientFailure::TimedOut),
            }
        }
        let flushed = timeout(longest, stream.flush()).await.map_err(|_| ClientFailure::TimedOut)?;
        flushed.map_err(|_| ClientFailure::Closed)
    }

    /// As [`super::http1_session`] writes it.
    fn write_head(&mut self, setup: &Setup, reply: &Reply, origin: Option<&HeaderValue>, request_id: &str, ends: bool) {
        let answer = &mut self.answer;
        answer.clear();
        answer.reserve(HEAD);
        let status = reply.status();
        answer.extend_from_slice(b"HTTP/1.1 ");
        answer.extend_from_slice(status.as_str().as_bytes());
        answer.extend_from_slice(b" ");
        answer.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        answer.extend_from_slice(b"\r\n");
        reply.fields(&setup.gateway.cors, origin, |name, value| {
            push_name(answer, name.as_str());
            answer.extend_from_slice(b": ");
            value.append_to(answer);
            answer.extend_from_slice(b"\r\n");
        });
        answer.extend_from_slice(b"x-request-id: ");
        answer.extend_from_slice(request_id.as_bytes());
        answer.extend_from_slice(b"\r\nDate: ");
        answer.extend_from_slice(get_cached_date().as_bytes());
        answer.extend_from_slice(if ends {
            b"\r\nConnection: close\r\n\r\n"
        } else {
            b"\r\nConnection: keep-alive\r\n\r\n"
        });
    }
}

/// Completes when the client resets its connection. What it sends meanwhile is kept; the end of its sending alone is not a
/// disconnect.
async fn client_left(stream: &mut Stream, behind: &mut BytesMut) {
    while behind.len() < MAX_BEHIND {
        match stream.read_buf(behind).await {
            Ok(1..) => {}
            Ok(0) => break,
            Err(_) => return,
        }
    }
    std::future::pending().await
}
