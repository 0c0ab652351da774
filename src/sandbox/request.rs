//! A parsed request: decoded path and query, JSON body, the caller's token and address.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, Method, Request};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::response::ErrorResponse;

pub struct ApiRequest<'a> {
    pub method: Method,
    /// Percent-decoded segments of the path; empty for `/`.
    pub segments: Vec<String>,
    query: Vec<(String, String)>,
    headers: &'a HeaderMap,
    /// The JSON object of a POST; empty for an empty body and for any other method.
    pub body: Map<String, Value>,
    peer: IpAddr,
}

impl<'a> ApiRequest<'a> {
    /// Parses the path, the query and the body.
    ///
    /// Errors: 400 for a POST whose body is not a JSON object.
    pub fn parse(
        request: &'a Request<Bytes>,
        peer: IpAddr,
    ) -> Result<ApiRequest<'a>, ErrorResponse> {
        let path = request.uri().path();
        let segments = match path.strip_prefix('/').unwrap_or(path) {
            "" => Vec::new(),
            rest => rest.split('/').map(percent_decoded).collect(),
        };
        let query = request.uri().query().unwrap_or("");
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(&name.replace('+', " ")), percent_decoded(&value.replace('+', " ")))
        });
        let body = match (request.method(), request.body().as_ref()) {
            (&Method::POST, body) if !body.is_empty() => serde_json::from_slice(body)
                .map_err(|_| ErrorResponse::BadRequest("The body is not a JSON object"))?,
            _ => Map::new(),
        };
        let method = request.method().clone();
        Ok(ApiRequest {
            method,
            segments,
            query: query.collect(),
            headers: request.headers(),
            body,
            peer,
        })
    }

    /// The first query parameter of this name.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Whether the query has `name=true`.
    pub fn has_flag(&self, name: &str) -> bool {
        self.query(name) == Some("true")
    }

    /// A parameter of the body or else of the query. A number is returned as its text.
    pub fn parameter(&self, name: &str) -> Option<String> {
        match self.body.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(_) => None,
            None => self.query(name).map(str::to_owned),
        }
    }

    /// The token: from `Authorization`, `X-API-Key`, query, cookie or body, in this order.
    ///
    /// Errors: 401 `format_error` for an `Authorization` that is not `Bearer TOKEN`, 401
    /// `credentials_invalid` without a token.
    pub fn token(&self) -> Result<String, ErrorResponse> {
        if let Some(value) = self.headers.get(AUTHORIZATION) {
            let (scheme, token) = value
                .to_str()
                .ok()
                .and_then(|v| v.split_once(' '))
                .ok_or(ErrorResponse::FormatError)?;
            let is_valid =
                scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ');
            return if is_valid { Ok(token.to_owned()) } else { Err(ErrorResponse::FormatError) };
        }
        let header = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        let cookie = || {
            header(COOKIE.as_str())?.split(';').find_map(|pair| pair.trim().strip_prefix("token="))
        };
        header("x-api-key")
            .filter(|key| !key.is_empty())
            .or_else(|| self.query("token"))
            .or_else(cookie)
            .or_else(|| self.body.get("token")?.as_str())
            .filter(|token| !token.is_empty())
            .map(str::to_owned)
            .ok_or(ErrorResponse::CredentialsInvalid)
    }

    /// The client's address: the first of `X-Forwarded-For`, or else the peer's. A login through
    /// the gateway is thereby bound to the address that the gateway sends with a validation. Any
    /// client can claim any address.
    pub fn client_address(&self) -> IpAddr {
        let claimed = self
            .headers
            .get("x-forwarded-for")
            .and_then(|value| value.to_str().ok()?.split(',').next());
        claimed.and_then(|text| text.trim().parse().ok()).unwrap_or(self.peer).to_canonical()
    }
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
