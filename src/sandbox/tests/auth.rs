//! `/auth`, and where a token may stand.

use bytes::Bytes;
use http::Request;

use super::*;
use crate::sandbox::data::{DEMO_CUSTOMER, DEMO_RESELLER, FOREIGN_CUSTOMER, FOREIGN_RESELLER, OTHER_CUSTOMER};
use crate::sandbox::session::{Life, MOST_SESSIONS, Session, Sessions};

#[test]
fn a_login_says_who_logged_in_and_sets_the_cookie() {
    let mut api = Api::new();
    let owner = demo(AccessLevel::Owner);
    let by_query = api.get_with(
        &format!("/auth/login?username={}&password={}", owner.login.replace('@', "%40"), owner.password),
        &[],
    );
    let body = json!({"username": owner.login, "password": owner.password});
    let by_body = api.send(Request::post("/auth/login").body(Bytes::from(body.to_string())).unwrap());
    for answer in [&by_query, &by_body] {
        assert_eq!(answer.status, 200, "{}", answer.text);
        let json = answer.json();
        let token = json["token"].as_str().unwrap();
        assert!(token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        assert_eq!(answer.header("set-cookie"), format!("token={token}; HttpOnly; Path=/"));
        assert_eq!(json["success"], true);
        assert_eq!(json["employee"], owner.employee);
        assert_eq!(json["customer"], owner.customer);
        assert_eq!(json["accessLevel"], "OWNER");
        assert_eq!(json["name"], "Demo OWNER");
        assert_eq!(json["customerIntegrations"]["billing"]["rackbeat"]["bearerToken"], "123456789abcdefg");
        assert_eq!(api.get(token, &format!("/customer/{DEMO_CUSTOMER}/name")).status, 200);
    }
    assert_ne!(by_query.json()["token"], by_body.json()["token"]);
}

#[test]
fn every_caller_of_the_demo_but_no_login_can_log_in() {
    let mut api = Api::new();
    for role in AccessLevel::ALL.into_iter().filter(|role| *role != AccessLevel::NoLogin) {
        let token = api.login(role, "");
        let validated = api.get_with(&format!("/auth/validateToken?token={token}"), &[]).json();
        assert_eq!(validated["accessLevel"], role.as_str());
    }
    let caller = demo(AccessLevel::NoLogin);
    let path = format!("/auth/login?username={}&password={}", caller.login, caller.password);
    assert_refused(&api.get_with(&path, &[]), 401, "credentials_invalid");
}

#[test]
fn a_wrong_login_is_refused() {
    let mut api = Api::new();
    for query in
        ["", "?username=viewer@sandbox.example", "?username=viewer@sandbox.example&password=x", "?password=demo-viewer"]
    {
        assert_refused(&api.get_with(&format!("/auth/login{query}"), &[]), 401, "credentials_invalid");
    }
    let caller = demo(AccessLevel::Viewer);
    for minutes in ["0", "-2", "x", "", "525601", "99999999999999999999"] {
        let query = format!("username={}&password={}&expiresInMinutes={minutes}", caller.login, caller.password);
        let answer = api.get_with(&format!("/auth/login?{query}"), &[]);
        assert_refused(&answer, 422, "validation");
        assert_eq!(answer.json()["error"]["check"], "expiresInMinutes");
    }
    let garbage = Request::post("/auth/login").body(Bytes::from_static(b"username=x")).unwrap();
    assert_refused(&api.send(garbage), 400, "bad_request");
}

#[test]
fn a_session_slides_with_protected_calls_and_ends_without() {
    let mut api = Api::new();
    let name = format!("/customer/{DEMO_CUSTOMER}/name");
    let session = api.login(AccessLevel::Viewer, "");
    for _ in 0..3 {
        api.pass(14);
        assert_eq!(api.get(&session, &name).status, 200);
    }
    api.pass(14);
    assert!(api.is_valid(&session, ""), "still alive");
    api.pass(1);
    assert!(!api.is_valid(&session, ""), "a validation does not prolong");
    assert_refused(&api.get(&session, &name), 401, "expired");
    assert_refused(&api.get(&session, &name), 401, "expired");
}

#[test]
fn a_login_chooses_its_length() {
    let mut api = Api::new();
    let short = api.login(AccessLevel::Viewer, "&expiresInMinutes=2");
    let persistent = api.login(AccessLevel::Viewer, "&expiresInMinutes=-1");
    api.pass(1);
    assert_eq!(api.get(&short, "/customer").status, 200);
    api.pass(2);
    assert_refused(&api.get(&short, "/customer"), 401, "expired");
    api.pass(60 * 24 * 365);
    assert_eq!(api.get(&persistent, "/customer").status, 200);
    assert_eq!(api.get(token(AccessLevel::Viewer), "/customer").status, 200);
}

#[test]
fn validation_describes_a_valid_token_and_denies_an_invalid_one() {
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

    assert_eq!(api.get_with("/auth/validateToken?token=nobody", &[]).json(), json!({"success": false}));
    assert_refused(&api.get_with("/auth/validateToken?token=nobody&simple=true", &[]), 403, "access_denied");
    for missing in ["/auth/validateToken", "/auth/validateToken?token=", "/auth/validateToken?extend=true"] {
        assert_refused(&api.get_with(missing, &[]), 401, "credentials_invalid");
    }
}

#[test]
fn a_login_is_bound_to_its_address_and_a_demo_token_is_not() {
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
    let through_a_proxy = api.get_with(&path, &[("X-Forwarded-For", "198.51.100.7, 192.0.2.9")]).json();
    let session = through_a_proxy["token"].as_str().unwrap().to_owned();
    assert!(api.is_valid(&session, "&ip=198.51.100.7"));
    assert!(!api.is_valid(&session, "&ip=192.0.2.1"));
}

#[test]
fn a_logout_ends_all_tokens_of_the_employee_and_no_others() {
    let mut api = Api::new();
    let (one, two) = (api.login(AccessLevel::Owner, ""), api.login(AccessLevel::Owner, "&expiresInMinutes=-1"));
    let other = api.login(AccessLevel::Viewer, "");
    let answer = api.get(&one, "/auth/logout");
    assert_eq!((answer.status, answer.json()), (200, json!({"success": true})));
    assert!(answer.header("set-cookie").contains("Max-Age=0"));
    for ended in [one.as_str(), two.as_str(), token(AccessLevel::Owner)] {
        assert!(!api.is_valid(ended, ""));
        assert_refused(&api.get(ended, "/customer"), 401, "invalid_token");
    }
    assert!(api.is_valid(&other, ""));
    assert!(Api::new().is_valid(token(AccessLevel::Owner), ""), "a restart brings the demo token back");
}

#[test]
fn a_switch_changes_what_the_same_token_sees() {
    let mut api = Api::new();
    let (own, foreign) = (format!("/customer/{OTHER_CUSTOMER}/name"), format!("/customer/{FOREIGN_CUSTOMER}/name"));
    let switch = "POST /auth/organizationreseller";
    for (role, own_before, foreign_before) in [(AccessLevel::ResellerAdmin, 200, 403), (AccessLevel::Admin, 200, 200)] {
        let statuses = |api: &mut Api| (api.get(token(role), &own).status, api.get(token(role), &foreign).status);
        assert_eq!(statuses(&mut api), (own_before, foreign_before), "{role}");
        let answer = api.call(token(role), switch, json!({"reseller": FOREIGN_RESELLER.to_uppercase()}));
        assert_eq!(answer.json(), json!({"success": true, "reseller": FOREIGN_RESELLER}));
        assert_eq!(statuses(&mut api), (403, 200), "{role}");
        api.call(token(role), switch, json!({"reseller": DEMO_RESELLER}));
        assert_eq!(statuses(&mut api), (200, 403), "{role}");
        api.call(token(role), switch, json!({"reseller": null}));
        assert_eq!(statuses(&mut api), (own_before, foreign_before), "{role}");
    }
    let other_token = api.login(AccessLevel::Admin, "");
    api.call(token(AccessLevel::Admin), switch, json!({"reseller": DEMO_RESELLER}));
    assert_eq!(api.get(&other_token, &foreign).status, 200, "the switch is the token's, not the employee's");
}

#[test]
fn a_switch_is_refused_below_reseller_admin_and_to_nowhere() {
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
fn a_token_is_read_wherever_it_may_stand() {
    let mut api = Api::new();
    let viewer = token(AccessLevel::Viewer);
    let name = format!("/customer/{DEMO_CUSTOMER}/name");
    let bearer = format!("bearer {viewer}");
    let cookie = format!("theme=dark; token={viewer}; mytoken=x");
    for fields in [("Authorization", bearer.as_str()), ("X-API-Key", viewer), ("Cookie", cookie.as_str())] {
        assert_eq!(api.get_with(&name, &[fields]).status, 200, "{}", fields.0);
    }
    assert_eq!(api.get_with(&format!("{name}?token={viewer}"), &[]).status, 200);

    let owner = json!({"token": token(AccessLevel::Owner), "phone": "+45 11 11 11 11"});
    let post = Request::post(format!("/customer/{DEMO_CUSTOMER}")).body(Bytes::from(owner.to_string())).unwrap();
    let answer = api.send(post);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["phone"], "+45 11 11 11 11");
    assert!(!answer.text.contains(token(AccessLevel::Owner)), "the caller's token is no property of the customer");
}

#[test]
fn the_first_place_that_holds_a_token_decides() {
    let mut api = Api::new();
    let (admin, bad) = (token(AccessLevel::Admin), "nobody");
    let path = format!("/customer/{FOREIGN_CUSTOMER}/name?token={admin}");
    assert_refused(&api.get_with(&path, &[("Authorization", "Bearer nobody")]), 401, "invalid_token");
    assert_refused(&api.get_with(&path, &[("X-API-Key", bad)]), 401, "invalid_token");
    assert_eq!(api.get_with(&path, &[("Cookie", "token=nobody")]).status, 200);
}

#[test]
fn no_token_and_a_wrong_scheme_are_told_apart() {
    let mut api = Api::new();
    let name = format!("/customer/{DEMO_CUSTOMER}/name");
    assert_refused(&api.get_with(&name, &[]), 401, "credentials_invalid");
    assert_refused(&api.get_with(&name, &[("Cookie", "mytoken=x")]), 401, "credentials_invalid");
    for wrong in ["Basic dTpw", "Bearer", "Bearer ", "Bearer a b", "sandbox-demo-viewer"] {
        assert_refused(&api.get_with(&name, &[("Authorization", wrong)]), 401, "format_error");
    }
}

#[test]
fn sessions_are_bounded_and_those_that_are_over_make_room() {
    let start = SystemTime::UNIX_EPOCH;
    let minute = Duration::from_mins(1);
    let employee = data::own_id(demo(AccessLevel::Viewer).employee);
    let session = || {
        let life = Life::Sliding { length: minute, ends: start + minute };
        Session { employee, life, address: None, reseller: None }
    };
    let mut sessions = Sessions::default();
    for _ in 0..MOST_SESSIONS {
        sessions.open(session(), start).unwrap();
    }
    assert!(sessions.open(session(), start).is_err());
    assert!(sessions.open(session(), start + minute).is_ok());
}
