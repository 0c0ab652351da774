//! Identities in the shared tier. Only valid tokens are shared: each gateway asks the API itself
//! whether a token is invalid.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::encoding::StoredIdentity;
use super::tier::{KeyDeriver, Kind, ReadTimes, Rejection, Tier, TierKey, Verdict, WriteLease};
use crate::api::Identity;
use crate::cache::CallerId;
use crate::clock;
use crate::cluster::change_index::Subject;

impl KeyDeriver {
    /// The key of an identity: of a token and, if the API receives it, the client's address.
    pub fn identity(&self, caller: &CallerId, address: Option<IpAddr>) -> TierKey {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        self.derive(Kind::Identity, &[caller.as_bytes(), address.as_bytes()])
    }
}

/// How long a validation may be used.
#[derive(Clone, Copy, Debug)]
pub struct IdentityTtl {
    /// Without asking the API.
    pub fresh: Duration,
    /// While the API cannot be reached.
    pub max: Duration,
}

/// Decides whether a decrypted value may be used. `generations_of` takes the generations of the
/// identity before known changes are checked, so that a later change is detected by them.
pub fn evaluate_identity<G>(
    tier: &Tier,
    caller: &CallerId,
    ttl: IdentityTtl,
    value: &[u8],
    read: ReadTimes,
    generations_of: impl FnOnce(&Identity) -> G,
) -> Verdict<(Identity, Instant, G)> {
    let Some(StoredIdentity { origin, identity }) = StoredIdentity::from_bytes(value) else {
        return Verdict::Rejected(Rejection::Malformed);
    };
    let generations = generations_of(&identity);
    let subject = Subject { customer: None, caller, employee: &identity.employee };
    if !tier.change_index().is_current(origin.position, subject) {
        return Verdict::Rejected(Rejection::Changed);
    }
    let Some(age) = read.server.since(origin.requested_at) else {
        return Verdict::Rejected(Rejection::Malformed);
    };
    let Some(requested_at) = read.local.checked_sub(age) else {
        return Verdict::Rejected(Rejection::Expired);
    };
    let age = clock::now().saturating_duration_since(requested_at);
    let found = (identity, requested_at, generations);
    match age {
        age if age < ttl.fresh => Verdict::Fresh(found),
        age if age < ttl.max => Verdict::Stale(found),
        _ => Verdict::Rejected(Rejection::Expired),
    }
}

impl WriteLease {
    /// Stores an identity that was requested from the API after the lease began.
    pub fn put_identity(self, identity: &Identity, ttl: IdentityTtl) {
        let stored = StoredIdentity { origin: self.origin, identity: identity.clone() };
        self.put(move || stored.to_bytes(), ttl.max);
    }
}
