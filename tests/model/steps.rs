//! Random sequences: requests of clients, changes through gateways, changes made elsewhere, faults
//! of the API, and the time between them.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use telecomx_gateway::api::AccessLevel;

use super::api_model::{CacheDirective, Fault, FaultTarget, ModelScope};

/// A client's request for a customer's name.
#[derive(Clone, Copy, Debug)]
pub struct NameRequest {
    pub token: usize,
    pub customer: usize,
    pub address: usize,
    pub directive: Directive,
    pub variant: Variant,
}

/// The request's `Cache-Control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directive {
    Absent,
    NoCache,
    MaxAge(u64),
    MinFresh(u64),
    OnlyIfCached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Ordinary,
    /// With the `ETag` of the last response.
    Conditional,
    /// With an unknown query, whose response is never stored.
    OtherQuery,
}

/// A change of the API's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new version of the customer.
    Write(usize),
    /// The customer is created or deleted.
    Exists(usize),
    Logout(usize),
    DeleteToken(usize),
    Level(usize, AccessLevel),
    /// The token acts for another reseller, which may not see the customer.
    Switch(usize, Option<usize>),
}

/// What happens to a forwarded change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Executed,
    /// Executed, and the response is lost.
    ResponseLost,
    /// Not executed.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Request(NameRequest),
    /// A change through a gateway, with the token `by`, from an address. A logout and a switch use
    /// the token that they are about.
    Forward {
        change: Change,
        by: usize,
        address: usize,
        outcome: Outcome,
    },
    ChangeElsewhere(Change),
    /// An ended session is valid again, optionally from one address only.
    Login(usize, Option<usize>),
    SetCacheDirective(usize, CacheDirective),
    SetFault(Option<(Fault, FaultTarget)>),
    Purge(ModelScope),
    /// The shared tier works, or fails from now on.
    SetTier(bool),
    /// A gateway of the cluster is replaced by a new one.
    Restart,
    /// Only time passes.
    Wait,
}

/// The gateways and the delays between them.
#[derive(Clone, Debug)]
pub struct ClusterShape {
    /// Number of gateways; a single one has no shared tier.
    pub gateways: usize,
    /// The gateways of the steps, in turn.
    pub routes: Vec<usize>,
    /// Delays of changes, in turn.
    pub delays: Vec<ChangeDelay>,
    /// Milliseconds that the shared tier takes, in turn.
    pub tier_delays: Vec<u32>,
}

/// Milliseconds until a change is in the stream, and then until it is read.
#[derive(Clone, Copy, Debug)]
pub struct ChangeDelay {
    pub publish: u32,
    pub read: u32,
}

impl ClusterShape {
    pub fn single() -> Self {
        ClusterShape {
            gateways: 1,
            routes: vec![0],
            delays: vec![ChangeDelay { publish: 0, read: 0 }],
            tier_delays: vec![0],
        }
    }
}

#[derive(Clone)]
pub struct Sequence {
    /// Index of the configuration.
    pub bounds: usize,
    pub cluster: ClusterShape,
    /// Whether the API sends validators.
    pub validators: bool,
    /// Milliseconds before and after the API executes a request, in turn for the exchanges about
    /// one subject.
    pub delays: Vec<(u32, u32)>,
    /// Steps, and the milliseconds after each.
    pub steps: Vec<(Step, u32)>,
}

/// One line for each step.
impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sequence { bounds, cluster, validators, delays, steps } = self;
        writeln!(f, "bounds {bounds}, {cluster:?}, validators {validators}, delays {delays:?}")?;
        steps.iter().try_for_each(|(step, gap)| writeln!(f, "  {step:?}, then {gap} ms"))
    }
}

fn request() -> impl Strategy<Value = Step> {
    let directive = prop_oneof![
        12 => Just(Directive::Absent),
        1 => Just(Directive::NoCache),
        1 => prop_oneof![Just(0), 1..60_u64].prop_map(Directive::MaxAge),
        1 => (1..60_u64).prop_map(Directive::MinFresh),
        1 => Just(Directive::OnlyIfCached),
    ];
    let variant = prop_oneof![
        8 => Just(Variant::Ordinary),
        1 => Just(Variant::Conditional),
        1 => Just(Variant::OtherQuery),
    ];
    // Mostly few callers and customers, so that requests concern the same entries.
    let token = prop_oneof![3 => Just(0), 2 => Just(1), 2 => 2..5_usize];
    let customer = prop_oneof![4 => Just(0), 1 => 1..3_usize];
    (token, customer, address(), directive, variant).prop_map(
        |(token, customer, address, directive, variant)| {
            Step::Request(NameRequest { token, customer, address, directive, variant })
        },
    )
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
    let level = (0..3_usize, level());
    let switch = (token(), prop::option::of(customer()));
    prop_oneof![
        5 => customer().prop_map(Change::Write),
        2 => customer().prop_map(Change::Exists),
        1 => token().prop_map(Change::Logout),
        1 => token().prop_map(Change::DeleteToken),
        2 => level.prop_map(|(employee, level)| Change::Level(employee, level)),
        2 => switch.prop_map(|(token, denied)| Change::Switch(token, denied)),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        2 => Just(Fault::Refuses),
        2 => Just(Fault::Hangs),
        3 => prop_oneof![Just(500), Just(503), Just(429)].prop_map(Fault::Fails),
        1 => Just(Fault::Garbles),
    ];
    let target = prop_oneof![
        1 => Just(FaultTarget::Validations),
        3 => Just(FaultTarget::Fetches),
        1 => Just(FaultTarget::Both),
    ];
    prop::option::weighted(0.4, (fault, target)).prop_map(Step::SetFault)
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Executed),
        1 => Just(Outcome::ResponseLost),
        1 => Just(Outcome::Refused),
    ];
    let directive = prop_oneof![
        3 => Just(CacheDirective::Absent),
        1 => Just(CacheDirective::NoStore),
        1 => (1..90_u64).prop_map(CacheDirective::MaxAge),
        1 => Just(CacheDirective::MustRevalidate),
    ];
    let scope = prop_oneof![
        1 => Just(ModelScope::All),
        2 => (0..3_usize).prop_map(ModelScope::Customer),
        1 => (0..3_usize).prop_map(ModelScope::Employee),
    ];
    let forward = (change(), 0..5_usize, address(), outcome);
    let login = (0..5_usize, prop::option::weighted(0.2, address()));
    let set_directive = (prop_oneof![3 => Just(0), 1 => 1..3_usize], directive);
    prop_oneof![
        36 => request(),
        7 => forward.prop_map(|(change, by, address, outcome)| {
            Step::Forward { change, by, address, outcome }
        }),
        4 => change().prop_map(Step::ChangeElsewhere),
        5 => login.prop_map(|(token, address)| Step::Login(token, address)),
        3 => set_directive.prop_map(|(customer, directive)| {
            Step::SetCacheDirective(customer, directive)
        }),
        4 => fault(),
        1 => scope.prop_map(Step::Purge),
        2 => Just(Step::Wait),
    ]
}

/// Milliseconds between two steps: none, so that they run concurrently; the time of an exchange; or
/// the lifetime of an entry.
fn gap() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => Just(0),
        6 => 1..60_u32,
        4 => 200..6_000_u32,
        3 => 6_000..70_000_u32,
        1 => 70_000..700_000_u32,
    ]
}

fn delays() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let delay = || {
        prop_oneof![
            6 => Just(0),
            6 => 1..60_u32,
            1 => 60..4_000_u32,
            1 => 4_000..11_000_u32,
        ]
    };
    prop_oneof![1 => Just(vec![(0, 0)]), 2 => vec((delay(), delay()), 1..8)]
}

/// Sequences of up to `steps_max` steps for a single gateway.
pub fn sequences(bounds: usize, steps_max: usize) -> impl Strategy<Value = Sequence> {
    let steps = vec((step(), gap()), 1..=steps_max);
    (any::<bool>(), any::<bool>(), delays(), steps).prop_map(
        move |(validators, is_narrow, delays, mut steps)| {
            if is_narrow {
                steps.iter_mut().for_each(|(step, _)| narrow(step));
            }
            let cluster = ClusterShape::single();
            Sequence { bounds, cluster, validators, delays, steps }
        },
    )
}

/// Sequences for two or three gateways, with a Redis that is fast or slow and sometimes fails, and
/// with restarts of gateways.
pub fn cluster_sequences(bounds: usize, steps_max: usize) -> impl Strategy<Value = Sequence> {
    let delay = || prop_oneof![4 => Just(0), 4 => 1..40_u32, 1 => 40..5_000_u32];
    let change_delays = vec((delay(), delay()), 1..6);
    let cluster = (2..=3_usize, vec(0..3_usize, 1..12), change_delays, vec(delay(), 1..6));
    let cluster = cluster.prop_map(|(gateways, routes, delays, tier_delays)| {
        let to_delay = |(publish, read)| ChangeDelay { publish, read };
        let delays = delays.into_iter().map(to_delay).collect();
        ClusterShape { gateways, routes, delays, tier_delays }
    });
    let step = prop_oneof![
        30 => step(),
        1 => prop_oneof![2 => Just(true), 1 => Just(false)].prop_map(Step::SetTier),
        1 => Just(Step::Restart),
    ];
    let steps = vec((step, gap()), 1..=steps_max);
    (cluster, any::<bool>(), any::<bool>(), delays(), steps).prop_map(
        move |(cluster, validators, is_narrow, delays, mut steps)| {
            if is_narrow {
                steps.iter_mut().for_each(|(step, _)| narrow(step));
            }
            Sequence { bounds, cluster, validators, delays, steps }
        },
    )
}

/// Limits requests to two tokens of one employee and one customer, so that entries are requested
/// again and changes concern them.
fn narrow(step: &mut Step) {
    if let Step::Request(request) = step {
        (request.token, request.customer) = (request.token % 2, 0);
    }
}
