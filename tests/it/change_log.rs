//! Changes made without the gateway, found in the API's change log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use parking_lot::Mutex;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const LOG: &str = "/log/changeloglite";

/// A short interval, so that tests do not wait.
const CONFIG: &str = "[change_log]\ntoken_file = \"{dir}/log-token\"\ninterval = \"100ms\"\n";

/// The change log of the stand-in API: its next response.
#[derive(Clone)]
struct Log(Arc<Mutex<Answer>>);

impl Log {
    fn of(origin: &Origin) -> Log {
        let log = Log(Arc::new(Mutex::new(Answer::json("[]"))));
        let answers = log.clone();
        origin.when(Rule::on(LOG).made(move |_| answers.0.lock().clone()));
        log
    }

    fn says(&self, answer: Answer) {
        *self.0.lock() = answer;
    }

    fn entries(&self, entries: &str) {
        self.says(Answer::json(format!("[{entries}]")));
    }
}

fn entry(id: usize, place: &str, what: &str) -> String {
    format!(
        r#"{{"_id":"{id}","where":"{place}","what":"UPDATE","id":"{what}","customer":"{OTHER}","when":"2026"}}"#
    )
}

/// An API with two customers, its change log, and a gateway that polls it.
fn scene(config: &str) -> (Origin, Log, Gateway) {
    let origin = Origin::start();
    for customer in [DUCK, THIRD] {
        origin.knows("tok-a", "VIEWER", customer);
    }
    let log = Log::of(&origin);
    let gateway = Gateway::set_up(&origin)
        .file("log-token", "tok-log\n")
        .config(&format!("{config}\n{CONFIG}"))
        .start();
    (origin, log, gateway)
}

/// Waits for this number of polls that begin from now on.
fn readings(origin: &Origin, more: usize) {
    let count = |seen: &[Seen]| seen.iter().filter(|seen| seen.target.starts_with(LOG)).count();
    let before = count(&origin.seen());
    origin.wait_until("the log is read", |seen| count(seen) >= before + more);
}

fn is_hit(gateway: &Gateway, path: &str) -> bool {
    let response = gateway.client().get(path).bearer("tok-a").send();
    response.assert_status(200).is_hit()
}

#[test]
fn log_entry_invalidates_its_customer_and_no_other() {
    let (origin, log, gateway) = scene("");
    for path in [P, &name_of(THIRD)] {
        assert!(!is_hit(&gateway, path));
        assert!(is_hit(&gateway, path));
    }
    log.entries(&entry(1, "Customers", DUCK));
    gateway.wait_for_metric("change_log_entries_total", &[("outcome", "obeyed")], 1.0);
    assert!(!is_hit(&gateway, P), "the log contains it");
    assert!(is_hit(&gateway, &name_of(THIRD)), "the log does not contain it");
    assert!(is_hit(&gateway, P));
    // The next polls return the same entry, since they overlap.
    readings(&origin, 3);
    assert!(is_hit(&gateway, P), "an entry counts once");
    assert_eq!(gateway.metric("cache_invalidations_total", &[("trigger", "change_log")]), 1.0);
    let asked = origin.last(LOG).expect("a reading");
    assert_eq!(asked.token().as_deref(), Some("tok-log"));
    assert!(
        asked.target.starts_with("/log/changeloglite?date=20") && asked.target.ends_with('Z'),
        "{}",
        asked.target
    );
}

#[test]
fn log_entry_invalidates_its_employee() {
    let (origin, log, gateway) = scene("");
    is_hit(&gateway, P);
    assert!(is_hit(&gateway, P));
    origin.forgets("tok-a");
    log.entries(&entry(1, "Employees", &employee_of("tok-a")));
    gateway.wait_for_metric("change_log_entries_total", &[("outcome", "obeyed")], 1.0);
    gateway.client().get(P).bearer("tok-a").send().assert_error(401, "invalid_token");
}

#[test]
fn other_entries_count_by_customer_and_unknown_are_logged() {
    let (_origin, log, gateway) = scene("");
    is_hit(&gateway, P);
    let other =
        format!(r#"{{"_id":"1","where":"Mobiles","what":"OTHER","id":"x","customer":"{DUCK}"}}"#);
    log.entries(&format!(r#"{other},{{"_id":"2","where":"Moon"}},7"#));
    gateway.wait_for_metric("change_log_entries_total", &[("outcome", "unknown")], 2.0);
    assert!(!is_hit(&gateway, P));
    gateway.wait_for_log("skipped unknown entries of the change log");
}

#[test]
fn incomplete_log_purges_the_cache_once() {
    let (origin, log, gateway) = scene("");
    let many = |of: usize| (0..of).map(|id| entry(id, "Moon", OTHER)).collect::<Vec<_>>().join(",");
    for entries in [many(10_000), many(12_000)] {
        is_hit(&gateway, P);
        assert!(is_hit(&gateway, P));
        log.entries(&entries);
        gateway
            .wait_for_log("purged the whole cache: changes in the change log may have been missed");
        wait_until("it is dropped", || !is_hit(&gateway, P));
        log.entries("");
        readings(&origin, 2);
        is_hit(&gateway, P);
        readings(&origin, 2);
        assert!(is_hit(&gateway, P), "once");
    }
}

#[test]
fn missed_changes_are_read_after_an_outage_of_the_log() {
    let (origin, log, gateway) = scene("");
    is_hit(&gateway, P);
    for (answer, why) in [
        (Answer::error(401, "expired"), "unauthorized"),
        (Answer::error(403, "access_denied"), "forbidden"),
        (Answer::error(500, "internal_error"), "status"),
        (Answer::json("{}"), "unreadable"),
    ] {
        log.says(answer);
        gateway.wait_for_metric("change_log_failures_total", &[("reason", why)], 1.0);
        gateway.wait_for_log(&format!("\"why\":\"{why}\""));
        assert!(is_hit(&gateway, P), "{why}");
    }
    let before = origin.last(LOG).expect("a reading").target;
    log.entries(&entry(1, "Customers", DUCK));
    gateway.wait_for_log("polling of the change log resumed");
    let asked = origin.last(LOG).expect("a reading").target;
    assert!(asked >= before, "from where it was read up to: {before} {asked}");
    assert!(!is_hit(&gateway, P));
    assert!(gateway.metric("change_log_last_read_timestamp_seconds", &[]) > 0.0);
}

#[test]
fn token_file_is_read_before_each_poll() {
    let (origin, log, gateway) = scene("");
    let valid = Arc::new(AtomicUsize::new(0));
    let counted = valid.clone();
    origin.when(Rule::on(LOG).made(move |seen| match seen.token().as_deref() {
        Some("tok-new") => {
            counted.fetch_add(1, Ordering::SeqCst);
            Answer::json("[]")
        }
        _ => Answer::error(401, "expired"),
    }));
    drop(log);
    gateway.wait_for_metric("change_log_failures_total", &[("reason", "unauthorized")], 1.0);
    gateway.rewrite("log-token", "tok-new");
    wait_until("the new token is used", || valid.load(Ordering::SeqCst) > 0);
    gateway.rewrite("log-token", "");
    gateway.wait_for_metric("change_log_failures_total", &[("reason", "token")], 1.0);
}

#[test]
fn api_clock_decides_the_polled_time() {
    let (origin, log, gateway) = scene("");
    log.says(Answer::json("[]").header("Date", "Mon, 24 Nov 2031 16:00:00 GMT"));
    origin.wait_until("it is asked by the API's clock", |seen| {
        seen.iter().any(|seen| seen.target.starts_with("/log/changeloglite?date=2031-11-24T15:5"))
    });
    drop(gateway);
}

#[test]
fn log_is_not_polled_without_its_table() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    assert_eq!(origin.last(LOG).map(|seen| seen.target), None);
    assert!(!gateway.metrics().contains("change_log_"));
}

/// A gateway of a cluster that polls with this token.
fn reader(origin: &Origin, redis: &Redis, token: &str) -> Gateway {
    let fleet = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n", redis.url());
    let keys = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
    // The lease outlasts two polls, each up to the timeout of the API. A short timeout makes it
    // expire soon.
    let config = format!("upstream.timeout = \"400ms\"\n{CONFIG}{fleet}");
    Gateway::set_up(origin).file("log-token", token).file("keys", keys).config(&config).start()
}

fn readings_of(origin: &Origin, token: &str) -> usize {
    origin.count(|seen| seen.target.starts_with(LOG) && seen.token().as_deref() == Some(token))
}

#[test]
fn one_gateway_of_a_cluster_polls_and_another_continues() {
    let Some(redis) = Redis::start("change_log::of_a_fleet_one_reads_the_log_for_all") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let log = Log::of(&origin);
    let first = reader(&origin, &redis, "tok-first");
    first.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    let second = reader(&origin, &redis, "tok-second");
    // The second gateway gets the changes from the first.
    second.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    second.wait_for_metric("cluster_connected", &[], 1.0);
    is_hit(&second, P);
    assert!(is_hit(&second, P));
    log.entries(&entry(1, "Customers", DUCK));
    wait_until("the second hears of it", || !is_hit(&second, P));
    assert_eq!(readings_of(&origin, "tok-second"), 0);
    first.signal(Signal::SIGSTOP);
    origin.wait_until("the second polls", |seen| {
        seen.iter().any(|seen| seen.token().as_deref() == Some("tok-second"))
    });
    // It reads the last interval again: the first may have exited before it published.
    wait_until("the second has the changes", || {
        second.metric("change_log_entries_total", &[("outcome", "obeyed")]) >= 1.0
    });
    assert_eq!(second.metric("change_log_failures_total", &[]), 0.0);
    first.signal(Signal::SIGCONT);
}

#[test]
fn every_gateway_polls_while_redis_is_away() {
    let Some(mut redis) =
        Redis::start("change_log::without_its_redis_each_gateway_of_a_fleet_reads")
    else {
        return;
    };
    let origin = Origin::start();
    let _log = Log::of(&origin);
    let first = reader(&origin, &redis, "tok-first");
    first.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    let second = reader(&origin, &redis, "tok-second");
    second.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    assert_eq!(readings_of(&origin, "tok-second"), 0);
    redis.kill();
    let both = ["tok-first", "tok-second"].map(|token| (token, readings_of(&origin, token)));
    wait_until("both read", || {
        both.iter().all(|(token, before)| readings_of(&origin, token) > before + 1)
    });
}
