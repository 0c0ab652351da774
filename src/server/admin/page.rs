//! The status page: one document that loads nothing but the statistics of this listener.
//!
//! `Content-Security-Policy` (CSP Level 3) permits its script and style, identified by a nonce, and
//! requests to its own origin.

use http::StatusCode;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue};

use super::request::Requester;
use super::{AdminResponse, error, response};

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// The page, with a new nonce.
pub fn page(requester: Requester<'_>) -> AdminResponse {
    let failed =
        |message| error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message, requester);
    let Ok(random) = getrandom::u64().and_then(|first| Ok((first, getrandom::u64()?))) else {
        return failed("No random numbers are available");
    };
    let nonce = format!("{:016x}{:016x}", random.0, random.1);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return failed("The policy of the page is not a valid field");
    };
    let text =
        HTML.replace("{nonce}", &nonce).replace("{style}", STYLE).replace("{script}", SCRIPT);
    let mut page = response(StatusCode::OK, CONTENT_TYPE, text);
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    page
}
