//! The response of `GET /auth/validateToken`. Parsing is strict: a response that cannot be parsed
//! gives no identity.

use serde::Deserialize;

use super::{AccessLevel, EmployeeId};

/// Identity of a caller as the API reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub employee: EmployeeId,
    pub level: AccessLevel,
}

/// Result of a validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validation {
    Valid(Identity),
    Invalid,
}

/// The members that are used. Duplicates of them are an error, others are ignored.
#[derive(Deserialize)]
struct ValidationResponse {
    success: bool,
    employee: Option<String>,
    #[serde(rename = "accessLevel")]
    access_level: Option<String>,
}

/// Reads the body of a 200. `None`: it cannot be parsed, so nothing is known about the caller.
///
/// Only an object is accepted: serde would also fill a struct from an array, by order.
pub fn read_validation(body: &[u8]) -> Option<Validation> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let response: ValidationResponse = serde_json::from_slice(body).ok()?;
    if !response.success {
        return Some(Validation::Invalid);
    }
    let employee = EmployeeId::parse(&response.employee?)?;
    let level = response.access_level?.parse::<AccessLevel>().ok()?;
    Some(Validation::Valid(Identity { employee, level }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_response_is_accepted() {
        let valid = br#"{"success":true,"employee":"5F00000000000000000000aa","customer":"x","accessLevel":"OWNER"}"#;
        let Some(Validation::Valid(identity)) = read_validation(valid) else { panic!("not read") };
        assert_eq!(
            (identity.employee.as_str(), identity.level),
            ("5f00000000000000000000aa", AccessLevel::Owner)
        );
        assert_eq!(read_validation(br#"{"success":false}"#), Some(Validation::Invalid));
        for wrong in [
            &b""[..],
            b"{}",
            b"[]",
            br#"[true,"5f00000000000000000000aa","ADMIN"]"#,
            b" [false,null,null]",
            b"\"success\"",
            b"1",
            b"true",
            b"null",
            br#"{"success":"true","employee":"a","accessLevel":"ADMIN"}"#,
            br#"{"success":true,"accessLevel":"ADMIN"}"#,
            br#"{"success":true,"employee":"a"}"#,
            br#"{"success":true,"employee":"a","accessLevel":"ROOT"}"#,
            br#"{"success":true,"employee":"a","accessLevel":"VIEWER","accessLevel":"ADMIN"}"#,
            br#"{"success":false,"success":true,"employee":"a","accessLevel":"ADMIN"}"#,
            br#"{"success":true,"employee":"a","accessLevel":"ADMIN"} x"#,
        ] {
            assert_eq!(read_validation(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }
}
