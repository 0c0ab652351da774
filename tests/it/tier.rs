//! The shared tier: responses and identities that one gateway fetched serve the others, and a
//! client that reads or writes the Redis learns and causes nothing that matters.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// Lines of the key file.
const A: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const B: &str = "b f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f\n";

/// An isolation longer than a test runs, and a timeout for a busy machine.
const TIER: &str = "max_isolation = \"10m\"\ntier = true\ntier_timeout = \"2s\"\n";

/// A gateway with a shared tier in that Redis.
fn gateway(origin: &Origin, redis: &Redis) -> Gateway {
    gateway_with(origin, redis, TIER, A)
}

/// Starts a gateway with these keys and `more` in its `[cluster]` table, and waits until it has
/// read the stream.
fn gateway_with(origin: &Origin, redis: &Redis, more: &str, keys: &str) -> Gateway {
    let config = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{more}", redis.url());
    let gateway = Gateway::set_up(origin).config(&config).file("keys", keys).start();
    gateway.wait_for_metric("cluster_connected", &[], 1.0);
    gateway
}

fn ok(call: Call) -> Response {
    let response = call.send();
    response.assert_status(200);
    response
}

fn is_shared(response: &Response) -> bool {
    response.cache_status().ends_with("; detail=tier")
}

/// Waits until the gateway has written that many responses and identities.
fn wait_for_writes(gateway: &Gateway, responses: f64, identities: f64) {
    let wait = |what: &str, count| {
        gateway.wait_for_metric(
            "tier_writes_total",
            &[("what", what), ("operation", "write"), ("result", "ok")],
            count,
        );
    };
    wait("answer", responses);
    wait("identity", identities);
}

#[test]
fn second_gateway_takes_values_from_the_tier() {
    let Some(redis) = Redis::start("tier::second_gateway_takes_values_from_the_tier") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    origin.knows("tok-admin", "ADMIN", DUCK);
    let first = gateway(&origin, &redis);
    let viewer = ok(first.client().get(P).bearer("tok-viewer"));
    let admin = ok(first.client().get(P).bearer("tok-admin").revealed());
    wait_for_writes(&first, 2.0, 2.0);
    let requests = origin.requests();

    let second = gateway(&origin, &redis);
    let response = ok(second.client().get(P).bearer("tok-viewer"));
    assert!(is_shared(&response), "{response:#?}");
    assert_eq!((response.text(), response.header("etag")), (viewer.text(), viewer.header("etag")));
    let response = ok(second.client().get(P).bearer("tok-admin").revealed());
    assert!(is_shared(&response), "{response:#?}");
    assert_eq!((response.text(), response.header("etag")), (admin.text(), admin.header("etag")));
    assert_eq!(response.header("content-type"), admin.header("content-type"));
    assert_eq!(origin.requests(), requests, "neither validations nor fetches are repeated");
    // From now on the response is in memory.
    let response = ok(second.client().get(P).bearer("tok-viewer"));
    assert!(response.is_hit() && !is_shared(&response), "{response:#?}");
    // An invalid token gets no response of the tier.
    second.client().get(P).bearer("tok-unknown").send().assert_error(401, "invalid_token");
    second.client().get(P).send().assert_error(401, "credentials_invalid");
    assert_eq!(second.metric("tier_requests_total", &[("what", "answer"), ("result", "hit")]), 2.0);
    assert_eq!(
        second.metric("tier_requests_total", &[("what", "identity"), ("result", "hit")]),
        2.0
    );
}

#[test]
fn concurrent_misses_of_gateways_cause_one_fetch() {
    let Some(redis) = Redis::start("tier::concurrent_misses_of_gateways_cause_one_fetch") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let gateways = [gateway(&origin, &redis), gateway(&origin, &redis), gateway(&origin, &redis)];
    // The time of earlier fetches limits the wait for another gateway, so the first are slow.
    let slow = |millis| {
        Rule::on("/customer/").made_slowly(move |seen| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Answer::json(upstream_document(&seen.path()[10..34]))
        })
    };
    origin.when(slow(200));
    origin.when(slow(800).times(3));
    for (number, gateway) in gateways.iter().enumerate() {
        ok(gateway.client().get(&name_of(&customer(number))).bearer("tok-viewer"));
    }
    // On a busy machine a gateway may wait too long and fetch itself, so this is repeated.
    let mut number = 100;
    wait_until("one fetch serves three gateways", || {
        number += 1;
        let id = customer(number);
        let ask =
            |gateway: &Gateway| gateway.client().get(&name_of(&id)).bearer("tok-viewer").start();
        let pending = gateways.each_ref().map(ask);
        let shared = pending
            .map(|pending| pending.finish())
            .iter()
            .filter(|response| is_shared(response))
            .count();
        (shared, origin.fetches(&id)) == (2, 1)
    });
    let waited: f64 =
        gateways.iter().map(|one| one.metric("tier_requests_total", &[("result", "waited")])).sum();
    assert!(waited >= 2.0, "{waited}");
}

#[test]
fn redis_shows_no_token_id_or_body() {
    let Some(redis) = Redis::start("tier::redis_shows_no_token_id_or_body") else { return };
    let origin = Origin::start();
    let tokens = ["tok-viewer-1234", "tok-admin-5678"];
    origin.knows(tokens[0], "VIEWER", DUCK);
    origin.knows(tokens[1], "ADMIN", DUCK);
    let gateway = gateway(&origin, &redis);
    let mut bodies = Vec::new();
    for id in [DUCK, OTHER, THIRD] {
        for token in tokens {
            bodies.push(
                gateway
                    .client()
                    .get(&name_of(id))
                    .bearer(token)
                    .revealed()
                    .send()
                    .assert_status(200)
                    .text(),
            );
        }
        // A change, which is published in the stream.
        gateway.client().post(&format!("/customer/{id}")).bearer(tokens[0]).body("{}").send();
        gateway.client().get(&name_of(id)).bearer(tokens[0]).send().assert_status(200);
    }
    gateway.client().get("/auth/logout").bearer(tokens[1]).send();
    wait_for_writes(&gateway, 9.0, 2.0);
    assert!(redis.names("string").len() >= 5, "values are stored");

    let mut all = redis.command(&["XRANGE", "telecomx-gateway:changes", "-", "+"]).into_bytes();
    for name in redis.names("string") {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(&redis.value(&name));
    }
    let has = |text: &[u8]| all.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text));
    let mut secrets: Vec<Vec<u8>> =
        vec![b"VIEWER".to_vec(), b"customer".to_vec(), b"application/json".to_vec()];
    secrets.extend(
        tokens
            .iter()
            .flat_map(|token| [token.as_bytes().to_vec(), employee_of(token).into_bytes()]),
    );
    for id in [DUCK, OTHER, THIRD] {
        let raw =
            (0..12).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()).collect();
        secrets.extend([id.as_bytes().to_vec(), raw]);
    }
    // Each part of each body.
    for body in &bodies {
        secrets.extend(
            body.as_bytes().chunks(12).filter(|piece| piece.len() == 12).map(<[u8]>::to_vec),
        );
    }
    let found: Vec<_> = secrets
        .iter()
        .filter(|secret| has(secret))
        .map(|secret| String::from_utf8_lossy(secret))
        .collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(has(b"telecomx-gateway:"), "the search finds text that is stored");
}

#[test]
fn changed_values_are_misses() {
    let Some(redis) = Redis::start("tier::changed_values_are_misses") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    origin.knows("tok-other", "VIEWER", OTHER);
    let first = gateway(&origin, &redis);
    for (id, token) in [(DUCK, "tok-viewer"), (OTHER, "tok-other")] {
        first.client().get(&name_of(id)).bearer(token).send().assert_status(200);
    }
    wait_for_writes(&first, 2.0, 2.0);
    let names = redis.names("string");
    let before: Vec<Vec<u8>> = names.iter().map(|name| redis.value(name)).collect();
    let assert_miss = |what: &str, kind: &str| {
        let (fetches, validations) = (origin.fetches(DUCK), origin.validations());
        let second = gateway(&origin, &redis);
        let response = ok(second.client().get(P).bearer("tok-viewer"));
        assert_eq!(response.cache_status(), "telecomx-gateway; fwd=uri-miss; stored", "{what}");
        assert_eq!(response.text(), redacted_document(DUCK), "{what}");
        assert_eq!(
            (origin.fetches(DUCK), origin.validations()),
            (fetches + 1, validations + 1),
            "{what}"
        );
        assert_eq!(second.metric("tier_errors_total", &[("kind", kind)]), 2.0, "{what}");
        wait_for_writes(&second, 1.0, 1.0);
    };
    // One bit, in the middle and at the end.
    for at in [2, 1] {
        for (name, value) in names.iter().zip(&before) {
            let mut value = value.clone();
            let index = value.len() / at - 1;
            value[index] ^= 1;
            redis.set(name, &value);
        }
        assert_miss("a bit", "forged");
    }
    // Valid values, each under the key of another.
    for (name, value) in names.iter().zip(before.iter().cycle().skip(1)) {
        redis.set(name, value);
    }
    assert_miss("moved", "forged");
    for name in &names {
        redis.set(name, b"\x01\x01?");
    }
    assert_miss("cut", "malformed");
    for name in &names {
        redis.set(name, &vec![0; 8 << 20]);
    }
    assert_miss("large", "malformed");
    for name in &names {
        redis.command(&["DEL", name]);
        redis.command(&["LPUSH", name, "x"]);
    }
    let response = ok(gateway(&origin, &redis).client().get(P).bearer("tok-viewer"));
    assert_eq!(response.text(), redacted_document(DUCK), "another type");
}

#[test]
fn counters_of_cluster_and_tier_start_at_zero() {
    let Some(redis) = Redis::start("tier::counters_of_cluster_and_tier_start_at_zero") else {
        return;
    };
    let origin = Origin::start();
    let metrics = gateway(&origin, &redis).metrics();
    for series in [
        "cluster_messages_total{direction=\"told\"}",
        "cluster_drops_total{reason=\"trimmed\"}",
        "cluster_drops_total{reason=\"overflow\"}",
        "cluster_errors_total{kind=\"unreachable\"}",
        "cluster_errors_total{kind=\"forged\"}",
        "tier_requests_total{result=\"hit\",what=\"answer\"}",
        "tier_requests_total{result=\"forged\",what=\"identity\"}",
        "tier_request_duration_seconds_count{what=\"identity\"}",
        "tier_writes_total{operation=\"remove\",result=\"error\",what=\"answer\"}",
        "tier_errors_total{kind=\"too_many\"}",
    ] {
        let line = format!("telecomx_gateway_{series} 0");
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in {metrics}");
    }
}

#[test]
fn response_of_another_policy_is_not_used() {
    let Some(redis) = Redis::start("tier::response_of_another_policy_is_not_used") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let first = gateway(&origin, &redis);
    let default = first.client().get(P).bearer("tok-viewer").send().assert_status(200).text();
    assert_eq!(default, redacted_document(DUCK));
    wait_for_writes(&first, 1.0, 1.0);
    let stricter_rules = format!("{TIER}[redaction]\npublic = []\n");
    let stricter = gateway_with(&origin, &redis, &stricter_rules, A);
    let response = ok(stricter.client().get(P).bearer("tok-viewer"));
    assert_eq!(
        (origin.fetches(DUCK), origin.validations()),
        (2, 1),
        "the identity does not depend on the policy"
    );
    assert!(!response.text().contains("enabled") && default.contains("enabled"), "{response:#?}");
    wait_for_writes(&stricter, 1.0, 0.0);
    // Each policy finds its own responses.
    assert!(is_shared(&gateway(&origin, &redis).client().get(P).bearer("tok-viewer").send()));
    let again = gateway_with(&origin, &redis, &stricter_rules, A);
    let shared = again.client().get(P).bearer("tok-viewer").send();
    assert!(is_shared(&shared) && shared.text() == response.text(), "{shared:#?}");
    assert_eq!(origin.fetches(DUCK), 2);
}

#[test]
fn key_rotation_causes_no_errors() {
    let Some(redis) = Redis::start("tier::key_rotation_causes_no_errors") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    // Redis keys derive from the first key: after the swap a gateway finds an empty tier, once.
    for (keys, is_found) in [
        ([A, ""], false),
        ([A, B], true),
        ([B, A], false),
        ([B, ""], true),
        // A gateway that is still at the second step finds its values.
        ([A, B], true),
    ] {
        let keys = keys.concat();
        let fetches = origin.fetches(DUCK);
        let gateway = gateway_with(&origin, &redis, TIER, &keys);
        let response = ok(gateway.client().get(P).bearer("tok-viewer"));
        assert_eq!(
            (is_shared(&response), origin.fetches(DUCK) == fetches),
            (is_found, is_found),
            "{keys:?}: {response:#?}"
        );
        assert_eq!(gateway.metric("tier_errors_total", &[]), 0.0, "{keys:?}");
        if !is_found {
            wait_for_writes(&gateway, 1.0, 1.0);
        }
    }
}

#[test]
fn documented_tier_rights_suffice_and_are_needed() {
    let Some(redis) = Redis::start("tier::documented_tier_rights_suffice_and_are_needed") else {
        return;
    };
    let page = include_str!("../../docs/CLUSTER.md");
    let line = |start: &str| {
        page.lines().find(|line| line.starts_with(start)).expect("the page documents the rights")
    };
    let rights = line("ACL SETUSER ").replace(">PASSWORD", ">hunter2");
    let more = line("With `tier`, `").split('`').nth(3).expect("rights");
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let user = "username = \"gateway\"\npassword_file = \"{dir}/password\"\n";
    let config =
        format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{user}{TIER}", redis.url());
    let errors = |rights: &str| {
        assert_eq!(redis.command(&rights.split(' ').collect::<Vec<_>>()), "+OK\r\n");
        let set_up =
            Gateway::set_up(&origin).config(&config).file("keys", A).file("password", "hunter2");
        let gateway = set_up.start();
        gateway.wait_for_metric("cluster_connected", &[], 1.0);
        ok(gateway.client().get(P).bearer("tok-viewer"));
        let errors = gateway.metric("tier_errors_total", &[]);
        if errors == 0.0 {
            wait_for_writes(&gateway, 1.0, 1.0);
        }
        gateway.metric("tier_errors_total", &[])
    };
    assert_eq!(errors(&format!("{rights} {more}")), 0.0);
    for right in more.split(' ') {
        redis.command(&["FLUSHALL"]);
        let others: String = more
            .split(' ')
            .filter(|other| *other != right)
            .map(|other| format!(" {other}"))
            .collect();
        assert!(errors(&(rights.clone() + &others)) >= 1.0, "{right} is not needed");
    }
}

#[test]
fn change_through_one_gateway_outdates_shared_values() {
    let Some(redis) = Redis::start("tier::change_through_one_gateway_outdates_shared_values")
    else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let first = gateway(&origin, &redis);
    let second = gateway(&origin, &redis);
    first.client().get(P).bearer("tok-viewer").send().assert_status(200);
    wait_for_writes(&first, 1.0, 1.0);
    assert!(is_shared(&second.client().get(P).bearer("tok-viewer").send()));
    first.client().post(&format!("/customer/{DUCK}")).bearer("tok-viewer").body("{}").send();
    second.wait_for_metric(
        "cache_invalidations_total",
        &[("scope", "customer"), ("trigger", "fleet")],
        2.0,
    );
    // A fetch before the position advances would count as earlier than the change.
    wait_until("all of the stream is applied", || {
        let newest =
            redis.command(&["XREVRANGE", "telecomx-gateway:changes", "+", "-", "COUNT", "1"]);
        newest.contains(second.stats()["cluster"]["position"].as_str().expect("a position"))
    });
    // The stored value precedes the change; the next one follows it and is shared again.
    let response = ok(second.client().get(P).bearer("tok-viewer"));
    assert_eq!((is_shared(&response), origin.fetches(DUCK)), (false, 2), "{response:#?}");
    assert_eq!(
        second.metric("tier_requests_total", &[("what", "answer"), ("result", "changed")]),
        1.0
    );
    wait_for_writes(&second, 1.0, 0.0);
    assert!(is_shared(&gateway(&origin, &redis).client().get(P).bearer("tok-viewer").send()));
}

#[test]
fn restarted_gateway_starts_with_a_warm_cache() {
    const CUSTOMERS: usize = 200;
    let Some(redis) = Redis::start("tier::restarted_gateway_starts_with_a_warm_cache") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let request_all = |gateway: &Gateway| {
        let mut connection = gateway.client().connect();
        for number in 0..CUSTOMERS {
            gateway
                .client()
                .get(&name_of(&customer(number)))
                .bearer("tok-viewer")
                .send_on(&mut connection);
        }
    };
    let requests_by = |gateway: Gateway| {
        let before = origin.requests();
        request_all(&gateway);
        (origin.requests() - before, gateway)
    };
    let (cold, first) = requests_by(gateway(&origin, &redis));
    assert_eq!(cold, CUSTOMERS + 1);
    let failed = first.metric("tier_errors_total", &[]);
    wait_for_writes(&first, CUSTOMERS as f64 - failed, 1.0);
    drop(first);
    let (warm, restarted) = requests_by(gateway(&origin, &redis));
    // On a busy machine a lookup may exceed its timeout.
    assert!(warm * 20 < cold, "with the tier it sends next to no requests: {warm}");
    let ratio = restarted.stats()["cache"]["hit_ratio"].as_f64().unwrap();
    assert!(ratio > 0.9, "{ratio}");
    let without = gateway_with(&origin, &redis, "max_isolation = \"10m\"", A);
    assert_eq!(requests_by(without).0, CUSTOMERS + 1, "without the tier it requests everything");
}

#[test]
fn gateway_works_alone_while_redis_is_down() {
    let Some(mut redis) = Redis::start("tier::gateway_works_alone_while_redis_is_down") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let gateway = gateway_with(&origin, &redis, "tier = true\nmax_isolation = \"10m\"", A);
    let errors = |kind: &str| gateway.metric("tier_errors_total", &[("kind", kind)]);
    let mut number = 0;
    let mut next = || {
        number += 1;
        ok(gateway.client().get(&name_of(&customer(number))).bearer("tok-viewer"));
    };
    next();
    // Redis is silent: lookups time out, and after a few the circuit breaker opens.
    redis.signal(Signal::SIGSTOP);
    wait_until("the breaker is open", || {
        next();
        errors("unavailable") >= 1.0
    });
    assert!(
        errors("timeout") >= 1.0
            || gateway.metric("tier_requests_total", &[("result", "skipped")]) >= 1.0
    );
    redis.signal(Signal::SIGCONT);
    let hits = |result: &str| {
        gateway.metric("tier_requests_total", &[("what", "answer"), ("result", result)])
    };
    let before = hits("miss");
    wait_until("the breaker is closed", || {
        next();
        hits("miss") > before
    });
    // Redis is killed, and restarts empty.
    redis.kill();
    wait_until("the breaker is open", || {
        next();
        errors("unavailable") + hits("skipped") >= 2.0
    });
    gateway.admin().get("/readyz").send().assert_status(200);
    redis.run();
    let before = hits("miss");
    wait_until("the breaker is closed", || {
        next();
        hits("miss") > before
    });
}

#[test]
fn full_redis_only_prevents_sharing() {
    let Some(redis) = Redis::start("tier::full_redis_only_prevents_sharing") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let gateway = gateway(&origin, &redis);
    let full = ["CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction"];
    assert_eq!(redis.command(&full), "+OK\r\n");
    for number in 0..20 {
        let response = ok(gateway.client().get(&name_of(&customer(number))).bearer("tok-viewer"));
        assert_eq!(response.cache_status(), "telecomx-gateway; fwd=uri-miss; stored");
    }
    assert!(gateway.metric("tier_errors_total", &[("kind", "refused")]) >= 1.0);
    gateway.admin().get("/readyz").send().assert_status(200);
    assert!(gateway.client().get(&name_of(&customer(3))).bearer("tok-viewer").send().is_hit());
}

/// The limit is generous, since this is no test of speed: without a timeout it would take forever.
#[test]
fn lookup_in_a_silent_redis_times_out() {
    let Some(redis) = Redis::start("tier::lookup_in_a_silent_redis_times_out") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let gateway = gateway(&origin, &redis);
    redis.signal(Signal::SIGSTOP);
    let started = Instant::now();
    gateway.client().get(P).bearer("tok-viewer").send().assert_status(200);
    let took = started.elapsed();
    redis.signal(Signal::SIGCONT);
    assert!(took < Duration::from_secs(20), "{took:?}");
}
