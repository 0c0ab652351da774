//! `demo` and `sandbox`: addresses, tokens, pages of other origins, and what remains after the end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

const PAGE: &str = "http://localhost:5173";
const NAME: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// A running command whose first lines were read.
struct Running {
    child: Child,
    text: String,
}

impl Running {
    /// Starts a command and reads standard output up to the line that contains `last`.
    fn start(arguments: &[&str], directory: &Path, last: &str) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"))
            .args(arguments)
            .env("TMPDIR", directory)
            .env("XDG_RUNTIME_DIR", directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut text = String::new();
        while !text.contains(last) {
            assert_ne!(output.read_line(&mut text).expect("a line"), 0, "it ended: {text}");
        }
        Running { child, text }
    }

    /// The address after a text such as `admin listener: http://`.
    fn address_after(&self, text: &str) -> SocketAddr {
        let rest = self.text.split(text).nth(1).expect("the text");
        rest.split('/').next().expect("an address").parse().expect("an address")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request and returns the whole response.
fn send(address: SocketAddr, request_line: &str, fields: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head =
        format!("{request_line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{fields}");
    let length =
        if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    stream.write_all(format!("{head}{length}\r\n{body}").as_bytes()).expect("it reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("it responds");
    response
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("a directory").count()
}

#[test]
fn demo_serves_every_printed_command_and_leaves_nothing() {
    let directory = TempDir::new();
    let mut demo =
        Running::start(&["demo", "--listen", "127.0.0.1:0"], directory.path(), "-X DELETE");
    let address = demo.address_after("listens on http://");
    let admin = demo.address_after("admin listener: http://");
    assert!(demo.text.contains("Ctrl-C ends the demo"), "{}", demo.text);
    for level in [
        "NO_LOGIN",
        "PERSONAL",
        "VIEWER",
        "MANAGER",
        "OWNER",
        "RESELLER",
        "RESELLER_ADMIN",
        "ADMIN",
    ] {
        let token = format!("sandbox-demo-{}", level.to_lowercase().replace('_', "-"));
        let line = demo.text.lines().find(|line| line.ends_with(&format!(" {token}")));
        assert!(line.is_some_and(|line| line.contains(level)), "{level}: {}", demo.text);
    }
    let bearer = "Authorization: Bearer sandbox-demo-viewer\r\n";
    let response = send(address, &format!("GET {NAME}"), bearer, "");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(send(admin, "GET /readyz", "", "").starts_with("HTTP/1.1 200"));
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.child.wait().expect("it ends").code(), Some(0));
    assert_eq!(entries(directory.path()), 0);
}

#[test]
fn demo_on_a_port_in_use_prints_only_the_error() {
    let in_use = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = in_use.local_addr().expect("an address").to_string();
    let run = run_binary(&["demo", "--listen", &address], b"");
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:#?}");
    let error = run.stderr.lines().last().unwrap_or_default();
    assert!(error.contains(&address) && error.contains("demo --listen 127.0.0.1:0"), "{run:#?}");
    for wrong in [["demo", "--listen", "8080"], ["sandbox", "--listen", "8081"]] {
        let run = run_binary(&wrong, b"");
        assert_eq!(run.code, Some(2), "{run:#?}");
        assert!(
            run.stderr.contains(&format!("for example \"127.0.0.1:{}\"", wrong[2])),
            "{run:#?}"
        );
    }
}

#[test]
fn killed_cluster_demo_leaves_no_process_and_no_file() {
    if Redis::stopped("demo::killed_cluster_demo").is_none() {
        return;
    }
    let directory = TempDir::new();
    let mut demo = Running::start(&["demo", "--fleet", "2"], directory.path(), "shutdown nosave");
    let marker = directory.path().display().to_string();
    let processes = || {
        let all = std::fs::read_dir("/proc").expect("proc").flatten();
        let is_ours = |path: &Path| {
            std::fs::read(path.join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&marker))
        };
        all.filter(|entry| is_ours(&entry.path())).count()
    };
    assert!(processes() >= 3, "redis-server and two gateways");
    // The gateways warn of a key that others may read.
    let demo_directory = std::fs::read_dir(directory.path()).expect("a folder").next();
    let keys =
        demo_directory.expect("a folder of the demo").expect("its entry").path().join("keys");
    let mode = std::fs::metadata(keys).expect("a file with a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    demo.signal(Signal::SIGKILL);
    demo.child.wait().expect("it ends");
    wait_until("no process remains", || processes() == 0);
    wait_until("no file remains", || entries(directory.path()) == 0);
}

/// A login, a list, a name, a write and a logout of a page, each with its preflight.
fn use_as_a_page(address: SocketAddr) {
    let may_read = |response: &str, path: &str| {
        let head = response.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
        assert!(
            head.contains(&format!("\r\naccess-control-allow-origin: {PAGE}\r\n")),
            "{path}: {head}"
        );
        assert!(head.contains("\r\naccess-control-allow-credentials: true"), "{path}: {head}");
    };
    let call = |method: &str, path: &str, token: &str, body: &str, status: u16| {
        let preflight = format!(
            "Origin: {PAGE}\r\nAccess-Control-Request-Method: {method}\r\n\
             Access-Control-Request-Headers: authorization,content-type\r\n"
        );
        let response = send(address, &format!("OPTIONS {path}"), &preflight, "");
        assert!(response.starts_with("HTTP/1.1 20"), "{path}: {response}");
        may_read(&response, path);
        assert!(response.to_lowercase().contains("access-control-allow-headers: "), "{response}");
        let bearer = if token.is_empty() {
            String::new()
        } else {
            format!("Authorization: Bearer {token}\r\n")
        };
        let fields = format!("Origin: {PAGE}\r\n{bearer}Content-Type: application/json\r\n");
        let response = send(address, &format!("{method} {path}"), &fields, body);
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {response}");
        may_read(&response, path);
        response
    };
    let login = r#"{"username":"owner@sandbox.example","password":"demo-owner"}"#;
    let response = call("POST", "/auth/login", "", login, 200);
    let body = response.split("\r\n\r\n").nth(1).expect("a body");
    let start = body.find("\"token\":\"").expect("a token") + 9;
    let token = body[start..].split('"').next().expect("a token").to_owned();
    call("GET", "/customer", &token, "", 200);
    call("GET", NAME, &token, "", 200);
    call("GET", NAME, &token, "", 200);
    call("GET", NAME, "nonsense", "", 401);
    let customer = NAME.strip_suffix("/name").expect("a path");
    call("POST", customer, &token, r#"{"phone":"1"}"#, 200);
    call("GET", "/auth/logout", &token, "", 200);
    let foreign = "Origin: https://app.example\r\n";
    let preflight = format!("{foreign}Access-Control-Request-Method: GET\r\n");
    for (method, fields) in [("OPTIONS", preflight.as_str()), ("GET", foreign)] {
        let response = send(address, &format!("{method} {NAME}"), fields, "").to_lowercase();
        assert!(!response.contains("access-control-allow-origin"), "{response}");
    }
}

#[test]
fn page_of_this_machine_uses_gateway_and_sandbox() {
    let directory = TempDir::new();
    let demo = Running::start(&["demo", "--listen", "127.0.0.1:0"], directory.path(), "-X DELETE");
    use_as_a_page(demo.address_after("listens on http://"));
    let sandbox =
        Running::start(&["sandbox", "--listen", "127.0.0.1:0"], directory.path(), "GET it");
    use_as_a_page(sandbox.address_after("API on http://"));
}
