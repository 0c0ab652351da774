//! Ends and reloads while callers ask without a pause: what was answered is right and whole, what
//! was sent to the API was sent once, and nothing but the cache is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::*;

const CALLERS: usize = 8;
const CUSTOMERS: usize = 50;

/// What became of the requests of one caller.
#[derive(Default)]
struct Outcomes {
    /// Answered whole, and rightly.
    right: usize,
    /// The bodies of those among them that were sent on.
    posted: Vec<String>,
    /// The connection ended before the answer began.
    unanswered: usize,
    /// The answer ended before its end.
    broken_off: usize,
}

/// Clients that send one request after another on a kept connection, until they are stopped or the
/// gateway is gone.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Outcomes>>,
}

fn token(caller: usize) -> String {
    format!("tok-load-{caller}")
}

/// An API that returns the token of the request and a secret.
fn telling() -> Origin {
    let origin = Origin::start();
    for caller in 0..CALLERS {
        origin.knows(&token(caller), "VIEWER", DUCK);
    }
    origin.when(Rule::on("/customer/").made(|seen| {
        let name = employee_of(&seen.token().unwrap_or_default());
        Answer::json(serde_json::json!({"name": name, "integrations": {"key": MARKER}}).to_string())
    }));
    origin
}

impl Load {
    fn on(gateway: &Gateway) -> Load {
        let (stop, asked): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let callers = (0..CALLERS)
            .map(|caller| {
                let (client, stop, asked) = (gateway.client(), stop.clone(), asked.clone());
                std::thread::spawn(move || {
                    let mut outcomes = Outcomes::default();
                    while !stop.load(Ordering::Relaxed)
                        && let Ok(mut connection) = client.try_connect()
                    {
                        while !stop.load(Ordering::Relaxed)
                            && ask(&client, &mut connection, caller, &mut outcomes)
                        {
                            asked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    outcomes
                })
            })
            .collect();
        Load { stop, asked, callers }
    }

    fn wait_for(&self, more: usize) {
        let enough = self.asked.load(Ordering::Relaxed) + more;
        wait_until("the load is on", || self.asked.load(Ordering::Relaxed) >= enough);
    }

    fn end(self) -> Outcomes {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.into_iter().map(|caller| caller.join().expect("no panic")).fold(
            Outcomes::default(),
            |mut all, one| {
                all.right += one.right;
                all.posted.extend(one.posted);
                all.unanswered += one.unanswered;
                all.broken_off += one.broken_off;
                all
            },
        )
    }
}

/// One request, sent on or intercepted; whether there may be another on that connection.
fn ask(
    client: &Client,
    connection: &mut Connection,
    caller: usize,
    outcomes: &mut Outcomes,
) -> bool {
    let number = outcomes.right + outcomes.unanswered + outcomes.broken_off;
    let post = number.is_multiple_of(4).then(|| format!("{caller}-{number}"));
    let (method, kind, call) = match &post {
        Some(body) => ("POST", Kind::Forwarded, client.post("/plain").body(body)),
        None => ("GET", Kind::Intercepted, client.get(&name_of(&customer(number % CUSTOMERS)))),
    };
    connection.send_raw(call.bearer(&token(caller)).bytes());
    // That it holds no secret is checked by the client.
    let Some(answer) = connection.read(method, kind) else {
        outcomes.unanswered += 1;
        return false;
    };
    if answer.broken_off.is_some() {
        outcomes.broken_off += 1;
        return false;
    }
    let answered = answer.assert_status(200).json();
    match post {
        Some(body) => {
            assert_eq!(answered["body"], body.as_str());
            outcomes.posted.push(body);
        }
        None => {
            assert_eq!(answered["name"], employee_of(&token(caller)), "another caller's answer")
        }
    }
    outcomes.right += 1;
    answer.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"))
}

/// How often each body came to the API whole.
fn sent(origin: &Origin) -> BTreeMap<String, usize> {
    let mut sent = BTreeMap::new();
    for seen in origin.seen().into_iter().filter(|seen| seen.path() == "/plain" && seen.complete) {
        *sent.entry(String::from_utf8_lossy(&seen.body).into_owned()).or_default() += 1;
    }
    sent
}

#[test]
fn kill_under_load_loses_the_cache_alone() {
    let origin = telling();
    let mut gateway = Gateway::start(&origin);
    let load = Load::on(&gateway);
    load.wait_for(1000);
    gateway.signal(Signal::SIGKILL);
    assert_eq!(gateway.wait().code, None, "ended by the signal");
    let outcomes = load.end();
    println!(
        "{} right, {} unanswered, {} broken off",
        outcomes.right, outcomes.unanswered, outcomes.broken_off
    );
    let sent = sent(&origin);
    assert!(sent.values().all(|times| *times == 1), "sent on more than once: {sent:?}");
    assert!(
        outcomes.posted.iter().all(|body| sent.contains_key(body)),
        "answered, and never sent on"
    );
    let fetches = origin.fetches(&customer(1));
    // The next one needs nothing of what the first one had, and all that it has to fetch is what
    // was stored.
    let next = Gateway::start(&origin);
    for caller in 0..CALLERS {
        let answer = next.client().get(&name_of(&customer(1))).bearer(&token(caller)).send();
        assert_eq!(answer.assert_status(200).json()["name"], employee_of(&token(caller)));
        assert!(!answer.is_hit());
    }
    assert_eq!(origin.fetches(&customer(1)), fetches + CALLERS);
}

#[test]
fn term_under_load_finishes_every_started_request() {
    let origin = telling();
    let mut gateway = Gateway::with(&origin, r#"server.drain = "50s""#);
    let load = Load::on(&gateway);
    load.wait_for(1000);
    let run = gateway.terminate();
    assert_eq!(run.code, Some(0), "{run:#?}");
    let outcomes = load.end();
    println!(
        "{} right, {} unanswered, ended in {:?}",
        outcomes.right, outcomes.unanswered, run.took
    );
    assert_eq!(outcomes.broken_off, 0);
    // Every request that reached the API got its response.
    let mut answered: Vec<_> = outcomes.posted;
    answered.sort();
    assert_eq!(answered, sent(&origin).into_keys().collect::<Vec<_>>());
}

#[test]
fn reload_under_load_loses_no_response() {
    let origin = telling();
    let gateway = Gateway::start(&origin);
    let removing = std::fs::read_to_string(gateway.config_file()).expect("its configuration");
    let masking = format!("{removing}\n[redaction]\naction = \"mask\"\n");
    let load = Load::on(&gateway);
    for round in 0..10 {
        let rules = if round % 2 == 0 { &masking } else { &removing };
        gateway.rewrite("gateway.toml", rules);
        gateway.admin().post("/reload").send().assert_status(200);
        gateway.signal(Signal::SIGHUP);
        gateway.rewrite("gateway.toml", "not = [a configuration");
        gateway.admin().post("/reload").send().assert_status(422);
        load.wait_for(100);
        let answer = gateway.client().get(&name_of(DUCK)).bearer(&token(0)).send();
        let shown = answer.assert_status(200).json()["integrations"]["key"].clone();
        assert_eq!(shown, if round % 2 == 0 { "***".into() } else { serde_json::Value::Null });
    }
    let outcomes = load.end();
    println!("{} right", outcomes.right);
    assert_eq!((outcomes.unanswered, outcomes.broken_off), (0, 0));
}
