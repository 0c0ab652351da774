//! The environment of a gateway: which API it forwards to. Two environments that share a Redis, a
//! key file and `cluster.name` (a copied configuration, a restart with another `upstream.url`)
//! share nothing that an API sent: names and keys of the shared tier and of the change log's lease
//! derive from the environment, and every message of the invalidation stream carries it, encrypted.
//! The stream has the same name in all environments, so that a gateway never misses changes of a
//! gateway of an earlier version: it cannot read their messages, and invalidates everything.

use crate::config::Upstream;

/// Separates this digest from every other use of the same text. Part of the digest, so it never
/// changes.
const DIGEST_CONTEXT: &str = "telecomx-gateway 2026-11-28 environment of a cluster";

/// Length of the digest: enough that no two environments are equal by chance.
pub const ENVIRONMENT_BYTES: usize = 16;

/// A digest of the keys of `[upstream]` that decide which API answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment([u8; ENVIRONMENT_BYTES]);

impl Environment {
    /// The environment of an upstream. Its URLs were normalized when the configuration was read:
    /// with their default port, in lower case.
    pub fn from_upstream(upstream: &Upstream) -> Self {
        // Exhaustive, so that a new key needs a decision: does it select another API?
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
        // Sorted, since a list names servers of one API in any order. The text for one URL is that
        // of versions without lists, so that both share an environment.
        let texts = urls.iter().map(|url| format!("{scheme}\n{}\n{}", url.host, url.port));
        let mut texts: Vec<_> = texts.collect();
        texts.sort();
        let digest = blake3::derive_key(DIGEST_CONTEXT, texts.join("\n").as_bytes());
        Environment(std::array::from_fn(|index| digest[index]))
    }

    /// The digest, as messages carry it.
    pub const fn as_bytes(&self) -> &[u8; ENVIRONMENT_BYTES] {
        &self.0
    }

    /// The prefix of names in Redis that only this environment uses: `cluster.name` and the digest.
    /// It does not depend on a key, so that it stays the same while keys are rotated.
    pub fn prefix(&self, cluster: &str) -> String {
        self.0.iter().fold(format!("{cluster}:"), |text, byte| format!("{text}{byte:02x}"))
    }

    /// Derives the key that only this environment uses.
    pub fn derive_key(&self, secret: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(secret, &self.0).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn environment(url: &str) -> Environment {
        let toml = format!("upstream.url = {url:?}");
        Environment::from_upstream(
            &config::parse("test", &toml, []).expect("the configuration is valid").upstream,
        )
    }

    #[test]
    fn environment_differs_by_scheme_host_and_port() {
        let urls = [
            "https://api.example",
            "https://api.example:444",
            "http://api.example",
            "https://staging.example",
        ];
        let environments = urls.map(environment);
        for (index, one) in environments.iter().enumerate() {
            for other in &environments[index + 1..] {
                assert_ne!(one, other);
                assert_ne!(one.prefix("c"), other.prefix("c"));
                assert_ne!(one.derive_key(&[7; 32]), other.derive_key(&[7; 32]));
            }
        }
    }

    #[test]
    fn environment_ignores_the_spelling_of_a_url() {
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
