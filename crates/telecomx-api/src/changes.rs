//! Changes that a request makes. When in doubt, a change is assumed: an unnecessary one costs a
//! fetch, a missed one a wrong response.
//!
//! Source: the table "What changes an answer" of the API's description. PUT, PATCH and unknown
//! methods count like POST; methods that IANA registers as safe change nothing, except that a GET
//! can be a logout.

use http::{HeaderMap, HeaderName, Method};

use super::credential::Token;
use super::ids::{CustomerId, EmployeeId};
use super::path::NormalPath;

/// Something that a request changes if the API accepts it.
#[derive(Clone, Debug)]
pub enum Change {
    /// A customer, for every caller.
    Customer(CustomerId),
    /// An employee's identity and everything stored for it.
    Employee(EmployeeId),
    /// A token.
    Token(Token),
    /// Everything stored for the caller's token.
    CallersToken,
    /// All tokens of the caller's employee.
    CallersEmployee,
}

impl Change {
    /// Whether the change concerns the caller, whom only the credential identifies.
    pub const fn is_callers_own(&self) -> bool {
        matches!(self, Change::CallersToken | Change::CallersEmployee)
    }
}

/// Fields by which some frameworks override the method.
const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// The methods that are safe by the IANA registry of HTTP methods (RFC 9110 section 9.2.1).
const SAFE_METHODS: [&str; 9] =
    ["GET", "HEAD", "OPTIONS", "TRACE", "PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH"];

/// Returns the changes of a request if the API accepts it. Most requests change nothing.
pub fn changes(method: &Method, headers: &HeaderMap, path: &NormalPath<'_>) -> Vec<Change> {
    // Evaluated only on the paths on which they decide.
    let is_overridden = || headers.keys().any(|name| METHOD_OVERRIDES.contains(name));
    let is_write = || !SAFE_METHODS.contains(&method.as_str()) || is_overridden();
    let is_request = || *method != Method::OPTIONS || is_overridden();
    let folded: Vec<&str> = path.folded().iter().map(AsRef::as_ref).collect();
    let customer = |id: &str| CustomerId::parse(id.as_bytes()).map(Change::Customer);
    let employee = |id: &str| EmployeeId::parse(id).map(Change::Employee);
    match folded.as_slice() {
        ["auth", "logout", ..] if is_request() => {
            vec![Change::CallersEmployee, Change::CallersToken]
        }
        ["auth", "organizationreseller", ..] if is_request() => vec![Change::CallersToken],
        ["customer", id, ..] if is_write() => customer(id).into_iter().collect(),
        ["integration", .., "customer", id, "sync"] | ["integration", .., "customer", id]
            if is_write() =>
        {
            customer(id).into_iter().collect()
        }
        ["employee", id, "token", _, ..] if is_write() => {
            let token = path
                .exact()
                .get(3)
                .and_then(|token| Token::parse(token.as_bytes()))
                .map(Change::Token);
            employee(id).into_iter().chain(token).collect()
        }
        ["employee", id, ..] if is_write() => employee(id).into_iter().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protected;

    fn seen(method: Method, path: &str) -> Vec<String> {
        let path = NormalPath::parse(path, Protected::default()).unwrap();
        changes(&method, &HeaderMap::new(), &path)
            .into_iter()
            .map(|change| match change {
                Change::Token(token) => format!("token {}", token.expose()),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn every_row_of_the_table() {
        const ID: &str = "73469a52f4fd7f77ec7b28cc";
        let customer = format!("Customer({ID})");
        let employee = format!("Employee({ID})");
        for (method, path, expected) in [
            (Method::POST, format!("/customer/{ID}"), vec![customer.as_str()]),
            (Method::DELETE, format!("/customer/{}", ID.to_uppercase()), vec![&customer]),
            (Method::POST, format!("/customer/{ID}/mobile/7"), vec![&customer]),
            (Method::PATCH, format!("/customer/{ID}"), vec![&customer]),
            (Method::POST, format!("/integration/also/customer/{ID}/sync"), vec![&customer]),
            (Method::POST, format!("/employee/{ID}"), vec![&employee]),
            (Method::DELETE, format!("/employee/{ID}/token/AbC"), vec![&employee, "token AbC"]),
            (Method::GET, "/auth/logout".into(), vec!["CallersEmployee", "CallersToken"]),
            (Method::POST, "/auth/organizationreseller".into(), vec!["CallersToken"]),
            (Method::GET, format!("/customer/{ID}"), vec![]),
            (Method::POST, "/customer".into(), vec![]),
            (Method::POST, "/other".into(), vec![]),
        ] {
            assert_eq!(seen(method.clone(), &path), expected, "{method} {path}");
        }
    }

    #[test]
    fn get_with_a_method_override_is_a_write() {
        let path =
            NormalPath::parse("/customer/73469a52f4fd7f77ec7b28cc", Protected::default()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-http-method-override", http::HeaderValue::from_static("DELETE"));
        assert_eq!(changes(&Method::GET, &headers, &path).len(), 1);
    }

    #[test]
    fn safe_methods_change_nothing() {
        for method in ["HEAD", "OPTIONS", "PROPFIND", "QUERY", "REPORT", "SEARCH"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let path = "/customer/73469a52f4fd7f77ec7b28cc/users";
            assert_eq!(seen(method.clone(), path), Vec::<String>::new(), "{method}");
        }
        for method in ["LOCK", "MKCOL", "UNKNOWN", "get"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let path = "/customer/73469a52f4fd7f77ec7b28cc/users";
            assert_eq!(seen(method.clone(), path).len(), 1, "{method}");
        }
        assert_eq!(seen(Method::OPTIONS, "/auth/logout"), Vec::<String>::new());
        assert_eq!(seen(Method::HEAD, "/auth/logout").len(), 2);
    }
}
