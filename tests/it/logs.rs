//! The log on its way out: nobody waits for whoever reads it, what is dropped is counted, and what is not dropped comes.

use nix::sys::signal::Signal;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const DROPPED: &str = "log_lines_dropped_total";

/// Lines about requests.
fn requests(log: &str) -> usize {
    log.lines().filter(|line| line.contains("\"target\":\"telecomx_gateway::access\"")).count()
}

/// Asks until lines are dropped. How many requests that took.
fn fill(gateway: &Gateway, client: &Client) -> usize {
    let mut connection = client.connect();
    let mut asked = 0;
    wait_until("lines are dropped", || {
        for _ in 0..100 {
            client.get("/elsewhere").send_on(&mut connection).assert_status(200);
        }
        asked += 100;
        gateway.metric(DROPPED, &[]) > 0.0
    });
    asked
}

#[test]
fn a_log_that_nobody_reads_holds_no_request_up_and_what_is_dropped_is_counted() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway = Gateway::set_up(&origin).config("log.buffer = \"64KiB\"").unread_log().start();
    let client = gateway.client();
    assert_eq!(gateway.metric(DROPPED, &[]), 0.0);
    let mut asked = fill(&gateway, &client);
    // Neither forwards nor hits wait, nor does what an operator asks.
    let before = gateway.metric(DROPPED, &[]);
    for _ in 0..50 {
        assert_eq!(client.get(P).bearer("tok-a").send().assert_status(200).text(), redacted_document(DUCK));
        client.get("/elsewhere").send().assert_status(200);
    }
    asked += 100;
    gateway.admin().post("/reload").send().assert_status(200);
    gateway.admin().get("/readyz").send().assert_status(200);
    // A shorter line may have found the last of the room.
    gateway.wait_for_metric(DROPPED, &[], before + 90.0);

    // Somebody reads again: what waited comes, then what is new.
    gateway.read_log();
    gateway.wait_for_log("ready: serving");
    wait_until("a new line comes", || {
        let id = format!("once-it-is-read-{asked}");
        client.get("/elsewhere").header("X-Request-Id", &id).send().assert_status(200);
        asked += 1;
        pace(std::time::Duration::from_millis(10));
        gateway.log().contains(&id)
    });
    let dropped = gateway.metric(DROPPED, &[]);
    client.get("/elsewhere").header("X-Request-Id", "the-last").send().assert_status(200);
    asked += 1;
    // The record of a request ends behind its response.
    wait_until("every request is counted", || {
        let metrics = gateway.metrics();
        let requests = metrics.lines().filter(|line| line.starts_with("telecomx_gateway_requests_total{"));
        let counted: f64 = requests.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        counted as usize == asked
    });
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.stderr.contains("the-last") && run.stderr.contains("all requests finished"), "{}", run.stderr);
    for line in run.stderr.lines() {
        let json: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(json.is_ok_and(|json| json.is_object()), "no whole line: {line}");
    }
    // The other lines may be among the dropped: what was told of the reload and of changes.
    let written = requests(&run.stderr);
    let others = 10.0;
    assert!(written < asked, "{written} of {asked}");
    let accounted = written as f64 + dropped;
    assert!(
        (asked as f64..=asked as f64 + others).contains(&accounted),
        "{written} written and {dropped} dropped of {asked}"
    );
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_up_a_stop() {
    let origin = Origin::start();
    let mut gateway = Gateway::set_up(&origin).config("log.buffer = \"64KiB\"").unread_log().start();
    fill(&gateway, &gateway.client());
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
}

#[test]
fn no_line_is_lost_at_an_ordinary_end() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let origin = Origin::start();
        let mut gateway = Gateway::start(&origin);
        let client = gateway.client();
        let mut connection = client.connect();
        for _ in 0..300 {
            client.get("/elsewhere").send_on(&mut connection).assert_status(200);
        }
        drop(connection);
        gateway.signal(signal);
        let run = gateway.wait();
        assert_eq!((run.code, requests(&run.stderr)), (Some(0), 300), "{signal}: {run:#?}");
        let last =
            if signal == Signal::SIGTERM { "stopped; all requests finished" } else { "stopped at once after SIGINT" };
        assert!(run.stderr.contains(last), "{signal}: {run:#?}");
    }
}

#[test]
fn what_was_logged_before_it_could_not_start_comes_before_the_reason() {
    let origin = Origin::start();
    let dir = TempDir::new();
    let (taken, free, missing) = (origin.address(), unused_port(), dir.path().join("missing").display().to_string());
    let toml = format!(
        "server = {{ listen = [\"{taken}\"] }}\nadmin = {{ listen = \"{free}\" }}\nupstream = {{ url = \"http://{taken}\" }}\n"
    );
    let config = dir.write("gateway.toml", &toml).display().to_string();
    let run = run_binary_with(&[("XDG_RUNTIME_DIR", &missing)], &["run", "-c", &config], b"");
    assert_eq!(run.code, Some(1), "{run:#?}");
    let lines: Vec<_> = run.stderr.lines().collect();
    let warned = lines.iter().position(|line| line.contains("upgrades without downtime are unavailable"));
    let told = lines.iter().position(|line| line.contains("in use"));
    assert!(warned.is_some() && warned < told, "{run:#?}");
}

#[test]
fn a_full_disk_for_logs_stops_nothing() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway = Gateway::set_up(&origin).config("log.level = \"trace\"").full_disk().start();
    let client = gateway.client();
    for _ in 0..200 {
        assert_eq!(client.get(P).bearer("tok-a").send().assert_status(200).text(), redacted_document(DUCK));
        client.get("/elsewhere").send().assert_status(200);
        client.get(P).send().assert_error(401, "credentials_invalid");
        client.get("/x/%zz").send().assert_error(400, "bad_request");
    }
    gateway.admin().post("/reload").send().assert_status(200);
    origin.stop();
    client.get("/elsewhere").send().assert_error(502, "bad_gateway");
    origin.resume();
    client.get("/elsewhere").send().assert_status(200);
    gateway.admin().get("/readyz").send().assert_status(200);
    gateway.wait_for_metric(DROPPED, &[], 800.0);
    let run = gateway.terminate();
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
}
