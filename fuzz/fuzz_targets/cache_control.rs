//! Any fields of a response or a request, one line each, `name: value`. The reference reading
//! blanks out quoted strings and looks at the words between the remaining commas.
//!
//! What must hold: no panic; a directive that forbids storing is never overlooked; no response is
//! stored that one forbids, nor for longer than its `max-age` or the configured time.

#![no_main]

use std::time::Duration;

use gateway_core::freshness::{CacheControl, has_no_freshness_info, initial_age, lifetime};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;

const CONFIG: config::Cache = config::Cache {
    ttl: Duration::from_secs(60),
    not_found_ttl: Duration::from_secs(10),
    forbidden_ttl: Duration::from_secs(5),
    stale_while_revalidate: Duration::from_secs(30),
    stale_if_error: Duration::from_secs(300),
    max_bytes: 1 << 20,
    ttl_jitter: 0.1,
    keep_fields: Vec::new(),
};

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        let Some(colon) = line.windows(2).position(|pair| pair == b": ") else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(&line[colon + 2..]);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let values = || headers.get_all("cache-control").iter();
    let words: Vec<String> = values().flat_map(|value| words(value.as_bytes())).collect();
    let says = |name: &str| {
        words.iter().any(|word| word.split('=').next().is_some_and(|word| word.trim() == name))
    };

    let control = CacheControl::from_response(&headers);
    assert!(control.no_store || !says("no-store"));
    assert!(control.no_cache || !says("no-cache"));
    assert!(control.must_revalidate || !says("must-revalidate"));
    assert!(control.proxy_revalidate || !says("proxy-revalidate"));
    assert!(control.only_if_cached || !says("only-if-cached"));
    let max_age =
        words.iter().filter_map(|word| word.strip_prefix("max-age=")?.parse::<u64>().ok()).min();
    assert!(max_age.is_none_or(|most| control.max_age.is_some_and(|seconds| seconds <= most)));
    let s_maxage =
        words.iter().filter_map(|word| word.strip_prefix("s-maxage=")?.parse::<u64>().ok()).min();
    assert!(s_maxage.is_none_or(|most| control.s_maxage.is_some_and(|seconds| seconds <= most)));

    // A field without the letters of a directive, quoted or not, has no directive.
    let letters: String =
        values().flat_map(|value| value.as_bytes()).map(|byte| char::from(*byte)).collect();
    let letters = letters.to_ascii_lowercase().replace(['"', '\\'], "");
    assert!(!control.no_cache || letters.contains("no-cache"));
    let is_open = values().any(|value| value.as_bytes().contains(&b'"'));
    assert!(!control.no_store || is_open || letters.contains("no-store"));

    let of_request = CacheControl::from_request(&headers);
    assert!(of_request.no_cache || !control.no_cache);
    assert!(!of_request.no_cache || !of_request.accepts(0, i64::MAX));
    assert!(
        of_request
            .max_age
            .is_none_or(|most| most == u64::MAX || !of_request.accepts(most + 1, i64::MAX))
    );
    assert!(initial_age(&headers) <= Duration::from_secs(1 << 31));
    assert!(!has_no_freshness_info(&headers) || words.is_empty());

    for (status, ttl) in [(200, 60), (404, 10), (403, 5), (500, 0)] {
        let status = StatusCode::from_u16(status).expect("a status");
        let Ok(kept) = lifetime(status, &headers, &CONFIG, 0.0) else { continue };
        assert!(!says("no-store") && !says("no-cache") && !headers.contains_key("set-cookie"));
        let most = max_age.into_iter().chain(s_maxage).min().unwrap_or(u64::MAX).min(ttl);
        assert!(!kept.fresh.is_zero() && kept.fresh <= Duration::from_secs(most), "{kept:?}");
        let stale = kept.stale_while_revalidate.max(kept.stale_if_error);
        let strict = says("must-revalidate") || says("proxy-revalidate") || s_maxage.is_some();
        assert!(stale.is_zero() || (status == StatusCode::OK && !strict));
        assert!(stale <= CONFIG.stale_if_error);
    }
});

/// Returns the parts between commas in lower case, each quoted string as `"`.
fn words(value: &[u8]) -> Vec<String> {
    let mut outside = String::new();
    let mut rest = value.iter();
    while let Some(&byte) = rest.next() {
        outside.push(char::from(byte.to_ascii_lowercase()));
        if byte == b'"' {
            while let Some(&quoted) = rest.next() {
                match quoted {
                    b'"' => break,
                    b'\\' => drop(rest.next()),
                    _ => {}
                }
            }
        }
    }
    outside.split(',').map(|word| word.trim().to_owned()).collect()
}
