//! The errors that the gateway may return: each needs a cause while the request ran.

use std::time::Duration;

use telecomx_gateway::api::{AccessLevel, ApiError};

use super::judge::{Answered, Judge, Verdict, asked_who, ensure};
use super::steps::Wants;
use super::world::{Asked, Exchange, Moment, Said, State};

/// The return of the API is noticed within this time.
const LONGEST_OPEN: Duration = Duration::from_secs(5);

impl Judge {
    pub(super) fn error(&self, state: &State, answered: &Answered<'_>, error: ApiError) -> Verdict {
        let Answered { ask, began, ended, level, .. } = answered;
        self.count(answered, None, AccessLevel::LOWEST);
        // Exchanges about this caller that ended while the request ran.
        let mut ended_since = state.exchanges.iter().filter(|exchange| {
            let about = match exchange.asked {
                Asked::Validation { .. } => exchange.asked == asked_who(ask),
                Asked::Name { token, customer, .. } => (token, customer) == (ask.token, ask.customer),
            };
            about && exchange.ended.is_some_and(|over| over.at >= began.at)
        });
        match error {
            ApiError::InvalidToken => {
                let negative = |exchange: &Exchange| {
                    let remembered =
                        began.at.saturating_duration_since(exchange.began.at) < self.config.identity.negative_ttl;
                    let fresh = remembered || exchange.ended.is_some_and(|over| over.at >= began.at);
                    exchange.asked == asked_who(ask) && exchange.said == Said::Invalid && fresh
                };
                let told = state.exchanges.iter().any(negative)
                    || ended_since.any(|exchange| exchange.said == Said::Unauthorized);
                ensure(told, || "no exchange found the token invalid".into())
            }
            ApiError::OnlyIfCached => ensure(ask.wants == Wants::OnlyIfCached && level.is_some(), || {
                "only-if-cached was not requested".into()
            }),
            // `validateToken` requested a pause.
            ApiError::Unavailable if ended_since.any(|exchange| exchange.asks_for_a_pause()) => Ok(()),
            ApiError::Unavailable => {
                ensure(state.outage(began.at, *ended), || "the circuit was closed".into())?;
                let known = state.exchanges.iter().any(|exchange| {
                    let under_way = exchange.ended.is_none_or(|over| over.number > began.number);
                    let recent = |over: Moment| exchange.is_unreachable() && over.at + LONGEST_OPEN >= began.at;
                    under_way || exchange.ended.is_some_and(recent)
                });
                ensure(known, || "open for too long".into())
            }
            ApiError::GatewayTimeout => {
                ensure(ended_since.any(|exchange| exchange.said == Said::Nothing), || "nothing was slow".into())
            }
            ApiError::BadGateway | ApiError::InvalidResponse => {
                let fails = |exchange: &Exchange| match (exchange.asked, exchange.said) {
                    (_, Said::Nothing) => true,
                    (Asked::Validation { .. }, said) => matches!(said, Said::Trouble(_) | Said::Garbage),
                    (Asked::Name { .. }, _) => false,
                };
                ensure(ended_since.any(fails), || "nothing failed".into())
            }
            ApiError::RedactionFailed => {
                let garbled = ended_since.any(|exchange| exchange.said == Said::Garbage);
                ensure(garbled && *level < Some(AccessLevel::Reseller), || "no document was malformed".into())
            }
            _ => Err(format!("an unexpected error: {error:?}")),
        }
    }
}
