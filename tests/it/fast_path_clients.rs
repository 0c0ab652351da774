//! The header sets of tests/headers: whatever harmless fields a client or a proxy in front adds, a
//! hit is answered on the fast path, as the ordinary path answers it, for each place of a token,
//! over HTTP/1.1 and HTTP/2.

use std::collections::BTreeMap;

use crate::support::*;

const TOKEN: &str = "tok-a";
const PATH: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// Fields of one hop, which HTTP/2 does not have (RFC 9113 section 8.2.2), and `Host`, which is
/// `:authority` there.
const OF_HTTP1: [&str; 5] = ["connection", "host", "http2-settings", "keep-alive", "upgrade"];

type Field = (String, String);

/// The fields that one client sends.
struct HeaderSet {
    name: String,
    fields: Vec<Field>,
}

impl HeaderSet {
    /// All files of the folder, in the order of their names.
    fn all() -> Vec<HeaderSet> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/headers");
        let files = std::fs::read_dir(folder)
            .expect("the header sets")
            .map(|entry| entry.expect("an entry").path());
        let mut sets: Vec<HeaderSet> = files
            .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
            .map(|path| {
                let text = std::fs::read_to_string(&path).expect("a header set");
                let fields = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
                    let (name, value) = line.split_once(':').expect("a field");
                    (name.to_owned(), value.trim().to_owned())
                });
                let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
                HeaderSet { name, fields: fields.collect() }
            })
            .collect();
        sets.sort_by(|one, other| one.name.cmp(&other.name));
        sets
    }

    fn is_preflight(&self) -> bool {
        self.name.contains("preflight")
    }

    /// A client that asks for what no cache holds.
    fn is_reload(&self) -> bool {
        self.name.contains("reload")
    }
}

/// Where the token is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Authorization,
    ApiKey,
    Query,
    Cookie,
}

impl Place {
    const ALL: [Place; 4] = [Place::Authorization, Place::ApiKey, Place::Query, Place::Cookie];

    fn target(self) -> String {
        match self {
            Place::Query => format!("{PATH}?token={TOKEN}"),
            Place::Authorization | Place::ApiKey | Place::Cookie => PATH.to_owned(),
        }
    }

    /// The fields of a set with the token; a cookie joins the others.
    fn add(self, set: &HeaderSet) -> Vec<Field> {
        let mut fields = set.fields.clone();
        let own = |name: &str, value: String| (name.to_owned(), value);
        match self {
            Place::Authorization => fields.push(own("Authorization", format!("Bearer {TOKEN}"))),
            Place::ApiKey => fields.push(own("X-API-Key", TOKEN.to_owned())),
            Place::Query => {}
            Place::Cookie => {
                match fields.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case("cookie")) {
                    Some((_, value)) => value.push_str(&format!("; token={TOKEN}")),
                    None => fields.push(own("Cookie", format!("token={TOKEN}"))),
                }
            }
        }
        fields
    }
}

/// A gateway with the fast path and one without, in front of the same API, with a name cached.
struct Both {
    _origin: Origin,
    with: Gateway,
    without: Gateway,
}

impl Both {
    fn start() -> Both {
        let origin = Origin::start();
        origin.knows(TOKEN, "VIEWER", DUCK);
        let config =
            "cors.allowed_origins = [\"https://app.example\", \"https://gateway.example\"]";
        let with = Gateway::with(&origin, config);
        let without = Gateway::with(&origin, &format!("server.fast_path = false\n{config}"));
        for gateway in [&with, &without] {
            gateway.client().get(PATH).bearer(TOKEN).send().assert_status(200);
        }
        Both { _origin: origin, with, without }
    }

    /// Sends a request to both, which give the same response. Whether the fast path made it.
    fn send(&self, what: &str, send: impl Fn(&Gateway) -> Response) -> bool {
        let before = self.with.metric("fast_path_hits_total", &[]);
        let [one, other] = [&self.with, &self.without].map(send);
        assert_eq!(one.status, other.status, "{what}");
        assert_eq!(one.text(), other.text(), "{what}");
        assert_eq!(settled(&one), settled(&other), "{what}");
        assert_eq!(self.without.metric("fast_path_hits_total", &[]), 0.0, "{what}");
        self.with.metric("fast_path_hits_total", &[]) > before
    }
}

/// The fields of a response without what the clock and the process decide.
fn settled(response: &Response) -> BTreeMap<String, String> {
    let field = |(name, value): &Field| {
        let name = name.to_ascii_lowercase();
        let value = match &*name {
            "age" | "date" => "",
            // Ids that the gateway made.
            "x-request-id" if value.len() == 32 => "",
            "cache-status" => value.split_once("ttl=").map_or(value.as_str(), |(before, _)| before),
            _ => value,
        };
        (name, value.to_owned())
    };
    response.headers.iter().map(field).collect()
}

fn send_http1(gateway: &Gateway, method: &str, target: &str, fields: &[Field]) -> Response {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let mut connection = gateway.client().connect();
    connection.send_raw(head + "\r\n");
    connection.read(method, Kind::Intercepted).expect("a response")
}

fn send_http2(gateway: &Gateway, method: &str, target: &str, fields: &[Field]) -> Response {
    let lower: Vec<Field> =
        fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    let mut list: Vec<(&str, &str)> =
        lower.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    list.retain(|(name, _)| !OF_HTTP1.contains(name));
    if !list.iter().any(|(name, _)| *name == "priority") {
        // Browsers send it over HTTP/2 alone.
        list.push(("priority", "u=1, i"));
    }
    Http2::connect(&gateway.client()).call(method, target, &list, b"").expect("a response")
}

type Send = fn(&Gateway, &str, &str, &[Field]) -> Response;

/// Sends each set with a token in each place; which of them took the ordinary path.
fn not_on_fast_path(send: Send) -> Vec<String> {
    let both = Both::start();
    let mut missed = Vec::new();
    for set in HeaderSet::all() {
        if set.is_preflight() {
            both.send(&set.name, |gateway| send(gateway, "OPTIONS", PATH, &set.fields));
            continue;
        }
        for place in Place::ALL {
            let (what, fields) = (format!("{} {place:?}", set.name), place.add(&set));
            let ask = || both.send(&what, |gateway| send(gateway, "GET", &place.target(), &fields));
            // The first request from an address that a proxy states may not be a hit yet.
            let is_hit = ask() || ask();
            if !is_hit && !set.is_reload() {
                missed.push(what);
            }
        }
    }
    missed
}

#[test]
fn hit_of_every_client_is_served_on_the_fast_path_over_http1() {
    assert_eq!(not_on_fast_path(send_http1), [""; 0]);
}

#[test]
fn hit_of_every_client_is_served_on_the_fast_path_over_http2() {
    assert_eq!(not_on_fast_path(send_http2), [""; 0]);
}

#[test]
fn header_sets_are_complete_and_name_their_sources() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/headers/");
    let sets = HeaderSet::all();
    assert!(sets.len() >= 18, "{}", sets.len());
    for set in sets {
        let text =
            std::fs::read_to_string(format!("{folder}{}.txt", set.name)).expect("a header set");
        assert!(
            text.starts_with("# Recorded: ") || text.starts_with("# From the documentation: http"),
            "{}",
            set.name
        );
        let has_credential = |(name, _): &Field| name.eq_ignore_ascii_case("authorization");
        assert!(!set.fields.iter().any(has_credential), "{} has a credential", set.name);
    }
}
