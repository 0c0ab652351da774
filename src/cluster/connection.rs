//! Connections to the cluster's Redis, with short deadlines and a circuit breaker: a gateway that
//! gets no reply in time continues without Redis.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_rustls::{
    ClientConfig, RootCertStore, ServerName, TlsConnector, install_default_crypto_provider,
    load_native_certs,
};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, FromRedisValue, Pipeline, RedisConnectionInfo};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{timeout, timeout_at};
use zeroize::Zeroizing;

use super::reply_limit::{LimitedStream, TOO_LARGE};
use crate::clock;
use crate::config::{self, RedisEndpoint, RedisUrl};
use crate::crypto;
use crate::secret_file::{SecretFileError, SecretText};
use crate::upstream::{Breaker, Circuit, Outcome};

/// How long a failed attempt to connect is the result of further ones, which would only fail one
/// after another.
const FAILURE_TTL: Duration = Duration::from_millis(100);

/// Longest password, in bytes.
const PASSWORD_BYTES_MAX: usize = 4096;

/// Why Redis did not do what was requested.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RedisError {
    /// The circuit breaker is open.
    #[error("not tried: recently unreachable")]
    CircuitOpen,
    /// There is no connection, or it broke.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("no answer in time")]
    Timeout,
    /// The user, the password or the rights do not suffice.
    #[error(
        "permission denied: {0}; check cluster.username, cluster.password_file and the rights in docs/CLUSTER.md"
    )]
    Denied(String),
    /// An error reply: out of memory, still loading, a replica.
    #[error("refuses: {0}")]
    Refused(String),
    #[error("unexpected reply: {0}")]
    Malformed(String),
    /// The stream's key does not hold a stream that a gateway can append to.
    #[error("unusable stream: {0}")]
    Unusable(String),
    /// The reply is longer than any that gateways cause. The connection was closed.
    #[error(
        "{0}; gateways do not write values of this size; delete the key and check which users may write to it"
    )]
    TooLarge(String),
}

impl RedisError {
    /// The label of metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            RedisError::CircuitOpen => "not_asked",
            RedisError::Unreachable(_) => "unreachable",
            RedisError::Timeout => "timeout",
            RedisError::Denied(_) => "denied",
            RedisError::Refused(_) => "refused",
            RedisError::Malformed(_) => "malformed",
            RedisError::Unusable(_) => "unusable",
            RedisError::TooLarge(_) => "too_large",
        }
    }

    /// Whether a key holds a value of another type than the command is for.
    pub fn is_wrong_type(&self) -> bool {
        // The error of a pipeline has no code, only the text of its first error.
        self.to_string().contains("WRONGTYPE")
    }

    const fn outcome(&self) -> Outcome {
        match self {
            RedisError::CircuitOpen
            | RedisError::Unreachable(_)
            | RedisError::Timeout
            | RedisError::Denied(_) => Outcome::Unreachable,
            RedisError::Refused(_)
            | RedisError::Malformed(_)
            | RedisError::Unusable(_)
            | RedisError::TooLarge(_) => Outcome::Reached,
        }
    }

    /// Whether the connection cannot be used after this error.
    const fn breaks_connection(&self) -> bool {
        matches!(
            self,
            RedisError::Unreachable(_)
                | RedisError::Denied(_)
                | RedisError::Malformed(_)
                | RedisError::TooLarge(_)
        )
    }
}

impl From<redis::RedisError> for RedisError {
    fn from(error: redis::RedisError) -> Self {
        let text = error.to_string();
        match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
                RedisError::Denied(text)
            }
            (ErrorKind::Server(_) | ErrorKind::Extension, _) => RedisError::Refused(text),
            (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => RedisError::Malformed(text),
            _ if text.contains(TOO_LARGE) => RedisError::TooLarge(text),
            _ if error.is_timeout() => RedisError::Timeout,
            _ => RedisError::Unreachable(text),
        }
    }
}

/// Why a file or key of the `[cluster]` table cannot be used.
#[derive(Debug, Error)]
#[error("{subject}: {problem}")]
pub struct ConnectorError {
    /// The key of the configuration, and the file if there is one.
    subject: String,
    problem: String,
}

impl ConnectorError {
    fn in_file(key: &str, file: &Path, problem: impl fmt::Display) -> Self {
        let subject = format!("{key}: {}", file.display());
        ConnectorError { subject, problem: problem.to_string() }
    }

    fn in_url(problem: String) -> Self {
        ConnectorError { subject: "cluster.url".into(), problem }
    }
}

/// Opens connections to the Redis of the configuration.
pub struct Connector {
    url: RedisUrl,
    username: Option<String>,
    password_file: Option<PathBuf>,
    /// Set for `rediss://`.
    tls: Option<Tls>,
    timeout: Duration,
    /// Number of times at which `cluster.url` led to another server than before. A connection that
    /// was opened at an earlier count is not used.
    server_changes: AtomicU64,
}

struct Tls {
    connector: TlsConnector,
    server: ServerName<'static>,
}

impl Connector {
    /// # Errors
    /// A file that the configuration names cannot be used.
    pub fn new(config: &config::Cluster) -> Result<Self, ConnectorError> {
        let tls = match &config.url.endpoint {
            RedisEndpoint::Host { tls: true, host, .. } => {
                Some(Tls::new(host, config.ca_file.as_deref())?)
            }
            _ => None,
        };
        let connector = Connector {
            url: config.url.clone(),
            username: config.username.clone(),
            password_file: config.password_file.clone(),
            tls,
            timeout: config.connect_timeout,
            server_changes: AtomicU64::new(0),
        };
        connector.login()?;
        Ok(connector)
    }

    /// The user and the database. Reads the password file each time, so that a changed password is
    /// used from the next connection on.
    fn login(&self) -> Result<RedisConnectionInfo, ConnectorError> {
        let database = self.url.database.into();
        let mut login = RedisConnectionInfo::default().set_db(database).set_skip_set_lib_name();
        if let Some(name) = &self.username {
            login = login.set_username(name);
        }
        if let Some(file) = &self.password_file {
            let password = read_password(file).map_err(|problem| {
                ConnectorError::in_file("cluster.password_file", file, problem)
            })?;
            login = login.set_password(password.as_str());
        }
        Ok(login)
    }

    /// Number of times at which `cluster.url` led to another server than before.
    pub fn server_changes(&self) -> u64 {
        self.server_changes.load(Ordering::Acquire)
    }

    /// Ends the use of all connections that are open now, since `cluster.url` leads to another
    /// server.
    pub fn record_server_change(&self) {
        self.server_changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Opens a connection and logs in.
    ///
    /// # Errors
    /// This did not succeed within `cluster.connect_timeout`.
    pub async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        timeout(self.timeout, self.open()).await.unwrap_or(Err(RedisError::Timeout))
    }

    async fn open(&self) -> Result<MultiplexedConnection, RedisError> {
        let unreachable = |error: io::Error| RedisError::Unreachable(error.to_string());
        match (&self.url.endpoint, &self.tls) {
            (RedisEndpoint::Socket(path), _) => {
                self.log_in(UnixStream::connect(path).await.map_err(unreachable)?).await
            }
            (RedisEndpoint::Host { host, port, .. }, tls) => {
                let stream =
                    TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                let Some(Tls { connector, server }) = tls else { return self.log_in(stream).await };
                let stream = connector.connect(server.clone(), stream).await;
                let failed = |error| RedisError::Unreachable(format!("TLS: {error}"));
                self.log_in(stream.map_err(failed)?).await
            }
        }
    }

    async fn log_in<S>(&self, stream: S) -> Result<MultiplexedConnection, RedisError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let login = self.login().map_err(|error| RedisError::Denied(error.to_string()))?;
        // Each request has a deadline.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let stream = LimitedStream::new(stream);
        let connecting = MultiplexedConnection::new_with_config(&login, stream, config);
        let (connection, driver) = connecting.await.map_err(RedisError::from)?;
        // Ends when the last handle of the connection is dropped.
        tokio::spawn(driver);
        Ok(connection)
    }
}

impl Tls {
    /// Trusts the certificates of `ca_file`, or those of the system.
    fn new(host: &str, ca_file: Option<&Path>) -> Result<Self, ConnectorError> {
        install_default_crypto_provider();
        crypto::install_provider();
        let roots = match ca_file {
            Some(file) => read_roots(file)?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let server = ServerName::try_from(host.to_owned())
            .map_err(|error| ConnectorError::in_url(format!("{host}: {error}")))?;
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), server })
    }
}

fn read_roots(file: &Path) -> Result<RootCertStore, ConnectorError> {
    let invalid =
        |problem: &dyn fmt::Display| ConnectorError::in_file("cluster.ca_file", file, problem);
    let text = std::fs::read(file).map_err(|error| invalid(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| invalid(&error))?;
        roots.add(certificate).map_err(|error| invalid(&error))?;
    }
    if roots.is_empty() {
        return Err(invalid(&"contains no PEM certificate"));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, ConnectorError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(load_native_certs().unwrap_or_default());
    if roots.is_empty() {
        let problem = "the system has no trust anchors; set cluster.ca_file";
        return Err(ConnectorError::in_url(problem.into()));
    }
    Ok(roots)
}

#[derive(Debug, Error)]
enum PasswordError {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error("contains more than {PASSWORD_BYTES_MAX} bytes; check that it is the right file")]
    TooLong,
}

fn read_password(file: &Path) -> Result<Zeroizing<String>, PasswordError> {
    let text = SecretText::read(file)?;
    let password = text.line()?;
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    Ok(Zeroizing::new(password.to_owned()))
}

/// A connection that many tasks share. It is opened when it is needed, and again after it broke.
pub struct Connection {
    connector: Arc<Connector>,
    open: Mutex<Option<OpenConnection>>,
    /// Locked by the task that connects. Holds how and when the last attempt failed.
    connecting: tokio::sync::Mutex<Option<(Instant, RedisError)>>,
    breaker: Breaker,
}

struct OpenConnection {
    connection: MultiplexedConnection,
    /// [`Connector::server_changes`] before it was opened.
    server_changes: u64,
}

impl Connection {
    pub fn new(connector: Arc<Connector>) -> Self {
        let breaker = Breaker::new(connector.timeout);
        Connection {
            connector,
            open: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            breaker,
        }
    }

    /// Sends commands and waits for the replies, at most for `deadline`. Needs a tokio runtime, on
    /// which the connection runs.
    ///
    /// # Errors
    /// There is no reply, or one of the replies is an error.
    pub async fn query<T: FromRedisValue>(
        self: &Arc<Self>,
        commands: &Pipeline,
        deadline: Duration,
    ) -> Result<T, RedisError> {
        let until = clock::now() + deadline;
        let Some(permit) = self.breaker.try_acquire(clock::now()) else {
            return Err(RedisError::CircuitOpen);
        };
        let query = async {
            let mut connection = self.get().await?;
            commands.query_async(&mut connection).await.map_err(RedisError::from)
        };
        let reply = timeout_at(until.into(), query).await.unwrap_or(Err(RedisError::Timeout));
        let outcome = reply.as_ref().err().map_or(Outcome::Reached, RedisError::outcome);
        permit.record(outcome, None, clock::now());
        let is_broken = reply.as_ref().is_err_and(RedisError::breaks_connection);
        // The peer of a connection without replies may be gone: the next query opens another.
        let is_silent = outcome == Outcome::Unreachable && self.circuit() != Circuit::Closed;
        if is_broken || is_silent {
            self.open.lock().take();
        }
        reply
    }

    /// State of the circuit breaker.
    pub fn circuit(&self) -> Circuit {
        self.breaker.circuit(clock::now())
    }

    async fn get(self: &Arc<Self>) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = self.usable() {
            return Ok(connection);
        }
        // A separate task, since connecting may take longer than the deadline of this query.
        let shared = self.clone();
        let connecting = tokio::spawn(async move { shared.connect().await });
        connecting.await.unwrap_or_else(|error| Err(RedisError::Unreachable(error.to_string())))
    }

    /// The open connection, unless it is one to an earlier server.
    fn usable(&self) -> Option<MultiplexedConnection> {
        let open = self.open.lock();
        let open = open.as_ref()?;
        let is_current = open.server_changes == self.connector.server_changes();
        is_current.then(|| open.connection.clone())
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut last_failure = self.connecting.lock().await;
        if let Some(connection) = self.usable() {
            return Ok(connection);
        }
        if let Some((at, error)) = &*last_failure
            && clock::now().saturating_duration_since(*at) < FAILURE_TTL
        {
            return Err(error.clone());
        }
        let server_changes = self.connector.server_changes();
        match self.connector.connect().await {
            Ok(connection) => {
                *last_failure = None;
                let open = OpenConnection { connection: connection.clone(), server_changes };
                *self.open.lock() = Some(open);
                Ok(connection)
            }
            Err(error) => {
                *last_failure = Some((clock::now(), error.clone()));
                Err(error)
            }
        }
    }
}
