//! `/metrics` in the OpenMetrics text format, with exemplars of sampled traces.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// What Prometheus 2 sends, and what Prometheus 3 sends.
const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,\
    application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
    application/openmetrics-text;version=0.0.1;q=0.4,\
    text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";

fn trace(number: u128, flags: &str) -> String {
    format!("00-{number:032x}-00f067aa0ba902b7-{flags}")
}

fn open_metrics(gateway: &Gateway) -> String {
    let response = gateway.admin().get("/metrics").header("Accept", PROMETHEUS_3).send();
    response.assert_status(200).text()
}

/// A sample of a family. `exemplar` is the text behind ` # `.
#[derive(Debug)]
struct Sample {
    series: String,
    value: f64,
    exemplar: Option<String>,
}

/// Reads the format strictly: each family begins with its type and its help, its samples follow
/// with the suffixes of its type, nothing occurs twice, and the end is marked.
fn read_open_metrics(text: &str) -> Vec<Sample> {
    let body = text.strip_suffix("# EOF\n").expect("the mark of the end");
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut samples = Vec::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut lines = body.lines();
    while let Some(line) = lines.next() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, of) = declared.split_once(' ').expect("name and type");
            (family, kind) = (name.to_owned(), of.to_owned());
            assert!(families.insert(family.clone()), "{line}: twice");
            assert!(["counter", "gauge", "histogram"].contains(&of), "{line}");
            assert!(!name.ends_with("_total"), "{line}");
            let help = lines.next().expect("a help");
            assert!(help.starts_with(&format!("# HELP {family} ")), "{help}");
            continue;
        }
        let (sample, exemplar) = match line.split_once(" # ") {
            Some((sample, exemplar)) => (sample, Some(exemplar.to_owned())),
            None => (line, None),
        };
        let (name_and_labels, value) = sample.rsplit_once(' ').expect("a value");
        let name = name_and_labels.split('{').next().expect("a name");
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            _ => &["_bucket", "_sum", "_count"],
        };
        let suffix = name.strip_prefix(&family).expect("a sample of the family");
        assert!(suffixes.contains(&suffix), "{line} in {family}");
        assert!(exemplar.is_none() || suffix == "_bucket", "{line}");
        if suffix == "_bucket" {
            let bound = label(name_and_labels, "le");
            assert!(bound.contains(['.', 'e']) || bound == "+Inf", "{line}");
        }
        assert!(series.insert(name_and_labels.to_owned()), "{line}: twice");
        let value = value.parse().expect("a number");
        samples.push(Sample { series: name_and_labels.to_owned(), value, exemplar });
    }
    samples
}

/// The value of a label.
fn label<'s>(series: &'s str, name: &str) -> &'s str {
    let (_, rest) = series.split_once(&format!("{name}=\"")).expect("the label");
    rest.split('"').next().expect("its end")
}

/// The series as the text format writes it: bounds of buckets without an exponent or `.0`.
fn in_text_format(series: &str) -> String {
    let Some((before, rest)) = series.split_once("le=\"") else { return series.to_owned() };
    let (bound, rest) = rest.split_once('"').expect("the end of the label");
    match bound.parse::<f64>() {
        Ok(value) if value.is_finite() => format!("{before}le=\"{value}\"{rest}"),
        _ => series.to_owned(),
    }
}

#[test]
fn open_metrics_and_text_have_the_same_series() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    for id in ["miss", "hit"] {
        let call = gateway.client().get(P).bearer("tok-a").header("X-Request-Id", id);
        call.header("traceparent", &trace(7, "01")).send().assert_status(200);
        gateway.wait_for_log(id);
    }

    let plain = gateway.admin().get("/metrics").send();
    assert_eq!(plain.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let plain = plain.assert_status(200).text();
    let text: BTreeMap<&str, f64> = plain
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').expect("a value"))
        .map(|(series, value)| (series, value.parse().expect("a number")))
        .collect();
    for accept in [PROMETHEUS_2, PROMETHEUS_3, "application/openmetrics-text"] {
        let response = gateway.admin().get("/metrics").header("Accept", accept).send();
        let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(response.header("Content-Type"), Some(expected), "{accept}");
        let samples = read_open_metrics(&response.assert_status(200).text());
        let series: BTreeSet<String> =
            samples.iter().map(|sample| in_text_format(&sample.series)).collect();
        let expected: BTreeSet<String> = text.keys().map(|series| (*series).to_owned()).collect();
        let differences: Vec<_> = series.symmetric_difference(&expected).collect();
        assert!(differences.is_empty(), "{differences:#?}");
        for sample in samples.iter().filter(|sample| sample.series.contains("requests_total")) {
            assert_eq!(sample.value, text[sample.series.as_str()], "{sample:?}");
        }
    }
    for accept in ["*/*", "text/plain", "application/openmetrics-text;version=0.0.1"] {
        let response = gateway.admin().get("/metrics").header("Accept", accept).send();
        assert!(response.header("Content-Type").is_some_and(|kind| kind.starts_with("text/plain")));
        assert!(!response.text().contains("# EOF"), "{accept}");
    }
}

#[test]
fn sampled_trace_is_the_exemplar_of_its_bucket() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let send = |target: &str, traceparent: &str, id: &str| {
        let call = gateway.client().get(target).bearer("tok-a").header("X-Request-Id", id);
        call.header("traceparent", traceparent).send().assert_status(200);
        // With quotation marks, because an id may be the end of another one.
        gateway.wait_for_log(&format!("\"{id}\""));
    };
    let exemplars = |family: &str, labels: &[(&str, &str)]| -> Vec<(String, String)> {
        let samples = read_open_metrics(&open_metrics(&gateway));
        let of_series = |series: &str| {
            series.starts_with(&format!("telecomx_gateway_{family}_bucket{{"))
                && labels.iter().all(|(name, value)| label(series, name) == *value)
        };
        samples
            .into_iter()
            .filter(|sample| of_series(&sample.series))
            .filter_map(|sample| Some((label(&sample.series, "le").to_owned(), sample.exemplar?)))
            .collect()
    };
    let requests = |route: &str, cache: &str| {
        exemplars("request_duration_seconds", &[("route", route), ("cache", cache)])
    };
    let assert_one = |found: &[(String, String)], number: u128| {
        let [(bound, exemplar)] = found else { panic!("{found:?}") };
        let (labels, rest) = exemplar.split_once("} ").expect("labels");
        assert_eq!(label(labels, "trace_id"), format!("{number:032x}"));
        assert_eq!(label(labels, "span_id").len(), 16, "{labels}");
        assert_ne!(label(labels, "span_id"), "00f067aa0ba902b7", "the client's span");
        let (seconds, at) = rest.split_once(' ').expect("a time");
        let seconds: f64 = seconds.parse().expect("a number");
        assert!(bound == "+Inf" || seconds <= bound.parse::<f64>().expect("a bound"), "{exemplar}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let age =
            now.expect("a time after 1970").as_secs_f64() - at.parse::<f64>().expect("a time");
        assert!((-1.0..60.0).contains(&age), "{age}");
    };

    // A miss, a hit and a forwarded request without a sampled trace leave no exemplar.
    send(P, &trace(1, "00"), "unsampled-miss");
    send(P, &trace(2, "02"), "unsampled-hit");
    send(P, "nonsense", "invalid");
    send("/elsewhere", &trace(3, "00"), "unsampled-forward");
    assert!(!open_metrics(&gateway).contains("trace_id"));

    send(P, &trace(0x11, "01"), "sampled-hit");
    assert_one(&requests("customer_name", "hit"), 0x11);
    send("/elsewhere", &trace(0x12, "03"), "sampled-forward");
    assert_one(&requests("forward", "bypass"), 0x12);
    let exchanges = exemplars("upstream_request_duration_seconds", &[("kind", "forward")]);
    assert_one(&exchanges, 0x12);
    gateway.admin().delete("/cache").send().assert_status(200);
    send(P, &trace(0x13, "01"), "sampled-miss");
    assert_one(&requests("customer_name", "miss"), 0x13);

    // HTTP/2 too.
    let call = gateway.client().get(P).bearer("tok-a").header("traceparent", &trace(0x14, "01"));
    gateway.client().send_h2c(vec![call])[0].assert_status(200);
    wait_until("an exemplar of the request over HTTP/2", || {
        let hits = requests("customer_name", "hit");
        hits.iter().any(|(_, exemplar)| exemplar.contains(&format!("{:032x}", 0x14)))
    });
    // The text format has no exemplars.
    assert!(!gateway.metrics().contains("trace_id"));
}
