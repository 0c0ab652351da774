//! Exemplars: for each bucket of the durations, the last request with a sampled trace. OpenMetrics
//! shows them, so that a slow bucket leads to a trace.

use std::array::from_fn;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::proto::LabelPair;

use super::labels::{BUCKETS, PREFIX};
use super::record::{CACHES, ROUTES, Record};
use super::trace::Trace;

/// A sampled span of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledSpan {
    pub trace_id: u128,
    pub span_id: u64,
}

impl SampledSpan {
    /// The gateway's span in the client's trace. `None` if the client does not sample the trace.
    pub fn from_trace(trace: &Trace) -> Option<Self> {
        trace.is_sampled().then_some(SampledSpan {
            trace_id: u128::from_str_radix(trace.trace_id(), 16).ok()?,
            span_id: u64::from_str_radix(trace.span_id(), 16).ok()?,
        })
    }
}

/// A request with a sampled trace that was counted in a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    pub span: SampledSpan,
    /// The observed value.
    pub seconds: f64,
    pub at: SystemTime,
}

impl Exemplar {
    /// The time of the observation, in seconds since the epoch.
    pub fn timestamp(&self) -> f64 {
        self.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}

/// The exemplars of one series, by bucket; the last bucket is `+Inf`.
pub struct BucketExemplars([Mutex<Option<Exemplar>>; BUCKETS.len() + 1]);

impl Default for BucketExemplars {
    fn default() -> Self {
        BucketExemplars(from_fn(|_| Mutex::default()))
    }
}

impl BucketExemplars {
    /// Replaces the exemplar of the bucket. Of two requests at the same time, one is kept.
    fn add(&self, span: SampledSpan, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(mut exemplar) = self.0[bucket].try_lock() {
            *exemplar = Some(Exemplar { span, seconds, at: SystemTime::now() });
        }
    }

    /// The exemplar of the bucket with this index.
    pub fn get(&self, bucket: usize) -> Option<Exemplar> {
        *self.0.get(bucket)?.lock()
    }
}

/// The exemplars of the durations of requests, and of exchanges with the API. Only forwarded
/// requests have a trace in the latter; the gateway's own requests carry none.
#[derive(Default)]
pub struct Exemplars {
    requests: [[OnceLock<Box<BucketExemplars>>; CACHES.len()]; ROUTES.len()],
    forwards: BucketExemplars,
}

impl Exemplars {
    pub fn add_request(&self, record: &Record, span: SampledSpan, duration: Duration) {
        let series = &self.requests[record.route as usize][record.cache_index()];
        series.get_or_init(Box::default).add(span, duration);
    }

    pub fn add_forward(&self, span: SampledSpan, duration: Duration) {
        self.forwards.add(span, duration);
    }

    /// The exemplars of a series.
    pub fn for_series(&self, family: &str, labels: &[LabelPair]) -> Option<&BucketExemplars> {
        let label = |name: &str| {
            let pair = labels.iter().find(|label| label.name() == name);
            pair.map(LabelPair::value)
        };
        match family.strip_prefix(PREFIX)? {
            "request_duration_seconds" => {
                let route = ROUTES.iter().position(|route| label("route") == Some(route))?;
                let cache = CACHES.iter().position(|cache| label("cache") == Some(cache))?;
                self.requests[route][cache].get().map(Box::as_ref)
            }
            "upstream_request_duration_seconds" => {
                (label("kind") == Some("forward")).then_some(&self.forwards)
            }
            _ => None,
        }
    }
}
