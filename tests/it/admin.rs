//! The admin listener: health checks, metrics, statistics, purges and reloads.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

#[test]
fn health_checks_succeed_while_the_api_is_down() {
    let (origin, gateway) = scene();
    gateway.admin().get("/livez").send().assert_status(200);
    gateway.admin().get("/readyz").send().assert_status(200);
    // The gateway stays ready without the API: it serves cached responses.
    origin.stop();
    gateway.client().get("/elsewhere").send().assert_status(502);
    gateway.admin().get("/livez").send().assert_status(200);
}

#[test]
fn metrics_contain_every_name_of_the_contract() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway =
        Gateway::with(&origin, r#"cache = { ttl = "1s", stale_while_revalidate = "0s" }"#);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    client.get("/elsewhere").send().assert_status(200);
    gateway.admin().delete("/cache").send().assert_status(200);
    client.get(P).bearer("tok-a").send().assert_status(200);
    origin.document(OTHER, Answer::json("nonsense"));
    client.get(&name_of(OTHER)).bearer("tok-a").send().assert_status(502);
    origin.stop();
    client.get("/elsewhere").send().assert_status(502);
    wait_until("a stale answer", || {
        client.get(P).bearer("tok-a").send().cache_status().contains("stale-if-error")
    });
    let metrics = gateway.metrics();
    let names = [
        "requests_total{",
        "request_duration_seconds_bucket{",
        "cache_entries ",
        "cache_bytes ",
        "cache_capacity_bytes ",
        "cache_invalidations_total{",
        "cache_stale_served_total{",
        "coalesced_requests_total ",
        "fast_path_hits_total ",
        "identity_validations_total{",
        "identity_lookups_total{",
        "redactions_total{",
        "redaction_failures_total{",
        "upstream_request_duration_seconds_bucket{",
        "upstream_errors_total{",
        "upstream_in_flight ",
        "circuit_open ",
        "config_last_reload_successful ",
        "config_last_reload_success_timestamp_seconds ",
        "build_info{",
    ];
    for name in names {
        let name = format!("\ntelecomx_gateway_{name}");
        assert!(metrics.contains(&name), "{name:?} is missing in {metrics}");
    }
    assert!(
        metrics.contains("\nprocess_") || metrics.contains("\ntelecomx_gateway_process_"),
        "{metrics}"
    );
    assert!(metrics.contains("le=\"0.00005\""), "buckets from 50 microseconds: {metrics}");
    assert!(
        !metrics.contains(DUCK) && !metrics.contains("/elsewhere"),
        "a label holds an id or a path: {metrics}"
    );
    let described = metrics.lines().filter(|line| line.starts_with("# HELP ")).count();
    let typed = metrics.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert!(described > 15 && described == typed, "{metrics}");
}

#[test]
fn requests_are_counted_by_route_method_status_and_cache() {
    let (_origin, gateway) = scene();
    let client = gateway.client();
    for _ in 0..3 {
        client.get(P).bearer("tok-a").send().assert_status(200);
    }
    client.head(P).bearer("tok-a").send().assert_status(200);
    client.get(P).send().assert_status(401);
    client.post("/elsewhere").body("x").send().assert_status(200);
    client.get("/tools/realtime").send().assert_status(403);
    // A request is counted after its response, so the test waits.
    gateway.wait_for_metric("requests_total", &[], 7.0);
    let count = |labels: &[(&str, &str)]| gateway.metric("requests_total", labels);
    assert_eq!(count(&[]), 7.0);
    assert_eq!(
        count(&[
            ("route", "customer_name"),
            ("method", "GET"),
            ("status", "200"),
            ("cache", "miss")
        ]),
        1.0
    );
    assert_eq!(
        count(&[
            ("route", "customer_name"),
            ("method", "GET"),
            ("status", "200"),
            ("cache", "hit")
        ]),
        2.0
    );
    assert_eq!(count(&[("route", "customer_name"), ("method", "HEAD"), ("cache", "hit")]), 1.0);
    assert_eq!(count(&[("route", "customer_name"), ("status", "401"), ("cache", "none")]), 1.0);
    assert_eq!(
        count(&[("route", "forward"), ("method", "POST"), ("status", "200"), ("cache", "bypass")]),
        1.0
    );
    assert_eq!(count(&[("route", "blocked"), ("status", "403"), ("cache", "none")]), 1.0);
    assert_eq!(gateway.metric("request_duration_seconds_count", &[]), 7.0);
    assert_eq!(gateway.metric("redactions_total", &[("role", "VIEWER")]), 1.0);
    assert_eq!(gateway.metric("identity_validations_total", &[]), 1.0);
}

#[test]
fn unknown_methods_share_one_label() {
    let (_origin, gateway) = scene();
    for number in 0..20 {
        gateway.client().call(&format!("MADEUP{number}"), "/elsewhere").send();
    }
    gateway.wait_for_metric("requests_total", &[("route", "forward")], 20.0);
    assert!(!gateway.metrics().contains("MADEUP"));
}

#[test]
fn stats_have_the_documented_members() {
    let (_origin, gateway) = scene();
    for _ in 0..4 {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    }
    gateway.wait_for_metric("requests_total", &[], 4.0);
    let stats = gateway.stats();
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        stats["uptime_seconds"].is_number() && stats["config_generation"].is_number(),
        "{stats}"
    );
    assert_eq!(
        (&stats["cache"]["hits"], &stats["cache"]["misses"]),
        (&3.into(), &1.into()),
        "{stats}"
    );
    assert_eq!(stats["cache"]["hit_ratio"].as_f64(), Some(0.75), "{stats}");
    assert_eq!(stats["cache"]["capacity_bytes"], 256 << 20);
    wait_until("the entries are counted", || {
        let stats = gateway.stats();
        stats["cache"]["entries"] == 1
            && stats["cache"]["bytes"].as_u64() > Some(0)
            && stats["identities"]["entries"] == 1
    });
    assert_eq!(stats["upstream"]["in_flight"], 0);
    assert!(stats["upstream"].get("circuit").is_some(), "{stats}");
}

#[test]
fn purge_removes_responses_of_its_scope() {
    let (origin, gateway) = scene();
    origin.knows("tok-b", "VIEWER", DUCK);
    let get = |id: &str, token: &str| gateway.client().get(&name_of(id)).bearer(token).send();
    let all = [(DUCK, "tok-a"), (DUCK, "tok-b"), (OTHER, "tok-a"), (OTHER, "tok-b")];
    let employee = employee_of("tok-a");
    let scopes: [(String, [bool; 4]); 3] = [
        ("/cache".to_owned(), [false; 4]),
        (format!("/cache/customers/{DUCK}"), [false, false, true, true]),
        (format!("/cache/employees/{employee}"), [false, true, false, true]),
    ];
    for (path, kept) in scopes {
        for (id, token) in all {
            get(id, token).assert_status(200);
        }
        let dropped = gateway.admin().delete(&path).send();
        assert!(dropped.assert_status(200).json().get("scope").is_some(), "{dropped:#?}");
        for ((id, token), kept) in all.into_iter().zip(kept) {
            assert_eq!(get(id, token).is_hit(), kept, "{path}: {id} for {token}");
        }
    }
    for odd in ["/cache/customers/nonsense", "/cache/employees/", "/cache/other/1"] {
        let response = gateway.admin().delete(odd).send();
        assert!(matches!(response.status, 400 | 404), "{odd}: {response:#?}");
    }
}

#[test]
fn unknown_path_gets_404() {
    let (_origin, gateway) = scene();
    gateway.admin().get("/nothing").send().assert_status(404);
    gateway.admin().get(P).send().assert_status(404);
}

#[test]
fn other_methods_get_405_with_allow() {
    let origin = Origin::start();
    let setup =
        Gateway::set_up(&origin).file("admin-token", "tok-operator\n").admin_token("tok-operator");
    let gateway = setup.config(r#"admin.token_file = "{dir}/admin-token""#).start();
    let employee = employee_of("tok-a");
    let paths = [
        ("/livez", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/stats", "GET, HEAD"),
        ("/stats/history", "GET, HEAD"),
        ("/config", "GET, HEAD"),
        ("/cache", "DELETE"),
        (&format!("/cache/customers/{DUCK}"), "DELETE"),
        (&format!("/cache/employees/{employee}"), "DELETE"),
        ("/reload", "POST"),
    ];
    for (path, allowed) in paths {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
            let response = gateway.admin().call(method, path).bearer("tok-operator").send();
            if allowed.split(", ").any(|listed| listed == method) {
                assert_ne!(response.status, 405, "{method} {path}: {response:#?}");
            } else {
                assert_eq!(
                    response.assert_status(405).header("allow"),
                    Some(allowed),
                    "{method} {path}"
                );
                assert!(
                    method == "HEAD" || response.json()["error"]["code"] == "bad_request",
                    "{response:#?}"
                );
            }
        }
    }
    // Health checks need no token, whatever their method.
    gateway.admin().post("/livez").send().assert_error(405, "bad_request");
    gateway.admin().post("/readyz").send().assert_error(405, "bad_request");
}

#[test]
fn purge_with_a_malformed_id_gets_400() {
    let (_origin, gateway) = scene();
    let id = "73469a52f4fd7f77ec7b28cc";
    for kind in ["customers", "employees"] {
        for wrong in [
            "null",
            "undefined",
            &id[1..],
            &format!("{id}0"),
            "g3469a52f4fd7f77ec7b28cc",
            "%7B%7D",
            "",
        ] {
            gateway
                .admin()
                .delete(&format!("/cache/{kind}/{wrong}"))
                .send()
                .assert_error(400, "bad_request");
        }
        for right in [id.to_owned(), id.to_uppercase()] {
            gateway.admin().delete(&format!("/cache/{kind}/{right}")).send().assert_status(200);
        }
    }
}

#[test]
fn public_port_forwards_admin_paths() {
    let (origin, gateway) = scene();
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    for path in ["/livez", "/readyz", "/metrics", "/stats", "/"] {
        assert_eq!(
            client.get(path).send().assert_status(200).json()["target"],
            path,
            "the API serves it"
        );
    }
    for path in ["/cache".to_owned(), format!("/cache/customers/{DUCK}")] {
        assert_eq!(client.delete(&path).send().assert_status(200).json()["method"], "DELETE");
    }
    assert_eq!(
        client.post("/reload").body("").send().assert_status(200).json()["target"],
        "/reload"
    );
    assert!(client.get(P).bearer("tok-a").send().is_hit(), "nothing was purged");
    assert_eq!(origin.fetches(DUCK), 1);
}

#[test]
fn token_file_protects_all_but_health_checks() {
    let origin = Origin::start();
    let setup =
        Gateway::set_up(&origin).file("admin-token", "tok-operator\n").admin_token("tok-operator");
    let gateway = setup.config(r#"admin.token_file = "{dir}/admin-token""#).start();
    let admin = gateway.admin();
    admin.get("/livez").send().assert_status(200);
    admin.get("/readyz").send().assert_status(200);
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/stats"),
        ("GET", "/"),
        ("DELETE", "/cache"),
        ("POST", "/reload"),
        ("GET", "/nothing"),
    ] {
        admin.call(method, path).send().assert_status(401);
        admin.call(method, path).bearer("tok-wrong").send().assert_status(401);
        admin.call(method, path).bearer("tok-operator2").send().assert_status(401);
        admin.call(method, path).header("Authorization", "tok-operator").send().assert_status(401);
    }
    admin.get("/metrics").bearer("tok-operator").send().assert_status(200);
    admin.delete("/cache").bearer("tok-operator").send().assert_status(200);
}

/// Rewrites the configuration file.
fn rewrite(gateway: &Gateway, change: impl Fn(&str) -> String) {
    let before = std::fs::read_to_string(gateway.config_file()).expect("the configuration");
    std::fs::write(gateway.config_file(), change(&before)).expect("the configuration");
}

#[test]
fn reload_applies_the_new_configuration() {
    let (_origin, gateway) = scene();
    let generation = gateway.stats()["config_generation"].as_u64();
    gateway.client().get("/newly/blocked").send().assert_status(200);
    rewrite(&gateway, |config| format!("{config}\n[forward]\nblocked = [\"/newly/blocked\"]\n"));
    gateway.admin().post("/reload").body("").send().assert_status(200);
    gateway.client().get("/newly/blocked").send().assert_error(403, "access_denied");
    assert!(gateway.stats()["config_generation"].as_u64() > generation);
    assert_eq!(gateway.metric("config_last_reload_successful", &[]), 1.0);
}

#[test]
fn sighup_reloads() {
    let (_origin, gateway) = scene();
    rewrite(&gateway, |config| format!("{config}\n[forward]\nblocked = [\"/newly/blocked\"]\n"));
    gateway.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the path is blocked", || {
        gateway.client().get("/newly/blocked").send().status == 403
    });
}

#[test]
fn reload_of_an_invalid_configuration_changes_nothing() {
    let (_origin, gateway) = scene();
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    rewrite(&gateway, |config| {
        format!("{config}\n[forward]\nblockd = []\n[redaction]\nreveal_to = \"KING\"\n")
    });
    let refused = gateway.admin().post("/reload").body("").send();
    refused.assert_status(422);
    let text = refused.text();
    assert!(text.contains("blockd") && text.contains("KING"), "all errors at once: {text}");
    assert!(gateway.client().get(P).bearer("tok-a").send().is_hit());
    gateway.client().get("/tools/realtime").send().assert_error(403, "access_denied");
    assert_eq!(gateway.metric("config_last_reload_successful", &[]), 0.0);
}

/// The audit line of a request.
fn audit_line(gateway: &Gateway, request_id: &str) -> serde_json::Value {
    gateway.wait_for_log(request_id);
    let log = gateway.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines: Vec<_> = lines.filter(|line| line["http.request.id"] == request_id).collect();
    assert_eq!(lines.len(), 1, "{request_id}: {log}");
    lines[0].clone()
}

#[test]
fn every_change_by_an_operator_has_one_audit_line() {
    const TOKEN: &str = "tok-operator-PLANTED";
    let origin = Origin::start();
    let setup = Gateway::set_up(&origin).file("admin-token", TOKEN).admin_token(TOKEN);
    let config =
        "admin.token_file = \"{dir}/admin-token\"\nlog = { level = \"error\", access = \"off\" }";
    let gateway = setup.config(config).start();
    let employee = employee_of("tok-a");
    let changes = [
        ("DELETE", "/cache".to_owned(), 200, "purge", "all", None),
        ("DELETE", format!("/cache/customers/{DUCK}"), 200, "purge", "customer", Some(DUCK)),
        (
            "DELETE",
            format!("/cache/employees/{employee}"),
            200,
            "purge",
            "employee",
            Some(employee.as_str()),
        ),
        ("DELETE", format!("/cache/customers/{TOKEN}"), 400, "purge", "customer", None),
        ("POST", "/reload".to_owned(), 200, "reload", "", None),
    ];
    for (number, (method, path, status, action, scope, id)) in changes.iter().enumerate() {
        let send = |kind: &str, token: &str, fields: &[(&str, &str)]| {
            let request_id = format!("{kind}-{number}");
            let call = gateway
                .admin()
                .call(method, path)
                .bearer(token)
                .header("X-Request-Id", &request_id);
            let call = fields.iter().fold(call, |call, (name, value)| call.header(name, value));
            let response = call.send();
            assert_eq!(response.header("x-request-id"), Some(request_id.as_str()), "{response:#?}");
            let line = audit_line(&gateway, &request_id);
            assert_eq!(
                (&line["target"], &line["action"]),
                (&"audit".into(), &(*action).into()),
                "{line}"
            );
            assert_eq!(line["http.response.status_code"], response.status, "{line}");
            assert_eq!(line["client.address"], "127.0.0.1", "{line}");
            assert_eq!(line["scope"].as_str().unwrap_or_default(), *scope, "{line}");
            assert_eq!(line["id"].as_str(), *id, "{line}");
            (response.status, line["outcome"].clone())
        };
        let outcome = if *status == 200 { "permitted" } else { "refused" };
        assert_eq!(send("permitted", TOKEN, &[]), (*status, outcome.into()));
        assert_eq!(send("wrong-token", "tok-wrong", &[]), (401, "refused".into()));
        assert_eq!(
            send("other-page", TOKEN, &[("Origin", "https://page.example")]),
            (403, "refused".into())
        );
    }
    // A request id that contains the token is replaced.
    let response = gateway
        .admin()
        .delete("/cache")
        .bearer(TOKEN)
        .header("X-Request-Id", &format!("a-{TOKEN}"))
        .send();
    audit_line(&gateway, response.header("x-request-id").expect("a request id"));
    assert!(!gateway.log().contains("PLANTED"), "{}", gateway.log());
}

#[test]
fn cpu_seconds_have_fractions() {
    let (_origin, gateway) = scene();
    let scrape = || {
        let metrics = gateway.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
        line.and_then(|value| value.parse::<f64>().ok()).expect("the CPU time")
    };
    let first = scrape();
    wait_until("CPU time has grown by a fraction", || {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
        let increase = scrape() - first;
        increase > 0.0 && increase.fract() != 0.0
    });
}

#[test]
fn counters_with_fixed_labels_start_at_zero() {
    const CONFIG: &str = r#"
server.tls = { listen = ["{tls}"], cert_file = "{dir}/cert.pem", key_file = "{dir}/key.pem" }
change_log.token_file = "{dir}/log-token"
"#;
    let origin = Origin::start();
    origin.when(Rule::on("/log/changeloglite").answer(Answer::json("[]")));
    let (certificate, key) = Authority::new().certificate().pem();
    let setup = Gateway::set_up(&origin).file("cert.pem", &certificate).file("key.pem", &key);
    let gateway = setup.file("log-token", "tok-log\n").config(CONFIG).start();
    let metrics = gateway.metrics();
    for series in [
        "requests_total{cache=\"none\",error_source=\"gateway\",method=\"GET\",route=\"customer_name\",status=\"502\"}",
        "requests_total{cache=\"none\",error_source=\"gateway\",method=\"POST\",route=\"forward\",status=\"502\"}",
        "requests_total{cache=\"bypass\",error_source=\"api\",method=\"GET\",route=\"forward\",status=\"500\"}",
        "upstream_errors_total{kind=\"connect\"}",
        "upstream_errors_total{kind=\"queue_full\"}",
        "upstream_error_causes_total{cause=\"tls_expired\"}",
        "redaction_failures_total{reason=\"not_json\"}",
        "redactions_total{role=\"VIEWER\"}",
        "cache_evictions_total{cause=\"size\"}",
        "cache_not_stored_total{reason=\"no_store\"}",
        "cache_invalidations_total{scope=\"customer\",trigger=\"admin\"}",
        "cache_stale_served_total{reason=\"error\"}",
        "identity_validations_total{result=\"invalid\"}",
        "identity_lookups_total{result=\"refused\"}",
        "over_limit_total{limit=\"requests\"}",
        "accept_errors_total{listener=\"public\",reason=\"descriptors\"}",
        "upstream_request_duration_seconds_count{kind=\"fetch\"}",
        "redactions_total{role=\"answer\"}",
        "tls_handshakes_total{kind=\"resumed\"}",
        "tls_handshake_failures_total{cause=\"\",reason=\"timeout\"}",
        "tls_handshake_failures_total{cause=\"expired\",reason=\"client_certificate\"}",
        "change_log_failures_total{reason=\"token\"}",
        "change_log_failures_total{reason=\"connect\"}",
        "change_log_entries_total{outcome=\"unknown\"}",
    ] {
        let line = format!("telecomx_gateway_{series} 0");
        assert!(metrics.lines().any(|found| found == line), "{line} is missing in {metrics}");
    }
}
