//! Start: builds the gateway from a configuration and runs it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;

use super::admin::Admin;
use super::admin_token::AdminTokens;
use super::cluster_member::{self, ClusterMember};
use super::descriptors::{self, AcceptFailures, Division, Spares};
use super::forward::request_context::Proxy;
use super::http::connection::ConnectionHandler;
use super::listener::{Acceptor, ListenerGroup, ListenerService, Sockets};
use super::listener_kind::ListenerKind;
use super::load_metrics::LoadMetrics;
use super::random_ids::RandomIds;
use super::reload::{ReloadedParts, Reloader, Source, log_warnings};
use super::signal_actions::GatewaySignals;
use super::start_error::StartError;
use super::state::{ActiveState, ProcessState, RequestState};
use super::tls::{self, ListenerTls};
use crate::cache::{CallerIds, Scope};
use crate::change_log::{ChangeLogPoller, failure_reasons, read_token};
use crate::clock;
use crate::cluster::InvalidationStream;
use crate::config::Config;
use crate::crypto;
use crate::gateway::{Gateway, GatewayDeps};
use crate::process::{Lifecycle, Predecessor, PredecessorChanges, SignalWatch, UpgradeSocket};
#[cfg(feature = "otlp")]
use crate::telemetry;
use crate::telemetry::{LogLevels, Metrics};
use crate::upstream::{self, AddressMetrics, Client, Connections, Connector};

/// Threads of the admin listener, which must answer while all others are busy.
const ADMIN_THREADS: usize = 1;

/// The services of the public and of the admin listeners.
const SERVICES: usize = 2;

fn environment(error: impl fmt::Display) -> StartError {
    StartError::Environment(error.to_string())
}

/// Checks the files that a configuration names; returns the faults of certificate chains that some
/// clients accept.
///
/// # Errors
/// All problems of the files, one per line.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    let mut problems = Vec::new();
    problems.extend(upstream::check_files(&config.upstream).err().map(|error| error.to_string()));
    let tls = config.server.tls.as_ref().map_or(Ok(Vec::new()), tls::check);
    let warnings = tls.unwrap_or_else(|invalid| {
        problems.extend(invalid);
        Vec::new()
    });
    if let Some(cluster) = &config.cluster {
        problems.extend(cluster_member::problems(cluster));
    }
    problems.extend(AdminTokens::load(&config.admin).err());
    problems.extend(config.change_log.as_ref().and_then(|log| read_token(log).err()));
    problems.extend(export_spans(config, None).err().map(|error| error.to_string()));
    if problems.is_empty() {
        Ok(warnings)
    } else {
        Err(StartError::Configuration(problems.join("\n")))
    }
}

/// Logs that TLS is in FIPS mode, in a build with that feature.
///
/// # Errors
/// Another cryptography provider was installed.
fn require_fips() -> Result<(), StartError> {
    if crypto::is_fips() {
        tracing::info!("TLS is in FIPS mode");
    } else if cfg!(feature = "fips") {
        return Err(StartError::Environment("TLS is not in FIPS mode".into()));
    }
    Ok(())
}

/// Starts the export of spans, if it is configured and `metrics` are given.
///
/// # Errors
/// This build cannot export, or the address is invalid.
#[cfg(feature = "otlp")]
fn export_spans(config: &Config, metrics: Option<&Metrics>) -> Result<(), StartError> {
    let (Some(otlp), Some(metrics)) = (&config.otlp, metrics) else { return Ok(()) };
    let metrics = metrics.register_export().map_err(environment)?;
    telemetry::export(otlp, metrics)
        .map_err(|error| StartError::Configuration(format!("otlp.endpoint: {error}")))
}

#[cfg(not(feature = "otlp"))]
fn export_spans(config: &Config, _metrics: Option<&Metrics>) -> Result<(), StartError> {
    if config.otlp.is_none() {
        return Ok(());
    }
    Err(StartError::Configuration(
        "otlp: this build cannot export spans; build with `--features otlp`, or remove the table"
            .into(),
    ))
}

/// The source of the listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The process binds its own sockets.
    Fresh,
    /// The running process hands its sockets over, and exits.
    Upgrade,
    /// The process binds its own sockets and never hands them over.
    Standalone,
}

/// A function that runs when all listeners are bound, so that connections are accepted or queued.
/// Its error ends the start.
pub type ListeningHook = Box<dyn FnOnce(&Addresses) -> Result<(), String>>;

/// The log and the metrics of the process.
pub struct Telemetry {
    pub levels: LogLevels,
    pub metrics: Arc<Metrics>,
}

/// Serves until a signal ends the process. Returns after SIGINT only; SIGTERM exits. `source` reads
/// the configuration at a reload.
///
/// # Errors
/// A listener, a certificate or a trust anchor cannot be used, or no process hands its sockets
/// over.
pub fn run(
    config: Config,
    source: Source,
    telemetry: Telemetry,
    start: Start,
    on_listening: Option<ListeningHook>,
) -> Result<(), StartError> {
    let started = clock::now();
    let Telemetry { levels, metrics } = telemetry;
    descriptors::raise_limit();
    descriptors::warn_if_low(&config.server);
    export_spans(&config, Some(&metrics))?;
    let member = ClusterMember::new(&config)?;
    let active = Arc::new(ActiveState::new(request_state(&config, &metrics, member.as_ref())?));
    let load = LoadMetrics::new(active.clone()).and_then(|load| metrics.register(load));
    load.map_err(environment)?;
    let tokens = AdminTokens::load(&config.admin).map_err(StartError::Configuration)?;
    if let Some(change_log) = &config.change_log {
        read_token(change_log).map_err(StartError::Configuration)?;
    }
    log_warnings(&config);
    require_fips()?;
    let tls = match &config.server.tls {
        Some(files) => {
            let tickets = member.as_ref().map(ClusterMember::ticket_keys);
            let metrics = metrics.register_tls().map_err(environment)?;
            Some(Arc::new(ListenerTls::load(files, tickets, metrics)?))
        }
        None => None,
    };
    let parts = ReloadedParts { levels, tls: tls.clone(), admin_tokens: tokens.clone() };
    let reloader = Arc::new(Reloader::new(source, active.clone(), config.clone(), parts));

    // Everything that can fail without the sockets is done: a process that cannot serve must not
    // take them from one that does.
    let mut listeners = Listeners::open(&config, start)?;
    let addresses = Addresses::new(&config, &listeners.sockets)?;
    if let Some(tls) = &tls {
        tls.watch();
    }
    if let Some(tokens) = &tokens {
        tokens.watch();
    }
    let lease = member.as_ref().map(|member| member.leader_lease(&config)).transpose()?.flatten();
    if let Some(member) = member {
        member.start(&config, &active, &reloader)?;
    }

    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.add_service(public_service(&active, tls, &listeners.sockets, &addresses));
    let lifecycle = active.process.lifecycle.clone();
    let admin = Admin::new(active.clone(), lifecycle, reloader.clone(), tokens, started);
    server.add_service(admin_service(admin, &listeners.sockets, &addresses).map_err(environment)?);
    if let Some(change_log) = config.change_log.clone() {
        let metrics = metrics.register_change_log(&failure_reasons()).map_err(environment)?;
        let state = active.clone();
        let gateway = Box::new(move || state.load().gateway.clone());
        let poller = ChangeLogPoller { config: change_log, gateway, metrics, lease };
        server.add_service(background_service("change log", poller));
    }
    let status = status_line(&config, &addresses);
    listeners.take_serving_lock(&active)?;
    if let Some(hook) = on_listening {
        hook(&addresses).map_err(environment)?;
    }
    let process = active.process.clone();
    server.run(RunArgs {
        shutdown_signal: Box::new(SignalWatch(GatewaySignals {
            active,
            reloader,
            sockets: listeners.sockets,
            upgrade_socket: listeners.upgrade_socket,
            predecessor: Mutex::new(listeners.predecessor),
            handover_requests: Arc::default(),
            reports: Arc::default(),
            has_successor: Arc::default(),
            status,
        })),
    });
    if let Some(stream) = process.invalidation_stream.get() {
        stream.flush(InvalidationStream::FLUSH_TIMEOUT);
    }
    Ok(())
}

/// Builds the state of the process and of its first configuration.
fn request_state(
    config: &Config,
    metrics: &Arc<Metrics>,
    member: Option<&ClusterMember>,
) -> Result<RequestState, StartError> {
    let connector = Connector::new(&config.upstream);
    let connector = connector.map_err(|error| StartError::Configuration(error.to_string()))?;
    let connector = Arc::new(connector);
    let addresses = AddressMetrics::new(connector.clone()).map_err(environment)?;
    metrics.register(addresses).map_err(environment)?;
    let connections = Connections::new(&config.upstream, connector.clone());
    let client = Arc::new(Client::new(connections, &config.upstream, metrics.clone()));
    let callers = match member {
        Some(member) => member.callers(),
        None => CallerIds::random().map_err(environment)?,
    };
    let tier = member.and_then(|member| member.tier(config, metrics));
    let process = Arc::new(ProcessState {
        connector,
        lifecycle: Arc::new(Lifecycle::new(SERVICES)),
        metrics: metrics.clone(),
        invalidation_stream: OnceLock::new(),
        responses: Arc::default(),
        admission: Arc::default(),
        ids: RandomIds::new().map_err(environment)?,
    });
    let parts = |policy| GatewayDeps { client, policy, callers, metrics: metrics.clone(), tier };
    let gateway = |policy| Gateway::new(config, parts(policy));
    RequestState::new(config, process, gateway)
}

/// The listening sockets of this process, and their origin.
struct Listeners {
    sockets: Arc<Sockets>,
    upgrade_socket: Option<Arc<UpgradeSocket>>,
    /// The socket at which the predecessor was met, if the configuration has another one by now.
    predecessor_socket: Option<Arc<UpgradeSocket>>,
    /// The process that handed the sockets over.
    predecessor: Option<Predecessor>,
}

impl Listeners {
    /// Binds the sockets, or takes them over.
    fn open(config: &Config, start: Start) -> Result<Self, StartError> {
        let upgrade_socket = upgrade_socket(config, start)?;
        let mut predecessor_socket = None;
        let taken_over = match (start, &upgrade_socket) {
            (Start::Upgrade, Some(own)) => {
                let other = own.find_predecessors().map_err(environment)?.map(Arc::new);
                let taken_over = other.as_ref().unwrap_or(own).take_over().map_err(environment)?;
                predecessor_socket = other;
                Some(taken_over)
            }
            _ => None,
        };
        let (inherited, predecessor) = taken_over.unzip();
        let sockets = Sockets::bind(&listen_addresses(config), inherited.unwrap_or_default())?;
        Ok(Listeners {
            sockets: Arc::new(sockets),
            upgrade_socket,
            predecessor_socket,
            predecessor,
        })
    }

    /// Takes the serving lock from a predecessor. A process that cannot must exit before it accepts
    /// a connection.
    fn take_serving_lock(&mut self, active: &Arc<ActiveState>) -> Result<(), StartError> {
        if let (Some(predecessor), Some(own)) = (&mut self.predecessor, &self.upgrade_socket) {
            let met_at = self.predecessor_socket.take();
            if met_at.is_some() {
                // Both locks, so that no process with the new configuration serves as well.
                own.acquire_serving_lock().map_err(environment)?;
            }
            let met_at = met_at.as_ref().unwrap_or(own);
            let changes = predecessor.take_serving_lock(met_at).map_err(environment)?;
            follow_changes(changes, active.clone()).map_err(environment)?;
        }
        Ok(())
    }
}

/// Purges the cache on every change that passes through a remaining connection of the predecessor.
fn follow_changes(
    mut changes: PredecessorChanges,
    active: Arc<ActiveState>,
) -> std::io::Result<()> {
    let work = move || {
        while changes.wait() {
            active.load().gateway.apply_remote_invalidation(&Scope::All, "predecessor");
        }
    };
    std::thread::Builder::new().name("changes before".into()).spawn(work).map(drop)
}

/// Opens the meeting point with a successor. If the environment names it and it cannot be used,
/// only upgrades are unavailable.
fn upgrade_socket(config: &Config, start: Start) -> Result<Option<Arc<UpgradeSocket>>, StartError> {
    if start == Start::Standalone {
        return Ok(None);
    }
    let is_configured = config.server.upgrade_socket.is_some();
    match UpgradeSocket::find(config) {
        Ok(None) if start == Start::Upgrade => Err(StartError::Configuration(
            "server.upgrade_socket: not set, and neither is $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR, so the running \
             process cannot be found; set it for both processes"
                .into(),
        )),
        Ok(socket) => Ok(socket.map(Arc::new)),
        Err(error) if is_configured || start == Start::Upgrade => Err(StartError::Configuration(error.to_string())),
        Err(error) => {
            tracing::warn!(wrong = error.to_string(), "upgrades without downtime are unavailable");
            Ok(None)
        }
    }
}

/// One line for operators: listeners, redaction and blocked paths.
fn status_line(config: &Config, addresses: &Addresses) -> String {
    let list = |addresses: &[SocketAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let tls = if addresses.tls.is_empty() {
        String::new()
    } else {
        format!(", TLS on {}", list(&addresses.tls))
    };
    format!(
        "serving {} on {}{tls}; admin and status page on http://{}/; members under {} are redacted \
         below {}; {} paths are blocked",
        config.upstream.display_urls(),
        list(&addresses.plain),
        addresses.admin,
        config.redaction.roots.join(", "),
        config.redaction.reveal_to.as_str(),
        config.forward.blocked.len(),
    )
}

/// pingora's settings, from the gateway's configuration. pingora's own file and command line are
/// not used.
fn server_conf(config: &Config) -> ServerConf {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = if config.server.threads == 0 { cores } else { config.server.threads };
    ServerConf {
        threads,
        // Stealing between several threads pays; with one thread a forward costs a sixth less
        // without it: docs/adr/0026.
        work_stealing: threads > 1,
        // pingora opens no connection to the API. Without a file it would read the trust anchors of
        // the system, and panic if one of them cannot be decoded.
        ca_file: Some("/dev/null".to_owned()),
        ..ServerConf::default()
    }
}

fn public_service(
    active: &Arc<ActiveState>,
    tls: Option<Arc<ListenerTls>>,
    sockets: &Arc<Sockets>,
    addresses: &Addresses,
) -> ListenerService<Proxy> {
    let handler = Arc::new(ConnectionHandler::new(
        Proxy(active.clone()),
        active.clone(),
        ListenerKind::Public,
    ));
    let group = |addresses: &Vec<SocketAddr>, tls| ListenerGroup {
        addresses: addresses.clone(),
        acceptor: Acceptor::new(handler.clone(), active.clone(), ListenerKind::Public, tls),
    };
    let mut groups = vec![group(&addresses.plain, None)];
    groups.extend(tls.map(|tls| group(&addresses.tls, Some(tls))));
    let process = &active.process;
    let failures = AcceptFailures::new(ListenerKind::Public, process.metrics.clone(), None);
    ListenerService::new(failures, None, groups, sockets.clone(), process.lifecycle.clone())
}

fn admin_service(
    admin: Admin,
    sockets: &Arc<Sockets>,
    addresses: &Addresses,
) -> std::io::Result<ListenerService<Admin>> {
    let active = admin.active.clone();
    let process = active.process.clone();
    let spares = Arc::new(Spares::new(Division::current())?);
    let failures = AcceptFailures::new(ListenerKind::Admin, process.metrics.clone(), Some(spares));
    let handler = Arc::new(ConnectionHandler::new(admin, active.clone(), ListenerKind::Admin));
    let acceptor = Acceptor::new(handler, active, ListenerKind::Admin, None);
    let groups = vec![ListenerGroup { addresses: vec![addresses.admin], acceptor }];
    let lifecycle = process.lifecycle.clone();
    Ok(ListenerService::new(failures, Some(ADMIN_THREADS), groups, sockets.clone(), lifecycle))
}

/// The addresses of the listeners, with the assigned port where the configuration has port 0.
pub struct Addresses {
    /// Cleartext listeners for clients.
    pub plain: Vec<SocketAddr>,
    pub tls: Vec<SocketAddr>,
    pub admin: SocketAddr,
}

impl Addresses {
    /// Splits the addresses in the order of [`listen_addresses`].
    fn new(config: &Config, sockets: &Sockets) -> Result<Self, StartError> {
        let mut plain = sockets.addresses().map_err(environment)?;
        let mut tls = plain.split_off(config.server.listen.len());
        let admin = tls.pop().ok_or_else(|| environment("no admin listener"))?;
        tls.truncate(config.server.tls.as_ref().map_or(0, |tls| tls.listen.len()));
        Ok(Addresses { plain, tls, admin })
    }
}

fn listen_addresses(config: &Config) -> Vec<SocketAddr> {
    let tls = config.server.tls.iter().flat_map(|tls| &tls.listen);
    config.server.listen.iter().chain(tls).chain([&config.admin.listen]).copied().collect()
}
