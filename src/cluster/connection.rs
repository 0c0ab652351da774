//! Connections to the fleet's Redis: short deadlines, and none is asked that is known to be down. Nothing here is waited for
//! by a gateway that could do its work without.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_rustls::install_default_crypto_provider;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, TlsCertificates,
};
use tokio::time::{timeout, timeout_at};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::{self, RedisPlace, RedisUrl};
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
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Error::NotAsked | Error::Unreachable(_) | Error::Timeout | Error::Denied(_) => Outcome::Unreachable,
            Error::Refused(_) | Error::Malformed(_) => Outcome::Reached,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotAsked => f.write_str("known to be down, not asked"),
            Error::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Error::Timeout => f.write_str("no answer in time"),
            Error::Denied(why) => write!(
                f,
                "lets this gateway not do what it must: {why}; see cluster.username, cluster.password_file and the rights \
                 in docs/FLEET.md"
            ),
            Error::Refused(why) => write!(f, "refuses: {why}"),
            Error::Malformed(why) => write!(f, "answers what cannot be: {why}"),
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
    authority: Option<Vec<u8>>,
    timeout: Duration,
}

impl Connector {
    /// # Errors
    /// What is wrong with a file that the configuration names, in words.
    pub fn new(config: &config::Cluster) -> Result<Self, String> {
        install_default_crypto_provider();
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("cluster.ca_file: {}: {error}", path.display()))
        };
        let connector = Connector {
            url: config.url.clone(),
            username: config.username.clone(),
            password_file: config.password_file.clone(),
            authority: config.ca_file.as_ref().map(read).transpose()?,
            timeout: config.connect_timeout,
        };
        connector.client()?;
        Ok(connector)
    }

    /// Reads the password anew, so that a changed one counts from the next connection on.
    fn client(&self) -> Result<Client, String> {
        let mut settings = RedisConnectionInfo::default().set_db(self.url.database.into()).set_skip_set_lib_name();
        if let Some(name) = &self.username {
            settings = settings.set_username(name);
        }
        if let Some(file) = &self.password_file {
            let wrong = |what: &dyn fmt::Display| format!("cluster.password_file: {}: {what}", file.display());
            settings = settings.set_password(password(file).map_err(|what| wrong(&what))?.as_str());
        }
        let (address, tls) = match &self.url.place {
            RedisPlace::Host { tls: false, host, port } => (ConnectionAddr::Tcp(host.clone(), *port), false),
            RedisPlace::Host { tls: true, host, port } => {
                let (host, port) = (host.clone(), *port);
                (ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }, true)
            }
            RedisPlace::Socket(path) => (ConnectionAddr::Unix(path.clone()), false),
        };
        let info = address.into_connection_info().map_err(|error| error.to_string())?.set_redis_settings(settings);
        match &self.authority {
            Some(authority) if tls => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(authority.clone()) };
                Client::build_with_tls(info, certificates).map_err(|error| format!("cluster.ca_file: {error}"))
            }
            _ => Client::open(info).map_err(|error| error.to_string()),
        }
    }

    /// A connection, whose user was let in.
    ///
    /// # Errors
    /// There is none to be had within `cluster.connect_timeout`.
    pub async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let client = self.client().map_err(Error::Denied)?;
        // Deadlines are those of who asks.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        match timeout(self.timeout, connecting).await {
            Ok(connected) => connected.map_err(Error::from),
            Err(_) => Err(Error::Timeout),
        }
    }
}

fn password(file: &Path) -> Result<Zeroizing<String>, String> {
    let bytes = std::fs::read(file).map(Zeroizing::new).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "is not text".to_owned())?.trim();
    match text.len() {
        0 => Err("is empty".into()),
        1..=MAX_PASSWORD => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(format!("holds more than {MAX_PASSWORD} bytes; is it the right file?")),
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
        if !self.breaker.admits(clock::now()) {
            return Err(Error::NotAsked);
        }
        let asked = async {
            let mut link = self.link().await?;
            commands.query_async(&mut link).await.map_err(Error::from)
        };
        let answer = timeout_at(until.into(), asked).await.unwrap_or(Err(Error::Timeout));
        let outcome = answer.as_ref().err().map_or(Outcome::Reached, Error::outcome);
        self.breaker.heard(outcome, clock::now());
        let broken = matches!(answer, Err(Error::Unreachable(_) | Error::Denied(_) | Error::Malformed(_)));
        // One that is silent for long may have lost its other end: a new one is tried when it is asked again.
        if broken || (outcome == Outcome::Unreachable && self.breaker.circuit() != Circuit::Closed) {
            self.link.lock().take();
        }
        answer
    }

    /// Whether it is asked.
    pub fn circuit(&self) -> Circuit {
        self.breaker.circuit()
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
