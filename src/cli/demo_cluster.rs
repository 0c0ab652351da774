//! `demo --fleet`: several gateways with one Redis in front of one sandbox, on free ports of this
//! machine.
//!
//! Each gateway and the Redis are processes that end with this one, and a helper process removes
//! their directory.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{
    CommandError, bind_sandbox, demo_token, healthcheck, parent_death, print_line, serve_sandbox,
};
use crate::api::AccessLevel;
use crate::{clock, sandbox};

/// Name of the Redis process and of its program.
const REDIS: &str = "redis-server";

/// Maximum time for the processes to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two checks whether all processes run.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum time for a process to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses of a gateway.
struct DemoGateway {
    public: SocketAddr,
    admin: SocketAddr,
}

/// The processes and their directory. Dropping it ends the processes and removes the directory.
struct DemoProcesses {
    running: Vec<DemoProcess>,
    directory: PathBuf,
    /// Removes the directory if this process is killed.
    cleanup: Child,
}

struct DemoProcess {
    name: String,
    child: Child,
}

impl Drop for DemoProcesses {
    fn drop(&mut self) {
        // Redis last, so that the gateways log no errors.
        for DemoProcess { child, .. } in self.running.iter_mut().rev() {
            let _ = rustix::process::Pid::from_raw(child.id().cast_signed())
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
            let deadline = clock::now() + STOP_TIMEOUT;
            while matches!(child.try_wait(), Ok(None)) && clock::now() < deadline {
                parent_death::pause(POLL_INTERVAL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
        // The helper ends when its standard input does.
        drop(self.cleanup.stdin.take());
        let _ = self.cleanup.wait();
    }
}

/// Runs until a signal ends it.
pub(super) fn run(size: usize) -> Result<(), CommandError> {
    // From here on a signal ends the demo in order, also during the start.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::failure)?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        let listen = |kind| signal(kind).map_err(CommandError::failure);
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    let directory =
        std::env::temp_dir().join(format!("telecomx-gateway-demo-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&directory).map_err(|error| {
        CommandError::failure(format_args!(
            "cannot create the directory {}: {error}",
            directory.display()
        ))
    })?;
    let cleanup =
        parent_death::remove_directory_at_end(&directory).map_err(CommandError::failure)?;
    let mut processes = DemoProcesses { running: Vec::new(), directory, cleanup };
    let redis = processes.start_redis()?;
    let (listener, api) = bind_sandbox(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    serve_sandbox(listener, sandbox::Options::default())?;
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(CommandError::failure)?;
    processes.write("keys", &format!("demo {}\n", blake3::Hash::from_bytes(key).to_hex()))?;
    let ports = free_ports(size * 2)?;
    let gateways: Vec<DemoGateway> =
        ports.chunks_exact(2).map(|pair| DemoGateway { public: pair[0], admin: pair[1] }).collect();
    for (number, gateway) in gateways.iter().enumerate() {
        processes.start_gateway(number, gateway, api, &redis)?;
    }
    for gateway in &gateways {
        processes.wait_until(|| healthcheck::check(gateway.admin).is_ok())?;
    }
    print_line(commands(&gateways, api, &redis))?;
    runtime.block_on(async {
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(POLL_INTERVAL) => processes.check_gateways()?,
            }
        }
    })
}

impl DemoProcesses {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf, CommandError> {
        let path = self.directory.join(name);
        // One of the files has a key, and the gateways warn of one that others may read.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| CommandError::failure(format_args!("{}: {error}", path.display())))?;
        Ok(path)
    }

    fn start_redis(&mut self) -> Result<PathBuf, CommandError> {
        let socket = self.directory.join("redis.sock");
        let program = find_program(REDIS).ok_or_else(|| {
            CommandError::failure(
                "demo --fleet requires redis-server, which is not installed; install it (Debian: \
                 apt-get install redis-server), or run a single gateway with \
                 `telecomx-gateway demo`",
            )
        })?;
        let mut command = parent_death::command(program).map_err(CommandError::failure)?;
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocketperm",
            "700",
            "--unixsocket",
        ]);
        command
            .arg(&socket)
            .arg("--dir")
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().map_err(|error| {
            CommandError::failure(format_args!("cannot start redis-server: {error}"))
        })?;
        self.running.push(DemoProcess { name: REDIS.to_owned(), child });
        self.wait_until(|| socket.exists())?;
        Ok(socket)
    }

    fn start_gateway(
        &mut self,
        number: usize,
        gateway: &DemoGateway,
        api: SocketAddr,
        redis: &Path,
    ) -> Result<(), CommandError> {
        let DemoGateway { public, admin } = gateway;
        let keys = self.directory.join("keys");
        // In this directory, so that a killed demo leaves nothing in $XDG_RUNTIME_DIR.
        let upgrade_socket = self.directory.join(format!("upgrade-{number}/socket"));
        let config = format!(
            "[server]\nlisten = [\"{public}\"]\nupgrade_socket = {:?}\n[admin]\nlisten = \"{admin}\"\n\
             [upstream]\nurl = \"http://{api}\"\n\
             [cluster]\nurl = \"unix://{}\"\nkey_file = {:?}\n\
             [log]\nformat = \"text\"\nlevel = \"warn\"\naccess = \"off\"\n",
            upgrade_socket.display().to_string(),
            redis.display(),
            keys.display().to_string(),
        );
        let file = self.write(&format!("gateway-{number}.toml"), &config)?;
        let program = std::env::current_exe().map_err(CommandError::failure)?;
        let mut command = parent_death::command(program).map_err(CommandError::failure)?;
        let child = command.arg("run").arg("-c").arg(file).stdin(Stdio::null()).spawn();
        let child = child.map_err(CommandError::failure)?;
        self.running.push(DemoProcess { name: format!("gateway {}", number + 1), child });
        Ok(())
    }

    /// Waits for a condition while all processes run.
    fn wait_until(&mut self, condition: impl Fn() -> bool) -> Result<(), CommandError> {
        let deadline = clock::now() + START_TIMEOUT;
        while !condition() {
            self.check_running(|_| true)?;
            if clock::now() > deadline {
                return Err(CommandError::failure("the gateways did not start in time"));
            }
            parent_death::pause(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Checks that all gateways run. The user may end Redis to see what happens.
    fn check_gateways(&mut self) -> Result<(), CommandError> {
        self.check_running(|name| name != REDIS)
    }

    fn check_running(&mut self, must_run: impl Fn(&str) -> bool) -> Result<(), CommandError> {
        for DemoProcess { name, child } in &mut self.running {
            if !must_run(name) {
                continue;
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(CommandError::failure(format_args!("{name} ended: {status}")));
            }
        }
        Ok(())
    }
}

/// Finds a program in the directories of `PATH`.
fn find_program(name: &str) -> Option<PathBuf> {
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Finds free ports. Another process may take one before it is used; the gateway then reports it.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>, CommandError> {
    let probes = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let probes = probes.collect::<Result<Vec<_>, _>>().map_err(CommandError::failure)?;
    probes
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<_, _>>()
        .map_err(CommandError::failure)
}

/// Commands for another terminal.
fn commands(gateways: &[DemoGateway], api: SocketAddr, redis: &Path) -> String {
    let customer = sandbox::DEMO_CUSTOMER;
    let [viewer, owner] = [AccessLevel::Viewer, AccessLevel::Owner].map(demo_token);
    let mut text = format!(
        "{} gateways, one Redis on {}, one sandbox of the API on http://{api}/.\n\
         Ctrl-C ends the demo. Try in another terminal:\n\n\
         # each of them: the second response is a hit\n",
        gateways.len(),
        redis.display()
    );
    let request = |gateway: &DemoGateway| {
        let address = gateway.public;
        format!(
            "curl -s -o /dev/null -w '%header{{cache-status}}\\n' -H 'Authorization: Bearer {viewer}' \
             http://{address}/customer/{customer}/name\n"
        )
    };
    gateways.iter().for_each(|gateway| text += &request(gateway).repeat(2));
    if let [first, others @ ..] = gateways {
        text += &format!(
            "\n# an update through the first; the others fetch again\n\
             curl -s -X POST -d '{{\"name\":\"Andeby A/S\"}}' -H 'Content-Type: application/json' \
             -H 'Authorization: Bearer {owner}' http://{}/customer/{customer}\n",
            first.public
        );
        others.iter().for_each(|gateway| text += &request(gateway));
        text += &format!("\n# state of each; status page of the first: http://{}/\n", first.admin);
        for gateway in gateways {
            text += &format!("curl -s http://{}/stats\n", gateway.admin);
        }
        text += &format!(
            "\n# without Redis: each serves cached responses for ten seconds, then sends every request to the API\n\
             redis-cli -s {} shutdown nosave\n",
            redis.display()
        );
        text += &request(first);
    }
    text
}
