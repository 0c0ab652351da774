//! The initial data: resellers, customers, employees and the demo callers.
//!
//! All of it is fictional and generated from a fixed seed, so that it is the same at each start and
//! for each developer. Every secret except those of the documented example contains
//! `sandbox-secret`, so that a leaked one is recognised.

mod callers;
mod integrations;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::api::{AccessLevel, CustomerId};

pub use callers::{DemoCaller, demo_callers};

/// The id of a customer, reseller or employee. The three have the same shape and are kept in
/// different maps.
pub type Id = CustomerId;

/// "Anders And & Co", the example of the API's documentation. The demo callers up to OWNER belong
/// to it.
pub const DEMO_CUSTOMER: &str = "73469a52f4fd7f77ec7b28cc";
/// Another customer of the same reseller. The RESELLER of the demo sees it; VIEWER, MANAGER and
/// OWNER do not.
pub const OTHER_CUSTOMER: &str = "73469a52f4fd7f77ec7b28cd";
/// A customer of another reseller. Of the demo callers only ADMIN sees it.
pub const FOREIGN_CUSTOMER: &str = "73469a52f4fd7f77ec7b28ce";

/// The reseller of `DEMO_CUSTOMER`.
pub(super) const DEMO_RESELLER: &str = "1234567890123457890abcde";
pub(super) const FOREIGN_RESELLER: &str = "1234567890123457890abcdf";
const DEMO_RESELLER_CUSTOMER: &str = "73469a52f4fd7f77ec7b28c0";
const PLATFORM_RESELLER: &str = "1234567890123457890abc00";
const PLATFORM_CUSTOMER: &str = "73469a52f4fd7f77ec7b2800";

/// The password of every employee except the demo callers.
pub(super) const EMPLOYEE_PASSWORD: &str = "sandbox-password";

const CUSTOMERS_PER_RESELLER: usize = 40;

/// The response to `GET /customer/{id}/name` for `DEMO_CUSTOMER`, byte for byte.
const ANDERS_AND: &str = include_str!("anders_and.json");

/// A customer.
pub struct Customer {
    /// The reseller of the customer; equals `parentReseller` of the document.
    pub reseller: Id,
    /// The response to `GET /customer/{id}`.
    pub document: Map<String, Value>,
}

/// An employee. Its reseller is that of its customer.
pub struct Employee {
    pub customer: Id,
    pub login: String,
    pub password: String,
    pub name: String,
    pub language: String,
    pub level: AccessLevel,
}

/// Everything in the sandbox except sessions and change log.
pub struct Dataset {
    pub resellers: BTreeMap<Id, String>,
    pub customers: BTreeMap<Id, Customer>,
    pub employees: BTreeMap<Id, Employee>,
}

impl Dataset {
    /// Generates the data of the start.
    pub fn initial() -> Dataset {
        let mut dataset = Dataset {
            resellers: BTreeMap::new(),
            customers: BTreeMap::new(),
            employees: BTreeMap::new(),
        };
        let mut random = Random(0x5ead_b0c5_7e1e_c0a1);
        let mut number = 0;
        for Reseller { id: reseller, name, own_customer } in resellers(&mut random) {
            dataset.resellers.insert(reseller, name.to_owned());
            dataset.add_customer(
                own_customer,
                reseller,
                &format!("{name} A/S"),
                &mut number,
                &mut random,
            );
            for _ in 0..CUSTOMERS_PER_RESELLER {
                let id = random.id();
                let name = company(&mut random);
                dataset.add_customer(id, reseller, &name, &mut number, &mut random);
            }
        }
        let demo_reseller = constant_id(DEMO_RESELLER);
        dataset.add_customer(
            constant_id(OTHER_CUSTOMER),
            demo_reseller,
            "Joakim von And Holding A/S",
            &mut number,
            &mut random,
        );
        let foreign = constant_id(FOREIGN_RESELLER);
        dataset.add_customer(
            constant_id(FOREIGN_CUSTOMER),
            foreign,
            "Georg Gearløs Opfindelser ApS",
            &mut number,
            &mut random,
        );
        let name = json_object(ANDERS_AND);
        dataset.customers.insert(
            constant_id(DEMO_CUSTOMER),
            Customer { reseller: demo_reseller, document: with_details(name, 0) },
        );
        for caller in demo_callers() {
            let employee = Employee {
                customer: constant_id(caller.customer),
                login: caller.login.to_owned(),
                password: caller.password.to_owned(),
                name: format!("Demo {}", caller.access_level),
                language: "da".to_owned(),
                level: caller.access_level,
            };
            dataset.employees.insert(constant_id(caller.employee), employee);
        }
        dataset
    }

    /// Adds a customer with two employees, `owner@` and `viewer@`.
    fn add_customer(
        &mut self,
        id: Id,
        reseller: Id,
        name: &str,
        number: &mut usize,
        random: &mut Random,
    ) {
        *number += 1;
        let number = *number;
        let mut document = Map::new();
        document.insert("_id".to_owned(), json!(id.to_string()));
        document.insert("name".to_owned(), json!(name));
        document.insert("parentReseller".to_owned(), json!(reseller.to_string()));
        document.insert("features".to_owned(), integrations::features(random));
        if let Some(integrations) = integrations::integrations(number, random) {
            document.insert("integrations".to_owned(), integrations);
        }
        self.customers.insert(id, Customer { reseller, document: with_details(document, number) });
        for (word, level) in [("owner", AccessLevel::Owner), ("viewer", AccessLevel::Viewer)] {
            let employee = Employee {
                customer: id,
                login: format!("{word}@kunde-{number:03}.sandbox.example"),
                password: EMPLOYEE_PASSWORD.to_owned(),
                name: person(random),
                language: random.one_of(&["da", "en"]).to_owned(),
                level,
            };
            self.employees.insert(random.id(), employee);
        }
    }
}

struct Reseller {
    id: Id,
    name: &'static str,
    /// The customer to which the reseller's own employees belong.
    own_customer: Id,
}

fn resellers(random: &mut Random) -> Vec<Reseller> {
    let mut all = vec![
        Reseller {
            id: constant_id(PLATFORM_RESELLER),
            name: "Sandkasse Telecom",
            own_customer: constant_id(PLATFORM_CUSTOMER),
        },
        Reseller {
            id: constant_id(DEMO_RESELLER),
            name: "Andeby Tele",
            own_customer: constant_id(DEMO_RESELLER_CUSTOMER),
        },
        Reseller {
            id: constant_id(FOREIGN_RESELLER),
            name: "Gåserød Telefoni",
            own_customer: random.id(),
        },
    ];
    for name in [
        "Krikkebæk Net",
        "Tangsø Erhverv",
        "Vibeholt Kommunikation",
        "Lærkerup Fiber",
        "Mosevang IP",
    ] {
        all.push(Reseller { id: random.id(), name, own_customer: random.id() });
    }
    all
}

/// Adds the members that `/name` does not have.
fn with_details(mut document: Map<String, Value>, number: usize) -> Map<String, Value> {
    document
        .insert("email".to_owned(), json!(format!("kontakt@kunde-{number:03}.sandbox.example")));
    document.insert(
        "phone".to_owned(),
        json!(format!("+45 00 00 {:02} {:02}", number / 100, number % 100)),
    );
    document.insert("vat".to_owned(), json!(format!("DK{:08}", number)));
    let address =
        json!({"street": format!("Sandkassevej {}", number + 1), "zip": "0000", "city": "Andeby"});
    document.insert("address".to_owned(), address);
    document
}

fn company(random: &mut Random) -> String {
    let first = random.one_of(&[
        "Krage", "Mose", "Tang", "Birke", "Hvene", "Sølv", "Lærke", "Ege", "Rønne", "Vibe",
    ]);
    let second = random
        .one_of(&["bæk", "lund", "holt", "ager", "sund", "rup", "drup", "vang", "bjerg", "ø"]);
    let trade = random.one_of(&[
        "VVS",
        "Tømrer & Snedker",
        "Revision",
        "Fiskehandel",
        "Auto",
        "Tandlæger",
        "Maskinfabrik",
        "Bageri",
        "Advokater",
        "Transport",
    ]);
    format!("{first}{second} {trade} {}", random.one_of(&["ApS", "A/S", "I/S", "Holding ApS"]))
}

fn person(random: &mut Random) -> String {
    let first = random.one_of(&[
        "Asta", "Bo", "Clara", "Ditte", "Egon", "Frode", "Gerda", "Holger", "Inger", "Jens",
    ]);
    format!(
        "{first} {}",
        random.one_of(&["Sandager", "Kassebæk", "Prøvelund", "Øvegaard", "Legholt"])
    )
}

/// Parses an id of this module's constants.
pub(super) fn constant_id(text: &str) -> Id {
    // Tests parse all of them.
    Id::parse(text.as_bytes()).expect("ids in the source are 24 hexadecimal characters")
}

fn json_object(text: &str) -> Map<String, Value> {
    // Tests parse it.
    serde_json::from_str(text).expect("documents in the source are JSON objects")
}

/// Deterministic pseudo-random numbers (splitmix64). Not for secrets.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn one_of<T: Copy, const N: usize>(&mut self, all: &[T; N]) -> T {
        all[self.next() as usize % N]
    }

    fn id(&mut self) -> Id {
        constant_id(&format!("{:016x}{:08x}", self.next(), self.next() as u32))
    }
}
