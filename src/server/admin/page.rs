//! The status page: one document that asks for nothing but this listener's own numbers. What it may do is said in
//! `Content-Security-Policy` (CSP Level 3): its own script and style, known by a nonce, and requests to where it came from.

use http::StatusCode;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue};

use super::{Answer, answer, error};

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

const TYPE: &str = "text/html; charset=utf-8";

/// The page, with a nonce of its own.
pub fn page() -> Answer {
    let Ok(random) = getrandom::u64().and_then(|first| Ok((first, getrandom::u64()?))) else {
        return error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "No random numbers");
    };
    let nonce = format!("{:016x}{:016x}", random.0, random.1);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "No policy for the page");
    };
    let text = HTML.replace("{nonce}", &nonce).replace("{style}", STYLE).replace("{script}", SCRIPT);
    let mut page = answer(StatusCode::OK, TYPE, text);
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    page
}
