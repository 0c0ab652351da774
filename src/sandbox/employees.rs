//! `/employee`: changes of employees and their machine tokens.
//!
//! Nobody touches an employee of a higher level than their own, or lifts one above it.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::answer::{Refusal, Reply, Thing};
use super::changelog::{Change, Subject};
use super::data::{Employee, Id};
use super::received::Received;
use super::session::{Life, Session};
use super::state::{Caller, State};
use crate::api::AccessLevel;

/// The longest name of an employee, in bytes.
const LONGEST_NAME: usize = 200;

/// What rights are needed over an employee.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// `OWNER` and up.
    Manage,
    /// As `Manage`, or the employee itself.
    ManageOrSelf,
}

impl State {
    /// Changes `name`, `language` and `accessLevel`; other properties are left alone.
    ///
    /// Errors: 404 `employee`, 403 `access_denied`, 422 for a value of the wrong kind.
    pub(super) fn update_employee(
        &mut self,
        caller: &Caller,
        id: &str,
        received: &Received<'_>,
        now: SystemTime,
    ) -> Result<Reply, Refusal> {
        let (id, reseller) = self.governed(caller, id, Rights::Manage)?;
        let text = |property, message| match received.body.get(property) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= LONGEST_NAME => Ok(Some(text.as_str())),
            Some(_) => Err(Refusal::Unprocessable { property, message }),
        };
        let name = text("name", "A name is a string of 1 to 200 bytes")?;
        let language = text("language", "A language is a string of 1 to 200 bytes")?;
        let wrong_level = Refusal::Unprocessable { property: "accessLevel", message: "No such access level" };
        let level = match text("accessLevel", "No such access level")? {
            Some(word) => Some(word.parse::<AccessLevel>().map_err(|_| wrong_level)?),
            None => None,
        };
        if level.is_some_and(|level| level > caller.level) {
            return Err(Refusal::AccessDenied);
        }
        let employee = self.world.employees.get_mut(&id).ok_or(Refusal::NoSuch(Thing::Employee))?;
        name.inspect(|name| employee.name = (*name).to_owned());
        language.inspect(|language| employee.language = (*language).to_owned());
        level.inspect(|level| employee.level = *level);
        let reply = Reply::json(description(id, employee));
        self.log.note(Subject::Employee, id, employee.customer, reseller, Change::Update, now);
        Ok(reply)
    }

    /// Deletes the employee with all its tokens.
    ///
    /// Errors: 404 `employee`, 403 `access_denied`, 409 for the caller itself.
    pub(super) fn delete_employee(&mut self, caller: &Caller, id: &str, now: SystemTime) -> Result<Reply, Refusal> {
        let (id, reseller) = self.governed(caller, id, Rights::Manage)?;
        if id == caller.employee {
            return Err(Refusal::Conflict("The caller is this employee"));
        }
        let employee = self.world.employees.remove(&id).ok_or(Refusal::NoSuch(Thing::Employee))?;
        self.sessions.end_all_of(id);
        self.log.note(Subject::Employee, id, employee.customer, reseller, Change::Delete, now);
        Ok(Reply::json(json!({"success": true})))
    }

    /// A token for a machine: persistent, from any address, with the employee's own access.
    pub(super) fn make_token(&mut self, caller: &Caller, id: &str, now: SystemTime) -> Result<Reply, Refusal> {
        let (employee, _) = self.governed(caller, id, Rights::ManageOrSelf)?;
        let session = Session { employee, life: Life::Persistent, address: None, reseller: None };
        let token = self.sessions.open(session, now)?;
        Ok(Reply::json(json!({"success": true, "token": token})))
    }

    /// Ends one token of the employee's, of whatever kind.
    ///
    /// Errors: 404 `employee`, 404 `token`, 403 `access_denied`.
    pub(super) fn delete_token(&mut self, caller: &Caller, id: &str, token: &str) -> Result<Reply, Refusal> {
        let (employee, _) = self.governed(caller, id, Rights::ManageOrSelf)?;
        if self.sessions.end(employee, token) {
            Ok(Reply::json(json!({"success": true})))
        } else {
            Err(Refusal::NoSuch(Thing::Token))
        }
    }

    /// An employee over whom the caller has rights, and the reseller of the employee's customer.
    fn governed(&self, caller: &Caller, id: &str, rights: Rights) -> Result<(Id, Id), Refusal> {
        let not_found = Refusal::NoSuch(Thing::Employee);
        let id = Id::parse(id.as_bytes()).ok_or(not_found)?;
        let employee = self.world.employees.get(&id).ok_or(not_found)?;
        let customer = self.world.customers.get(&employee.customer).ok_or(not_found)?;
        if rights == Rights::ManageOrSelf && id == caller.employee {
            return Ok((id, customer.reseller));
        }
        caller.at_least(AccessLevel::Owner)?;
        caller.at_least(employee.level)?;
        if caller.sees(employee.customer, customer.reseller) {
            Ok((id, customer.reseller))
        } else {
            Err(Refusal::AccessDenied)
        }
    }
}

fn description(id: Id, employee: &Employee) -> Value {
    let Employee { customer, login, password: _, name, language, level } = employee;
    json!({
        "_id": id.to_string(),
        "customer": customer.to_string(),
        "username": login,
        "name": name,
        "language": language,
        "accessLevel": level.as_str(),
    })
}
