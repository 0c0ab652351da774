//! The real gateway, started as a child process with a configuration of the test's own, watched,
//! and ended by its handle.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use toml::Table;

use super::checks::check_for_operators;
use super::client::Client;
use super::origin::{Origin, Shared};
use super::ports::unused_port;
use super::{PATIENCE, Response};

/// What the log says of a panic. `process::panic_is_logged_by_its_location_only` holds it to that.
pub const FAULT: &str = "internal error";

/// The pace of a slow client or API: a part of the test, never a wait for a condition.
#[expect(clippy::disallowed_methods, reason = "the thread of a test serves no client")]
pub fn pace(time: Duration) {
    std::thread::sleep(time);
}

/// Waits between two looks at something that cannot wake us.
#[expect(clippy::disallowed_methods, reason = "the thread of a test serves no client")]
pub fn look_again() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Destination of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LogTo {
    /// To the test, which reads it.
    Test,
    /// To a disk that has no room: it cannot be written.
    FullDisk,
    /// To a pipe that is read when the test calls `Gateway::read_log`.
    Unread,
}

/// A running gateway. Dropped, it is killed, and what it wrote and counted is searched for secrets
/// and tokens.
pub struct Gateway {
    process: Process,
    public: SocketAddr,
    admin: SocketAddr,
    tls: SocketAddr,
    admin_token: Option<String>,
    variables: Vec<(String, String)>,
    origin: Arc<Shared>,
    ended: bool,
    log_to: LogTo,
    /// Removed with the gateway.
    dir: TempDir,
}

/// How a process ended.
#[derive(Debug)]
pub struct Run {
    /// `None`: by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A gateway to be started.
pub struct Setup<'a> {
    origin: &'a Origin,
    config: String,
    files: Vec<(String, String)>,
    admin_token: Option<String>,
    open_files: Option<OpenFiles>,
    log_to: LogTo,
    variables: Vec<(String, String)>,
}

/// Limits on file descriptors with which a process starts.
#[derive(Clone, Copy)]
struct OpenFiles {
    soft: usize,
    hard: usize,
}

impl Setup<'_> {
    /// What it logs cannot be written: `ENOSPC`, whatever it is.
    pub fn full_disk(mut self) -> Self {
        self.log_to = LogTo::FullDisk;
        self
    }

    /// The log is not read until `Gateway::read_log`.
    pub fn unread_log(mut self) -> Self {
        self.log_to = LogTo::Unread;
        self
    }

    /// Sets an environment variable. `{dir}` is replaced by the folder of `file`.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How many files it may have open at most.
    pub fn open_files(self, most: usize) -> Self {
        self.open_files_between(most, most)
    }

    /// The same, with a soft limit that it may raise to the hard one.
    pub fn open_files_between(mut self, soft: usize, hard: usize) -> Self {
        self.open_files = Some(OpenFiles { soft, hard });
        self
    }

    /// TOML that overrides the test's defaults, key by key. `{dir}` is the folder of `file`,
    /// `{tls}` an address that is free.
    pub fn config(mut self, toml: &str) -> Self {
        self.config = toml.to_owned();
        self
    }

    /// A file that the configuration may name.
    pub fn file(mut self, name: &str, contents: &str) -> Self {
        self.files.push((name.to_owned(), contents.to_owned()));
        self
    }

    /// What the admin listener asks for, when the configuration has a `token_file`.
    pub fn admin_token(mut self, token: &str) -> Self {
        self.admin_token = Some(token.to_owned());
        self
    }

    /// Starts it and waits until it says that it is ready. Another process may take a port in
    /// between; then others are tried.
    pub fn start(self) -> Gateway {
        for _ in 0..10 {
            if let Some(gateway) = self.attempt() {
                return gateway;
            }
        }
        panic!("no free ports in ten tries");
    }

    fn attempt(&self) -> Option<Gateway> {
        let dir = TempDir::new();
        for (name, contents) in &self.files {
            dir.write(name, contents);
        }
        let (public, admin, tls) = (unused_port(), unused_port(), unused_port());
        let in_dir = |text: &str| text.replace("{dir}", &dir.path().display().to_string());
        let overrides = in_dir(&self.config).replace("{tls}", &tls.to_string());
        let config = dir
            .write("gateway.toml", &configuration(public, admin, &self.origin.url(), &overrides));
        let variables: Vec<_> =
            self.variables.iter().map(|(name, value)| (name.clone(), in_dir(value))).collect();
        let process = Process::spawn_with(
            self.open_files,
            self.log_to,
            &variables,
            &["run", "-c", &config.display().to_string()],
        );
        let mut gateway = Gateway {
            process,
            variables,
            public,
            admin,
            tls,
            admin_token: self.admin_token.clone(),
            origin: self.origin.shared.clone(),
            ended: false,
            log_to: self.log_to,
            dir,
        };
        gateway.wait_until_ready().then_some(gateway)
    }
}

/// The defaults of the tests, and over them what the test wants. No jitter, so that a time to live
/// is what it says; and long times for what a slow machine must not bring about: an identity that
/// runs out, an API that is given up.
fn configuration(public: SocketAddr, admin: SocketAddr, upstream: &str, overrides: &str) -> String {
    let defaults = format!(
        r#"
        server = {{ listen = ["{public}"], threads = 2 }}
        admin = {{ listen = "{admin}" }}
        upstream = {{ url = "{upstream}", timeout = "50s" }}
        identity = {{ ttl = "10m", refresh_after = "5m" }}
        cache = {{ ttl_jitter = 0.0 }}
        log = {{ level = "debug" }}
        "#
    );
    let mut config: Table = toml::from_str(&defaults).expect("the defaults are TOML");
    overlay(
        &mut config,
        toml::from_str(overrides)
            .unwrap_or_else(|error| panic!("invalid TOML: {error}\n{overrides}")),
    );
    toml::to_string(&config).expect("a table is TOML")
}

fn overlay(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => overlay(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

impl Gateway {
    /// In front of that origin, with the defaults.
    pub fn start(origin: &Origin) -> Gateway {
        Gateway::set_up(origin).start()
    }

    /// The same, with a TOML snippet over the defaults.
    pub fn with(origin: &Origin, config: &str) -> Gateway {
        Gateway::set_up(origin).config(config).start()
    }

    pub fn set_up(origin: &Origin) -> Setup<'_> {
        Setup {
            origin,
            config: String::new(),
            files: Vec::new(),
            admin_token: None,
            open_files: None,
            log_to: LogTo::Test,
            variables: Vec::new(),
        }
    }

    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(run) = self.process.ended() {
                self.ended = true;
                let is_reported = run.stderr.contains("in use") || run.stdout.contains("in use");
                // A full disk cannot hold the message.
                let port_taken =
                    is_reported || (self.log_to == LogTo::FullDisk && run.code == Some(1));
                assert!(port_taken, "the gateway ended before it was ready: {run:#?}");
                return false;
            }
            let ready = self.admin().try_connect().is_ok()
                && self.admin().get("/readyz").try_send().is_some_and(|r| r.status == 200);
            if ready {
                return true;
            }
            assert!(Instant::now() < deadline, "not ready in time: {}", self.log());
            look_again();
        }
    }

    /// A client of the public port.
    pub fn client(&self) -> Client {
        Client::of_gateway(self.public, self.origin.clone())
    }

    /// A client without TLS of another address of the gateway.
    pub fn client_of(&self, address: SocketAddr) -> Client {
        Client::of_gateway(address, self.origin.clone())
    }

    /// A client of the admin port.
    pub fn admin(&self) -> Client {
        Client::of_admin(self.admin)
    }

    pub fn public_address(&self) -> SocketAddr {
        self.public
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where `{tls}` of the configuration is.
    pub fn tls_address(&self) -> SocketAddr {
        self.tls
    }

    /// Its resident memory, in KiB.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child.id()))
            .expect("its status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("its resident memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The CPU time that it used so far, in user mode and in the kernel.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.child.id()))
            .expect("its times");
        let fields = stat.rsplit_once(')').expect("a name in brackets").1;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        // USER_HZ is 100 on every Linux that this runs on.
        Duration::from_millis(ticks * 10)
    }

    /// Writes one of its files again.
    pub fn rewrite(&self, name: &str, contents: &str) {
        self.dir.write(name, contents);
    }

    /// The configuration that it was started with, and reads again at a reload.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("gateway.toml")
    }

    /// What it wrote so far, to both outputs.
    pub fn log(&self) -> String {
        let (out, err) = self.process.written();
        out + &err
    }

    /// Reads a log that was not read so far.
    pub fn read_log(&mut self) {
        let Process { unread, readers, err, .. } = &mut self.process;
        readers.extend(unread.take().map(|stderr| collect(stderr, err)));
    }

    /// Waits until the log holds that text.
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("the log holds {text:?}"), || self.log().contains(text));
    }

    fn ask_admin(&self, path: &str) -> Response {
        let call = self.admin().get(path);
        match &self.admin_token {
            Some(token) => call.bearer(token).send(),
            None => call.send(),
        }
    }

    /// `/stats`.
    pub fn stats(&self) -> serde_json::Value {
        self.ask_admin("/stats").assert_status(200).json()
    }

    /// `/metrics`, as text.
    pub fn metrics(&self) -> String {
        self.ask_admin("/metrics").assert_status(200).text()
    }

    /// The sum of all series of that metric (its prefix left out) that have these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let name = format!("telecomx_gateway_{name}");
        let metrics = self.metrics();
        let series = metrics.lines().filter(|line| {
            let rest = line.strip_prefix(name.as_str()).unwrap_or_default();
            let all =
                labels.iter().all(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")));
            rest.starts_with(['{', ' ']) && all
        });
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until that metric is at least so much.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], at_least: f64) {
        wait_until(&format!("{name}{labels:?} is {at_least}"), || {
            self.metric(name, labels) >= at_least
        });
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// Starts a successor of this gateway with `--upgrade`.
    fn successor(&self) -> Process {
        let config = self.config_file().display().to_string();
        Process::spawn_with(
            None,
            LogTo::Test,
            &self.variables,
            &["run", "-c", &config, "--upgrade"],
        )
    }

    /// A successor takes over; this one is it from then on. How the one before ended.
    pub fn upgrade(&mut self) -> Run {
        self.check_counters();
        let began = Instant::now();
        let successor = self.successor();
        let run = std::mem::replace(&mut self.process, successor).wait();
        check_for_operators("the log", &format!("{}{}", run.stdout, run.stderr));
        assert!(self.wait_until_ready(), "a successor needs no other port");
        Run { took: began.elapsed(), ..run }
    }

    /// How a successor ends that cannot take over.
    pub fn failed_upgrade(&self) -> Run {
        self.successor().wait()
    }

    /// TERM, and how it ended.
    pub fn terminate(&mut self) -> Run {
        self.check_counters();
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        let run = self.wait();
        Run { took: began.elapsed(), ..run }
    }

    /// Waits until it has ended by itself or by a signal sent before; `took` counts from here.
    pub fn wait(&mut self) -> Run {
        let began = Instant::now();
        self.ended = true;
        let run = self.process.wait();
        Run { took: began.elapsed(), ..run }
    }

    fn check_counters(&self) {
        check_for_operators("/metrics", &self.metrics());
        check_for_operators("/stats", &self.stats().to_string());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.process.kill();
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("the gateway's last lines:");
            last.iter().rev().for_each(|line| eprintln!("  {line}"));
            return;
        }
        if !self.ended {
            let died = self.process.ended();
            assert!(died.is_none(), "the gateway died: {died:#?}");
            self.check_counters();
            self.process.kill();
        }
        let log = self.log();
        check_for_operators("the log", &log);
        // The second is what is logged of a panic once logs are set up.
        let panicked =
            log.lines().find(|line| line.contains("panicked at") || line.contains(FAULT));
        assert!(panicked.is_none(), "the gateway panicked: {panicked:?}");
    }
}

/// Waits until a condition holds that nothing can wake us for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        look_again();
    }
}

/// Runs the binary with that standard input until it ends.
pub fn run_binary(arguments: &[&str], input: &[u8]) -> Run {
    run_binary_with(&[], arguments, input)
}

/// The same, with these variables in its environment.
pub fn run_binary_with(variables: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Run {
    let began = Instant::now();
    let mut process = Process::spawn(variables, arguments);
    process.give(input);
    let run = process.wait();
    Run { took: began.elapsed(), ..run }
}

/// The binary under test, with its outputs collected.
struct Process {
    child: Child,
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    unread: Option<ChildStderr>,
}

impl Process {
    fn spawn(variables: &[(&str, &str)], arguments: &[&str]) -> Process {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Process::spawn_with(
            None,
            LogTo::Test,
            &variables.iter().map(own).collect::<Vec<_>>(),
            arguments,
        )
    }

    fn spawn_with(
        open_files: Option<OpenFiles>,
        log_to: LogTo,
        variables: &[(String, String)],
        arguments: &[&str],
    ) -> Process {
        let binary = env!("CARGO_BIN_EXE_telecomx-gateway");
        let mut command = match open_files {
            // The shell becomes the binary, so that it is our own child.
            Some(OpenFiles { soft, hard }) => {
                let mut shell = Command::new("sh");
                let limited =
                    format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
                shell.args(["-c", &limited, binary]);
                shell
            }
            None => Command::new(binary),
        };
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if log_to == LogTo::FullDisk {
            command.stderr(
                OpenOptions::new().write(true).open("/dev/full").expect("a device of every Linux"),
            );
        }
        for (name, _) in std::env::vars_os()
            .filter(|(name, _)| name.to_string_lossy().starts_with("TELECOMX_GATEWAY"))
        {
            command.env_remove(name);
        }
        // What the machine that tests has of these would be the gateways' common place to meet.
        for name in ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().expect("the binary can be started");
        let (out, err) = (Arc::default(), Arc::default());
        let stdout = child.stdout.take().expect("a piped output");
        let mut readers = vec![collect(stdout, &out)];
        let stderr = child.stderr.take();
        let (read, unread) = if log_to == LogTo::Unread { (None, stderr) } else { (stderr, None) };
        readers.extend(read.map(|stderr| collect(stderr, &err)));
        Process { child, out, err, readers, unread }
    }

    fn give(&mut self, input: &[u8]) {
        // Closes it, too. A process that does not read its input is no fault.
        let _ = self.child.stdin.take().map(|mut stdin| stdin.write_all(input));
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("a signal to a child of ours");
    }

    fn written(&self) -> (String, String) {
        let text = |bytes: &Mutex<Vec<u8>>| String::from_utf8_lossy(&bytes.lock()).into_owned();
        (text(&self.out), text(&self.err))
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<Run> {
        let status = self.child.try_wait().expect("a child of ours")?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let (stdout, stderr) = self.written();
        Some(Run { code: status.code(), stdout, stderr, took: Duration::ZERO })
    }

    fn wait(&mut self) -> Run {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(run) = self.ended() {
                return run;
            }
            if Instant::now() > deadline {
                self.kill();
                panic!("did not end in time: {:#?}", self.written());
            }
            look_again();
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(mut from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let into = into.clone();
    std::thread::spawn(move || {
        let mut chunk = [0; 8 * 1024];
        while let Ok(read) = from.read(&mut chunk) {
            if read == 0 {
                return;
            }
            into.lock().extend_from_slice(&chunk[..read]);
        }
    })
}

/// A folder that is removed when the test ends.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "telecomx-gateway-test-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, contents).expect("a file of the test");
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
