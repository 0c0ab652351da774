//! The answer of `GET /auth/validateToken`, read strictly: what cannot be understood makes nobody anything.

use serde::Deserialize;

use super::{AccessLevel, EmployeeId};

/// Who a caller is, in the API's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub employee: EmployeeId,
    pub level: AccessLevel,
}

/// What the API said of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validation {
    Valid(Identity),
    Invalid,
}

/// The members that matter; duplicates of them are an error, others are not looked at.
#[derive(Deserialize)]
struct Answer {
    success: bool,
    employee: Option<String>,
    #[serde(rename = "accessLevel")]
    access_level: Option<String>,
}

/// Reads the body of a 200. `None`: it cannot be understood, so nothing is known of the caller.
///
/// Only an object is read: serde would also fill the members of a struct from an array, by their order.
pub fn read_validation(body: &[u8]) -> Option<Validation> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    if !answer.success {
        return Some(Validation::Invalid);
    }
    let employee = EmployeeId::parse(&answer.employee?)?;
    let level = answer.access_level?.parse::<AccessLevel>().ok()?;
    Some(Validation::Valid(Identity { employee, level }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_documented_and_nothing_by_guess() {
        let valid = br#"{"success":true,"employee":"5F00000000000000000000aa","customer":"x","accessLevel":"OWNER"}"#;
        let Some(Validation::Valid(identity)) = read_validation(valid) else { panic!("not read") };
        assert_eq!((identity.employee.as_str(), identity.level), ("5f00000000000000000000aa", AccessLevel::Owner));
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
