//! The response of `GET /log/changeloglite`: changes made at the API by any client.
//!
//! Parsing is lenient, because an unnecessary invalidation only costs a fetch: an entry that cannot
//! be parsed is counted, and the others are applied.

use serde_json::Value;

use super::{Change, CustomerId, EmployeeId};

/// Maximum number of entries of a response; entries may be missing from a response of that size.
pub const MAX_ENTRIES: usize = 10_000;

/// Number of days for which the API keeps an entry.
pub const RETENTION_DAYS: u64 = 5;

/// An entry of the change log.
#[derive(Debug)]
pub struct Entry {
    /// `_id`; without one, the text of the whole entry.
    pub id: String,
    /// The change; `None` if the entry does not say.
    pub change: Option<Change>,
}

/// Reads the body of a 200: an array, or an object whose only member is one. Otherwise `None`.
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
    let customer =
        |name| text(name).and_then(|id| CustomerId::parse(id.as_bytes())).map(Change::Customer);
    let change = match text("where") {
        Some("Employees") => text("id").and_then(EmployeeId::parse).map(Change::Employee),
        Some("Customers") => customer("id").or_else(|| customer("customer")),
        // Any change of a customer's objects may change the response: its features, for example.
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
    fn invalid_log_is_refused_and_entry_without_id_is_its_text() {
        for wrong in [
            "",
            "null",
            "{}",
            "7",
            r#"{"a":[],"b":[]}"#,
            r#"{"error":{"code":"expired"}}"#,
            "[",
            "[] []",
        ] {
            assert_eq!(seen(wrong), None, "{wrong}");
        }
        assert_eq!(seen("[]").unwrap(), Vec::<String>::new());
        assert_eq!(
            seen(r#"[7, {"a":1}, {"_id":7}]"#).unwrap(),
            ["7: None", r#"{"a":1}: None"#, r#"{"_id":7}: None"#]
        );
    }
}
