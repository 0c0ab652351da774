//! How the cache took part in an answer (RFC 9211). Never a key, a token or an id.

use http::HeaderValue;

/// The cache's part in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Fresh, for that many more seconds.
    Hit { ttl: i64 },
    /// Stale for that many seconds (negative), while a refresh runs in the background.
    Revalidating { ttl: i64 },
    /// Stale for that many seconds (negative), since the API cannot be asked.
    StaleIfError { ttl: i64 },
    /// Asked of the API now; `stored`: for the next one.
    Miss { why: Forwarded, stored: bool },
    /// Fresh, for that many more seconds, and asked for by another gateway of the fleet.
    Shared { ttl: i64 },
    /// Another request's fetch served this one too.
    Collapsed,
    /// Not looked for, never stored.
    Bypass,
}

/// Why the API was asked (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// Nothing was stored.
    UriMiss,
    /// What was stored was stale.
    Stale,
    /// What was stored was stale, and the API says that it still holds.
    Revalidated,
    /// The caller asked for it.
    Request,
}

impl Forwarded {
    const fn as_str(self) -> &'static str {
        match self {
            Forwarded::UriMiss => "fwd=uri-miss",
            Forwarded::Stale => "fwd=stale",
            Forwarded::Revalidated => "fwd=stale; fwd-status=304",
            Forwarded::Request => "fwd=request",
        }
    }
}

impl CacheStatus {
    /// The value of `Cache-Status`.
    pub fn value(self) -> HeaderValue {
        let mut text = Vec::with_capacity(64);
        self.append_to(&mut text);
        // Words and a decimal number are a field value.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("telecomx-gateway; hit"))
    }

    /// Writes that value at the end of `text`.
    pub fn append_to(self, text: &mut Vec<u8>) {
        let mut hit = |ttl: i64, detail: &str| {
            text.extend_from_slice(b"telecomx-gateway; hit; ttl=");
            text.extend_from_slice(itoa::Buffer::new().format(ttl).as_bytes());
            text.extend_from_slice(detail.as_bytes());
        };
        match self {
            CacheStatus::Hit { ttl } => hit(ttl, ""),
            CacheStatus::Revalidating { ttl } => hit(ttl, "; detail=revalidating"),
            CacheStatus::StaleIfError { ttl } => hit(ttl, "; detail=stale-if-error"),
            CacheStatus::Shared { ttl } => hit(ttl, "; detail=tier"),
            CacheStatus::Miss { why, stored } => {
                for part in ["telecomx-gateway; ", why.as_str(), if stored { "; stored" } else { "" }] {
                    text.extend_from_slice(part.as_bytes());
                }
            }
            CacheStatus::Collapsed => text.extend_from_slice(b"telecomx-gateway; fwd=uri-miss; collapsed"),
            CacheStatus::Bypass => text.extend_from_slice(Self::BYPASS.as_bytes()),
        }
    }

    /// The value on every forwarded answer.
    pub const BYPASS: HeaderValue = HeaderValue::from_static("telecomx-gateway; fwd=bypass");

    /// The label for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            CacheStatus::Hit { .. } => "hit",
            CacheStatus::Revalidating { .. } | CacheStatus::StaleIfError { .. } => "stale",
            CacheStatus::Shared { .. } => "tier",
            CacheStatus::Miss { .. } => "miss",
            CacheStatus::Collapsed => "collapsed",
            CacheStatus::Bypass => "bypass",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_the_contracts() {
        for (status, text) in [
            (CacheStatus::Hit { ttl: 42 }, "telecomx-gateway; hit; ttl=42"),
            (CacheStatus::Miss { why: Forwarded::UriMiss, stored: true }, "telecomx-gateway; fwd=uri-miss; stored"),
            (CacheStatus::Miss { why: Forwarded::Request, stored: false }, "telecomx-gateway; fwd=request"),
            (CacheStatus::Collapsed, "telecomx-gateway; fwd=uri-miss; collapsed"),
            (CacheStatus::Revalidating { ttl: -12 }, "telecomx-gateway; hit; ttl=-12; detail=revalidating"),
            (CacheStatus::StaleIfError { ttl: -80 }, "telecomx-gateway; hit; ttl=-80; detail=stale-if-error"),
            (CacheStatus::Shared { ttl: 17 }, "telecomx-gateway; hit; ttl=17; detail=tier"),
            (CacheStatus::Bypass, "telecomx-gateway; fwd=bypass"),
        ] {
            assert_eq!(status.value(), text);
        }
    }
}
