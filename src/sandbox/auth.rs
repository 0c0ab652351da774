//! `/auth`: login, logout, the validation of a token, and the switch to another reseller.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::answer::{Refusal, Reply, Thing};
use super::data::Id;
use super::received::Received;
use super::session::{Life, Session};
use super::state::{Caller, State};
use crate::api::AccessLevel;

/// A year. Longer is a mistake, or meant to be -1.
const MOST_MINUTES: u64 = 525_600;

impl State {
    /// Errors: 401 `credentials_invalid` for a wrong or missing name or password, and for a `NO_LOGIN` employee; 422 for
    /// an `expiresInMinutes` that is neither -1 nor 1 to `MOST_MINUTES`.
    pub(super) fn login(&mut self, received: &Received<'_>, now: SystemTime) -> Result<Reply, Refusal> {
        let login = received.parameter("username").ok_or(Refusal::CredentialsInvalid)?;
        let password = received.parameter("password").ok_or(Refusal::CredentialsInvalid)?;
        let found = self.world.employees.iter().find(|(_, e)| e.login == login && e.password == password);
        let (&employee, found) = found.ok_or(Refusal::CredentialsInvalid)?;
        if found.level == AccessLevel::NoLogin {
            return Err(Refusal::CredentialsInvalid);
        }
        let name = found.name.clone();
        let life = self.life(received.parameter("expiresInMinutes").as_deref(), now)?;
        let session = Session { employee, life, address: Some(received.address()), reseller: None };
        let token = self.sessions.open(session, now)?;
        let caller = self.identify(token, employee, None)?;
        let mut answer = json!({
            "success": true,
            "token": caller.token,
            "employee": employee.to_string(),
            "customer": caller.customer.to_string(),
            "accessLevel": caller.level.as_str(),
            "name": name,
        });
        self.put_from_customer(&mut answer, &caller, &[("customerIntegrations", "integrations")]);
        Ok(Reply::json(answer).with_cookie(&format!("token={}; HttpOnly; Path=/", caller.token)))
    }

    fn life(&self, minutes: Option<&str>, now: SystemTime) -> Result<Life, Refusal> {
        let length = match minutes {
            None => self.session_length,
            Some("-1") => return Ok(Life::Persistent),
            Some(text) => match text.parse() {
                Ok(minutes @ 1..=MOST_MINUTES) => Duration::from_mins(minutes),
                _ => {
                    let message = "Neither -1 nor a number of minutes up to a year";
                    return Err(Refusal::Unprocessable { property: "expiresInMinutes", message });
                }
            },
        };
        Ok(Life::Sliding { length, ends: now + length })
    }

    /// Whether a token is valid, and whose it is. The session's end stays where it is.
    ///
    /// Errors: 401 `credentials_invalid` without `token`; with `simple=true`, 403 for an invalid token.
    pub(super) fn validate_token(&self, received: &Received<'_>, now: SystemTime) -> Result<Reply, Refusal> {
        let token = received.query("token").filter(|token| !token.is_empty()).ok_or(Refusal::CredentialsInvalid)?;
        match self.valid(token, received.query("ip"), now) {
            Some(caller) => Ok(Reply::json(self.description(&caller, received.asks("extend")))),
            None if received.asks("simple") => Err(Refusal::AccessDenied),
            None => Ok(Reply::json(json!({"success": false}))),
        }
    }

    fn valid(&self, token: &str, address: Option<&str>, now: SystemTime) -> Option<Caller> {
        let session = self.sessions.look(token, now)?;
        if let (Some(login), Some(asked)) = (session.address, address) {
            let asked: IpAddr = asked.parse().ok()?;
            (asked.to_canonical() == login).then_some(())?;
        }
        self.identify(token.to_owned(), session.employee, session.reseller).ok()
    }

    fn description(&self, caller: &Caller, extend: bool) -> Value {
        let mut answer = json!({
            "success": true,
            "employee": caller.employee.to_string(),
            "customer": caller.customer.to_string(),
            "accessLevel": caller.level.as_str(),
        });
        if extend && let Some(employee) = self.world.employees.get(&caller.employee) {
            answer["name"] = json!(employee.name);
            answer["language"] = json!(employee.language);
            let members =
                [("customerName", "name"), ("customerFeatures", "features"), ("customerIntegrations", "integrations")];
            self.put_from_customer(&mut answer, caller, &members);
        }
        answer
    }

    /// Copies members of the caller's own customer into an answer, under another name; one without a value is left out.
    fn put_from_customer(&self, answer: &mut Value, caller: &Caller, members: &[(&str, &str)]) {
        let Some(customer) = self.world.customers.get(&caller.customer) else { return };
        for (name, member) in members {
            if let Some(value) = customer.document.get(*member) {
                answer[*name] = value.clone();
            }
        }
    }

    /// Ends all tokens of the caller's: logins, machine tokens, and the well-known one of a caller of the demo.
    pub(super) fn logout(&mut self, caller: &Caller) -> Reply {
        self.sessions.end_all_of(caller.employee);
        Reply::json(json!({"success": true})).with_cookie("token=; HttpOnly; Path=/; Max-Age=0")
    }

    /// Switches what the token sees to one reseller's customers; `null` switches back. The token and its access level
    /// stay what they are.
    ///
    /// Errors: 403 below `RESELLER_ADMIN`; 422 for no id and no `null`; 404 `reseller`.
    pub(super) fn switch_reseller(&mut self, caller: &Caller, received: &Received<'_>) -> Result<Reply, Refusal> {
        caller.at_least(AccessLevel::ResellerAdmin)?;
        let reseller = match received.body.get("reseller") {
            Some(Value::Null) => None,
            Some(Value::String(id)) => {
                let id = Id::parse(id.as_bytes()).filter(|id| self.world.resellers.contains_key(id));
                Some(id.ok_or(Refusal::NoSuch(Thing::Reseller))?)
            }
            _ => return Err(Refusal::Unprocessable { property: "reseller", message: "Neither an id nor null" }),
        };
        // The token has just been looked up for `caller`; nothing came between.
        if let Some(session) = self.sessions.held(&caller.token) {
            session.reseller = reseller;
        }
        Ok(Reply::json(json!({"success": true, "reseller": reseller.map(|id| id.to_string())})))
    }
}
