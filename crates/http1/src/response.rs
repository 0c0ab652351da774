//! Response heads: strict parsing and the framing of what follows (RFC 9112 sections 4 to 6).

use std::mem::MaybeUninit;

use http::{Method, StatusCode, Version};

use crate::head::{FieldFraming, Fields, HeadError, HeadLimits, HeadScan, MAX_FIELDS, RawFields};

/// Framing of a response's body (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body follows.
    None,
    /// Exactly this many bytes follow.
    Known(u64),
    /// A chunked body follows.
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// A parsed response head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// HTTP/1.0 or HTTP/1.1, as `Via` reports it.
    pub version: Version,
    pub status: StatusCode,
    /// Fields as received, hop-by-hop fields included.
    pub fields: RawFields,
    /// Framing of the body, which also depends on the method of the request.
    pub body: BodyLength,
    /// Whether the connection may carry another exchange after this response.
    ///
    /// False for HTTP/1.0 without `keep-alive`, for `Connection: close`, for a body that ends with
    /// the connection, after HEAD, and after a 204 or 304 that announced a body: a peer that sends
    /// this body all the same would answer the next request with it.
    pub is_persistent: bool,
}

impl ResponseHead {
    /// Parses the head at the beginning of `buffer`, the response to a request of `method`.
    ///
    /// Returns the head and its length, or `None` if more bytes are needed. A reader that receives
    /// the head in pieces uses [`ResponseHead::resume`], which does not begin again each time.
    ///
    /// # Errors
    ///
    /// The bytes cannot become an acceptable head; the connection must be closed.
    pub fn parse(
        buffer: &[u8],
        method: &Method,
        limits: &HeadLimits,
    ) -> Result<Option<(Self, usize)>, HeadError> {
        Self::resume(&mut HeadScan::default(), buffer, method, limits)
    }

    /// Like [`ResponseHead::parse`], with the progress of the earlier calls for the same head.
    ///
    /// `scan` is new for each head.
    ///
    /// # Errors
    ///
    /// As [`ResponseHead::parse`].
    pub fn resume(
        scan: &mut HeadScan,
        buffer: &[u8],
        method: &Method,
        limits: &HeadLimits,
    ) -> Result<Option<(Self, usize)>, HeadError> {
        const BEGINNING: &[u8] = b"HTTP/1.";
        if buffer.is_empty() {
            return Ok(None);
        }
        let compared = buffer.len().min(BEGINNING.len());
        if buffer[..compared] != BEGINNING[..compared] {
            return Err(HeadError::NotHttp);
        }
        let Some(length) = scan.find_end(buffer, limits.max_bytes)? else { return Ok(None) };
        parse_head(&buffer[..length], method, limits).map(|head| Some((head, length)))
    }

    /// Whether the response is an informational one that another response follows.
    ///
    /// 101 is final: the protocol changes behind it.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        is_interim(self.status)
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Parses a whole head, whose line ends were checked.
fn parse_head(
    head: &[u8],
    method: &Method,
    limits: &HeadLimits,
) -> Result<ResponseHead, HeadError> {
    let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let complete = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        head,
        &mut storage,
    );
    match complete {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
        _ => return Err(HeadError::Malformed),
    }
    let (Some(code), Some(minor_version)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed);
    };
    let status = StatusCode::from_u16(code)
        .ok()
        .filter(|status| status.as_u16() < 600)
        .ok_or(HeadError::InvalidStatus)?;
    let fields = Fields::from_parsed(head, parsed.headers, minor_version, limits)?;
    let announces_body =
        matches!(fields.framing, FieldFraming::Length(1..) | FieldFraming::Chunked);
    if is_interim(status) && announces_body {
        return Err(HeadError::AmbiguousFraming);
    }
    let is_tunnel = status == StatusCode::SWITCHING_PROTOCOLS
        || (method == Method::CONNECT && status.is_success());
    let has_no_body = is_tunnel
        || method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let body = match fields.framing {
        _ if has_no_body => BodyLength::None,
        FieldFraming::Unspecified => BodyLength::UntilClose,
        FieldFraming::Length(0) => BodyLength::None,
        FieldFraming::Length(length) => BodyLength::Known(length),
        FieldFraming::Chunked => BodyLength::Chunked,
    };
    let is_persistent = fields.connection.is_persistent(minor_version)
        && body != BodyLength::UntilClose
        && method != Method::HEAD
        && !is_tunnel
        // A peer that sends the announced body all the same would answer the next request with it.
        && !(has_no_body && announces_body);
    let version = if minor_version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(ResponseHead { version, status, fields: fields.raw, body, is_persistent })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, method: &Method) -> Result<Option<(ResponseHead, usize)>, HeadError> {
        ResponseHead::parse(text.as_bytes(), method, &HeadLimits::default())
    }

    fn get(text: &str) -> ResponseHead {
        parse(text, &Method::GET).unwrap().unwrap().0
    }

    #[test]
    fn head_in_pieces_needs_more_until_its_empty_line() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: a\tb\r\n\r\n";
        for cut in 0..text.len() {
            assert!(parse(&text[..cut], &Method::GET).unwrap().is_none(), "{cut}");
        }
        let (head, length) = parse(&format!("{text}hello"), &Method::GET).unwrap().unwrap();
        assert_eq!(
            (head.status, length, head.body),
            (StatusCode::OK, text.len(), BodyLength::Known(5))
        );
        assert_eq!(head.fields.to_map()["x"], "a\tb");
        assert_eq!(head.version, Version::HTTP_11);
        assert!(head.is_persistent);
    }

    #[test]
    fn framing_follows_method_status_and_fields() {
        use BodyLength::{Chunked, Known, None, UntilClose};
        for (text, method, body, persistent) in [
            ("200 OK\r\n", Method::GET, UntilClose, false),
            ("200 OK\r\nContent-Length: 0\r\n", Method::GET, None, true),
            ("200 OK\r\nTransfer-Encoding: Chunked\r\n", Method::GET, Chunked, true),
            (
                "200 OK\r\nContent-Length: 7\r\nConnection: x, Close\r\n",
                Method::GET,
                Known(7),
                false,
            ),
            ("200 OK\r\nContent-Length: 7\r\n", Method::HEAD, None, false),
            ("204 No Content\r\n", Method::GET, None, true),
            ("204 No Content\r\nContent-Length: 0\r\n", Method::GET, None, true),
            ("204 No Content\r\nContent-Length: 5\r\n", Method::GET, None, false),
            ("204 No Content\r\nTransfer-Encoding: chunked\r\n", Method::GET, None, false),
            ("304 Not Modified\r\n", Method::GET, None, true),
            ("304 Not Modified\r\nContent-Length: 9\r\n", Method::GET, None, false),
            ("204 No Content\r\nConnection: close\r\n", Method::GET, None, false),
            ("200 OK\r\nContent-Length: 0\r\n", Method::HEAD, None, false),
            ("200 OK\r\nTransfer-Encoding: chunked\r\n", Method::HEAD, None, false),
            ("101 Switching Protocols\r\nUpgrade: x\r\n", Method::GET, None, false),
            ("101 Switching Protocols\r\nContent-Length: 5\r\n", Method::GET, None, false),
            ("200 OK\r\n", Method::CONNECT, None, false),
            ("200 OK\r\nContent-Length: 5\r\n", Method::CONNECT, None, false),
            ("407 No\r\nContent-Length: 5\r\n", Method::CONNECT, Known(5), true),
            ("205 Reset Content\r\n", Method::GET, UntilClose, false),
            ("205 Reset Content\r\nContent-Length: 5\r\n", Method::GET, Known(5), true),
            ("100 Continue\r\n", Method::GET, None, true),
            ("103 Early Hints\r\nContent-Length: 0\r\n", Method::GET, None, true),
            ("103 Early Hints\r\n", Method::HEAD, None, false),
        ] {
            let (head, _) = parse(&format!("HTTP/1.1 {text}\r\n"), &method).unwrap().unwrap();
            assert_eq!((head.body, head.is_persistent), (body, persistent), "{text:?} {method}");
        }
    }

    #[test]
    fn persistence_follows_version_and_connection_options() {
        for (version, connection, persistent) in [
            ("1.1", "", true),
            ("1.1", "Connection: keep-alive\r\n", true),
            ("1.1", "Connection:\r\n", true),
            ("1.1", "Connection: , x,\r\n", true),
            ("1.1", "connection: CLOSE\r\n", false),
            ("1.1", "Connection: x,\tclose , y\r\n", false),
            ("1.1", "Connection: keep-alive, close\r\n", false),
            ("1.1", "Connection: close\r\nConnection: keep-alive\r\n", false),
            ("1.1", "Connection: keep-alive\r\nX: y\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            // Not a token: conservative.
            ("1.1", "Connection: close;x\r\n", false),
            ("1.1", "Connection: \"close\"\r\n", false),
            ("1.1", "Connection: x \u{e6}\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: x\r\n", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: x\r\nConnection: y, keep-alive\r\n", true),
            ("1.0", "Connection: close, keep-alive\r\n", false),
        ] {
            let text = format!("HTTP/{version} 200 OK\r\nContent-Length: 1\r\n{connection}\r\n");
            assert_eq!(get(&text).is_persistent, persistent, "{text:?}");
        }
    }

    #[test]
    fn interim_response_that_announces_a_body_is_refused() {
        for fields in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            for status in [100, 102, 103, 199] {
                let text = format!("HTTP/1.1 {status} X\r\n{fields}\r\n\r\n");
                let error = parse(&text, &Method::GET).err();
                assert_eq!(error, Some(HeadError::AmbiguousFraming), "{text:?}");
            }
        }
    }

    #[test]
    fn status_is_between_100_and_599() {
        let status = |code: &str| {
            parse(&format!("HTTP/1.1 {code} X\r\n\r\n"), &Method::GET)
                .map(|parsed| parsed.map(|(head, _)| head.status.as_u16()))
        };
        for code in [100, 199, 200, 299, 418, 599] {
            assert_eq!(status(&code.to_string()), Ok(Some(code)));
        }
        for code in ["000", "099", "600", "999"] {
            assert_eq!(status(code), Err(HeadError::InvalidStatus), "{code}");
        }
        for code in ["1", "20", "2000", "2x0", "+20", "-20", " 20", "\u{661}"] {
            assert_eq!(status(code), Err(HeadError::Malformed), "{code}");
        }
    }

    #[test]
    fn reason_may_be_empty_missing_or_any_text() {
        for line in ["HTTP/1.1 200 ", "HTTP/1.1 200", "HTTP/1.1 200 \u{e6}\t:", "HTTP/1.0 200 OK "]
        {
            assert_eq!(get(&format!("{line}\r\nX: 1\r\n\r\n")).status, 200, "{line:?}");
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -1",
            "Content-Length: 0x5",
            "Content-Length:",
            "Content-Length: 5 5",
            "Content-Length: 1234567890123456789",
            "Content-Length: 0000000000000000005",
            "Content-Length: 18446744073709551621",
            "Content-Length: 5,",
            "Content-Length: ,5",
            "Content-Length: 5;",
            "Content-Length: 5.0",
            "Content-Length: 5e0",
            "Content-Length: \u{a0}5",
            "Content-Length: \u{665}",
            "Content-Length: 5\r\ncontent-length: 6",
            "Content-Length: 5\r\nX: 1\r\nContent-Length:",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding:",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked\u{a0}",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\ntransfer-encoding:",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Transfer-Encoding: chunked;q=1",
        ] {
            for status in ["200 OK", "204 No Content", "304 Not Modified", "100 Continue"] {
                let result = parse(&format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n"), &Method::GET);
                assert_eq!(result.err(), Some(HeadError::AmbiguousFraming), "{status} {fields:?}");
            }
        }
        let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(parse(old, &Method::GET).err(), Some(HeadError::AmbiguousFraming));
    }

    #[test]
    fn malformed_head_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\nX: 1\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\nY: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\n X: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
            "HTTP/1.1 200 OK\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n\r2",
            "HTTP/1.1 200 OK\r\nX: \x7f\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\x0bb\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\x0c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX\t: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX\u{e6}: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX(: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\tX: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: 1\r\n\tfolded\r\n\r\n",
            "HTTP/1.1 200 O\x01K\r\n\r\n",
            "HTTP/1.1 200 O\x7fK\r\n\r\n",
            "HTTP/1.1 200\tOK\r\n\r\n",
            "HTTP/1.1 200OK\r\n\r\n",
            "HTTP/1.1\t200 OK\r\n\r\n",
            "HTTP/1.1200 OK\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1. 200 OK\r\n\r\n",
            "HTTP/1.10 200 OK\r\n\r\n",
            "HTTP/1.x 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 200 O\rK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
        ] {
            assert_eq!(parse(text, &Method::GET).err(), Some(HeadError::Malformed), "{text:?}");
        }
        for text in ["HTTP/2 200\r\n", "SSH-2.0", "http/1.1", "\r\nHTTP/1.1", " "] {
            assert_eq!(parse(text, &Method::GET).err(), Some(HeadError::NotHttp), "{text:?}");
        }
    }

    #[test]
    fn malformed_line_end_is_refused_before_the_head_is_complete() {
        for text in ["HTTP/1.1 200 OK\n", "HTTP/1.1 200 OK\r\nX: \r1", "HTTP/1.1 200 OK\r\nX: \0"] {
            assert_eq!(parse(text, &Method::GET).err(), Some(HeadError::Malformed), "{text:?}");
        }
    }

    #[test]
    fn head_is_bounded_in_bytes_and_fields() {
        let limits = HeadLimits { max_bytes: 200, max_fields: 3 };
        let parse = |text: &str| ResponseHead::parse(text.as_bytes(), &Method::GET, &limits).err();
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(200));
        assert_eq!(parse(&long), Some(HeadError::TooLong));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(4));
        assert_eq!(parse(&many), Some(HeadError::TooManyFields));
        assert_eq!(parse(&many.replacen("X: 1\r\n", "", 1)), None);
    }
}
