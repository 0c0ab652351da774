//! Head of a forwarded response as the client receives it. Performs no input or output.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};
use http1::{BodyLength, RawFields, ResponseHead};

use super::head_writer::HeadWriter;
use crate::forward::HopByHop;
use crate::reply::CacheStatus;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The head of a response that is passed through: the API's fields without hop-by-hop fields, and
/// the gateway's fields. Over HTTP/1.1 it is written without a field map, which took 5,500 of the
/// 42,000 user instructions of a forward of 1 KB (callgrind, `benches/compare/fetch.py`).
pub struct ForwardedHead {
    pub status: StatusCode,
    fields: RawFields,
    has_length: bool,
    /// Length of the body; zero if it is unknown.
    pub body_bytes: usize,
    request_id: HeaderValue,
    /// Whether the body is sent in chunks.
    pub is_chunked: bool,
}

impl ForwardedHead {
    pub fn new(head: ResponseHead, request_id: HeaderValue) -> Self {
        let ResponseHead { status, fields, body, .. } = head;
        let body_bytes = match body {
            BodyLength::Known(length) => usize::try_from(length).unwrap_or(usize::MAX),
            _ => 0,
        };
        let has_length =
            status != StatusCode::NO_CONTENT && fields.get_all(&CONTENT_LENGTH).next().is_some();
        ForwardedHead { status, fields, has_length, body_bytes, request_id, is_chunked: false }
    }

    /// Whether the head states the length of the body.
    pub fn has_length(&self) -> bool {
        self.has_length
    }

    /// Calls `put` with each field of the API that passes.
    fn for_each_passing(&self, mut put: impl FnMut(&[u8], &[u8])) {
        let hop_by_hop = HopByHop::new(self.fields.get_all(&CONNECTION));
        let is =
            |name: &[u8], other: HeaderName| name.eq_ignore_ascii_case(other.as_str().as_bytes());
        for (name, value) in self.fields.iter() {
            let is_replaced = match name.len() {
                12 => is(name, X_REQUEST_ID),
                // A response without content has no length (RFC 9110 section 8.6).
                14 => self.status == StatusCode::NO_CONTENT && is(name, CONTENT_LENGTH),
                _ => false,
            };
            if !is_replaced && !hop_by_hop.contains(name) {
                put(name, value);
            }
        }
    }

    /// Writes the fields.
    pub fn write_fields(&self, out: &mut HeadWriter<'_>) {
        self.for_each_passing(|name, value| out.raw_field(name, value));
        if self.is_chunked {
            out.field(&TRANSFER_ENCODING, b"chunked");
        }
        out.field(&CACHE_STATUS, CacheStatus::BYPASS.as_bytes());
        out.field(&X_REQUEST_ID, self.request_id.as_bytes());
    }

    /// Converts the head to one with a field map.
    pub fn into_response(self) -> Response<()> {
        let mut fields = HeaderMap::with_capacity(16);
        self.for_each_passing(|name, value| {
            // Both were checked by the parser.
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                fields.append(name, value);
            }
        });
        if self.is_chunked {
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        fields.append(CACHE_STATUS, CacheStatus::BYPASS);
        fields.insert(X_REQUEST_ID, self.request_id);
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        *response.headers_mut() = fields;
        response
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use http1::HeadLimits;

    use super::*;
    use crate::server::http::head_writer::ConnectionOption;

    #[test]
    fn head_without_a_map_is_the_head_with_one() {
        let text = "HTTP/1.1 STATUS\r\nDATE: then\r\nContent-LENGTH: 5\r\nConnection: keep-alive, x-one\r\n\
                    X-One: 1\r\nKeep-Alive: 5\r\nX-Request-Id: api\r\nCache-Status: api\r\n\
                    eTag: \"a\"\r\nx-two:\r\nX-TWO: 2\r\n\r\n";
        for (status, length) in [("200 OK", "Content-LENGTH: 5\r\n"), ("204 No Content", "")] {
            let head = text.replace("STATUS", status);
            let (head, _) =
                ResponseHead::parse(head.as_bytes(), &Method::GET, &HeadLimits::default())
                    .unwrap()
                    .unwrap();
            let mut forwarded = ForwardedHead::new(head, HeaderValue::from_static("own"));
            forwarded.is_chunked = true;
            assert_eq!(forwarded.has_length(), !length.is_empty());
            let mut raw = Vec::new();
            let mut writer = HeadWriter::begin(&mut raw, forwarded.status);
            forwarded.write_fields(&mut writer);
            writer.finish(ConnectionOption::KeepAlive);
            assert_eq!(
                String::from_utf8(raw.clone()).unwrap(),
                format!(
                    "HTTP/1.1 {status}\r\nDATE: then\r\n{length}Cache-Status: api\r\neTag: \"a\"\r\n\
                     x-two: \r\nX-TWO: 2\r\nTransfer-Encoding: chunked\r\n\
                     cache-status: telecomx-gateway; fwd=bypass\r\nx-request-id: own\r\nConnection: keep-alive\r\n\r\n"
                )
            );
            let response = forwarded.into_response();
            let mut mapped = Vec::new();
            let mut writer = HeadWriter::begin(&mut mapped, response.status());
            response
                .headers()
                .iter()
                .for_each(|(name, value)| writer.field(name, value.as_bytes()));
            writer.finish(ConnectionOption::KeepAlive);
            let lines = |head: Vec<u8>| {
                let mut lines: Vec<String> =
                    String::from_utf8(head).unwrap().lines().map(str::to_lowercase).collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!(lines(raw), lines(mapped));
        }
    }
}
