//! Failover by name: `cluster.url` leads to another Redis while the old one continues to run, and
//! connections to it continue to work.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const WRITE: &str = "/customer/73469a52f4fd7f77ec7b28cc";
const KEYS: &str = "a 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n";
const MAX_ISOLATION: Duration = Duration::from_secs(3);

/// A name that leads to one of several servers: an address that forwards new connections to the
/// current one and keeps the open ones.
struct Name {
    address: String,
    target: Arc<Mutex<PathBuf>>,
}

impl Name {
    fn of(redis: &Redis) -> Name {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let target = Arc::new(Mutex::new(redis.socket()));
        let current = target.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let path = current.lock().clone();
                if let (Ok(client), Ok(server)) = (client, UnixStream::connect(path)) {
                    forward(client, server);
                }
            }
        });
        Name { address, target }
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    fn move_to(&self, path: PathBuf) {
        *self.target.lock() = path;
    }
}

fn forward(client: TcpStream, server: UnixStream) {
    let (mut from_client, mut to_client) = (client.try_clone().expect("a handle"), client);
    let (mut from_server, mut to_server) = (server.try_clone().expect("a handle"), server);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Both);
    });
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Both);
    });
}

fn start(origin: &Origin, url: &str, more: &str) -> Gateway {
    let isolation = format!("max_isolation = \"{}s\"", MAX_ISOLATION.as_secs());
    let cluster = format!("url = {url:?}\nkey_file = \"{{dir}}/keys\"\n{isolation}\n{more}");
    let config = format!("[cluster]\n{cluster}");
    let gateway = Gateway::set_up(origin).config(&config).file("keys", KEYS).start();
    gateway.wait_for_metric("cluster_connected", &[], 1.0);
    gateway
}

fn api() -> Origin {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin
}

fn name_at(gateway: &Gateway) -> String {
    let response = gateway.client().get(P).bearer("tok-a").send();
    let name = response.assert_status(200).json()["name"].clone();
    name.as_str().unwrap_or_default().to_owned()
}

/// Changes the customer's name through `gateway`.
fn write(origin: &Origin, gateway: &Gateway, name: &str) {
    origin.document(DUCK, Answer::json(format!("{{\"name\":{name:?}}}")));
    gateway.client().post(WRITE).bearer("tok-a").body("{}").send().assert_status(200);
}

/// Asserts that a gateway on the old server follows to the new one, to which `move_name` moves.
fn assert_follows(url: &str, move_name: impl FnOnce()) {
    let origin = api();
    let old = start(&origin, url, "tier = true");
    write(&origin, &old, "first");
    wait_until("the response is cached", || {
        let response = old.client().get(P).bearer("tok-a").send();
        response.assert_status(200).is_hit()
    });
    move_name();
    let moved = Instant::now();
    let new = start(&origin, url, "tier = true");
    write(&origin, &new, "second");
    wait_until("the old response is not served", || name_at(&old) == "second");
    let elapsed = moved.elapsed();
    assert!(elapsed < MAX_ISOLATION + Duration::from_secs(1), "served for {elapsed:?}");
    old.wait_for_metric("cluster_drops_total", &[("reason", "server")], 1.0);
    wait_until("it reads the new stream", || {
        old.metric("cluster_connected", &[]) == 1.0 && old.metric("cluster_isolated", &[]) == 0.0
    });
    old.wait_for_log("cluster.url leads to another Redis server");
    for (number, (from, to)) in [(&old, &new), (&new, &old)].into_iter().enumerate() {
        name_at(to);
        let name = format!("third {number}");
        write(&origin, from, &name);
        wait_until("a change arrives", || name_at(to) == name);
    }
    let later = old.metric("cluster_drops_total", &[("reason", "server")]);
    assert_eq!(later, 1.0, "it purges once");
}

#[test]
fn gateway_follows_an_address_to_a_new_primary() {
    let test = "redis_failover::gateway_follows_an_address_to_a_new_primary";
    let (Some(first), Some(second)) = (Redis::start(test), Redis::start(test)) else { return };
    let name = Name::of(&first);
    assert_follows(&name.url(), || name.move_to(second.socket()));
}

#[test]
fn gateway_follows_a_socket_path_to_a_new_primary() {
    let test = "redis_failover::gateway_follows_a_socket_path_to_a_new_primary";
    let (Some(first), Some(second)) = (Redis::start(test), Redis::start(test)) else { return };
    assert_follows(&first.url(), || {
        std::fs::rename(second.socket(), first.socket()).expect("both sockets exist");
    });
}

#[test]
fn change_published_to_the_old_primary_is_repeated() {
    let test = "redis_failover::change_published_to_the_old_primary_is_repeated";
    let (Some(first), Some(second)) = (Redis::start(test), Redis::start(test)) else { return };
    let origin = api();
    let name = Name::of(&first);
    let old = start(&origin, &name.url(), "");
    // Opens its connection for publishing.
    write(&origin, &old, "zero");
    old.wait_for_metric("cluster_messages_total", &[("direction", "told")], 2.0);
    name.move_to(second.socket());
    let new = start(&origin, &name.url(), "");
    origin.document(DUCK, Answer::json(r#"{"name":"first"}"#));
    assert_eq!(name_at(&new), "first");
    // Most likely published to the old server, which no other gateway reads.
    write(&origin, &old, "second");
    wait_until("the change arrives", || name_at(&new) == "second");
}

#[test]
fn gateway_whose_name_leads_nowhere_is_isolated() {
    let test = "redis_failover::gateway_whose_name_leads_nowhere_is_isolated";
    let Some(redis) = Redis::start(test) else { return };
    let origin = api();
    let name = Name::of(&redis);
    let gateway = start(&origin, &name.url(), "");
    name_at(&gateway);
    name.move_to(PathBuf::from("/nonexistent"));
    let moved = Instant::now();
    gateway.wait_for_metric("cluster_isolated", &[], 1.0);
    let elapsed = moved.elapsed();
    assert!(elapsed < MAX_ISOLATION + Duration::from_secs(1), "not isolated for {elapsed:?}");
    gateway.wait_for_log("failed to open a new connection to Redis");
    name.move_to(redis.socket());
    wait_until("isolation ended", || gateway.metric("cluster_isolated", &[]) == 0.0);
    assert_eq!(gateway.metric("cluster_drops_total", &[]), 0.0, "nothing was missed");
}

#[test]
fn replica_is_not_read() {
    let Some(redis) = Redis::start("redis_failover::replica_is_not_read") else { return };
    let origin = api();
    let gateway = start(&origin, &redis.url(), "");
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    gateway.wait_for_metric("cluster_isolated", &[], 1.0);
    gateway.wait_for_log("the server is a replica");
    redis.command(&["REPLICAOF", "NO", "ONE"]);
    wait_until("isolation ended", || gateway.metric("cluster_isolated", &[]) == 0.0);
}
