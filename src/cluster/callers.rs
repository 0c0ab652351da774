//! Identities in the shared tier: the API's word for a token that is valid. That one is not is every gateway's own to ask.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::ledger::Concerned;
use super::tier::{Judged, Kind, Name, Names, Seen, Tier, Void, Writing};
use super::wire::StoredIdentity;
use crate::api::Identity;
use crate::cache::CallerId;
use crate::clock;

impl Names {
    /// The name of an identity: of a token and, where the API is told of it, an address.
    pub fn identity(&self, caller: &CallerId, address: Option<IpAddr>) -> Name {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        self.of(Kind::Identity, &[caller.as_bytes(), address.as_bytes()])
    }
}

/// For how long the API's word counts.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    /// Without asking again.
    pub fresh: Duration,
    /// While the API cannot be asked.
    pub longest: Duration,
}

/// What is to be thought of a value that was opened. `noted`: what the identity is compared by in memory, taken here, before
/// the changes that are known are looked at: a later one is seen by it.
pub fn judge<M>(
    tier: &Tier,
    caller: &CallerId,
    trust: Trust,
    value: &[u8],
    seen: Seen,
    noted: impl FnOnce(&Identity) -> M,
) -> Judged<(Identity, Instant, M)> {
    let Some(StoredIdentity { origin, identity }) = StoredIdentity::from_bytes(value) else {
        return Judged::Void(Void::Odd);
    };
    let marks = noted(&identity);
    let concerned = Concerned { customer: None, caller, employee: &identity.employee };
    if !tier.ledger().holds(origin.position, concerned) {
        return Judged::Void(Void::Changed);
    }
    let Some(age) = seen.server.since(origin.asked_at) else { return Judged::Void(Void::Odd) };
    let Some(asked_at) = seen.sent.checked_sub(age) else { return Judged::Void(Void::Expired) };
    let age = clock::now().saturating_duration_since(asked_at);
    let known = (identity, asked_at, marks);
    match age {
        age if age < trust.fresh => Judged::Usable(known),
        age if age < trust.longest => Judged::Stale(known),
        _ => Judged::Void(Void::Expired),
    }
}

impl Writing {
    /// Puts an identity there that the API was asked for after this began.
    pub fn put_identity(self, identity: &Identity, trust: Trust) {
        let stored = StoredIdentity { origin: self.origin, identity: identity.clone() };
        self.put(move || stored.to_bytes(), trust.longest);
    }
}
