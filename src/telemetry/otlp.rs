//! Export of requests as spans to an OpenTelemetry collector (OTLP over HTTP, protobuf), in builds
//! with the feature `otlp`.
//!
//! A span is made from the same record as the access log line and contains no more. It is put into
//! a bounded queue that a thread of the exporter empties. If the queue is full or the collector
//! fails, spans are lost and requests are not affected.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks,
    SpanProcessor,
};

use super::exemplars::SampledSpan;
use super::metrics::ExportMetrics;
use super::record::Record;
use crate::api::AccessLevel;
use crate::config;

/// Maximum time to send a batch, and to send the last one at the end of the process.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum of queued spans; further ones are lost.
const QUEUE_MAX: usize = 8192;
const BATCH_MAX: usize = 512;
const BATCH_INTERVAL: Duration = Duration::from_secs(1);

static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    /// The fraction that is exported of requests without a trace.
    sample: f64,
}

/// Starts the export. Called once per process.
///
/// # Errors
///
/// The exporter rejects the address.
pub fn export(config: &config::Otlp, metrics: ExportMetrics) -> Result<(), ExporterBuildError> {
    let endpoint = format!("http://{}/v1/traces", config.endpoint.authority());
    let builder = opentelemetry_otlp::SpanExporter::builder().with_http();
    let exporter = builder.with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build()?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_MAX)
        .with_max_export_batch_size(BATCH_MAX)
        .with_scheduled_delay(BATCH_INTERVAL)
        .build();
    let mut processor = BatchSpanProcessor::new(
        CountingExporter { exporter, metrics, is_failing: AtomicBool::new(false) },
        batches,
    );
    let version = env!("CARGO_PKG_VERSION");
    let service = Resource::builder_empty().with_attributes([
        KeyValue::new("service.name", "telecomx-gateway"),
        KeyValue::new("service.version", version),
    ]);
    processor.set_resource(&service.build());
    let scope = InstrumentationScope::builder("telecomx-gateway").with_version(version).build();
    let _ = EXPORT.set(Export { processor, scope, sample: config.sample });
    Ok(())
}

/// Sends queued spans at the end of the process, for a bounded time.
pub fn flush() {
    if let Some(export) = EXPORT.get() {
        let _ = export.processor.shutdown_with_timeout(FLUSH_TIMEOUT);
    }
}

/// Queues the span of a request that has ended, and returns it if it is sampled.
pub fn export_record(record: &Record, duration: Duration) -> Option<SampledSpan> {
    let export = EXPORT.get()?;
    let (context, parent) = span_context(record, export.sample)?;
    let span = SampledSpan {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
    };
    let end_time = SystemTime::now();
    let failed = record.status.is_server_error();
    export.processor.on_end(SpanData {
        span_context: context,
        parent_span_id: parent,
        parent_span_is_remote: parent != SpanId::INVALID,
        span_kind: SpanKind::Server,
        name: format!("{} {}", record.method_label(), record.route.as_str()).into(),
        start_time: end_time.checked_sub(duration).unwrap_or(end_time),
        end_time,
        attributes: attributes(record),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if failed { Status::error("") } else { Status::Unset },
        instrumentation_scope: export.scope.clone(),
    });
    Some(span)
}

/// The context of the span and the id of its parent. `None` if the span is not exported. For a
/// request with a trace, the client has decided that.
fn span_context(record: &Record, sample: f64) -> Option<(SpanContext, SpanId)> {
    let context = |trace, span| {
        SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
    };
    if let Some(trace) = &record.trace {
        let (of, span) =
            (TraceId::from_hex(trace.trace_id()).ok()?, SpanId::from_hex(trace.span_id()).ok()?);
        return trace.is_sampled().then(|| (context(of, span), SpanId::from(trace.parent())));
    }
    // As random as the request id, and derivable from it.
    let digest = blake3::hash(record.request_id.as_bytes());
    let (trace, rest) = digest.as_bytes().split_first_chunk::<16>()?;
    let (span, rest) = rest.split_first_chunk::<8>()?;
    let draw = u64::from_be_bytes(*rest.first_chunk::<8>()?) as f64 / u64::MAX as f64;
    let is_sampled = sample >= 1.0 || draw < sample;
    is_sampled
        .then(|| (context(TraceId::from_bytes(*trace), SpanId::from_bytes(*span)), SpanId::INVALID))
}

/// The fields of the access log line.
fn attributes(record: &Record) -> Vec<KeyValue> {
    let size = i64::try_from(record.body_bytes).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("http.request.method", record.method_label()),
        KeyValue::new("http.route", record.route.as_str()),
        KeyValue::new("http.response.status_code", i64::from(record.status.as_u16())),
        KeyValue::new("http.response.body.size", size),
        KeyValue::new("http.request.id", record.request_id.clone()),
        KeyValue::new("cache", record.cache_label()),
    ];
    let optional = [
        ("role", record.level.map(AccessLevel::as_str)),
        ("error.type", record.error.map(|error| error.parts().1)),
        ("cause", record.exact_cause()),
    ];
    attributes
        .extend(optional.into_iter().filter_map(|(name, value)| Some(KeyValue::new(name, value?))));
    attributes
}

/// An exporter that counts its results and logs when it starts and stops failing.
#[derive(Debug)]
struct CountingExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    metrics: ExportMetrics,
    is_failing: AtomicBool,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.metrics.count_spans(spans, result.is_ok());
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match (&result, was_failing) {
            (Err(error), false) => {
                let why = error.to_string();
                tracing::warn!(why, "failed to export spans to otlp.endpoint; they are lost");
            }
            (Ok(()), true) => tracing::info!("export of spans to otlp.endpoint resumed"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::telemetry::{TRACEPARENT, Trace};

    fn record(traceparent: Option<&'static str>, id: &str) -> Record {
        let mut headers = HeaderMap::new();
        headers.extend(traceparent.map(|text| (TRACEPARENT, HeaderValue::from_static(text))));
        let mut record = Record::begin(Instant::now());
        record.request_id = id.to_owned();
        record.trace = Trace::from_headers(&headers, 0xab);
        record
    }

    #[test]
    fn span_is_a_child_of_the_clients_span() {
        let record = record(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), "r");
        let (context, parent) = span_context(&record, 0.0).expect("the client samples it");
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(
            (context.span_id().to_string(), parent.to_string()),
            ("00000000000000ab".into(), "00f067aa0ba902b7".into())
        );
    }

    #[test]
    fn client_decides_for_its_trace_and_a_fraction_of_others_is_taken() {
        let unsampled =
            record(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"), "r");
        assert!(span_context(&unsampled, 1.0).is_none());
        let taken = |sample| {
            (0..1000)
                .filter(|n| span_context(&record(None, &n.to_string()), sample).is_some())
                .count()
        };
        assert_eq!((taken(0.0), taken(1.0)), (0, 1000));
        assert!((50..150).contains(&taken(0.1)));
        let (context, parent) =
            span_context(&record(None, "r"), 1.0).expect("every request is sampled");
        assert!(context.is_valid() && parent == SpanId::INVALID);
    }
}
