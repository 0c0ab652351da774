//! Cache fields of forwarded responses that depend on the caller's access level: no shared cache
//! may reuse one for another caller (RFC 9111 section 3.5).

use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, VARY};

/// The request fields in which a credential can travel.
const CREDENTIAL_FIELDS: [&str; 3] = ["Authorization", "X-API-Key", "Cookie"];

/// Directives of the API that permit shared caches, or that the gateway's `private` replaces.
const REPLACED: [&[u8]; 3] = [b"public", b"s-maxage", b"private"];

/// Value in place of an unreadable list.
const UNREADABLE: HeaderValue = HeaderValue::from_static("private, no-store");

/// Returns the value of `Cache-Control`: the API's directives, for private caches only.
pub fn private_cache_control(headers: &HeaderMap) -> HeaderValue {
    let mut text = b"private".to_vec();
    for value in headers.get_all(CACHE_CONTROL) {
        let Some(directives) = list_members(value.as_bytes()) else { return UNREADABLE };
        for directive in directives {
            let name =
                directive.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
            if !REPLACED.iter().any(|replaced| name.eq_ignore_ascii_case(replaced)) {
                text.extend_from_slice(b", ");
                text.extend_from_slice(directive);
            }
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(UNREADABLE)
}

/// Returns the value of `Vary`: the API's, and every field that can hold the credential.
pub fn vary_on_credentials(headers: &HeaderMap) -> HeaderValue {
    let members =
        headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut names: Vec<&[u8]> =
        members.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()).collect();
    if names.contains(&&b"*"[..]) {
        return HeaderValue::from_static("*");
    }
    for own in CREDENTIAL_FIELDS {
        if !names.iter().any(|name| name.eq_ignore_ascii_case(own.as_bytes())) {
            names.push(own.as_bytes());
        }
    }
    let fallback = HeaderValue::from_static("Authorization, X-API-Key, Cookie");
    HeaderValue::from_bytes(&names.join(&b", "[..])).unwrap_or(fallback)
}

/// Whether a field overrides `Cache-Control` in shared caches: RFC 9213, and its equivalents of
/// CDNs and nginx.
pub fn is_for_shared_caches(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.ends_with("-cache-control")
        || matches!(name, "surrogate-control" | "edge-control" | "x-accel-expires")
}

/// Splits a list in which commas may be quoted. `None`: a quote is not closed.
fn list_members(value: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut members, mut from, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                members.push(&value[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    members.push(&value[from..]);
    let members = members.into_iter().map(<[u8]>::trim_ascii).filter(|member| !member.is_empty());
    (!quoted).then(|| members.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().fold(HeaderMap::new(), |mut map, value| {
            map.append(name.clone(), HeaderValue::from_static(value));
            map
        })
    }

    #[test]
    fn private_cache_control_keeps_other_directives() {
        for (values, expected) in [
            (&[][..], "private"),
            (&["public, max-age=3600"], "private, max-age=3600"),
            (&["Public", "S-MaxAge=9, no-store"], "private, no-store"),
            (&["private=\"a, public\", no-cache=\"x, y\""], "private, no-cache=\"x, y\""),
            (&["private, must-revalidate"], "private, must-revalidate"),
            (&["max-age=\"1, public"], "private, no-store"),
            (&["publicly=1, , immutable"], "private, publicly=1, immutable"),
        ] {
            assert_eq!(
                private_cache_control(&headers(CACHE_CONTROL, values)),
                expected,
                "{values:?}"
            );
        }
    }

    #[test]
    fn vary_names_every_credential_once() {
        for (values, expected) in [
            (&[][..], "Authorization, X-API-Key, Cookie"),
            (&["Accept, cookie"], "Accept, cookie, Authorization, X-API-Key"),
            (&["Accept", "Origin"], "Accept, Origin, Authorization, X-API-Key, Cookie"),
            (&["Accept, *"], "*"),
        ] {
            assert_eq!(vary_on_credentials(&headers(VARY, values)), expected, "{values:?}");
        }
    }

    #[test]
    fn fields_of_shared_caches_are_recognized() {
        for yes in [
            "cdn-cache-control",
            "cloudflare-cdn-cache-control",
            "surrogate-control",
            "x-accel-expires",
        ] {
            assert!(is_for_shared_caches(&HeaderName::from_static(yes)), "{yes}");
        }
        assert!(!is_for_shared_caches(&CACHE_CONTROL));
    }
}
