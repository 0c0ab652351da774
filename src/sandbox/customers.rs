//! `/customer`: what there is about customers, to those who may see it, secrets included; and its changes.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::answer::{Refusal, Reply, Thing};
use super::changelog::{Change, Subject};
use super::data::{Customer, Id};
use super::received::Received;
use super::state::{Caller, State};
use crate::api::AccessLevel;

/// The members that `GET /customer/{id}/name` has, of the document's own order.
const NAME_MEMBERS: [&str; 5] = ["_id", "name", "parentReseller", "features", "integrations"];

/// A bound for a document that grows with every update.
const LARGEST_DOCUMENT: usize = 64 << 10;

impl State {
    pub(super) fn customer_name(&self, caller: &Caller, id: &str) -> Result<Reply, Refusal> {
        let (_, customer) = self.permitted(caller, id, AccessLevel::Viewer)?;
        Ok(Reply::json(only(customer, &NAME_MEMBERS)))
    }

    pub(super) fn customer(&self, caller: &Caller, id: &str) -> Result<Reply, Refusal> {
        let (_, customer) = self.permitted(caller, id, AccessLevel::Viewer)?;
        Ok(Reply::json(Value::Object(customer.document.clone())))
    }

    /// Those that the caller sees, whole or with id and name; none for a level that sees none.
    pub(super) fn customers(&self, caller: &Caller, full: bool) -> Reply {
        let seen = self.world.customers.iter().filter(|(id, customer)| caller.sees(**id, customer.reseller));
        let shown = seen.map(|(_, customer)| match full {
            true => Value::Object(customer.document.clone()),
            false => only(customer, &["_id", "name"]),
        });
        Reply::json(json!({"customers": shown.collect::<Vec<_>>()}))
    }

    /// The one endpoint that answers no JSON.
    pub(super) fn export_customer(&self, caller: &Caller, id: &str) -> Result<Reply, Refusal> {
        let (_, customer) = self.permitted(caller, id, AccessLevel::Viewer)?;
        let columns = ["_id", "name", "parentReseller", "email", "phone", "vat"];
        let row = columns.map(|column| customer.document.get(column).map_or(String::new(), csv_field));
        Ok(Reply::csv(format!("{}\r\n{}\r\n", columns.join(","), row.join(","))))
    }

    /// Merges the body into the document: objects are merged, at any depth; anything else, `null` too, takes the place of
    /// what was there. A `token` of the body is the caller's, not the customer's.
    ///
    /// Errors: 403 below `OWNER`, and below `ADMIN` for another `parentReseller`; 422 for a value of the wrong kind, and
    /// for a document that becomes too large.
    pub(super) fn update_customer(
        &mut self,
        caller: &Caller,
        id: &str,
        received: &Received<'_>,
        now: SystemTime,
    ) -> Result<Reply, Refusal> {
        let (id, customer) = self.permitted(caller, id, AccessLevel::Owner)?;
        let mut document = customer.document.clone();
        let mut patch = received.body.clone();
        patch.shift_remove("token");
        merge(&mut document, patch);
        check(&document)?;
        if document.get("_id") != customer.document.get("_id") {
            return Err(Refusal::Unprocessable { property: "_id", message: "An id does not change" });
        }
        let reseller = document.get("parentReseller").and_then(Value::as_str);
        let reseller = reseller.and_then(|id| Id::parse(id.as_bytes()));
        let known = reseller.filter(|id| self.world.resellers.contains_key(id));
        let reseller =
            known.ok_or(Refusal::Unprocessable { property: "parentReseller", message: "No such reseller" })?;
        if reseller != customer.reseller {
            caller.at_least(AccessLevel::Admin)?;
        }
        let reply = Reply::json(Value::Object(document.clone()));
        self.world.customers.insert(id, Customer { reseller, document });
        self.log.note(Subject::Customer, id, id, reseller, Change::Update, now);
        Ok(reply)
    }

    /// Deletes the customer with its employees and their tokens.
    ///
    /// Errors: 403 below `RESELLER`; 409 for the customer that the caller belongs to.
    pub(super) fn delete_customer(&mut self, caller: &Caller, id: &str, now: SystemTime) -> Result<Reply, Refusal> {
        let (id, _) = self.permitted(caller, id, AccessLevel::Reseller)?;
        if id == caller.customer {
            return Err(Refusal::Conflict("The caller belongs to this customer"));
        }
        let customer = self.world.customers.remove(&id).ok_or(Refusal::NoSuch(Thing::Customer))?;
        let gone: Vec<Id> = self.world.employees.extract_if(.., |_, e| e.customer == id).map(|(id, _)| id).collect();
        gone.into_iter().for_each(|employee| self.sessions.end_all_of(employee));
        self.log.note(Subject::Customer, id, id, customer.reseller, Change::Delete, now);
        Ok(Reply::json(json!({"success": true})))
    }
}

fn only(customer: &Customer, members: &[&str]) -> Value {
    let kept = customer.document.iter().filter(|(name, _)| members.contains(&name.as_str()));
    Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// No deeper than the deeper of the two, and serde_json reads no document deeper than 128.
fn merge(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match (document.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, value) => _ = document.insert(name, value),
        }
    }
}

/// Errors: 422 for a member of the wrong kind.
fn check(document: &Map<String, Value>) -> Result<(), Refusal> {
    let wrong = |property, message| Err(Refusal::Unprocessable { property, message });
    if document.get("name").and_then(Value::as_str).is_none_or(|name| name.trim().is_empty()) {
        return wrong("name", "A name is a string that is not empty");
    }
    let are_strings = |features: &Value| features.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    if !document.get("features").is_none_or(are_strings) {
        return wrong("features", "Features are an array of strings");
    }
    if !document.get("integrations").is_none_or(Value::is_object) {
        return wrong("integrations", "Integrations are an object");
    }
    // A map of JSON values with string keys is always written.
    if serde_json::to_vec(document).map_or(usize::MAX, |bytes| bytes.len()) > LARGEST_DOCUMENT {
        return wrong("document", "The customer would become larger than the sandbox keeps");
    }
    Ok(())
}

/// A field as RFC 4180 has it, always quoted.
fn csv_field(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("\"{}\"", text.replace('"', "\"\""))
}
