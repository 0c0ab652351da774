//! A second reading of chunked bodies, by RFC 9112 section 7.1 and the strictness that
//! `src/server/chunks.rs` states: whole lines of a whole body instead of single bytes. It shares no
//! code with the first.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The body ends within these bytes.
    Whole,
    /// A line that came whole is wrong.
    Wrong,
    /// The last line, or the data behind it, is not there yet.
    Unfinished,
}

pub fn read(mut body: &[u8]) -> Reading {
    loop {
        let Some((line, rest)) = line(body) else { return Reading::Unfinished };
        let Some(size) = size(line) else { return Reading::Wrong };
        body = rest;
        if size == 0 {
            break;
        }
        if (body.len() as u64) < size {
            return Reading::Unfinished;
        }
        body = &body[size as usize..];
        match body {
            [b'\r', b'\n', rest @ ..] => body = rest,
            [] | [b'\r'] => return Reading::Unfinished,
            _ => return Reading::Wrong,
        }
    }
    let mut trailers = 0;
    loop {
        let Some((line, rest)) = line(body) else { return Reading::Unfinished };
        if line.is_empty() {
            return Reading::Whole;
        }
        trailers += line.len() + 2;
        if !is_trailer(line) || trailers > 16 << 10 {
            return Reading::Wrong;
        }
        body = rest;
    }
}

/// Up to the first CRLF.
fn line(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&body[..end], &body[end + 2..]))
}

fn size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok().filter(|text| text.len() + 2 <= 4096)?;
    let digits = text.split(';').next()?;
    let right = (1..=15).contains(&digits.len()) && digits.chars().all(|digit| digit.is_ascii_hexdigit());
    let mut rest = text[digits.len()..].strip_prefix(';').map(Some).unwrap_or_default();
    if !right || (rest.is_none() && digits.len() < text.len()) {
        return None;
    }
    while let Some(extension) = rest {
        rest = after_extension(extension)?;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// What follows an extension and its semicolon, if one does.
fn after_extension(text: &str) -> Option<Option<&str>> {
    let end = text.find(['=', ';']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut rest = is_token(name).then_some(rest)?;
    if let Some(value) = rest.strip_prefix('=') {
        if let Some(quoted) = value.strip_prefix('"') {
            rest = after_quoted(quoted)?;
        } else {
            let end = value.find(';').unwrap_or(value.len());
            rest = is_token(&value[..end]).then_some(&value[end..])?;
        }
    }
    match rest.strip_prefix(';') {
        Some(next) => Some(Some(next)),
        None => rest.is_empty().then_some(None),
    }
}

fn after_quoted(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (place, character) in text.char_indices() {
        if !matches!(character, '\t' | ' '..='~') {
            return None;
        }
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(&text[place + 1..]),
            _ => {}
        }
    }
    None
}

fn is_trailer(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    let name = std::str::from_utf8(&line[..colon]).is_ok_and(is_token);
    name && line.len() + 2 <= 4096
        && line[colon..].iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

fn is_token(text: &str) -> bool {
    let separators = "\"(),/:;<=>?@[\\]{}";
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !separators.contains(c))
}
