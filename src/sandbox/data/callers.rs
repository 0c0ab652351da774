//! The demo callers: one per access level, with constant credentials for `curl` examples.

use super::{DEMO_CUSTOMER, DEMO_RESELLER_CUSTOMER, PLATFORM_CUSTOMER};
use crate::api::AccessLevel;

/// A demo caller. Its credentials are public and valid only in the sandbox.
#[derive(Clone, Copy, Debug)]
pub struct DemoCaller {
    pub access_level: AccessLevel,
    pub login: &'static str,
    pub password: &'static str,
    /// Persistent and valid from any address. A logout of this caller ends it; a restart of the
    /// sandbox restores it.
    pub token: &'static str,
    pub employee: &'static str,
    pub customer: &'static str,
}

/// One caller per access level, lowest first. `NO_LOGIN` has a token but cannot log in.
pub fn demo_callers() -> &'static [DemoCaller] {
    &[
        DemoCaller {
            access_level: AccessLevel::NoLogin,
            login: "no-login@sandbox.example",
            password: "demo-no-login",
            token: "sandbox-demo-no-login",
            employee: "5a0dbe000000000000000001",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::Personal,
            login: "personal@sandbox.example",
            password: "demo-personal",
            token: "sandbox-demo-personal",
            employee: "5a0dbe000000000000000002",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::Viewer,
            login: "viewer@sandbox.example",
            password: "demo-viewer",
            token: "sandbox-demo-viewer",
            employee: "5a0dbe000000000000000003",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::Manager,
            login: "manager@sandbox.example",
            password: "demo-manager",
            token: "sandbox-demo-manager",
            employee: "5a0dbe000000000000000004",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::Owner,
            login: "owner@sandbox.example",
            password: "demo-owner",
            token: "sandbox-demo-owner",
            employee: "5a0dbe000000000000000005",
            customer: DEMO_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::Reseller,
            login: "reseller@sandbox.example",
            password: "demo-reseller",
            token: "sandbox-demo-reseller",
            employee: "5a0dbe000000000000000006",
            customer: DEMO_RESELLER_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::ResellerAdmin,
            login: "reseller-admin@sandbox.example",
            password: "demo-reseller-admin",
            token: "sandbox-demo-reseller-admin",
            employee: "5a0dbe000000000000000007",
            customer: DEMO_RESELLER_CUSTOMER,
        },
        DemoCaller {
            access_level: AccessLevel::Admin,
            login: "admin@sandbox.example",
            password: "demo-admin",
            token: "sandbox-demo-admin",
            employee: "5a0dbe000000000000000008",
            customer: PLATFORM_CUSTOMER,
        },
    ]
}
