//! Log output: no request waits for the reader of the log, dropped lines are counted, and all other
//! lines are written.

use nix::sys::signal::Signal;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const DROPPED: &str = "log_lines_dropped_total";

/// The number of access log lines.
fn requests(log: &str) -> usize {
    log.lines().filter(|line| line.contains("\"target\":\"telecomx_gateway::access\"")).count()
}

/// Sends requests until lines are dropped. Returns the number of requests.
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
fn unread_log_delays_no_request_and_counts_dropped_lines() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway =
        Gateway::set_up(&origin).config("log.buffer = \"64KiB\"").unread_log().start();
    let client = gateway.client();
    assert_eq!(gateway.metric(DROPPED, &[]), 0.0);
    let mut asked = fill(&gateway, &client);
    // Forwards, hits and requests of an operator do not wait.
    let before = gateway.metric(DROPPED, &[]);
    for _ in 0..50 {
        assert_eq!(
            client.get(P).bearer("tok-a").send().assert_status(200).text(),
            redacted_document(DUCK)
        );
        client.get("/elsewhere").send().assert_status(200);
    }
    asked += 100;
    gateway.admin().post("/reload").send().assert_status(200);
    gateway.admin().get("/readyz").send().assert_status(200);
    // A shorter line may still have fitted into the queue.
    gateway.wait_for_metric(DROPPED, &[], before + 90.0);

    // The log is read again: queued lines are written, then new ones.
    gateway.read_log();
    gateway.wait_for_log("ready: serving");
    wait_until("a new line is written", || {
        let id = format!("once-it-is-read-{asked}");
        client.get("/elsewhere").header("X-Request-Id", &id).send().assert_status(200);
        asked += 1;
        pace(std::time::Duration::from_millis(10));
        gateway.log().contains(&id)
    });
    let dropped = gateway.metric(DROPPED, &[]);
    client.get("/elsewhere").header("X-Request-Id", "the-last").send().assert_status(200);
    asked += 1;
    // The record of a request ends after its response.
    wait_until("every request is counted", || {
        let metrics = gateway.metrics();
        let requests =
            metrics.lines().filter(|line| line.starts_with("telecomx_gateway_requests_total{"));
        let counted: f64 =
            requests.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        counted as usize == asked
    });
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(
        run.stderr.contains("the-last") && run.stderr.contains("all requests finished"),
        "{}",
        run.stderr
    );
    for line in run.stderr.lines() {
        let json: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(json.is_ok_and(|json| json.is_object()), "not a whole line: {line}");
    }
    // Other lines, such as those of the reload, may be among the dropped ones.
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
fn unread_log_does_not_delay_shutdown() {
    let origin = Origin::start();
    let mut gateway =
        Gateway::set_up(&origin).config("log.buffer = \"64KiB\"").unread_log().start();
    fill(&gateway, &gateway.client());
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
}

#[test]
fn shutdown_writes_every_line() {
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
        let last = if signal == Signal::SIGTERM {
            "stopped; all requests finished"
        } else {
            "stopped at once after SIGINT"
        };
        assert!(run.stderr.contains(last), "{signal}: {run:#?}");
    }
}

#[test]
fn warnings_precede_the_reason_of_a_failed_start() {
    let origin = Origin::start();
    let dir = TempDir::new();
    let (taken, free, missing) =
        (origin.address(), unused_port(), dir.path().join("missing").display().to_string());
    let toml = format!(
        "server = {{ listen = [\"{taken}\"] }}\nadmin = {{ listen = \"{free}\" }}\n\
         upstream = {{ url = \"http://{taken}\" }}\n"
    );
    let config = dir.write("gateway.toml", &toml).display().to_string();
    let run = run_binary_with(&[("XDG_RUNTIME_DIR", &missing)], &["run", "-c", &config], b"");
    assert_eq!(run.code, Some(1), "{run:#?}");
    let lines: Vec<_> = run.stderr.lines().collect();
    let warned =
        lines.iter().position(|line| line.contains("upgrades without downtime are unavailable"));
    let reason = lines.iter().position(|line| line.contains("in use"));
    assert!(warned.is_some() && warned < reason, "{run:#?}");
}

#[test]
fn full_disk_for_the_log_fails_no_request() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateway = Gateway::set_up(&origin).config("log.level = \"trace\"").full_disk().start();
    let client = gateway.client();
    for _ in 0..200 {
        assert_eq!(
            client.get(P).bearer("tok-a").send().assert_status(200).text(),
            redacted_document(DUCK)
        );
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

/// The access lines of a log.
fn access_lines(log: &str) -> Vec<serde_json::Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["target"] == "telecomx_gateway::access").collect()
}

fn access_line(gateway: &Gateway, request_id: &str) -> serde_json::Value {
    // Other lines of the request may come first.
    let find = || {
        access_lines(&gateway.log()).into_iter().find(|line| line["http.request.id"] == request_id)
    };
    wait_until("the access line is written", || find().is_some());
    find().expect("an access line")
}

#[test]
fn access_lines_follow_log_access_whatever_the_level() {
    for access in ["all", "errors", "off"] {
        for level in ["error", "warn", "info", "debug", "trace"] {
            let origin = Origin::start();
            origin.knows("tok-a", "VIEWER", DUCK);
            let mut gateway = Gateway::with(
                &origin,
                &format!("log = {{ level = \"{level}\", access = \"{access}\" }}"),
            );
            let client = gateway.client();
            let send = |path: &str, id: &str| {
                client.get(path).bearer("tok-a").header("X-Request-Id", id).send()
            };
            send(P, "a-miss").assert_status(200);
            send(P, "a-hit").assert_status(200);
            origin.missing(OTHER);
            send(&name_of(OTHER), "a-404").assert_status(404);
            origin.stop();
            send(&name_of(THIRD), "a-502").assert_status(502);
            send("/elsewhere", "a-forwarded-502").assert_status(502);
            let run = gateway.terminate();
            let lines = access_lines(&run.stderr);
            let level_of = |id: &str| {
                let line = lines.iter().find(|line| line["http.request.id"] == id)?;
                line["level"].as_str().map(str::to_owned)
            };
            let of_all = |level: &str| (access == "all").then(|| level.to_owned());
            let of_failed = (access != "off").then(|| "ERROR".to_owned());
            let combination = format!("{level} {access}: {}", run.stderr);
            assert_eq!(level_of("a-hit"), of_all("INFO"), "{combination}");
            assert_eq!(level_of("a-404"), of_all("WARN"), "{combination}");
            assert_eq!(level_of("a-502"), of_failed, "{combination}");
            assert_eq!(level_of("a-forwarded-502"), of_failed, "{combination}");
        }
    }
}

/// The value of the label of `upstream_error_causes_total` that was counted since `before`.
fn counted_causes(gateway: &Gateway) -> std::collections::BTreeMap<String, u64> {
    let metrics = gateway.metrics();
    let lines = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("telecomx_gateway_upstream_error_causes_total{cause=\"")?;
        let (cause, count) = rest.split_once("\"} ")?;
        Some((cause.to_owned(), count.parse().ok()?))
    });
    lines.collect()
}

#[test]
fn failed_request_has_the_counted_cause_in_its_line() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "upstream = { timeout = \"1s\", max_body = \"64KiB\" }");
    let client = gateway.client();
    client.get(P).bearer("tok-a").revealed().send().assert_status(200);
    client.get(P).bearer("tok-b").send().assert_status(200);
    let gate = Gate::closed();
    let rule = || Rule::on("/customer/");
    let failures = [
        ("garbage", rule().raw("SSH-2.0-x\r\n\r\n")),
        ("no-response", rule().close()),
        ("truncated", rule().cut_body_after(20)),
        ("body-timeout", rule().hold_body(&gate)),
        ("head-timeout", rule().hold(&gate)),
        ("refused", rule()),
    ];
    for (number, (failure, rule)) in failures.into_iter().enumerate() {
        origin.when(rule);
        if failure == "refused" {
            origin.stop();
        }
        for (token, level) in [("tok-a", "reseller"), ("tok-b", "viewer")] {
            let before = counted_causes(&gateway);
            let id = format!("{failure}-{level}");
            let path = name_of(&customer(number));
            let response =
                client.get(&path).bearer(token).header("X-Request-Id", &id).revealed().send();
            assert!(matches!(response.status, 502..=504), "{id}: {response:#?}");
            assert_eq!(response.json()["error"]["requestId"], id.as_str(), "{response:#?}");
            let line = access_line(&gateway, &id);
            let cause = line["cause"].as_str().unwrap_or_else(|| panic!("no cause: {line}"));
            let after = counted_causes(&gateway);
            let earlier = before.get(cause).copied().unwrap_or_default();
            assert!(
                after.get(cause).copied().unwrap_or_default() > earlier,
                "{cause}: {before:?} {after:?}"
            );
            assert!(line["api.duration_us"].is_u64(), "{line}");
            assert!(line["api.status"].is_null(), "{line}");
        }
        origin.behave();
    }
    gate.open();
    assert!(!gateway.log().contains(TOKEN_MARKER));
}

#[test]
fn error_status_of_the_api_is_the_cause_on_every_route() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").revealed().send().assert_status(200);
    client.get(P).bearer("tok-b").send().assert_status(200);
    let (mut number, mut failures) = (0, 0);
    for status in [429, 500, 502, 503, 504, 404] {
        let html = Answer::new(status).header("Content-Type", "text/html").body("<p>down</p>");
        for answer in [html, Answer::error(status, "down"), Answer::new(status)] {
            for prefix in ["/customer/", "/log/", "/elsewhere"] {
                origin.when(Rule::on(prefix).answer(answer.clone()));
            }
            for token in ["tok-a", "tok-b"] {
                number += 1;
                let id = customer(number);
                let targets =
                    [name_of(&id), format!("{}?x=1", name_of(&id)), format!("/customer/{id}")];
                for target in targets.into_iter().chain(["/log/x".into(), "/elsewhere".into()]) {
                    let request =
                        format!("{number}-{status}-{}", target.replace(['/', '?', '='], "."));
                    let call = client.get(&target).bearer(token).header("X-Request-Id", &request);
                    call.revealed().send().assert_status(status);
                    let line = access_line(&gateway, &request);
                    assert_eq!(line["api.status"], status, "{line}");
                    let is_failure = status != 404;
                    failures += u64::from(is_failure);
                    assert_eq!(line["cause"] == "status", is_failure, "{line}");
                }
            }
            origin.behave();
        }
    }
    let counted = || counted_causes(&gateway).get("status").copied().unwrap_or_default();
    wait_until("each failure is counted", || counted() == failures);
}

#[test]
fn own_error_of_the_gateway_has_a_cause_in_its_line() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "identity.max_invalid_per_minute = 2");
    let client = gateway.client();
    let call = |method: &str, target: &str| client.call(method, target).bearer("tok-a");
    let only_if_cached = call("GET", P).header("Cache-Control", "only-if-cached");
    call("GET", P).send().assert_status(200);
    gateway.admin().delete("/cache").send().assert_status(200);
    for (call, status, cause) in [
        (only_if_cached, 504, "only_if_cached"),
        (client.call("GET", "/auth/logout"), 503, "unattributed"),
        (call("GET", &P.replace("customer", "Customer")), 400, "alias_path"),
    ] {
        call.header("X-Request-Id", cause).send().assert_status(status);
        let found = |line: &serde_json::Value| {
            line["http.response.status_code"] == status && line["cause"] == cause
        };
        wait_until(&format!("a line with {cause}"), || {
            access_lines(&gateway.log()).iter().any(found)
        });
    }
    let refused = |number: usize| client.get(P).bearer(&format!("bad-{number}")).send().status;
    let mut number = 0;
    wait_until("the address is over the limit", || {
        number += 1;
        refused(number) == 429
    });
    gateway.wait_for_log("\"cause\":\"invalid_tokens\"");
}

#[test]
fn access_line_has_status_and_time_of_the_api() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    origin.when(Rule::on("/customer/").answer(Answer::error(500, "internal_error")).times(1));
    let send =
        |path: &str, id: &str| client.get(path).bearer("tok-a").header("X-Request-Id", id).send();
    send(P, "failed").assert_status(500);
    send(P, "miss").assert_status(200);
    send(P, "hit").assert_status(200);
    origin.when(Rule::on("/elsewhere").answer(Answer::error(503, "unavailable")));
    send("/elsewhere", "forwarded").assert_status(503);
    for (id, status) in [("failed", 500), ("miss", 200), ("forwarded", 503)] {
        let line = access_line(&gateway, id);
        assert_eq!(line["api.status"], status, "{line}");
        let (api, total) = (line["api.duration_us"].as_u64(), line["duration_us"].as_u64());
        assert!(api > Some(0) && api <= total, "{line}");
    }
    let hit = access_line(&gateway, "hit");
    assert!(hit.get("api.status").is_none() && hit.get("api.duration_us").is_none(), "{hit}");
    let source = |source| gateway.metric("requests_total", &[("error_source", source)]);
    assert_eq!((source("api"), source("gateway")), (2.0, 0.0));
}

#[test]
fn customer_id_is_logged_only_if_configured() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "log.customer = false");
    let below = format!("/customer/{DUCK}/subscriptions");
    let send = |round: &str| {
        for (path, id) in
            [(P, "miss"), (P, "hit"), (below.as_str(), "below"), ("/elsewhere", "elsewhere")]
        {
            let id = format!("{round}-{id}");
            gateway
                .client()
                .get(path)
                .bearer("tok-a")
                .header("X-Request-Id", &id)
                .send()
                .assert_status(200);
            gateway.wait_for_log(&id);
        }
        gateway
            .client()
            .get(P)
            .header("X-Request-Id", &format!("{round}-401"))
            .send()
            .assert_status(401);
        gateway.wait_for_log(&format!("{round}-401"));
    };
    send("off");
    assert!(!gateway.log().contains(DUCK), "{}", gateway.log());
    let config = std::fs::read_to_string(gateway.config_file()).expect("the configuration");
    gateway.rewrite("gateway.toml", &config.replace("customer = false", "customer = true"));
    gateway.admin().post("/reload").send().assert_status(200);
    assert_eq!(gateway.metric("fast_path_hits_total", &[]), 1.0);
    send("on");
    assert_eq!(gateway.metric("fast_path_hits_total", &[]), 3.0);
    for id in ["on-miss", "on-hit", "on-below", "on-401"] {
        assert_eq!(access_line(&gateway, id)["customer"], DUCK, "{id}");
    }
    assert!(access_line(&gateway, "on-elsewhere").get("customer").is_none());
}

#[test]
fn full_queue_drops_no_audit_line() {
    let origin = Origin::start();
    let mut gateway =
        Gateway::set_up(&origin).config("log.buffer = \"64KiB\"").unread_log().start();
    fill(&gateway, &gateway.client());
    for number in 0..20 {
        let id = format!("purge-{number}");
        gateway.admin().delete("/cache").header("X-Request-Id", &id).send().assert_status(200);
    }
    gateway.read_log();
    let run = gateway.terminate();
    for number in 0..20 {
        assert_eq!(run.stderr.matches(&format!("\"purge-{number}\"")).count(), 1, "{number}");
    }
}
