//! Random exchanges through the gateway, nginx and HAProxy, each in front of a separate API that
//! records what arrives and plays the same script. What reaches the API and what reaches the client
//! is equal, except the fields of `compare::NOT_COMPARED` and the differences of `differences`.
//!
//! `EXCHANGES` sets their number, `SEED` the random numbers; `EXCHANGE` plays one alone and prints
//! what was observed. `make differential-tests` plays 10,000 with a new seed.

mod api;
mod client;
mod compare;
mod differences;
mod exchange;
mod peers;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use self::client::Received;
use self::compare::{Observed, Pair, broken_rules, mismatches};
use self::exchange::Exchange;
use self::peers::{Door, Peer, Proxy};
use crate::support::runtime;

/// Exchanges of a run without `EXCHANGES`, and its seed: the same ones each time.
const EXCHANGES: usize = 1_000;
const SEED: u64 = 1;

/// Exchanges that are played at the same time.
const AT_ONCE: usize = 16;

/// Failures of one kind that are printed.
const SHOWN: usize = 5;

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|given| given.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// The exchanges of a run.
struct Plan {
    seed: u64,
    numbers: Vec<usize>,
    is_shown: bool,
}

impl Plan {
    fn of_environment() -> Plan {
        let seed = number_of("SEED").unwrap_or(SEED);
        let count = |variable| {
            number_of(variable).map(|given| usize::try_from(given).expect("a small number"))
        };
        let numbers = match count("EXCHANGE") {
            Some(one) => vec![one],
            None => (0..count("EXCHANGES").unwrap_or(EXCHANGES)).collect(),
        };
        Plan { seed, is_shown: numbers.len() == 1, numbers }
    }
}

/// Plays all exchanges through all peers; what each client received, by number.
fn play_all(plan: &Plan, doors: Vec<Door>) -> BTreeMap<usize, Vec<Option<Received>>> {
    let seed = plan.seed;
    let (next, numbers) = (Arc::new(AtomicUsize::new(0)), Arc::new(plan.numbers.clone()));
    let (received, doors) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(doors));
    let players: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (next, numbers, received, doors) =
                (next.clone(), numbers.clone(), received.clone(), doors.clone());
            runtime().spawn(async move {
                while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let exchange = Exchange::random(seed, number);
                    let plays = doors.iter().map(|door| play(&exchange, *door));
                    let all = futures_util::future::join_all(plays).await;
                    received.lock().insert(number, all);
                }
            })
        })
        .collect();
    runtime().block_on(async {
        for player in players {
            player.await.unwrap_or_else(|error| panic!("SEED={seed}: a player failed: {error}"));
        }
    });
    std::mem::take(&mut *received.lock())
}

/// Plays an exchange through one proxy; `None` if that proxy cannot take part in it.
async fn play(exchange: &Exchange, door: Door) -> Option<Received> {
    match differences::why_not_played(door.proxy, exchange) {
        Some(_) => None,
        None => Some(client::play(exchange, door.of(exchange.protocol)).await),
    }
}

/// What a run observed: for each number, what happened at each proxy.
#[derive(Default)]
struct Observations {
    all: BTreeMap<usize, Vec<Option<Observed>>>,
    /// What arrived and is not a message, or not of a client.
    strays: Vec<String>,
}

impl Observations {
    fn collect(received: BTreeMap<usize, Vec<Option<Received>>>, peers: Vec<Peer>) -> Observations {
        let mut observations = Observations::default();
        for (number, all) in received {
            let observed = |received| Observed { arrivals: Vec::new(), received };
            observations.all.insert(number, all.into_iter().map(|one| one.map(observed)).collect());
        }
        for (index, peer) in peers.into_iter().enumerate() {
            let proxy = peer.door.proxy;
            let (arrivals, malformed) = peer.finish();
            observations
                .strays
                .extend(malformed.into_iter().map(|why| format!("{proxy:?}: {why}")));
            for arrival in arrivals {
                let observed =
                    observations.all.get_mut(&arrival.number).and_then(|all| all[index].as_mut());
                match observed {
                    Some(observed) => observed.arrivals.push(arrival),
                    None => {
                        observations.strays.push(format!("{proxy:?}: of no client: {arrival:?}"))
                    }
                }
            }
        }
        observations
    }
}

/// What a run counted.
#[derive(Default)]
struct Counts {
    /// Pairs of observations that were compared, and how many of them were equal.
    compared: usize,
    equal: usize,
    /// Pairs with a difference of that class.
    classes: BTreeMap<&'static str, usize>,
    /// What nothing explains, by kind.
    failures: BTreeMap<String, Vec<String>>,
}

impl Counts {
    fn add(&mut self, pair: &Pair) {
        let found = mismatches(pair);
        self.compared += 1;
        self.equal += usize::from(found.is_empty());
        let mut classes = BTreeSet::new();
        for mismatch in found {
            match differences::of(pair, &mismatch) {
                Some(difference) => {
                    classes.insert(difference.name);
                }
                None => self.fail(
                    format!("{:?}, {:?}", pair.proxy, mismatch.aspect),
                    format!(
                        "EXCHANGE={}: {} against {} of {}",
                        pair.exchange.number, mismatch.gateway, mismatch.other, pair.exchange
                    ),
                ),
            }
        }
        classes.into_iter().for_each(|class| *self.classes.entry(class).or_default() += 1);
    }

    fn fail(&mut self, kind: String, failure: String) {
        self.failures.entry(kind).or_default().push(failure);
    }
}

/// Compares the gateway, the first peer, with the others.
fn judge(plan: &Plan, observations: Observations) -> Counts {
    let mut counts = Counts::default();
    for (number, all) in observations.all {
        let exchange = Exchange::random(plan.seed, number);
        if plan.is_shown {
            println!("{exchange:#?}");
            all.iter()
                .zip(Proxy::ALL)
                .for_each(|(observed, proxy)| println!("{proxy:?}: {observed:#?}"));
        }
        let (gateway, others) = all.split_first().expect("the gateway");
        let gateway = gateway.as_ref().expect("it takes part in every exchange");
        for rule in broken_rules(&exchange, gateway) {
            counts.fail(format!("the gateway: {rule}"), format!("EXCHANGE={number}: {exchange}"));
        }
        for (other, proxy) in others.iter().zip(&Proxy::ALL[1..]) {
            match other {
                Some(other) => {
                    counts.add(&Pair { proxy: *proxy, exchange: &exchange, gateway, other })
                }
                None => {
                    let why = differences::why_not_played(*proxy, &exchange).unwrap_or_default();
                    *counts.classes.entry(why).or_default() += 1;
                }
            }
        }
    }
    observations
        .strays
        .into_iter()
        .for_each(|stray| counts.fail("not a message of a client".to_owned(), stray));
    counts
}

/// Plays and compares; `None` if a proxy is not installed.
fn run(plan: &Plan) -> Option<Counts> {
    let peers = vec![Peer::gateway(plan.seed), Peer::nginx(plan.seed)?, Peer::haproxy(plan.seed)?];
    let received = play_all(plan, peers.iter().map(|peer| peer.door).collect());
    Some(judge(plan, Observations::collect(received, peers)))
}

#[test]
fn random_exchanges_equal_those_of_nginx_and_haproxy() {
    let plan = Plan::of_environment();
    let Some(counts) = run(&plan) else {
        println!("skipped: differential: nginx or HAProxy is not installed");
        return;
    };
    let Counts { compared, equal, classes, failures } = counts;
    let mut report = format!("SEED={}: {compared} pairs compared, {equal} equal\n", plan.seed);
    for (class, count) in classes {
        let difference = differences::ALL.iter().find(|difference| difference.name == class);
        let why =
            difference.map(|difference| format!(" ({}: {})", difference.source, difference.reason));
        let _ = writeln!(report, "{count:6} {class}{}", why.unwrap_or_default());
    }
    println!("{report}");
    for (kind, failures) in &failures {
        eprintln!("{} x {kind}", failures.len());
        failures
            .iter()
            .take(SHOWN)
            .for_each(|failure| eprintln!("    SEED={} {failure}", plan.seed));
    }
    let count: usize = failures.values().map(Vec::len).sum();
    assert!(failures.is_empty(), "SEED={}: {count} unexplained differences", plan.seed);
}
