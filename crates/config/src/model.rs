//! The checked configuration: every value parsed, validated and in its own type.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use redact::{Action, Rules};
use telecomx_api::{AccessLevel, PathPattern};

/// A checked configuration. Field names are the keys of the TOML file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub upstream: Upstream,
    pub identity: Identity,
    pub cache: Cache,
    pub change_log: Option<ChangeLog>,
    pub redaction: Redaction,
    pub forward: Forward,
    pub cors: Cors,
    /// `None`: a single gateway.
    pub cluster: Option<Cluster>,
    pub log: Log,
    pub otlp: Option<Otlp>,
}

impl Config {
    /// The address of each listener, with the key that sets it.
    pub fn listeners(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> + '_ {
        let plain = self.server.listen.iter().map(|address| ("server.listen", *address));
        let tls = self.server.tls.iter().flat_map(|tls| &tls.listen);
        let tls = tls.map(|address| ("server.tls.listen", *address));
        plain.chain(tls).chain([("admin.listen", self.admin.listen)])
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub listen: Vec<SocketAddr>,
    /// 0: as many as the process may use cores.
    pub threads: usize,
    pub trusted_proxies: Vec<IpNet>,
    /// Networks of the peers that must send a PROXY header.
    pub proxy_protocol: Vec<IpNet>,
    pub drain: Duration,
    pub drain_delay: Duration,
    /// `None`: a path in a directory that the environment names.
    pub upgrade_socket: Option<PathBuf>,
    pub header_timeout: Duration,
    pub write_timeout: Duration,
    pub max_connections: usize,
    /// `None`: half of `max_connections`, and at least 16.
    pub max_connections_per_address: Option<usize>,
    pub max_requests: usize,
    pub keepalive_timeout: Duration,
    pub max_header_bytes: u64,
    pub fast_path: bool,
    pub tls: Option<Tls>,
}

impl Server {
    /// File descriptors that all limits of this table need together: one for each client connection
    /// and one for the connection to the API of each request.
    pub fn descriptors_needed(&self) -> usize {
        2 * self.max_connections + self.max_requests
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub listen: Vec<SocketAddr>,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Further certificates, which clients select by SNI.
    pub certificates: Vec<CertificateFiles>,
    /// `None`: clients are not asked for a certificate.
    pub clients: Option<Clients>,
}

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl Tls {
    /// The files of all certificates, the default one first.
    pub fn certificate_files(&self) -> impl Iterator<Item = CertificateFiles> + '_ {
        let Tls { cert_file, key_file, certificates, .. } = self;
        let default = CertificateFiles { cert_file: cert_file.clone(), key_file: key_file.clone() };
        std::iter::once(default).chain(certificates.iter().cloned())
    }
}

/// Verification of client certificates.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    pub ca_file: PathBuf,
    pub auth: ClientAuth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    Optional,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub listen: SocketAddr,
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// At least one; all with the same scheme.
    pub urls: Vec<UpstreamUrl>,
    pub ca_file: Option<PathBuf>,
    pub client_cert_file: Option<PathBuf>,
    pub client_key_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub max_body: u64,
    pub max_in_flight: usize,
    pub keepalive_timeout: Duration,
    pub max_idle_connections: usize,
}

/// The URL of the API: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub tls: bool,
    /// A DNS name in lower case without a trailing dot, or an address; an IPv6 address without
    /// brackets.
    pub host: String,
    /// Whether the name has a trailing dot, so that lookups do not use the search list.
    pub is_absolute: bool,
    pub port: u16,
}

impl Cache {
    /// The longest time for which any response may be served; at least a second.
    pub fn max_lifetime(&self) -> Duration {
        let stale = self.stale_while_revalidate.max(self.stale_if_error);
        let success = self.ttl.mul_f64(1.0 + self.ttl_jitter) + stale;
        success.max(self.not_found_ttl).max(self.forbidden_ttl).max(Duration::from_secs(1))
    }
}

impl Redaction {
    /// The rules of the redactor.
    pub fn rules(&self) -> Rules {
        let Redaction { reveal_to, roots, public, secret_names, action } = self.clone();
        Rules { reveal_to, roots, public, secret_names, action }
    }
}

impl Upstream {
    /// Whether connections to the API use TLS.
    pub fn is_tls(&self) -> bool {
        self.urls.iter().any(|url| url.tls)
    }

    /// The URLs, separated by commas.
    pub fn display_urls(&self) -> String {
        self.urls.iter().map(UpstreamUrl::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl UpstreamUrl {
    /// The value of `Host`: without a default port, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        self.authority_with(&self.host)
    }

    fn authority_with(&self, host: &str) -> String {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl std::fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let dot = if self.is_absolute { "." } else { "" };
        write!(f, "{scheme}://{}", self.authority_with(&format!("{}{dot}", self.host)))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub ttl: Duration,
    pub refresh_after: Duration,
    pub stale_if_error: Duration,
    pub negative_ttl: Duration,
    /// `None`: cookies are not credentials.
    pub cookie: Option<String>,
    pub send_client_ip: bool,
    pub session: Duration,
    pub max_invalid_per_minute: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    pub ttl: Duration,
    pub not_found_ttl: Duration,
    pub forbidden_ttl: Duration,
    pub stale_while_revalidate: Duration,
    pub stale_if_error: Duration,
    pub max_bytes: u64,
    /// 0.0 to 0.5.
    pub ttl_jitter: f64,
    /// Names of response fields.
    pub keep_fields: Vec<String>,
}

/// Polling of the API's change log.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeLog {
    pub token_file: PathBuf,
    pub interval: Duration,
    pub overlap: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Redaction {
    pub reveal_to: AccessLevel,
    pub roots: Vec<String>,
    pub public: Vec<String>,
    pub secret_names: Vec<String>,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    pub blocked: Vec<PathPattern>,
    pub redact: Vec<ForwardRedact>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ForwardRedact {
    pub path: PathPattern,
    pub role: ForwardRole,
    pub secret_names: Vec<String>,
    /// Media types that pass without redaction below `redaction.reveal_to`.
    pub pass_types: Vec<String>,
}

/// The access level that decides the redaction of a forwarded response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardRole {
    /// That of the caller.
    Caller,
    /// The `accessLevel` in the response.
    Answer,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    pub allowed_origins: AllowedOrigins,
    /// Time for which a browser may cache the response to a preflight.
    pub max_age: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `["*"]`: any origin, without credentials.
    Any,
    /// Every origin of this machine, such as `http://localhost:5173`, with credentials.
    Loopback,
    /// These, as browsers send them in `Origin`; empty: no CORS fields.
    Listed(Vec<String>),
}

/// The Redis that gateways of a cluster share.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub url: RedisUrl,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub key_file: PathBuf,
    /// Prefix of the names in Redis.
    pub name: String,
    pub max_isolation: Duration,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub ready_when_isolated: bool,
    /// Whether the gateways also share responses.
    pub tier: bool,
    pub tier_timeout: Duration,
}

/// The URL of a Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    pub endpoint: RedisEndpoint,
    pub database: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisEndpoint {
    /// As with [`UpstreamUrl`].
    Host {
        tls: bool,
        host: String,
        port: u16,
    },
    Socket(PathBuf),
}

impl std::fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.endpoint {
            RedisEndpoint::Host { tls, host, port } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "{scheme}://{host}:{port}/{}", self.database)
            }
            RedisEndpoint::Socket(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A collector of spans. Only builds with the feature `otlp` can use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    pub endpoint: UpstreamUrl,
    /// 0.0 to 1.0.
    pub sample: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
    pub access: Access,
    /// Maximum memory of lines that wait to be written.
    pub buffer: u64,
}

/// The access log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    pub which: AccessLog,
    /// Fraction of hits that have a line, 0 to 1.
    pub hits: f64,
    /// Whether lines contain the id of the customer.
    pub customer: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    All,
    Errors,
    Off,
}
