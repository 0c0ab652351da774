//! Policies under test, and helpers that redact with them.

use bytes::Bytes;
use redact::{Action, Policy, Refusal, Rules, redact};
use telecomx_api::AccessLevel;

/// Every level below `reveal_to`.
pub const LOWER: [AccessLevel; 5] = [
    AccessLevel::NoLogin,
    AccessLevel::Personal,
    AccessLevel::Viewer,
    AccessLevel::Manager,
    AccessLevel::Owner,
];

pub const HIGHER: [AccessLevel; 3] =
    [AccessLevel::Reseller, AccessLevel::ResellerAdmin, AccessLevel::Admin];

pub const ACTIONS: [Action; 3] = [Action::Remove, Action::Null, Action::Mask];

/// The defaults of the contract.
pub fn rules(action: Action) -> Rules {
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Rules {
        reveal_to: AccessLevel::Reseller,
        roots: list(&["integrations", "customerIntegrations"]),
        public: list(&[
            "**.enabled",
            "**.economic.accrual",
            "**.uniconta.companyId",
            "**.criipto.{clientId,domain,clientIdRealm}",
            "**.also.customerId",
            "**.ms365.{tenantId,verified,calendarSync,contactsSync,orgContactsSync,presenceSync}",
            "**.ms365.calendarShowAsMappings.*",
            "**.ms365.calendarCategoryMappings.{category,presence}",
            "**.mvnoPrivate.portal",
        ]),
        secret_names: list(&[
            "*password*",
            "*secret*",
            "*token*",
            "*apikey*",
            "*api_key*",
            "*credential*",
            "*privatekey*",
        ]),
        action,
    }
}

pub fn policy(action: Action) -> Policy {
    Policy::compile(&rules(action)).expect("the rules of the contract")
}

/// The policy for `/log/**`.
pub fn log_policy(action: Action) -> Policy {
    policy(action).for_forward(&[], true).expect("no names at all")
}

/// Redacts the document for an owner.
pub fn lower(policy: &Policy, document: impl AsRef<[u8]>) -> Result<String, Refusal> {
    let redacted = redact(policy, AccessLevel::Owner, Bytes::copy_from_slice(document.as_ref()))?;
    Ok(String::from_utf8(redacted.into_bytes().to_vec()).expect("what is redacted is UTF-8"))
}

/// Redacts a document that must pass, with the default policy.
pub fn removed(document: &str) -> String {
    lower(&policy(Action::Remove), document)
        .unwrap_or_else(|refusal| panic!("{document}: {refusal}"))
}
