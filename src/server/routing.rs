//! Routing: checks the head of a request and decides whether the gateway responds itself or
//! forwards the request.

use http::{Method, Version};
use http1::RequestHead;

use super::forward::redact_for::RedactRule;
use super::http::request_head::{check_http2, head_refusal};
use super::state::RequestState;
use crate::api::{
    ApiError, Change, CustomerId, NormalPath, Protected, Query, Refusal, changes, credentials_agree,
};
use crate::reply::{is_preflight, origin_of};
use crate::telemetry::{Record, Route};

/// Route of a request.
pub enum RouteTarget {
    CustomerName(CustomerId),
    Preflight,
    /// The changes that the request makes if the API accepts it, and the redaction rule of its
    /// response.
    Forward(Vec<Change>, Option<RedactRule>),
}

impl RequestState {
    /// Checks the head of a request of either protocol and returns its route.
    ///
    /// # Errors
    ///
    /// The gateway refuses the request.
    pub fn route(
        &self,
        request: &RequestHead,
        record: &mut Record,
    ) -> Result<RouteTarget, ApiError> {
        if request.version == Version::HTTP_2
            && let Some(error) = http2_fields::refusal(&request.fields)
        {
            return Err(head_refusal(error));
        }
        if matches!(request.method, Method::TRACE | Method::CONNECT) {
            return Err(ApiError::MethodNotAllowed);
        }
        if request.version == Version::HTTP_2 {
            check_http2(request, self.limits.max_header_bytes)?;
        }
        let path = request.path();
        credentials_agree(&request.fields).map_err(ApiError::from)?;
        if path == "*" && request.method == Method::OPTIONS {
            record.route = Route::Forward;
            return Ok(RouteTarget::Forward(Vec::new(), None));
        }
        record.route = Route::Blocked;
        let protected = Protected { blocked: &self.blocked, redacted: &self.redacted };
        let path = NormalPath::parse(path, protected).map_err(ApiError::BadRequest)?;
        if self.blocked.iter().any(|pattern| path.is(pattern)) {
            return Err(ApiError::Blocked);
        }
        record.route = Route::Forward;
        record.customer = match path.exact() {
            [root, id, ..] if root == "customer" => CustomerId::parse(id.as_bytes()),
            _ => None,
        };
        let name_of = record.customer.filter(|_| path.exact()[2..] == ["name"]);
        let (changes, rule) =
            (changes(&request.method, &request.fields, &path), self.redact_rule(&path));
        if name_of.is_some() || rule.is_some() || !changes.is_empty() {
            Query::unvalidated(request.query()).validate().map_err(ApiError::BadRequest)?;
        }
        let forward = || RouteTarget::Forward(changes, rule);
        let Some(id) = name_of else { return Ok(forward()) };
        Ok(match request.method {
            Method::GET | Method::HEAD => {
                record.route = Route::CustomerName;
                RouteTarget::CustomerName(id)
            }
            Method::OPTIONS
                if self.gateway.cors.is_on() && is_preflight(&request.method, &request.fields) =>
            {
                record.route = Route::CustomerName;
                RouteTarget::Preflight
            }
            _ => forward(),
        })
    }

    /// Whether a preflight for a path that the gateway refuses is permitted, so that a page can
    /// read the refusal.
    pub fn permits_preflight_of_refused(&self, error: ApiError, request: &RequestHead) -> bool {
        let cors = &self.gateway.cors;
        is_refused_path(error)
            && cors.is_on()
            && is_preflight(&request.method, &request.fields)
            && origin_of(&request.fields).is_some_and(|origin| cors.allows(origin))
    }

    /// Returns the first redaction rule of a path.
    fn redact_rule(&self, path: &NormalPath<'_>) -> Option<RedactRule> {
        let rule = self.redact_rules.iter().find(|rule| path.is(&rule.path))?;
        let is_change_log = path.folded().first().is_some_and(|root| root == "log");
        let policy = if is_change_log { rule.changes.clone() } else { rule.policy.clone() };
        Some(RedactRule { role: rule.role, policy, pass_types: rule.pass_types.clone() })
    }
}

/// Whether an error refuses every request for its path.
const fn is_refused_path(error: ApiError) -> bool {
    matches!(
        error,
        ApiError::Blocked
            | ApiError::BadRequest(
                Refusal::AliasPath | Refusal::BrokenEscape | Refusal::PathTooLong
            )
    )
}
