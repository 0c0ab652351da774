//! A single GET request of which only the status line of the response is read.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::clock;

/// A status line fits, and an error message that shows it stays short.
const MAX_STATUS_LINE_BYTES: u64 = 64;

/// A connection with one deadline for all its reads and writes together: with a timeout for each of
/// them, a peer that sends single bytes could prolong the exchange.
pub(super) struct DeadlineStream {
    stream: TcpStream,
    deadline: Instant,
}

impl DeadlineStream {
    pub(super) fn new(stream: TcpStream, timeout: Duration) -> Self {
        DeadlineStream { stream, deadline: clock::now() + timeout }
    }

    /// Sets a new deadline, for the next exchange.
    pub(super) fn restart(&mut self, timeout: Duration) {
        self.deadline = clock::now() + timeout;
    }

    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.deadline.saturating_duration_since(clock::now());
        if remaining.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(remaining) }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        self.stream.read(buffer)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.remaining()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::super::parent_death::pause;
    use super::*;

    #[test]
    fn response_in_single_bytes_ends_at_the_deadline() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b"1").is_ok() {
                pause(Duration::from_millis(10));
            }
        });
        let connection = TcpStream::connect(address).unwrap();
        let stream = DeadlineStream::new(connection, Duration::from_millis(100));
        let error = get(stream, "127.0.0.1", "/").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
        server.join().unwrap();
    }
}
