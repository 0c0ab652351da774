//! The kinds of listeners: public and admin.

/// The kind of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// For clients of the API.
    Public,
    /// For operators: metrics, health and administration.
    Admin,
}

impl ListenerKind {
    /// Returns the label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            ListenerKind::Public => "public",
            ListenerKind::Admin => "admin",
        }
    }
}
