//! A real Prometheus scrapes a gateway with the shipped configuration, rules and dashboard queries.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use telecomx_gateway::sandbox;

use crate::support::*;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// A process that this test started and that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the sandbox and returns its URL.
fn start_sandbox() -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_telecomx-gateway"));
    command
        .args(["sandbox", "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Running(command.spawn().expect("the binary can be started"));
    let mut line = String::new();
    let stdout = running.0.stdout.as_mut().expect("a piped output");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("a URL");
    (running, url.trim_end_matches('/').to_owned())
}

struct Prometheus {
    process: Running,
    address: SocketAddr,
    dir: TempDir,
}

impl Prometheus {
    /// Starts it with the configuration of the compose file; paths, target and intervals differ.
    fn start(target: SocketAddr, token: &str) -> Prometheus {
        Self::start_with(target, token, &[])
    }

    fn start_with(target: SocketAddr, token: &str, options: &[&str]) -> Prometheus {
        let (dir, address) = (TempDir::new(), unused_port());
        let token = dir.write("token", token).display().to_string();
        let mut config = std::fs::read_to_string(format!("{SHIPPED}/compose/prometheus.yml"))
            .expect("a shipped file");
        for (from, to) in [
            ("scrape_interval: 15s", "scrape_interval: 100ms"),
            ("evaluation_interval: 15s", "evaluation_interval: 100ms"),
            ("/etc/prometheus/rules.yml", &format!("{SHIPPED}/prometheus/rules.yml")),
            ("/run/secrets/admin-token", &token),
            ("gateway:9090", &target.to_string()),
        ] {
            assert!(config.contains(from), "the shipped configuration has no {from:?}");
            config = config.replace(from, to);
        }
        let config = dir.write("prometheus.yml", &config);
        let data = dir.path().join("data");
        let log = File::create(dir.path().join("log")).expect("a file of the test");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address={address}"));
        command.args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = Running(command.spawn().expect("Prometheus is installed"));
        let mut prometheus = Prometheus { process, address, dir };
        wait_until("Prometheus is ready", || {
            let ended = prometheus.process.0.try_wait().expect("its state");
            assert!(ended.is_none(), "Prometheus did not start: {}", prometheus.log());
            prometheus.get("/-/ready").is_some_and(|(status, _)| status == 200)
        });
        prometheus
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("its log")
    }

    /// Status and body. HTTP/1.0, so that the body is what comes until the end.
    fn get(&self, target: &str) -> Option<(u16, String)> {
        let mut connection = TcpStream::connect(self.address).ok()?;
        let request = format!("GET {target} HTTP/1.0\r\nHost: prometheus\r\n\r\n");
        connection.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// `data` of a response of its API.
    fn api(&self, target: &str) -> Value {
        let (status, body) = self.get(&format!("/api/v1/{target}")).expect("an answer");
        assert_eq!(status, 200, "{target}: {body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(answer["status"], "success", "{target}: {answer}");
        answer["data"].clone()
    }

    /// The first value of a query's result.
    fn query(&self, query: &str) -> Option<f64> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.api(&format!("query?query={escaped}"));
        data["result"][0]["value"][1].as_str()?.parse().ok()
    }

    fn wait_for(&self, query: &str, expected: impl Fn(f64) -> bool) {
        let mut last = None;
        wait_until(&format!("{query} has the expected value"), || {
            last = self.query(query);
            last.is_some_and(&expected)
        });
    }

    /// Waits until a second scrape has begun after this call.
    fn wait_for_new_scrapes(&self) {
        let scrapes = "count_over_time(up[5m])";
        let before = self.query(scrapes).unwrap_or_default();
        self.wait_for(scrapes, |count| count >= before + 3.0);
    }

    /// The state of each rule's alerts, by the rule's name.
    fn alerts(&self) -> Vec<(String, Value)> {
        let data = self.api("rules");
        let groups = data["groups"].as_array().expect("groups");
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
        rules
            .map(|rule| (rule["name"].as_str().expect("a name").to_owned(), rule.clone()))
            .collect()
    }

    fn wait_for_alert(&self, name: &str) {
        wait_until(&format!("{name} is pending"), || {
            self.alerts().iter().any(|(rule, what)| rule == name && what["state"] == "pending")
        });
    }
}

fn is_installed() -> bool {
    let mut version = Command::new("prometheus");
    let version = version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if version.status().is_err() {
        println!("skipped: scraped: prometheus is not installed");
        return false;
    }
    true
}

/// The queries of the dashboard's open rows with the title of their panel. The rows that are
/// collapsed need a cluster.
fn dashboard_queries() -> Vec<(String, String)> {
    let file = std::fs::read_to_string(format!("{SHIPPED}/grafana/telecomx-gateway.json"));
    let dashboard: Value = serde_json::from_str(&file.expect("a shipped file")).expect("JSON");
    let variables = [
        (r#"job=~"$job""#, r#"job=~"telecomx-gateway""#),
        (r#"instance=~"$instance""#, r#"instance=~".*""#),
        ("$__rate_interval", "1m"),
    ];
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"].as_str().expect("a query").to_owned();
            for (name, value) in variables {
                query = query.replace(name, value);
            }
            queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    assert!(queries.len() > 40, "only {} queries", queries.len());
    queries
}

#[test]
fn dashboard_queries_have_values_without_traffic() {
    if !is_installed() {
        return;
    }
    const TOKEN: &str = "tok-of-the-scrape-PLANTED";
    let origin = Origin::start();
    let setup = Gateway::set_up(&origin).file("admin-token", TOKEN).admin_token(TOKEN);
    let gateway = setup.config("admin.token_file = \"{dir}/admin-token\"\n").start();
    let prometheus = Prometheus::start(gateway.admin_address(), TOKEN);
    prometheus
        .wait_for("count_over_time(up{job=\"telecomx-gateway\"}[1m])", |scrapes| scrapes >= 3.0);
    for (title, query) in dashboard_queries() {
        let value = prometheus.query(&query);
        assert!(value.is_some_and(f64::is_finite), "{title}: {value:?} from {query}");
    }
}

#[test]
fn admin_token_rotation_fails_no_scrape() {
    if !is_installed() {
        return;
    }
    const OLD: &str = "tok-of-the-scrape-PLANTED";
    const NEW: &str = "tok-after-the-rotation-PLANTED";
    let origin = Origin::start();
    let setup = Gateway::set_up(&origin).file("admin-token", OLD).admin_token(OLD);
    let gateway = setup.config("admin.token_file = \"{dir}/admin-token\"\n").start();
    let prometheus = Prometheus::start(gateway.admin_address(), OLD);
    prometheus.wait_for("up", |up| up == 1.0);
    let is_accepted =
        |token: &str| gateway.admin().get("/stats").bearer(token).send().status == 200;

    // The steps of deploy/README.md.
    gateway.rewrite("admin-token", &format!("{OLD}\n{NEW}\n"));
    wait_until("the gateway accepts the new token", || is_accepted(NEW));
    assert!(is_accepted(OLD));
    prometheus.dir.write("token", NEW);
    prometheus.wait_for_new_scrapes();
    gateway.rewrite("admin-token", &format!("{NEW}\n"));
    wait_until("the gateway refuses the old token", || !is_accepted(OLD));
    prometheus.wait_for_new_scrapes();
    assert_eq!(prometheus.query("min_over_time(up[5m])"), Some(1.0));

    // The support reads metrics with the first token at the end of a test.
    gateway.rewrite("admin-token", OLD);
    wait_until("the gateway accepts the first token again", || is_accepted(OLD));
}

#[test]
fn sampled_trace_is_an_exemplar_in_prometheus() {
    if !is_installed() {
        return;
    }
    const TOKEN: &str = "tok-of-the-scrape-PLANTED";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let origin = Origin::start();
    let setup = Gateway::set_up(&origin).file("admin-token", TOKEN).admin_token(TOKEN);
    let gateway = setup.config("admin.token_file = \"{dir}/admin-token\"\n").start();
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let call = gateway.client().get("/elsewhere").header("traceparent", &traceparent);
    call.send().assert_status(200);
    let options = ["--enable-feature=exemplar-storage"];
    let prometheus = Prometheus::start_with(gateway.admin_address(), TOKEN, &options);
    prometheus.wait_for("up", |up| up == 1.0);
    let target = "query_exemplars?query=telecomx_gateway_request_duration_seconds_bucket\
                  &start=0&end=4102444800";
    wait_until("Prometheus has the exemplar", || {
        let data = prometheus.api(target);
        let series = &data[0];
        series["seriesLabels"]["route"] == "forward"
            && series["exemplars"][0]["labels"]["trace_id"] == TRACE
    });
    let up_and_error = &prometheus.api("targets")["activeTargets"][0];
    assert_eq!(up_and_error["lastError"], "", "{up_and_error}");
}

#[test]
fn shipped_rules_are_inactive_for_a_healthy_gateway_and_report_faults() {
    if !is_installed() {
        return;
    }
    const TOKEN: &str = "tok-of-the-scrape-PLANTED";
    let (_sandbox, api) = start_sandbox();
    // The default upstream of the test support, which receives no request here.
    let origin = Origin::start();
    let setup = Gateway::set_up(&origin).file("admin-token", TOKEN).admin_token(TOKEN);
    let config = format!("admin.token_file = \"{{dir}}/admin-token\"\nupstream.url = \"{api}\"\n");
    let mut gateway = setup.config(&config).start();
    let client = gateway.client();
    let path = format!("/customer/{}/name", sandbox::DEMO_CUSTOMER);
    let callers = sandbox::demo_callers();
    let caller =
        callers.iter().find(|caller| caller.access_level.as_str() == "VIEWER").expect("a viewer");
    for _ in 0..5 {
        client.get(&path).bearer(caller.token).send().assert_status(200);
    }
    client.get(&path).send().assert_status(401);

    let prometheus = Prometheus::start(gateway.admin_address(), TOKEN);
    prometheus.wait_for("up{job=\"telecomx-gateway\"}", |up| up == 1.0);
    let of_hits = "route=\"customer_name\",cache=\"hit\"";
    let requests = |labels: &str| format!("sum(telecomx_gateway_requests_total{{{labels}}})");
    prometheus.wait_for(&requests(of_hits), |hits| hits == 4.0);
    prometheus.wait_for(&requests("cache=\"miss\""), |misses| misses == 1.0);
    prometheus.wait_for(&requests("status=\"401\""), |refused| refused == 1.0);
    prometheus.wait_for(
        &format!(
            "histogram_quantile(0.9, sum by (le) (telecomx_gateway_request_duration_seconds_bucket{{{of_hits}}}))"
        ),
        |seconds| seconds > 0.0 && seconds < 10.0,
    );
    let bucket = "telecomx_gateway_request_duration_seconds_bucket";
    let buckets = format!("count({bucket}{{le=\"5e-05\"}} or {bucket}{{le=\"0.00005\"}})");
    prometheus.wait_for(&buckets, |series| series >= 1.0);
    prometheus
        .wait_for("process_resident_memory_bytes{job=\"telecomx-gateway\"}", |bytes| bytes > 1e6);
    prometheus.wait_for("telecomx_gateway_log_lines_dropped_total", |lines| lines == 0.0);

    let target = &prometheus.api("targets")["activeTargets"][0];
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    // OpenMetrics names families of counters without the suffix of their samples.
    let family = "telecomx_gateway_requests";
    let known = &prometheus.api(&format!("metadata?metric={family}"))[family];
    assert_eq!(
        (&known[0]["type"], &known[0]["help"]),
        (
            &"counter".into(),
            &"Requests with a response, by route, method, status, cache result and source \
              of a 5xx response."
                .into()
        ),
        "{known}"
    );

    // Prometheus has every rule, can evaluate it, and none is active.
    let rules =
        std::fs::read_to_string(format!("{SHIPPED}/prometheus/rules.yml")).expect("a shipped file");
    let shipped: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    // Before the first scrape no gateway exists, and GatewayDown is pending.
    wait_until("every rule is evaluated and inactive", || {
        let fine = |rule: &Value| rule["health"] == "ok" && rule["state"] == "inactive";
        prometheus.alerts().iter().all(|(_, rule)| fine(rule))
    });
    let alerts = prometheus.alerts();
    assert_eq!(alerts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), shipped);

    // Faults activate rules.
    gateway.rewrite("gateway.toml", "nonsense = 1\n");
    gateway.admin().post("/reload").bearer(TOKEN).send().assert_status(422);
    prometheus.wait_for_alert("ReloadFailed");
    gateway.terminate();
    prometheus.wait_for_alert("GatewayDown");
}
