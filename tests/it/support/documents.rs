//! The golden documents, with every secret value marked, and the ids, roles and tokens the tests
//! use.

/// Part of every secret value of the stand-in. No caller below RESELLER may see it.
pub const MARKER: &str = "PLANTED";

/// Part of every token of the tests. No log, metric or response head may hold it.
pub const TOKEN_MARKER: &str = "tok-";

/// The customer of the golden documents.
pub const DUCK: &str = "73469a52f4fd7f77ec7b28cc";
pub const OTHER: &str = "5f0000000000000000000002";
pub const THIRD: &str = "5f0000000000000000000003";

pub const LOWER_ROLES: [&str; 5] = ["NO_LOGIN", "PERSONAL", "VIEWER", "MANAGER", "OWNER"];
pub const HIGHER_ROLES: [&str; 3] = ["RESELLER", "RESELLER_ADMIN", "ADMIN"];

const UPSTREAM: &str = include_str!("../../golden/upstream.json");
const BELOW_RESELLER: &str = include_str!("../../golden/below-reseller.json");
const MISPLACED: &str = include_str!("../../golden/misplaced-upstream.json");
const MISPLACED_BELOW_RESELLER: &str = include_str!("../../golden/misplaced-below-reseller.json");

/// The secret values of the golden documents.
const SECRETS: [&str; 9] = [
    "123971249ahsdaksdhi612",
    "123456789abcdefg",
    "apitestbruger",
    "apitestpassword123!",
    "s3cr3t-criipto",
    "bob@tele-it.com",
    "127351273basdjg7137bdc",
    "unknown-to-us",
    "unknown-too",
];

/// What the API sends for customer `id`: the golden document, its secrets marked.
pub fn upstream_document(id: &str) -> String {
    plant(UPSTREAM).replace(DUCK, &id.to_ascii_lowercase())
}

/// What a role below RESELLER gets of it.
pub fn redacted_document(id: &str) -> String {
    BELOW_RESELLER.trim_end().replace(DUCK, &id.to_ascii_lowercase())
}

/// The pair whose secrets stand at unexpected places: what the API sends, and what a lower role
/// gets.
pub fn misplaced_documents() -> (String, String) {
    (plant(MISPLACED), MISPLACED_BELOW_RESELLER.trim_end().to_owned())
}

fn plant(golden: &str) -> String {
    let mut planted = golden.trim_end().to_owned();
    for secret in SECRETS {
        planted = planted.replace(&format!("\"{secret}\""), &format!("\"{MARKER}-{secret}\""));
    }
    planted
}

/// A distinct customer id for each `number`.
pub fn customer(number: usize) -> String {
    format!("5e{number:022x}")
}

/// The intercepted path of a customer.
pub fn name_of(id: &str) -> String {
    format!("/customer/{id}/name")
}
