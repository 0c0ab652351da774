//! Puts the parts together and runs them: from a configuration to listening sockets.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;

use super::admin::Admin;
use super::certificate::{self, Certificate};
use super::change_log::ChangeLog;
use super::descriptors::{self, AcceptFailures, Division, Spares};
use super::edge::Edge;
use super::fleet::{self, Fleet};
use super::lifecycle::Lifecycle;
use super::listening::{Door, Entrance, Listening, Sockets};
use super::random_ids::RandomIds;
use super::request_context::Proxy;
use super::secrets;
use super::setup::{Current, Lasting, Reloader, Setup, Source};
use super::side::Side;
use super::signals::Signals;
use super::start_error::StartError;
use super::upgrade::{Changes, Seat};
use crate::cache::{CallerIds, Scope};
use crate::cluster::Bus;
use crate::config::Config;
use crate::gateway::{Gateway, GatewayDeps};
#[cfg(feature = "otlp")]
use crate::telemetry;
use crate::telemetry::{LogLevels, Metrics};
use crate::upstream::{self, AddressMetrics, Client, Connections, Connector};

/// Threads of the admin listener, which must answer while the others are busy.
const ADMIN_THREADS: usize = 1;

/// The public one and the admin one.
const SERVICES: usize = 2;

fn environment(what: impl fmt::Display) -> StartError {
    StartError::Environment(what.to_string())
}

/// Whether the files that a configuration names hold what they should.
///
/// # Errors
/// All that is wrong with them, a line each.
pub fn check(config: &Config) -> Result<(), StartError> {
    let mut problems = Vec::new();
    problems.extend(upstream::check_files(&config.upstream).err().map(|error| error.to_string()));
    let certificate = config.server.tls.as_ref().map(certificate::check);
    problems.extend(certificate.and_then(Result::err).into_iter().flatten());
    if let Some(cluster) = &config.cluster {
        problems.extend(fleet::problems(cluster));
    }
    problems.extend(secrets::admin_token(&config.admin).err());
    problems.extend(export(config, None).err().map(|error| error.to_string()));
    if problems.is_empty() { Ok(()) } else { Err(StartError::Configuration(problems.join("\n"))) }
}

/// Begins to export spans where the configuration says so and `metrics` are given.
///
/// # Errors
/// This build cannot, or not to that address.
#[cfg(feature = "otlp")]
fn export(config: &Config, metrics: Option<&Metrics>) -> Result<(), StartError> {
    let (Some(otlp), Some(metrics)) = (&config.otlp, metrics) else { return Ok(()) };
    let metrics = metrics.export().map_err(environment)?;
    telemetry::export(otlp, metrics).map_err(|error| StartError::Configuration(format!("otlp.endpoint: {error}")))
}

#[cfg(not(feature = "otlp"))]
fn export(config: &Config, _metrics: Option<&Metrics>) -> Result<(), StartError> {
    let wrong = "otlp: this build cannot export spans; build with `--features otlp`, or remove the table";
    if config.otlp.is_some() { Err(StartError::Configuration(wrong.into())) } else { Ok(()) }
}

/// How it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// On sockets of its own.
    Fresh,
    /// On those of the running process, which then ends.
    Upgrade,
}

/// Serves until a signal ends it. Comes back after INT only; TERM ends the process itself. `source` reads the
/// configuration anew at a reload.
///
/// # Errors
/// A listener, a certificate or a trust anchor cannot be used, or there is nobody to take sockets over from.
pub fn run(
    config: Config,
    source: Source,
    (levels, metrics): (LogLevels, Arc<Metrics>),
    start: Start,
) -> Result<(), StartError> {
    let started = Instant::now();
    descriptors::raise_limit();
    descriptors::warn_if_low(&config.server);
    export(&config, Some(&metrics))?;
    let connector = Connector::new(&config.upstream).map_err(|error| StartError::Configuration(error.to_string()))?;
    let connector = Arc::new(connector);
    let addresses = AddressMetrics::new(connector.clone()).map_err(environment)?;
    metrics.register(addresses).map_err(environment)?;
    let token = secrets::admin_token(&config.admin).map_err(StartError::Configuration)?;
    for warning in secrets::warnings(&config) {
        tracing::warn!(warning, "insecure handling of a secret");
    }
    let certificate = match &config.server.tls {
        Some(tls) => Some(Arc::new(Certificate::load(tls, metrics.tls().map_err(environment)?)?)),
        None => None,
    };
    let lifecycle = Arc::new(Lifecycle::new(SERVICES));
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    let connections = Connections::new(&config.upstream, connector.clone());
    let client = Arc::new(Client::new(connections, &config.upstream, metrics.clone()));
    let fleet = Fleet::new(&config)?;
    let callers = fleet.as_ref().map_or_else(CallerIds::random, |fleet| Ok(fleet.callers())).map_err(environment)?;
    let tier = fleet.as_ref().and_then(|fleet| fleet.tier(&config, &metrics));
    let lasting = Arc::new(Lasting {
        connector,
        lifecycle: lifecycle.clone(),
        metrics: metrics.clone(),
        bus: OnceLock::new(),
        responses: Arc::default(),
        admission: Arc::default(),
        ids: RandomIds::new().map_err(environment)?,
    });
    let parts = |policy| GatewayDeps { client, policy, callers, metrics: metrics.clone(), tier };
    let gateway = |policy| Gateway::new(&config, parts(policy));
    let current = Arc::new(Current::new(Setup::new(&config, lasting, gateway)?));
    let reloader = Arc::new(Reloader::new(source, current.clone(), levels, config.clone(), certificate.clone()));

    // The last that can fail: nothing is taken from a running process by one that would not serve.
    let seat = seat(&config, start)?;
    let taken = match (start, &seat) {
        (Start::Upgrade, Some(seat)) => Some(seat.take_over().map_err(environment)?),
        _ => None,
    };
    let (inherited, mut before) = taken.unzip();
    let sockets = Arc::new(Sockets::bind(&listeners(&config), inherited.unwrap_or_default())?);
    let addresses = Addresses::new(&config, &sockets)?;
    if let Some(certificate) = &certificate {
        certificate.watch();
    }
    let turns = fleet.as_ref().map(|fleet| fleet.turns(&config)).transpose()?.flatten();
    if let Some(fleet) = fleet {
        fleet.start(&config, &current, &reloader)?;
    }

    server.add_service(public_service(&current, certificate, &sockets, &addresses));
    let admin = Admin::new(current.clone(), lifecycle.clone(), reloader.clone(), token, started);
    server.add_service(admin_service(admin, &sockets, &addresses).map_err(environment)?);
    if let Some(change_log) = config.change_log.clone() {
        let metrics = metrics.change_log().map_err(environment)?;
        let reader = ChangeLog { config: change_log, current: current.clone(), metrics, turns };
        server.add_service(background_service("change log", reader));
    }
    let status = in_words(&config, &addresses);
    let setup = current.load();
    // A process that cannot take the seat ends here, before it accepts a connection.
    if let (Some(before), Some(seat)) = (&mut before, &seat) {
        let changes = before.sit(seat).map_err(environment)?;
        obey_changes_before(changes, current.clone()).map_err(environment)?;
    }
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals {
            lifecycle,
            current,
            reloader,
            sockets,
            seat,
            before: Mutex::new(before),
            handing_over: Arc::default(),
            reports: Arc::default(),
            has_successor: Arc::default(),
            status,
        }),
    });
    if let Some(bus) = setup.bus.get() {
        bus.flush(Bus::LAST);
    }
    Ok(())
}

/// Drops everything whenever something changes through a connection that the process before still
/// has.
fn obey_changes_before(mut changes: Changes, current: Arc<Current>) -> std::io::Result<()> {
    let work = move || {
        while changes.next() {
            current.load().gateway.apply_remote_invalidation(&Scope::All, "predecessor");
        }
    };
    std::thread::Builder::new().name("changes before".into()).spawn(work).map(drop)
}

/// Where a successor is met. A place that the environment names and that cannot be used costs the upgrade only.
fn seat(config: &Config, start: Start) -> Result<Option<Arc<Seat>>, StartError> {
    let named = config.server.upgrade_socket.is_some();
    match Seat::find(config) {
        Ok(None) if start == Start::Upgrade => Err(StartError::Configuration(
            "server.upgrade_socket: not set, and neither is $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR, so the running process cannot be found; set it for both processes"
                .into(),
        )),
        Ok(seat) => Ok(seat.map(Arc::new)),
        Err(wrong) if named || start == Start::Upgrade => Err(StartError::Configuration(wrong)),
        Err(wrong) => {
            tracing::warn!(wrong, "upgrades without downtime are unavailable");
            Ok(None)
        }
    }
}

/// What is served and protected, in one line for people.
fn in_words(config: &Config, addresses: &Addresses) -> String {
    let list = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let tls = if addresses.tls.is_empty() { String::new() } else { format!(", TLS on {}", list(&addresses.tls)) };
    format!(
        "serving {} on {}{tls}; admin and status page on http://{}/; below {} what is under {} is redacted; {} paths are blocked",
        config.upstream.display_urls(),
        list(&addresses.plain),
        addresses.admin,
        config.redaction.reveal_to.as_str(),
        config.redaction.roots.join(", "),
        config.forward.blocked.len(),
    )
}

/// Of our own configuration alone: pingora's files and command line stay unused.
fn server_conf(config: &Config) -> ServerConf {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = if config.server.threads == 0 { cores } else { config.server.threads };
    ServerConf {
        threads,
        // One thread has nobody to steal from, and a forward costs a sixth less without. Several are better off with it: see
        // docs/adr/0026.
        work_stealing: threads > 1,
        // pingora opens no connection to the API. Without a file it would read the trust anchors of
        // the system, and panic if one of them cannot be decoded.
        ca_file: Some("/dev/null".to_owned()),
        ..ServerConf::default()
    }
}

fn public_service(
    current: &Arc<Current>,
    certificate: Option<Arc<Certificate>>,
    sockets: &Arc<Sockets>,
    addresses: &Addresses,
) -> Listening<Proxy> {
    let edge = Arc::new(Edge::new(Proxy(current.clone()), current.clone(), Side::Public));
    let entrance = |addresses: &Vec<SocketAddr>, certificate| Entrance {
        addresses: addresses.clone(),
        door: Door::new(edge.clone(), current.clone(), Side::Public, certificate),
    };
    let mut entrances = vec![entrance(&addresses.plain, None)];
    entrances.extend(certificate.map(|certificate| entrance(&addresses.tls, Some(certificate))));
    let setup = current.load();
    let failures = AcceptFailures::new(Side::Public, setup.metrics.clone(), None);
    Listening::new(failures, None, entrances, sockets.clone(), setup.lifecycle.clone())
}

fn admin_service(admin: Admin, sockets: &Arc<Sockets>, addresses: &Addresses) -> std::io::Result<Listening<Admin>> {
    let (current, lifecycle) = (admin.current.clone(), admin.lifecycle.clone());
    let spares = Arc::new(Spares::new(Division::current())?);
    let failures = AcceptFailures::new(Side::Admin, current.load().metrics.clone(), Some(spares));
    let edge = Arc::new(Edge::new(admin, current.clone(), Side::Admin));
    let door = Door::new(edge, current, Side::Admin, None);
    let entrances = vec![Entrance { addresses: vec![addresses.admin], door }];
    Ok(Listening::new(failures, Some(ADMIN_THREADS), entrances, sockets.clone(), lifecycle))
}

/// Where it listens, with the port that was given where the configuration says 0.
struct Addresses {
    plain: Vec<SocketAddr>,
    tls: Vec<SocketAddr>,
    admin: SocketAddr,
}

impl Addresses {
    fn new(config: &Config, sockets: &Sockets) -> Result<Self, StartError> {
        let mut all = sockets.addresses().map_err(environment)?;
        let (plain, tls) = (config.server.listen.len(), config.server.tls.as_ref().map_or(0, |tls| tls.listen.len()));
        let mut rest = all.split_off(plain);
        let admin = rest.pop().ok_or_else(|| environment("no admin listener"))?;
        rest.truncate(tls);
        Ok(Addresses { plain: all, tls: rest, admin })
    }
}

/// As `Addresses::new` takes them apart.
fn listeners(config: &Config) -> Vec<SocketAddr> {
    let tls = config.server.tls.iter().flat_map(|tls| &tls.listen);
    config.server.listen.iter().chain(tls).chain([&config.admin.listen]).copied().collect()
}
