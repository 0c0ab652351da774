//! PROXY protocol headers, versions 1 and 2, with which a load balancer states the address of its
//! client in front of a connection (HAProxy, `doc/proxy-protocol.txt`).
//!
//! [`parse`] reads a header from the beginning of a connection. It accepts one spelling only, so
//! that no two readers see different addresses. It performs no input or output and keeps no state.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// First bytes of version 1.
pub const V1_SIGNATURE: &[u8] = b"PROXY ";

/// First bytes of version 2.
pub const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Maximum length of a header of version 1, its line end included.
const V1_BYTES_MAX: usize = 107;

/// Length of signature, command, family and length of version 2.
const V2_HEAD_BYTES: usize = 16;

/// Maximum length of a header. Certificates in the extensions (TLVs) of version 2 take a few KiB.
pub const HEADER_BYTES_MAX: usize = 4096;

/// The address that a header states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Address of the client.
    Address(IpAddr),
    /// The connection is the load balancer's own (`LOCAL`, a health check), or the balancer does
    /// not know the client's address (`UNKNOWN`, other address families). The peer's address is
    /// used.
    Peer,
}

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub source: Source,
    /// Length of the header in bytes.
    pub length: usize,
}

/// Reason why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The bytes begin with neither signature.
    #[error("no PROXY header")]
    Missing,
    /// The bytes have a signature, and an invalid header follows.
    #[error("malformed PROXY header")]
    Malformed,
    /// The header is longer than [`HEADER_BYTES_MAX`], or than version 1 permits.
    #[error("PROXY header too long")]
    TooLong,
}

/// Parses the header at the beginning of a connection. `None`: more bytes are needed.
///
/// # Errors
///
/// The bytes are not a header.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    if bytes.starts_with(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if bytes.starts_with(V1_SIGNATURE) {
        parse_v1(bytes)
    } else if is_prefix_of_signature(bytes) {
        Ok(None)
    } else {
        Err(HeaderError::Missing)
    }
}

/// Whether the bytes begin like a header of either version. Of version 1 a part of the family is
/// included, so that a request with the method `PROXY` is not taken for a header.
pub fn has_signature(bytes: &[u8]) -> bool {
    let is_v1 = |rest: &[u8]| matches!(rest.first(), Some(b'T' | b'U'));
    bytes.strip_prefix(V1_SIGNATURE).is_some_and(is_v1) || bytes.starts_with(V2_SIGNATURE)
}

/// Whether the bytes are a part of either signature, so that more bytes decide.
fn is_prefix_of_signature(bytes: &[u8]) -> bool {
    V1_SIGNATURE.starts_with(bytes) || V2_SIGNATURE.starts_with(bytes)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    let searched = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = searched.iter().position(|byte| *byte == b'\n') else {
        let is_full = searched.len() == V1_BYTES_MAX;
        return if is_full { Err(HeaderError::TooLong) } else { Ok(None) };
    };
    let line = searched[..end].strip_suffix(b"\r").ok_or(HeaderError::Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Malformed)?;
    let source = read_line(line).ok_or(HeaderError::Malformed)?;
    Ok(Some(Header { source, length: end + 1 }))
}

/// Reads the line of version 1.
fn read_line(line: &str) -> Option<Source> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Receivers ignore the rest of the line.
        return Some(Source::Peer);
    }
    let parse_address: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return None,
    };
    let source = parse_address(words.next()?)?;
    parse_address(words.next()?)?;
    for _ in ["source", "destination"] {
        if !is_port(words.next()?) {
            return None;
        }
    }
    words.next().is_none().then_some(Source::Address(source))
}

/// Whether a text is a decimal port without leading zeros or a sign.
fn is_port(text: &str) -> bool {
    let has_canonical_form =
        text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    has_canonical_form && text.parse::<u16>().is_ok()
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    let Some((head, rest)) = bytes.split_first_chunk::<V2_HEAD_BYTES>() else { return Ok(None) };
    let [.., version_and_command, family, high, low] = *head;
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(HeaderError::Malformed),
    };
    let payload_length = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_HEAD_BYTES + payload_length;
    if length > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong);
    }
    let Some(payload) = rest.get(..payload_length) else { return Ok(None) };
    let source = if is_local { Source::Peer } else { read_addresses(family, payload)? };
    Ok(Some(Header { source, length }))
}

/// Reads the address block of version 2. The extensions behind it are skipped.
fn read_addresses(family: u8, payload: &[u8]) -> Result<Source, HeaderError> {
    const TCP4_BYTES: usize = 12;
    const TCP6_BYTES: usize = 36;
    const UNIX_BYTES: usize = 216;
    let source = match family {
        // Unspecified.
        0x00 => Some(Source::Peer),
        0x11 if payload.len() >= TCP4_BYTES => {
            payload.first_chunk::<4>().map(|octets| Source::Address(IpAddr::from(*octets)))
        }
        0x21 if payload.len() >= TCP6_BYTES => {
            payload.first_chunk::<16>().map(|octets| Source::Address(IpAddr::from(*octets)))
        }
        // A Unix socket has no address that the gateway could use.
        0x31 if payload.len() >= UNIX_BYTES => Some(Source::Peer),
        _ => None,
    };
    source.ok_or(HeaderError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Source {
        Source::Address(text.parse().unwrap())
    }

    fn v2(version_and_command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[version_and_command, family], &length, payload].concat()
    }

    /// The address block of TCP over IPv4.
    const BLOCK4: [u8; 12] = [198, 51, 100, 7, 10, 0, 0, 1, 0xc8, 0x22, 0, 80];

    #[test]
    fn header_of_version_1_states_the_source() {
        for (line, source) in [
            ("TCP4 198.51.100.7 10.0.0.1 51234 80", address("198.51.100.7")),
            ("TCP6 2001:db8::1 2001:db8::2 0 65535", address("2001:db8::1")),
            ("TCP6 ::ffff:198.51.100.7 ::1 1 2", address("::ffff:198.51.100.7")),
            ("UNKNOWN", Source::Peer),
            ("UNKNOWN ffff::1 anything 1 2", Source::Peer),
        ] {
            let header = format!("PROXY {line}\r\n");
            let expected = Header { source, length: header.len() };
            let bytes = format!("{header}GET / HTTP/1.1\r\n");
            assert_eq!(parse(bytes.as_bytes()), Ok(Some(expected)), "{line}");
        }
    }

    #[test]
    fn malformed_header_of_version_1_is_an_error() {
        for line in [
            "",
            "TCP",
            "tcp4 198.51.100.7 10.0.0.1 1 2",
            "TCP4 198.51.100.7 10.0.0.1 1",
            "TCP4 198.51.100.7 10.0.0.1 1 2 3",
            "TCP4  198.51.100.7 10.0.0.1 1 2",
            "TCP4 198.51.100.7 10.0.0.1 1 2 ",
            "TCP4 198.51.100.7 10.0.0.1 01 2",
            "TCP4 198.51.100.7 10.0.0.1 +1 2",
            "TCP4 198.51.100.7 10.0.0.1 65536 2",
            "TCP4 198.51.100.007 10.0.0.1 1 2",
            "TCP4 2001:db8::1 2001:db8::2 1 2",
            "TCP6 198.51.100.7 10.0.0.1 1 2",
            "TCP4 198.51.100.7 lan 1 2",
            "UDP4 198.51.100.7 10.0.0.1 1 2",
            "\u{e6}",
        ] {
            let header = format!("PROXY {line}\r\n");
            assert_eq!(parse(header.as_bytes()), Err(HeaderError::Malformed), "{line:?}");
        }
        assert_eq!(parse(b"PROXY UNKNOWN\n"), Err(HeaderError::Malformed));
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(parse(long.as_bytes()), Err(HeaderError::TooLong));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
        assert!(matches!(parse(longest.as_bytes()), Ok(Some(Header { length: 107, .. }))));
    }

    #[test]
    fn header_of_version_2_states_the_source() {
        let block6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 16], &[0; 4]].concat();
        let extensions = [&BLOCK4[..], &[3, 0, 4, 1, 2, 3, 4], &[0xff; 100]].concat();
        for (bytes, source) in [
            (v2(0x21, 0x11, &BLOCK4), address("198.51.100.7")),
            (v2(0x21, 0x11, &extensions), address("198.51.100.7")),
            (v2(0x21, 0x21, &block6), address("2001:db8::1")),
            (v2(0x21, 0x00, &[]), Source::Peer),
            (v2(0x21, 0x31, &[0; 216]), Source::Peer),
            (v2(0x20, 0x00, &[]), Source::Peer),
            (v2(0x20, 0x11, &BLOCK4), Source::Peer),
            (v2(0x20, 0xff, &[1, 2, 3]), Source::Peer),
        ] {
            let expected = Header { source, length: bytes.len() };
            let connection = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&connection), Ok(Some(expected)), "{bytes:?}");
        }
    }

    #[test]
    fn malformed_header_of_version_2_is_an_error() {
        for bytes in [
            v2(0x11, 0x11, &BLOCK4),
            v2(0x22, 0x11, &BLOCK4),
            v2(0x21, 0x11, &BLOCK4[..11]),
            v2(0x21, 0x21, &BLOCK4),
            v2(0x21, 0x12, &BLOCK4),
            v2(0x21, 0x41, &BLOCK4),
        ] {
            assert_eq!(parse(&bytes), Err(HeaderError::Malformed), "{bytes:?}");
        }
        let long = v2(0x21, 0x11, &[0; HEADER_BYTES_MAX - V2_HEAD_BYTES + 1]);
        assert_eq!(parse(&long[..V2_HEAD_BYTES]), Err(HeaderError::TooLong));
        let longest = v2(0x21, 0x11, &[0; HEADER_BYTES_MAX - V2_HEAD_BYTES]);
        assert!(matches!(parse(&longest), Ok(Some(_))));
    }

    #[test]
    fn other_bytes_are_no_header() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PROXY\t", b"\r\n\r\nG", b"PRI "]
        {
            assert_eq!(parse(bytes), Err(HeaderError::Missing), "{bytes:?}");
            assert!(!has_signature(bytes));
        }
    }

    proptest::proptest! {
        #[test]
        fn header_in_pieces_is_the_same_header(
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            family in proptest::sample::select(&[0x00_u8, 0x11, 0x21, 0x31, 0x12][..]),
            line in "(TCP4 198\\.51\\.100\\.7 10\\.0\\.0\\.1 [0-9]{1,5} 80|UNKNOWN[ -~]{0,90}|[ -~]{0,99})",
        ) {
            for bytes in [v2(0x21, family, &payload), format!("PROXY {line}\r\n").into_bytes()] {
                let whole = parse(&bytes);
                let first = (0..=bytes.len()).map(|end| parse(&bytes[..end])).find(|part| *part != Ok(None));
                proptest::prop_assert_eq!(first.unwrap_or(Ok(None)), whole);
            }
        }

        #[test]
        fn any_bytes_have_one_verdict(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(Some(header)) = parse(&bytes) {
                proptest::prop_assert!(header.length <= bytes.len() && has_signature(&bytes));
            }
        }
    }
}
