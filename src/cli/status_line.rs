//! A single GET request of which only the status line of the response is read.

use std::io::{self, BufRead, BufReader, Read, Write};

/// A status line fits, and an error message that shows it stays short.
const MAX_STATUS_LINE_BYTES: u64 = 64;

/// Sends a GET request and returns the status line of the response.
pub(super) fn get(mut stream: impl Read + Write, host: &str, path: &str) -> io::Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.flush()?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_STATUS_LINE_BYTES)).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// The status code of a status line.
pub(super) fn code(status_line: &str) -> Option<u16> {
    let is_http = status_line.starts_with("HTTP/1.");
    status_line.split(' ').nth(1).filter(|_| is_http)?.parse().ok()
}
