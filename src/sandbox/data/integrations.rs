//! Features and integrations of the fictional customers, in varied combinations: as documented,
//! misplaced as in the example of the API's wiki, undocumented, empty or missing.

use serde_json::{Map, Value, json};

use super::Random;

/// Each n-th customer has this deviation. The numbers are coprime, so that deviations also occur
/// together.
const MISPLACED_EVERY: usize = 7;
const UNKNOWN_EVERY: usize = 9;
const EMPTY_EVERY: usize = 17;
const MISSING_EVERY: usize = 19;

pub fn features(random: &mut Random) -> Value {
    let mut features = vec!["CUSTOMER"];
    features.extend(
        ["SIP", "MVNO", "PBX", "TCE", "DNS", "INTERNET", "TV"]
            .into_iter()
            .filter(|_| random.one_in(2)),
    );
    json!(features)
}

/// The integrations of the customer with this number; `None` if its document has no such member.
pub fn integrations(number: usize, random: &mut Random) -> Option<Value> {
    if number.is_multiple_of(MISSING_EVERY) {
        return None;
    }
    if number.is_multiple_of(EMPTY_EVERY) {
        return Some(json!({}));
    }
    let mut all = Map::new();
    let billing = billing(number, random);
    if !billing.is_empty() {
        all.insert("billing".to_owned(), Value::Object(billing));
    }
    if random.one_in(2) {
        all.insert("criipto".to_owned(), criipto(number, random));
    }
    let mut others = Map::new();
    if random.one_in(2) {
        others.insert("licenses".to_owned(), json!({"also": also(number, random)}));
    }
    if random.one_in(2) {
        others.insert("ms365".to_owned(), ms365(number, random));
    }
    if random.one_in(3) {
        let portal = format!("https://telefoni.kunde-{number:03}.sandbox.example");
        others.insert(
            "mvnoPrivate".to_owned(),
            json!({"enabled": random.one_in(2), "portal": portal}),
        );
    }
    let misplaced = number.is_multiple_of(MISPLACED_EVERY) && !others.is_empty();
    match all.get_mut("billing").and_then(Value::as_object_mut).filter(|_| misplaced) {
        Some(billing) => billing.append(&mut others),
        None if misplaced => _ = all.insert("billing".to_owned(), Value::Object(others)),
        None => all.append(&mut others),
    }
    if number.is_multiple_of(UNKNOWN_EVERY) {
        let list = json!([{"k": secret("fortnox-nested", number)}]);
        let unknown = json!({"enabled": true, "accessKey": secret("fortnox-key", number), "nested": {"list": list}});
        all.insert("fortnox".to_owned(), unknown);
    }
    Some(Value::Object(all))
}

fn billing(number: usize, random: &mut Random) -> Map<String, Value> {
    let mut billing = Map::new();
    if random.one_in(2) {
        let economic = json!({
            "enabled": random.one_in(2),
            "agreementGrantToken": secret("economic-grant", number),
            "accrual": random.one_in(2),
        });
        billing.insert("economic".to_owned(), economic);
    }
    if random.one_in(3) {
        let rackbeat =
            json!({"enabled": random.one_in(2), "bearerToken": secret("rackbeat-bearer", number)});
        billing.insert("rackbeat".to_owned(), rackbeat);
    }
    if random.one_in(3) {
        let uniconta = json!({
            "enabled": random.one_in(2),
            "username": secret("uniconta-user", number),
            "password": secret("uniconta-password", number),
            "companyId": (10_000_000 + number).to_string(),
        });
        billing.insert("uniconta".to_owned(), uniconta);
    }
    billing
}

fn criipto(number: usize, random: &mut Random) -> Value {
    json!({
        "enabled": random.one_in(2),
        "clientId": format!("{:08x}-0000-4000-8000-{number:012x}", random.next() as u32),
        "clientSecret": secret("criipto-client", number),
        "domain": format!("kunde-{number:03}.criipto.example"),
        "clientIdRealm": format!("urn:sandbox:application:identifier:{number}"),
    })
}

fn also(number: usize, random: &mut Random) -> Value {
    json!({
        "enabled": random.one_in(2),
        "username": format!("{}@kunde.sandbox.example", secret("also-user", number)),
        "password": secret("also-password", number),
        "customerId": (6_000_000 + number).to_string(),
    })
}

fn ms365(number: usize, random: &mut Random) -> Value {
    let mut presence = || {
        let names = [
            None,
            Some("AVAILABLE"),
            Some("BUSY"),
            Some("OUT_OF_OFFICE"),
            Some("OFF_WORK"),
            Some("HOLIDAY"),
        ];
        json!(random.one_of(&names))
    };
    let show_as = json!({
        "free": presence(), "tentative": presence(), "busy": presence(), "oof": presence(),
        "workingElsewhere": presence(),
    });
    json!({
        "enabled": random.one_in(2),
        "tenantId": format!("{:08x}-sandbox-{number:04}", random.next() as u32),
        "verified": random.one_in(2),
        "calendarSync": random.one_in(2),
        "contactsSync": random.one_in(2),
        "orgContactsSync": random.one_in(2),
        "presenceSync": random.one_in(2),
        "calendarShowAsMappings": show_as,
        "calendarCategoryMappings": [{"category": "Ferie", "presence": "HOLIDAY"}],
    })
}

fn secret(kind: &str, number: usize) -> String {
    format!("sandbox-secret-{kind}-{number:03}")
}
