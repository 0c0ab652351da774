//! How long a reply of the API may be served, by the configuration and its `Cache-Control`.

use std::time::Duration;

use telecomx_gateway::config;

use super::api_model::{ApiReply, CacheDirective, Exchange, State};

/// The lifetime of a reply.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    pub fresh: Duration,
    /// How much longer while it is revalidated.
    pub while_revalidating: Duration,
    /// How much longer while the API fails.
    pub if_error: Duration,
}

/// The possible bounds of an exchange's reply; `None` if it must not be stored. There are several
/// if the API confirmed a stored response (304) without a lifetime: then an earlier one holds, and
/// which one that was depends on what was stored.
pub fn bounds(config: &config::Cache, state: &State, exchange: &Exchange) -> Vec<Option<Bounds>> {
    let unlimited = CacheDirective::Absent;
    let ApiReply::Unchanged { version, directive } = exchange.reply else {
        return vec![bounds_of(config, exchange)];
    };
    if directive != unlimited {
        return vec![bounds_of(config, exchange)];
    }
    let earlier = state.exchanges.iter().filter(|before| {
        let is_same_version = match before.reply {
            ApiReply::Document { version: of, .. } => of == version,
            ApiReply::Unchanged { version: of, directive } => {
                of == version && directive != unlimited
            }
            _ => false,
        };
        is_same_version
            && before.request == exchange.request
            && before.ended.is_some_and(|ended| ended.number < exchange.began.number)
    });
    earlier.map(|before| bounds_of(config, before)).filter(Option::is_some).collect()
}

fn bounds_of(config: &config::Cache, exchange: &Exchange) -> Option<Bounds> {
    let (stale, if_error) = (config.stale_while_revalidate, config.stale_if_error);
    let none = Duration::ZERO;
    let (fresh, while_revalidating, if_error) = match exchange.reply {
        ApiReply::Document { directive, .. } | ApiReply::Unchanged { directive, .. } => {
            match directive {
                CacheDirective::Absent => (config.ttl, stale, if_error),
                CacheDirective::NoStore => return None,
                CacheDirective::MaxAge(seconds) => {
                    (config.ttl.min(Duration::from_secs(seconds)), stale, if_error)
                }
                CacheDirective::MustRevalidate => (config.ttl, none, none),
            }
        }
        ApiReply::Denied(404) => (config.not_found_ttl, none, none),
        ApiReply::Denied(_) => (config.forbidden_ttl, none, none),
        _ => return None,
    };
    (!fresh.is_zero()).then_some(Bounds { fresh, while_revalidating, if_error })
}
