//! The status page and its data over HTTP. tests/clients opens it in a browser.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    (origin, gateway)
}

fn with_token(origin: &Origin) -> Gateway {
    let setup =
        Gateway::set_up(origin).file("admin-token", "tok-operator\n").admin_token("tok-operator");
    setup.config(r#"admin.token_file = "{dir}/admin-token""#).start()
}

/// The nonce that a policy names for scripts.
fn nonce(page: &Response) -> String {
    let policy = page.header("content-security-policy").expect("a policy");
    let (_, rest) = policy.split_once("script-src 'nonce-").expect("scripts by nonce alone");
    rest.split_once('\'').expect("the nonce's end").0.to_owned()
}

#[test]
fn page_loads_nothing_from_other_origins() {
    let (_origin, gateway) = scene();
    let page = gateway.admin().get("/").send();
    page.assert_status(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let text = page.text();
    // The SVG namespace is a name; nothing is loaded from it.
    let without = text.replace("http://www.w3.org/2000/svg", "");
    for outside in ["://", "src=", "@import", "url(", "<link rel=\"stylesheet"] {
        assert!(!without.contains(outside), "{outside:?} in the page");
    }
    assert!(text.contains("<!doctype html>") && text.contains("GET /stats"), "{text}");
    let head = gateway.admin().head("/").send();
    assert_eq!(
        (head.assert_status(200).text().as_str(), head.header("content-length")),
        ("", page.header("content-length"))
    );
}

#[test]
fn policy_allows_only_the_pages_script_and_style() {
    let (_origin, gateway) = scene();
    let page = gateway.admin().get("/").send();
    let (policy, nonce) =
        (page.header("content-security-policy").expect("a policy").to_owned(), nonce(&page));
    for part in [
        "default-src 'none'",
        &format!("script-src 'nonce-{nonce}'"),
        &format!("style-src 'nonce-{nonce}'"),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ] {
        assert!(policy.split("; ").any(|directive| directive == part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert!(nonce.len() == 32, "128 bits: {nonce}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let text = page.text();
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "one style, one script");
    assert_eq!(text.matches("<script").count() + text.matches("<style").count(), 2);
    let markup = text.split("<script").next().expect("the markup before the script");
    for inline in [" style=", " onclick=", " onload=", " onerror=", " onsubmit=", "javascript:"] {
        assert!(!markup.contains(inline), "{inline} in the page");
    }
    let another = gateway.admin().get("/").send();
    assert_ne!(self::nonce(&another), nonce, "a nonce is used once");
}

#[test]
fn page_and_configuration_contain_no_secret() {
    let origin = Origin::start();
    let gateway = with_token(&origin);
    for path in ["/", "/config", "/stats", "/stats/history"] {
        gateway.admin().get(path).send().assert_status(401);
        let response = gateway.admin().get(path).bearer("tok-operator").send();
        assert!(!response.assert_status(200).text().contains("tok-operator"), "{path}");
    }
    let config = gateway.admin().get("/config").bearer("tok-operator").send().text();
    assert!(
        config.contains("requires the token in") && config.contains("admin-token"),
        "only its file is named: {config}"
    );
}

#[test]
fn history_contains_the_requests_of_the_last_minutes() {
    let (_origin, gateway) = scene();
    for _ in 0..4 {
        gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    }
    gateway.client().get("/elsewhere").send().assert_status(200);
    let history = || gateway.admin().get("/stats/history").send().assert_status(200).json();
    let sum = |history: &serde_json::Value, key: &str| {
        let samples = history["samples"].as_array().expect("samples").iter();
        samples.map(|sample| sample[key].as_u64().expect("a number")).sum::<u64>()
    };
    wait_until("a sample was taken", || sum(&history(), "requests") == 5);
    let history = history();
    assert_eq!(
        (sum(&history, "hits"), sum(&history, "misses"), sum(&history, "failed")),
        (3, 1, 0),
        "{history}"
    );
    assert!(
        history["every_seconds"].as_u64() > Some(0) && history["kept"].as_u64() > Some(0),
        "{history}"
    );
    let recent = &history["recent"];
    assert_eq!(
        (&recent["hit"]["count"], &recent["miss"]["count"]),
        (&3.into(), &1.into()),
        "{history}"
    );
    assert_eq!(recent["forwarded"]["count"], 1, "{history}");
    assert!(recent["hit"]["p50_seconds"].as_f64() > Some(0.0), "{history}");
    assert!(history["resident_bytes"].as_u64() > Some(1 << 20), "{history}");
}

#[test]
fn stats_and_config_show_the_last_reload() {
    let (_origin, gateway) = scene();
    assert!(gateway.stats()["last_reload"].is_null());
    assert_eq!(gateway.stats()["state"], "serving");
    let config = || gateway.admin().get("/config").send().assert_status(200).text();
    assert!(!config().contains("/newly/blocked"));
    let before = std::fs::read_to_string(gateway.config_file()).expect("the configuration");
    let changed = format!("{before}\n[forward]\nblocked = [\"/newly/blocked\"]\n")
        .replace("timeout = \"50s\"", "timeout = \"49s\"");
    gateway.rewrite("gateway.toml", &changed);
    gateway.admin().post("/reload").body("").send().assert_status(200);
    let reload = &gateway.stats()["last_reload"];
    assert_eq!(
        (&reload["successful"], &reload["restart_needed_for"]),
        (&true.into(), &serde_json::json!(["upstream"]))
    );
    assert!(config().contains("/newly/blocked: 403"), "{}", config());
    assert!(
        config().contains("response within 50s"),
        "a key that needs a restart is not applied: {}",
        config()
    );
    gateway.rewrite("gateway.toml", "nonsense");
    gateway.admin().post("/reload").body("").send().assert_status(422);
    let reload = &gateway.stats()["last_reload"];
    assert_eq!(reload["successful"], false);
    assert!(
        reload["problems"][0].as_str().is_some_and(|problem| problem.contains("gateway.toml")),
        "{reload}"
    );
    assert!(config().contains("/newly/blocked: 403"));
}

/// A page in an operator's browser can send `POST /reload` without a preflight.
#[test]
fn changes_from_pages_of_other_origins_are_refused() {
    let (_origin, gateway) = scene();
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    let own = gateway.admin_address().to_string();
    let calls = || {
        let customers = format!("/cache/customers/{DUCK}");
        [("POST", "/reload".to_owned()), ("DELETE", "/cache".to_owned()), ("DELETE", customers)]
    };
    let generation = gateway.stats()["config_generation"].clone();
    for (method, path) in calls() {
        for (name, value) in [
            ("Origin", "https://page.example"),
            ("Origin", "null"),
            ("Origin", "http://127.0.0.1:1"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
        ] {
            let refused = gateway.admin().call(method, &path).header(name, value).send();
            assert_eq!(refused.status, 403, "{method} {path} {name}: {value}: {refused:#?}");
        }
    }
    assert_eq!(gateway.stats()["config_generation"], generation);
    assert!(gateway.client().get(P).bearer("tok-a").send().is_hit(), "nothing was purged");
    for (method, path) in calls() {
        let page = gateway.admin().call(method, &path).header("Sec-Fetch-Site", "same-origin");
        page.header("Origin", &format!("http://{own}")).send().assert_status(200);
        gateway
            .admin()
            .call(method, &path)
            .header("Origin", &format!("http://{own}"))
            .send()
            .assert_status(200);
    }
    // A read changes nothing, and the browser hides the response from a page of another origin.
    gateway.admin().get("/stats").header("Sec-Fetch-Site", "cross-site").send().assert_status(200);
}

/// DNS rebinding: a page whose name resolves to this host has the same origin for its browser.
#[test]
fn host_names_of_others_are_refused() {
    let (origin, gateway) = scene();
    for path in ["/", "/stats", "/stats/history", "/config", "/metrics"] {
        gateway.admin().get(path).host("rebound.example").send().assert_error(421, "bad_request");
    }
    gateway
        .admin()
        .delete("/cache")
        .host("rebound.example:9090")
        .send()
        .assert_error(421, "bad_request");
    gateway.admin().get("/readyz").host("rebound.example").send().assert_status(200);
    for own in ["localhost", "localhost:9090", "127.0.0.1", "[::1]:9090"] {
        gateway.admin().get("/stats").host(own).send().assert_status(200);
    }
    let guarded = with_token(&origin);
    guarded.admin().get("/stats").host("gateway.example").send().assert_error(421, "bad_request");
    guarded
        .admin()
        .get("/stats")
        .host("gateway.example")
        .bearer("tok-operator")
        .send()
        .assert_status(200);
}

#[test]
fn stats_show_a_drain() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, r#"server = { drain_delay = "50s" }"#);
    assert_eq!(gateway.stats()["state"], "serving");
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("the state is draining", || gateway.stats()["state"] == "draining");
    gateway.admin().get("/").send().assert_status(200);
}

/// base64 of `operator:tok-operator`.
const BASIC: &str = "Basic b3BlcmF0b3I6dG9rLW9wZXJhdG9y";

#[test]
fn browser_authenticates_with_the_token_as_password() {
    let origin = Origin::start();
    let gateway = with_token(&origin);
    let challenged = gateway.admin().get("/").send();
    challenged.assert_error(401, "credentials_invalid");
    let challenges = challenged.all("www-authenticate");
    assert!(
        challenges.iter().any(|challenge| challenge.starts_with("Basic realm=")),
        "{challenges:?}"
    );
    assert!(challenges.contains(&"Bearer"), "{challenges:?}");
    let own = format!("http://{}", gateway.admin_address());
    let basic = |method: &str, path: &str| {
        gateway.admin().call(method, path).header("Authorization", BASIC)
    };
    for path in ["/", "/stats", "/stats/history", "/config", "/metrics"] {
        basic("GET", path).send().assert_status(200);
        basic("GET", path).host("rebound.example").send().assert_error(421, "bad_request");
        basic("GET", path)
            .header("Sec-Fetch-Site", "cross-site")
            .send()
            .assert_error(403, "access_denied");
    }
    basic("DELETE", "/cache").header("Origin", &own).send().assert_status(200);
    basic("DELETE", "/cache")
        .header("Origin", "https://page.example")
        .send()
        .assert_error(403, "access_denied");
    basic("DELETE", "/cache").host("rebound.example").send().assert_error(421, "bad_request");
    // A link on a page of another origin opens the page.
    let link = basic("GET", "/")
        .header("Sec-Fetch-Site", "cross-site")
        .header("Sec-Fetch-Mode", "navigate");
    link.send().assert_status(200);
    let wrong = "Basic b3BlcmF0b3I6d3Jvbmc=";
    gateway.admin().get("/stats").header("Authorization", wrong).send().assert_status(401);
}

fn service(gateway: &Gateway) -> (String, String) {
    let stats = gateway.stats();
    let text = |name: &str| stats["service"][name].as_str().expect("a text").to_owned();
    (text("level"), text("summary"))
}

#[test]
fn service_state_shows_an_outage_of_the_api() {
    let (origin, gateway) = scene();
    assert_eq!(service(&gateway), ("good".into(), "serving".into()));
    gateway.client().get(P).bearer("tok-a").send().assert_status(200);
    assert_eq!(service(&gateway), ("good".into(), "serving".into()));
    origin.stop();
    for number in 0..4 {
        let call = gateway.client().get(&name_of(&customer(number))).bearer("tok-a");
        assert!(matches!(call.send().status, 502 | 503));
    }
    wait_until("the API is shown as down", || {
        let (level, summary) = service(&gateway);
        level == "failing" && summary.starts_with("serving, API down")
    });
    let history = gateway.admin().get("/stats/history").send().assert_status(200).json();
    let failures = &history["recent"]["failures"];
    assert_eq!((&failures["count"], &failures["requests"]), (&4.into(), &5.into()), "{history}");
    assert_eq!(failures["most_frequent"]["route"], "customer_name", "{history}");
    origin.resume();
    wait_until("the API is shown as up", || {
        gateway.client().get(P).bearer("tok-a").header("Cache-Control", "no-cache").send();
        !service(&gateway).1.contains("API down")
    });
}

#[test]
fn service_state_shows_a_rejected_reload() {
    let (_origin, gateway) = scene();
    let before = std::fs::read_to_string(gateway.config_file()).expect("the configuration");
    gateway.rewrite("gateway.toml", "nonsense");
    gateway.admin().post("/reload").send().assert_status(422);
    assert_eq!(service(&gateway), ("degraded".into(), "serving an old configuration".into()));
    gateway.rewrite("gateway.toml", &before);
    gateway.admin().post("/reload").send().assert_status(200);
    assert_eq!(service(&gateway), ("good".into(), "serving".into()));
}

#[test]
fn texts_for_terminals_end_with_a_newline() {
    let (_origin, gateway) = scene();
    for path in ["/stats", "/stats/history", "/nothing", "/config", "/metrics", "/readyz"] {
        let text = gateway.admin().get(path).send().text();
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{path}: {text:?}");
    }
    let error = gateway.client().get(P).send();
    assert!(error.assert_error(401, "credentials_invalid").text().ends_with("}\n"), "{error:#?}");
}
