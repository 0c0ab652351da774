//! The answer of `GET /log/changeloglite`: what was changed at the API, by whomever.
//!
//! Read with leniency where nothing is at stake: an entry that cannot be understood is counted and the others are obeyed,
//! for a change that is obeyed needlessly costs a fetch.

use serde_json::Value;

use super::{Change, CustomerId, EmployeeId};

/// The API gives no more entries than this; of so many, some may be left out.
pub const MOST_ENTRIES: usize = 10_000;

/// For how many days the API keeps an entry.
pub const KEPT_DAYS: u64 = 5;

/// One entry.
#[derive(Debug)]
pub struct Entry {
    /// `_id`. Without one, the entry is known by all that it says.
    pub id: String,
    /// What it changes; `None`: that cannot be told.
    pub change: Option<Change>,
}

/// Reads the body of a 200: an array, alone or as the one member of an object. `None`: it is neither.
pub fn read_change_log(body: &[u8]) -> Option<Vec<Entry>> {
    let entries = match serde_json::from_slice(body).ok()? {
        Value::Array(entries) => entries,
        Value::Object(members) if members.len() == 1 => match members.into_iter().next()? {
            (_, Value::Array(entries)) => entries,
            _ => return None,
        },
        _ => return None,
    };
    Some(entries.iter().map(entry).collect())
}

fn entry(entry: &Value) -> Entry {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let customer = |name| text(name).and_then(|id| CustomerId::parse(id.as_bytes())).map(Change::Customer);
    let change = match text("where") {
        Some("Employees") => text("id").and_then(EmployeeId::parse).map(Change::Employee),
        Some("Customers") => customer("id").or_else(|| customer("customer")),
        // Of whatever it is that changed, a customer's name may tell: its features, for one.
        _ => customer("customer"),
    };
    Entry { id: text("_id").map_or_else(|| entry.to_string(), str::to_owned), change }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: &str = "73469a52f4fd7f77ec7b28cc";
    const E: &str = "5f00000000000000000000aa";

    fn seen(body: &str) -> Option<Vec<String>> {
        let entries = read_change_log(body.as_bytes())?;
        Some(entries.iter().map(|entry| format!("{}: {:?}", entry.id, entry.change)).collect())
    }

    #[test]
    fn customers_and_employees_are_named() {
        let body = format!(
            r#"[{{"_id":"1","where":"Customers","what":"UPDATE","id":"{C}","customer":"{C}"}},
                {{"_id":"2","where":"Employees","what":"DELETE","id":"{E}","customer":"{C}"}},
                {{"_id":"3","where":"Mobiles","what":"OTHER","id":"{E}","customer":"{C}"}},
                {{"_id":"4","where":"Customers","customer":"{C}"}},
                {{"_id":"5","where":"Resellers","id":"{E}"}},
                {{"_id":"6","where":"Employees","id":"no id"}}]"#
        );
        let named = [
            format!("1: Some(Customer({C}))"),
            format!("2: Some(Employee({E}))"),
            format!("3: Some(Customer({C}))"),
            format!("4: Some(Customer({C}))"),
            "5: None".to_owned(),
            "6: None".to_owned(),
        ];
        assert_eq!(seen(&body).unwrap(), named);
        assert_eq!(seen(&format!(r#"{{"log":{body}}}"#)).unwrap(), named);
    }

    #[test]
    fn what_is_no_log_is_none_and_odd_entries_are_told_apart_by_what_they_say() {
        for wrong in ["", "null", "{}", "7", r#"{"a":[],"b":[]}"#, r#"{"error":{"code":"expired"}}"#, "[", "[] []"] {
            assert_eq!(seen(wrong), None, "{wrong}");
        }
        assert_eq!(seen("[]").unwrap(), Vec::<String>::new());
        assert_eq!(seen(r#"[7, {"a":1}, {"_id":7}]"#).unwrap(), ["7: None", r#"{"a":1}: None"#, r#"{"_id":7}: None"#]);
    }
}
