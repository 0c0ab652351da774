//! Whether a response of the API may be stored, and for how long (RFC 9111). Each caller has a
//! private cache with configured lifetimes, which the API's fields can only shorten. No I/O and no
//! clock.

use std::time::{Duration, SystemTime};

use http::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, PRAGMA, SET_COOKIE, VARY};
use http::{HeaderName, StatusCode};

/// How long a response is fresh, and how much longer it may be served stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub fresh: Duration,
    /// While a fetch runs in the background.
    pub stale_while_revalidate: Duration,
    /// While the API fails.
    pub stale_if_error: Duration,
}

/// Request fields that are the same in every request of the gateway for one caller, or absent. A
/// response that varies on them has one variant.
const INVARIANT_REQUEST_FIELDS: [&str; 7] =
    ["authorization", "x-api-key", "cookie", "accept", "accept-encoding", "origin", "host"];

/// The greatest age that is counted (RFC 9111 section 1.2.2).
const AGE_MAX: Duration = Duration::from_secs(1 << 31);

/// Why a response is not stored; a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// Its status is never stored.
    Status,
    /// It sets a cookie.
    SetCookie,
    /// It varies on a field outside `INVARIANT_REQUEST_FIELDS`.
    Vary,
    /// `Cache-Control: no-store`.
    NoStore,
    /// `Cache-Control: no-cache`.
    NoCache,
    /// `max-age`, `s-maxage` or `Expires` leave no time of freshness.
    Expired,
    /// The configured lifetime of its status is zero.
    Disabled,
    /// A 200 that is not a JSON object.
    NotAnObject,
    /// Something that it depends on changed during the fetch.
    Changed,
    /// Every client that waits for it sent `no-store`.
    RequestNoStore,
}

impl NotStored {
    pub const ALL: [NotStored; 10] = [
        NotStored::Status,
        NotStored::SetCookie,
        NotStored::Vary,
        NotStored::NoStore,
        NotStored::NoCache,
        NotStored::Expired,
        NotStored::Disabled,
        NotStored::NotAnObject,
        NotStored::Changed,
        NotStored::RequestNoStore,
    ];

    /// Label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            NotStored::Status => "status",
            NotStored::SetCookie => "set_cookie",
            NotStored::Vary => "vary",
            NotStored::NoStore => "no_store",
            NotStored::NoCache => "no_cache",
            NotStored::Expired => "expired",
            NotStored::Disabled => "disabled",
            NotStored::NotAnObject => "not_an_object",
            NotStored::Changed => "changed",
            NotStored::RequestNoStore => "request_no_store",
        }
    }
}

/// Returns the lifetime of a response that may be stored. `jitter`: a random number from 0 to 1.
///
/// # Errors
/// The reason why it may not be stored.
pub fn lifetime(
    status: StatusCode,
    headers: &HeaderMap,
    config: &config::Cache,
    jitter: f64,
) -> Result<Lifetime, NotStored> {
    let (configured, stale) = match status {
        StatusCode::OK => (config.ttl, (config.stale_while_revalidate, config.stale_if_error)),
        StatusCode::NOT_FOUND => (config.not_found_ttl, (Duration::ZERO, Duration::ZERO)),
        StatusCode::FORBIDDEN => (config.forbidden_ttl, (Duration::ZERO, Duration::ZERO)),
        _ => return Err(NotStored::Status),
    };
    let control = CacheControl::from_response(headers);
    let varies = headers.get_all(VARY).iter().any(|value| !is_invariant(value.as_bytes()));
    let forbidden = [
        (headers.contains_key(SET_COOKIE), NotStored::SetCookie),
        (varies, NotStored::Vary),
        (control.no_store, NotStored::NoStore),
        (control.no_cache, NotStored::NoCache),
    ];
    if let Some((_, reason)) = forbidden.into_iter().find(|(forbids, _)| *forbids) {
        return Err(reason);
    }
    // Jitter only shortens the configured time.
    let mut fresh = configured.mul_f64(1.0 - config.ttl_jitter * jitter.clamp(0.0, 1.0));
    if fresh.is_zero() {
        return Err(NotStored::Disabled);
    }
    let seconds =
        [control.max_age, control.s_maxage].map(|seconds| seconds.map(Duration::from_secs));
    // The smallest applies: a cache for one caller behind one proxy may be read as private or as
    // shared.
    if let Some(allowed) = seconds.into_iter().chain([expires_in(headers)]).flatten().min() {
        fresh = fresh.min(allowed.saturating_sub(initial_age(headers)));
    }
    if fresh.is_zero() {
        return Err(NotStored::Expired);
    }
    let (stale_while_revalidate, stale_if_error) =
        if control.forbids_stale() { (Duration::ZERO, Duration::ZERO) } else { stale };
    Ok(Lifetime { fresh, stale_while_revalidate, stale_if_error })
}

/// Returns the `Age` of a response (RFC 9111 section 5.1): the first member of several, and zero if
/// that is not a number. The caller adds the time that the response took.
pub fn initial_age(headers: &HeaderMap) -> Duration {
    let seconds =
        headers.get(AGE).and_then(|age| age.to_str().ok()?.split(',').next()?.trim().parse().ok());
    seconds.map_or(Duration::ZERO, Duration::from_secs).min(AGE_MAX)
}

/// Whether a response has neither `Cache-Control` nor `Expires`. A 304 without them leaves the
/// stored lifetime as it is (section 3.2).
pub fn has_no_freshness_info(headers: &HeaderMap) -> bool {
    !headers.contains_key(CACHE_CONTROL) && !headers.contains_key(EXPIRES)
}

/// Returns the time from `Date` to `Expires`, if there is an `Expires`. Both are of the API's
/// clock. If either is not a valid date, the response has expired (section 5.3).
fn expires_in(headers: &HeaderMap) -> Option<Duration> {
    let date = |name| -> Option<SystemTime> {
        let mut values = headers.get_all(name).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        httpdate::parse_http_date(value.to_str().ok()?).ok()
    };
    headers.get(EXPIRES)?;
    Some(
        date(EXPIRES)
            .zip(date(DATE))
            .and_then(|(end, start)| end.duration_since(start).ok())
            .unwrap_or_default(),
    )
}

fn is_invariant(value: &[u8]) -> bool {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()).all(
        |name| {
            HeaderName::from_bytes(name)
                .is_ok_and(|name| INVARIANT_REQUEST_FIELDS.contains(&name.as_str()))
        },
    )
}

/// Directives of `Cache-Control` that have an effect here (RFC 9111 section 5.2). Of a repeated
/// directive, the stricter value counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    pub no_store: bool,
    pub no_cache: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub only_if_cached: bool,
    /// Seconds. An argument that is not a number counts as 0 (section 4.2.1: treat as stale).
    pub max_age: Option<u64>,
    /// Seconds, in responses; read like `max_age`.
    pub s_maxage: Option<u64>,
    /// Seconds, in requests.
    pub min_fresh: Option<u64>,
}

impl CacheControl {
    /// Reads the `Cache-Control` fields of a response.
    pub fn from_response(headers: &HeaderMap) -> Self {
        let mut control = CacheControl::default();
        headers.get_all(CACHE_CONTROL).iter().for_each(|value| control.add(value.as_bytes()));
        control
    }

    /// Adds the directives of one field. Each directive of the IANA registry has an arm.
    fn add(&mut self, value: &[u8]) {
        let least = |before: Option<u64>, argument: &str| {
            let seconds = argument.parse().unwrap_or(0);
            Some(before.map_or(seconds, |before| before.min(seconds)))
        };
        for (name, argument) in directives(value) {
            match name.as_str() {
                "no-store" => self.no_store = true,
                "no-cache" => self.no_cache = true,
                "must-revalidate" => self.must_revalidate = true,
                "proxy-revalidate" => self.proxy_revalidate = true,
                "only-if-cached" => self.only_if_cached = true,
                "max-age" => self.max_age = least(self.max_age, &argument),
                "s-maxage" => self.s_maxage = least(self.s_maxage, &argument),
                "min-fresh" => self.min_fresh = argument.parse().ok(),
                // No effect. `public` and `private`: each entry belongs to one caller in any case.
                // `no-transform`: redaction is not optional. `must-understand`: a `no-store` next
                // to it still forbids. `immutable`, `max-stale` and the two `stale-*` (RFC 8246,
                // RFC 5861) could only lengthen a lifetime, which the operator does.
                "public"
                | "private"
                | "no-transform"
                | "must-understand"
                | "immutable"
                | "max-stale"
                | "stale-while-revalidate"
                | "stale-if-error" => {}
                // An unregistered extension is ignored (section 5.2.3).
                _ => {}
            }
        }
    }

    /// Whether a response with these directives may never be served stale (sections 5.2.2.2,
    /// 5.2.2.8 and 5.2.2.10).
    pub fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.proxy_revalidate || self.s_maxage.is_some()
    }

    /// Reads a request's `Cache-Control` or, without one, its `Pragma: no-cache` (section 5.4).
    pub fn from_request(headers: &HeaderMap) -> Self {
        let values = |name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
        Self::from_request_values(values(CACHE_CONTROL), values(PRAGMA))
    }

    /// As [`CacheControl::from_request`], from the values of `Cache-Control` and `Pragma`.
    pub fn from_request_values<'a>(
        cache_control: impl IntoIterator<Item = &'a [u8]>,
        pragma: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        let (mut control, mut is_stated) = (CacheControl::default(), false);
        for value in cache_control {
            is_stated = true;
            control.add(value);
        }
        let is_no_cache = |value: &[u8]| {
            value
                .split(|&b| b == b',')
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"no-cache"))
        };
        control.no_cache |= !is_stated && pragma.into_iter().any(is_no_cache);
        control
    }

    /// Whether a request accepts a stored response of that age, with that much freshness left (both
    /// in seconds). `max-stale` has no effect: the operator configures how stale a response may be.
    pub fn accepts(&self, age: u64, left: i64) -> bool {
        let fresh_enough = self
            .min_fresh
            .is_none_or(|least| i64::try_from(least).is_ok_and(|least| left >= least));
        !self.no_cache && self.max_age.is_none_or(|most| age <= most) && fresh_enough
    }
}

/// Splits a field into directives: names in lower case, and arguments without quotes. A comma
/// within quotes is part of its argument.
fn directives(value: &[u8]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut part, mut quoted, mut escaped) = (String::new(), false, false);
    for &byte in value.iter().chain(b",") {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => {
                escaped = true;
                continue;
            }
            b'"' => {
                quoted = !quoted;
                continue;
            }
            b',' if !quoted => {
                found.push(directive(&part));
                part.clear();
                continue;
            }
            _ => {}
        }
        part.push(char::from(byte));
    }
    // An unclosed quote may hide any directive, `no-store` included.
    if quoted {
        found.extend([directive(&part), ("no-store".into(), String::new())]);
    }
    found
}

fn directive(text: &str) -> (String, String) {
    let (name, argument) = text.split_once('=').unwrap_or((text, ""));
    (name.trim().to_ascii_lowercase(), argument.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn config() -> config::Cache {
        config::Cache {
            ttl: Duration::from_secs(60),
            not_found_ttl: Duration::from_secs(10),
            forbidden_ttl: Duration::from_secs(5),
            stale_while_revalidate: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(300),
            max_bytes: 1 << 20,
            ttl_jitter: 0.1,
            keep_fields: Vec::new(),
        }
    }

    fn of(status: u16, fields: &[(&'static str, &'static str)]) -> Result<Lifetime, NotStored> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        lifetime(StatusCode::from_u16(status).unwrap(), &headers, &config(), 0.0)
    }

    #[test]
    fn lifetime_depends_on_status() {
        assert_eq!(of(200, &[]).unwrap().fresh.as_secs(), 60);
        assert_eq!(of(404, &[]).unwrap().fresh.as_secs(), 10);
        assert_eq!(of(403, &[]).unwrap().fresh.as_secs(), 5);
        for status in [201, 204, 206, 301, 304, 400, 401, 410, 429, 500, 503] {
            assert_eq!(of(status, &[]), Err(NotStored::Status), "{status}");
        }
    }

    #[test]
    fn api_fields_forbid_and_shorten_but_never_lengthen() {
        for (field, reason) in [
            (("cache-control", "no-store"), NotStored::NoStore),
            (("cache-control", "private, No-Store"), NotStored::NoStore),
            (("cache-control", "must-understand, no-store"), NotStored::NoStore),
            (("cache-control", "max-age=0"), NotStored::Expired),
            (("cache-control", "max-age=\"0\""), NotStored::Expired),
            (("cache-control", "s-maxage=0"), NotStored::Expired),
            (("cache-control", "max-age=60, s-maxage=soon"), NotStored::Expired),
            (("cache-control", "no-cache"), NotStored::NoCache),
            (("cache-control", "no-cache=\"x\""), NotStored::NoCache),
            (("cache-control", "max-age=soon"), NotStored::Expired),
            (("cache-control", "x=\"a, max-age=9"), NotStored::NoStore),
            (("set-cookie", "a=b"), NotStored::SetCookie),
            (("vary", "*"), NotStored::Vary),
            (("vary", "Accept-Language"), NotStored::Vary),
            (("vary", "Authorization, User-Agent"), NotStored::Vary),
            (("expires", "0"), NotStored::Expired),
            // Without a `Date`.
            (("expires", "Thu, 18 Aug 2050 02:01:18 GMT"), NotStored::Expired),
        ] {
            assert_eq!(of(200, &[field]), Err(reason), "{field:?}");
        }
        for (fields, seconds) in [
            (&[("cache-control", "max-age=5")][..], 5),
            (&[("cache-control", "max-age=500")], 60),
            (&[("cache-control", "s-maxage=5")], 5),
            (&[("cache-control", "s-maxage=500")], 60),
            (&[("cache-control", "max-age=3600, s-maxage=1")], 1),
            (&[("cache-control", "s-maxage=3600, max-age=7")], 7),
            (&[("cache-control", "S-MaxAge=\"7\"")], 7),
            (&[("cache-control", "s-maxage=50"), ("cache-control", "s-maxage=20")], 20),
            (&[("cache-control", "s-maxage=50"), ("age", "30")], 20),
            (&[("cache-control", "max-age=50"), ("cache-control", "max-age=20")], 20),
            (&[("cache-control", "max-age=50"), ("age", "30")], 20),
            (&[("cache-control", "max-age=50"), ("age", "30, 0")], 20),
            (&[("cache-control", "max-age=50"), ("age", "soon")], 50),
            (&[("cache-control", "ext=\"no-store, x\", max-age=7")], 7),
            (&[("cache-control", "ext=\"x, no-store\", max-age=7")], 7),
            // Escaped within quotes, and not outside of them (RFC 9110, section 5.6.4).
            (&[("cache-control", "ext=\"x\\\", no-store, y\", max-age=7")], 7),
            (&[("cache-control", "ext=\"x\\\\\", max-age=7")], 7),
            (&[("cache-control", "x=\\\", max-age=9\"")], 60),
            (&[("vary", "Authorization, Accept-Encoding, Origin")], 60),
        ] {
            assert_eq!(of(200, fields).unwrap().fresh.as_secs(), seconds, "{fields:?}");
        }
        let date = ("date", "Thu, 18 Aug 2050 02:01:18 GMT");
        for (expires, seconds) in [
            ("Thu, 18 Aug 2050 02:01:25 GMT", Some(7)),
            ("Thursday, 18-Aug-50 02:01:25 GMT", Some(7)),
            ("Fri, 19 Aug 2050 02:01:18 GMT", Some(60)),
            ("Thu, 18 Aug 2050 02:01:18 GMT", None),
            ("Thu, 18 Aug 2050 02:01:17 GMT", None),
            ("Thu, 18 Aug 2050 2:01:25 GMT", None),
            ("tomorrow", None),
        ] {
            let lifetime = of(200, &[date, ("expires", expires)]);
            assert_eq!(
                lifetime.map(|lifetime| lifetime.fresh.as_secs()).ok(),
                seconds,
                "{expires}"
            );
        }
        let old = [date, ("expires", "Thu, 18 Aug 2050 02:01:28 GMT"), ("age", "3")];
        assert_eq!(of(200, &old).unwrap().fresh.as_secs(), 7);
        let twice = [
            date,
            ("expires", "Thu, 18 Aug 2050 02:01:28 GMT"),
            ("expires", "Thu, 18 Aug 2050 02:01:29 GMT"),
        ];
        assert_eq!(of(200, &twice), Err(NotStored::Expired));
        for (control, seconds) in [("max-age=9", 7), ("max-age=5", 5), ("s-maxage=3, max-age=9", 3)]
        {
            let both =
                [date, ("expires", "Thu, 18 Aug 2050 02:01:25 GMT"), ("cache-control", control)];
            assert_eq!(of(200, &both).unwrap().fresh.as_secs(), seconds, "{control}");
        }
        assert_eq!(
            of(200, &[date, ("expires", "0"), ("cache-control", "max-age=9")]),
            Err(NotStored::Expired)
        );
    }

    #[test]
    fn directives_forbid_stale_or_have_no_effect() {
        for strict in [
            "must-revalidate",
            "proxy-revalidate",
            "Proxy-Revalidate, max-age=9",
            "s-maxage=9",
            "max-age=9, s-maxage=99",
        ] {
            let lifetime = of(200, &[("cache-control", strict)]).unwrap();
            assert!(
                lifetime.stale_while_revalidate.is_zero() && lifetime.stale_if_error.is_zero(),
                "{strict}"
            );
        }
        for nothing in [
            "public",
            "private",
            "private=\"x\"",
            "no-transform",
            "must-understand",
            "immutable",
            "stale-while-revalidate=0",
            "stale-if-error=0",
            "max-stale=0",
            "only-if-cached",
            "x-extension=1",
        ] {
            assert_eq!(of(200, &[("cache-control", nothing)]), of(200, &[]), "{nothing}");
        }
    }

    #[test]
    fn configured_ttl_of_zero_disables_storing() {
        let config = config::Cache { ttl: Duration::ZERO, ..config() };
        assert_eq!(
            lifetime(StatusCode::OK, &HeaderMap::new(), &config, 0.0),
            Err(NotStored::Disabled)
        );
    }

    #[test]
    fn freshness_info_is_cache_control_or_expires() {
        let has_none = |names: &[&'static str]| {
            let headers = names
                .iter()
                .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x")));
            has_no_freshness_info(&headers.collect())
        };
        assert!(has_none(&[]) && has_none(&["age", "date", "etag"]));
        assert!(
            !has_none(&["cache-control"])
                && !has_none(&["expires"])
                && !has_none(&["cache-control", "expires"])
        );
    }

    #[test]
    fn request_directives_limit_age_and_freshness() {
        let accepts = |fields: &[(&'static str, &'static str)], age, left| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            CacheControl::from_request(&headers).accepts(age, left)
        };
        let mut headers = HeaderMap::new();
        assert!(!CacheControl::from_request(&headers).only_if_cached);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1, Only-If-Cached"));
        assert!(CacheControl::from_request(&headers).only_if_cached);
        assert!(accepts(&[], 50, 10) && accepts(&[("cache-control", "max-stale=99")], 50, 10));
        assert!(
            !accepts(&[("cache-control", "no-cache")], 0, 60)
                && !accepts(&[("pragma", "no-cache")], 0, 60)
        );
        assert!(accepts(&[("pragma", "no-cache"), ("cache-control", "max-age=9")], 5, 10));
        assert!(!accepts(&[("cache-control", "no-cache=\"x")], 0, 60));
        assert!(
            accepts(&[("cache-control", "max-age=5")], 5, 10)
                && !accepts(&[("cache-control", "max-age=4")], 5, 10)
        );
        assert!(
            accepts(&[("cache-control", "min-fresh=9")], 5, 10)
                && !accepts(&[("cache-control", "min-fresh=11")], 5, 10)
        );
    }

    #[test]
    fn jitter_shortens_the_lifetime() {
        let lifetime = lifetime(StatusCode::OK, &HeaderMap::new(), &config(), 1.0).unwrap();
        assert_eq!(lifetime.fresh.as_secs(), 54);
    }
}
