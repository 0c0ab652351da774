//! Connections to the fleet's Redis: short deadlines, and none is asked that is known to be down. Nothing here is waited for
//! by a gateway that could do its work without.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_rustls::{
    ClientConfig, RootCertStore, ServerName, TlsConnector, install_default_crypto_provider, load_native_certs,
};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, FromRedisValue, Pipeline, RedisConnectionInfo, RedisError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{timeout, timeout_at};
use zeroize::Zeroizing;

use super::bounded::{Bounded, TOO_LARGE};
use crate::clock;
use crate::config::{self, RedisPlace, RedisUrl};
use crate::crypto;
use crate::upstream::{Breaker, Circuit, Outcome};

/// After a failed attempt to connect, others have its result for this long: they would only fail one after another.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A password is shorter.
const MAX_PASSWORD: usize = 4096;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is known to be down and was not asked.
    NotAsked,
    /// No connection, or a broken one.
    Unreachable(String),
    Timeout,
    /// The user, the password or the rights are not those it wants.
    Denied(String),
    /// It answered that it will not: out of memory, still loading, a replica.
    Refused(String),
    /// It answered something that cannot be.
    Malformed(String),
    /// What is in the stream's place is not a stream that a gateway can write to.
    Unusable(String),
    /// It answered with more bytes than any answer of a gateway's own data has; the connection was
    /// ended.
    TooLarge(String),
}

impl Error {
    /// The word for it in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Error::NotAsked => "not_asked",
            Error::Unreachable(_) => "unreachable",
            Error::Timeout => "timeout",
            Error::Denied(_) => "denied",
            Error::Refused(_) => "refused",
            Error::Malformed(_) => "malformed",
            Error::Unusable(_) => "unusable",
            Error::TooLarge(_) => "too_large",
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Error::NotAsked | Error::Unreachable(_) | Error::Timeout | Error::Denied(_) => Outcome::Unreachable,
            Error::Refused(_) | Error::Malformed(_) | Error::Unusable(_) | Error::TooLarge(_) => Outcome::Reached,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotAsked => f.write_str("not tried: recently unreachable"),
            Error::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Error::Timeout => f.write_str("no answer in time"),
            Error::Denied(why) => write!(
                f,
                "permission denied: {why}; check cluster.username, cluster.password_file and the rights in docs/CLUSTER.md"
            ),
            Error::Refused(why) => write!(f, "refuses: {why}"),
            Error::Malformed(why) => write!(f, "unexpected reply: {why}"),
            Error::Unusable(why) => write!(f, "unusable stream: {why}"),
            Error::TooLarge(why) => write!(
                f,
                "{why}; gateways do not write values of this size; delete the key and check which users may write to it"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        let text = error.to_string();
        match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => Error::Denied(text),
            (ErrorKind::Server(_) | ErrorKind::Extension, _) => Error::Refused(text),
            (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => Error::Malformed(text),
            _ if text.contains(TOO_LARGE) => Error::TooLarge(text),
            _ if error.is_timeout() => Error::Timeout,
            _ => Error::Unreachable(text),
        }
    }
}

/// How to connect.
pub struct Connector {
    url: RedisUrl,
    username: Option<String>,
    password_file: Option<PathBuf>,
    /// For `rediss://`.
    tls: Option<Tls>,
    timeout: Duration,
}

struct Tls {
    connector: TlsConnector,
    server: ServerName<'static>,
}

impl Connector {
    /// # Errors
    /// What is wrong with a file that the configuration names, in words.
    pub fn new(config: &config::Cluster) -> Result<Self, String> {
        let tls = match &config.url.place {
            RedisPlace::Host { tls: true, host, .. } => Some(Tls::new(host, config.ca_file.as_deref())?),
            _ => None,
        };
        let connector = Connector {
            url: config.url.clone(),
            username: config.username.clone(),
            password_file: config.password_file.clone(),
            tls,
            timeout: config.connect_timeout,
        };
        connector.settings()?;
        Ok(connector)
    }

    /// The user and the database. Reads the password each time, so that a changed one counts from
    /// the next connection on.
    fn settings(&self) -> Result<RedisConnectionInfo, String> {
        let mut settings = RedisConnectionInfo::default().set_db(self.url.database.into()).set_skip_set_lib_name();
        if let Some(name) = &self.username {
            settings = settings.set_username(name);
        }
        if let Some(file) = &self.password_file {
            let wrong = |what: &dyn fmt::Display| format!("cluster.password_file: {}: {what}", file.display());
            settings = settings.set_password(password(file).map_err(|what| wrong(&what))?.as_str());
        }
        Ok(settings)
    }

    /// A connection, whose user was let in.
    ///
    /// # Errors
    /// There is none to be had within `cluster.connect_timeout`.
    pub async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        timeout(self.timeout, self.open()).await.unwrap_or(Err(Error::Timeout))
    }

    async fn open(&self) -> Result<MultiplexedConnection, Error> {
        let unreachable = |error: std::io::Error| Error::Unreachable(error.to_string());
        match (&self.url.place, &self.tls) {
            (RedisPlace::Socket(path), _) => self.log_in(UnixStream::connect(path).await.map_err(unreachable)?).await,
            (RedisPlace::Host { host, port, .. }, tls) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                let Some(Tls { connector, server }) = tls else { return self.log_in(stream).await };
                let stream = connector.connect(server.clone(), stream).await;
                self.log_in(stream.map_err(|error| Error::Unreachable(format!("TLS: {error}")))?).await
            }
        }
    }

    async fn log_in<S>(&self, stream: S) -> Result<MultiplexedConnection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let settings = self.settings().map_err(Error::Denied)?;
        // Each request has a deadline.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = MultiplexedConnection::new_with_config(&settings, Bounded::new(stream), config);
        let (connection, driver) = connecting.await.map_err(Error::from)?;
        // Ends when the last handle of the connection is dropped.
        tokio::spawn(driver);
        Ok(connection)
    }
}

impl Tls {
    /// By the authorities of that file, or else by the system's.
    fn new(host: &str, ca_file: Option<&Path>) -> Result<Self, String> {
        install_default_crypto_provider();
        let mut authorities = RootCertStore::empty();
        match ca_file {
            Some(file) => {
                let wrong = |what: String| format!("cluster.ca_file: {}: {what}", file.display());
                let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
                for certificate in CertificateDer::pem_slice_iter(&text) {
                    let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                    authorities.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                if authorities.is_empty() {
                    return Err(wrong("contains no PEM certificate".into()));
                }
            }
            None => {
                authorities.add_parsable_certificates(load_native_certs().unwrap_or_default());
                if authorities.is_empty() {
                    return Err("cluster.url: the system has no trust anchors; set cluster.ca_file".into());
                }
            }
        }
        crypto::install_provider();
        let config = ClientConfig::builder().with_root_certificates(authorities).with_no_client_auth();
        let server = ServerName::try_from(host.to_owned()).map_err(|error| format!("cluster.url: {host}: {error}"))?;
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), server })
    }
}

fn password(file: &Path) -> Result<Zeroizing<String>, String> {
    let bytes = std::fs::read(file).map(Zeroizing::new).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "is not text".to_owned())?.trim();
    match text.len() {
        0 => Err("is empty".into()),
        1..=MAX_PASSWORD => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(format!("contains more than {MAX_PASSWORD} bytes; check that it is the right file")),
    }
}

/// One connection for many who ask, made when it is needed and again when it broke.
pub struct Connection {
    connector: Arc<Connector>,
    link: Mutex<Option<MultiplexedConnection>>,
    /// Held by the one who connects, with how the last attempt failed.
    turn: tokio::sync::Mutex<Option<(Instant, Error)>>,
    breaker: Breaker,
}

impl Connection {
    pub fn new(connector: Arc<Connector>) -> Self {
        let breaker = Breaker::new(connector.timeout);
        Connection { connector, link: Mutex::default(), turn: tokio::sync::Mutex::default(), breaker }
    }

    /// Sends commands and waits for their answers, no longer than `deadline`. Within a tokio runtime, which the connection
    /// lives on.
    ///
    /// # Errors
    /// No answers, or one of them is an error.
    pub async fn query<T: FromRedisValue>(
        self: &Arc<Self>,
        commands: &Pipeline,
        deadline: Duration,
    ) -> Result<T, Error> {
        let until = clock::now() + deadline;
        let Some(permit) = self.breaker.try_acquire(clock::now()) else { return Err(Error::NotAsked) };
        let asked = async {
            let mut link = self.link().await?;
            commands.query_async(&mut link).await.map_err(Error::from)
        };
        let answer = timeout_at(until.into(), asked).await.unwrap_or(Err(Error::Timeout));
        let outcome = answer.as_ref().err().map_or(Outcome::Reached, Error::outcome);
        permit.record(outcome, None, clock::now());
        let broken =
            matches!(answer, Err(Error::Unreachable(_) | Error::Denied(_) | Error::Malformed(_) | Error::TooLarge(_)));
        // One that is silent for long may have lost its other end: a new one is tried when it is asked again.
        if broken || (outcome == Outcome::Unreachable && self.breaker.circuit(clock::now()) != Circuit::Closed) {
            self.link.lock().take();
        }
        answer
    }

    /// Whether it is asked.
    pub fn circuit(&self) -> Circuit {
        self.breaker.circuit(clock::now())
    }

    async fn link(self: &Arc<Self>) -> Result<MultiplexedConnection, Error> {
        if let Some(link) = &*self.link.lock() {
            return Ok(link.clone());
        }
        // In a task of its own: connecting may take longer than who asks will wait.
        let connection = self.clone();
        let connecting = tokio::spawn(async move { connection.connect().await });
        connecting.await.unwrap_or_else(|error| Err(Error::Unreachable(error.to_string())))
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let mut failed = self.turn.lock().await;
        if let Some(link) = &*self.link.lock() {
            return Ok(link.clone());
        }
        if let Some((at, error)) = &*failed
            && at.elapsed() < AFTER_FAILURE
        {
            return Err(error.clone());
        }
        match self.connector.connect().await {
            Ok(link) => {
                *failed = None;
                *self.link.lock() = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}
