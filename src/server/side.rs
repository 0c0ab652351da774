//! The two kinds of listeners.

/// The kind of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// For clients of the API.
    Public,
    /// For operators: metrics, health and administration.
    Admin,
}

impl Side {
    /// The label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Side::Public => "public",
            Side::Admin => "admin",
        }
    }
}
