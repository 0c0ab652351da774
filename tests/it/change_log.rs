//! Changes made elsewhere, heard of in the API's own log of changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use parking_lot::Mutex;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const LOG: &str = "/log/changeloglite";

/// Read often, so that tests need not wait.
const CONFIG: &str = "[change_log]\ntoken_file = \"{dir}/log-token\"\ninterval = \"100ms\"\n";

/// The stand-in's log: what it answers next, and to whom.
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
    format!(r#"{{"_id":"{id}","where":"{place}","what":"UPDATE","id":"{what}","customer":"{OTHER}","when":"2026"}}"#)
}

/// An API with two customers, its log, and a gateway that reads it.
fn scene(config: &str) -> (Origin, Log, Gateway) {
    let origin = Origin::start();
    for customer in [DUCK, THIRD] {
        origin.knows("tok-a", "VIEWER", customer);
    }
    let log = Log::of(&origin);
    let gateway =
        Gateway::set_up(&origin).file("log-token", "tok-log\n").config(&format!("{config}\n{CONFIG}")).start();
    (origin, log, gateway)
}

/// Waits for so many readings that began from now on.
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
fn a_customer_that_the_log_names_is_fetched_anew_and_no_other() {
    let (origin, log, gateway) = scene("");
    for path in [P, &name_of(THIRD)] {
        assert!(!is_hit(&gateway, path));
        assert!(is_hit(&gateway, path));
    }
    log.entries(&entry(1, "Customers", DUCK));
    gateway.wait_for_metric("change_log_entries_total", &[("outcome", "obeyed")], 1.0);
    assert!(!is_hit(&gateway, P), "the log told of it");
    assert!(is_hit(&gateway, &name_of(THIRD)), "nothing told of this one");
    assert!(is_hit(&gateway, P));
    // The next readings bring the same entry again, for they overlap.
    readings(&origin, 3);
    assert!(is_hit(&gateway, P), "an entry counts once");
    assert_eq!(gateway.metric("cache_invalidations_total", &[("trigger", "change_log")]), 1.0);
    let asked = origin.last(LOG).expect("a reading");
    assert_eq!(asked.token().as_deref(), Some("tok-log"));
    assert!(asked.target.starts_with("/log/changeloglite?date=20") && asked.target.ends_with('Z'), "{}", asked.target);
}

#[test]
fn an_employee_that_the_log_names_is_asked_about_anew() {
    let (origin, log, gateway) = scene("");
    is_hit(&gateway, P);
    assert!(is_hit(&gateway, P));
    origin.forgets("tok-a");
    log.entries(&entry(1, "Employees", &employee_of("tok-a")));
    gateway.wait_for_metric("change_log_entries_total", &[("outcome", "obeyed")], 1.0);
    gateway.client().get(P).bearer("tok-a").send().assert_error(401, "invalid_token");
}

#[test]
fn of_an_entry_of_another_kind_the_customer_counts_and_of_one_that_says_nothing_it_is_told() {
    let (_origin, log, gateway) = scene("");
    is_hit(&gateway, P);
    let other = format!(r#"{{"_id":"1","where":"Mobiles","what":"OTHER","id":"x","customer":"{DUCK}"}}"#);
    log.entries(&format!(r#"{other},{{"_id":"2","where":"Moon"}},7"#));
    gateway.wait_for_metric("change_log_entries_total", &[("outcome", "unknown")], 2.0);
    assert!(!is_hit(&gateway, P));
    gateway.wait_for_log("skipped unknown entries of the change log");
}

#[test]
fn a_log_that_was_cut_off_drops_everything_once() {
    let (origin, log, gateway) = scene("");
    let many = |of: usize| (0..of).map(|id| entry(id, "Moon", OTHER)).collect::<Vec<_>>().join(",");
    for entries in [many(10_000), many(12_000)] {
        is_hit(&gateway, P);
        assert!(is_hit(&gateway, P));
        log.entries(&entries);
        gateway.wait_for_log("purged the whole cache: changes in the change log may have been missed");
        wait_until("it is dropped", || !is_hit(&gateway, P));
        log.entries("");
        readings(&origin, 2);
        is_hit(&gateway, P);
        readings(&origin, 2);
        assert!(is_hit(&gateway, P), "once");
    }
}

#[test]
fn while_the_log_cannot_be_read_answers_go_on_and_what_was_missed_is_read_later() {
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
fn a_new_token_in_the_file_is_taken_up_without_a_restart() {
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
fn an_api_whose_clock_differs_is_asked_by_its_own() {
    let (origin, log, gateway) = scene("");
    log.says(Answer::json("[]").header("Date", "Mon, 24 Nov 2031 16:00:00 GMT"));
    origin.wait_until("it is asked by the API's clock", |seen| {
        seen.iter().any(|seen| seen.target.starts_with("/log/changeloglite?date=2031-11-24T15:5"))
    });
    drop(gateway);
}

#[test]
fn without_the_table_the_log_is_not_read() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    assert_eq!(origin.last(LOG).map(|seen| seen.target), None);
    assert!(!gateway.metrics().contains("change_log_"));
}

/// One of a fleet that reads the log, with a token by which the stand-in knows it.
fn reader(origin: &Origin, redis: &Redis, token: &str) -> Gateway {
    let fleet = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n", redis.url());
    let keys = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
    // A turn outlasts two readings, each as long as the API may take: briefly, so that it passes soon.
    let config = format!("upstream.timeout = \"400ms\"\n{CONFIG}{fleet}");
    Gateway::set_up(origin).file("log-token", token).file("keys", keys).config(&config).start()
}

fn readings_of(origin: &Origin, token: &str) -> usize {
    origin.count(|seen| seen.target.starts_with(LOG) && seen.token().as_deref() == Some(token))
}

#[test]
fn of_a_fleet_one_reads_the_log_for_all_and_another_goes_on_where_it_ended() {
    let Some(redis) = Redis::start("change_log::of_a_fleet_one_reads_the_log_for_all") else { return };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let log = Log::of(&origin);
    let first = reader(&origin, &redis, "tok-first");
    first.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    let second = reader(&origin, &redis, "tok-second");
    // What the second knows of the log, it knows from the first.
    second.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    second.wait_for_metric("cluster_connected", &[], 1.0);
    is_hit(&second, P);
    assert!(is_hit(&second, P));
    log.entries(&entry(1, "Customers", DUCK));
    wait_until("the second hears of it", || !is_hit(&second, P));
    assert_eq!(readings_of(&origin, "tok-second"), 0);
    first.signal(Signal::SIGSTOP);
    origin.wait_until("the second reads", |seen| seen.iter().any(|seen| seen.token().as_deref() == Some("tok-second")));
    // It reads what the first had read, once more, since that one may have ended before it told.
    wait_until("it is told", || second.metric("change_log_entries_total", &[("outcome", "obeyed")]) >= 1.0);
    assert_eq!(second.metric("change_log_failures_total", &[]), 0.0);
    first.signal(Signal::SIGCONT);
}

#[test]
fn without_its_redis_each_gateway_of_a_fleet_reads_the_log_itself() {
    let Some(mut redis) = Redis::start("change_log::without_its_redis_each_gateway_of_a_fleet_reads") else { return };
    let origin = Origin::start();
    let _log = Log::of(&origin);
    let first = reader(&origin, &redis, "tok-first");
    first.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    let second = reader(&origin, &redis, "tok-second");
    second.wait_for_metric("change_log_last_read_timestamp_seconds", &[], 1.0);
    assert_eq!(readings_of(&origin, "tok-second"), 0);
    redis.kill();
    let both = ["tok-first", "tok-second"].map(|token| (token, readings_of(&origin, token)));
    wait_until("both read", || both.iter().all(|(token, before)| readings_of(&origin, token) > before + 1));
}
