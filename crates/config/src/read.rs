//! From what was given to the `Config`: each key read as its kind, with its default where it is not written. A key that
//! cannot be read is a problem, and its default stands in so that the reading goes on and finds the others.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::DeValue;

use super::given::{Given, Origin, Text, Values};
use super::keys::{self, Key, Need, Presence};
use super::kind::FromValue;
use super::problem::{Place, Problem, Wrong};
use super::*;
use redact::Action;

pub(super) const ACTIONS: [(&str, Action); 3] =
    [("remove", Action::Remove), ("null", Action::Null), ("mask", Action::Mask)];
pub(super) const ROLES: [(&str, ForwardRole); 2] = [("caller", ForwardRole::Caller), ("answer", ForwardRole::Answer)];
pub(super) const FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];
pub(super) const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
pub(super) const ACCESS_LOGS: [(&str, AccessLog); 3] =
    [("all", AccessLog::All), ("errors", AccessLog::Errors), ("off", AccessLog::Off)];

/// The configuration as far as it could be read, and what stood in the way.
pub(super) struct Reading {
    /// To be used only if there is no problem at all: what could not be read has a stand-in here.
    pub config: Config,
    pub places: Places,
    /// Whether the text is TOML throughout: what stands in the rest may be anything, so nothing is to be said of what
    /// should stand beside it.
    pub whole: bool,
    pub problems: Vec<Problem>,
}

/// Where the keys stand, for problems that show themselves only between several of them.
pub(super) struct Places {
    file: Place,
    given: BTreeMap<&'static str, Place>,
    /// Keys that could not be read: a default stands in for them, of which nothing should be said.
    broken: BTreeSet<&'static str>,
}

impl Places {
    /// The place of the first of these keys that was written.
    pub(super) fn of(&self, paths: &[&str]) -> Place {
        paths.iter().find_map(|path| self.given.get(path)).unwrap_or(&self.file).clone()
    }

    pub(super) fn is_given(&self, path: &str) -> bool {
        self.given.contains_key(path)
    }

    /// Whether what these keys say is what the operator, or the default, means.
    pub(super) fn are_sound(&self, paths: &[&str]) -> bool {
        !paths.iter().any(|path| self.broken.contains(path))
    }
}

pub(super) fn read(given: Given<'_>) -> Reading {
    let Given { text, values, tables, rules, broken_lines, problems } = given;
    let given_at = |(path, entry): (&&'static str, &given::Entry)| (*path, entry.place(&text));
    let places = Places { file: text.whole(), given: values.iter().map(given_at).collect(), broken: BTreeSet::new() };
    let mut reader = Reader { text, values: &values, tables: &tables, broken_lines: &broken_lines, problems, places };
    let config = reader.config(rules.as_deref());
    Reading { config, places: reader.places, whole: broken_lines.is_empty(), problems: reader.problems }
}

struct Reader<'g> {
    text: Text<'g>,
    values: &'g Values<'g>,
    tables: &'g BTreeMap<&'static str, Place>,
    broken_lines: &'g BTreeSet<usize>,
    problems: Vec<Problem>,
    places: Places,
}

impl<'g> Reader<'g> {
    fn config(&mut self, rules: Option<&'g [(Place, Values<'g>)]>) -> Config {
        let tls = self.tls();
        let server = Server {
            listen: self.get("server.listen"),
            threads: self.get("server.threads"),
            trusted_proxies: self.get("server.trusted_proxies"),
            proxy_protocol: self.get("server.proxy_protocol"),
            drain: self.get("server.drain"),
            drain_delay: self.get("server.drain_delay"),
            upgrade_socket: self.find("server.upgrade_socket"),
            header_timeout: self.get("server.header_timeout"),
            write_timeout: self.get("server.write_timeout"),
            max_connections: self.get("server.max_connections"),
            max_connections_per_address: self.find("server.max_connections_per_address"),
            max_requests: self.get("server.max_requests"),
            keepalive_timeout: self.get("server.keepalive_timeout"),
            max_header_bytes: self.get("server.max_header_bytes"),
            fast_path: self.get("server.fast_path"),
            tls,
        };
        let admin = Admin { listen: self.get("admin.listen"), token_file: self.find("admin.token_file") };
        let upstream = Upstream {
            urls: self.find("upstream.url").unwrap_or_default(),
            ca_file: self.find("upstream.ca_file"),
            client_cert_file: self.find("upstream.client_cert_file"),
            client_key_file: self.find("upstream.client_key_file"),
            connect_timeout: self.get("upstream.connect_timeout"),
            timeout: self.get("upstream.timeout"),
            max_body: self.get("upstream.max_body"),
            max_in_flight: self.get("upstream.max_in_flight"),
            keepalive_timeout: self.get("upstream.keepalive_timeout"),
            max_idle_connections: self.get("upstream.max_idle_connections"),
        };
        let cookie: String = self.get("identity.cookie");
        let identity = Identity {
            ttl: self.get("identity.ttl"),
            refresh_after: self.get("identity.refresh_after"),
            stale_if_error: self.get("identity.stale_if_error"),
            negative_ttl: self.get("identity.negative_ttl"),
            cookie: Some(cookie).filter(|name| !name.is_empty()),
            send_client_ip: self.get("identity.send_client_ip"),
            session: self.get("identity.session"),
            max_invalid_per_minute: self.get("identity.max_invalid_per_minute"),
        };
        let cache = Cache {
            ttl: self.get("cache.ttl"),
            not_found_ttl: self.get("cache.not_found_ttl"),
            forbidden_ttl: self.get("cache.forbidden_ttl"),
            stale_while_revalidate: self.get("cache.stale_while_revalidate"),
            stale_if_error: self.get("cache.stale_if_error"),
            max_bytes: self.get("cache.max_bytes"),
            ttl_jitter: self.get("cache.ttl_jitter"),
            keep_fields: self.get("cache.keep_fields"),
        };
        let change_log = self.change_log();
        let otlp = self.otlp();
        let levels = AccessLevel::ALL.map(|level| (level.as_str(), level));
        let redaction = Redaction {
            reveal_to: self.word("redaction.reveal_to", self.values, &levels),
            roots: self.get("redaction.roots"),
            public: self.get("redaction.public"),
            secret_names: self.get("redaction.secret_names"),
            action: self.word("redaction.action", self.values, &ACTIONS),
        };
        let redact = self.rules(rules, &redaction.secret_names);
        let forward = Forward { blocked: self.get("forward.blocked"), redact };
        let origins: Vec<String> = self.get("cors.allowed_origins");
        let any = origins == ["*"];
        let allowed_origins = if any { AllowedOrigins::Any } else { AllowedOrigins::Listed(origins) };
        let cors = Cors { allowed_origins, max_age: self.get("cors.max_age") };
        let cluster = self.cluster();
        let log = Log {
            format: self.word("log.format", self.values, &FORMATS),
            level: self.word("log.level", self.values, &LOG_LEVELS),
            access: Access {
                which: self.word("log.access", self.values, &ACCESS_LOGS),
                hits: self.get("log.hits"),
                customer: self.get("log.customer"),
            },
            buffer: self.get("log.buffer"),
        };
        Config { server, admin, upstream, identity, cache, change_log, redaction, forward, cors, cluster, log, otlp }
    }

    /// All three keys that it needs, or no table.
    fn tls(&mut self) -> Option<Tls> {
        self.tables.get("server.tls")?;
        let ca_file: Option<PathBuf> = self.find("server.tls.client_ca_file");
        let auth: Option<String> = self.find("server.tls.client_auth");
        // Read whether or not it counts, so that it is checked.
        let auth = if auth.as_deref() == Some("optional") { ClientAuth::Optional } else { ClientAuth::Required };
        Some(Tls {
            listen: self.find("server.tls.listen").unwrap_or_default(),
            cert_file: self.find("server.tls.cert_file").unwrap_or_default(),
            key_file: self.find("server.tls.key_file").unwrap_or_default(),
            certificates: Vec::new(),
            clients: ca_file.map(|ca_file| Clients { ca_file, auth }),
        })
    }

    /// With the two keys that it needs, or no table.
    fn cluster(&mut self) -> Option<Cluster> {
        self.tables.get("cluster")?;
        let nowhere = RedisUrl { place: RedisPlace::Socket(PathBuf::new()), database: 0 };
        Some(Cluster {
            url: self.find("cluster.url").unwrap_or(nowhere),
            username: self.find("cluster.username"),
            password_file: self.find("cluster.password_file"),
            ca_file: self.find("cluster.ca_file"),
            key_file: self.find("cluster.key_file").unwrap_or_default(),
            name: self.get("cluster.name"),
            max_isolation: self.get("cluster.max_isolation"),
            connect_timeout: self.get("cluster.connect_timeout"),
            timeout: self.get("cluster.timeout"),
            ready_when_isolated: self.get("cluster.ready_when_isolated"),
            tier: self.get("cluster.tier"),
            tier_timeout: self.get("cluster.tier_timeout"),
        })
    }

    fn otlp(&mut self) -> Option<Otlp> {
        self.tables.get("otlp")?;
        let nowhere = UpstreamUrl { tls: false, host: String::new(), is_absolute: false, port: 4318 };
        let endpoint = self.find("otlp.endpoint").unwrap_or(nowhere);
        Some(Otlp { endpoint, sample: self.get("otlp.sample") })
    }

    fn change_log(&mut self) -> Option<ChangeLog> {
        self.tables.get("change_log")?;
        Some(ChangeLog {
            token_file: self.find("change_log.token_file").unwrap_or_default(),
            interval: self.get("change_log.interval"),
            overlap: self.get("change_log.overlap"),
        })
    }

    fn rules(&mut self, rules: Option<&'g [(Place, Values<'g>)]>, secret_names: &[String]) -> Vec<ForwardRedact> {
        let default;
        let rules = match rules {
            Some(rules) => rules,
            None => {
                default = default_rules();
                &default
            }
        };
        let mut read = Vec::new();
        for (place, values) in rules {
            let path = self.find_in("forward.redact.path", values, Some(place));
            let role = self.word("forward.redact.role", values, &ROLES);
            let names = self.find_in("forward.redact.secret_names", values, Some(place));
            // A rule that does not say hides what is hidden elsewhere: closed by default.
            let secret_names = names.unwrap_or_else(|| secret_names.to_vec());
            let pass_types = self.get_in("forward.redact.pass_types", values);
            read.extend(path.map(|path| ForwardRedact { path, role, secret_names, pass_types }));
        }
        read
    }

    /// The value of a key that has a default.
    fn get<T: FromValue>(&mut self, path: &'static str) -> T {
        self.get_in(path, self.values)
    }

    fn get_in<T: FromValue>(&mut self, path: &'static str, values: &Values) -> T {
        self.find_in(path, values, None).unwrap_or_else(|| default_of(path))
    }

    /// The value of one of these words.
    fn word<T: Copy>(&mut self, path: &'static str, values: &Values, words: &[(&str, T)]) -> T {
        let written: String = self.get_in(path, values);
        let found = words.iter().find(|(word, _)| *word == written);
        // A test reads every word that the list of keys allows.
        found.map(|(_, meaning)| *meaning).expect("the list of keys allows only words that have a meaning")
    }

    fn find<T: FromValue>(&mut self, path: &'static str) -> Option<T> {
        let table = keys::key(path).and_then(|key| self.tables.get(key.table()));
        self.find_in(path, self.values, table)
    }

    /// The value as written; `None` where it is not, or is wrong. `table`: where the key would have to be.
    fn find_in<T: FromValue>(&mut self, path: &'static str, values: &Values, table: Option<&Place>) -> Option<T> {
        let key = known(path);
        let Some(entry) = values.get(path) else {
            // In a file that is not TOML throughout, the key may be there in what could not be read.
            if matches!(key.need, Need::Required { .. }) && self.broken_lines.is_empty() {
                let place = table.cloned().unwrap_or(self.text.whole());
                let right = format!("for example {} = {}", key.name(), key.sample());
                self.problems.push(Problem::new(place, path, Wrong::new("missing required key", right)));
            }
            return None;
        };
        match key.kind.read(&entry.value, key.sample()) {
            Ok(value) => Some(typed(path, value)),
            Err(wrong) => {
                self.places.broken.insert(path);
                for (span, wrong) in wrong {
                    let place = entry.place_of(&self.text, span);
                    let caused = matches!(entry.origin, Origin::File)
                        && place.line().is_some_and(|line| self.broken_lines.contains(&line));
                    if !caused {
                        self.problems.push(Problem::new(place, path, wrong));
                    }
                }
                None
            }
        }
    }
}

fn known(path: &str) -> &'static Key {
    // Every key is read in every reading, so no test passes while one is missing.
    keys::key(path).expect("the program reads only keys of the list")
}

fn typed<T: FromValue>(path: &str, value: kind::Value) -> T {
    // As above: a key of another kind would fail every test.
    T::from_value(value).unwrap_or_else(|| unreachable!("{path} is of another kind in the list of keys"))
}

fn default_of<T: FromValue>(path: &str) -> T {
    let key = known(path);
    let value = key.kind.read(&default_toml(key.sample()), "");
    // A test reads every default.
    typed(path, value.expect("defaults are right"))
}

fn default_rules() -> Vec<(Place, Values<'static>)> {
    let Some(Presence::Repeated { default }) = keys::table("forward.redact").map(|table| &table.presence) else {
        unreachable!("the list of keys gives forward.redact a default");
    };
    let value = default_toml(default);
    let place = || Place::File { file: "the default".to_owned() };
    let entry = |value: &Spanned<DeValue<'static>>| given::Entry { value: value.clone(), origin: Origin::File };
    let tables = value.get_ref().as_array().into_iter().flat_map(|items| items.iter());
    let fields = |item: &Spanned<DeValue<'static>>| {
        let rule = keys::keys_of("forward.redact");
        rule.filter_map(|key| Some((key.path, entry(item.get_ref().get(key.name())?)))).collect()
    };
    tables.map(|item| (place(), fields(item))).collect()
}

fn default_toml(text: &'static str) -> Spanned<DeValue<'static>> {
    // A test reads every default.
    DeValue::parse(text).expect("defaults are TOML")
}
