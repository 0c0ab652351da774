//! The prefix of metric names, the bounds of buckets, and the values of labels that are known at
//! compile time. Their series are created at 0, so that ratios have a value and `increase` sees the
//! first event.

pub const PREFIX: &str = "telecomx_gateway_";

/// Upper bounds of histogram buckets, in seconds. The low ones resolve hits, the high ones
/// exchanges with the API.
pub(super) const BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

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

/// Role of a redaction by a level that the response itself states.
pub(super) const ROLE_OF_RESPONSE: &str = "answer";

/// Kinds of values in the shared tier.
pub(super) const TIER_KINDS: [&str; 2] = ["answer", "identity"];

/// Results of lookups in the shared tier.
pub(super) const TIER_RESULTS: [&str; 13] = [
    "hit",
    "waited",
    "miss",
    "stale",
    "changed",
    "expired",
    "odd",
    "malformed",
    "unknown_key",
    "forged",
    "in_vain",
    "skipped",
    "error",
];

pub(super) const TIER_OPERATIONS: [&str; 2] = ["write", "remove"];

/// Failed operations of the shared tier, and unusable values.
pub(super) const TIER_ERRORS: [&str; 9] = [
    "timeout",
    "unavailable",
    "refused",
    "malformed",
    "unknown_key",
    "forged",
    "too_large",
    "no_randomness",
    "too_many",
];

/// Directions of messages of the invalidation stream: published and received.
pub(super) const STREAM_DIRECTIONS: [&str; 2] = ["told", "heard"];

/// Reasons to purge the whole cache because invalidations may have been missed.
pub(super) const STREAM_GAPS: [&str; 5] =
    ["trimmed", "server", "unusable", "unreadable", "overflow"];

/// Failed operations of the invalidation stream, and invalid messages.
pub(super) const STREAM_ERRORS: [&str; 10] = [
    "not_asked",
    "unreachable",
    "timeout",
    "denied",
    "refused",
    "malformed",
    "unusable",
    "too_large",
    "unknown_key",
    "forged",
];

/// Outcomes of new entries of the change log.
pub(super) const CHANGE_LOG_OUTCOMES: [&str; 2] = ["obeyed", "unknown"];

/// Kinds of successful TLS handshakes.
pub(super) const HANDSHAKES: [&str; 2] = ["full", "resumed"];

/// Reasons of failed TLS handshakes without a cause.
pub(super) const HANDSHAKE_FAILURES: [&str; 5] =
    ["connection", "incompatible", "protocol", "refused_by_client", "timeout"];

/// The reason of a TLS handshake that failed because of the client's certificate, and its causes.
pub(super) const CLIENT_CERTIFICATE: &str = "client_certificate";
pub(super) const CLIENT_CERTIFICATE_FAULTS: [&str; 8] = [
    "missing",
    "expired",
    "not_yet_valid",
    "unknown_authority",
    "wrong_purpose",
    "version",
    "revoked",
    "other",
];
