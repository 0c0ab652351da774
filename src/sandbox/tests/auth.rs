//! `/auth`, and the places of a token.

use bytes::Bytes;
use http::Request;

use super::*;
use crate::sandbox::data::{
    DEMO_CUSTOMER, DEMO_RESELLER, FOREIGN_CUSTOMER, FOREIGN_RESELLER, OTHER_CUSTOMER,
};
use crate::sandbox::session::{Expiry, MAX_SESSIONS, Session, Sessions};

#[test]
fn login_describes_caller_and_sets_cookie() {
    let mut api = Api::new();
    let owner = demo(AccessLevel::Owner);
    let by_query = api.get_with(
        &format!(
            "/auth/login?username={}&password={}",
            owner.login.replace('@', "%40"),
            owner.password
        ),
        &[],
    );
    let body = json!({"username": owner.login, "password": owner.password});
    let by_body =
        api.send(Request::post("/auth/login").body(Bytes::from(body.to_string())).unwrap());
    for response in [&by_query, &by_body] {
        assert_eq!(response.status, 200, "{}", response.text);
        let json = response.json();
        let token = json["token"].as_str().unwrap();
        assert!(token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        assert_eq!(response.header("set-cookie"), format!("token={token}; HttpOnly; Path=/"));
        assert_eq!(json["success"], true);
        assert_eq!(json["employee"], owner.employee);
        assert_eq!(json["customer"], owner.customer);
        assert_eq!(json["accessLevel"], "OWNER");
        assert_eq!(json["name"], "Demo OWNER");
        assert_eq!(
            json["customerIntegrations"]["billing"]["rackbeat"]["bearerToken"],
            "123456789abcdefg"
        );
        assert_eq!(api.get(token, &format!("/customer/{DEMO_CUSTOMER}/name")).status, 200);
    }
    assert_ne!(by_query.json()["token"], by_body.json()["token"]);
}

#[test]
fn every_demo_caller_except_no_login_logs_in() {
    let mut api = Api::new();
    for access_level in
        AccessLevel::ALL.into_iter().filter(|access_level| *access_level != AccessLevel::NoLogin)
    {
        let token = api.login(access_level, "");
        let validated = api.get_with(&format!("/auth/validateToken?token={token}"), &[]).json();
        assert_eq!(validated["accessLevel"], access_level.as_str());
    }
    let caller = demo(AccessLevel::NoLogin);
    let path = format!("/auth/login?username={}&password={}", caller.login, caller.password);
    assert_refused(&api.get_with(&path, &[]), 401, "credentials_invalid");
}

#[test]
fn wrong_login_is_refused() {
    let mut api = Api::new();
    for query in [
        "",
        "?username=viewer@sandbox.example",
        "?username=viewer@sandbox.example&password=x",
        "?password=demo-viewer",
    ] {
        assert_refused(
            &api.get_with(&format!("/auth/login{query}"), &[]),
            401,
            "credentials_invalid",
        );
    }
    let caller = demo(AccessLevel::Viewer);
    for minutes in ["0", "-2", "x", "", "525601", "99999999999999999999"] {
        let query = format!(
            "username={}&password={}&expiresInMinutes={minutes}",
            caller.login, caller.password
        );
        let response = api.get_with(&format!("/auth/login?{query}"), &[]);
        assert_refused(&response, 422, "validation");
        assert_eq!(response.json()["error"]["check"], "expiresInMinutes");
    }
    let garbage = Request::post("/auth/login").body(Bytes::from_static(b"username=x")).unwrap();
    assert_refused(&api.send(garbage), 400, "bad_request");
}

#[test]
fn session_expires_without_protected_requests() {
    let mut api = Api::new();
    let name = format!("/customer/{DEMO_CUSTOMER}/name");
    let session = api.login(AccessLevel::Viewer, "");
    for _ in 0..3 {
        api.advance_minutes(14);
        assert_eq!(api.get(&session, &name).status, 200);
    }
    api.advance_minutes(14);
    assert!(api.is_valid(&session, ""), "still alive");
    api.advance_minutes(1);
    assert!(!api.is_valid(&session, ""), "a validation does not prolong");
    assert_refused(&api.get(&session, &name), 401, "expired");
    assert_refused(&api.get(&session, &name), 401, "expired");
}

#[test]
fn login_sets_session_duration() {
    let mut api = Api::new();
    let short = api.login(AccessLevel::Viewer, "&expiresInMinutes=2");
    let persistent = api.login(AccessLevel::Viewer, "&expiresInMinutes=-1");
    api.advance_minutes(1);
    assert_eq!(api.get(&short, "/customer").status, 200);
    api.advance_minutes(2);
    assert_refused(&api.get(&short, "/customer"), 401, "expired");
    api.advance_minutes(60 * 24 * 365);
    assert_eq!(api.get(&persistent, "/customer").status, 200);
    assert_eq!(api.get(token(AccessLevel::Viewer), "/customer").status, 200);
}

#[test]
fn validation_describes_valid_token_and_denies_invalid_one() {
    let mut api = Api::new();
    let caller = demo(AccessLevel::Manager);
    let path = format!("/auth/validateToken?token={}", caller.token);
    let expected = json!({
        "success": true, "employee": caller.employee, "customer": caller.customer, "accessLevel": "MANAGER",
    });
    assert_eq!(api.get_with(&path, &[]).json(), expected);
    assert_eq!(api.get_with(&format!("{path}&simple=true"), &[]).json(), expected);
    let extended = api.get_with(&format!("{path}&extend=true"), &[]).json();
    assert_eq!(extended["name"], "Demo MANAGER");
    assert_eq!(extended["language"], "da");
    assert_eq!(extended["customerName"], "Anders And & Co");
    assert_eq!(extended["customerFeatures"], json!(["CUSTOMER", "SIP", "MVNO"]));
    assert_eq!(extended["customerIntegrations"]["criipto"]["clientSecret"], "s3cr3t-criipto");

    assert_eq!(
        api.get_with("/auth/validateToken?token=unknown", &[]).json(),
        json!({"success": false})
    );
    assert_refused(
        &api.get_with("/auth/validateToken?token=unknown&simple=true", &[]),
        403,
        "access_denied",
    );
    for missing in
        ["/auth/validateToken", "/auth/validateToken?token=", "/auth/validateToken?extend=true"]
    {
        assert_refused(&api.get_with(missing, &[]), 401, "credentials_invalid");
    }
}

#[test]
fn login_is_bound_to_address_and_demo_token_is_not() {
    let mut api = Api::new();
    let session = api.login(AccessLevel::Viewer, "");
    assert!(api.is_valid(&session, "&ip=192.0.2.1"));
    assert!(api.is_valid(&session, "&ip=::ffff:192.0.2.1"), "the same address as IPv6 writes it");
    for other in ["192.0.2.2", "::1", "nonsense", ""] {
        assert!(!api.is_valid(&session, &format!("&ip={other}")), "{other}");
        assert!(api.is_valid(token(AccessLevel::Viewer), &format!("&ip={other}")), "{other}");
    }
    let caller = demo(AccessLevel::Viewer);
    let path = format!("/auth/login?username={}&password={}", caller.login, caller.password);
    let through_a_proxy =
        api.get_with(&path, &[("X-Forwarded-For", "198.51.100.7, 192.0.2.9")]).json();
    let session = through_a_proxy["token"].as_str().unwrap().to_owned();
    assert!(api.is_valid(&session, "&ip=198.51.100.7"));
    assert!(!api.is_valid(&session, "&ip=192.0.2.1"));
}

#[test]
fn logout_ends_all_tokens_of_the_employee_only() {
    let mut api = Api::new();
    let (one, two) =
        (api.login(AccessLevel::Owner, ""), api.login(AccessLevel::Owner, "&expiresInMinutes=-1"));
    let other = api.login(AccessLevel::Viewer, "");
    let response = api.get(&one, "/auth/logout");
    assert_eq!((response.status, response.json()), (200, json!({"success": true})));
    assert!(response.header("set-cookie").contains("Max-Age=0"));
    for ended in [one.as_str(), two.as_str(), token(AccessLevel::Owner)] {
        assert!(!api.is_valid(ended, ""));
        assert_refused(&api.get(ended, "/customer"), 401, "invalid_token");
    }
    assert!(api.is_valid(&other, ""));
    assert!(
        Api::new().is_valid(token(AccessLevel::Owner), ""),
        "a restart brings the demo token back"
    );
}

#[test]
fn reseller_switch_changes_visible_customers() {
    let mut api = Api::new();
    let (own, foreign) =
        (format!("/customer/{OTHER_CUSTOMER}/name"), format!("/customer/{FOREIGN_CUSTOMER}/name"));
    let switch = "POST /auth/organizationreseller";
    for (access_level, own_before, foreign_before) in
        [(AccessLevel::ResellerAdmin, 200, 403), (AccessLevel::Admin, 200, 200)]
    {
        let statuses = |api: &mut Api| {
            (
                api.get(token(access_level), &own).status,
                api.get(token(access_level), &foreign).status,
            )
        };
        assert_eq!(statuses(&mut api), (own_before, foreign_before), "{access_level}");
        let response = api.call(
            token(access_level),
            switch,
            json!({"reseller": FOREIGN_RESELLER.to_uppercase()}),
        );
        assert_eq!(response.json(), json!({"success": true, "reseller": FOREIGN_RESELLER}));
        assert_eq!(statuses(&mut api), (403, 200), "{access_level}");
        api.call(token(access_level), switch, json!({"reseller": DEMO_RESELLER}));
        assert_eq!(statuses(&mut api), (200, 403), "{access_level}");
        api.call(token(access_level), switch, json!({"reseller": null}));
        assert_eq!(statuses(&mut api), (own_before, foreign_before), "{access_level}");
    }
    let other_token = api.login(AccessLevel::Admin, "");
    api.call(token(AccessLevel::Admin), switch, json!({"reseller": DEMO_RESELLER}));
    assert_eq!(
        api.get(&other_token, &foreign).status,
        200,
        "the switch is the token's, not the employee's"
    );
}

#[test]
fn invalid_reseller_switch_is_refused() {
    let mut api = Api::new();
    let switch = "POST /auth/organizationreseller";
    let body = json!({"reseller": FOREIGN_RESELLER});
    assert_refused(&api.call(token(AccessLevel::Reseller), switch, body), 403, "access_denied");
    let admin = token(AccessLevel::Admin);
    assert_refused(&api.call(admin, switch, json!({"reseller": DEMO_CUSTOMER})), 404, "reseller");
    assert_refused(&api.call(admin, switch, json!({"reseller": "x"})), 404, "reseller");
    assert_refused(&api.call(admin, switch, json!({"reseller": 7})), 422, "validation");
    assert_refused(&api.call(admin, switch, json!({})), 422, "validation");
}

#[test]
fn token_is_read_from_every_credential_place() {
    let mut api = Api::new();
    let viewer = token(AccessLevel::Viewer);
    let name = format!("/customer/{DEMO_CUSTOMER}/name");
    let bearer = format!("bearer {viewer}");
    let cookie = format!("theme=dark; token={viewer}; mytoken=x");
    for fields in
        [("Authorization", bearer.as_str()), ("X-API-Key", viewer), ("Cookie", cookie.as_str())]
    {
        assert_eq!(api.get_with(&name, &[fields]).status, 200, "{}", fields.0);
    }
    assert_eq!(api.get_with(&format!("{name}?token={viewer}"), &[]).status, 200);

    let owner = json!({"token": token(AccessLevel::Owner), "phone": "+45 11 11 11 11"});
    let post = Request::post(format!("/customer/{DEMO_CUSTOMER}"))
        .body(Bytes::from(owner.to_string()))
        .unwrap();
    let response = api.send(post);
    assert_eq!(response.status, 200, "{}", response.text);
    assert_eq!(response.json()["phone"], "+45 11 11 11 11");
    assert!(
        !response.text.contains(token(AccessLevel::Owner)),
        "the caller's token is not stored in the customer"
    );
}

#[test]
fn first_credential_place_decides() {
    let mut api = Api::new();
    let (admin, bad) = (token(AccessLevel::Admin), "unknown");
    let path = format!("/customer/{FOREIGN_CUSTOMER}/name?token={admin}");
    assert_refused(
        &api.get_with(&path, &[("Authorization", "Bearer unknown")]),
        401,
        "invalid_token",
    );
    assert_refused(&api.get_with(&path, &[("X-API-Key", bad)]), 401, "invalid_token");
    assert_eq!(api.get_with(&path, &[("Cookie", "token=unknown")]).status, 200);
}

#[test]
fn missing_token_and_wrong_scheme_have_different_codes() {
    let mut api = Api::new();
    let name = format!("/customer/{DEMO_CUSTOMER}/name");
    assert_refused(&api.get_with(&name, &[]), 401, "credentials_invalid");
    assert_refused(&api.get_with(&name, &[("Cookie", "mytoken=x")]), 401, "credentials_invalid");
    for wrong in ["Basic dTpw", "Bearer", "Bearer ", "Bearer a b", "sandbox-demo-viewer"] {
        assert_refused(&api.get_with(&name, &[("Authorization", wrong)]), 401, "format_error");
    }
}

#[test]
fn full_sessions_evict_expired_ones() {
    let start = SystemTime::UNIX_EPOCH;
    let minute = Duration::from_mins(1);
    let employee = data::constant_id(demo(AccessLevel::Viewer).employee);
    let session = || {
        let expiry = Expiry::Sliding { length: minute, ends: start + minute };
        Session { employee, expiry, address: None, reseller: None }
    };
    let mut sessions = Sessions::default();
    for _ in 0..MAX_SESSIONS {
        sessions.create(session(), start).unwrap();
    }
    assert!(sessions.create(session(), start).is_err());
    assert!(sessions.create(session(), start + minute).is_ok());
}
