//! `check`: warnings, `--connect`, `--diff`, variables and the default file.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use crate::support::*;

const URL: &str = "[upstream]\nurl = \"http://127.0.0.1:1\"\n";
const DANGEROUS: &str = "[server]\nlisten = [\"0.0.0.0:0\"]\ntrusted_proxies = [\"0.0.0.0/0\"]\n";

fn config(text: &str) -> (TempDir, String) {
    let dir = TempDir::new();
    let path = dir.write("gateway.toml", text).display().to_string();
    (dir, path)
}

fn check(path: &str, options: &[&str]) -> Run {
    let arguments = [&["check", "-c", path], options].concat();
    run_binary(&arguments, b"")
}

/// Serves each connection with one response, in another thread.
fn serve(response: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(client.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let _ = client.write_all(response.as_bytes());
        }
    });
    address
}

const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

#[test]
fn check_prints_each_warning_once_and_exits_with_0() {
    let (_dir, path) = config(&format!("{DANGEROUS}[upstream]\nurl = \"http://api.example\"\n"));
    let run = check(&path, &[]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.stdout.ends_with(": ok\n"), "{run:#?}");
    for warning in [
        "gateway.toml:2: server.listen: a cleartext listener can be reached from other machines",
        "gateway.toml:3: server.trusted_proxies: every address is a trusted proxy: any client can claim any address",
        "gateway.toml:5: upstream.url: the connection to the API is not encrypted",
    ] {
        assert_eq!(run.stderr.matches(warning).count(), 1, "{warning}: {run:#?}");
    }
    assert_eq!(run.stderr.matches("warning: ").count(), 3, "{run:#?}");
    let explained = check(&path, &["--explain"]);
    assert_eq!(explained.stdout.matches("\n  !  ").count(), 3, "{explained:#?}");
}

#[test]
fn start_and_reload_log_each_warning() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "[redaction]\nreveal_to = \"OWNER\"");
    let count = || gateway.log().matches("\"key\":\"redaction.reveal_to\"").count();
    gateway.wait_for_log("dangerous setting");
    assert_eq!(count(), 1, "{}", gateway.log());
    gateway.admin().post("/reload").send().assert_status(200);
    wait_until("the reload logs the warning", || count() == 2);
    assert!(gateway.log().contains("access levels below RESELLER see integration secrets"));
}

#[test]
fn misspelled_variables_are_errors() {
    let (_dir, path) = config(URL);
    let check = |name: &OsStr, value: &OsStr| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"));
        let output =
            command.args(["check", "-c", &path]).env(name, value).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for name in [
        "TELECOMX_GATEWAY_CACHE_TTL",
        "TELECOMX_GATEWAY__CACHE_TTL",
        "telecomx_gateway__cache__ttl",
    ] {
        let (code, errors) = check(OsStr::new(name), OsStr::new("30s"));
        assert_eq!(code, Some(78), "{errors}");
        let has_names = errors.contains(name) && errors.contains("TELECOMX_GATEWAY__CACHE__TTL");
        assert!(has_names, "{errors}");
    }
    let not_utf8 = OsString::from_vec(b"\xff".to_vec());
    let (code, errors) = check(OsStr::new("TELECOMX_GATEWAY__CACHE__TTL"), &not_utf8);
    assert_eq!(code, Some(78), "{errors}");
    assert!(
        errors.starts_with("TELECOMX_GATEWAY__CACHE__TTL: ") && errors.contains("not UTF-8"),
        "{errors}"
    );
    for name in [
        "TELECOMX_GATEWAY_SERVICE_HOST",
        "TELECOMX_GATEWAY_PORT_8080_TCP_ADDR",
        "TELECOMX_GATEWAY_PORT",
    ] {
        let (code, errors) = check(OsStr::new(name), OsStr::new("10.0.0.1"));
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{name}");
    }
}

#[test]
fn explain_names_keys_from_variables() {
    let (_dir, path) = config(URL);
    let variables = [
        ("TELECOMX_GATEWAY__CACHE__TTL", "7s"),
        ("TELECOMX_GATEWAY__SERVER__LISTEN", "127.0.0.1:0"),
    ];
    let run = run_binary_with(&variables, &["check", "--explain", "-c", &path], b"");
    assert_eq!(run.code, Some(0), "{run:#?}");
    let text = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("TELECOMX_GATEWAY__CACHE__TTL sets cache.ttl"), "{text}");
    assert!(text.contains("TELECOMX_GATEWAY__SERVER__LISTEN sets server.listen"), "{text}");
    assert!(!check(&path, &["--explain"]).stdout.contains("ENVIRONMENT"));
}

#[test]
fn default_file_is_the_first_that_exists() {
    let dir = TempDir::new();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"));
        let output = command.arg("check").current_dir(dir.path()).output().expect("it runs");
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    if !std::path::Path::new("/etc/telecomx-gateway/gateway.toml").exists() {
        let (code, _, errors) = check();
        assert_eq!(code, Some(78), "{errors}");
        assert!(errors.starts_with("/etc/telecomx-gateway/gateway.toml: "), "{errors}");
    }
    std::fs::create_dir(dir.path().join("config")).expect("a directory");
    dir.write("config/gateway.toml", URL);
    let (code, output, errors) = check();
    assert_eq!(
        (code, output.as_slice()),
        (Some(0), b"config/gateway.toml: ok\n".as_slice()),
        "{errors}"
    );
}

#[test]
fn connect_tests_api_and_listeners() {
    let api = serve(UNAUTHORIZED);
    let listeners = "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    let (_dir, path) = config(&format!("{listeners}[upstream]\nurl = \"http://{api}\"\n"));
    let run = check(&path, &["--connect"]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.stdout.contains("GET /auth/validateToken returned 401"), "{run:#?}");
    assert!(run.stdout.contains("server.listen: 127.0.0.1:0 is free"), "{run:#?}");
    assert!(run.stdout.ends_with(": ok\n"), "{run:#?}");
    // An address in use may be that of a running gateway.
    let in_use = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let in_use = in_use.local_addr().expect("an address");
    let text = format!(
        "[server]\nlisten = [\"{in_use}\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = \"http://{api}\"\n"
    );
    let (_dir, path) = config(&text);
    assert_eq!(check(&path, &["--connect"]).code, Some(0));
}

#[test]
fn connect_reports_each_failure_on_one_line() {
    let not_the_api = serve("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let api = serve(UNAUTHORIZED);
    let refused = unused_port();
    for (url, cause) in [
        ("http://no-such-host.invalid".to_owned(), "cannot resolve no-such-host.invalid"),
        (format!("http://{refused}"), "cannot connect to"),
        (format!("http://{not_the_api}"), "returned 404 to GET /auth/validateToken, expected 401"),
        (format!("https://{api}"), "TLS handshake with"),
    ] {
        let text = format!(
            "[server]\nlisten = [\"203.0.113.9:8080\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[upstream]\nurl = {url:?}\n"
        );
        let (_dir, path) = config(&text);
        // Without the option nothing is tested.
        assert_eq!(check(&path, &[]).code, Some(0), "{url}");
        let run = check(&path, &["--connect"]);
        assert_eq!(run.code, Some(1), "{run:#?}");
        let failures: Vec<&str> =
            run.stderr.lines().filter(|line| !line.starts_with("warning: ")).collect();
        assert_eq!(failures.len(), 2, "{run:#?}");
        assert!(failures[0].starts_with(&format!("{path}:6: upstream.")), "{run:#?}");
        assert!(failures[0].contains(cause) && failures[0].contains("; "), "{run:#?}");
        let listener = "server.listen: cannot listen on 203.0.113.9:8080";
        assert!(failures[1].starts_with(&format!("{path}:2: {listener}")), "{run:#?}");
        assert!(failures[1].ends_with("; use an address of this machine"), "{run:#?}");
    }
}

#[test]
fn check_without_connect_opens_no_connection() {
    let api = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = api.local_addr().expect("an address");
    api.set_nonblocking(true).expect("a socket");
    let (_dir, path) = config(&format!("[upstream]\nurl = \"http://{address}\"\n"));
    for options in [&[][..], &["--explain"], &["--diff", &path]] {
        assert_eq!(check(&path, options).code, Some(0));
    }
    let error = api.accept().expect_err("no connection");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn diff_lists_changed_keys_and_the_effect_of_a_reload() {
    let (_dir, path) =
        config(&format!("{URL}[cache]\nttl = \"60s\"\n[admin]\ntoken_file = \"/no/secret-a\"\n"));
    let other =
        "[upstream]\nurl = \"http://127.0.0.1:2\"\n[cache]\nttl = \"30s\"\n[server]\nthreads = 2\n";
    let (_other_dir, other) = config(other);
    // The files of the other machine need not exist here.
    let run = check(&path, &["--diff", &other]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    let expected = [
        "server.threads: 0 -> 2; needs a restart",
        "admin.token_file: \"/no/secret-a\" -> (not set); needs a restart",
        "upstream.url: \"http://127.0.0.1:1\" -> \"http://127.0.0.1:2\"; needs a restart",
        "cache.ttl: \"60s\" -> \"30s\"; a reload applies it",
    ];
    assert_eq!(run.stdout.lines().collect::<Vec<_>>(), expected, "{run:#?}");
    let same = check(&other, &["--diff", &other]);
    assert!(same.stdout.ends_with(": no differences\n"), "{same:#?}");
    let (_wrong_dir, wrong) = config("[upstream]\nurl = \"ftp://me:hunter2@a\"\n");
    let run = check(&path, &["--diff", &wrong]);
    assert_eq!(run.code, Some(78), "{run:#?}");
    assert!(run.stderr.starts_with(&format!("{wrong}:2: upstream.url: ")), "{run:#?}");
    assert!(!run.stderr.contains("hunter2"), "{run:#?}");
}

#[test]
fn faults_of_named_files_have_a_line() {
    let dir = TempDir::new();
    let text = format!("{URL}[cluster]\nurl = \"redis://127.0.0.1\"\nkey_file = \"{{}}\"\n");
    let keys = dir.write("keys", "nonsense\n").display().to_string();
    let path = dir.write("gateway.toml", &text.replace("{}", &keys)).display().to_string();
    for command in ["check", "run"] {
        let run = run_binary(&[command, "-c", &path], b"");
        assert_eq!(run.code, Some(78), "{run:#?}");
        let last = run.stderr.lines().last().unwrap_or_default();
        assert!(last.contains("gateway.toml:5: cluster.key_file: "), "{run:#?}");
    }
    if !cfg!(feature = "otlp") {
        let text = format!("{URL}[otlp]\nendpoint = \"http://127.0.0.1:4318\"\n");
        let path = dir.write("otlp.toml", &text).display().to_string();
        let run = check(&path, &[]);
        assert!(run.stderr.starts_with(&format!("{path}:3: otlp: ")), "{run:#?}");
    }
}
