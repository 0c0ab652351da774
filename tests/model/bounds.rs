//! For how long what the API said may be given, by the configuration and its own `Cache-Control`.

use std::time::Duration;

use telecomx_gateway::config;

use super::world::{Control, Exchange, Said, State};

/// Fresh, and how much longer while it is revalidated, and while the API fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    pub fresh: Duration,
    pub while_revalidating: Duration,
    pub if_error: Duration,
}

/// Those of what was said there; `None`: it may not be stored. Several, where the API says that what is stored still holds and
/// nothing of how long: then what was said before holds too, and which that was depends on what was stored.
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
