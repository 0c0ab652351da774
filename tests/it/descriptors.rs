//! The limit on file descriptors: it is raised, reported and divided, and at the limit the admin
//! listener answers and no listener ends.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

/// Connections without a request stay open for the whole test.
const PATIENT: &str = r#"server.header_timeout = "5m""#;

/// What the log says if the limit is too low for the configuration.
const TOO_LOW: &str = "the file descriptor limit is below twice server.max_connections";

/// An API, and a gateway that starts with these soft and hard limits.
fn scene(soft: usize, hard: usize, config: &str) -> (Origin, Gateway) {
    // Each connection is one descriptor of the test, too.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .expect("up to the hard limit");
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::set_up(&origin).config(config).open_files_between(soft, hard).start();
    (origin, gateway)
}

fn pid(process: u32) -> Pid {
    i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Soft and hard limit of a process.
fn limits(process: u32) -> (usize, usize) {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("its limits");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .expect("a limit of files");
    let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
    (numbers.next().expect("a soft limit"), numbers.next().expect("a hard limit"))
}

fn set_soft_limit(process: u32, soft: usize) {
    let maximum = Some(limits(process).1 as u64);
    let new = Rlimit { current: Some(soft as u64), maximum };
    prlimit(Some(pid(process)), Resource::Nofile, new).expect("a limit of a child of ours");
}

/// Leaves the gateway without a free descriptor: lowers its limit to what it has open, and opens
/// connections until one more cannot be accepted. Returns these.
fn exhaust(gateway: &Gateway) -> Vec<TcpStream> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.id())).expect("its descriptors");
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<usize>().ok());
    set_soft_limit(gateway.id(), numbers.max().expect("a descriptor") + 1);
    let mut idle = Vec::new();
    wait_until("no descriptor is free", || {
        idle.push(TcpStream::connect(gateway.public_address()).expect("the kernel takes it"));
        accept_errors(gateway, "public") >= 1.0
    });
    idle
}

/// Failures for want of a descriptor.
fn accept_errors(gateway: &Gateway, listener: &str) -> f64 {
    gateway.metric("accept_errors_total", &[("listener", listener), ("reason", "descriptors")])
}

fn check_admin(gateway: &Gateway) {
    for path in ["/livez", "/readyz", "/metrics", "/stats"] {
        gateway.admin().get(path).send().assert_status(200);
    }
}

fn assert_is_not_busy(gateway: &Gateway) {
    let used = gateway.cpu_time();
    pace(Duration::from_secs(1));
    let spun = gateway.cpu_time() - used;
    assert!(spun < Duration::from_millis(500), "{spun:?} of CPU time in a second without requests");
}

#[test]
fn soft_limit_is_raised_to_the_hard_limit() {
    let (_origin, gateway) = scene(256, 4096, "server.max_connections = 1000");
    assert_eq!(limits(gateway.id()), (4096, 4096));
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains("raised the file descriptor limit"));
    let line = line.expect("a line about the limit");
    assert!(line.contains("\"limit\":4096") && line.contains("\"before\":256"), "{line}");
    assert!(!log.contains(TOO_LOW), "{log}");
    let client = gateway.client();
    let mut kept: Vec<_> = (0..600)
        .map(|_| {
            let mut connection = client.connect();
            client.get(P).bearer("tok-a").send_on(&mut connection).assert_status(200);
            connection
        })
        .collect();
    let last = kept.last_mut().expect("a connection");
    client.get("/customer/x").bearer("tok-a").send_on(last).assert_status(200);
    client.get("/x").bearer("tok-a").send_on(last).assert_status(200);
    check_admin(&gateway);
    assert_eq!(gateway.metric("accept_errors_total", &[]), 0.0);
    assert_eq!(gateway.metric("over_limit_total", &[]), 0.0);
}

#[test]
fn low_hard_limit_is_a_warning_at_start_and_reload() {
    // Twice 10 and 100 fit, twice 100 and 100 do not.
    let (_origin, gateway) =
        scene(200, 200, "server = { max_connections = 10, max_requests = 100 }");
    assert!(!gateway.log().contains(TOO_LOW), "{}", gateway.log());
    let config = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    gateway
        .rewrite("gateway.toml", &config.replace("max_connections = 10", "max_connections = 100"));
    gateway.signal(Signal::SIGHUP);
    gateway.wait_for_log(TOO_LOW);
    let (_origin, gateway) =
        scene(200, 200, "server = { max_connections = 100, max_requests = 100 }");
    let log = gateway.log();
    let warning = log.lines().find(|line| line.contains(TOO_LOW)).expect("a warning");
    let warns = ["\"level\":\"WARN\"", "\"limit\":200", "\"needed\":300", "LimitNOFILE", "ulimits"];
    assert!(warns.iter().all(|part| warning.contains(part)), "{warning}");
}

#[test]
fn clients_at_the_limit_leave_room_for_requests_and_admin() {
    let (origin, gateway) = scene(256, 256, PATIENT);
    assert!(gateway.log().contains(TOO_LOW));
    let client = gateway.client();
    let mut served = client.connect();
    client.get(P).bearer("tok-a").send_on(&mut served).assert_status(200);
    let mut crowd: Vec<TcpStream> = (0..400)
        .map(|_| TcpStream::connect(gateway.public_address()).expect("the kernel takes it"))
        .collect();
    // Three quarters of the limit are for clients, and the gateway itself uses fewer than 100.
    wait_until("connections are refused", || {
        gateway.metric("over_limit_total", &[("limit", "descriptors")]) >= 208.0
    });
    gateway.wait_for_log("refused connections because few file descriptors are left");
    assert_is_not_busy(&gateway);
    // More probes than spares, and requests of the clients that are connected, on each route.
    for number in 0..20 {
        check_admin(&gateway);
        for path in [format!("/x/{number}"), format!("/customer/x{number}")] {
            client.get(&path).bearer("tok-a").send_on(&mut served).assert_status(200);
        }
        origin.knows(&format!("tok-{number}"), "VIEWER", DUCK);
        client.get(P).bearer(&format!("tok-{number}")).send_on(&mut served).assert_status(200);
    }
    // Over each protocol the refusal is the one for connections beyond server.max_connections. In
    // a flood of them some are closed without a response; and low numbers that connections to the
    // API had are free now and then.
    let mut wait_for_refusal = |send: &dyn Fn() -> Option<Response>| {
        wait_until("a connection is refused", || {
            crowd.push(TcpStream::connect(gateway.public_address()).expect("the kernel takes it"));
            let Some(response) = send().filter(|response| response.status != 200) else {
                return false;
            };
            response.assert_error(503, "unavailable");
            assert_eq!(response.header("retry-after"), Some("1"));
            true
        });
    };
    wait_for_refusal(&|| client.get(P).bearer("tok-a").try_send());
    let bearer = [("authorization", "Bearer tok-a")];
    wait_for_refusal(&|| Http2::connect(&client).call("GET", P, &bearer, b"").ok());
    assert_eq!(gateway.metric("upstream_errors_total", &[]), 0.0);
    assert_eq!(gateway.metric("accept_errors_total", &[]), 0.0);
    let warnings = gateway.log().matches("because few file descriptors are left").count();
    assert!(warnings <= 20, "one each five seconds, not {warnings}");
    drop(crowd);
    wait_until("clients are served again", || {
        client.get(P).bearer("tok-a").try_send().is_some_and(|response| response.status == 200)
    });
}

#[test]
fn listener_without_a_descriptor_counts_and_continues() {
    let (_origin, gateway) = scene(512, 512, PATIENT);
    let client = gateway.client();
    let mut served = client.connect();
    client.get(P).bearer("tok-a").send_on(&mut served).assert_status(200);
    let idle = exhaust(&gateway);
    // The kernel takes them, the gateway cannot.
    let waiting: Vec<_> = (0..20).map(|_| client.get(P).bearer("tok-a").start()).collect();
    for _ in 0..40 {
        check_admin(&gateway);
        assert!(client.get(P).bearer("tok-a").send_on(&mut served).assert_status(200).is_hit());
    }
    wait_until("failures are counted", || accept_errors(&gateway, "public") >= 3.0);
    assert!(accept_errors(&gateway, "admin") >= 1.0);
    assert_is_not_busy(&gateway);
    let log = gateway.log();
    let warnings = log.lines().filter(|line| line.contains("failed to accept connections"));
    let warnings: Vec<_> =
        warnings.filter(|line| line.contains("\"listener\":\"public\"")).collect();
    assert!((1..20).contains(&warnings.len()), "{warnings:#?}");
    assert!(
        warnings.iter().all(|line| line.contains("\"reason\":\"descriptors\"")),
        "{warnings:#?}"
    );
    set_soft_limit(gateway.id(), 512);
    for waiting in waiting {
        waiting.finish().assert_status(200);
    }
    check_admin(&gateway);
    let so_far = accept_errors(&gateway, "public") + accept_errors(&gateway, "admin");
    client.get(P).bearer("tok-a").send().assert_status(200);
    assert_eq!(accept_errors(&gateway, "public") + accept_errors(&gateway, "admin"), so_far);
    drop(idle);
}

#[test]
fn admin_serves_several_clients_without_a_descriptor() {
    let (_origin, gateway) = scene(512, 512, PATIENT);
    let idle = exhaust(&gateway);
    // Scrapers that keep their connections, and probes next to them.
    let mut kept: Vec<_> = (0..10).map(|_| gateway.admin().connect()).collect();
    for _ in 0..5 {
        for connection in &mut kept {
            gateway.admin().get("/metrics").send_on(connection).assert_status(200);
        }
        check_admin(&gateway);
    }
    drop(kept);
    for _ in 0..20 {
        check_admin(&gateway);
    }
    // Each of these was accepted with a spare, and so is the next.
    let so_far = accept_errors(&gateway, "admin");
    assert!(so_far >= 90.0 && accept_errors(&gateway, "admin") > so_far, "{so_far}");
    drop(idle);
}

#[test]
fn request_without_a_descriptor_has_a_specific_error() {
    let (origin, gateway) = scene(512, 512, PATIENT);
    let client = gateway.client();
    // The token is known from here on.
    client.get(P).bearer("tok-a").send().assert_status(200);
    let gate = Gate::closed();
    origin.when(Rule::on("/").hold(&gate));
    let mut connections: Vec<_> = (0..24).map(|_| client.connect()).collect();
    let idle = exhaust(&gateway);
    // Kept connections to the API serve a few of them, which wait for it.
    for (connection, path) in connections.iter_mut().zip(["/x", "/customer/x"].iter().cycle()) {
        connection.send_raw(client.get(path).bearer("tok-a").bytes());
    }
    let errors = |kind| gateway.metric("upstream_errors_total", &[("kind", kind)]);
    wait_until("requests fail", || errors("descriptors") >= 8.0);
    assert_eq!(gateway.metric("upstream_errors_total", &[]), errors("descriptors"));
    gate.open();
    set_soft_limit(gateway.id(), 512);
    drop((connections, idle));
    wait_until("requests are served", || {
        client.get("/x").bearer("tok-a").try_send().is_some_and(|response| response.status == 200)
    });
}
