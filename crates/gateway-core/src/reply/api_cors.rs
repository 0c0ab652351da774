//! CORS fields that the API sent before, for errors that the gateway makes without a response of
//! the API. They let a page read an error that it could have read from the API.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    HeaderName, HeaderValue, ORIGIN, VARY,
};
use parking_lot::RwLock;

use super::ApiFields;

/// Maximum number of origins. A client can send any number of them; beyond, all are forgotten.
const ORIGINS_MAX: usize = 1024;

/// Fields that let a page read a response.
const FIELDS: [HeaderName; 3] =
    [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS];

/// CORS fields of the API's latest responses.
#[derive(Debug, Default)]
pub struct ApiCors {
    granted: RwLock<Granted>,
    /// Whether a response named one origin or `Vary: Origin`. Never reset.
    is_origin_dependent: AtomicBool,
}

#[derive(Debug, Default)]
struct Granted {
    /// The API allows every origin (`*`) with these fields.
    any: ApiFields,
    by_origin: HashMap<Box<[u8]>, ApiFields>,
}

impl ApiCors {
    /// Learns from a response of the API. `origin`: that of its request.
    pub fn learn(&self, origin: Option<&HeaderValue>, headers: &HeaderMap) {
        let fields = ApiFields::pick(headers, |name| FIELDS.contains(name));
        if !self.is_origin_dependent.load(Ordering::Relaxed)
            && (is_for_one_origin(&fields) || varies_on_origin(headers))
        {
            self.is_origin_dependent.store(true, Ordering::Relaxed);
        }
        let is_known = self.granted.read().is_known(origin, &fields);
        if !is_known {
            self.granted.write().set(origin, fields);
        }
    }

    /// Whether a response of the API named one origin or `Vary: Origin` so far.
    pub fn is_origin_dependent(&self) -> bool {
        self.is_origin_dependent.load(Ordering::Relaxed)
    }

    /// Whether a response with these fields serves every origin: it allows all, or the API sent no
    /// CORS fields for any origin so far.
    pub fn serves_every_origin(&self, fields: &ApiFields) -> bool {
        match fields.get(&ACCESS_CONTROL_ALLOW_ORIGIN) {
            Some(value) => value == "*",
            None => !self.is_origin_dependent(),
        }
    }

    /// Returns the fields that let a page of this origin read a response.
    pub fn fields(&self, origin: &HeaderValue) -> ApiFields {
        let granted = self.granted.read();
        granted.by_origin.get(origin.as_bytes()).unwrap_or(&granted.any).clone()
    }
}

impl Granted {
    /// Whether `set` would change nothing.
    fn is_known(&self, origin: Option<&HeaderValue>, fields: &ApiFields) -> bool {
        let known = origin.and_then(|origin| self.by_origin.get(origin.as_bytes()));
        match origin {
            _ if allows_any_origin(fields) => self.any == *fields && known.is_none(),
            // Without an `Origin`, only `*` says something.
            None => self.any.is_empty(),
            Some(origin) => known.is_some_and(|known| *known == granted_to(origin, fields)),
        }
    }

    fn set(&mut self, origin: Option<&HeaderValue>, fields: ApiFields) {
        if allows_any_origin(&fields) {
            origin.map(|origin| self.by_origin.remove(origin.as_bytes()));
            self.any = fields;
            return;
        }
        let Some(origin) = origin else {
            self.any = ApiFields::NONE;
            return;
        };
        if self.by_origin.len() >= ORIGINS_MAX && !self.by_origin.contains_key(origin.as_bytes()) {
            self.by_origin.clear();
        }
        self.by_origin.insert(origin.as_bytes().into(), granted_to(origin, &fields));
    }
}

/// The fields, unless they allow another origin or none.
fn granted_to(origin: &HeaderValue, fields: &ApiFields) -> ApiFields {
    let is_granted = fields.get(&ACCESS_CONTROL_ALLOW_ORIGIN) == Some(origin);
    if is_granted { fields.clone() } else { ApiFields::NONE }
}

/// Whether pages of one origin only may read a response with these fields.
pub(super) fn is_for_one_origin(fields: &ApiFields) -> bool {
    fields.get(&ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|value| value != "*")
}

fn varies_on_origin(headers: &HeaderMap) -> bool {
    let mut members =
        headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    members.any(|name| name.trim_ascii().eq_ignore_ascii_case(ORIGIN.as_str().as_bytes()))
}

fn allows_any_origin(fields: &ApiFields) -> bool {
    fields.get(&ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|value| value == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn allowed(cors: &ApiCors, origin: &HeaderValue) -> Option<HeaderValue> {
        cors.fields(origin).get(&ACCESS_CONTROL_ALLOW_ORIGIN).cloned()
    }

    #[test]
    fn reflected_origin_is_granted_to_that_origin_only() {
        let cors = ApiCors::default();
        let [one, other] = ["https://a.example", "https://b.example"].map(HeaderValue::from_static);
        assert_eq!(allowed(&cors, &one), None);
        cors.learn(Some(&one), &headers(&[("access-control-allow-origin", "https://a.example")]));
        assert_eq!((allowed(&cors, &one), allowed(&cors, &other)), (Some(one.clone()), None));
        cors.learn(Some(&other), &headers(&[("access-control-allow-origin", "https://a.example")]));
        assert_eq!(allowed(&cors, &other), None, "granted to another origin");
        cors.learn(Some(&one), &headers(&[]));
        assert_eq!(allowed(&cors, &one), None, "not granted any more");
    }

    #[test]
    fn star_is_granted_to_every_origin_until_it_is_missing() {
        let cors = ApiCors::default();
        let origin = HeaderValue::from_static("https://a.example");
        cors.learn(None, &headers(&[("access-control-allow-origin", "*"), ("x", "y")]));
        assert_eq!(cors.fields(&origin).iter().count(), 1);
        cors.learn(None, &headers(&[]));
        assert_eq!(allowed(&cors, &origin), None);
    }

    #[test]
    fn response_without_cors_serves_all_until_one_depends_on_origin() {
        let origin = HeaderValue::from_static("https://a.example");
        for dependent in
            [[("vary", "Accept, origin")], [("access-control-allow-origin", "https://a.example")]]
        {
            let cors = ApiCors::default();
            let star = headers(&[("access-control-allow-origin", "*")]);
            for harmless in [headers(&[]), star.clone(), headers(&[("vary", "Accept")])] {
                cors.learn(Some(&origin), &harmless);
                assert!(cors.serves_every_origin(&ApiFields::NONE));
            }
            cors.learn(Some(&origin), &headers(&dependent));
            assert!(!cors.serves_every_origin(&ApiFields::NONE));
            assert!(cors.serves_every_origin(&ApiFields::pick(&star, |_| true)));
        }
    }

    #[test]
    fn number_of_origins_is_limited() {
        let cors = ApiCors::default();
        for number in 0..3 * ORIGINS_MAX {
            let origin = HeaderValue::from_str(&format!("https://{number}.example")).unwrap();
            let fields = headers(&[("access-control-allow-origin", origin.to_str().unwrap())]);
            cors.learn(Some(&origin), &fields);
            assert!(cors.granted.read().by_origin.len() <= ORIGINS_MAX);
            assert_eq!(allowed(&cors, &origin), Some(origin));
        }
    }
}
