//! A request in, an answer out. No socket here, and the time is an argument, so that a test can let a session pass.
//!
//! This file is the list of endpoints and the rule of who sees what; the endpoints themselves stand in `auth`,
//! `customers`, `employees` and `changelog`. Paths are matched exactly, letter case included, ids aside.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use super::answer::{Refusal, Reply, Thing};
use super::changelog::ChangeLog;
use super::data::{self, Customer, Id, World};
use super::received::Received;
use super::session::{Life, Session, Sessions};
use crate::api::AccessLevel;

pub struct State {
    pub(super) world: World,
    pub(super) sessions: Sessions,
    pub(super) log: ChangeLog,
    /// How long a login lasts that asks for no other time.
    pub(super) session_length: Duration,
}

/// Who is calling, with the rights of the moment.
#[derive(Clone)]
pub struct Caller {
    pub token: String,
    pub employee: Id,
    pub level: AccessLevel,
    pub customer: Id,
    pub reseller: Id,
    /// The reseller that the caller switched to.
    pub switched_to: Option<Id>,
}

impl Caller {
    /// Whether the caller sees things of a customer that belongs to `reseller`.
    pub fn sees(&self, customer: Id, reseller: Id) -> bool {
        match self.level {
            AccessLevel::NoLogin | AccessLevel::Personal => false,
            AccessLevel::Viewer | AccessLevel::Manager | AccessLevel::Owner => self.customer == customer,
            AccessLevel::Reseller => self.reseller == reseller,
            AccessLevel::ResellerAdmin => self.switched_to.unwrap_or(self.reseller) == reseller,
            AccessLevel::Admin => self.switched_to.is_none_or(|switched_to| switched_to == reseller),
        }
    }

    /// Errors: 403 below this level.
    pub fn at_least(&self, level: AccessLevel) -> Result<(), Refusal> {
        if self.level >= level { Ok(()) } else { Err(Refusal::AccessDenied) }
    }
}

impl State {
    pub fn new(world: World, session_length: Duration) -> State {
        let mut sessions = Sessions::default();
        for caller in data::demo_callers() {
            let employee = data::own_id(caller.employee);
            let session = Session { employee, life: Life::Persistent, address: None, reseller: None };
            sessions.open_as(caller.token.to_owned(), session);
        }
        State { world, sessions, log: ChangeLog::default(), session_length }
    }

    /// Answers one request that came from `peer` at `now`.
    pub fn answer(&mut self, request: &Request<Bytes>, peer: IpAddr, now: SystemTime) -> Response<Bytes> {
        let reply = Received::read(request, peer).and_then(|received| self.route(received, now));
        reply.map_or_else(Response::from, Response::from)
    }

    fn route(&mut self, received: Received<'_>, now: SystemTime) -> Result<Reply, Refusal> {
        let path: Vec<&str> = received.segments.iter().map(String::as_str).collect();
        let method = match &received.method {
            // The HTTP layer leaves the body out.
            &Method::HEAD => Method::GET.as_str(),
            method => method.as_str(),
        };
        // `/customer/` is not `/customer/{id}` with an id of nothing.
        if path.contains(&"") {
            return Err(Refusal::NoSuch(Thing::Path));
        }
        // Open to all, or with a way of its own to read the token.
        match (method, path.as_slice()) {
            ("GET", []) => return Ok(Reply::text(help())),
            ("GET" | "POST", ["auth", "login"]) => return self.login(&received, now),
            ("GET", ["auth", "validateToken"]) => return self.validate_token(&received, now),
            (_, ["tools", "realtime"] | ["porting", _, "notify"]) => return Ok(trusts_the_address(&received)),
            (_, ["pbx", "app", "notification", "send", "callerid"]) => return Ok(trusts_the_address(&received)),
            _ => {}
        }
        // Protected. An unknown path is 404 for everybody, token or not.
        let caller = self.caller(&received, now);
        match (method, path.as_slice()) {
            ("GET", ["auth", "logout"]) => Ok(self.logout(&caller?)),
            ("POST", ["auth", "organizationreseller"]) => self.switch_reseller(&caller?, &received),
            ("GET", ["customer"]) => Ok(self.customers(&caller?, received.asks("full"))),
            ("GET", ["customer", id, "name"]) => self.customer_name(&caller?, id),
            ("GET", ["customer", id, "export"]) => self.export_customer(&caller?, id),
            ("GET", ["customer", id]) => self.customer(&caller?, id),
            ("POST", ["customer", id]) => self.update_customer(&caller?, id, &received, now),
            ("DELETE", ["customer", id]) => self.delete_customer(&caller?, id, now),
            ("POST", ["employee", id]) => self.update_employee(&caller?, id, &received, now),
            ("DELETE", ["employee", id]) => self.delete_employee(&caller?, id, now),
            ("POST", ["employee", id, "token"]) => self.make_token(&caller?, id, now),
            ("DELETE", ["employee", id, "token", token]) => self.delete_token(&caller?, id, token),
            ("GET", ["log", "changeloglite"]) => self.changes(&caller?, &received, now),
            _ => Err(Refusal::NoSuch(Thing::Path)),
        }
    }

    /// Who makes this protected call. The end of the session moves.
    fn caller(&mut self, received: &Received<'_>, now: SystemTime) -> Result<Caller, Refusal> {
        let token = received.token()?;
        let Session { employee, reseller, .. } = *self.sessions.touch(&token, now)?;
        self.identify(token, employee, reseller)
    }

    /// The rights that an employee has with a token.
    ///
    /// Errors: 401 `invalid_token` when the employee, or its customer, is gone.
    pub(super) fn identify(&self, token: String, id: Id, switched_to: Option<Id>) -> Result<Caller, Refusal> {
        let employee = self.world.employees.get(&id).ok_or(Refusal::InvalidToken)?;
        let customer = self.world.customers.get(&employee.customer).ok_or(Refusal::InvalidToken)?;
        let (level, reseller) = (employee.level, customer.reseller);
        Ok(Caller { token, employee: id, level, customer: employee.customer, reseller, switched_to })
    }

    /// A customer that the caller sees, with at least this level.
    ///
    /// Errors: 404 `customer` for none of this id, and for what is no id; 403 `access_denied`.
    pub(super) fn permitted(&self, caller: &Caller, id: &str, level: AccessLevel) -> Result<(Id, &Customer), Refusal> {
        let not_found = Refusal::NoSuch(Thing::Customer);
        let id = Id::parse(id.as_bytes()).ok_or(not_found)?;
        let customer = self.world.customers.get(&id).ok_or(not_found)?;
        caller.at_least(level)?;
        if caller.sees(id, customer.reseller) { Ok((id, customer)) } else { Err(Refusal::AccessDenied) }
    }
}

/// Endpoints that take the caller's address for a credential. The sandbox only shows that one was reached: behind a
/// gateway that blocks them, nobody should ever see this answer.
fn trusts_the_address(received: &Received<'_>) -> Reply {
    let path = format!("/{}", received.segments.join("/"));
    Reply::json(json!({"success": true, "reached": path, "trustedAddress": received.address().to_string()}))
}

fn help() -> String {
    let mut text = String::from(
        "The TelecomX API sandbox. Made-up data, in memory; a restart brings back the first state.

Endpoints
  GET|POST /auth/login               username, password[, expiresInMinutes; -1: persistent], in query or JSON
  GET      /auth/validateToken       ?token=T[&ip=ADDRESS][&simple=true][&extend=true]
  GET      /auth/logout              ends all tokens of the employee, the ones below too
  POST     /auth/organizationreseller  {\"reseller\": ID or null}             RESELLER_ADMIN and up
  GET      /customer[?full=true]     the customers that the caller sees
  GET      /customer/ID/name         VIEWER and up
  GET      /customer/ID              VIEWER and up
  GET      /customer/ID/export       text/csv; VIEWER and up
  POST     /customer/ID              objects are merged, all else replaces; OWNER and up
  DELETE   /customer/ID              RESELLER and up
  POST     /employee/ID              name, language, accessLevel; OWNER and up
  DELETE   /employee/ID              OWNER and up
  POST     /employee/ID/token        a machine token; the employee itself, or OWNER and up
  DELETE   /employee/ID/token/TOKEN  the same
  GET      /log/changeloglite        [?date=SINCE][&customer=ID][&reseller=ID]
  any      /tools/realtime, /porting/ID/notify, /pbx/app/notification/send/callerid   trust the caller's address

A token goes into Authorization: Bearer, X-API-Key, ?token=, the cookie `token` or, for POST, the JSON body.

Callers (role, login, password, persistent token, employee, customer)
",
    );
    for caller in data::demo_callers() {
        let data::DemoCaller { role, login, password, token, employee, customer } = caller;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {role:14} {login:31} {password:20} {token:28} {employee} {customer}");
    }
    let [own, other, foreign] = [data::DEMO_CUSTOMER, data::OTHER_CUSTOMER, data::FOREIGN_CUSTOMER];
    let _ = write!(
        text,
        "
Customers to try
  {own}  the VIEWER's own
  {other}  another of the same reseller
  {foreign}  one of another reseller

Resellers to switch to: {} and {}.
Every made-up customer has owner@kunde-NNN.sandbox.example and viewer@kunde-NNN.sandbox.example, NNN from 001,
password {}.
",
        data::DEMO_RESELLER,
        data::FOREIGN_RESELLER,
        data::PASSWORD,
    );
    text
}
