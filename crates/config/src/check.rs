//! Relations between keys, and the files that keys name. A relation is not checked if one of its
//! keys has a fault.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use super::address;
use super::diagnostic::{Fault, Problem};
use super::model::{Config, RedisEndpoint};
use super::resolve::KeyLocations;
use super::units::show_duration;
use redact::{Policy, Rule, RuleError};

/// Maximum number of bytes that are read to find out whether a file is empty.
const MAX_PROBE_BYTES: u64 = 64 << 10;

/// Checks the relations between keys. Pure.
pub(super) fn between_keys(config: &Config, locations: &KeyLocations) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut require = |paths: &[&'static str], holds: bool, fault: &dyn Fn() -> Fault| {
        if !holds && locations.are_valid(paths) {
            problems.push(Problem::new(locations.first_of(paths), paths[0], fault()));
        }
    };
    let encrypted = config.otlp.as_ref().is_some_and(|otlp| otlp.endpoint.tls);
    require(&["otlp.endpoint"], !encrypted, &|| {
        Fault::new("https is not supported", "use the http URL of a collector on this machine")
    });
    let identity = &config.identity;
    // Without a cache of validations there is nothing to refresh.
    require(
        &["identity.refresh_after", "identity.ttl"],
        identity.ttl.is_zero() || identity.refresh_after <= identity.ttl,
        &|| {
            let (after, ttl) = (show_duration(identity.refresh_after), show_duration(identity.ttl));
            Fault::new(
                format!("{after:?} is longer than identity.ttl ({ttl:?})"),
                format!("expected at most {ttl:?}"),
            )
        },
    );
    let cache = &config.cache;
    let max_silence = cache.ttl + cache.stale_while_revalidate;
    let paths = ["cache.ttl", "cache.stale_while_revalidate", "identity.session"];
    require(&paths, max_silence < identity.session, &|| {
        let (silence, session) = (show_duration(max_silence), show_duration(identity.session));
        Fault::new(
            format!(
                "the sum with cache.stale_while_revalidate, {silence:?}, is not less than \
                 identity.session ({session:?})"
            ),
            "shorten one of them; otherwise the API logs out a caller who is served from the cache only",
        )
    });
    let upstream = &config.upstream;
    let pair = ["upstream.client_cert_file", "upstream.client_key_file"];
    for (this, that, is_set, other_is_set) in [
        (pair[0], pair[1], upstream.client_cert_file.is_some(), upstream.client_key_file.is_some()),
        (pair[1], pair[0], upstream.client_key_file.is_some(), upstream.client_cert_file.is_some()),
    ] {
        require(&[this], !is_set || other_is_set, &|| {
            Fault::new(format!("requires {that}"), format!("set {that}, or remove {this}"))
        });
    }
    let admin = &config.admin;
    let is_protected = admin.listen.ip().to_canonical().is_loopback() || admin.token_file.is_some();
    require(&["admin.listen", "admin.token_file"], is_protected, &|| {
        let remedy = "set admin.token_file, or listen on loopback, for example \"127.0.0.1:9090\"";
        Fault::new(
            format!(
                "\"{}\" is not a loopback address and admin.token_file is not set",
                admin.listen
            ),
            remedy,
        )
    });
    let verifies_clients = config.server.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    let paths = ["server.tls.client_auth", "server.tls.client_ca_file"];
    require(
        &paths,
        verifies_clients || config.server.tls.is_none() || !locations.is_set(paths[0]),
        &|| {
            Fault::new(
                "has no effect without client_ca_file",
                "set client_ca_file, or remove client_auth",
            )
        },
    );
    let listeners: Vec<(&str, SocketAddr)> = config.listeners().collect();
    for (index, (path, address)) in listeners.iter().enumerate() {
        for (other_path, other) in &listeners[..index] {
            require(&[path, other_path], !address::overlap(*address, *other), &|| {
                let cause = format!("\"{address}\" overlaps with \"{other}\" of {other_path}");
                Fault::new(cause, "give each listener its own address or port")
            });
        }
    }
    if let Some(cluster) = &config.cluster {
        let tls = matches!(cluster.url.endpoint, RedisEndpoint::Host { tls: true, .. });
        require(&["cluster.ca_file", "cluster.url"], tls || cluster.ca_file.is_none(), &|| {
            Fault::new(
                "has no effect without TLS",
                "use rediss:// in cluster.url, or remove ca_file",
            )
        });
        let has_password = cluster.username.is_none() || cluster.password_file.is_some();
        require(&["cluster.username", "cluster.password_file"], has_password, &|| {
            Fault::new(
                "requires cluster.password_file",
                "set cluster.password_file, or remove username",
            )
        });
    }
    problems.extend(redaction_policy(config, locations));
    problems
}

/// Compiles the redaction rules; each error has the location of its key.
fn redaction_policy(config: &Config, locations: &KeyLocations) -> Vec<Problem> {
    let policy = match Policy::compile(&config.redaction.rules()) {
        Ok(policy) => policy,
        Err(errors) => {
            return errors
                .iter()
                .map(|error| rule_problem(error, key_of(error), locations))
                .collect();
        }
    };
    let rules =
        config.forward.redact.iter().map(|rule| policy.for_forward(&rule.secret_names, false));
    let errors = rules.filter_map(Result::err).flatten();
    errors.map(|error| rule_problem(&error, "forward.redact", locations)).collect()
}

fn key_of(error: &RuleError) -> &'static str {
    match error.which {
        Rule::Root => "redaction.roots",
        Rule::Public => "redaction.public",
        Rule::SecretName => "redaction.secret_names",
    }
}

fn rule_problem(error: &RuleError, key: &'static str, locations: &KeyLocations) -> Problem {
    let cause = format!("invalid rule \"{}\"", error.text);
    Problem::new(locations.first_of(&[key]), key, Fault::new(cause, error.reason.clone()))
}

/// Checks that each named file can be read and is not empty. The contents are not kept.
pub(super) fn files(config: &Config, locations: &KeyLocations) -> Vec<Problem> {
    let tls = config.server.tls.as_ref();
    let cluster = config.cluster.as_ref();
    let named = [
        ("server.tls.cert_file", tls.map(|tls| &tls.cert_file)),
        ("server.tls.key_file", tls.map(|tls| &tls.key_file)),
        (
            "server.tls.client_ca_file",
            tls.and_then(|tls| tls.clients.as_ref()).map(|clients| &clients.ca_file),
        ),
        ("admin.token_file", config.admin.token_file.as_ref()),
        ("upstream.ca_file", config.upstream.ca_file.as_ref()),
        ("upstream.client_cert_file", config.upstream.client_cert_file.as_ref()),
        ("upstream.client_key_file", config.upstream.client_key_file.as_ref()),
        ("cluster.key_file", cluster.map(|cluster| &cluster.key_file)),
        ("cluster.password_file", cluster.and_then(|cluster| cluster.password_file.as_ref())),
        ("cluster.ca_file", cluster.and_then(|cluster| cluster.ca_file.as_ref())),
        (
            "change_log.token_file",
            config.change_log.as_ref().map(|change_log| &change_log.token_file),
        ),
    ];
    // A path that is missing or invalid is a problem already, and empty here.
    let named = named
        .into_iter()
        .filter_map(|(key, path)| Some((key, path.filter(|path| !path.as_os_str().is_empty())?)));
    let faults = named.filter_map(|(key, path)| Some((key, file_fault(path)?)));
    faults.map(|(key, fault)| Problem::new(locations.first_of(&[key]), key, fault)).collect()
}

fn file_fault(path: &Path) -> Option<Fault> {
    let shown = path.display();
    let mut start = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_PROBE_BYTES).read_to_end(&mut start)) {
        Err(error) => Some(Fault::new(
            format!("cannot read \"{shown}\": {error}"),
            "set a file that the gateway's user can read",
        )),
        Ok(_) if start.trim_ascii().is_empty() => {
            Some(Fault::new(format!("\"{shown}\" is empty"), "write the file, or remove the key"))
        }
        Ok(_) => None,
    }
}
