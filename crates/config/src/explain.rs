//! `check --explain`: describes what a gateway with a configuration does.

use std::time::Duration;

use super::diagnostic::Warning;
use super::model::*;
use super::resolve::VariableOverride;
use super::units::{show_duration as time, show_size as size};
use super::warnings::warnings;
use redact::Action;
use telecomx_api::AccessLevel;

/// Columns of the text, for a terminal of 80.
const WIDTH: usize = 78;

/// Describes listeners, identities, caching, redaction, forwarding, limits and warnings, and names
/// the keys that environment variables set. Names files with secrets, never their contents.
pub fn explain(config: &Config, overrides: &[VariableOverride]) -> String {
    let mut page = Page { text: String::new(), warnings: warnings(config) };
    page.environment(overrides);
    page.listeners(config);
    page.identities(&config.identity);
    page.responses(&config.cache, &config.identity, config.change_log.as_ref());
    page.access_levels(&config.redaction);
    page.forwarded(&config.forward, &config.redaction);
    page.cross_origin(&config.cors);
    page.cluster(config.cluster.as_ref());
    page.limits(config);
    page.logs(&config.log, config.otlp.as_ref());
    page.text
}

struct Page {
    text: String,
    warnings: Vec<Warning>,
}

impl Page {
    fn environment(&mut self, overrides: &[VariableOverride]) {
        if overrides.is_empty() {
            return;
        }
        self.title("Environment");
        for VariableOverride { key, variable } in overrides {
            self.item(
                if *key == overrides[0].key { "variables" } else { "" },
                &format!("{variable} sets {key}"),
            );
        }
    }

    fn listeners(&mut self, config: &Config) {
        let Config { server, admin, upstream, .. } = config;
        self.title("Where");
        self.item("API", &upstream.display_urls());
        self.warn_about("upstream.url");
        if let Some(file) = &upstream.ca_file {
            self.item(
                "",
                &format!("additional trusted certificate authorities: {}", file.display()),
            );
        }
        if let Some(file) = &upstream.client_cert_file {
            self.item("", &format!("client certificate for the API: {}", file.display()));
        }
        self.item("clients", &format!("{}, HTTP/1.1 and h2c, cleartext", list(&server.listen)));
        self.warn_about("server.listen");
        if let Some(tls) = &server.tls {
            self.item(
                "",
                &format!("{}, TLS, certificate {}", list(&tls.listen), tls.cert_file.display()),
            );
            for certificate in &tls.certificates {
                let file = certificate.cert_file.display();
                self.item("", &format!("certificate by server name (SNI): {file}"));
            }
            if let Some(Clients { ca_file, auth }) = &tls.clients {
                let must = if *auth == ClientAuth::Required { "must" } else { "may" };
                self.item(
                    "",
                    &format!(
                        "clients {must} present a certificate signed by an authority in {}",
                        ca_file.display()
                    ),
                );
            }
        }
        let guard = match &admin.token_file {
            Some(file) => format!("requires the token in {}", file.display()),
            None => "no token: every process on this machine has access".to_owned(),
        };
        self.item("admin", &format!("{}, {guard}", admin.listen));
        let proxies = if server.trusted_proxies.is_empty() {
            "no peer".to_owned()
        } else {
            list(&server.trusted_proxies)
        };
        self.item("proxies", &format!("X-Forwarded-For is trusted from {proxies}"));
        if !server.proxy_protocol.is_empty() {
            self.item(
                "PROXY",
                &format!("a PROXY header is required from {}", list(&server.proxy_protocol)),
            );
        }
        self.warn_about("server.trusted_proxies");
    }

    fn identities(&mut self, identity: &Identity) {
        self.title("Authentication");
        let cookie =
            identity.cookie.as_ref().map_or(String::new(), |name| format!(", cookie `{name}`"));
        self.item(
            "token",
            &format!("from Authorization: Bearer, X-API-Key, ?token={cookie}; the first one present is used"),
        );
        let address = if identity.send_client_ip { "with" } else { "without" };
        if identity.ttl.is_zero() {
            self.item(
                "validated",
                &format!("by the API for every request, {address} the client's address"),
            );
            self.item("revoked", "a token revoked elsewhere is refused from the next request on");
        } else {
            let refresh = if identity.refresh_after < identity.ttl {
                format!(" and renewed in the background after {}", time(identity.refresh_after))
            } else {
                String::new()
            };
            let ttl = time(identity.ttl);
            self.item(
                "validated",
                &format!("by the API, {address} the client's address; the result is cached for {ttl}{refresh}"),
            );
            self.item(
                "revoked",
                &format!("a token revoked elsewhere works for at most {ttl} more"),
            );
        }
        let outage = if identity.ttl.is_zero() || identity.stale_if_error.is_zero() {
            "while the API is unreachable, no token is accepted longer than that".to_owned()
        } else {
            let longest = time(identity.ttl + identity.stale_if_error);
            format!(
                "while the API is unreachable, a cached token is accepted for at most {longest}"
            )
        };
        self.item("outage", &outage);
        self.item(
            "invalidated",
            "by logout, token deletion, reseller switch and employee changes that pass through the \
             gateway, and by any 401 of the API",
        );
        self.item(
            "invalid",
            &match identity.negative_ttl {
                Duration::ZERO => "validated each time".to_owned(),
                ttl => format!("refused for {} without another validation", time(ttl)),
            },
        );
    }

    fn responses(&mut self, cache: &Cache, identity: &Identity, change_log: Option<&ChangeLog>) {
        self.title("Cache");
        self.item(
            "responses",
            "to GET and HEAD /customer/{id}/name without query parameters other than `token`; no others",
        );
        self.item("key", "token, access level and customer; never shared between tokens");
        let kept = |ttl: Duration| if ttl.is_zero() { "not cached".to_owned() } else { time(ttl) };
        let jitter = if cache.ttl_jitter == 0.0 || cache.ttl.is_zero() {
            String::new()
        } else {
            format!(
                ", shortened at random by up to {} %",
                (cache.ttl_jitter * 1000.0).round() / 10.0
            )
        };
        self.item("lifetime", &format!("200: {}{jitter}", kept(cache.ttl)));
        self.item(
            "",
            &format!(
                "404: {}    403: {}    others: not cached",
                kept(cache.not_found_ttl),
                kept(cache.forbidden_ttl)
            ),
        );
        if cache.ttl.is_zero() {
            self.item("stale", "never");
            return;
        }
        let grace = |window: Duration, when: &str| match window {
            Duration::ZERO => format!("not {when}"),
            _ => format!("{} more {when}", time(window)),
        };
        self.item(
            "stale",
            &grace(cache.stale_while_revalidate, "while it is refreshed in the background"),
        );
        self.item("", &grace(cache.stale_if_error, "while the API fails"));
        let usual = cache.ttl + cache.stale_while_revalidate;
        let worst = cache.ttl + cache.stale_while_revalidate.max(cache.stale_if_error);
        self.item("oldest", &format!("{}, or {} while the API fails", time(usual), time(worst)));
        let elsewhere = match change_log {
            None => "when the response expires".to_owned(),
            Some(log) => {
                let (interval, file) = (time(log.interval), log.token_file.display());
                format!(
                    "when the API's change log shows them; it is polled every {interval} with the token in {file}"
                )
            }
        };
        self.item(
            "changes",
            &format!("changes that pass through the gateway apply at once, changes made elsewhere {elsewhere}"),
        );
        let session = time(identity.session);
        self.item(
            "session",
            &format!("an active caller reaches the API before its session of {session} ends"),
        );
    }

    fn access_levels(&mut self, redaction: &Redaction) {
        self.title("Redaction");
        let Redaction { reveal_to, roots, public, secret_names, action } = redaction;
        for level in AccessLevel::ALL {
            let sees = if level >= *reveal_to {
                "receives the API's bytes unchanged"
            } else {
                "redacted, see below"
            };
            self.item(level.as_str(), sees);
        }
        self.warn_about("redaction.reveal_to");
        self.line("");
        self.line("Redacted responses:");
        self.item(
            "under",
            &format!("{}, at any depth, only these members are visible:", list(roots)),
        );
        if public.is_empty() {
            self.item("", "none");
        }
        for selector in public {
            self.item("", selector);
        }
        self.warn_about("redaction.public");
        let names = if secret_names.is_empty() {
            "no other names are secret".to_owned()
        } else {
            format!("names that match {} are secret", list(secret_names))
        };
        self.item("elsewhere", &names);
        self.item(
            "a secret",
            match action {
                Action::Remove => "is removed, name and value",
                Action::Null => "keeps its name; its value becomes null",
                Action::Mask => "keeps its name; a string becomes \"***\", other values null",
            },
        );
        self.item(
            "otherwise",
            "a response that cannot be redacted safely becomes 502 for these access levels",
        );
    }

    fn forwarded(&mut self, forward: &Forward, redaction: &Redaction) {
        self.title("Forwarding");
        self.item("other requests", "are forwarded and never cached");
        for rule in &forward.redact {
            let role = match rule.role {
                ForwardRole::Caller => "the caller's access level",
                ForwardRole::Answer => "the access level in the response",
            };
            let names = if rule.secret_names.is_empty() {
                String::new()
            } else {
                format!(", and names that match {}", list(&rule.secret_names))
            };
            self.item("redacted", &format!("{} by {role}: under the roots{names}", rule.path));
            let types = if rule.pass_types.is_empty() {
                "nothing".to_owned()
            } else {
                list(&rule.pass_types)
            };
            self.item("", &format!("other than JSON only {types} passes"));
        }
        let shown = format!("below {}; the first matching path applies", redaction.reveal_to);
        self.item("", if forward.redact.is_empty() { "" } else { &shown });
        self.warn_about("forward.redact");
        for path in &forward.blocked {
            self.item("blocked", &format!("{path}: 403"));
        }
        self.warn_about("forward.blocked");
    }

    fn cross_origin(&mut self, cors: &Cors) {
        self.title("Cross-origin pages");
        self.item(
            "CORS",
            &match &cors.allowed_origins {
                AllowedOrigins::Any => {
                    "any origin may read the gateway's own responses, without credentials".to_owned()
                }
                AllowedOrigins::Loopback => {
                    "pages of this machine may read the gateway's own responses, with credentials; for development"
                        .to_owned()
                }
                AllowedOrigins::Listed(origins) if origins.is_empty() => {
                    "no fields are added; preflights are forwarded".to_owned()
                }
                AllowedOrigins::Listed(origins) => format!("{} may read the gateway's own responses", list(origins)),
            },
        );
    }

    fn cluster(&mut self, cluster: Option<&Cluster>) {
        self.title("Cluster");
        let Some(cluster) = cluster else {
            self.item("none", "changes that pass through another gateway do not apply here before a response expires");
            return;
        };
        self.item("through", &format!("{}, key prefix {}", cluster.url, cluster.name));
        self.item("encrypted", &format!("with the first key in {}", cluster.key_file.display()));
        if let Some(file) = &cluster.password_file {
            let user = cluster.username.as_deref().unwrap_or("the default user");
            self.item("user", &format!("{user}, password in {}", file.display()));
        }
        let isolation = time(cluster.max_isolation);
        self.item(
            "without Redis",
            &format!(
                "serves cached responses for {isolation}, then sends every request to the API until it has caught up"
            ),
        );
        let ready = if cluster.ready_when_isolated { "200" } else { "503" };
        self.item("", &format!("/readyz then returns {ready}"));
        let answers = if cluster.tier {
            let most = time(cluster.tier_timeout);
            format!(
                "invalidations, responses and validations; a request waits at most {most} for them, \
                 then the API is asked"
            )
        } else {
            "invalidations only; each gateway fetches its own responses".to_owned()
        };
        self.item("shared", &answers);
    }

    fn limits(&mut self, config: &Config) {
        let Config { server, upstream, cache, identity, .. } = config;
        self.title("Limits");
        let head = size(server.max_header_bytes);
        self.item(
            "clients",
            &format!(
                "{} connections; {} requests under way; heads of {head} within {}; idle for {}; \
                 writes without progress for {}",
                server.max_connections,
                server.max_requests,
                time(server.header_timeout),
                time(server.keepalive_timeout),
                time(server.write_timeout)
            ),
        );
        self.item(
            "descriptors",
            &format!(
                "at least {} (LimitNOFILE, ulimits); fewer reduce the connections",
                server.descriptors_needed()
            ),
        );
        self.item(
            "API",
            &format!(
                "{} concurrent requests of the gateway's own; connect within {}, response within {}; bodies up to {}",
                upstream.max_in_flight,
                time(upstream.connect_timeout),
                time(upstream.timeout),
                size(upstream.max_body)
            ),
        );
        self.item("memory", &format!("{} for the cache", size(cache.max_bytes)));
        self.item(
            "invalid tokens",
            &format!(
                "{} per minute and client address; further unknown tokens receive 429",
                identity.max_invalid_per_minute
            ),
        );
        if !server.drain_delay.is_zero() {
            self.item(
                "shutdown",
                &format!("accepts connections for {} after SIGTERM", time(server.drain_delay)),
            );
        }
        self.item("shutdown", &format!("requests under way have {} to finish", time(server.drain)));
        let threads = if server.threads == 0 {
            "one per usable core".to_owned()
        } else {
            server.threads.to_string()
        };
        self.item("threads", &threads);
    }

    fn logs(&mut self, log: &Log, otlp: Option<&Otlp>) {
        self.title("Logs");
        let format = match log.format {
            LogFormat::Json => "JSON",
            LogFormat::Text => "text",
        };
        let level = match log.level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        };
        let access: String = match log.access.which {
            AccessLog::All if log.access.hits >= 1.0 => {
                "one line per request, whatever the level".into()
            }
            AccessLog::All => {
                format!(
                    "one line per request, for a fraction of {} of the hits, whatever the level",
                    log.access.hits
                )
            }
            AccessLog::Errors => {
                "one line per request with a 5xx response, whatever the level".into()
            }
            AccessLog::Off => "no access lines".into(),
        };
        self.item("lines", &format!("{format}, from level {level} on"));
        self.item("access", &access);
        if log.access.customer {
            self.item("", "access lines contain customer ids, which are personal data");
        }
        self.item("audit", "every purge, reload and change of the service, whatever the level");
        self.item(
            "buffer",
            &format!("{}; lines that do not fit are dropped and counted", size(log.buffer)),
        );
        if let Some(Otlp { endpoint, sample }) = otlp {
            let part =
                format!("{} % of those without a traceparent", (sample * 1000.0).round() / 10.0);
            self.item(
                "spans",
                &format!("to {endpoint}: requests whose traceparent is sampled, {part}"),
            );
        }
    }

    fn title(&mut self, title: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(&title.to_uppercase());
    }

    /// Writes the warnings about a key as sentences.
    fn warn_about(&mut self, key: &str) {
        let causes: Vec<String> = self
            .warnings
            .iter()
            .filter(|warning| warning.key == key)
            .map(|warning| warning.cause.clone())
            .collect();
        for cause in causes {
            let mut letters = cause.chars();
            let first = letters.next().map(|letter| letter.to_ascii_uppercase());
            self.item(
                "!",
                &format!("{}{}.", first.map(String::from).unwrap_or_default(), letters.as_str()),
            );
        }
    }

    /// Writes a label and a text, which is wrapped with an indent.
    fn item(&mut self, label: &str, text: &str) {
        const INDENT: usize = 18;
        let mut line = format!("  {label:<width$}", width = INDENT - 2);
        let mut empty = true;
        for word in text.split(' ') {
            if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.line(&line);
                line = " ".repeat(INDENT);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
            empty = false;
        }
        if !text.is_empty() {
            self.line(&line);
        }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
