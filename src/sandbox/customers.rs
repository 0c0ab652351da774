//! `/customer`: reading customers, secrets included, and changing them.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::change_log::{ChangeKind, Subject};
use super::data::{Customer, Id};
use super::request::ApiRequest;
use super::response::{ErrorResponse, Resource, Success};
use super::state::{Caller, State};
use crate::api::AccessLevel;

/// The members of `GET /customer/{id}/name`; they keep the order of the document.
const NAME_MEMBERS: [&str; 5] = ["_id", "name", "parentReseller", "features", "integrations"];

/// Bounds a document that grows with each update. Documents of the API have a few KiB.
const MAX_DOCUMENT_BYTES: usize = 64 << 10;

impl State {
    pub(super) fn customer_name(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Success, ErrorResponse> {
        let (_, customer) = self.visible_customer(caller, id, AccessLevel::Viewer)?;
        Ok(Success::json(pick_members(customer, &NAME_MEMBERS)))
    }

    pub(super) fn customer(&self, caller: &Caller, id: &str) -> Result<Success, ErrorResponse> {
        let (_, customer) = self.visible_customer(caller, id, AccessLevel::Viewer)?;
        Ok(Success::json(Value::Object(customer.document.clone())))
    }

    /// Lists the customers that the caller sees: whole documents, or ids and names.
    pub(super) fn customers(&self, caller: &Caller, full: bool) -> Success {
        let seen = self
            .dataset
            .customers
            .iter()
            .filter(|(id, customer)| caller.sees(**id, customer.reseller));
        let shown = seen.map(|(_, customer)| match full {
            true => Value::Object(customer.document.clone()),
            false => pick_members(customer, &["_id", "name"]),
        });
        Success::json(json!({"customers": shown.collect::<Vec<_>>()}))
    }

    /// The only endpoint whose response is not JSON, so that frontends can test a download.
    pub(super) fn export_customer(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Success, ErrorResponse> {
        let (_, customer) = self.visible_customer(caller, id, AccessLevel::Viewer)?;
        let columns = ["_id", "name", "parentReseller", "email", "phone", "vat"];
        let row =
            columns.map(|column| customer.document.get(column).map_or(String::new(), csv_field));
        Ok(Success::csv(format!("{}\r\n{}\r\n", columns.join(","), row.join(","))))
    }

    /// Merges the body into the document: objects are merged at any depth; any other value, `null`
    /// included, replaces the old one. A `token` in the body is the caller's credential and is not
    /// stored.
    ///
    /// Errors: 403 below `OWNER`, and below `ADMIN` for another `parentReseller`; 422 for a value
    /// of the wrong kind, and for a document that becomes too large.
    pub(super) fn update_customer(
        &mut self,
        caller: &Caller,
        id: &str,
        request: &ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let (id, customer) = self.visible_customer(caller, id, AccessLevel::Owner)?;
        let mut document = customer.document.clone();
        let mut patch = request.body.clone();
        patch.shift_remove("token");
        merge(&mut document, patch);
        validate(&document)?;
        if document.get("_id") != customer.document.get("_id") {
            return Err(ErrorResponse::Unprocessable {
                property: "_id",
                message: "The id cannot be changed",
            });
        }
        let reseller = document.get("parentReseller").and_then(Value::as_str);
        let reseller = reseller.and_then(|id| Id::parse(id.as_bytes()));
        let known = reseller.filter(|id| self.dataset.resellers.contains_key(id));
        let reseller = known.ok_or(ErrorResponse::Unprocessable {
            property: "parentReseller",
            message: "No such reseller",
        })?;
        if reseller != customer.reseller {
            caller.at_least(AccessLevel::Admin)?;
        }
        let reply = Success::json(Value::Object(document.clone()));
        self.dataset.customers.insert(id, Customer { reseller, document });
        self.log.record(Subject::Customer, id, id, reseller, ChangeKind::Update, now);
        Ok(reply)
    }

    /// Deletes the customer with its employees and their tokens.
    ///
    /// Errors: 403 below `RESELLER`; 409 for the customer that the caller belongs to.
    pub(super) fn delete_customer(
        &mut self,
        caller: &Caller,
        id: &str,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        let (id, _) = self.visible_customer(caller, id, AccessLevel::Reseller)?;
        if id == caller.customer {
            return Err(ErrorResponse::Conflict("The caller belongs to this customer"));
        }
        let customer = self
            .dataset
            .customers
            .remove(&id)
            .ok_or(ErrorResponse::NotFound(Resource::Customer))?;
        let removed: Vec<Id> = self
            .dataset
            .employees
            .extract_if(.., |_, e| e.customer == id)
            .map(|(id, _)| id)
            .collect();
        removed.into_iter().for_each(|employee| self.sessions.remove_all_of(employee));
        self.log.record(Subject::Customer, id, id, customer.reseller, ChangeKind::Delete, now);
        Ok(Success::json(json!({"success": true})))
    }
}

fn pick_members(customer: &Customer, members: &[&str]) -> Value {
    let kept = customer.document.iter().filter(|(name, _)| members.contains(&name.as_str()));
    Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Merges recursively. serde_json limits both documents to a depth of 128.
fn merge(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match (document.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, value) => _ = document.insert(name, value),
        }
    }
}

/// Errors: 422 for a member of the wrong kind.
fn validate(document: &Map<String, Value>) -> Result<(), ErrorResponse> {
    let invalid = |property, message| Err(ErrorResponse::Unprocessable { property, message });
    if document.get("name").and_then(Value::as_str).is_none_or(|name| name.trim().is_empty()) {
        return invalid("name", "Expected a string that is not empty");
    }
    let are_strings =
        |features: &Value| features.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    if !document.get("features").is_none_or(are_strings) {
        return invalid("features", "Expected an array of strings");
    }
    if !document.get("integrations").is_none_or(Value::is_object) {
        return invalid("integrations", "Expected an object");
    }
    // Serializing a map of JSON values with string keys cannot fail.
    if serde_json::to_vec(document).map_or(usize::MAX, |bytes| bytes.len()) > MAX_DOCUMENT_BYTES {
        return invalid("document", "The customer would exceed 64 KiB");
    }
    Ok(())
}

/// A CSV field (RFC 4180), always quoted.
fn csv_field(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("\"{}\"", text.replace('"', "\"\""))
}
