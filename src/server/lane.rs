//! The lane: a hit that is asked for in the one plain shape is answered here, below pingora's session, in one write.
//!
//! It decides nothing of its own. Who is calling, whether an answer is fresh, its fields and its record are what they are
//! on the ordinary way; what it does not take, it leaves unread and untold, and pingora gets every byte of it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};

use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::date::get_cached_date;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::edge::WRITE_TIMEOUT;
use super::head;
use super::plain::Plain;
use super::setup::Setup;
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
    Answered,
    /// The caller left while it was answered.
    Gone,
}

/// One connection's lane.
pub struct Lane {
    peer: IpAddr,
    /// The head of an answer; kept for the next one.
    answer: BytesMut,
}

impl Lane {
    pub fn new(stream: &Stream) -> Self {
        let digest = stream.get_socket_digest();
        let inet = digest.as_ref().and_then(|digest| digest.peer_addr()?.as_inet());
        let peer = inet.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        Lane { peer, answer: BytesMut::new() }
    }

    /// Answers a request if it is one for the lane. `head`: whole, with its empty line and nothing behind it.
    pub async fn take(&mut self, setup: &Arc<Setup>, stream: &mut Stream, head: &[u8]) -> Taken {
        // Counted as the ordinary way counts it, with more than any spelling of the fields could make of it. While the
        // process drains, answers say that their connection ends.
        if !setup.fast_path
            || head.len() + head::MAX_FIELDS > setup.limits.max_header_bytes
            || !setup.lifecycle.is_ready()
        {
            return Taken::Declined;
        }
        let now = clock::now();
        let Some(plain) = Plain::read(head) else { return Taken::Declined };
        let address = setup.trusted.caller_by(self.peer, plain.forwarded_for.as_slice());
        let Plain { customer, token, if_none_match, .. } = plain;
        let Some((level, reply)) = setup.gateway.at_hand(&PlainAsk { customer, token, address, if_none_match }, now)
        else {
            return Taken::Declined;
        };
        let _busy = setup.lifecycle.busy();
        let mut record = Record::begin(now);
        record.route = Route::CustomerName;
        record.status = reply.status();
        record.cache = reply.cache_status;
        record.level = Some(level);
        record.request_id = plain.request_id.map_or_else(|| setup.new_request_id(), str::to_owned);
        let body = reply.body();
        record.body_bytes = body.len();
        self.write_head(setup, &reply, &record.request_id);
        setup.gateway.metrics.took_fast_path();
        let written = timeout(WRITE_TIMEOUT, async {
            let mut whole = (&mut self.answer).chain(body);
            stream.write_all_buf(&mut whole).await?;
            stream.flush().await
        });
        let written = written.await.is_ok_and(|written| written.is_ok());
        record.end(&setup.gateway.metrics, setup.access);
        if written { Taken::Answered } else { Taken::Gone }
    }

    /// As pingora writes it.
    fn write_head(&mut self, setup: &Setup, reply: &Reply, request_id: &str) {
        let answer = &mut self.answer;
        answer.clear();
        answer.reserve(HEAD);
        let status = reply.status();
        answer.put_slice(b"HTTP/1.1 ");
        answer.put_slice(status.as_str().as_bytes());
        answer.put_slice(b" ");
        answer.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        answer.put_slice(b"\r\n");
        reply.fields(&setup.gateway.cors, None, |name, value| field(answer, spelled(&name), value.as_bytes()));
        field(answer, "x-request-id", request_id.as_bytes());
        field(answer, "Date", get_cached_date().as_bytes());
        answer.put_slice(b"Connection: keep-alive\r\n\r\n");
    }
}

fn field(answer: &mut BytesMut, name: &str, value: &[u8]) {
    answer.put_slice(name.as_bytes());
    answer.put_slice(b": ");
    answer.put_slice(value);
    answer.put_slice(b"\r\n");
}

/// A name in the letter case that pingora gives it.
fn spelled(name: &HeaderName) -> &str {
    match *name {
        AGE => "Age",
        CACHE_CONTROL => "Cache-Control",
        CONTENT_LENGTH => "Content-Length",
        CONTENT_TYPE => "Content-Type",
        _ => name.as_str(),
    }
}
