//! `/employee`: changes of employees and their machine tokens.
//!
//! A caller may not change an employee above its own access level, nor raise one above it.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::change_log::{ChangeKind, Subject};
use super::data::{Employee, Id};
use super::request::ApiRequest;
use super::response::{ErrorResponse, Resource, Success};
use super::session::{Expiry, Session};
use super::state::{Caller, State};
use crate::api::AccessLevel;

const MAX_NAME_BYTES: usize = 200;

/// The right that a caller needs over an employee.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RequiredRight {
    /// `OWNER` and up.
    Manage,
    /// `OWNER` and up, or the employee itself.
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
        request: &ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let (id, reseller) = self.managed_employee(caller, id, RequiredRight::Manage)?;
        let text = |property, message| match request.body.get(property) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= MAX_NAME_BYTES => {
                Ok(Some(text.as_str()))
            }
            Some(_) => Err(ErrorResponse::Unprocessable { property, message }),
        };
        let name = text("name", "A name is a string of 1 to 200 bytes")?;
        let language = text("language", "A language is a string of 1 to 200 bytes")?;
        let wrong_level = ErrorResponse::Unprocessable {
            property: "accessLevel",
            message: "No such access level",
        };
        let level = match text("accessLevel", "No such access level")? {
            Some(word) => Some(word.parse::<AccessLevel>().map_err(|_| wrong_level)?),
            None => None,
        };
        if level.is_some_and(|level| level > caller.level) {
            return Err(ErrorResponse::AccessDenied);
        }
        let employee = self
            .dataset
            .employees
            .get_mut(&id)
            .ok_or(ErrorResponse::NotFound(Resource::Employee))?;
        if let Some(name) = name {
            employee.name = name.to_owned();
        }
        if let Some(language) = language {
            employee.language = language.to_owned();
        }
        if let Some(level) = level {
            employee.level = level;
        }
        let reply = Success::json(description(id, employee));
        self.log.record(
            Subject::Employee,
            id,
            employee.customer,
            reseller,
            ChangeKind::Update,
            now,
        );
        Ok(reply)
    }

    /// Deletes the employee with all its tokens.
    ///
    /// Errors: 404 `employee`, 403 `access_denied`, 409 for the caller itself.
    pub(super) fn delete_employee(
        &mut self,
        caller: &Caller,
        id: &str,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let (id, reseller) = self.managed_employee(caller, id, RequiredRight::Manage)?;
        if id == caller.employee {
            return Err(ErrorResponse::Conflict("The caller is this employee"));
        }
        let employee = self
            .dataset
            .employees
            .remove(&id)
            .ok_or(ErrorResponse::NotFound(Resource::Employee))?;
        self.sessions.remove_all_of(id);
        self.log.record(
            Subject::Employee,
            id,
            employee.customer,
            reseller,
            ChangeKind::Delete,
            now,
        );
        Ok(Success::json(json!({"success": true})))
    }

    /// Creates a machine token: persistent, valid from any address, with the access level of the
    /// employee.
    pub(super) fn create_token(
        &mut self,
        caller: &Caller,
        id: &str,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let (employee, _) = self.managed_employee(caller, id, RequiredRight::ManageOrSelf)?;
        let session = Session { employee, expiry: Expiry::Never, address: None, reseller: None };
        let token = self.sessions.create(session, now)?;
        Ok(Success::json(json!({"success": true, "token": token})))
    }

    /// Deletes one token of the employee, of any kind.
    ///
    /// Errors: 404 `employee`, 404 `token`, 403 `access_denied`.
    pub(super) fn delete_token(
        &mut self,
        caller: &Caller,
        id: &str,
        token: &str,
    ) -> Result<Success, ErrorResponse> {
        let (employee, _) = self.managed_employee(caller, id, RequiredRight::ManageOrSelf)?;
        if self.sessions.remove(employee, token) {
            Ok(Success::json(json!({"success": true})))
        } else {
            Err(ErrorResponse::NotFound(Resource::Token))
        }
    }

    /// Finds an employee that the caller may change; returns its id and the reseller of its
    /// customer.
    ///
    /// Errors: 404 `employee`, 403 `access_denied`.
    fn managed_employee(
        &self,
        caller: &Caller,
        id: &str,
        required: RequiredRight,
    ) -> Result<(Id, Id), ErrorResponse> {
        let not_found = ErrorResponse::NotFound(Resource::Employee);
        let id = Id::parse(id.as_bytes()).ok_or(not_found)?;
        let employee = self.dataset.employees.get(&id).ok_or(not_found)?;
        let customer = self.dataset.customers.get(&employee.customer).ok_or(not_found)?;
        if required == RequiredRight::ManageOrSelf && id == caller.employee {
            return Ok((id, customer.reseller));
        }
        caller.at_least(AccessLevel::Owner)?;
        caller.at_least(employee.level)?;
        if caller.sees(employee.customer, customer.reseller) {
            Ok((id, customer.reseller))
        } else {
            Err(ErrorResponse::AccessDenied)
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
