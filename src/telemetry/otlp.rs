//! Export of requests as spans to an OpenTelemetry collector (OTLP over HTTP, protobuf). In builds with the feature `otlp` only.
//!
//! A span is made of the same record as the line of the log and holds no more than that. It goes into a bounded queue; a thread of
//! the exporter's own sends it. Where the queue is full, or the collector takes nothing, spans are lost and requests go on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor,
};

use super::metrics::ExportMetrics;
use super::record::Record;
use crate::api::AccessLevel;
use crate::config;

/// How long the collector may take for a batch, and the last one at the end of the process.
const TIMEOUT: Duration = Duration::from_secs(5);
const LAST: Duration = Duration::from_secs(2);

/// Spans that wait; more are lost.
const MAX_WAITING: usize = 8192;
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_secs(1);

static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    /// Of those requests that come without a trace, the part that is exported.
    sample: f64,
}

/// Exports from now on; once in a process.
///
/// # Errors
/// The exporter cannot be made of the address.
pub fn export(config: &config::Otlp, metrics: ExportMetrics) -> Result<(), ExporterBuildError> {
    let endpoint = format!("http://{}/v1/traces", config.endpoint.authority());
    let builder = opentelemetry_otlp::SpanExporter::builder().with_http();
    let exporter = builder.with_endpoint(endpoint).with_timeout(TIMEOUT).build()?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_WAITING)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(EVERY)
        .build();
    let mut processor = BatchSpanProcessor::new(Counted { exporter, metrics, fails: AtomicBool::new(false) }, batches);
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

/// Sends what waits, for as long as it may take at the end of the process.
pub fn flush() {
    if let Some(export) = EXPORT.get() {
        let _ = export.processor.shutdown_with_timeout(LAST);
    }
}

/// A request is over.
pub fn ended(record: &Record, duration: Duration) {
    let Some(export) = EXPORT.get() else { return };
    let Some((context, parent)) = place(record, export.sample) else { return };
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
}

/// Where the span stands, and below which one. `None`: it is not exported. Who sent a trace has decided that.
fn place(record: &Record, sample: f64) -> Option<(SpanContext, SpanId)> {
    let context = |trace, span| SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default());
    if let Some(trace) = &record.trace {
        let (of, span) = (TraceId::from_hex(trace.trace_id()).ok()?, SpanId::from_hex(trace.span_id()).ok()?);
        return trace.is_sampled().then(|| (context(of, span), SpanId::from(trace.parent())));
    }
    // As random as the request's id, and found by it.
    let digest = blake3::hash(record.request_id.as_bytes());
    let (trace, rest) = digest.as_bytes().split_first_chunk::<16>()?;
    let (span, rest) = rest.split_first_chunk::<8>()?;
    let lot = u64::from_be_bytes(*rest.first_chunk::<8>()?) as f64 / u64::MAX as f64;
    let chosen = sample >= 1.0 || lot < sample;
    chosen.then(|| (context(TraceId::from_bytes(*trace), SpanId::from_bytes(*span)), SpanId::INVALID))
}

/// Those of the log's line.
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
    let others = [
        ("role", record.level.map(AccessLevel::as_str)),
        ("error.type", record.error.map(|error| error.parts().1)),
        ("cause", record.cause),
    ];
    attributes.extend(others.into_iter().filter_map(|(name, value)| Some(KeyValue::new(name, value?))));
    attributes
}

/// The exporter, and what became of what it was given.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    metrics: ExportMetrics,
    fails: AtomicBool,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.metrics.sent(spans, result.is_ok());
        let failed = self.fails.swap(result.is_err(), Ordering::Relaxed);
        match (&result, failed) {
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
        record.trace = Trace::continued(&headers, 0xab);
        record
    }

    #[test]
    fn a_span_stands_in_the_callers_trace_below_the_callers_span() {
        let record = record(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), "r");
        let (context, parent) = place(&record, 0.0).expect("the caller says that it is sampled");
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(
            (context.span_id().to_string(), parent.to_string()),
            ("00000000000000ab".into(), "00f067aa0ba902b7".into())
        );
    }

    #[test]
    fn who_sent_a_trace_decides_and_of_the_others_a_part_is_taken() {
        let not = record(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"), "r");
        assert!(place(&not, 1.0).is_none());
        let taken = |sample| (0..1000).filter(|n| place(&record(None, &n.to_string()), sample).is_some()).count();
        assert_eq!((taken(0.0), taken(1.0)), (0, 1000));
        assert!((50..150).contains(&taken(0.1)));
        let (context, parent) = place(&record(None, "r"), 1.0).expect("all of them");
        assert!(context.is_valid() && parent == SpanId::INVALID);
    }
}
