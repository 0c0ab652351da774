//! The value of each key of a checked configuration as text, and the differences between two
//! configurations.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use super::model::*;
use super::resolve;
use super::schema_table::{KEYS, KeySpec, Reload, keys_of};
use super::units::{show_duration, show_size};

/// A key whose value differs between two configurations. Values are TOML; `None` if the key or its
/// table is not set. Secrets are in files, so no value is a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    pub key: &'static str,
    pub old: Option<String>,
    pub new: Option<String>,
    pub reload: Reload,
}

/// The keys whose values differ, in the order of the shipped file. `forward.redact` is one key.
pub fn changes(old: &Config, new: &Config) -> Vec<KeyChange> {
    let (old, new) = (key_values(old), key_values(new));
    let value = |values: &[KeyValue], key| {
        values.iter().find(|value| value.key == key).and_then(|value| value.toml.clone())
    };
    let keys = old.iter().map(|value| value.key);
    keys.filter_map(|key| {
        let (old, new) = (value(&old, key), value(&new, key));
        (old != new).then(|| KeyChange { key, old, new, reload: reload_of(key) })
    })
    .collect()
}

/// Whether a reload applies a change of this key. A rule of `forward.redact` applies like its keys.
pub fn reload_of(key: &str) -> Reload {
    let is_named = |spec: &&KeySpec| spec.path == key || spec.table() == key;
    KEYS.iter().find(is_named).map_or(Reload::NeedsRestart, |spec| spec.reload)
}

/// The text of one value.
pub(super) struct KeyValue {
    pub key: &'static str,
    /// `None` if it is not set and has no default.
    pub toml: Option<String>,
}

/// The values of all keys. Each struct is destructured, so that the compiler reports a key that is
/// missing here.
pub(super) fn key_values(config: &Config) -> Vec<KeyValue> {
    let mut values = Values(Vec::new());
    let Config {
        server,
        admin,
        upstream,
        identity,
        cache,
        change_log,
        redaction,
        forward,
        cors,
        cluster,
        log,
        otlp,
    } = config;
    values.server(server);
    values.admin(admin);
    values.upstream(upstream);
    values.identity(identity);
    values.cache(cache);
    values.change_log(change_log.as_ref());
    values.redaction(redaction);
    values.forward(forward);
    values.cors(cors);
    values.cluster(cluster.as_ref());
    values.log(log);
    values.otlp(otlp.as_ref());
    let mut values = values.0;
    let position = |key: &str| KEYS.iter().position(|spec| spec.path == key || spec.table() == key);
    values.sort_by_key(|value| position(value.key));
    values
}

struct Values(Vec<KeyValue>);

impl Values {
    fn set(&mut self, key: &'static str, toml: impl Display) {
        self.0.push(KeyValue { key, toml: Some(toml.to_string()) });
    }

    fn optional(&mut self, key: &'static str, toml: Option<impl Display>) {
        self.0.push(KeyValue { key, toml: toml.map(|toml| toml.to_string()) });
    }

    /// A table that is not set.
    fn absent(&mut self, table: &str) {
        self.0.extend(keys_of(table).map(|spec| KeyValue { key: spec.path, toml: None }));
    }

    fn duration(&mut self, key: &'static str, duration: Duration) {
        self.set(key, quoted(show_duration(duration)));
    }

    fn size(&mut self, key: &'static str, bytes: u64) {
        self.set(key, quoted(show_size(bytes)));
    }

    fn file(&mut self, key: &'static str, path: Option<&PathBuf>) {
        self.optional(key, path.map(|path| quoted(path.display())));
    }

    fn server(&mut self, server: &Server) {
        let Server {
            listen,
            threads,
            trusted_proxies,
            proxy_protocol,
            drain,
            drain_delay,
            upgrade_socket,
            header_timeout,
            write_timeout,
            max_connections,
            max_connections_per_address,
            max_requests,
            keepalive_timeout,
            max_header_bytes,
            fast_path,
            tls,
        } = server;
        self.set("server.listen", list(listen));
        self.set("server.threads", threads);
        self.set("server.trusted_proxies", list(trusted_proxies));
        self.set("server.proxy_protocol", list(proxy_protocol));
        self.duration("server.drain", *drain);
        self.duration("server.drain_delay", *drain_delay);
        self.file("server.upgrade_socket", upgrade_socket.as_ref());
        self.duration("server.header_timeout", *header_timeout);
        self.duration("server.write_timeout", *write_timeout);
        self.set("server.max_connections", max_connections);
        self.optional("server.max_connections_per_address", max_connections_per_address.as_ref());
        self.set("server.max_requests", max_requests);
        self.duration("server.keepalive_timeout", *keepalive_timeout);
        self.size("server.max_header_bytes", *max_header_bytes);
        self.set("server.fast_path", fast_path);
        self.tls(tls.as_ref());
    }

    fn tls(&mut self, tls: Option<&Tls>) {
        let Some(Tls { listen, cert_file, key_file, certificates, clients }) = tls else {
            self.absent("server.tls");
            self.0.push(KeyValue { key: "server.tls.certificates", toml: None });
            return;
        };
        self.set("server.tls.listen", list(listen));
        self.file("server.tls.cert_file", Some(cert_file));
        self.file("server.tls.key_file", Some(key_file));
        self.file("server.tls.client_ca_file", clients.as_ref().map(|clients| &clients.ca_file));
        let auth = clients.as_ref().map(|Clients { ca_file: _, auth }| match auth {
            ClientAuth::Required => "\"required\"",
            ClientAuth::Optional => "\"optional\"",
        });
        self.optional("server.tls.client_auth", auth);
        let certificates = certificates.iter().map(|CertificateFiles { cert_file, key_file }| {
            format!("{{ cert_file = {cert_file:?}, key_file = {key_file:?} }}")
        });
        self.set(
            "server.tls.certificates",
            format!("[{}]", certificates.collect::<Vec<_>>().join(", ")),
        );
    }

    fn admin(&mut self, Admin { listen, token_file }: &Admin) {
        self.set("admin.listen", quoted(listen));
        self.file("admin.token_file", token_file.as_ref());
    }

    fn upstream(&mut self, upstream: &Upstream) {
        let Upstream {
            urls,
            ca_file,
            client_cert_file,
            client_key_file,
            connect_timeout,
            timeout,
            max_body,
            max_in_flight,
            keepalive_timeout,
            max_idle_connections,
        } = upstream;
        match urls.as_slice() {
            [url] => self.set("upstream.url", quoted(url)),
            urls => self.set("upstream.url", list(urls)),
        }
        self.file("upstream.ca_file", ca_file.as_ref());
        self.file("upstream.client_cert_file", client_cert_file.as_ref());
        self.file("upstream.client_key_file", client_key_file.as_ref());
        self.duration("upstream.connect_timeout", *connect_timeout);
        self.duration("upstream.timeout", *timeout);
        self.size("upstream.max_body", *max_body);
        self.set("upstream.max_in_flight", max_in_flight);
        self.duration("upstream.keepalive_timeout", *keepalive_timeout);
        self.set("upstream.max_idle_connections", max_idle_connections);
    }

    fn identity(&mut self, identity: &Identity) {
        let Identity {
            ttl,
            refresh_after,
            stale_if_error,
            negative_ttl,
            cookie,
            send_client_ip,
            session,
            max_invalid_per_minute,
        } = identity;
        self.duration("identity.ttl", *ttl);
        self.duration("identity.refresh_after", *refresh_after);
        self.duration("identity.stale_if_error", *stale_if_error);
        self.duration("identity.negative_ttl", *negative_ttl);
        self.set("identity.cookie", quoted(cookie.as_deref().unwrap_or_default()));
        self.set("identity.send_client_ip", send_client_ip);
        self.duration("identity.session", *session);
        self.set("identity.max_invalid_per_minute", max_invalid_per_minute);
    }

    fn cache(&mut self, cache: &Cache) {
        let Cache {
            ttl,
            not_found_ttl,
            forbidden_ttl,
            stale_while_revalidate,
            stale_if_error,
            max_bytes,
            ttl_jitter,
            keep_fields,
        } = cache;
        self.duration("cache.ttl", *ttl);
        self.duration("cache.not_found_ttl", *not_found_ttl);
        self.duration("cache.forbidden_ttl", *forbidden_ttl);
        self.duration("cache.stale_while_revalidate", *stale_while_revalidate);
        self.duration("cache.stale_if_error", *stale_if_error);
        self.size("cache.max_bytes", *max_bytes);
        self.set("cache.ttl_jitter", ttl_jitter);
        self.set("cache.keep_fields", list(keep_fields));
    }

    fn change_log(&mut self, change_log: Option<&ChangeLog>) {
        let Some(ChangeLog { token_file, interval, overlap }) = change_log else {
            return self.absent("change_log");
        };
        self.file("change_log.token_file", Some(token_file));
        self.duration("change_log.interval", *interval);
        self.duration("change_log.overlap", *overlap);
    }

    fn redaction(&mut self, redaction: &Redaction) {
        let Redaction { reveal_to, roots, public, secret_names, action } = redaction;
        self.set("redaction.reveal_to", quoted(reveal_to));
        self.set("redaction.roots", list(roots));
        self.set("redaction.public", list(public));
        self.set("redaction.secret_names", list(secret_names));
        self.set("redaction.action", quoted(action.as_str()));
    }

    fn forward(&mut self, Forward { blocked, redact }: &Forward) {
        self.set("forward.blocked", list(blocked));
        let rules = redact.iter().map(|ForwardRedact { path, role, secret_names, pass_types }| {
            format!(
                "{{ path = {}, role = {}, secret_names = {}, pass_types = {} }}",
                quoted(path),
                word(&resolve::ROLES, role),
                list(secret_names),
                list(pass_types)
            )
        });
        self.set("forward.redact", format!("[{}]", rules.collect::<Vec<_>>().join(", ")));
    }

    fn cors(&mut self, Cors { allowed_origins, max_age }: &Cors) {
        let origins = match allowed_origins {
            AllowedOrigins::Any => "[\"*\"]".to_owned(),
            AllowedOrigins::Loopback => "\"loopback\"".to_owned(),
            AllowedOrigins::Listed(origins) => list(origins),
        };
        self.set("cors.allowed_origins", origins);
        self.duration("cors.max_age", *max_age);
    }

    fn cluster(&mut self, cluster: Option<&Cluster>) {
        let Some(Cluster {
            url,
            username,
            password_file,
            ca_file,
            key_file,
            name,
            max_isolation,
            connect_timeout,
            timeout,
            ready_when_isolated,
            tier,
            tier_timeout,
        }) = cluster
        else {
            return self.absent("cluster");
        };
        self.set("cluster.url", quoted(url));
        self.file("cluster.key_file", Some(key_file));
        self.optional("cluster.username", username.as_ref().map(quoted));
        self.file("cluster.password_file", password_file.as_ref());
        self.file("cluster.ca_file", ca_file.as_ref());
        self.set("cluster.name", quoted(name));
        self.duration("cluster.max_isolation", *max_isolation);
        self.duration("cluster.connect_timeout", *connect_timeout);
        self.duration("cluster.timeout", *timeout);
        self.set("cluster.ready_when_isolated", ready_when_isolated);
        self.set("cluster.tier", tier);
        self.duration("cluster.tier_timeout", *tier_timeout);
    }

    fn log(&mut self, log: &Log) {
        let Log { format, level, access: Access { which, hits, customer }, buffer } = log;
        self.set("log.format", word(&resolve::FORMATS, format));
        self.set("log.level", word(&resolve::LOG_LEVELS, level));
        self.set("log.access", word(&resolve::ACCESS_LOGS, which));
        self.set("log.hits", hits);
        self.set("log.customer", customer);
        self.size("log.buffer", *buffer);
    }

    fn otlp(&mut self, otlp: Option<&Otlp>) {
        let Some(Otlp { endpoint, sample }) = otlp else { return self.absent("otlp") };
        self.set("otlp.endpoint", quoted(endpoint));
        self.set("otlp.sample", sample);
    }
}

/// The word of a value.
fn word<T: PartialEq>(words: &[(&str, T)], value: &T) -> String {
    let found = words.iter().find(|(_, meaning)| meaning == value);
    found.map_or(String::new(), |(word, _)| quoted(word))
}

fn quoted(text: impl Display) -> String {
    format!("{:?}", text.to_string())
}

fn list<T: Display>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(quoted).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::load::parse;
    use super::super::schema_table::is_repeated;
    use super::*;

    #[test]
    fn key_values_cover_the_schema_table() {
        let config = parse("f", "upstream.url = \"https://api.telecomx.dk\"", []).unwrap();
        let shown: Vec<&str> = key_values(&config).iter().map(|value| value.key).collect();
        let mut expected: Vec<&str> = KEYS
            .iter()
            .map(|spec| if is_repeated(spec.table()) { spec.table() } else { spec.path })
            .collect();
        expected.dedup();
        assert_eq!(shown, expected);
    }

    #[test]
    fn changes_have_values_and_effect_of_a_reload() {
        let read = |text: &str| parse("f", text, []).unwrap();
        let old = read("upstream.url = \"https://api.telecomx.dk\"");
        let new = read(
            "upstream.url = \"https://api.telecomx.dk\"\nserver.threads = 2\ncache.ttl = \"7s\"\n\
             cluster = { url = \"redis://r\", key_file = \"k\" }",
        );
        assert_eq!(changes(&old, &old), []);
        let changes = changes(&old, &new);
        let shown: Vec<_> =
            changes.iter().map(|change| (change.key, change.reload)).take(4).collect();
        assert_eq!(
            shown,
            [
                ("server.threads", Reload::NeedsRestart),
                ("cache.ttl", Reload::Applies),
                ("cluster.url", Reload::NeedsRestart),
                ("cluster.key_file", Reload::NeedsRestart),
            ]
        );
        assert_eq!(changes[1].old.as_deref(), Some("\"60s\""));
        assert_eq!(changes[1].new.as_deref(), Some("\"7s\""));
        assert_eq!(changes[2].old, None);
    }

    #[test]
    fn change_of_the_urls_of_the_api_shows_each_url() {
        let read = |urls: &str| parse("f", &format!("upstream.url = {urls}"), []).unwrap();
        let [old, new] = ["\"http://a:81\"", r#"["http://a.:81", "http://[::1]"]"#];
        let changes = changes(&read(old), &read(new));
        let [KeyChange { key: "upstream.url", old: was, new: is, .. }] = changes.as_slice() else {
            panic!("{changes:?}");
        };
        assert_eq!((was.as_deref(), is.as_deref()), (Some(old), Some(new)));
    }
}
