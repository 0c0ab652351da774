//! The sandbox as a frontend uses it, without a socket (except in `socket`) and with a clock that
//! the test advances.

mod auth;
mod customers;
mod employees;
mod socket;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};

use super::data::{self, Dataset};
use super::state::State;
use crate::api::AccessLevel;

/// A sandbox, its clock and the address of its client.
struct Api {
    state: State,
    now: SystemTime,
    peer: IpAddr,
}

struct TestResponse {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl TestResponse {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Api {
    fn new() -> Api {
        let state = State::new(Dataset::initial(), Duration::from_mins(15));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000);
        Api { state, now, peer: [192, 0, 2, 1].into() }
    }

    fn send(&mut self, request: Request<Bytes>) -> TestResponse {
        let response: Response<Bytes> = self.state.respond(&request, self.peer, self.now);
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.to_vec()).unwrap();
        TestResponse { status: head.status.as_u16(), headers: head.headers, text }
    }

    /// Sends a request line without its version, such as `GET /customer`.
    fn call(&mut self, token: &str, request_line: &str, body: Value) -> TestResponse {
        let (method, path) = request_line.split_once(' ').unwrap();
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Authorization", format!("Bearer {token}"));
        self.send(request.body(body).unwrap())
    }

    fn get(&mut self, token: &str, path: &str) -> TestResponse {
        self.call(token, &format!("GET {path}"), Value::Null)
    }

    /// A GET with these fields and no others.
    fn get_with(&mut self, path: &str, fields: &[(&str, &str)]) -> TestResponse {
        let request = fields
            .iter()
            .fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Bytes::new()).unwrap())
    }

    fn login(&mut self, access_level: AccessLevel, more: &str) -> String {
        let caller = demo(access_level);
        let path =
            format!("/auth/login?username={}&password={}{more}", caller.login, caller.password);
        let response = self.get_with(&path, &[]);
        assert_eq!(response.status, 200, "{}", response.text);
        response.json()["token"].as_str().unwrap().to_owned()
    }

    fn is_valid(&mut self, token: &str, more: &str) -> bool {
        let response = self.get_with(&format!("/auth/validateToken?token={token}{more}"), &[]);
        assert_eq!(response.status, 200, "{}", response.text);
        response.json()["success"].as_bool().unwrap()
    }

    fn advance_minutes(&mut self, minutes: u64) {
        self.now += Duration::from_mins(minutes);
    }
}

fn demo(access_level: AccessLevel) -> &'static data::DemoCaller {
    data::demo_callers().iter().find(|caller| caller.access_level == access_level).unwrap()
}

fn token(access_level: AccessLevel) -> &'static str {
    demo(access_level).token
}

/// Asserts the status and an error body in the API's shape.
#[track_caller]
fn assert_refused(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.text);
    let error = &response.json()["error"];
    assert_eq!(
        (&error["status"], &error["code"]),
        (&json!(status), &json!(code)),
        "{}",
        response.text
    );
    assert!(error["message"].is_string(), "{}", response.text);
}

#[test]
fn help_names_every_demo_caller() {
    let response = Api::new().get_with("/", &[]);
    assert_eq!(
        (response.status, response.header("content-type")),
        (200, "text/plain; charset=utf-8")
    );
    assert_eq!(data::demo_callers().len(), AccessLevel::ALL.len());
    for caller in data::demo_callers() {
        let data::DemoCaller { access_level, login, password, token, employee, customer } = caller;
        for text in [access_level.as_str(), login, password, token, employee, customer] {
            assert!(response.text.contains(text), "{text}");
        }
    }
    assert!(response.text.contains("GET      /customer/ID/name"));
}

#[test]
fn unknown_path_is_404_with_and_without_token() {
    let mut api = Api::new();
    for path in ["/nowhere", "/customer/", "/Customer", "/customer/a/b/c", "//"] {
        assert_refused(&api.get_with(path, &[]), 404, "not_found");
        assert_refused(&api.get(token(AccessLevel::Admin), path), 404, "not_found");
    }
    let put = format!("PUT /customer/{}", data::DEMO_CUSTOMER);
    assert_refused(&api.call(token(AccessLevel::Admin), &put, json!({})), 404, "not_found");
}

#[test]
fn address_trusted_endpoints_show_the_address() {
    let mut api = Api::new();
    for path in ["/tools/realtime", "/porting/123/notify", "/pbx/app/notification/send/callerid"] {
        let response = api.get_with(path, &[]).json();
        assert_eq!(
            response,
            json!({"success": true, "reached": path, "trustedAddress": "192.0.2.1"})
        );
    }
}
