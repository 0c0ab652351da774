//! HPACK (RFC 7541): reads the field sections of HTTP/2 clients, and writes ones that leave no
//! state behind. Pure.
//!
//! h2 reads them too, but shows neither the pseudo-header fields of trailers nor a request that
//! pingora refuses.

use std::collections::VecDeque;
use std::sync::LazyLock;

/// The size of the dynamic table, in the sense of RFC 7541 section 4.1: what HTTP/2 begins with.
const TABLE_SIZE: usize = 4096;

/// What an entry counts beyond its name and value (section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Appendix B: the length of each symbol's code. The codes follow from the lengths, because the
/// code is canonical. The last one is EOS.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5,
    6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23,
    23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22,
    22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26,
    27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25,
    25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const SHORTEST: usize = 5;
const LONGEST: usize = 30;
const EOS: u16 = 256;

/// The field section is invalid: a connection error (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// The fields of a section, in their order.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    /// The end of each name and of its value.
    ends: Vec<(usize, usize)>,
    /// In the sense of SETTINGS_MAX_HEADER_LIST_SIZE.
    size: usize,
    limit: usize,
}

impl Fields {
    fn push(&mut self, name: &[u8], value: &[u8]) {
        self.size = self.size.saturating_add(name.len() + value.len() + ENTRY_OVERHEAD);
        if !self.is_too_large() {
            self.bytes.extend_from_slice(name);
            let name_end = self.bytes.len();
            self.bytes.extend_from_slice(value);
            self.ends.push((name_end, self.bytes.len()));
        }
    }

    /// Whether the section is larger than permitted. Fields beyond the limit are missing then.
    pub const fn is_too_large(&self) -> bool {
        self.size > self.limit
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts.zip(&self.ends).map(|(start, (name, value))| (&self.bytes[start..*name], &self.bytes[*name..*value]))
    }
}

/// A name and its value.
type Entry = (Box<[u8]>, Box<[u8]>);

/// The state of one connection.
#[derive(Debug)]
pub struct Decoder {
    /// The newest entry first.
    table: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { table: VecDeque::new(), size: 0, max_size: TABLE_SIZE }
    }
}

impl Decoder {
    /// Reads a whole field section. Beyond `limit` bytes of fields, only the state is kept up.
    ///
    /// # Errors
    /// It is invalid, and the state with it.
    pub fn decode(&mut self, mut section: &[u8], limit: usize) -> Result<Fields, Invalid> {
        let mut fields = Fields { limit, ..Fields::default() };
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut is_first = true;
        while let Some(&first) = section.first() {
            if first & 0xe0 == 0x20 {
                // Only at the beginning (section 4.2).
                let size = integer(&mut section, 5)?;
                if !is_first || size > TABLE_SIZE {
                    return Err(Invalid);
                }
                self.max_size = size;
                self.evict(0);
                continue;
            }
            is_first = false;
            if first & 0x80 != 0 {
                let index = integer(&mut section, 7)?;
                let (name, value) = self.entry(index)?;
                fields.push(name, value);
                continue;
            }
            let is_indexed = first & 0x40 != 0;
            name.clear();
            value.clear();
            match integer(&mut section, if is_indexed { 6 } else { 4 })? {
                0 => string(&mut section, &mut name)?,
                index => name.extend_from_slice(self.entry(index)?.0),
            }
            string(&mut section, &mut value)?;
            fields.push(&name, &value);
            if is_indexed {
                self.insert(&name, &value);
            }
        }
        Ok(fields)
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Invalid> {
        let index = index.checked_sub(1).ok_or(Invalid)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        self.table.get(index - STATIC.len()).map(|(name, value)| (&**name, &**value)).ok_or(Invalid)
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        self.evict(size);
        if size <= self.max_size {
            self.size += size;
            self.table.push_front((name.into(), value.into()));
        }
    }

    /// Makes room for an entry of that size; one that is larger than the table empties it (section
    /// 4.4).
    fn evict(&mut self, size: usize) {
        while self.size + size > self.max_size {
            let Some((name, value)) = self.table.pop_back() else { break };
            self.size -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }
}

/// An integer with a prefix of that many bits (section 5.1).
fn integer(section: &mut &[u8], prefix: u32) -> Result<usize, Invalid> {
    let (&first, rest) = section.split_first().ok_or(Invalid)?;
    *section = rest;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (&byte, rest) = section.split_first().ok_or(Invalid)?;
        *section = rest;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Invalid)
}

/// A string (section 5.2), appended.
fn string(section: &mut &[u8], into: &mut Vec<u8>) -> Result<(), Invalid> {
    let is_coded = section.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = integer(section, 7)?;
    let (text, rest) = section.split_at_checked(length).ok_or(Invalid)?;
    *section = rest;
    if is_coded {
        return decode_huffman(text, into);
    }
    into.extend_from_slice(text);
    Ok(())
}

/// The canonical code, by length: the first code, the first symbol's place, and the number of
/// symbols.
struct Code {
    symbols: Vec<u16>,
    by_length: [(u64, usize, u64); LONGEST + 1],
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut symbols: Vec<u16> = (0..=EOS).collect();
    symbols.sort_by_key(|symbol| (CODE_LENGTHS[usize::from(*symbol)], *symbol));
    let (mut by_length, mut next, mut place) = ([(0, 0, 0); LONGEST + 1], 0, 0);
    for (length, entry) in by_length.iter_mut().enumerate().skip(1) {
        next <<= 1;
        let count = symbols.iter().filter(|symbol| usize::from(CODE_LENGTHS[usize::from(**symbol)]) == length).count();
        *entry = (next, place, count as u64);
        next += count as u64;
        place += count;
    }
    Code { symbols, by_length }
});

fn decode_huffman(text: &[u8], into: &mut Vec<u8>) -> Result<(), Invalid> {
    let code = &*CODE;
    // At most 29 bits wait for the rest of their code.
    let (mut bits, mut count) = (0_u64, 0_usize);
    for byte in text {
        bits = (bits << 8) | u64::from(*byte);
        count += 8;
        let mut length = SHORTEST;
        while length <= count.min(LONGEST) {
            let (first, place, symbols) = code.by_length[length];
            let prefix = bits >> (count - length);
            if prefix.wrapping_sub(first) < symbols {
                let symbol = code.symbols[place + (prefix - first) as usize];
                into.push(u8::try_from(symbol).map_err(|_| Invalid)?);
                count -= length;
                bits &= (1 << count) - 1;
                length = SHORTEST;
            } else {
                length += 1;
            }
        }
    }
    // Padding: fewer than eight bits, all of them ones.
    if count < 8 && bits == (1 << count) - 1 { Ok(()) } else { Err(Invalid) }
}

/// Writes a field as a literal that enters no table, so that its reader needs no state.
pub fn encode(name: &[u8], value: &[u8], into: &mut Vec<u8>) {
    into.push(0);
    for text in [name, value] {
        let length = text.len();
        if length < 127 {
            into.push(length as u8);
        } else {
            into.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                into.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            into.push(rest as u8);
        }
        into.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn list(fields: &Fields) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        fields.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    /// RFC 7541 appendix C.4: three requests with Huffman coding on one connection.
    #[test]
    fn examples_of_the_standard_are_read() {
        let mut decoder = Decoder::default();
        let head = |path: &str, scheme: &str| {
            let fields = [(":method", "GET"), (":scheme", scheme), (":path", path), (":authority", "www.example.com")];
            fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
        };
        let more = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let first = decoder.decode(&hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"), 1000).unwrap();
        assert_eq!(list(&first), head("/", "http"));
        let second = decoder.decode(&hex("8286 84be 5886 a8eb 1064 9cbf"), 1000).unwrap();
        assert_eq!(list(&second), [head("/", "http"), vec![more("cache-control", "no-cache")]].concat());
        let third = decoder.decode(&hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"), 1000).unwrap();
        let expected = [head("/index.html", "https"), vec![more("custom-key", "custom-value")]].concat();
        assert_eq!(list(&third), expected);
        assert_eq!((decoder.size, decoder.table.len()), (164, 3));
    }

    #[test]
    fn table_is_bounded_and_can_be_resized() {
        let mut decoder = Decoder::default();
        let field = |length: usize| {
            let mut section = Vec::new();
            encode(b"x", &vec![b'y'; length], &mut section);
            section[0] = 0x40;
            section
        };
        for _ in 0..100 {
            decoder.decode(&field(1000), 1 << 20).unwrap();
        }
        assert_eq!((decoder.table.len(), decoder.size), (3, 3 * 1033));
        decoder.decode(&field(5000), 1 << 20).unwrap();
        assert_eq!((decoder.table.len(), decoder.size), (0, 0), "an entry larger than the table empties it");
        decoder.decode(&field(1000), 1 << 20).unwrap();
        decoder.decode(&[0x20], 1 << 20).unwrap();
        assert_eq!(decoder.table.len(), 0);
        decoder.decode(&field(1), 1 << 20).unwrap();
        assert_eq!(decoder.table.len(), 0, "a table of no size");
    }

    #[test]
    fn fields_beyond_the_limit_are_counted_and_not_kept() {
        let mut decoder = Decoder::default();
        let mut section = Vec::new();
        encode(b"x", &[b'y'; 4000], &mut section);
        section[0] = 0x40;
        section.extend_from_slice(&[0xbe; 10_000]);
        let fields = decoder.decode(&section, 64 << 10).unwrap();
        assert!(fields.is_too_large() && fields.bytes.len() <= 64 << 10);
        assert!(!decoder.decode(&[0xbe], 64 << 10).unwrap().is_too_large());
    }

    #[test]
    fn invalid_sections_are_refused() {
        for section in [
            "80",               // index 0
            "be",               // an entry that does not exist
            "ff80808080 01",    // an integer without end
            "40",               // no name
            "00 01",            // half a name
            "00 0161 05 62",    // half a value
            "82 20",            // a size behind a field
            "3fe21f",           // a size above the limit
            "00 8100 00",       // padding of zeros
            "00 84ffffffff 00", // EOS
            "00 82 1fff 00",    // padding of eight bits and more
        ] {
            assert!(Decoder::default().decode(&hex(section), 1000).is_err(), "{section}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 60_000] {
            let (name, value) = (vec![b'n'; length.max(1)], vec![b'v'; length]);
            let mut section = Vec::new();
            encode(&name, &value, &mut section);
            let fields = Decoder::default().decode(&section, 1 << 20).unwrap();
            assert_eq!(fields.iter().collect::<Vec<_>>(), [(&*name, &*value)]);
        }
    }
}
