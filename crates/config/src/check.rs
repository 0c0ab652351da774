//! What must hold between several keys, and of the files that they name. A key that is wrong in itself was told before;
//! nothing is said here of what it stands with.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use super::problem::{Problem, Wrong};
use super::read::Places;
use super::units::show_duration;
use super::{Config, RedisPlace, address};
use redact::{Policy, Rule, RuleError};

/// The most that is read of a file to see whether it is empty.
const ENOUGH: u64 = 64 << 10;

/// Whether the keys fit together. Pure.
pub(super) fn between_keys(config: &Config, places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |paths: &[&'static str], holds: bool, wrong: &dyn Fn() -> Wrong| {
        if !holds && places.are_sound(paths) {
            problems.push(Problem::new(places.of(paths), paths[0], wrong()));
        }
    };
    let encrypted = config.otlp.as_ref().is_some_and(|otlp| otlp.endpoint.tls);
    refuse(&["otlp.endpoint"], !encrypted, &|| {
        Wrong::new("https is not supported", "use the http URL of a collector on this machine")
    });
    let identity = &config.identity;
    // With no remembering there is nothing to refresh.
    refuse(
        &["identity.refresh_after", "identity.ttl"],
        identity.ttl.is_zero() || identity.refresh_after <= identity.ttl,
        &|| {
            let (after, ttl) = (show_duration(identity.refresh_after), show_duration(identity.ttl));
            Wrong::new(format!("{after:?} is longer than identity.ttl ({ttl:?})"), format!("expected at most {ttl:?}"))
        },
    );
    let cache = &config.cache;
    let alone = cache.ttl + cache.stale_while_revalidate;
    let paths = ["cache.ttl", "cache.stale_while_revalidate", "identity.session"];
    refuse(&paths, alone < identity.session, &|| {
        let (alone, session) = (show_duration(alone), show_duration(identity.session));
        Wrong::new(
            format!(
                "the sum with cache.stale_while_revalidate, {alone:?}, is not less than identity.session ({session:?})"
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
        refuse(&[this], !is_set || other_is_set, &|| {
            Wrong::new(format!("requires {that}"), format!("set {that}, or remove {this}"))
        });
    }
    let admin = &config.admin;
    let guarded = admin.listen.ip().to_canonical().is_loopback() || admin.token_file.is_some();
    refuse(&["admin.listen", "admin.token_file"], guarded, &|| {
        let right = "set admin.token_file, or listen on loopback, for example \"127.0.0.1:9090\"";
        Wrong::new(format!("\"{}\" is not a loopback address and admin.token_file is not set", admin.listen), right)
    });
    let asked = config.server.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    let paths = ["server.tls.client_auth", "server.tls.client_ca_file"];
    refuse(&paths, asked || config.server.tls.is_none() || !places.is_given(paths[0]), &|| {
        Wrong::new("has no effect without client_ca_file", "set client_ca_file, or remove client_auth")
    });
    let listeners: Vec<(&'static str, SocketAddr)> = listeners(config);
    for (index, (path, address)) in listeners.iter().enumerate() {
        for (other_path, other) in &listeners[..index] {
            refuse(&[path, other_path], !address::overlap(*address, *other), &|| {
                let wrong = format!("\"{address}\" overlaps with \"{other}\" of {other_path}");
                Wrong::new(wrong, "give each listener its own address or port")
            });
        }
    }
    if let Some(cluster) = &config.cluster {
        let tls = matches!(cluster.url.place, RedisPlace::Host { tls: true, .. });
        refuse(&["cluster.ca_file", "cluster.url"], tls || cluster.ca_file.is_none(), &|| {
            Wrong::new("has no effect without TLS", "use rediss:// in cluster.url, or remove ca_file")
        });
        let named = cluster.username.is_none() || cluster.password_file.is_some();
        refuse(&["cluster.username", "cluster.password_file"], named, &|| {
            Wrong::new("requires cluster.password_file", "set cluster.password_file, or remove username")
        });
    }
    problems.extend(redaction_policy(config, places));
    problems
}

/// Where the redaction module says whether it can work by these rules (`Policy::compile`), each of its errors placed at
/// the key that it names. What can be said of a selector or pattern by itself was checked when it was read.
fn redaction_policy(config: &Config, places: &Places) -> Vec<Problem> {
    let policy = match Policy::compile(&config.redaction.rules()) {
        Ok(policy) => policy,
        Err(errors) => return errors.iter().map(|error| rule_problem(error, key_of(error), places)).collect(),
    };
    let rules = config.forward.redact.iter().map(|rule| policy.for_forward(&rule.secret_names, false));
    let errors = rules.filter_map(Result::err).flatten();
    errors.map(|error| rule_problem(&error, "forward.redact", places)).collect()
}

fn key_of(error: &RuleError) -> &'static str {
    match error.which {
        Rule::Root => "redaction.roots",
        Rule::Public => "redaction.public",
        Rule::SecretName => "redaction.secret_names",
    }
}

fn rule_problem(error: &RuleError, key: &'static str, places: &Places) -> Problem {
    let wrong = format!("invalid rule \"{}\"", error.text);
    Problem::new(places.of(&[key]), key, Wrong::new(wrong, error.reason.clone()))
}

fn listeners(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let tls = config.server.tls.iter().flat_map(|tls| &tls.listen).map(|address| ("server.tls.listen", *address));
    let plain = config.server.listen.iter().map(|address| ("server.listen", *address));
    plain.chain(tls).chain([("admin.listen", config.admin.listen)]).collect()
}

/// Whether every file that is named can be read and holds something. Reads files; what is in them is not kept.
pub(super) fn files(config: &Config, places: &Places) -> Vec<Problem> {
    let tls = config.server.tls.as_ref();
    let cluster = config.cluster.as_ref();
    let named = [
        ("server.tls.cert_file", tls.map(|tls| &tls.cert_file)),
        ("server.tls.key_file", tls.map(|tls| &tls.key_file)),
        ("server.tls.client_ca_file", tls.and_then(|tls| tls.clients.as_ref()).map(|clients| &clients.ca_file)),
        ("admin.token_file", config.admin.token_file.as_ref()),
        ("upstream.ca_file", config.upstream.ca_file.as_ref()),
        ("cluster.key_file", cluster.map(|cluster| &cluster.key_file)),
        ("cluster.password_file", cluster.and_then(|cluster| cluster.password_file.as_ref())),
        ("cluster.ca_file", cluster.and_then(|cluster| cluster.ca_file.as_ref())),
        ("change_log.token_file", config.change_log.as_ref().map(|change_log| &change_log.token_file)),
    ];
    // One that is missing or wrong was told before, and is empty here.
    let named =
        named.into_iter().filter_map(|(key, path)| Some((key, path.filter(|path| !path.as_os_str().is_empty())?)));
    let unreadable = named.filter_map(|(key, path)| Some((key, unreadable(path)?)));
    unreadable.map(|(key, wrong)| Problem::new(places.of(&[key]), key, wrong)).collect()
}

fn unreadable(path: &Path) -> Option<Wrong> {
    let shown = path.display();
    let mut start = Vec::new();
    match File::open(path).and_then(|file| file.take(ENOUGH).read_to_end(&mut start)) {
        Err(error) => {
            Some(Wrong::new(format!("cannot read \"{shown}\": {error}"), "set a file that the gateway's user can read"))
        }
        Ok(_) if start.trim_ascii().is_empty() => {
            Some(Wrong::new(format!("\"{shown}\" is empty"), "write the file, or remove the key"))
        }
        Ok(_) => None,
    }
}
