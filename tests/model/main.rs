//! Model test: random sequences of requests, changes, faults and time are run against the gateway's
//! core, in front of a model of the API, on a simulated clock. An oracle that is written from the
//! contract, not from the code, checks each response. Seeds of sequences that failed are stored in
//! `failed-before.txt` and run first.

#![allow(clippy::panic, reason = "a test that panics has failed, helpers included")]

mod api_model;
mod bounds;
mod cluster;
mod coverage;
mod errors;
mod oracle;
mod regressions;
mod runner;
mod steps;

use coverage::{Case, Coverage};
use parking_lot::Mutex;
use proptest::strategy::Strategy;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRunner,
};
use steps::Sequence;

/// File of the seeds, from the root of the package.
const SEEDS_FILE: &str = "tests/model/failed-before.txt";

/// Longest sequence.
const STEPS_MAX: usize = 40;

/// Runs `sequences` sequences with that configuration; `MODEL_TIMES` multiplies them. Each case
/// must occur, except the `rare` ones.
fn check_single_gateway(bounds: usize, sequences: u32, rare: &[Case]) {
    let rare = [rare, &[Case::Shared]].concat();
    let coverage = check(steps::sequences(bounds, STEPS_MAX), sequences, &rare);
    // Not all: two ids may share a generation, and time may pass during a validation.
    let (due, served) = (coverage.of(Case::Due), coverage.of(Case::Served));
    assert!(served * 100 >= due * 97, "{served} of {due} requests were served from stored entries");
}

/// The same for a cluster.
fn check_cluster(bounds: usize, sequences: u32) {
    let strategy = steps::cluster_sequences(bounds, STEPS_MAX);
    check(strategy, sequences, &[Case::Due, Case::Served]);
}

fn check(strategy: impl Strategy<Value = Sequence>, sequences: u32, rare: &[Case]) -> Coverage {
    let times = std::env::var("MODEL_TIMES").ok().and_then(|times| times.parse().ok());
    let config = Config {
        cases: sequences * times.unwrap_or(1),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(SEEDS_FILE))),
        max_shrink_iters: 20_000,
        // In a debug build the default generator takes most of the test's time.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    };
    let total = Mutex::new(Coverage::default());
    let outcome = TestRunner::new(config).run(&strategy, |sequence| {
        let coverage = runner::run_sequence(&sequence).map_err(TestCaseError::fail)?;
        total.lock().add(&coverage);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let total = total.into_inner();
    let counts = Case::ALL.map(|case| (case, total.of(case)));
    println!("{counts:?}");
    for (case, count) in counts {
        assert!(count > 0 || rare.contains(&case), "{case:?} did not occur");
    }
    total
}

#[test]
fn single_gateway_obeys_the_default_bounds() {
    check_single_gateway(runner::DEFAULTS, 2_000, &[]);
}

#[test]
fn single_gateway_obeys_other_bounds() {
    check_single_gateway(runner::OTHERS, 1_200, &[]);
}

#[test]
fn single_gateway_obeys_bounds_without_stale() {
    let rare = [Case::Revalidating, Case::StaleIfError, Case::OldIdentity];
    check_single_gateway(runner::WITHOUT_STALE, 400, &rare);
}

#[test]
fn single_gateway_obeys_bounds_without_caching() {
    let rare = [
        Case::Hit,
        Case::Revalidating,
        Case::StaleIfError,
        Case::Revalidated,
        Case::Forced,
        Case::NotModified,
        Case::OldIdentity,
        Case::Due,
        Case::Served,
    ];
    check_single_gateway(runner::WITHOUT_CACHING, 400, &rare);
}

#[test]
fn cluster_obeys_the_default_bounds() {
    check_cluster(runner::DEFAULTS, 2_000);
}

#[test]
fn cluster_obeys_other_bounds() {
    check_cluster(runner::OTHERS, 1_200);
}
