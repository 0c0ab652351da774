//! A second reading of HTTP/1.1 request heads, by RFC 9112 and the strictness that `crates/http1`
//! states. Lines and fields are read as in `response.rs`; no code is shared with the first reading.

use super::oracle::{self, Field, Framing, Reading, Refusal};

/// Maximum number of fields of a request head.
pub const MAX_REQUEST_FIELDS: usize = 100;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestRefusal {
    /// As a response would be.
    Head(Refusal),
    /// CONNECT or TRACE, which hyper serves, or a method of more than 32 characters.
    Method,
    /// A target that hyper repairs or does not look at: characters to be escaped, a fragment, more
    /// than 65,534 bytes, another form, another authority than `Host`.
    Target,
    /// Not one `Host` with a host and perhaps a port, which hyper does not ask for.
    Host,
    /// A decisive name with `_` in place of `-`.
    Disguised,
    /// A protected name in `Connection`.
    Nominated,
}

impl RequestRefusal {
    /// Whether hyper may accept what is refused for this reason.
    pub fn is_strictness(self) -> bool {
        match self {
            RequestRefusal::Head(refusal) => refusal.is_strictness(),
            _ => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub length: usize,
    pub method: String,
    pub target: String,
    /// Path and query of the target.
    pub origin_form: String,
    pub is_old: bool,
    pub fields: Vec<Field>,
    pub framing: Framing,
    pub is_persistent: bool,
    pub expects_continue: bool,
}

/// Reads a request head.
pub fn head(bytes: &[u8]) -> Result<Reading<RequestHead>, RequestRefusal> {
    let refused = |refusal| Err(RequestRefusal::Head(refusal));
    match bytes.first() {
        Some(b'\r' | b'\n') => return refused(Refusal::LeadingLineEnd),
        Some(byte) if !oracle::is_token(&oracle::latin1(&[*byte])) => {
            return refused(Refusal::Syntax);
        }
        _ => {}
    }
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.map_or(usize::MAX, |at| at + 4);
    let scanned = &bytes[..end.min(bytes.len()).min(oracle::MAX_HEAD_BYTES)];
    if let Some(refusal) = oracle::line_end_fault(scanned) {
        return refused(refusal);
    }
    if end > oracle::MAX_HEAD_BYTES {
        let is_full = scanned.len() == oracle::MAX_HEAD_BYTES;
        return if is_full { refused(Refusal::HeadTooLong) } else { Ok(Reading::Unfinished) };
    }
    whole_head(&bytes[..end]).map(Reading::Whole)
}

fn whole_head(bytes: &[u8]) -> Result<RequestHead, RequestRefusal> {
    let syntax = RequestRefusal::Head(Refusal::Syntax);
    let text = oracle::latin1(bytes);
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line: Vec<&str> = lines.next().ok_or(syntax)?.split(' ').collect();
    let [method, target, version] = line[..] else { return Err(syntax) };
    let is_old = match version {
        "HTTP/1.0" => true,
        "HTTP/1.1" => false,
        _ => return Err(syntax),
    };
    if !oracle::is_token(method) || target.is_empty() || target.contains(['\t', '\x7f']) {
        return Err(syntax);
    }
    if target.chars().any(|c| c < ' ') {
        return Err(syntax);
    }
    let fields: Vec<Field> = lines.map(oracle::field).collect::<Option<_>>().ok_or(syntax)?;
    if fields.len() > MAX_REQUEST_FIELDS {
        return Err(RequestRefusal::Head(Refusal::TooManyFields));
    }
    let announced = oracle::announced(&fields, is_old).map_err(RequestRefusal::Head)?;
    let framing = match announced {
        Framing::UntilClose | Framing::Length(0) => Framing::None,
        other => other,
    };
    if ["CONNECT", "TRACE"].contains(&method) || method.len() > 32 {
        return Err(RequestRefusal::Method);
    }
    check_names(&fields)?;
    let values = |wanted: &str| -> Vec<&str> {
        let matching = fields.iter().filter(|(name, _)| name == wanted);
        matching.map(|(_, value)| value.as_str()).collect()
    };
    let host = match values("host")[..] {
        [host] if authority(host).is_some() => Some(host),
        [] if is_old => None,
        _ => return Err(RequestRefusal::Host),
    };
    let origin_form = origin_form(method, target, host).ok_or(RequestRefusal::Target)?;
    let expects = values("expect");
    Ok(RequestHead {
        length: bytes.len(),
        method: method.to_owned(),
        target: target.to_owned(),
        origin_form,
        is_old,
        is_persistent: oracle::keeps_alive(&fields, is_old),
        expects_continue: !is_old
            && expects.len() == 1
            && expects[0].eq_ignore_ascii_case("100-continue"),
        fields,
        framing,
    })
}

fn check_names(fields: &[Field]) -> Result<(), RequestRefusal> {
    let identity = ["authorization", "x-api-key", "cookie", "host", "via", "forwarded"];
    let framing = ["content-length", "transfer-encoding"];
    let forwarded = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
    let others = ["connection", "x-request-id", "upgrade"];
    let lists: [&[&str]; 4] = [&identity, &framing, &forwarded, &others];
    for (name, value) in fields {
        let dashed: String = name.chars().map(|c| if c == '_' { '-' } else { c }).collect();
        if dashed != *name && lists.concat().contains(&dashed.as_str()) {
            return Err(RequestRefusal::Disguised);
        }
        if name == "connection" {
            for option in value.split(',') {
                let option = option.trim_matches([' ', '\t']).to_ascii_lowercase();
                let is_protected = identity.contains(&&*option) || framing.contains(&&*option);
                if is_protected || option.starts_with("x-forwarded-") {
                    return Err(RequestRefusal::Nominated);
                }
            }
        }
    }
    Ok(())
}

fn origin_form(method: &str, target: &str, host: Option<&str>) -> Option<String> {
    let is_plain = target.chars().all(|c| c.is_ascii_graphic() && c != '#');
    if !is_plain || target.len() > 65_534 {
        return None;
    }
    let origin_form = if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        target.to_owned()
    } else {
        let (scheme, rest) = target.split_once("://")?;
        let port = match scheme.to_ascii_lowercase().as_str() {
            "http" => "80",
            "https" => "443",
            _ => return None,
        };
        let end = rest.find(['/', '?', '\\']).unwrap_or(rest.len());
        let named = authority(&rest[..end])?;
        let with_port = |(host, given): (String, String)| {
            let port = if given.is_empty() { port } else { &given };
            (host, port.trim_start_matches('0').to_owned())
        };
        let named = with_port(named);
        if host.is_some_and(|host| authority(host).map(with_port) != Some(named)) {
            return None;
        }
        match rest[end..].chars().next() {
            Some('/') => rest[end..].to_owned(),
            None | Some('?') => format!("/{}", &rest[end..]),
            _ => return None,
        }
    };
    let (path, query) = origin_form.split_once('?').unwrap_or((&origin_form, ""));
    let is_accepted = !path.contains(['<', '>', '`']) && !query.contains(['"', '<', '>']);
    is_accepted.then_some(origin_form)
}

/// A host in lower case and the digits of its port.
fn authority(text: &str) -> Option<(String, String)> {
    let is_name = |text: &str, others: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    let (host, rest) = if text.starts_with('[') {
        let end = text.rfind(']')?;
        is_name(&text[1..end], ":.%-_~").then_some(())?;
        text.split_at(end + 1)
    } else {
        let end = text.find(':').unwrap_or(text.len());
        is_name(&text[..end], ".%-_~").then_some(())?;
        text.split_at(end)
    };
    let port = if rest.is_empty() { "" } else { rest.strip_prefix(':')? };
    let is_port = port.chars().all(|c| c.is_ascii_digit())
        && (port.is_empty() || port.parse::<u16>().is_ok());
    is_port.then(|| (host.to_ascii_lowercase(), port.to_owned()))
}
