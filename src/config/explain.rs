//! The configuration in words, for a person who must know quickly what this gateway does.

use std::time::Duration;

use super::units::{show_duration as time, show_size as size};
use super::*;
use crate::redact::Action;

/// Columns of the text, for a terminal of 80.
const WIDTH: usize = 78;

/// Says what is answered from memory, for whom and how long, what each role sees, what is forwarded and blocked, where
/// the gateway listens, and its limits. Names files of secrets, never what is in them.
pub fn explain(config: &Config) -> String {
    let mut page = Page::default();
    let Config { server, admin, upstream, identity, cache, change_log, redaction, forward, cors, cluster, log, otlp } =
        config;
    page.listeners(server, admin, upstream);
    page.identities(identity);
    page.answers(cache, identity, change_log.as_ref());
    page.roles(redaction);
    page.forwarded(forward, redaction);
    page.browsers(cors);
    page.fleet(cluster.as_ref());
    page.limits(server, upstream, cache, identity);
    page.logs(log, otlp.as_ref());
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn listeners(&mut self, server: &Server, admin: &Admin, upstream: &Upstream) {
        self.title("Where");
        self.item("API", &upstream.display_urls());
        if !upstream.is_tls() {
            self.warn("The way to the API is not encrypted: tokens and secrets travel in the clear.");
        }
        if let Some(file) = &upstream.ca_file {
            self.item("", &format!("certificates: the authority in {} is trusted too", file.display()));
        }
        if let Some(file) = &upstream.client_cert_file {
            self.item("", &format!("the gateway presents the certificate in {}", file.display()));
        }
        self.item("callers", &format!("{}, HTTP/1.1 and h2c, not encrypted", list(&server.listen)));
        if server.listen.iter().any(|address| !address.ip().to_canonical().is_loopback()) {
            self.warn("Callers from elsewhere reach a listener without TLS.");
        }
        if let Some(tls) = &server.tls {
            self.item("", &format!("{}, TLS, certificate {}", list(&tls.listen), tls.cert_file.display()));
            if let Some(Clients { ca_file, auth }) = &tls.clients {
                let must = if *auth == ClientAuth::Required { "must" } else { "may" };
                self.item("", &format!("there callers {must} show a certificate signed as in {}", ca_file.display()));
            }
        }
        let guard = match &admin.token_file {
            Some(file) => format!("with the token in {}", file.display()),
            None => "no token: whoever is on this machine".to_owned(),
        };
        self.item("admin", &format!("{}, {guard}", admin.listen));
        let proxies =
            if server.trusted_proxies.is_empty() { "nobody".to_owned() } else { list(&server.trusted_proxies) };
        self.item("proxies", &format!("X-Forwarded-For is believed from {proxies}"));
        if server.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
            self.warn("Every address is a trusted proxy: any caller can claim any address.");
        }
    }

    fn identities(&mut self, identity: &Identity) {
        self.title("Who is calling");
        let cookie = identity.cookie.as_ref().map_or(String::new(), |name| format!(", cookie `{name}`"));
        self.item(
            "token",
            &format!("Authorization: Bearer, X-API-Key, ?token={cookie}; the first that is there counts"),
        );
        let address = if identity.send_client_ip { "with" } else { "without" };
        if identity.ttl.is_zero() {
            self.item("asked", &format!("the API is asked on every request, {address} the caller's address"));
            self.item("revoked", "a token revoked elsewhere is refused from the next request on");
        } else {
            let refresh = if identity.refresh_after < identity.ttl {
                format!("; from {} on it is asked again behind the answers", time(identity.refresh_after))
            } else {
                String::new()
            };
            let ttl = time(identity.ttl);
            self.item(
                "asked",
                &format!("the API, {address} the caller's address; its word is trusted for {ttl}{refresh}"),
            );
            self.item("revoked", &format!("a token revoked elsewhere is served for at most {ttl} more"));
        }
        let outage = if identity.ttl.is_zero() || identity.stale_if_error.is_zero() {
            "while the API cannot be asked, no token is trusted longer than that".to_owned()
        } else {
            let longest = time(identity.ttl + identity.stale_if_error);
            format!("while the API cannot be asked, a known token is trusted for at most {longest}")
        };
        self.item("outage", &outage);
        self.item("at once", "logout, token delete, reseller switch and employee changes that pass through here, and any 401 from the API");
        self.item(
            "invalid",
            &match identity.negative_ttl {
                Duration::ZERO => "not remembered".to_owned(),
                ttl => format!("refused for {} without asking again", time(ttl)),
            },
        );
    }

    fn answers(&mut self, cache: &Cache, identity: &Identity, change_log: Option<&ChangeLog>) {
        self.title("What is cached");
        self.item("what", "GET and HEAD /customer/{id}/name with no query but `token`; nothing else");
        self.item("for whom", "one caller's token, in one role, for one customer; never shared between tokens");
        let kept = |ttl: Duration| if ttl.is_zero() { "not kept".to_owned() } else { time(ttl) };
        let jitter = if cache.ttl_jitter == 0.0 || cache.ttl.is_zero() {
            String::new()
        } else {
            format!(
                ", up to {} % of it less, so that entries do not expire together",
                (cache.ttl_jitter * 1000.0).round() / 10.0
            )
        };
        self.item("how long", &format!("200: {}{jitter}", kept(cache.ttl)));
        self.item(
            "",
            &format!("404: {}    403: {}    others: not kept", kept(cache.not_found_ttl), kept(cache.forbidden_ttl)),
        );
        if cache.ttl.is_zero() {
            self.item("stale", "never");
            return;
        }
        let grace = |window: Duration, when: &str| match window {
            Duration::ZERO => format!("never {when}"),
            _ => format!("{} longer {when}", time(window)),
        };
        self.item("stale", &grace(cache.stale_while_revalidate, "while a new one is fetched"));
        self.item("", &grace(cache.stale_if_error, "while the API fails"));
        let usual = cache.ttl + cache.stale_while_revalidate;
        let worst = cache.ttl + cache.stale_while_revalidate.max(cache.stale_if_error);
        self.item("oldest", &format!("{} in usual times, {} while the API fails", time(usual), time(worst)));
        let elsewhere = match change_log {
            None => "within that time".to_owned(),
            Some(log) => {
                let (interval, file) = (time(log.interval), log.token_file.display());
                format!("as soon as the API's change log tells of them, read every {interval} with the token in {file}")
            }
        };
        self.item("changes", &format!("those that pass through here count at once, those made elsewhere {elsewhere}"));
        let session = time(identity.session);
        self.item("session", &format!("the API sees a busy caller before its session of {session} ends"));
    }

    fn roles(&mut self, redaction: &Redaction) {
        self.title("What each role sees");
        let Redaction { reveal_to, roots, public, secret_names, action } = redaction;
        for level in AccessLevel::ALL {
            let sees = if level >= *reveal_to { "everything: the API's own bytes" } else { "redacted, see below" };
            self.item(level.as_str(), sees);
        }
        if *reveal_to < AccessLevel::Reseller {
            self.warn(&format!("Roles below RESELLER see integration secrets: reveal_to is {reveal_to}."));
        }
        if *reveal_to == AccessLevel::LOWEST {
            self.warn("Nothing is redacted for anyone.");
        }
        self.line("");
        self.line("Redacted means:");
        self.item("under", &format!("{}, at any depth, only this is seen:", list(roots)));
        if public.is_empty() {
            self.item("", "nothing");
        }
        for selector in public {
            self.item("", selector);
        }
        if public.iter().any(|selector| selector == "**") {
            self.warn("The selector ** shows everything under the roots, secrets included.");
        }
        let names = if secret_names.is_empty() {
            "no further names are secret".to_owned()
        } else {
            format!("names that fit {} are secret too", list(secret_names))
        };
        self.item("elsewhere", &names);
        self.item(
            "a secret",
            match action {
                Action::Remove => "is taken out, name and value",
                Action::Null => "keeps its name; its value becomes null",
                Action::Mask => "keeps its name; a string becomes \"***\", anything else null",
            },
        );
        self.item("unclear", "an answer that cannot be redacted safely is a 502, for those roles");
    }

    fn forwarded(&mut self, forward: &Forward, redaction: &Redaction) {
        self.title("What is forwarded");
        self.item("all else", "passed on as it is, never cached");
        for rule in &forward.redact {
            let role = match rule.role {
                ForwardRole::Caller => "the caller's role",
                ForwardRole::Answer => "the role in the answer",
            };
            let names = if rule.secret_names.is_empty() {
                String::new()
            } else {
                format!(", and names that fit {}", list(&rule.secret_names))
            };
            self.item("redacted", &format!("{} by {role}: under the roots{names}", rule.path));
            let types = if rule.pass_types.is_empty() { "nothing".to_owned() } else { list(&rule.pass_types) };
            self.item("", &format!("besides JSON only {types} passes"));
        }
        let shown = format!("below {}, the first path that fits counts", redaction.reveal_to);
        self.item("", if forward.redact.is_empty() { "" } else { &shown });
        for usual in ["/customer/**", "/auth/**", "/log/**"] {
            if !forward.redact.iter().any(|rule| rule.path == usual || rule.path == "/**") {
                self.warn(&format!("No rule for {usual}, where the API gives the same secrets away."));
            }
        }
        for path in &forward.blocked {
            self.item("blocked", &format!("{path}: 403"));
        }
        if forward.blocked.is_empty() {
            self.warn("Nothing is blocked: callers may use what the API trusts this gateway's address for.");
        }
    }

    fn browsers(&mut self, cors: &Cors) {
        self.title("Web pages of other origins");
        self.item(
            "CORS",
            &match &cors.allowed_origins {
                AllowedOrigins::Any => {
                    "any origin may read the gateway's own responses, without credentials".to_owned()
                }
                AllowedOrigins::Listed(origins) if origins.is_empty() => {
                    "no fields are added; preflights are forwarded".to_owned()
                }
                AllowedOrigins::Listed(origins) => format!("{} may read the gateway's own responses", list(origins)),
            },
        );
    }

    fn fleet(&mut self, cluster: Option<&Cluster>) {
        self.title("Other gateways");
        let Some(cluster) = cluster else {
            self.item("none", "this gateway is by itself: it hears of no change that passes through another one");
            return;
        };
        self.item("through", &format!("{}, under names that begin with {}", cluster.url, cluster.name));
        self.item("sealed", &format!("with the first key in {}", cluster.key_file.display()));
        if let Some(file) = &cluster.password_file {
            let user = cluster.username.as_deref().unwrap_or("the default user");
            self.item("as", &format!("{user}, with the password in {}", file.display()));
        }
        let isolation = time(cluster.max_isolation);
        self.item(
            "cut off",
            &format!(
                "answers from memory for {isolation} more, then asks the API on every request until it has caught up"
            ),
        );
        let ready = if cluster.ready_when_isolated { "200" } else { "503" };
        self.item("", &format!("/readyz says {ready} then"));
        let answers = if cluster.tier {
            let most = time(cluster.tier_timeout);
            format!("answers and identities too, sealed; one of it is waited for {most} at most, then the API is asked")
        } else {
            "changes only; each gateway asks the API for its own answers".to_owned()
        };
        self.item("shared", &answers);
    }

    fn limits(&mut self, server: &Server, upstream: &Upstream, cache: &Cache, identity: &Identity) {
        self.title("Limits");
        let head = size(server.max_header_bytes);
        self.item(
            "callers",
            &format!(
                "{} connections; {} requests at once; heads of {head} within {}; idle for {}; a write without progress for {}",
                server.max_connections,
                server.max_requests,
                time(server.header_timeout),
                time(server.keepalive_timeout),
                time(server.write_timeout)
            ),
        );
        self.item(
            "descriptors",
            &format!("{} at least (LimitNOFILE, ulimits); with fewer, fewer connections", server.descriptors_needed()),
        );
        self.item(
            "API",
            &format!(
                "{} requests of the gateway's own at once; connected in {}, answered in {}; bodies of {}",
                upstream.max_in_flight,
                time(upstream.connect_timeout),
                time(upstream.timeout),
                size(upstream.max_body)
            ),
        );
        self.item("memory", &format!("{} of entries", size(cache.max_bytes)));
        self.item(
            "guessing",
            &format!(
                "{} invalid tokens a minute from one address; then unknown ones get 429",
                identity.max_invalid_per_minute
            ),
        );
        if !server.drain_delay.is_zero() {
            self.item("stopping", &format!("connections are taken for {} more at TERM", time(server.drain_delay)));
        }
        self.item("stopping", &format!("requests in flight have {} at TERM", time(server.drain)));
        let threads = if server.threads == 0 { "one per core".to_owned() } else { server.threads.to_string() };
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
            AccessLog::All if log.access.hits >= 1.0 => "a line for each request".into(),
            AccessLog::All => format!("a line for each request, but for {} of the hits only", log.access.hits),
            AccessLog::Errors => "a line for each failed request".into(),
            AccessLog::Off => "no lines for requests".into(),
        };
        self.item("lines", &format!("{format}, from level {level} on; {access}"));
        self.item("unread lines", &format!("up to {} wait, further ones are dropped and counted", size(log.buffer)));
        if let Some(Otlp { endpoint, sample }) = otlp {
            let part = format!("{} % of those without a trace", (sample * 1000.0).round() / 10.0);
            self.item(
                "spans",
                &format!("go to http://{}: requests that their callers trace, {part}", endpoint.authority()),
            );
        }
    }

    fn title(&mut self, title: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(&title.to_uppercase());
    }

    fn warn(&mut self, text: &str) {
        self.item("!", text);
    }

    /// A label and a text, which wraps under itself.
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
