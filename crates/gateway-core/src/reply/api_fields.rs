//! Response fields of the API that pass on the intercepted route. Only listed fields do, since any
//! other may hold a secret.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

/// Fields that describe one exchange. They pass with its response and are not stored.
const OF_ONE_EXCHANGE: [&str; 3] = ["ratelimit", "ratelimit-policy", "server-timing"];

/// Prefix of CORS fields. The API's pass if the gateway has no `[cors]`.
const CORS_PREFIX: &str = "access-control-";

/// Fields of one response in the API's order. Clones share memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiFields(Option<Arc<[(HeaderName, HeaderValue)]>>);

/// List of the API's fields that pass.
#[derive(Clone, Debug)]
pub struct FieldFilter {
    names: Vec<HeaderName>,
    cors: bool,
}

impl FieldFilter {
    /// `names`: `cache.keep_fields`. `cors`: the API's CORS fields pass, because the gateway has no
    /// `[cors]`.
    pub fn new(names: &[String], cors: bool) -> Self {
        let names =
            names.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
        FieldFilter { names, cors }
    }

    /// Digest of the list. It is part of cache keys, so that entries with other fields are not
    /// found.
    pub fn fingerprint(&self) -> u64 {
        let mut names: Vec<&str> = self.names.iter().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[u8::from(self.cors)]);
        for name in names {
            hasher.update(name.as_bytes());
            hasher.update(b"\n");
        }
        let mut digest = [0; 8];
        hasher.finalize_xof().fill(&mut digest);
        u64::from_le_bytes(digest)
    }

    /// Whether a field is stored with a response.
    fn is_stored(&self, name: &HeaderName) -> bool {
        let passes =
            self.names.contains(name) || (self.cors && name.as_str().starts_with(CORS_PREFIX));
        passes && !OF_ONE_EXCHANGE.contains(&name.as_str())
    }

    /// Returns the fields that are stored with a response. `connection_options`: fields of one hop,
    /// which `Connection` names.
    pub fn stored(&self, headers: &HeaderMap, connection_options: &[HeaderName]) -> ApiFields {
        ApiFields::pick(headers, |name| self.is_stored(name) && !connection_options.contains(name))
    }

    /// Returns the fields that pass with a response and are not stored.
    pub fn of_exchange(&self, headers: &HeaderMap, connection_options: &[HeaderName]) -> ApiFields {
        ApiFields::pick(headers, |name| {
            let passes = *name == RETRY_AFTER
                || *name == WWW_AUTHENTICATE
                || (self.names.contains(name) && OF_ONE_EXCHANGE.contains(&name.as_str()));
            passes && !connection_options.contains(name)
        })
    }

    /// Returns those of another gateway's stored fields that this list permits.
    pub fn filter(&self, fields: ApiFields) -> ApiFields {
        if fields.iter().all(|(name, _)| self.is_stored(name)) {
            return fields;
        }
        ApiFields::from_iter(fields.iter().filter(|(name, _)| self.is_stored(name)).cloned())
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for ApiFields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        let fields: Vec<_> = fields.into_iter().collect();
        ApiFields((!fields.is_empty()).then(|| fields.into()))
    }
}

impl ApiFields {
    pub const NONE: ApiFields = ApiFields(None);

    pub(super) fn pick(headers: &HeaderMap, passes: impl Fn(&HeaderName) -> bool) -> Self {
        // Copied: a value shares the memory of the whole head that was read.
        let copied = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
        let fields = headers.iter().filter(|(name, _)| passes(name));
        fields.filter_map(|(name, value)| Some((name.clone(), copied(value)?))).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.0.iter().flat_map(|fields| fields.iter())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the first value of a field.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    pub fn contains(&self, name: &HeaderName) -> bool {
        self.iter().any(|(own, _)| own == name)
    }

    /// Returns these fields, with those of the same names replaced by `newer` (RFC 9111 section
    /// 3.2).
    pub fn updated(&self, newer: &ApiFields) -> ApiFields {
        if newer.0.is_none() {
            return self.clone();
        }
        self.iter().filter(|(name, _)| !newer.contains(name)).chain(newer.iter()).cloned().collect()
    }

    /// Approximate memory in bytes.
    pub fn size(&self) -> usize {
        self.iter()
            .map(|(name, value)| {
                name.as_str().len() + value.len() + size_of::<(HeaderName, HeaderValue)>()
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn shown(fields: &ApiFields) -> Vec<String> {
        fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    fn passed(names: &[&str], cors: bool) -> FieldFilter {
        FieldFilter::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), cors)
    }

    #[test]
    fn listed_fields_pass_and_exchange_fields_are_not_stored() {
        let headers = headers(&[
            ("link", "</a>"),
            ("x-internal", "secret"),
            ("ratelimit", "1"),
            ("link", "</b>"),
            ("retry-after", "3"),
            ("deprecation", "@1"),
            ("access-control-allow-origin", "*"),
        ]);
        let fields = passed(&["Link", "RateLimit", "Deprecation"], false);
        let connection_options = [HeaderName::from_static("deprecation")];
        assert_eq!(
            shown(&fields.stored(&headers, &connection_options)),
            ["link: </a>", "link: </b>"]
        );
        assert_eq!(
            shown(&fields.of_exchange(&headers, &connection_options)),
            ["ratelimit: 1", "retry-after: 3"]
        );
        let with_cors = passed(&[], true).stored(&headers, &[]);
        assert_eq!(shown(&with_cors), ["access-control-allow-origin: *"]);
    }

    #[test]
    fn newer_fields_replace_fields_of_the_same_name() {
        let fields = passed(&["link", "sunset", "deprecation"], false);
        let old =
            fields.stored(&headers(&[("link", "</a>"), ("link", "</b>"), ("sunset", "x")]), &[]);
        let new = fields.stored(&headers(&[("link", "</c>"), ("deprecation", "@1")]), &[]);
        assert_eq!(shown(&old.updated(&new)), ["sunset: x", "link: </c>", "deprecation: @1"]);
        assert_eq!(old.updated(&ApiFields::NONE), old);
    }

    #[test]
    fn fingerprint_ignores_order_case_and_repetition() {
        let of = |names, cors| passed(names, cors).fingerprint();
        assert_eq!(of(&["link", "sunset"], true), of(&["Sunset", "Link", "link"], true));
        assert_ne!(of(&["link"], true), of(&["link"], false));
        assert_ne!(of(&["link"], true), of(&["sunset"], true));
    }

    #[test]
    fn fields_of_another_gateway_are_filtered() {
        let stored = passed(&["link", "sunset"], false)
            .stored(&headers(&[("link", "</a>"), ("sunset", "x")]), &[]);
        assert_eq!(shown(&passed(&["sunset"], false).filter(stored)), ["sunset: x"]);
    }
}
