//! Web pages of others. A browser on an operator's machine reaches the admin listener too, and any page that it shows may
//! send requests there. Such a page cannot read the answers, and must not be obeyed either; nor may it pose as ours by a
//! name that it owns and lets point here (DNS rebinding).

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, ORIGIN};
use http::uri::Authority;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether `host` is a name that nobody else can let point here: an address, or `localhost` (RFC 6761 section 6.3). A
/// request without one was not sent by a browser.
pub fn is_own_host(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = name.to_ascii_lowercase();
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

/// Whether a page of another origin sent it. Browsers say so in `Sec-Fetch-Site` (W3C Fetch Metadata), where the
/// connection is one that they trust; in `Origin` always, for a request that changes something. Other clients send neither.
pub fn is_from_another_page(headers: &HeaderMap, host: Option<&str>) -> bool {
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().unwrap_or_default();
    let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !own.zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_our_own_and_other_names_are_not() {
        for own in
            ["127.0.0.1:9090", "127.0.0.1", "[::1]:9090", "localhost:9090", "LOCALHOST", "a.localhost:1", "10.1.2.3"]
        {
            assert!(is_own_host(Some(own)), "{own}");
        }
        assert!(is_own_host(None));
        for other in ["rebound.example:9090", "localhost.example", "127.0.0.1.example:9090", "notlocalhost", "", "a b"]
        {
            assert!(!is_own_host(Some(other)), "{other}");
        }
    }

    #[test]
    fn what_a_browser_says_of_another_page_is_believed() {
        let asked = |fields: &[(&'static str, &'static str)]| {
            let fields = fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            is_from_another_page(&fields.collect(), Some("127.0.0.1:9090"))
        };
        assert!(!asked(&[]), "curl");
        for own in ["same-origin", "none"] {
            assert!(!asked(&[("sec-fetch-site", own)]), "{own}");
        }
        for other in ["cross-site", "same-site", "", "new"] {
            assert!(asked(&[("sec-fetch-site", other), ("origin", "http://127.0.0.1:9090")]), "{other}");
        }
        assert!(!asked(&[("origin", "http://127.0.0.1:9090")]));
        for other in ["null", "http://127.0.0.1:9091", "http://127.0.0.1", "https://page.example", "127.0.0.1:9090"] {
            assert!(asked(&[("origin", other)]), "{other}");
        }
    }
}
