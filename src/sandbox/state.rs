//! The state of the sandbox, its endpoints and the rule which customers a caller sees. No sockets;
//! the time is an argument, so that tests can let a session expire.
//!
//! The endpoints are implemented in `auth`, `customers`, `employees` and `change_log`. Paths are
//! matched exactly, letter case included, except for ids.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::json;

use super::change_log::ChangeLog;
use super::data::{self, Customer, Dataset, Id};
use super::request::ApiRequest;
use super::response::{ErrorResponse, Resource, Success};
use super::session::{Expiry, Session, Sessions};
use crate::api::AccessLevel;

pub struct State {
    pub(super) dataset: Dataset,
    pub(super) sessions: Sessions,
    pub(super) log: ChangeLog,
    /// Lifetime of a session whose login does not set `expiresInMinutes`.
    pub(super) session_duration: Duration,
}

/// The caller of a request, with its present rights.
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
    /// Whether the caller sees a customer of `reseller`, and its employees.
    pub fn sees(&self, customer: Id, reseller: Id) -> bool {
        match self.level {
            AccessLevel::NoLogin | AccessLevel::Personal => false,
            AccessLevel::Viewer | AccessLevel::Manager | AccessLevel::Owner => {
                self.customer == customer
            }
            AccessLevel::Reseller => self.reseller == reseller,
            AccessLevel::ResellerAdmin => self.switched_to.unwrap_or(self.reseller) == reseller,
            AccessLevel::Admin => {
                self.switched_to.is_none_or(|switched_to| switched_to == reseller)
            }
        }
    }

    /// Requires an access level.
    ///
    /// Errors: 403 below it.
    pub fn at_least(&self, level: AccessLevel) -> Result<(), ErrorResponse> {
        if self.level >= level { Ok(()) } else { Err(ErrorResponse::AccessDenied) }
    }
}

impl State {
    pub fn new(dataset: Dataset, session_duration: Duration) -> State {
        let mut sessions = Sessions::default();
        for caller in data::demo_callers() {
            let employee = data::constant_id(caller.employee);
            let session =
                Session { employee, expiry: Expiry::Never, address: None, reseller: None };
            sessions.insert(caller.token.to_owned(), session);
        }
        State { dataset, sessions, log: ChangeLog::default(), session_duration }
    }

    /// Responds to a request that `peer` sent at `now`.
    pub fn respond(
        &mut self,
        request: &Request<Bytes>,
        peer: IpAddr,
        now: SystemTime,
    ) -> Response<Bytes> {
        let result = ApiRequest::parse(request, peer).and_then(|request| self.route(request, now));
        result.map_or_else(Response::from, Response::from)
    }

    fn route(
        &mut self,
        request: ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let path: Vec<&str> = request.segments.iter().map(String::as_str).collect();
        let method = match &request.method {
            // hyper omits the body.
            &Method::HEAD => Method::GET.as_str(),
            method => method.as_str(),
        };
        // `/customer/` is not `/customer/{id}` with an empty id.
        if path.contains(&"") {
            return Err(ErrorResponse::NotFound(Resource::Path));
        }
        // Without a credential, or with the token as a parameter.
        match (method, path.as_slice()) {
            ("GET", []) => return Ok(Success::text(help())),
            ("GET" | "POST", ["auth", "login"]) => return self.login(&request, now),
            ("GET", ["auth", "validateToken"]) => return self.validate_token(&request, now),
            (_, ["tools", "realtime"] | ["porting", _, "notify"]) => {
                return Ok(address_trusted_response(&request));
            }
            (_, ["pbx", "app", "notification", "send", "callerid"]) => {
                return Ok(address_trusted_response(&request));
            }
            _ => {}
        }
        // Protected. An unknown path is 404 with or without a token.
        let caller = self.caller(&request, now);
        match (method, path.as_slice()) {
            ("GET", ["auth", "logout"]) => Ok(self.logout(&caller?)),
            ("POST", ["auth", "organizationreseller"]) => self.switch_reseller(&caller?, &request),
            ("GET", ["customer"]) => Ok(self.customers(&caller?, request.has_flag("full"))),
            ("GET", ["customer", id, "name"]) => self.customer_name(&caller?, id),
            ("GET", ["customer", id, "export"]) => self.export_customer(&caller?, id),
            ("GET", ["customer", id]) => self.customer(&caller?, id),
            ("POST", ["customer", id]) => self.update_customer(&caller?, id, &request, now),
            ("DELETE", ["customer", id]) => self.delete_customer(&caller?, id, now),
            ("POST", ["employee", id]) => self.update_employee(&caller?, id, &request, now),
            ("DELETE", ["employee", id]) => self.delete_employee(&caller?, id, now),
            ("POST", ["employee", id, "token"]) => self.create_token(&caller?, id, now),
            ("DELETE", ["employee", id, "token", token]) => self.delete_token(&caller?, id, token),
            ("GET", ["log", "changeloglite"]) => self.changes(&caller?, &request, now),
            _ => Err(ErrorResponse::NotFound(Resource::Path)),
        }
    }

    /// Finds the caller of a protected request and extends its session.
    fn caller(
        &mut self,
        request: &ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Caller, ErrorResponse> {
        let token = request.token()?;
        let Session { employee, reseller, .. } = *self.sessions.touch(&token, now)?;
        self.identify(token, employee, reseller)
    }

    /// Describes the holder of a token.
    ///
    /// Errors: 401 `invalid_token` if the employee or its customer was deleted.
    pub(super) fn identify(
        &self,
        token: String,
        id: Id,
        switched_to: Option<Id>,
    ) -> Result<Caller, ErrorResponse> {
        let employee = self.dataset.employees.get(&id).ok_or(ErrorResponse::InvalidToken)?;
        let customer =
            self.dataset.customers.get(&employee.customer).ok_or(ErrorResponse::InvalidToken)?;
        let (level, reseller) = (employee.level, customer.reseller);
        Ok(Caller {
            token,
            employee: id,
            level,
            customer: employee.customer,
            reseller,
            switched_to,
        })
    }

    /// Finds a customer that the caller sees with at least this access level.
    ///
    /// Errors: 404 `customer` for an unknown or invalid id; 403 `access_denied`.
    pub(super) fn visible_customer(
        &self,
        caller: &Caller,
        id: &str,
        level: AccessLevel,
    ) -> Result<(Id, &Customer), ErrorResponse> {
        let not_found = ErrorResponse::NotFound(Resource::Customer);
        let id = Id::parse(id.as_bytes()).ok_or(not_found)?;
        let customer = self.dataset.customers.get(&id).ok_or(not_found)?;
        caller.at_least(level)?;
        if caller.sees(id, customer.reseller) {
            Ok((id, customer))
        } else {
            Err(ErrorResponse::AccessDenied)
        }
    }
}

/// The response of endpoints that trust the client's address. It shows that such an endpoint was
/// reached; the gateway blocks them, so no client behind it should receive this response.
fn address_trusted_response(request: &ApiRequest<'_>) -> Success {
    let path = format!("/{}", request.segments.join("/"));
    Success::json(
        json!({"success": true, "reached": path, "trustedAddress": request.client_address().to_string()}),
    )
}

fn help() -> String {
    let mut text = String::from(
        "The TelecomX API sandbox. Made-up data, in memory; a restart restores the initial state.

Endpoints
  GET|POST /auth/login               username, password[, expiresInMinutes; -1: persistent], in query or JSON
  GET      /auth/validateToken       ?token=T[&ip=ADDRESS][&simple=true][&extend=true]
  GET      /auth/logout              ends all tokens of the employee, the ones below too
  POST     /auth/organizationreseller  {\"reseller\": ID or null}             RESELLER_ADMIN and up
  GET      /customer[?full=true]     the customers that the caller sees
  GET      /customer/ID/name         VIEWER and up
  GET      /customer/ID              VIEWER and up
  GET      /customer/ID/export       text/csv; VIEWER and up
  POST     /customer/ID              merges objects, replaces other values; OWNER and up
  DELETE   /customer/ID              RESELLER and up
  POST     /employee/ID              name, language, accessLevel; OWNER and up
  DELETE   /employee/ID              OWNER and up
  POST     /employee/ID/token        a machine token; the employee itself, or OWNER and up
  DELETE   /employee/ID/token/TOKEN  the same
  GET      /log/changeloglite        [?date=SINCE][&customer=ID][&reseller=ID]
  any      /tools/realtime, /porting/ID/notify, /pbx/app/notification/send/callerid   trust the client's address

Send a token in Authorization: Bearer, X-API-Key, ?token=, the cookie `token` or, for POST, the JSON body.

Callers (access level, login, password, persistent token, employee, customer)
",
    );
    for caller in data::demo_callers() {
        let data::DemoCaller { access_level, login, password, token, employee, customer } = caller;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {access_level:14} {login:31} {password:20} {token:28} {employee} {customer}"
        );
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
        data::EMPLOYEE_PASSWORD,
    );
    text
}
