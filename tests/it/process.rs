//! The process: arguments, exit codes, signals and logs.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use telecomx_gateway::config::{self, LogFormat};
use telecomx_gateway::telemetry;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn run(arguments: &[&str]) -> Run {
    run_binary(arguments, b"")
}

/// A configuration in its own folder.
fn config(toml: &str) -> (TempDir, String) {
    let dir = TempDir::new();
    let path = dir.write("gateway.toml", toml).display().to_string();
    (dir, path)
}

#[test]
fn version_and_help_are_printed() {
    let version = run(&["--version"]);
    assert_eq!(version.code, Some(0), "{version:#?}");
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:#?}");
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0), "{help:#?}");
    for command in ["run", "demo", "sandbox", "check", "redact", "schema"] {
        assert!(help.stdout.contains(command), "{command} is not named: {help:#?}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let wrong: [&[&str]; 5] = [
        &[],
        &["--nonsense"],
        &["nonsense"],
        &["run", "--nonsense"],
        &["redact", "--role", "KING"],
    ];
    for arguments in wrong {
        let run = run(arguments);
        assert_eq!(run.code, Some(2), "{arguments:?}: {run:#?}");
        assert!(
            !run.stderr.is_empty() && !run.stderr.contains("panicked"),
            "{arguments:?}: {run:#?}"
        );
    }
}

#[test]
fn invalid_configuration_exits_with_78_and_all_errors() {
    let wrong = "[server]\nlisten = [\"127.0.0.1:8080\"]\ndrain = \"ten\"\n\n[upstream]\nurl = \"gopher://x\"\n\n[cache]\nttll = \"1s\"\n";
    let (_dir, path) = config(wrong);
    for command in ["run", "check"] {
        let run = run(&[command, "-c", &path]);
        assert_eq!(run.code, Some(78), "{run:#?}");
        let said = format!("{}{}", run.stdout, run.stderr);
        for part in ["gateway.toml", "drain", "ten", "url", "scheme", "ttll"] {
            assert!(said.contains(part), "{part:?} is not named: {run:#?}");
        }
        for line in ["3", "6", "9"] {
            assert!(said.contains(line), "line {line} is not named: {run:#?}");
        }
        assert!(!said.contains("panicked"), "{run:#?}");
    }
}

#[test]
fn missing_or_unreadable_configuration_exits_with_78() {
    let (dir, path) = config("[upstream");
    let missing = dir.path().join("missing.toml").display().to_string();
    let folder = dir.path().display().to_string();
    for path in [&path, &missing, &folder] {
        for command in ["run", "check"] {
            let run = run(&[command, "-c", path]);
            assert_eq!(run.code, Some(78), "{run:#?}");
            assert!(
                run.stderr.contains(path.as_str()) && !run.stderr.contains("panicked"),
                "{run:#?}"
            );
        }
    }
    let (_dir, empty) = config("");
    let run = run(&["check", "-c", &empty]);
    assert_eq!(run.code, Some(78), "upstream.url has no default: {run:#?}");
    assert!(run.stderr.contains("upstream") && run.stderr.contains("url"), "{run:#?}");
}

#[test]
fn valid_configuration_is_ok_and_explained() {
    let (_dir, path) = config("[upstream]\nurl = \"https://api.example\"\n");
    let good = run(&["check", "-c", &path]);
    assert_eq!(good.code, Some(0), "{good:#?}");
    let explained = run(&["check", "-c", &path, "--explain"]);
    assert_eq!(explained.code, Some(0), "{explained:#?}");
    for part in ["RESELLER", "/tools/realtime", "60", "api.example"] {
        assert!(explained.stdout.contains(part), "{part:?} is not explained: {explained:#?}");
    }
}

#[test]
fn cache_times_longer_than_the_session_are_refused() {
    let (_dir, path) = config(
        "[upstream]\nurl = \"https://api.example\"\n[cache]\nttl = \"14m\"\nstale_while_revalidate = \"1m\"\n",
    );
    let run = run(&["check", "-c", &path]);
    assert_eq!(run.code, Some(78), "{run:#?}");
    assert!(run.stderr.contains("session"), "{run:#?}");
}

#[test]
fn environment_variable_overrides_the_file() {
    let (_dir, path) = config("");
    let variable = [("TELECOMX_GATEWAY__UPSTREAM__URL", "https://from-the-environment.example")];
    let run = run_binary_with(&variable, &["check", "-c", &path, "--explain"], b"");
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.stdout.contains("from-the-environment.example"), "{run:#?}");
}

#[test]
fn occupied_port_is_one_error_that_names_its_owner() {
    let origin = Origin::start();
    let taken = origin.address();
    let free = unused_port();
    let toml = |public, admin| {
        format!(
            "[server]\nlisten = [\"{public}\"]\n[admin]\nlisten = \"{admin}\"\n[upstream]\nurl = \"http://{taken}\"\n"
        )
    };
    for toml in [toml(taken, free), toml(free, taken)] {
        let (_dir, path) = config(&toml);
        let run = run(&["run", "-c", &path]);
        assert_eq!(run.code, Some(1), "{run:#?}");
        let said = format!("{}{}", run.stdout, run.stderr);
        let reports = said
            .lines()
            .filter(|line| line.contains(&taken.to_string()) && line.contains("in use"))
            .count();
        assert_eq!(reports, 1, "{run:#?}");
        let program = std::env::current_exe().expect("this program");
        let name = program.file_name().expect("a name").to_string_lossy();
        let owner = format!("the port is used by process {} ({name})", std::process::id());
        assert!(said.contains(&owner), "the owner is named: {run:#?}");
        assert!(!said.contains("panicked"), "{run:#?}");
    }
}

#[test]
fn sandbox_names_the_owner_of_an_occupied_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    let run = run(&["sandbox", "--listen", &address]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let owner = format!("process {} (", std::process::id());
    assert!(run.stderr.contains(&address) && run.stderr.contains(&owner), "{run:#?}");
}

#[test]
fn start_logs_listeners_and_redaction() {
    let origin = Origin::start();
    let gateway = Gateway::with(
        &origin,
        "redaction.reveal_to = \"ADMIN\"\nforward.blocked = [\"/a\", \"/b/**\"]",
    );
    gateway.wait_for_log("ready: ");
    let log = gateway.log();
    let ready = log.lines().find(|line| line.contains("ready: ")).expect("it was waited for");
    let public = gateway.public_address().to_string();
    let admin = format!("http://{}/", gateway.admin_address());
    let parts = [
        &public,
        &admin,
        "below ADMIN",
        "integrations, customerIntegrations",
        "2 paths are blocked",
    ];
    for part in parts {
        assert!(ready.contains(part), "{part}: {ready}");
    }
}

#[test]
fn sigterm_stops_an_idle_process_at_once() {
    let origin = Origin::start();
    let mut gateway = Gateway::with(&origin, r#"server.drain = "50s""#);
    // An idle connection does not delay the exit.
    let mut connection = gateway.client().connect();
    gateway.client().get("/elsewhere").send_on(&mut connection).assert_status(200);
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.took < Duration::from_secs(25), "it waited for no client: {run:#?}");
}

#[test]
fn sigterm_waits_for_a_request_in_flight() {
    for (path, held) in [(P, "/customer/"), ("/elsewhere", "/elsewhere")] {
        let origin = Origin::start();
        origin.knows("tok-a", "VIEWER", DUCK);
        let gate = Gate::closed();
        origin.when(Rule::on(held).hold(&gate));
        let mut gateway = Gateway::with(&origin, r#"server.drain = "50s""#);
        let pending = gateway.client().get(path).bearer("tok-a").start();
        origin
            .wait_until("the request is there", |seen| seen.iter().any(|seen| seen.path() == path));
        gateway.signal(Signal::SIGTERM);
        wait_until("it takes no new ones", || {
            let Ok(_) = gateway.admin().try_connect() else { return true };
            gateway.admin().get("/readyz").try_send().is_none_or(|response| response.status == 503)
        });
        gate.open();
        let answer = pending.finish();
        assert_eq!(answer.assert_status(200).header("connection"), Some("close"), "{path}");
        let run = gateway.wait();
        assert_eq!(run.code, Some(0), "{path}: {run:#?}");
    }
}

#[test]
fn drain_delay_serves_connections_while_not_ready() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway = Gateway::with(&origin, r#"server = { drain_delay = "2s", drain = "50s" }"#);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    let began = Instant::now();
    gateway.signal(Signal::SIGTERM);
    let ready = || gateway.admin().get("/readyz").try_send().map(|answer| answer.status);
    wait_until("it is not ready", || ready() == Some(503));
    // The load balancer has not polled `/readyz` yet.
    let late = gateway.client().get(P).bearer("tok-a").send();
    assert_eq!(
        (late.assert_status(200).is_hit(), late.header("connection")),
        (true, Some("close"))
    );
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "too slow a machine to tell: {:?}",
        began.elapsed()
    );
    let run = gateway.wait();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(began.elapsed() >= Duration::from_secs(2), "{run:#?}");
    assert!(gateway.client().try_connect().is_err());
}

#[test]
fn request_longer_than_the_drain_is_aborted_and_logged() {
    let origin = Origin::start();
    let gate = Gate::closed();
    origin.when(Rule::on("/elsewhere").hold(&gate));
    let mut gateway = Gateway::with(&origin, r#"server.drain = "1s""#);
    let _pending = gateway.client().get("/elsewhere").start();
    origin.wait_until("the request is there", |seen| {
        seen.iter().any(|seen| seen.path() == "/elsewhere")
    });
    let run = gateway.terminate();
    assert_eq!(run.code, Some(1), "{run:#?}");
    gate.open();
}

#[test]
fn sigint_stops_at_once_with_requests_in_flight() {
    let origin = Origin::start();
    let gate = Gate::closed();
    origin.when(Rule::on("/elsewhere").hold(&gate));
    let mut gateway = Gateway::with(&origin, r#"server.drain = "50s""#);
    let _pending = gateway.client().get("/elsewhere").start();
    origin.wait_until("the request is there", |seen| {
        seen.iter().any(|seen| seen.path() == "/elsewhere")
    });
    gateway.signal(Signal::SIGINT);
    let run = gateway.wait();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.took < Duration::from_secs(25), "{run:#?}");
    gate.open();
}

#[test]
fn document_on_standard_input_is_redacted() {
    let (_dir, path) = config("[upstream]\nurl = \"https://api.example\"\n");
    let document = upstream_document(DUCK);
    let redact = |role: &str, input: &str| {
        run_binary(&["redact", "-c", &path, "--role", role], input.as_bytes())
    };
    for role in LOWER_ROLES {
        let run = redact(role, &document);
        assert_eq!((run.code, run.stdout), (Some(0), redacted_document(DUCK) + "\n"), "{role}");
    }
    for role in HIGHER_ROLES {
        let run = redact(role, &document);
        assert_eq!((run.code, run.stdout), (Some(0), document.clone() + "\n"), "{role}");
    }
    let run = redact("OWNER", r#"{"integrations":{"k":"PLANTED""#);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{}", run.stderr);
    assert!(!run.stderr.is_empty() && !run.stderr.contains(MARKER), "{}", run.stderr);
}

#[test]
fn schema_is_json_and_contains_every_table() {
    let run = run(&["schema"]);
    assert_eq!(run.code, Some(0), "{run:#?}");
    let schema: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    for table in
        ["server", "admin", "upstream", "identity", "cache", "redaction", "forward", "cors", "log"]
    {
        assert!(schema["properties"][table].is_object(), "{table}: {schema}");
    }
}

#[test]
fn every_log_line_is_json() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"log.format = "json""#);
    let client = gateway.client();
    client.get(P).bearer("tok-a").header("X-Request-Id", "first-of-all").send().assert_status(200);
    client.get(P).bearer("tok-unknown").send().assert_status(401);
    client
        .get("/elsewhere?token=tok-a&agreementGrantToken=PLANTED")
        .revealed()
        .send()
        .assert_status(200);
    client.delete("/employee/ee0000000000000000000001/token/tok-a").send();
    let mut broken = client.connect();
    broken.send_raw("GET /?token=tok-a HTTP/9.9\r\nX: tok-b\r\n\r\n");
    broken.rest();
    origin.stop();
    client.get("/elsewhere?token=tok-a").send().assert_status(502);
    client.get("/elsewhere").header("X-Request-Id", "last-of-all").send().assert_status(502);
    gateway.wait_for_log("first-of-all");
    gateway.wait_for_log("last-of-all");
    for line in gateway.log().lines() {
        let json: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(json.is_ok_and(|json| json.is_object()), "not JSON: {line}");
    }
}

#[test]
fn debug_log_contains_no_token_and_no_secret() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    let gateway = Gateway::with(&origin, "log = { level = \"trace\", format = \"text\" }");
    let client = gateway.client();
    for _ in 0..2 {
        client.get(P).bearer("tok-a").revealed().send().assert_status(200);
        client.get(&format!("{P}?token=tok-a")).revealed().send().assert_status(200);
    }
    client.get(P).header("Cookie", "token=tok-a").revealed().send().assert_status(200);
    client.get("/elsewhere?token=tok-a").header("X-API-Key", "tok-a").send().assert_status(200);
    client.get("/auth/login?username=tok-user&password=tok-password").revealed().send();
    client.get(P).bearer("tok-a").bearer("tok-b").send().assert_status(400);
    client.get("/x/%zz?token=tok-a").send().assert_status(400);
    client.get("/elsewhere").header("X-Request-Id", "the-end").send().assert_status(200);
    gateway.wait_for_log("the-end");
}

#[test]
fn error_log_level_logs_no_success() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"log.access = "errors""#);
    gateway
        .client()
        .get("/elsewhere")
        .header("X-Request-Id", "went-well")
        .send()
        .assert_status(200);
    origin.stop();
    gateway
        .client()
        .get("/elsewhere")
        .header("X-Request-Id", "went-wrong")
        .send()
        .assert_status(502);
    gateway.wait_for_log("went-wrong");
    assert!(!gateway.log().contains("went-well"));
}

/// Set for the child of this test only. The child is this test binary, since the gateway does not
/// panic.
const PANICS: &str = "TELECOMX_GATEWAY_TEST_PANICS";

#[test]
fn panic_is_logged_by_its_location_only() {
    if let Ok(format) = std::env::var(PANICS) {
        let config = config::parse("test", "upstream.url = \"http://127.0.0.1:1\"", [])
            .expect("a configuration");
        let format = if format == "text" { LogFormat::Text } else { LogFormat::Json };
        let metrics = telemetry::Metrics::new().expect("metrics");
        let log = config::Log { format, ..config.log };
        let _levels = telemetry::install(&log, &metrics).expect("the first in this process");
        let outcome = std::thread::spawn(|| panic!("{MARKER} {TOKEN_MARKER}of-a-caller")).join();
        assert!(outcome.is_err());
        return;
    }
    for format in ["text", "json"] {
        let mut child =
            std::process::Command::new(std::env::current_exe().expect("this test binary"));
        child
            .args(["--exact", "process::panic_is_logged_by_its_location_only", "--nocapture"])
            .env(PANICS, format);
        let run = child.output().expect("a child process");
        assert!(run.status.success(), "{run:#?}");
        let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
        assert!(!said.contains(MARKER) && !said.contains(TOKEN_MARKER), "{said}");
        let lines: Vec<_> = said.lines().filter(|line| line.contains(FAULT)).collect();
        assert!(lines.len() == 1 && lines[0].contains(&format!("{}:", file!())), "{said}");
        assert!(lines[0].contains("ERROR"), "{said}");
    }
}

#[test]
fn shipped_unit_allows_no_core_dump() {
    let unit = include_str!("../../deploy/systemd/telecomx-gateway.service");
    let (_, service) = unit.split_once("\n[Service]\n").expect("a service");
    let (service, _) = service.split_once("\n[").expect("another section");
    let cores: Vec<_> =
        service.lines().filter(|line| line.trim_start().starts_with("LimitCORE")).collect();
    assert_eq!(cores, ["LimitCORE=0"]);
}

#[test]
fn configuration_messages_contain_no_secret() {
    let dir = TempDir::new();
    for (name, secret) in [
        ("admin-token", "tok-admin-PLANTED"),
        ("key.pem", "PLANTED tok-key"),
        ("cert.pem", "PLANTED"),
    ] {
        dir.write(name, secret);
    }
    let at = dir.path().display();
    let good = format!(
        "upstream.url = \"https://api.example\"\n[admin]\nlisten = \"127.0.0.1:9090\"\ntoken_file = \"{at}/admin-token\"\n"
    );
    let wrong = [
        "upstream.url = \"https://user:PLANTED@api.example\"".to_owned(),
        "upstream.url = \"https://api.example?token=tok-x\"".to_owned(),
        format!(
            "{good}[server.tls]\nlisten = [\"127.0.0.1:1\"]\ncert_file = \"{at}/cert.pem\"\nkey_file = \"{at}/key.pem\"\n"
        ),
        format!("upstream = {{ url = \"https://api.example\", ca_file = \"{at}/cert.pem\" }}"),
    ];
    for (text, code) in std::iter::once((&good, 0)).chain(wrong.iter().map(|text| (text, 78))) {
        let path = dir.write("gateway.toml", text).display().to_string();
        for arguments in [&["check", "-c", &path][..], &["check", "--explain", "-c", &path]] {
            let run = run(arguments);
            assert_eq!(run.code, Some(code), "{text}: {run:#?}");
            for said in [&run.stdout, &run.stderr] {
                assert!(!said.contains(MARKER) && !said.contains(TOKEN_MARKER), "{text}: {run:#?}");
            }
        }
    }
}

#[test]
fn access_log_samples_hits_and_logs_all_others() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "log.hits = 0.1");
    let ask = |count: usize| {
        let client = gateway.client();
        let mut connection = client.connect();
        for _ in 0..count {
            client.get(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
        }
    };
    let lines = |cache: &str| {
        let of = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["cache"] == cache)
        };
        gateway.log().lines().filter(|line| of(line)).count()
    };
    ask(101);
    for number in 0..5 {
        gateway
            .client()
            .get("/elsewhere")
            .header("X-Request-Id", &format!("n-{number}"))
            .send()
            .assert_status(200);
    }
    gateway.wait_for_log("n-4");
    assert_eq!((lines("miss"), lines("bypass")), (1, 5));
    // Each of the two threads logs its first hit.
    assert!((9..=12).contains(&lines("hit")), "{}", lines("hit"));
    assert_eq!(gateway.metric("requests_total", &[("cache", "hit")]), 100.0);
    // A reload changes the mode.
    let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    gateway.rewrite("gateway.toml", &config.replace("hits = 0.1", "hits = 0.0"));
    gateway.admin().post("/reload").send().assert_status(200);
    let before = lines("hit");
    ask(20);
    gateway.client().get("/elsewhere").header("X-Request-Id", "the-end").send().assert_status(200);
    gateway.wait_for_log("the-end");
    assert!(
        lines("hit") <= before + 2,
        "what was left of a share: {} after {before}",
        lines("hit")
    );
}

#[test]
fn reload_changes_log_level_and_access_mode() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"log = { level = "info", access = "all" }"#);
    let ask = |id: &str| {
        gateway.client().get("/elsewhere").header("X-Request-Id", id).send().assert_status(200);
    };
    let reload = |from: &str, to: &str| {
        let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
        assert!(config.contains(from), "{config}");
        gateway.rewrite("gateway.toml", &config.replace(from, to));
        gateway.admin().post("/reload").send().assert_status(200);
    };
    ask("seen-1");
    gateway.wait_for_log("seen-1");
    reload(r#"access = "all""#, r#"access = "off""#);
    ask("unseen-1");
    reload(r#"access = "off""#, r#"access = "all""#);
    let purge = || {
        gateway.admin().delete("/cache").send().assert_status(200);
    };
    let invalidated = "\"message\":\"invalidated\"";
    purge();
    reload(r#"level = "info""#, r#"level = "error""#);
    // Access lines do not follow the level.
    ask("seen-2");
    gateway.wait_for_log("seen-2");
    assert!(!gateway.log().contains(invalidated), "{}", gateway.log());
    reload(r#"level = "error""#, r#"level = "debug""#);
    purge();
    gateway.wait_for_log(invalidated);
    assert!(!gateway.log().contains("unseen"), "{}", gateway.log());
}

#[test]
fn one_thread_serves_all_kinds_of_requests() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/slow").hold(&gate));
    let mut gateway = Gateway::with(&origin, r#"server = { threads = 1, drain = "50s" }"#);
    let client = gateway.client();
    // While this request waits, others get responses.
    let waiting = client.get("/slow").start();
    origin
        .wait_until("the slow one is there", |seen| seen.iter().any(|seen| seen.path() == "/slow"));
    let ask = || client.get(P).bearer("tok-a").send();
    assert_eq!(ask().assert_status(200).text(), redacted_document(DUCK));
    assert!(ask().is_hit());
    client.get("/elsewhere").send().assert_status(200);
    let over_h2 = client.send_h2c((0..8).map(|_| client.get(P).bearer("tok-a")).collect());
    assert!(over_h2.iter().all(|answer| answer.status == 200 && answer.is_hit()));
    gateway.signal(Signal::SIGTERM);
    gate.open();
    waiting.finish().assert_status(200);
    assert_eq!(gateway.wait().code, Some(0));
}
