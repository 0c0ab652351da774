//! The table of everything that can be configured: path, type, default, documentation, effect of a
//! reload. The reader of file and environment, the JSON Schema, the reference and the shipped
//! `config/gateway.toml` are made from it, so that none of them can have a key that another lacks.

use std::time::Duration;

use super::value_type::{MIN_TIMEOUT, ValueType};

/// A key of the file.
pub(super) struct KeySpec {
    /// Table and name, such as `cache.ttl`.
    pub path: &'static str,
    pub value_type: ValueType,
    pub requirement: Requirement,
    pub reload: Reload,
    /// Effect, unit, and consequence of a change; for the schema, the reference and the shipped
    /// file.
    pub doc: &'static str,
}

/// Whether a key must be set. The texts are TOML.
pub(super) enum Requirement {
    Default(&'static str),
    Optional {
        example: &'static str,
    },
    /// Required if its table is set.
    Required {
        example: &'static str,
    },
}

/// Effect of a reload on a changed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// A reload applies the new value.
    Applies,
    /// The old value stays in force until a restart or an upgrade.
    NeedsRestart,
}

/// A table of the file.
pub(super) struct TableSpec {
    pub path: &'static str,
    pub presence: Presence,
    pub doc: &'static str,
}

pub(super) enum Presence {
    /// Has defaults for all keys that are not required, even if it is not written.
    Always,
    /// Its absence disables a feature.
    Optional,
    /// `[[path]]`, any number of times. `default`: its value, as TOML, without any.
    Repeated { default: &'static str },
}

impl KeySpec {
    /// The path without that of the table.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// The path of the table.
    pub(super) fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// A valid value as TOML: the default, if there is one.
    pub(super) fn example(&self) -> &'static str {
        match self.requirement {
            Requirement::Default(text) => text,
            Requirement::Optional { example } | Requirement::Required { example } => example,
        }
    }

    const fn needs_restart(mut self) -> Self {
        self.reload = Reload::NeedsRestart;
        self
    }
}

pub(super) fn key_spec(path: &str) -> Option<&'static KeySpec> {
    KEYS.iter().find(|spec| spec.path == path)
}

pub(super) fn table_spec(path: &str) -> Option<&'static TableSpec> {
    TABLES.iter().find(|spec| spec.path == path)
}

/// Whether a table is `[[path]]`.
pub(super) fn is_repeated(path: &str) -> bool {
    table_spec(path).is_some_and(|table| matches!(table.presence, Presence::Repeated { .. }))
}

/// The keys of a table, in the order of the documentation.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static KeySpec> {
    KEYS.iter().filter(move |spec| spec.table() == table)
}

const fn always(path: &'static str, doc: &'static str) -> TableSpec {
    TableSpec { path, presence: Presence::Always, doc }
}

const fn default(
    path: &'static str,
    value_type: ValueType,
    text: &'static str,
    doc: &'static str,
) -> KeySpec {
    KeySpec {
        path,
        value_type,
        requirement: Requirement::Default(text),
        reload: Reload::Applies,
        doc,
    }
}

const fn required(
    path: &'static str,
    value_type: ValueType,
    example: &'static str,
    doc: &'static str,
) -> KeySpec {
    KeySpec {
        path,
        value_type,
        requirement: Requirement::Required { example },
        reload: Reload::Applies,
        doc,
    }
}

const fn optional(
    path: &'static str,
    value_type: ValueType,
    example: &'static str,
    doc: &'static str,
) -> KeySpec {
    KeySpec {
        path,
        value_type,
        requirement: Requirement::Optional { example },
        reload: Reload::Applies,
        doc,
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A time that may be zero, which disables its feature.
const PERIOD: ValueType = ValueType::Duration { min: Duration::ZERO };
/// A maximum wait; zero would fail at once.
const TIMEOUT: ValueType = ValueType::Duration { min: MIN_TIMEOUT };
const LEVELS: ValueType = ValueType::Word(&[
    "NO_LOGIN",
    "PERSONAL",
    "VIEWER",
    "MANAGER",
    "OWNER",
    "RESELLER",
    "RESELLER_ADMIN",
    "ADMIN",
]);
const ADDRESSES: ValueType = ValueType::List { of: &ValueType::Listen, at_least: 1 };

pub(super) const TABLES: &[TableSpec] = &[
    always("server", "The public listener, which clients of the API connect to."),
    TableSpec {
        path: "server.tls",
        presence: Presence::Optional,
        doc: "A TLS listener for HTTP/1.1 and HTTP/2, next to the cleartext one. Omit the table if a \
         load balancer terminates TLS.",
    },
    TableSpec {
        path: "server.tls.certificates",
        presence: Presence::Repeated { default: "[]" },
        doc: "Further certificates of the TLS listener. A client selects one by its server name \
         (SNI); a certificate is used for the DNS names in its subjectAltName. For other names, and \
         without SNI, the gateway presents server.tls.cert_file. With several certificates for a name, \
         such as one with an RSA and one with an ECDSA key, the first that the client supports is used.",
    },
    always(
        "admin",
        "The admin listener: health, metrics, status page, cache purge, reload. Do not expose it \
         to clients.",
    ),
    always("upstream", "The API behind the gateway."),
    always(
        "identity",
        "The cache of the API's token validations, and the credentials of clients. \"0s\" disables a \
         cache.",
    ),
    always(
        "cache",
        "The cache of responses to GET /customer/{id}/name, separate for each caller, access \
         level and customer. \"0s\" disables caching for a status.",
    ),
    TableSpec {
        path: "change_log",
        presence: Presence::Optional,
        doc: "Poll the API's change log (GET /log/changeloglite), so that changes made elsewhere \
         invalidate the cache soon. Without this table such a change is visible when the cached \
         response expires.",
    },
    always(
        "redaction",
        "Secrets that are removed from responses for callers below an access level.",
    ),
    always(
        "forward",
        "Requests other than GET /customer/{id}/name, which are forwarded to the API.",
    ),
    TableSpec {
        path: "forward.redact",
        presence: Presence::Repeated {
            default: r#"[{ path = "/customer/**", secret_names = [] }, { path = "/auth/**", role = "answer", secret_names = [] }, { path = "/log/**", secret_names = [] }]"#,
        },
        doc: "Forwarded responses that are redacted below `redaction.reveal_to` as well. The first \
         rule whose path matches applies. Setting any rule replaces all default rules, so repeat \
         those that you keep. Cannot be set by environment variables.",
    },
    always("cors", "Web pages of other origins that may read the gateway's own responses."),
    TableSpec {
        path: "cluster",
        presence: Presence::Optional,
        doc: "Share invalidations between gateways through Redis or Valkey, version 6.2 or newer. Omit \
         the table for a single gateway. Each gateway of a cluster needs the same url, name and \
         key file. See docs/CLUSTER.md.",
    },
    always(
        "log",
        "Logs are written to standard error, one line per event. They never hold a token, a \
         secret or a query.",
    ),
    TableSpec {
        path: "otlp",
        presence: Presence::Optional,
        doc: "Export each request as a span to an OpenTelemetry collector (OTLP over HTTP). Requires a \
         build with the feature `otlp`; other builds refuse the table.",
    },
];

pub(super) const KEYS: &[KeySpec] = &[
    default(
        "server.listen",
        ADDRESSES,
        r#"["127.0.0.1:8080"]"#,
        "Addresses for cleartext HTTP/1.1 and HTTP/2 (h2c): IP address and port, no host name. \
         \"0.0.0.0:8080\" listens on all IPv4 addresses; use it only behind a proxy that \
         terminates TLS, because tokens are sent in cleartext.",
    )
    .needs_restart(),
    default(
        "server.threads",
        ValueType::Whole { min: 0, max: 1024 },
        "0",
        "Number of worker threads. 0 means one per core that the process may use: a CPU quota of \
         its cgroup (rounded down, at least 1) and its CPU affinity are respected. Set it to leave \
         cores to other processes, or in a container without a CPU limit, which would otherwise \
         use all cores of the node.",
    )
    .needs_restart(),
    default(
        "server.trusted_proxies",
        ValueType::List { of: &ValueType::Network, at_least: 0 },
        r#"["127.0.0.0/8"]"#,
        "Networks or addresses whose X-Forwarded-For is trusted. List your load balancers and no \
         others: a trusted peer can claim any client address.",
    ),
    default(
        "server.proxy_protocol",
        ValueType::List { of: &ValueType::Network, at_least: 0 },
        "[]",
        "Networks or addresses of load balancers that send a PROXY header (version 1 or 2) in front \
         of each connection. A listed peer must send it, and the client address in it replaces the \
         peer's. A PROXY header from any other peer gets 400. Set it where a load balancer forwards \
         TCP or TLS and sends no X-Forwarded-For.",
    ),
    default(
        "server.drain",
        PERIOD,
        r#""10s""#,
        "Maximum time to finish requests under way after SIGTERM. Requests that still run are \
         aborted and the process exits with 1. Keep the sum of drain and drain_delay below the \
         kill timeout of the service manager.",
    ),
    default(
        "server.drain_delay",
        PERIOD,
        r#""0s""#,
        "Time after SIGTERM during which new connections are still accepted while /readyz returns \
         503; `drain` begins afterwards. Set it to the time that a load balancer needs to notice; \
         keep \"0s\" if no load balancer reads /readyz.",
    ),
    optional(
        "server.upgrade_socket",
        ValueType::File,
        r#""/run/telecomx-gateway/upgrade/socket""#,
        "Path of the socket over which `run --upgrade` takes over from the running process. Its \
         directory must belong to the gateway's user with mode 0700; it is created if missing. \
         Default: a path in $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR; if neither is set, upgrades \
         are unavailable.",
    )
    .needs_restart(),
    default(
        "server.header_timeout",
        TIMEOUT,
        r#""10s""#,
        "Maximum time for a client to send a whole request head.",
    ),
    default(
        "server.write_timeout",
        TIMEOUT,
        r#""60s""#,
        "Close a client's connection (over HTTP/2: reset its stream) if it accepts no byte of a \
         response for this time. The time starts again with each piece of at most 64KiB, so a \
         slow client that reads steadily receives the whole response. A shorter time frees the \
         memory of stalled responses sooner.",
    ),
    default(
        "server.max_connections",
        ValueType::Whole { min: 1, max: 1_000_000 },
        "10000",
        "Maximum number of open client connections on all listeners together; further connections \
         receive 503. The file descriptor limit of the process (LimitNOFILE, ulimits) should be \
         at least twice this plus max_requests. With a lower limit a warning is logged, and \
         connections receive 503 when three quarters of it are used.",
    ),
    optional(
        "server.max_connections_per_address",
        ValueType::Whole { min: 1, max: 1_000_000 },
        "5000",
        "Maximum number of open connections of one client address (IPv6: one /64 network); \
         further connections receive 503. Default: half of max_connections, at least 16. \
         Addresses in trusted_proxies have no such limit.",
    ),
    default(
        "server.max_requests",
        ValueType::Whole { min: 1, max: 1_000_000 },
        "2048",
        "Maximum number of requests under way, HTTP/2 streams included; further requests receive \
         503. One client address (IPv6: one /64 network) and one token may each use half of it, \
         at least 16; addresses in trusted_proxies may use all of it. Each request may hold 64 \
         KiB of memory, and a forwarded one a file descriptor.",
    ),
    default(
        "server.keepalive_timeout",
        TIMEOUT,
        r#""75s""#,
        "Close a client connection that is idle for this time. Set it longer than the idle \
         timeout of a load balancer in front, such as 60 s for AWS ALB and ingress-nginx or 600 s for \
         Google Cloud; otherwise the load balancer sends requests on \
         connections that are being closed.",
    ),
    default(
        "server.max_header_bytes",
        ValueType::Size { min: KIB, max: MIB },
        r#""32KiB""#,
        "Maximum size of a request head, 1KiB to 1MiB; larger ones receive 431. Raise it only for \
         clients with large cookies.",
    ),
    default(
        "server.fast_path",
        ValueType::Flag,
        "true",
        "Answer GET and HEAD /customer/{id}/name without building a session, which takes less CPU \
         time. The responses are the same. Disable it only to find out whether a fault lies \
         there.",
    ),
    required(
        "server.tls.listen",
        ADDRESSES,
        r#"["0.0.0.0:8443"]"#,
        "Addresses for TLS: IP address and port.",
    )
    .needs_restart(),
    required(
        "server.tls.cert_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/tls/cert.pem""#,
        "Certificate chain in PEM format, leaf first. It is reloaded when the file changes, \
         without a restart.",
    ),
    required(
        "server.tls.key_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/tls/key.pem""#,
        "Private key of the certificate in PEM format. Only the gateway's user should be able to \
         read it.",
    ),
    optional(
        "server.tls.client_ca_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/tls/clients.pem""#,
        "Certificate authorities for client certificates in PEM format. If set, a TLS client must \
         present a certificate signed by one of them. It is reloaded when the file changes. The \
         certificate only admits the client; the token still identifies the caller.",
    ),
    optional(
        "server.tls.client_auth",
        ValueType::Word(&["required", "optional"]),
        r#""required""#,
        "Whether client_ca_file makes a client certificate \"required\" (default) or \
         \"optional\". With \"optional\" a client may omit the certificate, but an invalid one is \
         refused; use it while clients are being migrated.",
    ),
    required(
        "server.tls.certificates.cert_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/tls/other.pem""#,
        "Certificate chain in PEM format, leaf first. It is reloaded when the file changes.",
    ),
    required(
        "server.tls.certificates.key_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/tls/other.key""#,
        "Private key of the certificate in PEM format.",
    ),
    default(
        "admin.listen",
        ValueType::Listen,
        r#""127.0.0.1:9090""#,
        "Address of the admin listener. An address other than loopback requires token_file.",
    )
    .needs_restart(),
    optional(
        "admin.token_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/admin-token""#,
        "File with the bearer token that every path except /livez and /readyz then requires. It \
         is required if listen is not a loopback address. Use an absolute path; a relative one is \
         resolved against the working directory.",
    )
    .needs_restart(),
    required(
        "upstream.url",
        ValueType::UpstreamUrls,
        r#""https://api.telecomx.dk""#,
        "URL of the API: scheme, host and optional port, no path. Required. A list of URLs \
         spreads requests over several servers; all URLs must have the same scheme. All addresses \
         of a host name are used; an address that fails is left out temporarily. A trailing dot \
         keeps lookups from trying the system's search domains.",
    )
    .needs_restart(),
    optional(
        "upstream.ca_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/ca.pem""#,
        "Additional trusted certificate authorities in PEM format, next to those of the system. \
         Set it for an API with a private certificate.",
    )
    .needs_restart(),
    optional(
        "upstream.client_cert_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/client.pem""#,
        "Certificate chain that is presented to the API, in PEM format. Requires \
         upstream.client_key_file.",
    )
    .needs_restart(),
    optional(
        "upstream.client_key_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/client.key""#,
        "Private key of upstream.client_cert_file in PEM format.",
    )
    .needs_restart(),
    default(
        "upstream.connect_timeout",
        TIMEOUT,
        r#""2s""#,
        "Maximum time to connect to the API, TLS handshake included.",
    )
    .needs_restart(),
    default(
        "upstream.timeout",
        TIMEOUT,
        r#""10s""#,
        "Maximum time of a whole request to the API for the intercepted route; afterwards the \
         client receives a stale response or 504. Forwarded requests may take longer.",
    )
    .needs_restart(),
    default(
        "upstream.max_body",
        ValueType::Size { min: KIB, max: GIB },
        r#""1MiB""#,
        "Maximum size of the API's response on the intercepted route; a larger one becomes 502. \
         Known responses have a few KiB.",
    )
    .needs_restart(),
    default(
        "upstream.max_in_flight",
        ValueType::Whole { min: 1, max: 100_000 },
        "256",
        "Maximum number of concurrent requests of the gateway's own to the API; further ones \
         wait, then clients receive 503 with Retry-After. Lower it to protect the API.",
    )
    .needs_restart(),
    default(
        "upstream.keepalive_timeout",
        TIMEOUT,
        r#""4s""#,
        "Close connections to the API that are idle for this time. Keep it below the API's own \
         limit (5 s for Node): a request on a connection that the API is closing is repeated or, \
         for POST, fails.",
    )
    .needs_restart(),
    default(
        "upstream.max_idle_connections",
        ValueType::Whole { min: 0, max: 100_000 },
        "128",
        "Maximum number of idle connections to the API, all threads together. Further ones are \
         closed after their exchange.",
    )
    .needs_restart(),
    default(
        "identity.ttl",
        PERIOD,
        r#""60s""#,
        "Time for which a validation is cached. It bounds how long a token that was revoked \
         elsewhere still works. A shorter time causes more validations. Changes that pass through \
         the gateway (logout, changed employees) apply at once.",
    ),
    default(
        "identity.refresh_after",
        PERIOD,
        r#""30s""#,
        "Age from which a cached validation is renewed in the background, so that active callers \
         do not wait. At most identity.ttl.",
    ),
    default(
        "identity.stale_if_error",
        PERIOD,
        r#""2m""#,
        "Additional time after identity.ttl for which a cached validation is used while the API \
         cannot be reached. With \"0s\" an unreachable API locks out every caller after \
         identity.ttl.",
    ),
    default(
        "identity.negative_ttl",
        PERIOD,
        r#""5s""#,
        "Time for which a token that the API called invalid is refused without another validation.",
    ),
    default(
        "identity.cookie",
        ValueType::Cookie,
        r#""token""#,
        "Name of the cookie that may hold the token, after Authorization, X-API-Key and ?token=. \
         \"\" disables cookies as credentials.",
    ),
    default(
        "identity.send_client_ip",
        ValueType::Flag,
        "true",
        "Send the client's address with each validation, so that the API refuses a token that is \
         used from another address than it was issued for. Disable it only where client addresses \
         change or are unknown.",
    ),
    default(
        "identity.session",
        TIMEOUT,
        r#""15m""#,
        "The API's session timeout, which each of its requests extends. It must be longer than \
         cache.ttl plus cache.stale_while_revalidate, or a caller who is served from the cache \
         only would be logged out. Change it only if the API's timeout changes.",
    ),
    default(
        "identity.max_invalid_per_minute",
        ValueType::Whole { min: 1, max: 1_000_000 },
        "60",
        "Maximum number of invalid tokens per client address and minute; further unknown tokens \
         receive 429, cached ones still work. Raise it where many users share an address.",
    ),
    default(
        "cache.ttl",
        PERIOD,
        r#""60s""#,
        "Time for which a 200 response is fresh. Changes that pass through the gateway invalidate \
         it at once; this bounds changes made elsewhere. With \"0s\" every request is sent to the \
         API.",
    ),
    default(
        "cache.not_found_ttl",
        PERIOD,
        r#""10s""#,
        "Time for which a 404 response (no such customer) is cached.",
    ),
    default(
        "cache.forbidden_ttl",
        PERIOD,
        r#""5s""#,
        "Time for which a 403 response (no access to this customer) is cached. Keep it short, so \
         that granted access applies soon.",
    ),
    default(
        "cache.stale_while_revalidate",
        PERIOD,
        r#""30s""#,
        "Time after expiry during which a stale response is still served while it is refreshed in \
         the background.",
    ),
    default(
        "cache.stale_if_error",
        PERIOD,
        r#""5m""#,
        "Time after expiry during which a stale response is still served if the API fails. A \
         longer time hides longer outages, with older data.",
    ),
    default(
        "cache.max_bytes",
        ValueType::Size { min: MIB, max: 1024 * GIB },
        r#""256MiB""#,
        "Maximum memory of the cache, bookkeeping included; at least 1MiB. An entry counts as its \
         body plus 600 bytes.",
    )
    .needs_restart(),
    default(
        "cache.ttl_jitter",
        ValueType::Fraction { max: 0.5 },
        "0.1",
        "Fraction of cache.ttl, 0 to 0.5, by which lifetimes are shortened at random, so that \
         entries do not expire together.",
    ),
    default(
        "cache.keep_fields",
        ValueType::List { of: &ValueType::KeptField, at_least: 0 },
        r#"["Content-Language", "Link", "Deprecation", "Sunset", "RateLimit", "RateLimit-Policy"]"#,
        "Response fields of the API that are passed on the intercepted route and stored with the \
         response. RateLimit, RateLimit-Policy and Server-Timing are passed with their own \
         response and not stored. All other fields are removed, except Retry-After, \
         WWW-Authenticate and, without [cors], CORS fields. A listed field is not redacted, so it \
         must never hold a secret. Changing the list discards all cached responses.",
    ),
    required(
        "change_log.token_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/change-log-token""#,
        "File that holds only a token of the API that may read the change log, such as a machine \
         token. It is read before each poll. The access level of the token decides whose changes \
         it shows.",
    )
    .needs_restart(),
    default(
        "change_log.interval",
        ValueType::Duration { min: Duration::from_millis(100) },
        r#""5s""#,
        "Pause between two polls, and so the maximum delay until a change applies here, in \
         addition to the API's response time. After failures the pause grows to one minute.",
    )
    .needs_restart(),
    default(
        "change_log.overlap",
        PERIOD,
        r#""1m""#,
        "Time span before the previous poll that each poll reads again, for entries that the API \
         writes late. Repeated entries are ignored.",
    )
    .needs_restart(),
    default(
        "redaction.reveal_to",
        LEVELS,
        r#""RESELLER""#,
        "Lowest access level that receives the API's bytes unchanged. A lower one reveals \
         integration secrets to more callers.",
    ),
    default(
        "redaction.roots",
        ValueType::List { of: &ValueType::Member, at_least: 1 },
        r#"["integrations", "customerIntegrations"]"#,
        "Names of members under which, at any depth, lower access levels see only what `public` \
         selects.",
    ),
    default(
        "redaction.public",
        ValueType::List { of: &ValueType::Selector, at_least: 0 },
        PUBLIC,
        "Selectors, relative to a root, of what lower access levels may see; everything else is \
         secret. `*` matches one member, `**` any number of members, `{a,b}` either; arrays are \
         transparent; matching is case-sensitive. Add new harmless members of the API here.",
    ),
    default(
        "redaction.secret_names",
        ValueType::List { of: &ValueType::NamePattern, at_least: 0 },
        r#"["*password*", "*secret*", "*token*", "*apikey*", "*api_key*", "*credential*", "*privatekey*"]"#,
        "Names of members that are secret for lower access levels outside the roots (under a root \
         `public` decides). `*` matches any characters; matching ignores case.",
    ),
    default(
        "redaction.action",
        ValueType::Word(&["remove", "null", "mask"]),
        r#""remove""#,
        "What happens to a secret: \"remove\" removes the member, \"null\" replaces its value \
         with null, \"mask\" replaces strings with \"***\" and other values with null. Change it \
         for clients that require the member.",
    ),
    default(
        "forward.blocked",
        ValueType::List { of: &ValueType::PathPattern, at_least: 0 },
        BLOCKED,
        "Paths that receive 403, because the API trusts requests for them by source address and \
         would trust every client of the gateway. `*` matches one segment, `**` any number of \
         segments, `name.*` a name with any suffix. Add every path that your API trusts by \
         address, and the paths below it.",
    ),
    required(
        "forward.redact.path",
        ValueType::PathPattern,
        r#""/customer/**""#,
        "Path pattern; `/customer/**` matches `/customer` too.",
    ),
    default(
        "forward.redact.role",
        ValueType::Word(&["caller", "answer"]),
        r#""caller""#,
        "Which access level decides: that of the \"caller\", or the accessLevel in the response \
         (\"answer\"; for login, impersonate, validateToken).",
    ),
    optional(
        "forward.redact.secret_names",
        ValueType::List { of: &ValueType::NamePattern, at_least: 0 },
        "[]",
        "Secret names outside the roots on this path. With [] only members under the roots are \
         redacted, since other members (a SIP password, a session token) may be the caller's own. \
         Default: redaction.secret_names.",
    ),
    default(
        "forward.redact.pass_types",
        ValueType::List { of: &ValueType::MediaType, at_least: 0 },
        r#"["text/csv", "image/*", "application/pdf", "application/zip"]"#,
        "Media types that pass unredacted below redaction.reveal_to; every other response that is \
         not JSON becomes 502. `image/*` matches every subtype except XML such as image/svg+xml. \
         A body that begins with { or [ is treated as JSON whatever its type, and becomes 502 if \
         it is not JSON (RTF, NDJSON, some logs) or longer than 16MiB. List no type that can hold \
         secrets.",
    ),
    default(
        "cors.allowed_origins",
        ValueType::Origins,
        "[]",
        "Allowed origins as browsers send them, for example [\"https://app.example\"]; [\"*\"] \
         allows any origin, without credentials; \"loopback\" allows every page of this machine, \
         such as http://localhost:5173, with credentials, for development. With [] the gateway adds no CORS fields and \
         forwards preflights. Every response that the gateway makes itself, errors included, has \
         the CORS fields for these origins; responses of the API keep the API's.",
    ),
    default(
        "cors.max_age",
        PERIOD,
        "\"2h\"",
        "Time for which a browser may cache the result of a preflight; Chromium caches it for at \
         most 2h. Browsers send one preflight per URL; with \"0s\" one before each request.",
    ),
    required(
        "cluster.url",
        ValueType::RedisUrl,
        r#""rediss://redis.example:6379""#,
        "URL of Redis: redis://host:port/database, rediss:// for TLS, or unix:///path. Values are \
         encrypted in each case.",
    )
    .needs_restart(),
    required(
        "cluster.key_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/cluster.keys""#,
        "File with the keys of the cluster, one per line: an id and 64 hexadecimal digits, for \
         example from `openssl rand -hex 32`. The first key encrypts, all keys decrypt. To \
         rotate, add a line at the end on every gateway, then swap the two, then remove the old \
         one.",
    )
    .needs_restart(),
    optional(
        "cluster.username",
        ValueType::Name,
        r#""gateway""#,
        "User name for Redis (ACL). Default: Redis' default user.",
    )
    .needs_restart(),
    optional(
        "cluster.password_file",
        ValueType::File,
        r#""/etc/telecomx-gateway/cluster.password""#,
        "File that holds only the password for Redis. Default: no password is sent.",
    )
    .needs_restart(),
    optional(
        "cluster.ca_file",
        ValueType::File,
        r#""/etc/ssl/redis-ca.pem""#,
        "Certificate authorities for rediss:// in PEM format. Default: those of the system.",
    )
    .needs_restart(),
    default(
        "cluster.name",
        ValueType::Name,
        r#""telecomx-gateway""#,
        "Prefix of all keys in Redis. Use a different one for each cluster that shares a Redis.",
    )
    .needs_restart(),
    default(
        "cluster.max_isolation",
        ValueType::Duration { min: Duration::from_secs(1) },
        r#""10s""#,
        "Maximum time for which a gateway that receives nothing from Redis still serves cached \
         responses; afterwards it sends every request to the API until it has caught up. At least \
         1s. A longer time spares the API during longer outages of Redis, and delays changes made \
         through other gateways by as much.",
    )
    .needs_restart(),
    default(
        "cluster.connect_timeout",
        TIMEOUT,
        r#""1s""#,
        "Maximum time to connect to Redis, TLS handshake included.",
    )
    .needs_restart(),
    default(
        "cluster.timeout",
        TIMEOUT,
        r#""250ms""#,
        "Maximum time for Redis to answer when an invalidation is published. No client request \
         waits for it.",
    )
    .needs_restart(),
    default(
        "cluster.ready_when_isolated",
        ValueType::Flag,
        "true",
        "Whether /readyz returns 200 while the gateway has received nothing from Redis for longer \
         than max_isolation. It still serves every request from the API then; `false` removes it \
         from a load balancer that has other gateways.",
    )
    .needs_restart(),
    default(
        "cluster.tier",
        ValueType::Flag,
        "false",
        "Also share responses and validations through Redis, encrypted, so that the API is asked \
         once per cluster and a new gateway starts with a warm cache. It needs memory in Redis: \
         docs/CLUSTER.md states how much, and which eviction policy.",
    )
    .needs_restart(),
    default(
        "cluster.tier_timeout",
        TIMEOUT,
        r#""50ms""#,
        "Maximum time that a client's request waits for a value from Redis; afterwards the API is \
         asked. While Redis does not answer at all, no request waits.",
    )
    .needs_restart(),
    default(
        "log.format",
        ValueType::Word(&["json", "text"]),
        r#""json""#,
        "\"json\" for log processors, \"text\" for people.",
    )
    .needs_restart(),
    default(
        "log.level",
        ValueType::Word(&["error", "warn", "info", "debug", "trace"]),
        r#""info""#,
        "Lowest level that is logged: error, warn, info, debug or trace.",
    ),
    default(
        "log.access",
        ValueType::Word(&["all", "errors", "off"]),
        r#""all""#,
        "Which requests get an access log line: \"all\", \"errors\" (failed ones) or \"off\".",
    ),
    default(
        "log.hits",
        ValueType::Fraction { max: 1.0 },
        "1.0",
        "Fraction of cache hits that get an access log line if access is \"all\", 0 to 1. All \
         other requests get one each. Metrics count every request.",
    ),
    default(
        "log.customer",
        ValueType::Flag,
        "false",
        "Whether access log lines contain the customer id of the path, for requests of \
         /customer/{id} and below. The id is personal data: with it, the log shows which employee's \
         requests concerned which customer, and its retention and access must be governed like \
         those of customer data. Without it, no access log line contains an id.",
    ),
    default(
        "log.buffer",
        ValueType::Size { min: 64 * KIB, max: GIB },
        r#""4MiB""#,
        "Memory for log lines that wait to be written. Requests never wait for the log: lines \
         that do not fit are dropped and counted (log_lines_dropped_total).",
    )
    .needs_restart(),
    required(
        "otlp.endpoint",
        ValueType::UpstreamUrl,
        r#""http://127.0.0.1:4318""#,
        "URL of the collector: http, host and port; /v1/traces is appended. https is not \
         supported, so run the collector on the same machine.",
    )
    .needs_restart(),
    default(
        "otlp.sample",
        ValueType::Fraction { max: 1.0 },
        "1.0",
        "Fraction of requests without a traceparent that are exported, 0 to 1. For the others the \
         client's sampled flag decides.",
    )
    .needs_restart(),
];

/// What the API trusts by address, with everything below and with any suffix: its handlers may
/// match more than the path.
const BLOCKED: &str = r#"[
  "/tools/realtime",
  "/tools/realtime/**",
  "/tools/realtime.*/**",
  "/porting/*/notify",
  "/porting/*/notify/**",
  "/porting/*/notify.*/**",
  "/pbx/app/notification/send/callerid",
  "/pbx/app/notification/send/callerid/**",
  "/pbx/app/notification/send/callerid.*/**",
]"#;

const PUBLIC: &str = r#"[
  "**.enabled",
  "**.economic.accrual",
  "**.uniconta.companyId",
  "**.criipto.{clientId,domain,clientIdRealm}",
  "**.also.customerId",
  "**.ms365.{tenantId,verified,calendarSync,contactsSync,orgContactsSync,presenceSync}",
  "**.ms365.calendarShowAsMappings.*",
  "**.ms365.calendarCategoryMappings.{category,presence}",
  "**.mvnoPrivate.portal",
]"#;
