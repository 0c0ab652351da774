//! Answers in the shared tier: what they are named, what is said of them, and how one that comes back is made an entry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::ledger::Concerned;
use super::tier::{Judged, Kind, Name, Names, Seen, Tier, Void, Writing};
use super::wire::StoredAnswer;
use crate::api::EmployeeId;
use crate::cache::{Cache, Entry, EntryGenerations, FetchTime, Freshness, Key, Lifetime};
use crate::clock;
use crate::config;
use crate::redact::{Kind as DocumentKind, Policy, redact};
use crate::reply::{FieldFilter, Representation};

/// What an answer of the tier is judged by.
pub struct Wanted<'a> {
    pub key: &'a Key,
    pub employee: &'a EmployeeId,
    /// Noted before the tier is asked: what changes from then on is seen by them.
    pub generations: EntryGenerations,
    pub policy: &'a Policy,
    pub config: &'a config::Cache,
    /// Fields of the API's that pass here.
    pub passed: &'a FieldFilter,
    /// Where an equal answer may be stored already.
    pub cache: &'a Cache,
}

impl Names {
    /// The name of an answer. Another caller, role, customer or policy is another name.
    pub fn answer(&self, key: &Key) -> Name {
        let Key { caller, level, customer, policy } = key;
        let parts: [&[u8]; 4] =
            [caller.as_bytes(), level.as_str().as_bytes(), customer.as_bytes(), &policy.to_le_bytes()];
        self.of(Kind::Answer, &parts)
    }
}

impl Wanted<'_> {
    /// What is to be thought of a value that was opened.
    pub fn judge(&self, tier: &Tier, value: &[u8], seen: Seen) -> Judged<Arc<Entry>> {
        let Some(stored) = StoredAnswer::from_bytes(value) else { return Judged::Void(Void::Odd) };
        let Key { caller, customer, .. } = self.key;
        let concerned = Concerned { customer: Some(customer), caller, employee: self.employee };
        if !tier.ledger().holds(stored.origin.position, concerned) {
            return Judged::Void(Void::Changed);
        }
        match self.entry(stored, seen) {
            Ok(entry) => match entry.freshness(clock::now()) {
                Freshness::Fresh => Judged::Usable(Arc::new(entry)),
                Freshness::StaleWhileRevalidate | Freshness::StaleIfError => Judged::Stale(Arc::new(entry)),
                Freshness::Expired => Judged::Void(Void::Expired),
            },
            Err(void) => Judged::Void(void),
        }
    }

    /// The entry that it says. Redacted once more, for the level of its key: that changes nothing of what a gateway of these
    /// rules put there, and whatever else it might be, no secret of it passes.
    fn entry(&self, stored: StoredAnswer, seen: Seen) -> Result<Entry, Void> {
        let StoredAnswer { origin, initial_age, lifetime, status, content_type, validators, fields, body } = stored;
        // From the future: the server's clock was set back. Or older than the machine that is asked.
        let age = seen.server.since(origin.asked_at).ok_or(Void::Odd)?;
        let fetched_at = seen.sent.checked_sub(age).ok_or(Void::Expired)?;
        let lifetime = self.bounded(status, lifetime).ok_or(Void::Expired)?;
        let level = self.key.level;
        let redacted = redact(self.policy, level, body).map_err(|_| Void::Odd)?;
        if status == StatusCode::OK && redacted.kind() != DocumentKind::Object {
            return Err(Void::Odd);
        }
        let own_type = self.policy.reveals_to(level).then_some(&content_type);
        let representation = self.cache.intern(Representation::new(status, own_type, redacted));
        let fields = self.passed.filter(fields);
        Ok(Entry::new(
            representation,
            validators,
            fields,
            FetchTime { at: fetched_at, initial_age },
            lifetime,
            self.generations,
        ))
    }

    /// By this gateway's own configuration, should the other's have been a longer one.
    fn bounded(&self, status: StatusCode, lifetime: Lifetime) -> Option<Lifetime> {
        let Lifetime { fresh, stale_while_revalidate, stale_if_error } = lifetime;
        let config::Cache { ttl, not_found_ttl, forbidden_ttl, .. } = *self.config;
        let (longest, stale) = match status {
            StatusCode::OK => (ttl, (self.config.stale_while_revalidate, self.config.stale_if_error)),
            StatusCode::NOT_FOUND => (not_found_ttl, (Duration::ZERO, Duration::ZERO)),
            StatusCode::FORBIDDEN => (forbidden_ttl, (Duration::ZERO, Duration::ZERO)),
            _ => return None,
        };
        let fresh = fresh.min(longest);
        (!fresh.is_zero()).then(|| Lifetime {
            fresh,
            stale_while_revalidate: stale_while_revalidate.min(stale.0),
            stale_if_error: stale_if_error.min(stale.1),
        })
    }
}

impl Writing {
    /// Puts an entry there that the API was asked for after this began.
    pub fn put_answer(self, entry: &Entry) {
        let (representation, validators) = (entry.representation.clone(), entry.validators.clone());
        let fields = entry.fields.clone();
        let (origin, initial_age, lifetime) = (self.origin, entry.initial_age(), entry.lifetime());
        let life = lifetime.fresh + lifetime.stale_while_revalidate.max(lifetime.stale_if_error);
        let value = move || {
            let status = representation.status();
            // It was one before.
            let content_type =
                HeaderValue::from_bytes(representation.content_type()).unwrap_or(HeaderValue::from_static(""));
            let body = Bytes::copy_from_slice(representation.body());
            StoredAnswer { origin, initial_age, lifetime, status, content_type, validators, fields, body }.to_bytes()
        };
        self.put(value, life);
    }
}
