//! The one list of everything that can be configured: path, kind, default, and the words that explain it. What reads
//! the file, the environment, the JSON Schema and the shipped `config/gateway.toml` all come from here, so none of them
//! can know a key that another does not.

use std::time::Duration;

use super::kind::Kind;

/// A key of the file.
pub(super) struct Key {
    /// Table and name, such as `cache.ttl`.
    pub path: &'static str,
    pub kind: Kind,
    pub need: Need,
    /// What it does, and when to change it; for the schema and the shipped file.
    pub doc: &'static str,
}

/// Whether a key must be written. The texts are TOML.
pub(super) enum Need {
    Default(&'static str),
    Optional {
        example: &'static str,
    },
    /// Where its table is there.
    Required {
        example: &'static str,
    },
}

/// A table of the file.
pub(super) struct Table {
    pub path: &'static str,
    pub presence: Presence,
    pub doc: &'static str,
}

pub(super) enum Presence {
    /// As good as there, even when it is not written.
    Always,
    /// Its absence means something.
    Optional,
    /// `[[path]]`, any number of times; what stands for it when there is none, as TOML.
    Repeated { default: &'static str },
}

impl Key {
    /// The part after the table's path.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// The path of the table that it stands in.
    pub(super) fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }

    /// A value that is right, as TOML: the default, where there is one.
    pub(super) fn sample(&self) -> &'static str {
        match self.need {
            Need::Default(text) => text,
            Need::Optional { example } | Need::Required { example } => example,
        }
    }
}

pub(super) fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

pub(super) fn table(path: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.path == path)
}

/// The keys of one table, in the order in which they are documented.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.table() == table)
}

const fn always(path: &'static str, doc: &'static str) -> Table {
    Table { path, presence: Presence::Always, doc }
}

const fn default(path: &'static str, kind: Kind, text: &'static str, doc: &'static str) -> Key {
    Key { path, kind, need: Need::Default(text), doc }
}

const fn required(path: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key { path, kind, need: Need::Required { example }, doc }
}

const fn optional(path: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key { path, kind, need: Need::Optional { example }, doc }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// May be switched off.
const SPAN: Kind = Kind::Duration { min: Duration::ZERO };
/// A wait that must end, and must begin.
const TIMEOUT: Kind = Kind::Duration { min: Duration::from_millis(1) };
const LEVELS: Kind =
    Kind::Word(&["NO_LOGIN", "PERSONAL", "VIEWER", "MANAGER", "OWNER", "RESELLER", "RESELLER_ADMIN", "ADMIN"]);
const ADDRESSES: Kind = Kind::List { of: &Kind::Listen, at_least: 1 };

pub(super) const TABLES: &[Table] = &[
    always("server", "The public listener: what callers connect to."),
    Table {
        path: "server.tls",
        presence: Presence::Optional,
        doc: "A TLS listener beside the plain one, HTTP/1.1 and h2. Leave the table out where something in front ends TLS.",
    },
    always("admin", "The admin listener: health, metrics, status page, cache purge, reload. Never on the public one."),
    always("upstream", "The API that the gateway stands in front of."),
    always(
        "identity",
        "How long the API's word on who a token belongs to is trusted. \"0s\" switches a remembering off.",
    ),
    always(
        "cache",
        "Answers of GET /customer/{id}/name, kept per caller, role and customer. \"0s\" switches a remembering off.",
    ),
    Table {
        path: "change_log",
        presence: Presence::Optional,
        doc: "The API's log of changes (GET /log/changeloglite), read at intervals so that changes made elsewhere than through \
              this gateway count soon. Without the table they count when an answer expires.",
    },
    always("redaction", "What lower roles must not see."),
    always("forward", "Everything but GET /customer/{id}/name is passed on to the API."),
    Table {
        path: "forward.redact",
        presence: Presence::Repeated {
            default: r#"[{ path = "/customer/**", secret_names = [] }, { path = "/auth/**", role = "answer", secret_names = [] }, { path = "/log/**", secret_names = [] }]"#,
        },
        doc: "Forwarded answers that are redacted below `redaction.reveal_to` as well; the first path that fits counts. \
              Writing one rule replaces all of the default ones, so repeat those that you keep. Not from the environment.",
    },
    always("cors", "Web pages of other origins that may read the gateway's own responses."),
    Table {
        path: "cluster",
        presence: Presence::Optional,
        doc: "Several gateways that tell each other of changes through a Redis or Valkey (6.2 or newer). Leave the table out \
              for a gateway by itself. Each gateway of the fleet needs the same url, name and key file: docs/FLEET.md.",
    },
    always("log", "Logs go to standard error, one line an event; never a token, a secret or a query."),
    Table {
        path: "otlp",
        presence: Presence::Optional,
        doc: "Requests as spans, for an OpenTelemetry collector (OTLP over HTTP). Only a build with the feature `otlp` can do it; others \
              refuse the table.",
    },
];

pub(super) const KEYS: &[Key] = &[
    default(
        "server.listen",
        ADDRESSES,
        r#"["127.0.0.1:8080"]"#,
        "Addresses for plain HTTP/1.1 and h2c: IP and port, never a name. \"0.0.0.0:8080\" listens on all of IPv4; do that \
         only behind something that ends TLS, or tokens travel in the clear.",
    ),
    default(
        "server.threads",
        Kind::Whole { min: 0, max: 1024 },
        "0",
        "Worker threads; 0: one per core. Set it where a container may use fewer cores than it sees.",
    ),
    default(
        "server.trusted_proxies",
        Kind::List { of: &Kind::Network, at_least: 0 },
        r#"["127.0.0.0/8"]"#,
        "Networks or addresses whose X-Forwarded-For is believed. Name your load balancers here and nothing wider: who is \
         trusted can claim any client address.",
    ),
    default(
        "server.drain",
        SPAN,
        r#""10s""#,
        "The longest wait, at TERM, for requests in flight; what is left is cut and the exit code is 1. Keep it, and drain_delay \
         with it, below the supervisor's own kill timeout.",
    ),
    default(
        "server.drain_delay",
        SPAN,
        r#""0s""#,
        "At TERM, how long new connections are still taken while /readyz says 503 already, before `drain` begins. As long as \
         a load balancer in front needs to notice; \"0s\" where nothing looks at /readyz.",
    ),
    optional(
        "server.upgrade_socket",
        Kind::File,
        r#""/run/telecomx-gateway/upgrade/socket""#,
        "Where `run --upgrade` and the process that it replaces meet. Its folder must be the gateway's own, of mode 0700; it is \
         made if it is missing. Unless set, it is in $RUNTIME_DIRECTORY or $XDG_RUNTIME_DIR; with neither, there is no upgrade.",
    ),
    default(
        "server.header_timeout",
        TIMEOUT,
        r#""10s""#,
        "Time for a caller to send a whole request head, however slowly it drips.",
    ),
    default(
        "server.write_timeout",
        TIMEOUT,
        r#""60s""#,
        "How long a client may accept nothing of a response before the gateway closes its connection, or its stream over \
         HTTP/2. It starts again with each piece of at most 64KiB, so a slow client that reads steadily gets all of it. \
         Shorter frees the memory of stalled responses sooner.",
    ),
    default(
        "server.max_connections",
        Kind::Whole { min: 1, max: 1_000_000 },
        "10000",
        "Maximum number of open connections of clients, all listeners together; further ones get 503. The limit on file \
         descriptors of the process (LimitNOFILE, ulimits) should be at least twice this plus max_requests. With a lower \
         one, a warning is logged and connections get 503 when three quarters of it are used.",
    ),
    optional(
        "server.max_connections_per_address",
        Kind::Whole { min: 1, max: 1_000_000 },
        "5000",
        "Maximum number of open connections of one client address (IPv6: of one /64 network); further ones get 503. Unless \
         set: half of max_connections, but at least 16. Addresses in trusted_proxies have no such limit.",
    ),
    default(
        "server.max_requests",
        Kind::Whole { min: 1, max: 1_000_000 },
        "2048",
        "Maximum number of requests under way, HTTP/2 streams included; further ones get 503. One client address (IPv6: one \
         /64 network) and one token may each use half of it, but at least 16; addresses in trusted_proxies may use all of \
         it. Each request may hold 64 KiB of memory, and a forwarded one a file descriptor.",
    ),
    default(
        "server.keepalive_timeout",
        TIMEOUT,
        r#""60s""#,
        "How long an idle connection is kept. Longer than the idle timeout of a load balancer in front, or it meets \
         closed connections.",
    ),
    default(
        "server.max_header_bytes",
        Kind::Size { min: KIB, max: MIB },
        r#""32KiB""#,
        "Largest request head; larger ones get 431. From 1KiB to 1MiB. Raise it only for callers with huge cookies.",
    ),
    default(
        "server.fast_path",
        Kind::Flag,
        "true",
        "Answer plain requests for a customer's name over HTTP/1.1 below pingora's HTTP session, which takes less CPU time; \
         the answers are the same. Off only to find out whether a fault lies there.",
    ),
    required("server.tls.listen", ADDRESSES, r#"["0.0.0.0:8443"]"#, "Addresses for TLS: IP and port."),
    required(
        "server.tls.cert_file",
        Kind::File,
        r#""/etc/telecomx-gateway/tls/cert.pem""#,
        "Certificate and its chain, PEM, leaf first. Read again when it changes; no restart is needed.",
    ),
    required(
        "server.tls.key_file",
        Kind::File,
        r#""/etc/telecomx-gateway/tls/key.pem""#,
        "Its private key, PEM. Readable by the gateway's user alone.",
    ),
    optional(
        "server.tls.client_ca_file",
        Kind::File,
        r#""/etc/telecomx-gateway/tls/clients.pem""#,
        "Authorities of callers' certificates, PEM. With it, a caller over TLS must show a certificate signed by one of them. \
         Read again when it changes. A certificate lets a caller in; who the caller is, the token says.",
    ),
    optional(
        "server.tls.client_auth",
        Kind::Word(&["required", "optional"]),
        r#""required""#,
        "With client_ca_file: \"required\", as if left out, or \"optional\", for a time of change: a caller may show no \
         certificate, but no wrong one.",
    ),
    default(
        "admin.listen",
        Kind::Listen,
        r#""127.0.0.1:9090""#,
        "One address. Anything but loopback needs token_file.",
    ),
    optional(
        "admin.token_file",
        Kind::File,
        r#""/etc/telecomx-gateway/admin-token""#,
        "A file with the bearer token that all but /livez and /readyz then need. Required where listen is not loopback. \
         Paths are best absolute; relative ones start at the working directory.",
    ),
    required(
        "upstream.url",
        Kind::UpstreamUrls,
        r#""https://api.telecomx.dk""#,
        "URL of the API: scheme, host and optional port, no path. A list of URLs spreads requests over several servers; \
         all URLs need the same scheme. All addresses of a name are used, and an address that fails is left out for a \
         time. A trailing dot keeps lookups from trying the search list of the system. The only key without a default.",
    ),
    optional(
        "upstream.ca_file",
        Kind::File,
        r#""/etc/telecomx-gateway/ca.pem""#,
        "Trust these certificate authorities next to those of the system, PEM. Set it for an API with a private certificate.",
    ),
    optional(
        "upstream.client_cert_file",
        Kind::File,
        r#""/etc/telecomx-gateway/client.pem""#,
        "Present this certificate chain to the API, PEM. Requires upstream.client_key_file.",
    ),
    optional(
        "upstream.client_key_file",
        Kind::File,
        r#""/etc/telecomx-gateway/client.key""#,
        "Private key of upstream.client_cert_file, PEM.",
    ),
    default("upstream.connect_timeout", TIMEOUT, r#""2s""#, "For the connection to the API, TLS included."),
    default(
        "upstream.timeout",
        TIMEOUT,
        r#""10s""#,
        "For the whole exchange of an intercepted request; then 504, or a stale answer. Forwarded requests may take longer.",
    ),
    default(
        "upstream.max_body",
        Kind::Size { min: KIB, max: GIB },
        r#""1MiB""#,
        "Largest answer to an intercepted request; larger ones are a 502. Known answers are some KiB.",
    ),
    default(
        "upstream.max_in_flight",
        Kind::Whole { min: 1, max: 100_000 },
        "256",
        "The gateway's own requests to the API at once; above it callers get 503 with Retry-After. Lower it to spare the API.",
    ),
    default(
        "upstream.keepalive_timeout",
        TIMEOUT,
        r#""4s""#,
        "Close connections to the API that are idle for this time. Keep it below the API's own limit (5 s for Node): a \
         request on a connection that the API is closing is sent again or, for POST, fails.",
    ),
    default(
        "upstream.max_idle_connections",
        Kind::Whole { min: 0, max: 100_000 },
        "128",
        "Idle connections to the API, all threads together. Further ones are closed after their exchange.",
    ),
    default(
        "identity.ttl",
        SPAN,
        r#""60s""#,
        "The revocation bound: a token revoked elsewhere is served at most this long. Shorter: safer, and more validations. \
         What passes through the gateway (logout, changed employees) counts at once.",
    ),
    default(
        "identity.refresh_after",
        SPAN,
        r#""30s""#,
        "From this age on a hit asks the API again in the background, so that busy callers never wait. At most ttl.",
    ),
    default(
        "identity.stale_if_error",
        SPAN,
        r#""2m""#,
        "How much longer than ttl a known token is trusted while the API cannot be asked. \"0s\": an unreachable API \
         locks everyone out after ttl.",
    ),
    default(
        "identity.negative_ttl",
        SPAN,
        r#""5s""#,
        "How long a token that the API called invalid is refused without asking again.",
    ),
    default(
        "identity.cookie",
        Kind::Cookie,
        r#""token""#,
        "Name of the cookie that may hold the token, after Authorization, X-API-Key and ?token=. \"\": cookies are not looked at.",
    ),
    default(
        "identity.send_client_ip",
        Kind::Flag,
        "true",
        "Send the caller's address along with a validation: the API then refuses a token used from another address than it \
         was made for. Only off where callers' addresses change or cannot be known.",
    ),
    default(
        "identity.session",
        TIMEOUT,
        r#""15m""#,
        "The API's sliding session. It must be longer than cache.ttl + cache.stale_while_revalidate, or a caller served from \
         the cache alone would be logged out. Change it only when the API's changes.",
    ),
    default(
        "identity.max_invalid_per_minute",
        Kind::Whole { min: 1, max: 1_000_000 },
        "60",
        "Invalid tokens from one address in a minute; above it unknown tokens get 429, known ones go on. Raise it where many \
         people share an address.",
    ),
    default(
        "cache.ttl",
        SPAN,
        r#""60s""#,
        "How long an answer (200) is fresh. Changes that pass through the gateway count at once; this bounds those made \
         elsewhere. \"0s\": every request asks the API.",
    ),
    default("cache.not_found_ttl", SPAN, r#""10s""#, "How long a 404 (no such customer) is kept."),
    default(
        "cache.forbidden_ttl",
        SPAN,
        r#""5s""#,
        "How long a 403 (no access to this customer) is kept. Short, so that new access counts soon.",
    ),
    default(
        "cache.stale_while_revalidate",
        SPAN,
        r#""30s""#,
        "This long after its end an answer is still given, while a new one is fetched behind it.",
    ),
    default(
        "cache.stale_if_error",
        SPAN,
        r#""5m""#,
        "This long after its end an answer is still given when the API fails. Longer: a longer outage goes unseen, with older data.",
    ),
    default(
        "cache.max_bytes",
        Kind::Size { min: MIB, max: 1024 * GIB },
        r#""256MiB""#,
        "Memory of the entries, bookkeeping included; at least 1MiB. An entry counts as 600 bytes beside its body.",
    ),
    default(
        "cache.ttl_jitter",
        Kind::Fraction { max: 0.5 },
        "0.1",
        "Part of the ttl, from 0 to 0.5, by which lives differ, so that entries do not expire together.",
    ),
    default(
        "cache.keep_fields",
        Kind::List { of: &Kind::KeptField, at_least: 0 },
        r#"["Content-Language", "Link", "Deprecation", "Sunset", "RateLimit", "RateLimit-Policy"]"#,
        "Response fields of the API that pass on the intercepted route, with a stored response too. RateLimit, \
         RateLimit-Policy and Server-Timing pass with their own response and are not stored. Every other field of the API's \
         is removed, except Retry-After, WWW-Authenticate and, without [cors], its CORS fields. A listed field must never \
         hold a secret: it is not redacted. After a change nothing that was stored before is used.",
    ),
    required(
        "change_log.token_file",
        Kind::File,
        r#""/etc/telecomx-gateway/change-log-token""#,
        "A file with a token of the API that may read the log, such as a machine token; alone, and read again each time. Its role \
         decides whose changes are heard of.",
    ),
    default(
        "change_log.interval",
        Kind::Duration { min: Duration::from_millis(100) },
        r#""5s""#,
        "Pause between two readings: how much later than the API writes it down a change counts here, at most, beside the time \
         that the API takes to answer. After failures it grows to a minute.",
    ),
    default(
        "change_log.overlap",
        SPAN,
        r#""1m""#,
        "How far each reading goes back beyond the one before, for entries that the API writes late; what comes again is known.",
    ),
    default(
        "redaction.reveal_to",
        LEVELS,
        r#""RESELLER""#,
        "The lowest role that sees the API's own bytes. Lower it and integration secrets reach more people.",
    ),
    default(
        "redaction.roots",
        Kind::List { of: &Kind::Member, at_least: 1 },
        r#"["integrations", "customerIntegrations"]"#,
        "Names of the members under which, at any depth, lower roles see only what `public` selects.",
    ),
    default(
        "redaction.public",
        Kind::List { of: &Kind::Selector, at_least: 0 },
        PUBLIC,
        "Selectors, relative to a root, of what lower roles may see; all else is secret. `*` one member, `**` any number of \
         them, `{a,b}` either; arrays are transparent; case matters. Add a new harmless member of the API here.",
    ),
    default(
        "redaction.secret_names",
        Kind::List { of: &Kind::NamePattern, at_least: 0 },
        r#"["*password*", "*secret*", "*token*", "*apikey*", "*api_key*", "*credential*", "*privatekey*"]"#,
        "Names that are secret for lower roles wherever they stand outside the roots (under them `public` decides). `*` is any \
         characters; letter case does not matter.",
    ),
    default(
        "redaction.action",
        Kind::Word(&["remove", "null", "mask"]),
        r#""remove""#,
        "What becomes of a secret: \"remove\" takes the member away, \"null\" leaves it with null, \"mask\" turns strings into \
         \"***\" and anything else into null. Change it for clients that insist on the member.",
    ),
    default(
        "forward.blocked",
        Kind::List { of: &Kind::PathPattern, at_least: 0 },
        BLOCKED,
        "Paths that get 403: the API trusts them by address, and would trust everyone behind the gateway. `*` is one segment, \
         `**` any number of them, `name.*` a name with any suffix. Add what your API trusts by address, and what is below \
         it.",
    ),
    required(
        "forward.redact.path",
        Kind::PathPattern,
        r#""/customer/**""#,
        "Path pattern; `/customer/**` fits `/customer` too.",
    ),
    default(
        "forward.redact.role",
        Kind::Word(&["caller", "answer"]),
        r#""caller""#,
        "Whose role decides: the \"caller\"'s, or the accessLevel in the \"answer\" itself (login, impersonate, validateToken).",
    ),
    optional(
        "forward.redact.secret_names",
        Kind::List { of: &Kind::NamePattern, at_least: 0 },
        "[]",
        "Secret names outside the roots on this path. []: only what stands under the roots is redacted, since other members \
         (a SIP password, a session token) may be the caller's own. Left out: redaction.secret_names.",
    ),
    default(
        "forward.redact.pass_types",
        Kind::List { of: &Kind::MediaType, at_least: 0 },
        r#"["text/csv", "image/*", "application/pdf", "application/zip"]"#,
        "Media types that pass unredacted below redaction.reveal_to; any other response that is not JSON is a 502. `image/*` \
         is every subtype except XML such as image/svg+xml. A body that begins with { or [ counts as JSON whatever its type, \
         and is a 502 if it is not JSON (RTF, NDJSON, some logs) or longer than 16MiB. List no type that can hold secrets.",
    ),
    default(
        "cors.allowed_origins",
        Kind::Origins,
        "[]",
        "Origins as browsers send them, e.g. [\"https://app.example\"]; [\"*\"]: any, without credentials. []: no CORS fields, \
         and preflights are forwarded like anything else. Every response that the gateway makes itself, errors included, has \
         the CORS fields for these origins; responses of the API keep the API's.",
    ),
    default(
        "cors.max_age",
        SPAN,
        "\"2h\"",
        "How long a browser may keep the permission of a preflight. Chromium keeps it for 2h at most. Browsers ask once for \
         each URL; with \"0s\" they ask before each request.",
    ),
    required(
        "cluster.url",
        Kind::RedisUrl,
        r#""rediss://redis.example:6379""#,
        "Where it is: redis://host:port/database, rediss:// for TLS, or unix:///path. What is kept there is sealed either way.",
    ),
    required(
        "cluster.key_file",
        Kind::File,
        r#""/etc/telecomx-gateway/cluster.keys""#,
        "The fleet's keys, a line each: an id and 64 hexadecimal digits, e.g. from `openssl rand -hex 32`. The first seals, each \
         opens: to change it, add a line below on every gateway, then swap the two, then take the old one away.",
    ),
    optional("cluster.username", Kind::Name, r#""gateway""#, "The user of its ACL. Left out: the default user."),
    optional(
        "cluster.password_file",
        Kind::File,
        r#""/etc/telecomx-gateway/cluster.password""#,
        "A file that holds the password alone. Left out: none is sent.",
    ),
    optional(
        "cluster.ca_file",
        Kind::File,
        r#""/etc/ssl/redis-ca.pem""#,
        "PEM file of the certificate authority that rediss:// is checked with. Left out: the system's authorities.",
    ),
    default(
        "cluster.name",
        Kind::Name,
        r#""telecomx-gateway""#,
        "What its keys there begin with. Another one for each fleet that shares a Redis.",
    ),
    default(
        "cluster.max_isolation",
        Kind::Duration { min: Duration::from_secs(1) },
        r#""10s""#,
        "How long a gateway that hears nothing from the others goes on answering from its memory; then it asks the API on every \
         request, until it has heard what it missed. At least 1s. Longer: a longer outage of Redis goes unnoticed by the API.",
    ),
    default("cluster.connect_timeout", TIMEOUT, r#""1s""#, "The longest wait for a connection to it, TLS included."),
    default(
        "cluster.timeout",
        TIMEOUT,
        r#""250ms""#,
        "The longest wait for its answer when it is told of a change. No caller waits for that.",
    ),
    default(
        "cluster.ready_when_isolated",
        Kind::Flag,
        "true",
        "Whether /readyz says 200 while the gateway hears nothing for longer than max_isolation. It still answers, with the API \
         behind each answer; `false` takes it out of a load balancer that has others.",
    ),
    default(
        "cluster.tier",
        Kind::Flag,
        "false",
        "Whether answers and identities are shared through it as well, sealed, so that the API is asked once for the whole fleet, \
         and a gateway that starts anew starts warm. It needs memory there: docs/FLEET.md says how much, and which eviction.",
    ),
    default(
        "cluster.tier_timeout",
        TIMEOUT,
        r#""50ms""#,
        "The longest that a caller's request waits for one word of it; then the API is asked. And while it does not answer at all, \
         nobody asks it.",
    ),
    default("log.format", Kind::Word(&["json", "text"]), r#""json""#, "\"json\" for machines, \"text\" for people."),
    default(
        "log.level",
        Kind::Word(&["error", "warn", "info", "debug", "trace"]),
        r#""info""#,
        "The least important lines that are written: error, warn, info, debug or trace.",
    ),
    default(
        "log.access",
        Kind::Word(&["all", "errors", "off"]),
        r#""all""#,
        "A line for each request (\"all\"), for those that failed (\"errors\"), or none (\"off\").",
    ),
    default(
        "log.hits",
        Kind::Fraction { max: 1.0 },
        "1.0",
        "Part of the hits that have a line where access is \"all\", from 0 to 1; all else has one each. Metrics count every request.",
    ),
    default(
        "log.buffer",
        Kind::Size { min: 64 * KIB, max: GIB },
        r#""4MiB""#,
        "Memory of lines that wait to be written. Requests never wait for whoever reads the log: lines for which there is no \
         room are dropped and counted (log_lines_dropped_total).",
    ),
    required(
        "otlp.endpoint",
        Kind::UpstreamUrl,
        r#""http://127.0.0.1:4318""#,
        "Where the collector is: http, host and port; /v1/traces is added. Best one on the same machine, for https is not spoken.",
    ),
    default(
        "otlp.sample",
        Kind::Fraction { max: 1.0 },
        "1.0",
        "Of the requests without a traceparent, the part that is exported. Of the others the caller's flag decides.",
    ),
];

/// What the API trusts by address, with everything below and with any suffix: its handlers may match more than the path.
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
