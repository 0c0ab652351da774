//! Writes a document in one of the many spellings that JSON permits.

use std::fmt::Write;

use serde_json::Value;

/// Choices derived from a seed: the same seed gives the same choices.
pub struct Choices(u64);

impl Choices {
    /// Seed 0 always chooses the plain spelling.
    pub fn new(seed: u64) -> Self {
        Choices(seed)
    }

    fn one_in(&mut self, times: u64) -> bool {
        // xorshift64: enough to vary spellings; it remains 0 from seed 0.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 != 0 && (self.0 >> 32).is_multiple_of(times)
    }
}

/// Writes the value with white space and escapes as chosen.
pub fn spell(value: &Value, choices: &mut Choices) -> String {
    let mut out = String::new();
    write_value(value, choices, &mut out);
    out
}

fn write_value(value: &Value, choices: &mut Choices, out: &mut String) {
    space(choices, out);
    match value {
        Value::Object(members) => {
            out.push('{');
            for (index, (name, value)) in members.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                space(choices, out);
                write_string(name, choices, out);
                space(choices, out);
                out.push(':');
                write_value(value, choices, out);
            }
            space(choices, out);
            out.push('}');
        }
        Value::Array(elements) => {
            out.push('[');
            for (index, value) in elements.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                write_value(value, choices, out);
            }
            space(choices, out);
            out.push(']');
        }
        Value::String(text) => write_string(text, choices, out),
        scalar => out.push_str(&scalar.to_string()),
    }
    space(choices, out);
}

fn write_string(text: &str, choices: &mut Choices, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        if choices.one_in(6) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").unwrap();
            }
        } else {
            let quoted = Value::String(character.into()).to_string();
            out.push_str(&quoted[1..quoted.len() - 1]);
        }
    }
    out.push('"');
}

fn space(choices: &mut Choices, out: &mut String) {
    if choices.one_in(8) {
        out.push_str(" \n\r\t");
    }
}
