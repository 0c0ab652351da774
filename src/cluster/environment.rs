//! The environment of a gateway: which API it is in front of. Two environments that share a Redis,
//! a key file and `cluster.name` (a copied configuration, a restart with another `upstream.url`)
//! share nothing that an API said: names and keys of the shared tier and of the change log's lease
//! derive from the environment, and every message of the invalidation stream carries it, sealed.
//! The stream keeps one name, so that a gateway never misses the changes of one of an earlier
//! version: it cannot read their messages, and drops everything.

use crate::config::Upstream;

/// Separates this digest from every other use of the same text.
const CONTEXT: &str = "telecomx-gateway 2026-11-28 environment of a cluster";

/// Bytes of the digest: enough that no two environments are equal by chance.
pub const ENVIRONMENT_BYTES: usize = 16;

/// A digest of what decides which API answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment([u8; ENVIRONMENT_BYTES]);

impl Environment {
    /// The environment of this upstream. The URL is normalized when the configuration is read: a
    /// default port counts as written, and the case of letters does not count.
    pub fn of(upstream: &Upstream) -> Self {
        // Exhaustive, so that a new key has to be judged here: does it decide what the API answers?
        let Upstream {
            urls,
            ca_file: _,
            client_cert_file: _,
            client_key_file: _,
            connect_timeout: _,
            timeout: _,
            max_body: _,
            max_in_flight: _,
            keepalive_timeout: _,
            max_idle_connections: _,
        } = upstream;
        let scheme = if upstream.is_tls() { "https" } else { "http" };
        // In any order: a list names servers of one API. The text for one URL is that of versions
        // that knew no list, so that both share an environment.
        let mut texts: Vec<_> = urls.iter().map(|url| format!("{scheme}\n{}\n{}", url.host, url.port)).collect();
        texts.sort();
        let text = texts.join("\n");
        let digest = blake3::derive_key(CONTEXT, text.as_bytes());
        Environment(std::array::from_fn(|index| digest[index]))
    }

    /// The digest, as a message carries it.
    pub const fn as_bytes(&self) -> &[u8; ENVIRONMENT_BYTES] {
        &self.0
    }

    /// The beginning of a name in Redis that counts in this environment alone: `cluster.name` and
    /// the digest. It does not depend on a key, so that it stays the same while keys are rotated.
    pub fn prefix(&self, cluster: &str) -> String {
        self.0.iter().fold(format!("{cluster}:"), |text, byte| format!("{text}{byte:02x}"))
    }

    /// The key that counts in this environment alone.
    pub fn bind(&self, secret: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(secret, &self.0).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn environment(url: &str) -> Environment {
        let toml = format!("upstream.url = {url:?}");
        Environment::of(&config::parse("test", &toml, []).expect("a configuration").upstream)
    }

    #[test]
    fn environment_differs_by_scheme_host_and_port() {
        let urls = ["https://api.example", "https://api.example:444", "http://api.example", "https://staging.example"];
        let environments = urls.map(environment);
        for (index, one) in environments.iter().enumerate() {
            for other in &environments[index + 1..] {
                assert_ne!(one, other);
                assert_ne!(one.prefix("c"), other.prefix("c"));
                assert_ne!(one.bind(&[7; 32]), other.bind(&[7; 32]));
            }
        }
    }

    #[test]
    fn environment_is_equal_for_spellings_of_one_url() {
        let one = environment("https://api.example");
        for same in ["https://api.example/", "https://API.example:443", "HTTPS://api.example"] {
            assert_eq!(one, environment(same), "{same}");
        }
    }

    #[test]
    fn environment_prefix_differs_by_cluster_name() {
        let one = environment("https://api.example");
        assert_ne!(one.prefix("a"), one.prefix("b"));
        assert!(one.prefix("a").starts_with("a:"));
    }
}
