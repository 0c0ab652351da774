//! Results of fetches, which all requests that wait for one share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::ApiError;
use crate::cache::Entry;
use crate::reply::{ApiFields, Representation};
use crate::telemetry::ApiExchange;
use crate::upstream::ApiFailure;

/// Result of a fetch.
#[derive(Clone)]
pub struct Fetched {
    pub representation: Representation,
    /// Whether the body is an error of the gateway's, with the id of the request that fetched.
    pub is_own_error: bool,
    /// Fields of the API that are sent with the representation, also from the cache.
    pub fields: ApiFields,
    /// Fields of the API that are sent with this exchange only.
    pub exchange_fields: ApiFields,
    pub requested_at: Instant,
    /// `Age` of the response when it arrived.
    pub initial_age: Duration,
    pub is_stored: bool,
    pub source: FetchSource,
    /// `None` if the API was not asked.
    pub exchange: Option<ApiExchange>,
}

/// Source of a fetched response.
#[derive(Clone)]
pub enum FetchSource {
    Api,
    /// The API confirmed the cached entry with 304.
    Revalidated,
    /// Another fetch stored it meanwhile.
    Cache,
    /// Another gateway of the cluster fetched it; the entry made of it.
    SharedTier(Arc<Entry>),
}

impl Fetched {
    pub(super) fn from_entry(entry: &Entry, source: FetchSource) -> Self {
        Fetched {
            representation: entry.representation.clone(),
            is_own_error: false,
            fields: entry.fields.clone(),
            exchange_fields: ApiFields::NONE,
            requested_at: entry.fetched_at,
            initial_age: entry.initial_age(),
            is_stored: true,
            source,
            exchange: None,
        }
    }
}

/// Failure of a fetch.
#[derive(Clone, Debug)]
pub struct FetchError {
    pub failure: ApiFailure,
    /// Fields of the API that are sent with the error, such as its `WWW-Authenticate`.
    pub fields: ApiFields,
}

impl From<ApiFailure> for FetchError {
    fn from(failure: ApiFailure) -> Self {
        FetchError { failure, fields: ApiFields::NONE }
    }
}

impl From<ApiError> for FetchError {
    fn from(error: ApiError) -> Self {
        ApiFailure::from(error).into()
    }
}
