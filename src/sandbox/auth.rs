//! `/auth`: login, logout, validation of a token, switch to another reseller.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::data::Id;
use super::request::ApiRequest;
use super::response::{ErrorResponse, Resource, Success};
use super::session::{Expiry, Session};
use super::state::{Caller, State};
use crate::api::AccessLevel;

/// A year. A longer login is probably a mistake; a permanent one is -1.
const MAX_LOGIN_MINUTES: u64 = 525_600;

impl State {
    /// Opens a session.
    ///
    /// Errors: 401 `credentials_invalid` for a wrong or missing name or password, and for a
    /// `NO_LOGIN` employee; 422 for an `expiresInMinutes` that is neither -1 nor 1 to
    /// `MAX_LOGIN_MINUTES`.
    pub(super) fn login(
        &mut self,
        request: &ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let login = request.parameter("username").ok_or(ErrorResponse::CredentialsInvalid)?;
        let password = request.parameter("password").ok_or(ErrorResponse::CredentialsInvalid)?;
        let found =
            self.dataset.employees.iter().find(|(_, e)| e.login == login && e.password == password);
        let (&employee, found) = found.ok_or(ErrorResponse::CredentialsInvalid)?;
        if found.level == AccessLevel::NoLogin {
            return Err(ErrorResponse::CredentialsInvalid);
        }
        let name = found.name.clone();
        let expiry = self.expiry_after(request.parameter("expiresInMinutes").as_deref(), now)?;
        let session =
            Session { employee, expiry, address: Some(request.client_address()), reseller: None };
        let token = self.sessions.create(session, now)?;
        let caller = self.identify(token, employee, None)?;
        let mut description = json!({
            "success": true,
            "token": caller.token,
            "employee": employee.to_string(),
            "customer": caller.customer.to_string(),
            "accessLevel": caller.level.as_str(),
            "name": name,
        });
        self.copy_customer_members(
            &mut description,
            &caller,
            &[("customerIntegrations", "integrations")],
        );
        Ok(Success::json(description)
            .with_cookie(&format!("token={}; HttpOnly; Path=/", caller.token)))
    }

    fn expiry_after(
        &self,
        minutes: Option<&str>,
        now: SystemTime,
    ) -> Result<Expiry, ErrorResponse> {
        let length = match minutes {
            None => self.session_duration,
            Some("-1") => return Ok(Expiry::Never),
            Some(text) => match text.parse() {
                Ok(minutes @ 1..=MAX_LOGIN_MINUTES) => Duration::from_mins(minutes),
                _ => {
                    let message = "Neither -1 nor a number of minutes up to a year";
                    return Err(ErrorResponse::Unprocessable {
                        property: "expiresInMinutes",
                        message,
                    });
                }
            },
        };
        Ok(Expiry::Sliding { length, ends: now + length })
    }

    /// Validates a token and describes its caller. The session is not extended.
    ///
    /// Errors: 401 `credentials_invalid` without `token`; with `simple=true`, 403 for an invalid
    /// token.
    pub(super) fn validate_token(
        &self,
        request: &ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let token = request
            .query("token")
            .filter(|token| !token.is_empty())
            .ok_or(ErrorResponse::CredentialsInvalid)?;
        match self.valid(token, request.query("ip"), now) {
            Some(caller) => {
                Ok(Success::json(self.description(&caller, request.has_flag("extend"))))
            }
            None if request.has_flag("simple") => Err(ErrorResponse::AccessDenied),
            None => Ok(Success::json(json!({"success": false}))),
        }
    }

    fn valid(&self, token: &str, address: Option<&str>, now: SystemTime) -> Option<Caller> {
        let session = self.sessions.find_valid(token, now)?;
        if let (Some(login), Some(asked)) = (session.address, address) {
            let asked: IpAddr = asked.parse().ok()?;
            (asked.to_canonical() == login).then_some(())?;
        }
        self.identify(token.to_owned(), session.employee, session.reseller).ok()
    }

    fn description(&self, caller: &Caller, extend: bool) -> Value {
        let mut description = json!({
            "success": true,
            "employee": caller.employee.to_string(),
            "customer": caller.customer.to_string(),
            "accessLevel": caller.level.as_str(),
        });
        if extend && let Some(employee) = self.dataset.employees.get(&caller.employee) {
            description["name"] = json!(employee.name);
            description["language"] = json!(employee.language);
            let members = [
                ("customerName", "name"),
                ("customerFeatures", "features"),
                ("customerIntegrations", "integrations"),
            ];
            self.copy_customer_members(&mut description, caller, &members);
        }
        description
    }

    /// Copies members of the caller's own customer into a response under other names. A missing
    /// member is left out.
    fn copy_customer_members(&self, target: &mut Value, caller: &Caller, members: &[(&str, &str)]) {
        let Some(customer) = self.dataset.customers.get(&caller.customer) else { return };
        for (name, member) in members {
            if let Some(value) = customer.document.get(*member) {
                target[*name] = value.clone();
            }
        }
    }

    /// Ends all tokens of the caller: sessions, machine tokens, and the constant token of a demo
    /// caller.
    pub(super) fn logout(&mut self, caller: &Caller) -> Success {
        self.sessions.remove_all_of(caller.employee);
        Success::json(json!({"success": true})).with_cookie("token=; HttpOnly; Path=/; Max-Age=0")
    }

    /// Restricts a token to the customers of one reseller; `null` lifts the restriction. The token
    /// and its access level do not change.
    ///
    /// Errors: 403 below `RESELLER_ADMIN`; 422 if `reseller` is neither a string nor `null`; 404
    /// `reseller`.
    pub(super) fn switch_reseller(
        &mut self,
        caller: &Caller,
        request: &ApiRequest<'_>,
    ) -> Result<Success, ErrorResponse> {
        caller.at_least(AccessLevel::ResellerAdmin)?;
        let reseller = match request.body.get("reseller") {
            Some(Value::Null) => None,
            Some(Value::String(id)) => {
                let id =
                    Id::parse(id.as_bytes()).filter(|id| self.dataset.resellers.contains_key(id));
                Some(id.ok_or(ErrorResponse::NotFound(Resource::Reseller))?)
            }
            _ => {
                return Err(ErrorResponse::Unprocessable {
                    property: "reseller",
                    message: "Neither an id nor null",
                });
            }
        };
        // `caller` was found by this token in the same call.
        if let Some(session) = self.sessions.get_mut(&caller.token) {
            session.reseller = reseller;
        }
        Ok(Success::json(json!({"success": true, "reseller": reseller.map(|id| id.to_string())})))
    }
}
