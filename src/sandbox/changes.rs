//! `GET /log/changeloglite`: the entries of the change log that a caller may see.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::answer::{Refusal, Reply};
use super::changelog::Entry;
use super::data::Id;
use super::received::Received;
use super::state::{Caller, State};
use crate::api::AccessLevel;
use crate::clock::timestamp;

/// Maximum age of an entry, as the API has it.
const KEPT_FOR: Duration = Duration::from_hours(5 * 24);

impl State {
    /// An array of the entries since `date` that the caller sees, oldest first. `date` is `YYYY-MM-DD`, optionally with
    /// `THH:MM[:SS[.mmm]]` and `Z`, all in UTC; all that is kept without it. (That it is a bare array is our reading.)
    ///
    /// Errors: 403 below `VIEWER`; 400 for a `date`, `customer` or `reseller` that is none.
    pub(super) fn changes(&self, caller: &Caller, received: &Received<'_>, now: SystemTime) -> Result<Reply, Refusal> {
        caller.at_least(AccessLevel::Viewer)?;
        let id = |name, message| match received.query(name) {
            Some(text) => Id::parse(text.as_bytes()).map(Some).ok_or(Refusal::BadRequest(message)),
            None => Ok(None),
        };
        let customer = id("customer", "customer is not an id")?;
        let reseller = id("reseller", "reseller is not an id")?;
        let since = received.query("date").unwrap_or("");
        let since = since.strip_suffix('Z').unwrap_or(since);
        if !is_date(since) {
            return Err(Refusal::BadRequest("date is not YYYY-MM-DD[THH:MM[:SS[.mmm]]][Z]"));
        }
        let kept = self.log.entries.iter().filter(|entry| {
            caller.sees(entry.customer, entry.reseller)
                && customer.is_none_or(|customer| customer == entry.customer)
                && reseller.is_none_or(|reseller| reseller == entry.reseller)
                && now.duration_since(entry.when).unwrap_or_default() <= KEPT_FOR
        });
        // Both are times of UTC in one notation, so their texts sort as the times do.
        let shown = kept.map(|entry| (timestamp(entry.when), entry)).filter(|(when, _)| when.as_str() >= since);
        Ok(Reply::json(shown.map(|(when, entry)| described(&when, entry)).collect()))
    }
}

fn described(when: &str, entry: &Entry) -> Value {
    let Entry { number, subject, id, customer, reseller, change, when: _ } = entry;
    json!({
        "_id": format!("{number:024x}"),
        "customer": customer.to_string(),
        "reseller": reseller.to_string(),
        "when": format!("{when}Z"),
        "where": subject.as_str(),
        "what": change.as_str(),
        "id": id.to_string(),
    })
}

/// A beginning of `0000-00-00T00:00:00.000` that does not break off within a number; or nothing.
fn is_date(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00.000";
    let fits = |(digit, shape): (u8, &u8)| if *shape == b'0' { digit.is_ascii_digit() } else { digit == *shape };
    matches!(text.len(), 0 | 10 | 16 | 19 | 23) && text.bytes().zip(SHAPE).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_one_notation() {
        for date in ["", "2025-11-24", "2025-11-24T16:00", "2025-11-24T16:00:00", "2025-11-24T16:00:00.000"] {
            assert!(is_date(date), "{date}");
        }
        for wrong in ["2025", "24-11-2025", "2025-11-24T", "2025-11-24T16:00:00.000+01:00", "2025-11-24 16:00", "today"]
        {
            assert!(!is_date(wrong), "{wrong}");
        }
    }
}
