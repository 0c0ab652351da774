//! pingora without the gateway: serves a customer's name in `request_filter` from the floor's
//! responses and forwards everything else. Its cost is that of pingora.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use pingora_core::Result;
use pingora_core::prelude::HttpPeer;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

use crate::Outcome;
use crate::floor::Memory;

/// As long as a request id of the gateway.
const REQUEST_ID: &str = "a024ac3cd8296cac0000000000000000";

struct Plain {
    memory: Memory,
    origin: String,
}

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        let head = session.req_header();
        let caller =
            head.headers.get(AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
        // With a query it is forwarded: a miss of a proxy without a cache.
        let path = head.uri.path_and_query().map_or("", |target| target.as_str());
        let Some(stored) = self.memory.answer(caller, path) else { return Ok(false) };
        let held = head
            .headers
            .get(IF_NONE_MATCH)
            .is_some_and(|tag| tag.as_bytes() == stored.etag.as_bytes());
        let mut answer = ResponseHeader::build(if held { 304 } else { 200 }, Some(8))?;
        answer.insert_header(ETAG, &stored.etag)?;
        answer.insert_header("cache-status", "plain; hit")?;
        answer.insert_header("cache-control", "private, no-cache")?;
        answer.insert_header("vary", "Authorization, X-API-Key, Cookie")?;
        if held {
            session.write_response_header(Box::new(answer), true).await?;
        } else {
            answer.insert_header(CONTENT_TYPE, "application/json; charset=utf-8")?;
            answer.insert_header(CONTENT_LENGTH, stored.body.len())?;
            session.write_response_header(Box::new(answer), false).await?;
            session.write_response_body(Some(Bytes::clone(&stored.body)), true).await?;
        }
        Ok(true)
    }

    /// Sets the gateway's fields.
    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        _: &mut (),
    ) -> Result<()> {
        request.insert_header("x-forwarded-for", "127.0.0.1")?;
        request.insert_header("x-forwarded-proto", "http")?;
        request.insert_header("via", "1.1 telecomx-gateway")?;
        request.insert_header("x-request-id", REQUEST_ID)
    }

    async fn response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        _: &mut (),
    ) -> Result<()>
    where
        Self::CTX: Send + Sync,
    {
        response.insert_header("cache-status", "telecomx-gateway; fwd=bypass")?;
        response.insert_header("x-request-id", REQUEST_ID)
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&*self.origin, false, String::new())))
    }
}

/// Serves until the process ends.
pub fn serve(workers: &str, address: &str, origin: &str) -> Outcome {
    let threads = workers.parse()?;
    // The same as in the gateway: the better one for each.
    let conf = ServerConf { threads, work_stealing: threads > 1, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    let plain = Plain { memory: Memory::new(), origin: origin.to_owned() };
    let mut service = http_proxy_service(&server.configuration, plain);
    service.add_tcp(address);
    server.add_service(service);
    server.run(RunArgs::default());
    Ok(())
}
