//! A second reading of HTTP/1.1 responses, by RFC 9112 and the strictness that `crates/http1`
//! states: whole lines of text instead of single bytes. It shares no code with the first.

/// Maximum length of a head, and of fields in it.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
pub const MAX_HEAD_FIELDS: usize = 256;

/// Why a response is refused. What hyper accepts all the same: [`Refusal::is_strictness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not `HTTP/1.` at the beginning.
    NotHttp,
    /// An empty line before the status line.
    LeadingLineEnd,
    /// A bare LF as a line end; hyper reads it like CRLF.
    BareLf,
    /// A CR without LF, or a NUL.
    BareCr,
    /// The status line or a field line is not what the grammar says.
    Syntax,
    HeadTooLong,
    TooManyFields,
    /// A status code below 100.
    StatusTooLow,
    /// A status code above 599; hyper reads up to 999.
    StatusTooHigh,
    /// Several or odd lengths, several codings or other ones than `chunked`, both, or a coding in
    /// HTTP/1.0. hyper reads equal lengths as one, prefers the coding to the length, reads up to
    /// the end of the connection if the coding is another one, and looks at neither where no body
    /// can follow.
    AmbiguousFraming,
    /// A 1xx response with a length or a coding, which hyper does not look at.
    InterimBody,
    /// A chunk size without a digit.
    NoChunkSize,
    /// More than 15 digits; hyper reads leading zeros without end.
    LongChunkSize,
    /// Blanks behind a chunk size that no extension follows, which hyper skips.
    BlankChunkSize,
    /// An extension that is not what the grammar says; hyper skips everything up to CR.
    ChunkExtension,
    /// A chunk line of more than 4096 bytes.
    LongChunkLine,
    /// More than 16 KiB of extensions; hyper counts neither the first `;` nor blanks before it.
    LongExtensions,
    /// No CRLF behind the data of a chunk.
    ChunkEnd,
    /// A trailer that is not a field line.
    TrailerSyntax,
    /// More than 8 KiB or 100 trailers; hyper reads 16 KiB.
    LongTrailers,
}

impl Refusal {
    /// Whether hyper may accept what is refused for this reason.
    pub fn is_strictness(self) -> bool {
        use Refusal::*;
        match self {
            LeadingLineEnd | BareLf | HeadTooLong | StatusTooHigh | AmbiguousFraming
            | InterimBody | LongChunkSize | BlankChunkSize | ChunkExtension | LongChunkLine
            | LongExtensions | LongTrailers => true,
            NotHttp | BareCr | Syntax | TooManyFields | StatusTooLow | NoChunkSize | ChunkEnd
            | TrailerSyntax => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// A name in lower case, and a value with one character for each byte.
pub type Field = (String, String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub length: usize,
    pub is_old: bool,
    pub status: u16,
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub is_persistent: bool,
}

/// What a reader finds at the beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<T> {
    Whole(T),
    Refused(Refusal),
    /// The end is not there yet, and no line that is there is wrong.
    Unfinished,
}

/// Reads a response head; `method` is that of the request.
pub fn head(bytes: &[u8], method: &str) -> Reading<Head> {
    let beginning = &b"HTTP/1."[..bytes.len().min(7)];
    if !bytes.starts_with(beginning) {
        let is_line_end = matches!(bytes[0], b'\r' | b'\n');
        return Reading::Refused(if is_line_end {
            Refusal::LeadingLineEnd
        } else {
            Refusal::NotHttp
        });
    }
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.map_or(usize::MAX, |at| at + 4);
    let scanned = &bytes[..end.min(bytes.len()).min(MAX_HEAD_BYTES)];
    if let Some(refusal) = line_end_fault(scanned) {
        return Reading::Refused(refusal);
    }
    if end > MAX_HEAD_BYTES {
        let is_full = scanned.len() == MAX_HEAD_BYTES;
        return if is_full { Reading::Refused(Refusal::HeadTooLong) } else { Reading::Unfinished };
    }
    match whole_head(&bytes[..end], method) {
        Ok(head) => Reading::Whole(head),
        Err(refusal) => Reading::Refused(refusal),
    }
}

/// The first CR, LF or NUL that is not part of a CRLF. A CR at the very end may become one.
pub fn line_end_fault(bytes: &[u8]) -> Option<Refusal> {
    bytes.iter().enumerate().find_map(|(at, byte)| match byte {
        0 => Some(Refusal::BareCr),
        b'\n' if at == 0 || bytes[at - 1] != b'\r' => Some(Refusal::BareLf),
        b'\r' if at + 1 < bytes.len() && bytes[at + 1] != b'\n' => Some(Refusal::BareCr),
        _ => None,
    })
}

fn whole_head(bytes: &[u8], method: &str) -> Result<Head, Refusal> {
    let text = latin1(bytes);
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().ok_or(Refusal::Syntax)?;
    let (version, rest) = line.split_at_checked(8).ok_or(Refusal::Syntax)?;
    let is_old = match version {
        "HTTP/1.0" => true,
        "HTTP/1.1" => false,
        _ => return Err(Refusal::Syntax),
    };
    let rest = rest.strip_prefix(' ').ok_or(Refusal::Syntax)?;
    let (code, reason) = rest.split_at_checked(3).ok_or(Refusal::Syntax)?;
    let is_reason = reason.is_empty() || reason.starts_with(' ') && reason.chars().all(is_text);
    if !code.chars().all(|c| c.is_ascii_digit()) || !is_reason {
        return Err(Refusal::Syntax);
    }
    let fields = lines.map(field).collect::<Option<Vec<_>>>().ok_or(Refusal::Syntax)?;
    if fields.len() > MAX_HEAD_FIELDS {
        return Err(Refusal::TooManyFields);
    }
    let status = code.parse().map_err(|_| Refusal::Syntax)?;
    match status {
        0..100 => return Err(Refusal::StatusTooLow),
        600.. => return Err(Refusal::StatusTooHigh),
        _ => {}
    }
    let announced = announced(&fields, is_old)?;
    let announces_body = !matches!(announced, Framing::UntilClose | Framing::Length(0));
    let is_interim = status < 200 && status != 101;
    if is_interim && announces_body {
        return Err(Refusal::InterimBody);
    }
    let has_no_body = status < 200 || status == 204 || status == 304 || method == "HEAD";
    let framing = match announced {
        _ if has_no_body => Framing::None,
        Framing::Length(0) => Framing::None,
        other => other,
    };
    let ends = framing == Framing::UntilClose
        || method == "HEAD"
        || status == 101
        || (has_no_body && announces_body);
    let is_persistent = !ends && keeps_alive(&fields, is_old);
    Ok(Head { length: bytes.len(), is_old, status, fields, framing, is_persistent })
}

pub fn field(line: &str) -> Option<Field> {
    let (name, value) = line.split_once(':')?;
    let value = value.trim_matches([' ', '\t']);
    let is_field = is_token(name) && value.chars().all(is_text);
    is_field.then(|| (name.to_ascii_lowercase(), value.to_owned()))
}

/// `UntilClose` if nothing is announced.
pub fn announced(fields: &[Field], is_old: bool) -> Result<Framing, Refusal> {
    let values = |wanted: &str| -> Vec<&str> {
        let matching = fields.iter().filter(|(name, _)| name == wanted);
        matching.map(|(_, value)| value.as_str()).collect()
    };
    match (&values("content-length")[..], &values("transfer-encoding")[..]) {
        ([], []) => Ok(Framing::UntilClose),
        ([length], []) if length.len() <= 18 && length.chars().all(|c| c.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| Refusal::AmbiguousFraming)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") && !is_old => Ok(Framing::Chunked),
        _ => Err(Refusal::AmbiguousFraming),
    }
}

pub fn keeps_alive(fields: &[Field], is_old: bool) -> bool {
    let options: Vec<String> = fields
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| value.split(','))
        .map(|option| option.trim_matches([' ', '\t']).to_ascii_lowercase())
        .filter(|option| !option.is_empty())
        .collect();
    let has = |wanted: &str| options.iter().any(|option| option == wanted);
    let is_odd = options.iter().any(|option| !is_token(option));
    !has("close") && !is_odd && (!is_old || has("keep-alive"))
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkedBody {
    pub length: usize,
    pub data: Vec<u8>,
    pub trailers: Vec<Field>,
}

/// Reads a chunked body.
pub fn chunked(bytes: &[u8]) -> Reading<ChunkedBody> {
    let mut body = ChunkedBody::default();
    let mut rest = bytes;
    let mut extensions = 0;
    loop {
        let Some((line, behind)) = next_line(rest) else { return unfinished_line(rest) };
        let (size, extension) = match size_line(&line) {
            Ok(read) => read,
            Err(refusal) => return Reading::Refused(refusal),
        };
        extensions += extension;
        if extensions > 16 << 10 {
            return Reading::Refused(Refusal::LongExtensions);
        }
        rest = behind;
        if size == 0 {
            break;
        }
        let available = rest.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        body.data.extend_from_slice(&rest[..available]);
        if (available as u64) < size {
            return Reading::Unfinished;
        }
        rest = match &rest[available..] {
            [b'\r', b'\n', behind @ ..] => behind,
            [] | [b'\r'] => return Reading::Unfinished,
            _ => return Reading::Refused(Refusal::ChunkEnd),
        };
    }
    let mut trailer_bytes = 0;
    loop {
        let Some((line, behind)) = next_line(rest) else { return unfinished_line(rest) };
        rest = behind;
        if line.is_empty() {
            body.length = bytes.len() - rest.len();
            return Reading::Whole(body);
        }
        let Some(trailer) = field(&line) else {
            return Reading::Refused(trailer_refusal(&line));
        };
        trailer_bytes += line.chars().count() + 2;
        if line.chars().count() + 2 > 4096 {
            return Reading::Refused(Refusal::LongChunkLine);
        }
        body.trailers.push(trailer);
        if trailer_bytes > 8 << 10 || body.trailers.len() > 100 {
            return Reading::Refused(Refusal::LongTrailers);
        }
    }
}

/// hyper reads a trailer that holds a bare LF as two.
fn trailer_refusal(line: &str) -> Refusal {
    if line.contains('\n') { Refusal::BareLf } else { Refusal::TrailerSyntax }
}

fn unfinished_line<T>(rest: &[u8]) -> Reading<T> {
    if rest.len() >= 4096 { Reading::Refused(Refusal::LongChunkLine) } else { Reading::Unfinished }
}

/// Up to the first CRLF.
fn next_line(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((latin1(&bytes[..end]), &bytes[end + 2..]))
}

/// The size of a chunk and the length of its extensions.
fn size_line(line: &str) -> Result<(u64, usize), Refusal> {
    let length = line.chars().count();
    let digits = line.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extensions) = line.split_at(digits);
    if size.is_empty() {
        return Err(Refusal::NoChunkSize);
    }
    if !extensions.is_empty() {
        let is_blank = extensions.chars().all(|c| matches!(c, ' ' | '\t'));
        if is_blank {
            return Err(Refusal::BlankChunkSize);
        }
        if !are_extensions(extensions) {
            return Err(Refusal::ChunkExtension);
        }
    }
    if length + 2 > 4096 {
        return Err(Refusal::LongChunkLine);
    }
    if size.len() > 15 {
        return Err(Refusal::LongChunkSize);
    }
    let size = u64::from_str_radix(size, 16).map_err(|_| Refusal::NoChunkSize)?;
    Ok((size, length - digits))
}

/// `*( BWS ";" BWS name [ BWS "=" BWS value ] )`, split at the semicolons outside of quotes.
fn are_extensions(text: &str) -> bool {
    let mut pieces = vec![String::new()];
    let (mut is_quoted, mut is_escaped) = (false, false);
    for character in text.chars() {
        if character == ';' && !is_quoted {
            pieces.push(String::new());
            continue;
        }
        if character == '"' && !is_escaped {
            is_quoted = !is_quoted;
        }
        is_escaped = is_quoted && character == '\\' && !is_escaped;
        pieces.last_mut().expect("at least one piece").push(character);
    }
    let blanks = [' ', '\t'];
    let last = pieces.len() - 1;
    // Blanks are bad whitespace before a semicolon, and nothing at the end of the line.
    let end = |(at, piece): (usize, &String)| -> String {
        if at < last { piece.trim_end_matches(blanks).to_owned() } else { piece.clone() }
    };
    let pieces: Vec<String> = pieces.iter().enumerate().map(end).collect();
    !is_quoted
        && last > 0
        && pieces[0].is_empty()
        && pieces[1..].iter().all(|piece| {
            let piece = piece.trim_start_matches(blanks);
            match piece.split_once('=') {
                None => is_token(piece),
                Some((name, value)) => {
                    let value = value.trim_start_matches(blanks);
                    is_token(name.trim_end_matches(blanks))
                        && (is_token(value) || is_quoted_string(value))
                }
            }
        })
}

fn is_quoted_string(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return false;
    };
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        let is_fine = match character {
            '\\' => characters.next().is_some_and(is_text),
            '"' => false,
            other => is_text(other),
        };
        if !is_fine {
            return false;
        }
    }
    text.len() > 1
}

/// Whether a trailer of this name is reported (RFC 9110 section 6.5.1).
pub fn is_reported_trailer(name: &str) -> bool {
    let framing = ["content-length", "transfer-encoding", "trailer", "te"];
    let connection = ["connection", "keep-alive", "proxy-connection", "upgrade", "host"];
    let credentials = ["authorization", "cookie", "set-cookie", "x-api-key", "www-authenticate"];
    let of_proxies = ["proxy-authenticate", "proxy-authorization"];
    let modifiers = ["cache-control", "expect", "max-forwards", "pragma", "range"];
    let control = ["age", "date", "expires", "location", "retry-after", "vary"];
    let content = ["content-encoding", "content-range", "content-type"];
    let lists: [&[&str]; 7] =
        [&framing, &connection, &credentials, &of_proxies, &modifiers, &control, &content];
    !name.starts_with("if-") && !lists.concat().contains(&name)
}

pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn is_text(character: char) -> bool {
    character == '\t' || (character >= ' ' && character != '\x7f')
}

pub fn is_token(text: &str) -> bool {
    let separators = "\"(),/:;<=>?@[\\]{}";
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !separators.contains(c))
}
