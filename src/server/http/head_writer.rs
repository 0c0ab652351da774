//! Writer of HTTP/1.1 response heads, for sessions, the fast path and refused connections. Performs
//! no input or output.

use http::StatusCode;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, HeaderName, VARY,
};
use pingora_core::protocols::http::date::get_cached_date;

/// Initial capacity for a head. Most are shorter.
pub const HEAD_BYTES: usize = 768;

/// The `Connection` field of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOption {
    KeepAlive,
    Close,
    /// No field, in an informational response.
    Unstated,
}

impl ConnectionOption {
    /// Returns the option of a final response.
    pub const fn for_final(keeps_alive: bool) -> Self {
        if keeps_alive { ConnectionOption::KeepAlive } else { ConnectionOption::Close }
    }
}

/// A response head under construction: status line, then fields, then [`HeadWriter::finish`].
pub struct HeadWriter<'a> {
    out: &'a mut Vec<u8>,
    has_date: bool,
}

impl<'a> HeadWriter<'a> {
    /// Appends the status line to `out`.
    pub fn begin(out: &'a mut Vec<u8>, status: StatusCode) -> Self {
        out.reserve(HEAD_BYTES);
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        HeadWriter { out, has_date: false }
    }

    /// Appends a field. `value` is that of a `HeaderValue`, so that it cannot hold a line end.
    pub fn field(&mut self, name: &HeaderName, value: &[u8]) {
        self.field_with(name, |out| out.extend_from_slice(value));
    }

    /// Appends a field of a parsed head, its name in the letter case in which it was sent.
    pub fn raw_field(&mut self, name: &[u8], value: &[u8]) {
        self.has_date |= name.eq_ignore_ascii_case(b"date");
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        self.out.extend_from_slice(value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Appends a field whose value `append` writes without a line end.
    pub fn field_with(&mut self, name: &HeaderName, append: impl FnOnce(&mut Vec<u8>)) {
        self.has_date |= *name == DATE;
        push_name(self.out, name);
        self.out.extend_from_slice(b": ");
        append(self.out);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Ends the head of a final response: adds `Date` unless it was written (RFC 9110 section
    /// 6.6.1).
    pub fn finish(mut self, connection: ConnectionOption) {
        if !self.has_date {
            self.field_with(&DATE, |out| out.extend_from_slice(get_cached_date().as_bytes()));
        }
        self.finish_without_date(connection);
    }

    /// Ends the head of an informational response, which needs no `Date`.
    pub fn finish_without_date(self, connection: ConnectionOption) {
        let end: &[u8] = match connection {
            ConnectionOption::KeepAlive => b"Connection: keep-alive\r\n\r\n",
            ConnectionOption::Close => b"Connection: close\r\n\r\n",
            ConnectionOption::Unstated => b"\r\n",
        };
        self.out.extend_from_slice(end);
    }
}

/// Appends the name of a response field: in title case, except for the gateway's own fields, whose
/// spelling README shows.
fn push_name(out: &mut Vec<u8>, name: &HeaderName) {
    // The fields of every cached response. Their names took a fifteenth of a hit's instructions.
    let written: &[u8] = match *name {
        AGE => b"Age",
        CACHE_CONTROL => b"Cache-Control",
        CONTENT_LENGTH => b"Content-Length",
        CONTENT_TYPE => b"Content-Type",
        DATE => b"Date",
        ETAG => b"etag",
        VARY => b"vary",
        _ => match name.as_str() {
            own @ ("cache-status" | "x-request-id") => own.as_bytes(),
            _ => return http1::push_title_case(out, name),
        },
    };
    out.extend_from_slice(written);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_title_case_except_for_the_gateways_own() {
        let known = [AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE];
        for name in
            known.into_iter().chain(["www-authenticate", "x-a"].map(HeaderName::from_static))
        {
            let (mut written, mut title) = (Vec::new(), Vec::new());
            push_name(&mut written, &name);
            http1::push_title_case(&mut title, &name);
            assert_eq!(written, title);
        }
        for own in ["etag", "vary", "cache-status", "x-request-id"] {
            let mut written = Vec::new();
            push_name(&mut written, &HeaderName::from_static(own));
            assert_eq!(written, own.as_bytes());
        }
    }

    #[test]
    fn head_has_one_date_and_the_spelling_of_own_fields() {
        let write = |fields: &[(HeaderName, &str)], connection| {
            let mut out = Vec::new();
            let mut head = HeadWriter::begin(&mut out, StatusCode::NOT_FOUND);
            fields.iter().for_each(|(name, value)| head.field(name, value.as_bytes()));
            head.finish(connection);
            String::from_utf8(out).unwrap()
        };
        let (date, length, tag) = ((DATE, "then"), (CONTENT_LENGTH, "2"), (ETAG, "\"a\""));
        assert_eq!(
            write(&[length.clone(), date, tag], ConnectionOption::Close),
            "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nDate: then\r\netag: \"a\"\r\nConnection: close\r\n\r\n"
        );
        let own = write(&[length], ConnectionOption::KeepAlive);
        assert_eq!(own.matches("Date: ").count(), 1, "{own}");
        assert!(own.ends_with("GMT\r\nConnection: keep-alive\r\n\r\n"), "{own}");
        let mut interim = Vec::new();
        HeadWriter::begin(&mut interim, StatusCode::CONTINUE)
            .finish_without_date(ConnectionOption::Unstated);
        assert_eq!(interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}
