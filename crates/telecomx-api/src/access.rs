//! Access levels of the API, lowest first.

use std::fmt;
use std::str::FromStr;

/// Access level of an employee. The order is the API's: a later level includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessLevel {
    NoLogin,
    Personal,
    Viewer,
    Manager,
    Owner,
    Reseller,
    ResellerAdmin,
    Admin,
}

impl AccessLevel {
    /// Every level, lowest first.
    pub const ALL: [AccessLevel; 8] = [
        AccessLevel::NoLogin,
        AccessLevel::Personal,
        AccessLevel::Viewer,
        AccessLevel::Manager,
        AccessLevel::Owner,
        AccessLevel::Reseller,
        AccessLevel::ResellerAdmin,
        AccessLevel::Admin,
    ];

    /// The lowest level, used when nothing is known about a caller.
    pub const LOWEST: AccessLevel = AccessLevel::NoLogin;

    /// The API's name of the level, such as `RESELLER_ADMIN`.
    pub const fn as_str(self) -> &'static str {
        match self {
            AccessLevel::NoLogin => "NO_LOGIN",
            AccessLevel::Personal => "PERSONAL",
            AccessLevel::Viewer => "VIEWER",
            AccessLevel::Manager => "MANAGER",
            AccessLevel::Owner => "OWNER",
            AccessLevel::Reseller => "RESELLER",
            AccessLevel::ResellerAdmin => "RESELLER_ADMIN",
            AccessLevel::Admin => "ADMIN",
        }
    }
}

impl fmt::Display for AccessLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is not the name of an access level.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownAccessLevel;

impl fmt::Display for UnknownAccessLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "unknown access level; expected one of NO_LOGIN, PERSONAL, VIEWER, MANAGER, OWNER, \
             RESELLER, RESELLER_ADMIN, ADMIN",
        )
    }
}

impl std::error::Error for UnknownAccessLevel {}

impl FromStr for AccessLevel {
    type Err = UnknownAccessLevel;

    /// Reads the API's own spelling only: `Admin` is not `ADMIN`.
    fn from_str(word: &str) -> Result<Self, UnknownAccessLevel> {
        Self::ALL.into_iter().find(|level| level.as_str() == word).ok_or(UnknownAccessLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_names_are_the_apis() {
        assert!(AccessLevel::Owner < AccessLevel::Reseller);
        assert!(AccessLevel::ALL.is_sorted());
        for level in AccessLevel::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
        }
        assert!("admin".parse::<AccessLevel>().is_err());
    }
}
