//! Two environments that share a Redis, a key file and `cluster.name` by a copied configuration:
//! nothing that one API sent is used for the other.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const DOCUMENT: &str = "/customer/73469a52f4fd7f77ec7b28cc";
const KEYS: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const TIER: &str = "max_isolation = \"10m\"\ntier = true\ntier_timeout = \"2s\"\n";
const CHANGE_LOG: &str = "[change_log]\ntoken_file = \"{dir}/log-token\"\ninterval = \"100ms\"\n";

fn gateway(origin: &Origin, redis: &Redis, more: &str) -> Gateway {
    let config =
        format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{TIER}{more}", redis.url());
    let set_up =
        Gateway::set_up(origin).config(&config).file("keys", KEYS).file("log-token", "tok-log\n");
    let gateway = set_up.start();
    gateway.wait_for_metric("cluster_connected", &[], 1.0);
    gateway
}

fn wait_for_writes(gateway: &Gateway, what: &str) {
    let labels = [("what", what), ("operation", "write"), ("result", "ok")];
    gateway.wait_for_metric("tier_writes_total", &labels, 1.0);
}

/// The production and the staging API, which know one token by different access levels.
fn apis() -> [Origin; 2] {
    let [production, staging] = [Origin::start(), Origin::start()];
    production.knows("tok-a", "VIEWER", DUCK);
    staging.knows("tok-a", "RESELLER", DUCK);
    [production, staging]
}

/// Asserts that responses of the production gateway contain nothing of the staging API.
fn assert_production(gateway: &Gateway) {
    for path in [P, &name_of(OTHER)] {
        let response = gateway.client().get(path).bearer("tok-a").send();
        response.assert_status(200);
        assert!(!response.cache_status().contains("detail=tier"), "{path}: {response:#?}");
        assert!(
            !response.text().contains("clientSecret"),
            "{path}: a secret for VIEWER: {response:#?}"
        );
    }
    let forwarded = gateway.client().get(DOCUMENT).bearer("tok-a").send();
    assert!(!forwarded.text().contains("clientSecret"), "a secret for VIEWER: {forwarded:#?}");
}

#[test]
fn environment_shares_no_identity_and_no_response() {
    let Some(redis) = Redis::start("environments::environment_shares_no_identity_and_no_response")
    else {
        return;
    };
    let [production, staging] = apis();
    let at_staging = gateway(&staging, &redis, "");
    at_staging.client().get(P).bearer("tok-a").revealed().send().assert_status(200);
    wait_for_writes(&at_staging, "identity");
    wait_for_writes(&at_staging, "answer");
    let at_production = gateway(&production, &redis, "");
    assert_production(&at_production);
    assert_eq!(production.validations_of("tok-a"), 1, "the production API validates the token");
    // Within one environment values are shared.
    wait_for_writes(&at_production, "answer");
    let second = gateway(&production, &redis, "");
    let response = second.client().get(P).bearer("tok-a").send();
    assert!(response.assert_status(200).cache_status().ends_with("; detail=tier"), "{response:#?}");
}

#[test]
fn gateway_restarted_with_another_upstream_shares_nothing() {
    let Some(redis) =
        Redis::start("environments::gateway_restarted_with_another_upstream_shares_nothing")
    else {
        return;
    };
    let [production, staging] = apis();
    let mut gateway = gateway(&staging, &redis, "");
    gateway.client().get(P).bearer("tok-a").revealed().send().assert_status(200);
    wait_for_writes(&gateway, "identity");
    wait_for_writes(&gateway, "answer");
    assert_eq!(gateway.terminate().code, Some(0));
    assert_production(&self::gateway(&production, &redis, ""));
}

#[test]
fn environment_ignores_invalidations_of_another() {
    let Some(redis) = Redis::start("environments::environment_ignores_invalidations_of_another")
    else {
        return;
    };
    let [production, staging] = apis();
    let [at_production, peer] =
        [gateway(&production, &redis, ""), gateway(&production, &redis, "")];
    let at_staging = gateway(&staging, &redis, "");
    at_production.client().get(P).bearer("tok-a").send().assert_status(200);
    at_staging.client().post(DOCUMENT).bearer("tok-a").body("{}").send();
    at_staging.client().get("/auth/logout").bearer("tok-a").send();
    at_staging.admin().delete("/cache").send().assert_status(200);
    at_staging.wait_for_metric("cluster_spread_seconds_count", &[], 3.0);
    // A change of this environment: once it is applied, everything before it was read.
    let received = || at_production.metric("cluster_messages_total", &[("direction", "heard")]);
    assert_eq!(received(), 0.0);
    peer.admin().delete("/cache/customers/000000000000000000000001").send().assert_status(200);
    wait_until("a change of this environment is applied", || received() >= 1.0);
    assert_eq!(received(), 1.0);
    assert!(at_production.client().get(P).bearer("tok-a").send().assert_status(200).is_hit());
    assert_eq!(at_production.metric("cluster_drops_total", &[]), 0.0);
    assert_eq!(at_production.metric("cluster_errors_total", &[]), 0.0);
}

#[test]
fn environment_polls_its_own_change_log() {
    let Some(redis) = Redis::start("environments::environment_polls_its_own_change_log") else {
        return;
    };
    let apis = apis();
    let log = "/log/changeloglite";
    let polls = |origin: &Origin| origin.count(|seen| seen.target.starts_with(log));
    for origin in &apis {
        origin.when(Rule::on(log).made(|_| Answer::json("[]")));
    }
    let gateways = [&apis[0], &apis[1]].map(|origin| gateway(origin, &redis, CHANGE_LOG));
    for origin in &apis {
        wait_until("each API's change log is polled", || polls(origin) >= 3);
    }
    drop(gateways);
}
