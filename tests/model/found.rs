//! Sequences with a wrong response that the model once found, in their smallest form.

use super::play::{DEFAULTS, play};
use super::steps::Step::{Control as Controls, Login, Pass};
use super::steps::{Ask, Change, Fate, Fleet, Sequence, Step, Wants, Way};
use super::world::Control;

/// The index of the default configuration.
const TTL: u32 = 60_000;

fn ask(token: usize, address: usize) -> Step {
    Step::Ask(Ask { token, customer: 0, address, wants: Wants::Anything, way: Way::Plain })
}

#[track_caller]
fn plays(delays: &[(u32, u32)], steps: &[(Step, u32)]) {
    let (fleet, delays, steps) = (Fleet::alone(), delays.to_vec(), steps.to_vec());
    let sequence = Sequence { bounds: DEFAULTS, fleet, validators: true, delays, steps };
    if let Err(wrong) = play(&sequence) {
        panic!("{wrong}\n{sequence:?}");
    }
}

#[test]
fn entry_that_turns_stale_during_validation_is_not_fresh() {
    // Every second exchange about an entry takes two seconds. The response is stored again after
    // ten, and requested from the earlier address when that identity is no longer cached.
    let anew = Step::Ask(Ask { token: 0, customer: 0, address: 0, wants: Wants::NoCache, way: Way::Plain });
    plays(&[(0, 0), (2_000, 0)], &[(ask(0, 1), 10_000), (anew, TTL - 1_000), (ask(0, 1), 0)]);
}

#[test]
fn logout_from_another_address_ends_other_sessions() {
    let logout = Pass { change: Change::Logout(1), by: 1, address: 1, fate: Fate::Obeyed };
    plays(&[(0, 0)], &[(Login(1, Some(0)), 0), (ask(0, 0), 1), (logout, 1), (ask(0, 0), 0)]);
}

#[test]
fn confirmed_entry_that_forbids_storing_is_not_served_again() {
    let forbids = Controls(0, Control::NoStore);
    plays(&[(0, 0)], &[(ask(0, 0), 1), (forbids, TTL), (ask(0, 0), 1), (ask(0, 0), 0)]);
}
