//! Changes during fetches and validations, a thousand times with random timing: after the response
//! to a change, no later request is served with data from before it.
//!
//! The stand-in reads its state at a random moment of each exchange, before or after a delay, and
//! applies a change at a random moment before it responds. A failure prints its seed, which repeats
//! the random numbers but not the scheduling; `RACE_SEED` sets it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;

use crate::support::*;

/// Threads, each with a separate customer and employee.
const LANES: usize = 8;

/// Rounds of all threads together.
const ROUNDS: usize = 1_000;

/// Disables the limit of invalid tokens, which hundreds of ended sessions would reach.
const CONFIG: &str = "[identity]\nmax_invalid_per_minute = 1_000_000\n[log]\naccess = \"errors\"";

/// Random numbers for concurrent use (splitmix64).
struct Dice(AtomicU64);

impl Dice {
    /// With a new seed, which is printed if the test fails.
    fn new() -> (Arc<Dice>, Seed) {
        let given = std::env::var("RACE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        (Arc::new(Dice(AtomicU64::new(seed))), Seed(seed))
    }

    fn below(&self, end: u64) -> u64 {
        let mut mixed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Delay of the stand-in: none, a few turns of other threads, or some milliseconds.
    async fn hang(&self) {
        match self.below(4) {
            0 => {}
            1 => {
                for _ in 0..self.below(8) {
                    tokio::task::yield_now().await;
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(self.below(6))).await,
        }
    }

    /// Delay of a client.
    #[expect(
        clippy::disallowed_methods,
        reason = "the timing is what is random here: there is no condition to await"
    )]
    fn pause(&self) {
        if self.below(4) > 0 {
            std::thread::sleep(Duration::from_micros(self.below(6_000)));
        }
    }
}

/// Prints its seed if the test that owns it fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("RACE_SEED={}", self.0);
        }
    }
}

/// Runs the rounds on all threads; each returns whether it met the race.
fn run(what: &str, rounds: usize, round: impl Fn(usize, usize) -> bool + Sync) {
    let met = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (round, met) = (&round, &met);
            scope.spawn(move || {
                for number in 0..rounds / LANES {
                    met.fetch_add(usize::from(round(lane, number)), Ordering::Relaxed);
                }
            });
        }
    });
    let met = met.into_inner();
    println!("{what}: {met} of {rounds} rounds");
    assert!(met * 50 >= rounds, "{what} only in {met} of {rounds} rounds: nothing raced");
}

#[test]
fn response_outdated_by_a_write_is_never_served() {
    let (dice, _seed) = Dice::new();
    let origin = Origin::start();
    for lane in 0..LANES {
        let (version, id) = (Arc::new(AtomicU64::new(0)), customer(lane));
        let (reads, writes) = (version.clone(), version);
        let (own, reads_dice, writes_dice) = (id.clone(), dice.clone(), dice.clone());
        origin.when(Rule::on(&name_of(&id)).method("GET").made_slowly(move |_| {
            let (version, id, dice) = (reads.clone(), own.clone(), reads_dice.clone());
            async move {
                dice.hang().await;
                let read = version.load(Ordering::SeqCst);
                dice.hang().await;
                Answer::json(json!({"_id": id, "version": read}).to_string())
            }
        }));
        origin.when(Rule::on(&format!("/customer/{id}")).method("POST").made_slowly(move |_| {
            let (version, dice) = (writes.clone(), writes_dice.clone());
            async move {
                dice.hang().await;
                let written = version.fetch_add(1, Ordering::SeqCst) + 1;
                dice.hang().await;
                Answer::json(json!({"version": written}).to_string())
            }
        }));
        origin.knows(&format!("tok-low-{lane}"), "VIEWER", &id);
        origin.knows(&format!("tok-high-{lane}"), "RESELLER", &id);
    }
    let gateway = Gateway::with(&origin, CONFIG);
    run("a read met the document of before the write", ROUNDS, |lane, number| {
        let (client, id) = (gateway.client(), customer(lane));
        let tokens = [format!("tok-low-{lane}"), format!("tok-high-{lane}")];
        let get = |token: &str| client.get(&name_of(&id)).bearer(token);
        let version = |response: &Response| {
            response.assert_status(200).json()["version"]
                .as_u64()
                .unwrap_or_else(|| panic!("{response:#?}"))
        };
        // Most rounds begin without an entry, so that a fetch is under way during the write.
        if dice.below(4) > 0 {
            gateway.admin().delete(&format!("/cache/customers/{id}")).send().assert_status(200);
        }
        let early = get(&tokens[0]).start();
        dice.pause();
        let write = client.post(&format!("/customer/{id}")).bearer(&tokens[1]).body("{}").start();
        dice.pause();
        let meanwhile = get(&tokens[1]).start();
        let written = version(&write.finish());
        let hold = |when: &str| {
            for token in &tokens {
                let read = get(token).send();
                let shown = version(&read);
                assert!(
                    shown >= written,
                    "{shown} instead of {written} {when}, lane {lane} round {number}: {read:#?}"
                );
            }
        };
        hold("after the write");
        let met = [early, meanwhile].map(|pending| version(&pending.finish()) < written);
        hold("after the reads that were under way");
        met.contains(&true)
    });
}

/// State of one session in the stand-in.
#[derive(Default)]
struct Session {
    ended: bool,
    lowered: bool,
}

/// Sessions of all rounds. A token names its thread and its round, and has a separate employee.
type Sessions = Arc<Mutex<HashMap<String, Session>>>;

fn employee_id(lane: usize, number: usize) -> String {
    format!("ee{lane:04x}{number:018x}")
}

/// An origin whose sessions end, and whose employees lose access, at random moments of the
/// exchanges that request it.
fn origin_of_sessions(dice: &Arc<Dice>) -> Origin {
    let sessions = Sessions::default();
    let origin = Origin::start();
    let read = {
        let (sessions, dice) = (sessions.clone(), dice.clone());
        move |token: String| {
            let (sessions, dice) = (sessions.clone(), dice.clone());
            async move {
                dice.hang().await;
                let read = sessions
                    .lock()
                    .get(&employee_of_session(&token))
                    .map_or((false, false), |session| (session.ended, session.lowered));
                dice.hang().await;
                read
            }
        }
    };
    let change = {
        let dice = dice.clone();
        move |employee: String, change: fn(&mut Session)| {
            let (sessions, dice) = (sessions.clone(), dice.clone());
            async move {
                dice.hang().await;
                change(sessions.lock().entry(employee).or_default());
                dice.hang().await;
                Answer::json("{}")
            }
        }
    };
    let validates = read.clone();
    origin.when(Rule::on("/auth/validateToken").made_slowly(move |seen| {
        let token = seen.query("token").unwrap_or_default();
        let (employee, state) = (employee_of_session(&token), validates(token));
        async move {
            let level = match state.await {
                (true, _) => return Answer::json(r#"{"success":false}"#),
                (false, true) => "VIEWER",
                (false, false) => "RESELLER",
            };
            Answer::json(
                json!({"success": true, "employee": employee, "accessLevel": level}).to_string(),
            )
        }
    }));
    origin.when(Rule::on("/customer/").made_slowly(move |seen| {
        let state = read(seen.token().unwrap_or_default());
        async move {
            match state.await {
                (true, _) => Answer::error(401, "expired"),
                (false, _) => Answer::json(
                    json!({"_id": DUCK, "integrations": {"x": {"key": MARKER}}}).to_string(),
                ),
            }
        }
    }));
    let changes = change.clone();
    origin.when(Rule::on("/auth/logout").made_slowly(move |seen| {
        changes(employee_of_session(&seen.token().unwrap_or_default()), |session| {
            session.ended = true
        })
    }));
    origin.when(Rule::on("/employee/").made_slowly(move |seen| {
        let employee = seen.path().split('/').nth(2).unwrap_or_default().to_owned();
        let deletes = seen.method == "DELETE";
        change(
            employee,
            if deletes { |session| session.ended = true } else { |session| session.lowered = true },
        )
    }));
    origin
}

/// Tokens are made by [`tokens_of`].
fn employee_of_session(token: &str) -> String {
    token.split('-').nth(1).unwrap_or_default().to_owned()
}

/// Two tokens of one employee.
fn tokens_of(employee: &str) -> [String; 2] {
    [format!("tok-{employee}-a"), format!("tok-{employee}-b")]
}

#[test]
fn ended_session_is_never_served() {
    let (dice, _seed) = Dice::new();
    let origin = origin_of_sessions(&dice);
    let gateway = Gateway::with(&origin, CONFIG);
    run("a read met the session of before its end", ROUNDS, |lane, number| {
        let client = gateway.client();
        let employee = employee_id(lane, number);
        let tokens = tokens_of(&employee);
        let get = |token: &str| client.get(&name_of(DUCK)).bearer(token).revealed();
        if dice.below(4) == 0 {
            get(&tokens[0]).send().assert_status(200);
        }
        let early = get(&tokens[0]).start();
        dice.pause();
        let end = if dice.below(2) == 0 {
            client.get("/auth/logout").bearer(&tokens[1]).start()
        } else {
            let target = format!("/employee/{employee}/token/{}", tokens[0]);
            client.delete(&target).bearer("tok-admin").start()
        };
        dice.pause();
        let meanwhile = get(&tokens[0]).start();
        end.finish().assert_status(200);
        let hold = |when: &str| {
            let read = get(&tokens[0]).send();
            assert_eq!(read.status, 401, "{when}, lane {lane} round {number}: {read:#?}");
        };
        hold("after the end");
        let met = [early, meanwhile].map(|pending| pending.finish().status == 200);
        hold("after the reads that were under way");
        met.contains(&true)
    });
}

#[test]
fn lost_access_of_an_employee_applies_at_once() {
    let (dice, _seed) = Dice::new();
    let origin = origin_of_sessions(&dice);
    let gateway = Gateway::with(&origin, CONFIG);
    run("a read met the role of before the change", ROUNDS, |lane, number| {
        let client = gateway.client();
        let employee = employee_id(lane, number);
        let token = &tokens_of(&employee)[0];
        let get = || client.get(&name_of(DUCK)).bearer(token).revealed();
        if dice.below(4) == 0 {
            get().send().assert_status(200);
        }
        let early = get().start();
        dice.pause();
        let change =
            client.post(&format!("/employee/{employee}")).bearer("tok-admin").body("{}").start();
        dice.pause();
        let meanwhile = get().start();
        change.finish().assert_status(200);
        let shows = |response: &Response| response.assert_status(200).text().contains(MARKER);
        let hold =
            |when: &str| assert!(!shows(&get().send()), "{when}, lane {lane} round {number}");
        hold("after the change");
        let met = [early, meanwhile].map(|pending| shows(&pending.finish()));
        hold("after the reads that were under way");
        met.contains(&true)
    });
}
