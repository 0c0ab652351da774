//! `Cache-Status` (RFC 9211). It never holds a key, a token or an id.

use http::HeaderValue;

/// How the cache handled a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Served fresh; `ttl`: remaining freshness in seconds.
    Hit { ttl: i64 },
    /// Served stale while a fetch runs in the background; `ttl` is negative.
    Revalidating { ttl: i64 },
    /// Served stale because the API failed; `ttl` is negative.
    StaleIfError { ttl: i64 },
    /// Fetched from the API; `stored`: for further requests.
    Miss { why: ForwardReason, stored: bool },
    /// Served fresh from the shared tier; `ttl`: remaining freshness in seconds.
    Shared { ttl: i64 },
    /// Served by the fetch of another request.
    Collapsed,
    /// Neither looked up nor stored.
    Bypass,
}

/// Why a request was forwarded (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardReason {
    /// No entry was stored.
    UriMiss,
    /// The entry was stale.
    Stale,
    /// The entry was stale, and the API confirmed it with 304.
    Revalidated,
    /// The client's `Cache-Control` required it.
    Request,
}

impl ForwardReason {
    const fn as_str(self) -> &'static str {
        match self {
            ForwardReason::UriMiss => "fwd=uri-miss",
            ForwardReason::Stale => "fwd=stale",
            ForwardReason::Revalidated => "fwd=stale; fwd-status=304",
            ForwardReason::Request => "fwd=request",
        }
    }
}

impl CacheStatus {
    /// The value of `Cache-Status`.
    pub fn value(self) -> HeaderValue {
        let mut text = Vec::with_capacity(64);
        self.append_to(&mut text);
        // Tokens and a decimal number are always a valid field value.
        HeaderValue::try_from(text)
            .unwrap_or_else(|_| HeaderValue::from_static("telecomx-gateway; hit"))
    }

    /// Appends the value to `text`.
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
                for part in
                    ["telecomx-gateway; ", why.as_str(), if stored { "; stored" } else { "" }]
                {
                    text.extend_from_slice(part.as_bytes());
                }
            }
            CacheStatus::Collapsed => {
                text.extend_from_slice(b"telecomx-gateway; fwd=uri-miss; collapsed")
            }
            CacheStatus::Bypass => text.extend_from_slice(Self::BYPASS.as_bytes()),
        }
    }

    /// The value on every forwarded response.
    pub const BYPASS: HeaderValue = HeaderValue::from_static("telecomx-gateway; fwd=bypass");

    /// Label of metrics.
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
    fn cache_status_has_the_values_of_the_contract() {
        for (status, text) in [
            (CacheStatus::Hit { ttl: 42 }, "telecomx-gateway; hit; ttl=42"),
            (
                CacheStatus::Miss { why: ForwardReason::UriMiss, stored: true },
                "telecomx-gateway; fwd=uri-miss; stored",
            ),
            (
                CacheStatus::Miss { why: ForwardReason::Request, stored: false },
                "telecomx-gateway; fwd=request",
            ),
            (CacheStatus::Collapsed, "telecomx-gateway; fwd=uri-miss; collapsed"),
            (
                CacheStatus::Revalidating { ttl: -12 },
                "telecomx-gateway; hit; ttl=-12; detail=revalidating",
            ),
            (
                CacheStatus::StaleIfError { ttl: -80 },
                "telecomx-gateway; hit; ttl=-80; detail=stale-if-error",
            ),
            (CacheStatus::Shared { ttl: 17 }, "telecomx-gateway; hit; ttl=17; detail=tier"),
            (CacheStatus::Bypass, "telecomx-gateway; fwd=bypass"),
        ] {
            assert_eq!(status.value(), text);
        }
    }
}
