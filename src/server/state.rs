//! The state that the listeners and sessions share: per process, and per configuration.
//!
//! A reload replaces the [`RequestState`] as a whole. A request uses the one that was active when
//! it arrived until it ends.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::admission::{Admission, RequestLimits, share};
use super::descriptors::Division;
use super::random_ids::RandomIds;
use super::response_budget::ResponseBudget;
use super::start_error::StartError;
use crate::api::{MediaTypePattern, NameRequestRules, PathPattern};
use crate::cluster::InvalidationStream;
use crate::config::{self, Access, Config, ForwardRole};
use crate::forward::TrustedProxies;
use crate::gateway::Gateway;
use crate::process::Lifecycle;
use crate::redact::{Policy, RuleError};
use crate::telemetry::Metrics;
use crate::upstream::Connector;

/// Limits of connections and heads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub header_timeout: Duration,
    pub write_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// Per client address.
    pub address_connections: usize,
    pub descriptors: Division,
    pub requests: RequestLimits,
}

impl Limits {
    fn new(server: &config::Server) -> Self {
        let max_header_bytes = usize::try_from(server.max_header_bytes).unwrap_or(usize::MAX);
        let address_connections = server.max_connections_per_address;
        Limits {
            header_timeout: server.header_timeout,
            write_timeout: server.write_timeout,
            keepalive_timeout: server.keepalive_timeout,
            max_header_bytes,
            max_connections: server.max_connections,
            address_connections: address_connections
                .unwrap_or_else(|| share(server.max_connections)),
            descriptors: Division::current(),
            requests: RequestLimits::new(server.max_requests),
        }
    }

    /// The idle timeout of a request body.
    pub fn body_timeout(&self) -> Duration {
        self.header_timeout.max(BODY_TIMEOUT_MIN)
    }
}

/// The idle timeout of a request body, unless `server.header_timeout` is longer.
const BODY_TIMEOUT_MIN: Duration = Duration::from_secs(30);

/// The times of a shutdown.
#[derive(Clone, Copy, Debug)]
pub struct DrainTimes {
    /// From SIGTERM until the listeners close.
    pub delay: Duration,
    /// From then until requests are aborted.
    pub max: Duration,
}

/// A compiled rule of `[[forward.redact]]`.
pub struct ForwardRedactRule {
    pub path: PathPattern,
    pub role: ForwardRole,
    pub policy: Arc<Policy>,
    /// The policy for `/log/**`, whose entries contain changes of secrets.
    pub changes: Arc<Policy>,
    /// The media types that pass without redaction.
    pub pass_types: Arc<[MediaTypePattern]>,
}

impl ForwardRedactRule {
    fn compile(rule: &config::ForwardRedact, policy: &Policy) -> Result<Self, StartError> {
        let compile = |is_change_log| {
            let compiled = policy.for_forward(&rule.secret_names, is_change_log);
            compiled.map(Arc::new).map_err(rule_errors)
        };
        let pass_types = rule.pass_types.iter().map(|text| {
            let pattern = MediaTypePattern::parse(text);
            pattern.map_err(|error| StartError::Configuration(format!("{text:?} {error}")))
        });
        Ok(ForwardRedactRule {
            path: rule.path.clone(),
            role: rule.role,
            policy: compile(false)?,
            changes: compile(true)?,
            pass_types: pass_types.collect::<Result<_, _>>()?,
        })
    }
}

/// The state of the process, which reloads keep.
pub struct ProcessState {
    pub connector: Arc<Connector>,
    pub lifecycle: Arc<Lifecycle>,
    pub metrics: Arc<Metrics>,
    /// The invalidation stream, in a cluster.
    pub invalidation_stream: OnceLock<Arc<InvalidationStream>>,
    /// The memory budget of responses that are being redacted.
    pub responses: Arc<ResponseBudget>,
    /// The counts of connections and requests under way.
    pub admission: Arc<Admission>,
    /// The source of request ids and span ids.
    pub ids: RandomIds,
}

/// The state that a request uses: one configuration, compiled.
pub struct RequestState {
    pub gateway: Arc<Gateway>,
    pub blocked: Vec<PathPattern>,
    /// The paths of `redact_rules`.
    pub redacted: Vec<PathPattern>,
    /// The rules for forwarded responses; the first whose path matches applies.
    pub redact_rules: Vec<ForwardRedactRule>,
    pub trusted: TrustedProxies,
    /// Networks of the peers that must send a PROXY header.
    proxy_protocol: Vec<IpNet>,
    pub cookie: Option<String>,
    pub access: Access,
    pub limits: Limits,
    pub drain: DrainTimes,
    /// Whether the fast path is used. It is not if a blocked pattern may match the intercepted
    /// route, since the fast path does not check the patterns.
    pub fast_path: bool,
    /// The configuration that this state was compiled from.
    pub config: Config,
    pub process: Arc<ProcessState>,
}

impl RequestState {
    /// # Errors
    /// A rule of the configuration cannot be compiled.
    pub fn new(
        config: &Config,
        process: Arc<ProcessState>,
        gateway: impl FnOnce(Arc<Policy>) -> Gateway,
    ) -> Result<Self, StartError> {
        let policy = Policy::compile(&config.redaction.rules()).map_err(rule_errors)?;
        let server = &config.server;
        let blocked = config.forward.blocked.clone();
        let may_block_names = |path: &PathPattern| path.may_match(&["customer", "*", "name"]);
        let rules = config.forward.redact.iter();
        let redact_rules = rules
            .map(|rule| ForwardRedactRule::compile(rule, &policy))
            .collect::<Result<Vec<_>, StartError>>()?;
        Ok(RequestState {
            fast_path: server.fast_path && !blocked.iter().any(may_block_names),
            blocked,
            redacted: redact_rules.iter().map(|rule| rule.path.clone()).collect(),
            redact_rules,
            trusted: TrustedProxies::new(server.trusted_proxies.clone()),
            proxy_protocol: server.proxy_protocol.clone(),
            cookie: config.identity.cookie.clone(),
            access: config.log.access,
            limits: Limits::new(server),
            drain: DrainTimes { delay: server.drain_delay, max: server.drain },
            gateway: Arc::new(gateway(Arc::new(policy))),
            config: config.clone(),
            process,
        })
    }

    /// Whether a peer must send a PROXY header.
    pub fn requires_proxy_header(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.proxy_protocol.iter().any(|network| network.contains(&peer))
    }

    /// The address whose share a request or connection uses; `None` for a trusted proxy, which
    /// many clients share.
    pub fn limited_address(&self, address: IpAddr) -> Option<IpAddr> {
        (!self.trusted.trusts(address)).then_some(address)
    }

    /// A new span id: 64 random bits.
    pub fn new_span(&self) -> u64 {
        (self.process.ids.next() >> 64) as u64
    }

    /// The settings of the fast path.
    pub fn fast_path_rules(&self) -> NameRequestRules<'_> {
        NameRequestRules {
            cookie: self.cookie.as_deref(),
            answers_preflights: self.gateway.cors.is_on(),
        }
    }

    /// A new request id of 32 hexadecimal digits.
    pub fn new_request_id(&self) -> String {
        let mut id = String::with_capacity(32);
        self.append_request_id(&mut id);
        id
    }

    /// Appends a new request id, so that a buffer can be reused.
    pub fn append_request_id(&self, text: &mut String) {
        let id = self.process.ids.next();
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        let digits = id.to_be_bytes().map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
        // The digits are ASCII.
        text.push_str(std::str::from_utf8(digits.as_flattened()).unwrap_or_default());
    }
}

fn rule_errors(errors: Vec<RuleError>) -> StartError {
    StartError::Configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// The state of the process and the request state that is active.
pub struct ActiveState {
    pub process: Arc<ProcessState>,
    request: ArcSwap<RequestState>,
}

impl ActiveState {
    pub fn new(state: RequestState) -> Self {
        ActiveState { process: state.process.clone(), request: ArcSwap::from_pointee(state) }
    }

    pub fn load(&self) -> Arc<RequestState> {
        self.request.load_full()
    }

    /// A cache for frequent readers: while the state is unchanged, a read writes to no shared
    /// memory.
    pub fn watched(&self) -> arc_swap::Cache<&ArcSwap<RequestState>, Arc<RequestState>> {
        arc_swap::Cache::new(&self.request)
    }

    /// Replaces the request state.
    pub(super) fn store(&self, state: RequestState) {
        self.request.store(Arc::new(state));
    }
}
