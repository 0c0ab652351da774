//! Faults that another client causes in the cluster's Redis: gateways purge at most once, keep
//! their memory bounded and continue.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const KEYS: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const LOG: &str = "/log/changeloglite";
const MEBIBYTE: usize = 1 << 20;

fn set_up<'a>(origin: &'a Origin, redis: &Redis, more: &str) -> Setup<'a> {
    let config = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{more}", redis.url());
    Gateway::set_up(origin).config(&config).file("keys", KEYS).file("log-token", "tok-log\n")
}

fn start(origin: &Origin, redis: &Redis, more: &str) -> Gateway {
    let gateway = set_up(origin, redis, more).start();
    gateway.wait_for_metric("cluster_connected", &[], 1.0);
    gateway
}

fn api() -> Origin {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin
}

fn get(gateway: &Gateway) -> Response {
    gateway.client().get(P).bearer("tok-a").send()
}

/// The name of the invalidation stream.
fn stream(redis: &Redis) -> String {
    redis.names("stream").pop().expect("a stream")
}

/// The ids of the stream's messages, oldest first.
fn ids(redis: &Redis, stream: &str) -> Vec<String> {
    let all = redis.command(&["XRANGE", stream, "-", "+"]);
    let is_id = |line: &&str| {
        line.split_once('-').is_some_and(|(a, b)| a.len() > 9 && b.parse::<u64>().is_ok())
    };
    all.lines().filter(is_id).map(str::to_owned).collect()
}

/// The server's clock, in seconds.
fn server_seconds(redis: &Redis) -> u64 {
    let time = redis.command(&["TIME"]);
    time.lines().nth(2).and_then(|line| line.parse().ok()).expect("a time")
}

fn drops(gateway: &Gateway) -> f64 {
    gateway.metric("cluster_drops_total", &[])
}

/// Causes a change through `gateway`, of a customer that no test requests.
fn change(gateway: &Gateway) {
    gateway.admin().delete("/cache/customers/000000000000000000000001").send().assert_status(200);
}

/// Waits until the gateway has read all of the stream.
fn catch_up(gateway: &Gateway, redis: &Redis, stream: &str) {
    wait_until("all of the stream is read", || {
        let newest = redis.command(&["XREVRANGE", stream, "+", "-", "COUNT", "1"]);
        let stats = gateway.stats();
        let position = stats["cluster"]["position"].as_str().expect("a position");
        stats["cluster"]["connected"] == true && newest.contains(position)
    });
}

/// Asserts that the cache is used again, and that nothing more is purged.
fn assert_works(gateway: &Gateway, what: &str) {
    wait_until(&format!("{what}: hits again"), || get(gateway).assert_status(200).is_hit());
    let before = drops(gateway);
    pace(Duration::from_millis(300));
    assert_eq!(drops(gateway), before, "{what}: nothing more is purged");
    assert!(get(gateway).is_hit(), "{what}");
}

/// Sends the command in `before` with a last argument of that many mebibytes.
fn put_large(redis: &Redis, before: &[&str], mebibytes: usize) {
    let value = "x".repeat(mebibytes * MEBIBYTE);
    let words: Vec<&str> = before.iter().copied().chain([value.as_str()]).collect();
    let answer = redis.command(&words);
    assert!(!answer.starts_with('-'), "{answer}");
}

#[test]
fn removed_messages_purge_once() {
    let Some(redis) = Redis::start("redis_faults::removed_messages_purge_once") else { return };
    let origin = api();
    let gateways = [
        start(&origin, &redis, "max_isolation = \"10m\""),
        start(&origin, &redis, "max_isolation = \"10m\""),
    ];
    let stream = stream(&redis);
    let faults: [(&str, &dyn Fn()); 7] = [
        ("added and removed at once", &|| {
            let script = "redis.call('XDEL', KEYS[1], redis.call('XADD', KEYS[1], '*', 'm', 'x'))";
            redis.command(&["EVAL", script, "1", &stream]);
        }),
        ("the newest is removed", &|| {
            let newest = ids(&redis, &stream).pop().expect("a message");
            redis.command(&["XDEL", &stream, &newest]);
        }),
        ("a message in the middle is removed", &|| {
            (0..3).for_each(|_| change(&gateways[0]));
            wait_until("they are published", || ids(&redis, &stream).len() >= 3);
            let all = ids(&redis, &stream);
            redis.command(&["XDEL", &stream, &all[all.len() - 2]]);
        }),
        ("all are removed one by one", &|| {
            for id in ids(&redis, &stream) {
                redis.command(&["XDEL", &stream, &id]);
            }
        }),
        ("it is trimmed to nothing", &|| {
            redis.command(&["XTRIM", &stream, "MAXLEN", "0"]);
        }),
        ("its last id is raised", &|| {
            let later = (server_seconds(&redis) + 2) * 1000;
            redis.command(&["XSETID", &stream, &format!("{later}-0")]);
        }),
        ("it is deleted", &|| {
            redis.command(&["DEL", &stream]);
        }),
    ];
    for (what, fault) in faults {
        gateways.iter().for_each(|gateway| assert_works(gateway, what));
        let before = gateways.each_ref().map(drops);
        fault();
        change(&gateways[0]);
        for gateway in &gateways {
            wait_until("the change is published", || {
                gateways[0].stats()["cluster"]["waiting_changes"] == 0
            });
            catch_up(gateway, &redis, &stream);
            assert_works(gateway, what);
        }
        for (gateway, before) in gateways.iter().zip(before) {
            let more = drops(gateway) - before;
            // The fault may be detected only with the change after it: both count once together.
            assert!(more <= 1.0, "{what}: purged {more} times");
            assert_eq!(gateway.metric("cluster_isolated", &[]), 0.0, "{what}");
        }
        let late = start(&origin, &redis, "max_isolation = \"10m\"");
        assert_works(&late, what);
        assert_eq!(drops(&late), 0.0, "{what}: a starting gateway has nothing to purge");
    }
}

#[test]
fn stopped_gateway_purges_once_for_a_removed_message() {
    let Some(redis) =
        Redis::start("redis_faults::stopped_gateway_purges_once_for_a_removed_message")
    else {
        return;
    };
    let origin = api();
    let [one, two] = [
        start(&origin, &redis, "max_isolation = \"10m\""),
        start(&origin, &redis, "max_isolation = \"10m\""),
    ];
    let stream = stream(&redis);
    get(&two).assert_status(200);
    two.signal(Signal::SIGSTOP);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    let before = ids(&redis, &stream).len();
    (0..3).for_each(|_| change(&one));
    wait_until("they are published", || ids(&redis, &stream).len() >= before + 3);
    let newest = ids(&redis, &stream).pop().expect("a message");
    redis.command(&["XDEL", &stream, &newest]);
    two.signal(Signal::SIGCONT);
    two.wait_for_metric("cluster_drops_total", &[("reason", "trimmed")], 1.0);
    assert_works(&two, "a message that it did not read was removed");
    assert_eq!(drops(&two), 1.0);
}

#[test]
fn large_values_do_not_fill_memory() {
    let Some(redis) = Redis::start("redis_faults::large_values_do_not_fill_memory") else { return };
    let origin = api();
    origin.when(Rule::on(LOG).made(|_| Answer::json("[]")));
    let config = "max_isolation = \"1s\"\ntier = true\ntier_timeout = \"2s\"\n\
                  [change_log]\ntoken_file = \"{dir}/log-token\"\ninterval = \"100ms\"\n";
    let gateway = start(&origin, &redis, config);
    get(&gateway).assert_status(200);
    gateway.wait_for_metric("tier_writes_total", &[("what", "answer"), ("result", "ok")], 1.0);
    let stream = stream(&redis);
    let before = gateway.memory();
    let assert_small = |what: &str| {
        for _ in 0..20 {
            gateway
                .client()
                .get(P)
                .bearer("tok-a")
                .header("cache-control", "no-cache")
                .send()
                .assert_status(200);
            let grown = gateway.memory().saturating_sub(before);
            assert!(grown < 32 << 10, "{what}: memory has grown by {grown} KiB");
            pace(Duration::from_millis(50));
        }
    };
    for name in redis.names("string") {
        put_large(&redis, &["SET", &name], 128);
    }
    assert_small("in the tier and the lease");
    put_large(&redis, &["XADD", &stream, "*", "m"], 128);
    gateway.wait_for_metric("cluster_isolated", &[], 1.0);
    gateway.wait_for_log("a reply is too large");
    assert_small("in the stream");
    assert!(gateway.metric("cluster_errors_total", &[("kind", "too_large")]) >= 1.0);
    redis.command(&["DEL", &stream]);
    wait_until("isolation ended", || gateway.metric("cluster_isolated", &[]) == 0.0);
    assert_works(&gateway, "the large entry was removed");
}

#[test]
fn unusable_stream_is_recreated() {
    let Some(redis) = Redis::start("redis_faults::unusable_stream_is_recreated") else { return };
    let origin = api();
    let gateways = [start(&origin, &redis, ""), start(&origin, &redis, "")];
    let stream = stream(&redis);
    let largest = "18446744073709551615-18446744073709551615";
    let tomorrow = format!("{}-0", (server_seconds(&redis) + 86_400) * 1000);
    let list = "redis.call('DEL', KEYS[1]) redis.call('LPUSH', KEYS[1], 'x')";
    let hash = "redis.call('DEL', KEYS[1]) redis.call('HSET', KEYS[1], 'm', 'x')";
    let faults: [&[&str]; 9] = [
        &["XADD", &stream, "18446744073709551615-0", "x", "y"],
        &["XADD", &stream, largest, "x", "y"],
        // Not the largest id, but later than any that the gateway can represent.
        &["XADD", &stream, "99999999999999-0", "x", "y"],
        // Later than the server's clock: the age of policy messages would be unknown.
        &["XADD", &stream, &tomorrow, "x", "y"],
        &["XSETID", &stream, &tomorrow],
        &["XSETID", &stream, largest],
        &["SET", &stream, "x"],
        &["EVAL", list, "1", &stream],
        &["EVAL", hash, "1", &stream],
    ];
    for fault in faults {
        let before = gateways.each_ref().map(drops);
        let reply = redis.command(fault);
        assert!(!reply.starts_with('-'), "{fault:?}: {reply}");
        wait_until("the stream was recreated", || {
            let newest = ids(&redis, &stream).pop();
            let millis = newest.and_then(|id| id.split_once('-')?.0.parse::<u64>().ok());
            let is_recent =
                millis.is_some_and(|millis| millis <= (server_seconds(&redis) + 1) * 1000);
            is_recent
                && gateways.iter().zip(before).all(|(gateway, before)| drops(gateway) > before)
        });
        wait_until("messages can be added", || {
            change(&gateways[0]);
            gateways[0].stats()["cluster"]["waiting_changes"] == 0
        });
        for gateway in &gateways {
            catch_up(gateway, &redis, &stream);
            wait_until("isolation ended", || gateway.metric("cluster_isolated", &[]) == 0.0);
            assert_works(gateway, fault[0]);
        }
    }
    let logs = gateways.iter().map(Gateway::log).collect::<String>();
    let line = logs
        .lines()
        .find(|line| line.contains("recreated the unusable invalidation stream"))
        .expect("an error line");
    assert!(line.contains(&stream) && line.contains("ERROR"), "{line}");
}

#[test]
fn copies_of_a_policy_message_cause_few_reloads() {
    const COPIES: usize = 3000;
    let Some(redis) = Redis::start("redis_faults::copies_of_a_policy_message_cause_few_reloads")
    else {
        return;
    };
    let origin = api();
    let [one, two] = [
        start(&origin, &redis, "max_isolation = \"10m\""),
        start(&origin, &redis, "max_isolation = \"10m\""),
    ];
    let config = std::fs::read_to_string(one.config_file()).expect("the configuration is readable");
    let before = ids(&redis, &stream(&redis)).len();
    one.rewrite("gateway.toml", &format!("{config}\n[redaction]\nreveal_to = \"ADMIN\"\n"));
    one.admin().post("/reload").send().assert_status(200);
    two.wait_for_log("reloading the configuration");
    let stream = stream(&redis);
    wait_until("the policy is published", || ids(&redis, &stream).len() > before);
    let threads = || {
        std::fs::read_dir(format!("/proc/{}/task", two.id())).expect("a list of threads").count()
    };
    let (threads_before, mut most) = (threads(), 0);
    let copy = "local all = redis.call('XRANGE', KEYS[1], '-', '+') \
                for i = 1, ARGV[1] do for _, one in ipairs(all) do \
                redis.call('XADD', KEYS[1], '*', unpack(one[2])) end end";
    redis.command(&["EVAL", copy, "1", &stream, &COPIES.to_string()]);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        most = most.max(threads());
        look_again();
    }
    // The gateway reads past the copies.
    wait_until("all of them are read", || {
        change(&one);
        redis
            .command(&["XREVRANGE", &stream, "+", "-", "COUNT", "1"])
            .contains(two.stats()["cluster"]["position"].as_str().expect("a position"))
    });
    let reloads = two.log().matches("reloading the configuration").count();
    assert!(reloads <= 3, "{reloads} reloads");
    assert!(most <= threads_before + 2, "{most} threads, {threads_before} before");
}

#[test]
fn change_log_is_polled_despite_an_endless_lease() {
    let Some(redis) = Redis::start("redis_faults::change_log_is_polled_despite_an_endless_lease")
    else {
        return;
    };
    let origin = api();
    origin.when(Rule::on(LOG).made(|_| Answer::json("[]")));
    let polls = || origin.count(|seen| seen.target.starts_with(LOG));
    // A lease lives for 2.2 s.
    let config = "max_isolation = \"10m\"\n[change_log]\ntoken_file = \"{dir}/log-token\"\ninterval = \"100ms\"\n\
                  [upstream]\ntimeout = \"1s\"\n";
    let gateways = [start(&origin, &redis, config), start(&origin, &redis, config)];
    wait_until("the log is polled", || polls() >= 3);
    let lease = || redis.names("string").into_iter().find(|name| name.ends_with(":turn"));
    let name = lease().expect("a lease");
    for fault in [&["SET", name.as_str(), "x"][..], &["SET", &name, "x", "PX", "864000000"]] {
        redis.command(fault);
        let (set, before) = (Instant::now(), polls());
        // One poll may be under way.
        wait_until("it is polled again", || polls() > before + 2);
        assert!(
            set.elapsed() < Duration::from_millis(2 * 2200 + 1000),
            "{fault:?}: after {:?}",
            set.elapsed()
        );
    }
    let overdue = |gateway: &Gateway| {
        gateway.metric("change_log_failures_total", &[("why", "lease_overdue")])
    };
    let labelled = |gateway: &Gateway| gateway.metrics().contains("lease_overdue");
    assert!(
        gateways.iter().any(labelled),
        "the takeover is counted: {:?}",
        gateways.each_ref().map(overdue)
    );
    assert!(
        gateways.iter().any(|gateway| gateway.log().contains("took over the change log lease"))
    );
}

#[test]
fn unusable_change_log_lease_is_replaced() {
    let Some(redis) = Redis::start("redis_faults::unusable_change_log_lease_is_replaced") else {
        return;
    };
    let origin = api();
    origin.when(Rule::on(LOG).made(|_| Answer::json("[]")));
    let config = "max_isolation = \"10m\"\n[change_log]\ntoken_file = \"{dir}/log-token\"\ninterval = \"100ms\"\n";
    let gateways = [start(&origin, &redis, config), start(&origin, &redis, config)];
    let name = |end: &str| redis.names("string").into_iter().find(|name| name.ends_with(end));
    wait_until("progress is stored", || name(":turn").is_some() && name(":done").is_some());
    let list = "redis.call('DEL', KEYS[1]) redis.call('LPUSH', KEYS[1], 'x')";
    for end in [":turn", ":done"] {
        // A lease that was just replaced has no progress yet.
        let mut found = None;
        wait_until("there is a key", || {
            found = name(end);
            found.is_some()
        });
        let key = found.expect("a key");
        let reply = redis.command(&["EVAL", list, "1", &key]);
        assert!(!reply.starts_with('-'), "{reply}");
        wait_until("the key is replaced", || name(end).as_ref() == Some(&key));
        wait_until("the replacement is logged", || {
            let logs = gateways.iter().map(Gateway::log).collect::<String>();
            logs.lines().any(|line| {
                line.contains("replaced the unusable lease of a task")
                    && line.contains(&key)
                    && line.contains("ERROR")
            })
        });
    }
}

#[test]
fn unusable_tier_keys_are_replaced() {
    let Some(redis) = Redis::start("redis_faults::unusable_tier_keys_are_replaced") else { return };
    let origin = api();
    let config = "max_isolation = \"10m\"\ntier = true\ntier_timeout = \"2s\"\n";
    let first = start(&origin, &redis, config);
    get(&first).assert_status(200);
    let written = [("what", "answer"), ("operation", "write"), ("result", "ok")];
    first.wait_for_metric("tier_writes_total", &written, 1.0);
    wait_until("both values are written", || redis.names("string").len() == 2);
    let names = redis.names("string");
    let list = "redis.call('DEL', KEYS[1]) redis.call('LPUSH', KEYS[1], 'x')";
    for name in &names {
        redis.command(&["EVAL", list, "1", name]);
    }
    get(&start(&origin, &redis, config)).assert_status(200);
    let is_replaced = || redis.names("list").is_empty() && redis.names("string").len() == 2;
    wait_until("values of another type are replaced", is_replaced);
    // Leases of no gateway, which never expire.
    for name in &names {
        redis.command(&["DEL", name]);
        redis.command(&["SET", &format!("{name}:lease"), "x"]);
    }
    get(&start(&origin, &redis, config)).assert_status(200);
    wait_until("leases without an expiry are released", || {
        let left = redis.names("string");
        left.len() == 2 && names.iter().all(|name| left.contains(name))
    });
}
