//! The end of a request's record: its metrics, its span and its access line.

use std::cell::Cell;
use std::time::Instant;

#[cfg(feature = "otlp")]
use super::otlp;
use super::{Metrics, Record, SampledSpan, Trace};
use crate::api::AccessLevel;
use crate::config::{Access, AccessLog};
use crate::reply::CacheStatus;

/// The client left: no failure of anyone's.
const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Record {
    /// Ends the record of a request: counts it and writes its access line. Returns the time of the
    /// end.
    pub fn end(&self, metrics: &Metrics, access: Access) -> Instant {
        let ended = Instant::now();
        let duration = ended.saturating_duration_since(self.started);
        metrics.record_request(self, duration);
        let span = self.trace.as_ref().and_then(SampledSpan::from_trace);
        #[cfg(feature = "otlp")]
        let span = otlp::export_record(self, duration).or(span);
        if let Some(span) = span {
            metrics.add_exemplar(self, span, duration);
        }
        let wanted = match access.which {
            AccessLog::All => {
                !matches!(self.cache, Some(CacheStatus::Hit { .. })) || sampled(access.hits)
            }
            AccessLog::Errors => self.status.is_server_error(),
            AccessLog::Off => false,
        };
        if !wanted {
            return ended;
        }
        // The level of an event is a constant.
        macro_rules! access_line {
            ($level:ident) => {
                tracing::$level!(
                    target: "telecomx_gateway::access",
                    { http.request.method = self.method_label(),
                    http.route = self.route.as_str(),
                    http.response.status_code = self.status.as_u16(),
                    http.response.body.size = self.body_bytes,
                    http.request.id = self.request_id,
                    trace_id = self.trace.as_ref().map(Trace::trace_id),
                    span_id = self.trace.as_ref().map(Trace::span_id),
                    cache = self.cache_label(),
                    role = self.level.map(AccessLevel::as_str),
                    customer = self.customer.filter(|_| access.customer).map(tracing::field::display),
                    error.code = self.error.map(|error| error.parts().1),
                    cause = self.exact_cause(),
                    api.status = self.api.and_then(|api| api.status).map(|status| status.as_u16()),
                    api.duration_us = self.api.map(|api| api.duration.as_micros() as u64),
                    duration_us = duration.as_micros() as u64 },
                    "request"
                )
            };
        }
        match self.status.as_u16() {
            500.. => access_line!(error),
            CLIENT_CLOSED_REQUEST => access_line!(info),
            400.. => access_line!(warn),
            _ => access_line!(info),
        }
        ended
    }
}

/// Whether the line of this hit is written. Each thread counts separately, so that requests share
/// no counter.
fn sampled(part: f64) -> bool {
    thread_local!(static SHARE: Cell<f64> = const { Cell::new(1.0) });
    if part <= 0.0 || part >= 1.0 {
        return part >= 1.0;
    }
    SHARE.with(|share| {
        let sum = share.get() + part;
        share.set(if sum >= 1.0 { sum - 1.0 } else { sum });
        sum >= 1.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_fraction_of_hits_is_written() {
        let written = |part| (0..1000).filter(|_| sampled(part)).count();
        assert_eq!(written(1.0), 1000);
        assert!((99..=101).contains(&written(0.1)));
        assert!((499..=501).contains(&written(0.5)));
        assert_eq!(written(0.0), 0);
    }
}
