//! Ids of the API (24 hexadecimal characters, which are 12 bytes) and of requests.

use std::fmt;

/// Id of a customer. Both letter cases are equal; the text is in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomerId([u8; 12]);

impl CustomerId {
    /// Parses exactly 24 hexadecimal ASCII characters.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; 24] = text.try_into().ok()?;
        let mut id = [0; 12];
        for (byte, pair) in id.iter_mut().zip(text.as_chunks::<2>().0) {
            *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
        }
        Some(CustomerId(id))
    }

    /// Returns the id's 12 bytes.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }
}

/// Id of an employee, kept as text because it is only compared.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EmployeeId(Box<str>);

impl EmployeeId {
    /// Maximum length of an id; the API's ids have 24 characters.
    pub const MAX_LEN: usize = 64;

    /// Parses 1 to [`EmployeeId::MAX_LEN`] ASCII letters and digits, in any letter case.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric());
        fits.then(|| EmployeeId(text.to_ascii_lowercase().into()))
    }

    /// Parses the 24 hexadecimal characters of every real employee id. For an operator's input,
    /// where `null` or `undefined` is the value of an unset variable.
    pub fn parse_strict(text: &str) -> Option<Self> {
        CustomerId::parse(text.as_bytes()).and_then(|_| Self::parse(text))
    }

    /// Returns the id in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for EmployeeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the text of a client's `X-Request-Id` if it can be logged and forwarded: 1 to 128 ASCII
/// letters, digits, `.`, `_` and `-`.
pub fn request_id_text(value: &[u8]) -> Option<&str> {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let is_id = (1..=128).contains(&value.len()) && value.iter().all(is_allowed);
    std::str::from_utf8(value).ok().filter(|_| is_id)
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.map(|byte| {
            [byte >> 4, byte & 0xf].map(|digit| b"0123456789abcdef"[usize::from(digit)])
        });
        // Hexadecimal digits are UTF-8.
        f.write_str(std::str::from_utf8(digits.as_flattened()).unwrap_or_default())
    }
}

impl fmt::Debug for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_cases_and_nothing_else() {
        let id = CustomerId::parse(b"73469a52f4fd7f77ec7b28cc").unwrap();
        assert_eq!(CustomerId::parse(b"73469A52F4FD7F77EC7B28CC"), Some(id));
        assert_eq!(id.to_string(), "73469a52f4fd7f77ec7b28cc");
        for wrong in [
            "",
            "73469a52f4fd7f77ec7b28c",
            "73469a52f4fd7f77ec7b28ccc",
            "g3469a52f4fd7f77ec7b28cc",
            "٣3469a52f4fd7f77ec7b28c",
        ] {
            assert_eq!(CustomerId::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
