//! Responses from the caches for requests whose head the fast path has read.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;

use super::l1::{L1Key, LookupResult};
use super::serve::{ClientValidators, LookupParams, cached_reply, finish};
use super::{Gateway, ORIGIN_BYTES_MAX};
use crate::api::{AccessLevel, ApiError, CredentialError, CustomerId, Token};
use crate::cache::{CacheControl, CallerId, Entry, Freshness, Key};
use crate::reply::{CacheStatus, Reply};
use crate::telemetry::Record;
use crate::upstream::{ApiFailure, Transport};

/// An intercepted request with a credential, without a body, and without query parameters other
/// than `token`.
pub struct FastPathRequest<'a> {
    pub customer: CustomerId,
    /// The credential that decides.
    pub token: Cow<'a, str>,
    pub address: IpAddr,
    pub if_none_match: Option<&'a [u8]>,
    pub origin: Option<&'a [u8]>,
    /// The client's `Cache-Control` and `Pragma`.
    pub wants: CacheControl,
}

impl<T: Transport> Gateway<T> {
    /// Returns the access level and the cached response, if the response is fresh, the caller's
    /// validation is cached, and nothing is to be fetched in the background. Counts nothing.
    ///
    /// # Errors
    /// The caller, for whom [`Gateway::respond_uncached`] must respond.
    pub fn try_cached(
        &self,
        request: &FastPathRequest<'_>,
        now: Instant,
    ) -> Result<(AccessLevel, Reply), CallerId> {
        let FastPathRequest { customer, ref token, if_none_match, origin, ref wants, .. } =
            *request;
        let caller = self.shared.callers.id_of(token);
        let address = self.shared.identities.bound_address(request.address);
        let key = L1Key { caller, customer, address, policy: self.lookup_policy(origin) };
        let digest = self.shared.cache.slot_digest(&caller, &customer);
        let (level, entry) = self
            .shared
            .l1
            .find(&key, digest, now, |result| self.check(&key, digest, result, now))
            .or_else(|| self.look_up(&key, digest, now))
            .ok_or(caller)?;
        let ttl = entry.ttl(now);
        if *wants != CacheControl::default() && !wants.accepts(entry.age(now).as_secs(), ttl) {
            return Err(caller);
        }
        let validators = ClientValidators::Value(if_none_match);
        Ok((level, cached_reply(validators, &entry, now, CacheStatus::Hit { ttl })))
    }

    /// Responds to a request for which [`Gateway::try_cached`] has no response.
    pub async fn respond_uncached(
        &self,
        request: &FastPathRequest<'_>,
        caller: CallerId,
        record: &mut Record,
    ) -> Reply {
        let result = self.serve_uncached(request, caller, record).await;
        finish(result, record)
    }

    async fn serve_uncached(
        &self,
        request: &FastPathRequest<'_>,
        caller: CallerId,
        record: &mut Record,
    ) -> Result<Reply, ApiFailure> {
        let FastPathRequest { customer, ref token, address, if_none_match, origin, wants } =
            *request;
        let token =
            Token::parse(token.as_bytes()).ok_or(ApiError::from(CredentialError::Malformed))?;
        let origin = origin.filter(|origin| !self.cors.is_on() && origin.len() <= ORIGIN_BYTES_MAX);
        let origin = origin.and_then(|origin| HeaderValue::from_bytes(origin).ok());
        let caller = self.identify(caller, &token, address, origin.as_ref(), record).await?;
        let params = LookupParams {
            customer,
            wants,
            validators: ClientValidators::Value(if_none_match),
            origin,
        };
        self.serve(&params, caller, token, record).await
    }

    /// Looks up identity and entry in the shared caches, and stores a fresh result in the L1 cache.
    fn look_up(&self, key: &L1Key, digest: u64, now: Instant) -> Option<(AccessLevel, Arc<Entry>)> {
        let L1Key { caller, customer, address, policy } = *key;
        let (identity, identity_version) =
            self.shared.identities.try_cached(caller, address, now)?;
        let level = identity.level();
        let generations =
            self.shared.generations.entry_generations(&customer, &caller, identity.employee());
        let entry_version = self.shared.cache.version(digest);
        let key_of_entry = Key { caller, level, customer, policy };
        let entry = self.shared.find_entry(&key_of_entry, self.policy_id, generations);
        let entry = entry.filter(|entry| entry.freshness(now) == Freshness::Fresh)?;
        let result = LookupResult {
            identity,
            identity_version,
            entry: Arc::downgrade(&entry),
            entry_version,
        };
        self.shared.l1.insert(key, digest, now, result);
        Some((level, entry))
    }

    /// Returns a result of the L1 cache if a lookup in the shared caches would return it too.
    fn check(
        &self,
        key: &L1Key,
        digest: u64,
        result: &LookupResult,
        now: Instant,
    ) -> Option<(AccessLevel, Arc<Entry>)> {
        let LookupResult { identity, identity_version, entry, entry_version } = result;
        if !self.shared.identities.is_still_valid(identity, *identity_version, now)
            || self.shared.cache.version(digest) != *entry_version
        {
            return None;
        }
        let entry = entry.upgrade()?;
        let generations = self.shared.generations.entry_generations(
            &key.customer,
            &key.caller,
            identity.employee(),
        );
        let is_valid = entry.generations == generations && entry.freshness(now) == Freshness::Fresh;
        is_valid.then(|| (identity.level(), entry))
    }
}
