//! Many at once: one fetch for all who wait, an answer or a timely error for each, and memory that
//! has a bound.

use std::time::{Duration, Instant};

use crate::support::*;

const P: &str = "/customer/73469a52f4fd7f77ec7b28cc/name";

#[test]
fn thousand_requests_for_a_cold_key_are_one_fetch() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate));
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "50s""#);
    let leader = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    let mut followers: Vec<_> =
        (0..1000).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    drop(leader);
    // Some of those who wait leave as well.
    followers.truncate(900);
    gate.open();
    for follower in followers {
        assert_eq!(follower.finish().assert_status(200).text(), redacted_document(DUCK));
    }
    assert_eq!((origin.fetches(DUCK), origin.validations()), (1, 1));
}

#[test]
fn hanging_fetch_is_a_timely_error_for_all_waiters() {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gate = Gate::closed();
    origin.when(Rule::on("/customer/").hold(&gate).times(1));
    let gateway = Gateway::with(&origin, r#"upstream.timeout = "2s""#);
    let began = Instant::now();
    let leader = gateway.client().get(P).bearer("tok-a").start();
    origin.wait_for_fetches(DUCK, 1);
    let followers: Vec<_> =
        (0..200).map(|_| gateway.client().get(P).bearer("tok-a").start()).collect();
    leader.finish().assert_error(504, "gateway_timeout");
    for follower in followers {
        // Who came after the end of it began a new one.
        let answer = follower.finish();
        assert!(matches!(answer.status, 200 | 504), "{answer:#?}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let next = gateway.client().get(P).bearer("tok-a").send();
    assert_eq!(next.assert_status(200).text(), redacted_document(DUCK));
    gate.open();
}

#[test]
fn guessed_tokens_cost_few_validations_and_no_memory() {
    const EACH: usize = 12_500;
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    let gateway = Gateway::with(&origin, r#"log.access = "off""#);
    let client = gateway.client();
    client.get(P).bearer("tok-a").send().assert_status(200);
    // What a first crowd makes it set up is not counted.
    let mut connection = client.connect();
    for number in 0..200 {
        client.get(P).bearer(&format!("tok-warm-{number}")).send_on(&mut connection);
    }
    let before = gateway.memory();
    let began = Instant::now();
    let guessers: Vec<_> = (0..4)
        .map(|guesser| {
            let client = client.clone();
            std::thread::spawn(move || {
                let mut connection = client.connect();
                for number in 0..EACH {
                    let token = format!("tok-guess-{guesser}-{number}");
                    let target = name_of(&customer(number));
                    let answer = client.get(&target).bearer(&token).send_on(&mut connection);
                    assert!(matches!(answer.status, 401 | 429), "{answer:#?}");
                    if began.elapsed() > Duration::from_secs(6) {
                        return number;
                    }
                }
                EACH
            })
        })
        .collect();
    let guesses: usize =
        guessers.into_iter().map(|guesser| guesser.join().expect("no panic")).sum();
    let grown = gateway.memory().saturating_sub(before);
    println!(
        "{guesses} tokens in {:?}: {} validations, {grown} KiB more",
        began.elapsed(),
        origin.validations()
    );
    assert!(origin.validations() < 500, "{} validations", origin.validations());
    assert!(grown < 16 << 10, "{grown} KiB for {guesses} tokens");
    assert!(
        client.get(P).bearer("tok-a").send().assert_status(200).is_hit(),
        "a known caller is still served"
    );
}

#[test]
fn entries_beyond_the_cache_size_evict_others() {
    let origin = Origin::start();
    let gateway = Gateway::with(&origin, "cache.max_bytes = \"1MiB\"\nlog.access = \"off\"");
    let client = gateway.client();
    for token in 0..10 {
        origin.knows(&format!("tok-{token}"), "VIEWER", DUCK);
    }
    let before = gateway.memory();
    let mut connection = client.connect();
    for number in 0..3000 {
        let call = client.get(&name_of(&customer(number))).bearer(&format!("tok-{}", number % 10));
        call.send_on(&mut connection).assert_status(200);
    }
    let stats = gateway.stats();
    let (bytes, capacity) =
        (stats["cache"]["bytes"].as_u64(), stats["cache"]["capacity_bytes"].as_u64());
    assert!(bytes <= capacity && capacity == Some(1 << 20), "{stats}");
    let grown = gateway.memory().saturating_sub(before);
    println!("3000 entries through a cache of 1 MiB: {grown} KiB more");
    assert!(grown < 48 << 10, "{grown} KiB");
}
