//! What the configuration decides for each request, and how a reload changes it: all or nothing. A request keeps to the
//! setup that it began with.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::admission::{Admission, RequestLimits, share};
use super::certificate::Certificate;
use super::descriptors::{self, Division};
use super::fast_path_head::Rules;
use super::lifecycle::Lifecycle;
use super::random_ids::RandomIds;
use super::response_budget::ResponseBudget;
use super::start_error::StartError;
use crate::api::{MediaTypePattern, PathPattern};
use crate::cluster::Bus;
use crate::config::{self, Access, Config, ForwardRole};
use crate::forward::TrustedProxies;
use crate::gateway::Gateway;
use crate::redact::{Policy, RuleError};
use crate::telemetry::{LogLevels, Metrics};
use crate::upstream::Connector;

/// Limits of connections and heads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub header_timeout: Duration,
    pub write_timeout: Duration,
    pub keepalive_timeout: Duration,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// Of one address.
    pub address_connections: usize,
    pub descriptors: Division,
    pub requests: RequestLimits,
}

impl Limits {
    /// How long a request body may be idle.
    pub fn body_timeout(&self) -> Duration {
        self.header_timeout.max(BODY_TIMEOUT_MIN)
    }
}

/// How long a request body may be idle, unless `server.header_timeout` is longer.
const BODY_TIMEOUT_MIN: Duration = Duration::from_secs(30);

/// How long a stop may take.
#[derive(Clone, Copy, Debug)]
pub struct DrainTimes {
    /// From TERM until the listeners close.
    pub delay: Duration,
    /// From then on.
    pub longest: Duration,
}

/// A rule of `[[forward.redact]]`.
pub struct VeilRule {
    pub path: PathPattern,
    pub role: ForwardRole,
    pub policy: Arc<Policy>,
    /// For `/log/**`, where changes tell of secrets.
    pub changes: Arc<Policy>,
    /// What passes without redaction.
    pub pass_types: Arc<[MediaTypePattern]>,
}

/// What outlives every reload.
pub struct Lasting {
    pub connector: Arc<Connector>,
    pub lifecycle: Arc<Lifecycle>,
    pub metrics: Arc<Metrics>,
    /// Where other gateways are told of changes, in a fleet.
    pub bus: OnceLock<Arc<Bus>>,
    /// Memory of responses that are redacted.
    pub responses: Arc<ResponseBudget>,
    /// Connections and requests under way.
    pub admission: Arc<Admission>,
    /// Where request ids and the ids of spans come from.
    pub ids: RandomIds,
}

/// What a request needs to know.
pub struct Setup {
    pub gateway: Arc<Gateway>,
    pub blocked: Vec<PathPattern>,
    /// The paths of `veils`.
    pub redacted: Vec<PathPattern>,
    /// Forwarded answers that are redacted, by path; the first that fits counts.
    pub veils: Vec<VeilRule>,
    pub trusted: TrustedProxies,
    pub cookie: Option<String>,
    pub access: Access,
    pub limits: Limits,
    pub drain: DrainTimes,
    /// Whether the fast path is used. Not where a blocked path may be one of the intercepted route.
    pub fast_path: bool,
    /// What it was made of.
    pub config: Config,
    lasting: Arc<Lasting>,
}

impl std::ops::Deref for Setup {
    type Target = Lasting;

    fn deref(&self) -> &Lasting {
        &self.lasting
    }
}

impl Setup {
    /// # Errors
    /// A rule of the configuration that cannot be compiled.
    pub fn new(
        config: &Config,
        lasting: Arc<Lasting>,
        gateway: impl FnOnce(Arc<Policy>) -> Gateway,
    ) -> Result<Self, StartError> {
        let policy = Policy::compile(&config.redaction.rules()).map_err(rule_errors)?;
        let pattern = |text: &String| PathPattern::parse(text).map_err(StartError::Configuration);
        let veil = |rule: &config::ForwardRedact| {
            let compiled = |changes| policy.for_forward(&rule.secret_names, changes).map(Arc::new).map_err(rule_errors);
            let (policy, changes) = (compiled(false)?, compiled(true)?);
            let pass_types = rule.pass_types.iter().map(|text| {
                MediaTypePattern::parse(text).map_err(|wrong| StartError::Configuration(format!("{text:?} {wrong}")))
            });
            let pass_types = pass_types.collect::<Result<_, _>>()?;
            Ok(VeilRule { path: pattern(&rule.path)?, role: rule.role, policy, changes, pass_types })
        };
        let server = &config.server;
        let blocked = config.forward.blocked.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
        let fast_path = server.fast_path && !blocked.iter().any(|path| path.may_match(&["customer", "*", "name"]));
        let veils = config.forward.redact.iter().map(veil).collect::<Result<Vec<_>, StartError>>()?;
        Ok(Setup {
            blocked,
            fast_path,
            redacted: veils.iter().map(|rule| rule.path.clone()).collect(),
            veils,
            trusted: TrustedProxies::new(server.trusted_proxies.clone()),
            cookie: config.identity.cookie.clone(),
            access: config.log.access,
            limits: Limits {
                header_timeout: server.header_timeout,
                write_timeout: server.write_timeout,
                keepalive_timeout: server.keepalive_timeout,
                max_header_bytes: usize::try_from(server.max_header_bytes).unwrap_or(usize::MAX),
                max_connections: server.max_connections,
                address_connections: server
                    .max_connections_per_address
                    .unwrap_or_else(|| share(server.max_connections)),
                descriptors: Division::current(),
                requests: RequestLimits::new(server.max_requests),
            },
            drain: DrainTimes { delay: server.drain_delay, longest: server.drain },
            gateway: Arc::new(gateway(Arc::new(policy))),
            config: config.clone(),
            lasting,
        })
    }

    /// The address whose share a request or connection uses; `None` for a trusted proxy, which many clients share.
    pub fn limited_address(&self, address: IpAddr) -> Option<IpAddr> {
        (!self.trusted.trusts(address)).then_some(address)
    }

    /// A new id of a span: 64 random bits.
    pub fn new_span(&self) -> u64 {
        (self.ids.next() >> 64) as u64
    }

    /// The settings of the fast path.
    pub fn fast_path_rules(&self) -> Rules<'_> {
        Rules { cookie: self.cookie.as_deref(), answers_preflights: self.gateway.cors.is_on() }
    }

    /// A new request id, of 32 hexadecimal digits.
    pub fn new_request_id(&self) -> String {
        let mut id = String::with_capacity(32);
        self.append_request_id(&mut id);
        id
    }

    /// The same, written to where there is room for it already.
    pub fn append_request_id(&self, text: &mut String) {
        let id = self.ids.next();
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        let digits = id.to_be_bytes().map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
        // Digits are text.
        text.push_str(std::str::from_utf8(digits.as_flattened()).unwrap_or_default());
    }
}

fn rule_errors(errors: Vec<RuleError>) -> StartError {
    StartError::Configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// The setup that is in force.
pub struct Current(ArcSwap<Setup>);

impl Current {
    pub fn new(setup: Setup) -> Self {
        Current(ArcSwap::from_pointee(setup))
    }

    pub fn load(&self) -> Arc<Setup> {
        self.0.load_full()
    }

    /// For one who looks again and again: where nothing changed, that writes to no memory that others share.
    pub fn watched(&self) -> arc_swap::Cache<&ArcSwap<Setup>, Arc<Setup>> {
        arc_swap::Cache::new(&self.0)
    }
}

/// Reads the configuration anew: its problems, in words, or the configuration.
pub type Source = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// A reload, and how it went.
#[derive(Clone)]
pub struct Reload {
    pub at: SystemTime,
    /// The keys whose change needs a restart, or what is wrong with the configuration.
    pub result: Result<Vec<&'static str>, String>,
}

/// Puts a changed configuration in force.
pub struct Reloader {
    source: Source,
    current: Arc<Current>,
    levels: LogLevels,
    /// The configuration that the process was started with.
    started: Config,
    certificate: Option<Arc<Certificate>>,
    /// Held while the setup is replaced, so that reloads follow each other.
    turn: Mutex<()>,
    generation: AtomicU64,
    last: Mutex<Option<Reload>>,
}

impl Reloader {
    pub fn new(
        source: Source,
        current: Arc<Current>,
        levels: LogLevels,
        config: Config,
        certificate: Option<Arc<Certificate>>,
    ) -> Self {
        let (turn, generation, last) = (Mutex::new(()), AtomicU64::new(1), Mutex::new(None));
        Reloader { source, current, levels, started: config, certificate, turn, generation, last }
    }

    /// How many configurations were in force so far.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The last reload, if there was one.
    pub fn last(&self) -> Option<Reload> {
        self.last.lock().clone()
    }

    /// Takes the configuration as it stands now; gives the keys whose change needs a restart to be obeyed.
    ///
    /// # Errors
    /// What is wrong with it, in words; the old one stays in force.
    pub fn reload(&self) -> Result<Vec<&'static str>, String> {
        let _turn = self.turn.lock();
        let result = self.take();
        *self.last.lock() = Some(Reload { at: SystemTime::now(), result: result.clone() });
        result
    }

    fn take(&self) -> Result<Vec<&'static str>, String> {
        let before = self.current.load();
        let result = (self.source)().and_then(|new| {
            let obeyed = obeyed(&self.started, &new);
            let gateway = |policy| before.gateway.reconfigured(&obeyed, policy);
            let setup = Setup::new(&obeyed, before.lasting.clone(), gateway).map_err(|error| error.to_string())?;
            let certificate = self.certificate.as_deref().map(|shown| shown.renewed().map(|loaded| (shown, loaded)));
            let certificate = certificate.transpose().map_err(|problems| problems.join("\n"))?;
            before.connector.reload_tls(&self.started.upstream).map_err(|error| error.to_string())?;
            Ok((new, setup, certificate))
        });
        match result {
            Ok((new, setup, certificate)) => {
                if let Some((shown, loaded)) = certificate {
                    shown.show(loaded);
                }
                let restart = needs_restart(&self.started, &new);
                self.levels.set(new.log.level);
                descriptors::warn_if_low(&new.server);
                let policy = setup.gateway.policy_id();
                self.current.0.store(Arc::new(setup));
                // Only what changed here: a gateway that read its file anew for another one has nothing to say to it.
                if let Some(bus) = before.bus.get().filter(|_| policy != before.gateway.policy_id()) {
                    bus.tell_policy(policy);
                }
                self.generation.fetch_add(1, Ordering::Relaxed);
                before.metrics.configuration_taken();
                tracing::info!(restart_needed_for = restart.join(", "), "applied the configuration");
                Ok(restart)
            }
            Err(problems) => {
                before.metrics.configuration_refused();
                tracing::error!(problems, "rejected the configuration; the current one stays in force");
                Err(problems)
            }
        }
    }
}

/// Keys that differ from what the process was started with, and are read only then.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let (a, b) = (&old.server, &new.server);
    let differs = [
        ("server.listen", a.listen != b.listen),
        ("server.threads", a.threads != b.threads),
        ("server.upgrade_socket", a.upgrade_socket != b.upgrade_socket),
        ("server.tls", a.tls != b.tls),
        ("admin", old.admin != new.admin),
        ("upstream", old.upstream != new.upstream),
        ("change_log", old.change_log != new.change_log),
        ("cache.max_bytes", old.cache.max_bytes != new.cache.max_bytes),
        ("cluster", old.cluster != new.cluster),
        ("otlp", old.otlp != new.otlp),
        ("log.format", old.log.format != new.log.format),
        ("log.buffer", old.log.buffer != new.log.buffer),
    ];
    differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

/// What of a new configuration is obeyed without a restart: all but those keys.
fn obeyed(started: &Config, new: &Config) -> Config {
    let mut obeyed = new.clone();
    let (server, old) = (&mut obeyed.server, started.server.clone());
    (server.listen, server.threads, server.tls) = (old.listen, old.threads, old.tls);
    server.upgrade_socket = old.upgrade_socket;
    (obeyed.admin, obeyed.upstream) = (started.admin.clone(), started.upstream.clone());
    obeyed.change_log = started.change_log.clone();
    (obeyed.cluster, obeyed.otlp) = (started.cluster.clone(), started.otlp.clone());
    obeyed.cache.max_bytes = started.cache.max_bytes;
    (obeyed.log.format, obeyed.log.buffer) = (started.log.format, started.log.buffer);
    obeyed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_is_not_obeyed_without_one() {
        let read = |text: &str| config::parse("test.toml", text, []).unwrap();
        let started = read("upstream.url = \"https://api.example\"");
        let new = read(
            r#"
            log = { format = "text", buffer = "1MiB" }
            change_log.token_file = "t"
            cluster = { url = "redis://127.0.0.1:1", key_file = "k" }
            otlp.endpoint = "http://127.0.0.1:4318"
            admin.listen = "127.0.0.1:3"
            upstream.url = "https://other.example"
            cache = { max_bytes = "1MiB", ttl = "7s" }
            [server]
            listen = ["127.0.0.1:1"]
            threads = 7
            upgrade_socket = "/run/s"
            max_connections = 7
            [server.tls]
            listen = ["127.0.0.1:2"]
            cert_file = "c"
            key_file = "k"
            "#,
        );
        assert_eq!(needs_restart(&started, &new).len(), 12, "every such key is changed here");
        let obeyed = obeyed(&started, &new);
        assert_eq!(needs_restart(&started, &obeyed), Vec::<&str>::new());
        assert_eq!((obeyed.cache.ttl, obeyed.server.max_connections), (Duration::from_secs(7), 7));
    }
}
