//! The state of one request that its routing, its credentials, its exchange with the API and its
//! redaction share.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};

use super::admission::{RefusalPlace, RequestPlace};
use super::client_session::ClientSession;
use super::state::{ActiveState, RequestState};
use crate::api::{CredentialPlace, Token};
use crate::cache::Scope;
use crate::identity::InvalidPermit;
use crate::process::InFlight;
use crate::telemetry::Record;

/// Serves the requests of clients.
pub struct Proxy(pub Arc<ActiveState>);

/// One request, from its head to the end of its response.
pub struct Exchange {
    /// The configuration that was in force when it began.
    pub(super) state: Arc<RequestState>,
    pub(super) record: Record,
    pub(super) request_id: HeaderValue,
    /// Address of the client, by the trusted proxies before it.
    pub(super) address: IpAddr,
    pub(super) changes: PendingChanges,
    pub(super) forwarded: Forwarded,
    pub(super) validation: ForwardedValidation,
    /// The gateway knows that the API does not accept its token.
    pub(super) is_judged_invalid: bool,
    /// What was read of its body before it is forwarded.
    pub(super) read_ahead: Bytes,
    /// It announces a body, of whatever length.
    pub(super) has_body: bool,
    /// Its response depends on the caller's access level.
    pub(super) depends_on_level: bool,
    /// Among the requests under way, or among the refusals that are being written.
    pub(super) place: Option<RequestPlace>,
    pub(super) refusal: Option<RefusalPlace>,
    pub(super) _busy: InFlight,
}

impl Exchange {
    pub(super) fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }
}

/// The credentials of a request that are forwarded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Forwarded {
    #[default]
    All,
    /// The one that decided, if there was one.
    Only(Option<CredentialPlace>),
}

/// What a forwarded request changes, and whom it is from.
#[derive(Default)]
pub(super) struct PendingChanges {
    pub scopes: Vec<Scope>,
    /// Every token of the request.
    pub tokens: Vec<Token>,
    pub address: Option<IpAddr>,
    /// Of the API's response.
    pub status: Option<StatusCode>,
    /// Nothing is left to be obeyed.
    pub is_settled: bool,
}

/// A validation that a client asks of the API itself.
#[derive(Default)]
pub(super) struct ForwardedValidation {
    pub permit: Option<InvalidPermit>,
    pub body: BytesMut,
}

/// While the process drains, a response announces the end of its connection, although its request
/// began before.
pub(super) fn end_if_draining(session: &mut ClientSession, exchange: &Exchange) {
    if exchange.state.process.lifecycle.is_draining() {
        session.close_after();
    }
}
