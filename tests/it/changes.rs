//! Changes that pass through the gateway: they invalidate at once.

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";
const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";

#[test]
fn write_invalidates_its_customer_for_all_callers() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "OWNER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let get = |path: &str, token: &str| client.get(path).bearer(token).send();
    let writes = [
        ("POST", "/customer/73469a52f4fd7f77ec7b28cc"),
        ("PUT", "/customer/73469a52f4fd7f77ec7b28cc"),
        ("PATCH", "/customer/73469a52f4fd7f77ec7b28cc"),
        ("DELETE", "/customer/73469a52f4fd7f77ec7b28cc"),
        ("POST", "/customer/73469A52F4FD7F77EC7B28CC"),
        ("POST", "/customer/73469a52f4fd7f77ec7b28cc/anything/below"),
        ("DELETE", "/customer/73469a52f4fd7f77ec7b28cc/user/1"),
        ("POST", "/integration/also/customer/73469a52f4fd7f77ec7b28cc/sync"),
    ];
    for (method, target) in writes {
        for token in ["tok-a", "tok-b"] {
            get(P, token).assert_status(200);
            get(&name_of(OTHER), token).assert_status(200);
            assert!(get(P, token).is_hit());
        }
        client.call(method, target).bearer("tok-b").body("{}").send().assert_status(200);
        for token in ["tok-a", "tok-b"] {
            assert_eq!(
                get(P, token).assert_status(200).cache_status(),
                STORED,
                "{method} {target} for {token}"
            );
            assert!(
                get(&name_of(OTHER), token).is_hit(),
                "{method} {target} is of another customer"
            );
        }
    }
}

#[test]
fn read_invalidates_nothing() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    for path in [
        "/customer/73469a52f4fd7f77ec7b28cc",
        "/customer",
        "/employee/ee0000000000000000000001",
        "/elsewhere",
    ] {
        client.get(path).bearer("tok-a").send().assert_status(200);
    }
    assert!(client.get(P).bearer("tok-a").send().is_hit());
}

#[test]
fn fetch_begun_before_a_write_is_not_stored() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let gate = Gate::closed();
    origin.when(Rule::on(P).hold(&gate).times(1));
    let early = client.get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    client
        .post("/customer/73469a52f4fd7f77ec7b28cc")
        .bearer("tok-a")
        .body("{}")
        .send()
        .assert_status(200);
    gate.open();
    let early = early.finish();
    early.assert_status(200);
    assert!(!early.cache_status().contains("stored"), "{early:#?}");
    assert_eq!(client.get(P).bearer("tok-a").send().cache_status(), STORED);
}

#[test]
fn fetch_during_a_write_is_not_stored() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").method("POST").hold(&gate));
    let write =
        client.post("/customer/73469a52f4fd7f77ec7b28cc").bearer("tok-a").body("{}").start();
    origin.wait_until("the write is there", |seen| seen.iter().any(|seen| seen.method == "POST"));
    client.get(P).bearer("tok-a").send().assert_status(200);
    gate.open();
    write.finish().assert_status(200);
    let after = client.get(P).bearer("tok-a").send();
    assert_eq!(after.assert_status(200).cache_status(), STORED, "the old answer is gone");
}

#[test]
fn write_without_a_response_invalidates() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    origin.when(Rule::on("/customer/").method("POST").close());
    let write = client.post("/customer/73469a52f4fd7f77ec7b28cc").bearer("tok-a").body("{}").send();
    write.assert_error(502, "bad_gateway");
    assert_eq!(client.get(P).bearer("tok-a").send().cache_status(), STORED);
}

#[test]
fn logout_ends_all_tokens_of_its_employee_only() {
    let origin = Origin::start();
    let employee = "ee0000000000000000000001";
    origin.knows_employee("tok-1", "VIEWER", DUCK, employee);
    origin.knows_employee("tok-2", "VIEWER", DUCK, employee);
    origin.knows("tok-other", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for token in ["tok-1", "tok-2", "tok-other"] {
        client.get(P).bearer(token).send().assert_status(200);
    }
    client.get("/auth/logout").bearer("tok-1").send().assert_status(200);
    origin.forgets("tok-1");
    origin.forgets("tok-2");
    client.get(P).bearer("tok-1").send().assert_error(401, "invalid_token");
    client.get(P).bearer("tok-2").send().assert_error(401, "invalid_token");
    assert!(client.get(P).bearer("tok-other").send().assert_status(200).is_hit());
}

#[test]
fn logout_of_an_unseen_token_invalidates() {
    let origin = Origin::start();
    let employee = "ee0000000000000000000001";
    origin.knows_employee("tok-1", "VIEWER", DUCK, employee);
    origin.knows_employee("tok-2", "VIEWER", DUCK, employee);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-1").send().assert_status(200);
    client.get("/auth/logout").bearer("tok-2").send().assert_status(200);
    origin.forgets("tok-1");
    client.get(P).bearer("tok-1").send().assert_error(401, "invalid_token");
}

#[test]
fn address_bound_session_ends_its_employee_from_elsewhere() {
    let origin = Origin::start();
    for token in ["tok-1", "tok-2"] {
        origin.knows_employee(token, "VIEWER", DUCK, "ee0000000000000000000001");
    }
    let valid = Answer::json(format!(
        r#"{{"success":true,"employee":"ee0000000000000000000001","customer":"{DUCK}","accessLevel":"VIEWER"}}"#
    ));
    // Without an address the API names the employee of the session.
    origin.when(Rule::on("/auth/validateToken").made(
        move |seen| match seen.query("ip").as_deref() {
            Some("203.0.113.7") | None => valid.clone(),
            _ => Answer::json(r#"{"success":false}"#),
        },
    ));
    let gateway = Gateway::start(&origin);
    let get = |token: &str, address: &str| {
        gateway.client().get(P).bearer(token).header("X-Forwarded-For", address).send()
    };
    get("tok-2", "203.0.113.7").assert_status(200);
    assert!(get("tok-2", "203.0.113.7").assert_status(200).is_hit());
    get("tok-1", "203.0.113.8").assert_error(401, "invalid_token");
    let logout = gateway
        .client()
        .get("/auth/logout")
        .bearer("tok-1")
        .header("X-Forwarded-For", "203.0.113.8");
    logout.send().assert_status(200);
    origin.when(Rule::on("/auth/validateToken").answer(Answer::json(r#"{"success":false}"#)));
    get("tok-2", "203.0.113.7").assert_error(401, "invalid_token");
}

#[test]
fn employee_change_ends_the_identity() {
    let origin = Origin::start();
    let employee = "ee0000000000000000000001";
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    origin.knows("tok-admin", "ADMIN", OTHER);
    for (number, method) in ["POST", "DELETE"].into_iter().enumerate() {
        let token = format!("tok-{number}");
        origin.knows_employee(&token, "RESELLER", DUCK, employee);
        client.get(P).bearer(&token).revealed().send().assert_status(200);
        client
            .call(method, &format!("/employee/{employee}"))
            .bearer("tok-admin")
            .body("{}")
            .send()
            .assert_status(200);
        origin.knows_employee(&token, "VIEWER", DUCK, employee);
        let demoted = client.get(P).bearer(&token).send();
        assert_eq!(demoted.assert_status(200).text(), redacted_document(DUCK), "{method}");
    }
}

#[test]
fn deleted_token_ends() {
    let origin = Origin::start();
    let employee = "ee0000000000000000000001";
    origin.knows_employee("tok-gone", "VIEWER", DUCK, employee);
    origin.knows_employee("tok-admin", "ADMIN", DUCK, "ee0000000000000000000002");
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-gone").send().assert_status(200);
    client
        .delete(&format!("/employee/{employee}/token/tok-gone"))
        .bearer("tok-admin")
        .send()
        .assert_status(200);
    origin.forgets("tok-gone");
    client.get(P).bearer("tok-gone").send().assert_error(401, "invalid_token");
}

#[test]
fn reseller_switch_ends_the_entries_of_its_token() {
    let origin = Origin::start();
    origin.knows("tok-a", "RESELLER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").revealed().send().assert_status(200);
    client.post("/auth/organizationreseller").bearer("tok-a").body("{}").send().assert_status(200);
    origin.knows("tok-a", "VIEWER", OTHER);
    let after = client.get(P).bearer("tok-a").send();
    assert_eq!(after.assert_status(200).text(), redacted_document(DUCK));
}

#[test]
fn status_401_of_any_request_ends_the_identity() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    origin.when(Rule::on("/elsewhere").answer(Answer::error(401, "expired")));
    client.get("/elsewhere").bearer("tok-a").send().assert_error(401, "expired");
    origin.forgets("tok-a");
    client.get(P).bearer("tok-a").send().assert_error(401, "invalid_token");
}

#[test]
fn status_401_of_a_fetch_ends_the_identity_unstored() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    origin.document(OTHER, Answer::error(401, "expired"));
    let refused = client.get(&name_of(OTHER)).bearer("tok-a").send();
    assert_eq!(refused.status, 401, "{refused:#?}");
    let validations = origin.validations();
    client.get(P).bearer("tok-a").send().assert_status(200);
    assert_eq!(origin.validations(), validations + 1);
    origin.document(OTHER, Answer::json(upstream_document(OTHER)));
    client.get(&name_of(OTHER)).bearer("tok-a").send().assert_status(200);
}

#[test]
fn change_in_another_spelling_invalidates() {
    let origin = Origin::start();
    origin.knows("tok-a", "ADMIN", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").revealed().send().assert_status(200);
    let before = origin.requests();
    for (method, path) in [
        ("POST", "/customer/73469a52f4fd7f77ec7b28cc/"),
        ("POST", "//customer/73469a52f4fd7f77ec7b28cc"),
        ("POST", "/Customer/73469a52f4fd7f77ec7b28cc"),
        ("DELETE", "/x/../customer/73469a52f4fd7f77ec7b28cc"),
        ("POST", "/%63ustomer/73469a52f4fd7f77ec7b28cc"),
        ("POST", "/customer%2f73469a52f4fd7f77ec7b28cc"),
        ("POST", "/customer/%37%33469a52f4fd7f77ec7b28cc"),
        ("PUT", "/customer/%2537%2533469a52f4fd7f77ec7b28cc"),
        ("POST", "/customer;a=b/73469a52f4fd7f77ec7b28cc"),
        ("POST", "/customer/73469a52f4fd7f77ec7b28cc;a=b"),
        ("POST", "\\customer\\73469a52f4fd7f77ec7b28cc"),
        ("POST", "/integration/..;/employee/ee0000000000000000000001"),
        ("DELETE", "/employee//ee0000000000000000000001"),
        ("GET", "/auth/./logout"),
        ("GET", "/auth/log%6fut"),
        ("GET", "/AUTH/logout"),
        ("POST", "/auth/organizationreseller/"),
    ] {
        let refused = client
            .call(method, path)
            .bearer("tok-a")
            .body(if method == "GET" { "" } else { "{}" })
            .send();
        refused.assert_error(400, "bad_request");
        assert_eq!(origin.requests(), before, "{method} {path} reached the API");
    }
    assert!(client.get(P).bearer("tok-a").revealed().send().is_hit(), "nothing was changed");
}

#[test]
fn purge_applies_at_once_and_to_fetches_under_way() {
    let origin = Origin::start();
    let employee = employee_of("tok-a");
    for token in ["tok-a", "tok-b"] {
        origin.knows(token, "VIEWER", DUCK);
    }
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let get = |token: &str, id: &str| client.get(&name_of(id)).bearer(token).send();
    let all = [("tok-a", DUCK), ("tok-a", OTHER), ("tok-b", DUCK), ("tok-b", OTHER)];
    for (path, purged) in [
        ("/cache".to_owned(), &[0, 1, 2, 3][..]),
        (format!("/cache/customers/{DUCK}"), &[0, 2]),
        (format!("/cache/customers/{}", DUCK.to_uppercase()), &[0, 2]),
        (format!("/cache/employees/{employee}"), &[0, 1]),
    ] {
        for (token, id) in all {
            get(token, id).assert_status(200);
        }
        gateway.admin().delete(&path).send().assert_status(200);
        let validations = origin.validations_of("tok-a");
        for (number, (token, id)) in all.into_iter().enumerate() {
            assert_eq!(
                get(token, id).assert_status(200).is_hit(),
                !purged.contains(&number),
                "{path}: {token} {id}"
            );
        }
        let asked_again = origin.validations_of("tok-a") > validations;
        assert_eq!(asked_again, !path.contains("customers"), "{path}: identities go, too");
    }
    for path in [
        "/cache".to_owned(),
        format!("/cache/customers/{THIRD}"),
        format!("/cache/employees/{employee}"),
    ] {
        let gate = Gate::closed();
        let before = origin.fetches(THIRD);
        origin.when(Rule::on(&name_of(THIRD)).hold(&gate).times(1));
        gateway.admin().delete("/cache").send().assert_status(200);
        let pending = client.get(&name_of(THIRD)).bearer("tok-a").start();
        origin.wait_for_fetches(THIRD, before + 1);
        gateway.admin().delete(&path).send().assert_status(200);
        gate.open();
        assert_eq!(
            pending.finish().assert_status(200).cache_status(),
            "telecomx-gateway; fwd=uri-miss",
            "{path}"
        );
        assert!(!get("tok-a", THIRD).is_hit(), "{path}");
    }
}

#[test]
fn status_401_ends_the_entries_of_its_token_only() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.knows("tok-b", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let get = |token: &str, id: &str| {
        client.get(&name_of(id)).header("Cookie", &format!("token={token}")).send()
    };
    for way in [name_of(THIRD), format!("{}?x=1", name_of(THIRD)), "/elsewhere".to_owned()] {
        for (token, id) in [("tok-a", DUCK), ("tok-a", OTHER), ("tok-b", DUCK)] {
            get(token, id).assert_status(200);
        }
        let path = way.split('?').next().unwrap_or_default();
        origin.when(Rule::on(path).answer(Answer::error(401, "expired")).times(1));
        let refused = client.get(&way).header("Cookie", "token=tok-a").send();
        assert_eq!(refused.status, 401, "{way}: {refused:#?}");
        let validations = origin.validations_of("tok-a");
        for id in [DUCK, OTHER] {
            assert_eq!(get("tok-a", id).assert_status(200).cache_status(), STORED, "{way}");
        }
        assert_eq!(origin.validations_of("tok-a"), validations + 1, "{way}");
        assert!(get("tok-b", DUCK).is_hit(), "{way}");
    }
}

#[test]
fn logout_of_a_guessed_token_ends_no_other() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    client.get("/auth/logout").bearer("tok-unknown").send().assert_status(200);
    assert!(client.get(P).bearer("tok-a").send().is_hit());
}
