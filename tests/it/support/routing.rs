//! How three kinds of server route a path: a slow, plain reference that shares no code with the
//! gateway. The fuzz target `path_readings` includes this file too, so it depends on `std` alone.

/// What a route of the API is to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// No client may use it.
    Blocked,
    /// Its responses are redacted.
    Redacted,
}

/// The routes of the API that the gateway protects; `*` is a parameter, `**` anything below.
pub const ROUTES: [(&str, Protection); 12] = [
    ("/tools/realtime", Protection::Blocked),
    ("/tools/realtime/**", Protection::Blocked),
    ("/porting/*/notify", Protection::Blocked),
    ("/pbx/app/notification/send/callerid", Protection::Blocked),
    ("/reseller/*/customers", Protection::Redacted),
    ("/customer/*/name", Protection::Redacted),
    ("/customer/**", Protection::Redacted),
    ("/auth/logout", Protection::Redacted),
    ("/auth/validateToken", Protection::Redacted),
    ("/employee/*/token/*", Protection::Redacted),
    ("/log/changelog/**", Protection::Redacted),
    ("/integration/*/customer/*/sync", Protection::Redacted),
];

/// A server's way to split the path of a request target into segments.
pub type Server = fn(&str) -> Option<Vec<String>>;

pub const SERVERS: [(&str, Server); 5] = [
    ("express", express),
    ("express behind nginx", nginx),
    ("apache", apache),
    ("tomcat on windows", tomcat),
    ("express behind a trimming proxy", trimming),
];

/// The routes that some server runs for this request target, with the server's name.
pub fn routed(target: &str) -> Vec<(&'static str, &'static str, Protection)> {
    let raw = target.split('?').next().unwrap_or_default();
    let mut found = Vec::new();
    for (name, read) in SERVERS {
        let Some(segments) = read(raw) else { continue };
        for (route, protection) in ROUTES {
            let route_segments: Vec<&str> = route[1..].split('/').collect();
            if fits(&route_segments, &segments) {
                found.push((name, route, protection));
            }
        }
    }
    found
}

/// Express 4: splits the raw path, ignores letter case and one trailing slash, and decodes
/// parameters once a route is found.
fn express(raw: &str) -> Option<Vec<String>> {
    let path = raw.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    Some(path.split('/').map(str::to_owned).collect())
}

/// nginx with `proxy_pass http://api$uri`: decodes, merges slashes, resolves dot segments and
/// passes the result on, which the server behind it reads as a new target.
fn nginx(raw: &str) -> Option<Vec<String>> {
    let path = normalized(&decode(raw)?, false);
    let end = path.find(['?', '#']).unwrap_or(path.len());
    express(&path[..end])
}

/// Apache with `AllowEncodedSlashes On`: decodes, merges slashes, resolves dot segments, and
/// matches the decoded path, which mod_rewrite ends at a decoded `?`.
fn apache(raw: &str) -> Option<Vec<String>> {
    let path = normalized(&decode(raw)?, false);
    let end = path.find('?').unwrap_or(path.len());
    Some(split(&normalized(&path[..end], false)))
}

/// Tomcat on Windows: drops path parameters, decodes, takes `\` for `/`, resolves dot segments;
/// the file system drops blanks and dots at the end of a name.
fn tomcat(raw: &str) -> Option<Vec<String>> {
    let without: Vec<&str> =
        raw.split('/').map(|part| part.split(';').next().unwrap_or_default()).collect();
    let path = normalized(&decode(&without.join("/"))?, true);
    Some(split(&path).iter().map(|part| part.trim().to_owned()).collect())
}

/// A proxy that decodes twice and drops white space and invisible characters.
fn trimming(raw: &str) -> Option<Vec<String>> {
    let decoded = decode(&decode(raw)?)?;
    let is_kept = |c: &char| {
        !c.is_whitespace() && !"\u{200b}\u{200d}\u{feff}\u{ad}\u{2060}\u{180e}".contains(*c)
    };
    express(&decoded.chars().filter(is_kept).collect::<String>())
}

/// The path with merged slashes and resolved dot segments.
fn normalized(path: &str, backslashes: bool) -> String {
    let path = if backslashes { path.replace('\\', "/") } else { path.to_owned() };
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            kept.pop();
        } else {
            kept.push(part);
        }
    }
    format!("/{}", kept.join("/"))
}

fn split(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// One round of percent-decoding; none for what is not an escape or not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match digits.filter(|_| *first == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if !tail.starts_with(b"+") => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn fits(route: &[&str], segments: &[String]) -> bool {
    match (route, segments) {
        ([], []) => true,
        (["**"], _) => true,
        (["*", route @ ..], [segment, segments @ ..]) => {
            !segment.is_empty() && fits(route, segments)
        }
        ([word, route @ ..], [segment, segments @ ..]) => {
            word.eq_ignore_ascii_case(segment) && fits(route, segments)
        }
        _ => false,
    }
}
