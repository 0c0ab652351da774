//! `demo --fleet`: several gateways with one Redis in front of one sandbox, on free ports of this machine.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::{Ending, health, open_sandbox, say};
use crate::api::AccessLevel;
use crate::sandbox;

/// How long the parts have to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at whether all of them still run.
const LOOK: Duration = Duration::from_millis(50);

/// How long they have to end.
const LAST: Duration = Duration::from_secs(5);

/// A gateway of the demonstration.
struct Member {
    public: SocketAddr,
    admin: SocketAddr,
}

/// Its processes and files, which go when it does.
struct Parts {
    running: Vec<(String, Child)>,
    folder: PathBuf,
}

impl Drop for Parts {
    fn drop(&mut self) {
        // The Redis last, so that the gateways have no reason to complain.
        for (_, child) in self.running.iter_mut().rev() {
            let _ = rustix::process::Pid::from_raw(child.id().cast_signed())
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
            let until = Instant::now() + LAST;
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
                pause();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing is served by this thread")]
fn pause() {
    std::thread::sleep(LOOK);
}

/// Runs until a signal ends it.
pub fn run(size: usize) -> Result<(), Ending> {
    // From here on a signal ends it in order, however far it has come.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Ending::failed)?;
    let (mut interrupt, mut terminate) = {
        let _within = runtime.enter();
        let listen = |kind| signal(kind).map_err(Ending::failed);
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    let folder = std::env::temp_dir().join(format!("telecomx-gateway-demo-{}", std::process::id()));
    DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .map_err(|error| Ending::failed(format_args!("cannot create the directory {}: {error}", folder.display())))?;
    let mut parts = Parts { running: Vec::new(), folder };
    let redis = parts.start_redis()?;
    let (_serving, api) = open_sandbox(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), sandbox::Options::default())?;
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(Ending::failed)?;
    parts.write("keys", &format!("demo {}\n", blake3::Hash::from_bytes(key).to_hex()))?;
    let ports = free_ports(size * 2)?;
    let members: Vec<Member> = ports.chunks_exact(2).map(|pair| Member { public: pair[0], admin: pair[1] }).collect();
    for (number, member) in members.iter().enumerate() {
        parts.start_gateway(number, member, api, &redis)?;
    }
    for member in &members {
        parts.await_that(|| health::ask(member.admin).is_ok())?;
    }
    say(lines(&members, api, &redis))?;
    runtime.block_on(async {
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(LOOK) => parts.all_gateways_run()?,
            }
        }
    })
}

impl Parts {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf, Ending> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(|error| Ending::failed(format_args!("{}: {error}", path.display())))?;
        Ok(path)
    }

    fn start_redis(&mut self) -> Result<PathBuf, Ending> {
        let socket = self.folder.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocketperm", "700", "--unixsocket"]);
        command.arg(&socket).arg("--dir").arg(&self.folder).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => Ending::failed(
                "demo --fleet requires redis-server, which is not installed; install it (Debian: apt-get install redis-server), or run a single gateway with `telecomx-gateway demo`",
            ),
            _ => Ending::failed(format_args!("cannot start redis-server: {error}")),
        })?;
        self.running.push(("redis-server".to_owned(), child));
        self.await_that(|| socket.exists())?;
        Ok(socket)
    }

    fn start_gateway(&mut self, number: usize, member: &Member, api: SocketAddr, redis: &Path) -> Result<(), Ending> {
        let Member { public, admin } = member;
        let keys = self.folder.join("keys");
        let config = format!(
            "[server]\nlisten = [\"{public}\"]\n[admin]\nlisten = \"{admin}\"\n[upstream]\nurl = \"http://{api}\"\n\
             [cluster]\nurl = \"unix://{}\"\nkey_file = {:?}\n\
             [log]\nformat = \"text\"\nlevel = \"warn\"\naccess = \"off\"\n",
            redis.display(),
            keys.display().to_string(),
        );
        let file = self.write(&format!("gateway-{number}.toml"), &config)?;
        let program = std::env::current_exe().map_err(Ending::failed)?;
        let child = Command::new(program).arg("run").arg("-c").arg(file).stdin(Stdio::null()).spawn();
        self.running.push((format!("gateway {}", number + 1), child.map_err(Ending::failed)?));
        Ok(())
    }

    /// Waits, as long as all of them run.
    fn await_that(&mut self, condition: impl Fn() -> bool) -> Result<(), Ending> {
        let until = Instant::now() + PATIENCE;
        while !condition() {
            self.look(|_| true)?;
            if Instant::now() > until {
                return Err(Ending::failed("the gateways did not start in time"));
            }
            pause();
        }
        Ok(())
    }

    /// That the Redis may be ended is part of what there is to be seen.
    fn all_gateways_run(&mut self) -> Result<(), Ending> {
        self.look(|name| name != "redis-server")
    }

    fn look(&mut self, must_run: impl Fn(&str) -> bool) -> Result<(), Ending> {
        for (name, child) in self.running.iter_mut().filter(|(name, _)| must_run(name)) {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Ending::failed(format_args!("{name} ended: {status}")));
            }
        }
        Ok(())
    }
}

/// Each may be taken by another process before it is used; then its gateway says so.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>, Ending> {
    let probes = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let probes = probes.collect::<Result<Vec<_>, _>>().map_err(Ending::failed)?;
    probes.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(Ending::failed)
}

/// Lines to paste.
fn lines(members: &[Member], api: SocketAddr, redis: &Path) -> String {
    let customer = sandbox::DEMO_CUSTOMER;
    let token = |level: AccessLevel| {
        sandbox::demo_callers().iter().find(|caller| caller.role == level).map_or("", |caller| caller.token)
    };
    let [viewer, owner] = [AccessLevel::Viewer, AccessLevel::Owner].map(token);
    let mut text = format!(
        "{} gateways, one Redis on {}, one sandbox of the API on http://{api}/.\nTry in another terminal:\n\n\
         # each of them: the second response is a hit\n",
        members.len(),
        redis.display()
    );
    let ask = |member: &Member| {
        let address = member.public;
        format!(
            "curl -s -o /dev/null -w '%header{{cache-status}}\\n' -H 'Authorization: Bearer {viewer}' \
             http://{address}/customer/{customer}/name\n"
        )
    };
    members.iter().for_each(|member| text += &ask(member).repeat(2));
    if let [first, others @ ..] = members {
        text += &format!(
            "\n# an update through the first; the others fetch again\n\
             curl -s -X POST -d '{{\"name\":\"Andeby A/S\"}}' -H 'Content-Type: application/json' \
             -H 'Authorization: Bearer {owner}' http://{}/customer/{customer}\n",
            first.public
        );
        others.iter().for_each(|member| text += &ask(member));
        text += &format!("\n# state of each; status page of the first: http://{}/\n", first.admin);
        for member in members {
            text += &format!("curl -s http://{}/stats\n", member.admin);
        }
        text += &format!(
            "\n# without Redis: each serves cached responses for ten seconds, then sends every request to the API\n\
             redis-cli -s {} shutdown nosave\n",
            redis.display()
        );
        text += &ask(first);
    }
    text
}
