//! State of one request, shared by routing, credentials, the exchange with the API and redaction.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};

use crate::api::{CredentialPlace, Token};
use crate::cache::Scope;
use crate::identity::InvalidPermit;
use crate::process::InFlight;
use crate::server::admission::{RefusalPermit, RequestPermit};
use crate::server::http::client_session::ClientSession;
use crate::server::state::{ActiveState, RequestState};
use crate::telemetry::Record;

/// Serves the requests of clients.
pub struct Proxy(pub Arc<ActiveState>);

/// One request, from its head to the end of its response.
pub struct RequestContext {
    /// The configuration in force when the request began.
    pub state: Arc<RequestState>,
    pub record: Record,
    pub request_id: HeaderValue,
    /// Address of the client, as trusted proxies state it.
    pub address: IpAddr,
    pub changes: PendingChanges,
    pub forwarded: Forwarded,
    pub validation: ForwardedValidation,
    /// The API is known to reject the token.
    pub is_judged_invalid: bool,
    /// The part of the body that was read before the exchange with the API.
    pub read_ahead: Bytes,
    /// The head announces a body.
    pub has_body: bool,
    /// The response depends on the caller's access level.
    pub depends_on_level: bool,
    pub permit: Option<RequestPermit>,
    pub refusal_permit: Option<RefusalPermit>,
    pub _busy: InFlight,
}

/// The credentials of a request that are forwarded.
#[derive(Clone, Copy, Debug, Default)]
pub enum Forwarded {
    #[default]
    All,
    /// The one that decided the identity, if any.
    Only(Option<CredentialPlace>),
}

/// Changes of a forwarded request, and its tokens.
#[derive(Default)]
pub struct PendingChanges {
    pub scopes: Vec<Scope>,
    /// Every token of the request.
    pub tokens: Vec<Token>,
    /// Status of the API's response.
    pub status: Option<StatusCode>,
    /// Every change was invalidated.
    pub is_settled: bool,
}

/// A `validateToken` request of a client, which is forwarded.
#[derive(Default)]
pub struct ForwardedValidation {
    pub permit: Option<InvalidPermit>,
    pub body: BytesMut,
}

/// Ends the connection after the response while the process drains, even if the request began
/// before.
pub fn end_if_draining(session: &mut ClientSession, context: &RequestContext) {
    if context.state.process.lifecycle.is_draining() {
        session.close_after();
    }
}
