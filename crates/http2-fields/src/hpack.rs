//! HPACK (RFC 7541): a decoder of field sections, and an encoder that needs no state.
//!
//! h2 decodes them too, but shows neither the pseudo-header fields of trailers nor a request that
//! it refuses.

use std::collections::VecDeque;
use std::sync::LazyLock;

use crate::verdict::{Field, FieldKind};

/// Maximum size of the dynamic table as RFC 7541 section 4.1 counts it: the initial value of
/// HTTP/2.
const TABLE_SIZE: usize = 4096;

/// Size of an entry beyond its name and value (section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The static table (appendix A).
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

/// Length of each symbol's Huffman code (appendix B). The codes follow from the lengths, because
/// the code is canonical. The last symbol is EOS.
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

const CODE_LENGTH_MIN: usize = 5;
const CODE_LENGTH_MAX: usize = 30;
const EOS: u16 = 256;

/// An invalid field section: a connection error (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid HPACK field section")]
pub struct InvalidSection;

/// The fields of a section, in their order.
#[derive(Debug, Default)]
pub struct Fields {
    /// Names and values, one after another.
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// Size as SETTINGS_MAX_HEADER_LIST_SIZE counts it.
    size: usize,
    limit: usize,
}

/// Ends of a field's name and value in [`Fields::bytes`]. The next field begins at `end`.
#[derive(Clone, Copy, Debug)]
struct Span {
    name_end: usize,
    end: usize,
    kind: FieldKind,
}

impl Fields {
    /// Removes all fields. Fields beyond `limit` bytes are counted and not stored.
    pub fn clear(&mut self, limit: usize) {
        self.bytes.clear();
        self.spans.clear();
        (self.size, self.limit) = (0, limit);
    }

    /// Allocated bytes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() + self.spans.capacity() * size_of::<Span>()
    }

    fn push(&mut self, field: Field<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(field.name);
        self.bytes.extend_from_slice(field.value);
        self.finish_field(start, start + field.name.len(), field.kind);
    }

    /// Ends a field whose bytes begin at `start`.
    fn finish_field(&mut self, start: usize, name_end: usize, kind: FieldKind) {
        let end = self.bytes.len();
        self.size = self.size.saturating_add(end - start + ENTRY_OVERHEAD);
        if self.is_too_large() {
            self.bytes.truncate(start);
        } else {
            self.spans.push(Span { name_end, end, kind });
        }
    }

    /// Whether the section exceeds the limit. Then the fields beyond it are missing.
    pub const fn is_too_large(&self) -> bool {
        self.size > self.limit
    }

    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        let starts = std::iter::once(0).chain(self.spans.iter().map(|span| span.end));
        starts.zip(&self.spans).map(|(start, span)| Field {
            name: &self.bytes[start..span.name_end],
            value: &self.bytes[span.name_end..span.end],
            kind: span.kind,
        })
    }
}

/// The dynamic table. Its entries share one buffer; each is classified once, at insertion.
#[derive(Debug)]
struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// Number of bytes removed in front of `bytes`.
    removed: usize,
    size: usize,
    max_size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Offset from the first byte that was ever inserted.
    start: usize,
    name_len: usize,
    value_len: usize,
    kind: FieldKind,
}

impl Entry {
    const fn size(&self) -> usize {
        self.name_len + self.value_len + ENTRY_OVERHEAD
    }
}

impl Table {
    const fn new() -> Self {
        Table {
            entries: VecDeque::new(),
            bytes: Vec::new(),
            removed: 0,
            size: 0,
            max_size: TABLE_SIZE,
        }
    }

    fn get(&self, index: usize) -> Option<Field<'_>> {
        let entry = self.entries.get(index)?;
        let (name, rest) = self.bytes[entry.start - self.removed..].split_at(entry.name_len);
        Some(Field { name, value: &rest[..entry.value_len], kind: entry.kind })
    }

    fn insert(&mut self, field: Field<'_>) {
        let start = self.removed + self.bytes.len();
        let entry = Entry {
            start,
            name_len: field.name.len(),
            value_len: field.value.len(),
            kind: field.kind,
        };
        self.evict(entry.size());
        if entry.size() > self.max_size {
            return;
        }
        self.size += entry.size();
        self.entries.push_front(entry);
        self.bytes.extend_from_slice(field.name);
        self.bytes.extend_from_slice(field.value);
    }

    /// Evicts entries until one of `size` fits. A larger one than the table empties it (section
    /// 4.4).
    fn evict(&mut self, size: usize) {
        while self.size + size > self.max_size {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
        let first =
            self.entries.back().map_or(self.removed + self.bytes.len(), |entry| entry.start);
        let unused = first - self.removed;
        // Not at each eviction: draining moves the remaining bytes.
        if unused >= TABLE_SIZE / 2 {
            self.bytes.drain(..unused);
            self.removed = first;
        }
    }
}

/// The decoder of one connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { table: Table::new() }
    }
}

impl Decoder {
    /// Decodes a whole field section into `fields`.
    ///
    /// # Errors
    ///
    /// The section is invalid. The decoder cannot be used any more.
    pub fn decode(
        &mut self,
        mut section: &[u8],
        fields: &mut Fields,
    ) -> Result<(), InvalidSection> {
        let mut is_first = true;
        while let Some(&first) = section.first() {
            if first & 0xe0 == 0x20 {
                // A size update is permitted at the beginning only (section 4.2).
                let size = decode_integer(&mut section, 5)?;
                if !is_first || size > TABLE_SIZE {
                    return Err(InvalidSection);
                }
                self.table.max_size = size;
                self.table.evict(0);
                continue;
            }
            is_first = false;
            if first & 0x80 != 0 {
                let index = decode_integer(&mut section, 7)?;
                fields.push(self.entry(index)?);
                continue;
            }
            let is_indexed = first & 0x40 != 0;
            let start = fields.bytes.len();
            match decode_integer(&mut section, if is_indexed { 6 } else { 4 })? {
                0 => decode_string(&mut section, &mut fields.bytes)?,
                index => fields.bytes.extend_from_slice(self.entry(index)?.name),
            }
            let name_end = fields.bytes.len();
            decode_string(&mut section, &mut fields.bytes)?;
            let field = Field::new(&fields.bytes[start..name_end], &fields.bytes[name_end..]);
            if is_indexed {
                self.table.insert(field);
            }
            let kind = field.kind;
            fields.finish_field(start, name_end, kind);
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<Field<'_>, InvalidSection> {
        let index = index.checked_sub(1).ok_or(InvalidSection)?;
        match index.checked_sub(STATIC.len()) {
            None => Ok(STATIC_FIELDS[index]),
            Some(index) => self.table.get(index).ok_or(InvalidSection),
        }
    }
}

/// The static table with each field classified.
static STATIC_FIELDS: LazyLock<[Field<'static>; STATIC.len()]> =
    LazyLock::new(|| STATIC.map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes())));

/// Reads an integer with a prefix of `prefix` bits (section 5.1).
fn decode_integer(section: &mut &[u8], prefix: u32) -> Result<usize, InvalidSection> {
    let (&first, rest) = section.split_first().ok_or(InvalidSection)?;
    *section = rest;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (&byte, rest) = section.split_first().ok_or(InvalidSection)?;
        *section = rest;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(InvalidSection)
}

/// Appends a string (section 5.2) to `into`.
fn decode_string(section: &mut &[u8], into: &mut Vec<u8>) -> Result<(), InvalidSection> {
    let is_coded = section.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = decode_integer(section, 7)?;
    let (text, rest) = section.split_at_checked(length).ok_or(InvalidSection)?;
    *section = rest;
    if is_coded {
        return decode_huffman(text, into);
    }
    into.extend_from_slice(text);
    Ok(())
}

/// The canonical Huffman code.
struct HuffmanCode {
    /// Symbols in the order of their codes.
    symbols: Vec<u16>,
    by_length: [CodesOfLength; CODE_LENGTH_MAX + 1],
}

/// The codes of one length: a run of numbers.
#[derive(Clone, Copy, Default)]
struct CodesOfLength {
    first_code: u64,
    /// Index of the first symbol in [`HuffmanCode::symbols`].
    first_symbol: usize,
    count: u64,
}

static CODE: LazyLock<HuffmanCode> = LazyLock::new(|| {
    let mut symbols: Vec<u16> = (0..=EOS).collect();
    symbols.sort_by_key(|symbol| (CODE_LENGTHS[usize::from(*symbol)], *symbol));
    let mut by_length = [CodesOfLength::default(); CODE_LENGTH_MAX + 1];
    let mut next = CodesOfLength::default();
    for (length, codes) in by_length.iter_mut().enumerate().skip(1) {
        let has_length = |symbol: &&u16| usize::from(CODE_LENGTHS[usize::from(**symbol)]) == length;
        next.first_code <<= 1;
        next.count = symbols.iter().filter(has_length).count() as u64;
        *codes = next;
        next.first_code += next.count;
        next.first_symbol += next.count as usize;
    }
    HuffmanCode { symbols, by_length }
});

/// Symbol and length of the code that the index's eight bits begin with. The length is 0 if the
/// code is longer.
static SHORT_CODES: LazyLock<[(u8, u8); 256]> = LazyLock::new(|| {
    let mut codes = [(0, 0); 256];
    for (first, code) in (0_u64..).zip(&mut codes) {
        for length in CODE_LENGTH_MIN..=8 {
            if let Some(symbol) = symbol_of(first << 56, length) {
                *code = (
                    u8::try_from(symbol).unwrap_or_default(),
                    u8::try_from(length).unwrap_or_default(),
                );
            }
        }
    }
    codes
});

/// Returns the symbol whose code is the upper `length` bits.
fn symbol_of(bits: u64, length: usize) -> Option<u16> {
    let codes = CODE.by_length[length];
    let offset = (bits >> (64 - length)).wrapping_sub(codes.first_code);
    (offset < codes.count).then(|| CODE.symbols[codes.first_symbol + offset as usize])
}

/// Appends a Huffman-coded string to `into`.
fn decode_huffman(mut text: &[u8], into: &mut Vec<u8>) -> Result<(), InvalidSection> {
    let short_codes = &*SHORT_CODES;
    let start = into.len();
    // No code is shorter than five bits.
    into.resize(start + text.len() * 8 / CODE_LENGTH_MIN, 0);
    let mut free = into[start..].iter_mut();
    // The next bit is the uppermost.
    let (mut bits, mut count) = (0_u64, 0_usize);
    loop {
        if count <= 32 {
            if let Some((four, rest)) = text.split_first_chunk() {
                bits |= u64::from(u32::from_be_bytes(*four)) << (32 - count);
                count += 32;
                text = rest;
            } else {
                for byte in std::mem::take(&mut text) {
                    bits |= u64::from(*byte) << (56 - count);
                    count += 8;
                }
            }
        }
        let (mut symbol, length) = short_codes[(bits >> 56) as usize];
        let mut length = usize::from(length);
        if length == 0 || length > count {
            let Some(long) =
                (9..=CODE_LENGTH_MAX.min(count)).find(|length| symbol_of(bits, *length).is_some())
            else {
                break;
            };
            length = long;
            symbol = symbol_of(bits, length)
                .and_then(|symbol| u8::try_from(symbol).ok())
                .ok_or(InvalidSection)?;
        }
        *free.next().ok_or(InvalidSection)? = symbol;
        bits <<= length;
        count -= length;
    }
    let unused = free.len();
    into.truncate(into.len() - unused);
    // Padding is shorter than eight bits and all ones (section 5.2).
    let is_padding = count < 8 && (count == 0 || bits >> (64 - count) == (1 << count) - 1);
    if is_padding { Ok(()) } else { Err(InvalidSection) }
}

/// Appends a field as a literal that is not indexed, so that its decoder needs no state.
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
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn list(fields: &Fields) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        fields.iter().map(|field| (text(field.name), text(field.value))).collect()
    }

    fn decode(
        decoder: &mut Decoder,
        section: &[u8],
        limit: usize,
    ) -> Result<Fields, InvalidSection> {
        let mut fields = Fields::default();
        fields.clear(limit);
        decoder.decode(section, &mut fields).map(|()| fields)
    }

    /// RFC 7541 appendix C.4: three requests with Huffman coding on one connection.
    #[test]
    fn rfc_7541_examples_are_decoded() {
        let mut decoder = Decoder::default();
        let head = |path: &str, scheme: &str| {
            let fields = [
                (":method", "GET"),
                (":scheme", scheme),
                (":path", path),
                (":authority", "www.example.com"),
            ];
            fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
        };
        let more = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let first =
            decode(&mut decoder, &hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"), 1000).unwrap();
        assert_eq!(list(&first), head("/", "http"));
        let second = decode(&mut decoder, &hex("8286 84be 5886 a8eb 1064 9cbf"), 1000).unwrap();
        assert_eq!(
            list(&second),
            [head("/", "http"), vec![more("cache-control", "no-cache")]].concat()
        );
        let third = decode(
            &mut decoder,
            &hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"),
            1000,
        )
        .unwrap();
        let expected =
            [head("/index.html", "https"), vec![more("custom-key", "custom-value")]].concat();
        assert_eq!(list(&third), expected);
        assert_eq!((decoder.table.size, decoder.table.entries.len()), (164, 3));
    }

    /// Every symbol, in codes of every length, at every place within a byte.
    #[test]
    fn huffman_code_at_every_bit_offset_is_decoded() {
        let code = &*CODE;
        let codes: Vec<(u64, usize)> = (0..256_u16)
            .map(|symbol| {
                let length = usize::from(CODE_LENGTHS[usize::from(symbol)]);
                let codes = code.by_length[length];
                let symbols = &code.symbols[codes.first_symbol..];
                let at = symbols.iter().position(|other| *other == symbol).unwrap();
                (codes.first_code + at as u64, length)
            })
            .collect();
        for before in 0..9 {
            for symbol in 0..=255_u8 {
                let text: Vec<u8> = [vec![b'e'; before], vec![symbol], b"ab~".to_vec()].concat();
                let (mut coded, mut bits, mut count) = (Vec::new(), 0_u64, 0);
                for byte in &text {
                    let (code, length) = codes[usize::from(*byte)];
                    (bits, count) = ((bits << length) | code, count + length);
                    while count >= 8 {
                        count -= 8;
                        coded.push((bits >> count) as u8);
                    }
                }
                if count > 0 {
                    coded.push(((bits << (8 - count)) as u8) | (0xff >> count));
                }
                let mut read = b"kept".to_vec();
                decode_huffman(&coded, &mut read).unwrap();
                assert_eq!(read, [&b"kept"[..], &text].concat(), "{symbol} behind {before}");
            }
        }
    }

    #[test]
    fn dynamic_table_is_bounded_and_resizable() {
        let mut decoder = Decoder::default();
        let field = |length: usize| {
            let mut section = Vec::new();
            encode(b"x", &vec![b'y'; length], &mut section);
            section[0] = 0x40;
            section
        };
        for _ in 0..100 {
            decode(&mut decoder, &field(1000), 1 << 20).unwrap();
        }
        assert_eq!((decoder.table.entries.len(), decoder.table.size), (3, 3 * 1033));
        decode(&mut decoder, &field(5000), 1 << 20).unwrap();
        assert_eq!(
            (decoder.table.entries.len(), decoder.table.size),
            (0, 0),
            "an entry larger than the table empties it"
        );
        decode(&mut decoder, &field(1000), 1 << 20).unwrap();
        decode(&mut decoder, &[0x20], 1 << 20).unwrap();
        assert_eq!(decoder.table.entries.len(), 0);
        decode(&mut decoder, &field(1), 1 << 20).unwrap();
        assert_eq!(decoder.table.entries.len(), 0, "a table of no size");
    }

    #[test]
    fn dynamic_table_uses_at_most_twice_its_size() {
        let mut decoder = Decoder::default();
        for number in 0..10_000_usize {
            let mut section = Vec::new();
            encode(format!("x-{number}").as_bytes(), &vec![b'y'; number % 300], &mut section);
            section[0] = 0x40;
            decode(&mut decoder, &section, 1 << 20).unwrap();
            let newest = decoder.entry(STATIC.len() + 1).unwrap();
            assert_eq!(
                (newest.name, newest.value.len()),
                (format!("x-{number}").as_bytes(), number % 300)
            );
            let oldest = decoder.table.get(decoder.table.entries.len() - 1).unwrap();
            assert!(
                oldest.name.starts_with(b"x-") && oldest.value.iter().all(|byte| *byte == b'y')
            );
            assert!(
                decoder.table.bytes.len() <= 2 * TABLE_SIZE && decoder.table.size <= TABLE_SIZE
            );
        }
    }

    #[test]
    fn field_beyond_the_limit_is_counted_and_not_stored() {
        let mut decoder = Decoder::default();
        let mut section = Vec::new();
        encode(b"x", &[b'y'; 4000], &mut section);
        section[0] = 0x40;
        section.extend_from_slice(&[0xbe; 10_000]);
        let fields = decode(&mut decoder, &section, 64 << 10).unwrap();
        assert!(fields.is_too_large() && fields.bytes.len() <= 64 << 10);
        assert!(!decode(&mut decoder, &[0xbe], 64 << 10).unwrap().is_too_large());
    }

    #[test]
    fn invalid_section_is_refused() {
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
            "00 81ff 00",       // nothing but padding of eight bits
        ] {
            assert!(decode(&mut Decoder::default(), &hex(section), 1000).is_err(), "{section}");
        }
    }

    #[test]
    fn encoded_field_is_decoded() {
        for length in [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 60_000] {
            let (name, value) = (vec![b'n'; length.max(1)], vec![b'v'; length]);
            let mut section = Vec::new();
            encode(&name, &value, &mut section);
            let fields = decode(&mut Decoder::default(), &section, 1 << 20).unwrap();
            let read: Vec<_> = fields.iter().map(|field| (field.name, field.value)).collect();
            assert_eq!(read, [(&*name, &*value)]);
        }
    }
}
