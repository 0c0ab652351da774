//! The reasons of failed handshakes, as labels.

/// The labels of a failed handshake. pingora keeps the cause as text only, so it is recognised by
/// the messages of rustls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeFailure {
    pub reason: &'static str,
    /// The fault of a client certificate; empty for other reasons.
    pub cause: &'static str,
}

const REASONS: [(&str, &str); 5] = [
    ("invalid peer certificate", "client_certificate"),
    ("peer is incompatible", "incompatible"),
    ("received fatal alert", "refused_by_client"),
    ("peer misbehaved", "protocol"),
    ("received corrupt message", "protocol"),
];

const CAUSES: [(&str, &str); 7] = [
    ("certificate expired", "expired"),
    ("certificate not valid yet", "not_yet_valid"),
    ("UnknownIssuer", "unknown_authority"),
    // Another authority with the same name.
    ("BadSignature", "unknown_authority"),
    ("certificate does not allow extended key usage", "wrong_purpose"),
    ("UnsupportedCertVersion", "version"),
    ("Revoked", "revoked"),
];

impl HandshakeFailure {
    pub fn from_error(error: &pingora_core::Error) -> Self {
        let text = error.context.as_ref().map(|context| context.as_str()).unwrap_or_default();
        if text.contains("peer sent no certificates") {
            return HandshakeFailure { reason: "client_certificate", cause: "missing" };
        }
        match find(&REASONS, text).unwrap_or("connection") {
            "client_certificate" => HandshakeFailure {
                reason: "client_certificate",
                cause: find(&CAUSES, text).unwrap_or("other"),
            },
            reason => HandshakeFailure { reason, cause: "" },
        }
    }
}

fn find(table: &[(&str, &'static str)], text: &str) -> Option<&'static str> {
    table.iter().find(|(part, _)| text.contains(part)).map(|(_, label)| *label)
}
