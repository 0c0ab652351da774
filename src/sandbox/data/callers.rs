//! The callers of the demo: one per access level, with constants for everything that a `curl` line needs.

use super::{DEMO_CUSTOMER, DEMO_RESELLER_HOUSE, PLATFORM_HOUSE};
use crate::api::AccessLevel;

/// Someone to be in the demo. Name, password and token are constants that anybody can read: they are worth nothing
/// outside the sandbox.
#[derive(Clone, Copy, Debug)]
pub struct DemoCaller {
    pub role: AccessLevel,
    pub login: &'static str,
    pub password: &'static str,
    /// Persistent and bound to no address. A logout of this caller ends it; a restart of the sandbox brings it back.
    pub token: &'static str,
    pub employee: &'static str,
    pub customer: &'static str,
}

/// One caller per access level, lowest first. `NO_LOGIN` has a token but, as its name says, cannot log in.
pub fn demo_callers() -> &'static [DemoCaller] {
    &[
        DemoCaller {
            role: AccessLevel::NoLogin,
            login: "no-login@sandbox.example",
            password: "demo-no-login",
            token: "sandbox-demo-no-login",
            employee: "5a0dbe000000000000000001",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            role: AccessLevel::Personal,
            login: "personal@sandbox.example",
            password: "demo-personal",
            token: "sandbox-demo-personal",
            employee: "5a0dbe000000000000000002",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            role: AccessLevel::Viewer,
            login: "viewer@sandbox.example",
            password: "demo-viewer",
            token: "sandbox-demo-viewer",
            employee: "5a0dbe000000000000000003",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            role: AccessLevel::Manager,
            login: "manager@sandbox.example",
            password: "demo-manager",
            token: "sandbox-demo-manager",
            employee: "5a0dbe000000000000000004",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            role: AccessLevel::Owner,
            login: "owner@sandbox.example",
            password: "demo-owner",
            token: "sandbox-demo-owner",
            employee: "5a0dbe000000000000000005",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            role: AccessLevel::Reseller,
            login: "reseller@sandbox.example",
            password: "demo-reseller",
            token: "sandbox-demo-reseller",
            employee: "5a0dbe000000000000000006",
            customer: DEMO_RESELLER_HOUSE,
        },
        DemoCaller {
            role: AccessLevel::ResellerAdmin,
            login: "reseller-admin@sandbox.example",
            password: "demo-reseller-admin",
            token: "sandbox-demo-reseller-admin",
            employee: "5a0dbe000000000000000007",
            customer: DEMO_RESELLER_HOUSE,
        },
        DemoCaller {
            role: AccessLevel::Admin,
            login: "admin@sandbox.example",
            password: "demo-admin",
            token: "sandbox-demo-admin",
            employee: "5a0dbe000000000000000008",
            customer: PLATFORM_HOUSE,
        },
    ]
}
