//! A second reading of request heads: of HTTP/1.1 by lines and text (RFC 9112 sections 2 to 6), of
//! HTTP/2 by the rules of RFC 9113 sections 8.2 and 8.3 as one list. It shares no code with
//! `src/server`.

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length,
    Chunked,
}

/// What every reader of this head must agree on; `None` if two could disagree.
pub fn framing(head: &[u8]) -> Option<Framing> {
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let text = text.strip_suffix("\r\n\r\n")?;
    let mut lines = text.split("\r\n");
    let request = lines.next()?;
    if text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return None;
    }
    let [method, target, version] = request.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let is_old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return None,
    };
    if !is_token(method) || target.is_empty() || !target.chars().all(|c| c.is_ascii_graphic()) {
        return None;
    }
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if !is_token(name) {
            return None;
        }
        let value = value.trim_matches([' ', '\t']);
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts.push(value),
            "content-length" => lengths.push(value),
            "transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    if hosts.len() > 1 || (hosts.is_empty() && !is_old) {
        return None;
    }
    match (&lengths[..], &codings[..]) {
        ([], []) => Some(Framing::None),
        ([length], []) => {
            length.parse::<u64>().ok().filter(|_| !length.starts_with('+')).map(|_| Framing::Length)
        }
        ([], [coding]) => {
            (coding.eq_ignore_ascii_case("chunked") && !is_old).then_some(Framing::Chunked)
        }
        _ => None,
    }
}

/// Why the head of an HTTP/2 request cannot be served; `None` if it can.
pub fn http2_fault(fields: &[(Vec<u8>, Vec<u8>)]) -> Option<&'static str> {
    let text = |bytes: &[u8]| -> String { bytes.iter().map(|byte| char::from(*byte)).collect() };
    let fields: Vec<_> = fields.iter().map(|(name, value)| (text(name), text(value))).collect();
    let values = |name: &str| {
        fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>()
    };
    let pseudo = fields.iter().take_while(|(name, _)| name.starts_with(':')).count();
    for (place, (name, value)) in fields.iter().enumerate() {
        if value.contains(['\0', '\r', '\n']) {
            return Some("a line end or NUL in a value");
        }
        if place < pseudo {
            if ![":method", ":scheme", ":authority", ":path"].contains(&name.as_str())
                || values(name).len() > 1
            {
                return Some("an unknown or repeated pseudo-header field");
            }
            continue;
        }
        if !is_token(name) || name.to_ascii_lowercase() != *name {
            return Some("a name that is not a token in lower case");
        }
        if value.trim_matches([' ', '\t']) != value {
            return Some("blanks around a value");
        }
        let of_a_connection =
            ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"];
        if of_a_connection.contains(&name.as_str())
            || (name == "te" && !value.eq_ignore_ascii_case("trailers"))
        {
            return Some("a field of one connection");
        }
    }
    let one = |name: &str| values(name).first().copied();
    let (method, scheme, authority, path) =
        (one(":method"), one(":scheme"), one(":authority"), one(":path"));
    let hosts = values("host");
    let lengths = values("content-length");
    let digits = |length: &&str| {
        (1..=18).contains(&length.len()) && length.chars().all(|c| c.is_ascii_digit())
    };
    if hosts.len() > 1
        || !lengths.iter().all(digits)
        || lengths.iter().any(|length| *length != lengths[0])
    {
        return Some("a repeated host or the length");
    }
    match method {
        Some("CONNECT") if scheme.is_none() && path.is_none() && authority.is_some() => {
            return None;
        }
        Some(method) if is_token(method) && method != "CONNECT" && method.len() <= 32 => {}
        _ => return Some("the method"),
    }
    if !scheme
        .is_some_and(|scheme| ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()))
    {
        return Some("the scheme");
    }
    let is_escaped = |path: &str| {
        let (before, query) = path.split_once('?').unwrap_or((path, ""));
        let is_visible = path.chars().all(|c| c.is_ascii_graphic() && c != '#');
        is_visible && !before.contains(['<', '>', '`']) && !query.contains(['<', '>', '"'])
    };
    if path.is_none_or(|path| path.is_empty() || !is_escaped(path)) {
        return Some("the path");
    }
    let named: Vec<String> =
        authority.iter().chain(&hosts).map(|name| name.to_ascii_lowercase()).collect();
    if named.is_empty() || named.iter().any(|name| *name != named[0] || name.contains('@')) {
        return Some("the authority");
    }
    None
}

fn is_token(text: &str) -> bool {
    let separators = "\"(),/:;<=>?@[\\]{}";
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !separators.contains(c))
}
