//! Files with secrets: one strict parser for `check`, the start, reloads and every later read.
//!
//! A secret that looks right in an editor and differs in one byte matches nothing. Byte order
//! marks, UTF-16, NUL, control characters, surrounding blanks and unexpected lines are therefore
//! errors that name the reason. An error shows at most one character of a secret.

use std::io::{self, Read};
use std::path::Path;

use thiserror::Error;
use zeroize::Zeroizing;

/// Maximum size of a file. A larger file is the wrong file.
const FILE_BYTES_MAX: usize = 64 << 10;

/// The reason why a file contains no usable secret.
#[derive(Debug, Error)]
pub enum SecretFileError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("contains more than {FILE_BYTES_MAX} bytes; check that it is the right file")]
    TooLarge,
    #[error("starts with a byte order mark; save it as UTF-8 without a byte order mark")]
    ByteOrderMark,
    #[error("is UTF-16 text; save it as UTF-8 without a byte order mark")]
    Utf16,
    #[error("line {line}: contains a NUL byte; save it as plain text")]
    Nul { line: usize },
    #[error("is not UTF-8 text; save it as UTF-8 without a byte order mark")]
    NotUtf8,
    #[error("line {line}: contains the control character {character}; remove it")]
    Control { line: usize, character: String },
    #[error("is empty; write the secret into it, for example the output of `openssl rand -hex 32`")]
    Empty,
    #[error("line {line} is blank; remove it")]
    BlankLine { line: usize },
    #[error("line {line} begins or ends with a blank; remove it")]
    SurroundingBlank { line: usize },
    #[error("contains {found} lines; expected {expected}")]
    Lines { found: usize, expected: &'static str },
    #[error(
        "line {line}: contains {character}, which is not allowed in a token; use letters, digits and -._~+/ with = at \
         the end (RFC 6750 section 2.1)"
    )]
    TokenCharacter { line: usize, character: String },
}

/// The text of a secrets file: UTF-8 without control characters except tabs and line ends.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or contains something that a secret cannot contain.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
        let file = std::fs::File::open(path)?;
        file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, SecretFileError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(SecretFileError::TooLarge);
        }
        check_encoding(bytes)?;
        let text = std::str::from_utf8(bytes).map_err(|_| SecretFileError::NotUtf8)?;
        for (line, text) in (1..).zip(text.lines()) {
            if text.contains('\0') {
                return Err(SecretFileError::Nul { line });
            }
            // A list may be indented or separated with tabs.
            let mut others = text.chars().filter(|character| *character != '\t');
            if let Some(control) = others.find(|character| character.is_control()) {
                return Err(SecretFileError::Control { line, character: describe(control) });
            }
        }
        Ok(SecretText(Zeroizing::new(text.to_owned())))
    }

    /// All lines.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The only line, such as a password. LF and CRLF at the end do not count.
    ///
    /// # Errors
    /// The file has no line, several lines, or a line with surrounding blanks.
    pub fn line(&self) -> Result<&str, SecretFileError> {
        match *self.lines()?.as_slice() {
            [line] => Ok(line),
            ref lines => Err(SecretFileError::Lines {
                found: lines.len(),
                expected: "one line with one secret",
            }),
        }
    }

    /// One or two bearer tokens, one per line.
    ///
    /// # Errors
    /// The file has no token or more than two, or a token has a character that is not allowed.
    pub fn tokens(&self) -> Result<Vec<&str>, SecretFileError> {
        let lines = self.lines()?;
        if lines.len() > 2 {
            let expected = "one token, or two during a rotation, one per line";
            return Err(SecretFileError::Lines { found: lines.len(), expected });
        }
        for (line, token) in (1..).zip(&lines) {
            if let Some(character) = invalid_token_character(token) {
                return Err(SecretFileError::TokenCharacter {
                    line,
                    character: describe(character),
                });
            }
        }
        Ok(lines)
    }

    fn lines(&self) -> Result<Vec<&str>, SecretFileError> {
        let text = self.0.trim_end_matches(['\r', '\n']);
        if text.trim().is_empty() {
            return Err(SecretFileError::Empty);
        }
        let lines: Vec<&str> = text.lines().collect();
        for (line, text) in (1..).zip(&lines) {
            if text.trim().is_empty() {
                return Err(SecretFileError::BlankLine { line });
            }
            if text.contains('\t') {
                return Err(SecretFileError::Control { line, character: describe('\t') });
            }
            if text.trim().len() != text.len() {
                return Err(SecretFileError::SurroundingBlank { line });
            }
        }
        Ok(lines)
    }
}

/// Checks that a file is not in an encoding that its reader would take for another text. PEM files
/// need no more: outside its blocks they may contain anything.
///
/// # Errors
/// The file starts with a byte order mark, or is UTF-16.
pub fn check_encoding(bytes: &[u8]) -> Result<(), SecretFileError> {
    let is_utf16 = |pair: &[u8; 2]| (pair[0] == 0) != (pair[1] == 0);
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err(SecretFileError::Utf16),
        [0xef, 0xbb, 0xbf, ..] => Err(SecretFileError::ByteOrderMark),
        _ if bytes.len() > 2 && bytes.as_chunks::<2>().0.iter().all(is_utf16) => {
            Err(SecretFileError::Utf16)
        }
        _ => Ok(()),
    }
}

/// The first character that the grammar `b64token` of RFC 6750 does not allow.
fn invalid_token_character(token: &str) -> Option<char> {
    let body = token.trim_end_matches('=');
    if body.is_empty() {
        return token.chars().next();
    }
    body.chars()
        .find(|character| !character.is_ascii_alphanumeric() && !"-._~+/".contains(*character))
}

/// Names a character: visible ASCII as it is, anything else by its code point.
fn describe(character: char) -> String {
    match character {
        ' ' => "a blank".to_owned(),
        '!'..='~' => format!("{character:?}"),
        _ => format!("U+{:04X}", u32::from(character)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(bytes: &[u8]) -> Result<Vec<String>, String> {
        let text = SecretText::parse(bytes).map_err(|error| error.to_string())?;
        let tokens = text.tokens().map_err(|error| error.to_string())?;
        Ok(tokens.into_iter().map(str::to_owned).collect())
    }

    fn line(bytes: &[u8]) -> Result<String, String> {
        let text = SecretText::parse(bytes).map_err(|error| error.to_string())?;
        text.line().map(str::to_owned).map_err(|error| error.to_string())
    }

    #[test]
    fn line_ends_at_the_end_do_not_count() {
        for end in ["", "\n", "\r\n", "\n\n"] {
            assert_eq!(tokens(format!("tok-1{end}").as_bytes()).unwrap(), ["tok-1"], "{end:?}");
            assert_eq!(line(format!("pass word{end}").as_bytes()).unwrap(), "pass word", "{end:?}");
        }
        assert_eq!(tokens(b"tok-1\r\ntok-2\r\n").unwrap(), ["tok-1", "tok-2"]);
    }

    #[test]
    fn unusable_text_is_refused_with_its_reason() {
        let utf16 = |text: &str, to_bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(to_bytes).collect()
        };
        let cases: [(Vec<u8>, &str); 12] = [
            (b"\xef\xbb\xbftoken\n".to_vec(), "byte order mark"),
            (utf16("\u{feff}token", u16::to_le_bytes), "UTF-16"),
            (utf16("\u{feff}token", u16::to_be_bytes), "UTF-16"),
            (utf16("token\n", u16::to_le_bytes), "UTF-16"),
            (utf16("token\n", u16::to_be_bytes), "UTF-16"),
            (b"tok\0en\n".to_vec(), "line 1: contains a NUL byte"),
            (b"tok\xffen\n".to_vec(), "not UTF-8"),
            (b"tok\ten\n".to_vec(), "control character U+0009"),
            (b"\n".to_vec(), "is empty"),
            (b" token\n".to_vec(), "begins or ends with a blank"),
            (b"token \n".to_vec(), "begins or ends with a blank"),
            (b"one\n\ntwo\n".to_vec(), "line 2 is blank"),
        ];
        for (bytes, reason) in cases {
            assert!(
                tokens(&bytes).unwrap_err().contains(reason),
                "{bytes:?}: {:?}",
                tokens(&bytes)
            );
            assert!(line(&bytes).unwrap_err().contains(reason), "{bytes:?}: {:?}", line(&bytes));
        }
    }

    #[test]
    fn tokens_have_the_characters_of_rfc_6750() {
        assert_eq!(tokens(b"aZ09-._~+/==\n").unwrap(), ["aZ09-._~+/=="]);
        for (token, named) in [
            ("a b", "a blank"),
            ("a\u{e9}", "U+00E9"),
            ("a=b", "'='"),
            ("a,b", "','"),
            ("=", "'='"),
        ] {
            assert!(tokens(token.as_bytes()).unwrap_err().contains(named), "{token}");
        }
        assert!(tokens(b"one\ntwo\nthree\n").unwrap_err().contains("contains 3 lines"));
        assert!(line(b"one\ntwo\n").unwrap_err().contains("contains 2 lines; expected one line"));
    }
}
