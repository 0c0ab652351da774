//! What gateways share through a Redis: what one asked the API for, the others need not ask for, and nobody who reads or writes
//! there learns or does anything that matters.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// Keys of the fleet, as they stand in its key file.
const A: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const B: &str = "b f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f\n";

/// Longer than a test runs, and a busy machine may be slow.
const TIER: &str = "max_isolation = \"10m\"\ntier = true\ntier_timeout = \"2s\"\n";

/// A gateway of the fleet that shares that Redis.
fn gateway(origin: &Origin, redis: &Redis) -> Gateway {
    gateway_with(origin, redis, TIER, A)
}

/// The same, with that in its `[cluster]` table and what comes after, and these keys. It has heard what there is to hear.
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

/// Waits until that many answers and identities were put there by it.
fn wait_for_writes(gateway: &Gateway, answers: f64, identities: f64) {
    let put = |what: &str, count| {
        gateway.wait_for_metric(
            "tier_writes_total",
            &[("what", what), ("operation", "write"), ("result", "ok")],
            count,
        );
    };
    put("answer", answers);
    put("identity", identities);
}

#[test]
fn what_one_gateway_asked_for_the_others_need_not_ask_for() {
    let Some(redis) = Redis::start("tier::what_one_gateway_asked_for_the_others_need_not_ask_for") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    origin.knows("tok-admin", "ADMIN", DUCK);
    let first = gateway(&origin, &redis);
    let viewer = ok(first.client().get(P).bearer("tok-viewer"));
    let admin = ok(first.client().get(P).bearer("tok-admin").revealed());
    wait_for_writes(&first, 2.0, 2.0);
    let asked = origin.requests();

    let second = gateway(&origin, &redis);
    let response = ok(second.client().get(P).bearer("tok-viewer"));
    assert!(is_shared(&response), "{response:#?}");
    assert_eq!((response.text(), response.header("etag")), (viewer.text(), viewer.header("etag")));
    let response = ok(second.client().get(P).bearer("tok-admin").revealed());
    assert!(is_shared(&response), "{response:#?}");
    assert_eq!((response.text(), response.header("etag")), (admin.text(), admin.header("etag")));
    assert_eq!(response.header("content-type"), admin.header("content-type"));
    assert_eq!(origin.requests(), asked, "neither who they are nor what is asked is asked again");
    // From here on it is in memory.
    let response = ok(second.client().get(P).bearer("tok-viewer"));
    assert!(response.is_hit() && !is_shared(&response), "{response:#?}");
    // Who may not ask learns nothing by it.
    second.client().get(P).bearer("tok-unknown").send().assert_error(401, "invalid_token");
    second.client().get(P).send().assert_error(401, "credentials_invalid");
    assert_eq!(second.metric("tier_requests_total", &[("what", "answer"), ("result", "hit")]), 2.0);
    assert_eq!(second.metric("tier_requests_total", &[("what", "identity"), ("result", "hit")]), 2.0);
}

#[test]
fn of_gateways_that_want_the_same_at_the_same_time_one_asks() {
    let Some(redis) = Redis::start("tier::of_gateways_that_want_the_same_at_the_same_time_one_asks") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let gateways = [gateway(&origin, &redis), gateway(&origin, &redis), gateway(&origin, &redis)];
    // How long one waits for another is measured by what fetches took, and those at first take longest.
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
    // A machine that is busy may make one wait for longer than that, and then it asks for itself.
    let mut number = 100;
    wait_until("one fetch serves three gateways", || {
        number += 1;
        let id = customer(number);
        let ask = |gateway: &Gateway| gateway.client().get(&name_of(&id)).bearer("tok-viewer").start();
        let pending = gateways.each_ref().map(ask);
        let shared = pending.map(|pending| pending.finish()).iter().filter(|response| is_shared(response)).count();
        (shared, origin.fetches(&id)) == (2, 1)
    });
    let waited: f64 = gateways.iter().map(|one| one.metric("tier_requests_total", &[("result", "waited")])).sum();
    assert!(waited >= 2.0, "{waited}");
}

#[test]
fn nobody_who_reads_there_learns_a_token_an_id_or_a_body() {
    let Some(redis) = Redis::start("tier::nobody_who_reads_there_learns_a_token_an_id_or_a_body") else { return };
    let origin = Origin::start();
    let tokens = ["tok-viewer-1234", "tok-admin-5678"];
    origin.knows(tokens[0], "VIEWER", DUCK);
    origin.knows(tokens[1], "ADMIN", DUCK);
    let gateway = gateway(&origin, &redis);
    let mut said = Vec::new();
    for id in [DUCK, OTHER, THIRD] {
        for token in tokens {
            said.push(gateway.client().get(&name_of(id)).bearer(token).revealed().send().assert_status(200).text());
        }
        // A change of it is told of there.
        gateway.client().post(&format!("/customer/{id}")).bearer(tokens[0]).body("{}").send();
        gateway.client().get(&name_of(id)).bearer(tokens[0]).send().assert_status(200);
    }
    gateway.client().get("/auth/logout").bearer(tokens[1]).send();
    wait_for_writes(&gateway, 9.0, 2.0);
    assert!(redis.names("string").len() >= 5, "there is something to be read");

    let mut all = redis.command(&["XRANGE", "telecomx-gateway:changes", "-", "+"]).into_bytes();
    for name in redis.names("string") {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(&redis.value(&name));
    }
    let has = |text: &[u8]| all.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text));
    let mut secrets: Vec<Vec<u8>> = vec![b"VIEWER".to_vec(), b"customer".to_vec(), b"application/json".to_vec()];
    secrets.extend(tokens.iter().flat_map(|token| [token.as_bytes().to_vec(), employee_of(token).into_bytes()]));
    for id in [DUCK, OTHER, THIRD] {
        let raw = (0..12).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()).collect();
        secrets.extend([id.as_bytes().to_vec(), raw]);
    }
    // Every piece of every body.
    for body in &said {
        secrets.extend(body.as_bytes().chunks(12).filter(|piece| piece.len() == 12).map(<[u8]>::to_vec));
    }
    let found: Vec<_> =
        secrets.iter().filter(|secret| has(secret)).map(|secret| String::from_utf8_lossy(secret)).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(has(b"telecomx-gateway:"), "names begin as they should, and what is looked for would be found");
}

#[test]
fn what_was_changed_there_is_as_good_as_not_there() {
    let Some(redis) = Redis::start("tier::what_was_changed_there_is_as_good_as_not_there") else { return };
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
    let asks_for_itself = |what: &str, kind: &str| {
        let (fetches, validations) = (origin.fetches(DUCK), origin.validations());
        let second = gateway(&origin, &redis);
        let response = ok(second.client().get(P).bearer("tok-viewer"));
        assert_eq!(response.cache_status(), "telecomx-gateway; fwd=uri-miss; stored", "{what}");
        assert_eq!(response.text(), redacted_document(DUCK), "{what}");
        assert_eq!((origin.fetches(DUCK), origin.validations()), (fetches + 1, validations + 1), "{what}");
        assert_eq!(second.metric("tier_errors_total", &[("kind", kind)]), 2.0, "{what}");
        wait_for_writes(&second, 1.0, 1.0);
    };
    // A bit, in the middle and at the end.
    for at in [2, 1] {
        for (name, value) in names.iter().zip(&before) {
            let mut value = value.clone();
            let place = value.len() / at - 1;
            value[place] ^= 1;
            redis.set(name, &value);
        }
        asks_for_itself("a bit", "forged");
    }
    // Good values, each under another one's name.
    for (name, value) in names.iter().zip(before.iter().cycle().skip(1)) {
        redis.set(name, value);
    }
    asks_for_itself("moved", "forged");
    for name in &names {
        redis.set(name, b"\x01\x01?");
    }
    asks_for_itself("cut", "malformed");
    for name in &names {
        redis.set(name, &vec![0; 8 << 20]);
    }
    asks_for_itself("large", "malformed");
    for name in &names {
        redis.command(&["DEL", name]);
        redis.command(&["LPUSH", name, "x"]);
    }
    let response = ok(gateway(&origin, &redis).client().get(P).bearer("tok-viewer"));
    assert_eq!(response.text(), redacted_document(DUCK), "another type");
}

#[test]
fn an_answer_of_another_policy_is_not_taken() {
    let Some(redis) = Redis::start("tier::an_answer_of_another_policy_is_not_taken") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let first = gateway(&origin, &redis);
    let shown = first.client().get(P).bearer("tok-viewer").send().assert_status(200).text();
    assert_eq!(shown, redacted_document(DUCK));
    wait_for_writes(&first, 1.0, 1.0);
    let stricter_rules = format!("{TIER}[redaction]\npublic = []\n");
    let stricter = gateway_with(&origin, &redis, &stricter_rules, A);
    let response = ok(stricter.client().get(P).bearer("tok-viewer"));
    assert_eq!((origin.fetches(DUCK), origin.validations()), (2, 1), "who it is has nothing to do with the policy");
    assert!(!response.text().contains("enabled") && shown.contains("enabled"), "{response:#?}");
    wait_for_writes(&stricter, 1.0, 0.0);
    // Each of them finds its own.
    assert!(is_shared(&gateway(&origin, &redis).client().get(P).bearer("tok-viewer").send()));
    let again = gateway_with(&origin, &redis, &stricter_rules, A);
    let shared = again.client().get(P).bearer("tok-viewer").send();
    assert!(is_shared(&shared) && shared.text() == response.text(), "{shared:#?}");
    assert_eq!(origin.fetches(DUCK), 2);
}

#[test]
fn keys_are_changed_without_a_moment_in_which_anything_is_wrong() {
    let Some(redis) = Redis::start("tier::keys_are_changed_without_a_moment_in_which_anything_is_wrong") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    // Names are by the first key: who swapped the two begins with a tier of its own, once, and nobody finds anything wrong.
    for (keys, finds) in [
        ([A, ""], false),
        ([A, B], true),
        ([B, A], false),
        ([B, ""], true),
        // One who is late still finds its own.
        ([A, B], true),
    ] {
        let keys = keys.concat();
        let asked = origin.fetches(DUCK);
        let gateway = gateway_with(&origin, &redis, TIER, &keys);
        let response = ok(gateway.client().get(P).bearer("tok-viewer"));
        assert_eq!((is_shared(&response), origin.fetches(DUCK) == asked), (finds, finds), "{keys:?}: {response:#?}");
        assert_eq!(gateway.metric("tier_errors_total", &[]), 0.0, "{keys:?}");
        if !finds {
            wait_for_writes(&gateway, 1.0, 1.0);
        }
    }
}

#[test]
fn the_rights_that_the_documentation_gives_are_enough_and_needed() {
    let Some(redis) = Redis::start("tier::the_rights_that_the_documentation_gives_are_enough_and_needed") else {
        return;
    };
    let page = include_str!("../../docs/CLUSTER.md");
    let line = |start: &str| page.lines().find(|line| line.starts_with(start)).expect("it tells the rights");
    let rights = line("ACL SETUSER ").replace(">PASSWORD", ">hunter2");
    let more = line("With `tier`, `").split('`').nth(3).expect("rights");
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let user = "username = \"gateway\"\npassword_file = \"{dir}/password\"\n";
    let config = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{user}{TIER}", redis.url());
    let errors = |rights: &str| {
        assert_eq!(redis.command(&rights.split(' ').collect::<Vec<_>>()), "+OK\r\n");
        let set_up = Gateway::set_up(&origin).config(&config).file("keys", A).file("password", "hunter2");
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
        let others: String = more.split(' ').filter(|other| *other != right).map(|other| format!(" {other}")).collect();
        assert!(errors(&(rights.clone() + &others)) >= 1.0, "{right} is not needed");
    }
}

#[test]
fn a_change_seen_by_one_gateway_ends_what_all_share() {
    let Some(redis) = Redis::start("tier::a_change_seen_by_one_gateway_ends_what_all_share") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let first = gateway(&origin, &redis);
    let second = gateway(&origin, &redis);
    first.client().get(P).bearer("tok-viewer").send().assert_status(200);
    wait_for_writes(&first, 1.0, 1.0);
    assert!(is_shared(&second.client().get(P).bearer("tok-viewer").send()));
    first.client().post(&format!("/customer/{DUCK}")).bearer("tok-viewer").body("{}").send();
    second.wait_for_metric("cache_invalidations_total", &[("scope", "customer"), ("trigger", "fleet")], 2.0);
    // What it asks for before it notes how much it has obeyed would count as from before, and be asked for once more.
    wait_until("all of the stream is obeyed", || {
        let newest = redis.command(&["XREVRANGE", "telecomx-gateway:changes", "+", "-", "COUNT", "1"]);
        newest.contains(second.stats()["cluster"]["position"].as_str().expect("a position"))
    });
    // What stands there is from before; that of one who asks now is from after, and is shared again.
    let response = ok(second.client().get(P).bearer("tok-viewer"));
    assert_eq!((is_shared(&response), origin.fetches(DUCK)), (false, 2), "{response:#?}");
    assert_eq!(second.metric("tier_requests_total", &[("what", "answer"), ("result", "changed")]), 1.0);
    wait_for_writes(&second, 1.0, 0.0);
    assert!(is_shared(&gateway(&origin, &redis).client().get(P).bearer("tok-viewer").send()));
}

#[test]
fn a_gateway_that_starts_anew_starts_warm() {
    const CUSTOMERS: usize = 200;
    let Some(redis) = Redis::start("tier::a_gateway_that_starts_anew_starts_warm") else { return };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let ask_all = |gateway: &Gateway| {
        let mut connection = gateway.client().connect();
        for number in 0..CUSTOMERS {
            gateway.client().get(&name_of(&customer(number))).bearer("tok-viewer").send_on(&mut connection);
        }
    };
    let asked_by = |gateway: Gateway| {
        let before = origin.requests();
        ask_all(&gateway);
        (origin.requests() - before, gateway)
    };
    let (cold, first) = asked_by(gateway(&origin, &redis));
    assert_eq!(cold, CUSTOMERS + 1);
    let failed = first.metric("tier_errors_total", &[]);
    wait_for_writes(&first, CUSTOMERS as f64 - failed, 1.0);
    drop(first);
    let (warm, anew) = asked_by(gateway(&origin, &redis));
    // A busy machine may take longer for one of them than is waited for.
    assert!(warm * 20 < cold, "with the tier it asks for next to nothing: {warm}");
    let ratio = anew.stats()["cache"]["hit_ratio"].as_f64().unwrap();
    assert!(ratio > 0.9, "{ratio}");
    let without = gateway_with(&origin, &redis, "max_isolation = \"10m\"", A);
    assert_eq!(asked_by(without).0, CUSTOMERS + 1, "and without it for everything");
}

#[test]
fn without_its_redis_a_gateway_works_on_as_a_single_one() {
    let Some(mut redis) = Redis::start("tier::without_its_redis_a_gateway_works_on_as_a_single_one") else { return };
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
    // It hangs: a lookup is given up, and after a few nobody tries.
    redis.signal(Signal::SIGSTOP);
    wait_until("it is not asked any more", || {
        next();
        errors("unavailable") >= 1.0
    });
    assert!(errors("timeout") >= 1.0 || gateway.metric("tier_requests_total", &[("result", "skipped")]) >= 1.0);
    redis.signal(Signal::SIGCONT);
    let hits = |result: &str| gateway.metric("tier_requests_total", &[("what", "answer"), ("result", result)]);
    let before = hits("miss");
    wait_until("it is asked again", || {
        next();
        hits("miss") > before
    });
    // It is gone, and comes back empty.
    redis.kill();
    wait_until("it is not asked any more", || {
        next();
        errors("unavailable") + hits("skipped") >= 2.0
    });
    gateway.admin().get("/readyz").send().assert_status(200);
    redis.run();
    let before = hits("miss");
    wait_until("it is asked again", || {
        next();
        hits("miss") > before
    });
}

#[test]
fn a_redis_that_is_full_costs_nothing_but_the_sharing() {
    let Some(redis) = Redis::start("tier::a_redis_that_is_full_costs_nothing_but_the_sharing") else { return };
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

/// No test of speed: that time has a bound at all where a server hangs, and that it is not the API's.
#[test]
fn a_lookup_that_hangs_is_given_up_long_before_the_api_would_be() {
    let Some(redis) = Redis::start("tier::a_lookup_that_hangs_is_given_up_long_before_the_api_would_be") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-viewer", "VIEWER", DUCK);
    let gateway = gateway(&origin, &redis);
    redis.signal(Signal::SIGSTOP);
    let began = Instant::now();
    gateway.client().get(P).bearer("tok-viewer").send().assert_status(200);
    let took = began.elapsed();
    redis.signal(Signal::SIGCONT);
    assert!(took < Duration::from_secs(20), "{took:?}");
}
