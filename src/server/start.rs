//! Puts the parts together and runs them: from a configuration to listening sockets.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use http::HeaderValue;
use pingora_core::apps::HttpServerOptions;
use pingora_core::apps::http_app::HttpServer;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::listening::Service;
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::sync::Semaphore;

use super::admin::Admin;
use super::certificate::Certificate;
use super::edge::{Edge, Side, Tls};
use super::lifecycle::{Lifecycle, Signals};
use super::listening::tell_when_serving;
use super::proxy::Proxy;
use super::redacted::MAX_HELD;
use super::setup::{Current, Lasting, Reloader, Setup, Source};
use crate::cache::CallerIds;
use crate::config::{self, Config};
use crate::gateway::{Gateway, Parts};
use crate::telemetry::{LogLevels, Metrics};
use crate::upstream::{Client, Peers};

/// Threads of the admin listener, which must answer while the others are busy.
const ADMIN_THREADS: usize = 1;

/// Why the gateway did not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration names something that cannot be used.
    Configuration(String),
    /// Something outside of it stands in the way, such as an occupied port.
    Environment(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Configuration(what) | StartError::Environment(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for StartError {}

fn environment(what: impl fmt::Display) -> StartError {
    StartError::Environment(what.to_string())
}

/// Whether the files that a configuration names hold what they should.
///
/// # Errors
/// What is wrong with one of them.
pub fn check(config: &Config) -> Result<(), StartError> {
    Peers::new(&config.upstream).map_err(|error| StartError::Configuration(error.to_string()))?;
    config.server.tls.as_ref().map_or(Ok(()), |tls| Certificate::load(tls).map(drop))
}

/// Serves until a signal ends it. Comes back after INT only; TERM ends the process itself. `source` reads the
/// configuration anew at a reload.
///
/// # Errors
/// A listener, a certificate or a trust anchor cannot be used.
pub fn run(config: Config, source: Source, levels: LogLevels) -> Result<(), StartError> {
    let started = Instant::now();
    let peers = Arc::new(Peers::new(&config.upstream).map_err(|error| StartError::Configuration(error.to_string()))?);
    let authority = HeaderValue::try_from(peers.authority()).map_err(environment)?;
    let token = config.admin.token_file.as_deref().map(admin_token).transpose()?;
    let certificate = config.server.tls.as_ref().map(Certificate::load).transpose()?.map(Arc::new);
    for address in listeners(&config) {
        // pingora would panic in a thread of its own.
        std::net::TcpListener::bind(address)
            .map_err(|error| environment(format!("cannot listen on {address}: {error}")))?;
    }

    let metrics = Arc::new(Metrics::new().map_err(environment)?);
    let lifecycle = Arc::new(Lifecycle::default());
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    let conf = server.configuration.clone();
    let client = Arc::new(Client::new(&config.upstream, peers.clone(), &conf, metrics.clone()));
    let callers = CallerIds::random().map_err(environment)?;
    let lasting = Arc::new(Lasting {
        peers,
        authority,
        lifecycle: lifecycle.clone(),
        metrics: metrics.clone(),
        held: Semaphore::new(MAX_HELD),
        request_ids: (getrandom::u64().map_err(environment)?, AtomicU64::new(0)),
    });
    let gateway = |policy| Gateway::new(&config, Parts { client, policy, callers, metrics });
    let current = Arc::new(Current::new(Setup::new(&config, lasting, gateway)?));
    let reloader = Arc::new(Reloader::new(source, current.clone(), levels, config.clone()));

    server.add_service(public_service(&config, &conf, current.clone(), certificate)?);
    let admin = Admin { current, lifecycle: lifecycle.clone(), reloader: reloader.clone(), token, started };
    server.add_service(admin_service(&config, admin));
    tell_when_serving(listeners(&config), lifecycle.clone());
    let signals = Signals::new(lifecycle, reloader, config.server.drain);
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    Ok(())
}

/// Of our own configuration alone: pingora's files and command line stay unused.
fn server_conf(config: &Config) -> ServerConf {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let drain = config.server.drain.as_secs() + 5;
    ServerConf {
        threads: if config.server.threads == 0 { cores } else { config.server.threads },
        // Both longer than the drain, which ends the process itself.
        grace_period_seconds: Some(drain),
        graceful_shutdown_timeout_seconds: Some(drain),
        // Only idempotent requests are ever sent again, and only where a kept connection turned out closed.
        max_retries: 4,
        ..ServerConf::default()
    }
}

fn public_service(
    config: &Config,
    conf: &Arc<ServerConf>,
    current: Arc<Current>,
    certificate: Option<Arc<Certificate>>,
) -> Result<Service<Edge<HttpProxy<Proxy>>>, StartError> {
    let mut proxy = http_proxy(conf, Proxy(current.clone()));
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(config.server.keepalive_timeout);
    proxy.server_options = Some(options);
    let tls =
        config.server.tls.as_ref().zip(certificate).map(|(tls, certificate)| acceptor(tls, certificate)).transpose()?;
    let on_tls = config.server.tls.iter().flat_map(|tls| &tls.listen);
    let mut service = Service::new("gateway".into(), Edge::new(proxy, current, Side::Public, tls));
    for address in config.server.listen.iter().chain(on_tls) {
        // The edge reads into a buffer of its own; pingora's, of 64 KiB, would be held by every idle connection.
        let unbuffered = L4BufferSettings::default().read(0);
        service.add_listener(ListenerConfig::tcp(address.to_string()).l4_buffer(unbuffered));
    }
    Ok(service)
}

/// TLS as the edge speaks it.
fn acceptor(tls: &config::Tls, certificate: Arc<Certificate>) -> Result<Tls, StartError> {
    let settings = TlsSettings::intermediate(&tls.cert_file.to_string_lossy(), &tls.key_file.to_string_lossy());
    let mut settings = settings.map_err(|error| StartError::Configuration(format!("server.tls: {error}")))?;
    certificate.watch();
    settings.set_cert_resolver(certificate);
    settings.enable_h2();
    Ok(Tls { acceptor: settings.build(), listen: tls.listen.clone() })
}

fn admin_service(config: &Config, admin: Admin) -> Service<Edge<HttpServer<Admin>>> {
    let current = admin.current.clone();
    let mut service = Service::new("admin".into(), Edge::new(HttpServer::new_app(admin), current, Side::Admin, None));
    service.add_tcp(&config.admin.listen.to_string());
    service.threads = Some(ADMIN_THREADS);
    service
}

fn listeners(config: &Config) -> Vec<SocketAddr> {
    let tls = config.server.tls.iter().flat_map(|tls| &tls.listen);
    config.server.listen.iter().chain(tls).chain([&config.admin.listen]).copied().collect()
}

fn admin_token(file: &Path) -> Result<blake3::Hash, StartError> {
    let token = std::fs::read(file).map(zeroize::Zeroizing::new);
    let token =
        token.map_err(|error| StartError::Configuration(format!("admin.token_file: {}: {error}", file.display())))?;
    Ok(blake3::hash(token.trim_ascii()))
}
