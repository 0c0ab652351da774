//! Gateways that share a Redis: a change through one invalidates on all, and a gateway that cannot
//! read the changes does not use its cache.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const WRITE: &str = "/customer/73469a52f4fd7f77ec7b28cc";
const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";
const KEYS: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const OTHER_KEYS: &str = "b f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f\n";

/// Longer than a test runs, for tests that are not about isolation.
const NO_ISOLATION: &str = "max_isolation = \"10m\"";

fn set_up<'a>(origin: &'a Origin, redis: &Redis, more: &str) -> Setup<'a> {
    let config = format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{more}", redis.url());
    Gateway::set_up(origin).config(&config).file("keys", KEYS)
}

/// Gateways that read each other's changes.
fn cluster(origin: &Origin, redis: &Redis, size: usize, more: &str) -> Vec<Gateway> {
    let gateways: Vec<Gateway> = (0..size).map(|_| set_up(origin, redis, more).start()).collect();
    gateways.iter().for_each(wait_until_connected);
    gateways
}

fn wait_until_connected(gateway: &Gateway) {
    gateway.wait_for_metric("cluster_connected", &[], 1.0);
}

fn received(gateway: &Gateway) -> f64 {
    gateway.metric("cluster_messages_total", &[("direction", "heard")])
}

/// Waits until the receiver has applied every invalidation of the sender so far: it applies a purge
/// that was published after them. Other invalidations may still arrive meanwhile, so purges of a
/// customer are counted alone.
fn catch_up(sender: &Gateway, receiver: &Gateway) {
    let purges = || {
        receiver.metric("cache_invalidations_total", &[("scope", "customer"), ("trigger", "fleet")])
    };
    let before = purges();
    sender.admin().delete("/cache/customers/000000000000000000000001").send().assert_status(200);
    wait_until("a later purge is applied", || purges() > before);
}

fn get(gateway: &Gateway, token: &str) -> Response {
    gateway.client().get(P).bearer(token).send()
}

#[test]
fn write_through_one_gateway_invalidates_on_all() {
    let Some(redis) = Redis::start("cluster::write_through_one_gateway_invalidates_on_all") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 3, NO_ISOLATION);
    for gateway in &gateways {
        get(gateway, "tok-a").assert_status(200);
        gateway.client().get(&name_of(OTHER)).bearer("tok-a").send().assert_status(200);
        assert!(get(gateway, "tok-a").is_hit());
    }
    gateways[0].client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    for gateway in &gateways {
        // Published before the request was sent, and again when its response was complete.
        wait_until("the write is applied", || {
            gateway.metric("cluster_spread_seconds_count", &[]) + received(gateway) >= 2.0
        });
        assert_eq!(get(gateway, "tok-a").assert_status(200).cache_status(), STORED);
        assert!(gateway.client().get(&name_of(OTHER)).bearer("tok-a").send().is_hit());
    }
}

#[test]
fn purge_logout_and_ended_token_invalidate_on_all() {
    let Some(redis) = Redis::start("cluster::purge_logout_and_ended_token_invalidate_on_all")
    else {
        return;
    };
    let origin = Origin::start();
    let employee = "ee0000000000000000000001";
    origin.knows_employee("tok-1", "VIEWER", DUCK, employee);
    origin.knows_employee("tok-2", "VIEWER", DUCK, employee);
    origin.knows("tok-ended", "VIEWER", DUCK);
    origin.knows("tok-other", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 2, NO_ISOLATION);
    let [one, two] = [&gateways[0], &gateways[1]];
    for token in ["tok-1", "tok-2", "tok-ended", "tok-other"] {
        get(two, token).assert_status(200);
    }
    // The other gateway never saw these tokens, but digests them in the same way.
    one.client().get("/auth/logout").bearer("tok-1").send().assert_status(200);
    origin.forgets("tok-1");
    origin.forgets("tok-2");
    catch_up(one, two);
    get(two, "tok-1").assert_error(401, "invalid_token");
    get(two, "tok-2").assert_error(401, "invalid_token");
    let ended = "/employee/ee0000000000000000000009/token/tok-ended";
    one.client().delete(ended).bearer("tok-other").send().assert_status(200);
    origin.forgets("tok-ended");
    catch_up(one, two);
    get(two, "tok-ended").assert_error(401, "invalid_token");
    assert!(get(two, "tok-other").is_hit(), "other tokens stay valid");
    one.admin().delete("/cache").send().assert_status(200);
    catch_up(one, two);
    assert_eq!(
        get(two, "tok-other").assert_status(200).cache_status(),
        STORED,
        "everything was purged"
    );
    assert!(
        two.metric("cache_invalidations_total", &[("scope", "all"), ("trigger", "fleet")]) >= 1.0
    );
}

#[test]
fn stream_shows_no_token_id_or_access_level() {
    let Some(redis) = Redis::start("cluster::stream_shows_no_token_id_or_access_level") else {
        return;
    };
    let origin = Origin::start();
    origin.knows_employee("tok-secret", "VIEWER", DUCK, "ee0000000000000000000001");
    let gateways = cluster(&origin, &redis, 2, NO_ISOLATION);
    get(&gateways[0], "tok-secret").assert_status(200);
    gateways[0].client().post(WRITE).bearer("tok-secret").body("{}").send().assert_status(200);
    gateways[0].client().get("/auth/logout").bearer("tok-secret").send().assert_status(200);
    catch_up(&gateways[0], &gateways[1]);
    let all = redis.command(&["XRANGE", "telecomx-gateway:changes", "-", "+"]);
    assert!(all.len() > 400, "{all}");
    for secret in ["tok-secret", DUCK, "ee0000000000000000000001", "VIEWER", "000102030405"] {
        assert!(!all.contains(secret), "{secret} is in {all}");
    }
}

#[test]
fn disconnected_gateway_continues_from_its_position() {
    let Some(redis) = Redis::start("cluster::disconnected_gateway_continues_from_its_position")
    else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 2, NO_ISOLATION);
    let [one, two] = [&gateways[0], &gateways[1]];
    get(two, "tok-a").assert_status(200);
    two.client().get(&name_of(OTHER)).bearer("tok-a").send().assert_status(200);
    two.signal(Signal::SIGSTOP);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    one.client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    one.wait_for_metric("cluster_messages_total", &[("direction", "told")], 2.0);
    two.signal(Signal::SIGCONT);
    catch_up(one, two);
    assert_eq!(get(two, "tok-a").assert_status(200).cache_status(), STORED);
    assert!(
        two.client().get(&name_of(OTHER)).bearer("tok-a").send().is_hit(),
        "nothing else was invalidated"
    );
    assert_eq!(two.metric("cluster_drops_total", &[]), 0.0);
}

#[test]
fn gateway_behind_a_trimmed_stream_purges_once() {
    let Some(redis) = Redis::start("cluster::gateway_behind_a_trimmed_stream_purges_once") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 2, NO_ISOLATION);
    let [one, two] = [&gateways[0], &gateways[1]];
    get(two, "tok-a").assert_status(200);
    two.signal(Signal::SIGSTOP);
    // It may have received the first message before it stopped; not the later ones.
    for _ in 0..3 {
        one.client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    }
    one.wait_for_metric("cluster_messages_total", &[("direction", "told")], 6.0);
    redis.command(&["XTRIM", "telecomx-gateway:changes", "MAXLEN", "0"]);
    two.signal(Signal::SIGCONT);
    two.wait_for_metric("cluster_drops_total", &[("reason", "trimmed")], 1.0);
    two.wait_for_log("purged the whole cache");
    assert_eq!(get(two, "tok-a").assert_status(200).cache_status(), STORED);
    catch_up(one, two);
    assert!(get(two, "tok-a").is_hit());
    assert_eq!(two.metric("cluster_drops_total", &[]), 1.0, "once");
}

#[test]
fn isolated_gateway_uses_its_cache_for_max_isolation() {
    let Some(mut redis) =
        Redis::start("cluster::isolated_gateway_uses_its_cache_for_max_isolation")
    else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let isolation = "max_isolation = \"1s\"\nconnect_timeout = \"200ms\"";
    let mut gateways = cluster(&origin, &redis, 1, isolation);
    gateways.push(
        set_up(&origin, &redis, &format!("{isolation}\nready_when_isolated = false")).start(),
    );
    gateways.iter().for_each(wait_until_connected);
    for outage in ["killed", "stopped"] {
        gateways.iter().for_each(|gateway| drop(get(gateway, "tok-a")));
        gateways
            .iter()
            .for_each(|gateway| assert!(get(gateway, "tok-a").is_hit(), "{outage}: in memory"));
        if outage == "killed" {
            redis.kill()
        } else {
            redis.signal(Signal::SIGSTOP)
        }
        for gateway in &gateways {
            gateway.wait_for_metric("cluster_isolated", &[], 1.0);
            let before = origin.seen().len();
            for _ in 0..3 {
                let answer = get(gateway, "tok-a");
                assert!(!answer.assert_status(200).is_hit(), "{outage}: {answer:#?}");
            }
            // Each time a validation and a fetch.
            assert_eq!(origin.seen().len() - before, 6, "{outage}");
            assert_eq!(gateway.stats()["cluster"]["isolated"], true);
        }
        let ready = |gateway: &Gateway| gateway.admin().get("/readyz").send().status;
        assert_eq!(gateways.iter().map(ready).collect::<Vec<_>>(), [200, 503], "{outage}");
        if outage == "killed" {
            redis.run()
        } else {
            redis.signal(Signal::SIGCONT)
        }
        for gateway in &gateways {
            wait_until("isolation ended", || gateway.metric("cluster_isolated", &[]) == 0.0);
            let drops = gateway.metric("cluster_drops_total", &[("reason", "server")]);
            assert_eq!(
                drops, 1.0,
                "{outage}: a restarted server purges everything, a silent one does not"
            );
            assert_eq!(gateway.admin().get("/readyz").send().status, 200);
        }
    }
}

#[test]
fn stopped_gateway_serves_nothing_from_before() {
    let Some(redis) = Redis::start("cluster::stopped_gateway_serves_nothing_from_before") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 2, "max_isolation = \"1s\"");
    let [one, two] = [&gateways[0], &gateways[1]];
    get(two, "tok-a").assert_status(200);
    let client = two.client();
    let mut connection = client.connect();
    assert!(client.get(P).bearer("tok-a").send_on(&mut connection).is_hit());
    two.signal(Signal::SIGSTOP);
    one.client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    // Sent while the process is stopped, so that it reads this first when it continues.
    connection.send_raw(client.get(P).bearer("tok-a").bytes());
    pace(std::time::Duration::from_millis(1500));
    two.signal(Signal::SIGCONT);
    let answer = connection.read("GET", Kind::Intercepted).expect("an answer");
    assert!(!answer.assert_status(200).is_hit(), "{answer:#?}");
}

#[test]
fn stopping_gateway_publishes_its_changes_first() {
    let Some(redis) = Redis::start("cluster::stopping_gateway_publishes_its_changes_first") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let mut gateways = cluster(&origin, &redis, 2, NO_ISOLATION);
    let two = gateways.pop().expect("two gateways");
    let mut one = gateways.pop().expect("two gateways");
    get(&two, "tok-a").assert_status(200);
    redis.signal(Signal::SIGSTOP);
    one.client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    one.signal(Signal::SIGTERM);
    one.wait_for_log("draining");
    redis.signal(Signal::SIGCONT);
    assert_eq!(one.wait().code, Some(0));
    wait_until("the write is applied", || received(&two) >= 2.0);
    assert_eq!(get(&two, "tok-a").assert_status(200).cache_status(), STORED);
}

#[test]
fn gateway_without_redis_works_alone_and_logs_why() {
    let Some(mut redis) = Redis::stopped("cluster::gateway_without_redis_works_alone_and_logs_why")
    else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = set_up(&origin, &redis, NO_ISOLATION).start();
    gateway.wait_for_log("failed to read the invalidation stream");
    gateway.wait_for_log("cannot be reached");
    get(&gateway, "tok-a").assert_status(200);
    assert!(get(&gateway, "tok-a").is_hit());
    redis.run();
    wait_until_connected(&gateway);
    gateway.wait_for_log("reading the invalidation stream");

    let locked =
        Redis::with_password("cluster", Some("hunter2")).expect("redis-server is installed");
    let with = |password: &str| {
        let more = format!("{NO_ISOLATION}\npassword_file = \"{{dir}}/password\"");
        set_up(&origin, &locked, &more).file("password", password).start()
    };
    let wrong = with("hunter3\n");
    wrong.wait_for_log("permission denied");
    wrong.wait_for_log("cluster.password_file");
    get(&wrong, "tok-a").assert_status(200);
    assert!(get(&wrong, "tok-a").is_hit());
    assert_eq!(wrong.metric("cluster_connected", &[]), 0.0);
    assert!(!wrong.log().contains("hunter3"));
    // A corrected password needs no restart.
    wrong.rewrite("password", "hunter2\n");
    wait_until_connected(&wrong);
    wait_until_connected(&with("hunter2\n"));
}

#[test]
fn reload_with_another_policy_reloads_the_others() {
    let Some(redis) = Redis::start("cluster::reload_with_another_policy_reloads_the_others") else {
        return;
    };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 3, NO_ISOLATION);
    for gateway in &gateways {
        get(gateway, "tok-a").assert_status(200);
    }
    let generation =
        |gateway: &Gateway| gateway.stats()["config_generation"].as_u64().expect("a number");
    let with_policy = |gateway: &Gateway, action: &str| {
        let file =
            std::fs::read_to_string(gateway.config_file()).expect("the configuration is readable");
        gateway.rewrite("gateway.toml", &format!("{file}\n[redaction]\naction = {action:?}\n"));
    };
    with_policy(&gateways[0], "null");
    with_policy(&gateways[1], "null");
    with_policy(&gateways[2], "mask");
    gateways[0].admin().post("/reload").send().assert_status(200);
    for gateway in &gateways[1..] {
        wait_until("it reloads its file", || generation(gateway) >= 2);
    }
    let answers: Vec<String> =
        gateways.iter().map(|gateway| get(gateway, "tok-a").assert_status(200).text()).collect();
    assert!(answers[0].contains("null") && answers[0] == answers[1], "{answers:#?}");
    assert!(answers[2].contains("***"), "{answers:#?}");
    gateways[2].wait_for_log("another gateway of the cluster uses a different redaction policy");
    // The third policy differs from both, which the others do not have in their files; they do not
    // reload forever.
    for gateway in &gateways[..2] {
        gateway.wait_for_log("another gateway of the cluster uses a different redaction policy");
    }
    for gateway in &gateways[1..] {
        catch_up(&gateways[0], gateway);
    }
    let generations: Vec<u64> = gateways.iter().map(generation).collect();
    assert!(
        generations.iter().all(|generation| *generation <= 4),
        "at most once for each file that changed: {generations:?}"
    );
}

#[test]
fn documented_redis_rights_suffice() {
    let Some(redis) = Redis::start("cluster::documented_redis_rights_suffice") else { return };
    let page = include_str!("../../docs/CLUSTER.md");
    let rights = page
        .lines()
        .find(|line| line.starts_with("ACL SETUSER "))
        .expect("the page documents the rights");
    let rights = rights.replace(">PASSWORD", ">hunter2");
    assert_eq!(redis.command(&rights.split(' ').collect::<Vec<_>>()), "+OK\r\n");
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let more =
        format!("{NO_ISOLATION}\nusername = \"gateway\"\npassword_file = \"{{dir}}/password\"");
    let start = || set_up(&origin, &redis, &more).file("password", "hunter2\n").start();
    let gateways = [start(), start()];
    gateways.iter().for_each(wait_until_connected);
    get(&gateways[1], "tok-a").assert_status(200);
    gateways[0].client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    catch_up(&gateways[0], &gateways[1]);
    assert_eq!(get(&gateways[1], "tok-a").assert_status(200).cache_status(), STORED);
    gateways
        .iter()
        .for_each(|gateway| assert_eq!(gateway.metric("cluster_errors_total", &[]), 0.0));
}

#[test]
fn unreadable_message_purges_everything() {
    let Some(redis) = Redis::start("cluster::unreadable_message_purges_everything") else { return };
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateways = cluster(&origin, &redis, 1, NO_ISOLATION);
    let config =
        format!("[cluster]\nurl = {:?}\nkey_file = \"{{dir}}/keys\"\n{NO_ISOLATION}", redis.url());
    let stranger = Gateway::set_up(&origin).config(&config).file("keys", OTHER_KEYS).start();
    wait_until_connected(&stranger);
    get(&gateways[0], "tok-a").assert_status(200);
    stranger.client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
    gateways[0].wait_for_metric("cluster_drops_total", &[("reason", "unreadable")], 1.0);
    assert!(!get(&gateways[0], "tok-a").assert_status(200).is_hit());
    // The write is announced twice; what was fetched before the second announcement is not stored.
    wait_until("a response is stored again", || {
        get(&gateways[0], "tok-a").assert_status(200).is_hit()
    });
    redis.command(&["XADD", "telecomx-gateway:changes", "*", "m", "forged"]);
    wait_until("a forged message is counted", || {
        gateways[0].metric("cluster_errors_total", &[("kind", "malformed")]) >= 1.0
    });
}

#[test]
fn invalid_key_file_is_reported_before_the_start() {
    let dir = TempDir::new();
    let keys = dir.write("keys", "a 0102\n");
    let config = format!(
        "[upstream]\nurl = \"http://127.0.0.1:1\"\n[cluster]\nurl = \"redis://127.0.0.1:1\"\nkey_file = {:?}\n",
        keys.display().to_string()
    );
    let path = dir.write("gateway.toml", &config).display().to_string();
    for command in ["check", "run"] {
        let run = run_binary(&[command, "-c", &path], b"");
        assert_eq!(run.code, Some(78), "{run:#?}");
        assert!(
            run.stderr.contains("cluster.key_file: ") && run.stderr.contains("line 1: invalid key"),
            "{run:#?}"
        );
        assert!(
            run.stderr.contains("openssl rand -hex 32") && !run.stderr.contains("0102"),
            "{run:#?}"
        );
    }
}

/// The addresses in the printed commands, each once.
fn addresses_in(lines: &str) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for rest in lines.split("http://").skip(1).filter(|rest| rest.contains("/customer/")) {
        let address = rest.split('/').next().expect("an address").to_owned();
        if rest.starts_with(&format!("{address}/customer/")) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// Sends a request and returns the response, head and body.
fn exchange(address: &str, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("the gateway listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).expect("the gateway reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the gateway responds");
    answer
}

#[test]
fn demo_cluster_follows_its_transcript_and_cleans_up() {
    if Redis::stopped("cluster::demo_cluster_follows_its_transcript_and_cleans_up").is_none() {
        return;
    }
    let dir = TempDir::new();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"))
        .args(["demo", "--fleet", "3"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let mut output = BufReader::new(demo.stdout.take().expect("stdout is piped"));
    let mut lines = String::new();
    while !lines.contains("shutdown nosave") {
        assert_ne!(output.read_line(&mut lines).expect("output"), 0, "it ended: {lines}");
    }
    let addresses = addresses_in(&lines);
    assert_eq!(addresses.len(), 3, "{lines}");
    let get = |address: &str| {
        let head =
            "Host: gateway\nAuthorization: Bearer sandbox-demo-viewer\nConnection: close\n\n";
        exchange(address, &format!("GET {P} HTTP/1.1\n{head}"))
    };
    for address in &addresses {
        assert!(get(address).starts_with("HTTP/1.1 200"));
        assert!(get(address).contains("; hit"));
    }
    let body = "{\"name\":\"Andeby A/S\"}";
    let fields = "Host: gateway\nAuthorization: Bearer sandbox-demo-owner\nContent-Type: application/json\nConnection: close";
    let write =
        format!("POST {WRITE} HTTP/1.1\n{fields}\nContent-Length: {}\n\n{body}", body.len());
    assert!(exchange(&addresses[0], &write).starts_with("HTTP/1.1 200"));
    for address in &addresses {
        wait_until("the update is visible", || get(address).contains("Andeby A/S"));
    }
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGTERM).expect("it is running");
    assert_eq!(demo.wait().expect("an exit status").code(), Some(0));
    for address in &addresses {
        assert!(std::net::TcpStream::connect(address).is_err(), "{address} still listens");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "it left files");
}

#[test]
fn demo_cluster_without_redis_names_the_package() {
    let dir = TempDir::new();
    let path = dir.path().display().to_string();
    let run =
        run_binary_with(&[("PATH", &path), ("TMPDIR", &path)], &["demo", "--fleet", "3"], b"");
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(
        run.stderr.contains("requires redis-server")
            && run.stderr.contains("apt-get install redis-server"),
        "{run:#?}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "it left files");
    let run = run_binary(&["demo", "--fleet", "1"], b"");
    assert_eq!(run.code, Some(2), "{run:#?}");
}
