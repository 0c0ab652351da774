//! `/employee`.

use super::*;

const OWNER: &str = "sandbox-demo-owner";

fn employee(access_level: AccessLevel) -> String {
    format!("/employee/{}", demo(access_level).employee)
}

#[test]
fn access_level_change_applies_at_once() {
    let mut api = Api::new();
    let post = format!("POST {}", employee(AccessLevel::Viewer));
    let body = json!({"accessLevel": "PERSONAL", "name": "Rip", "language": "en"});
    let response = api.call(OWNER, &post, body).json();
    let viewer = demo(AccessLevel::Viewer);
    let expected = json!({
        "_id": viewer.employee, "customer": viewer.customer, "username": viewer.login, "name": "Rip", "language": "en",
        "accessLevel": "PERSONAL",
    });
    assert_eq!(response, expected);
    let validated =
        api.get_with(&format!("/auth/validateToken?token={}", viewer.token), &[]).json();
    assert_eq!(validated["accessLevel"], "PERSONAL");
    let name = format!("/customer/{}/name", viewer.customer);
    assert_refused(&api.get(viewer.token, &name), 403, "access_denied");
    let log = api.get(OWNER, "/log/changeloglite").json();
    assert_eq!((&log[0]["where"], &log[0]["what"]), (&json!("Employees"), &json!("UPDATE")));
    assert_eq!(
        (&log[0]["id"], &log[0]["customer"]),
        (&json!(viewer.employee), &json!(viewer.customer))
    );
}

#[test]
fn employee_rights_end_at_the_callers_level() {
    let mut api = Api::new();
    let viewer = format!("POST {}", employee(AccessLevel::Viewer));
    let admin = format!("POST {}", employee(AccessLevel::Admin));
    let reseller = format!("POST {}", employee(AccessLevel::Reseller));
    let above_in_the_same_reseller = format!("POST {}", employee(AccessLevel::ResellerAdmin));
    for (caller, call, body) in [
        (token(AccessLevel::Reseller), &above_in_the_same_reseller, json!({"name": "x"})),
        (token(AccessLevel::Manager), &viewer, json!({"name": "x"})),
        (token(AccessLevel::Viewer), &viewer, json!({"accessLevel": "OWNER"})),
        (OWNER, &viewer, json!({"accessLevel": "RESELLER"})),
        (OWNER, &reseller, json!({"name": "x"})),
        (token(AccessLevel::Reseller), &admin, json!({"name": "x"})),
    ] {
        assert_refused(&api.call(caller, call, body), 403, "access_denied");
    }
    for body in [
        json!({"accessLevel": "Owner"}),
        json!({"accessLevel": 7}),
        json!({"name": null}),
        json!({"name": ""}),
    ] {
        assert_refused(&api.call(OWNER, &viewer, body), 422, "validation");
    }
    for id in ["000000000000000000000000", "x"] {
        assert_refused(
            &api.call(OWNER, &format!("POST /employee/{id}"), json!({})),
            404,
            "employee",
        );
    }
}

#[test]
fn employee_delete_removes_tokens() {
    let mut api = Api::new();
    let delete = format!("DELETE {}", employee(AccessLevel::Viewer));
    assert_refused(
        &api.call(token(AccessLevel::Manager), &delete, Value::Null),
        403,
        "access_denied",
    );
    assert_refused(
        &api.call(OWNER, &format!("DELETE {}", employee(AccessLevel::Owner)), Value::Null),
        409,
        "conflict",
    );
    assert_eq!(api.call(OWNER, &delete, Value::Null).json(), json!({"success": true}));
    assert!(!api.is_valid(token(AccessLevel::Viewer), ""));
    assert_refused(&api.call(OWNER, &delete, Value::Null), 404, "employee");
    assert_eq!(api.get(OWNER, "/log/changeloglite").json()[0]["what"], "DELETE");
}

#[test]
fn machine_token_has_employee_access_until_deleted() {
    let mut api = Api::new();
    let viewer = demo(AccessLevel::Viewer);
    let make = format!("POST {}/token", employee(AccessLevel::Viewer));
    for maker in [viewer.token, OWNER, token(AccessLevel::Admin)] {
        let response = api.call(maker, &make, Value::Null);
        assert_eq!(response.status, 200, "{}", response.text);
        let machine = response.json()["token"].as_str().unwrap().to_owned();
        api.advance_minutes(60 * 24);
        assert!(api.is_valid(&machine, "&ip=203.0.113.9"));
        assert_eq!(api.get(&machine, &format!("/customer/{}/name", viewer.customer)).status, 200);
        assert_eq!(
            api.get(&machine, &format!("/customer/{}/name", data::OTHER_CUSTOMER)).status,
            403
        );

        let delete = format!("DELETE {}/token/{machine}", employee(AccessLevel::Viewer));
        assert_refused(
            &api.call(token(AccessLevel::Manager), &delete, Value::Null),
            403,
            "access_denied",
        );
        assert_eq!(api.call(maker, &delete, Value::Null).json(), json!({"success": true}));
        assert!(!api.is_valid(&machine, ""));
        assert_refused(&api.call(maker, &delete, Value::Null), 404, "token");
    }
    assert!(api.is_valid(viewer.token, ""), "the other tokens stay");
}

#[test]
fn machine_tokens_require_rights_over_the_employee() {
    let mut api = Api::new();
    let make = format!("POST {}/token", employee(AccessLevel::Owner));
    assert_refused(&api.call(token(AccessLevel::Viewer), &make, Value::Null), 403, "access_denied");
    assert_refused(&api.call(OWNER, "POST /employee/x/token", Value::Null), 404, "employee");
    // A token of another employee.
    let delete =
        format!("DELETE {}/token/{}", employee(AccessLevel::Viewer), token(AccessLevel::Admin));
    assert_refused(&api.call(OWNER, &delete, Value::Null), 404, "token");
    assert!(api.is_valid(token(AccessLevel::Admin), ""));
}
