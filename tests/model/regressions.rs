//! Sequences for which the model once found a wrong response, in their smallest form.

use super::api_model::CacheDirective;
use super::runner::{DEFAULTS, run_sequence};
use super::steps::Step::{Forward, Login, SetCacheDirective};
use super::steps::{
    Change, ClusterShape, Directive, NameRequest, Outcome, Sequence, Step, Variant,
};

/// The default `cache.ttl` in milliseconds.
const TTL: u32 = 60_000;

fn request(token: usize, address: usize) -> Step {
    Step::Request(NameRequest {
        token,
        customer: 0,
        address,
        directive: Directive::Absent,
        variant: Variant::Ordinary,
    })
}

#[track_caller]
fn assert_passes(delays: &[(u32, u32)], steps: &[(Step, u32)]) {
    let sequence = Sequence {
        bounds: DEFAULTS,
        cluster: ClusterShape::single(),
        validators: true,
        delays: delays.to_vec(),
        steps: steps.to_vec(),
    };
    if let Err(problem) = run_sequence(&sequence) {
        panic!("{problem}\n{sequence:?}");
    }
}

#[test]
fn entry_stale_after_validation_is_not_served_fresh() {
    // Each second exchange about a subject takes two seconds. The response is stored again after
    // ten, and requested from the first address after that identity has expired.
    let forced = Step::Request(NameRequest {
        token: 0,
        customer: 0,
        address: 0,
        directive: Directive::NoCache,
        variant: Variant::Ordinary,
    });
    let steps = [(request(0, 1), 10_000), (forced, TTL - 1_000), (request(0, 1), 0)];
    assert_passes(&[(0, 0), (2_000, 0)], &steps);
}

#[test]
fn logout_from_another_address_ends_other_sessions() {
    let logout =
        Forward { change: Change::Logout(1), by: 1, address: 1, outcome: Outcome::Executed };
    let steps = [(Login(1, Some(0)), 0), (request(0, 0), 1), (logout, 1), (request(0, 0), 0)];
    assert_passes(&[(0, 0)], &steps);
}

#[test]
fn revalidated_no_store_response_is_not_reused() {
    let no_store = SetCacheDirective(0, CacheDirective::NoStore);
    let steps = [(request(0, 0), 1), (no_store, TTL), (request(0, 0), 1), (request(0, 0), 0)];
    assert_passes(&[(0, 0)], &steps);
}
