//! Outages of the API: it fails, hangs, is unreachable, or recovers. The gateway serves stale
//! responses or refuses quickly, lets no queue of waiting clients grow, and sends one request per
//! entry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";

fn get(gateway: &Gateway, token: &str, id: &str) -> Response {
    gateway.client().get(&name_of(id)).bearer(token).send()
}

/// Whether a stale response was served because the API fails.
fn is_stale_if_error(response: &Response) -> bool {
    let rest = response.cache_status().strip_prefix("telecomx-gateway; hit; ttl=-");
    rest.and_then(|rest| rest.strip_suffix("; detail=stale-if-error"))
        .is_some_and(|past| past.parse::<u32>().is_ok_and(|past| past >= 1))
}

#[track_caller]
fn assert_unavailable(response: &Response) {
    response.assert_error(503, "unavailable");
    let wait: u64 =
        response.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a Retry-After");
    assert!((1..=10).contains(&wait), "{response:#?}");
}

#[test]
fn every_failure_of_the_api_gets_a_stale_response() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(
        &origin,
        r#"upstream.timeout = "1s"
        cache = { ttl = "300ms", stale_while_revalidate = "0s", stale_if_error = "10m" }
        identity = { ttl = "10m", refresh_after = "10m" }"#,
    );
    let gate = Gate::closed();
    let rule = || Rule::on("/customer/");
    let faults = [
        ("500", rule().answer(Answer::error(500, "internal_error"))),
        ("502", rule().answer(Answer::error(502, "bad_gateway"))),
        ("429", rule().answer(Answer::error(429, "slow_down"))),
        ("no response", rule().close()),
        ("a truncated response", rule().cut_body_after(20)),
        ("not HTTP", rule().raw("SSH-2.0-x\r\n\r\n")),
        ("no head in time", rule().hold(&gate)),
        ("no body in time", rule().hold_body(&gate)),
        ("refused", rule()),
    ];
    for number in 0..faults.len() {
        assert_eq!(get(&gateway, "tok-a", &customer(number)).cache_status(), STORED);
    }
    get(&gateway, "tok-a", DUCK).assert_status(200);
    wait_until("all entries are stale", || !get(&gateway, "tok-a", DUCK).is_hit());
    for (number, (fault, rule)) in faults.into_iter().enumerate() {
        let id = customer(number);
        origin.when(rule);
        if fault == "refused" {
            origin.stop();
        }
        let ask = || {
            let response = get(&gateway, "tok-a", &id);
            assert!(is_stale_if_error(&response), "{fault}: {response:#?}");
            assert_eq!(response.assert_status(200).text(), redacted_document(&id), "{fault}");
            (origin.fetches(&id), Instant::now())
        };
        let (asked, failed) = ask();
        for _ in 0..3 {
            let (asked_by_now, now) = ask();
            let again = now - failed > Duration::from_secs(1);
            assert!(again || asked_by_now == asked, "{fault}: a second request within a second");
        }
        // Without a stored response the client gets the error.
        let nothing_stored = get(&gateway, "tok-a", &customer(100 + number));
        assert!(matches!(nothing_stored.status, 429 | 500..=504), "{fault}: {nothing_stored:#?}");
        origin.behave();
    }
    gate.open();
}

/// Stores stale responses, and lets the API hang until the circuit is open.
fn opened(origin: &Origin, stored: usize) -> (Gateway, Gate) {
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(
        origin,
        r#"upstream = { timeout = "2s", max_in_flight = 8 }
        cache = { ttl = "300ms", stale_while_revalidate = "0s", stale_if_error = "10m" }
        identity = { ttl = "10m", refresh_after = "10m" }"#,
    );
    for number in 0..stored {
        get(&gateway, "tok-a", &customer(number)).assert_status(200);
    }
    assert_eq!(gateway.stats()["upstream"]["circuit"], "closed");
    assert_eq!(gateway.metric("circuit_open", &[]), 0.0);
    let gate = Gate::closed();
    origin.when(Rule::on("/").hold(&gate));
    // Eight consecutive timeouts open the circuit.
    let pending: Vec<_> = (0..8)
        .map(|number| {
            gateway.client().get(&name_of(&customer(900 + number))).bearer("tok-a").start()
        })
        .collect();
    for pending in pending {
        pending.finish().assert_error(504, "gateway_timeout");
    }
    assert_ne!(gateway.stats()["upstream"]["circuit"], "closed");
    assert_eq!(gateway.metric("circuit_open", &[]), 1.0);
    (gateway, gate)
}

#[test]
fn open_circuit_answers_at_once_while_the_api_hangs() {
    let origin = Origin::start();
    let (gateway, gate) = opened(&origin, 30);
    let (before, began) = (origin.requests(), Instant::now());
    let mut quick = 0;
    for number in 0..30 {
        let asked = Instant::now();
        let stale = get(&gateway, "tok-a", &customer(number));
        assert!(is_stale_if_error(stale.assert_status(200)), "{stale:#?}");
        let none = get(&gateway, "tok-a", &customer(500 + number));
        match none.status {
            504 => {} // The probe.
            _ => assert_unavailable(&none),
        }
        quick += usize::from(asked.elapsed() < Duration::from_millis(500));
    }
    // A probe waits for the API: after one second, two, four, then every five.
    let probes = origin.requests() - before;
    assert!(
        probes <= 1 + began.elapsed().as_secs() as usize / 3,
        "{probes} requests in {:?}",
        began.elapsed()
    );
    assert!(quick >= 25, "{quick} of 30 pairs were served at once");
    // An unknown token cannot be validated, which does not make it invalid.
    let unknown = get(&gateway, "tok-b", DUCK);
    assert!(matches!(unknown.status, 503 | 504), "{unknown:#?}");
    gate.open();
    origin.behave();
    let back = Instant::now();
    wait_until("requests reach the API again", || get(&gateway, "tok-a", DUCK).status == 200);
    assert!(back.elapsed() < Duration::from_secs(5 + 2 + 3), "{:?}", back.elapsed());
    assert_eq!(gateway.stats()["upstream"]["circuit"], "closed");
    assert_eq!(gateway.metric("circuit_open", &[]), 0.0);
    assert!(gateway.metric("upstream_errors_total", &[("kind", "circuit_open")]) >= 50.0);
}

#[test]
fn full_queue_refuses_at_once_and_serves_waiting_requests() {
    const PERMITS: usize = 2;
    const QUEUE: usize = 16 * PERMITS;
    const TOO_MANY: usize = 10;
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "50s", max_in_flight = 2 }"#);
    get(&gateway, "tok-a", DUCK).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let (answered, answers) = mpsc::sync_channel(PERMITS + QUEUE + TOO_MANY);
    std::thread::scope(|scope| {
        let began = Instant::now();
        for number in 0..PERMITS + QUEUE + TOO_MANY {
            let (answered, call) =
                (answered.clone(), gateway.client().get(&name_of(&customer(number))));
            scope.spawn(move || {
                let response = call.bearer("tok-a").send();
                let _ = answered.send(response);
            });
        }
        for _ in 0..TOO_MANY {
            assert_unavailable(&answers.recv_timeout(PATIENCE).expect("a refusal"));
        }
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "long before any timeout: {:?}",
            began.elapsed()
        );
        // A hit needs no permit.
        assert!(get(&gateway, "tok-a", DUCK).assert_status(200).is_hit());
        let at_api =
            || origin.count(|seen| seen.path() != P && seen.path().starts_with("/customer/"));
        // Refusals may be quicker than the first request that got a permit.
        wait_until("every permit is taken", || {
            gateway.stats()["upstream"]["in_flight"] == PERMITS && at_api() == PERMITS
        });
        gate.open();
        for _ in 0..PERMITS + QUEUE {
            answers.recv_timeout(PATIENCE).expect("an answer").assert_status(200);
        }
    });
}

#[test]
fn open_circuit_refuses_at_once_while_a_probe_holds_the_permit() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "3s", max_in_flight = 1 }"#);
    get(&gateway, "tok-a", DUCK).assert_status(200);
    origin.stop();
    wait_until("the circuit is open", || {
        get(&gateway, "tok-a", OTHER);
        gateway.stats()["upstream"]["circuit"] == "open"
    });
    // The API accepts connections again and does not respond: the probe holds the only permit.
    let gate = Gate::closed();
    origin.when(Rule::on("/").hold(&gate));
    origin.resume();
    let with_probe = origin.requests() + 1;
    let pending = Mutex::new(Vec::new());
    wait_until("a probe is sent", || {
        pending.lock().push(gateway.client().get(&name_of(OTHER)).bearer("tok-a").start());
        origin.requests() >= with_probe
    });
    let began = Instant::now();
    assert_unavailable(&get(&gateway, "tok-a", THIRD));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    gate.open();
}

#[test]
fn invalid_tokens_are_limited_per_address() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config =
        r#"identity = { max_invalid_per_minute = 5, ttl = "300ms", refresh_after = "300ms" }"#;
    let gateway = Gateway::with(&origin, config);
    let from = |address: &str, token: &str| {
        gateway.client().get(P).bearer(token).header("X-Forwarded-For", address).send()
    };
    let (guesser, frontend) = ("203.0.113.7", "198.51.100.1");
    from(guesser, "tok-a").assert_status(200);
    for number in 0..5 {
        from(guesser, &format!("tok-guess-{number}")).assert_error(401, "invalid_token");
    }
    let asked = origin.validations();
    for number in 5..50 {
        let refused = from(guesser, &format!("tok-guess-{number}"));
        refused.assert_error(429, "too_many_requests");
        let wait: u64 = refused
            .header("retry-after")
            .and_then(|wait| wait.parse().ok())
            .expect("a Retry-After");
        assert!((1..=60).contains(&wait), "{refused:#?}");
    }
    assert_eq!(origin.validations(), asked, "no refused token reaches the API");
    // A cached identity is served and revalidated.
    wait_until("a known token is revalidated", || {
        from(guesser, "tok-a").assert_status(200);
        origin.validations_of("tok-a") >= 3
    });
    // Another address has its own limit. Valid tokens do not count, one invalid token counts once,
    // and ended sessions do not count.
    for number in 0..50 {
        let token = format!("tok-good-{number}");
        origin.knows(&token, "VIEWER", DUCK);
        from(frontend, &token).assert_status(200);
        origin.forgets(&token);
        from(frontend, "tok-bad").assert_error(401, "invalid_token");
    }
    wait_until("every session has ended", || {
        (0..50).all(|number| from(frontend, &format!("tok-good-{number}")).status == 401)
    });
    origin.knows("tok-new", "VIEWER", DUCK);
    from(frontend, "tok-new").assert_status(200);
    assert!(gateway.metric("identity_lookups_total", &[("result", "refused")]) >= 45.0);
}

#[test]
fn failure_is_shared_by_the_waiting_requests_of_its_entry() {
    let origin = Origin::start();
    for token in ["tok-a", "tok-b"] {
        origin.knows(token, "VIEWER", DUCK);
    }
    let gateway = Gateway::start(&origin);
    for token in ["tok-a", "tok-b"] {
        get(&gateway, token, THIRD).assert_status(200);
    }
    let gate = Gate::closed();
    // Only the response to tok-a for DUCK fails.
    origin.when(Rule::on("/customer/").hold(&gate).made(|seen| {
        match (seen.token().as_deref(), seen.path()) {
            (Some("tok-a"), P) => Answer::error(500, "internal_error"),
            (_, path) => {
                Answer::json(upstream_document(path.split('/').nth(2).unwrap_or_default()))
            }
        }
    }));
    let ask = |token, id: &str| gateway.client().get(&name_of(id)).bearer(token).start();
    let failing: Vec<_> = (0..10).map(|_| ask("tok-a", DUCK)).collect();
    let others: Vec<_> = [("tok-b", DUCK), ("tok-a", OTHER)]
        .into_iter()
        .flat_map(|(t, id)| [ask(t, id), ask(t, id)])
        .collect();
    origin.wait_for_fetches(DUCK, 2);
    origin.wait_for_fetches(OTHER, 1);
    // Requests that arrive later would start a fetch themselves.
    gateway.wait_for_metric("upstream_in_flight", &[], 3.0);
    gate.open();
    let failed = failing.len();
    for pending in failing {
        assert_eq!(pending.finish().status, 500);
    }
    let asked =
        origin.fetched(DUCK).iter().filter(|seen| seen.token().as_deref() == Some("tok-a")).count();
    assert!(asked < failed, "{asked} fetches for {failed} failures");
    for pending in others {
        pending.finish().assert_status(200);
    }
    origin.behave();
    assert_eq!(
        get(&gateway, "tok-a", DUCK).assert_status(200).cache_status(),
        STORED,
        "the failure is not stored"
    );
}

#[test]
fn followers_wait_no_longer_than_the_timeout_of_the_leader() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "2s""#);
    get(&gateway, "tok-a", OTHER).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on(P).hold(&gate).times(1));
    let leader = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    let began = Instant::now();
    let waiters: Vec<_> =
        (0..10).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    drop(leader);
    for waiter in waiters {
        let response = waiter.finish();
        // A request that arrives after the failure starts a fetch itself.
        assert!(matches!(response.status, 504 | 200), "{response:#?}");
    }
    assert!(began.elapsed() < Duration::from_secs(2 + 3), "{:?}", began.elapsed());
    assert_eq!(get(&gateway, "tok-a", DUCK).assert_status(200).text(), redacted_document(DUCK));
    assert_eq!(origin.fetches(DUCK), 2, "the fetch that hung, and one more");
    gate.open();
}

/// A hundred callers with ten customers each.
const CALLERS: usize = 100;
const CUSTOMERS: usize = 10;

/// Fifty connections request every customer of every caller, each entry twice at about the same
/// time, until `continues` returns false after a round. Checks the customer of every response.
/// Returns the number of responses.
fn request_all(gateway: &Gateway, continues: impl Fn() -> bool + Sync) -> usize {
    let (next, done, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let client = gateway.client();
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let mut connection = client.connect();
                while !over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed) / 2;
                    let entry = number % (CALLERS * CUSTOMERS);
                    if entry == 0 && number > 0 && !continues() {
                        return over.store(true, Ordering::Relaxed);
                    }
                    let (caller, id) = (entry % CALLERS, customer(entry / CALLERS));
                    let call = client.get(&name_of(&id)).bearer(&format!("tok-{caller}"));
                    let response = call.send_on(&mut connection);
                    assert_eq!(response.assert_status(200).json()["_id"], id);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    done.into_inner()
}

fn start_with_callers(origin: &Origin, config: &str) -> Gateway {
    for caller in 0..CALLERS {
        origin.knows(&format!("tok-{caller}"), "VIEWER", DUCK);
    }
    let quiet = r#"log = { level = "warn", access = "off" }"#;
    Gateway::with(origin, &format!("{quiet}\n{config}"))
}

#[test]
fn expired_entries_are_fetched_once_per_lifetime() {
    let origin = Origin::start();
    let ttl = Duration::from_secs(2);
    let gateway = start_with_callers(
        &origin,
        r#"cache = { ttl = "2s", stale_while_revalidate = "10m" }
        identity = { ttl = "10m", refresh_after = "10m", session = "1h" }"#,
    );
    let fetches = || {
        let mut fetches: HashMap<_, usize> = HashMap::new();
        for seen in origin.seen().into_iter().filter(|seen| seen.path().starts_with("/customer/")) {
            *fetches.entry((seen.token(), seen.target)).or_default() += 1;
        }
        fetches
    };
    let each_expired = || fetches().values().all(|fetches| *fetches >= 2);
    let began = Instant::now();
    let responses = request_all(&gateway, || !each_expired() && began.elapsed() < PATIENCE);
    let most = 1 + (began.elapsed().as_millis() / ttl.as_millis()) as usize;
    let fetches = fetches();
    assert_eq!(fetches.len(), CALLERS * CUSTOMERS);
    assert!(each_expired() && responses >= CALLERS * CUSTOMERS * 4, "{responses} responses");
    let greatest = fetches.values().max().copied();
    assert!(greatest <= Some(most), "{greatest:?} fetches of one in {:?}", began.elapsed());
    assert_eq!(origin.validations(), CALLERS, "each caller is validated once");
}

/// Duration of the outage: longer than every lifetime, or `OUTAGE_SECONDS`.
fn outage() -> Duration {
    Duration::from_secs(
        std::env::var("OUTAGE_SECONDS").map_or(4, |seconds| seconds.parse().expect("a number")),
    )
}

#[test]
fn outage_fails_no_request_with_a_stored_response() {
    let origin = Origin::start();
    let gateway = start_with_callers(
        &origin,
        r#"cache = { ttl = "1s", stale_while_revalidate = "1s", stale_if_error = "10m" }
        identity = { ttl = "1s", refresh_after = "500ms", stale_if_error = "10m" }"#,
    );
    request_all(&gateway, || false);
    origin.stop();
    let outage_start = Instant::now();
    // Every entry and every identity has expired. `request_all` fails on a status other than 200.
    let responses = request_all(&gateway, || outage_start.elapsed() < outage());
    assert!(responses >= CALLERS * CUSTOMERS * 2, "{responses}");
    assert!(gateway.metric("cache_stale_served_total", &[("reason", "error")]) >= 1000.0);
    assert!(gateway.metric("identity_lookups_total", &[("result", "stale")]) >= 100.0);
    assert_eq!(gateway.metric("circuit_open", &[]), 1.0);
    let seen = origin.requests();
    origin.resume();
    let back = Instant::now();
    wait_until("the circuit is closed", || {
        get(&gateway, "tok-0", &customer(0)).assert_status(200);
        gateway.stats()["upstream"]["circuit"] == "closed"
    });
    assert!(back.elapsed() < Duration::from_secs(5 + 3), "{:?}", back.elapsed());
    wait_until("responses are fresh again", || {
        get(&gateway, "tok-1", &customer(1)).assert_status(200).is_hit()
    });
    assert!(origin.requests() > seen);
}

#[test]
fn outage_logs_its_start_and_its_end_once() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, "upstream.timeout = \"2s\"\nlog.level = \"info\"");
    get(&gateway, "tok-a", DUCK).assert_status(200);
    origin.stop();
    let outage_start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                let client = gateway.client();
                let mut number = 0;
                while outage_start.elapsed() < Duration::from_secs(4) {
                    let (token, id) =
                        (format!("tok-unknown-{thread}-{number}"), customer(100 * thread + number));
                    client.get(&name_of(&id)).bearer(&token).send();
                    client.get(&name_of(&id)).bearer("tok-a").send();
                    client.get("/elsewhere").send();
                    number += 1;
                }
            });
        }
    });
    origin.resume();
    wait_until("the circuit is closed", || {
        get(&gateway, "tok-a", OTHER);
        gateway.stats()["upstream"]["circuit"] == "closed"
    });
    gateway.wait_for_log("circuit breaker closed");
    let log = gateway.log();
    let lines =
        || log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let access = lines().filter(|line| line["target"] == "telecomx_gateway::access").count();
    let others = lines().filter(|line| line["target"] != "telecomx_gateway::access").count();
    assert!(access > 200, "{access} requests");
    let seconds = usize::try_from(outage_start.elapsed().as_secs()).expect("a duration") + 1;
    assert!(others <= 10 * seconds, "{others} lines in {seconds} s: {log}");
    let with = |text: &str| {
        lines().filter(|line| line["message"].to_string().contains(text)).collect::<Vec<_>>()
    };
    let (opened, closed) = (with("circuit breaker opened"), with("circuit breaker closed"));
    assert_eq!((opened.len(), closed.len()), (1, 1), "{log}");
    assert_eq!(
        (&opened[0]["level"], &opened[0]["target"]),
        (&"WARN".into(), &"audit".into()),
        "{}",
        opened[0]
    );
    assert_eq!(opened[0]["cause"], "connect", "{}", opened[0]);
    assert_eq!(opened[0]["address"], origin.address().to_string(), "{}", opened[0]);
    assert!(opened[0]["failures"].as_u64() >= Some(8), "{}", opened[0]);
    assert!(closed[0]["open_seconds"].as_f64() >= Some(3.0), "{}", closed[0]);
    // The reason of a single refusal is in the access line.
    let refused = lines().filter(|line| line["cause"] == "circuit_open").count();
    assert!(refused > 50, "{refused} refusals");
}

/// The lines of one outage under load, except access lines, and its duration. `begin` and `end`
/// start and end the outage.
fn log_of_an_outage(
    begin: impl FnOnce(&Origin),
    end: impl FnOnce(&Origin),
) -> (Vec<serde_json::Value>, Duration) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let callers: Vec<String> = (0..12).map(|number| format!("tok-{number}")).collect();
    callers.iter().for_each(|token| origin.knows(token, "VIEWER", DUCK));
    let config = r#"log.level = "info"
        upstream = { timeout = "1s" }
        identity = { ttl = "10m", refresh_after = "10m" }"#;
    let gateway = Gateway::with(&origin, config);
    for token in &callers {
        get(&gateway, token, DUCK).assert_status(200);
    }
    let (started, is_over) = (Instant::now(), AtomicBool::new(false));
    begin(&origin);
    std::thread::scope(|scope| {
        for (thread, token) in callers.iter().enumerate() {
            let (gateway, is_over) = (&gateway, &is_over);
            scope.spawn(move || {
                let client = gateway.client();
                let mut number = 1000 * thread;
                while !is_over.load(Ordering::Relaxed) {
                    client.get(&name_of(DUCK)).bearer(token).send();
                    client.get(&name_of(&customer(number))).bearer(token).send();
                    // A forwarded request waits longer for an API that hangs.
                    if thread == 0 {
                        client.get("/elsewhere").bearer(token).send();
                    }
                    number += 1;
                }
            });
        }
        gateway.wait_for_log("circuit breaker opened");
        gateway.wait_for_log("address of the API ejected");
        gateway.wait_for_metric("upstream_errors_total", &[("kind", "circuit_open")], 300.0);
        end(&origin);
        gateway.wait_for_log("circuit breaker closed");
        gateway.wait_for_log("address of the API recovered");
        is_over.store(true, Ordering::Relaxed);
    });
    let duration = started.elapsed();
    let lines = gateway.log();
    let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let is_access = |line: &serde_json::Value| line["target"] == "telecomx_gateway::access";
    (lines.filter(|line| !is_access(line)).collect(), duration)
}

#[test]
fn every_kind_of_outage_has_four_audit_lines() {
    for cause in ["connect", "status", "no_response", "timeout"] {
        let gate = Gate::closed();
        let begin = |origin: &Origin| match cause {
            "connect" => origin.stop(),
            "status" => origin.when(Rule::on("/").answer(Answer::error(503, "unavailable"))),
            "no_response" => origin.when(Rule::on("/").close()),
            _ => origin.when(Rule::on("/").hold(&gate)),
        };
        let end = |origin: &Origin| {
            gate.open();
            origin.behave();
            if cause == "connect" {
                origin.resume();
            }
        };
        let (lines, duration) = log_of_an_outage(begin, end);
        let seconds = usize::try_from(duration.as_secs()).expect("a duration") + 1;
        assert!(lines.len() <= 10 * seconds, "{cause}: more than 10 lines per second: {lines:#?}");
        let audit: Vec<_> = lines.iter().filter(|line| line["target"] == "audit").collect();
        let position = |text: &str| {
            let has_text = |line: &&serde_json::Value| {
                line["message"].as_str().is_some_and(|message| message.starts_with(text))
            };
            let positions: Vec<_> =
                audit.iter().enumerate().filter(|(_, line)| has_text(line)).collect();
            let [(position, line)] = positions[..] else { panic!("{cause}: {text}: {audit:#?}") };
            (position, (*line).clone())
        };
        let (ejected, ejection) = position("address of the API ejected");
        let (opened, opening) = position("circuit breaker opened");
        let (recovered, _) = position("address of the API recovered");
        let (closed, closing) = position("circuit breaker closed");
        assert_eq!(audit.len(), 4, "{cause}: {audit:#?}");
        assert!(ejected.max(opened) < recovered.min(closed), "{cause}: {audit:#?}");
        assert_eq!((&ejection["cause"], &opening["cause"]), (&cause.into(), &cause.into()));
        assert_eq!(ejection["address"], opening["address"]);
        assert!(closing["open_seconds"].as_f64() > Some(0.0), "{closing}");
    }
}
