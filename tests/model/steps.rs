//! The steps of random sequences: requests, changes through the gateway and elsewhere, faults, and
//! time.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use telecomx_gateway::api::AccessLevel;

use super::world::{About, Control, Fault, Struck};

/// A request of a caller.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub token: usize,
    pub customer: usize,
    pub address: usize,
    pub wants: Wants,
    pub way: Way,
}

/// Its `Cache-Control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Anything,
    NoCache,
    MaxAge(u64),
    MinFresh(u64),
    OnlyIfCached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Plain,
    /// With the `ETag` of the last response.
    Conditional,
    /// With an unknown query parameter: never stored.
    OtherQuery,
}

/// A change of the API's responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new version.
    Write(usize),
    /// The customer is created or deleted.
    Exists(usize),
    Logout(usize),
    DeleteToken(usize),
    Level(usize, AccessLevel),
    /// Another reseller for the same token: it sees other customers.
    Switch(usize, Option<usize>),
}

/// The outcome of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Obeyed,
    /// Executed, and the response is lost.
    Lost,
    /// Not executed.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Ask(Ask),
    /// Through the gateway, with the token `by`, from an address; a logout and a switch concern
    /// that token.
    Pass {
        change: Change,
        by: usize,
        address: usize,
        fate: Fate,
    },
    Elsewhere(Change),
    /// A session that had ended is valid again; from one address only, if one is given.
    Login(usize, Option<usize>),
    Control(usize, Control),
    Fault(Option<(Fault, Struck)>),
    Purge(About),
    /// The tier works, or fails from here on.
    Tier(bool),
    /// A gateway of the cluster ends, and another one replaces it.
    Restart,
    /// Only time passes.
    Nothing,
}

/// The shape of a cluster.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Number of gateways; 1 is a single one without a tier.
    pub gateways: usize,
    /// The gateway of a step, used in turn.
    pub routes: Vec<usize>,
    /// Milliseconds until a change is in the stream, and then until it is received; used in turn.
    pub spread: Vec<(u32, u32)>,
    /// Milliseconds of a request to the tier, used in turn.
    pub tier: Vec<u32>,
}

impl Fleet {
    /// One gateway.
    pub fn alone() -> Self {
        Fleet { gateways: 1, routes: vec![0], spread: vec![(0, 0)], tier: vec![0] }
    }
}

#[derive(Clone)]
pub struct Sequence {
    /// The index of the configuration.
    pub bounds: usize,
    pub fleet: Fleet,
    /// The API sends validators.
    pub validators: bool,
    /// Milliseconds before and after the API reads its state, used in turn by exchanges about one
    /// entry.
    pub delays: Vec<(u32, u32)>,
    /// Steps, and the milliseconds after each.
    pub steps: Vec<(Step, u32)>,
}

/// A line a step.
impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sequence { bounds, fleet, validators, delays, steps } = self;
        writeln!(f, "bounds {bounds}, {fleet:?}, validators {validators}, delays {delays:?}")?;
        steps.iter().try_for_each(|(step, gap)| writeln!(f, "  {step:?}, then {gap} ms"))
    }
}

fn ask() -> impl Strategy<Value = Step> {
    let wants = prop_oneof![
        12 => Just(Wants::Anything),
        1 => Just(Wants::NoCache),
        1 => prop_oneof![Just(0), 1..60_u64].prop_map(Wants::MaxAge),
        1 => (1..60_u64).prop_map(Wants::MinFresh),
        1 => Just(Wants::OnlyIfCached),
    ];
    let way = prop_oneof![8 => Just(Way::Plain), 1 => Just(Way::Conditional), 1 => Just(Way::OtherQuery)];
    // Few callers and customers are used most, so that requests meet.
    let token = prop_oneof![3 => Just(0), 2 => Just(1), 2 => 2..5_usize];
    let customer = prop_oneof![4 => Just(0), 1 => 1..3_usize];
    (token, customer, address(), wants, way)
        .prop_map(|(token, customer, address, wants, way)| Step::Ask(Ask { token, customer, address, wants, way }))
}

fn address() -> impl Strategy<Value = usize> {
    prop_oneof![5 => Just(0), 1 => Just(1)]
}

fn level() -> impl Strategy<Value = AccessLevel> {
    prop_oneof![
        Just(AccessLevel::Viewer),
        Just(AccessLevel::Owner),
        Just(AccessLevel::Reseller),
        Just(AccessLevel::Admin)
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let customer = || prop_oneof![4 => Just(0), 1 => 1..3_usize];
    let token = || prop_oneof![3 => Just(0), 2 => Just(1), 2 => 2..5_usize];
    prop_oneof![
        5 => customer().prop_map(Change::Write),
        2 => customer().prop_map(Change::Exists),
        1 => token().prop_map(Change::Logout),
        1 => token().prop_map(Change::DeleteToken),
        2 => (0..3_usize, level()).prop_map(|(employee, level)| Change::Level(employee, level)),
        2 => (token(), prop::option::of(customer())).prop_map(|(token, barred)| Change::Switch(token, barred)),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        2 => Just(Fault::Refuses),
        2 => Just(Fault::Hangs),
        3 => prop_oneof![Just(500), Just(503), Just(429)].prop_map(Fault::Fails),
        1 => Just(Fault::Garbles),
    ];
    let struck = prop_oneof![1 => Just(Struck::Validations), 3 => Just(Struck::Fetches), 1 => Just(Struck::Both)];
    prop::option::weighted(0.4, (fault, struck)).prop_map(Step::Fault)
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![6 => Just(Fate::Obeyed), 1 => Just(Fate::Lost), 1 => Just(Fate::Refused)];
    let control = prop_oneof![
        3 => Just(Control::Nothing),
        1 => Just(Control::NoStore),
        1 => (1..90_u64).prop_map(Control::MaxAge),
        1 => Just(Control::MustRevalidate),
    ];
    let about = prop_oneof![
        1 => Just(About::Everything),
        2 => (0..3_usize).prop_map(About::Customer),
        1 => (0..3_usize).prop_map(About::Employee),
    ];
    prop_oneof![
        36 => ask(),
        7 => (change(), 0..5_usize, address(), fate)
            .prop_map(|(change, by, address, fate)| Step::Pass { change, by, address, fate }),
        4 => change().prop_map(Step::Elsewhere),
        5 => (0..5_usize, prop::option::weighted(0.2, address())).prop_map(|(token, home)| Step::Login(token, home)),
        3 => (prop_oneof![3 => Just(0), 1 => 1..3_usize], control).prop_map(|(customer, control)| Step::Control(customer, control)),
        4 => fault(),
        1 => about.prop_map(Step::Purge),
        2 => Just(Step::Nothing),
    ]
}

/// Milliseconds between two steps: none, so that they run at the same time; the time of an
/// exchange; the lifetime of cached data.
fn gap() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(0), 6 => 1..60_u32, 4 => 200..6_000_u32, 3 => 6_000..70_000_u32, 1 => 70_000..700_000_u32]
}

fn delays() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let delay = || prop_oneof![6 => Just(0), 6 => 1..60_u32, 1 => 60..4_000_u32, 1 => 4_000..11_000_u32];
    prop_oneof![1 => Just(vec![(0, 0)]), 2 => vec((delay(), delay()), 1..8)]
}

/// Up to `longest` steps, with those bounds, for one gateway.
pub fn sequences(bounds: usize, longest: usize) -> impl Strategy<Value = Sequence> {
    (any::<bool>(), any::<bool>(), delays(), vec((step(), gap()), 1..=longest)).prop_map(
        move |(validators, narrow, delays, mut steps)| {
            if narrow {
                steps.iter_mut().for_each(|(step, _)| narrow_down(step));
            }
            Sequence { bounds, fleet: Fleet::alone(), validators, delays, steps }
        },
    )
}

/// The same for a cluster of two or three, whose Redis is fast or slow and fails at times, and
/// whose gateways restart.
pub fn fleet_sequences(bounds: usize, longest: usize) -> impl Strategy<Value = Sequence> {
    let late = || prop_oneof![4 => Just(0), 4 => 1..40_u32, 1 => 40..5_000_u32];
    let fleet = (2..=3_usize, vec(0..3_usize, 1..12), vec((late(), late()), 1..6), vec(late(), 1..6));
    let fleet = fleet.prop_map(|(gateways, routes, spread, tier)| Fleet { gateways, routes, spread, tier });
    let happens = prop_oneof![
        30 => step(),
        1 => prop_oneof![2 => Just(true), 1 => Just(false)].prop_map(Step::Tier),
        1 => Just(Step::Restart),
    ];
    (fleet, any::<bool>(), any::<bool>(), delays(), vec((happens, gap()), 1..=longest)).prop_map(
        move |(fleet, validators, narrow, delays, mut steps)| {
            if narrow {
                steps.iter_mut().for_each(|(step, _)| narrow_down(step));
            }
            Sequence { bounds, fleet, validators, delays, steps }
        },
    )
}

/// Two tokens of one employee, and one customer: requests repeat, and every change concerns them.
fn narrow_down(step: &mut Step) {
    if let Step::Ask(ask) = step {
        (ask.token, ask.customer) = (ask.token % 2, 0);
    }
}
