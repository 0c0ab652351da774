//! Concurrent upgrades by SIGUSR2 and `run --upgrade`: one process serves afterwards, and it has
//! seen every change.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const WRITE: &str = "/customer/73469a52f4fd7f77ec7b28cc";

/// Rounds in the suite; `UPGRADE_ROUNDS` sets another number.
const ROUNDS: usize = 4;

fn rounds() -> usize {
    std::env::var("UPGRADE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// The processes that run with the gateway's configuration file.
fn processes(gateway: &Gateway) -> Vec<Pid> {
    let config = gateway.config_file().display().to_string();
    let all = std::fs::read_dir("/proc").expect("processes").filter_map(Result::ok);
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let runs = |id: &i32| {
        std::fs::read_to_string(format!("/proc/{id}/cmdline"))
            .is_ok_and(|text| text.contains(&config))
    };
    ids.filter(runs).map(Pid::from_raw).collect()
}

/// Starts `run --upgrade` next to the running process.
fn successor(gateway: &Gateway) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"));
    command.args(["run", "--upgrade", "-c"]).arg(gateway.config_file());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// Kills the remaining processes of the gateway.
struct Rest<'a>(&'a Gateway);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        for process in processes(self.0) {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

fn version(number: usize) -> String {
    format!(r#"{{"name":"version {number}"}}"#)
}

#[test]
fn concurrent_upgrades_leave_one_process_with_all_changes() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config = r#"server = { upgrade_socket = "{dir}/meet/upgrade.socket", drain = "2s" }"#;
    let mut gateway = Gateway::with(&origin, config);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..2)
        .map(|number| {
            let (client, stop, answered) = (gateway.client(), stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut connection = client.connect();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.get(P).bearer("tok-a").send_on(&mut connection);
                    answer.assert_status(200);
                    answered.fetch_add(1, Ordering::Relaxed);
                    if number == 0 || answer.header("connection") == Some("close") {
                        connection = client.connect();
                    }
                }
            })
        })
        .collect();
    let rest = Rest(&gateway);
    for round in 1..=rounds() {
        let before = processes(&gateway);
        assert_eq!(before.len(), 1, "round {round}");
        let so_far = answered.load(Ordering::Relaxed);
        let mut successors: Vec<Child> = Vec::new();
        for _ in 0..2 {
            kill(before[0], Signal::SIGUSR2).expect("it runs");
            successors.push(successor(&gateway));
            kill(before[0], Signal::SIGUSR2).expect("it runs");
        }
        wait_until(&format!("round {round}: one process is left"), || {
            for child in &mut successors {
                let _ = child.try_wait();
            }
            let now = processes(&gateway);
            now.len() == 1 && now != before
        });
        wait_until("clients are answered", || answered.load(Ordering::Relaxed) > so_far + 20);
        // After a write every response is newer; after a logout the token is refused.
        origin.document(DUCK, Answer::json(version(round)));
        let token = format!("tok-{round}");
        origin.knows(&token, "VIEWER", OTHER);
        let client = gateway.client();
        client.get(P).bearer(&token).send().assert_status(200);
        client.post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
        client.get("/auth/logout").bearer(&token).send().assert_status(200);
        origin.forgets(&token);
        for _ in 0..40 {
            let answer = client.get(P).bearer("tok-a").send();
            assert!(
                answer.assert_status(200).text().contains(&format!("version {round}\"")),
                "{round}: {answer:#?}"
            );
            assert_eq!(client.get(P).bearer(&token).send().status, 401, "round {round}");
        }
        gateway.admin().get("/readyz").send().assert_status(200);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("every request was answered");
    }
    for process in processes(&gateway) {
        kill(process, Signal::SIGTERM).expect("it runs");
    }
    wait_until("the last one ends", || processes(&gateway).is_empty());
    drop(rest);
    assert_eq!(gateway.wait().code, Some(0));
}

#[test]
fn changes_through_a_draining_process_reach_its_successor() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config = r#"server = { upgrade_socket = "{dir}/meet/upgrade.socket", drain = "50s" }"#;
    let mut gateway = Gateway::with(&origin, config);
    // A write is in flight at the predecessor.
    let gate = Gate::closed();
    origin.when(Rule::on(WRITE).method("POST").hold(&gate));
    let write = gateway.client().post(WRITE).bearer("tok-a").body("{}").start();
    origin.wait_until("the write is there", |seen| seen.iter().any(|seen| seen.path() == WRITE));
    let client = gateway.client();
    let opener = std::thread::spawn(move || {
        let is_hit = || client.get(P).bearer("tok-a").send().assert_status(200).is_hit();
        let is_first = || {
            client
                .get(P)
                .bearer("tok-a")
                .send()
                .assert_status(200)
                .cache_status()
                .contains("uri-miss")
        };
        is_hit();
        wait_until("the successor serves", is_first);
        wait_until("the successor answers from memory", is_hit);
        gate.open();
        write.finish().assert_status(200);
        wait_until("the successor asks again", || !is_hit());
    });
    assert_eq!(gateway.upgrade().code, Some(0));
    opener.join().expect("the change reached the successor");
}

#[test]
fn signals_during_the_start_do_not_end_the_process() {
    let origin = Origin::start();
    for signal in [Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGQUIT] {
        for milliseconds in (0..20).chain((20..=60).step_by(10)) {
            let dir = TempDir::new();
            let (public, admin) = (unused_port(), unused_port());
            let toml = format!(
                "server.listen = [\"{public}\"]\nadmin.listen = \"{admin}\"\nupstream.url = \"{}\"\n",
                origin.url()
            );
            let config = dir.write("gateway.toml", &toml);
            let mut child = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"))
                .args(["run", "-c"])
                .arg(&config)
                .env_remove("RUNTIME_DIRECTORY")
                .env_remove("XDG_RUNTIME_DIR")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("it starts");
            let id = Pid::from_raw(child.id().cast_signed());
            // The program has begun. Before, the kernel decides the effect of a signal.
            let caught = || {
                let status =
                    std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
                let mask = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigCgt:"))
                    .map(str::trim)
                    .map(str::to_owned);
                mask.is_some_and(|mask| {
                    u64::from_str_radix(&mask, 16).unwrap_or(0) >> (signal as u32 - 1) & 1 == 1
                })
            };
            wait_until("the signal is caught", caught);
            pace(std::time::Duration::from_millis(milliseconds));
            kill(id, signal).expect("it runs");
            wait_until("it serves", || {
                assert!(
                    child.try_wait().expect("a child").is_none(),
                    "{signal} after {milliseconds} ms ended it"
                );
                std::net::TcpStream::connect(public).is_ok()
            });
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }
}
