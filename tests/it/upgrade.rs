//! Upgrades: clients during a handover, failed handovers, and the messages to the service manager.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

const HERE: &str = r#"server = { upgrade_socket = "{dir}/meet/upgrade.socket", drain = "50s" }"#;

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, HERE);
    (origin, gateway)
}

#[test]
fn upgrade_loses_no_request_and_no_connection() {
    let (_origin, mut gateway) = scene();
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|number| {
            let (client, stop, answered) = (gateway.client(), stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut connection = client.connect();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.get(P).bearer("tok-a").send_on(&mut connection);
                    answer.assert_status(200);
                    answered.fetch_add(1, Ordering::Relaxed);
                    // Half of the clients reconnect for each request.
                    if number % 2 == 0 || answer.header("connection") == Some("close") {
                        connection = client.connect();
                    }
                }
            })
        })
        .collect();
    let mut ids = vec![gateway.id()];
    for _ in 0..3 {
        let so_far = answered.load(Ordering::Relaxed);
        wait_until("callers are answered", || answered.load(Ordering::Relaxed) > so_far + 20);
        let run = gateway.upgrade();
        assert_eq!(run.code, Some(0), "{run:#?}");
        assert!(
            run.stderr.contains("handed over") || run.stdout.contains("handed over"),
            "{run:#?}"
        );
        ids.push(gateway.id());
    }
    let so_far = answered.load(Ordering::Relaxed);
    wait_until("the last one answers", || answered.load(Ordering::Relaxed) > so_far + 20);
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().expect("every request was answered");
    }
    ids.dedup();
    assert_eq!(ids.len(), 4, "each time another process");
    assert_eq!(gateway.terminate().code, Some(0));
}

#[test]
fn predecessor_finishes_its_requests_in_flight() {
    let (origin, mut gateway) = scene();
    let gate = Gate::closed();
    origin.when(Rule::on("/elsewhere").hold(&gate));
    let pending = gateway.client().get("/elsewhere").start();
    origin.wait_until("the request is there", |seen| {
        seen.iter().any(|seen| seen.path() == "/elsewhere")
    });
    let (client, admin) = (gateway.client(), gateway.admin());
    let opener = std::thread::spawn(move || {
        // The successor responds while the predecessor has its request: its cache is empty.
        let own =
            |answer: &Response| answer.status == 200 && answer.cache_status().contains("uri-miss");
        client.get(P).bearer("tok-a").send().assert_status(200);
        wait_until("another process answers", || own(&client.get(P).bearer("tok-a").send()));
        // The predecessor may accept one more connection.
        wait_until("the successor is ready", || admin.get("/readyz").send().status == 200);
        gate.open();
    });
    let run = gateway.upgrade();
    assert_eq!(run.code, Some(0), "{run:#?}");
    pending.finish().assert_status(200);
    opener.join().expect("both answered");
}

#[test]
fn successor_that_cannot_serve_changes_nothing() {
    let (origin, mut gateway) = scene();
    let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    let answers = |gateway: &Gateway| {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
        gateway.admin().get("/readyz").send().assert_status(200);
    };
    // An invalid configuration: the running process gets no request.
    gateway.rewrite("gateway.toml", &config.replace("50s", "soon"));
    let run = gateway.failed_upgrade();
    assert_eq!(run.code, Some(78), "{run:#?}");
    answers(&gateway);
    assert!(!gateway.log().contains("QUIT"), "{}", gateway.log());
    // An additional address that is occupied: the successor has the sockets, and exits.
    let public = gateway.public_address();
    let more = config
        .replace(&format!("\"{public}\""), &format!("\"{public}\", \"{}\"", origin.address()));
    assert_ne!(more, config);
    gateway.rewrite("gateway.toml", &more);
    let run = gateway.failed_upgrade();
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stderr.contains("in use") || run.stdout.contains("in use"), "{run:#?}");
    gateway.wait_for_log("this process continues to serve");
    answers(&gateway);
    // The next successor takes over.
    gateway.rewrite("gateway.toml", &config);
    assert_eq!(gateway.upgrade().code, Some(0));
    answers(&gateway);
}

#[test]
fn sigusr2_starts_a_successor() {
    let (_origin, mut gateway) = scene();
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    gateway.signal(Signal::SIGUSR2);
    // The successor is not a child of the test; the log contains its id.
    let successor = successor_of(&gateway);
    gateway.wait_for_log("all requests finished");
    let answer = gateway.client().get(P).bearer("tok-a").send();
    assert!(answer.assert_status(200).cache_status().contains("uri-miss"), "{answer:?}");
    gateway.admin().get("/readyz").send().assert_status(200);
    // Both processes write to these outputs, which end with the second.
    kill(successor.0, Signal::SIGTERM).expect("it runs");
    let run = gateway.wait();
    assert_eq!(run.code, Some(0), "{run:#?}");
}

#[test]
fn successor_of_usr2_has_the_raised_descriptor_limit() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway = Gateway::set_up(&origin).config(HERE).open_files_between(128, 256).start();
    // At the connection limit an upgrade is possible.
    let client = gateway.client();
    let mut crowd = Vec::new();
    wait_until("connections are refused", || {
        crowd.extend((0..20).map(|_| client.connect()));
        gateway.metric("over_limit_total", &[("limit", "descriptors")]) >= 1.0
    });
    gateway.signal(Signal::SIGUSR2);
    let successor = successor_of(&gateway);
    gateway.wait_for_log("handed over");
    drop(crowd);
    gateway.wait_for_log("all requests finished");
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", successor.0)).expect("its limits");
    let line =
        limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit of files");
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["256", "256"]);
    client.get(P).bearer("tok-a").send().assert_status(200);
    kill(successor.0, Signal::SIGTERM).expect("it runs");
    assert_eq!(gateway.wait().code, Some(0));
}

/// The process that USR2 started.
fn successor_of(gateway: &Gateway) -> Other {
    gateway.wait_for_log("started a successor");
    let number = gateway.log().lines().find_map(|line| {
        let json: serde_json::Value = serde_json::from_str(line).ok()?;
        json["message"]
            .as_str()?
            .contains("started a successor")
            .then(|| json["process"].as_i64())?
    });
    Other(Pid::from_raw(i32::try_from(number.expect("it is logged")).expect("a process id")))
}

/// A process that is not a child of the test and must not outlive it.
struct Other(Pid);

impl Drop for Other {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill(self.0, Signal::SIGKILL);
        }
    }
}

#[test]
fn upgrade_without_a_running_process_fails() {
    let (_origin, mut gateway) = scene();
    assert_eq!(gateway.terminate().code, Some(0));
    let run = gateway.failed_upgrade();
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stderr.contains("no running process owns"), "{run:#?}");
}

#[test]
fn sigquit_without_a_successor_changes_nothing() {
    let (_origin, mut gateway) = scene();
    gateway.signal(Signal::SIGQUIT);
    gateway.wait_for_log("no successor at");
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    gateway.admin().get("/readyz").send().assert_status(200);
    assert_eq!(gateway.upgrade().code, Some(0));
}

#[test]
fn upgrade_folder_with_access_for_others_is_refused() {
    let dir = TempDir::new();
    let origin = Origin::start();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let toml = format!(
        "server = {{ listen = [\"{}\"], upgrade_socket = \"{}/socket\" }}\nadmin.listen = \"{}\"\nupstream.url = \"{}\"\n",
        unused_port(),
        dir.path().display(),
        unused_port(),
        origin.url()
    );
    let config = dir.write("gateway.toml", &toml).display().to_string();
    let run = run_binary(&["run", "-c", &config], b"");
    assert_eq!(run.code, Some(78), "{run:#?}");
    assert!(
        run.stderr.contains("server.upgrade_socket") && run.stderr.contains("0700"),
        "{run:#?}"
    );
}

#[test]
fn runtime_directory_is_the_default_upgrade_folder() {
    let origin = Origin::start();
    let mut gateway = Gateway::set_up(&origin).variable("RUNTIME_DIRECTORY", "{dir}").start();
    assert_eq!(gateway.upgrade().code, Some(0));
    gateway.client().get("/elsewhere").send().assert_status(200);
}

/// A service manager that listens at a socket in a folder.
struct Manager {
    _dir: TempDir,
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new() -> Manager {
        let dir = TempDir::new();
        let path = dir.path().join("notify").display().to_string();
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Manager { _dir: dir, socket, path }
    }

    /// The lines of the next message, except keep-alives.
    fn next_message(&self) -> Vec<String> {
        let mut message = [0; 4096];
        loop {
            let length = self.socket.recv(&mut message).expect("a message");
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if text.trim() != "WATCHDOG=1" {
                return text.lines().map(str::to_owned).collect();
            }
        }
    }
}

fn has(message: &[String], line: &str) -> bool {
    message.iter().any(|received| received == line)
}

#[test]
fn service_manager_is_notified_of_start_reload_and_stop() {
    let (origin, manager) = (Origin::start(), Manager::new());
    let mut gateway = Gateway::set_up(&origin).variable("NOTIFY_SOCKET", &manager.path).start();
    let started = manager.next_message();
    assert!(has(&started, "READY=1"), "{started:?}");
    let status = started.iter().find(|line| line.starts_with("STATUS=")).expect("in words");
    assert!(status.contains(&gateway.public_address().to_string()), "{status}");
    // systemd sends SIGHUP and expects these two messages.
    gateway.signal(Signal::SIGHUP);
    let reloading = manager.next_message();
    assert!(has(&reloading, "RELOADING=1"), "{reloading:?}");
    assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
    assert!(has(&manager.next_message(), "READY=1"));
    // With a rejected configuration the process is ready, and the status line says so.
    gateway.rewrite("gateway.toml", "nonsense = 1");
    gateway.signal(Signal::SIGHUP);
    assert!(has(&manager.next_message(), "RELOADING=1"));
    let refused = manager.next_message();
    assert!(
        has(&refused, "READY=1") && refused.iter().any(|line| line.contains("rejected")),
        "{refused:?}"
    );
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(has(&manager.next_message(), "STOPPING=1"));
}

#[test]
fn service_manager_is_notified_of_the_new_main_process() {
    let (origin, manager) = (Origin::start(), Manager::new());
    let setup = Gateway::set_up(&origin).variable("NOTIFY_SOCKET", &manager.path);
    let mut gateway = setup.variable("RUNTIME_DIRECTORY", "{dir}").start();
    assert!(has(&manager.next_message(), "READY=1"));
    assert_eq!(gateway.upgrade().code, Some(0));
    let handed = manager.next_message();
    assert!(has(&handed, &format!("MAINPID={}", gateway.id())), "{handed:?}");
    assert!(has(&manager.next_message(), "READY=1"), "the successor");
}

#[test]
fn watchdog_receives_keep_alives() {
    let (origin, manager) = (Origin::start(), Manager::new());
    let setup = Gateway::set_up(&origin).variable("NOTIFY_SOCKET", &manager.path);
    let _gateway = setup.variable("WATCHDOG_USEC", "200000").start();
    let mut alive = 0;
    let mut message = [0; 4096];
    while alive < 3 {
        let length = manager.socket.recv(&mut message).expect("a sign of life");
        alive += usize::from(message[..length].starts_with(b"WATCHDOG=1"));
    }
}

#[test]
fn successor_of_usr2_notifies_the_watchdog() {
    let (origin, manager) = (Origin::start(), Manager::new());
    // WATCHDOG_PID names another process, as the predecessor's does for its successor.
    let setup = Gateway::set_up(&origin)
        .variable("NOTIFY_SOCKET", &manager.path)
        .variable("RUNTIME_DIRECTORY", "{dir}");
    let mut gateway =
        setup.variable("WATCHDOG_USEC", "200000").variable("WATCHDOG_PID", "1").start();
    gateway.signal(Signal::SIGUSR2);
    let successor = successor_of(&gateway);
    let mut message = [0; 4096];
    loop {
        let length = manager.socket.recv(&mut message).expect("a sign of life");
        if message[..length].starts_with(b"WATCHDOG=1") {
            break;
        }
    }
    gateway.wait_for_log("all requests finished");
    kill(successor.0, Signal::SIGTERM).expect("it runs");
    assert_eq!(gateway.wait().code, Some(0));
}

/// Sends a request on a persistent connection and reads its response.
fn exchange(connection: &mut TlsConnection, request: &str) -> io::Result<String> {
    connection.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&answer).into_owned();
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body)?;
    Ok(head)
}

#[test]
fn tls_connection_outlives_a_change_of_its_certificate() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let (first, second) = (Authority::new(), Authority::new());
    let (certificate, key) = first.certificate().pem();
    let tls = r#"server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }"#;
    let gateway = Gateway::set_up(&origin)
        .file("cert.pem", &certificate)
        .file("key.pem", &key)
        .config(tls)
        .start();
    let request = format!("GET {P} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok-a\r\n\r\n");
    let mut kept = first.connect(gateway.tls_address()).expect("a connection");
    assert!(exchange(&mut kept, &request).expect("an answer").starts_with("HTTP/1.1 200"));
    let (certificate, key) = second.certificate().pem();
    gateway.rewrite("cert.pem", &certificate);
    gateway.rewrite("key.pem", &key);
    wait_until("the new one is shown", || {
        let once = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        second.exchange(gateway.tls_address(), &once).is_ok()
    });
    assert!(exchange(&mut kept, &request).expect("an answer").starts_with("HTTP/1.1 200"));
}

#[test]
fn stop_extends_the_timeout_of_the_service_manager() {
    let (origin, manager) = (Origin::start(), Manager::new());
    let setup = Gateway::set_up(&origin).variable("NOTIFY_SOCKET", &manager.path);
    let mut gateway = setup.config("server = { drain_delay = \"100ms\", drain = \"2h\" }").start();
    assert!(has(&manager.next_message(), "READY=1"));
    assert_eq!(gateway.terminate().code, Some(0));
    let stopping = manager.next_message();
    assert!(has(&stopping, "STOPPING=1"), "{stopping:?}");
    let extension = stopping.iter().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
    let extension: u64 = extension.and_then(|text| text.parse().ok()).expect("an extension");
    assert!(extension >= 7_200_100_000, "drain_delay and drain are covered: {extension}");
}

#[test]
fn sigusr2_upgrades_after_a_change_of_the_upgrade_socket() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway = Gateway::set_up(&origin).variable("RUNTIME_DIRECTORY", "{dir}").start();
    // The default name of the socket contains the admin listener's address.
    let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    let admin = gateway.admin_address();
    let changed = unused_port();
    gateway.rewrite("gateway.toml", &config.replace(&admin.to_string(), &changed.to_string()));
    gateway.signal(Signal::SIGUSR2);
    let _successor = successor_of(&gateway);
    gateway.wait_for_log("all requests finished");
    let ready = || {
        Client::of_admin(changed)
            .get("/readyz")
            .try_send()
            .is_some_and(|response| response.status == 200)
    };
    wait_until("the successor serves", || {
        Client::of_admin(changed).try_connect().is_ok() && ready()
    });
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    // The successor is found at its own socket.
    let config = gateway.config_file().display().to_string();
    let folder = gateway.config_file().parent().expect("a folder").display().to_string();
    let mut next = std::process::Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"))
        .args(["run", "--upgrade", "-c", &config])
        .env("RUNTIME_DIRECTORY", folder)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until("the first successor has exited", || {
        gateway.log().matches("all requests finished").count() == 2
    });
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    kill(Pid::from_raw(next.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    assert_eq!(next.wait().expect("it ends").code(), Some(0));
    gateway.wait();
}
