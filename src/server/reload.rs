//! Reload: replaces the configuration of a running process, all of it or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::admin_token::AdminTokens;
use super::descriptors;
use super::file_digests::FileDigests;
use super::secrets;
use super::state::{ActiveState, RequestState};
use super::tls::{ListenerTls, LoadedTls};
use crate::config::{self, Config};
use crate::telemetry::LogLevels;

/// Reads the configuration again: the configuration, or the text of its errors.
pub type Source = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The time and the result of a reload.
#[derive(Clone)]
pub struct Reload {
    pub at: SystemTime,
    /// The changed keys that need a restart, or the errors of the configuration.
    pub result: Result<Vec<&'static str>, String>,
}

/// The parts outside the request state that a reload changes.
pub struct ReloadedParts {
    pub levels: LogLevels,
    pub tls: Option<Arc<ListenerTls>>,
    pub admin_tokens: Option<Arc<AdminTokens>>,
}

/// Applies a changed configuration.
pub struct Reloader {
    source: Source,
    active: Arc<ActiveState>,
    parts: ReloadedParts,
    /// The configuration that the process started with.
    started: Config,
    /// The files that are read at the start only, as they were then.
    start_files: FileDigests,
    /// Locked while the state is replaced, so that reloads are sequential.
    lock: Mutex<()>,
    generation: AtomicU64,
    last: Mutex<Option<Reload>>,
}

impl Reloader {
    pub fn new(
        source: Source,
        active: Arc<ActiveState>,
        config: Config,
        parts: ReloadedParts,
    ) -> Self {
        Reloader {
            source,
            active,
            parts,
            start_files: FileDigests::of_start_files(&config),
            started: config,
            lock: Mutex::new(()),
            generation: AtomicU64::new(1),
            last: Mutex::new(None),
        }
    }

    /// The number of configurations that were active so far.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The last reload, if there was one.
    pub fn last(&self) -> Option<Reload> {
        self.last.lock().clone()
    }

    /// Reads and applies the configuration; returns the changed keys that need a restart.
    ///
    /// # Errors
    /// The errors of the configuration. The active one stays in use.
    pub fn reload(&self) -> Result<Vec<&'static str>, String> {
        let _lock = self.lock.lock();
        let result = self.apply();
        *self.last.lock() = Some(Reload { at: SystemTime::now(), result: result.clone() });
        result
    }

    fn apply(&self) -> Result<Vec<&'static str>, String> {
        let metrics = &self.active.process.metrics;
        match self.prepare() {
            Ok(prepared) => {
                let restart = self.activate(prepared);
                metrics.set_reload_applied();
                Ok(restart)
            }
            Err(problems) => {
                metrics.set_reload_rejected();
                tracing::error!(target: "audit", problems, "rejected the configuration; the current one stays in force");
                Err(problems)
            }
        }
    }

    /// Reads everything that a reload changes, without using it yet.
    fn prepare(&self) -> Result<Prepared, String> {
        let new = (self.source)()?;
        let process = &self.active.process;
        let applied = applied(&self.started, &new);
        let before = self.active.load();
        let gateway = |policy| before.gateway.reconfigured(&applied, policy);
        let state = RequestState::new(&applied, process.clone(), gateway);
        let state = state.map_err(|error| error.to_string())?;
        let tls = match (&self.parts.tls, &applied.server.tls) {
            (Some(active), Some(files)) => {
                Some(active.prepare(files).map_err(|problems| problems.join("\n"))?)
            }
            _ => None,
        };
        let admin_tokens =
            self.parts.admin_tokens.as_ref().map(|active| active.read()).transpose()?;
        let upstream = &self.started.upstream;
        process.connector.reload_tls(upstream).map_err(|error| error.to_string())?;
        Ok(Prepared { new, state, tls, admin_tokens })
    }

    /// Uses what was read; returns the changed keys that need a restart.
    fn activate(&self, prepared: Prepared) -> Vec<&'static str> {
        let Prepared { new, state, tls, admin_tokens } = prepared;
        if let (Some(active), Some(loaded)) = (&self.parts.tls, tls) {
            active.apply(loaded);
        }
        if let (Some(active), Some(digests)) = (&self.parts.admin_tokens, admin_tokens) {
            active.store(digests);
        }
        self.parts.levels.set(new.log.level);
        let before = self.active.load();
        let changes = config::changes(&before.config, &state.config);
        let changed: Vec<&str> = changes.iter().map(|change| change.key).collect();
        let policy = state.gateway.policy_id();
        self.active.store(state);
        // A reload that another gateway requested must not be announced again.
        let is_new = policy != before.gateway.policy_id();
        if let Some(stream) = self.active.process.invalidation_stream.get().filter(|_| is_new) {
            stream.publish_policy(policy);
        }
        self.generation.fetch_add(1, Ordering::Relaxed);
        let mut restart = needs_restart(&self.started, &new);
        let start_files = FileDigests::of_start_files(&self.started);
        restart.extend(start_files.changed_since(&self.start_files));
        tracing::info!(
            target: "audit",
            changed = changed.join(", "),
            restart_needed_for = restart.join(", "),
            "applied the configuration"
        );
        descriptors::warn_if_low(&new.server);
        log_warnings(&new);
        restart
    }
}

/// What a reload has read and not yet used.
struct Prepared {
    new: Config,
    state: RequestState,
    tls: Option<LoadedTls>,
    admin_tokens: Option<Vec<blake3::Hash>>,
}

/// Tables that are named as a whole if one of their keys needs a restart.
const RESTART_TABLES: [&str; 5] = ["admin", "upstream", "change_log", "cluster", "otlp"];

/// The keys that differ from the configuration at the start and that only a restart applies, or
/// their tables.
fn needs_restart(started: &Config, new: &Config) -> Vec<&'static str> {
    let changes = config::changes(started, new).into_iter();
    let changes = changes.filter(|change| change.reload == config::Reload::NeedsRestart);
    let table =
        |key: &str| RESTART_TABLES.into_iter().find(|table| key.split('.').next() == Some(*table));
    let mut names: Vec<&str> =
        changes.map(|change| table(change.key).unwrap_or(change.key)).collect();
    names.dedup();
    names
}

/// Logs the warnings about a configuration, which `check` prints too.
pub(super) fn log_warnings(config: &Config) {
    for config::Warning { key, cause, remedy } in config::warnings(config) {
        tracing::warn!(key, cause, remedy, "dangerous setting");
    }
    for warning in secrets::warnings(config) {
        tracing::warn!(warning, "insecure handling of a secret");
    }
}

/// The new configuration with the keys of [`needs_restart`] as they were at the start.
fn applied(started: &Config, new: &Config) -> Config {
    let mut applied = new.clone();
    let old = started.clone();
    applied.server.listen = old.server.listen;
    applied.server.threads = old.server.threads;
    // The addresses need a restart, the files do not. A table that appears or disappears does.
    applied.server.tls = match (old.server.tls, applied.server.tls) {
        (Some(old), Some(new)) => Some(config::Tls { listen: old.listen, ..new }),
        (old, _) => old,
    };
    applied.server.upgrade_socket = old.server.upgrade_socket;
    applied.admin = old.admin;
    applied.upstream = old.upstream;
    applied.change_log = old.change_log;
    applied.cluster = old.cluster;
    applied.otlp = old.otlp;
    applied.cache.max_bytes = old.cache.max_bytes;
    applied.log.format = old.log.format;
    applied.log.buffer = old.log.buffer;
    applied
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn keys_that_need_a_restart_are_not_applied_by_a_reload() {
        let read = |text: &str| config::parse("test.toml", text, []).unwrap();
        let started = read(
            r#"
            upstream.url = "https://api.example"
            [server.tls]
            listen = ["127.0.0.1:9"]
            cert_file = "c"
            key_file = "k"
            "#,
        );
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
        let applied = applied(&started, &new);
        // A reload applies exactly the changes that the table of keys says.
        assert_eq!(needs_restart(&started, &applied), Vec::<&str>::new());
        for change in config::changes(&applied, &new) {
            assert_eq!(change.reload, config::Reload::NeedsRestart, "{}", change.key);
        }
        assert_eq!(applied.cache.ttl, Duration::from_secs(7));
        assert_eq!(applied.server.max_connections, 7);
    }
}
