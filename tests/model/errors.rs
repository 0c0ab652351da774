//! Which errors the gateway may return: those with a cause in the API's log while the request ran.

use std::time::Duration;

use telecomx_gateway::api::{AccessLevel, ApiError};

use super::api_model::{ApiReply, ApiRequest, Exchange, Moment, State};
use super::oracle::{CheckResult, Observation, Oracle, ensure, validation_of};
use super::steps::Directive;

/// Longest pause of the circuit breaker, after which it tries the API again.
const BREAKER_PAUSE_MAX: Duration = Duration::from_secs(5);

impl Oracle {
    pub(super) fn check_error(
        &self,
        state: &State,
        observation: &Observation<'_>,
        error: ApiError,
    ) -> CheckResult {
        let Observation { request, began, ended, level, .. } = observation;
        self.count(observation, None, AccessLevel::LOWEST);
        // Exchanges for this caller that ended while the request ran.
        let mut ended_since = state.exchanges.iter().filter(|exchange| {
            let is_for_caller = match exchange.request {
                ApiRequest::Validation { .. } => exchange.request == validation_of(request),
                ApiRequest::Name { token, customer, .. } => {
                    (token, customer) == (request.token, request.customer)
                }
            };
            is_for_caller && exchange.ended.is_some_and(|ended| ended.at >= began.at)
        });
        match error {
            ApiError::InvalidToken => {
                let is_negative = |exchange: &Exchange| {
                    let age = began.at.saturating_duration_since(exchange.began.at);
                    let may_be_cached = age < self.config.identity.negative_ttl;
                    let ended_since = exchange.ended.is_some_and(|ended| ended.at >= began.at);
                    exchange.request == validation_of(request)
                        && exchange.reply == ApiReply::Invalid
                        && (may_be_cached || ended_since)
                };
                let was_rejected = state.exchanges.iter().any(is_negative)
                    || ended_since.any(|exchange| exchange.reply == ApiReply::Unauthorized);
                ensure(was_rejected, || "the API did not reject the token".into())
            }
            ApiError::OnlyIfCached => {
                let is_requested = request.directive == Directive::OnlyIfCached && level.is_some();
                ensure(is_requested, || "only-if-cached was not requested".into())
            }
            // `validateToken` requested a pause.
            ApiError::Unavailable if ended_since.any(|exchange| exchange.requests_pause()) => {
                Ok(())
            }
            ApiError::Unavailable => {
                ensure(state.had_outage(began.at, *ended), || "the circuit was closed".into())?;
                let has_cause = state.exchanges.iter().any(|exchange| {
                    let is_running = exchange.ended.is_none_or(|ended| ended.number > began.number);
                    let is_recent = |ended: Moment| {
                        exchange.is_unreachable() && ended.at + BREAKER_PAUSE_MAX >= began.at
                    };
                    is_running || exchange.ended.is_some_and(is_recent)
                });
                ensure(has_cause, || "the circuit was open for too long".into())
            }
            ApiError::GatewayTimeout => {
                let timed_out = ended_since.any(|exchange| exchange.reply == ApiReply::Nothing);
                ensure(timed_out, || "no exchange timed out".into())
            }
            ApiError::BadGateway | ApiError::InvalidResponse => {
                let has_failed = |exchange: &Exchange| match (exchange.request, exchange.reply) {
                    (_, ApiReply::Nothing) => true,
                    (ApiRequest::Validation { .. }, reply) => {
                        matches!(reply, ApiReply::Failure(_) | ApiReply::Garbage)
                    }
                    (ApiRequest::Name { .. }, _) => false,
                };
                ensure(ended_since.any(has_failed), || "no exchange failed".into())
            }
            ApiError::RedactionFailed => {
                let is_garbled = ended_since.any(|exchange| exchange.reply == ApiReply::Garbage);
                let is_redacted = *level < Some(AccessLevel::Reseller);
                ensure(is_garbled && is_redacted, || "no reply was garbled".into())
            }
            _ => Err(format!("unexpected error: {error:?}")),
        }
    }
}
