//! Resolves the raw configuration to a `Config`: each value read as its type, or its default. A key
//! with a fault becomes a problem and has its default meanwhile, so that all faults are found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::diagnostic::{Fault, Location, Problem};
use super::model::*;
use super::raw::{RawConfig, RawTable, RawValue, RawValues, SourceText, ValueSource};
use super::schema_table::{self, KeySpec, Presence, Requirement};
use super::value_type::{FaultAt, FromValue, TypedValue};
use redact::Action;
use telecomx_api::AccessLevel;

pub(super) const ACTIONS: [(&str, Action); 3] =
    [("remove", Action::Remove), ("null", Action::Null), ("mask", Action::Mask)];
pub(super) const ROLES: [(&str, ForwardRole); 2] =
    [("caller", ForwardRole::Caller), ("answer", ForwardRole::Answer)];
pub(super) const FORMATS: [(&str, LogFormat); 2] =
    [("json", LogFormat::Json), ("text", LogFormat::Text)];
pub(super) const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
pub(super) const ACCESS_LOGS: [(&str, AccessLog); 3] =
    [("all", AccessLog::All), ("errors", AccessLog::Errors), ("off", AccessLog::Off)];

/// A key that an environment variable sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariableOverride {
    pub key: &'static str,
    pub variable: String,
}

/// The configuration with its problems.
pub(super) struct Resolution {
    /// Valid only without problems: an invalid value is replaced by its default.
    pub config: Config,
    pub locations: KeyLocations,
    /// Whether the whole text is TOML. A broken line may be the definition of any key, so that
    /// relations between keys cannot be checked.
    pub is_complete: bool,
    pub problems: Vec<Problem>,
}

/// The locations of the keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeyLocations {
    file: Location,
    set: BTreeMap<&'static str, Location>,
    tables: BTreeMap<&'static str, Location>,
    /// Keys with a fault. They have their defaults, which must not be blamed on the operator.
    invalid: BTreeSet<&'static str>,
}

impl KeyLocations {
    /// The location of the first of these keys that is set.
    pub(super) fn first_of(&self, paths: &[&str]) -> Location {
        paths.iter().find_map(|path| self.set.get(path)).unwrap_or(&self.file).clone()
    }

    /// The location of a key or table, or else of its table; `None` if it is not set.
    pub(super) fn find(&self, path: &str) -> Option<&Location> {
        let table = path.rsplit_once('.').map_or(path, |(table, _)| table);
        let tables = || self.tables.get(path).or_else(|| self.tables.get(table));
        self.set.get(path).or_else(tables)
    }

    /// The keys that environment variables set, in the order of the schema table.
    pub(super) fn overrides(&self) -> Vec<VariableOverride> {
        let keys = schema_table::KEYS.iter().filter_map(|spec| match self.set.get(spec.path) {
            Some(Location::Variable { name }) => {
                Some(VariableOverride { key: spec.path, variable: name.clone() })
            }
            _ => None,
        });
        keys.collect()
    }

    pub(super) fn is_set(&self, path: &str) -> bool {
        self.set.contains_key(path)
    }

    /// Whether none of these keys has a fault.
    pub(super) fn are_valid(&self, paths: &[&str]) -> bool {
        !paths.iter().any(|path| self.invalid.contains(path))
    }
}

pub(super) fn resolve(raw: RawConfig<'_>) -> Resolution {
    let RawConfig { text, values, tables, repeated, broken_lines, problems } = raw;
    let location = |(path, value): (&&'static str, &RawValue)| (*path, value.location(&text));
    let locations = KeyLocations {
        file: text.whole(),
        set: values.iter().map(location).collect(),
        tables: tables.clone(),
        invalid: BTreeSet::new(),
    };
    let mut resolver = Resolver {
        text,
        values: &values,
        tables: &tables,
        broken_lines: &broken_lines,
        problems,
        locations,
    };
    let config = resolver.config(&repeated);
    Resolution {
        config,
        locations: resolver.locations,
        is_complete: broken_lines.is_empty(),
        problems: resolver.problems,
    }
}

struct Resolver<'g> {
    text: SourceText<'g>,
    values: &'g RawValues<'g>,
    tables: &'g BTreeMap<&'static str, Location>,
    broken_lines: &'g BTreeSet<usize>,
    problems: Vec<Problem>,
    locations: KeyLocations,
}

impl<'g> Resolver<'g> {
    fn config(&mut self, repeated: &'g BTreeMap<&'static str, Vec<RawTable<'g>>>) -> Config {
        let items = |path| repeated.get(path).map(Vec::as_slice);
        let redaction = self.redaction();
        Config {
            server: self.server(items("server.tls.certificates").unwrap_or_default()),
            admin: self.admin(),
            upstream: self.upstream(),
            identity: self.identity(),
            cache: self.cache(),
            change_log: self.change_log(),
            forward: self.forward(items("forward.redact"), &redaction.secret_names),
            redaction,
            cors: self.cors(),
            cluster: self.cluster(),
            log: self.log(),
            otlp: self.otlp(),
        }
    }

    fn server(&mut self, certificates: &'g [RawTable<'g>]) -> Server {
        Server {
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
            tls: self.tls(certificates),
        }
    }

    fn admin(&mut self) -> Admin {
        Admin { listen: self.get("admin.listen"), token_file: self.find("admin.token_file") }
    }

    fn upstream(&mut self) -> Upstream {
        Upstream {
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
        }
    }

    fn identity(&mut self) -> Identity {
        let cookie: String = self.get("identity.cookie");
        Identity {
            ttl: self.get("identity.ttl"),
            refresh_after: self.get("identity.refresh_after"),
            stale_if_error: self.get("identity.stale_if_error"),
            negative_ttl: self.get("identity.negative_ttl"),
            cookie: Some(cookie).filter(|name| !name.is_empty()),
            send_client_ip: self.get("identity.send_client_ip"),
            session: self.get("identity.session"),
            max_invalid_per_minute: self.get("identity.max_invalid_per_minute"),
        }
    }

    fn cache(&mut self) -> Cache {
        Cache {
            ttl: self.get("cache.ttl"),
            not_found_ttl: self.get("cache.not_found_ttl"),
            forbidden_ttl: self.get("cache.forbidden_ttl"),
            stale_while_revalidate: self.get("cache.stale_while_revalidate"),
            stale_if_error: self.get("cache.stale_if_error"),
            max_bytes: self.get("cache.max_bytes"),
            ttl_jitter: self.get("cache.ttl_jitter"),
            keep_fields: self.get("cache.keep_fields"),
        }
    }

    fn redaction(&mut self) -> Redaction {
        let levels = AccessLevel::ALL.map(|level| (level.as_str(), level));
        Redaction {
            reveal_to: self.word("redaction.reveal_to", self.values, &levels),
            roots: self.get("redaction.roots"),
            public: self.get("redaction.public"),
            secret_names: self.get("redaction.secret_names"),
            action: self.word("redaction.action", self.values, &ACTIONS),
        }
    }

    fn forward(&mut self, rules: Option<&'g [RawTable<'g>]>, secret_names: &[String]) -> Forward {
        Forward { blocked: self.get("forward.blocked"), redact: self.rules(rules, secret_names) }
    }

    fn cors(&mut self) -> Cors {
        let origins: Vec<String> = self.get("cors.allowed_origins");
        let allowed_origins = match origins.as_slice() {
            [origin] if origin == "*" => AllowedOrigins::Any,
            [origin] if origin == "loopback" => AllowedOrigins::Loopback,
            _ => AllowedOrigins::Listed(origins),
        };
        Cors { allowed_origins, max_age: self.get("cors.max_age") }
    }

    fn log(&mut self) -> Log {
        Log {
            format: self.word("log.format", self.values, &FORMATS),
            level: self.word("log.level", self.values, &LOG_LEVELS),
            access: Access {
                which: self.word("log.access", self.values, &ACCESS_LOGS),
                hits: self.get("log.hits"),
                customer: self.get("log.customer"),
            },
            buffer: self.get("log.buffer"),
        }
    }

    fn tls(&mut self, certificates: &'g [RawTable<'g>]) -> Option<Tls> {
        self.tables.get("server.tls")?;
        let ca_file: Option<PathBuf> = self.find("server.tls.client_ca_file");
        let auth: Option<String> = self.find("server.tls.client_auth");
        // Read even without client_ca_file, so that an invalid value is reported.
        let auth = if auth.as_deref() == Some("optional") {
            ClientAuth::Optional
        } else {
            ClientAuth::Required
        };
        let mut files = Vec::new();
        for RawTable { location, values } in certificates {
            let cert_file =
                self.find_in("server.tls.certificates.cert_file", values, Some(location));
            let key_file = self.find_in("server.tls.certificates.key_file", values, Some(location));
            let both = cert_file.zip(key_file);
            files
                .extend(both.map(|(cert_file, key_file)| CertificateFiles { cert_file, key_file }));
        }
        Some(Tls {
            listen: self.find("server.tls.listen").unwrap_or_default(),
            cert_file: self.find("server.tls.cert_file").unwrap_or_default(),
            key_file: self.find("server.tls.key_file").unwrap_or_default(),
            certificates: files,
            clients: ca_file.map(|ca_file| Clients { ca_file, auth }),
        })
    }

    fn cluster(&mut self) -> Option<Cluster> {
        self.tables.get("cluster")?;
        let placeholder = RedisUrl { endpoint: RedisEndpoint::Socket(PathBuf::new()), database: 0 };
        Some(Cluster {
            url: self.find("cluster.url").unwrap_or(placeholder),
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
        let placeholder =
            UpstreamUrl { tls: false, host: String::new(), is_absolute: false, port: 4318 };
        let endpoint = self.find("otlp.endpoint").unwrap_or(placeholder);
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

    fn rules(
        &mut self,
        rules: Option<&'g [RawTable<'g>]>,
        secret_names: &[String],
    ) -> Vec<ForwardRedact> {
        let default;
        let rules = match rules {
            Some(rules) => rules,
            None => {
                default = default_rules();
                &default
            }
        };
        let mut resolved = Vec::new();
        for RawTable { location, values } in rules {
            let path = self.find_in("forward.redact.path", values, Some(location));
            let role = self.word("forward.redact.role", values, &ROLES);
            let names = self.find_in("forward.redact.secret_names", values, Some(location));
            // Closed by default: a rule without the key hides the same names as
            // redaction.secret_names.
            let secret_names = names.unwrap_or_else(|| secret_names.to_vec());
            let pass_types = self.get_in("forward.redact.pass_types", values);
            resolved.extend(path.map(|path| ForwardRedact {
                path,
                role,
                secret_names,
                pass_types,
            }));
        }
        resolved
    }

    /// The value of a key with a default.
    fn get<T: FromValue>(&mut self, path: &'static str) -> T {
        self.get_in(path, self.values)
    }

    fn get_in<T: FromValue>(&mut self, path: &'static str, values: &RawValues) -> T {
        self.find_in(path, values, None).unwrap_or_else(|| default_of(path))
    }

    /// The meaning of one of the permitted words.
    fn word<T: Copy>(&mut self, path: &'static str, values: &RawValues, words: &[(&str, T)]) -> T {
        let text: String = self.get_in(path, values);
        let found = words.iter().find(|(word, _)| *word == text);
        // A test reads every word that the schema table allows.
        found
            .map(|(_, meaning)| *meaning)
            .expect("the schema table allows only words with a meaning")
    }

    fn find<T: FromValue>(&mut self, path: &'static str) -> Option<T> {
        let table = schema_table::key_spec(path).and_then(|key| self.tables.get(key.table()));
        self.find_in(path, self.values, table)
    }

    /// The value that is set; `None` if it is not set or invalid. `table`: the location for a
    /// required key that is missing.
    fn find_in<T: FromValue>(
        &mut self,
        path: &'static str,
        values: &RawValues,
        table: Option<&Location>,
    ) -> Option<T> {
        let spec = spec_of(path);
        let Some(raw) = values.get(path) else {
            // A broken line may define the key.
            if matches!(spec.requirement, Requirement::Required { .. })
                && self.broken_lines.is_empty()
            {
                let location = table.cloned().unwrap_or(self.text.whole());
                let remedy = format!("for example {} = {}", spec.name(), spec.example());
                self.problems.push(Problem::new(
                    location,
                    path,
                    Fault::new("missing required key", remedy),
                ));
            }
            return None;
        };
        match spec.value_type.read(&raw.value, spec.example()) {
            Ok(value) => Some(typed(path, value)),
            Err(faults) => {
                self.locations.invalid.insert(path);
                for FaultAt { span, fault } in faults {
                    let location = raw.location_of(&self.text, span);
                    let is_consequence = matches!(raw.source, ValueSource::File)
                        && location.line().is_some_and(|line| self.broken_lines.contains(&line));
                    if !is_consequence {
                        self.problems.push(Problem::new(location, path, fault));
                    }
                }
                None
            }
        }
    }
}

fn spec_of(path: &str) -> &'static KeySpec {
    // Each resolution reads every key, so that every test fails while one is missing.
    schema_table::key_spec(path).expect("the program reads only keys of the schema table")
}

fn typed<T: FromValue>(path: &str, value: TypedValue) -> T {
    // As above: another type would fail every test.
    T::from_value(value)
        .unwrap_or_else(|| unreachable!("{path} has another type in the schema table"))
}

fn default_of<T: FromValue>(path: &str) -> T {
    let spec = spec_of(path);
    let value = spec.value_type.read(&default_toml(spec.example()), "");
    // A test reads every default.
    typed(path, value.expect("defaults are valid"))
}

fn default_rules() -> Vec<RawTable<'static>> {
    let Some(Presence::Repeated { default }) =
        schema_table::table_spec("forward.redact").map(|table| &table.presence)
    else {
        unreachable!("the schema table has a default for forward.redact");
    };
    let value = default_toml(default);
    let location = Location::File { file: "the default".to_owned() };
    let raw_value = |value: &Spanned<DeValue<'static>>| RawValue {
        value: value.clone(),
        source: ValueSource::File,
    };
    let tables = value.get_ref().as_array().into_iter().flat_map(|items| items.iter());
    let fields = |item: &Spanned<DeValue<'static>>| {
        let rule = schema_table::keys_of("forward.redact");
        rule.filter_map(|key| Some((key.path, raw_value(item.get_ref().get(key.name())?))))
            .collect()
    };
    tables.map(|item| RawTable { location: location.clone(), values: fields(item) }).collect()
}

fn default_toml(text: &'static str) -> Spanned<DeValue<'static>> {
    // A test reads every default.
    DeValue::parse(text).expect("defaults are TOML")
}
