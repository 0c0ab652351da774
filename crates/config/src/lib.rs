//! The configuration that the program uses: every value parsed, checked and in its own type. What the operator typed is
//! another matter (`given`), with one fallible step between (`read`). A configuration with anything wrong is refused
//! as a whole, and everything that is wrong is told at once. Secrets are not here: only the paths of their files.
//!
//! Pure: no socket, no clock; `load` alone touches the file system.

mod address;
mod check;
mod explain;
mod given;
mod key_path;
mod keys;
mod kind;
mod pattern;
mod problem;
mod read;
mod reference;
mod schema;
mod units;

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use redact::{Action, Rules};
use telecomx_api::AccessLevel;

pub use explain::explain;
pub use problem::{Place, Problem, Problems};
pub use reference::reference;
pub use schema::schema;

use problem::Wrong;

/// Reads the file, lets the variables override its keys (`TELECOMX_GATEWAY__CACHE__TTL`), and checks everything, the
/// files that it names included. A file that is missing or cannot be read is a problem too.
///
/// Only variables with the prefix `TELECOMX_GATEWAY__` are looked at; the others may be given as well.
pub fn load(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, Problems> {
    let file_name = path.display().to_string();
    let unreadable = |reason: String| {
        let wrong = Wrong::new(
            format!("cannot read the file: {reason}"),
            "pass a file that the gateway's user can read (-c FILE)",
        );
        Problems::one(Problem::new(Place::File { file: file_name.clone() }, "", wrong))
    };
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        unreadable(format!("line {line} is not UTF-8"))
    })?;
    settle(&file_name, &text, env, Files::Checked)
}

/// As `load`, of a text at hand: pure, so the files that it names are not looked at. `file_name` is for the messages.
pub fn parse(file_name: &str, text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, Problems> {
    settle(file_name, text, env, Files::Unseen)
}

#[derive(PartialEq)]
enum Files {
    Checked,
    Unseen,
}

fn settle(
    file_name: &str,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
    files: Files,
) -> Result<Config, Problems> {
    let env: Vec<(String, String)> = env.into_iter().collect();
    let read::Reading { config, places, whole, mut problems } = read::read(given::gather(file_name, text, &env));
    if whole {
        problems.extend(check::between_keys(&config, &places));
    }
    if files == Files::Checked {
        problems.extend(check::files(&config, &places));
    }
    Problems::none_or(problems).map(|()| config)
}

/// Everything that can be configured. Field names are the keys of the TOML file.
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
    /// `None`: a gateway by itself.
    pub cluster: Option<Cluster>,
    pub log: Log,
    pub otlp: Option<Otlp>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub listen: Vec<SocketAddr>,
    /// 0: one per core.
    pub threads: usize,
    pub trusted_proxies: Vec<IpNet>,
    /// Networks of the peers that must send a PROXY header.
    pub proxy_protocol: Vec<IpNet>,
    pub drain: Duration,
    pub drain_delay: Duration,
    /// `None`: a folder that the environment names.
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
    /// File descriptors with which every limit of this table can be reached: a connection of a
    /// client takes one, and one to the API for its request another.
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
    /// `None`: callers are asked for no certificate.
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

/// Certificates of callers.
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

/// Where the API is: scheme, host and port, nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub tls: bool,
    /// A DNS name in lower case without a trailing dot, or an address; an IPv6 address without its
    /// brackets.
    pub host: String,
    /// Whether the name was written with a trailing dot: lookups do not complete it with the search
    /// list.
    pub is_absolute: bool,
    pub port: u16,
}

impl Cache {
    /// The longest time for which an answer may be given, whatever it is; never nothing.
    pub fn longest(&self) -> Duration {
        let stale = self.stale_while_revalidate.max(self.stale_if_error);
        let whole = self.ttl.mul_f64(1.0 + self.ttl_jitter) + stale;
        whole.max(self.not_found_ttl).max(self.forbidden_ttl).max(Duration::from_secs(1))
    }
}

impl Redaction {
    /// The rules as the redactor takes them.
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
        let scheme = if self.is_tls() { "https" } else { "http" };
        let shown: Vec<_> = self.urls.iter().map(|url| format!("{scheme}://{}", url.authority())).collect();
        shown.join(", ")
    }
}

impl UpstreamUrl {
    /// The value of `Host`: the port is left out where it is the scheme's own, an IPv6 address stands in brackets.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub ttl: Duration,
    pub refresh_after: Duration,
    pub stale_if_error: Duration,
    pub negative_ttl: Duration,
    /// `None`: tokens in cookies are not looked at.
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
    /// Names of response fields, each a field name.
    pub keep_fields: Vec<String>,
}

/// How changes made elsewhere are heard of.
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
    /// Path patterns: `*` one segment, `**` any number of them.
    pub blocked: Vec<String>,
    pub redact: Vec<ForwardRedact>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ForwardRedact {
    pub path: String,
    pub role: ForwardRole,
    pub secret_names: Vec<String>,
    /// Media types that pass without redaction below `redaction.reveal_to`.
    pub pass_types: Vec<String>,
}

/// Whose access level decides what a forwarded answer may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardRole {
    /// The caller's own.
    Caller,
    /// The `accessLevel` that stands in the answer itself.
    Answer,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    pub allowed_origins: AllowedOrigins,
    /// How long a browser may keep the answer to a preflight.
    pub max_age: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `["*"]`: any origin, without credentials.
    Any,
    /// These, as browsers write them in `Origin`; none: no CORS fields at all.
    Listed(Vec<String>),
}

/// What several gateways share.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub url: RedisUrl,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub key_file: PathBuf,
    /// What names in Redis begin with.
    pub name: String,
    pub max_isolation: Duration,
    pub connect_timeout: Duration,
    pub timeout: Duration,
    pub ready_when_isolated: bool,
    /// Whether they share answers, too.
    pub tier: bool,
    pub tier_timeout: Duration,
}

/// Where a Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    pub place: RedisPlace,
    pub database: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisPlace {
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
        match &self.place {
            RedisPlace::Host { tls, host, port } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "{scheme}://{host}:{port}/{}", self.database)
            }
            RedisPlace::Socket(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A collector of spans; only builds with the feature `otlp` can use it.
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
    /// Memory of lines that are not written yet.
    pub buffer: u64,
}

/// Which requests have a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    pub which: AccessLog,
    /// The part of hits, from 0 to 1.
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
