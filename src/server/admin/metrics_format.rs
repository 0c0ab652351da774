//! Choice of the format of `/metrics` by `Accept` (RFC 9110 section 12.5.1).

use http::HeaderMap;
use http::header::ACCEPT;

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// The Prometheus text format, the default.
    Text,
    OpenMetrics,
}

impl MetricsFormat {
    pub const fn media_type(self) -> &'static str {
        match self {
            MetricsFormat::Text => "text/plain; version=0.0.4; charset=utf-8",
            MetricsFormat::OpenMetrics => {
                "application/openmetrics-text; version=1.0.0; charset=utf-8"
            }
        }
    }

    /// OpenMetrics if `Accept` names version 1.0.0 of it, or no version, with a weight that is not
    /// below that of the text format.
    pub fn from_fields(fields: &HeaderMap) -> Self {
        let values = fields.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (mut open_metrics, mut text) = (0.0, (0, 0.0));
        for range in values.flat_map(|value| value.split(',')).filter_map(MediaRange::parse) {
            match range.media_type.as_str() {
                "application/openmetrics-text" if range.is_version("1.0.0") => {
                    open_metrics = f64::max(open_metrics, range.weight);
                }
                // The most specific range decides.
                "text/plain" => text = (3, range.weight),
                "text/*" if text.0 < 3 => text = (2, range.weight),
                "*/*" if text.0 < 2 => text = (1, range.weight),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text.1 {
            MetricsFormat::OpenMetrics
        } else {
            MetricsFormat::Text
        }
    }
}

/// A member of `Accept`.
struct MediaRange {
    /// In lower case.
    media_type: String,
    version: Option<String>,
    weight: f64,
}

impl MediaRange {
    /// `None` if the weight is not a number from 0 to 1.
    fn parse(member: &str) -> Option<Self> {
        let mut parts = member.split(';').map(str::trim);
        let media_type = parts.next()?.to_ascii_lowercase();
        let mut range = MediaRange { media_type, version: None, weight: 1.0 };
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            match name.to_ascii_lowercase().as_str() {
                "q" => range.weight = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
                "version" => range.version = Some(value.trim_matches('"').to_owned()),
                _ => {}
            }
        }
        Some(range)
    }

    fn is_version(&self, version: &str) -> bool {
        self.version.as_deref().is_none_or(|own| own == version)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn format(accept: &[&str]) -> MetricsFormat {
        let mut fields = HeaderMap::new();
        for value in accept {
            fields.append(ACCEPT, HeaderValue::from_str(value).unwrap());
        }
        MetricsFormat::from_fields(&fields)
    }

    #[test]
    fn client_that_prefers_open_metrics_receives_it() {
        for accept in [
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;\
             escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.2, text/plain; q=0.2",
            "*/*;q=1, text/plain;q=0.1, application/openmetrics-text;q=0.5",
        ] {
            assert_eq!(format(&[accept]), MetricsFormat::OpenMetrics, "{accept}");
        }
        let separate = ["text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"];
        assert_eq!(format(&separate), MetricsFormat::OpenMetrics);
    }

    #[test]
    fn other_clients_receive_the_text_format() {
        assert_eq!(format(&[]), MetricsFormat::Text);
        for accept in [
            "",
            "*/*",
            "application/*",
            "text/plain",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=nonsense",
            "application/openmetrics-text;q=0.5, text/plain",
            "application/openmetrics-text;q=0.5, */*",
        ] {
            assert_eq!(format(&[accept]), MetricsFormat::Text, "{accept}");
        }
    }
}
