//! Responses in the shared tier: their keys, and how a value becomes a cache entry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::encoding::StoredResponse;
use super::tier::{KeyDeriver, Kind, ReadTimes, Rejection, Tier, TierKey, Verdict, WriteLease};
use crate::api::EmployeeId;
use crate::cache::{Cache, Entry, EntryGenerations, FetchTime, Freshness, Key, Lifetime};
use crate::clock;
use crate::cluster::change_index::Subject;
use crate::config;
use crate::redact::{Kind as DocumentKind, Policy, redact};
use crate::reply::{FieldFilter, Representation};

/// What a response of the tier is evaluated with.
pub struct ResponseLookup<'a> {
    pub key: &'a Key,
    pub employee: &'a EmployeeId,
    /// Taken before the tier is asked, so that later changes are detected by them.
    pub generations: EntryGenerations,
    pub policy: &'a Policy,
    pub config: &'a config::Cache,
    /// The API's header fields that are passed on.
    pub passed: &'a FieldFilter,
    /// May hold an equal response, whose body is shared.
    pub cache: &'a Cache,
}

impl KeyDeriver {
    /// The key of a response. It differs by caller, access level, customer and policy.
    pub fn response(&self, key: &Key) -> TierKey {
        let Key { caller, level, customer, policy } = key;
        let parts: [&[u8]; 4] = [
            caller.as_bytes(),
            level.as_str().as_bytes(),
            customer.as_bytes(),
            &policy.to_le_bytes(),
        ];
        self.derive(Kind::Response, &parts)
    }
}

impl ResponseLookup<'_> {
    /// Decides whether a decrypted value may be used.
    pub fn evaluate(&self, tier: &Tier, value: &[u8], read: ReadTimes) -> Verdict<Arc<Entry>> {
        let Some(stored) = StoredResponse::from_bytes(value) else {
            return Verdict::Rejected(Rejection::Malformed);
        };
        let Key { caller, customer, .. } = self.key;
        let subject = Subject { customer: Some(customer), caller, employee: self.employee };
        if !tier.change_index().is_current(stored.origin.position, subject) {
            return Verdict::Rejected(Rejection::Changed);
        }
        match self.entry(stored, read) {
            Ok(entry) => match entry.freshness(clock::now()) {
                Freshness::Fresh => Verdict::Fresh(Arc::new(entry)),
                Freshness::StaleWhileRevalidate | Freshness::StaleIfError => {
                    Verdict::Stale(Arc::new(entry))
                }
                Freshness::Expired => Verdict::Rejected(Rejection::Expired),
            },
            Err(rejection) => Verdict::Rejected(rejection),
        }
    }

    /// Makes a cache entry of a stored response. The body is redacted again for the access level of
    /// the key: that changes nothing in a body that a gateway with this policy wrote, and removes
    /// the secrets of any other.
    fn entry(&self, stored: StoredResponse, read: ReadTimes) -> Result<Entry, Rejection> {
        let StoredResponse {
            origin,
            initial_age,
            lifetime,
            status,
            content_type,
            validators,
            fields,
            body,
        } = stored;
        // No age: the server's clock was set back. No local time: older than this machine's uptime.
        let age = read.server.since(origin.requested_at).ok_or(Rejection::Malformed)?;
        let fetched_at = read.local.checked_sub(age).ok_or(Rejection::Expired)?;
        let lifetime = self.limit(status, lifetime).ok_or(Rejection::Expired)?;
        let level = self.key.level;
        let redacted = redact(self.policy, level, body).map_err(|_| Rejection::Malformed)?;
        if status == StatusCode::OK && redacted.kind() != DocumentKind::Object {
            return Err(Rejection::Malformed);
        }
        let own_type = self.policy.reveals_to(level).then_some(&content_type);
        let representation = self.cache.intern(Representation::new(status, own_type, redacted));
        let fields = self.passed.filter(fields);
        let fetch_time = FetchTime { at: fetched_at, initial_age };
        Ok(Entry::new(representation, validators, fields, fetch_time, lifetime, self.generations))
    }

    /// Limits a lifetime by this gateway's configuration; the other gateway's may permit more.
    fn limit(&self, status: StatusCode, lifetime: Lifetime) -> Option<Lifetime> {
        let config::Cache { ttl, not_found_ttl, forbidden_ttl, .. } = *self.config;
        let config::Cache { stale_while_revalidate, stale_if_error, .. } = *self.config;
        let limit = match status {
            StatusCode::OK => Lifetime { fresh: ttl, stale_while_revalidate, stale_if_error },
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Lifetime {
                fresh: if status == StatusCode::NOT_FOUND { not_found_ttl } else { forbidden_ttl },
                stale_while_revalidate: Duration::ZERO,
                stale_if_error: Duration::ZERO,
            },
            _ => return None,
        };
        let fresh = lifetime.fresh.min(limit.fresh);
        let revalidate = lifetime.stale_while_revalidate.min(limit.stale_while_revalidate);
        (!fresh.is_zero()).then(|| Lifetime {
            fresh,
            stale_while_revalidate: revalidate,
            stale_if_error: lifetime.stale_if_error.min(limit.stale_if_error),
        })
    }
}

impl WriteLease {
    /// Stores an entry that was requested from the API after the lease began.
    pub fn put_response(self, entry: &Entry) {
        let (origin, initial_age, lifetime) = (self.origin, entry.initial_age(), entry.lifetime());
        let (representation, validators) = (entry.representation.clone(), entry.validators.clone());
        let fields = entry.fields.clone();
        let max_stale = lifetime.stale_while_revalidate.max(lifetime.stale_if_error);
        let value = move || {
            // Valid, since it was made from a header value.
            let content_type = HeaderValue::from_bytes(representation.content_type())
                .unwrap_or(HeaderValue::from_static(""));
            let stored = StoredResponse {
                origin,
                initial_age,
                lifetime,
                status: representation.status(),
                content_type,
                validators,
                fields,
                body: Bytes::copy_from_slice(representation.body()),
            };
            stored.to_bytes()
        };
        self.put(value, lifetime.fresh + max_stale);
    }
}
