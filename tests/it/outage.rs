//! The API fails, hangs, is gone, or comes back: stale answers or quick refusals, never a pile of waiting callers, and never
//! more questions than one per entry.

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

/// It is a stale answer, given since the API fails.
fn is_stale_if_error(response: &Response) -> bool {
    let rest = response.cache_status().strip_prefix("telecomx-gateway; hit; ttl=-");
    rest.and_then(|rest| rest.strip_suffix("; detail=stale-if-error"))
        .is_some_and(|past| past.parse::<u32>().is_ok_and(|past| past >= 1))
}

#[track_caller]
fn assert_unavailable(response: &Response) {
    response.assert_error(503, "unavailable");
    let wait: u64 = response.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a Retry-After");
    assert!((1..=10).contains(&wait), "{response:#?}");
}

#[test]
fn each_way_of_failing_is_met_with_the_stale_answer() {
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
        ("no answer", rule().close()),
        ("a cut answer", rule().cut_body_after(20)),
        ("not HTTP", rule().raw("SSH-2.0-x\r\n\r\n")),
        ("no head in time", rule().hold(&gate)),
        ("no body in time", rule().hold_body(&gate)),
        ("refused", rule()),
    ];
    for number in 0..faults.len() {
        assert_eq!(get(&gateway, "tok-a", &customer(number)).cache_status(), STORED);
    }
    get(&gateway, "tok-a", DUCK).assert_status(200);
    wait_until("all are past their time", || !get(&gateway, "tok-a", DUCK).is_hit());
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
            assert!(again || asked_by_now == asked, "{fault}: asked again within a second");
        }
        // Who has nothing stored gets the error.
        let nothing_stored = get(&gateway, "tok-a", &customer(100 + number));
        assert!(matches!(nothing_stored.status, 429 | 500..=504), "{fault}: {nothing_stored:#?}");
        origin.behave();
    }
    gate.open();
}

/// Prepares callers with stale answers, and an API that hangs until the circuit is open.
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
    // Eight times silence in a row.
    let pending: Vec<_> =
        (0..8).map(|number| gateway.client().get(&name_of(&customer(900 + number))).bearer("tok-a").start()).collect();
    for pending in pending {
        pending.finish().assert_error(504, "gateway_timeout");
    }
    assert_ne!(gateway.stats()["upstream"]["circuit"], "closed");
    assert_eq!(gateway.metric("circuit_open", &[]), 1.0);
    (gateway, gate)
}

#[test]
fn while_the_circuit_is_open_nobody_waits_for_an_api_that_hangs() {
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
            504 => {} // The one that found out.
            _ => assert_unavailable(&none),
        }
        quick += usize::from(asked.elapsed() < Duration::from_millis(500));
    }
    // One finds out every now and then, and waits for it: after a second, two, four, then five.
    let probes = origin.requests() - before;
    assert!(probes <= 1 + began.elapsed().as_secs() as usize / 3, "{probes} questions in {:?}", began.elapsed());
    assert!(quick >= 25, "{quick} of 30 pairs were answered at once");
    // An unknown token cannot be asked about either: that is no verdict on it.
    let unknown = get(&gateway, "tok-b", DUCK);
    assert!(matches!(unknown.status, 503 | 504), "{unknown:#?}");
    gate.open();
    origin.behave();
    let back = Instant::now();
    wait_until("the API is asked again", || get(&gateway, "tok-a", DUCK).status == 200);
    assert!(back.elapsed() < Duration::from_secs(5 + 2 + 3), "{:?}", back.elapsed());
    assert_eq!(gateway.stats()["upstream"]["circuit"], "closed");
    assert_eq!(gateway.metric("circuit_open", &[]), 0.0);
    assert!(gateway.metric("upstream_errors_total", &[("kind", "circuit_open")]) >= 50.0);
}

#[test]
fn past_the_queue_callers_are_refused_at_once_and_who_waits_is_served_in_turn() {
    const PLACES: usize = 2;
    const QUEUE: usize = 16 * PLACES;
    const TOO_MANY: usize = 10;
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "50s", max_in_flight = 2 }"#);
    get(&gateway, "tok-a", DUCK).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let (answered, answers) = mpsc::sync_channel(PLACES + QUEUE + TOO_MANY);
    std::thread::scope(|scope| {
        let began = Instant::now();
        for number in 0..PLACES + QUEUE + TOO_MANY {
            let (answered, call) = (answered.clone(), gateway.client().get(&name_of(&customer(number))));
            scope.spawn(move || {
                let response = call.bearer("tok-a").send();
                let _ = answered.send(response);
            });
        }
        for _ in 0..TOO_MANY {
            assert_unavailable(&answers.recv_timeout(PATIENCE).expect("a refusal"));
        }
        assert!(began.elapsed() < Duration::from_secs(20), "long before anybody's time is up: {:?}", began.elapsed());
        // What is stored needs no place.
        assert!(get(&gateway, "tok-a", DUCK).assert_status(200).is_hit());
        let at_the_api = || origin.count(|seen| seen.path() != P && seen.path().starts_with("/customer/"));
        // Refusals may be quicker than the first who got a place.
        wait_until("every place is taken", || {
            gateway.stats()["upstream"]["in_flight"] == PLACES && at_the_api() == PLACES
        });
        gate.open();
        for _ in 0..PLACES + QUEUE {
            answers.recv_timeout(PATIENCE).expect("an answer").assert_status(200);
        }
    });
}

#[test]
fn with_one_place_an_open_circuit_still_keeps_nobody_waiting() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream = { timeout = "3s", max_in_flight = 1 }"#);
    get(&gateway, "tok-a", DUCK).assert_status(200);
    origin.stop();
    wait_until("the circuit is open", || {
        get(&gateway, "tok-a", OTHER);
        gateway.stats()["upstream"]["circuit"] == "open"
    });
    // The API takes connections again and says nothing: the one who finds out holds the only place.
    let gate = Gate::closed();
    origin.when(Rule::on("/").hold(&gate));
    origin.resume();
    let finding_out = origin.requests() + 1;
    let callers = Mutex::new(Vec::new());
    wait_until("one finds out", || {
        callers.lock().push(gateway.client().get(&name_of(OTHER)).bearer("tok-a").start());
        origin.requests() >= finding_out
    });
    let began = Instant::now();
    assert_unavailable(&get(&gateway, "tok-a", THIRD));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    gate.open();
}

#[test]
fn guessed_tokens_are_bounded_by_address_and_good_users_are_not_punished() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let config = r#"identity = { max_invalid_per_minute = 5, ttl = "300ms", refresh_after = "300ms" }"#;
    let gateway = Gateway::with(&origin, config);
    let from =
        |address: &str, token: &str| gateway.client().get(P).bearer(token).header("X-Forwarded-For", address).send();
    let (guesser, frontend) = ("203.0.113.7", "198.51.100.1");
    from(guesser, "tok-a").assert_status(200);
    for number in 0..5 {
        from(guesser, &format!("tok-guess-{number}")).assert_error(401, "invalid_token");
    }
    let asked = origin.validations();
    for number in 5..50 {
        let refused = from(guesser, &format!("tok-guess-{number}"));
        refused.assert_error(429, "too_many_requests");
        let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a Retry-After");
        assert!((1..=60).contains(&wait), "{refused:#?}");
    }
    assert_eq!(origin.validations(), asked, "the API hears nothing of it");
    // Who is known goes on, and is asked about again.
    wait_until("a known token is asked about again", || {
        from(guesser, "tok-a").assert_status(200);
        origin.validations_of("tok-a") >= 3
    });
    // Another address is another matter. Good users, however many, are none; nor is one bad token, however often; nor are
    // sessions that ended.
    for number in 0..50 {
        let token = format!("tok-good-{number}");
        origin.knows(&token, "VIEWER", DUCK);
        from(frontend, &token).assert_status(200);
        origin.forgets(&token);
        from(frontend, "tok-bad").assert_error(401, "invalid_token");
    }
    wait_until("all the sessions ended", || {
        (0..50).all(|number| from(frontend, &format!("tok-good-{number}")).status == 401)
    });
    origin.knows("tok-new", "VIEWER", DUCK);
    from(frontend, "tok-new").assert_status(200);
    assert!(gateway.metric("identity_lookups_total", &[("result", "refused")]) >= 45.0);
}

#[test]
fn a_failure_is_shared_by_those_who_waited_for_the_same_and_by_nobody_else() {
    let origin = Origin::start();
    for token in ["tok-a", "tok-b"] {
        origin.knows(token, "VIEWER", DUCK);
    }
    let gateway = Gateway::start(&origin);
    for token in ["tok-a", "tok-b"] {
        get(&gateway, token, THIRD).assert_status(200);
    }
    let gate = Gate::closed();
    // One answer alone fails: of tok-a for DUCK.
    origin.when(Rule::on("/customer/").hold(&gate).made(|seen| match (seen.token().as_deref(), seen.path()) {
        (Some("tok-a"), P) => Answer::error(500, "internal_error"),
        (_, path) => Answer::json(upstream_document(path.split('/').nth(2).unwrap_or_default())),
    }));
    let ask = |token, id: &str| gateway.client().get(&name_of(id)).bearer(token).start();
    let fails: Vec<_> = (0..10).map(|_| ask("tok-a", DUCK)).collect();
    let others: Vec<_> =
        [("tok-b", DUCK), ("tok-a", OTHER)].into_iter().flat_map(|(t, id)| [ask(t, id), ask(t, id)]).collect();
    origin.wait_for_fetches(DUCK, 2);
    origin.wait_for_fetches(OTHER, 1);
    // Those who had not come by then would ask for themselves.
    gateway.wait_for_metric("upstream_in_flight", &[], 3.0);
    gate.open();
    let failed = fails.len();
    for pending in fails {
        assert_eq!(pending.finish().status, 500);
    }
    let asked = origin.fetched(DUCK).iter().filter(|seen| seen.token().as_deref() == Some("tok-a")).count();
    assert!(asked < failed, "{asked} questions for {failed} failures");
    for pending in others {
        pending.finish().assert_status(200);
    }
    origin.behave();
    assert_eq!(get(&gateway, "tok-a", DUCK).assert_status(200).cache_status(), STORED, "it is remembered by nobody");
}

#[test]
fn a_leader_who_leaves_or_hangs_costs_the_others_no_more_than_their_time() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "2s""#);
    get(&gateway, "tok-a", OTHER).assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on(P).hold(&gate).times(1));
    let leader = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    let began = Instant::now();
    let waiters: Vec<_> = (0..10).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    drop(leader);
    for waiter in waiters {
        let response = waiter.finish();
        // Who came after the end of it asked for themselves.
        assert!(matches!(response.status, 504 | 200), "{response:#?}");
    }
    assert!(began.elapsed() < Duration::from_secs(2 + 3), "{:?}", began.elapsed());
    assert_eq!(get(&gateway, "tok-a", DUCK).assert_status(200).text(), redacted_document(DUCK));
    assert_eq!(origin.fetches(DUCK), 2, "the one that hung, and one more");
    gate.open();
}

/// A hundred callers of ten customers each.
const CALLERS: usize = 100;
const CUSTOMERS: usize = 10;

/// Fifty connections ask for every caller's every customer, two at about the same time, for as long as `goes_on` says
/// after each round. Every answer is that customer's. Gives the number of answers.
fn crowd(gateway: &Gateway, goes_on: impl Fn() -> bool + Sync) -> usize {
    let (next, done, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let client = gateway.client();
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let mut connection = client.connect();
                while !over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed) / 2;
                    let entry = number % (CALLERS * CUSTOMERS);
                    if entry == 0 && number > 0 && !goes_on() {
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

fn crowded(origin: &Origin, config: &str) -> Gateway {
    for caller in 0..CALLERS {
        origin.knows(&format!("tok-{caller}"), "VIEWER", DUCK);
    }
    let quiet = r#"log = { level = "warn", access = "off" }"#;
    Gateway::with(origin, &format!("{quiet}\n{config}"))
}

#[test]
fn of_a_thousand_entries_that_expire_each_is_fetched_once_in_its_time() {
    let origin = Origin::start();
    let ttl = Duration::from_secs(2);
    let gateway = crowded(
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
    let answers = crowd(&gateway, || !each_expired() && began.elapsed() < PATIENCE);
    let most = 1 + (began.elapsed().as_millis() / ttl.as_millis()) as usize;
    let fetches = fetches();
    assert_eq!(fetches.len(), CALLERS * CUSTOMERS);
    assert!(each_expired() && answers >= CALLERS * CUSTOMERS * 4, "{answers} answers");
    let greatest = fetches.values().max().copied();
    assert!(greatest <= Some(most), "{greatest:?} fetches of one in {:?}", began.elapsed());
    assert_eq!(origin.validations(), CALLERS, "and each caller was asked about once");
}

/// How long the API is dead: long enough to be past every time, or `OUTAGE_SECONDS` for whoever wants to see more of it.
fn outage() -> Duration {
    Duration::from_secs(std::env::var("OUTAGE_SECONDS").map_or(4, |seconds| seconds.parse().expect("a number")))
}

#[test]
fn with_the_api_dead_no_known_caller_with_a_stored_answer_gets_an_error() {
    let origin = Origin::start();
    let gateway = crowded(
        &origin,
        r#"cache = { ttl = "1s", stale_while_revalidate = "1s", stale_if_error = "10m" }
        identity = { ttl = "1s", refresh_after = "500ms", stale_if_error = "10m" }"#,
    );
    crowd(&gateway, || false);
    origin.stop();
    let dead = Instant::now();
    // Past the time of every entry and of every identity. A status other than 200 would have failed in the crowd.
    let answers = crowd(&gateway, || dead.elapsed() < outage());
    assert!(answers >= CALLERS * CUSTOMERS * 2, "{answers}");
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
    wait_until("answers are fresh again", || get(&gateway, "tok-1", &customer(1)).assert_status(200).is_hit());
    assert!(origin.requests() > seen);
}
