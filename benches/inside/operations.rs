//! The four parts of a hit or a miss, each alone: key, lookup, redact, reply.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use telecomx_gateway::api::{AccessLevel, CustomerId, EmployeeId};
use telecomx_gateway::cache::{
    Cache, CallerIds, EmployeeSlot, Entry, EntryGenerations, FetchTime, Generations, Key, Lifetime,
};
use telecomx_gateway::config;
use telecomx_gateway::redact::{Policy, redact};
use telecomx_gateway::reply::{ApiFields, CacheStatus, Content, Cors, Reply, Representation};

pub const DOCUMENT: &str = include_str!("../../tests/golden/upstream.json");
const ITS_ID: &str = "73469a52f4fd7f77ec7b28cc";
const LEVEL: AccessLevel = AccessLevel::Viewer;

/// The operations by name, in the order of a request.
pub const OPERATIONS: [&str; 4] = ["key", "lookup", "redact", "reply"];

/// The data of the operations.
pub struct Bench {
    pub cache: Arc<Cache>,
    pub generations: Generations,
    callers: CallerIds,
    policy: Policy,
    employee: EmployeeSlot,
    cors: Cors,
}

impl Bench {
    pub fn new(max_bytes: u64) -> Self {
        let config = config::parse("bench", "upstream.url = \"https://api.example\"", [])
            .expect("a valid configuration");
        let generations = Generations::new(telecomx_gateway::clock::now);
        let employee = generations
            .employee_slot(&EmployeeId::parse("5f00000000000000000000aa").expect("an id"));
        Bench {
            cache: Arc::new(Cache::new(max_bytes, Duration::from_secs(86_400), |_, _| {})),
            policy: Policy::compile(&config.redaction.rules()).expect("sound rules"),
            cors: Cors::new(&config.cors, &[], Arc::default()),
            callers: CallerIds::with_key([7; 32]),
            generations,
            employee,
        }
    }

    /// Returns the key of a caller's customer.
    pub fn key(&self, token: &str, customer: &str) -> Key {
        let customer = CustomerId::parse(customer.as_bytes()).expect("an id");
        Key { caller: self.callers.id_of(token), level: LEVEL, customer, policy: 1 }
    }

    pub fn marks(&self, key: &Key) -> EntryGenerations {
        self.generations.entry_generations(&key.customer, &key.caller, self.employee)
    }

    /// Returns the stored response for a customer.
    pub fn representation(&self, document: Bytes) -> Representation {
        let redacted = redact(&self.policy, LEVEL, document).expect("a sound document");
        Representation::new(StatusCode::OK, None, redacted)
    }

    /// Stores a response, as a fetch does.
    pub fn store(&self, key: Key, document: Bytes) {
        let lifetime = Lifetime {
            fresh: Duration::from_secs(86_400),
            stale_while_revalidate: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(300),
        };
        let representation = self.cache.intern(self.representation(document));
        let fetched = FetchTime { at: Instant::now(), initial_age: Duration::ZERO };
        let entry =
            Entry::new(representation, None, ApiFields::NONE, fetched, lifetime, self.marks(&key));
        self.cache.insert(key, Arc::new(entry));
    }

    /// Looks up generations and entry, as a hit does after the identity.
    pub fn look_up(&self, key: &Key) -> Option<Arc<Entry>> {
        self.cache.get(key, self.marks(key))
    }
}

/// Returns the document of the customer with that number.
pub fn document(number: usize) -> Bytes {
    DOCUMENT.trim_end().replace(ITS_ID, &customer(number)).into()
}

pub fn customer(number: usize) -> String {
    format!("{number:024x}")
}

pub fn token(number: usize) -> String {
    format!("b{number:031}")
}

/// Returns one operation, ready to be repeated.
pub fn operation(name: &str) -> Option<Box<dyn FnMut()>> {
    let bench = Bench::new(1 << 30);
    let (its_token, its_customer, its_document) = (token(1), customer(1), document(1));
    let key = bench.key(&its_token, &its_customer);
    Some(match name {
        "key" => Box::new(move || {
            black_box(bench.key(black_box(&its_token), black_box(&its_customer)));
        }),
        "lookup" => {
            for number in 0..1000 {
                bench.store(bench.key(&token(number), &customer(number)), document(number));
            }
            Box::new(move || drop(black_box(bench.look_up(black_box(&key)))))
        }
        "redact" => Box::new(move || {
            drop(black_box(
                redact(&bench.policy, LEVEL, black_box(its_document.clone())).expect("sound"),
            ));
        }),
        "reply" => {
            let representation = bench.representation(its_document);
            let mut head = Vec::with_capacity(512);
            Box::new(move || {
                head.clear();
                let content = Content::Whole(black_box(&representation).clone());
                let (api_fields, exchange_fields) = (ApiFields::NONE, ApiFields::NONE);
                let cache_status = Some(CacheStatus::Hit { ttl: 59 });
                let reply =
                    Reply { content, cache_status, age: Some(1), api_fields, exchange_fields };
                reply.fields(&bench.cors, None, "", |name, value| {
                    head.extend_from_slice(name.as_str().as_bytes());
                    value.append_to(&mut head);
                });
                black_box((&head, reply.stored_body()));
            })
        }
        _ => return None,
    })
}

/// Repeats an operation; nothing else depends on the number.
pub fn count(name: &str, times: usize) -> Option<String> {
    let mut operation = operation(name)?;
    for _ in 0..times {
        operation();
    }
    Some("{}".into())
}
