//! The cluster that is shipped for Kubernetes and Compose: the server's configuration, the secrets,
//! the user's rights and the gateways' variables, with a real server; only paths are replaced.

use std::path::Path;
use std::process::Command;

use crate::support::*;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const WRITE: &str = "/customer/73469a52f4fd7f77ec7b28cc";

fn shipped(file: &str) -> String {
    std::fs::read_to_string(format!("{SHIPPED}/{file}")).expect("a shipped file")
}

/// The variables of a gateway of the cluster, from Compose and from Kubernetes.
fn variables() -> [Vec<(String, String)>; 2] {
    let (compose, kubernetes) = (
        shipped("compose/compose.fleet.yaml"),
        shipped("kubernetes/components/fleet/kustomization.yaml"),
    );
    let unquoted = |value: &str| value.trim().trim_matches('"').to_owned();
    let of_compose = compose.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("  ")?.split_once(": ")?;
        name.starts_with("TELECOMX_").then(|| (name.to_owned(), unquoted(value)))
    });
    let of_kubernetes = kubernetes.lines().filter_map(|line| {
        let (name, value) =
            line.trim().strip_prefix("- {name: ")?.strip_suffix('}')?.split_once(", value: ")?;
        Some((name.to_owned(), unquoted(value)))
    });
    [
        of_compose.collect(),
        of_kubernetes.filter(|(name, _)| name.starts_with("TELECOMX_")).collect(),
    ]
}

/// Starts the server with the shipped configuration; returns it and the folder with its secrets.
fn server(test: &str) -> Option<(Redis, TempDir)> {
    let dir = TempDir::new();
    let secrets = dir.path().join("secrets");
    let made = Command::new(format!("{SHIPPED}/redis/secrets"))
        .arg(&secrets)
        .status()
        .expect("the script runs");
    assert!(made.success(), "the secrets were not created");
    let config = shipped("kubernetes/components/fleet/valkey.conf");
    let acl = "/run/secrets/valkey/users.acl";
    assert!(config.contains(acl));
    let config = dir.write(
        "valkey.conf",
        &config.replace(acl, &secrets.join("users.acl").display().to_string()),
    );
    Some((Redis::configured(test, &config)?, dir))
}

fn start(
    origin: &Origin,
    redis: &Redis,
    variables: &[(String, String)],
    secrets: &Path,
) -> Gateway {
    let secrets = format!("{}/", secrets.display());
    let mut setup = Gateway::set_up(origin);
    for (name, value) in variables {
        let value =
            value.replace("/run/secrets/fleet/", &secrets).replace("/run/secrets/", &secrets);
        let value = if name.ends_with("__URL") { redis.url() } else { value };
        setup = setup.variable(name, &value);
    }
    let gateway = setup.start();
    gateway.wait_for_metric("cluster_connected", &[], 1.0);
    gateway
}

#[test]
fn shipped_clusters_share_responses_and_invalidations() {
    for variables in variables() {
        assert_eq!(variables.len(), 5, "{variables:?}");
        let Some((redis, dir)) = server("shipped_cluster") else { return };
        let secrets = dir.path().join("secrets");
        let origin = Origin::start();
        origin.knows("tok-a", "VIEWER", DUCK);
        let [first, second] = [(); 2].map(|()| start(&origin, &redis, &variables, &secrets));
        let ask = |gateway: &Gateway| gateway.client().get(P).bearer("tok-a").send();
        assert_eq!(
            ask(&first).assert_status(200).cache_status(),
            "telecomx-gateway; fwd=uri-miss; stored"
        );
        // The value is written after the response.
        first.wait_for_metric(
            "tier_writes_total",
            &[("what", "answer"), ("operation", "write"), ("result", "ok")],
            1.0,
        );
        assert!(ask(&second).assert_status(200).cache_status().ends_with("; detail=tier"));
        origin.document(DUCK, Answer::json(r#"{"name":"changed"}"#));
        first.client().call("PUT", WRITE).bearer("tok-a").body("{}").send().assert_status(200);
        wait_until("the invalidation is applied", || {
            second.metric("cluster_messages_total", &[("direction", "heard")]) >= 2.0
        });
        assert_eq!(ask(&second).assert_status(200).json()["name"], "changed");
        for gateway in [&first, &second] {
            let refused: f64 = ["denied", "refused"]
                .map(|kind| gateway.metric("cluster_errors_total", &[("kind", kind)]))
                .iter()
                .sum();
            assert_eq!(refused + gateway.metric("tier_errors_total", &[("kind", "refused")]), 0.0);
        }
        // The server refuses connections without a user, and other commands of this user.
        assert!(redis.command(&["PING"]).starts_with("-NOAUTH"), "{}", redis.command(&["PING"]));
        let password =
            std::fs::read_to_string(secrets.join("cluster-password")).expect("a password");
        for words in [
            ["CONFIG", "GET", "maxmemory"],
            ["GET", "another-application", ""],
            ["FLUSHALL", "", ""],
        ] {
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            let refused = redis.command_as("gateway", password.trim(), &words);
            assert!(refused.starts_with("-NOPERM"), "{words:?}: {refused}");
        }
    }
}

#[test]
fn existing_secrets_are_not_overwritten() {
    let dir = TempDir::new();
    let make = || {
        Command::new(format!("{SHIPPED}/redis/secrets"))
            .arg(dir.path())
            .output()
            .expect("the script runs")
    };
    assert!(make().status.success());
    let read = || {
        ["cluster-keys", "cluster-password", "users.acl"]
            .map(|file| std::fs::read(dir.path().join(file)).unwrap())
    };
    let before = read();
    let again = make();
    assert!(
        !again.status.success()
            && String::from_utf8_lossy(&again.stderr).contains("exists; remove it")
    );
    assert_eq!(before, read());
}
