//! A strict reader of HTTP/1 messages, for the API and for clients.

use std::fmt;
use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a value or a body that are printed.
const PRINTED_MAX: usize = 80;

/// A header field; its name is in lower case.
#[derive(Clone, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: Vec<u8>,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, printed(&self.value))
    }
}

/// A body.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(pub Vec<u8>);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", printed(&self.0))
    }
}

/// The beginning of some bytes, and their number.
pub fn printed(bytes: &[u8]) -> String {
    let shown = bytes[..bytes.len().min(PRINTED_MAX)].escape_ascii();
    if bytes.len() > PRINTED_MAX {
        format!("{shown}... ({} bytes)", bytes.len())
    } else {
        shown.to_string()
    }
}

impl Field {
    pub fn new(name: &str, value: impl AsRef<[u8]>) -> Field {
        Field { name: name.to_ascii_lowercase(), value: value.as_ref().to_vec() }
    }
}

/// The values of the fields of that name, joined by commas (RFC 9110 section 5.3).
pub fn joined(fields: &[Field], name: &str) -> Option<String> {
    let values: Vec<String> = fields
        .iter()
        .filter(|field| field.name == name)
        .map(|field| field.value.escape_ascii().to_string())
        .collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// Whether a list of tokens has that member.
pub fn has_member(fields: &[Field], name: &str, member: &str) -> bool {
    let list = joined(fields, name).unwrap_or_default().to_ascii_lowercase();
    list.split(',').any(|each| each.trim() == member)
}

/// What a connection received and was not read yet.
pub struct Reader<S> {
    pub stream: S,
    pub buffer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Reader<S> {
        Reader { stream, buffer: Vec::new() }
    }

    /// Reads more; an error at the end of the connection.
    pub async fn fill(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// A line that ends with CRLF, without it.
    pub async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return if line.contains(&b'\n') {
                    Err(malformed("a bare LF", &line))
                } else {
                    Ok(line)
                };
            }
            self.fill().await?;
        }
    }

    /// The fields of a head or of a trailer section, up to the empty line.
    pub async fn fields(&mut self) -> Result<Vec<Field>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let colon = line
                .iter()
                .position(|&byte| byte == b':')
                .ok_or_else(|| malformed("not a field", &line))?;
            let name =
                std::str::from_utf8(&line[..colon]).map_err(|_| malformed("not a name", &line))?;
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(malformed("not a name", &line));
            }
            fields.push(Field::new(name, line[colon + 1..].trim_ascii()));
        }
    }

    /// Appends so many bytes.
    pub async fn take(&mut self, count: usize, into: &mut Vec<u8>) -> Result<()> {
        let mut left = count;
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill().await?;
            }
            let now = left.min(self.buffer.len());
            into.extend(self.buffer.drain(..now));
            left -= now;
        }
        Ok(())
    }

    /// Appends a chunked body (RFC 9112 section 7.1); its trailer fields.
    pub async fn chunked(&mut self, into: &mut Vec<u8>) -> Result<Vec<Field>> {
        loop {
            let line = self.line().await?;
            let digits =
                line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
            let size = std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| usize::from_str_radix(digits, 16).ok());
            match size.ok_or_else(|| malformed("not a chunk size", &line))? {
                0 => return self.fields().await,
                size => self.take(size, into).await?,
            }
            let end = self.line().await?;
            if !end.is_empty() {
                return Err(malformed("behind a chunk", &end));
            }
        }
    }

    /// Appends everything up to the end of the connection; an error if that is a reset.
    pub async fn rest(&mut self, into: &mut Vec<u8>) -> Result<()> {
        loop {
            into.append(&mut self.buffer);
            match self.fill().await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Bytes that are not HTTP/1.
pub fn malformed(what: &str, bytes: &[u8]) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{what}: {:?}", bytes.escape_ascii().to_string()))
}
