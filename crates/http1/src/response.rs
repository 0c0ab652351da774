//! Response heads: strict parsing and the framing of what follows (RFC 9112 sections 4 to 6).

use std::mem::MaybeUninit;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};
use thiserror::Error;

use crate::field::has_only_crlf_line_ends;

/// Number of fields for which parsing reserves stack memory; the highest possible limit.
const MAX_FIELDS: usize = 256;

/// Bounds of a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Maximum length in bytes, the empty line included.
    pub max_bytes: usize,
    /// Maximum number of fields, at most 256.
    pub max_fields: usize,
}

impl Default for HeadLimits {
    /// 64 KiB and 256 fields: four times what nginx and Node accept by default.
    fn default() -> Self {
        HeadLimits { max_bytes: 64 << 10, max_fields: MAX_FIELDS }
    }
}

/// Reason why bytes are not an acceptable response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// The bytes do not begin like an HTTP/1 response.
    #[error("not an HTTP/1 response")]
    NotHttp,
    /// A byte that the grammar does not allow at its place, or a line end other than CRLF.
    #[error("malformed response head")]
    Malformed,
    /// The head is longer than [`HeadLimits::max_bytes`].
    #[error("response head too long")]
    TooLong,
    /// The head has more fields than [`HeadLimits::max_fields`].
    #[error("too many fields in the response head")]
    TooManyFields,
    /// Two readers could see different ends of the body: several or odd lengths, an unknown
    /// transfer coding, a length and a coding, or a coding in HTTP/1.0.
    #[error("ambiguous framing of the response body")]
    AmbiguousFraming,
}

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
    pub status: StatusCode,
    /// Fields as received, hop-by-hop fields included.
    pub fields: HeaderMap,
    /// Framing of the body, which also depends on the method of the request.
    pub body: BodyLength,
    /// Whether the connection may carry another exchange after this response.
    ///
    /// False for HTTP/1.0 without `keep-alive`, for `Connection: close`, for a body that ends with
    /// the connection, after HEAD, and after a 204 or 304 that announced a body: a peer that sends
    /// this body all the same would answer the next request with it.
    pub is_persistent: bool,
}

/// Finds the length of the head at the beginning of `buffer`, the empty line included.
#[must_use]
pub fn find_head_end(buffer: &[u8]) -> Option<usize> {
    memchr::memmem::find(buffer, b"\r\n\r\n").map(|at| at + 4)
}

impl ResponseHead {
    /// Parses the head at the beginning of `buffer`, the response to a request of `method`.
    ///
    /// Returns the head and its length, or `None` if more bytes are needed.
    ///
    /// # Errors
    ///
    /// The bytes cannot become an acceptable head; the connection must be closed.
    pub fn parse(
        buffer: &[u8],
        method: &Method,
        limits: &HeadLimits,
    ) -> Result<Option<(Self, usize)>, HeadError> {
        const BEGINNING: &[u8] = b"HTTP/1.";
        let compared = buffer.len().min(BEGINNING.len());
        if buffer[..compared] != BEGINNING[..compared] {
            return Err(HeadError::NotHttp);
        }
        let Some(length) = find_head_end(&buffer[..buffer.len().min(limits.max_bytes)]) else {
            if buffer.len() >= limits.max_bytes {
                return Err(HeadError::TooLong);
            }
            return Ok(None);
        };
        parse_head(&buffer[..length], method, limits).map(|head| Some((head, length)))
    }

    /// Whether the response is an informational one that another response follows.
    ///
    /// 101 is final: the protocol changes behind it.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

fn parse_head(
    head: &[u8],
    method: &Method,
    limits: &HeadLimits,
) -> Result<ResponseHead, HeadError> {
    if !has_only_crlf_line_ends(head) {
        return Err(HeadError::Malformed);
    }
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
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed);
    };
    if parsed.headers.len() > limits.max_fields {
        return Err(HeadError::TooManyFields);
    }
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::Malformed)?;
    let mut fields = HeaderMap::with_capacity(parsed.headers.len());
    for field in &*parsed.headers {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| HeadError::Malformed)?;
        fields.append(name, value);
    }
    let announced = announced_body(&fields, minor)?;
    let without_body = method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let body = if without_body { BodyLength::None } else { announced };
    // A peer that sends the announced body all the same would answer the next request with it.
    let announces_more =
        without_body && matches!(announced, BodyLength::Known(_) | BodyLength::Chunked);
    let is_persistent = wants_persistence(&fields, minor)
        && body != BodyLength::UntilClose
        && method != Method::HEAD
        && status != StatusCode::SWITCHING_PROTOCOLS
        && !announces_more;
    Ok(ResponseHead { status, fields, body, is_persistent })
}

/// Framing that the fields announce, whatever the method and status say.
fn announced_body(fields: &HeaderMap, minor: u8) -> Result<BodyLength, HeadError> {
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let length = lengths.next();
    let coding = codings.next();
    if lengths.next().is_some() || codings.next().is_some() {
        return Err(HeadError::AmbiguousFraming);
    }
    match (length, coding) {
        (None, None) => Ok(BodyLength::UntilClose),
        (Some(length), None) => match parse_length(length.as_bytes()) {
            Some(0) => Ok(BodyLength::None),
            Some(length) => Ok(BodyLength::Known(length)),
            None => Err(HeadError::AmbiguousFraming),
        },
        (None, Some(coding))
            if minor >= 1 && coding.as_bytes().eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(BodyLength::Chunked)
        }
        _ => Err(HeadError::AmbiguousFraming),
    }
}

/// Parses a length of 1 to 18 digits, without sign, blanks or a list.
fn parse_length(value: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&value.len()) {
        return None;
    }
    value.iter().try_fold(0, |length: u64, &digit| {
        digit.is_ascii_digit().then(|| length * 10 + u64::from(digit - b'0'))
    })
}

fn wants_persistence(fields: &HeaderMap, minor: u8) -> bool {
    let mut options = fields
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii);
    let mut keeps_alive = minor >= 1;
    let closes = options.any(|option| {
        keeps_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        option.eq_ignore_ascii_case(b"close")
    });
    keeps_alive && !closes
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
        assert_eq!(head.fields["x"], "a\tb");
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
            ("101 Switching Protocols\r\nUpgrade: x\r\n", Method::GET, None, false),
            ("103 Early Hints\r\n", Method::GET, None, true),
        ] {
            let (head, _) = parse(&format!("HTTP/1.1 {text}\r\n"), &method).unwrap().unwrap();
            assert_eq!((head.body, head.is_persistent), (body, persistent), "{text:?} {method}");
        }
        assert!(!get("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n").is_persistent);
        assert!(
            get("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n")
                .is_persistent
        );
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
