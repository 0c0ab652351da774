//! What differs between two observations of one exchange, before anything is excused.

use std::collections::BTreeSet;

use super::api::{Arrival, Content};
use super::client::{End, Received};
use super::exchange::{Exchange, Fault, Framing, Protocol};
use super::peers::Proxy;
use super::reader::{Field, joined};

/// Fields that each proxy sets by itself (RFC 9110 sections 6.6.1, 7.6.3 and 7.2 for `Host` of
/// HTTP/2), that frame a message on one hop, or that belong to one hop (section 7.6.1). Framing and
/// the end of connections are compared by what they mean.
pub const NOT_COMPARED: [&str; 9] = [
    "cache-status",
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
    "via",
    "x-forwarded-for",
    "x-request-id",
];

/// One exchange through one proxy.
#[derive(Debug)]
pub struct Observed {
    pub arrivals: Vec<Arrival>,
    pub received: Received,
}

impl Observed {
    /// The arrivals of the exchange's first request.
    pub fn requests(&self) -> impl Iterator<Item = &Arrival> {
        self.arrivals.iter().filter(|arrival| !arrival.is_next)
    }

    /// The last one, which was answered.
    pub fn request(&self) -> Option<&Arrival> {
        self.requests().last()
    }
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// How often the request arrived at the API.
    Arrivals,
    Method,
    Target,
    RequestField(String),
    RequestFraming,
    RequestBody,
    RequestEnd,
    RequestTrailers,
    /// Whether the API or the proxy made the response.
    Source,
    Interim,
    Status,
    ResponseField(String),
    ResponseFraming,
    ResponseBody,
    ResponseEnd,
    Persistence,
    Surplus,
    Next,
}

/// A difference between the gateway and another proxy.
#[derive(Clone, Debug)]
pub struct Mismatch {
    pub aspect: Aspect,
    pub gateway: String,
    pub other: String,
}

/// One exchange through the gateway and through another proxy.
pub struct Pair<'p> {
    pub proxy: Proxy,
    pub exchange: &'p Exchange,
    pub gateway: &'p Observed,
    pub other: &'p Observed,
}

/// Compares everything.
pub fn mismatches(pair: &Pair) -> Vec<Mismatch> {
    let Pair { exchange, gateway, other, .. } = pair;
    let mut found = Vec::new();
    let mut compare = |aspect, gateway: String, other: String| {
        if gateway != other {
            found.push(Mismatch { aspect, gateway, other });
        }
    };
    compare(
        Aspect::Arrivals,
        gateway.requests().count().to_string(),
        other.requests().count().to_string(),
    );
    if let (Some(one), Some(two)) = (gateway.request(), other.request()) {
        compare(Aspect::Method, one.method.clone(), two.method.clone());
        compare(Aspect::Target, one.target.clone(), two.target.clone());
        for name in names(&one.fields, &two.fields) {
            compare(
                Aspect::RequestField(name.clone()),
                values(&one.fields, &name),
                values(&two.fields, &name),
            );
        }
        compare(Aspect::RequestFraming, format!("{:?}", one.framing), format!("{:?}", two.framing));
        compare(Aspect::RequestBody, format!("{:?}", one.content), format!("{:?}", two.content));
        compare(Aspect::RequestEnd, one.is_complete.to_string(), two.is_complete.to_string());
        compare(
            Aspect::RequestTrailers,
            one.has_trailers.to_string(),
            two.has_trailers.to_string(),
        );
    }
    if exchange.is_read() {
        found.extend(response_mismatches(exchange, &gateway.received, &other.received));
    }
    found
}

fn response_mismatches(exchange: &Exchange, gateway: &Received, other: &Received) -> Vec<Mismatch> {
    let mut found = Vec::new();
    let mut compare = |aspect, gateway: String, other: String| {
        if gateway != other {
            found.push(Mismatch { aspect, gateway, other });
        }
    };
    compare(Aspect::Source, source(gateway), source(other));
    compare(Aspect::Interim, format!("{:?}", gateway.interim), format!("{:?}", other.interim));
    compare(Aspect::Status, gateway.status.to_string(), other.status.to_string());
    compare(
        Aspect::Surplus,
        gateway.surplus.escape_ascii().to_string(),
        other.surplus.escape_ascii().to_string(),
    );
    // Each proxy words its own errors.
    if gateway.is_from_api() && other.is_from_api() {
        for name in names(&gateway.fields, &other.fields) {
            compare(
                Aspect::ResponseField(name.clone()),
                values(&gateway.fields, &name),
                values(&other.fields, &name),
            );
        }
        let length =
            |received: &Received| joined(&received.fields, "content-length").unwrap_or_default();
        if exchange.method == "HEAD" || gateway.status == 304 {
            compare(
                Aspect::ResponseField("content-length".to_owned()),
                length(gateway),
                length(other),
            );
        }
        if exchange.protocol != Protocol::Http2 {
            compare(
                Aspect::ResponseFraming,
                format!("{:?}", gateway.framing),
                format!("{:?}", other.framing),
            );
        }
        compare(
            Aspect::ResponseBody,
            format!("{:?}", gateway.content),
            format!("{:?}", other.content),
        );
        compare(Aspect::ResponseEnd, format!("{:?}", gateway.end), format!("{:?}", other.end));
        compare(Aspect::Persistence, gateway.is_kept.to_string(), other.is_kept.to_string());
        compare(Aspect::Next, format!("{:?}", gateway.next), format!("{:?}", other.next));
    } else {
        compare(Aspect::ResponseEnd, malformed(gateway), malformed(other));
    }
    found
}

fn malformed(received: &Received) -> String {
    match &received.end {
        End::Malformed(why) => why.clone(),
        End::Complete | End::Truncated | End::NoResponse | End::Left => String::new(),
    }
}

pub fn source(received: &Received) -> String {
    match received.status {
        0 => "none".to_owned(),
        _ if received.is_from_api() => "the API".to_owned(),
        status => format!("the proxy: {status}"),
    }
}

fn names(one: &[Field], two: &[Field]) -> BTreeSet<String> {
    let all = one.iter().chain(two).map(|field| field.name.clone());
    all.filter(|name| !NOT_COMPARED.contains(&&**name)).collect()
}

/// All values of a field in their order, as they are.
fn values(fields: &[Field], name: &str) -> String {
    let values = fields.iter().filter(|field| field.name == name);
    let values: Vec<String> = values.map(|field| field.value.escape_ascii().to_string()).collect();
    if values.is_empty() { "absent".to_owned() } else { format!("[{}]", values.join("] [")) }
}

/// The rules that an observation of the gateway breaks, whatever the other proxies do.
pub fn broken_rules(exchange: &Exchange, gateway: &Observed) -> Vec<String> {
    let mut broken = Vec::new();
    let mut check = |holds: bool, rule: &str| {
        if !holds {
            broken.push(rule.to_owned());
        }
    };
    let count = gateway.requests().count();
    check(count <= 1 || exchange.is_idempotent(), "a request that is not idempotent arrived twice");
    for arrival in gateway.requests() {
        check(arrival.method == exchange.method, "another method");
        check(arrival.target == exchange.target, "another target");
        check(!matches!(arrival.content, Content::Other(_)), "another request body");
        check(
            !arrival.is_complete || arrival.content == Content::Whole,
            "a truncated request is complete",
        );
        check(
            !arrival.is_complete || exchange.is_sent(),
            "a request that the client did not end is complete",
        );
    }
    for arrival in gateway.arrivals.iter().filter(|arrival| arrival.is_next) {
        check(
            arrival.target == exchange.next_target() && arrival.is_complete,
            "another next request",
        );
    }
    if !exchange.is_read() {
        return broken;
    }
    let Received { interim, content, end, surplus, next, .. } = &gateway.received;
    let passed: Vec<u16> = interim.iter().copied().filter(|status| *status != 100).collect();
    let due =
        if exchange.protocol == Protocol::Http10 { &[][..] } else { &exchange.script.interim };
    let may_be_lost = exchange.script.fault != Fault::None && passed.is_empty();
    check(
        passed == due || may_be_lost || !gateway.received.is_from_api(),
        "other interim responses",
    );
    check(malformed(&gateway.received).is_empty(), "a malformed response");
    check(surplus.is_empty(), "bytes behind a response");
    check(
        next.is_none_or(|(status, is_its_own)| status == 200 && is_its_own),
        "the response to another request",
    );
    if gateway.received.is_from_api() {
        check(!matches!(content, Content::Other(_)), "another response body");
        check(gateway.received.status == exchange.script.status, "another status");
        // HTTP/1.0 has no other end of a body without a length than that of the connection.
        let has_end =
            exchange.protocol != Protocol::Http10 || exchange.script.framing != Framing::Chunked;
        let is_whole = *content == Content::Whole || !exchange.script.has_body(exchange.method);
        check(*end != End::Complete || is_whole || !has_end, "a truncated response is complete");
        check(
            *end == End::Complete || exchange.script.fault != Fault::None,
            "a response is truncated",
        );
    } else {
        let may_fail = exchange.script.fault != Fault::None || gateway.received.status < 500;
        check(
            may_fail && gateway.received.status != 0 || exchange.script.fault != Fault::None,
            "no response",
        );
    }
    broken
}
