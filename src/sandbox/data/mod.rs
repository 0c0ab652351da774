//! Who and what there is when the sandbox starts: resellers, customers, employees and the callers of the demo.
//!
//! Everything is made up and comes from a fixed seed, so that two starts, and two developers, see the same. Every secret
//! but those of the documented example contains `sandbox-secret`, so that one that got out is recognised at once.

mod callers;
mod integrations;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::api::{AccessLevel, CustomerId};

pub use callers::{DemoCaller, demo_callers};

/// Customers, resellers and employees have ids of one shape. The sandbox looks them up in different maps, so one type
/// serves for all three.
pub type Id = CustomerId;

/// "Anders And & Co", the example of the API's own documentation. VIEWER, MANAGER and OWNER of the demo belong to it.
pub const DEMO_CUSTOMER: &str = "73469a52f4fd7f77ec7b28cc";
/// A customer of the same reseller: refused to the VIEWER, MANAGER and OWNER of the demo, shown to its RESELLER.
pub const OTHER_CUSTOMER: &str = "73469a52f4fd7f77ec7b28cd";
/// A customer of another reseller: refused to all callers of the demo but the ADMIN.
pub const FOREIGN_CUSTOMER: &str = "73469a52f4fd7f77ec7b28ce";

/// The reseller of `DEMO_CUSTOMER`.
pub(super) const DEMO_RESELLER: &str = "1234567890123457890abcde";
pub(super) const FOREIGN_RESELLER: &str = "1234567890123457890abcdf";
const DEMO_RESELLER_HOUSE: &str = "73469a52f4fd7f77ec7b28c0";
const PLATFORM_RESELLER: &str = "1234567890123457890abc00";
const PLATFORM_HOUSE: &str = "73469a52f4fd7f77ec7b2800";

/// The password of every employee who is not a caller of the demo.
pub(super) const PASSWORD: &str = "sandbox-password";

const CUSTOMERS_PER_RESELLER: usize = 40;

/// What `GET /customer/{id}/name` answers for `DEMO_CUSTOMER`, byte for byte.
const ANDERS_AND: &str = include_str!("anders_and.json");

/// A customer as the API knows it.
pub struct Customer {
    /// The reseller it belongs to; `parentReseller` of the document says the same.
    pub reseller: Id,
    /// The whole document, as `GET /customer/{id}` gives it.
    pub document: Map<String, Value>,
}

/// Someone who may have tokens. What reseller an employee belongs to is its customer's affair.
pub struct Employee {
    pub customer: Id,
    pub login: String,
    pub password: String,
    pub name: String,
    pub language: String,
    pub level: AccessLevel,
}

/// Everything that the sandbox holds but sessions and log.
pub struct World {
    pub resellers: BTreeMap<Id, String>,
    pub customers: BTreeMap<Id, Customer>,
    pub employees: BTreeMap<Id, Employee>,
}

impl World {
    /// The world as it is at every start.
    pub fn first() -> World {
        let mut world = World { resellers: BTreeMap::new(), customers: BTreeMap::new(), employees: BTreeMap::new() };
        let mut random = Random(0x5ead_b0c5_7e1e_c0a1);
        let mut number = 0;
        for (reseller, name, house) in resellers(&mut random) {
            world.resellers.insert(reseller, name.to_owned());
            world.add_customer(house, reseller, &format!("{name} A/S"), &mut number, &mut random);
            for _ in 0..CUSTOMERS_PER_RESELLER {
                let id = random.id();
                let name = company(&mut random);
                world.add_customer(id, reseller, &name, &mut number, &mut random);
            }
        }
        let and = own_id(DEMO_RESELLER);
        world.add_customer(own_id(OTHER_CUSTOMER), and, "Joakim von And Holding A/S", &mut number, &mut random);
        let foreign = own_id(FOREIGN_RESELLER);
        world.add_customer(
            own_id(FOREIGN_CUSTOMER),
            foreign,
            "Georg Gearløs Opfindelser ApS",
            &mut number,
            &mut random,
        );
        let name = json_object(ANDERS_AND);
        world.customers.insert(own_id(DEMO_CUSTOMER), Customer { reseller: and, document: with_details(name, 0) });
        for caller in demo_callers() {
            let employee = Employee {
                customer: own_id(caller.customer),
                login: caller.login.to_owned(),
                password: caller.password.to_owned(),
                name: format!("Demo {}", caller.role),
                language: "da".to_owned(),
                level: caller.role,
            };
            world.employees.insert(own_id(caller.employee), employee);
        }
        world
    }

    /// A customer with its two employees, `owner@` and `viewer@`.
    fn add_customer(&mut self, id: Id, reseller: Id, name: &str, number: &mut usize, random: &mut Random) {
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
                password: PASSWORD.to_owned(),
                name: person(random),
                language: random.one_of(&["da", "en"]).to_owned(),
                level,
            };
            self.employees.insert(random.id(), employee);
        }
    }
}

/// Reseller, its name, and the customer that its own staff belongs to.
fn resellers(random: &mut Random) -> Vec<(Id, &'static str, Id)> {
    let mut all = vec![
        (own_id(PLATFORM_RESELLER), "Sandkasse Telecom", own_id(PLATFORM_HOUSE)),
        (own_id(DEMO_RESELLER), "Andeby Tele", own_id(DEMO_RESELLER_HOUSE)),
        (own_id(FOREIGN_RESELLER), "Gåserød Telefoni", random.id()),
    ];
    for name in ["Krikkebæk Net", "Tangsø Erhverv", "Vibeholt Kommunikation", "Lærkerup Fiber", "Mosevang IP"] {
        all.push((random.id(), name, random.id()));
    }
    all
}

/// What the whole document has beyond the answer of `/name`.
fn with_details(mut document: Map<String, Value>, number: usize) -> Map<String, Value> {
    document.insert("email".to_owned(), json!(format!("kontakt@kunde-{number:03}.sandbox.example")));
    document.insert("phone".to_owned(), json!(format!("+45 00 00 {:02} {:02}", number / 100, number % 100)));
    document.insert("vat".to_owned(), json!(format!("DK{:08}", number)));
    let address = json!({"street": format!("Sandkassevej {}", number + 1), "zip": "0000", "city": "Andeby"});
    document.insert("address".to_owned(), address);
    document
}

fn company(random: &mut Random) -> String {
    let first = random.one_of(&["Krage", "Mose", "Tang", "Birke", "Hvene", "Sølv", "Lærke", "Ege", "Rønne", "Vibe"]);
    let second = random.one_of(&["bæk", "lund", "holt", "ager", "sund", "rup", "drup", "vang", "bjerg", "ø"]);
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
    let first = random.one_of(&["Asta", "Bo", "Clara", "Ditte", "Egon", "Frode", "Gerda", "Holger", "Inger", "Jens"]);
    format!("{first} {}", random.one_of(&["Sandager", "Kassebæk", "Prøvelund", "Øvegaard", "Legholt"]))
}

/// An id that stands in this room's constants.
pub(super) fn own_id(text: &str) -> Id {
    // The constants are 24 hexadecimal characters; a test builds the world from all of them.
    Id::parse(text.as_bytes()).expect("an id of the sandbox's own")
}

fn json_object(text: &str) -> Map<String, Value> {
    // The text is compiled in; a test builds the world from it.
    serde_json::from_str(text).expect("a document of the sandbox's own")
}

/// Numbers that look random and are the same at every start (splitmix64). Nothing that must be secret comes from here.
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
        own_id(&format!("{:016x}{:08x}", self.next(), self.next() as u32))
    }
}
