//! `GET /log/changeloglite`: the changes that a caller may see.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::change_log::ChangeEntry;
use super::data::Id;
use super::request::ApiRequest;
use super::response::{ErrorResponse, Success};
use super::state::{Caller, State};
use crate::api::AccessLevel;
use crate::clock::timestamp;

/// Maximum age of an entry, as the API has it.
const ENTRY_AGE_MAX: Duration = Duration::from_hours(5 * 24);

impl State {
    /// Lists the entries since `date` that the caller sees, oldest first. `date` is `YYYY-MM-DD`,
    /// optionally with `THH:MM[:SS[.mmm]]` and `Z`, all in UTC; the default is every stored entry.
    /// The API's documentation does not say that the response is a bare array; we assume it.
    ///
    /// Errors: 403 below `VIEWER`; 400 for an invalid `date`, `customer` or `reseller`.
    pub(super) fn changes(
        &self,
        caller: &Caller,
        request: &ApiRequest<'_>,
        now: SystemTime,
    ) -> Result<Success, ErrorResponse> {
        caller.at_least(AccessLevel::Viewer)?;
        let id = |name, message| match request.query(name) {
            Some(text) => {
                Id::parse(text.as_bytes()).map(Some).ok_or(ErrorResponse::BadRequest(message))
            }
            None => Ok(None),
        };
        let customer = id("customer", "customer is not an id")?;
        let reseller = id("reseller", "reseller is not an id")?;
        let since = request.query("date").unwrap_or("");
        let since = since.strip_suffix('Z').unwrap_or(since);
        if !is_timestamp_prefix(since) {
            return Err(ErrorResponse::BadRequest("date is not YYYY-MM-DD[THH:MM[:SS[.mmm]]][Z]"));
        }
        let visible = self.log.entries.iter().filter(|entry| {
            caller.sees(entry.customer, entry.reseller)
                && customer.is_none_or(|customer| customer == entry.customer)
                && reseller.is_none_or(|reseller| reseller == entry.reseller)
                && now.duration_since(entry.when).unwrap_or_default() <= ENTRY_AGE_MAX
        });
        // Both are UTC times in one notation, so their texts sort like the times.
        let listed = visible
            .map(|entry| (timestamp(entry.when), entry))
            .filter(|(when, _)| when.as_str() >= since);
        Ok(Success::json(listed.map(|(when, entry)| entry_json(&when, entry)).collect()))
    }
}

fn entry_json(when: &str, entry: &ChangeEntry) -> Value {
    let ChangeEntry { sequence, subject, id, customer, reseller, change, when: _ } = entry;
    json!({
        "_id": format!("{sequence:024x}"),
        "customer": customer.to_string(),
        "reseller": reseller.to_string(),
        "when": format!("{when}Z"),
        "where": subject.as_str(),
        "what": change.as_str(),
        "id": id.to_string(),
    })
}

/// Whether a text is empty, or a prefix of `0000-00-00T00:00:00.000` that does not end within a
/// number.
fn is_timestamp_prefix(text: &str) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00.000";
    let fits = |(digit, shape): (u8, &u8)| {
        if *shape == b'0' { digit.is_ascii_digit() } else { digit == *shape }
    };
    matches!(text.len(), 0 | 10 | 16 | 19 | 23) && text.bytes().zip(SHAPE).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_parameter_accepts_one_notation() {
        for date in
            ["", "2025-11-24", "2025-11-24T16:00", "2025-11-24T16:00:00", "2025-11-24T16:00:00.000"]
        {
            assert!(is_timestamp_prefix(date), "{date}");
        }
        for wrong in [
            "2025",
            "24-11-2025",
            "2025-11-24T",
            "2025-11-24T16:00:00.000+01:00",
            "2025-11-24 16:00",
            "today",
        ] {
            assert!(!is_timestamp_prefix(wrong), "{wrong}");
        }
    }
}
