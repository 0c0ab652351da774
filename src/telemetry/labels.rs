//! Values of labels that are known at compile time. Their series are created at 0, so that ratios
//! have a value and `increase` sees the first event.

/// Defines an enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $value,)+
                }
            }
        }
    };
}

label! {
    /// Reason to serve a stale response.
    StaleReason {
        /// While it is revalidated in the background.
        Revalidating = "revalidating",
        /// Because the API fails.
        Error = "error",
    }
}

label! {
    /// Result of a validation.
    ValidationOutcome {
        Valid = "valid",
        Invalid = "invalid",
        Error = "error",
    }
}

label! {
    /// Result of a lookup of a cached validation.
    IdentityLookup {
        Hit = "hit",
        /// Cached as invalid.
        Negative = "negative",
        Stale = "stale",
        Miss = "miss",
        /// Another request validates the same token.
        Collapsed = "collapsed",
        /// The client's address sent too many invalid tokens.
        Refused = "refused",
    }
}

label! {
    /// Purpose of an exchange with the API.
    ExchangeKind {
        Validate = "validate",
        Fetch = "fetch",
        ChangeLog = "change_log",
        Forward = "forward",
    }
}

/// Causes of evictions; replaced entries are not counted.
pub(super) const EVICTION_CAUSES: [&str; 3] = ["size", "expired", "purged"];

pub(super) const SCOPES: [&str; 4] = ["all", "customer", "employee", "caller"];

/// Triggers of invalidations.
pub(super) const TRIGGERS: [&str; 9] = [
    "request",
    "answer",
    "failed",
    "unsettled",
    "unauthorized",
    "admin",
    "change_log",
    "fleet",
    "missed",
];

/// Reasons of redaction failures that concern the response and not its document.
pub(super) const RESPONSE_REFUSALS: [&str; 5] =
    ["content_coding", "media_type", "partial", "too_large", "json_in_a_string"];

/// Limits whose refusals are counted.
pub(super) const LIMITS: [&str; 7] = [
    "connections",
    "descriptors",
    "connections_per_address",
    "requests",
    "requests_per_address",
    "requests_per_caller",
    "http2_frames",
];
