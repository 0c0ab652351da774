//! How long a response of the API may be served, by the configuration and its `Cache-Control`.

use std::time::Duration;

use telecomx_gateway::config;

use super::world::{Control, Exchange, Said, State};

/// The time for which a response is fresh, and how much longer it may be served stale.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    pub fresh: Duration,
    pub while_revalidating: Duration,
    pub if_error: Duration,
}

/// Returns the bounds of an exchange; `None`: it may not be stored. Several for a 304 without a
/// lifetime: then the earlier lifetime still applies, and which one depends on the stored entry.
pub fn bounds(config: &config::Cache, state: &State, word: &Exchange) -> Vec<Option<Bounds>> {
    let Said::Unchanged { version, control: Control::Nothing } = word.said else { return vec![said(config, word)] };
    let before = state.exchanges.iter().filter(|before| {
        let same = match before.said {
            Said::Document { version: of, .. } => of == version,
            Said::Unchanged { version: of, control } => of == version && control != Control::Nothing,
            _ => false,
        };
        same && before.asked == word.asked && before.ended.is_some_and(|over| over.number < word.began.number)
    });
    before.map(|before| said(config, before)).filter(Option::is_some).collect()
}

fn said(config: &config::Cache, word: &Exchange) -> Option<Bounds> {
    let (stale, if_error, none) = (config.stale_while_revalidate, config.stale_if_error, Duration::ZERO);
    let (fresh, while_revalidating, if_error) = match word.said {
        Said::Document { control, .. } | Said::Unchanged { control, .. } => match control {
            Control::Nothing => (config.ttl, stale, if_error),
            Control::NoStore => return None,
            Control::MaxAge(seconds) => (config.ttl.min(Duration::from_secs(seconds)), stale, if_error),
            Control::MustRevalidate => (config.ttl, none, none),
        },
        Said::No(404) => (config.not_found_ttl, none, none),
        Said::No(_) => (config.forbidden_ttl, none, none),
        _ => return None,
    };
    (!fresh.is_zero()).then_some(Bounds { fresh, while_revalidating, if_error })
}
