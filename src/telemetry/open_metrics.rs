//! Encoder of the OpenMetrics text format, version 1.0, which the library lacks. In contrast to the
//! Prometheus text format it has exemplars, counter families are named without `_total`, and the
//! bounds of buckets are always written as floating-point numbers.

use std::borrow::Cow;
use std::fmt::Write;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::{Exemplar, Exemplars};

/// Encodes families. Other types than counter, gauge and histogram do not exist here and are left
/// out.
pub fn encode(families: &[MetricFamily], exemplars: &Exemplars) -> String {
    let mut text = String::new();
    for family in families {
        let full_name = family.name();
        let (name, kind) = match family.get_field_type() {
            MetricType::COUNTER => {
                (full_name.strip_suffix("_total").unwrap_or(full_name), "counter")
            }
            MetricType::GAUGE => (full_name, "gauge"),
            MetricType::HISTOGRAM => (full_name, "histogram"),
            MetricType::SUMMARY | MetricType::UNTYPED => continue,
        };
        line(&mut text, format_args!("# TYPE {name} {kind}"));
        line(&mut text, format_args!("# HELP {name} {}", escape(family.help())));
        for metric in family.get_metric() {
            match kind {
                "counter" => {
                    let labels = labels(metric.get_label(), None);
                    let value = number(metric.get_counter().get_value());
                    line(&mut text, format_args!("{name}_total{labels} {value}"));
                }
                "gauge" => {
                    let labels = labels(metric.get_label(), None);
                    let value = number(metric.get_gauge().get_value());
                    line(&mut text, format_args!("{name}{labels} {value}"));
                }
                _ => encode_histogram(&mut text, name, metric, exemplars),
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

fn encode_histogram(text: &mut String, name: &str, metric: &Metric, exemplars: &Exemplars) {
    let histogram = metric.get_histogram();
    let exemplars = exemplars.for_series(name, metric.get_label());
    let finite = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let buckets = finite
        .map(|bucket| (bound(bucket.upper_bound()), bucket.cumulative_count()))
        .chain([("+Inf".to_owned(), histogram.get_sample_count())]);
    for (index, (bound, count)) in buckets.enumerate() {
        let labels = labels(metric.get_label(), Some(&bound));
        let exemplar = exemplars.and_then(|exemplars| exemplars.get(index)).map(exemplar_text);
        let exemplar = exemplar.unwrap_or_default();
        line(text, format_args!("{name}_bucket{labels} {count}{exemplar}"));
    }
    let labels = labels(metric.get_label(), None);
    line(text, format_args!("{name}_sum{labels} {}", number(histogram.get_sample_sum())));
    line(text, format_args!("{name}_count{labels} {}", histogram.get_sample_count()));
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{content}");
}

fn exemplar_text(exemplar: Exemplar) -> String {
    let Exemplar { span, seconds, .. } = exemplar;
    format!(
        " # {{trace_id=\"{:032x}\",span_id=\"{:016x}\"}} {seconds} {:.3}",
        span.trace_id,
        span.span_id,
        exemplar.timestamp()
    )
}

/// Labels in braces; empty without labels. `bound` is the label `le`.
fn labels(pairs: &[LabelPair], bound: Option<&str>) -> String {
    let pairs = pairs.iter().map(|pair| (pair.name(), pair.value()));
    let all: Vec<String> = pairs
        .chain(bound.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
        .collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n"))
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        _ => value.to_string(),
    }
}

/// A finite upper bound in the canonical form of the specification: that of Go's `%g`, with `.0` if
/// neither a point nor an exponent shows that it is a floating-point number.
fn bound(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let text = value.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use prometheus::{
        Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    };

    use super::super::exemplars::SampledSpan;
    use super::super::record::Record;
    use super::super::{Metrics, Trace};
    use super::*;

    #[test]
    fn families_are_encoded_by_the_specification() {
        let registry = Registry::new();
        let counters =
            IntCounterVec::new(Opts::new("a_total", "A \"quoted\\\n help."), &["x"]).unwrap();
        counters.with_label_values(&["v\"\\\n"]).inc_by(3);
        let plain = IntCounter::new("b_total", "B.").unwrap();
        let gauge = IntGauge::new("c", "C.").unwrap();
        gauge.set(-2);
        let options = HistogramOpts::new("d_seconds", "D.").buckets(vec![0.000_05, 0.25, 1.0, 1e7]);
        let histogram = Histogram::with_opts(options).unwrap();
        [0.000_01, 0.5, 2e7].into_iter().for_each(|value| histogram.observe(value));
        for collector in [
            Box::new(counters) as Box<dyn prometheus::core::Collector>,
            Box::new(plain),
            Box::new(gauge),
            Box::new(histogram),
        ] {
            registry.register(collector).unwrap();
        }
        let expected = r#"# TYPE a counter
# HELP a A \"quoted\\\n help.
a_total{x="v\"\\\n"} 3
# TYPE b counter
# HELP b B.
b_total 0
# TYPE c gauge
# HELP c C.
c -2
# TYPE d_seconds histogram
# HELP d_seconds D.
d_seconds_bucket{le="5e-05"} 1
d_seconds_bucket{le="0.25"} 1
d_seconds_bucket{le="1.0"} 2
d_seconds_bucket{le="1e+07"} 2
d_seconds_bucket{le="+Inf"} 3
d_seconds_sum 20000000.50001
d_seconds_count 3
# EOF
"#;
        assert_eq!(encode(&registry.gather(), &Exemplars::default()), expected);
    }

    #[test]
    fn last_sampled_request_of_a_bucket_is_its_exemplar() {
        let metrics = Metrics::new().unwrap();
        let record = Record::begin(Instant::now());
        for (trace_id, millis) in [(1, 3), (2, 4), (3, 20_000)] {
            let duration = Duration::from_millis(millis);
            metrics.record_request(&record, duration);
            metrics.add_exemplar(&record, SampledSpan { trace_id, span_id: 0xab }, duration);
        }
        let text = metrics.open_metrics();
        let exemplars: Vec<&str> = text.lines().filter(|line| line.contains(" # ")).collect();
        let expected = |le: &str, count: u64, trace_id: u128, value: &str| {
            format!(
                "telecomx_gateway_request_duration_seconds_bucket\
                 {{cache=\"none\",route=\"none\",le=\"{le}\"}} {count} \
                 # {{trace_id=\"{trace_id:032x}\",span_id=\"00000000000000ab\"}} {value} "
            )
        };
        assert_eq!(exemplars.len(), 2, "{exemplars:#?}");
        assert!(exemplars[0].starts_with(&expected("0.005", 2, 2, "0.004")), "{}", exemplars[0]);
        assert!(exemplars[1].starts_with(&expected("+Inf", 3, 3, "20")), "{}", exemplars[1]);
    }

    #[test]
    fn only_a_sampled_trace_has_a_span() {
        let span = |flags: &str| {
            let field = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            Trace::parse(field.as_bytes(), 0xab).and_then(|trace| SampledSpan::from_trace(&trace))
        };
        let trace_id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
        assert_eq!(span("01"), Some(SampledSpan { trace_id, span_id: 0xab }));
        assert_eq!(span("03"), span("01"));
        assert_eq!((span("00"), span("02")), (None, None));
    }
}
