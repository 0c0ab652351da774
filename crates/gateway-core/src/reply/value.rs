//! Values of response fields, written as bytes without an intermediate `HeaderValue`.

use http::HeaderValue;

use super::{CacheStatus, ETag};

/// Value of a response field.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// Becomes a field value without a copy.
    Ready(&'a HeaderValue),
    /// A valid field value.
    Bytes(&'a [u8]),
    /// A valid field value of a rare response: it is checked each time it becomes one.
    Text(&'static str),
    Tag(&'a ETag),
    Number(u64),
    Status(CacheStatus),
}

impl Value<'_> {
    /// Appends the value to `text`.
    pub fn append_to(self, text: &mut Vec<u8>) {
        match self {
            Value::Ready(value) => text.extend_from_slice(value.as_bytes()),
            Value::Bytes(value) => text.extend_from_slice(value),
            Value::Text(value) => text.extend_from_slice(value.as_bytes()),
            Value::Tag(tag) => text.extend_from_slice(tag),
            Value::Number(number) => {
                text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes())
            }
            Value::Status(status) => status.append_to(text),
        }
    }

    pub fn to_header(self) -> HeaderValue {
        match self {
            Value::Ready(value) => value.clone(),
            Value::Bytes(value) => {
                HeaderValue::from_bytes(value).unwrap_or_else(|_| HeaderValue::from_static(""))
            }
            Value::Text(value) => HeaderValue::from_static(value),
            // Quotes and hexadecimal digits are always a valid field value.
            Value::Tag(tag) => {
                HeaderValue::from_bytes(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
            }
            Value::Number(number) => HeaderValue::from(number),
            Value::Status(status) => status.value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_value_equals_the_written_bytes() {
        let tag = HeaderValue::from_static("\"a\"");
        for value in [
            Value::Ready(&tag),
            Value::Bytes(b"text/plain"),
            Value::Text("private"),
            Value::Tag(b"\"0123456789abcdef0123456789abcdef\""),
            Value::Number(0),
            Value::Number(u64::MAX),
            Value::Status(CacheStatus::Hit { ttl: 42 }),
            Value::Status(CacheStatus::Bypass),
        ] {
            let mut text = Vec::new();
            value.append_to(&mut text);
            assert_eq!(value.to_header().as_bytes(), text);
            assert!(!text.is_empty());
        }
    }
}
