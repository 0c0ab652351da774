//! `/customer` and `/log/changeloglite`.

use super::*;
use crate::sandbox::data::{DEMO_CUSTOMER, DEMO_RESELLER, FOREIGN_CUSTOMER, OTHER_CUSTOMER};

const OWNER: &str = "sandbox-demo-owner";
const ADMIN: &str = "sandbox-demo-admin";

fn path(id: &str) -> String {
    format!("/customer/{id}")
}

fn post(id: &str) -> String {
    format!("POST /customer/{id}")
}

#[test]
fn demo_customer_is_the_documented_example() {
    let mut api = Api::new();
    for id in [DEMO_CUSTOMER.to_owned(), DEMO_CUSTOMER.to_uppercase()] {
        let response = api.get(token(AccessLevel::Viewer), &format!("/customer/{id}/name"));
        assert_eq!(
            (response.status, response.header("content-type")),
            (200, "application/json; charset=utf-8")
        );
        assert_eq!(response.text, include_str!("../data/anders_and.json"));
    }
    let request = Request::head(format!("/customer/{DEMO_CUSTOMER}/name?token={OWNER}"))
        .body(Bytes::new())
        .unwrap();
    assert_eq!(api.send(request).status, 200);
}

#[test]
fn visible_customers_follow_the_documented_table() {
    use AccessLevel::*;
    let mut api = Api::new();
    for (access_level, statuses) in [
        (NoLogin, [403, 403, 403]),
        (Personal, [403, 403, 403]),
        (Viewer, [200, 403, 403]),
        (Manager, [200, 403, 403]),
        (Owner, [200, 403, 403]),
        (Reseller, [200, 200, 403]),
        (ResellerAdmin, [200, 200, 403]),
        (Admin, [200, 200, 200]),
    ] {
        for (id, status) in
            [DEMO_CUSTOMER, OTHER_CUSTOMER, FOREIGN_CUSTOMER].into_iter().zip(statuses)
        {
            for page in ["/name", "", "/export"] {
                let response = api.get(token(access_level), &format!("/customer/{id}{page}"));
                assert_eq!(response.status, status, "{access_level} {id} {page}");
                if status == 403 {
                    assert_refused(&response, 403, "access_denied");
                }
            }
        }
    }
}

#[test]
fn unknown_customer_is_404() {
    let mut api = Api::new();
    for id in ["000000000000000000000000", "x", "73469a52f4fd7f77ec7b28c", "%00"] {
        for page in ["/name", "", "/export"] {
            assert_refused(&api.get(ADMIN, &format!("/customer/{id}{page}")), 404, "customer");
        }
    }
}

#[test]
fn customer_list_has_visible_customers() {
    let mut api = Api::new();
    let mut list = |token: &str, query: &str| {
        let response = api.get(token, &format!("/customer{query}")).json();
        response["customers"].as_array().unwrap().clone()
    };
    let own = list(OWNER, "?full=true");
    assert_eq!(own.len(), 1);
    assert_eq!(own[0]["integrations"]["criipto"]["clientSecret"], "s3cr3t-criipto");
    assert_eq!(list(OWNER, ""), [json!({"_id": DEMO_CUSTOMER, "name": "Anders And & Co"})]);
    assert!(list(token(AccessLevel::Personal), "?full=true").is_empty());

    let resellers = list(token(AccessLevel::Reseller), "?full=true");
    assert!(
        resellers.len() > 40
            && resellers.iter().all(|customer| customer["parentReseller"] == DEMO_RESELLER)
    );
    let all = list(ADMIN, "?full=true");
    assert!(all.len() > 300, "{}", all.len());
}

#[test]
fn dataset_is_varied_and_deterministic() {
    let all = || Api::new().get(ADMIN, "/customer?full=true").text;
    let text = all();
    assert_eq!(text, all());
    let customers =
        serde_json::from_str::<Value>(&text).unwrap()["customers"].as_array().unwrap().clone();
    let with = |pointer: &str| {
        customers.iter().filter(|customer| customer.pointer(pointer).is_some()).count()
    };
    for pointer in [
        "/integrations/billing/economic/agreementGrantToken",
        "/integrations/billing/rackbeat/bearerToken",
        "/integrations/billing/uniconta/password",
        "/integrations/criipto/clientSecret",
        "/integrations/licenses/also/password",
        "/integrations/ms365/calendarShowAsMappings",
        "/integrations/mvnoPrivate/portal",
        "/integrations/fortnox/accessKey",
        "/integrations/billing/licenses/also/password",
        "/integrations/billing/ms365/tenantId",
        "/integrations/billing/mvnoPrivate/portal",
    ] {
        let count = with(pointer);
        assert!(count > 0 && count < customers.len(), "{pointer}: {count}");
    }
    assert!(customers.iter().any(|customer| customer["integrations"] == json!({})));
    assert!(with("/integrations") < customers.len());

    let resellers: std::collections::BTreeSet<_> =
        customers.iter().map(|customer| customer["parentReseller"].as_str().unwrap()).collect();
    assert_eq!(resellers.len(), 8);
    let secret = |name: &str| {
        let name = name.to_lowercase();
        ["token", "password", "secret", "username", "accesskey"]
            .iter()
            .any(|word| name.contains(word))
            || name == "k"
    };
    let mut seen = 0;
    for customer in customers.iter().filter(|customer| customer["_id"] != DEMO_CUSTOMER) {
        let mut left = vec![&customer["integrations"]];
        while let Some(value) = left.pop() {
            left.extend(value.as_array().into_iter().flatten());
            for (name, value) in value.as_object().into_iter().flatten() {
                left.push(value);
                if secret(name) {
                    assert!(value.as_str().unwrap().contains("sandbox-secret"), "{name}: {value}");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 300, "{seen}");
}

#[test]
fn export_is_csv() {
    let mut api = Api::new();
    api.call(OWNER, &post(DEMO_CUSTOMER), json!({"name": "And, \"Anders\" & Co"}));
    let response = api.get(OWNER, &format!("{}/export", path(DEMO_CUSTOMER)));
    assert_eq!(response.header("content-type"), "text/csv; charset=utf-8");
    let lines: Vec<_> = response.text.split("\r\n").collect();
    assert_eq!(lines[0], "_id,name,parentReseller,email,phone,vat");
    assert!(
        lines[1].starts_with(&format!("\"{DEMO_CUSTOMER}\",\"And, \"\"Anders\"\" & Co\",")),
        "{}",
        lines[1]
    );
}

#[test]
fn update_merges_objects_and_replaces_other_values() {
    let mut api = Api::new();
    let before = api.get(OWNER, &path(DEMO_CUSTOMER)).json();
    let patch = json!({
        "name": "Andeby & Co",
        "features": ["CUSTOMER"],
        "integrations": {
            "billing": {"economic": {"accrual": true}},
            "ms365": {"calendarShowAsMappings": {"busy": null}},
        },
    });
    let response = api.call(OWNER, &post(DEMO_CUSTOMER), patch);
    assert_eq!(response.status, 200, "{}", response.text);
    let mut expected = before;
    expected["name"] = json!("Andeby & Co");
    expected["features"] = json!(["CUSTOMER"]);
    expected["integrations"]["billing"]["economic"]["accrual"] = json!(true);
    expected["integrations"]["ms365"]["calendarShowAsMappings"]["busy"] = Value::Null;
    assert_eq!(response.json(), expected);
    assert_eq!(api.get(OWNER, &path(DEMO_CUSTOMER)).json(), expected);
}

#[test]
fn refused_update_changes_nothing() {
    let mut api = Api::new();
    let before = api.get(ADMIN, &path(DEMO_CUSTOMER)).text;
    for access_level in
        [AccessLevel::NoLogin, AccessLevel::Personal, AccessLevel::Viewer, AccessLevel::Manager]
    {
        let response = api.call(token(access_level), &post(DEMO_CUSTOMER), json!({"name": "Mine"}));
        assert_refused(&response, 403, "access_denied");
    }
    assert_refused(
        &api.call(OWNER, &post(OTHER_CUSTOMER), json!({"name": "Mine"})),
        403,
        "access_denied",
    );
    assert_refused(&api.call(OWNER, &post("000000000000000000000000"), json!({})), 404, "customer");
    let foreign = json!({"parentReseller": data::FOREIGN_RESELLER});
    assert_refused(&api.call(OWNER, &post(DEMO_CUSTOMER), foreign), 403, "access_denied");
    for (property, value) in [
        ("name", json!(7)),
        ("name", Value::Null),
        ("name", json!(" ")),
        ("features", json!("SIP")),
        ("features", json!([1])),
        ("integrations", json!([])),
        ("_id", json!(OTHER_CUSTOMER)),
        ("parentReseller", json!(DEMO_CUSTOMER)),
    ] {
        let response = api.call(OWNER, &post(DEMO_CUSTOMER), json!({property: value}));
        assert_refused(&response, 422, "validation");
        assert_eq!(response.json()["error"]["check"], property);
    }
    assert_refused(
        &api.call(OWNER, &post(DEMO_CUSTOMER), json!({"note": "x".repeat(70_000)})),
        422,
        "validation",
    );
    for body in ["{", "[]", "\"x\"", "{}{}"] {
        let request = Request::post(path(DEMO_CUSTOMER))
            .header("X-API-Key", OWNER)
            .body(body.into())
            .unwrap();
        assert_refused(&api.send(request), 400, "bad_request");
    }
    assert_eq!(api.get(ADMIN, &path(DEMO_CUSTOMER)).text, before);
    assert_eq!(api.get(ADMIN, "/log/changeloglite").json(), json!([]));
}

#[test]
fn admin_moves_customer_to_another_reseller() {
    let mut api = Api::new();
    let reseller = token(AccessLevel::Reseller);
    assert_eq!(api.get(reseller, &path(OTHER_CUSTOMER)).status, 200);
    let response =
        api.call(ADMIN, &post(OTHER_CUSTOMER), json!({"parentReseller": data::FOREIGN_RESELLER}));
    assert_eq!(response.status, 200, "{}", response.text);
    assert_refused(&api.get(reseller, &path(OTHER_CUSTOMER)), 403, "access_denied");
}

#[test]
fn customer_delete_removes_employees_and_tokens() {
    let mut api = Api::new();
    let delete = format!("DELETE {}", path(DEMO_CUSTOMER));
    assert_refused(&api.call(OWNER, &delete, Value::Null), 403, "access_denied");
    let reseller = demo(AccessLevel::Reseller);
    let own = format!("DELETE {}", path(reseller.customer));
    assert_refused(&api.call(reseller.token, &own, Value::Null), 409, "conflict");
    let foreign = format!("DELETE {}", path(FOREIGN_CUSTOMER));
    assert_refused(&api.call(reseller.token, &foreign, Value::Null), 403, "access_denied");

    assert_eq!(api.call(reseller.token, &delete, Value::Null).json(), json!({"success": true}));
    assert_refused(&api.call(reseller.token, &delete, Value::Null), 404, "customer");
    assert_refused(&api.get(ADMIN, &path(DEMO_CUSTOMER)), 404, "customer");
    assert_refused(&api.get(OWNER, &path(DEMO_CUSTOMER)), 401, "invalid_token");
    assert!(!api.is_valid(OWNER, ""));
}

#[test]
fn change_log_lists_changes_of_visible_customers() {
    let mut api = Api::new();
    api.call(OWNER, &post(DEMO_CUSTOMER), json!({"phone": "1"}));
    api.advance_minutes(60);
    api.call(ADMIN, &post(FOREIGN_CUSTOMER), json!({"phone": "2"}));
    api.call(ADMIN, &format!("DELETE {}", path(OTHER_CUSTOMER)), Value::Null);
    let mut log =
        |token: &str, query: &str| api.get(token, &format!("/log/changeloglite{query}")).json();
    let ids = |log: Value| -> Vec<String> {
        log.as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["id"].as_str().unwrap().to_owned())
            .collect()
    };

    assert_eq!(
        log(OWNER, ""),
        json!([{
            "_id": "000000000000000000000001", "customer": DEMO_CUSTOMER, "reseller": DEMO_RESELLER,
            "when": "2025-11-24T16:00:00.000Z", "where": "Customers", "what": "UPDATE", "id": DEMO_CUSTOMER,
        }])
    );
    let all = log(ADMIN, "?date=2025-11-24");
    assert_eq!(all[2]["what"], "DELETE");
    assert_eq!(ids(all), [DEMO_CUSTOMER, FOREIGN_CUSTOMER, OTHER_CUSTOMER]);
    assert_eq!(ids(log(token(AccessLevel::Reseller), "")), [DEMO_CUSTOMER, OTHER_CUSTOMER]);
    assert_eq!(
        ids(log(ADMIN, "?date=2025-11-24T16:00:00.001Z")),
        [FOREIGN_CUSTOMER, OTHER_CUSTOMER]
    );
    assert_eq!(ids(log(ADMIN, "?date=2025-11-25")), [""; 0]);
    assert_eq!(ids(log(ADMIN, &format!("?customer={FOREIGN_CUSTOMER}"))), [FOREIGN_CUSTOMER]);
    assert_eq!(
        ids(log(ADMIN, &format!("?reseller={DEMO_RESELLER}"))),
        [DEMO_CUSTOMER, OTHER_CUSTOMER]
    );
    for wrong in ["?date=yesterday", "?customer=x", "?reseller=x"] {
        assert_refused(&api.get(ADMIN, &format!("/log/changeloglite{wrong}")), 400, "bad_request");
    }
    assert_refused(
        &api.get(token(AccessLevel::Personal), "/log/changeloglite"),
        403,
        "access_denied",
    );
    api.advance_minutes(5 * 24 * 60);
    assert_eq!(
        ids(api.get(ADMIN, "/log/changeloglite").json()),
        [FOREIGN_CUSTOMER, OTHER_CUSTOMER],
        "kept for 5 days"
    );
}
