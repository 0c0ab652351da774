//! Invalidation of cached responses and identities by changes that the gateway sees or learns of.

use std::net::IpAddr;
use std::time::Instant;

use super::Gateway;
use crate::api::{ApiError, Change, Token};
use crate::cache::Scope;
use crate::clock;
use crate::upstream::Transport;

impl<T: Transport> Gateway<T> {
    /// Invalidates a scope because of a change that this gateway saw, and publishes it to the
    /// cluster. `trigger`: label of metrics.
    pub fn invalidate(&self, scope: &Scope, trigger: &'static str) {
        self.shared.generations.invalidate(scope);
        self.after_invalidation(scope, trigger);
    }

    /// Invalidates a scope because of a change that another gateway of the cluster saw.
    pub fn apply_remote_invalidation(&self, scope: &Scope, trigger: &'static str) {
        self.shared.generations.apply(scope);
        self.after_invalidation(scope, trigger);
    }

    fn after_invalidation(&self, scope: &Scope, trigger: &'static str) {
        if matches!(scope, Scope::All) {
            self.shared.cache.clear();
        }
        self.shared.metrics.count_invalidation(scope.as_str(), trigger);
        tracing::debug!(scope = scope.as_str(), trigger, "invalidated");
    }

    /// Returns the scopes that a request's changes invalidate. `tokens`: every token of the
    /// request. A change of the caller's own concerns all of them; a token that is not cached is
    /// validated first.
    ///
    /// # Errors
    /// [`ApiError::Unattributed`]: the employee or token that a change of the caller's own concerns
    /// cannot be determined.
    pub async fn scopes(
        &self,
        changes: Vec<Change>,
        tokens: &[Token],
        address: IpAddr,
    ) -> Result<Vec<Scope>, ApiError> {
        let mut scopes = Vec::with_capacity(changes.len());
        for change in changes {
            if change.is_callers_own() && tokens.is_empty() {
                return Err(ApiError::Unattributed);
            }
            match change {
                Change::Customer(id) => scopes.push(Scope::Customer(id)),
                Change::Employee(id) => scopes.push(Scope::Employee(id)),
                Change::Token(token) => scopes.push(Scope::Caller(self.caller_of(&token))),
                Change::CallersToken => {
                    scopes.extend(tokens.iter().map(|token| Scope::Caller(self.caller_of(token))));
                }
                Change::CallersEmployee => {
                    for token in tokens {
                        let caller = self.caller_of(token);
                        match self
                            .shared
                            .identities
                            .owner(caller, token, address, clock::now())
                            .await
                        {
                            Ok(caller) => {
                                scopes.push(Scope::Employee(caller.identity.employee.clone()))
                            }
                            // An invalid token has no employee: only what is cached for the token
                            // itself is invalidated.
                            Err(failure) if failure.error == ApiError::InvalidToken => {}
                            Err(_) => return Err(ApiError::Unattributed),
                        }
                    }
                }
            }
        }
        Ok(scopes)
    }

    /// Whether one of these tokens has a cached valid identity.
    pub fn is_any_known(&self, tokens: &[Token], address: IpAddr) -> bool {
        let now = clock::now();
        tokens
            .iter()
            .any(|token| self.shared.identities.is_known(self.caller_of(token), address, now))
    }

    /// Marks these scopes as subject to a write that the API may execute at any time until `until`.
    /// Nothing is stored for them until then. Returns the scopes that were not marked before.
    pub fn unsettle(&self, scopes: &[Scope], until: Instant) -> Vec<Scope> {
        let unsettled =
            scopes.iter().filter(|scope| self.shared.generations.unsettle(scope, until));
        unsettled.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::CallerIds;
    use crate::gateway::GatewayDeps;
    use crate::redact::Policy;
    use crate::telemetry::Metrics;
    use crate::upstream::{ApiResponse, Client, Request, UpstreamError};

    struct Unreachable;

    impl Transport for Unreachable {
        async fn exchange(
            &self,
            _request: &Request<'_>,
            _deadline: Instant,
        ) -> Result<ApiResponse, UpstreamError> {
            Err(UpstreamError::Connect)
        }
    }

    #[test]
    fn remote_invalidation_is_applied_and_not_published() {
        let config =
            crate::config::parse("test", "[upstream]\nurl = \"http://127.0.0.1:1\"", []).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let client = Arc::new(Client::new(Unreachable, &config.upstream, metrics.clone()));
        let policy = Arc::new(Policy::compile(&config.redaction.rules()).unwrap());
        let callers = CallerIds::with_key([7; 32]);
        let caller = callers.id_of("a");
        let gateway =
            Gateway::new(&config, GatewayDeps { client, policy, callers, metrics, tier: None });
        let (sender, published) = std::sync::mpsc::sync_channel(8);
        gateway.generations().set_publisher(Box::new(move |scope| {
            let _ = sender.send(scope.as_str());
        }));
        let current = || gateway.generations().validation_generations(&caller);
        for scope in [Scope::Caller(caller), Scope::All] {
            let before = current();
            gateway.apply_remote_invalidation(&scope, "fleet");
            assert_ne!(before, current(), "{}", scope.as_str());
        }
        assert!(published.try_recv().is_err());
        gateway.invalidate(&Scope::All, "request");
        assert_eq!(published.try_recv(), Ok("all"));
    }
}
