//! Checks of request heads beyond those of the crate `http1`, and the gateway's errors for refused
//! heads. Performs no input or output.

use http::header::{CONTENT_LENGTH, COOKIE};
use http::{HeaderMap, HeaderValue, Version};
use http1::{HeadError, MAX_METHOD_BYTES, MAX_REQUEST_FIELDS, RequestHead, RequestHeadError};

use crate::api::{ApiError, Refusal};

/// Maps a refused request head to the gateway's response.
pub fn head_refusal(error: RequestHeadError) -> ApiError {
    let refusal = match error {
        RequestHeadError::Head(HeadError::TooLong | HeadError::TooManyFields) => {
            return ApiError::HeadTooLarge;
        }
        RequestHeadError::Head(HeadError::AmbiguousFraming) => Refusal::Framing,
        RequestHeadError::MethodNotAllowed => return ApiError::MethodNotAllowed,
        RequestHeadError::MethodTooLong => return ApiError::NotImplemented,
        RequestHeadError::TargetCharacter => Refusal::ControlCharacter,
        RequestHeadError::Fragment => Refusal::Fragment,
        RequestHeadError::TargetTooLong => Refusal::TargetTooLong,
        RequestHeadError::OtherAuthority => Refusal::OtherAuthority,
        RequestHeadError::InvalidHost => Refusal::MissingHost,
        RequestHeadError::ProtectedFieldNamed => Refusal::ConnectionNominates,
        RequestHeadError::Head(
            HeadError::NotHttp | HeadError::Malformed | HeadError::InvalidStatus,
        )
        | RequestHeadError::TargetForm
        | RequestHeadError::DisguisedField => Refusal::Malformed,
    };
    ApiError::BadRequest(refusal)
}

/// Returns the number of fields of a message. HTTP/2 clients may send each cookie in a field (RFC
/// 9113 section 8.2.3); the message has one.
fn count_fields(fields: &HeaderMap) -> usize {
    let cookies = fields.get_all(COOKIE).iter().count();
    fields.len() - cookies.saturating_sub(1)
}

/// Checks a request of HTTP/2 by the rules that every parsed head of HTTP/1.1 has passed.
///
/// # Errors
///
/// The head is too large, or has a method that is too long, blanks around a value (RFC 9113 section
/// 8.2.1), a name that other readers take for another one, or several lengths.
pub fn check_http2(request: &RequestHead, max_bytes: usize) -> Result<(), ApiError> {
    debug_assert_eq!(request.version, Version::HTTP_2);
    let fields = &request.fields;
    let size: usize =
        fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if count_fields(fields) > MAX_REQUEST_FIELDS || size + request.target.len() > max_bytes {
        return Err(ApiError::HeadTooLarge);
    }
    if request.method.as_str().len() > MAX_METHOD_BYTES {
        return Err(ApiError::NotImplemented);
    }
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if fields
        .values()
        .map(HeaderValue::as_bytes)
        .any(|value| is_blank(value.first()) || is_blank(value.last()))
    {
        return Err(ApiError::BadRequest(Refusal::Malformed));
    }
    if fields.keys().any(|name| http1::is_disguised_field(name.as_str())) {
        return Err(ApiError::BadRequest(Refusal::Malformed));
    }
    if fields.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(ApiError::BadRequest(Refusal::Framing));
    }
    http1::check_origin_form(&request.target).map_err(head_refusal)
}

/// Whether [`check_http2`] accepts a request that h2 and the crate `http2-fields` have accepted.
/// They check everything except its size and the spelling of its names.
pub fn passes_check_http2(target: &str, fields: &[(&str, &[u8])], max_bytes: usize) -> bool {
    let size = fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
    fields.len() <= MAX_REQUEST_FIELDS
        && size + target.len() <= max_bytes
        && !fields.iter().any(|(name, _)| http1::is_disguised_field(name))
}

#[cfg(test)]
mod tests {
    use http1::{FieldSlots, HeadScan, RequestHeadRef, find_request_end};

    use super::*;
    use crate::server::request_head_oracle as oracle;

    fn refusal(head: &str) -> Option<ApiError> {
        let end = find_request_end(&mut HeadScan::default(), head.as_bytes(), 80 << 10);
        let checked = end.and_then(|end| {
            let end = end.expect("a complete head");
            RequestHeadRef::parse(&head.as_bytes()[..end], &mut FieldSlots::new()).map(drop)
        });
        checked.err().map(head_refusal)
    }

    proptest::proptest! {
        /// The fuzz target `request_head` makes the same comparison.
        #[test]
        fn head_that_passes_has_one_reading(
            fields in proptest::collection::vec(
                (
                    proptest::sample::select(&["Host", "Content-Length", "Transfer-Encoding", "X", "x y", ""][..]),
                    proptest::sample::select(&[":", ": ", " :", ":\t", "\r\n", "\n", ""][..]),
                    proptest::sample::select(&["a", "5", "chunked", "CHUNKED", "+5", "", "a\rb", "a\nb", "\0"][..]),
                ),
                0..5,
            ),
            version in proptest::sample::select(&["1.1", "1.0", "1.2"][..]),
        ) {
            let line = |(name, colon, value): &(&str, &str, &str)| format!("{name}{colon}{value}\r\n");
            let fields: String = fields.iter().map(line).collect();
            let head = format!("POST /x HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
            let found = find_request_end(&mut HeadScan::default(), head.as_bytes(), 1 << 10);
            let Ok(Some(end)) = found else { return Ok(()) };
            let mut slots = FieldSlots::new();
            if let Ok(read) = RequestHeadRef::parse(&head.as_bytes()[..end], &mut slots) {
                let framing = oracle::framing(&head.as_bytes()[..end]);
                proptest::prop_assert!(framing.is_some(), "{:?}", head);
                let is_chunked = read.body == http1::BodyLength::Chunked;
                proptest::prop_assert_eq!(is_chunked, framing == Some(oracle::Framing::Chunked), "{:?}", head);
            }
        }
    }

    #[test]
    fn refused_head_gets_the_error_of_its_fault() {
        let bad = |refusal| Some(ApiError::BadRequest(refusal));
        for (line, fields, error) in [
            ("GET / HTTP/1.1", "Host: a\r\n", None),
            ("GET http://b/ HTTP/1.1", "Host: a\r\n", bad(Refusal::OtherAuthority)),
            ("GET a HTTP/1.1", "Host: a\r\n", bad(Refusal::Malformed)),
            ("GET /x#y HTTP/1.1", "Host: a\r\n", bad(Refusal::Fragment)),
            ("GET /\u{e6} HTTP/1.1", "Host: a\r\n", bad(Refusal::ControlCharacter)),
            ("GET /x?q=\"y HTTP/1.1", "Host: a\r\n", bad(Refusal::ControlCharacter)),
            ("GET / HTTP/1.1", "", bad(Refusal::MissingHost)),
            ("GET / HTTP/1.1", "Host: a\r\nHost: a\r\n", bad(Refusal::MissingHost)),
            ("GET / HTTP/1.1", "Host: a\r\nContent-Length: 1, 1\r\n", bad(Refusal::Framing)),
            ("GET / HTTP/1.1", "Host: a\r\nX_Api_Key: 1\r\n", bad(Refusal::Malformed)),
            ("GET / HTTP/1.1", "Host: a\r\nX: 1\r\n folded\r\n", bad(Refusal::Malformed)),
            (
                "GET / HTTP/1.1",
                "Host: a\r\nConnection: Cookie\r\n",
                bad(Refusal::ConnectionNominates),
            ),
            ("TRACE / HTTP/1.1", "Host: a\r\n", Some(ApiError::MethodNotAllowed)),
            ("CONNECT a:443 HTTP/1.1", "Host: a\r\n", Some(ApiError::MethodNotAllowed)),
        ] {
            assert_eq!(refusal(&format!("{line}\r\n{fields}\r\n")), error, "{line:?} {fields:?}");
        }
        let long = format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(MAX_METHOD_BYTES + 1));
        assert_eq!(refusal(&long), Some(ApiError::NotImplemented));
        let many =
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(MAX_REQUEST_FIELDS));
        assert_eq!(refusal(&many), Some(ApiError::HeadTooLarge));
    }
}
