//! A request as the endpoints read it: decoded path and query, JSON body, and the caller's token wherever it stands.

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, Method, Request};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::answer::Refusal;

pub struct Received<'a> {
    pub method: Method,
    /// The path's segments, percent-decoded; none for `/`.
    pub segments: Vec<String>,
    query: Vec<(String, String)>,
    headers: &'a HeaderMap,
    /// The JSON object of a POST; empty for an empty body and for any other method.
    pub body: Map<String, Value>,
    peer: IpAddr,
}

impl<'a> Received<'a> {
    /// Errors: 400 for the body of a POST that is not a JSON object.
    pub fn read(request: &'a Request<Bytes>, peer: IpAddr) -> Result<Received<'a>, Refusal> {
        let path = request.uri().path();
        let segments = match path.strip_prefix('/').unwrap_or(path) {
            "" => Vec::new(),
            rest => rest.split('/').map(decoded).collect(),
        };
        let query = request.uri().query().unwrap_or("");
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))
        });
        let body = match (request.method(), request.body().as_ref()) {
            (&Method::POST, body) if !body.is_empty() => {
                serde_json::from_slice(body).map_err(|_| Refusal::BadRequest("The body is not a JSON object"))?
            }
            _ => Map::new(),
        };
        let method = request.method().clone();
        Ok(Received { method, segments, query: query.collect(), headers: request.headers(), body, peer })
    }

    /// The first query parameter of this name.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Whether the query has `name=true`.
    pub fn asks(&self, name: &str) -> bool {
        self.query(name) == Some("true")
    }

    /// A parameter that may stand in the body or in the query; the body's decides. Numbers are read as their text.
    pub fn parameter(&self, name: &str) -> Option<String> {
        match self.body.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(_) => None,
            None => self.query(name).map(str::to_owned),
        }
    }

    /// The caller's token: `Authorization`, `X-API-Key`, query, cookie, body, in this order.
    ///
    /// Errors: 401 `format_error` for an `Authorization` that is not `Bearer TOKEN`, 401 `credentials_invalid` for none.
    pub fn token(&self) -> Result<String, Refusal> {
        if let Some(value) = self.headers.get(AUTHORIZATION) {
            let (scheme, token) = value.to_str().ok().and_then(|v| v.split_once(' ')).ok_or(Refusal::FormatError)?;
            let plain = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ');
            return if plain { Ok(token.to_owned()) } else { Err(Refusal::FormatError) };
        }
        let header = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        let cookie = || header(COOKIE.as_str())?.split(';').find_map(|pair| pair.trim().strip_prefix("token="));
        header("x-api-key")
            .filter(|key| !key.is_empty())
            .or_else(|| self.query("token"))
            .or_else(cookie)
            .or_else(|| self.body.get("token")?.as_str())
            .filter(|token| !token.is_empty())
            .map(str::to_owned)
            .ok_or(Refusal::CredentialsInvalid)
    }

    /// The caller's address: the first of `X-Forwarded-For` if there is one, so that a login through the gateway is
    /// bound to the address that the gateway will ask about; the peer's otherwise. Anybody may claim any address here.
    pub fn address(&self) -> IpAddr {
        let claimed = self.headers.get("x-forwarded-for").and_then(|value| value.to_str().ok()?.split(',').next());
        claimed.and_then(|text| text.trim().parse().ok()).unwrap_or(self.peer).to_canonical()
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
