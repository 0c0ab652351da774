//! Random sequences of requests, changes, faults and time, played against the gateway's core in
//! front of a model of the API and on a paused clock. A small model of the correct responses, made
//! from the contract and not from the code, checks each response. Sequences that failed once are
//! kept next to this file and played first.

#![allow(clippy::panic, reason = "a test that panics has failed, in a helper function too")]

mod bounds;
mod errors;
mod fleet;
mod found;
mod judge;
mod play;
mod steps;
mod tally;
mod world;

use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRunner};

use parking_lot::Mutex;
use proptest::strategy::Strategy;
use steps::Sequence;
use tally::{Seen, Tally};

/// The file with seeds of failures, from the root of the package.
const KEPT: &str = "tests/model/failed-before.txt";

/// The longest sequence, in steps.
const LONGEST: usize = 40;

/// Plays a number of sequences with those bounds; `MODEL_TIMES` multiplies it. `seldom`: kinds of
/// responses that these bounds hardly permit; every other kind must have been seen.
fn every_answer_is_one_that_may_be_given(bounds: usize, sequences: u32, seldom: &[Seen]) {
    let tally = every_answer_of(steps::sequences(bounds, LONGEST), sequences, &[seldom, &[Seen::Shared]].concat());
    // Not all: two ids may share a counter, and time may run out while a caller is identified.
    let (due, served) = (tally.of(Seen::Due), tally.of(Seen::Served));
    assert!(served * 100 >= due * 97, "{served} of {due} requests were served from the cache");
}

fn every_answer_of(all: impl Strategy<Value = Sequence>, sequences: u32, seldom: &[Seen]) -> Tally {
    let times = std::env::var("MODEL_TIMES").ok().and_then(|given| given.parse::<u32>().ok()).unwrap_or(1);
    let cases = sequences * times;
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(KEPT))),
        max_shrink_iters: 20_000,
        // The default takes most of the test's time in a debug build.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    };
    let tally = Mutex::new(Tally::default());
    let outcome = TestRunner::new(config).run(&all, |sequence| {
        let seen = play::play(&sequence).map_err(TestCaseError::fail)?;
        tally.lock().add(&seen);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let tally = tally.into_inner();
    let counts = Seen::ALL.map(|seen| (seen, tally.of(seen)));
    println!("{counts:?}");
    for (seen, count) in counts {
        assert!(count > 0 || seldom.contains(&seen), "{seen:?} never occurred: the model does not test it");
    }
    tally
}

#[test]
fn with_the_default_bounds() {
    every_answer_is_one_that_may_be_given(play::DEFAULTS, 2_000, &[]);
}

#[test]
fn with_other_bounds() {
    every_answer_is_one_that_may_be_given(play::OTHERS, 1_200, &[]);
}

#[test]
fn with_nothing_stale() {
    let seldom = [Seen::Revalidating, Seen::StaleIfError, Seen::OldIdentity];
    every_answer_is_one_that_may_be_given(play::NOTHING_STALE, 400, &seldom);
}

#[test]
fn with_nothing_remembered() {
    let stored = [Seen::Hit, Seen::Revalidating, Seen::StaleIfError, Seen::Revalidated, Seen::Forced];
    let seldom = [&stored[..], &[Seen::NotModified, Seen::OldIdentity, Seen::Due, Seen::Served]].concat();
    every_answer_is_one_that_may_be_given(play::NOTHING_REMEMBERED, 400, &seldom);
}

#[test]
fn of_a_fleet_with_the_default_bounds() {
    every_answer_of(steps::fleet_sequences(play::DEFAULTS, LONGEST), 2_000, &[Seen::Due, Seen::Served]);
}

#[test]
fn of_a_fleet_with_other_bounds() {
    every_answer_of(steps::fleet_sequences(play::OTHERS, LONGEST), 1_200, &[Seen::Due, Seen::Served]);
}
