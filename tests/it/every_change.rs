//! Every kind of change invalidates when its request arrives, when its response arrives with any
//! status, and for fetches under way. `race` does the same in random order.

use crate::support::*;

const STORED: &str = "telecomx-gateway; fwd=uri-miss; stored";

/// A change: its request, and two more pairs of token and customer that it invalidates, in addition
/// to `tok-<n>` with customer `n`.
struct Row {
    method: &'static str,
    path: String,
    by: String,
    others: [(String, String); 2],
}

/// Every kind of change, each with its own customer and employee.
fn rows() -> Vec<Row> {
    let paths = [
        ("POST", "/customer/C"),
        ("DELETE", "/customer/C"),
        ("PATCH", "/customer/C/mobile/7"),
        ("POST", "/integration/also/customer/C/sync"),
        ("POST", "/employee/E"),
        ("PUT", "/employee/E"),
        ("DELETE", "/employee/E"),
        ("DELETE", "/employee/E/token/T"),
        ("GET", "/auth/logout"),
        ("POST", "/auth/organizationreseller"),
    ];
    let row = |(n, (method, path)): (usize, (&'static str, &str))| {
        let token = format!("tok-{n}");
        let of_token = path.contains("reseller");
        // All customers of one token, or that customer or employee for another token.
        let other = |name: char, number: usize| match of_token {
            true => (token.clone(), customer(number + n)),
            false => (format!("{token}-{name}"), customer(n)),
        };
        let own = path.starts_with("/auth");
        let path =
            path.replace('C', &customer(n)).replace('E', &employee_of(&token)).replace('T', &token);
        let by = if own { token.clone() } else { "tok-admin".to_owned() };
        Row { method, path, by, others: [other('b', 100), other('c', 200)] }
    };
    paths.into_iter().enumerate().map(row).collect()
}

/// A stand-in API that accepts all tokens of the rows.
fn origin_of(rows: &[Row]) -> Origin {
    let origin = Origin::start();
    origin.knows("tok-admin", "ADMIN", DUCK);
    for n in 0..rows.len() {
        let token = format!("tok-{n}");
        for other in ["", "-b", "-c"] {
            origin.knows_employee(&format!("{token}{other}"), "VIEWER", DUCK, &employee_of(&token));
        }
    }
    origin
}

#[test]
fn every_change_invalidates_on_request_and_on_response() {
    let rows = rows();
    let origin = origin_of(&rows);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    let get = |token: &str, id: &str| client.get(&name_of(id)).bearer(token).send();
    for (n, Row { method, path, by, others: [early, middle] }) in rows.iter().enumerate() {
        let what = format!("{method} {path}");
        let (token, id) = (format!("tok-{n}"), customer(n));
        get(&token, &id).assert_status(200);
        assert!(get(&token, &id).is_hit());
        let gate = Gate::closed();
        let held = |(token, id): &(String, String)| {
            let before = origin.fetches(id);
            origin.when(Rule::on(&name_of(id)).hold(&gate).times(1));
            let pending = client.get(&name_of(id)).bearer(token).start();
            origin.wait_for_fetches(id, before + 1);
            pending
        };
        // A fetch that begins before the request of the change and ends after its response.
        let began_before = held(early);
        let answer = Gate::closed();
        origin.when(Rule::on(path).method(method).hold(&answer).times(1));
        let change = client
            .call(method, path)
            .bearer(by)
            .body(if *method == "GET" { "" } else { "{}" })
            .start();
        origin.wait_until(&what, |seen| {
            seen.iter().any(|seen| seen.path() == path && seen.method == *method)
        });
        // The request arrived: stored entries are not served. A fetch now may return the old or
        // the new state.
        assert_eq!(get(&token, &id).assert_status(200).cache_status(), STORED, "{what} was seen");
        assert!(get(&token, &id).is_hit());
        let began_between = held(middle);
        answer.open();
        change.finish().assert_status(200);
        // The response arrived: entries stored meanwhile are not served either.
        assert_eq!(
            get(&token, &id).assert_status(200).cache_status(),
            STORED,
            "{what} was answered"
        );
        gate.open();
        for (pending, (token, id)) in [(began_before, early), (began_between, middle)] {
            let response = pending.finish();
            assert_eq!(
                response.assert_status(200).cache_status(),
                "telecomx-gateway; fwd=uri-miss",
                "{what}"
            );
            assert_eq!(get(token, id).assert_status(200).cache_status(), STORED, "{what}");
        }
    }
}

#[test]
fn failed_change_invalidates() {
    let rows = rows();
    let origin = origin_of(&rows);
    let gateway = Gateway::start(&origin);
    let client = gateway.client();
    for (n, Row { method, path, by, .. }) in rows.iter().enumerate() {
        let get = || client.get(&name_of(&customer(n))).bearer(&format!("tok-{n}")).send();
        for status in [400, 403, 404, 409, 422, 500, 503, 0] {
            get().assert_status(200);
            assert!(get().is_hit());
            let rule = Rule::on(path).method(method);
            match status {
                0 => origin.when(rule.close()),
                status => origin.when(rule.answer(Answer::error(status, "failed"))),
            }
            let failed = client.call(method, path).bearer(by).body("{}").send();
            assert_eq!(failed.status, if status == 0 { 502 } else { status });
            origin.behave();
            assert_eq!(
                get().assert_status(200).cache_status(),
                STORED,
                "{method} {path} answered with {status}"
            );
        }
    }
}
