//! The sandbox as a frontend meets it, without a socket (but in `socket`) and with a clock that the test moves.

mod auth;
mod customers;
mod employees;
mod socket;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};

use super::data::{self, World};
use super::state::State;
use crate::api::AccessLevel;

/// A sandbox, a clock and an address to call from.
struct Api {
    state: State,
    now: SystemTime,
    peer: IpAddr,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Api {
    fn new() -> Api {
        let state = State::new(World::first(), Duration::from_mins(15));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000);
        Api { state, now, peer: [192, 0, 2, 1].into() }
    }

    fn send(&mut self, request: Request<Bytes>) -> Answer {
        let response: Response<Bytes> = self.state.answer(&request, self.peer, self.now);
        let (head, body) = response.into_parts();
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, text }
    }

    /// `call` is a method and a path, such as `GET /customer`.
    fn call(&mut self, token: &str, call: &str, body: Value) -> Answer {
        let (method, path) = call.split_once(' ').unwrap();
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = Request::builder().method(method).uri(path).header("Authorization", format!("Bearer {token}"));
        self.send(request.body(body).unwrap())
    }

    fn get(&mut self, token: &str, path: &str) -> Answer {
        self.call(token, &format!("GET {path}"), Value::Null)
    }

    /// A GET with these fields and no others.
    fn get_with(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let request = fields.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Bytes::new()).unwrap())
    }

    fn login(&mut self, role: AccessLevel, more: &str) -> String {
        let caller = demo(role);
        let path = format!("/auth/login?username={}&password={}{more}", caller.login, caller.password);
        let answer = self.get_with(&path, &[]);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    fn is_valid(&mut self, token: &str, more: &str) -> bool {
        let answer = self.get_with(&format!("/auth/validateToken?token={token}{more}"), &[]);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["success"].as_bool().unwrap()
    }

    fn pass(&mut self, minutes: u64) {
        self.now += Duration::from_mins(minutes);
    }
}

fn demo(role: AccessLevel) -> &'static data::DemoCaller {
    data::demo_callers().iter().find(|caller| caller.role == role).unwrap()
}

fn token(role: AccessLevel) -> &'static str {
    demo(role).token
}

/// The status, and the body in the API's error shape with the status in it.
#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!((&error["status"], &error["code"]), (&json!(status), &json!(code)), "{}", answer.text);
    assert!(error["message"].is_string(), "{}", answer.text);
}

#[test]
fn the_help_names_every_caller_of_the_demo() {
    let answer = Api::new().get_with("/", &[]);
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; charset=utf-8"));
    assert_eq!(data::demo_callers().len(), AccessLevel::ALL.len());
    for caller in data::demo_callers() {
        let data::DemoCaller { role, login, password, token, employee, customer } = caller;
        for text in [role.as_str(), login, password, token, employee, customer] {
            assert!(answer.text.contains(text), "{text}");
        }
    }
    assert!(answer.text.contains("GET      /customer/ID/name"));
}

#[test]
fn an_unknown_path_is_404_with_and_without_a_token() {
    let mut api = Api::new();
    for path in ["/nowhere", "/customer/", "/Customer", "/customer/a/b/c", "//"] {
        assert_refused(&api.get_with(path, &[]), 404, "not_found");
        assert_refused(&api.get(token(AccessLevel::Admin), path), 404, "not_found");
    }
    let put = format!("PUT /customer/{}", data::DEMO_CUSTOMER);
    assert_refused(&api.call(token(AccessLevel::Admin), &put, json!({})), 404, "not_found");
}

#[test]
fn endpoints_that_trust_the_address_show_that_they_were_reached() {
    let mut api = Api::new();
    for path in ["/tools/realtime", "/porting/123/notify", "/pbx/app/notification/send/callerid"] {
        let answer = api.get_with(path, &[]).json();
        assert_eq!(answer, json!({"success": true, "reached": path, "trustedAddress": "192.0.2.1"}));
    }
}
