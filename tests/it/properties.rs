//! Random sequences of requests: no caller ever receives the API's response to another.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::*;

/// Callers with similar tokens, each with its access level.
const CALLERS: [(&str, &str); 6] = [
    ("tok-a", "VIEWER"),
    ("tok-a.", "RESELLER"),
    ("tok-a73469a52f4fd7f77ec7b28cc", "OWNER"),
    ("tok-a/b+c=", "ADMIN"),
    ("tok-A", "NO_LOGIN"),
    ("tok-aa", "RESELLER_ADMIN"),
];

const CUSTOMERS: [&str; 3] = [DUCK, OTHER, THIRD];

#[derive(Clone, Debug)]
enum Step {
    Get { caller: usize, customer: usize, way: Way },
    Write { caller: usize, customer: usize },
    Drop { customer: Option<usize> },
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Bearer,
    Key,
    Cookie,
    UpperCase,
    OtherParameter,
    Head,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let way = prop_oneof![
        4 => Just(Way::Bearer),
        1 => Just(Way::Key),
        1 => Just(Way::Cookie),
        1 => Just(Way::UpperCase),
        1 => Just(Way::OtherParameter),
        1 => Just(Way::Head),
    ];
    let get = (0..CALLERS.len(), 0..CUSTOMERS.len(), way)
        .prop_map(|(caller, customer, way)| Step::Get { caller, customer, way });
    let write = (0..CALLERS.len(), 0..CUSTOMERS.len())
        .prop_map(|(caller, customer)| Step::Write { caller, customer });
    let drop = prop::option::of(0..CUSTOMERS.len()).prop_map(|customer| Step::Drop { customer });
    prop::collection::vec(prop_oneof![12 => get, 1 => write, 1 => drop], 1..40)
}

/// The API's response to a caller for a customer, and what the gateway makes of it.
fn said(caller: usize, id: &str) -> (String, String) {
    let open = format!(r#"{{"_id":"{id}","said":"to caller {caller} of {id}""#);
    let whole = format!(
        r#"{open},"integrations":{{"x":{{"enabled":true,"key":"PLANTED for {caller}"}}}}}}"#
    );
    let redacted = format!(r#"{open},"integrations":{{"x":{{"enabled":true}}}}}}"#);
    let reveals = HIGHER_ROLES.contains(&CALLERS[caller].1);
    (whole.clone(), if reveals { whole } else { redacted })
}

fn take(step: &Step, gateway: &Gateway) {
    let client = gateway.client();
    match *step {
        Step::Get { caller, customer, way } => {
            let (token, role) = CALLERS[caller];
            let path = name_of(CUSTOMERS[customer]);
            let call = match way {
                Way::Bearer => client.get(&path).bearer(token),
                Way::Key => client.get(&path).header("X-API-Key", token),
                Way::Cookie => client.get(&path).header("Cookie", &format!("token={token}")),
                Way::UpperCase => {
                    client.get(&name_of(&CUSTOMERS[customer].to_uppercase())).bearer(token)
                }
                Way::OtherParameter => client.get(&format!("{path}?x=1")).bearer(token),
                Way::Head => client.head(&path).bearer(token),
            };
            let call = if HIGHER_ROLES.contains(&role) { call.revealed() } else { call };
            let response = call.send();
            let expected = said(caller, CUSTOMERS[customer]).1;
            response.assert_status(200);
            assert_eq!(
                response.header("content-length"),
                Some(expected.len().to_string().as_str()),
                "{step:?}"
            );
            if !matches!(way, Way::Head) {
                assert_eq!(response.text(), expected, "{step:?}");
            }
        }
        Step::Write { caller, customer } => {
            let path = format!("/customer/{}", CUSTOMERS[customer]);
            client.post(&path).bearer(CALLERS[caller].0).body("{}").send().assert_status(200);
        }
        Step::Drop { customer } => {
            let path = customer
                .map_or("/cache".to_owned(), |at| format!("/cache/customers/{}", CUSTOMERS[at]));
            gateway.admin().delete(&path).send().assert_status(200);
        }
    }
}

/// An origin with a different response for each caller.
fn distinguishing_origin() -> Origin {
    let origin = Origin::start();
    for (token, role) in CALLERS {
        origin.knows(token, role, DUCK);
    }
    for id in CUSTOMERS {
        origin.when(Rule::on(&name_of(id)).made(move |seen| {
            let token = seen.token().unwrap_or_default();
            match CALLERS.iter().position(|(known, _)| *known == token) {
                Some(caller) => Answer::json(said(caller, id).0),
                None => Answer::error(401, "invalid_token"),
            }
        }));
    }
    origin
}

#[test]
fn no_caller_receives_a_response_of_another() {
    let origin = distinguishing_origin();
    let gateway = Gateway::start(&origin);
    let config =
        Config { cases: 16, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        steps.iter().for_each(|step| take(step, &gateway));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn no_concurrent_caller_receives_a_response_of_another() {
    let origin = distinguishing_origin();
    let gateway = Gateway::start(&origin);
    std::thread::scope(|scope| {
        for seed in 0..8_usize {
            let gateway = &gateway;
            scope.spawn(move || {
                for round in 0..40_usize {
                    let mixed = (seed * 7919 + round) * 31;
                    let step = Step::Get {
                        caller: mixed % CALLERS.len(),
                        customer: (mixed / 7) % 3,
                        way: Way::Bearer,
                    };
                    take(&step, gateway);
                    if round % 13 == seed {
                        take(&Step::Drop { customer: None }, gateway);
                    }
                }
            });
        }
    });
}

#[test]
fn tokens_with_delimiters_are_distinct_callers_or_none() {
    let origin = Origin::start();
    origin.when(Rule::on("/customer/").made(|seen| {
        Answer::json(
            serde_json::json!({"_id": DUCK, "said": seen.token().map(|t| t.replace("tok-", "to "))}).to_string(),
        )
    }));
    let gateway = Gateway::start(&origin);
    let tokens = [
        "tok-a|b",
        "tok-a",
        "tok-a:b",
        "tok-a/b",
        "tok-a\\b",
        "tok-a%7Cb",
        "tok-a,b",
        "tok-a\"b",
        "tok-a&ip=1",
        "tok-a#b",
    ];
    for token in tokens {
        origin.knows(token, "VIEWER", DUCK);
    }
    for token in tokens.into_iter().chain(tokens) {
        let response = gateway.client().get(&name_of(DUCK)).bearer(token).send();
        match response.status {
            200 => assert_eq!(response.json()["said"], token.replace("tok-", "to "), "{token}"),
            400 | 401 => {}
            _ => panic!("{token}: {response:#?}"),
        }
    }
}
