//! Audit lines: one for each request of an operator that changes something, permitted or refused.
//!
//! They have the target `audit`, which no log level filters and which the log writer does not drop.

use http::StatusCode;

use super::request::{Requester, Resource};
use crate::api::CustomerId;

/// Writes the audit line of a request after its outcome is known, if it is one that changes
/// something. Its method is one that the resource allows.
pub fn write(resource: &Resource<'_>, requester: Requester<'_>, status: StatusCode) {
    let Some(Change { action, scope, id }) = Change::find(resource) else { return };
    let (outcome, status) =
        (if status.is_success() { "permitted" } else { "refused" }, status.as_u16());
    let Requester { address, request_id } = requester;
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "audit",
                { action,
                outcome,
                scope,
                id,
                client.address = %address,
                http.request.id = request_id,
                http.response.status_code = status },
                "admin request"
            )
        };
    }
    if outcome == "permitted" { line!(info) } else { line!(warn) }
}

struct Change<'a> {
    action: &'static str,
    scope: Option<&'static str>,
    /// Omitted unless it is a valid id: a mistaken path may contain anything, even the token.
    id: Option<&'a str>,
}

impl<'a> Change<'a> {
    fn find(resource: &Resource<'a>) -> Option<Self> {
        let purge = |scope, id: Option<&'a str>| Change { action: "purge", scope: Some(scope), id };
        Some(match *resource {
            Resource::Cache => purge("all", None),
            Resource::Customer(id) => purge("customer", is_id(id).then_some(id)),
            Resource::Employee(id) => purge("employee", is_id(id).then_some(id)),
            Resource::Reload => Change { action: "reload", scope: None, id: None },
            Resource::Live
            | Resource::Ready
            | Resource::Page
            | Resource::Metrics
            | Resource::Stats
            | Resource::History
            | Resource::Config => return None,
        })
    }
}

/// Whether this is the id of a customer or an employee, which have the same form.
fn is_id(text: &str) -> bool {
    CustomerId::parse(text.as_bytes()).is_some()
}
